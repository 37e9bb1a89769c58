"""The command that judges results."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .base import (
    Reporter,
    collection_name,
    existing,
    image_similarity,
    json_output,
    one_line,
    only_table,
    stopping,
)

if TYPE_CHECKING:
    from ..explore.evaluate import Comparison, Run

METRICS = {
    "precision_at_1": "precision@1",
    "precision_at_5": "precision@5",
    "precision_at_10": "precision@10",
    "recall_at_10": "recall@10",
    "map": "mAP",
    "ndcg_at_10": "nDCG@10",
}
SHOWN = 5  # classes, confusions and queries that go worst


@image_similarity.command()
@existing
@click.argument("table", required=False)
@collection_name
@click.option("--label", metavar="COLUMN", help="Column that says what is alike")
@click.option(
    "--split",
    metavar="COLUMN",
    help="Column that says which rows are queries; all others are searched",
)
@click.option(
    "--queries",
    metavar="VALUE",
    multiple=True,
    help="Its value for queries; query, queries or test by default. May be repeated",
)
@click.option(
    "--collections",
    metavar="A,B,…",
    help="Evaluate these collections over the table and compare them with the first",
)
@click.option("--exact", is_flag=True, help="Leave the compressed index alone")
@click.option("--forget", type=int, metavar="ID", help="Drop a stored evaluation instead")
@json_output
def evaluate(
    database: Path,
    table: str | None,
    name: str | None,
    label: str | None,
    split: str | None,
    queries: tuple[str, ...],
    collections: str | None,
    exact: bool,
    forget: int | None,
    as_json: bool,
) -> None:
    """Judge the results by a column of labels: precision, recall, mAP and nDCG.

    Every labelled picture asks for its nearest among all others; what has the same label
    is right. The page Evaluations shows stored runs with their failures, and compares them.

    \b
    Example:
        datasette image-similarity evaluate photos.db --label category
    """
    say = Reporter(database, quiet=as_json)
    if forget is not None:
        _forget(database, forget)
        say.line(f"Evaluation {forget} is dropped.")
        return
    if label is None:
        raise click.UsageError("Name the column of labels with --label")
    if name and collections:
        raise click.UsageError("--collections names the collections: leave --name out")
    table = table or only_table(database)
    names = [one.strip() for one in collections.split(",")] if collections else [name]
    options = {"label": label, "split": split, "queries": queries, "exact": exact}
    runs = [_one_run(database, table, one, options, say) for one in names]
    _print(database, runs, say, as_json)


def _forget(database: Path, run: int) -> None:
    from .. import database as db
    from ..explore.evaluate import forget_run

    with closing(db.connect(database)) as conn, db.explained(database):
        forget_run(conn, run)


def _one_run(
    database: Path, table: str, name: str | None, options: dict[str, Any], say: Reporter
) -> Run:
    from ..collection import ImageCollection
    from ..explore.vectors import Stopped

    with ImageCollection(database, table, name=name) as collection, stopping() as stop:
        try:
            return collection.evaluate(**options, progress=say.step, stop=stop)
        except Stopped:
            say.line("Stopped: nothing was stored.")
            sys.exit(130)


def _print(database: Path, runs: list[Run], say: Reporter, as_json: bool) -> None:
    """The runs, and what those after the first change."""
    from .. import database as db
    from ..explore.evaluate import classes_of, compare, confusions_of, worst_queries

    found = []
    with closing(db.connect(database)) as conn:
        for run in runs:
            classes = classes_of(conn, run)
            confused = confusions_of(conn, run)
            found.append(
                {
                    **run.as_json(),
                    "per_class": [one.as_json() for one in classes],
                    "confusions": [one.as_json() for one in confused],
                }
            )
            if not as_json:
                _say_run(run, say)
                worst = sorted(classes, key=lambda one: one.values[4])[:SHOWN]
                rows = [(one.label, one.queries, one.values[4]) for one in worst]
                say.line("Worst labels, by mAP:")
                for label, count, value in rows:
                    say.line(f"  {value:.3f}  {one_line(label)} ({count:,})")
                if confused:
                    say.line("Most confused: pictures with another label's among their five nearest")
                for one in confused[:SHOWN]:
                    say.line(
                        f"  {one.share:5.1%}  {one_line(one.label)} → {one_line(one.other)}"
                    )
        compared = [compare(conn, runs[0], run) for run in runs[1:]]
    if as_json:
        comparison = [one.as_json() for one in compared]
        both = {"runs": found, "comparison": comparison} if compared else found[0]
        click.echo(json.dumps(both, indent=2))
        return
