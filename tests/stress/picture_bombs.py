"""Files that are small and cost much, and files that are two things at once.

For every format that can hold one: pictures that decompress a thousandfold, headers that
promise more than any memory has, metadata that never ends, animations of 100,000 frames.
`bombs()` names functions that make them, because all of them at once are large.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

from PIL import Image

from .picture_seeds import file_of, photo, tiff, tiled_tiff

FRAMES = 100_000
JUST = (7000, 7000)  # 49 megapixels: below the limit for uploads
MUCH = 50_000_000
Maker = Callable[[], bytes]


def packed_zeros(size: int) -> bytes:
    """So many zeros, by zlib; never in memory at once."""
    packer = zlib.compressobj(9)
    whole = b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20))
    return whole + packer.compress(bytes(size & (1 << 20) - 1)) + packer.flush()


# PNG


def chunk(kind: bytes, body: bytes) -> bytes:
    checked = kind + body
    return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(
    size: tuple[int, int],
    *,
    depth: int = 8,
    colour: int = 0,
    interlaced: int = 0,
    before: bytes = b"",
    rows: bytes | None = None,
) -> bytes:
    """Of zeros; `colour` as PNG has it (0 grey, 2 RGB, 6 RGBA)."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    if rows is None:
        line = 1 + (size[0] * channels * depth + 7) // 8
        rows = packed_zeros(line * size[1] + (size[1] * 8 if interlaced else 0))
    head = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    body = before + chunk(b"IDAT", rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def png_bombs() -> dict[str, Maker]:
    small, big = (64, 48), 1 << 30
    text = packed_zeros(300 << 20)
    return {
        "grey": lambda: png(JUST),
        "16-bit RGBA": lambda: png(JUST, depth=16, colour=6),
        "interlaced": lambda: png(JUST, depth=8, colour=6, interlaced=1),
        "far over": lambda: png((50_000, 50_000), depth=1),
        "header only": lambda: png((2**31 - 1, 2**31 - 1), rows=b"x"),
        "one column": lambda: png((1, MUCH), depth=1),
        "one row": lambda: png((MUCH, 1), depth=1),
        "zTXt": lambda: png(small, before=chunk(b"zTXt", b"a\0\0" + text)),
        "many zTXt": lambda: png(
            small, before=chunk(b"zTXt", b"a\0\0" + packed_zeros(15 << 20)) * 200
        ),
        "iTXt": lambda: png(small, before=chunk(b"iTXt", b"a\0\1\0\0\0" + text)),
        "iCCP": lambda: png(small, before=chunk(b"iCCP", b"a\0\0" + text)),
        "rows for ever": lambda: png(small, rows=packed_zeros(big)),
        "empty chunks": lambda: png(small, before=chunk(b"teSt", b"") * 1_500_000),
        "XMP entities": lambda: png(
            small, before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + laughs())
        ),
        "eXIf": lambda: png(small, before=chunk(b"eXIf", exif_bomb())),
        "eXIf of itself": lambda: png(small, before=chunk(b"eXIf", exif_loop())),
        "eXIf of 60,000 entries": lambda: png(
            small, before=chunk(b"eXIf", exif_of_entries(60_000, 14_000_000))
        ),
        "animation": apng,
    }


def apng(frames: int = FRAMES) -> bytes:
    row = zlib.compress(b"\0\0\0\0\0")
    out = [
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 8, 0, 0, 0, 0)),
    ]
    out.append(chunk(b"acTL", struct.pack(">II", frames, 0)))
    for number in range(frames):
        sequence = 2 * number - 1
        control = struct.pack(">IIIIIHHBB", max(0, sequence), 4, 1, 0, 0, 1, 30, 0, 0)
        out.append(chunk(b"fcTL", control))
        if number:
            out.append(chunk(b"fdAT", struct.pack(">I", sequence + 1) + row))
        else:
            out.append(chunk(b"IDAT", row))
    return b"".join([*out, chunk(b"IEND", b"")])


def laughs() -> bytes:
    """The billion laughs, as XMP."""
    entities = "".join(
        f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "SECRET"}">' for n in range(10)
    )
    return (
        f'<?xml version="1.0"?><!DOCTYPE x [{entities}]>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f"&l9;{'<a>' * 50_000}</x:xmpmeta>"
    ).encode()


