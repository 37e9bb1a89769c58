"""The log of searches: noting them, noting what was opened, and a page of charts.

Off unless the setting `history` is true. The log tells what others have searched for, so
only curators see it, here alone: `permissions.py` denies its tables on Datasette's pages.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from datasette.utils import urlsafe_components
from datasette.utils.asgi import Response
from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..explore import history
from ..query import Answer, SearchTimeout
from .answers import ask_database, csv_answer, page, sql_page, tells_errors, wants_json
from .asked import Pictured, Shown, show, without_filters
from .compat import may_execute_sql, same_origin
from .curate import actor_id, is_curator
from .forms import read_form
from .question import PageError, Place, Question, find_place

if TYPE_CHECKING:
    from datasette.app import Datasette

DAYS = (7, 30, 90, 365)
LONGEST = 3650
COLUMNS = (
    *("searched_at", "actor", "page", "question", "filter", "offset", "results"),
    *("milliseconds", "clicks"),
)
BAR = 10  # width of a day in the chart, in its own units; its height is 100
TURNED_OFF = (
    "Searches are logged where the configuration of datasette-image-similarity says "
    '"history": true'
)


class Noted(NamedTuple):
    """A search in the log, and where to say that one of its results was opened."""

    id: int
    clicks_url: str


class Bar(NamedTuple):
    """A day in the chart: from the left, and how high, of which without a result."""

    x: float
    height: float
    empty: float
    words: str


def note_search(place: Place, question: Question, answer: Answer) -> Noted | None:
    """Have a search that was answered logged, without waiting; None where none is kept."""
    if not place.config.history:
        return None
    search = history.Search(
        id=history.new_id(),
        searched_at=history.now(),
        actor=actor_id(place),
        page=place.request.path.rpartition("/")[2],
        question=without_filters(question),
        filter=urlencode(question.filters) or None,
        offset=question.offset,
        results=answer.total,
        milliseconds=answer.milliseconds,
    )
    write = partial(history.put_search, collection=place.collection, search=search)
    place.service.log.put(place.datasette, place.db, write)
    return Noted(search.id, place.url("searches/click")) if place.db.is_mutable else None


@tells_errors
async def click(datasette: Datasette, request: Any) -> Response:
    """Note that a result was opened: a POST of `search`, `pk` and `rank` by our script.

    It is taken at once, and kept if it belongs to a search in the log: nobody waits.
    """
    place = await find_place(datasette, request)
    if request.method != "POST":
        raise PageError(405, "Clicks are told by POST")
    if not same_origin(request):
        raise PageError(403, "This was sent from another site")
    if not place.config.history:
        raise PageError(404, TURNED_OFF)
    fields = (await read_form(request, 0)).fields
    search = _number(fields.get("search"), 2**63 - 1)
    rank = _number(fields.get("rank"), 10**9)
    key = await ask_database(place, lambda conn: _item_key(conn, place, fields.get("pk")))
    if search is None or rank is None or key is None:
        raise PageError(400, "A click has a search, a pk with a picture, and a rank")
    write = partial(
        history.put_click, collection=place.collection, search=search, pk=key, rank=rank
    )
    place.service.log.put(datasette, place.db, write)
    return Response("", status=202)


@tells_errors
async def searches(datasette: Datasette, request: Any) -> Response:
    """What has been searched for: charts and lists; the log itself as CSV."""
    place = await find_place(datasette, request)
    if not await is_curator(place):
        raise PageError(
            403,
            "The log of searches is for curators: whoever may insert rows into "
            f'{place.table}, or whom "curators" names in the configuration of '
            "datasette-image-similarity",
        )
    days = _number(request.args.get("_days") or "30", LONGEST)
    if not days:
        raise PageError(400, f"_days must be a whole number from 1 to {LONGEST}")
    if request.url_vars.get("format") == "csv":
        most = datasette.setting("max_returned_rows")
        rows = await ask_database(place, lambda conn: _rows(conn, place, days, most))
        return csv_answer(place, "searches", COLUMNS, [list(row.values()) for row in rows])
    try:
        found = await ask_database(place, lambda conn: _statistics(conn, place, days))
    except SearchTimeout:
        raise PageError(
            503, f"The log of {days} days is too long to be counted in time: ask for fewer"
        ) from None
    if wants_json(request):
        return Response.json({"ok": True, "history": place.config.history, **_json(found)})
    context = {
        "found": found,
        "bars": _bars(found),
        "peak": max(day[1] for day in found.per_day),
        "slowest": await _shown(place, found.slowest),
        "without_results": await _shown(place, found.without_results),
        "asked": await _shown(place, found.asked),
        "clicked": await _clicked(place, found),
        "ranges": [(days, _url(place, "searches", days)) for days in DAYS],
        "json_url": _url(place, "searches.json", days),
        "csv_url": _url(place, "searches.csv", days),
        "sql_url": await _sql_url(place),
        "public": await may_execute_sql(datasette, None, place.database),
    }
    return await page(place, "image_similarity_searches.html", context)


def _statistics(conn: sqlite3.Connection, place: Place, days: int) -> history.Statistics:
    if not db.is_current(conn):
        return history.no_statistics(days)
    return history.statistics(conn, place.collection, days)


def _rows(
    conn: sqlite3.Connection, place: Place, days: int, most: int
) -> list[dict[str, Any]]:
    if not db.is_current(conn):
        return []
    return history.log_rows(conn, place.collection, days, most)


def _json(found: history.Statistics) -> dict[str, Any]:
    def asked(entries: list[history.Asked], figure: str) -> list[dict[str, Any]]:
        return [
            {
                "question": one.question,
                "filter": one.filter,
                "page": one.page,
                figure: one.figure,
                "last": one.last,
            }
            for one in entries
        ]

    return {
        "days": found.days,
        "searches": found.searches,
        "without_results": found.empty,
        "clicks": found.clicks,
        "median_milliseconds": found.median,
        "per_day": [
            {"day": day, "searches": searches, "without_results": empty}
            for day, searches, empty in found.per_day
        ],
        "slowest": asked(found.slowest, "milliseconds"),
        "most_without_results": asked(found.without_results, "searches"),
        "most_asked": asked(found.asked, "searches"),
        "most_clicked": [
            {"pk": one.key, "clicks": one.clicks, "mean_rank": round(one.rank, 2)}
            for one in found.clicked
        ],
    }


def _bars(found: history.Statistics) -> list[Bar]:
    peak = max([day[1] for day in found.per_day] + [1])
    return [
        Bar(
            x=number * BAR + 1,
            height=round(100 * searches / peak, 2),
            empty=round(100 * empty / peak, 2),
            words=f"{day}: {searches:,} searches, {empty:,} without a result",
        )
        for number, (day, searches, empty) in enumerate(found.per_day)
    ]


async def _shown(
    place: Place, entries: list[history.Asked]
) -> list[tuple[history.Asked, Shown]]:
    """Logged questions as the page shows them."""
    texts = ["&".join(filter(None, (one.question, one.filter))) for one in entries]
    pages = [one.page.partition(".")[0] for one in entries]
    shown = [
        show(place, text, page if page in ("similar", "search-by-image") else "similar")
        for text, page in zip(texts, pages, strict=True)
    ]
    return list(zip(entries, await asyncio.gather(*shown), strict=True))


async def _clicked(
    place: Place, found: history.Statistics
) -> list[tuple[history.Clicked, Pictured | None]]:
    """Pictures that were opened, those that are gone without a picture."""
    live = f"select 1 {db.live_sql(place.collection, place.source)} and i.pk = ?"

    def still_there(conn: sqlite3.Connection) -> set[db.Key]:
        keys = [one.key for one in found.clicked]
        return {key for key in keys if conn.execute(live, (key,)).fetchone()}

    there = await ask_database(place, still_there) if found.clicked else set()
    pictures = []
    for one in found.clicked:
        picture = None
        if one.key in there:
            pk = place.row_path(one.key)
            url = f"{place.table_url}/{pk}"
            picture = Pictured(url, place.url(f"thumbnail/{pk}"), pk, False)
        pictures.append((one, picture))
    return pictures


async def _sql_url(place: Place) -> str | None:
    sql = (
        "select * from _image_similarity_searches\n"
        "where collection_id = :collection order by searched_at desc"
    )
    return await sql_page(place, sql, {"collection": place.collection.id})


def _url(place: Place, page: str, days: int) -> str:
    return f"{place.path(page)}?{urlencode([*place.named, ('_days', days)])}"


def _item_key(conn: sqlite3.Connection, place: Place, pk: str | None) -> db.Key | None:
    """The key of a row that has been embedded, or None."""
    key = place.source.find(conn, urlsafe_components(pk)) if pk else None
    known = key is not None and db.item_id(conn, place.collection, key) is not None
    return key if known else None


def _number(text: str | None, most: int) -> int | None:
    """A whole number from 0 to `most`, or None."""
    if not text or not (text.isascii() and text.isdecimal() and len(text) < 20):
        return None
    return int(text) if int(text) <= most else None
