"""The pages of results, search by picture, and home: parse, ask, render."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import struct
from typing import TYPE_CHECKING, Any

from datasette.utils import urlsafe_components
from datasette.utils.asgi import Response
from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError, ImageSimilarityError
from ..query import (
    Answer,
    Query,
    as_sql,
    items_of,
    mean_vector,
    pk_path,
    search,
)
from .answers import (
    ask_database,
    page,
    sentence,
    static_url,
    status_of,
    tells_errors,
    wants_json,
)
from .compat import (
    may_execute_sql,
    same_origin,
    sql_url,
    table_tools_url,
)
from .exports import export_answer
from .forms import BadForm, read_form
from .question import (
    PageError,
    Place,
    Question,
    as_mapping,
    filter_redirect,
    find_place,
    lookups,
    read_question,
)
from .questions import saving
from .searches import note_search
from .tiles import QueryPicture, caption_column, tiles_of

if TYPE_CHECKING:
    from datasette.app import Datasette

# Similar


@tells_errors
async def similar(datasette: Datasette, request: Any) -> Response:
    """Pictures like one row's, or like the mean of several rows'."""
    place = await find_place(datasette, request)
    path = table_tools_url(datasette, place.database, place.table, "similar")
    redirect = filter_redirect(request, path)
    if redirect:
        return Response.redirect(redirect)
    question = await read_question(place, path)
    if not question.likes:
        raise PageError(400, "Name a picture to search with: ?_like= and a row's key")

    def ask(conn: sqlite3.Connection) -> tuple[list[int], Answer]:
        items = _items(conn, place, question.likes)
        asked = Query(
            mean_vector(conn, place.collection, items),
            without=frozenset(items),
            **_limits(question),
        )
        return items, search(conn, place.collection, asked, place.service.indexes)

    items, answer = await ask_database(place, ask)
    noted = note_search(place, question, answer)
    next_url = None
    if answer.next is not None:
        next_url = question.url(path, _next=answer.next)
    format = request.url_vars.get("format")
    if wants_json(request):
        next_url = next_url and question.url(f"{path}.json", _next=answer.next)
        return _json_answer(place, question, answer, next_url)
    if format == "csv":
        return _csv_answer(place, answer)
    if format in ("zip", "html"):
        return await export_answer(place, question, answer)
    likes = await _query_pictures(place, question, path, items)
    context = await _results(place, question, path, answer)
    context |= {
        "likes": likes,
        "next_url": next_url,
        "exact_url": question.url(path, _exact=1, _next=question.offset or None),
        "json_url": question.url(f"{path}.json", _next=question.offset or None),
        "csv_url": question.url(f"{path}.csv", _next=question.offset or None),
        "sql_url": await _sql_url(place, question),
        "zip_url": question.url(f"{path}.zip", _next=question.offset or None),
        "sheet_url": question.url(f"{path}.html", _next=question.offset or None),
        "noted": noted,
        **await saving(place, question),
    }
    return await page(place, "image_similarity_similar.html", context)


def _limits(question: Question) -> dict[str, Any]:
    return {
        "k": question.size,
        "offset": question.offset,
        "filter": question.filter,
        "max_distance": question.max_distance,
        "exact": question.exact,
    }


def _items(conn: sqlite3.Connection, place: Place, likes: tuple[str, ...]) -> list[int]:
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
            return f": {row['reason']}"
    return " yet: run datasette image-similarity embed"


def _json_answer(
    place: Place, question: Question, answer: Answer, next_url: str | None, **more: object
) -> Response:
    following = str(answer.next) if answer.next is not None else None
    body = {
        "ok": True,
        "query": {**as_mapping(question, place), **more},
        "rows": [hit.as_json() for hit in answer.hits],
        "total": answer.total,
        "next": following,
        "next_url": next_url and place.datasette.absolute_url(place.request, next_url),
        "exact": answer.exact,
        "recall": answer.recall,
        "milliseconds": answer.milliseconds,
    }
    headers = {}
    if place.datasette.cors:
        headers["access-control-allow-origin"] = "*"
    return Response.json(body, headers=headers)


def _csv_answer(place: Place, answer: Answer) -> Response:
    columns = [
        name
        for name in place.source.columns
        if not (place.collection.source == "blob" and name == place.collection.column)
    ]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["rank", "pk", "score", "distance", *columns])
    for hit in answer.hits:
        values = [hit.row[name] for name in columns]
        values = ["" if isinstance(value, bytes) else value for value in values]
        writer.writerow([hit.rank, pk_path(hit.pk), hit.score, hit.distance, *values])
    return Response(
        out.getvalue(),
        content_type="text/csv; charset=utf-8",
        headers={"content-disposition": 'attachment; filename="similar.csv"'},
    )


async def _sql_url(place: Place, question: Question) -> str | None:
    """Datasette's page with this question as SQL, for those who may run SQL."""
    if not await may_execute_sql(place.datasette, place.request.actor, place.database):
        return None

    def write(conn: sqlite3.Connection) -> tuple[str, dict[str, object]]:
        keys = [place.source.find(conn, urlsafe_components(pk)) for pk in question.likes]
        return as_sql(
            place.collection,
            place.source,
            [key for key in keys if key is not None],
            question.offset + question.size,
            question.filter,
            question.max_distance,
        )

    sql, params = await place.db.execute_fn(write)
    return sql_url(place.datasette, place.database, sql, params)


