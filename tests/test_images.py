"""Untrusted bytes in; upright RGB pixels, thumbnails and facts, or a refusal, out."""

import io
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, features

from datasette_image_similarity.errors import ImageError, ImageSimilarityError
from datasette_image_similarity.images import (
    LOCAL_FILES,
    UPLOADS,
    Decoder,
    DecoderPool,
    Input,
    Limits,
    Request,
)

PACKAGE_FOLDER = Path(__file__).parent.parent
PHOTOS = PACKAGE_FOLDER.parent / "shared" / "photos"
RED, GREEN, BLUE, YELLOW = (230, 30, 20), (20, 200, 40), (30, 40, 220), (230, 220, 20)
PIXELS = Request(input=Input(size=32))


@pytest.fixture(scope="module")
def decoder():
    with Decoder(LOCAL_FILES) as decoder:
        yield decoder


def file_of(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def one_colour(colour=RED, size=(40, 30), mode="RGB"):
    return Image.new(mode, size, colour)


def photo(size=(64, 48), seed=1):
    """A smooth picture with some detail, the same for the same seed."""
    random_ = np.random.default_rng(seed)
    few = random_.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(few).resize(size, Image.Resampling.BICUBIC)


def image_in(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def assert_colour(colour, expected, tolerance=3):
    difference = np.abs(np.asarray(colour, dtype=int) - np.asarray(expected))
    assert difference.max() <= tolerance, f"{colour} is not {expected}"


def refusal(decoder, data, request=PIXELS):
    with pytest.raises(ImageError) as caught:
        decoder.decode(data, request)
    return str(caught.value)


# What comes out


def test_importing_the_module_loads_neither_pillow_nor_numpy():
    code = (
        "import sys, datasette_image_similarity.images;"
        "print([m for m in ('PIL', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=PACKAGE_FOLDER, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_one_decode_gives_everything_that_was_asked_for(decoder):
    request = Request(input=Input(), thumbnail=320, picture=1600)
    result = decoder.decode(file_of(photo((2000, 1500)), "JPEG"), request)
    assert (result.width, result.height, result.format) == (2000, 1500, "JPEG")
    assert result.pixels.shape == (224, 224, 3)
    assert result.pixels.dtype == np.uint8
    assert result.pixels.flags.writeable
    thumbnail = Image.open(io.BytesIO(result.thumbnail))
    assert (thumbnail.format, thumbnail.size) == ("WEBP", (320, 240))
    picture = Image.open(io.BytesIO(result.picture))
    assert (picture.format, picture.size) == ("JPEG", (1600, 1200))


def test_what_was_not_asked_for_is_none(decoder):
    result = decoder.decode(file_of(photo()), Request())
    assert (result.pixels, result.thumbnail, result.picture) == (None, None, None)
    assert (result.width, result.height) == (64, 48)


def test_small_pictures_are_not_enlarged_in_thumbnails(decoder):
    result = decoder.decode(file_of(photo()), Request(thumbnail=320, picture=1600))
    assert image_in(result.thumbnail).size == (64, 48)
    assert image_in(result.picture).size == (64, 48)


@pytest.mark.parametrize(
    ("saved_as", "name"),
    [
        ("JPEG", "JPEG"),
        ("MPO", "JPEG"),
        ("PNG", "PNG"),
        ("GIF", "GIF"),
        ("WEBP", "WEBP"),
        ("BMP", "BMP"),
        ("DIB", "DIB"),
        ("TIFF", "TIFF"),
        ("PPM", "PPM"),
        ("JPEG2000", "JPEG2000"),
        ("AVIF", "AVIF"),
    ],
)
def test_formats(decoder, saved_as, name):
    if saved_as == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    options = {}
    if saved_as == "MPO":
        options = {"save_all": True, "append_images": [one_colour(BLUE)]}
    result = decoder.decode(file_of(one_colour(), saved_as, **options), PIXELS)
    assert result.format == name
    assert_colour(result.pixels[16, 16], RED, tolerance=8)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_only_the_first_frame_counts(decoder, format):
    frames = {"save_all": True, "append_images": [one_colour(BLUE), one_colour(GREEN)]}
    result = decoder.decode(file_of(one_colour(), format, **frames), PIXELS)
    assert_colour(result.pixels[16, 16], RED, tolerance=6)


def test_draft_decoding_keeps_the_details_the_encoder_needs(decoder):
    """A big JPEG must give what the same picture gives as a PNG."""
    image = photo((4000, 3000)).copy()
    noise = Image.effect_noise((400, 300), 90).convert("RGB").resize((4000, 3000))
    image = Image.blend(image, noise, 0.3)
    request = Request(input=Input(), thumbnail=320)
    jpeg = decoder.decode(file_of(image, "JPEG", quality=95), request)
    png = decoder.decode(file_of(image, compress_level=1), request)
    exact = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR), dtype=int)
    assert np.abs(png.pixels - exact).max() <= 6
    assert np.abs(jpeg.pixels - exact).mean() <= 2
    assert (jpeg.width, jpeg.height) == (4000, 3000)


# Shapes


def three_stripes(size, across):
    """Red, green and blue, side by side or on top of each other."""
    stripes = Image.new("RGB", (3, 1) if across else (1, 3))
    stripes.putdata([RED, GREEN, BLUE])
    return file_of(stripes.resize(size, Image.Resampling.NEAREST))


def test_squash_shows_the_whole_picture(decoder):
    request = Request(input=Input(size=90))
    pixels = decoder.decode(three_stripes((300, 100), across=True), request).pixels
    for column, colour in ((15, RED), (45, GREEN), (75, BLUE)):
        assert_colour(pixels[5, column], colour)
        assert_colour(pixels[85, column], colour)


@pytest.mark.parametrize("size", [(300, 100), (100, 300)])
def test_crop_shows_the_centre(decoder, size):
    request = Request(input=Input(size=80, resize=100, fit="crop"))
    pixels = decoder.decode(three_stripes(size, size[0] > size[1]), request).pixels
    assert_colour(pixels.reshape(-1, 3)[:: 80 * 80 - 1], GREEN)


@pytest.mark.parametrize(("size", "axis"), [((300, 100), 0), ((100, 300), 1)])
def test_pad_shows_the_whole_picture_on_the_imagenet_mean(decoder, size, axis):
    request = Request(input=Input(size=90, fit="pad"))
    pixels = decoder.decode(three_stripes(size, size[0] > size[1]), request).pixels
    pixels = np.moveaxis(pixels, axis, 0)  # rows now run along the bands
    assert_colour(pixels[[0, 28, 61, 89]].reshape(-1, 3), (124, 116, 104), 0)
    for column, colour in ((10, RED), (45, GREEN), (80, BLUE)):
        assert_colour(pixels[45, column], colour)


@pytest.mark.parametrize("size", [(500, 333), (333, 500), (611, 612), (100, 90)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_agrees_with_torchvision(decoder, size, interpolation):
    transforms = pytest.importorskip("torchvision.transforms")
    image = photo(size, seed=3)
    mode = transforms.InterpolationMode(interpolation)
    reference = transforms.Compose(
        [transforms.Resize(256, mode, antialias=True), transforms.CenterCrop(224)]
    )(image)
    request = Request(input=Input(fit="crop", interpolation=interpolation))
    pixels = decoder.decode(file_of(image), request).pixels
    difference = np.abs(pixels.astype(int) - np.asarray(reference))
    assert difference.max() <= 2  # Pillow rounds its weights, once for each shape
    assert difference.mean() < 0.01


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 30_000), (7, 3)])
def test_extreme_shapes(decoder, size, fit):
    request = Request(input=Input(fit=fit), thumbnail=320, picture=1600)
    result = decoder.decode(file_of(one_colour(size=size)), request)
    assert (result.width, result.height) == size
    assert_colour(result.pixels[111, 111], RED)
    assert max(image_in(result.thumbnail).size) == min(320, max(size))
    assert min(image_in(result.thumbnail).size) >= 1


