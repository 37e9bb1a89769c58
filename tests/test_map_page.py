"""The page with the map as a server sends it: what is there without any script."""

from __future__ import annotations

import csv
import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import picture
from core import command, embed, make_older, opened, sql
from serving import ROOT, ask, ask_json, link_to, links, open_datasette, parameters

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.collection import EncoderOptions

pytest.importorskip("scipy", reason="the grid needs scipy")
MAP = "/gallery/images/-/map"
LEFT = "-2,-2,0,-2,0,2,-2,2"


@pytest.fixture
def mapped(copied: Path) -> Path:
    """The gallery with a map."""
    assert command("map", copied, "--method", "pca").exit_code == 0
    return copied


async def shown(site: Any, url: str = MAP, **options: Any) -> str:
    response = await ask(site, url, **options)
    assert response.status_code == 200, response.text[:500]
    return response.text


def captions(page: str) -> list[str]:
    return re.findall(r'<img src="[^"]+" alt="([^"]*)"', page)


def heading(page: str) -> str:
    return re.search(r"<h2>(.*?)</h2>", page)[1]


async def test_the_list_has_every_picture_page_by_page(mapped: Path) -> None:
    site = open_datasette(mapped, plugin={"page_size": 10})
    page = await shown(site)
    assert heading(page) == "All 24 pictures"
    seen = captions(page)
    while "Next page" in page:
        page = await shown(site, link_to(page, "_next="))
        seen += captions(page)
    rows = await ask_json(site, f"{MAP}.json?_size=24")
    assert seen == [row["caption"] for row in rows["rows"]]
    assert len(set(seen)) == 24
    assert MAP in links(page)  # back to the first page


async def test_filters_and_a_region_narrow_the_list_the_table_and_the_files(
    mapped: Path,
) -> None:
    site = open_datasette(mapped)
    query = f"label=red&_image_region={LEFT}"
    page = await shown(site, f"{MAP}?{query}")
    rows = (await ask_json(site, f"{MAP}.json?{query}&_size=24"))["rows"]
    assert heading(page) == f"{len(rows)} selected"
    assert 0 < len(rows) <= 8
    wanted = sorted(row["pk"] for row in rows)
    found = await ask_json(site, link_to(page, "/gallery/images.json"))
    rows = found["rows"] if isinstance(found, dict) else found
    assert sorted(str(row["id"]) for row in rows) == wanted
    text = (await ask(site, link_to(page, "/gallery/images.csv"))).text
    assert sorted(row["id"] for row in csv.DictReader(io.StringIO(text))) == wanted
    table = await shown(site, link_to(page, "/gallery/images?"))
    assert {f"/gallery/images/{pk}" for pk in wanted} <= set(links(table))
    for ending in ("html", "zip"):
        response = await ask(site, link_to(page, f"export.{ending}"))
        assert response.status_code == 200
    # The drawing is told of the filter, and chooses by itself what lies in the region.
    points = re.search(r'data-points="([^"]+)"', page)[1]
    assert parameters(points.replace("&amp;", "&")) == [("label", "red")]


