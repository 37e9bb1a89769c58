"""How good a collection's results are, by a label column; runs are stored and compared.

`ranking.py` has the definitions. Every labelled picture asks for its nearest among the
others, or those that a split column names ask among the rest. A run is stored whole:
its report, a row for each class and each confusion, and a row for each picture, so that
runs can be compared query by query.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..encoders import EncoderSpec
from ..errors import CollectionError, DatabaseError
from ..index import IndexCache, open_index
from . import ranking
from .ranking import MAP, METRICS, TOP, Task
from .vectors import Say, Stopped, read_vectors

if TYPE_CHECKING:
    import numpy as np

QUERIES = ("query", "queries", "test")  # what a split column says of a query
CONFUSIONS = 1000  # pairs of classes kept
THROUGH_INDEX = 2000  # queries that are asked of the compressed index
CHANGES = 50  # queries kept that changed most, each way
BOTH = (*METRICS, *(f"{name}_macro" for name in METRICS))
ASKED = "e.item_id, e.label, e.average_precision, e.precision_at_5, e.nearest"
BY_QUERY = tuple("average_precision" if name == "map" else name for name in METRICS)


@dataclass(frozen=True)
class ThroughIndex:
    """The same queries asked exactly and through the compressed index.

    `found` is the share of the ten exact neighbours that the index gives. There is no
    mAP: the index hands on the nearest alone.
    """

    queries: int
    found: float
    exact: dict[str, float]
    index: dict[str, float]


@dataclass(frozen=True)
class Report:
    """What a run found. `metrics` and `intervals` have the names in BOTH."""

    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    chance: float  # precision of results in any order
    queries: int
    gallery: int
    classes: int
    alone: int  # labelled queries that were left out: nothing else has their label
    unlabelled: int
    split: str | None
    query_values: list[str]
    through_index: ThroughIndex | None
    encoder: str
    state: list[object]  # of the collection: see `_state()`
    seconds: float

    def in_words(self, label: str) -> str:
        """How it was done, as a sentence."""
        among = "all others"
        if self.split is not None:
            among = f"{self.gallery:,} others, as the column {self.split} says"
        left_out = [
            f"{count:,} {why}"
            for count, why in (
                (self.alone, "with a label of their own"),
                (self.unlabelled, "without a label"),
            )
            if count
        ]
        out = f" Left out: {' and '.join(left_out)}." if left_out else ""
        return (
            f"{self.queries:,} pictures with {self.classes:,} values of {label} asked "
            f"for their nearest among {among}; by chance "
            f"{self.chance * 100:.1f} % would be right.{out}"
        )

    def as_json(self) -> dict[str, Any]:
        """With the metrics at the top."""
        found = asdict(self)
        del found["state"]
        return {**found.pop("metrics"), **found}

    @classmethod
    def from_text(cls, text: object) -> Report:
        """Raises ValueError for anything that `evaluate()` did not write."""
        found = json.loads(text) if isinstance(text, str) else None
        if not isinstance(found, dict) or set(found) != set(cls.__dataclass_fields__):
            raise ValueError
        whole = ("queries", "gallery", "classes", "alone", "unlabelled")
        if not (
            _are_shares(found["metrics"], BOTH)
            and isinstance(found["intervals"], dict)
            and all(_is_pair(found["intervals"].get(name)) for name in BOTH)
            and all(type(found[name]) is int for name in whole)
            and all(_is_number(found[name]) for name in ("chance", "seconds"))
            and isinstance(found["encoder"], str)
            and isinstance(found["split"], (str, type(None)))
            and isinstance(found["query_values"], list)
            and isinstance(found["state"], list)
        ):
            raise ValueError
        index = found["through_index"]
        if index is not None:
            top = [name for name in METRICS if name != "map"]
            if set(index) != set(ThroughIndex.__dataclass_fields__) or not (
                type(index["queries"]) is int
                and _is_number(index["found"])
                and _are_shares(index["exact"], top)
                and _are_shares(index["index"], top)
            ):
                raise ValueError
            index = ThroughIndex(**index)
        return cls(**{**found, "through_index": index})


@dataclass(frozen=True)
class Evaluation:
    """A stored evaluation. `changed`: the collection is no longer what it was."""

    id: int
    collection: db.Collection
    label: str
    made_at: str
    report: Report
    changed: bool

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "table": self.collection.table,
            "collection": self.collection.name,
            "label": self.label,
            "made_at": self.made_at,
            "changed": self.changed,
            **self.report.as_json(),
        }


class ClassFigures(NamedTuple):
    """One label's queries. `values` in the order of METRICS."""

    label: str
    queries: int
    gallery: int
    values: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        figures = dict(zip(METRICS, self.values, strict=True))
        return {
            "label": self.label,
            "queries": self.queries,
            "gallery": self.gallery,
            **figures,
        }


