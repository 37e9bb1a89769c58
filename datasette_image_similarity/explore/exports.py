"""Pictures to take along: a zip file of them, or a contact sheet, one HTML page that holds
everything.

Both are made of `Entry`s. Where their bytes come from is for the caller to say, by a
`Pictures`: a Datasette opens files only in folders it may show, a command those that the
user has vouched for.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from datasette.utils.sqlite import sqlite3

from .. import sources
from ..data_urls import is_data_url
from ..database import (
    ITEMS_PASSING,
    Collection,
    Key,
    SourceTable,
    live_sql,
    passing_sql,
    plain_columns,
    quote,
    thumbnail_sql,
)
from ..errors import CollectionError, ImageError
from ..formats import formats_by_suffix, suffix_of
from ..images import LOCAL_FILES, THUMBNAIL_TYPE
from ..query import Filter, Hit, pk_path
from ..roots import Root, is_address, is_object
from ..whole_files import replacing
from .facts import format_by_signature

THUMBNAIL_BYTES = 200_000  # of one; ours have some ten thousand
STEM = 60  # characters of a name inside a zip file, without rank and suffix
MANIFEST = ("file", "holds", "why", "rank", "pk", "score", "distance", "caption", "sha256")


@dataclass(frozen=True)
class Entry:
    """One picture to export: its row, and what was embedded of it."""

    rank: int
    pk: Any  # in its own type; a list for compound keys
    row: dict[str, object]
    item: int
    key: Key
    root: str | None
    path: str | None
    size: int
    sha256: str
    score: float | None = None
    distance: float | None = None

    @property
    def row_path(self) -> str:
        return pk_path(self.pk)


class Pictures(Protocol):
    """Where the bytes come from. `holds` says what `picture()` gives: "original", the file
    or BLOB as it is now, or "picture", made of it."""

    @property
    def holds(self) -> str: ...

    def picture(self, entry: Entry) -> bytes:
        """The picture for a zip. Raises ImageError where it cannot be had."""

    def thumbnail(self, entry: Entry) -> bytes | None:
        """A small WebP, or None."""


@dataclass(frozen=True)
class Exported:
    """How many pictures an export holds, and how."""

    originals: int = 0
    thumbnails: int = 0
    missing: int = 0


class TrustedFiles:
    """Pictures for a command: files in folders that the user has vouched for.

    `roots` are these folders; `reader` reads them.
    """

    def __init__(
        self,
        conn: sqlite3.Connection,
        collection: Collection,
        source: SourceTable,
        roots: Sequence[Root],
        reader: sources.Reader,
    ) -> None:
        self.conn, self.collection, self.source = conn, collection, source
        self.trusted = roots
        self.reader = reader

    holds = "original"

    def picture(self, entry: Entry) -> bytes:
        if sources.is_in_row(self.collection, entry.path):
            about = (self.conn, self.source, self.collection.column, entry.key)
            return unchanged(sources.read_blob(*about), entry)
        file = sources.find_vouched(self.trusted, entry.root, entry.path)
        limit = LOCAL_FILES.max_bytes
        return read_original(lambda file: self.reader.read(file, limit), file, entry)

    def thumbnail(self, entry: Entry) -> bytes | None:
        return stored_thumbnail(self.conn, entry)


# What to export


def entries_of_hits(
    conn: sqlite3.Connection,
    collection: Collection,
    source: SourceTable,
    hits: Sequence[Hit],
) -> list[Entry]:
    """The entries of a search's results; rows that went meanwhile are left out."""
    by_rank = {hit.rank: hit for hit in hits}
    keys = ((hit.rank, hit.pk if isinstance(hit.pk, list) else [hit.pk]) for hit in hits)
    return [
        replace(
            entry, score=by_rank[entry.rank].score, distance=by_rank[entry.rank].distance
        )
        for entry in entries_of_keys(conn, collection, source, keys)
    ]


def entries_of_keys(
    conn: sqlite3.Connection,
    collection: Collection,
    source: SourceTable,
    keys: Iterable[tuple[int, Sequence[Any]]],
) -> Iterator[Entry]:
    """The entries of rows, given as (rank, values of the key columns)."""
    sql = f"{_select(collection, source, '_image_similarity_items i')} and i.pk = ?"
    for rank, parts in keys:
        key = source.find(conn, parts)
        row = None if key is None else conn.execute(sql, (key,)).fetchone()
        if row is not None:
            yield _entry(collection, source, rank, row)


