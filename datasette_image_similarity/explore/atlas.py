"""Thumbnails → texture atlases: sheets of many small pictures, as a map draws them.

A sheet is a square WebP of square tiles, row by row from the top left, `sheet // tile` to a
row. A slot's tile is number `slot % (sheet // tile) ** 2` of sheet number
`slot // (sheet // tile) ** 2`. A picture fills its tile's width or height and is in the
middle of the other: whole, never cropped.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..errors import ImageError
from ..images import DecoderPool, Input, Limits, Request
from .vectors import Say, Stopped

if TYPE_CHECKING:
    import numpy as np

# Tiles' sides in pixels, and up to how many pictures: with more of them, smaller tiles keep
# the textures of 100,000 pictures within 0.4 GB.
TILES = ((64, 5_000), (48, 25_000), (32, 1 << 31))
SHEETS = (256, 512, 1024, 2048)  # sides, in pixels
# A stored thumbnail has 320 pixels a side and some kilobytes. Who knows who stored it.
LIMITS = Limits(max_bytes=2_000_000, max_pixels=4_000_000, seconds=5)
GROUND = 127  # grey, in tiles without a picture
QUALITY = 80  # of the WebP


def sheet_and_tile(pictures: int) -> tuple[int, int]:
    """Sides, in pixels, of the sheets and the tiles for so many pictures."""
    tile = next(side for side, most in TILES if pictures <= most)
    fitting = (side for side in SHEETS if (side // tile) ** 2 >= pictures)
    return next(fitting, SHEETS[-1]), tile


def draw_sheets(
    thumbnails: Callable[[int, int], Sequence[bytes | None]],
    pictures: int,
    sheet: int,
    tile: int,
    *,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[bytes]:
    """The sheets, in order, as WebP.

    `thumbnails(start, end)` gives those of these slots, called in the caller's thread; None
    or what cannot be decoded leaves its tile empty. Raises Stopped.
    """
    import numpy as np

    across = sheet // tile
    request = Request(input=Input(size=tile, resize=tile, fit="pad"))
    workers = os.cpu_count() or 1
    with DecoderPool(LIMITS, workers) as decoders, ThreadPoolExecutor(workers) as threads:

        def decode(data: bytes | None) -> np.ndarray | None:
            if data is None or stop():
                return None
            try:
                return decoders.decode(data, request).pixels
            except ImageError:
                return None

        for start in range(0, pictures, across * across):
            end = min(start + across * across, pictures)
            pixels = np.full((sheet, sheet, 3), GROUND, np.uint8)
            drawn = threads.map(decode, thumbnails(start, end))
            for number, found in enumerate(drawn):
                if number % 50 == 0:
                    say("Drawing small pictures", start + number, pictures)
                if found is not None:
                    top, left = (tile * part for part in divmod(number, across))
                    pixels[top : top + tile, left : left + tile] = found
            if stop():
                raise Stopped
            yield _webp(pixels)
    say("Drawing small pictures", pictures, pictures)


def _webp(pixels: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=QUALITY, method=0)
    return out.getvalue()
