"""What a stress program says at its end: its figures, the machine, the date."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What the figures were got on."""
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = round(pages / 2**30)
    return {
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "datasette": version("datasette"),
        "sqlite_vec": version("sqlite-vec"),
        "load": [round(load, 1) for load in os.getloadavg()],
    }


class Report:
    """The figures and failures of one run.

    report = Report("kill", options)
    report.failed("seed 7: rows differ")
    sys.exit(report.end(times=1000, killed=970))
    """

    def __init__(self, program: str, options: argparse.Namespace) -> None:
        self.program = program
        self.options = options
        self.failures: list[str] = []
        self.begun = time.monotonic()

    def failed(self, what: str) -> None:
        """Note a failure, and print it at once: a long run may be stopped."""
        self.failures.append(what)
        print(f"FAILED {what}", file=sys.stderr, flush=True)

    def end(self, **figures: Any) -> int:
        """Print the figures, keep them if `--json` names a file, give the exit status."""
        found = {
            "program": self.program,
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": machine(),
            "options": {name: str(value) for name, value in vars(self.options).items()},
            "seconds": round(time.monotonic() - self.begun, 1),
            "figures": figures,
            "failures": self.failures,
        }
        text = json.dumps(found, indent=2)
        print(text)
        if getattr(self.options, "json", None):
            Path(self.options.json).write_text(text + "\n", encoding="utf-8")
        return 1 if self.failures else 0


def options(program: str, about: str) -> argparse.ArgumentParser:
    """A parser with what all programs take."""
    parser = argparse.ArgumentParser(prog=f"tests/stress/run {program}", description=about)
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same run")
    parser.add_argument("--json", metavar="FILE", help="keep the figures in a file")
    return parser
