"""The child process behind `images.Decoder`: decodes pictures until stdin closes.

Reads messages (a request and the bytes of one file) from stdin and answers each on
stdout, either with what was asked for or with {"refused": "why"}. One picture goes
through `decode`: opened → sized by its header → decoded small → in sRGB → upright →
pixels, thumbnail and picture. Only Pillow is needed here, so starting is quick.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import warnings
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from typing import IO, NamedTuple

import PIL
from PIL import (
    AvifImagePlugin,
    ExifTags,
    Image,
    ImageCms,
    ImageOps,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from .errors import ImageError
from .exif import SIDEWAYS, exif_of, facts_of, turning
from .extra_formats import is_raw
from .extra_formats import opened as opened_extra
from .flat import detail
from .formats import EXTRAS, IN_WORDS, load_pillow
from .image_boxes import clean_aperture, properties
from .image_frames import seek_what_shows
from .image_grounds import on_ground
from .image_hdr import hdr_coding, tone_mapped
from .image_rescue import (
    ONLY_THE_END,
    lacks_end,
    note_on_missing_blocks,
    rescued,
    start_of_picture,
)
from .images import Crop, Input, Limits, Request, in_millions, receive, send

FORMATS = load_pillow()
PILLOW = int(PIL.__version__.split(".")[0])
FRAME_SIDE = 64  # pixels at which frames are compared
IMAGENET_MEAN = (124, 116, 104)  # close to zero once an encoder has normalised it
# Looks the same as method 2 (SSIM .966 beside .967) in 55 % of its time, and a fifth of
# method 4's, for 22 % more bytes: about 14 KB for 320 × 240 pixels.
THUMBNAIL = {"format": "WEBP", "quality": 80, "method": 0}
# As a WebP a large view would have 30 % fewer bytes, but take twelve times as long.
PICTURE = {"format": "JPEG", "quality": 80}
STRIP_PIXELS = 4_000_000


def serve(settings: dict) -> None:
    """Answer requests until stdin is closed, by choice or by the parent's end."""
    limits = Limits(**settings)
    requests, answers = private_pipes()
    limit_pillow(limits)
    limit_memory(limits)
    send(answers, {"ready": True}, [])
    while True:
        try:
            header, (data,) = receive(requests)
        except EOFError:
            return
        set_alarm(limits.seconds + 5)
        send(answers, *answer(data, header, limits))
        set_alarm(0)


def private_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """stdin and stdout for us alone: libraries that print must not garble answers."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    return requests, answers


def limit_pillow(limits: Limits) -> None:
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    # Some programs keep whole workflows in text chunks; one megabyte is too strict.
    PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20
    # The pool has a process for every core; threads only take address space.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def limit_memory(limits: Limits) -> None:
    """Bound the address space where the system can; never dump a core."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        _, allowed = resource.getrlimit(resource.RLIMIT_AS)
        wanted = limits.max_memory
        if allowed == resource.RLIM_INFINITY or wanted < allowed:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, wanted))


def set_alarm(seconds: float) -> None:
    """End this process then. The parent does so earlier, unless it was killed."""
    if hasattr(signal, "alarm"):
        signal.alarm(math.ceil(seconds))


def answer(data: bytes, header: dict, limits: Limits) -> tuple[dict, list[bytes]]:
    """What to send back: a description and its parts, or a refusal."""
    try:
        wanted, crop = header.pop("input"), header.pop("crop")
        request = Request(
            input=Input(**wanted) if wanted else None,
            crop=Crop(*crop) if crop else None,
            **header,
        )
        facts, parts = decode(data, request)
    except ImageError as error:
        return {"refused": str(error)}, []
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        pixels = int(re.search(r"\d+", str(error))[0])
        limit = in_millions(limits.max_pixels)
        return {
            "refused": f"the picture has {in_millions(pixels)} megapixels, "
            f"more than the limit of {limit}"
        }, []
    except MemoryError:
        limit = in_millions(limits.max_memory)
        return {"refused": f"decoding needs more than {limit} MB of memory"}, []
    except Exception:  # Pillow raises nearly every kind of exception on bad files
        return {"refused": "the file is truncated or damaged"}, []
    return {**facts, "parts": list(parts)}, list(parts.values())


