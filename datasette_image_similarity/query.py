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
import json
import math
import re
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from threading import Event, Thread
from typing import TYPE_CHECKING

from datasette.utils import tilde_encode
from datasette.utils.sqlite import sqlite3

from .database import (
    ITEMS_BY_ID,
    SIZE,
    Collection,
    Key,
    SourceTable,
    cell_sql,
    damaged_vectors,
    floats,
    item_id,
    key_in_words,
    literal,
    live_sql,
    plain_columns,
    quote,
    snapshot,
    source_of,
)
from .errors import CollectionError, ImageSimilarityError
from .folding import QUERY, Folded, fold, rules_of
from .index import open_index
from .ranking import DEEP, ByIndex, ByStore, Exact, Ranking
from .sources import is_same, live_item
from .stores.items import vector_of_item, vectors_of
from .stores.vec0 import KNN_LIMIT

if TYPE_CHECKING:
    from .index import IndexCache

# How much a picture that results should be less like counts, in that of what they should be
# like. Caltech-101 with MobileNetV2, the wrong one among ten results marked: P@10 of the
# next ten is .691 with 0, .734 with .2, .736 with .25 and .3, .705 with .5, .613 with .75.
UNLIKE = 0.25
HEAVIEST = 1000  # weight of a picture
DEADLINE = "image-similarity-deadline"  # threads' name
AGAIN = 0.01  # seconds between interrupts after a deadline


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

    `vector` is a float32 blob as stored (see `rocchio()`); `without` are items to leave
    out, the query pictures themselves. `k` hits from `offset` on, at most `max_distance`
    away. With `distinct`, a cosine similarity, near-duplicates of the query pictures and
    of better hits are folded into these; with `one_per`, a column, "cluster" or
    "duplicates", only the best hit of each group is given. `columns` are those of the
    source rows that hits come with: by default all but pictures in a BLOB column.
    """

    vector: bytes
    k: int = 10
    offset: int = 0
    without: frozenset[int] = frozenset()
    filter: Filter | None = None
    max_distance: float | None = None
    exact: bool = False  # whatever index there is
    distinct: float | None = None
    one_per: str | None = None
    columns: tuple[str, ...] | None = None

    @property
    def end(self) -> int:
        return self.offset + self.k

    @property
    def folds(self) -> bool:
        return self.distinct is not None or self.one_per is not None


@dataclass(frozen=True)
class Hit:
    """One result. `pk` in its own type; a list for compound keys.

    `others` were folded into it, as far as the search went; None where nothing is folded.
    """

    rank: int
    pk: int | float | str | list
    score: float
    distance: float
    row: dict[str, object]
    width: int
    height: int
    others: int | None = None

    @property
    def row_path(self) -> str:
        """The key as an address has it."""
        return pk_path(self.pk)

    def as_json(self) -> dict[str, object]:
        """As the command line and the web give it: `pk` in Datasette's row-path form."""
        row = {name: _json_value(value) for name, value in self.row.items()}
        folded = {} if self.others is None else {"others": self.others}
        return {
            "rank": self.rank,
            "pk": self.row_path,
            "score": self.score,
            "distance": self.distance,
            **folded,
            "row": row,
        }


@dataclass(frozen=True)
class Answer:
    """Hits best first; `total` is how many there are in all, `next` the next offset.

    Without `exact` they come from the compressed index, or from a store that has one of its
    own: `recall` is what was measured of it, None where nothing was, and `total` counts
    rows that were deleted since as well. Where results are folded, the search ends when the
    page is full: with `at_least` there are more than `total`. So many `near_query` were
    near-duplicates of the query pictures.
    """

    hits: list[Hit]
    total: int
    next: int | None
    milliseconds: float
    exact: bool = True
    recall: float | None = None
    at_least: bool = False
    near_query: int = 0


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
    _check(collection, query)
    # A store may be waited for, while others want to write.
    with nullcontext() if collection.store else snapshot(conn):
        source = source_of(conn, collection)
        for depth in _depths(query):
            ranking = _ranking(conn, collection, source, query, depth, cache)
            folded, total, hits = _found(conn, collection, source, query, ranking)
            if len(folded.best) > query.end or folded.walked >= total:
                break
    at_least = query.folds and folded.walked < total
    if query.folds:
        total = len(folded.best)
    return Answer(
        hits=hits,
        total=total,
        next=query.end if query.end < total and len(hits) == query.k else None,
        milliseconds=round((time.perf_counter() - started) * 1000, 1),
        exact=ranking.exact,
        recall=ranking.recall,
        at_least=at_least,
        near_query=folded.others.get(QUERY, 0),
    )