def filtered_entries(
    conn: sqlite3.Connection,
    collection: Collection,
    source: SourceTable,
    filter: Filter | None,
    size: int = -1,
    offset: int = 0,
) -> tuple[list[Entry], int]:
    """The entries of rows that pass a filter, `size` from `offset` on, and how many there
    are in all."""
    where = filter.where if filter is not None and filter.where else "1"
    beginning = passing_sql(source, where)
    params = {**filter.params} if filter is not None else {}
    live = live_sql(collection, source, ITEMS_PASSING)
    total = conn.execute(f"{beginning} select count(*) {live}", params).fetchone()[0]
    rows = conn.execute(
        f"{beginning} {_select(collection, source, ITEMS_PASSING)} "
        f"order by i.id limit {int(size)} offset {int(offset)}",
        params,
    )
    entries = [
        _entry(collection, source, rank, row) for rank, row in enumerate(rows, offset + 1)
    ]
    return entries, total


def _select(collection: Collection, source: SourceTable, items: str) -> str:
    columns = "".join(f", t.{quote(name)}" for name in plain_columns(collection, source))
    roots = "left join _image_similarity_roots r on r.id = i.root_id"
    return (
        "select i.id, i.pk, r.path, i.path, i.size, i.sha256"
        f"{columns} {live_sql(collection, source, f'{items} {roots}')}"
    )


def _entry(collection: Collection, source: SourceTable, rank: int, row: tuple) -> Entry:
    item, key, root, path, size, sha256, *values = tuple(row)
    parts = source.parts(key)
    return Entry(
        rank=rank,
        pk=parts if len(parts) > 1 else parts[0],
        row=dict(zip(plain_columns(collection, source), values, strict=True)),
        item=item,
        key=key,
        root=root if isinstance(root, str) else None,
        path=path if isinstance(path, str) else None,
        # Whoever made the database may have written anything there.
        size=size if isinstance(size, int) and size >= 0 else 0,
        sha256=sha256 if isinstance(sha256, str) else "",
    )


def usual_caption(collection: Collection, source: SourceTable) -> str | None:
    """The column that names a picture where nobody has said which does."""
    for name in ("title", "name", "caption"):
        if name in source.columns:
            return name
    return collection.column if collection.source != "blob" else None


def caption_text(value: object, row_path: str) -> str:
    """What a picture is called: what its column says, or its key."""
    if value in (None, "") or isinstance(value, bytes) or is_data_url(value):
        return row_path.replace(",", ", ")
    return str(value)


def caption_of(entry: Entry, column: str | None) -> str:
    """What the picture of an entry is called; `column` is the one for captions."""
    return caption_text(entry.row.get(column) if column else None, entry.row_path)


# Bytes


def stored_thumbnail(conn: sqlite3.Connection, entry: Entry) -> bytes | None:
    """The thumbnail in the database, if there is one of a sensible size."""
    row = conn.execute(
        f"select webp from (select {thumbnail_sql()} as webp "
        "from _image_similarity_items i where i.id = ?) "
        "where typeof(webp) = 'blob' and length(webp) <= ?",
        (entry.item, THUMBNAIL_BYTES),
    ).fetchone()
    return row[0] if row else None


def read_original(read: Callable[[str], bytes], file: str | None, entry: Entry) -> bytes:
    """A picture's file, wherever it is. Raises ImageError for one that changed since it was
    embedded."""
    if file is None:
        raise ImageError("not in a folder that may be read here")
    if not (is_object(file) or is_address(file)):
        try:
            size = os.stat(file).st_size
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror}") from None
        if size != entry.size:  # before so much is read into memory
            raise ImageError("the file has changed since it was embedded")
    return unchanged(read(file), entry)


def unchanged(data: bytes, entry: Entry) -> bytes:
    """These bytes, which must be those that were embedded: nothing else goes out."""
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ImageError("it has changed since it was embedded")
    return data


# Zip files


