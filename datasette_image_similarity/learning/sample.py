"""Pictures that are embedded already and wait until something is learned from them.

`embed --dims` stores projected vectors from the first one on, and encodes every picture
once: those that the projection is learned from are kept here meanwhile, their vectors,
which may have 100,000 numbers, in a temporary file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import Any

import numpy as np

from ..encoders import Encoder
from ..encoders.transform import Step, Transform, TransformedEncoder
from ..errors import CollectionError
from ..pipeline import Outcome, finished_vector
from . import pca

PICTURES = 4096  # learned from at most: of 1,000 or of all, P@5 was the same


def pictures_wanted(inputs: int) -> int:
    """From how many pictures so many dimensions are learned, where there are so many."""
    return min(PICTURES, pca.sample_size(inputs))


class Sample:
    """Outcomes of embedding, without their pixels, and their vectors in a file."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.failed = 0
        self._outcomes: list[Outcome] = []
        self._vectors = 0
        self._rows: dict[str, int] = {}  # by SHA-256 of the picture
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 closed by __exit__

    def __enter__(self) -> Sample:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # what is still to be written may not fit
            self._file.close()

    @property
    def seen(self) -> int:
        """Pictures that were looked at."""
        return len(self._outcomes)

    @property
    def usable(self) -> int:
        """Those among them that have a vector."""
        return self._vectors

    def add(self, batch: Iterable[Outcome]) -> None:
        """Keep a batch. Raises CollectionError when the temporary folder is full."""
        for outcome in batch:
            if outcome.vector is not None:
                self._rows[outcome.sha256] = self._vectors
                self._write(outcome.vector)
                decoded = replace(outcome.decoded, pixels=None)
                outcome = replace(outcome, decoded=decoded, vector=None)
            else:
                self.failed += 1
            self._outcomes.append(outcome)

    def vector(self, sha256: str) -> bytes | None:
        """The vector of bytes that came before, not projected: as `stored_vector` gives."""
        row = self._rows.get(sha256)
        return None if row is None else self._matrix()[row].tobytes()

    def _write(self, vector: bytes) -> None:
        with _explained():
            self._file.write(vector)
        self._vectors += 1

    def learn(
        self,
        encoder: Encoder,
        dims: int,
        metric: str,
        about: dict[str, Any],
        stop: Callable[[], bool],
    ) -> TransformedEncoder:
        """The encoder with PCA of these vectors after it.

        Raises CollectionError when they are too few, or do not differ, Stopped.
        """
        pca.check_dims(dims, self.inputs, self._vectors)
        spectrum = pca.spectrum(self._matrix(), stop)
        step = pca.pca_step(spectrum, dims, unit=metric == "cosine", about=about)
        return TransformedEncoder(encoder, Transform((step,)))

    def _matrix(self) -> np.ndarray:
        """float32 (usable, inputs), in the file."""
        with _explained():
            self._file.flush()
        shape = (self._vectors, self.inputs)
        return np.memmap(self._file, "<f4", "r", shape=shape)

    def batches(self, step: Step, metric: str, size: int) -> Iterator[list[Outcome]]:
        """The outcomes with their vectors after the step, in the order they came."""
        matrix = self._matrix() if self._vectors else np.empty((0, self.inputs), "<f4")
        outcomes = iter(self._outcomes)
        row = 0
        while batch := list(islice(outcomes, size)):
            have = [outcome.decoded is not None for outcome in batch]
            moved = iter(step.apply(matrix[row : row + sum(have)]))
            row += sum(have)
            yield [
                _with_vector(outcome, next(moved), metric) if has else outcome
                for outcome, has in zip(batch, have, strict=True)
            ]


@contextmanager
def _explained() -> Iterator[None]:
    """Raise CollectionError when the temporary folder is full."""
    try:
        yield
    except OSError as error:
        raise CollectionError(
            f"The vectors to learn from do not fit into {tempfile.gettempdir()}: "
            f"{error.strerror}. Set TMPDIR to a folder with more room"
        ) from error


def _with_vector(outcome: Outcome, vector: np.ndarray, metric: str) -> Outcome:
    finished = finished_vector(vector, metric)
    if finished is None:
        reason = "nothing is left of its vector after the projection"
        return Outcome(outcome.picture, failure=reason)
    return replace(outcome, vector=finished)
