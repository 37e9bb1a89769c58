"""A wheel holds everything that an installed plugin needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "datasette_image_similarity"


def test_wheel_holds_templates_static_files_and_every_module(tmp_path: Path) -> None:
    pytest.importorskip("build")
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(tmp_path),
        ],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(
        ["git", "ls-files", "datasette_image_similarity"],
        cwd=source,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert len(listed) > 20
    assert set(listed) <= names
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "image_similarity = datasette_image_similarity" in text