# What `answer` words itself
PASSED_ON = (
    ImageError,
    MemoryError,
    Image.DecompressionBombWarning,
    Image.DecompressionBombError,
)


def decode(data: bytes, request: Request) -> tuple[dict, dict[str, bytes]]:
    """The description of a picture, and by name what the request wants made of it."""
    data, note = without_junk(data)
    try:
        source = loaded(opened(data), data, request)
    except PASSED_ON:
        raise
    except Exception as error:  # Pillow raises nearly every kind on bad files
        refuse_unsupported(data, error)
        try:
            picture, note = rescued(data, opened)
            source = loaded(picture, data, request)
        except PASSED_ON:
            raise
        except Exception:
            raise ImageError(what_is_wrong(data, error)) from None
    if note is None and source.form == "JPEG":
        note = note_on_missing_blocks(data, source.picture)
    facts, parts = made(source, request)
    if note is None and lacks_end(data):
        note = ONLY_THE_END
    return {**facts, "note": note, "steps": steps_of(source.picture)}, parts


class Source(NamedTuple):
    """A picture with its pixels, as stored: not upright, a JPEG scaled down already."""

    picture: Image.Image
    size: tuple[int, int]  # of the full picture
    form: str
    profile: bytes | None
    coding: tuple[int, int] | None  # of high dynamic range
    turn: Image.Transpose | None
    facts: dict[str, str | float]


def loaded(picture: Image.Image, data: bytes, request: Request) -> Source:
    """The picture decoded, by the frame that stands for it, in modes of eight bits or F."""
    refuse_misread(picture)
    form = format_name(picture)
    profile = picture.info.get("icc_profile")
    size = picture.size
    boxes = properties(data) if form == "AVIF" else {}
    coding = hdr_coding(picture, data, boxes)
    if form in ("JPEG", "RAW"):
        # Decodes at 1/2, 1/4 or 1/8, but leaves twice of what is needed.
        crop = request.crop and as_stored(request.crop, turning(exif_of(picture)))
        wanted = wanted_size(cropped_size(size, crop), request)
        shares = crop[2:] if crop else (1, 1)
        picture.draft(None, [int(2 * w / s) for w, s in zip(wanted, shares, strict=True)])
    had_16_bits = ";16" in str(getattr(picture, "tile", ""))
    seek_what_shows(picture, shown_detail)
    # After loading: PNG may have EXIF at its end, TIFF is turned upright by Pillow.
    turn, facts = turning(exif_of(picture)), facts_of(picture)
    picture = stretched(picture) if had_16_bits else in_eight_bits(picture)
    if aperture := clean_aperture(boxes, size):
        picture = picture.crop(aperture)
        size = picture.size
    return Source(picture, size, form, profile, coding, turn, facts)


def made(source: Source, request: Request) -> tuple[dict, dict[str, bytes]]:
    """What the request wants made of a loaded picture: see `decode`."""
    picture, size, form, profile, coding, turn, facts = source
    if request.crop:
        crop = as_stored(request.crop, turn)
        size = cropped_size(size, crop)
        picture = picture.crop(box_of(crop, picture.size))
    small = in_srgb(opaque(shrunk(picture, wanted_size(size, request))), profile, coding)
    if turn is not None:
        small = small.transpose(turn)
    if turn in SIDEWAYS:
        size = size[::-1]
    small.info = {}  # or else Pillow would write the colour profile into thumbnails
    parts = {}
    if request.input:
        parts["pixels"] = fitted(small, size, request.input).tobytes()
    if request.thumbnail:
        parts["thumbnail"] = saved(small, size, request.thumbnail, THUMBNAIL)
    if request.picture:
        parts["picture"] = saved(small, size, request.picture, PICTURE)
    width, height = size
    return {"width": width, "height": height, "format": form, "facts": facts}, parts


