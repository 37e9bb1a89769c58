"""The log of searches: what was asked, how long it took, which results were opened.

Rows of `_image_similarity_searches` and `_image_similarity_clicks`; `web/log.py` has them
written, `web/searches.py` shows what `statistics()` makes of them. All times are UTC.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Any

from datasette.utils.sqlite import sqlite3

from ..database import Collection, Key

TOP = 10  # entries of each list
CLICKS = 100  # noted of one search
CLICK_HOURS = 24  # a page may stay open for so long

# Rows as this package writes them: whoever made the database may have put anything there.
_LOG = (
    "with log as (select * from _image_similarity_searches "
    "where collection_id = :collection and searched_at between :since and :until "
    "and typeof(question) = 'text' and typeof(page) = 'text' "
    "and typeof(results) = 'integer' and typeof(\"offset\") = 'integer' "
    "and typeof(milliseconds) = 'real' and milliseconds < 1e9 "
    "and typeof(filter) in ('text', 'null') and typeof(actor) in ('text', 'null')) "
)


@dataclass(frozen=True)
class Search:
    """One search that was answered.

    `question` and `filter` are query strings: what was asked, without its page and size,
    and what narrowed it. `results` is how many there were in all, `milliseconds` what the
    search itself took. `id` is from `new_id()`.
    """

    id: int
    searched_at: str
    actor: str | None
    page: str
    question: str
    filter: str | None
    offset: int
    results: int
    milliseconds: float


@dataclass(frozen=True)
class Asked:
    """A question with a figure: milliseconds, or how often it was asked."""

    question: str
    filter: str | None
    page: str
    figure: float
    last: str


@dataclass(frozen=True)
class Clicked:
    """A picture that was opened: how often, and at which rank on average."""

    key: Key
    clicks: int
    rank: float


@dataclass(frozen=True)
class Statistics:
    """What the log says about the last `days` days.

    `per_day` has (day, searches, of these without a result) for every one of them, oldest
    first. The other lists have up to TOP entries, the largest figure first.
    """

    days: int
    searches: int
    empty: int
    clicks: int
    median: float | None  # milliseconds
    per_day: list[tuple[str, int, int]]
    slowest: list[Asked]
    without_results: list[Asked]
    asked: list[Asked]
    clicked: list[Clicked]


def now() -> str:
    """This moment as the log writes it."""
    return _text(datetime.now(timezone.utc))


def new_id() -> int:
    """An id that is later than those before, so that the log lies in its order, and that no
    other search of the same millisecond has."""
    return time.time_ns() // 1_000_000 << 20 | secrets.randbits(20)


def put_search(conn: sqlite3.Connection, collection: Collection, search: Search) -> None:
    """Note a search. Call inside a transaction."""
    values = {**vars(search), "collection_id": collection.id}
    names = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join(f":{name}" for name in values)
    conn.execute(
        f"insert or ignore into _image_similarity_searches ({names}) values ({marks})",
        values,
    )


def put_click(
    conn: sqlite3.Connection, collection: Collection, search: int, pk: Key, rank: int
) -> None:
    """Note that a result was opened; call inside a transaction.

    Nothing happens unless the search is one of this collection's, of the last day, with
    fewer than CLICKS clicks.
    """
    conn.execute(
        "insert into _image_similarity_clicks (collection_id, search_id, pk, rank) "
        "select s.collection_id, s.id, :pk, :rank from _image_similarity_searches s "
        "where s.id = :search and s.collection_id = :collection "
        "and s.searched_at >= :since and :most > (select count(*) "
        "from _image_similarity_clicks c where c.search_id = s.id)",
        {
            "collection": collection.id,
            "search": search,
            "pk": pk,
            "rank": rank,
            "since": _text(datetime.now(timezone.utc) - timedelta(hours=CLICK_HOURS)),
            "most": CLICKS,
        },
    )


def statistics(conn: sqlite3.Connection, collection: Collection, days: int) -> Statistics:
    """Charts and lists of the last `days` days, today among them."""
    first, params = _window(collection, days)
    params["top"] = TOP

    def rows(sql: str) -> list[sqlite3.Row]:
        return conn.execute(sql, params).fetchall()

    def asked(what: str) -> list[Asked]:
        columns = "question, filter, page, figure, last"
        order = "order by figure desc, last desc"
        return [
            Asked(*row) for row in rows(f"{_LOG} select {columns} from ({what}) {order}")
        ]

    per_day = rows(
        f"{_LOG} select substr(searched_at, 1, 10), count(*), sum(results = 0) "
        "from log group by 1"
    )
    searches = sum(row[1] for row in per_day)
    # A page further down is the same question, and whether it has results says little.
    question = (
        "select question, filter, min(page) as page, {figure} as figure, "
        'max(searched_at) as last from log where "offset" = 0 and {where} '
        "group by question, filter order by figure desc, last desc limit :top"
    )
    with_rows = "(question != '' or filter is not null)"
    return Statistics(
        days=days,
        searches=searches,
        empty=sum(row[2] for row in per_day),
        clicks=rows(
            "select count(*) from _image_similarity_clicks "
            "where collection_id = :collection and clicked_at between :since and :until"
        )[0][0],
        median=_median(conn, params, searches),
        per_day=_every_day(first, days, {row[0]: (row[1], row[2]) for row in per_day}),
        slowest=asked(
            "select question, filter, page, milliseconds as figure, searched_at as last "
            "from log order by milliseconds desc limit :top"
        ),
        without_results=asked(question.format(figure="count(*)", where="results = 0")),
        asked=asked(question.format(figure="count(*)", where=with_rows)),
        clicked=[
            Clicked(*row)
            for row in rows(
                "select pk, count(*), avg(rank) from _image_similarity_clicks "
                "where collection_id = :collection "
                "and clicked_at between :since and :until "
                "and typeof(rank) = 'integer' and typeof(pk) != 'blob' "
                "group by pk order by 2 desc, 3 limit :top"
            )
        ],
    )


def no_statistics(days: int) -> Statistics:
    """What is to be said of a database that is older than the log."""
    per_day = _every_day(_first_day(days), days, {})
    return Statistics(days, 0, 0, 0, None, per_day, [], [], [], [])


def log_rows(
    conn: sqlite3.Connection, collection: Collection, days: int, most: int
) -> list[dict[str, Any]]:
    """The log itself, newest first, with the number of results opened."""
    _, params = _window(collection, days)
    found = conn.execute(
        f'{_LOG} select searched_at, actor, page, question, filter, "offset", results, '
        "milliseconds, (select count(*) from _image_similarity_clicks c "
        "where c.search_id = log.id) as clicks from log "
        "order by searched_at desc limit :most",
        {**params, "most": most},
    )
    return [dict(row) for row in found]


def _first_day(days: int) -> date:
    return datetime.now(timezone.utc).date() - timedelta(days=days - 1)


def _window(collection: Collection, days: int) -> tuple[date, dict[str, Any]]:
    """The first of the last `days` days, and parameters that stand for them."""
    first = _first_day(days)
    until = (first + timedelta(days=days)).isoformat()
    since = first.isoformat()
    return first, {"collection": collection.id, "since": since, "until": until}


def _median(conn: sqlite3.Connection, params: dict, searches: int) -> float | None:
    sql = f"{_LOG} select milliseconds from log order by 1 limit 1 offset :middle"
    row = conn.execute(sql, {**params, "middle": searches // 2}).fetchone()
    return row[0] if row else None


def _every_day(
    first: date, days: int, counts: dict[str, tuple[int, int]]
) -> list[tuple[str, int, int]]:
    names = ((first + timedelta(days=day)).isoformat() for day in range(days))
    return [(name, *counts.get(name, (0, 0))) for name in names]


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"
