"""Suffixes: what is looked for can be read, and what can be read is looked for."""

import io
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from core import embed
from PIL import ExifTags, Image
from stress.picture_seeds import dng

from datasette_image_similarity.errors import ImageError
from datasette_image_similarity.extra_formats import is_raw, jxl_size
from datasette_image_similarity.formats import (
    EXTRAS,
    formats_by_suffix,
    picture_suffixes,
    remedy,
    suffix_of,
)
from datasette_image_similarity.images import LOCAL_FILES, Decoder, Limits, Request
from datasette_image_similarity.sources import folder_pictures

PACKAGE_FOLDER = Path(__file__).parent.parent
BY_HAND = EXTRAS["RAW"].suffixes.split()  # LibRaw has no list to compare with


@pytest.fixture(scope="module")
def decoder():
    with Decoder(LOCAL_FILES) as decoder:
        yield decoder


def registered() -> dict[str, str]:
    """All suffixes that Pillow and its installed plugins know, in a process of its own."""
    code = (
        "import json; from contextlib import suppress\n"
        "from PIL import Image; Image.init()\n"
        "with suppress(ImportError): import pillow_jxl\n"
        "with suppress(ImportError):\n"
        "    import pillow_heif; pillow_heif.register_heif_opener()\n"
        "print(json.dumps(Image.EXTENSION))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return json.loads(result.stdout)


def saved(suffix: str, format: str) -> bytes | None:
    """A picture in this format; None if Pillow cannot write it."""
    if format == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    if format == "JXL":
        import pillow_jxl  # noqa: F401
    out = io.BytesIO()
    picture = Image.new("F" if suffix == ".pfm" else "RGB", (40, 30))
    try:
        picture.save(out, format)
    except (KeyError, OSError, ValueError):
        return None
    return out.getvalue()


def test_every_suffix_that_is_looked_for_can_be_read(decoder):
    known = registered()
    for suffix in picture_suffixes():
        if suffix in BY_HAND:
            continue
        decoded = decoder.decode(saved(suffix, known[suffix]), Request())
        assert decoded.format == formats_by_suffix()[suffix]


def test_every_format_that_can_be_read_is_looked_for(decoder):
    refused = set()
    for suffix, format in registered().items():
        data = saved(suffix, format)
        if suffix in picture_suffixes() or data is None:
            continue
        with pytest.raises(ImageError):
            decoder.decode(data, Request())
        refused.add(format)
    assert {"TGA", "ICO", "PCX"} <= refused


def test_suffixes_count_in_any_case(tmp_path):
    for suffix in picture_suffixes():
        (tmp_path / f"small{suffix}").touch()
        (tmp_path / f"BIG{suffix.upper()}").touch()
    found = sum(1 for _ in folder_pictures([tmp_path]))
    assert found == 2 * len(picture_suffixes())


@pytest.mark.parametrize(
    "suffix",
    [
        *(".hif", ".mpo", ".jpf", ".j2k", ".jpx", ".jpc", ".j2c", ".pnm", ".pfm", ".dib"),
        *(".jfif", ".jpe", ".apng", ".avifs", ".heics"),
    ],
)
def test_suffixes_that_once_were_forgotten(suffix):
    assert suffix in picture_suffixes()


def test_a_name_that_no_picture_has_is_not_looked_for():
    assert not {".tga", ".psd", ".svg", ".ico", ".pdf", ".eps", ""} & set(
        picture_suffixes()
    )


def test_what_an_extra_would_read_is_said(monkeypatch):
    monkeypatch.setattr("datasette_image_similarity.formats.find_spec", lambda name: None)
    assert remedy(".CR2") == (
        "RAW needs rawpy: pip install 'datasette-image-similarity[raw]'"
    )
    assert remedy(".jxl").endswith("[jxl]'")
    assert remedy(".hif").endswith("[heic]'")
    assert remedy(".psd") is None
    assert remedy(".jpg") is None


def test_importing_the_list_of_formats_loads_no_pillow():
    code = (
        "import sys, datasette_image_similarity.sources;"
        "print([m for m in ('PIL', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=PACKAGE_FOLDER, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_picture_under_a_wrong_name_counts_by_its_content(tmp_path, decoder):
    for name, format in (("a.png", "JPEG"), ("b.jpg", "PNG"), ("c.dib", "BMP")):
        (tmp_path / name).write_bytes(saved("", format))
        assert decoder.decode((tmp_path / name).read_bytes(), Request()).format == format


@pytest.mark.parametrize("format", sorted(set(formats_by_suffix().values())))
def test_a_file_is_named_after_its_format(format):
    assert formats_by_suffix()[suffix_of(format)] == format


# RAW


def jpeg(size=(640, 480), **options) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(out, "JPEG", **options)
    return out.getvalue()


def refusal(decoder, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decoder.decode(data, Request())
    return str(caught.value)


@pytest.mark.parametrize("is_jpeg", [True, False])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_raw_is_read_by_its_preview(decoder, orientation, is_jpeg):
    pytest.importorskip("rawpy")
    preview = jpeg() if is_jpeg else Image.open(io.BytesIO(jpeg())).tobytes()
    result = decoder.decode(dng(preview, orientation=orientation), Request(thumbnail=64))
    upright = (640, 480) if orientation < 5 else (480, 640)
    assert (result.width, result.height, result.format) == (*upright, "RAW")
    assert result.facts == {
        "taken_at": "2021-05-03T14:07:00+02:00",
        "camera": "Canon EOS 5D",
    }
    thumbnail = Image.open(io.BytesIO(result.thumbnail)).convert("L")
    middle = {1: (32, 47), 3: (32, 0), 6: (0, 32), 8: (47, 32)}[orientation]
    assert thumbnail.getpixel(middle) > 200  # where the gradient ends


def test_raw_without_a_preview_or_damaged_is_refused_with_a_reason(decoder):
    pytest.importorskip("rawpy")
    assert refusal(decoder, dng(b"")) == "the RAW file holds no preview that can be read"
    assert "LibRaw cannot read" in refusal(decoder, b"FUJIFILMCCD-RAW ".ljust(999, b"\0"))
    whole = dng(jpeg())
    for cut in range(0, len(whole), 999):
        with suppress(ImageError):
            decoder.decode(whole[:cut], Request())


def test_a_preview_is_held_to_the_pixel_limit():
    pytest.importorskip("rawpy")
    with Decoder(Limits(max_bytes=1 << 20, max_pixels=100_000, seconds=10)) as decoder:
        assert "megapixels" in refusal(decoder, dng(jpeg()))


@pytest.mark.parametrize("content", ["DNG", "CR2", "CR3", "RAF"])
def test_raw_without_rawpy_says_what_to_install(content):
    data = {
        "DNG": dng(jpeg()),
        "CR2": b"II*\0\x10\0\0\0CR\2\0".ljust(99, b"\0"),
        "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
        "RAF": b"FUJIFILMCCD-RAW 0201".ljust(99, b"\0"),
    }[content]
    said = without(["rawpy"], data)
    assert said == EXTRAS["RAW"].remedy


def test_jpeg_xl_without_its_plugin_says_what_to_install():
    assert without(["pillow_jxl"], b"\xff\x0a\0\0") == EXTRAS["JXL"].remedy


def without(modules: list[str], data: bytes) -> str:
    """The refusal where these are not installed."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({modules!r}))\n"
        "from datasette_image_similarity import image_worker\n"
        "try:\n    image_worker.opened(sys.stdin.buffer.read())\n"
        "except Exception as error:\n    print(error)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=PACKAGE_FOLDER, input=data, capture_output=True)
    return result.stdout.decode().strip()


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_an_ordinary_tiff_is_not_raw(decoder, mode):
    out = io.BytesIO()
    Image.new(mode, (40, 30)).save(out, "TIFF")
    assert not is_raw(out.getvalue())
    assert decoder.decode(out.getvalue(), Request()).format == "TIFF"


def test_a_tiff_of_nothing_but_directories_is_looked_through_quickly():
    entries = b"\x4a\1\4\0\xff\xff\xff\xff\0\0\0\0" * 65535  # SubIFDs, more than there are
    started = time.monotonic()
    assert not is_raw(b"II*\0\x08\0\0\0\xff\xff" + entries + b"\x08\0\0\0")
    assert time.monotonic() - started < 1


# JPEG XL


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize(
    "size", [(1, 1), (8, 8), (64, 64), (300, 200), (40, 80), (320, 180), (3000, 2), (2, 1)]
)
def test_the_header_of_jpeg_xl_tells_its_size(decoder, size, boxed):
    pytest.importorskip("pillow_jxl")
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, "JXL", use_container=boxed)
    assert jxl_size(out.getvalue()) == size
    result = decoder.decode(out.getvalue(), Request())
    assert (result.width, result.height, result.format) == (*size, "JXL")


def test_jpeg_xl_is_held_to_the_pixel_limit_before_it_is_decoded():
    pytest.importorskip("pillow_jxl")
    out = io.BytesIO()
    Image.new("RGB", (400, 300)).save(out, "JXL")
    with Decoder(Limits(max_bytes=1 << 20, max_pixels=100_000, seconds=10)) as decoder:
        assert "megapixels" in refusal(decoder, out.getvalue()[:100])


def test_only_a_jpeg_packed_into_jpeg_xl_is_turned_by_its_exif(decoder, tmp_path):
    pytest.importorskip("pillow_jxl")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Model] = "C300"
    file = tmp_path / "turned.jpg"
    file.write_bytes(jpeg(exif=exif))
    packed, own = io.BytesIO(), io.BytesIO()
    Image.open(file).save(packed, "JXL")
    Image.new("RGB", (640, 480)).save(own, "JXL", exif=exif.tobytes())
    results = [decoder.decode(one.getvalue(), Request()) for one in (packed, own)]
    assert [(one.width, one.height) for one in results] == [(480, 640), (640, 480)]
    assert [one.facts["camera"] for one in results] == ["C300", "C300"]


def test_damaged_jpeg_xl_is_refused(decoder):
    pytest.importorskip("pillow_jxl")
    out = io.BytesIO()
    Image.effect_noise((99, 99), 50).save(out, "JXL", use_container=True)
    for cut in range(2, len(out.getvalue()) - 1, 499):
        refusal(decoder, out.getvalue()[:cut])


def test_pictures_whose_extra_is_gone_are_not_pruned(tmp_path, monkeypatch):
    pytest.importorskip("pillow_heif")
    folder = tmp_path / "telephone"
    folder.mkdir()
    (folder / "a.hif").write_bytes(saved(".hif", "HEIF"))
    (folder / "b.jpg").write_bytes(jpeg())
    database = tmp_path / "x.db"
    assert embed(database, folder).embedded == 2
    monkeypatch.setattr("datasette_image_similarity.formats.find_spec", lambda name: None)
    picture_suffixes.cache_clear()
    try:
        assert embed(database, folder, prune=True).removed == 0
    finally:
        monkeypatch.undo()
        picture_suffixes.cache_clear()
    (folder / "a.hif").unlink()
    assert embed(database, folder, prune=True).removed == 1
