"""Fine-tune a collection's own network to a column of labels, and write its weights.

Pictures are divided (`parts.py`), decoded once, as `embed` decodes them (`squares.py`),
and trained on with augmentation (`finetune_run.py`, `finetune_network.py`, `augment.py`),
with the state of the run in a file beside the weights (`checkpoint.py`). What comes out is
judged by pictures that were not trained on, among them those of classes that the training
never saw.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from .. import __version__, trust
from .. import database as db
from ..encoders import EncoderSpec
from ..encoders.families import family_of
from ..encoders.network import device_named
from ..errors import CollectionError, EncoderError
from ..explore.vectors import Say
from ..moves import spots
from ..roots import Root, WebRoot
from . import checkpoint
from .parts import divided
from .squares import Labelled, Material, SquareReader, labelled_pictures, read_material

if TYPE_CHECKING:
    import numpy as np
    from torch.fx import GraphModule

    from .finetune_run import Change, Epoch


@dataclass(frozen=True)
class Settings:
    """What decides how a network is tuned.

    `lr` is the last layer's learning rate. `freeze` is the share of the layers, from the
    input on, that stay as they are. `hold_out` is the share of the classes, and of the
    pictures of each other class, that is not trained on. `flip` takes mirror images for
    pictures of the same class.
    """

    epochs: int = 10
    lr: float = 3e-4
    batch_size: int = 32
    freeze: float = 0.5
    hold_out: float = 0.25
    flip: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Finetuned:
    """What was trained. `file` is None where nothing was written, as classes held out got
    worse.

    `seen`: pictures held out of classes that were trained on; `unseen`: classes held out.
    `share`: how far the weights are on the way from what they were to what was learned.
    """

    file: Path | None
    sha256: str | None
    model: str
    epochs: list[Epoch]
    best_epoch: int
    share: float
    trained: int  # pictures
    classes: int  # that were trained on
    unlabelled: int
    alone: int  # the only ones of their class
    unreadable: dict[str, str]  # why, by path or key
    seen: Change
    unseen: Change
    seconds: float
    embed: tuple[str, ...]  # what the command is told, after the database, to use it

    def as_json(self) -> dict[str, Any]:
        """All of it, with the file's path as text."""
        return {**asdict(self), "file": self.file and str(self.file)}


