"""Where pictures come from: folders, a column of paths, a column of BLOBs, a CSV.

Each source lists `Picture`s: where a picture is and what can be known of it without
reading it. Paths come from strangers' tables as often as from the user, so each is
followed to its real place and must end inside the root folder.
"""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasette.utils.sqlite import sqlite3

from .database import Key, SourceTable, quote
from .errors import CollectionError, ImageError

PICTURE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".png", ".pbm", ".pgm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)


@dataclass(frozen=True)
class Picture:
    """A picture to embed.

    `pk` is None for a file that has no row yet; `path` is relative to `root`, with
    "/", and None for BLOBs; `file` is the real place of a file. A picture with a
    `problem` cannot be read, and that is why.
    """

    pk: Key | None = None
    path: str | None = None
    root: Path | None = None
    file: Path | None = None
    size: int = 0
    mtime_ns: int | None = None
    problem: str | None = None
    missing: bool = False  # the problem is that there is no such file

    @property
    def label(self) -> str:
        """How to call it in a message."""
        return self.path or f"row {self.pk}"


class MissingFile(ImageError):
    """There is no file at a path."""


def locate(root: Path, path: str) -> Path:
    """The real file that `path` means under `root`, symbolic links followed.

    Raises ImageError for a URL, a missing file, a folder or device, and for anything
    that ends outside `root`. An absolute path is fine when it lies inside.
    """
    if not path.strip():
        raise ImageError("the cell is empty")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|data:", path):
        raise ImageError("a URL, where the path of a file is needed: download it first")
    if "\0" in path:
        raise ImageError("the path holds a NUL character")
    real_root = root.resolve()
    candidate = real_root / path
    if "\\" in path and not os.path.exists(candidate):
        candidate = real_root / path.replace("\\", "/")  # a CSV made on Windows
    try:
        real = candidate.resolve()
        if not real.is_relative_to(real_root):
            raise ImageError("outside the root folder")
        mode = real.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFile("no such file in the root folder") from None
    except (OSError, RuntimeError, ValueError) as error:  # loops, too long, forbidden
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"cannot be opened: {reason}") from None
    if stat.S_ISDIR(mode):
        raise ImageError("a folder, not a picture")
    if not stat.S_ISREG(mode):
        raise ImageError("not an ordinary file")
    return real


def read_file(file: Path, max_bytes: int) -> bytes:
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


def _file_picture(root: Path, path: str, pk: Key | None = None) -> Picture:
    """The picture at a path, or a picture with a problem."""
    if not _is_unicode(path):
        problem = "the name is not valid UTF-8: rename the file"
        return Picture(pk=pk, path=_shown(path), root=root, problem=problem)
    try:
        file = locate(root, path)
        found = file.stat()
    except (ImageError, OSError) as error:
        missing = isinstance(error, (MissingFile, FileNotFoundError))
        return Picture(pk=pk, path=path, root=root, problem=str(error), missing=missing)
    return Picture(
        pk=pk,
        path=path,
        root=root,
        file=file,
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
    )


