"""A column of addresses: fetched once, by guarded downloads; shown as thumbnails."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import picture
from core import answer, command, counts, embed, failures, opened, refused, sql, value
from serving import ask, open_datasette
from web_server import web

from datasette_image_similarity import database as db
from datasette_image_similarity.encoders import EncoderSpec
from datasette_image_similarity.errors import ImageError
from datasette_image_similarity.learning.finetune import _embed_arguments
from datasette_image_similarity.sources import Reader
from datasette_image_similarity.web.service import service

IMAGE = "/news/news/-/image/1"
ADDRESSES = {"url_column": "photo", "table": "news"}


class Site:
    """Two pictures, and what was asked for; /slow.png waits, /busy.png is not there yet."""

    def __init__(self) -> None:
        self.pictures = {"/a.png": picture("red", 1), "/b%20b.png?x=1": picture("blue", 2)}
        self.asked: list[str] = []
        self.address = ""
        self.go_on = threading.Event()

    def answer(self, target: str, range: str) -> tuple[int, bytes]:
        self.asked.append(target)
        if target == "/slow.png":
            self.go_on.wait(300)
        if target == "/busy.png":
            return 503, b""
        found = self.pictures.get(target)
        return (404, b"") if found is None else (200, found)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    site = Site()
    with web(site.answer) as site.address:
        yield site
        site.go_on.set()


@pytest.fixture
def news(tmp_path: Path, site: Site) -> Path:
    path = tmp_path / "news.db"
    sql(path, "create table news (id integer primary key, title, photo)")
    for photo in (f"{site.address}/a.png", f" {site.address}/b%20b.png?x=1 "):
        sql(path, "insert into news (photo) values (?)", (photo,))
    return path


def add(path: Path, photo: object) -> None:
    sql(path, "insert into news (photo) values (?)", (photo,))


def test_what_addresses_give_is_embedded(news: Path, site: Site) -> None:
    assert counts(embed(news, **ADDRESSES, allow_private_addresses=True)) == (2, 0, 0, 0, 0)
    assert value(news, "select path from _image_similarity_roots") == "https:"
    assert sql(
        news,
        "select i.path = n.photo from _image_similarity_items i join news n on n.id = i.pk",
    ) == [(1,), (1,)]


def test_it_is_refused_by_default_to_look_into_this_computer(
    news: Path, site: Site
) -> None:
    assert counts(embed(news, **ADDRESSES)) == (0, 0, 0, 2, 0)
    assert site.asked == []
    assert all("--allow-private-addresses" in why for *_, why in failures(news))


def test_what_is_no_address_is_said_so(news: Path, site: Site) -> None:
    cells = ("a.png", "s3://photos/a.png", "file:///etc/passwd", "/etc/passwd", "", None,
             b"x", "ftp://x.org/a.png", "data:image/png;base64,AA", "https://", "   ",
             f"{site.address}/none.png")  # fmt: skip
    for cell in cells:
        add(news, cell)
    summary = embed(news, **ADDRESSES, allow_private_addresses=True)
    assert counts(summary) == (2, 0, 0, len(cells), 0)
    assert set(site.asked) == {"/a.png", "/b%20b.png?x=1", "/none.png"}
    reasons = {pk: why for pk, _, why in failures(news)}
    assert reasons[3] == reasons[4] == "not an address: it should begin with https://"
    assert "404" in reasons[14]


def test_an_address_is_fetched_once(news: Path, site: Site) -> None:
    embed(news, **ADDRESSES, allow_private_addresses=True)
    site.asked.clear()
    add(news, f"{site.address}/none.png")
    summary = embed(news, table="news", allow_private_addresses=True)
    assert counts(summary) == (0, 0, 2, 1, 0)
    assert set(site.asked) == {"/none.png"}
    sql(news, "update news set photo = ? where id = 1", (f"{site.address}/none.png",))
    assert counts(embed(news, table="news", allow_private_addresses=True))[3:] == (2, 1)


def test_a_stopped_run_does_not_wait_for_downloads(news: Path, site: Site) -> None:
    site.pictures["/slow.png"] = picture("green", 3)
    add(news, f"{site.address}/slow.png")
    options = {**ADDRESSES, "allow_private_addresses": True}
    summary = embed(news, **options, stop=lambda: "/slow.png" in site.asked)
    assert not site.go_on.is_set()
    assert (counts(summary), summary.stopped) == ((0, 0, 0, 0, 0), True)
    assert failures(news) == []
    site.go_on.set()
    assert counts(embed(news, **options)) == (3, 0, 0, 0, 0)


def test_what_failed_is_not_downloaded_again_while_watching(news: Path, site: Site) -> None:
    site.pictures["/bad.png"] = b"no picture"
    for name in ("bad.png", "none.png"):
        add(news, f"{site.address}/{name}")
    options = {**ADDRESSES, "allow_private_addresses": True}
    summary = embed(news, **options)
    assert (summary.failed, summary.pause) == (2, 60)
    site.asked.clear()
    skip = [failed for failed, _ in summary.failures]
    assert counts(embed(news, **options, skip=skip)) == (0, 0, 2, 0, 0)
    assert site.asked == []
    assert len(failures(news)) == 2
    sql(news, "update news set photo = ? where id = 3", (f"{site.address}/a.png",))
    assert counts(embed(news, **options, skip=skip)) == (0, 1, 2, 0, 0)


def test_it_is_said_once_that_downloads_cannot_be_kept(
    news: Path, site: Site, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    options = ("--table", "news", "--url-column", "photo", "--allow-private-addresses")
    result = command("embed", news, *options, "--model", "hog")
    assert result.output.count("Downloads were not kept: ") == 1
    assert "2 embedded" in result.output


def test_without_patience_a_busy_server_is_asked_once(site: Site) -> None:
    with Reader(allow_private=True, patience=0) as reader:
        for one in (reader, pickle.loads(pickle.dumps(reader))):
            site.asked.clear()
            with pytest.raises(ImageError, match="503"):
                one.read(f"{site.address}/busy.png", 1000)
            assert site.asked == ["/busy.png"]


def test_force_asks_whether_it_is_still_the_same(news: Path, site: Site) -> None:
    options = {"table": "news", "allow_private_addresses": True}
    embed(news, **ADDRESSES, allow_private_addresses=True)
    site.pictures["/a.png"] = picture("green", 1)
    before = value(news, "select sha256 from _image_similarity_items where pk = 1")
    assert embed(news, **options, force=True).embedded == 2
    assert value(news, "select sha256 from _image_similarity_items where pk = 1") != before


def test_a_stranger_s_addresses_are_not_fetched(
    news: Path, site: Site, tmp_path: Path
) -> None:
    embed(news, **ADDRESSES, allow_private_addresses=True)
    copy = tmp_path / "copy.db"
    copy.write_bytes(news.read_bytes())
    site.asked.clear()
    add(copy, f"{site.address}/new.png")
    assert "--url-column" in refused("embed", copy, "--table", "news")
    assert site.asked == []


def test_the_command_line(news: Path, site: Site, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(f"id,photo\n1,{site.address}/a.png\n")
    options = ("--table", "news", "--url-column", "photo", "--allow-private-addresses")
    found = answer(
        *("embed", tmp_path / "csv.db", "--csv", tmp_path / "new.csv", "--model", "hog"),
        *options,
    )
    assert found["embedded"] == 1
    for wrong in (("--root", tmp_path), ("--path-column", "photo"), (tmp_path,)):
        result = command("embed", news, *wrong, *options, "--model", "hog")
        assert result.exit_code in (1, 2), result.output
    result = command("embed", news, *options[:-1], "--model", "hog")
    assert "0 embedded" in result.output
    assert "fetch nothing unless configured" not in result.output
    (tmp_path / "other.db").write_bytes(news.read_bytes())
    result = command("embed", tmp_path / "other.db", *options, "--model", "hog")
    assert "fetch nothing unless configured" in result.output
    command("embed", news, *options, "--model", "hog")
    out = tmp_path / "out.db"
    found = answer("embed", news, "--output", out, *options, "--model", "hog")
    assert found["embedded"] + found["reused"] == 2
    assert answer("embed", news, "--output", out, "--table", "news")["unchanged"] == 2


def test_in_a_column_of_paths_an_address_names_the_option(news: Path, site: Site) -> None:
    embed(news, table="news", path_column="photo")
    assert "--url-column" in failures(news)[0][2]


def test_the_command_that_uses_new_weights_names_the_column(news: Path, site: Site) -> None:
    embed(news, **ADDRESSES, allow_private_addresses=True)
    with opened(news) as conn:
        collection = db.find_collection(conn, "news")
        spec = EncoderSpec.from_json(collection.encoder)
        told = " ".join(_embed_arguments(conn, collection, spec, Path("w.safetensors")))
    assert "--url-column photo" in told
    assert "--root" not in told


# Pages


@pytest.mark.asyncio
async def test_pages_fetch_nothing_unless_configured(news: Path, site: Site) -> None:
    embed(news, **ADDRESSES, allow_private_addresses=True)
    site.asked.clear()
    large = await ask(open_datasette(news), IMAGE)
    assert large.headers["content-type"] == "image/webp"
    assert site.asked == []
    datasette = open_datasette(news, plugin={"roots": ["https:"]})
    large = await ask(datasette, IMAGE)  # an address of this computer, which is not public
    assert (large.headers["content-type"], site.asked) == ("image/webp", [])
    await datasette.invoke_startup()
    service(datasette)._reader = Reader(allow_private=True)
    large = await ask(datasette, IMAGE)
    assert (large.headers["content-type"], site.asked) == ("image/jpeg", ["/a.png"])
