"""How much a head helps, on pictures and on classes that it was not trained on; and which
pull is best. Mathematics on arrays, no SQL.

Some classes are held out whole ("unseen"), and half of the pictures of the others ("seen").
Both are judged in one gallery, the pictures held out: those that are searched are those
that ask. How strong the pull should be is chosen in the same way once more, inside of what
is left to train on, so that what is reported was not chosen by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np

from ..explore.judging import MAP, METRICS, Task, intervals, judge
from ..explore.vectors import Say
from .head import Settings, train_head
from .labels import Labels, members

SHARE = 0.25  # of the classes, held out whole
LEAST = 2  # classes held out, or none; and so many are left
HALVED = 4  # pictures of a class, from which on half of them are held out
PULLS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)
MOST_JUDGED = 4000  # pictures, a random sample where there are more
MOST_INSIDE = 1500  # the same while the pull is chosen
INSIDE = 3  # ways to hold classes out, over which the choice of the pull is averaged
EVERY = 3  # epochs after which what is held out is judged
PATIENCE = 2  # of these without a better one, and training ends
SLACK = 0.002  # of mAP that a stronger pull may cost
WORSE = 0.005  # of mAP: by more than that, classes are worse than before
SHOWN = [MAP, METRICS.index("precision_at_5")]


class Split(NamedTuple):
    """Places, int64, sorted: `train` on these, judge the others."""

    train: np.ndarray
    seen: np.ndarray
    unseen: np.ndarray

    @property
    def gallery(self) -> np.ndarray:
        return np.union1d(self.seen, self.unseen)


@dataclass(frozen=True)
class Figures:
    """Means over queries, None without any."""

    map: float | None
    precision_at_5: float | None


@dataclass(frozen=True)
class Judged:
    """One kind of vectors: METRICS of every query, float64 (q, 6)."""

    seen: np.ndarray
    unseen: np.ndarray

    def figures(self) -> dict[str, Figures]:
        found = {"seen": self.seen, "unseen": self.unseen}
        return {
            name: Figures(*values[:, SHOWN].mean(axis=0).tolist())
            if len(values)
            else Figures(None, None)
            for name, values in found.items()
        }


@dataclass(frozen=True)
class Point:
    """One pull of the trade-off: mAP, None where it cannot be judged."""

    pull: float
    epochs: int
    seen: float | None
    unseen: float | None


@dataclass(frozen=True)
class Chosen:
    """A setting, and the figures by which it was chosen: none without anything to judge."""

    settings: Settings
    inside: tuple[Point, ...]
    before: Point | None  # the vectors as they are stored


NOTHING = Judged(*np.empty((2, 0, len(METRICS))))


def hold_out(
    classes: np.ndarray, seed: int, share: float = SHARE, most: int = MOST_JUDGED
) -> Split:
    """Classes int64 (n,), -1 for none, divided by chance.

    A `share` of the classes with two pictures and more is unseen, at least LEAST, unless
    fewer than LEAST would be left: then none is. Of others with HALVED pictures and more,
    half are seen. At most `most` are judged; what is not judged then is not trained on
    either.
    """
    chance = np.random.default_rng(seed)
    several = [one for one in members(classes) if len(one) > 1]
    count = max(LEAST, round(len(several) * share))
    count = count if len(several) - count >= LEAST else 0
    order = chance.permutation(len(several))
    none = np.zeros(0, np.int64)
    unseen = [several[one] for one in order[:count]]
    seen = [
        chance.permutation(several[one])[: len(several[one]) // 2]
        for one in order[count:]
        if len(several[one]) >= HALVED
    ]
    held = np.concatenate([none, *unseen, *seen])
    train = np.setdiff1d(np.arange(len(classes)), held)
    judged = np.sort(chance.permutation(held)[:most])
    whole = np.concatenate([none, *unseen])
    return Split(train, np.setdiff1d(judged, whole), np.intersect1d(judged, whole))


def judge_split(
    vectors: np.ndarray,
    classes: np.ndarray,
    split: Split,
    *,
    euclidean: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Judged:
    """Judge vectors float32 (g, d) of the split's gallery, as search ranks them."""
    if not euclidean:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(lengths > 0, lengths, 1)
    places = np.arange(len(split.gallery))
    every = Task(vectors, classes[split.gallery], places, places, euclidean)
    every = every._replace(queries=places[every.relevant() > 0])
    if not len(every.queries):
        return NOTHING
    values = judge(every, stop=stop).values
    unseen = np.isin(split.gallery[every.queries], split.unseen)
    return Judged(values[~unseen], values[unseen])


