"""Vectors in a store, by item: items are found by the ids of their rows, and back.

What has been written here and not yet sent there waits in `_image_similarity_unsent`, in
the same transaction as its items; `sending.py` sends it. A hit whose SHA-256 is not its
item's is of a picture that was there before, and is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from .. import database as db
from .ids import entry_id, key_of_id
from .opening import store_of

if TYPE_CHECKING:
    import numpy as np

    from . import VectorIndex, Where

AT_ONCE = 1000  # vectors read at once
MOST = 16_384  # hits of one search
ITEM = "select id, sha256 from _image_similarity_items where collection_id = ? and pk = ?"


class RemoteVectors:
    """A collection's vectors in its store: `items.ItemVectors`."""

    most = MOST

    def __init__(self, conn: sqlite3.Connection, collection: db.Collection) -> None:
        self.conn, self.collection = conn, collection
        self.index: VectorIndex = store_of(conn, collection)

    @cached_property
    def source(self) -> db.SourceTable:
        return db.source_of(self.conn, self.collection)

    @property
    def where(self) -> Where:
        return {"source": self.collection.store_id}

    def id_of(self, key: db.Key) -> str:
        """The id of a row's vector."""
        compound = len(self.source.key_columns) > 1
        return entry_id(self.collection.store_id, key, compound=compound)

    def items_of(self, ids: Iterable[str]) -> dict[str, tuple[int, str]]:
        """Item and SHA-256 by id; those without an item are left out."""
        found = {}
        for id in ids:
            key = self.source.find(self.conn, key_of_id(id))
            row = (
                None if key is None else self.conn.execute(ITEM, (self.collection.id, key))
            )
            row = row and row.fetchone()
            if row:
                found[id] = row[0], row[1]
        return found

    def _ids(self, items: Iterable[int]) -> dict[str, int]:
        """Items by the ids of their vectors."""
        ids = json.dumps([int(item) for item in items])
        sql = f"select i.id, i.pk from {db.ITEMS_BY_ID} where i.collection_id = :collection"
        rows = self.conn.execute(sql, {"ids": ids, "collection": self.collection.id})
        return {self.id_of(row[1]): row[0] for row in rows}

    def get(self, items: Iterable[int]) -> list[tuple[int, bytes]]:
        waiting = iter(items)
        found = []
        while some := self._ids(islice(waiting, AT_ONCE)):
            vectors = self.index.vectors(list(some))
            found += [(some[id], vector) for id, vector in vectors.items()]
        return found

    def scan(self) -> Iterator[tuple[int, bytes]]:
        sql = (
            "select id from _image_similarity_items where collection_id = ? and id > ? "
            "order by id limit ?"
        )
        last = -(2**63)
        while True:
            rows = self.conn.execute(sql, (self.collection.id, last, AT_ONCE)).fetchall()
            if not rows:
                return
            yield from self.get(row[0] for row in rows)
            last = rows[-1][0]

    def distances(
        self,
        vector: bytes,
        items: Iterable[int] | None = None,
        metric: str | None = None,
    ) -> list[tuple[int, float | None]]:
        import numpy as np

        asked = np.frombuffer(vector, "<f4").astype(np.float64)
        rows = iter(self.scan() if items is None else self.get(sorted(items)))
        found: list[tuple[int, float | None]] = []
        while block := list(islice(rows, AT_ONCE)):
            block = [(item, data) for item, data in block if len(data) == len(vector)]
            matrix = np.frombuffer(b"".join(data for _, data in block), "<f4")
            apart = _distances(
                matrix.reshape(-1, len(asked)).astype(np.float64),
                asked,
                metric or self.collection.metric,
            )
            apart = [None if np.isnan(one) else float(one) for one in apart]
            found += zip((item for item, _ in block), apart, strict=True)
        return found

    def nearest(
        self, vector: bytes, k: int, among: set[int] | None = None
    ) -> list[tuple[int, float | None]]:
        where = dict(self.where)
        if among is not None:
            where["id"] = list(self._ids(among))
        hits = self.index.search(vector, min(k, MOST), where)
        items = self.items_of([hit.id for hit in hits])
        return [
            (items[hit.id][0], hit.distance)
            for hit in hits
            if hit.id in items and items[hit.id][1] == hit.sha256
        ]


def _distances(vectors: np.ndarray, asked: np.ndarray, metric: str) -> np.ndarray:
    """Distances (n,) of vectors (n, d) to one; NaN where a vector has none."""
    import numpy as np

    if metric == "l2":
        return np.linalg.norm(vectors - asked, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked)
        return 1 - vectors @ asked / lengths