def shown_detail(picture: Image.Image) -> float:
    """How much a frame shows, in levels of 255."""
    import numpy as np

    side = FRAME_SIDE
    small = in_srgb(opaque(shrunk(in_eight_bits(picture), (side, side))), None, None)
    return detail(np.asarray(small.resize((side, side), Image.Resampling.BOX)))


# Opening


BLANK = b"\0\t\r\n \xef\xbb\xbf\xff\xfe"  # also byte order marks


def without_junk(data: bytes) -> tuple[bytes, str | None]:
    """The file from where its picture begins, and a note if that is not the beginning.

    What is text in front is another program's file, and refused.
    """
    junk = start_of_picture(data) if kind_of(data) is None else 0
    if not junk:
        return data, None
    if data[:junk].strip(BLANK) and kind_of_text(data[:junk]) is not None:
        raise ImageError("not an image: there is text in front of a picture")
    return data[junk:], f"skipped {junk} bytes in front of the picture"


def opened(data: bytes) -> Image.Image:
    """The picture with its header read and nothing decoded."""
    kind = kind_of(data)
    if kind in EXTRAS:
        return opened_extra(kind, data)
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if kind in OURS:
            raise
        reason = f"not an image: this looks like {kind}" if kind else "not an image"
        raise ImageError(f"{reason} (pictures must be {IN_WORDS})") from None


def refuse_misread(picture: Image.Image) -> None:
    """Raises ImageError for what this Pillow would decode to something else.

    Pillow 12.3 takes three bytes of uncompressed YCbCr for four of RGBX, and notices
    only if the file ends too early; of BMPs in RLE4 it loses every odd pixel. Pillow 13
    reads both.
    """
    if picture.format in ("BMP", "DIB") and PILLOW < 13:
        packed = [tile for tile in picture.tile if tile[0] == "bmp_rle" and tile[3][1]]
        if packed:
            raise ImageError(
                "a BMP in RLE4 needs Pillow 13 (for which Python 3.11 is needed): "
                "pip install -U pillow"
            )
    if picture.format != "TIFF" or picture.info.get("compression") != "raw":
        return
    colour_space = picture.tag_v2.get(ExifTags.Base.PhotometricInterpretation)
    if colour_space == 6 and picture.mode != "YCbCr":
        raise ImageError(
            "uncompressed YCbCr TIFF needs a newer Pillow: pip install -U pillow"
        )


def refuse_unsupported(data: bytes, error: Exception) -> None:
    """Raises ImageError for a file that is in order, but of a kind that Pillow lacks."""
    what = None
    unknown = isinstance(error, UnidentifiedImageError) or not isinstance(error, OSError)
    if kind_of(data) == "TIFF" and unknown:
        what = kind_of_tiff(data)
    elif re.match(r"(?i)unsupported|unknown", str(error)):
        what = str(error)
    if what:
        raise ImageError(f"the file is in order, but Pillow cannot read its kind: {what}")


def kind_of_tiff(data: bytes) -> str | None:
    """What its pixels are, if they are all there and Pillow has no mode for them."""
    if data.startswith(b"MM\0+"):
        return "big-endian BigTIFF"
    with suppress(Exception):
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2:3] == b"+" else 8])
        file = BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        starts, sizes = (tags.get(strips) or tags[tiles] for strips, tiles in PLACES)
        if max(map(sum, zip(starts, sizes, strict=True))) > len(data):
            return None
        bits = tags.get(ExifTags.Base.BitsPerSample, (1,))
        form = tags.get(ExifTags.Base.SampleFormat, (1,))[0]
        sample = {2: "signed integer", 3: "floating-point number", 6: "complex number"}
        return f"{len(bits)} × {bits[0]}-bit {sample.get(form, 'integer')} a pixel"
    return None


# Tags: where strips or tiles begin, and how long they are
PLACES = ((273, 324), (279, 325))


