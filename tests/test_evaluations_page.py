"""Pages about evaluations: the list, one run with its failures, runs side by side."""

from __future__ import annotations

import csv
import io
import re
from html import unescape
from pathlib import Path

import pytest
from core import embed, make_older, sql
from datasette.app import Datasette
from serving import ROOT, ask, ask_json, change, links, open_datasette, parameters

from datasette_image_similarity import ImageCollection

PAGE = "/gallery/images/-/evaluations"
ROUTES = [
    PAGE,
    f"{PAGE}.json",
    f"{PAGE}/1",
    f"{PAGE}/1.json",
    f"{PAGE}/1.csv",
    f"{PAGE}/999",
    f"{PAGE}?_run=1&_run=2",
    f"{PAGE}.json?_run=1&_run=2",
]
PRIVATE = {"databases": {"gallery": {"tables": {"images": {"allow": {"id": "root"}}}}}}


def run(path: Path, label: str = "folder", name: str | None = None) -> None:
    with ImageCollection(path, name=name) as photos:
        photos.evaluate(label)


@pytest.fixture
def evaluated(copied: Path) -> Path:
    """Two runs: one with the folders as labels, one with some of these exchanged."""
    run(copied)
    sql(copied, "update images set folder = 'red' where id in (3, 4)")
    run(copied)
    return copied


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page)))


async def open_page(site: Datasette, path: str) -> str:
    response = await ask(site, path)
    assert response.status_code == 200, response.text[:600]
    return response.text


async def test_nothing_yet_says_the_exact_command(copied: Path) -> None:
    site = open_datasette(copied)
    page = text_of(await open_page(site, PAGE))
    assert "datasette image-similarity evaluate gallery.db images --label label" in page
    assert (await ask_json(site, f"{PAGE}.json"))["evaluations"] == []


async def test_command_is_quoted(copied: Path) -> None:
    change(copied, 'alter table images rename to "it\'s; rm -rf"')
    change(
        copied,
        "update _image_similarity_collections set table_name = 'it''s; rm -rf'",
    )
    site = open_datasette(copied)
    url = site.urls.table("gallery", "it's; rm -rf")
    page = text_of(await open_page(site, f"{url}/-/evaluations"))
    assert "evaluate gallery.db 'it'\"'\"'s; rm -rf' --label" in page


async def test_a_database_from_before(copied: Path) -> None:
    make_older(copied)
    site = open_datasette(copied)
    assert "Nothing has been evaluated here yet" in await open_page(site, PAGE)
    assert (await ask(site, f"{PAGE}/1")).status_code == 404
    assert (await ask(site, f"{PAGE}?_run=1&_run=2")).status_code == 404


async def test_the_list_leads_to_runs_and_comparison(evaluated: Path) -> None:
    site = open_datasette(evaluated)
    page = await open_page(site, PAGE)
    for number in (1, 2):
        assert f"{PAGE}/{number}" in links(page)
        assert f'name="_run" value="{number}"' in page
    found = (await ask_json(site, f"{PAGE}.json"))["evaluations"]
    assert [one["id"] for one in found] == [2, 1]
    assert f"{found[0]['map']:.3f}" in text_of(page)
    alone = await ask(site, f"{PAGE}?_run=2")
    assert alone.status_code == 302
    assert alone.headers["location"] == f"{PAGE}/2"


