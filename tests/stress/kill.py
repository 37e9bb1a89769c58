"""Kill anywhere: commands are killed at random moments and run again.

A command runs in a forked child that ends by SIGKILL after a time drawn from what the
command takes undisturbed ("time"), before or after one of the statements that it gives
SQLite, vec0's own included ("statement"), or within a write to a file, which may be torn
then: the system lets no file of the process grow beyond a place, and ends it there
("write"). The same seed gives the same statements and places, whatever the machine.

What has to hold right after the kill, looked at in a copy, so that the command itself
finds what was left: the file is sound, `verify` finds nothing, the user's own tables are
as they were, and no child process lives on. Then the same command runs again; all is as
it is without any kill: rows, keys, hashes, vectors bit for bit, files in the folder.

    tests/stress/run kill                        1,000 kills
    tests/stress/run kill --only remove --kills 50

Everything is small, and cut into small steps, so that there are many moments. Forks, and
so not for Windows.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil
from conftest import make_photos, picture
from core import make_older
from datasette.cli import cli
from datasette.utils.sqlite import sqlite3

from datasette_image_similarity import database as db
from datasette_image_similarity import index
from datasette_image_similarity.encoders import hog
from datasette_image_similarity.verify import verify_database

from .report import Report, options

KINDS = ("time", "statement", "write")
PATIENCE = 300.0  # seconds for what takes less than two on an idle core
CHILDREN_END = 30.0  # seconds that child processes have to notice
VOLATILE = ("created_at", "updated_at", "embedded_at", "failed_at", "made_at", "built_at")
RANDOM = ("built", "mark")  # numbers drawn at random
OWN = """
create table notes (code text, number integer, page blob, note text, extra,
    primary key (code, number));
create index notes_note on notes (note);
create table words (word text primary key, meaning) without rowid;
create table log (at real, what);
create table shots (code text, number integer, photo blob, primary key (code, number));
create table scans (name text primary key, file text);
create view pages as select code, length(page) as bytes from notes;
create trigger logged after insert on notes begin
    insert into log values (1.5, new.code); end;
"""


@dataclass(frozen=True)
class Scenario:
    """A command, what it begins from, and whether it may simply be given again.

    `again` is false where another run would go on to do more: such a command is only
    repeated where the killed one had not done its work. `rounded` is true where the last
    bits of a vector depend on how many are computed at once.
    """

    name: str
    state: str
    command: str
    again: bool = True
    rounded: bool = False
    file: str = "gallery.db"  # the database that it writes to


BY_PATH = "--table scans --path-column file --root {photos}"
SCENARIOS = [
    Scenario("embed", "own", "embed {db} {photos} {hog} --label-from-folder"),
    Scenario("embed anew", "none", "embed {db} {photos} {hog} --metric l2"),
    Scenario("embed blobs", "own", "embed {db} {hog} --table shots --blob-column photo"),
    Scenario("embed paths", "own", f"embed {{db}} {{hog}} {BY_PATH}"),
    Scenario("embed csv", "own", "embed {db} {hog} --csv {csv} --path-column file"),
    Scenario(
        *("embed beside", "own", f"embed {{db}} {{hog}} {BY_PATH} --output {{beside}}"),
        file="beside.db",
    ),
    Scenario("embed dims", "own", "embed {db} {photos} {hog} --dims 8", rounded=True),
    Scenario("embed changes", "changed", "embed {db} {photos} {small} --prune"),
    Scenario("embed all", "several changed", "embed {db} --all {small}"),
    Scenario("embed another", "gallery", "embed {db} {photos} {hog} --fit crop --force"),
    Scenario("embed older", "older", "embed {db} {photos} {small} --force"),
    Scenario("index", "gallery", "index {db}"),
    Scenario("index anew", "full", "index {db} images --rebuild"),
    Scenario("index drop", "full", "index {db} images --drop"),
    Scenario("reduce", "gallery", "reduce {db} --dims 8 --to small"),
    Scenario("reduce in place", "full", "reduce {db} --dims 8 --replace", again=False),
    Scenario("train", "gallery", "train {db} --label label --dims 8 --epochs 3 --anyway"),
    Scenario("duplicates", "few", "duplicates {db}"),
    Scenario("duplicates anew", "several", "duplicates {db} images --name default"),
    Scenario("map", "gallery", "map {db} --method pca"),
    Scenario("map older", "older", "map {db} --method pca"),
    Scenario("map anew", "full", "map {db} images --method pca --seed 1"),
    Scenario("remove", "several", "remove --yes {db}"),
    Scenario("remove all", "gallery", "remove --yes {db}"),
    Scenario("remove one", "several", "remove --yes {db} images --name default"),
    Scenario("clusters", "several", "clusters {db} images --k 3"),
    Scenario("evaluate", "gallery", "evaluate {db} --label label", again=False),
    Scenario("repair", "damaged", "verify {db} --repair"),
    Scenario("export", "several", "export {db} images --vectors {folder}/out.parquet"),
    Scenario(
        "export pictures", "full", "export {db} images --like 1 --to {folder}/out.zip"
    ),
    Scenario("import", "exported", "import {db} {folder}/vectors.parquet"),
]
MODULES = (
    *("collection", "pipeline", "images", "vector_export", "vector_import"),
    *("learning.reduce", "learning.sample", "stores.moving", "explore.map"),
    *("explore.duplicates", "explore.clusters", "explore.evaluate", "explore.exports"),
)
LIBRARIES = {
    "embed": ("numpy",),
    "train": ("torch", "datasette_image_similarity.learning.train"),
    "clusters": ("sklearn.cluster",),
    "map": ("scipy.optimize", "PIL.Image"),
    "export": ("pyarrow.parquet",),
    "import": ("pyarrow.parquet",),
}
TORCH = ("train",)
SHORT = ("embed", "embed blobs", "index", "reduce", "map", "remove all", "duplicates")


class World:
    """A folder with a database, pictures and a configuration, put back for every run.

    It is always at the same place: who trusts a folder says so of a file at its place.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "trial"
        self.path = self.folder / "gallery.db"
        self.states = root / "states"
        os.environ["XDG_CONFIG_HOME"] = str(self.folder / "config")
        self.words = {
            "db": str(self.path),
            "folder": str(self.folder),
            "photos": str(self.folder / "photos"),
            "csv": str(self.folder / "list.csv"),
            "beside": str(self.folder / "beside.db"),
            "hog": "--model hog --batch-size 4 --workers 1",
            "small": "--batch-size 4 --workers 1",
        }

    def arguments(self, command: str) -> list[str]:
        words = command.split()
        for part in ("{hog}", "{small}"):
            if part in words:
                place = words.index(part)
                words[place : place + 1] = part.format(**self.words).split()
        return [word.format(**self.words) for word in words]

    def put_back(self, state: str, wal: bool) -> None:
        """The folder as it was in a state, its database with a log or without."""
        kept = self.state(state)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(kept, self.folder)
        if self.path.exists():
            with closing(sqlite3.connect(str(self.path))) as conn:
                conn.execute(f"pragma journal_mode = {'wal' if wal else 'delete'}")

    def state(self, name: str) -> Path:
        """The folder of a state, made when it is first asked for."""
        kept = self.states / name
        if not kept.exists():
            before, make = STATES[name]
            earlier = self.state(before) if before else None
            shutil.rmtree(self.folder, ignore_errors=True)
            if earlier:
                shutil.copytree(earlier, self.folder)
            make(self)
            shutil.copytree(self.folder, kept)
        return kept

    def did(self, command: str) -> None:
        ended = run(self.arguments(command), self.root / "output")
        if ended.status:
            raise RuntimeError(f"{command}: {ended.said}")

    def files(self) -> list[str]:
        """What lies in the folder, but for the pictures."""
        there = (path.relative_to(self.folder) for path in self.folder.rglob("*"))
        return sorted(str(path) for path in there if path.parts[0] != "photos")


