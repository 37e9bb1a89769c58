"""What is asked, and how it is answered: exact nearest neighbours with filters.

The filter comes first. It is resolved to item ids, and the search runs over these, so
that a filtered search gives as many results as exist. Every hit is joined to its source
row: rows that were deleted or now name another picture never show.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Timer

from datasette.utils import tilde_encode
from datasette.utils.sqlite import sqlite3

from .database import (
    DISTANCES,
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
)
from .errors import CollectionError, ImageSimilarityError

KNN_LIMIT = 4096  # vec0 refuses a larger k
FEW = 2000  # up to so many candidates, distances to each are cheaper than a KNN over all
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
    """Hits best first; `total` is how many there are in all, `next` the next offset."""

    hits: list[Hit]
    total: int
    next: int | None
    milliseconds: float
    exact: bool = True


def search(conn: sqlite3.Connection, collection: Collection, query: Query) -> Answer:
    """Answer a query.

    Raises CollectionError for k < 1 or a vector of another length.
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
    candidates = _candidates(conn, collection, source, query.filter) - query.without
    end = query.offset + query.k
    while True:
        ranked = _ranked(conn, collection, query, candidates)
        total = len(candidates if query.max_distance is None else ranked)
        try:
            hits = _hits(conn, collection, source, query, ranked[query.offset : end])
        except _Stale as stale:
            candidates -= stale.items
            continue
        return Answer(
            hits=hits,
            total=total,
            next=end if end < total else None,
            milliseconds=round((time.perf_counter() - started) * 1000, 1),
        )


def _candidates(
    conn: sqlite3.Connection,
    collection: Collection,
    source: SourceTable,
    filter: Filter | None,
) -> set[int]:
    """Ids of the items that may be a result: their row is there and passes the filter."""
    if filter is None or not filter.where:
        sql = f"select i.id {live_sql(collection, source)}"
        return {row[0] for row in conn.execute(sql)}
    # Not "in (select …)": there a column that this table lacks would be one of ours.
    # Materialized, or compound keys may be compared each with each.
    passing = f"select {source.key_sql()} from {quote(source.name)} where {filter.where}"
    live = live_sql(collection, source, "join passing p on p.pk = i.pk")
    sql = f"with passing(pk) as materialized ({passing}) select i.id {live}"
    return {row[0] for row in conn.execute(sql, filter.params)}


def _ranked(
    conn: sqlite3.Connection, collection: Collection, query: Query, candidates: set[int]
) -> list[tuple[float, int]]:
    """(distance, id) of the nearest candidates, nearest first.

    Enough of them for the query's page; with a `max_distance`, all that are near enough.
    """
    limited = query.max_distance is not None
    wanted = min(query.offset + query.k, len(candidates))
    stored = item_count(conn, collection)
    others = stored - len(candidates)

    def pick(rows: Sequence) -> list[tuple[float, int]]:
        found = sorted(
            (max(0.0, distance), item)
            for item, distance in rows
            if item in candidates and distance is not None  # NaN: see verify
        )
        return [pair for pair in found if not limited or pair[0] <= query.max_distance]

    # Leaving a few out afterwards is cheaper than handing over a long list of ids.
    among = candidates if others > SLACK else None
    k = wanted + 1 + (others if among is None else 0)
    if limited:
        k = KNN_LIMIT
    if len(candidates) > FEW and k <= KNN_LIMIT:
        rows = _knn(conn, collection, query.vector, k, among)
        found = pick(rows)
        end = query.max_distance if limited else max(found[:wanted], default=(0.0,))[0]
        if len(rows) < k or (rows[-1][1] or 0.0) > end:
            return found
        # Else something that is not in the list may tie with what is: look at all.
    return pick(_scan(conn, collection, query.vector, candidates))


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


def _scan(
    conn: sqlite3.Connection, collection: Collection, vector: bytes, among: set[int]
) -> list:
    """(id, distance) of every item given, in no order."""
    distance = f"{DISTANCES[collection.metric]}(embedding, :vector)"
    sql = f"select id, {distance} from {quote(collection.vectors)}"
    params = {"vector": vector}
    if len(among) <= FEW:
        sql += " where id in (select value from json_each(:ids))"
        params["ids"] = json.dumps(list(among))
    return conn.execute(sql, params).fetchall()


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
        f"{live_sql(collection, source)} and i.id in (select value from json_each(:ids))"
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
        f"select id, 1 - vec_distance_cosine(embedding, :vector) "
        f"from {quote(collection.vectors)} where id in (select value from json_each(:ids))"
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
