"""A folder of files becomes a table with a row for each, its vector and thumbnail."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
from conftest import picture
from core import HOG, counts, embed, failures, faults, opened, sql, value
from PIL import Image

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import CollectionError


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder of four pictures: two at its top, two in a folder inside."""
    folder = tmp_path / "few"
    (folder / "inner").mkdir(parents=True)
    for number, place in enumerate(("a", "b", "inner/c", "inner/d")):
        (folder / f"{place}.png").write_bytes(picture("red", number))
    return folder


def test_every_file_has_a_row_with_its_facts(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    assert counts(embed(path, few)) == (4, 0, 0, 0, 0)
    rows = sql(
        path,
        "select path, folder, name, width, height, format, bytes, sha256 from images "
        "order by path",
    )
    for place, folder, name in (("a.png", "", "a.png"), ("inner/c.png", "inner", "c.png")):
        data = (few / place).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        assert (place, folder, name, 80, 60, "PNG", len(data), digest) in rows
    assert [row[0] for row in rows] == ["a.png", "b.png", "inner/c.png", "inner/d.png"]


def test_the_table_has_the_columns_that_are_promised(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    embed(path, few)
    with opened(path) as conn:
        table = db.source_table(conn, "images")
    promised = (
        "id path folder name width height format bytes sha256 taken_at camera "
        "latitude longitude"
    )
    assert table.columns == tuple(promised.split())
    assert table.pks == ("id",)


def test_items_vectors_and_thumbnails_share_an_id(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    embed(path, few)
    together = (
        "select count(*) from _image_similarity_items i "
        "join _image_similarity_vectors_1 v on v.id = i.id "
        "join _image_similarity_thumbnails t on t.id = i.id "
        "join images on images.id = i.pk and images.path = i.path"
    )
    assert value(path, together) == 4
    webp = value(path, "select webp from _image_similarity_thumbnails limit 1")
    assert Image.open(io.BytesIO(webp)).format == "WEBP"


def test_without_thumbnails_none_are_stored_now_or_later(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    embed(path, few, thumbnails=False)
    (few / "e.png").write_bytes(picture("blue", 1))
    assert embed(path).embedded == 1
    assert value(path, "select count(*) from _image_similarity_thumbnails") == 0


def test_label_is_the_parent_folder(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    embed(path, few, label_from_folder=True)
    labels = dict(sql(path, "select path, label from images"))
    assert labels["inner/c.png"] == "inner"
    assert labels["a.png"] == "few"


def test_exif_facts_are_columns(tmp_path: Path) -> None:
    folder = tmp_path / "exif"
    folder.mkdir()
    image = Image.new("RGB", (40, 30), "teal")
    exif = image.getexif()
    exif[0x0110] = "Pinhole 3"
    exif.get_ifd(0x8769)[0x9003] = "2021:06:05 04:03:02"
    image.save(folder / "x.jpg", exif=exif)
    path = tmp_path / "x.db"
    assert embed(path, folder).embedded == 1
    camera, taken = sql(path, "select camera, taken_at from images")[0]
    assert "Pinhole 3" in camera
    assert taken.startswith("2021-06-05")


def test_hidden_files_other_files_and_linked_folders_are_left_alone(
    tmp_path: Path, few: Path
) -> None:
    (few / ".hidden.png").write_bytes(picture())
    (few / ".git").mkdir()
    (few / ".git" / "x.png").write_bytes(picture())
    (few / "notes.txt").write_text("not a picture")
    (few / "again").symlink_to(few / "inner")
    (few / "loop").symlink_to(few)
    assert counts(embed(tmp_path / "x.db", few)) == (4, 0, 0, 0, 0)


def test_single_files_and_folders_named_twice_make_one_row_each(
    tmp_path: Path, few: Path
) -> None:
    path = tmp_path / "x.db"
    embed(path, [few / "a.png", few, few, few / "inner", few / "inner" / "c.png"])
    assert value(path, "select count(*) from images") == 4


def test_a_file_and_links_to_it_make_one_row_under_its_own_name(
    tmp_path: Path, few: Path
) -> None:
    path = tmp_path / "x.db"
    (few / "0.png").symlink_to(few / "inner" / "c.png")
    (few / "z.png").symlink_to(few / "inner" / "c.png")
    assert counts(embed(path, few)) == (4, 0, 0, 0, 0)
    assert sql(path, "select path from images where name in ('0.png', 'z.png')") == []


def test_links_to_what_is_not_listed_itself_make_one_row(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    (few / ".kept").mkdir()
    (few / ".kept" / "e.png").write_bytes(picture("green", 1))
    (few / "e.png").symlink_to(few / ".kept" / "e.png")
    (few / "f.png").symlink_to(few / ".kept" / "e.png")
    assert counts(embed(path, few)) == (5, 0, 0, 0, 0)
    assert sql(path, "select path from images where path > 'c' and path < 'g'") == [
        ("e.png",)
    ]


def test_a_hidden_folder_that_is_named_counts_beside_the_one_around_it(
    tmp_path: Path, few: Path
) -> None:
    path = tmp_path / "x.db"
    (few / ".hidden").mkdir()
    (few / ".hidden" / "e.png").write_bytes(picture("green", 1))
    both = [few, few / ".hidden"]
    assert counts(embed(path, both)) == (5, 0, 0, 0, 0)
    assert counts(embed(path, both, prune=True)) == (0, 0, 5, 0, 0)
    assert faults(path) == []


def test_more_pictures_than_are_looked_up_together(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasette_image_similarity.plan.AT_ONCE", 5)
    path = tmp_path / "x.db"
    assert counts(embed(path, photos)) == (24, 0, 0, 0, 0)
    (photos / "green" / "green-3.png").unlink()
    (photos / "blue" / "blue-7.png").rename(photos / "new.png")
    (photos / "red" / "red-0.png").write_bytes(picture("green", 99))
    assert counts(embed(path, photos, prune=True)) == (1, 1, 21, 0, 1)
    assert faults(path) == []


def test_a_folder_inside_one_embedded_before_makes_no_second_rows(
    tmp_path: Path, few: Path
) -> None:
    path = tmp_path / "x.db"
    embed(path, few)
    (few / "inner" / "e.png").write_bytes(picture("green", 1))
    assert counts(embed(path, few / "inner")) == (1, 0, 2, 0, 0)
    assert counts(embed(path, few / "a.png")) == (0, 0, 1, 0, 0)
    assert value(path, "select count(*) from images") == 5
    # … nor does the outer one after it
    assert counts(embed(path, few)) == (0, 0, 5, 0, 0)
    assert faults(path) == []


def test_two_folders_may_hold_files_of_the_same_name(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(picture("green", number))
    path = tmp_path / "x.db"
    assert embed(path, [tmp_path / "one", tmp_path / "two"]).embedded == 2
    assert counts(embed(path)) == (0, 0, 2, 0, 0)
    assert sql(path, "select path from images") == [("one/x.png",), ("two/x.png",)]


def test_without_a_path_the_folders_known_are_looked_at_again(
    tmp_path: Path, few: Path
) -> None:
    path = tmp_path / "x.db"
    embed(path, few)
    (few / "e.png").write_bytes(picture("green", 1))
    assert counts(embed(path)) == (1, 0, 4, 0, 0)


def test_a_relative_folder_is_found_again_from_elsewhere(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.db"
    monkeypatch.chdir(tmp_path)
    embed(path, "few")
    monkeypatch.chdir("/")
    assert counts(embed(path)) == (0, 0, 4, 0, 0)
    assert counts(embed(path, few)) == (0, 0, 4, 0, 0)


def test_an_empty_folder_is_refused_and_leaves_no_database(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CollectionError, match="No pictures in"):
        embed(tmp_path / "x.db", tmp_path / "empty")
    assert not (tmp_path / "x.db").exists()


def test_a_folder_that_is_not_there_leaves_no_database(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="does not exist"):
        embed(tmp_path / "x.db", tmp_path / "nowhere")
    assert not (tmp_path / "x.db").exists()


def test_a_table_of_other_things_is_not_taken_over(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table images (id integer primary key, title text)")
    with pytest.raises(CollectionError, match="not one of files"):
        embed(path, few)
    assert sql(path, "select name from sqlite_master") == [("images",)]


def test_a_table_is_found_whatever_the_case_of_its_name(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    embed(path, few)
    assert counts(embed(path, few, "Images")) == (0, 0, 4, 0, 0)
    with ImageCollection(path, "IMAGES") as collection:
        collection.remove()
    assert embed(path, few, "Images").embedded == 4
    assert value(path, "select count(*) from images") == 4


def test_an_index_of_the_same_name_is_no_obstacle(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table images_path (x)")
    assert embed(path, few).embedded == 4


def test_columns_of_the_users_own_survive(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    embed(path, few)
    sql(path, "alter table images add column stars integer")
    sql(path, "update images set stars = id")
    (few / "a.png").write_bytes(picture("green", 7))
    os.rename(few / "b.png", few / "z.png")
    embed(path, few)
    assert value(path, "select count(*) from images where stars = id") == 4


def test_two_collections_over_one_table_keep_their_own_vectors(
    tmp_path: Path, few: Path
) -> None:
    path = tmp_path / "x.db"
    embed(path, few)
    embed(path, few, name="euclid", metric="l2")
    assert value(path, "select count(*) from images") == 4
    with ImageCollection(path, name="euclid") as collection:
        assert collection.status().metric == "l2"
        assert collection.status().embedded == 4
        collection.remove()
    with ImageCollection(path) as collection:
        assert collection.status().embedded == 4
        assert len(collection.similar(1)) == 3


def test_removing_leaves_the_table_as_it_was_and_rows_serve_again(
    tmp_path: Path, few: Path
) -> None:
    path = tmp_path / "x.db"
    embed(path, few)
    before = sql(path, "select * from images")
    with ImageCollection(path) as collection:
        collection.remove()
    assert sql(path, "select * from images") == before
    ours = "select count(*) from sqlite_master where name like '\\_image%' escape '\\'"
    assert value(path, ours) == 0
    embed(path, few)
    assert sql(path, "select * from images") == before


def test_a_folder_that_cannot_be_listed_is_a_failure_and_is_not_pruned(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.db"
    embed(path, few)
    listed = os.scandir

    def scandir(place: object) -> object:
        if str(place).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(place))
        return listed(place)

    monkeypatch.setattr(os, "scandir", scandir)
    summary = embed(path, few, prune=True)
    assert counts(summary) == (0, 0, 2, 1, 0)
    assert "Permission denied" in failures(path)[0][2]
    monkeypatch.undo()
    assert counts(embed(path, few, encoder=HOG)) == (0, 0, 4, 0, 0)
    assert failures(path) == []
