"""A closer look at the originals of duplicates, to tell the original from its copies.

Decoding tells the format and what the camera noted; then the pixels are looked at.

- *Enlarged?* A part of the larger picture is compared with the same part of a smaller one,
  enlarged here: what the larger one shows beyond it is its own detail.
- *Compressed?* JPEG rounds the frequencies of blocks of 8 × 8 pixels to multiples of steps.
  Saved again as PNG, or as JPEG of a higher quality, the pixels still have these steps
  (Z. Fan, R. de Queiroz, "Identification of bitmap compression history", 2003).

What was found is kept with the fingerprints, in `_image_similarity_hashes.seen`, as JSON.
"""

from __future__ import annotations

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

PARTS = (512, 256, 128, 64)  # pixels a side of the part that is looked at
NOTED = ("taken_at", "camera", "software")  # of what the decoder tells
AT_ONCE = 100  # pictures a transaction
LOW = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1))  # frequencies of a block
STEPS = range(2, 61)  # levels
BLOCKS = 30  # the least with a frequency, to tell its steps by
ROUNDED = 0.5  # mean cosine of multiples of a step that are off by a fifth of it
COMPARED = 3  # smaller pictures that each is compared with
FACTOR = 1.15  # a side; what is less enlarged is cropped rather
# Of the finest detail of a smaller picture, how much the larger one has besides: enlarged
# ones up to .22 by bilinear and up to .13 by other filters, originals from .2.
REPEATED, OWN = 0.18, 0.26
NOISE = 4.0  # mean square in levels, of detail too faint to tell


def look(looker: Looker, wanted: Iterable[int]) -> None:
    """Note what the originals of these items tell, of those not looked at before.

    Raises Stopped; what was noted by then stays.
    """
    sizes = _sizes(looker.conn, wanted)
    items = {item: looker.items[item] for item in sizes}

    def part(item: int, original: bool) -> Request | None:
        return _part(sizes[item]) if original else None

    notes: dict[int, dict[str, Any]] = {}
    pictures = hashes.decoded(
        looker.conn,
        looker.collection,
        items,
        request=part,
        originals=True,
        decoders=looker.decoders,
    )
    for done, (item, _, picture) in enumerate(pictures, 1):
        if picture is not None:
            grey = picture.pixels @ closer.LUMA
            step = None if len(grey) < PARTS[-1] else compression_step(grey)
            told = {name: picture.facts.get(name) for name in NOTED}
            placed = "latitude" in picture.facts  # but not where: some do not keep that
            notes[item] = {"format": picture.format, "placed": placed, "step": step, **told}
        if len(notes) == AT_ONCE:
            _note(looker.conn, items, notes)
            notes = {}
        looker.say("Looking at originals", done, len(items))
        if looker.stop():
            pictures.close()
            raise Stopped
    _note(looker.conn, items, notes)


def _sizes(conn: sqlite3.Connection, items: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Width and height of those that have a fingerprint and were not looked at."""
    rows = conn.execute(
        "select i.id, i.width, i.height from json_each(?) j "
        "cross join _image_similarity_items i on i.id = j.value "
        "join _image_similarity_hashes h on h.item_id = i.id and h.sha256 = i.sha256 "
        "where h.seen is null and typeof(i.width) = 'integer' and i.width > 0 "
        "and typeof(i.height) = 'integer' and i.height > 0",
        (json.dumps(list(items)),),
    )
    return {item: (width, height) for item, width, height in rows}


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


def compression_step(grey: np.ndarray) -> float | None:
    """The median step that low frequencies of blocks of 8 × 8 were rounded to, in levels.

    `grey` float (s, s), s a multiple of 8, along the blocks. 0 without a trace of rounding,
    None where too little is in the picture to tell.
    """
    import numpy as np

    across = len(grey) // 8
    blocks = grey.reshape(across, 8, across, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    frequency, place = np.arange(8)[:, None], np.arange(8)[None]
    cosine = np.cos(np.pi * frequency * (2 * place + 1) / 16) / 2
    cosine[0] /= np.sqrt(2)
    found = cosine @ (blocks - 128) @ cosine.T
    steps = [step for u, v in LOW if (step := _step(found[:, u, v])) is not None]
    if len(steps) < len(LOW) // 2:
        return None
    return float(np.median(steps))


def _step(values: np.ndarray) -> int | None:
    """The largest step of which nearly all values are multiples; 0: none."""
    import numpy as np

    fits = {}
    for step in STEPS:
        some = values[np.abs(values) > step / 2]
        if len(some) >= BLOCKS:
            fits[step] = np.cos(2 * np.pi * some / step).mean()
    if not fits:
        return None
    best = max(fits.values())
    if best < ROUNDED:
        return 0
    return max(step for step, fit in fits.items() if fit >= 0.85 * best)


# Enlarged copies


def compare_sizes(looker: Looker, group: Iterable[Facts]) -> None:
    """Note of each picture of a group how many of its pixels show something.

    Of those that show no more than a smaller one, that one's. Nothing is noted of pictures
    that cannot be compared.
    """
    smaller: list[tuple[Facts, int | None]] = []
    notes = {}
    for one in sorted(group, key=lambda one: one.pixels):
        least = one.pixels / FACTOR**2
        nearest = [pair for pair in smaller if 0 < pair[0].pixels < least][-COMPARED:]
        shows: int | None = one.pixels
        for other, shown in reversed(nearest):
            own = _own_detail(looker, one, other)
            if own is not None and own <= REPEATED:
                shows = shown
                break
            if own is None or own < OWN:
                shows = None
        smaller.append((one, shows))
        notes[one.item_id] = {"shows": shows}
    _note(looker.conn, looker.items, notes)


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
    found: list[float] = []
    for interpolation in ("bicubic", "nearest"):
        requests = {
            large.item_id: _pixels((large.width, large.height), box, side, "nearest"),
            small.item_id: _pixels((small.width, small.height), other, side, interpolation),
        }
        pictures = _decoded(looker, requests)
        if len(pictures) < 2:
            return None
        over, _ = closer.laid_over(*(pictures[item][None] for item in requests))
        inner = slice(side // 8, -side // 8)  # laid over, an edge may be empty
        whole = pictures[large.item_id]
        strength = (_fine(whole, 2 * side / max(other[2:]))[inner, inner] ** 2).mean()
        if strength < NOISE:
            return None
        apart = ((whole - over[0])[inner, inner] ** 2).mean()
        found.append(float(apart / (strength + NOISE)))
        if found[0] <= REPEATED:
            break
    return min(found)


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
