"""The command that judges results."""

from __future__ import annotations

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
    only_table,
    or_stopped,
    print_json,
)

if TYPE_CHECKING:
    from ..explore.evaluations import Comparison, Evaluation

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
    _check(database, table, names)
    options = {"label": label, "split": split, "queries": queries, "exact": exact}
    runs = [_one_run(database, table, one, options, say) for one in names]
    _print(database, runs, say, as_json)


def _forget(database: Path, run: int) -> None:
    from .. import database as db
    from ..explore.evaluations import forget_run

    with closing(db.connect(database)) as conn, db.explained(database):
        forget_run(conn, run)


def _check(database: Path, table: str, names: list[str | None]) -> None:
    """Raises CollectionError for a collection that is not there, before minutes pass."""
    from .. import database as db

    with closing(db.connect(database)) as conn:
        for name in names:
            db.find_collection(conn, table, name)


def _one_run(
    database: Path, table: str, name: str | None, options: dict[str, Any], say: Reporter
) -> Evaluation:
    from ..collection import ImageCollection

    with (
        ImageCollection(database, table, name=name) as collection,
        or_stopped(say, "nothing was stored") as stop,
    ):
        return collection.evaluate(**options, progress=say.step, stop=stop)


def _print(database: Path, runs: list[Evaluation], say: Reporter, as_json: bool) -> None:
    """The runs, and what those after the first change."""
    from .. import database as db
    from ..explore.evaluations import compare

    with closing(db.connect(database)) as conn:
        compared = [compare(conn, runs[0], run) for run in runs[1:]]
        if as_json:
            found = [_whole(conn, run) for run in runs]
            comparison = [one.as_json() for one in compared]
            both = {"runs": found, "comparison": comparison} if compared else found[0]
            print_json(both)
            return
        for run in runs:
            _say_run(conn, run, say)
        for one in compared:
            _say_comparison(runs[0], one, say)
            _say_where_to_look(conn, database, runs[0], one, say)
    say.line("Their failures, with pictures: the page Evaluations of the table.")


def _whole(conn: Any, run: Evaluation) -> dict[str, Any]:
    """A run as JSON, with its classes and confusions."""
    from ..explore.evaluations import classes_of, confusions_of

    return {
        **run.as_json(),
        "per_class": [one.as_json() for one in classes_of(conn, run)],
        "confusions": [one.as_json() for one in confusions_of(conn, run)],
    }


def _say_run(conn: Any, run: Evaluation, say: Reporter) -> None:
    """The metrics, and what goes worst."""
    from ..explore.evaluations import classes_of, confusions_of
    from ..explore.judging import MAP, NAMES

    found = run.report
    say.line(f"{run.collection.table} ({run.collection.name}), {found.encoder}")
    say.line(f"Evaluation {run.id}: {found.in_words(run.label)}")
    say.line(f"{'':14}{'by picture':>11}  {'95 % interval':15}{'by label':>11}")
    for name, words in NAMES.items():
        low, high = found.intervals[name]
        mean, macro = found.metrics[name], found.metrics[f"{name}_macro"]
        say.line(f"{words:14}{mean:11.3f}  {f'{low:.3f}–{high:.3f}':15}{macro:11.3f}")
    index = found.through_index
    if index is not None:
        say.line(
            f"Through the compressed index, {index.queries:,} queries: precision@10 "
            f"{index.index['precision_at_10']:.3f} instead of "
            f"{index.exact['precision_at_10']:.3f}; it finds {index.found:.1%} of the ten "
            "nearest"
        )
    say.line("Lowest mAP:")
    for one in sorted(classes_of(conn, run), key=lambda one: one.values[MAP])[:SHOWN]:
        say.line(f"  {one.values[MAP]:.3f}  {one.label} ({one.queries:,})")
    confused = confusions_of(conn, run, SHOWN)
    if confused:
        say.line("Most confused (among the five nearest of so many of its pictures):")
    for one in confused:
        say.line(f"  {one.share:5.1%}  {one.label} finds {one.other}")


def _say_comparison(first: Evaluation, one: Comparison, say: Reporter) -> None:
    """The differences, with their intervals."""
    from ..explore.judging import NAMES

    say.line(
        f"Evaluation {one.run.id} ({one.run.collection.name}) against {first.id} "
        f"({first.collection.name}), {one.queries:,} queries in common"
    )
    if not one.queries:
        return
    for name, words in NAMES.items():
        low, high = one.intervals[name]
        sure = "" if low <= 0 <= high else "  *"
        interval = f"{low:+.3f} … {high:+.3f}"
        say.line(f"{words:14}{one.differences[name]:+11.3f}  {interval}{sure}")
    say.line("* zero is outside the 95 % interval")


def _say_where_to_look(
    conn: Any, database: Path, first: Evaluation, one: Comparison, say: Reporter
) -> None:
    """The page that shows both collections' results for the query that lost most."""
    from urllib.parse import urlencode

    from datasette.utils import tilde_encode

    from .. import database as db
    from ..query import pk_path

    names = first.collection.name, one.run.collection.name
    lost = [change for change in one.changes if change.after < change.before]
    if names[0] == names[1] or not lost:
        return
    key = db.item_key(conn, lost[0].items[0])
    source = db.source_of(conn, first.collection)
    pairs = [("_like", pk_path(source.parts(key)))]
    pairs += [("_collection", names[0]), ("_with", names[1])]
    page = f"/{tilde_encode(database.stem)}/{tilde_encode(source.name)}/-/compare"
    say.line(f"The query that lost most, side by side: {page}?{urlencode(pairs)}")
