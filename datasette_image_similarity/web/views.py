"""The pages and pictures: parse, ask, render."""

from __future__ import annotations

import base64
import csv
import io
import math
import struct
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from datasette.utils import tilde_encode, urlsafe_components
from datasette.utils.asgi import Response
from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError, EncoderError, ImageError, ImageSimilarityError
from ..images import PICTURE_TYPE, THUMBNAIL_TYPE
from ..images import Request as Decoding
from ..query import (
    Answer,
    Query,
    SearchTimeout,
    as_sql,
    deadline,
    items_of,
    mean_vector,
    pk_path,
    search,
)
from ..sources import read_blob, read_file
from .compat import (
    may_execute_sql,
    same_origin,
    sql_url,
    table_tools_url,
)
from .forms import BadForm, UploadTooBig, read_form
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
from .service import PICTURE, THUMBNAIL, QueueFull
from .tiles import QueryPicture, caption_column, tiles_of

if TYPE_CHECKING:
    from datasette.app import Datasette

STATUSES: dict[type[ImageSimilarityError], int] = {
    UploadTooBig: 413,
    QueueFull: 429,
    BadForm: 400,
    ImageError: 400,
    SearchTimeout: 503,
    EncoderError: 503,
}

View = Callable[..., Awaitable[Response]]


def wants_json(request: Any) -> bool:
    """Whether an answer should be JSON: by the address, or the Accept header."""
    if request.url_vars.get("format") == "json":
        return True
    accept = request.headers.get("accept", "")
    return "application/json" in accept and "text/html" not in accept


def tells_errors(view: View) -> View:
    """Answer what went wrong on a page of its own, or as JSON where that is asked for."""

    @wraps(view)
    async def handle(datasette: Datasette, request: Any) -> Response:
        try:
            return await view(datasette, request)
        except ImageSimilarityError as error:
            return await _error(datasette, request, error)
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
            busy = PageError(503, "The database is being written to: try again soon")
            return await _error(datasette, request, busy)

    return handle


def status_of(error: ImageSimilarityError) -> int:
    """The HTTP status that goes with an error."""
    if isinstance(error, PageError):
        return error.status
    return next((code for kind, code in STATUSES.items() if isinstance(error, kind)), 400)


def sentence(error: ImageSimilarityError) -> str:
    """What an error says, with a capital letter."""
    message = str(error)
    return message[:1].upper() + message[1:]


def _retry_header(status: int) -> dict[str, str]:
    return {"Retry-After": "5"} if status in (429, 503) else {}


def is_locked(error: BaseException) -> bool:
    """Whether another process keeps the database to itself for now."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


async def _error(
    datasette: Datasette, request: Any, error: ImageSimilarityError
) -> Response:
    status = status_of(error)
    headers = _retry_header(status)
    if wants_json(request):
        body = {"ok": False, "error": sentence(error), "status": status}
        return Response.json(body, status=status, headers=headers)
    html = await datasette.render_template(
        "image_similarity_error.html",
        {"status": status, "message": sentence(error)},
        request=request,
        view_name="image-similarity",
    )
    return Response.html(html, status=status, headers=headers)


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
        return items, search(conn, place.collection, asked)

    items, answer = await _ask(place, ask)
    next_url = None
    if answer.next is not None:
        next_url = question.url(path, _next=answer.next)
    format = request.url_vars.get("format")
    if wants_json(request):
        next_url = next_url and question.url(f"{path}.json", _next=answer.next)
        return _json_answer(place, question, answer, next_url)
    if format == "csv":
        return _csv_answer(place, answer)
    likes = await _query_pictures(place, question, path, items)
    context = await _results(place, question, path, answer)
    context |= {
        "likes": likes,
        "next_url": next_url,
        "json_url": question.url(f"{path}.json", _next=question.offset or None),
        "csv_url": question.url(f"{path}.csv", _next=question.offset or None),
        "sql_url": await _sql_url(place, question),
    }
    return await page(place, "image_similarity_similar.html", context)


def _limits(question: Question) -> dict[str, Any]:
    return {
        "k": question.size,
        "offset": question.offset,
        "filter": question.filter,
        "max_distance": question.max_distance,
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


async def _ask(place: Place, ask: Callable[[sqlite3.Connection], Any]) -> Any:
    """Run a search on a SQL thread, under Datasette's time limit. Raises PageError."""
    seconds = place.datasette.setting("sql_time_limit_ms") / 1000

    def limited(conn: sqlite3.Connection) -> Any:
        with deadline(conn, seconds):
            return ask(conn)

    try:
        return await place.db.execute_fn(limited)
    except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
        if is_locked(error):
            raise  # tells_errors() knows what to say
        if "no such table: _image_similarity" in str(error):
            raise PageError(404, f"The table {place.table} has no embeddings") from None
        if "no such module" in str(error):
            raise PageError(503, "sqlite-vec cannot be loaded here") from None
        raise PageError(400, f"The filter cannot be used: {error}") from None
    except sqlite3.DatabaseError as error:
        raise PageError(500, f"The database cannot be read: {error}") from None


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
    marks = ", ".join("?" * len(items))
    wanted = f"t.{db.quote(caption)}" if caption else "null"
    live = db.live_sql(place.collection, place.source)
    sql = f"select i.id, {wanted} as caption {live} and i.id in ({marks})"
    rows = {row["id"]: row for row in await place.db.execute(sql, items)}
    base = place.datasette.urls.table(place.database, place.table)
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


