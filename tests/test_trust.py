"""What the user vouched for is noted, whoever notes something else at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from datasette_image_similarity import trust

NOTING = """
import sys
import click
click.get_app_dir = lambda *_, **__: sys.argv[1]
from datasette_image_similarity import trust
for number in range(20):
    trust.note_store(sys.argv[2], f"milvus://host:19530/n{number}")
"""


def test_processes_that_note_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(tmp_path / f"{number}.db") for number in range(3)]
    command = [sys.executable, "-c", NOTING, str(tmp_path)]
    running = [subprocess.Popen([*command, file]) for file in files]
    assert [process.wait() for process in running] == [0, 0, 0]
    monkeypatch.setattr("click.get_app_dir", lambda *_, **__: str(tmp_path))
    assert [len(trust.trusted_stores(file)) for file in files] == [20, 20, 20]


def test_where_nothing_may_be_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("click.get_app_dir", lambda *_, **__: str(tmp_path / "file" / "x"))
    trust.note_store(tmp_path / "photos.db", "milvus://host:19530/name")
    assert trust.trusted_stores(tmp_path / "photos.db") == []
