"""Where pictures come from: folders, buckets, a column of paths or of addresses, a column
of BLOBs.

Each source lists `Picture`s one by one, in whatever number: where a picture is and what
can be known of it without reading it, which costs one `stat`, a line of a bucket's
listing, or nothing for an address. Paths come from strangers' tables as often as from the
user, so each is followed to its real place and must end inside the root. A `Reader` gives
the bytes of a picture, wherever it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datasette.utils.sqlite import sqlite3

from .buckets import Buckets, Object
from .choosing import LINKED_FILES, LINKS, Choice
from .data_urls import is_data_url, is_data_url_sql, picture_bytes, short_path_sql
from .database import (
    PREFIX,
    Collection,
    Key,
    SourceTable,
    cell_sql,
    live_sql,
    quote,
    thumbnail_sql,
)
from .errors import CollectionError, ImageError, MissingFile, NotVouched
from .formats import picture_suffixes
from .paths import files_meant, nearest_name
from .roots import URL, BucketRoot, Root, WebRoot, is_address, is_object, place

if TYPE_CHECKING:
    from .fetch import Fetcher

NO_FILE = "no such file in the root folder"
OUTSIDE = "outside the root folder"
SEVERAL = "it may mean several files"
NEAREST_NAMES = 100  # missing files of a run for which a similar name is looked for
ODD = re.compile(r"[:\\\0]")  # may be a URL, or made on Windows
ROWS_AT_ONCE = 5000
FOLDERS_KNOWN = 10_000  # real places of folders that are remembered
WEB_BYTES = 100_000_000  # of a picture on the web: whose server it is, nobody knows
LOOKED_UP = 16  # objects of a column that are looked up at once, by as many threads


class Picture(NamedTuple):
    """A picture to embed.

    `pk` is None for a file that has no row yet; `path` is relative to `root`, with
    "/", and None for BLOBs; `file` is the real place of a file: an absolute path, a URL
    `s3://bucket/key` with the key to the letter, or an address, of which neither size nor
    time is known. A picture with a `problem` cannot be read, and that is why.
    """

    pk: Key | None = None
    path: str | None = None
    root: Root | None = None
    file: str | None = None
    size: int = 0
    mtime_ns: int | None = None
    problem: str | None = None
    missing: bool = False  # the problem is that there is no such file

    @property
    def label(self) -> str:
        """How to call it in a message."""
        return self.path or f"row {self.pk}"


def locate(root: Path, path: str) -> Path:
    """The real file that `path` means under `root`, symbolic links followed.

    It is the file that the path names, else the only one that it may mean (`paths.py`).
    Raises ImageError for a URL, a missing file, a folder or device, and for anything
    that ends outside `root`. An absolute path is fine when it lies inside.
    """
    if not path.strip():
        raise ImageError("the cell is empty")
    if "\0" in path:
        raise ImageError("the path holds a NUL character")
    if URL.match(path) and not path.lower().startswith("file:"):
        raise ImageError(
            "a URL, where the path of a file is needed: see --url-column, and --root for "
            "buckets"
        )
    real_root = os.path.realpath(root)
    try:
        return _ordinary_file(real_root, path)
    except ImageError:
        found = {}
        for meant in files_meant(real_root, path, picture_suffixes()):
            with suppress(ImageError):
                found[_ordinary_file(real_root, meant)] = _shown(meant)
        if not found:
            raise
    if len(found) > 1:
        raise ImageError(f"{SEVERAL}: {', '.join(sorted(found.values()))}")
    return next(iter(found))


def without_names(reason: str) -> str:
    """Why a picture failed, for visitors: no folders of the server, no other files."""
    known = (one for one in (NO_FILE, OUTSIDE, SEVERAL) if reason.startswith(one))
    return next(known, reason)


def _ordinary_file(real_root: str, path: str) -> Path:
    """The real file at a path. Raises ImageError, MissingFile if there is nothing."""
    try:
        real = os.path.realpath(os.path.join(real_root, path))
        if not _inside(real, real_root):
            raise ImageError(f"{OUTSIDE} {real_root}")
        mode = os.stat(real).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFile(f"{NO_FILE} {real_root}") from None
    except (OSError, ValueError) as error:  # loops, too long, forbidden
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"cannot be opened: {reason}") from None
    if stat.S_ISDIR(mode):
        raise ImageError("a folder, not a picture")
    if not stat.S_ISREG(mode):
        raise ImageError("not an ordinary file")
    return Path(real)


def read_file(file: str | Path, max_bytes: int) -> bytes:
    """The bytes of a file that `locate()` found. Raises ImageError."""
    try:
        with open(file, "rb") as handle:
            data = handle.read(max_bytes + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(f"cannot be read: {reason}") from None
    if len(data) > max_bytes:
        raise ImageError(f"more than {max_bytes / 1e6:,.0f} MB")
    return data


def find_place(root: Root, path: str) -> str:
    """Where the picture is that a path means under a root. Raises ImageError."""
    return str(locate(root, path)) if isinstance(root, Path) else root.locate(path)


def find_vouched(vouched: Iterable[Root], root: object, path: object) -> str:
    """Where a picture is whose root and path a database names, if it is in one of the
    folders that the user vouched for, which may lie inside that root. Raises ImageError."""
    if isinstance(root, str) and isinstance(path, str):
        at = place(root, path)
        for one in vouched:
            if str(one) == root:
                return find_place(one, path)
            if not isinstance(one, WebRoot) and at.startswith(place(one, "")):
                return find_place(one, at.removeprefix(place(one, "")))
    raise NotVouched("may not be read: its folder was noted for no embed of this user")


class Reader:
    """Reads pictures wherever they are: in files, in buckets, on the web.

    One serves any number of threads; clients are made when they are first needed, and by
    each process for itself, also where a reader was pickled. `allow_private` lets addresses
    lead into private networks; `seconds` is what one picture may take, and `patience`
    how long a host on the web may ask for a pause before that.
    """

    def __init__(
        self, *, allow_private: bool = False, seconds: float = 60, patience: float = 60
    ) -> None:
        self._allow_private = allow_private
        self._seconds, self._patience = seconds, patience
        self.buckets = Buckets(seconds)
        self._fetcher: Fetcher | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return _reader, (self._allow_private, self._seconds, self._patience)

    def read(self, file: str, max_bytes: int) -> bytes:
        """The bytes of a picture at its real place, `Picture.file`. Raises ImageError."""
        if is_object(file):
            return self.buckets.read(file, max_bytes)
        if is_address(file):
            return self._fetching().read(file, min(max_bytes, WEB_BYTES))
        return read_file(file, max_bytes)

    def read_noted(
        self, roots: Iterable[Root], root: object, path: object, max_bytes: int
    ) -> bytes:
        """The bytes of a file that `find_vouched()` finds. Raises ImageError."""
        return self.read(find_vouched(roots, root, path), max_bytes)

    @property
    def cache_problem(self) -> str | None:
        """Why downloads could not be kept, or None."""
        return self._fetcher and self._fetcher.cache_problem

    def close(self) -> None:
        """Let go of the connections. What other threads are fetching ends with an
        ImageError."""
        self.buckets.close()
        if self._fetcher is not None:
            self._fetcher.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fetching(self) -> Fetcher:
        with self._lock:
            if self._fetcher is None:
                from .fetch import Fetcher

                self._fetcher = Fetcher(
                    allow_private=self._allow_private,
                    seconds=self._seconds,
                    patience=self._patience,
                )
            return self._fetcher


def _reader(allow_private: bool, seconds: float, patience: float) -> Reader:
    return Reader(allow_private=allow_private, seconds=seconds, patience=patience)


class _Root:
    """The pictures under one root folder, by their paths."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = os.path.realpath(root)
        # Real places, with a separator behind; None for what is outside the root.
        self._folders: dict[str, str | None] = {}
        self._compared = 0  # missing files whose nearest name was looked for

    def picture(self, path: str, pk: Key | None = None) -> Picture:
        """The picture at a path, or a picture with a problem."""
        if not _is_unicode(path):
            problem = "the name is not valid UTF-8: rename the file"
            return Picture(pk=pk, path=_shown(path), root=self.root, problem=problem)
        return self._plain(path, pk) or self._followed(path, pk)

    def _plain(self, path: str, pk: Key | None) -> Picture | None:
        """The picture, with one `lstat`, if the path names an ordinary file plainly.

        None leaves all others, and what is wrong with them, to `locate()`.
        """
        folder, _, name = path.rpartition("/")
        if name in ("", ".", "..") or path.isspace() or ODD.search(path):
            return None
        real = self._real_folder(folder if folder or path == name else "/")
        if real is None:
            return None
        file = real + name
        try:
            found = os.lstat(file)
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return Picture(pk, path, self.root, file, found.st_size, found.st_mtime_ns)

    def _real_folder(self, folder: str) -> str | None:
        if folder not in self._folders:
            if len(self._folders) >= FOLDERS_KNOWN:
                self._folders.clear()
            real = os.path.realpath(os.path.join(self._real, folder))
            within = _inside(real, self._real)
            self._folders[folder] = os.path.join(real, "") if within else None
        return self._folders[folder]

    def _followed(self, path: str, pk: Key | None) -> Picture:
        try:
            file = locate(self.root, path)
            found = file.stat()
        except (ImageError, OSError) as error:
            missing = isinstance(error, (MissingFile, FileNotFoundError))
            is_near = missing or path.startswith("/")  # a "/" may be meant from the root
            problem = f"{error}{self._nearest(path) if is_near else ''}"
            return Picture(pk, path, self.root, problem=problem, missing=missing)
        return Picture(pk, path, self.root, str(file), found.st_size, found.st_mtime_ns)

    def _nearest(self, path: str) -> str:
        """What a missing file may be called, for the first of them: that takes long."""
        self._compared += 1
        if self._compared > NEAREST_NAMES:
            return ""
        nearest = nearest_name(self._real, path)
        return f"; the nearest name there is {_shown(nearest)}" if nearest else ""


