"""Pictures that stand in a column as `data:` URLs."""

from __future__ import annotations

import base64
import io
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import picture
from core import answer, command, contents, embed, failures, faults, sql, value
from serving import ask, ask_json, open_datasette

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.data_urls import picture_bytes
from datasette_image_similarity.errors import ImageError

PNG = picture("red", 1)
COLUMNS = [{"path_column": "file"}, {"url_column": "file"}, {"blob_column": "file"}]


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A table of four pictures as `data:` URLs."""
    path = tmp_path / "some.db"
    sql(path, "create table t (id integer primary key, file text, title text)")
    for number in range(4):
        data = picture("red", number)
        sql(path, "insert into t (file) values (?)", (url(data),))
    return path


@pytest.mark.parametrize(
    "text",
    [
        url(PNG),
        url(PNG).replace("data:", "DATA:", 1),
        f" {url(PNG)}\n",
        url(PNG, "image/png;charset=utf-8"),
        url(PNG, ""),
        url(PNG).replace(";base64", "; base64"),
        url(PNG).rstrip("="),
        f"data:;base64,{base64.urlsafe_b64encode(PNG).decode()}",
        f"data:;base64,{quote(base64.b64encode(PNG), safe='')}",
        "data:image/png;base64," + base64.encodebytes(PNG).decode(),
        f"data:image/png,{quote(PNG, safe='')}",
    ],
)
def test_decoded(text: str) -> None:
    assert picture_bytes(text) == PNG


@pytest.mark.parametrize("text", ["data:image/png;base64", "data:;base64,####", "data:a"])
def test_what_cannot_be_decoded(text: str) -> None:
    with pytest.raises(ImageError, match="a data: URL"):
        picture_bytes(text)


@pytest.mark.parametrize("column", COLUMNS)
def test_embedded_like_a_blob(path: Path, column: dict) -> None:
    assert embed(path, table="t", **column).embedded == 4
    again = embed(path, table="t", prune=True, **column)
    assert (again.unchanged, again.embedded, again.removed) == (4, 0, 0)
    assert faults(path) == []
    assert len(answer("similar", path, "t", 1)) == 3
    blobs = path.with_name("blobs.db")
    rows = [{"id": n + 1, "file": picture("red", n)} for n in range(4)]
    embed(blobs, rows, "t", blob_column="file")
    assert contents(path, "t")["vectors"] == contents(blobs, "t")["vectors"]


@pytest.mark.parametrize("column", COLUMNS)
def test_nothing_of_ours_holds_one_whole(path: Path, column: dict) -> None:
    sql(path, "insert into t (file) values (?)", (url(b"no picture" * 9000),))
    sql(path, "insert into t (file) values (?)", ("data:;base64,####",))
    assert embed(path, table="t", **column).failed == 2
    for table in ("items", "failures"):
        found = sql(path, f"select * from _image_similarity_{table}")
        assert found
        assert all(len(str(value)) < 300 for row in found for value in row)
    said = command("embed", path, "--table", "t").output
    assert max(map(len, said.splitlines())) < 250
    reasons = [reason for *_, reason in failures(path)]
    assert reasons[1].startswith("a data: URL that is not")


@pytest.mark.parametrize("column", COLUMNS)
def test_one_that_changed_is_not_answered_with_the_old_one(
    path: Path, column: dict
) -> None:
    embed(path, table="t", **column)
    cell = value(path, "select file from t where id = 2")
    same_length = cell[:-40] + ("A" * 8) + cell[-32:]
    sql(path, "update t set file = ? where id = 2", (same_length,))
    sql(path, "update t set file = ? where id = 3", (url(picture("blue")),))
    assert [hit["pk"] for hit in answer("similar", path, "t", 1)] == ["4"]
    done = embed(path, table="t", **column)
    assert done.embedded + done.failed == 2  # the damaged one may be whole enough
    assert {hit["pk"] for hit in answer("similar", path, "t", 1)} >= {"3", "4"}


@pytest.mark.parametrize("column", COLUMNS)
async def test_pages_show_them(path: Path, column: dict) -> None:
    embed(path, table="t", **column)
    sql(path, "delete from _image_similarity_thumbnails where id = 2")
    site = open_datasette(path, plugin={"originals": True})
    for page in ("image/1", "thumbnail/1", "thumbnail/2"):
        shown = await ask(site, f"/some/t/-/{page}")
        assert (shown.status_code, shown.headers["content-type"][:6]) == (200, "image/")
    cell = value(path, "select file from t where id = 1")
    for page in ("/some/t", "/some/t/-/similar?_like=2", "/some/t/-/map"):
        text = (await ask(site, page)).text
        assert cell not in text, page
    found = await ask(site, "/some/t/-/similar.zip?_like=2")
    archive = zipfile.ZipFile(io.BytesIO(found.content))
    assert picture("red", 0) in [archive.read(name) for name in archive.namelist()]
    assert all(len(name) < 60 for name in archive.namelist())
    assert (await ask_json(site, "/some/t/-/similar.json?_like=2"))["total"] == 3


def test_beside_paths(path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("green"))
    sql(path, "insert into t (file) values ('A.png'), ('data:none')")
    done = embed(path, table="t", path_column="file")
    assert (done.embedded, done.failed) == (5, 1)


def test_a_crop_and_a_head_read_them(path: Path) -> None:
    from datasette_image_similarity.images import Crop

    embed(path, table="t", path_column="file")
    with ImageCollection(path, "t") as collection:
        assert len(collection.similar(1, crop=Crop.parse("0,0,0.5,0.5"))) == 3


def test_in_a_csv(tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text(f'file,n\n"{url(PNG)}",1\n"{url(picture())}",2\n')
    path = tmp_path / "some.db"
    options = ("--table", "t", "--path-column", "file", "--model", "hog")
    for _ in range(2):
        done = answer("embed", path, "--csv", tmp_path / "some.csv", *options)
        assert (done["failed"], done["notes"]) == (0, [])
    assert done["unchanged"] == 2


def test_too_large_a_picture_is_refused(path: Path) -> None:
    from dataclasses import replace

    from datasette_image_similarity.images import LOCAL_FILES

    limits = replace(LOCAL_FILES, max_bytes=100)
    assert embed(path, table="t", path_column="file", limits=limits).failed == 4
    assert "more than the limit" in failures(path)[0][2]


@pytest.mark.parametrize("column", COLUMNS)
def test_duplicates_among_them(path: Path, column: dict) -> None:
    from datasette_image_similarity.explore.facts import facts_of

    sql(path, "insert into t (file) select file from t where id = 1")
    embed(path, table="t", **column)
    answer("duplicates", path, "t")
    with ImageCollection(path, "t") as collection:
        facts = facts_of(*collection._open()[::-1], [1, 2])
    assert {one.format for one in facts.values()} == {"PNG"}
