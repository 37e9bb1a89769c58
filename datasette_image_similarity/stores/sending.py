"""What a store does not know yet is sent there.

Whatever changes a collection's vectors notes that in `_image_similarity_unsent`, in the
transaction that changes its items; here it is sent and taken off the list. A run that is
cut off in between is made good by the next: sending something twice does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from .. import database as db
from . import Entry, blocks
from .remote import RemoteVectors

if TYPE_CHECKING:
    from . import VectorIndex

AT_ONCE = 500  # vectors a call
SENDERS = 4  # calls at once


def send_waiting(conn: sqlite3.Connection, collection: db.Collection) -> int:
    """Send what waits, if the collection's vectors are in a store; returns how much.

    Raises StoreError when that cannot be used: what was not sent goes on waiting.
    """
    if not collection.store or not waiting(conn, collection):
        return 0
    vectors = RemoteVectors(conn, collection)
    sent = 0
    with ThreadPoolExecutor(SENDERS, "image-similarity-store") as senders:
        while rows := _rows(conn, collection, SENDERS * AT_ONCE):
            parts = list(blocks(rows, AT_ONCE))
            calls = [_as_call(vectors, part) for part in parts]
            for part, _ in zip(parts, senders.map(_send, calls), strict=True):
                _sent(conn, part)
                sent += len(part)
    return sent


def waiting(conn: sqlite3.Connection, collection: db.Collection) -> int:
    """How many vectors wait to be sent, or to be taken out."""
    sql = "select count(*) from _image_similarity_unsent where collection_id = ?"
    return conn.execute(sql, (collection.id,)).fetchone()[0]


def unsent_size(conn: sqlite3.Connection, collection: db.Collection) -> tuple[int, int]:
    """How many vectors wait to be sent, or to be taken out, and their bytes."""
    if not collection.store:
        return 0, 0
    sql = (
        "select count(*), coalesce(sum(length(vector)), 0) from _image_similarity_unsent "
        "where collection_id = ?"
    )
    return tuple(conn.execute(sql, (collection.id,)).fetchone())


def _rows(
    conn: sqlite3.Connection, collection: db.Collection, most: int
) -> list[sqlite3.Row]:
    sql = (
        "select id, pk, sha256, vector from _image_similarity_unsent "
        "where collection_id = ? order by id limit ?"
    )
    return conn.execute(sql, (collection.id, most)).fetchall()


_Call = tuple["VectorIndex", list[Entry], list[str]]


def _as_call(vectors: RemoteVectors, rows: Sequence[sqlite3.Row]) -> _Call:
    """What to put in, and what to take out."""
    new = [
        Entry(vectors.id_of(row["pk"]), row["vector"], row["sha256"])
        for row in rows
        if row["vector"] is not None
    ]
    old = [vectors.id_of(row["pk"]) for row in rows if row["vector"] is None]
    return vectors.index, new, old


def _send(call: _Call) -> None:
    index, new, old = call
    if new:
        index.upsert(new)
    if old:
        index.delete(old)


def _sent(conn: sqlite3.Connection, rows: Sequence[sqlite3.Row]) -> None:
    """These wait no more. One that has changed meanwhile has another id, and stays."""
    with db.transaction(conn):
        conn.executemany(
            "delete from _image_similarity_unsent where id = ?",
            [(row["id"],) for row in rows],
        )
