"""A Datasette whose databases hold nothing of ours answers as it does without us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path

import datasette
import pytest
from datasette.utils.sqlite import sqlite3

SCRIPT = Path(__file__).with_name("host.py")
# Datasette and what it needs, and nothing else: tests/run puts it there.
HOST = Path(sys.prefix, "beside", f"host-{datasette.__version__}")


def start(folder: Path, *options: str, **environment: str) -> subprocess.Popen:
    folder.mkdir()
    return subprocess.Popen(
        [sys.executable, *options, str(SCRIPT), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def lines(answer: list) -> list[str]:
    return [*map(str, answer[:-1]), *answer[-1].splitlines()]


@pytest.mark.skipif(not HOST.exists(), reason="tests/run installs Datasette alone")
@pytest.mark.skipif(sqlite3.__name__ != "sqlite3", reason="pysqlite3 answers otherwise")
def test_a_host_with_nothing_of_ours_answers_as_without_us(tmp_path: Path) -> None:
    # Without `site` Python looks into no environment: PYTHONPATH and its own library alone.
    runs = (
        start(tmp_path / "without", "-S", PYTHONPATH=str(HOST)),
        start(tmp_path / "with"),
    )
    without, ours = (run.communicate(timeout=500) for run in runs)
    assert [run.returncode for run in runs] == [0, 0], (without[1], ours[1])
    expected, found = json.loads(without[0]), json.loads(ours[0])
    differs = [key for key in expected if found.get(key) != expected[key]]
    assert not differs, "\n".join(
        line
        for key in differs[:5]
        for line in unified_diff(lines(expected[key]), lines(found[key]), key, lineterm="")
    )
    assert expected.keys() == found.keys()
    assert len(found) > 500
