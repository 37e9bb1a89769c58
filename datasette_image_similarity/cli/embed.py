"""The command that embeds."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .base import (
    Reporter,
    collection_name,
    database_file,
    image_similarity,
    json_output,
    stopping,
)


@image_similarity.command()
@database_file
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--table", default="images", show_default=True, help="Table of the pictures")
@collection_name
@click.option("--path-column", help="Column of the table that holds the picture's path")
@click.option("--blob-column", help="Column of the table that holds the picture itself")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that paths are relative to; default: that of the CSV or the database",
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV or TSV file to make the table from, with --path-column",
)
@click.option("--pk", help="Key column of the CSV; default: id, else the row's number")
@click.option("--label-from-folder", is_flag=True, help="Put the folder's name into label")
@click.option("--where", help="SQL condition: embed only these rows of the table")
@click.option(
    "--model",
    help="resnet50 by default; another torchvision classification model, "
    "open_clip:NAME/WEIGHTS, which finds by words as well, or hog, which needs no "
    "download. See: datasette image-similarity models",
)
@click.option(
    "--weights",
    help="Weights by their published name, a .pth or .safetensors file, or for --model "
    "open_clip a folder that it saved",
)
@click.option("--pooling", type=click.Choice(["avg", "max"]), help="avg by default")
@click.option(
    "--fit",
    type=click.Choice(["squash", "crop", "pad"]),
    help="How a picture becomes a square; squash, the whole picture, by default",
)
@click.option(
    "--metric", type=click.Choice(["cosine", "l2"]), help="Distance; cosine by default"
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps or auto")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "int8"]),
    default="auto",
    show_default=True,
    help="What the network computes in; int8 is fastest and needs OpenVINO",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    default=32,
    show_default=True,
    help="Pictures stored at once",
)
@click.option("--workers", type=click.IntRange(1, 256), help="Decoders; default: cores")
@click.option("--limit", type=click.IntRange(1), help="Embed so many at most")
@click.option(
    "--max-megapixels",
    type=click.IntRange(1, 2000),
    default=200,
    show_default=True,
    help="Refuse larger pictures",
)
@click.option("--force", is_flag=True, help="Embed everything again")
@click.option("--prune", is_flag=True, help="Drop what is gone from the disk")
@click.option("--strict", is_flag=True, help="Exit with 1 if any picture fails")
@click.option("--no-thumbnails", is_flag=True, help="Do not store thumbnails")
@click.option("--watch", is_flag=True, help="Go on embedding what appears, changes, goes")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Leave DATABASE as it is: copy the table to this database and embed it there",
)
@json_output
def embed(
    database: Path,
    paths: tuple[Path, ...],
    table: str,
    name: str | None,
    path_column: str | None,
    blob_column: str | None,
    root: Path | None,
    csv_file: Path | None,
    pk: str | None,
    label_from_folder: bool,
    where: str | None,
    model: str | None,
    weights: str | None,
    pooling: str | None,
    fit: str | None,
    metric: str | None,
    device: str,
    precision: str,
    batch_size: int,
    workers: int | None,
    limit: int | None,
    max_megapixels: int,
    force: bool,
    prune: bool,
    strict: bool,
    no_thumbnails: bool,
    watch: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Embed pictures: folders and files, a table, or a CSV.

    Run it again to embed what is new or has changed. One bad file stops nothing.

    \b
    Examples:
        datasette image-similarity embed photos.db ~/Pictures
        datasette image-similarity embed shop.db --table products \\
            --path-column file --root pictures/
        datasette image-similarity embed shop.db --csv products.csv \\
            --table products --path-column file
        datasette image-similarity embed museum.db --table works --blob-column scan
    """
    from dataclasses import replace

    from ..collection import EncoderOptions, ImageCollection
    from ..images import LOCAL_FILES
    from ..sources import csv_rows

    if csv_file and (not path_column or paths):
        raise click.UsageError("--csv needs --path-column, and no PATH")
    if paths and (path_column or blob_column):
        raise click.UsageError("PATHs are folders and files: leave out the columns")
    if output and (paths or csv_file):
        raise click.UsageError(
            "--output copies a table: to embed files, name the new database directly"
        )
    say = Reporter(output or database, quiet=as_json)
    source: Any = list(paths) or None
    if csv_file:
        source = csv_rows(csv_file)
        root = root or csv_file.absolute().parent
    if output and root is None:
        root = database.absolute().parent
    encoder = EncoderOptions(model, weights, pooling, fit, device, precision)
    skip: list = []
    with (
        ImageCollection(output or database, table, name=name) as collection,
        stopping() as stop,
    ):
        while True:
            summary = collection.embed(
                source,
                path_column=path_column,
                blob_column=blob_column,
                root=root,
                pk=pk,
                where=where,
                label_from_folder=label_from_folder,
                encoder=encoder,
                metric=metric,
                batch_size=batch_size,
                workers=workers,
                limit=limit,
                force=force,
                prune=prune or watch,
                thumbnails=not no_thumbnails,
                limits=replace(LOCAL_FILES, max_pixels=max_megapixels * 1_000_000),
                progress=say.progress,
                stop=stop,
                skip=skip,
                copy_of=database if output else None,
            )
            say.summary(summary)
            if not watch or summary.stopped or stop():
                break
            skip += [picture for picture, _ in summary.failures]
            force = False
            encoder = EncoderOptions(device=device, precision=precision)
            say.watching()
            _sleep(2, stop)
            if stop():
                break
    if as_json:
        click.echo(json.dumps(summary.as_json()))
    if summary.stopped and not watch:
        say.line("Stopped. Run the same command again to go on.")
        sys.exit(130)
    if strict and summary.failed:
        sys.exit(1)


def _sleep(seconds: float, stop: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop():
        time.sleep(0.1)
