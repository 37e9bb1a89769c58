"""The worked example of docs/scale.md, as it is written: Ray's two nodes, a real Milvus."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from core import contents
from serving import ask_json, open_datasette

ROOT = Path(__file__).parents[1]
NOT_HERE = 3  # the exit status of demo/milvus_server.py where it cannot run
PATIENCE = 180  # seconds, for what takes ten on an idle machine
SERVERS = ("python demo/milvus_server.py", "python demo/ray_nodes.py")
# What installs, and what opens pages in a browser.
ELSEWHERE = ("pip install", "datasette cluster.db")


def lines() -> list[str]:
    """The commands of the example, in order."""
    text = (ROOT / "docs" / "scale.md").read_text()
    example = text.split("\n## ")[1]
    blocks = re.findall(r"```bash\n(.*?)```", example, flags=re.S)
    return "".join(blocks).replace("\\\n", "").splitlines()


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def running(words: list[str]) -> Iterator[None]:
    """A server, from when it says that it is ready to when it has ended."""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        if not any("ready" in line.lower() for line in process.stdout):
            reason = process.stderr.read().strip()
            if process.wait(PATIENCE) == NOT_HERE:
                pytest.skip(reason)
            pytest.fail(f"{shlex.join(words)}: {reason}")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.mark.slow
async def test_the_example_from_start_to_finish(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("ray", "pymilvus"):
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    # What the commands note as trusted, and what pages believe.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "noted"))
    noted = str(tmp_path / "noted" / "datasette-image-similarity")
    monkeypatch.setattr("click.get_app_dir", lambda *_, **__: noted)
    ports = {"19530": free_port(), "6379": free_port()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    told: dict[str, str] = {}
    pages: dict[str, list[dict]] = {}
    with ExitStack() as servers:
        for line in lines():
            if line.startswith(ELSEWHERE):
                continue
            for port, ours in ports.items():
                line = line.replace(port, ours)
            words = shlex.split(line.replace("PHOTOS", shlex.quote(str(photos))))
            if line.startswith(SERVERS):
                words = [sys.executable, str(ROOT / words[1]), *words[2:]]
                servers.enter_context(running(words))
                continue
            assert words[:2] == ["datasette", "image-similarity"], line
            result = subprocess.run(
                [sys.executable, "-m", *words], capture_output=True, text=True
            )
            assert result.returncode == 0, result.stderr
            told[" ".join(words[2:4])] = result.stdout + result.stderr
            if words[2] == "embed":
                pages[words[3]] = await page(Path(words[3]))
    nearest = told["similar plain.db"].splitlines()
    assert len(nearest) == 6
    assert told["similar cluster.db"].splitlines() == nearest
    assert [hit["pk"] for hit in pages["cluster.db"]] == [
        hit["pk"] for hit in pages["plain.db"]
    ]
    assert "milvus://" in told["status cluster.db"]
    assert "All is well" in told["reconcile cluster.db"]
    assert contents(Path("cluster.db")) == contents(Path("plain.db"))


async def page(database: Path) -> list[dict]:
    """What the page of similar pictures shows, as JSON."""
    datasette = open_datasette(database)
    found = await ask_json(datasette, f"/{database.stem}/images/-/similar.json?_like=1")
    assert len(found["rows"]) == 23
    return found["rows"]
