"""`/{db}/{table}/-/compare`: one question, two collections; and the switch between them."""

from __future__ import annotations

import re
import time
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core import command, make_older, opened, sql
from datasette.app import Datasette
from serving import (
    ask,
    ask_json,
    change,
    link_to,
    links,
    open_datasette,
    parameters,
    pks,
)
from test_default_collection import reduced

from datasette_image_similarity import ImageCollection, trust
from datasette_image_similarity import database as db
from datasette_image_similarity.collection import EncoderOptions
from datasette_image_similarity.web import compare

TABLE = "/gallery/images/-"
PAGE = f"{TABLE}/compare"
HOSTILE = "<b>'x' & \"y\"</b>/?#%,~"


@pytest.fixture
def two(copied: Path) -> Path:
    """The collections "default", of hog, and "small", derived from it."""
    reduced(copied)
    return copied


@pytest.fixture
def site(two: Path) -> Datasette:
    return open_datasette(two)


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page)))


async def page_of(site: Datasette, path: str) -> str:
    response = await ask(site, path)
    assert response.status_code == 200, response.text[:500]
    return response.text


def forget(path: Path, pk: int, name: str = "small") -> None:
    """Drop a row's item from one collection."""
    with opened(path) as conn:
        collection = db.find_collection(conn, "images", name)
        items = conn.execute(
            "select id from _image_similarity_items where collection_id = ? and pk = ?",
            (collection.id, pk),
        )
        db.drop_items(conn, collection, [row[0] for row in items.fetchall()])


# Answers


async def test_each_side_is_what_its_collection_answers_alone(site: Datasette) -> None:
    question = "_like=1&_like=9:2&_unlike=20&folder__not=blue&_size=5"
    answer = await ask_json(site, f"{PAGE}.json?{question}")
    assert [one["collection"] for one in answer["collections"]] == ["default", "small"]
    assert [one["dimensions"] for one in answer["collections"]] == [1308, 8]
    assert answer["query"]["with"] == "small"
    for one in answer["collections"]:
        named = f"_collection={one['collection']}"
        alone = await ask_json(site, f"{TABLE}/similar.json?{question}&{named}")
        assert pks(one) == pks(alone)
        assert [row["score"] for row in one["rows"]] == [
            row["score"] for row in alone["rows"]
        ]
        assert one["total"] == alone["total"] == 14


async def test_ranks_and_overlap(site: Datasette, two: Path) -> None:
    answer = await ask_json(site, f"{PAGE}.json?_like=3&_size=10")
    orders = []
    for name in ("default", "small"):
        with ImageCollection(two, name=name) as collection:
            orders.append([hit.pk for hit in collection.similar(3, 24)])
    for mine, theirs, one in zip(orders, orders[::-1], answer["collections"], strict=True):
        assert pks(one) == [str(pk) for pk in mine[:10]]
        ranks = [row["rank_in_other"] for row in one["rows"]]
        assert ranks == [theirs.index(pk) + 1 for pk in mine[:10]]
    both = set(orders[0][:10]) & set(orders[1][:10])
    apart = [abs(orders[0].index(pk) - orders[1].index(pk)) for pk in both]
    assert answer["overlap"] == {
        "k": 10,
        "shared": len(both),
        "overlap": len(both) / 10,
        "mean_rank_difference": round(np.mean(apart), 2),
        "same_rank": apart.count(0),
    }
    assert 0 < len(both) < 10  # else this test says little
    text = text_of(await page_of(site, f"{PAGE}?_like=3&_size=10"))
    assert f"Of the first 10 results {len(both)} are in both" in text
    assert f"overlap@10 {len(both) / 10:.2f}" in text


