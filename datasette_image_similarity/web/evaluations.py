"""Stored evaluations: all of a table's, one with its failures, some side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from datasette.utils.asgi import Response
from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError
from ..explore import evaluations as stored
from ..explore.evaluations import Asked, Comparison, Confused, Evaluation
from ..explore.exports import caption_text
from ..explore.judging import METRICS, NAMES
from .answers import ask_database, csv_answer, json_answer, page, tells_errors, wants_json
from .compat import similar_url, table_tools_url
from .question import PageError, Place, find_place
from .tiles import caption_column

if TYPE_CHECKING:
    from datasette.app import Datasette

QUERIES = 20  # a page
CLASSES = 100  # shown at first
CONFUSIONS = 12
COMPARED = 6  # runs side by side at most
CHANGED = 8  # labels and queries that changed most, each way
STRIP = 5  # neighbours of these
SORTS = ("label", "queries", *METRICS)
LIKELY = ("category", "label", "class", "kind", "type", "species", "folder")


@dataclass(frozen=True)
class Picture:
    """A picture of a run; `right` as a result: has the query's label."""

    pk: str
    url: str
    thumbnail: str
    similar_url: str
    caption: str
    label: str
    right: bool | None = None

    def as_json(self) -> dict[str, Any]:
        return {"pk": self.pk, "label": self.label, "right": self.right}


class Failure(NamedTuple):
    """A query with what it found; None for a picture that is gone."""

    query: Picture
    asked: Asked
    found: list[Picture | None]

    def as_json(self) -> dict[str, Any]:
        return {
            "pk": self.query.pk,
            "label": self.asked.label,
            "average_precision": self.asked.average_precision,
            "precision_at_5": self.asked.precision_at_5,
            "nearest": [one and one.as_json() for one in self.found],
        }


class Changed(NamedTuple):
    """A query in two runs; where these are of two collections, `compare_url` asks both."""

    before: Failure
    after: Failure
    compare_url: str | None = None

    @property
    def difference(self) -> float:
        return self.after.asked.average_precision - self.before.asked.average_precision


# All runs


@tells_errors
async def evaluations(datasette: Datasette, request: Any) -> Response:
    """The runs over a table; with `?_run=1&_run=2` these, compared."""
    place = await find_place(datasette, request)
    # The oldest is what the others changed: the page's list has the newest first.
    asked = sorted(set(map(_number, request.args.getlist("_run"))))
    if asked:
        return await _compared(place, asked)
    runs, faults = await ask_database(place, lambda conn: stored.runs(conn, place.table))
    if wants_json(request):
        return json_answer(place, {"evaluations": [run.as_json() for run in runs]})
    path = place.path("evaluations")
    return await page(
        place,
        "image_similarity_evaluations.html",
        {
            "runs": runs,
            "faults": faults,
            "metrics": NAMES,
            "path": path,
            "run_url": lambda run: place.url(f"evaluations/{run.id}"),
            "named": request.args.get("_collection"),
            "command": _command(place, runs),
        },
    )


def _command(place: Place, runs: list[Evaluation]) -> str:
    """The command that evaluates this collection (again), ready to be pasted."""
    likely = [*(run.label for run in runs), *LIKELY]
    label = next((name for name in likely if name in place.source.columns), "COLUMN")
    return place.command("evaluate", "--label", label)


# One run


@tells_errors
async def evaluation(datasette: Datasette, request: Any) -> Response:
    """One run: its metrics, labels, confusions and the queries that went worst."""
    place = await find_place(datasette, request)
    gallery = await _gallery(place)
    label = request.args.get("_label")
    offset = _number(request.args.get("_next"))

    def read(conn: sqlite3.Connection) -> dict[str, Any]:
        run = _find(conn, place, _number(request.url_vars["run"]))
        worst = stored.worst_queries(conn, run, QUERIES + 1, offset, label)
        confusions = stored.confusions_of(conn, run, CONFUSIONS)
        return {
            "run": run,
            "classes": stored.classes_of(conn, run),
            "confusions": gallery.confused(conn, run, confusions),
            "worst": gallery.failures(conn, run, worst[:QUERIES]),
            "next": offset + QUERIES if len(worst) > QUERIES else None,
        }

    found = await ask_database(place, read)
    if wants_json(request):
        return json_answer(place, _run_as_json(found))
    if request.url_vars.get("format") == "csv":
        return _csv(place, found["run"], found["classes"])
    path = place.path(f"evaluations/{found['run'].id}")
    return await page(
        place,
        "image_similarity_evaluation.html",
        {
            **found,
            **_sorted_classes(request, found["classes"]),
            "metrics": NAMES,
            "path": path,
            "offset": offset,
            "label": label,
            "list_url": place.url("evaluations"),
            "url": lambda **changes: _url(request, path, **changes),
        },
    )


