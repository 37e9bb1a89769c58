"""A collection's vectors go from one place to another: this file, or a store.

What the other place lacks, by id and SHA-256, is copied there until a comparison finds
nothing more; a sample of the vectors is compared, too. Then one transaction, in which
nobody else writes, makes the collection point there, and only after that is the old place
cleared. Cut off at any moment, the collection points to a place that is complete, and the
next run goes on: `_image_similarity_copies` says where else vectors are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError, Stopped, StoreError
from ..progress import Say, silent
from . import Entry, blocks
from .ids import entry_id, new_source
from .indexing import noted_index, put_store_index
from .listing import Listing, differences
from .opening import space_of, stores_of
from .places import clear_place, copies, drop_copy, put_copy, repoint
from .sending import AT_ONCE, SENDERS
from .vec0 import Vec0

if TYPE_CHECKING:
    from . import VectorIndex

SAMPLE = 1000  # vectors that are compared number by number
CLOSE = 1e-6  # how far apart these may be, where an engine keeps them otherwise
# So often it is looked whether others have written meanwhile; then they are made to wait.
PATIENCE = 3
ROUNDS = 20  # comparisons that find something to copy


@dataclass(frozen=True)
class Moved:
    """What `move` did. `origin` and `to` are URLs of stores; "" is the database itself.

    Of `vectors`, `sent` were not there already. Of `compared` ones no number is further
    `apart` from what it was: 0.0 is bit for bit. `left` is where the old vectors still are,
    and why: None where they are gone.
    """

    table: str
    name: str
    origin: str
    to: str
    vectors: int
    sent: int
    compared: int
    apart: float
    index_dropped: bool
    left: str | None
    seconds: float


class Row(NamedTuple):
    """An item whose vector is to be copied."""

    item: int
    pk: db.Key
    sha256: str


class Place(Protocol):
    """Where vectors of a collection are, or are to be."""

    url: str
    source: str  # what their ids begin with there; "" in this file

    def ensure(self) -> None:
        """Make it where it is missing."""

    def read(self, rows: Sequence[Row]) -> dict[int, bytes]:
        """Vectors by item. Those that are not of the row's bytes are left out."""

    def lacking(self) -> Iterator[tuple[list[Row], int]]:
        """Rows whose vectors are not here, and of how many; what is too much goes."""

    def put(self, rows: Sequence[Row], vectors: dict[int, bytes]) -> None:
        """Store the vectors of rows."""


class InFile:
    """The vec0 table of a collection."""

    url = source = ""

    def __init__(self, conn: sqlite3.Connection, collection: db.Collection) -> None:
        self.conn, self.collection = conn, collection
        self.table = db.quote(collection.vectors)
        self.listed = db.quote(collection.vectors + "_rowids")

    def ensure(self) -> None:
        with db.transaction(self.conn):
            if not db.table_exists(self.conn, self.collection.vectors):
                db.create_vectors(self.conn, self.collection)

    def read(self, rows: Sequence[Row]) -> dict[int, bytes]:
        return dict(Vec0(self.conn, self.collection).get(row.item for row in rows))

    def lacking(self) -> Iterator[tuple[list[Row], int]]:
        # A vector goes when its item does, or changes: see database.py.
        there = f"select rowid from {self.listed} where rowid between ? and ?"
        columns, size = "i.id, i.pk, i.sha256", SENDERS * AT_ONCE
        for some in db.item_pages(self.conn, self.collection, columns, size):
            ends = some[0][0], some[-1][0]
            known = {row[0] for row in self.conn.execute(there, ends)}
            yield [Row(*row) for row in some if row[0] not in known], len(some)

    def put(self, rows: Sequence[Row], vectors: dict[int, bytes]) -> None:
        with db.transaction(self.conn):
            now = set(rows_of(self.conn, self.collection, vectors))
            fresh = [row for row in rows if row in now and row.item in vectors]
            self.conn.executemany(
                f"delete from {self.table} where id = ?", [(row.item,) for row in fresh]
            )
            put = [(row.item, vectors[row.item]) for row in fresh]
            self.conn.executemany(
                f"insert into {self.table} (id, embedding) values (?, ?)", put
            )
            db.note_vectors(self.conn, put)


