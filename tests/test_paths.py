"""Paths in a column that mean a file without naming it as it is called."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from conftest import picture
from core import answer, embed, failures, faults, sql, value
from serving import ask, open_datasette

from datasette_image_similarity.errors import ImageError
from datasette_image_similarity.roots import WebRoot
from datasette_image_similarity.sources import locate


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of pictures with all kinds of names."""
    folder = tmp_path / "root"
    names = (
        *("red/Apple.JPG", "red/1234.png", "red/50% off.png", "red/a b.png", "7.png"),
        normalize("NFD", "café/Käse.png"),
        normalize("NFC", "naïve.png"),
    )
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture("red", number))
    (folder / "7.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("red/apple.jpg", "red/Apple.JPG"),
        ("RED/APPLE.JPG", "red/Apple.JPG"),
        (" red/Apple.JPG ", "red/Apple.JPG"),
        ("red / Apple.JPG\n", "red/Apple.JPG"),
        ("/red/Apple.JPG", "red/Apple.JPG"),
        ("./red//Apple.JPG", "red/Apple.JPG"),
        ("red\\Apple.JPG", "red/Apple.JPG"),
        (".\\red\\apple.jpg", "red/Apple.JPG"),
        ("C:\\Users\\me\\red\\Apple.JPG", "red/Apple.JPG"),
        ("d:/pictures/red/apple.jpg", "red/Apple.JPG"),
        ("\\\\server\\share\\red\\Apple.JPG", "red/Apple.JPG"),
        ("file:///red/Apple.JPG", "red/Apple.JPG"),
        ("file://localhost/red/a%20b.png", "red/a b.png"),
        ("file:///C:/pictures/red/a%20b.png", "red/a b.png"),
        ("red/a%20b.png", "red/a b.png"),
        ("red/50%25%20off.png", "red/50% off.png"),
        ("red/50% off.png", "red/50% off.png"),
        ("red/1234", "red/1234.png"),
        ("7", "7.png"),
        ("7.0", "7.png"),
        (normalize("NFC", "café/Käse.png"), normalize("NFD", "café/Käse.png")),
        (normalize("NFC", "Café/käse"), normalize("NFD", "café/Käse.png")),
        (normalize("NFD", "naïve.png"), normalize("NFC", "naïve.png")),
        ("na%C3%AFve.png", normalize("NFC", "naïve.png")),
        ("ROOT/red/Apple.JPG", "red/Apple.JPG"),
        ("/ROOT/red/apple.jpg", "red/Apple.JPG"),
    ],
)
def test_one_file_fits(root: Path, path: str, name: str) -> None:
    assert locate(root, path.replace("ROOT", root.name)) == root / name


def test_as_it_stands_comes_first(root: Path) -> None:
    for name in ("red/a%20b.png", "red/apple.jpg", "red/1234", " 7.png"):
        (root / name).write_bytes(picture("blue"))
        assert locate(root, name) == root / name


@pytest.mark.parametrize(
    ("path", "other"),
    [("red/APPLE.jpg", "red/apple.jpg"), ("7", "7.jpg"), ("C:\\red\\7.png", "red/7.png")],
)
def test_several_fit(root: Path, path: str, other: str) -> None:
    assert locate(root, path)
    (root / other).write_bytes(picture("blue"))
    with pytest.raises(ImageError, match=f"several files: .*{other}|{other}, "):
        locate(root, path)


def test_links_to_one_file_are_one(root: Path) -> None:
    (root / "red" / "APPLE.jpg").symlink_to("Apple.JPG")
    assert locate(root, "red/apple.JPG") == root / "red/Apple.JPG"


@pytest.mark.parametrize(
    "path",
    [
        *("../secret.png", "red/../../secret.png", "/etc/passwd", "C:\\..\\secret.png"),
        *("LINKED/secret.png", "secret", "out.PNG", "..\\secret.png", "%2e%2e/secret.png"),
        *("file:///etc/passwd", "https://x.org/7.png", "", "  ", "7\0.png", "."),
    ],
)
def test_nothing_outside_the_root_is_found(root: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    (root / "linked").symlink_to(tmp_path)
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ImageError):
        locate(root, path)


