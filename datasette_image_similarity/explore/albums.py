"""Clusters as they are stored: what they hold, their names, and new names for them.

Nothing here needs scikit-learn. What is read counts only pictures whose row is there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError, DatabaseError
from ..query import Filter
from .names import LONGEST, tidy, unique

# In queries.
THERE = "_image_similarity_there"
RANKED = "_image_similarity_ranked"

DAMAGED = (
    "The clusters in this database are damaged: make them anew with datasette "
    "image-similarity clusters"
)


@dataclass(frozen=True)
class Made:
    """How a collection was clustered; `options` as the command was given them."""

    method: str
    options: dict[str, int | str]
    label: str | None  # the column that names were suggested from
    at: str


@dataclass(frozen=True)
class Album:
    """A cluster: `size` pictures, whose mean cosine distance to the medoid is `spread`."""

    id: int
    name: str
    suggested: str
    given: bool  # the name, by somebody
    size: int
    spread: float


@dataclass(frozen=True)
class Albums:
    """All clusters that hold something, biggest first; pictures `outside` of them.

    `new` of those outside came after the clusters were made; `changed` pictures, inside or
    not, have been embedded again since.
    """

    clusters: list[Album] = field(default_factory=list)
    outside: int = 0
    new: int = 0
    changed: int = 0

    @property
    def total(self) -> int:
        return sum(album.size for album in self.clusters) + self.outside


class Member(NamedTuple):
    """A picture of a cluster. `distance` is None outside of any."""

    pk: db.Key
    caption: str | None
    width: int
    height: int
    distance: float | None


def made(conn: sqlite3.Connection, collection: db.Collection) -> Made | None:
    """How the collection was clustered, or None. Raises DatabaseError for nonsense."""
    if not db.is_current(conn):
        return None
    row = conn.execute(
        "select method, parameters, label, made_at from _image_similarity_clusterings "
        "where collection_id = ?",
        (collection.id,),
    ).fetchone()
    if row is None:
        return None
    try:
        options = json.loads(row["parameters"])
    except (TypeError, ValueError, RecursionError):
        raise DatabaseError(DAMAGED) from None
    texts = (row["method"], row["label"] or "", row["made_at"])
    if (
        not isinstance(options, dict)
        or not all(isinstance(value, (int, str)) for value in options.values())
        or not all(isinstance(text, str) for text in texts)
    ):
        raise DatabaseError(DAMAGED)
    return Made(row["method"], options, row["label"], row["made_at"])


def albums(
    conn: sqlite3.Connection,
    collection: db.Collection,
    how: Made,
    filter: Filter | None = None,
) -> Albums:
    """The clusters, counted over the pictures that are there and pass a filter."""
    source = db.source_of(conn, collection)
    with_, items, params = _passing(source, filter)
    member = "left join _image_similarity_members m on m.item_id = i.id"
    counted = conn.execute(
        f"{with_} select m.cluster_id, count(*), sum(m.item_id is null), "
        "sum(m.item_id is not null and i.embedded_at > :image_made), avg(m.distance) "
        f"{db.live_sql(collection, source, f'{items} {member}')} group by 1",
        params | {"image_made": how.at},
    ).fetchall()
    named = _clusters(conn, collection)
    found, outside, new, changed = [], 0, 0, 0
    for cluster, size, just_come, again, spread in counted:
        new, changed = new + just_come, changed + again
        if cluster in named and isinstance(spread, float):
            found.append(Album(cluster, *named[cluster], size, spread))
        else:
            outside += size
    found.sort(key=lambda album: (-album.size, album.name, album.id))
    return Albums(found, outside, new, changed)


def _passing(
    source: db.SourceTable, filter: Filter | None
) -> tuple[str, str, dict[str, Any]]:
    """A `with` clause, what live_sql() is to begin from, and parameters."""
    if filter is None or not filter.where:
        return "", "_image_similarity_items i", {}
    return db.passing_sql(source, filter.where), db.ITEMS_PASSING, dict(filter.params)


def _clusters(
    conn: sqlite3.Connection, collection: db.Collection
) -> dict[int, tuple[str, str, bool]]:
    """Name, suggested name, and whether it was given, by id. Raises DatabaseError."""
    rows = conn.execute(
        "select id, name, suggested, given from _image_similarity_clusters "
        "where collection_id = ?",
        (collection.id,),
    )
    found = {}
    for id, name, suggested, given in rows:
        if not isinstance(name, str) or not isinstance(suggested, str):
            raise DatabaseError(DAMAGED)
        found[id] = (name, suggested, bool(given))
    return found


def strips(
    conn: sqlite3.Connection,
    collection: db.Collection,
    clusters: list[int],
    most: int,
    caption: str | None = None,
    filter: Filter | None = None,
) -> dict[int, list[Member]]:
    """Up to `most` (at least 2) pictures of each cluster, evenly from nearest to farthest.

    The first is the medoid, or the nearest to it of those that are there and pass.
    `caption` is a column of the table.
    """
    source = db.source_of(conn, collection)
    with_, items, params = _passing(source, filter)
    live = db.live_sql(
        collection,
        source,
        f"{items} join _image_similarity_members m on m.item_id = i.id "
        "and m.cluster_id in (select value from json_each(:image_clusters))",
    )
    return _spread(
        conn,
        with_,
        _wanted(caption, "m.cluster_id", "m.distance"),
        live,
        params | {"image_clusters": json.dumps(clusters)},
        most,
    )


def outside(
    conn: sqlite3.Connection,
    collection: db.Collection,
    most: int,
    caption: str | None = None,
    filter: Filter | None = None,
) -> list[Member]:
    """Up to `most` (at least 2) pictures in no cluster, spread over the collection."""
    source = db.source_of(conn, collection)
    with_, items, params = _passing(source, filter)
    live = db.live_sql(collection, source, items) + (
        " and not exists (select 1 from _image_similarity_members m "
        "where m.item_id = i.id and m.cluster_id is not null)"
    )
    wanted = _wanted(caption, "0", "null")
    return _spread(conn, with_, wanted, live, params, most).get(0, [])


def _wanted(caption: str | None, cluster: str, distance: str) -> str:
    text = f"substr(t.{db.quote(caption)}, 1, 300)" if caption else "null"
    return (
        f"{cluster} as cluster, i.id as item, {distance} as distance, i.pk as pk, "
        f"{db.SIZE}, {text} as caption"
    )


def _spread(
    conn: sqlite3.Connection,
    with_: str,
    wanted: str,
    live: str,
    params: dict[str, Any],
    most: int,
) -> dict[int, list[Member]]:
    """The first of each cluster, the last, and as many as fit at even steps between."""
    # Names of ours, so that no table of the user's is hidden by them.
    there = f"{with_}, {THERE}" if with_ else f"with {THERE}"
    step = "{} * (:image_most - 1) / (size - 1)"
    rows = conn.execute(
        f"""
        {there} as (select {wanted} {live}),
        {RANKED} as (
            select *, row_number() over nearest - 1 as place,
                count(*) over (partition by cluster) as size
            from {THERE} window nearest as (partition by cluster order by distance, item)
        )
        select cluster, pk, caption, width, height, distance from {RANKED}
        where place = 0 or {step.format("place")} > {step.format("(place - 1)")}
        order by cluster, place
        """,
        {**params, "image_most": most},
    )
    found: dict[int, list[Member]] = {}
    for cluster, pk, caption, *others in rows:
        text = None if caption is None or isinstance(caption, bytes) else str(caption)
        found.setdefault(cluster, []).append(Member(pk, text, *others))
    return found


def cluster_name(
    conn: sqlite3.Connection, collection: db.Collection, cluster: int | None
) -> str | None:
    """The name of a cluster; with None, just whether there are any.

    Raises CollectionError where there are no clusters, or not this one.
    """
    if made(conn, collection) is None:
        raise CollectionError(
            f"The pictures of {collection.table} have not been put into clusters yet: run "
            "datasette image-similarity clusters"
        )
    if cluster is None:
        return None
    named = _clusters(conn, collection)
    if cluster not in named:
        raise CollectionError(
            f"There is no cluster {cluster}: clusters have been made anew since"
        )
    return named[cluster][0]


def rename(
    conn: sqlite3.Connection, collection: db.Collection, cluster: int, name: str
) -> str:
    """Give a cluster a name, or its suggested one back with an empty text.

    Returns the name. Call inside a transaction. Raises CollectionError for one that is
    too long or taken, or no such cluster.
    """
    cluster_name(conn, collection, cluster)
    named = _clusters(conn, collection)
    others = {other for id, (other, _, _) in named.items() if id != cluster}
    given = tidy(name)
    if len(given) > LONGEST:
        raise CollectionError(f"A name has up to {LONGEST} characters")
    if given.casefold() in {other.casefold() for other in others}:
        raise CollectionError(f"There is another cluster called {given!r}")
    final = given or unique([named[cluster][1]], others)[0]
    conn.execute(
        "update _image_similarity_clusters set name = ?, given = ? where id = ?",
        (final, bool(given), cluster),
    )
    conn.execute(
        "update _image_similarity_members set album = ? "
        "where collection_id = ? and cluster_id = ?",
        (final, collection.id, cluster),
    )
    return final