def differences(before: Judged, after: Judged) -> dict[str, dict[str, list[float]]]:
    """Of mAP and precision@5: the mean, and its 95 % interval by the paired bootstrap."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in ("seen", "unseen"):
        change = (getattr(after, name) - getattr(before, name))[:, SHOWN]
        if len(change):
            by_query, _ = intervals(change, np.zeros(len(change), np.int64))
            means = change.mean(axis=0)
            found[name] = {
                metric: [float(means[at]), *by_query[at].tolist()]
                for at, metric in enumerate(("map", "precision_at_5"))
            }
    return found


def choose(
    vectors: np.ndarray,
    points: np.ndarray,
    labels: Labels,
    settings: Settings,
    pulls: Sequence[float] = PULLS,
    *,
    unit: bool = True,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Chosen:
    """The pull, and how many epochs, by what is held out of these labels.

    `vectors` as stored and `points` before the head, float32 (n, d) and (n, k). Of the
    pulls with which unseen classes are no worse than in the stored vectors, the strongest
    whose mean of both mAPs is within SLACK of the best; where there is none, the strongest.
    Figures are means over INSIDE ways to hold classes out. Each training ends where seen
    classes gain no more: the pull alone weighs them against unseen ones. Without two
    classes to hold out, the settings as they are. Raises Stopped.
    """
    tests = []
    for number in range(INSIDE):
        seed = settings.seed + number + 1
        split = hold_out(labels.classes[0], seed, most=MOST_INSIDE)
        tests.append(_Test(vectors, points, labels, split, unit, stop))
    stored = [test.point(0.0, 0, vectors[test.split.gallery]) for test in tests]
    if any(one.unseen is None for one in stored):
        return Chosen(settings, (), None)
    before = _mean(stored)
    found = []
    for number, pull in enumerate(pulls):
        say("Choosing the pull", number, len(pulls))
        tried = replace(settings, pull=pull)
        found.append(_mean([test.best(tried) for test in tests]))
    say("Choosing the pull", len(pulls), len(pulls))
    kept = [one for one in found if one.unseen >= before.unseen - WORSE]
    least = max(map(_both, kept), default=0) - SLACK
    good = [one for one in kept if _both(one) >= least] or found
    best = max(good, key=lambda one: one.pull)
    chosen = replace(settings, pull=best.pull, epochs=best.epochs)
    return Chosen(chosen, tuple(found), before)


@dataclass(frozen=True)
class _Test:
    """One split to choose by. Arguments as for `choose()`."""

    vectors: np.ndarray
    points: np.ndarray
    labels: Labels
    split: Split
    unit: bool
    stop: Callable[[], bool]

    def point(self, pull: float, epochs: int, vectors: np.ndarray) -> Point:
        """The figures of vectors float32 (g, d) of the gallery."""
        found = judge_split(
            vectors,
            self.labels.classes[0],
            self.split,
            euclidean=not self.unit,
            stop=self.stop,
        ).figures()
        return Point(pull, epochs, found["seen"].map, found["unseen"].map)

    def best(self, settings: Settings) -> Point:
        """Train until seen classes gain no more; the figures after the best epoch."""
        found: list[Point] = []

        def watch(epoch: int, head: np.ndarray) -> bool:
            if epoch % EVERY and epoch < settings.epochs:
                return False
            found.append(self.point(settings.pull, epoch, gallery @ head))
            return found.index(max(found, key=_first)) < len(found) - PATIENCE

        gallery = self.points[self.split.gallery]
        known = self.labels.only(self.split.train)
        train_head(
            self.points, known, settings, unit=self.unit, watch=watch, stop=self.stop
        )
        return max(found, key=_first)


def _mean(points: Sequence[Point]) -> Point:
    """The mean of the figures of one pull, of those splits that have them."""
    seen = [one.seen for one in points if one.seen is not None]
    return Point(
        points[0].pull,
        round(sum(one.epochs for one in points) / len(points)),
        sum(seen) / len(seen) if seen else None,
        sum(one.unseen for one in points) / len(points),
    )


def _first(point: Point) -> float:
    """mAP of seen classes, or of unseen ones where there is none."""
    return point.unseen if point.seen is None else point.seen


def _both(point: Point) -> float:
    """The mean of both mAPs, or the one that there is."""
    return (point.unseen + _first(point)) / 2


@dataclass(frozen=True)
class Trial:
    """What was found on a split. `rows`: what is stored ("before"), without the head
    ("base") and with it ("after")."""

    split: Split
    trained: int  # pictures trained on
    chosen: Chosen
    curve: tuple[Point, ...]
    rows: dict[str, Judged]

    def as_json(self) -> dict[str, object]:
        rows = {
            name: {part: asdict(one) for part, one in judged.figures().items()}
            for name, judged in self.rows.items()
        }
        return {
            "train": self.trained,
            "seen": len(self.split.seen),
            "unseen": len(self.split.unseen),
            **rows,
            "difference": differences(self.rows["before"], self.rows["after"]),
            "difference_to_base": differences(self.rows["base"], self.rows["after"]),
            "curve": [asdict(one) for one in self.curve],
            "chosen": asdict(self.chosen.settings),
            "chosen_by": [asdict(one) for one in self.chosen.inside],
            "chosen_by_before": self.chosen.before and asdict(self.chosen.before),
        }


def try_out(
    vectors: np.ndarray,
    points: np.ndarray,
    labels: Labels,
    split: Split,
    settings: Settings,
    *,
    pulls: Sequence[float] = PULLS,
    unit: bool = True,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Trial:
    """Choose a setting inside of `split.train`, and judge it on what is held out.

    Arguments as for `choose()`. The curve shows every pull, each after the epochs that were
    best for it inside. Raises CollectionError where too little is left to train on,
    Stopped.
    """
    known = labels.only(split.train)
    chosen = choose(vectors, points, known, settings, pulls, unit=unit, say=say, stop=stop)
    gallery, classes = split.gallery, labels.classes[0]

    def judged(moved: np.ndarray) -> Judged:
        return judge_split(moved, classes, split, euclidean=not unit, stop=stop)

    rows = {"before": judged(vectors[gallery]), "base": judged(points[gallery])}
    each = {one.pull: one.epochs for one in chosen.inside}
    each.setdefault(chosen.settings.pull, chosen.settings.epochs)
    curve = []
    for number, pull in enumerate(sorted({*each, *pulls})):
        say("Trying each pull on what is held out", number, len(pulls))
        epochs = each.get(pull, chosen.settings.epochs)
        tried = replace(chosen.settings, pull=pull, epochs=epochs)
        head = train_head(points, known, tried, unit=unit, stop=stop)
        after = judged(points[gallery] @ head)
        figures = after.figures()
        curve.append(Point(pull, epochs, figures["seen"].map, figures["unseen"].map))
        if pull == chosen.settings.pull:
            rows["after"] = after
    return Trial(split, known.count, chosen, tuple(curve), rows)
