"""Are our tables what the schema says? For `verify.py`.

SQLite holds a column to its type hardly at all, and whoever writes to the file can change
anything: what the migrations make of an empty database is what is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from datasette.utils.sqlite import sqlite3

from . import database as db
from .errors import DatabaseError

LARGEST = 1e300  # of real numbers; beyond are those that JSON has no word for
# Whole numbers that are drawn at random, are the world's, or refer to what may have gone.
SIGNED = ("id", "version", "built", "mark", "mtime_ns", "crc32", "pk")
TYPES = {"integer": ("integer",), "real": ("real", "integer"), "text": ("text",)}
TYPES["blob"] = ("blob",)
PICTURES = ("thumbnails", "atlases")  # whose column `webp` is a picture
# Dropping what refers to a root that is gone would drop all that was embedded.
ROOTLESS = ("items of no root", "failures of no root")
# What a collection is like where a damaged row does not say: nobody's choice gets lost
# that is not damaged.
PLAIN = {
    "preferred": "0",
    "store_index": "null",
    "created_at": "strftime('%Y-%m-%dT%H:%M:%SZ', 'now')",
    "updated_at": "null",
}
REPLACEABLE = (*PLAIN, "pictures")  # a collection's columns that others know


@dataclass(frozen=True)
class Column:
    name: str
    kind: str
    required: bool
    key: int

    @property
    def sound_sql(self) -> str:
        """SQL: whether what is there can be."""
        name = db.quote(self.name)
        types = TYPES.get(self.kind, ("integer", "real", "text"))  # a user's key
        sound = f"typeof({name}) in ({', '.join(map(repr, types))})"
        if self.kind == "integer" and self.name not in SIGNED:
            sound += f" and {name} >= 0"
        if self.kind == "real":
            sound += f" and abs({name}) < {LARGEST}"
        return f"({sound})" if self.required else f"({name} is null or {sound})"


@dataclass(frozen=True)
class Table:
    """A table as it should be; `refers` are (column, table, its column)."""

    name: str
    sql: str
    columns: tuple[Column, ...]
    refers: tuple[tuple[str, str, str], ...]
    beside: dict[str, str]  # SQL of its indexes and triggers, by name

    @property
    def called(self) -> str:
        return self.name.removeprefix(db.PREFIX)

    @property
    def sound_sql(self) -> str:
        parts = [column.sound_sql for column in self.columns]
        if self.called in PICTURES:
            parts.append(
                "hex(substr(webp, 1, 4) || substr(webp, 9, 4)) = '5249464657454250'"
            )
        return " and ".join(parts)


def check_tables(conn: sqlite3.Connection, repair: bool) -> dict[str, int]:
    """What is not as the schema says, and how often; mended where that is asked for.

    A table that lacks a column, a key or an index is made anew of the rows that fit into
    it; a row that cannot be is dropped, and so is what refers to a row that is not there.
    Call inside a transaction. Raises DatabaseError where it is not known what there is.
    """
    faults: dict[str, int] = {}
    tables = _as_made(db.schema_version(conn))
    whole = []
    for table in tables:
        if now := _differs(conn, table):
            faults[now] = 1
            if table.called == "collections":
                _require_collections(conn, table)
            if not repair:
                continue
            _make_anew(conn, table)
        whole.append(table)
    for table in whole:
        if count := _drop_unsound(conn, table, repair):
            faults[f"rows of {table.called} that are damaged"] = count
    missing = {table.name for table in tables} - {table.name for table in whole}
    if not missing and (count := _give_roots_back(conn, repair)):
        faults["roots that are another collection's"] = count
    while repair and _drop_orphans(conn, whole, missing, faults):
        pass  # what is dropped may leave others alone
    if not repair:
        _drop_orphans(conn, whole, missing, faults, drop=False)
    return faults


def _as_made(version: int) -> list[Table]:
    """Our tables in this version, those that are referred to first."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        for script in db.MIGRATIONS[:version]:
            for statement in db.statements(script):
                conn.execute(statement)
        names = conn.execute(
            "select name, sql from sqlite_master where type = 'table' "
            f"and substr(name, 1, {len(db.PREFIX)}) = '{db.PREFIX}'"
        ).fetchall()
        return [_table(conn, name, sql) for name, sql in names]


def _table(conn: sqlite3.Connection, name: str, sql: str) -> Table:
    refers = conn.execute(f"pragma foreign_key_list({db.quote(name)})").fetchall()
    beside = conn.execute(
        "select name, sql from sqlite_master where tbl_name = ? and type <> 'table'",
        (name,),
    ).fetchall()
    return Table(
        name,
        sql,
        _columns(conn, name),
        tuple((row[3], row[2], row[4]) for row in refers),
        dict(beside),
    )


def _columns(conn: sqlite3.Connection, table: str) -> tuple[Column, ...]:
    info = conn.execute(f"pragma table_info({db.quote(table)})").fetchall()
    return tuple(
        # A column of the primary key holds something even where that is not said.
        Column(row[1], row[2].lower(), bool(row[3] or row[5]), row[5])
        for row in info
    )


