"""Pictures as cameras and programs really write them: clear, moving, cut off, deep."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from conftest import SHARED
from core import answer, command, embed, sql
from PIL import Image, ImageDraw, ImageFilter, features

from datasette_image_similarity import image_hdr, image_rescue
from datasette_image_similarity.encoders import load_encoder
from datasette_image_similarity.errors import ImageError
from datasette_image_similarity.images import (
    LOCAL_FILES,
    UPLOADS,
    Crop,
    Decoder,
    Input,
    Request,
)

SQUARE = Request(input=Input(size=64), thumbnail=320)
PILLOW = int(PIL.__version__.split(".")[0])
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="no AVIF here")


@pytest.fixture(scope="module")
def decoder():
    with Decoder(LOCAL_FILES) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def hog():
    return load_encoder("hog")


def file_of(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def heic_of(image, **options):
    pillow_heif = pytest.importorskip("pillow_heif")
    out = io.BytesIO()
    pillow_heif.from_pillow(image).save(out, quality=90, **options)
    return out.getvalue()


def chunk(kind, body):
    packed = struct.pack(">I", len(body)) + kind + body
    return packed + struct.pack(">I", zlib.crc32(kind + body))


def png16(values, colour_type):
    """A PNG of 16 bits: `values` are uint16 (height, width, channels)."""
    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def photo(size=(300, 220), seed=1):
    chance = np.random.default_rng(seed)
    few = chance.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(few).resize(size, Image.Resampling.BICUBIC), int)
    noise = chance.normal(0, 9, (*size[::-1], 1))
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def thumbnail_of(result):
    return np.asarray(Image.open(io.BytesIO(result.thumbnail)).convert("L"), int)


def told_apart(decoder, encoder, files):
    """No two have a score of .995, and thumbnails show what is drawn."""
    request = Request(input=encoder.input, thumbnail=320)
    results = [decoder.decode(data, request) for data in files]
    vectors = encoder.encode(np.stack([result.pixels for result in results]))
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = [a @ b for a, b in itertools.combinations(vectors, 2)]
    assert max(scores) < 0.995
    assert min(np.ptp(thumbnail_of(result)) for result in results) > 20


# Transparent


def shapes(colour):
    """A disc, stripes and a triangle on nothing."""
    pictures = [Image.new("RGBA", (200, 200)) for _ in range(3)]
    disc, stripes, triangle = map(ImageDraw.Draw, pictures)
    disc.ellipse((50, 50, 150, 150), colour)
    for y in range(0, 200, 25):
        stripes.rectangle((0, y, 200, y + 10), colour)
    triangle.polygon([(100, 30), (170, 160), (30, 160)], colour)
    return pictures


@pytest.mark.parametrize(
    "colour",
    [
        "white",
        "black",
        "#808080",
        "#f8f8f4",
        "yellow",
        "blue",
        (255, 255, 255, 40),
        (0, 0, 0, 40),
    ],
)
def test_shapes_of_any_colour_are_told_apart(decoder, hog, colour):
    told_apart(decoder, hog, map(file_of, shapes(colour)))


def with_clear_colour(image):
    """Nearly white is transparent, white is not."""
    flat = Image.new("RGB", image.size, (254, 254, 254))
    flat.paste("white", mask=image.getchannel("A"))
    return flat


def clear_16_bits(image):
    drawn = np.asarray(image.getchannel("A")) > 0
    values = np.where(drawn, 65535, 65000).astype(np.uint16)
    return file_of(Image.fromarray(values), transparency=65000)


def soft(image):
    image.putalpha(image.getchannel("A").filter(ImageFilter.GaussianBlur(9)))
    return file_of(image)


KINDS = {
    "LA": lambda i: file_of(i.convert("LA")),
    "palette": lambda i: file_of(i.quantize(8)),
    "one colour clear": lambda i: file_of(
        with_clear_colour(i), transparency=(254, 254, 254)
    ),
    "one grey clear": lambda i: file_of(
        with_clear_colour(i).convert("L"), transparency=254
    ),
    "one of 65,536 greys clear": clear_16_bits,
    "16 bits": lambda i: png16(np.asarray(i).astype(np.uint16) * 257, 6),
    "16-bit LA": lambda i: png16(np.asarray(i.convert("LA")).astype(np.uint16) * 257, 4),
    "soft edges": soft,
    "WebP": lambda i: file_of(i, "WEBP"),
    "GIF": lambda i: file_of(i, "GIF"),
    "TIFF": lambda i: file_of(i, "TIFF"),
    "JPEG 2000": lambda i: file_of(i, "JPEG2000"),
    "AVIF": lambda i: file_of(i, "AVIF"),
    "HEIC": heic_of,
}


@pytest.mark.parametrize("kind", KINDS)
def test_white_shapes_of_any_kind_are_told_apart(decoder, hog, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("no AVIF here")
    told_apart(decoder, hog, map(KINDS[kind], shapes("white")))


def test_white_shapes_beside_the_same_black_one_are_told_apart(decoder, hog):
    pictures = shapes("white")
    for picture in pictures:
        ImageDraw.Draw(picture).rectangle((5, 5, 45, 195), "black")
    told_apart(decoder, hog, map(file_of, pictures))


@pytest.mark.parametrize("colours", [("white", "black"), ("white", "grey", "black")])
def test_thin_lines_of_each_colour_are_seen(decoder, colours):
    picture = Image.new("RGBA", (256, 256))
    for number, colour in enumerate(colours):
        y = 60 + 60 * number
        ImageDraw.Draw(picture).line((20, y, 236, y), colour, 2)
    pixels = decoder.decode(file_of(picture), Request(input=Input(size=256))).pixels
    ground = int(pixels[0, 0, 0])
    for number in range(len(colours)):
        line = pixels[55 + 60 * number : 66 + 60 * number, 128, 0].astype(int)
        assert np.abs(line - ground).max() > 50


def test_the_ground_is_the_same_whatever_is_made_of_a_picture(decoder):
    data = file_of(shapes("white")[0].resize((900, 900)))
    alone = [
        decoder.decode(data, Request(**{part: 300})) for part in ("thumbnail", "picture")
    ]
    both = decoder.decode(data, Request(input=Input(), thumbnail=300, picture=300))
    corners = [both.pixels[0, 0].mean()]
    for result in (*alone, both):
        corners += [
            np.asarray(Image.open(io.BytesIO(part)).convert("L"))[0, 0]
            for part in (result.thumbnail, result.picture)
            if part
        ]
    assert max(corners) < 10


def test_dark_drawings_and_photos_with_a_clear_edge_stay_on_white(decoder):
    framed = Image.new("RGBA", (300, 220))
    framed.paste(photo((200, 150)), (50, 35))
    for picture in (framed, *shapes("black"), *shapes("#c03020")):
        assert decoder.decode(file_of(picture), SQUARE).pixels[-1, -1].min() > 250


# Moving


def sequence(shape, first, format, empty=1, fade=0):
    """`empty` frames of one colour, then the shape, faded in over `fade` frames."""
    last = Image.new("RGB", (200, 200), "#1e3c5a")
    last.paste("white", mask=shape.getchannel("A"))
    blank = Image.new("RGB", (200, 200), first)
    frames = [blank.copy() for _ in range(empty)]
    for number, frame in enumerate(frames):  # or else they would be written as one
        frame.putpixel((0, 0), (number, number, number))
    frames += [Image.blend(blank, last, step / (fade + 1)) for step in range(1, fade + 1)]
    timed = {} if format == "TIFF" else {"duration": 40}
    return file_of(
        frames[0], format, save_all=True, append_images=[*frames[1:], last], **timed
    )


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize(
    ("first", "empty", "fade"), [("black", 1, 0), ("white", 1, 0), ("black", 20, 6)]
)
def test_a_frame_that_shows_something_stands_for_an_animation(
    decoder, hog, format, first, empty, fade
):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("no AVIF here")
    files = [sequence(shape, first, format, empty, fade) for shape in shapes("white")]
    told_apart(decoder, hog, files)


def test_everything_is_made_of_the_same_frame(decoder):
    data = sequence(shapes("white")[0], "white", "GIF")
    result = decoder.decode(data, Request(input=Input(), thumbnail=200, picture=200))
    large = Image.open(io.BytesIO(result.picture)).convert("L")
    small = Image.open(io.BytesIO(result.thumbnail)).convert("L")
    for shown in (Image.fromarray(result.pixels).convert("L"), large, small):
        middle = shown.width // 2
        assert shown.getpixel((middle, middle)) > 240
        assert shown.getpixel((4, middle)) < 80
    alone = decoder.decode(data, Request(picture=200))
    assert Image.open(io.BytesIO(alone.picture)).convert("L").getpixel((4, 100)) < 80


def test_blank_animations_of_thousands_of_frames_do_not_take_long():
    frames = [Image.new("L", (300, 200), number % 3) for number in range(2000)]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=20)
    with Decoder(UPLOADS) as decoder:
        assert decoder.decode(data, SQUARE).pixels.max() < 6


def test_a_first_frame_that_shows_something_stays(decoder):
    disc, _, triangle = shapes("red")
    data = file_of(disc, "GIF", save_all=True, append_images=[triangle], duration=40)
    alone = decoder.decode(file_of(disc, "GIF"), SQUARE).pixels
    assert np.array_equal(decoder.decode(data, SQUARE).pixels, alone)


def test_pages_of_other_sizes_are_no_frames(decoder):
    blank, page = Image.new("RGB", (200, 200), "white"), photo((300, 200))
    data = file_of(blank, "TIFF", save_all=True, append_images=[page])
    assert decoder.decode(data, SQUARE).pixels.min() == 255


def test_an_animation_that_breaks_off_is_judged_by_what_is_there(decoder):
    data = sequence(shapes("white")[0], "black", "GIF", 3, fade=2)
    assert np.ptp(decoder.decode(data[:-3], SQUARE).pixels) > 50
    assert np.ptp(decoder.decode(data[: len(data) // 3], SQUARE).pixels) < 10


# Cut off

CUT = {
    "JPEG": {},
    "JPEG with marks": {"restart_marker_rows": 1},
    "JPEG, progressive": {"progressive": True},
    "JPEG, colours in full": {"subsampling": 0, "quality": 95},
    "PNG": {},
    "GIF": {},
    "BMP": {},
    "PPM": {},
    "TIFF": {},
    "WEBP": {},
    "JPEG2000": {"no_jp2": False},
    "HEIC": None,
}


@pytest.mark.parametrize("kind", CUT)
def test_a_file_of_which_nearly_all_is_there_is_decoded(decoder, kind):
    image = photo((800, 600))
    options = CUT[kind]
    data = (
        heic_of(image)
        if options is None
        else file_of(image, kind[:8].split()[0].strip(","), **options)
    )
    whole = decoder.decode(data, SQUARE)
    assert whole.note is None
    for missing in (2, 20, len(data) // 100):
        result = decoder.decode(data[:-missing], SQUARE)
        assert (result.width, result.height) == (800, 600)
        apart = np.abs(result.pixels.astype(int) - whole.pixels).max(axis=2)
        assert (apart > 20).mean() < 0.1, missing
        if kind != "GIF" or missing > 2:
            assert result.note.startswith(("the file is cut off: 9", "the end of the file"))
    for share in (0.3,) if "progressive" in kind else (0.3, 0.6):
        with pytest.raises(ImageError, match="damaged"):
            decoder.decode(data[: int(len(data) * share)], SQUARE)


def test_a_jpeg_that_ends_within_a_mark_or_a_row(decoder):
    for options in ({}, {"restart_marker_blocks": 1}, {"restart_marker_rows": 2}):
        data = file_of(photo((160, 120)), "JPEG", **options)
        whole = decoder.decode(data, SQUARE).pixels.astype(int)
        for missing in range(2, 60):
            result = decoder.decode(data[:-missing], SQUARE)
            assert np.abs(result.pixels - whole)[:40].mean() < 1


@pytest.mark.parametrize("lossless", [False, True])
def test_webp_with_other_parts(decoder, lossless):
    found = 0
    for seed in range(12):
        image = photo(seed=seed)
        image.putalpha(200)
        data = file_of(image, "WEBP", lossless=lossless, icc_profile=b"nonsense")
        try:
            assert decoder.decode(data[:-20], SQUARE).note.startswith(
                "the file is cut off: 9"
            )
            found += 1
        except ImageError:
            assert lossless  # zeros may be no code
    assert found > 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_other_colours_are_measured_as_well(decoder, mode):
    data = file_of(photo((800, 600)).convert(mode), "JPEG")
    assert "cut off: 9" in decoder.decode(data[: -len(data) // 50], SQUARE).note
    with pytest.raises(ImageError, match="damaged"):
        decoder.decode(data[: len(data) // 2], SQUARE)


def test_how_much_of_a_jpeg_is_there_is_measured():
    data = file_of(photo((800, 600)), "JPEG", quality=95)
    shares = [
        image_rescue.share_of_jpeg(data[: int(len(data) * part)])[0]
        for part in (0.25, 0.5, 0.75, 0.97)
    ]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 0.97], abs=0.06)


def test_a_progressive_jpeg_without_a_whole_scan_is_not_nearly_whole():
    data = file_of(photo((800, 600)), "JPEG", progressive=True)
    with pytest.raises(image_rescue.Damaged):
        image_rescue.share_of_jpeg(data[: len(data) // 3])


def test_a_progressive_jpeg_cut_off_between_its_scans_is_whole_enough(decoder):
    data = file_of(photo((800, 600)), "JPEG", progressive=True)
    tables = data.rfind(b"\xff\xc4")  # of the last scan
    for end in (tables + 1, tables + 2, tables + 3, tables + 9):
        assert decoder.decode(data[:end], SQUARE).note == image_rescue.ONLY_THE_END


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("end", [b"\xff\xd9", bytes(200_000)])
def test_what_a_decoder_fills_in_without_a_word_is_missing(decoder, mode, end):
    data = file_of(photo((800, 600)).convert(mode), "JPEG", quality=95)
    note = decoder.decode(data[: -len(data) // 50] + end, SQUARE).note
    assert note.startswith("the file is cut off: 9")
    with pytest.raises(ImageError, match="damaged"):
        decoder.decode(data[: len(data) // 2] + end, SQUARE)


@pytest.mark.parametrize("end", [b"", bytes(5000)])
def test_a_jpeg_that_ends_in_grey_is_whole(decoder, end):
    image = photo((800, 600))
    image.paste((128, 128, 128), (300, 300, 800, 600))
    for options in ({}, {"restart_marker_rows": 1}, {"progressive": True}):
        data = file_of(image, "JPEG", **options) + end
        assert decoder.decode(data, SQUARE).note is None


@pytest.mark.parametrize("progressive", [False, True])
def test_what_lies_behind_the_cut_of_a_jpeg_is_not_taken_for_it(decoder, progressive):
    data = file_of(photo((800, 600)), "JPEG", progressive=progressive)
    garbage = np.random.default_rng(3).bytes(4000) + b"\xff\x02\xff\x47"
    assert decoder.decode(data[:-20] + garbage, SQUARE).note
    with pytest.raises(ImageError, match="damaged"):
        decoder.decode(data[: len(data) // 3] + garbage, SQUARE)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_bytes_behind_a_picture_do_no_harm(decoder, format):
    data = file_of(photo(), format)
    whole = decoder.decode(data, SQUARE)
    for junk in (b"\0" * 500, b"<script>", b"\xff\xd8\xff\xe0" * 9):
        result = decoder.decode(data + junk, SQUARE)
        assert np.array_equal(result.pixels, whole.pixels)
        assert result.note is None


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize(
    "junk", [b"\r\n", b"\xef\xbb\xbf", b"\0" * 128, b"\x01\xfe\x00\x90"]
)
def test_a_few_bytes_in_front_of_a_picture_are_skipped(decoder, format, junk):
    data = file_of(photo(), format)
    result = decoder.decode(junk + data, SQUARE)
    assert result.note == f"skipped {len(junk)} bytes in front of the picture"
    assert np.array_equal(result.pixels, decoder.decode(data, SQUARE).pixels)


@pytest.mark.parametrize("front", [b"=1;", b"GET / HTTP/1.0\r\n", b"\0" * 5000])
def test_another_programs_file_with_a_picture_in_it_is_none(decoder, front):
    with pytest.raises(ImageError, match="not an image"):
        decoder.decode(front + file_of(photo(), "JPEG"), SQUARE)


def test_notes_are_kept_and_shown(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        data = file_of(photo(seed=number), "JPEG")
        (folder / f"{number}.jpg").write_bytes(data if number == 3 else data[:-20])
    path = tmp_path / "x.db"
    embed(path, folder)
    kept = sql(path, "select path, note from _image_similarity_items where note not null")
    assert len(kept) == 6
    assert "3.jpg" not in dict(kept)
    [status] = answer("status", path)
    assert status["noted"] == 6
    assert len(status["notes"]) == 5
    assert status["notes"][0] == {"picture": kept[0][0], "note": kept[0][1]}
    printed = command("status", path).output
    assert "6 pictures whose files are not quite in order" in printed
    assert "0.jpg: the file is cut off: 9" in printed
    assert "… and 1 more" in printed
    (folder / "0.jpg").write_bytes(file_of(photo(), "JPEG"))
    embed(path, folder)
    assert answer("status", path)[0]["noted"] == 5


# Deep


def ramp(greatest, dtype):
    return np.tile(np.linspace(0, greatest, 64), (64, 1)).astype(dtype)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF", "32-bit TIFF", "J2K"])
def test_greys_of_fewer_bits_use_the_whole_range(decoder, bits, kind):
    values = ramp(2**bits - 1, np.int32 if kind == "32-bit TIFF" else np.uint16)
    image = Image.fromarray(values)
    if kind == "big-endian TIFF":
        image = Image.frombytes("I;16B", image.size, values.astype(">u2").tobytes())
    data = file_of(image, {"PNG": "PNG", "J2K": "JPEG2000"}.get(kind, "TIFF"))
    row = decoder.decode(data, SQUARE).pixels[30, :, 0].astype(int)
    expected = np.linspace(0, 127 if bits == 15 else 255, 64)
    assert np.abs(row - expected).max() <= 3


@pytest.mark.parametrize("maxval", [1023, 4095, 16383, 65535])
def test_pgm_has_the_range_it_names(decoder, maxval):
    data = b"P5 64 64 %d\n" % maxval + ramp(maxval, ">u2").tobytes()
    row = decoder.decode(data, SQUARE).pixels[30, :, 0].astype(int)
    assert np.abs(row - np.linspace(0, 255, 64)).max() <= 3


def test_integers_of_32_bits_run_from_least_to_greatest(decoder):
    for low, high in ((0, 2**31 - 1), (-2000, 2000), (0, 100_000)):
        values = np.tile(np.linspace(low, high, 64), (64, 1)).astype(np.int32)
        row = decoder.decode(file_of(Image.fromarray(values), "TIFF"), SQUARE).pixels[
            30, :, 0
        ]
        assert np.abs(row - np.linspace(0, 255, 64)).max() <= 3


def grey_tiff(values, photometric):
    """An uncompressed grey TIFF of unsigned integers, which Pillow does not write."""
    (height, width), bits = values.shape, 8 * values.itemsize
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric}
    tags |= {273: 8 + 2 + 12 * 9 + 4, 277: 1, 278: height, 279: values.nbytes}
    entries = (struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    return header + b"".join(entries) + bytes(4) + values.tobytes()


def test_unsigned_integers_of_32_bits_are_not_taken_for_negative_ones(decoder):
    data = grey_tiff(ramp(2**32 - 1, np.uint32), photometric=1)
    row = decoder.decode(data, SQUARE).pixels[30, :, 0].astype(int)
    assert np.abs(row - np.linspace(0, 255, 64)).max() <= 3


@pytest.mark.parametrize("bits", [12, 16])
def test_deep_tiffs_in_which_zero_is_white_are_no_negatives(decoder, bits):
    data = grey_tiff(ramp(2**bits - 1, np.uint16), photometric=0)
    row = decoder.decode(data, SQUARE).pixels[30, :, 0].astype(int)
    assert np.abs(row - np.linspace(255, 0, 64)).max() <= 3


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_colours_of_12_bits_are_not_black(decoder, colour_type, channels):
    values = np.repeat(ramp(4095, np.uint16)[..., None], channels, axis=2)
    if channels in (2, 4):
        values[..., -1] = 65535
    row = decoder.decode(png16(values, colour_type), SQUARE).pixels[30, :, 0].astype(int)
    assert np.abs(row - np.linspace(0, 255, 64)).max() <= 20  # four bits are left of them


def test_a_large_picture_is_as_bright_as_its_thumbnail(decoder):
    values = np.zeros((600, 800), np.uint16)
    values[::2, ::2] = 600  # of which little is left in what is made smaller
    data = file_of(Image.fromarray(values))
    thumbnail = decoder.decode(data, Request(thumbnail=100)).thumbnail
    large = decoder.decode(data, Request(picture=800)).picture
    means = [np.asarray(Image.open(io.BytesIO(one))).mean() for one in (thumbnail, large)]
    assert means[0] == pytest.approx(means[1], abs=6)


# Not read


def test_rle4_is_read_or_refused_but_never_black(decoder):
    data = bmp(4, 2, bytes([0, 3, 0x12, 0x30, 5, 0x45, 0, 0, 8, 0x67, 0, 1]), (8, 2))
    if PILLOW < 13:
        with pytest.raises(ImageError, match="RLE4 needs Pillow 13"):
            decoder.decode(data, SQUARE)
    else:
        pixels = decoder.decode(data, Request(input=Input(size=8, interpolation="nearest")))
        assert pixels.pixels[7, :3, 0].tolist() == [17, 34, 51]


def bmp(bits, compression, body, size):
    palette = b"".join(bytes([n * 17] * 3 + [0]) for n in range(16))
    head = struct.pack(
        "<IiiHHIIiiII", 40, *size, 1, bits, compression, len(body), 0, 0, 16, 0
    )
    start = 14 + len(head) + len(palette)
    return (
        b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + palette + body
    )


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="no cases here")
def test_the_rle4_file_of_the_cases(decoder):
    data = (SHARED / "cases" / "formats" / "rle4.bmp").read_bytes()
    if PILLOW < 13:
        with pytest.raises(ImageError, match="Pillow 13"):
            decoder.decode(data, SQUARE)
    else:
        assert decoder.decode(data, SQUARE).pixels.max() > 50


def tiff(bits, sample_format, samples=1, order="<", big=False):
    """A TIFF of one strip of zeros."""
    strip = bytes(8 * 8 * bits // 8 * samples)
    entries = [(256, 8), (257, 8), (259, 1), (262, 1), (273, 0), (277, samples), (278, 8)]
    entries += [(279, len(strip)), (339, sample_format), (258, bits)]
    count, offset = ("Q", "Q") if big else ("H", "I")
    head = b"II" if order == "<" else b"MM"
    head += struct.pack(
        f"{order}HHH" if big else f"{order}H", *((43, 8, 0) if big else (42,))
    )
    at = len(head) + struct.calcsize(offset)
    width = 20 if big else 12
    table = len(entries) * width + struct.calcsize(f"={count}{offset}")
    packed = b""
    for tag, value in sorted(entries):
        value = at + table if tag == 273 else value
        packed += struct.pack(f"{order}HH{offset}{offset}", tag, 4, 1, value)
    body = struct.pack(f"{order}{offset}", at) + struct.pack(
        f"{order}{count}", len(entries)
    )
    return head + body + packed + struct.pack(f"{order}{offset}", 0) + strip


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (tiff(64, 3), "64-bit floating-point number"),
        (tiff(16, 3), "16-bit floating-point number"),
        (tiff(64, 3, order=">"), "64-bit floating-point number"),
        (tiff(64, 1), "64-bit integer"),
        (tiff(64, 6), "64-bit complex number"),
        (tiff(64, 3, big=True), "64-bit floating-point number"),
        (tiff(8, 1, order=">", big=True), "big-endian BigTIFF"),
        (bmp(4, 4, b"", (8, 2)), "Unsupported BMP compression"),
        (bmp(3, 0, bytes(64), (8, 2)), "Unsupported BMP pixel depth"),
    ],
)
def test_valid_files_that_pillow_cannot_read_are_not_called_damaged(decoder, data, what):
    with pytest.raises(ImageError, match="the file is in order, but") as caught:
        decoder.decode(data, SQUARE)
    assert what in str(caught.value)


def test_a_tiff_whose_pixels_are_missing_is_damaged(decoder):
    with pytest.raises(ImageError, match="damaged"):
        decoder.decode(tiff(64, 3)[:-9], SQUARE)


# High dynamic range, and the part to be shown


def in_hdr(image, transfer):
    """The picture in BT.2020 and PQ or HLG, its white at 203 cd/m²."""
    signal = np.asarray(image, float) / 255
    light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    light = np.maximum(light @ np.linalg.inv(image_hdr.TO_SRGB[9]).T, 0)
    # By searching in what is to be inverted: it is monotonous.
    steps = np.linspace(0, 1, 4096)
    grey = np.repeat(steps[:, None], 3, axis=1)
    curve = (image_hdr.from_pq if transfer == 16 else image_hdr.from_hlg)(grey)[:, 0]
    values = np.interp(light, curve, steps)
    return Image.fromarray((values * 255 + 0.5).astype(np.uint8))


def hdr_avif(image, transfer):
    data = bytearray(file_of(image, "AVIF", quality=95, subsampling="4:4:4"))
    place = data.find(b"nclx")
    data[place + 4 : place + 8] = struct.pack(">HH", 9, transfer)
    return bytes(data)


def hdr_heic(image, transfer):
    coding = {"color_primaries": 9, "transfer_characteristics": transfer}
    return heic_of(image, matrix_coefficients=9, full_range_flag=1, **coding)


def hdr_png(image, transfer):
    data = file_of(image)
    return data[:33] + chunk(b"cICP", bytes([9, transfer, 0, 1])) + data[33:]


@pytest.mark.parametrize("transfer", [16, 18])
@pytest.mark.parametrize("make", [hdr_avif, hdr_heic, hdr_png])
def test_high_dynamic_range_looks_like_its_twin(decoder, hog, make, transfer):
    if make is hdr_avif and not features.check("avif"):
        pytest.skip("no AVIF here")
    image = photo().convert("L").convert("RGB")  # HLG depends on all three colours
    request = Request(input=hog.input, thumbnail=100)
    twin = decoder.decode(file_of(image), request)
    result = decoder.decode(make(in_hdr(image, transfer), transfer), request)
    one, other = hog.encode(np.stack([twin.pixels, result.pixels]))
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.98
    assert np.abs(result.pixels.astype(int) - twin.pixels).mean() < 8


def clapped(image, size, offset):
    """An AVIF of which that part is to be shown; `offset` of centres, in pixels."""
    data = bytearray(file_of(image, "AVIF", subsampling="4:4:4", quality=90))
    place = {
        kind: data.find(kind) - 4 for kind in (b"meta", b"iprp", b"ipco", b"ipma", b"iloc")
    }
    length = {kind: int.from_bytes(data[at : at + 4], "big") for kind, at in place.items()}

    def grow(at, by):
        data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") + by).to_bytes(
            4, "big"
        )

    grow(place[b"meta"], 41)
    grow(place[b"iprp"], 41)
    grow(place[b"ipco"], 40)
    grow(place[b"ipma"], 1)
    grow(place[b"iloc"] + 22, 41)  # where the picture's bytes begin
    many = data[place[b"ipma"] + 18]
    inside, end = place[b"ipco"] + 8, place[b"ipco"] + length[b"ipco"]
    there = 0
    while inside < end:
        inside, there = inside + int.from_bytes(data[inside : inside + 4], "big"), there + 1
    data[place[b"ipma"] + 18] = many + 1
    data.insert(place[b"ipma"] + 19 + many, 0x80 | (there + 1))
    (width, height), (right, down) = size, offset
    numbers = (width, 1, height, 1, 2 * right, 2, 2 * down, 2)
    data[end:end] = struct.pack(">I4sIIIIiIiI", 40, b"clap", *numbers)
    return bytes(data)


@needs_avif
def test_avif_shows_its_clean_aperture(decoder):
    image = Image.new("RGB", (400, 300), "red")
    ImageDraw.Draw(image).rectangle((150, 20, 349, 219), "blue")
    data = clapped(image, (200, 200), (50, -30))
    result = decoder.decode(data, SQUARE)
    assert (result.width, result.height) == (200, 200)
    assert result.pixels[..., 0].max() < 60
    assert Image.open(io.BytesIO(result.thumbnail)).size == (200, 200)
    half = decoder.decode(data, Request(input=Input(size=64), crop=Crop(0, 0, 0.5, 0.5)))
    assert (half.width, half.height) == (100, 100)
    assert half.pixels[..., 0].max() < 60


@needs_avif
@pytest.mark.parametrize(("size", "offset"), [((900, 900), (0, 0)), ((200, 200), (500, 0))])
def test_an_aperture_outside_the_picture_is_ignored(decoder, size, offset):
    data = clapped(Image.new("RGB", (400, 300), "red"), size, offset)
    assert decoder.decode(data, SQUARE).width == 400