async def test_a_run_shows_its_figures_and_its_failures(evaluated: Path) -> None:
    site = open_datasette(evaluated)
    answer = await ask_json(site, f"{PAGE}/2.json")
    run = answer["evaluation"]
    page = await open_page(site, f"{PAGE}/2")
    text = text_of(page)
    for name in ("precision_at_1", "map", "map_macro", "ndcg_at_10"):
        assert f"{run[name]:.3f}" in text
        low, high = run["intervals"][name]
        assert f"{low:.3f} – {high:.3f}" in text
    worst = answer["worst"]
    figures = [one["average_precision"] for one in worst]
    assert figures == sorted(figures)
    assert {"3", "4"} & {one["pk"] for one in worst[:3]}
    first = worst[0]
    assert len(first["nearest"]) == 10
    for one in first["nearest"]:
        assert one["right"] == (one["label"] == first["label"])
    # In words for whoever does not see the frames.
    wrong = [one for one in first["nearest"] if not one["right"]]
    assert text.count("Wrong:") >= len(wrong) > 0
    assert "Right:" in text
    for link in {link for link in links(page) if link.startswith("/gallery/")}:
        if "-/static-plugins" not in link and not pages_of_others(link):
            assert (await ask(site, link)).status_code == 200, link
    for image in re.findall(r'<img src="([^"]+)"', page)[:5]:
        assert (await ask(site, unescape(image))).status_code == 200


def pages_of_others(link: str) -> bool:
    return link.rpartition("/-/")[2] in ("map", "duplicates", "clusters", "questions")


async def test_labels_sort_and_filter(evaluated: Path) -> None:
    site = open_datasette(evaluated)

    async def order(query: str) -> list[str]:
        page = await open_page(site, f"{PAGE}/1{query}")
        table = page[page.index('id="labels"') :]
        return [
            dict(parameters(unescape(link)))["_label"]
            for link in re.findall(r'<th scope="row"><a href="([^"#]+)#worst"', table)
        ]

    assert await order("?_sort=label") == ["blue", "green", "red"]
    assert await order("?_sort_desc=label") == ["red", "green", "blue"]
    by_map = await order("")
    classes = (await ask_json(site, f"{PAGE}/1.json"))["per_class"]
    figures = {one["label"]: one["map"] for one in classes}
    assert by_map == sorted(figures, key=figures.get)
    assert 'aria-sort="ascending"' in await open_page(site, f"{PAGE}/1")
    assert (await ask(site, f"{PAGE}/1?_sort=rowid")).status_code == 400
    green = await ask_json(site, f"{PAGE}/1.json?_label=green")
    assert {one["label"] for one in green["worst"]} == {"green"}
    assert len(green["worst"]) == 8
    assert (await ask_json(site, f"{PAGE}/1.json?_label=")).get("worst") == []


async def test_worst_queries_page_by_page(evaluated: Path) -> None:
    site = open_datasette(evaluated)
    first = await ask_json(site, f"{PAGE}/1.json")
    assert (len(first["worst"]), first["next"]) == (20, "20")
    page = await open_page(site, f"{PAGE}/1")
    (following,) = {link for link in links(page) if "_next=20" in link}
    assert 'start="21"' in await open_page(site, following)
    second = await ask_json(site, f"{PAGE}/1.json?_next=20")
    assert (len(second["worst"]), second["next"]) == (4, None)
    seen = [one["pk"] for one in first["worst"] + second["worst"]]
    assert len(set(seen)) == 24
    assert (await ask(site, f"{PAGE}/1?_next=x")).status_code == 400


async def test_csv_of_the_labels(evaluated: Path) -> None:
    site = open_datasette(evaluated)
    response = await ask(site, f"{PAGE}/1.csv")
    assert response.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [row["label"] for row in rows] == ["blue", "green", "red"]
    assert 0 < float(rows[0]["map"]) <= 1


async def test_comparison(evaluated: Path) -> None:
    site = open_datasette(evaluated)
    answer = await ask_json(site, f"{PAGE}.json?_run=1&_run=2")
    newest_first = await ask_json(site, f"{PAGE}.json?_run=2&_run=1")
    assert newest_first == answer
    (one,) = answer["comparison"]
    assert one["queries"] == 22  # two have another label now
    assert one["differences"]["map"] < 0
    changes = {change["pk"]: change for change in one["changes"]}
    assert changes
    assert not {"3", "4"} & set(changes)
    page = await open_page(site, f"{PAGE}?_run=1&_run=2")
    text = text_of(page)
    assert f"{one['differences']['map']:+.3f}" in text
    assert "Labels that lost most" in text
    assert "Queries that lost most" in text
    assert (await ask(site, f"{PAGE}?_run=1&_run=9")).status_code == 404
    many = "&".join(f"_run={number}" for number in range(1, 9))
    assert (await ask(site, f"{PAGE}?{many}")).status_code == 400
    assert (await ask(site, f"{PAGE}?_run=1&_run=x")).status_code == 400


