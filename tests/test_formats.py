"""Suffixes: what is looked for can be read, and what can be read is looked for."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from datasette_image_similarity.errors import ImageError
from datasette_image_similarity.formats import (
    EXTRAS,
    formats_by_suffix,
    picture_suffixes,
    remedy,
)
from datasette_image_similarity.images import LOCAL_FILES, Decoder, Request
from datasette_image_similarity.sources import folder_pictures

PACKAGE_FOLDER = Path(__file__).parent.parent
BY_HAND = EXTRAS["RAW"].suffixes  # LibRaw has no list to compare with


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
