"""Training a head on a collection: read, try out, and store it where it helps.

`head.py` trains, `heldout.py` judges, `labels.py` says what is alike. The head that is
stored is trained on all labels, with the setting that was chosen where some were held out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..encoders import EncoderSpec
from ..errors import CollectionError
from ..explore.vectors import Say, Vectors, read_vectors
from . import heldout
from .head import DIMS, LOSSES, Base, Settings, identity_base, pca_base, train_head
from .heldout import Trial, hold_out, try_out
from .labels import Labels, members, read_labels
from .stored import check_name, derive


@dataclass(frozen=True)
class Options:
    """What is trained on what. `pull` None chooses it, `dims` None is DIMS."""

    label: str | None = None
    decisions: bool = False
    feedback: bool = False
    loss: str = "supcon"
    temperature: float = Settings.temperature
    pull: float | None = None
    epochs: int = Settings.epochs
    dims: int | None = None
    seed: int = 0
    anyway: bool = False  # store it, whatever was found


@dataclass(frozen=True)
class Trained:
    """A head, and what was found out about it.

    `name` is the collection it was stored as; None where it was `refused`, with why.
    `trial` is None where nothing could be held out; `notes` say what could not be judged.
    """

    table: str
    parent: str
    name: str | None
    refused: str | None
    learned: str  # from what
    pictures: int
    labelled: int  # pictures in classes of two and more
    classes: int
    base: str
    dimensions: int
    settings: Settings
    trial: Trial | None
    notes: tuple[str, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "parent": self.parent,
            "name": self.name,
            "refused": self.refused,
            **_provenance(self),
            "seconds": self.seconds,
        }


def train(
    conn: sqlite3.Connection,
    collection: db.Collection,
    name: str,
    options: Options,
    *,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a head on the stored vectors, and store what it makes of them as `name`.

    Raises CollectionError for options that do not fit, a name that is taken, labels there
    is nothing to learn from, and without torch; Stopped when `stop()` turns true: then
    nothing is stored. A head with which unseen classes are worse is not stored, unless
    `options.anyway`: `Trained.refused` says so.
    """
    started = time.perf_counter()
    _check(conn, collection, name, options)
    unit = collection.metric == "cosine"
    stored = read_vectors(conn, collection, unit=unit, say=say, stop=stop)
    labels = _labels(conn, collection, stored, options)
    base = _base(collection, stored, options)
    points = base.points(stored.vectors)
    settings = Settings(
        options.loss, options.temperature, epochs=options.epochs, seed=options.seed
    )
    if options.pull is not None:
        settings = replace(settings, pull=options.pull)
    trial, notes = _try(stored, points, labels, settings, options, unit, say, stop)
    if trial:
        settings = trial.chosen.settings
    refused = _refused(trial)
    trained = Trained(
        table=collection.table,
        parent=collection.name,
        name=name if options.anyway or not refused else None,
        refused=refused,
        learned=str(labels),
        pictures=len(stored.ids),
        labelled=labels.count,
        classes=_class_count(labels),
        base=base.words,
        dimensions=points.shape[1],
        settings=settings,
        trial=trial,
        notes=tuple(notes),
        seconds=0.0,
    )
    if trained.name:
        say("Training on all labels", 0, 1)
        head = train_head(points, labels, settings, unit=unit, stop=stop)
        say("Training on all labels", 1, 1)
        step = base.step(head, unit=unit, about=_provenance(trained))
        derive(conn, collection, step, name=name, say=say, stop=stop)
    return replace(trained, seconds=round(time.perf_counter() - started, 1))


def _check(
    conn: sqlite3.Connection, collection: db.Collection, name: str, options: Options
) -> None:
    """Raises CollectionError before minutes pass."""
    if options.loss not in LOSSES:
        raise CollectionError(f"The loss is one of {', '.join(LOSSES)}")
    pull = options.pull or 0.0
    if not 0 < options.temperature < math.inf or not 0 <= pull < math.inf:
        raise CollectionError("The temperature must be above 0, the pull at least 0")
    if options.epochs < 1 or (options.dims is not None and options.dims < 1):
        raise CollectionError("It takes at least one epoch, and one dimension")
    check_name(conn, collection, name)
    try:
        import torch  # noqa: F401
    except ImportError:
        raise CollectionError("Training needs torch: pip install torch") from None


