"""Principal component analysis: the directions in which pictures differ most.

Fewer numbers a picture, and better ones: what all pictures have in common goes (centring),
and so do directions that are mostly noise. Whitening also gives every direction that is
left the same weight; shrinkage says how far it does not.

Jolliffe, "Principal Component Analysis" (2002); Jégou and Chum, "Negative evidences and
co-occurences in image retrieval: the benefit of PCA and whitening" (2012).

How many dimensions: vectors of MobileNetV2 (1,280) and of hog (1,308) of two collections,
51 and 10 kinds of pictures, were judged in 16 to 512. For the pictures that PCA was learned
from, 64 to 128 are best by mAP, and precision@5 stays the same from 128 on. For kinds that
it has never seen, which a collection may get later, more are better: 128 lose up to .02 of
precision@5 against the full vectors, 256 at most .013, and gain mAP everywhere. So it is
256 by default. Whitening gains precision for hog, none for MobileNetV2, and loses mAP.

Two ways to the same directions, both exact. With more vectors than dimensions, mean and
covariance are summed up block by block and never is more than a block in memory. With
fewer, the matrix of the vectors' products with each other is smaller than the covariance;
the vectors themselves may lie in a file, which is read by some columns at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..encoders.transform import MOST_NUMBERS, Step
from ..errors import CollectionError
from ..explore.vectors import BLOCK, Stopped

DEFAULT_SHRINKAGE = 0.75  # less costs mAP, more is nearly PCA
SMALL = 4096  # what is decomposed has so many rows at most: minutes, and 128 MB
LONG = 2048  # pictures at most that vectors longer than SMALL are learned from
MOST_PICTURES = 100_000  # learned from, where a covariance is summed up
MOST_BYTES = 1 << 30  # of vectors longer than SMALL
COLUMNS = 1 << 22  # numbers in memory at once, of a matrix that is read by columns
NOISE = 1e-11  # of the largest variance, and …
ROUNDING = 1e-14  # of the squared length: what rounding to float32 leaves


@dataclass(frozen=True)
class Spectrum:
    """How vectors spread: `count` of them, in `inputs` dimensions.

    `mean` float64 (inputs,). `variances` float64 (r,), largest first, along the r
    directions in which they differ at all; `axes(k)` gives the first k directions as
    float64 (inputs, k), of length 1 and perpendicular to each other, the largest number of
    each being positive. `total` is the sum of all variances.
    """

    count: int
    mean: np.ndarray
    variances: np.ndarray
    axes: Callable[[int], np.ndarray]

    @property
    def inputs(self) -> int:
        return len(self.mean)

    @property
    def total(self) -> float:
        return float(self.variances.sum())


def sample_size(inputs: int) -> int:
    """From how many pictures at most a collection of so many dimensions is learned."""
    if inputs <= SMALL:
        return MOST_PICTURES
    return min(LONG, MOST_BYTES // (4 * inputs))


def check_dims(dims: int, inputs: int, pictures: int | None = None) -> None:
    """Raise CollectionError unless so many dimensions can be had of so many.

    n pictures differ in n − 1 directions at most.
    """
    most = min(sample_size(inputs) - 1, MOST_NUMBERS // inputs)
    if not 1 <= dims <= min(inputs, most):
        raise CollectionError(
            f"Vectors of {inputs:,} dimensions can be had in 1 to {min(inputs, most):,}, "
            f"not in {dims:,}"
        )
    if pictures is not None and dims >= pictures:
        fewer = f"ask for {pictures - 1:,} or fewer, or " if pictures > 1 else ""
        raise CollectionError(
            f"{dims:,} dimensions take more than {dims:,} pictures to learn from, and "
            f"there are {pictures:,}: {fewer}embed more of them"
        )


def spectrum(matrix: np.ndarray, stop: Callable[[], bool] = lambda: False) -> Spectrum:
    """The spectrum of the rows of a matrix, float32 (n, inputs), the shorter way."""
    count, inputs = matrix.shape
    if count <= inputs:
        return spectrum_of_matrix(matrix, stop)
    starts = range(0, count, BLOCK)
    return spectrum_of_blocks((matrix[start : start + BLOCK] for start in starts), stop)


def spectrum_of_blocks(
    blocks: Iterable[np.ndarray], stop: Callable[[], bool] = lambda: False
) -> Spectrum:
    """The spectrum of vectors that come in blocks, each float32 (m, inputs).

    Takes 16 · inputs² bytes. Sums are float64 and about the first block's mean, or
    vectors far from the origin would lose their variance in rounding. Raises
    CollectionError when there are none or all are the same, Stopped.
    """
    count, origin = 0, np.zeros(0)
    for block in blocks:
        if stop():
            raise Stopped
        if not len(block):
            continue
        block = block.astype(np.float64)
        if not count:
            origin = block.mean(axis=0)
            sums = np.zeros(len(origin))
            products = np.zeros((len(origin), len(origin)))
        block -= origin
        sums += block.sum(axis=0)
        products += block.T @ block
        count += len(block)
    if not count:
        raise _nothing()
    away = sums / count
    covariance = products / count - np.outer(away, away)
    mean = origin + away
    variances, axes = _decomposed(covariance, mean @ mean)
    return Spectrum(count, mean, variances, lambda k: _signed(axes[:, :k].copy()))


def spectrum_of_matrix(
    matrix: np.ndarray, stop: Callable[[], bool] = lambda: False
) -> Spectrum:
    """The spectrum of the rows of a matrix, float32 (n, inputs), which may lie in a file.

    By the matrix of their inner products (Gram), float64 (n, n): with X centred and
    X Xᵀ = U Λ Uᵀ, the directions are Xᵀ U Λ^-½. Takes 16 · n² bytes, and of X some columns
    at a time. Raises as `spectrum_of_blocks()`.
    """
    count, inputs = matrix.shape
    if not count:
        raise _nothing()
    width = max(1, COLUMNS // count)
    parts = [slice(start, start + width) for start in range(0, inputs, width)]
    mean = np.empty(inputs)
    gram = np.zeros((count, count))
    for part in parts:
        if stop():
            raise Stopped
        mean[part] = matrix[:, part].mean(axis=0, dtype=np.float64)
        centred = matrix[:, part] - mean[part]
        gram += centred @ centred.T
    variances, left = _decomposed(gram / count, mean @ mean)

    def axes(k: int) -> np.ndarray:
        scaled = left[:, :k] / np.sqrt(variances[:k] * count)
        made = np.empty((inputs, scaled.shape[1]))
        for part in parts:
            made[part] = (matrix[:, part] - mean[part]).T @ scaled
        return _signed(made)

    return Spectrum(count, mean, variances, axes)


def pca_step(
    spectrum: Spectrum,
    dims: int,
    *,
    unit: bool,
    shrinkage: float | None = None,
    about: dict[str, Any] | None = None,
) -> Step:
    """The step that centres vectors and keeps their first `dims` principal components.

    `shrinkage` between 0 and 1 asks for whitening: each component is divided by the root
    of its variance, after the variances were drawn towards their mean so far; 0 is
    whitening in full, 1 leaves plain PCA. `unit` is that of `Step`. `about` goes into the
    provenance.
    Raises CollectionError for more dimensions than the pictures differ in.
    """
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise CollectionError(f"The shrinkage must be between 0 and 1, not {shrinkage:g}")
    check_dims(dims, spectrum.inputs, spectrum.count)
    if dims > len(spectrum.variances):
        raise CollectionError(
            f"The {spectrum.count:,} pictures differ in {len(spectrum.variances):,} "
            f"directions only: ask for so many dimensions or fewer, not {dims:,}"
        )
    kept = spectrum.variances[:dims]
    components = spectrum.axes(dims)
    words = f"PCA to {dims}"
    if shrinkage is not None:
        components /= np.sqrt((1 - shrinkage) * kept + shrinkage * kept.mean())
        words = f"whitened {words} (shrinkage {shrinkage:g})"
    told = {
        "words": words,
        "pictures": spectrum.count,
        "inputs": spectrum.inputs,
        "variance_kept": round(float(kept.sum()) / spectrum.total, 6),
        "largest_variances": [float(f"{v / spectrum.total:.4g}") for v in kept[:16]],
        "smallest_variance": float(f"{kept[-1] / spectrum.total:.4g}"),
        "directions": len(spectrum.variances),
        **({} if shrinkage is None else {"shrinkage": shrinkage}),
        **(about or {}),
    }
    kind = "pca" if shrinkage is None else "whitening"
    mean = spectrum.mean.astype(np.float32)
    return Step(kind, mean, components.astype(np.float32), unit, told)


def _decomposed(symmetric: np.ndarray, square: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, largest first, and eigenvectors as columns, of what is not noise.

    `square` is the squared length of the mean. Raises CollectionError when all is.
    """
    values, vectors = np.linalg.eigh(symmetric)
    values, vectors = values[::-1], vectors[:, ::-1]
    some = values > max(values[0] * NOISE, square * ROUNDING)
    if not some.any():
        raise _nothing()
    return values[some], vectors[:, some]


def _signed(axes: np.ndarray) -> np.ndarray:
    """A direction and its opposite are as good: the largest number is positive, always.

    Changes `axes`, which may be big.
    """
    axes *= np.where(-axes.min(axis=0) > axes.max(axis=0), -1.0, 1.0)
    return axes


def _nothing() -> CollectionError:
    return CollectionError(
        "There is nothing to learn: it takes pictures that differ, and there are none, or "
        "the encoder gives the same vector for all"
    )
