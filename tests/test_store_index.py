"""A store's own index: made by `index`, measured, and searched as thoroughly as needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from core import answer, command, opened, refused, sql, value
from stored import release

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.stores.opening import store_of

pytest.importorskip("milvus_lite", reason="needs milvus-lite")


@pytest.fixture
def moved(copied: Path, tmp_path: Path) -> Iterator[Path]:
    url = f"milvus-lite:{tmp_path}/vectors.db"
    with ImageCollection(copied) as collection:
        collection.move(url)
    yield copied
    release(url)


def noted(path: Path) -> dict:
    return json.loads(value(path, "select store_index from _image_similarity_collections"))


def nearest(path: Path) -> list[str]:
    return [hit["pk"] for hit in answer("similar", path, "images", 12)]


def index_line(path: Path) -> str:
    lines = command("status", path).output.splitlines()
    return next(line for line in lines if line.strip().startswith("index"))


def test_without_one_every_vector_is_compared(moved: Path) -> None:
    assert noted(moved)["exact"] is True
    assert "FLAT: compares with every vector" in index_line(moved)
    assert answer("status", moved)[0]["store_index"]["recall"] is None


def test_one_is_made_measured_and_used(moved: Path) -> None:
    before = nearest(moved)
    told = answer("index", moved, "images", "--type", "hnsw", "--param", "M=8")
    assert (told["type"], told["exact"], told["asked"]) == ("HNSW", False, 0.99)
    assert told["params"]["M"] in (8, "8")
    assert told["recall"] == 1.0  # of 24
    assert list(told["search"]) == ["ef"]
    assert noted(moved) == told
    assert "recall@10 1.000" in index_line(moved)
    with opened(moved) as conn:
        index = store_of(conn, db.find_collection(conn, "images"))
        assert index.search_params == told["search"]
    assert nearest(moved) == before


def test_it_is_searched_as_was_said(moved: Path) -> None:
    command("index", moved, "--type", "HNSW")
    told = answer("index", moved, "--search", "ef=77")
    assert (told["type"], told["search"], told["asked"]) == ("HNSW", {"ef": 77}, None)


def test_dropped_everything_is_compared_again(moved: Path) -> None:
    command("index", moved, "--type", "HNSW")
    assert "exact again" in command("index", moved, "--drop").output
    told = noted(moved)
    assert (told["type"], told["exact"], told["search"]) == ("FLAT", True, {})


def test_what_the_store_does_not_have(moved: Path) -> None:
    done = command("index", moved, "--type", "NOPE")
    assert done.exit_code == 1
    assert "NOPE" in done.output
    assert noted(moved)["type"] == "FLAT"
    assert len(answer("similar", moved, "images", 12)) == 10


def test_vectors_in_the_file_have_an_index_of_one_type(copied: Path) -> None:
    assert "leave out --type" in refused("index", copied, "--type", "HNSW")
    assert "leave out --type" in refused("index", copied, "--search", "ef=3")


def test_numbers_that_are_none(moved: Path) -> None:
    assert command("index", moved, "--param", "M=many").exit_code == 2


@pytest.mark.parametrize(
    "text", ["[]", "{", "null", '{"search": 3}', '{"search": {"ef": "x"}}', '{"a": 1}']
)
def test_a_note_from_a_stranger(moved: Path, text: str) -> None:
    sql(moved, "update _image_similarity_collections set store_index = ?", (text,))
    assert "not measured" in index_line(moved)
    assert len(answer("similar", moved, "images", 12)) == 10
