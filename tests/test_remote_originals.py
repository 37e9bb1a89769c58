"""Commands that read pictures again, where these lie in a bucket."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from cloud import Server
from conftest import COLOURS, picture
from core import embed, opened, refused, value
from test_duplicates import decide

from datasette_image_similarity import ImageCollection, trust
from datasette_image_similarity import database as db
from datasette_image_similarity.images import Crop, Input
from datasette_image_similarity.learning.squares import SquareReader, labelled_pictures
from datasette_image_similarity.roots import as_root

pytest_plugins = ["cloud_fixtures"]

CLOUD = "s3://photos/summer"


@pytest.fixture
def bucket(bucket: Server) -> Server:
    for colour in COLOURS:
        bucket.put(f"summer/{colour}.png", picture(colour, 1))
    bucket.put("summer/red-copy.png", picture("red", 1))
    return bucket


@pytest.fixture
def path(bucket: Server, tmp_path: Path) -> Path:
    embed(tmp_path / "cloud.db", CLOUD, thumbnails=False, label_from_folder=True)
    bucket.asked("GET")
    return tmp_path / "cloud.db"


def test_duplicates_without_thumbnails(bucket: Server, path: Path) -> None:
    with ImageCollection(path) as collection:
        collection.duplicates()
    assert value(path, "select count(*) from _image_similarity_hashes") == 4
    assert bucket.asked("GET") >= 3


def test_marked_pictures_in_a_bucket_are_not_moved(path: Path, tmp_path: Path) -> None:
    decide(path, "red-copy.png", "mark")
    to = ("--export", tmp_path / "x.sh", "--to", tmp_path / "moved")
    assert "in buckets or on the web" in refused("duplicates", path, *to)


def test_a_crop_in_python(bucket: Server, path: Path) -> None:
    with warnings.catch_warnings(), ImageCollection(path) as collection:
        warnings.simplefilter("error")  # that it is of the thumbnail
        assert collection.similar(1, crop=Crop(0, 0, 0.5, 0.5))
    assert bucket.asked("GET") == 1


def test_squares_to_learn_from(bucket: Server, path: Path, tmp_path: Path) -> None:
    for roots, failed in (
        ([as_root(CLOUD)], 0),
        ([], 4),
        ([as_root("s3://photos/sum")], 4),
    ):
        with opened(path) as conn:
            collection = db.find_collection(conn, "images")
            pictures, _ = labelled_pictures(conn, collection, "label")
            reader = SquareReader(
                conn, collection, pictures, roots=roots, folder=tmp_path, workers=1
            )
            places = np.arange(4)
            reader.read(places, Input(size=32), lambda *_: None, lambda: False)
        assert len(reader.failed) == failed
    assert as_root(CLOUD) in trust.trusted_roots(path)
