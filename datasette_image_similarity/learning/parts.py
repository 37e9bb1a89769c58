"""Which labelled pictures are trained on, and which judge what was learned.

Some classes are held out entirely, and some pictures of each of the others. Of what is held
out, a third is *watched* while training goes on, to choose the state to keep; the rest is
*judged*, once before and once after, and decides nothing but whether to keep the result.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ..errors import CollectionError

if TYPE_CHECKING:
    import numpy as np

LEAST_CLASSES = 4  # two to learn to tell apart, two to judge by
LEAST_DIVIDED = 4  # pictures of a class: two to train on, two to judge by
WATCHED = 3  # of what is held out, every so many-th


@dataclass(frozen=True)
class Parts:
    """Places of pictures, int64 and sorted. "unseen": of classes held out entirely."""

    train: np.ndarray
    watched_seen: np.ndarray
    watched_unseen: np.ndarray
    seen: np.ndarray  # judged
    unseen: np.ndarray  # judged

    def only(self, usable: np.ndarray) -> Parts:
        """Without the places of which `usable`, bool (n,), is false."""
        places = (getattr(self, field.name) for field in fields(self))
        return Parts(*(some[usable[some]] for some in places))

    def check_judged(self, classes: np.ndarray) -> None:
        """Raises CollectionError unless some class, of those trained on and of those held
        out, has two pictures to judge by: one has to find the other."""
        for judged in (self.seen, self.unseen):
            if len(set(classes[judged].tolist())) == len(judged):
                raise CollectionError(
                    "There are too few pictures of each class to judge by: hold out a "
                    "larger share, or label more"
                )


def divided(classes: np.ndarray, share: float, seed: int) -> Parts:
    """Divide pictures: `share` of the classes, and of each other class's pictures, is held
    out; of a class of four or more at least two.

    `classes` int64 (n,), from 0 on; -1 takes no part. The same arguments give the same
    parts. Raises CollectionError where there are fewer than four classes, or too few
    pictures of each to judge by.
    """
    import numpy as np

    chance = np.random.default_rng(seed)
    labels = chance.permutation(np.unique(classes[classes >= 0]))
    if len(labels) < LEAST_CLASSES:
        raise CollectionError(
            f"There are {len(labels)} classes of two pictures or more, and "
            f"{LEAST_CLASSES} are needed: whether other classes get worse is judged by "
            "some that are not trained on"
        )
    held = min(max(2, round(share * len(labels))), len(labels) - 2)
    watched = held // WATCHED if held >= 2 * WATCHED else 0
    places: dict[str, list[np.ndarray]] = {field.name: [] for field in fields(Parts)}
    for number, label in enumerate(labels.tolist()):
        mine = chance.permutation(np.flatnonzero(classes == label))
        if number < held:
            places["watched_unseen" if number < watched else "unseen"].append(mine)
            continue
        out = int(share * len(mine))
        if len(mine) >= LEAST_DIVIDED:
            out = max(2, out)  # one alone has none to find
        few = out // WATCHED
        places["watched_seen"].append(mine[:few])
        places["seen"].append(mine[few:out])
        places["train"].append(mine[out:])
    empty = [np.empty(0, np.int64)]
    parts = Parts(*(np.sort(np.concatenate(some or empty)) for some in places.values()))
    parts.check_judged(classes)
    return parts


def balanced(classes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """An epoch's order: places int64 (n,) for n pictures, every class equally often.

    Pictures of a class come in turn, so that none comes again before all others have.
    The same arguments give the same order.
    """
    import numpy as np

    chance = np.random.default_rng([seed, epoch])
    labels, inverse = np.unique(classes, return_inverse=True)
    rounds = -(-len(classes) // len(labels))
    wanted = [chance.permutation(len(labels)) for _ in range(rounds)]
    wanted = np.concatenate(wanted)[: len(classes)]
    order = np.empty(len(classes), np.int64)
    for label in range(len(labels)):
        slots = np.flatnonzero(wanted == label)
        mine = np.flatnonzero(inverse == label)
        turns = -(-len(slots) // len(mine))
        drawn = np.concatenate([chance.permutation(mine) for _ in range(turns or 1)])
        order[slots] = drawn[: len(slots)]
    return order
