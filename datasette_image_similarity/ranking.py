"""What is nearest to a vector: exactly, by the compressed index, or by a store.

A `Ranking` gives the nearest items that are there, pass the filter and lie within the
cut-off, in the order of their true distances, ties by item id; `query.search()` chooses
which. Rows that changed meanwhile are found when the hits are read, and left out then.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from .database import (
    ITEMS_BY_ID,
    ITEMS_PASSING,
    Collection,
    SourceTable,
    item_count,
    live_sql,
    passing_sql,
    quote,
    store_index,
    waiting_items,
)
from .stores.items import vectors_of
from .stores.vec0 import KNN_LIMIT, Vec0

if TYPE_CHECKING:
    import numpy as np

    from .index import Index
    from .query import Filter, Query

FEW = 64  # up to so many candidates, or one in FEWER, a look-up each beats a KNN over all
FEWER = 16
DEEP = 1000  # as far down the list the compressed index is asked
LOOSE = 20_000  # a filter that so many items pass is not resolved to ids first
TOLD = 4  # a store is told the ids of what passes up to one in so many
SLACK = 100  # so many items too many are sorted out after a KNN, more by "id in"


class Ranking:
    """A way to find the `depth` nearest items; made for one search.

    Where it does not look at every vector it is not `exact`; then `recall` is what was
    measured of it, if anything.
    """

    exact = True
    recall: float | None = None

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
        self.vectors = vectors_of(conn, collection)

    def nearest(self) -> tuple[Sequence[tuple[float, int]], int]:
        """(distance, id), nearest first, `depth` or more; how many there are in all."""
        raise NotImplementedError

    def leave_out(self, items: set[int]) -> None:
        """These turned out not to be what was embedded."""
        raise NotImplementedError


class Ranked(Sequence[tuple[float, int]]):
    """(distance, id) of very many, nearest first, ties by id: a million tuples would take
    seconds to be made and sorted, in which nothing else runs."""

    def __init__(
        self, query: Query, candidates: set[int], ids: np.ndarray, distances: np.ndarray
    ) -> None:
        """The candidates among these items, as far as the query's cut-off."""
        import numpy as np

        among = np.fromiter(candidates, np.int64, len(candidates))
        kept = np.isin(ids, among)
        distances = np.maximum(distances, 0)
        if query.max_distance is not None:
            kept &= distances <= query.max_distance
        self.ids, self.distances = ids[kept], distances[kept]
        order = np.lexsort((self.ids, self.distances))
        self.ids, self.distances = self.ids[order], self.distances[order]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            distances, ids = self.distances[place].tolist(), self.ids[place].tolist()
            return list(zip(distances, ids, strict=True))
        return float(self.distances[place]), int(self.ids[place])


