"""A closer look at the originals of duplicates, to tell the original from its copies.

Decoding tells the format and what the camera noted; then pixels of a group are compared.

- *Enlarged?* A part of the larger picture is compared with the same part of a smaller one,
  enlarged here: what the larger one shows beyond it is its own detail. A picture enlarged
  without filtering has rows and columns twice.
- *Saved from another?* JPEG rounds the frequencies of blocks of 8 × 8 pixels to multiples
  of steps, which its file tells. A copy has the frequencies of its original, rounded to the
  steps of the copy; an original cannot be had from its copy. A lossless picture with just
  the pixels of a compressed one was made from it.

What was found is kept with the fingerprints, in `_image_similarity_hashes.seen`, as JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..images import Crop, Input, Request
from . import closer, hashes
from .facts import Facts, seen_in
from .looking import Looker
from .vectors import Stopped

if TYPE_CHECKING:
    import numpy as np

FACTS = Request()  # no pixels
PARTS = (512, 256, 128, 64)  # pixels a side of the part that is looked at
NOTED = ("taken_at", "camera", "software")  # of what the decoder tells
AT_ONCE = 100  # pictures a transaction
FREQUENCIES = 100  # the least that are no zeros, to tell by
# The share of frequencies that come out as in the copy: of copies from .94, of coarse ones
# seen as what finer ones were saved from up to .65 (re-saved in finer steps, from .72).
SAVED, LOST = 0.94, 0.65
# The share of pixels that are NEAR: of what was saved again losslessly or in FINER steps
# from .83, of what loses detail in COARSE steps (quality 93 and less) up to .8.
KEPT, NEAR, FINER, COARSE = 0.85, 1.5, 6.0, 8.0  # share, levels, factor, levels
LEEWAY = 0.5  # levels that rounding to pixels may move a frequency by
COMPARED = 3  # others that each picture is compared with
FACTOR = 1.15  # a side; what is less enlarged is cropped rather
# Of the finest detail of a smaller picture, how much the larger one has besides: enlarged
# ones up to .22 by bilinear and up to .13 by other filters, originals from .2.
REPEATED, OWN = 0.18, 0.26
TWICE = 0.76  # the change between rows that are one, by that between others
NOISE = 4.0  # mean square in levels, of detail too faint to tell


def look(looker: Looker, wanted: Iterable[int]) -> None:
    """Note what the originals of these items tell, of those not looked at before.

    Raises Stopped; what was noted by then stays.
    """
    items = {item: looker.items[item] for item in _unseen(looker.conn, wanted)}
    notes: dict[int, dict[str, Any]] = {}
    pictures = hashes.decoded(
        looker.conn,
        looker.collection,
        items,
        request=lambda item, original: FACTS if original else None,
        originals=True,
        decoders=looker.decoders,
    )
    for done, (item, _, picture) in enumerate(pictures, 1):
        if picture is not None:
            told = {name: picture.facts.get(name) for name in NOTED}
            placed = "latitude" in picture.facts  # but not where: some do not keep that
            told |= {"format": picture.format, "placed": placed, "steps": picture.steps}
            notes[item] = told
        if len(notes) == AT_ONCE:
            _note(looker.conn, items, notes)
            notes = {}
        looker.say("Looking at originals", done, len(items))
        if looker.stop():
            pictures.close()
            raise Stopped
    _note(looker.conn, items, notes)


def _unseen(conn: sqlite3.Connection, items: Iterable[int]) -> list[int]:
    """Those that have a fingerprint and were not looked at."""
    rows = conn.execute(
        "select i.id from json_each(?) j "
        "cross join _image_similarity_items i on i.id = j.value "
        "join _image_similarity_hashes h on h.item_id = i.id and h.sha256 = i.sha256 "
        "where h.seen is null",
        (json.dumps(list(items)),),
    )
    return [item for (item,) in rows]


def _part(size: tuple[int, int]) -> Request:
    """The middle of a picture, pixel by pixel, along the blocks of JPEG."""
    side = next((one for one in PARTS if one <= min(size)), 1)
    left, top = ((whole - side) // 16 * 8 for whole in size)
    return _pixels(size, (left, top, side, side), side, "nearest")


def _pixels(
    size: tuple[int, int], box: tuple[int, int, int, int], side: int, interpolation: str
) -> Request:
    """A box of pixels (left, top, width, height) as a square."""
    (across, down), (left, top, width, height) = size, box
    crop = Crop(left / across, top / down, width / across, height / down)
    return Request(input=Input(side, side, "squash", interpolation), crop=crop)


def _note(
    conn: sqlite3.Connection, items: dict[int, str], notes: dict[int, dict[str, Any]]
) -> None:
    """Add to what was noted before."""
    with db.transaction(conn):
        for item, found in notes.items():
            row = conn.execute(
                "select seen from _image_similarity_hashes "
                "where item_id = ? and sha256 = ?",
                (item, items[item]),
            ).fetchone()
            if row is not None:
                conn.execute(
                    "update _image_similarity_hashes set seen = ? where item_id = ?",
                    (json.dumps({**seen_in(row[0]), **found}), item),
                )


def compare(looker: Looker, group: Iterable[Facts]) -> None:
    """Note what the pictures of a group tell of each other, unless they have told before.

    `shows`: how many of a picture's pixels show something; of one that shows no more than a
    smaller one, that one's; None if it cannot be told. `source`: the SHA-256 of the one
    that it was saved from.
    """
    group = sorted(group, key=lambda one: one.pixels)
    digests = " ".join(sorted(one.sha256 for one in group))
    mates = hashlib.sha256(digests.encode()).hexdigest()
    if any(one.mates != mates for one in group):
        shows, sources = _shows(looker, group), _sources(looker, group)
        notes = {
            item: {"mates": mates, "shows": shows[item], "source": sources.get(item)}
            for item in shows
        }
        _note(looker.conn, looker.items, notes)


# Enlarged copies


def _shows(looker: Looker, group: list[Facts]) -> dict[int, int | None]:
    """By item, of a group by size."""
    smaller: list[Facts] = []
    shows: dict[int, int | None] = {}
    for one in group:
        least = one.pixels / FACTOR**2
        nearest = [other for other in smaller if 0 < other.pixels < least][-COMPARED:]
        shows[one.item_id] = one.pixels
        for other in reversed(nearest):
            own = _own_detail(looker, one, other)
            if own is not None and own <= REPEATED:
                shows[one.item_id] = shows[other.item_id]
                break
            if own is None or own < OWN:
                shows[one.item_id] = None
        smaller.append(one)
    return shows


def _own_detail(looker: Looker, large: Facts, small: Facts) -> float | None:
    """What a picture shows beyond a smaller one of it, in parts of its fine detail.

    None where that cannot be told.
    """
    squares = [looker.grey(one.item_id) for one in (large, small)]
    side = next((s for s in PARTS[1:] if s <= min(large.width, large.height)), None)
    if side is None or any(square is None for square in squares):
        return None
    box = _box(large, _richest(squares[0]), (side, side))
    other = _same_part(large, small, box, squares)
    requests = {
        large.item_id: _pixels((large.width, large.height), box, side, "nearest"),
        small.item_id: _pixels((small.width, small.height), other, side, "bicubic"),
    }
    pictures = _decoded(looker, requests)
    if len(pictures) < 2:
        return None
    whole = pictures[large.item_id]
    left, top = box[:2]
    if _repeats(whole, top, small.height / large.height) and _repeats(
        whole.T, left, small.width / large.width
    ):
        return 0.0
    over, _ = closer.laid_over(*(pictures[item][None] for item in requests))
    inner = slice(side // 8, -side // 8)  # laid over, an edge may be empty
    strength = (_fine(whole, 2 * side / max(other[2:]))[inner, inner] ** 2).mean()
    if strength < NOISE:
        return None
    apart = ((whole - over[0])[inner, inner] ** 2).mean()
    return float(apart / (strength + NOISE))


def _repeats(grey: np.ndarray, first: int, scale: float) -> bool:
    """Whether rows come twice, as enlarging without filtering leaves them.

    Float (s, s), from row `first` of a picture that may be enlarged by 1 / `scale`.
    """
    import numpy as np

    change = np.abs(np.diff(grey, axis=0)).mean(axis=1)
    for rounding in (-0.1, 0.1):
        rows = ((np.arange(first, first + len(grey)) + 0.5) * scale + rounding).astype(int)
        twice = np.diff(rows) == 0
        if change[twice].mean() < TWICE * change[~twice].mean():
            return True
    return False


def _same_part(
    large: Facts,
    small: Facts,
    box: tuple[int, int, int, int],
    squares: list[np.ndarray],
) -> tuple[int, int, int, int]:
    """Where a box of the larger picture is in the smaller one, in its pixels."""
    _, laid = closer.laid_over(*(square[None] for square in squares))
    wide, shift_x, high, shift_y = laid.place[0].tolist()
    left, top, width, height = box
    x = wide * ((left + width / 2) / large.width - 0.5) + shift_x + 0.5
    y = high * ((top + height / 2) / large.height - 0.5) + shift_y + 0.5
    size = (
        width * wide * small.width / large.width,
        height * high * small.height / large.height,
    )
    return _box(small, (x, y), size)


def _richest(square: np.ndarray) -> tuple[float, float]:
    """Where a grey square uint8 (s, s) has most detail, in parts of its sides."""
    import numpy as np

    fields = 8
    part = len(square) // fields
    cells = square.reshape(fields, part, fields, part).std(axis=(1, 3))
    row, column = np.unravel_index(cells[1:-1, 1:-1].argmax(), (fields - 2, fields - 2))
    return (column + 1.5) / fields, (row + 1.5) / fields


def _box(
    one: Facts, centre: tuple[float, float], size: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Pixels about a point given in parts of the sides: left, top, width, height."""
    box = []
    for middle, side, whole in zip(centre, size, (one.width, one.height), strict=True):
        length = max(1, min(whole, round(side)))
        box.append(
            (max(0, min(whole - length, round(middle * whole - length / 2))), length)
        )
    (left, width), (top, height) = box
    return left, top, width, height


