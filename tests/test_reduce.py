"""`reduce`: a collection of projected vectors beside the full ones, or in their place."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from core import answer, command, embed, faults, make_older, opened, refused, sql, value
from serving import ask, ask_json, open_datasette, pks, post_picture

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.collection import DEFAULT_DIMS
from datasette_image_similarity.errors import CollectionError, DatabaseError
from datasette_image_similarity.explore.vectors import Stopped, read_vectors
from datasette_image_similarity.learning import pca
from datasette_image_similarity.learning.stored import stored_transform
from datasette_image_similarity.verify import verify_database


def vectors(path: Path, name: str | None = None) -> np.ndarray:
    with opened(path) as conn:
        return read_vectors(conn, db.find_collection(conn, "images", name)).vectors


def reduced(path: Path, dims: int = 6, **options: object) -> None:
    with ImageCollection(path) as collection:
        collection.reduce(dims, **options)


def test_the_vectors_are_the_principal_components(copied: Path) -> None:
    reduced(copied)
    full = vectors(copied).astype(np.float64)
    centred = full - full.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    wanted = centred @ axes[:6].T
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    made = vectors(copied, "pca-6")
    assert np.allclose(made @ made.T, wanted @ wanted.T, atol=1e-5)
    assert faults(copied) == []


def test_it_tells_what_was_made(copied: Path) -> None:
    result = command("reduce", copied, "--dims", 6)
    assert result.exit_code == 0
    for words in (
        "PCA to 6, learned from 24 pictures",
        "That is few pictures for 6 dimensions",
        "--collections default,pca-6",
        f"default {copied} images pca-6",
    ):
        assert words in result.output
    made = answer("reduce", copied, "--dims", 5, "--to", "five", "--name", "default")
    full = len(vectors(copied)[0])
    assert (made["name"], made["parent"], made["replaced"]) == ("five", "default", False)
    assert (made["bytes_before"], made["bytes"]) == (24 * full * 4, 24 * 5 * 4)
    assert 0 < made["variance_kept"] < 1
    status = command("status", copied).output
    assert "hog, PCA to 6" in status
    assert "24 × 6, cosine" in status


def test_enough_pictures_are_not_called_few(copied: Path) -> None:
    assert "few pictures" not in command("reduce", copied, "--dims", 4).output


def test_replacing_drops_the_full_vectors(copied: Path) -> None:
    made = answer("reduce", copied, "--dims", 6, "--replace")
    assert (made["name"], made["replaced"]) == ("default", True)
    assert [one["dimensions"] for one in answer("status", copied)] == [6]
    assert faults(copied) == []


def test_whitening_is_asked_for(copied: Path) -> None:
    reduced(copied, whiten=True)
    reduced(copied, whiten=True, shrinkage=0, to="plain")
    with opened(copied) as conn:
        for name, share in (("whitened-6", pca.DEFAULT_SHRINKAGE), ("plain", 0)):
            step = stored_transform(conn, db.find_collection(conn, "images", name)).steps[0]
            assert (step.kind, step.about["shrinkage"]) == ("whitening", share)
    result = command("reduce", copied, "--dims", 6, "--shrinkage", 0.5)
    assert (result.exit_code, "for --whiten" in result.output) == (2, True)


def test_a_smaller_one_of_a_smaller_one(copied: Path) -> None:
    reduced(copied, 12)
    made = answer("reduce", copied, "--name", "pca-12", "--dims", 6)
    assert made["dimensions_before"] == 12
    full, small = vectors(copied, "pca-12"), vectors(copied, "pca-6")
    assert (full.shape[1], small.shape[1]) == (12, 6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--dims", 24], "there are 24: ask for 23 or fewer"),
        (["--dims", 99999], "not in 99,999"),
        (["--dims", 6, "--to", "default"], "already"),
        (["--dims", 6, "--name", "other"], "other"),
        (["--dims", 6, "--to", " "], "that can be seen"),
        (["--dims", 6, "--to", "a\nb"], "that can be seen"),
    ],
)
def test_what_cannot_be_had_is_refused(copied: Path, options: list, says: str) -> None:
    assert says in refused("reduce", copied, *options)
    assert len(answer("status", copied)) == 1


def test_what_it_says_to_do_next_can_be_done(copied: Path) -> None:
    said = command("reduce", copied, "--dims", 6, "--to", "it's small").output.splitlines()
    default = shlex.split(said[-1])
    assert default[:2] == ["datasette", "image-similarity"]
    command(*default[2:])
    assert answer("default", copied)["default"] == "it's small"


def test_stopped_leaves_everything_as_it_was(copied: Path) -> None:
    with pytest.raises(Stopped):
        reduced(copied, replace=True, stop=lambda: True)
    assert [one["name"] for one in answer("status", copied)] == ["default"]


def test_many_are_learned_from_by_a_sample(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pca, "MOST_PICTURES", 12)
    made = answer("reduce", copied, "--dims", 6)
    assert (made["learned_from"], made["pictures"]) == (12, 24)
    first = vectors(copied, "pca-6")
    reduced(copied, 6, to="again")
    assert np.array_equal(first, vectors(copied, "again"))


def test_what_is_kept_by_default(copied: Path) -> None:
    words = f"{DEFAULT_DIMS} dimensions take more than"
    assert words in refused("reduce", copied)
    with ImageCollection(copied) as collection, pytest.raises(CollectionError, match=words):
        collection.reduce()


def test_an_older_database(copied: Path) -> None:
    make_older(copied, 3)
    assert answer("reduce", copied, "--dims", 6)["name"] == "pca-6"
    assert faults(copied) == []


def test_a_database_that_cannot_be_written(copied: Path) -> None:
    with opened(copied) as other:
        other.execute("begin immediate")
        with ImageCollection(copied) as collection:
            collection.connect().execute("pragma busy_timeout = 10")
            with pytest.raises(DatabaseError, match="locked"):
                collection.reduce(6)
    assert [one["name"] for one in answer("status", copied)] == ["default"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [np.nan, np.inf, 0])
def test_damaged_vectors_are_left_out(copied: Path, number: float) -> None:
    item = value(copied, "select min(id) from _image_similarity_items")
    full = len(vectors(copied)[0])
    with opened(copied) as conn:
        name = db.quote(db.find_collection(conn, "images").vectors)
        broken = np.full(full, number, "<f4").tobytes()
        conn.execute(f"update {name} set embedding = ? where id = ?", (broken, item))
    made = answer("reduce", copied, "--dims", 6)
    assert (made["learned_from"], made["pictures"]) == (23, 23)
    assert embed(copied, name="pca-6").embedded == 1  # not taken from the damaged one
    assert len(vectors(copied, "pca-6")) == 24


def test_a_full_disk_is_said_to_be_full(copied: Path) -> None:
    with opened(copied) as conn:
        pages = conn.execute("pragma page_count").fetchone()[0]
    with ImageCollection(copied) as collection:
        collection.connect().execute(f"pragma max_page_count = {pages}")
        with pytest.raises(DatabaseError, match="the disk is full"):
            collection.reduce(20)
    assert [one["name"] for one in answer("status", copied)] == ["default"]


def test_euclidean_vectors_keep_their_lengths(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "gallery.db"
    embed(path, photos, metric="l2")
    reduced(path, 23)
    with ImageCollection(path) as full, ImageCollection(path, name="pca-23") as small:
        ours, theirs = small.similar(1, k=5), full.similar(1, k=5)
        assert [hit.pk for hit in ours] == [hit.pk for hit in theirs]
        assert ours[0].distance == pytest.approx(theirs[0].distance, rel=1e-3)
        assert small.search(photos / "red" / "red-0.png", k=1)[0].distance < 1e-2


def test_a_compressed_index_over_projected_vectors(copied: Path) -> None:
    reduced(copied, 6)
    with ImageCollection(copied, name="pca-6") as small:
        exact = [hit.pk for hit in small.similar(1, k=5, exact=True)]
        assert small.build_index().recall > 0.9
        assert [hit.pk for hit in small.similar(1, k=5)] == exact


async def test_uploads_go_through_the_projection(gallery: Path) -> None:
    reduced(gallery, 8, replace=True)
    site = open_datasette(gallery)
    home = await ask(site, "/-/image-similarity")
    assert "PCA to 8" in home.text
    path = "/gallery/images/-/search-by-image"
    found = (await post_picture(site, path, picture("red", 3))).json()
    assert found["rows"][0]["row"]["name"] == "red-3.png"
    assert found["rows"][0]["score"] == pytest.approx(1, abs=1e-4)
    stored = await ask_json(site, "/gallery/images/-/similar.json?_like=1")
    assert len(pks(stored)) > 0


def test_a_missing_transform_is_a_fault_that_stays(copied: Path) -> None:
    reduced(copied, 6)
    sql(copied, "delete from _image_similarity_transforms")
    for repair in (False, True):
        (what,) = faults(copied, repair=repair)
        assert what.startswith("'pca-6': What was learned of this collection is missing")
        assert "Make the collection again" in what
    result = command("verify", copied, "--repair")
    assert (result.exit_code, "Mended" in result.output) == (1, False)
    assert "only you can mend" in result.output


@pytest.mark.parametrize("instead", [None, "x"])
def test_a_table_of_transforms_that_is_not_ours(copied: Path, instead: str | None) -> None:
    reduced(copied)
    sql(copied, "drop table _image_similarity_transforms")
    if instead:
        sql(copied, f"create table _image_similarity_transforms ({instead})")
    for asked in (("verify", copied), ("reduce", copied, "--name", "pca-6", "--dims", 3)):
        assert "are damaged" in refused(*asked)


def test_transforms_of_no_collection_are_dropped(copied: Path) -> None:
    reduced(copied, 6)
    with opened(copied) as conn:
        conn.execute("pragma foreign_keys = off")
        conn.execute("update _image_similarity_transforms set collection_id = 99")
        found = [fault.what for fault in verify_database(conn, repair=True)]
    assert "transforms of no collection" in found
    assert value(copied, "select count(*) from _image_similarity_transforms") == 0


def test_a_damaged_parent_is_refused_before_the_work(copied: Path) -> None:
    reduced(copied, 12)
    sql(copied, "update _image_similarity_transforms set about = '['")
    assert "learned of this collection" in refused(
        "reduce", copied, "--name", "pca-12", "--dims", 6
    )


def test_a_collection_without_pictures(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    sql(path, "create table works (id integer primary key, scan blob)")
    sql(path, "insert into works (scan) values (x'00')")
    embed(path, table="works", blob_column="scan")
    with (
        ImageCollection(path, "works") as collection,
        pytest.raises(CollectionError, match="there are 0"),
    ):
        collection.reduce(4)
