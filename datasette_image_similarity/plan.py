"""What there is to do: the pictures of a source against the items that are stored.

A million pictures cost a lookup for every few hundred of them, and no memory: what has
to be looked at waits in a temporary table, in SQLite's own temporary file, and what was
met is noted in another. Nothing here writes to the database itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from datasette.utils.sqlite import sqlite3

from . import database as db
from .formats import remedy
from .pipeline import Job
from .roots import Root, as_root, is_address, place
from .sources import Picture

AT_ONCE = 500  # pictures a query: SQLite may be built for 999 parameters
JOBS = f"temp.{db.PREFIX}jobs"
TAKEN = 8  # jobs that are taken at once
FIRST = -(2**62)  # before all jobs
SEEN = f"temp.{db.PREFIX}seen"


class Item(NamedTuple):
    """What is stored of a picture."""

    id: int
    pk: db.Key
    root: int | None  # id of the root folder
    path: str | None
    size: int
    mtime_ns: int | None
    sha256: str


def untouched(picture: Picture, item: Item) -> bool:
    """Whether a file is as it was, going by size and time. BLOBs have no time.

    Nor have addresses, which are taken at their word: what was fetched from one once is
    fetched again only where somebody asks for it.
    """
    if picture.problem is None and picture.file is not None and is_address(picture.file):
        return picture.path == item.path
    return (
        picture.problem is None
        and picture.mtime_ns is not None
        and (picture.path, picture.size, picture.mtime_ns)
        == (item.path, item.size, item.mtime_ns)
    )


def chunks(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """Pictures that are looked up together: those of a chunk have one root."""
    pictures = iter(pictures)
    while chunk := list(islice(pictures, AT_ONCE)):
        start = 0
        for end, picture in enumerate(chunk):
            if picture.root is not chunk[start].root:
                yield chunk[start:end]
                start = end
        yield chunk[start:]


class Stored:
    """The items of a collection, found by their files or by their rows."""

    def __init__(self, conn: sqlite3.Connection, collection: db.Collection) -> None:
        self._conn = conn
        self._collection = collection
        self.roots = db.roots(conn, collection)
        conn.execute(f"drop table if exists {SEEN}")
        conn.execute(f"create table {SEEN} (id integer primary key)")

    def items(self, pictures: list[Picture]) -> list[Item | None]:
        """The item of each picture of a chunk. They have been met: see `gone()`."""
        items = self.find(pictures)
        met = [(item.id,) for item in items if item is not None]
        _insert(self._conn, f"insert or ignore into {SEEN} values (?)", met)
        return items

    def find(self, pictures: list[Picture]) -> list[Item | None]:
        """The item of each picture of a chunk, as it is now.

        A file goes by its place: it may be known from a folder around the one that was
        listed, or from inside it. A row goes by its key.
        """
        if self._collection.source == "folder":
            places = [place(picture.root, picture.path) for picture in pictures]
            found = self._at(pictures[0].root, places)
            return [found.get(one) for one in places]
        keys = [picture.pk for picture in pictures]
        found = {item.pk: item for item in self._select("pk", keys)}
        return [found.get(key) for key in keys]

    def find_all(self, pictures: Iterable[Picture]) -> list[Item | None]:
        """As `find()`, of pictures of several roots; another run may have added some."""
        self.roots = db.roots(self._conn, self._collection)
        return [item for chunk in chunks(pictures) for item in self.find(chunk)]

    def _at(self, listed: Root, places: list[str]) -> dict[str, Item]:
        """Items by the places of their files, which all lie in the folder `listed`."""
        found: dict[str, Item] = {}
        inner = place(listed, "")
        for id, root in self.roots.items():
            outer = place(root, "")
            if not (outer.startswith(inner) or inner.startswith(outer)):
                continue
            paths = [p.removeprefix(outer) for p in places if p.startswith(outer)]
            if paths:
                items = self._select("path", paths, id)
                found |= {f"{outer}{item.path}": item for item in items}
        return found

    def _select(self, column: str, values: list, root: int | None = None) -> list[Item]:
        where = f"collection_id = ? and {column} in ({', '.join('?' * len(values))})"
        if root is not None:
            where = f"root_id = {int(root)} and {where}"
        rows = self._conn.execute(
            "select id, pk, root_id, path, size, mtime_ns, sha256 "
            f"from _image_similarity_items where {where}",
            (self._collection.id, *values),
        )
        return [Item(*row) for row in rows.fetchall()]

    def unmet(self) -> Iterator[tuple[Item, str]]:
        """Items whose file was not met, and its place; but for those of a kind that only a
        missing extra would look for."""
        rows = self._conn.execute(
            "select id, pk, root_id, path, size, mtime_ns, sha256 "
            "from _image_similarity_items i "
            "where collection_id = ? and root_id is not null "
            f"and not exists (select 1 from {SEEN} s where s.id = i.id)",
            (self._collection.id,),
        ).fetchall()
        for item in map(Item._make, rows):
            missing_extra = remedy(os.path.splitext(item.path)[1])
            if item.root in self.roots and missing_extra is None:
                yield item, place(self.roots[item.root], item.path)


class Queue:
    """Jobs that wait, in a temporary table. Iterating takes them out, in order."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn
        self._last = FIRST
        conn.execute(f"drop table if exists {JOBS}")
        conn.execute(
            f"create table {JOBS} (n integer primary key, item, sha256, pk, path, root, "
            "file, size, mtime_ns, problem, missing, last)"
        )

    def add(self, jobs: Iterable[tuple[Job, bool]]) -> None:
        """Put jobs at the end; a true value says to leave it out first (see `cut`)."""
        rows = (
            (
                *(job.item, job.sha256, picture.pk, picture.path),
                None if picture.root is None else str(picture.root),
                None if picture.file is None else os.fsencode(picture.file),
                *(picture.size, picture.mtime_ns, picture.problem, picture.missing, last),
            )
            for job, last in jobs
            for picture in (job.picture,)
        )
        _insert(
            self._conn,
            f"insert into {JOBS} (item, sha256, pk, path, root, file, size, mtime_ns, "
            f"problem, missing, last) values ({', '.join('?' * 11)})",
            rows,
        )

    def cut(self, count: int) -> None:
        """Keep so many at most."""
        self._conn.execute(
            f"delete from {JOBS} where n not in "
            f"(select n from {JOBS} order by last, n limit ?)",
            (count,),
        )

    def put_first(self, count: int) -> None:
        """Have so many jobs from all over the queue come first, in their order.

        For an encoder that learns from the first pictures what the others are like.
        """
        total = len(self)
        if not 0 < count < total:
            return
        self._conn.execute(
            f"update {JOBS} set n = n - (select max(n) from {JOBS}) where n in (select n "
            f"from (select n, row_number() over (order by n) - 1 as i from {JOBS}) "
            "where i = 0 or i * :count / :total > (i - 1) * :count / :total)",
            {"count": count, "total": total},
        )

    def __len__(self) -> int:
        return self._conn.execute(f"select count(*) from {JOBS}").fetchone()[0]

    # Pictures that are not known: see moves.py

    def new(self) -> Iterator[tuple[int, Picture]]:
        """Their numbers and themselves, in order, as they are when they are met."""
        last = FIRST
        sql = (
            f"select * from {JOBS} where item is null and problem is null and n > ? "
            f"order by n limit {AT_ONCE}"
        )
        while rows := self._conn.execute(sql, (last,)).fetchall():
            for row in rows:
                yield row["n"], _job(row).picture
            last = rows[-1]["n"]

    def has_new(self) -> bool:
        sql = f"select exists (select 1 from {JOBS} where item is null and problem is null)"
        return bool(self._conn.execute(sql).fetchone()[0])

    def new_sizes(self) -> set[int]:
        sql = f"select distinct size from {JOBS} where item is null and problem is null"
        return {row[0] for row in self._conn.execute(sql)}

    def new_of_size(self, size: int) -> list[tuple[str, str]]:
        """Roots and paths of those of a size."""
        self._index("size")
        sql = f"select root, path from {JOBS} where item is null and size = ?"
        return [tuple(row) for row in self._conn.execute(sql, (size,)).fetchall()]

    def join_new(
        self, root: str, prefix: str, where: str, values: dict[str, object]
    ) -> Pairs:
        """Items and those that have their paths in another folder."""
        self._index("path")
        joined = (
            f"from _image_similarity_items i join {JOBS} j on j.root = :listed "
            "and j.path = :put || substr(i.path, :skip + 1) and j.item is null "
            f"where {where}"
        )
        return Pairs(self._conn, joined, {**values, "listed": root, "put": prefix})

    def record_at(self, old: tuple[Root, str], new: tuple[Root, str]) -> None:
        """Have the pictures of one folder be recorded at another root, with another
        beginning of their paths."""
        self._conn.execute(
            f"update {JOBS} set root = ?, path = ? || substr(path, ?) "
            "where root = ? and substr(path, 1, ?) = ?",
            (
                *(str(new[0]), new[1], len(old[1]) + 1),
                *(str(old[0]), len(old[1]), old[1]),
            ),
        )

    def settle(self, jobs: Iterable[tuple[int, Job | None]]) -> None:
        """Put jobs in the place of those with these numbers; None is for nothing to do."""
        for number, job in jobs:
            if job is None:
                self._conn.execute(f"delete from {JOBS} where n = ?", (number,))
            else:
                picture = job.picture
                self._conn.execute(
                    f"update {JOBS} set item = ?, sha256 = ?, path = ?, root = ? "
                    "where n = ?",
                    (job.item, job.sha256, picture.path, str(picture.root), number),
                )

    def _index(self, column: str) -> None:
        self._conn.execute(
            f"create index if not exists {JOBS}_{column} "
            f"on {JOBS.removeprefix('temp.')} ({column})"
        )

    def readable(self) -> bool:
        """Whether any of them is not known to fail."""
        sql = f"select exists (select 1 from {JOBS} where problem is null)"
        return bool(self._conn.execute(sql).fetchone()[0])

    def __iter__(self) -> Iterator[Job]:
        while jobs := self.take():
            yield from jobs

    def take(self) -> list[Job]:
        """The next jobs, which wait no more; none when all have been taken."""
        sql = f"select * from {JOBS} where n > ? order by n limit {TAKEN}"
        rows = self._conn.execute(sql, (self._last,)).fetchall()
        if not rows and self._last != FIRST:
            self._last = FIRST  # what was jumped over
            return self.take()
        if rows:
            ends = self._last, rows[-1]["n"]
            self._conn.execute(f"delete from {JOBS} where n > ? and n <= ?", ends)
            self._last = rows[-1]["n"]
        return list(map(_job, rows))

    def jump(self) -> None:
        """Go on at a place drawn at random, and come back for what is before it."""
        sql = f"select n from {JOBS} order by random() limit 1"
        for row in self._conn.execute(sql).fetchall():
            self._last = row["n"] - 1