class _Objects:
    """The pictures below one root in a bucket, by their paths."""

    def __init__(self, root: BucketRoot, buckets: Buckets) -> None:
        self.root = root
        self._buckets = buckets

    def picture(self, path: str, pk: Key | None = None) -> Picture:
        """The picture at a path, or a picture with a problem: the bucket is asked."""
        if not _is_unicode(path):
            problem = "the key is not valid UTF-8"
            return Picture(pk=pk, path=_shown(path), root=self.root, problem=problem)
        try:
            found = self._buckets.find(self.root.locate(path))
        except ImageError as error:
            missing = isinstance(error, MissingFile)
            return Picture(pk, path, self.root, problem=str(error), missing=missing)
        return self._picture(found, path, pk)

    def _picture(self, found: Object, path: str, pk: Key | None = None) -> Picture:
        file = f"{self.root.scheme}://{self.root.bucket}/{found.key}"
        return Picture(pk, path, self.root, file, found.size, found.mtime_ns)

    def listed(self, choice: Choice) -> Iterator[Picture]:
        """The pictures that the bucket lists, by the rules for folders, in order of key.

        Where it stops answering on the way, the last is a picture with that problem.
        """
        try:
            for found in self._buckets.objects(self.root):
                path = found.key.removeprefix(self.root.start)
                if not path or path.endswith("/") or not choice.takes_key(path):
                    continue  # a key that ends in "/" stands for a folder
                if not path.lower().endswith(picture_suffixes()):
                    choice.skipped.add_file(path.rpartition("/")[2])
                    continue
                try:
                    if self.root.locate(path) != f"{self.root}/{path}":
                        raise ImageError("a key that reads as a URL: rename the object")
                except ImageError as error:
                    yield Picture(path=_shown(path), root=self.root, problem=str(error))
                else:
                    yield self._picture(found, path)
        except ImageError as error:
            problem = f"a bucket that cannot be listed to its end: {error}"
            yield Picture(path=".", root=self.root, problem=problem)


