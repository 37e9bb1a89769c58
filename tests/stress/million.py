"""A database as large as wanted, with all that our commands make in it, written directly.

Vectors are drawn around a thousand centres. Everything else (map, clusters, duplicates,
decisions, an evaluation, saved and logged searches) has the right shape and size, and
nothing behind it: what is measured is how long it takes to read. No pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
from datasette.utils.sqlite import sqlite3

from datasette_image_similarity import database as db
from datasette_image_similarity.encoders.hog import HogEncoder
from datasette_image_similarity.explore.evaluations import BOTH, METRICS, Report, state_of
from datasette_image_similarity.index import build_index

TABLE = "photos"
BLOCK = 10_000
CATEGORIES = 100
CLUSTERS = 1000
GROUP = 3  # rows a group of duplicates; one row in GROUP ** 2 begins one

# One number a row, from 0 on.
NUMBERS = (
    "with recursive n(i) as (select 0 union all select i + 1 from n where i + 1 < :rows) "
)

# What the commands leave behind, as `insert` statements over a table's rows. Items have the
# numbers of their rows, so that one query makes them.
LEFT_BEHIND = (
    # map
    "insert into _image_similarity_maps (collection_id, method, parameters, columns, "
    "sheet, tile) values (1, 'pca', '{}', 1000, 1024, 32)",
    "insert into _image_similarity_points select i + 1, 1, ((i * 7919) % 2000) / 1000.0 "
    "- 1, ((i * 104729) % 2000) / 1000.0 - 1, i, i from n",
    # clusters
    "insert into _image_similarity_clusterings (collection_id, method, parameters) "
    "values (1, 'kmeans', '{}')",
    "insert into _image_similarity_clusters (id, collection_id, name, suggested, size, "
    "medoid_id) select i + 1, 1, 'cluster ' || i, 'cluster ' || i, :rows / :clusters, "
    "i + 1 from n where i < :clusters",
    "insert into _image_similarity_members (item_id, collection_id, cluster_id, "
    "table_name, pk, distance) select i + 1, 1, i % :clusters + 1, 'photos', i + 1, 0.1 "
    "from n",
    # duplicates
    "insert into _image_similarity_scans (collection_id, thresholds, scanned) values "
    '(1, \'{"alike": 0.95, "same": 0.99, "bits": 6}\', :rows)',
    "insert into _image_similarity_groups (id, collection_id, tier, size, medoid_id, "
    "keeper_id, reason) select i / :apart + 1, 1, case i / :apart % 3 when 0 then "
    "'identical' when 1 then 'same' else 'alike' end, :group, i + 1, i + 1, 'the largest' "
    "from n where i % :apart = 0",
    "insert into _image_similarity_grouped select i / :apart + 1, i + 1, 1, 0.99 from n "
    "where i % :apart < :group",
    "insert into _image_similarity_decisions (collection_id, step, pk, sha256, decision) "
    "select 1, i + 1, i + 1, printf('%064x', i), 'mark' from n where i % 10 = 1",
    # searches
    "insert into _image_similarity_questions (collection_id, name, question) "
    "select 1, 'question ' || i, '_like=' || (i + 1) from n where i < 1000",
    "insert into _image_similarity_searches (collection_id, page, question, offset, "
    "results, milliseconds) select 1, 'similar', '_like=' || (i + 1), 0, 24, 10 from n "
    "where i % 5 = 0",
    "insert into _image_similarity_clicks (collection_id, search_id, pk, rank) "
    "select 1, i / 5 + 1, i + 1, 1 from n where i % 5 = 0",
)


def make_database(file: Path, rows: int, dimensions: int = 32) -> None:
    """`rows` items in the table `photos`, and a tenth of them in a second collection."""
    file.unlink(missing_ok=True)
    numbers = {"rows": rows, "clusters": CLUSTERS, "group": GROUP, "apart": GROUP**2}
    with closing(db.connect(file, create=True)) as conn:
        conn.execute("pragma synchronous = off")
        conn.execute("pragma journal_mode = off")
        db.migrate(conn)
        _make_rows(conn, numbers)
        for name, share, size in (("default", 1, dimensions), ("small", 10, 16)):
            collection = _collection(conn, name, size)
            _put_items(conn, collection, rows // share)
        for statement in LEFT_BEHIND:
            whole = f"{NUMBERS}{statement}" if " from n" in statement else statement
            with db.transaction(conn):
                conn.execute(whole, {k: v for k, v in numbers.items() if f":{k}" in whole})
        _put_evaluation(conn, rows)
        build_index(conn, db.find_collection(conn, TABLE, "default"), recall=0.9)
        conn.execute("pragma journal_mode = delete")


def _make_rows(conn: sqlite3.Connection, numbers: dict[str, int]) -> None:
    """The user's table: as many columns as a catalogue has, and a full-text index."""
    conn.execute(
        f"create table {TABLE} (id integer primary key, path text, title text, "
        "category text, year integer, price real)"
    )
    with db.transaction(conn):
        conn.execute(
            f"{NUMBERS} insert into {TABLE} select i + 1, printf('%07d.jpg', i), "
            "'a picture of a ' || char(97 + i % 26) || char(97 + i / 26 % 26) || "
            f"' thing ' || i, printf('c%02d', i % {CATEGORIES}), 1900 + i % 125, "
            "i % 9973 / 7.0 from n",
            {"rows": numbers["rows"]},
        )
    conn.execute(f"create index photos_category on {TABLE} (category)")
    conn.execute(
        f'create virtual table {TABLE}_fts using fts5 (title, content="{TABLE}", '
        'content_rowid="id")'
    )
    with db.transaction(conn):
        conn.execute(f"insert into {TABLE}_fts ({TABLE}_fts) values ('rebuild')")


