"""The similar page beside Datasette's own table page of as many rows, under load.

    python benchmarks/pages.py --size 100000

Starts a Datasette with a collection of drawn vectors and visits it at fixed rates: visits
begin on schedule, whether or not earlier ones have ended, and last from the time they
were due until everything is there. A visit is a page and all its pictures, fetched the way
a browser does that has nothing in its cache, over up to 6 connections. Rounds of the two
pages take turns; a round begins when the one before has been served. Prints Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import vectors as drawn

from datasette_image_similarity import ImageCollection

ROWS = 24  # on a page
CONNECTIONS = 6  # of a browser to one server
PICTURE = re.compile(rb'<img src="(/[^"]*/-/thumbnail/[^"]*)"')


# The visitors


@dataclass(frozen=True)
class Visit:
    """Seconds from when it was due until the HTML, and all the pictures, were there."""

    html: float
    whole: float
    requests: int


class Connection:
    """HTTP/1.1, kept open; no more than is needed here, for it shares the processor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def get(self, path: str) -> bytes:
        """The body. Raises RuntimeError for a status other than 200."""
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        if length:
            body = await self.reader.readexactly(int(length[1]))
        else:
            body = b"".join([chunk async for chunk in self._chunks()])
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"{path}: {head.splitlines()[0].decode()}")
        return body

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self.reader.readline(), 16):
            yield await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


async def visit(port: int, path: str, due: float) -> Visit:
    """Fetch a page and its pictures, beginning at the time `due`."""
    await asyncio.sleep(due - time.perf_counter())
    async with connection(port) as first:
        html = await first.get(path)
        seen = time.perf_counter()
        pictures = list(dict.fromkeys(PICTURE.findall(html)))
        if len(pictures) < ROWS:
            raise RuntimeError(f"{path} shows {len(pictures)} pictures")
        waiting = iter(pictures)

        async def fetch(connection: Connection) -> None:
            for picture in waiting:  # shared: each takes the next
                await connection.get(picture.decode())

        async def fetch_anew() -> None:
            async with connection(port) as another:
                await fetch(another)

        await asyncio.gather(fetch(first), *(fetch_anew() for _ in range(CONNECTIONS - 1)))
    return Visit(seen - due, time.perf_counter() - due, 1 + len(pictures))


async def visits(port: int, paths: list[str], rate: float) -> list[Visit]:
    """One visit a path, `rate` of them a second."""
    start = time.perf_counter() + 0.1
    return await asyncio.gather(
        *(visit(port, path, start + i / rate) for i, path in enumerate(paths))
    )


# What they visit


def make_database(file: Path, size: int) -> None:
    """A collection with an index, and thumbnails of a usual size."""
    blocks = drawn.real_model().draw(size, seed=2)
    vectors = np.concatenate(list(blocks))
    common.make_collection(file, vectors, [_thumbnail(seed) for seed in range(200)])
    with ImageCollection(file, common.TABLE) as collection:
        collection.build_index()


def _thumbnail(seed: int) -> bytes:
    """320 × 240 soft patches as WebP: 6 KB or so, like a photo's."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8))
    out = io.BytesIO()
    patches.resize((320, 240), Image.Resampling.BICUBIC).save(out, "WEBP", quality=80)
    return out.getvalue()


@contextmanager
def server(database: Path) -> Iterator[int]:
    """A running Datasette; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "datasette", str(database), "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                sys.exit("Datasette did not start")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def pages(database: Path, size: int) -> dict[str, Callable[[int], str]]:
    """Addresses of the two pages, for any row."""
    table = f"/{database.stem}/{common.TABLE}"
    last = size - ROWS
    return {
        "table": lambda row: f"{table}?_size={ROWS}&_next={row % last}",
        "similar": lambda row: f"{table}/-/similar?_like={row % last + 1}&_size={ROWS}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=10_000, help="pictures")
    parser.add_argument("--rate", type=float, action="append", help="visits a second")
    parser.add_argument("--rounds", type=int, default=4, help="of each page and rate")
    parser.add_argument("--seconds", type=float, default=5, help="a round")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "photos.db"
        make_database(database, given.size)
        addresses = pages(database, given.size)
        with server(database) as port:

            def go(name: str, rate: float, count: int) -> list[Visit]:
                chosen = rng.integers(given.size, size=count).tolist()
                return asyncio.run(visits(port, [*map(addresses[name], chosen)], rate))

            for name in addresses:
                go(name, 2, 6)  # caches warm, the index in memory
            for rate in given.rate or [1, 10, 30]:
                found: dict[str, list[Visit]] = {name: [] for name in addresses}
                for _ in range(given.rounds):
                    for name, seen in found.items():
                        seen += go(name, rate, max(1, round(rate * given.seconds)))
                for name, seen in found.items():
                    rows.append((name, f"{rate:g}", len(seen), *_milliseconds(seen)))
    print(common.machine("uvicorn"))
    header = (
        "page",
        "visits/s",
        "visits",
        "HTML median ms",
        "p99",
        "whole median ms",
        "p99",
    )
    print(f"\n{common.table(header, rows)}")


def _milliseconds(seen: list[Visit]) -> list[str]:
    """Median and 99th percentile of the HTML, and of everything."""
    times = np.array([[one.html, one.whole] for one in seen]) * 1000
    return [f"{value:,.0f}" for value in np.quantile(times, [0.5, 0.99], axis=0).T.ravel()]


if __name__ == "__main__":
    main()
