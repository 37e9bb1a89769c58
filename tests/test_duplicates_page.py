"""The review page of duplicates: what it shows, what a POST changes, who may."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from core import embed, make_older, sql
from dupes import put_groups
from serving import ROOT, ask, ask_json, change, link_to, links, open_datasette

PAGE = "/gallery/images/-/duplicates"
FORM = {"accept": "text/html", "content-type": "application/x-www-form-urlencoded"}


@pytest.fixture
def reviewed(copied: Path) -> Path:
    put_groups(copied)
    return copied


async def post(
    site: Any, path: str, actor: dict | None = ROOT, **fields: object
) -> dict[str, Any]:
    """What a JSON client is answered."""
    response = await ask(site, f"{PAGE}/{path}", actor, "POST", json=fields)
    assert response.status_code == 200, response.text
    return response.json()


async def decide(site: Any, group: int, action: str, pk: str | None = None) -> dict:
    more = {} if pk is None else {"pk": pk}
    return await post(site, "decide.json", group=group, action=action, **more)


async def show(site: Any, query: str = "", actor: dict | None = ROOT) -> str:
    response = await ask(site, PAGE + query, actor)
    assert response.status_code == 200, response.text[:500]
    return response.text


async def state(site: Any, group: int) -> tuple[str, list[str | None]]:
    found = (await ask_json(site, f"{PAGE}.json?_group={group}"))["groups"][0]
    return found["state"], [one["decision"] for one in found["pictures"]]


def fields_of(page: str, value: str) -> dict[str, str]:
    """The fields that the form with a button of this value sends."""
    form = next(one for one in re.findall(r"(?s)<form.*?</form>", page) if value in one)
    hidden = re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', form)
    return dict(hidden)


async def test_the_first_open_group_is_shown_with_its_facts(reviewed: Path) -> None:
    site = open_datasette(reviewed)
    page = await show(site)
    assert "Group 1 of 1" in page
    assert "Identical files" in page
    assert page.count("data-picture") == 2
    page = await show(site, "?_tier=same")
    assert "Group 1 of 3" in page
    assert "0 of 3 decided" in page
    assert page.count("data-picture") == 3
    assert "Suggested to keep <strong>picture 1</strong>: 80 × 60, the others" in page
    assert page.count('<td data-what="Resolution">80 × 60</td>') == 3
    assert page.count('<td data-what="Path" class="imd-differs">') == 2
    assert "-/image/3" in page
    assert "-/image/6" in page


async def test_a_group_has_an_address_of_its_own(reviewed: Path) -> None:
    site = open_datasette(reviewed)
    page = await show(site, "?_group=3")
    assert "Group 2 of 3" in page
    assert "_group=2" in link_to(page, "_group=2")
    assert link_to(page, "_group=4")
    assert "Group 1 of 1" in await show(site, "?_group=5")


async def test_of_a_huge_group_some_are_shown_and_all_decided(
    reviewed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasette_image_similarity.web.duplicates.SHOWN", 2)
    site = open_datasette(reviewed)
    page = await show(site, "?_group=4")
    assert page.count("data-picture") == 2
    assert "3 more pictures are in this group" in page
    assert len((await decide(site, 4, "accept"))["changed"]) == 5
    assert len((await state(site, 4))[1]) == 5


async def test_what_counts_is_told(reviewed: Path) -> None:
    words = '{"words": ["Look-alikes: cosine ≥ 0.97.", 5]}'
    change(reviewed, f"update _image_similarity_scans set thresholds = '{words}'")
    page = await show(open_datasette(reviewed), "?_tier=alike")
    assert "24 pictures looked through" in page
    assert "Look-alikes: cosine ≥ 0.97." in page


async def test_a_group_that_is_gone_gives_way_to_the_next(reviewed: Path) -> None:
    site = open_datasette(reviewed)
    change(reviewed, "delete from images where id = 7")
    page = await show(site, "?_tier=same&_group=3")
    assert "is gone" in page
    assert "Group 2 of 2" in page
    response = await ask(site, f"{PAGE}.json?_group=3")
    assert (response.status_code, response.json()["ok"]) == (404, False)


async def test_forms_without_scripts_decide_and_lead_on(reviewed: Path) -> None:
    site = open_datasette(reviewed)
    page = await show(site, "?_tier=same")
    fields = {**fields_of(page, 'value="accept"'), "action": "accept"}
    response = await ask(site, f"{PAGE}/decide", ROOT, "POST", data=fields, headers=FORM)
    assert response.status_code == 302
    assert response.headers["location"] == f"{PAGE}?_tier=same&_group=3"
    assert "ds_messages" in response.headers["set-cookie"]
    assert await state(site, 2) == ("decided", ["keep", "mark", "mark"])
    rows = sql(reviewed, "select distinct actor from _image_similarity_decisions")
    assert rows == [("root",)]


async def test_every_action_by_json(reviewed: Path) -> None:
    site = open_datasette(reviewed)
    done = await decide(site, 2, "keep", "4")
    assert done["changed"] == {"3": "mark", "4": "keep", "5": "mark"}
    assert (done["next_group"], done["tiers"]["same"]["open"]) == (3, 2)
    assert done["message"] == "Kept picture 2, marked 2 others."
    await decide(site, 2, "unmark", "3")
    await decide(site, 2, "mark", "4")
    assert await state(site, 2) == ("decided", ["keep", "mark", "mark"])
    await decide(site, 3, "skip")
    assert await state(site, 3) == ("decided", ["skip", "skip"])
    assert (await decide(site, 4, "split", "11"))["next_group"] == 4
    assert (await state(site, 4))[1] == [None] * 4
    assert (await decide(site, 5, "split", "18"))["next_group"] is None
    assert (await decide(site, 4, "accept"))["next_group"] is None
    done = await post(site, "undo.json")
    assert set(done["changed"]) == {"9", "10", "12", "13"}
    assert done["next_group"] == 4


async def test_a_tier_is_accepted_with_what_was_announced(reviewed: Path) -> None:
    site = open_datasette(reviewed)
    page = await show(site, "?_tier=same")
    assert "suggested picture of 3 open groups" in page
    assert "<strong>7 pictures" in page
    fields = fields_of(page, "Mark 7 pictures")
    await decide(site, 3, "skip")
    response = await ask(site, f"{PAGE}/accept", ROOT, "POST", data=fields, headers=FORM)
    assert response.status_code == 409
    assert "6 pictures, not 7" in response.text
    done = await post(site, "accept.json", tier="same")
    assert sum(new == "mark" for new in done["changed"].values()) == 6
    assert "All decided" in await show(site, "?_tier=same")
    await post(site, "undo.json")
    assert "1 of 3 decided" in await show(site, "?_tier=same")


async def test_a_group_that_changed_meanwhile_is_not_decided(reviewed: Path) -> None:
    site = open_datasette(reviewed)
    fields = {**fields_of(await show(site, "?_group=2"), 'value="skip"'), "action": "skip"}
    put_groups(reviewed, [("same", (20, 21)), ("same", (22, 23))])
    response = await ask(site, f"{PAGE}/decide", ROOT, "POST", data=fields, headers=FORM)
    assert response.status_code == 409
    assert "look again" in response.text
    assert sql(reviewed, "select count(*) from _image_similarity_decisions") == [(0,)]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"group": 2, "action": "delete"}, 400),
        ({"group": 2, "action": "keep"}, 400),
        ({"group": 2, "action": "split"}, 400),
        ({"group": 2, "action": "keep", "pk": "999"}, 404),
        ({"group": 2, "action": "keep", "pk": "7"}, 409),
        ({"group": 2, "action": "keep", "pk": ["3"]}, 404),
        ({"group": 99, "action": "skip"}, 409),
        ({"group": "x", "action": "skip"}, 400),
        ({"group": 10**30, "action": "skip"}, 400),
        ({"action": "skip"}, 400),
        ([], 400),
    ],
)
async def test_what_cannot_be_decided_is_told(
    reviewed: Path, fields: Any, status: int
) -> None:
    site = open_datasette(reviewed)
    response = await ask(site, f"{PAGE}/decide.json", ROOT, "POST", json=fields)
    assert (response.status_code, response.json()["ok"]) == (status, False)
    assert sql(reviewed, "select count(*) from _image_similarity_decisions") == [(0,)]


async def test_a_list_of_groups_pages_and_filters(reviewed: Path) -> None:
    site = open_datasette(reviewed)
    await decide(site, 3, "accept")
    page = await show(site, "?_tier=same&_view=all&_size=2")
    assert re.findall(r'id="group-(\d+)"', page) == ["2", "3"]
    assert "1 kept, 1 marked" in page
    page = await show(site, link_to(page, "_next=").partition("duplicates")[2])
    assert re.findall(r'id="group-(\d+)"', page) == ["4"]
    page = await show(site, "?_tier=same&_view=all&_state=open")
    assert re.findall(r'id="group-(\d+)"', page) == ["2", "4"]
    fields = {**fields_of(page, 'value="accept"'), "action": "accept"}
    response = await ask(site, f"{PAGE}/decide", ROOT, "POST", data=fields, headers=FORM)
    expected = f"{PAGE}?_tier=same&_view=all&_state=open#group-2"
    assert response.headers["location"] == expected


async def test_groups_as_json_by_page(reviewed: Path) -> None:
    site = open_datasette(reviewed)
    found = await ask_json(site, f"{PAGE}.json?_size=3")
    assert [one["id"] for one in found["groups"]] == [1, 2, 3]
    assert found["tiers"]["same"]["groups"] == 3
    assert found["scanned"] == 24
    first = found["groups"][1]
    assert (first["keeper"], first["reason"]) == ("3", "80 × 60, the others smaller")
    assert first["pictures"][0]["width"] == 80
    following = await ask_json(site, f"{PAGE}.json?_size=3&_next={found['next']}")
    assert [one["id"] for one in following["groups"]] == [4, 5]
    assert following["next_url"] is None


async def test_marked_rows_as_csv(reviewed: Path) -> None:
    site = open_datasette(reviewed)
    await post(site, "accept.json", tier="same")
    change(reviewed, "delete from images where id = 4")
    response = await ask(site, f"{PAGE}.csv")
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [row["pk"] for row in rows] == ["5", "7", "10", "11", "12", "13"]
    assert rows[0]["path"].endswith(".png")


async def test_marked_pictures_as_a_table(reviewed: Path) -> None:
    site = open_datasette(reviewed)
    await decide(site, 2, "accept")
    page = await show(site, "?_tier=same&_collection=default")
    for part, expected in (("_image_decision=mark", [4, 5]), ("_image_group=3", [6, 7])):
        url = link_to(page, part)
        rows = await ask_json(site, url.replace("?", ".json?") + "&_shape=array")
        assert [row["id"] for row in rows] == expected


@pytest.mark.parametrize("actor", [None, {"id": "guest"}])
async def test_others_look_and_are_told_how_to_decide(
    reviewed: Path, actor: dict | None
) -> None:
    site = open_datasette(reviewed)
    page = await show(site, actor=actor)
    assert "You can look, but not decide" in page
    assert "--root" in page
    assert "<form" not in page[page.index("imd-review") :].partition("</footer")[0]
    for path in ("decide", "accept", "undo"):
        response = await ask(
            site,
            f"{PAGE}/{path}.json",
            actor,
            "POST",
            json={"group": 2, "action": "skip", "tier": "same"},
        )
        assert response.status_code == 403
        assert "--root" in response.json()["error"]


async def test_curators_decide(reviewed: Path) -> None:
    site = open_datasette(reviewed, plugin={"curators": {"id": "guest"}})
    guest = {"id": "guest"}
    assert "You can look" not in await show(site, actor=guest)
    await post(site, "decide.json", guest, group=2, action="skip")
    assert "You can look" in await show(site, actor=ROOT)


async def test_a_get_or_another_site_changes_nothing(reviewed: Path) -> None:
    site = open_datasette(reviewed)
    for path in ("decide", "accept", "undo"):
        assert (await ask(site, f"{PAGE}/{path}", ROOT)).status_code == 405
        response = await ask(
            site,
            f"{PAGE}/{path}",
            ROOT,
            "POST",
            data={"group": "2", "action": "skip", "tier": "same"},
            headers={**FORM, "origin": "https://elsewhere.example"},
        )
        assert response.status_code == 403
    assert sql(reviewed, "select count(*) from _image_similarity_decisions") == [(0,)]


@pytest.mark.parametrize("level", ["table", "database"])
async def test_a_private_table_has_no_duplicates_for_others(
    reviewed: Path, level: str
) -> None:
    mine: dict[str, Any] = {"allow": {"id": "root"}}
    config = {"databases": {"gallery": mine}}
    if level == "table":
        config = {"databases": {"gallery": {"tables": {"images": mine}}}}
    site = open_datasette(reviewed, config=config, plugin={"curators": True})
    for path in ("", ".json", ".csv", "?_view=all", "?_group=2", ".json?_group=999"):
        assert (await ask(site, PAGE + path)).status_code == 403
        assert (await ask(site, PAGE + path, ROOT)).status_code in (200, 404)
    for path in ("decide", "decide.json", "accept.json", "undo.json"):
        body = {"group": 2, "action": "skip", "tier": "same"}
        response = await ask(site, f"{PAGE}/{path}", None, "POST", json=body)
        assert response.status_code == 403
    assert sql(reviewed, "select count(*) from _image_similarity_decisions") == [(0,)]


async def test_an_immutable_database_is_only_looked_at(reviewed: Path) -> None:
    site = open_datasette(immutables=[str(reviewed)])
    page = await show(site)
    assert "opened as immutable" in page
    body = {"group": 2, "action": "skip"}
    response = await ask(site, f"{PAGE}/decide.json", ROOT, "POST", json=body)
    assert response.status_code == 403


async def test_before_the_first_scan_the_command_is_told(copied: Path) -> None:
    site = open_datasette(copied)
    page = await show(site)
    assert "datasette image-similarity duplicates gallery.db images" in page
    assert (await ask_json(site, f"{PAGE}.json"))["groups"] == []
    assert (await ask(site, f"{PAGE}.csv")).status_code == 200
    put_groups(copied, [])
    assert "No duplicates among the 24 pictures" in await show(site)


async def test_an_older_schema_is_read_and_brought_up_to_date_by_nobody(
    copied: Path,
) -> None:
    make_older(copied)
    site = open_datasette(copied)
    assert "Nobody has looked for duplicates" in await show(site)
    assert (await ask(site, f"{PAGE}.csv")).status_code == 200
    assert sql(copied, "select version from _image_similarity_schema") == [(2,)]


PLANTED = (
    "update _image_similarity_groups set reason = x'ff00', keeper_id = 'x'",
    "update _image_similarity_groups set reason = '<script>alert(1)</script>'",
    "update _image_similarity_groups set tier = 'other'",
    "update _image_similarity_groups set tier = x'00'",
    "update _image_similarity_grouped set score = 'high'",
    "update _image_similarity_grouped set score = 9e999",
    "update _image_similarity_scans set thresholds = '[', scanned = 'x', made_at = x'00'",
    "update _image_similarity_items set size = 'big', width = x'00', sha256 = x'ff'",
    "insert into _image_similarity_decisions (collection_id, step, pk, sha256, decision, "
    "other) select 1, 'x', pk, sha256, 'apart', '[[1],{},null' "
    "from _image_similarity_items",
    "insert into _image_similarity_decisions (collection_id, step, pk, sha256, decision, "
    "other) select 1, 9e999, pk, sha256, 'apart', '[[1],{},null,4]' "
    "from _image_similarity_items",
    "update images set name = '<b>\"&' || char(10)",
    "drop table _image_similarity_decisions",
    "alter table _image_similarity_groups rename column keeper_id to x",
)


@pytest.mark.parametrize("statement", PLANTED)
async def test_a_strangers_tables_break_nothing(reviewed: Path, statement: str) -> None:
    change(reviewed, "pragma ignore_check_constraints = on", statement)
    site = open_datasette(reviewed)
    for path in ("", "?_tier=same", "?_view=all&_tier=same", "?_group=2", ".json", ".csv"):
        response = await ask(site, PAGE + path, ROOT)
        assert response.status_code in (200, 400), (path, response.text)
        if "json" not in path:
            assert "<script>alert" not in response.text
    for path in ("decide", "accept", "undo"):
        body = {"group": 2, "action": "skip", "tier": "same"}
        response = await ask(site, f"{PAGE}/{path}.json", ROOT, "POST", json=body)
        assert response.status_code in (200, 400, 409), response.text


async def test_odd_names_and_keys(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "o'dd.db"
    change(
        path,
        'create table "my ""pictures" ("a b" text, n integer, path text, title text, '
        'primary key ("a b", n))',
    )
    for number, file in enumerate(sorted(photos.rglob("*.png"))[:3]):
        name = str(file.relative_to(photos))
        change(
            path,
            f'insert into "my ""pictures" values (\'x,"y/z\', {number}, \'{name}\', '
            "'<i>it''s</i>')",
        )
    embed(path, table='my "pictures', path_column="path", root=photos)
    put_groups(path, [("same", (1, 2, 3))])
    site = open_datasette(path)
    listed = (await ask_json(site, "/-/image-similarity.json"))["collections"][0]
    base = f"/{listed['database']}/my~20~22pictures/-/duplicates".replace("'", "~27")
    base = base.replace("my~20", "my+")
    response = await ask(site, base, ROOT)
    assert response.status_code == 200
    assert "<i>it" not in response.text
    assert "&lt;i&gt;it" in response.text
    found = (await ask_json(site, f"{base}.json"))["groups"][0]
    assert [one["decision"] for one in found["pictures"]] == [None] * 3
    body = {"group": 1, "action": "keep", "pk": found["pictures"][1]["pk"]}
    response = await ask(site, f"{base}/decide.json", ROOT, "POST", json=body)
    assert response.status_code == 200, response.text
    found = (await ask_json(site, f"{base}.json"))["groups"][0]
    assert [one["decision"] for one in found["pictures"]] == ["mark", "keep", "mark"]
    for url in links((await ask(site, base + "?_view=all", ROOT)).text):
        if "duplicates" in url:
            assert (await ask(site, url, ROOT)).status_code == 200, url


async def test_a_second_collection_is_reviewed_by_its_name(
    reviewed: Path, made_once: Path
) -> None:
    embed(reviewed, made_once.parent / "photos", name="other")
    site = open_datasette(reviewed)
    page = await show(site, "?_collection=other")
    assert "Nobody has looked" in page
    page = await show(site, "?_collection=default&_tier=same")
    review = page.partition('id="imd-review"')[2]  # below the switch between collections
    tabs = [url for url in links(review) if "_tier=" in url]
    assert tabs
    assert all("_collection=default" in url for url in tabs)
    assert "duplicates/decide?_collection=default" in page


async def test_half_a_character_in_json_is_refused(reviewed: Path) -> None:
    """JSON can spell it; neither SQLite nor an address can take it."""
    site = open_datasette(reviewed)
    for fields in ({"pk": "\ud800"}, {"view": "all", "state": "\ud800"}):
        body = json.dumps({"group": 1, "action": "skip", **fields})
        headers = {"content-type": "application/json", "accept": "text/html"}
        options = {"content": body.encode(), "headers": headers}
        response = await ask(site, f"{PAGE}/decide", ROOT, "POST", **options)
        assert response.status_code == 400, response.text
