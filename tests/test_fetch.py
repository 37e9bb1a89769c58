"""Downloads: guarded, polite, cached. Everything is served from 127.0.0.1; names and clocks
are made up."""

from __future__ import annotations

import gzip
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datasette_image_similarity.errors import ImageError
from datasette_image_similarity.fetch import Fetcher, Refused
from datasette_image_similarity.fetch.addresses import is_public, parse, redirected
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
