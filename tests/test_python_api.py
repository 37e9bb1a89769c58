"""`ImageCollection`, as from a notebook."""

from __future__ import annotations

import inspect
import io
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from core import HOG, value
from PIL import Image

import datasette_image_similarity
from datasette_image_similarity import ImageCollection
from datasette_image_similarity.collection import EncoderOptions, Progress, Status
from datasette_image_similarity.errors import (
    CollectionError,
    DatabaseError,
    ImageError,
    ImageSimilarityError,
)
from datasette_image_similarity.query import Hit


def photo(made_once: Path, name: str = "red/red-0.png") -> Path:
    return made_once.parent / "photos" / name


def test_from_nothing_to_an_answer(tmp_path: Path, photos: Path) -> None:
    seen: list[Progress] = []
    with ImageCollection(tmp_path / "x.db") as collection:
        summary = collection.embed([photos / "red"], encoder=HOG, progress=seen.append)
        assert summary.embedded == 8
        hits = collection.similar(1, k=3)
    assert all(isinstance(hit, Hit) for hit in hits)
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert (seen[0].done, seen[0].total, seen[-1].done) == (0, 8, 8)
    assert seen[0].encoder == "hog on cpu, float32"


def test_nothing_is_made_before_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    collection = ImageCollection(path)
    for ask in (
        lambda: collection.similar(1),
        lambda: collection.status(),
        lambda: collection.vector(1),
        lambda: collection.search(picture()),
        lambda: collection.remove(),
    ):
        with pytest.raises(DatabaseError, match="does not exist"):
            ask()
    assert not path.exists()


def test_vector_is_an_array(copied: Path) -> None:
    with ImageCollection(copied) as collection:
        vector = collection.vector(1)
        assert vector.dtype == np.float32
        assert vector.shape == (collection.status().dimensions,)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        vector[0] = 2  # a copy of one's own
        for missing in (999, "x", (1, 2), None):
            with pytest.raises(CollectionError, match="has no embedding"):
                collection.vector(missing)


def test_search_by_path_bytes_and_pil_image(copied: Path, made_once: Path) -> None:
    file = photo(made_once)
    with Image.open(file) as image, ImageCollection(copied) as collection:
        pixels = image.convert("RGB")
        for asked in (
            file,
            str(file),
            file.read_bytes(),
            bytearray(file.read_bytes()),
            pixels,
        ):
            hits = collection.search(asked, k=2)
            assert hits[0].row["path"] == "red/red-0.png"
            assert hits[0].score == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_pil_images_of_all_modes(copied: Path, mode: str) -> None:
    if mode in ("I;16", "F"):
        image = Image.new(mode, (40, 30), 200)
    else:
        image = Image.new("RGB", (40, 30), (200, 30, 30)).convert(mode)
    with ImageCollection(copied) as collection:
        assert len(collection.search(image, k=3)) == 3


def test_what_is_no_picture(copied: Path, tmp_path: Path) -> None:
    with ImageCollection(copied) as collection:
        for wrong in (b"", b"nothing", tmp_path / "missing.png", tmp_path):
            with pytest.raises(ImageError):
                collection.search(wrong)


def test_where_and_k(copied: Path) -> None:
    with ImageCollection(copied) as collection:
        hits = collection.similar(1, 99, where="label = 'red'")
        assert {hit.row["label"] for hit in hits} == {"red"}
        for k in (0, -1):
            with pytest.raises(CollectionError, match="k must be at least 1"):
                collection.search(picture(), k)


