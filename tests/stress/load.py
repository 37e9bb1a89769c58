"""Many clients at once, while `embed` writes to the same file the whole time.

A real `datasette serve` is asked by clients in a closed loop: each asks, reads the whole
answer, waits for a moment and asks again. They mix Datasette's own pages with ours. What
must hold: no answer but 200, and a polite 429 for uploads over the queue; the 99th
percentile of each of our pages no worse than that of Datasette's own table page in the
same run; the memory of the server, its children included, flat at the end.

The clients are tasks of one process. On a machine with few cores they, the server and
`embed` share these, so latencies are good for comparing kinds of one run, and for nothing
else; what the clients took of a core is in the figures.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import COLOURS, PHOTOS, WEIGHTS, picture
from core import faults, value
from serving import change

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.collection import EncoderOptions

from .report import Report, options
from .served import Client, Reply, Served, environment, own_folder, upload

WARM_UP = 60  # seconds after which memory is looked at
FEW = 100  # answers of a kind below which its 99th percentile says nothing
LEFT = 0.10  # how much more memory there may be at the end of the second half
LEFT_MB = 20
JUDGE = "table"  # Datasette's own table page

# What is prepared


@dataclass(frozen=True)
class Collection:
    """A database of pictures: those in `steady` stay, those in `moving` come and go."""

    database: Path
    steady: Path
    moving: Path
    encoder: EncoderOptions

    @property
    def folder(self) -> Path:
        return self.database.parent


def prepare(folder: Path, pictures: int, encoder: EncoderOptions) -> Collection:
    """Real photos where they are there, else drawn ones; with a map and duplicates."""
    made = Collection(
        folder / "load.db", folder / "pictures/steady", folder / "pictures/moving", encoder
    )
    if made.database.exists():  # of an earlier run in the same folder
        return made
    made.moving.mkdir(parents=True)
    made.steady.mkdir()
    photos = sorted(PHOTOS.glob("caltech101/*/*.jpg"))
    random.Random(0).shuffle(photos)
    for number in range(pictures):
        if number < len(photos):
            photo = photos[number]
            place = made.steady / photo.parent.name / f"{number}-{photo.name}"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photo, place)
        else:
            colour = list(COLOURS)[number % len(COLOURS)]
            place = made.steady / colour / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(picture(colour, number))
    with ImageCollection(made.database) as collection:
        collection.embed(folder / "pictures", encoder=encoder, label_from_folder=True)
        collection.duplicates()
        collection.map(method="pca")
    # As ours, but without pictures: Datasette's page, and nothing of us on it.
    change(made.database, "create table plain as select * from images")
    return made


# Who writes


def write_on(database: str, moving: str, encoder: str, seed: str) -> None:
    """Change files and embed them, again and again, until stdin is closed.

    Prints what was done as JSON. A process of its own.
    """
    import threading

    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    chance = random.Random(int(seed))
    done: Counter[str] = Counter()
    with ImageCollection(database) as collection:
        while not (done["runs"] and ended.is_set()):
            move_about(Path(moving), chance)
            summary = collection.embed(
                Path(moving).parent,
                encoder=EncoderOptions(**json.loads(encoder)),
                label_from_folder=True,
                workers=1,
                prune=True,
                batch_size=8,
                stop=ended.is_set,
            )
            for name in ("embedded", "unchanged", "removed", "failed"):
                done[name] += getattr(summary, name)
            done["runs"] += 1
    print(json.dumps(done))


def move_about(folder: Path, chance: random.Random) -> None:
    """Add some pictures, change some and take some away; about a hundred stay."""
    there = sorted(folder.iterdir())
    chance.shuffle(there)
    for file in there[:8]:
        file.write_bytes(picture("blue", chance.getrandbits(32)))
    for file in there[8 : 8 + max(0, len(there) - 100)]:
        file.unlink()
    for _ in range(8):
        colour = chance.choice(list(COLOURS))
        number = chance.getrandbits(32)
        (folder / f"{colour}-{number}.png").write_bytes(picture(colour, number))


@contextmanager
def writing(collection: Collection, seed: int) -> Iterator[dict[str, int]]:
    """`write_on()` in a process of its own; what it did is filled in at the end."""
    arguments = [str(collection.database), str(collection.moving)]
    chosen = {name: value for name, value in vars(collection.encoder).items() if value}
    arguments += [json.dumps(chosen, default=str)]
    code = "import sys; from stress.load import write_on; write_on(*sys.argv[1:])"
    writer = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(collection.folder),
    )
    done: dict[str, int] = {}
    try:
        yield done
        said, _ = writer.communicate(timeout=60)
        if writer.returncode:
            raise RuntimeError(f"embed ended with status {writer.returncode}")
        done |= json.loads(said)
    finally:
        writer.kill()
        writer.wait()


# What is asked


@dataclass(frozen=True)
class Kind:
    """A kind of request: how often it is asked for, beside others, and its address."""

    name: str
    share: int
    path: Callable[[Surfer], str]
    ours: bool = True
    check: Callable[[Reply], bool] = lambda reply: True
    upload: str = ""  # what the reply is to be


@dataclass
class Surfer:
    """What a client chooses from."""

    pks: Sequence[str]
    labels: Sequence[str]
    items: Sequence[int]
    uploads: Sequence[bytes]
    chance: random.Random

    @property
    def pk(self) -> str:
        return self.chance.choice(self.pks)

    @property
    def label(self) -> str:
        return self.chance.choice(self.labels)


TABLE = "/load/images"
HTML, JSON = {"accept": "text/html"}, {"accept": "application/json"}


def full(reply: Reply) -> bool:
    """Whether a page of results holds as many as it should."""
    return len(json.loads(reply.body)["rows"]) == 24


def _items(surfer: Surfer) -> str:
    return ",".join(str(surfer.chance.choice(surfer.items)) for _ in range(30))


KINDS = [
    Kind(JUDGE, 10, lambda s: f"{TABLE}?_next={s.chance.randrange(1000)}", ours=False),
    Kind("table, filtered", 4, lambda s: f"{TABLE}?label={s.label}", ours=False),
    Kind("table without pictures", 10, lambda s: "/load/plain", ours=False),
    Kind("row", 8, lambda s: f"{TABLE}/{s.pk}", ours=False),
    Kind("similar", 14, lambda s: f"{TABLE}/-/similar?_like={s.pk}"),
    Kind("similar to two", 4, lambda s: f"{TABLE}/-/similar?_like={s.pk}&_unlike={s.pk}"),
    Kind(
        "similar, filtered",
        8,
        lambda s: f"{TABLE}/-/similar?_like={s.pk}&label={s.label}",
    ),
    Kind("similar.json", 8, lambda s: f"{TABLE}/-/similar.json?_like={s.pk}", check=full),
    Kind("thumbnail", 24, lambda s: f"{TABLE}/-/thumbnail/{s.pk}"),
    Kind("image", 3, lambda s: f"{TABLE}/-/image/{s.pk}"),
    Kind("map", 3, lambda s: f"{TABLE}/-/map"),
    Kind("map points", 3, lambda s: f"{TABLE}/-/map/points.bin"),
    Kind("map column", 2, lambda s: f"{TABLE}/-/map/column.json?_column=label"),
    Kind("map pictures", 3, lambda s: f"{TABLE}/-/map/pictures.json?_item={_items(s)}"),
    Kind("map atlas", 2, lambda s: f"{TABLE}/-/map/atlas/0"),
    Kind("duplicates", 3, lambda s: f"{TABLE}/-/duplicates"),
    Kind("home", 2, lambda s: "/-/image-similarity"),
    Kind("search page", 2, lambda s: f"{TABLE}/-/search-by-image"),
    Kind("upload", 2, lambda s: f"{TABLE}/-/search-by-image", upload="html"),
    Kind(
        "upload.json", 3, lambda s: f"{TABLE}/-/search-by-image", check=full, upload="json"
    ),
]


@dataclass
class Tally:
    """Milliseconds by kind, refusals that were polite, and what went wrong."""

    milliseconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: int = 0
    errors: Counter[str] = field(default_factory=Counter)


async def surf(port: int, surfer: Surfer, tally: Tally, until: float, think: float) -> None:
    """One client."""
    client = Client(port)
    shares = [kind.share for kind in KINDS]
    while time.monotonic() < until:
        await asyncio.sleep(surfer.chance.expovariate(1 / think))
        (kind,) = surfer.chance.choices(KINDS, shares)
        path, body, headers = kind.path(surfer), None, HTML
        if kind.upload:
            body, headers = upload(surfer.chance.choice(surfer.uploads))
            headers |= HTML if kind.upload == "html" else JSON
        begun = time.perf_counter()
        try:
            reply = await asyncio.wait_for(client.ask(path, body, headers), 60)
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            client.close()
            tally.errors[f"{kind.name}: {type(error).__name__} {error}"] += 1
            continue
        took = 1000 * (time.perf_counter() - begun)
        if reply.status == 429 and kind.upload and reply.headers.get("retry-after"):
            tally.refused += 1
        elif reply.status != 200 or not kind.check(reply):
            said = reply.body[-300:].decode("utf-8", "replace")
            tally.errors[f"{kind.name}: {reply.status} {path} {said}"] += 1
        else:
            tally.milliseconds[kind.name].append(took)
    client.close()


def surfers(collection: Collection, clients: int, seed: int) -> Iterator[Surfer]:
    chance = random.Random(seed)
    with ImageCollection(collection.database) as opened:
        conn = opened.connect()
        steady = "from images where path like 'steady/%'"
        pks = [str(row[0]) for row in conn.execute(f"select id {steady}")]
        labels = [row[0] for row in conn.execute(f"select label {steady} group by label")]
        items = [
            row[0]
            for row in conn.execute(
                "select i.id from _image_similarity_items i join images t on i.pk = t.id "
                "where t.path like 'steady/%'"
            )
        ]
    files = sorted(file for file in collection.steady.rglob("*") if file.is_file())
    uploads = [file.read_bytes() for file in chance.sample(files, min(40, len(files)))]
    for number in range(clients):
        yield Surfer(pks, labels, items, uploads, random.Random(f"{seed} {number}"))


# The run


async def watch(served: Served, seen: list[tuple[float, int]], until: float) -> None:
    """Note the server's memory once a second."""
    begun = time.monotonic()
    while time.monotonic() < until:
        seen.append((time.monotonic() - begun, served.memory()))
        await asyncio.sleep(1)