class _Addresses:
    """Pictures on the web. Nothing is asked before they are read."""

    def __init__(self, root: WebRoot) -> None:
        self.root = root

    def picture(self, path: str, pk: Key | None = None) -> Picture:
        """The picture at an address, or a picture with a problem."""
        if not _is_unicode(path):
            problem = "the address is not valid UTF-8"
            return Picture(pk=pk, path=_shown(path), root=self.root, problem=problem)
        try:
            return Picture(pk, path, self.root, self.root.locate(path))
        except ImageError as error:
            return Picture(pk, path, self.root, problem=str(error))


def _inside(real: str, folder: str) -> bool:
    """Whether a real place is a folder, or in it."""
    return real == folder or real.startswith(os.path.join(folder, ""))


def _is_unicode(name: str) -> bool:
    """Whether a name is more than the bytes that Python escapes as surrogates."""
    if name.isascii():
        return True
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    """A name that can be stored and printed, whatever its bytes."""
    return name.encode("utf-8", "backslashreplace").decode()


def listed(
    places: Iterable[Path | BucketRoot], choice: Choice, buckets: Buckets
) -> Iterator[Picture]:
    """Pictures in folders, single files and buckets, those here first."""
    places = list(places)
    yield from folder_pictures((one for one in places if isinstance(one, Path)), choice)
    roots = (one for one in places if isinstance(one, BucketRoot))
    yield from bucket_pictures(roots, buckets, choice)


