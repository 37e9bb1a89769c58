"""How far apart pictures are: random pairs of a collection, and all from one query.

Random pairs say what a distance means with this encoder and these pictures. What is
nearer than 999 of 1,000 pairs is alike for a reason.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from .database import (
    ITEMS_BY_ID,
    Collection,
    is_current,
    item_count,
    item_ids,
    source_of,
)
from .ranking import live_items
from .stores.items import vectors_of

if TYPE_CHECKING:
    import numpy as np

    from .query import Query

PAIRED = 400  # random pictures, each compared with each: 79,800 pairs
SHARES = (0.01, 0.001)  # of random pairs, as marked on the histogram
BINS = 40
FARTHEST_COSINE = 1.0  # a right angle
WHOLE = 20_000  # up to so many pictures all distances are measured,
SAMPLED = 2000  # above it those of so many
# Without a scan for duplicates: near-duplicates are this much nearer than 1 random pair in
# 1,000. With MobileNetV2 that is a cosine of .945 on Caltech-101 photos and .944 on
# clothing.
NEARER = 4


@dataclass(frozen=True)
class RandomPairs:
    """What is known of a collection's random pairs.

    `quantiles` are distances in the collection's metric by share: so many of the pairs
    are nearer. `farthest` is the distance of the farthest of them; `cosine` the similarity
    that only the last of the shares exceeds. With fewer than three pictures nothing is
    known: no quantiles, 1, 1.
    """

    quantiles: dict[float, float]
    farthest: float
    cosine: float


@dataclass(frozen=True)
class Histogram:
    """Distances of a query to what it may find.

    `counts` of `len(counts)` equal bins from 0 to `top`; what lies beyond is in none.
    `measured` of `total` pictures were compared.
    """

    counts: list[int]
    top: float
    measured: int
    total: int
    quantiles: dict[float, float]

    def as_json(self) -> dict[str, object]:
        marks = {f"{share:g}": round(at, 6) for share, at in self.quantiles.items()}
        return {
            "counts": self.counts,
            "top": self.top,
            "measured": self.measured,
            "total": self.total,
            "random_pairs": marks,
        }


def random_pairs(conn: sqlite3.Connection, collection: Collection) -> RandomPairs:
    """Measure random pairs; the same ones each time, as long as nothing changes."""
    import numpy as np

    vectors = sample_vectors(conn, collection).astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    vectors, norms = vectors[norms > 0], norms[norms > 0]
    if len(vectors) < 3:
        return RandomPairs({}, 1.0, 1.0)
    upper = np.triu_indices(len(vectors), 1)
    products = (vectors @ vectors.T)[upper]
    cosines = products / (norms[upper[0]] * norms[upper[1]])
    if collection.metric == "l2":
        squared = np.square(norms)
        apart = squared[upper[0]] + squared[upper[1]] - 2 * products
        found_distances = np.sqrt(np.maximum(0, apart))
    else:
        found_distances = 1 - cosines
    quantiles = np.quantile(found_distances, SHARES).tolist()
    closest = float(np.quantile(cosines, 1 - SHARES[-1]))
    return RandomPairs(
        dict(zip(SHARES, quantiles, strict=True)), float(found_distances.max()), closest
    )


def sample_vectors(conn: sqlite3.Connection, collection: Collection) -> np.ndarray:
    """The stored vectors of PAIRED random pictures, float32 (n, d); the same ones each
    time."""
    import numpy as np

    found = vectors_of(conn, collection).get(_sample(conn, collection, PAIRED))
    length = 4 * collection.dimensions
    vectors = np.frombuffer(b"".join(v for _, v in found if len(v) == length), "<f4")
    return vectors.reshape(-1, collection.dimensions)


def near_duplicates(
    conn: sqlite3.Connection, collection: Collection, pairs: RandomPairs
) -> float:
    """The cosine similarity from which on two pictures count as near-duplicates.

    The threshold for look-alikes of the last scan for duplicates; without one NEARER.
    """
    return _scanned(conn, collection) or 1 - (1 - pairs.cosine) / NEARER


def _scanned(conn: sqlite3.Connection, collection: Collection) -> float | None:
    if not is_current(conn):
        return None
    row = conn.execute(
        "select thresholds from _image_similarity_scans where collection_id = ?",
        (collection.id,),
    ).fetchone()
    try:
        alike = json.loads(row[0])["alike"] if row else None
    except (KeyError, TypeError, ValueError, RecursionError):  # whoever made the database
        return None
    return alike if isinstance(alike, float) and 0 < alike <= 1 else None


def histogram(
    conn: sqlite3.Connection, collection: Collection, query: Query, pairs: RandomPairs
) -> Histogram:
    """The distances of a query to all that pass its filter, whatever its cut-off.

    Exact up to WHOLE pictures, of a sample above.
    """
    import numpy as np

    source = source_of(conn, collection)
    stored = item_count(conn, collection)
    filtered = query.filter is not None and query.filter.where
    if stored <= WHOLE or filtered:
        live = live_items(conn, collection, source, query.filter) - query.without
        total = len(live)
    else:
        live = set(_sample(conn, collection, SAMPLED)) - query.without
        total = stored - len(query.without)
    vectors = vectors_of(conn, collection)
    if len(live) > (vectors.most if collection.store else WHOLE):
        live = set(random.Random(0).sample(sorted(live), SAMPLED))
    most = 4 * len(live) > stored
    if collection.store:  # which tells how far they are, and keeps what they are
        k, among = len(live), live
        if most and stored <= vectors.most:
            k, among = stored, None
        rows = vectors.nearest(query.vector, k, among)
    else:
        rows = vectors.distances(query.vector, None if most and stored <= WHOLE else live)
    rows = [row for row in rows if row[0] in live]
    measured = np.array([distance for _, distance in rows if distance is not None])
    top = farthest(collection, pairs)
    counts, _ = np.histogram(measured, BINS, (0, top))
    return Histogram(counts.tolist(), top, len(measured), total, pairs.quantiles)


def farthest(collection: Collection, pairs: RandomPairs) -> float:
    """Where the histogram and the slider end, a round number."""
    if collection.metric == "cosine" or not pairs.farthest:
        return FARTHEST_COSINE
    step = 10 ** math.floor(math.log10(pairs.farthest)) / 2
    return math.ceil(pairs.farthest / step) * step


def _sample(conn: sqlite3.Connection, collection: Collection, count: int) -> list[int]:
    """The ids of about so many random items; the same ones for the same collection.

    Of a large collection ids are drawn until they are enough. Where they lie too far apart
    for that, or are not as many as the database says, it is a sample of the first WHOLE.
    """
    chance = random.Random(collection.id)
    if item_count(conn, collection) > WHOLE:
        found = _drawn(conn, collection, count, chance)
        if len(found) == count:
            return sorted(found)
    ids = item_ids(conn, collection, WHOLE)
    return sorted(chance.sample(ids, min(count, len(ids))))


def _drawn(
    conn: sqlite3.Connection, collection: Collection, count: int, chance: random.Random
) -> list[int]:
    """Ids of items, `count` at most, out of all that there may be between the lowest and
    the highest."""
    # Each end by itself: SQLite looks them up then, and does not go through all.
    ends = [
        conn.execute(f"select {end}(id) from _image_similarity_items").fetchone()[0]
        for end in ("min", "max")
    ]
    if None in ends:
        return []
    stored = item_count(conn, collection)
    # Ids have gaps: more are drawn than are wanted.
    wanted = min(2 * count * (ends[1] - ends[0] + 1) // stored, WHOLE)
    drawn = dict.fromkeys(chance.randint(*ends) for _ in range(wanted))
    sql = (
        f"select i.id from {ITEMS_BY_ID} where i.collection_id = {collection.id} "
        "limit :count"
    )
    rows = conn.execute(sql, {"ids": json.dumps(list(drawn)), "count": count})
    return [row[0] for row in rows]
