"""Datasette's own pages, and ours, for every kind of table, key and name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import picture
from datasette.app import Datasette
from datasette.utils import tilde_encode
from datasette.utils.sqlite import sqlite3
from serving import (
    ROOT,
    ask,
    ask_json,
    change,
    link_to,
    links,
    open_datasette,
    parameters,
    pks,
    post_picture,
)

from datasette_image_similarity.collection import EncoderOptions, ImageCollection

HOG = EncoderOptions("hog")
ODD_KEYS = [
    "a/b",
    "a,b",
    "a~b",
    "é ü",
    "100%",
    "a.json",
    "-",
    "'\"<b>",
    "日本",
    "a+b&c=d",
    " ",
]


def similar_links(page: str) -> list[str]:
    return [link for link in links(page) if "/-/similar?_like=" in link]


@pytest.fixture
def site(gallery: Path) -> Datasette:
    return open_datasette(gallery)


async def test_table_page_shows_pictures_and_links(site: Datasette) -> None:
    page = await ask(site, "/gallery/images?_size=5")
    assert page.text.count("/gallery/images/-/thumbnail/") == 5
    assert page.text.count("Find similar") == 5
    assert "/gallery/images/-/search-by-image" in page.text
    assert "/-/image-similarity#gallery/images" in page.text
    assert "image_similarity.css" in page.text
    assert "add-picture" not in page.text
    assert "add-picture" in (await ask(site, "/gallery/images", ROOT)).text
    css = link_to(page.text, "image_similarity.css")
    assert (await ask(site, css)).status_code == 200


async def test_a_filtered_table_page_carries_its_filters_along(site: Datasette) -> None:
    page = await ask(site, "/gallery/images?label=red&id__gt=18&_sort_desc=id&_size=3")
    link = similar_links(page.text)[0]
    assert parameters(link) == [("_like", "24"), ("label", "red"), ("id__gt", "18")]
    answer = await ask_json(site, link.replace("similar?", "similar.json?"))
    assert sorted(map(int, pks(answer))) == [19, 20, 21, 22, 23]
    page = await ask(site, "/gallery/images?camera__isnull=1&label__not=&_where=id<3")
    link = similar_links(page.text)[0]
    assert sorted(parameters(link)[1:]) == [
        ("_where", "id<3"),
        ("camera__isnull", "1"),
        ("label__not", ""),
    ]
    assert (await ask(site, link)).status_code == 200


async def test_row_page_shows_the_picture_and_its_neighbours(site: Datasette) -> None:
    page = await ask(site, "/gallery/images/20")
    assert page.status_code == 200
    assert "/gallery/images/-/image/20" in page.text
    assert page.text.count("/gallery/images/-/thumbnail/") == 12
    assert "/gallery/images/-/thumbnail/20" not in page.text  # not twice
    assert "/gallery/images/-/similar?_like=20" in page.text


async def test_a_table_named_like_a_key_keeps_its_pictures(
    tmp_path: Path, photos: Path
) -> None:
    path = tmp_path / "gallery.db"
    with ImageCollection(path, "1") as collection:
        collection.embed(photos / "red", encoder=HOG)
    page = await ask(open_datasette(path), "/gallery/1")
    assert page.text.count("/gallery/1/-/thumbnail/") == 8


async def test_a_row_without_an_embedding_is_an_ordinary_row(gallery: Path) -> None:
    change(gallery, "insert into images (id, path) values (99, 'new.png')")
    site = open_datasette(gallery)
    page = await ask(site, "/gallery/images/99")
    assert page.status_code == 200
    assert "ims-row" not in page.text
    assert (await ask(site, "/gallery/images?id=99")).status_code == 200


async def test_nothing_at_all_on_other_tables(gallery: Path) -> None:
    change(
        gallery,
        "create table plain (id integer primary key, path text)",
        "insert into plain values (1, 'red/red-1.png')",
        "create view seen as select * from images",
    )
    site = open_datasette(gallery)
    for path in ("plain", "plain/1", "seen"):
        for actor in (None, ROOT):
            page = await ask(site, f"/gallery/{path}", actor)
            assert page.status_code == 200
            assert "ims-" not in page.text
            assert "image_similarity.css" not in page.text
            assert "Search by image" not in page.text
            assert "/-/add-picture" not in page.text


async def test_sql_results_are_left_alone(site: Datasette) -> None:
    page = await ask(site, "/gallery?sql=select+path+from+images")
    if page.status_code == 302:
        page = await ask(site, page.headers["location"])
    assert "ims-cell" not in page.text


async def test_json_of_the_table_is_as_ever(site: Datasette) -> None:
    answer = await ask_json(site, "/gallery/images.json?_shape=array")
    assert answer[0]["path"] == "blue/blue-0.png"


def keyed(path: Path, kind: str) -> list[str]:
    """A table `things` of that kind; its keys in row-path form."""
    connection = sqlite3.connect(str(path))
    create = {
        "text": "create table things (k text primary key, content blob)",
        "compound": "create table things (k text, n integer, content blob, "
        "primary key (k, n))",
        "rowid": "create table things (k text, content blob)",
        "without rowid": "create table things (k text primary key, content blob) "
        "without rowid",
        "real": "create table things (k real primary key, content blob)",
    }[kind]
    found = []
    with connection:
        connection.execute(create)
        for number, key in enumerate(ODD_KEYS, 1):
            blob = picture("red", number)
            if kind == "compound":
                row = (key, number, blob)
                found.append(f"{tilde_encode(key)},{number}")
            elif kind == "real":
                row = (number + 0.5, blob)
                found.append(tilde_encode(f"{number + 0.5}"))
            else:
                row = (key, blob)
                found.append(str(number) if kind == "rowid" else tilde_encode(key))
            marks = ", ".join("?" * len(row))
            connection.execute(f"insert into things values ({marks})", row)
    connection.close()
    return found


async def as_sql(site: Datasette, url: str) -> Any:
    """The answer behind "View as SQL"."""
    page = await ask(site, url)
    link = next(link for link in links(page.text) if "sql=" in link)
    path, _, arguments = link.partition("?")
    return await ask_json(site, f"{path}.json?{arguments}&_shape=objects")


@pytest.mark.parametrize("kind", ["text", "compound", "rowid", "without rowid", "real"])
async def test_every_kind_of_key(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "shop.db"
    keys = keyed(path, kind)
    with ImageCollection(path, "things") as collection:
        assert collection.embed(blob_column="content", encoder=HOG).embedded == len(keys)
    site = open_datasette(path)
    page = await ask(site, "/shop/things")
    assert page.status_code == 200
    found = [dict(parameters(link))["_like"] for link in similar_links(page.text)]
    assert sorted(found) == sorted(keys)
    for link, key in zip(similar_links(page.text), found, strict=True):
        answer = await ask_json(site, link.replace("similar?", "similar.json?"))
        assert sorted([*pks(answer), key]) == sorted(keys)
        assert (await ask(site, f"/shop/things/-/thumbnail/{key}")).status_code == 200
        row = await ask(site, f"/shop/things/{key}")
        assert row.status_code == 200
        assert f"/shop/things/-/image/{key}" in row.text
        assert 'class="ims-cell"' not in row.text  # the picture is there once
        result = await as_sql(site, link)
        assert len(result["rows"]) == len(keys) - 1
    page = await ask(site, link)
    for url in links(page.text):
        if url.startswith("/shop/things/") and "/-/" not in url:
            assert (await ask(site, url)).status_code == 200, url
    csv = await ask(site, link.replace("similar?", "similar.csv?"))
    assert len(csv.text.strip().splitlines()) == len(keys)
    both = "&".join(f"_like={key}" for key in keys[:2])
    answer = await ask_json(site, f"/shop/things/-/similar.json?{both}")
    assert answer["total"] == len(keys) - 2
    result = await as_sql(site, f"/shop/things/-/similar?{both}")
    assert len(result["rows"]) == len(keys) - 2


@pytest.mark.parametrize("base", ["/", "/pre/fix/"])
@pytest.mark.parametrize("name", ["my photos/é", "a.b", "50% ~ \"q\" 'x'", "x/-/y"])
async def test_names_of_tables_and_a_base_url(
    tmp_path: Path, photos: Path, name: str, base: str
) -> None:
    path = tmp_path / "ga.l é.db"
    with ImageCollection(path, name) as collection:
        collection.embed(photos, encoder=HOG, label_from_folder=True)
    site = open_datasette(path, settings={"base_url": base})

    async def asked(url: str) -> Any:  # Datasette's own client puts the base in front
        return await ask(site, "/" + url.removeprefix(base))

    start = f"{base}{tilde_encode('ga.l é')}/{tilde_encode(name)}"
    waiting, seen = [start, f"{base}-/image-similarity"], set()
    while waiting and len(seen) < 40:
        url = waiting.pop(0).partition("#")[0]
        if url in seen:
            continue
        seen.add(url)
        response = await asked(url)
        assert response.status_code == 200, (url, response.text[:300])
        if not response.headers["content-type"].startswith("text/html"):
            continue
        pictures = re.findall(r'<img[^>]* src="([^"]+)"', response.text)
        for found in [*links(response.text), *pictures]:
            ours = "/-/" in found or "similarity" in found or found == f"{start}/3"
            if ours and not found.startswith(("http", "data:")):
                assert found.startswith(base), (url, found)
                waiting.append(found)
    assert f"{start}/-/thumbnail/1" in seen
    plain = "/" + start.removeprefix(base)
    response = await post_picture(site, f"{plain}/-/search-by-image?label=red", picture())
    assert response.json()["total"] == 8
    answer = (await asked(f"{start}/-/similar.json?_like=1&_size=2")).json()
    assert answer["next_url"].startswith(f"http://localhost{start}/-/similar.json?")
    page = await asked(f"{start}/-/similar?_like=1&_size=2")
    sql = next(url for url in links(page.text) if "sql=" in url)
    assert "rows-and-columns" in (await asked(sql)).text


async def test_an_immutable_database(gallery: Path) -> None:
    site = open_datasette(immutables=[str(gallery)])
    for path in (
        "images",
        "images/1",
        "images/-/similar?_like=1",
        "images/-/thumbnail/1",
        "images/-/image/1",
        "images/-/search-by-image",
    ):
        page = await ask(site, f"/gallery/{path}", ROOT)
        assert page.status_code == 200, path
        if path == "images":
            assert "add-picture" not in page.text
            assert page.text.count("Find similar") == 24
    found = await post_picture(site, "/gallery/images/-/search-by-image", picture())
    assert found.json()["total"] == 24
    refused = await post_picture(site, "/gallery/images/-/add-picture", picture(), ROOT)
    assert refused.status_code == 403
    assert (await ask(site, "/-/image-similarity")).status_code == 200


async def test_a_database_in_memory(gallery: Path) -> None:
    site = open_datasette(memory=True)
    database = site.add_memory_database("copied")

    def copy(conn: sqlite3.Connection) -> None:
        conn.commit()
        source = sqlite3.connect(str(gallery))
        source.backup(conn)
        source.close()

    await database.execute_write_fn(copy, transaction=False) if hasattr(
        site, "allowed"
    ) else await database.execute_write_fn(copy)
    answer = await ask_json(site, "/copied/images/-/similar.json?_like=1")
    assert answer["total"] == 23
    assert "Find similar" in (await ask(site, "/copied/images")).text


async def test_several_databases_with_the_same_table(gallery: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    folder = tmp_path / "others"
    folder.mkdir()
    (folder / "only.png").write_bytes(picture("green", 50))
    with ImageCollection(other) as collection:
        collection.embed(folder, encoder=HOG)
    site = open_datasette(gallery, other)
    first = await ask_json(site, "/gallery/images/-/similar.json?_like=1")
    second = await ask_json(site, "/other/images/-/similar.json?_like=1")
    assert (first["total"], second["total"]) == (23, 0)
    page = await ask(site, "/other/images/1")
    assert "Nothing else has been embedded yet" in page.text


async def test_embedding_while_serving_is_seen_at_once(
    tmp_path: Path, photos: Path
) -> None:
    path = tmp_path / "gallery.db"
    change(path, "create table images (id integer primary key, path text not null)")
    site = open_datasette(path)
    assert "Find similar" not in (await ask(site, "/gallery/images")).text
    change(path, "insert into images values (1, 'red/red-1.png')")
    with ImageCollection(path) as collection:
        collection.embed(path_column="path", root=photos, encoder=HOG)
    assert "Find similar" in (await ask(site, "/gallery/images")).text
    with ImageCollection(path) as collection:
        collection.remove()
    page = await ask(site, "/gallery/images")
    assert page.status_code == 200
    assert "Find similar" not in page.text


async def test_a_configured_column_gets_the_pictures(gallery: Path) -> None:
    plugin = {"image_column": "name", "caption": "label"}
    site = open_datasette(gallery, plugin=plugin)
    page = await ask(site, "/gallery/images?_col=id&_col=name&_size=3")
    assert page.text.count("/-/thumbnail/") == 3
    page = await ask(site, "/gallery/images/-/similar?_like=24&_size=1")
    assert 'alt="red"' in page.text


async def test_columns_may_be_left_out(site: Datasette) -> None:
    for query in ("_nocol=path", "_col=label", "_col=path", "_nocol=name&_size=2"):
        assert (await ask(site, f"/gallery/images?{query}")).status_code == 200, query


async def test_an_empty_cell_has_no_picture(gallery: Path) -> None:
    change(gallery, "update images set path = '' where id = 1")
    page = await ask(open_datasette(gallery), "/gallery/images?_size=2")
    assert page.text.count("Find similar") == 1


async def test_html_in_cells_is_escaped(gallery: Path) -> None:
    nasty = "<script>alert(1)</script>"
    change(
        gallery,
        f"update images set name = '{nasty}', label = '{nasty}'",
        """update images set path = '"><img onerror=alert(1)>' where id = 2""",
        """update _image_similarity_items set path = '"><img onerror=alert(1)>'
            where pk = 2""",
    )
    site = open_datasette(gallery)
    for path in ("images", "images/1", "images/2", "images/-/similar?_like=1&_like=2"):
        page = await ask(site, f"/gallery/{path}")
        assert page.status_code == 200
        assert nasty not in page.text
        assert "<img onerror" not in page.text
    page = await ask(site, f"/gallery/images/-/similar?_like=1&label={nasty}")
    assert nasty not in page.text
