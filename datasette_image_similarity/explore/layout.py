"""A collection's vectors → places on a plane: PCA, then t-SNE, UMAP or nothing more.

Everything is drawn from the seed, and neighbours are found exactly, so that the same
vectors give the same map on the same machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError
from .vectors import Say, Stopped, live_items, vector_blocks

if TYPE_CHECKING:
    import numpy as np

METHODS = ("tsne", "umap", "pca")
AXES = 50  # principal axes that neighbours are looked for in
SAMPLE = 20_000  # vectors that the axes are learned from, or fewer:
SAMPLE_NUMBERS = 200_000_000  # numbers in these together
FEW = 10  # pictures, below which PCA has to do
PERPLEXITY = 30.0  # of t-SNE; 3 times as many neighbours are looked for
ROUNDS = (250, 500)  # of t-SNE: with early exaggeration, and without
SHARED_OUT = 1_000  # points; with fewer, threads wait for each other longer than they work
UMAP_NEIGHBOURS = 15
QUERIES = 2_000  # neighbours are looked for by so many at once
EXTRAS = {"openTSNE": "explore", "sklearn": "explore", "umap": "umap"}


def check_method(method: str) -> None:
    """Raises CollectionError for an unknown method, or where its library is missing."""
    from importlib.util import find_spec

    if method not in METHODS:
        raise CollectionError(f"The method is one of {', '.join(METHODS)}, not {method!r}")
    needed = {"tsne": ["openTSNE", "sklearn"], "umap": ["umap", "sklearn"], "pca": []}
    for library in needed[method]:
        if find_spec(library) is None:
            extra = EXTRAS[library]
            raise CollectionError(
                f"{library} is missing: pip install 'datasette-image-similarity[{extra}]'"
            )


def parameters(method: str, seed: int, count: int) -> dict[str, Any]:
    """What `lay_out()` does with so many pictures, to be noted with the map."""
    if count < FEW:
        method = "pca"
    found: dict[str, Any] = {"method": method, "axes": AXES, "seed": seed}
    if method == "tsne":
        found |= {"perplexity": PERPLEXITY, "rounds": sum(ROUNDS)}
    if method == "umap":
        found |= {"neighbours": UMAP_NEIGHBOURS}
    return found


def lay_out(
    conn: sqlite3.Connection,
    collection: db.Collection,
    *,
    method: str = "tsne",
    seed: int = 0,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, np.ndarray]:
    """Item ids, int64 (n,), and their places, float32 (n, 2).

    Places are centred, and the larger extent fills −1 to 1; y grows upwards. Fewer than
    `FEW` pictures are laid out by PCA whatever the method. Items whose row or vector is
    missing are left out. Raises CollectionError without any, Stopped.

    t-SNE: van der Maaten and Hinton, "Visualizing Data using t-SNE" (2008), from the PCA's
    first two axes and with the learning rate of Kobak and Berens, "The art of using t-SNE
    for single-cell transcriptomics" (2019); by openTSNE, which interpolates repulsion by
    FFT (Linderman et al., 2019). UMAP: McInnes, Healy, Melville (2018).
    """
    ids, reduced = reduce(conn, collection, seed, say, stop)
    if not len(ids):
        raise CollectionError(
            f"{collection.table!r} has no pictures with embeddings: run datasette "
            "image-similarity embed"
        )
    if method == "pca" or len(ids) < FEW:
        places = reduced[:, :2]
    else:
        neighbours = nearest(reduced, _neighbour_count(method, len(ids)), say, stop)
        place = _tsne if method == "tsne" else _umap
        places = place(reduced, neighbours, seed, say, stop)
    return ids, scaled(places)


def scaled(places: np.ndarray) -> np.ndarray:
    """Places (n, 2) moved and scaled alike on both axes: the larger extent is −1 to 1."""
    import numpy as np

    least, most = places.min(axis=0), places.max(axis=0)
    half = float((most - least).max()) / 2
    centred = places - (least + most) / 2
    return np.clip(centred / (half or 1), -1, 1).astype(np.float32)


# PCA


def reduce(
    conn: sqlite3.Connection,
    collection: db.Collection,
    seed: int,
    say: Say,
    stop: Callable[[], bool],
) -> tuple[np.ndarray, np.ndarray]:
    """Item ids (n,) and projections on the first principal axes, float32 (n, AXES).

    The axes are learned from a sample, and vectors are projected block by block, so that
    they need not fit into memory. Lengths do not count: vectors are normalised first.
    """
    import numpy as np

    live = live_items(conn, collection)
    ids = np.fromiter(live, np.int64, len(live))
    most = max(2, min(SAMPLE, SAMPLE_NUMBERS // collection.dimensions))
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(ids, min(most, len(ids)), replace=False))
    blocks = [found for _, found in _unit_blocks(conn, collection, sample, stop)]
    if not blocks:
        return ids[:0], np.zeros((0, AXES), np.float32)
    mean, axes = principal_axes(np.concatenate(blocks))
    del blocks
    reduced = np.zeros((len(ids), AXES), np.float32)
    usable = np.zeros(len(ids), bool)
    for done, (block, found) in enumerate(_unit_blocks(conn, collection, ids, stop)):
        say("Reading vectors", min(done * len(block), len(ids)), len(ids))
        where = np.searchsorted(ids, block)
        reduced[where, : len(axes)] = (found - mean) @ axes.T
        usable[where] = True
    return ids[usable], reduced[usable]


def _unit_blocks(
    conn: sqlite3.Connection,
    collection: db.Collection,
    ids: np.ndarray,
    stop: Callable[[], bool],
) -> Any:
    """Ids and vectors of length 1, block by block; unusable ones are left out."""
    import numpy as np

    for block, found in vector_blocks(conn, collection, ids):
        if stop():
            raise Stopped
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        right = np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)
        yield block[right], found[right] / lengths[right]


def principal_axes(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean (d,) of vectors (n, d), and up to AXES principal axes (a, d), float32.

    From the covariance, or where there are fewer vectors than dimensions, from the vectors'
    products with each other, which have the same eigenvalues.
    """
    import numpy as np

    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = vectors - mean
    wide = centred.shape[1] > centred.shape[0]
    products = centred @ centred.T if wide else centred.T @ centred
    values, found = np.linalg.eigh(products.astype(np.float64))
    real = values[::-1][:AXES] > values[-1] * 1e-6
    axes = found[:, ::-1][:, :AXES].T[real]
    if wide:
        axes = axes @ centred
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    # Either direction of an axis is right: the one in which its largest part is positive.
    largest = np.abs(axes).argmax(axis=1)
    signs = np.sign(axes[np.arange(len(axes)), largest])
    return mean, (axes * signs[:, None]).astype(np.float32)


