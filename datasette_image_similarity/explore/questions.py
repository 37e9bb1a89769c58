"""Questions saved under a name: rows of `_image_similarity_questions`.

A question is the query string of a page of similar pictures. `web/questions.py` checks it
before it is saved and again when it is shown: rows and columns may have gone since.
"""

from __future__ import annotations

from dataclasses import dataclass

from datasette.utils.sqlite import sqlite3

from ..database import Collection, is_current
from ..errors import CollectionError

MOST = 500  # of one collection: they are shown on one page
NAME = 100  # characters


@dataclass(frozen=True)
class Saved:
    """One of them."""

    id: int
    name: str
    question: str
    actor: str | None
    saved_at: str


def saved_questions(conn: sqlite3.Connection, collection: Collection) -> list[Saved]:
    """Those of a collection, the newest first."""
    if not is_current(conn):
        return []
    # Whoever made the database may have put anything there.
    rows = conn.execute(
        "select id, name, question, actor, saved_at from _image_similarity_questions "
        "where collection_id = ? and typeof(name) = 'text' and typeof(question) = 'text' "
        "and typeof(actor) in ('text', 'null') and typeof(saved_at) = 'text' "
        "order by saved_at desc, id desc limit ?",
        (collection.id, MOST),
    )
    return [Saved(*row) for row in rows]


def save_question(
    conn: sqlite3.Connection,
    collection: Collection,
    name: str,
    question: str,
    actor: str | None,
) -> int:
    """Save one; its id. Call inside a transaction.

    Raises CollectionError where the name is taken or there are MOST of them.
    """
    sql = "select count(*) from _image_similarity_questions where collection_id = ?"
    if conn.execute(sql, (collection.id,)).fetchone()[0] >= MOST:
        raise CollectionError(f"There are {MOST} saved questions: delete some first")
    try:
        return conn.execute(
            "insert into _image_similarity_questions (collection_id, name, question, actor)"
            " values (?, ?, ?, ?) returning id",
            (collection.id, name, question, actor),
        ).fetchone()[0]
    except sqlite3.IntegrityError:
        raise _taken(name) from None


def rename_question(
    conn: sqlite3.Connection, collection: Collection, id: int, name: str
) -> bool:
    """Give one another name; False where it is gone. Raises CollectionError as above."""
    sql = (
        "update _image_similarity_questions set name = ? where id = ? and collection_id = ?"
    )
    try:
        return conn.execute(sql, (name, id, collection.id)).rowcount > 0
    except sqlite3.IntegrityError:
        raise _taken(name) from None


def delete_question(conn: sqlite3.Connection, collection: Collection, id: int) -> bool:
    """Delete one; False where it was gone already."""
    sql = "delete from _image_similarity_questions where id = ? and collection_id = ?"
    return conn.execute(sql, (id, collection.id)).rowcount > 0


def _taken(name: str) -> CollectionError:
    return CollectionError(f"There is a question called {name} already")
