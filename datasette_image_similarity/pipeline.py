"""The pipeline: read, hash, decode, batch, encode.

Threads read and hash files and hand the bytes to child processes, which decode them
(`images.py`); the caller's thread encodes batch after batch meanwhile, and writes each
one (`collection.py`) before it asks for the next. A few batches are in memory at most.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from .encoders import Encoder
from .errors import ImageError
from .images import Decoded, DecoderPool, Limits, Request
from .sources import Picture, read_file


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
    workers: int,
    stop: Callable[[], bool],
) -> Iterator[list[Outcome]]:
    """Yields batches of outcomes, in the order of the jobs.

    `encoder` may be None when all pictures are known not to be readable.
    `movable` maps the SHA-256 of items whose file is gone to their ids: new pictures
    with these bytes take them over. `stored_vector` gives the vector of bytes
    embedded before; `read_row` reads a BLOB: both are called in the caller's thread.
    When `stop()` turns true, what has been decoded by then is the last batch.
    """
    request = Request(input=encoder.input if encoder else None, thumbnail=thumbnail)
    with DecoderPool(limits, workers) as decoders:

        def prepare(job: Job, data: bytes | None) -> Outcome:
            picture = job.picture
            try:
                if data is None:
                    data = read_file(picture.file, limits.max_bytes)
                # The file may have changed since it was listed: note what was read.
                picture = replace(picture, size=len(data))
                sha256 = hashlib.sha256(data).hexdigest()
                if sha256 == job.sha256:
                    return Outcome(picture, sha256, keep=job.item)
                if job.item is None:
                    with suppress(KeyError, IndexError):  # none, or none left
                        return Outcome(picture, sha256, keep=movable[sha256].pop(0))
                return Outcome(picture, sha256, decoded=decoders.decode(data, request))
            except ImageError as error:
                return Outcome(picture, failure=str(error))

        def start(job: Job) -> Future[Outcome] | Outcome:
            picture = job.picture
            if picture.problem is not None:
                return Outcome(picture, failure=picture.problem)
            try:
                data = read_row(picture) if picture.file is None else None
            except ImageError as error:
                return Outcome(picture, failure=str(error))
            return threads.submit(prepare, job, data)

        threads = ThreadPoolExecutor(workers, thread_name_prefix="image-similarity")
        try:
            for batch in _batches(map(start, jobs), batch_size, 2 * workers, stop):
                yield _encoded(batch, encoder, metric, stored_vector)
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


def _batches(
    started: Iterator[Future[Outcome] | Outcome],
    size: int,
    ahead: int,
    stop: Callable[[], bool],
) -> Iterator[list[Outcome]]:
    """Outcomes in batches of `size`, with one batch and `ahead` more under way."""
    waiting: deque[Future[Outcome] | Outcome] = deque()
    batch: list[Outcome] = []

    def refill() -> None:
        while len(waiting) < size + ahead:
            following = next(started, None)
            if following is None:
                return
            waiting.append(following)

    refill()
    while waiting and not stop():
        first = waiting.popleft()
        batch.append(first if isinstance(first, Outcome) else first.result())
        refill()
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _encoded(
    batch: list[Outcome],
    encoder: Encoder,
    metric: str,
    stored_vector: Callable[[str], bytes | None],
) -> list[Outcome]:
    """The batch with vectors: each set of bytes goes through the encoder once."""
    import numpy as np

    decoded = {o.sha256: o.decoded for o in batch if o.decoded is not None}
    stored = {sha256: stored_vector(sha256) for sha256 in decoded}
    new = [sha256 for sha256 in decoded if stored[sha256] is None]
    vectors: dict[str, bytes | None] = {s: v for s, v in stored.items() if v is not None}
    if new:
        pixels = np.stack([decoded[sha256].pixels for sha256 in new])
        for sha256, vector in zip(new, encoder.encode(pixels), strict=True):
            vectors[sha256] = finished_vector(vector, metric)
    outcomes = []
    first = set(new)
    for outcome in batch:
        if outcome.decoded is None:
            outcomes.append(outcome)
        elif vectors[outcome.sha256] is None:
            reason = "the encoder gave a vector of zeros, NaN or infinity for it"
            outcomes.append(Outcome(outcome.picture, failure=reason))
        else:
            reused = outcome.sha256 not in first
            first.discard(outcome.sha256)
            vector = vectors[outcome.sha256]
            outcomes.append(replace(outcome, vector=vector, reused=reused))
    return outcomes


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
