"""How every page of ours answers: pages, errors in words, searches under a deadline."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from datasette.database import QueryInterrupted
from datasette.utils import tilde_encode
from datasette.utils.asgi import Forbidden, Response
from datasette.utils.sqlite import sqlite3

from ..database import DAMAGED, is_full
from ..errors import (
    EncoderError,
    ExtensionError,
    ImageError,
    ImageSimilarityError,
    StoreError,
)
from ..query import SearchTimeout
from . import stored
from .clock import limited
from .compat import may_execute_sql, sql_url
from .curate import is_curator
from .forms import BadForm, UploadTooBig, UploadTooSlow
from .frame import framed_page, guarded
from .question import PageError, Place, Question, lookups
from .service import QueueFull, TooSlow
from .switch import choices, compare_url

if TYPE_CHECKING:
    from datasette.app import Datasette

STATUSES: dict[type[ImageSimilarityError], int] = {
    UploadTooBig: 413,
    UploadTooSlow: 408,
    QueueFull: 429,
    TooSlow: 503,
    BadForm: 400,
    ImageError: 400,
    SearchTimeout: 503,
    EncoderError: 503,
    ExtensionError: 503,
    StoreError: 503,
    stored.QueueFull: 503,
}

ASKED = "no-cache"  # a browser may keep an answer, and asks each time if it is still right
METHODS = ("GET", "HEAD", "POST")
TURN = 20  # of a list's things are written without a pause
TOO_BUSY = "The database is too busy to answer in time: try again soon"

# Pages about a table as a whole, by the end of their address.
PAGES = {
    "map": "Map",
    "duplicates": "Duplicates",
    "clusters": "Clusters",
    "evaluations": "Evaluations",
    "questions": "Saved questions",
}

View = Callable[..., Awaitable[Response]]
Thing = TypeVar("Thing")


def wants_json(request: Any) -> bool:
    """Whether an answer should be JSON: by the address, or the Accept header."""
    if request.url_vars.get("format") == "json":
        return True
    accept = request.headers.get("accept", "")
    return "application/json" in accept and "text/html" not in accept


def tells_errors(view: View) -> View:
    """Answer what went wrong on a page of its own, or as JSON where that is asked for."""

    async def answered(datasette: Datasette, request: Any) -> Response:
        try:
            if request.method not in METHODS:
                raise PageError(405, f"This page answers {', '.join(METHODS)} alone")
            return await view(datasette, request)
        except ImageSimilarityError as error:
            return await _error(datasette, request, error)
        except sqlite3.DatabaseError as error:
            return await _error(datasette, request, database_error(error))
        except QueryInterrupted:  # one of Datasette's own
            return await _error(datasette, request, SearchTimeout(TOO_BUSY))

    @wraps(view)
    async def handle(datasette: Datasette, request: Any) -> Response:
        return guarded(await answered(datasette, request))

    return handle


def database_error(error: sqlite3.DatabaseError) -> PageError:
    """What SQLite refused, where no view knows better."""
    if is_locked(error):
        return PageError(503, "The database is being written to: try again soon")
    if is_full(error):
        return PageError(507, "Nothing was changed: the server's disk is full")
    if "disk I/O" in str(error):
        return PageError(503, "The server's disk reports an error")
    if "readonly" in str(error):
        return PageError(403, "The database cannot be written to: its file is read-only")
    if str(error).startswith("no such "):  # filters that name such are told elsewhere
        return PageError(400, DAMAGED)
    return PageError(500, f"The database cannot be used: {error}")


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
    if status == 403:
        raise Forbidden(sentence(error))  # plugins may offer a login
    context = {"status": status, "message": sentence(error)}
    template = "image_similarity_error.html"
    return await framed_page(datasette, request, template, context, status, headers)


async def ask_database(
    place: Place, ask: Callable[[sqlite3.Connection], Any], patience: float = 1
) -> Any:
    """Run a search on a SQL thread, under Datasette's time limit. Raises PageError.

    That limit is for everything asked for one request. `patience` is so many times as long:
    for what is read whole, whoever asks.
    """
    with _in_words(place):
        return await place.db.execute_fn(
            limited(place.datasette, place.request, ask, patience)
        )


async def ask_vectors(
    place: Place, ask: Callable[[sqlite3.Connection], Any], patience: float = 1
) -> Any:
    """As `ask_database()`, for what reads vectors.

    Those in a store are read in a thread that may wait for it, under the setting
    `store_seconds`, which is for everything asked here. Raises StoreError as well.
    """
    if not place.collection.store:
        return await ask_database(place, ask, patience)
    seconds = place.config.store_seconds
    try:
        with _in_words(place):
            return await place.service.stored.ask(place.db, ask, seconds)
    except StoreError as error:
        raise stored.shown_error(error, place.collection) from None


@contextmanager
def _in_words(place: Place) -> Iterator[None]:
    """What SQLite refuses, as a PageError."""
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
        if is_locked(error):
            raise  # tells_errors() knows what to say
        if "no such table: _image_similarity" in str(error):
            raise PageError(404, f"The table {place.table} has no embeddings") from None
        raise PageError(400, f"The filter cannot be used: {error}") from None
    except (sqlite3.InterfaceError, OverflowError) as error:
        raise PageError(400, f"The filter cannot be used: {error}") from None
    except ValueError as error:
        if "null character" not in str(error):  # some Pythons' way to say so
            raise
        raise PageError(400, f"The filter cannot be used: {error}") from None
    except sqlite3.DatabaseError as error:
        raise PageError(500, f"The database cannot be read: {error}") from None


async def page(
    place: Place, template: str, context: dict[str, Any], status: int = 200
) -> Response:
    """One of our pages about a table."""
    datasette = place.datasette
    logs = place.config.history
    more = {"searches": "Searches"} if logs and await is_curator(place) else {}
    return await framed_page(
        datasette,
        place.request,
        template,
        {
            "database": place.database,
            "table": place.table,
            "table_url": place.table_url,
            "search_url": place.url("search-by-image")
            if place.config.search_by_image
            else None,
            "words_url": place.path("similar") if place.reads_words else None,
            "pages": pages_of(place, more),
            "history": logs,
            "immutable": not place.db.is_mutable,
            "static_url": static_url(datasette),
            "collections": await choices(place),
            "compare_url": compare_url(place),
            "in_turns": in_turns,
            **context,
        },
        status,
        _retry_header(status),
    )


async def in_turns(things: Iterable[Thing]) -> AsyncIterator[Thing]:
    """The same, for a long list in a template: others are answered while it is written."""
    for number, thing in enumerate(things, 1):
        yield thing
        if number % TURN == 0:
            await asyncio.sleep(0)


def json_answer(place: Place, body: dict[str, Any]) -> Response:
    """Data, for other sites too where Datasette is set up so."""
    return plain_json(place, {"ok": True, **body})


def plain_json(place: Place, body: object) -> Response:
    """As `json_answer()`, without saying that all is well."""
    headers = {"access-control-allow-origin": "*"} if place.datasette.cors else {}
    return Response.json(body, headers=headers)


def kept_answer(request: Any, data: bytes, kind: str, cache: str) -> Response:
    """Bytes that a browser may keep for as long as `cache` says; 304 if it has them.

    The tag is a hash of these very bytes: a picture, and what is shown in its place, never
    share one.
    """
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": f"private, {cache}"}
    if etag in request.headers.get("if-none-match", ""):
        return Response("", status=304, headers=headers)
    return Response(data, headers=headers, content_type=kind)


def csv_answer(
    place: Place, name: str, columns: Iterable[str], rows: Iterable[Sequence[object]]
) -> Response:
    """Rows as the file `name`.csv; BLOBs are left out."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if isinstance(value, bytes) else value for value in row])
    headers = {"content-disposition": f'attachment; filename="{name}.csv"'}
    if place.datasette.cors:
        headers["access-control-allow-origin"] = "*"
    content_type = "text/csv; charset=utf-8"
    return Response(out.getvalue(), content_type=content_type, headers=headers)


