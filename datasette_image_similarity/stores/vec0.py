"""Vectors in the SQLite file itself: a vec0 table of sqlite-vec for each collection.

Everything that reads one goes through here; `database.py` makes it and writes to it,
together with the items.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from ..columns import read_columns
from ..database import DISTANCES, Collection, is_current, quote

if TYPE_CHECKING:
    import numpy as np

KNN_LIMIT = 4096  # vec0 refuses a larger k


class Vec0:
    """A collection's vec0 table: `items.ItemVectors`.

    `get()` and `scan()` check what they give by the sums noted with the items; distances
    are computed by vec0, which cannot: see `query.search()`.
    """

    most = KNN_LIMIT

    def __init__(self, conn: sqlite3.Connection, collection: Collection) -> None:
        self.conn, self.collection = conn, collection
        self.table = quote(collection.vectors)

    def get(self, items: Iterable[int]) -> list[tuple[int, bytes]]:
        # Joined so that vec0 is asked for one id after the other: with "id in (…)" it
        # reads the whole table.
        among = f"json_each(?) j cross join {self.table} v on v.id = j.value"
        return list(self._sound(among, (json.dumps([int(i) for i in items]),)))

    def scan(self) -> Iterator[tuple[int, bytes]]:
        return self._sound(f"{self.table} v")

    def _sound(
        self, among: str, params: tuple[object, ...] = ()
    ) -> Iterator[tuple[int, bytes]]:
        """Ids and vectors, but for vectors that are not as they were put there."""
        crc32 = "i.crc32" if is_current(self.conn, 6) else "null"
        sql = (
            f"select v.id, v.embedding, {crc32} from {among} "
            "left join _image_similarity_items i on i.id = v.id"
        )
        for item, vector, noted in self.conn.execute(sql, params):
            if noted is None or (isinstance(vector, bytes) and zlib.crc32(vector) == noted):
                yield item, vector

    def distances(
        self,
        vector: bytes,
        items: Iterable[int] | None = None,
        metric: str | None = None,
    ) -> list[tuple[int, float | None]]:
        params = {"vector": vector}
        among, embedding = self.table, "embedding"
        if items is not None:
            # In their order, since neighbours share pages of the file.
            params["ids"] = json.dumps(sorted(items))
            among = f"json_each(:ids) j cross join {self.table} v where v.id = j.value"
            embedding = "v.embedding"
        distance = DISTANCES[metric or self.collection.metric]
        sql = (
            f"select {'id' if items is None else 'v.id'}, "
            f"{distance}({embedding}, :vector) from {among}"
        )
        return self.conn.execute(sql, params).fetchall()

    def all_distances(self, vector: bytes) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all items that have a vector, int64 (n,), and their distances to this
        one, float64 (n,); in any order."""
        import numpy as np

        distance = DISTANCES[self.collection.metric]
        sql = f"select id, {distance}(embedding, :vector) from {self.table}"
        kinds = (np.int64, np.float64)
        ids, distances = read_columns(self.conn, sql, {"vector": vector}, kinds=kinds)
        there = ~np.isnan(distances)  # NaN: see verify
        return ids[there], distances[there]

    def nearest(
        self, vector: bytes, k: int, among: set[int] | None = None
    ) -> list[tuple[int, float | None]]:
        sql = (
            f"select id, distance from {self.table} where embedding match :vector "
            "and k = :k"
        )
        params = {"vector": vector, "k": k}
        if among is not None:
            sql += " and id in (select value from json_each(:ids))"
            params["ids"] = json.dumps(list(among))
        return self.conn.execute(sql, params).fetchall()
