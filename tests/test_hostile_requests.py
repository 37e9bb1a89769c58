"""Hostile requests, in short: `tests/stress/run hostile`, `sockets` and `deadlines` send
and measure very many more."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from core import opened
from datasette.utils.sqlite import sqlite3
from serving import ask, open_datasette
from stress import deadlines, hostile, million, sockets

from datasette_image_similarity import database as db
from datasette_image_similarity.query import SearchTimeout, deadline

GALLERY = f"/{hostile.DATABASE}/{hostile.TABLE}"
PAGE = f"{GALLERY}/-"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.get_app_dir", lambda *_, **__: str(folder / "config"))
        return hostile.make_gallery(folder)


@pytest.fixture
def site(made: Path) -> Iterator[hostile.Site]:
    site = hostile.Site(made)
    yield site
    site.close()


def test_hostile_requests_are_answered_in_words(site: hostile.Site) -> None:
    found = hostile.run(site, 100, seed=time.time_ns() % 2**32)
    assert not found.failures
    assert min(found.statuses[status] for status in (200, 400, 404)) > 0


def test_every_route_and_parameter_is_attacked() -> None:
    addresses = set(deadlines.pages("gallery"))
    assert {"/gallery/photos/-/map/points.bin", "/gallery/photos/-/similar.csv"} < addresses
    parameters, fields = hostile.names_read()
    assert {"_like", "_image_region", "_max_distance", "_days", "_run"} <= {*parameters}
    assert {"image", "cluster", "embedding", "group", "version"} <= {*fields}


async def test_forms_that_are_broken_or_too_big_are_refused(site: hostile.Site) -> None:
    await site.start()
    for body in hostile.broken_forms():
        kind = (b"content-type", sockets.MULTIPART)
        path = f"{PAGE}/search-by-image.json".encode()
        request = hostile.Request("POST", path, headers=(kind,), body=(body,))
        answer, wrong = await hostile.attack(site, request, root=False)
        assert wrong is None, (wrong, str(request))
        assert answer.status in (200, 400, 413)


async def test_other_methods_are_refused(site: hostile.Site) -> None:
    await site.start()
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
        request = hostile.Request(method, f"{PAGE}/similar.json".encode(), b"_like=1")
        answer = await site.ask(request)
        assert answer.status == 405
        assert b"GET, HEAD, POST" in answer.body


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_real_server_outlives_clients_that_keep_to_no_rules(made: Path) -> None:
    with sockets.Server(made, sockets.CURATED) as running:
        found = sockets.run(running, megabytes=22, held=20, left=10)
    assert not found.failures


# Deadlines


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 rows; a million are for the long form."""
    file = tmp_path_factory.mktemp("many") / "many.db"
    million.make_database(file, 20_000, dimensions=16)
    return file


def test_no_request_outlasts_its_deadline(many: Path) -> None:
    only = r"\?(_like=1&)?(_exact=1|_image_region=-1|_column=title)|sql="
    failures: list[str] = []
    found = deadlines.run(many, 100, failures.append, only)
    assert not failures
    assert len(found) > 40


def test_an_interrupt_comes_again_until_the_block_ends(many: Path) -> None:
    slow = "with recursive n(x) as (select 1 union all select x + 1 from n) select sum(x)"

    def goes_on(conn: sqlite3.Connection) -> None:
        with deadline(conn, 0.05):
            with suppress(sqlite3.OperationalError):
                conn.execute(f"{slow} from n")
            conn.execute(f"{slow} from n")

    with opened(many) as conn:
        started = time.monotonic()
        with pytest.raises(SearchTimeout):
            goes_on(conn)
        assert time.monotonic() - started < 5
        assert db.find_collection(conn, million.TABLE)


async def test_all_that_is_asked_for_one_request_has_one_deadline(many: Path) -> None:
    """A filter of ours, the search, its captions: each alone would have time enough."""
    datasette = open_datasette(many, settings={"sql_time_limit_ms": 60})
    # A hundred saved questions, some statements each.
    page = f"/many/{million.TABLE}/-/questions.json"
    await ask(datasette, page)
    clock = deadlines.Clock()
    answer = await ask(datasette, page)
    assert answer.status_code in (200, 503)
    assert all(one["url"] for one in answer.json().get("questions", []))
    assert clock.seconds() < 2


async def test_a_long_page_lets_others_be_answered(many: Path) -> None:
    datasette = open_datasette(many, settings={"sql_time_limit_ms": 30_000})
    path = f"/many/{million.TABLE}/-/similar?_like=1&_size=max"
    await ask(datasette, path)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    watching = asyncio.create_task(others())
    answer = await ask(datasette, path)
    watching.cancel()
    assert answer.text.count("ims-tile") >= 1000
    assert turns > 40
