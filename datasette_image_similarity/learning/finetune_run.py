"""A training run: epochs, what is watched meanwhile, checkpoints, and how it is judged.

Imported when training begins, not before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import CollectionError
from ..explore.judging import METRICS
from ..explore.vectors import Say, Stopped
from . import checkpoint
from .finetune_network import Tuning
from .heldout import NOTHING, Judged, Split, differences, judge_split
from .parts import balanced
from .squares import Material

CHECKPOINT_SECONDS = 600  # after so many, also within an epoch
PATIENCE = 3  # epochs without gain, after which training ends
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the way to what was learned


@dataclass(frozen=True)
class Change:
    """What the rankings of judged pictures, among all of these, were and are.

    `before` and `after` are by the names in METRICS; `difference` is of mAP, and
    `interval` its 95 % interval (paired bootstrap over the queries).
    """

    queries: int
    before: dict[str, float]
    after: dict[str, float]
    interval: list[float]

    @property
    def difference(self) -> float:
        return self.after["map"] - self.before["map"]


@dataclass(frozen=True)
class Epoch:
    """How far training has come. mAP is of watched pictures; None where there are none."""

    number: int  # 0: before training
    loss: float | None
    seen: float | None
    unseen: float | None
    seconds: float


class Training:
    """A training run, from its beginning or from where it was left."""

    def __init__(
        self,
        tuning: Tuning,
        material: Material,
        *,
        euclidean: bool,
        file: Path,
        about: dict[str, Any],
        say: Say,
        note: Callable[[Epoch], None],
        stop: Callable[[], bool],
    ) -> None:
        self.tuning, self.material, self.euclidean = tuning, material, euclidean
        self.file, self.about = file, about
        self.say, self.note, self.stop = say, note, stop
        self.rows = np.searchsorted(material.train, material.parts.train)
        trained = material.classes[material.parts.train]
        self.labels = np.unique(trained, return_inverse=True)[1]
        self.per_epoch = -(-len(trained) // tuning.settings.batch_size)
        self.epochs: list[Epoch] = []
        self.losses: list[float] = []  # of the epoch that is under way
        self.best: dict[str, Tensor] = {}  # the state of the best epoch

    def train(self) -> None:
        """Train what is left to train."""
        if not self._restored():
            self._begin()
        for epoch in range(len(self.epochs), self.tuning.settings.epochs + 1):
            if len(self.epochs) - 1 - self.best_epoch >= PATIENCE:
                break
            self._train_epoch(epoch)

    def _begin(self) -> None:
        self.say("Embedding what is trained on", 0, len(self.rows))
        self.tuning.begin(self.material.larger, self.rows, self.labels)
        self._watch(None, time.perf_counter())

    def _train_epoch(self, epoch: int) -> None:
        settings = self.tuning.settings
        began = written = time.perf_counter()
        order = balanced(self.labels, settings.seed, epoch)
        batches = np.array_split(order, self.per_epoch)
        total = self.per_epoch * settings.epochs
        for batch in batches[len(self.losses) :]:
            pixels = self.material.larger[self.rows[batch]]
            self.losses.append(self.tuning.step(pixels, self.labels[batch], total))
            done = len(self.losses)
            self.say(f"Epoch {epoch} of {settings.epochs}", done, len(batches))
            if self.stop() or time.perf_counter() - written > CHECKPOINT_SECONDS:
                self._save()
                written = time.perf_counter()
            if self.stop():
                raise Stopped
        loss = sum(self.losses) / len(self.losses)
        self.losses = []
        self._watch(loss, began)
        self._save()

    def _watch(self, loss: float | None, began: float) -> None:
        """Note an epoch, by watched pictures, and its state if it is the best so far."""
        seen, unseen = self.watched()
        seconds = round(time.perf_counter() - began, 1)
        self.epochs.append(Epoch(len(self.epochs), loss, seen, unseen, seconds))
        if self.best_epoch == len(self.epochs) - 1:
            self.best = self.tuning.now()
        self.note(self.epochs[-1])

    @property
    def best_epoch(self) -> int:
        """The best for watched pictures, the last where there are none; 0 before all."""

        def score(epoch: Epoch) -> float:
            return _both(epoch.seen, epoch.unseen, epoch.number)

        return max(self.epochs[1:] or self.epochs, key=score).number

    def chosen(self) -> tuple[dict[str, Tensor], float]:
        """The state to keep, and how far it is on the way to that of the best epoch.

        Of the SHARES with which watched classes that are not trained on are no worse than
        before, the one that is best for all; where there is none, the best for these.
        """
        before = self.epochs[0].unseen
        found = []
        for number, share in enumerate(SHARES):
            self.say("Mixing with the weights before", number, len(SHARES))
            seen, unseen = self.watched(self.tuning.mixture(self.best, share))
            no_worse = before is None or unseen >= before
            score = _both(seen, unseen, share) if no_worse else unseen
            found.append((no_worse, score, share))
        share = max(found)[2]
        return self.tuning.mixture(self.best, share), share

    # Judging

    def watched(
        self, state: Mapping[str, Tensor] | None = None
    ) -> tuple[float | None, float | None]:
        """mAP of watched pictures, seen and unseen; None where none finds anything."""
        parts = self.material.parts
        found = self._judged(parts.watched_seen, parts.watched_unseen, state).figures()
        return found["seen"].map, found["unseen"].map

    def changes(self, state: Mapping[str, Tensor]) -> list[Change]:
        """What a state changes for judged pictures: seen, unseen."""
        parts = self.material.parts
        self.say("Judging", 0, 2)
        before = self._judged(parts.seen, parts.unseen, self.tuning.base)
        self.say("Judging", 1, 2)
        after = self._judged(parts.seen, parts.unseen, state)
        self.say("Judging", 2, 2)
        return [
            Change(
                queries=len(getattr(before, name)),
                before=_means(getattr(before, name)),
                after=_means(getattr(after, name)),
                interval=change["map"][1:],
            )
            for name, change in differences(before, after).items()
        ]

    def _judged(
        self, seen: np.ndarray, unseen: np.ndarray, state: Mapping[str, Tensor] | None
    ) -> Judged:
        """Pictures seen and unseen, all of which are the gallery, with this state."""
        split = Split(self.material.parts.train, seen, unseen)
        if not len(split.gallery):
            return NOTHING
        rows = np.searchsorted(self.material.held, split.gallery)
        vectors = self.tuning.embedded(self.material.squares, rows, state)
        return judge_split(vectors, self.material.classes, split, euclidean=self.euclidean)

    # Checkpoints

    def _save(self) -> None:
        tensors = self.tuning.tensors()
        tensors |= {f"best/{name}": one for name, one in self.best.items()}
        about = {
            "run": self.about,
            "steps": self.tuning.steps,
            "losses": self.losses,
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }
        checkpoint.save(self.file, tensors, about)

    def _restored(self) -> bool:
        """Go on from the checkpoint, if there is one. Raises CollectionError."""
        found = checkpoint.load(self.file)
        if found is None:
            return False
        tensors, about = found
        try:
            differing = [
                name for name, one in self.about.items() if about["run"][name] != one
            ]
            if differing:
                raise CollectionError(
                    f"{self.file} is of a run with other {', '.join(differing)}: train as "
                    "it did to go on, or --restart to begin again"
                )
            self.tuning.restore(tensors, about["steps"])
            self.best = {
                name: tensors[f"best/{name}"].to(one.device)
                for name, one in self.tuning.trained.items()
            }
            self.losses = about["losses"]
            self.epochs = [Epoch(**epoch) for epoch in about["epochs"]]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise checkpoint.damaged(self.file) from error
        return True


def _both(seen: float | None, unseen: float | None, otherwise: float) -> float:
    """The mean of both mAPs, or the one that there is."""
    known = [one for one in (seen, unseen) if one is not None]
    return sum(known) / len(known) if known else otherwise


def _means(values: np.ndarray) -> dict[str, float]:
    return dict(zip(METRICS, values.mean(axis=0).tolist(), strict=True))
