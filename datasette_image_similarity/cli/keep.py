"""The commands that look after what is stored."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DatabaseError
from .base import (
    Reporter,
    collection_name,
    echo,
    embed_all,
    existing,
    image_similarity,
    json_output,
    nothing_yet,
    only_table,
    or_stopped,
    print_json,
    stopping,
    vacuum,
)

if TYPE_CHECKING:
    from .. import database as db

SEQUENCE_STAYS = (
    "SQLite's own table sqlite_sequence stays: only VACUUM drops it, which cannot be done "
    "now or would renumber the rows of tables without an INTEGER PRIMARY KEY"
)


@image_similarity.command()
@existing
@json_output
def status(database: Path, as_json: bool) -> None:
    """What is embedded in a database.

    \b
    Example:
        datasette image-similarity status photos.db
    """
    from dataclasses import asdict

    from .. import database as db
    from ..collection import collection_status

    conn = db.connect(database)
    found = [collection_status(conn, collection) for collection in db.collections(conn)]
    conn.close()
    found.sort(key=lambda one: one.table)
    tables = [one.table for one in found]
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        echo(f"{nothing_yet(database)}.")
    for one in found:
        echo(f"{one.table} ({one.name})")
        if one.default and tables.count(one.table) > 1:
            echo("  default      yes: used where none is named")
        if one.behind:
            echo(f"  behind       {_behind_in_words(database, one)}")
        echo(f"  encoder      {one.encoder}")
        echo(f"  vectors      {one.embedded:,} × {one.dimensions:,}, {one.metric}")
        if one.store:
            echo(f"  kept in      {one.store}{_unsent_in_words(one)}")
        echo(f"  thumbnails   {one.thumbnails:,}")
        echo(f"  size         {one.bytes / 1e6:,.1f} MB")
        echo(f"  failures     {one.failures:,}")
        if one.missing:
            echo(f"  missing      {one.missing:,}  (rows kept without their picture)")
        for line in _notes_in_lines(one) if one.noted else ():
            echo(line)
        echo(f"  stale        {one.stale:,}{'  (run embed again)' * (one.stale > 0)}")
        for folder, count in one.away.items():
            echo(f"  not there    {folder}: {count:,} picture{'s' * (count != 1)}")
        if one.away:
            echo("               (connect the drive, embed the folder they are in now,")
            echo("               or delete their rows)")
        echo(f"  changed      {one.updated_at or 'not finished'}")
        echo(f"  index        {_index_in_words(one)}")
        echo(f"  map          {_map_in_words(one)}")


def _behind_in_words(database: Path, status: Any) -> str:
    """The line about what a collection lacks, of its status."""
    several = "s" if status.behind > 1 else ""
    return (
        f"{status.behind:,} picture{several} of the default missing: "
        f"{embed_all(database, status.table)}"
    )


def _notes_in_lines(status: Any) -> Iterator[str]:
    """What is to be known about single pictures, of a collection's status."""
    yield f"  notes        {status.noted:,} pictures whose files are not quite in order"
    for one in status.notes:
        yield f"               {one.picture}: {one.note}"
    if (more := status.noted - len(status.notes)) > 0:
        yield f"               … and {more:,} more: see _image_similarity_items"


def _unsent_in_words(status: Any) -> str:
    """What the store of a collection does not know yet, of its status."""
    if not status.unsent:
        return ""
    return f"; {status.unsent:,} changes wait to be sent (run embed again)"


def _map_in_words(status: Any) -> str:
    """The line about the map, of a collection's status."""
    made = status.map
    if made is None:
        return "none"
    text = f"{made.method} of {made.count:,} pictures, {made.made_at}"
    if made.newer:
        text += f"; {made.newer:,} are newer (run map again)"
    return text


def _index_in_words(status: Any) -> str:
    """The line about the index, of a collection's status."""
    if status.store:
        return _store_index_in_words(status)
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


