"""SQLite's own sqlite_sequence, which vec0 brings: hidden, and gone after `remove`."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest
from core import command, sql, value
from datasette.utils.sqlite import sqlite3
from serving import ROOT, ask, ask_json, open_datasette

NAME = "sqlite_sequence"
COUNTED = "select count(*) from sqlite_master where name = 'sqlite_sequence'"


async def listed(path: Path) -> bool:
    """Whether visitors, and root, see the table."""
    found = []
    for actor in (None, ROOT):
        site = open_datasette(path)
        tables = (await ask_json(site, "/gallery.json", actor=actor))["tables"]
        names = [table["name"] for table in tables if not table["hidden"]]
        status = (await ask(site, f"/gallery/{NAME}.json", actor)).status_code
        assert (NAME in names) == (status == 200)
        page = (await ask(site, "/gallery", actor)).text
        assert (f'href="/gallery/{NAME}"' in page) == (status == 200)
        found.append(status == 200)
    assert found[0] == found[1]
    return found[0]


async def test_it_is_hidden_while_it_counts_rows_of_ours_alone(copied: Path) -> None:
    assert not await listed(copied)


async def test_it_is_shown_with_rows_of_the_user_s(copied: Path) -> None:
    sql(copied, "create table theirs (id integer primary key autoincrement)")
    assert not await listed(copied)
    sql(copied, "insert into theirs default values")
    assert await listed(copied)


@pytest.mark.parametrize("named", [(), ("images",), ("images", "--all")])
def test_remove_takes_it_along(copied: Path, named: tuple[str, ...]) -> None:
    rows = value(copied, "select count(*) from images")
    shown = command("remove", copied, *named, *CONFIRMED)
    assert shown.exit_code == 0, shown.output
    assert NAME not in shown.output
    assert value(copied, COUNTED) == 0
    assert value(copied, "select count(*) from images") == rows


CONFIRMED = ("--yes",) if "--yes" in command("remove", "--help").output else ()

KEPT = {  # by VACUUM: their rows keep their numbers, or have none
    "an alias": "create table t (id integer primary key, x)",
    "in words": "create table t (id INTEGER, x, primary key (id))",
    "none": "create table t (a text primary key, x) without rowid",
    "a search": "create virtual table t using fts5(x)",
    "an older search": "create virtual table t using fts4(x)",
    "boxes": "create virtual table t using rtree(id, a, b)",
    "a view": "create view t as select 1",
    "a name alone": "create table t (id integer primary key, autoincrement_from x)",
}
RENUMBERED = {
    "no key": "create table t (x)",
    "text": "create table t (a text primary key, x)",
    "compound": "create table t (a, b, x, primary key (a, b))",
    "int": "create table t (id int primary key, x)",
    "descending": "create table t (id integer primary key desc, x)",
}
USED = {
    "in use": "create table t (id integer primary key autoincrement, x)",
}


@pytest.mark.parametrize("name", [*KEPT, *RENUMBERED, *USED])
def test_remove_renumbers_nothing(copied: Path, name: str) -> None:
    sql(copied, (KEPT | RENUMBERED | USED)[name])
    if name in RENUMBERED:
        for n in range(4):
            sql(copied, "insert into t (rowid, x) values (?, 'x')", (10 * n + 5,))
    before = value(copied, "select group_concat(rowid) from t") if name in RENUMBERED else 0
    shown = command("remove", copied, *CONFIRMED)
    assert shown.exit_code == 0, shown.output
    assert (NAME in shown.output) == (name in RENUMBERED)
    assert ("sqlite3" in shown.output) == (name not in RENUMBERED)  # the advice to VACUUM
    assert value(copied, COUNTED) == (name not in KEPT)
    if name in RENUMBERED:
        assert value(copied, "select group_concat(rowid) from t") == before


def test_it_stays_while_somebody_reads(copied: Path) -> None:
    other = copied.with_name("other.db")
    shutil.copy(copied, other)
    sql(other, "pragma journal_mode = wal")
    with closing(sqlite3.connect(str(other), isolation_level=None)) as reader:
        reader.execute("begin")
        reader.execute("select count(*) from images").fetchone()
        shown = command("remove", other, *CONFIRMED)
    assert shown.exit_code == 0, shown.output
