"""Hidden tables harmed in every way that SQL can harm them.

Each case takes a database in which everything was made and harms one of our tables, drawn
from the schema by the case's seed. Then: no command, page or function may end otherwise
than by an answer or an error in words; no answer may be wrong, and none may be short of
rows without `verify` knowing of damage; `verify --repair` and `embed` bring the truth back,
or `verify` goes on saying what only the user can mend.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from core import command, opened
from datasette.utils.sqlite import sqlite3
from serving import ROOT, ask, close_all, open_datasette

from datasette_image_similarity import database as db
from datasette_image_similarity import trust
from datasette_image_similarity.functions import prepare_connection
from stress.everything import make_everything
from stress.report import Report, options

COLLECTIONS = (
    ("images", "default"),
    ("images", "far"),
    ("images", "small"),
    ("works", "default"),
)
PAGES = (
    "/-/image-similarity",
    "/-/image-similarity.json",
    "/gallery",
    "/gallery/images",
    "/gallery/images/2",
    "/gallery/images?_image_cluster=1",
    "/gallery/images?_image_decision=mark",
    "/gallery/images?_image_group=1",
    "/gallery/images?_image_region=0,0,1,1",
    "/gallery/images/-/similar?_like=1",
    "/gallery/images/-/similar.csv?_like=1",
    "/gallery/images/-/similar?_like=1&_one_per=cluster",
    "/gallery/images/-/similar?_like=1&_one_per=duplicates",
    "/gallery/images/-/similar?_like=1&_distinct=on",
    "/gallery/images/-/similar.json?_like=1&_histogram=1",
    "/gallery/images/-/compare?_like=1&_collection=default&_with=small",
    "/gallery/images/-/search-by-image",
    "/gallery/images/-/thumbnail/3",
    "/gallery/images/-/image/3",
    "/gallery/images/-/map",
    "/gallery/images/-/map.json?_region=0,0,1,1",
    "/gallery/images/-/map/points.bin",
    "/gallery/images/-/map/columns.json",
    "/gallery/images/-/map/column.json?_column=label",
    "/gallery/images/-/map/pictures.json",
    "/gallery/images/-/map/atlas/0",
    "/gallery/images/-/export.html?_like=1",
    "/gallery/images/-/questions",
    "/gallery/images/-/questions.json",
    "/gallery/images/-/searches",
    "/gallery/images/-/searches.json",
    "/gallery/images/-/duplicates",
    "/gallery/images/-/duplicates.json",
    "/gallery/images/-/duplicates.csv",
    "/gallery/images/-/duplicates?_tier=identical",
    "/gallery/images/-/clusters",
    "/gallery/images/-/clusters.json",
    "/gallery/images/-/clusters.csv",
    "/gallery/images/-/evaluations",
    "/gallery/images/-/evaluations/1",
    "/gallery/images/-/evaluations/1.json",
    "/gallery/images/-/evaluations/1.csv",
    "/gallery/works/-/similar?_like=1",
)
JSON_PAGES = tuple(
    f"/gallery/{table}/-/similar.json?_like=1&_collection={name}&_size=99"
    for table, name in COLLECTIONS
)
COMMANDS = (
    ("status",),
    ("status", "--json"),
    ("default", "images"),
    ("similar", "images", "2"),
    ("map", "images", "--method", "pca"),
    ("clusters", "images", "--k", "2"),
    ("evaluate", "images", "--label", "label"),
    ("index", "images"),
)
FUNCTIONS = (
    "select image_embedding('images', 1)",
    "select mean_image_embedding('images', '[1,2]')",
    "select image_distance('images', 1, 2)",
    "select similar_images('images', 1, 5)",
    "select similar_images('images', 1, 5, 'small')",
)


class Broken(Exception):
    """What must not happen."""


# Harm

Change = Callable[[Any, random.Random], Any]  # from what is in a cell to what is put there


def _floats(number: float) -> Change:
    def change(old: Any, chance: random.Random) -> Any:
        count = len(old) // 4 if isinstance(old, bytes) else 8
        return struct.pack("<f", number) * max(1, count)

    return change


def _flipped(old: Any, chance: random.Random) -> Any:
    """One bit of a blob, one character of a text, one step of a number."""
    if isinstance(old, bytes) and old:
        place, bit = chance.randrange(len(old)), 1 << chance.randrange(8)
        return old[:place] + bytes([old[place] ^ bit]) + old[place + 1 :]
    if isinstance(old, str) and old:
        place = chance.randrange(len(old))
        return old[:place] + chr(ord(old[place]) ^ 1) + old[place + 1 :]
    return (old or 0) + 1 if isinstance(old, (int, float, type(None))) else b"\1"


def _cut(old: Any, chance: random.Random) -> Any:
    return (
        old[: chance.randrange(len(old))] if isinstance(old, (bytes, str)) and old else old
    )


def _longer(old: Any, chance: random.Random) -> Any:
    more = chance.choice((1, 4, 8, 64))
    return old + chance.randbytes(more) if isinstance(old, bytes) else f"{old}{'x' * more}"


def _one_of(*values: Any) -> Change:
    return lambda old, chance: chance.choice(values)


def _zeros(old: Any, chance: random.Random) -> bytes:
    return bytes(len(old) if isinstance(old, bytes) else 8)


CHANGES: dict[str, Change] = {
    "nothing": _one_of(None),
    "text": _one_of("no such thing", "", "<script>alert(1)</script>"),
    "a blob": _one_of(b"", b"\0\xff\0\xff"),
    "zeros": _zeros,
    "NaN": _floats(float("nan")),
    "infinite numbers": _floats(float("inf")),
    "a small number": _one_of(-1, 0, 0.5),
    "an enormous number": _one_of(2**62, -(2**63), 1e308, float("inf")),
    "other JSON": _one_of("[]", "{}", "7", "null", "[[1]]", '{"a": NaN, "k": 1e999}'),
    "JSON too deep": _one_of("[" * 5000),
    "a bit more or less": _flipped,
    "a part": _cut,
    "something longer": _longer,
}
KINDS = {
    "emptied": 1,
    "dropped": 1,
    "a column renamed": 1,
    "a column dropped": 1,
    "rows deleted": 2,
    "cells changed": 12,
    "a column changed": 4,
    "cells swapped": 3,
    "given to another collection": 2,
    "rows doubled": 1,
}


class Harm:
    """One way to harm a table: the same seed, the same harm."""

    def __init__(self, conn: sqlite3.Connection, seed: int, table: str | None = None):
        self.conn, self.chance = conn, random.Random(seed)
        self.table = table or self.chance.choice(tables_of(conn))
        info = conn.execute(f"pragma table_info({db.quote(self.table)})").fetchall()
        self.columns = [row[1] for row in info]
        self.column = self.chance.choice(self.columns)
        if self.table.endswith("_collections") and self.column == "name":
            self.column = "metric"  # one name is as good as another
        [self.kind] = self.chance.choices(list(KINDS), list(KINDS.values()))
        self.change = self.chance.choice(list(CHANGES))
        rowless = conn.execute(
            "select sql like '%without rowid%' from sqlite_master where name = ?",
            (self.table,),
        ).fetchone()[0]
        keyed = sorted((row[5], row[1]) for row in info if row[5])
        self.key = [name for _, name in keyed] if rowless else ["rowid"]
        self.t, self.c = db.quote(self.table), db.quote(self.column)

    def __str__(self) -> str:
        said = f"{self.table}.{self.column}: {self.kind}"
        return said + f" to {self.change}" if "changed" in self.kind else said

    def do(self) -> None:
        """Raises sqlite3.Error where SQLite does not let it be done."""
        with db.transaction(self.conn):
            getattr(self, "_" + self.kind.replace(" ", "_"))()

    def _emptied(self) -> None:
        self.conn.execute(f"delete from {self.t}")

    def _dropped(self) -> None:
        self.conn.execute(f"drop table {self.t}")

    def _a_column_renamed(self) -> None:
        self.conn.execute(f"alter table {self.t} rename to moved")
        self.conn.execute(f"alter table moved rename column {self.c} to gone")
        self.conn.execute(f"alter table moved rename to {self.t}")

    def _a_column_dropped(self) -> None:
        names = [db.quote(name) for name in self.columns if name != self.column]
        self._as(f"select {', '.join(names) or '1 as x'} from {self.t}")

    def _rows_deleted(self) -> None:
        for row in self._some():
            self.conn.execute(f"delete from {self.t} where {self._is}", row)

    def _cells_changed(self) -> None:
        self._put(self._some())

    def _a_column_changed(self) -> None:
        self._put(self._rows())

    def _cells_swapped(self) -> None:
        rows = self._rows()
        if len(rows) < 2 or self.column in self.key:
            return
        one, other = self.chance.sample(rows, 2)
        first, second = self._cell(one), self._cell(other)
        self._loosen()
        for row, value in ((one, None), (other, first), (one, second)):
            self._update(row, value)

    def _given_to_another_collection(self) -> None:
        other = self.chance.choice((0, 2, 3, 4, 99))
        if "collection_id" in self.columns:
            self.conn.execute(
                f"update or ignore {self.t} set collection_id = ? where collection_id = 1",
                (other,),
            )
        elif "vectors_" in self.table:  # of another collection, and that one's here
            second = db.quote(re.sub(r"vectors_\d+", "vectors_3", self.table))
            self.conn.execute(f"create table kept as select * from {self.t}")
            self.conn.execute(f"delete from {self.t}")
            self.conn.execute(f"insert or ignore into {self.t} select * from {second}")
            self.conn.execute(f"delete from {second}")
            self.conn.execute(f"insert or ignore into {second} select * from kept")
            self.conn.execute("drop table kept")

    def _rows_doubled(self) -> None:
        self._as(f"select * from {self.t}")
        self.conn.execute(f"insert into {self.t} select * from {self.t}")

    def _as(self, select: str) -> None:
        """What is selected takes the table's place, without keys and indexes."""
        self.conn.execute(f"create table moved as {select}")
        self.conn.execute(f"drop table {self.t}")
        self.conn.execute(f"alter table moved rename to {self.t}")

    @property
    def _is(self) -> str:
        return " and ".join(f"{name} is ?" for name in self.key)

    def _rows(self) -> list[tuple]:
        """The keys of all rows."""
        sql = f"select {', '.join(self.key)} from {self.t}"
        return [tuple(row) for row in self.conn.execute(sql)]

    def _some(self) -> list[tuple]:
        rows = self._rows()
        return self.chance.sample(rows, min(len(rows), self.chance.choice((1, 1, 2, 5))))

    def _cell(self, row: tuple) -> Any:
        sql = f"select {self.c} from {self.t} where {self._is}"
        found = self.conn.execute(sql, row).fetchone()
        return found and found[0]

    def _put(self, rows: list[tuple]) -> None:
        self._loosen()
        for row in rows:
            self._update(row, CHANGES[self.change](self._cell(row), self.chance))

    def _update(self, row: tuple, value: Any) -> None:
        sql = f"update or ignore {self.t} set {self.c} = ? where {self._is}"
        self.conn.execute(sql, (value, *row))

    def _loosen(self) -> None:
        """Let the table take anything: no NOT NULL, no checks."""
        find = "select sql from sqlite_master where name = ?"
        sql = self.conn.execute(find, (self.table,)).fetchone()[0]
        sql = re.sub(r"\bnot null\b", "", sql, flags=re.I)
        sql = re.sub(r"check \([^()]*(\([^()]*\))?[^()]*\)", "", sql, flags=re.I)
        self.conn.execute("pragma writable_schema = on")
        self.conn.execute(
            "update sqlite_master set sql = ? where name = ?", (sql, self.table)
        )
        self.conn.execute("pragma writable_schema = reset")


