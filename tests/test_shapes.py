"""Results as data honour what a table's own JSON and CSV honour."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import picture
from core import embed, sql
from datasette.app import Datasette
from serving import ask, ask_json, open_datasette, parameters

SIMILAR = "/shop/products/-/similar"
TABLE = "/shop/products"


@pytest.fixture
def site(tmp_path: Path) -> Datasette:
    """A shop: pictures as BLOBs, a long text, another BLOB, a foreign key."""
    path = tmp_path / "shop.db"
    sql(path, "create table makers (id integer primary key, name text)")
    sql(path, "insert into makers values (1, 'Ada'), (2, 'Bo')")
    sql(
        path,
        "create table products (id integer primary key, scan blob, story text, raw blob, "
        "maker integer references makers(id))",
    )
    for number in range(1, 6):
        values = (number, picture("red", number), "x" * 10_000, b"\xff", number % 2 + 1)
        sql(path, "insert into products values (?, ?, ?, ?, ?)", values)
    sql(path, "update products set maker = null where id = 5")
    embed(path, table="products", blob_column="scan")
    return open_datasette(path)


async def rows(site: Datasette, more: str) -> list[dict]:
    return (await ask_json(site, f"{SIMILAR}.json?_like=1&{more}"))["rows"]


@pytest.mark.parametrize(
    ("more", "columns"),
    [
        ("", ["id", "story", "raw", "maker"]),
        ("_col=maker", ["id", "maker"]),
        ("_col=story&_col=id&_col=maker&_col=maker", ["id", "story", "maker"]),
        ("_nocol=story", ["id", "raw", "maker"]),
        ("_nocol=story&_nocol=raw", ["id", "maker"]),
        ("_col=story&_col=maker&_nocol=story", ["id", "maker"]),
        ("_col=scan", ["id", "scan"]),
    ],
)
async def test_columns(site: Datasette, more: str, columns: list[str]) -> None:
    found = await rows(site, more)
    assert [list(one["row"]) for one in found] == 4 * [columns]
    assert list(found[0]) == ["rank", "pk", "score", "distance", "row"]
    text = (await ask(site, f"{SIMILAR}.csv?_like=1&{more}")).text
    assert next(csv.reader(io.StringIO(text)))[4:] == columns
    theirs = await ask_json(site, f"{TABLE}.json?_shape=objects&id=2&{more}")
    assert theirs["rows"][0].keys() - {"scan"} == {*columns} - {"scan"}


async def test_blobs_are_given_as_datasette_gives_them(site: Datasette) -> None:
    found = await rows(site, "_col=scan&_col=raw&_size=1")
    theirs = await ask_json(
        site, f"{TABLE}.json?_shape=array&_col=scan&_col=raw&id={found[0]['pk']}"
    )
    assert found[0]["row"] == theirs[0]
    assert base64.b64decode(found[0]["row"]["raw"]["encoded"]) == b"\xff"


@pytest.mark.parametrize(
    "bad", ["_col=nope", "_nocol=nope", "_nocol=id", "_col=id&_col=", "_shape=nope"]
)
@pytest.mark.parametrize("format", ["json", "csv"])
async def test_what_there_is_not(site: Datasette, bad: str, format: str) -> None:
    response = await ask(site, f"{SIMILAR}.{format}?_like=1&{bad}")
    assert response.status_code == 400
    assert "nvalid" in response.text


async def test_shapes(site: Datasette) -> None:
    url = f"{SIMILAR}.json?_like=1&_col=maker&_size=3"
    objects = await ask_json(site, url)
    assert (await ask_json(site, f"{url}&_shape=objects"))["rows"] == objects["rows"]
    hits = objects["rows"]
    assert await ask_json(site, f"{url}&_shape=array") == hits
    assert await ask_json(site, f"{url}&_shape=object") == {one["pk"]: one for one in hits}
    assert await ask_json(site, f"{url}&_shape=arrayfirst") == [one["pk"] for one in hits]
    arrays = await ask_json(site, f"{url}&_shape=arrays")
    assert arrays["columns"] == ["rank", "pk", "score", "distance", "id", "maker"]
    assert [dict(zip(arrays["columns"], row, strict=True)) for row in arrays["rows"]] == [
        {**{name: one[name] for name in ("rank", "pk", "score", "distance")}, **one["row"]}
        for one in hits
    ]
    lines = await ask(site, f"{url}&_shape=array&_nl=on")
    assert lines.headers["content-type"].startswith("text/plain")
    assert [json.loads(line) for line in lines.text.splitlines()] == hits


@pytest.mark.parametrize("shape", ["objects", "array"])
async def test_the_next_page_keeps_them(site: Datasette, shape: str) -> None:
    asked = f"_like=1&_size=2&_col=maker&_labels=on&_shape={shape}"
    response = await ask(site, f"{SIMILAR}.json?{asked}")
    following = response.headers["link"].split(">")[0].lstrip("<")
    kept = {pair for pair in parameters(following) if pair[0] not in ("_like", "_size")}
    assert kept == {("_col", "maker"), ("_labels", "on"), ("_shape", shape), ("_next", "2")}
    assert (await ask(site, following.removeprefix("http://localhost"))).status_code == 200


@pytest.mark.parametrize("asked", ["_labels=on", "_label=maker", "_labels=1&_col=maker"])
async def test_labels(site: Datasette, asked: str) -> None:
    found = {one["pk"]: one["row"]["maker"] for one in await rows(site, asked)}
    assert found == {
        "2": {"value": 1, "label": "Ada"},
        "3": {"value": 2, "label": "Bo"},
        "4": {"value": 1, "label": "Ada"},
        "5": None,
    }
    text = (await ask(site, f"{SIMILAR}.csv?_like=1&_nocol=story&{asked}")).text
    by_key = {row["pk"]: row for row in csv.DictReader(io.StringIO(text))}
    assert (by_key["2"]["maker"], by_key["2"]["maker_label"]) == ("1", "Ada")
    assert (by_key["5"]["maker"], by_key["5"]["maker_label"]) == ("", "")


@pytest.mark.parametrize("asked", ["", "_labels=off", "_labels=perhaps", "_label=nope"])
async def test_no_labels(site: Datasette, asked: str) -> None:
    assert {one["row"]["maker"] for one in await rows(site, asked)} == {1, 2, None}


async def test_labels_of_a_table_that_may_not_be_viewed(tmp_path: Path, site: Any) -> None:
    denied = {"databases": {"shop": {"tables": {"makers": {"allow": False}}}}}
    site = open_datasette(tmp_path / "shop.db", config=denied)
    assert {one["row"]["maker"] for one in await rows(site, "_labels=on")} == {1, 2, None}


async def test_search_by_image(site: Datasette) -> None:
    async def posted(more: str) -> Any:
        response = await ask(
            site,
            f"{TABLE}/-/search-by-image?{more}",
            method="POST",
            files={"image": ("a.png", picture("red", 1), "image/png")},
            headers={"accept": "application/json"},
        )
        return response.status_code, response.json()

    status, found = await posted("_col=maker&_shape=array&_labels=on&_size=2")
    assert status == 200
    assert [list(one["row"]) for one in found] == 2 * [["id", "maker"]]
    assert found[0]["row"]["maker"] == {"value": 2, "label": "Bo"}
    assert (await posted("_shape=nope"))[0] == 400


async def test_as_little_as_datasette_answers(site: Datasette) -> None:
    ours = await ask(site, f"{SIMILAR}.json?_like=1&_col=id&_shape=array")
    assert len(ours.content) < 500
