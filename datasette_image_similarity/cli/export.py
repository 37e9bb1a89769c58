"""The command that takes pictures along."""

from __future__ import annotations

from pathlib import Path

import click

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
@click.option(
    "--to",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write: pictures.zip, or sheet.html",
)
@click.option(
    "--vectors",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the vectors instead, to this Parquet file",
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
    file: Path | None,
    vectors: Path | None,
    pk: str | None,
    k: int,
    where: str | None,
    caption: str | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Write pictures to a zip file, or to a contact sheet: one HTML page that holds them;
    or all vectors to a Parquet file, which import takes in.

    A zip holds the originals as they were embedded, from folders that embed has noted for
    this database; else thumbnails. Its manifest.csv says which.

    \b
    Example:
        datasette image-similarity export photos.db --to red.zip --where "folder = 'red'"
        datasette image-similarity export photos.db --to like-12.html --like 12 -k 50
        datasette image-similarity export photos.db --vectors photos.parquet
    """
    from dataclasses import asdict

    from datasette.utils import urlsafe_components

    from ..collection import ImageCollection

    if (file is None) == (vectors is None):
        raise click.UsageError("Name a file with --to, or one with --vectors")
    table = table or only_table(database)
    if vectors is not None:
        if pk is not None or where is not None or caption is not None:
            raise click.UsageError("--vectors writes all of them: see --help")
        _export_vectors(database, table, name, vectors, as_json)
        return
    with ImageCollection(database, table, name=name) as collection:
        hits = None if pk is None else collection.similar(urlsafe_components(pk), k, where)
        title = None if pk is None else f"Pictures of {collection.table} like {pk}"
        done = collection.export(file, hits, where=where, caption=caption, title=title)
    if as_json:
        print_json(asdict(done))
        return
    parts = {
        "originals": done.originals,
        "thumbnails": done.thumbnails,
        "without a picture": done.missing,
    }
    said = ", ".join(f"{n:,} {what}" for what, n in parts.items() if n)
    why = " (manifest.csv says why)" if done.thumbnails and file.suffix == ".zip" else ""
    echo(f"{file}: {said or 'no pictures'}{why}")


def _export_vectors(
    database: Path, table: str, name: str | None, file: Path, as_json: bool
) -> None:
    from dataclasses import asdict

    from ..collection import ImageCollection

    say = Reporter(database, quiet=as_json)
    with (
        or_stopped(say, f"{file} was not written") as stop,
        ImageCollection(database, table, name=name) as collection,
    ):
        done = collection.export_vectors(file, progress=say.rated, stop=stop)
    if as_json:
        print_json(asdict(done))
    say.line(
        f"{file}: {done.vectors:,} vectors of {done.dimensions:,} dimensions, "
        f"{done.bytes / 1e6:,.1f} MB"
    )
    if done.without:
        say.line(f"{done.without:,} pictures have no vector, and were left out.")