def bucket_pictures(
    roots: Iterable[BucketRoot], buckets: Buckets, choice: Choice | None = None
) -> Iterator[Picture]:
    """Pictures below roots in buckets, in order of key.

    By the rules for folders: what ends like a picture counts, hidden ones and what `choice`
    leaves out do not, and of two roots, one in the other, the outer one has them all.
    """
    choice = choice or Choice()
    given = list(dict.fromkeys(roots))
    for root in given:
        if not any(other != root and f"{root}/".startswith(f"{other}/") for other in given):
            yield from _object(root, buckets) or _Objects(root, buckets).listed(choice)


def _object(root: BucketRoot, buckets: Buckets) -> list[Picture]:
    """The picture at a root that is no root but an object, if it is."""
    if not root.prefix.lower().endswith(picture_suffixes()):
        return []
    picture = _Objects(root.parent, buckets).picture(root.name)
    return [] if picture.missing else [picture]


def folder_pictures(
    paths: Iterable[str | Path], choice: Choice | None = None
) -> Iterator[Picture]:
    """Pictures in folders (recursively, in order of name) and single files.

    The root is the folder given, or the folder of a file given. In folders only files
    that end like pictures count; hidden ones and what `choice` leaves out do not, nor do
    links to folders, and to files outside, unless it follows them: then a folder outside
    the one given is a root of its own, and a file has its link's path. `choice.skipped`
    counts what does not count. A file met twice is listed once: under its own name rather
    than a link's, in the outer one of two folders. A folder that cannot be listed is a
    picture with a problem.

    Raises CollectionError when a path does not exist, or no database can hold its name.
    """
    choice = choice or Choice()
    given = {one.real: one for one in reversed([_given(Path(p), choice) for p in paths])}
    outermost = [
        one
        for one in reversed(given.values())
        if not any(other.meets_given(one) for other in given.values() if other is not one)
    ]
    linked: set[str] = set()
    waiting = list(outermost)
    for one in waiting:
        for found in one.entries():
            if isinstance(found, _LinkedFolder):
                to = one.followed(found, outermost, linked)
                if to is not None:
                    waiting.append(to)
                continue
            picture, is_link = found
            if (is_link or one.was_followed) and picture.file is not None:
                if any(
                    other.meets(picture.file, picture_suffixes()) for other in outermost
                ):
                    continue
                if picture.file in linked:
                    continue
                linked.add(picture.file)
            yield picture


def _given(path: Path, choice: Choice) -> _Given:
    if not os.path.exists(path):
        raise CollectionError(f"{path} does not exist")
    absolute = Path(os.path.abspath(path))
    given = _Given(absolute, os.path.realpath(path), path.is_dir(), choice)
    if not _is_unicode(str(given.root)):
        raise CollectionError(
            f"{_shown(str(given.root))}: the name is not valid UTF-8. Rename the folder"
        )
    return given


class _LinkedFolder(NamedTuple):
    """A link to a folder, by its path inside the folder given and where it leads."""

    inside: str
    real: str


