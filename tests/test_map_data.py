"""What the page with the map fetches, and the filter by a region of it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import picture
from core import command, embed, make_older, opened, sql, value
from serving import ROOT, ask, ask_json, open_datasette

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.collection import EncoderOptions
from datasette_image_similarity.web.map_data import coloured

MAP = "/gallery/images/-/map"
WHOLE = "-2,-2,2,-2,2,2,-2,2"
RIGHT = "0.1,-2,2,-2,2,2,0.1,2"
ROUTES = [
    ".json",
    "/points.bin",
    "/columns.json",
    "/column.json?_column=label",
    "/pictures.json?_item=1",
    "/atlas/0",
]
POINTS = "select item_id, x, y, cell, slot from _image_similarity_points order by slot"


@pytest.fixture(scope="module")
def mapped_once(tmp_path_factory: pytest.TempPathFactory, made_once: Path) -> Path:
    path = tmp_path_factory.mktemp("mapped") / "gallery.db"
    path.write_bytes(made_once.read_bytes())
    assert command("map", path, "--method", "pca").exit_code == 0
    return path


@pytest.fixture
def mapped(copied: Path, mapped_once: Path) -> Path:
    """The gallery with a map."""
    copied.write_bytes(mapped_once.read_bytes())
    return copied


def read_points(data: bytes) -> dict[str, Any]:
    """`points.bin` as its documentation has it."""
    magic, version, n, columns, sheet, tile, sheets, zero = struct.unpack(
        "<4s7I", data[:32]
    )
    assert (magic, version, zero) == (b"IMSP", 1, 0)
    found: dict[str, Any] = {
        "n": n,
        "columns": columns,
        "sheet": sheet,
        "tile": tile,
        "sheets": sheets,
    }
    start = 32
    for name, kind in (
        ("x", "<f4"),
        ("y", "<f4"),
        ("aspect", "<f4"),
        ("cell", "<i4"),
        ("slot", "<u4"),
        ("id", "<u4"),
        ("passes", "u1"),
    ):
        found[name] = np.frombuffer(data, kind, n, start)
        start += n * np.dtype(kind).itemsize
    assert start == len(data)
    return found


async def points_of(site: Any, query: str = "") -> dict[str, Any]:
    response = await ask(site, f"{MAP}/points.bin{query}")
    assert response.status_code == 200
    return read_points(response.content)


async def test_points(mapped: Path) -> None:
    response = await ask(open_datasette(mapped), f"{MAP}/points.bin")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"].startswith("private")
    found = read_points(response.content)
    stored = sql(mapped, POINTS)
    sides = [found[name] for name in ("n", "columns", "sheet", "tile", "sheets")]
    assert sides == [24, 5, 512, 64, 1]
    assert found["id"].tolist() == [row[0] for row in stored]
    assert found["x"] == pytest.approx([row[1] for row in stored])
    assert found["y"] == pytest.approx([row[2] for row in stored])
    assert found["cell"].tolist() == [row[3] for row in stored]
    assert found["slot"].tolist() == list(range(24))
    assert found["aspect"] == pytest.approx(80 / 60)
    assert found["passes"].tolist() == [1] * 24


async def test_without_a_grid_cells_are_none(copied: Path) -> None:
    command("map", copied, "--method", "pca", "--no-grid")
    found = await points_of(open_datasette(copied))
    assert found["columns"] == 0
    assert set(found["cell"].tolist()) == {-1}


async def test_what_has_not_changed_is_not_sent_again(mapped: Path) -> None:
    site = open_datasette(mapped)
    for route in ROUTES:
        tag = (await ask(site, MAP + route)).headers["etag"]
        again = await ask(site, MAP + route, headers={"if-none-match": tag})
        assert again.status_code == 304, route
    sql(mapped, "delete from images where id = 1")
    again = await ask(site, f"{MAP}/points.bin", headers={"if-none-match": tag})
    assert again.status_code == 200


async def test_filters_of_the_table_apply(mapped: Path) -> None:
    site = open_datasette(mapped)
    found = await points_of(site, "?label=red")
    assert found["n"] == 24
    red = {row[0] for row in sql(mapped, "select id from images where label = 'red'")}
    assert set(found["id"][found["passes"] == 1].tolist()) == red
    page = await ask_json(site, f"{MAP}.json?label=red&_size=5")
    assert page["total"] == 8
    assert {int(row["pk"]) for row in page["rows"]} < red
    assert page["next"] == 5
    rest = await ask_json(site, page["next_url"].removeprefix("http://localhost"))
    assert rest["next"] is None
    assert {int(row["pk"]) for row in page["rows"] + rest["rows"]} == red


async def test_deleted_rows_are_not_shown(mapped: Path) -> None:
    sql(mapped, "delete from images where id = 5")
    site = open_datasette(mapped)
    assert 5 not in (await points_of(site))["id"]
    assert (await ask_json(site, f"{MAP}.json"))["total"] == 23
    assert len((await ask_json(site, f"{MAP}/column.json?_column=label"))["codes"]) == 23
    answer = await ask_json(site, f"{MAP}/pictures.json?_item=5")
    assert answer["pictures"] == []


async def test_pages_come_in_the_order_of_the_slots(mapped: Path) -> None:
    page = await ask_json(open_datasette(mapped), f"{MAP}.json?_size=max")
    assert [row["id"] for row in page["rows"]] == [row[0] for row in sql(mapped, POINTS)]
    version = value(mapped, "select version from _image_similarity_maps")
    assert page["map"]["version"] == str(version)
    assert page["map"]["count"] == 24


async def test_pictures_in_the_order_asked(mapped: Path) -> None:
    site = open_datasette(mapped)
    answer = await ask_json(site, f"{MAP}/pictures.json?_item=9&_item=2,999")
    assert [found["id"] for found in answer["pictures"]] == [9, 2]
    assert answer["pictures"][0] == {
        "id": 9,
        "pk": "9",
        "caption": "green-0.png",
        "url": "/gallery/images/9",
        "thumbnail": "/gallery/images/-/thumbnail/9",
        "similar_url": "/gallery/images/-/similar?_like=9",
        "width": 80,
        "height": 60,
    }


@pytest.mark.parametrize(
    "items",
    ["", "_item=", "_item=x", "_item=-1", "_item=1,", "_item=" + ",".join("1" * 201)],
)
async def test_pictures_that_cannot_be_asked_for(mapped: Path, items: str) -> None:
    response = await ask(open_datasette(mapped), f"{MAP}/pictures.json?{items}")
    assert response.status_code == 400
    assert response.json()["ok"] is False


# Atlases


async def test_sheets_are_kept_while_the_map_is_the_same(mapped: Path) -> None:
    site = open_datasette(mapped)
    version = value(mapped, "select version from _image_similarity_maps")
    response = await ask(site, f"{MAP}/atlas/0?v={version}")
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/webp"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert response.content == value(mapped, "select webp from _image_similarity_atlases")
    for old in ("", "?v=1", "?v=x"):
        response = await ask(site, f"{MAP}/atlas/0{old}")
        assert response.headers["cache-control"] == "private, no-cache"
    assert (await ask(site, f"{MAP}/atlas/1")).status_code == 404


@pytest.mark.parametrize(
    "planted",
    [b"", b"<script>", 12, "text", b"RIFF\0\0\0\0WEBPVP8 " + bytes(100), None],
)
async def test_no_sheet_but_one_of_ours_is_served(mapped: Path, planted: object) -> None:
    if planted is None:  # a WebP of another size
        import io

        from PIL import Image

        out = io.BytesIO()
        Image.new("RGB", (4000, 10)).save(out, "WEBP")
        planted = out.getvalue()
    sql(mapped, "update _image_similarity_atlases set webp = ?", [planted])
    assert (await ask(open_datasette(mapped), f"{MAP}/atlas/0")).status_code == 404


# Colours


async def test_columns_to_colour_by(mapped: Path) -> None:
    for column in ("year integer", "made text", "data blob", "empty text"):
        sql(mapped, f"alter table images add column {column}")
    sql(
        mapped,
        "update images set year = 1900 + id, data = randomblob(9), "
        "made = (1990 + id % 3) || '-01-0' || (1 + id % 9)",
    )
    site = open_datasette(mapped)
    answer = await ask_json(site, f"{MAP}/columns.json")
    kinds = {column["name"]: column["kind"] for column in answer["columns"]}
    assert kinds["label"] == kinds["made"] == "category"
    assert kinds["year"] == "number"
    assert not kinds.keys() & {"id", "path", "name", "sha256", "data", "empty"}
    made = await ask_json(site, f"{MAP}/column.json?_column=made")
    assert sorted(made["values"]) == ["1990", "1991", "1992"]


async def test_a_column_of_categories(mapped: Path) -> None:
    site = open_datasette(mapped)
    sql(mapped, "update images set label = null where id = 1")
    answer = await ask_json(site, f"{MAP}/column.json?_column=label")
    assert answer["kind"] == "category"
    assert sorted(answer["values"]) == ["blue", "green", "red"]
    assert answer["values"][2] == "blue"  # the rarest comes last
    labels = dict(sql(mapped, "select id, label from images"))
    ids = (await points_of(site))["id"].tolist()
    found = [answer["values"][code] if code >= 0 else None for code in answer["codes"]]
    assert found == [labels[id] for id in ids]


async def test_a_column_of_numbers(mapped: Path) -> None:
    sql(mapped, "alter table images add column year integer")
    sql(mapped, "update images set year = 1900 + id where id > 1")
    site = open_datasette(mapped)
    answer = await ask_json(site, f"{MAP}/column.json?_column=year")
    assert (answer["kind"], answer["min"], answer["max"]) == ("number", 1902, 1924)
    ids = (await points_of(site))["id"].tolist()
    assert answer["numbers"] == [1900 + id if id > 1 else None for id in ids]


def test_rare_values_share_a_colour() -> None:
    values = [f"v{n}" for n in range(30) for _ in range(40 - n)]
    found = coloured(values)
    assert found["values"] == [f"v{n}" for n in range(20)] + ["other"]
    assert [found["codes"][0], found["codes"][-1]] == [0, 20]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], {"kind": "category", "values": [], "codes": []}),
        ([None], {"kind": "category", "values": [], "codes": [-1]}),
        ([1, 2, 1], {"kind": "category", "values": ["1", "2"], "codes": [0, 1, 0]}),
        ([1, "x"], {"kind": "category", "values": ["1", "x"], "codes": [0, 1]}),
        (
            ["2001-05-01", "2001-06-01"],
            {"kind": "category", "values": ["2001-05", "2001-06"], "codes": [0, 1]},
        ),
    ],
)
def test_what_values_become(values: list, expected: dict) -> None:
    assert coloured(values) == expected


def test_numbers_beyond_json_are_left_out() -> None:
    found = coloured([float("inf"), *range(20), None])
    assert found["numbers"][0] is None
    assert (found["min"], found["max"]) == (0, 19)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", ["", "id", "path", "nothing", "cluster", 'x" from y --'])
async def test_columns_that_the_map_is_not_coloured_by(mapped: Path, name: str) -> None:
    site = open_datasette(mapped)
    response = await ask(site, f"{MAP}/column.json?_column={name}")
    if name == "cluster":  # no clusters yet: a column without values
        assert set(response.json()["codes"]) == {-1}
    else:
        assert response.status_code == 400


async def test_clusters_are_a_column(mapped: Path) -> None:
    with opened(mapped) as conn:
        collection = db.find_collection(conn, "images")
        for name in ("<b>bold</b>", "two"):
            conn.execute(
                "insert into _image_similarity_clusters (collection_id, name, suggested, "
                "size, medoid_id) values (?, ?, ?, 1, 1)",
                (collection.id, name, name),
            )
        conn.execute(
            "insert into _image_similarity_members (item_id, collection_id, cluster_id, "
            "table_name, pk) select id, collection_id, case when id > 8 then 2 else 1 end, "
            "'images', pk from _image_similarity_items where id < 20"
        )
    site = open_datasette(mapped)
    names = (await ask_json(site, f"{MAP}/columns.json"))["columns"]
    assert names[0] == {"name": "cluster", "kind": "category"}
    answer = await ask_json(site, f"{MAP}/column.json?_column=cluster")
    assert answer["values"] == ["two", "<b>bold</b>"]
    ids = (await points_of(site))["id"].tolist()
    expected = [-1 if id >= 20 else 0 if id > 8 else 1 for id in ids]
    assert answer["codes"] == expected


# Region


async def test_a_region_filters_the_table_page_and_ours(mapped: Path) -> None:
    site = open_datasette(mapped)
    inside = {row[0] for row in sql(mapped, POINTS) if row[1] > 0.1}
    url = f"/gallery/images.json?_shape=array&_size=max&_image_region={RIGHT}"
    assert {row["id"] for row in await ask_json(site, url)} == inside
    page = await ask(site, f"/gallery/images?_image_region={RIGHT}")
    words = f"in a region of the map ({len(inside)} pictures)"
    assert words in page.text
    csv = (await ask(site, f"/gallery/images.csv?_image_region={RIGHT}")).text
    assert len(csv.strip().splitlines()) == len(inside) + 1
    ours = await ask_json(site, f"{MAP}.json?_image_region={RIGHT}&_size=max")
    assert {row["id"] for row in ours["rows"]} == inside
    found = await points_of(site, f"?_image_region={RIGHT}")
    assert set(found["id"][found["passes"] == 1].tolist()) == inside
    like = next(iter(inside))
    similar = f"/gallery/images/-/similar.json?_like={like}&_image_region={RIGHT}"
    assert (await ask_json(site, similar))["total"] == len(inside) - 1
    both = await ask_json(site, f"{MAP}.json?_image_region={RIGHT}&_image_region={WHOLE}")
    assert both["total"] == len(inside)


async def test_a_region_of_the_grid(mapped: Path) -> None:
    site = open_datasette(mapped)
    answer = await ask_json(site, f"{MAP}.json?_image_region=grid:1,0,3,0,3,2,1,2")
    cells = {row[0]: row[3] for row in sql(mapped, POINTS)}
    assert {cells[row["id"]] for row in answer["rows"]} == {1, 2, 6, 7}


@pytest.mark.parametrize("region", ["x", "1,2", "nan,1,2,3,4,5", "1e999,1,2,3,4,5"])
async def test_regions_that_mean_nothing_are_told(mapped: Path, region: str) -> None:
    site = open_datasette(mapped)
    for path in (f"{MAP}.json", "/gallery/images.json"):
        response = await ask(site, f"{path}?_image_region={region}")
        assert response.status_code == 400
        assert "_image_region" in response.text


# Where there is none, and where one may not look


async def test_without_a_map_it_is_told_how_to_make_one(copied: Path) -> None:
    site = open_datasette(copied)
    for route in ROUTES:
        response = await ask(site, MAP + route)
        if "pictures" in route:
            assert response.status_code == 200
        else:
            assert response.status_code == 404, route
            assert "image-similarity map" in response.text
    response = await ask(site, f"/gallery/images.json?_image_region={WHOLE}")
    assert response.status_code == 400
    assert "no map yet" in response.text


async def test_an_older_schema_is_as_good_as_no_map(copied: Path) -> None:
    make_older(copied)
    site = open_datasette(copied)
    for route in ROUTES:
        expected = 200 if "pictures" in route else 404
        assert (await ask(site, MAP + route)).status_code == expected, route


@pytest.mark.parametrize("private", ["table", "database"])
async def test_a_denied_table_is_denied_here(mapped: Path, private: str) -> None:
    block = {"allow": {"id": "root"}}
    inner = {"tables": {"images": block}} if private == "table" else block
    site = open_datasette(mapped, config={"databases": {"gallery": inner}})
    for route in ROUTES:
        assert (await ask(site, MAP + route)).status_code == 403, route
        assert (await ask(site, MAP + route, ROOT)).status_code == 200, route
    for table in ("maps", "points", "atlases"):
        path = f"/gallery/_image_similarity_{table}.json"
        assert (await ask(site, path)).status_code == 403


async def test_nobody_browses_the_sheets(mapped: Path) -> None:
    site = open_datasette(mapped)
    for ending in ("", ".json", ".csv"):
        path = f"/gallery/_image_similarity_atlases{ending}"
        assert (await ask(site, path, ROOT)).status_code == 403
    assert (await ask(site, "/gallery/_image_similarity_points.json")).status_code == 200


async def test_an_immutable_database_has_its_map(mapped: Path) -> None:
    site = open_datasette(immutables=[str(mapped)])
    for route in ROUTES:
        assert (await ask(site, MAP + route)).status_code == 200, route


@pytest.mark.parametrize(
    "statement",
    [
        "update _image_similarity_points set x = 'text'",
        "update _image_similarity_points set x = 1e300",
        "update _image_similarity_points set slot = -5",
        "update _image_similarity_points set slot = 'x' where item_id = 1",
        "update _image_similarity_points set cell = 1 << 40",
        "update _image_similarity_items set width = 0",
        "update _image_similarity_items set height = 'x'",
        "update _image_similarity_maps set columns = 1 << 40",
        "update _image_similarity_maps set tile = 0",
        "update _image_similarity_maps set version = 'x'",
        "update _image_similarity_maps set made_at = x'00'",
    ],
)
async def test_a_strangers_map_breaks_nothing(mapped: Path, statement: str) -> None:
    sql(mapped, statement)
    site = open_datasette(mapped)
    for route in [*ROUTES, f".json?_image_region={WHOLE}"]:
        response = await ask(site, MAP + route)
        assert response.status_code in (200, 400, 404), route
    assert (await ask(site, "/gallery/images")).status_code == 200


async def test_odd_keys_and_names(tmp_path: Path) -> None:
    path = tmp_path / "odd.db"
    with opened(path) as conn:
        conn.execute(
            'create table "it\'s ""odd""" (a text, b integer, picture blob, '
            '"sp ace" text, primary key (a, b))'
        )
        for number in range(14):
            conn.execute(
                'insert into "it\'s ""odd""" values (?, ?, ?, ?)',
                (f"a/{number},'", number, picture("red", number), f"<i>{number % 2}"),
            )
    table = 'it\'s "odd"'
    embed(path, None, table, blob_column="picture", encoder=EncoderOptions("hog"))
    with ImageCollection(path, table) as collection:
        collection.map(method="pca")
    site = open_datasette(path)
    base = site.urls.table("odd", table) + "/-/map"
    page = await ask_json(site, f"{base}.json?_size=2")
    assert page["total"] == 14
    row = page["rows"][0]
    assert (await ask(site, row["url"])).status_code == 200
    assert (await ask(site, row["thumbnail"])).status_code == 200
    answer = await ask_json(site, f"{base}/column.json?_column=sp+ace")
    assert sorted(answer["values"]) == ["<i>0", "<i>1"]
    assert (await ask(site, f"{base}/column.json?_column=picture")).status_code == 400
    half = await ask_json(site, f"{base}.json?_image_region={RIGHT}&sp+ace=<i>1")
    assert 0 < half["total"] < 7
