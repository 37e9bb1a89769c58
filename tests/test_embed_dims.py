"""`embed --dims`: vectors are stored projected from the first one on, by what is learned
from some of the pictures, each of which is encoded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from core import (
    HOG,
    answer,
    command,
    counts,
    embed,
    failures,
    faults,
    opened,
    refused,
    sql,
    value,
)
from serving import open_datasette, post_picture

from datasette_image_similarity import ImageCollection, encoders
from datasette_image_similarity import database as db
from datasette_image_similarity.collection import EncoderOptions
from datasette_image_similarity.encoders import hog
from datasette_image_similarity.errors import CollectionError
from datasette_image_similarity.explore.vectors import Stopped, read_vectors
from datasette_image_similarity.learning import sample
from datasette_image_similarity.learning.stored import stored_transform

SMALL = replace(HOG, dims=6)
WIDE = 20_000


class WideEncoder:
    """Pixels as they are: more numbers than can be stored."""

    dimensions = WIDE
    device, precision, batch_size, sample = "cpu", "float32", 4, 0

    def __init__(self) -> None:
        backbone = hog.HogEncoder()
        self.spec = replace(backbone.spec, model="wide")
        self.input = backbone.input
        self.encoded = 0

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        self.encoded += len(pixels)
        return pixels.reshape(len(pixels), -1)[:, :WIDE].astype(np.float32) / 255

    # It is the family of itself, too.

    def load(self, choice: object, **options: object) -> WideEncoder:
        return self

    def restore(self, spec: object, **options: object) -> WideEncoder:
        return self


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> WideEncoder:
    encoder = WideEncoder()
    monkeypatch.setattr(encoders, "family_of", lambda model: encoder)
    return encoder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "small.db"


def vectors(path: Path, table: str = "images") -> np.ndarray:
    with opened(path) as conn:
        return read_vectors(conn, db.find_collection(conn, table)).vectors


def learned(path: Path) -> dict:
    """Provenance of what was learned."""
    with opened(path) as conn:
        transform = stored_transform(conn, db.find_collection(conn, "images"))
        return dict(transform.steps[0].about)


def stored(path: Path) -> bool:
    """Whether anything was embedded."""
    return path.exists() and bool(answer("status", path))


def test_it_is_as_reducing_afterwards(path: Path, gallery: Path, photos: Path) -> None:
    summary = embed(path, photos, encoder=SMALL)
    assert counts(summary) == (24, 0, 0, 0, 0)
    with ImageCollection(gallery) as full:
        full.reduce(6)
    with opened(gallery) as conn:
        wanted = read_vectors(conn, db.find_collection(conn, "images", "pca-6"))
    paths = "select id, path from images order by id"
    assert sql(path, paths) == sql(gallery, paths)
    assert np.allclose(vectors(path), wanted.vectors, atol=1e-5)
    assert faults(path) == []
    assert value(path, "select count(*) from _image_similarity_thumbnails") == 24


def test_the_command(path: Path, photos: Path) -> None:
    run = ("embed", path, photos, "--model", "hog", "--dims", 6)
    result = command(*run)
    assert result.exit_code == 0, result.output
    assert "learning 6 dimensions from 24 pictures" in result.output
    assert "hog, PCA to 6 on cpu" in result.output
    assert "24 embedded" in result.output
    assert "24 unchanged" in command(*run).output
    assert "24 × 6, cosine" in command("status", path).output


def test_the_others_go_through_what_some_have_taught(
    path: Path, photos: Path, wide: WideEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "PICTURES", 10)
    summary = embed(path, photos, encoder=SMALL)
    assert counts(summary) == (24, 0, 0, 0, 0)
    assert wide.encoded == 24
    assert (learned(path)["pictures"], learned(path)["of_pictures"]) == (10, 24)
    with ImageCollection(path) as collection:
        folders = [row[0] for row in sql(path, "select folder from images order by id")]
        assert set(folders[:10]) == {"red", "green", "blue"}  # from all over
        for pk, name in sql(path, "select id, path from images"):
            data = collection.encode(photos / name)
            made = np.frombuffer(data, "<f4")
            assert np.allclose(collection.vector(pk), made, atol=1e-5)


def test_pictures_that_fail_teach_nothing(
    path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "PICTURES", 10)
    for number in range(6):
        (photos / f"broken-{number}.png").write_bytes(b"no picture")
    summary = embed(path, photos, encoder=SMALL)
    assert counts(summary) == (24, 0, 0, 6, 0)
    assert learned(path)["pictures"] == 10
    assert len(failures(path)) == 6


def test_the_same_bytes_twice(path: Path, photos: Path, wide: WideEncoder) -> None:
    for name in ("a.png", "z.png"):
        (photos / name).write_bytes((photos / "red" / "red-1.png").read_bytes())
    summary = embed(path, photos, encoder=SMALL, batch_size=2)
    assert counts(summary)[:2] == (24, 2)
    assert wide.encoded == 24


def test_interrupted_while_learning_nothing_is_stored(
    path: Path, photos: Path, wide: WideEncoder
) -> None:
    with pytest.raises(Stopped):
        embed(path, photos, encoder=SMALL, stop=lambda: wide.encoded > 8, batch_size=4)
    assert wide.encoded < 24
    assert not path.exists()
    assert counts(embed(path, photos, encoder=SMALL))[0] == 24


def test_interrupted_later_it_goes_on_with_what_was_learned(
    path: Path, photos: Path, wide: WideEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "PICTURES", 10)
    stop = lambda: stored(path) and wide.encoded > 12  # noqa: E731
    summary = embed(path, photos, encoder=SMALL, stop=stop, batch_size=2)
    assert summary.stopped
    before = learned(path)
    assert 10 <= summary.embedded < 24
    assert embed(path, photos, encoder=SMALL).embedded == 24 - summary.embedded
    assert learned(path) == before
    assert len(vectors(path)) == 24


def test_the_same_dimensions_go_on_and_others_are_refused(path: Path, photos: Path) -> None:
    embed(path, photos, encoder=SMALL)
    (photos / "new.png").write_bytes(picture("red", 99))
    assert counts(embed(path, encoder=replace(SMALL, model=None)))[:3] == (1, 0, 24)
    with pytest.raises(CollectionError, match=r"reduce .* --dims 5"):
        embed(path, photos, encoder=replace(SMALL, dims=5))
    with pytest.raises(CollectionError) as refusal:
        embed(path, photos, encoder=replace(SMALL, dims=20))
    assert "reduce" not in str(refusal.value)


def test_force_learns_again_or_keeps_what_was_learned(path: Path, photos: Path) -> None:
    embed(path, photos)
    full = vectors(path)
    assert embed(path, photos, encoder=SMALL, force=True).embedded == 24
    small = vectors(path)
    assert (full.shape[1], small.shape[1]) == (hog.DIMENSIONS, 6)
    for options in (EncoderOptions(), HOG):
        embed(path, photos, encoder=options, force=True)
        assert np.allclose(vectors(path), small, atol=1e-5)
    embed(path, photos, encoder=HOG, force=True, metric="l2")
    assert value(path, "select count(*) from _image_similarity_transforms") == 1
    embed(path, photos, encoder=replace(SMALL, dims=4), force=True)
    assert vectors(path).shape == (24, 4)
    assert faults(path) == []


@pytest.mark.parametrize(
    ("dims", "says"), [(24, "there are 24: ask for 23"), (99_999, "not in 99,999")]
)
def test_too_few_pictures(path: Path, photos: Path, dims: int, says: str) -> None:
    with pytest.raises(CollectionError, match=says):
        embed(path, photos, encoder=replace(SMALL, dims=dims))
    assert not path.exists()


def test_too_few_are_left_after_the_broken_ones(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for number in range(9):
        data = picture("red", number) if number < 4 else b"no picture"
        (folder / f"{number}.png").write_bytes(data)
    with pytest.raises(CollectionError, match="there are 4: ask for 3"):
        embed(path, folder, encoder=SMALL)
    assert not path.exists()


def test_long_vectors_are_refused_without_dims(
    path: Path, photos: Path, wide: WideEncoder
) -> None:
    said = refused("embed", path, photos, "--model", "wide")
    assert "20,000 dimensions" in said
    assert "--dims" in said
    assert not path.exists()
    assert wide.encoded == 0


def test_long_vectors_with_dims(path: Path, photos: Path, wide: WideEncoder) -> None:
    assert embed(path, photos, encoder=SMALL).embedded == 24
    (photos / "new.png").write_bytes(picture("blue", 99))
    assert embed(path).embedded == 1
    with ImageCollection(path) as collection:
        hit = collection.search(photos / "green" / "green-3.png", k=1)[0]
        assert hit.row["name"] == "green-3.png"
        assert hit.score == pytest.approx(1, abs=1e-4)
        assert collection.status().dimensions == 6


async def test_uploads_go_through_it(path: Path, photos: Path) -> None:
    embed(path, photos, encoder=SMALL)
    url = "/small/images/-/search-by-image"
    found = (await post_picture(open_datasette(path), url, picture("red", 3))).json()
    assert found["rows"][0]["row"]["name"] == "red-3.png"
    assert found["rows"][0]["score"] == pytest.approx(1, abs=1e-4)


def test_euclidean(path: Path, gallery: Path, photos: Path) -> None:
    embed(path, photos, encoder=replace(HOG, dims=23), metric="l2")
    full = path.with_name("full.db")
    embed(full, photos, metric="l2")
    with ImageCollection(path) as small, ImageCollection(full) as whole:
        ours, theirs = small.similar(1, k=5), whole.similar(1, k=5)
        assert [hit.pk for hit in ours] == [hit.pk for hit in theirs]
        assert ours[0].distance == pytest.approx(theirs[0].distance, rel=1e-3)


def blobs(path: Path) -> None:
    sql(path, "create table works (id integer primary key, scan blob, kind text)")
    for id in range(1, 21):
        kind = "red" if id % 2 else "blue"
        sql(path, "insert into works values (?, ?, ?)", (id, picture(kind, id), kind))


def test_rows_with_a_condition_and_a_limit(path: Path) -> None:
    blobs(path)
    run: Callable = lambda **more: embed(  # noqa: E731
        path, table="works", blob_column="scan", where="kind = 'red'", **more
    )
    with pytest.raises(CollectionError, match="there are 5"):
        run(limit=5, encoder=SMALL)
    assert not stored(path)
    assert run(limit=8, encoder=SMALL).embedded == 8
    assert run(encoder=SMALL).embedded == 2
    assert vectors(path, "works").shape == (10, 6)


def test_a_copy_in_another_database(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "museum.db"
    blobs(source)
    result = command(
        *("embed", source, "--table", "works", "--blob-column", "scan", "--model", "hog"),
        *("--dims", 6, "--output", path),
    )
    assert result.exit_code == 0, result.output
    assert vectors(path, "works").shape == (20, 6)
    assert answer("status", source) == []


def test_a_csv(path: Path, photos: Path) -> None:
    table = photos / "items.csv"
    rows = [f"{n},red/red-{n}.png" for n in range(8)]
    table.write_text("\n".join(["id,file", *rows]))
    run = ("embed", path, "--csv", table, "--path-column", "file", "--model", "hog")
    assert "there are 8" in refused(*run, "--dims", 8)
    assert not path.exists()
    assert command(*run, "--dims", 5).exit_code == 0
    assert vectors(path).shape == (8, 5)


def test_another_encoder_may_want_the_first_pictures_typical(
    path: Path, photos: Path, wide: WideEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "PICTURES", 12)
    wide.sample = 6
    embed(path, photos, encoder=SMALL)
    folders = [row[0] for row in sql(path, "select folder from images order by id")]
    assert set(folders[:6]) == set(folders[6:12]) == {"red", "green", "blue"}


def test_a_full_temporary_folder_is_told(
    path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        close = flush = lambda self: self.write(b"")  # what is left is written then

    monkeypatch.setattr(sample.tempfile, "TemporaryFile", Full)
    with pytest.raises(CollectionError, match=r"No space left on device\. Set TMPDIR"):
        embed(path, photos, encoder=SMALL)
    assert not path.exists()
