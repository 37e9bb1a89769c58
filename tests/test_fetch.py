"""Downloads: guarded, polite, cached. Everything is served from 127.0.0.1; names and clocks
are made up."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import random
import socket
import ssl
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datasette_image_similarity.errors import ImageError
from datasette_image_similarity.fetch import Fetcher, Refused
from datasette_image_similarity.fetch.addresses import is_public, parse, redirected
from datasette_image_similarity.fetch.cache import default_folder
from datasette_image_similarity.sources import MissingFile

PICTURE = random.Random(1).randbytes(5000)
MB = 1_000_000
PUBLIC, OTHER = "93.184.216.34", "93.184.216.35"


class Site:
    """A server whose answers are functions of its handler, by path; it notes requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                site.connections += 1
                super().setup()

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                site.requests.append((self.path, headers))
                site.answers[self.path](self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()

    def url(self, path: str = "/a.jpg", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def serve(
        self, path: str = "/a.jpg", body: bytes = PICTURE, status: int = 200, **headers: str
    ) -> str:
        """Serve this; underscores in names of headers are hyphens. Gives the URL."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            if "content_length" not in headers:
                handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        self.answers[path] = answer
        return self.url(path)

    def in_turn(self, path: str, *paths: str) -> str:
        """Answer a path as others would, one after another, the last again and again."""
        turns = list(paths)

        def answer(handler: BaseHTTPRequestHandler) -> None:
            self.answers[turns.pop(0) if len(turns) > 1 else turns[0]](handler)

        self.answers[path] = answer
        return self.url(path)

    def speak_tls(self, context: ssl.SSLContext) -> None:
        """From now on, to connections that are made."""
        plain = self._server.get_request

        def get_request() -> tuple[socket.socket, object]:
            connection, where = plain()
            return context.wrap_socket(connection, server_side=True), where

        self._server.get_request = get_request

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = time.time()
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def site() -> Iterator[Site]:
    with closing(Site()) as site:
        yield site


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Fetcher]]:
    """Makes Fetchers that may ask this computer, with a cache of the test's."""
    made = []

    def make(**options: object) -> Fetcher:
        given = {"allow_private": True, "cache": tmp_path / "cache"}
        given |= {"clock": clock, "sleep": clock.sleep}
        made.append(Fetcher(**given | options))
        return made[-1]

    yield make
    for fetcher in made:
        fetcher.close()


@pytest.fixture
def dialled(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every IP address leads to the site; which ones were dialled is noted."""
    calls = []
    real = socket.create_connection

    def dial(place: tuple[str, int], *arguments: object) -> socket.socket:
        calls.append(place)
        return real(("127.0.0.1", site.port), *arguments)

    monkeypatch.setattr(
        "datasette_image_similarity.fetch.exchange.socket.create_connection", dial
    )
    return calls


def raw(answer: Callable[[socket.socket], None]) -> str:
    """A server that says what it likes to each connection. Gives its URL."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server:
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    with suppress(OSError):
                        answer(connection)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/a.jpg"


# What comes back


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
    url = site.serve(body=gzip.compress(bytes(200 * MB)), content_encoding="gzip")
    with pytest.raises(ImageError, match="more than 1 MB"):
        make().read(url, MB)


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


# Which addresses may be asked


@pytest.mark.parametrize(
    "ip",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "0.1.2.3", "10.1.2.3", "172.16.0.1"),
        *("192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1"),
        *("198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%1", "fc00::1", "fd00:ec2::254", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::127.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808"),
        *("2002:7f00:1::", "2002:c0a8:101::1", "2001:0:808:808::1", "2001:db8::1"),
        *("fec0::1", "100::1", "4000::1", "::ffff:0:127.0.0.1", "nonsense", ""),
    ],
)
def test_not_public(ip):
    assert not is_public(ip)


@pytest.mark.parametrize(
    "ip",
    ["8.8.8.8", PUBLIC, "2606:2800:21f:cb07::1", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_public(ip):
    assert is_public(ip)


@pytest.mark.parametrize(
    ("answers", "refused"),
    [
        (["10.0.0.1"], True),
        ([PUBLIC, "10.0.0.1"], True),
        (["::ffff:7f00:1"], True),
        ([PUBLIC, "2606:2800:21f:cb07::1"], False),
    ],
)
def test_a_name_is_asked_if_all_its_addresses_are_public(
    site, make, dialled, answers, refused
):
    fetcher = make(allow_private=False, resolve=lambda host, port: answers)
    site.serve()
    if refused:
        with pytest.raises(Refused, match="not public"):
            fetcher.read("http://pictures.test/a.jpg", MB)
        assert dialled == []
    else:
        assert fetcher.read("http://pictures.test/a.jpg", MB) == PICTURE
        assert dialled == [(PUBLIC, 80)]
        assert site.requests[0][1]["host"] == "pictures.test"


def test_the_address_that_was_checked_is_the_one_that_is_asked(site, make, dialled):
    """A name server that gives another answer each time gains nothing."""
    answers = iter([[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]])
    fetcher = make(allow_private=False, resolve=lambda host, port: next(answers))
    site.serve("/a.jpg", connection="close")
    assert fetcher.read("http://rebind.test/a.jpg", MB) == PICTURE
    assert dialled == [(PUBLIC, 80)]
    with pytest.raises(Refused, match="not public"):
        fetcher.read("http://rebind.test/b.jpg", MB)
    assert dialled == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1"),
        *("[::1]", "[::ffff:7f00:1]", "[::ffff:127.0.0.1]", "[::]", "0", "localhost"),
        *("127.0.0.1.", "１２７.０.０.１", "127。0。0。1", "LOCALHOST"),
    ],
)
def test_this_computer_is_not_asked_however_it_is_spelled(make, dialled, host):
    with pytest.raises(ImageError):
        make(allow_private=False).read(f"http://{host}:8001/a.jpg", MB)
    assert dialled == []


@pytest.mark.parametrize(
    "location",
    [
        *("http://169.254.169.254/latest/meta-data/", "//127.0.0.1/", "http://[::1]/"),
        *("file:///etc/passwd", "ftp://pictures.test/a", "http://u:p@pictures.test/"),
        *("gopher://pictures.test:6379/_", "http://pictures.test:22/", "http://[/", ""),
        "/a\x00b",
    ],
)
def test_redirects_are_checked_like_any_address(site, make, dialled, location):
    def resolve(host: str, port: int) -> list[str]:
        return [PUBLIC] if host == "pictures.test" else [host]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: ")
        handler.wfile.write(location.encode() + b"\r\n\r\n")

    site.answers["/a.jpg"] = answer
    fetcher = make(allow_private=False, resolve=resolve, redirects=3)
    with pytest.raises(ImageError, match=r"redirect|not public"):
        fetcher.read("http://pictures.test/a.jpg", MB)
    assert set(dialled) == {(PUBLIC, 80)}


def test_redirects_are_followed_to_other_hosts(site, make, dialled):
    names = {"one.test": [PUBLIC], "xn--bcher-kva.test": [OTHER]}
    fetcher = make(allow_private=False, resolve=lambda host, port: names[host])
    site.serve("/a.jpg", status=301, location="http://bücher.test/b%20c d.jpg?x=ü#z")
    site.serve("/b%20c%20d.jpg?x=%C3%BC")
    assert fetcher.read("http://one.test/a.jpg", MB) == PICTURE
    assert dialled == [(PUBLIC, 80), (OTHER, 80)]


def test_redirects_end(site, make):
    url = site.serve(status=302, location="/a.jpg")
    with pytest.raises(ImageError, match="redirects more than 3 times"):
        make(redirects=3).read(url, MB)
    assert len(site.requests) == 4


def test_https_is_not_left():
    secure = parse("https://pictures.test/a.jpg")
    assert redirected(secure, "/b.jpg").url == "https://pictures.test/b.jpg"
    with pytest.raises(Refused, match="from https to http"):
        redirected(secure, "http://pictures.test/a.jpg")


@pytest.mark.parametrize(
    "url",
    [
        *("", "  ", "a.jpg", "/a.jpg", "//host/a.jpg", "http:a.jpg", "http:///a.jpg"),
        *("ftp://host/a", "file:///etc/passwd", "data:image/png;base64,", "javascript:1"),
        *(
            "http://public@127.0.0.1/",
            "http://u:p@host/",
            "http://host\\@other/",
            "http://@h/",
        ),
        *(
            "http://ho st/",
            "http://host\n/",
            "http://ho\tst/",
            "http://h\r\nX: y/",
            "http://h\0/",
        ),
        *("http://host/a\r\nX-Injected: 1", "http://host/\ud800"),
        *("http://host:0/", "http://host:22/", "http://host:25/", "http://host:99999/"),
        *("http://host:-1/", "http://host:８０/x:y", "http://[::1/", "http://[v1.x]/"),
        *("http://[fe80::1%25eth0]/", "http://host%2eother/", "http://-/", "http://./"),
        *("http://" + "a" * 300 + "/", "http://host/" + "a" * 9000, "http://a..ü/"),
    ],
)
def test_what_is_no_url_of_a_picture_is_refused(url):
    with pytest.raises(Refused):
        parse(url)


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        (" HTTP://Host.TEST:80/a.jpg#top\n", "http://host.test/a.jpg"),
        ("https://host.test.:443", "https://host.test/"),
        ("http://host/my photo (1).jpg", "http://host/my%20photo%20(1).jpg"),
        ("http://host/my%20photo.jpg?w=100%&é", "http://host/my%20photo.jpg?w=100%&%C3%A9"),
        ("http://bücher.example:8080/", "http://xn--bcher-kva.example:8080/"),
        ("http://faß.de/", "http://xn--fa-hia.de/"),
        ("http://[2606:2800:0::1]/?a?b", "http://[2606:2800::1]/?a?b"),
        ("http://a_b.test///x/../y", "http://a_b.test///x/../y"),
    ],
)
def test_spellings_of_a_url(url, plain):
    assert parse(url).url == plain


