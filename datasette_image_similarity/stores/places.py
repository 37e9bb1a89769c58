"""Where a collection's vectors are, where else some are, and how stores let go of them.

`_image_similarity_copies` says where else: where `move` is copying them, and where it has
not cleared yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import DatabaseError, StoreError
from .opening import space_of, stores_of

if TYPE_CHECKING:
    from . import Space
    from .opening import Stores


def places_of(conn: sqlite3.Connection, collection: db.Collection) -> dict[str, str]:
    """What the ids of a collection's vectors begin with, by the URL of each store that has
    some, this file left out."""
    places = copies(conn, collection) | {collection.store: collection.store_id}
    return {url: source for url, source in places.items() if url}


def repoint(
    conn: sqlite3.Connection, collection: db.Collection, store: str, store_id: str
) -> None:
    """From now on the vectors are in another store, or in this file with "" for both.

    The store has all of them: nothing waits to be sent. Where they were is noted as a
    copy. Call inside a transaction.
    """
    db.clear(conn, collection, "unsent", "lists", "unlisted", "indexes")
    conn.execute(
        "update _image_similarity_collections "
        "set store = ?, store_id = ?, store_index = null where id = ?",
        (store, store_id, collection.id),
    )
    drop_copy(conn, collection, store)
    put_copy(conn, collection, collection.store, collection.store_id)


def copies(conn: sqlite3.Connection, collection: db.Collection) -> dict[str, str]:
    """Other places with vectors of a collection: what their ids begin with, by URL."""
    if not db.is_current(conn, 5):
        return {}
    sql = "select store, store_id from _image_similarity_copies where collection_id = ?"
    rows = conn.execute(sql, (collection.id,)).fetchall()
    if not all(isinstance(text, str) for row in rows for text in row):
        raise DatabaseError(db.DAMAGED)
    return {row["store"]: row["store_id"] for row in rows}


def put_copy(
    conn: sqlite3.Connection, collection: db.Collection, store: str, store_id: str
) -> None:
    sql = "insert or replace into _image_similarity_copies values (?, ?, ?)"
    conn.execute(sql, (collection.id, store, store_id))


def drop_copy(conn: sqlite3.Connection, collection: db.Collection, store: str) -> None:
    sql = "delete from _image_similarity_copies where collection_id = ? and store = ?"
    conn.execute(sql, (collection.id, store))


def clear_place(stores: Stores, url: str, source: str, space: Space) -> None:
    """Take a source's vectors out of a store. Raises StoreError."""
    index = stores.open_url(url, space)
    index.ensure()  # where it is gone already there is nothing to take out
    index.clear({"source": source})


def clear_places(
    conn: sqlite3.Connection, collection: db.Collection, places: dict[str, str]
) -> list[str]:
    """Take a collection's vectors out of stores; says which could not be reached."""
    left = []
    for url, source in places.items():
        try:
            clear_place(stores_of(conn), url, source, space_of(collection))
        except StoreError as error:
            left.append(
                f"{url} still holds the vectors whose source is {source!r}: {error}"
            )
    return left
