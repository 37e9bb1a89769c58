"""Pages over a collection whose vectors are in a store, and over a store that is away."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import picture
from core import answer, command, opened
from elsewhere import copies, engine, free_url, pair_of, put_in
from serving import IS_ONE, ROOT, ask, ask_json, link_to, open_datasette, pks, post_picture

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.functions import prepare_connection

pytestmark = pytest.mark.asyncio
QUICK = {"store_seconds": 1}
# What reads vectors, and is not there while a store is away.
SEARCHES = [
    "similar.json?_like=3",
    "similar.json?_like=3&_like=4:2&_unlike=20",
    "similar.json?_like=3&_exact=1&folder=red",
    "similar.json?_like=3&_distinct=1",
    "similar.json?_like=3&_one_per=folder&_next=1",
    "similar.json?_like=3&_max_distance=0.3&_histogram=1",
    "similar.json?_like=3&_crop=0.1,0.1,0.9,0.9",
]
PAGES = [
    "similar?_like=3",
    "similar.csv?_like=3",
    "similar.zip?_like=3",
    "similar.html?_like=3",
    "similar.svg?_like=3",
    "search-by-image?_like=3",
]
# What does without.
OTHERS = [
    "/there/images",
    "/there/images.json?folder=red",
    "/there/images.csv?_size=max",
    "/there/images/3",
    "/there/images/-/thumbnail/3",
    "/there/images/-/image/3",
    "/there/images/-/map",
    "/there/images/-/duplicates",
    "/there/images/-/clusters",
    "/there/images/-/questions",
    "/there/images/-/evaluations",
    "/there/images/-/export.html?_size=3",
    "/there/images/-/search-by-image",
    "/-/image-similarity",
    "/-/image-similarity.json",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return pair_of(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture
def pair(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    return copies(made, tmp_path)


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """As of the other database, without the time it took."""
    text = json.dumps({**answer, "milliseconds": 0})
    return json.loads(text.replace("/there/", "/here/").replace('"there"', '"here"'))


def assert_close(a: Any, b: Any) -> None:
    """The same JSON, but for the last digits of numbers."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), [b[name] for name in a]
    if isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_close(one, other)
    elif isinstance(a, float):
        assert a == pytest.approx(b, abs=1e-4)
    else:
        assert a == b


@pytest.mark.parametrize("path", SEARCHES)
async def test_json_is_the_same(pair, path):
    datasette = open_datasette(*pair)
    here, there = [
        await ask_json(datasette, f"/{name}/images/-/{path}") for name in ("here", "there")
    ]
    assert_close(comparable(there), comparable(here))
    assert there["rows"]


@pytest.mark.parametrize("path", PAGES)
async def test_pages_answer(pair, path):
    datasette = open_datasette(*pair)
    responses = [
        await ask(datasette, f"/{name}/images/-/{path}") for name in ("here", "there")
    ]
    assert [response.status_code for response in responses] == [200, 200]
    if path.endswith("csv?_like=3"):
        rows = [
            [line.split(",")[:2] for line in response.text.splitlines()]
            for response in responses
        ]
        assert rows[0] == rows[1]


async def test_search_by_image(pair):
    datasette = open_datasette(*pair)
    found = [
        (await post_picture(datasette, f"/{name}/images/-/search-by-image", picture()))
        for name in ("here", "there")
    ]
    assert pks(found[1].json()) == pks(found[0].json())


@pytest.mark.parametrize("path", OTHERS)
async def test_what_needs_no_vectors_answers_without_the_store(pair, path):
    put_in(pair[1], free_url())
    response = await ask(open_datasette(pair[1], plugin=QUICK), path)
    assert response.status_code == 200


async def test_the_row_page_shows_neighbours_or_why_not(pair):
    page = (await ask(open_datasette(pair[1]), "/there/images/3")).text
    assert page.count("ims-score") == 12
    put_in(pair[1], free_url())
    page = (await ask(open_datasette(pair[1]), "/there/images/3")).text
    assert "They cannot be looked for now: Milvus does not answer" in page
    assert "127.0.0.1" not in page
    assert "/there/images/-/image/3" in page


async def test_home_says_where_vectors_are_and_whether_it_is_away(pair):
    datasette = open_datasette(pair[1])
    [card] = (await ask_json(datasette, "/-/image-similarity.json"))["collections"]
    assert (card["store"], card["away"], card["unsent"]) == (
        "milvus-lite:vectors.db",
        "",
        0,
    )
    page = (await ask(datasette, "/-/image-similarity")).text
    assert "milvus-lite:vectors.db" in page
    assert "have to wait" not in page
    put_in(pair[1], free_url())
    datasette = open_datasette(pair[1])
    page = (await ask(datasette, "/-/image-similarity")).text
    assert "Searches have to wait: Milvus does not answer" in page
    assert "127.0.0.1" not in page


