"""The command that embeds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .base import (
    Reporter,
    collection_name,
    database_file,
    embed_all,
    image_similarity,
    json_output,
    look_at,
    or_stopped,
    print_json,
)

if TYPE_CHECKING:
    from ..collection import EncoderOptions, ImageCollection
    from ..embed import Summary
    from ..ray_engine import RayEngine
    from ..roots import BucketRoot


AWAY = 10  # seconds until `--watch` asks again for a store that was not there


class _Place(click.ParamType):
    """A path, or a folder in a bucket; where only a folder will do, it must be there."""

    name = "path"

    def __init__(self, *, folder: bool = False) -> None:
        self.folder = folder

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | BucketRoot:
        from ..errors import CollectionError
        from ..roots import BucketRoot, named

        if not isinstance(value, str):
            return value
        try:
            place = named(value)
        except CollectionError as error:
            self.fail(str(error), param, ctx)
        if isinstance(place, BucketRoot) or not self.folder:
            return place
        there = click.Path(exists=True, file_okay=False, path_type=Path)
        return there.convert(value, param, ctx)


@image_similarity.command()
@database_file
@click.argument("paths", nargs=-1, type=_Place())
@click.option("--table", default="images", show_default=True, help="Table of the pictures")
@collection_name
@click.option("--all", "every", is_flag=True, help="All collections over the table")
@click.option("--path-column", help="Column of the table that holds the picture's path")
@click.option("--url-column", help="Column of the table that holds its https:// address")
@click.option("--blob-column", help="Column of the table that holds the picture itself")
@click.option(
    "--root",
    type=_Place(folder=True),
    help="Folder, or s3://bucket/folder, that paths are relative to; default: the folder "
    "of the CSV or the database",
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV or TSV file to make the table from, with --path-column or --url-column",
)
@click.option("--encoding", help="Encoding of the CSV, such as cp1251; default: found out")
@click.option("--pk", help="Key column of the CSV; default: id, else rows are numbered")
@click.option("--label-from-folder", is_flag=True, help="Put the folder's name into label")
@click.option(
    "--places/--no-places",
    default=None,
    help="Fill latitude and longitude from EXIF, or leave them empty and empty those that "
    "are filled. On at first; kept for the next run",
)
@click.option("--where", help="SQL condition: embed only these rows of the table")
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out files and folders by gitignore's rules; may be repeated. Kept for the "
    "next run, until other patterns are given, or '' for none",
)
@click.option(
    "--default-excludes/--no-default-excludes",
    default=None,
    help="Leave out what NAS boxes, systems and photo programs add, such as @eaDir, "
    "#recycle, $RECYCLE.BIN, lost+found and *.lrdata. On at first; kept for the next run",
)
@click.option(
    "--follow-links/--no-follow-links",
    default=None,
    help="Follow links to folders, and to files outside the folder. Off at first; kept "
    "for the next run",
)
@click.option(
    "--allow-private-addresses",
    is_flag=True,
    help="Fetch from this computer and its network as well, with --url-column",
)
@click.option(
    "--model",
    help="resnet50 by default; another torchvision classification model, timm:NAME, "
    "open_clip:NAME/WEIGHTS, which finds by words as well, an encoder of another package, "
    "or hog, which needs no download. See: datasette image-similarity models",
)
@click.option(
    "--weights",
    help="Published weights by name, a .pth or .safetensors file, or for --model "
    "open_clip a folder that it saved",
)
@click.option(
    "--pooling",
    type=click.Choice(["avg", "max", "gem", "flatten"]),
    help="How a feature map becomes a vector; avg by default",
)
@click.option(
    "--size",
    type=click.IntRange(16, 1024),
    help="Pixels a side that the network sees; default: as it was trained",
)
@click.option(
    "--fit",
    type=click.Choice(["squash", "crop", "pad"]),
    help="How a picture becomes a square; squash, the whole picture, by default",
)
@click.option(
    "--dims",
    type=click.IntRange(1),
    help="Store vectors of so many dimensions: PCA, learned from the first pictures",
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
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="What reads, decodes and encodes: this process, or a Ray cluster",
)
@click.option(
    "--address",
    help="With --engine ray: HOST:PORT of the cluster, or auto; default: a Ray of one's "
    "own, on this computer, for as long as it takes",
)
@click.option(
    "--actors",
    type=click.IntRange(1),
    help="Processes of the cluster that hold the encoder; default: as many as fit. Each "
    "keeps to 4 connections to a host of --url-column",
)
@click.option(
    "--gpus-per-actor",
    type=click.FloatRange(0),
    help="GPUs of each of them; default: 1 where the cluster has any, else 0",
)
@click.option("--limit", type=click.IntRange(1), help="Embed so many at most")
@click.option(
    "--max-megapixels",
    type=click.IntRange(1, 2000),
    default=200,
    show_default=True,
    help="Refuse larger pictures",
)
@click.option(
    "--force",
    is_flag=True,
    help="Embed everything again; with another model this deletes the map, clusters "
    "with their names, duplicate groups and evaluations",
)
@click.option(
    "--prune",
    is_flag=True,
    help="Delete the vectors of missing or excluded files and, in a table of folders, "
    "their rows, except rows in which you wrote something",
)
@click.option(
    "--prune-rows",
    is_flag=True,
    help="As --prune, and delete those rows, too, with all that you wrote in them",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with 1 if any picture fails or is of a kind that cannot be read, such as "
    ".psd. Without it, only if all fail",
)
@click.option("--no-thumbnails", is_flag=True, help="Do not store thumbnails")
@click.option("--watch", is_flag=True, help="Go on embedding new and changed pictures")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Leave DATABASE as it is: copy the table to this database and embed it there. "
    "Again, this replaces what you changed in the copy; columns that you added are refused",
)
@click.option(
    "--store",
    metavar="URL",
    help="Keep the vectors of a new collection in milvus://HOST:PORT/NAME (token: "
    "MILVUS_TOKEN) or milvus-lite:FILE, not in DATABASE",
)
@json_output
def embed(
    database: Path,
    paths: tuple[Path | BucketRoot, ...],
    table: str,
    name: str | None,
    every: bool,
    path_column: str | None,
    url_column: str | None,
    blob_column: str | None,
    root: Path | BucketRoot | None,
    csv_file: Path | None,
    encoding: str | None,
    pk: str | None,
    label_from_folder: bool,
    places: bool | None,
    where: str | None,
    exclude: tuple[str, ...],
    default_excludes: bool | None,
    follow_links: bool | None,
    allow_private_addresses: bool,
    model: str | None,
    weights: str | None,
    pooling: str | None,
    size: int | None,
    fit: str | None,
    dims: int | None,
    metric: str | None,
    device: str,
    precision: str,
    batch_size: int,
    workers: int | None,
    engine: str,
    address: str | None,
    actors: int | None,
    gpus_per_actor: float | None,
    limit: int | None,
    max_megapixels: int,
    force: bool,
    prune: bool,
    prune_rows: bool,
    strict: bool,
    no_thumbnails: bool,
    watch: bool,
    output: Path | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Embed pictures: folders, files and buckets, a table, or a CSV.

    Run it again to embed what is new or has changed. One bad file stops nothing. Where a
    table has several collections, --all embeds into each, one after the other; those that
    derive from another (`reduce`, `train`) take its vectors through what they learned.

    \b
    Examples:
        datasette image-similarity embed photos.db ~/Pictures
        datasette image-similarity embed shop.db --table products \\
            --path-column file --root pictures/
        datasette image-similarity embed shop.db --csv products.csv \\
            --table products --path-column file
        datasette image-similarity embed museum.db --table works --blob-column scan
        datasette image-similarity embed photos.db s3://bucket/photos
        datasette image-similarity embed news.db --table articles --url-column photo
    """
    from dataclasses import replace

    from ..collection import EncoderOptions, ImageCollection
    from ..csv_files import read_csv
    from ..images import LOCAL_FILES

    _check_source(
        paths, path_column, url_column, blob_column, root, csv_file, encoding, pk, output
    )
    encoder = EncoderOptions(model, weights, pooling, fit, device, precision, size, dims)
    chosen = replace(encoder, device="auto", precision="auto") != EncoderOptions()
    if every and (name or chosen or metric or csv_file or output or watch):
        raise click.UsageError(
            "--all brings collections up to date as they are: leave out --name, --csv, "
            "--output, --watch and the encoder's options"
        )
    if engine != "ray" and not (address is actors is gpus_per_actor is None):
        raise click.UsageError(
            "--address, --actors and --gpus-per-actor are about Ray: add --engine ray"
        )
    say = Reporter(output or database, quiet=as_json)
    source: Any = list(paths) or None
    csv_notes: list[str] = []
    if csv_file:
        source = read_csv(csv_file, encoding, [path_column or url_column])
        csv_notes = source.notes
        for note in csv_notes:
            say.line(f"{csv_file.name}: {note}")
        root = root or (csv_file.absolute().parent if path_column else None)
    if output and path_column and root is None:
        root = database.absolute().parent

    options = {
        "source": source,
        "path_column": path_column,
        "url_column": url_column,
        "blob_column": blob_column,
        "root": root,
        "pk": pk,
        "where": where,
        "exclude": exclude or None,
        "default_excludes": default_excludes,
        "follow_links": follow_links,
        "label_from_folder": label_from_folder,
        "places": places,
        "metric": metric,
        "batch_size": batch_size,
        "workers": workers,
        "limit": limit,
        "prune": prune,
        "prune_rows": prune_rows,
        "thumbnails": not no_thumbnails,
        "limits": replace(LOCAL_FILES, max_pixels=max_megapixels * 1_000_000),
        "copy_of": database if output else None,
        "store": store,
        "allow_private_addresses": allow_private_addresses,
    }

    def run(name: str | None, stop: Callable[[], bool]) -> Summary:
        with ImageCollection(output or database, table, name=name) as collection:
            return _until_told(collection, encoder, force, watch, say, stop, **options)

    left = "nothing is learned or stored yet, the same command starts anew"
    with (
        or_stopped(say, left) as stop,
        _engine(engine, address, actors, gpus_per_actor) as options["engine"],
    ):
        if every:
            summaries = _run_all(database, table, run, stop, say)
        else:
            summaries = {name: run(name, stop)}
    _say_others(output or database, table, name, every, say)
    if as_json:
        found = [{"collection": n, **one.as_json()} for n, one in summaries.items()]
        if not every:
            only = summaries[name].as_json()
            only["notes"] = csv_notes + only["notes"]
        print_json(found if every else only, indent=None)
    if any(one.stopped for one in summaries.values()) and not watch:
        say.line("Stopped. Run the same command again to go on.")
        sys.exit(130)
    if not watch and any(one.is_there for one in summaries.values()):
        say.line(look_at(output or database, table))
    for one in summaries.values():
        if one.all_failed or (strict and (one.failed or one.skipped.pictures)):
            sys.exit(1)


