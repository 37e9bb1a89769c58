"""What a download gives, and how it fails. See `fetching.py` for the servers."""

from __future__ import annotations

import gc
import gzip
import os
import socket
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

import pytest
from fetching import MB, PICTURE, PUBLIC, raw, refusing

from datasette_image_similarity.errors import ImageError, MissingFile

pytest_plugins = ["fetching_fixtures"]


def test_gives_the_bytes_and_says_who_asks(site, make):
    assert make().read(site.serve(), MB) == PICTURE
    ((_, headers),) = site.requests
    assert headers["user-agent"].startswith("datasette-image-similarity/")
    assert headers["accept-encoding"] == "identity"
    assert headers["host"] == f"127.0.0.1:{site.port}"
    assert not {"cookie", "authorization", "referer"} & set(headers)


@pytest.mark.parametrize("status", [404, 410])
def test_a_picture_that_is_not_there_is_missing(site, make, status):
    with pytest.raises(MissingFile, match="no such picture at that address"):
        make().read(site.serve(status=status), MB)


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 418, 501, 999])
def test_other_answers_are_errors_and_not_asked_again(site, make, status):
    with pytest.raises(ImageError, match=f"the server answered {status}") as failed:
        make().read(site.serve(status=status, body=b""), MB)
    assert not isinstance(failed.value, MissingFile)
    assert len(site.requests) == 1


def test_a_page_in_place_of_a_picture_is_called_that(site, make):
    page = b"\n<!DOCTYPE html><title>Sign in</title>"
    with pytest.raises(ImageError, match="an HTML page, not a picture"):
        make().read(site.serve(body=page, content_type="text/html; charset=utf-8"), MB)
    # A server that calls its pictures pages is merely wrong.
    assert make().read(site.serve("/b", content_type="text/html"), MB) == PICTURE


def test_a_picture_that_says_it_is_too_large_is_not_read(make):
    seen = []

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n")
        seen.append(connection.recv(1))  # until the other side hangs up

    with pytest.raises(ImageError, match="more than 1 MB"):
        make().read(raw(answer), MB)


def test_a_picture_that_turns_out_too_large_is_not_read_to_its_end(make):
    sent = []

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
            sent.append(65536)

    with pytest.raises(ImageError, match="more than 1 MB"):
        make().read(raw(answer), MB)
    assert sum(sent) < 50 * MB


def test_limits_hold_for_the_last_byte(site, make):
    url = site.serve()
    assert make(cache_bytes=0).read(url, len(PICTURE)) == PICTURE
    for path, headers in {
        "/b": {},
        "/c": {"content_length": "x", "connection": "close"},
    }.items():
        with pytest.raises(ImageError, match="more than"):
            make().read(site.serve(path, **headers), len(PICTURE) - 1)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 6000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1770\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n",  # no last chunk
    ],
)
def test_a_picture_that_was_cut_off_is_a_failure(make, head, tmp_path):
    fetcher = make()
    url = raw(lambda connection: connection.sendall(head + PICTURE))
    with pytest.raises(ImageError, match="the connection broke off"):
        fetcher.read(url, MB)
    assert not list(tmp_path.rglob("*/*/*"))


def test_compression_that_was_not_asked_for_is_undone(site, make):
    url = site.serve(body=gzip.compress(PICTURE), content_encoding="gzip")
    assert make().read(url, MB) == PICTURE
    assert make().read(site.serve("/b", content_encoding="aws-chunked"), MB) == PICTURE


def test_what_is_compressed_is_measured_unpacked(site, make):
    url = site.serve(body=gzip.compress(bytes(50 * MB)), content_encoding="gzip")
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="more than 1 MB"):
            make().read(url, MB)
        assert tracemalloc.get_traced_memory()[1] < 10 * MB  # at its peak
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("body", [b"no gzip", gzip.compress(PICTURE)[:-100]])
def test_damaged_compression_is_a_failure(site, make, body):
    with pytest.raises(ImageError, match="sent with gzip, and"):
        make().read(site.serve(body=body, content_encoding="gzip"), MB)


