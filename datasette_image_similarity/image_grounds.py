"""What is put behind transparent pictures, so that what they show can be seen.

Most are drawn for a white page, where white shapes cannot be seen: these are laid on
black, and pictures of both white and black on grey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np

# In order of preference; the last two for pictures of white, black and middle grey.
GROUNDS = (255, 0, 128, 192, 64)
SIDE = 64  # pixels at which grounds are compared, whatever is made of the picture
CLEAR_STEP = 64  # levels of 255 between two colours; more is not clearer
ENOUGH = 0.9  # of what the best ground shows
# Each pixel and the one above it, each and the one to its left
LATER, EARLIER, ALL = slice(1, None), slice(None, -1), slice(None)
NEIGHBOURS = (((LATER, ALL), (EARLIER, ALL)), ((ALL, LATER), (ALL, EARLIER)))


def on_ground(picture: Image.Image) -> Image.Image:
    """An LA or RGBA picture as L or RGB, on the ground that it was chosen for."""
    mode = "L" if picture.mode == "LA" else "RGB"
    alpha = picture.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return picture.convert(mode)
    level = best_ground(picture)
    ground = Image.new(mode, picture.size, (level,) * len(mode))
    ground.paste(picture.convert(mode), mask=alpha)
    return ground


def best_ground(picture: Image.Image) -> int:
    """The first of GROUNDS that shows nearly as many of the edges as any.

    What counts is the colour of what is drawn, not how thin it is: half of a signature
    in black must not outweigh the other half in white.
    """
    import numpy as np

    small = picture.resize((SIDE, SIDE), Image.Resampling.BOX).convert("LA")
    grey, alpha = np.moveaxis(np.asarray(small, dtype=np.float64), 2, 0)
    shown = np.zeros(len(GROUNDS))
    for one, other in NEIGHBOURS:
        inside = np.minimum(alpha[one], alpha[other])
        shown += (inside * clearness(grey[one] - grey[other])).sum()
        outline = alpha[one] - alpha[other]
        drawn = np.where(outline > 0, grey[one], grey[other])
        shown += [(abs(outline) * clearness(drawn - level)).sum() for level in GROUNDS]
    return GROUNDS[int(np.argmax(shown >= ENOUGH * shown.max()))]


def clearness(steps: np.ndarray) -> np.ndarray:
    """How well steps between two greys are seen, from 0 to 1."""
    return (abs(steps) / CLEAR_STEP).clip(max=1)
