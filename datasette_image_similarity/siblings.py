"""Collections over one table, side by side: which one is used where none is named, what
the others lack, and which vectors one of them can take from another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from . import database as db
from .encoders import EncoderSpec
from .errors import CollectionError
from .pipeline import finished_vector
from .stores.items import vector_of_bytes

if TYPE_CHECKING:
    from .encoders.transform import Transform


def is_default(conn: sqlite3.Connection, collection: db.Collection) -> bool:
    """Whether it is the one that is used where none is named."""
    return db.find_collection(conn, collection.table).id == collection.id


def lacking(conn: sqlite3.Connection, collection: db.Collection) -> int:
    """How many pictures of the table's default collection are not in this one as they are.

    Pictures that could not be embedded here do not count. 0 where the two are made of
    different columns, and for the default itself.
    """
    default = db.find_collection(conn, collection.table)
    if default.id == collection.id or _pictures(default) != _pictures(collection):
        return 0
    try:
        source = db.source_of(conn, default)
    except CollectionError:  # the table was renamed or dropped
        return 0
    sql = (
        f"select count(*) {db.live_sql(default, source)} and not exists "
        "(select 1 from _image_similarity_items mine where mine.collection_id = :id "
        "and mine.pk = i.pk and mine.sha256 = i.sha256) and not exists "
        "(select 1 from _image_similarity_failures f where f.collection_id = :id "
        "and (f.pk = i.pk or f.path = i.path))"
    )
    return conn.execute(sql, {"id": collection.id}).fetchone()[0]


def _pictures(collection: db.Collection) -> tuple[str, str]:
    """Where its pictures are."""
    return collection.source, collection.column.lower()


def names_in_order(conn: sqlite3.Connection, table: str) -> list[str]:
    """A table's collections, each behind those that it can take vectors from."""
    steps = "select count(*) from _image_similarity_transforms where collection_id = ?"

    def depth(collection: db.Collection) -> int:
        if not db.is_current(conn, 4):
            return 0
        return conn.execute(steps, (collection.id,)).fetchone()[0]

    return [one.name for one in sorted(db.collections(conn, table), key=depth)]


# From the SHA-256 of a picture's bytes: its vector as it would be stored, if it is known.
KnownVector = Callable[[str], "bytes | None"]


def vectors_of_parents(conn: sqlite3.Connection, collection: db.Collection) -> KnownVector:
    """Vectors for a collection that went through a transform, without its network.

    They come from other collections over the table whose vectors are the same network's,
    and went through the first of the same steps, or none: the steps that remain give ours.
    Raises EncoderError when a transform is missing or damaged.
    """
    from .learning.stored import stored_transform

    mine = stored_transform(conn, collection)
    if mine is None:
        return lambda sha256: None
    parents = []
    for other in db.collections(conn, collection.table):
        if other.id == collection.id or not _same_network(other, collection):
            continue
        theirs = stored_transform(conn, other)
        done = len(theirs.steps) if theirs else 0
        if done < len(mine.steps) and (
            theirs is None or theirs.sha256 == replace(mine, steps=mine.steps[:done]).sha256
        ):
            parents.append((other, replace(mine, steps=mine.steps[done:])))

    def known(sha256: str) -> bytes | None:
        for parent, rest in parents:
            vector = vector_of_bytes(conn, parent, sha256)
            if vector is not None and len(vector) == 4 * parent.dimensions:
                return _moved(vector, rest, collection.metric)
        return None

    return known


def _same_network(one: db.Collection, other: db.Collection) -> bool:
    """Whether they differ in nothing but what their vectors went through."""
    networks = {
        EncoderSpec.from_json(collection.encoder).backbone.fingerprint
        for collection in (one, other)
    }
    return (
        len(networks) == 1
        and one.metric == other.metric
        and _pictures(one) == _pictures(other)
    )


def _moved(vector: bytes, transform: Transform, metric: str) -> bytes | None:
    """A stored vector after a transform, as it would be stored; None for a damaged one."""
    import numpy as np

    row = np.frombuffer(vector, "<f4")[None]
    if not np.isfinite(row).all() or not row.any():
        return None
    return finished_vector(transform(row)[0], metric)
