"""Pictures to take along: zip files and contact sheets, on the web and by command."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import picture
from core import HOG, answer, command, refused, sql
from datasette.app import Datasette
from datasette.utils.sqlite import sqlite3
from serving import ROOT, ask, change, links, open_datasette

from datasette_image_similarity import ImageCollection, trust
from datasette_image_similarity.errors import CollectionError
from datasette_image_similarity.web.service import service

ORIGINALS = {"originals": True}
TABLE = "/gallery/images/-"
NASTY = '<img src=x onerror="alert(1)">&\' "\n\x07'
NAME = re.compile(r"\d{3,}-[\w.-]+\.[a-z0-9]+")


async def unzipped(
    site: Datasette, path: str, **options: Any
) -> tuple[zipfile.ZipFile, list[dict[str, str]]]:
    """A zip file that a page answers, and its manifest."""
    response = await ask(site, path, **options)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/zip"
    assert int(response.headers["content-length"]) == len(response.content)
    return read_zip(response.content)


def read_zip(data: bytes) -> tuple[zipfile.ZipFile, list[dict[str, str]]]:
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.testzip() is None
    names = archive.namelist()
    assert len(set(names)) == len(names)
    for info in archive.infolist():
        assert info.compress_type == zipfile.ZIP_STORED
        assert info.filename == "manifest.csv" or NAME.fullmatch(info.filename)
    manifest = list(csv.DictReader(io.StringIO(archive.read("manifest.csv").decode())))
    assert [row["file"] for row in manifest if row["file"]] == names[:-1]
    return archive, manifest


async def test_a_zip_holds_the_originals(gallery: Path, photos: Path) -> None:
    site = open_datasette(gallery, plugin=ORIGINALS)
    archive, manifest = await unzipped(site, f"{TABLE}/similar.zip?_like=1&_size=5&_next=2")
    assert [row["rank"] for row in manifest] == ["3", "4", "5", "6", "7"]
    assert {row["holds"] for row in manifest} == {"original"}
    hits = (await ask(site, f"{TABLE}/similar.json?_like=1&_size=5&_next=2")).json()["rows"]
    for row, hit in zip(manifest, hits, strict=True):
        data = archive.read(row["file"])
        assert data == (photos / hit["row"]["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert (row["pk"], float(row["score"])) == (hit["pk"], hit["score"])
        assert row["file"].endswith(f"-{Path(hit['row']['path']).name}")


async def test_what_passes_a_filter_without_a_question(gallery: Path) -> None:
    site = open_datasette(gallery)
    _, manifest = await unzipped(site, f"{TABLE}/export.zip?label=red")
    assert len(manifest) == 8
    assert all(row["caption"].startswith("red-") for row in manifest)
    assert {row["score"] for row in manifest} == {""}
    _, manifest = await unzipped(site, f"{TABLE}/export.zip?label=red&_size=3&_next=6")
    assert [row["rank"] for row in manifest] == ["7", "8"]
    _, manifest = await unzipped(site, f"{TABLE}/export.zip?label=mauve")
    assert manifest == []
    for wrong in ("colour=red", "_size=0", "_next=-1", "id__gt=x&id__in=["):
        for format in ("zip", "html"):
            response = await ask(site, f"{TABLE}/export.{format}?{wrong}")
            assert response.status_code == 400, wrong


async def test_a_contact_sheet_needs_nothing_else(gallery: Path) -> None:
    site = open_datasette(gallery)
    response = await ask(site, f"{TABLE}/similar.html?_like=1&_like=2&label=red&_size=4")
    assert response.status_code == 200
    assert response.headers["content-disposition"].endswith('"similar-images.html"')
    page = response.text
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2 + 4
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert "<script" not in page
    assert "<link" not in page
    assert "url(" not in page
    assert "label = &#34;red&#34;" in page
    assert "4 of 8 pictures" in page
    asked = [link for link in links(page) if "similar?" in link]
    assert asked == [
        "http://localhost/gallery/images/-/similar?_like=1&_like=2&label=red&_size=4"
    ]
    everything = (await ask(site, f"{TABLE}/export.html?label=red")).text
    assert everything.count("<img") == 8


async def test_hostile_captions_and_names(gallery: Path, photos: Path) -> None:
    names = ["../../evil", "..\\..\\evil", "C:\\con", "/etc/passwd", ".", "é" * 300]
    with closing(sqlite3.connect(gallery)) as conn, conn:
        conn.execute("alter table images add column caption text")
        conn.execute("update images set caption = ?", (NASTY,))
        for number, name in enumerate(names, 1):
            conn.execute("update images set caption = ? where id = ?", (name, number))
        # Paths that lead elsewhere: the files of others are not given out.
        outside = photos.parent / "outside.png"
        outside.write_bytes(picture("blue", 99))
        for number, path in ((7, "../outside.png"), (8, str(outside)), (9, "<b>&.png")):
            conn.execute("update images set path = ? where id = ?", (path, number))
            conn.execute(
                "update _image_similarity_items set path = ?, size = ?, sha256 = ? "
                "where pk = ?",
                (path, outside.stat().st_size, hash_of(outside), number),
            )
    site = open_datasette(gallery, plugin={"caption": "caption", **ORIGINALS})
    archive, manifest = await unzipped(site, f"{TABLE}/export.zip")
    for row in manifest:
        assert ".." not in row["file"]
        assert "evil" not in row["file"]
    by_pk = {row["pk"]: row for row in manifest}
    for pk in ("7", "8", "9"):
        assert by_pk[pk]["holds"] == "thumbnail"
        assert archive.read(by_pk[pk]["file"]) != outside.read_bytes()
    assert by_pk["10"]["caption"] == NASTY
    page = (await ask(site, f"{TABLE}/export.html")).text
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


async def test_names_when_there_is_no_path(tmp_path: Path) -> None:
    """Pictures in a column, named by what is hostile; a key of several parts."""
    path = tmp_path / "blobs.db"
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute(
            "create table t (a text, b text, title text, pic blob, primary key (a, b))"
        )
        for number, title in enumerate(["../x", "a/b\\c", "", "\u202etxt.exe", "日本 の"]):
            row = ("k,/<", str(number), title, picture("red", number))
            conn.execute("insert into t values (?, ?, ?, ?)", row)
    with ImageCollection(path, "t") as collection:
        collection.embed(blob_column="pic", encoder=HOG)
    site = open_datasette(path, plugin=ORIGINALS)
    archive, manifest = await unzipped(site, "/blobs/t/-/export.zip")
    assert [row["holds"] for row in manifest] == ["original"] * 5
    assert manifest[0]["file"] == "001-x.png"
    assert manifest[4]["file"] == "005-日本-の.png"
    for number, row in enumerate(manifest):
        assert archive.read(row["file"]) == picture("red", number)
    _, manifest = await unzipped(site, "/blobs/t/-/similar.zip?_like=k~2C~2F~3C,0&_size=9")
    assert len(manifest) == 4
    # A picture of the same length that was never embedded does not go out.
    other = bytearray(picture("red", 3))
    other[-1] ^= 1
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("update t set pic = ? where b = '3'", (bytes(other),))
    _, manifest = await unzipped(site, "/blobs/t/-/export.zip")
    assert manifest[3]["holds"] == "thumbnail"
    assert "changed" in manifest[3]["why"]


async def test_without_a_trusted_root_thumbnails_alone(
    gallery: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere" / "gallery.db"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(gallery.read_bytes())
    site = open_datasette(elsewhere)
    archive, manifest = await unzipped(site, f"{TABLE}/export.zip")
    assert {row["holds"] for row in manifest} == {"thumbnail"}
    assert {Path(row["file"]).suffix for row in manifest} == {".webp"}
    assert all(archive.read(row["file"])[8:12] == b"WEBP" for row in manifest)
    output = command("export", elsewhere, "--to", tmp_path / "out.zip").output
    assert "24 thumbnails" in output


async def test_originals_are_kept_back_unless_configured(gallery: Path) -> None:
    site = open_datasette(gallery)
    archive, manifest = await unzipped(site, f"{TABLE}/export.zip")
    assert {row["holds"] for row in manifest} == {"picture"}
    shown = (await ask(site, f"{TABLE}/image/1")).content
    assert archive.read(manifest[0]["file"]) == shown
    assert {Path(row["file"]).suffix for row in manifest} == {".jpg"}


async def test_files_that_changed_or_went(gallery: Path, photos: Path) -> None:
    site = open_datasette(gallery, plugin=ORIGINALS)
    rows = dict(sql(gallery, "select id, path from images"))
    (photos / rows[1]).unlink()
    (photos / rows[2]).write_bytes(b"not what it was")
    same_size = bytearray((photos / rows[3]).read_bytes())
    same_size[-1] ^= 1
    (photos / rows[3]).write_bytes(bytes(same_size))
    change(gallery, "delete from images where id = 4")
    change(gallery, "delete from _image_similarity_thumbnails where id in (1, 2)")
    _, manifest = await unzipped(site, f"{TABLE}/export.zip")
    by_pk = {row["pk"]: row for row in manifest}
    assert by_pk["1"]["holds"] == "nothing"
    assert by_pk["2"]["holds"] == "nothing"
    assert by_pk["3"]["holds"] == "thumbnail"
    assert "4" not in by_pk
    assert by_pk["5"]["holds"] == "original"
    page = (await ask(site, f"{TABLE}/export.html")).text
    assert page.count("no picture") == 2


async def test_thumbnails_are_made_where_none_is_stored(gallery: Path) -> None:
    change(gallery, "delete from _image_similarity_thumbnails")
    site = open_datasette(gallery)
    page = (await ask(site, f"{TABLE}/export.html?label=red")).text
    assert page.count('src="data:image/webp') == 8


async def test_limits(gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = open_datasette(gallery, plugin=ORIGINALS)
    monkeypatch.setattr("datasette_image_similarity.web.exports.PICTURES", 10)
    for path in (
        "export.zip",
        "export.html",
        "similar.zip?_like=1",
        "similar.html?_like=1",
    ):
        response = await ask(site, f"{TABLE}/{path}")
        assert response.status_code == 413, path
        assert "up to 10" in response.text
    assert (await ask(site, f"{TABLE}/export.zip?_size=10")).status_code == 200
    monkeypatch.setattr("datasette_image_similarity.web.exports.BYTES", 1000)
    response = await ask(site, f"{TABLE}/export.zip?_size=10")
    assert response.status_code == 413
    assert (await ask(site, f"{TABLE}/export.html?_size=10")).status_code == 200
    monkeypatch.setattr(service(site), "exporting", 2)
    response = await ask(site, f"{TABLE}/export.html?_size=10")
    assert response.status_code == 429
    assert response.headers["retry-after"]


async def test_it_ends_when_it_takes_too_long(
    gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasette_image_similarity.web.exports.SECONDS", -1)
    site = open_datasette(gallery)
    for path in ("export.zip", "export.html"):
        assert (await ask(site, f"{TABLE}/{path}")).status_code == 503
    assert service(site).exporting == 0


async def test_exports_are_counted_down(
    gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = open_datasette(gallery)
    await ask(site, f"{TABLE}/export.zip")
    assert service(site).exporting == 0

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasette_image_similarity.web.exports.write_zip", fails)
    response = await ask(site, f"{TABLE}/export.zip")
    assert response.status_code == 503
    assert "No space left" in response.text
    assert service(site).exporting == 0


@pytest.mark.parametrize(
    "page",
    [
        *("export.zip", "export.html", "export.zip?label=red"),
        *("similar.zip?_like=1", "similar.html?_like=1"),
    ],
)
async def test_a_denied_table_is_not_exported(page: str, copied: Path) -> None:
    private = {"allow": {"id": "root"}}
    for config in (private, {"tables": {"images": private}}):
        site = open_datasette(copied, config={"databases": {"gallery": config}})
        assert (await ask(site, f"{TABLE}/{page}")).status_code == 403
        assert (await ask(site, f"{TABLE}/{page}", ROOT)).status_code == 200


async def test_an_immutable_database_is_exported(gallery: Path) -> None:
    site = open_datasette(immutables=[str(gallery)])
    for page in ("export.zip", "export.html", "similar.zip?_like=1"):
        assert (await ask(site, f"{TABLE}/{page}")).status_code == 200


async def test_without_sql_threads(gallery: Path) -> None:
    site = open_datasette(gallery, settings={"num_sql_threads": 0})
    _, manifest = await unzipped(site, f"{TABLE}/export.zip")
    assert len(manifest) == 24


async def test_pages_link_to_them(copied: Path) -> None:
    site = open_datasette(copied)
    page = (await ask(site, f"{TABLE}/similar?_like=1&label=red")).text
    for format in ("zip", "html"):
        link = f"{TABLE}/similar.{format}?_like=1&label=red"
        assert link in links(page)
    page = (await ask(site, "/gallery/images?label=red", ROOT)).text
    for format in ("zip", "html"):
        assert f"{TABLE}/export.{format}?label=red" in links(page)


@pytest.mark.parametrize(
    "planted",
    [
        "update _image_similarity_items set size = 'x', sha256 = x'ff', path = path",
        "update _image_similarity_items set size = -5",
        "update _image_similarity_roots set path = x'00ff'",
        "update _image_similarity_roots set path = '/'",
        "update _image_similarity_thumbnails set webp = 'text'",
        "update _image_similarity_thumbnails set webp = zeroblob(9000000)",
        "update images set name = x'ff00'",
    ],
)
async def test_what_a_stranger_wrote(planted: str, copied: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "far" / "gallery.db"
    stranger.parent.mkdir()
    stranger.write_bytes(copied.read_bytes())
    change(stranger, planted)
    site = open_datasette(stranger)
    _, manifest = await unzipped(site, f"{TABLE}/export.zip")
    assert "original" not in {row["holds"] for row in manifest}
    response = await ask(site, f"{TABLE}/export.html")
    assert response.status_code == 200
    assert len(response.content) < 2_000_000


def test_the_command(gallery: Path, tmp_path: Path) -> None:
    out = tmp_path / "red.zip"
    where = ("--where", "label = 'red'")
    found = answer("export", gallery, "--to", out, *where)
    assert found == {"originals": 8, "thumbnails": 0, "missing": 0}
    _, manifest = read_zip(out.read_bytes())
    assert len(manifest) == 8
    out = tmp_path / "like.html"
    found = answer("export", gallery, "images", "--to", out, "--like", "1", "-k", "5")
    assert found == {"originals": 0, "thumbnails": 5, "missing": 0}
    assert "like 1" in out.read_text()
    assert "html" in refused("export", gallery, "--to", tmp_path / "x.txt")
    assert "no column" in refused(
        "export", gallery, "--to", tmp_path / "x.zip", "--caption", "nope"
    )
    assert "nope" in refused(
        "export", gallery, "--to", tmp_path / "x.zip", "--where", "nope"
    )
    refused("export", gallery, "--to", tmp_path / "no" / "x.zip")
    assert not (tmp_path / "x.zip").exists()
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_half_an_export_is_none(
    gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.zip"
    out.write_text("as before")

    def full(*_: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasette_image_similarity.explore.exports.stored_thumbnail", full)
    monkeypatch.setattr(trust, "trusted_roots", lambda _: [])
    with (
        ImageCollection(gallery) as collection,
        pytest.raises(CollectionError, match="No space left"),
    ):
        collection.export(out)
    assert out.read_text() == "as before"
    assert sorted(file.name for file in tmp_path.glob("*out.zip*")) == ["out.zip"]


def test_from_python(gallery: Path, tmp_path: Path) -> None:
    with ImageCollection(gallery) as collection:
        hits = collection.similar(1, 3)
        done = collection.export(tmp_path / "like.zip", hits, caption="label")
    assert done.originals == 3
    _, manifest = read_zip((tmp_path / "like.zip").read_bytes())
    assert {row["caption"] for row in manifest} <= {"red", "green", "blue"}


async def test_a_table_of_a_name_that_queries_might_use(
    tmp_path: Path, photos: Path
) -> None:
    """Filtered in every way there is: by a search, for a map, clusters and exports."""
    path = tmp_path / "own.db"
    with ImageCollection(path, "passing") as collection:
        collection.embed(photos, encoder=HOG, label_from_folder=True)
        assert len(collection.similar(1, 20, where="label = 'red'")) == 8
        collection.map(method="pca")
        done = collection.export(tmp_path / "red.html", where="label = 'red'")
        assert done.thumbnails == 8
    site = open_datasette(path)
    for page in ("map.json", "similar.json", "clusters.json", "export.html"):
        response = await ask(site, f"/own/passing/-/{page}?label=red&_like=1")
        assert response.status_code == 200, response.text
