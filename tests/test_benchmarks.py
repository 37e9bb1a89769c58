"""The benchmark programs start; what they measure is for whoever runs them to see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    "name", ["duplicates", "embed", "pages", "precision", "search", "startup"]
)
def test_it_says_how_to_use_it(name: str) -> None:
    program = PROGRAMS / f"{name}.py"
    done = subprocess.run(
        [sys.executable, program, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout
