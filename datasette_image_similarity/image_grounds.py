"""What is put behind transparent pictures, so that what they show can be seen.

Most are drawn for a white page. White shapes would vanish there, as all of them would be
the same picture: they are laid on black, and what has both white and black on grey.
"""

from __future__ import annotations

from PIL import Image

GROUNDS = (255, 0, 128)  # in order of preference
SIDE = 64  # pixels at which grounds are compared, whatever is made of the picture
CLEAR_STEP = 64  # levels of 255 between neighbours; more is not clearer
ENOUGH = 0.8  # of what the best ground shows


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
    """The first of GROUNDS on which nearly as many edges can be seen as on any."""
    import numpy as np

    small = picture.resize((SIDE, SIDE), Image.Resampling.BOX).convert("LA")
    grey, alpha = np.moveaxis(np.asarray(small, dtype=np.float64), 2, 0)
    alpha /= 255
    shown = []
    for level in GROUNDS:
        seen = grey * alpha + level * (1 - alpha)
        steps = (np.abs(np.diff(seen, axis=axis)) for axis in (0, 1))
        shown.append(sum(np.minimum(step, CLEAR_STEP).sum() for step in steps))
    return next(
        level
        for level, edges in zip(GROUNDS, shown, strict=True)
        if edges >= ENOUGH * max(shown)
    )
