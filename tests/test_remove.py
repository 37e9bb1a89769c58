"""`remove` deletes what it was asked to, says so first, and asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from core import command, refused, sql, value

DECIDED = (
    "insert into _image_similarity_decisions (collection_id, step, pk, sha256, decision) "
    "values (1, 1, 1, 'abc', 'keep'), (1, 1, 2, 'abc', 'mark')"
)
SAVED = (
    "insert into _image_similarity_questions (collection_id, name, question) "
    "values (1, 'blue', 'x=1')"
)


@pytest.fixture
def three(copied: Path) -> Path:
    """The table images with the collections default, small and l2, and what people made."""
    sql(copied, copy_of_default("small"))
    sql(copied, copy_of_default("l2"))
    sql(copied, DECIDED)
    sql(copied, SAVED)
    return copied


def copy_of_default(name: str) -> str:
    columns = "table_name, source, column_name, encoder, fingerprint, dimensions, metric"
    return (
        f"insert into _image_similarity_collections (name, {columns}, thumbnails) "
        f"select '{name}', {columns}, 0 from _image_similarity_collections where id = 1"
    )


def names(path: Path) -> list[str]:
    return [one["name"] for one in json.loads(command("status", path, "--json").output)]


def test_a_table_without_a_name_means_its_default_collection(three: Path) -> None:
    printed = command("remove", three, "images", "--yes").output
    assert names(three) == ["small", "l2"]
    assert "images (default): 24 vectors" in printed
    assert "2 decisions about duplicates, 1 saved search" in printed
    assert "small" in printed
    assert "its default is small" in printed


def test_the_default_that_was_chosen_goes(three: Path) -> None:
    command("default", three, "images", "l2")
    command("remove", three, "images", "--yes")
    assert names(three) == ["default", "small"]


def test_all_means_every_collection_of_the_table(three: Path) -> None:
    sql(
        three, copy_of_default("x").replace("select 'x', table_name", "select 'x', 'other'")
    )
    assert command("remove", three, "images", "--all", "--yes").exit_code == 0
    assert names(three) == ["x"]


def test_no_table_means_everything(three: Path) -> None:
    printed = command("remove", three, "--yes").output
    assert printed.count("Deleted images (") == 3
    assert names(three) == []
    assert value(three, "select count(*) from images") == 24
    assert value(three, "select count(*) from sqlite_master where name like '_image%'") == 0


def test_what_was_computed_is_named(copied: Path) -> None:
    command("map", copied, "--method", "pca")
    command("index", copied)
    printed = command("remove", copied, "--yes").output
    assert "24 vectors, 24 thumbnails, the search index, the map" in printed


@pytest.mark.parametrize("words", [(), ("images",), ("images", "--all"), ("--name", "l2")])
def test_a_pipe_is_refused_without_yes(three: Path, words: tuple) -> None:
    before = three.read_bytes()
    error = refused("remove", three, *words)
    assert "--yes" in error
    assert "Nothing was deleted" in error
    assert three.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--name", "nope"), "'images' has no collection 'nope'"),
        (("images", "--name", "nope"), "'images' has no collection 'nope'"),
        (("nope",), "'nope' has no embeddings"),
        (("nope", "--all"), "'nope' has no embeddings"),
    ],
)
def test_what_is_not_there_is_named(three: Path, words: tuple, said: str) -> None:
    before = three.read_bytes()
    assert said in refused("remove", three, *words, "--yes")
    assert three.read_bytes() == before


def test_a_name_alone_needs_a_table_where_there_are_several(three: Path) -> None:
    sql(
        three,
        copy_of_default("l2").replace("select 'l2', table_name", "select 'l2', 'other'"),
    )
    result = command("remove", three, "--name", "l2", "--yes")
    assert result.exit_code == 2
    assert "images, other" in result.output
    assert command("remove", three, "--all", "--name", "l2").exit_code == 2
    assert len(names(three)) == 4


def test_damaged_tables_go_as_well(copied: Path) -> None:
    sql(copied, "drop table _image_similarity_schema")
    assert "tables of this plugin" in command("remove", copied, "--yes").output
    assert command("remove", copied, "--yes").output == "There are no embeddings here.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize(("answer", "left"), [("n", 1), ("", 1), ("y", 0)])
def test_a_terminal_is_asked(copied: Path, answer: str, left: int) -> None:
    import pty

    ours, theirs = pty.openpty()
    words = ["datasette", "image-similarity", "remove", str(copied), "images"]
    asked = subprocess.Popen(
        [sys.executable, "-m", *words],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.write(ours, f"{answer}\n".encode())
    printed, errors = asked.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert "images (default): 24 vectors, 24 thumbnails" in errors
    assert (asked.returncode, len(names(copied))) == (left, left)
    assert ("Nothing was deleted" in errors) == bool(left)
    assert ("Deleted images" in printed) != bool(left)


@pytest.mark.parametrize(
    "words",
    [
        ("embed", "{db}", "{photos}", "--model", "hog", "--metric", "l2", "--force"),
        ("reduce", "{db}", "--dims", "8", "--replace"),
    ],
)
def test_what_replaces_a_collection_says_what_goes(
    copied: Path, made_once: Path, words: tuple
) -> None:
    command("map", copied, "--method", "pca")
    command("clusters", copied, "--k", "2")
    sql(copied, "update _image_similarity_clusters set given = 1 where id = 1")
    sql(copied, DECIDED)
    named = {"db": copied, "photos": made_once.parent / "photos"}
    printed = command(*(word.format(**named) for word in words)).output
    assert (
        "Deleted with the old vectors: the map, the clusters, 1 cluster that you named"
        in printed
    )
    assert value(copied, "select count(*) from _image_similarity_decisions") == 2


def test_no_export_replaces_a_database(copied: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.zip"
    sql(other, "create table mine (x)")
    for words in (("--vectors", copied), ("--vectors", other), ("--to", other)):
        before = words[1].read_bytes()
        assert "is a SQLite database: name another file" in refused(
            "export", copied, *words
        )
        assert words[1].read_bytes() == before


def test_a_table_is_not_copied_over_columns_that_somebody_added(
    copied: Path, photos_once: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.db"
    words = ("embed", copied, "--output", other, "--path-column", "path", "--model", "hog")
    again = (*words, "--root", photos_once)
    assert command(*again).exit_code == 0
    sql(copied, "alter table images add column here text")
    assert command(*again).exit_code == 0
    sql(other, "alter table images add column note text")
    sql(other, "update images set note = 'mine'")
    assert "has columns that" in refused(*again)
    assert value(other, "select count(*) from images where note = 'mine'") == 24
    sql(copied, "alter table images add column NOTE text")
    assert command(*again).exit_code == 0
