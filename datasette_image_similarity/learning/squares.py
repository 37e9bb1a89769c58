"""A collection's labelled pictures, decoded once, as squares in a file.

The file lies beside the weights that are made, is as large as it has to be and has no
name: it goes with the process, however that ends.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from .. import database as db
from .. import sources
from ..errors import CollectionError, ImageError
from ..explore.vectors import Say, Stopped
from ..images import LOCAL_FILES, DecoderPool, Input, Request
from ..roots import Root
from .parts import Parts

if TYPE_CHECKING:
    import numpy as np

LARGER = 8 / 7  # than the encoder's squares are those that crops are taken from
AT_ONCE = 64  # pictures read before it is asked whether to stop


@dataclass(frozen=True)
class Labelled:
    """A live item's picture and what its row says. `path` and `root` may be anything."""

    pk: db.Key
    path: object
    root: object
    sha256: str
    label: str


def labelled_pictures(
    conn: sqlite3.Connection, collection: db.Collection, label: str
) -> tuple[list[Labelled], int]:
    """The pictures whose row says something in the column `label`, in the order of their
    ids, and how many say nothing. Raises CollectionError for a column that there is not."""
    source = db.source_of(conn, collection)
    live = db.live_sql(collection, source)
    rows = conn.execute(
        "select i.pk, i.path, (select r.path from _image_similarity_roots r "
        "where r.id = i.root_id), cast(i.sha256 as text), "
        f"{source.label_sql(label, 't')} {live} order by i.id"
    ).fetchall()
    pictures = [Labelled(*row) for row in rows if row[4] is not None]
    return pictures, len(rows) - len(pictures)


class SquareReader:
    """Decodes pictures that lie in rows, or in folders that the user vouched for.

    `folder` is where decoded squares are put; `roots` are the folders.
    """

    def __init__(
        self,
        conn: sqlite3.Connection,
        collection: db.Collection,
        pictures: Sequence[Labelled],
        *,
        roots: Sequence[Root],
        folder: Path,
        workers: int,
    ) -> None:
        self.pictures, self.failed = pictures, {}
        self._conn, self._collection = conn, collection
        self._source = db.source_of(conn, collection)
        self._roots = roots
        self._folder, self._workers = folder, workers

    def read(
        self, places: np.ndarray, shape: Input, say: Say, stop: Callable[[], bool]
    ) -> np.ndarray:
        """Squares of the pictures at some places, int64 (p,): uint8 (p, side, side, 3).

        Those that are gone, have changed since they were embedded or cannot be decoded are
        noted in `failed`, with the reason. Raises CollectionError without room, Stopped.
        """
        wanted = places.tolist()
        pixels = _room(self._folder, (len(wanted), shape.size, shape.size, 3))
        request = Request(input=shape)
        with (
            sources.Reader() as reader,
            DecoderPool(LOCAL_FILES, self._workers) as decoders,
            ThreadPoolExecutor(self._workers, "image-similarity") as threads,
        ):

            def put(row: int, data: bytes | None) -> None:
                picture = self.pictures[wanted[row]]
                try:
                    data = self._file(reader, picture) if data is None else data
                    if hashlib.sha256(data).hexdigest() != picture.sha256:
                        raise ImageError("changed since it was embedded")
                    pixels[row] = decoders.decode(data, request).pixels
                except ImageError as error:
                    self.failed[wanted[row]] = str(error)

            for start in range(0, len(wanted), AT_ONCE):
                if stop():
                    raise Stopped
                rows = range(start, min(start + AT_ONCE, len(wanted)))
                started = [
                    threads.submit(put, row, self._blob(wanted[row])) for row in rows
                ]
                for one in started:
                    one.result()
                say("Decoding pictures", rows.stop, len(wanted))
        return pixels

    def _blob(self, place: int) -> bytes | None:
        """What a picture's row holds; None if pictures lie in files."""
        picture = self.pictures[place]
        if not sources.is_in_row(self._collection, picture.path):
            return None
        column, pk = self._collection.column, picture.pk
        try:
            return sources.read_blob(self._conn, self._source, column, pk)
        except ImageError:
            return b""  # which no picture's hash is of

    def _file(self, reader: sources.Reader, picture: Labelled) -> bytes:
        limit = LOCAL_FILES.max_bytes
        return reader.read_noted(self._roots, picture.root, picture.path, limit)


@dataclass(frozen=True)
class Material:
    """What is trained on and judged by; places are those of all labelled pictures.

    `larger` are squares of the pictures at `train`, to take crops from; `squares` of those
    at `held`, just as the encoder sees them. Both lists are sorted, and so are `parts`,
    which lack what could not be read.
    """

    classes: np.ndarray
    parts: Parts
    train: np.ndarray
    larger: np.ndarray
    held: np.ndarray
    squares: np.ndarray


def read_material(
    reader: SquareReader,
    classes: np.ndarray,
    parts: Parts,
    shape: Input,
    say: Say,
    stop: Callable[[], bool],
) -> Material:
    """Decode all pictures.

    Raises CollectionError where most are not to be had, or too few to judge by; Stopped.
    """
    import numpy as np

    side = round(shape.size * LARGER)
    resize = round(shape.resize * LARGER)
    held = np.sort(
        np.concatenate([parts.watched_seen, parts.watched_unseen, parts.seen, parts.unseen])
    )
    larger = reader.read(parts.train, replace(shape, size=side, resize=resize), say, stop)
    squares = reader.read(held, shape, say, stop)
    if 2 * len(reader.failed) > len(parts.train) + len(held):
        place, reason = next(iter(reader.failed.items()))
        picture = reader.pictures[place]
        raise CollectionError(
            f"{len(reader.failed):,} of {len(parts.train) + len(held):,} pictures cannot "
            f"be read; {picture.path or picture.pk}: {reason}. Run embed again, on this "
            "computer"
        )
    usable = np.ones(len(classes), bool)
    usable[list(reader.failed)] = False
    usable_parts = parts.only(usable)
    usable_parts.check_judged(classes)
    return Material(classes, usable_parts, parts.train, larger, held, squares)


def _room(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An array in a file without a name. Raises CollectionError."""
    import numpy as np

    wanted, free = math.prod(shape), shutil.disk_usage(folder).free
    if wanted > free:
        raise CollectionError(
            f"The decoded pictures need {wanted / 1e9:,.1f} GB in {folder}, where "
            f"{free / 1e9:,.1f} GB are free: write the weights to another disk"
        )
    if not wanted:
        return np.empty(shape, np.uint8)
    with TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)
