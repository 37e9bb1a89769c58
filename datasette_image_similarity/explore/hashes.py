"""Fingerprints of how pictures look: a perceptual hash, and a small colour layout.

The hash is pHash: the picture in grey at 32 × 32, its discrete cosine transform, and of the
8 × 8 lowest frequencies whether each is above their median (C. Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010; the details are those of the Python
package ImageHash). The number of bits in which two hashes differ is their distance. It
survives scaling, recompression and changes of brightness, but not cropping much, turning
or mirroring; and it sees no colour, so mean colours of 4 × 4 fields are kept beside it.

Fingerprints are made from the stored thumbnails, or from the original where there is none
and it may be read. Both are decoded in child processes under limits. They are kept in
`_image_similarity_hashes` with the SHA-256 of the file, batch by batch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from datasette.utils.sqlite import sqlite3

from .. import database as db
from .. import sources, trust
from ..errors import ImageError
from ..flat import is_flat
from ..images import LOCAL_FILES, UPLOADS, Decoded, DecoderPool, Input, Request
from .closer import LUMA
from .vectors import Say, Stopped

if TYPE_CHECKING:
    import numpy as np

SIZE = 32  # pixels a side that the transform sees
LOW = 8  # frequencies kept a side
FIELDS = 4  # of the colour layout, a side
VERSION = 2  # raise it when what is computed here changes
HASH_BYTES = LOW * LOW // 8
COLOUR_BYTES = FIELDS * FIELDS * 3
STORED_BYTES = 2 + HASH_BYTES + COLOUR_BYTES  # version, whether flat, hash, colours
SQUARE = Request(input=Input(SIZE, SIZE, "squash", "lanczos"))
AT_ONCE = 256  # pictures a transaction
GAIN = (0.6, 1.67)  # changes of contrast that count as light


class Prints(NamedTuple):
    """Fingerprints of n pictures.

    `hashes` uint64 (n,). `colours` uint8 (n, 48): mean RGB of 4 × 4 fields, row by row.
    `flat` bool (n,): nothing tells the picture from others. `known` bool (n,): false where
    there is no fingerprint; its numbers mean nothing.
    """

    hashes: np.ndarray
    colours: np.ndarray
    flat: np.ndarray
    known: np.ndarray


def fingerprints(squares: np.ndarray) -> np.ndarray:
    """What is stored: uint8 (n, 58) of RGB squares uint8 (n, 32, 32, 3)."""
    import numpy as np

    count = len(squares)
    frequency, place = np.arange(LOW)[:, None], np.arange(SIZE)[None]
    transform = np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIZE))  # DCT-II
    grey = squares @ np.array(LUMA)
    low = (transform @ grey @ transform.T).reshape(count, -1)
    bits = low > np.median(low, axis=1, keepdims=True)
    side = SIZE // FIELDS
    fields = squares.reshape(count, FIELDS, side, FIELDS, side, 3).mean(axis=(2, 4))
    colours = np.round(fields).astype(np.uint8).reshape(count, -1)
    version = np.full((count, 1), VERSION, np.uint8)
    flat = np.array([[is_flat(square)] for square in squares], np.uint8)
    return np.hstack([version, flat, np.packbits(bits, axis=1), colours])


def unpacked(stored: Iterable[bytes | None]) -> Prints:
    """Fingerprints as they were stored; None, or bytes of another version, as unknown."""
    import numpy as np

    rows = list(stored)
    known = np.array([_is_ours(row) for row in rows], bool)
    empty = bytes(STORED_BYTES)
    joined = b"".join(row if _is_ours(row) else empty for row in rows)
    table = np.frombuffer(joined, np.uint8).reshape(len(rows), STORED_BYTES)
    hashes = np.ascontiguousarray(table[:, 2 : 2 + HASH_BYTES]).view(">u8")[:, 0]
    colours = table[:, 2 + HASH_BYTES :]
    return Prints(hashes.astype(np.uint64), colours, table[:, 1] == 1, known)


def _is_ours(row: object) -> bool:
    return isinstance(row, bytes) and len(row) == STORED_BYTES and row[0] == VERSION


def bits_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In how many of 64 bits hashes differ (Hamming distance): uint64 (n,) twice."""
    import numpy as np

    return np.bitwise_count(a ^ b)


