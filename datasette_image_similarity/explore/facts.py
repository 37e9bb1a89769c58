"""What is known of pictures without opening them, to compare duplicates by.

Three sources: what `embed` noted of each file; for tables made of folders the columns that
it filled in (`format`, `taken_at`, …); and what a closer look at the original told
(`originals.py`). Without these a path gives a format by its ending, a BLOB by its first
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..data_urls import is_data_url, suffix_of
from ..formats import formats_by_suffix

LOSSLESS = {"PNG", "BMP", "TIFF", "PPM"}
SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"\0\0\0\x0cjP  ": "JPEG2000",
    b"\0\0\0\x0cJXL ": "JXL",
    b"\xff\x0a": "JXL",
}
SIGNATURE_BYTES = 32  # of a picture that lies in a row, or of the start of its data: URL
LONGEST = 100  # characters of a format or a date: the table may hold anything


@dataclass(frozen=True)
class Facts:
    """One picture. What is not known is None.

    `format` is Pillow's name, as "JPEG". `taken_at` is the camera's local time, with its
    offset if it is known, `changed_at` the file's time in UTC: both ISO 8601 to the second.
    `placed`: whether the camera noted where it was. `shows`: pixels that show something,
    fewer than there are where a smaller picture was enlarged. `steps`: 64, of a JPEG's
    compression. `source`: the SHA-256 of the picture that this one was saved from, as far
    as can be told from those that it was compared with, `mates` (a digest).
    """

    item_id: int
    pk: db.Key
    sha256: str
    width: int
    height: int
    bytes: int
    format: str | None
    taken_at: str | None
    changed_at: str | None
    path: str | None  # as in the table; None for BLOBs
    camera: str | None = None
    placed: bool = False
    software: str | None = None
    shows: int | None = None
    steps: tuple[int, ...] = ()
    source: str | None = None
    mates: str | None = None

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def date(self) -> str | None:
        """When it was taken, else when its file was last changed."""
        return self.taken_at or self.changed_at

    @property
    def lossless(self) -> bool:
        return self.format in LOSSLESS


def facts_of(
    conn: sqlite3.Connection, collection: db.Collection, item_ids: Iterable[int]
) -> dict[int, Facts]:
    """The facts of these items by id, those left out whose row is gone or has changed.

    Raises CollectionError when the table or its column is gone.
    """
    source = db.source_of(conn, collection)
    columns = dict.fromkeys(("format", "taken_at", "camera", "latitude"), "null")
    if collection.source == "folder":
        there = {name.lower() for name in source.columns}
        columns = {
            name: f"substr(t.{db.quote(name)}, 1, {LONGEST * 10})" if name in there else sql
            for name, sql in columns.items()
        }
    elif collection.source == "blob":
        columns["format"] = f"substr(t.{db.quote(collection.column)}, 1, {SIGNATURE_BYTES})"
    wanted = ", ".join(f"{sql} as {name}" for name, sql in columns.items())
    seen = (
        "(select seen from _image_similarity_hashes h "
        "where h.item_id = i.id and h.sha256 = i.sha256)"
    )
    rows = conn.execute(
        "select i.id, i.pk, i.sha256, i.width, i.height, i.size, i.mtime_ns, i.path, "
        f"{seen if db.is_current(conn, since=7) else 'null'} as seen, "
        f"{wanted} {db.live_sql(collection, source, db.ITEMS_BY_ID)}",
        {"ids": json.dumps([int(item) for item in item_ids])},
    )
    return {row["id"]: _facts(row) for row in rows}


def _facts(row: sqlite3.Row) -> Facts:
    """A row as Facts. The database may come from a stranger: types are checked."""
    path = row["path"] if isinstance(row["path"], str) else None
    seen = seen_in(row["seen"])
    shows = seen.get("shows")
    return Facts(
        item_id=row["id"],
        pk=row["pk"],
        sha256=str(row["sha256"]),
        width=_number(row["width"]),
        height=_number(row["height"]),
        bytes=_number(row["size"]),
        format=_text(seen.get("format")) or _format(row["format"], path),
        taken_at=_text(row["taken_at"]) or _text(seen.get("taken_at")),
        changed_at=_moment(row["mtime_ns"]),
        path=path,
        camera=_text(row["camera"]) or _text(seen.get("camera")),
        placed=row["latitude"] is not None or bool(seen.get("placed")),
        software=_text(seen.get("software")),
        shows=_number(shows) if shows else None,
        steps=_steps(seen.get("steps")),
        source=_text(seen.get("source")),
        mates=_text(seen.get("mates")),
    )


def seen_in(stored: object) -> dict[str, Any]:
    """What a closer look told: the JSON of `hashes.seen`, which may be anything."""
    try:
        seen = json.loads(stored)
    except (TypeError, ValueError, RecursionError):
        return {}
    return seen if isinstance(seen, dict) else {}


def _format(stored: Any, path: str | None) -> str | None:
    if isinstance(stored, bytes):
        return format_by_signature(stored)
    if is_data_url(stored):
        stored, path = None, stored
    return _text(stored) or formats_by_suffix().get(suffix_of(path or ""))


def format_by_signature(start: bytes) -> str | None:
    """The format of a picture that begins with these bytes."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[4:8] == b"ftyp":
        return {b"avif": "AVIF", b"avis": "AVIF"}.get(start[8:12], "HEIC")
    return next((name for sign, name in SIGNATURES.items() if start.startswith(sign)), None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST else None


def _steps(value: Any) -> tuple[int, ...]:
    known = isinstance(value, list) and len(value) == 64 and all(map(_number, value))
    return tuple(value) if known else ()


def _number(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _moment(nanoseconds: Any) -> str | None:
    try:
        moment = datetime.fromtimestamp(nanoseconds // 10**9, timezone.utc)
    except (TypeError, ValueError, OverflowError, OSError):
        return None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
