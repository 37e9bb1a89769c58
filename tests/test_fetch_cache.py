"""Which downloads are kept, and for how long."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from fetching import MB, PICTURE

from datasette_image_similarity.errors import ImageError
from datasette_image_similarity.fetch import Refused
from datasette_image_similarity.fetch.cache import default_folder

pytest_plugins = ["fetching_fixtures"]


def entries(tmp_path: Path) -> list[Path]:
    return sorted(file for file in (tmp_path / "cache").rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"cache_control": "public, max-age=500"}, 500),
        ({"cache_control": "max-age=500", "age": "200"}, 300),
        (
            {"cache_control": 'max-age="500"', "expires": "Thu, 01 Jan 1970 00:00:00 GMT"},
            500,
        ),
        ({"cache_control": "max-age=nonsense"}, 0),
        ({"cache_control": "no-cache, max-age=500"}, 0),
        ({"cache_control": "max-age=500", "vary": "*"}, 0),
        ({"expires": "0"}, 0),
        ({"last_modified": "Thu, 01 Jan 1970 00:00:00 GMT"}, 7 * 86400),
        ({"last_modified": "nonsense"}, 3600),
        ({}, 3600),
    ],
)
def test_what_is_fresh_is_not_asked_for(site, make, clock, headers, seconds):
    url = site.serve(**headers)
    make().read(url, MB)
    clock.now += max(0, seconds - 5)
    assert make().read(url, MB) == PICTURE
    assert len(site.requests) == (1 if seconds else 2)
    clock.now += 10
    assert make().read(url, MB) == PICTURE
    assert len(site.requests) == (2 if seconds else 3)


def test_expires_counts_from_the_servers_own_clock(site, make, clock):
    """Its clock is three hours slow."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(200)
        handler.send_header("Date", formatdate(clock.now - 10_800, usegmt=True))
        handler.send_header("Expires", formatdate(clock.now - 10_800 + 900, usegmt=True))
        handler.send_header("Content-Length", str(len(PICTURE)))
        handler.end_headers()
        handler.wfile.write(PICTURE)

    site.answers["/a.jpg"] = answer
    fetcher = make()
    for later, requests in ((0, 1), (800, 1), (200, 2)):
        clock.now += later
        fetcher.read(site.url(), MB)
        assert len(site.requests) == requests


def test_what_has_not_changed_is_not_sent_again(site, make, clock):
    changed = "Wed, 01 Jan 2020 00:00:00 GMT"
    site.serve("/new", etag='"v1"', last_modified=changed, cache_control="max-age=10")
    site.serve("/same", body=b"", status=304, cache_control="max-age=100")
    url = site.in_turn("/a.jpg", "/new", "/same")
    fetcher = make()
    assert fetcher.read(url, MB) == PICTURE
    clock.now += 11
    assert fetcher.read(url, MB) == PICTURE
    (_, first), (_, second) = site.requests
    assert not {"if-none-match", "if-modified-since"} & set(first)
    assert second["if-none-match"] == '"v1"'
    assert second["if-modified-since"] == changed
    clock.now += 99
    assert fetcher.read(url, MB) == PICTURE
    assert len(site.requests) == 2
    clock.now += 2
    assert fetcher.read(url, MB) == PICTURE
    assert site.requests[2][1]["if-none-match"] == '"v1"'


def test_what_has_changed_replaces_what_was_kept(site, make, clock):
    site.serve("/old", etag='"v1"', cache_control="no-cache")
    site.serve("/new", body=b"new", etag='"v2"', cache_control="max-age=60")
    url = site.in_turn("/a.jpg", "/old", "/new")
    fetcher = make()
    assert [fetcher.read(url, MB) for _ in range(3)] == [PICTURE, b"new", b"new"]
    assert len(site.requests) == 2


@pytest.mark.parametrize("status", [302, 301])
def test_a_temporary_redirect_is_asked_for_each_time(site, make, status):
    url = site.serve(status=status, location="/b.jpg", body=b"")
    site.serve("/b.jpg", etag='"v1"', cache_control="max-age=60")
    fetcher = make()
    assert fetcher.read(url, MB) == PICTURE
    site.serve("/b.jpg", body=b"", status=304, cache_control="max-age=60")
    assert fetcher.read(url, MB) == PICTURE
    if status == 301:
        assert site.paths() == ["/a.jpg", "/b.jpg"]
        return
    assert site.paths() == ["/a.jpg", "/b.jpg"] * 2
    # Only who gave the validator gets it back.
    sent = [headers.get("if-none-match") for _, headers in site.requests]
    assert sent == [None, None, None, '"v1"']


@pytest.mark.parametrize(
    "headers",
    [
        {"cache_control": "No-Store"},
        {"status": 500},
        {"status": 404},
        {"body": b"<html>", "content_type": "text/html"},
    ],
)
def test_what_is_not_to_be_kept_is_not(site, make, tmp_path, headers):
    fetcher = make()
    with suppress(ImageError):
        fetcher.read(site.serve(**headers), MB)
    assert entries(tmp_path) == []


