"""What is asked, and how it is answered: nearest neighbours with filters.

Exact over all vectors, or over what a compressed index (`index.py`) hands on. The filter
comes first: it is resolved to item ids, and the search runs over these, so that a
filtered search gives as many results as exist. Every hit is joined to its source row:
rows that were deleted or now name another picture never show.

Scores are cosine similarities. Distances are in the collection's metric: 1 - score for
"cosine" (vectors are stored L2-normalised), Euclidean for "l2" (stored as the network
gave them); the order is that of the distance, ties by item id.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Timer
from typing import TYPE_CHECKING, Protocol

from datasette.utils import tilde_encode
from datasette.utils.sqlite import sqlite3

from .database import (
    DISTANCES,
    ITEMS_BY_ID,
    Collection,
    Key,
    SourceTable,
    floats,
    item_count,
    item_id,
    item_vector,
    literal,
    live_sql,
    quote,
    source_of,
    waiting_items,
)
from .errors import CollectionError, ImageSimilarityError
from .index import open_index

if TYPE_CHECKING:
    from .index import Index, IndexCache

KNN_LIMIT = 4096  # vec0 refuses a larger k
FEW = 64  # up to so many candidates, or one in FEWER, a look-up each beats a KNN over all
FEWER = 16
DEEP = 1000  # as far down the list the compressed index is asked
LOOSE = 20_000  # a filter that so many items pass is not resolved to ids first
SLACK = 100  # so many items too many are sorted out after a KNN, more by "id in"


class SearchTimeout(ImageSimilarityError):
    """A search took longer than its deadline."""


@dataclass(frozen=True)
class Filter:
    """A SQL condition over the source table's own columns, with its parameters."""

    where: str
    params: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Query:
    """What is asked.

    `vector` is a float32 blob as stored (see `mean_vector()`); `without` are items to
    leave out, the query pictures themselves. `k` hits from `offset` on, at most
    `max_distance` away.
    """

    vector: bytes
    k: int = 10
    offset: int = 0
    without: frozenset[int] = frozenset()
    filter: Filter | None = None
    max_distance: float | None = None
    exact: bool = False  # whatever index there is

    @property
    def end(self) -> int:
        return self.offset + self.k


@dataclass(frozen=True)
class Hit:
    """One result. `pk` in its own type; a list for compound keys."""

    rank: int
    pk: int | float | str | list
    score: float
    distance: float
    row: dict[str, object]
    width: int
    height: int

    def as_json(self) -> dict[str, object]:
        """As the command line and the web give it: `pk` in Datasette's row-path form."""
        row = {name: _json_value(value) for name, value in self.row.items()}
        return {
            "rank": self.rank,
            "pk": pk_path(self.pk),
            "score": self.score,
            "distance": self.distance,
            "row": row,
        }


@dataclass(frozen=True)
class Answer:
    """Hits best first; `total` is how many there are in all, `next` the next offset.

    Without `exact` they come from the compressed index, `recall` is what was measured
    of it, and `total` counts rows that were deleted since as well.
    """

    hits: list[Hit]
    total: int
    next: int | None
    milliseconds: float
    exact: bool = True
    recall: float | None = None


def search(
    conn: sqlite3.Connection,
    collection: Collection,
    query: Query,
    cache: IndexCache | None = None,
) -> Answer:
    """Answer a query, by the compressed index where there is one (see `index.py`).

    Exactly where there is none, where the query says so, and far down the list. Who asks
    often brings a `cache`, in which the index is kept.

    Raises CollectionError for k < 1 or a vector of another length, DatabaseError when the
    index is damaged.
    """
    started = time.perf_counter()
    if query.k < 1:
        raise CollectionError(f"k must be at least 1, not {query.k}")
    if query.offset < 0:
        raise CollectionError(f"The offset must be at least 0, not {query.offset}")
    if len(query.vector) != 4 * collection.dimensions:
        raise CollectionError(
            f"The query has {len(query.vector) // 4} dimensions and the collection "
            f"{collection.dimensions}: they were made by different encoders"
        )
    source = source_of(conn, collection)
    index = None
    if not query.exact and query.end <= DEEP:
        index = open_index(conn, collection, cache)
    if index is None:
        ranking: _Ranking = _Exact(conn, collection, source, query)
    else:
        ranking = _ByIndex(conn, collection, source, query, index)
    while True:
        ranked, total = ranking.nearest()
        try:
            page = ranked[query.offset : query.end]
            hits = _hits(conn, collection, source, query, page)
        except _Stale as stale:
            ranking.leave_out(stale.items)
            continue
        return Answer(
            hits=hits,
            total=total,
            next=query.end if query.end < total and len(hits) == query.k else None,
            milliseconds=round((time.perf_counter() - started) * 1000, 1),
            exact=index is None,
            recall=index.recall if index else None,
        )


