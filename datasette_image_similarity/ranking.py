"""What is nearest to a vector: exactly, or by the compressed index.

A `Ranking` gives the nearest items that are there, pass the filter and lie within the
cut-off, in the order of their true distances, ties by item id; `query.search()` chooses
which. Rows that changed meanwhile are found when the hits are read, and left out then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from .database import (
    DISTANCES,
    ITEMS_BY_ID,
    ITEMS_PASSING,
    Collection,
    SourceTable,
    item_count,
    live_sql,
    passing_sql,
    quote,
    waiting_items,
)

if TYPE_CHECKING:
    from .index import Index
    from .query import Filter, Query

KNN_LIMIT = 4096  # vec0 refuses a larger k
FEW = 64  # up to so many candidates, or one in FEWER, a look-up each beats a KNN over all
FEWER = 16
DEEP = 1000  # as far down the list the compressed index is asked
LOOSE = 20_000  # a filter that so many items pass is not resolved to ids first
SLACK = 100  # so many items too many are sorted out after a KNN, more by "id in"


class Ranking:
    """A way to find the `depth` nearest items; made for one search."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        collection: Collection,
        source: SourceTable,
        query: Query,
        depth: int,
    ) -> None:
        self.conn, self.collection, self.source = conn, collection, source
        self.query, self.depth = query, depth

    def nearest(self) -> tuple[list[tuple[float, int]], int]:
        """(distance, id), nearest first, `depth` or more; how many there are in all."""
        raise NotImplementedError

    def leave_out(self, items: set[int]) -> None:
        """These turned out not to be what was embedded."""
        raise NotImplementedError