def _is_unicode(name: str) -> bool:
    """Whether a name is more than the bytes that Python escapes as surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    """A name that can be stored and printed, whatever its bytes."""
    return name.encode("utf-8", "backslashreplace").decode()


def folder_pictures(paths: Iterable[str | Path]) -> Iterator[Picture]:
    """Pictures in folders (recursively, in order of name) and single files.

    The root is the folder given, or the folder of a file given. In folders only files
    that end like pictures count, hidden ones do not, and links to folders are not
    followed. A file met twice is listed once. A folder that cannot be listed is a
    picture with a problem.

    Raises CollectionError when a path does not exist, or no database can hold its name.
    """
    seen: set[Path] = set()

    def new(picture: Picture) -> bool:
        if picture.file is None:
            return True
        if picture.file in seen:
            return False
        seen.add(picture.file)
        return True

    for given in map(Path, paths):
        if not os.path.exists(given):
            raise CollectionError(f"{given} does not exist")
        absolute = Path(os.path.abspath(given))
        root = absolute if given.is_dir() else absolute.parent
        if not _is_unicode(str(root)):
            raise CollectionError(
                f"{_shown(str(root))}: the name is not valid UTF-8. Rename the folder"
            )
        if not given.is_dir():
            picture = _file_picture(absolute.parent, absolute.name)
            if new(picture):
                yield picture
            continue
        unlisted: list[OSError] = []
        for folder, subfolders, names in os.walk(absolute, onerror=unlisted.append):
            subfolders[:] = sorted(n for n in subfolders if not n.startswith("."))
            for name in sorted(names):
                suffix = os.path.splitext(name)[1].lower()
                if name.startswith(".") or suffix not in PICTURE_SUFFIXES:
                    continue
                relative = os.path.relpath(os.path.join(folder, name), absolute)
                picture = _file_picture(absolute, relative.replace(os.sep, "/"))
                if new(picture):
                    yield picture
        for error in unlisted:
            relative = _shown(os.path.relpath(error.filename, absolute))
            problem = f"a folder that cannot be listed: {error.strerror}"
            yield Picture(path=relative, root=absolute, problem=problem)


def column_pictures(
    conn: sqlite3.Connection,
    source: SourceTable,
    column: str,
    root: Path,
    where: str | None = None,
) -> Iterator[Picture]:
    """Pictures whose paths stand in a column, in order of key.

    `where` is a SQL condition of the user's own. Raises CollectionError when it is
    not valid SQL.
    """
    for pk, value in _rows(conn, source, quote(column), where):
        key_problem = _key_problem(pk)
        if key_problem:
            yield Picture(path=_text(value), root=root, problem=key_problem)
        elif value is None or value == "":
            yield Picture(pk=pk, path="", root=root, problem="the cell is empty")
        elif not isinstance(value, str):
            problem = f"a path should be text, not {type(value).__name__}"
            yield Picture(pk=pk, path=_text(value), root=root, problem=problem)
        else:
            yield _file_picture(root, value, pk)


def blob_pictures(
    conn: sqlite3.Connection,
    source: SourceTable,
    column: str,
    where: str | None = None,
) -> Iterator[Picture]:
    """Pictures that lie in a BLOB column, in order of key. Errors as above."""
    kind = f"typeof({quote(column)}) || ' ' || coalesce(length({quote(column)}), 0)"
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


def read_blob(conn: sqlite3.Connection, source: SourceTable, column: str, pk: Key) -> bytes:
    """The picture in a row's BLOB column. Raises ImageError when it is gone."""
    sql = (
        f"select t.{quote(column)} from {quote(source.name)} t "
        f"where {source.join_sql('t', ':pk')}"
    )
    rows = conn.execute(sql, {"pk": pk}).fetchall()
    if not rows or not isinstance(rows[0][0], bytes):
        raise ImageError("the row is gone, or its cell is empty")
    return rows[0][0]


def _rows(
    conn: sqlite3.Connection, source: SourceTable, value_sql: str, where: str | None
) -> list[tuple[Key | None, object]]:
    """Key and value of each row, in order of key."""
    keys = ", ".join(quote(name) for name in source.key_columns)
    key_sql = source.key_sql()
    if len(source.key_columns) > 1:
        # A JSON array can hold neither a BLOB nor a usable NULL.
        unusable = " or ".join(
            f"typeof({quote(name)}) in ('null', 'blob')" for name in source.pks
        )
        key_sql = f"case when {unusable} then null else {key_sql} end"
    sql = (
        f"select {key_sql}, {value_sql} from {quote(source.name)} "
        f"{f'where ({where})' if where else ''} order by {keys}"
    )
    text_factory = conn.text_factory
    # Text that is not UTF-8 comes as surrogates, to be told apart.
    conn.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    try:
        return [tuple(row) for row in conn.execute(sql)]
    except (sqlite3.Error, sqlite3.Warning) as error:
        if not where:
            raise
        raise CollectionError(f"--where {where!r}: {error}") from None
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


# CSV


def csv_rows(path: Path) -> list[dict[str, object]]:
    """The rows of a CSV or TSV file with a header, numbers turned into numbers.

    A column becomes integer or real when every value in it is one as SQLite would
    print it; "00123" stays text. Raises CollectionError when the file is missing,
    empty, or no such file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CollectionError(f"{path}: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")  # what spreadsheets still write
    if not text.strip() or "\0" in text:
        raise CollectionError(f"{path} is empty, or not a CSV file")
    header = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t|", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        names, *lines = [line for line in reader if any(map(str.strip, line))]
    except csv.Error as error:
        raise CollectionError(f"{path}, line {reader.line_num}: {error}") from None
    names = [name.strip() for name in names]
    if len({name.lower() for name in names}) < len(names) or "" in names:
        raise CollectionError(f"{path}: every column needs a name of its own")
    for number, line in enumerate(lines, 2):
        if len(line) > len(names):
            raise CollectionError(
                f"{path}: row {number} has {len(line)} values for {len(names)} columns"
            )
        line.extend([""] * (len(names) - len(line)))
    if not lines:
        raise CollectionError(f"{path} has a header and no rows")
    columns = [_numbers(column) for column in zip(*lines, strict=True)]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _numbers(values: tuple[str, ...]) -> list[object]:
    """The values of a CSV column as int or float where all of them are, else as text."""
    filled = [value for value in values if value != ""]
    for pattern, number in (
        (r"-?(0|[1-9]\d{0,17})", int),
        (r"-?(0|[1-9]\d{0,14})(\.\d{1,15})?", float),
    ):
        if filled and all(re.fullmatch(pattern, value) for value in filled):
            return [number(value) if value != "" else None for value in values]
    return list(values)
