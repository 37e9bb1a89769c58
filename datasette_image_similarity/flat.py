"""Pictures that show nothing: one colour, blank paper, a lens cap, an evenly lit wall."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

GRID = 16  # fields a side that are compared: noise and texture average out in them
# In levels of 255. Of 1,300 photos the flattest had 47 levels of detail; noise, paper and
# JPEG's blocks reach 4, and one short word on an empty page has 6.
DETAIL_LEVELS = 5
SHADING_LEVELS = 24  # a slope or a vignette, as scanned paper has


def is_flat(pixels: np.ndarray) -> bool:
    """Whether a picture has nothing to tell it from others by.

    `pixels` are uint8 (height, width, 3) or (height, width), of 16 pixels a side or more:
    as decoded at 32 × 32 or as an encoder sees it. A picture of nothing but fine even
    texture is flat as well.
    """
    return detail(pixels) < DETAIL_LEVELS


def detail(pixels: np.ndarray) -> float:
    """How far the mean colours of 16 × 16 fields differ, in levels of 255.

    One faint smooth curve of second order, as the light falls on paper, does not count.
    """
    import numpy as np

    edges = [np.arange(GRID) * side // GRID for side in pixels.shape[:2]]
    sums = np.add.reduceat(pixels.astype(np.float64), edges[0], axis=0)
    sums = np.add.reduceat(sums, edges[1], axis=1).reshape(GRID * GRID, -1)
    sides = [
        np.diff(edge, append=side)
        for edge, side in zip(edges, pixels.shape[:2], strict=True)
    ]
    fields = sums / np.outer(*sides).reshape(-1, 1)
    spread = np.ptp(fields, axis=0).max()
    if spread > SHADING_LEVELS:
        return float(spread)
    y, x = np.mgrid[-1 : 1 : GRID * 1j, -1 : 1 : GRID * 1j].reshape(2, -1)
    curve = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    left = fields - curve @ np.linalg.lstsq(curve, fields, rcond=None)[0]
    return float(np.ptp(left, axis=0).max())
