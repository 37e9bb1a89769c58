"""Clusters: groups of pictures that look alike, stored as rows that anyone can join.

Vectors are centred and projected on their first principal axes, and made of length one
again, so that Euclidean distance orders as cosine does. Methods: k-means (Lloyd, "Least
squares quantization in PCM", 1982; started by k-means++, Arthur and Vassilvitskii, 2007)
and HDBSCAN (Campello, Moulavi, Sander, "Density-based clustering based on hierarchical
density estimates", 2013). Distances that are stored are those of the vectors themselves.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError
from .names import read_texts, suggest, unique
from .vectors import Say, Stopped, Vectors, read_vectors

if TYPE_CHECKING:
    import numpy as np

METHODS = ("kmeans", "hdbscan")
AXES = 50
MANY = 10_000  # vectors that HDBSCAN looks at; it takes time with their square
STARTS = 10  # of k-means, up to MANY vectors; one above
MOST = 200  # clusters by default
MIN_SIZE = 10  # of a cluster of HDBSCAN's
NEIGHBOURS = 5  # that make a place dense, HDBSCAN's min_samples
SAME = 0.2  # Jaccard index from which on a new cluster is an old one again
BLOCK = 4096


@dataclass(frozen=True)
class Cluster:
    """`size` pictures; `medoid` is the item that is nearest to all of them.

    `name` is `suggested`, or `given` by somebody.
    """

    id: int
    name: str
    suggested: str
    given: bool
    size: int
    medoid: int


@dataclass(frozen=True)
class Clustering:
    """What a run has stored. `options` are those asked for.

    `lost` are names that people had given to clusters of which nothing similar is left.
    """

    method: str
    options: dict[str, Any]
    label: str | None  # the column that names were suggested from
    clusters: list[Cluster]
    total: int
    clustered: int
    sampled: int | None  # so many were looked at; the others went with their nearest
    lost: list[str]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def make_clusters(
    conn: sqlite3.Connection,
    collection: db.Collection,
    *,
    method: str = "kmeans",
    k: int | None = None,
    min_size: int | None = None,
    seed: int = 0,
    label: str | None = None,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Clustering:
    """Cluster a collection and store the result in place of an earlier one.

    See `ImageCollection.clusters()`. Until all is computed the earlier one stays.
    """
    started = time.perf_counter()
    options = _checked(method, k, min_size, seed, label)
    _require_scikit_learn()
    column, texts = read_texts(conn, collection, label)
    there = read_vectors(conn, collection, say=say, stop=stop)
    count = len(there.ids)
    if not count:
        raise CollectionError(f"{collection.table!r} has no usable embeddings to cluster")
    if k is not None and k > count:
        raise CollectionError(f"{k:,} clusters cannot be made of {count:,} pictures")
    reduced = _reduced(there.vectors, seed, say)
    if stop():
        raise Stopped
    if method == "kmeans":
        labels = _k_means(reduced, k or default_k(count), seed, say, stop)
    else:
        labels = _hdbscan(reduced, min_size or MIN_SIZE, seed, say, stop)
    groups = _by_size(labels)
    say("Storing", 0, count)
    names = suggest([there.ids[group].tolist() for group in groups], texts)
    with db.transaction(conn):
        clusters, lost = _store(conn, collection, there, groups, names)
        conn.execute(
            "insert into _image_similarity_clusterings "
            "(collection_id, method, parameters, label) values (?, ?, ?, ?)",
            (collection.id, method, json.dumps(options), column),
        )
    say("Storing", count, count)
    return Clustering(
        method=method,
        options=options,
        label=column,
        clusters=clusters,
        total=count,
        clustered=sum(map(len, groups)),
        sampled=MANY if method == "hdbscan" and count > MANY else None,
        lost=lost,
        seconds=time.perf_counter() - started,
    )


def default_k(count: int) -> int:
    """√(n / 2), a rule of thumb (Mardia, Kent, Bibby, "Multivariate analysis", 1979)."""
    return min(MOST, max(1, round((count / 2) ** 0.5)))


def _checked(
    method: str, k: int | None, min_size: int | None, seed: int, label: str | None
) -> dict[str, Any]:
    """The options that were asked for. Raises CollectionError for those that do not fit."""
    if method not in METHODS:
        raise CollectionError(f"There is no method {method!r}: {', '.join(METHODS)}")
    if k is not None and method != "kmeans":
        raise CollectionError("HDBSCAN finds the number of clusters itself: leave k out")
    if min_size is not None and method != "hdbscan":
        raise CollectionError("A least size is for the method hdbscan")
    if k is not None and k < 1:
        raise CollectionError("k must be at least 1")
    if min_size is not None and min_size < 2:
        raise CollectionError("A cluster's least size must be at least 2")
    if not 0 <= seed < 2**32:
        raise CollectionError("The seed must be between 0 and 4294967295")
    asked = {"k": k, "min_size": min_size, "seed": seed or None, "label": label}
    return {name: value for name, value in asked.items() if value is not None}


def _require_scikit_learn() -> None:
    """Raises CollectionError where it is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise CollectionError(
            "Clusters need scikit-learn: pip install 'datasette-image-similarity[explore]'"
        ) from None