def _decoded(looker: Looker, requests: dict[int, Request]) -> dict[int, np.ndarray]:
    """These parts of originals in grey, float32 (s, s), by item."""
    import numpy as np

    pictures = hashes.decoded(
        looker.conn,
        looker.collection,
        {item: looker.items[item] for item in requests},
        request=lambda item, original: requests[item] if original else None,
        originals=True,
        decoders=looker.decoders,
    )
    luma = np.array(closer.LUMA, np.float32)
    return {item: one.pixels @ luma for item, _, one in pictures if one is not None}


def _fine(grey: np.ndarray, factor: float) -> np.ndarray:
    """What a picture, float32 (s, s), loses when it is made smaller by a factor."""
    import numpy as np
    from PIL import Image

    side = len(grey)
    small = (max(8, round(side / factor)),) * 2
    image = Image.fromarray(grey).resize(small, Image.Resampling.LANCZOS)
    return grey - np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


# Saved copies


def _sources(looker: Looker, group: list[Facts]) -> dict[int, str]:
    """By item the SHA-256 of the picture of its size that it was saved from."""
    found: dict[int, str] = {}
    sizes = {(one.width, one.height) for one in group}
    for size in sizes:
        some = [one for one in group if (one.width, one.height) == size]
        some.sort(key=lambda one: one.bytes)
        if len(some) < 2 or min(size) < PARTS[-1]:
            continue
        parts = _decoded(looker, {one.item_id: _part(size) for one in some})
        some = [one for one in some if one.item_id in parts]
        for place, one in enumerate(some):
            for other in some[max(0, place - COMPARED) : place]:
                for original, copy in ((one, other), (other, one)):
                    if _is_saved_from(original, copy, parts):
                        found[copy.item_id] = original.sha256
    return found


