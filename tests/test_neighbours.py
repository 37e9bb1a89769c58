"""Beside other plugins.

They are in an environment of their own, where these tests run in a process of their own:
with them Datasette's pages are others than the rest of the suite expects.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasette
import pytest
from conftest import picture
from core import embed, sql
from datasette import hookimpl
from datasette.plugins import pm
from serving import IS_ONE, ROOT, ask, ask_json, link_to, open_datasette, post_picture

HERE = importlib.util.find_spec("datasette_render_images") is not None
PLACE = Path(sys.prefix, "beside", f"neighbours-{datasette.__version__}")
beside = pytest.mark.skipif(not HERE, reason="runs beside the other plugins alone")
TOKEN = {"authorization": "Bearer abc"}
CONFIG: dict[str, Any] = {
    "plugins": {"datasette-auth-tokens": {"tokens": [{"token": "abc", "actor": ROOT}]}},
    "databases": {"works": {"allow": {"id": "root"}}},
}


@pytest.mark.skipif(HERE, reason="they run already")
@pytest.mark.skipif(not PLACE.exists(), reason="tests/run installs the other plugins")
def test_beside_other_plugins() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (PLACE, *sys.path)))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout)


@pytest.fixture
def works(tmp_path: Path) -> Path:
    """Pictures in a column, others in a second one, places, and a link as JSON."""
    path = tmp_path / "works.db"
    sql(
        path,
        "create table works (id integer primary key, scan blob, other blob, latitude real, "
        "longitude real, about text)",
    )
    link = '{"href": "https://example.com/1", "label": "About"}'
    for n in range(1, 4):
        row = (n, picture("red", n), picture("blue", n), 52.0 + n, 4.0 + n, link)
        sql(path, "insert into works values (?, ?, ?, ?, ?, ?)", row)
    embed(path, table="works", blob_column="scan")
    return path


@pytest.fixture(autouse=True)
def nothing_is_left_unawaited() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert not [one for one in caught if "never awaited" in str(one.message)]


@beside
async def test_our_cell_wins_and_all_others_are_theirs(works: Path) -> None:
    page = (await ask(open_datasette(works), "/works/works")).text
    assert page.count("Find similar") == 3
    assert page.count("/works/works/-/thumbnail/") == 3
    cells = re.findall(r'<td class="col-(\w+)[^>]*>(.*?)</td>', page, re.DOTALL)
    assert len([cell for name, cell in cells if "data:image" in cell]) == 3
    assert all("data:image" in cell for name, cell in cells if name == "other")
    links = [cell for name, cell in cells if name == "about"]
    assert all('<a href="https://example.com/1"' in cell for cell in links)
    assert len(links) == 3


@beside
async def test_a_table_without_embeddings_is_theirs_alone(works: Path) -> None:
    sql(works, "create table plain as select id, scan from works")
    page = (await ask(open_datasette(works), "/works/plain")).text
    assert page.count("data:image") == 3
    assert "thumbnail" not in page


@beside
@pytest.mark.parametrize("page", ["works", "works/1", "works/-/similar?_like=1"])
async def test_maps_and_charts_are_drawn_beside_ours(works: Path, page: str) -> None:
    answer = await ask(open_datasette(works), f"/works/{page}")
    assert answer.status_code == 200
    assert "cluster-map" in answer.text or page != "works"
    assert "datasette_vega" in answer.text or page != "works"
    policy = answer.headers.get("content-security-policy", "")
    if "script-src" in policy:  # a page of ours lets scripts of the frame run, by a nonce
        loaded = re.findall(r"<script[^>]* src=[^>]*>", answer.text)
        assert all("nonce=" in script for script in loaded)


@beside
async def test_tokens_open_our_pages(works: Path) -> None:
    site = open_datasette(works, config=CONFIG)
    for page in ("similar.json?_like=1", "thumbnail/1", "search-by-image"):
        path = f"/works/works/-/{page}"
        assert (await ask(site, path)).status_code == 403, page
        assert (await ask(site, path, headers=TOKEN)).status_code == 200, page
    path = "/works/works/-/search-by-image.json"
    answer = await post_picture(site, path, picture("red", 1), headers=TOKEN)
    assert answer.status_code == 200, answer.text
    assert answer.json()["rows"][0]["pk"] == "1"


@beside
async def test_a_schema_is_edited(works: Path) -> None:
    site = open_datasette(works)
    path = "/-/edit-schema/works/works"
    form = await ask(site, path, ROOT)
    assert form.status_code == 200
    fields = {"add_column": "1", "add_column_name": "mine", "add_column_type": "text"}
    fields |= {"name": "mine", "type": "text"}
    headers = {"origin": "http://localhost"}
    if token := re.search('name="csrftoken" value="(.+?)"', form.text):
        fields["csrftoken"] = token[1]
        headers["cookie"] = f"ds_csrftoken={token[1]}"
    signed = f"ds_actor={site.sign({'a': ROOT}, 'actor')}"
    headers["cookie"] = "; ".join(filter(None, (headers.get("cookie"), signed)))
    answer = await site.client.post(path, data=fields, headers=headers)
    assert answer.status_code == 302, answer.text
    found = await ask_json(site, "/works/works/-/similar.json?_like=1")
    assert [row["row"]["mine"] for row in found["rows"]] == [None, None]
    assert (await ask(site, "/works/works", ROOT)).text.count("Find similar") == 3


@beside
@pytest.mark.skipif(not IS_ONE, reason="Datasette 0.65 does not write")
async def test_rows_are_edited(works: Path) -> None:
    site = open_datasette(works)
    page = (await ask(site, "/works/works", ROOT)).text
    assert "write-ui" in page
    assert page.count("Find similar") == 3
    sql(works, "create table words (id integer primary key, x text)")
    sql(works, "insert into words values (1, 'x')")  # it cannot show BLOBs
    path = "/-/datasette-write-ui/edit-row-details?db=works&table=words&primaryKeys=1"
    assert (await ask(site, path, ROOT)).status_code == 200


async def test_other_cells_are_nothing_at_once(works: Path) -> None:
    """Not even a coroutine, also where a plugin is asked before us."""
    given: list[tuple[str, object]] = []

    class First:
        __name__ = "first"

        @hookimpl(tryfirst=True)
        def render_cell(self, value: object) -> str | None:
            return "theirs" if isinstance(value, bytes) else None

    class Watch:
        __name__ = "watch"

        @hookimpl(hookwrapper=True)
        def render_cell(self, column: str) -> Iterator[None]:
            outcome = yield
            given.extend((column, one) for one in outcome.get_result() if one != "theirs")

    for plugin in (Watch(), First()):
        pm.register(plugin, name=f"neighbour-{type(plugin).__name__}")
    try:
        site = open_datasette(works)
        for page in ("works", "works/1", "_image_similarity_items"):
            assert (await ask(site, f"/works/{page}")).status_code == 200
    finally:
        pm.unregister(name="neighbour-Watch")
        pm.unregister(name="neighbour-First")
    mine = [column for column, one in given if callable(one)]
    assert mine == ["scan"] * 3
    assert HERE or len(given) == len(mine)
    assert link_to((await ask(site, "/works/works")).text, "/-/similar?_like=1")
