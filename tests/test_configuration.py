"""Settings at three levels, wrong ones refused, and what a server leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import picture
from datasette.utils import StartupError
from serving import IS_ONE, PLUGIN, ask, ask_json, open_datasette, post_picture

SIMILAR = "/gallery/images/-/similar.json?_like=1"


def levels(
    instance: dict[str, Any] | None = None,
    database: dict[str, Any] | None = None,
    table: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A configuration with our settings at some of the three levels."""

    def at(settings: dict[str, Any] | None) -> dict[str, Any]:
        return {} if settings is None else {"plugins": {PLUGIN: settings}}

    images = {"images": at(table)}
    return {**at(instance), "databases": {"gallery": {**at(database), "tables": images}}}


async def size(gallery: Path, config: dict[str, Any]) -> int:
    site = open_datasette(gallery, config=config)
    return len((await ask_json(site, SIMILAR))["rows"])


async def test_the_nearest_level_wins(gallery: Path) -> None:
    three, five, seven = ({"page_size": n} for n in (3, 5, 7))
    assert await size(gallery, levels()) == 23
    assert await size(gallery, levels(three)) == 3
    assert await size(gallery, levels(three, five)) == 5
    assert await size(gallery, levels(three, five, seven)) == 7
    assert await size(gallery, levels(three, None, seven)) == 7


async def test_levels_are_merged_setting_by_setting(gallery: Path) -> None:
    config = levels({"page_size": 3}, {"caption": "label"}, {"search_by_image": False})
    site = open_datasette(gallery, config=config)
    assert len((await ask_json(site, SIMILAR))["rows"]) == 3
    page = await ask(site, "/gallery/images/-/similar?_like=24")
    assert 'alt="red"' in page.text
    assert (await ask(site, "/gallery/images/-/search-by-image")).status_code == 403


async def test_a_page_is_never_longer_than_datasette_allows(gallery: Path) -> None:
    settings = {"max_returned_rows": 10}
    site = open_datasette(gallery, plugin={"page_size": 1000}, settings=settings)
    for extra in ("", "&_size=max", "&_size=5000"):
        answer = await ask_json(site, SIMILAR + extra)
        assert len(answer["rows"]) == 10
        assert answer["next"] == "10"


async def test_another_collection_by_configuration(gallery: Path, photos: Path) -> None:
    from datasette_image_similarity.collection import EncoderOptions, ImageCollection

    with ImageCollection(gallery, name="second") as collection:
        collection.embed(photos, encoder=EncoderOptions("hog"), metric="l2")
    site = open_datasette(gallery, plugin={"collection": "second"})
    assert (await ask_json(site, SIMILAR))["query"]["metric"] == "l2"


WRONG = [
    {"page_sise": 3},
    {"page_size": "3"},
    {"page_size": 0},
    {"page_size": -1},
    {"page_size": True},
    {"page_size": 2.5},
    {"search_by_image": "no"},
    {"roots": "/photos"},
    {"roots": [1]},
    {"roots": ["ftp://host/photos"]},
    {"stores": ["http://host/photos"]},
    {"stores": ["milvus://host/photos", "photos.db"]},
    {"caption": 7},
    {"upload_max_bytes": None},
]


@pytest.mark.parametrize("wrong", WRONG)
async def test_wrong_settings_stop_datasette(gallery: Path, wrong: dict) -> None:
    for config in (levels(wrong), levels(None, wrong), levels(None, None, wrong)):
        with pytest.raises(StartupError) as told:
            await open_datasette(gallery, config=config).invoke_startup()
        assert next(iter(wrong)) in str(told.value)
        assert PLUGIN in str(told.value)


async def test_settings_that_are_no_object(gallery: Path) -> None:
    for wrong in ([], "yes", 1):
        site = open_datasette(gallery, config={"plugins": {PLUGIN: wrong}})
        with pytest.raises(StartupError):
            await site.invoke_startup()


async def test_upload_limits_are_those_of_the_table(gallery: Path) -> None:
    config = levels({"upload_max_pixels": 10}, None, {"upload_max_pixels": 10_000})
    site = open_datasette(gallery, config=config)
    response = await post_picture(site, "/gallery/images/-/search-by-image", picture())
    assert response.status_code == 200


def children(pid: int) -> list[int]:
    """The child processes of a process. Linux only."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
async def test_shutdown_leaves_no_child(gallery: Path) -> None:
    """On 1.0 the hook ends them; on 0.65, which calls no hook, our end does."""
    code = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from conftest import picture
from serving import ask, open_datasette, post_picture
async def main():
    site = open_datasette(Path(sys.argv[1]), plugin={"roots": [sys.argv[3]]})
    await post_picture(site, "/gallery/images/-/search-by-image", picture())
    await ask(site, "/gallery/images/-/image/1")
    print("ready", flush=True)
    sys.stdin.readline()
    if hasattr(site, "invoke_shutdown"):
        await site.invoke_shutdown()
        print("shut", flush=True)
        sys.stdin.readline()
asyncio.run(main())
"""
    here = str(Path(__file__).parent)
    root = str(gallery.parent / "photos")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(gallery), here, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        started = children(process.pid)
        assert len(started) == 2
        process.stdin.write("\n")
        process.stdin.flush()
        if IS_ONE:
            assert process.stdout.readline() == "shut\n"
            assert children(process.pid) == []
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline, "a child outlived its Datasette"
        time.sleep(0.05)


def test_settings_have_a_kind_each() -> None:
    from dataclasses import fields

    from datasette_image_similarity.web.config import KINDS, Config

    assert [one.name for one in fields(Config)] == list(KINDS)


async def test_no_configuration_is_fine(gallery: Path) -> None:
    site = open_datasette(gallery, config=json.loads("{}"))
    assert (await ask(site, "/gallery/images")).status_code == 200
