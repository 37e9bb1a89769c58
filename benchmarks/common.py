"""What the benchmark programs share: the machine in words, databases to measure, tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import date
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import numpy as np
from datasette.utils.sqlite import sqlite3

from datasette_image_similarity import database as db
from datasette_image_similarity.encoders.spec import EncoderSpec
from datasette_image_similarity.images import Input

TABLE = "photos"
CATEGORIES = 100  # each holds 1 % of the rows


def machine(*packages: str) -> str:
    """The machine, the versions and the date, as a Markdown list."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {"SQLite": sqlite3.sqlite_version}
    for name in ("datasette", "sqlite-vec", "numpy", *packages):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"- {_processor()}, {os.cpu_count()} cores, {memory:.0f} GB of memory\n"
        f"- {platform.system()}, Python {platform.python_version()}, {listed}\n"
        f"- {date.today().isoformat()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def make_collection(
    file: Path, vectors: np.ndarray, thumbnails: Sequence[bytes] = ()
) -> None:
    """A database with a table of photos and their embeddings, as `embed` leaves it.

    `vectors` is float32 of shape (n, d), rows of length 1. No picture lies behind it: row
    i, whose primary key is i + 1, is in category i % 100 and has a thumbnail (WebP) of
    those given, in turn. The encoder it claims is torchvision's ResNet50.
    """
    file.unlink(missing_ok=True)
    spec = EncoderSpec(
        model="resnet50",
        weights="IMAGENET1K_V1",
        weights_sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        pooling="avg",
        input=Input(),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        version=1,
    )
    conn = db.connect(file, create=True)
    conn.execute("pragma journal_mode = wal")
    conn.execute("pragma synchronous = off")
    db.migrate(conn)
    conn.execute(f"create table {TABLE} (id integer primary key, path text, category text)")
    collection = db.create_collection(
        conn,
        name="default",
        table=TABLE,
        source="path",
        column="path",
        encoder=spec.to_json(),
        fingerprint=spec.fingerprint,
        dimensions=vectors.shape[1],
        metric="cosine",
        thumbnails=bool(thumbnails),
    )
    for start in range(0, len(vectors), 10_000):
        with db.transaction(conn):
            for i, vector in enumerate(vectors[start : start + 10_000], start):
                path, category = f"{i:07}.jpg", f"c{i % CATEGORIES:02}"
                conn.execute(
                    f"insert into {TABLE} values (?, ?, ?)", (i + 1, path, category)
                )
                db.put_item(
                    conn,
                    collection,
                    pk=i + 1,
                    root=None,
                    path=path,
                    size=50_000,
                    mtime_ns=i,
                    sha256=sha256(path.encode()).hexdigest(),
                    width=320,
                    height=240,
                    vector=vector.tobytes(),
                    thumbnail=thumbnails[i % len(thumbnails)] if thumbnails else None,
                )
    conn.execute(f"create index category on {TABLE} (category)")
    conn.execute("pragma journal_mode = delete")
    conn.close()


def remember(file: Path) -> None:
    """Read a file through, so that it is in the system's cache as far as that has room."""
    with file.open("rb", buffering=0) as opened:
        while opened.read(1 << 24):
            pass


def forget(*files: Path) -> None:
    """Ask the system to drop files from its cache, so that the next read is from disk.

    Needs no privileges, but Linux: elsewhere "cold" means a new process only.
    """
    for file in files:
        if hasattr(os, "posix_fadvise") and file.exists():
            with file.open("rb") as opened:
                os.fdatasync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