class _Ranking(Protocol):
    """A way to find what is nearest."""

    def nearest(self) -> tuple[list[tuple[float, int]], int]:
        """(distance, id), nearest first, as far as the query's page; how many in all."""

    def leave_out(self, items: set[int]) -> None:
        """These turned out not to be what was embedded."""


class _Exact:
    """Distances to all vectors, by sqlite-vec."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        collection: Collection,
        source: SourceTable,
        query: Query,
    ) -> None:
        self.conn, self.collection, self.query = conn, collection, query
        self.candidates = _live(conn, collection, source, query.filter) - query.without

    def leave_out(self, items: set[int]) -> None:
        self.candidates -= items

    def nearest(self) -> tuple[list[tuple[float, int]], int]:
        ranked = self._ranked()
        limited = self.query.max_distance is not None
        return ranked, len(ranked if limited else self.candidates)

    def _ranked(self) -> list[tuple[float, int]]:
        """Enough for the query's page; with a `max_distance`, all that are near enough."""
        query, candidates = self.query, self.candidates
        limited = query.max_distance is not None
        wanted = min(query.end, len(candidates))
        stored = item_count(self.conn, self.collection)
        if len(candidates) <= max(FEW, stored // FEWER):
            return _within(
                query, _distances(self.conn, self.collection, query.vector, candidates)
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
        rows = _scan(self.conn, self.collection, query.vector)
        return _within(query, [row for row in rows if row[0] in candidates])


class _ByIndex:
    """What the compressed index hands on, in the order of its true distances.

    Items that wait to be listed are looked at one by one. A filter is resolved to ids,
    whose codes are all compared; where very many pass it, what the index hands on is
    filtered instead.
    """

    def __init__(
        self,
        conn: sqlite3.Connection,
        collection: Collection,
        source: SourceTable,
        query: Query,
        index: Index,
    ) -> None:
        self.conn, self.collection, self.source = conn, collection, source
        self.query, self.index = query, index
        self.out = set(query.without)
        self.waiting = set(waiting_items(conn, collection))
        self.wanted = query.end + len(query.without)
        self.passing: set[int] | None = None
        self.loose = False
        self.total = index.listed + len(self.waiting)
        if query.filter is not None and query.filter.where:
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
            rows = _distances(self.conn, self.collection, self.query.vector, ids)
            dropped = ids - {item for item, _ in rows}
            if dropped:  # their entries are still listed: look beyond them
                self.leave_out(dropped)
                continue
            ranked = _within(self.query, rows)
            cut = limited and len(ranked) < len(ids)
            if all_seen or cut or (len(ranked) >= self.query.end and not limited):
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

        Not "in (select …)": there a column that the table lacks would be one of ours.
        The plus keeps the types of the table's keys away from ours, so that ours are
        looked up in their index.
        """
        source = self.source
        sql = (
            f"with passing(pk) as (select {source.key_sql()} "
            f"from {quote(source.name)} where {self.query.filter.where}) "
            "select i.id from passing p cross join _image_similarity_items i "
            f"on i.collection_id = {self.collection.id} and i.pk = +p.pk limit {most}"
        )
        cursor = self.conn.cursor()
        cursor.row_factory = None  # ten thousand tuples are made in half the time
        return {item for (item,) in cursor.execute(sql, self.query.filter.params)}

    def _that_pass(self, ids: set[int]) -> set[int]:
        """Those of these items whose row passes the filter."""
        source = self.source
        sql = (
            "with known(id, pk) as materialized (select i.id, i.pk from "
            f"{ITEMS_BY_ID} where i.collection_id = {self.collection.id}), "
            f"passing(pk) as materialized (select {source.key_sql()} "
            f"from {quote(source.name)} where ({self.query.filter.where}) "
            f"and {source.key_sql()} in (select pk from known)) "
            "select k.id from passing p join known k on k.pk = +p.pk"
        )
        params = {**self.query.filter.params, "ids": json.dumps(list(ids))}
        return {row[0] for row in self.conn.execute(sql, params)}


def _live(
    conn: sqlite3.Connection,
    collection: Collection,
    source: SourceTable,
    filter: Filter | None,
) -> set[int]:
    """Ids of the items whose row is there and passes the filter."""
    if filter is None or not filter.where:
        sql = f"select i.id {live_sql(collection, source)}"
        return {row[0] for row in conn.execute(sql)}
    # See _ByIndex._all_that_pass()
    passing = f"select {source.key_sql()} from {quote(source.name)} where {filter.where}"
    items = "passing p cross join _image_similarity_items i on i.pk = +p.pk"
    live = live_sql(collection, source, items)
    sql = f"with passing(pk) as materialized ({passing}) select i.id {live}"
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


def _distances(
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


def _scan(conn: sqlite3.Connection, collection: Collection, vector: bytes) -> list:
    """(id, distance) of every item, in no order."""
    distance = f"{DISTANCES[collection.metric]}(embedding, :vector)"
    sql = f"select id, {distance} from {quote(collection.vectors)}"
    return conn.execute(sql, {"vector": vector}).fetchall()


def _hits(
    conn: sqlite3.Connection,
    collection: Collection,
    source: SourceTable,
    query: Query,
    ranked: Sequence[tuple[float, int]],
) -> list[Hit]:
    """Hits with their source rows; ranks count from 1 over all pages.

    Raises _Stale for rows that were deleted meanwhile and for BLOBs that have changed.
    """
    ids = json.dumps([item for _, item in ranked])
    columns = ", ".join(f"t.{quote(name)}" for name in source.columns)
    sql = (
        f"select i.id, i.pk, i.width, i.height, i.sha256, {columns} "
        f"{live_sql(collection, source, ITEMS_BY_ID)}"
    )
    found = {row[0]: tuple(row) for row in conn.execute(sql, {"ids": ids})}
    stale = {item for _, item in ranked} - found.keys()
    if collection.source == "blob":
        blob = 5 + source.columns.index(collection.column)
        stale |= {i for i, row in found.items() if _sha256(row[blob]) != row[4]}
    if stale:
        raise _Stale(stale)
    cosines = _cosines(conn, collection, query.vector, ranked)
    hits = []
    for rank, (distance, item) in enumerate(ranked, query.offset + 1):
        _, pk, width, height, _, *values = found[item]
        row = dict(zip(source.columns, values, strict=True))
        if collection.source == "blob":
            del row[collection.column]
        hits.append(
            Hit(
                rank=rank,
                pk=json.loads(pk) if len(source.key_columns) > 1 else pk,
                score=round(cosines[item], 6),
                distance=round(distance, 6),
                row=row,
                width=width,
                height=height,
            )
        )
    return hits


def _cosines(
    conn: sqlite3.Connection,
    collection: Collection,
    vector: bytes,
    ranked: Sequence[tuple[float, int]],
) -> dict[int, float]:
    """Cosine similarity by item id."""
    if collection.metric == "cosine":
        return {item: 1.0 - distance for distance, item in ranked}
    ids = json.dumps([item for _, item in ranked])
    sql = (
        f"select v.id, 1 - vec_distance_cosine(v.embedding, :vector) "
        f"from json_each(:ids) j cross join {quote(collection.vectors)} v "
        "where v.id = j.value"
    )
    return dict(conn.execute(sql, {"vector": vector, "ids": ids}).fetchall())


class _Stale(Exception):
    """The pictures in these items' rows are not the ones that were embedded."""

    def __init__(self, items: set[int]) -> None:
        self.items = items


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json_value(value: object) -> object:
    """BLOBs as Datasette's own JSON gives them; what JSON has no number for is null."""
    if isinstance(value, bytes):
        return {"$base64": True, "encoded": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# Query vectors


def items_of(
    conn: sqlite3.Connection, collection: Collection, pks: Sequence[Key]
) -> list[int]:
    """The items of source rows. Raises CollectionError for a row without an embedding."""
    items = []
    for pk in pks:
        item = item_id(conn, collection, pk)
        if item is None:
            raise CollectionError(f"Row {pk} of {collection.table!r} has no embedding")
        items.append(item)
    return items


def mean_vector(
    conn: sqlite3.Connection, collection: Collection, items: Sequence[int]
) -> bytes:
    """The mean of the items' vectors as a query: float32 blob of shape (d,).

    Raises CollectionError when there are none or a vector is missing or damaged.
    """
    if not items:
        raise CollectionError("Name at least one picture to search with")
    vectors = []
    for item in items:
        data = item_vector(conn, collection, item)
        if data is None or len(data) != 4 * collection.dimensions:
            raise CollectionError(
                f"The vector of item {item} is missing or damaged: run "
                "datasette image-similarity verify DATABASE --repair"
            )
        vectors.append(floats(data))
    if len(vectors) == 1:
        return data
    mean = [math.fsum(column) / len(vectors) for column in zip(*vectors, strict=True)]
    if not any(mean):
        raise CollectionError("These pictures are opposites: their mean points nowhere")
    return struct.pack(f"<{len(mean)}f", *mean)


def as_sql(
    collection: Collection,
    source: SourceTable,
    likes: Sequence[Key],
    k: int,
    filter: Filter | None,
    max_distance: float | None,
) -> tuple[str, dict[str, object]]:
    """A search like these rows as SQL that anyone can run and change, with parameters."""
    table, name = literal(collection.table), literal(collection.name)
    if len(likes) == 1:
        vector = f"image_embedding({table}, {literal(likes[0])}, {name})"
    else:
        compound = len(source.key_columns) > 1
        keys = [json.loads(str(like)) if compound else like for like in likes]
        array = literal(json.dumps(keys, ensure_ascii=False))
        vector = f"mean_image_embedding({table}, {array}, {name})"
    shown = [
        column
        for column in source.columns
        if not (collection.source == "blob" and column == collection.column)
    ]
    score = (
        "1 - v.distance"
        if collection.metric == "cosine"
        else f"1 - vec_distance_cosine(v.embedding, {vector})"
    )
    lines = [
        f"select round({score}, 4) as score, round(v.distance, 4) as distance,",
        f"  {', '.join(f't.{quote(column)}' for column in shown)}",
        f"from {collection.vectors} v",
        "join _image_similarity_items i on i.id = v.id",
        f"join {quote(source.name)} t on {source.join_sql('t', 'i.pk')}",
        f"where v.embedding match {vector}",
        f"  and v.k = {min(k + len(likes), KNN_LIMIT)}",
    ]
    if filter is not None:
        lines += [
            "  and v.id in (",
            "    select id from _image_similarity_items",
            f"    where collection_id = {collection.id} and pk in (",
            f"      select {source.key_sql()} from {quote(source.name)}",
            f"      where {filter.where}",
            "    )",
            "  )",
        ]
    if max_distance is not None:
        lines.append(f"  and v.distance <= {max_distance!r}")
    lines += [
        f"  and i.pk not in ({', '.join(map(literal, likes))})",
        "order by v.distance",
    ]
    return "\n".join(lines), dict(filter.params) if filter else {}


def pk_path(pk: int | float | str | list) -> str:
    """A key in Datasette's row-path form: values tilde-encoded, joined by commas."""
    return ",".join(
        tilde_encode(str(part)) for part in (pk if isinstance(pk, list) else [pk])
    )


@contextmanager
def deadline(conn: sqlite3.Connection, seconds: float | None) -> Iterator[None]:
    """Interrupt what runs on a connection after so many seconds.

    SQLite's progress handler, which Datasette's own limit uses, does not reach into a
    vec0 scan; an interrupt does. Raises SearchTimeout.
    """
    if seconds is None:
        yield
        return
    timer = Timer(seconds, conn.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error) or "chunks iter" in str(error):
            raise SearchTimeout(
                f"The search took longer than {seconds:g} seconds: narrow it with a filter"
            ) from error
        raise
    finally:
        timer.cancel()
        timer.join()  # so that a late interrupt cannot hit the next statement