def _check_source(
    paths: tuple[Path | BucketRoot, ...],
    path_column: str | None,
    url_column: str | None,
    blob_column: str | None,
    root: Path | BucketRoot | None,
    csv_file: Path | None,
    encoding: str | None,
    pk: str | None,
    output: Path | None,
) -> None:
    """Raise UsageError where it is not clear what the pictures are."""
    if csv_file and (not (path_column or url_column) or paths):
        raise click.UsageError("--csv needs --path-column or --url-column, and no PATH")
    if (encoding or pk) and not csv_file:
        raise click.UsageError("--encoding and --pk are those of a CSV file: add --csv")
    if paths and (path_column or url_column or blob_column):
        raise click.UsageError("PATHs are folders and files: leave out the columns")
    if paths and root:
        raise click.UsageError("--root is for a column of paths: name the folder alone")
    if url_column and root:
        raise click.UsageError("Addresses are relative to no root: leave out --root")
    if output and (paths or csv_file):
        raise click.UsageError(
            "--output copies a table: to embed files, name the new database directly"
        )


def _engine(
    name: str, address: str | None, actors: int | None, gpus_per_actor: float | None
) -> AbstractContextManager[RayEngine | None]:
    """What embeds, closed at the end; None for this process itself."""
    if name == "local":
        return nullcontext()
    from ..ray_engine import RayEngine

    return RayEngine(address, actors=actors, gpus_per_actor=gpus_per_actor)


