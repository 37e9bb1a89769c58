"""How often a host is asked, and when no longer."""

from __future__ import annotations

import errno
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler

import pytest
from fetching import MB, OTHER, PICTURE, PUBLIC, refusing

from datasette_image_similarity.errors import ImageError, MissingFile

pytest_plugins = ["fetching_fixtures"]


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


def test_a_connection_that_ends_with_the_next_request_is_made_anew(site, make, clock):
    def hang_up(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True

    site.answers["/gone"] = hang_up
    site.serve("/fine")
    url = site.in_turn("/a.jpg", "/fine", "/gone", "/fine")
    fetcher = make(cache_bytes=0)
    assert fetcher.read(url, MB) == fetcher.read(url, MB) == PICTURE
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


@pytest.mark.parametrize("fine", [{}, {"status": 404}, {"content_length": "9999999"}])
def test_a_host_that_fails_now_and_then_is_not_given_up(site, make, clock, fine):
    site.serve("/busy", status=500)
    site.serve("/fine", **fine)
    fetcher = make(cache_bytes=0)
    for _ in range(20):
        with pytest.raises(ImageError, match="answered 500"):
            fetcher.read(site.url("/busy"), MB)
        with suppress(ImageError):
            fetcher.read(site.url("/fine"), MB)
        clock.now += 60


def test_hosts_that_give_no_trouble_are_not_remembered(site, make):
    fetcher = make(resolve=lambda host, port: ["127.0.0.1"])
    site.serve()
    for number in range(40):
        assert fetcher.read(site.url(host=f"h{number}.test"), MB) == PICTURE
    assert fetcher._hosts._known == {}
    assert len(fetcher._connections._waiting) == 32


@pytest.mark.parametrize(
    ("code", "reason", "tries"),
    [
        (socket.EAI_NONAME, "its host is not known", 1),
        (socket.EAI_AGAIN, "its host's name cannot be looked up", 3),
    ],
)
def test_names_that_lead_nowhere_are_told_apart(make, code, reason, tries):
    asked = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        raise socket.gaierror(code, "no such luck")

    with pytest.raises(ImageError, match=reason):
        make(resolve=resolve).read("http://nowhere.test/", MB)
    assert len(asked) == tries


def test_a_host_that_refuses_is_told_apart_from_these(make):
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


def test_without_patience_there_is_one_try(site, make, clock):
    fetcher = make(patience=0)
    site.serve("/busy", status=500)
    site.serve("/fine")
    with pytest.raises(ImageError, match="answered 500"):
        fetcher.read(site.in_turn("/a.jpg", "/busy", "/fine"), MB)
    with pytest.raises(ImageError, match="cannot be reached"):
        fetcher.read(refusing(), MB)
    assert clock.slept == []
    site.serve("/busy", status=503, retry_after="5")
    for _ in range(2):
        with pytest.raises(ImageError, match=r"answered 503|left alone"):
            fetcher.read(site.url("/busy"), MB)
    assert clock.slept == []
    assert site.paths() == ["/a.jpg", "/busy"]


def test_there_is_no_other_try_when_the_time_is_up(make, clock, monkeypatch):
    def dial(*_: object) -> socket.socket:
        time.sleep(0.1)
        raise TimeoutError

    where = "datasette_image_similarity.fetch.exchange.socket.create_connection"
    monkeypatch.setattr(where, dial)
    with pytest.raises(ImageError, match="its host does not answer"):
        make(seconds=0.05).read("http://127.0.0.1/", MB)
    assert clock.slept == []


@pytest.mark.parametrize(("failures", "apart"), [(50, 0.5), (4, 60)])
def test_a_moment_without_a_network_gives_nothing_up(
    site, make, clock, monkeypatch, failures, apart
):
    def dial(*_: object) -> socket.socket:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    fetcher = make(patience=0)
    with monkeypatch.context() as patched:
        where = "datasette_image_similarity.fetch.exchange.socket.create_connection"
        patched.setattr(where, dial)
        for _ in range(failures):
            with pytest.raises(ImageError, match="reached: Network is unreachable"):
                fetcher.read(site.url(), MB)
            clock.now += apart
    assert fetcher.read(site.serve(), MB) == PICTURE
