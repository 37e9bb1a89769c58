"""The map: a collection laid out in two dimensions, as it is stored and read again.

Each picture has a place (x, y from −1 to 1, y upwards), perhaps a cell of a grid (row 0 at
the top), and a slot: its number along a curve through the map, which is its tile in the
texture atlases as well. Slots that follow each other lie close together. Making a map anew
replaces the old one in one transaction; pictures embedded since have no place until then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..columns import column_blocks, read_columns
from ..errors import CollectionError, DatabaseError
from ..query import Filter
from .atlas import draw_sheets, sheet_and_tile
from .grid import grid_cells, grid_columns, hilbert_order
from .layout import check_method, lay_out, parameters
from .vectors import Say

if TYPE_CHECKING:
    import numpy as np

DAMAGED = (
    "The map in this database is damaged: make it anew with datasette image-similarity map"
)
MOST_COLUMNS = 1 << 15
CORNERS = (3, 100)  # of a region: at least, at most


@dataclass(frozen=True)
class MapStatus:
    """What is known of a collection's map.

    `columns` of its grid, None without one; `sheet` and `tile` are sides in pixels.
    `version` changes when the map is made anew. `newer` pictures have no place on it.
    """

    method: str
    made_at: str
    count: int
    newer: int
    columns: int | None
    sheets: int
    sheet: int
    tile: int
    version: int


class Points(NamedTuple):
    """The pictures of a map whose row is there, in the order of their slots.

    Arrays of shape (n,): `ids` int64, `x` and `y` float32, `aspect` float32 (width by
    height), `cells` int32 (−1 for none), `slots` uint32, `passes` bool.
    """

    ids: np.ndarray
    x: np.ndarray
    y: np.ndarray
    aspect: np.ndarray
    cells: np.ndarray
    slots: np.ndarray
    passes: np.ndarray


# Making


def make_map(
    conn: sqlite3.Connection,
    collection: db.Collection,
    *,
    method: str = "tsne",
    seed: int = 0,
    grid: bool = True,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> MapStatus:
    """Lay the collection out, draw its atlases and store both in place of an older map.

    Raises CollectionError for an unknown method, a missing library, or a collection
    without pictures; Stopped when `stop()` turns true, with the older map as it was.
    """
    check_method(method)
    with db.transaction(conn):  # what cannot be written fails now and not at the end
        db.migrate(conn)
    ids, places = lay_out(conn, collection, method=method, seed=seed, say=say, stop=stop)
    cells = grid_cells(places) if grid else None
    columns = grid_columns(len(ids)) if grid else None
    slots = _slots(places, cells, columns)
    sheet, tile = sheet_and_tile(len(ids))
    by_slot = ids[slots.argsort()].tolist()
    sheets = list(
        draw_sheets(
            lambda start, end: _thumbnails(conn, by_slot[start:end]),
            len(ids),
            sheet,
            tile,
            say=say,
            stop=stop,
        )
    )
    found = parameters(method, seed, len(ids))
    cell_list = [None] * len(ids) if cells is None else cells.tolist()
    rows = zip(ids.tolist(), *places.T.tolist(), cell_list, slots.tolist(), strict=True)
    with db.transaction(conn):
        db.clear(conn, collection, "points", "atlases", "maps")
        conn.execute(
            "insert into _image_similarity_maps (collection_id, method, parameters, "
            "columns, sheet, tile) values (?, ?, ?, ?, ?, ?)",
            (collection.id, found["method"], json.dumps(found), columns, sheet, tile),
        )
        # Not those that have been dropped meanwhile: their ids may be given out again.
        conn.executemany(
            "insert into _image_similarity_points (item_id, collection_id, x, y, cell, "
            "slot) select ?1, ?2, ?3, ?4, ?5, ?6 from _image_similarity_items "
            "where id = ?1 and collection_id = ?2",
            ((item, collection.id, *rest) for item, *rest in rows),
        )
        conn.executemany(
            "insert into _image_similarity_atlases values (?, ?, ?)",
            ((collection.id, number, webp) for number, webp in enumerate(sheets)),
        )
    return need_map(conn, collection)


def _slots(places: np.ndarray, cells: np.ndarray | None, columns: int | None) -> np.ndarray:
    """Numbers along a Hilbert curve through the grid, or through the map without one."""
    if cells is not None:
        return hilbert_order(cells % columns, cells // columns)
    across, down = ((1, -1) * places + 1).T * ((MOST_COLUMNS - 1) / 2)
    return hilbert_order(across, down)


def _thumbnails(conn: sqlite3.Connection, ids: Sequence[int]) -> list[bytes | None]:
    sql = (
        f"select {db.thumbnail_sql()} from json_each(?) j "
        "left join _image_similarity_items i on i.id = j.value order by j.key"
    )
    rows = conn.execute(sql, (json.dumps(ids),))
    return [row[0] if isinstance(row[0], bytes) else None for row in rows]


# Reading


def map_status(conn: sqlite3.Connection, collection: db.Collection) -> MapStatus | None:
    """The state of a collection's map; None without one. Raises DatabaseError."""
    if not db.is_current(conn):
        return None
    row = conn.execute(
        "select method, made_at, columns, sheet, tile, version, "
        "(select count(*) from _image_similarity_points p "
        "where p.collection_id = m.collection_id) as count, "
        "(select count(*) from _image_similarity_atlases a "
        "where a.collection_id = m.collection_id) as sheets "
        "from _image_similarity_maps m where collection_id = ?",
        (collection.id,),
    ).fetchone()
    if row is None:
        return None
    columns = 1 if row["columns"] is None else row["columns"]
    whole = (columns, row["sheet"], row["tile"], row["version"])
    if not all(isinstance(number, int) for number in whole) or not (
        0 < row["tile"] <= row["sheet"] <= 4096 and 0 < columns <= MOST_COLUMNS
    ):
        raise DatabaseError(DAMAGED)
    # Points go with their items.
    newer = max(0, db.item_count(conn, collection) - row["count"])
    words = {name: str(row[name]) for name in ("method", "made_at")}
    return MapStatus(newer=newer, **{**dict(row), **words})


