"""The commands of `datasette image-similarity`: parse, call the collection, print."""

from __future__ import annotations

import csv
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unicodedata import category

import click

from .errors import DatabaseError, ImageSimilarityError


class _Group(click.Group):
    """Shows what went wrong in one line, and exits with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        from datasette.utils.sqlite import sqlite3

        try:
            return super().invoke(ctx)
        except ImageSimilarityError as error:
            raise click.ClickException(_one_line(str(error))) from None
        except sqlite3.Error as error:
            raise click.ClickException(_one_line(f"SQLite says: {error}")) from None


def _one_line(text: str) -> str:
    """Names of files may hold anything, also what a terminal obeys: that is escaped."""
    unsafe = ("Cc", "Cs", "Zl", "Zp")  # controls, broken Unicode, ends of lines
    return "".join(
        c.encode("unicode_escape").decode() if category(c) in unsafe else c for c in text
    )


@click.group(name="image-similarity", cls=_Group)
def image_similarity() -> None:
    """Find similar pictures: embed them, then ask for nearest neighbours.

    \b
    Example:
        datasette image-similarity embed photos.db ~/Pictures
        datasette photos.db
    """


_database = click.argument("database", type=click.Path(dir_okay=False, path_type=Path))
_existing = click.argument(
    "database", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
_name = click.option("--name", help="Collection over the table; the oldest by default")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON")


@image_similarity.command()
@_database
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--table", default="images", show_default=True, help="Table of the pictures")
@_name
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
    help="resnet50 by default; another torchvision classification model, or hog, "
    "which needs no download. See: datasette image-similarity models",
)
@click.option(
    "--weights",
    help="Weights by torchvision's name, or a .pth or .safetensors file",
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
@_json
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

    from .collection import EncoderOptions, ImageCollection
    from .images import LOCAL_FILES
    from .sources import csv_rows

    if csv_file and (not path_column or paths):
        raise click.UsageError("--csv needs --path-column, and no PATH")
    if paths and (path_column or blob_column):
        raise click.UsageError("PATHs are folders and files: leave out the columns")
    if output and (paths or csv_file):
        raise click.UsageError(
            "--output copies a table: to embed files, name the new database directly"
        )
    say = _Reporter(output or database, quiet=as_json)
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
        _stopping() as stop,
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


class _Reporter:
    """Prints a run as it goes: a bar on a terminal, else a line now and then."""

    def __init__(self, database: Path, quiet: bool) -> None:
        self.database = database
        # With --json, standard output holds the JSON alone.
        self.out = sys.stderr if quiet else sys.stdout
        self.terminal = self.out.isatty()
        self.last = 0.0
        self.described: str | None = None
        self.idle = False

    def line(self, text: str) -> None:
        if self.terminal:
            text = f"\r\033[K{text}"
        click.echo(text, file=self.out)

    def progress(self, now: Any) -> None:
        if now.encoder != self.described and not (self.idle and not now.total):
            self.line(now.encoder)
            self.described = now.encoder
        if not now.total or (not now.done and not self.terminal):
            return
        self.idle = False
        if not self.terminal and time.monotonic() - self.last < 10 and now.done < now.total:
            return
        self.last = time.monotonic()
        rate = now.done / now.seconds if now.seconds else 0
        left = (now.total - now.done) / rate if rate else 0
        text = f"{now.done:,} of {now.total:,}"
        if now.done:
            text += f"   {rate:.1f} images/s   {left // 60:.0f}:{left % 60:02.0f} left"
        if now.failed:
            text += f"   {now.failed:,} failed"
        if self.terminal:
            width = 24
            filled = width * now.done // now.total
            bar = "█" * filled + "░" * (width - filled)
            click.echo(f"\r\033[K{bar} {text}", nl=False, file=self.out)
        else:
            click.echo(text, file=self.out)

    def summary(self, summary: Any) -> None:
        if self.idle and not (summary.embedded or summary.reused or summary.removed):
            return
        for picture, reason in summary.failures[:50]:
            self.line(f"Failed: {_one_line(f'{picture.label}: {reason}')}")
        if len(summary.failures) > 50:
            more = len(summary.failures) - 50
            self.line(f"… and {more:,} more: see _image_similarity_failures")
        if summary.new_roots:
            roots = json.dumps({"datasette-image-similarity": {"roots": summary.new_roots}})
            self.line(
                "Pages will read large pictures from there. On another computer, or for "
                f'another user, that has to be configured: {{"plugins": {roots}}}'
            )
        parts = [f"{summary.embedded:,} embedded"]
        if summary.reused:
            parts.append(f"{summary.reused:,} reused")
        parts += [f"{summary.unchanged:,} unchanged", f"{summary.failed:,} failed"]
        if summary.removed:
            parts.append(f"{summary.removed:,} removed")
        if summary.missing:
            parts.append(f"{summary.missing:,} gone from the disk (--prune drops them)")
        self.line(f"{', '.join(parts)} in {summary.seconds:.1f} seconds")
        if summary.wants_index and (summary.embedded or summary.reused):
            self.line(
                "Searches would be faster with a compressed index: "
                f"datasette image-similarity index {self.database}"
            )

    def step(self, what: str, done: int, total: int) -> None:
        """A step of building an index."""
        now = time.monotonic()
        if self.terminal:
            click.echo(f"\r\033[K{what}: {done:,} of {total:,}", nl=False, file=self.out)
        elif what != self.described or now - self.last >= 10:
            self.line(f"{what}: {done:,} of {total:,}")
            self.described, self.last = what, now

    def watching(self) -> None:
        if not self.idle:
            self.line("Watching for changes. Ctrl-C ends.")
        self.idle = True


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks to stop after the current batch, the second stops at once."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        click.echo("\nStopping after the current batch …", err=True)

    try:
        previous = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: nobody can press Ctrl-C here
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)


def _sleep(seconds: float, stop: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop():
        time.sleep(0.1)


_k = click.option("-k", type=int, default=10, show_default=True, help="How many")
_where = click.option("--where", help="SQL condition on the table's columns")
_csv = click.option("--csv", "as_csv", is_flag=True, help="Print CSV")
_exact = click.option(
    "--exact", is_flag=True, help="Compare with every vector, whatever index there is"
)


@image_similarity.command()
@_existing
@click.argument("table")
@click.argument("pk")
@_k
@_where
@_name
@_exact
@_json
@_csv
def similar(
    database: Path,
    table: str,
    pk: str,
    k: int,
    where: str | None,
    name: str | None,
    exact: bool,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Rows most like a row, best first. PK as in the row's address: 12, or a,b.

    \b
    Example:
        datasette image-similarity similar shop.db products 12 -k 5 \\
            --where "price < 50"
    """
    from datasette.utils import urlsafe_components

    from .collection import ImageCollection

    with ImageCollection(database, table, name=name) as collection:
        hits = collection.similar(urlsafe_components(pk), k, where, exact=exact)
        _print_hits(hits, as_json, as_csv)