def _photos(world: World) -> None:
    folder = make_photos(world.folder / "photos")
    (folder / "red" / "again.png").write_bytes((folder / "red" / "red-1.png").read_bytes())
    (folder / "broken.png").write_bytes(b"no picture")
    lines = [f"{n},photos/green/green-{n}.png,{n}" for n in range(8)]
    (world.folder / "list.csv").write_text("\n".join(["id,file,n", *lines]) + "\n")


def _own(world: World) -> None:
    """Tables of the user's own: keys, types and bytes of all kinds."""
    with closing(sqlite3.connect(str(world.path))) as conn:
        conn.executescript(OWN)
        for n in range(200):
            note = "\0 nothing \ufeff 𝄞 é" * (n % 5)
            row = (
                f"k{n % 7}",
                n,
                bytes(range(256)) * (n % 4),
                note,
                (None, 1.5, "", b"")[n % 4],
            )
            conn.execute("insert into notes values (?, ?, ?, ?, ?)", row)
            conn.execute("insert into words values (?, ?)", (f"w{n}", -n))
        conn.execute("delete from log where rowid % 3 = 0")
        for n, file in enumerate(sorted((world.folder / "photos").rglob("*.png"))):
            row = (f"s{n % 3}", n, file.read_bytes())
            conn.execute("insert into shots values (?, ?, ?)", row)
            place = str(file.relative_to(world.folder / "photos"))
            conn.execute("insert into scans values (?, ?)", (f"scan {n}", place))
        conn.commit()


def _gallery(world: World) -> None:
    world.did("embed {db} {photos} {hog} --label-from-folder")


def _full(world: World) -> None:
    """All that there can be of a collection."""
    for command in (
        "index {db}",
        "map {db} images --method pca",
        "duplicates {db} images",
        "clusters {db} images --k 4",
        "evaluate {db} images --label label",
    ):
        world.did(command)


def _changed(world: World) -> None:
    """Files came, went, changed and moved; so did rows."""
    photos = world.folder / "photos"
    for n in range(3):
        (photos / "red" / f"red-{n}.png").write_bytes(picture("blue", 50 + n))
        (photos / "green" / f"green-{n}.png").unlink()
        (photos / "blue" / f"blue-{n}.png").rename(photos / f"moved-{n}.png")
        (photos / f"new-{n}.png").write_bytes(picture("green", 60 + n))
    with closing(sqlite3.connect(str(world.path), isolation_level=None)) as conn:
        conn.execute("delete from images where id in (12, 13)")


def _damaged(world: World) -> None:
    """Items without vectors and vectors without items, in a full collection."""
    with closing(db.connect(world.path)) as conn:
        conn.execute("delete from _image_similarity_vectors_1 where id in (3, 4)")
        conn.execute("delete from _image_similarity_vectors_1_chunks where chunk_id = 2")
        conn.execute("delete from _image_similarity_items where id = 9")
        conn.execute("delete from images where id = 11")


STATES: dict[str, tuple[str, Callable[[World], None]]] = {
    "none": ("", _photos),
    "own": ("none", _own),
    "gallery": ("own", _gallery),
    "few": ("own", lambda world: world.did("embed {db} {photos}/red {hog}")),
    "full": ("gallery", _full),
    "several": ("full", lambda world: world.did("reduce {db} --dims 8 --to small")),
    "changed": ("full", _changed),
    "several changed": ("several", _changed),
    "older": ("gallery", lambda world: make_older(world.path, 2)),
    "damaged": ("full", _damaged),
    "exported": (
        "own",
        lambda world: (
            shutil.copyfile(world.path, world.folder / "kept.db"),
            world.did("embed {db} {photos} {hog}"),
            world.did("export {db} --vectors {folder}/vectors.parquet"),
            os.replace(world.folder / "kept.db", world.path),
        ),
    ),
}


# Running


@dataclass(frozen=True)
class Kill:
    """How a run is to end: after seconds, at a statement, or by a write beyond a place."""

    kind: str
    at: float

    def __str__(self) -> str:
        return f"{self.kind} {self.at:.4g}"