class Exact(Ranking):
    """Distances to all vectors, by sqlite-vec."""

    @cached_property
    def candidates(self) -> set[int]:
        live = live_items(self.conn, self.collection, self.source, self.query.filter)
        return live - self.query.without

    def leave_out(self, items: set[int]) -> None:
        self.candidates -= items

    def nearest(self) -> tuple[list[tuple[float, int]], int]:
        ranked = self._ranked()
        limited = self.query.max_distance is not None
        return ranked, len(ranked if limited else self.candidates)

    def _ranked(self) -> list[tuple[float, int]]:
        """Enough for the depth; with a `max_distance`, all that are near enough."""
        query, candidates = self.query, self.candidates
        limited = query.max_distance is not None
        wanted = min(self.depth, len(candidates))
        stored = item_count(self.conn, self.collection)
        if len(candidates) <= max(FEW, stored // FEWER):
            return _within(
                query, distances(self.conn, self.collection, query.vector, candidates)
            )
        # Leaving a few out afterwards is cheaper than handing over a long list of ids.
        others = stored - len(candidates)
        among = candidates if others > SLACK else None
        k = wanted + 1 + (others if among is None else 0)
        if limited:
            k = KNN_LIMIT
        if k <= KNN_LIMIT:
            rows = _knn(self.conn, self.collection, query.vector, k, among)
            found = _within(query, [row for row in rows if row[0] in candidates])
            end = query.max_distance if limited else max(found[:wanted], default=(0.0,))[0]
            if len(rows) < k or (rows[-1][1] or 0.0) > end:
                return found
            # Else something that is not in the list may tie with what is: look at all.
        rows = all_distances(self.conn, self.collection, query.vector)
        return _within(query, [row for row in rows if row[0] in candidates])


class ByIndex(Ranking):
    """What the compressed index hands on, in the order of its true distances.

    Items that wait to be listed are looked at one by one. A filter is resolved to ids,
    whose codes are all compared; where very many pass it, what the index hands on is
    filtered instead.
    """

    def __init__(self, *asked: Any, index: Index) -> None:
        super().__init__(*asked)
        self.index = index
        self.out = set(self.query.without)
        self.waiting = set(waiting_items(self.conn, self.collection))
        self.wanted = self.depth + len(self.query.without)
        self.passing: set[int] | None = None
        self.loose = False
        self.total = index.listed + len(self.waiting)
        if self.query.filter is not None and self.query.filter.where:
            self.passing = self._all_that_pass(LOOSE + 1)
            self.total = len(self.passing)
            if self.total > LOOSE:
                self._filter_afterwards()

    def _filter_afterwards(self) -> None:
        """So many pass that as many more are asked for as the filter will take away."""
        self.total = _count(self.conn, self.source, self.query.filter)
        wanted = math.ceil(self.wanted * self.index.listed / max(1, self.total))
        if wanted <= min(DEEP, self.index.listed // 50):
            self.loose, self.wanted = True, wanted
        else:
            self.passing = self._all_that_pass(-1)

    def leave_out(self, items: set[int]) -> None:
        self.out |= items
        self.wanted += len(items)

    def nearest(self) -> tuple[list[tuple[float, int]], int]:
        limited = self.query.max_distance is not None
        while True:
            ids, all_seen = self._handed_on()
            rows = distances(self.conn, self.collection, self.query.vector, ids)
            dropped = ids - {item for item, _ in rows}
            if dropped:  # their entries are still listed: look beyond them
                self.leave_out(dropped)
                continue
            ranked = _within(self.query, rows)
            cut = limited and len(ranked) < len(ids)
            if all_seen or cut or (len(ranked) >= self.depth and not limited):
                break
            if self.wanted > DEEP:
                if not self.loose:
                    break
                # None of the nearest passes: the filter and the picture are at odds.
                self.loose, self.passing = False, self._all_that_pass(-1)
            self.wanted *= 4
        if limited:
            return ranked, len(ranked)
        return ranked, max(len(ranked), self.total - len(self.out))

    def _handed_on(self) -> tuple[set[int], bool]:
        """Items among which the nearest are, and whether there are no others."""
        import numpy as np

        among = None
        if self.passing is not None and not self.loose:
            among = np.fromiter(self.passing, np.int64, len(self.passing))
            among.sort()
        found = self.index.nearest(self.query.vector, self.wanted, among)
        all_seen = len(found) >= (self.index.listed if among is None else len(among))
        ids = set(found.tolist()) | self.waiting
        if self.loose:
            ids = self._that_pass(ids)
        elif among is not None:
            ids &= self.passing
        return ids - self.out, all_seen

    def _all_that_pass(self, most: int) -> set[int]:
        """Items whose row passes the filter, `most` of them at most; all with -1.

        No more rows are filtered than it takes to find so many.
        """
        sql = (
            f"{passing_sql(self.source, self.query.filter.where, whole=False)} "
            f"select i.id from {ITEMS_PASSING} "
            f"where i.collection_id = {self.collection.id} limit {most}"
        )
        cursor = self.conn.cursor()
        cursor.row_factory = None  # ten thousand tuples are made in half the time
        return {item for (item,) in cursor.execute(sql, self.query.filter.params)}

    def _that_pass(self, ids: set[int]) -> set[int]:
        """Those of these items whose row passes the filter."""
        known = (
            f"(select i.pk from {ITEMS_BY_ID} where i.collection_id = {self.collection.id})"
        )
        where = f"({self.query.filter.where}) and {self.source.key_sql()} in {known}"
        sql = (
            f"{passing_sql(self.source, where)} select i.id from {ITEMS_PASSING} "
            f"where i.collection_id = {self.collection.id}"
        )
        params = {**self.query.filter.params, "ids": json.dumps(list(ids))}
        return {row[0] for row in self.conn.execute(sql, params)}


def live_items(
    conn: sqlite3.Connection,
    collection: Collection,
    source: SourceTable,
    filter: Filter | None,
) -> set[int]:
    """Ids of the items whose row is there and passes the filter."""
    if filter is None or not filter.where:
        sql = f"select i.id {live_sql(collection, source)}"
        return {row[0] for row in conn.execute(sql)}
    live = live_sql(collection, source, ITEMS_PASSING)
    sql = f"{passing_sql(source, filter.where)} select i.id {live}"
    return {row[0] for row in conn.execute(sql, filter.params)}


def _count(conn: sqlite3.Connection, source: SourceTable, filter: Filter) -> int:
    """How many rows of the table pass a filter."""
    sql = f"select count(*) from {quote(source.name)} where {filter.where}"
    return conn.execute(sql, filter.params).fetchone()[0]


def _within(query: Query, rows: Iterable[Sequence]) -> list[tuple[float, int]]:
    """As (distance, id), nearest first, without what lies beyond the cut-off."""
    found = sorted(
        (max(0.0, distance), item)
        for item, distance in rows
        if distance is not None  # NaN: see verify
    )
    if query.max_distance is None:
        return found
    return [pair for pair in found if pair[0] <= query.max_distance]


def distances(
    conn: sqlite3.Connection, collection: Collection, vector: bytes, ids: Iterable[int]
) -> list:
    """(id, distance) of each of these items, in no order: one look-up an item."""
    # See database.item_vectors() for the join.
    sql = (
        f"select v.id, {DISTANCES[collection.metric]}(v.embedding, :vector) "
        f"from json_each(:ids) j cross join {quote(collection.vectors)} v "
        "where v.id = j.value"
    )
    # In their order, since neighbours share pages of the file.
    params = {"vector": vector, "ids": json.dumps(sorted(ids))}
    return conn.execute(sql, params).fetchall()


def _knn(
    conn: sqlite3.Connection,
    collection: Collection,
    vector: bytes,
    k: int,
    among: set[int] | None,
) -> list:
    """(id, distance) of the k nearest items, of those given or of all, by vec0."""
    sql = (
        f"select id, distance from {quote(collection.vectors)} "
        "where embedding match :vector and k = :k"
    )
    params = {"vector": vector, "k": k}
    if among is not None:
        sql += " and id in (select value from json_each(:ids))"
        params["ids"] = json.dumps(list(among))
    return conn.execute(sql, params).fetchall()


def all_distances(conn: sqlite3.Connection, collection: Collection, vector: bytes) -> list:
    """(id, distance) of every item, in no order."""
    distance = f"{DISTANCES[collection.metric]}(embedding, :vector)"
    sql = f"select id, {distance} from {quote(collection.vectors)}"
    return conn.execute(sql, {"vector": vector}).fetchall()