def write_zip(
    out: IO[bytes],
    entries: Sequence[Entry],
    pictures: Pictures,
    caption: str | None,
) -> Exported:
    """Write the pictures, uncompressed as they are compressed already, and manifest.csv.

    Each is what `pictures` gives; where that cannot be had the thumbnail, and the manifest
    says why.
    `caption` is the column that names files and pictures.
    """
    count: Counter[str] = Counter()
    rows = []
    digits = max(3, len(str(max((entry.rank for entry in entries), default=0))))
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for entry in entries:
            data, holds, why = _picture(entry, pictures)
            count[holds] += 1
            called = caption_of(entry, caption)
            name = ""
            if data is not None:
                named = called if is_data_url(entry.path) else entry.path or called
                path = entry.path if holds == "original" else None
                suffix = ".webp" if holds == "thumbnail" else _suffix(data, path)
                name = f"{entry.rank:0{digits}}-{_stem(named)}{suffix}"
                archive.writestr(zipfile.ZipInfo(name), data)
            place = (entry.rank, entry.row_path, entry.score, entry.distance)
            rows.append([name, holds, why, *place, called, entry.sha256])
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(MANIFEST)
        writer.writerows(rows)
        archive.writestr(zipfile.ZipInfo("manifest.csv"), text.getvalue())
    return Exported(count["original"], count["thumbnail"], count["nothing"])


def _picture(entry: Entry, pictures: Pictures) -> tuple[bytes | None, str, str]:
    """The bytes, what they are, and why they are no more."""
    try:
        return pictures.picture(entry), pictures.holds, ""
    except ImageError as error:
        data = pictures.thumbnail(entry)
        return data, "nothing" if data is None else "thumbnail", str(error)


def _stem(name: str) -> str:
    """A name that means nothing to any file system: letters and digits, and - _ . between.

    Folders before the last slash go, and so do dots at either end.
    """
    last = PurePosixPath(name.replace("\\", "/")).name
    last = unicodedata.normalize("NFC", PurePosixPath(last).stem)
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in last)
    return kept[:STEM].strip("-_.") or "picture"


def _suffix(data: bytes, path: str | None) -> str:
    """The ending of a picture's file: its own if it is a picture's, else by its bytes."""
    suffix = PurePosixPath(path or "").suffix.lower()
    if suffix in formats_by_suffix():
        return suffix
    found = format_by_signature(data)
    return suffix_of(found) if found else ".img"


# Contact sheets


@dataclass(frozen=True)
class Pictured:
    """A picture on a contact sheet; `source` is a data: address, None without one."""

    entry: Entry
    caption: str
    source: str | None


def write_sheet(
    out: IO[bytes],
    entries: Sequence[Entry],
    pictures: Pictures,
    caption: str | None,
    *,
    title: str,
    words: Sequence[str] = (),
    asked_with: Sequence[Entry] = (),
    total: int | None = None,
    url: str | None = None,
    row_url: Callable[[Entry], str] | None = None,
) -> Exported:
    """Write one HTML page that needs nothing else: thumbnails, captions and scores, to be
    kept, sent or printed.

    `words` say what was asked, `asked_with` are the pictures it was asked with, `total` is
    how many results there were, `url` where the question stands, `row_url` where a row.
    """
    from jinja2 import Environment, PackageLoader

    def pictured(entry: Entry) -> Pictured:
        data = pictures.thumbnail(entry)
        encoded = base64.b64encode(data).decode() if data is not None else None
        source = encoded and f"data:{THUMBNAIL_TYPE};base64,{encoded}"
        return Pictured(entry, caption_of(entry, caption), source)

    shown = [pictured(entry) for entry in entries]
    loader = PackageLoader("datasette_image_similarity")
    template = Environment(loader=loader, autoescape=True).get_template(
        "image_similarity_sheet.html"
    )
    template.stream(
        shown=shown,
        asked_with=[pictured(entry) for entry in asked_with],
        title=title,
        words=words,
        total=total,
        url=url,
        row_url=row_url,
        made_at=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    ).dump(out, encoding="utf-8", errors="replace")
    missing = sum(one.source is None for one in shown)
    return Exported(thumbnails=len(shown) - missing, missing=missing)


# Files


def export_file(
    file: Path,
    entries: Sequence[Entry],
    pictures: Pictures,
    caption: str | None,
    title: str,
) -> Exported:
    """Write a zip file or a contact sheet, as the name ends, whole or not at all.

    Raises CollectionError where it cannot be written.
    """
    try:
        with replacing(file) as out:
            if file.suffix.lower() == ".zip":
                done = write_zip(out, entries, pictures, caption)
            else:
                done = write_sheet(out, entries, pictures, caption, title=title)
    except OSError as error:
        raise CollectionError(f"{file} cannot be written: {error.strerror}") from None
    return done
