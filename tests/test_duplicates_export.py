"""What was decided leaves as CSV, as JSON, and as a script that moves files safely."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path

import pytest
from core import answer, command, embed, opened, refused, sql
from test_duplicates import decide, drawn, find, key, own, put, saved, shelved

from datasette_image_similarity import database as db

__all__ = ["own", "shelved"]  # fixtures

HOSTILE = [
    "-rf.png",
    "it's.png",
    'quo"te.png',
    "new\nline.png",
    "$(touch pwned).png",
    "`touch pwned`.png",
    " space .png",
    "back\\slash.png",
    "déjà/vü {to}.png",
    "semi;colon & co.png",
]


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A database of files with hostile names, all of them marked."""
    folder = tmp_path / "it's here"
    put(folder, {name: saved(drawn(number)) for number, name in enumerate(HOSTILE)})
    path = tmp_path / "x.db"
    embed(path, [folder])
    with opened(path) as conn:
        db.migrate(conn)
    for name in HOSTILE:
        decide(path, name, "mark")
    return path


def run(script: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["sh", str(script)], capture_output=True, text=True, cwd=script.parent, check=False
    )


def export(path: Path, to: Path) -> Path:
    script = path.parent / "marked.sh"
    result = command("duplicates", path, "--export", script, "--to", to)
    assert result.exit_code == 0, result.output
    return script


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_the_script_moves_files_whatever_their_names(marked: Path, tmp_path: Path) -> None:
    to = tmp_path / "a 'new' $HOME"
    done = run(export(marked, to))
    assert done.returncode == 0, done.stderr
    assert "10 moved" in done.stdout
    for number, name in enumerate(HOSTILE):
        assert not (tmp_path / "it's here" / name).exists()
        assert (to / name).read_bytes() == saved(drawn(number))
    assert not (tmp_path / "pwned").exists()
    again = run(tmp_path / "marked.sh")
    assert again.returncode == 0
    assert "0 moved" in again.stdout
    assert "10 left where they are" in again.stdout


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_the_script_overwrites_nothing_and_leaves_what_has_changed(
    marked: Path, tmp_path: Path
) -> None:
    to, folder = tmp_path / "to", tmp_path / "it's here"
    put(to, {"it's.png": b"there before"})
    script = export(marked, to)
    same_size = bytearray((folder / "-rf.png").read_bytes())
    same_size[-20] ^= 1
    put(folder, {"-rf.png": bytes(same_size), " space .png": b"another"})
    (folder / 'quo"te.png').unlink()
    (folder / "back\\slash.png").unlink()
    (folder / "back\\slash.png").symlink_to(folder / " space .png")
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert "6 moved" in done.stdout
    assert (to / "it's.png").read_bytes() == b"there before"
    assert (to / "2-it's.png").read_bytes() == saved(drawn(1))
    assert (folder / "-rf.png").read_bytes() == bytes(same_size)
    assert (folder / " space .png").read_bytes() == b"another"
    assert (folder / "back\\slash.png").is_symlink()
    assert done.stderr.count("has changed") == 2
    assert done.stderr.count("not there any more") == 2


def test_csv_and_json_hold_every_decision(own: Path, tmp_path: Path) -> None:
    find(own)
    decide(own, "small.jpg", "skip")
    decide(own, "small.jpg", "mark")
    decide(own, "00.png", "keep")
    assert answer("duplicates", own, "--export", tmp_path / "x.csv")["written"] == 2
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert {path: row["decision"] for path, row in rows.items()} == {
        "small.jpg": "mark",
        "00.png": "keep",
    }
    assert rows["small.jpg"]["keeper"] == str(key(own, "00.png"))
    assert rows["small.jpg"]["tier"] == "same"
    assert rows["00.png"]["tier"] == "identical"
    command("duplicates", own, "--export", tmp_path / "x.json")
    (small,) = [
        row
        for row in json.loads((tmp_path / "x.json").read_text())
        if row["path"] == "small.jpg"
    ]
    assert (small["width"], small["decision"]) == (120, "mark")
    assert str(small["group"]) == rows["small.jpg"]["group"]


def test_groups_marked_as_a_whole_are_told(own: Path, tmp_path: Path) -> None:
    find(own)
    for name in ("00.png", "again/00 copy.png"):
        decide(own, name, "mark")
    result = command("duplicates", own, "--export", tmp_path / "x.csv")
    assert "In 1 group all pictures are marked" in result.output


def test_void_decisions_are_not_exported(own: Path, tmp_path: Path) -> None:
    decide(own, "small.jpg", "mark")
    sql(own, "update _image_similarity_items set sha256 = 'new' where path = 'small.jpg'")
    assert "Nothing is decided" in refused(
        "duplicates", own, "--export", tmp_path / "x.csv"
    )


def test_a_script_is_refused_where_it_could_do_harm(own: Path, tmp_path: Path) -> None:
    script = tmp_path / "x.sh"
    assert "--to FOLDER" in refused("duplicates", own, "--export", script)
    target = ("--to", tmp_path / "to")
    assert "Nothing is marked" in refused("duplicates", own, "--export", script, *target)
    decide(own, "small.jpg", "mark")
    assert "leave --to out" in refused(
        "duplicates", own, "--export", tmp_path / "x.csv", *target
    )
    assert "must end in" in refused("duplicates", own, "--export", tmp_path / "x.txt")
    root = sql(own, "select path from _image_similarity_roots")[0][0]
    inside = refused("duplicates", own, "--export", script, "--to", f"{root}/again")
    assert "lies inside" in inside
    stranger = tmp_path / "stranger.db"
    stranger.write_bytes(own.read_bytes())
    assert "has not embedded from" in refused(
        "duplicates", stranger, "--export", script, *target
    )
    assert not script.exists()


def test_a_stranger_cannot_have_files_outside_moved(own: Path, tmp_path: Path) -> None:
    decide(own, "small.jpg", "mark")
    small = key(own, "small.jpg")
    secret = put(tmp_path, {"secret.png": saved(drawn(0))}) / "secret.png"
    for path in (str(secret), "../x.db"):
        sql(own, "update images set path = ? where id = ?", (path, small))
        sql(own, "update _image_similarity_items set path = ? where pk = ?", (path, small))
        target = ("--to", tmp_path / "to")
        error = refused("duplicates", own, "--export", tmp_path / "x.sh", *target)
        assert "1 outside the root folder" in error


def test_blobs_are_not_files(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    rows = [{"id": n, "data": saved(drawn(n))} for n in range(3)]
    embed(path, rows, "things", blob_column="data")
    with opened(path) as conn:
        db.migrate(conn)
        conn.execute(
            "insert into _image_similarity_decisions (collection_id, step, pk, sha256, "
            "decision) select 1, 1, pk, sha256, 'mark' from _image_similarity_items"
        )
    error = refused("duplicates", path, "--export", tmp_path / "x.sh", "--to", tmp_path)
    assert "no files to move" in error
    assert answer("duplicates", path, "--export", tmp_path / "x.csv")["written"] == 3
