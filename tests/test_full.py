"""The disk is full, or fails: nothing is lost, it is said in words, and it goes on."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from core import command, refused, sql, value
from datasette.utils.sqlite import sqlite3
from serving import ROOT, ask, open_datasette
from stress import full

from datasette_image_similarity import ImageCollection

HEADERS = {"accept": "application/json"}
CASES = {  # by step; each step takes place once undisturbed as well
    "embed": 2,
    "embed elsewhere": 1,
    "embed again": 2,
    "index": 1,
    "reduce --replace": 1,
    "map": 1,
    "clusters": 1,
    "verify --repair": 1,
    "remove": 1,
}


@pytest.fixture
def disk() -> full.Disk:
    try:
        return full.Disk()
    except (AttributeError, OSError):
        pytest.skip("this Python's SQLite does not show its system calls")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, bool]]:
    monkeypatch.setattr("click.get_app_dir", lambda *_, **__: str(tmp_path))
    with full.workplace(tmp_path) as given:
        yield given


def test_commands_that_write(
    tmp_path: Path, place: tuple[Path, bool], disk: full.Disk
) -> None:
    folder, mounted = place
    ends = set()
    for case in full.make_cases(tmp_path, CASES):
        for number in range(CASES[case.step.name]):
            chance = random.Random(f"{case.step.name} {number}")
            case.restore(folder)
            fault = full.draw_fault(case, folder, disk, mounted, chance)
            ends.add(full.run_case(case, folder, tmp_path / "photos", fault))
    assert "refused" in ends


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EIO, "the disk reports an error"),
        (errno.EDQUOT, "a quota"),
    ],
)
def test_the_message_says_why(copied: Path, disk: full.Disk, error: int, said: str) -> None:
    with disk.failing("pwrite", 1, error, forever=True):
        message = refused("default", copied, "images", "default")
    assert said in message
    assert str(copied) in message


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("database disk image is malformed", "its disk cannot be read"),
        ("Could not fetch vector data for 21, reading from blob failed", "cannot be read"),
        ("Could not fetch vector data for 1, opening blob failed", "cannot be read"),
        ("Internal sqlite-vec error: could not mark validity bit ", "the disk is full"),
        ("could not write to validity blob for main.x_chunks.1 at 0", "the disk is full"),
        (
            "Error inserting rowid into rowids shadow table: out of memory",
            "the disk is full",
        ),
    ],
)
def test_what_vec0_says_is_put_into_words(
    copied: Path, monkeypatch: pytest.MonkeyPatch, text: str, means: str
) -> None:
    """Wherever it is said: outside of what opens the database, too."""

    def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError(text)

    monkeypatch.setattr(ImageCollection, "drop_index", fail)
    assert means in refused("index", copied, "images", "--drop")


def test_a_copy_that_was_cut_off_is_taken_up_again(
    copied: Path, photos_once: Path, tmp_path: Path
) -> None:
    """Of `embed --output` only the table was there yet."""
    other = tmp_path / "other.db"
    made = value(copied, "select sql from sqlite_master where name = 'images'")
    sql(other, made)
    sql(other, f"attach '{copied}' as theirs")
    arguments = ("embed", copied, "--table", "images", "--path-column", "path")
    options = ("--root", photos_once, "--output", other, "--model", "hog")
    assert command(*arguments, *options).exit_code == 0
    # What is nobody's copy stays.
    sql(other, "delete from images")
    command("remove", "--yes", other)
    sql(other, "insert into images (id, path) values (1, 'mine')")
    assert "would be lost" in refused(*arguments, *options)


async def test_pages_on_a_full_disk(copied: Path, disk: full.Disk) -> None:
    site = open_datasette(copied, plugin={"history": True})
    questions = "/gallery/images/-/questions"
    data = {"name": "Red", "question": "_like=1"}
    await ask(site, "/gallery")  # 1.0 has a database of its own on the disk
    with disk.failing("pwrite", 1, errno.ENOSPC, forever=True):
        for page in ("/gallery/images", "/gallery/images/-/similar?_like=1", questions):
            response = await ask(site, page, ROOT)
            assert response.status_code == 200, page
        for _ in range(2):
            response = await ask(site, questions, ROOT, "POST", data=data, headers=HEADERS)
            assert response.status_code == 507
            assert (
                response.json()["error"] == "Nothing was changed: the server's disk is full"
            )
        await asyncio.sleep(1.5)  # the log of searches is written, which fails
        response = await ask(site, "/gallery/images/-/similar?_like=2", ROOT)
        assert response.status_code == 200
    response = await ask(site, questions, ROOT, "POST", data=data, headers=HEADERS)
    assert response.json()["ok"] is True
    assert value(copied, "pragma integrity_check") == "ok"
