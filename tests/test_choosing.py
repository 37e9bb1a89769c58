"""What of a folder is embedded, and that nothing is skipped without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import picture
from core import command, counts, embed, refused, sql

from datasette_image_similarity.errors import CollectionError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one picture in it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture("red", 1))
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


def put(folder: Path, *names: str) -> None:
    """Different pictures under these names, whatever they end in."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture("green", 100 + number))


def paths(path: Path) -> list[str]:
    return [row[0] for row in sql(path, "select path from images order by path")]


# Told


def test_what_is_skipped_is_told_by_kind(folder: Path, path: Path) -> None:
    put(
        folder, "1.psd", "2.SVG", "sub/3.psd", "notes.txt", "README", ".hidden.png", "m.mp4"
    )
    (folder / "linked").symlink_to(folder / "sub")
    result = command("embed", path, folder, "--model", "hog", "--json")
    assert json.loads(result.stdout)["skipped"] == {
        ".psd": 2,
        ".svg": 1,
        ".txt": 1,
        "no suffix": 1,
        "hidden": 1,
        ".mp4": 1,
        "links": 1,
    }
    assert result.exit_code == 0
    said = command("embed", path, folder).output
    [line] = [line for line in said.splitlines() if line.startswith("Skipped: ")]
    assert line.startswith("Skipped: 2 .psd, ")
    assert line.endswith("1 without a suffix, 1 linked folder, 1 hidden")


def test_the_summary_has_the_counts(folder: Path, path: Path) -> None:
    put(folder, "1.psd", "2.psd")
    assert embed(path, folder).skipped == {".psd": 2}


def test_many_kinds_are_told_in_one_line(folder: Path, path: Path) -> None:
    put(folder, *(f"x.{letter}{letter}" for letter in "abcdefghijkl"))
    said = command("embed", path, folder, "--model", "hog").output
    assert "… and 4 other kinds" in said


@pytest.mark.parametrize(
    ("name", "code"),
    [("a.psd", 1), ("a.CR2", 1), ("a.jxl", 1), ("a", 1), ("a.txt", 0), ("a.xmp", 0)],
)
def test_strict_minds_pictures_that_were_skipped(
    folder: Path, path: Path, name: str, code: int
) -> None:
    from datasette_image_similarity.formats import picture_suffixes

    put(folder, name)
    if name.lower().endswith(picture_suffixes()):
        (folder / name).rename(folder / "a.psd")
    assert command("embed", path, folder, "--model", "hog", "--strict").exit_code == code
    assert command("embed", path, folder).exit_code == 0


def test_a_text_without_a_suffix_is_no_picture(folder: Path, path: Path) -> None:
    (folder / "LICENSE").write_text("You may")
    assert command("embed", path, folder, "--model", "hog", "--strict").exit_code == 0


def test_where_all_pictures_fail_the_command_does(folder: Path, path: Path) -> None:
    (folder / "a.png").write_bytes(b"no picture")
    assert command("embed", path, folder, "--model", "hog").exit_code == 1
    (folder / "b.png").write_bytes(picture("blue"))
    assert command("embed", path, folder).exit_code == 0


@pytest.mark.parametrize("make", ["links", "psd", "nothing"])
def test_a_folder_without_pictures_says_why(tmp_path: Path, path: Path, make: str) -> None:
    (tmp_path / "other").mkdir()
    put(tmp_path / "other", "a.png")
    (tmp_path / "folder").mkdir()
    if make == "links":
        (tmp_path / "folder" / "to").symlink_to(tmp_path / "other")
    elif make == "psd":
        put(tmp_path / "folder", "a.psd")
    said = refused("embed", path, tmp_path / "folder", "--model", "hog")
    why = {
        "links": "skipped 1 linked folder. --follow-links follows links",
        "psd": "skipped 1 .psd",
        "nothing": "the drive may not be mounted",
    }
    assert f"No pictures in {tmp_path / 'folder'}: {why[make]}" in said
    assert not path.exists()


