"""What a database has of a collection, in words: `remove` says them before it deletes,
and what replaces a collection says what does not outlive it."""

from __future__ import annotations

from datasette.utils.sqlite import sqlite3

from . import database as db

# Rows of these tables are counted; a word for one of them, and for several.
COUNTED = (
    ("thumbnails", "1", "thumbnail", "thumbnails"),
    ("decisions", "1", "decision about duplicates", "decisions about duplicates"),
    ("questions", "1", "saved search", "saved searches"),
    ("searches", "1", "logged search", "logged searches"),
    ("clusters", "given", "cluster that you named", "clusters that you named"),
)
# These are computed from the vectors: it is said that they are there.
COMPUTED = {
    "transforms": "what was learned (PCA, heads)",
    "indexes": "the search index",
    "maps": "the map",
    "clusterings": "the clusters",
    "scans": "the duplicate groups",
    "evaluations": "the evaluations",
}


def contents(conn: sqlite3.Connection, collection: db.Collection) -> str:
    """What is stored of a collection, as part of a sentence."""
    vectors = db.item_count(conn, collection)
    where = f" in {collection.store}" if collection.store else ""
    parts = [f"{vectors:,} vector{'s' * (vectors != 1)}{where}"]
    return ", ".join([*parts, *_counted(conn, collection), *_computed(conn, collection)])


def lost_with(conn: sqlite3.Connection, replaced: db.Collection) -> list[str]:
    """The line that says what a collection does not hand over to the one that replaces it;
    none where that is nothing."""
    lost = [*_computed(conn, replaced), *_counted(conn, replaced, only="clusters")]
    return [f"Deleted with the old vectors: {', '.join(lost)}"] if lost else []


def _counted(
    conn: sqlite3.Connection, collection: db.Collection, only: str | None = None
) -> list[str]:
    parts = []
    for table, condition, one, several in COUNTED:
        count = _count(conn, collection, table, condition) if only in (None, table) else 0
        if count:
            parts.append(f"{count:,} {one if count == 1 else several}")
    return parts


def _computed(conn: sqlite3.Connection, collection: db.Collection) -> list[str]:
    return [said for table, said in COMPUTED.items() if _count(conn, collection, table)]


def _count(
    conn: sqlite3.Connection, collection: db.Collection, table: str, condition: str = "1"
) -> int:
    """How many rows of a table are about a collection; 0 where the table is damaged, or
    older than what it counts."""
    mine = "collection_id = ?"
    if table == "thumbnails":
        items = f"select id from _image_similarity_items where {mine}"
        mine = f"id in ({items})"
    sql = f"select count(*) from {db.PREFIX}{table} where {mine} and {condition}"
    try:
        return conn.execute(sql, (collection.id,)).fetchone()[0]
    except sqlite3.OperationalError as error:
        if not str(error).startswith(("no such table", "no such column")):
            raise
        return 0
