"""`--no-places` leaves out where pictures were taken, now and in later runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import picture
from core import command, embed, refused, sql
from PIL import ExifTags, Image


def with_place(file: Path, colour: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "Lumix"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {1: "S", 2: (33.0, 51.0, 24.0), 3: "W", 4: (70.0, 30.0, 0.0)}
    )
    file.write_bytes(picture(colour))
    with Image.open(file) as image:
        image.load()
    image.save(file.with_suffix(".jpg"), exif=exif)
    file.unlink()


@pytest.fixture
def few(tmp_path: Path) -> Path:
    folder = tmp_path / "few"
    folder.mkdir()
    with_place(folder / "a.png", "red")
    return folder


def places(path: Path) -> list[tuple]:
    return sql(path, "select camera, round(latitude), longitude from images order by id")


HERE, NOWHERE = ("Lumix", -34.0, -70.5), ("Lumix", None, None)


def test_places_are_noted_unless_they_are_not_wanted(tmp_path: Path, few: Path) -> None:
    embed(tmp_path / "x.db", few)
    assert places(tmp_path / "x.db") == [HERE]
    embed(tmp_path / "y.db", few, places=False)
    assert places(tmp_path / "y.db") == [NOWHERE]


def test_later_runs_and_other_collections_note_none(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    command("embed", path, few, "--model", "hog", "--no-places")
    with_place(few / "b.png", "blue")
    embed(path)
    embed(path, few, name="second", metric="l2")
    embed(path, few, force=True, metric="l2")
    command("remove", path, "images", "--yes")
    with_place(few / "c.png", "green")
    command("embed", path, few)
    assert places(path) == [NOWHERE] * 3


def test_places_that_are_there_are_emptied_once(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    embed(path, few)
    sql(path, "insert into images (path, latitude) values ('by hand', 1)")
    embed(path, few, places=False)
    assert places(path) == [NOWHERE, (None, 1.0, None)]
    sql(path, "update images set latitude = 7 where id = 1")
    embed(path, few, places=False)
    assert places(path)[0] == ("Lumix", 7.0, None), "somebody has written this since"
    command("embed", path, few, "--places", "--force")
    assert places(path)[0] == HERE


def test_a_table_without_these_columns(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    embed(path, few)
    sql(path, "alter table images drop column latitude")
    embed(path, few, places=False)
    assert sql(path, "select longitude from images") == [(None,)]


def test_places_are_about_folders(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table works (id integer primary key, file text)")
    words = ("--table", "works", "--path-column", "file", "--no-places")
    assert "pictures in folders" in refused("embed", path, *words, "--model", "hog")
