"""Pictures whose place has changed keep their rows: libraries that move, folders inside
others, identical files that are renamed. A drive that is away loses nothing."""

from __future__ import annotations

import io
import os
import shutil
import zlib
from pathlib import Path

import pytest
from conftest import picture
from core import answer, command, counts, embed, failures, faults, refused, sql, value
from PIL import Image

from datasette_image_similarity import trust
from datasette_image_similarity.errors import CollectionError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


def library(folder: Path, *names: str) -> Path:
    """A folder of pictures under these names, each of its own."""
    for name in names or ("a.png", "b.png", "2019/c.png", "2019/may/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture("green", zlib.crc32(name.encode()) % 10_000))
    return folder


def rows(path: Path) -> dict[str, int]:
    """Ids by path."""
    return dict(sql(path, "select path, id from images"))


def kept(path: Path) -> list[tuple]:
    """All that has to survive: keys, what people wrote and decided, vectors."""
    return sql(
        path,
        "select t.id, t.stars, i.id, i.sha256, v.embedding from images t "
        "join _image_similarity_items i on i.pk = t.id and i.path = t.path "
        "join _image_similarity_vectors_1 v on v.id = i.id order by t.id",
    )


def with_stars(path: Path) -> list[tuple]:
    sql(path, "alter table images add column stars")
    sql(path, "update images set stars = id * 10")
    return kept(path)


# A library that moved


@pytest.mark.parametrize("how", ["mv", "cp", "mount"])
def test_a_library_that_moved_keeps_its_rows(tmp_path: Path, path: Path, how: str) -> None:
    old, new = library(tmp_path / "disk1"), tmp_path / "disk2"
    embed(path, old)
    before = with_stars(path)
    if how == "mv":
        old.rename(new)
    else:
        shutil.copytree(old, new, copy_function=shutil.copy)
        shutil.rmtree(old)
    if how == "mount":  # the drive was mounted elsewhere
        (old / ".Trashes").mkdir(parents=True)
    said = command("embed", path, new, "--prune").output
    assert f"{old} has moved to {new}: 4 pictures keep their rows" in said
    assert "0 embedded, 4 unchanged, 0 failed in" in said
    assert kept(path) == before
    assert set(rows(path)) == {"a.png", "b.png", "2019/c.png", "2019/may/d.png"}
    assert counts(embed(path, prune=True)) == (0, 0, 4, 0, 0)
    assert faults(path) == []
    assert answer("status", path)[0]["away"] == {}
    assert str(new) in map(str, trust.trusted_roots(path))


def test_a_moved_library_in_which_something_changed(tmp_path: Path, path: Path) -> None:
    names = [f"{number}.png" for number in range(10)]
    old, new = library(tmp_path / "disk1", *names), tmp_path / "disk2"
    embed(path, old)
    before = with_stars(path)
    old.rename(new)
    (new / "0.png").unlink()
    (new / "1.png").write_bytes(picture("red", 5))
    (new / "sub").mkdir()
    (new / "2.png").rename(new / "sub" / "2.png")
    (new / "new.png").write_bytes(picture("red", 6))
    summary = embed(path, new)
    assert counts(summary) == (2, 1, 7, 0, 0)
    assert summary.missing == 1
    assert [row[:2] for row in kept(path)[:10]] == [row[:2] for row in before]
    assert embed(path, prune_rows=True).removed == 1
    assert len(rows(path)) == 10


def test_one_of_several_roots_moves_and_moves_again(tmp_path: Path, path: Path) -> None:
    stays = library(tmp_path / "here" / "stays", "a.png", "x.png")
    old = library(tmp_path / "there" / "goes", "a.png", "b.png", "c.png")
    embed(path, [stays, old])
    before = with_stars(path)
    at = old
    for new in (tmp_path / "second", tmp_path / "third" / "deep", old):
        new.parent.mkdir(exist_ok=True)
        at.rename(new)
        summary = embed(path, new, prune=True)
        assert counts(summary) == (0, 0, 3, 0, 0)
        assert f"has moved to {new}: 3 pictures" in " ".join(summary.notes)
        assert kept(path) == before
        at = new
    assert counts(embed(path, prune=True)) == (0, 0, 5, 0, 0)


def test_several_roots_move_at_once(tmp_path: Path, path: Path) -> None:
    one = library(tmp_path / "one", "a.png", "b.png", "c.png")
    two = library(tmp_path / "two", "d.png", "e.png", "f.png")
    embed(path, one)
    embed(path, two)
    before = with_stars(path)
    for folder in (one, two):
        folder.rename(tmp_path / f"{folder.name} moved")
    summary = embed(path, [tmp_path / "one moved", tmp_path / "two moved"], prune=True)
    assert counts(summary) == (0, 0, 6, 0, 0)
    assert len(summary.notes) == 2
    assert kept(path) == before


def test_a_root_moves_into_another_and_out_again(tmp_path: Path, path: Path) -> None:
    outer = library(tmp_path / "outer", "x.png", "y.png")
    old = library(tmp_path / "elsewhere" / "lib")
    embed(path, outer)
    embed(path, old)
    before = with_stars(path)
    old.rename(outer / "lib")
    assert counts(embed(path, prune=True)) == (0, 0, 6, 0, 0)  # no folder is named
    assert kept(path) == before
    (outer / "lib").rename(tmp_path / "out")
    summary = embed(path, tmp_path / "out", prune=True)
    assert (summary.embedded, summary.removed) == (0, 0)
    assert kept(path) == before
    assert counts(embed(path, prune=True)) == (0, 0, 6, 0, 0)


def test_a_folder_around_the_library_is_renamed(tmp_path: Path, path: Path) -> None:
    embed(path, library(tmp_path / "photos" / "lib"))
    before = with_stars(path)
    (tmp_path / "photos").rename(tmp_path / "pictures")
    summary = embed(path, tmp_path / "pictures", prune=True)
    assert counts(summary) == (0, 0, 4, 0, 0)
    assert kept(path) == before
    assert set(rows(path)) == {
        "lib/a.png",
        "lib/b.png",
        "lib/2019/c.png",
        "lib/2019/may/d.png",
    }


def test_all_collections_over_a_table_move(tmp_path: Path, path: Path) -> None:
    old = library(tmp_path / "disk1")
    embed(path, old)
    embed(path, old, name="far", metric="l2")
    old.rename(tmp_path / "disk2")
    assert embed(path, tmp_path / "disk2").unchanged == 4
    for source in (None, tmp_path / "disk2"):
        summary = embed(path, source, name="far", prune=True)
        assert counts(summary) == (0, 0, 4, 0, 0)
    assert len(rows(path)) == 4


def test_a_copy_is_no_move(tmp_path: Path, path: Path) -> None:
    old = library(tmp_path / "disk1")
    embed(path, old)
    shutil.copytree(old, tmp_path / "disk2")
    summary = embed(path, tmp_path / "disk2", prune=True)
    assert counts(summary) == (0, 4, 0, 0, 0)
    assert summary.notes == []
    assert len(rows(path)) == 8  # each under a path of its own


def test_other_pictures_of_the_same_names_are_no_move(tmp_path: Path, path: Path) -> None:
    old = library(tmp_path / "card1", "1.png", "2.png")
    embed(path, old)
    shutil.rmtree(old)
    new = tmp_path / "card2"
    new.mkdir()
    for number in (1, 2):
        (new / f"{number}.png").write_bytes(picture("red", number))
    summary = embed(path, new, prune=True)
    assert counts(summary) == (2, 0, 0, 0, 0)
    assert summary.notes == [f"{old} is not there: its 2 pictures are kept"]
    assert len(rows(path)) == 4


def test_a_few_copies_elsewhere_are_no_move(tmp_path: Path, path: Path) -> None:
    names = [f"{number}.png" for number in range(10)]
    old, new = library(tmp_path / "disk1", *names), tmp_path / "stick"
    embed(path, old)
    new.mkdir()
    for name in names[:3]:
        shutil.copy(old / name, new)
    old.rename(tmp_path / "away")
    summary = embed(path, new, prune=True)
    assert counts(summary) == (0, 3, 0, 0, 0)
    assert "3 of them are in" in summary.notes[0]
    (tmp_path / "away").rename(old)
    assert counts(embed(path, prune=True)) == (0, 0, 13, 0, 0)


@pytest.mark.parametrize("mount_point", [True, False])
def test_a_drive_that_is_away_loses_nothing(
    tmp_path: Path, path: Path, mount_point: bool
) -> None:
    drive, here = library(tmp_path / "drive"), library(tmp_path / "here", "h.png", "i.png")
    embed(path, [drive, here])
    before = with_stars(path)
    drive.rename(tmp_path / "unplugged")
    if mount_point:
        (drive / "lost+found").mkdir(parents=True)
    library(tmp_path / "here", "j.png")
    for sources in ([here], None, [here, drive] if mount_point else [here]):
        summary = embed(path, sources, prune=True)
        assert (summary.removed, summary.missing) == (0, 0)
        assert f"{drive} is not there: its 4 pictures are kept" in summary.notes
    if mount_point:
        assert "No pictures in" in refused("embed", path, drive, "--prune")
    assert kept(path)[: len(before)] == before
    [status] = answer("status", path)
    assert status["away"] == {str(drive): 4}
    assert f"not there    {drive}: 4 pictures" in command("status", path).output
    result = command("verify", path)
    assert result.exit_code == 1
    assert f"pictures in {drive}, which is not there" in result.output
    shutil.rmtree(drive, ignore_errors=True)
    (tmp_path / "unplugged").rename(drive)
    assert counts(embed(path, prune=True)) == (0, 0, 7, 0, 0)
    assert faults(path) == []


def test_a_drive_that_is_away_when_the_folder_around_it_is_embedded(
    tmp_path: Path, path: Path
) -> None:
    media = tmp_path / "media"
    drive = library(media / "drive")
    library(media / "here", "h.png")
    embed(path, drive)
    before = with_stars(path)
    drive.rename(tmp_path / "unplugged")
    for source in (media, None, media):
        assert embed(path, source, prune=True).removed == 0
    assert kept(path)[:4] == before
    (tmp_path / "unplugged").rename(drive)
    assert counts(embed(path, prune=True)) == (0, 0, 5, 0, 0)
    (drive / "a.png").unlink()
    assert embed(path, prune=True).removed == 1


def test_a_folder_that_was_emptied_and_is_there_can_be_pruned(
    tmp_path: Path, path: Path
) -> None:
    folder, other = library(tmp_path / "one", "a.png"), library(tmp_path / "two", "b.png")
    embed(path, [folder, other])
    (folder / "a.png").unlink()
    (folder / "notes.txt").write_text("they were bad")
    assert embed(path, prune=True).removed == 1


# A column of paths


def table_of(path: Path, names: list[str]) -> None:
    sql(path, "create table works (id integer primary key, file text)")
    for name in names:
        sql(path, "insert into works (file) values (?)", (name,))


def test_the_root_of_a_column_moves(tmp_path: Path, path: Path) -> None:
    names = ["a.png", "sub/b.png", "c.png"]
    old, new = library(tmp_path / "old", *names), tmp_path / "new"
    table_of(path, names)
    embed(path, table="works", path_column="file", root=old)
    old.rename(new)
    with pytest.raises(CollectionError, match="does not exist"):
        embed(path, table="works")
    summary = embed(path, table="works", path_column="file", root=new)
    assert counts(summary) == (0, 0, 3, 0, 0)
    assert summary.notes == [f"{old} has moved to {new}: 3 pictures keep their rows"]
    assert value(path, "select path from _image_similarity_roots") == str(new)
    assert counts(embed(path, table="works")) == (0, 0, 3, 0, 0)


def test_the_root_of_a_column_that_is_empty_loses_nothing(
    tmp_path: Path, path: Path
) -> None:
    root = library(tmp_path / "drive", "a.png", "b.png")
    table_of(path, ["a.png", "b.png"])
    embed(path, table="works", path_column="file", root=root)
    root.rename(tmp_path / "unplugged")
    root.mkdir()
    with pytest.raises(CollectionError, match="connect its drive"):
        embed(path, table="works", prune=True)
    assert value(path, "select count(*) from _image_similarity_items") == 2
    assert failures(path) == []


# Folders inside others


def test_a_folder_then_its_parent(tmp_path: Path, path: Path) -> None:
    tree = library(tmp_path / "tree", "cat/1.png", "cat/old/2.png", "dog/1.png", "top.png")
    embed(path, tree / "cat")
    before = with_stars(path)
    assert set(rows(path)) == {"1.png", "old/2.png"}
    assert counts(embed(path, tree)) == (2, 0, 2, 0, 0)
    assert sql(path, "select path, folder, name from images order by path") == [
        ("cat/1.png", "cat", "1.png"),
        ("cat/old/2.png", "cat/old", "2.png"),
        ("dog/1.png", "dog", "1.png"),
        ("top.png", "", "top.png"),
    ]
    assert kept(path)[:2] == before
    library(tree, "cat/3.png")
    for source in (tree / "cat", None, tree, tree / "cat" / "old", tree / "cat" / "1.png"):
        assert embed(path, source, prune=True).removed == 0
    assert rows(path)["cat/3.png"] == 5
    assert value(path, "select count(*) from _image_similarity_roots") == 1
    assert faults(path) == []


def test_two_children_then_the_parent_in_all_collections(
    tmp_path: Path, path: Path
) -> None:
    tree = library(tmp_path / "tree", "cat/1.png", "dog/1.png")
    for name in ("default", "far"):
        embed(path, tree / "cat", name=name)
    embed(path, tree / "dog")
    embed(path, tree)
    assert set(rows(path)) == {"cat/1.png", "dog/1.png"}
    assert counts(embed(path, tree, name="far")) == (1, 0, 1, 0, 0)
    assert len(rows(path)) == 2


@pytest.mark.parametrize("given", ["files", "folders", "one by one"])
def test_paths_tell_files_of_the_same_name_apart(
    tmp_path: Path, path: Path, given: str
) -> None:
    tree = library(tmp_path / "tree", "cat/IMG_1.png", "dog/IMG_1.png", "cow/IMG_1.png")
    library(tree, "secret/x.png", "y.png")
    folders = [*sorted(tree.glob("c*")), tree / "dog"]
    if given == "one by one":
        for folder in folders:
            embed(path, folder)
    else:
        embed(path, folders if given == "folders" else [f / "IMG_1.png" for f in folders])
    first = "IMG_1.png" if given == "one by one" else "cat/IMG_1.png"
    assert sorted(rows(path)) == sorted([first, "cow/IMG_1.png", "dog/IMG_1.png"])
    assert counts(embed(path, prune=True)) == (0, 0, 3, 0, 0)
    # Nobody has vouched for the folder around them.
    assert set(map(str, trust.trusted_roots(path))) == set(map(str, folders))


def test_folders_of_the_same_name_in_far_places(tmp_path: Path, path: Path) -> None:
    one = library(tmp_path / "one" / "photos", "1.png", "deep/2.png")
    two = library(tmp_path / "two" / "photos", "1.png")
    three = library(tmp_path / "three" / "photos", "1.png")
    embed(path, [one, two])
    embed(path, three)
    assert sorted(rows(path)) == [
        "one/photos/1.png",
        "one/photos/deep/2.png",
        "photos/1.png",
        "two/photos/1.png",
    ]
    assert counts(embed(path, prune=True)) == (0, 0, 4, 0, 0)


def test_large_pictures_are_read_from_the_folders_that_were_named_alone(
    tmp_path: Path, path: Path
) -> None:
    from datasette_image_similarity.sources import Reader

    tree = library(tmp_path / "tree", "cat/1.png", "dog/1.png", "secret/x.png")
    embed(path, [tree / "cat", tree / "dog"])
    root = value(path, "select path from _image_similarity_roots")
    trusted = trust.trusted_roots(path)
    with Reader() as reader:
        data = reader.read_noted(trusted, root, "cat/1.png", 10**6)
        assert data == (tree / "cat" / "1.png").read_bytes()
        for other in ("secret/x.png", "cat/../secret/x.png", "../tree/secret/x.png"):
            with pytest.raises(Exception, match=r"noted for no embed|outside the root"):
                reader.read_noted(trusted, root, other, 10**6)


def test_a_database_of_before_there_were_settings(tmp_path: Path, path: Path) -> None:
    from core import make_older

    tree = library(tmp_path / "tree", "cat/1.png", "dog/1.png")
    embed(path, tree / "cat")
    before = with_stars(path)
    make_older(path, 6)
    assert counts(embed(path, tree)) == (1, 0, 1, 0, 0)
    assert kept(path)[:1] == before


# Identical files that are renamed


def test_identical_copies_whose_folders_are_renamed(tmp_path: Path, path: Path) -> None:
    tree = library(tmp_path / "tree", "cat/1.png", "dog/2.png")
    for folder in ("cat", "dog"):
        (tree / folder / "logo.png").write_bytes(picture("red"))
    before = {}
    embed(path, tree)
    for old, new in (("cat", "feline"), ("dog", "canine")):
        before[f"{new}/logo.png"] = rows(path)[f"{old}/logo.png"]
        (tree / old).rename(tree / new)
    for file in tree.rglob("*.png"):  # times do not help
        os.utime(file, (1_000_000_000, 1_000_000_000))
    assert embed(path, tree, prune=True).removed == 0
    now = rows(path)
    assert {name: now[name] for name in before} == before


def test_identical_files_are_told_by_their_names(tmp_path: Path, path: Path) -> None:
    tree = tmp_path / "tree"
    names = ["p/a.png", "p/b.png", "q/c.png", "q/d.png"]
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(picture("red"))
    embed(path, tree)
    before = rows(path)
    (tree / "p").rename(tree / "y")
    (tree / "q").rename(tree / "x")
    shutil.copy(tree / "y" / "a.png", tree / "0.png")  # comes first, and is new
    summary = embed(path, tree, prune=True)
    assert (summary.embedded, summary.reused, summary.removed) == (0, 5, 0)
    now = rows(path)
    for name in names:
        assert now[name.replace("p/", "y/").replace("q/", "x/")] == before[name]


def test_identical_files_in_folders_of_similar_names(tmp_path: Path, path: Path) -> None:
    tree = tmp_path / "tree"
    for year in ("2018", "2019", "2020"):
        (tree / f"trip {year}").mkdir(parents=True)
        (tree / f"trip {year}" / "x.png").write_bytes(picture("red"))
    embed(path, tree)
    before = rows(path)
    for year, name in (("2018", "z 2018"), ("2019", "y 2019"), ("2020", "a 2020")):
        (tree / f"trip {year}").rename(tree / name)
        os.utime(tree / name / "x.png", (1_000_000_000, 1_000_000_000))
    embed(path, tree, prune=True)
    now = rows(path)
    for year, name in (("2018", "z 2018"), ("2019", "y 2019"), ("2020", "a 2020")):
        assert now[f"{name}/x.png"] == before[f"trip {year}/x.png"]


@pytest.mark.parametrize("how", ["limit", "force", "older", "link", "relative"])
def test_other_ways_to_embed_what_has_moved(
    tmp_path: Path, path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = library(tmp_path / "disk1"), tmp_path / "disk2"
    if how == "link":
        old.rename(tmp_path / "real")
        old.symlink_to(tmp_path / "real")
    embed(path, old)
    before = with_stars(path)
    old.rename(new)
    if how == "older":
        from core import make_older

        make_older(path, 6)
    options = {"limit": {"limit": 1}, "force": {"force": True}}.get(how, {})
    monkeypatch.chdir(tmp_path)
    summary = embed(path, "disk2" if how == "relative" else new, **options)
    assert "has moved to" in summary.notes[0]
    assert (summary.reused, summary.failed, summary.removed) == (0, 0, 0)
    assert kept(path) == before
    assert counts(embed(path, prune=True)) == (0, 0, 4, 0, 0)


def test_decisions_and_a_search_survive_a_move(tmp_path: Path, path: Path) -> None:
    from datasette_image_similarity import ImageCollection

    old = library(tmp_path / "disk1")
    shutil.copy(old / "a.png", old / "a copy.png")
    embed(path, old)
    with ImageCollection(path) as collection:
        collection.duplicates()
        before = [(hit.pk, hit.score) for hit in collection.similar(1)]
    groups = value(path, "select count(*) from _image_similarity_groups")
    old.rename(tmp_path / "disk2")
    embed(path, tmp_path / "disk2")
    with ImageCollection(path) as collection:
        assert [(hit.pk, hit.score) for hit in collection.similar(1)] == before
        assert collection.encode(tmp_path / "disk2" / "a.png")
    assert value(path, "select count(*) from _image_similarity_groups") == groups


def test_roots_at_the_top_of_the_disk_end_the_climb() -> None:
    from datasette_image_similarity.moves import Spot, recorded_at
    from datasette_image_similarity.roots import BucketRoot

    one, two = BucketRoot("s3", "one"), BucketRoot("s3", "two", "photos")
    found = recorded_at([Path("/"), one, two], [], lambda prefix: False)
    assert found[one] == Spot(one)
    assert found[two] == Spot(BucketRoot("s3", "two"), "photos/")
    assert found[Path("/")] == Spot(Path("/"))


def test_a_derived_collection_finds_the_same_folders(tmp_path: Path, path: Path) -> None:
    from datasette_image_similarity import ImageCollection

    names = [f"{number}.png" for number in range(12)]
    one, two = library(tmp_path / "one", *names), library(tmp_path / "two", *names)
    embed(path, [one, two], exclude=["no/"])
    with ImageCollection(path) as collection:
        collection.reduce(2, to="small")
    library(two, "new.png", "no/no.png")
    for name in (None, "small"):
        summary = embed(path, name=name, encoder=None)
        assert (summary.embedded + summary.reused, summary.unchanged) == (1, 24)
        assert summary.skipped == {"excluded": 1}


def test_a_row_that_was_kept_for_a_missing_file_moves_along(
    tmp_path: Path, path: Path
) -> None:
    old = library(tmp_path / "disk1")
    embed(path, old)
    with_stars(path)
    (old / "a.png").unlink()
    assert embed(path, prune=True).kept_rows == 1
    old.rename(tmp_path / "disk2")
    embed(path, tmp_path / "disk2", prune=True)
    (tmp_path / "disk2" / "a.png").write_bytes(picture("blue", 3))
    embed(path)
    assert value(path, "select stars / id from images where path = 'a.png'") == 10
    assert len(rows(path)) == 4


@pytest.mark.parametrize("first", ["link", "real"])
def test_a_folder_named_by_a_link_is_the_same_folder(
    tmp_path: Path, path: Path, first: str
) -> None:
    library(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    embed(path, tmp_path / first)
    before = with_stars(path)
    for name in ("link", "real", "link/2019", "real/2019/may"):
        summary = embed(path, tmp_path / name, prune=True)
        assert (summary.embedded, summary.removed, summary.notes) == (0, 0, []), name
    assert kept(path) == before


def test_one_picture_that_moved_or_is_away_is_told_in_words(
    tmp_path: Path, path: Path
) -> None:
    old, new = library(tmp_path / "old", "a.png"), tmp_path / "new"
    embed(path, [old, library(tmp_path / "other", "b.png")])
    old.rename(new)
    assert f"{old} is not there: its 1 picture is kept" in str(embed(path).notes)
    assert f"{old} has moved to {new}: 1 picture keeps its row" in str(
        embed(path, new).notes
    )


def test_folders_whose_files_have_the_same_names_and_sizes_move(
    tmp_path: Path, path: Path
) -> None:
    """As scans have: only their bytes tell them apart."""
    names = [f"{number:02d}" for number in range(12)]
    for name in names:
        scan = tmp_path / "old" / name / "scan.bmp"
        scan.parent.mkdir(parents=True)
        Image.open(io.BytesIO(picture("blue", int(name)))).save(scan)
    said = command(
        *("embed", path, *(tmp_path / "old" / name for name in names), "--model", "hog")
    ).output
    assert "and 7 more folders" in said
    before = with_stars(path)
    (tmp_path / "old").rename(tmp_path / "new")
    said = command("embed", path, *(tmp_path / "new" / name for name in names)).output
    assert "0 embedded, 12 unchanged" in said
    assert "… and 2 more such lines" in said
    assert kept(path) == before


def test_a_folder_around_others_is_not_listed_unless_it_was_named(tmp_path: Path) -> None:
    """Also where its name had to tell one of them from another."""
    path = tmp_path / "x.db"
    library(tmp_path / "unasked", "z.png")
    for place in ("photos/2019", "photos/2020", "backup/2020", "backup/2021"):
        library(tmp_path / place, f"{place[-4:]}{place[0]}.png")
    embed(path, [tmp_path / "photos" / year for year in ("2019", "2020")])
    embed(path, [tmp_path / "backup" / year for year in ("2020", "2021")])
    assert "backup/2020/2020b.png" in rows(path)
    assert counts(embed(path, prune=True)) == (0, 0, 4, 0, 0)
