"""The page with the map: its frame, and the list of its pictures as ordinary HTML.

What the drawing needs beyond that it fetches from `map_data`. The list is the page where
there is no script, no WebGL, or a screen reader; with a script it is the tray of what is
selected.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.utils.asgi import Response
from datasette.utils.sqlite import sqlite3

from ..explore.map import MapStatus, live_points, passes_sql
from .answers import ask_database, controls, page, tells_errors, wants_json
from .exports import PICTURES
from .map_data import PATIENCE, map_page, rows
from .question import (
    LIKES,
    Place,
    Question,
    filter_redirect,
    find_place,
    read_question,
)

if TYPE_CHECKING:
    from datasette.app import Datasette

REGION = "_image_region"
OF_THE_PAGE = ("_size", "_max_distance", "_exact", "_like")


@tells_errors
async def map_view(datasette: Datasette, request: Any) -> Response:
    """The map of a table's pictures."""
    if wants_json(request):
        return await rows(datasette, request)
    place = await find_place(datasette, request)
    path = place.path("map")
    redirect = filter_redirect(request, path)
    if redirect:
        return Response.redirect(redirect)
    question = await read_question(place, path)
    found = await map_page(place, question)
    context: dict[str, Any] = {"map": found.status, "command": place.command("map")}
    if found.status is not None:
        clear_url = question.url(path, drop=[REGION])
        # What is selected has its own line above the pictures.
        chips = [chip for chip in question.chips if chip.remove_url != clear_url]
        question = replace(question, chips=chips)
        narrowed = found.total and question.filters
        similar = await _similar_url(place, question, found.total) if narrowed else None
        context |= {
            **_addresses(place, question, path, found.status),
            **await controls(place, question, path),
            "pictures": found.pictures,
            "total": found.total,
            "first": question.offset + 1,
            "selected": any(name == REGION for name, _ in question.filters),
            "clear_url": clear_url,
            "similar_url": similar,
            "exports": found.total <= PICTURES,
            "first_url": question.url(path) if question.offset else None,
            "next_url": found.next and question.url(path, _next=found.next),
        }
    return await page(place, "image_similarity_map.html", context)


def _addresses(
    place: Place, question: Question, path: str, status: MapStatus
) -> dict[str, Any]:
    """Where a question's rows are, on the table's page and as files, and the map's data."""
    version = "&v=" if place.named else "?v="
    streams = place.datasette.setting("allow_csv_stream")
    return {
        "table_filtered_url": _table_url(place, question),
        "csv_url": _table_url(place, question, "csv", _stream="on")
        if streams
        else _table_url(place, question, "csv", _size="max"),
        "json_url": _table_url(place, question, "json", _shape="objects", _size="max"),
        "zip_url": question.url(place.path("export.zip"), drop=OF_THE_PAGE),
        "sheet_url": question.url(place.path("export.html"), drop=OF_THE_PAGE),
        "data_urls": {
            "points": question.url(f"{path}/points.bin", drop=(REGION, *OF_THE_PAGE)),
            "atlas": f"{place.url('map/atlas/NUMBER')}{version}{status.version}",
            "columns": place.url("map/columns.json"),
            "column": place.url("map/column.json"),
            "pictures": place.url("map/pictures.json"),
        },
    }


def _table_url(
    place: Place, question: Question, format: str | None = None, **more: str
) -> str:
    """Datasette's own page of the rows that a question's filters let through."""
    pairs = [*question.filters, *place.named, *more.items()]
    url = str(place.datasette.urls.table(place.database, place.table, format))
    return f"{url}?{urlencode(pairs)}" if pairs else url


async def _similar_url(place: Place, question: Question, total: int) -> str:
    """A search with these pictures, or with some of them from everywhere among them."""

    def ask(conn: sqlite3.Connection) -> list[str]:
        clause, passes = passes_sql(place.source, question.filter)
        live = f"{live_points(place.collection, place.source)} and {passes}"
        # Slots follow a curve through the map: every so many-th is a picture further on.
        numbered = f"select i.pk, row_number() over (order by p.slot) as number {live}"
        sql = (
            f"{clause}select pk from ({numbered}) where number * :map_likes / :map_total "
            "> (number - 1) * :map_likes / :map_total order by number"
        )
        params = dict(question.filter.params) if question.filter else {}
        params |= {"map_likes": min(LIKES, total), "map_total": total}
        found = conn.execute(sql, params)
        return [place.row_path(row["pk"]) for row in found]

    likes = await ask_database(place, ask, PATIENCE)
    return place.similar_url(likes[:LIKES])
