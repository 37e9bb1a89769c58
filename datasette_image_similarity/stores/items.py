"""A collection's vectors by item, wherever they are kept: what the rest of the package
reads. `vec0.py` has them in this file; `remote.py` in a store, by the ids of its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from datasette.utils.sqlite import sqlite3

from .. import database as db
from .remote import RemoteVectors
from .vec0 import Vec0


class ItemVectors(Protocol):
    """Vectors as they are stored, by item id. Items without one are left out.

    Raises StoreError where they are in a store that cannot be used.
    """

    most: int  # the largest k of `nearest()`

    def get(self, items: Iterable[int]) -> list[tuple[int, bytes]]:
        """The vectors of items, float32 bytes; in any order."""

    def scan(self) -> Iterator[tuple[int, bytes]]:
        """All of them, in any order."""

    def distances(
        self,
        vector: bytes,
        items: Iterable[int] | None = None,
        metric: str | None = None,
    ) -> list[tuple[int, float | None]]:
        """Exact distances to a vector, of items or of all, in any order. None is for
        vectors that have none. `metric` is the collection's where nothing is said."""

    def nearest(
        self, vector: bytes, k: int, among: set[int] | None = None
    ) -> list[tuple[int, float | None]]:
        """The k nearest of all or of some, best first."""


def vectors_of(conn: sqlite3.Connection, collection: db.Collection) -> ItemVectors:
    """Where a collection's vectors are. Raises StoreError for a store that may not be
    used from this connection: see `opening.py`."""
    if not collection.store:
        return Vec0(conn, collection)
    return RemoteVectors(conn, collection)


def vector_of_item(
    conn: sqlite3.Connection, collection: db.Collection, item: int
) -> bytes | None:
    """The float32 bytes of an item's vector, or None."""
    found = vectors_of(conn, collection).get([item])
    return found[0][1] if found else None


def vector_of_bytes(
    conn: sqlite3.Connection, collection: db.Collection, sha256: str
) -> bytes | None:
    """The vector of a picture with these bytes, as it is stored."""
    row = conn.execute(
        "select id from _image_similarity_items "
        "where collection_id = ? and sha256 = ? limit 1",
        (collection.id, sha256),
    ).fetchone()
    return None if row is None else vector_of_item(conn, collection, row[0])
