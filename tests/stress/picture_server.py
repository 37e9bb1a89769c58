"""A real Datasette under pictures that mean no good: what it answers, how fast it still
answers others, and what it costs in memory. Part of `pictures.py`."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from serving import ROOT, cookies, open_datasette

from .served import Served

SECRET = "stress"  # with which this process signs the cookie of root
SEARCH = "/gallery/images/-/search-by-image"
ADD = "/gallery/images/-/add-picture"
OTHERS = (
    "/gallery/images/-/similar.json?_like=1",
    "/gallery/images/-/thumbnail/1",
    "/gallery/images.json?_size=1",
)
BOUNDARY = "hostile-pictures"
HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
    "Content-Type: image/jpeg\r\n\r\n"
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


class Server(Served):
    """A Datasette over the database gallery.db, which root may write to."""

    def __init__(self, database: Path) -> None:
        super().__init__(database, None, "--secret", SECRET, "--root")
        signed = cookies(open_datasette(database, secret=SECRET), ROOT)["ds_actor"]
        self.cookie = f"ds_actor={signed}"

    def own_memory(self) -> int:
        """Resident bytes of the server itself, without the children that decode."""
        return psutil.Process(self.process.pid).memory_info().rss

    def get(self, path: str, seconds: float = 60) -> tuple[int, bytes]:
        return self._ask("GET", path, None, {}, seconds)

    def post(self, path: str, picture: bytes, seconds: float = 300) -> tuple[int, bytes]:
        """The answer to a form with a picture, sent as root."""
        headers = {
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
            "Accept": "application/json",
            "Cookie": self.cookie,
        }
        return self._ask("POST", path, HEAD + picture + TAIL, headers, seconds)

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: dict, seconds: float
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def upload_begun(self, path: str, length: int) -> socket.socket:
        """A connection on which an upload of so many bytes was announced."""
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {self.cookie}\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
            f"Content-Length: {length}\r\n\r\n".encode()
            + HEAD
        )
        return connection


@dataclass
class Watch:
    """What the server costs, and how long others wait, while something goes on."""

    server: Server
    start: int = 0
    most: int = 0  # bytes
    waits: list[float] = field(default_factory=list)  # seconds, of other requests
    wrong: Counter = field(default_factory=Counter)  # other statuses than 200
    _end: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self.start = self.most = self.server.own_memory()
        self._threads = [threading.Thread(target=work) for work in (self._weigh, self._ask)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _weigh(self) -> None:
        while not self._end.wait(0.01):
            self.most = max(self.most, self.server.own_memory())

    def _ask(self) -> None:
        number = 0
        while not self._end.wait(0.05):
            number += 1
            begun = time.monotonic()
            try:
                status, _ = self.server.get(OTHERS[number % len(OTHERS)])
            except OSError as error:
                status = type(error).__name__
            self.waits.append(time.monotonic() - begun)
            if status != 200:
                self.wrong[status] += 1

    def figures(self) -> dict[str, Any]:
        waits = sorted(self.waits) or [0.0]
        return {
            "memory_rise_mb": round((self.most - self.start) / 1e6, 1),
            "other_requests": len(self.waits),
            "other_requests_wrong": {str(key): n for key, n in self.wrong.items()},
            "other_median_ms": round(1000 * waits[len(waits) // 2]),
            "other_p99_ms": round(1000 * waits[int(0.99 * (len(waits) - 1))]),
            "other_slowest_ms": round(1000 * waits[-1]),
        }


def all_at_once(
    server: Server, pictures: Sequence[bytes], say: Callable[[str], None]
) -> dict[str, Any]:
    """Post them all at the same time, to both routes in turn."""
    statuses: Counter = Counter()

    def send(number: int) -> None:
        path = (SEARCH, ADD)[number % 2]
        try:
            status, body = server.post(path, pictures[number])
        except OSError as error:
            say(f"upload {number} got no answer: {error!r}")
            return
        statuses[status] += 1
        if status not in (200, 201, 400, 413, 429):
            say(f"upload {number} was answered {status}: {body[:200]!r}")
        if reason := in_words(body):
            say(f"upload {number}: {reason}")

    with Watch(server) as watch, ThreadPoolExecutor(len(pictures)) as threads:
        list(threads.map(send, range(len(pictures))))
    figures = {"answers": dict(sorted(statuses.items())), **watch.figures()}
    rise = figures["memory_rise_mb"]
    if rise >= 300:
        say(f"the server's memory rose by {rise} MB under {len(pictures)} uploads")
    if watch.wrong:
        say(f"other requests were answered {watch.wrong}")
    return figures


def slow_and_gone(
    server: Server, good: bytes, say: Callable[[str], None]
) -> dict[str, Any]:
    """Uploads that stop half way, and some whose client goes away: others are served
    meanwhile, and what was held of those that have gone is given back."""
    chunk, sent = bytes(1_000_000), 0
    with Watch(server) as watch:
        slow = [server.upload_begun(SEARCH, 15_000_000) for _ in range(40)]
        for connection in slow:
            connection.sendall(chunk)
        if (status := server.post(SEARCH, good)[0]) != 200:
            say(f"an upload beside {len(slow)} slow ones was answered {status}")
        for connection in slow:
            connection.close()
        for _ in range(20):  # three times of what may be held
            gone = server.upload_begun(SEARCH, 19_000_000)
            gone.sendall(chunk * 15)
            sent += 15
            gone.close()
        if (status := server.post(SEARCH, good)[0]) != 200:
            say(f"an upload after some that went away was answered {status}")
    if watch.wrong:
        say(f"other requests beside slow uploads were answered {watch.wrong}")
    return {"slow": len(slow), "gone": 20, "gone_mb": sent, **watch.figures()}


def in_words(body: bytes) -> str | None:
    """What is wrong with the words of an answer."""
    with suppress(ValueError, UnicodeDecodeError):
        answer = json.loads(body)
        if not answer["ok"]:
            return what_is_wrong_with(answer["error"])
        return None
    return f"no JSON: {body[:200]!r}"


def what_is_wrong_with(reason: str) -> str | None:
    """A refusal is one line of words, not a machine's."""
    noise = ("Traceback", "Error:", "Exception", "/work", "/tmp", "/usr", "0x", "site-pack")
    if not 5 < len(reason) < 300 or not reason.isprintable():
        return f"the reason is no line of words: {reason!r}"
    if any(one in reason for one in noise):
        return f"the reason is a machine's: {reason!r}"
    return None