@pytest.mark.parametrize(
    "wrong", [{"fit": "stretch"}, {"interpolation": "best"}, {"size": 300, "fit": "crop"}]
)
def test_inputs_that_cannot_be_are_refused_by_the_parent(wrong):
    with pytest.raises(ValueError, match=r"must be one of|cannot crop"):
        Input(**wrong)


# Colours

HALF_RED = (230, 30, 20, 128)
HALF_RED_ON_WHITE = (242, 142, 137)


def palette_image(transparency=None, size=(40, 30)):
    image = Image.new("P", size, 1)
    image.putpalette([*BLUE, *RED, *GREEN])
    options = {} if transparency is None else {"transparency": transparency}
    return file_of(image, **options)


def tiff(mode, colour, size=(40, 30)):
    return file_of(Image.new(mode, size, colour), "TIFF")


def sixteen_bit(value, mode="I;16", format="PNG", **options):
    return file_of(Image.new(mode, (40, 30), value), format, **options)


def lab_red():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab_image = ImageCms.profileToProfile(one_colour(), srgb, lab, outputMode="LAB")
    lab_image.info.clear()
    return file_of(lab_image, "TIFF")


WHITE = (255, 255, 255)
COLOURS = {
    "RGB": (lambda: file_of(one_colour()), RED),
    "grey": (lambda: file_of(Image.new("L", (40, 30), 90)), (90, 90, 90)),
    "1 bit": (lambda: file_of(Image.new("1", (40, 30), 1)), WHITE),
    "1 bit, black": (lambda: tiff("1", 0), (0, 0, 0)),
    "palette": (palette_image, RED),
    "palette, this colour clear": (lambda: palette_image(1), WHITE),
    "palette, another colour clear": (lambda: palette_image(0), RED),
    "palette, half clear": (lambda: palette_image(b"\xff\x80"), HALF_RED_ON_WHITE),
    "RGBA": (lambda: file_of(one_colour(HALF_RED, mode="RGBA")), HALF_RED_ON_WHITE),
    "RGBA, clear": (lambda: file_of(one_colour((9, 9, 9, 0), mode="RGBA")), WHITE),
    "RGBA as WebP": (
        lambda: file_of(one_colour(HALF_RED, mode="RGBA"), "WEBP", lossless=True),
        HALF_RED_ON_WHITE,
    ),
    "RGBA as TIFF": (lambda: tiff("RGBA", HALF_RED), HALF_RED_ON_WHITE),
    "LA": (lambda: file_of(Image.new("LA", (40, 30), (90, 128))), (172, 172, 172)),
    "PA": (
        lambda: file_of(one_colour(HALF_RED, mode="RGBA").convert("PA"), "TIFF"),
        HALF_RED_ON_WHITE,
    ),
    "RGB, this colour clear": (
        lambda: file_of(one_colour(), transparency=RED),
        WHITE,
    ),
    "grey, this value clear": (
        lambda: file_of(Image.new("L", (40, 30), 90), transparency=90),
        WHITE,
    ),
    "16-bit PNG": (lambda: sixteen_bit(90 * 257), (90, 90, 90)),
    "16-bit PNG, white": (lambda: sixteen_bit(65535), WHITE),
    "16-bit PNG, a little": (lambda: sixteen_bit(17_000), (66, 66, 66)),
    "16-bit PNG of 9 bits": (lambda: sixteen_bit(300), (150, 150, 150)),
    "16-bit PNG, another value clear": (
        lambda: sixteen_bit(90 * 257, transparency=90),
        (90, 90, 90),
    ),
    "16-bit PNG, this value clear": (
        lambda: sixteen_bit(90 * 257, transparency=90 * 257),
        WHITE,
    ),
    "16-bit TIFF": (lambda: sixteen_bit(90 * 257, format="TIFF"), (90, 90, 90)),
    "16-bit TIFF, big-endian": (
        lambda: sixteen_bit(90 * 257, "I;16B", "TIFF"),
        (90, 90, 90),
    ),
    "32-bit TIFF": (lambda: tiff("I", 90 * 257), (90, 90, 90)),
    "16-bit PGM": (lambda: b"P5 2 2 65535\n" + struct.pack(">H", 90 * 257) * 4, (90,) * 3),
    "CMYK TIFF": (lambda: tiff("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
    "CMYK JPEG": (
        lambda: file_of(one_colour((0, 255, 255, 0), mode="CMYK"), "JPEG"),
        (255, 0, 0),
    ),
    "YCbCr TIFF, compressed": (
        lambda: file_of(one_colour().convert("YCbCr"), "TIFF", compression="tiff_lzw"),
        RED,
    ),
    "LAB TIFF": (lab_red, RED),
}


@pytest.mark.parametrize("kind", COLOURS)
def test_colours(decoder, kind):
    make, expected = COLOURS[kind]
    result = decoder.decode(make(), Request(input=Input(size=32), thumbnail=320))
    assert_colour(result.pixels.reshape(-1, 3), expected)
    thumbnail = np.asarray(image_in(result.thumbnail)).reshape(-1, 3)
    assert_colour(thumbnail, expected, tolerance=8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "RGB", "I;16", "CMYK"])
def test_colours_of_pictures_that_are_shrunk_in_strips(decoder, mode):
    image = Image.new("RGB", (4000, 3001), "black")
    image.paste("white", (0, 1500, 4000, 3001))
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    if mode == "I;16":
        image = image.point(lambda value: value * 257)
    data = file_of(image, "TIFF", compression="tiff_lzw")
    result = decoder.decode(data, Request(input=Input(size=32), thumbnail=100))
    for picture in (result.pixels, np.asarray(image_in(result.thumbnail))):
        height = len(picture)
        assert_colour(picture[: height // 2 - 2].reshape(-1, 3), (0, 0, 0), 8)
        assert_colour(picture[height // 2 + 2 :].reshape(-1, 3), WHITE, 8)


@pytest.mark.parametrize("trailing", [0, 5000])
def test_uncompressed_ycbcr_never_comes_out_in_wrong_colours(decoder, trailing):
    data = file_of(one_colour().convert("YCbCr"), "TIFF") + b"\0" * trailing
    if Image.open(io.BytesIO(data)).mode == "YCbCr":
        assert_colour(decoder.decode(data, PIXELS).pixels.reshape(-1, 3), RED)
    else:  # Pillow 12.3 misreads it
        assert "needs a newer Pillow" in refusal(decoder, data)


def test_float_pictures_run_from_their_least_to_their_greatest_value(decoder):
    values = np.tile(np.linspace(-3, 5, 32, dtype=np.float32), (32, 1))
    values[4, 4], values[5, 5], values[6, 6] = np.nan, np.inf, -np.inf
    data = file_of(Image.fromarray(values), "TIFF")
    pixels = decoder.decode(data, PIXELS).pixels
    assert_colour(pixels[20, [0, 16, 31]], [[0] * 3, [132] * 3, [255] * 3], 1)


@pytest.mark.parametrize("value", [7.0, np.nan])
def test_float_pictures_without_any_range_are_black(decoder, value):
    data = file_of(Image.fromarray(np.full((9, 9), value, np.float32)), "TIFF")
    assert not decoder.decode(data, PIXELS).pixels.any()


def test_wide_integers_are_not_clipped(decoder):
    values = np.tile(np.linspace(0, 2_000_000, 32, dtype=np.int32), (32, 1))
    pixels = decoder.decode(file_of(Image.fromarray(values), "TIFF"), PIXELS).pixels
    assert_colour(pixels[20, [0, 16, 31]], [[0] * 3, [132] * 3, [255] * 3], 1)


def icc_profile(space, tags):
    """A minimal ICC version 2 profile."""
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += struct.pack(">4sII", name, offset + len(body), len(value))
        body += value
    connection = b"Lab " if space == b"CMYK" else b"XYZ "
    header = struct.pack(">I4sI4s4s4s", 0, b"test", 0x02400000, b"prtr", space, connection)
    header += b"\0" * 12 + b"acsp" + b"\0" * 28
    header += struct.pack(">iii", 63190, 65536, 54061)  # D50
    header = header.ljust(128, b"\0")
    profile = header + table + body
    return struct.pack(">I", len(profile)) + profile[4:]


def xyz(*values):
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(v * 65536) for v in values))


LINEAR = b"curv\0\0\0\0" + struct.pack(">I", 0)
WHITE_POINT = xyz(0.9642, 1, 0.8249)
SWAPPED = icc_profile(  # sRGB, but its red is green and its green is red
    b"RGB ",
    {
        b"wtpt": WHITE_POINT,
        b"rXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"gXYZ": xyz(0.4361, 0.2225, 0.0139),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        b"rTRC": LINEAR,
        b"gTRC": LINEAR,
        b"bTRC": LINEAR,
    },
)
LINEAR_GREY = icc_profile(b"GRAY", {b"wtpt": WHITE_POINT, b"kTRC": LINEAR})
IDENTITY = bytes(range(256))
ALL_GREY = icc_profile(  # whatever the ink, the paper is mid-grey
    b"CMYK",
    {
        b"wtpt": WHITE_POINT,
        b"A2B0": b"mft1\0\0\0\0\4\3\2\0"
        + struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
        + IDENTITY * 4
        + bytes([128, 128, 128]) * 16
        + IDENTITY * 3,
    },
)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_colour_profiles_are_applied(decoder, format):
    data = file_of(one_colour((255, 0, 0)), format, icc_profile=SWAPPED)
    result = decoder.decode(data, Request(input=Input(), thumbnail=32, picture=32))
    for picture in (result.pixels, image_in(result.thumbnail), image_in(result.picture)):
        assert_colour(np.asarray(picture)[16, 16], (0, 255, 0), tolerance=25)


def test_colour_profiles_of_grey_and_cmyk_pictures_are_applied(decoder):
    grey = file_of(Image.new("L", (40, 30), 55), icc_profile=LINEAR_GREY)
    assert_colour(decoder.decode(grey, PIXELS).pixels[9, 9], (128, 128, 128))
    cmyk = one_colour((0, 255, 255, 0), mode="CMYK")
    for format in ("TIFF", "JPEG"):
        data = file_of(cmyk, format, icc_profile=ALL_GREY)
        assert_colour(decoder.decode(data, PIXELS).pixels[9, 9], (119, 119, 119), 6)


@pytest.mark.parametrize(
    "profile", [b"nonsense", SWAPPED[:200], SWAPPED[:128], ALL_GREY, b"\0" * 3_000_000]
)
def test_colour_profiles_that_are_broken_or_do_not_fit_are_ignored(decoder, profile):
    data = file_of(one_colour(), "JPEG", icc_profile=profile, quality=95)
    assert_colour(decoder.decode(data, PIXELS).pixels[9, 9], RED, tolerance=6)


# Upright


def exif_with(orientation=None, **tags):
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    for name, value in tags.items():
        exif[ExifTags.Base[name]] = value
    return exif


TURNED_BACK = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def four_corners(size=(600, 400)):
    corners = Image.new("RGB", (2, 2))
    corners.putdata([RED, GREEN, BLUE, YELLOW])
    return corners.resize(size, Image.Resampling.NEAREST)


def assert_upright(result):
    assert (result.width, result.height) == (600, 400)
    thumbnail, picture = image_in(result.thumbnail), image_in(result.picture)
    assert thumbnail.size == (150, 100)
    assert picture.size == (300, 200)
    for image in (Image.fromarray(result.pixels), thumbnail, picture):
        width, height = image.size
        corners = [(4, 4), (width - 5, 4), (4, height - 5), (width - 5, height - 5)]
        for corner, colour in zip(corners, (RED, GREEN, BLUE, YELLOW), strict=True):
            assert_colour(image.getpixel(corner), colour, tolerance=20)


@pytest.mark.parametrize("orientation", TURNED_BACK)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_every_orientation_is_applied_once(decoder, format, orientation):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    image = four_corners()
    if TURNED_BACK[orientation] is not None:
        image = image.transpose(TURNED_BACK[orientation])
    data = file_of(image, format, exif=exif_with(orientation))
    request = Request(input=Input(size=100), thumbnail=150, picture=300)
    assert_upright(decoder.decode(data, request))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist_change_nothing(decoder, orientation):
    data = file_of(four_corners(), "JPEG", exif=exif_with(orientation))
    request = Request(input=Input(size=100), thumbnail=150, picture=300)
    assert_upright(decoder.decode(data, request))


@pytest.mark.parametrize("orientation", TURNED_BACK)
def test_heic_is_turned_once(decoder, orientation):
    pillow_heif = pytest.importorskip("pillow_heif")
    image = four_corners()
    if TURNED_BACK[orientation] is not None:
        image = image.transpose(TURNED_BACK[orientation])
    out = io.BytesIO()
    # Writes the orientation as a box of the file, as telephones do.
    exif = exif_with(orientation, Make="Apple", Model="iPhone 15").tobytes()
    pillow_heif.from_pillow(image).save(out, exif=exif, quality=90)
    request = Request(input=Input(size=100), thumbnail=150, picture=300)
    result = decoder.decode(out.getvalue(), request)
    assert_upright(result)
    assert result.format == "HEIC"
    assert result.facts == {"camera": "Apple iPhone 15"}


def test_heic_without_pillow_heif_says_what_to_install(decoder):
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100
        assert refusal(decoder, data) == (
            "HEIC needs pillow-heif: pip install 'datasette-image-similarity[heic]'"
        )
    else:
        pytest.skip("pillow-heif is installed")


# Facts


def exif_of_a_telephone():
    exif = exif_with(Make="Canon", Model="Canon EOS 5D\0")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2021:05:03 14:07:00"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {1: "S", 2: (33.0, 51.0, 24.0), 3: "W", 4: (70.0, 30.0, 0.0)}
    )
    return exif


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_facts(decoder, format):
    data = file_of(photo(), format, exif=exif_of_a_telephone().tobytes())
    assert decoder.decode(data, PIXELS).facts == {
        "taken_at": "2021-05-03T14:07:00",
        "camera": "Canon EOS 5D",
        "latitude": pytest.approx(-33.8566667),
        "longitude": pytest.approx(-70.5),
    }


def test_thumbnails_carry_no_metadata(decoder):
    data = file_of(
        photo((800, 600)), "JPEG", exif=exif_of_a_telephone(), icc_profile=SWAPPED
    )
    result = decoder.decode(data, Request(thumbnail=320, picture=600))
    for made in (result.thumbnail, result.picture):
        image = Image.open(io.BytesIO(made))
        assert not image.getexif()
        assert not {"exif", "icc_profile", "xmp", "comment"} & set(image.info)
        assert b"Canon" not in made


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("NIKON CORPORATION", "NIKON D70", "NIKON D70"),
        ("Apple", "iPhone 15", "Apple iPhone 15"),
        ("Apple", "", "Apple"),
        ("", "C300", "C300"),
        ("Bad\x07", "C300", "C300"),
        ("Møller".encode(), "C300", "Møller C300"),
        ("M\xf8ller".encode("latin-1"), "C300", "Møller C300"),
        ("Canon\0\1\2\3", "C300", "Canon C300"),
        ("\0\0\0", "   ", None),
        ("x" * 5000, "C300", "C300"),
    ],
)
def test_camera(decoder, make, model, camera):
    data = file_of(photo(), "JPEG", exif=exif_with(Make=make, Model=model))
    assert decoder.decode(data, PIXELS).facts.get("camera") == camera


