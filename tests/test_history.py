"""The log of searches: what is noted, who sees it, and that no search suffers by it."""

from __future__ import annotations

import asyncio
import csv
import io
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import picture
from core import make_older, sql
from datasette.app import Datasette
from datasette.utils.sqlite import sqlite3
from serving import ROOT, ask, ask_json, change, open_datasette, post_picture

from datasette_image_similarity.web.service import service

TABLE = "/gallery/images/-"
SIMILAR = f"{TABLE}/similar"
SEARCHES = f"{TABLE}/searches"
ON = {"history": True}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasette_image_similarity.web.log.SECONDS", 0)


async def written(site: Datasette) -> None:
    """Wait until all that was to be logged is."""
    await asyncio.gather(*service(site).log._tasks)
    if site.databases["gallery"].is_mutable:
        await site.databases["gallery"].execute_write_fn(lambda conn: None)


def logged(path: Path, columns: str = "page, question, filter, actor, results") -> list:
    order = "order by searched_at, rowid"
    return sql(path, f"select {columns} from _image_similarity_searches {order}")


async def click(site: Datasette, search: Any, pk: str = "2", **options: Any) -> Any:
    data = {"search": str(search), "pk": pk, "rank": "1", **options.pop("data", {})}
    return await ask(site, f"{SEARCHES}/click", method="POST", data=data, **options)


async def test_nothing_is_noted_unless_it_is_switched_on(copied: Path) -> None:
    site = open_datasette(copied)
    page = await ask(site, f"{SIMILAR}?_like=1", ROOT)
    await written(site)
    assert logged(copied) == []
    assert "data-search" not in page.text
    assert "image_similarity_history.js" not in page.text
    assert ">Searches<" not in page.text
    assert (await click(site, 1)).status_code == 404


async def test_searches_are_noted(copied: Path) -> None:
    site = open_datasette(copied, plugin=ON)
    query = "_like=1&_like=2&label=red&_max_distance=0.5"
    await ask(site, f"{SIMILAR}?{query}&_size=5&_collection=default", {"id": "anna"})
    await ask(site, f"{SIMILAR}.json?_like=3")
    await ask(site, f"{SIMILAR}.csv?_like=3&_size=2&_next=2")
    await ask(site, f"{SIMILAR}.zip?_like=3&_size=2")
    await post_picture(site, f"{TABLE}/search-by-image?label=blue", picture())
    await ask(site, f"{SIMILAR}?_like=999")  # no answer, no entry
    await ask(site, "/gallery/images/1")  # the strip of neighbours is no search
    await ask(site, f"{TABLE}/search-by-image")
    await written(site)
    assert logged(copied, "page, question, filter, actor, offset") == [
        ("similar", "_like=1&_like=2&_max_distance=0.5", "label=red", "anna", 0),
        ("similar.json", "_like=3", None, None, 0),
        ("similar.csv", "_like=3", None, None, 2),
        ("similar.zip", "_like=3", None, None, 0),
        ("search-by-image", "", "label=blue", None, 0),
    ]
    assert [row[0] for row in logged(copied, "results")][1:] == [23, 23, 23, 8]
    assert all(row[0] > 0 for row in logged(copied, "milliseconds"))


async def test_one_table_alone(copied: Path) -> None:
    tables = {"images": {"plugins": {"datasette-image-similarity": ON}}}
    site = open_datasette(copied, config={"databases": {"gallery": {"tables": tables}}})
    await ask(site, f"{SIMILAR}?_like=1")
    await written(site)
    assert len(logged(copied)) == 1


async def search(site: Datasette, path: Path) -> int:
    await ask(site, f"{SIMILAR}?_like=1")
    await written(site)
    return logged(path, "id")[-1][0]


async def test_clicks_are_noted(copied: Path) -> None:
    site = open_datasette(copied, plugin=ON)
    id = await search(site, copied)
    page = (await ask(site, f"{SIMILAR}?_like=1")).text
    assert f'data-clicks="{SEARCHES}/click"' in page
    assert (await click(site, id, "5", data={"rank": "7"})).status_code == 202
    await written(site)
    clicks = sql(copied, "select search_id, pk, rank from _image_similarity_clicks")
    assert clicks == [(id, 5, 7)]


async def test_clicks_that_belong_to_no_search(copied: Path) -> None:
    site = open_datasette(copied, plugin=ON)
    id = await search(site, copied)
    for wrong in (id + 1, 0, 2**53):
        assert (await click(site, wrong)).status_code == 202
    for data in ({"pk": "999"}, {"pk": ""}, {"rank": "x"}, {"search": "x"}, {"rank": "-1"}):
        assert (await click(site, id, data=data)).status_code == 400, data
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://example.com"}):
        assert (await click(site, id, headers=headers)).status_code == 403
    assert (await ask(site, f"{SEARCHES}/click")).status_code == 405
    change(copied, "update _image_similarity_searches set searched_at = '2020-01-01'")
    await click(site, id)
    await written(site)
    assert sql(copied, "select * from _image_similarity_clicks") == []


