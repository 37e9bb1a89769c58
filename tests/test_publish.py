"""The folder for public sites, docs/publish: what it promises holds on both Datasettes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import picture
from core import value
from datasette.app import Datasette
from serving import IS_ONE, ROOT, ask, ask_json, open_folder, post_picture

PUBLISH = Path(__file__).parents[1] / "docs" / "publish"
TABLE = "/gallery/images/-"


@pytest.fixture
def site(copied: Path, tmp_path: Path) -> Datasette:
    """The folder as it is, with a database in it."""
    folder = tmp_path / "site"
    shutil.copytree(PUBLISH, folder)
    shutil.copy(copied, folder / "gallery.db")
    return open_folder(folder)


def test_both_datasettes_are_told_the_same() -> None:
    import json

    import yaml

    new = yaml.safe_load((PUBLISH / "datasette.yaml").read_text())
    old = yaml.safe_load((PUBLISH / "metadata.yaml").read_text())
    assert new["plugins"] == old["plugins"]
    assert new["settings"] == json.loads((PUBLISH / "settings.json").read_text())


async def test_visitors_look_and_search(site: Datasette) -> None:
    found = await ask_json(site, f"{TABLE}/similar.json?_like=1")
    assert len(found["rows"]) == 23
    assert (await ask(site, f"{TABLE}/thumbnail/1")).status_code == 200
    answer = await post_picture(site, f"{TABLE}/search-by-image", picture())
    assert answer.status_code == 200
    assert answer.json()["rows"]


@pytest.mark.parametrize("actor", [None, ROOT])
async def test_neither_sql_nor_the_file(site: Datasette, actor: dict | None) -> None:
    sql = "/gallery.json?sql=select+path+from+_image_similarity_roots"
    answer = await ask(site, sql, actor)
    assert answer.status_code in (302, 403) or not answer.json().get("ok", True)
    assert "photos" not in answer.text
    if IS_ONE:
        query = sql.replace("gallery.json", "gallery/-/query.json")
        assert (await ask(site, query, actor)).status_code == 403
    assert (await ask(site, "/gallery.db", actor)).status_code == 403
    roots = await ask(site, "/gallery/_image_similarity_roots.json", actor)
    assert roots.status_code == 403


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("duplicates/decide", {"group": "1"}),
        ("clusters/rename", {"cluster": "1", "name": "x"}),
        ("questions", {"name": "x", "address": f"{TABLE}/similar?_like=1"}),
        ("add-picture", {}),
    ],
)
async def test_nobody_changes_anything(site: Datasette, path: str, fields: dict) -> None:
    answer = await post_picture(site, f"{TABLE}/{path}", picture(), fields=fields)
    assert answer.status_code == 403, (path, answer.text[:200])


async def test_what_is_searched_for_is_not_kept(site: Datasette) -> None:
    await ask_json(site, f"{TABLE}/similar.json?_like=1")
    path = site.get_database("gallery").path
    assert value(Path(path), "select count(*) from _image_similarity_searches") == 0


async def test_uploads_have_their_limit(site: Datasette) -> None:
    big = picture() + b"\0" * 8_000_000
    answer = await post_picture(site, f"{TABLE}/search-by-image", big)
    assert answer.status_code == 413, answer.text[:200]
    assert site.setting("default_allow_sql") is False
    assert site.setting("max_csv_mb") == 20
