"""A collection made smaller: PCA learned from its vectors, and the vectors projected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..encoders.transform import Step
from ..explore.vectors import Say, Stopped, live_items, vector_blocks
from . import pca
from .stored import check_name, derive, stored_transform

SEED = 0


@dataclass(frozen=True)
class Reduced:
    """What `reduce()` made: a collection called `name`, of a `parent`.

    `learned_from` pictures were looked at; the kept dimensions have the share
    `variance_kept` of the variance. Bytes are those of the vectors, and of the transform.
    """

    table: str
    parent: str
    name: str
    replaced: bool
    transform: str  # in words
    pictures: int
    learned_from: int
    dimensions_before: int
    dimensions: int
    variance_kept: float
    bytes_before: int
    bytes: int
    transform_bytes: int


def reduce_collection(
    conn: sqlite3.Connection,
    parent: db.Collection,
    dims: int,
    *,
    shrinkage: float | None = None,
    name: str | None = None,
    replace: bool = False,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Reduced:
    """Learn PCA to `dims` dimensions from a collection and store its vectors projected.

    `shrinkage` asks for whitening: see `pca.pca_step()`. The new collection is called
    `name`, "pca-128" or "whitened-128" by default; with `replace` it takes the place of
    `parent`. Raises CollectionError for dimensions that cannot be had or a name that is
    taken or blank, EncoderError when what the parent's vectors went through is damaged,
    Stopped.
    """
    stored_transform(conn, parent)  # before all the work: it may be damaged
    kind = "pca" if shrinkage is None else "whitened"
    name = f"{kind}-{dims}" if name is None else name
    if not replace:
        check_name(conn, parent, name)
    step = _learned(conn, parent, dims, shrinkage, say, stop)
    made = derive(conn, parent, step, name=name, replace=replace, say=say, stop=stop)
    pictures = db.item_count(conn, made)
    return Reduced(
        table=made.table,
        parent=parent.name,
        name=made.name,
        replaced=replace,
        transform=str(step),
        pictures=pictures,
        learned_from=step.about["pictures"],
        dimensions_before=parent.dimensions,
        dimensions=made.dimensions,
        variance_kept=step.about["variance_kept"],
        bytes_before=4 * pictures * parent.dimensions,
        bytes=4 * pictures * made.dimensions,
        transform_bytes=step.mean.nbytes + step.components.nbytes,
    )


def _learned(
    conn: sqlite3.Connection,
    parent: db.Collection,
    dims: int,
    shrinkage: float | None,
    say: Say,
    stop: Callable[[], bool],
) -> Step:
    """PCA of the live vectors, or of so many of them, drawn at random, as are enough."""
    live = live_items(conn, parent)
    ids = np.fromiter(live, np.int64, len(live))
    pca.check_dims(dims, parent.dimensions, len(ids))
    most = pca.sample_size(parent.dimensions)
    about = {"collection": parent.name, "of_pictures": len(ids)}
    if len(ids) > most:
        ids = np.sort(np.random.default_rng(SEED).choice(ids, most, replace=False))
        about["seed"] = SEED
    blocks = _usable_blocks(conn, parent, ids, say, stop)
    if len(ids) > parent.dimensions:
        spectrum = pca.spectrum_of_blocks(blocks, stop)
    else:
        matrix = np.concatenate([np.empty((0, parent.dimensions), np.float32), *blocks])
        spectrum = pca.spectrum(matrix, stop)
    unit = parent.metric == "cosine"
    return pca.pca_step(spectrum, dims, unit=unit, shrinkage=shrinkage, about=about)


def _usable_blocks(
    conn: sqlite3.Connection,
    parent: db.Collection,
    ids: np.ndarray,
    say: Say,
    stop: Callable[[], bool],
) -> Iterator[np.ndarray]:
    """The vectors as they are stored, without any that are damaged."""
    done = 0
    for block, vectors in vector_blocks(conn, parent, ids):
        if stop():
            raise Stopped
        usable = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        yield vectors[usable]
        done += len(block)
        say("Learning", done, len(ids))
