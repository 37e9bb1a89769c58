"""Adding a picture in the browser: a row, its file or BLOB, and its embedding at once."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import picture
from datasette.app import Datasette
from datasette.utils.sqlite import sqlite3
from serving import IS_ONE, ROOT, ask, ask_json, change, open_datasette, post_picture

from datasette_image_similarity.collection import EncoderOptions, ImageCollection
from datasette_image_similarity.verify import verify_database

ADD = "/gallery/images/-/add-picture"
HOG = EncoderOptions("hog")


@pytest.fixture
def site(gallery: Path) -> Datasette:
    return open_datasette(gallery)


def rows(path: Path, sql: str) -> list[tuple]:
    connection = sqlite3.connect(str(path))
    found = [tuple(row) for row in connection.execute(sql)]
    connection.close()
    return found


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def inputs(page: str) -> list[str]:
    names = re.findall(r'<input[^>]* name="([^"]+)"', page)
    return [name for name in names if name != "csrftoken"]  # of the log-out button


def faults(path: Path) -> list[Any]:
    with ImageCollection(path) as collection:
        return verify_database(collection.connect())


async def test_a_picture_becomes_a_row_that_is_found_at_once(
    gallery: Path, photos: Path
) -> None:
    site = open_datasette(gallery)
    before = files(photos)
    new = picture("red", 500)
    response = await post_picture(site, ADD, new, ROOT, fields={"label": "mine"})
    assert response.status_code == 201, response.text
    assert response.json() == {"ok": True, "pk": "25", "url": "/gallery/images/25"}
    (added,) = files(photos) - before
    assert added.startswith("added/")
    assert (photos / added).read_bytes() == new
    row = (await ask_json(site, "/gallery/images/25.json?_shape=objects"))["rows"][0]
    assert row["path"] == added
    assert (row["label"], row["format"], row["width"]) == ("mine", "PNG", 80)
    answer = await ask_json(site, "/gallery/images/-/similar.json?_like=25")
    assert answer["total"] == 24
    found = (await post_picture(site, "/gallery/images/-/search-by-image", new)).json()
    assert found["rows"][0]["pk"] == "25"
    assert (await ask(site, "/gallery/images/-/thumbnail/25")).status_code == 200
    assert (await ask(site, "/gallery/images/-/image/25")).status_code == 200
    assert faults(gallery) == []
    with ImageCollection(gallery) as collection:  # and embed has nothing left to do
        assert collection.embed().embedded == 0
    assert len(rows(gallery, "select 1 from images")) == 25


async def test_the_form_leads_to_the_new_row(site: Datasette) -> None:
    page = await ask(site, ADD, ROOT)
    assert page.status_code == 200
    assert inputs(page.text) == ["image", "label"]  # the rest is known from the file
    response = await post_picture(site, ADD, picture("red", 500), ROOT, json=False)
    assert response.status_code == 302
    page = await ask(site, response.headers["location"], ROOT)
    assert page.status_code == 200
    assert "ims-row" in page.text


async def test_who_may_add(gallery: Path, photos: Path) -> None:
    site = open_datasette(gallery)
    before = files(photos)
    for actor in (None, {"id": "somebody"}):
        assert (await ask(site, ADD, actor)).status_code == 403
        response = await post_picture(site, ADD, picture(), actor)
        assert response.status_code == 403
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://example.com"}):
        response = await post_picture(site, ADD, picture(), ROOT, headers=headers)
        assert response.status_code == 403
    assert files(photos) == before
    assert len(rows(gallery, "select 1 from images")) == 24


@pytest.mark.skipif(not IS_ONE, reason="Datasette 0.65 has no insert-row in configuration")
async def test_insert_row_is_the_permission(gallery: Path) -> None:
    config = {"permissions": {"insert-row": {"id": "editor"}}}
    site = open_datasette(gallery, config=config)
    editor = {"id": "editor"}
    assert (await ask(site, ADD, editor)).status_code == 200
    assert "add-picture" in (await ask(site, "/gallery/images", editor)).text
    assert (await ask(site, ADD, {"id": "other"})).status_code == 403


async def test_the_same_picture_twice(gallery: Path, photos: Path) -> None:
    """Two rows, two files: one can go without the other."""
    site = open_datasette(gallery)
    for _ in range(2):
        assert (await post_picture(site, ADD, picture("red", 5), ROOT)).status_code == 201
    paths = rows(gallery, "select path from images where id > 24")
    assert len(set(paths)) == 2
    answer = await ask_json(site, "/gallery/images/-/similar.json?_like=25&_size=2")
    assert {row["score"] for row in answer["rows"]} == {1.0}


async def test_a_row_that_fails_leaves_no_file(gallery: Path, photos: Path) -> None:
    change(gallery, "create unique index one_label on images (label) where id > 24")
    site = open_datasette(gallery)
    first = await post_picture(site, ADD, picture("red", 5), ROOT, fields={"label": "x"})
    assert first.status_code == 201
    before = files(photos)
    for as_json in (True, False):
        response = await post_picture(
            site, ADD, picture("red", 5), ROOT, fields={"label": "x"}, json=as_json
        )
        assert response.status_code == 400
        assert "UNIQUE" in response.text
    assert 'value="x"' in response.text  # what was typed is still there
    assert files(photos) == before
    assert (await ask(site, "/gallery/images/-/image/25")).status_code == 200
    assert faults(gallery) == []


async def test_what_is_no_picture_is_not_stored(gallery: Path, photos: Path) -> None:
    site = open_datasette(gallery, plugin={"upload_max_bytes": 30_000})
    before = files(photos)
    for data, status in (
        (b"<svg/>", 400),
        (b"", 400),
        (None, 400),
        (picture()[:200], 400),
        (picture() + bytes(40_000), 413),
    ):
        for as_json in (True, False):
            response = await post_picture(site, ADD, data, ROOT, json=as_json)
            assert response.status_code == status, response.text
    assert files(photos) == before
    assert len(rows(gallery, "select 1 from images")) == 24


async def test_the_folder_may_not_lead_out_of_the_root(
    gallery: Path, photos: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (photos / "added").symlink_to(outside)
    response = await post_picture(open_datasette(gallery), ADD, picture(), ROOT)
    assert response.status_code == 403
    assert files(outside) == set()


async def test_no_trusted_root_no_form(
    gallery: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasette_image_similarity.trust.trusted_roots", lambda _: [])
    site = open_datasette(gallery)
    response = await post_picture(site, ADD, picture(), ROOT)
    assert response.status_code == 403
    assert "root" in response.json()["error"]
    site = open_datasette(gallery, plugin={"roots": [str(photos)]})
    assert (await post_picture(site, ADD, picture(), ROOT)).status_code == 201


async def test_a_path_column_with_columns_to_fill_in(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "gallery.db"
    change(
        path,
        "create table images (sku text, size integer, file text, title text not null, "
        "price real, stock integer not null default 3, "
        "twice generated always as (price * 2), primary key (sku, size))",
        "insert into images (sku, size, file, title) values "
        "('a', 1, 'red/red-1.png', 'A'), ('b/2', 2, 'red/red-2.png', 'B')",
    )
    with ImageCollection(path) as collection:
        collection.embed(path_column="file", root=photos, encoder=HOG)
    site = open_datasette(path)
    page = await ask(site, ADD, ROOT)
    assert inputs(page.text) == ["image", "sku", "size", "title", "price", "stock"]
    required = re.findall(r'<input[^>]* name="([^"]+)"[^>]* required>', page.text)
    assert required == ["image", "sku", "size", "title"]
    fields = {"sku": "c/3", "size": "7", "title": "C", "price": "1.5", "file": "/etc/x"}
    missing = {**fields, "title": ""}
    response = await post_picture(site, ADD, picture("red", 9), ROOT, fields=missing)
    assert response.status_code == 400
    response = await post_picture(site, ADD, picture("red", 9), ROOT, fields=fields)
    assert response.status_code == 201, response.text
    assert response.json()["pk"] == "c~2F3,7"
    found = rows(path, "select size, price, stock, file from images where sku = 'c/3'")
    assert found[0][:3] == (7, 1.5, 3)
    assert found[0][3].startswith("added/")
    answer = await ask_json(site, "/gallery/images/-/similar.json?_like=c~2F3,7")
    assert answer["total"] == 2
    again = await post_picture(site, ADD, picture("red", 9), ROOT, fields=fields)
    assert again.status_code == 400


@pytest.mark.parametrize("key", ["id integer primary key,", "", "id text primary key,"])
async def test_a_blob_column(tmp_path: Path, key: str) -> None:
    path = tmp_path / "gallery.db"
    change(path, f"create table images ({key} title text, content blob)")
    connection = sqlite3.connect(str(path))
    with connection:
        connection.execute("insert into images (content) values (?)", (picture("red", 1),))
        if "text" in key:
            connection.execute("update images set id = 'one'")
    connection.close()
    with ImageCollection(path) as collection:
        collection.embed(blob_column="content", encoder=HOG)
    site = open_datasette(path)
    new = picture("green", 5)
    fields = {"title": "T", **({"id": "a b/ü"} if "text" in key else {})}
    response = await post_picture(site, ADD, new, ROOT, fields=fields)
    assert response.status_code == 201, response.text
    pk = response.json()["pk"]
    assert pk == ("a+b~2F~C3~BC" if "text" in key else "2")
    assert rows(path, "select content from images where title = 'T'") == [(new,)]
    found = await post_picture(site, "/gallery/images/-/search-by-image", new)
    assert found.json()["rows"][0]["pk"] == pk
    assert (await ask(site, response.json()["url"])).status_code == 200


async def test_many_at_once(gallery: Path, photos: Path) -> None:
    site = open_datasette(gallery, plugin={"upload_queue": 5})
    tasks = [post_picture(site, ADD, picture("red", n), ROOT) for n in range(12)]
    codes = [response.status_code for response in await asyncio.gather(*tasks)]
    assert set(codes) <= {201, 429}
    assert codes.count(201) >= 5
    assert len(rows(gallery, "select 1 from images")) == 24 + codes.count(201)
    assert len(files(photos / "added")) == codes.count(201)
    assert faults(gallery) == []


async def test_a_database_that_is_locked(gallery: Path, photos: Path) -> None:
    site = open_datasette(gallery)
    await post_picture(site, ADD, picture("red", 1), ROOT)
    before = files(photos)
    database = site.databases["gallery"]
    await database.execute_write_fn(lambda conn: conn.execute("pragma busy_timeout = 50"))
    other = sqlite3.connect(str(gallery), isolation_level=None)
    other.execute("begin immediate")
    try:
        response = await post_picture(site, ADD, picture("red", 2), ROOT)
    finally:
        other.close()
    assert response.status_code == 503
    assert files(photos) == before
