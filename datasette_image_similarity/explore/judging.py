"""How good a ranking is: where the relevant pictures come in it. Mathematics, no SQL.

Every query ranks the gallery by what search orders by: cosine similarity, or Euclidean
distance. Results of the same class as the query are relevant. With R relevant results in
all, at the ranks r_1 < … < r_R, and rel(k) of them among the first k:

    precision@k   rel(k) / k, also where there are fewer than k results
    recall@k      rel(k) / R, which is at most k / R
    AP            the mean over all r_i of precision@r_i; mAP is its mean over queries
    nDCG@k        the sum of 1 / log2(r_i + 1) over r_i <= k, in the most it could be

Manning, Raghavan, Schütze, "Introduction to Information Retrieval" (2008), chapter 8, for
all of these; Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques"
(2002), for nDCG. Nothing is sampled or cut off: a ranking is sorted whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from .vectors import Say, Stopped

if TYPE_CHECKING:
    import numpy as np

NAMES = {
    "precision_at_1": "precision@1",
    "precision_at_5": "precision@5",
    "precision_at_10": "precision@10",
    "recall_at_10": "recall@10",
    "map": "mAP",
    "ndcg_at_10": "nDCG@10",
}
METRICS = tuple(NAMES)
MAP = METRICS.index("map")
TOP = 10  # nearest neighbours kept of every query
CONFUSED = 5  # of these, so many are looked at for confusions
EXAMPLES = 3  # of each of these
AT_ONCE = 2**23  # scores in memory
RESAMPLES = 1000  # of the bootstrap
PLACE = 2**32 - 1  # the part of a key that is a place
LAST = 2**63 - 1  # the key of what is not to be found: the query itself


class Task(NamedTuple):
    """What is ranked for whom; places are rows of `vectors`, in the order of item ids.

    `vectors` float32 (n, d), L2-normalised unless `euclidean`. `classes` int64 (n,), from 0
    on. `queries` int64 (q,) and `gallery` int64 (g,) are places, sorted. A query that is
    in the gallery does not find itself.
    """

    vectors: np.ndarray
    classes: np.ndarray
    queries: np.ndarray
    gallery: np.ndarray
    euclidean: bool = False

    def relevant(self) -> np.ndarray:
        """How many relevant results each query has: int64 (q,)."""
        import numpy as np

        most = self.classes.max(initial=0) + 1
        counts = np.bincount(self.classes[self.gallery], minlength=most)
        return counts[self.classes[self.queries]] - np.isin(self.queries, self.gallery)


class Judged(NamedTuple):
    """`values` float64 (q, 6), in the order of METRICS, AP in the place of mAP.

    `nearest` int64 (q, 10): places, nearest first, -1 where there are no more.
    """

    values: np.ndarray
    nearest: np.ndarray


def judge(
    task: Task,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Judged:
    """Rank the whole gallery for every query. Every query needs a relevant result.

    Scores are float32 matrix products, some queries at a time. Equal scores go by place,
    and equal vectors have equal scores. Raises Stopped.
    """
    import numpy as np

    count = len(task.gallery)
    scores_of = _scorer(task)
    members = _members(task.classes[task.gallery])
    own = np.full(len(task.vectors), -1)
    own[task.gallery] = np.arange(count)
    values = np.empty((len(task.queries), len(METRICS)))
    nearest = np.full((len(task.queries), TOP), -1)
    size = max(1, AT_ONCE // count)
    for start in range(0, len(task.queries), size):
        if stop():
            raise Stopped
        block = task.queries[start : start + size]
        for place, (query, scores) in enumerate(
            zip(block, scores_of(block), strict=True), start
        ):
            keys = _keys(scores)
            if own[query] >= 0:
                keys[own[query]] = LAST
            relevant = np.sort(keys[members[task.classes[query]]])
            keys.sort()
            end = count - (own[query] >= 0)  # the query itself comes last
            relevant = relevant[: relevant.searchsorted(LAST)]
            values[place] = metrics_of(keys.searchsorted(relevant), len(relevant))
            first = keys[: min(TOP, end)] & PLACE
            nearest[place, : len(first)] = task.gallery[first]
        say("Ranking", start + len(block), len(task.queries))
    return Judged(values, nearest)


def metrics_of(ranks: np.ndarray, relevant: int) -> tuple[float, ...]:
    """The six METRICS of a ranking. `ranks` int64, sorted, from 0: of what is relevant.

    With a ranking that ends early, AP is what it would be if the others never came.
    """
    import numpy as np

    among = {k: int(ranks.searchsorted(k)) for k in (1, 5, TOP)}
    gain = (1 / np.log2(ranks[: among[TOP]] + 2)).sum()
    return (
        *(found / k for k, found in among.items()),
        among[TOP] / relevant,
        (np.arange(1, len(ranks) + 1) / (ranks + 1)).sum() / relevant,
        gain / _ideal(min(relevant, TOP)),
    )


def nearest_of(task: Task, query: int, candidates: np.ndarray) -> np.ndarray:
    """The nearest of some places to a query: int64, TOP at most, as `judge()` has them."""
    import numpy as np

    candidates = np.sort(candidates)
    scores = task.vectors[candidates] @ task.vectors[query]
    if task.euclidean:
        scores -= np.square(task.vectors[candidates]).sum(axis=1) / 2
    return candidates[np.sort(_keys(scores))[:TOP] & PLACE]


def means(values: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of values (q, m): the mean over queries, and that over classes of their means."""
    import numpy as np

    ordered, starts = _by_class(values, classes)
    sizes = np.diff([*starts, len(values)])[:, None]
    by_class = np.add.reduceat(ordered, starts) / sizes
    return values.mean(axis=0), by_class.mean(axis=0)