def listed(path: Path, root: Path, *cells: object, kind: str = "") -> Any:
    """A table with these cells, embedded."""
    sql(path, f"create table t (id integer primary key, file {kind})")
    for cell in cells:
        sql(path, "insert into t (file) values (?)", (cell,))
    return embed(path, table="t", path_column="file", root=root)


@pytest.mark.parametrize("kind", ["", "text", "integer", "real", "numeric"])
def test_numbers_are_paths(tmp_path: Path, root: Path, kind: str) -> None:
    path = tmp_path / "some.db"
    (root / "12.5.png").write_bytes(picture("green"))
    assert listed(path, root, 7, 12.5, kind=kind).embedded == 2
    again = embed(path, table="t", path_column="file", root=root)
    assert (again.unchanged, again.embedded, again.removed) == (2, 0, 0)
    assert faults(path) == []
    assert len(answer("similar", path, "t", 1)) == 1


def test_later_runs_change_nothing(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "some.db"
    cells = ("RED/apple.jpg", "red\\1234", " 7.png ", "/naïve.png")
    assert listed(path, root, *cells).embedded == 4
    stored = sql(path, "select path from _image_similarity_items order by pk")
    assert [row[0] for row in stored] == [*cells]
    again = embed(path, table="t", path_column="file", root=root, prune=True)
    assert (again.unchanged, again.embedded, again.removed) == (4, 0, 0)
    assert faults(path) == []


async def test_pages_show_the_same_file(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "some.db"
    listed(path, root, "RED/apple.jpg", " 7.png")
    sql(path, "delete from _image_similarity_thumbnails")
    for page in ("/some/t/-/image/1", "/some/t/-/thumbnail/2"):
        shown = await ask(open_datasette(path), page)
        assert (shown.status_code, shown.headers["content-type"][:6]) == (200, "image/")


def test_a_missing_file_names_the_root_and_the_nearest_name(
    tmp_path: Path, root: Path
) -> None:
    path = tmp_path / "some.db"
    listed(
        path,
        root,
        "red/Aple.jpg",
        "rad/1243.png",
        "zzz",
        "/red/nothing-like-it.gif",
        "red/x.jpg",
        "/red/Aple.jpg",
    )
    said = [reason for _, _, reason in failures(path)]
    assert all(f"no such file in the root folder {root}" in one for one in said[:3])
    assert said[0].endswith("the nearest name there is red/Apple.JPG")
    assert said[1].endswith("the nearest name there is red/1234.png")
    assert said[2].endswith(str(root))
    assert said[3] == f"outside the root folder {root}"
    assert said[4].endswith(str(root))  # an ending makes no name near
    assert said[5].endswith("the nearest name there is red/Apple.JPG")


async def test_visitors_are_not_told_of_folders(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "some.db"
    listed(path, root, "7.png", "red/Aple.jpg")
    page = await ask(open_datasette(path), "/some/t/-/similar.json?_like=2")
    assert page.status_code == 404
    assert "no such file" in page.text
    assert str(root) not in page.text
    assert "Apple" not in page.text


def test_a_folder_that_changes_is_listed_again(root: Path) -> None:
    with pytest.raises(ImageError):
        locate(root, "NEW.png")
    (root / "new.png").write_bytes(picture())
    os.utime(root, ns=(1, 1))
    assert locate(root, "NEW.png") == root / "new.png"


def test_csv_paths_are_text(tmp_path: Path, root: Path) -> None:
    (root / "0012").write_bytes(picture("blue"))
    (root / "some.csv").write_text("id,file\n1,7\n2,0012\n3,1234\n")
    path = tmp_path / "some.db"
    options = ("--table", "t", "--path-column", "file", "--model", "hog")
    done = answer("embed", path, "--csv", root / "some.csv", *options)
    assert (done["embedded"], done["failed"]) == (2, 1)
    assert value(path, "select group_concat(typeof(file)) from t") == "text,text,text"


@pytest.mark.parametrize("start", ["C:\\", "//", "a"])
def test_a_path_of_a_thousand_parts_takes_no_time(root: Path, start: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ImageError):
        locate(root, start + "red\\" * 100_000)
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("cell", "address"),
    [
        ("//host.org/a.png", "https://host.org/a.png"),
        (" //host.org/a.png\n", "https://host.org/a.png"),
        (" https://host.org/a.png ", "https://host.org/a.png"),
    ],
)
def test_addresses(cell: str, address: str) -> None:
    assert WebRoot().locate(cell) == address
