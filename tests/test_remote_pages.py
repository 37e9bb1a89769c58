"""Pages over pictures in a bucket: read where it is vouched for, else thumbnails."""

from __future__ import annotations

from pathlib import Path

import pytest
from cloud import Server
from conftest import COLOURS, picture
from core import embed
from serving import ROOT, ask, ask_json, open_datasette, post_picture

from datasette_image_similarity import trust
from datasette_image_similarity.web.config import ConfigError, _checked

pytest_plugins = ["cloud_fixtures"]

CLOUD = "s3://photos/summer"
IMAGE = "/cloud/images/-/image/1"


@pytest.fixture
def bucket(bucket: Server) -> Server:
    for colour in COLOURS:
        bucket.put(f"summer/{colour}.png", picture(colour, 1, size=(640, 480)))
    return bucket


@pytest.fixture
def path(bucket: Server, tmp_path: Path) -> Path:
    embed(tmp_path / "cloud.db", CLOUD)
    bucket.asked("GET")
    return tmp_path / "cloud.db"


def distrust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "trusted_roots", lambda _: [])


@pytest.mark.asyncio
async def test_large_pictures_come_out_of_the_bucket(bucket: Server, path: Path) -> None:
    large = await ask(open_datasette(path), IMAGE)
    assert large.headers["content-type"] == "image/jpeg"
    assert bucket.asked("GET") == 1


@pytest.mark.asyncio
async def test_a_bucket_that_nobody_vouched_for_is_not_asked(
    bucket: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distrust(monkeypatch)
    elsewhere = {"roots": ["s3://photos/sum", "/tmp", "s3://photo", "https:"]}
    for plugin in (None, elsewhere):
        large = await ask(open_datasette(path, plugin=plugin), IMAGE)
        assert large.headers["content-type"] == "image/webp"
    assert bucket.asked("GET", "photos") == 0


@pytest.mark.asyncio
async def test_a_configured_bucket_is(
    bucket: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distrust(monkeypatch)
    large = await ask(open_datasette(path, plugin={"roots": [f"{CLOUD}/"]}), IMAGE)
    assert large.headers["content-type"] == "image/jpeg"


@pytest.mark.asyncio
async def test_where_the_bucket_is_away_thumbnails_are_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    datasette = open_datasette(path)
    large = await ask(datasette, IMAGE)
    assert large.headers["content-type"] == "image/webp"
    crop = "/cloud/images/-/similar.json?_like=1&_crop=0,0,.5,.5"
    assert len((await ask_json(datasette, crop))["rows"]) > 0


@pytest.mark.asyncio
async def test_originals_are_exported_if_they_are_what_was_embedded(
    bucket: Server, path: Path
) -> None:
    datasette = open_datasette(path, plugin={"originals": True})
    bucket.put("summer/red.png", picture("blue", 9))
    answer = await ask(datasette, "/cloud/images/-/export.zip")
    assert picture("green", 1, size=(640, 480)) in answer.content
    assert picture("blue", 9) not in answer.content


@pytest.mark.asyncio
async def test_a_crop_is_cut_out_of_the_object(bucket: Server, path: Path) -> None:
    datasette = open_datasette(path)
    crop = "/cloud/images/-/similar.json?_like=1&_crop=0,0,.5,.5"
    assert len((await ask_json(datasette, crop))["rows"]) > 0
    assert bucket.asked("GET") == 1


@pytest.mark.asyncio
async def test_nothing_is_put_into_a_bucket(
    bucket: Server, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    datasette = open_datasette(path, plugin={"roots": [str(tmp_path / "here")]})
    add = "/cloud/images/-/add-picture.json"
    answer = await post_picture(datasette, add, picture("red", 5), ROOT)
    assert answer.status_code == 403
    assert "bucket" in answer.text
    assert not list((tmp_path / "here").iterdir())


def test_roots_that_are_no_places_are_refused() -> None:
    for wrong in ("http://x.org/a", "file:///etc", "s3://", "zip://a::s3://photos"):
        with pytest.raises(ConfigError):
            _checked({"roots": [wrong]})
    assert _checked({"roots": [CLOUD, "gs://abc", "https:", "/a", "s3:"]})