@dataclass(frozen=True)
class Ended:
    """How it ended: the exit status (negative for a signal), and what it said."""

    status: int
    said: str
    seconds: float
    left: int = 0  # child processes that lived on
    statements: tuple[int, ...] = ()  # of all, those around the beginning of a commit

    @property
    def killed(self) -> bool:
        return self.status in (-signal.SIGKILL, -signal.SIGXFSZ)


def run(arguments: list[str], output: Path, kill: Kill | None = None) -> Ended:
    """A command of ours in a child process, which may be killed."""
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        in_child(arguments, output, kill)
    if kill is not None and kill.kind == "time":
        time.sleep(kill.at)
        os.kill(child, signal.SIGKILL)  # it is there until it is waited for
    status = waited(child)
    seconds = time.monotonic() - started
    left = children_left(child)
    said = output.read_text(errors="replace")
    counted = output.with_suffix(".statements")
    statements = tuple(map(int, counted.read_text().split())) if counted.exists() else ()
    counted.unlink(missing_ok=True)
    return Ended(status, said, seconds, left, statements)


def waited(child: int) -> int:
    """The exit status of a child process. Raises RuntimeError when it does not end."""
    end = time.monotonic() + PATIENCE
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            raise RuntimeError("a command does not end")
        time.sleep(0.002)


def children_left(session: int) -> int:
    """How many processes of a session are there when they have had time to end."""
    end = time.monotonic() + CHILDREN_END
    while there := members(session):
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    for process in there:
        process.kill()
    return len(there)


def members(session: int) -> list[psutil.Process]:
    """The processes of a session that have not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != "zombie":
                found.append(process)
        except (OSError, psutil.Error):  # it has ended meanwhile
            continue
    return found


def in_child(
    arguments: list[str],
    output: Path,
    kill: Kill | None = None,
    ready: Callable[[], object] = lambda: None,
) -> NoReturn:
    """The command, in a session of its own, so that its children are known by it.

    `ready()` is called before it begins.
    """
    status = 1
    try:
        os.setsid()
        out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if kill is not None and kill.kind == "write":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(kill.at), int(kill.at)))
        counted = _trace(kill.at if kill is not None and kill.kind == "statement" else None)
        _small_steps()
        ready()
        try:
            cli.main(["image-similarity", *arguments], prog_name="datasette")
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
        if kill is None:
            text = " ".join(map(str, [counted.total, *sorted(counted.commits)]))
            output.with_suffix(".statements").write_text(text)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _small_steps() -> None:
    """So that two dozen pictures are many batches."""
    hog.HogEncoder.batch_size = 4
    index.LISTED_AT_ONCE = 4


class _Counted:
    """Counts the statements that SQLite begins, vec0's own included; kills at one."""

    def __init__(self, at: float | None) -> None:
        self.at, self.total = at, 0
        self.commits: set[int] = set()

    def __call__(self, statement: str) -> None:
        self.total += 1
        if self.total == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if statement.startswith("commit"):
            self.commits |= {self.total, self.total + 1}


def _trace(at: float | None) -> _Counted:
    counted, connect = _Counted(at), db.connect

    def connected(*arguments: Any, **options: Any) -> db.Connection:
        conn = connect(*arguments, **options)
        conn.set_trace_callback(counted)
        return conn

    db.connect = connected
    return counted


# Comparing


def own_tables(conn: sqlite3.Connection) -> dict[str, list[str]]:
    """All that is not ours in a database, byte by byte: schema, and rows with rowids."""
    sql = "select type, name, tbl_name, sql from sqlite_master order by type, name"
    found: dict[str, list[str]] = {"schema": []}
    for kind, name, table, made in conn.execute(sql).fetchall():
        if db.is_ours(table) or db.is_ours(name) or name.startswith("sqlite_"):
            continue
        found["schema"].append(f"{kind} {name} {made}")
        if kind == "table":
            found[name] = _rows(conn, name)
    return found


