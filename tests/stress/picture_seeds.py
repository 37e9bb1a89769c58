"""Small valid files of every format that Pillow can read, for `pictures.py` to damage.

What Pillow can write is written by it, in all modes and variants that matter to a decoder;
the rest is made by hand. Every file says SECRET wherever its format has room for words, so
that a thumbnail which carries some of it along gives itself away.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

SIZE = (61, 47)  # odd, and easily found again in a header
SECRET = "SECRET-52.5163N-13.3777E"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/'
    f'22-rdf-syntax-ns#"><rdf:Description rdf:about="{SECRET}"/></rdf:RDF></x:xmpmeta>'
).encode()


def photo(mode: str = "RGB", size: tuple[int, int] = SIZE, seed: int = 1) -> Image.Image:
    """A smooth picture with some detail."""
    few = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(few).resize(size, Image.Resampling.BICUBIC)
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    if mode.startswith("I;16"):
        values = np.asarray(image.convert("L"), dtype=np.uint16) * 257
        return Image.fromarray(values.astype(">u2" if mode.endswith("B") else "<u2"))
    if mode in ("La", "RGBa"):
        return photo(mode[:-1] + "A", size, seed).convert(mode)
    image = image.convert(mode)
    if mode in ("LA", "RGBA", "PA"):
        image.putalpha(photo("L", size, seed + 1))
    return image


def file_of(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def exif() -> bytes:
    """As a telephone writes it: turned by 90 degrees, with a place."""
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = 6
    block[ExifTags.Base.Make] = SECRET
    block[ExifTags.Base.ImageDescription] = SECRET
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:02:03 04:05:06"
    block.get_ifd(ExifTags.IFD.GPSInfo).update(
        {1: "N", 2: (52.0, 30.0, 58.7), 3: "E", 4: (13.0, 22.0, 39.7)}
    )
    return block.tobytes()


def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def text_chunks() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", SECRET)
    info.add_text("Zipped", SECRET * 20, zip=True)
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    return info


# What Pillow writes


def written() -> Iterator[tuple[str, bytes]]:
    """(name, file): the name is "FORMAT variant"."""
    known = {"exif": exif(), "icc_profile": profile()}
    animated = {"save_all": True}
    variants: dict[str, dict[str, tuple[str, dict]]] = {
        "JPEG": {
            "metadata": ("RGB", {**known, "comment": SECRET, "xmp": XMP}),
            "grey": ("L", {"exif": exif()}),
            "CMYK": ("CMYK", {}),
            "progressive": ("RGB", {"progressive": True, "exif": exif()}),
            "4:2:0": ("RGB", {"subsampling": 2, "quality": 30}),
            "restarts": ("RGB", {"restart_marker_blocks": 1}),
        },
        "MPO": {"frames": ("RGB", animated)},
        "PNG": {
            "metadata": ("RGB", {**known, "pnginfo": text_chunks()}),
            **{mode: (mode, {}) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")},
            "clear": ("P", {"transparency": 3}),
            "animated": ("RGB", animated),
        },
        "GIF": {
            "plain": ("P", {"comment": SECRET}),
            "interlaced": ("RGB", {"interlace": True}),
            "animated": ("RGB", {**animated, "loop": 0}),
            "clear": ("P", {"transparency": 3}),
        },
        "WEBP": {
            "metadata": ("RGB", {**known, "xmp": XMP}),
            "lossless": ("RGBA", {"lossless": True}),
            "alpha": ("RGBA", {}),
            "animated": ("RGB", animated),
        },
        "AVIF": {
            "metadata": ("RGB", {**known, "xmp": XMP, "speed": 10}),
            "alpha": ("RGBA", {"speed": 10}),
            "animated": ("RGB", {**animated, "speed": 10}),
        },
        "JPEG2000": {
            **{mode: (mode, {}) for mode in ("L", "LA", "RGB", "RGBA", "I;16")},
            "tiled": ("RGB", {"tile_size": (16, 16), "irreversible": True}),
            "codestream": ("RGB", {"no_jp2": True}),
        },
        "TIFF": {
            **{
                mode: (mode, {})
                for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK")
            },
            **{mode: (mode, {}) for mode in ("YCbCr", "LAB", "I;16", "I;16B", "I", "F")},
            "metadata": ("RGB", {**known, "description": SECRET, "software": SECRET}),
            "frames": ("RGB", animated),
            "big": ("RGB", {"big_tiff": True}),
        },
        "BMP": {mode: (mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")},
        "DIB": {mode: (mode, {}) for mode in ("L", "RGB")},
        "PPM": {mode: (mode, {}) for mode in ("1", "L", "RGB", "I;16", "F")},
        "ICO": {"png": ("RGBA", {}), "bmp": ("RGBA", {"bitmap_format": "bmp"})},
        "ICNS": {"png": ("RGBA", {})},
        "TGA": {"plain": ("RGB", {}), "rle": ("RGBA", {"compression": "tga_rle"})},
        "DDS": {
            "plain": ("RGBA", {}),
            **{form: ("RGBA", {"pixel_format": form}) for form in ("DXT1", "DXT5", "BC5")},
        },
        "PCX": {mode: (mode, {}) for mode in ("1", "L", "P", "RGB")},
        "SGI": {"plain": ("RGB", {}), "16-bit": ("L", {"bpc": 2})},
        "BLP": {"palette": ("P", {})},
        "QOI": {"plain": ("RGB", {})},
        "IM": {"plain": ("RGB", {})},
        "MSP": {"plain": ("1", {})},
        "SPIDER": {"plain": ("F", {})},
        "XBM": {"plain": ("1", {})},
        "EPS": {"plain": ("RGB", {})},
        "PDF": {"plain": ("RGB", {})},
    }
    packed = "group3 group4 tiff_ccitt tiff_lzw tiff_deflate tiff_adobe_deflate packbits"
    for name in f"{packed} jpeg zstd lzma webp tiff_raw_16".split():
        mode = "1" if name in ("group3", "group4", "tiff_ccitt") else "RGB"
        variants["TIFF"][name] = (mode, {"compression": name})
    for format, kinds in variants.items():
        for name, (mode, options) in kinds.items():
            # What this Pillow was built without, or a mode that a format cannot hold.
            with suppress(OSError, KeyError, TypeError, ValueError, RuntimeError):
                if options.get("save_all"):  # Pillow writes into pictures what it did
                    options = {**options, "append_images": [photo(seed=2), photo(seed=3)]}
                yield f"{format} {name}", file_of(photo(mode), format, **options)
    yield "TIFF tiled", tiled_tiff()
    preview = file_of(photo(), "JPEG", exif=exif(), comment=SECRET)
    yield "RAW preview", dng(preview, SIZE, orientation=6)
    yield "RAW plain preview", dng(file_of(photo(), "JPEG"), SIZE)
    yield "RAW small preview", dng(photo().tobytes(), SIZE, orientation=8)
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        yield "HEIF metadata", file_of(photo(), "HEIF", exif=exif(), xmp=XMP)
        more = [photo(seed=2), photo(seed=3)]
        yield "HEIF frames", file_of(photo(), "HEIF", save_all=True, append_images=more)
        yield "HEIF alpha", file_of(photo("RGBA"), "HEIF")
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401

        for mode in ("L", "LA", "RGB", "RGBA", "I;16", "F"):
            yield f"JXL {mode}", file_of(photo(mode), "JXL")
        about = {"exif": exif(), "xmp": XMP, "use_container": True}
        yield "JXL metadata", file_of(photo(), "JXL", **about)


def tiff(
    entries: dict[int, tuple[int, list[int]]], body: bytes = b"", following: int = 0
) -> bytes:
    """A little-endian TIFF of one directory: {tag: (type, values)}, then the body.

    The directory is at 8, the values that do not fit into it behind it; a value of -1 is
    where the body is.
    """
    after = 8 + 2 + 12 * len(entries) + 4
    room = sum(
        len(values) * size
        for kind, values in entries.values()
        if len(values) * (size := {3: 2, 4: 4}[kind]) > 4
    )
    start, table, behind = after + room, b"", b""
    for tag, (kind, values) in sorted(entries.items()):
        values = [start if value == -1 else value for value in values]
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            packed, behind = struct.pack("<I", after + len(behind)), behind + packed
        table += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + table
    return head + struct.pack("<I", following) + behind + body


def directory(at: int, entries: dict[int, tuple[str, tuple[int, ...] | bytes]]) -> bytes:
    """A directory of a little-endian TIFF, to lie at an offset, and what it refers to."""
    kinds = {"B": 1, "s": 2, "H": 3, "I": 4}
    table, behind = struct.pack("<H", len(entries)), b""
    end = at + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        if isinstance(values, bytes):
            data = values
        else:
            data = struct.pack(f"<{len(values)}{kind}", *values)
        table += struct.pack("<HHI", tag, kinds[kind], len(values))
        if len(data) > 4:
            table += struct.pack("<I", end + len(behind))
            behind += data + bytes(len(data) % 2)
        else:
            table += data.ljust(4, b"\0")
    return table + bytes(4) + behind


def dng(preview: bytes, size: tuple[int, int] = (640, 480), orientation: int = 1) -> bytes:
    """A RAW file: a preview in front, and in a directory below it what the sensor saw."""
    is_jpeg = preview[:2] in (b"\xff\xd8", b"")  # else RGB, byte by byte
    width, height = 64, 48
    sensor = struct.pack(f"<{width * height}H", *range(width * height))
    preview += bytes(len(preview) % 2)
    seen = 8 + len(preview)
    below = directory(
        seen + len(sensor),
        {
            254: ("I", (0,)),
            256: ("I", (width,)),
            257: ("I", (height,)),
            258: ("H", (16,)),
            259: ("H", (1,)),
            262: ("H", (32803,)),
            273: ("I", (seen,)),
            277: ("H", (1,)),
            278: ("I", (height,)),
            279: ("I", (len(sensor),)),
            33421: ("H", (2, 2)),
            33422: ("B", (0, 1, 1, 2)),
        },
    )
    when = seen + len(sensor) + len(below)
    times = directory(
        when, {36867: ("s", b"2021:05:03 14:07:00\0"), 36881: ("s", b"+02:00\0")}
    )
    top = when + len(times)
    above = directory(
        top,
        {
            254: ("I", (1,)),
            256: ("I", (size[0],)),
            257: ("I", (size[1],)),
            258: ("H", (8, 8, 8)),
            259: ("H", (7 if is_jpeg else 1,)),
            262: ("H", (6 if is_jpeg else 2,)),
            271: ("s", b"Canon\0"),
            272: ("s", b"Canon EOS 5D\0"),
            273: ("I", (8,)),
            274: ("H", (orientation,)),
            277: ("H", (3,)),
            278: ("I", (size[1],)),
            279: ("I", (len(preview),)),
            306: ("s", b"2021:05:03 14:07:00\0"),
            330: ("I", (seen + len(sensor),)),
            34665: ("I", (when,)),
            50706: ("B", (1, 4, 0, 0)),
        },
    )
    return b"II*\0" + struct.pack("<I", top) + preview + sensor + below + times + above


def tiled_tiff(
    size: tuple[int, int] = SIZE,
    tile: tuple[int, int] = (16, 16),
    compression: int = 1,
    body: bytes = bytes(256),
) -> bytes:
    """Grey, all of its tiles the same bytes."""
    count = -(-size[0] // tile[0]) * -(-size[1] // tile[1])
    return tiff(
        {
            256: (4, [size[0]]),
            257: (4, [size[1]]),
            258: (3, [8]),
            259: (3, [compression]),
            262: (3, [1]),
            277: (3, [1]),
            322: (4, [tile[0]]),
            323: (4, [tile[1]]),
            324: (4, [-1] * count),
            325: (4, [len(body)] * count),
        },
        body,
    )


# What is made by hand


def by_hand() -> Iterator[tuple[str, bytes]]:
    width, height = SIZE
    grey = photo("L").tobytes()
    icon = file_of(photo("RGBA", (32, 32)), "ICO", bitmap_format="bmp")
    yield "CUR icon", icon[:2] + b"\2" + icon[3:]
    pcx = file_of(photo("L"), "PCX")
    yield "DCX pages", struct.pack("<4I", 0x3ADE68B1, 16, 16, 0) + pcx
    cards = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2"]
    cards += [f"NAXIS1  = {width}", f"NAXIS2  = {height}", "END"]
    yield (
        "FITS plain",
        "".join(card.ljust(80) for card in cards).ljust(2880).encode() + grey,
    )
    yield "FLI frames", fli()
    mipmap = bytes(width * height * 3)
    head = struct.pack("<4s5i", b"FTEX", 0x14, width, height, 1, 1)
    yield "FTEX plain", head + struct.pack("<2iI", 1, 32, len(mipmap)) + mipmap
    brush = struct.pack(">5I4sI", 28 + 7, 2, width, height, 1, b"GIMP", 10)
    yield "GBR brush", brush + b"SECRET\0" + grey
    head = f"width {width}\nheight {height}\npixel n8\n".encode()
    yield "IMT plain", head + b"\f" + grey
    fields = {60: b"\1\0", 65: b"\1", 20: bytes([width]), 30: bytes([height]), 120: b"\1"}
    block = b"".join(
        struct.pack(">BBBH", 0x1C, 3, tag, len(value)) + value
        for tag, value in fields.items()
    )
    yield "IPTC plain", block + struct.pack(">BBBH", 0x1C, 8, 10, len(grey)) + grey
    words = [0] * 64
    words[1], words[8], words[9], words[10], words[13], words[33] = (
        4,
        height,
        width,
        1,
        1,
        256,
    )
    yield "MCIDAS area", struct.pack(">64i", *words) + grey
    head = b"\0\0\1\xb3" + bytes(
        [width >> 4, (width & 15) << 4 | height >> 8, height & 255]
    )
    yield "MPEG header", head + b"\x13\xff\xff\xe0" + bytes(64)
    yield "PCD header", b"PCD_OPA".ljust(2048, b"\0") + b"PCD_" + bytes(768 * 512 * 3 // 8)
    pixar = b"\x80\xe8\0\0".ljust(416, b"\0") + struct.pack("<HH", height, width)
    pixar = pixar.ljust(424, b"\0") + struct.pack("<HH", 14, 2)
    yield "PIXAR plain", pixar.ljust(1024, b"\0") + bytes(width * height * 3)
    yield (
        "PSD plain",
        (
            struct.pack(">4sH6sHIIHH", b"8BPS", 1, bytes(6), 1, height, width, 8, 1)
            + struct.pack(">IIIH", 0, 0, 0, 0)
            + grey
        ),
    )
    sun = struct.pack(">8I", 0x59A66A95, width + 1, height, 8, 0, 1, 0, 0)
    yield "SUN plain", sun + bytes((width + 1) * height)
    yield (
        "WMF placeable",
        (
            struct.pack("<IHHHHHH", 0x9AC6CDD7, 0, 0, 0, width, height, 96)
            + bytes(6)
            + b"\1\0\x09\0\0\3"
            + bytes(40)
        ),
    )
    rows = ",\n".join(f'"{"ab"[row % 2] * width}"' for row in range(height))
    yield (
        "XPM plain",
        (
            f'/* XPM */\nstatic char *x[] = {{\n"{width} {height} 2 1",\n'
            f'"a c #ff0000",\n"b c #00ff00",\n{rows}}};\n'
        ).encode(),
    )
    yield "XVTHUMB plain", b"P7 332\n#SECRET\n#END_OF_COMMENTS\n%d %d 255\n" % SIZE + grey
    yield "BUFR stub", b"BUFR" + bytes(60)
    yield "GRIB stub", b"GRIB" + bytes(3) + b"\1" + bytes(60)
    yield "HDF5 stub", b"\x89HDF\r\n\x1a\n" + bytes(60)
    yield (
        "PPM text",
        b"P3 # "
        + SECRET.encode()
        + b"\n%d %d 255\n" % SIZE
        + b"1 22 133 " * (width * height),
    )
    yield (
        "SVG plain",
        (
            b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="61" '
            b'height="47"><script>alert(1)</script><rect width="9" height="9"/></svg>'
        ),
    )


def fli() -> bytes:
    """One frame, its lines run-length encoded."""
    width, height = SIZE
    line = bytes([1, width, 7])
    chunk = struct.pack("<IH", 6 + len(line) * height, 15) + line * height
    frame = struct.pack("<IHH8x", 16 + len(chunk), 0xF1FA, 1) + chunk
    head = struct.pack("<IHHHHHHI", 128 + len(frame), 0xAF11, 1, width, height, 8, 3, 5)
    return head.ljust(128, b"\0") + frame


def seeds() -> dict[str, bytes]:
    """All of them by name; the name begins with Pillow's name of the format."""
    return {**dict(written()), **dict(by_hand())}


def recognised(data: bytes) -> str | None:
    """The format that Pillow, with all of its plugins, takes a file for."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return (image.format or "").upper()
    except Exception:  # nearly every kind
        return None
