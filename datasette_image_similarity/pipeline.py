"""The pipeline: read, hash, decode, encode.

Three stages run side by side, with a bounded queue between each two. Threads read and
hash files and hand the bytes to child processes, which decode them (`images.py`);
*lanes*, two threads that take turns, put the pixels through the encoder; the caller's
thread writes what is done (`embed.py`) and keeps the queues filled. A few batches are in
memory at most.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from .encoders import Encoder
from .errors import ImageError, Stopped
from .images import Decoded, DecoderPool, Limits, Request, refuse_size
from .roots import is_object
from .sources import Picture, read_file

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
_Vectors = dict[str, "bytes | None"]  # by SHA-256; None for one that cannot be stored
LANES = 2  # calls of the encoder at once: the next is ready when one ends
BYTES_AHEAD = 256 << 20  # of what is read before its decoder is free
ASKING = 0.2  # seconds between two looks at `stop()` while something is waited for


@dataclass(frozen=True)
class Job:
    """A picture to look at, and the item (with its hash) that stands for it so far."""

    picture: Picture
    item: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one picture. Exactly one of these holds:

    - `failure` says why it could not be embedded;
    - `keep` is the item that has its vector already (a file touched or renamed);
    - `decoded` and `vector` (float32 bytes) are there, `reused` when the vector was.
    """

    picture: Picture
    sha256: str = ""
    keep: int | None = None
    decoded: Decoded | None = None
    vector: bytes | None = None
    reused: bool = False
    failure: str | None = None


def embed_pictures(
    jobs: Iterable[Job],
    *,
    encoder: Encoder | None,
    metric: str,
    movable: Mapping[str, list[int]],
    stored_vector: Callable[[str], bytes | None],
    read_row: Callable[[Picture], bytes],
    limits: Limits,
    thumbnail: int | None,
    batch_size: int,
    workers: int | None,
    stop: Callable[[], bool],
    read: Callable[[str, int], bytes] = read_file,
    readers: int | None = None,
    give_up: Callable[[], None] | None = None,
    decoders: DecoderPool | None = None,
) -> Iterator[list[Outcome]]:
    """Yields batches of outcomes, in the order of the jobs.

    `read(file, max_bytes)` gives the bytes at a picture's real place, in one of `readers`
    threads: by default as many as there are `workers`, which decode.

    `encoder` may be None when all pictures are known not to be readable.
    `movable` maps the SHA-256 of items whose file is gone to their ids: new pictures
    with these bytes take them over. `stored_vector` gives the vector of bytes
    embedded before; `read_row` reads a BLOB: both are called in the caller's thread.
    `workers` is the number of decoders, None for one a core; `decoders` are some that
    are there already, and stay.
    When `stop()` turns true, the batch under way is the last one. With `give_up`, which
    ends what `read` is at in all threads, the batch given last was: reads that may take
    minutes are not waited for.
    """
    workers = workers or os.cpu_count() or 1
    request = Request(input=encoder.input if encoder else None, thumbnail=thumbnail)
    with (
        nullcontext(decoders) if decoders else DecoderPool(limits, workers) as decoders,
        _threads(max(workers, readers or 0)) as reading,
        _threads(LANES) as lanes,
    ):

        def prepare(job: Job, data: bytes | None) -> Outcome:
            picture = job.picture
            try:
                if data is None:
                    if picture.size:
                        refuse_size(picture.size, limits)  # before it comes over the wire
                    data = read(picture.file, limits.max_bytes)
                # The file may have changed since it was listed: note what was read.
                picture = picture._replace(size=len(data))
                sha256 = hashlib.sha256(data).hexdigest()
                if sha256 == job.sha256:
                    return Outcome(picture, sha256, keep=job.item)
                if job.item is None:
                    with suppress(KeyError, IndexError):  # none, or none left
                        return Outcome(picture, sha256, keep=movable[sha256].pop(0))
                return Outcome(picture, sha256, decoded=decoders.decode(data, request))
            except ImageError as error:
                return Outcome(picture, failure=str(error))

        def start(job: Job) -> Future[Outcome]:
            picture = job.picture
            try:
                if picture.problem is not None:
                    raise ImageError(picture.problem)
                data = read_row(picture) if picture.file is None else None
            except ImageError as error:
                return _done(Outcome(picture, failure=str(error)))
            return reading.submit(prepare, job, data)

        size = encoder.batch_size if encoder else batch_size
        prepared = _ahead(jobs, start, 2 * size * LANES, stop if give_up else None)
        encoding = _Encoding(encoder, lanes, metric, stored_vector)
        outcomes = encoding.outcomes(prepared, size)
        try:
            while not stop() and (batch := list(islice(outcomes, batch_size))):
                yield batch
                encoding.forget(batch)
        except Stopped:  # while something was waited for
            pass
        finally:
            if give_up is not None and stop():
                give_up()


