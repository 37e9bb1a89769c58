"""What the page with the map fetches: places, colours, small pictures, captions.

`points.bin`, little-endian: a header of 32 bytes (the letters IMSP; then as uint32: version
1, the number n of points, columns of the grid or 0, the side of a sheet and of a tile in
pixels, the number of sheets, 0), then arrays of n numbers each: x, y and aspect (float32;
width by height), cell (int32; −1 for none), slot and item id (uint32), and passes (uint8; 1
where the row passes the filters in the address). Points come in the order of their slots,
and values of a column in the order of the points.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Response
from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..columns import BLOCK
from ..errors import CollectionError
from ..explore.exports import caption_text
from ..explore.map import (
    MapStatus,
    live_points,
    map_status,
    need_map,
    passes_sql,
    read_points,
)
from ..images import THUMBNAIL_TYPE
from .answers import ASKED, ask_database, kept_answer, tells_errors
from .question import PageError, Place, Question, find_place, read_question
from .tiles import caption_column

if TYPE_CHECKING:
    from datasette.app import Datasette

MAGIC, VERSION = b"IMSP", 1
# The whole map is read at once, however small a part of it a page shows: its size is the
# owner's choice and not the visitor's. So many times Datasette's time limit.
PATIENCE = 10
PICTURES = 200  # asked for at once, at most
CATEGORIES = 20  # values with a colour of their own; the others share one
SAMPLED = 2_000  # rows that decide what a column is fit for
FEW_NUMBERS = 12  # distinct numbers that are taken for categories
TEXT = 100  # characters of a value
CLUSTER = "cluster"  # the name of our own column, unless the table has it
DATE = re.compile(r"\d{4}-\d\d(-\d\d.*)?", re.DOTALL)
CLUSTER_SQL = (
    "(select substr(c.name, 1, 100) from _image_similarity_members m "
    "join _image_similarity_clusters c on c.id = m.cluster_id "
    "where m.item_id = p.item_id and typeof(c.name) = 'text')"
)
ATLAS_BYTES = 50_000_000


# Points


@tells_errors
async def points(datasette: Datasette, request: Any) -> Response:
    """The whole map as numbers."""
    place = await find_place(datasette, request)
    question = await read_question(place, place.path("map"))

    def ask(conn: sqlite3.Connection) -> bytes:
        with db.snapshot(conn):
            status = _map_of(conn, place)
            found = read_points(conn, place.collection, place.source, question.filter)
        numbers = (VERSION, len(found.ids), status.columns or 0)
        header = struct.pack(
            "<4s7I", MAGIC, *numbers, status.sheet, status.tile, status.sheets, 0
        )
        arrays = [found.x, found.y, found.aspect, found.cells, found.slots]
        parts = [array.astype(array.dtype.newbyteorder("<")) for array in arrays]
        parts += [found.ids.astype("<u4"), found.passes.astype("u1")]
        return header + b"".join(part.tobytes() for part in parts)

    data = await ask_database(place, ask, PATIENCE)
    return await _answer(place, data, "application/octet-stream")


def _map_of(conn: sqlite3.Connection, place: Place) -> MapStatus:
    """Raises PageError 404 without a map."""
    try:
        return need_map(conn, place.collection)
    except CollectionError as error:
        raise PageError(404, str(error)) from None


async def _answer(place: Place, data: bytes, kind: str, cache: str = ASKED) -> Response:
    # A million points are 25 MB, and their hash takes a while: others are answered.
    response = await asyncio.to_thread(kept_answer, place.request, data, kind, cache)
    if place.datasette.cors:
        response.headers["access-control-allow-origin"] = "*"
    return response


async def _json(place: Place, body: dict[str, object]) -> Response:
    data = await asyncio.to_thread(_encoded, body)
    return await _answer(place, data, "application/json; charset=utf-8")


def _encoded(body: dict[str, object]) -> bytes:
    """As JSON. Long lists are written in parts: no other thread runs during one."""

    def written(value: object) -> str:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))

    def parts(value: object) -> str:
        if not isinstance(value, list):
            return written(value)
        blocks = (value[start : start + BLOCK] for start in range(0, len(value), BLOCK))
        return f"[{','.join(written(block)[1:-1] for block in blocks)}]"

    items = (f"{written(name)}:{parts(value)}" for name, value in body.items())
    return f"{{{','.join(items)}}}".encode()


# Atlases


@tells_errors
async def atlas(datasette: Datasette, request: Any) -> Response:
    """A sheet of small pictures. With the map's version as `?v=`, kept for a year."""
    place = await find_place(datasette, request)
    number = int(request.url_vars["number"])

    def ask(conn: sqlite3.Connection) -> tuple[MapStatus, bytes | None]:
        with db.snapshot(conn):  # else a new map's sheet might be kept as the old one's
            status = _map_of(conn, place)
            row = conn.execute(
                "select webp from _image_similarity_atlases "
                "where collection_id = ? and number = ? and length(webp) <= ?",
                (place.collection.id, number, ATLAS_BYTES),
            ).fetchone()
        return status, row and row["webp"]

    status, webp = await ask_database(place, ask)
    if not isinstance(webp, bytes) or _webp_size(webp) != (status.sheet, status.sheet):
        raise PageError(404, f"The map has no sheet {number}")
    current = request.args.get("v") == str(status.version)
    cache = "max-age=31536000, immutable" if current else ASKED
    return await _answer(place, webp, THUMBNAIL_TYPE, cache)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a simple lossy WebP, as ours are; None for anything else.

    RFC 9649 (WebP), and RFC 6386, section 9.1, for the frame's header.
    """
    right = data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8 " and len(data) >= 30
    if not right or data[23:26] != b"\x9d\x01\x2a":
        return None
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


# Columns


@tells_errors
async def columns(datasette: Datasette, request: Any) -> Response:
    """The columns that a map can be coloured by, with their kind."""
    place = await find_place(datasette, request)
    names = _own_columns(place)

    def ask(conn: sqlite3.Connection) -> list[dict[str, str]]:
        status = _map_of(conn, place)
        # One row in so many, from all over the map.
        step = max(1, status.count // SAMPLED)
        live = live_points(place.collection, place.source, by_slot=True)
        chosen = ", ".join(_value_sql(name) for name in names) or "null"
        sql = f"select {chosen} {live} and p.slot % :step = 0 limit :most"
        rows = conn.execute(sql, {"step": step, "most": 2 * SAMPLED}).fetchall()
        found = [
            {"name": name, "kind": kind}
            for name, values in zip(names, zip(*rows, strict=True), strict=False)
            if (kind := _fit(values))
        ]
        if _has_clusters(conn, place):
            found.insert(0, {"name": cluster_column(place), "kind": "category"})
        return found

    return await _json(
        place, {"ok": True, "columns": await ask_database(place, ask, PATIENCE)}
    )


def _own_columns(place: Place) -> list[str]:
    """The table's columns, but its keys and the pictures."""
    left_out = {*place.source.pks, place.collection.column}
    return [name for name in place.source.columns if name not in left_out]