def _rows(conn: sqlite3.Connection, table: str) -> list[str]:
    info = conn.execute(f"pragma table_info({db.quote(table)})").fetchall()
    cells = " || ' ' || ".join(f"quote({db.quote(column[1])})" for column in info)
    from_table = f"from {db.quote(table)}"
    try:
        rows = conn.execute(f"select rowid || ' ' || {cells} {from_table}").fetchall()
    except sqlite3.OperationalError:  # WITHOUT ROWID
        rows = conn.execute(f"select {cells} {from_table}").fetchall()
    return sorted(row[0] for row in rows)


def our_tables(conn: sqlite3.Connection) -> dict[str, list[tuple]]:
    """All that is ours, but for times, durations and what is drawn at random."""
    sql = "select name from sqlite_master where type = 'table' and name like ?"
    names = [row[0] for row in conn.execute(sql, (f"{db.PREFIX}%",)).fetchall()]
    found = {}
    for name in names:
        rest = name.removeprefix(f"{db.PREFIX}vectors_")
        if rest != name and not rest.isdecimal():
            continue  # a part of a vec0 table
        info = conn.execute(f"pragma table_info({db.quote(name)})").fetchall()
        columns = [
            f"{db.quote(c[1])} is null" if c[1] in VOLATILE else db.quote(c[1])
            for c in info
            if c[1] not in RANDOM
            and (c[1] != "version" or name.endswith("_schema"))
            and (c[1] != "id" or not name.endswith("_failures"))
        ]
        rows = conn.execute(f"select {', '.join(columns)} from {db.quote(name)}")
        found[name] = sorted((_timeless(tuple(row)) for row in rows), key=repr)
    return found


def rounded(tables: dict[str, list[tuple]]) -> dict[str, list[tuple]]:
    """Vectors to two digits, and without their checksums."""

    def coarse(one: object) -> object:
        if isinstance(one, bytes):
            return tuple(np.frombuffer(one, "<f4").round(2))
        return one

    vectors = f"{db.PREFIX}vectors_"
    found = {}
    for name, rows in tables.items():
        if name.startswith(vectors):
            rows = sorted((tuple(map(coarse, row)) for row in rows), key=repr)
        elif name == f"{db.PREFIX}items":
            rows = sorted((row[:-1] for row in rows), key=repr)  # crc32 is the last column
        found[name] = rows
    return found


def _timeless(row: tuple) -> tuple:
    """JSON of ours may say how long something took."""
    took = re.compile(r'"(seconds|ms|milliseconds)": [0-9.e-]+')
    return tuple(took.sub("", one) if isinstance(one, str) else one for one in row)


@dataclass(frozen=True)
class Seen:
    """A database as it was found: what is wrong with it, and what it holds."""

    faults: list[str]
    own: dict[str, list[str]]
    ours: dict[str, list[tuple]]


def look(path: Path) -> Seen:
    if not path.exists():
        return Seen([], {}, {})
    with closing(db.connect(path)) as conn:
        whole = conn.execute("pragma integrity_check").fetchall()
        faults = [row[0] for row in whole if row[0] != "ok"]
        faults += [str(fault) for fault in verify_database(conn)]
        return Seen(faults, own_tables(conn), our_tables(conn))


def _kind(fault: str) -> str:
    """A fault without how often there is one."""
    return re.sub(r" \([\d,]+\)$", "", fault)


def own_in(path: Path) -> dict[str, list[str]]:
    with closing(db.connect(path)) as conn:
        return own_tables(conn)


def different(found: dict, wanted: dict) -> str | None:
    """The first table that differs, and by which rows; None where all are equal."""
    for name in sorted({*found, *wanted}):
        one, other = found.get(name), wanted.get(name)
        if one == other:
            continue
        if one is None or other is None:
            return f"{name} is {'missing' if one is None else 'there'}"
        extra = [row for row in one if row not in other]
        lacks = [row for row in other if row not in one]
        return (
            f"{name}: {len(extra)} other rows, such as {extra[:1]!r:.300}, "
            f"{len(lacks)} missing, such as {lacks[:1]!r:.300}"
        )
    return None


# One kill


