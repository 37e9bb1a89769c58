"""Groups of duplicates as the finder leaves them, for tests of what comes after it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from datasette_image_similarity import database as db

GROUPS = (
    ("identical", (1, 2)),
    ("same", (3, 4, 5)),
    ("same", (6, 7)),
    ("same", (9, 10, 11, 12, 13)),
    ("alike", (17, 18)),
)


def put_groups(
    path: Path, groups: Iterable[tuple[str, tuple[int, ...]]] = GROUPS, first: int = 1
) -> None:
    """Make these the groups of the first collection, by item id; the first item of each
    is its medoid and suggested keeper. Ids count from `first`."""
    with closing(db.connect(path)) as conn, db.transaction(conn):
        db.migrate(conn)
        for table in ("grouped", "groups", "scans"):
            conn.execute(f"delete from _image_similarity_{table}")
        conn.execute(
            "insert into _image_similarity_scans (collection_id, thresholds, scanned) "
            "values (1, '{\"alike\": 0.97}', 24)"
        )
        for id, (tier, items) in enumerate(groups, first):
            conn.execute(
                "insert into _image_similarity_groups values (?, 1, ?, ?, ?, ?, ?)",
                (id, tier, len(items), items[0], items[0], "80 × 60, the others smaller"),
            )
            conn.executemany(
                "insert into _image_similarity_grouped values (?, ?, 1, ?)",
                [(id, item, 1 - place / 100) for place, item in enumerate(items)],
            )