@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"],
)
def test_a_server_that_trickles_is_left_after_the_time_for_the_whole(make, start):
    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(b"H")
            time.sleep(0.05)

    with pytest.raises(ImageError, match="takes too long"):
        make(seconds=0.4).read(raw(answer), MB)


def test_what_is_not_http_is_called_that(make):
    with pytest.raises(ImageError, match="the answer is not HTTP"):
        make().read(raw(lambda connection: connection.sendall(b"220 mail\r\n\r\n")), MB)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_makes_connections_of_its_own(site, make):
    fetcher = make(cache_bytes=0)
    url = site.serve()
    fetcher.read(url, MB)
    child = os.fork()
    if not child:
        os._exit(0 if fetcher.read(url, MB) == PICTURE else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert fetcher.read(url, MB) == PICTURE
    assert site.connections == 2


def test_https_goes_to_the_checked_address_and_verifies_the_name(
    site, make, dialled, secure, monkeypatch
):
    monkeypatch.setattr("datasette_image_similarity.fetch.tls_context", lambda: secure)
    fetcher = make(allow_private=False, resolve=lambda host, port: [PUBLIC])
    site.serve()
    for path in ("a", "b"):
        site.serve(f"/{path}.jpg")
        assert fetcher.read(f"https://pictures.test/{path}.jpg", MB) == PICTURE
    assert dialled == [(PUBLIC, 443)]
    with pytest.raises(ImageError, match=r"certificate is not valid: .*other.test"):
        fetcher.read("https://other.test/a.jpg", MB)
    assert len(dialled) == 2


def test_a_certificate_that_nobody_vouches_for_is_not_believed(site, make, dialled, secure):
    fetcher = make(allow_private=False, resolve=lambda host, port: [PUBLIC])
    site.serve()
    with pytest.raises(ImageError, match="certificate is not valid: self-signed"):
        fetcher.read("https://pictures.test/a.jpg", MB)
    assert site.requests == []


def test_time_is_limited_under_tls_too(site, make, dialled, secure, monkeypatch):
    monkeypatch.setattr("datasette_image_similarity.fetch.tls_context", lambda: secure)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
        with suppress(OSError):
            while True:
                handler.wfile.write(b"x")
                time.sleep(0.05)

    site.answers["/a.jpg"] = answer
    fetcher = make(seconds=0.4, resolve=lambda host, port: [PUBLIC])
    with pytest.raises(ImageError, match="takes too long"):
        fetcher.read("https://pictures.test/a.jpg", MB)


def test_an_answer_before_the_answer_is_not_taken_for_the_next_one(site, make):
    """Else every picture would be the one that was asked for before it."""
    late = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        late.wait(10)
        with suppress(OSError):
            site.answers["/b.jpg"](handler)

    site.answers["/a.jpg"] = answer
    site.serve("/b.jpg", body=b"another")
    site.serve("/c.jpg")
    fetcher = make(cache_bytes=0)
    with pytest.raises(ImageError, match="answered 103"):
        fetcher.read(site.url(), MB)
    threading.Timer(0.2, late.set).start()
    assert fetcher.read(site.url("/c.jpg"), MB) == PICTURE


def test_bytes_that_nobody_asked_for_end_a_connection(site, make):
    said = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        site.answers["/b.jpg"](handler)
        stray = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray"
        threading.Timer(0.1, lambda: (handler.wfile.write(stray), said.set())).start()

    site.answers["/a.jpg"] = answer
    site.serve("/b.jpg", body=b"another")
    site.serve("/c.jpg")
    fetcher = make(cache_bytes=0)
    assert fetcher.read(site.url(), MB) == b"another"
    said.wait(10)
    assert fetcher.read(site.url("/c.jpg"), MB) == PICTURE


def test_a_status_says_enough_without_its_text(make):
    head = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\nnonsense"
    with pytest.raises(MissingFile):
        make().read(raw(lambda connection: connection.sendall(head)), MB)


def test_nothing_is_left_open(site, make):
    """Warnings about sockets are errors here."""
    site.serve("/short", content_length="6000", connection="close")
    site.serve("/close", connection="close")
    fetcher = make(cache_bytes=0)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        for url in (site.url("/short"), site.url("/close"), refusing()):
            with suppress(ImageError):
                fetcher.read(url, MB)
        gc.collect()
    assert [str(warning.message) for warning in warned] == []


@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\nhalf of a picture, whose size"],
)
def test_closing_ends_what_is_being_read(make, tmp_path, start):
    asked = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        asked.set()
        connection.recv(1)

    fetcher = make()
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(fetcher.read, raw(answer), MB)
        asked.wait(10)
        fetcher.close()
        with pytest.raises(ImageError, match="the download was stopped"):
            reading.result(10)
    assert not list((tmp_path / "cache").rglob("*"))
    with pytest.raises(ImageError, match="the download was stopped"):
        fetcher.read(refusing(), MB)


