"""The commands that ask for nearest neighbours."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..errors import ImageError
from ..images import Crop
from .base import (
    collection_name,
    echo,
    existing,
    image_similarity,
    json_output,
    one_line,
    only_table,
    print_data,
    print_json,
    warnings_said,
)

_k = click.option("-k", type=int, default=10, show_default=True, help="How many")
_where = click.option("--where", help="SQL condition on the table's columns")
_csv = click.option("--csv", "as_csv", is_flag=True, help="Print CSV")
_exact = click.option(
    "--exact", is_flag=True, help="Compare with every vector, whatever index there is"
)


class _CropType(click.ParamType):
    name = "x,y,w,h"

    def convert(self, value: Any, param: Any, ctx: Any) -> Crop:
        try:
            return value if isinstance(value, Crop) else Crop.parse(value)
        except ImageError as error:
            self.fail(str(error), param, ctx)


def _words(command: Callable) -> Callable:
    """Options that ask with words."""
    for option in (
        click.option(
            "--text",
            "texts",
            metavar="WORDS",
            multiple=True,
            help="Like these words (as well); the encoder must read words",
        ),
        click.option(
            "--unlike-text",
            "unlike_texts",
            metavar="WORDS",
            multiple=True,
            help="Less like these words",
        ),
        click.option(
            "--text-weight",
            type=click.FloatRange(0, 1000, min_open=True),
            default=1,
            show_default=True,
            help="What each text counts, where a picture counts 1",
        ),
    ):
        command = option(command)
    return command


def _limits(command: Callable) -> Callable:
    """Options that choose among the results, on every command that has any."""
    for option in (
        click.option(
            "--crop",
            type=_CropType(),
            help="Ask with a part of the picture: fractions of its width and height",
        ),
        click.option(
            "--distinct",
            is_flag=True,
            help="Leave out near-duplicates of the picture and of better results",
        ),
        click.option(
            "--one-per",
            metavar="COLUMN|cluster|duplicates",
            help="The best result of each value, cluster or group of duplicates",
        ),
        click.option(
            "--max-distance", type=click.FloatRange(min=0), help="Only what is so near"
        ),
        _exact,
    ):
        command = option(command)
    return command


@image_similarity.command()
@existing
@click.argument("table")
@click.argument("pks", metavar="PK...", nargs=-1, required=True)
@click.option("--unlike", "unlikes", metavar="PK", multiple=True, help="Less like this row")
@_words
@_k
@_where
@collection_name
@_limits
@json_output
@_csv
def similar(
    database: Path,
    table: str,
    pks: tuple[str, ...],
    unlikes: tuple[str, ...],
    texts: tuple[str, ...],
    unlike_texts: tuple[str, ...],
    text_weight: float,
    k: int,
    where: str | None,
    name: str | None,
    as_json: bool,
    as_csv: bool,
    **limits: Any,
) -> None:
    """Rows most like a row, best first; like the mean of several rows.

    PK as in the row's address: 12, or a,b. A weight may follow: 12:2 counts twice. Rows
    named with --unlike push results away from themselves.

    \b
    Examples:
        datasette image-similarity similar shop.db products 12 -k 5 \\
            --where "price < 50"
        datasette image-similarity similar shop.db products 12 40:2 \\
            --unlike 31 --one-per brand
        datasette image-similarity similar shop.db products 12 --text "in red"
    """
    from ..collection import ImageCollection

    with ImageCollection(database, table, name=name) as collection, warnings_said():
        hits = collection.similar(
            _weights(pks),
            k,
            where,
            unlike=_weights(unlikes),
            text=_weighing(texts, text_weight),
            unlike_text=_weighing(unlike_texts, text_weight),
            **limits,
        )
        _print_hits(hits, as_json, as_csv)


@image_similarity.command()
@existing
@click.argument(
    "image", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@_words
@click.option("--table", help="Table to search; needed when there are several")
@_k
@_where
@collection_name
@_limits
@json_output
@_csv
def search(
    database: Path,
    image: Path | None,
    texts: tuple[str, ...],
    unlike_texts: tuple[str, ...],
    text_weight: float,
    table: str | None,
    k: int,
    where: str | None,
    name: str | None,
    as_json: bool,
    as_csv: bool,
    **limits: Any,
) -> None:
    """Rows most like a picture in a file, words, or both, best first.

    Words need a collection whose encoder reads them, as open_clip's do.

    \b
    Examples:
        datasette image-similarity search photos.db holiday.jpg --json
        datasette image-similarity search photos.db --text "red shoes on grass"
        datasette image-similarity search photos.db holiday.jpg --text "at night"
    """
    from ..collection import ImageCollection

    if image is None and not texts:
        raise click.UsageError("Name a picture to search with, or words with --text")
    with ImageCollection(
        database, table or only_table(database, "with --table"), name=name
    ) as collection:
        hits = collection.search(
            image,
            k,
            where,
            text=_weighing(texts, text_weight),
            unlike_text=_weighing(unlike_texts, text_weight),
            **limits,
        )
        _print_hits(hits, as_json, as_csv)


def _weights(texts: tuple[str, ...]) -> dict[tuple[str, ...], float]:
    """Weights by key, of keys in row-path form. Raises CollectionError."""
    from datasette.utils import urlsafe_components

    from ..query import split_weight

    examples = (split_weight(text) for text in texts)
    return {tuple(urlsafe_components(key)): weight for key, weight in examples}


def _weighing(texts: tuple[str, ...], weight: float) -> dict[str, float] | None:
    """Weights by text; None where there is none."""
    return dict.fromkeys(texts, weight) or None


def _print_hits(hits: list, as_json: bool, as_csv: bool) -> None:
    rows = [hit.as_json() for hit in hits]
    if as_json:
        print_json(rows)
    elif as_csv:
        _print_csv(rows)
    else:
        _print_table(rows)


def _print_csv(rows: list[dict[str, Any]]) -> None:
    columns = list(rows[0]["row"]) if rows else []
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["rank", "pk", "score", "distance", *columns])
    for row in rows:
        values = [row["row"][name] for name in columns]
        values = ["" if isinstance(v, dict) else v for v in values]
        writer.writerow([row["rank"], row["pk"], row["score"], row["distance"], *values])
    print_data(table.getvalue())


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
        echo(text[:width])
    if not rows:
        echo("Nothing found.")