async def test_similar_to_a_selection_takes_some_from_everywhere(
    mapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasette_image_similarity.web.map.LIKES", 5)
    site = open_datasette(mapped)
    assert "Find similar to these" not in await shown(site)
    page = await shown(site, f"{MAP}?label__in=red,blue")
    rows = (await ask_json(site, f"{MAP}.json?label__in=red,blue&_size=24"))["rows"]
    order = [row["pk"] for row in rows]
    url = re.search(r'href="([^"]+)">Find similar to these', page)[1]
    likes = [pk for _, pk in parameters(url.replace("&amp;", "&"))]
    at = [order.index(pk) for pk in likes]
    assert len(at) == 5
    assert {b - a for a, b in pairwise(at)} <= {3, 4}
    assert (await ask(site, url.replace("&amp;", "&"))).status_code == 200


async def test_nothing_fits(mapped: Path) -> None:
    page = await shown(open_datasette(mapped), f"{MAP}?label=purple")
    assert heading(page) == "0 of 24 pictures"
    assert "No picture of this map fits" in page
    assert "Find similar to these" not in page


@pytest.mark.parametrize("older", [False, True])
async def test_without_a_map_it_says_how_to_make_one(copied: Path, older: bool) -> None:
    if older:
        make_older(copied)
    page = await shown(open_datasette(copied))
    assert "datasette image-similarity map gallery.db images" in page
    assert "<canvas" not in page
    # And the words are right.
    assert command("map", copied, "images", "--method", "pca").exit_code == 0
    assert "<canvas" in await shown(open_datasette(copied))


async def test_newer_pictures_are_counted(gallery: Path, photos: Path) -> None:
    assert command("map", gallery, "--method", "pca").exit_code == 0
    (photos / "red" / "new.png").write_bytes(picture("red", 77))
    embed(gallery, photos)
    page = await shown(open_datasette(gallery))
    assert "1 picture is newer than this map" in page
    assert heading(page) == "All 24 pictures"


async def test_deleted_rows_are_not_listed(mapped: Path) -> None:
    sql(mapped, "delete from images where label = 'red'")
    page = await shown(open_datasette(mapped))
    assert heading(page) == "All 16 pictures"
    assert not any(caption.startswith("red") for caption in captions(page))


@pytest.mark.parametrize("private", ["table", "database"])
async def test_a_denied_table_has_no_map(mapped: Path, private: str) -> None:
    block = {"allow": {"id": "root"}}
    inner = {"tables": {"images": block}} if private == "table" else block
    site = open_datasette(mapped, config={"databases": {"gallery": inner}})
    response = await ask(site, MAP)
    assert response.status_code == 403
    assert "red-" not in response.text
    assert heading(await shown(site, actor=ROOT)) == "All 24 pictures"


async def test_an_immutable_database_has_its_map(mapped: Path) -> None:
    page = await shown(open_datasette(immutables=[str(mapped)]))
    assert heading(page) == "All 24 pictures"


async def test_json_is_had_by_the_accept_header(mapped: Path) -> None:
    site = open_datasette(mapped)
    answer = await ask_json(site, MAP, headers={"accept": "application/json"})
    assert answer["total"] == 24


async def test_a_collection_that_was_named_stays(mapped: Path) -> None:
    site = open_datasette(mapped)
    page = await shown(site, f"{MAP}?_collection=default")
    for part in ("points", "columns", "column", "pictures", "atlas"):
        url = re.search(rf'data-{part}="([^"]+)"', page)[1]
        assert "_collection=default" in url, part
    assert "_collection=default" in link_to(page, "/gallery/images.csv")


async def test_odd_keys_and_hostile_text(tmp_path: Path) -> None:
    path = tmp_path / "odd.db"
    table = 'it\'s <b>"odd"'
    with opened(path) as conn:
        quoted = '"' + table.replace('"', '""') + '"'
        conn.execute(
            f"create table {quoted} (a text, b integer, picture blob, title text, "
            "primary key (a, b))"
        )
        for number in range(6):
            conn.execute(
                f"insert into {quoted} values (?, ?, ?, ?)",
                (f"a/{number},'", number, picture("red", number), "<script>alert(1)"),
            )
    embed(path, None, table, blob_column="picture", encoder=EncoderOptions("hog"))
    with ImageCollection(path, table) as collection:
        collection.map(method="pca")
    site = open_datasette(path)
    base = site.urls.table("odd", table)
    page = await shown(site, f"{base}/-/map?_size=2")
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert captions(page) == ["&lt;script&gt;alert(1)"] * 2
    row = link_to(page, f"{base}/a")
    assert (await ask(site, row)).status_code == 200
    page = await shown(site, f"{base}/-/map?_image_region=-2,-2,2,-2,2,2,-2,2")
    assert heading(page) == "6 selected"
    assert (await ask(site, link_to(page, "_like="))).status_code == 200
