"""The commands: what they print, how they end."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import click
import pytest
from conftest import picture
from core import answer, command, refused, sql, value

from datasette_image_similarity import trust
from datasette_image_similarity.cli import image_similarity

COMMANDS = (
    *("embed", "similar", "search", "status"),
    *("index", "verify", "remove", "models"),
    *("map", "duplicates", "clusters", "evaluate", "export", "reduce"),
    *("default", "train", "move", "reconcile", "import"),
)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    folder = tmp_path / "few"
    folder.mkdir()
    for number, name in enumerate("abc"):
        (folder / f"{name}.png").write_bytes(picture("red", number))
    return folder


def test_the_commands_are_those_promised() -> None:
    assert sorted(image_similarity.commands) == sorted(COMMANDS)


@pytest.mark.parametrize("name", [(), *((name,) for name in COMMANDS)])
def test_help_shows_an_example(name: tuple[str, ...]) -> None:
    result = command(*name, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"datasette image-similarity {' '.join(name)}".strip() in result.output


def test_every_promised_option_is_there() -> None:
    options = {
        option
        for parameter in image_similarity.commands["embed"].params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
    }
    promised = (
        "table path-column blob-column root csv label-from-folder model weights pooling "
        "fit metric device batch-size workers limit where force prune strict "
        "no-thumbnails watch output json"
    )
    assert options >= {f"--{name}" for name in promised.split()}


def test_embed_says_encoder_first_and_counts_last(tmp_path: Path, few: Path) -> None:
    (few / "bad.png").write_bytes(b"bad")
    result = command("embed", tmp_path / "x.db", few, "--model", "hog")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == "hog on cpu, float32"
    assert lines[-4].startswith("Failed: bad.png: ")
    assert f'{{"roots": ["{few}"]}}' in lines[-3]
    assert lines[-2].startswith("3 embedded, 0 unchanged, 1 failed in ")
    assert lines[-2].endswith(" seconds")
    assert lines[-1].startswith("To look at them, run: datasette ")


def test_embed_as_json_prints_one_object_alone(tmp_path: Path, few: Path) -> None:
    (few / "bad.png").write_bytes(b"bad")
    result = command("embed", tmp_path / "x.db", few, "--model", "hog", "--json")
    done = json.loads(result.stdout)
    assert len(result.stdout.splitlines()) == 1
    seconds = done.pop("seconds")
    assert isinstance(seconds, float)
    [failure] = done.pop("failures")
    assert failure["path"] == "bad.png"
    assert failure["reason"]
    assert done == {
        "embedded": 3,
        "reused": 0,
        "unchanged": 0,
        "failed": 1,
        "removed": 0,
        "missing": 0,
        "kept_rows": 0,
        "stopped": False,
        "skipped": {},
        "notes": [],
    }


def test_strict_turns_a_failure_into_exit_code_1(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    assert command("embed", path, few, "--model", "hog", "--strict").exit_code == 0
    (few / "bad.png").write_bytes(b"bad")
    assert command("embed", path, few, "--strict").exit_code == 1
    assert command("embed", path, few, "--strict", "--json").exit_code == 1
    assert command("embed", path, few).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--csv", "{csv}"),
        ("--csv", "{csv}", "--path-column", "file", "{folder}"),
        ("{folder}", "--path-column", "file"),
        ("{folder}", "--output", "other.db"),
        ("--batch-size", "0"),
        ("--limit", "0"),
        ("--metric", "dot"),
        ("--pooling", "sum"),
        ("--fit", "stretch"),
        ("--root", "/no/such/folder"),
        ("{folder}", "--root", "{folder}"),
        ("{folder}", "--pk", "id"),
        ("{folder}", "--encoding", "utf-8"),
    ],
)
def test_embed_options_that_do_not_go_together(
    tmp_path: Path, few: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "x.csv").write_text("file\na.png\n")
    given = [a.format(csv=tmp_path / "x.csv", folder=few) for a in arguments]
    result = command("embed", tmp_path / "x.db", *given)
    assert result.exit_code == 2
    assert "Error: " in result.output
    assert not (tmp_path / "x.db").exists()


def test_embed_without_knowing_what(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    assert "name folders or files, --path-column" in refused("embed", path)
    assert not path.exists()
    sql(path, "create table works (id integer primary key, file text)")
    assert "name folders or files" in refused("embed", path, "--table", "works")
    both = ("--path-column", "file", "--blob-column", "file")
    assert "one column" in refused("embed", path, "--table", "works", *both)


def test_an_encoder_that_cannot_be_had_leaves_the_database_untouched(
    tmp_path: Path, few: Path
) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table works (id integer primary key, file text)")
    before = path.read_bytes()
    weights = tmp_path / "missing.pth"
    error = refused("embed", path, few, "--model", "resnet50", "--weights", weights)
    assert "missing.pth does not exist" in error or "torch" in error
    assert path.read_bytes() == before


def test_similar_as_json(copied: Path) -> None:
    hits = answer("similar", copied, "images", "1", "-k", "3")
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    for hit in hits:
        assert set(hit) == {"rank", "pk", "score", "distance", "row"}
        assert hit["pk"] == str(hit["row"]["id"])
        assert hit["pk"] != "1"
        assert hit["score"] == pytest.approx(1 - hit["distance"], abs=1e-5)
    assert [hit["distance"] for hit in hits] == sorted(hit["distance"] for hit in hits)
    assert len(answer("similar", copied, "images", "1")) == 10
    assert len(answer("similar", copied, "images", "1", "-k", "999")) == 23


def test_similar_as_csv(copied: Path) -> None:
    sql(copied, "update images set camera = 'a, \"b\"' || char(10) || 'c', label = null")
    result = command("similar", copied, "images", "1", "-k", "3", "--csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert list(rows[0])[:6] == ["rank", "pk", "score", "distance", "id", "path"]
    assert rows[0]["camera"] == 'a, "b"\nc'
    assert rows[0]["label"] == ""
    none = command("similar", copied, "images", "1", "--where", "0", "--csv")
    assert none.stdout == "rank,pk,score,distance\n"


def test_similar_as_a_table(copied: Path) -> None:
    lines = command("similar", copied, "images", "1", "-k", "2").output.splitlines()
    assert lines[0].split()[:5] == ["rank", "score", "pk", "path", "folder"]
    assert len(lines) == 3
    assert lines[1].split()[0] == "1"
    nothing = command("similar", copied, "images", "1", "--where", "0")
    assert nothing.exit_code == 0
    assert nothing.output.splitlines()[-1] == "Nothing found."


def test_similar_with_a_filter(copied: Path) -> None:
    hits = answer("similar", copied, "images", "1", "-k", "99", "--where", "label = 'red'")
    assert len(hits) == 8
    assert {hit["row"]["label"] for hit in hits} == {"red"}


def test_search_finds_the_picture_itself_first(copied: Path, made_once: Path) -> None:
    file = made_once.parent / "photos" / "green" / "green-3.png"
    hits = answer("search", copied, file, "-k", "2")
    assert hits[0]["row"]["path"] == "green/green-3.png"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-4)
    assert len(command("search", copied, file, "--csv").stdout.splitlines()) == 11
    filtered = answer(
        "search", copied, file, "--where", "label = 'red'", "--table", "images"
    )
    assert {hit["row"]["label"] for hit in filtered} == {"red"}


def test_search_asks_for_the_table_where_there_are_several(copied: Path, few: Path) -> None:
    assert command("embed", copied, few, "--table", "more", "--model", "hog").exit_code == 0
    result = command("search", copied, few / "a.png")
    assert result.exit_code == 2
    assert "Name one of the tables with --table: images, more" in result.output
    assert len(answer("search", copied, few / "a.png", "--table", "more")) == 3


def test_search_in_a_database_without_embeddings(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table t (x)")
    result = command("search", path, few / "a.png")
    assert result.exit_code == 1
    assert f"{path} has no embeddings yet" in result.output


def test_status(copied: Path, tmp_path: Path) -> None:
    sql(copied, "delete from images where id = 1")
    [one] = answer("status", copied)
    assert one.pop("updated_at")
    assert one.pop("bytes") > 24 * 4 * one["dimensions"]
    assert one.pop("dimensions") == value(
        copied, "select dimensions from _image_similarity_collections"
    )
    assert one == {
        "name": "default",
        "table": "images",
        "encoder": "hog",
        "metric": "cosine",
        "embedded": 24,
        "failures": 0,
        "missing": 0,
        "stale": 1,
        "noted": 0,
        "notes": [],
        "thumbnails": 24,
        "index": None,
        "store": "",
        "store_index": None,
        "unsent": 0,
        "away": {},
        "map": None,
        "default": True,
        "behind": 0,
    }
    printed = command("status", copied).output
    assert "images (default)" in printed
    assert "1  (run embed again)" in printed
    sql(tmp_path / "x.db", "create table t (x)")
    assert "has no embeddings yet" in command("status", tmp_path / "x.db").output
    assert answer("status", tmp_path / "x.db") == []


def test_remove_takes_everything_of_ours_and_nothing_else(copied: Path) -> None:
    rows = sql(copied, "select * from images")
    printed = command("remove", "--yes", copied).output
    said, hint = printed.splitlines()
    assert said == "Deleted images (default): 24 vectors, 24 thumbnails"
    assert hint.endswith(f"sqlite3 {copied} vacuum")
    assert sql(copied, "select * from images") == rows
    left = sql(copied, "select name from sqlite_master where name not like 'sqlite_%'")
    assert left == [("images",), ("images_path",)]
    assert command("remove", "--yes", copied).output == "There are no embeddings here.\n"


def test_remove_one_of_several(copied: Path, few: Path) -> None:
    command("embed", copied, few, "--table", "more", "--model", "hog")
    command("embed", copied, few, "--table", "more", "--name", "l2", "--metric", "l2",
            "--model", "hog")  # fmt: skip
    assert command("remove", "--yes", copied, "more", "--name", "l2").exit_code == 0
    assert [one["table"] for one in answer("status", copied)] == ["images", "more"]
    assert command("remove", "--yes", copied, "more").exit_code == 0
    assert [one["table"] for one in answer("status", copied)] == ["images"]
    assert answer("verify", copied) == []
    assert len(answer("similar", copied, "images", "1")) == 10


def test_models() -> None:
    found = answer("models")
    assert found[0]["name"] == "hog"
    assert found[0]["downloaded"] is True
    assert found[0]["dimensions"] > 0
    printed = command("models")
    assert printed.exit_code == 0
    assert "hog" in printed.output


def test_output_leaves_the_database_as_it_is(tmp_path: Path, few: Path) -> None:
    path, other = tmp_path / "x.db", tmp_path / "other.db"
    sql(path, "create table works (code text primary key, file text, n integer)")
    sql(path, "insert into works values ('x', 'a.png', 1), ('y', 'b.png', 2)")
    before = path.read_bytes()
    options = ("--table", "works", "--path-column", "file", "--root", few)
    options = (*options, "--output", other, "--model", "hog")
    assert answer("embed", path, *options)["embedded"] == 2
    assert path.read_bytes() == before
    assert sql(other, "select * from works") == [("x", "a.png", 1), ("y", "b.png", 2)]
    assert [hit["pk"] for hit in answer("similar", other, "works", "x")] == ["y"]
    sql(path, "update works set n = 9")
    sql(path, "delete from works where code = 'y'")
    done = answer("embed", path, *options)
    assert (done["unchanged"], done["removed"]) == (1, 1)
    assert sql(other, "select * from works") == [("x", "a.png", 9)]
    assert answer("verify", other) == []


def test_output_keeps_rowids_of_a_table_without_a_key(tmp_path: Path, few: Path) -> None:
    path, other = tmp_path / "x.db", tmp_path / "other.db"
    sql(path, "create table works (file text)")
    sql(path, "insert into works (rowid, file) values (7, 'a.png'), (9, 'b.png')")
    options = ("--table", "works", "--path-column", "file", "--output", other)
    assert answer("embed", path, *options, "--root", few, "--model", "hog")["embedded"] == 2
    assert [hit["pk"] for hit in answer("similar", other, "works", "7")] == ["9"]


def test_output_never_overwrites_a_table_that_is_no_copy(tmp_path: Path, few: Path) -> None:
    path, other = tmp_path / "x.db", tmp_path / "other.db"
    for database, cell in ((path, "a.png"), (other, "precious")):
        sql(database, "create table works (id integer primary key, file text)")
        sql(database, "insert into works (file) values (?)", (cell,))
    options = ("--table", "works", "--path-column", "file", "--root", few)
    error = refused("embed", path, *options, "--output", other, "--model", "hog")
    assert "has a table 'works' of its own" in error
    assert sql(other, "select file from works") == [("precious",)]
    error = refused("embed", path, *options, "--output", path, "--model", "hog")
    assert "another file" in error


def test_output_of_what_is_not_there_leaves_no_file(tmp_path: Path, few: Path) -> None:
    path, other = tmp_path / "x.db", tmp_path / "other.db"
    sql(path, "create view v as select 1 as id, 'a.png' as file")
    sql(path, "create table works (id integer primary key, file text)")
    for table, column, said in (
        ("v", "file", "is a view"),
        ("nope", "file", "no table 'nope'"),
        ("works", "nope", "no column 'nope'"),
    ):
        options = ("--table", table, "--path-column", column, "--output", other)
        assert said in refused("embed", path, *options, "--model", "hog")
        assert not other.exists()
    # Nor does an encoder that cannot be had.
    options = ("--table", "works", "--path-column", "file", "--output", other)
    refused("embed", path, *options, "--model", "hog", "--weights", "none.pth")
    assert not other.exists()


def test_embed_notes_the_folder_as_trusted(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    command("embed", path, few, "--model", "hog")
    assert trust.trusted_roots(path) == [few]
    assert trust.trusted_roots(tmp_path / "other.db") == []


def test_a_configuration_folder_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(
        "datasette_image_similarity.trust.click.get_app_dir",
        lambda *_: str(tmp_path / "file" / "inside"),
    )
    path = tmp_path / "x.db"
    assert command("embed", path, few, "--model", "hog").exit_code == 0
    assert trust.trusted_roots(path) == []