@pytest.mark.parametrize(
    "moment", ["0000:00:00 00:00:00", "2021:13:40 25:61:61", "yesterday", "", "\0" * 19]
)
def test_moments_that_never_were_are_dropped(decoder, moment):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = moment
    assert decoder.decode(file_of(photo(), "JPEG", exif=exif), PIXELS).facts == {}


ZERO_OVER_ZERO = TiffImagePlugin.IFDRational(0, 0)
FIVE_OVER_ZERO = TiffImagePlugin.IFDRational(5, 0)


@pytest.mark.parametrize(
    "gps",
    [
        {1: "N", 2: (33.0, 51.0, ZERO_OVER_ZERO), 3: "E", 4: (70.0, 30.0, 0.0)},
        {1: "N", 2: (91.0, 0.0, 0.0), 3: "E", 4: (70.0, 30.0, 0.0)},
        {1: "N", 2: (33.0, 0.0, 0.0), 3: "E", 4: (181.0, 30.0, 0.0)},
        {1: "N", 2: (33.0, 99.0, 0.0), 3: "E", 4: (70.0, 30.0, 0.0)},
        {1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)},
        {1: "?", 2: (33.0, 0.0, 0.0), 3: "E", 4: (70.0, 30.0, 0.0)},
        {2: (33.0, 0.0, 0.0), 4: (70.0, 30.0, 0.0)},
        {1: "N", 2: (33.0, 0.0, 0.0)},
        {1: "N", 2: (), 3: "E", 4: (70.0, 30.0, 0.0)},
        {1: "E", 2: (33.0,), 3: "N", 4: (70.0, 30.0, 0.0)},
        {1: "N", 2: (33.0, 51.0, FIVE_OVER_ZERO), 3: "E", 4: (70.0,)},
    ],
)
def test_places_that_are_nowhere_are_dropped(decoder, gps):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps)
    assert decoder.decode(file_of(photo(), "JPEG", exif=exif), PIXELS).facts == {}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_block_never_fails_a_picture(decoder, format):
    whole = exif_of_a_telephone().tobytes()
    for seed in range(60):
        broken = bytearray(whole)
        shuffled = random.Random(seed)
        for _ in range(shuffled.randint(1, 30)):
            broken[shuffled.randrange(len(broken))] = shuffled.randrange(256)
        broken = broken[: shuffled.randint(0, len(broken))]
        data = file_of(one_colour(), format, exif=b"Exif\0\0" + bytes(broken))
        assert decoder.decode(data, Request()).width in (40, 30)