class Exact(Ranking):
    """Distances to all vectors, by sqlite-vec."""

    vectors: Vec0

    @cached_property
    def candidates(self) -> set[int]:
        live = live_items(self.conn, self.collection, self.source, self.query.filter)
        return live - self.query.without

    def leave_out(self, items: set[int]) -> None:
        self.candidates -= items

    def nearest(self) -> tuple[Sequence[tuple[float, int]], int]:
        ranked = self._ranked()
        limited = self.query.max_distance is not None
        return ranked, len(ranked if limited else self.candidates)

    def _ranked(self) -> Sequence[tuple[float, int]]:
        """Enough for the depth; with a `max_distance`, all that are near enough."""
        query, candidates = self.query, self.candidates
        limited = query.max_distance is not None
        wanted = min(self.depth, len(candidates))
        stored = item_count(self.conn, self.collection)
        if len(candidates) <= max(FEW, stored // FEWER):
            return _within(query, self.vectors.distances(query.vector, candidates))
        # Leaving a few out afterwards is cheaper than handing over a long list of ids.
        others = max(0, stored - len(candidates))  # the number may be kept wrongly
        among = candidates if others > SLACK else None
        k = wanted + 1 + (others if among is None else 0)
        if limited:
            k = KNN_LIMIT
        if k <= KNN_LIMIT:
            rows = self.vectors.nearest(query.vector, k, among)
            found = _within(query, [row for row in rows if row[0] in candidates])
            end = query.max_distance if limited else max(found[:wanted], default=(0.0,))[0]
            if len(rows) < k or (rows[-1][1] or 0.0) > end:
                return found
            # Else something that is not in the list may tie with what is: look at all.
        return Ranked(query, candidates, *self.vectors.all_distances(query.vector))


class ByCandidates(Ranking):
    """The nearest of candidates that something quicker than a look at every vector gives.
    Where these turn out to be too few, more are asked for.

    A filter that few pass is resolved to ids first; where very many pass it, candidates
    are filtered instead, and correspondingly more of them are asked for.
    """

    most = DEEP  # asked for at once

    def __init__(self, *asked: Any) -> None:
        super().__init__(*asked)
        self.out = set(self.query.without)
        self.wanted = self.depth + len(self.query.without)
        self.passing: set[int] | None = None
        self.loose = False
        self.stored = self._count_stored()
        self.total = self.stored
        self._resolve_filter()

    def _resolve_filter(self) -> None:
        if self.query.filter is not None and self.query.filter.where:
            self.passing = self._all_that_pass(LOOSE + 1)
            self.total = len(self.passing)
            if self.total > LOOSE:
                self._filter_afterwards()

    def _count_stored(self) -> int:
        """How many candidates there may be at all."""
        raise NotImplementedError

    def _candidates(self) -> tuple[list, bool]:
        """(id, distance) of some `wanted` candidates, none of those left `out`, and whether
        there are no others."""
        raise NotImplementedError

    def _filter_afterwards(self) -> None:
        """So many pass that as many more are asked for as the filter will take away."""
        self.total = _count(self.conn, self.source, self.query.filter)
        wanted = math.ceil(self.wanted * self.stored / max(1, self.total))
        if wanted <= min(DEEP, self.stored // 50):
            self.loose, self.wanted = True, wanted
        else:
            self.passing = self._all_that_pass(-1)

    def leave_out(self, items: set[int]) -> None:
        self.out |= items
        self.wanted += len(items)

    def nearest(self) -> tuple[list[tuple[float, int]], int]:
        limited = self.query.max_distance is not None
        while True:
            rows, all_seen = self._candidates()
            ranked = _within(self.query, rows)
            cut = limited and len(ranked) < len(rows)
            if all_seen or cut or (len(ranked) >= self.depth and not limited):
                break
            if self.wanted > self.most:
                if not self.loose:
                    break
                # None of the nearest passes: the filter and the picture are at odds.
                self.loose, self.passing = False, self._all_that_pass(-1)
            self.wanted *= 4
        if limited:
            return ranked, len(ranked)
        return ranked, max(len(ranked), self._count_all())

    def _count_all(self) -> int:
        """How many there are in all, but for those left out."""
        return self.total - len(self.out)

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


class ByIndex(ByCandidates):
    """What the compressed index finds, in the order of its true distances.

    Items that wait to be listed are looked at one by one. A filter is resolved to ids,
    whose codes are all compared.
    """

    exact = False

    def __init__(self, *asked: Any, index: Index) -> None:
        self.index, self.recall = index, index.recall
        super().__init__(*asked)

    @cached_property
    def waiting(self) -> set[int]:
        return set(waiting_items(self.conn, self.collection))

    def _count_stored(self) -> int:
        return self.index.listed + len(self.waiting)

    def _candidates(self) -> tuple[list, bool]:
        import numpy as np

        among = None
        if self.passing is not None and not self.loose:
            among = np.fromiter(self.passing, np.int64, len(self.passing))
            among.sort()
        while True:
            found = self.index.nearest(self.query.vector, self.wanted, among)
            ids = set(found.tolist()) | self.waiting
            if self.loose:
                ids = self._that_pass(ids)
            elif among is not None:
                ids &= self.passing
            ids -= self.out
            rows = self.vectors.distances(self.query.vector, ids)
            dropped = ids - {item for item, _ in rows}
            if not dropped:
                break
            self.leave_out(dropped)  # their entries are still listed: look beyond them
        return rows, len(found) >= (self.index.listed if among is None else len(among))


class ByStore(ByCandidates):
    """What the store finds that the vectors are in.

    What it is not asked for is compared one by one: items that few enough are to be told,
    all of them where the query wants that, and beyond what a store gives at once. Up to
    LOOSE items those whose row has gone do not count.
    """

    most = sys.maxsize

    def __init__(self, *asked: Any) -> None:
        self.live: set[int] | None = None
        super().__init__(*asked)
        told = store_index(self.conn, self.collection)
        searches_all = told.get("exact") is not False
        self.one_by_one = self.query.exact and not searches_all
        self.exact = self.query.exact or searches_all
        self.recall = None if self.exact else told.get("recall")

    def _count_stored(self) -> int:
        return item_count(self.conn, self.collection)

    def _resolve_filter(self) -> None:
        if self.stored > LOOSE:
            super()._resolve_filter()
            return
        self.live = live_items(self.conn, self.collection, self.source, self.query.filter)
        if self.query.filter is not None and self.query.filter.where:
            self.passing = self.live

    def _count_all(self) -> int:
        return super()._count_all() if self.live is None else len(self.live - self.out)

    def _candidates(self) -> tuple[list, bool]:
        among = None
        if self.passing is not None and not self.loose:
            among = self.passing - self.out
        rows, all_seen = self._asked(among)
        rows = [row for row in rows if row[0] not in self.out]
        if self.loose:
            passing = self._that_pass({item for item, _ in rows})
            rows = [row for row in rows if row[0] in passing]
        elif self.live is not None:
            rows = [row for row in rows if row[0] in self.live]
        return rows, all_seen

    def _asked(self, among: set[int] | None) -> tuple[list, bool]:
        """(id, distance) of the nearest, and whether there are no others."""
        some = self.stored if among is None else len(among)
        k = min(self.wanted, some)
        many = self.live is not None and TOLD * some > self.stored
        if among is not None and some > FEW and many and not self.one_by_one:
            # So many pass that asking for more is cheaper than telling which.
            k, some, among = math.ceil(k * self.stored / some), self.stored, None
        few = among is not None and some <= FEW
        if few or self.one_by_one or k > self.vectors.most:
            return self.vectors.distances(self.query.vector, among), True
        rows = self.vectors.nearest(self.query.vector, k, among)
        return rows, k == some or len(rows) < k


def live_items(
    conn: sqlite3.Connection,
    collection: Collection,
    source: SourceTable,
    filter: Filter | None,
) -> set[int]:
    """Ids of the items whose row is there and passes the filter."""
    params: Mapping[str, object] = {}
    sql = f"select i.id {live_sql(collection, source)}"
    if filter is not None and filter.where:
        live = live_sql(collection, source, ITEMS_PASSING)
        sql = f"{passing_sql(source, filter.where)} select i.id {live}"
        params = filter.params
    cursor = conn.cursor()
    cursor.row_factory = None  # ten thousand tuples are made in half the time
    return {item for (item,) in cursor.execute(sql, params)}


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
