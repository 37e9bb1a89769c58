"""Which formats are read, and how their files end.

The decoder (image_worker.py) reads these formats and no others; the listings (sources.py)
look for the suffixes that Pillow and the installed extras have for them. Importing this
module loads no Pillow; the first question about a suffix does.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

# Pillow's module of each format. Not TGA: it has no signature, so any file could pass for
# one. MPO is a JPEG with more JPEGs behind it.
PILLOW = {
    "JPEG": "JpegImagePlugin",
    "MPO": "MpoImagePlugin",
    "PNG": "PngImagePlugin",
    "GIF": "GifImagePlugin",
    "WEBP": "WebPImagePlugin",
    "BMP": "BmpImagePlugin",
    "DIB": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "PPM": "PpmImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "AVIF": "AvifImagePlugin",
}
IN_WORDS = "JPEG, PNG, GIF, WebP, AVIF, HEIC, TIFF, BMP, PPM, JPEG 2000, JPEG XL or RAW"


class Extra(NamedTuple):
    """A format that needs a package of its own, and the extra of ours that installs it."""

    words: str
    package: str
    module: str
    extra: str
    suffixes: str  # with spaces between them

    @property
    def remedy(self) -> str:
        """What to install, as a sentence."""
        return (
            f"{self.words} needs {self.package}: "
            f"pip install 'datasette-image-similarity[{self.extra}]'"
        )

    @property
    def installed(self) -> bool:
        return find_spec(self.module) is not None


# Suffixes by hand: asking pillow-heif would register it for the whole process, and
# LibRaw goes by content and has no list.
HEIC_SUFFIXES = ".heic .heics .heif .heifs .hif"
RAW_SUFFIXES = (
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf "
    ".pef .raf .rw2 .rwl .sr2 .srf .srw .x3f"
)
EXTRAS = {
    "HEIC": Extra("HEIC", "pillow-heif", "pillow_heif", "heic", HEIC_SUFFIXES),
    "JXL": Extra("JPEG XL", "pillow-jxl-plugin", "pillow_jxl", "jxl", ".jxl"),
    "RAW": Extra("RAW", "rawpy", "rawpy", "raw", RAW_SUFFIXES),
}


@cache
def formats_by_suffix() -> dict[str, str]:
    """The format of each suffix, as `Decoded.format` calls it, extras or not installed.

    Suffixes are in lower case, with their dot, in alphabetical order.
    """
    from PIL import Image

    found = {}
    openers = load_pillow()
    for suffix, name in Image.EXTENSION.items():  # `registered_extensions()` loads all
        if name in PILLOW:
            found[suffix] = name if name in openers else "JPEG"
    for name, extra in EXTRAS.items():
        found.update(dict.fromkeys(extra.suffixes.split(), name))
    return dict(sorted(found.items()))


@cache
def picture_suffixes() -> tuple[str, ...]:
    """How files end that are read here: in lower case, with their dot, sorted."""
    missing = {name for name, extra in EXTRAS.items() if not extra.installed}
    return tuple(s for s, name in formats_by_suffix().items() if name not in missing)


def suffix_of(name: str) -> str:
    """How to name a file of this format, as `Decoded.format` calls it: ".jpg"."""
    usual = {"JPEG": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif", "RAW": ".dng"}
    return usual.get(name) or f".{name.lower()}"


def accepted() -> str:
    """The attribute `accept` of a file field; browsers do not know every suffix."""
    return ",".join(("image/*", *picture_suffixes()))


def remedy(suffix: str) -> str | None:
    """What to install to read files that end so, as a sentence; None if nothing helps."""
    name = formats_by_suffix().get(suffix.lower())
    extra = EXTRAS.get(name or "")
    return extra.remedy if extra and not extra.installed else None


def load_pillow() -> list[str]:
    """Load the modules in `PILLOW`, as Pillow would load all of its forty; the formats that
    `Image.open` can be asked for.
    """
    from PIL import Image

    for module in PILLOW.values():
        import_module(f"PIL.{module}")
    return [name for name in PILLOW if name in Image.OPEN]
