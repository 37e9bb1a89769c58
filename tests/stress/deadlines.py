"""Every page of ours at a million rows, asked for the most expensive things there are.

    tests/stress/run deadlines                # 1.1 GB of disk; the suite has 20,000 rows

What is asked comes from the list of routes: each with everything that makes a page read
much. Two things are measured. How much longer than its deadline a request took: Datasette's
`sql_time_limit_ms`, ten times that for what reads a whole map. And how long at once nobody
else was answered: the longest pause of the event loop.

On a busy machine others take turns with us, so each is counted as the smaller of the time
on the clock and the processor time of this process, and what is too much is asked again.
"""

from __future__ import annotations

import asyncio
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from serving import IS_ONE, ROOT, ask, close_all, open_datasette

from datasette_image_similarity.web.map_data import PATIENCE
from stress.hostile import route_parts
from stress.million import TABLE, make_database
from stress.report import Report, options

OVER = 0.1  # seconds that a request may take more than its deadline
PAUSE = 0.1  # and that the event loop may stand still
TRIES = 4
WHOLE_MAP = ("/-/map", "/-/map.json", "points.bin", "columns.json", "column.json")

CIRCLE = ",".join(
    f"{math.cos(step * math.tau / 100):.3f},{math.sin(step * math.tau / 100):.3f}"
    for step in range(100)
)
FILTERS = (
    "title__contains=thing",
    "path__contains=0&title__contains=g&category__contains=c",
    "title__like=%25a%25b%25c%25d%25",
    "_search=thing",
    "_image_cluster=5",
    "_image_cluster=none",
    "_image_group=5",
    "_image_decision=mark",
    "_image_region=-1,-1,1,-1,1,1,-1,1",
    f"_image_region={CIRCLE}",
    "_image_region=grid:0,0,1000,0,1000,1000,0,1000",
)
LIKES = "&".join(f"_like={17 * number + 1}" for number in range(50))
EXPENSIVE = (
    "_exact=1",
    "_max_distance=2",
    "_max_distance=2&_exact=1",
    "_next=999000",
    "_size=max",
    "_next=900&_size=max",
    "_distinct=1&_size=max",
    "_one_per=category",
    "_one_per=title&_next=5000",
    "_distinct=1&_one_per=cluster&_next=500",
    "_one_per=duplicates&_exact=1",
    "_histogram=1&_exact=1",
    f"{LIKES}&_size=max",
    "_unlike=2&_max_distance=2&_exact=1&_distinct=1&_one_per=title",
    f"_exact=1&_max_distance=2&{FILTERS[1]}",
    f"_histogram=1&{FILTERS[0]}",
    "_view=all&_size=max",
    "_view=all&_state=open&_next=100000",
    "_days=3650",
    "_label=c05&_next=9000",
    "_column=title",
    "_column=price",
    "_column=cluster",
    f"_item={','.join(map(str, range(1, 200)))}",
)
# Pages, by a part of their address, and the parameters that mean something there.
READ_BY = {
    "_view": ("duplicates",),
    "_days": ("searches",),
    "_label": ("evaluations",),
    "_column": ("column.json",),
    "_item": ("pictures.json",),
    "_like": ("similar", "compare"),
    "_exact": ("similar", "compare"),
    "_max_distance": ("similar", "compare"),
    "_one_per": ("similar", "compare"),
    "_distinct": ("similar", "compare"),
    "_histogram": ("similar", "compare"),
    "_unlike": ("similar", "compare"),
}
SQL = (
    f"select similar_images('{TABLE}', 1, 1000)",
    f"select similar_images('{TABLE}', 1, 100000)",
    f"select similar_images('{TABLE}', 1, 9223372036854775807)",
    f"select length(similar_images('{TABLE}', id, 10)) from {TABLE}",
    f"select sum(image_distance('{TABLE}', id, id + 1)) from {TABLE}",
    f"select count(image_embedding('{TABLE}', id)) from {TABLE}",
    f"select mean_image_embedding('{TABLE}', (select json_group_array(id) from {TABLE}))",
    f"select mean_image_embedding('{TABLE}', (select json_group_array(id) from {TABLE} "
    "where id < 20000))",
    f"select count(image_store_problem('{TABLE}')) from {TABLE}",
    "select image_embedding(hex(zeroblob(5000000)), 1)",
)


@dataclass
class Measured:
    """One request. Seconds over its deadline, and that the event loop stood still."""

    path: str
    status: int
    over: float
    pause: float

    def __str__(self) -> str:
        return (
            f"{self.path[:200]} ({self.status}): {self.over * 1000:+.0f} ms over its "
            f"deadline, nobody else answered for {self.pause * 1000:.0f} ms"
        )


class Clock:
    """Seconds on the clock, or of the processor where others had it meanwhile."""

    def __init__(self) -> None:
        self.started = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        now = time.perf_counter(), time.process_time()
        return min(end - start for start, end in zip(self.started, now, strict=True))


class Pauses:
    """The longest pause of the event loop so far, in seconds."""

    longest = 0.0

    async def watch(self) -> None:
        while True:
            clock = Clock()
            await asyncio.sleep(0.002)
            self.longest = max(self.longest, clock.seconds())


@asynccontextmanager
async def watched() -> Any:
    pauses = Pauses()
    task = asyncio.create_task(pauses.watch())
    await asyncio.sleep(0.01)
    pauses.longest = 0.0
    try:
        yield pauses
        await asyncio.sleep(0.004)
    finally:
        task.cancel()


