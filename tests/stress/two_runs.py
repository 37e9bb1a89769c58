"""Runs beside each other: two that embed, decoders that are killed, and a busy database.

Two runs of `embed` over the same pictures begin at different times, and often one of them
is killed. What comes of it is what one run alone makes of them, and little is done twice:
each decoded picture is counted. Decoders, the child processes that read pictures, are
killed under a run, which goes on. And while another process holds the lock, commands wait,
and say so where that takes too long.

    tests/stress/run two_runs               40 rounds of each, and 5 and 60 seconds
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from conftest import picture
from datasette.utils.sqlite import sqlite3

from datasette_image_similarity import database as db
from datasette_image_similarity.images import DecoderPool

from .kill import (
    SCENARIOS,
    STATES,
    World,
    children_left,
    in_child,
    look,
    members,
    prepare,
    run,
    waited,
)
from .report import Report, options

PICTURES = 120
EMBED = "embed {db} {photos} {hog}"
BUSY = ("embed changes", "index", "reduce", "duplicates", "map", "remove one", "repair")
TAKEN = "another process has been writing to it for over"


def _many(world: World) -> None:
    folder = world.folder / "photos"
    folder.mkdir(parents=True)
    for n in range(PICTURES):
        (folder / f"{n:04}.png").write_bytes(picture("green", n))


STATES["many"] = ("", _many)


class Beside:
    """A world in which commands run at the same time."""

    def __init__(self, root: Path) -> None:
        self.world = World(root)
        self.decoded = root / "decoded"
        self.started = 0

    def start(self, command: str) -> int:
        """The process id, and the session, of a run; what it decodes is counted."""
        self.started += 1
        output = self.world.root / f"output-{self.started}"
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            in_child(self.world.arguments(command), output, ready=self._count)
        return child

    def said(self) -> str:
        """What the run said that was started last."""
        return (self.world.root / f"output-{self.started}").read_text()

    def _count(self) -> None:
        decode = DecoderPool.decode
        out = os.open(self.decoded, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def counting(*arguments: Any) -> Any:
            os.write(out, b".")
            return decode(*arguments)

        DecoderPool.decode = counting

    def begin(self, state: str) -> None:
        self.world.put_back(state, wal=False)
        self.decoded.write_bytes(b"")

    def pictures(self) -> dict[str, tuple]:
        """Hash, vector and thumbnail of each path; more than once is an error."""
        with closing(db.connect(self.world.path)) as conn:
            rows = conn.execute(
                "select t.path, i.sha256, v.embedding, w.webp from images t "
                "left join _image_similarity_items i on i.pk = t.id "
                "left join _image_similarity_vectors_1 v on v.id = i.id "
                "left join _image_similarity_thumbnails w on w.id = i.id"
            ).fetchall()
        found = {row[0]: tuple(row)[1:] for row in rows}
        if len(found) < len(rows):
            raise RuntimeError(f"{len(rows)} rows for {len(found)} pictures")
        return found


def race(beside: Beside, chance: random.Random, usual: float) -> tuple[str, list[str]]:
    """Two runs, of which one may be killed: what was done, and what is wrong."""
    beside.begin("many")
    faults = []
    first = beside.start(EMBED)
    time.sleep(chance.uniform(0, usual) if chance.random() < 0.7 else 0)
    second = beside.start(EMBED)
    killed = chance.choice([None, first, second])
    if killed is not None:
        time.sleep(chance.uniform(0, usual))
        os.kill(killed, signal.SIGKILL)
    for run_ in (first, second):
        status = waited(run_)
        if status != 0 and not (run_ == killed and status == -signal.SIGKILL):
            faults.append(f"exit status {status}: {beside.said()[-300:]}")
        if left := children_left(run_):
            faults.append(f"{left} child processes live on")
    return "killed" if killed else "both ended", faults


def shoot_decoders(beside: Beside, chance: random.Random, usual: float) -> list[str]:
    """A run whose decoders are killed, two at most: it goes on; what is wrong."""
    beside.begin("many")
    child = beside.start(EMBED.replace("{hog}", "{hog} --workers 2"))
    for _ in range(2):
        time.sleep(chance.uniform(0, usual / 2))
        for decoder in [one for one in members(child) if one.pid != child][:1]:
            decoder.kill()
    status = waited(child)
    faults = [f"exit status {status}: {beside.said()[-300:]}"] if status else []
    return faults + ["child processes live on"] * bool(children_left(child))


def differing(beside: Beside, alone: dict[str, tuple]) -> list[str]:
    """What is not as one run alone leaves it, once nothing is left to do."""
    faults = list(look(beside.world.path).faults)
    ended = run(beside.world.arguments(EMBED), beside.world.root / "output")
    if ended.status:
        faults.append(f"run again: {ended.said[-300:]}")
    seen = look(beside.world.path)
    found = beside.pictures()
    wrong = [path for path in {*found, *alone} if found.get(path) != alone.get(path)]
    return faults + seen.faults + [f"differs: {path}" for path in wrong[:3]]


def held(path: Path, seconds: float, act: Callable[[], Any]) -> Any:
    """Do something while another process holds the lock, for so many seconds at most."""
    ready, told = os.pipe()
    holder = os.fork()
    if holder == 0:
        conn = sqlite3.connect(str(path), isolation_level=None)
        conn.execute("begin immediate")
        os.write(told, b".")
        time.sleep(seconds)
        os._exit(0)
    os.read(ready, 1)
    try:
        return act()
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(ready)
        os.close(told)


def busy(world: World, name: str, seconds: float) -> str | None:
    """Run a command while its database is locked so long; what is wrong."""
    scenario = next(one for one in SCENARIOS if one.name == name)
    world.put_back(scenario.state, wal=False)
    before = look(world.path)

    def act() -> Any:
        return run(world.arguments(scenario.command), world.root / "output")

    ended = held(world.path, seconds, act)
    if seconds < db.BUSY_SECONDS:
        if ended.status:
            return f"not waited for: {ended.said[-300:]}"
        return None if ended.seconds >= seconds else "the lock was passed by"
    if ended.status != 1 or TAKEN not in ended.said or "Traceback" in ended.said:
        return f"exit status {ended.status}: {ended.said[-300:]}"
    return None if look(world.path) == before else "something was written"


def run_all(
    root: Path, rounds: int, locks: tuple[float, ...], seed: int, report: Report
) -> dict[str, Any]:
    beside = Beside(root)
    beside.begin("many")
    ended = run(beside.world.arguments(EMBED), root / "output")
    alone, usual = beside.pictures(), ended.seconds
    kinds: Counter[str] = Counter()
    twice = []
    for number in range(rounds):
        chance = random.Random(f"{seed} {number}")
        kind, faults = race(beside, chance, usual)
        if kind == "both ended":
            twice.append(beside.decoded.stat().st_size - PICTURES)
        kinds[kind] += 1
        for fault in faults + differing(beside, alone):
            report.failed(f"seed {seed}, two runs, round {number}: {fault}")
        for fault in shoot_decoders(beside, chance, usual) + differing(beside, alone):
            report.failed(f"seed {seed}, decoders, round {number}: {fault}")
    for seconds in locks:
        for name in BUSY:
            if fault := busy(beside.world, name, seconds):
                report.failed(f"{name}, locked for {seconds} seconds: {fault}")
    return {
        "two runs": dict(kinds),
        "pictures": PICTURES,
        "decoded twice": {"most": max(twice, default=0), "all": twice},
        "runs whose decoders were killed": rounds,
        "commands that found a locked database": len(locks) * len(BUSY),
    }


def main() -> int:
    parser = options("two_runs", __doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--locks", type=float, nargs="*", default=(5.0, 60.0))
    parser.add_argument("--patience", type=float, default=db.BUSY_SECONDS)
    chosen = parser.parse_args()
    db.BUSY_SECONDS = chosen.patience
    prepare([one for one in SCENARIOS if one.name in ("embed", *BUSY)])
    report = Report("two_runs", chosen)
    with tempfile.TemporaryDirectory() as folder:
        given = chosen.rounds, tuple(chosen.locks), chosen.seed, report
        figures = run_all(Path(folder), *given)
    return report.end(**figures)


if __name__ == "__main__":
    sys.exit(main())