# Refusals


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "this looks like SVG"),
        (b"<?xml version='1.0'?>\n<svg/>", "this looks like SVG"),
        (b"<!DOCTYPE html><title>404</title>", "this looks like HTML"),
        (b"%PDF-1.7 ...", "this looks like PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "looks like PostScript"),
        (b'{"error": "not found"}', "this looks like JSON"),
        (b"hello", "this looks like text"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "this looks like a video"),
        (b"\0\0\2" + bytes(99) + b"TRUEVISION-XFILE.\0", "this looks like TGA"),
        (b"\x8a\x07\x00\x01 whatever", "not an image (pictures must be"),
        (b"\x89PNG\r\n\x1a\n", "the PNG file is truncated, damaged"),
        (b"\xff\xd8\xff\xe0", "the JPEG file is truncated, damaged"),
    ],
)
def test_what_is_not_an_image_is_named(decoder, data, message):
    said = refusal(decoder, data)
    assert message in said
    assert "BytesIO" not in said


@pytest.mark.parametrize("format", ["EPS", "PDF", "TGA", "ICO", "PCX", "SGI", "XBM"])
def test_formats_outside_the_list_are_refused(decoder, format):
    image = Image.new("1", (16, 16)) if format == "XBM" else one_colour(size=(16, 16))
    refusal(decoder, file_of(image, format))


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"]
)
def test_truncated_files_are_refused(decoder, format):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    data = file_of(photo((300, 200)), format)
    for share in (0.2, 0.5, 0.8):
        said = refusal(decoder, data[: int(len(data) * share)])
        assert "damaged" in said


