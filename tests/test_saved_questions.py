"""Questions saved under a name: what is kept, who may, what becomes of them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from core import make_older, value
from datasette.app import Datasette
from datasette.utils.sqlite import sqlite3
from serving import IS_ONE, ROOT, ask, ask_json, change, link_to, open_datasette

BASE = "/gallery/images/-/questions"
LIKE = "_like=1&_like=2&label=red&_max_distance=0.5"


async def save(
    site: Datasette,
    name: str,
    question: str = LIKE,
    actor: dict | None = ROOT,
    path: str = BASE,
    **more: Any,
) -> Any:
    data = {"name": name, "question": question}
    headers = {"accept": "application/json", **more.pop("headers", {})}
    return await ask(site, path, actor, "POST", data={**data, **more}, headers=headers)


async def saved(site: Datasette, **options: Any) -> list[dict]:
    return (await ask_json(site, f"{BASE}.json", **options))["questions"]


async def test_a_question_is_saved_and_asked_again(copied: Path) -> None:
    site = open_datasette(copied)
    page = await ask(site, f"/gallery/images/-/similar?{LIKE}", ROOT)
    assert 'name="question" value="_like=1&amp;_like=2&amp;label=red' in page.text
    response = await save(site, "Two reds")
    assert response.json()["ok"] is True
    (one,) = await saved(site)
    assert (one["name"], one["question"], one["actor"]) == ("Two reds", LIKE, "root")
    assert one["words"] == ['label = "red"', "up to distance 0.5"]
    shown = (await ask(site, BASE)).text
    assert "thumbnail/1" in shown
    assert "thumbnail/2" in shown
    answer = await ask(site, link_to(shown, "similar?_like=1"))
    assert answer.status_code == 200
    assert "label = &#34;red&#34;" in answer.text


async def test_a_form_leads_to_the_list(copied: Path) -> None:
    site = open_datasette(copied)
    data = {"name": "Reds", "question": LIKE}
    response = await ask(site, BASE, ROOT, "POST", data=data)
    assert response.status_code == 302
    assert response.headers["location"] == BASE


@pytest.mark.parametrize(
    ("question", "kept"),
    [
        ("_like=1&_evil=x&_next=24&_collection=y&_shape=array", "_like=1"),
        ("_like=1&label__contains=%3Cb%3E", "_like=1&label__contains=%3Cb%3E"),
        ("_like=1&_size=3&_exact=1", "_like=1&_exact=1"),
    ],
)
async def test_only_what_asks_is_kept(question: str, kept: str, copied: Path) -> None:
    site = open_datasette(copied)
    assert (await save(site, "x", question)).status_code == 200
    assert [one["question"] for one in await saved(site)] == [kept]


@pytest.mark.parametrize(
    "question",
    [
        "",
        "label=red",
        "https://example.com/?_like=1",
        "javascript:alert(1)",
        "_like=999",
        "_like=1&colour=red",
        "_like=1&_max_distance=far",
        "_like=ä",
        "_like=1&label=" + "x" * 20_000,
    ],
)
async def test_what_cannot_be_asked_is_not_saved(question: str, copied: Path) -> None:
    site = open_datasette(copied)
    response = await save(site, "x", question)
    assert response.status_code in (400, 404)
    assert response.json()["ok"] is False
    assert await saved(site) == []


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, "a\u202eb", "a\x00b"])
async def test_names_that_are_none(name: str, copied: Path) -> None:
    site = open_datasette(copied)
    assert (await save(site, name)).status_code == 400


async def test_names_are_unique_and_can_be_changed(copied: Path) -> None:
    site = open_datasette(copied)
    first = (await save(site, " A  name ")).json()["id"]
    second = (await save(site, "Another")).json()["id"]
    again = await save(site, "A name")
    assert again.status_code == 400
    assert "already" in again.json()["error"]
    taken = await save(site, "A name", path=f"{BASE}/rename", id=str(second))
    assert taken.status_code == 400
    renamed = await save(site, "A third", path=f"{BASE}/rename", id=str(first))
    assert renamed.status_code == 200
    assert {one["name"] for one in await saved(site)} == {"A third", "Another"}
    deleted = await save(site, "", path=f"{BASE}/delete", id=str(first))
    assert deleted.status_code == 200
    assert [one["name"] for one in await saved(site)] == ["Another"]
    for path in ("rename", "delete"):
        for id in (str(first), "x", "-1", "9" * 30, "²"):
            response = await save(site, "x", path=f"{BASE}/{path}", id=id)
            assert response.status_code in (400, 404)


async def test_who_may_change_them(copied: Path) -> None:
    site = open_datasette(copied)
    assert (await save(site, "x")).status_code == 200
    for actor in (None, {"id": "anna"}):
        page = (await ask(site, f"/gallery/images/-/similar?{LIKE}", actor)).text
        assert "Save this question" not in page
        listed = (await ask(site, BASE, actor)).text
        assert "--root" in listed
        assert "Delete" not in listed
        for path in (BASE, f"{BASE}/rename", f"{BASE}/delete"):
            response = await save(site, "y", actor=actor, path=path, id="1")
            assert response.status_code == 403, path
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://example.com"}):
        response = await save(site, "y", path=f"{BASE}/delete", id="1", headers=headers)
        assert response.status_code == 403
    for path in (f"{BASE}/rename", f"{BASE}/delete"):
        response = await ask(site, path, ROOT)
        assert response.status_code == 405
    assert len(await saved(site)) == 1
    site = open_datasette(copied, plugin={"curators": {"id": "anna"}})
    assert (await save(site, "y", actor={"id": "anna"})).status_code == 200


async def test_a_denied_table_has_no_questions(copied: Path) -> None:
    await save(open_datasette(copied), "x")
    denied = {"databases": {"gallery": {"tables": {"images": {"allow": False}}}}}
    site = open_datasette(copied, config=denied)
    for path in (BASE, f"{BASE}.json"):
        assert (await ask(site, path)).status_code == 403
    for path in (BASE, f"{BASE}/rename", f"{BASE}/delete"):
        assert (await save(site, "y", path=path, id="1", actor=None)).status_code == 403
    path = "/gallery/_image_similarity_questions.json"
    assert (await ask(site, path)).status_code == 403


async def test_an_immutable_database_shows_them(copied: Path) -> None:
    await save(open_datasette(copied), "x")
    site = open_datasette(immutables=[str(copied)])
    assert len(await saved(site)) == 1
    page = (await ask(site, f"/gallery/images/-/similar?{LIKE}", ROOT)).text
    assert "Save this question" not in page
    assert (await save(site, "y")).status_code == 403


async def test_what_no_longer_works_says_so(copied: Path) -> None:
    site = open_datasette(copied)
    for name, question in (
        ("row", "_like=3"),
        ("column", "_like=1&label=red"),
        ("well", "_like=1"),
    ):
        assert (await save(site, name, question)).status_code == 200
    change(
        copied,
        "delete from images where id = 3",
        "alter table images rename column label to kind",
    )
    found = {one["name"]: one for one in await saved(site)}
    assert "row 3" in found["row"]["problem"]
    assert "no column label" in found["column"]["problem"]
    assert found["row"]["url"] is None
    assert found["well"]["problem"] is None
    page = (await ask(site, BASE)).text
    assert page.count("No longer works") == 2


async def test_what_a_stranger_wrote_is_neither_run_nor_linked_to(copied: Path) -> None:
    site = open_datasette(copied)
    await save(site, "well")
    hostile = '"><script>alert(1)</script>'
    with closing(sqlite3.connect(copied)) as conn, conn:
        for number, question in enumerate(
            [
                "javascript:alert(1)",
                "_like=1&_x=" + hostile,
                b"\xff",
                None,
                "_like=1" * 9999,
            ]
        ):
            conn.execute(
                "insert or ignore into _image_similarity_questions "
                "(collection_id, name, question, actor) values (1, ?, ?, ?)",
                (f"{hostile}{number}", question, hostile),
            )
    page = await ask(site, BASE, ROOT)
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert 'href="javascript' not in page.text
    for one in await saved(site):
        assert one["url"] is None or "/gallery/images/-/similar?_like=1" in one["url"]


async def test_a_database_from_before(copied: Path) -> None:
    make_older(copied)
    site = open_datasette(copied)
    assert await saved(site) == []
    assert "None yet" in (await ask(site, BASE)).text


async def test_questions_that_need_sql_are_told_to_those_who_may_not(copied: Path) -> None:
    site = open_datasette(copied)
    assert (await save(site, "sql", "_like=1&_where=id<9".replace("<", "%3C"))).is_success
    config = {"databases": {"gallery": {"allow_sql": {"id": "root"}}}}
    site = open_datasette(copied, config=config)
    (one,) = await saved(site)
    assert one["problem"]
    assert one["words"] == []


async def test_odd_keys(tmp_path: Path, photos: Path) -> None:
    """Compound keys with anything in them, and another collection over the table."""
    from core import HOG

    from datasette_image_similarity import ImageCollection

    path = tmp_path / "odd.db"
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("create table t (a text, b integer, file text, primary key (a, b))")
        for number in range(4):
            row = ("x/y,<z>&", number, f"photos/red/red-{number}.png")
            conn.execute("insert into t values (?, ?, ?)", row)
    for name in (None, "second"):
        with ImageCollection(path, "t", name=name) as collection:
            collection.embed(path_column="file", encoder=HOG)
    site = open_datasette(path)
    base = "/odd/t/-/questions"
    question = "_like=x~2Fy~2C~3Cz~3E~26%2C1"
    response = await save(site, "odd", question, path=base)
    assert response.status_code == 200, response.text
    (one,) = (await ask_json(site, f"{base}.json"))["questions"]
    assert one["problem"] is None
    assert (await ask(site, one["url"].replace("http://localhost", ""))).status_code == 200
    path = f"{base}?_collection=second"
    assert (await save(site, "odd", question, path=path)).status_code == 200
    listed = await ask_json(site, f"{base}.json?_collection=second")
    assert "_collection=second" in listed["questions"][0]["url"]


async def test_they_go_with_their_collection(copied: Path) -> None:
    from core import command

    await save(open_datasette(copied), "x")
    assert value(copied, "select count(*) from _image_similarity_questions") == 1
    assert command("remove", "--yes", copied).exit_code == 0


@pytest.mark.skipif(not IS_ONE, reason="0.65 has no insert-row in its configuration")
async def test_insert_row_is_the_permission(copied: Path) -> None:
    config = {"permissions": {"insert-row": {"id": "editor"}}}
    site = open_datasette(copied, config=config)
    assert (await save(site, "x", actor={"id": "editor"})).status_code == 200


async def test_weights_and_pictures_to_be_less_like(copied: Path) -> None:
    site = open_datasette(copied)
    question = "_like=1%3A2&_unlike=20&_distinct=1&_histogram=1"
    assert (await save(site, "x", question)).status_code == 200
    (one,) = await saved(site)
    assert one["question"] == "_like=1%3A2&_unlike=20&_distinct=1"
    assert one["words"] == ["no near-duplicates"]
    page = (await ask(site, BASE)).text
    assert 'alt="unlike row 20"' in page
    assert (await ask(site, link_to(page, "_unlike=20"))).status_code == 200
    sheet = await ask(site, f"/gallery/images/-/similar.html?{question}")
    assert "less like 1 other" in sheet.text
    change(copied, "delete from images where id = 20")
    (one,) = await saved(site)
    assert "row 20" in one["problem"]
