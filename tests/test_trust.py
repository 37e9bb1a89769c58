"""What the user vouched for is noted, whoever notes something else at the same time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from core import command, refused
from serving import PLUGIN, ask, open_datasette
from stored import release

from datasette_image_similarity import trust
from datasette_image_similarity.errors import EncoderError, NotNoted
from datasette_image_similarity.fetch import Fetcher
from datasette_image_similarity.web.service import without_folders

NOTING = """
import sys
import click
click.get_app_dir = lambda *_, **__: sys.argv[1]
from datasette_image_similarity import trust
for number in range(20):
    trust.note_store(sys.argv[2], f"milvus://host:19530/n{number}")
"""


def test_processes_that_note_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(tmp_path / f"{number}.db") for number in range(3)]
    command = [sys.executable, "-c", NOTING, str(tmp_path)]
    running = [subprocess.Popen([*command, file]) for file in files]
    assert [process.wait() for process in running] == [0, 0, 0]
    monkeypatch.setattr("click.get_app_dir", lambda *_, **__: str(tmp_path))
    assert [len(trust.trusted_stores(file)) for file in files] == [20, 20, 20]


def below_a_file(folder: Path) -> str:
    (folder / "file").touch()
    return str(folder / "file" / "x")


def in_place_of_the_file(folder: Path) -> str:
    (folder / "x" / "trusted.json").mkdir(parents=True)
    return str(folder / "x")


def nowhere(folder: Path) -> str:
    return "~/.config/x"  # what is left of it for a user without a home


@pytest.fixture(params=[below_a_file, in_place_of_the_file, nowhere])
def unwritable(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's configuration folder in which nothing can be noted."""
    folder = request.param(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("click.get_app_dir", lambda *_, **__: folder)


@pytest.mark.usefixtures("unwritable")
def test_what_cannot_be_noted_is_not_said_to_be(tmp_path: Path) -> None:
    database = tmp_path / "photos.db"
    for note in (
        lambda: trust.note_root(database, tmp_path),
        lambda: trust.note_store(database, "milvus://host:19530/name"),
        lambda: trust.note_weights("ab" * 32, tmp_path / "x.pth"),
    ):
        with pytest.raises(NotNoted):
            note()
    trust.note_published("https://host/weights", "ab" * 32)  # not needed for anything
    assert trust.trusted_roots(database) == trust.trusted_stores(database) == []
    assert trust.weights_file("ab" * 32) is None
    assert not (tmp_path / "~").exists()


@pytest.mark.usefixtures("unwritable")
async def test_embed_says_what_pages_need_instead(tmp_path: Path, photos: Path) -> None:
    database = tmp_path / "photos.db"
    for _ in range(2):  # it is as true for the second run
        said = command("embed", database, photos, "--model", "hog").output
        assert "Pages will read" not in said
        assert "roots could not be noted" in said
    line = next(line for line in said.splitlines() if "could not be noted" in line)
    config, _ = json.JSONDecoder().raw_decode(line[line.index("{") :])
    assert config == {"plugins": {PLUGIN: {"roots": [str(photos)]}}}
    for given, kind in ((None, "image/webp"), (config, "image/jpeg")):
        site = open_datasette(database, config=given)
        assert (await ask(site, "/photos/images/-/image/1")).headers["content-type"] == kind
    assert "photos" in refused("embed", database)


@pytest.mark.usefixtures("unwritable")
def test_a_store_that_was_named_is_used_all_the_same(tmp_path: Path, photos: Path) -> None:
    database, url = tmp_path / "photos.db", f"milvus-lite:{tmp_path}/vectors.db"
    arguments = ("embed", database, photos, "--model", "hog", "--store", url)
    try:
        for _ in range(2):
            result = command(*arguments)
            assert result.exit_code == 0, result.output
            assert "stores and roots could not be noted" in result.output
            assert f'"stores": ["{url}"]' in result.output
        assert "nobody has vouched" in refused("similar", database, "images", "1")
        result = command("move", database, "--to", "sqlite")
        assert "nobody has vouched" in result.output
    finally:
        release(url)


def test_a_move_says_so_as_well(copied: Path, unwritable: None, tmp_path: Path) -> None:
    url = f"milvus-lite:{tmp_path}/vectors.db"
    try:
        result = command("move", copied, "--to", url)
        assert result.exit_code == 0, result.output
        assert "The stores could not be noted" in result.output
    finally:
        release(url)


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="other folders there")
def test_a_user_without_a_home(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in containers that run with any user id: nothing is left in the folder there."""
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    with Fetcher() as fetcher:
        assert "no home folder" in fetcher.cache_problem
    assert without_folders(EncoderError("~/x"), None).args == ("~/x",)
    for text in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", text)
        with Fetcher() as fetcher:
            assert "no home folder" in fetcher.cache_problem


def test_a_home_that_nobody_has_is_a_name_like_others(tmp_path: Path, photos: Path) -> None:
    """`Path.expanduser()` gives up there."""
    nobody = "~there_is_no_such_user/x"
    path = tmp_path / "photos.db"
    assert nobody in refused("embed", path, nobody, "--model", "hog")
    weights = ("--weights", f"{nobody}.pth")
    assert nobody in refused("embed", path, photos, "--model", "resnet18", *weights)
    assert nobody in refused("embed", f"{nobody}.db", photos, "--model", "hog")
