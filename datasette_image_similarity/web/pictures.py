"""Pictures as they are served: decoded and encoded again, never the file itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datasette.utils import urlsafe_components
from datasette.utils.asgi import Response
from datasette.utils.sqlite import sqlite3

from ..errors import ImageError, MissingFile
from ..images import PICTURE_TYPE, THUMBNAIL_TYPE
from ..images import Request as Decoding
from ..sources import Kept, is_in_row, kept_picture, read_blob
from .answers import ASKED, ask_database, kept_answer, tells_errors
from .question import PageError, Place, find_place
from .service import PICTURE, THUMBNAIL

if TYPE_CHECKING:
    from datasette.app import Datasette

KEPT = "max-age=3600"


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
    place = await find_place(datasette, request, vectors=False)
    pk = request.url_vars["pk"]

    row = await find_kept(place, pk)
    data = None if large else row.thumbnail
    if data is None:
        data = await make_picture(place, row, large)
    kind, cache = PICTURE_TYPE if large else THUMBNAIL_TYPE, KEPT
    if data is None:  # and only until the picture itself can be read again
        data, kind, cache = row.thumbnail, THUMBNAIL_TYPE, ASKED
    if data is None:
        raise PageError(404, f"The picture of row {pk} cannot be read here")
    return kept_answer(request, data, kind, cache)


async def find_kept(place: Place, pk: str) -> Kept:
    """What is stored of a row's picture; `pk` is in row-path form. Raises PageError 404."""

    def find(conn: sqlite3.Connection) -> Kept | None:
        key = place.source.find(conn, urlsafe_components(pk))
        if key is None:
            return None
        return kept_picture(conn, place.collection, place.source, key)

    kept = await ask_database(place, find)
    if kept is None:
        raise PageError(404, f"There is no picture of row {pk}")
    return kept


async def make_picture(place: Place, row: Kept, large: bool) -> bytes | None:
    """Decode the original and encode it again; None where it cannot be had."""
    request = Decoding(picture=PICTURE) if large else Decoding(thumbnail=THUMBNAIL)
    read = await original(place, row)
    if read is None:
        return None
    try:
        decoded = await place.service.decode_picture(read, request)
    except ImageError:
        return None
    return decoded.picture if large else decoded.thumbnail


async def original(place: Place, row: Kept) -> Callable[[], bytes] | None:
    """How to read a row's own picture, as a thread may; None where it may not be read."""
    if is_in_row(place.collection, row.path):
        data = await place.db.execute_fn(
            lambda conn: read_blob(conn, place.source, place.collection.column, row.pk)
        )
        return lambda: data
    file = place.service.file_of(place.db, str(row.root), str(row.path), place.config)
    if file is None:
        return None

    def read() -> bytes:
        try:
            return place.service.read_file(file)
        except ImageError as error:  # a bucket that is away, say: the thumbnail is left
            raise MissingFile(str(error)) from None

    return read
