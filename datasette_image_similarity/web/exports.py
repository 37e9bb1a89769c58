"""Results to take along: the pictures as a zip file, or a contact sheet.

Both are made in a thread of their own, a picture at a time, within the limits below; what
comes of it lies in a temporary file or is one page. Originals go out only from folders
that may be shown here, and only as they were when they were embedded.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import IO, TYPE_CHECKING, Any

from datasette.utils import urlsafe_components
from datasette.utils.sqlite import sqlite3

from ..errors import ImageError
from ..explore.exports import (
    Entry,
    entries_of_hits,
    entries_of_keys,
    filtered_entries,
    read_original,
    stored_thumbnail,
    unchanged,
    write_sheet,
    write_zip,
)
from ..query import Answer, SearchTimeout
from ..sources import Kept, is_in_row, read_blob
from .answers import ask_database, tells_errors
from .asked import in_words, rows_of
from .pictures import make_picture
from .question import PageError, Place, Question, find_place, read_question
from .service import QueueFull
from .tiles import caption_column

if TYPE_CHECKING:
    from datasette.app import Datasette

PICTURES = 500  # in one export
BYTES = 500_000_000  # of originals in one zip file
AT_ONCE = 2  # exports being made
SECONDS = 120  # for one to be made
CHUNK = 1 << 18


@tells_errors
async def export(datasette: Datasette, request: Any) -> Any:
    """The pictures of all rows that pass the filters, as a zip file or a contact sheet."""
    place = await find_place(datasette, request)
    path = place.path("export.html")
    question = await read_question(place, path)
    size = question.size if request.args.get("_size") else PICTURES + 1

    def ask(conn: sqlite3.Connection) -> tuple[list[Entry], int]:
        asked = (question.filter, size, question.offset)
        return filtered_entries(conn, place.collection, place.source, *asked)

    entries, total = await ask_database(place, ask)
    return await _made(
        place,
        question,
        entries,
        title=f"Pictures of {place.table}",
        name=place.table,
        total=total,
        url=question.url(place.table_url, drop=["_size", "_collection"]),
    )


async def export_answer(place: Place, question: Question, answer: Answer) -> Any:
    """The same of the results of a search, the best first."""
    if len(answer.hits) > PICTURES:
        raise _too_many(len(answer.hits))

    def ask(conn: sqlite3.Connection) -> tuple[list[Entry], list[Entry]]:
        about = (conn, place.collection, place.source)
        rows = (row for row, unlike in rows_of(question) if not unlike)
        likes = ((0, list(urlsafe_components(row))) for row in rows)
        return entries_of_hits(*about, answer.hits), list(entries_of_keys(*about, likes))

    entries, likes = await ask_database(place, ask)
    what = "these" if len(likes) > 1 else "this one" if likes else "words"
    return await _made(
        place,
        question,
        entries,
        title=f"Pictures of {place.table} like {what}",
        name=f"similar-{place.table}",
        total=answer.total,
        url=question.url(place.path("similar"), _next=question.offset or None),
        asked_with=likes,
    )


async def _made(
    place: Place,
    question: Question,
    entries: list[Entry],
    *,
    title: str,
    name: str,
    total: int,
    url: str,
    asked_with: Sequence[Entry] = (),
) -> Any:
    """The export that the address asks for. Raises PageError, QueueFull."""
    if len(entries) > PICTURES:
        raise _too_many(total)
    pictures = _OfDatasette(place)
    caption = await caption_column(place)
    if place.request.url_vars["format"] == "zip":
        _refuse_bytes(entries, pictures)

        def write(out: IO[bytes]) -> None:
            write_zip(out, entries, pictures, caption)

    else:
        datasette, request = place.datasette, place.request
        base = datasette.absolute_url(request, place.table_url)
        words = in_words(question)
        if unlikes := sum(unlike for _, unlike in rows_of(question)):
            words.append(f"less like {unlikes} other{'s' if unlikes > 1 else ''}")
        url = datasette.absolute_url(request, url)

        def write(out: IO[bytes]) -> None:
            write_sheet(
                out,
                entries,
                pictures,
                caption,
                title=title,
                words=words,
                asked_with=asked_with,
                total=total,
                url=url,
                row_url=lambda entry: f"{base}/{entry.row_path}",
            )

    if place.service.exporting >= AT_ONCE:
        raise QueueFull("Other exports are being made just now. Try again in a moment")
    place.service.exporting += 1
    try:
        file = await asyncio.to_thread(_written, write)
    finally:
        place.service.exporting -= 1
    return FileResponse(file, name, place.request.url_vars["format"])


class _OfDatasette:
    """Pictures as this Datasette may show them, for the thread that makes an export."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.loop = asyncio.get_running_loop()
        self.until = time.monotonic() + SECONDS

    def may_have_originals(self, entries: Sequence[Entry]) -> bool:
        """Whether there may be files to read, from what is configured."""
        place = self.place
        if not place.config.originals:
            return False
        if any(is_in_row(place.collection, entry.path) for entry in entries):
            return True
        recorded = list({entry.root for entry in entries if entry.root is not None})
        return bool(place.service.trusted_roots(place.db, recorded, place.config))

    @property
    def holds(self) -> str:
        return "original" if self.place.config.originals else "picture"

    def picture(self, entry: Entry) -> bytes:
        self._refuse_late()
        place = self.place
        if not place.config.originals:
            data = self._in_the_loop(make_picture(place, _kept(entry), large=True))
            if data is None:
                raise ImageError("cannot be read here")
            return data
        if is_in_row(place.collection, entry.path):
            column = place.collection.column
            data = self._on_sql_thread(
                lambda conn: read_blob(conn, place.source, column, entry.key)
            )
            return unchanged(data, entry)
        file: str | None = None
        if entry.root is not None and entry.path is not None:
            file = place.service.file_of(place.db, entry.root, entry.path, place.config)
        return read_original(place.service.read_file, file, entry)

    def thumbnail(self, entry: Entry) -> bytes | None:
        self._refuse_late()
        stored = self._on_sql_thread(lambda conn: stored_thumbnail(conn, entry))
        if stored is not None:
            return stored
        return self._in_the_loop(make_picture(self.place, _kept(entry), large=False))

    def _on_sql_thread(self, read: Callable[[sqlite3.Connection], Any]) -> Any:
        return self._in_the_loop(self.place.db.execute_fn(read))

    def _in_the_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        # A loop that was stopped meanwhile would never answer.
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def _refuse_late(self) -> None:
        if time.monotonic() > self.until:
            raise SearchTimeout(
                f"It took longer than {SECONDS} seconds: export fewer pictures at a time"
            )


