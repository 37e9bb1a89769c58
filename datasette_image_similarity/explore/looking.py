"""Pairs of a collection's pictures, compared in detail by `closer.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..images import Input, Request
from . import hashes
from .closer import SIDE, Squares, are_same, squares_of
from .vectors import Say, Stopped

if TYPE_CHECKING:
    import numpy as np

KEPT = 8192  # pictures in memory, of 70 KB each
AT_ONCE = 1024  # pairs
THUMBNAIL = 320  # pixels, the longest side of what is looked at
SQUARE = Request(input=Input(SIDE, SIDE, "squash", "bicubic"))


class Looker:
    """Compares pictures in detail. Each is decoded when a pair needs it, and kept a while.

    `items` are given with the SHA-256 of their pictures; places are rows of them.
    """

    def __init__(
        self,
        conn: sqlite3.Connection,
        collection: db.Collection,
        items: dict[int, str],
        decoders: hashes.Decoders,
        say: Say,
        stop: Callable[[], bool],
    ) -> None:
        self.conn, self.collection = conn, collection
        self.items, self.ids = items, list(items)
        self.sides = _sides(conn, collection)
        self.decoders, self.say, self.stop = decoders, say, stop
        self.seen: dict[int, Squares | None] = {}  # by item
        self.told: dict[tuple[int, int], bool] = {}  # by items, laid over in this order

    def same(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Which pairs of places, int64 (m,) twice, are the same in detail: bool (m,).

        Pictures that cannot be read any more are the same as none. Raises Stopped.
        """
        import numpy as np

        same = np.zeros(len(a), bool)
        for first in range(0, len(a), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            same[some] = self._same(
                [self.ids[place] for place in a[some].tolist()],
                [self.ids[place] for place in b[some].tolist()],
            )
            if len(a) > AT_ONCE:
                self.say("Comparing in detail", min(len(a), first + AT_ONCE), len(a))
            if self.stop():
                raise Stopped
        return same

    def grey(self, item: int) -> np.ndarray | None:
        """An item in grey: uint8 (SIDE, SIDE). None if it cannot be read any more."""
        self._read({item})
        square = self.seen.get(item)
        return square and square.grey[0]

    def _same(self, a: list[int], b: list[int]) -> list[bool]:
        pairs = list(zip(a, b, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self.told]
        self.told.update(zip(new, self._compared(new), strict=True))
        return [self.told[pair] for pair in pairs]

    def _compared(self, pairs: list[tuple[int, int]]) -> np.ndarray:
        import numpy as np

        self._read({item for pair in pairs for item in pair})
        ends = [(self.seen.get(one), self.seen.get(two)) for one, two in pairs]
        known = np.array([None not in pair for pair in ends], bool)
        same = np.zeros(len(pairs), bool)
        if known.any():
            one, two = (
                Squares(*map(np.concatenate, zip(*side, strict=True)))
                for side in zip(*(pair for pair in ends if None not in pair), strict=True)
            )
            sides = [min(self.sides.get(item, 0) for item in pair) for pair in pairs]
            same[known] = are_same(one, two, np.array(sides)[known])
        return same

    def _read(self, wanted: set[int]) -> None:
        missing = sorted(wanted - self.seen.keys())
        if len(self.seen) + len(missing) > KEPT:
            self.seen.clear()
            missing = sorted(wanted)
        some = {item: self.items[item] for item in missing}
        pictures = hashes.decoded(
            self.conn,
            self.collection,
            some,
            request=lambda *_: SQUARE,
            decoders=self.decoders,
        )
        for item, _, picture in pictures:
            self.seen[item] = picture and squares_of(picture.pixels[None])


def _sides(conn: sqlite3.Connection, collection: db.Collection) -> dict[int, float]:
    """By item: how many pixels a side a square has that shows as much as its thumbnail."""
    rows = conn.execute(
        "select id, width, height from _image_similarity_items where collection_id = ?",
        (collection.id,),
    )
    return {
        item: (width * height) ** 0.5 * min(1, THUMBNAIL / max(width, height))
        for item, width, height in rows
        if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0
    }
