"""Does everything fit together? vec0 answers wrongly, without an error, when its shadow
tables are damaged, so what it says is checked against them and against our own tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from datasette.utils.sqlite import sqlite3

from . import database as db
from . import index, trust
from .errors import CollectionError, DatabaseError, EncoderError, StoreError
from .explore import albums
from .explore.decisions import last_scan
from .explore.evaluations import damaged_runs, forget_run
from .explore.map import map_status, read_points
from .moves import away
from .sources import is_same
from .stores.items import vector_of_item
from .stores.opening import store_url
from .tables import ROOTLESS, check_tables

NO_TABLE = "the table or its column is gone: remove, or restore it"
NOT_LIVE = "items whose row is gone or has changed"


@dataclass(frozen=True)
class Fault:
    """Something that does not fit: what, how often, and whether a repair mends it."""

    table: str
    what: str
    count: int = 1
    mends: bool = True

    def __str__(self) -> str:
        return f"{self.what} ({self.count:,})"

    def as_json(self) -> dict[str, object]:
        return {"table": self.table, "what": self.what, "count": self.count}


def verify_database(conn: sqlite3.Connection, *, repair: bool = False) -> list[Fault]:
    """Every fault found, mended if asked for.

    Mending forgets items whose vector or row is not right, so that the next `embed` makes
    them anew, rebuilds a damaged vec0 table from the vectors that can be read, and drops
    what was made of a collection where it cannot be read.
    Vectors in a store are left to `reconcile`. Raises DatabaseError where it cannot be
    told what there is.
    """
    if not db.schema_version(conn):
        return []
    if repair:
        db.migrate(conn)
    with db.transaction(conn):
        found = check_tables(conn, repair)
    faults = [
        Fault("(all)", what, count, mends=not what.startswith(ROOTLESS))
        for what, count in found.items()
    ]
    noted = set(map(str, trust.trusted_roots(db.file_of(conn))))
    for collection in db.collections(conn):
        faults += _verify_folders(conn, collection, noted)
        try:
            with db.transaction(conn):
                faults += _verify(conn, collection, repair)
                faults += _verify_made(conn, collection, repair)
        except sqlite3.OperationalError as error:
            # Tables that are not as they were made cannot be looked into further.
            if repair or not found or not str(error).startswith("no such "):
                raise
    return faults


def _verify_folders(
    conn: sqlite3.Connection, collection: db.Collection, noted: set[str]
) -> list[Fault]:
    """Folders that this user has embedded and that are not there any more. On another
    computer none are to be expected."""
    if not db.table_exists(conn, f"{db.PREFIX}roots"):
        return []
    return [
        Fault(
            collection.table,
            f"pictures in {folder}, which is not there: connect the drive, or embed the "
            "folder that it has become, or delete these rows",
            count,
            mends=False,
        )
        for folder, count in away(conn, collection).items()
        if folder in noted
    ]


def _verify_count(
    conn: sqlite3.Connection, collection: db.Collection, items: set[int], repair: bool
) -> list[Fault]:
    """The number of items is kept by triggers, which a script may have switched off."""
    if db.schema_version(conn) < 5 or db.kept_count(conn, collection) == len(items):
        return []
    if repair:
        db.put_item_count(conn, collection, len(items))
    return [Fault(collection.table, "the number of pictures is kept wrongly")]


def _verify(
    conn: sqlite3.Connection, collection: db.Collection, repair: bool
) -> list[Fault]:
    items = {
        row[0]
        for row in conn.execute(
            "select id from _image_similarity_items where collection_id = ?",
            (collection.id,),
        )
    }
    miscounted = _verify_count(conn, collection, items, repair)
    if not collection.store:
        collection, odd = _verify_vec0(conn, collection, repair)
        miscounted += odd
    live = _live_items(conn, collection)
    if collection.store:
        return miscounted + _verify_stored(conn, collection, items, live, repair)
    good, damaged = _read_vectors(conn, collection, items)
    checks = {
        "the vec0 table is damaged": damaged,
        "items without a usable vector": len(items - good.keys()),
        "vectors without an item": len(_listed_places(conn, collection).keys() - items),
    }
    if live is None:
        checks[NO_TABLE] = 1
        live = items
    checks[NOT_LIVE] = len(items - live)
    faults = [_fault(collection, what, n) for what, n in checks.items() if n]
    if repair and faults:
        _rebuild(conn, collection, {i: good[i] for i in items & live & good.keys()})
    if repair:
        _note_sums(conn, collection, good)
    faults += _verify_encoder(conn, collection, repair)
    return miscounted + faults + _verify_index(conn, collection, repair)


def _fault(collection: db.Collection, what: str, count: int) -> Fault:
    return Fault(collection.table, what, count, mends=what != NO_TABLE)


def _verify_vec0(
    conn: sqlite3.Connection, collection: db.Collection, repair: bool
) -> tuple[db.Collection, list[Fault]]:
    """The vec0 table says length and metric, too: it is what the vectors were put into."""
    made = db.vec0_of(conn, collection)
    if made is None or made == (collection.dimensions, collection.metric):
        return collection, []
    fault = Fault(collection.table, "length or metric are not those of the vec0 table")
    if repair and made[1] in db.DISTANCES:
        conn.execute(
            "update _image_similarity_collections set dimensions = ?, metric = ? "
            "where id = ?",
            (*made, collection.id),
        )
        collection = replace(collection, dimensions=made[0], metric=made[1])
    return collection, [fault]


def _verify_stored(
    conn: sqlite3.Connection,
    collection: db.Collection,
    items: set[int],
    live: set[int] | None,
    repair: bool,
) -> list[Fault]:
    """What this file knows of vectors in a store; what the store has is for `reconcile`."""
    rows = conn.execute(
        "select id, vector from _image_similarity_unsent "
        "where collection_id = ? and vector is not null",
        (collection.id,),
    )
    urls = _verify_url(collection)
    unusable = [row[0] for row in rows if not _usable(row[1], collection)]
    checks = {"vectors that wait to be sent and are not usable": len(unusable)}
    checks |= {NO_TABLE: 1} if live is None else {NOT_LIVE: len(items - live)}
    if repair:
        lost = conn.execute(
            "select i.id from _image_similarity_items i join _image_similarity_unsent u "
            "on u.collection_id = i.collection_id and u.pk = i.pk "
            "where u.id in (select value from json_each(?))",
            (json.dumps(unusable),),
        ).fetchall()
        gone = items - live if live is not None else set()
        db.drop_items(conn, collection, gone.union(row[0] for row in lost))
    faults = [_fault(collection, what, n) for what, n in checks.items() if n]
    return urls + faults + _verify_encoder(conn, collection, repair)


def _verify_url(collection: db.Collection) -> list[Fault]:
    try:
        store_url(collection.store)
    except StoreError as error:
        what = f"{error}: remove the collection and make it again"
        return [Fault(collection.table, what, mends=False)]
    return []


def _verify_encoder(
    conn: sqlite3.Connection, collection: db.Collection, repair: bool
) -> list[Fault]:
    """What was learned cannot be mended: only the pictures themselves give it again. Nor
    can an encoder that has become another: its fingerprint tells, where that is one."""
    from .encoders import EncoderSpec
    from .learning.stored import stored_transform

    def lost(what: object) -> list[Fault]:
        return [Fault(collection.table, str(what), mends=False)]

    name, again = collection.name, "remove the collection and make it again"
    try:
        transform = stored_transform(conn, collection)
        fingerprint = EncoderSpec.from_json(collection.encoder).fingerprint
    except EncoderError as error:
        return lost(f"{name!r}: {error}")
    if transform and transform.dimensions != collection.dimensions:
        return lost(
            f"what was learned of {name!r} gives vectors of another length: {again}"
        )
    if fingerprint == collection.fingerprint:
        return []
    if re.fullmatch("[0-9a-f]{64}", collection.fingerprint):
        return lost(
            f"{name!r} has an encoder that is not the one it was made with: {again}"
        )
    if repair:
        db.put_fingerprint(conn, collection, fingerprint)
    return [Fault(collection.table, "the fingerprint of the encoder is damaged")]


def _verify_index(
    conn: sqlite3.Connection, collection: db.Collection, repair: bool
) -> list[Fault]:
    """A damaged index is dropped; items that it lacks are listed."""
    try:
        missing = index.unlisted(conn, collection)
    except DatabaseError:
        if repair:
            db.drop_index(conn, collection)
        return [Fault(collection.table, "the compressed index is damaged: make it anew")]
    if missing and repair:
        db.put_waiting(conn, collection, missing)
        index.list_waiting(conn, collection)
    what = "items that the compressed index lacks"
    return [Fault(collection.table, what, len(missing))] if missing else []


def _note_sums(
    conn: sqlite3.Connection, collection: db.Collection, good: dict[int, bytes]
) -> None:
    """Vectors of before there were sums get theirs."""
    sql = "select id from _image_similarity_items where collection_id = ? and crc32 is null"
    bare = [row[0] for row in conn.execute(sql, (collection.id,))]
    db.note_vectors(conn, [(item, good[item]) for item in bare if item in good])


def _listed_places(
    conn: sqlite3.Connection, collection: db.Collection
) -> dict[int, tuple[int, int]]:
    """Chunk and slot by id, as the vec0 table's own list of rows has them."""
    try:
        rows = conn.execute(
            "select rowid, chunk_id, chunk_offset from "
            f"{db.quote(collection.vectors + '_rowids')}"
        )
        return {row[0]: (row[1], row[2]) for row in rows}
    except sqlite3.DatabaseError:
        return {}