@dataclass(frozen=True)
class Undisturbed:
    """A scenario without a kill: what there was before, and what came of it."""

    before: Seen
    after: Seen
    files: list[str]
    ended: Ended
    size: int  # of the greatest file
    own: dict[str, list[str]]  # in the database that the command was given


def undisturbed(world: World, scenario: Scenario, wal: bool, times: int) -> Undisturbed:
    """Run it, or better twice: what is not the same each time cannot be compared. Raises
    RuntimeError."""
    runs = []
    for _ in range(times):
        world.put_back(scenario.state, wal)
        path = world.folder / scenario.file
        before = look(path)
        ended = run(world.arguments(scenario.command), world.root / "output")
        if ended.status or ended.left:
            raise RuntimeError(f"{scenario.name}: {ended}")
        files, sizes = world.files(), [p.stat().st_size for p in world.folder.glob("*.*")]
        runs.append(
            Undisturbed(before, look(path), files, ended, max(sizes), own_in(world.path))
        )
    one, two = runs[0], runs[-1]
    change = different(one.after.ours, two.after.ours) or different(
        one.after.own, two.after.own
    )
    if change or one.after.faults:
        raise RuntimeError(f"{scenario.name}, undisturbed: {change or one.after.faults}")
    return one


def drawn(chance: random.Random, kind: str, usual: Undisturbed) -> Kill:
    """A moment of a kind, out of an undisturbed run."""
    if kind == "time":
        return Kill(kind, chance.uniform(0, usual.ended.seconds))
    if kind == "write":
        return Kill(kind, chance.randrange(1, usual.size))
    total, *commits = usual.ended.statements
    around = commits if commits and chance.random() < 0.5 else range(1, total + 1)
    return Kill(kind, chance.choice(around))


class Trial:
    """One kill of one scenario, and what is wrong after it."""

    def __init__(self, world: World, scenario: Scenario, usual: Undisturbed) -> None:
        self.world, self.scenario, self.usual = world, scenario, usual
        self.faults: list[str] = []
        self.arguments = world.arguments(scenario.command)

    def __call__(self, kill: Kill, wal: bool, peek: bool) -> bool:
        """Whether it was killed at all: it may have ended before."""
        world = self.world
        world.put_back(self.scenario.state, wal)
        ended = run(self.arguments, world.root / "output", kill)
        if not ended.killed:
            if ended.status:
                self.faults.append(f"exit status {ended.status}: {ended.said[-300:]}")
            return False
        if ended.left:
            self.faults.append(f"{ended.left} child processes live on")
        done = peek and self._look_at_copy()
        if self.scenario.again or not done:
            self._run_again(done)
        return True

    def _look_at_copy(self) -> bool:
        """See what the kill left, without mending it; whether all was done already."""
        copy = self.world.root / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(
            self.world.folder, copy, ignore=shutil.ignore_patterns("photos", "*-shm")
        )
        seen = look(copy / self.scenario.file)
        before, after = self.usual.before, self.usual.after
        if {*map(_kind, seen.faults)} - {*map(_kind, before.faults)}:
            self.faults.append(f"after the kill: {seen.faults}")
        for name in {*seen.own, *before.own}:
            if name in ("images", "schema"):
                known = {*before.own.get(name, ()), *after.own.get(name, ())}
                wrong = [row for row in seen.own.get(name, ()) if row not in known]
            else:
                wrong = seen.own.get(name) not in (
                    before.own.get(name),
                    after.own.get(name),
                )
            if wrong:
                self.faults.append(f"after the kill: {name} is another: {wrong!r:.300}")
        return not different(seen.ours, after.ours)

    def _run_again(self, done: bool) -> None:
        ended = run(self.arguments, self.world.root / "output")
        refused = ended.status == 1 and ended.said.startswith("Error: ")
        if ended.status and not refused:
            self.faults.append(f"run again: {ended.status} {ended.said[-300:]}")
        seen = look(self.world.folder / self.scenario.file)
        self.faults += [f"run again: {fault}" for fault in seen.faults]
        ours = seen.ours, self.usual.after.ours
        if self.scenario.rounded:
            ours = rounded(ours[0]), rounded(ours[1])
        for found, wanted in ((seen.own, self.usual.after.own), ours):
            if change := different(found, wanted):
                self.faults.append(f"run again: {change}; it said {ended.said[-200:]!r}")
        if own_in(self.world.path) != self.usual.own:
            self.faults.append("run again: tables of the database itself are others")
        if (files := self.world.files()) != self.usual.files:
            self.faults.append(f"files {set(files) ^ set(self.usual.files)}")
        if ended.left:
            self.faults.append(f"run again: {ended.left} child processes live on")


