"""Where Python's sqlite3 cannot load extensions: Datasette goes on, we say what to type."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from core import refused
from datasette.utils.sqlite import sqlite3
from serving import IS_ONE, ask, ask_json, open_datasette

from datasette_image_similarity import database as db
from datasette_image_similarity.errors import ExtensionError

TYPE = "datasette install pysqlite3"


@pytest.fixture
def plain(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The gallery, and no SQLite that could load sqlite-vec."""

    class Plain(sqlite3.Connection):
        @property
        def enable_load_extension(self) -> None:
            raise AttributeError("enable_load_extension")

    connect = sqlite3.connect
    monkeypatch.setattr(
        db.sqlite3, "connect", lambda *a, **o: connect(*a, **{**o, "factory": Plain})
    )
    return copied


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/gallery",
        "/gallery.json",
        "/gallery/images",
        "/gallery/images.json?_facet=folder",
        "/gallery/images.csv",
        "/gallery/images/1",
        "/gallery/_image_similarity_items.json",
        "/gallery/_image_similarity_vectors_1.json",
        "/gallery/images/-/thumbnail/1",
        "/gallery/images/-/image/1",
        "/-/plugins.json",
    ],
)
async def test_datasette_answers_all_else(plain: Path, path: str) -> None:
    assert (await ask(open_datasette(plain), path)).status_code == 200


@pytest.mark.parametrize(
    "page",
    [
        *("similar?_like=1", "similar.json?_like=1", "similar.csv?_like=1"),
        *("similar.zip?_like=1", "search-by-image", "search-by-image.json", "compare"),
        *("map", "map.json", "export.zip", "duplicates", "duplicates.json", "clusters"),
        *("evaluations", "questions", "searches"),
    ],
)
async def test_pages_of_ours_say_in_one_sentence_what_to_type(
    plain: Path, page: str
) -> None:
    answer = await ask(open_datasette(plain), f"/gallery/images/-/{page}")
    assert answer.status_code == 503
    told = re.sub("<title>.*</title>", "", answer.text)
    assert told.count(TYPE) == 1


async def test_the_home_page_says_so_too(plain: Path) -> None:
    site = open_datasette(plain)
    assert (await ask(site, "/-/image-similarity")).text.count(TYPE) == 1
    answer = await ask_json(site, "/-/image-similarity.json")
    assert TYPE in answer["problem"]
    assert len(answer["collections"]) == 1


async def test_datasette_starts_and_says_so_once(
    plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await ask(open_datasette(plain), "/")
    assert capsys.readouterr().err.count(TYPE) == 1


@pytest.mark.parametrize(
    "call",
    [
        "similar_images('images', 1, 3)",
        "similar_images('images', 1, 3, 'default')",
        "image_embedding('images', 1)",
        "mean_image_embedding('images', '[1, 2]')",
        "image_distance('images', 1, 2)",
        "image_store_problem('images')",
        "image_embedding_text('images', 'a red shoe')",
        "image_embedding_text_problem('images', 'a red shoe')",
    ],
)
async def test_sql_functions_say_so(plain: Path, call: str) -> None:
    site = open_datasette(plain, plugin={"sql_text": True})
    page = "/gallery/-/query.json" if IS_ONE else "/gallery.json"
    path = f"{page}?_shape=array&sql={quote_plus(f'select {call} as said')}"
    assert TYPE in (await ask_json(site, path))[0]["said"]


def test_commands_say_so(plain: Path, photos: Path, tmp_path: Path) -> None:
    new = tmp_path / "x.db"
    for arguments in (
        ("embed", new, photos, "--model", "hog"),
        ("similar", plain, "images", "1"),
        ("search", plain, photos / "red" / "red-0.png"),
        *((name, plain) for name in ("map", "duplicates", "clusters", "index", "verify")),
        *((name, plain) for name in ("status", "remove")),
    ):
        assert refused(*arguments).count(TYPE) == 1
    assert not new.exists()


def test_a_sqlite_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "LOWEST_SQLITE", (99, 0))
    with pytest.raises(ExtensionError, match=TYPE):
        db.load_vec(sqlite3.connect(":memory:"))