def test_files_above_the_limit_are_refused_before_anything_starts():
    with Decoder(Limits(max_bytes=20_000_000, max_pixels=10, seconds=1)) as decoder:
        said = refusal(decoder, b"x" * 30_050_000)
        assert said == "the file has 30.1 MB, more than the limit of 20 MB"
        assert decoder._process is None


def png_bomb(width, height):
    """A PNG of nothing but zeros, its 1-bit rows compressed a thousandfold."""

    def chunk(kind, body):
        checked = kind + body
        return (
            struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))
        )

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * (width // 8 + 1)) for _ in range(height))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", rows + packer.flush())
        + chunk(b"IEND", b"")
    )


def peak_memory(process):
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def test_a_bomb_is_refused_by_its_header():
    data = png_bomb(50_000, 50_000)
    assert len(data) < 1_000_000
    with Decoder(LOCAL_FILES) as fresh:
        fresh.decode(file_of(photo()), PIXELS)
        started = time.perf_counter()
        said = refusal(fresh, data)
        assert time.perf_counter() - started < 2
        assert said == "the picture has 2,500 megapixels, more than the limit of 200"
        if sys.platform == "linux":
            assert peak_memory(fresh._process) < 100e6


@pytest.mark.parametrize("format", ["JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_every_format_is_held_to_the_pixel_limit(format):
    with Decoder(Limits(max_bytes=10**7, max_pixels=1000, seconds=30)) as decoder:
        data = file_of(one_colour(size=(40, 26)), format)
        assert "megapixels, more than the limit" in refusal(decoder, data)
        decoder.decode(file_of(one_colour(size=(40, 25)), format), PIXELS)


# The child process


def test_a_picture_that_takes_too_long_is_refused_and_the_next_one_works():
    data = png_bomb(14_000, 14_000)
    small = file_of(one_colour())
    with Decoder(Limits(max_bytes=10**7, max_pixels=200_000_000, seconds=0.15)) as decoder:
        decoder.decode(small, PIXELS)
        first = decoder._process
        assert refusal(decoder, data) == "decoding the picture took longer than 0.15 s"
        assert first.returncode is not None
        assert_colour(decoder.decode(small, PIXELS).pixels[0, 0], RED)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space")
def test_a_picture_that_needs_too_much_memory_is_refused_and_the_child_lives_on():
    import resource

    with Decoder(LOCAL_FILES) as decoder:
        decoder.decode(file_of(photo()), PIXELS)
        child = decoder._process.pid
        resource.prlimit(child, resource.RLIMIT_AS, (200 << 20, 200 << 20))
        said = refusal(decoder, png_bomb(14_000, 14_000))
        assert said == "decoding needs more than 2,136.9 MB of memory"
        decoder.decode(file_of(photo()), PIXELS)
        assert decoder._process.pid == child


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space")
def test_the_child_limits_its_memory():
    import resource

    with Decoder(UPLOADS) as decoder:
        decoder.decode(file_of(photo()), PIXELS)
        child = decoder._process.pid
        limit = (512 << 20) + 8 * UPLOADS.max_pixels
        assert resource.prlimit(child, resource.RLIMIT_AS) == (limit, limit)
        assert resource.prlimit(child, resource.RLIMIT_CORE) == (0, 0)


def test_the_next_picture_works_after_the_child_died_in_between():
    with Decoder(LOCAL_FILES) as decoder:
        decoder.decode(file_of(photo()), PIXELS)
        decoder._process.kill()
        decoder._process.wait()
        said = refusal(decoder, file_of(photo()))
        assert said.startswith("decoding the picture ended in a crash")
        assert decoder.decode(file_of(photo()), PIXELS).width == 64


def test_an_interrupted_answer_is_not_taken_for_that_of_the_next_picture(monkeypatch):
    def interrupted(stream):
        raise KeyboardInterrupt

    with Decoder(LOCAL_FILES) as decoder:
        decoder.decode(file_of(one_colour(RED)), PIXELS)
        with monkeypatch.context() as patch:
            patch.setattr("datasette_image_similarity.images.receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                decoder.decode(file_of(one_colour(GREEN)), PIXELS)
        assert_colour(decoder.decode(file_of(one_colour(BLUE)), PIXELS).pixels[0, 0], BLUE)


def test_close_leaves_no_process_behind():
    decoder = Decoder(LOCAL_FILES)
    decoder.close()
    with Decoder(LOCAL_FILES) as decoder:
        decoder.decode(file_of(photo()), PIXELS)
        process = decoder._process
    assert process.returncode is not None
    with pytest.raises(ImageSimilarityError, match="closed"):
        decoder.decode(file_of(photo()), PIXELS)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_does_not_reach_the_child():
    with Decoder(LOCAL_FILES) as decoder:
        decoder.decode(file_of(photo()), PIXELS)
        os.kill(decoder._process.pid, signal.SIGINT)
        process = decoder._process
        assert decoder.decode(file_of(photo()), PIXELS).width == 64
        assert decoder._process is process


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_child_ends_when_its_parent_is_killed():
    code = (
        "import sys, time; from datasette_image_similarity.images import *\n"
        "d = Decoder(LOCAL_FILES); d.decode(sys.stdin.buffer.read(), Request())\n"
        "print(d._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=PACKAGE_FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        parent.stdin.write(file_of(photo()))
        parent.stdin.close()
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def test_the_current_folder_is_not_where_the_child_finds_its_modules(tmp_path, monkeypatch):
    for name in ("PIL", "json", "struct", "datasette_image_similarity"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with Decoder(LOCAL_FILES) as decoder:
        assert decoder.decode(file_of(photo()), PIXELS).width == 64


def test_a_child_that_cannot_start_is_not_blamed_on_the_picture(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with Decoder(LOCAL_FILES) as decoder:
        with pytest.raises(ImageSimilarityError, match="does not start") as caught:
            decoder.decode(file_of(photo()), PIXELS)
        assert not isinstance(caught.value, ImageError)


# Several threads


def test_many_threads_share_few_decoders():
    colours = [(index * 7 % 256, index * 31 % 256, index * 57 % 256) for index in range(80)]
    files = [file_of(one_colour(colour)) for colour in colours]
    with DecoderPool(LOCAL_FILES, workers=2) as pool, ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda data: pool.decode(data, PIXELS), files))
        assert len({id(decoder) for decoder in pool._decoders}) == 2
    for colour, result in zip(colours, results, strict=True):
        assert_colour(result.pixels[0, 0], colour, tolerance=0)


def test_a_refusal_gives_the_decoder_back_to_the_pool():
    with DecoderPool(LOCAL_FILES, workers=1) as pool:
        for _ in range(3):
            assert refusal(pool, b"hello").startswith("not an image")
        assert pool.decode(file_of(photo()), PIXELS).width == 64


def test_closing_a_pool_ends_what_is_running_and_refuses_the_rest():
    pool = DecoderPool(LOCAL_FILES, workers=2)
    slow = png_bomb(14_000, 14_000)
    outcomes = []

    def work():
        try:
            outcomes.append(pool.decode(slow, PIXELS))
        except ImageSimilarityError as error:
            outcomes.append(error)

    pool.decode(file_of(photo()), PIXELS)
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    pool.close()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert len(outcomes) == 6
    assert not any(isinstance(outcome, ImageError) for outcome in outcomes)
    with pytest.raises(ImageSimilarityError, match="closed"):
        pool.decode(slow, PIXELS)
    assert all(decoder._process is None for decoder in pool._decoders)


# Whatever comes


def mutated(data, seed):
    """The file with bytes changed, taken out, doubled or cut off."""
    chance = random.Random(seed)
    data = bytearray(data)
    for _ in range(chance.choice((1, 3, 20))):
        start = chance.randrange(len(data))
        match chance.randrange(5):
            case 0:
                data[start] = chance.randrange(256)
            case 1:
                data[start : start + 4] = chance.choice((b"\xff" * 4, b"\0" * 4))
            case 2:
                del data[start : start + chance.randrange(20)]
            case 3:
                data[start:start] = data[start : start + 50]
            case 4:
                start = chance.randrange(min(len(data), 200))
                data[start] ^= 1 << chance.randrange(8)
    return bytes(data)


def test_mutated_files_give_a_picture_or_a_refusal():
    image = photo((90, 70))
    files = [
        file_of(image, format, **options)
        for format, options in (
            ("JPEG", {"exif": exif_of_a_telephone(), "icc_profile": SWAPPED}),
            ("JPEG", {"progressive": True}),
            ("PNG", {"icc_profile": SWAPPED}),
            ("GIF", {}),
            ("WEBP", {"exif": exif_of_a_telephone()}),
            ("TIFF", {"exif": exif_of_a_telephone()}),
            ("TIFF", {"compression": "tiff_deflate"}),
            ("BMP", {}),
            ("PPM", {}),
            ("JPEG2000", {}),
            *([("AVIF", {})] if features.check("avif") else []),
        )
    ]
    request = Request(input=Input(size=32), thumbnail=64)
    refusals = []
    with Decoder(Limits(max_bytes=10**6, max_pixels=10**6, seconds=5)) as decoder:
        for seed in range(330):
            data = mutated(files[seed % len(files)], seed)
            try:
                result = decoder.decode(data, request)
                assert result.pixels.shape == (32, 32, 3)
            except ImageError as error:
                refusals.append(str(error))
    assert 50 < len(refusals) < 280
    assert not [refusal for refusal in refusals if "0x" in refusal]


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photos here")
def test_real_photos(decoder):
    sizes = []
    for path in sorted(PHOTOS.glob("*/*/*.jpg"))[::100]:
        result = decoder.decode(path.read_bytes(), Request(Input(), thumbnail=320))
        exact = Image.open(path).convert("RGB")
        assert (result.width, result.height) == exact.size
        exact = np.asarray(exact.resize((224, 224), Image.Resampling.BILINEAR), int)
        assert np.abs(result.pixels - exact).mean() < 3
        sizes.append(len(result.thumbnail))
    assert 6_000 < np.mean(sizes) < 16_000
