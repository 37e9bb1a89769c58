"""The command that finds duplicates and exports what was decided about them."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import shell_line
from .base import (
    Reporter,
    collection_name,
    echo,
    existing,
    image_similarity,
    json_output,
    only_table,
    or_stopped,
    print_json,
)


@image_similarity.command()
@existing
@click.argument("table", required=False)
@collection_name
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    help="Least cosine of look-alikes; measured on the collection by default",
)
@click.option(
    "--export",
    "export",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Look for nothing; write what was decided to this file: .csv, .json, or .sh, a "
    "script that moves the marked files",
)
@click.option(
    "--to",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder that the script moves them to",
)
@json_output
def duplicates(
    database: Path,
    table: str | None,
    name: str | None,
    threshold: float | None,
    export: Path | None,
    to: Path | None,
    as_json: bool,
) -> None:
    """Find duplicates: identical files, the same picture again, and look-alikes.

    The groups are for the page /-/duplicates of the table, where one decides what to keep.
    Decisions survive when this is run again. Nothing is ever deleted.

    \b
    Example:
        datasette image-similarity duplicates photos.db
        datasette image-similarity duplicates photos.db --export marked.sh --to ~/Doubles
    """
    from ..collection import ImageCollection
    from ..explore.duplicates import TIERS, TIERS_IN_WORDS

    if to is not None and export is None:
        raise click.UsageError("--to belongs to --export FILE.sh")
    say = Reporter(database, quiet=as_json)
    table = table or only_table(database)
    with ImageCollection(database, table, name=name) as collection:
        if export is not None:
            _export(collection, export, to, as_json)
            return
        with or_stopped(say, "what was found before is as it was") as stop:
            found = collection.duplicates(threshold, progress=say.step, stop=stop)
    if as_json:
        print_json(found.as_json())
        return
    for sentence in found.thresholds.words:
        say.line(sentence)
    if found.flat:
        say.line(
            f"{_count(found.flat, 'picture')} of one colour or blank: never the same "
            "picture as another, unless their files are identical."
        )
    if found.unhashed:
        say.line(
            f"{found.unhashed:,} pictures have no thumbnail and cannot be read: they are "
            "compared by their bytes and embeddings alone."
        )
    for tier in TIERS:
        groups = found.of_tier(tier)
        pictures = sum(len(group.scores) for group in groups)
        say.line(
            f"{TIERS_IN_WORDS[tier]:16} {_count(len(groups), 'group')}, "
            f"{_count(pictures, 'picture')}"
        )
    say.line(f"{found.scanned:,} pictures compared in {found.seconds:.1f} seconds")
    if found.groups:
        say.line(
            f"To decide, run: {shell_line('datasette', database, '--root')}  and open the "
            f"link that it prints, then the page Duplicates of {table}"
        )


def _export(collection: object, file: Path, to: Path | None, as_json: bool) -> None:
    done = collection.export_decisions(file, to)
    if as_json:
        shown = {"file": str(done.file), "written": done.written, "left_out": done.left_out}
        print_json({**shown, "whole_groups": done.whole_groups})
        return
    what = "marked pictures" if to else "decisions"
    echo(f"{done.written:,} {what} in {file}")
    for reason, count in done.left_out.items():
        echo(f"Left out: {count:,} {reason}")
    if done.whole_groups:
        echo(
            f"In {_count(done.whole_groups, 'group')} all pictures are marked: none stays."
        )
    if to:
        echo(
            f"Read it, then run it: sh {file}. Afterwards "
            f"embed {collection.database} --prune drops the rows of what has gone."
        )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
