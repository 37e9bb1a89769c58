"""The short forms of stress/kill.py and stress/two_runs.py, and what they have found.

The programs run on their own: they fork, which a process that has had threads cannot do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from core import command, embed, refused, sql, value

from datasette_image_similarity.whole_files import replacing

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")


def stress(program: str, *options: object) -> dict:
    """The figures of a program that has found nothing."""
    done = subprocess.run(
        [sys.executable, "-m", f"stress.{program}", *map(str, options)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return json.loads(done.stdout)["figures"]


def test_twenty_kills_lose_nothing() -> None:
    figures = stress("kill", "--kills", 20, "--short")
    assert figures["kills"] == 20
    assert len(figures["commands"]) == 7


def test_two_runs_and_killed_decoders() -> None:
    figures = stress("two_runs", "--rounds", 1, "--locks")
    assert figures["decoded twice"]["most"] < figures["pictures"] * 3 / 4


def test_what_a_killed_process_has_begun_to_write_goes(tmp_path: Path) -> None:
    file = tmp_path / "out.zip"
    left, other = tmp_path / ".out.zip.123", tmp_path / ".out.zip.txt"
    for one in (left, other):
        one.write_bytes(b"half")
    with replacing(file) as out:
        out.write(b"one")
        with replacing(tmp_path / "other.zip"):  # what is being written stays
            pass
        assert not left.exists()
        begun = [one for one in tmp_path.iterdir() if one != other]
        assert [one.name for one in begun if one.name.startswith(".")] == [
            f".out.zip.{os.getpid()}"
        ]
    assert file.read_bytes() == b"one"
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / "other.zip", file]


def test_an_output_that_was_cut_off_is_gone_on_with(tmp_path: Path, photos: Path) -> None:
    """Killed when the table was copied, and nothing of it embedded yet."""
    path, beside = tmp_path / "works.db", tmp_path / "beside.db"
    works = "create table works (name text primary key, file text)"
    file = next(photos.rglob("*.png")).relative_to(photos)
    for one in (path, beside):
        sql(one, works)
        sql(one, "insert into works values ('a', ?)", (str(file),))
    options = ("--table", "works", "--path-column", "file", "--root", photos)
    options += ("--model", "hog", "--output", beside)
    sql(beside, "insert into works values ('mine', 'x')")
    assert "would be lost" in refused("embed", path, *options)
    assert value(beside, "select count(*) from works") == 2
    sql(beside, "delete from works where name = 'mine'")
    assert command("embed", path, *options).exit_code == 0
    assert value(beside, "select count(*) from _image_similarity_items") == 1


@pytest.mark.parametrize("name", ["embed", "embed blobs"])
def test_what_another_run_has_done_is_not_done_again(
    name: str, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.db"
    source: dict = {"source": photos}
    if name == "embed blobs":
        sql(path, "create table images (id integer primary key, photo blob)")
        for file in sorted(photos.rglob("*.png")):
            sql(path, "insert into images (photo) values (?)", (file.read_bytes(),))
        source = {"blob_column": "photo"}
    monkeypatch.setattr("datasette_image_similarity.encoders.hog.HogEncoder.batch_size", 2)
    others = [lambda: embed(path, **source)]

    def meanwhile(now: object) -> None:
        if getattr(now, "done", 0) and others:
            others.pop()()

    summary = embed(path, **source, batch_size=2, progress=meanwhile)
    assert (summary.embedded, summary.unchanged) == (2, 22)
    assert value(path, "select count(*) from _image_similarity_items") == 24