def _differs(conn: sqlite3.Connection, table: Table) -> str | None:
    """What is wrong with a table as a whole."""
    if not db.table_exists(conn, table.name):
        return f"the table {table.name} is gone"
    named = "select name from sqlite_master where tbl_name = ? and type <> 'table'"
    there = {row[0] for row in conn.execute(named, (table.name,))}
    if set(_columns(conn, table.name)) != set(table.columns) or table.beside.keys() - there:
        return f"the table {table.name} is not as it was made"
    return None


def _make_anew(conn: sqlite3.Connection, table: Table) -> None:
    """The table as it should be, with the rows that fit into it."""
    old, name = db.quote(f"{db.PREFIX}old"), db.quote(table.name)
    there = db.table_exists(conn, table.name)
    for other in _named_beside(conn, table):
        conn.execute(f"drop {other}")
    if there:
        # What refers to the table goes on doing so.
        conn.execute("pragma legacy_alter_table = on")
        conn.execute(f"alter table {name} rename to {old}")
        conn.execute("pragma legacy_alter_table = off")
    conn.execute(table.sql)
    if there:
        now = {column.name for column in _columns(conn, f"{db.PREFIX}old")}
        both = [db.quote(c.name) for c in table.columns if c.name in now]
        if both:
            names = ", ".join(both)
            conn.execute(
                f"insert or ignore into {name} ({names}) select {names} from {old}"
            )
        if table.called == "collections" and _count(conn, name) < _count(conn, old):
            raise DatabaseError(db.DAMAGED)
        conn.execute(f"drop table {old}")
    for sql in table.beside.values():
        if sql:
            conn.execute(sql)


def _count(conn: sqlite3.Connection, table: str) -> int:
    return conn.execute(f"select count(*) from {table}").fetchone()[0]


def _require_collections(conn: sqlite3.Connection, table: Table) -> None:
    """Raises DatabaseError where nothing tells what the other tables are about."""
    there = {column.name for column in _columns(conn, table.name)}
    told = {column.name for column in table.columns if column.name not in REPLACEABLE}
    if not told <= there:
        raise DatabaseError(db.DAMAGED)


def _named_beside(conn: sqlite3.Connection, table: Table) -> list[str]:
    """Indexes and triggers that have the names of the table's own."""
    found = []
    for name in table.beside:
        row = conn.execute(
            "select type from sqlite_master where name = ? and sql is not null", (name,)
        ).fetchone()
        if row:
            found.append(f"{row[0]} {db.quote(name)}")
    return found


def _drop_unsound(conn: sqlite3.Connection, table: Table, repair: bool) -> int:
    """Count the rows that cannot be, and drop them."""
    name = db.quote(table.name)
    unsound = f"from {name} where not ({table.sound_sql})"
    count = conn.execute(f"select count(*) {unsound}").fetchone()[0]
    if not count or not repair:
        return count
    if table.called != "collections":
        conn.execute(f"delete {unsound}")
        return count
    for column in table.columns:
        if column.name in PLAIN:
            conn.execute(
                f"update {name} set {column.name} = {PLAIN[column.name]} "
                f"where not {column.sound_sql}"
            )
    return count


def _give_roots_back(conn: sqlite3.Connection, repair: bool) -> int:
    """Count the roots that are not noted for the collection that all of their items are
    in, and note them for it: with another's root an `embed` would add its files again."""
    moved = conn.execute(
        "select r.id, o.owner from _image_similarity_roots r join ("
        "select root_id, min(collection_id) as owner from _image_similarity_items "
        "where root_id is not null group by 1 "
        "having min(collection_id) = max(collection_id)"
        ") o on o.root_id = r.id and o.owner <> r.collection_id"
    ).fetchall()
    if repair:
        # Out of each other's way first. Where there is another of that path, it stays.
        note = "update or ignore _image_similarity_roots set collection_id = ? where id = ?"
        conn.executemany(note, [(-root, root) for root, _ in moved])
        conn.executemany(note, [(owner, root) for root, owner in moved])
    return len(moved)


def _drop_orphans(
    conn: sqlite3.Connection,
    tables: list[Table],
    missing: set[str],
    faults: dict[str, int],
    drop: bool = True,
) -> int:
    """Count what refers to what is not there, and drop it."""
    found = 0
    for what, sql in _orphans(tables, missing):
        count = conn.execute(f"select count(*) {sql}").fetchone()[0]
        if count and what.startswith(ROOTLESS):
            faults[what] = count
        elif count:
            found += count
            faults[what] = faults.get(what, 0) + count
            if drop:
                conn.execute(f"delete {sql}")
    return found


def _orphans(tables: list[Table], missing: set[str]) -> Iterator[tuple[str, str]]:
    """What to say of rows that refer to nothing, and the SQL that finds them."""
    for table in tables:
        for column, other, theirs in table.refers:
            if other in missing:
                continue
            called = other.removeprefix(db.PREFIX).removesuffix("s")
            without = "without an" if called == "item" else "of no"
            what = f"{table.called} {without} {called}"
            if what in ROOTLESS:
                what += ": remove the collection and embed its folder again"
            yield (
                what,
                f"from {db.quote(table.name)} where {db.quote(column)} is not null and "
                f"{db.quote(column)} not in (select {db.quote(theirs)} "
                f"from {db.quote(other)})",
            )
