"""A database in which everything was made that can be made without a network."""

from __future__ import annotations

from pathlib import Path

from conftest import make_photos, picture
from core import command, opened

from datasette_image_similarity import database as db

WORKS = 6  # pictures in a column of BLOBs


def make_everything(folder: Path) -> Path:
    """`gallery.db` in a folder, with the pictures beside it: two tables, five collections,
    an index, a map, duplicates, clusters, evaluations, and what people add to them."""
    photos = make_photos(folder / "photos")
    for number in range(3):  # identical files, and one that is none
        (photos / "red" / f"copy-{number}.png").write_bytes(picture("red", 0))
    (photos / "red" / "broken.png").write_bytes(b"no picture")
    path = folder / "gallery.db"
    with opened(path) as conn, db.transaction(conn):
        conn.execute("create table works (id integer primary key, scan blob)")
        for number in range(WORKS):
            scan = picture("blue", number, (60, 60))
            conn.execute("insert into works (scan) values (?)", (scan,))
    hog = ("--model", "hog", "--workers", "1")
    for arguments in (
        ("embed", path, photos, *hog, "--label-from-folder"),
        ("embed", path, photos, *hog, "--name", "far", "--metric", "l2"),
        ("embed", path, *hog, "--table", "works", "--blob-column", "scan"),
        ("index", path, "images", "--name", "default"),
        ("reduce", path, "images", "--dims", "8", "--to", "small"),
        ("map", path, "images", "--method", "pca"),
        ("duplicates", path, "images"),
        ("clusters", path, "images", "--k", "3"),
        ("evaluate", path, "images", "--label", "label"),
        ("evaluate", path, "images", "--label", "label", "--name", "small"),
    ):
        done = command(*arguments)
        assert done.exit_code == 0, (arguments, done.output)
    with opened(path) as conn, db.transaction(conn):
        add_what_people_do(conn)
    return path


def add_what_people_do(conn: db.sqlite3.Connection) -> None:
    """A decision, a saved question, searches and a click, for the first collection."""
    sha256 = "select sha256 from _image_similarity_items where id = 1"
    conn.execute(
        "insert into _image_similarity_decisions (collection_id, step, pk, sha256, "
        f"decision, tier, actor) values (1, 1, 1, ({sha256}), 'mark', 'identical', 'root')"
    )
    conn.execute(
        "insert into _image_similarity_questions (collection_id, name, question, actor) "
        "values (1, 'Stripes', '_like=1', 'root')"
    )
    for number in range(3):
        conn.execute(
            "insert into _image_similarity_searches (collection_id, actor, page, question, "
            "offset, results, milliseconds) values (1, 'root', 'similar', ?, 0, 10, 1.5)",
            (f"_like={number + 1}",),
        )
    conn.execute(
        "insert into _image_similarity_clicks (collection_id, search_id, pk, rank) "
        "values (1, 1, 3, 2)"
    )