def _collection(conn: sqlite3.Connection, name: str, dimensions: int) -> db.Collection:
    spec = HogEncoder().spec
    with db.transaction(conn):
        return db.create_collection(
            conn,
            name=name,
            table=TABLE,
            source="path",
            column="path",
            encoder=spec.to_json(),
            fingerprint=spec.fingerprint,
            dimensions=dimensions,
            metric="cosine",
            thumbnails=False,
        )


def _put_items(conn: sqlite3.Connection, collection: db.Collection, rows: int) -> None:
    first = conn.execute("select coalesce(max(id), 0) from _image_similarity_items")
    offset = first.fetchone()[0]
    with db.transaction(conn):
        conn.execute(
            f"{NUMBERS} insert into _image_similarity_items (id, collection_id, pk, path, "
            "size, mtime_ns, sha256, width, height) select :offset + i + 1, :collection, "
            "i + 1, printf('%07d.jpg', i), 50000, i, printf('%064x', i), 320, 240 from n",
            {"rows": rows, "offset": offset, "collection": collection.id},
        )
    sql = f"insert into {db.quote(collection.vectors)} (id, embedding) values (?, ?)"
    start = offset + 1
    for block in _blocks(rows, collection.dimensions):
        with db.transaction(conn):
            conn.executemany(sql, ((i, v.tobytes()) for i, v in enumerate(block, start)))
        start += len(block)


def _blocks(rows: int, dimensions: int) -> Iterator[np.ndarray]:
    """Unit vectors in blocks, float32 (n, dimensions)."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, dimensions), np.float32)
    for start in range(0, rows, BLOCK):
        size = min(BLOCK, rows - start)
        noise = rng.standard_normal((size, dimensions), np.float32)
        block = centres[rng.integers(len(centres), size=size)] + 0.5 * noise
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


def _put_evaluation(conn: sqlite3.Connection, rows: int) -> None:
    collection = db.find_collection(conn, TABLE, "default")
    report = Report(
        metrics=dict.fromkeys(BOTH, 0.5),
        intervals={name: [0.4, 0.6] for name in BOTH},
        chance=0.01,
        queries=rows,
        gallery=rows,
        classes=CATEGORIES,
        alone=0,
        unlabelled=0,
        split=None,
        query_values=[],
        through_index=None,
        encoder="hog",
        state=state_of(conn, collection),
        seconds=1.0,
    )
    values = ", ".join(["0.5"] * len(METRICS))
    with db.transaction(conn):
        conn.execute(
            "insert into _image_similarity_evaluations (id, collection_id, label, report) "
            "values (1, 1, 'category', ?)",
            (json.dumps(asdict(report)),),
        )
        conn.execute(
            f"{NUMBERS} insert into _image_similarity_classes select 1, "
            f"printf('c%02d', i), 1, 100, 100, {values} from n",
            {"rows": CATEGORIES},
        )
        conn.execute(
            f"{NUMBERS} insert into _image_similarity_evaluated select 1, i + 1, 1, "
            f"printf('c%02d', i % {CATEGORIES}), 0, 0.2, 0.3, 0.1, "
            "(i * 7919 % 1000) / 1000.0, 0.4, json_array(i + 2, i + 3) from n",
            {"rows": rows - 3},
        )
