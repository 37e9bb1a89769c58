"""Pairs → groups with a medoid, in which everything is alike to the medoid.

Groups are connected components of the graph of pairs, as long as that is true of them. In a
component a picture may be linked to another by a chain of pictures that are alike one by
one, while its ends are not: such a component is cut into stars, the picture with most pairs
first with all that are like it (J. Aslam, E. Pelekhov, D. Rus, "The star clustering
algorithm for static and dynamic information organization", 2004). So are those that hold
two pictures which somebody has set apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from .pairs import Pairs

if TYPE_CHECKING:
    import numpy as np

# Pictures by place that must not share a group; both ways.
Apart = Mapping[int, frozenset[int]]
# Whether the first place and each of the others are a pair, and all cosines to it.
Linked = Callable[[int, "np.ndarray"], tuple["np.ndarray", "np.ndarray"]]


class Group(NamedTuple):
    """Places, int64 (m,), in order, and their cosines to the medoid, float32 (m,)."""

    members: np.ndarray
    medoid: int
    scores: np.ndarray


def groups_of(
    pairs: Pairs, vectors: np.ndarray, linked: Linked, apart: Apart | None = None
) -> list[Group]:
    """The groups that pairs make, of two or more, biggest first.

    `vectors` float32 (n, d), L2-normalised. `linked(place, others)` is the same test that
    the pairs passed. The medoid has the highest mean cosine to the others; in a star, it is
    the star's centre.
    """
    import numpy as np

    apart = apart or {}
    if apart:
        ends = zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)
        free = np.array([b not in apart.get(a, ()) for a, b in ends], bool)
        pairs = Pairs(*(column[free] for column in pairs))
    degree = np.bincount(np.concatenate([pairs.a, pairs.b]), minlength=len(vectors))
    groups = []
    for members in components(pairs):
        medoid = members[np.argmax(vectors[members] @ vectors[members].sum(axis=0))]
        right, scores = linked(medoid, members)
        if right.all() and not _holds_apart(members, apart):
            groups.append(Group(members, int(medoid), scores))
        else:
            groups += _stars(members, degree, linked, apart)
    return sorted(groups, key=lambda group: (-len(group.members), group.members[0]))


def components(pairs: Pairs) -> list[np.ndarray]:
    """Connected components of two or more, as sorted places int64."""
    import numpy as np

    nodes, ends = np.unique(np.concatenate([pairs.a, pairs.b]), return_inverse=True)
    a, b = ends[: len(pairs.a)], ends[len(pairs.a) :]
    # Everything takes on the least label around it; following labels shortens the way.
    labels = np.arange(len(nodes))
    while True:
        before = labels.copy()
        least = np.minimum(labels[a], labels[b])
        for place in (a, b, labels[a], labels[b]):
            np.minimum.at(labels, place, least)
        labels = labels[labels]
        if (labels == before).all():
            break
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    return [nodes[part] for part in np.split(order, cuts)] if len(nodes) else []


def _stars(
    members: np.ndarray, degree: np.ndarray, linked: Linked, apart: Apart
) -> list[Group]:
    import numpy as np

    groups = []
    waiting = members[np.argsort(-degree[members], kind="stable")]
    while len(waiting) > 1:
        centre, waiting = int(waiting[0]), waiting[1:]
        right, scores = linked(centre, waiting)
        taken = [(1.0, centre)]
        together = set(apart.get(centre, ()))  # nobody of these may come in
        for place in np.flatnonzero(right)[np.argsort(-scores[right], kind="stable")]:
            other = int(waiting[place])
            if other not in together:
                taken.append((float(scores[place]), other))
                together |= apart.get(other, frozenset())
        if len(taken) > 1:
            taken.sort(key=lambda pair: pair[1])
            places = np.array([place for _, place in taken])
            groups.append(
                Group(places, centre, np.array([score for score, _ in taken], np.float32))
            )
            waiting = waiting[~np.isin(waiting, places)]
    return groups


def _holds_apart(members: np.ndarray, apart: Apart) -> bool:
    inside = apart.keys() & set(members.tolist()) if apart else set()
    return any(not apart[place].isdisjoint(members.tolist()) for place in inside)
