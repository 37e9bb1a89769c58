"""The command that makes a collection smaller."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .base import (
    Reporter,
    collection_name,
    command_line,
    existing,
    image_similarity,
    json_output,
    kept_beside,
    only_table,
    or_stopped,
    print_json,
    vacuum,
    warnings_said,
)


@image_similarity.command()
@existing
@click.argument("table", required=False)
@click.option(
    "--dims",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Dimensions to keep",
)
@click.option("--whiten", is_flag=True, help="Give the kept directions the same weight")
@click.option(
    "--shrinkage",
    type=click.FloatRange(0, 1),
    help="With --whiten: 0 the same weight in full, 1 not at all; 0.75 by default",
)
@collection_name
@click.option("--to", help="Name of the new collection; pca-DIMS by default")
@click.option(
    "--replace",
    is_flag=True,
    help="Delete the full vectors, and the map, clusters with their names, duplicate "
    "groups and evaluations that were made of them",
)
@json_output
def reduce(
    database: Path,
    table: str | None,
    dims: int,
    whiten: bool,
    shrinkage: float | None,
    name: str | None,
    to: str | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Make vectors smaller, and mostly better: PCA, learned from the collection.

    The smaller vectors become a collection of their own beside the full ones. New pictures,
    uploads and searches go through the same projection.

    \b
    Examples:
        datasette image-similarity reduce photos.db
        datasette image-similarity reduce photos.db images --dims 128 --to small
        datasette image-similarity reduce photos.db --replace
    """
    from ..collection import ImageCollection

    if shrinkage is not None and not whiten:
        raise click.UsageError("--shrinkage is for --whiten")
    if replace and to is not None:
        raise click.UsageError("--replace keeps the name: leave out --to")
    say = Reporter(database, quiet=as_json)
    table = table or only_table(database)
    with (
        or_stopped(say, "everything is as it was") as stop,
        ImageCollection(database, table, name=name) as collection,
        warnings_said(),
    ):
        store = collection.store
        made = collection.reduce(
            dims,
            whiten=whiten,
            shrinkage=shrinkage,
            to=to,
            replace=replace,
            progress=say.step,
            stop=stop,
        )
    if as_json:
        print_json(asdict(made))
    for line in _in_words(made, database):
        say.line(line)
    for line in kept_beside(store, database, made.table, made.name):
        say.line(line)


def _in_words(made: Any, database: Path) -> list[str]:
    """What was made, and what to do with it."""
    lines = [
        f"{made.transform}, learned from {made.learned_from:,} pictures: "
        f"{made.variance_kept:.1%} of the variance of {made.dimensions_before:,} "
        "dimensions",
        f"{made.pictures:,} vectors, {made.bytes_before / 1e6:,.1f} MB → "
        f"{made.bytes / 1e6:,.1f} MB, and {made.transform_bytes / 1e6:,.1f} MB for the "
        "projection",
    ]
    if made.learned_from < 5 * made.dimensions:
        lines.append(
            f"That is few pictures for {made.dimensions:,} dimensions: check that results "
            "got no worse, or take fewer"
        )
    if made.replaced:
        lines.append(f"It replaces {made.name!r}. To make the file smaller as well:")
        lines.append(f"  {vacuum(database)}")
        return lines
    return [
        *lines,
        f"It is the collection {made.name!r}, beside {made.parent!r}. Compare them by a "
        "column of labels:",
        "  "
        + command_line(
            *("evaluate", database, made.table, "--label", "COLUMN"),
            *("--collections", f"{made.parent},{made.name}"),
        ),
        "Use it where no collection is named:",
        f"  {command_line('default', database, made.table, made.name)}",
    ]