class _Given(NamedTuple):
    """A folder or a file that was named, or that a followed link leads to."""

    absolute: Path
    real: str
    is_folder: bool
    choice: Choice
    inside: str = ""  # where in the folder the walk begins
    was_followed: bool = False

    @property
    def root(self) -> Path:
        return self.absolute if self.is_folder else self.absolute.parent

    def meets_given(self, other: _Given) -> bool:
        """Whether `entries()` comes past another of the given ones."""
        return self.meets(other.real, ("",) if other.is_folder else picture_suffixes())

    def meets(self, real: str, suffixes: tuple[str, ...]) -> bool:
        """Whether `entries()` comes past a real place without following a link."""
        if not self.is_folder:
            return real == self.real
        if not _inside(real, self.real) or not real.lower().endswith(suffixes):
            return False
        inside = real[len(self.real.rstrip(os.sep)) + 1 :].replace(os.sep, "/")
        return not self.choice.excludes_inside(inside)

    def followed(
        self, link: _LinkedFolder, outermost: list[_Given], followed: set[str]
    ) -> _Given | None:
        """What to list because of a link to a folder, if anything. A folder that is listed
        anyway needs no link, and one around the folder given would lead in a circle."""
        if not self.choice.follow_links or _inside(self.real, link.real):
            self.choice.skipped.add(LINKS, link.inside)
            return None
        if link.real in followed or any(one.meets(link.real, ("",)) for one in outermost):
            return None
        followed.add(link.real)
        if _inside(link.real, self.real):
            return self._replace(inside=link.inside, was_followed=True)
        return _Given(Path(link.real), link.real, True, self.choice, was_followed=True)

    def entries(self) -> Iterator[tuple[Picture, bool] | _LinkedFolder]:
        """Pictures, and whether each is a link; and links to folders."""
        root = _Root(self.root)
        if not self.is_folder:
            picture = root.picture(self.absolute.name)
            yield self._linked(picture) or picture, False
            return
        waiting = [self.inside]  # folders whose turn comes, the next one last
        while waiting:
            inside = waiting.pop()
            folder = os.path.join(self.real, inside) if inside else self.real
            prefix = f"{inside}/" if inside else ""
            try:
                names, links, subfolders, linked = _listed(folder, prefix, self.choice)
            except OSError as error:
                problem = f"a folder that cannot be listed: {error.strerror}"
                path = _shown(inside) or "."
                yield Picture(path=path, root=self.root, problem=problem), False
                continue
            for name in names:
                picture = self._linked(root.picture(prefix + name))
                if picture is not None:
                    yield picture, name in links
            for name in linked:
                real = os.path.realpath(os.path.join(folder, name))
                yield _LinkedFolder(prefix + name, real)
            waiting += [prefix + name for name in reversed(subfolders)]

    def _linked(self, picture: Picture) -> Picture | None:
        """The picture, if it is a link that leads nowhere or out of the folder: that one is
        read only if it was named itself, or links are followed; else it is skipped."""
        link = self.root / str(picture.path)
        if picture.file is not None or not link.is_symlink():
            return picture
        real = os.path.realpath(link)
        if not os.path.exists(real):
            return picture._replace(problem=f"a link to {_shown(real)}, which is not there")
        if not os.path.isfile(real) or _inside(real, os.path.realpath(self.root)):
            return picture
        if self.is_folder and not self.choice.follow_links:
            self.choice.skipped.add(LINKED_FILES, str(picture.path))
            return None
        found = os.stat(real)
        return picture._replace(
            problem=None, file=real, size=found.st_size, mtime_ns=found.st_mtime_ns
        )


