"""The compressed index: nearest neighbours of big collections, without reading them whole.

An inverted file in ordinary tables. Vectors are centred and projected on the collection's
own principal axes (PCA), kept as a byte for each of the first and half a byte for each of
the others, and sorted into lists around k-means centres. A query looks into the few lists
whose centres are nearest (`probes`), estimates distances from the bytes, those of the best
also from the half bytes, and hands the best of all (`depth`) to `query.py`, which computes
their true distances. Reading whole vectors from the file is what takes longest: the half
bytes are there to need few of them. Probes and depth are chosen when the index is built,
from the true neighbours of a sample of the collection itself; what was reached is kept with
it.

Distances are estimated as those of the projections, and a part of the length of what these
leave out: see LEFT_OUT.

Rows that are new or have changed wait in `_image_similarity_unlisted`, and searches look at
each of these; `embed` lists them at its end. Building is the same with every row waiting,
which is why one that was cut off goes on.

Methods: Jégou, Douze, Schmid, "Product quantization for nearest neighbor search" (2011),
for the inverted file with re-ranking; Lloyd, "Least squares quantization in PCM" (1982).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

from datasette.utils.sqlite import sqlite3

from . import database as db
from .errors import CollectionError, DatabaseError
from .progress import Say, silent
from .stores.items import vectors_of

if TYPE_CHECKING:
    import numpy as np

WORTHWHILE = 10_000  # vectors; below, exact search is quick enough
RECALL = 0.99  # wanted where nothing is said
AXES = 288  # principal axes kept
COARSE = 96  # of these, the first, as a byte each; the others as half a byte
# Half a byte for numbers of standard deviation 1: the step of the best uniform quantiser
# with 16 levels (Max, "Quantizing for minimum distortion", 1960).
HALF_BYTE_STEP = 0.3352
REFINED = 1000  # rows whose half bytes are looked at, or four for each handed on
# How much of a vector's squared length outside the axes counts as distance. Neighbours are
# alike there too: with 160 axes, 99.5 % of the true neighbours among 100,000 vectors were
# within the best 78 with 0, 74 with .2, 77 with .4, 192 with 1.
LEFT_OUT = 0.25
SAMPLE = 50_000  # vectors that the axes and the centres are learned from
ROUNDS = 10  # of k-means
ROWS_AT_ONCE = 1024  # of codes
BLOCK = 4096  # vectors in memory at once
LISTED_AT_ONCE = 200_000  # rows a transaction: a list is rewritten for each
MEASURED = 400  # queries: half choose probes and depth, half measure the recall
ROW_COST, EXACT_COST = 0.05, 20  # µs: estimating a distance, comparing exactly
DEEPEST = 2000  # rows compared exactly at most
NEIGHBOURS = 10  # recall@10 is what is asked for and measured
WAITING = 1_000  # rows that may wait to be listed, or 1 in 200: see `crowded()`
DRIFTED = 1.25  # this much farther from their centres than when trained
RESIDENT = 256_000_000  # bytes of lists that a server keeps in memory at most


@dataclass(frozen=True)
class IndexStatus:
    """What an index is like. `recall` is None until it is finished."""

    asked: float
    recall: float | None
    probes: int
    lists: int
    depth: int
    listed: int
    waiting: int
    trained: int
    drift: float  # mean squared distance to the centres, in that of when it was trained
    bytes: int
    built_at: str | None

    @property
    def advice(self) -> str | None:
        """What to do about it, if anything."""
        if self.recall is None:
            return "not finished: run index again to go on"
        if self.drift > DRIFTED or self.listed > 4 * self.trained:
            return "the collection has changed much since: run index again"
        return None


class Listed(NamedTuple):
    """Rows of lists, n of them.

    `ids` int64 (n,). `codes` int8 (n, code_bytes): a byte for each of the first axes, then
    the others in two halves, one in the lower and one in the upper half bytes. `norms`
    float32 (n, 2): squared lengths of the first axes and of all, as coded, each with a
    part of what it leaves out.
    """

    ids: np.ndarray
    norms: np.ndarray
    codes: np.ndarray


class Model(NamedTuple):
    """What was learned: mean (d,), axes (a, d), scales (a,), centres (l, a); float32."""

    mean: np.ndarray
    axes: np.ndarray
    scales: np.ndarray
    centres: np.ndarray

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (n, d) as projections (n, a)."""
        return (vectors - self.mean) @ self.axes.T

    def project_one(self, vector: np.ndarray) -> np.ndarray:
        """A vector (d,) as projection (a,).

        For one vector NumPy's vecdot is used rather than matrix products, whose threads
        cost more than they bring when other requests are being answered.
        """
        import numpy as np

        return np.vecdot(self.axes, vector - self.mean)

    def nearest_lists(self, projected: np.ndarray, count: int) -> np.ndarray:
        """The lists (count,) whose centres are nearest to a projection (a,)."""
        import numpy as np

        norms = np.vecdot(self.centres, self.centres)
        return (norms - 2 * np.vecdot(self.centres, projected)).argsort()[:count]

    def nearest_centres(self, projected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For projections (n, a): the nearest list (n,), squared distance to it (n,)."""
        own = (projected * projected).sum(axis=1, keepdims=True)
        others = (self.centres * self.centres).sum(axis=1)
        distances = own - 2 * projected @ self.centres.T + others
        nearest = distances.argmin(axis=1)
        return nearest, distances[range(len(nearest)), nearest]

    def listed(self, ids: np.ndarray, vectors: np.ndarray, projected: np.ndarray) -> Listed:
        """Items with their vectors (n, d) and projections (n, a) as they are listed."""
        import numpy as np

        scaled = projected / self.scales
        whole = np.clip(np.rint(scaled[:, :COARSE]), -127, 127)
        half = np.clip(np.floor(scaled[:, COARSE:]), -8, 7) + 8
        inside = np.square(whole * self.scales[:COARSE]).sum(axis=1)
        both = inside + np.square((half - 7.5) * self.scales[COARSE:]).sum(axis=1)
        length = np.square(vectors - self.mean).sum(axis=1)
        norms = np.stack([inside, both], axis=1)
        norms += LEFT_OUT * (length[:, None] - norms)
        lower, upper = np.split(half.astype(np.uint8), 2, axis=1)
        codes = np.hstack([whole.astype(np.int8), (lower | upper << 4).view(np.int8)])
        return Listed(ids, norms.astype("<f4"), codes)

    def estimates(self, parts: list[Listed], projected: np.ndarray) -> np.ndarray:
        """Squared distances (n,) of listed rows to one projection (a,), less a constant.

        By the first axes alone.
        """
        import numpy as np

        weights = -2 * (self.scales * projected)[:COARSE].astype(np.float32)
        estimates = np.concatenate([part.norms[:, 0] for part in parts])
        # Block by block, so that the numbers stay in the processor's cache.
        block = np.empty((ROWS_AT_ONCE, len(weights)), np.float32)
        end = 0
        for part in parts:
            for start in range(0, len(part.ids), ROWS_AT_ONCE):
                codes = part.codes[start : start + ROWS_AT_ONCE, : len(weights)]
                numbers = block[: len(codes)]
                numbers[:] = codes
                estimates[end : end + len(codes)] += np.vecdot(numbers, weights)
                end += len(codes)
        return estimates

    def refined(
        self, best: Listed, estimates: np.ndarray, projected: np.ndarray
    ) -> np.ndarray:
        """These estimates (n,) of these rows, by all axes."""
        import numpy as np

        weights = -2 * (self.scales * projected)[COARSE:].astype(np.float32)
        half = best.codes[:, min(COARSE, len(self.axes)) :].view(np.uint8)
        codes = np.hstack([half & 15, half >> 4]).astype(np.float32) - 7.5
        change = best.norms[:, 1] - best.norms[:, 0]
        return estimates + change + np.vecdot(codes, weights)

    def to_bytes(self) -> bytes:
        return b"".join(part.astype("<f4").tobytes() for part in self)

    @classmethod
    def from_bytes(cls, data: bytes, dimensions: int, axes: int, lists: int) -> Model:
        """Raises DatabaseError unless the sizes fit and all numbers are finite."""
        import numpy as np

        shapes = ((dimensions,), (axes, dimensions), (axes,), (lists, axes))
        sizes = [math.prod(shape) for shape in shapes]
        if min(axes, lists) < 1 or len(data) != 4 * sum(sizes):
            raise DatabaseError(db.DAMAGED_INDEX)
        numbers = np.frombuffer(data, "<f4")
        if not np.isfinite(numbers).all():
            raise DatabaseError(db.DAMAGED_INDEX)
        parts = np.split(numbers, np.cumsum(sizes)[:-1])
        return cls(*(part.reshape(s) for part, s in zip(parts, shapes, strict=True)))


def code_bytes(axes: int) -> int:
    """How long the code of a row is."""
    return axes if axes <= COARSE else COARSE + (axes - COARSE) // 2


class Lists(Protocol):
    """Where the inverted lists are read from."""

    def probe(self, lists: Sequence[int]) -> list[Listed]:
        """These lists; one at least."""

    def find(self, ids: np.ndarray) -> list[Listed]:
        """The rows with these ids, sorted int64 (n,), in no order; one part at least."""


class StoredLists:
    """Lists read from the database one by one: nothing is kept."""

    def __init__(self, conn: sqlite3.Connection, collection: db.Collection, axes: int):
        self.conn, self.collection, self.width = conn, collection, code_bytes(axes)

    def probe(self, lists: Sequence[int]) -> list[Listed]:
        return [self._read(int(one)) for one in lists]

    def find(self, ids: np.ndarray) -> list[Listed]:
        import numpy as np

        found = [_listed(b"", b"", b"", self.width)]
        for _, *blobs in db.index_lists(self.conn, self.collection):
            listed = _listed(*blobs, self.width)
            there = np.isin(listed.ids, ids)
            found.append(Listed(*(part[there] for part in listed)))
        return found

    def _read(self, number: int) -> Listed:
        return _listed(*db.index_list(self.conn, self.collection, number), self.width)


class _Changed(DatabaseError):
    """Lists are not as they were a moment ago: another process writes, most likely."""


class ResidentLists:
    """All lists in memory, one behind the other: for servers and notebooks.

    Raises DatabaseError when they are damaged, or change while they are read.
    """

    def __init__(self, stored: StoredLists, lists: int) -> None:
        import numpy as np

        lengths = db.index_lengths(stored.conn, stored.collection)
        self.ends = np.cumsum([0, *(lengths.get(one, 0) for one in range(lists))])
        total = int(self.ends[-1])
        self.all = Listed(  # filled list by list: there is no room for two copies
            np.zeros(total, "<i8"),
            np.zeros((total, 2), "<f4"),
            np.zeros((total, stored.width), "i1"),
        )
        for number, *blobs in db.index_lists(stored.conn, stored.collection):
            listed = _listed(*blobs, stored.width)
            if len(listed.ids) != lengths.get(number):
                raise _Changed(db.DAMAGED_INDEX)
            if not isinstance(number, int):  # somebody else wrote it
                raise DatabaseError(db.DAMAGED_INDEX)
            if 0 <= number < lists:
                for whole, part in zip(self.all, listed, strict=True):
                    whole[self.ends[number] : self.ends[number + 1]] = part

    @cached_property
    def order(self) -> np.ndarray:
        """Places by id (n,): what `find()` needs, made when it is first asked."""
        return self.all.ids.argsort()

    @cached_property
    def sorted(self) -> np.ndarray:
        return self.all.ids[self.order]

    def probe(self, lists: Sequence[int]) -> list[Listed]:
        places = [slice(self.ends[one], self.ends[one + 1]) for one in lists]
        return [Listed(*(part[place] for part in self.all)) for place in places]

    def find(self, ids: np.ndarray) -> list[Listed]:
        import numpy as np

        found = []
        places = self.sorted.searchsorted(ids)
        while len(ids):  # once, and again for what stale entries list twice
            there = places < len(self.sorted)
            there[there] = self.sorted[places[there]] == ids[there]
            ids, places = ids[there], places[there]
            found.append(self.order[places])
            places = places + 1
        rows = np.concatenate(found or [np.zeros(0, np.int64)])
        return [Listed(*(part[rows] for part in self.all))]


def _listed(ids: bytes, norms: bytes, codes: bytes, width: int) -> Listed:
    """A list's blobs as arrays. Raises DatabaseError unless their lengths fit."""
    import numpy as np

    if not all(isinstance(blob, bytes) for blob in (ids, norms, codes)):
        raise DatabaseError(db.DAMAGED_INDEX)
    count = len(ids) // 8
    if (len(ids), len(norms), len(codes)) != (8 * count, 8 * count, width * count):
        raise DatabaseError(db.DAMAGED_INDEX)
    return Listed(
        np.frombuffer(ids, "<i8"),
        np.frombuffer(norms, "<f4").reshape(count, 2),
        np.frombuffer(codes, "i1").reshape(count, width),
    )


def _joined(parts: list[Listed], width: int) -> Listed:
    import numpy as np

    if not parts:
        return _listed(b"", b"", b"", width)
    return Listed(*(np.concatenate(part) for part in zip(*parts, strict=True)))


# Asking


@dataclass(frozen=True)
class Index:
    """A finished index, ready to be asked."""

    recall: float
    probes: int
    depth: int
    listed: int
    cosine: bool
    model: Model
    lists: Lists

    def nearest(self, vector: bytes, k: int, among: np.ndarray | None = None) -> np.ndarray:
        """Ids int64 (n,) of rows among which the k nearest are, what seems nearest first.

        `vector` is a float32 blob; `among` are the ids to choose from, sorted: all their
        codes are compared, and some more handed on, since depth was not chosen for them.
        An id may come twice. For large k, more lists are looked into and more rows are
        handed on.
        """
        import numpy as np

        wide = max(1.0, k / NEIGHBOURS)
        count = self.depth + 2 * max(0, k - NEIGHBOURS)
        if among is not None:
            count += 2 * NEIGHBOURS
        query = np.frombuffer(vector, "<f4")
        if self.cosine:
            query = query / np.linalg.norm(query)
        projected = self.model.project_one(query)
        if among is not None:
            parts = self.lists.find(among)
        else:
            probes = math.ceil(self.probes * math.sqrt(wide))
            parts = self.lists.probe(self.model.nearest_lists(projected, probes))
        estimates = self.model.estimates(parts, projected)
        best = _smallest(estimates, max(REFINED, 4 * count))
        listed = _rows(parts, best)
        estimates = self.model.refined(listed, estimates[best], projected)
        ids, best = listed.ids, _smallest(estimates, count)
        return ids[best[np.lexsort((ids[best], estimates[best]))]]


def _smallest(numbers: np.ndarray, count: int) -> np.ndarray:
    """Where the `count` smallest numbers are, in order of place."""
    import numpy as np

    if count >= len(numbers):
        return np.arange(len(numbers))
    return np.sort(np.argpartition(numbers, count)[:count])


def _rows(parts: list[Listed], places: np.ndarray) -> Listed:
    """Rows by their places, in order, in the parts one behind the other."""
    import numpy as np

    ends = np.cumsum([0, *(len(part.ids) for part in parts)])
    cuts = places.searchsorted(ends)
    chosen = [
        Listed(*(array[places[a:b] - end] for array in part))
        for part, end, a, b in zip(parts, ends, cuts, cuts[1:], strict=False)
        if b > a
    ]
    return _joined(chosen, parts[0].codes.shape[1])


class IndexCache:
    """What was read of indexes, for as long as they stay as they are.

    The first time an index is asked for, its lists are read as they are needed; from the
    second time on they are kept in memory, `limit` bytes of them in all. Made by whoever
    asks more than once; threads may share it.
    """

    def __init__(self, limit: int = RESIDENT) -> None:
        self.limit = limit
        self._kept: dict[tuple[str, int], _Kept] = {}  # least recently asked first
        self._lock = threading.Lock()

    def get(self, conn: sqlite3.Connection, collection: db.Collection) -> Index | None:
        """The index of a collection; None when there is none, or it is not to be used now.

        That is while it is being built, and while very many rows wait to be listed.
        Raises DatabaseError when it is damaged.
        """
        row = db.index_row(conn, collection)
        if row is None or row["recall"] is None or crowded(conn, collection, row["listed"]):
            return None
        key = (db.file_of(conn), collection.id)
        kept, claimed = self._find(key, row["version"])
        if kept is None:
            kept = _Kept(row["version"], _model(conn, collection, row))
            with self._lock:
                self._kept[key] = kept
        elif claimed:
            try:
                self._keep_lists(kept, StoredLists(conn, collection, row["axes"]), row)
            finally:
                kept.reading = False
        return Index(
            recall=row["recall"],
            probes=row["probes"],
            depth=row["depth"],
            listed=row["listed"],
            cosine=collection.metric == "cosine",
            model=kept.model,
            lists=kept.lists or StoredLists(conn, collection, row["axes"]),
        )

    def _find(self, key: tuple[str, int], version: int) -> tuple[_Kept | None, bool]:
        """What is kept of an index, and whether who asks is to read its lists.

        One thread does that, without the lock: it may take a second, in which the others
        read the few lists they need.
        """
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is None or kept.version != version:
                return None, False
            self._kept[key] = kept  # the last to go
            claimed = kept.lists is None and not kept.reading
            kept.reading |= claimed
            return kept, claimed

    def _keep_lists(self, kept: _Kept, stored: StoredLists, row: sqlite3.Row) -> None:
        """Read all lists into memory, where they have room."""
        # Not by the number that is noted: a stranger's file may say anything.
        rows = sum(db.index_lengths(stored.conn, stored.collection).values())
        size = rows * (stored.width + 32)
        if size > self.limit:
            return
        with self._lock:
            kept.size = 0
            while size + sum(one.size for one in self._kept.values()) > self.limit:
                self._kept.pop(next(iter(self._kept)))
            kept.size = size
        with suppress(_Changed):  # then the next question reads them
            kept.lists = ResidentLists(stored, row["lists"])


@dataclass
class _Kept:
    version: int
    model: Model
    lists: ResidentLists | None = None
    size: int = 0  # bytes of the lists
    reading: bool = False  # a thread is reading them


def open_index(
    conn: sqlite3.Connection, collection: db.Collection, cache: IndexCache | None = None
) -> Index | None:
    """See `IndexCache.get()`; without a cache nothing is kept."""
    return (cache or IndexCache()).get(conn, collection)


def crowded(conn: sqlite3.Connection, collection: db.Collection, listed: int) -> bool:
    """Whether so many rows wait to be listed that exact search is better."""
    most = max(WAITING, listed // 200)
    return db.waiting(conn, collection, most + 1) > most


def _model(conn: sqlite3.Connection, collection: db.Collection, row: sqlite3.Row) -> Model:
    data = db.index_model(conn, collection)
    return Model.from_bytes(data, collection.dimensions, row["axes"], row["lists"])


def index_status(conn: sqlite3.Connection, collection: db.Collection) -> IndexStatus | None:
    """What the index of a collection is like; None without one."""
    row = db.index_row(conn, collection)
    if row is None:
        return None
    spread = row["since_spread"] / row["since"] if row["since"] else row["spread"]
    return IndexStatus(
        asked=row["asked"],
        recall=row["recall"],
        probes=row["probes"],
        lists=row["lists"],
        depth=row["depth"],
        listed=row["listed"],
        waiting=db.waiting(conn, collection),
        trained=row["trained"],
        drift=spread / row["spread"] if row["spread"] else 1.0,
        bytes=row["listed"] * (code_bytes(row["axes"]) + 16)
        + 4 * (collection.dimensions * (1 + row["axes"]) + row["axes"] * row["lists"]),
        built_at=row["built_at"],
    )


# Building


def build_index(
    conn: sqlite3.Connection,
    collection: db.Collection,
    *,
    recall: float | None = None,
    rebuild: bool = False,
    say: Say = silent,
    stop: Callable[[], bool] = lambda: False,
) -> IndexStatus:
    """Make the index, or go on with one that was cut off.

    `recall` is the recall@10 wanted of it, above 0 and at most 1; as before, or .99. A
    finished one is brought up to date, and made anew when `rebuild` or another recall is
    asked for.
    `stop()` turning true ends the work at the next step; what was done stays. Raises
    CollectionError for a recall out of range or fewer than two vectors.
    """
    if recall is not None and not 0 < recall <= 1:
        raise CollectionError(f"The recall must be above 0 and at most 1, not {recall}")
    if collection.store:
        raise CollectionError(
            f"The vectors of {collection.table!r} are in {collection.store}, which has "
            "ways of its own to find what is near: the compressed index is for vectors in "
            "the database"
        )
    db.migrate(conn)
    try:
        row = db.index_row(conn, collection)
    except DatabaseError:
        if not rebuild:
            raise
        row = None
    if row is None or rebuild or recall not in (None, row["asked"]):
        before = RECALL if row is None else row["asked"]
        _train(conn, collection, recall or before, say)
    finished = list_waiting(conn, collection, say=say, stop=stop)
    row = db.index_row(conn, collection)
    if finished and row is not None and row["recall"] is None and not stop():
        _measure(conn, collection, row["asked"], say)
    status = index_status(conn, collection)
    if status is None:
        raise CollectionError("The index was removed while it was being made")
    return status


def _train(
    conn: sqlite3.Connection, collection: db.Collection, recall: float, say: Say
) -> None:
    """Learn mean, axes, scales and centres from a sample; then every row waits."""
    import numpy as np

    rng = np.random.default_rng(0)
    ids = np.array(db.item_ids(conn, collection), dtype=np.int64)
    if len(ids) < 2:
        raise CollectionError(
            f"{collection.table!r} has {len(ids)} embeddings: an index needs two at least"
        )
    sample = np.sort(rng.choice(ids, min(SAMPLE, len(ids)), replace=False))
    mean, covariance = _moments(conn, collection, sample, say)
    axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :AXES].T
    if len(axes) > COARSE:
        axes = axes[: len(axes) - (len(axes) - COARSE) % 2]  # two half bytes a byte
    blank = np.ones(len(axes))
    model = Model(mean, axes.astype(np.float32), blank, np.zeros((1, len(axes))))
    projected = np.concatenate(
        [
            model.project(vectors)
            for _, vectors in _told(conn, collection, sample, "projecting the sample", say)
        ]
    )
    # The few values beyond are clipped; there is one scale an axis.
    scales = np.quantile(np.abs(projected), 0.9999, axis=0) / 127
    scales[COARSE:] = projected[:, COARSE:].std(axis=0) * HALF_BYTE_STEP
    scales[scales == 0] = 1
    count = int(np.clip(round(2 * math.sqrt(len(ids))), 1, len(sample) // 8 or 1))
    centres = _k_means(projected, count, rng, say)
    model = model._replace(scales=scales.astype(np.float32), centres=centres)
    spread = float(model.nearest_centres(projected)[1].mean())
    with db.transaction(conn):
        db.put_index(
            conn,
            collection,
            asked=recall,
            lists=len(centres),
            axes=len(axes),
            trained=len(ids),
            spread=spread,
            model=model.to_bytes(),
        )


def _moments(
    conn: sqlite3.Connection, collection: db.Collection, sample: np.ndarray, say: Say
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) float32 and covariance (d, d) float64 of a sample of vectors."""
    import numpy as np

    total = np.zeros(collection.dimensions)
    products = np.zeros((collection.dimensions, collection.dimensions))
    count = 0
    for _, vectors in _told(conn, collection, sample, "learning the axes", say):
        total += vectors.sum(axis=0, dtype=np.float64)
        products += vectors.T @ vectors
        count += len(vectors)
    if not count:
        raise DatabaseError("No vector could be read: run verify DATABASE --repair")
    mean = total / count
    return mean.astype(np.float32), products / count - np.outer(mean, mean)


def _k_means(
    points: np.ndarray, count: int, rng: np.random.Generator, say: Say
) -> np.ndarray:
    """Centres (count, a) of points (n, a), float32, by Lloyd's algorithm.

    A centre that no point is nearest to moves to a point drawn at random.
    """
    import numpy as np

    blank = np.zeros(0, dtype=np.float32)
    centres = points[rng.choice(len(points), count, replace=False)]
    for done in range(ROUNDS):
        say("finding the centres", done, ROUNDS)
        model = Model(blank, blank, blank, centres)
        nearest = np.concatenate(
            [
                model.nearest_centres(points[start : start + BLOCK])[0]
                for start in range(0, len(points), BLOCK)
            ]
        )
        order = nearest.argsort(kind="stable")
        held, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(points[order], starts, axis=0)
        counts = np.diff([*starts, len(points)])[:, None]
        centres = points[rng.choice(len(points), count, replace=False)]
        centres[held] = sums / counts
    say("finding the centres", ROUNDS, ROUNDS)
    return centres


def _told(
    conn: sqlite3.Connection,
    collection: db.Collection,
    ids: Sequence[int] | np.ndarray,
    what: str,
    say: Say,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The vectors of items in blocks, ids (n,) and float32 (n, d), telling how far it is.

    Items whose vector is missing or of another length are left out: `verify` finds them.
    """
    import numpy as np

    stored = vectors_of(conn, collection)
    for start in range(0, len(ids), BLOCK):
        say(what, start, len(ids))
        rows = [
            (item, data)
            for item, data in stored.get(ids[start : start + BLOCK])
            if len(data) == 4 * collection.dimensions
        ]
        data = b"".join(data for _, data in rows)
        vectors = np.frombuffer(data, "<f4").reshape(len(rows), collection.dimensions)
        finite = np.isfinite(vectors).all(axis=1)
        yield np.array([item for item, _ in rows], dtype=np.int64)[finite], vectors[finite]
    say(what, len(ids), len(ids))


def list_waiting(
    conn: sqlite3.Connection,
    collection: db.Collection,
    *,
    say: Say = silent,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Put the rows that wait into their lists. True when none is left.

    Rows that change meanwhile go on waiting.
    """
    row = db.index_row(conn, collection)
    if row is None or not db.waiting(conn, collection, 1):
        return True
    model = _model(conn, collection, row)
    while waiting := db.waiting_items(conn, collection, LISTED_AT_ONCE):
        new, numbers, spread = _coded(conn, collection, model, list(waiting), say)
        if stop():
            return False
        with db.transaction(conn):
            now = db.index_row(conn, collection)
            if now is None or now["built"] != row["built"]:
                return False  # another process has made it anew
            _append(conn, collection, code_bytes(len(model.axes)), new, numbers)
            db.note_listed(conn, collection, waiting, len(new.ids), spread)
    return True


def keep_up(conn: sqlite3.Connection, collection: db.Collection) -> None:
    """List what waits when there is so much of it that searches would get slow."""
    row = db.index_row(conn, collection)
    finished = row is not None and row["recall"] is not None
    if finished and crowded(conn, collection, row["listed"]):
        list_waiting(conn, collection)


def unlisted(conn: sqlite3.Connection, collection: db.Collection) -> list[int]:
    """Items that are neither listed nor waiting to be: no search by index finds them.

    Raises DatabaseError when the index is damaged.
    """
    row = db.index_row(conn, collection)
    if row is None:
        return []
    _model(conn, collection, row)
    lists = ResidentLists(StoredLists(conn, collection, row["axes"]), row["lists"])
    found = {*lists.sorted.tolist(), *db.waiting_items(conn, collection)}
    return [item for item in db.item_ids(conn, collection) if item not in found]


def _coded(
    conn: sqlite3.Connection,
    collection: db.Collection,
    model: Model,
    ids: list[int],
    say: Say,
) -> tuple[Listed, np.ndarray, float]:
    """The rows, the list of each (n,), and the sum of squared distances to the centres."""
    import numpy as np

    parts, numbers, spread = [], [], 0.0
    for found, vectors in _told(conn, collection, ids, "listing", say):
        projected = model.project(vectors)
        nearest, distances = model.nearest_centres(projected)
        parts.append(model.listed(found, vectors, projected))
        numbers.append(nearest)
        spread += float(distances.sum())
    width = code_bytes(len(model.axes))
    return _joined(parts, width), np.concatenate(numbers), spread


def _append(
    conn: sqlite3.Connection,
    collection: db.Collection,
    width: int,
    new: Listed,
    numbers: np.ndarray,
) -> None:
    """Write the lists that these rows belong to, with them. Call inside a transaction."""
    import numpy as np

    order = numbers.argsort(kind="stable")
    touched, starts = np.unique(numbers[order], return_index=True)
    for number, places in zip(touched, np.split(order, starts[1:]), strict=True):
        old = _listed(*db.index_list(conn, collection, int(number)), width)
        stays = ~np.isin(old.ids, new.ids)
        kept = Listed(*(part[stays] for part in old))
        both = _joined([kept, Listed(*(part[places] for part in new))], width)
        db.put_list(conn, collection, int(number), *(part.tobytes() for part in both))


# Measuring


def _measure(
    conn: sqlite3.Connection, collection: db.Collection, recall: float, say: Say
) -> None:
    """Choose probes and depth by one half of a sample, measure the recall on the other.

    They are chosen for a somewhat better recall than is asked for: pictures that are not
    in the collection are a little harder to find neighbours for.
    """
    import numpy as np

    ids = np.array(db.item_ids(conn, collection), dtype=np.int64)
    rng = np.random.default_rng(1)
    sample = np.sort(rng.choice(ids, min(MEASURED, len(ids)), replace=False))
    blocks = list(_told(conn, collection, sample, "measuring", silent))
    queries = np.concatenate([vectors for _, vectors in blocks])
    own = np.concatenate([found for found, _ in blocks])
    true = _exact(conn, collection, queries, own, ids, say)
    half = len(queries) // 2
    better = recall + (1 - recall) / 4
    index = _chosen(conn, collection, queries[:half], own[:half], true[:half], better)
    reached = _recall(index, queries[half:], own[half:], true[half:])
    while reached < (recall + better) / 2 and index.probes < len(index.model.centres):
        index = replace(
            index, probes=math.ceil(1.1 * index.probes), depth=math.ceil(1.1 * index.depth)
        )
        reached = _recall(index, queries[half:], own[half:], true[half:])
    probes = min(index.probes, len(index.model.centres))
    db.finish_index(conn, collection, recall=reached, probes=probes, depth=index.depth)


def _exact(
    conn: sqlite3.Connection,
    collection: db.Collection,
    queries: np.ndarray,
    own: np.ndarray,
    ids: np.ndarray,
    say: Say,
) -> np.ndarray:
    """Ids (q, k) of the true nearest of `ids` to queries (q, d), each without its `own`."""
    import numpy as np

    norms = (queries * queries).sum(axis=1, keepdims=True)
    best = np.full((len(queries), 0), np.inf, dtype=np.float32)
    best_ids = np.zeros((len(queries), 0), dtype=np.int64)
    for found, vectors in _told(conn, collection, ids, "measuring the recall", say):
        distances = norms - 2 * queries @ vectors.T + (vectors * vectors).sum(axis=1)
        distances[own[:, None] == found] = np.inf
        distances = np.hstack([best, distances])
        all_ids = np.hstack([best_ids, np.broadcast_to(found, (len(queries), len(found)))])
        k = min(NEIGHBOURS, distances.shape[1] - 1)
        near = np.argpartition(distances, k, axis=1)[:, :k]
        best = np.take_along_axis(distances, near, axis=1)
        best_ids = np.take_along_axis(all_ids, near, axis=1)
    return best_ids


def _chosen(
    conn: sqlite3.Connection,
    collection: db.Collection,
    queries: np.ndarray,
    own: np.ndarray,
    true: np.ndarray,
    recall: float,
) -> Index:
    """The index with the probes and depth that find this much at the least cost.

    For each true neighbour (q, k) it is known how many lists have to be looked into for
    it, and how many rows compared exactly once they are: of all pairs of the two that
    find enough, the one that costs least is taken.
    """
    import numpy as np

    row = db.index_row(conn, collection)
    model = _model(conn, collection, row)
    lists = ResidentLists(StoredLists(conn, collection, row["axes"]), row["lists"])
    cosine = collection.metric == "cosine"
    deepest = min(DEEPEST, row["listed"])
    index = Index(1.0, row["lists"], deepest, row["listed"], cosine, model, lists)
    number = np.repeat(np.arange(row["lists"]), np.diff(lists.ends))[lists.order]
    needed = np.full(true.shape, row["lists"])
    ranks = np.full(true.shape, row["listed"])
    for i, (query, itself) in enumerate(zip(queries, own, strict=True)):
        order = model.nearest_lists(model.project_one(query), row["lists"])
        position = order.argsort()
        found = index.nearest(query.tobytes(), NEIGHBOURS)
        found = found[found != itself]
        rank = {item: place for place, item in enumerate(found.tolist(), 2)}
        for j, item in enumerate(true[i].tolist()):
            place = lists.sorted.searchsorted(item)
            if place < len(lists.sorted) and lists.sorted[place] == item:
                needed[i, j] = position[number[place]] + 1
                ranks[i, j] = rank.get(item, row["listed"])
    wanted = math.ceil(recall * true.size)
    rows_a_list = row["listed"] / row["lists"]
    best = (math.inf, row["lists"], deepest)
    for probes in np.unique(needed):
        within = np.sort(ranks[needed <= probes])
        if len(within) >= wanted:
            depth = max(int(within[wanted - 1]), NEIGHBOURS + 1)
            cost = probes * rows_a_list * ROW_COST + depth * EXACT_COST
            best = min(best, (cost, int(probes), depth))
    return replace(index, probes=best[1], depth=best[2])


def _recall(index: Index, queries: np.ndarray, own: np.ndarray, true: np.ndarray) -> float:
    """recall@k: the share of the true neighbours (q, k) that are handed on.

    What is handed on is ordered by true distances, so that none of these gets lost.
    """
    import numpy as np

    found = 0
    for query, itself, neighbours in zip(queries, own, true, strict=True):
        ids = index.nearest(query.tobytes(), NEIGHBOURS)
        found += np.isin(neighbours, ids[ids != itself]).sum()
    return float(found / true.size)
