"""The stores that have vectors of a collection, and how they let go of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import StoreError
from .opening import space_of, stores_of

if TYPE_CHECKING:
    from . import Space
    from .opening import Stores


def places_of(conn: sqlite3.Connection, collection: db.Collection) -> dict[str, str]:
    """What the ids of a collection's vectors begin with, by the URL of each store that has
    some: where they are, where `move` is copying them, where it has not cleared yet."""
    places = db.copies(conn, collection) | {collection.store: collection.store_id}
    return {url: source for url, source in places.items() if url}


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
