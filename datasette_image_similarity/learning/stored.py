"""Transforms in a database: reading that of a collection, and making a collection of
vectors that went through one."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..contents import lost_with
from ..encoders import EncoderSpec
from ..encoders.transform import Step, Transform, transformed_spec
from ..errors import CollectionError
from ..explore.vectors import Say, Stopped, live_items, vector_blocks
from ..stores.places import clear_places, places_of


def stored_transform(
    conn: sqlite3.Connection, collection: db.Collection
) -> Transform | None:
    """What a collection's vectors went through, None where that is nothing.

    Raises EncoderError when it is missing or damaged.
    """
    spec = EncoderSpec.from_json(collection.encoder)
    if spec.transform is None:
        return None
    return Transform.from_rows(db.transform_rows(conn, collection), spec)


def check_name(conn: sqlite3.Connection, parent: db.Collection, name: str) -> None:
    """Raise CollectionError unless a new collection beside `parent` can be called so."""
    if not name.strip() or not name.isprintable():
        raise CollectionError("Name the new collection in characters that can be seen")
    if db.collection_or_none(conn, parent.table, name) is not None:
        raise CollectionError(
            f"{parent.table!r} has a collection {name!r} already: choose another name, or "
            "remove it"
        )


def derive(
    conn: sqlite3.Connection,
    parent: db.Collection,
    step: Step,
    *,
    name: str,
    replace: bool = False,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> db.Collection:
    """A collection called `name` of the vectors of `parent` after one more step.

    It has the items whose row is still there, without their thumbnails: those of `parent`
    are shown. With `replace` it takes the name of `parent` instead, what people did there,
    and its place: `parent` is dropped. All in one transaction: it is stored whole or not
    at all. The new vectors are in this file, wherever those of `parent` are; of a parent
    that is dropped they are taken out of its store afterwards, or a warning says why not.
    Raises CollectionError for a name that is taken, or when another run has
    replaced or removed `parent`; Stopped when `stop()` turns true.
    """
    spec = EncoderSpec.from_json(parent.encoder)
    before = stored_transform(conn, parent)
    transform = before.then(step) if before else Transform((step,))
    spec = transformed_spec(spec.backbone, transform)
    places = places_of(conn, parent) if replace else {}
    lost = lost_with(conn, parent) if replace else []
    with db.transaction(conn):
        if parent not in db.collections(conn, parent.table):
            raise CollectionError(
                f"Another run has changed the embeddings of {parent.table!r} meanwhile: "
                "run this again"
            )
        db.migrate(conn)
        if replace:
            name = parent.name
            db.set_aside(conn, parent)
        else:
            check_name(conn, parent, name)
        made = db.create_collection(
            conn,
            name=name,
            table=parent.table,
            source=parent.source,
            column=parent.column,
            encoder=spec.to_json(),
            fingerprint=spec.fingerprint,
            dimensions=transform.dimensions,
            metric=parent.metric,
            thumbnails=parent.thumbnails,
        )
        db.put_transform(conn, made, transform.rows())
        _copy_items(conn, parent, made)
        _put_vectors(conn, parent, made, step, say, stop)
        db.note_finished(conn, made)
        if replace:
            db.hand_over(conn, parent, made)
            db.drop_collection(conn, parent)
    for left in [*lost, *clear_places(conn, parent, places)]:
        warnings.warn(left, stacklevel=2)
    return db.find_collection(conn, made.table, made.name)


def _copy_items(
    conn: sqlite3.Connection, parent: db.Collection, made: db.Collection
) -> None:
    """The same roots, items and failures, with ids of their own and no vectors yet."""
    both = {"old": parent.id, "new": made.id}
    conn.execute(
        "update _image_similarity_collections set run_settings = (select run_settings "
        "from _image_similarity_collections where id = :old) where id = :new",
        both,
    )
    conn.execute(
        "insert into _image_similarity_roots (collection_id, path) "
        "select :new, path from _image_similarity_roots where collection_id = :old",
        both,
    )
    root = (
        "(select n.id from _image_similarity_roots o join _image_similarity_roots n "
        "on n.collection_id = :new and n.path = o.path where o.id = i.root_id)"
    )
    items = "pk, path, size, mtime_ns, sha256, width, height, embedded_at, note"
    conn.execute(
        f"insert into _image_similarity_items (collection_id, root_id, {items}) "
        f"select :new, {root}, {items} from _image_similarity_items i "
        "where collection_id = :old order by id",
        both,
    )
    conn.execute(
        "insert into _image_similarity_failures (collection_id, root_id, pk, path, reason, "
        f"failed_at) select :new, {root}, pk, path, reason, failed_at "
        "from _image_similarity_failures i where collection_id = :old",
        both,
    )


def _put_vectors(
    conn: sqlite3.Connection,
    parent: db.Collection,
    made: db.Collection,
    step: Step,
    say: Say,
    stop: Callable[[], bool],
) -> None:
    """Each vector of `parent` after the step. Items without a usable one are dropped."""
    import numpy as np

    items = dict(
        conn.execute(
            "select o.id, n.id from _image_similarity_items o "
            "join _image_similarity_items n on n.collection_id = ? and n.pk = o.pk "
            "where o.collection_id = ?",
            (made.id, parent.id),
        ).fetchall()
    )
    live = live_items(conn, parent)
    ids = np.fromiter(live, np.int64, len(live))
    sql = f"insert into {db.quote(made.vectors)} (id, embedding) values (?, ?)"
    done = 0
    for block, vectors in vector_blocks(conn, parent, ids):
        if stop():
            raise Stopped
        whole = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        block, vectors, read = block[whole], vectors[whole], len(block)
        moved = step.apply(vectors)
        lengths = np.linalg.norm(moved, axis=1, keepdims=True)
        usable = np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)
        if made.metric == "cosine":
            moved = moved / np.where(lengths > 0, lengths, 1)
        rows = zip(block[usable].tolist(), moved[usable].astype("<f4"), strict=True)
        put = [(items[old], one.tobytes()) for old, one in rows]
        conn.executemany(sql, put)
        db.note_vectors(conn, put)
        for old in block[usable].tolist():
            del items[old]
        done += read
        say("Writing vectors", done, len(ids))
    db.drop_items(conn, made, items.values())
