"""Principal components, learned in blocks or through the Gram matrix: as numpy's SVD and
scikit-learn have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from datasette_image_similarity.encoders.transform import Step, Transform
from datasette_image_similarity.errors import CollectionError
from datasette_image_similarity.explore.vectors import Stopped
from datasette_image_similarity.learning import pca


def cloud(count: int, inputs: int, seed: int = 0, away: float = 3) -> np.ndarray:
    """float32 (count, inputs), far from the origin, longer in some directions."""
    random = np.random.default_rng(seed)
    spread = np.geomspace(2, 0.1, inputs)
    turn, _ = np.linalg.qr(random.normal(size=(inputs, inputs)))
    return ((random.normal(size=(count, inputs)) * spread) @ turn + away).astype(np.float32)


def blocks(matrix: np.ndarray, size: int = 7) -> Iterator[np.ndarray]:
    for start in range(0, len(matrix), size):
        yield matrix[start : start + size]


def by_svd(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest variances and their directions, as columns."""
    centred = matrix.astype(np.float64) - matrix.astype(np.float64).mean(axis=0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    return values[:k] ** 2 / len(matrix), axes[:k].T


SHAPES = [(200, 12), (12, 200), (40, 40), (41, 40)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", ["blocks", "matrix"])
def test_both_ways_agree_with_svd(shape: tuple[int, int], way: str) -> None:
    matrix = cloud(*shape)
    made = (
        pca.spectrum_of_blocks(blocks(matrix))
        if way == "blocks"
        else pca.spectrum_of_matrix(matrix)
    )
    variances, axes = by_svd(matrix, 8)
    assert made.count == len(matrix)
    assert np.allclose(made.mean, matrix.mean(axis=0, dtype=np.float64))
    assert np.allclose(made.variances[:8], variances)
    assert np.allclose(np.abs(np.sum(made.axes(8) * axes, axis=0)), 1)
    assert np.allclose(made.axes(8).T @ made.axes(8), np.eye(8), atol=1e-9)
    assert made.total == pytest.approx(matrix.astype(np.float64).var(axis=0).sum())


def test_agrees_with_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.decomposition")
    matrix = cloud(150, 30)
    step = pca.pca_step(pca.spectrum(matrix), 5, unit=False)
    theirs = sklearn.PCA(5, svd_solver="full").fit(matrix)
    ours, moved = step.apply(matrix), theirs.transform(matrix)
    signs = np.sign(np.sum(ours * moved, axis=0))
    assert np.allclose(ours, moved * signs, atol=1e-4)
    kept = theirs.explained_variance_ratio_.sum()
    assert step.about["variance_kept"] == pytest.approx(kept, abs=1e-5)


def test_the_gram_matrix_is_summed_up_by_columns_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = cloud(9, 500)
    (tmp_path / "vectors").write_bytes(matrix.tobytes())
    in_file = np.memmap(tmp_path / "vectors", "<f4", "r", shape=matrix.shape)
    monkeypatch.setattr(pca, "COLUMNS", 9 * 64)
    variances, axes = by_svd(matrix, 6)
    made = pca.spectrum(in_file)
    assert np.allclose(made.variances[:6], variances)
    assert np.allclose(np.abs(np.sum(made.axes(6) * axes, axis=0)), 1)


def test_sums_stay_exact_far_from_the_origin() -> None:
    matrix = cloud(300, 10, away=3000)
    made = pca.spectrum_of_blocks(blocks(matrix, 32))
    assert np.allclose(made.variances[:10], by_svd(matrix, 10)[0], rtol=1e-6)


def test_the_same_vectors_give_the_same_step() -> None:
    matrix = cloud(60, 20)
    steps = [
        pca.pca_step(pca.spectrum(one), 4, unit=True) for one in (matrix, matrix[::-1])
    ]
    assert np.allclose(steps[0].components, steps[1].components, atol=1e-6)
    again = pca.pca_step(pca.spectrum(matrix), 4, unit=True)
    assert Transform((steps[0],)).sha256 == Transform((again,)).sha256
    largest = np.abs(steps[0].components).argmax(axis=0)
    assert (steps[0].components[largest, range(4)] > 0).all()


def whitened(matrix: np.ndarray, shrinkage: float) -> Step:
    return pca.pca_step(pca.spectrum(matrix), 6, unit=False, shrinkage=shrinkage)


def test_whitening_gives_every_direction_the_same_weight() -> None:
    matrix = cloud(500, 12)
    moved = whitened(matrix, 0).apply(matrix)
    assert np.allclose(np.cov(moved.T, bias=True), np.eye(6), atol=1e-3)


def test_shrinkage_leads_from_whitening_to_pca() -> None:
    matrix = cloud(500, 12)
    spreads = [whitened(matrix, s).apply(matrix).std(axis=0) for s in (0, 0.5, 0.9, 1)]
    ratios = [spread[0] / spread[-1] for spread in spreads]
    assert ratios == sorted(ratios)
    plain = pca.pca_step(pca.spectrum(matrix), 6, unit=False)
    full = whitened(matrix, 1)
    scale = full.components[0, 0] / plain.components[0, 0]
    assert np.allclose(full.components, plain.components * scale, rtol=1e-4, atol=1e-7)
    assert (full.kind, plain.kind) == ("whitening", "pca")
    assert str(full) == "whitened PCA to 6 (shrinkage 1)"
    assert full.about["shrinkage"] == 1


def test_provenance_is_told() -> None:
    step = pca.pca_step(pca.spectrum(cloud(50, 8)), 3, unit=True, about={"seed": 7})
    told = step.about
    assert str(step) == "PCA to 3"
    assert (told["pictures"], told["inputs"], told["seed"]) == (50, 8, 7)
    assert told["variance_kept"] == pytest.approx(sum(told["largest_variances"]), abs=1e-3)


@pytest.mark.parametrize(
    ("dims", "inputs", "pictures", "says"),
    [
        (9, 8, 100, "1 to 8, not in 9"),
        (0, 8, 100, "not in 0"),
        (10, 100, 10, "there are 10: ask for 9 or fewer, or embed more"),
        (10, 100, 0, "there are 0: embed more"),
        (3000, 100_352, 10_000, "1 to 2,047, not in 3,000"),
    ],
)
def test_dimensions_that_cannot_be_had(
    dims: int, inputs: int, pictures: int, says: str
) -> None:
    with pytest.raises(CollectionError, match=says):
        pca.check_dims(dims, inputs, pictures)


def test_pictures_that_differ_in_few_directions() -> None:
    matrix = np.repeat(cloud(5, 30), 4, axis=0)
    with pytest.raises(CollectionError, match="20 pictures differ in 4 directions only"):
        pca.pca_step(pca.spectrum(matrix), 6, unit=True)
    assert pca.pca_step(pca.spectrum(matrix), 4, unit=True).outputs == 4


@pytest.mark.parametrize("count", [0, 1, 20, 40])
def test_nothing_to_learn_from_what_is_all_the_same(count: int) -> None:
    matrix = np.tile(cloud(1, 30), (count, 1))
    for way in (pca.spectrum, lambda m: pca.spectrum_of_blocks(blocks(m))):
        with pytest.raises(CollectionError, match="nothing to learn"):
            way(matrix)


def test_a_shrinkage_that_is_none() -> None:
    with pytest.raises(CollectionError, match="between 0 and 1"):
        whitened(cloud(50, 8), 1.5)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
def test_learning_can_be_stopped(shape: tuple[int, int]) -> None:
    with pytest.raises(Stopped):
        pca.spectrum(cloud(*shape), lambda: True)


def test_samples_are_bounded() -> None:
    assert pca.sample_size(1280) == pca.MOST_PICTURES
    assert pca.sample_size(8192) == pca.LONG
    assert 4 * 100_352 * pca.sample_size(100_352) <= pca.MOST_BYTES