def need_map(conn: sqlite3.Connection, collection: db.Collection) -> MapStatus:
    """As `map_status()`. Raises CollectionError without a map."""
    status = map_status(conn, collection)
    if status is None:
        raise CollectionError(
            f"{collection.table!r} has no map yet: run datasette image-similarity map"
        )
    return status


def live_points(
    collection: db.Collection, source: db.SourceTable, by_slot: bool = False
) -> str:
    """SQL for the points `p`, items `i` and source rows `t` of what the map shows.

    `by_slot` finds the first ones in the order of their slots soon. To read all, it is
    five times quicker to read the three tables in the order of their keys, and sort then.
    """
    items = "_image_similarity_points p cross join _image_similarity_items i "
    items += "on i.id = p.item_id"
    live = db.live_sql(collection, source, items)
    column = "p.collection_id" if by_slot else "+p.collection_id"  # with + no index is used
    return f"{live} and {column} = {int(collection.id)}"


def passes_sql(source: db.SourceTable, filter: Filter | None) -> tuple[str, str]:
    """A `with` clause and a condition on items `i`: whether their row passes a filter."""
    if filter is None or not filter.where:
        return "", "1"
    clause = db.passing_sql(source, filter.where)
    return f"{clause} ", "i.pk in (select +pk from _image_similarity_passing)"


