"""What bad clients and an abrupt end leave behind: nothing.

A real `datasette serve` meets clients that read an answer byte by byte, go away in the
middle of it or in the middle of an upload, and more uploads at once than its queue has
room for. Afterwards it has as many threads, child processes, open files and tasks as
before, and no temporary files. Then servers are ended by every signal, whatever they are
doing, also while a child process is stopped and cannot hear of it: nothing is left.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from conftest import picture

from datasette_image_similarity.collection import EncoderOptions

from .load import TABLE, Collection, full, prepare
from .report import Report, options
from .served import Client, Served, own_folder, request, upload

DEBUG = {"permissions": {"permissions-debug": True}}  # 1.0 keeps /-/threads to itself
SETTLE = 30  # seconds that it may take until all is as it was
GONE = 10  # seconds that an end may take
SLOW_BYTES = 5  # that a slow client reads, one a second
PATIENT = 60  # seconds that somebody else's page may take meanwhile

# What is big, or is made by somebody else than a SQL thread.
ANSWERS = (
    f"{TABLE}/-/map/points.bin",
    f"{TABLE}/-/map/atlas/0",
    f"{TABLE}/-/similar.csv?_like=1&_size=max",
    f"{TABLE}/-/similar.zip?_like=1",
    f"{TABLE}/-/similar?_like=1",
    f"{TABLE}/-/image/1",
    f"{TABLE}.csv?_stream=1",
)
UPLOAD = f"{TABLE}/-/search-by-image"
IMAGE = f"{TABLE}/-/image/{{}}"


def state(served: Served) -> Counter[str]:
    """What the server holds: threads, open files and tasks of its own, child processes."""
    server = psutil.Process(served.process.pid)
    names, tasks = inside(served)
    # asyncio has a few threads of its own, and starts them when there is work for one more.
    asyncios = sum(name.startswith("asyncio_") for name in names)
    return Counter(
        {
            "threads": server.num_threads() - asyncios,
            "files": server.num_fds(),
            "children": len(server.children(recursive=True)),
            "tasks": tasks,
            "temporary files": sum(1 for _ in served.temporary.iterdir()),
        }
    )


def inside(served: Served) -> tuple[list[str], int]:
    """The names of Python's threads in the server, and how many tasks its loop has."""
    with urllib.request.urlopen(f"{served.url}/-/threads.json", timeout=PATIENT) as answer:
        said = json.load(answer)
    return [one["name"] for one in said["threads"]], said["num_tasks"]


def settled(served: Served, before: Counter[str]) -> Counter[str]:
    """The state once it is no more than before, or after SETTLE seconds."""
    until = time.monotonic() + SETTLE
    while True:
        after = state(served)
        if not more_than(before, after) or time.monotonic() > until:
            return after
        time.sleep(0.2)


def at_rest(served: Served) -> Counter[str]:
    """The state once it has stayed the same for a while."""
    found, since = state(served), time.monotonic()
    while time.monotonic() < since + 1:
        time.sleep(0.2)
        now = state(served)
        if now != found:
            found, since = now, time.monotonic()
    return found


def more_than(before: Counter[str], after: Counter[str]) -> dict[str, tuple[int, int]]:
    """What there is more of, before and after."""
    return {name: (before[name], after[name]) for name in after - before}


async def warm(port: int, data: bytes) -> None:
    """Start all that starts when it is first needed: threads, children, connections."""

    async def once(number: int) -> None:
        client = Client(port)
        for path in ANSWERS:
            await client.ask(path)
        await client.ask(f"{TABLE}/-/image/{number + 1}")
        await client.ask(UPLOAD, *upload(data))
        client.close()

    for _ in range(2):
        await asyncio.gather(*map(once, range(12)))


# Bad clients


async def slow(port: int, number: int, seconds: float = 1) -> None:
    """Read some bytes of a big answer, slowly, and go away."""
    client = Client(port)
    await client.begin(ANSWERS[number % len(ANSWERS)])
    for _ in range(SLOW_BYTES):
        await client.read(1)
        await asyncio.sleep(seconds)
    client.close()