async def test_another_collection_and_nothing_in_common(
    copied: Path, made_once: Path
) -> None:
    embed(copied, made_once.parent / "photos", name="l2", metric="l2")
    run(copied)
    run(copied, name="l2")
    change(copied, "update images set folder = folder || '!'")
    run(copied)
    site = open_datasette(copied)
    answer = await ask_json(site, f"{PAGE}.json?_run=1&_run=2&_run=3")
    assert [one["queries"] for one in answer["comparison"]] == [24, 0]
    page = await open_page(site, f"{PAGE}?_run=1&_run=2&_run=3")
    assert "no queries in common" in page
    # Pictures of the collection that the run is of.
    page = await open_page(site, f"{PAGE}/2")
    assert "/-/thumbnail/1?_collection=l2" in page
    page = await open_page(site, f"{PAGE}/1")
    assert "/-/thumbnail/1" in page
    assert not re.search(r"/(thumbnail/\d+|similar)\?[^\"]*_collection=l2", page)
    for query in ("", "&_run=1&_run=2"):  # and back to the one that one came from
        page = await open_page(site, f"{PAGE}?_collection=l2{query}")
        assert f'href="{PAGE}/2?_collection=l2"' in page


async def test_rows_deleted_after_a_run_are_never_shown(evaluated: Path) -> None:
    site = open_datasette(evaluated)
    worst = (await ask_json(site, f"{PAGE}/2.json"))["worst"][0]
    gone = [worst["pk"], worst["nearest"][0]["pk"]]
    change(evaluated, f"delete from images where id in ({', '.join(gone)})")
    answer = await ask_json(site, f"{PAGE}/2.json")
    assert gone[0] not in [one["pk"] for one in answer["worst"]]
    found = [near for one in answer["worst"] for near in one["nearest"]]
    assert None in found
    assert not set(gone) & {near["pk"] for near in found if near}
    page = await open_page(site, f"{PAGE}/2")
    assert "deleted since" in page
    for pk in gone:
        assert f"/-/thumbnail/{pk}" not in page
    await open_page(site, f"{PAGE}?_run=1&_run=2")


async def test_an_id_that_is_given_out_again_is_another_picture(
    evaluated: Path, photos: Path
) -> None:
    """SQLite gives the highest id to the next row."""
    (last,) = sql(evaluated, "select max(id) from _image_similarity_items")[0]
    change(evaluated, f"delete from images where id = {last}")
    with ImageCollection(evaluated) as collection:
        conn = collection.connect()
        from datasette_image_similarity import database as db

        (one,) = db.collections(conn)
        with db.transaction(conn):
            db.drop_items(conn, one, [last])
    (photos / "new").mkdir()
    source = next((photos / "blue").iterdir())
    (photos / "new" / "new.png").write_bytes(source.read_bytes() + b"\0")
    embed(evaluated, photos / "new")
    assert sql(evaluated, "select max(id) from _image_similarity_items") == [(last,)]
    site = open_datasette(evaluated)
    answer = await ask_json(site, f"{PAGE}/2.json")
    shown = [near for one in answer["worst"] for near in one["nearest"] if near]
    shown += answer["worst"]
    pk = sql(evaluated, "select pk from _image_similarity_items order by id desc")[0][0]
    assert str(pk) not in [one["pk"] for one in shown]
    assert answer["evaluation"]["changed"]
    assert "has changed since" in await open_page(site, f"{PAGE}/2")
    assert "changed since" in await open_page(site, PAGE)


HOSTILE = '<script>alert("1")</script>\n\'"&'


