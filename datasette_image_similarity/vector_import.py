"""Vectors in a Parquet file become a collection: over the rows of a table that is there,
or the rows of a folder's pictures, which are made as `embed` would make them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from . import database as db
from .contents import lost_with
from .errors import CollectionError, Stopped, StoreError
from .progress import Say, silent
from .roots import as_root
from .stores import Space
from .stores.ids import key_of_id, new_source, readings
from .stores.indexing import note_store_index
from .stores.opening import stores_of
from .stores.places import clear_places, places_of
from .stores.sending import send_waiting, waiting
from .vector_files import Picture, Record, VectorFile

if TYPE_CHECKING:
    from .stores import VectorIndex


@dataclass(frozen=True)
class Imported:
    """What was taken in.

    `missing` rows are not in the table, `different` ones name another picture there: both
    are left out. `made` says that the table was made. `waiting` vectors could not be sent
    to the store yet, `problem` says why; `left` says what became of what was replaced.
    """

    table: str
    name: str
    vectors: int
    missing: int
    different: int
    made: bool
    store: str
    waiting: int
    problem: str | None
    left: list[str]


def import_vectors(
    conn: sqlite3.Connection,
    file: VectorFile,
    *,
    table: str | None = None,
    name: str | None = None,
    replace: bool = False,
    store: str = "",
    say: Say = silent,
    stop: Callable[[], bool] = lambda: False,
) -> Imported:
    """Make a collection of a file's vectors, in one transaction: whole or not at all.

    Rows are found by their key, and have to name the same picture. A table that is missing
    is made where the vectors are of a folder's pictures. With a `store` its vectors go
    there afterwards; what was not sent waits for the next `embed` or `reconcile --mend`.

    Raises CollectionError for a file that is wrong, a table that does not fit, a name that
    is taken unless the collection is to be replaced; StoreError for a store that cannot be
    used; Stopped when `stop()` turns true.
    """
    record = file.record
    table, name = table or record.table, name or record.collection
    index = None
    if store:
        space = Space(record.fingerprint, record.dimensions, record.metric)
        index = stores_of(conn).open_url(store, space)
        index.ensure()
    old: db.Collection | None = None
    places: dict[str, str] = {}
    lost: list[str] = []
    with db.transaction(conn):
        db.migrate(conn)
        made = _make_table(conn, table, record)
        old = db.collection_or_none(conn, table, name)
        if old is not None:
            if not replace:
                raise CollectionError(
                    f"{table!r} has a collection {name!r} already: --replace drops it, "
                    "--name keeps both"
                )
            places, lost = places_of(conn, old), lost_with(conn, old)
            db.set_aside(conn, old)
        taking = _Taking(conn, record, table, name, store, fill=made)
        total = record.count
        for pictures in file.pictures():
            if stop():
                raise Stopped
            taking.take(pictures)
            say("Taking in", taking.seen, total)
        taking.finish()
        if old is not None:
            db.hand_over(conn, old, taking.collection)
            db.drop_collection(conn, old)
    collection = db.find_collection(conn, table, name)
    problem = _sent(conn, collection, index)
    return Imported(
        table=collection.table,
        name=collection.name,
        vectors=db.item_count(conn, collection),
        missing=taking.missing,
        different=taking.different,
        made=made,
        store=store,
        waiting=waiting(conn, collection),
        problem=problem,
        left=[*lost, *clear_places(conn, old, places)] if old else [],
    )


def _sent(
    conn: sqlite3.Connection, collection: db.Collection, index: VectorIndex | None
) -> str | None:
    """Send what waits to the store, if there is one; returns why that was not possible."""
    if index is None:
        return None
    try:
        note_store_index(conn, collection, index)
        send_waiting(conn, collection)
    except StoreError as error:
        return str(error)
    return None


def _make_table(conn: sqlite3.Connection, table: str, record: Record) -> bool:
    """Make the table of a folder's pictures where it is missing; whether that was so.

    Raises CollectionError for another one that is missing, or does not fit.
    """
    missing = not db.table_exists(conn, table)
    if missing and record.source != "folder":
        raise CollectionError(
            f"There is no table {table!r} here: the vectors are of rows of that table, "
            "which have to be there first. --table names another"
        )
    if missing:
        db.create_folder_table(conn, table)
    source = db.source_table(conn, table)
    source.require_column(record.column)
    if record.source == "folder" and (source.pks, record.column) != (("id",), "path"):
        raise CollectionError(f"{table!r} is not a table of files: --table names another")
    return missing


class _Taking:
    """A collection that is being filled. Use it inside a transaction."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        record: Record,
        table: str,
        name: str,
        store: str,
        *,
        fill: bool,
    ) -> None:
        self.conn, self.fill = conn, fill
        self.source = db.source_table(conn, table)
        self.collection = db.create_collection(
            conn,
            name=name,
            table=self.source.name,
            source=record.source,
            column=record.column,
            encoder=record.encoder,
            fingerprint=record.fingerprint,
            dimensions=record.dimensions,
            metric=record.metric,
            thumbnails=record.thumbnails,
            store=store,
            store_id=new_source(db.file_of(conn), self.source.name) if store else "",
        )
        db.put_transform(conn, self.collection, record.transform_rows())
        self.seen = self.taken = self.missing = self.different = 0
        self._roots: dict[str, int] = {}

    def take(self, pictures: list[Picture]) -> None:
        for picture in pictures:
            self.seen += 1
            parts = key_of_id(picture.id)
            key = self._made(picture, parts) if self.fill else self._found(picture, parts)
            if key is not None:
                self._put(picture, key)
                self.taken += 1

    def _found(self, picture: Picture, parts: list[str]) -> db.Key | None:
        """The key of the row that a picture belongs to, if that names the same picture."""
        source, column = self.source, db.quote(self.collection.column)
        if len(parts) != len(source.key_columns):
            self.missing += 1
            return None
        same = db.same_picture_sql(self.collection, column, ":path", ":size")
        where = " and ".join(
            f"{db.quote(name)} = :key{n}" for n, name in enumerate(source.key_columns)
        )
        asked = {"path": picture.path, "size": picture.size}
        sql = f"select {source.key_sql()}, {same} from {db.quote(source.name)} "
        for key in product(*map(readings, parts)):  # a column may be of no type
            asked |= {f"key{n}": part for n, part in enumerate(key)}
            row = self.conn.execute(f"{sql} where {where}", asked).fetchone()
            if row is not None:
                break
        if row is None:
            self.missing += 1
        elif not row[1]:
            self.different += 1
        return row[0] if row is not None and row[1] else None

    def _made(self, picture: Picture, parts: list[str]) -> int:
        """The key of a new row for a file, the same as where it comes from."""
        number = parts[0] if len(parts) == 1 else ""
        if not re.fullmatch("[0-9]{1,19}", number) or picture.path is None:
            raise CollectionError(f"{picture.id!r} is no file's")
        path = PurePosixPath(picture.path)
        folder = "" if path.parent == PurePosixPath(".") else str(path.parent)
        row = (int(number), picture.path, folder, path.name)
        row += (picture.width, picture.height, picture.size, picture.sha256)
        try:
            self.conn.execute(
                f"insert into {db.quote(self.source.name)} "
                "(id, path, folder, name, width, height, bytes, sha256) "
                "values (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        except (sqlite3.IntegrityError, OverflowError):
            raise CollectionError(f"{picture.id!r} is there twice, or no key") from None
        return row[0]

    def _put(self, picture: Picture, key: db.Key) -> None:
        db.put_item(
            self.conn,
            self.collection,
            pk=key,
            root=self._root(picture.root),
            path=picture.path,
            size=picture.size,
            mtime_ns=picture.mtime_ns,
            sha256=picture.sha256,
            width=picture.width,
            height=picture.height,
            vector=picture.vector,
            thumbnail=None,
        )

    def _root(self, root: str | None) -> int | None:
        if root is None:
            return None
        if root not in self._roots:
            self._roots[root] = db.root_id(self.conn, self.collection, as_root(root))
        return self._roots[root]

    def finish(self) -> None:
        """Raises CollectionError for ids that were there twice, or a file of other rows."""
        there = db.item_count(self.conn, self.collection)
        if there != self.taken:
            raise CollectionError(
                f"The file has {self.taken - there:,} rows whose picture it has already"
            )
        if self.seen and not self.taken:
            raise CollectionError(
                f"None of the {self.seen:,} pictures in the file is in "
                f"{self.source.name!r}: {self.missing:,} have no row there, "
                f"{self.different:,} another picture"
            )
        db.note_finished(self.conn, self.collection)