def _labels(
    conn: sqlite3.Connection, collection: db.Collection, stored: Vectors, options: Options
) -> Labels:
    labels = read_labels(
        conn,
        collection,
        stored,
        column=options.label,
        decisions=options.decisions,
        feedback=options.feedback,
    )
    labels.check()
    return labels


def _base(collection: db.Collection, stored: Vectors, options: Options) -> Base:
    """PCA, unless the vectors have been reduced to so few before."""
    reduced = EncoderSpec.from_json(collection.encoder).transform is not None
    dims = options.dims or DIMS
    if reduced and collection.dimensions <= dims:
        return identity_base(collection.dimensions)
    return pca_base(stored.vectors, dims, options.seed)


def _try(
    stored: Vectors,
    points: np.ndarray,
    labels: Labels,
    settings: Settings,
    options: Options,
    unit: bool,
    say: Say,
    stop: Callable[[], bool],
) -> tuple[Trial | None, list[str]]:
    """What held out pictures say, and what they cannot."""
    split = hold_out(labels.classes[0], options.seed)
    known = labels.only(split.train)
    trial, judged, notes = None, heldout.NOTHING, []
    try:
        known.check()
    except CollectionError:
        notes.append("Nothing is left to train on where some pictures are held out")
    else:
        if len(split.gallery):
            trial = try_out(
                stored.vectors,
                points,
                labels,
                split,
                settings,
                pulls=heldout.PULLS if options.pull is None else (options.pull,),
                unit=unit,
                say=say,
                stop=stop,
            )
            judged = trial.rows["before"]
    if not len(judged.unseen):
        least = 2 * heldout.LEAST
        notes.append(
            f"Whether classes get worse that it was not trained on cannot be judged: that "
            f"takes {least} classes of two pictures and more"
        )
    if not len(judged.seen):
        notes.append(
            "Whether other pictures of the same classes get better cannot be judged: that "
            f"takes classes of {heldout.HALVED} pictures and more"
        )
    if trial and options.pull is None and not trial.chosen.inside:
        notes.append(
            f"There are too few classes to choose the pull by: it is {settings.pull:g}"
        )
    return trial, notes


def _refused(trial: Trial | None) -> str | None:
    """Why the head should not be stored; None where nothing speaks against it."""
    found = heldout.differences(trial.rows["before"], trial.rows["after"]) if trial else {}
    for part, words in (
        ("unseen", "Classes that it was not trained on get worse"),
        ("seen", "Other pictures of the classes it was trained on get worse"),
    ):
        if part in found and found[part]["map"][0] < -heldout.WORSE:
            change, low, high = found[part]["map"]
            return f"{words}: mAP {change:+.3f} (95 % interval {low:+.3f} … {high:+.3f})"
    return None


def _class_count(labels: Labels) -> int:
    """Classes with two pictures and more, of all sources."""
    return sum(len(one) > 1 for source in labels.classes for one in members(source))


def _provenance(trained: Trained) -> dict[str, Any]:
    """What is stored with the step, in what JSON can hold."""
    learned = "".join(c if c.isprintable() else " " for c in trained.learned)
    words = f"head for {learned[:200]}"
    return {
        "words": f"{trained.base} and {words}" if trained.base else words,
        "learned_from": trained.learned,
        "of": trained.parent,
        "base": trained.base,
        "dimensions": trained.dimensions,
        "pictures": trained.pictures,
        "labelled": trained.labelled,
        "classes": trained.classes,
        **asdict(trained.settings),
        "held_out": trained.trial.as_json() if trained.trial else None,
        "notes": list(trained.notes),
    }