async def test_pages_follow_each_other(site: Datasette) -> None:
    path = f"{PAGE}.json?_like=3&_size=9"
    found: list[list[str]] = [[], []]
    ks = []
    while path:
        answer = await ask_json(site, path)
        ks.append(answer["overlap"]["k"])
        for side, one in zip(found, answer["collections"], strict=True):
            side += pks(one)
        path = (answer["next_url"] or "").removeprefix("http://localhost")
    assert ks == [9, 18, 23]
    for side in found:
        assert len(side) == len(set(side)) == 23
    beyond = await ask(site, f"{PAGE}?_like=3&_next=995")
    assert beyond.status_code == 400
    assert "first 1,000" in beyond.text


async def test_beyond_what_was_looked_at_is_said(
    site: Datasette, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "LOOKED_AT", 4)
    unknown = 0
    for like in (1, 3, 9, 17):
        question = f"_like={like}&_size=4"
        page = await page_of(site, f"{PAGE}?{question}")
        sides = (await ask_json(site, f"{PAGE}.json?{question}"))["collections"]
        ranks = [row["rank_in_other"] for one in sides for row in one["rows"]]
        assert text_of(page).count("not in the first 4 there") == ranks.count(None)
        assert page.count("ims-alone") == ranks.count(None)
        unknown += ranks.count(None)
    assert unknown


async def test_each_picture_asks_both_again(site: Datasette) -> None:
    page = await page_of(site, f"{PAGE}?_like=3&_collection=small&_with=default&_size=4")
    pictures = re.findall(r'<a class="ims-picture" href="([^"]+)"', page)
    assert len(pictures) == 8
    again = unescape(pictures[-1])
    assert again.startswith(f"{PAGE}?")
    assert {("_collection", "small"), ("_with", "default")} < set(parameters(again))
    assert dict(parameters(again))["_like"] != "3"
    assert (await ask(site, again)).status_code == 200
    alone = [dict(parameters(link)) for link in links(page) if "/similar?" in link]
    assert {one["_collection"] for one in alone} == {"small", "default"}
    assert not any("_with" in one for one in alone)


async def test_ranks_lead_to_the_same_picture_on_the_other_side(site: Datasette) -> None:
    page = await page_of(site, f"{PAGE}?_like=3&_size=6")
    for link in re.findall(r'<p class="ims-there"><a href="([^"]+)"', page):
        path, _, anchor = unescape(link).partition("#")
        target = await page_of(site, path) if path else page
        assert f'id="{anchor}"' in target


async def test_every_link_works(site: Datasette) -> None:
    page = await page_of(site, f"{PAGE}?_like=3&_like=5:2&_unlike=9&_size=3&folder=red")
    for link in {link for link in links(page) if link.startswith("/gallery/")}:
        assert (await ask(site, link)).status_code == 200, link


async def test_without_a_question_it_offers_pictures(site: Datasette) -> None:
    page = await page_of(site, f"{PAGE}?_collection=small")
    first = link_to(page, "_like=")
    assert ("_collection", "small") in parameters(first)
    assert (await ask(site, first)).status_code == 200
    assert (await ask(site, f"{PAGE}.json")).status_code == 400


async def test_filters_are_for_both(site: Datasette) -> None:
    redirected = await ask(
        site, f"{PAGE}?_like=3&_with=small&_filter_column=folder&_filter_op=exact"
        "&_filter_value=red"
    )  # fmt: skip
    assert redirected.status_code == 302
    page = await page_of(site, redirected.headers["location"])
    assert 'folder = "red"' in text_of(page)
    assert text_of(page).count("8 results, exact") == 2  # row 3 is blue
    unfiltered = link_to(page, "_with=small")
    assert "folder" not in dict(parameters(unfiltered)) or "_like" in unfiltered


async def test_a_cut_off_of_one_collection_is_not_for_two(site: Datasette) -> None:
    answer = await ask_json(site, f"{PAGE}.json?_like=3&_max_distance=0.0001")
    assert [one["total"] for one in answer["collections"]] == [23, 23]


# What cannot be


