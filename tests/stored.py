"""What the tests of vectors in a store share: a store, and what it has of a collection."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from core import opened, sql

from datasette_image_similarity import database as db
from datasette_image_similarity.stores import Known, pages
from datasette_image_similarity.stores.items import vectors_of
from datasette_image_similarity.stores.opening import space_of, stores_of


def release(url: str) -> None:
    """Let go of a file of milvus-lite, for another process to use it."""
    if not url.startswith("milvus-lite:"):
        return
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(url.removeprefix("milvus-lite:"))


def vectors(path: Path, name: str | None = None) -> dict[Any, bytes]:
    """All vectors of `images` by key, wherever they are."""
    with opened(path) as conn:
        collection = db.find_collection(conn, "images", name)
        keys = dict(
            conn.execute(
                "select id, pk from _image_similarity_items where collection_id = ?",
                (collection.id,),
            ).fetchall()
        )
        return {keys[item]: data for item, data in vectors_of(conn, collection).scan()}


def in_store(path: Path, url: str) -> list[Known]:
    """Everything that a store has, also of others; nothing where it is gone."""
    with opened(path) as conn:
        collection = db.find_collection(conn, "images")
        index = stores_of(conn).open_url(url, space_of(collection))
        index.ensure()
        return [known for page in pages(index) for known in page]


def shas(path: Path) -> list[str]:
    return sorted(row[0] for row in sql(path, "select sha256 from _image_similarity_items"))


def change(path: Path, pk: int, sha256: str, first: float = 1.0) -> bytes:
    """Put another picture into a row's place, or a row with one; its vector."""
    with opened(path) as conn, db.transaction(conn):
        collection = db.find_collection(conn, "images")
        numbers = [first, (1 - first * first) ** 0.5] + [0.0] * (collection.dimensions - 2)
        vector = struct.pack(f"<{collection.dimensions}f", *numbers)
        conn.execute("insert or ignore into images (id, path) values (?, ?)", (pk, "x.png"))
        db.put_item(
            conn,
            collection,
            pk=pk,
            root=None,
            path="x.png",
            size=1,
            mtime_ns=None,
            sha256=sha256,
            width=1,
            height=1,
            vector=vector,
            thumbnail=None,
        )
    return vector


def drop(path: Path, pk: int) -> None:
    with opened(path) as conn, db.transaction(conn):
        collection = db.find_collection(conn, "images")
        db.drop_items(conn, collection, [db.item_id(conn, collection, pk)])