def tables_of(conn: sqlite3.Connection) -> list[str]:
    """Our tables, the shadow tables of vec0 among them."""
    sql = (
        "select name from sqlite_master where type = 'table' and substr(name, 1, ?) = ? "
        "and sql not like 'create virtual%' order by name"
    )
    return [row[0] for row in conn.execute(sql, (len(db.PREFIX), db.PREFIX))]


# What is looked at


def said(name: str, path: Path, *arguments: object) -> Any:
    """A command's result. Raises Broken unless it is an answer or one line in words."""
    try:
        result = command(name, path, *arguments)
    except Exception:
        raise Broken(f"{name} {arguments}: {traceback.format_exc()}") from None
    if result.exit_code not in (0, 1) or "Traceback" in result.output:
        raise Broken(f"{name} {arguments}: {result.exit_code}: {result.output}")
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    if result.exit_code == 1 and name != "verify" and len(lines) != 1:
        raise Broken(f"{name} {arguments}: {result.output}")
    return result


def answers(path: Path) -> dict[str, Any]:
    """What is similar to a row, by command, in every collection; or an error's words."""
    found: dict[str, Any] = {}
    for table, name in COLLECTIONS:
        asked = ("--name", name, "-k", 99, "--json")
        found[f"{table} {name}"] = _hits(said("similar", path, table, 1, *asked))
    asked = ("--name", "default", "-k", 99, "--json", "--exact")
    found["images default exact"] = _hits(said("similar", path, "images", 5, *asked))
    return found