class Pairs:
    """Items, each with a file in the queue that has its path."""

    def __init__(
        self, conn: sqlite3.Connection, joined: str, values: dict[str, object]
    ) -> None:
        self._conn, self._joined, self._values = conn, joined, values
        self.count: int = conn.execute(f"select count(*) {joined}", values).fetchone()[0]

    def sample(self, count: int) -> list[tuple[str, int, str, int]]:
        """Of so many of them SHA-256 and size, then place and size of the file."""
        rows = self._conn.execute(
            f"select i.sha256, i.size, j.file, j.size {self._joined} "
            f"order by i.sha256 limit {int(count)}",
            self._values,
        )
        return [(sha, size, os.fsdecode(file), now) for sha, size, file, now in rows]


def _insert(conn: sqlite3.Connection, sql: str, rows: Iterable[tuple]) -> None:
    """Insert rows into a temporary table, which takes no lock on the database."""
    conn.execute("begin")
    try:
        conn.executemany(sql, rows)
    finally:
        conn.execute("commit")


@lru_cache(maxsize=16)
def folder(root: str) -> Root:
    return as_root(root)


def _job(row: sqlite3.Row) -> Job:
    picture = Picture(
        pk=row["pk"],
        path=row["path"],
        root=None if row["root"] is None else folder(row["root"]),
        file=None if row["file"] is None else os.fsdecode(row["file"]),
        size=row["size"],
        mtime_ns=row["mtime_ns"],
        problem=row["problem"],
        missing=bool(row["missing"]),
    )
    return Job(picture, row["item"], row["sha256"])


def folders_of(place: str) -> Iterator[str]:
    """The folders that a place lies in, from the inside out."""
    while "/" in place:
        place = place.rpartition("/")[0]
        yield place