def _is_saved_from(original: Facts, copy: Facts, parts: dict[int, np.ndarray]) -> bool:
    import numpy as np

    ours, theirs = parts[original.item_id], parts[copy.item_id]
    if not (copy.lossless or copy.steps) or original.lossless >= copy.lossless > 0:
        return False
    nearly = float((np.abs(ours - theirs) < NEAR).mean())
    if copy.lossless or _coarse(original) > FINER * _coarse(copy):
        coarse = _coarse(original) >= COARSE and nearly >= KEPT
        return coarse or bool((ours == theirs).all())
    saved = _returned(ours, theirs, copy.steps)
    if saved is None or saved < SAVED:
        return False
    if not original.steps:
        return nearly <= KEPT
    returned = _returned(theirs, ours, original.steps)
    return returned is not None and returned <= LOST


def _coarse(one: Facts) -> float:
    """The mean step; 0 if there are none."""
    return sum(one.steps) / 64


def _returned(grey: np.ndarray, copy: np.ndarray, steps: list[int]) -> float | None:
    """The share of a copy's frequencies that come of saving a picture in these steps.

    Both float (s, s), s a multiple of 8, along the blocks. None if there are too few.
    """
    import numpy as np

    step = np.reshape(steps, (8, 8)).astype(np.float32)
    before, after = (_frequencies(one) for one in (grey, copy))
    leeway = np.minimum(LEEWAY, step / 4)
    least, most = (np.round((before + way) / step) for way in (-leeway, leeway))
    level = np.round(after / step)
    telling = (level != 0) | (np.round(before / step) != 0)
    telling[:, 0, 0] = False  # brightness
    if telling.sum() < FREQUENCIES:
        return None
    return float(((least <= level) & (level <= most))[telling].mean())


def _frequencies(grey: np.ndarray) -> np.ndarray:
    """The discrete cosine transform of blocks: float (n, 8, 8)."""
    import numpy as np

    across = len(grey) // 8
    blocks = grey.reshape(across, 8, across, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    frequency, place = np.arange(8)[:, None], np.arange(8)[None]
    cosine = np.cos(np.pi * frequency * (2 * place + 1) / 16) / 2
    cosine[0] /= np.sqrt(2)
    return cosine @ (blocks - 128) @ cosine.T