def _value_sql(name: str) -> str:
    """A column's value, text cut short and BLOBs left out."""
    column = f"t.{db.quote(name)}"
    return (
        f"case typeof({column}) when 'blob' then null when 'text' "
        f"then substr({column}, 1, {TEXT}) else {column} end"
    )


def _fit(values: Sequence[object]) -> str | None:
    """What a column can be shown as, by a sample of its values; None for not at all."""
    there = [value for value in values if value is not None]
    distinct = set(there)
    if len(distinct) < 2:
        return None
    if _numeric(there) and len(distinct) > FEW_NUMBERS:
        return "number"
    if _dated(there):
        return "category"
    # Where nearly every value is another one, nearly all would be "other".
    common = sum(count for _, count in Counter(there).most_common(CATEGORIES))
    shared = len(distinct) * 2 <= len(there) and common * 10 >= len(there)
    return "category" if shared else None


def _numeric(values: Sequence[object]) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


def _dated(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) and DATE.fullmatch(value) for value in values)


def cluster_column(place: Place) -> str:
    """What a map is coloured by clusters under: no column of the table's own."""
    taken = {name.lower() for name in place.source.columns}
    return CLUSTER if CLUSTER not in taken else f"_{CLUSTER}"


def _has_clusters(conn: sqlite3.Connection, place: Place) -> bool:
    sql = "select 1 from _image_similarity_clusters where collection_id = ? limit 1"
    return conn.execute(sql, (place.collection.id,)).fetchone() is not None


@tells_errors
async def column(datasette: Datasette, request: Any) -> Response:
    """A column's values for all points, as codes of categories or as numbers."""
    place = await find_place(datasette, request)
    name = request.args.get("_column") or ""
    if name == cluster_column(place):
        value = CLUSTER_SQL
    elif name in _own_columns(place):
        value = _value_sql(name)
    else:
        raise PageError(400, f"The map cannot be coloured by {name!r}")

    def ask(conn: sqlite3.Connection) -> dict[str, object]:
        _map_of(conn, place)
        live = live_points(place.collection, place.source)
        rows = conn.execute(f"select {value} {live} order by +p.slot")
        return coloured([row[0] for row in rows])

    found = await ask_database(place, ask, PATIENCE)
    return await _json(place, {"ok": True, "name": name, **found})


def coloured(values: Sequence[object]) -> dict[str, object]:
    """Values as a map shows them.

    {"kind": "number", "min", "max", "numbers"}, where null stands for no value; or {"kind":
    "category", "values", "codes"}: the most frequent values first, 20 at most, "other"
    behind them for all others if there are more; a code is a value's place there, −1 for
    none. Dates are taken by year, or by month within one year.
    """
    there = [value for value in values if value is not None]
    if there and _numeric(there) and len(set(there)) > FEW_NUMBERS:
        finite = [value for value in there if abs(value) < 1e300]
        numbers = [
            value if value is not None and abs(value) < 1e300 else None for value in values
        ]
        return {
            "kind": "number",
            "min": min(finite, default=0),
            "max": max(finite, default=0),
            "numbers": numbers,
        }
    shown = _date_part(there) if there and _dated(there) else str
    texts = [None if value is None else shown(value) for value in values]
    counts = Counter(text for text in texts if text is not None)
    common = [text for text, _ in counts.most_common(CATEGORIES)]
    codes = {text: code for code, text in enumerate(common)}
    other = len(common)
    return {
        "kind": "category",
        "values": common + ["other"] * (len(counts) > other),
        "codes": [-1 if text is None else codes.get(text, other) for text in texts],
    }


