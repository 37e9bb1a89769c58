"""A learned head: a linear map of stored vectors that brings together what belongs
together. Mathematics on arrays, no SQL; torch is imported where it trains.

The head is a square matrix W, applied after centring and PCA. It starts as the identity and
a pull holds it there: the loss plus `pull` · ‖W − I‖² (sums of squares). Without the pull,
a head learns to tell apart the classes that it sees and forgets how to tell others; the
pull is the one dial between the two. It has no bias: directions are all that changes.

    supcon    for every picture, the mean over those that belong to it of
              −log softmax(similarity / temperature) over all others in the batch.
              Khosla et al., "Supervised Contrastive Learning" (2020), the loss L_out
    triplet   softplus((s⁻ − s⁺) / temperature), s⁺ the least similar picture that belongs
              to it and s⁻ the most similar that does not. Hermans, Beyer and Leibe, "In
              Defense of the Triplet Loss for Person Re-Identification" (2017), batch hard
              with a soft margin

The similarity of a and b is −|a − b|² / 2: of vectors of length 1, the cosine less 1. For
the metric "l2" vectors keep their lengths, scaled so that the mean of |a|² is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..encoders.transform import Step
from ..errors import CollectionError
from ..explore.vectors import Stopped
from . import pca
from .labels import Labels, members

if TYPE_CHECKING:
    import torch

LOSSES = ("supcon", "triplet")
DIMS = 128  # of the PCA before the head
BATCH = 256  # pictures
PER_CLASS = 4  # of a class in a batch, at least, where it has them
LEAST_STEPS = 10  # an epoch: of few pictures too there is something to learn
RATE = 1e-3  # of Adam
SAMPLE = 20_000  # vectors that PCA is fitted on, at most


@dataclass(frozen=True)
class Settings:
    """How a head is trained."""

    loss: str = "supcon"  # one of LOSSES
    temperature: float = 0.1
    pull: float = 0.03
    epochs: int = 15
    seed: int = 0


@dataclass(frozen=True)
class Base:
    """What comes before the head: y = (x − mean) · axes.

    `mean` float32 (d,), `axes` float32 (d, k). `words` say what that is; "" for nothing.
    """

    mean: np.ndarray
    axes: np.ndarray
    words: str

    def points(self, vectors: np.ndarray) -> np.ndarray:
        """float32 (n, d) → float32 (n, k)."""
        return vectors @ self.axes - self.mean @ self.axes

    def step(self, head: np.ndarray, *, unit: bool, about: dict) -> Step:
        """This and the head as one step."""
        return Step("head", self.mean, self.axes @ head, unit, about)


def identity_base(dimensions: int) -> Base:
    """Nothing at all: for vectors that have been reduced before."""
    eye = np.eye(dimensions, dtype=np.float32)
    return Base(np.zeros(dimensions, np.float32), eye, "")


def pca_base(vectors: np.ndarray, dims: int = DIMS, seed: int = 0) -> Base:
    """Centring, and the first principal axes of vectors float32 (n, d).

    Fewer than `dims` axes where the vectors differ in fewer directions. Fitted on a random
    sample where there are many. Raises CollectionError when all vectors are the same.
    """
    most = min(SAMPLE, pca.sample_size(vectors.shape[1]))
    if len(vectors) > most:
        some = np.random.default_rng(seed).choice(len(vectors), most, replace=False)
        vectors = vectors[np.sort(some)]
    found = pca.spectrum(vectors)
    axes = found.axes(dims).astype(np.float32)
    return Base(found.mean.astype(np.float32), axes, f"PCA to {axes.shape[1]}")


def train_head(
    points: np.ndarray,
    labels: Labels,
    settings: Settings,
    *,
    unit: bool = True,
    watch: Callable[[int, np.ndarray], bool] = lambda *_: False,
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """The head W, float32 (k, k), for points float32 (n, k), centred.

    `unit` normalises what comes out before it is compared, as the metric "cosine" does.
    `watch` is told the epoch, from 1 on, and W; where it returns true, training ends. The
    same seed gives the same head. Raises CollectionError where there is nothing to learn
    from (`Labels.check()`) or numbers overflow, Stopped when `stop()` turns true.
    """
    labels.check()
    if not unit:
        points = points / np.sqrt(np.square(points).sum(axis=1).mean())
    with _one_thread():
        return _trained(points, labels, settings, unit, watch, stop)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The matrices are small: threads would wait for each other more than they compute, on
    two busy cores ten times as long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trained(
    points: np.ndarray,
    labels: Labels,
    settings: Settings,
    unit: bool,
    watch: Callable[[int, np.ndarray], bool],
    stop: Callable[[], bool],
) -> np.ndarray:
    """As `train_head()`, of points that are scaled."""
    import torch

    chance = np.random.default_rng(settings.seed)
    eye = torch.eye(points.shape[1])
    head = eye.clone().requires_grad_()
    move = _Adam(head)
    sampler = _Sampler(labels, chance)
    steps = max(LEAST_STEPS, labels.count // BATCH)
    for epoch in range(1, settings.epochs + 1):
        for _ in range(steps):
            if stop():
                raise Stopped
            places = sampler.draw()
            alike, comparable = labels.pairs(places)
            moved = torch.from_numpy(points[places]) @ head
            similar = _similarities(moved, unit) / settings.temperature
            measure = _supcon if settings.loss == "supcon" else _triplet
            loss = measure(similar, torch.from_numpy(alike), torch.from_numpy(comparable))
            loss = loss + settings.pull * (head - eye).square().sum()
            (slope,) = torch.autograd.grad(loss, head)
            move(slope)
        found = head.detach().numpy().copy()
        if not np.isfinite(found).all():
            raise CollectionError(
                "Training failed, its numbers are not finite: choose a higher temperature, "
                "or a weaker pull"
            )
        if watch(epoch, found):
            break
    return found


class _Adam:
    """Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015).

    torch.optim has it too, and imports torch's compiler for that: seconds.
    """

    def __init__(self, head: torch.Tensor) -> None:
        self.head = head
        self.first, self.second, self.steps = 0.0, 0.0, 0

    def __call__(self, slope: torch.Tensor) -> None:
        """Move one step down a slope, float32 (k, k)."""
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope * slope
        mean = self.first / (1 - 0.9**self.steps)
        square = self.second / (1 - 0.999**self.steps)
        self.head.data -= RATE * mean / (square.sqrt() + 1e-8)


class _Sampler:
    """Draws batches in which every class has as many pictures as the others.

    A class is drawn if it has two pictures; those with one, and pictures that somebody set
    apart from one that was drawn, are there for the others to be told from.
    """

    def __init__(self, labels: Labels, chance: np.random.Generator) -> None:
        self.chance = chance
        by_source = [members(one) for one in labels.classes]
        several = [[one for one in all if len(one) > 1] for all in by_source]
        self.sources = [some for some in several if some]
        alone = [one for all in by_source for one in all if len(one) == 1]
        self.alone = np.unique(np.concatenate(alone)) if alone else np.zeros(0, np.int64)
        self.apart: dict[int, list[int]] = {}
        for one, other in labels.apart.tolist():
            self.apart.setdefault(one, []).append(other)
            self.apart.setdefault(other, []).append(one)
        self.drawn = 0

    def draw(self) -> np.ndarray:
        """Places, int64 (b,), each once."""
        classes = self.sources[self.drawn % len(self.sources)]
        self.drawn += 1
        count = min(len(classes), BATCH // PER_CLASS)
        each = max(PER_CLASS, BATCH // count)
        chosen = self.chance.choice(len(classes), count, replace=False)
        places = [self.chance.permutation(classes[one])[:each] for one in chosen]
        places.append(self.chance.permutation(self.alone)[: BATCH // 4])
        if self.apart:
            ours = np.concatenate(places).tolist()
            partners = [
                self.chance.choice(self.apart[one]) for one in ours if one in self.apart
            ]
            places.append(np.array(partners, np.int64))
        return np.unique(np.concatenate(places))


def _similarities(moved: torch.Tensor, unit: bool) -> torch.Tensor:
    import torch

    if unit:
        moved = torch.nn.functional.normalize(moved, dim=1)
    half = moved.square().sum(dim=1) / 2
    return moved @ moved.T - half[:, None] - half


def _supcon(
    similar: torch.Tensor, alike: torch.Tensor, comparable: torch.Tensor
) -> torch.Tensor:
    import torch

    among = similar.masked_fill(~comparable, -torch.inf)
    asking = alike.any(dim=1)
    logs = among[asking] - among[asking].logsumexp(dim=1, keepdim=True)
    right = alike[asking]
    means = torch.where(right, logs, 0).sum(dim=1) / right.sum(dim=1)
    return -means.mean() if asking.any() else similar.sum() * 0


def _triplet(
    similar: torch.Tensor, alike: torch.Tensor, comparable: torch.Tensor
) -> torch.Tensor:
    import torch

    unlike = comparable & ~alike
    asking = alike.any(dim=1) & unlike.any(dim=1)
    furthest = similar.masked_fill(~alike, torch.inf).amin(dim=1)
    nearest = similar.masked_fill(~unlike, -torch.inf).amax(dim=1)
    if not asking.any():
        return similar.sum() * 0
    return torch.nn.functional.softplus(nearest[asking] - furthest[asking]).mean()