def _listed(
    folder: str, prefix: str, choice: Choice
) -> tuple[list[str], set[str], list[str], list[str]]:
    """Names in a folder, sorted: of pictures, those of them that are links, of folders, of
    links to folders. All else is counted as skipped."""
    names, links, subfolders, linked = [], set(), [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            why = choice.why(name, prefix + name, folder=is_folder)
            if why is not None:
                choice.skipped.add(why, name)
            elif is_folder:
                subfolders.append(name)
            elif _leads_to_folder(entry):
                linked.append(name)
            elif name.lower().endswith(picture_suffixes()):
                names.append(name)
                if entry.is_symlink():
                    links.add(name)
            else:
                choice.skipped.add_file(
                    name, "." not in name and _looks_like_picture(entry)
                )
    return sorted(names), links, sorted(subfolders), sorted(linked)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a circle of links
        return False


def _looks_like_picture(entry: os.DirEntry[str]) -> bool:
    """Whether a file without a suffix begins like a picture."""
    try:
        if not entry.is_file():
            return False  # reading from a pipe would wait
        with open(entry.path, "rb") as file:
            start = file.read(64)
    except OSError:
        return False
    from .image_worker import OURS, kind_of

    return kind_of(start) in OURS | {"HEIC", "JPEG XL", "Photoshop", "SVG"}


def _files(root: Root, buckets: Buckets | None) -> _Root | _Objects | _Addresses:
    """What finds the pictures under a root by their paths."""
    if isinstance(root, Path):
        return _Root(root)
    return _Addresses(root) if isinstance(root, WebRoot) else _Objects(root, buckets)


def finder(root: Root, buckets: Buckets) -> Callable[[str], Picture]:
    """What gives the picture at a path under a root."""
    return _files(root, buckets).picture


def column_pictures(
    conn: sqlite3.Connection,
    source: SourceTable,
    column: str,
    root: Root,
    where: str | None = None,
    buckets: Buckets | None = None,
) -> Iterator[Picture]:
    """Pictures whose paths, or addresses, stand in a column, in order of key.

    `where` is a SQL condition of the user's own; `buckets` are needed for a root in one,
    which is asked for each object. Raises CollectionError when it is not valid SQL.
    """
    files = _files(root, buckets)

    def picture(row: tuple[Key | None, object]) -> Picture:
        pk, value = row
        key_problem = _key_problem(pk)
        if key_problem:
            return Picture(path=_text(value), root=root, problem=key_problem)
        if value is None or value == "":
            return Picture(pk=pk, path="", root=root, problem="the cell is empty")
        if is_data_url(value):  # how it is shown: the picture is read with the row
            return Picture(pk, _shown(value), root)
        if not isinstance(value, (str, int, float)):
            problem = f"a path should be text, not {type(value).__name__}"
            return Picture(pk=pk, path=_text(value), root=root, problem=problem)
        return files.picture(str(value), pk)

    cell = quote(column)
    value = f"coalesce({short_path_sql(cell)}, {cell})"
    rows = _rows(conn, source, value, where)
    if isinstance(files, _Objects):
        yield from _side_by_side(picture, rows)
    else:
        yield from map(picture, rows)


def _side_by_side(
    look: Callable[[tuple[Key | None, object]], Picture],
    rows: Iterator[tuple[Key | None, object]],
) -> Iterator[Picture]:
    """What `look` gives for each row, in order, several at once: each waits for an answer
    of a bucket."""
    with ThreadPoolExecutor(LOOKED_UP, "image-similarity") as threads:
        while some := list(islice(rows, 32 * LOOKED_UP)):
            yield from threads.map(look, some)


def blob_pictures(
    conn: sqlite3.Connection,
    source: SourceTable,
    column: str,
    where: str | None = None,
) -> Iterator[Picture]:
    """Pictures that lie in a BLOB column, in order of key. Errors as above."""
    cell = quote(column)
    stored = f"case when {is_data_url_sql(cell)} then 'blob' else typeof({cell}) end"
    kind = f"{stored} || ' ' || coalesce(length({cell}), 0)"
    for pk, described in _rows(conn, source, kind, where):
        stored_as, size = described.split()
        problem = _key_problem(pk)
        if problem:
            yield Picture(problem=problem)
        elif stored_as == "null" or size == "0":
            yield Picture(pk=pk, problem="the cell is empty")
        elif stored_as != "blob":
            problem = f"the cell holds {stored_as}, where a BLOB is needed"
            yield Picture(pk=pk, problem=problem)
        else:
            yield Picture(pk=pk, size=int(size))


def require_column(source: SourceTable, column: str) -> str:
    """The column as the table calls it. Raises CollectionError where there is none."""
    names = {name.lower(): name for name in source.columns}
    if column.lower() not in names:
        raise CollectionError(
            f"{source.name!r} has no column {column!r}; it has {', '.join(source.columns)}"
        )
    return names[column.lower()]


def require_rows(
    conn: sqlite3.Connection, source: SourceTable, column: str, where: str | None
) -> None:
    """Raise CollectionError where a table has no rows, none that a condition fits, or
    nothing in the column of these."""
    full = f"length({quote(require_column(source, column))}) > 0"
    wanted = f"({where})" if where else "true"

    def are_there(condition: str) -> bool:
        sql = f"select 1 from {quote(source.name)} where {condition} limit 1"
        return conn.execute(sql).fetchone() is not None

    try:
        if are_there(f"{wanted} and {full}"):
            return
        empty = are_there(wanted)
    except (sqlite3.Error, sqlite3.Warning) as error:
        if not where:
            raise
        raise CollectionError(f"--where {where!r}: {error}") from None
    which = f"no row for which {where}" if where else "no rows"
    if empty:
        which = f"no row with anything in column {column!r}"
    raise CollectionError(f"{source.name!r} has {which}: there is nothing to embed")


def read_blob(conn: sqlite3.Connection, source: SourceTable, column: str, pk: Key) -> bytes:
    """The picture that stands in a row's cell. Raises ImageError when it is gone."""
    sql = (
        f"select t.{quote(column)} from {quote(source.name)} t "
        f"where {source.join_sql('t', ':pk')}"
    )
    rows = conn.execute(sql, {"pk": pk}).fetchall()
    data = picture_bytes(rows[0][0]) if rows else None
    if data is None:
        raise ImageError("the row is gone, or its cell is empty")
    return data


def is_in_row(collection: Collection, path: object) -> bool:
    """Whether the picture of an item with this path stands in its row's cell."""
    return collection.source == "blob" or is_data_url(path)


def is_same(cell: object, sha256: object) -> bool:
    """Whether a cell still holds the picture of this hash, if it holds one itself."""
    try:
        data = picture_bytes(cell)
    except ImageError:
        return False
    return data is None or hashlib.sha256(data).hexdigest() == sha256


class Kept(NamedTuple):
    """Where the picture of a row that was embedded is, and the thumbnail of it.

    Types are as found: whoever made the database may have written anything there.
    """

    pk: Key
    path: object
    root: object
    sha256: object
    thumbnail: bytes | None


def live_item(
    conn: sqlite3.Connection, collection: Collection, source: SourceTable, pk: Key
) -> int | None:
    """The item of a row, or None where the picture that it has now is not embedded."""
    cell = cell_sql(collection)
    sql = f"select i.id, i.sha256, {cell} {live_sql(collection, source)} and i.pk = ?"
    row = conn.execute(sql, (pk,)).fetchone()
    if row is None:
        return None
    item, sha256, cell = row
    return item if is_same(cell, sha256) else None


def kept_picture(
    conn: sqlite3.Connection, collection: Collection, source: SourceTable, pk: Key
) -> Kept | None:
    """What is known of a live row's picture, or None without one."""
    if live_item(conn, collection, source, pk) is None:
        return None
    items = (
        "_image_similarity_items i left join _image_similarity_roots r on r.id = i.root_id"
    )
    row = conn.execute(
        f"select i.pk, i.path, r.path, i.sha256, {thumbnail_sql()} "
        f"{live_sql(collection, source, items)} and i.pk = ?",
        (pk,),
    ).fetchone()
    if row is None:
        return None
    *known, webp = row
    return Kept(*known, webp if isinstance(webp, bytes) else None)


def _rows(
    conn: sqlite3.Connection, source: SourceTable, value_sql: str, where: str | None
) -> Iterator[tuple[Key | None, object]]:
    """Key and value of each row, in order of key.

    They are copied to a temporary table first: a statement that goes on for as long as
    they are looked at would keep others from writing.
    """
    keys = ", ".join(quote(name) for name in source.key_columns)
    key_sql = source.key_sql()
    if len(source.key_columns) > 1:
        # A JSON array can hold neither a BLOB nor a usable NULL.
        unusable = " or ".join(
            f"typeof({quote(name)}) in ('null', 'blob')" for name in source.pks
        )
        key_sql = f"case when {unusable} then null else {key_sql} end"
    copy = f"temp.{PREFIX}rows"
    conn.execute(f"drop table if exists {copy}")
    try:
        conn.execute(
            f"create table {copy} as select {key_sql}, {value_sql} "
            f"from {quote(source.name)} {f'where ({where})' if where else ''} "
            f"order by {keys}"
        )
    except (sqlite3.Error, sqlite3.Warning) as error:
        if not where:
            raise
        raise CollectionError(f"--where {where!r}: {error}") from None
    last = 0
    while rows := _with_broken_text(
        conn,
        f"select rowid, * from {copy} where rowid > ? order by rowid limit ?",
        (last, ROWS_AT_ONCE),
    ):
        for _, key, value in rows:
            yield key, value
        last = rows[-1][0]
    conn.execute(f"drop table {copy}")


def _with_broken_text(conn: sqlite3.Connection, sql: str, parameters: tuple) -> list[tuple]:
    """All rows; text that is not UTF-8 comes as surrogates, to be told apart."""
    text_factory = conn.text_factory
    conn.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    try:
        return [tuple(row) for row in conn.execute(sql, parameters)]
    finally:
        conn.text_factory = text_factory


def _key_problem(pk: object) -> str | None:
    if pk is None or isinstance(pk, bytes):
        return "the row's primary key is empty or a BLOB"
    if isinstance(pk, str) and not _is_unicode(pk):
        return "the row's primary key is not valid UTF-8"
    return None


def _text(value: object) -> str:
    return _shown(value) if isinstance(value, str) else repr(value)[:100]