def _hits(done: Any) -> list[tuple] | str:
    return done.output if done.exit_code else _rows(json.loads(done.stdout))


def _rows(hits: list[dict[str, Any]]) -> list[tuple]:
    """In an order of their own where they are as near: that is by ids of ours."""
    rows = [(hit["pk"], round(hit["score"], 4), round(hit["distance"], 4)) for hit in hits]
    return sorted(rows, key=lambda row: (row[2], row[0]))


async def pages(path: Path, among: Sequence[str]) -> dict[str, Any]:
    """What pages answer: rows of those in JSON_PAGES, the status of others."""
    datasette = open_datasette(path, plugin={"history": True})
    found: dict[str, Any] = {}
    for page in among:
        try:
            response = await ask(datasette, page, ROOT)
        except Exception:
            raise Broken(f"{page}: {traceback.format_exc()}") from None
        text = response.text
        html = "html" in response.headers.get("content-type", "")
        live = html and "<script>alert(" in text
        if response.status_code == 500 or "Traceback" in text or live:
            words = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))
            raise Broken(f"{page}: {response.status_code}: {words[-600:]}")
        found[page] = response.status_code
        if page in JSON_PAGES and response.status_code == 200:
            found[page] = _rows(response.json()["rows"])
    return found


def ask_functions(path: Path) -> None:
    """The SQL functions answer, or fail in SQLite's own way."""
    with closing(sqlite3.connect(str(path))) as conn:
        conn.row_factory = sqlite3.Row
        prepare_connection(conn)
        for sql in FUNCTIONS:
            try:
                conn.execute(sql).fetchone()
            except sqlite3.Error:
                continue
            except Exception:
                raise Broken(f"{sql}: {traceback.format_exc()}") from None


