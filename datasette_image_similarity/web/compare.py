"""One question answered by two collections over a table, side by side."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.utils.asgi import Request, Response
from datasette.utils.sqlite import sqlite3

from ..database import Collection
from ..errors import ImageSimilarityError
from ..query import Answer, Hit, pk_path, search
from ..words import reads_words
from .answers import (
    ask_database,
    ask_vectors,
    controls,
    database_error,
    json_answer,
    page,
    sentence,
    tells_errors,
    wants_json,
)
from .home import spread
from .question import (
    PageError,
    Place,
    Question,
    as_mapping,
    filter_redirect,
    find_place,
    read_question,
)
from .switch import collections_of, encoder_in_words
from .tiles import OF_ONE_QUERY, Tile, caption_column, query_pictures, tiles_of
from .views import prepared
from .worded import query_words

if TYPE_CHECKING:
    from datasette.app import Datasette

LOOKED_AT = 100  # results at least, among which the other collection's are looked for
MOST = 1000  # results that can be compared


@dataclass(frozen=True)
class Side:
    """What one collection answers: the first results, as far as they were looked at.

    Without an answer, `problem` says why. `items` are those of the query pictures.
    """

    name: str
    encoder: str  # in words
    dimensions: int
    place: Place | None = None
    items: tuple[int, ...] = ()
    answer: Answer | None = None
    problem: ImageSimilarityError | None = None

    @property
    def hits(self) -> list[Hit]:
        return self.answer.hits if self.answer else []

    @property
    def ranks(self) -> dict[str, int]:
        """Ranks by key in row-path form."""
        return {pk_path(hit.pk): hit.rank for hit in self.hits}

    @property
    def complete(self) -> bool:
        """Whether there are no results behind those that were looked at."""
        return self.answer is not None and self.answer.next is None


@dataclass(frozen=True)
class Overlap:
    """How alike the first `k` results of two collections are.

    Overlap@k is the share of them that both have. `apart` is the mean of how many places
    apart these are, `same` counts those that have the same rank.
    """

    k: int
    shared: int
    apart: float | None
    same: int

    @property
    def share(self) -> float:
        return self.shared / self.k if self.k else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "k": self.k,
            "shared": self.shared,
            "overlap": round(self.share, 4),
            "mean_rank_difference": self.apart,
            "same_rank": self.same,
        }


@dataclass(frozen=True)
class Result:
    """A result on the page. `there` is its rank in the other collection, `there_url` leads
    to it; `similar_url` asks its own collection alone, `again_url` both."""

    tile: Tile
    rank: int
    there: int | None
    there_url: str | None
    again_url: str
    similar_url: str


@tells_errors
async def compare(datasette: Datasette, request: Any) -> Response:
    """`?_like=12&_collection=a&_with=b`: what two collections answer to one question."""
    place = await find_place(datasette, request)
    path = place.path("compare")
    redirect = filter_redirect(request, path)
    if redirect:
        return Response.redirect(redirect)
    there = await collections_of(place.service, place.database, place.table)
    other = _other(place, there)
    question = await read_question(place, path)
    # Distances of two encoders are not the same: no cut-off is good for both.
    question = replace(question, max_distance=None, size=min(question.size, MOST))
    if question.offset + question.size > MOST:
        raise PageError(400, f"Only the first {MOST:,} results are compared")
    if not (question.likes or question.texts):
        if wants_json(request) or question.unlikes or question.unlike_texts:
            raise PageError(
                400,
                "Name a picture to search with: ?_like= and a row's key; or words: ?_text=",
            )
        return await _choose(place, question, path, there, other)
    sides = await _ask_both(place, other, question)
    failed = [side.problem for side in sides if side.problem]
    if len(failed) == 2:
        raise failed[0]
    overlap = None if failed else overlap_of(*sides, question.offset + question.size)
    next_url = _next_url(sides, question, path)
    if wants_json(request):
        return _json(place, question, sides, overlap, next_url)
    first = next(side for side in sides if side.place and not side.problem)
    likes, unlikes = await query_pictures(first.place, question, path, [*first.items])
    columns = [
        await _column(side, beside, question, path, letter)
        for side, beside, letter in ((*sides, "b"), (*sides[::-1], "a"))
    ]
    context = {
        **await _frame(place, question, path, there, other),
        "likes": likes,
        "unlikes": unlikes,
        "columns": columns,
        "overlap": overlap,
        "next_url": next_url,
        "exact_url": question.url(path, _exact=1, _next=question.offset or None),
        "json_url": question.url(f"{path}.json", _next=question.offset or None),
        "first": question.offset + 1,
    }
    return await page(place, "image_similarity_compare.html", context)


def _other(place: Place, there: list[Collection]) -> Collection:
    """The collection to compare with: as named, else the first other one.

    Raises PageError where there is none.
    """
    mine = place.collection
    others = [one for one in there if one.id != mine.id]
    if not others:
        command = place.command("embed", "--name", "NAME", "--model", "MODEL")
        raise PageError(
            404, f"{place.table} has one collection: there is nothing to compare it "
            f"with. Another encoder makes another one: {command}"
        )  # fmt: skip
    name = place.request.args.get("_with")
    if name == mine.name:
        raise PageError(400, f"{name!r} cannot be compared with itself: name another")
    found = next((one for one in others if name in (None, "", one.name)), None)
    if found is None:
        raise PageError(404, f"The table {place.table} has no embeddings called {name}")
    return found


# Asking


async def _ask_both(
    place: Place, other: Collection, question: Question
) -> tuple[Side, Side]:
    """Both answers, together under the time limit of one request."""
    first = await _ask(place, question)
    try:
        beside = await _place_of(place, other)
    except PageError as error:  # its own tables are damaged
        return first, _side(other, problem=error)
    return first, await _ask(beside, question)


async def _place_of(place: Place, collection: Collection) -> Place:
    """The same table in another collection, as a request would name it."""
    query = urlencode({"_collection": collection.name})
    scope = {**place.request.scope, "query_string": query.encode()}
    return await find_place(place.datasette, Request(scope, None))


async def _ask(place: Place, question: Question) -> Side:
    """What one collection answers, or why it does not."""
    side = _side(place.collection, place=place)
    try:
        query_of = await prepared(place, question)

        def ask(conn: sqlite3.Connection) -> tuple[list[int], Answer]:
            items, asked = query_of(conn)
            depth = max(LOOKED_AT, asked.end)
            asked = replace(asked, offset=0, k=depth)
            return items, search(conn, place.collection, asked, place.service.indexes)

        items, answer = await ask_vectors(place, ask)
        return replace(side, items=tuple(items), answer=answer)
    except ImageSimilarityError as error:
        return replace(side, problem=error)
    except sqlite3.DatabaseError as error:  # its tables are damaged, the other's may not be
        return replace(side, problem=database_error(error))


def _side(collection: Collection, **found: Any) -> Side:
    words = encoder_in_words(collection)
    return Side(collection.name, words, collection.dimensions, **found)


def overlap_of(one: Side, other: Side, k: int) -> Overlap:
    """How alike the first k results are; of the longer list's length where it is less."""
    k = min(k, max(len(one.hits), len(other.hits)))
    mine, theirs = one.ranks, other.ranks
    both = [pk for pk, rank in mine.items() if rank <= k and theirs.get(pk, k + 1) <= k]
    apart = [abs(mine[pk] - theirs[pk]) for pk in both]
    return Overlap(
        k=k,
        shared=len(both),
        apart=round(sum(apart) / len(apart), 2) if apart else None,
        same=apart.count(0),
    )


