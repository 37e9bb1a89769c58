"""What results hold as data, and in what shape: Datasette's own parameters.

`_col`, `_nocol`, `_labels`, `_label`, `_shape` and `_nl` do what they do at a table's own
`.json` and `.csv`. A row keeps its rank, key, score and distance in every shape that has
room for them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasette.utils import value_as_boolean
from datasette.utils.asgi import Response

from ..database import plain_columns
from ..query import Hit
from .answers import csv_answer, plain_json
from .compat import labels_of
from .question import PageError, Place

SHAPES = ("objects", "arrays", "array", "arrayfirst", "object")
PARAMETERS = ("_col", "_nocol", "_labels", "_label", "_shape", "_nl")
OF_HIT = ("rank", "pk", "score", "distance")


@dataclass(frozen=True)
class Shape:
    """What was asked for. `labelled` are the columns whose foreign keys get labels, None
    for all; `pairs` is what an address of the next page keeps."""

    name: str
    columns: tuple[str, ...]
    labelled: tuple[str, ...] | None
    by_line: bool
    pairs: dict[str, list[str]]


def read_shape(place: Place) -> Shape:
    """Raises PageError 400 for a column or shape that there is not."""
    args = place.request.args
    name = args.get("_shape") or "objects"
    if name not in SHAPES:
        raise PageError(400, f"Invalid _shape: {name}. Choose one of {', '.join(SHAPES)}")
    try:
        all_labels = value_as_boolean(args.get("_labels") or "off")
    except ValueError:
        all_labels = False
    return Shape(
        name=name,
        columns=_columns(place),
        labelled=None if all_labels else tuple(args.getlist("_label")),
        by_line=bool(args.get("_nl")) and name == "array",
        pairs={one: args.getlist(one) for one in PARAMETERS if args.get(one)},
    )


def _columns(place: Place) -> tuple[str, ...]:
    """The row's columns: all but pictures in a BLOB column, or those in `_col` with the
    key; without those in `_nocol`."""
    source, args = place.source, place.request.args
    named, left_out = args.getlist("_col"), args.getlist("_nocol")
    bad = [name for name in named if name not in source.columns]
    if bad:
        raise PageError(400, f"_col={', '.join(bad)} - invalid columns")
    bad = [name for name in left_out if name not in source.columns or name in source.pks]
    if bad:
        raise PageError(400, f"_nocol={', '.join(bad)} - invalid columns")
    columns = [*source.pks, *named] if named else plain_columns(place.collection, source)
    return tuple(name for name in dict.fromkeys(columns) if name not in left_out)


async def with_labels(place: Place, shape: Shape, hits: Sequence[Hit]) -> list[Hit]:
    """The hits; values that have a label as {"value": …, "label": …}."""
    wanted = shape.columns
    if shape.labelled is not None:
        wanted = tuple(name for name in wanted if name in shape.labelled)
    labels: dict[tuple[str, object], object] = {}
    for column in wanted:
        values = [hit.row[column] for hit in hits if hit.row[column] is not None]
        labels |= await labels_of(place, column, values)
    if not labels:
        return list(hits)

    def labelled(name: str, value: object) -> object:
        if value is None or (name, value) not in labels:
            return value
        return {"value": value, "label": labels[name, value]}

    return [
        replace(hit, row={name: labelled(name, value) for name, value in hit.row.items()})
        for hit in hits
    ]


def shaped_json(place: Place, shape: Shape, body: dict[str, Any]) -> Response:
    """The answer `body`, whose `rows` are as `Hit.as_json()` gives them."""
    rows = body["rows"]
    data: object = {"ok": True, **body}
    if shape.name == "arrays":
        arrays = [
            [*(row[name] for name in OF_HIT), *map(row["row"].get, shape.columns)]
            for row in rows
        ]
        data = {"ok": True, **body, "columns": [*OF_HIT, *shape.columns], "rows": arrays}
    elif shape.name == "object":
        data = {row["pk"]: row for row in rows}
    elif shape.name == "array":
        data = rows
    elif shape.name == "arrayfirst":
        data = [row["pk"] for row in rows]
    response = plain_json(place, data)
    if shape.by_line:
        response.body = "\n".join(map(json.dumps, rows))
        response.content_type = "text/plain"
    if body.get("next_url"):
        response.headers["link"] = f'<{body["next_url"]}>; rel="next"'
    return response


def shaped_csv(place: Place, shape: Shape, hits: Sequence[Hit]) -> Response:
    """The hits as a CSV file; a column's labels are in one of their own behind it."""
    labelled = {
        name for hit in hits for name, value in hit.row.items() if isinstance(value, dict)
    }
    header, rows = [], [[] for _ in hits]
    for name in shape.columns:
        header.append(name)
        for row, hit in zip(rows, hits, strict=True):
            value = hit.row[name]
            row.append(value["value"] if isinstance(value, dict) else value)
        if name in labelled:
            header.append(f"{name}_label")
            for row, hit in zip(rows, hits, strict=True):
                value = hit.row[name]
                row.append(value["label"] if isinstance(value, dict) else "")
    lines = [
        [hit.rank, hit.row_path, hit.score, hit.distance, *row]
        for hit, row in zip(hits, rows, strict=True)
    ]
    return csv_answer(place, "similar", [*OF_HIT, *header], lines)