def test_l2_orders_by_euclidean_distance(tmp_path: Path, photos: Path) -> None:
    with ImageCollection(tmp_path / "x.db") as collection:
        collection.embed(photos, encoder=HOG, metric="l2")
        vectors = np.array([collection.vector(n) for n in range(1, 25)])
        assert not np.allclose(np.linalg.norm(vectors, axis=1), 1)
        distances = np.linalg.norm(vectors - vectors[0], axis=1)
        hits = collection.similar(1, 99)
        np.testing.assert_allclose(
            [hit.distance for hit in hits], np.sort(distances)[1:], rtol=1e-4
        )
        for hit in hits:
            np.testing.assert_allclose(hit.distance, distances[hit.pk - 1], rtol=1e-4)
            a, b = vectors[0], vectors[hit.pk - 1]
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert hit.score == pytest.approx(cosine, abs=1e-4)


def test_status_and_remove(copied: Path) -> None:
    with ImageCollection(copied, "images") as collection:
        status = collection.status()
        assert isinstance(status, Status)
        assert (status.name, status.table, status.embedded) == ("default", "images", 24)
        collection.remove()
        with pytest.raises(CollectionError, match="no embeddings"):
            collection.status()
        with pytest.raises(CollectionError, match="no embeddings"):
            collection.remove()
    assert value(copied, "select count(*) from images") == 24


def test_sources_that_are_a_mixture_or_nothing(copied: Path, photos: Path) -> None:
    with ImageCollection(copied) as collection:
        with pytest.raises(CollectionError, match="mixture"):
            collection.embed([photos, {"a": 1}])
        with pytest.raises(CollectionError, match="nothing to embed"):
            collection.embed([])
        with pytest.raises(CollectionError, match="does not exist"):
            collection.embed([photos / "nope"])


def test_any_iterable_of_paths(tmp_path: Path, photos: Path) -> None:
    with ImageCollection(tmp_path / "x.db") as collection:
        files = (str(file) for file in photos.glob("red/*.png"))
        assert collection.embed(files, encoder=HOG).embedded == 8


def test_several_tables_in_one_database(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "x.db"
    for colour in ("red", "blue"):
        with ImageCollection(path, colour) as collection:
            collection.embed(photos / colour, encoder=HOG)
    with ImageCollection(path, "blue") as blue:
        assert {hit.row["name"][:4] for hit in blue.similar(1, 99)} == {"blue"}
        assert len(blue.search(photos / "red" / "red-0.png", 99)) == 8
        blue.remove()
    with ImageCollection(path, "red") as red:
        assert len(red.similar(1, 99)) == 7


def test_every_error_on_purpose_is_of_one_class(copied: Path) -> None:
    with ImageCollection(copied) as collection:
        for wrong in (
            lambda: collection.similar("nope"),
            lambda: collection.search(b"x"),
            lambda: collection.embed("nowhere"),
            lambda: collection.embed(encoder=EncoderOptions("hog", fit="pad")),
        ):
            with pytest.raises(ImageSimilarityError):
                wrong()


def test_closing_twice_and_going_on(copied: Path) -> None:
    collection = ImageCollection(copied)
    assert collection.similar(1)
    collection.close()
    collection.close()
    assert collection.similar(1)
    collection.close()


def test_everything_public_is_documented_and_typed() -> None:
    assert ImageCollection is datasette_image_similarity.ImageCollection
    for name, method in inspect.getmembers(ImageCollection, inspect.isfunction):
        if name.startswith("_") or name == "close":
            continue
        assert method.__doc__, name
        assert "return" in method.__annotations__, name
        parameters = list(inspect.signature(method).parameters)[1:]
        assert set(parameters) <= set(method.__annotations__), name


def test_search_and_stored_vectors_agree_for_big_jpegs(tmp_path: Path) -> None:
    # Big JPEGs are decoded at a smaller scale: here as there.
    folder = tmp_path / "big"
    folder.mkdir()
    with Image.open(io.BytesIO(picture("green", 1))) as image:
        image.resize((2400, 1800)).save(folder / "big.jpg", quality=90)
    for options in ({}, {"thumbnails": False}):
        with ImageCollection(tmp_path / f"{len(options)}.db") as collection:
            collection.embed(folder, encoder=HOG, **options)
            assert collection.search(folder / "big.jpg")[0].distance < 1e-5