def what_is_wrong(data: bytes, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        kind = kind_of(data)
        words = EXTRAS[kind].words if kind in EXTRAS else kind
        return f"the {words} file is truncated, damaged or of a rare kind"
    return "the file is truncated or damaged"


def format_name(picture: Image.Image) -> str:
    if picture.format == "MPO":
        return "JPEG"
    if picture.format == "RAW":
        return "RAW"
    if (picture.get_format_mimetype() or "").startswith("image/heic"):
        return "HEIC"
    return picture.format


def steps_of(picture: Image.Image) -> list[int] | None:
    """What a JPEG's 64 frequencies of brightness were rounded to multiples of."""
    tables = getattr(picture, "quantization", None)
    return list(tables[0]) if tables else None


SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"BM": "BMP",
    b"\0\0\0\x0cJXL ": "JXL",
    b"\xff\x0a": "JXL",
    b"8BPS": "Photoshop",
    b"\0\0\1\0": "an icon (ICO)",
    b"\0\0\2\0\1\0": "a cursor (CUR)",  # a TGA may begin with its first four
    b"icns": "an icon (ICNS)",
    b"ID3": "sound",
    b"fLaC": "sound",
    b"\xd0\xcf\x11\xe0": "an Office document",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"SQLite format 3\0": "an SQLite database",
    b"\x1aE\xdf\xa3": "a video",
}
OURS = {"JPEG", "PNG", "GIF", "TIFF", "JPEG 2000", "BMP", "WebP", "AVIF"}


def kind_of(data: bytes) -> str | None:
    """What the file seems to be: a format in `EXTRAS`, or words for a refusal."""
    if is_raw(data):
        return "RAW"
    for signature, kind in SIGNATURES.items():
        if data.startswith(signature):
            return kind
    if data.startswith(b"RIFF"):
        return "WebP" if data[8:12] == b"WEBP" else "sound or video"
    if data[4:8] == b"ftyp":
        return kind_of_box(data[8:64])
    if data.endswith(b"TRUEVISION-XFILE.\0"):
        return "TGA"
    return kind_of_text(data[:2000])


def kind_of_box(brands: bytes) -> str:
    """Of the ISO base media family: the first brand names it, the others help."""
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    if brands[:4] in (b"mif1", b"msf1") or brands[:3] in (b"hei", b"hev"):
        return "HEIC"
    return "a video"


def kind_of_text(start: bytes) -> str | None:
    text = start.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n").lower()
    for tag, kind in (("<svg", "SVG"), ("<!doctype html", "HTML"), ("<html", "HTML")):
        if tag in text:
            return kind
    if text.startswith("<"):
        return "XML or HTML"
    if text.startswith(("{", "[")):
        return "JSON"
    if "\ufffd" not in text[:-1] and not re.search(r"[\0-\x08\x0e-\x1f]", text):
        return "text"
    return None


# Crops


def cropped_size(size: tuple[int, int], crop: Crop | None) -> tuple[int, int]:
    if crop is None:
        return size
    return max(1, round(size[0] * crop.width)), max(1, round(size[1] * crop.height))


