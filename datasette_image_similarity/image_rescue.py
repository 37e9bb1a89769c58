"""Files that are cut off, but of which nearly everything can be decoded.

Copies that broke off, full memory cards and careless programs leave pictures without their
last bytes. How much of a picture is there is measured, not guessed:

- JPEG: it is decoded twice, with different bytes appended. It ends at the first block that
  differs. A progressive JPEG must have all coefficients but for their last bit.
- WebP, HEIC and JP2 say how long they are, which is compared with the length of the file.
  AVIF does as well, but its decoder refuses files that are shorter.
- All others: the rows that decoding writes to are counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

from PIL import Image, ImageChops, ImageFile, JpegImagePlugin

from .image_boxes import boxes

NEARLY_WHOLE = 0.9  # of the picture, or of the bytes where only these are known
# Signatures that no other file has by chance, behind a few bytes that do not belong there:
# line breaks, a byte order mark, the header of an old Macintosh.
PICTURE_BEGINS = re.compile(
    rb"\xff\xd8\xff[\xc0-\xfe]|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP", re.DOTALL
)
JUNK_BYTES = 128
ONLY_THE_END = "the end of the file is missing, but nothing of the picture"
PADDING_BYTES = 1 << 16
EOI = b"\xff\xd9"  # ends a JPEG
STRIP_PIXELS = 4_000_000

Opener = Callable[[bytes], Image.Image]


class Damaged(Exception):
    """Too little of the file can be decoded."""


def start_of_picture(data: bytes) -> int:
    """How many bytes of an unknown file come before a picture; 0 where none is found."""
    found = PICTURE_BEGINS.search(data, 0, JUNK_BYTES + 12)
    return found.start() if found else 0


def lacks_end(data: bytes) -> bool:
    """Whether a PNG is cut off behind its pixels, which decoding does not notice."""
    return data.startswith(b"\x89PNG") and data.rfind(b"IEND\xae\x42\x60\x82") < 0


def rescued(data: bytes, opened: Opener) -> tuple[Image.Image, str]:
    """A picture that can be loaded, and a note about it. Raises Damaged."""
    if data.startswith(b"\xff\xd8"):
        share, data = share_of_jpeg(data.rstrip(b"\xff"))
        return opened(data), note_about(share)
    declared = declared_bytes(data)
    if declared:
        share = len(data) / declared
        note = note_about(share)
        return opened(padded(data, declared)), note
    picture, share = partly_loaded(data, opened)
    return picture, note_about(share)


def note_about(share: float) -> str:
    """Raises Damaged if that is too little."""
    if not NEARLY_WHOLE <= share <= 1:
        raise Damaged
    if share == 1:
        return ONLY_THE_END
    return f"the file is cut off: {math.floor(share * 1000) / 10:g} % of it can be shown"


# JPEG


def share_of_jpeg(data: bytes) -> tuple[float, bytes]:
    """How much of a baseline or progressive JPEG is there, and that part as a file."""
    found = scans(data)
    data = data[: found.end].rstrip(b"\0")
    if all_known(found.finished):
        return 1.0, data + EOI
    if found.progressive or not all_known(found.begun):
        raise Damaged
    return share_of_blocks(data), data + EOI


def note_on_missing_blocks(data: bytes, picture: Image.Image) -> str | None:
    """What a decoded baseline JPEG lacks, if its decoder filled that in without a word.

    It does so in front of an early EOI marker, with middle grey, and takes zeros for
    blocks. Raises Damaged if too much is missing.
    """
    last = picture.getpixel((picture.width - 1, picture.height - 1))
    grey = set(last if isinstance(last, tuple) else (last,)) <= {127, 128}
    if not grey and not data.endswith(bytes(64)):
        return None
    found = scans(data)
    if found.progressive or not all_known(found.begun):
        return None
    share = share_of_blocks(data[: found.end].rstrip(b"\0"))
    return note_about(share) if share < 1 else None


def share_of_blocks(data: bytes) -> float:
    """How much of a baseline JPEG without its EOI marker is there."""
    first, second = (luma_blocks(data + more) for more in (b"", OTHER_BITS))
    # Of what is left of a row of blocks (MCU), all is as good as lost.
    wide, high = first.info["mcu"]
    apart = ImageChops.difference(first, second)
    box = apart.getbbox()
    if box is None:
        return 1.0
    width, height = first.size
    row = box[1] // high
    column = apart.crop((0, row * high, width, (row + 1) * high)).getbbox()[0] // wide
    columns, rows = math.ceil(width / wide), math.ceil(height / high)
    return (row * columns + column) / (rows * columns)


# With the marks at which a decoder would begin anew.
OTHER_BITS = b"".join(bytes([0x5A, 0xC3, 0x71] * 40 + [0xFF, 0xD0 + n]) for n in range(8))


def luma_blocks(data: bytes) -> Image.Image:
    """A JPEG with one pixel for each of its blocks of 8 × 8; `mcu` in blocks."""
    picture = JpegImagePlugin.JpegImageFile(BytesIO(data + EOI))
    layers = picture.layer
    several = len(layers) > 1
    mcu = tuple(max(layer[at] for layer in layers) if several else 1 for at in (1, 2))
    picture.draft("L", (1, 1))
    picture.load()
    picture.info["mcu"] = mcu
    return picture


_Precision = dict[int, list[int]]  # of a component's 64 coefficients: missing low bits


class Scans(NamedTuple):
    """What the scans of a JPEG hold (ITU-T T.81, annexes B and G)."""

    finished: _Precision  # by those behind which another marker stands
    begun: _Precision  # by all
    progressive: bool
    end: int  # of the last scan, or of the last whole segment behind it


def scans(data: bytes) -> Scans:
    finished: _Precision = {}
    begun: _Precision = {}
    progressive, at = False, 2
    while data[at : at + 1] == b"\xff":
        if data[at + 1 : at + 2] == b"\xff":  # padding
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        stop = at + 2 + length
        if data[at + 1 : at + 2] not in SEGMENTS or length < 2 or stop > len(data):
            break
        marker, body = data[at + 1], data[at + 4 : stop]
        at = stop
        if marker in (0xC0, 0xC1, 0xC2):
            progressive = marker == 0xC2
            begun = {body[6 + 3 * n]: [99] * 64 for n in range(body[5])}
            finished = {component: [99] * 64 for component in begun}
        elif marker == 0xDA:
            end = SCAN_ENDS.search(data, at)
            at = end.start() if end else len(data)
            whole = data[at + 1 : at + 2] in (*SEGMENTS, EOI[1:])
            for n in range(body[0]):
                note_scan(begun[body[1 + 2 * n]], body[-3:])
                if whole:
                    note_scan(finished[body[1 + 2 * n]], body[-3:])
    return Scans(finished, begun, progressive, at)


# Frames, tables, scans, application data and comments; other markers are garbage.
SEGMENTS = [bytes([n]) for n in (*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE) if n != 0xD9]
SCAN_ENDS = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")


def note_scan(precision: list[int], spectrum: bytes) -> None:
    first, last, bits = spectrum
    precision[first : last + 1] = [bits & 15] * (last + 1 - first)


def all_known(precision: _Precision) -> bool:
    """Whether all coefficients are there, but for their last bit."""
    return bool(precision) and all(max(bits) <= 1 for bits in precision.values())


# Others


def declared_bytes(data: bytes) -> int | None:
    """How long a RIFF, ISO media or JP2 file says it is, if longer than it is."""
    declared = 0
    if data.startswith(b"RIFF"):
        declared = int.from_bytes(data[4:8], "little") + 8
    elif data[4:8] in (b"ftyp", b"jP  "):
        declared = max(stop for _, _, stop in boxes(data))
    return declared if declared > len(data) else None


def padded(data: bytes, size: int) -> bytes:
    """The file with zeros for what is missing of so many bytes."""
    if data.startswith(b"RIFF"):
        return padded_webp(data, size)
    # JPEG 2000 takes zeros for empty packets, and wants its last mark.
    mark = b"\xff\xd9" if data[4:8] == b"jP  " else b""
    return data.ljust(size - len(mark), b"\0") + mark


def padded_webp(data: bytes, size: int) -> bytes:
    """With more than is missing: zeros may be read faster than what was there."""
    start = 12
    while (end := start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")) < size:
        start = end + end % 2
    longer = bytearray(data.ljust(size + PADDING_BYTES, b"\0"))
    longer[4:8] = (len(longer) - 8).to_bytes(4, "little")
    longer[start + 4 : start + 8] = (len(longer) - start - 8).to_bytes(4, "little")
    return bytes(longer)


def partly_loaded(data: bytes, opened: Opener) -> tuple[Image.Image, float]:
    """A picture as far as it can be decoded, and the share of its rows that are whole.

    It is decoded over black and over white: where the two differ, nothing was written.
    """
    black, white = (loaded_over(data, opened, level) for level in (0, 255))
    width, height = black.size
    step = max(1, STRIP_PIXELS // width)
    missing = 0
    for top in range(0, height, step):
        box = (0, top, width, min(height, top + step))
        missing += rows_apart(black.crop(box), white.crop(box))
    return black, 1 - missing / height


def loaded_over(data: bytes, opened: Opener, level: int) -> Image.Image:
    picture = opened(data)
    prepare = picture.load_prepare

    def prepare_and_paint() -> None:
        prepare()
        colour = (level,) * len(picture.getbands())
        ground = Image.new(picture.mode, picture.size, colour if colour[1:] else level)
        picture.im.paste(ground.im, (0, 0, *picture.size))

    picture.load_prepare = prepare_and_paint
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        picture.load()
    except (OSError, ValueError):  # libtiff stops at the first strip that it cannot read
        picture.tile = []
        picture.load_end()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    return picture


def rows_apart(one: Image.Image, other: Image.Image) -> int:
    import numpy as np

    pixels = (
        np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, -1)
        for image in (one, other)
    )
    return int(np.not_equal(*pixels).any(axis=1).sum())