# Neighbours


def _neighbour_count(method: str, count: int) -> int:
    wanted = 3 * PERPLEXITY if method == "tsne" else UMAP_NEIGHBOURS
    return min(int(wanted), count - 1)


def nearest(
    points: np.ndarray,
    count: int,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other points: numbers int64 (n, count), distances float64 (n, count).

    All are compared with all. That is exact, the same every time, and in 50 dimensions
    quicker than trees: for 100,000 points half of the time of openTSNE's own.
    """
    import numpy as np
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(algorithm="brute", n_neighbors=count + 1).fit(points)
    numbers = np.empty((len(points), count), np.int64)
    distances = np.empty((len(points), count))
    for start in range(0, len(points), QUERIES):
        if stop():
            raise Stopped
        say("Looking for neighbours", start, len(points))
        block = slice(start, min(start + QUERIES, len(points)))
        far, found = search.kneighbors(points[block])
        own = found == np.arange(block.start, block.stop)[:, None]
        own[~own.any(axis=1), -1] = True  # among more twins of itself than are looked for
        numbers[block] = found[~own].reshape(-1, count)
        distances[block] = far[~own].reshape(-1, count)
    return numbers, distances


# Methods


def _tsne(
    reduced: np.ndarray,
    neighbours: tuple[np.ndarray, np.ndarray],
    seed: int,
    say: Say,
    stop: Callable[[], bool],
) -> np.ndarray:
    import numpy as np
    from openTSNE import TSNE
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    jobs = (os.cpu_count() or 1) if len(reduced) >= SHARED_OUT else 1
    total, before = sum(ROUNDS), 0

    def report(done: int, _error: float, _places: np.ndarray) -> bool:
        """Told the round of a phase; true ends the work."""
        nonlocal before
        if done < before:  # the second phase counts from the beginning
            done += ROUNDS[0]
        before = done
        say("Laying out", done, total)
        return stop()

    # What openTSNE would lower it to, with a warning.
    perplexity = min(PERPLEXITY, neighbours[0].shape[1] / 3)
    affinities = PerplexityBasedNN(
        perplexity=perplexity,
        knn_index=PrecomputedNeighbors(*neighbours),
        n_jobs=jobs,
        random_state=seed,
    )
    tsne = TSNE(
        perplexity=perplexity,
        early_exaggeration_iter=ROUNDS[0],
        n_iter=ROUNDS[1],
        n_jobs=jobs,
        random_state=seed,
        callbacks=report,
        callbacks_every_iters=10,
    )
    places = tsne.fit(affinities=affinities, initialization=_start(reduced, 1e-4, seed))
    if stop():
        raise Stopped
    return np.asarray(places)


def _umap(
    reduced: np.ndarray,
    neighbours: tuple[np.ndarray, np.ndarray],
    seed: int,
    say: Say,
    stop: Callable[[], bool],
) -> np.ndarray:
    import warnings

    import numpy as np
    from umap import UMAP

    say("Laying out", 0, 1)
    count = len(reduced)
    # UMAP counts each point as the first of its own neighbours.
    numbers = np.hstack([np.arange(count)[:, None], neighbours[0]])[:, :-1]
    distances = np.hstack([np.zeros((count, 1)), neighbours[1]])[:, :-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about threads, which a seed rules out
        places = UMAP(
            n_neighbors=numbers.shape[1],
            init=_start(reduced, 10.0, seed),
            random_state=seed,
            precomputed_knn=(numbers, distances.astype(np.float32)),
        ).fit_transform(reduced)
    if stop():
        raise Stopped
    say("Laying out", 1, 1)
    return places


def _start(reduced: np.ndarray, spread: float, seed: int) -> np.ndarray:
    """The first two axes with this standard deviation; twins a little apart."""
    import numpy as np

    start = reduced[:, :2].astype(np.float64)
    start *= spread / (start[:, 0].std() or 1)
    noise = np.random.default_rng(seed).normal(size=start.shape)
    return start + noise * spread / 100