def box_of(crop: Crop, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, upper, right, lower in pixels: at least one, and none is cut in two."""
    (x, y, width, height), (across, down) = crop, size
    left = min(across - 1, math.floor(x * across + 1e-6))
    upper = min(down - 1, math.floor(y * down + 1e-6))
    right = math.ceil((x + width) * across - 1e-6)
    lower = math.ceil((y + height) * down - 1e-6)
    return (
        left,
        upper,
        max(left + 1, min(across, right)),
        max(upper + 1, min(down, lower)),
    )


def as_stored(crop: Crop, turn: Image.Transpose | None) -> Crop:
    """A crop of the upright picture as one of the picture before it is turned."""
    x, y, width, height = crop
    right, below = 1 - x - width, 1 - y - height
    places = {
        Image.Transpose.FLIP_LEFT_RIGHT: (right, y),
        Image.Transpose.ROTATE_180: (right, below),
        Image.Transpose.FLIP_TOP_BOTTOM: (x, below),
        Image.Transpose.TRANSPOSE: (y, x),
        Image.Transpose.ROTATE_270: (y, right),
        Image.Transpose.TRANSVERSE: (below, right),
        Image.Transpose.ROTATE_90: (below, x),
    }
    sides = (height, width) if turn in SIDEWAYS else (width, height)
    return Crop(*places.get(turn, (x, y)), *sides)


# Making it small, opaque and sRGB


def wanted_size(size: tuple[int, int], request: Request) -> tuple[int, int]:
    """The smallest (width, height) of the whole picture that serves the request."""
    scales = [
        min(1, side / max(size)) for side in (request.thumbnail, request.picture) if side
    ]
    wanted = request.input
    if wanted and wanted.fit == "crop":
        scales.append(wanted.resize / min(size))
    if wanted and wanted.fit == "pad":
        scales.append(wanted.size / max(size))
    least = wanted.size if wanted and wanted.fit == "squash" else 1
    scale = max(scales, default=0)
    width, height = (max(least, math.ceil(side * scale)) for side in size)
    return width, height


def shrunk(picture: Image.Image, wanted: tuple[int, int]) -> Image.Image:
    """The picture made small, by whole factors, but at least three times `wanted`.

    Three times leaves a difference to resizing in one step that cannot be seen.
    Works in strips, so that a big picture never is in memory twice.
    """
    width, height = picture.size
    factors = (max(1, width // (3 * wanted[0])), max(1, height // (3 * wanted[1])))
    if factors == (1, 1):
        return in_few_modes(picture)
    rows = factors[1] * max(1, STRIP_PIXELS // (width * factors[1]))
    small = None
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height)))
        strip = in_few_modes(strip).reduce(factors)
        if small is None:
            full = (math.ceil(width / factors[0]), math.ceil(height / factors[1]))
            small = Image.new(strip.mode, full)
        small.paste(strip, (0, top // factors[1]))
    return small


def in_few_modes(picture: Image.Image) -> Image.Image:
    """As L, RGB, CMYK, LAB or F; as LA or RGBA where something is transparent."""
    if picture.has_transparency_data:
        grey = picture.mode in ("1", "L", "LA", "La")
        return picture.convert("LA" if grey else "RGBA")
    if picture.mode in ("L", "RGB", "CMYK", "LAB", "F"):
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")


def opaque(picture: Image.Image) -> Image.Image:
    return on_ground(picture) if picture.mode in ("LA", "RGBA") else picture


def in_srgb(
    picture: Image.Image, profile: bytes | None, coding: tuple[int, int] | None
) -> Image.Image:
    """An opaque picture as RGB; a profile that is broken or does not fit is ignored."""
    if coding:
        return tone_mapped(picture.convert("RGB"), coding)
    if picture.mode == "F":
        picture = from_least_to_greatest(picture)
    if picture.mode == "LAB" and not profile:
        profile = LAB
    if profile:
        with suppress(Exception):
            mode, transform = transform_to_srgb(profile)
            if mode == "RGB" and picture.mode == "L":
                picture = picture.convert("RGB")
            if mode == picture.mode and transform:
                return transform.apply(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}


@lru_cache(maxsize=4)  # pictures of one camera share a profile
def transform_to_srgb(
    profile: bytes,
) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a profile is for, and how to get to sRGB: None if it is that."""
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    mode = MODES[source.profile.xcolor_space.strip()]
    if (source.profile.profile_description or "").startswith("sRGB"):
        return mode, None
    return mode, ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def in_eight_bits(picture: Image.Image) -> Image.Image:
    """Integers of 16 or 32 bits as L, or as LA if one value is transparent.

    The whole range is shown where it is used. Cameras and microscopes write 10, 12 or 14
    bits into 16: less than a quarter of the range is taken for so many bits. Wider or
    negative numbers run from the least to the greatest.
    """
    if not picture.mode.startswith("I"):
        return picture
    import numpy as np  # takes longer than most pictures

    alpha = None
    if picture.has_transparency_data:
        seen = np.asarray(picture) != picture.info.pop("transparency")
        alpha = Image.fromarray(seen.astype(np.uint8) * 255)
    tags = picture.tag_v2 if picture.format == "TIFF" else {}
    # Pillow does not turn it round where there are 16 bits.
    zero_is_white = tags.get(ExifTags.Base.PhotometricInterpretation) == 0
    unsigned = bool(tags) and tags.get(ExifTags.Base.SampleFormat, (1,))[0] == 1
    if picture.mode != "I;16":
        picture = picture.convert("I")
    least, greatest = picture.getextrema()
    if least < 0 and unsigned:  # 32 bits, of which Pillow takes the first for a sign
        halves = np.asarray(picture).view(np.uint32) // 2
        picture = Image.fromarray(halves.astype(np.int32))
        least, greatest = picture.getextrema()
    low, high = 0, 65535
    if least < 0 or greatest > high:
        low, high = least, greatest
    elif 0 < greatest < 2**14:
        high = full_range(greatest)
    scale = 255 / ((high - low) or 1)
    grey = picture.convert("I").point(lambda value: value * scale + (0.5 - low * scale))
    grey = grey.convert("L")
    if zero_is_white:
        grey = ImageOps.invert(grey)
    if alpha:
        grey.putalpha(alpha)
    return grey


def stretched(picture: Image.Image) -> Image.Image:
    """The same for what Pillow has made eight of sixteen bits of already: few are left."""
    if picture.mode not in ("LA", "RGB", "RGBA"):
        return in_eight_bits(picture)
    colours = picture.mode.rstrip("A")
    greatest = max(picture.getchannel(band).getextrema()[1] for band in colours)
    if not 0 < greatest < 2**6:
        return picture
    table = [min(255, round(v * 255 / full_range(greatest))) for v in range(256)]
    alpha = list(range(256)) * (picture.mode[-1] == "A")
    return picture.point(table * len(colours) + alpha)


def full_range(greatest: int) -> int:
    """The greatest number of so many bits as that one needs."""
    return 2 ** greatest.bit_length() - 1


def from_least_to_greatest(picture: Image.Image) -> Image.Image:
    """F as L; what is no finite number is black."""
    import numpy as np

    values = np.asarray(picture, dtype=np.float64)
    finite = np.isfinite(values)
    low, high = 0.0, 0.0
    if finite.any():
        low, high = values[finite].min(), values[finite].max()
    values = np.where(finite, values, low)
    values = (values - low) * (255 / ((high - low) or 1))
    return Image.fromarray((values + 0.5).astype(np.uint8))


# Shapes


def fitted(picture: Image.Image, size: tuple[int, int], wanted: Input) -> Image.Image:
    """The square that an encoder sees; `size` is that of the full picture."""
    side = wanted.size
    resampling = Image.Resampling[wanted.interpolation.upper()]
    if wanted.fit == "squash":
        return picture.resize((side, side), resampling)
    if wanted.fit == "crop":
        box = centre_box(size, picture.size, wanted)
        return picture.resize((side, side), resampling, box=box)
    inner = scaled(size, side / max(size))
    ground = Image.new("RGB", (side, side), IMAGENET_MEAN)
    corner = ((side - inner[0]) // 2, (side - inner[1]) // 2)
    ground.paste(picture.resize(inner, resampling), corner)
    return ground


def centre_box(
    full: tuple[int, int], size: tuple[int, int], wanted: Input
) -> tuple[float, float, float, float]:
    """Where in a picture of this size torchvision's Resize and CenterCrop would cut.

    Taking the box out first is the same, and a 1 × 5000 picture stays small.
    """
    shorter = min(full)
    resized = [int(wanted.resize * side / shorter) for side in full]
    starts = [round((side - wanted.size) / 2) for side in resized]
    ratios = [have / side for have, side in zip(size, resized, strict=True)]
    left, top = (start * ratio for start, ratio in zip(starts, ratios, strict=True))
    return (
        left,
        top,
        min(size[0], left + wanted.size * ratios[0]),
        min(size[1], top + wanted.size * ratios[1]),
    )


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def saved(
    picture: Image.Image, size: tuple[int, int], longest: int, options: dict
) -> bytes:
    """A file whose longer side is that long, or as long as in the full picture."""
    target = scaled(size, min(1, longest / max(size)))
    out = BytesIO()
    picture.resize(target, Image.Resampling.BICUBIC).save(out, **options)
    return out.getvalue()
