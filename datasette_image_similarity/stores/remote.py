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
from .ids import entry_id, find_key, key_of_id, readings
from .opening import store_of

if TYPE_CHECKING:
    import numpy as np

    from . import Found, VectorIndex, Where

AT_ONCE = 1000  # vectors read at once
MOST = 16_384  # hits of one search
KEYS_AT_ONCE = 100  # looked up in one statement: each may be of three types
UNSENT = 20_000  # so many that wait to be sent are compared one by one, not more


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

    def try_out(self) -> None:
        """Raise StoreError where the store cannot be asked now."""
        self.index.ids("", 1, self.where)

    def id_of(self, key: db.Key) -> str:
        """The id of a row's vector."""
        return entry_id(self.collection.store_id, self.source.parts(key))

    def items_of(self, ids: Iterable[str]) -> dict[str, tuple[int, str]]:
        """Item and SHA-256 by id; those without an item are left out."""
        waiting = iter(ids)
        found = {}
        while some := list(islice(waiting, KEYS_AT_ONCE)):
            known = set(some)
            keys = [key for id in some for key in self._keys(key_of_id(id))]
            sql = (
                "select pk, id, sha256 from _image_similarity_items where "
                f"collection_id = ? and pk in ({', '.join('?' * len(keys))})"
            )
            for pk, item, sha256 in self.conn.execute(sql, (self.collection.id, *keys)):
                id = self.id_of(pk)
                if id in known:
                    found[id] = item, sha256
        return found

    def _keys(self, parts: list[str]) -> list[db.Key]:
        """What keys an id's may have been: ids do not tell 1 from "1"."""
        if len(self.source.key_columns) == 1:
            return readings(parts[0]) if len(parts) == 1 else []
        key = find_key(self.conn, self.source, parts)
        return [] if key is None else [key]

    def _ids(self, items: Iterable[int]) -> dict[str, int]:
        """Items by the ids of their vectors."""
        ids = json.dumps([int(item) for item in items])
        sql = f"select i.id, i.pk from {db.ITEMS_BY_ID} where i.collection_id = :collection"
        rows = self.conn.execute(sql, {"ids": ids, "collection": self.collection.id})
        return {self.id_of(row[1]): row[0] for row in rows}

    def get(self, items: Iterable[int]) -> list[tuple[int, bytes]]:
        waiting = iter(items)
        found = []
        while some := list(islice(waiting, AT_ONCE)):
            here = self._unsent(some)
            found += here.items()
            ids = self._ids(item for item in some if item not in here)
            vectors = self.index.vectors(list(ids)) if ids else {}
            found += [(ids[id], vector) for id, vector in vectors.items()]
        return found

    def _unsent(self, items: Iterable[int]) -> dict[int, bytes]:
        """Those of these items whose vectors wait to be sent, with these."""
        sql = (
            f"select i.id, u.vector from {db.ITEMS_BY_ID} join _image_similarity_unsent u "
            "on u.collection_id = i.collection_id and u.pk = i.pk "
            "where i.collection_id = :collection and u.vector is not null"
        )
        params = {"ids": json.dumps(list(items)), "collection": self.collection.id}
        return dict(self._whole(self.conn.execute(sql, params)))

    def _all_unsent(self) -> dict[int, bytes]:
        """Items whose vectors wait to be sent, with these: UNSENT of them at most."""
        sql = (
            "select i.id, u.vector from _image_similarity_unsent u "
            "cross join _image_similarity_items i "
            "on i.collection_id = u.collection_id and i.pk = u.pk "
            "where u.collection_id = ? and u.vector is not null order by u.id limit ?"
        )
        return dict(self._whole(self.conn.execute(sql, (self.collection.id, UNSENT))))

    def _whole(self, rows: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """Without vectors of another length: a database may come from anybody."""
        length = 4 * self.collection.dimensions
        for item, vector in rows:
            if isinstance(vector, bytes) and len(vector) == length:
                yield item, vector

    def scan(self) -> Iterator[tuple[int, bytes]]:
        for rows in db.item_pages(self.conn, self.collection, "i.id", AT_ONCE):
            yield from self.get(row[0] for row in rows)

    def distances(
        self,
        vector: bytes,
        items: Iterable[int] | None = None,
        metric: str | None = None,
    ) -> list[tuple[int, float | None]]:
        rows = self.scan() if items is None else self.get(sorted(items))
        return self._apart(vector, rows, metric or self.collection.metric)

    def _apart(
        self, vector: bytes, rows: Iterable[tuple[int, bytes]], metric: str
    ) -> list[tuple[int, float | None]]:
        """Distances of these vectors to one."""
        import numpy as np

        asked = np.frombuffer(vector, "<f4").astype(np.float64)
        rows = iter(rows)
        found: list[tuple[int, float | None]] = []
        while block := list(islice(rows, AT_ONCE)):
            block = [(item, data) for item, data in block if len(data) == len(vector)]
            matrix = np.frombuffer(b"".join(data for _, data in block), "<f4")
            matrix = matrix.reshape(-1, len(asked)).astype(np.float64)
            apart = [
                None if np.isnan(one) else float(one)
                for one in _distances(matrix, asked, metric)
            ]
            found += zip((item for item, _ in block), apart, strict=True)
        return found

    def nearest(
        self, vector: bytes, k: int, among: set[int] | None = None
    ) -> list[tuple[int, float | None]]:
        """As `items.ItemVectors`; with what ties with the last, so that pages that begin
        where others end fit together."""
        where = dict(self.where)
        if among is not None:
            where["id"] = list(self._ids(among))
        unsent = self._all_unsent()
        if among is not None:
            unsent = {item: unsent[item] for item in unsent.keys() & among}
        asked = k + 1
        while True:
            hits = self.index.search(vector, min(asked, MOST), where)
            rows = self._of_items(hits, unsent)
            enough = len(rows) > k and rows[-1][1] > rows[k - 1][1]
            if enough or len(hits) < asked:
                break
            asked *= 4
        rows += self._apart(vector, unsent.items(), self.collection.metric)
        return sorted(rows, key=lambda row: (row[1] is None, row[1], row[0]))

    def _of_items(
        self, hits: list[Found], unsent: Iterable[int]
    ) -> list[tuple[int, float | None]]:
        """Hits as items: not what has gone, is another picture now, or waits."""
        items = self.items_of(hit.id for hit in hits)
        return [
            (items[hit.id][0], hit.distance)
            for hit in hits
            if hit.id in items
            and items[hit.id][1] == hit.sha256
            and items[hit.id][0] not in unsent
        ]


def _distances(vectors: np.ndarray, asked: np.ndarray, metric: str) -> np.ndarray:
    """Distances (n,) of vectors (n, d) to one; NaN where a vector has none."""
    import numpy as np

    if metric == "l2":
        return np.linalg.norm(vectors - asked, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked)
        return 1 - vectors @ asked / lengths