# EXIF


def exif_loop() -> bytes:
    """Directories that are their own sub-directories and successors."""
    table = b"".join(
        struct.pack("<HHII", tag, 4, 1, 8) for tag in (0x014A, 0x8769, 0x8825, 0xA005)
    )
    return b"II*\0" + struct.pack("<IH", 8, 4) + table + struct.pack("<I", 8)


def exif_of_entries(entries: int, size: int) -> bytes:
    """Every entry is all of the block, as fractions; the place has the same entries."""
    table = b"".join(
        struct.pack("<HHII", tag, 5, size // 8, 8)
        for tag in range(entries)
        if tag not in (0x8769, 0x8825)
    )
    table += struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<HHII", 0x8825, 4, 1, 8)
    head = b"II*\0" + struct.pack("<IH", 8, len(table) // 12)
    return (head + table + bytes(4)).ljust(size + 8, b"\1")


def exif_bomb() -> bytes:
    return exif_of_entries(5000, 65_000)


# JPEG


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with(more: bytes, size: tuple[int, int] = (64, 48)) -> bytes:
    data = file_of(photo(size=size), "JPEG")
    return data[:2] + more + data[2:]


def jpeg_scans(size: tuple[int, int], scans: int) -> bytes:
    """Progressive, with so many scans that refine nothing."""
    head = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    head += segment(0xC2, struct.pack(">BHHB", 8, *size[::-1], 1) + b"\1\x11\0")
    table = b"\x10" + bytes([1]) + bytes(15) + b"\0"  # one code: end of a band
    head += segment(0xC4, b"\0" + table[1:]) + segment(0xC4, table)
    blocks = -(-size[0] // 8) * -(-size[1] // 8)
    first = segment(0xDA, b"\1\1\0\0\0\1") + bytes(-(-blocks // 8))
    # An end-of-band run would be shorter still; a code of one bit for each block is enough.
    refine = segment(0xDA, b"\1\1\0\1\1\1") + bytes(-(-blocks // 8))
    return head + first + refine * scans + b"\xff\xd9"


def jpeg_bombs() -> dict[str, Maker]:
    app1 = segment(0xE1, b"Exif\0\0" + exif_of_entries(5000, 65_000)[:65_500])
    return {
        "just": lambda: file_of(photo(size=JUST), "JPEG", quality=1),
        "scans": lambda: jpeg_scans((4000, 4000), 300),
        "far over": lambda: resized(file_of(photo(), "JPEG"), (65_500, 65_500)),
        "dimensions lie": lambda: resized(file_of(photo(), "JPEG"), JUST),
        "EXIF": lambda: jpeg_with(app1),
        "EXIF 250 times": lambda: jpeg_with(app1 * 250),
        "EXIF of itself": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + exif_loop())),
        "profile in 255 parts": lambda: jpeg_with(
            b"".join(
                segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 255]) + bytes(65_000))
                for n in range(1, 256)
            )
        ),
        "fill bytes": lambda: jpeg_with(b"\xff" * 19_000_000),
        "empty comments": lambda: jpeg_with(segment(0xFE, b"") * 4_000_000),
        "XMP entities": lambda: jpeg_with(
            segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + laughs()[:60_000])
        ),
        "Photoshop blocks": lambda: jpeg_with(
            segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000) * 200
        ),
        "frames": lambda: mpo(2 + FRAMES),
    }


def resized(jpeg: bytes, size: tuple[int, int]) -> bytes:
    """A JPEG whose header says another size."""
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        at = jpeg.find(marker)
        if at > 0:
            return jpeg[: at + 5] + struct.pack(">HH", *size[::-1]) + jpeg[at + 9 :]
    raise ValueError("no JPEG")


def mpo(frames: int) -> bytes:
    """A Multi-Picture file whose index names the same picture 4,000 times (what a segment
    holds), and says there are more."""
    one = file_of(photo(size=(8, 8)), "JPEG")
    entries = min(frames, 4000)
    index = b"II*\0" + struct.pack("<IH", 8, 3)
    index += struct.pack("<HHI4s", 0xB000, 7, 4, b"0100")
    index += struct.pack("<HHII", 0xB001, 4, 1, frames)
    index += struct.pack("<HHII", 0xB002, 7, 16 * frames, 50) + bytes(4)
    table = struct.pack("<IIIHH", 0x030000, len(one), 0, 0, 0) * entries
    return one[:2] + segment(0xE2, b"MPF\0" + index + table) + one[2:] + one