def run_load(
    collection: Collection,
    *,
    clients: int,
    seconds: float,
    think: float = 0.5,
    seed: int = 0,
) -> tuple[Tally, dict[str, Any]]:
    """What the clients met, and the figures of the run."""
    tally = Tally()
    memory: list[tuple[float, int]] = []
    surfing = list(surfers(collection, clients, seed))

    async def everybody() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(
            watch(served, memory, until),
            *(surf(served.port, surfer, tally, until, think) for surfer in surfing),
        )

    with Served(collection.database) as served:
        with writing(collection, seed) as written:
            before = _cpu()
            asyncio.run(everybody())
            share = (_cpu() - before) / seconds
        server = sum(served.family()[0].cpu_times()[:2]) / seconds
        said = served.said()
        status = served.stop()
    if status not in (0, -15):
        tally.errors[f"the server ended with status {status}"] += 1
    for line in said.splitlines():
        if "Traceback" in line or "locked" in line or "Error" in line:
            tally.errors[f"log: {line}"] += 1
    figures = {
        "clients": clients,
        "requests": sum(map(len, tally.milliseconds.values())),
        "a_second": round(sum(map(len, tally.milliseconds.values())) / seconds, 1),
        "kinds": {kind.name: percentiles(tally.milliseconds[kind.name]) for kind in KINDS},
        "refused_uploads": tally.refused,
        "errors": sum(tally.errors.values()),
        "embed": written,
        "memory_mb": memory_figures(memory),
        "core_of_clients": round(share, 2),
        "core_of_server": round(server, 2),
    }
    return tally, figures


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    found = sorted(milliseconds)
    if not found:
        return {"count": 0}

    def at(part: float) -> float:
        return round(found[min(len(found) - 1, math.ceil(part * len(found)) - 1)], 1)

    return {
        "count": len(found),
        "p50": at(0.5),
        "p95": at(0.95),
        "p99": at(0.99),
        "max": at(1),
    }


