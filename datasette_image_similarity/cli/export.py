"""The command that takes pictures along."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .base import (
    collection_name,
    existing,
    image_similarity,
    json_output,
    only_table,
)


@image_similarity.command()
@existing
@click.argument("table", required=False)
@click.option(
    "--to",
    "file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write: pictures.zip, or sheet.html",
)
@click.option("--like", "pk", metavar="PK", help="The pictures most like this row's")
@click.option("-k", type=int, default=100, show_default=True, help="How many of these")
@click.option("--where", help="SQL condition on the table's columns")
@click.option("--caption", metavar="COLUMN", help="Column that names the pictures")
@collection_name
@json_output
def export(
    database: Path,
    table: str | None,
    file: Path,
    pk: str | None,
    k: int,
    where: str | None,
    caption: str | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Write pictures to a zip file, or to a contact sheet: one HTML page that holds them.

    A zip holds the originals as they were embedded, from folders that embed has noted for
    this database; else thumbnails. Its manifest.csv says which.

    \b
    Example:
        datasette image-similarity export photos.db --to red.zip --where "folder = 'red'"
        datasette image-similarity export photos.db --to like-12.html --like 12 -k 50
    """
    from dataclasses import asdict

    from datasette.utils import urlsafe_components

    from ..collection import ImageCollection

    with ImageCollection(database, table or only_table(database), name=name) as collection:
        hits = None if pk is None else collection.similar(urlsafe_components(pk), k, where)
        title = None if pk is None else f"Pictures of {collection.table} like {pk}"
        done = collection.export(file, hits, where=where, caption=caption, title=title)
    if as_json:
        click.echo(json.dumps(asdict(done), indent=2))
        return
    parts = {
        "originals": done.originals,
        "thumbnails": done.thumbnails,
        "without a picture": done.missing,
    }
    said = ", ".join(f"{n:,} {what}" for what, n in parts.items() if n)
    why = " (manifest.csv says why)" if done.thumbnails and file.suffix == ".zip" else ""
    click.echo(f"{file}: {said or 'no pictures'}{why}")
