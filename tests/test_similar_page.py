"""`/{database}/{table}/-/similar`: the answer as JSON, CSV, SQL and a page."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
import time
from html import unescape
from pathlib import Path
from urllib.parse import urlencode
from xml.etree import ElementTree

import pytest
from datasette.app import Datasette
from datasette.utils.sqlite import sqlite3
from serving import ask, ask_json, change, link_to, links, open_datasette, parameters, pks

from datasette_image_similarity.collection import EncoderOptions, ImageCollection
from datasette_image_similarity.distances import random_pairs

SIMILAR = "/gallery/images/-/similar"


@pytest.fixture
def site(gallery: Path) -> Datasette:
    """The gallery: ids 1-8 are blue, 9-16 green, 17-24 red (folders go by name)."""
    return open_datasette(gallery)


async def test_json_has_the_documented_shape(site: Datasette, gallery: Path) -> None:
    answer = await ask_json(site, f"{SIMILAR}.json?_like=12")
    assert list(answer) == [
        "ok",
        "query",
        "rows",
        "total",
        "next",
        "next_url",
        "exact",
        "recall",
        "milliseconds",
    ]
    assert answer["ok"] is True
    assert answer["exact"] is True
    assert answer["total"] == 23
    assert answer["next"] is None
    assert answer["next_url"] is None
    assert answer["milliseconds"] >= 0
    assert answer["query"]["like"] == ["12"]
    first = answer["rows"][0]
    assert list(first) == ["rank", "pk", "score", "distance", "row"]
    assert first["rank"] == 1
    assert isinstance(first["pk"], str)
    assert first["score"] == pytest.approx(1 - first["distance"], abs=1e-5)
    assert first["row"]["label"] == "green"
    assert "12" not in pks(answer)
    with ImageCollection(gallery) as collection:
        hits = [hit.as_json() for hit in collection.similar(12, k=23)]
    assert hits == answer["rows"]


async def test_accept_header_asks_for_json(site: Datasette) -> None:
    headers = {"accept": "application/json"}
    answer = await ask_json(site, f"{SIMILAR}?_like=1", headers=headers)
    assert answer["ok"] is True


async def test_best_come_first_and_are_of_the_same_colour(site: Datasette) -> None:
    for pk, colour in ((1, "blue"), (9, "green"), (24, "red")):
        answer = await ask_json(site, f"{SIMILAR}.json?_like={pk}")
        assert answer["rows"][0]["row"]["label"] == colour
        distances = [row["distance"] for row in answer["rows"]]
        assert distances == sorted(distances)
        assert [row["rank"] for row in answer["rows"]] == list(range(1, 24))


async def test_several_pictures_mean_their_mean(site: Datasette, gallery: Path) -> None:
    import numpy as np

    answer = await ask_json(site, f"{SIMILAR}.json?_like=1&_like=9&_like=1")
    assert answer["query"]["like"] == ["1", "9"]
    assert answer["total"] == 22
    with ImageCollection(gallery) as collection:
        mean = (collection.vector(1) + collection.vector(9)) / 2
        found = collection.vector(int(answer["rows"][0]["pk"]))
    cosine = mean @ found / np.linalg.norm(mean) / np.linalg.norm(found)
    assert answer["rows"][0]["score"] == pytest.approx(cosine, abs=1e-4)


async def test_pages_follow_each_other_without_gaps(site: Datasette) -> None:
    whole = await ask_json(site, f"{SIMILAR}.json?_like=5&_size=100")
    seen = []
    path = f"{SIMILAR}.json?_like=5&_size=7&id__gt=2"
    while path:
        answer = await ask_json(site, path)
        seen += answer["rows"]
        path = answer["next_url"]
        assert bool(path) == bool(answer["next"])
        path = path and path.removeprefix("http://localhost")
    assert [r["rank"] for r in seen] == list(range(1, 22))
    assert [r["pk"] for r in seen] == [p for p in pks(whole) if int(p) > 2]


async def test_a_page_past_the_end_is_empty(site: Datasette) -> None:
    answer = await ask_json(site, f"{SIMILAR}.json?_like=5&_next=5000")
    assert answer["rows"] == []
    assert answer["total"] == 23
    response = await ask(site, f"{SIMILAR}?_like=5&_next=5000")
    assert response.status_code == 200


async def test_html_links_lead_through_all_pages(site: Datasette) -> None:
    path = f"{SIMILAR}?_like=5&_size=10"
    pages = 0
    while path:
        response = await ask(site, path)
        assert response.status_code == 200
        pages += 1
        following = [link for link in links(response.text) if "_next=" in link]
        path = next((x for x in following if x.startswith(f"{SIMILAR}?")), None)
    assert pages == 3


async def test_cut_off(site: Datasette) -> None:
    whole = await ask_json(site, f"{SIMILAR}.json?_like=5")
    limit = whole["rows"][6]["distance"] + 1e-6
    answer = await ask_json(site, f"{SIMILAR}.json?_like=5&_max_distance={limit}")
    assert pks(answer) == pks(whole)[:7]
    assert answer["total"] == 7
    nothing = await ask_json(site, f"{SIMILAR}.json?_like=5&_max_distance=0")
    assert nothing["total"] == 0
    page = await ask(site, f"{SIMILAR}?_like=5&_max_distance=0")
    assert "Nothing fits these limits" in page.text


@pytest.mark.parametrize(
    ("filter", "wanted"),
    [
        ("label=red", range(17, 25)),
        ("label__exact=red", range(17, 25)),
        ("id__lt=4", range(1, 4)),
        ("name__contains=red-", range(17, 25)),
        ("label=red&id__gte=20", range(20, 25)),
        ("label__in=red,blue", [*range(1, 9), *range(17, 25)]),
        ("_where=id+%25+2+%3D+0", range(2, 25, 2)),
        ("_where=id>2&_where=id<6", range(3, 6)),
        ("camera__isnull=1", range(1, 25)),
        ("label=", []),
        ("label=nowhere", []),
    ],
)
async def test_filters_come_before_the_search(
    site: Datasette, filter: str, wanted: object
) -> None:
    answer = await ask_json(site, f"{SIMILAR}.json?_like=12&_size=100&{filter}")
    expected = {str(pk) for pk in wanted if pk != 12}
    assert set(pks(answer)) == expected
    assert answer["total"] == len(expected)


async def test_full_text_search_filters(gallery: Path) -> None:
    change(
        gallery,
        'create virtual table images_fts using fts5(name, label, content="images")',
        "insert into images_fts(images_fts) values ('rebuild')",
    )
    site = open_datasette(gallery)
    answer = await ask_json(site, f"{SIMILAR}.json?_like=1&_search=red")
    assert sorted(map(int, pks(answer))) == list(range(17, 25))
    answer = await ask_json(site, f"{SIMILAR}.json?_like=1&_search_label=green")
    assert sorted(map(int, pks(answer))) == list(range(9, 17))
    # Whatever carries the search on must carry what it depends on.
    path = f"{SIMILAR}?_like=1&_search=red+OR+green&_searchmode=raw&_size=5"
    page = await ask(site, path)
    assert ("_searchmode", "raw") in parameters(link_to(page.text, "_next="))


async def test_a_search_without_an_index_is_refused_not_ignored(site: Datasette) -> None:
    response = await ask(site, f"{SIMILAR}.json?_like=1&_search=red")
    assert response.status_code == 400
    assert "full-text" in response.json()["error"]


async def test_filters_are_chips_that_can_be_removed(site: Datasette) -> None:
    response = await ask(site, f"{SIMILAR}?_like=1&label=red&id__lt=20&_max_distance=0.9")
    assert "label = " in response.text
    assert "id &lt; 20" in response.text
    chips = [
        link
        for link in links(response.text)
        if link.startswith(f"{SIMILAR}?") and ("label" in link) != ("id__lt" in link)
    ]
    assert [parameters(chip) for chip in chips] == [
        [("_like", "1"), ("id__lt", "20"), ("_max_distance", "0.9")],
        [("_like", "1"), ("label", "red"), ("_max_distance", "0.9")],
    ]


async def test_the_filter_form_leads_to_the_filtered_page(site: Datasette) -> None:
    form = "_filter_column=label&_filter_op=exact&_filter_value=red"
    response = await ask(site, f"{SIMILAR}?_like=1&id__lt=20&_max_distance=&{form}")
    assert response.status_code == 302
    found = parameters(response.headers["location"])
    assert sorted(found) == [("_like", "1"), ("id__lt", "20"), ("label__exact", "red")]


async def test_csv(site: Datasette) -> None:
    response = await ask(site, f"{SIMILAR}.csv?_like=1&label=red&_size=3")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(response.text)))
    answer = await ask_json(site, f"{SIMILAR}.json?_like=1&label=red&_size=3")
    assert [row["pk"] for row in rows] == pks(answer)
    assert [float(row["score"]) for row in rows] == [r["score"] for r in answer["rows"]]
    assert {row["label"] for row in rows} == {"red"}


@pytest.mark.parametrize(
    "query",
    [
        "_like=1",
        "_like=1&_like=9",
        "_like=1&label=red",
        "_like=1&_like=9&label__in=red,green&id__gt=10",
        "_like=1&name__contains=it's",
        "_like=1&_max_distance=0.3",
        "_like=1&_where=id>4",
        "_like=1:3&_like=9&_unlike=24",
        "_like=1&_unlike=24:2&_unlike=9&label=red",
    ],
)
async def test_view_as_sql_runs_and_gives_the_same_rows(
    site: Datasette, query: str
) -> None:
    change(
        Path(site.databases["gallery"].path), "update images set name = name || ' it''s'"
    )
    page = await ask(site, f"{SIMILAR}?{query}&_size=6")
    assert page.status_code == 200
    link = next(link for link in links(page.text) if "sql=" in link)
    shown = await ask(site, link)
    assert shown.status_code == 200
    assert "rows-and-columns" in shown.text
    path, _, arguments = link.partition("?")
    result = await ask_json(site, f"{path}.json?{arguments}&_shape=objects")
    answer = await ask_json(site, f"{SIMILAR}.json?{query}&_size=6")
    # Room for the query pictures is asked for: where a filter has sorted them out
    # already, a few more come back.
    found = [str(row["id"]) for row in result["rows"]]
    assert found[: len(pks(answer))] == pks(answer)
    assert len(found) <= len(pks(answer)) + query.count("like=")


async def test_sql_is_for_those_who_may_run_it(gallery: Path) -> None:
    site = open_datasette(gallery, config={"allow_sql": {"id": "root"}})
    page = await ask(site, f"{SIMILAR}?_like=1")
    assert page.status_code == 200
    assert "View as SQL" not in page.text
    for format in ("", ".json", ".csv"):
        refused = await ask(site, f"{SIMILAR}{format}?_like=1&_where=1")
        assert refused.status_code == 403
    page = await ask(site, f"{SIMILAR}?_like=1&_where=1", {"id": "root"})
    assert page.status_code == 200
    assert "View as SQL" in page.text


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ("", 400, "_like"),
        ("_like=1&_size=0", 400, "_size"),
        ("_like=1&_size=-1", 400, "_size"),
        ("_like=1&_size=many", 400, "_size"),
        ("_like=1&_size=1e999", 400, "_size"),
        ("_like=1&_next=-1", 400, "_next"),
        ("_like=1&_next=x", 400, "_next"),
        ("_like=1&_next=" + "9" * 5000, 400, "_next"),
        ("_like=1&_max_distance=near", 400, "_max_distance"),
        ("_like=1&_max_distance=-1", 400, "_max_distance"),
        ("_like=1&_max_distance=nan", 400, "_max_distance"),
        ("_like=1&_max_distance=inf", 400, "_max_distance"),
        ("_like=1&nothing=5", 400, "nothing"),
        ("_like=1&id__like_this=5", 400, "like_this"),
        ("_like=1&_where=this+is+not+SQL", 400, "filter"),
        ("_like=1&_where=id=:unbound", 400, "filter"),
        ("_like=1&_through=not+json", 400, "_through"),
        ("_like=1&_collection=other", 404, "other"),
        ("&".join(f"_like={n}" for n in range(60)), 400, "50"),
        ("_like=999", 404, "999"),
        ("_like=", 404, "row"),
        ("_like=1,2", 404, "1,2"),
        ("_like=%FF~ZZ", 404, "row"),
    ],
)
async def test_bad_parameters_are_told_in_a_sentence(
    site: Datasette, query: str, status: int, word: str
) -> None:
    response = await ask(site, f"{SIMILAR}.json?{query}")
    assert response.status_code == status, response.text
    body = response.json()
    assert body["ok"] is False
    assert body["status"] == status
    assert word in body["error"]
    page = await ask(site, f"{SIMILAR}?{query}")
    assert page.status_code == status
    assert "<h1>" in page.text
    assert "Traceback" not in page.text


@pytest.mark.parametrize(
    "path",
    [
        "/gallery/nothing/-/similar?_like=1",
        "/nothing/images/-/similar?_like=1",
        "/gallery/nothing/-/thumbnail/1",
        "/gallery/images/-/thumbnail/999",
        "/gallery/images/-/image/1,2",
        "/gallery/nothing/-/search-by-image",
        "/gallery/_image_similarity_items/-/similar?_like=1",
    ],
)
async def test_what_is_not_there_is_404(site: Datasette, path: str) -> None:
    assert (await ask(site, path)).status_code == 404


async def test_a_table_without_embeddings_is_404(gallery: Path) -> None:
    change(gallery, "create table plain (id integer primary key)")
    change(gallery, "insert into plain values (1)")
    site = open_datasette(gallery)
    for page in ("similar?_like=1", "search-by-image", "thumbnail/1", "add-picture"):
        response = await ask(site, f"/gallery/plain/-/{page}", {"id": "root"})
        assert response.status_code == 404
        assert "no embeddings" in response.text


async def test_a_row_without_an_embedding_says_why(gallery: Path, photos: Path) -> None:
    (photos / "zz.png").write_bytes(b"not a picture")
    with ImageCollection(gallery) as collection:
        collection.embed()
    change(
        gallery,
        "insert into images (id, path) values (500, 'later.png')",
    )
    site = open_datasette(gallery)
    response = await ask(site, f"{SIMILAR}.json?_like=500")
    assert response.status_code == 404
    assert "embed" in response.json()["error"]


async def test_deleted_and_changed_rows_do_not_show(gallery: Path) -> None:
    change(
        gallery,
        "delete from images where id = 3",
        "update images set path = 'other.png' where id = 4",
    )
    site = open_datasette(gallery)
    answer = await ask_json(site, f"{SIMILAR}.json?_like=1")
    assert answer["total"] == 21
    assert not {"3", "4"} & set(pks(answer))
    assert (await ask(site, "/gallery/images/-/thumbnail/3")).status_code == 404
    assert (await ask(site, "/gallery/images/-/thumbnail/4")).status_code == 404


async def test_the_time_limit_is_503_in_words(
    gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = open_datasette(gallery, settings={"sql_time_limit_ms": 20})
    endless = "with recursive n(i) as (select 1 union all select i+1 from n) "
    where = urlencode({"_where": f"id in ({endless} select i from n where i < 0)"})
    for format in ("", ".json"):
        response = await ask(site, f"{SIMILAR}{format}?_like=1&{where}")
        assert response.status_code == 503, response.text
        assert "took longer than 0.02 seconds" in response.text
        assert response.headers["retry-after"]


async def test_a_database_that_is_being_written_still_answers(gallery: Path) -> None:
    site = open_datasette(gallery)
    stop = threading.Event()

    def write() -> None:
        connection = sqlite3.connect(str(gallery), isolation_level=None)
        number = 0
        while not stop.is_set():
            number += 1
            connection.execute("begin immediate")
            connection.execute("update images set width = ? where id = 1", (number,))
            time.sleep(0.01)
            connection.execute("commit")
        connection.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            answer = await ask_json(site, f"{SIMILAR}.json?_like=1")
            assert answer["total"] == 23
    finally:
        stop.set()
        writer.join()


async def test_a_locked_database_is_busy_not_wrong(
    gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqlite3.connect
    monkeypatch.setattr(  # Datasette waits five seconds otherwise
        sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "timeout": 0.05})
    )
    site = open_datasette(gallery)
    await ask_json(site, f"{SIMILAR}.json?_like=1")
    other = real(str(gallery), isolation_level=None)
    other.execute("begin exclusive")
    try:
        response = await ask(site, f"{SIMILAR}.json?_like=1")
    finally:
        other.close()
    assert response.status_code == 503
    assert "written to" in response.json()["error"]


async def test_two_collections_over_one_table(gallery: Path, photos: Path) -> None:
    with ImageCollection(gallery, name="second") as collection:
        collection.embed(photos, encoder=EncoderOptions("hog"), metric="l2")
    site = open_datasette(gallery)
    answer = await ask_json(site, f"{SIMILAR}.json?_like=1&_collection=second")
    assert answer["query"]["collection"] == "second"
    assert answer["query"]["metric"] == "l2"
    assert answer["rows"][0]["row"]["label"] == "blue"
    page = await ask(site, f"{SIMILAR}?_like=1&_collection=second&_size=5")
    asked = [parameters(link) for link in links(page.text) if "/-/similar?" in link]
    elsewhere = [one for one in asked if ("_collection", "second") not in one]
    assert elsewhere == [[("_like", "1"), ("_size", "5")]]  # the switch to the other
    assert len(asked) > 10
    sql = next(link for link in links(page.text) if "sql=" in link)
    path, _, arguments = sql.partition("?")
    result = await ask_json(site, f"{path}.json?{arguments}&_shape=objects")
    assert [str(row["id"]) for row in result["rows"]][:5] == pks(answer)[:5]


async def test_links_stay_in_the_collection_that_is_not_the_usual_one(
    gallery: Path, photos: Path
) -> None:
    """Rows that only the second collection knows have their pictures too."""
    with ImageCollection(gallery, name="second") as collection:
        collection.embed(photos, encoder=EncoderOptions("hog"))
    change(gallery, "update _image_similarity_items set pk = pk + 100 where id <= 24")
    site = open_datasette(gallery)
    for path in (f"{SIMILAR}?_like=1&_collection=second", "/-/image-similarity"):
        page = await ask(site, path)
        pictures = re.findall(
            r'<img[^>]* src="([^"]+_collection=second)"', unescape(page.text)
        )
        assert len(pictures) >= 9
        for url in pictures:
            assert (await ask(site, url)).status_code == 200, url
        for url in links(page.text):
            if "_collection=second" in url and "sql=" not in url:
                url = url.replace("&amp;", "&")
                assert (await ask(site, url)).status_code == 200, url


async def test_cors_as_datasette_has_it(gallery: Path) -> None:
    site = open_datasette(gallery, cors=True)
    response = await ask(site, f"{SIMILAR}.json?_like=1")
    assert response.headers["access-control-allow-origin"] == "*"
    response = await ask(open_datasette(gallery), f"{SIMILAR}.json?_like=1")
    assert "access-control-allow-origin" not in response.headers


async def test_json_survives_odd_values(gallery: Path) -> None:
    change(gallery, "alter table images add column odd")
    change(gallery, "update images set odd = x'00ff' where id = 2")
    change(gallery, "update images set odd = 9e999 where id = 3")
    site = open_datasette(gallery)
    response = await ask(site, f"{SIMILAR}.json?_like=1")
    assert response.status_code == 200
    body = json.loads(response.text, parse_constant=lambda name: pytest.fail(name))
    odd = {row["pk"]: row["row"]["odd"] for row in body["rows"]}
    assert odd["2"] == {"$base64": True, "encoded": "AP8="}


# Several pictures, folding and the histogram


async def test_more_like_and_less_like(site: Datasette, gallery: Path) -> None:
    query = "_like=1&_like=9:2&_unlike=24:0.5&_one_per=label"
    answer = await ask_json(site, f"{SIMILAR}.json?{query}")
    assert answer["query"]["like"] == ["1", "9:2"]
    assert answer["query"]["unlike"] == ["24:0.5"]
    assert answer["query"]["one_per"] == "label"
    with ImageCollection(gallery) as collection:
        hits = collection.similar({1: 1, 9: 2}, 24, unlike={24: 0.5}, one_per="label")
    assert answer["rows"] == [hit.as_json() for hit in hits]
    assert sum(row["others"] for row in answer["rows"]) + 3 == 21
    assert "at_least" not in answer


async def test_tiles_and_query_pictures_lead_to_other_questions(site: Datasette) -> None:
    page = await ask(site, f"{SIMILAR}?_like=1&_like=9:2&_unlike=24&_size=2&label__not=x")
    found = [parameters(link) for link in links(page.text)]
    first = pks(await ask_json(site, f"{SIMILAR}.json?_like=1&_like=9:2&_unlike=24"))[0]
    same = [("_size", "2"), ("label__not", "x")]
    for likes, unlikes in (
        (["1", "9:2", first], ["24"]),  # + on the first tile
        (["1", "9:2"], ["24", first]),  # −
        (["9:2"], ["24"]),  # × on the first like
        (["1", "9:2"], []),  # × on the unlike
        (["1:2", "9:2"], ["24"]),  # a weight up
        (["1:0.5", "9:2"], ["24"]),  # and down
        (["1", "9"], ["24"]),
        (["1", "9:3"], ["24"]),
    ):
        wanted = [*same, *(("_like", one) for one in likes)]
        wanted += [("_unlike", one) for one in unlikes]
        assert sorted(wanted) in [sorted(one) for one in found], (likes, unlikes)
    # One alone counts the same whatever it weighs; and one at least must be left.
    page = await ask(site, f"{SIMILAR}?_like=1&_unlike=24")
    assert "count more" not in page.text
    assert "Search without blue-0.png" not in page.text
    assert "less like" in page.text


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("_unlike=1", "Name a picture to search with as well"),
        ("_like=1&_unlike=1:2", "both like and less like 1"),
        ("_like=1:0", "weight of 1 must be above 0"),
        ("_like=1:-2", "weight of 1 must be above 0"),
        ("_like=1&_unlike=999", "no row 999"),
        ("_like=1:x", "no row 1~3Ax"),
        ("_like=1&_crop=1,2,3", "crop is x,y,width,height"),
        ("_like=1&_crop=0.5,0,0.6,1", "does not lie in the picture"),
        ("_like=1&_crop=nan,0,1,1", "does not lie in the picture"),
        ("_like=1&_distinct=yes", "_distinct must be a whole number"),
        ("_like=1&_one_per=nope", "has no column &#39;nope&#39;"),
        ("_like=1&_one_per=cluster", "no clusters yet: run datasette image-similarity"),
        ("_like=1&_crop_left=a&_crop_top=1&_crop_width=1&_crop_height=1", "Each side"),
    ],
)
async def test_what_cannot_be_asked_is_told(site: Datasette, query: str, said: str) -> None:
    page = await ask(site, f"{SIMILAR}?{query}")
    assert page.status_code in (400, 404)
    assert said in page.text
    assert "Traceback" not in page.text


async def test_keys_with_a_colon(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "gallery.db"
    rows = [
        {"id": key, "file": f"red/red-{n}.png"} for n, key in enumerate(("a:2", "a", "b"))
    ]
    with ImageCollection(path) as collection:
        encoder = EncoderOptions("hog")
        collection.embed(rows, path_column="file", root=photos, encoder=encoder)
    site = open_datasette(path)
    answer = await ask_json(site, f"{SIMILAR}.json?_like=a~3A2&_like=a:3")
    assert answer["query"]["like"] == ["a~3A2", "a:3"]
    assert pks(answer) == ["b"]
    page = await ask(site, f"{SIMILAR}?_like=b")
    assert {("_like", "a~3A2")} <= {
        pair for link in links(page.text) for pair in parameters(link)
    }


async def test_folded_results_are_counted_on_the_page(site: Datasette) -> None:
    page = await ask(site, f"{SIMILAR}?_like=1&_one_per=label&_distinct=1")
    assert "one per label" in page.text
    assert "no near-duplicates" in page.text
    assert "more like it" in page.text
    assert "View as SQL" not in page.text
    for gone, left in (("_one_per", "_distinct"), ("_distinct", "_one_per")):
        chips = [dict(parameters(link)) for link in links(page.text)]
        assert any(gone not in one and left in one for one in chips)
    page = await ask(site, f"{SIMILAR}?_like=1&_one_per=label")
    among = link_to(page.text, "label__exact=blue")
    assert "_one_per" not in dict(parameters(among))
    page = await ask(site, f"{SIMILAR}?_like=1&_one_per=&_distinct=")
    assert "near-duplicates ×" not in page.text


async def test_the_histogram_as_json_and_as_a_picture(site: Datasette) -> None:
    plain = await ask_json(site, f"{SIMILAR}.json?_like=1&label__in=red,blue")
    assert "histogram" not in plain
    query = "_like=1&label__in=red,blue&_max_distance=0.1"
    answer = await ask_json(site, f"{SIMILAR}.json?{query}&_histogram=1")
    found = answer["histogram"]
    assert list(found) == ["counts", "top", "measured", "total", "random_pairs"]
    assert sum(found["counts"]) == found["measured"] == found["total"] == 15
    assert list(found["random_pairs"]) == ["0.01", "0.001"]
    near = sum(found["counts"][: round(0.1 / found["top"] * len(found["counts"]))])
    assert abs(near - answer["total"]) <= 2  # what lies in the bar at the cut-off
    page = await ask(site, f"{SIMILAR}?{query}")
    address = re.search(r'class="ims-histogram" src="([^"]+)"', page.text)[1]
    picture = await ask(site, unescape(address))
    assert picture.headers["content-type"].startswith("image/svg+xml")
    ElementTree.fromstring(picture.text)
    assert "15 pictures" in picture.text
    assert "0.1 % of random pairs are nearer than" in picture.text
    colours = set(re.findall(r'fill="(#\w+)"/>', picture.text))
    assert len(colours) == 2  # on both sides of the cut-off


async def test_the_plain_page_measures_no_random_pairs(
    site: Datasette, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("datasette_image_similarity.web.service.random_pairs", never)
    assert (await ask(site, f"{SIMILAR}?_like=1&_like=9&_unlike=24")).status_code == 200


async def test_random_pairs_are_measured_once(
    site: Datasette, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        return random_pairs(*arguments)

    monkeypatch.setattr("datasette_image_similarity.web.service.random_pairs", counted)
    for _ in range(2):
        await ask_json(site, f"{SIMILAR}.json?_like=1&_distinct=1&_histogram=1")
    assert len(calls) == 1


async def test_hostile_captions_are_text_wherever_they_stand(
    site: Datasette, gallery: Path
) -> None:
    change(gallery, """update images set name = '"><script>alert(1)</script>'""")
    page = await ask(site, f"{SIMILAR}?_like=1&_like=9:2&_unlike=24&_one_per=name")
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    page = await ask(site, f"{SIMILAR}?_like=1&_like=9:2&_unlike=24&_size=3")
    assert page.text.count("&lt;script&gt;alert") > 9
    assert "<script>alert" not in page.text