def _run_as_json(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "evaluation": found["run"].as_json(),
        "per_class": [one.as_json() for one in found["classes"]],
        "confusions": [
            {
                **one.as_json(),
                "examples": [
                    {"query": asked.pk, "found": wrong.pk} for asked, wrong in pairs
                ],
            }
            for one, pairs in found["confusions"]
        ],
        "worst": [one.as_json() for one in found["worst"]],
        "next": None if found["next"] is None else str(found["next"]),
    }


def _csv(place: Place, run: Evaluation, classes: Iterable[stored.ClassFigures]) -> Response:
    """A run's labels."""
    columns = ["label", "queries", "gallery", *METRICS]
    rows = [[*one[:3], *one.values] for one in classes]
    return csv_answer(place, f"evaluation-{run.id}", columns, rows)


def _sorted_classes(request: Any, classes: list[stored.ClassFigures]) -> dict[str, Any]:
    """The labels in the order that the address asks for, the worst first by default."""
    down = request.args.get("_sort_desc")
    by = down or request.args.get("_sort") or "map"
    if by not in SORTS:
        raise PageError(400, f"Labels can be sorted by {', '.join(SORTS)}")
    place = SORTS.index(by) - 2
    ordered = sorted(
        classes,
        key=lambda one: one.values[place] if place >= 0 else one[place + 2],
        reverse=down is not None,
    )
    some = ordered if request.args.get("_all") else ordered[:CLASSES]
    return {"classes": some, "all_classes": len(ordered), "sort": by, "down": bool(down)}


# Some runs side by side


async def _compared(place: Place, asked: list[int]) -> Response:
    if len(asked) > COMPARED:
        raise PageError(400, f"Up to {COMPARED} evaluations can be compared at once")
    path = place.path("evaluations")
    if len(asked) == 1 and not wants_json(place.request):
        return Response.redirect(_url(place.request, f"{path}/{asked[0]}", _run=None))
    gallery = await _gallery(place)

    def read(
        conn: sqlite3.Connection,
    ) -> tuple[list[Evaluation], list[tuple[Comparison, list[Changed]]]]:
        runs = [_find(conn, place, one) for one in asked]
        compared = [stored.compare(conn, runs[0], run) for run in runs[1:]]
        return runs, [(one, gallery.changed(conn, runs[0], one)) for one in compared]

    runs, compared = await ask_database(place, read)
    if wants_json(place.request):
        comparison = [
            {
                **one.as_json(),
                "changes": [
                    {
                        "pk": change.before.query.pk,
                        "label": change.before.asked.label,
                        "before": change.before.asked.average_precision,
                        "after": change.after.asked.average_precision,
                    }
                    for change in changes
                ],
            }
            for one, changes in compared
        ]
        found = [run.as_json() for run in runs]
        return json_answer(place, {"evaluations": found, "comparison": comparison})
    return await page(
        place,
        "image_similarity_compared.html",
        {
            "runs": runs,
            "compared": compared,
            "metrics": NAMES,
            "most": CHANGED,
            "scale": _scale(one for one, _ in compared),
            "run_url": lambda run: place.url(f"evaluations/{run.id}"),
            "list_url": place.url("evaluations"),
        },
    )


def _scale(compared: Iterable[Comparison]) -> float:
    """The greatest difference that a bar has to show."""
    ends = [abs(end) for one in compared for pair in one.intervals.values() for end in pair]
    return max([*ends, 0.01])


# Pictures of runs