def _scanned_places(
    conn: sqlite3.Connection, collection: db.Collection
) -> Iterator[tuple[tuple[int, int], int, bool]]:
    """Chunk and slot, id there, and whether a KNN would look at it."""
    chunks = conn.execute(
        f"select chunk_id, validity, rowids from {db.quote(collection.vectors + '_chunks')}"
    )
    for chunk, validity, rowids in chunks:
        for slot in range(len(rowids) // 8):
            id = int.from_bytes(rowids[8 * slot : 8 * slot + 8], "little", signed=True)
            bits = int.from_bytes(validity[slot // 8 : slot // 8 + 1], "little")
            yield (chunk, slot), id, bool(bits >> slot % 8 & 1)


def _read_vectors(
    conn: sqlite3.Connection, collection: db.Collection, items: Iterable[int]
) -> tuple[dict[int, bytes], int]:
    """Usable vectors by item, and whether the vec0 table itself is damaged (0 or 1).

    Only where the list of rows and the chunk agree is it sure whose vector it is.
    """
    if not db.has_parts(conn, collection):
        return {}, 1
    good: dict[int, bytes] = {}
    listed = _listed_places(conn, collection)
    there: dict[tuple[int, int], int] = {}
    valid: dict[int, tuple[int, int]] = {}
    try:
        for place, id, is_valid in _scanned_places(conn, collection):
            there[place] = id
            if is_valid:
                valid[id] = place
        damaged = int(valid != listed)
    except (sqlite3.DatabaseError, TypeError):
        damaged = 1
    for item in items:
        if there.get(listed.get(item)) != item:
            continue
        try:
            data = vector_of_item(conn, collection, item)
        except sqlite3.DatabaseError:
            damaged = 1
            continue
        if data is not None and _usable(data, collection):
            good[item] = data
    return good, damaged


def _usable(data: object, collection: db.Collection) -> bool:
    """The right length, all finite, and of length 1 for the cosine metric."""
    if not isinstance(data, bytes) or len(data) != 4 * collection.dimensions:
        return False
    try:
        numbers = db.floats(data)
    except CollectionError:
        return False
    length = sum(number * number for number in numbers)
    return abs(length - 1) < 1e-3 if collection.metric == "cosine" else length > 0


def _live_items(conn: sqlite3.Connection, collection: db.Collection) -> set[int] | None:
    try:
        source = db.source_of(conn, collection)
    except CollectionError:
        return None
    # As long as it was is not enough: searches leave out what has another hash, too.
    columns = f"i.id, i.sha256, {db.cell_sql(collection)}"
    rows = conn.execute(f"select {columns} {db.live_sql(collection, source)}")
    return {id for id, noted, cell in rows if is_same(cell, noted)}


def _rebuild(
    conn: sqlite3.Connection, collection: db.Collection, vectors: dict[int, bytes]
) -> None:
    """Make the vec0 table anew from these vectors, and forget all other items."""
    db.drop_vectors(conn, collection.vectors)
    db.create_vectors(conn, collection)
    conn.executemany(
        f"insert into {db.quote(collection.vectors)} (id, embedding) values (?, ?)",
        vectors.items(),
    )
    items = conn.execute(
        "select id from _image_similarity_items where collection_id = ?", (collection.id,)
    ).fetchall()
    db.drop_items(conn, collection, [row[0] for row in items if row[0] not in vectors])


def _verify_made(
    conn: sqlite3.Connection, collection: db.Collection, repair: bool
) -> list[Fault]:
    """What was made of a collection can be read, or is dropped: it can be made again."""
    faults = []
    for name, (look, tables) in MADE.items():
        try:
            look(conn, collection)
        except DatabaseError:
            what = f"{name} of {collection.name!r} cannot be read: to be made anew"
            faults.append(Fault(collection.table, what))
            if repair:
                db.clear(conn, collection, *tables)
    for run in damaged_runs(conn, collection):
        faults.append(Fault(collection.table, f"evaluation {run} cannot be read"))
        if repair:
            forget_run(conn, run)
    return faults


def _look_at_map(conn: sqlite3.Connection, collection: db.Collection) -> None:
    with suppress(CollectionError):  # its table is gone: told already
        if map_status(conn, collection) is not None:
            read_points(conn, collection, db.source_of(conn, collection))


def _look_at_clusters(conn: sqlite3.Connection, collection: db.Collection) -> None:
    with suppress(CollectionError):
        if how := albums.made(conn, collection):
            albums.albums(conn, collection, how)


# How it is read, and where it is, those that refer to others first.
MADE: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "the map": (_look_at_map, ("points", "atlases", "maps")),
    "the clusters": (_look_at_clusters, ("members", "clusters", "clusterings")),
    "the scan for duplicates": (last_scan, ("grouped", "groups", "hashes", "scans")),
}
