"""The command that makes the map."""

from __future__ import annotations

import time
from pathlib import Path

import click

from .base import (
    Reporter,
    collection_name,
    existing,
    image_similarity,
    json_output,
    only_table,
    or_stopped,
    print_json,
)


@image_similarity.command("map")
@existing
@click.argument("table", required=False)
@collection_name
@click.option(
    "--method",
    type=click.Choice(["tsne", "umap", "pca"]),
    default="tsne",
    show_default=True,
    help="How to lay the pictures out",
)
@click.option(
    "--grid/--no-grid",
    default=True,
    show_default=True,
    help="Give every picture a cell of a grid, too",
)
@click.option("--seed", type=int, default=0, show_default=True, help="For another map")
@json_output
def make_map(
    database: Path,
    table: str | None,
    name: str | None,
    method: str,
    grid: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Lay a collection out in two dimensions: what looks alike lies close together.

    The map is stored in the database, with small pictures of everything on it; the page
    "Map" of the table shows it. Run again after embedding new pictures: until then they
    are not on it. --method tsne needs the extra [explore], umap [umap], pca none.

    \b
    Example:
        datasette image-similarity map photos.db
    """
    from dataclasses import asdict

    from ..collection import ImageCollection

    say = Reporter(database, quiet=as_json)
    table = table or only_table(database)
    started = time.perf_counter()
    with (
        ImageCollection(database, table, name=name) as collection,
        or_stopped(say, "the map is as it was") as stop,
    ):
        made = collection.map(
            method=method, seed=seed, grid=grid, progress=say.step, stop=stop
        )
    if as_json:
        print_json(asdict(made))
    seconds = time.perf_counter() - started
    say.line(f"{made.count:,} pictures on the map, in {seconds:.1f} seconds")