# Groups. Labels are an int64 array of shape (n,): the number of a cluster, or -1.


def _reduced(vectors: np.ndarray, seed: int, say: Say) -> np.ndarray:
    """Centred, on the first principal axes, of length one: float32 (n, at most AXES).

    The axes are learned from a sample. What is no different from the mean stays at zero.
    """
    import numpy as np
    from sklearn.decomposition import PCA

    sample = vectors[_sample(len(vectors), seed)]
    axes = PCA(min(AXES, *sample.shape), svd_solver="randomized", random_state=seed)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # no variance at all
        axes.fit(sample)
    reduced = np.empty((len(vectors), axes.n_components_), np.float32)
    for start in range(0, len(vectors), BLOCK):
        part = (vectors[start : start + BLOCK] - axes.mean_) @ axes.components_.T
        lengths = np.linalg.norm(part, axis=1, keepdims=True)
        lengths[lengths < 1e-5] = np.inf
        reduced[start : start + BLOCK] = part / lengths
        say("Finding the principal axes", start + len(part), len(vectors))
    return reduced


def _sample(count: int, seed: int) -> np.ndarray:
    """Up to MANY of `count` numbers, in order."""
    import numpy as np

    if count <= MANY:
        return np.arange(count)
    chosen = np.random.default_rng(seed).choice(count, MANY, replace=False)
    return np.sort(chosen)


def _k_means(
    vectors: np.ndarray, k: int, seed: int, say: Say, stop: Callable[[], bool]
) -> np.ndarray:
    """The best of some starts. Fewer than k clusters where vectors are the same."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    starts = STARTS if len(vectors) <= MANY else 1
    best = None
    for start in range(starts):
        say("k-means, starts", start, starts)
        if stop():
            raise Stopped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different vectors
            found = KMeans(k, n_init=1, random_state=(seed + start) % 2**32).fit(vectors)
        if best is None or found.inertia_ < best.inertia_:
            best = found
    say("k-means, starts", starts, starts)
    return best.labels_


def _hdbscan(
    vectors: np.ndarray, min_size: int, seed: int, say: Say, stop: Callable[[], bool]
) -> np.ndarray:
    """Dense groups; -1 for what lies between them.

    Of more than MANY vectors a sample is clustered. Each of the others goes where its
    nearest neighbour in the sample went, which may be nowhere.
    """
    import numpy as np
    from sklearn.cluster import HDBSCAN

    chosen = _sample(len(vectors), seed)
    sample = vectors[chosen]
    say("HDBSCAN, pictures", 0, len(sample))
    if len(sample) < min_size:
        return np.full(len(vectors), -1)
    if not np.ptp(sample, axis=0).any():  # all the same
        return np.zeros(len(vectors), np.int64)
    density = HDBSCAN(
        min_cluster_size=min_size,
        min_samples=min(NEIGHBOURS, len(sample)),
        copy=True,
        n_jobs=-1,
    )
    found = density.fit_predict(sample)
    say("HDBSCAN, pictures", len(sample), len(sample))
    labels = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), BLOCK):
        if stop():
            raise Stopped
        nearest = (vectors[start : start + BLOCK] @ sample.T).argmax(axis=1)
        labels[start : start + BLOCK] = found[nearest]
    labels[chosen] = found
    return labels


def _by_size(labels: np.ndarray) -> list[np.ndarray]:
    """The places of each cluster's members, biggest cluster first."""
    import numpy as np

    order = np.argsort(labels, kind="stable")
    numbers, starts = np.unique(labels[order], return_index=True)
    groups = np.split(order, starts[1:])
    kept = [group for number, group in zip(numbers, groups, strict=True) if number >= 0]
    return sorted(kept, key=lambda group: (-len(group), group[0]))