def kill_all(
    root: Path, scenarios: list[Scenario], options: argparse.Namespace, report: Report
) -> dict[str, Any]:
    """So many kills that hit, spread over the scenarios and kinds; the figures."""
    kills, seed, times = options.kills, options.seed, 1 if options.short else 2
    hits: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    missed = 0
    world = World(root)
    usual: dict[tuple[str, bool], Undisturbed] = {}
    for number, (scenario, kind, wal, chance) in enumerate(_plan(scenarios, kills, seed)):
        key = scenario.name, wal
        if key not in usual:
            try:
                usual[key] = undisturbed(world, scenario, wal, times)
            except RuntimeError as error:
                report.failed(str(error))
                continue
        while True:
            kill, peek = drawn(chance, kind, usual[key]), chance.random() < 0.5
            if kind == "time" and not scenario.again:
                peek = True
            trial = Trial(world, scenario, usual[key])
            hit = trial(kill, wal, peek or not scenario.again)
            for fault in trial.faults:
                report.failed(
                    f"seed {seed}, kill {number}: {scenario.name}, {kill}, "
                    f"{'with' if wal else 'without'} WAL: {fault}"
                )
            if hit:
                break
            missed += 1
        hits[scenario.name] += 1
        kinds[f"{kind}{', WAL' if wal else ''}"] += 1
        if sum(hits.values()) % 25 == 0:
            print(f"{sum(hits.values())} kills", file=sys.stderr, flush=True)
    return {
        "kills": sum(hits.values()),
        "ended before": missed,
        "kinds": dict(kinds),
        "commands": dict(hits),
    }


def _plan(
    scenarios: list[Scenario], kills: int, seed: int
) -> Iterator[tuple[Scenario, str, bool, random.Random]]:
    """The scenario, kind, journal and chance of each kill: all in turn, each kill with a
    chance of its own, so that one alone can be made again."""
    for number in range(kills):
        round, place = divmod(number, len(scenarios))
        chance = random.Random(f"{seed} {number}")
        kind = KINDS[(round + place) % len(KINDS)]
        wal = bool((round // len(KINDS) + place) % 2)  # for a round of all kinds
        yield scenarios[place], kind, wal, chance


def prepare(scenarios: list[Scenario]) -> None:
    """Import what the commands do, once and not in every child; with one thread, for
    forks and threads do not go together."""
    for threads in ("OMP", "OPENBLAS"):
        os.environ[f"{threads}_NUM_THREADS"] = "1"
    for name in MODULES:
        import_module(f"datasette_image_similarity.{name}")
    words = {word for one in scenarios for word in one.name.split()}
    for word in words & LIBRARIES.keys():
        for name in LIBRARIES[word]:
            import_module(name)


def main() -> int:
    parser = options("kill", __doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--only", help="of these commands, by the beginning of their names")
    parser.add_argument("--no-torch", action="store_true", help="not those that need torch")
    parser.add_argument("--short", action="store_true", help="one of each kind of command")
    chosen = parser.parse_args()
    scenarios = [
        one
        for one in SCENARIOS
        if one.name.startswith(chosen.only or "")
        and not (chosen.no_torch and one.name in TORCH)
        and (one.name in SHORT or not chosen.short)
    ]
    prepare(scenarios)
    report = Report("kill", chosen)
    with tempfile.TemporaryDirectory() as folder:
        figures = kill_all(Path(folder), scenarios, chosen, report)
    return report.end(**figures)


if __name__ == "__main__":
    sys.exit(main())