# Showing


def _next_url(sides: tuple[Side, Side], question: Question, path: str) -> str | None:
    end = question.offset + question.size
    more = any(len(side.hits) > end or not side.complete for side in sides if side.answer)
    if not more or end + question.size > MOST:
        return None
    return question.url(path, _next=end)


async def _column(
    side: Side, other: Side, question: Question, path: str, letter: str
) -> dict[str, Any]:
    """One collection's part of the page; `letter` is that of the other one's results."""
    if side.answer is None or side.place is None:
        return {"side": side, "problem": sentence(side.problem), "results": []}
    place, start = side.place, question.offset
    caption = await caption_column(place)
    return {
        "side": side,
        "results": await asyncio.to_thread(
            _results, place, side, other, question, path, letter, caption
        ),
        "similar_url": question.url(
            place.path("similar"),
            drop=("_with",),
            _collection=side.name,
            _next=start or None,
        ),
        "absent": "not there"
        if other.complete
        else f"not in the first {len(other.hits):,} there",
    }


def _results(
    place: Place,
    side: Side,
    other: Side,
    question: Question,
    path: str,
    letter: str,
    caption: str | None,
) -> list[Result]:
    """What one collection finds, on this page."""
    hits = side.hits[question.offset : question.offset + question.size]
    shown = replace(side.answer, hits=hits)
    tiles = tiles_of(place, question, path, shown, caption)
    ranks = other.ranks

    def url_of(rank: int | None) -> str | None:
        if rank is None:
            return None
        start = (rank - 1) // question.size * question.size
        here = "" if start == question.offset else question.url(path, _next=start or None)
        return f"{here}#{letter}-{rank}"

    similar = place.path("similar")
    alone = {"drop": ("_with",), "_collection": side.name}
    drop = dict.fromkeys(OF_ONE_QUERY)
    return [
        Result(
            tile=tile,
            rank=hit.rank,
            there=ranks.get(tile.pk),
            there_url=url_of(ranks.get(tile.pk)),
            again_url=question.url(path, **{**drop, "_like": tile.pk}),
            similar_url=question.url(similar, **alone, **{**drop, "_like": tile.pk}),
        )
        for tile, hit in zip(tiles, hits, strict=True)
    ]


