"""Evaluations as they are stored: read, compared, forgotten. `evaluate.py` makes them.

A run is a report, as JSON; a row for each label, each confusion, and each picture. A
database may come from a stranger: what is read is checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError, DatabaseError
from . import judging
from .judging import MAP, METRICS, TOP

CONFUSIONS = 1000  # pairs of labels kept
CHANGES = 50  # queries told of that changed most, each way
BOTH = (*METRICS, *(f"{name}_macro" for name in METRICS))
BY_QUERY = tuple("average_precision" if name == "map" else name for name in METRICS)
ASKED = "e.item_id, e.label, e.average_precision, e.precision_at_5, e.nearest"


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
    state: list[object]  # of the collection: see `state_of()`
    seconds: float
    learned: list[str] = field(default_factory=list)  # what heads were trained on

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
            f"{self.chance * 100:.1f} % would be right.{out}{self._flattery()}"
        )

    def _flattery(self) -> str:
        """What to know of vectors that have been told what is alike."""
        if not self.learned:
            return ""
        return (
            f" These vectors were trained on such pictures, by {', '.join(self.learned)}: "
            "of new ones expect less. The command train reports what it gains on pictures "
            "and classes held out."
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
        if isinstance(found, dict):
            found = {"learned": [], **found}  # it came later
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
            and isinstance(found["learned"], list)
            and all(isinstance(one, str) for one in found["learned"])
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
        found = self._asdict()
        del found["examples"]  # ids of ours: pages turn them into keys
        return found


class Asked(NamedTuple):
    """A query and the items that were nearest to it."""

    item: int
    label: str
    average_precision: float
    precision_at_5: float
    nearest: list[int]


def state_of(conn: sqlite3.Connection, collection: db.Collection) -> list[object]:
    """What changes when items are embedded, embedded again, or dropped."""
    row = conn.execute(
        "select count(*), cast(max(embedded_at) as text) from _image_similarity_items "
        "where collection_id = ?",
        (collection.id,),
    ).fetchone()
    return [collection.fingerprint, *row]


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


def damaged_runs(conn: sqlite3.Connection, collection: db.Collection) -> list[int]:
    """The runs of a collection that cannot be read."""
    damaged = []
    for one, row in _stored(conn, collection.table):
        if one.id != collection.id:
            continue
        try:
            run = _read(conn, one, row)
            classes_of(conn, run)
            confusions_of(conn, run)
            with suppress(CollectionError):  # its table is gone
                worst_queries(conn, run, -1)
        except DatabaseError:
            damaged.append(row["id"])
    return damaged


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
        changed=report.state != state_of(conn, collection),
    )


@contextmanager
def _checked(run: int) -> Iterator[None]:
    """Turns what is wrong with the rows of a run into a DatabaseError."""
    try:
        yield
    except (ValueError, TypeError, OverflowError, RecursionError):
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
    resamples = max(100, min(judging.RESAMPLES, 4_000_000 // len(rows)))
    means = np.concatenate(judging.means(changed, classes)).tolist()
    intervals = np.concatenate(judging.intervals(changed, classes, resamples)).tolist()
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