async def _query_pictures(
    place: Place, question: Question, path: str, items: list[int]
) -> list[QueryPicture]:
    """The pictures searched with, each with the address without it."""
    caption = await caption_column(place)
    wanted = f"t.{db.quote(caption)}" if caption else "null"
    live = db.live_sql(place.collection, place.source, db.ITEMS_BY_ID)
    sql = f"select i.id, {wanted} as caption {live}"
    found = await place.db.execute(sql, {"ids": json.dumps(items)})
    rows = {row["id"]: row for row in found}
    base = str(place.datasette.urls.table(place.database, place.table))
    pictures = []
    for like, item in zip(question.likes, items, strict=True):
        row = rows.get(item)
        others = [one for one in question.likes if one != like]
        pictures.append(
            QueryPicture(
                url=f"{base}/{like}",
                thumbnail=place.url(f"thumbnail/{like}"),
                caption=str(row["caption"]) if row and row["caption"] is not None else like,
                remove_url=question.url(path, _like=others) if others else None,
            )
        )
    return pictures


async def _results(
    place: Place, question: Question, path: str, answer: Answer
) -> dict[str, Any]:
    """What both pages of results show."""
    metric = place.collection.metric
    farthest = max((hit.distance for hit in answer.hits), default=0.0)
    top = 1.0 if metric == "cosine" else max(farthest, question.max_distance or 0) * 1.5
    caption = await caption_column(place)
    first = question.offset + 1 if answer.hits else 0
    return {
        "tiles": tiles_of(place, question, answer, caption),
        "answer": answer,
        "first": first,
        "last": question.offset + len(answer.hits),
        "question": question,
        "path": path,
        "filter_columns": place.source.columns,
        "lookups": lookups(),
        "searchable": await place.db.fts_table(place.table) is not None,
        "slider": {
            "top": f"{top:.3g}" if top else "1",
            "step": f"{(top or 1) / 100:.2g}",
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
    path = table_tools_url(datasette, place.database, place.table, "search-by-image")
    redirect = filter_redirect(request, path)
    if redirect:
        return Response.redirect(redirect)
    question = await read_question(place, path)
    if request.method in ("GET", "HEAD"):
        return await _search_page(place, question, path, {})
    if request.method != "POST":
        raise PageError(405, "Send the picture with POST")
    if not same_origin(request):
        raise PageError(403, "This form was sent from another site")
    try:
        vector, facts, preview = await _query_of_upload(place)

        def ask(conn: sqlite3.Connection) -> Answer:
            query = Query(vector, **_limits(question))
            return search(conn, place.collection, query, place.service.indexes)

        answer = await ask_database(place, ask)
        noted = note_search(place, question, answer)
    except ImageSimilarityError as error:
        if wants_json(request):
            raise
        return await _search_page(place, question, path, {}, error)
    if wants_json(request):
        return _json_answer(place, question, answer, None, image=facts)
    context = await _results(place, question, path, answer)
    context |= {
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
        "question": question,
        "path": path,
        "action": question.url(path),
        "filter_columns": place.source.columns,
        "lookups": lookups(),
        "searchable": await place.db.fts_table(place.table) is not None,
        "max_bytes": place.config.upload_max_bytes,
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
    form = await read_form(place.request, place.config.upload_max_bytes)
    if form.files.get("image"):
        vector, decoded = await place.service.embed_upload(
            form.files["image"], place.collection, place.config
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
    """A card for every collection that the actor may see."""
    from .home import cards

    shown = await cards(datasette, request)
    if wants_json(request):
        return Response.json(
            {"ok": True, "collections": [card.as_json() for card in shown]}
        )
    html = await datasette.render_template(
        "image_similarity_home.html",
        {"cards": shown, "static_url": static_url(datasette)},
        request=request,
        view_name="image-similarity",
    )
    return Response.html(html)
