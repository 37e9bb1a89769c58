"""Several collections over one table: the default one, and keeping up the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from core import HOG, answer, command, embed, make_older, opened, refused, sql, value
from serving import ask, ask_json, open_datasette

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.encoders.hog import HogEncoder
from datasette_image_similarity.encoders.transform import Step
from datasette_image_similarity.learning.stored import derive


def reduced(path: Path, name: str = "small", to: int = 8, of: str | None = None) -> None:
    """A collection that derives from another: some directions of its vectors."""
    with opened(path) as conn:
        parent = db.find_collection(conn, "images", of)
        chance = np.random.default_rng(to)
        step = Step(
            "pca",
            chance.normal(size=parent.dimensions).astype(np.float32) / 100,
            chance.normal(size=(parent.dimensions, to)).astype(np.float32),
            unit=True,
            about={"words": f"PCA to {to}"},
        )
        derive(conn, parent, step, name=name)


@pytest.fixture
def two(copied: Path) -> Path:
    """A gallery with the collections "default", of hog, and "small", derived from it."""
    reduced(copied)
    return copied


def default_of(path: Path) -> str:
    return answer("default", path)["default"]


def test_the_oldest_until_another_is_chosen(two: Path) -> None:
    assert answer("default", two) == {
        "table": "images",
        "default": "default",
        "others": ["small"],
    }
    result = command("default", two, "images", "small")
    assert "images (small)" in result.output
    assert default_of(two) == "small"
    with ImageCollection(two) as collection:
        assert collection.status().name == "small"
        assert len(collection.vector(1)) == 8
    with ImageCollection(two, name="default") as collection:
        collection.make_default()
    assert default_of(two) == "default"


def test_removed_the_oldest_is_the_default_again(two: Path) -> None:
    reduced(two, "smaller", 4)
    command("default", two, "images", "smaller")
    command("remove", "--yes", two, "images", "--name", "smaller")
    assert default_of(two) == "default"
    # Of the others nothing was marked.
    command("remove", "--yes", two, "images", "--name", "default")
    assert default_of(two) == "small"


def test_an_unknown_name_changes_nothing(two: Path) -> None:
    said = refused("default", two, "images", "large")
    assert "'default', 'small'" in said
    assert default_of(two) == "default"


def test_other_tables_keep_theirs(two: Path, photos: Path) -> None:
    embed(two, [photos / "red"], "more")
    embed(two, [photos / "red"], "more", name="again")
    command("default", two, "more", "again")
    command("default", two, "images", "small")
    assert answer("default", two, "more")["default"] == "again"
    assert answer("default", two, "images")["default"] == "small"
    assert "Name one of the tables" in command("default", two).output


def test_an_older_schema_is_read_and_brought_up_to_date(copied: Path) -> None:
    make_older(copied, 3)
    assert default_of(copied) == "default"
    assert value(copied, "select version from _image_similarity_schema") == 3
    command("default", copied, "images", "default")
    version = value(copied, "select version from _image_similarity_schema")
    assert version == db.SCHEMA_VERSION


def test_status_says_which(two: Path) -> None:
    command("default", two, "images", "small")
    small, other = answer("status", two)
    assert (small["name"], small["default"]) == ("small", True)
    assert (other["name"], other["default"]) == ("default", False)
    said = command("status", two).output
    assert said.index("images (small)") < said.index("yes: used where none is named")
    assert said.index("used where none") < said.index("images (default)")
    assert said.count("used where none") == 1


def test_one_alone_needs_no_word(copied: Path) -> None:
    assert "used where none" not in command("status", copied).output


# Falling behind


def with_another(path: Path, photos: Path) -> str:
    """Embed one picture more into the default; what the command says."""
    (photos / "red" / "new.png").write_bytes(picture("red", 99))
    return command("embed", path, photos).output


@pytest.fixture
def behind(gallery: Path, photos: Path) -> Path:
    reduced(gallery)
    with_another(gallery, photos)
    return gallery


def test_embed_says_what_it_filled_and_what_lacks(gallery: Path, photos: Path) -> None:
    assert "collections" not in with_another(gallery, photos)
    reduced(gallery)
    said = with_another(gallery, photos)
    assert "This was 'default', the default of 2 collections" in said
    assert "Lacking" not in said
    (photos / "red" / "newer.png").write_bytes(picture("red", 98))
    said = command("embed", gallery).output
    assert "Lacking pictures that the default has: 'small' (1)" in said
    assert f"datasette image-similarity embed {gallery} --all" in said


def test_status_counts_what_is_lacking(behind: Path) -> None:
    found = {one["name"]: one["behind"] for one in answer("status", behind)}
    assert found == {"default": 0, "small": 1}
    said = command("status", behind).output
    assert "1 picture of the default missing" in said
    assert f"embed {behind} --all" in said


def test_a_changed_picture_is_lacking_and_a_failed_one_is_not(behind: Path) -> None:
    sql(behind, "update _image_similarity_items set sha256 = 'new' where id = 1")
    assert answer("status", behind)[1]["behind"] == 2
    sql(
        behind,
        "insert into _image_similarity_failures (collection_id, path, reason) "
        "select 2, path, 'bad' from _image_similarity_items where id = 1",
    )
    assert answer("status", behind)[1]["behind"] == 1


def test_all_brings_every_collection_up_to_date(
    behind: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(HogEncoder, "encode", never)
    first, second = answer("embed", behind, "--all")
    assert (first["collection"], first["unchanged"]) == ("default", 25)
    assert (second["collection"], second["reused"], second["failed"]) == ("small", 1, 0)
    assert answer("status", behind)[1]["behind"] == 0


def test_vectors_of_a_parent_are_those_that_the_network_gives(
    behind: Path, photos: Path
) -> None:
    new = value(behind, "select id from images where name = 'new.png'")
    command("embed", behind, "--all")
    with ImageCollection(behind, name="small") as collection:
        taken = collection.vector(new)
        computed = np.frombuffer(collection.encode(photos / "red" / "new.png"), "<f4")
    assert taken.shape == (8,)
    np.testing.assert_allclose(taken, computed, atol=2e-6)


def test_parents_come_before_what_derives_from_them(gallery: Path, photos: Path) -> None:
    reduced(gallery)
    reduced(gallery, "smallest", 4, of="small")
    command("default", gallery, "images", "smallest")
    (photos / "red" / "new.png").write_bytes(picture("red", 99))
    found = answer("embed", gallery, photos, "--all")
    assert [(one["collection"], one["embedded"], one["reused"]) for one in found] == [
        ("default", 1, 0),
        ("small", 0, 1),
        ("smallest", 0, 1),
    ]


def test_another_network_gives_no_vectors(gallery: Path, photos: Path) -> None:
    with ImageCollection(gallery, name="cropped") as collection:
        from dataclasses import replace

        collection.embed(photos, encoder=replace(HOG, fit="crop"))
    reduced(gallery, of="cropped")
    (photos / "red" / "new.png").write_bytes(picture("red", 99))
    found = {one["collection"]: one for one in answer("embed", gallery, photos, "--all")}
    assert [found[name]["embedded"] for name in ("default", "cropped", "small")] == [
        1,
        1,
        0,
    ]
    with ImageCollection(gallery, name="small") as collection:
        new = value(gallery, "select id from images where name = 'new.png'")
        expected = np.frombuffer(collection.encode(photos / "red" / "new.png"), "<f4")
        np.testing.assert_allclose(collection.vector(new), expected, atol=2e-6)


@pytest.mark.parametrize(
    "options", [("--name", "small"), ("--model", "hog"), ("--watch",), ("--metric", "l2")]
)
def test_all_changes_no_collection(two: Path, options: tuple[str, ...]) -> None:
    result = command("embed", two, "--all", *options)
    assert result.exit_code == 2
    assert "as they are" in result.output


def test_all_needs_a_collection(copied: Path) -> None:
    assert "has no embeddings" in refused("embed", copied, "--all", "--table", "none")


# On pages


async def test_pages_use_it_unless_the_configuration_says_otherwise(two: Path) -> None:
    path = "/gallery/images/-/similar.json?_like=1"
    command("default", two, "images", "small")
    assert (await ask_json(open_datasette(two), path))["query"]["collection"] == "small"
    site = open_datasette(two, plugin={"collection": "default"})
    assert (await ask_json(site, path))["query"]["collection"] == "default"


async def test_a_change_is_seen_without_a_restart(two: Path) -> None:
    site = open_datasette(two)
    path = "/gallery/images/-/similar.json?_like=1"
    assert (await ask_json(site, path))["query"]["collection"] == "default"
    command("default", two, "images", "small")
    assert (await ask_json(site, path))["query"]["collection"] == "small"
    assert (await ask(site, "/gallery/images/1")).status_code == 200