@contextmanager
def _threads(count: int, **options: object) -> Iterator[ThreadPoolExecutor]:
    """Threads that leave what nobody waits for undone when the block ends."""
    threads = ThreadPoolExecutor(count, "image-similarity", **options)
    try:
        yield threads
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _done(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future


def _ahead(
    jobs: Iterable[Job],
    start: Callable[[Job], Future[Outcome]],
    count: int,
    stop: Callable[[], bool] | None,
) -> Iterator[Outcome]:
    """The outcomes of jobs, in order, with `count` of them under way at most.

    Raises Stopped when `stop()` turns true while one is waited for.
    """
    jobs = iter(jobs)
    waiting: deque[tuple[int, Future[Outcome]]] = deque()
    held = 0  # bytes
    while True:
        while len(waiting) < count and held < BYTES_AHEAD:
            job = next(jobs, None)
            if job is None:
                break
            size = job.picture.size if _is_held(job.picture) else 0
            held += size
            waiting.append((size, start(job)))
        if not waiting:
            return
        size, first = waiting.popleft()
        yield _awaited(first, stop)
        held -= size


def _is_held(picture: Picture) -> bool:
    """Whether its bytes, as many as were listed, may wait long for a decoder: those of
    files are read when there is one, of an address nobody knows how many there are."""
    return picture.file is None or is_object(picture.file)


def _awaited(future: Future[T], stop: Callable[[], bool] | None) -> T:
    """The result. Raises Stopped when `stop()` turns true before it is there."""
    while stop is not None and not future.done():
        if stop():
            raise Stopped
        wait([future], ASKING)
    return future.result()


class _Encoding:
    """Pieces on their way through the lanes. Each set of bytes goes there once."""

    def __init__(
        self,
        encoder: Encoder | None,
        lanes: ThreadPoolExecutor,
        metric: str,
        stored_vector: Callable[[str], bytes | None],
    ) -> None:
        self._encoder = encoder
        self._lanes = lanes
        self._metric = metric
        self._stored_vector = stored_vector
        self._pieces: deque[_Piece] = deque()
        self._unwritten: dict[str, Future[_Vectors]] = {}  # by SHA-256

    def outcomes(self, prepared: Iterator[Outcome], size: int) -> Iterator[Outcome]:
        """The prepared outcomes with their vectors; the encoder takes `size` at once."""
        while piece := list(islice(prepared, size)):
            self._put(piece)
            if len(self._pieces) > LANES:
                yield from self._get()
        while self._pieces:
            yield from self._get()

    def _put(self, outcomes: list[Outcome]) -> None:
        """Start encoding what has been decoded and has no vector yet."""
        vectors: dict[str, Future[_Vectors]] = {}
        new: dict[str, np.ndarray] = {}
        for outcome in outcomes:
            sha256 = outcome.sha256
            if outcome.decoded is None or sha256 in vectors or sha256 in new:
                continue
            if sha256 in self._unwritten:
                vectors[sha256] = self._unwritten[sha256]
            elif (stored := self._stored_vector(sha256)) is not None:
                vectors[sha256] = _done({sha256: stored})
            else:
                new[sha256] = outcome.decoded.pixels
        if new:
            ours = dict.fromkeys(new, self._lanes.submit(self._encoded, new))
            vectors |= ours
            self._unwritten |= ours
        self._pieces.append(_Piece(outcomes, vectors, set(new)))

    def _get(self) -> list[Outcome]:
        """The outcomes of the oldest piece, with their vectors."""
        piece = self._pieces.popleft()
        finished = []
        for outcome in piece.outcomes:
            if outcome.decoded is not None:
                vector = piece.vectors[outcome.sha256].result()[outcome.sha256]
                if vector is None:
                    reason = "the encoder gave a vector of zeros, NaN or infinity for it"
                    outcome = Outcome(outcome.picture, failure=reason)
                else:
                    reused = outcome.sha256 not in piece.new
                    piece.new.discard(outcome.sha256)
                    outcome = replace(outcome, vector=vector, reused=reused)
            finished.append(outcome)
        return finished

    def forget(self, written: list[Outcome]) -> None:
        """From now on `stored_vector` knows these."""
        for outcome in written:
            self._unwritten.pop(outcome.sha256, None)

    def _encoded(self, pixels: Mapping[str, np.ndarray]) -> _Vectors:
        import numpy as np

        vectors = self._encoder.encode(np.stack(list(pixels.values())))
        finished = (finished_vector(vector, self._metric) for vector in vectors)
        return dict(zip(pixels, finished, strict=True))


@dataclass(frozen=True)
class _Piece:
    """Outcomes that were put together, and where the vectors of their bytes come from."""

    outcomes: list[Outcome]
    vectors: Mapping[str, Future[_Vectors]]
    new: set[str]  # hashes that this piece encodes


def finished_vector(vector: object, metric: str) -> bytes | None:
    """A vector as it is stored: little-endian float32, of length 1 for "cosine".

    `vector` is an array of shape (d,). None when it is all zeros or not finite.
    """
    import numpy as np

    vector = np.asarray(vector, dtype=np.float64)
    length = np.linalg.norm(vector)
    if not np.isfinite(length) or length == 0:
        return None
    if metric == "cosine":
        vector = vector / length
    return vector.astype("<f4").tobytes()
