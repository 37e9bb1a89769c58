"""Pages, JSON and CSV that ask with words."""

from __future__ import annotations

import asyncio
import csv
import io
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from core import sql
from serving import (
    ROOT,
    ask,
    ask_json,
    change,
    link_to,
    links,
    open_datasette,
    parameters,
    pks,
    post_picture,
)
from test_default_collection import reduced
from wording import TEXT

from datasette_image_similarity import ImageCollection, trust
from datasette_image_similarity.web.service import service

PAGE = "/worded/images/-/similar"
RED_SHOES = f"_text={TEXT.replace(' ', '+')}"


@pytest.fixture
def site(worded: Path) -> Any:
    return open_datasette(worded, plugin={"curators": True})


@pytest.fixture
def expected(worded: Path) -> dict[str, list[str]]:
    """Keys as the Python API finds them, by how it is asked."""
    with ImageCollection(worded) as photos:
        found = {
            "words": photos.search(text=TEXT, k=24),
            "words and row": photos.similar(3, k=23, text=TEXT),
            "words ×3 and row": photos.similar(3, k=23, text={TEXT: 3}),
            "row without words": photos.similar(3, k=23, unlike_text=TEXT),
        }
    return {name: [str(hit.pk) for hit in hits] for name, hits in found.items()}


@pytest.mark.parametrize(
    ("question", "name"),
    [
        (RED_SHOES, "words"),
        (f"{RED_SHOES}&_like=3", "words and row"),
        (f"{RED_SHOES}&_like=3&_text_weight=3", "words ×3 and row"),
        (f"_like=3&_unlike{RED_SHOES}", "row without words"),
    ],
)
async def test_json_finds_what_python_finds(
    question: str, name: str, site: Any, expected: dict[str, list[str]]
) -> None:
    found = await ask_json(site, f"{PAGE}.json?{question}&_size=24")
    assert pks(found) == expected[name]
    assert len({tuple(one) for one in expected.values()}) == 4
    texts = found["query"]["text"] + found["query"]["unlike_text"]
    assert texts == [TEXT]


async def test_pages_of_results_filters_csv_and_cut_off_go_with_words(
    site: Any, expected: dict[str, list[str]]
) -> None:
    first = await ask_json(site, f"{PAGE}.json?{RED_SHOES}&_size=10")
    then = await ask_json(site, first["next_url"].removeprefix("http://localhost"))
    assert pks(first) + pks(then) == expected["words"][:20]
    answer = await ask(site, f"{PAGE}.csv?{RED_SHOES}&_size=24")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["pk"] for row in rows] == expected["words"]
    blue = await ask_json(site, f"{PAGE}.json?{RED_SHOES}&_size=24&folder=blue")
    assert len(pks(blue)) == 8
    assert pks(blue) == [pk for pk in expected["words"] if pk in pks(blue)]
    cut = first["rows"][4]["distance"]
    near = await ask_json(site, f"{PAGE}.json?{RED_SHOES}&_max_distance={cut + 1e-6}")
    assert pks(near) == expected["words"][:5]
    shown = await ask_json(site, f"{PAGE}.json?{RED_SHOES}&_histogram=1")
    assert sum(shown["histogram"]["counts"]) > 0
    assert (await ask(site, f"{PAGE}.svg?{RED_SHOES}")).status_code == 200
    for export in ("zip", "html"):
        assert (await ask(site, f"{PAGE}.{export}?{RED_SHOES}")).status_code == 200


async def test_the_page_shows_words_that_can_be_dropped(site: Any) -> None:
    page = (await ask(site, f"{PAGE}?{RED_SHOES}&_like=3&_unlike_text=rain")).text
    assert f"“{TEXT}”" in page
    assert "“rain”" in page
    without = [dict(parameters(link)) for link in links(page) if "_unlike_text" not in link]
    assert any(one.get("_text") == TEXT and "_like" in one for one in without)
    heavier = link_to(page, "_text_weight=2")
    assert ("_text", TEXT) in parameters(heavier)
    # A result's own neighbours are not those of the words.
    assert any(set(dict(parameters(link))) == {"_like"} for link in links(page))
    alone = (await ask(site, f"{PAGE}?{RED_SHOES}")).text
    assert "Pictures by words" in alone
    assert "Search without the words" not in alone  # nothing would be left