async def test_clicks_of_one_search_end(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasette_image_similarity.explore.history.CLICKS", 3)
    site = open_datasette(copied, plugin=ON)
    id = await search(site, copied)
    for _ in range(5):
        await click(site, id)
    await written(site)
    assert sql(copied, "select count(*) from _image_similarity_clicks") == [(3,)]


async def test_an_immutable_database_is_searched_and_told_of_once(
    copied: Path, capfd: pytest.CaptureFixture
) -> None:
    site = open_datasette(immutables=[str(copied)], plugin=ON)
    for _ in range(2):
        page = await ask(site, f"{SIMILAR}?_like=1", ROOT)
        assert page.status_code == 200
        assert "data-search" not in page.text
    assert capfd.readouterr().err.count("immutable") == 1
    assert (await ask(site, SEARCHES, ROOT)).status_code in (200, 403)
    curators = {**ON, "curators": {"id": "root"}}
    site = open_datasette(immutables=[str(copied)], plugin=curators)
    assert (await ask(site, SEARCHES, ROOT)).status_code == 200


async def test_a_locked_database_is_searched_and_told_of_once(
    copied: Path, capfd: pytest.CaptureFixture
) -> None:
    site = open_datasette(copied, plugin=ON)
    await ask(site, f"{SIMILAR}?_like=1")
    await written(site)
    set_timeout = "pragma busy_timeout = 1"
    await site.databases["gallery"].execute_write_fn(lambda conn: conn.execute(set_timeout))
    with closing(sqlite3.connect(copied, isolation_level=None)) as other:
        other.execute("begin immediate")
        for _ in range(2):
            assert (await ask(site, f"{SIMILAR}?_like=1")).status_code == 200
            while service(site).log._waiting["gallery"]:
                await asyncio.sleep(0.01)
    await written(site)
    assert capfd.readouterr().err.count("are not all logged") == 1
    await ask(site, f"{SIMILAR}?_like=2")  # and it goes on
    await written(site)
    assert logged(copied)[-1][1] == "_like=2"


async def test_what_waits_is_bounded(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("datasette_image_similarity.web.log.WAITING", 3)

    async def never(*_: Any) -> None:
        pass

    monkeypatch.setattr("datasette_image_similarity.web.log.write_later", never)
    site = open_datasette(copied, plugin=ON)
    for _ in range(6):
        assert (await ask(site, f"{SIMILAR}?_like=1")).status_code == 200
    assert len(service(site).log._waiting["gallery"]) == 3
    assert capfd.readouterr().err.count("are not all logged") == 1


async def test_an_older_database_gets_the_log(copied: Path) -> None:
    make_older(copied)
    site = open_datasette(copied, plugin=ON)
    for format in ("", ".json", ".csv"):
        assert (await ask(site, SEARCHES + format, ROOT)).status_code == 200
    await search(site, copied)
    assert len(logged(copied)) == 1


@pytest.mark.parametrize("path", ["", ".json", ".csv"])
async def test_only_curators_see_it(path: str, copied: Path) -> None:
    site = open_datasette(copied, plugin=ON)
    assert (await ask(site, SEARCHES + path)).status_code == 403
    assert (await ask(site, SEARCHES + path, {"id": "anna"})).status_code == 403
    assert (await ask(site, SEARCHES + path, ROOT)).status_code == 200
    assert ">Searches<" in (await ask(site, f"{SIMILAR}?_like=1", ROOT)).text
    assert ">Searches<" not in (await ask(site, f"{SIMILAR}?_like=1")).text
    site = open_datasette(copied, plugin={**ON, "curators": {"id": "anna"}})
    assert (await ask(site, SEARCHES + path, {"id": "anna"})).status_code == 200
    denied = {"databases": {"gallery": {"tables": {"images": {"allow": False}}}}}
    site = open_datasette(copied, plugin={**ON, "curators": True}, config=denied)
    assert (await ask(site, SEARCHES + path)).status_code == 403
    assert (await click(site, 1)).status_code == 403


@pytest.mark.parametrize("table", ["searches", "clicks"])
async def test_nobody_reads_the_tables_on_datasettes_pages(
    table: str, copied: Path
) -> None:
    site = open_datasette(copied, plugin=ON)
    id = await search(site, copied)
    await click(site, id)
    await written(site)
    for path in ("", ".json", ".csv", "/1", "/1.json", f"/{id}"):
        for name in (f"_image_similarity_{table}", f"_IMAGE_similarity_{table}"):
            response = await ask(site, f"/gallery/{name}{path}", ROOT)
            assert response.status_code in (403, 404), path
            assert "_like" not in response.text


async def test_the_charts(copied: Path) -> None:
    site = open_datasette(copied, plugin=ON)
    for _ in range(3):
        await ask(site, f"{SIMILAR}?_like=1")
    await ask(site, f"{SIMILAR}?_like=1&_next=5")
    await ask(site, f"{SIMILAR}?_like=2&label=mauve")
    await ask(site, f"{SIMILAR}?_like=4&label=%3Cscript%3Ealert(1)%3C/script%3E")
    await written(site)
    id = logged(copied, "id")[0][0]
    for pk in ("5", "5", "6"):
        await click(site, id, pk)
    await written(site)
    change(copied, "delete from images where id in (4, 6)")
    found = await ask_json(site, f"{SEARCHES}.json?_days=7", actor=ROOT)
    assert (found["searches"], found["without_results"], found["clicks"]) == (6, 2, 3)
    assert len(found["per_day"]) == 7
    assert sum(day["searches"] for day in found["per_day"]) == 6
    asked = [
        (one["question"], one["filter"], one["searches"]) for one in found["most_asked"]
    ]
    assert asked[0] == ("_like=1", None, 3)
    assert found["most_clicked"][0] == {"pk": 5, "clicks": 2, "mean_rank": 1.0}
    assert len(found["slowest"]) == 6
    times = [one["milliseconds"] for one in found["slowest"]]
    assert times == sorted(times, reverse=True)
    assert found["median_milliseconds"] in times[2:4]
    page = (await ask(site, SEARCHES, ROOT)).text
    assert "<svg" in page
    assert "UTC" in page
    assert "thumbnail/5" in page
    assert "row 6 is gone" in page
    assert "row 4" in page
    assert "<script>alert" not in page
    assert "label = &#34;mauve&#34;" in page
    for days in ("0", "-1", "x", "99999", "9" * 30):
        response = await ask(site, f"{SEARCHES}?_days={days}", ROOT)
        assert response.status_code == 400


async def test_the_log_as_csv(copied: Path) -> None:
    site = open_datasette(copied, plugin=ON)
    id = await search(site, copied)
    await click(site, id)
    await ask(site, f"{SIMILAR}.json?_like=2&label=red", {"id": "anna"})
    await written(site)
    text = (await ask(site, f"{SEARCHES}.csv", ROOT)).text
    newest, oldest = csv.DictReader(io.StringIO(text))
    assert (newest["actor"], newest["page"]) == ("anna", "similar.json")
    assert (newest["question"], newest["filter"]) == ("_like=2", "label=red")
    assert (oldest["clicks"], newest["clicks"]) == ("1", "0")


async def test_what_a_stranger_wrote_into_the_log(copied: Path) -> None:
    site = open_datasette(copied, plugin=ON)
    await search(site, copied)
    planted = [
        ("2020", "similar", "_like=1", 1, 2.0),
        ("zz", "similar", "_like=1", 1, 2.0),
        (None, "similar", b"\xff", 1, 2.0),
        (None, '"><script>alert(1)</script>', "javascript:alert(1)", 0, 3.0),
        (None, "similar", "_like=1", "many", "long"),
        (None, "similar", "_like=" + "x" * 99_999, 0, 1e300),
        (None, "../../evil", "_like=1", 1, float("inf")),
    ]
    with closing(sqlite3.connect(copied)) as conn, conn:
        for time, page, question, results, milliseconds in planted:
            conn.execute(
                "insert into _image_similarity_searches (collection_id, searched_at, page, "
                "question, offset, results, milliseconds) values (1, coalesce(?, "
                "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')), ?, ?, 0, ?, ?)",
                (time, page, question, results, milliseconds),
            )
        for pk, rank in ((b"\xff", 1), ("x", "y"), ("<b>", 2)):
            conn.execute(
                "insert into _image_similarity_clicks (collection_id, search_id, pk, rank) "
                "values (1, 1, ?, ?)",
                (pk, rank),
            )
    page = await ask(site, SEARCHES, ROOT)
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert 'href="javascript' not in page.text
    assert "evil" not in page.text
    found = await ask_json(site, f"{SEARCHES}.json", actor=ROOT)
    assert all(one["milliseconds"] < 1e6 for one in found["slowest"])
    assert (await ask(site, f"{SEARCHES}.csv", ROOT)).status_code == 200


async def test_how_to_switch_it_on(copied: Path) -> None:
    page = (await ask(open_datasette(copied), SEARCHES, ROOT)).text
    assert "&#34;history&#34;: true" in page or '"history": true' in page
    assert "ims-chart" not in page


async def test_that_sql_reads_it_is_said(copied: Path) -> None:
    words = "Everybody may run SQL"
    site = open_datasette(copied, plugin=ON)
    assert words in (await ask(site, SEARCHES, ROOT)).text
    config = {"databases": {"gallery": {"allow_sql": {"id": "root"}}}}
    site = open_datasette(copied, plugin=ON, config=config)
    assert words not in (await ask(site, SEARCHES, ROOT)).text