class Confused(NamedTuple):
    """So many of a label's queries (`share` of them) have `other` among the nearest five.

    `examples` are items: a query and what it found.
    """

    label: str
    other: str
    queries: int
    share: float
    examples: list[tuple[int, int]]

    def as_json(self) -> dict[str, Any]:
        return self._asdict()


class Asked(NamedTuple):
    """A query and the items that were nearest to it."""

    item: int
    label: str
    average_precision: float
    precision_at_5: float
    nearest: list[int]


# Making a run


def evaluate(
    conn: sqlite3.Connection,
    collection: db.Collection,
    label: str,
    *,
    split: str | None = None,
    queries: Sequence[str] = (),
    exact: bool = False,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Judge a collection's rankings by the column `label`, and store the run.

    Pictures without a label are left out. With `split`, a column, the rows whose value is
    one of `queries` (by default "query", "queries" or "test", however written) are the
    queries and all others the gallery. Unless `exact`, the compressed index is judged
    beside it where there is one. Raises CollectionError for columns that do not fit,
    Stopped when `stop()` turns true: then nothing is stored.
    """
    started = time.perf_counter()
    if queries and not split:
        raise CollectionError("Which rows are queries is said by a split column: name it")
    state = _state(conn, collection)
    labelled = _labelled(conn, collection, label, split, queries, say, stop)
    task, names = labelled.task, labelled.names
    judged = ranking.judge(task, say, stop)
    classes = task.classes[task.queries]
    metrics, intervals = _summary(judged.values, classes)
    relevant = task.relevant()
    results = len(task.gallery) - (split is None)
    report = Report(
        metrics=metrics,
        intervals=intervals,
        chance=float((relevant / results).mean()),
        queries=len(task.queries),
        gallery=len(task.gallery),
        classes=len(set(classes.tolist())),
        alone=labelled.alone,
        unlabelled=labelled.unlabelled,
        split=split,
        query_values=list(queries),
        through_index=None
        if exact
        else _through_index(conn, collection, labelled, judged, say, stop),
        encoder=_encoder(collection),
        state=state,
        seconds=round(time.perf_counter() - started, 1),
    )
    by_class = _by_class(task, judged, names)
    confused = _confused(task, judged, names, labelled.ids)
    with db.transaction(conn):
        db.migrate(conn)
        run = _put_run(conn, collection, label, report)
        _put_classes(conn, collection, run, by_class)
        _put_confusions(conn, collection, run, confused)
        _put_evaluated(conn, collection, run, labelled, judged)
    return find_run(conn, collection.table, run)


class _Labelled(NamedTuple):
    """The task, what its places stand for, and how much was left out."""

    task: Task
    ids: np.ndarray  # int64 (n,), of places
    names: list[str]  # of classes
    alone: int
    unlabelled: int


def _labelled(
    conn: sqlite3.Connection,
    collection: db.Collection,
    label: str,
    split: str | None,
    queries: Sequence[str],
    say: Say,
    stop: Callable[[], bool],
) -> _Labelled:
    """The queries that have something to find, and what they search."""
    import numpy as np

    found = _labels(conn, collection, label, split)
    asks = _queries(found, split, queries) if split else found
    euclidean = collection.metric == "l2"
    every = read_vectors(
        conn, collection, where=_has_label(label), unit=not euclidean, say=say, stop=stop
    )
    ids, vectors = every.ids, every.vectors
    rows = [found[item] for item in ids.tolist()]
    names = sorted({row.label for row in rows})
    number = {one: place for place, one in enumerate(names)}
    classes = np.fromiter((number[row.label] for row in rows), np.int64, len(rows))
    places = np.arange(len(rows))
    task = Task(vectors, classes, places, places, euclidean)
    if split:
        queries = np.fromiter((item in asks for item in ids.tolist()), bool, len(ids))
        task = task._replace(queries=places[queries], gallery=places[~queries])
    some = task.relevant() > 0
    if not some.any():
        raise CollectionError(
            f"Nothing to find: no query shares its value of {label!r} with another picture"
        )
    task = task._replace(queries=task.queries[some])
    unlabelled = sum(row.label is None for row in found.values())
    return _Labelled(task, ids, names, int((~some).sum()), unlabelled)


class _Said(NamedTuple):
    """What a row's columns say; without a label, None."""

    label: str | None
    split: str | None


def _labels(
    conn: sqlite3.Connection, collection: db.Collection, label: str, split: str | None
) -> dict[int, _Said]:
    """What is said of every live item.

    Raises CollectionError for columns that the table lacks.
    """
    source = db.source_of(conn, collection)
    for column in filter(None, (label, split)):
        if column not in source.columns:
            raise CollectionError(
                f"Table {source.name!r} has no column {column!r}; it has "
                f"{', '.join(source.columns)}"
            )
    name = f"t.{db.quote(label)}"
    also = f"cast(t.{db.quote(split)} as text)" if split else "null"
    rows = conn.execute(
        f"select i.id, case when {_has_label(label, 't.')} then cast({name} as text) end, "
        f"{also} {db.live_sql(collection, source)}"
    )
    return {row[0]: _Said(row[1], row[2]) for row in rows}


def _has_label(label: str, alias: str = "") -> str:
    """SQL: the row says something that can be read."""
    name = f"{alias}{db.quote(label)}"
    return f"typeof({name}) <> 'blob' and trim({name}) <> ''"


def _queries(found: dict[int, _Said], split: str, wanted: Sequence[str]) -> set[int]:
    """The items that ask. Raises CollectionError if none with a label does, or all do."""
    labelled = {item: row.split for item, row in found.items() if row.label is not None}
    asks = {
        item
        for item, value in labelled.items()
        if (value in wanted if wanted else (value or "").strip().lower() in QUERIES)
    }
    if not asks or len(asks) == len(labelled):
        there = ", ".join(sorted({repr(value) for value in labelled.values()})[:10])
        some = "every" if asks else "no"
        raise CollectionError(
            f"By column {split!r}, {some} labelled picture is a query: "
            f"its values are {there or 'none'}. Name those of queries with --queries"
        )
    return asks


def _summary(
    values: np.ndarray, classes: np.ndarray
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The metrics and their intervals, by the names in BOTH."""
    import numpy as np

    means = np.concatenate(ranking.means(values, classes)).tolist()
    intervals = np.concatenate(ranking.intervals(values, classes)).tolist()
    return dict(zip(BOTH, means, strict=True)), dict(zip(BOTH, intervals, strict=True))


def _by_class(task: Task, judged: ranking.Judged, names: list[str]) -> list[ClassFigures]:
    import numpy as np

    classes = task.classes[task.queries]
    queries = np.bincount(classes, minlength=len(names))
    gallery = np.bincount(task.classes[task.gallery], minlength=len(names))
    sums = np.zeros((len(names), len(METRICS)))
    np.add.at(sums, classes, judged.values)
    return [
        ClassFigures(
            names[one],
            int(queries[one]),
            int(gallery[one]),
            tuple((sums[one] / queries[one]).tolist()),
        )
        for one in np.flatnonzero(queries).tolist()
    ]


def _confused(
    task: Task, judged: ranking.Judged, names: list[str], ids: np.ndarray
) -> list[Confused]:
    """The greatest shares first; of a pair that one query confuses, nothing can be said."""
    import numpy as np

    sizes = np.bincount(task.classes[task.queries], minlength=len(names)).tolist()
    found = [
        Confused(
            names[one.label],
            names[one.other],
            one.queries,
            one.queries / sizes[one.label],
            [(int(ids[query]), int(ids[place])) for query, place in one.examples],
        )
        for one in ranking.confusions(task, judged.nearest)
        if one.queries > 1
    ]
    found.sort(key=lambda one: (-one.share, -one.queries, one.label, one.other))
    return found[:CONFUSIONS]


def _through_index(
    conn: sqlite3.Connection,
    collection: db.Collection,
    labelled: _Labelled,
    judged: ranking.Judged,
    say: Say,
    stop: Callable[[], bool],
) -> ThroughIndex | None:
    """Some queries as search answers them by the compressed index; None without one."""
    import numpy as np

    index = open_index(conn, collection, IndexCache())
    if index is None:
        return None
    task, ids = labelled.task, labelled.ids
    count = len(task.queries)
    chance = np.random.default_rng(0)
    sample = np.sort(chance.choice(count, min(count, THROUGH_INDEX), replace=False))
    gallery = ids[task.gallery]
    # As search does: a filter, if the gallery is not the whole collection.
    whole = len(gallery) == len(ids) and not labelled.unlabelled
    waiting = list(db.waiting_items(conn, collection))
    relevant = task.relevant()
    values, shared = [], 0
    for done, place in enumerate(sample.tolist(), 1):
        if stop():
            raise Stopped
        query = int(task.queries[place])
        vector = task.vectors[query].astype("<f4").tobytes()
        handed_on = index.nearest(vector, TOP + 1, None if whole else gallery)
        items = np.setdiff1d(np.union1d(handed_on, waiting), ids[query])
        candidates = task.gallery[np.isin(gallery, items)]
        nearest = ranking.nearest_of(task, query, candidates)
        ranks = np.flatnonzero(task.classes[nearest] == task.classes[query])
        values.append(ranking.metrics_of(ranks, int(relevant[place])))
        shared += len(np.intersect1d(nearest, judged.nearest[place]))
        say("Asking the compressed index", done, len(sample))
    both = [judged.values[sample].mean(axis=0), np.array(values).mean(axis=0)]
    exact, indexed = (
        {name: float(one) for name, one in zip(METRICS, mean, strict=True) if name != "map"}
        for mean in both
    )
    there = int((judged.nearest[sample] >= 0).sum())
    return ThroughIndex(len(sample), shared / there, exact, indexed)


def _encoder(collection: db.Collection) -> str:
    """The encoder in words, and how it sees a picture that is not square."""
    spec = EncoderSpec.from_json(collection.encoder)
    return f"{spec}, {spec.input.fit}"


def _state(conn: sqlite3.Connection, collection: db.Collection) -> list[object]:
    """What changes when items are embedded, embedded again, or dropped."""
    row = conn.execute(
        "select count(*), max(embedded_at) from _image_similarity_items "
        "where collection_id = ?",
        (collection.id,),
    ).fetchone()
    return [collection.fingerprint, *row]


def _put_run(
    conn: sqlite3.Connection, collection: db.Collection, label: str, report: Report
) -> int:
    return conn.execute(
        "insert into _image_similarity_evaluations (collection_id, label, report) "
        "values (?, ?, ?) returning id",
        (collection.id, label, json.dumps(asdict(report))),
    ).fetchone()[0]


def _put_classes(
    conn: sqlite3.Connection,
    collection: db.Collection,
    run: int,
    classes: Iterable[ClassFigures],
) -> None:
    conn.executemany(
        "insert into _image_similarity_classes (evaluation_id, collection_id, label, "
        f"queries, gallery, {', '.join(METRICS)}) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (run, collection.id, one.label, one.queries, one.gallery, *one.values)
            for one in classes
        ),
    )


def _put_confusions(
    conn: sqlite3.Connection,
    collection: db.Collection,
    run: int,
    confused: Iterable[Confused],
) -> None:
    conn.executemany(
        "insert into _image_similarity_confusions (evaluation_id, collection_id, label, "
        "other, queries, share, examples) values (?, ?, ?, ?, ?, ?, ?)",
        ((run, collection.id, *one[:4], json.dumps(one.examples)) for one in confused),
    )


def _put_evaluated(
    conn: sqlite3.Connection,
    collection: db.Collection,
    run: int,
    labelled: _Labelled,
    judged: ranking.Judged,
) -> None:
    """A row for each query, and one without figures for all else that could be found:
    a neighbour without a row is an item whose id was given out again since."""
    import numpy as np

    task = labelled.task
    ids = labelled.ids.tolist()
    place_of = np.full(len(ids), -1)
    place_of[task.queries] = np.arange(len(task.queries))
    conn.executemany(
        "insert into _image_similarity_evaluated (evaluation_id, collection_id, item_id, "
        f"label, {', '.join(BY_QUERY)}, nearest) "
        "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                run,
                collection.id,
                item,
                labelled.names[one],
                *(judged.values[place].tolist() if place >= 0 else [None] * len(METRICS)),
                _as_text(labelled.ids, judged.nearest[place]) if place >= 0 else None,
            )
            for item, one, place in zip(
                ids, task.classes.tolist(), place_of.tolist(), strict=True
            )
        ),
    )


def _as_text(ids: np.ndarray, nearest: np.ndarray) -> str:
    return json.dumps(ids[nearest[nearest >= 0]].tolist(), separators=(",", ":"))


# Reading runs


def runs(conn: sqlite3.Connection, table: str) -> tuple[list[Evaluation], list[str]]:
    """All runs over a table, in all its collections, the newest first; and what there is
    to say of damaged ones."""
    found, faults = [], []
    for collection, row in _stored(conn, table):
        try:
            found.append(_read(conn, collection, row))
        except DatabaseError as error:
            faults.append(str(error))
    return sorted(found, key=lambda run: -run.id), faults


def find_run(conn: sqlite3.Connection, table: str, run: int) -> Evaluation:
    """Raises CollectionError for one that is not there, DatabaseError for a damaged one."""
    for collection, row in _stored(conn, table, run):
        return _read(conn, collection, row)
    raise CollectionError(f"There is no evaluation {run} of {table!r}")


def _stored(
    conn: sqlite3.Connection, table: str, run: int | None = None
) -> Iterator[tuple[db.Collection, sqlite3.Row]]:
    """The rows of all runs over a table, or of one."""
    if not db.is_current(conn):
        return
    sql = (
        "select id, label, report, made_at from _image_similarity_evaluations "
        "where collection_id = ? and (?2 is null or id = ?2)"
    )
    for collection in db.collections(conn, table):
        for row in conn.execute(sql, (collection.id, run)).fetchall():
            yield collection, row


def _read(
    conn: sqlite3.Connection, collection: db.Collection, row: sqlite3.Row
) -> Evaluation:
    with _checked(row["id"]):
        report = Report.from_text(row["report"])
        if not isinstance(row["label"], str) or not isinstance(row["made_at"], str):
            raise ValueError
    return Evaluation(
        id=row["id"],
        collection=collection,
        label=row["label"],
        made_at=row["made_at"],
        report=report,
        changed=report.state != _state(conn, collection),
    )


@contextmanager
def _checked(run: int) -> Iterator[None]:
    """Turns what is wrong with the rows of a run into a DatabaseError."""
    try:
        yield
    except (ValueError, TypeError, RecursionError):
        raise DatabaseError(
            f"Evaluation {run} in this database is damaged. To drop it: datasette "
            f"image-similarity evaluate DATABASE --forget {run}"
        ) from None


def classes_of(conn: sqlite3.Connection, run: Evaluation) -> list[ClassFigures]:
    """The labels of a run's queries, in their order."""
    rows = conn.execute(
        f"select label, queries, gallery, {', '.join(METRICS)} "
        "from _image_similarity_classes where evaluation_id = ? order by label",
        (run.id,),
    )
    with _checked(run.id):
        return [
            ClassFigures(
                str(row[0]), int(row[1]), int(row[2]), tuple(_share(one) for one in row[3:])
            )
            for row in map(tuple, rows)
        ]


def confusions_of(
    conn: sqlite3.Connection, run: Evaluation, limit: int = CONFUSIONS
) -> list[Confused]:
    """Which labels find which others, the greatest shares first."""
    rows = conn.execute(
        "select label, other, queries, share, examples from _image_similarity_confusions "
        "where evaluation_id = ? order by share desc, queries desc, label, other limit ?",
        (run.id, limit),
    )
    with _checked(run.id):
        return [
            Confused(
                str(row["label"]),
                str(row["other"]),
                int(row["queries"]),
                _share(row["share"]),
                [tuple(_items(pair)) for pair in _list(row["examples"])],
            )
            for row in rows
        ]


def worst_queries(
    conn: sqlite3.Connection,
    run: Evaluation,
    limit: int,
    offset: int = 0,
    label: str | None = None,
) -> list[Asked]:
    """Queries whose row is still there, the lowest average precision first."""
    source = db.source_of(conn, run.collection)
    items = (
        "_image_similarity_evaluated e "
        "cross join _image_similarity_items i on i.id = e.item_id"
    )
    rows = conn.execute(
        f"select {ASKED} {db.live_sql(run.collection, source, items)} "
        "and e.evaluation_id = :run and e.average_precision is not null "
        "and (:label is null or e.label = :label) "
        "order by e.average_precision, e.item_id limit :limit offset :offset",
        {"run": run.id, "label": label, "limit": limit, "offset": offset},
    ).fetchall()
    return [_asked(run, row) for row in rows]


def asked(
    conn: sqlite3.Connection, run: Evaluation, items: Sequence[int]
) -> dict[int, Asked]:
    """Some queries of a run, by item."""
    rows = conn.execute(
        f"select {ASKED} from json_each(?) j cross join _image_similarity_evaluated e "
        "on e.evaluation_id = ? and e.item_id = j.value "
        "where e.average_precision is not null",
        (json.dumps(list(items)), run.id),
    )
    return {row["item_id"]: _asked(run, row) for row in rows}


def _asked(run: Evaluation, row: sqlite3.Row) -> Asked:
    with _checked(run.id):
        return Asked(
            row["item_id"],
            str(row["label"]),
            _share(row["average_precision"]),
            _share(row["precision_at_5"]),
            _items(_list(row["nearest"])),
        )


def forget_run(conn: sqlite3.Connection, run: int) -> None:
    """Drop a stored run, also a damaged one. Raises CollectionError without such a run."""
    gone = 0
    if db.is_current(conn):
        with db.transaction(conn):
            for table in ("evaluated", "confusions", "classes"):
                conn.execute(
                    f"delete from {db.PREFIX}{table} where evaluation_id = ?", (run,)
                )
            gone = conn.execute(
                "delete from _image_similarity_evaluations where id = ?", (run,)
            ).rowcount
    if not gone:
        raise CollectionError(f"There is no evaluation {run} in this database")


# Comparing runs


@dataclass(frozen=True)
class Change:
    """A query that both runs have: its item and average precision in each."""

    items: tuple[int, int]
    label: str
    before: float
    after: float


@dataclass(frozen=True)
class Comparison:
    """What another run changes, over the `queries` that both have with the same label.

    `differences` and their 95 % `intervals` (paired bootstrap) have the names in BOTH;
    empty without such queries. `classes` are (label, queries, mAP before, after). Both
    lists have what lost most first.
    """

    run: Evaluation
    queries: int
    differences: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, list[float]] = field(default_factory=dict)
    classes: list[tuple[str, int, float, float]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "run": self.run.id,
            "queries": self.queries,
            "differences": self.differences,
            "intervals": self.intervals,
            "classes": [
                {"label": label, "queries": queries, "map_before": a, "map_after": b}
                for label, queries, a, b in self.classes
            ],
        }


def compare(conn: sqlite3.Connection, before: Evaluation, after: Evaluation) -> Comparison:
    """What `after` changes. Rows of the table go together by their keys, so that the
    runs may be of two collections. Raises DatabaseError for a damaged run."""
    import numpy as np

    cursor = conn.cursor()
    cursor.row_factory = None
    rows = cursor.execute(
        "select a.item_id, b.item_id, a.label, "
        + ", ".join(f"a.{name}, b.{name}" for name in BY_QUERY)
        + " from _image_similarity_evaluated a "
        "cross join _image_similarity_items i on i.id = a.item_id "
        "cross join _image_similarity_items o on o.collection_id = ? and o.pk = i.pk "
        "cross join _image_similarity_evaluated b "
        "on b.evaluation_id = ? and b.item_id = o.id and b.label = a.label "
        "where a.evaluation_id = ? and a.average_precision is not null "
        "and b.average_precision is not null",
        (after.collection.id, after.id, before.id),
    ).fetchall()
    if not rows:
        return Comparison(after, 0)
    with _checked(before.id):
        figures = np.array([row[3:] for row in rows], np.float64)
        if not np.isfinite(figures).all():
            raise ValueError
    figures = figures.reshape(len(rows), len(METRICS), 2)
    names = sorted({str(row[2]) for row in rows})
    number = {name: place for place, name in enumerate(names)}
    classes = np.array([number[str(row[2])] for row in rows])
    changed = figures[:, :, 1] - figures[:, :, 0]
    resamples = max(100, min(ranking.RESAMPLES, 4_000_000 // len(rows)))
    means = np.concatenate(ranking.means(changed, classes)).tolist()
    intervals = np.concatenate(ranking.intervals(changed, classes, resamples)).tolist()
    counts = np.bincount(classes)
    both = [np.bincount(classes, weights=figures[:, MAP, one]) / counts for one in (0, 1)]
    by_class = zip(names, counts.tolist(), *(one.tolist() for one in both), strict=True)
    order = np.argsort(changed[:, MAP], kind="stable")
    ends = np.unique(np.concatenate([order[:CHANGES], order[-CHANGES:]]))
    changes = [
        Change((rows[one][0], rows[one][1]), str(rows[one][2]), *figures[one, MAP].tolist())
        for one in ends.tolist()
        if changed[one, MAP]
    ]
    return Comparison(
        after,
        len(rows),
        dict(zip(BOTH, means, strict=True)),
        dict(zip(BOTH, intervals, strict=True)),
        sorted(by_class, key=lambda one: one[3] - one[2]),
        sorted(changes, key=lambda one: one.after - one.before),
    )


# What a stranger may have written


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _share(value: object) -> float:
    if not _is_number(value):
        raise ValueError
    return float(value)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _are_shares(found: object, names: Iterable[str]) -> bool:
    return isinstance(found, dict) and all(_is_number(found.get(name)) for name in names)


def _list(text: object) -> list:
    found = json.loads(text) if isinstance(text, str) else None
    if not isinstance(found, list):
        raise ValueError
    return found[:TOP]


def _items(found: object) -> list[int]:
    if not isinstance(found, list) or not all(type(one) is int for one in found):
        raise ValueError
    return found
