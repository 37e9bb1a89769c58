"""Files that are written whole or not at all: for exports that take long."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import DatabaseError

try:
    import fcntl
except ImportError:  # Windows, where nobody can delete a file that is being written
    fcntl = None


@contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `file` when the block has ended.

    Until then it lies beside it, hidden. One that a killed process has left there goes.
    Raises OSError; DatabaseError rather than replace a database, which may hold all that
    somebody has.
    """
    if file.is_file() and is_database(file):
        raise DatabaseError(f"{file} is a SQLite database: name another file")
    _clear(file)
    half = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(half, "wb") as out:
            with suppress(OSError):  # some network file systems have no locks
                _lock(out)
            yield out
        os.replace(half, file)
    finally:
        half.unlink(missing_ok=True)


def is_database(file: Path) -> bool:
    """Whether a file begins as SQLite's do. Raises OSError."""
    with open(file, "rb") as opened:
        return opened.read(16) == b"SQLite format 3\0"


def _clear(file: Path) -> None:
    """Delete what was begun for `file` by processes that are gone."""
    half = re.compile(rf"\.{re.escape(file.name)}\.\d+")
    for left in [one for one in file.parent.iterdir() if half.fullmatch(one.name)]:
        with suppress(OSError):  # it is being written, or gone
            with open(left, "rb") as begun:
                _lock(begun)
            left.unlink()


def _lock(out: IO[bytes]) -> None:
    """For as long as the file is open, or the process lives. Raises BlockingIOError."""
    if fcntl is not None:
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
