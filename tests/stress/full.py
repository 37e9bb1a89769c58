"""The disk is full, or fails, at every stage of every command that writes.

Each case starts from a sound database, lets one command run where there is room for so
many pages more, or where the n-th write or sync of SQLite fails, and looks at what is left:
one line that says why, exit code 1, a sound file, the user's tables as they were or as the
command makes them; and with room again the same command ends as if nothing had been.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from conftest import make_photos, picture
from core import command, opened
from datasette.utils.sqlite import sqlite3

from datasette_image_similarity import database as db
from datasette_image_similarity import trust
from stress.report import Report, options

PAGE = 4096
ROOMY = 64 << 20  # bytes
VFS_SET = 18  # the word of sqlite3_vfs with xSetSystemCall
# What differs between two runs that end the same: times, and numbers drawn at random.
TIMES = (
    *("embedded_at", "made_at", "created_at", "updated_at", "built_at", "failed_at"),
    *("version", "built", "mark", "report", "searched_at", "clicked_at", "decided_at"),
    "saved_at",
)
WORDS = ("full", "disk reports an error", "cannot be written", "cannot be read")


class Broken(Exception):
    """What must not happen."""


# Commands


@dataclass(frozen=True)
class Step:
    """A command that writes; `{}` in its arguments is the folder of the database."""

    name: str
    arguments: tuple[str, ...]
    before: tuple[str, ...] = ()  # names of steps whose result it begins with


HOG = ("--model", "hog", "--workers", "1", "--batch-size", "4")
DB = "{}/gallery.db"
STEPS = (
    Step("embed", ("embed", DB, "{photos}", *HOG, "--label-from-folder")),
    Step("embed blobs", ("embed", DB, *HOG, "--table", "works", "--blob-column", "scan")),
    Step(
        "embed elsewhere",
        (
            "embed",
            DB,
            *HOG,
            "--table",
            "works",
            "--blob-column",
            "scan",
            "--output",
            "{}/o.db",
        ),
    ),
    Step(
        "embed a path column",
        (
            "embed",
            DB,
            *HOG,
            "--table",
            "paths",
            "--path-column",
            "file",
            "--root",
            "{photos}",
        ),
    ),
    Step("embed again", ("embed", DB, "{photos}", "--force", *HOG[2:]), ("embed",)),
    Step("prune", ("embed", DB, "{photos}/red", "--prune", *HOG[2:]), ("embed",)),
    Step("index", ("index", DB, "images"), ("embed",)),
    Step("index --drop", ("index", DB, "images", "--drop"), ("embed", "index")),
    Step("reduce", ("reduce", DB, "images", "--dims", "8", "--to", "small"), ("embed",)),
    Step(
        "reduce --replace", ("reduce", DB, "images", "--dims", "8", "--replace"), ("embed",)
    ),
    Step(
        "train",
        ("train", DB, "images", "--label", "label", "--to", "trained", "--epochs", "1"),
        ("embed",),
    ),
    Step("map", ("map", DB, "images", "--method", "pca"), ("embed",)),
    Step("duplicates", ("duplicates", DB, "images"), ("embed",)),
    Step("clusters", ("clusters", DB, "images", "--k", "3"), ("embed",)),
    Step("evaluate", ("evaluate", DB, "images", "--label", "label"), ("embed",)),
    Step("default", ("default", DB, "images", "default"), ("embed",)),
    Step("verify --repair", ("verify", DB, "--repair"), ("embed", "harm")),
    Step("remove", ("remove", "--yes", DB), ("embed", "index", "map")),
    Step("export", ("export", DB, "images", "--vectors", "{}/v.parquet"), ("embed",)),
    Step(
        "import",
        ("import", DB, "{}/v.parquet", "--table", "images", "--name", "again"),
        ("embed", "export"),
    ),
)


def prepare(folder: Path) -> None:
    """Pictures, and a database with tables that name and hold some of them."""
    make_photos(folder / "photos")
    (folder / "photos" / "red" / "broken.png").write_bytes(b"no picture")
    with opened(folder / "gallery.db") as conn, db.transaction(conn):
        conn.execute("create table works (id integer primary key, scan blob)")
        conn.execute("create table paths (name text primary key, file text)")
        for number in range(6):
            scan = picture("blue", number, (60, 60))
            conn.execute("insert into works (scan) values (?)", (scan,))
            paths = (f"no {number}", f"green/green-{number}.png")
            conn.execute("insert into paths values (?, ?)", paths)


def harm(folder: Path) -> None:
    """What `verify --repair` has to mend."""
    with opened(folder / "gallery.db") as conn:
        table = "_image_similarity_vectors_1"
        conn.execute(f"update {table}_chunks set validity = x'fe' where chunk_id = 1")


def arguments(step: Step, folder: Path, photos: Path) -> list[str]:
    return [
        one.replace("{}", str(folder)).replace("{photos}", str(photos))
        for one in step.arguments
    ]


@dataclass(frozen=True)
class Case:
    """A step with the files that it begins with, and what they hold when it has ended."""

    step: Step
    start: Path  # a folder
    end: dict[str, Any]
    grows: int  # pages that the files grow by

    def restore(self, folder: Path) -> None:
        gc.collect()  # a connection that an exception still holds has its file open
        for old in folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for file in self.start.iterdir():
            shutil.copy(file, folder / file.name)


def make_cases(folder: Path, only: Container[str]) -> Iterator[Case]:
    """Each of these steps, run undisturbed once."""
    base = folder / "base"
    base.mkdir()
    prepare(base)
    photos = (base / "photos").rename(folder / "photos")
    work = folder / "work"
    for step in STEPS:
        if step.name not in only:
            continue
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        trust.note_root(work / "gallery.db", str(photos))
        shutil.copy(base / "gallery.db", work / "gallery.db")
        for name in step.before:
            if name == "harm":
                harm(work)
            else:
                run(next(one for one in STEPS if one.name == name), work, photos)
        start = folder / step.name.replace(" ", "-")
        shutil.copytree(work, start)
        before = size(work)
        done = run(step, work, photos)
        if done.exit_code:
            raise RuntimeError(f"{step.name}: {done.output}")
        yield Case(step, start, state(work), max(4, (size(work) - before) // PAGE))


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def run(step: Step, folder: Path, photos: Path) -> Any:
    """The command's result. Raises Broken for an exception that no line tells of."""
    try:
        return command(*arguments(step, folder, photos))
    except Exception:
        raise Broken(traceback.format_exc()) from None


