"""What the plugin costs before anything happens.

    python benchmarks/startup.py

Runs `datasette --version` with the plugin and without any, and `similar` on a collection
of 200 pictures, one after another in new processes, and prints medians as Markdown. Fails
if one of them imports torch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import common
import numpy as np


def environment(plugins: bool = True) -> dict[str, str]:
    """For a `datasette` that keeps compiled modules, as an installed one has them."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept if plugins else {**kept, "DATASETTE_LOAD_PLUGINS": ""}


def seconds(*arguments: str, plugins: bool = True) -> float:
    """Wall-clock time of a `datasette` command in a new process."""
    command = [sys.executable, "-m", "datasette", *arguments]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment(plugins))
    return time.perf_counter() - started


def imports(*arguments: str) -> set[str]:
    """Names of the top-level packages that a `datasette` command imports."""
    command = [sys.executable, "-X", "importtime", "-m", "datasette", *arguments]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment()
    )
    names = (line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines())
    return {name.split(".")[0] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=15, help="of each command")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "small.db"
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((200, 2048), dtype=np.float32)
        common.make_collection(database, noise)
        similar = (
            "image-similarity",
            "similar",
            str(database),
            common.TABLE,
            "7",
            "--json",
        )
        for command in (("--version",), similar):
            if "torch" in imports(*command):
                sys.exit(f"datasette {command[0]} imports torch")
        bare, plain, asked = [], [], []
        for _ in range(runs):
            bare.append(seconds("--version", plugins=False))
            plain.append(seconds("--version"))
            asked.append(seconds(*similar))
    print(common.machine())
    extra = median(a - b for a, b in zip(plain, bare, strict=True))
    more = median(a - b for a, b in zip(asked, plain, strict=True))
    rows = [
        ("`datasette --version`, no plugins", f"{median(bare):.3f}", ""),
        ("`datasette --version`, with the plugin", f"{median(plain):.3f}", f"{extra:+.3f}"),
        ("`similar … --json`, 200 pictures", f"{median(asked):.3f}", f"{more:+.3f}"),
    ]
    header = ("command", "median s", "against the line above")
    print(f"\n{common.table(header, rows)}")


if __name__ == "__main__":
    main()
