"""All pairs of a collection that are alike: by cosine, or by perceptual hash.

Both are exact: every pair is compared, block by block. For cosines, few of a vector's
numbers decide about most pairs. With p the projections on orthonormal axes and r the length
of what these leave out, the Cauchy–Schwarz inequality gives

    cos(a, b) ≤ p(a) · p(b) + r(a) r(b),

which is one product of p and r put side by side. Only pairs whose bound reaches the
threshold are compared in full; with the first principal axes of real embeddings these are
few, and nothing is missed with any axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from .hashes import bits_apart
from .vectors import Say, Stopped

if TYPE_CHECKING:
    import numpy as np

BLOCK = 2048  # pictures a side of a block
FEW = 10_000  # pictures; below, all products are computed in full
AXES = 128
ROUNDS = 3  # of orthogonal iteration: nearly the principal axes are as good
SAMPLE = 20_000  # vectors that the axes are found from
ROUNDING = 1e-5  # of float32 products
CROWDED = 0.02  # of a block's pairs: then the whole block is computed in full
VERIFIED_AT_ONCE = 20_000  # pairs
MOST = 100  # pairs kept of each picture: thousands of equal ones give millions


class Pairs(NamedTuple):
    """m pairs of places in an array: int64 (m,) twice, a < b, and cosines float32 (m,)."""

    a: np.ndarray
    b: np.ndarray
    score: np.ndarray


class _Kept:
    """Pairs, of each picture the first that come, and the best of those that come at once.

    A pair is left out only when both of its pictures have MOST others.
    """

    def __init__(self, count: int) -> None:
        import numpy as np

        self.degree = np.zeros(count, np.int64)
        none = np.zeros(0, np.int64)
        self.parts = [Pairs(none, none, np.zeros(0, np.float32))]

    def add(self, a: np.ndarray, b: np.ndarray, score: np.ndarray) -> None:
        import numpy as np

        free = np.zeros(len(a), bool)
        for ends in (a, b):
            free |= self.degree[ends] + _ranks(ends, score) < MOST
        a, b, score = a[free], b[free], score[free]
        np.add.at(self.degree, a, 1)
        np.add.at(self.degree, b, 1)
        self.parts.append(Pairs(a, b, score))

    def all(self) -> Pairs:
        import numpy as np

        return Pairs(*(np.concatenate(column) for column in zip(*self.parts, strict=True)))


def _ranks(keys: np.ndarray, score: np.ndarray) -> np.ndarray:
    """The rank of each row among those of the same key, 0 for the highest score."""
    import numpy as np

    order = np.lexsort((-score, keys))
    places = np.arange(len(keys))
    starts = np.r_[True, np.diff(keys[order]) > 0] if len(keys) else np.zeros(0, bool)
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = places - np.maximum.accumulate(np.where(starts, places, 0))
    return ranks


def similar_pairs(
    vectors: np.ndarray,
    threshold: float,
    *,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Pairs:
    """Pairs of L2-normalised vectors float32 (n, d) whose cosine is at least `threshold`.

    Raises Stopped when `stop()` turns true.
    """
    import numpy as np

    bounding = _bounding(vectors)
    exact = bounding is vectors
    kept = _Kept(len(vectors))
    for rows, columns in _blocks(len(vectors), "Comparing embeddings", say, stop):
        product = bounding[rows] @ bounding[columns].T
        a, b = _reaching(product, threshold - ROUNDING, rows == columns)
        if exact or len(a) > CROWDED * product.size:
            product = product if exact else vectors[rows] @ vectors[columns].T
            a, b = _reaching(product, threshold, rows == columns)
            score = product[a, b]
            a, b = a + rows.start, b + columns.start
        else:
            a, b = a + rows.start, b + columns.start
            score = cosines(vectors, a, b)
            right = score >= threshold
            a, b, score = a[right], b[right], score[right]
        kept.add(a, b, np.minimum(score, 1))
    return kept.all()


def pairs_by_hash(
    hashes: np.ndarray,
    bits: int,
    confirmed: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    *,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Pairs:
    """Pairs of hashes uint64 (n,) that differ in at most so many bits, and are confirmed.

    `confirmed(a, b)` gets places and says which of these pairs count (bool) and their
    cosines (float32). Raises Stopped.
    """
    kept = _Kept(len(hashes))
    for rows, columns in _blocks(len(hashes), "Comparing hashes", say, stop):
        near = bits_apart(hashes[rows, None], hashes[None, columns]) <= bits
        a, b = _reaching(near, True, rows == columns)
        a, b = a + rows.start, b + columns.start
        right, score = confirmed(a, b)
        kept.add(a[right], b[right], score[right])
    return kept.all()


def cosines(vectors: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosines of pairs of rows: float32 (m,)."""
    import numpy as np

    parts = [
        np.einsum("ij,ij->i", vectors[a[first:last]], vectors[b[first:last]])
        for first in range(0, len(a), VERIFIED_AT_ONCE)
        if (last := first + VERIFIED_AT_ONCE)
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def _blocks(
    count: int, what: str, say: Say, stop: Callable[[], bool]
) -> Iterator[tuple[slice, slice]]:
    """The upper triangle of all pairs, in blocks."""
    slices = [slice(i, min(i + BLOCK, count)) for i in range(0, count, BLOCK)]
    total = len(slices) * (len(slices) + 1) // 2
    done = 0
    for number, rows in enumerate(slices):
        for columns in slices[number:]:
            yield rows, columns
            done += 1
            if stop():
                raise Stopped
        say(what, done, total)


def _reaching(
    block: np.ndarray, least: float | bool, diagonal: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the block where it reaches `least`, each pair once."""
    import numpy as np

    a, b = np.divmod(np.flatnonzero(block >= least), block.shape[1])
    if diagonal:
        upper = a < b
        a, b = a[upper], b[upper]
    return a, b


def _bounding(vectors: np.ndarray) -> np.ndarray:
    """Vectors whose products bound the cosines from above; short vectors are their own."""
    import numpy as np

    count, dimensions = vectors.shape
    if dimensions <= 2 * AXES or count <= FEW:
        return vectors
    rng = np.random.default_rng(0)
    some = rng.choice(count, min(count, SAMPLE), replace=False)
    sample = vectors[np.sort(some)]
    moments = (sample.T @ sample).astype(np.float64)
    axes = rng.standard_normal((dimensions, AXES))
    for _ in range(ROUNDS):
        axes = np.linalg.qr(moments @ axes)[0]
    axes = axes.astype(np.float32)
    bounding = np.empty((count, AXES + 1), np.float32)
    for first in range(0, count, BLOCK):
        block = vectors[first : first + BLOCK]
        projected = block @ axes
        inside = np.einsum("ij,ij->i", projected, projected)
        bounding[first : first + BLOCK, :AXES] = projected
        bounding[first : first + BLOCK, AXES] = np.sqrt(np.maximum(0, 1 - inside))
    return bounding