async def test_hostile_labels_are_text(copied: Path) -> None:
    sql(copied, "update images set folder = ? || (id % 2)", (HOSTILE,))
    sql(copied, "update images set name = ?", (HOSTILE,))
    run(copied)
    run(copied)
    site = open_datasette(copied)
    for path in (PAGE, f"{PAGE}/1", f"{PAGE}?_run=1&_run=2"):
        page = await open_page(site, path)
        assert "<script>alert" not in page
    answer = await ask_json(site, f"{PAGE}/1.json")
    assert answer["per_class"][0]["label"] == f"{HOSTILE}0"
    page = await open_page(site, f"{PAGE}/1")
    link = next(link for link in links(page) if "_label=" in link)
    assert dict(parameters(link))["_label"].startswith(HOSTILE)
    assert (await ask(site, link)).status_code == 200


async def test_compound_keys(copied: Path, made_once: Path) -> None:
    change(
        copied,
        "create table pairs (a text, b integer, path text, kind text, primary key (a, b))",
        "insert into pairs select 'x/' || folder, id, path, folder from images",
    )
    with ImageCollection(copied, "pairs") as pairs:
        from core import HOG

        pairs.embed(path_column="path", root=made_once.parent / "photos", encoder=HOG)
        pairs.evaluate("kind")
    site = open_datasette(copied)
    answer = await ask_json(site, "/gallery/pairs/-/evaluations/1.json")
    pk = answer["worst"][0]["pk"]
    assert re.fullmatch(r"x~2F\w+,\d+", pk)
    page = await open_page(site, "/gallery/pairs/-/evaluations/1")
    assert (await ask(site, f"/gallery/pairs/{pk}")).status_code == 200
    assert f"/gallery/pairs/{pk}" in links(page)
    # A run belongs to its table.
    assert (await ask(site, f"{PAGE}/1")).status_code == 404


@pytest.mark.parametrize(
    "damage",
    [
        "update _image_similarity_evaluations set report = '{}'",
        "update _image_similarity_classes set map = 'much'",
        "update _image_similarity_classes set label = x'ff' where label = 'red'",
        "update _image_similarity_confusions set examples = '[[1, \"x\"]]'",
        "update _image_similarity_confusions set examples = '[3]'",
        "update _image_similarity_confusions set share = 1e999",
        "update _image_similarity_evaluated set nearest = 'nothing'",
        "update _image_similarity_evaluated set nearest = '[1e99, null]'",
        "update _image_similarity_evaluated set nearest = '[99999999999999999999999]'",
        "update _image_similarity_evaluated set average_precision = 'x'",
        "update _image_similarity_evaluated set recall_at_10 = 1e999",
    ],
)
async def test_damage_is_told_in_words(evaluated: Path, damage: str) -> None:
    change(evaluated, damage)
    site = open_datasette(evaluated)
    for path in ROUTES:
        response = await ask(site, path)
        assert response.status_code in (200, 400, 404), (path, response.text[:300])
        if response.status_code == 400:
            assert "damaged" in response.text
    assert (await ask(site, PAGE)).status_code == 200


async def test_read_only(evaluated: Path) -> None:
    site = open_datasette(immutables=[str(evaluated)])
    for path in ROUTES:
        if "999" not in path:
            assert (await ask(site, path)).status_code == 200


async def test_a_private_table_keeps_its_evaluations(evaluated: Path) -> None:
    site = open_datasette(evaluated, config=PRIVATE)
    for path in ROUTES:
        assert (await ask(site, path)).status_code == 403, path
        if "999" not in path:
            assert (await ask(site, path, ROOT)).status_code == 200, path
    for table in ("evaluations", "evaluated", "classes", "confusions"):
        path = f"/gallery/_image_similarity_{table}.json"
        assert (await ask(site, path)).status_code == 403
        assert (await ask(site, path, ROOT)).status_code == 200


async def test_unknown(evaluated: Path) -> None:
    site = open_datasette(evaluated)
    assert (await ask(site, f"{PAGE}/999")).status_code == 404
    assert (await ask(site, f"{PAGE}/{10**30}")).status_code == 400
    assert (await ask(site, "/gallery/nothing/-/evaluations")).status_code == 404