def _check(collection: Collection, query: Query) -> None:
    """Raises CollectionError for what cannot be asked."""
    if query.k < 1:
        raise CollectionError(f"k must be at least 1, not {query.k}")
    if query.offset < 0:
        raise CollectionError(f"The offset must be at least 0, not {query.offset}")
    if len(query.vector) != 4 * collection.dimensions:
        raise CollectionError(
            f"The query has {len(query.vector) // 4} dimensions and the collection "
            f"{collection.dimensions}: they were made by different encoders"
        )


def _depths(query: Query) -> list[int]:
    """How far down to look; where results are folded, farther until the page is full."""
    if not query.folds:
        return [query.end]
    return [depth for depth in (4 * query.end, DEEP) if depth <= DEEP] + [sys.maxsize]


def _ranking(
    conn: sqlite3.Connection,
    collection: Collection,
    source: SourceTable,
    query: Query,
    depth: int,
    cache: IndexCache | None,
) -> Ranking:
    """Through the compressed index or the store, where there is one and that may be."""
    if collection.store:
        return ByStore(conn, collection, source, query, depth)
    index = None
    if not query.exact and depth <= DEEP:
        index = open_index(conn, collection, cache)
    if index is None:
        return Exact(conn, collection, source, query, depth)
    return ByIndex(conn, collection, source, query, depth, index=index)


def _found(
    conn: sqlite3.Connection,
    collection: Collection,
    source: SourceTable,
    query: Query,
    ranking: Ranking,
) -> tuple[Folded, int, list[Hit]]:
    """What is left of a ranking, how many there are in all, and the hits of the page."""
    while True:
        ranked, total = ranking.nearest()
        folded = fold(ranked, rules_of(conn, collection, source, query), query.end)
        page = folded.best[query.offset : query.end]
        try:
            hits = _hits(conn, collection, source, query, page)
        except _Stale as stale:
            ranking.leave_out(stale.items)
            continue
        if query.folds:
            others = [folded.others.get(item, 0) for _, item in page]
            hits = [replace(h, others=n) for h, n in zip(hits, others, strict=True)]
        return folded, total, hits


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
    names = plain_columns(collection, source) if query.columns is None else query.columns
    columns = "".join(f", t.{quote(name)}" for name in names)
    sql = (
        f"select i.id, i.pk, {SIZE}, i.sha256, {cell_sql(collection)}{columns} "
        f"{live_sql(collection, source, ITEMS_BY_ID)}"
    )
    found = {row[0]: tuple(row) for row in conn.execute(sql, {"ids": ids})}
    stale = {item for _, item in ranked} - found.keys()
    stale |= {i for i, row in found.items() if not is_same(row[5], row[4])}
    if stale:
        raise _Stale(stale)
    _check_distances(conn, collection, query.vector, ranked)
    cosines = _cosines(conn, collection, query.vector, ranked)
    hits = []
    for rank, (distance, item) in enumerate(ranked, query.offset + 1):
        _, pk, width, height, _, _, *values = found[item]
        hits.append(
            Hit(
                rank=rank,
                pk=json.loads(pk) if len(source.key_columns) > 1 else pk,
                score=round(cosines[item], 6),
                distance=round(distance, 6),
                row=dict(zip(names, values, strict=True)),
                width=width,
                height=height,
            )
        )
    return hits


def _check_distances(
    conn: sqlite3.Connection,
    collection: Collection,
    vector: bytes,
    ranked: Sequence[tuple[float, int]],
) -> None:
    """Raises CollectionError where a hit's vector is damaged, or its distance is not the
    one that was found: vec0 answers wrongly, without an error, when its tables are."""
    if collection.store:
        return
    vectors = vectors_of(conn, collection)
    items = [item for _, item in ranked]
    sound = {item for item, _ in vectors.get(items)}
    true = dict(vectors.distances(vector, items))
    for distance, item in ranked:
        now = true.get(item)
        if item not in sound or now is None or abs(now - distance) > 1e-4 * (1 + distance):
            raise damaged_vectors(collection)