def is_right(found: Any, true: list[tuple], known: bool) -> bool:
    """Whether an answer is the truth, an error, or a part of it with `verify` knowing."""
    if found == true or isinstance(found, (str, int)):
        return True
    places = [true.index(hit) if hit in true else -1 for hit in found]
    return known and -1 not in places and places == sorted(places)


def users_tables(path: Path) -> list[tuple]:
    with closing(sqlite3.connect(str(path))) as conn:
        both = ("select * from images order by id", "select * from works order by id")
        return [row for sql in both for row in conn.execute(sql)]


# Cases


@dataclass(frozen=True)
class Truth:
    """A sound database, and what it answers."""

    file: Path
    answers: dict[str, Any]
    pages: dict[str, Any]
    users: list[tuple]


def truth_of(file: Path) -> Truth:
    shown = asyncio.run(pages(file, JSON_PAGES))
    close_all()
    return Truth(file, answers(file), shown, users_tables(file))


@dataclass
class Outcome:
    """What became of a case: how it ended, and what `verify` says in the end."""

    harm: str
    end: str = "harmless"
    told: str = ""


def run_case(
    truth: Truth, path: Path, seed: int, *, table: str | None = None, looks: int = 5
) -> Outcome:
    """Harm, look, mend. Raises Broken, with the harm in its words."""
    shutil.copy(truth.file, path)
    with opened(path) as conn:
        harm = Harm(conn, seed, table)
        outcome = Outcome(str(harm))
        try:
            harm.do()
        except sqlite3.Error as error:
            return Outcome(str(harm), "not possible", str(error))
    try:
        _look(truth, path, random.Random(seed), looks, outcome)
    except Broken as broken:
        raise Broken(f"{harm}: {broken}") from None
    return outcome


