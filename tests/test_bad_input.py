"""What bad input gets: a clear line, no traceback, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conftest import picture
from core import (
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
from datasette.utils.sqlite import sqlite3

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import CollectionError, DatabaseError
from datasette_image_similarity.sources import locate


@pytest.fixture
def few(tmp_path: Path) -> Path:
    folder = tmp_path / "few"
    folder.mkdir()
    for number, name in enumerate("ab"):
        (folder / f"{name}.png").write_bytes(picture("red", number))
    return folder


def table(path: Path, cells: list) -> dict[str, object]:
    """A table of these paths; the options to embed it."""
    sql(path, "create table works (id integer primary key, file)")
    for cell in cells:
        sql(path, "insert into works (file) values (?)", (cell,))
    return {"table": "works", "path_column": "file"}


# Pictures

FILES = {
    "text.png": b"not a picture at all",
    "empty.jpg": b"",
    "truncated.png": picture("red", 3)[:200],
    "page.png": b"<html><body>hi</body></html>",
    "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "zeros.gif": bytes(5000),
}


def test_one_bad_file_never_stops_a_run(tmp_path: Path, few: Path) -> None:
    for name, data in FILES.items():
        (few / name).write_bytes(data)
    path = tmp_path / "x.db"
    done = answer("embed", path, few, "--model", "hog")
    assert (done["embedded"], done["failed"]) == (2, len(FILES))
    assert {failure["path"] for failure in done["failures"]} == set(FILES)
    assert all(failure["reason"] for failure in done["failures"])
    assert {row[1] for row in failures(path)} == set(FILES)
    assert value(path, "select count(*) from images") == 2
    printed = command("embed", path, few)
    assert printed.exit_code == 0
    assert "Failed: text.png: " in printed.output
    assert "Traceback" not in printed.output
    assert command("embed", path, few, "--strict").exit_code == 1


def test_names_of_all_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    names = [
        "with space.png",
        'quote\'s "x".png',
        "née 日本 🎨.png",
        "new\nline.png",
        "100%_[a]*?.png",
        "semi;colon,comma.png",
        "-dash.png",
        "UPPER.PNG",
        "back\\slash.png",
    ]
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture("green", number))
    path = tmp_path / "x.db"
    assert counts(embed(path, folder)) == (len(names), 0, 0, 0, 0)
    assert counts(embed(path, folder)) == (0, 0, len(names), 0, 0)
    assert {row[0] for row in sql(path, "select path from images")} == set(names)
    assert faults(path) == []


def test_names_that_are_not_utf8(tmp_path: Path, few: Path) -> None:
    raw = os.fsencode(few) + b"/bad-\xff.png"
    try:
        Path(os.fsdecode(raw)).write_bytes(picture())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    path = tmp_path / "x.db"
    result = command("embed", path, few, "--model", "hog")
    assert result.exit_code == 0
    assert "bad-\\udcff.png: the name is not valid UTF-8: rename the file" in result.output
    assert counts(embed(path, few)) == (0, 0, 2, 1, 0)
    assert len(failures(path)) == 1


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xff"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (folder / "x.png").write_bytes(picture())
    assert "Rename the folder" in refused(
        "embed", tmp_path / "x.db", folder, "--model", "hog"
    )
    assert not (tmp_path / "x.db").exists()


def test_a_newline_in_a_name_stays_in_its_line(tmp_path: Path, few: Path) -> None:
    (few / "new\nline\x1b[31m.png").write_bytes(b"bad")
    result = command("embed", tmp_path / "x.db", few, "--model", "hog")
    [line] = [line for line in result.output.splitlines() if line.startswith("Failed")]
    assert line.startswith("Failed: new\\nline\\x1b[31m.png: ")
    error = refused("embed", tmp_path / "x.db", "no\nwhere", "--model", "hog")
    assert "no\\nwhere does not exist" in error


# Paths in a table


def test_cells_that_name_no_picture(tmp_path: Path, few: Path) -> None:
    (tmp_path / "outside.png").write_bytes(picture())
    (few / "out.png").symlink_to(tmp_path / "outside.png")
    (few / "inside.png").symlink_to("a.png")
    (few / "dangling.png").symlink_to("nowhere.png")
    (few / "loop.png").symlink_to("loop.png")
    (few / "folder.png").mkdir()
    os.mkfifo(few / "fifo.png")
    cells = {
        "a.png": None,
        "inside.png": None,
        str(few / "b.png"): None,
        "folder.png/../a.png": None,
        "../outside.png": "outside the root",
        "../few/../outside.png": "outside the root",
        str(tmp_path / "outside.png"): "outside the root",
        "/etc/passwd": "outside the root",
        "out.png": "outside the root",
        "dangling.png": "no such file",
        "missing.png": "no such file",
        "a.png/b.png": "no such file",
        "../missing.png": "outside the root",
        "loop.png": "cannot be opened",
        "folder.png": "a folder",
        ".": "a folder",
        "fifo.png": "not an ordinary file",
        "": "empty",
        "  ": "empty",
        "http://example.com/a.png": "a URL",
        "https://example.com/a.png": "a URL",
        "file:///etc/passwd": "no such file",
        "data:image/png;base64,AAAA": "not an image",
        "x" * 300: "cannot be opened",
        "x" * 300 + "\\y": "cannot be opened",
        "nul\0.png": "NUL",
        17: "no such file",
        b"a.png": "should be text",
    }
    path = tmp_path / "x.db"
    options = table(path, list(cells))
    done = embed(path, root=few, **options)
    reasons = {row[0]: row[2] for row in failures(path)}
    for number, (cell, said) in enumerate(cells.items(), 1):
        assert (said is None) == (number not in reasons), cell
        if said:
            assert said in reasons[number], cell
    assert done.failed == len(reasons)
    assert faults(path) == []


def test_a_link_in_a_folder_that_leads_out_is_not_read(tmp_path: Path, few: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture("blue"))
    (few / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(few / "fifo.png")
    path = tmp_path / "x.db"
    summary = embed(path, few)
    assert counts(summary) == (2, 0, 0, 1, 0)
    assert summary.skipped == {"linked files": 1}
    assert [row[2].split()[0] for row in failures(path)] == ["not"]


def test_a_root_that_is_itself_a_link_is_fine(tmp_path: Path, few: Path) -> None:
    (tmp_path / "link").symlink_to(few)
    path = tmp_path / "x.db"
    options = table(path, ["a.png", "../few/b.png"])
    assert counts(embed(path, root=tmp_path / "link", **options)) == (2, 0, 0, 0, 0)


def test_paths_from_windows(tmp_path: Path, few: Path) -> None:
    (few / "sub").mkdir()
    (few / "sub" / "c.png").write_bytes(picture("green"))
    assert locate(few, "sub\\c.png") == (few / "sub" / "c.png").resolve()


def test_a_root_that_is_gone(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    options = table(path, ["a.png"])
    with pytest.raises(CollectionError, match="does not exist: name one by --root"):
        embed(path, root=tmp_path / "gone", **options)


# Names of tables and columns, keys


@pytest.mark.parametrize(
    "name", ['my photos/é "x"', "select", "a'b;--", "images.main", "%_"]
)
def test_tables_of_all_names_from_the_command_line(
    tmp_path: Path, few: Path, name: str
) -> None:
    path = tmp_path / "x.db"
    assert answer("embed", path, few, "--table", name, "--model", "hog")["embedded"] == 2
    assert [hit["pk"] for hit in answer("similar", path, name, "1")] == ["2"]
    assert len(answer("search", path, few / "a.png")) == 2
    assert answer("status", path)[0]["table"] == name
    assert answer("verify", path) == []
    assert command("remove", "--yes", path, name).exit_code == 0
    assert [row[0] for row in sql(path, "select path from main." + db.quote(name))] == [
        "a.png",
        "b.png",
    ]


def test_unknown_tables_keys_and_collections(copied: Path, few: Path) -> None:
    assert "'nope' has no embeddings; tables that have: 'images'" in refused(
        "similar", copied, "nope", "1"
    )
    assert "no row with the key" in refused("similar", copied, "images", "999")
    assert "no row with the key" in refused("similar", copied, "images", "1,2")
    assert "no row with the key" in refused("similar", copied, "images", "")
    assert "no collection 'x'" in refused("similar", copied, "images", "1", "--name", "x")
    assert "no collection" in refused("remove", copied, "images", "--name", "x")
    assert "no embeddings" in refused("remove", copied, "nope")
    for k in ("0", "-1"):
        assert "k must be at least 1" in refused("similar", copied, "images", "1", "-k", k)
        picture_file = few / "a.png"
        assert "k must be at least 1" in refused("search", copied, picture_file, "-k", k)
    for where in ("nope = 1", "1; drop table images", "1) or (1", "'", "id = ?"):
        assert "condition" in refused("similar", copied, "images", "1", "--where", where)
    assert value(copied, "select count(*) from images") == 24


def test_a_row_that_has_no_embedding(copied: Path) -> None:
    sql(copied, "insert into images (id, path) values (77, 'x')")
    assert "Row 77 of 'images' has no embedding" in refused(
        "similar", copied, "images", "77"
    )


def test_a_search_picture_that_is_none(copied: Path, tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
        refused("search", copied, tmp_path / name)


# The database


@pytest.fixture
def short_of_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "BUSY_SECONDS", 0.2)


@pytest.fixture
def locked(copied: Path) -> Iterator[Path]:
    """A database that another process is writing to."""
    code = (
        "import sqlite3, sys; conn = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "conn.execute('begin exclusive'); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(copied)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        try:
            assert holder.stdout.readline() == "locked\n"
            yield copied
        finally:
            holder.kill()


@pytest.mark.usefixtures("short_of_patience")
@pytest.mark.parametrize(
    "arguments",
    [
        ("embed", "{}"),
        ("similar", "{}", "images", "1"),
        ("search", "{}", "{}"),
        ("status", "{}"),
        ("verify", "{}"),
        ("verify", "{}", "--repair"),
        ("remove", "--yes", "{}"),
    ],
)
def test_a_locked_database(locked: Path, arguments: tuple[str, ...]) -> None:
    error = refused(*(argument.format(locked) for argument in arguments))
    assert "is locked: another process has been writing to it" in error


@pytest.mark.usefixtures("short_of_patience")
def test_a_database_that_is_locked_half_way(
    copied: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(str(copied), isolation_level=None)) as other:

        def progress(now: object) -> None:
            if not other.in_transaction:
                other.execute("begin immediate")

        with pytest.raises(DatabaseError, match="is locked"):
            embed(copied, few, progress=progress)
        other.execute("rollback")
    assert embed(copied, few).failed == 0


def changed_connection(monkeypatch: pytest.MonkeyPatch, change: Callable) -> None:
    connect = db.connect

    def connecting(*arguments: object, **options: object) -> sqlite3.Connection:
        conn = connect(*arguments, **options)
        change(conn)
        return conn

    monkeypatch.setattr(db, "connect", connecting)


def test_a_full_disk(copied: Path, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        (few / f"{number}.png").write_bytes(picture("blue", number))
    pages = value(copied, "pragma page_count")

    def fill(conn: sqlite3.Connection) -> None:
        conn.execute(f"pragma max_page_count = {pages + 25}")

    changed_connection(monkeypatch, fill)
    result = command("embed", copied, few, "--batch-size", "4")
    assert result.exit_code == 1
    assert "the disk is full. Make space, then run this again" in result.output
    monkeypatch.undo()
    assert value(copied, "pragma integrity_check") == "ok"
    assert faults(copied) == []
    stored = value(copied, "select count(*) from images")
    assert 24 < stored < 66
    embed(copied, few)
    assert value(copied, "select count(*) from images") == 66


def test_a_read_only_database(
    copied: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_connection(monkeypatch, lambda conn: conn.execute("pragma query_only = 1"))
    for arguments in (("embed", copied, few), ("remove", "--yes", copied)):
        assert "cannot be written to" in refused(*arguments)
    # Asking needs no writing.
    assert len(answer("similar", copied, "images", "1")) == 10
    assert answer("status", copied)[0]["embedded"] == 24


def test_a_file_without_write_permission(copied: Path, few: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    copied.chmod(0o444)
    assert "cannot be written to" in refused("embed", copied, few)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"this is no database " * 100, "not a SQLite database"),
        (b"short", "SQLite database"),
    ],
)
def test_not_a_database(tmp_path: Path, few: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(content)
    for arguments in (
        ("embed", path, few, "--model", "hog"),
        ("similar", path, "images", "1"),
        ("status", path),
        ("verify", path),
        ("remove", "--yes", path),
    ):
        assert said in refused(*arguments)
    assert path.read_bytes() == content


def test_an_empty_file_is_an_empty_database(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    path.touch()
    assert answer("status", path) == []
    assert "no embeddings" in refused("similar", path, "images", "1")
    assert answer("embed", path, few, "--model", "hog")["embedded"] == 2


def test_a_folder_where_a_database_should_be(tmp_path: Path, few: Path) -> None:
    for arguments in (("embed", tmp_path, few), ("status", tmp_path)):
        result = command(*arguments)
        assert result.exit_code == 2
        assert "is a directory" in result.output
    with pytest.raises(DatabaseError, match="is a folder"), ImageCollection(tmp_path) as c:
        c.similar(1)


def test_a_database_in_a_folder_that_does_not_exist(tmp_path: Path, few: Path) -> None:
    error = refused("embed", tmp_path / "no" / "x.db", few, "--model", "hog")
    assert "check that its folder exists" in error


def test_a_database_that_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    for arguments in (
        ("similar", path, "images", "1"),
        ("status", path),
        ("remove", "--yes", path),
    ):
        assert command(*arguments).exit_code == 2
    error = refused("embed", path, "--table", "works", "--path-column", "file")
    assert "does not exist" in error
    assert not path.exists()


def test_a_database_of_a_newer_version(copied: Path, few: Path) -> None:
    sql(copied, "update _image_similarity_schema set version = 99")
    for arguments in (
        ("embed", copied, few),
        ("similar", copied, "images", "1"),
        ("status", copied),
        ("verify", copied, "--repair"),
        ("remove", "--yes", copied),
    ):
        assert "schema version 99" in refused(*arguments)
        assert "pip install --upgrade" in refused(*arguments)


# The encoder


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.bin"])
def test_garbage_for_weights(tmp_path: Path, few: Path, name: str) -> None:
    pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("torchvision", reason="needs torchvision")
    file = tmp_path / name
    file.write_bytes(b"garbage " * 1000)
    path = tmp_path / "x.db"
    error = refused("embed", path, few, "--model", "resnet18", "--weights", file)
    assert name in error
    assert not path.exists()


def test_an_unknown_model_or_a_hog_with_weights(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    assert "hog" in refused("embed", path, few, "--model", "hog", "--weights", "X")
    refused("embed", path, few, "--model", "hog", "--pooling", "max")
    assert not path.exists()


def test_an_encoder_noted_in_the_database_that_is_none(copied: Path, few: Path) -> None:
    sql(copied, "update _image_similarity_collections set encoder = '{}'")
    for arguments in (
        ("embed", copied, few),
        ("search", copied, few / "a.png"),
        ("status", copied),
    ):
        assert "cannot be understood" in refused(*arguments)
    # What needs no encoder works.
    assert len(answer("similar", copied, "images", "1")) == 10


def test_a_wrong_number_of_dimensions_is_told(copied: Path, few: Path) -> None:
    sql(copied, "update _image_similarity_collections set dimensions = 12")
    for arguments in (
        ("search", copied, few / "a.png"),
        ("similar", copied, "images", "1"),
    ):
        assert "vectors of images are damaged" in refused(*arguments)


def test_sources_that_do_not_fit_the_collection(copied: Path) -> None:
    error = refused("embed", copied, "--table", "images", "--path-column", "name")
    assert "was embedded from folders, not its column 'name'" in error


def test_a_dropped_table(copied: Path, few: Path) -> None:
    sql(copied, "drop table images")
    assert "no table 'images'" in refused("similar", copied, "images", "1")
    assert "no table 'images'" in refused("search", copied, few / "a.png")
    assert answer("status", copied)[0]["stale"] == 24
    assert command("remove", "--yes", copied).exit_code == 0


def test_names_with_a_nul_are_refused() -> None:
    with pytest.raises(DatabaseError, match="NUL"):
        db.quote("a\0b")


def test_a_connection_closes_its_door_to_extensions(copied: Path) -> None:
    with opened(copied) as conn, pytest.raises(sqlite3.OperationalError):
        conn.execute("select load_extension('anything')")