async def _frame(
    place: Place, question: Question, path: str, there: list[Collection], other: Collection
) -> dict[str, Any]:
    """What the page has with and without an answer: the form that chooses both."""
    swapped = {"_collection": other.name, "_with": place.collection.name}
    return {
        **await controls(place, question, path),
        "names": [one.name for one in there],
        "collection": place.collection.name,
        "with": other.name,
        "swap_url": question.url(path, **swapped),
        "words": query_words(place, question, path),
        # Where one of them reads no words, only those that are there can be changed.
        "asks_words": question.texts or (place.reads_words and reads_words(other)),
        "collections": [],  # chosen by the page's own form
    }


async def _choose(
    place: Place, question: Question, path: str, there: list[Collection], other: Collection
) -> Response:
    """The page before there is a question: pictures to begin with."""
    pks = await ask_database(place, lambda conn: spread(conn, place.collection))
    pictures = [
        (place.url(f"thumbnail/{pk}"), question.url(path, _like=pk), pk) for pk in pks
    ]
    context = {**await _frame(place, question, path, there, other), "pictures": pictures}
    return await page(place, "image_similarity_compare.html", context)


def _json(
    place: Place,
    question: Question,
    sides: tuple[Side, Side],
    overlap: Overlap | None,
    next_url: str | None,
) -> Response:
    start, end = question.offset, question.offset + question.size

    def told(side: Side, other: Side) -> dict[str, Any]:
        about = {
            "collection": side.name,
            "encoder": side.encoder,
            "dimensions": side.dimensions,
        }
        if side.answer is None:
            return {**about, "error": sentence(side.problem)}
        ranks = other.ranks
        return {
            **about,
            "rows": [
                {**hit.as_json(), "rank_in_other": ranks.get(pk_path(hit.pk))}
                for hit in side.hits[start:end]
            ],
            "total": side.answer.total,
            "looked_at": len(side.hits),
            "exact": side.answer.exact,
            "recall": side.answer.recall,
            "milliseconds": side.answer.milliseconds,
        }

    asked = as_mapping(question, place)
    body = {
        "query": {**asked, "with": sides[1].name},
        "collections": [told(*sides), told(*sides[::-1])],
        "overlap": overlap.as_json() if overlap else None,
        "next": str(end) if next_url else None,
        "next_url": next_url
        and place.datasette.absolute_url(
            place.request, question.url(f"{place.path('compare')}.json", _next=end)
        ),
    }
    return json_answer(place, body)
