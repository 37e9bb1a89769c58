"""Filters of ours on Datasette's table pages, and wherever Datasette's own filters apply.

`?_image_cluster=3` on a table page shows the rows of that cluster, and so it does on our
pages, whose filters come from the same hook. A `Narrowing` turns a parameter's value into
SQL over the source table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from datasette.filters import FilterArguments
from datasette.utils.sqlite import sqlite3

from ..database import Collection, SourceTable, is_current, source_of
from ..errors import CollectionError, ImageSimilarityError
from ..explore.albums import cluster_name
from ..explore.duplicates import DECISION_SQL
from ..explore.map import region_slots
from ..query import SearchTimeout
from .clock import limited
from .service import service

if TYPE_CHECKING:
    from datasette.app import Datasette


class Narrowed(NamedTuple):
    """A SQL condition on `_image_similarity_items i`, its parameters, and it in words.

    The condition names a parameter as `{cluster}`, where `params` has "cluster".
    """

    where: str
    params: dict[str, object]
    words: str


# From a connection, the collection and the parameter's value. Raises ValueError for a value
# that means nothing.
Narrowing = Callable[[sqlite3.Connection, Collection, str], Narrowed]


def _region(conn: sqlite3.Connection, collection: Collection, value: str) -> Narrowed:
    """The pictures inside a polygon on the map, or on its grid: see `region_slots()`."""
    runs, count = region_slots(conn, collection, value)
    # Runs of slots: all ids of a big region would be too long for Datasette's links to SQL.
    where = (
        "i.id in (select p.item_id from json_each({runs}) r "
        "cross join _image_similarity_points p on p.collection_id = "
        f"{int(collection.id)} and p.slot between json_extract(r.value, '$[0]') "
        "and json_extract(r.value, '$[1]'))"
    )
    noun = "picture" if count == 1 else "pictures"
    words = f"in a region of the map ({count:,} {noun})"
    return Narrowed(where, {"runs": json.dumps(runs)}, words)


def _duplicates_group(
    conn: sqlite3.Connection, collection: Collection, value: str
) -> Narrowed:
    """The pictures of a group of duplicates."""
    _require_current(conn)
    sql = (
        "i.id in (select item_id from _image_similarity_grouped "
        "where group_id = {group} and collection_id = i.collection_id)"
    )
    group = int(value)
    if not 0 < group < 2**63:  # what SQLite can compare with
        raise ValueError(value)
    return Narrowed(sql, {"group": group}, f"in group {group} of duplicates")


def _decided(conn: sqlite3.Connection, collection: Collection, value: str) -> Narrowed:
    """The pictures whose newest decision, about their bytes as they are, is this one."""
    if value not in DECISIONS:
        raise ValueError(value)
    _require_current(conn)
    return Narrowed(f"{{decision}} = {DECISION_SQL}", {"decision": value}, DECISIONS[value])


def _require_current(conn: sqlite3.Connection) -> None:
    if not is_current(conn):
        raise CollectionError("Nobody has looked for duplicates in this database yet")


DECISIONS = {
    "keep": "kept among duplicates",
    "mark": "marked as duplicates",
    "skip": "skipped among duplicates",
}


def _cluster(conn: sqlite3.Connection, collection: Collection, value: str) -> Narrowed:
    """`?_image_cluster=` and a cluster's number, or "none"."""
    in_one = (
        "i.id in (select item_id from _image_similarity_members "
        f"where collection_id = {int(collection.id)} and cluster_id {{}})"
    )
    if value == "none":
        cluster_name(conn, collection, None)
        return Narrowed(f"not {in_one.format('is not null')}", {}, "in no cluster")
    number = int(value)
    name = cluster_name(conn, collection, number)
    where = in_one.format("= {cluster}")
    return Narrowed(where, {"cluster": number}, f"in the cluster “{name}”")


NARROWINGS: dict[str, Narrowing] = {
    "_image_region": _region,
    "_image_group": _duplicates_group,
    "_image_decision": _decided,
    "_image_cluster": _cluster,
}

IN_WORDS = "image_similarity_in_words"  # in the extra context: words by (name, value)


def narrows(name: str) -> bool:
    """Whether a parameter is one of these filters."""
    return name in NARROWINGS


async def filters(
    datasette: Datasette, request: Any, database: str, table: str
) -> FilterArguments | None:
    """The conditions that a request's parameters stand for.

    Raises BadRequest, or DatasetteError where there is no time to find them out.
    """
    from datasette.utils.asgi import BadRequest
    from datasette.views.base import DatasetteError

    asked = [(n, v) for n in NARROWINGS for v in request.args.getlist(n)]
    if not asked or not await service(datasette).collections(database):
        return None  # where nothing is ours, parameters mean what they mean without us
    named = request.args.get("_collection")
    collection = await service(datasette).collection(database, table, named)
    if collection is None:
        raise BadRequest(f"The table {table} has no embeddings")

    def read(conn: sqlite3.Connection) -> FilterArguments:
        source = source_of(conn, collection)
        where, params, words = [], {}, {}
        for number, (name, value) in enumerate(asked):
            try:
                found = NARROWINGS[name](conn, collection, value)
            except ValueError:
                raise BadRequest(f"{name} cannot be {value!r}") from None
            # Names of its own for each parameter: Datasette's filters have theirs.
            names = {key: f"image_{number}_{key}" for key in found.params}
            condition = found.where.format(**{k: f":{new}" for k, new in names.items()})
            where.append(_over_source(source, collection, condition))
            params |= {names[key]: one for key, one in found.params.items()}
            words[name, value] = found.words
        return FilterArguments(
            where,
            params=params,
            human_descriptions=list(words.values()),
            extra_context={IN_WORDS: words},
        )

    try:
        return await datasette.databases[database].execute_fn(
            limited(datasette, request, read)
        )
    except SearchTimeout as error:
        raise DatasetteError(str(error), status=503) from None
    except ImageSimilarityError as error:
        raise BadRequest(str(error)) from None
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            raise  # this will pass: pages of ours say so
        raise BadRequest(f"The filter cannot be used: {error}") from None


def _over_source(source: SourceTable, collection: Collection, condition: str) -> str:
    """A condition on items `i` as one on the rows of the source table."""
    return (
        f"{source.key_sql()} in (select +i.pk from _image_similarity_items i "
        f"where i.collection_id = {int(collection.id)} and ({condition}))"
    )