@pytest.mark.parametrize("format", ["", ".json"])
async def test_a_store_that_is_away_is_said_to_be(pair, format):
    put_in(pair[1], free_url())
    response = await ask(
        open_datasette(pair[1], plugin=QUICK), f"/there/images/-/similar{format}?_like=3"
    )
    assert response.status_code == 503
    assert "does not answer" in response.text
    assert response.headers["retry-after"]


async def test_it_works_again_once_the_store_is_back(pair, made):
    url = f"milvus-lite:{made[1].parent / 'vectors.db'}"
    put_in(pair[1], free_url())
    datasette = open_datasette(pair[1], plugin=QUICK)
    address = "/there/images/-/similar.json?_like=3"
    assert (await ask(datasette, address)).status_code == 503
    put_in(pair[1], url)
    assert len(pks(await ask_json(datasette, address))) == 23


@pytest.mark.parametrize("says", [None, b"HTTP/1.1 200 OK\r\n\r\nno gRPC", b"\0" * 100])
async def test_what_is_no_engine_is_not_waited_for(pair, says):
    with engine(says) as url:
        put_in(pair[1], url)
        datasette = open_datasette(pair[1], plugin=QUICK)
        response = await ask(datasette, "/there/images/-/similar.json?_like=3")
        assert response.status_code == 503
        assert response.json()["error"]


async def test_other_pages_answer_while_many_wait_for_an_engine(pair):
    with engine(None) as url:
        put_in(pair[1], url)
        datasette = open_datasette(*pair, plugin=QUICK)
        waiting = [
            asyncio.create_task(ask(datasette, "/there/images/-/similar.json?_like=3"))
            for _ in range(50)
        ]
        await asyncio.sleep(0)
        assert len(pks(await ask_json(datasette, "/here/images/-/similar.json?_like=3")))
        assert (await ask(datasette, "/there/images.json")).status_code == 200
        assert not all(task.done() for task in waiting)
        responses = await asyncio.gather(*waiting)
    assert {response.status_code for response in responses} == {503}
    said = {response.json()["error"] for response in responses}
    assert any("Too many" in one for one in said)
    assert not any("narrow it" in one for one in said)  # as if the filter were slow


async def test_a_stranger_s_store_is_not_connected_to(pair, tmp_path):
    reached: list = []
    with engine(b"", reached) as address:
        for url in (
            address,
            f"milvus-lite:{tmp_path / 'etc' / 'x.db'}",
            "milvus-lite:/x",
            "?",
        ):
            put_in(pair[1], url, vouched=False)
            datasette = open_datasette(pair[1])
            response = await ask(datasette, "/there/images/-/similar?_like=3")
            assert response.status_code == 503
            assert "vouched" in response.text
            assert str(tmp_path) not in response.text
            for path in ("/-/image-similarity", "/there/images/3", "/there/images"):
                assert (await ask(datasette, path)).status_code == 200
    assert not reached
    assert not (tmp_path / "etc").exists()


async def test_the_configuration_can_name_stores(made, tmp_path, pair):
    path = tmp_path / "moved.db"
    path.write_bytes(made[1].read_bytes())
    address = "/moved/images/-/similar.json?_like=3"
    assert (await ask(open_datasette(path), address)).status_code == 503
    url = f"milvus-lite:{made[1].parent / 'vectors.db'}"
    assert await ask_json(open_datasette(path, plugin={"stores": [url]}), address)


async def test_a_picture_that_is_added_is_found_at_once(pair):
    datasette = open_datasette(pair[1])
    path = "/there/images/-/add-picture"
    response = await post_picture(datasette, path, picture("blue", 99), ROOT)
    assert response.status_code == 201, response.text
    assert answer("status", pair[1])[0]["unsent"] == 1
    found = await ask_json(datasette, "/there/images/-/similar.json?_like=3&_size=30")
    assert "25" in pks(found)
    of_it = await ask_json(datasette, "/there/images/-/similar.json?_like=25&_size=30")
    assert len(pks(of_it)) == 24


async def test_an_immutable_file(pair):
    datasette = open_datasette(immutables=[str(pair[1])])
    assert await ask_json(datasette, "/there/images/-/similar.json?_like=3")


async def test_filters_may_use_sql_functions(pair):
    """They are there on the connections of our own threads, those of other plugins too."""
    datasette = open_datasette(*pair)
    where = quote("image_distance('images', id, 4) < 0.5")
    path = f"images/-/similar.json?_like=3&_where={where}"
    here, there = [
        pks(await ask_json(datasette, f"/{name}/{path}", actor=ROOT))
        for name in ("here", "there")
    ]
    assert there == here


SQL = {
    "similar": "select value from json_each(similar_images('images', 3, 4))",
    "embedding": "select length(image_embedding('images', 3))",
    "mean": "select length(mean_image_embedding('images', '[3, 4]'))",
    "distance": "select round(image_distance('images', 3, 4), 3)",
    "none": "select image_embedding('images', 99)",
}