# GIF


def gif(
    screen: tuple[int, int], frame: tuple[int, int], codes: bytes, frames: int = 1
) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    image = b"\x2c" + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\2"
    blocks = b"".join(
        bytes([len(codes[at : at + 255])]) + codes[at : at + 255]
        for at in range(0, len(codes), 255)
    )
    return head + (b"\x21\xf9\4\0\1\0\0\0" + image + blocks + b"\0") * frames + b";"


def gif_bombs() -> dict[str, Maker]:
    return {
        "just": lambda: file_of(Image.new("P", JUST), "GIF"),
        "wide screen": lambda: gif((65_535, 65_535), (2, 2), b"\x84\x51"),
        "wide frame": lambda: gif((2, 2), (65_535, 65_535), b"\x84\x51"),
        "just a screen": lambda: gif(JUST, (2, 2), b"\x84\x51"),
        "frames": lambda: gif((2, 2), (2, 2), b"\x84\x51", FRAMES),
        "large frames": lambda: gif(JUST, JUST, b"\x84\x51", FRAMES),
        "comments": lambda: gif((2, 2), (2, 2), b"\x84\x51").replace(
            b"\x21\xf9", (b"\x21\xfe" + (b"\xff" + b"c" * 255) * 60_000 + b"\0\x21\xf9"), 1
        ),
    }


# WebP, AVIF, JPEG 2000


def riff(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1)
        for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_animation(size: tuple[int, int], frames: int) -> bytes:
    three = b"".join((number - 1).to_bytes(3, "little") for number in size)
    still = file_of(photo(size=(2, 2)), "WEBP", lossless=True)[12:]
    frame = bytes(6) + b"\1\0\0" * 2 + b"\1\0\0\0" + still
    chunks = [(b"VP8X", b"\2\0\0\0" + three), (b"ANIM", bytes(6))]
    return riff(chunks + [(b"ANMF", frame)] * frames)