def read_points(
    conn: sqlite3.Connection,
    collection: db.Collection,
    source: db.SourceTable,
    filter: Filter | None = None,
) -> Points:
    """The whole map. Raises DatabaseError for numbers that no map of ours has."""
    import numpy as np

    clause, passes = passes_sql(source, filter)
    sql = (
        f"{clause}select p.item_id, ifnull(p.cell, -1), p.slot, p.x, p.y, i.width, "
        f"i.height, {passes} {live_points(collection, source)}"
    )
    kinds = (*[np.int64] * 3, *[np.float64] * 4, np.bool_)
    try:
        ids, cells, slots, x, y, width, height, passing = read_columns(
            conn, sql, dict(filter.params) if filter else {}, kinds=kinds
        )
    except (TypeError, ValueError, OverflowError):
        raise DatabaseError(DAMAGED) from None
    if len(ids) and not (
        np.abs([x, y]).max() <= 2
        and min(width.min(), height.min()) > 0
        and -1 <= cells.min() <= cells.max() < MOST_COLUMNS**2
        and 0 <= slots.min() <= slots.max() < 1 << 31
        and 0 <= ids.min() <= ids.max() < 1 << 32
    ):
        raise DatabaseError(DAMAGED)
    order = slots.argsort(kind="stable")
    return Points(
        ids=ids[order],
        x=x[order].astype(np.float32),
        y=y[order].astype(np.float32),
        aspect=(width / height)[order].astype(np.float32),
        cells=cells[order].astype(np.int32),
        slots=slots[order].astype(np.uint32),
        passes=passing[order],
    )


# Regions


def region_slots(
    conn: sqlite3.Connection, collection: db.Collection, text: str
) -> tuple[list[tuple[int, int]], int]:
    """The slots inside a region as (first, last) runs, and how many pictures these are.

    `text` is a polygon: "x1,y1,x2,y2,x3,y3…" on the map, or with "grid:" before it in
    columns and rows of the grid, whose cell of column 0 and row 0 reaches from 0,0 to 1,1.
    Inside is decided by the even–odd rule. Raises ValueError for anything else,
    CollectionError without a map or grid.
    """
    import numpy as np

    corners, on_grid = read_region(text)
    status = need_map(conn, collection)
    if not on_grid:
        (left, low), (right, high) = corners.min(axis=0), corners.max(axis=0)
        where, params = "x between ? and ? and y between ? and ?", (left, right, low, high)
    elif status.columns:
        where, params = "cell is not null", ()
    else:
        raise CollectionError(f"The map of {collection.table!r} has no grid")
    sql = (
        "select x, y, ifnull(cell, -1), slot from _image_similarity_points "
        f"where +collection_id = ? and {where}"
    )
    kinds = (np.float64, np.float64, np.int64, np.int64)
    found = [np.empty(0, np.int64)]
    try:
        for x, y, cells, slots in column_blocks(
            conn, sql, (collection.id, *params), kinds=kinds
        ):
            places = np.stack([x, y], axis=1)
            if on_grid:
                places = np.stack(np.divmod(cells, status.columns)[::-1], axis=1) + 0.5
            found.append(slots[inside(places, corners)])
    except (TypeError, ValueError, OverflowError):
        raise DatabaseError(DAMAGED) from None
    slots = np.sort(np.concatenate(found))
    ends = np.flatnonzero(np.diff(slots) > 1)
    firsts = slots[[0, *(ends + 1)]] if len(slots) else slots
    lasts = slots[[*ends, -1]] if len(slots) else slots
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True)), len(slots)


def read_region(text: str) -> tuple[np.ndarray, bool]:
    """Corners, float64 (m, 2), and whether they are on the grid. Raises ValueError."""
    import numpy as np

    on_grid = text.startswith("grid:")
    numbers = [float(part) for part in text.removeprefix("grid:").split(",", 201)]
    most = MOST_COLUMNS if on_grid else 100
    if len(numbers) % 2 or not CORNERS[0] <= len(numbers) // 2 <= CORNERS[1]:
        raise ValueError("a region has 3 to 100 corners")
    if not all(math.isfinite(number) and abs(number) <= most for number in numbers):
        raise ValueError("a corner is far off the map")
    return np.array(numbers).reshape(-1, 2), on_grid


def inside(places: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Which places (n, 2) lie inside a polygon (m, 2), by the even–odd rule: bool (n,)."""
    import numpy as np

    x, y = places.T
    within = np.zeros(len(places), bool)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y1 != y2:
            crosses = (y1 > y) != (y2 > y)
            within ^= crosses & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return within