async def test_a_row_that_one_of_them_lacks(two: Path) -> None:
    forget(two, 3)
    site = open_datasette(two)
    for first, second in (("default", "small"), ("small", "default")):
        question = f"_like=3&_collection={first}&_with={second}"
        answer = await ask_json(site, f"{PAGE}.json?{question}")
        sides = {one["collection"]: one for one in answer["collections"]}
        assert len(sides["default"]["rows"]) == 23
        assert "Row 3" in sides["small"]["error"]
        assert answer["overlap"] is None
        page = text_of(await page_of(site, f"{PAGE}?{question}"))
        assert "has no embedding yet: run datasette image-similarity embed" in page
        assert "Only one of the two answers" in page
        assert "not in the first" not in text_of(page)
    forget(two, 3, "default")
    assert (await ask(site, f"{PAGE}?_like=3")).status_code == 404


async def test_a_result_that_the_other_lacks(two: Path) -> None:
    forget(two, 3)
    page = await page_of(open_datasette(two), f"{PAGE}?_like=4")
    assert text_of(page).count("not there") == 1


async def test_damaged_vectors_of_one_leave_the_other(two: Path) -> None:
    for statement, words in (
        ("update _image_similarity_collections set encoder = '{' where id = 2", None),
        ("drop table _image_similarity_vectors_2_rowids", "small"),
        ("drop table _image_similarity_vectors_2_chunks", "small"),
    ):
        sql(two, statement)
        site = open_datasette(two)
        answer = await ask_json(site, f"{PAGE}.json?_like=3")
        first, second = answer["collections"]
        assert len(first["rows"]) == 23
        assert ("error" in second) == bool(words)
        page = text_of(await page_of(site, f"{PAGE}?_like=3"))
        assert "an unknown encoder" in page
        assert "Traceback" not in page
        assert ("Only one of the two answers" in page) == bool(words)


@pytest.mark.parametrize(
    "statement",
    [
        "drop table _image_similarity_transforms",
        "alter table _image_similarity_transforms rename column components to x",
    ],
)
async def test_a_damaged_transform_of_one_leaves_the_other(
    statement: str, two: Path
) -> None:
    sql(two, statement)
    answer = await ask_json(open_datasette(two), f"{PAGE}.json?_like=3&_crop=0,0,.5,.5")
    first, second = answer["collections"]
    assert len(first["rows"]) == 23
    assert second["error"]


