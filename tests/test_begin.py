"""What commands say where nothing is embedded, where a key is missing, and what is next."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from conftest import picture
from core import command, refused, sql
from datasette.app import Datasette

from datasette_image_similarity.cli.base import Reporter
from datasette_image_similarity.collection import Progress
from datasette_image_similarity.errors import shell_line


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.db"
    sql(path, "create table works (a text, b integer, file text, primary key (a, b))")
    sql(path, "insert into works values ('x', 1, 'a.png'), ('y', 2, 'b.png')")
    for number, name in enumerate("ab"):
        (tmp_path / f"{name}.png").write_bytes(picture("red", number))
    return path


@pytest.mark.parametrize(
    "words",
    [
        *(("map",), ("duplicates",), ("clusters",), ("index",), ("default",), ("reduce",)),
        ("evaluate", "--label", "x"),
        ("train", "--label", "x"),
        ("export", "--to", "x.zip"),
        ("move", "--to", "sqlite"),
        ("reconcile",),
        ("search", "--text", "x"),
        ("remove", "--name", "x"),
    ],
)
def test_a_database_without_embeddings(plain: Path, words: tuple[str, ...]) -> None:
    name, *rest = words
    error = refused(name, plain, *rest)
    assert f"embed {plain} FOLDER" in error
    assert "--path-column COLUMN" in error


@pytest.mark.parametrize("table", ["works", "nope"])
def test_a_table_without_embeddings(plain: Path, table: str) -> None:
    for words in (("similar", plain, table, "1"), ("map", plain, table)):
        assert f"--table {table} --path-column COLUMN" in refused(*words)


def test_status_says_how_to_begin(plain: Path) -> None:
    assert f"embed {plain} FOLDER" in command("status", plain).output


def test_a_missing_key_is_said_as_it_was_typed(copied: Path, plain: Path) -> None:
    said = refused("similar", copied, "images", "nope")
    assert said.endswith("'images' has no row with the key nope (id)")
    words = ("--table", "works", "--path-column", "file", "--model", "hog")
    command("embed", plain, *words, "--where", "a = 'x'")
    said = refused("similar", plain, "works", "z,3")
    assert said.endswith("'works' has no row with the key z,3 (a,b)")
    assert "key 1 (a,b)" in refused("similar", plain, "works", "1")
    assert "Row y,2 of 'works' has no embedding" in refused(
        "similar", plain, "works", "y,2"
    )


@pytest.mark.parametrize("name", ["photos.db", "my photos.v2.db", "Ünï/ö.sqlite", "x"])
@pytest.mark.parametrize("table", ["images", "my pictures/é", "a~b.c"])
async def test_embed_ends_with_the_next_step(
    tmp_path: Path, photos: Path, name: str, table: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    few = tmp_path / "few"
    few.mkdir()
    for file in ("a.png", "b.png"):
        (few / file).write_bytes(picture("red"))
    last = command("embed", path, few, "--table", table, "--model", "hog").output
    line = last.strip().splitlines()[-1]
    typed, address = line.removeprefix("To look at them, run: ").split("  and open ")
    assert shlex.split(typed) == ["datasette", str(path)]
    site = Datasette([str(path)])
    answer = await site.client.get(address.removeprefix("http://127.0.0.1:8001"))
    assert answer.status_code == 200
    assert "a.png" in answer.text
    found = command("duplicates", path, table).output.strip().splitlines()[-1]
    typed = found.removeprefix("To decide, run: ").split("  and open ")[0]
    assert shlex.split(typed) == ["datasette", str(path), "--root"]
    upper = command(
        "embed", path, few, "--table", table.replace("c", "C").replace("i", "I")
    )
    assert upper.output.strip().splitlines()[-1] == line, "as the table is called"


def test_nothing_to_look_at_is_not_looked_at(tmp_path: Path) -> None:
    bad = tmp_path / "few"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"no picture")
    printed = command("embed", tmp_path / "x.db", bad, "--model", "hog").output
    assert "To look at them" not in printed


def test_the_time_left_does_not_count_loading(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000, 9000, 10))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    say = Reporter(tmp_path / "x.db", quiet=False)
    for done in (0, 100, 200):
        say.progress(Progress("hog", done, 1000, 0, 600 + done))
    last = capsys.readouterr().out.splitlines()[-1]
    assert "200 of 1,000" in last
    rate = float(last.split("images/s")[0].split()[-1])
    assert rate > 2, "600 seconds of loading do not count"


def test_commands_for_the_shell_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("datasette", "C:\\My Pictures\\a.db")
    assert shell_line(*words) == "datasette 'C:\\My Pictures\\a.db'"
    monkeypatch.setattr("datasette_image_similarity.errors.os.name", "nt")
    assert shell_line(*words) == 'datasette "C:\\My Pictures\\a.db"'
