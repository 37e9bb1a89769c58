"""Rows of numbers out of SQLite as NumPy arrays, a block at a time.

`fetchall()` of a million rows, and turning them into an array at once, keep all other
threads waiting for as long as that takes: a web server answers nobody meanwhile. Between
blocks others get their turn, and a deadline ends the reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

if TYPE_CHECKING:
    import numpy as np

BLOCK = 10_000  # rows


def read_columns(
    conn: sqlite3.Connection,
    sql: str,
    params: Mapping[str, object] | Sequence[object] = (),
    *,
    kinds: Sequence[type[np.generic]],
) -> list[np.ndarray]:
    """The columns of a query, each as an array of its kind, of shape (n,).

    NULL is NaN where the kind has that. Raises TypeError, ValueError or OverflowError for
    what is no such number.
    """
    import numpy as np

    blocks = [[np.empty(0, kind) for kind in kinds]]
    blocks += column_blocks(conn, sql, params, kinds=kinds)
    return [np.concatenate(parts) for parts in zip(*blocks, strict=True)]


def column_blocks(
    conn: sqlite3.Connection,
    sql: str,
    params: Mapping[str, object] | Sequence[object] = (),
    *,
    kinds: Sequence[type[np.generic]],
) -> Iterator[list[np.ndarray]]:
    """The same, block after block."""
    import numpy as np

    cursor = conn.cursor()
    cursor.row_factory = None  # plain tuples are made in half the time
    cursor.execute(sql, params)
    while rows := cursor.fetchmany(BLOCK):
        columns = zip(*rows, strict=True)
        yield [np.array(one, kind) for one, kind in zip(columns, kinds, strict=True)]
