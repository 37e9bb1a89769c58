"""What this user has vouched for on this computer, apart from any database.

A database may come from a stranger, so a folder or a weights file named inside it is
not opened just because it is named there. `embed`, run by the user, notes both here, in
the user's own configuration folder, and a Datasette run by the same user believes that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import click
from datasette.utils.sqlite import sqlite3

from .roots import Root, as_root
from .whole_files import replacing

NOTED = ("roots", "stores", "weights", "published")
PATIENCE = 10.0  # seconds that others may take to note something


def _file() -> Path:
    return Path(click.get_app_dir("datasette-image-similarity")) / "trusted.json"


def _read() -> dict[str, dict]:
    try:
        noted = json.loads(_file().read_text())
        return {name: dict(noted.get(name, {})) for name in NOTED}
    except (OSError, ValueError, TypeError, AttributeError):
        return {name: {} for name in NOTED}


@contextmanager
def _alone() -> Iterator[None]:
    """Meanwhile no other process notes anything, which this one would overwrite.

    The lock is SQLite's, of an empty file: there on every system, gone with the process.
    """
    file = _file().with_suffix(".lock")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = sqlite3.connect(file, timeout=PATIENCE, isolation_level=None)
    except sqlite3.Error:
        yield  # nothing can be noted then, either
        return
    with closing(lock):
        with suppress(sqlite3.Error):
            lock.execute("begin immediate")
        yield


def _write(noted: dict[str, dict]) -> None:
    """Replace the file as a whole. Where that is not allowed, nothing is noted."""
    file = _file()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as out:
            out.write(json.dumps(noted, indent=2).encode())


def note_root(database: Path, root: Root) -> bool:
    """Pictures of this database may be read from this folder. False if that is not new."""
    return _note("roots", database, str(root))


def trusted_roots(database: str | Path) -> list[Root]:
    """Folders, buckets and the web, that `embed` has noted for this database file."""
    return [as_root(root) for root in _noted("roots", database)]


def note_store(database: str | Path, url: str) -> bool:
    """Vectors of this database may be kept in the store at this URL. False if that is not
    new."""
    return _note("stores", database, url)


def trusted_stores(database: str | Path) -> list[str]:
    """URLs of stores that have been noted for this database file."""
    return _noted("stores", database)


def _note(kind: str, database: str | Path, what: str) -> bool:
    if what in _noted(kind, database):
        return False
    with _alone():
        noted = _read()
        noted[kind].setdefault(str(Path(database).resolve()), []).append(what)
        _write(noted)
    return True


def _noted(kind: str, database: str | Path) -> list[str]:
    known = _read()[kind].get(str(Path(database).resolve()), [])
    return [one for one in known if isinstance(one, str)]


def note_weights(sha256: str, file: Path) -> None:
    """The weights with this SHA-256 lie in this file, or in this folder."""
    if _read()["weights"].get(sha256) == str(file.resolve()):
        return
    with _alone():
        noted = _read()
        noted["weights"][sha256] = str(file.resolve())
        _write(noted)


def weights_file(sha256: str | None) -> Path | None:
    """Where the weights with this SHA-256 were last seen, or None."""
    found = _read()["weights"].get(sha256) if sha256 else None
    return Path(found) if isinstance(found, str) else None


def note_published(name: str, sha256: str) -> None:
    """What was published under this name had this SHA-256 when it was first used."""
    if name in _read()["published"]:
        return
    with _alone():
        noted = _read()
        noted["published"].setdefault(name, sha256)
        _write(noted)


def published_sha256(name: str) -> str | None:
    """The SHA-256 of what is published under a name, when it was first used, or None."""
    found = _read()["published"].get(name)
    return found if isinstance(found, str) else None
