"""The command that learns from labels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .base import (
    Reporter,
    collection_name,
    existing,
    image_similarity,
    json_output,
    kept_beside,
    only_table,
    or_stopped,
    print_json,
)
from .finetune import NAMES as BACKBONE_ONLY
from .finetune import backbone_options, refuse_given, run_backbone
from .held_out import held_out_lines, number

if TYPE_CHECKING:
    from ..learning.heldout import Trial
    from ..learning.train import Trained

HEAD_ONLY = ("decisions", "feedback", "loss", "temperature", "pull", "dims", "to")
ROWS = {"before": "as stored", "base": "{base} alone", "after": "with the head"}


def head_options(command: Any) -> Any:
    """The options of a head, which is trained on stored vectors."""
    for option in reversed(
        (
            click.option("--label", metavar="COLUMN", help="Column: what is alike"),
            click.option(
                "--decisions",
                is_flag=True,
                help="Learn from what was decided about duplicates: marked is like kept, "
                "what was split off is not",
            ),
            click.option(
                "--feedback",
                is_flag=True,
                help="Learn from saved and logged questions: pictures asked for together "
                "are alike, and not like those asked less of",
            ),
            click.option(
                "--loss",
                type=click.Choice(["supcon", "triplet"]),
                default="supcon",
                show_default=True,
                help="Supervised contrastive, or batch-hard triplets",
            ),
            click.option(
                "--temperature",
                type=click.FloatRange(0, min_open=True),
                default=0.1,
                show_default=True,
                help="Low: what is nearest counts most",
            ),
            click.option(
                "--pull",
                type=click.FloatRange(0),
                help="How strongly the head is held to the vectors as they are; chosen by "
                "held out classes by default",
            ),
            click.option(
                "--epochs",
                type=click.IntRange(1),
                default=15,
                show_default=True,
                help="At most; fewer where held out pictures gain no more. 10 by default "
                "with --backbone",
            ),
            click.option(
                "--dims",
                type=click.IntRange(1),
                help="Dimensions that PCA leaves before the head; 128 by default, none "
                "where the collection has so few by PCA already",
            ),
            click.option(
                "--anyway",
                is_flag=True,
                help="Store it even where it makes things worse",
            ),
        )
    ):
        command = option(command)
    return command


@image_similarity.command()
@existing
@click.argument("table", required=False)
@head_options
@click.option(
    "--to", default="trained", show_default=True, help="The new collection's name"
)
@click.option(
    "--backbone",
    is_flag=True,
    help="Fine-tune the network itself on the pictures, for --weights-to",
)
@backbone_options
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31),
    default=0,
    show_default=True,
    help="Another one holds out other pictures, the same one gives the same",
)
@collection_name
@json_output
@click.pass_context
def train(
    context: click.Context,
    database: Path,
    table: str | None,
    to: str,
    backbone: bool,
    seed: int,
    name: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Learn from labels what is alike: a new collection of the stored vectors after a
    learned projection. With --backbone, new weights for the network.

    Some classes, and half of the pictures of others, are held out first: what the head
    gains there is reported beside what is stored. Where classes that it was not trained on
    get worse, nothing is stored, and the command exits with 1. Else one that is trained on
    all labels is.

    --backbone trains the network by its pictures, which takes long without a GPU. It
    writes a checkpoint after each epoch: the same command goes on from there. Embed with
    the weights that it writes.

    \b
    Examples:
        datasette image-similarity train photos.db --label category
        datasette image-similarity train photos.db --label category --backbone \\
            --weights-to tuned.safetensors
    """
    from ..collection import ImageCollection

    own = {option: options.pop(option) for option in BACKBONE_ONLY}
    if backbone:
        refuse_given(context, HEAD_ONLY, "only without --backbone")
        if not options["label"]:
            raise click.UsageError("--backbone needs --label COLUMN")
        given = context.get_parameter_source("epochs") is ParameterSource.COMMANDLINE
        run_backbone(
            database,
            table or only_table(database),
            name,
            options["label"],
            epochs=options["epochs"] if given else None,
            seed=seed,
            anyway=options["anyway"],
            as_json=as_json,
            **own,
        )
        return
    refuse_given(context, BACKBONE_ONLY, "only with --backbone")
    say = Reporter(database, quiet=as_json)
    if not (options["label"] or options["decisions"] or options["feedback"]):
        raise click.UsageError(
            "Say what to learn from: --label COLUMN, --decisions or --feedback"
        )
    table = table or only_table(database)
    with (
        ImageCollection(database, table, name=name) as collection,
        or_stopped(say, "nothing was stored") as stop,
    ):
        store = collection.store
        trained = collection.train(
            to=to, seed=seed, progress=say.step, stop=stop, **options
        )
    if as_json:
        print_json(trained.as_json())
    else:
        _report(say, trained)
    if trained.name is None:
        sys.exit(1)
    for line in kept_beside(store, database, trained.table, trained.name):
        say.line(line)


def _report(say: Reporter, trained: Trained) -> None:
    settings = trained.settings
    say.line(
        f"{trained.table} ({trained.parent}): {trained.labelled:,} of {trained.pictures:,} "
        f"pictures in {trained.classes:,} classes of two and more, by "
        f"{trained.learned}"
    )
    if trained.trial:
        _say_trial(say, trained, trained.trial)
    for note in trained.notes:
        say.line(f"{note}.")
    if trained.name is None:
        say.line(f"{trained.refused}. Nothing was stored; --anyway stores it.")
        return
    if trained.refused:
        say.line(f"{trained.refused}. Stored all the same, as you asked.")
    say.line(
        f"Stored as {trained.name}: {trained.dimensions:,} dimensions, "
        f"{settings.loss}, pull {settings.pull:g}, {settings.epochs} epochs on all labels, "
        f"in {trained.seconds:.1f} seconds"
    )


def _say_trial(say: Reporter, trained: Trained, trial: Trial) -> None:
    """Before and after, and the trade-off."""
    split, found = trial.split, trial.as_json()
    lines = held_out_lines(
        {"seen": len(split.seen), "unseen": len(split.unseen)},
        {
            words.format(base=trained.base): found[row]
            for row, words in ROWS.items()
            if trained.base or row != "base"
        },
        {part: change["map"] for part, change in found["difference"].items()},
    )
    for line in lines:
        say.line(line)
    say.line("The stronger the pull, the less the head changes:")
    say.line(f"{'pull':>10}{'trained on':>14}{'not trained on':>16}{'epochs':>9}")
    for point in trial.curve:
        star = "*" if point.pull == trial.chosen.settings.pull else " "
        say.line(
            f"{star}{point.pull:>9g}{number(point.seen):>14}{number(point.unseen):>16}"
            f"{point.epochs:>9}"
        )
    if len(trial.curve) > 1 and trial.chosen.inside:
        say.line("* chosen by classes held out from the rest, not by these figures")