async def run_sql(datasette: Any, sql: str, name: str = "there") -> Any:
    page = f"/{name}/-/query" if IS_ONE else f"/{name}"
    return await ask(datasette, f"{page}.json?sql={quote(sql)}&_shape=arrays", ROOT)


@pytest.mark.parametrize("which", SQL)
async def test_sql_functions_ask_the_store_where_that_is_allowed(pair, which):
    datasette = open_datasette(*pair, plugin={"sql_store": True})
    here, there = [
        (await run_sql(datasette, SQL[which], name)).json()["rows"]
        for name in ("here", "there")
    ]
    if which == "similar":
        here, there = ([json.loads(v)["pk"] for (v,) in rows] for rows in (here, there))
    assert there == here


async def test_sql_functions_say_why_not(pair):
    datasette = open_datasette(pair[1])
    assert (await run_sql(datasette, SQL["similar"])).status_code == 400
    problem = "select image_store_problem('images')"
    [[said]] = (await run_sql(datasette, problem)).json()["rows"]
    assert '"sql_store": true' in said
    put_in(pair[1], free_url())
    datasette = open_datasette(pair[1], plugin={"sql_store": True})
    [[said]] = (await run_sql(datasette, problem)).json()["rows"]
    assert "does not answer" in said
    datasette = open_datasette(pair[0])
    [[said]] = (await run_sql(datasette, problem, "here")).json()["rows"]
    assert said is None


async def test_sql_waits_for_no_engine_longer_than_for_sql(pair):
    with engine(None) as url:
        put_in(pair[1], url)
        settings = {"settings": {"sql_time_limit_ms": 200}}
        datasette = open_datasette(pair[1], plugin={"sql_store": True}, **settings)
        problem = "select image_store_problem('images')"
        response = await run_sql(datasette, problem)
        assert response.status_code in (200, 400)  # the limit may be over by then
        assert (await ask(datasette, "/there/images.json")).status_code == 200


async def test_sql_functions_work_on_connections_of_our_own(pair):
    rows = []
    for path in pair:
        with opened(path) as conn:
            prepare_connection(conn)
            found = conn.execute(SQL["similar"]).fetchall()
            rows.append([json.loads(value)["pk"] for (value,) in found])
    assert rows[1] == rows[0]


async def test_view_as_sql_is_sql_that_runs(pair):
    datasette = open_datasette(pair[1], plugin={"sql_store": True})
    page = (await ask(datasette, "/there/images/-/similar?_like=3&_size=4", ROOT)).text
    link = link_to(page, "sql=")
    shown = (await ask(datasette, link, ROOT)).text
    assert shown.count(".png</td>") == 8  # its path and its name
    filtered = await ask(datasette, "/there/images/-/similar?_like=3&folder=red", ROOT)
    assert "sql=" not in filtered.text
    off = open_datasette(pair[1])
    page = (await ask(off, "/there/images/-/similar?_like=3", ROOT)).text
    assert "sql=" not in page


async def test_tables_that_tell_where_an_engine_is_are_not_shown(pair):
    datasette = open_datasette(pair[1])
    for name in ("collections", "unsent"):
        response = await ask(datasette, f"/there/_image_similarity_{name}.json")
        assert response.status_code == 403
    response = await ask(
        open_datasette(pair[0]), "/here/_image_similarity_collections.json"
    )
    assert response.status_code == 200


async def test_commands_say_where_vectors_are(pair):
    [told] = answer("status", pair[1])
    assert told["store"].startswith("milvus-lite:/")
    assert told["unsent"] == 0
    [here] = answer("status", pair[0])
    assert told["bytes"] == here["bytes"] - 24 * 1308 * 4
    assert "kept in      milvus-lite:" in command("status", pair[1]).output
    said = command("verify", pair[1])
    assert said.exit_code == 0
    assert "reconcile" in said.output


async def test_verify_finds_what_waits_and_is_not_usable(pair):
    with opened(pair[1]) as conn:
        conn.execute(
            "insert into _image_similarity_unsent (collection_id, pk, sha256, vector) "
            "values (1, 5, 'new', x'0000')"
        )
    assert "wait to be sent" in command("verify", pair[1]).output
    command("verify", pair[1], "--repair")
    assert "1 changes wait" in command("status", pair[1]).output
    with ImageCollection(pair[1]) as collection:
        assert len(collection.similar(3, k=30)) == 22


@pytest.mark.parametrize("config", [None, {"sql_store": True}])
async def test_where_engines_are_is_no_visitor_s_business(pair, config):
    with sqlite3.connect(pair[1]) as conn:
        conn.execute(
            "insert into _image_similarity_copies values "
            "(1, 'milvus://engine.internal:19530/photos', 'there-1/images')"
        )
    datasette = open_datasette(pair[1], plugin=config or {})
    for table in ("copies", "unsent", "collections"):
        for end in ("", ".json", ".csv", "/1"):
            response = await ask(datasette, f"/there/_image_similarity_{table}{end}")
            assert response.status_code == 403, (table, end)
            assert "engine.internal" not in response.text