def _look(
    truth: Truth, path: Path, chance: random.Random, looks: int, outcome: Outcome
) -> None:
    verified = said("verify", path)
    known = verified.exit_code == 1 or "was not looked into" in verified.output
    found = answers(path)
    for asked, true in truth.answers.items():
        if not is_right(found[asked], true, known):
            raise Broken(f"{asked}: {found[asked]}, not {true}; {verified.output}")
        if not known and found[asked] != true:
            raise Broken(f"verify finds nothing; {asked}: {found[asked]}")
    ask_functions(path)
    some = chance.sample(PAGES, looks)
    json_pages = chance.sample(JSON_PAGES, 1)
    try:
        shown = asyncio.run(pages(path, [*some, *json_pages]))
    finally:
        close_all()
    for page in json_pages:
        if not is_right(shown[page], truth.pages[page], known):
            raise Broken(f"{page}: {shown[page]}; {verified.output}")
    if verified.exit_code:
        _mend(truth, path, outcome)
    name, *arguments = chance.choice(COMMANDS)
    said(name, path, *arguments)
    if users_tables(path) != truth.users:
        raise Broken("a table of the user's was changed")


def _mend(truth: Truth, path: Path, outcome: Outcome) -> None:
    mended = said("verify", path, "--repair")
    left = said("verify", path)
    if left.exit_code != mended.exit_code:
        raise Broken(f"repair: {mended.output}, and then: {left.output}")
    if left.exit_code:
        outcome.end, outcome.told = "told", left.output
        if not any(word in left.output for word in ("remove", "only you", "Upgrade")):
            raise Broken(f"does not say what to do: {left.output}")
        return
    outcome.end = "mended"
    done = [said("embed", path, "--all"), said("embed", path, "--table", "works")]
    if "has no embeddings" in done[0].output:
        outcome.end = "mended without a collection"
        return
    if "roots.path" in outcome.harm and "name the folder" in done[0].output:
        outcome.end, outcome.told = "told", done[0].output  # which, only you know
        return
    if any(one.exit_code for one in done) or said("verify", path).exit_code:
        raise Broken(f"repair: {mended.output}, and then: {[one.output for one in done]}")
    after = answers(path)
    for asked, true in truth.answers.items():
        if isinstance(after[asked], str) and "has no" in after[asked]:
            outcome.end = "mended without a collection"  # whose row was gone
        elif after[asked] != true:
            raise Broken(f"repaired, but {asked}: {after[asked]}, not {true}")


def main() -> int:
    parser = options("damage", __doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--only", type=int, metavar="SEED", help="this case alone")
    chosen = parser.parse_args()
    report = Report("damage", chosen)
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        click.get_app_dir = lambda *_, **__: name  # nothing of the user's is touched
        (folder / "work").mkdir()
        path = folder / "work" / "gallery.db"
        truth = truth_of(make_everything(folder))
        trust.note_root(path, folder / "photos")
        first = chosen.seed if chosen.only is None else chosen.only
        for seed in range(first, first + (1 if chosen.only is not None else chosen.cases)):
            try:
                outcome = run_case(truth, path, seed)
                ends[outcome.end] += 1
                if chosen.only is not None:
                    print(outcome)
            except Exception as error:
                ends["broken"] += 1
                told = error if isinstance(error, Broken) else traceback.format_exc()
                report.failed(f"seed {seed}: {told}")
    return report.end(cases=sum(ends.values()), **ends)


if __name__ == "__main__":
    sqlite3.enable_callback_tracebacks(False)
    sys.exit(main())