def _date_part(dates: Sequence[str]) -> Callable[[str], str]:
    """What to keep of dates: the year, or the month if all are of one year."""
    length = 4 if len({date[:4] for date in dates}) > 1 else 7
    return lambda date: date[:length]


# Pictures


@dataclass(frozen=True)
class MapPicture:
    """One picture of the map; `id` is its item's, `pk` in Datasette's row-path form."""

    id: int
    pk: str
    caption: str
    url: str
    thumbnail: str
    similar_url: str
    width: int
    height: int


@dataclass(frozen=True)
class MapPage:
    """Pictures in the order of their slots; `total` that pass, `next` the next offset."""

    status: MapStatus | None  # None without a map: then there are no pictures
    pictures: list[MapPicture]
    total: int
    next: int | None


async def map_page(place: Place, question: Question) -> MapPage:
    """A page of the map's pictures that pass the question's filters. Raises PageError."""
    caption = await caption_column(place)

    def ask(conn: sqlite3.Connection) -> MapPage:
        status = map_status(conn, place.collection)
        if status is None:
            return MapPage(None, [], 0, None)
        clause, passes = passes_sql(place.source, question.filter)
        live = f"{live_points(place.collection, place.source)} and {passes}"
        params = dict(question.filter.params) if question.filter else {}
        total = conn.execute(f"{clause}select count(*) {live}", params).fetchone()[0]
        live = f"{live_points(place.collection, place.source, by_slot=True)} and {passes}"
        rows = conn.execute(
            f"{clause}select {_picture_sql(caption)} {live} order by p.slot "
            "limit :map_size offset :map_offset",
            {**params, "map_size": question.size, "map_offset": question.offset},
        ).fetchall()
        end = question.offset + len(rows)
        pictures = [_picture(place, row) for row in rows]
        return MapPage(status, pictures, total, end if end < total and rows else None)

    return await ask_database(place, ask, PATIENCE)


def _picture_sql(caption: str | None) -> str:
    value = _value_sql(caption) if caption else "null"
    return f"i.id, i.pk, {db.SIZE}, {value} as caption"


def _picture(place: Place, row: sqlite3.Row) -> MapPicture:
    pk = place.row_path(row["pk"])
    return MapPicture(
        id=row["id"],
        pk=pk,
        caption=caption_text(row["caption"], pk),
        url=f"{place.table_url}/{pk}",
        thumbnail=place.url(f"thumbnail/{pk}"),
        similar_url=place.similar_url([pk]),
        width=row["width"],
        height=row["height"],
    )


@tells_errors
async def pictures(datasette: Datasette, request: Any) -> Response:
    """Captions and addresses of the items in `_item`, in that order."""
    place = await find_place(datasette, request)
    asked = ",".join(request.args.getlist("_item")).split(",")
    if not all(re.fullmatch("[0-9]{1,18}", one) for one in asked):
        raise PageError(400, "_item must be the number of a picture on the map")
    if len(asked) > PICTURES:
        raise PageError(400, f"Up to {PICTURES} pictures can be asked for at once")
    caption = await caption_column(place)

    def ask(conn: sqlite3.Connection) -> list[sqlite3.Row]:
        live = db.live_sql(place.collection, place.source, db.ITEMS_BY_ID)
        sql = f"select {_picture_sql(caption)} {live} order by j.key"
        return conn.execute(sql, {"ids": json.dumps([*map(int, asked)])}).fetchall()

    found = [asdict(_picture(place, row)) for row in await ask_database(place, ask)]
    return await _json(place, {"ok": True, "pictures": found})


@tells_errors
async def rows(datasette: Datasette, request: Any) -> Response:
    """The pictures of the map, page by page."""
    place = await find_place(datasette, request)
    path = place.path("map.json")
    question = await read_question(place, path)
    found = await map_page(place, question)
    if found.status is None:
        raise PageError(404, _no_map(place))
    next_url = found.next and question.url(path, _next=found.next)
    return await _json(
        place,
        {
            "ok": True,
            # Beyond what a JavaScript number holds.
            "map": {**asdict(found.status), "version": str(found.status.version)},
            "rows": [asdict(picture) for picture in found.pictures],
            "total": found.total,
            "next": found.next,
            "next_url": next_url and datasette.absolute_url(request, next_url),
        },
    )


def _no_map(place: Place) -> str:
    return f"{place.table!r} has no map yet: run datasette image-similarity map"
