"""Adding a picture in the browser: a row, its file or BLOB, and its embedding at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Response
from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError
from ..formats import accepted, suffix_of
from ..images import Decoded
from ..roots import as_root
from .answers import is_locked, page, tells_errors, wants_json
from .compat import may_insert, same_origin
from .forms import Form, read_form
from .question import PageError, Place, find_place

if TYPE_CHECKING:
    from datasette.app import Datasette

FOLDER = "added"  # below the root, so that it is plain what came in this way


@tells_errors
async def add_picture(datasette: Datasette, request: Any) -> Response:
    """A form for a picture and the other columns; a POST stores and embeds it."""
    place = await find_place(datasette, request)
    if not await may_insert(datasette, request.actor, place.database, place.table):
        raise PageError(403, f"You may not insert rows into {place.table}")
    if not place.db.is_mutable:
        raise PageError(403, f"The database {place.database} is immutable")
    root = None if place.collection.source == "blob" else await _writable_root(place)
    fields = await _fields(place)
    if request.method != "POST":
        return await _form(place, fields, {})
    if not same_origin(request):
        raise PageError(403, "This form was sent from another site")
    with place.service.holding(place.config) as held:
        form = await read_form(request, place.config.upload_max_bytes, held)
        return await _added(place, form, fields, root)


async def _added(
    place: Place, form: Form, fields: list[dict[str, Any]], root: Path | None
) -> Response:
    """Store and embed the picture in a form, and lead to its row."""
    data = form.files.get("image")
    if not data:
        raise PageError(
            400, "Choose a picture first: the form has no file in its field image"
        )
    vector, decoded = await place.service.embed_upload(
        place.db, data, place.collection, place.config
    )
    path = await asyncio.to_thread(_save, root, data, decoded) if root else None
    values = _values(place, form, fields, data, decoded, path)

    def write(conn: sqlite3.Connection) -> db.Key:
        with db.transaction(conn):
            return _insert(conn, place, values, root, path, data, decoded, vector)

    try:
        key = await place.db.execute_write_fn(write)
    except BaseException as error:
        if path is not None:
            (root / path).unlink(missing_ok=True)
        if is_locked(error) or not isinstance(error, (sqlite3.Error, CollectionError)):
            raise
        message = f"The row could not be inserted: {error}"
        if wants_json(place.request):
            raise PageError(400, message) from None
        return await _form(place, fields, {"error": message, "given": form.fields}, 400)
    pk = place.row_path(key)
    url = f"{place.table_url}/{pk}"
    if wants_json(place.request):
        return Response.json({"ok": True, "pk": pk, "url": url}, status=201)
    return Response.redirect(url)


async def _form(
    place: Place, fields: list[dict[str, Any]], context: dict[str, Any], status: int = 200
) -> Response:
    path = place.path("add-picture")
    defaults = {"action": path, "fields": fields, "given": {}, "error": ""}
    megabytes = place.config.upload_max_bytes / 1e6
    context = {**defaults, "megabytes": megabytes, "accept": accepted(), **context}
    return await page(place, "image_similarity_add.html", context, status)


async def _writable_root(place: Place) -> Path:
    """The folder that new files go to. Raises PageError where there is none."""
    known = await place.db.execute_fn(lambda conn: db.roots(conn, place.collection))
    recorded = [root for root in known.values() if isinstance(root, str)]
    if any(not isinstance(as_root(root), Path) for root in recorded):
        raise PageError(
            403, "These pictures lie in a bucket or on the web, where pages put nothing"
        )
    for root in place.service.trusted_roots(place.db, recorded, place.config):
        if isinstance(root, Path) and root.is_dir() and os.access(root, os.W_OK):
            return root
    raise PageError(
        403,
        "There is no folder to put new pictures in: name one as a root in the "
        "configuration of datasette-image-similarity",
    )


async def _fields(place: Place) -> list[dict[str, Any]]:
    """The columns that somebody fills in."""
    ours = {place.collection.column}
    if place.collection.source == "folder":
        ours |= set(_file_facts(b"", None, "")) | {"id"}
    columns = await place.db.table_column_details(place.table)
    keys = [column for column in columns if column.is_pk]
    automatic = (
        {keys[0].name} if len(keys) == 1 and keys[0].type.lower() == "integer" else set()
    )
    return [
        {
            "name": column.name,
            "required": bool(column.notnull or column.is_pk)
            and column.default_value is None,
            "number": column.type.lower() in ("integer", "real", "float"),
        }
        for column in columns
        if column.name not in ours | automatic and not column.hidden
    ]


def _save(root: Path, data: bytes, decoded: Decoded) -> str:
    """Write the file under a name that no other has; its path below the root."""
    path = f"{FOLDER}/{secrets.token_hex(16)}{suffix_of(decoded.format)}"
    folder = root / FOLDER
    if not folder.resolve().is_relative_to(root.resolve()):
        raise PageError(403, f"The folder {FOLDER} leads out of the root")
    try:
        folder.mkdir(exist_ok=True)
        with open(root / path, "xb") as file:
            file.write(data)
    except OSError as error:
        (root / path).unlink(missing_ok=True)
        raise PageError(503, f"The picture could not be stored: {error.strerror}") from None
    return path


def _file_facts(data: bytes, decoded: Decoded | None, path: str) -> dict[str, Any]:
    """The columns of a folder's table."""
    facts: dict[str, Any] = {
        "folder": FOLDER,
        "name": path.rpartition("/")[2],
        "width": decoded and decoded.width,
        "height": decoded and decoded.height,
        "format": decoded and decoded.format,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    for name in ("taken_at", "camera", "latitude", "longitude"):
        facts[name] = decoded.facts.get(name) if decoded else None
    return facts


def _values(
    place: Place,
    form: Form,
    fields: list[dict[str, Any]],
    data: bytes,
    decoded: Decoded,
    path: str | None,
) -> dict[str, Any]:
    """The new row."""
    values: dict[str, Any] = {
        one["name"]: form.fields[one["name"]]
        for one in fields
        if form.fields.get(one["name"], "") != ""
    }
    if place.collection.source == "folder":
        facts = _file_facts(data, decoded, path)
        values |= {name: v for name, v in facts.items() if name in place.source.columns}
    values[place.collection.column] = data if path is None else path
    return values


def _insert(
    conn: sqlite3.Connection,
    place: Place,
    values: dict[str, Any],
    root: Path | None,
    path: str | None,
    data: bytes,
    decoded: Decoded,
    vector: bytes,
) -> db.Key:
    """Insert the row and its item; returns the row's key. Raises CollectionError when the
    collection was replaced or moved meanwhile."""
    if place.collection not in db.collections(conn, place.table):
        raise CollectionError("the embeddings were changed meanwhile: try again")
    names = ", ".join(map(db.quote, values))
    marks = ", ".join("?" * len(values))
    key = conn.execute(
        f"insert into {db.quote(place.table)} ({names}) values ({marks}) "
        f"returning {place.source.key_sql()}",
        list(values.values()),
    ).fetchone()[0]
    found = (root / path).stat() if path else None
    db.put_item(
        conn,
        place.collection,
        pk=key,
        root=db.root_id(conn, place.collection, root) if root else None,
        path=path,
        size=len(data),
        mtime_ns=found.st_mtime_ns if found else None,
        sha256=hashlib.sha256(data).hexdigest(),
        width=decoded.width,
        height=decoded.height,
        vector=vector,
        thumbnail=decoded.thumbnail if place.collection.thumbnails else None,
        note=decoded.note,
    )
    return key
