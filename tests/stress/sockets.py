"""A real server, and clients on plain sockets that do not keep to HTTP.

    tests/stress/run sockets

What `hostile.py` sends reaches our code as a well-made request; here it has to get there
first. Wrong lengths and chunks, heads without an end, bodies that never come or never end,
clients that go away. Watched: what is answered, the server's memory, its open files, and
whether others are answered meanwhile.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from conftest import picture
from serving import PLUGIN

from stress.hostile import (
    BOUNDARY,
    DATABASE,
    END,
    TABLE,
    a_field,
    a_file,
    make_gallery,
    part,
)
from stress.report import Report, options
from stress.served import Served

MB = 1_000_000
PAGES = f"/{DATABASE}/{TABLE}/-/".encode()
SEARCH = PAGES + b"search-by-image.json"
CURATED = {"plugins": {PLUGIN: {"curators": True}}}
PATIENCE = 30  # seconds for an answer
GROWTH = 150 * MB  # of the server's memory, with uploads of up to 20 MB
MULTIPART = b"multipart/form-data; boundary=" + BOUNDARY


@dataclass(frozen=True)
class Message:
    """Bytes to send, in pieces; `allowed` are the statuses that they may be answered with,
    None for a connection that is closed without a word."""

    name: str
    pieces: Iterable[bytes]
    allowed: tuple[int | None, ...] = (None, 400, 404, 405, 411, 413, 414, 431)


def head(
    method: bytes = b"GET", path: bytes = PAGES + b"map.json", *headers: bytes
) -> bytes:
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: localhost", *headers]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


def post(*headers: bytes, path: bytes = SEARCH, kind: bytes = MULTIPART) -> bytes:
    return head(b"POST", path, b"Content-Type: " + kind, *headers)


def upload(body: bytes) -> Iterator[bytes]:
    yield post(b"Content-Length: %d" % len(body))
    yield body


def long_upload(megabytes: int, beginning: bytes, chunked: bool = False) -> Iterator[bytes]:
    """So much of one part's head or data."""
    piece = b"A" * MB
    if not chunked:
        yield post(b"Content-Length: %d" % (len(beginning) + megabytes * MB)) + beginning
        yield from (piece for _ in range(megabytes))
        return
    yield post(b"Transfer-Encoding: chunked")
    yield b"%x\r\n%s\r\n" % (len(beginning), beginning)
    yield from (b"%x\r\n%s\r\n" % (MB, piece) for _ in range(megabytes))
    yield b"0\r\n\r\n"


FILE = b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="image"; filename="a"'


def messages(megabytes: int) -> Iterator[Message]:
    """What is sent; `megabytes` is how much of what never ends."""
    yield from _broken_heads()
    yield from _broken_bodies()
    too_big = (None, 400, 413)
    for chunked in (False, True):
        how = "chunked" if chunked else "with its length"
        for name, beginning in (
            ("a picture", FILE + b"\r\n\r\n"),
            ("a file's name", FILE[:-1]),
            ("a header of a part", b"--" + BOUNDARY + b"\r\nX-Y: "),
            ("a header's name", b"--" + BOUNDARY + b"\r\nX"),
            ("a field", b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="a"'
                        b"\r\n\r\n"),
            ("what precedes the first part", b""),
        ):  # fmt: skip
            pieces = long_upload(megabytes, beginning, chunked)
            yield Message(f"{name} of {megabytes} MB, {how}", pieces, too_big)
    yield Message(
        "a picture of 20 MB that is none", upload(a_file(b"image", b"x" * 19 * MB) + END)
    )
    yield Message("10,000 files", upload(a_file(b"image", b"x") * 10_000 + END))
    yield Message("10,000 fields", upload(a_field(b"x", b"y") * 10_000 + END))
    yield Message("100,000 empty parts", upload(part(b"", b"") * 100_000 + END))