def test_proxies_are_not_used_and_the_message_says_so(site, make, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert make().read(site.serve(), MB) == PICTURE
    with pytest.raises(ImageError, match=r"proxies .* are not used"):
        make().read(refusing(), MB)


def refusing() -> str:
    """The URL of a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}/"


# Manners


def test_connections_are_used_again(site, make):
    fetcher = make(cache_bytes=0)
    for path in ("/a", "/b", "/missing", "/c"):
        site.serve(path, status=404 if path == "/missing" else 200)
    assert fetcher.read(site.url("/a"), MB) == fetcher.read(site.url("/b"), MB) == PICTURE
    with pytest.raises(MissingFile):
        fetcher.read(site.url("/missing"), MB)
    assert fetcher.read(site.url("/c"), MB) == PICTURE
    assert site.connections == 1


def test_a_connection_that_the_server_has_closed_is_made_anew(site, make, clock):
    fetcher = make(cache_bytes=0)
    closed = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        site.answers["/b.jpg"](handler)
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        closed.set()

    site.serve("/b.jpg")
    site.answers["/a.jpg"] = answer
    fetcher.read(site.url(), MB)
    closed.wait(10)
    assert fetcher.read(site.url(), MB) == PICTURE
    assert site.connections == 2
    assert clock.slept == []


def test_a_host_gets_so_many_connections_at_once(site, make):
    at_once, most, lock = 0, 0, threading.Lock()
    crowd = threading.Barrier(3)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        crowd.wait(10)  # 3 are here, or nobody goes on
        with lock:
            at_once -= 1
        site.answers["/b.jpg"](handler)

    site.serve("/b.jpg")
    site.answers["/a.jpg"] = answer
    fetcher = make(cache_bytes=0, per_host=3)
    with ThreadPoolExecutor(12) as threads:
        read = list(threads.map(lambda _: fetcher.read(site.url(), MB), range(24)))
    assert read == [PICTURE] * 24
    assert most == 3
    assert site.connections == 3


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_three_times(site, make, clock, status):
    site.serve("/busy", status=status)
    site.serve("/fine")
    url = site.in_turn("/a.jpg", "/busy", "/busy", "/fine")
    assert make(cache_bytes=0).read(url, MB) == PICTURE
    short, longer = clock.slept
    assert 0.5 <= short <= 1.5
    assert 2 <= longer <= 6
    with pytest.raises(ImageError, match=f"the server answered {status}"):
        make().read(site.url("/busy"), MB)
    assert site.paths() == ["/a.jpg"] * 3 + ["/busy"] * 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_host_that_asks_for_a_pause_gets_it(site, make, clock, form):
    after = "40" if form == "seconds" else formatdate(clock.now + 40, usegmt=True)
    start = clock.now
    site.serve("/busy", status=503, retry_after=after)
    site.serve("/fine")
    url = site.in_turn("/a.jpg", "/busy", "/fine")
    assert make().read(url, MB) == PICTURE
    assert 39 <= clock.now - start <= 42


@pytest.mark.parametrize(
    "after", ["61", "99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"]
)
def test_a_host_that_asks_for_a_long_pause_is_left_alone(site, make, clock, after):
    site.serve("/busy", status=429, retry_after=after)
    site.serve("/fine")
    fetcher = make()
    for path in ("/busy", "/fine"):
        with pytest.raises(ImageError, match="asks to be left alone"):
            fetcher.read(site.url(path), MB)
    assert sum(clock.slept) < 10
    clock.now += 3601
    assert fetcher.read(site.url("/fine"), MB) == PICTURE


@pytest.mark.parametrize(
    "after", ["-5", "soon", "1.5", "", "٣", "Fri, 31 Dec 1999 23:59:59 GMT"]
)
def test_a_pause_that_is_none_is_passed_over(site, make, clock, after):
    site.serve("/busy", status=503)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        head = f"HTTP/1.1 503 No\r\nContent-Length: 0\r\nRetry-After: {after}\r\n\r\n"
        handler.wfile.write(head.encode())

    site.answers["/busy"] = answer
    site.serve("/fine")
    assert make().read(site.in_turn("/a", "/busy", "/fine"), MB) == PICTURE
    assert sum(clock.slept) <= 1.5


def test_a_host_that_is_gone_is_given_up(site, make, clock, monkeypatch):
    dialled = []

    def dial(place: tuple[str, int], *_: object) -> socket.socket:
        dialled.append(place)
        clock.now += 10
        raise TimeoutError

    real = socket.create_connection
    where = "datasette_image_similarity.fetch.exchange.socket.create_connection"
    monkeypatch.setattr(where, dial)
    fetcher = make(resolve=lambda host, port: ["127.0.0.1"])
    reasons = set()
    for number in range(10_000):
        with pytest.raises(ImageError) as failed:
            fetcher.read(f"http://gone.test/{number}.jpg", MB)
        reasons.add(str(failed.value))
    assert reasons == {
        "its host does not answer",
        "gone.test was given up for some minutes: its host does not answer",
    }
    assert len(dialled) < 10

    # Others are asked meanwhile, and this one when the time is over: once if that fails.
    monkeypatch.setattr(where, real)
    assert fetcher.read(site.serve(), MB) == PICTURE
    monkeypatch.setattr(where, dial)
    clock.now += 301
    before = len(dialled)
    for _ in range(100):
        with pytest.raises(ImageError, match="given up"):
            fetcher.read("http://gone.test/a.jpg", MB)
    assert len(dialled) == before + 1


def test_a_host_that_fails_now_and_then_is_not_given_up(site, make, clock):
    site.serve("/busy", status=500)
    site.serve("/fine")
    fetcher = make(cache_bytes=0)
    for _ in range(20):
        with pytest.raises(ImageError, match="answered 500"):
            fetcher.read(site.url("/busy"), MB)
        assert fetcher.read(site.url("/fine"), MB) == PICTURE
        clock.now += 60


def test_hosts_that_give_no_trouble_are_not_remembered(site, make):
    fetcher = make(resolve=lambda host, port: ["127.0.0.1"])
    site.serve()
    for number in range(40):
        assert fetcher.read(site.url(host=f"h{number}.test"), MB) == PICTURE
    assert fetcher._hosts._known == {}
    assert len(fetcher._idle._waiting) == 32


def test_names_that_lead_nowhere_are_told_apart(make):
    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(ImageError, match="its host is not known"):
        make(resolve=resolve).read("http://nowhere.test/", MB)
    with pytest.raises(ImageError, match="its host cannot be reached: Connection refused"):
        make().read(refusing(), MB)


def test_the_next_address_of_a_host_is_tried(site, make, monkeypatch):
    real, dialled = socket.create_connection, []

    def dial(place: tuple[str, int], *arguments: object) -> socket.socket:
        dialled.append(place[0])
        if place[0] == PUBLIC:
            raise ConnectionRefusedError
        return real(("127.0.0.1", site.port), *arguments)

    monkeypatch.setattr(
        "datasette_image_similarity.fetch.exchange.socket.create_connection", dial
    )
    site.serve()
    fetcher = make(allow_private=False, resolve=lambda host, port: [PUBLIC, OTHER])
    assert fetcher.read("http://two.test/a.jpg", MB) == PICTURE
    assert dialled == [PUBLIC, OTHER]


def test_closing_ends_waiting(site, make):
    site.serve("/busy", status=503, retry_after="60")
    fetcher = make(sleep=None, clock=time.time)
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(fetcher.read, site.url("/busy"), MB)
        while not site.requests:
            time.sleep(0.01)
        fetcher.close()
        with pytest.raises(ImageError, match=r"stopped|503"):
            reading.result(30)


# What is kept


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


# Processes


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


def test_the_default_folder_is_the_platforms_for_what_can_be_had_again(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = default_folder()
    assert folder == tmp_path / "datasette-image-similarity" / "downloads"
    assert not folder.exists()


# TLS


@pytest.fixture
def secure(site: Site, tmp_path: Path) -> ssl.SSLContext:
    """Makes the site speak TLS as pictures.test, and gives what trusts it."""
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pictures.test")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("pictures.test")]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    file = tmp_path / "tls.pem"
    file.write_bytes(
        certificate.public_bytes(pem)
        + key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    site.speak_tls(server)
    return ssl.create_default_context(cadata=certificate.public_bytes(pem).decode())


def test_https_goes_to_the_checked_address_and_verifies_the_name(
    site, make, dialled, secure, monkeypatch
):
    monkeypatch.setattr("datasette_image_similarity.fetch.tls_context", lambda: secure)
    fetcher = make(allow_private=False, resolve=lambda host, port: [PUBLIC])
    site.serve()
    assert fetcher.read("https://pictures.test/a.jpg", MB) == PICTURE
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