async def test_hostile_words_are_text(site: Any) -> None:
    bad = '"><script>alert(1)</script>&amp;'
    page = await ask(site, f"{PAGE}?{urlencode([('_text', bad), ('_like', '1')])}")
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;alert(1)" in page.text


@pytest.mark.parametrize(
    ("question", "status", "said"),
    [
        ("_text=", 400, "or words"),
        ("_text=+++", 400, "or words"),
        ("_unlike_text=rain", 400, "as well"),
        (f"_text={'x' * 501}", 400, "up to 500"),
        (f"_text={'a+cat+' * 20}", 400, "reads 14 tokens"),
        ("&".join(f"_text={n}" for n in range(11)), 400, "Up to 10 texts"),
        ("_text=a&_text_weight=0", 400, "above 0"),
        ("_text=a&_text_weight=nan", 400, "must be a number"),
        ("_text=a&_crop=0,0,.5,.5", 400, "crop"),
    ],
)
async def test_what_cannot_be_asked_is_said(
    question: str, status: int, said: str, site: Any
) -> None:
    answer = await ask(site, f"{PAGE}.json?{question}")
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]


async def test_words_and_an_uploaded_picture(site: Any, worded_once: Path) -> None:
    file = worded_once.parent / "photos" / "red" / "red-3.png"
    with ImageCollection(Path(site.get_database("worded").path)) as photos:
        wanted = [str(hit.pk) for hit in photos.search(file, k=24, text=TEXT)]
        alone = [str(hit.pk) for hit in photos.search(file, k=24)]
    path = f"/worded/images/-/search-by-image?{RED_SHOES}&_size=24"
    answer = await post_picture(site, path, file.read_bytes())
    assert pks(answer.json()) == wanted != alone
    page = await post_picture(site, path, file.read_bytes(), json=False)
    assert f"“{TEXT}”" in page.text
    empty = await ask(site, path)
    assert "results are like it and like these words" in empty.text
    assert "Search without the words" in empty.text


async def test_a_box_for_words_only_where_they_are_read(
    worded: Path, gallery: Path
) -> None:
    site = open_datasette(worded, gallery)
    for path in ("/images/-/search-by-image", "/images/-/similar?_like=1"):
        assert 'name="_text"' in (await ask(site, f"/worded{path}")).text
        assert 'name="_text"' not in (await ask(site, f"/gallery{path}")).text
    assert (await ask(site, "/-/image-similarity")).text.count('name="_text"') == 1
    answer = await ask(site, f"/gallery/images/-/similar.json?{RED_SHOES}")
    assert answer.status_code == 400
    assert "reads no words" in answer.json()["error"]
    assert "--model open_clip:" in answer.json()["error"]


async def test_search_by_words_can_be_switched_off(worded: Path) -> None:
    site = open_datasette(worded, plugin={"search_by_text": False})
    assert (await ask(site, f"{PAGE}?{RED_SHOES}")).status_code == 403
    assert 'name="_text"' not in (await ask(site, f"{PAGE}?_like=1")).text
    assert 'name="_text"' not in (await ask(site, "/-/image-similarity")).text


async def test_a_table_that_may_not_be_viewed(worded: Path) -> None:
    tables = {"images": {"allow": {"id": "root"}}}
    site = open_datasette(worded, config={"databases": {"worded": {"tables": tables}}})
    for end in ("", ".json", ".csv", ".svg"):
        assert (await ask(site, f"{PAGE}{end}?{RED_SHOES}")).status_code == 403
    assert (await ask(site, f"{PAGE}.json?{RED_SHOES}", ROOT)).status_code == 200


async def test_missing_weights_are_said(worded: Path) -> None:
    trust._write({"roots": {}, "weights": {}, "published": {}})
    site = open_datasette(worded)
    answer = await ask(site, f"{PAGE}.json?{RED_SHOES}")
    assert answer.status_code == 503
    assert "say where that lies" in answer.json()["error"]
    assert (await ask(site, f"{PAGE}?_like=1")).status_code == 200


async def test_weights_may_be_configured(worded: Path, tiny_model: Path) -> None:
    trust._write({"roots": {}, "weights": {}, "published": {}})
    site = open_datasette(worded, plugin={"weights": str(tiny_model)})
    assert (await ask(site, f"{PAGE}.json?{RED_SHOES}")).status_code == 200