def finetune(
    conn: sqlite3.Connection,
    collection: db.Collection,
    label: str,
    file: Path,
    *,
    settings: Settings,
    device: str = "auto",
    workers: int = 1,
    roots: Sequence[Root] = (),
    anyway: bool = False,
    restart: bool = False,
    say: Say = lambda *_: None,
    note: Callable[[Epoch], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Finetuned:
    """Train the collection's network to tell the values of the column `label` apart.

    Writes weights to `file`, which ends in .safetensors, for `embed --weights`. `roots` are
    the folders that pictures may be read from. While it runs, and where classes held out
    got worse and not `anyway`, its state is in FILE.checkpoint: the same call goes on from
    there, unless it is to `restart`. `say` is told what is being done, `note` each epoch.

    Raises CollectionError for a column, classes or a file that do not fit, or a
    checkpoint of another run; EncoderError for another encoder than torchvision's, or
    one that cannot be had; Stopped when `stop()` turns true, with a checkpoint written.
    """
    started = time.perf_counter()
    saved = _place_for(file, restart)
    spec = EncoderSpec.from_json(collection.encoder).backbone
    target, network = _network(spec, device)
    pictures, unlabelled = labelled_pictures(conn, collection, label)
    classes, alone = _classes(pictures)
    parts = divided(classes, settings.hold_out, settings.seed)
    reader = SquareReader(
        conn, collection, pictures, roots=roots, folder=file.parent, workers=workers
    )
    material = read_material(reader, classes, parts, spec.input, say, stop)
    from .finetune_network import Tuning
    from .finetune_run import Training

    run = Training(
        Tuning(network, spec, target, settings),
        material,
        euclidean=collection.metric == "l2",
        file=saved,
        about=_about(spec, label, settings, material, pictures),
        say=say,
        note=note,
        stop=stop,
    )
    run.train()
    state, share = run.chosen()
    seen, unseen = run.changes(state)
    written = anyway or unseen.difference >= 0
    made = Finetuned(
        file=file if written else None,
        sha256=None,
        model=spec.model,
        epochs=run.epochs,
        best_epoch=run.best_epoch,
        share=share,
        trained=len(material.parts.train),
        classes=len(set(classes[material.parts.train].tolist())),
        unlabelled=unlabelled,
        alone=alone,
        unreadable={
            str(pictures[place].path or pictures[place].pk): reason
            for place, reason in reader.failed.items()
        },
        seen=seen,
        unseen=unseen,
        seconds=round(time.perf_counter() - started, 1),
        embed=_embed_arguments(conn, collection, spec, file),
    )
    if not written:
        return made
    checkpoint.save(
        file, run.tuning.weights(state), _provenance(spec, label, settings, made)
    )
    saved.unlink(missing_ok=True)
    return replace(made, sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def _place_for(file: Path, restart: bool) -> Path:
    """The checkpoint's file. Raises CollectionError unless weights can be written."""
    checkpoint.require_safetensors()
    if file.suffix != ".safetensors":
        raise CollectionError(f"{file} must end in .safetensors")
    if file.exists():
        raise CollectionError(f"{file} is there already: choose another name, or delete it")
    if not os.access(file.parent, os.W_OK):
        raise CollectionError(f"There is no folder {file.parent} that can be written to")
    saved = file.with_name(f"{file.name}.checkpoint")
    if restart:
        saved.unlink(missing_ok=True)
    return saved


def _network(spec: EncoderSpec, device: str) -> tuple[str, GraphModule]:
    """The device, and the network up to what is pooled, with the collection's weights.

    Raises EncoderError.
    """
    from ..encoders import torchvision

    if family_of(spec.model) is not torchvision:
        raise EncoderError(
            f"The collection's encoder is {spec.model}: only networks of torchvision can "
            "be fine-tuned. Embed the pictures with one of these, under another --name"
        )
    target = device_named(device)
    plan = torchvision.plan_again(
        spec, weights_file=trust.weights_file(spec.weights_sha256)
    )
    return target, torchvision.trained_network(plan)[0]


def _classes(pictures: Sequence[Labelled]) -> tuple[np.ndarray, int]:
    """Classes of pictures, int64 (n,), from 0 on; -1 for those that are the only ones of
    theirs; and how many those are."""
    import numpy as np

    counts = Counter(picture.label for picture in pictures)
    names = sorted(name for name, count in counts.items() if count > 1)
    number = {name: place for place, name in enumerate(names)}
    found = [number.get(picture.label, -1) for picture in pictures]
    return np.array(found, np.int64), found.count(-1)


def _about(
    spec: EncoderSpec,
    label: str,
    settings: Settings,
    material: Material,
    pictures: Sequence[Labelled],
) -> dict[str, Any]:
    """All that decides what a run comes to: a checkpoint goes on with the same only."""
    digest = hashlib.sha256()
    for part in asdict(material.parts).values():
        for place in part.tolist():
            digest.update(f"{pictures[place].sha256} {pictures[place].label}\n".encode())
        digest.update(b"\n")
    data = {"encoder": spec.fingerprint, "label": label, "pictures": digest.hexdigest()}
    return {**data, **asdict(settings)}


def _embed_arguments(
    conn: sqlite3.Connection, collection: db.Collection, spec: EncoderSpec, file: Path
) -> tuple[str, ...]:
    """What makes a collection beside this one, of the same pictures, by these weights."""
    roots = list(map(str, spots(conn, collection)))
    options = {"table": collection.table, "name": file.stem, "model": spec.model}
    options |= {"weights": str(file), "size": str(spec.input.size), "fit": spec.input.fit}
    options |= {"pooling": spec.pooling, "metric": collection.metric}
    if collection.source != "folder":
        web = roots[:1] == [str(WebRoot())]
        options["url-column" if web else f"{collection.source}-column"] = collection.column
        options["root"] = roots[0] if roots and not web else None
    files = roots if collection.source == "folder" else []
    usual = {"fit": "squash", "metric": "cosine", "pooling": "avg"}
    told = {
        name: one for name, one in options.items() if one not in (None, usual.get(name))
    }
    return (*files, *(word for name, one in told.items() for word in (f"--{name}", one)))


def _provenance(
    spec: EncoderSpec, label: str, settings: Settings, made: Finetuned
) -> dict[str, Any]:
    """What the file says about where its weights come from."""
    report = made.as_json()
    left_out = ("file", "sha256", "unreadable", "embed")
    return {
        "made_by": f"datasette-image-similarity {__version__}",
        "base": spec.to_json(),
        "label": label,
        "settings": asdict(settings),
        **{name: one for name, one in report.items() if name not in left_out},
    }