def _until_told(
    collection: ImageCollection,
    encoder: EncoderOptions,
    force: bool,
    watch: bool,
    say: Reporter,
    stop: Callable[[], bool],
    **options: Any,
) -> Summary:
    """Embed; with `watch` again and again. The last summary."""
    from ..collection import EncoderOptions
    from ..errors import StoreError

    skip: list = []
    summary: Summary | None = None
    while True:
        first = summary is None
        try:
            summary = collection.embed(
                encoder=encoder,
                force=force,
                progress=say.progress,
                stop=stop,
                skip=skip,
                **options,
            )
        except StoreError as error:
            if summary is None:
                raise
            # It has been there: it may come back. What was not sent waits.
            say.line(f"{error}: trying again in {AWAY} seconds")
            _sleep(AWAY, stop)
            if stop():
                return summary
            continue
        say.summary(summary)
        say.vouched(collection.vouched)
        if not watch or summary.stopped or stop():
            return summary
        if first and summary.is_there:
            say.line(look_at(say.database, collection.table))
        skip += [picture for picture, _ in summary.failures]
        # What was asked for is there now, and is not to be asked for again.
        encoder = EncoderOptions(device=encoder.device, precision=encoder.precision)
        force = False
        say.watching()
        _sleep(summary.pause, stop)
        if stop():
            return summary


def _run_all(
    database: Path,
    table: str,
    run: Callable[[str | None, Callable[[], bool]], Summary],
    stop: Callable[[], bool],
    say: Reporter,
) -> dict[str | None, Summary]:
    """What `run` did with each collection over the table, up to where it was stopped."""
    from .. import database as db
    from ..siblings import names_in_order

    with closing(db.connect(database)) as conn:
        db.find_collection(conn, table)
        names = names_in_order(conn, table)
    summaries: dict[str | None, Summary] = {}
    for name in names:
        say.line(f"{table} ({name})")
        summaries[name] = run(name, stop)
        if stop():
            break
    return summaries


def _say_others(
    database: Path, table: str, name: str | None, every: bool, say: Reporter
) -> None:
    """Where a table has several collections: which one it was, and what others lack."""
    from .. import database as db
    from ..siblings import lacking

    with closing(db.connect(database)) as conn:
        there = db.collections(conn, table)
        behind = {one.name: lacking(conn, one) for one in there}
    if len(there) > 1 and name is None and not every:
        say.line(f"This was {there[0].name!r}, the default of {len(there)} collections")
    lagging = [f"{one!r} ({count:,})" for one, count in behind.items() if count]
    if lagging:
        say.line(f"Lacking pictures that the default has: {', '.join(lagging)}")
    if lagging and not every:
        say.line(f"To bring all up to date: {embed_all(database, table)}")


def _sleep(seconds: float, stop: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop():
        time.sleep(0.1)