def _cosines(
    conn: sqlite3.Connection,
    collection: Collection,
    vector: bytes,
    ranked: Sequence[tuple[float, int]],
) -> dict[int, float]:
    """Cosine similarity by item id."""
    if collection.metric == "cosine":
        return {item: 1.0 - distance for distance, item in ranked}
    vectors = vectors_of(conn, collection)
    items = [item for _, item in ranked]
    return {item: 1.0 - d for item, d in vectors.distances(vector, items, "cosine")}


class _Stale(Exception):
    """The pictures in these items' rows are not the ones that were embedded."""

    def __init__(self, items: set[int]) -> None:
        self.items = items


def _json_value(value: object) -> object:
    """BLOBs as Datasette's own JSON gives them; what JSON has no number for is null."""
    if isinstance(value, bytes):
        return {"$base64": True, "encoded": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):  # a value with its label
        return {name: _json_value(part) for name, part in value.items()}
    return value


# Query vectors


def items_of(
    conn: sqlite3.Connection, collection: Collection, pks: Sequence[Key]
) -> list[int]:
    """The items of source rows. Raises CollectionError for a row without an embedding, or
    with one of another picture than it has now."""
    items = []
    source = source_of(conn, collection)
    for pk in pks:
        item = live_item(conn, collection, source, pk)
        if item is None:
            changed = item_id(conn, collection, pk) is not None
            of = " of its present picture" if changed else ""
            row = key_in_words(source.parts(pk))
            raise CollectionError(f"Row {row} of {collection.table!r} has no embedding{of}")
        items.append(item)
    return items


def mean_vector(
    conn: sqlite3.Connection, collection: Collection, items: Sequence[int]
) -> bytes:
    """The mean of the items' vectors as a query: float32 blob of shape (d,).

    Raises CollectionError when there are none or a vector is missing or damaged.
    """
    vectors = stored_vectors(conn, collection, items)
    return rocchio(collection, [(vector, 1.0) for vector in vectors])


def stored_vectors(
    conn: sqlite3.Connection, collection: Collection, items: Iterable[int]
) -> list[bytes]:
    """The items' vectors, float32 blobs of shape (d,).

    Raises CollectionError when one is missing or damaged.
    """
    vectors = []
    for item in items:
        data = vector_of_item(conn, collection, item)
        if data is None or len(data) != 4 * collection.dimensions:
            mend = "reconcile" if collection.store else "verify DATABASE --repair"
            raise CollectionError(
                f"The vector of item {item} is missing or damaged: run "
                f"datasette image-similarity {mend}"
            )
        floats(data)
        vectors.append(data)
    return vectors


def rocchio(
    collection: Collection,
    likes: Sequence[tuple[bytes, float]],
    unlikes: Sequence[tuple[bytes, float]] = (),
) -> bytes:
    """The query for results like some pictures and less like others.

    Both are (float32 blob of shape (d,), weight above 0). The weighted mean of the likes
    less UNLIKE times that of the unlikes: Rocchio's relevance feedback as in Manning,
    Raghavan, Schütze, "Introduction to Information Retrieval" (2008), section 9.1. For l2
    it is divided by 1 - UNLIKE, so that an unlike that equals the like moves nothing.

    Raises CollectionError without likes, or when they cancel out.
    """
    if not likes:
        raise CollectionError(
            "Name at least one picture to search with, or words: what is less like "
            "something must be like something else"
        )
    if len(likes) == 1 and not unlikes:
        return likes[0][0]
    query = _weighted_mean(likes)
    if unlikes:
        away = _weighted_mean(unlikes)
        whole = 1 - UNLIKE if collection.metric == "l2" else 1.0
        query = [(a - UNLIKE * b) / whole for a, b in zip(query, away, strict=True)]
    if not any(query):
        raise CollectionError("These pictures are opposites: their mean points nowhere")
    return struct.pack(f"<{len(query)}f", *query)


def _weighted_mean(vectors: Sequence[tuple[bytes, float]]) -> list[float]:
    whole = math.fsum(weight for _, weight in vectors)
    scaled = [[weight * x for x in floats(vector)] for vector, weight in vectors]
    return [math.fsum(column) / whole for column in zip(*scaled, strict=True)]


