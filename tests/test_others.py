"""Others write to the database: no answer has a wrong row. See tests/stress/others.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import picture
from core import embed, faults, sql
from serving import ask, open_datasette
from stress.others import pictures_known, run

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import CollectionError
from datasette_image_similarity.query import Query, search


def test_whatever_others_do() -> None:
    with pictures_known() as known:
        done = run(60, 0, known, length=30, shrink=False)
    assert sum(done.values()) >= 60


def found(path: Path, table: str) -> list[object]:
    """The keys of all rows that a search finds."""
    with ImageCollection(path, table) as collection:
        it, conn = collection._open()
        return sorted(hit.pk for hit in search(conn, it, ask_all(conn, it)).hits)


def ask_all(conn: db.Connection, collection: db.Collection) -> Query:
    vector = conn.execute(f"select embedding from {collection.vectors}").fetchone()[0]
    return Query(vector, k=100)


@pytest.fixture
def named(tmp_path: Path, photos: Path) -> Path:
    """Pictures by a key and a path that fold case."""
    path = tmp_path / "named.db"
    sql(
        path,
        "create table named (name text primary key collate nocase, "
        "path text collate nocase)",
    )
    for n in range(3):
        sql(path, "insert into named values (?, ?)", (f"a{n}", f"red/red-{n}.png"))
    embed(path, table="named", path_column="path", root=photos)
    return path


def test_a_key_that_differs_in_case_is_another_row(named: Path) -> None:
    sql(named, "update named set name = 'A0' where name = 'a0'")
    assert found(named, "named") == ["a1", "a2"]
    embed(named, table="named")
    assert found(named, "named") == ["A0", "a1", "a2"]
    assert faults(named) == []


def test_a_path_that_differs_in_case_is_another_picture(named: Path) -> None:
    sql(named, "update named set path = 'RED/red-0.png' where name = 'a0'")
    assert found(named, "named") == ["a1", "a2"]


def test_a_key_that_became_compound(named: Path) -> None:
    sql(named, "alter table named rename to old")
    sql(
        named,
        "create table named (name text, n integer, path text, primary key (name, n))",
    )
    sql(named, "insert into named select name, 1, path from old")
    assert found(named, "named") == []
    assert faults(named) == ["items whose row is gone or has changed"]
    embed(named, table="named")
    assert found(named, "named") == [["a0", 1], ["a1", 1], ["a2", 1]]


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    path = tmp_path / "blobs.db"
    sql(path, "create table blobs (id integer primary key, data blob)")
    for n in range(3):
        sql(path, "insert into blobs values (?, ?)", (n, padded(n)))
    embed(path, table="blobs", blob_column="data")
    return path


def padded(seed: int) -> bytes:
    """A picture of a length that all of them have."""
    return picture("red", seed).ljust(20_000, b"\0")


async def test_a_row_with_another_picture_is_nothing_to_ask_with(blobs: Path) -> None:
    sql(blobs, "update blobs set data = ? where id = 1", (padded(7),))
    with ImageCollection(blobs, "blobs") as collection:
        with pytest.raises(CollectionError, match="no embedding of its present picture"):
            collection.similar(1)
        with pytest.raises(CollectionError, match="no embedding"):
            collection.vector(1)
    site = open_datasette(blobs)
    for page in ("similar?_like=1", "similar.json?_like=1", "thumbnail/1", "image/1"):
        assert (await ask(site, f"/blobs/blobs/-/{page}")).status_code == 404
    response = await ask(
        site, "/blobs.json?sql=select+image_embedding('blobs',+1)+as+e&_shape=array"
    )
    assert response.status_code != 200 or response.json() == [{"e": None}]
    embed(blobs, table="blobs")
    assert (await ask(site, "/blobs/blobs/-/thumbnail/1")).status_code == 200


def test_a_file_whose_row_names_another_one_gets_a_row_in_the_same_run(
    copied: Path,
) -> None:
    sql(copied, "update images set path = 'elsewhere.png' where id = 3")
    embed(copied)
    assert len(found(copied, "images")) == 24
    assert faults(copied) == []
