"""Which frame of an animation stands for it: the first, unless that shows nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from PIL import Image

from .flat import DETAIL_LEVELS

# Of other formats the author has said which picture is the main one.
SEQUENCES = {"GIF", "PNG", "WEBP", "AVIF", "TIFF"}
MAX_FRAMES = 240  # ten seconds of a film
MAX_PIXELS = 100_000_000  # of all frames looked at: some three seconds of work
WORTH_LEVELS = 10  # of detail, for which the first frame is given up
CLEAR_LEVELS = 48  # of detail, at which the search ends: hardly a photo has less


def seek_what_shows(picture: Image.Image, detail: Callable[[Image.Image], float]) -> None:
    """Load a frame of an animation that shows something, if there is one.

    `detail` returns how much a frame shows, in levels of 255. The first frame stays unless
    it is flat. Then the first clear one is chosen; if none is clear, the clearest. How many
    are looked at depends on their size, not on time, so each machine chooses the same.
    """
    picture.load()
    if picture.format not in SEQUENCES or not is_sequence(picture):
        return
    found = [detail(picture)]
    if found[0] >= DETAIL_LEVELS:
        return
    size = picture.size
    count = min(MAX_FRAMES, MAX_PIXELS // (size[0] * size[1]))
    with suppress(Exception):  # no more frames, or a damaged one
        while len(found) < count and found[-1] < CLEAR_LEVELS:
            picture.seek(len(found))
            picture.load()
            if picture.size != size:  # a page of a document, or a smaller copy
                break
            found.append(detail(picture))
    most = max(found)
    picture.seek(found.index(most) if most >= WORTH_LEVELS else 0)
    picture.load()


def is_sequence(picture: Image.Image) -> bool:
    try:
        return getattr(picture, "is_animated", False)
    except Exception:  # what follows the first frame is damaged
        return False