class InStore:
    """The vectors in a store whose ids begin with a source."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        collection: db.Collection,
        index: VectorIndex,
        source: str,
    ) -> None:
        self.conn, self.collection = conn, collection
        self.index, self.url, self.source = index, index.url, source
        self.where = {"source": source}

    @cached_property
    def _table(self) -> db.SourceTable:
        return db.source_of(self.conn, self.collection)

    def _id(self, key: db.Key) -> str:
        return entry_id(self.source, self._table.parts(key))

    def ensure(self) -> None:
        self.index.ensure()

    def read(self, rows: Sequence[Row]) -> dict[int, bytes]:
        found = self._waiting(rows)
        ids = {self._id(row.pk): row for row in rows if row.item not in found}
        if not ids:
            return found
        known = self.index.ids("", len(ids), {"id": list(ids)})
        right = [one.id for one in known if one.sha256 == ids[one.id].sha256]
        for id, vector in self.index.vectors(right).items():
            found[ids[id].item] = vector
        return found

    def _waiting(self, rows: Sequence[Row]) -> dict[int, bytes]:
        """Vectors that wait to be sent here."""
        if self.source != self.collection.store_id:
            return {}
        sql = (
            "select vector from _image_similarity_unsent "
            "where collection_id = ? and pk = ? and sha256 = ?"
        )
        found = {}
        for row in rows:
            key = (self.collection.id, row.pk, row.sha256)
            if waiting := self.conn.execute(sql, key).fetchone():
                found[row.item] = waiting[0]
        return found

    def lacking(self) -> Iterator[tuple[list[Row], int]]:
        listing = Listing(self.conn, self.collection, self._id)
        for found in differences(listing, self.index, self.where, SENDERS * AT_ONCE):
            self.index.delete(known.id for known in found.surplus)
            items = listing.items(known.id for known in [*found.lacking, *found.other])
            seen = found.seen - len(found.surplus)
            yield rows_of(self.conn, self.collection, items), seen

    def put(self, rows: Sequence[Row], vectors: dict[int, bytes]) -> None:
        entries = [
            Entry(self._id(row.pk), vectors[row.item], row.sha256)
            for row in rows
            if row.item in vectors
        ]
        with ThreadPoolExecutor(SENDERS, "image-similarity-store") as senders:
            list(senders.map(self.index.upsert, blocks(entries, AT_ONCE)))


def rows_of(
    conn: sqlite3.Connection, collection: db.Collection, items: Iterable[int]
) -> list[Row]:
    """Those of these items that are there, as they are now."""
    sql = (
        f"select i.id, i.pk, i.sha256 from {db.ITEMS_BY_ID} "
        "where i.collection_id = :collection"
    )
    params = {"ids": json.dumps(list(items)), "collection": collection.id}
    return [Row(*row) for row in conn.execute(sql, params)]


def move(
    conn: sqlite3.Connection,
    collection: db.Collection,
    url: str,
    *,
    keep: bool = False,
    say: Say = silent,
    stop: Callable[[], bool] = lambda: False,
) -> Moved:
    """Bring a collection's vectors to the store at `url`, or with "" into this file.

    The old ones are dropped then, unless they are to be kept. Raises CollectionError when
    they are there already, when some are missing, or another run changes the collection
    itself meanwhile; StoreError when a store cannot be used; Stopped when `stop()` turns
    true. After each of these the same call goes on.
    """
    started = time.perf_counter()
    db.migrate(conn)
    origin = place_of(conn, collection, collection.store)
    if url == collection.store:
        return _clear_copies(conn, collection, origin, started)
    _check_complete(conn, collection)
    target = place_of(conn, collection, url)
    target.ensure()
    searched = noted_index(target.index) if isinstance(target, InStore) else None
    indexed = db.index_row(conn, collection) is not None
    copying = _Copying(conn, collection, origin, target, say, stop)
    for attempt in range(PATIENCE + 1):
        if attempt < PATIENCE:
            before = db.data_version(conn)
            copying.until_equal()
        with db.transaction(conn):
            if attempt == PATIENCE:
                copying.until_equal()
            elif db.data_version(conn) != before:
                continue
            _require(conn, collection)
            compared, apart = copying.check()
            repoint(conn, collection, target.url, target.source)
            if searched is not None:
                put_store_index(conn, collection, searched)
            break
    return Moved(
        table=collection.table,
        name=collection.name,
        origin=origin.url,
        to=target.url,
        vectors=db.item_count(conn, collection),
        sent=copying.sent,
        compared=compared,
        apart=apart,
        index_dropped=indexed,
        left=_left(conn, collection, origin, keep),
        seconds=time.perf_counter() - started,
    )


class _Copying:
    """What is copied from one place to another, until they are equal."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        collection: db.Collection,
        origin: Place,
        target: Place,
        say: Say,
        stop: Callable[[], bool],
    ) -> None:
        self.conn, self.collection = conn, collection
        self.origin, self.target = origin, target
        self.say, self.stop = say, stop
        self.sent = 0
        self.equal = 0  # so many were when nothing was lacking

    def until_equal(self) -> None:
        """Copy what is lacking, and compare, until nothing is."""
        for number in range(ROUNDS):
            try:
                if not self._round("Comparing" if number else "Copying"):
                    return
            except sqlite3.OperationalError:
                _require(self.conn, self.collection)  # another `move` was quicker
                raise
        raise StoreError(f"{_called(self.target.url)} does not keep what is put there")

    def _round(self, what: str) -> int:
        """Copy what is lacking; returns how much that was."""
        total = db.item_count(self.conn, self.collection)
        self.say(what, 0, total)
        copied = seen = 0
        for rows, looked_at in self.target.lacking():
            if self.stop():
                raise Stopped
            for some in blocks(rows, SENDERS * AT_ONCE):
                vectors = self.origin.read(some)
                self._check_missing([row for row in some if row.item not in vectors])
                self.target.put(some, vectors)
            copied += len(rows)
            seen += looked_at
            self.say(what, min(seen, total), total)
        self.sent += copied
        self.equal = seen - copied
        return copied

    def _check_missing(self, rows: Sequence[Row]) -> None:
        """Raise CollectionError for items that are there and have no vector."""
        now = rows_of(self.conn, self.collection, [row.item for row in rows])
        lost = [row for row in rows if row in now]
        if lost and len(self.origin.read(lost)) < len(lost):
            raise _incomplete(self.collection, len(lost))

    def check(self) -> tuple[int, float]:
        """Compare counts, and the numbers of a sample: how many, and how far apart.

        Raises StoreError where the copy is not one.
        """
        import numpy as np

        total = db.item_count(self.conn, self.collection)
        if self.equal != total:
            raise StoreError(
                f"{_called(self.target.url)} has {self.equal:,} of {total:,} vectors: "
                "nothing was changed, run this again"
            )
        sql = (
            "select id, pk, sha256 from _image_similarity_items where collection_id = ? "
            "order by random() limit ?"
        )
        drawn = self.conn.execute(sql, (self.collection.id, SAMPLE))
        rows = [Row(*row) for row in drawn]
        old, new = self.origin.read(rows), self.target.read(rows)
        apart = 0.0
        for item in old:
            pair = [np.frombuffer(one, "<f4") for one in (old[item], new.get(item, b""))]
            if pair[0].shape != pair[1].shape:
                raise StoreError(
                    f"{_called(self.target.url)} lost a vector: run this again"
                )
            apart = max(apart, float(np.abs(pair[0] - pair[1]).max()))
        if not apart <= CLOSE:
            raise StoreError(
                f"{_called(self.target.url)} keeps other numbers than it was given: they "
                f"differ by up to {apart:g}. Nothing was changed"
            )
        return len(old), apart