def as_sql(
    collection: Collection,
    source: SourceTable,
    weights: Mapping[Key, float],
    k: int,
    filter: Filter | None,
    max_distance: float | None,
    text: str | None = None,
) -> tuple[str, dict[str, object]]:
    """A search like these rows as SQL that anyone can run and change, with parameters.

    Weights below 0 are of rows to be less like. In place of rows it can be a text.
    """
    table, name = literal(collection.table), literal(collection.name)
    if text is not None:
        vector = f"image_embedding_text({table}, {literal(text)}, {name})"
    elif len(weights) == 1:
        vector = f"image_embedding({table}, {literal(*weights)}, {name})"
    else:
        keys: object = {f"{key}": weight for key, weight in weights.items()}
        if set(weights.values()) == {1}:
            compound = len(source.key_columns) > 1
            keys = [json.loads(str(key)) if compound else key for key in weights]
        array = literal(json.dumps(keys, ensure_ascii=False))
        vector = f"mean_image_embedding({table}, {array}, {name})"
    if collection.store:
        return _as_sql_of_store(collection, source, weights, k, max_distance), {}
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
        f"  and v.k = {min(k + len(weights), KNN_LIMIT)}",
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
    if weights:
        lines.append(f"  and i.pk not in ({', '.join(map(literal, weights))})")
    lines.append("order by v.distance")
    return "\n".join(lines), dict(filter.params) if filter else {}


def _as_sql_of_store(
    collection: Collection,
    source: SourceTable,
    weights: Mapping[Key, float],
    k: int,
    max_distance: float | None,
) -> str:
    """As `as_sql()`, of what is like one row, for vectors that SQL does not see."""
    table, name = literal(collection.table), literal(collection.name)
    found = f"similar_images({table}, {literal(*weights)}, {k}, {name})"
    columns = ", ".join(f"t.{quote(name)}" for name in plain_columns(collection, source))
    pk, distance = (f"json_extract(j.value, '$.{name}')" for name in ("pk", "distance"))
    lines = [
        "select round(json_extract(j.value, '$.score'), 4) as score,",
        f"  round({distance}, 4) as distance,",
        f"  {columns}",
        f"from json_each({found}) j",
        f"join {quote(source.name)} t on {source.join_sql('t', pk)}",
        *([] if max_distance is None else [f"where {distance} <= {max_distance!r}"]),
        "order by j.key",
    ]
    return "\n".join(lines)


def pk_path(pk: int | float | str | list) -> str:
    """A key in Datasette's row-path form: values tilde-encoded, joined by commas."""
    return ",".join(
        tilde_encode(str(part)) for part in (pk if isinstance(pk, list) else [pk])
    )


def split_weight(text: str) -> tuple[str, float]:
    """A key in row-path form and its weight: "7:2", or "7" with a weight of 1.

    Tilde-encoding leaves no ":" in a key. In one that was typed with it, what follows the
    last ":" is a weight if it is a number, else part of the key. Raises CollectionError
    for a weight that is not above 0.
    """
    key, colon, number = text.rpartition(":")
    if not colon or not re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)", number, re.ASCII):
        return text, 1.0
    weight = float(number)
    if not 0 < weight <= HEAVIEST:
        raise CollectionError(
            f"The weight of {key} must be above 0, up to {HEAVIEST}, not {number}"
        )
    return key, weight


@contextmanager
def deadline(
    conn: sqlite3.Connection, seconds: float | None, whole: float | None = None
) -> Iterator[None]:
    """Interrupt what runs on a connection after so many seconds, until the block ends.

    SQLite's progress handler, which Datasette's own limit uses, does not reach into a
    vec0 scan; an interrupt does. It ends one statement only, or none when it falls between
    two: so it comes again and again. Raises SearchTimeout, which tells of the `whole`
    time where these seconds are what is left of it.
    """
    if seconds is None:
        yield
        return
    over, late = Event(), Event()

    def interrupt() -> None:
        wait = max(0.0, seconds)
        while not over.wait(wait):
            late.set()
            conn.interrupt()
            wait = AGAIN

    watch = Thread(target=interrupt, name=DEADLINE, daemon=True)
    watch.start()
    try:
        yield
    except sqlite3.OperationalError as error:
        # vec0 has many words for it: "chunks iter error", "could not open vectors blob" …
        if late.is_set() and "locked" not in str(error):
            raise SearchTimeout(
                f"The search took longer than {whole or seconds:g} seconds: narrow it with "
                "a filter"
            ) from error
        raise
    finally:
        over.set()
        watch.join()  # so that a late interrupt cannot hit the next statement