@image_similarity.command()
@_existing
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--table", help="Table to search; needed when there are several")
@_k
@_where
@_name
@_exact
@_json
@_csv
def search(
    database: Path,
    image: Path,
    table: str | None,
    k: int,
    where: str | None,
    name: str | None,
    exact: bool,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Rows most like a picture in a file, best first.

    \b
    Example:
        datasette image-similarity search photos.db holiday.jpg --json
    """
    from .collection import ImageCollection

    with ImageCollection(database, table or _only_table(database), name=name) as collection:
        hits = collection.search(image, k, where, exact=exact)
        _print_hits(hits, as_json, as_csv)


def _only_table(database: Path) -> str:
    from . import database as db

    conn = db.connect(database)
    tables = sorted({collection.table for collection in db.collections(conn)})
    conn.close()
    if len(tables) != 1:
        there = f": {', '.join(tables)}" if tables else ", none has embeddings"
        raise click.UsageError(f"Name one of the tables with --table{there}")
    return tables[0]


def _print_hits(hits: list, as_json: bool, as_csv: bool) -> None:
    rows = [hit.as_json() for hit in hits]
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif as_csv:
        _print_csv(rows)
    else:
        _print_table(rows)


def _print_csv(rows: list[dict[str, Any]]) -> None:
    columns = list(rows[0]["row"]) if rows else []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["rank", "pk", "score", "distance", *columns])
    for row in rows:
        values = [row["row"][name] for name in columns]
        values = ["" if isinstance(v, dict) else v for v in values]
        writer.writerow([row["rank"], row["pk"], row["score"], row["distance"], *values])


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Rank, score, key and the first few columns, as wide as the terminal."""
    import shutil

    width = shutil.get_terminal_size((100, 24)).columns
    columns = list(rows[0]["row"]) if rows else []
    # The key stands there already.
    names = [n for n in columns if any(str(r["row"][n]) != r["pk"] for r in rows)][:5]
    lines = [["rank", "score", "pk", *names]]
    for row in rows:
        values = [row["row"][name] for name in names]
        cells = ["" if v is None or isinstance(v, dict) else str(v) for v in values]
        cells = [_one_line(cell)[:40] for cell in cells]
        lines.append([str(row["rank"]), f"{row['score']:.3f}", row["pk"], *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        text = "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        click.echo(text[:width])
    if not rows:
        click.echo("Nothing found.")


@image_similarity.command()
@_existing
@_json
def status(database: Path, as_json: bool) -> None:
    """What is embedded in a database.

    \b
    Example:
        datasette image-similarity status photos.db
    """
    from dataclasses import asdict

    from . import database as db
    from .collection import collection_status

    conn = db.connect(database)
    found = [collection_status(conn, collection) for collection in db.collections(conn)]
    conn.close()
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    if not found:
        click.echo("No embeddings yet. Make some: datasette image-similarity embed")
    for one in found:
        click.echo(f"{one.table} ({one.name})")
        click.echo(f"  encoder      {one.encoder}")
        click.echo(f"  vectors      {one.embedded:,} × {one.dimensions:,}, {one.metric}")
        click.echo(f"  thumbnails   {one.thumbnails:,}")
        click.echo(f"  size         {one.bytes / 1e6:,.1f} MB")
        click.echo(f"  failures     {one.failures:,}")
        click.echo(f"  stale        {one.stale:,}{'  (run embed again)' * (one.stale > 0)}")
        click.echo(f"  changed      {one.updated_at or 'not finished'}")
        click.echo(f"  index        {_index_in_words(one)}")


def _index_in_words(status: Any) -> str:
    """The line about the index, of a collection's status."""
    index = status.index
    if index is None:
        return (
            "none; searches would be faster with one: datasette image-similarity index"
            if status.wants_index
            else "none needed"
        )
    if index.recall is None:
        return index.advice
    text = (
        f"recall@10 {index.recall:.3f}, {index.bytes / 1e6:,.1f} MB, {index.probes} of "
        f"{index.lists} lists, best {index.depth} compared exactly"
    )
    if index.waiting:
        text += f", {index.waiting:,} not listed yet"
    return f"{text}; {index.advice}" if index.advice else text


@image_similarity.command()
@_existing
@click.argument("table", required=False)
@_name
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    help="recall@10 wanted; 0.99 by default, or as before",
)
@click.option("--rebuild", is_flag=True, help="Make it anew")
@click.option("--drop", is_flag=True, help="Take it out: searches are exact again")
@_json
def index(
    database: Path,
    table: str | None,
    name: str | None,
    recall: float | None,
    rebuild: bool,
    drop: bool,
    as_json: bool,
) -> None:
    """Make searches in a big collection fast: a compressed index in the database.

    Its recall, the share of the true nearest neighbours that are found, is measured on the
    collection itself. `embed` keeps it up to date. Cut off, it goes on the next time.

    \b
    Example:
        datasette image-similarity index photos.db
    """
    from dataclasses import asdict

    from .collection import ImageCollection

    say = _Reporter(database, quiet=as_json)
    table = table or _only_table(database)
    with ImageCollection(database, table, name=name) as collection, _stopping() as stop:
        if drop:
            collection.drop_index()
            say.line("Searches are exact again.")
            return
        started = time.perf_counter()
        made = collection.build_index(
            recall=recall, rebuild=rebuild, progress=say.step, stop=stop
        )
    if as_json:
        click.echo(json.dumps(asdict(made), indent=2))
    if made.recall is None:
        say.line("Stopped. Run the same command again to go on.")
        sys.exit(130)
    say.line(
        f"{made.listed:,} vectors, recall@10 {made.recall:.3f}, "
        f"{made.bytes / 1e6:,.1f} MB, in {time.perf_counter() - started:.1f} seconds"
    )
    if made.recall < made.asked:
        say.line(f"That is less than the {made.asked:g} asked for: --exact finds them all.")


@image_similarity.command()
@_existing
@click.option("--repair", is_flag=True, help="Mend what can be mended")
@_json
def verify(database: Path, repair: bool, as_json: bool) -> None:
    """Cross-check counts, ids, keys, vectors and source rows. Exits with 1 on a fault.

    \b
    Example:
        datasette image-similarity verify photos.db --repair
    """
    from . import database as db
    from .verify import verify_database

    with db.explained(database):
        conn = db.connect(database)
        faults = verify_database(conn, repair=repair)
        conn.close()
    if as_json:
        click.echo(json.dumps([fault.as_json() for fault in faults], indent=2))
    else:
        for fault in faults:
            click.echo(f"{fault.table}: {fault}")
        if not faults:
            click.echo("All is well.")
        elif repair:
            click.echo("Mended. Run embed again to fill in what was dropped.")
        else:
            click.echo("Mend it with --repair.")
    if faults and not repair:
        sys.exit(1)


@image_similarity.command()
@_existing
@click.argument("table", required=False)
@_name
def remove(database: Path, table: str | None, name: str | None) -> None:
    """Drop embeddings, thumbnails and everything else of ours. Your tables stay.

    \b
    Example:
        datasette image-similarity remove photos.db
    """
    from . import database as db

    some = table is not None or name is not None
    with db.explained(database), closing(db.connect(database, check=some)) as conn:
        try:
            there = db.collections(conn, table)
        except DatabaseError as error:  # damaged: all of it can still be dropped
            if some or str(error) != db.DAMAGED:
                raise
            there = []
        gone = [collection for collection in there if name in (None, collection.name)]
        if some and not gone:
            db.find_collection(conn, table or "", name)
        with db.transaction(conn):
            for collection in gone:
                db.drop_collection(conn, collection)
            if not some:
                db.drop_everything(conn)
    for collection in gone:
        click.echo(f"Removed the embeddings of {collection.table} ({collection.name})")
    if gone:
        click.echo(f"To make the file smaller as well: sqlite3 {database} vacuum")
    else:
        click.echo("There are no embeddings here.")


@image_similarity.command()
@_json
def models(as_json: bool) -> None:
    """What can embed: names, dimensions, weights, and whether these are here already.

    \b
    Example:
        datasette image-similarity models
    """
    from dataclasses import asdict

    from .encoders import available_models

    found = available_models()
    if as_json:
        click.echo(json.dumps([asdict(model) for model in found], indent=2))
        return
    click.echo(f"{'model':24} {'dimensions':>10}  weights")
    for model in found:
        here = " (here)" if model.downloaded else ""
        size = f", {model.download_bytes / 1e6:.0f} MB" if model.download_bytes else ""
        weights = ", ".join(model.weights) or "none needed"
        note = f"  {model.note}" if model.note else ""
        click.echo(f"{model.name:24} {model.dimensions:>10,}  {weights}{size}{here}{note}")
