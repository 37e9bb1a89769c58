"""The short forms of `stress/load.py` and `stress/leaks.py`, and what they have found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import picture
from core import faults
from datasette.database import Database
from serving import ask, change, open_datasette
from stress.leaks import DEBUG, STOPPED, bad_clients, endings
from stress.load import Collection, prepare, run_load
from stress.served import Served, environment

from datasette_image_similarity import orphans
from datasette_image_similarity.collection import EncoderOptions
from datasette_image_similarity.daemons import DaemonThreads


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    folder = tmp_path_factory.mktemp("load")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.get_app_dir", lambda *_, **__: str(folder))
        yield prepare(folder, 48, EncoderOptions("hog"))


def test_clients_meet_no_errors_while_embed_writes(pictures: Collection) -> None:
    tally, figures = run_load(pictures, clients=6, seconds=4, think=0.1)
    assert not tally.errors
    assert figures["requests"] > 5
    assert figures["embed"]["runs"] > 0
    assert faults(pictures.database) == []


@pytest.mark.parametrize("table", ["images", "plain"])
async def test_a_table_page_looks_once_while_its_file_changes(
    copied: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:

    change(copied, "create table plain as select * from images")
    visits: Counter[str] = Counter()
    execute = Database.execute_fn

    async def counted(self: Database, work: object) -> object:
        visits[self.name] += 1
        os.utime(copied)  # as if embed had written
        return await execute(self, work)

    datasette = open_datasette(copied)
    assert (await ask(datasette, f"/gallery/{table}?_size=10")).status_code == 200
    monkeypatch.setattr(Database, "execute_fn", counted)
    assert (await ask(datasette, f"/gallery/{table}?_size=10")).status_code == 200
    few = visits["gallery"]
    visits.clear()
    assert (await ask(datasette, f"/gallery/{table}?_size=24")).status_code == 200
    assert visits["gallery"] <= few + 5


# A parent with a child that decodes, and one that embeds words; it prints their ids.
PARENT = """
import sys, time
from types import SimpleNamespace
from datasette_image_similarity.images import UPLOADS, Decoder, Request
from datasette_image_similarity.text_helper import Job, TextHelper
decoder, helper = Decoder(UPLOADS), TextHelper()
decoder.decode(open(sys.argv[1], "rb").read(), Request())
spec = SimpleNamespace(fingerprint="", to_json=lambda: "{}")
try:
    helper.encode(Job(spec, None, "words"), 60)
except Exception:
    pass  # there is no such encoder, but the process has started
print(decoder._process.pid, helper._process.pid, flush=True)
time.sleep(60)
"""


def test_bad_clients_leave_nothing_behind(pictures: Collection) -> None:
    with Served(pictures.database, DEBUG) as served:
        _, failures = bad_clients(served, 16, picture("red", 7), seconds=0.05)
    assert failures == []


@pytest.mark.parametrize(
    "case", [("SIGTERM", "uploads"), ("SIGKILL", STOPPED), ("Ctrl-C", "pictures")], ids=str
)
def test_no_process_outlives_datasette(pictures: Collection, case: tuple[str, str]) -> None:
    _, failures = endings(pictures, [case], picture("red", 7))
    assert failures == []


@pytest.mark.skipif(sys.platform != "linux", reason="takes Linux: see orphans.py")
def test_a_stopped_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(picture())
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(file)],
        stdout=subprocess.PIPE,
        env=environment(tmp_path),
    )
    with parent:
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        for child in children:
            child.suspend()
        parent.kill()
    _, alive = psutil.wait_procs(children, 10)
    for child in alive:
        child.kill()
    assert not alive


def test_a_child_looks_for_its_parent_where_the_system_does_not(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys, time; from datasette_image_similarity import orphans; "
        "orphans._dies_with_parent = lambda: False; orphans.end_with_parent(); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}])"
    parent = [sys.executable, "-c", f"{start}.wait()"]
    with subprocess.Popen(
        parent, stdout=subprocess.PIPE, env=environment(tmp_path)
    ) as process:
        child = psutil.Process(int(process.stdout.readline()))
        process.kill()
    _, alive = psutil.wait_procs([child], 10 * orphans.LOOK_SECONDS)
    assert not alive


def test_python_does_not_wait_for_threads_that_hang(tmp_path: Path) -> None:
    code = (
        "import time; from datasette_image_similarity.daemons import DaemonThreads; "
        "DaemonThreads(2, 'hanging').submit(time.sleep, 60)"
    )
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), check=True)
    assert time.monotonic() - begun < 30


def test_threads_work_in_turn_and_end() -> None:
    threads = DaemonThreads(1, "one")
    first = threads.submit(time.sleep, 0.2)
    second, third = threads.submit(int, "7"), threads.submit(int, "seven")
    assert second.result(10) == 7
    assert first.done()
    with pytest.raises(ValueError, match="seven"):
        third.result(10)
    hanging = threads.submit(signal.sigtimedwait, [signal.SIGUSR1], 0.2)
    waiting = threads.submit(os.getpid)
    while not hanging.running():
        time.sleep(0.01)
    threads.shutdown()
    assert waiting.cancelled()
    with pytest.raises(RuntimeError):
        threads.submit(int)
