"""The commands for vectors in a store: bring them there, and compare."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .base import (
    Reporter,
    collection_name,
    embed_all,
    existing,
    image_similarity,
    json_output,
    only_table,
    or_stopped,
    print_json,
    vacuum,
)


@image_similarity.command()
@existing
@click.argument("table", required=False)
@click.option(
    "--to",
    required=True,
    metavar="URL",
    help="milvus://HOST:19530/NAME, milvus-lite:FILE.db, or sqlite for the database itself",
)
@collection_name
@click.option("--keep", is_flag=True, help="Leave the old vectors where they are, too")
@json_output
def move(
    database: Path,
    table: str | None,
    to: str,
    name: str | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Bring a collection's vectors to another store, or back into the database.

    They are compared there before the collection uses them; then the old ones are dropped.
    Cut off, the same command goes on with what is not there yet.

    \b
    Examples:
        datasette image-similarity move photos.db --to milvus://localhost:19530/photos
        datasette image-similarity move photos.db images --to milvus-lite:vectors.db
        datasette image-similarity move photos.db --to sqlite
    """
    from ..collection import ImageCollection

    say = Reporter(database, quiet=as_json)
    table = table or only_table(database)
    left = "the collection is where it was; the same command goes on"
    with (
        or_stopped(say, left) as stop,
        ImageCollection(database, table, name=name) as collection,
    ):
        moved = collection.move(to, keep=keep, progress=say.rated, stop=stop)
        say.vouched(collection.vouched)
    if as_json:
        print_json(asdict(moved))
    for line in _moved_in_words(moved, database, keep):
        say.line(line)


def _moved_in_words(moved: Any, database: Path, keep: bool) -> list[str]:
    if moved.origin == moved.to:
        gone = moved.left or "Other copies of the vectors were dropped."
        return [gone]
    exactly = "bit for bit" if moved.apart == 0 else f"to within {moved.apart:.1g}"
    lines = [
        f"{moved.vectors:,} vectors are in {moved.to or database}: {moved.sent:,} sent in "
        f"{moved.seconds:.1f} seconds, all ids and SHA-256 compared, the numbers of "
        f"{moved.compared:,} {exactly}"
    ]
    if moved.index_dropped:
        lines.append("The compressed index went with the old vectors.")
    if moved.left:
        lines.append(f"{moved.left}.")
    if moved.left and not keep:
        lines.append("The same command drops them.")
    if not moved.origin and not keep:
        lines.append(f"To make the file smaller as well: {vacuum(database)}")
    return lines


@image_similarity.command()
@existing
@click.argument("table", required=False)
@collection_name
@click.option("--mend", is_flag=True, help="Make both sides agree")
@json_output
def reconcile(
    database: Path, table: str | None, name: str | None, mend: bool, as_json: bool
) -> None:
    """Compare what the database and a collection's store have. Exits with 1 on a
    difference that is left.

    --mend sends what waits, takes out of the store what is no picture's here, and forgets
    pictures whose vector is not there: the next embed makes them again.

    \b
    Example:
        datasette image-similarity reconcile photos.db --mend
    """
    from ..collection import ImageCollection

    say = Reporter(database, quiet=as_json)
    table = table or only_table(database)
    with (
        or_stopped(say, "what was mended until now is") as stop,
        ImageCollection(database, table, name=name) as collection,
    ):
        found = collection.reconcile(mend=mend, progress=say.rated, stop=stop)
    if as_json:
        print_json(asdict(found))
    for line in _found_in_words(found, database):
        say.line(line)
    if (found.differences and not found.mended) or found.waiting:
        sys.exit(1)


def _found_in_words(found: Any, database: Path) -> list[str]:
    lines = [f"{found.items:,} pictures here, {found.stored:,} vectors in {found.store}"]
    counts = {
        "pictures without a vector there": found.lacking,
        "vectors there of other bytes than the picture's": found.other,
        "vectors there that are no picture's here": found.surplus,
        "changes that wait to be sent": found.waiting,
    }
    lines += [f"{what} ({n:,})" for what, n in counts.items() if n]
    if found.sent:
        lines.append(f"{found.sent:,} waiting changes were sent.")
    if not found.differences and not found.waiting:
        return [*lines, "All is well."]
    if not found.mended:
        return [*lines, "Mend it with --mend."]
    lines.append("Mended.")
    if found.lacking + found.other:
        lines.append(
            "The pictures without a right vector were taken off; to make them again: "
            f"{embed_all(database, found.table)}"
        )
    return lines