def _distances(vectors: np.ndarray) -> tuple[int, np.ndarray]:
    """The place of the medoid, and cosine distances to it: float32 (n,).

    The medoid has the least sum of distances to all; with vectors of length one, it is the
    one that is most like their sum.
    """
    medoid = int((vectors @ vectors.sum(axis=0)).argmax())
    distances = (1 - vectors @ vectors[medoid]).clip(0, 2)
    distances[medoid] = 0
    return medoid, distances


# Storing


def _store(
    conn: sqlite3.Connection,
    collection: db.Collection,
    there: Vectors,
    groups: list[np.ndarray],
    suggested: list[str],
) -> tuple[list[Cluster], list[str]]:
    """Put the clusters in place of the old ones. Call inside a transaction.

    Returns them, and the given names that nothing was left of.
    """
    db.migrate(conn)
    before, given = _before(conn, collection)
    again = _same_as_before(before, [there.ids[group].tolist() for group in groups])
    kept = {new: given[old] for new, old in again.items() if old in given}
    names = _named(suggested, kept)
    lost = sorted(name for old, name in given.items() if old not in again.values())
    unused = (
        1
        + conn.execute(
            "select coalesce(max(id), 0) from _image_similarity_clusters"
        ).fetchone()[0]
    )
    db.clear(conn, collection, "members", "clusters", "clusterings")
    still = set(db.item_ids(conn, collection))  # some may have gone while we computed
    clusters, outside = [], set(range(len(there.ids)))
    for number, group in enumerate(groups):
        medoid, distances = _distances(there.vectors[group])
        cluster = Cluster(
            id=again.get(number, unused + number),
            name=names[number],
            suggested=suggested[number],
            given=number in kept,
            size=len(group),
            medoid=int(there.ids[group[medoid]]),
        )
        conn.execute(
            "insert into _image_similarity_clusters (id, collection_id, name, suggested, "
            "given, size, medoid_id) "
            "values (:id, :collection, :name, :suggested, :given, :size, :medoid)",
            {"collection": collection.id, **vars(cluster)},
        )
        _put_members(conn, collection, there, group.tolist(), still, cluster, distances)
        clusters.append(cluster)
        outside.difference_update(group.tolist())
    _put_members(conn, collection, there, sorted(outside), still)
    return clusters, lost


def _put_members(
    conn: sqlite3.Connection,
    collection: db.Collection,
    there: Vectors,
    places: list[int],
    still: set[int],
    cluster: Cluster | None = None,
    distances: np.ndarray | None = None,
) -> None:
    ids = there.ids[places].tolist()
    far = [None] * len(places) if distances is None else distances.tolist()
    conn.executemany(
        "insert into _image_similarity_members (item_id, collection_id, cluster_id, "
        "table_name, pk, album, distance) values (?, ?, ?, ?, ?, ?, ?)",
        (
            (
                item,
                collection.id,
                cluster and cluster.id,
                collection.table,
                there.pks[place],
                cluster and cluster.name,
                distance,
            )
            for item, place, distance in zip(ids, places, far, strict=True)
            if item in still
        ),
    )


def _before(
    conn: sqlite3.Connection, collection: db.Collection
) -> tuple[dict[int, int], dict[int, str]]:
    """The clusters that are stored: cluster by item; names given by people, by cluster."""
    members = conn.execute(
        "select item_id, cluster_id from _image_similarity_members "
        "where collection_id = ? and cluster_id is not null",
        (collection.id,),
    )
    given = conn.execute(
        "select id, name from _image_similarity_clusters where collection_id = ? and given",
        (collection.id,),
    )
    return dict(members.fetchall()), dict(given.fetchall())


def _same_as_before(before: dict[int, int], groups: list[list[int]]) -> dict[int, int]:
    """Old cluster by number of the new one that it has become.

    Pairs are made in the order of their Jaccard index (shared members / members of either),
    from SAME on; each cluster has one partner at most.
    """
    sizes = Counter(before.values())
    pairs = []
    for number, items in enumerate(groups):
        for old, shared in Counter(before[i] for i in items if i in before).items():
            overlap = shared / (len(items) + sizes[old] - shared)
            if overlap >= SAME:
                pairs.append((-overlap, number, old))
    found: dict[int, int] = {}
    for _, number, old in sorted(pairs):
        if number not in found and old not in found.values():
            found[number] = old
    return found


def _named(suggested: list[str], given: dict[int, str]) -> list[str]:
    """A name for each cluster: that given by people, or one suggested that is not taken."""
    names = iter(
        unique((n for i, n in enumerate(suggested) if i not in given), given.values())
    )
    return [given[i] if i in given else next(names) for i in range(len(suggested))]