def _store_index_in_words(status: Any) -> str:
    """The line about the index of the store that a collection is in."""
    made = status.store_index
    if made is None:
        return "the store's; its recall was not measured"
    params = {**made.params, **made.search}
    said = ", ".join([made.type, *(f"{name} {value}" for name, value in params.items())])
    if made.exact:
        said += ": compares with every vector"
        if status.wants_index:
            said += "; searches would be faster with an index: --type HNSW"
    elif made.recall is None:
        said += "; its recall was not measured (run index)"
    else:
        said += f", recall@10 {made.recall:.3f}"
    return said


@image_similarity.command()
@existing
@click.argument("table", required=False)
@collection_name
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    help="recall@10 wanted; 0.99 by default, or as before",
)
@click.option("--rebuild", is_flag=True, help="Make it anew")
@click.option("--drop", is_flag=True, help="Take it out: searches are exact again")
@click.option(
    "--type", "kind", help="In a store: HNSW, IVF_FLAT, DISKANN, … as it has them"
)
@click.option(
    "--param",
    "params",
    metavar="NAME=NUMBER",
    multiple=True,
    help="In a store, to make it with: M=16",
)
@click.option(
    "--search",
    metavar="NAME=NUMBER",
    multiple=True,
    help="In a store, to search it with: ef=64; chosen for the recall by default",
)
@json_output
def index(
    database: Path,
    table: str | None,
    name: str | None,
    recall: float | None,
    rebuild: bool,
    drop: bool,
    kind: str | None,
    params: tuple[str, ...],
    search: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make searches in a big collection fast: a compressed index in the database, or one
    of its engine's where the vectors are in a store.

    Its recall, the share of the true nearest neighbours that are found, is measured on the
    collection itself. `embed` keeps it up to date. Cut off, it goes on the next time.

    \b
    Example:
        datasette image-similarity index photos.db
        datasette image-similarity index photos.db images --type HNSW --param M=16
    """
    from dataclasses import asdict

    from ..collection import ImageCollection

    say = Reporter(database, quiet=as_json)
    table = table or only_table(database)
    of_store = {"type": kind, "params": _numbers(params), "search": _numbers(search)}
    with ImageCollection(database, table, name=name) as collection:
        if not drop and (collection.store or any(of_store.values())):
            of_store |= {"recall": recall, "rebuild": rebuild}
            _index_store(collection, of_store, say, as_json)
            return
    with ImageCollection(database, table, name=name) as collection, stopping() as stop:
        if drop:
            collection.drop_index()
            say.line("Searches are exact again.")
            return
        started = time.perf_counter()
        made = collection.build_index(
            recall=recall, rebuild=rebuild, progress=say.step, stop=stop
        )
    if as_json:
        print_json(asdict(made))
    if made.recall is None:
        say.line("Stopped. Run the same command again to go on.")
        sys.exit(130)
    say.line(
        f"{made.listed:,} vectors, recall@10 {made.recall:.3f}, "
        f"{made.bytes / 1e6:,.1f} MB, in {time.perf_counter() - started:.1f} seconds"
    )
    if made.recall < made.asked:
        say.line(f"That is less than the {made.asked:g} asked for: --exact finds them all.")


def _numbers(given: tuple[str, ...]) -> dict[str, int] | None:
    """NAME=NUMBER as a dictionary; None without any."""
    numbers = {}
    for one in given:
        name, _, number = one.partition("=")
        if not name or not number.isdecimal():
            raise click.UsageError(f"{one!r} is not NAME=NUMBER")
        numbers[name] = int(number)
    return numbers or None


def _index_store(
    collection: Any, options: dict[str, Any], say: Reporter, as_json: bool
) -> None:
    """Have a store make its index, and say what was measured."""
    from dataclasses import asdict

    started = time.perf_counter()
    with or_stopped(say, "the store may still be building its index") as stop:
        made = collection.build_store_index(**options, progress=say.step, stop=stop)
    if as_json:
        print_json(asdict(made))
    searched = "".join(f", searched with {name} {n}" for name, n in made.search.items())
    say.line(
        f"{made.type}{searched}: recall@10 {made.recall:.3f}, {made.ms:.1f} ms a search, "
        f"in {time.perf_counter() - started:.1f} seconds"
    )
    if made.asked is not None and made.recall < made.asked:
        say.line(f"That is less than the {made.asked:g} asked for: --exact finds them all.")


@image_similarity.command()
@existing
@click.option("--repair", is_flag=True, help="Mend what can be mended")
@json_output
def verify(database: Path, repair: bool, as_json: bool) -> None:
    """Cross-check counts, ids, keys, vectors and source rows. Exits with 1 on a fault
    that is there, or stays.

    \b
    Example:
        datasette image-similarity verify photos.db --repair
    """
    from .. import database as db
    from ..verify import verify_database

    with db.explained(database):
        conn = db.connect(database)
        faults = verify_database(conn, repair=repair)
        left = verify_database(conn) if repair and faults else faults
        stored = [one for one in db.collections(conn) if one.store]
        conn.close()
    if as_json:
        print_json([fault.as_json() for fault in faults])
    else:
        for fault in faults:
            echo(f"{fault.table}: {fault}")
        if not faults:
            echo("All is well.")
        elif repair and left:
            some = any(fault.mends for fault in faults)
            mended = "Mended, but for" if some else "Nothing was mended:"
            echo(f"{mended} what only you can mend:")
            for fault in left:
                echo(f"{fault.table}: {fault}")
        elif repair:
            echo("Mended. Run embed again to fill in what was dropped.")
        elif all(fault.mends for fault in faults):
            echo("Mend it with --repair.")
        elif any(fault.mends for fault in faults):
            echo("Mend it with --repair, but for what only you can mend.")
        else:
            echo("That only you can mend: --repair cannot.")
        for one in stored:
            echo(
                f"{one.table} ({one.name}): its vectors are in {one.store}, which was not "
                "looked into: reconcile does that."
            )
    if left:
        sys.exit(1)


@image_similarity.command()
@existing
@click.argument("table", required=False)
@click.argument("name", required=False)
@json_output
def default(database: Path, table: str | None, name: str | None, as_json: bool) -> None:
    """Show or choose the collection of a table that is used where none is named.

    Commands, SQL functions and pages use it; the plugin's setting `collection` counts more
    on pages. Where none was chosen, or the chosen one was removed, it is the oldest.

    \b
    Examples:
        datasette image-similarity default photos.db
        datasette image-similarity default photos.db images small
    """
    from .. import database as db
    from ..collection import ImageCollection

    table = table or only_table(database)
    if name is not None:
        with ImageCollection(database, table, name=name) as collection:
            collection.make_default()
    with closing(db.connect(database)) as conn:
        chosen = db.find_collection(conn, table)
        others = [one.name for one in db.collections(conn, table) if one != chosen]
    if as_json:
        said = {"table": chosen.table, "default": chosen.name, "others": others}
        print_json(said, indent=None)
        return
    echo(f"{chosen.table} ({chosen.name})")
    if others:
        echo(f"  others       {', '.join(others)}")


@image_similarity.command()
@existing
@click.argument("table", required=False)
@collection_name
@click.option("--all", "every", is_flag=True, help="All collections over the table")
@click.option("--yes", is_flag=True, help="Delete without asking, as scripts have to")
def remove(
    database: Path, table: str | None, name: str | None, every: bool, yes: bool
) -> None:
    """Delete embeddings, and all that was made of them. Your tables stay.

    Without TABLE, every table of this plugin is deleted. With TABLE its default collection
    is, or the one that --name names, or each with --all. What is deleted is said first:
    vectors, thumbnails, decisions about duplicates, saved and logged searches, and with
    them what was learned, the search index, map, clusters and their names, duplicate groups
    and evaluations. Nothing brings these back.

    \b
    Examples:
        datasette image-similarity remove photos.db
        datasette image-similarity remove photos.db images
        datasette image-similarity remove photos.db images --name small --yes
    """
    from .. import database as db
    from ..stores.places import clear_places, places_of

    if every and name is not None:
        raise click.UsageError("--all removes every collection of TABLE: leave out --name")
    if table is None and name is not None:
        table = only_table(database)
    some = table is not None
    with db.explained(database), closing(db.connect(database, check=some)) as conn:
        gone = _to_remove(conn, table, name, every)
        said = _contents_in_words(conn, gone, whole=not some)
        if not said:
            echo("There are no embeddings here.")
            return
        if not yes:
            _ask_to_delete(said)
        places = {collection: places_of(conn, collection) for collection in gone}
        with db.transaction(conn):
            for collection in gone:
                db.drop_collection(conn, collection)
            if not some:
                db.drop_everything(conn)
        if not db.tables_of_ours(conn) and not db.drop_sequence(conn):
            echo(SEQUENCE_STAYS)
        for collection in gone:
            for left in clear_places(conn, collection, places[collection]):
                echo(f"Warning: {left}", err=True)
        renumbers = db.vacuum_renumbers(conn)
        stay = [one.name for one in db.collections(conn, table)] if some else []
    for line in said:
        echo(f"Deleted {line}")
    if stay:
        echo(f"{table} still has {', '.join(stay)}; its default is {stay[0]}.")
    if not renumbers:
        echo(f"To make the file smaller as well: {vacuum(database)}")


def _to_remove(
    conn: Any, table: str | None, name: str | None, every: bool
) -> list[db.Collection]:
    """The collections that are meant. Raises CollectionError where there is none."""
    from .. import database as db

    if table is not None and not every:
        return [db.find_collection(conn, table, name)]
    try:
        found = db.collections(conn, table)
    except DatabaseError as error:  # damaged: all of it can still be dropped
        if table is not None or str(error) != db.DAMAGED:
            raise
        found = []
    if table is not None and not found:
        db.find_collection(conn, table)
    return found


def _contents_in_words(conn: Any, gone: list[db.Collection], whole: bool) -> list[str]:
    """What is deleted, a line for each collection; none where there is nothing."""
    from .. import database as db
    from ..contents import contents

    said = [f"{one.table} ({one.name}): {contents(conn, one)}" for one in gone]
    left = whole and not gone and db.tables_of_ours(conn)
    return [*said, *(["tables of this plugin without any collection"] * bool(left))]


def _ask_to_delete(said: list[str]) -> None:
    """Go on only if the user says so. Raises ClickException where nobody can answer."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.ClickException(
            "Nothing was deleted, because remove asks first and standard input is no "
            "terminal: add --yes"
        )
    echo("This deletes:", err=True)
    for line in said:
        echo(f"  {line}", err=True)
    if not click.confirm("Delete it?", err=True):
        raise click.ClickException("Nothing was deleted.")