async def leave(port: int, number: int) -> None:
    """Go away at once, or when the answer begins."""
    client = Client(port)
    await client.begin(ANSWERS[number % len(ANSWERS)])
    if number % 2:
        await client.read(100)
    client.close()


async def half(port: int, number: int, data: bytes) -> None:
    """Go away in the middle of an upload, or when all is sent."""
    client = Client(port)
    sent = request(port, UPLOAD, *upload(data))
    await client.send(sent if number % 3 == 0 else sent[: len(sent) * (number % 10) // 10])
    await asyncio.sleep(0.02)
    client.close()


async def queue(port: int, number: int, data: bytes) -> str:
    """Wait for the answer like everybody: "found", or "refused" in a polite way."""
    client = Client(port)
    body, headers = upload(data)
    reply = await client.ask(UPLOAD, body, {**headers, "accept": "application/json"})
    client.close()
    if reply.status == 200 and full(reply):
        return "found"
    polite = reply.status == 429 and reply.headers.get("retry-after")
    return "refused" if polite else f"{reply.status} {reply.body[:200]!r}"


def bad_clients(
    served: Served, number: int, data: bytes, *, seconds: float = 1
) -> tuple[dict[str, Any], list[str]]:
    """What the server held before and after each kind, `number` of each, and failures."""
    kinds: dict[str, Callable[[int], Awaitable[Any]]] = {
        "uploads at once": lambda n: queue(served.port, n, data),
        "slow clients": lambda n: slow(served.port, n, seconds),
        "gone in the answer": lambda n: leave(served.port, n),
        "gone in the upload": lambda n: half(served.port, n, data),
    }

    async def meet(one: Callable[[int], Awaitable[Any]]) -> Counter[Any]:
        """All of them at once; somebody else asks for pages meanwhile."""
        bad = [asyncio.ensure_future(one(n)) for n in range(number)]
        await asyncio.sleep(0.1)
        other = Client(served.port)
        for path in (f"{TABLE}/1", f"{TABLE}/-/thumbnail/1"):
            reply = await asyncio.wait_for(other.ask(path), PATIENT)
            if reply.status != 200:
                failures.append(f"{path} meanwhile: {reply.status}")
        other.close()
        return Counter(await asyncio.gather(*bad))

    failures: list[str] = []
    figures: dict[str, Any] = {"clients": number}
    # With a cold model first of all: nobody has asked for anything.
    met = asyncio.run(meet(kinds["uploads at once"]))
    figures["uploads with a cold model"] = dict(met)
    asyncio.run(warm(served.port, data))
    before = figures["before"] = at_rest(served)
    for name, one in kinds.items():
        met = asyncio.run(meet(one))
        after = figures[name] = settled(served, before)
        if name == "uploads at once":
            figures["answers to uploads"] = dict(met)
            strange = [said for said in met if said not in ("found", "refused")]
            failures += [f"{name}: {said}" for said in strange]
        if more := more_than(before, after):
            threads = ", ".join(inside(served)[0])
            failures.append(f"{name} left more than there was: {more}. Threads: {threads}")
    for line in served.said().splitlines():
        if "Traceback" in line or "Error" in line:
            failures.append(f"log: {line}")
    return figures, failures


# The end

SIGNALS: dict[str, tuple[tuple[int, ...], bool]] = {
    "SIGTERM": ((signal.SIGTERM,), False),
    "SIGINT": ((signal.SIGINT,), False),
    "Ctrl-C": ((signal.SIGINT,), True),
    "Ctrl-C twice": ((signal.SIGINT, signal.SIGINT), True),
    "SIGKILL": ((signal.SIGKILL,), False),
}
DOING = ("nothing", "searches", "uploads", "pictures")
STOPPED = "nothing, children stopped"
HANGING = "pictures, children stopped"
# Who ends a server politely has it answer first, which a stopped child keeps it from; that
# takes as long as a picture may.
IMPOLITE = ("Ctrl-C twice", "SIGKILL")
CASES = [(said, doing) for said in SIGNALS for doing in (*DOING, STOPPED)]
CASES += [(said, HANGING) for said in IMPOLITE]


def busy(port: int, doing: str, data: bytes) -> list[socket.socket]:
    """Have the server start its children and do something; who waits for the answers."""
    for sent in (request(port, IMAGE.format(1)), request(port, UPLOAD, *upload(data))):
        with socket.create_connection(("127.0.0.1", port), PATIENT) as one:
            one.sendall(sent)
            one.recv(1)
    waiting = []
    for number in range(8):
        sent = {
            "searches": request(port, f"{TABLE}/-/similar?_like={number + 1}&_histogram=1"),
            "uploads": request(port, UPLOAD, *upload(data)),
            "pictures": request(port, IMAGE.format(number + 1)),
        }.get(doing.partition(",")[0])
        if sent:
            waiting.append(socket.create_connection(("127.0.0.1", port), PATIENT))
            waiting[-1].sendall(sent)
    return waiting


def end(served: Served, said: str, doing: str, data: bytes) -> tuple[float, list[str]]:
    """Seconds until nothing was left, and what is left after GONE seconds."""
    stopped = doing.endswith("stopped")
    busy(served.port, "nothing", data)
    family = served.family()
    if stopped:
        for child in family[1:]:
            child.suspend()
    waiting = busy(served.port, doing, data) if doing != STOPPED else []
    family = served.family()
    signals, group = SIGNALS[said]
    begun = time.monotonic()
    for number in signals:
        served.send(number, group=group)
        time.sleep(0.3 if len(signals) > 1 else 0)
    with suppress(subprocess.TimeoutExpired):
        served.process.wait(GONE)
    _, alive = psutil.wait_procs(family[1:], max(0, begun + GONE - time.monotonic()))
    took = time.monotonic() - begun
    left = [" ".join(one.cmdline()[:4]) for one in alive]
    if served.process.poll() is None:
        left.insert(0, "datasette")
    for one in waiting:
        one.close()
    for one in alive:
        with suppress(psutil.Error):
            one.kill()
    return took, left


def endings(
    collection: Collection, cases: Sequence[tuple[str, str]], data: bytes
) -> tuple[dict[str, float], list[str]]:
    """Seconds by case, and failures."""
    seconds, failures = {}, []
    for said, doing in cases:
        with Served(collection.database) as served:
            took, left = end(served, said, doing, data)
            log = served.said()
        seconds[f"{said}, {doing}"] = round(took, 2)
        if left:
            failures.append(f"{said} while doing {doing}: left after {GONE} s: {left}")
        # A server that is ended by force says so of every answer that it cut off.
        if "Traceback" in log and said not in IMPOLITE:
            failures.append(f"{said} while doing {doing}: {log[-2000:]}")
    return seconds, failures


def main(argv: Sequence[str] | None = None) -> int:
    parser = options("leaks", __doc__)
    parser.add_argument("--clients", type=int, default=200, help="of each kind")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--skip", choices=["clients", "ends"], help="one of the two parts")
    parser.add_argument("--folder", type=Path, help="made there, and used again if it is")
    asked = parser.parse_args(argv)
    report = Report("leaks", asked)
    with own_folder(asked.folder) as folder:
        collection = prepare(folder, asked.pictures, EncoderOptions("hog"))
        data = picture("red", 7, (600, 400))
        figures: dict[str, Any] = {}
        if asked.skip != "clients":
            with Served(collection.database, DEBUG) as served:
                figures, failures = bad_clients(served, asked.clients, data)
            for failure in failures:
                report.failed(failure)
        if asked.skip != "ends":
            figures["seconds_to_end"], failures = endings(collection, CASES, data)
            for failure in failures:
                report.failed(failure)
        return report.end(**figures)


if __name__ == "__main__":
    sys.exit(main())
