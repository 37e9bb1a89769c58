"""Files that are known already, at a new place: their rows stay.

`embed.py` asks, once it has listed what is there: under which root a folder is recorded, so
that paths tell files apart; which library has moved as a whole; and which of several
identical files is which after they were renamed. A `Spot` is where a folder is recorded.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datasette.utils.sqlite import sqlite3

from . import database as db
from .choosing import Choice, RunSettings
from .errors import ImageError
from .plan import Queue
from .roots import BucketRoot, Root, as_root, contains, place
from .sources import Picture

SAMPLE = 64  # pictures by which a new place of a library is looked for
PLACES = 8  # that hold files of the same names and sizes, and are looked into
READ = 32  # pictures whose bytes have to confirm it
MOST_PAIRS = 20_000  # of identical files that are weighed one by one
Read = Callable[[str], bytes]  # the bytes at a picture's real place; raises ImageError


class Spot(NamedTuple):
    """A folder, as files in it are recorded: a root, and what their paths begin with."""

    root: Root
    prefix: str = ""  # ends in "/" unless it is empty

    def __str__(self) -> str:
        below = self.prefix.removesuffix("/")
        if not below:
            return str(self.root)
        is_local = isinstance(self.root, Path)
        return str(self.root / below) if is_local else f"{self.root}/{below}"


def is_there(root: Root) -> bool:
    """Whether a folder holds anything of its owner's. The mount point of a drive that is
    not mounted is there, but empty. What is not on this computer is taken to be there."""
    if not isinstance(root, Path):
        return True
    choice = Choice()
    try:
        with os.scandir(root) as entries:
            return any(
                choice.why(one.name, one.name, folder=True) is None for one in entries
            )
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # it cannot be looked into


def away(conn: sqlite3.Connection, collection: db.Collection) -> dict[str, int]:
    """Folders of this computer that are not there, with how many pictures are in each."""
    if collection.source == "blob":
        return {}
    found = {}
    for spot in spots(conn, collection):
        is_local = isinstance(spot.root, Path) and not str(spot).startswith(("//", "\\\\"))
        if is_local and not is_there(Path(str(spot))):
            count = count_under(conn, collection, spot)
            if count:
                found[str(spot)] = count
    return found


def spots(conn: sqlite3.Connection, collection: db.Collection) -> list[Spot]:
    """Where the folders that `embed` was told of are recorded; without a note of them, as
    in databases of earlier versions, the roots."""
    recorded = db.roots(conn, collection).values()
    roots = [as_root(one) for one in recorded if isinstance(one, str)]
    told = RunSettings.of(partial(db.run_setting, conn, collection)).folders
    found = []
    for folder in map(as_root, told):
        around = sorted((root for root in roots if contains(root, folder)), key=_length)
        places = [inside(Spot(root), folder) for root in reversed(around)]
        if len(places) > 1:  # which of them it is, its pictures know
            holds = (one for one in places if count_under(conn, collection, one))
            places = [next(holds, places[0])]
        found += places
    return found + [Spot(root) for root in roots if all(root != one.root for one in found)]


def known_spots(conn: sqlite3.Connection, table: str) -> list[Spot]:
    """The same for all collections over a table of files that hold any."""
    if not db.table_exists(conn, f"{db.PREFIX}roots"):
        return []
    found = {
        spot: None
        for collection in db.collections(conn, table)
        if collection.source == "folder"
        for spot in spots(conn, collection)
        if count_under(conn, collection, spot)
    }
    return list(found)


def as_known(file: Root, folders: Iterable[str]) -> Root:
    """A folder or file as earlier runs called it, where a link gives it another name."""
    if isinstance(file, Path):
        absolute, real = os.path.abspath(file), os.path.realpath(file)
        known = [one for one in folders if os.path.isabs(one)]
        if not any(contains(one, absolute) for one in known):
            for one in known:
                if contains(os.path.realpath(one), real):
                    return Path(one, os.path.relpath(real, os.path.realpath(one)))
    return file


def inside(spot: Spot, folder: Root | Spot) -> Spot:
    """Where a folder below a spot, or it itself, is recorded with it."""
    return Spot(spot.root, place(str(folder), "").removeprefix(place(spot.root, "")))


def _length(root: Root) -> int:
    return len(str(root))


def count_under(conn: sqlite3.Connection, collection: db.Collection, spot: Spot) -> int:
    """How many items lie in a folder."""
    where, values = _under(collection, spot)
    sql = f"select count(*) from _image_similarity_items i where {where}"
    return conn.execute(sql, values).fetchone()[0]


def _under(collection: db.Collection, spot: Spot) -> tuple[str, dict[str, object]]:
    """SQL condition on items `i` for those in a folder, and its parameters."""
    return (
        "i.collection_id = :collection and i.root_id = (select id "
        "from _image_similarity_roots where collection_id = :collection and path = :old) "
        "and substr(i.path, 1, :skip) = :prefix",
        {
            "collection": collection.id,
            "old": str(spot.root),
            "skip": len(spot.prefix),
            "prefix": spot.prefix,
        },
    )


# Under which root


def recorded_at(
    folders: Iterable[Root], known: list[Spot], taken: Callable[[str], bool]
) -> dict[Root, Spot]:
    """Where the files of each folder are to be recorded, so that paths tell them apart.

    Inside a known folder, with it; alone, as its own root; else with the last parts of its
    name before the paths, as many as tell it from the others: `taken` says whether recorded
    paths begin with a prefix.
    """
    found: dict[Root, Spot] = {}
    new: list[Root] = []
    for folder in sorted(dict.fromkeys(folders), key=_length):
        around = [spot for spot in known if contains(str(spot), folder)]
        if around:
            found[folder] = inside(min(around, key=lambda spot: len(str(spot))), folder)
        elif not any(contains(one, folder) for one in new):
            new.append(folder)
    others = [s for s in known if not any(contains(one, str(s)) for one in new)]
    if len(new) == 1 and not others:
        found[new[0]] = Spot(new[0])
    else:
        found |= _told_apart(new, taken)
    for folder in folders:
        if folder not in found:
            outer = next(one for one in new if contains(one, folder))
            found[folder] = inside(found[outer], folder)
    return found


def _told_apart(folders: list[Root], taken: Callable[[str], bool]) -> dict[Root, Spot]:
    """Each folder under one of those around it: with its name before the paths, or more of
    its place where others have the same name."""
    depth = dict.fromkeys(folders, 1)
    while True:
        found = {folder: _climbed(folder, depth[folder]) for folder in folders}
        count = Counter(spot.prefix for spot in found.values())
        same = [
            folder
            for folder, spot in found.items()
            if (count[spot.prefix] > 1 or taken(spot.prefix))
            and _climbed(folder, depth[folder] + 1) != spot
        ]
        if not same:
            return found
        for folder in same:
            depth[folder] += 1


def _climbed(folder: Root, levels: int) -> Spot:
    root, prefix = folder, ""
    for _ in range(levels):
        is_top = not root.prefix if isinstance(root, BucketRoot) else not root.name
        if is_top:
            break
        root, prefix = root.parent, f"{root.name}/{prefix}"
    return Spot(root, prefix)


def is_taken(conn: sqlite3.Connection, table: str, prefix: str) -> bool:
    """Whether paths in a table of files begin so."""
    if not db.table_exists(conn, table):
        return False
    sql = f"select 1 from {db.quote(table)} where path >= ? and path < ? limit 1"
    return conn.execute(sql, (prefix, f"{prefix}\U0010ffff")).fetchone() is not None


def nest(
    conn: sqlite3.Connection, source: db.SourceTable, recorded: Mapping[Root, Spot]
) -> None:
    """Record the files of known folders inside these with them: their paths then begin
    with the folders between. Call inside a transaction."""
    for spot in known_spots(conn, source.name):
        for folder, outer in recorded.items():
            to = inside(outer, spot)
            if contains(folder, str(spot)) and spot != to:
                record_at(conn, source, spot, to)
                break


def record_at(
    conn: sqlite3.Connection, source: db.SourceTable, old: Spot, new: Spot
) -> None:
    """Have all collections over a table look for the files of one folder in another, now
    and in later runs.

    Rows keep their keys; their paths begin with the new prefix. Call inside a transaction.
    """
    for collection in db.collections(conn, source.name):
        if collection.source == "blob" or str(old.root) not in set(
            db.roots(conn, collection).values()
        ):
            continue
        told = RunSettings.of(partial(db.run_setting, conn, collection)).folders
        if str(old) in told and str(old) != str(new):
            told = [str(new) if one == str(old) else one for one in told]
            db.note_run_setting(conn, collection, "folders", told)
        where, values = _under(collection, old)
        values |= {"new": db.root_id(conn, collection, new.root), "put": new.prefix}
        if collection.source == "folder" and old.prefix != new.prefix:
            sql = f"select i.pk, i.path from _image_similarity_items i where {where}"
            paths = conn.execute(sql, values).fetchall()
            _rename_rows(conn, source, paths, len(old.prefix), new.prefix)
        for table in ("items", "failures"):
            conn.execute(
                f"update {db.PREFIX}{table} as i set root_id = :new, "
                f"path = :put || substr(i.path, :skip + 1) where {where}",
                values,
            )
        before, after = place(*old), place(*new)
        conn.execute(
            "update _image_similarity_missing set place = ? || substr(place, ?) "
            "where collection_id = ? and substr(place, 1, ?) = ?",
            (after, len(before) + 1, collection.id, len(before), before),
        )
        conn.execute(
            "delete from _image_similarity_roots as r where collection_id = :collection "
            "and path = :old and id <> :new and not exists (select 1 "
            "from _image_similarity_items i where i.collection_id = :collection "
            "and i.root_id = r.id) and not exists (select 1 "
            "from _image_similarity_failures f where f.root_id = r.id)",
            values,
        )


def _rename_rows(
    conn: sqlite3.Connection,
    source: db.SourceTable,
    paths: Iterable[tuple[db.Key, str]],
    skip: int,
    prefix: str,
) -> None:
    changes = "path = ?" + ", folder = ?" * ("folder" in source.columns)
    conn.executemany(
        f"update {db.quote(source.name)} set {changes} where id = ? and path = ?",
        (
            (*(renamed, folder_of(renamed))[: changes.count("?")], pk, path)
            for pk, path in paths
            for renamed in (prefix + path[skip:],)
        ),
    )


def folder_of(path: str) -> str:
    """The folder that a path begins with; empty for none."""
    return path.rpartition("/")[0]


# A library that moved


@dataclass(frozen=True)
class Move:
    """A folder that is not there, and another that holds its files, or some of them."""

    old: Spot
    new: Spot
    found: int
    of: int
    is_sure: bool  # enough of them, with the same bytes


def find_move(
    conn: sqlite3.Connection, collection: db.Collection, queue: Queue, old: Spot, read: Read
) -> Move | None:
    """Where the files of a folder that is not there are now: at the same paths inside
    another folder, whose files wait in the queue as new. None where nothing like it is.

    It has moved if at least half of its files are there and, of those looked into, half
    have the same bytes: others may have been removed or changed since.
    """
    where, values = _under(collection, old)
    sample = conn.execute(
        f"select substr(i.path, :skip + 1), i.size from _image_similarity_items i "
        f"where {where} order by i.sha256 limit {SAMPLE}",
        values,
    ).fetchall()
    votes: Counter[Spot] = Counter()
    for path, size in sample:
        for root, found in queue.new_of_size(size):
            if found == path or found.endswith(f"/{path}"):
                votes[Spot(as_root(root), found[: len(found) - len(path)])] += 1
    if not votes:
        return None
    of = count_under(conn, collection, old)
    some = None
    ends = partial(_shared_end, str(old))
    places = sorted(votes, key=lambda one: (-votes[one], -ends(str(one)), str(one)))
    for new in places[:PLACES]:
        pairs = queue.join_new(str(new.root), new.prefix, where, values)
        same = sum(
            size == listed and _sha256(file, read) == sha256
            for sha256, size, file, listed in pairs.sample(READ)
        )
        looked = min(READ, pairs.count)
        if 2 * pairs.count >= of and 2 * same >= looked:
            return Move(old, new, pairs.count, of, is_sure=True)
        if same and some is None:
            some = Move(old, new, pairs.count, of, is_sure=False)
    return some


def _shared_end(one: str, other: str) -> int:
    """How many parts of two places are the same, from the last one on."""
    parts = zip(reversed(one.split("/")), reversed(other.split("/")), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], parts))


def spot_of_moved(
    move: Move,
    listed: Mapping[Root, Spot],
    known: list[Spot],
    taken: Callable[[str], bool],
) -> tuple[Root, Spot] | None:
    """The listed folder with a library that has moved, and where it is to be recorded now
    that the old one does not count: paths stay what they were, if they can. None where the
    library is in another known folder by now."""
    for folder in sorted(listed, key=_length):
        if not contains(folder, str(move.new)):
            continue
        if any(contains(str(spot), folder) for spot in known):
            return None
        at = place(folder, "")
        if at == place(str(move.new), "") and at.endswith(f"/{move.old.prefix}"):
            root = at.removesuffix(move.old.prefix).rstrip("/")
            return folder, Spot(as_root(root or "/"), move.old.prefix)
        return folder, recorded_at([folder], known, taken)[folder]
    return None


def column_moved(
    conn: sqlite3.Connection,
    collection: db.Collection,
    old: Root,
    find: Callable[[str], Picture],
    read: Read,
) -> int:
    """How many pictures of a column of paths keep their rows under a new root, where
    `find` gives the picture at a path; 0 unless they are the same as under `old`."""
    where, values = _under(collection, Spot(old))
    sample = conn.execute(
        f"select i.path, i.size, i.sha256 from _image_similarity_items i where {where} "
        f"order by i.sha256 limit {READ}",
        values,
    ).fetchall()
    found = [(find(path), size, sha256) for path, size, sha256 in sample]
    same = sum(
        picture.size == size and picture.file and _sha256(picture.file, read) == sha256
        for picture, size, sha256 in found
    )
    enough = same and 2 * same >= len(sample)
    return count_under(conn, collection, Spot(old)) if enough else 0


def _sha256(file: str, read: Read) -> str | None:
    try:
        return hashlib.sha256(read(file)).hexdigest()
    except ImageError:
        return None


# Identical files that were renamed


class Known(NamedTuple):
    """A file that is not there any more."""

    item: int
    sha256: str
    size: int
    mtime_ns: int | None
    place: str


class New(NamedTuple):
    """A file that was not there before: its number in the queue, and what it is."""

    number: int
    picture: Picture

    @property
    def place(self) -> str:
        return place(self.picture.root, self.picture.path)


def pair_copies(
    known: list[Known], new: list[New], read: Read
) -> Iterator[tuple[New, Known]]:
    """Which new file is which of the known ones, wherever more than one could be.

    Only files with the same bytes. Of several the one that was written at the same moment,
    then one of the same name, then from the folder that other files moved from, then at
    the most similar place.
    """
    sizes = Counter(one.size for one in known)
    arrived = Counter(one.picture.size for one in new)
    shared = {size for size in sizes if sizes[size] + arrived[size] > 2 and arrived[size]}
    by_hash: dict[str, tuple[list[Known], list[New]]] = defaultdict(lambda: ([], []))
    for one in known:
        if one.size in shared:
            by_hash[one.sha256][0].append(one)
    for other in new:
        if other.picture.size in shared and other.picture.file is not None:
            sha256 = _sha256(other.picture.file, read)
            if sha256 in by_hash:
                by_hash[sha256][1].append(other)
    votes = _folder_votes(known, new)
    for old_ones, new_ones in by_hash.values():
        yield from _pair(old_ones, new_ones, votes)


def _folder_votes(known: list[Known], new: list[New]) -> Counter[tuple[str, str]]:
    """How many files speak for one folder having become another: those that no other file
    resembles in name and size."""
    before: dict[tuple[str, int], list[str]] = defaultdict(list)
    after: dict[tuple[str, int], list[str]] = defaultdict(list)
    for one in known:
        before[PurePosixPath(one.place).name, one.size].append(one.place)
    for other in new:
        after[PurePosixPath(other.place).name, other.picture.size].append(other.place)
    return Counter(
        (folder_of(places[0]), folder_of(after[file][0]))
        for file, places in before.items()
        if len(places) == 1 and len(after.get(file, ())) == 1
    )


def _pair(
    known: list[Known], new: list[New], votes: Counter[tuple[str, str]]
) -> Iterator[tuple[New, Known]]:
    if len(known) * len(new) > MOST_PAIRS:
        in_order = sorted(known, key=lambda one: one.place)
        yield from zip(sorted(new, key=lambda one: one.place), in_order, strict=False)
        return

    @lru_cache(maxsize=MOST_PAIRS)
    def likeness(old: str, other: str) -> float:
        return SequenceMatcher(None, old, other, autojunk=False).ratio()

    def score(pair: tuple[New, Known]) -> tuple:
        other, one = pair
        folders = folder_of(one.place), folder_of(other.place)
        return (
            one.mtime_ns != other.picture.mtime_ns,
            PurePosixPath(one.place).name != PurePosixPath(other.place).name,
            -votes[folders],
            -likeness(*folders),
            -likeness(one.place, other.place),
            one.place,
            other.place,
        )

    left_known, left_new = {one.item for one in known}, {one.number for one in new}
    for other, one in sorted(((o, k) for k in known for o in new), key=score):
        if one.item in left_known and other.number in left_new:
            left_known.remove(one.item)
            left_new.remove(other.number)
            yield other, one