async def test_the_limit_of_one_search_is_for_both(
    site: Datasette, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compare.search

    def slow(*asked: Any) -> Any:
        answer = real(*asked)
        time.sleep(0.3)
        return answer

    monkeypatch.setattr(compare, "search", slow)
    answer = await ask_json(site, f"{PAGE}.json?_like=3")
    assert all(side["rows"] for side in answer["collections"])
    short = open_datasette(
        Path(site.get_database("gallery").path), settings={"sql_time_limit_ms": 250}
    )
    answer = await ask_json(short, f"{PAGE}.json?_like=3")
    assert len(answer["collections"][0]["rows"]) == 23
    assert "no time left" in answer["collections"][1]["error"]


@pytest.mark.parametrize(
    ("question", "status", "words"),
    [
        ("_like=3&_with=large", 404, "called large"),
        ("_like=3&_collection=large", 404, "called large"),
        ("_like=3&_with=default", 400, "itself"),
        ("_like=99", 404, "no row 99"),
        ("_like=3&_size=x", 400, "_size"),
        ("_like=3&nothing=1", 400, "no column nothing"),
        ("_unlike=3", 400, "Name a picture"),
        ("_like=3&_one_per=cluster", 400, "clusters"),
    ],
)
async def test_what_cannot_be_is_said(
    site: Datasette, question: str, status: int, words: str
) -> None:
    for path in (f"{PAGE}?{question}", f"{PAGE}.json?{question}"):
        response = await ask(site, path)
        assert response.status_code == status, response.text[:300]
        assert words in response.text


async def test_one_collection_has_nothing_beside_it(copied: Path) -> None:
    site = open_datasette(copied)
    response = await ask(site, f"{PAGE}?_like=3")
    assert response.status_code == 404
    assert "embed gallery.db images --name NAME" in text_of(response.text)
    page = await page_of(site, f"{TABLE}/similar?_like=3")
    assert "ims-which" not in page
    assert "compare" not in await page_of(site, "/gallery/images/3")


async def test_a_denied_table_is_denied(two: Path) -> None:
    site = open_datasette(
        two,
        config={"databases": {"gallery": {"tables": {"images": {"allow": {"id": "me"}}}}}},
    )
    for path in (f"{PAGE}?_like=3", f"{PAGE}.json?_like=3", PAGE):
        assert (await ask(site, path)).status_code == 403
    allowed = await ask(site, f"{PAGE}?_like=3", {"id": "me"})
    assert allowed.status_code == 200
    assert (await ask_json(site, "/-/image-similarity.json"))["collections"] == []


async def test_hostile_names_are_only_text(two: Path) -> None:
    sql(two, "update _image_similarity_collections set name = ? where id = 2", (HOSTILE,))
    sql(two, "update images set name = ?, label = ?", (HOSTILE, HOSTILE))
    site = open_datasette(two)
    pages = (PAGE, "/similar", "/search-by-image", "/map", "/duplicates", "/evaluations")
    for path in (f"{PAGE}?_like=3", *(f"{TABLE}{one}?_like=3" for one in pages[1:]), PAGE):
        page = await page_of(site, path)
        assert "<b>'x'" not in page
        assert HOSTILE in unescape(page)
        for link in links(page):
            if "_with=" in link or "_collection=" in link:
                assert (await ask(site, link)).status_code == 200, link
    home = await page_of(site, "/-/image-similarity")
    assert "<b>'x'" not in home


async def test_an_older_schema_and_a_read_only_file(two: Path) -> None:
    make_older(two, 3)
    two.chmod(0o444)
    for options in ({}, {"immutables": [str(two)]}):
        site = open_datasette(*([] if options else [two]), **options)
        assert len((await ask_json(site, f"{PAGE}.json?_like=3"))["collections"]) == 2
        await page_of(site, f"{PAGE}?_like=3")


async def test_keys_of_any_kind(copied: Path) -> None:
    change(copied, "create table other (a text, b integer, path text, primary key (a, b))")
    change(
        copied,
        "insert into other select 'a, b/' || (id % 3), id / 3, path from images",
    )
    for name in ("default", "more"):
        with ImageCollection(copied, "other", name=name) as collection:
            folder = trust.trusted_roots(copied)[0]
            options = EncoderOptions("hog", fit="crop" if name == "more" else None)
            collection.embed(path_column="path", root=folder, encoder=options)
    site = open_datasette(copied)
    page = await page_of(site, "/gallery/other/-/compare")
    first = link_to(page, "_like=")
    assert "~2C" in dict(parameters(first))["_like"]
    again = await page_of(site, first)
    assert (await ask(site, link_to(again, "_like="))).status_code == 200


# The switch, and links from elsewhere


async def test_the_switch_keeps_the_question(site: Datasette) -> None:
    question = "_like=3&_like=5%3A2&folder=red&_distinct=1"
    alien = "_max_distance=0.5&_next=2&_size=2"
    page = await page_of(site, f"{TABLE}/similar?{question}&{alien}")
    switch = next(
        link for link in links(page) if "_collection=small" in link and "/similar" in link
    )
    assert parameters(switch) == [
        *(("_like", "3"), ("_like", "5:2"), ("folder", "red"), ("_distinct", "1")),
        *(("_size", "2"), ("_collection", "small")),
    ]
    there = await page_of(site, switch)
    back = next(
        link for link in links(there) if link.startswith(f"{TABLE}/similar?_like=3&_like=5")
    )
    assert "_collection" not in dict(parameters(back))
    both = parameters(link_to(there, "/compare?"))
    assert ("_collection", "small") in both
    assert ("_like", "5:2") in both
    text = text_of(page)
    assert "hog, 1,308 numbers a picture; used where none is chosen" in text
    assert "hog, PCA to 8, 8 numbers a picture" in text


@pytest.mark.parametrize(
    "name",
    ["search-by-image", "map", "duplicates", "clusters", "evaluations", "questions"],
)
async def test_the_switch_is_on_every_page(site: Datasette, name: str) -> None:
    page = await page_of(site, f"{TABLE}/{name}")
    switch = link_to(page, f"{TABLE}/{name}?_collection=small")
    there = text_of(await page_of(site, switch))
    assert "Collection small hog, PCA to 8, 8 numbers a picture" in there


async def test_the_switch_leaves_what_is_numbered_in_one_collection(two: Path) -> None:
    with ImageCollection(two) as collection:
        pytest.importorskip("sklearn")
        collection.clusters(k=3)
    site = open_datasette(two)
    page = await page_of(site, f"{TABLE}/similar?_like=3&_image_cluster=1&_one_per=cluster")
    switch = next(
        link for link in links(page) if "_collection=small" in link and "/similar" in link
    )
    assert parameters(switch) == [("_like", "3"), ("_collection", "small")]
    assert (await ask(site, switch)).status_code == 200


async def test_commands_name_the_collection_of_the_setting(two: Path) -> None:
    page = f"{TABLE}/map"
    site = open_datasette(two, plugin={"collection": "small"})
    command_line = "map gallery.db images --name small"
    assert command_line in text_of(await page_of(site, page))
    assert command_line not in text_of(await page_of(open_datasette(two), page))


async def test_a_setting_may_name_a_collection_that_is_not_there(two: Path) -> None:
    site = open_datasette(two, plugin={"collection": "gone"})
    refusal = await ask(site, f"{TABLE}/similar?_like=1")
    assert refusal.status_code == 404
    assert "says to use the collection gone of images" in refusal.text
    home = await page_of(site, "/-/image-similarity")
    assert "used where none is chosen" not in home
    page = await page_of(site, f"{TABLE}/similar?_like=1&_collection=small")
    for found in [*links(home), *links(page)]:
        if "/images/-/" in found:
            assert (await ask(site, found)).status_code == 200, found


async def test_home_has_a_card_a_table(two: Path, photos: Path) -> None:
    command("embed", two, photos / "red", "--table", "more", "--model", "hog")
    command("default", two, "images", "small")
    site = open_datasette(two)
    page = await page_of(site, "/-/image-similarity")
    assert len(re.findall('<article class="ims-card"', page)) == 2
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "small, used where none is chosen" in text_of(page)
    assert f"{TABLE}/search-by-image?_collection=default" in links(page)
    for link in links(page):
        if "/gallery/" in link:
            assert (await ask(site, link)).status_code == 200, link
    found = (await ask_json(site, "/-/image-similarity.json"))["collections"]
    assert [(one["table"], one["name"], one["default"]) for one in found] == [
        ("images", "small", True),
        ("images", "default", False),
        ("more", "default", True),
    ]
    assert found[0]["encoder"] == "hog, PCA to 8"
    assert found[0]["dimensions"] == 8


async def test_the_row_page_leads_to_both(site: Datasette) -> None:
    page = await page_of(site, "/gallery/images/3")
    assert f"{PAGE}?_like=3" in links(page)


async def test_evaluations_lead_to_what_changed(two: Path) -> None:
    result = command("evaluate", two, "--label", "folder", "--collections", "default,small")
    assert result.exit_code == 0, result.output
    site = open_datasette(two)
    said = re.search(r"side by side: (\S+)", result.output)
    assert said is not None
    assert (await ask(site, said[1])).status_code == 200
    assert said[1].endswith("&_collection=default&_with=small")
    page = await page_of(site, f"{TABLE}/evaluations?_run=1&_run=2")
    assert "hog, squash, PCA to 8" in text_of(page)
    compared = [link for link in links(page) if "/compare?_like=" in link]
    assert compared
    assert ("_with", "small") in parameters(compared[0])
    assert (await ask(site, compared[0])).status_code == 200
    same = command("evaluate", two, "--label", "folder", "--name", "small")
    assert "side by side" not in same.output
