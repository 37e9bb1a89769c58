"""The store that needs nothing else: vec0 tables of sqlite-vec, in the database itself.

Our own searches do not go through here: `vec0.py` answers them by item, and SQL joins
items to rows; nor does `moving.py`, which writes vectors to items that are there. This is
the same table as any other store, for programs that work with `VectorIndex`, and what
the others are held against.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..data_urls import is_data_url, short_path
from ..errors import CollectionError, StoreError
from . import Entry, Found, Known, Space, Stats, Where
from .ids import entry_id, find_key, key_of_id, source_id, source_of_id
from .listing import Listing
from .vec0 import KNN_LIMIT, Vec0


class SqliteVec:
    """A collection's vec0 table as a `VectorIndex`.

    A vector belongs to a row that is there. One without an item gets the least of one:
    the next `embed` completes it, by the SHA-256 of the picture's bytes.
    """

    def __init__(self, conn: sqlite3.Connection, collection: db.Collection) -> None:
        self.conn, self.collection = conn, collection
        self.url = f"sqlite:{db.file_of(conn)}"
        self.space = Space(collection.fingerprint, collection.dimensions, collection.metric)
        self.source = source_id(Path(db.file_of(conn)).stem, collection.table)
        self._vectors = Vec0(conn, collection)

    @cached_property
    def _table(self) -> db.SourceTable:
        return db.source_of(self.conn, self.collection)

    @cached_property
    def _listing(self) -> Listing:
        return Listing(self.conn, self.collection, self._id)

    def _id(self, key: db.Key) -> str:
        return entry_id(self.source, self._table.parts(key))

    def _key(self, id: str) -> db.Key | None:
        """The key of the row that an id belongs to; None where there is no such row."""
        if source_of_id(id) != self.source:
            return None
        return find_key(self.conn, self._table, key_of_id(id))

    def _items(self, ids: Iterable[str]) -> dict[int, str]:
        """Ids by item; those without one are left out."""
        found = {}
        for id in ids:
            key = self._key(id)
            item = None if key is None else db.item_id(self.conn, self.collection, key)
            if item is not None:
                found[item] = id
        return found

    def ensure(self) -> None:
        with db.transaction(self.conn):
            now = db.find_collection(self.conn, self.collection.table, self.collection.name)
            if (now.fingerprint, now.dimensions, now.metric) != (
                self.space.fingerprint,
                self.space.dimensions,
                self.space.metric,
            ):
                raise StoreError(
                    f"{self.collection.table!r} holds vectors of another encoder, length "
                    "or metric by now"
                )
            if not db.table_exists(self.conn, self.collection.vectors):
                db.create_vectors(self.conn, self.collection)

    def upsert(self, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        check_vectors(entries, self.space)
        if not db.table_exists(self.conn, self.collection.vectors):
            raise StoreError(f"{self.url} has no vectors of {self.source} (any more)")
        with db.transaction(self.conn):
            for entry in entries:
                key = self._key(entry.id)
                if key is None:
                    raise StoreError(
                        f"{entry.id} is no row of {self.source}: there is nothing that the "
                        "vector could belong to"
                    )
                item = db.item_id(self.conn, self.collection, key)
                if item is None:
                    self._put_least_item(key, entry)
                else:
                    self._put_vector(item, entry)
        self._listing.forget()

    def _put_vector(self, item: int, entry: Entry) -> None:
        table = db.quote(self.collection.vectors)  # vec0 has no REPLACE
        self.conn.execute(f"delete from {table} where id = ?", (item,))
        self.conn.execute(f"insert into {table} values (?, ?)", (item, entry.vector))
        self.conn.execute(
            "update _image_similarity_items set sha256 = ? where id = ?",
            (entry.sha256, item),
        )
        db.note_vectors(self.conn, [(item, entry.vector)])

    def _put_least_item(self, key: db.Key, entry: Entry) -> None:
        column = db.quote(self.collection.column)
        cell = self.conn.execute(
            f"select {column} from {db.quote(self._table.name)} t "
            f"where {self._table.join_sql('t', ':key')}",
            {"key": key},
        ).fetchone()[0]
        blob = isinstance(cell, bytes)
        path = None if blob or cell is None else str(cell)
        if is_data_url(path):
            path = short_path(path)
        db.put_item(
            self.conn,
            self.collection,
            pk=key,
            root=None,
            path=path,
            size=len(cell) if blob else 0,
            mtime_ns=None,
            sha256=entry.sha256,
            width=0,
            height=0,
            vector=entry.vector,
            thumbnail=None,
        )

    def delete(self, ids: Iterable[str]) -> None:
        table = db.quote(self.collection.vectors)
        with db.transaction(self.conn):
            for item in self._items(ids):
                self.conn.execute(f"delete from {table} where id = ?", (item,))
        self._listing.forget()

    def search(self, vector: bytes, k: int, where: Where | None = None) -> list[Found]:
        among = self._among(where)
        if among is not None or k >= KNN_LIMIT:
            rows = self._vectors.distances(vector, among)
        else:
            rows = self._vectors.nearest(vector, k + 1)
            if len(rows) > k and rows[k][1] == rows[k - 1][1]:  # a tie at the end
                rows = self._vectors.distances(vector)
        best = sorted((d, item) for item, d in rows if d is not None)
        if len(best) > k:  # and all that tie with the last, to be told apart by id
            best = [pair for pair in best if pair[0] <= best[k - 1][0]]
        known = {
            row[0]: (self._id(row[1]), row[2])
            for row in self.conn.execute(
                f"select i.id, i.pk, i.sha256 from {db.ITEMS_BY_ID}",
                {"ids": str([item for _, item in best])},
            )
        }
        hits = (Found(known[i][0], max(0.0, d), known[i][1]) for d, i in best if i in known)
        return sorted(hits, key=lambda hit: (hit.distance, hit.id))[:k]

    def _among(self, where: Where | None) -> set[int] | None:
        """The items that fulfil a condition; None for all."""
        among: set[int] | None = None
        for name, wanted in (where or {}).items():
            values = [wanted] if isinstance(wanted, str) else list(wanted)
            if name == "source":
                some = None if self.source in values else set()
            elif name == "id":
                some = set(self._items(values))
            else:
                some = self._with_sha256(values)
            if some is not None:
                among = some if among is None else among & some
        return among

    def _with_sha256(self, values: Sequence[str]) -> set[int]:
        sql = (
            "select id from _image_similarity_items where collection_id = ? and sha256 = ?"
        )
        found = (self.conn.execute(sql, (self.collection.id, one)) for one in values)
        return {row[0] for rows in found for row in rows}

    def ids(
        self, after: str = "", limit: int = 1000, where: Where | None = None
    ) -> list[Known]:
        if not after:
            self._listing.forget()
        among = self._among(where)
        return self._listing.page(after, limit, among)

    def vectors(self, ids: Sequence[str]) -> dict[str, bytes]:
        items = self._items(ids)
        return {items[item]: vector for item, vector in self._vectors.get(items)}

    def stats(self, where: Where | None = None) -> Stats:
        among = self._among(where)
        count = self._listing.count() if among is None else len(self._vectors.get(among))
        return Stats(count, bytes=4 * self.space.dimensions * count)

    def clear(self, where: Where) -> None:
        among = self._among(where)
        with db.transaction(self.conn):
            if among is None:
                db.drop_vectors(self.conn, self.collection.vectors)
            else:
                table = db.quote(self.collection.vectors)
                sql = f"delete from {table} where id = ?"
                self.conn.executemany(sql, [(item,) for item in among])
        self._listing.forget()

    def close(self) -> None:
        """The connection is its owner's."""


def check_vectors(entries: Iterable[Entry], space: Space) -> None:
    """Raise StoreError for a vector of another length, or one that is not finite."""
    for entry in entries:
        if len(entry.vector) != 4 * space.dimensions:
            raise StoreError(
                f"The vector of {entry.id} has {len(entry.vector) // 4:,} dimensions; "
                f"the store has vectors of {space.dimensions:,}"
            )
        try:
            db.floats(entry.vector)
        except CollectionError as error:
            raise StoreError(f"{entry.id}: {error}") from None