def colours_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far colour layouts lie apart, whatever brightness and contrast: uint8 (n, 48).

    The greatest difference of a field and channel, in levels of 255, once one has been
    fitted to the other by a factor (within GAIN) and a constant: float32 (n,).
    """
    import numpy as np

    x = a - a.mean(axis=1, keepdims=True, dtype=np.float32)
    y = b - b.mean(axis=1, keepdims=True, dtype=np.float32)
    both = (x * y).sum(axis=1, keepdims=True)
    gain = both / np.maximum((x * x).sum(axis=1, keepdims=True), 1)
    # Symmetric: what is left is measured in the picture of more contrast.
    back = both / np.maximum((y * y).sum(axis=1, keepdims=True), 1)
    low, high = GAIN
    one = np.abs(y - np.clip(gain, low, high) * x).max(axis=1)
    other = np.abs(x - np.clip(back, low, high) * y).max(axis=1)
    return np.maximum(one, other)


# Made from pictures, and kept


def stored_prints(
    conn: sqlite3.Connection,
    collection: db.Collection,
    items: dict[int, str],
    *,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Prints:
    """The fingerprints of items, given with the SHA-256 of their pictures.

    Those missing are made and stored. Unknown are those of items that have no thumbnail and
    whose picture may not be read, has changed, or cannot be decoded. Raises Stopped when
    `stop()` turns true: what was made by then stays.
    """
    rows = conn.execute(
        "select item_id, sha256, hash from _image_similarity_hashes "
        "where collection_id = ?",
        (collection.id,),
    )
    there = {
        item: stored
        for item, sha256, stored in rows
        if items.get(item) == sha256 and _is_ours(stored)
    }
    missing = {item: sha256 for item, sha256 in items.items() if item not in there}
    made = 0
    squares = decoded(conn, collection, missing)
    while batch := list(islice(squares, AT_ONCE)):
        there |= _put_prints(conn, collection, batch)
        made += len(batch)
        say("Hashing pictures", made, len(missing))
        if stop():
            squares.close()
            raise Stopped
    return unpacked(there.get(item) for item in items)


def _put_prints(
    conn: sqlite3.Connection,
    collection: db.Collection,
    batch: list[tuple[int, str, Decoded | None]],
) -> dict[int, bytes]:
    """Store the fingerprints of what could be decoded; they come back by item."""
    import numpy as np

    usable = [(item, sha, one.pixels) for item, sha, one in batch if one is not None]
    if not usable:
        return {}
    prints = fingerprints(np.stack([square for *_, square in usable]))
    made = {item: row.tobytes() for (item, *_), row in zip(usable, prints, strict=True)}
    with db.transaction(conn):
        # Not of those that were deleted meanwhile: their ids may be given out again.
        conn.executemany(
            "insert or replace into _image_similarity_hashes "
            "(item_id, collection_id, sha256, hash) select id, collection_id, sha256, ? "
            "from _image_similarity_items "
            "where id = ? and collection_id = ? and sha256 = ?",
            ((made[item], item, collection.id, sha) for item, sha, _ in usable),
        )
    return made


def decoded(
    conn: sqlite3.Connection,
    collection: db.Collection,
    items: dict[int, str],
    *,
    request: Callable[[int, bool], Request | None] = lambda *_: SQUARE,
    originals: bool = False,
    decoders: Decoders | None = None,
) -> Iterator[tuple[int, str, Decoded | None]]:
    """Items, given with their SHA-256, decoded, in order; without those that have changed.

    From the stored thumbnail, else from the original; the other way round with
    `originals`. `request` says what to make of an item, being told whether it is the
    original; None: do without. None comes back where neither can be had. A few pictures
    are in memory at once. `decoders` are kept running by whoever asks often.
    """
    with nullcontext(decoders) if decoders else Decoders() as running:
        reader = _Reader(conn, collection, originals, running.files)

        def decode(item: int, choices: list[_Choice]) -> Decoded | None:
            for pool, read, original in choices:
                wanted = request(item, original)
                with suppress(ImageError):
                    if wanted is not None:
                        return pool.decode(read(), wanted)
            return None

        def start(row: sqlite3.Row) -> tuple[sqlite3.Row, Future]:
            choices = [
                (running.small, reader.thumbnail(row), False),
                (running.large, reader.original(row), True),
            ]
            if originals:
                choices.reverse()
            return row, running.threads.submit(decode, row["id"], choices)

        waiting: deque[tuple[sqlite3.Row, Future]] = deque()
        for row in reader.rows(list(items)):
            if row["sha256"] != items[row["id"]]:
                continue
            waiting.append(start(row))
            if len(waiting) > 2 * running.workers:
                row, done = waiting.popleft()
                yield row["id"], row["sha256"], done.result()
        for row, done in waiting:
            yield row["id"], row["sha256"], done.result()


class Decoders:
    """Processes that decode thumbnails and originals, until the block ends."""

    def __enter__(self) -> Decoders:
        self.workers = os.cpu_count() or 1
        with ExitStack() as stack:
            self.files = stack.enter_context(sources.Reader())
            self.small = stack.enter_context(DecoderPool(UPLOADS, self.workers))
            self.large = stack.enter_context(DecoderPool(LOCAL_FILES, self.workers))
            self.threads = stack.enter_context(ThreadPoolExecutor(self.workers))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


_Bytes = Callable[[], bytes]  # raises ImageError
_Choice = tuple[DecoderPool, _Bytes, bool]  # and whether it is the original


class _Reader:
    """Where the bytes of a collection's pictures may be read from."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        collection: db.Collection,
        originals: bool,
        files: sources.Reader,
    ) -> None:
        self.conn, self.collection, self.originals = conn, collection, originals
        self.files = files
        self.source = db.source_of(conn, collection)
        self.trusted = trust.trusted_roots(db.file_of(conn))
        self.roots = db.roots(conn, collection)

    def rows(self, items: list[int]) -> Iterator[sqlite3.Row]:
        """The items as rows with their thumbnails, a few at a time."""
        sql = (
            f"select i.*, {db.thumbnail_sql()} as webp from json_each(?) j "
            "cross join _image_similarity_items i on i.id = j.value order by j.key"
        )
        for first in range(0, len(items), AT_ONCE):
            some = json.dumps(items[first : first + AT_ONCE])
            yield from self.conn.execute(sql, (some,)).fetchall()

    def thumbnail(self, row: sqlite3.Row) -> _Bytes:
        def read() -> bytes:
            if not isinstance(row["webp"], bytes):
                raise ImageError("there is no thumbnail")
            return row["webp"]

        return read

    def original(self, row: sqlite3.Row) -> _Bytes:
        """A BLOB is read here, in the thread of the connection, and only if needed."""
        blob = None
        needed = self.originals or not isinstance(row["webp"], bytes)
        if sources.is_in_row(self.collection, row["path"]) and needed:
            with suppress(ImageError):
                blob = sources.read_blob(
                    self.conn, self.source, self.collection.column, row["pk"]
                )
        root = self.roots.get(row["root_id"])

        def read() -> bytes:
            data = blob
            if data is None:
                file = sources.find_vouched(self.trusted, root, row["path"])
                data = self.files.read(file, LOCAL_FILES.max_bytes)
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                raise ImageError("the picture has changed")
            return data

        return read
