"""What is learned of a collection and applied to its vectors: stored, read again, applied
to new pictures; and collections made of others'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from core import HOG, embed, faults, opened, sql, value

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.encoders import EncoderSpec, load_encoder
from datasette_image_similarity.encoders.transform import (
    Step,
    Transform,
    TransformedEncoder,
)
from datasette_image_similarity.errors import CollectionError, EncoderError
from datasette_image_similarity.explore.vectors import Stopped
from datasette_image_similarity.learning.stored import derive, stored_transform
from datasette_image_similarity.sources import kept_picture


def step(inputs: int, outputs: int, seed: int = 0) -> Step:
    random = np.random.default_rng(seed)
    mean = random.normal(size=inputs).astype(np.float32)
    components = random.normal(size=(inputs, outputs)).astype(np.float32)
    return Step("pca", mean / 100, components, True, {"words": f"PCA to {outputs}"})


def derived(path: Path, name: str = "small", outputs: int = 8, **options) -> db.Collection:
    with opened(path) as conn:
        parent = db.find_collection(conn, "images")
        made = step(parent.dimensions, outputs)
        return derive(conn, parent, made, name=name, **options)


def test_a_transform_survives_the_database(gallery: Path) -> None:
    derived(gallery)
    with opened(gallery) as conn:
        collection = db.find_collection(conn, "images", "small")
        transform = stored_transform(conn, collection)
        assert transform.dimensions == collection.dimensions == 8
        assert str(transform) == "PCA to 8"
        assert transform.sha256 == EncoderSpec.from_json(collection.encoder).transform
        parent = db.find_collection(conn, "images")
        assert stored_transform(conn, parent) is None
        assert np.array_equal(
            transform.steps[0].components, step(parent.dimensions, 8).components
        )


def test_vectors_of_a_derived_collection(gallery: Path) -> None:
    derived(gallery)
    with ImageCollection(gallery) as full, ImageCollection(gallery, name="small") as small:
        for pk in (1, 2):
            moved = step(len(full.vector(pk)), 8).apply(full.vector(pk)[None])[0]
            assert np.allclose(small.vector(pk), moved / np.linalg.norm(moved), atol=1e-6)
        assert [h.pk for h in small.similar(1, k=3)]
    assert faults(gallery) == []


def test_a_new_picture_goes_through_the_transform(gallery: Path, photos: Path) -> None:
    derived(gallery)
    with ImageCollection(gallery, name="small") as small:
        path = value(gallery, "select path from images where id = 1")
        nearest = small.search(photos / path, k=1)[0]
        assert (nearest.pk, round(nearest.score, 4)) == (1, 1.0)


def test_embedding_goes_on_through_the_transform(gallery: Path, photos: Path) -> None:
    derived(gallery)
    sql(gallery, "delete from images where id = 1")
    for options in ({}, {"encoder": HOG}):
        summary = embed(gallery, photos, name="small", **options)
    assert summary.failed == 0
    with ImageCollection(gallery, name="small") as small:
        assert small.status().embedded == value(gallery, "select count(*) from images")
        assert small.status().dimensions == 8


def test_pictures_are_shown_by_the_thumbnails_of_another_collection(
    gallery: Path,
) -> None:
    derived(gallery)

    def shown() -> bytes | None:
        with opened(gallery) as conn:
            collection = db.find_collection(conn, "images", "small")
            source = db.source_of(conn, collection)
            return kept_picture(conn, collection, source, 1).thumbnail

    before = shown()
    assert before
    count = value(gallery, "select count(*) from _image_similarity_thumbnails")
    with ImageCollection(gallery, name="default") as full:
        full.remove()
    assert shown() == before
    assert value(gallery, "select count(*) from _image_similarity_thumbnails") == count
    assert faults(gallery) == []


def test_replacing_keeps_what_people_did(gallery: Path) -> None:
    sql(
        gallery,
        "insert into _image_similarity_questions (collection_id, name, question) "
        "values (1, 'mine', '_like=1')",
    )
    made = derived(gallery, replace=True)
    assert made.name == "default"
    assert value(gallery, "select count(*) from _image_similarity_collections") == 1
    asked = "select collection_id from _image_similarity_questions"
    assert value(gallery, asked) == made.id
    assert faults(gallery) == []


def test_steps_follow_each_other(gallery: Path) -> None:
    derived(gallery, "a", 16)
    with opened(gallery) as conn:
        parent = db.find_collection(conn, "images", "a")
        derive(conn, parent, step(16, 4), name="b")
        made = db.find_collection(conn, "images", "b")
        assert str(stored_transform(conn, made)) == "PCA to 16, PCA to 4"
        assert "PCA to 16, PCA to 4" in str(EncoderSpec.from_json(made.encoder))


def test_a_name_that_is_taken_is_refused(gallery: Path) -> None:
    with pytest.raises(CollectionError, match="already"):
        derived(gallery, "default")


def test_stopped_leaves_nothing(gallery: Path) -> None:
    with pytest.raises(Stopped):
        derived(gallery, replace=True, stop=lambda: True)
    with ImageCollection(gallery) as collection:
        assert collection.status().name == "default"
    assert value(gallery, "select count(*) from _image_similarity_transforms") == 0


@pytest.mark.parametrize(
    "damage",
    [
        "delete from _image_similarity_transforms",
        "update _image_similarity_transforms set mean = zeroblob(length(mean))",
        "update _image_similarity_transforms set components = 'x'",
        "update _image_similarity_transforms set outputs = 1000000",
        "update _image_similarity_transforms set about = '['",
        "update _image_similarity_transforms set kind = 'pickle'",
    ],
)
def test_a_damaged_transform_is_refused(gallery: Path, damage: str) -> None:
    derived(gallery)
    sql(gallery, damage)
    with ImageCollection(gallery, name="small") as small:
        assert small.similar(1, k=1)  # needs no encoder
        with pytest.raises(EncoderError, match="learned of this collection"):
            small.load_encoder()


def test_the_preferred_collection_comes_first(gallery: Path) -> None:
    derived(gallery)
    with opened(gallery) as conn:
        db.prefer(conn, db.find_collection(conn, "images", "small"))
        assert db.find_collection(conn, "images").name == "small"
        db.prefer(conn, db.find_collection(conn, "images", "default"))
        assert db.find_collection(conn, "images").name == "default"


def test_fingerprints_tell_transforms_apart() -> None:
    encoder = load_encoder("hog")
    made = [step(encoder.dimensions, 8, seed) for seed in (0, 1)]
    specs = [TransformedEncoder(encoder, Transform((one,))).spec for one in made]
    prints = {encoder.spec.fingerprint, *(one.fingerprint for one in specs)}
    assert len(prints) == 3
    assert {one.backbone for one in specs} == {encoder.spec}
    assert EncoderSpec.from_json(specs[0].to_json()) == specs[0]
    renamed = replace(specs[0], transformed="something else")
    assert renamed.fingerprint == specs[0].fingerprint