def memory_figures(seen: Sequence[tuple[float, int]]) -> dict[str, float]:
    """At the start, once warm, at the end, and how it rises over the second half."""
    warm = next((size for at, size in seen if at >= WARM_UP), seen[0][1])
    half = seen[len(seen) // 2 :]
    rise = 0.0
    if len(half) > 2:
        slope, _ = statistics.linear_regression(*zip(*half, strict=True))
        rise = slope * (half[-1][0] - half[0][0])
    return {
        "start": round(seen[0][1] / 1e6, 1),
        "warm": round(warm / 1e6, 1),
        "end": round(seen[-1][1] / 1e6, 1),
        "most": round(max(size for _, size in seen) / 1e6, 1),
        "rise_in_second_half": round(rise / 1e6, 1),
    }


def slower(figures: dict[str, Any]) -> list[str]:
    """Our pages whose 99th percentile is worse than that of Datasette's table page."""
    kinds = figures["kinds"]
    judge = kinds[JUDGE].get("p99", math.inf)
    return [
        f"p99 of {kind.name} is {kinds[kind.name]['p99']} ms, that of {JUDGE} {judge} ms"
        for kind in KINDS
        if kind.ours
        and kinds[kind.name]["count"] >= FEW
        and kinds[kind.name]["p99"] > judge
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = options("load", __doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--think", type=float, default=0.5, help="seconds, on average")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--model", default="hog", help="hog, or mobilenet_v2")
    parser.add_argument("--folder", type=Path, help="made there, and used again if it is")
    asked = parser.parse_args(argv)
    report = Report("load", asked)
    with own_folder(asked.folder) as folder:
        weights = (
            str(WEIGHTS) if asked.model == "mobilenet_v2" and WEIGHTS.exists() else None
        )
        encoder = EncoderOptions(asked.model, weights=weights)
        collection = prepare(folder, asked.pictures, encoder)
        tally, figures = run_load(
            collection,
            clients=asked.clients,
            seconds=60 * asked.minutes,
            think=asked.think,
            seed=asked.seed,
        )
        for error, times in tally.errors.most_common(20):
            report.failed(f"{times} × {error}")
        for said in slower(figures):
            report.failed(said)
        memory = figures["memory_mb"]
        if memory["rise_in_second_half"] > max(LEFT_MB, LEFT * memory["end"]):
            report.failed(f"memory goes on rising: {memory}")
        for fault in faults(collection.database):
            report.failed(f"verify: {fault}")
        figures["pictures"] = value(
            collection.database, "select count(*) from _image_similarity_items"
        )
        return report.end(**figures)


if __name__ == "__main__":
    sys.exit(main())
