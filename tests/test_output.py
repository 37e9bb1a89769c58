"""What commands print reaches terminals and pipes of every encoding."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import picture
from core import HOG, embed, sql
from datasette.cli import cli

NAME = "Ω 猫 😀.png"
TABLE = "Фото"
HOG_JSON = ("--model", "hog", "--json")
COMMANDS = (
    "embed {db} {folder} --table Фото --model hog",
    "embed {db} --table Фото --all",
    "embed {db} {folder}/nothing-猫",
    "status {db}",
    "verify {db}",
    "default {db} Фото",
    "default {db} Фото nothing-猫",
    "similar {db} Фото 1",
    "similar {db} Фото nothing-猫",
    "search {db} {folder}/Ω 猫 😀.png",
    "index {db} Фото",
    "map {db} Фото --method pca",
    "duplicates {db} Фото",
    "clusters {db} Фото --k 2",
    "evaluate {db} Фото --label 種類",
    "reduce {db} Фото --dims 2 --to 小",
    "move {db} Фото --to sqlite",
    "reconcile {db} Фото",
    "export {db} Фото {folder}/../Ω.zip",
    "models resnet",
    "models nothing-猫",
    "remove {db} Фото",
    "remove {db} nothing-猫",
    "remove {db} --yes",
    "--help",
    "embed --help",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with x.db, which holds the pictures in its folder 写真."""
    folder = tmp_path / "写真"
    folder.mkdir()
    for number in range(6):
        (folder / f"猫 {number}.png").write_bytes(picture("red", number))
    (folder / NAME).write_bytes(picture("blue"))
    (folder / "Ω bad.png").write_bytes(b"no picture")
    embed(tmp_path / "x.db", folder, TABLE, encoder=HOG)
    sql(tmp_path / "x.db", f"alter table {TABLE} add column 種類 text")
    sql(
        tmp_path / "x.db",
        f"update {TABLE} set 種類 = case id % 2 when 1 then 'ä' else 'Ж' end",
    )
    return tmp_path


def run(place: Path, words: str, charset: str) -> Result:
    """A command whose output has this encoding; what it raised is raised."""
    named = {"{db}": str(place / "x.db"), "{folder}": str(place / "写真")}
    given = words.replace("Ω 猫 😀", "@").split(" ")
    for mark, value in named.items():
        given = [word.replace(mark, value).replace("@", "Ω 猫 😀") for word in given]
    result = CliRunner(charset=charset).invoke(cli, ["image-similarity", *given])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("charset", ["cp1252", "ascii", "utf-8"])
def test_every_command_prints(place: Path, charset: str) -> None:
    for words in COMMANDS:
        assert run(place, words, charset).output.isprintable() is not None, words


@pytest.mark.parametrize("charset", ["cp1252", "ascii"])
def test_json_and_csv_are_utf_8(place: Path, charset: str) -> None:
    def rows(words: str) -> Any:
        return json.loads(run(place, words, charset).stdout_bytes.decode("utf-8"))

    [status] = rows("status {db} --json")
    assert status["table"] == TABLE
    hits = rows("similar {db} Фото 2 --json")
    assert NAME in [hit["row"]["path"] for hit in hits]
    done = rows("embed {db} {folder} --table Фото --json")
    assert done["failures"][0]["path"] == "Ω bad.png"
    text = run(place, "similar {db} Фото 2 --csv", charset).stdout_bytes.decode("utf-8")
    assert "種類" in next(csv.reader(io.StringIO(text)))
    assert NAME in text


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_a_name_that_is_no_unicode_is_valid_json(tmp_path: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.png")).write_bytes(b"no picture")
    (folder / "a.png").write_bytes(picture("red"))
    printed = CliRunner().invoke(
        cli,
        ["image-similarity", "embed", *map(str, (tmp_path / "x.db", folder)), *HOG_JSON],
    )
    [failure] = json.loads(printed.stdout_bytes.decode("utf-8"))["failures"]
    assert failure["path"].startswith("bad")


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_a_pipe_of_another_encoding(place: Path, settings: dict[str, str]) -> None:
    for words in (
        ["embed", "{db}", "{folder}", "--table", TABLE, "--force"],
        ["similar", "{db}", TABLE, "1"],
        ["similar", "{db}", TABLE, "2", "--csv"],
        ["status", "{db}", "--json"],
        ["similar", "{db}", "nothing-猫", "1"],
    ):
        named = {"db": str(place / "x.db"), "folder": str(place / "写真")}
        done = subprocess.run(
            [sys.executable, "-m", "datasette", "image-similarity"]
            + [word.format(**named) for word in words],
            capture_output=True,
            env={**os.environ, **settings},
            check=False,
        )
        assert b"Traceback" not in done.stderr, words
        if "PYTHONUTF8" in settings and done.returncode:
            assert b"holds bytes that are not UTF-8" in done.stderr, words
            continue  # Python has not understood the table's name
        assert done.returncode == ("nothing-猫" in words), words
        if "--csv" in words or "--json" in words:
            assert "Ф" in done.stdout.decode("utf-8") or NAME in done.stdout.decode("utf-8")
