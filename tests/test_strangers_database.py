"""A database from a stranger may hold anything in our tables: nothing else suffers."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest
from core import command, opened, refused
from datasette.utils.sqlite import sqlite3
from serving import IS_ONE, ROOT, ask, open_datasette

from datasette_image_similarity import database as db
from datasette_image_similarity.distances import random_pairs
from datasette_image_similarity.index import IndexCache, ResidentLists


def plant(path: Path, statement: str) -> list[tuple]:
    """Run SQL as anyone can, past the checks of this package."""
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("pragma ignore_check_constraints = on")
        return conn.execute(statement).fetchall()


PLANTED = (
    "update _image_similarity_collections set metric = 'x'",
    "update _image_similarity_collections set table_name = x'6162'",
    "update _image_similarity_collections set name = x'ff00'",
    "update _image_similarity_collections set dimensions = 'abc'",
    "update _image_similarity_collections set encoder = '{}'",
    "update _image_similarity_collections set pictures = '/'",
    "update _image_similarity_collections set pictures = -1",
    "update _image_similarity_schema set version = 'zz'",
    "update _image_similarity_schema set version = -1",
    "delete from _image_similarity_schema",
    "alter table _image_similarity_collections rename column metric to x",
    "update _image_similarity_items set sha256 = 'a' || char(13, 10) || 'X-Planted: 1'",
    "update _image_similarity_thumbnails set webp = 12345",
)


@pytest.mark.parametrize("statement", PLANTED)
async def test_pages_of_other_databases_go_on_working(
    statement: str, gallery: Path, tmp_path: Path
) -> None:
    planted = tmp_path / "planted.db"
    planted.write_bytes(gallery.read_bytes())
    plant(planted, statement)
    site = open_datasette(gallery, planted)
    for path in ("/", "/gallery", "/gallery/images", "/-/image-similarity"):
        assert (await ask(site, path)).status_code == 200, path
    found = (await ask(site, "/-/image-similarity.json")).json()["collections"]
    assert "gallery" in [card["database"] for card in found]
    for page in ("", "/1", "/-/similar?_like=1", "/-/thumbnail/1", "/-/image/1"):
        response = await ask(site, f"/planted/images{page}")
        assert response.status_code in (200, 400, 403, 404, 503), page
        assert "x-planted" not in response.headers


@pytest.mark.parametrize("statement", PLANTED)
def test_commands_say_so_in_one_line_and_remove_clears_it(
    statement: str, gallery: Path
) -> None:
    plant(gallery, statement)
    for arguments in (
        ("status", gallery),
        ("verify", gallery),
        ("similar", gallery, "images", "1"),
    ):
        result = command(*arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit)
    assert command("remove", "--yes", gallery).exit_code == 0
    names = plant(gallery, "select name from sqlite_master")
    assert not [name for (name,) in names if name.startswith("_image_similarity")]


@pytest.mark.parametrize(
    "parameters",
    [
        "id__in=[",
        "id__in=[1,{}]",
        '_through={"table":"x","column":"y","value":"z"}',
        "id__gt=99999999999999999999999",
        "_where=%00",
    ],
)
async def test_a_filter_that_cannot_be_read_is_told(parameters: str, gallery: Path) -> None:
    site = open_datasette(gallery)
    path = f"/gallery/images/-/similar.json?_like=1&{parameters}"
    response = await ask(site, path)
    assert response.status_code == 400
    assert json.loads(response.text)["ok"] is False


@pytest.mark.parametrize("number", ["'x'", "x'ff'"])
async def test_an_index_whose_lists_have_no_numbers(number: str, copied: Path) -> None:
    assert command("index", copied, "images").exit_code == 0
    plant(copied, f"update _image_similarity_lists set list = {number} || list")
    site = open_datasette(copied)
    for _ in range(2):  # then the lists are read into memory
        page = await ask(site, "/gallery/images/-/similar.json?_like=1")
    assert page.status_code == 400
    assert "index in this database is damaged" in page.json()["error"]
    assert "index is damaged" in command("verify", copied).output
    assert command("verify", copied, "--repair").exit_code == 0
    assert command("verify", copied).exit_code == 0


@pytest.mark.parametrize(
    "statement", ["drop table {}_rowids", "alter table {}_rowids drop column chunk_id"]
)
@pytest.mark.parametrize("table", ["_image_similarity_vectors_1", "theirs"])
async def test_a_vec0_table_that_would_crash_the_server(
    table: str, statement: str, copied: Path
) -> None:
    with opened(copied) as conn, conn:
        conn.execute("create virtual table theirs using vec0(v float[2])")
        conn.execute("insert into theirs (v) values ('[1, 2]')")
    plant(copied, statement.format(table))
    site = open_datasette(copied)
    sql = f"select+*+from+{table}+where+rowid=1"
    query = f"{'/-/query' if IS_ONE else ''}.json?sql={sql}"
    for page in ("", f"/{table}", f"/{table}/1", f"/{table}.json", query):
        status = (await ask(site, f"/gallery{page}", ROOT)).status_code
        assert status in (200, 400, 403, 404), page
    page = await ask(site, "/gallery/images/-/similar.json?_like=1")
    if table == "theirs":
        assert page.json()["total"] == 23
    else:
        assert page.status_code in (400, 404)
        assert "damaged" in page.json()["error"], page.json()


async def test_pictures_whose_size_is_no_number(copied: Path) -> None:
    assert command("map", copied, "images", "--method", "pca").exit_code == 0
    plant(copied, "update _image_similarity_items set width = 'x', height = x'ff'")
    site = open_datasette(copied)
    for page in ("map.json", "similar.json?_like=1", "similar?_like=1"):
        assert (await ask(site, f"/gallery/images/-/{page}")).status_code == 200, page


def test_a_time_that_is_none_is_no_reason_not_to_evaluate(copied: Path) -> None:
    plant(copied, "update _image_similarity_items set embedded_at = x'80'")
    assert command("evaluate", copied, "images", "--label", "label").exit_code == 0


@pytest.mark.parametrize("words", ["status", "verify", "default", "remove --yes"])
def test_names_do_not_reach_the_terminal_as_they_are(words: str, copied: Path) -> None:
    plant(copied, "update _image_similarity_collections set name = char(27) || ']0;x'")
    result = command(*words.split(), copied)
    assert "\\x1b]0;x" in result.output or words == "verify"
    assert "\x1b" not in result.output


def test_nothing_in_it_is_obeyed() -> None:
    """A process of its own: nobody takes an audit hook off again."""
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "stress.strangers", "--some", "3", "--few", "3"],
        env={**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


NARROWED = {
    "update _image_similarity_clusters set name = x'ff'": "_image_cluster=1",
    "update _image_similarity_clusterings set parameters = '['": "_image_cluster=none",
    "drop table _image_similarity_clusters": "_image_cluster=1",
    "drop table _image_similarity_grouped": "_image_group=1",
    "drop table _image_similarity_decisions": "_image_decision=mark",
    "drop table _image_similarity_points": "_image_region=0,0,1,0,1,1",
    "update _image_similarity_maps set tile = 'x'": "_image_region=0,0,1,0,1,1",
    "alter table _image_similarity_maps rename column tile to x": (
        "_image_region=0,0,1,0,1,1"
    ),
}


@pytest.mark.parametrize("statement", NARROWED)
async def test_what_our_filters_read_may_be_damaged(statement: str, copied: Path) -> None:
    assert command("map", copied, "--method", "pca").exit_code == 0
    assert command("clusters", copied, "--k", "3").exit_code == 0
    plant(copied, statement)
    site = open_datasette(copied)
    for page in ("images", "images.json", "images/-/similar", "images/-/map.json"):
        response = await ask(site, f"/gallery/{page}?{NARROWED[statement]}")
        assert response.status_code in (400, 404), (page, response.text)


@pytest.mark.parametrize(
    ("table", "page", "fields"),
    [
        ("thumbnails", "export.html", None),
        ("clusterings", "clusters/rename", {"cluster": "1", "name": "a"}),
        ("questions", "questions", {"name": "a", "question": "_like=1"}),
        ("schema", "duplicates/undo", {"tier": "same"}),
    ],
)
async def test_a_table_of_ours_may_be_missing(
    table: str, page: str, fields: dict | None, copied: Path
) -> None:
    plant(copied, f"drop table _image_similarity_{table}")
    site = open_datasette(copied)
    options = {"method": "POST", "data": fields} if fields else {}
    response = await ask(site, f"/gallery/images/-/{page}", ROOT, **options)
    said = html.unescape(response.text)
    assert "The database cannot be used: " in said or "are damaged" in said


async def test_vectors_that_lack_a_part_are_not_asked(copied: Path) -> None:
    """sqlite-vec takes the whole process down."""
    plant(copied, "drop table _image_similarity_vectors_1_rowids")
    site = open_datasette(copied)
    for page in ("similar?_like=1", "similar.json?_like=1", "map", "duplicates.json"):
        response = await ask(site, f"/gallery/images/-/{page}")
        assert response.status_code == 404
        assert "vectors of images are damaged" in response.text
    assert "vectors of images are damaged" in refused("similar", copied, "images", "1")
    assert "vectors of images are damaged" in refused("map", copied, "--method", "pca")
    assert command("status", copied).exit_code == 0
    assert command("verify", copied, "--repair").exit_code == 0
    assert command("similar", copied, "images", "1").exit_code == 1
    assert command("remove", "--yes", copied).exit_code == 0


FAR = (1 << 26, 1 << 33, 1 << 62, (1 << 63) - 1, -(1 << 33), -(1 << 63))


@pytest.mark.parametrize("pictures", [20_001, (1 << 40) - 1])
def test_a_sample_takes_no_more_room_than_there_are_pictures(
    pictures: int, copied: Path
) -> None:
    """Neither the span of ids nor the count in the file decides how many are drawn."""
    with opened(copied) as conn:
        collection = db.find_collection(conn, "images")
        usual = random_pairs(conn, collection)
    for far in ((), *((one,) for one in FAR), (FAR[-1], FAR[-3])):
        for item, id in enumerate(far, 23):
            plant(copied, f"update _image_similarity_items set id = {id} where id = {item}")
        plant(copied, f"update _image_similarity_collections set pictures = {pictures}")
        with opened(copied) as conn:
            tracemalloc.start()
            found = random_pairs(conn, collection)
            assert tracemalloc.get_traced_memory()[1] < 30e6, far
            tracemalloc.stop()
        assert found.quantiles, far
        if not far:
            assert found == usual
        for item, id in enumerate(far, 23):
            plant(copied, f"update _image_similarity_items set id = {item} where id = {id}")
    plant(copied, "delete from _image_similarity_items")
    plant(copied, f"update _image_similarity_collections set pictures = {pictures}")
    with opened(copied) as conn:
        assert random_pairs(conn, collection).quantiles == {}


@pytest.mark.parametrize("far", FAR)
async def test_pages_of_a_file_with_far_ids(far: int, copied: Path) -> None:
    assert command("map", copied, "images", "--method", "pca").exit_code == 0
    plant(copied, f"update _image_similarity_items set id = {far} where id = 24")
    plant(copied, f"update _image_similarity_points set item_id = {far} where item_id = 24")
    plant(copied, "update _image_similarity_collections set pictures = 20001")
    site = open_datasette(copied)
    overview = await ask(site, "/-/image-similarity")
    assert overview.status_code == 200
    assert overview.text.count("/-/thumbnail/") > 1
    for page in ("similar?_like=1", "similar.svg?_like=1", "map", "map/points.bin"):
        response = await ask(site, f"/gallery/images/-/{page}")
        assert response.status_code == 200 or "damaged" in response.text, page


def test_lists_that_are_longer_than_noted_are_not_kept(copied: Path) -> None:
    assert command("index", copied, "images").exit_code == 0
    with opened(copied) as conn:
        collection = db.find_collection(conn, "images")
    for listed, limit, resident in ((24, 1 << 20, True), (0, 100, False)):
        plant(copied, f"update _image_similarity_indexes set listed = {listed}")
        with opened(copied) as conn:
            cache = IndexCache(limit)
            for _ in range(2):
                cache.get(conn, collection)
            assert isinstance(cache.get(conn, collection).lists, ResidentLists) is resident
