"""A collection's vectors written to a Parquet file, a group of rows after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from . import database as db
from .errors import CollectionError, Stopped
from .progress import Say, silent
from .stores.ids import entry_id, source_id
from .stores.moving import Row, place_of
from .vector_files import FORMAT, KEY, Record, needs_pyarrow, packed_transform, schema
from .whole_files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 32_000_000  # bytes of vectors in a group of rows, about
ROWS = 50_000  # in a group, at most
ABOUT = ("root", "path", "size", "mtime_ns", "width", "height")


@dataclass(frozen=True)
class ExportedVectors:
    """What was written: `without` pictures have no vector, and are left out."""

    file: str
    vectors: int
    dimensions: int
    without: int
    bytes: int


def export_vectors(
    conn: sqlite3.Connection,
    collection: db.Collection,
    file: Path,
    *,
    say: Say = silent,
    stop: Callable[[], bool] = lambda: False,
) -> ExportedVectors:
    """Write a collection's vectors to `file`, whole or not at all; one there is replaced.

    Raises CollectionError where it cannot be written, StoreError for a store that cannot
    be used, Stopped when `stop()` turns true.
    """
    pq = needs_pyarrow()
    source = collection.store_id or source_id(Path(db.file_of(conn)).stem, collection.table)
    columns = schema(collection.dimensions, numbers=_keys_are_numbers(conn, collection))
    transform = packed_transform(db.transform_rows(conn, collection))
    total, count = db.item_count(conn, collection), 0
    # Vectors hardly get smaller by compression, and take longer to read.
    compressed = {one: "zstd" for one in columns.names if one != "vector"}
    compressed["vector.list.element"] = "none"
    try:
        with (
            replacing(file) as whole,
            pq.ParquetWriter(
                whole, columns, compression=compressed, use_dictionary=["root"]
            ) as out,
        ):
            for table in _tables(conn, collection, source, columns):
                if stop():
                    raise Stopped
                out.write_table(table, row_group_size=table.num_rows)
                count += table.num_rows
                say("Writing vectors", count, total)
            record = _record(conn, collection, source, transform, count)
            out.add_key_value_metadata({KEY: record.to_json().encode()})
    except OSError as error:
        said = error.strerror or str(error)
        raise CollectionError(f"{file} cannot be written: {said}") from None
    size = file.stat().st_size
    return ExportedVectors(str(file), count, collection.dimensions, total - count, size)


def _record(
    conn: sqlite3.Connection,
    collection: db.Collection,
    source: str,
    transform: list[list[Any]],
    count: int,
) -> Record:
    from . import __version__

    return Record(
        format=FORMAT,
        package=__version__,
        exported_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        count=count,
        database=Path(db.file_of(conn)).stem,
        table=collection.table,
        collection=collection.name,
        source=collection.source,
        column=collection.column,
        thumbnails=collection.thumbnails,
        ids=source,
        encoder=collection.encoder,
        fingerprint=collection.fingerprint,
        dimensions=collection.dimensions,
        metric=collection.metric,
        transform=transform,
    )


def _keys_are_numbers(conn: sqlite3.Connection, collection: db.Collection) -> bool:
    sql = (
        "select 1 from _image_similarity_items "
        "where collection_id = ? and typeof(pk) <> 'integer' limit 1"
    )
    return conn.execute(sql, (collection.id,)).fetchone() is None


def _tables(
    conn: sqlite3.Connection, collection: db.Collection, source: str, columns: pa.Schema
) -> Iterator[pa.Table]:
    """The rows, some thousand after the others."""
    place = place_of(conn, collection, collection.store)
    size = max(1, min(ROWS, GROUP // (4 * collection.dimensions)))
    root = "(select path from _image_similarity_roots r where r.id = i.root_id) as root"
    columns_of_items = (
        f"i.id, i.pk, i.sha256, {root}, i.path, i.size, i.mtime_ns, i.width, i.height"
    )
    keys = db.source_of(conn, collection)
    for rows in db.item_pages(conn, collection, columns_of_items, size):
        vectors = place.read([Row(row["id"], row["pk"], row["sha256"]) for row in rows])
        rows = [row for row in rows if len(vectors.get(row["id"], b"")) == _bytes(columns)]
        if rows:
            ids = [entry_id(source, keys.parts(row["pk"])) for row in rows]
            yield _table(rows, ids, [vectors[row["id"]] for row in rows], columns)


def _bytes(columns: pa.Schema) -> int:
    """Bytes of a vector."""
    return 4 * columns.field("vector").type.list_size


def _table(
    rows: Sequence[sqlite3.Row],
    ids: Sequence[str],
    vectors: Sequence[bytes],
    columns: pa.Schema,
) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    numbers = columns.field("key").type == pa.int64()
    matrix = pa.array(np.frombuffer(b"".join(vectors), "<f4"))
    kind = columns.field("vector").type
    values = {
        "id": ids,
        "key": [row["pk"] if numbers else str(row["pk"]) for row in rows],
        "vector": pa.FixedSizeListArray.from_arrays(matrix, type=kind),
        "sha256": [row["sha256"] for row in rows],
        **{name: [row[name] for row in rows] for name in ABOUT},
    }
    return pa.table([values[name] for name in columns.names], schema=columns)