def webp_with(kind: bytes, flag: int, data: bytes) -> bytes:
    still = file_of(photo(size=(64, 48)), "WEBP")[12:]
    head = bytes([flag, 0, 0, 0]) + (63).to_bytes(3, "little") + (47).to_bytes(3, "little")
    start = b"VP8X" + struct.pack("<I", 10) + head
    if kind == b"ICCP":
        start, data = start + kind + struct.pack("<I", len(data)) + data, b""
    body = start + still
    if data:
        body += kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def modern_bombs() -> dict[str, Maker]:
    def plain(format: str, size: tuple[int, int] = JUST, **options: object) -> Maker:
        return lambda: file_of(Image.new("RGB", size), format, **options)

    tiny = [Image.new("RGB", (16, 16), (n % 256, n // 256, 0)) for n in range(300)]
    frames = {"save_all": True, "append_images": tiny, "speed": 10}
    return {
        "WEBP just": plain("WEBP", (16_000, 3100), quality=1, method=0),
        "WEBP lossless": plain("WEBP", (16_000, 3100), lossless=True, quality=0, method=0),
        "WEBP frames": lambda: webp_animation((2, 2), FRAMES),
        "WEBP frames on a large canvas": lambda: webp_animation((16_000, 3100), FRAMES),
        "WEBP far over": lambda: webp_animation((1 << 14, 1 << 14), 1),
        "WEBP canvas lies": lambda: webp_animation((1 << 24, 1 << 24), 1),
        "WEBP EXIF": lambda: webp_with(b"EXIF", 8, exif_of_entries(60_000, 14_000_000)),
        "WEBP profile": lambda: webp_with(b"ICCP", 32, bytes(14_000_000)),
        "WEBP XMP entities": lambda: webp_with(b"XMP ", 4, laughs()),
        "AVIF just": plain("AVIF", speed=10, quality=1),
        "AVIF far over": lambda: lying(
            file_of(photo(size=(61, 47)), "AVIF"), b"ispe", 8, ">II", 60_000, 60_000
        ),
        "AVIF lies": lambda: lying(
            file_of(photo(size=(61, 47)), "AVIF"), b"ispe", 8, ">II", 7000, 7000
        ),
        "AVIF frames": plain("AVIF", (16, 16), **frames),
        "JPEG2000 just": plain("JPEG2000"),
        "JPEG2000 far over": lambda: lying(
            file_of(photo(), "JPEG2000", no_jp2=True), b"\xff\x51", 6, ">II", 60_000, 60_000
        ),
        "JPEG2000 dimensions lie": lambda: lying(
            file_of(photo(), "JPEG2000", no_jp2=True), b"\xff\x51", 6, ">II", 7000, 7000
        ),
        "JPEG2000 tiles of one pixel": lambda: lying(
            lying(
                file_of(photo(), "JPEG2000", no_jp2=True),
                b"\xff\x51",
                6,
                ">II",
                7000,
                7000,
            ),
            b"\xff\x51",
            22,
            ">II",
            1,
            1,
        ),
        "JPEG2000 tiles": plain("JPEG2000", (4000, 4000), tile_size=(64, 64)),
    }


def lying(data: bytes, after: bytes, offset: int, form: str, *values: int) -> bytes:
    """The bytes with others put `offset` behind where something is found."""
    at = data.index(after) + offset
    lie = struct.pack(form, *values)
    return data[:at] + lie + data[at + len(lie) :]


# TIFF


def strip(
    size: tuple[int, int],
    body: bytes,
    compression: int,
    *,
    bits: int = 8,
    samples: int = 1,
    rows: int | None = None,
    following: int = 0,
    length: int | None = None,
) -> bytes:
    """A TIFF of one strip, or of strips that are all the same bytes."""
    rows = rows or size[1]
    strips = -(-size[1] // rows)
    return tiff(
        {
            256: (4, [size[0]]),
            257: (4, [size[1]]),
            258: (3, [bits] * samples),
            259: (3, [compression]),
            262: (3, [1 if samples == 1 else 2]),
            273: (4, [-1] * strips),
            277: (3, [samples]),
            278: (4, [rows]),
            279: (4, [len(body) if length is None else length] * strips),
        },
        body,
        following,
    )


def directories(count: int, loop: bool) -> bytes:
    """Directories of one grey pixel, one behind the other; the last leads to the first."""
    size = 2 + 12 * 8 + 4
    entries = [
        (256, 1),
        (257, 1),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (279, 1),
    ]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    out = [b"II*\0", struct.pack("<I", 8)]
    for number in range(count):
        following = 8 + size * (number + 1)
        if number == count - 1:
            following = 8 if loop else 0
        out.append(struct.pack("<H", 8) + table + struct.pack("<I", following))
    return b"".join(out)


def tiff_bombs() -> dict[str, Maker]:
    square = JUST[0] * JUST[1]
    line = zlib.compress(bytes(7000 * 3))
    tile = zlib.compress(bytes(256))
    return {
        "deflate": lambda: strip(JUST, packed_zeros(square), 8),
        "deflate, 16-bit": lambda: strip(JUST, packed_zeros(2 * square), 8, bits=16),
        "deflate, 64-bit": lambda: strip(JUST, packed_zeros(8 * square), 8, bits=64),
        "deflate, RGBA": lambda: strip(JUST, packed_zeros(4 * square), 8, samples=4),
        "shared strips": lambda: strip(JUST, line, 8, samples=3, rows=1),
        "packbits": lambda: strip(JUST, b"\x81\0" * (square // 128 + 1), 32773),
        "LZW": lambda: strip(JUST, b"\x80\x00\x20\x50" * 100_000, 5),
        "fax 3": lambda: strip(JUST, b"\x35\x15" * 900_000, 3, bits=1),
        "fax 4": lambda: strip(JUST, b"\xff" * 1000, 4, bits=1),
        "fax 4 far over": lambda: strip((60_000, 60_000), b"\xff" * 9000, 4, bits=1),
        "far over": lambda: strip((2**31, 2**31), b"x", 8),
        "a pixel a strip": lambda: strip((1, 3_000_000), b"\0", 1, rows=1),
        "rows lie": lambda: strip((64, 48), packed_zeros(1 << 28), 8, rows=2**32 - 1),
        "a tile of 4 GB": lambda: tiled_tiff((100, 100), (65_536,) * 2, 8, tile),
        "a tile of 400 MB": lambda: tiled_tiff(
            (100, 100), (20_480, 20_480), 8, packed_zeros(20_480 * 20_480)
        ),
        "tiles of 16": lambda: tiled_tiff((6400, 6400), (16, 16), 8, tile),
        "samples": lambda: strip((64, 48), packed_zeros(1 << 28), 8, samples=60_000),
        "length lies": lambda: strip((64, 48), b"x", 1, length=2**32 - 1),
        "directories": lambda: directories(FRAMES, False),
        "a loop of directories": lambda: directories(FRAMES, True),
        "a short loop": lambda: directories(1, True),
        "EXIF": lambda: exif_of_entries(60_000, 14_000_000),
        "EXIF of itself": exif_loop,
        "RLE of zeros (lzma)": lambda: strip(JUST, xz(square), 34925),
        "JPEG inside": lambda: strip(JUST, resized(file_of(photo("L"), "JPEG"), JUST), 7),
    }


def xz(size: int) -> bytes:
    import lzma

    return lzma.compress(bytes(size), preset=0)


# The plain ones, and those that we do not read


def rle_bmp(size: tuple[int, int]) -> bytes:
    run = b"\xff\0" * (size[0] // 255 + 1) + b"\0\0"
    body = run * size[1] + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, *size, 1, 8, 1, len(body), 0, 0, 256, 0)
    offset = 14 + 40 + 1024
    return (
        b"BM"
        + struct.pack("<IHHI", offset + len(body), 0, 0, offset)
        + head
        + bytes(1024)
        + body
    )


def bmp_header(size: tuple[int, int], bits: int = 24, compression: int = 0) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, *size, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


def plain_bombs() -> dict[str, Maker]:
    png_inside = png(JUST, colour=6)
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(png_inside), 22)
    container = b"ic10" + struct.pack(">I", 8 + len(png_inside)) + png_inside
    tga = struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 7000, 7000, 32, 0)
    return {
        "BMP RLE": lambda: rle_bmp(JUST),
        "BMP RLE of nothing": lambda: bmp_header(JUST, 8, 1),
        "BMP RLE, columns": lambda: rle_bmp((1, 4_000_000)),
        "BMP far over": lambda: bmp_header((2**31 - 1, 2**31 - 1)),
        "BMP upside down": lambda: bmp_header((7000, -7000)),
        "BMP least height": lambda: bmp_header((7000, -(2**31))),
        "DIB far over": lambda: bmp_header((2**31 - 1, 2**31 - 1))[14:],
        "PPM text": lambda: b"P3 7000 7000 255\n" + b"0 " * 9_900_000,
        "PPM a long number": lambda: b"P3 9 9 255\n" + b"1" * 19_000_000,
        "PPM a long comment": lambda: b"P6 #" + b"x" * 19_000_000,
        "PPM comments": lambda: b"P6 " + b"#\n" * 9_000_000,
        "PPM far over": lambda: b"P6 99999 99999 255\n",
        "PPM huge numbers": lambda: b"P6 " + b"9" * 5000 + b" 9 255\n",
        "PPM just": lambda: b"P1 7000 7000\n" + b"1" * 15_000_000,
        "PPM float": lambda: b"Pf 7000 7000 -1e308\n" + b"\0" * 9,
        "ICO png": lambda: icon + png_inside,
        "ICNS png": lambda: b"icns" + struct.pack(">I", 8 + len(container)) + container,
        "TGA RLE": lambda: tga + b"\xff\0\0\0\0" * (7000 * 7000 // 128 + 1),
        "PSD RLE": lambda: (
            struct.pack(
                ">4sH6sHIIHHIIIH", b"8BPS", 1, bytes(6), 3, 30_000, 30_000, 8, 3, 0, 0, 0, 1
            )
            + bytes(99_999)
        ),
        "PSD layers": lambda: (
            struct.pack(
                ">4sH6sHIIHHIIII",
                b"8BPS",
                1,
                bytes(6),
                3,
                7000,
                7000,
                8,
                3,
                0,
                0,
                99_999,
                9999,
            )
            + b"\x7f\xff" * 50_000
        ),
        "SGI": lambda: struct.pack(">HBBHHHH", 474, 1, 1, 3, 65_535, 65_535, 4).ljust(999),
        "PCX": lambda: (
            struct.pack("<BBBBHHHH", 10, 5, 1, 8, 0, 0, 65_534, 65_534).ljust(128, b"\1")
            + b"\xff\0" * 99_999
        ),
        "DDS": lambda: (
            b"DDS " + struct.pack("<4I", 124, 0x1007, 60_000, 60_000).ljust(124, b"\0")
        ),
        "FLI": lambda: struct.pack(
            "<IHHHHHHI", 999, 0xAF12, 65_535, 65_535, 65_535, 8, 3, 5
        ).ljust(999, b"\0"),
        "BLP": lambda: (
            b"BLP2"
            + struct.pack("<IBBBBII", 1, 2, 8, 7, 0, 65_535, 65_535).ljust(2000, b"\0")
        ),
        "QOI": lambda: b"qoif" + struct.pack(">IIBB", 7000, 7000, 4, 0) + b"\xfd" * 800_000,
        "XBM": lambda: (
            b"#define x_width 99999\n#define x_height 99999\n" + b"0x00," * 99_999
        ),
        "XPM": lambda: b"/* XPM */\n" + b'"99999 99999 2 1",\n' * 9999,
        "GZIP": lambda: b"\x1f\x8b\x08" + packed_zeros(1 << 28),
        "SVG laughs": lambda: b"<svg>" + laughs() + b"</svg>",
        "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(99_999),
        "nothing but zeros": lambda: bytes(19_000_000),
        "noise": lambda: random.Random(1).randbytes(19_000_000),
        "nothing but spaces": lambda: b" " * 19_000_000,
    }


def bombs() -> dict[str, Maker]:
    """All of them, by format and kind."""
    groups = {
        "PNG ": png_bombs(),
        "JPEG ": jpeg_bombs(),
        "GIF ": gif_bombs(),
        "TIFF ": tiff_bombs(),
        "": {**modern_bombs(), **plain_bombs()},
    }
    return {prefix + name: make for prefix, g in groups.items() for name, make in g.items()}


# Two things at once


def zipped(data: bytes = b"<script>alert(1)</script>") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("index.html", data)
    return out.getvalue()


HTML = b"<!DOCTYPE html><html><script>alert('SECRET')</script></html>"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 61 47\n%%EndComments\nshowpage\n%%EOF\n"
PHAR = b"<?php __HALT_COMPILER(); ?>"


def polyglots() -> dict[str, tuple[bytes, bool]]:
    """(file, whether a picture is at its beginning) by name: only those may be decoded."""
    images = {
        name: file_of(photo(), name) for name in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
    }
    images["GIF"] = file_of(photo("P"), "GIF")
    others = {"ZIP": zipped(), "HTML": HTML, "PDF": file_of(photo(), "PDF"), "PHP": PHAR}
    others |= {
        "EPS": EPS,
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "JS": b"=1;",
    }
    found = {}
    for name, image in images.items():
        for other, data in others.items():
            found[f"{name} then {other}"] = (image + data, True)
            found[f"{other} then {name}"] = (data + image, False)
    jpeg = images["JPEG"]
    found["HTML in a JPEG's comment"] = (jpeg[:2] + segment(0xFE, HTML) + jpeg[2:], True)
    found["PDF in a JPEG's comment"] = (
        jpeg[:2] + segment(0xFE, others["PDF"][:60_000]) + jpeg[2:],
        True,
    )
    found["GIF that is JavaScript"] = (b"GIF89a/*" + images["GIF"][8:] + b"*/=1;", True)
    binary = struct.pack("<IIIIIIIH", 0xC6D3D0C5, 30, len(EPS), 0, 0, 0, 0, 0xFFFF)
    found["EPS"] = (EPS, False)
    found["EPS, DOS"] = (binary + EPS, False)
    found["PostScript behind a line"] = (b"\n" + EPS, False)
    found["MVG"] = (
        b"push graphic-context\nimage over 0,0 0,0 'url(http://127.0.0.1/)'",
        False,
    )
    entity = b"<!DOCTYPE svg [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>"
    found["SVG with entities"] = (
        b"<?xml version='1.0'?>" + entity + b"<svg>&x;</svg>",
        False,
    )
    return found
