"""Formats that Pillow needs help with: HEIC, JPEG XL, and the RAW files of cameras.

Part of the decoder's child process (image_worker.py). The packages that read them are
extras, imported with the first picture of their kind.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO

from PIL import Image
from PIL.ExifTags import IFD, Base

from .errors import ImageError
from .exif import EXIF_BYTES, exif_of
from .formats import EXTRAS

RAW_SIGNATURES = (
    *(b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FOVb", b"\0MRM"),
    b"II\x1a\0\0\0HEAPCCDR",
)
RAW_COLOURS = (32803, 34892)  # of PhotometricInterpretation: a sensor's pattern, LinearRaw
MAX_DIRECTORIES = 32  # of a TIFF, and entries of each, looked at to see whether it is RAW
MAX_ENTRIES = 500
SHORT = 3  # the type of an entry
TURNED_BY_LIBRAW = {3: 3, 5: 8, 6: 6}  # its `flip` as EXIF's Orientation
JXL_RATIOS = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
JXL_SIZE_BITS = (9, 13, 18, 30)
JXL_HEADER_BYTES = 16


def opened(kind: str, data: bytes) -> Image.Image:
    """The picture, of a kind in `EXTRAS`. Raises ImageError, and what Pillow raises."""
    try:
        return OPENERS[kind](data)
    except ImportError:
        raise ImageError(EXTRAS[kind].remedy) from None


def opened_heic(data: bytes) -> Image.Image:
    import pillow_heif

    pillow_heif.register_heif_opener(
        decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
    )
    return Image.open(BytesIO(data), formats=["HEIF"])


def opened_jxl(data: bytes) -> Image.Image:
    """The picture, decoded already: the plugin opens it no other way."""
    from pillow_jxl import JpegXLImagePlugin

    JpegXLImagePlugin.DECODE_THREADS = 0  # the pool has a process for every core
    width, height = jxl_size(data)
    if width * height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{width * height} pixels")
    picture = Image.open(BytesIO(data), formats=["JXL"])
    if not picture.jpeg:
        # The decoder has turned it upright; only a JPEG packed as it was needs its EXIF.
        exif_of(picture).pop(Base.Orientation, None)
    return picture


def opened_raw(data: bytes) -> Image.Image:
    """The largest preview in a RAW file, with the camera's date, place and orientation.

    The pixels of the sensor are left alone: developing them takes seconds.
    """
    import rawpy

    try:
        with rawpy.imread(BytesIO(data)) as raw:
            preview, flip = raw.extract_thumb(), raw.sizes.flip
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
        raise ImageError("the RAW file holds no preview that can be read") from None
    except rawpy.LibRawError as error:
        reason = error.args[0].decode(errors="replace") if error.args else "damaged"
        raise ImageError(f"LibRaw cannot read the RAW file: {reason}") from None
    if preview.format == rawpy.ThumbFormat.JPEG:
        picture = Image.open(BytesIO(preview.data), formats=["JPEG"])
    else:
        picture = Image.fromarray(preview.data)
    picture.format = "RAW"
    exif = exif_of(picture)
    turned = exif.get(Base.Orientation, TURNED_BY_LIBRAW.get(flip, 1))
    with suppress(Exception):  # a TIFF tells more than what LibRaw copies into a preview
        own = Image.Exif()
        own.load(data[:EXIF_BYTES])
        if own.get_ifd(IFD.Exif):
            exif.load(data[:EXIF_BYTES])
    exif[Base.Orientation] = turned
    return picture


OPENERS = {"HEIC": opened_heic, "JXL": opened_jxl, "RAW": opened_raw}


def is_raw(data: bytes) -> bool:
    """Whether this is a RAW file of a camera.

    Most are TIFFs that begin with a preview, which Pillow would take for the picture.
    Somewhere behind it lies what the sensor saw.
    """
    if data.startswith(RAW_SIGNATURES) or data[4:12] == b"ftypcrx ":
        return True
    if not data.startswith((b"II*\0", b"MM\0*")):
        return False
    colours = (one.get(Base.PhotometricInterpretation) for one in directories(data))
    return data[8:10] == b"CR" or any(one in RAW_COLOURS for one in colours)


def directories(tiff: bytes) -> Iterator[dict[int, int]]:
    """The directories of a TIFF up to one that is broken: the first number of each tag."""
    order = "<" if tiff.startswith(b"II") else ">"

    def numbers(kinds: str, offset: int) -> tuple[int, ...]:
        return struct.unpack_from(order + kinds, tiff, offset)

    with suppress(struct.error):
        waiting = deque(numbers("I", 4))
        for _ in range(MAX_DIRECTORIES):
            if not waiting:
                return
            start = waiting.popleft()
            (count,) = numbers("H", start)
            end = start + 2 + 12 * count
            found = {}
            for entry in range(start + 2, min(end, start + 12 * MAX_ENTRIES), 12):
                tag, kind, amount, value = numbers("HHII", entry)
                found[tag] = numbers("H", entry + 8)[0] if kind == SHORT else value
                if tag == Base.SubIFDs:
                    place = entry + 8 if amount == 1 else value
                    waiting += numbers(f"{min(amount, MAX_DIRECTORIES)}I", place)
            yield found
            waiting += [following for following in numbers("I", end) if following]


def jxl_size(data: bytes) -> tuple[int, int]:
    """Width and height by the header of a JPEG XL file (ISO/IEC 18181-1, SizeHeader)."""
    bits = int.from_bytes(jxl_start(data)[2:], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side() -> int:
        return 8 * (take(5) + 1) if small else take(JXL_SIZE_BITS[take(2)]) + 1

    small = take(1)
    height = side()
    ratio = JXL_RATIOS[take(3)]
    return (height * ratio[0] // ratio[1] if ratio else side()), height


def jxl_start(data: bytes) -> bytes:
    """The first bytes of the picture, which may be cut into boxes of any length."""
    if not data.startswith(b"\0\0\0\x0c"):
        return data[:JXL_HEADER_BYTES]
    found, box = b"", 0
    while len(found) < JXL_HEADER_BYTES and box + 16 <= len(data):
        size, kind, long_size = struct.unpack_from(">I4sQ", data, box)
        start = box + (16 if size == 1 else 8) + (4 if kind == b"jxlp" else 0)
        box = max(start, box + {0: len(data), 1: long_size}.get(size, size))
        if kind in (b"jxlc", b"jxlp"):
            found += data[start : min(box, start + JXL_HEADER_BYTES)]
    return found