async def test_questions_with_words_are_saved_and_logged(worded: Path) -> None:
    site = open_datasette(worded, plugin={"curators": True, "history": True})
    page = (await ask(site, f"{PAGE}?{RED_SHOES}&folder=red")).text
    assert "Save this question" in page
    answer = await ask(
        site,
        "/worded/images/-/questions.json",
        None,
        "POST",
        data={"name": "Shoes", "question": f"{RED_SHOES}&folder=red"},
    )
    assert answer.status_code == 200, answer.text
    (saved,) = (await ask_json(site, "/worded/images/-/questions.json"))["questions"]
    assert saved["words"][0] == f"“{TEXT}”"
    assert saved["problem"] is None
    assert dict(parameters(saved["url"]))["_text"] == TEXT
    await asyncio.sleep(1.5)  # written once a second
    logged = sql(worded, "select question, filter from _image_similarity_searches")
    assert logged == [(RED_SHOES, "folder=red")]
    page = (await ask(site, "/worded/images/-/searches")).text
    assert f"“{TEXT}”" in page
    assert "with these 0" not in page


async def test_two_collections_are_compared_by_words(worded: Path) -> None:
    reduced(worded)
    site = open_datasette(worded)
    compare = "/worded/images/-/compare"
    assert 'name="_text"' in (await ask(site, compare)).text
    page = (await ask(site, f"{compare}?{RED_SHOES}")).text
    assert f'name="_text" value="{TEXT}"' in page
    assert "overlap@" in page


async def test_where_weights_lie_is_not_told(worded: Path, tiny_model: Path) -> None:
    encoder = "json_set(encoder, '$.config_sha256', printf('%064d', 0))"
    change(worded, f"update _image_similarity_collections set encoder = {encoder}")
    site = open_datasette(worded, plugin={"weights": str(tiny_model), "sql_text": True})
    page = (await ask(site, f"{PAGE}?{RED_SHOES}")).text
    assert f"…/{tiny_model.name}/open_clip_config.json is not the configuration" in page
    assert str(tiny_model.parent) not in page


# In the service


async def test_a_full_queue_is_said(worded: Path, monkeypatch: Any) -> None:
    site = open_datasette(worded)
    monkeypatch.setattr(service(site), "_waiting", 8)
    answer = await ask(site, f"{PAGE}.json?{RED_SHOES}")
    assert answer.status_code == 429
    assert service(site)._waiting == 8


async def test_who_waits_too_long_is_told_and_the_work_goes_on(
    worded: Path, monkeypatch: Any
) -> None:
    import threading

    from datasette_image_similarity import words

    site = open_datasette(worded)
    go_on = threading.Event()
    encoded = words.encoded

    def slow(*arguments: Any) -> Any:
        go_on.wait(30)
        return encoded(*arguments)

    monkeypatch.setattr("datasette_image_similarity.words.encoded", slow)
    monkeypatch.setattr("datasette_image_similarity.web.service.TEXT_SECONDS", 0.2)
    answer = await ask(site, f"{PAGE}.json?{RED_SHOES}")
    assert answer.status_code == 503
    assert "within 0.2 seconds" in answer.json()["error"]
    assert service(site)._waiting == 1  # it is still at it
    go_on.set()
    while service(site)._waiting:
        await asyncio.sleep(0.05)
    assert (await ask(site, f"{PAGE}.json?{RED_SHOES}")).status_code == 200  # from memory


async def test_an_encoder_that_is_displaced_meanwhile_is_loaded_with_its_transform(
    worded: Path, monkeypatch: Any
) -> None:
    """Between looking for an encoder and using it others may have taken its place."""
    import numpy as np

    from datasette_image_similarity.encoders.transform import Step
    from datasette_image_similarity.learning.stored import derive

    with ImageCollection(worded) as photos:
        collection, conn = photos._open()
        for number in (4, 5, 6):
            axes = np.eye(24, dtype=np.float32)[:, :number]
            step = Step("pca", np.zeros(24, np.float32), axes, unit=True)
            derive(conn, collection, step, name=f"first{number}")
    site = open_datasette(worded, plugin={"upload_queue": 50})
    monkeypatch.setattr("datasette_image_similarity.web.service.ENCODERS_KEPT", 1)
    asked = [
        ask(site, f"{PAGE}.json?_text={text}&_collection=first{number}")
        for text in ("sun", "rain", "snow")
        for number in (4, 5, 6)
    ]
    answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [200] * 9