def _kept(entry: Entry) -> Kept:
    return Kept(entry.key, entry.path, entry.root, entry.sha256, None)


class FileResponse:
    """An open file as an answer, read while it is sent, closed after.

    Datasette's own stream sends text only.
    """

    def __init__(self, file: IO[bytes], name: str, format: str) -> None:
        self.file = file
        kinds = {"zip": "application/zip", "html": "text/html; charset=utf-8"}
        self.headers = {
            "content-type": kinds[format],
            "content-disposition": f'attachment; filename="{_safe(name)}.{format}"',
            # A sheet that is opened instead of kept is as harmless: it has no scripts.
            "content-security-policy": (
                "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
            ),
        }

    async def asgi_send(self, send: Any) -> None:
        try:
            self.headers["content-length"] = str(self.file.seek(0, 2))
            self.file.seek(0)
            encoded = [(n.encode(), v.encode("latin-1")) for n, v in self.headers.items()]
            await send({"type": "http.response.start", "status": 200, "headers": encoded})
            while chunk := await asyncio.to_thread(self.file.read, CHUNK):
                body = {"type": "http.response.body", "body": chunk, "more_body": True}
                await send(body)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.file.close()


def _written(write: Callable[[IO[bytes]], None]) -> IO[bytes]:
    """A temporary file with what `write` puts there. Raises PageError."""
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (closed when it has been sent)
        try:
            write(file)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise PageError(503, f"It cannot be made here: {error.strerror or error}") from None
    return file


def _refuse_bytes(entries: list[Entry], pictures: _OfDatasette) -> None:
    total = sum(entry.size for entry in entries)
    if total > BYTES and pictures.may_have_originals(entries):
        raise PageError(
            413,
            f"These pictures have {total / 1e6:,.0f} MB, and up to {BYTES / 1e6:,.0f} MB "
            "go into one file: narrow them with a filter, or take them in parts with _size "
            "and _next",
        )


def _too_many(number: int) -> PageError:
    return PageError(
        413,
        f"These are {number:,} pictures, and up to {PICTURES:,} go into one file: narrow "
        f"them with a filter, or take them in parts with _size={PICTURES} and _next",
    )


def _safe(name: str) -> str:
    """A table's name as that of a file, in a header."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in name)
    return kept.strip("-")[:60] or "pictures"