def test_what_is_kept_is_the_users_alone(site, make, tmp_path):
    make().read(site.serve(), MB)
    (file,) = entries(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for folder in (file.parent, tmp_path / "cache"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("offset", [0, 64, 70, 150, -1])
def test_a_damaged_entry_is_replaced(site, make, tmp_path, offset):
    url = site.serve()
    make().read(url, MB)
    (file,) = entries(tmp_path)
    data = bytearray(file.read_bytes())
    for damaged in (data[:offset], b"", data[:offset] + b"?" + data[offset:][1:]):
        file.write_bytes(damaged)
        requests = len(site.requests)
        assert make().read(url, MB) == PICTURE
        assert len(site.requests) == requests + 1
        assert file.read_bytes() == data


def test_an_entry_of_another_version_is_replaced(site, make, tmp_path):
    url = site.serve()
    make().read(url, MB)
    (file,) = entries(tmp_path)
    for rest in (b'{"other": 1}\nx', b"[]\nx", b"no JSON\nx", b"\xff\nx", b""):
        file.write_bytes(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
        assert make().read(url, MB) == PICTURE
    assert len(site.requests) == 6


def test_limits_hold_for_what_is_kept(site, make):
    url = site.serve()
    make().read(url, MB)
    with pytest.raises(ImageError, match="more than"):
        make().read(url, len(PICTURE) - 1)
    assert len(site.requests) == 1


def test_limits_hold_for_what_has_not_changed(site, make):
    site.serve("/new", etag='"v1"', cache_control="no-cache")
    site.serve("/same", body=b"", status=304)
    url = site.in_turn("/a.jpg", "/new", "/same")
    make().read(url, MB)
    with pytest.raises(ImageError, match="more than"):
        make().read(url, len(PICTURE) - 1)


def test_the_oldest_leave_a_full_cache(site, make, tmp_path):
    fetcher = make(cache_bytes=60_000)
    for number in range(30):
        fetcher.read(site.serve(f"/{number}"), MB)
        for age, file in enumerate(sorted(entries(tmp_path), key=os.path.getmtime)):
            os.utime(file, (1000 * number + age,) * 2)  # not all in one tick
    assert sum(file.stat().st_size for file in entries(tmp_path)) <= 66_000
    before = len(site.requests)
    fetcher.read(site.url("/29"), MB)
    assert len(site.requests) == before
    fetcher.read(site.url("/0"), MB)
    assert len(site.requests) == before + 1


def test_other_files_in_the_folder_stay(site, make, tmp_path):
    others = [tmp_path / "cache" / name for name in ("a.jpg", "ab/b.jpg", "ab/" + "c" * 64)]
    for file in others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(50_000))
        os.utime(file, (0, 0))
    fetcher = make(cache_bytes=20_000)
    for number in range(20):
        fetcher.read(site.serve(f"/{number}"), MB)
    assert all(file.exists() for file in others)


def test_a_file_in_the_way_of_a_folder_is_passed_over(site, make, tmp_path):
    (tmp_path / "cache").mkdir()
    for number in range(256):
        (tmp_path / "cache" / f"{number:02x}").write_bytes(b"")
    fetcher = make()
    assert fetcher.read(site.serve(), MB) == PICTURE
    assert "cache" in fetcher.cache_problem


def test_what_a_killed_run_left_goes_with_the_oldest(site, make, tmp_path):
    left = tmp_path / "cache" / "ab" / "unfinished-x1"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(50_000))
    os.utime(left, (0, 0))
    make(cache_bytes=20_000).read(site.serve(), MB)
    assert not left.exists()


@pytest.mark.skipif(os.name == "nt", reason="a file in the way is reported differently")
def test_a_folder_that_cannot_be_written_keeps_nothing(site, make, tmp_path):
    (tmp_path / "cache").write_text("a file")
    fetcher = make()
    assert fetcher.cache_problem is None
    assert fetcher.read(site.serve(), MB) == PICTURE
    assert str(tmp_path / "cache") in fetcher.cache_problem


def test_a_full_disk_keeps_nothing(site, make, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("datasette_image_similarity.fetch.cache.os.replace", full)
    fetcher = make()
    assert fetcher.read(site.serve(), MB) == PICTURE
    assert fetcher.cache_problem.endswith("cache: No space left on device")
    assert entries(tmp_path) == []


def test_nothing_is_kept_where_nothing_is_to_be_kept(site, make, tmp_path):
    fetcher = make(cache_bytes=0)
    url = site.serve()
    assert fetcher.read(url, MB) == fetcher.read(url, MB) == PICTURE
    assert len(site.requests) == 2
    assert not (tmp_path / "cache").exists()


def test_the_default_folder_is_the_platforms_for_what_can_be_had_again(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = default_folder()
    assert folder == tmp_path / "datasette-image-similarity" / "downloads"
    assert not folder.exists()


def test_what_private_hosts_gave_is_not_for_those_who_do_not_allow_them(site, make):
    url = site.serve()
    assert make().read(url, MB) == PICTURE
    with pytest.raises(Refused):
        make(allow_private=False).read(url, MB)


def test_what_two_headers_say_counts_together(site, make, tmp_path):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for value in ("max-age=60", "no-store"):
            handler.send_header("Cache-Control", value)
        handler.send_header("Content-Length", str(len(PICTURE)))
        handler.end_headers()
        handler.wfile.write(PICTURE)

    site.answers["/a.jpg"] = answer
    assert make().read(site.url(), MB) == PICTURE
    assert entries(tmp_path) == []
