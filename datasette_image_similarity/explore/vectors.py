"""A collection's vectors as one matrix, which everything in this package reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError, Stopped
from ..progress import Say, silent
from ..stores.items import vectors_of

if TYPE_CHECKING:
    import numpy as np

BLOCK = 4096  # vectors read at once


class Vectors(NamedTuple):
    """The items whose row is there and passes the filter, in the order of their ids.

    `ids` int64 (n,). `vectors` float32 (n, d), L2-normalised unless they were asked for as
    they are stored. `pks` are the source rows' keys as `database.Key`.
    """

    ids: np.ndarray
    pks: list[db.Key]
    vectors: np.ndarray


def read_vectors(
    conn: sqlite3.Connection,
    collection: db.Collection,
    *,
    where: str | None = None,
    unit: bool = True,
    say: Say = silent,
    stop: Callable[[], bool] = lambda: False,
) -> Vectors:
    """Every live item's vector, L2-normalised whatever the collection's metric is.

    Without `unit`, as they are stored. `where` is a SQL condition on the source table's
    columns. Items whose vector is missing, damaged or of length zero are left out. Raises
    CollectionError for a condition that SQLite refuses, Stopped when `stop()` turns true.
    """
    import numpy as np

    live = live_items(conn, collection, where)
    ids = np.fromiter(live, np.int64, len(live))
    vectors = np.empty((len(ids), collection.dimensions), np.float32)
    filled = 0
    usable = np.zeros(len(ids), bool)
    for block, found in vector_blocks(conn, collection, ids):
        if stop():
            raise Stopped
        places = np.searchsorted(ids, block)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        right = np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)
        vectors[places[right]] = found[right] / (lengths[right] if unit else 1)
        usable[places[right]] = True
        filled += len(block)
        say("Reading vectors", filled, len(ids))
    if not usable.all():
        ids, vectors = ids[usable], vectors[usable]
    return Vectors(ids, [live[item] for item in ids.tolist()], vectors)


def live_items(
    conn: sqlite3.Connection, collection: db.Collection, where: str | None = None
) -> dict[int, db.Key]:
    """Source rows' keys by item id, in the order of the ids. Raises CollectionError."""
    source = db.source_of(conn, collection)
    sql = f"select i.id, i.pk {db.live_sql(collection, source)}"
    if where:
        live = db.live_sql(collection, source, db.ITEMS_PASSING)
        sql = f"{db.passing_sql(source, where)} select i.id, i.pk {live}"
    try:
        return dict(conn.execute(f"{sql} order by i.id").fetchall())
    except (sqlite3.Error, sqlite3.Warning) as error:
        if not where:
            raise
        raise CollectionError(f"The condition {where!r}: {error}") from None


def vector_blocks(
    conn: sqlite3.Connection,
    collection: db.Collection,
    ids: np.ndarray,
    size: int = BLOCK,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The stored vectors of these items, block by block: int64 (m,), float32 (m, d).

    `ids` must be sorted. Items without a vector of the right length are left out.
    """
    import numpy as np

    # A scan in the order they lie in where most are wanted: a look-up each takes longer.
    stored = vectors_of(conn, collection)
    most = len(ids) * 4 >= db.item_count(conn, collection)
    rows = stored.scan() if most else stored.get(ids)
    length = 4 * collection.dimensions
    wanted = set(ids.tolist())
    numbers: list[int] = []
    parts: list[bytes] = []

    def block() -> tuple[np.ndarray, np.ndarray]:
        matrix = np.frombuffer(b"".join(parts), "<f4").reshape(-1, collection.dimensions)
        return np.array(numbers, np.int64), matrix

    for item, data in rows:
        if item in wanted and isinstance(data, bytes) and len(data) == length:
            numbers.append(item)
            parts.append(data)
            if len(numbers) == size:
                yield block()
                numbers, parts = [], []
    if numbers:
        yield block()