def intervals(
    values: np.ndarray, classes: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals (m, 2) of both means of values (q, m): over queries, over classes.

    Percentile bootstrap over queries: as many are drawn as there are, with replacement,
    again and again. A class that a draw misses is missing from its mean over classes.
    Of differences between two rankings of the same queries it is the paired bootstrap.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13; for
    rankings: Sakai, "Evaluating evaluation metrics based on the bootstrap" (2006).
    """
    import numpy as np

    chance = np.random.default_rng(seed)
    ordered, starts = _by_class(values, classes)
    count = len(values)
    drawn = np.empty((2, resamples, values.shape[1]))
    for number in range(resamples):
        times = np.bincount(chance.integers(0, count, count), minlength=count)
        sums = np.add.reduceat(ordered * times[:, None], starts)
        sizes = np.add.reduceat(times, starts)[:, None]
        drawn[0, number] = sums.sum(axis=0) / count
        drawn[1, number] = (sums[sizes[:, 0] > 0] / sizes[sizes[:, 0] > 0]).mean(axis=0)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=1)
    both = np.stack([low, high], axis=-1)
    return both[0], both[1]


class Confusion(NamedTuple):
    """So many queries of one class have another among the CONFUSED nearest.

    `examples` are places: of some of these queries, each with the nearest of the other.
    """

    label: int
    other: int
    queries: int
    examples: list[tuple[int, int]]


def confusions(task: Task, nearest: np.ndarray) -> list[Confusion]:
    """All pairs of classes of which the first finds the other. `nearest` as in Judged."""
    import numpy as np

    near = nearest[:, :CONFUSED]
    wanted = task.classes[task.queries]
    found = task.classes[near]
    rows, columns = np.nonzero((near >= 0) & (found != wanted[:, None]))
    pairs: dict[tuple[int, int], dict[int, int]] = {}
    for row, place in zip(rows.tolist(), near[rows, columns].tolist(), strict=True):
        pair = int(wanted[row]), int(task.classes[place])
        pairs.setdefault(pair, {}).setdefault(int(task.queries[row]), place)
    return [
        Confusion(*pair, len(first), list(first.items())[:EXAMPLES])
        for pair, first in pairs.items()
    ]


# Inside


def _scorer(task: Task) -> Callable[[np.ndarray], np.ndarray]:
    """From queries (b,) to scores float32 (b, g), the higher the nearer."""
    import numpy as np

    whole = len(task.gallery) == len(task.vectors)
    gallery = task.vectors if whole else task.vectors[task.gallery]
    # -|q - x|² / 2 without |q|², which all of a query's scores have in common
    added = np.square(gallery).sum(axis=1) / -2 if task.euclidean else np.float32(0)
    copies, originals = _copies(gallery)
    room = np.empty((max(1, AT_ONCE // len(gallery)), len(gallery)), np.float32)

    def scores(queries: np.ndarray) -> np.ndarray:
        found = np.matmul(task.vectors[queries], gallery.T, out=room[: len(queries)])
        found += added
        # Products of equal vectors differ in the last bit, by where they lie.
        found[:, copies] = found[:, originals]
        return found

    return scores


def _copies(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that equal an earlier one, and the first that they equal: int64, int64."""
    import numpy as np

    first: dict[bytes, int] = {}
    pairs = []
    for place, vector in enumerate(vectors):
        original = first.setdefault(blake2b(vector, digest_size=16).digest(), place)
        if original != place:
            pairs.append((place, original))
    copies, originals = np.array(pairs, np.int64).reshape(-1, 2).T
    return copies, originals


def _keys(scores: np.ndarray) -> np.ndarray:
    """Scores float32 (g,) as int64 (g,) whose order is by falling score, then place.

    Their lower half is the place. Sorting numbers that are all different needs no rule
    for ties, and is what NumPy has vector instructions for.
    """
    import numpy as np

    bits = (scores + np.float32(0)).view(np.int32)  # -0 becomes 0
    # The bits of floats are in the floats' order, but for the negative ones: turned round.
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    keys = np.invert(bits).astype(np.int64)
    keys <<= 32
    keys |= np.arange(len(scores))
    return keys


def _members(classes: np.ndarray) -> list[np.ndarray]:
    """The places of every class."""
    import numpy as np

    order = classes.argsort(kind="stable")
    ends = np.bincount(classes).cumsum()
    return np.split(order, ends)


def _by_class(values: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values in the order of their classes, and where each class begins."""
    import numpy as np

    order = classes.argsort(kind="stable")
    return values[order], np.unique(classes[order], return_index=True)[1]


def _ideal(relevant: int) -> float:
    """The discounted gain of so many relevant results, all of them first."""
    return sum(1 / math.log2(rank + 1) for rank in range(1, relevant + 1))