def place_of(conn: sqlite3.Connection, collection: db.Collection, url: str) -> Place:
    """Where a collection's vectors are at a URL, or would be."""
    if not url:
        return InFile(conn, collection)
    index = stores_of(conn).open_url(url, space_of(collection))
    if url == collection.store:
        return InStore(conn, collection, index, collection.store_id)
    with db.transaction(conn):
        source = copies(conn, collection).get(url)
        if source is None:
            source = new_source(db.file_of(conn), collection.table)
            put_copy(conn, collection, url, source)
    return InStore(conn, collection, index, source)


def _check_complete(conn: sqlite3.Connection, collection: db.Collection) -> None:
    """Raise CollectionError where the vectors in this file are not all there."""
    if collection.store:
        return
    db.need_vectors(conn, collection)
    listed = db.quote(collection.vectors + "_rowids")
    sql = (
        "select count(*) from _image_similarity_items where collection_id = ? "
        f"and id not in (select rowid from {listed})"
    )
    if missing := conn.execute(sql, (collection.id,)).fetchone()[0]:
        raise _incomplete(collection, missing)


def _incomplete(collection: db.Collection, missing: int) -> CollectionError:
    mend = "reconcile --mend" if collection.store else "verify --repair"
    return CollectionError(
        f"{missing:,} pictures of {collection.table!r} have no vector that could be moved: "
        f"run datasette image-similarity {mend}, then embed, then this again"
    )


def _require(conn: sqlite3.Connection, collection: db.Collection) -> None:
    if collection not in db.collections(conn, collection.table):
        raise CollectionError(
            f"Another run has changed the embeddings of {collection.table!r} meanwhile: "
            "run this again"
        )


def _clear_copies(
    conn: sqlite3.Connection, collection: db.Collection, place: Place, started: float
) -> Moved:
    """The vectors are where they should be: other places with some are cleared."""
    others = copies(conn, collection)
    if not others:
        raise CollectionError(
            f"The vectors of {collection.table!r} are in {_called(place.url)} already"
        )
    left = [_clear_copy(conn, collection, url, others[url]) for url in others]
    return Moved(
        table=collection.table,
        name=collection.name,
        origin=place.url,
        to=place.url,
        vectors=db.item_count(conn, collection),
        sent=0,
        compared=0,
        apart=0.0,
        index_dropped=False,
        left="; ".join(one for one in left if one) or None,
        seconds=time.perf_counter() - started,
    )


def _left(
    conn: sqlite3.Connection, collection: db.Collection, origin: Place, keep: bool
) -> str | None:
    """Drop the old vectors, unless they are to be kept; returns where they still are."""
    if keep:
        return f"{_called(origin.url)} still has them, too"
    return _clear_copy(conn, collection, origin.url, origin.source)


def _clear_copy(
    conn: sqlite3.Connection, collection: db.Collection, url: str, source: str
) -> str | None:
    """Drop the vectors that are in a place no more used; returns why it could not be."""
    if not url:
        with db.transaction(conn):
            db.drop_vectors(conn, collection.vectors)
            drop_copy(conn, collection, url)
        return None
    try:
        clear_place(stores_of(conn), url, source, space_of(collection))
    except StoreError as error:
        return f"{url} still has vectors whose source is {source!r}: {error}"
    with db.transaction(conn):
        drop_copy(conn, collection, url)
    return None


def _called(url: str) -> str:
    return url or "the database"
