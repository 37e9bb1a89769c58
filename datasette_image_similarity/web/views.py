"""The pages of results, search by picture, and home: parse, ask, render."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from datasette.utils import urlsafe_components
from datasette.utils.asgi import Response
from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..distances import (
    FARTHEST_COSINE,
    Histogram,
    farthest,
    histogram,
    near_duplicates,
)
from ..errors import CollectionError, ImageSimilarityError
from ..folding import groups_there
from ..formats import accepted
from ..query import (
    Answer,
    Query,
    as_sql,
    items_of,
    search,
    stored_vectors,
)
from ..sources import without_names
from ..words import mixed
from .answers import (
    ask_vectors,
    controls,
    page,
    sentence,
    static_url,
    status_of,
    tells_errors,
    wants_json,
)
from .compat import may_execute_sql, same_origin, sql_url
from .crops import Cropped, embed_crop
from .exports import export_answer
from .forms import BadForm, read_form
from .frame import framed_page
from .histogram import as_svg
from .question import (
    PageError,
    Place,
    Question,
    as_mapping,
    filter_redirect,
    find_place,
    read_question,
)
from .questions import saving
from .searches import note_search
from .service import service
from .shapes import Shape, read_shape, shaped_csv, shaped_json, with_labels
from .sql_text import sql_text_of
from .tiles import caption_column, query_pictures, tiles_of
from .worded import Words, embed_words, query_words

if TYPE_CHECKING:
    from datasette.app import Datasette

ROWS = ("_like", "_unlike", "_crop", "_max_distance")  # what belongs to rows asked with

# Similar


@tells_errors
async def similar(datasette: Datasette, request: Any) -> Response:
    """Pictures like one row's, or like the mean of several rows'."""
    place = await find_place(datasette, request)
    path = place.path("similar")
    redirect = filter_redirect(request, path)
    if redirect:
        return Response.redirect(redirect)
    question = await read_question(place, path)
    if not (question.likes or question.texts):
        also = " as well" if question.unlikes or question.unlike_texts else ""
        raise PageError(
            400,
            f"Name a picture to search with{also}: ?_like= and a row's key; or words: "
            "?_text=",
        )
    words = await embed_words(place, question)
    crop = await embed_crop(place, question)
    format = request.url_vars.get("format")
    if format == "svg":
        return await _histogram(place, question, words, crop)
    as_json = wants_json(request)
    shape = read_shape(place) if as_json or format == "csv" else None

    def ask(conn: sqlite3.Connection) -> tuple[list[int], _Answered]:
        items, asked = _query(conn, place, question, words, crop=crop, shape=shape)
        return items, _answer(conn, place, question, asked)

    items, answered = await ask_vectors(place, ask)
    answer = answered.answer
    noted = note_search(place, question, answer)
    next_url = None
    if answer.next is not None:
        next_url = question.url(path, _next=answer.next)
    if as_json:
        more = {"_next": answer.next, **shape.pairs}
        next_url = next_url and question.url(f"{path}.json", **more)
        return await _json_answer(place, question, shape, answered, next_url)
    if format == "csv":
        return shaped_csv(place, shape, await with_labels(place, shape, answer.hits))
    if format in ("zip", "html"):
        return await export_answer(place, question, answer)
    likes, unlikes = await query_pictures(place, question, path, items)
    context = await _results(place, question, path, answered)
    context |= {
        "likes": likes,
        "unlikes": unlikes,
        "words": query_words(place, question, path),
        # With a picture of one's own in place of stored ones.
        "own_url": question.url(place.path("search-by-image"), drop=ROWS),
        "next_url": next_url,
        "exact_url": question.url(path, _exact=1, _next=question.offset or None),
        "json_url": question.url(f"{path}.json", _next=question.offset or None),
        "csv_url": question.url(f"{path}.csv", _next=question.offset or None),
        "sql_url": await _sql_url(place, question),
        "zip_url": question.url(f"{path}.zip", _next=question.offset or None),
        "sheet_url": question.url(f"{path}.html", _next=question.offset or None),
        "noted": noted,
        **await saving(place, question),
        "histogram_url": question.url(f"{path}.svg"),
        "crop": _crop_form(place, question, path, crop),
    }
    return await page(place, "image_similarity_similar.html", context)


async def prepared(
    place: Place, question: Question
) -> Callable[[sqlite3.Connection], tuple[list[int], Query]]:
    """What a question asks of a collection, with all that has to be embedded for it.

    Call it with a connection for the items of its pictures, likes first, and the query.
    Raises PageError, QueueFull, ImageError, EncoderError; so does the call, and
    CollectionError.
    """
    words = await embed_words(place, question)
    crop = await embed_crop(place, question)
    return lambda conn: _query(conn, place, question, words, crop=crop)


class _Answered(NamedTuple):
    """An answer, and what else a page of results wants from the database."""

    answer: Answer
    groups: list[str]  # of ours that there are
    top: float  # of the cut-off
    histogram: Histogram | None


def _answer(
    conn: sqlite3.Connection, place: Place, question: Question, asked: Query
) -> _Answered:
    answer = search(conn, place.collection, asked, place.service.indexes)
    top = FARTHEST_COSINE
    if place.collection.metric == "l2":
        pairs = place.service.random_pairs(conn, place.database, place.collection)
        top = farthest(place.collection, pairs)
    shown = _measure(conn, place, asked) if question.histogram else None
    return _Answered(answer, groups_there(conn, place.collection), top, shown)


def _query(
    conn: sqlite3.Connection,
    place: Place,
    question: Question,
    words: Words,
    *,
    crop: Cropped | None = None,
    upload: bytes | None = None,
    shape: Shape | None = None,
) -> tuple[list[int], Query]:
    """The items of the pictures in a question, likes first, and what it asks.

    `crop` stands for the first like; `upload` is the vector of one like more; `shape`
    says which columns are wanted, if not all.
    """
    items = _items(conn, place, (*question.likes, *question.unlikes))
    vectors = stored_vectors(conn, place.collection, items)
    if crop is not None:
        vectors[0] = crop.vector
    number = len(question.likes)
    likes = list(zip(vectors[:number], question.likes.values(), strict=True))
    unlikes = list(zip(vectors[number:], question.unlikes.values(), strict=True))
    if upload is not None:
        likes.append((upload, 1.0))
    vector = mixed(conn, place.collection, likes, unlikes, words.likes, words.unlikes)
    limits = _limits(conn, place, question)
    columns = shape and shape.columns
    return items, Query(vector, without=frozenset(items), columns=columns, **limits)


def _limits(conn: sqlite3.Connection, place: Place, question: Question) -> dict[str, Any]:
    distinct = None
    if question.distinct:
        pairs = place.service.random_pairs(conn, place.database, place.collection)
        distinct = near_duplicates(conn, place.collection, pairs)
    return {
        "k": question.size,
        "offset": question.offset,
        "filter": question.filter,
        "max_distance": question.max_distance,
        "exact": question.exact,
        "distinct": distinct,
        "one_per": question.one_per,
    }


def _measure(conn: sqlite3.Connection, place: Place, asked: Query) -> Histogram:
    pairs = place.service.random_pairs(conn, place.database, place.collection)
    return histogram(conn, place.collection, asked, pairs)


async def _histogram(
    place: Place, question: Question, words: Words, crop: Cropped | None
) -> Response:
    """The picture behind the cut-off: apart from the page, which need not wait for it."""

    def measure(conn: sqlite3.Connection) -> Histogram:
        return _measure(conn, place, _query(conn, place, question, words, crop=crop)[1])

    svg = as_svg(await ask_vectors(place, measure), question.max_distance)
    headers = {"Cache-Control": "private, max-age=60"}
    return Response(svg, headers=headers, content_type="image/svg+xml; charset=utf-8")


def _crop_form(
    place: Place, question: Question, path: str, crop: Cropped | None
) -> dict[str, Any] | None:
    """What the form for a part of the first picture shows; None where there is none."""
    if not (place.config.search_by_image and question.likes):
        return None
    first = next(iter(question.likes))
    return {
        "picture": place.url(f"image/{first}"),
        "part": question.crop,
        "small": crop is not None and crop.small,
        "whole_url": question.url(path, drop=["_crop"]),
    }


def _items(conn: sqlite3.Connection, place: Place, likes: Iterable[str]) -> list[int]:
    """The items of rows in row-path form. Raises PageError 404."""
    keys = []
    for like in likes:
        key = place.source.find(conn, urlsafe_components(like))
        if key is None:
            raise PageError(404, f"There is no row {like} in {place.table}")
        keys.append(key)
    try:
        return items_of(conn, place.collection, keys)
    except CollectionError as error:
        reason = _failure(conn, place, keys)
        raise PageError(404, f"{error}{reason}") from None


def _failure(conn: sqlite3.Connection, place: Place, keys: list[db.Key]) -> str:
    """Why one of these rows could not be embedded, as a clause."""
    for key in keys:
        row = conn.execute(
            "select reason from _image_similarity_failures "
            "where collection_id = ? and pk = ?",
            (place.collection.id, key),
        ).fetchone()
        if row:
            return f": {without_names(str(row['reason']))}"
    return " yet: run datasette image-similarity embed"


async def _json_answer(
    place: Place,
    question: Question,
    shape: Shape,
    answered: _Answered,
    next_url: str | None,
    **more: object,
) -> Response:
    answer, shown = answered.answer, answered.histogram
    hits = await with_labels(place, shape, answer.hits)
    following = str(answer.next) if answer.next is not None else None
    body = {
        "query": {**as_mapping(question, place), **more},
        "rows": [hit.as_json() for hit in hits],
        "total": answer.total,
        **({"at_least": answer.at_least} if answer.at_least else {}),
        "next": following,
        "next_url": next_url and place.datasette.absolute_url(place.request, next_url),
        "exact": answer.exact,
        "recall": answer.recall,
        "milliseconds": answer.milliseconds,
        **({"histogram": shown.as_json()} if shown else {}),
    }
    return shaped_json(place, shape, body)


async def _sql_url(place: Place, question: Question) -> str | None:
    """Datasette's page with this question as SQL, for those who may run SQL.

    None for a question that our SQL functions cannot ask.
    """
    text = sql_text_of(place, question)
    worded = question.texts or question.unlike_texts
    if (worded and text is None) or question.crop or question.distinct or question.one_per:
        return None
    if place.collection.store and not _sql_asks_store(place, question):
        return None
    if not await may_execute_sql(place.datasette, place.request.actor, place.database):
        return None

    def write(conn: sqlite3.Connection) -> tuple[str, dict[str, object]]:
        unlikes = {pk: -weight for pk, weight in question.unlikes.items()}
        weights = {**question.likes, **unlikes}
        keys = [place.source.find(conn, urlsafe_components(pk)) for pk in weights]
        found = zip(keys, weights.values(), strict=True)
        return as_sql(
            place.collection,
            place.source,
            {key: weight for key, weight in found if key is not None},
            question.offset + question.size,
            question.filter,
            question.max_distance,
            text,
        )

    sql, params = await place.db.execute_fn(write)
    return sql_url(place.datasette, place.database, sql, params)


def _sql_asks_store(place: Place, question: Question) -> bool:
    """Whether `similar_images()` can ask a store for this: what is like one row."""
    one = len(question.likes) == 1 and not (question.unlikes or question.texts)
    return place.config.sql_store and one and question.filter is None


async def _results(
    place: Place, question: Question, path: str, answered: _Answered
) -> dict[str, Any]:
    """What both pages of results show."""
    answer, top = answered.answer, max(answered.top, question.max_distance or 0)
    caption = await caption_column(place)
    first = question.offset + 1 if answer.hits else 0
    return {
        "tiles": await asyncio.to_thread(tiles_of, place, question, path, answer, caption),
        "answer": answer,
        "first": first,
        "last": question.offset + len(answer.hits),
        **await controls(place, question, path),
        "one_per": [
            *answered.groups,
            *db.plain_columns(place.collection, place.source),
        ],
        "slider": {
            "top": f"{top:.6g}",
            "step": f"{top / 100:.2g}",
            "value": question.max_distance if question.max_distance is not None else top,
        },
    }


# Search by image


@tells_errors
async def search_by_image(datasette: Datasette, request: Any) -> Response:
    """A page to drop a picture on; a POST searches with it."""
    place = await find_place(datasette, request)
    if not place.config.search_by_image:
        raise PageError(403, "Search by image is switched off for this table")
    path = place.path("search-by-image")
    redirect = filter_redirect(request, path)
    if redirect:
        return Response.redirect(redirect)
    question = await read_question(place, path)
    if question.crop:
        raise PageError(400, "Only of stored pictures a part can be searched with: cut out "
                        "what you upload")  # fmt: skip
    if request.method in ("GET", "HEAD"):
        return await _search_page(place, question, path, {})
    if request.method != "POST":
        raise PageError(405, "Send the picture with POST")
    if not same_origin(request):
        raise PageError(403, "This form was sent from another site")
    try:
        words = await embed_words(place, question)
        shape = read_shape(place) if wants_json(request) else None
        vector, facts, preview = await _query_of_upload(place)

        def ask(conn: sqlite3.Connection) -> tuple[list[int], _Answered]:
            about = conn, place, question, words
            items, asked = _query(*about, upload=vector, shape=shape)
            return items, _answer(conn, place, question, asked)

        items, answered = await ask_vectors(place, ask)
        noted = note_search(place, question, answered.answer)
    except ImageSimilarityError as error:
        if wants_json(request):
            raise
        return await _search_page(place, question, path, {}, error)
    if shape is not None:
        return await _json_answer(place, question, shape, answered, None, image=facts)
    answer = answered.answer
    context = await _results(place, question, path, answered)
    likes, unlikes = await query_pictures(place, question, path, items)
    context |= {
        "likes": likes,
        "unlikes": unlikes,
        "post": True,
        "preview": preview,
        "facts": facts,
        "noted": noted,
        "embedding": base64.b64encode(vector).decode(),
        "next_url": None
        if answer.next is None
        else question.url(path, _next=answer.next) + "#image-similarity-results",
    }
    return await _search_page(place, question, path, context)


async def _search_page(
    place: Place,
    question: Question,
    path: str,
    context: dict[str, Any],
    error: ImageSimilarityError | None = None,
) -> Response:
    status = status_of(error) if error else 200
    context = {
        **await controls(place, question, path),
        "words": query_words(place, question, path, own_picture=True),
        # Another picture begins another question.
        "action": question.url(path, drop=["_like", "_unlike"]),
        "max_bytes": place.config.upload_max_bytes,
        "accept": accepted(),
        "embedded": await _count(place),
        "error": sentence(error) if error else "",
        **context,
    }
    return await page(place, "image_similarity_search.html", context, status)


async def _count(place: Place) -> int:
    return await place.db.execute_fn(lambda conn: db.item_count(conn, place.collection))


async def _query_of_upload(place: Place) -> tuple[bytes, dict[str, Any], str | None]:
    """The vector of a posted picture, what is known of it, and a preview as base64.

    A form's "next" button sends the vector back instead, so that nothing is stored here.
    """
    with place.service.holding(place.config) as held:
        form = await read_form(place.request, place.config.upload_max_bytes, held)
        if form.files.get("image"):
            vector, decoded = await place.service.embed_upload(
                place.db, form.files["image"], place.collection, place.config
            )
            facts = {
                "width": decoded.width,
                "height": decoded.height,
                "format": decoded.format,
                "bytes": len(form.files["image"]),
            }
            preview = decoded.thumbnail and base64.b64encode(decoded.thumbnail).decode()
            return vector, facts, preview
    if form.fields.get("embedding"):
        preview = form.fields.get("preview")
        return _sent_back(form.fields["embedding"], preview), {}, preview
    raise BadForm("Choose a picture first: the form has no file in its field image")


def _sent_back(embedding: str, preview: str | None) -> bytes:
    """The vector in a form's hidden field. Raises BadForm unless it can be searched with.

    vec0 computes in float32: a length far from 1 would overflow there.
    """
    try:
        vector = base64.b64decode(embedding, validate=True)
        if not 1e-15 < math.hypot(*db.floats(vector)) < 1e15:
            raise ValueError
        base64.b64decode(preview or "", validate=True)
    except (ValueError, struct.error, CollectionError):
        raise BadForm("The embedding is damaged") from None
    return vector


# Home


@tells_errors
async def home(datasette: Datasette, request: Any) -> Response:
    """A card for every table with collections that the actor may see."""
    from .home import by_table, cards

    shown = await cards(datasette, request)
    problem = service(datasette).problem
    if wants_json(request):
        return Response.json(
            {"ok": True, "collections": [card.as_json() for card in shown]}
            | ({"problem": problem} if problem else {})
        )
    context = {
        "cards": by_table(shown),
        "problem": problem,
        "static_url": static_url(datasette),
    }
    return await framed_page(datasette, request, "image_similarity_home.html", context)