# Before anything is loaded


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were asked for."""
    asked: list[str] = []

    def load(model: str, **options: object) -> None:
        asked.append(model)
        raise AssertionError("loaded a network for nothing")

    monkeypatch.setattr("datasette_image_similarity.collection.load_encoder", load)
    return asked


def test_nothing_is_loaded_where_there_is_nothing_to_embed(
    tmp_path: Path, path: Path, loaded: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    sql(path, "create table works (id integer primary key, file text, scan blob)")
    rows = "insert into other values (1, 'a.png')"
    sql(path, "create table other (id integer primary key, file text)")
    sql(path, rows)
    sql(path, "create table void as select 1 as id, '' as file, null as scan")
    (tmp_path / "x.csv").write_text("name,file\na,a.png\n")
    for arguments, why in (
        ([tmp_path / "empty"], "No pictures in"),
        ([tmp_path / "nowhere"], "does not exist"),
        (["--table", "works", "--path-column", "nope"], "has no column 'nope'"),
        (["--table", "works", "--blob-column", "nope"], "has no column 'nope'"),
        (["--table", "works", "--url-column", "nope"], "has no column 'nope'"),
        (["--table", "nope", "--path-column", "file"], "nope"),
        (["--table", "works", "--path-column", "file"], "has no rows"),
        (["--table", "works", "--blob-column", "scan"], "has no rows"),
        (
            ["--table", "other", "--path-column", "file", "--where", "id > 1"],
            "no row for which id > 1",
        ),
        (
            ["--table", "other", "--path-column", "file", "--where", "nope > 1"],
            "no such column",
        ),
        (["--table", "void", "--path-column", "file"], "anything in column 'file'"),
        (["--table", "void", "--blob-column", "scan"], "anything in column 'scan'"),
        (["--csv", tmp_path / "x.csv", "--path-column", "nope"], "no column 'nope'"),
    ):
        assert why in refused("embed", path, *arguments), arguments
    assert loaded == []


# Excluded


NOBODY_WANTS = (
    *("@eaDir", ".@__thumb", "#recycle", "#snapshot", "$RECYCLE.BIN", "@Recycle"),
    *("System Volume Information", ".Trash-1000", ".Trashes", ".thumbnails", "lost+found"),
    *(".AppleDouble", "__MACOSX", "Library Previews.lrdata", "#Recycle", "@eadir"),
)


def test_folders_that_nobody_wants_are_left_out_and_told(folder: Path, path: Path) -> None:
    put(folder, *(f"sub/{name}/thumb.jpg" for name in NOBODY_WANTS), "._a.png")
    summary = embed(path, folder)
    assert paths(path) == ["a.png"]
    assert summary.skipped == {"excluded": len(NOBODY_WANTS) + 1}
    assert "excluded (" in command("embed", path, folder).output


def test_the_usual_ones_can_be_had_and_that_is_kept(folder: Path, path: Path) -> None:
    put(folder, "@eaDir/1.png", "lost+found/2.png")
    assert embed(path, folder).embedded == 1
    assert embed(path, folder, default_excludes=False).embedded == 2
    assert counts(embed(path)) == (0, 0, 3, 0, 0)
    summary = embed(path, default_excludes=True)
    assert (summary.unchanged, summary.missing) == (1, 2)
    assert embed(path, prune=True).removed == 2
    assert paths(path) == ["a.png"]


def test_a_folder_of_these_that_is_named_is_embedded(folder: Path, path: Path) -> None:
    put(folder, "@eaDir/1.png")
    assert embed(path, folder / "@eaDir").embedded == 1
    assert counts(embed(path, folder, prune=True)) == (1, 0, 0, 0, 0)
    assert counts(embed(path, prune=True)) == (0, 0, 2, 0, 0)


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["*.tif"], ["a.png", "sub/b.png", "sub/raw/c.png", "top/raw/d.png"]),
        (["raw/"], ["a.png", "e.tif", "sub/b.png"]),
        (["/top"], ["a.png", "e.tif", "sub/b.png", "sub/raw/c.png"]),
        (["sub/*", "!sub/raw"], ["a.png", "e.tif", "sub/raw/c.png", "top/raw/d.png"]),
        (["*", "!a.png"], ["a.png"]),
        (["sub/**/c.png", "*.tif"], ["a.png", "sub/b.png", "top/raw/d.png"]),
        (["# no pattern", ""], ["a.png", "e.tif", "sub/b.png", "sub/raw/c.png"]),
    ],
)
def test_patterns_are_those_of_gitignore(
    folder: Path, path: Path, patterns: list[str], left: list[str]
) -> None:
    put(folder, "e.tif", "sub/b.png", "sub/raw/c.png", "top/raw/d.png")
    embed(path, folder, exclude=patterns)
    left = sorted([*left, "top/raw/d.png"]) if patterns[0].startswith("#") else left
    assert paths(path) == left


def test_patterns_are_kept_changed_and_cleared(folder: Path, path: Path) -> None:
    put(folder, "x/1.png", "y/2.png")
    embedding = "embed", path, "--model", "hog"
    assert "1 excluded (x)" in command(*embedding, folder, "--exclude", "x").output
    put(folder, "x/3.png")
    assert "2 unchanged" in command("embed", path).output
    said = command("embed", path, "--exclude", "y", "--exclude", "*.gif").output
    assert "1 embedded, 1 reused, 1 unchanged, 0 failed, 1 missing or excluded" in said
    assert "4 unchanged" in command("embed", path, "--exclude", "").output
    assert "4 unchanged" in command("embed", path).output


def test_an_exception_takes_in_what_is_usually_left_out(folder: Path, path: Path) -> None:
    put(folder, "@eaDir/1.png", "#recycle/2.png")
    embed(path, folder, exclude=["!@eaDir/"])
    assert paths(path) == ["@eaDir/1.png", "a.png"]


def test_what_is_no_pattern_is_refused(folder: Path, path: Path) -> None:
    assert "'!' is no pattern" in refused("embed", path, folder, "--exclude", "!")
    assert not path.exists()


def test_patterns_choose_no_rows(path: Path) -> None:
    sql(path, "create table works (id integer primary key, file text)")
    with pytest.raises(CollectionError, match="--where"):
        embed(path, table="works", path_column="file", exclude=["x"])


# Links


def test_linked_folders_are_followed_once(tmp_path: Path, folder: Path, path: Path) -> None:
    put(
        tmp_path,
        "other/o.png",
        "other/deep/p.png",
        "folder/sub/b.png",
        "folder/.store/h.png",
    )
    (folder / "out").symlink_to(tmp_path / "other")
    (folder / "out again").symlink_to(tmp_path / "other" / "deep")
    (folder / "in").symlink_to(folder / "sub")
    (folder / "kept").symlink_to(folder / ".store")
    (folder / "circle").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    (tmp_path / "other" / "back").symlink_to(folder)
    (folder / "nowhere").symlink_to(tmp_path / "nowhere")
    for one, other in ((1, 2), (2, 1)):
        (folder / f"loop{one}").symlink_to(folder / f"loop{other}")
    summary = embed(path, folder, follow_links=True)
    assert summary.embedded == 5
    names = sorted(Path(one).name for one in paths(path))
    assert names == ["a.png", "b.png", "h.png", "o.png", "p.png"]
    assert len(set(paths(path))) == 5
    # The next run follows them, too.
    assert counts(embed(path, prune=True)) == (0, 0, 5, 0, 0)
    assert counts(embed(path, folder, prune=True)) == (0, 0, 5, 0, 0)
    assert summary.skipped["links"] == 2  # in a circle, and up


def test_a_linked_folder_that_is_named_as_well_is_met_once(
    tmp_path: Path, folder: Path, path: Path
) -> None:
    put(tmp_path, "other/o.png")
    (folder / "out").symlink_to(tmp_path / "other")
    assert embed(path, [folder, tmp_path / "other"], follow_links=True).embedded == 2


def test_linked_files_outside_are_skipped_unless_links_are_followed(
    tmp_path: Path, folder: Path, path: Path
) -> None:
    put(tmp_path, "other/o.png", "other/p.png")
    (folder / "sub").mkdir()
    (folder / "best.png").symlink_to(tmp_path / "other" / "o.png")
    (folder / "sub" / "again.png").symlink_to(tmp_path / "other" / "o.png")
    summary = embed(path, folder)
    assert (summary.embedded, summary.failed) == (1, 0)
    assert summary.skipped == {"linked files": 2}
    assert str(summary.skipped) == "2 linked files"
    followed = embed(path, folder, follow_links=True)
    assert (followed.embedded, followed.failed, dict(followed.skipped)) == (1, 0, {})
    assert paths(path) == ["a.png", "best.png"]  # one file, one row
    # The next run follows them, too, and embeds nothing else of that folder.
    assert counts(embed(path, prune=True)) == (0, 0, 2, 0, 0)
    assert command("verify", path).exit_code == 0


def test_a_folder_of_linked_files_says_how_to_follow_them(
    tmp_path: Path, path: Path
) -> None:
    put(tmp_path, "other/o.png")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "o.png").symlink_to(tmp_path / "other" / "o.png")
    said = refused("embed", path, tmp_path / "links", "--model", "hog")
    assert "skipped 1 linked file. --follow-links follows links" in said
    # A link that is named needs no option.
    assert embed(path, tmp_path / "links" / "o.png").embedded == 1


def test_a_link_to_a_missing_file_says_so(folder: Path, path: Path) -> None:
    (folder / "b.png").symlink_to(folder / "gone.png")
    summary = embed(path, folder)
    [(_, reason)] = summary.failures
    assert reason == f"a link to {folder / 'gone.png'}, which is not there"


def test_a_pattern_that_is_a_comment_is_told(folder: Path, path: Path) -> None:
    put(folder, "#old/b.png")
    assert "'\\#old'" in embed(path, folder, exclude=["#old"]).notes[0]
    summary = embed(path, folder, exclude=["\\#old"], prune=True)
    assert (summary.notes, paths(path)) == ([], ["a.png"])