def _broken_heads() -> Iterator[Message]:
    ours = PAGES + b"similar?_like=1"
    yield Message("nothing", [b""])
    yield Message("no HTTP", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 50])
    yield Message("HTTP/0.9", [b"GET " + ours + b"\r\n\r\n"])
    nine = [b"GET " + ours + b" HTTP/9.9\r\n\r\n"]
    yield Message("HTTP/9.9", nine, (None, 200, 400, 505))  # parsers differ
    yield Message(
        "bare line feeds", [head(path=ours).replace(b"\r", b"")], (None, 200, 400)
    )
    yield Message("no host", [b"GET " + ours + b" HTTP/1.1\r\n\r\n"], (None, 200, 400))
    yield Message("a long address", [head(path=ours + b"&x=" + b"a" * 200_000)], (
        None, 200, 400, 404, 414, 431))  # fmt: skip
    yield Message("a NUL in the address", [head(path=ours + b"\0")])
    yield Message(
        "bytes in the address", [head(path=ours + b"&a=\xff\xfe")], (None, 200, 400)
    )
    yield Message("a full address", [head(path=b"http://evil.example" + ours)], (
        None, 200, 302, 400, 404))  # fmt: skip
    yield Message("a star", [head(b"OPTIONS", b"*")], (None, 200, 302, 400, 404))
    yield Message("a header of 1 MB", [head(b"GET", ours, b"X: " + b"a" * MB)], (
        None, 200, 400, 431))  # fmt: skip
    many = [b"X-%d: y" % number for number in range(10_000)]
    yield Message("10,000 headers", [head(b"GET", ours, *many)], (None, 200, 400, 431))
    yield Message("a NUL in a header", [head(b"GET", ours, b"X: a\0b")], (None, 200, 400))
    yield Message("a head without an end", [head(path=ours)[:-4]])
    yield Message("to a websocket", [head(b"GET", ours, b"Upgrade: websocket",
                  b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Version: 13")], (
                  None, 200, 400, 403, 426))  # fmt: skip
    pipelined = [head(path=ours).replace(b"close", b"keep-alive")] * 50
    yield Message("50 requests at once", pipelined, (200,))


def _broken_bodies() -> Iterator[Message]:
    form = a_file(b"image", picture()) + END
    wrong = (None, 400, 413)
    for name, header in (
        ("a length below 0", b"Content-Length: -5"),
        ("a length in words", b"Content-Length: many"),
        ("a length of 10 ** 30", b"Content-Length: 1" + b"0" * 30),
        ("two lengths", b"Content-Length: 5\r\nContent-Length: 6"),
        ("a length and chunks", b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
        ("an unknown encoding", b"Transfer-Encoding: rot13"),
    ):
        yield Message(name, [post(header), form], wrong)
    length = b"Content-Length: %d"
    yield Message("less than its length", [post(length % (len(form) + 100)), form], wrong)
    yield Message("more than its length", [post(length % 40), form], wrong)
    yield Message("no length", [post(), form], (None, 400, 411))
    for name, chunk in (
        ("a chunk without a size", b"\r\nabc\r\n"),
        ("a chunk with a size below 0", b"-1\r\nabc\r\n"),
        ("a chunk of 2 ** 80 bytes", b"1" + b"0" * 20 + b"\r\nabc\r\n"),
        ("a chunk that is longer", b"1\r\nabcdef\r\n0\r\n\r\n"),
        ("chunks without an end", b"3\r\nabc\r\n"),
        ("a chunk with 1 MB of extensions", b"3;" + b"a" * MB + b"\r\nabc\r\n0\r\n\r\n"),
    ):
        yield Message(name, [post(b"Transfer-Encoding: chunked"), chunk], wrong)
    expecting = post(length % len(form), b"Expect: 100-continue")
    yield Message("waiting to be asked on", [expecting], (None, 100, 400))
    json_body = b"[" * 100_000
    kind = b"application/json"
    rename = PAGES + b"clusters/rename.json"
    yield Message("deep JSON", [post(length % len(json_body), path=rename, kind=kind),
                  json_body], (400, 403, None))  # fmt: skip


# The server


class Server(Served):
    """A Datasette that is spoken to in bytes."""

    def figures(self) -> tuple[int, int, int]:
        """Bytes of memory, threads, open files, as Linux tells."""
        place = Path(f"/proc/{self.process.pid}")
        lines = (place / "status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        memory = int(found["VmRSS"].split()[0]) * 1024
        return memory, int(found["Threads"]), len(os.listdir(place / "fd"))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def answers(self) -> bool:
        """Whether others are served."""
        address = f"{self.url}/{DATABASE}/{TABLE}/-/similar.json?_like=1"
        try:
            with urlopen(address, timeout=PATIENCE) as response:
                return response.status == 200
        except OSError:
            return False

    def tell(self, message: Message) -> tuple[int | None, bytes]:
        """The status and the beginning of what is answered."""
        with self.connect() as connection:
            with suppress(OSError):  # it may have been enough for the server
                for piece in message.pieces:
                    connection.sendall(piece)
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            with suppress(OSError):
                while (data := connection.recv(65_536)) and len(answer) < MB:
                    answer += data
        words = answer.split(b" ", 2)
        known = words[0].startswith(b"HTTP/") and len(words) > 1
        return int(words[1]) if known else None, answer


@dataclass
class Found:
    answers: Counter = field(default_factory=Counter)
    growth: int = 0  # of memory, in bytes, at most
    failures: list[str] = field(default_factory=list)


def run(running: Server, megabytes: int, held: int, left: int, report: Any = None) -> Found:
    """Send everything; hold `held` bodies back, and go away `left` times."""
    found = Found()

    def failed(what: str) -> None:
        found.failures.append(what)
        if report is not None:
            report.failed(what)

    running.tell(Message("a picture", upload(a_file(b"image", picture()) + END)))  # warm
    memory, threads, files = running.figures()
    for message in messages(megabytes):
        status, answer = running.tell(message)
        found.answers[str(status)] += 1
        if status not in message.allowed:
            failed(f"{message.name}: answered {status}: {answer[:200]!r}")
        for hidden in (b"Traceback (most", str(running.folder).encode(), b"site-packages"):
            if hidden in answer:
                failed(f"{message.name}: shows {hidden!r}")
        grown = running.figures()[0] - memory
        if grown > max(GROWTH, found.growth):
            failed(f"{message.name}: {grown // MB} MB more memory")
        found.growth = max(found.growth, grown)
    _hold(running, held, failed)
    _leave(running, left, failed)
    time.sleep(1)
    now = running.figures()
    if now[1] > threads + 10:
        failed(f"{now[1] - threads} threads more than before")
    if now[2] > files + 10:
        failed(f"{now[2] - files} open files more than before")
    if not running.answers():
        failed("the site no longer answers")
    return found


def _hold(running: Server, count: int, failed: Any) -> None:
    """Bodies that are announced and never sent, while others want to be served."""
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(running.connect())
            connection.sendall(post(b"Content-Length: 1000000") + FILE)
        started = time.monotonic()
        if not running.answers():
            failed(f"{count} bodies that never come keep others out")
        if time.monotonic() - started > PATIENCE / 3:
            failed(f"{count} bodies that never come slow others down")


def _leave(running: Server, count: int, failed: Any) -> None:
    """Clients that ask and do not stay for the answer."""
    pages = (b"map/points.bin", b"similar?_like=1&_size=max", b"export.zip", b"map.json",
             b"similar.csv?_like=1", b"clusters", b"duplicates")  # fmt: skip
    for number in range(count):
        with running.connect() as connection:
            connection.sendall(head(path=PAGES + pages[number % len(pages)]))
            if number % 2:
                connection.recv(10)
    if not running.answers():
        failed(f"{count} clients that went away keep others out")


def main() -> int:
    parser = options("sockets", (__doc__ or "").split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1000, help="of what has no end")
    given = parser.parse_args()
    report = Report("sockets", given)
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(make_gallery(Path(folder)), CURATED) as running,
    ):
        found = run(running, given.megabytes, 200, 300, report)
    return report.end(
        messages=sum(found.answers.values()),
        answers=dict(found.answers),
        memory_growth_mb=found.growth // MB,
    )


if __name__ == "__main__":
    sys.exit(main())