@pytest.fixture(params=["name", "connection", "TLS"])
def opening(request, monkeypatch):
    """What leads to the options of a Fetcher and a URL where opening a connection hangs,
    and events: that it has begun, and that the test is over."""
    begun, over = threading.Event(), threading.Event()

    def hang(*_):
        begun.set()
        over.wait(60)
        raise OSError("over")

    def silent(connection):
        begun.set()
        over.wait(60)

    options, url = {}, "https://silent.test/a.jpg"
    if request.param == "name":
        options["resolve"] = hang
    elif request.param == "connection":
        options["resolve"] = lambda host, port: [PUBLIC]
        monkeypatch.setattr(
            "datasette_image_similarity.fetch.exchange.socket.create_connection", hang
        )
    else:
        options["resolve"] = lambda host, port: ["127.0.0.1"]
        url = raw(silent).replace("http://127.0.0.1", "https://silent.test")
    yield options, url, begun
    over.set()


def test_closing_ends_the_opening_of_a_connection(make, opening):
    options, url, begun = opening
    fetcher = make(cache_bytes=0, **options)
    with ThreadPoolExecutor(3) as threads:
        reading = [threads.submit(fetcher.read, url, MB) for _ in range(3)]
        assert begun.wait(10)
        started = time.monotonic()
        fetcher.close()
        for one in reading:
            with pytest.raises(ImageError, match="the download was stopped"):
                one.result(10)
        assert time.monotonic() - started < 1.5


def test_a_name_look_up_takes_part_in_the_time_limit(make):
    over = threading.Event()
    fetcher = make(cache_bytes=0, seconds=0.2, resolve=lambda *_: over.wait(30))
    started = time.monotonic()
    with pytest.raises(ImageError, match="too long"):
        fetcher.read("http://slow.test/a.jpg", MB)
    assert time.monotonic() - started < 3
    over.set()


def test_what_nobody_waits_for_any_more_is_closed(site, make):
    go_on, looked_up = threading.Event(), threading.Event()

    def resolve(host, port):
        looked_up.set()
        go_on.wait(30)
        return ["127.0.0.1"]

    gone = threading.Event()

    def until_gone(connection):
        assert connection.recv(1) == b""
        gone.set()

    fetcher = make(cache_bytes=0, resolve=resolve)
    with ThreadPoolExecutor(1) as threads:
        url = raw(until_gone).replace("127.0.0.1", "some.test")
        reading = threads.submit(fetcher.read, url, MB)
        assert looked_up.wait(10)
        fetcher.close()
        with pytest.raises(ImageError, match="stopped"):
            reading.result(10)
    go_on.set()
    assert gone.wait(10)
