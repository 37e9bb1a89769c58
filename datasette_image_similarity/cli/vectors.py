"""The command that takes vectors in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .base import (
    Reporter,
    command_line,
    database_file,
    image_similarity,
    json_output,
    or_stopped,
    print_json,
)


@image_similarity.command(name="import")
@database_file
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--table", help="Table of the pictures; as in the file by default")
@click.option("--name", help="Name of the collection; as in the file by default")
@click.option(
    "--replace",
    is_flag=True,
    help="Delete a collection that has the name already, with its map, clusters and their "
    "names, duplicate groups and evaluations",
)
@click.option("--store", metavar="URL", help="Keep the vectors in a store: see embed")
@json_output
def import_(
    database: Path,
    file: Path,
    table: str | None,
    name: str | None,
    replace: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Take in vectors that export --vectors wrote to a Parquet file.

    They belong to rows of a table, by key, that name the same picture; of a folder's
    pictures the table is made where it is missing. All of them are taken in or none.

    \b
    Examples:
        datasette image-similarity import photos.db vectors.parquet
        datasette image-similarity import shop.db new.parquet --name new
    """
    from ..collection import ImageCollection
    from ..vector_files import VectorFile

    with VectorFile(file) as vectors:
        table = table or vectors.record.table
        name = name or vectors.record.collection
    say = Reporter(database, quiet=as_json)
    with (
        or_stopped(say, "everything is as it was") as stop,
        ImageCollection(database, table, name=name) as collection,
    ):
        done = collection.import_vectors(
            file, replace=replace, store=store, progress=say.rated, stop=stop
        )
        say.vouched(collection.vouched)
    if as_json:
        print_json(asdict(done))
    for line in _in_words(done, database):
        say.line(line)


def _in_words(done: Any, database: Path) -> list[str]:
    made = f"; the table {done.table!r} was made" if done.made else ""
    lines = [f"{done.vectors:,} vectors are the collection {done.name!r}{made}."]
    if done.missing:
        lines.append(f"{done.missing:,} have no row in {done.table!r}, and were left out.")
    if done.different:
        lines.append(f"{done.different:,} rows name another picture, and were left out.")
    if done.problem:
        retry = command_line(
            "reconcile", database, done.table, "--name", done.name, "--mend"
        )
        lines.append(f"{done.waiting:,} wait to be sent: {done.problem}. Then: {retry}")
    return [*lines, *done.left]
