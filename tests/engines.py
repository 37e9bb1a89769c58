"""A real Milvus server to test with, as demo/milvus_server.py starts it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

STARTER = Path(__file__).parents[1] / "demo" / "milvus_server.py"
NOT_HERE = 3


class MilvusServer:
    """One on a port of its own. Killed in the hardest way, it can be started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def url(self, name: str) -> str:
        return f"milvus://127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        command = [sys.executable, STARTER, f"--port={self.port}", f"--data={self.folder}"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if "ready" not in self._process.stdout.readline():
            reason = self._process.communicate()[1].strip()
            if self._process.returncode == NOT_HERE:
                pytest.skip(reason)
            raise RuntimeError(reason)

    def kill(self) -> None:
        """SIGKILL, for the server and what carries its port."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def milvus_server(folder: Path) -> Iterator[MilvusServer]:
    pytest.importorskip("pymilvus", reason="needs pymilvus")
    server = MilvusServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)  # 250 MB of programs alone
