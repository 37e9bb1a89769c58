"""The commands that ask for nearest neighbours."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import click

from .base import (
    collection_name,
    existing,
    image_similarity,
    json_output,
    one_line,
    only_table,
)

_k = click.option("-k", type=int, default=10, show_default=True, help="How many")
_where = click.option("--where", help="SQL condition on the table's columns")
_csv = click.option("--csv", "as_csv", is_flag=True, help="Print CSV")
_exact = click.option(
    "--exact", is_flag=True, help="Compare with every vector, whatever index there is"
)


@image_similarity.command()
@existing
@click.argument("table")
@click.argument("pk")
@_k
@_where
@collection_name
@_exact
@json_output
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

    from ..collection import ImageCollection

    with ImageCollection(database, table, name=name) as collection:
        hits = collection.similar(urlsafe_components(pk), k, where, exact=exact)
        _print_hits(hits, as_json, as_csv)


@image_similarity.command()
@existing
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--table", help="Table to search; needed when there are several")
@_k
@_where
@collection_name
@_exact
@json_output
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
    from ..collection import ImageCollection

    with ImageCollection(database, table or only_table(database), name=name) as collection:
        hits = collection.search(image, k, where, exact=exact)
        _print_hits(hits, as_json, as_csv)


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
        cells = [one_line(cell)[:40] for cell in cells]
        lines.append([str(row["rank"]), f"{row['score']:.3f}", row["pk"], *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        text = "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        click.echo(text[:width])
    if not rows:
        click.echo("Nothing found.")
