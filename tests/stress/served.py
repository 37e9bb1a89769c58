"""A real `datasette serve`, as a process on a port of 127.0.0.1, and a client for it.

The client shares the machine with the server, so it does no more than it must: one
connection that is kept, HTTP/1.1 by hand.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from serving import IS_ONE

START_SECONDS = 60
STOP_SECONDS = 20
CHUNK = 1 << 16


def environment(folder: Path) -> dict[str, str]:
    """For processes whose user keeps settings in this folder, and nowhere else."""
    own = {"XDG_CONFIG_HOME": str(folder), "HOME": str(folder), "APPDATA": str(folder)}
    here = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    path = os.pathsep.join([*here, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **own, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@contextmanager
def own_folder(given: Path | None) -> Iterator[Path]:
    """A folder to work in, the one given or a temporary one. This process and those that
    it starts keep their user's settings there too."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given or Path(temporary)).resolve()
        folder.mkdir(exist_ok=True)
        os.environ |= environment(folder)
        yield folder


class Served:
    """`datasette serve` over a file, until the block ends; `log` is what it printed.

    `config` is configuration (on 0.65: metadata), `options` are more words for the command.
    """

    def __init__(
        self, database: Path, config: Mapping[str, Any] | None = None, *options: str
    ) -> None:
        self.folder = database.parent
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.port = free_port()
        self.log = self.folder / f"server-{self.port}.log"
        file = self.folder / f"server-{self.port}.json"
        file.write_text(json.dumps(config or {}), encoding="utf-8")
        self.command = [sys.executable, "-m", "datasette", "serve", str(database)]
        self.command += ["--host", "127.0.0.1", "--port", str(self.port)]
        self.command += ["--config" if IS_ONE else "--metadata", str(file)]
        self.command += options
        self.process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Served:
        with self.log.open("wb") as log:
            # A session of its own, as a terminal gives it: Ctrl-C reaches the whole group.
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                env={**environment(self.folder), "TMPDIR": str(self.temporary)},
                start_new_session=True,
            )
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/-/versions.json", timeout=5):
                    return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    self.__exit__()
                    raise RuntimeError(f"Datasette does not start: {self.said()}") from None
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        """Nothing is left of it, however it ends."""
        left = self.family() if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        for one in left:
            with suppress(psutil.Error):
                one.kill()

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def send(self, number: int, *, group: bool = False) -> None:
        """A signal, to the server or as Ctrl-C in a terminal: to its whole group."""
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def stop(self) -> int:
        """End it as a service manager does; the exit status."""
        self.send(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def family(self) -> list[psutil.Process]:
        """The server and all processes below it."""
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def memory(self) -> int:
        """Resident bytes of all of them."""
        total = 0
        for one in self.family():
            with suppress(psutil.Error):
                total += one.memory_info().rss
        return total


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Client:
    """One connection to a server. Not for use by several tasks at once."""

    port: int
    _reader: asyncio.StreamReader | None = None
    _writer: asyncio.StreamWriter | None = None

    async def ask(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """The reply to a GET, or with a body to a POST."""
        for attempt in (1, 2):
            kept = self._writer is not None
            try:
                await self.begin(path, body, headers)
                return await self._reply()
            except (ConnectionError, asyncio.IncompleteReadError):
                self.close()
                if not kept or attempt == 2:  # one that was kept may have been let go
                    raise
        raise AssertionError

    async def begin(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a request whose reply is read by somebody else, or by nobody."""
        await self.send(request(self.port, path, body, headers))

    async def send(self, data: bytes) -> None:
        """Send bytes, a whole request or less."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(
                "127.0.0.1", self.port
            )
        self._writer.write(data)
        await self._writer.drain()

    async def read(self, size: int) -> bytes:
        """Some bytes of a reply as they come."""
        return await self._reader.read(size)

    async def _reply(self) -> Reply:
        reader = self._reader
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        pairs = (line.partition(":") for line in lines[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        parts = []
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                parts.append(await reader.readexactly(size))
                await reader.readexactly(2)
            await reader.readexactly(2)
        elif status != 304:
            parts.append(await reader.readexactly(int(headers["content-length"])))
        if headers.get("connection") == "close":
            self.close()
        return Reply(status, headers, b"".join(parts))

    def close(self) -> None:
        """Go away, whatever the server was about to say."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None


def request(
    port: int,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A GET as it is sent, or with a body a POST."""
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1"]
    lines += [f"host: 127.0.0.1:{port}"]
    if body is not None:
        lines += [f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def upload(picture: bytes) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a form with a picture."""
    edge = f"edge{random.getrandbits(64):016x}"
    head = (
        f"--{edge}\r\n"
        'content-disposition: form-data; name="image"; filename="picture.png"\r\n'
        "content-type: image/png\r\n\r\n"
    )
    body = head.encode() + picture + f"\r\n--{edge}--\r\n".encode()
    return body, {"content-type": f"multipart/form-data; boundary={edge}"}
