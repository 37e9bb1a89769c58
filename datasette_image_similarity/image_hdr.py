"""High dynamic range (PQ and HLG) as sRGB.

Such pictures have light up to fifty times that of white paper, and wider colours. Shown
as if they were sRGB they are grey and pale. White (203 cd/m², ITU-R BT.2408) becomes
nearly white, what is brighter is pressed together above it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from PIL import Image, ImageFilter

from .image_boxes import coding

if TYPE_CHECKING:
    import numpy as np

PQ, HLG = 16, 18  # transfer functions of ITU-T H.273
WHITE = 203  # cd/m²
HLG_PEAK = 1000  # cd/m²
KNEE = 0.8  # of white: up to here nothing changes
GRID = 33  # a side of the table of colours
# Linear RGB of BT.2020 and of Display P3 as linear sRGB.
TO_SRGB = {
    9: (
        (1.660491, -0.587641, -0.072850),
        (-0.124550, 1.132900, -0.008349),
        (-0.018151, -0.100579, 1.118730),
    ),
    12: (
        (1.224940, -0.224940, 0.0),
        (-0.042057, 1.042057, 0.0),
        (-0.019638, -0.078636, 1.098274),
    ),
}


def hdr_coding(
    picture: Image.Image, data: bytes, properties: dict[bytes, list[bytes]]
) -> tuple[int, int] | None:
    """Primaries and transfer function of a picture of high dynamic range, else None."""
    found = None
    if picture.format == "HEIF":
        nclx = picture.info.get("nclx_profile") or {}
        found = nclx.get("color_primaries"), nclx.get("transfer_characteristics")
    elif picture.format == "AVIF":
        found = coding(properties)
    elif picture.format == "PNG":
        at = data.find(b"\0\0\0\4cICP", 0, data.find(b"IDAT"))
        found = (data[at + 8], data[at + 9]) if at > 0 else None
    return found if found and found[1] in (PQ, HLG) else None


def tone_mapped(picture: Image.Image, coding: tuple[int, int]) -> Image.Image:
    """An RGB picture in that coding as sRGB."""
    return picture.filter(table(*coding))


@lru_cache(maxsize=4)
def table(primaries: int, transfer: int) -> ImageFilter.Color3DLUT:
    import numpy as np

    signal = np.linspace(0, 1, GRID)
    blue, green, red = np.meshgrid(signal, signal, signal, indexing="ij")
    colours = np.stack([red, green, blue], axis=-1).reshape(-1, 3)
    light = from_pq(colours) if transfer == PQ else from_hlg(colours)
    if primaries in TO_SRGB:
        light = light @ np.array(TO_SRGB[primaries]).T
    light = np.maximum(light, 0)
    over = np.maximum(light - KNEE, 0)
    light = np.minimum(light, KNEE) + (1 - KNEE) * (1 - np.exp(-over / (1 - KNEE)))
    return ImageFilter.Color3DLUT(GRID, in_srgb_curve(light).ravel().tolist())


def from_pq(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: light, white being 1."""
    import numpy as np

    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = signal ** (1 / m2)
    return (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1) * (10_000 / WHITE)


def from_hlg(signal: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100: light on a screen of 1,000 cd/m², white being 1."""
    import numpy as np

    a, b, c = 0.17883277, 0.28466892, 0.55991073
    high = (np.exp((signal - c) / a) + b) / 12
    scene = np.where(signal <= 0.5, signal**2 / 3, high)
    bright = scene @ np.array([0.2627, 0.6780, 0.0593])
    return scene * (bright[:, None] ** 0.2) * (HLG_PEAK / WHITE)


def in_srgb_curve(light: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1."""
    import numpy as np

    low = light * 12.92
    return np.where(light <= 0.0031308, low, 1.055 * light ** (1 / 2.4) - 0.055)
