"""How thoroughly an engine's index has to be searched for the recall that is wanted.

As for the compressed index: some of the collection's own vectors are looked up, one half
of them to choose the search parameter by, the other half to measure what it reaches. What
there is to find is known from comparing with every vector, streamed from the store once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import Stopped, StoreError
from ..progress import Say, silent
from . import pages

if TYPE_CHECKING:
    import numpy as np

    from . import TunableIndex

NEIGHBOURS = 10  # recall@10
MEASURED = 400  # vectors looked up, of which one half is measured with
PAGE = 2000  # ids read at once
RECALL = 0.99
# Distances this much longer are as good: they differ by rounding.
SAME = 1e-4

# What makes a search more thorough, by the type of the index. Others have nothing to set.
EFFORTS = {
    "HNSW": "ef",
    "DISKANN": "search_list",
    "IVF_FLAT": "nprobe",
    "IVF_SQ8": "nprobe",
    "IVF_PQ": "nprobe",
    "SCANN": "nprobe",
}
MOST_PROBES = 65_536


@dataclass(frozen=True)
class Tuning:
    """How an index is searched, and what that finds.

    `search_params` are for the store. `recall` is recall@10 on `queries` vectors that had
    no part in the choice; less than was `asked` for where the index cannot do better.
    `ms` is the median of their searches one after the other, in milliseconds.
    """

    type: str
    asked: float
    recall: float
    queries: int
    ms: float
    params: Mapping[str, Any] = field(default_factory=dict)
    search_params: Mapping[str, int] = field(default_factory=dict)


class Question(NamedTuple):
    """A vector of the collection, and how far the others are that there are to find."""

    id: str
    vector: bytes
    reach: float  # the distance of the tenth
    wanted: int  # ten, or all that there are


def tune(
    index: TunableIndex,
    recall: float = RECALL,
    *,
    search_params: Mapping[str, int] | None = None,
    say: Say = silent,
    stop: Callable[[], bool] = lambda: False,
) -> Tuning:
    """Choose the cheapest search parameter that reaches this recall@10, and use it.

    It is chosen for a somewhat better recall than is asked for: pictures that are not in
    the collection are a little harder to find neighbours for. With `search_params` these
    are used, whatever they reach. Raises StoreError for fewer than two vectors, Stopped
    when `stop()` turns true.
    """
    if not 0 < recall <= 1:
        raise StoreError(f"The recall must be above 0 and at most 1, not {recall}")
    questions = _questions(index, say, stop)
    half = (len(questions) + 1) // 2
    choosing, measuring = questions[:half], questions[half:] or questions
    told = dict(index.stats().index)
    kind = str(told.pop("type"))
    better = recall + (1 - recall) / 4
    found, ms, used = 0.0, 0.0, {}
    given = search_params is not None
    efforts = [dict(search_params)] if given else list(_efforts(kind, told))
    for tried, used in enumerate(efforts):
        say("choosing how to search", tried, len(efforts))
        index.search_params = used
        last = tried == len(efforts) - 1
        if not last and _recall(index, choosing, stop)[0] < better:
            continue
        found, ms = _recall(index, measuring, stop)
        if found >= (recall + better) / 2:
            break
    say("choosing how to search", len(efforts), len(efforts))
    return Tuning(kind, recall, found, len(measuring), ms, told, used)


def _efforts(kind: str, params: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    """Search parameters to try, the cheapest first."""
    name = EFFORTS.get(kind)
    if name is None:
        yield {}
        return
    most = 4096
    if name == "nprobe":
        most = min(int(params.get("nlist", 128)), MOST_PROBES)
    value = 1.0 if name == "nprobe" else 16.0
    while value < most:
        yield {name: round(value)}
        value = max(value * 2**0.5, round(value) + 1)
    yield {name: most}


def _questions(index: TunableIndex, say: Say, stop: Callable[[], bool]) -> list[Question]:
    """Some vectors, drawn at random, with what there is to find for each."""
    import numpy as np

    ids = _sample(index, stop)
    if len(ids) < 2:
        raise StoreError(f"There are {len(ids)} vectors: two at least can be searched for")
    vectors = index.vectors(ids)
    ids = [id for id in ids if id in vectors]
    queries = np.frombuffer(b"".join(vectors[id] for id in ids), "<f4")
    queries = queries.reshape(len(ids), -1)
    nearest = _nearest(index, queries, ids, say, stop)
    return [
        Question(id, vectors[id], float(d[np.isfinite(d)].max()), int(np.isfinite(d).sum()))
        for id, d in zip(ids, nearest, strict=True)
    ]


def _sample(index: TunableIndex, stop: Callable[[], bool]) -> list[str]:
    """Ids drawn at random, the same ones each time, in random order (Vitter's R)."""
    import numpy as np

    rng = np.random.default_rng(1)
    drawn: list[str] = []
    seen = 0
    for page in pages(index, None, 10_000):
        if stop():
            raise Stopped
        for known in page:
            seen += 1
            if len(drawn) < MEASURED:
                drawn.append(known.id)
            elif (place := int(rng.integers(seen))) < MEASURED:
                drawn[place] = known.id
    return [drawn[place] for place in rng.permutation(len(drawn))]


def _nearest(
    index: TunableIndex,
    queries: np.ndarray,
    own: list[str],
    say: Say,
    stop: Callable[[], bool],
) -> np.ndarray:
    """Distances (q, 10) of queries (q, d) to their nearest, other than themselves.

    Infinite where there are fewer.
    """
    import numpy as np

    total, done = index.stats().count, 0
    place = {id: number for number, id in enumerate(own)}
    best = np.full((len(queries), 0), np.inf)
    for page in pages(index, None, PAGE):
        if stop():
            raise Stopped
        found = index.vectors([known.id for known in page])
        vectors = np.frombuffer(b"".join(found.values()), "<f4").reshape(len(found), -1)
        distances = _distances(queries, vectors, index.space.metric)
        for column, id in enumerate(found):
            if id in place:
                distances[place[id], column] = np.inf
        distances = np.hstack([best, distances])
        k = min(NEIGHBOURS, distances.shape[1])
        best = np.partition(distances, k - 1, axis=1)[:, :k]
        done += len(page)
        say("comparing with every vector", done, total)
    return best


def _distances(queries: np.ndarray, vectors: np.ndarray, metric: str) -> np.ndarray:
    """Distances (q, n) of queries (q, d) to vectors (n, d), in the metric of a space."""
    import numpy as np

    products = queries @ vectors.T
    lengths = (queries * queries).sum(1)[:, None], (vectors * vectors).sum(1)
    if metric == "cosine":
        return 1 - products / np.sqrt(lengths[0] * lengths[1])
    return np.sqrt(np.maximum(lengths[0] + lengths[1] - 2 * products, 0))


def _recall(
    index: TunableIndex, questions: list[Question], stop: Callable[[], bool]
) -> tuple[float, float]:
    """The share of what there is to find that is found, and the median milliseconds."""
    found, wanted, times = 0, 0, []
    for question in questions:
        if stop():
            raise Stopped
        started = time.perf_counter()
        hits = index.search(question.vector, NEIGHBOURS + 1)
        times.append(time.perf_counter() - started)
        others = [hit for hit in hits if hit.id != question.id][:NEIGHBOURS]
        far = question.reach * (1 + SAME) + 1e-6
        found += sum(hit.distance <= far for hit in others)
        wanted += question.wanted
    return found / wanted, 1000 * sorted(times)[len(times) // 2]
