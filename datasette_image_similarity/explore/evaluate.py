"""How good a collection's results are, by a label column.

`judging.py` has the definitions. Every labelled picture asks for its nearest among the
others, or those that a split column names ask among the rest. What was found is stored:
see `evaluations.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..encoders import EncoderSpec
from ..errors import CollectionError
from ..index import IndexCache, open_index
from . import judging
from .evaluations import (
    BOTH,
    BY_QUERY,
    CONFUSIONS,
    ClassFigures,
    Confused,
    Evaluation,
    Report,
    ThroughIndex,
    find_run,
    state_of,
)
from .judging import METRICS, TOP, Task
from .vectors import Say, Stopped, read_vectors

if TYPE_CHECKING:
    import numpy as np

QUERIES = ("query", "queries", "test")  # what a split column says of a query
THROUGH_INDEX = 1000  # queries that are asked of the compressed index


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
    with _snapshot(conn):
        state = state_of(conn, collection)
        labelled = _labelled(conn, collection, label, split, queries, say, stop)
    task, names = labelled.task, labelled.names
    judged = judging.judge(task, say, stop)
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
        learned=_learned(conn, collection),
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


@contextmanager
def _snapshot(conn: sqlite3.Connection) -> Iterator[None]:
    """What is read in here belongs together, whatever others write meanwhile."""
    conn.execute("begin")
    try:
        yield
    finally:
        conn.execute("rollback")


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
    labelled = f"{db.source_of(conn, collection).label_sql(label)} is not null"
    every = read_vectors(
        conn, collection, where=labelled, unit=not euclidean, say=say, stop=stop
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
    said = source.label_sql(label, "t")
    if split:
        source.require_column(split)
    also = f"cast(t.{db.quote(split)} as text)" if split else "null"
    rows = conn.execute(f"select i.id, {said}, {also} {db.live_sql(collection, source)}")
    return {row[0]: _Said(row[1], row[2]) for row in rows}


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

    means = np.concatenate(judging.means(values, classes)).tolist()
    intervals = np.concatenate(judging.intervals(values, classes)).tolist()
    return dict(zip(BOTH, means, strict=True)), dict(zip(BOTH, intervals, strict=True))


def _by_class(task: Task, judged: judging.Judged, names: list[str]) -> list[ClassFigures]:
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
    task: Task, judged: judging.Judged, names: list[str], ids: np.ndarray
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
        for one in judging.confusions(task, judged.nearest)
        if one.queries > 1
    ]
    found.sort(key=lambda one: (-one.share, -one.queries, one.label, one.other))
    return found[:CONFUSIONS]


def _through_index(
    conn: sqlite3.Connection,
    collection: db.Collection,
    labelled: _Labelled,
    judged: judging.Judged,
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
        places = gallery.searchsorted(items)
        there = gallery[np.minimum(places, len(gallery) - 1)] == items
        candidates = task.gallery[places[there]]
        nearest = judging.nearest_of(task, query, candidates)
        ranks = np.flatnonzero(task.classes[nearest] == task.classes[query])
        values.append(judging.metrics_of(ranks, int(relevant[place])))
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
    learned = f", {spec.transformed}" if spec.transformed else ""
    return f"{spec.backbone}, {spec.input.fit}{learned}"


def _learned(conn: sqlite3.Connection, collection: db.Collection) -> list[str]:
    """What the collection's heads were trained on, as `train` has noted it."""
    steps = db.transform_rows(conn, collection)
    try:
        noted = [json.loads(step["about"]).get("learned_from") for step in steps]
    except (ValueError, TypeError, AttributeError, RecursionError):
        return []  # a stranger's
    return [one[:200] for one in noted if isinstance(one, str)]


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
    judged: judging.Judged,
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