async def measure(datasette: Any, path: str, limit: float) -> Measured:
    """The best of some tries: what is slow for a reason is so every time."""
    found = None
    deadline = limit * (PATIENCE if any(part in path for part in WHOLE_MAP) else 1)
    for _ in range(TRIES):
        async with watched() as pauses:
            clock = Clock()
            answer = await ask(datasette, path, ROOT)
            over = clock.seconds() - deadline
        if found is None:
            found = Measured(path, answer.status_code, over, pauses.longest)
        found.over, found.pause = min(found.over, over), min(found.pause, pauses.longest)
        if found.over <= OVER and found.pause <= PAUSE:
            break
    return found


def pages(database: str) -> Iterator[str]:
    """An address of every route: all its formats; the SQL functions; Datasette's pages."""
    known = {"database": database, "table": TABLE, "pk": "5", "run": "1", "number": "0"}
    for tree in route_parts():
        names = {number: name for name, number in tree.state.groupdict.items()}
        for path in dict.fromkeys(_spelled(tree, names, known)):
            changes = re.search(r"/(decide|accept|undo|rename|delete|click)", path)
            if not changes:
                yield path
    for page in ("", ".json", ".csv", "/5"):
        yield f"/{database}/{TABLE}{page}"


def _spelled(parts: Iterable, names: dict[int, str], known: dict[str, str]) -> list[str]:
    """Every text that a pattern of ours matches; what is repeated, once."""
    found = [""]
    for kind, value in parts:
        ends = [""]
        if str(kind) == "LITERAL":
            ends = [chr(value)]
        elif str(kind) == "SUBPATTERN":
            group = names.get(value[0] or 0)
            ends = [known[group]] if group in known else _spelled(value[3], names, known)
        elif str(kind) == "BRANCH":
            ends = [end for one in value[1] for end in _spelled(one, names, known)]
        elif str(kind) == "MAX_REPEAT":
            ends = _spelled(value[2], names, known)
            if value[0] == 0:
                ends = ["", *ends]
        elif str(kind) == "IN":
            ends = ["1"]
        found = [start + end for start in found for end in ends]
    return found


def questions(page: str) -> Iterator[str]:
    """A page's addresses with everything that is expensive there."""
    ours = "/-/" in page
    likes = "_like=1&" if ours and ("similar" in page or "compare" in page) else ""
    yield f"{page}?{likes}".rstrip("?&")
    for query in (*FILTERS, *EXPENSIVE):
        first = query.partition("=")[0]
        if any(part in page for part in READ_BY.get(first, (page,))):
            yield f"{page}?{likes}{query}"


def everything(database: str) -> Iterator[str]:
    for page in pages(database):
        if page.endswith(f"/{TABLE}.csv"):
            yield page  # a stream: its first page
        elif page.endswith("/5"):
            yield page
        elif "/-/" not in page:
            yield from (
                f"{page}?{query}" for query in FILTERS if query.startswith("_image")
            )
        else:
            yield from questions(page)
    queried = f"/{database}/-/query.json" if IS_ONE else f"/{database}.json"
    yield from (f"{queried}?sql={quote(sql)}" for sql in SQL)


def run(
    file: Path, milliseconds: int, failed: Callable[[str], None], only: str = ""
) -> list[Measured]:
    """Ask for everything, under one time limit."""
    config = {"history": True, "search_by_image": True}
    limits = {"sql_time_limit_ms": milliseconds}
    datasette = open_datasette(file, plugin=config, settings=limits)

    async def measured() -> list[Measured]:
        found = []
        await ask(datasette, "/-/image-similarity")
        for path in everything(file.stem):
            if re.search(only, path):
                one = await measure(datasette, path, milliseconds / 1000)
                found.append(one)
                if fault(one):
                    failed(f"limit {milliseconds} ms: {one}")
        return found

    try:
        return asyncio.run(measured())
    finally:
        close_all()


def fault(one: Measured) -> bool:
    """Whether it took too long, or failed. Datasette's table page takes its own time: its
    rows, their number and each facet have a limit each, and on 0.65 its CSV is a 500."""
    failed = one.status >= 500 and one.status != 503
    if "/-/" not in one.path:
        return failed and ".csv" not in one.path
    return failed or one.over > OVER or one.pause > PAUSE


def main() -> int:
    parser = options("deadlines", (__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--limit", type=int, action="append", help="milliseconds")
    parser.add_argument("--database", type=Path, help="made before, or to be kept")
    parser.add_argument("--only", default="", help="addresses that match")
    given = parser.parse_args()
    report = Report("deadlines", given)
    figures: dict[str, Any] = {"rows": given.rows}
    with tempfile.TemporaryDirectory() as folder:
        file = given.database or Path(folder) / "million.db"
        if not file.exists():
            make_database(file, given.rows)
        for limit in given.limit or [200, 1000]:
            found = run(file, limit, report.failed, given.only)
            ours = [one for one in found if "/-/" in one.path]
            figures[f"limit {limit} ms"] = {
                "requests": len(found),
                "answered": sum(one.status == 200 for one in found),
                "refused in time": sum(one.status == 503 for one in found),
                "most over the deadline, ms": round(max(o.over for o in ours) * 1000),
                "longest pause, ms": round(max(o.pause for o in ours) * 1000),
            }
    return report.end(**figures)


if __name__ == "__main__":
    sys.exit(main())
