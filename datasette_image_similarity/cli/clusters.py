"""The command that groups pictures that look alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from ..explore.clusters import Clustering

SHOWN = 20  # clusters


@image_similarity.command()
@existing
@click.argument("table", required=False)
@click.option(
    "--method",
    type=click.Choice(["kmeans", "hdbscan"]),
    default="kmeans",
    show_default=True,
    help="kmeans puts every picture into a cluster; hdbscan only those in dense groups",
)
@click.option(
    "--k",
    type=click.IntRange(min=1),
    help="How many clusters kmeans makes; √(pictures / 2) by default, at most 200",
)
@click.option(
    "--min-size",
    type=click.IntRange(min=2),
    help="Pictures in the smallest cluster of hdbscan; 10 by default",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Another one gives other clusters, the same one the same",
)
@click.option(
    "--label",
    help="Column to suggest names from; by default one called label, category, class, "
    "kind, type or folder, else the words of a caption, title or the like",
)
@collection_name
@json_output
def clusters(
    database: Path,
    table: str | None,
    method: str,
    k: int | None,
    min_size: int | None,
    seed: int,
    label: str | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Put pictures that look alike into clusters, with names.

    Names that people have given on the page stay with the cluster that is most like the
    one they named. Pictures embedded later are in no cluster until this is run again.

    \b
    Example:
        datasette image-similarity clusters photos.db --k 20
    """
    from ..collection import ImageCollection

    say = Reporter(database, quiet=as_json)
    table = table or only_table(database)
    with (
        ImageCollection(database, table, name=name) as collection,
        or_stopped(say, "the clusters are as they were") as stop,
    ):
        found = collection.clusters(
            method=method,
            k=k,
            min_size=min_size,
            seed=seed,
            label=label,
            progress=say.step,
            stop=stop,
        )
    if as_json:
        print_json(found.as_json())
    else:
        _report(say, found)


def _report(say: Reporter, found: Clustering) -> None:
    for cluster in found.clusters[:SHOWN]:
        say.line(f"{cluster.size:>8,}  {cluster.name}")
    if len(found.clusters) > SHOWN:
        say.line(f"          and {len(found.clusters) - SHOWN:,} more")
    if found.clustered < found.total:
        say.line(f"{found.total - found.clustered:>8,}  in no cluster")
    if found.sampled:
        say.line(
            f"HDBSCAN looked at {found.sampled:,} pictures; each of the others went with "
            "its nearest neighbour among these."
        )
    for lost in found.lost:
        say.line(f"No cluster is like the one that was called {lost} now.")
    named = f", named by the column {found.label}" if found.label else ""
    method = {"kmeans": "k-means", "hdbscan": "HDBSCAN"}[found.method]
    say.line(
        f"{len(found.clusters):,} clusters of {found.total:,} pictures by {method}{named}, "
        f"in {found.seconds:.1f} seconds"
    )
