"""The ids of a collection's items in order, however many: to page through and compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from .. import database as db
from . import Known, pages

if TYPE_CHECKING:
    from . import VectorIndex, Where

AT_ONCE = 5000
PAGE = 16_000  # ids of a store at once: milvus-lite looks at all for each page


class Listing:
    """Ids with their SHA-256 in a temporary table, made when it is first asked.

    `id_of` gives the id of a row's key. With vectors in this file, only of items that
    have one.
    """

    def __init__(
        self,
        conn: sqlite3.Connection,
        collection: db.Collection,
        id_of: Callable[[db.Key], str],
    ) -> None:
        self._conn, self._collection, self._id_of = conn, collection, id_of
        self._table = f"temp.{db.PREFIX}listing_{collection.id}"
        self._made = False

    def forget(self) -> None:
        """Something has changed: make it anew when it is next asked."""
        self._made = False

    def page(self, after: str, limit: int, among: set[int] | None = None) -> list[Known]:
        """The ids after one, at most so many; of these items alone."""
        self._make()
        narrowed = "" if among is None else "and item in (select value from json_each(?))"
        params = [after, *([] if among is None else [json.dumps(sorted(among))]), limit]
        sql = (
            f"select id, sha256 from {self._table} where id > ? {narrowed} "
            "order by id limit ?"
        )
        return [Known(*row) for row in self._conn.execute(sql, params)]

    def count(self) -> int:
        self._make()
        return self._conn.execute(f"select count(*) from {self._table}").fetchone()[0]

    def items(self, ids: Iterable[str]) -> list[int]:
        """The items of ids."""
        self._make()
        sql = f"select item from {self._table} where id in (select value from json_each(?))"
        return [row[0] for row in self._conn.execute(sql, (json.dumps(list(ids)),))]

    def pages(self) -> Iterator[list[Known]]:
        after = ""
        while page := self.page(after, AT_ONCE):
            yield page
            after = page[-1].id

    def _make(self) -> None:
        if self._made:
            return
        conn, collection = self._conn, self._collection
        conn.execute(f"drop table if exists {self._table}")
        conn.execute(
            f"create table {self._table} "
            "(id text primary key, sha256 text, item integer) without rowid"
        )
        rowids = db.quote(collection.vectors + "_rowids")
        has_vector = "" if collection.store else f"and i.id in (select rowid from {rowids})"
        rows = self._rows(
            "select i.id, i.pk, i.sha256 from _image_similarity_items i "
            f"where i.collection_id = ? and i.id > ? {has_vector} order by i.id limit ?"
        )
        insert = f"insert or replace into {self._table} values (?, ?, ?)"
        while some := list(islice(rows, AT_ONCE)):
            self._put(insert, [(self._id_of(pk), sha, item) for item, pk, sha in some])
        self._made = True

    def _put(self, sql: str, rows: list[tuple]) -> None:
        if self._conn.in_transaction:
            self._conn.executemany(sql, rows)
            return
        self._conn.execute("begin")  # of a temporary table: takes no lock
        try:
            self._conn.executemany(sql, rows)
        finally:
            self._conn.execute("commit")

    def _rows(self, sql: str) -> Iterator[sqlite3.Row]:
        last = -(2**63)
        while rows := self._conn.execute(
            sql, (self._collection.id, last, AT_ONCE)
        ).fetchall():
            yield from rows
            last = rows[-1][0]


@dataclass
class Difference:
    """What a store has otherwise than a listing, among so many ids that were `seen`."""

    lacking: list[Known] = field(default_factory=list)  # not in the store
    other: list[Known] = field(default_factory=list)  # there with another SHA-256
    surplus: list[Known] = field(default_factory=list)  # in the store alone
    seen: int = 0


def differences(
    listing: Listing, index: VectorIndex, where: Where, at_once: int = AT_ONCE
) -> Iterator[Difference]:
    """Compare a listing with what a store has, some thousand ids after the other."""
    ours = chain.from_iterable(listing.pages())
    theirs = chain.from_iterable(pages(index, where, PAGE))
    mine, there = next(ours, None), next(theirs, None)
    found = Difference()
    while mine is not None or there is not None:
        if there is None or (mine is not None and mine.id < there.id):
            found.lacking.append(mine)
            mine = next(ours, None)
        elif mine is None or there.id < mine.id:
            found.surplus.append(there)
            there = next(theirs, None)
        else:
            if mine.sha256 != there.sha256:
                found.other.append(mine)
            mine, there = next(ours, None), next(theirs, None)
        found.seen += 1
        if found.seen == at_once:
            yield found
            found = Difference()
    yield found