@image_similarity.command()
@click.argument("search", default="")
@json_output
def models(search: str, as_json: bool) -> None:
    """What can embed: names, dimensions, weights, and whether these are here already.

    SEARCH is a part of the name; timm's networks, more than a thousand, are listed where
    it begins with timm:

    \b
    Examples:
        datasette image-similarity models
        datasette image-similarity models resnet
        datasette image-similarity models timm:convnext
    """
    from dataclasses import asdict

    from ..encoders import available_models

    found = available_models(search)
    if as_json:
        print_json([asdict(model) for model in found])
        return
    width = max([24, *(len(model.name) for model in found)])
    if found:
        echo(f"{'model':{width}} {'dimensions':>10}  weights")
    for model in found:
        here = " (here)" if model.downloaded else ""
        size = f", {model.download_bytes / 1e6:.0f} MB" if model.download_bytes else ""
        weights = ", ".join(model.weights) or "none needed"
        note = f"  {model.note}" if model.note else ""
        dimensions = f"{model.dimensions:,}" if model.dimensions else "?"
        echo(f"{model.name:{width}} {dimensions:>10}  {weights}{size}{here}{note}")
    if search and not found:
        echo(f"No model has {search!r} in its name.")
    if not search.startswith("timm:"):
        echo(
            "More than a thousand networks of timm are there as timm:NAME. To list them: "
            "datasette image-similarity models timm:"
        )
