"""What `train --backbone` takes and does: fine-tune the network itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .base import Reporter, command_line, or_stopped, print_json
from .held_out import held_out_lines

if TYPE_CHECKING:
    from ..learning.finetune import Finetuned
    from ..learning.finetune_run import Epoch

OPTIONS = (
    click.option(
        "--weights-to",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE.safetensors",
        help="Where the network's new weights are written",
    ),
    click.option(
        "--lr",
        type=click.FloatRange(0, 1, min_open=True),
        help="Learning rate of the network's last layer; .0003 by default",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(2, 4096),
        help="Pictures in a training step; 32 by default",
    ),
    click.option(
        "--freeze",
        type=click.FloatRange(0, 1),
        help="Share of the network's layers, the first ones, that stay as they are; "
        ".5 by default",
    ),
    click.option(
        "--hold-out",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Share of the classes, and of the other classes' pictures, that is judged by "
        "and not trained on; .25 by default",
    ),
    click.option(
        "--no-flip",
        is_flag=True,
        help="Do not train on mirror images: for text, and for left and right shoes",
    ),
    click.option(
        "--device", default="auto", show_default=True, help="cpu, cuda, mps or auto"
    ),
    click.option("--workers", type=click.IntRange(1, 256), help="Decoders; default: cores"),
    click.option("--restart", is_flag=True, help="Do not go on from a checkpoint"),
)


NAMES = (
    *("weights_to", "lr", "batch_size", "freeze", "hold_out", "no_flip"),
    *("device", "workers", "restart"),
)


def backbone_options(command: Callable) -> Callable:
    """Decorate a command with the options that fine-tuning has for itself."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def refuse_given(context: click.Context, names: Collection[str], only: str) -> None:
    """Raise UsageError where one of these parameters was given: they do something
    `only`, as in "only with --backbone"."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if parameter.name in names and source is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} does something {only}")


def run_backbone(
    database: Path,
    table: str,
    name: str | None,
    label: str,
    *,
    weights_to: Path | None,
    epochs: int | None,
    lr: float | None,
    batch_size: int | None,
    freeze: float | None,
    hold_out: float | None,
    no_flip: bool,
    seed: int,
    device: str,
    workers: int | None,
    anyway: bool,
    restart: bool,
    as_json: bool,
) -> None:
    """Fine-tune, and print what came of it. None: the default."""
    from ..collection import ImageCollection
    from ..learning.finetune import Settings

    if weights_to is None:
        raise click.UsageError("--backbone needs --weights-to FILE.safetensors")
    asked: dict[str, Any] = {
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "freeze": freeze,
        "hold_out": hold_out,
    }
    given = {option: value for option, value in asked.items() if value is not None}
    settings = Settings(**given, flip=not no_flip, seed=seed)
    say = Reporter(database, quiet=as_json)

    def epoch_line(epoch: Epoch) -> None:
        say.line(_epoch_line(epoch, settings.epochs))

    with (
        ImageCollection(database, table, name=name) as collection,
        or_stopped(say, "the same command goes on from here") as stop,
    ):
        made = collection.finetune(
            label,
            weights_to,
            settings=settings,
            device=device,
            workers=workers,
            anyway=anyway,
            restart=restart,
            progress=say.step,
            epoch=epoch_line,
            stop=stop,
        )
    if as_json:
        print_json(made.as_json(), indent=None)
    for line in _lines(made):
        say.line(line)
    if made.file is None:
        say.line(
            "Classes that were not trained on got worse. Nothing was written; the same "
            "command with --anyway writes it."
        )
        sys.exit(1)
    if made.unseen.difference < 0:
        say.line(
            "Classes that were not trained on got worse. Written all the same, as you "
            "asked."
        )
    say.line(f"Written: {made.file}. To embed with it, in a collection of its own:")
    say.line(f"  {command_line('embed', database, *made.embed)}")


def _epoch_line(epoch: Epoch, epochs: int) -> str:
    loss = "before training" if epoch.loss is None else f"loss {epoch.loss:.3f}"
    watched = [
        f"{what} mAP {value:.3f}"
        for what, value in (("seen", epoch.seen), ("unseen", epoch.unseen))
        if value is not None
    ]
    figures = ", ".join([loss, *watched])
    return f"Epoch {epoch.number} of {epochs}: {figures} ({epoch.seconds:.0f} s)"


def _lines(made: Finetuned) -> list[str]:
    """What was trained on, and what it changed."""
    lines = [
        f"Trained {made.model} on {made.trained:,} pictures of {made.classes:,} classes in "
        f"{made.seconds:.0f} seconds; kept: epoch {made.best_epoch}, {made.share:g} of the "
        "way from the weights before"
    ]
    left_out = {
        "without a label": made.unlabelled,
        "alone in their class": made.alone,
        "not to be read": len(made.unreadable),
    }
    some = [f"{count:,} {why}" for why, count in left_out.items() if count]
    if some:
        lines.append(f"Left out: {', '.join(some)}")
    lines += [f"{path}: {reason}" for path, reason in list(made.unreadable.items())[:5]]
    changes = {"seen": made.seen, "unseen": made.unseen}
    lines += held_out_lines(
        {part: one.queries for part, one in changes.items()},
        {
            "before": {part: one.before for part, one in changes.items()},
            "after": {part: one.after for part, one in changes.items()},
        },
        {part: (one.difference, *one.interval) for part, one in changes.items()},
    )
    return lines