async def page(
    place: Place, template: str, context: dict[str, Any], status: int = 200
) -> Response:
    """One of our pages about a table."""
    datasette = place.datasette
    html = await datasette.render_template(
        template,
        {
            "database": place.database,
            "table": place.table,
            "table_url": datasette.urls.table(place.database, place.table),
            "search_url": place.url("search-by-image")
            if place.config.search_by_image
            else None,
            "about_url": about_url(datasette, place.database, place.table),
            "collection": place.collection,
            "static_url": static_url(datasette),
            **context,
        },
        request=place.request,
        view_name="image-similarity",
    )
    return Response.html(html, status=status, headers=_retry_header(status))


def static_url(datasette: Datasette) -> Callable[[str], str]:
    return lambda name: datasette.urls.static_plugins("datasette-image-similarity", name)


def about_url(datasette: Datasette, database: str, table: str) -> str:
    card = f"{tilde_encode(database)}/{tilde_encode(table)}"
    return datasette.urls.path(f"/-/image-similarity#{card}")


# Search by image


@tells_errors
async def search_by_image(datasette: Datasette, request: Any) -> Response:
    """A page to drop a picture on; a POST searches with it."""
    place = await find_place(datasette, request)
    if not place.config.search_by_image:
        raise PageError(403, "Search by picture is switched off for this table")
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
            return search(conn, place.collection, query)

        answer = await _ask(place, ask)
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
        return vector, facts, base64.b64encode(decoded.thumbnail).decode()
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


# Pictures


@tells_errors
async def thumbnail(datasette: Datasette, request: Any) -> Response:
    """The thumbnail of a row: as stored, or made now."""
    return await _picture(datasette, request, large=False)


@tells_errors
async def image(datasette: Datasette, request: Any) -> Response:
    """The picture of a row, decoded and encoded again, at reading size.

    Where the file may not be read here, or is gone, the stored thumbnail.
    """
    return await _picture(datasette, request, large=True)


async def _picture(datasette: Datasette, request: Any, large: bool) -> Response:
    place = await find_place(datasette, request)
    pk = request.url_vars["pk"]
    joins = (
        "left join _image_similarity_roots r on r.id = i.root_id "
        "left join _image_similarity_thumbnails h on h.id = i.id"
    )

    def find(conn: sqlite3.Connection) -> sqlite3.Row | None:
        key = place.source.find(conn, urlsafe_components(pk))
        if key is None:
            return None
        return conn.execute(
            "select i.pk, i.path, i.sha256, i.size, r.path as root, h.webp "
            f"{db.live_sql(place.collection, place.source, joins)} and i.pk = ?",
            (key,),
        ).fetchone()

    row = await _ask(place, find)
    if row is None:
        raise PageError(404, f"There is no picture of row {pk}")
    etag = f'"{row["sha256"][:32]}-{"image" if large else "thumbnail"}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=3600",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'",
    }
    if etag in request.headers.get("if-none-match", ""):
        return Response("", status=304, headers=headers)
    data = None if large else row["webp"]
    if data is None:
        data = await _make_picture(place, row, large) or row["webp"]
    if data is None:
        raise PageError(404, f"The picture of row {pk} cannot be read here")
    kind = PICTURE_TYPE if large and data is not row["webp"] else THUMBNAIL_TYPE
    return Response(data, headers=headers, content_type=kind)


async def _make_picture(place: Place, row: sqlite3.Row, large: bool) -> bytes | None:
    """Decode the original and encode it again as WebP; None where it cannot be had."""
    request = Decoding(picture=PICTURE) if large else Decoding(thumbnail=THUMBNAIL)
    if place.collection.source == "blob":
        data = await place.db.execute_fn(
            lambda conn: read_blob(conn, place.source, place.collection.column, row["pk"])
        )

        def read() -> bytes:
            return data

    else:
        file = place.service.file_of(place.db, row["root"], row["path"], place.config)
        if file is None:
            return None

        def read() -> bytes:
            return read_file(file, 1 << 30)

    try:
        decoded = await place.service.decode_picture(read, request)
    except ImageError:
        return None
    return decoded.picture if large else decoded.thumbnail


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