def state(folder: Path) -> dict[str, Any]:
    """All that the databases of a folder hold, and which other files there are."""
    found: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix != ".db":
            found[file.name] = "there"
            continue
        with opened(file) as conn:
            names = conn.execute(
                "select name from sqlite_master where type = 'table' and name not like "
                "'sqlite_%' and not (name like '%vectors\\__\\_%' escape '\\')"
            ).fetchall()
            for (name,) in names:
                info = conn.execute(f"pragma table_info({db.quote(name)})").fetchall()
                columns = [db.quote(row[1]) for row in info if row[1] not in TIMES]
                if name == "_image_similarity_failures":
                    columns.remove('"id"')
                if not columns:
                    continue
                rows = conn.execute(
                    f"select {', '.join(columns)} from {db.quote(name)}"
                ).fetchall()
                found[f"{file.name} {name}"] = sorted(map(tuple, rows), key=repr)
    return found


# Disks


@contextmanager
def tmpfs(folder: Path) -> Iterator[Path]:
    """An empty file system in memory, as large as is said by `resize()`. Needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield folder
    finally:
        gc.collect()
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount(folder: Path) -> bool:
    try:
        with tmpfs(folder):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def resize(folder: Path, bytes: int) -> None:
    option = f"remount,size={bytes}"
    subprocess.run(["mount", "-o", option, str(folder)], check=True)


WORD, INT, SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_ssize_t
CALLS = {  # what it returns, what it takes, how it may fail
    "pwrite": (
        (SIZE, INT, WORD, ctypes.c_size_t, ctypes.c_int64),
        (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG),
    ),
    "pread": ((SIZE, INT, WORD, ctypes.c_size_t, ctypes.c_int64), (errno.EIO,)),
    "ftruncate": ((INT, INT, ctypes.c_int64), (errno.EIO,)),
    "unlink": ((INT, ctypes.c_char_p), (errno.EIO,)),
}
OFTEN = ("pwrite", "pwrite", "pwrite", "pread", "ftruncate", "unlink")


class Disk:
    """SQLite's system calls, so that one of them fails: no privileges are needed.

    SQLite lets its VFS be told other functions to call in place of the system's.
    """

    def __init__(self) -> None:
        package = "" if sqlite3.__name__ == "sqlite3" else f"{sqlite3.__name__}."
        library = ctypes.CDLL(sys.modules[f"{package}_sqlite3"].__file__)
        library.sqlite3_vfs_find.restype = ctypes.c_void_p
        self.vfs = library.sqlite3_vfs_find(None)
        pointers = ctypes.cast(self.vfs, ctypes.POINTER(ctypes.c_void_p))
        set_call = ctypes.CFUNCTYPE(INT, WORD, ctypes.c_char_p, WORD)
        get_call = ctypes.CFUNCTYPE(WORD, WORD, ctypes.c_char_p)
        self._set, self._get = set_call(pointers[VFS_SET]), get_call(pointers[VFS_SET + 1])
        self.count: Counter[str] = Counter()

    @contextmanager
    def failing(self, call: str, number: int, error: int, forever: bool) -> Iterator[None]:
        """The `number`-th call fails, and all after it if `forever`."""
        self.count[call] = 0
        kind = ctypes.CFUNCTYPE(*CALLS[call][0], use_errno=True)
        # Debian's SQLite is built with the calls for files of any size.
        name = next(n for n in (call.encode() + b"64", call.encode()) if self._has(n))
        true = kind(self._get(self.vfs, name))

        def instead(*given: Any) -> int:
            self.count[call] += 1
            if self.count[call] == number or (forever and self.count[call] > number):
                ctypes.set_errno(error)
                return -1
            return true(*given)

        kept = kind(instead)
        self._set(self.vfs, name, ctypes.cast(kept, ctypes.c_void_p))
        try:
            yield
        finally:
            self._set(self.vfs, name, None)

    def _has(self, name: bytes) -> bool:
        return bool(self._get(self.vfs, name))


@contextmanager
def pages_at_most(grow: int) -> Iterator[None]:
    """Databases may grow by so many pages: to SQLite that is a full disk."""
    connect = db.connect

    def connecting(*given: Any, **named: Any) -> sqlite3.Connection:
        conn = connect(*given, **named)
        pages = conn.execute("pragma page_count").fetchone()[0]
        conn.execute(f"pragma max_page_count = {pages + grow}")
        return conn

    db.connect = connecting
    try:
        yield
    finally:
        db.connect = connect


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A file system that nobody may write to, not even root."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


@contextmanager
def small(folder: Path, bytes: int) -> Iterator[None]:
    resize(folder, bytes)
    try:
        yield
    finally:
        resize(folder, ROOMY)


# Cases


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the disk, while `meanwhile` is entered."""

    kind: str
    said: str
    meanwhile: Any


