"""Questions out of our tables, saved or logged: in words and pictures, ready to be asked.

Nothing that is stored is trusted: the parameters are read as a request's are, and what is
shown and linked to is made of what came out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode

from datasette.utils import urlsafe_components
from datasette.utils.asgi import Request
from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import ImageSimilarityError
from ..query import SearchTimeout
from .answers import ask_database, sentence
from .question import PageError, Place, Question, is_filter, read_question

LENGTH = 10_000  # characters of a query string
ELSEWHERE = ("_collection", "_with", "_size", "_next", "_histogram")  # not what is asked
# What is said of a question in other ways than by the parameter itself.
TOLD = (
    *("_like", "_unlike", "_max_distance", "_exact", "_distinct", "_one_per"),
    *("_text", "_unlike_text", "_text_weight"),
)


@dataclass(frozen=True)
class Pictured:
    """A row that is asked with."""

    url: str
    thumbnail: str
    key: str
    unlike: bool


@dataclass(frozen=True)
class Shown:
    """A question on a page. `url` asks it; `problem` says why it can no longer be asked."""

    url: str | None
    words: list[str]
    pictures: list[Pictured]
    problem: str = ""


def query_string(question: Question) -> str:
    """What a question asks, as a query string."""
    return urlencode([pair for pair in question.pairs if pair[0] not in ELSEWHERE])


def without_filters(question: Question) -> str:
    """The same but for what narrows it."""
    return urlencode(
        [
            (name, value)
            for name, value in question.pairs
            if name not in ELSEWHERE and not is_filter(name)
        ]
    )


async def read_asked(place: Place, text: str) -> tuple[Question, list[str]]:
    """A query string as a question, and the rows it names (row-path form).

    Raises PageError where it cannot be asked here, or a row has gone.
    """
    question = await _parsed(place, text)
    rows = [row for row, _ in rows_of(question)]
    gone = await ask_database(place, lambda conn: _gone(conn, place, rows))
    if gone:
        raise PageError(404, f"It asks with row {gone}, which is no longer there")
    return question, rows


async def _parsed(place: Place, text: str) -> Question:
    """A query string as a question. Raises PageError."""
    if len(text) > LENGTH or not text.isascii():
        raise PageError(400, "The question is no query string of this page")
    # Filters of ours are about the collection that the page is about.
    scope = {
        **place.request.scope,
        "query_string": f"{text}&{urlencode(place.named)}".encode(),
    }
    asked = replace(place, request=Request(scope, None))
    return await read_question(asked, "")


def rows_of(question: Question) -> list[tuple[str, bool]]:
    """The rows that are asked with, in row-path form, and whether it is to be unlike."""
    likes = [(row, False) for row in question.likes]
    return likes + [(row, True) for row in question.unlikes]


async def show(place: Place, text: str, page: str = "similar") -> Shown:
    """A stored question as a page shows it."""
    try:
        try:
            question, _ = await read_asked(place, text)
        except SearchTimeout:  # whoever opens it will see
            question = await _parsed(place, text)
    except ImageSimilarityError as error:
        return Shown(None, [], [], sentence(error))
    path = place.path(page)
    pairs = [*parse_qsl(query_string(question), keep_blank_values=True), *place.named]
    pictures = [
        Pictured(f"{place.table_url}/{row}", place.url(f"thumbnail/{row}"), row, unlike)
        for row, unlike in rows_of(question)
    ]
    url = f"{path}?{urlencode(pairs)}" if pairs else path
    return Shown(url, in_words(question), pictures)


def in_words(question: Question) -> list[str]:
    """The words it asks with, and what narrows it."""
    words = [f"“{text}”" for text in question.texts]
    words += [f"less like “{text}”" for text in question.unlike_texts]
    if words and question.text_weight != 1:
        words.append(f"words ×{question.text_weight:g}")
    words += [chip.text for chip in question.chips]
    if question.max_distance is not None:
        words.append(f"up to distance {question.max_distance:.3g}")
    for name, value in question.pairs:
        if name == "_crop":
            words.append("a part of the first")
        elif not is_filter(name) and name not in (*TOLD, *ELSEWHERE):
            words.append(f"{name.removeprefix('_').replace('_', ' ')} {value}".strip())
    return words


def _gone(conn: sqlite3.Connection, place: Place, rows: list[str]) -> str | None:
    """The first of these rows that is no longer there with the picture it had."""
    live = f"select 1 {db.live_sql(place.collection, place.source)} and i.pk = ?"
    for row in rows:
        key = place.source.find(conn, urlsafe_components(row))
        if key is None or conn.execute(live, (key,)).fetchone() is None:
            return row
    return None
