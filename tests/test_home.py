"""`/-/image-similarity`: a card for every collection that the actor may see."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from datasette.app import Datasette
from serving import ask, ask_json, change, links, open_datasette

from datasette_image_similarity.collection import EncoderOptions, ImageCollection

HOME = "/-/image-similarity"


@pytest.fixture
def site(gallery: Path) -> Datasette:
    return open_datasette(gallery)


async def test_a_card_with_samples_and_links(site: Datasette) -> None:
    page = await ask(site, HOME)
    assert page.status_code == 200
    thumbnails = re.findall(r'<img[^>]* src="([^"]+)"', page.text)
    assert len(set(thumbnails)) == 9
    assert (await ask(site, thumbnails[-1])).status_code == 200
    assert 'id="gallery/images"' in page.text
    for link in links(page.text):
        if "/gallery/" in link:
            assert (await ask(site, link)).status_code == 200, link
    # Samples from all over the collection, not the first nine.
    shown = [int(url.rpartition("/")[2]) for url in thumbnails]
    assert {(pk - 1) // 8 for pk in shown} == {0, 1, 2}


async def test_json(site: Datasette) -> None:
    answer = await ask_json(site, f"{HOME}.json")
    assert answer["ok"] is True
    (card,) = answer["collections"]
    assert card["database"] == "gallery"
    assert card["table"] == "images"
    assert card["embedded"] == 24
    assert card["table_url"] == "/gallery/images"


async def test_the_menu_leads_here(site: Datasette) -> None:
    assert HOME in links((await ask(site, "/")).text)


async def test_nothing_embedded_says_how(tmp_path: Path) -> None:
    path = tmp_path / "plain.db"
    change(path, "create table t (id integer primary key)")
    page = await ask(open_datasette(path), HOME)
    assert page.status_code == 200
    assert "datasette image-similarity embed" in page.text


async def test_failures_are_counted(gallery: Path, photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    with ImageCollection(gallery) as collection:
        collection.embed()
    page = await ask(open_datasette(gallery), HOME)
    assert "Failed" in page.text
    assert "_image_similarity_failures" in page.text


async def test_one_broken_collection_does_not_hide_the_others(
    gallery: Path, photos: Path
) -> None:
    for table, statement in (
        ("gone", "drop table gone"),
        ("narrow", "alter table narrow rename column path to file"),
    ):
        with ImageCollection(gallery, table) as collection:
            collection.embed(photos / "red", encoder=EncoderOptions("hog"))
        change(gallery, statement)
    site = open_datasette(gallery)
    for url in (HOME, f"{HOME}.json"):
        page = await ask(site, url)
        assert page.status_code == 200, page.text
        assert "images" in page.text
    for path in ("/gallery/narrow", "/gallery/narrow/1", "/gallery/images", "/gallery"):
        assert (await ask(site, path)).status_code == 200, path
    for path in ("gone", "narrow"):
        response = await ask(site, f"/gallery/{path}/-/similar?_like=1")
        assert response.status_code == 404


async def test_a_newer_schema_is_not_shown(gallery: Path) -> None:
    change(gallery, "update _image_similarity_schema set version = 99")
    site = open_datasette(gallery)
    assert (await ask_json(site, f"{HOME}.json"))["collections"] == []
    assert (await ask(site, "/gallery/images")).status_code == 200
    assert (await ask(site, "/gallery/images/1")).status_code == 200