def draw_fault(
    case: Case, place: Path, disk: Disk, mounted: bool, chance: random.Random
) -> Fault:
    """At any stage: from no room at all to all but the last page."""
    kinds = ["pages", "call", "call"] + (["tmpfs", "tmpfs", "read-only"] * mounted)
    kind = chance.choice(kinds)
    if kind == "read-only":
        return Fault(kind, "a read-only file system", read_only(place))
    if kind == "tmpfs":
        pages = chance.randrange(2 * case.grows + 20)  # the journal needs room as well
        there = os.statvfs(place)
        used = there.f_blocks - there.f_bfree
        meanwhile = small(place, (used + pages) * PAGE)
        return Fault(kind, f"a file system with room for {pages} pages", meanwhile)
    if kind == "pages":
        pages = chance.randrange(case.grows + 2)
        return Fault(kind, f"{pages} pages more at most", pages_at_most(pages))
    call = chance.choice(OFTEN)
    number = chance.randrange(1, 3 * case.grows + 20)
    error = chance.choice(CALLS[call][1])
    forever = chance.random() < 0.7
    said = f"{call} {number} fails with {errno.errorcode[error]}"
    meanwhile = disk.failing(call, number, error, forever)
    return Fault(kind, said + " and all after it" * forever, meanwhile)


