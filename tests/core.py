"""What the tests of the core share: runs with `hog`, the command line, plain SQL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from datasette.cli import cli
from datasette.utils.sqlite import sqlite3

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.collection import EncoderOptions
from datasette_image_similarity.embed import Summary
from datasette_image_similarity.verify import verify_database

HOG = EncoderOptions("hog")


def embed(path: Path, source: Any = None, table: str = "images", **options: Any) -> Summary:
    """One run with `hog` and one decoder; `name` chooses the collection."""
    options = {"encoder": HOG, "workers": 1, **options}
    with ImageCollection(path, table, name=options.pop("name", None)) as collection:
        return collection.embed(source, **options)


def counts(summary: Summary) -> tuple[int, int, int, int, int]:
    """Embedded, reused, unchanged, failed, removed."""
    return (
        summary.embedded,
        summary.reused,
        summary.unchanged,
        summary.failed,
        summary.removed,
    )


def command(*arguments: object) -> Result:
    """`datasette image-similarity …`; anything but a clean end is an error here."""
    result = CliRunner().invoke(cli, ["image-similarity", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments: object) -> str:
    """The one line with which a command ends that cannot be done."""
    result = command(*arguments)
    assert result.exit_code == 1, result.output
    lines = result.output.strip().splitlines()
    assert len(lines) == 1, result.output
    assert lines[0].startswith("Error: ")
    return lines[0]


def answer(*arguments: object) -> Any:
    """The JSON that a command prints."""
    result = command(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(db.connect(path, create=True)) as conn:
        yield conn


def sql(path: Path, statement: str, parameters: Sequence | dict = ()) -> list[tuple]:
    """Run a statement and give its rows."""
    with opened(path) as conn:
        return [tuple(row) for row in conn.execute(statement, parameters)]


def value(path: Path, statement: str, parameters: Sequence | dict = ()) -> Any:
    return sql(path, statement, parameters)[0][0]


def make_older(path: Path, version: int = 2) -> None:
    """Take a database back to an older version of our tables."""
    made = "\n".join(db.MIGRATIONS[version:])
    things = re.findall(r"create (table|view|index|trigger) (\w+)", made)
    for kind, name in reversed(things):
        sql(path, f"drop {kind} if exists {name}")
    for table, column in re.findall(r"alter table (\w+)\s+add column (\w+)", made):
        if ("table", table) not in things:
            sql(path, f"alter table {table} drop column {column}")
    sql(path, "update _image_similarity_schema set version = ?", (version,))


def faults(path: Path, *, repair: bool = False) -> list[str]:
    with opened(path) as conn:
        return [fault.what for fault in verify_database(conn, repair=repair)]


def failures(path: Path) -> list[tuple]:
    """(pk, path, reason) of every failure noted."""
    return sql(
        path, "select pk, path, reason from _image_similarity_failures order by pk, path"
    )


def contents(path: Path, table: str = "images") -> dict[str, list]:
    """All that an embed of one collection leaves behind, but for times of day.

    Two databases with equal contents have the same rows, keys, hashes, vectors (their
    bytes), thumbnails and failures.
    """
    with opened(path) as conn:
        collection = db.find_collection(conn, table)
        found = {
            "rows": f"select * from {db.quote(table)}",
            "items": "select i.id, pk, r.path, i.path, size, mtime_ns, sha256, width, "
            "height, webp from _image_similarity_items i "
            "left join _image_similarity_roots r on r.id = root_id "
            "left join _image_similarity_thumbnails t on t.id = i.id",
            "vectors": f"select id, embedding from {db.quote(collection.vectors)}",
            "failures": "select f.pk, r.path, f.path, reason "
            "from _image_similarity_failures f "
            "left join _image_similarity_roots r on r.id = root_id",
        }
        rows = {
            n: sorted(map(tuple, conn.execute(sql)), key=repr) for n, sql in found.items()
        }
        return {**rows, "encoder": [collection.fingerprint]}