async def sql_page(place: Place, sql: str, params: Mapping[str, object]) -> str | None:
    """Datasette's page for a query; None for those who may not run SQL."""
    if not await may_execute_sql(place.datasette, place.request.actor, place.database):
        return None
    return sql_url(place.datasette, place.database, sql, params)


async def controls(place: Place, question: Question, path: str) -> dict[str, Any]:
    """What `_image_similarity_controls.html` needs: the filters, and a form for more."""
    return {
        "question": question,
        "path": path,
        "filter_columns": place.source.columns,
        "lookups": lookups(),
        "searchable": await place.db.fts_table(place.table) is not None,
    }


def pages_of(place: Place, more: dict[str, str]) -> list[tuple[str, str, bool]]:
    """(title, address, whether this is it, or lies below) of the pages about a table."""
    pages = []
    for name, title in {**PAGES, **more}.items():
        url = place.url(name)
        path = url.split("?")[0]
        here = f"{place.request.path}/".startswith(f"{path}/")
        pages.append((title, url, here))
    return pages


def static_url(datasette: Datasette) -> Callable[[str], str]:
    return lambda name: datasette.urls.static_plugins("datasette-image-similarity", name)


def about_url(datasette: Datasette, database: str, table: str) -> str:
    card = f"{tilde_encode(database)}/{tilde_encode(table)}"
    return datasette.urls.path(f"/-/image-similarity#{card}")