@dataclass(frozen=True)
class _Gallery:
    """Where a run's pictures are shown from: rows that are gone never are."""

    place: Place
    caption: str | None
    usual: str | None  # the collection that addresses need not name

    def pictures(
        self, conn: sqlite3.Connection, run: Evaluation, items: Iterable[int]
    ) -> dict[int, Picture]:
        """Those of these items that are still there, as the run had them.

        An item without a row in the run has come since, under an id that was free.
        """
        source = db.source_of(conn, run.collection)
        among = (
            f"{db.ITEMS_BY_ID} cross join _image_similarity_evaluated e "
            "on e.evaluation_id = :run and e.item_id = i.id"
        )
        caption = f"t.{db.quote(self.caption)}" if self.caption else "null"
        rows = conn.execute(
            f"select i.id, i.pk, e.label, {caption} as caption "
            f"{db.live_sql(run.collection, source, among)}",
            {"ids": json.dumps(sorted(set(items))), "run": run.id},
        )
        return {row["id"]: self._picture(run, row) for row in rows}

    def _picture(self, run: Evaluation, row: sqlite3.Row) -> Picture:
        place = self.place
        pk = place.row_path(row["pk"])
        named = None if run.collection.name == self.usual else run.collection.name
        where = place.datasette, place.database, place.table
        return Picture(
            pk=pk,
            url=f"{place.table_url}/{pk}",
            thumbnail=table_tools_url(*where, f"thumbnail/{pk}", named),
            similar_url=similar_url(*where, pk, [("_collection", named)] if named else []),
            caption=caption_text(row["caption"], pk),
            label=str(row["label"]),
        )

    def failures(
        self, conn: sqlite3.Connection, run: Evaluation, asked: Sequence[Asked]
    ) -> list[Failure]:
        """Queries with their pictures; those whose picture is gone are left out."""
        wanted = {item for one in asked for item in (one.item, *one.nearest)}
        pictures = self.pictures(conn, run, wanted)
        return [
            Failure(
                pictures[one.item],
                one,
                [_judged(pictures.get(item), one.label) for item in one.nearest],
            )
            for one in asked
            if one.item in pictures
        ]

    def confused(
        self, conn: sqlite3.Connection, run: Evaluation, confused: Sequence[Confused]
    ) -> list[tuple[Confused, list[tuple[Picture, Picture]]]]:
        """Confusions with those of their examples that are still there."""
        items = {item for one in confused for pair in one.examples for item in pair}
        pictures = self.pictures(conn, run, items)
        return [
            (
                one,
                [
                    (pictures[query], pictures[found])
                    for query, found in one.examples
                    if query in pictures and found in pictures
                ],
            )
            for one in confused
        ]

    def changed(
        self, conn: sqlite3.Connection, before: Evaluation, comparison: Comparison
    ) -> list[Changed]:
        """The queries that lost and gained most, what lost most first."""
        after = comparison.run
        lost = [one for one in comparison.changes if one.after < one.before][:CHANGED]
        won = [one for one in comparison.changes if one.after > one.before][-CHANGED:]
        sides = []
        for run, side in ((before, 0), (after, 1)):
            items = [one.items[side] for one in [*lost, *won]]
            asked = stored.asked(conn, run, items)
            shown = self.failures(conn, run, list(asked.values()))
            sides.append({one.asked.item: one for one in shown})
        return [
            Changed(sides[0][a], sides[1][b], self._compare_url(before, after, sides[0][a]))
            for a, b in (one.items for one in [*lost, *won])
            if a in sides[0] and b in sides[1]
        ]

    def _compare_url(
        self, one: Evaluation, other: Evaluation, asked: Failure
    ) -> str | None:
        """Where the collections of two runs answer a query side by side."""
        names = one.collection.name, other.collection.name
        if names[0] == names[1]:
            return None
        pairs = [("_like", asked.query.pk), ("_collection", names[0]), ("_with", names[1])]
        return f"{self.place.path('compare')}?{urlencode(pairs)}"


async def _gallery(place: Place) -> _Gallery:
    usual = await place.service.collection(place.database, place.table)
    return _Gallery(place, await caption_column(place), usual and usual.name)


def _judged(picture: Picture | None, label: str) -> Picture | None:
    return picture and Picture(**{**asdict(picture), "right": picture.label == label})


# Addresses


def _find(conn: sqlite3.Connection, place: Place, run: int) -> Evaluation:
    """Raises PageError 404."""
    try:
        return stored.find_run(conn, place.table, run)
    except CollectionError as error:
        raise PageError(404, str(error)) from None


def _number(text: str | None) -> int:
    """Raises PageError 400."""
    if not text:
        return 0
    if not text.isdecimal() or len(text) > 15:
        raise PageError(400, f"{text} is not a whole number")
    return int(text)


def _url(request: Any, path: str, **changes: object) -> str:
    """An address with the same parameters but these; None drops one."""
    pairs = [
        (name, value)
        for name in request.args
        for value in request.args.getlist(name)
        if name not in changes
    ]
    pairs += [(name, str(value)) for name, value in changes.items() if value is not None]
    return f"{path}?{urlencode(pairs)}" if pairs else path