def run_case(case: Case, place: Path, photos: Path, fault: Fault) -> str:
    """Run a step while the disk fails, and then with room: "ended" or "refused".

    Raises Broken.
    """
    with fault.meanwhile:
        done = run(case.step, place, photos)
    if done.exit_code:
        _check_words(done)
    for file in place.glob("*.db"):
        with opened(file) as conn:
            sound = conn.execute("pragma integrity_check").fetchone()[0]
        if sound != "ok":
            raise Broken(f"{file.name}: {sound}")
    if "harm" not in case.step.before:
        verified = command("verify", place / "gallery.db")
        if verified.exit_code:
            raise Broken(f"verify: {verified.output}")
    if done.exit_code:
        again = run(case.step, place, photos)
        if again.exit_code:
            raise Broken(f"with room: {again.output}; before: {done.output}")
    now = state(place)
    if now != case.end:
        differ = [n for n in {*now, *case.end} if now.get(n) != case.end.get(n)]
        raise Broken(f"another result after {done.output[-200:]!r}: {differ}")
    return "refused" if done.exit_code else "ended"


def _check_words(done: Any) -> None:
    errors = [one for one in done.output.splitlines() if one.startswith("Error: ")]
    if done.exit_code != 1 or len(errors) != 1 or "Traceback" in done.output:
        raise Broken(f"exit code {done.exit_code}: {done.output}")
    if not any(word in errors[0] for word in WORDS):
        raise Broken(f"does not say why: {errors[0]}")


@contextmanager
def workplace(folder: Path) -> Iterator[tuple[Path, bool]]:
    """A folder to run steps in, and whether it is a file system of its own."""
    place = folder / "disk"
    mounted = may_mount(place)
    with tmpfs(place) if mounted else ExitStack():
        trust.note_root(place / "gallery.db", str(folder / "photos"))
        yield place, mounted


def main() -> int:
    parser = options("full", __doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=100, help="cases a command")
    parser.add_argument(
        "--only", metavar="COMMAND", help="this one alone, as a failure says"
    )
    chosen = parser.parse_args()
    report = Report("full", chosen)
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name, workplace(Path(name)) as (place, mounted):
        click.get_app_dir = lambda *_, **__: name  # nothing of the user's is touched
        trust.note_root(place / "gallery.db", str(Path(name) / "photos"))
        disk, photos = Disk(), Path(name) / "photos"
        names = [chosen.only] if chosen.only else [step.name for step in STEPS]
        for case in make_cases(Path(name), names):
            for number in range(chosen.each):
                chance = random.Random(f"{chosen.seed} {case.step.name} {number}")
                case.restore(place)
                fault = draw_fault(case, place, disk, mounted, chance)
                try:
                    ends[f"{fault.kind}: {run_case(case, place, photos, fault)}"] += 1
                except Exception as error:
                    ends["broken"] += 1
                    told = error if isinstance(error, Broken) else traceback.format_exc()
                    report.failed(f"{case.step.name}, {number}, {fault.said}: {told}")
    return report.end(cases=sum(ends.values()), mounted=mounted, **ends)


if __name__ == "__main__":
    sys.exit(main())
