"""Stores that a connection may use, opened when they are first asked.

A database may come from a stranger, who would choose what this computer connects to: a
store is only opened where its URL is vouched for. Datasette's own connections have no
stores at all: its SQL threads wait for nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from .. import database as db
from .. import trust
from ..errors import StoreError
from . import Space

if TYPE_CHECKING:
    from . import TunableIndex

DEADLINE = 30.0  # seconds, for a call of a command


class Stores:
    """Open stores, by collection. Threads may share one.

    `vouched` says which URLs may be connected to; `deadline` is that of each call, in
    seconds.
    """

    def __init__(
        self, vouched: Callable[[str], bool], *, deadline: float = DEADLINE
    ) -> None:
        self._vouched = vouched
        self._deadline = deadline
        self._open: dict[tuple[str, Space], TunableIndex] = {}
        self._lock = threading.Lock()

    def open(self, collection: db.Collection) -> TunableIndex:
        """The store of a collection. Raises StoreError for one that nobody vouched for."""
        return self.open_url(collection.store, space_of(collection))

    def open_url(self, url: str, space: Space) -> TunableIndex:
        if not self._vouched(url):
            raise StoreError(
                f"The database says that its vectors are in {url}, but nobody has vouched "
                "for that on this computer: name it once, with datasette image-similarity "
                f'embed … --store {url}, or in the setting "stores" of '
                "datasette-image-similarity"
            )
        with self._lock:
            if (url, space) not in self._open:
                self._open[url, space] = open_index(url, space, deadline=self._deadline)
            return self._open[url, space]

    def close(self) -> None:
        with self._lock:
            for index in self._open.values():
                index.close()
            self._open.clear()


def open_index(url: str, space: Space, *, deadline: float = DEADLINE) -> TunableIndex:
    """The store at a URL: `milvus://HOST:PORT/NAME` or `milvus-lite:FILE`.

    Nothing is made before its `ensure()`. Raises StoreError for another URL.
    """
    from .milvus import Milvus

    return Milvus(url, space, deadline=deadline)


def store_url(text: str) -> str:
    """A store's URL as collections remember it. Raises StoreError for what is none."""
    from .milvus import parse

    return parse(text).url


def store_of(conn: sqlite3.Connection, collection: db.Collection) -> TunableIndex:
    """The store of a collection, searched as thoroughly as was measured to be enough.

    Raises StoreError as `Stores.open()`.
    """
    index = stores_of(conn).open(collection)
    search = db.store_index(conn, collection).get("search")
    if isinstance(search, dict):  # or what a stranger has written there
        index.search_params = {n: v for n, v in search.items() if type(v) is int}
    return index


def space_of(collection: db.Collection) -> Space:
    """What a collection's vectors are comparable with."""
    return Space(collection.fingerprint, collection.dimensions, collection.metric)


def stores_of(conn: sqlite3.Connection) -> Stores:
    """The stores of a connection. Raises StoreError where it has none."""
    stores = getattr(conn, "stores", None)
    if stores is None and isinstance(conn, db.Connection):
        file = db.file_of(conn)
        stores = conn.stores = Stores(lambda url: url in trust.trusted_stores(file))
    if stores is None:
        raise StoreError(
            "The vectors are in a store beside the database, which SQL does not wait for"
        )
    return stores
