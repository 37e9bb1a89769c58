"""Who is told what, on a site full of secrets: the short form of `stress/matrix.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from core import sql
from datasette.utils.sqlite import sqlite3
from serving import IS_ONE, ROOT, ask, ask_json, change, open_datasette
from stress import matrix
from stress.site_of_secrets import World, build

from datasette_image_similarity import plugin
from datasette_image_similarity.web.frame import Frame

PART = 40  # one request in so many: the whole takes minutes
PRIVATE = {"databases": {"gallery": {"tables": {"images": {"allow": {"id": "root"}}}}}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("secrets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.get_app_dir", lambda *_, **__: str(folder / "configuration"))
        (folder / "site").mkdir()
        yield build(folder / "site")


def test_nobody_is_told_what_is_not_theirs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "click.get_app_dir", lambda *_, **__: str(world.folder.parent / "configuration")
    )
    failures: list[str] = []
    figures = asyncio.run(matrix.run(world, failures.append, part=PART))
    assert failures == []
    assert figures["requests"] > 300


def test_a_route_without_a_rule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = plugin.register_routes()
    address = r"/(?P<database>[^/]+)/(?P<table>[^/]+)/-/new(?:\.(?P<format>json|xml))?$"
    monkeypatch.setattr(plugin, "register_routes", lambda: [*there, (address, None)])
    with pytest.raises(KeyError, match="new"):
        matrix.routes()
    monkeypatch.setitem(matrix.RULES, "new", matrix.Rule())
    found = [one.format for one in matrix.routes() if "/new" in one.address]
    assert found == [None, "json", "xml"]


@pytest.mark.parametrize("name", ["pictures", "Images"])
async def test_a_renamed_table_is_told_nothing_of(copied: Path, name: str) -> None:
    """Its new name may be private; what our tables remember is the old one."""
    change(
        copied, "alter table images rename to other", f"alter table other rename to {name}"
    )
    config = {"databases": {"gallery": {"tables": {name: {"allow": {"id": "root"}}}}}}
    site = open_datasette(copied, config=config)
    for table in ("items", "thumbnails", "vectors_1", "failures"):
        path = f"/gallery/_image_similarity_{table}.json"
        assert (await ask(site, path)).status_code == 403, path
    assert (await ask_json(site, "/-/image-similarity.json"))["collections"] == []
    response = await ask(site, "/gallery/images/-/similar?_like=1")
    assert response.status_code in (403, 404)


async def test_how_many_pictures_there_are_is_not_counted_by_sqlite(copied: Path) -> None:
    """vec0's tables have it count rows, where the number of a private table's shows."""
    path = "/gallery/sqlite_sequence.json"
    sql(copied, "create table theirs (id integer primary key autoincrement)")
    sql(copied, "insert into theirs default values")
    assert (await ask(open_datasette(copied), path)).status_code == 200
    site = open_datasette(copied, config=PRIVATE)
    assert (await ask(site, path)).status_code == 403
    assert (await ask(site, path, ROOT)).status_code == 200


async def test_sqlite_counts_where_nothing_is_embedded(tmp_path: Path) -> None:
    with closing(sqlite3.connect(str(tmp_path / "other.db"))) as conn:
        conn.execute("create table t (id integer primary key autoincrement)")
    site = open_datasette(tmp_path / "other.db")
    assert (await ask(site, "/other/sqlite_sequence.json")).status_code == 200


@pytest.mark.skipif(not IS_ONE, reason="Datasette 0.65 has no restricted tokens")
async def test_a_token_restricted_to_viewing_is_no_curator_s(copied: Path) -> None:
    site = open_datasette(copied, plugin={"curators": {"id": "carol"}, "history": True})
    await site.invoke_startup()
    viewing = {"a": ["view-instance", "view-database", "view-table"]}
    data = {"name": "mine", "question": "_like=1"}
    for restrictions, status in (({"_r": viewing}, 403), ({}, 200)):
        token = {"a": "carol", "t": 1_700_000_000, **restrictions}
        signed = f"Bearer dstok_{site.sign(token, namespace='token')}"
        headers = {"authorization": signed, "accept": "application/json"}
        page = "/gallery/images/-/questions"
        response = await ask(site, page, method="POST", data=data, headers=headers)
        assert response.status_code == status
        log = await ask(site, "/gallery/images/-/searches.csv", headers=headers)
        assert log.status_code == status


async def test_a_get_changes_nothing_but_the_log(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasette_image_similarity.web.log.SECONDS", 0)

    def contents() -> dict[str, list]:
        names = sql(copied, "select name from sqlite_master where type = 'table'")
        plain = (n for (n,) in names if "_vectors_1" not in n and "_searches" not in n)
        return {name: sql(copied, f'select * from "{name}"') for name in plain}

    site = open_datasette(copied, plugin={"history": True})
    before = contents()
    for method in ("GET", "HEAD"):
        response = await ask(site, "/gallery/images/-/similar?_like=1", method=method)
        assert response.status_code == 200
    await asyncio.sleep(0.2)
    await site.databases["gallery"].execute_write_fn(lambda conn: None)
    assert contents() == before
    assert sql(copied, "select count(*) from _image_similarity_searches") == [(2,)]


@pytest.mark.parametrize("cors", [False, True])
async def test_other_sites_read_only_what_cors_allows(copied: Path, cors: bool) -> None:
    site = open_datasette(copied, cors=cors)
    for page in ("similar.json?_like=1", "similar.csv?_like=1", "clusters.json"):
        response = await ask(site, f"/gallery/images/-/{page}")
        assert ("access-control-allow-origin" in response.headers) == cors
        assert "access-control-allow-credentials" not in response.headers
    for page in ("similar?_like=1", "thumbnail/1", "search-by-image", "questions.json"):
        response = await ask(site, f"/gallery/images/-/{page}")
        assert "access-control-allow-origin" not in response.headers


# The frame of a page


def allowed(frame: str) -> tuple[str, str]:
    found = Frame("N")
    return found.allow(frame), found.policy()


def test_scripts_and_styles_of_the_frame_get_the_nonce() -> None:
    text, _ = allowed(
        "<SCRIPT async>let a = '<script>' + \"<style>\";</SCRIPT><!-- <script> -->"
        '<link rel="stylesheet" href="a.css"><style>p > a {}</style><scripts>'
    )
    assert text == (
        '<SCRIPT nonce="N" async>let a = \'<script>\' + "<style>";</SCRIPT>'
        '<!-- <script> --><link nonce="N" rel="stylesheet" href="a.css">'
        '<style nonce="N">p > a {}</style><scripts>'
    )


@pytest.mark.parametrize(
    ("frame", "directive", "source"),
    [
        ('<script src="https://a.example/x.js"></script>', "default-src", "https://a.exam"),
        ('<link href="//b.example:81/x.css">', "style-src", "b.example:81"),
        ("<img src=https://c.example/logo.png>", "img-src", "https://c.example"),
        ('<form action="https://d.example/find">', "form-action", "https://d.example"),
        (
            "<p onclick='f(&quot;a&quot;)'>",
            "script-src",
            "'sha256-3H/BoyVyxAgdH8fJWml5auxGN9IaBn3BFYPArFwQ2XA='",
        ),
        ('<a href="https://e.example/">', "default-src", None),
        ("<script>let a = '<img src=https://f.example/>'</script>", "img-src", None),
        ('<img src="https://g.example;script-src *">', "script-src", None),
    ],
)
def test_what_the_frame_names_is_allowed(
    frame: str, directive: str, source: str | None
) -> None:
    directives = dict(part.split(" ", 1) for part in allowed(frame)[1].split("; "))
    if source is None:
        assert "example" not in directives[directive] or "g.example" in frame
        assert directives["script-src"] == "'nonce-N' 'strict-dynamic'"
    else:
        assert source in directives[directive]


async def test_a_page_has_no_marks_left_and_a_nonce_of_its_own(copied: Path) -> None:
    site = open_datasette(copied)
    pages = [await ask(site, "/gallery/images/-/map") for _ in range(2)]
    nonces = {
        one.headers["content-security-policy"].partition("nonce-")[2] for one in pages
    }
    assert len({one.partition("'")[0] for one in nonces}) == 2
    first = pages[0].headers["content-security-policy"]
    nonce = first.partition("'nonce-")[2].partition("'")[0]
    assert pages[0].text.count(f'nonce="{nonce}"') >= 3
    assert "<title>Map of images</title>" in pages[0].text
    assert "unsafe-inline" not in first
