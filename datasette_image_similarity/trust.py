"""What this user has vouched for on this computer, apart from any database.

A database may come from a stranger, so a folder or a weights file named inside it is
not opened just because it is named there. `embed`, run by the user, notes both here, in
the user's own configuration folder, and a Datasette run by the same user believes that.
Where that folder cannot be written, `NotNoted` says so: nothing is believed then that the
configuration of Datasette does not name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import click
from datasette.utils.sqlite import sqlite3

from .errors import NotNoted
from .roots import Root, as_root
from .whole_files import replacing

NOTED = ("roots", "stores", "weights", "published")
PATIENCE = 10.0  # seconds that others may take to note something


def _file() -> Path:
    """Raises NotNoted for a user without a home: the folder would be one below whatever
    folder a command runs in, a stranger's perhaps."""
    folder = Path(click.get_app_dir("datasette-image-similarity"))
    if not folder.is_absolute():
        raise NotNoted(f"{folder} is no absolute path: set HOME or XDG_CONFIG_HOME")
    return folder / "trusted.json"


def _read() -> dict[str, dict]:
    """All that was noted. Raises OSError, NotNoted."""
    try:
        noted = json.loads(_file().read_text())
        return {name: dict(noted.get(name, {})) for name in NOTED}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {name: {} for name in NOTED}


def _known(kind: str) -> dict:
    """What was noted of a kind; nothing where it cannot be read."""
    try:
        return _read()[kind]
    except (OSError, NotNoted):
        return {}


@contextmanager
def _noting() -> Iterator[dict[str, dict]]:
    """What was noted, to be added to and written again as a whole. Raises NotNoted.

    Meanwhile no other process notes anything, which this one would overwrite. The lock is
    SQLite's, of an empty file: there on every system, gone with the process.
    """
    file = _file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(
            file.with_suffix(".lock"), timeout=PATIENCE, isolation_level=None
        )
        with closing(lock):
            with suppress(sqlite3.Error):
                lock.execute("begin immediate")
            noted = _read()
            yield noted
            _write(noted)
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise NotNoted(f"{file.parent} cannot be written: {reason}") from None


def _write(noted: dict[str, dict]) -> None:
    with replacing(_file()) as out:
        out.write(json.dumps(noted, indent=2).encode())


def note_root(database: Path, root: Root) -> bool:
    """Pictures of this database may be read from this folder. False if that is not new.
    Raises NotNoted."""
    return _note("roots", database, str(root))


def trusted_roots(database: str | Path) -> list[Root]:
    """Folders, buckets and the web, that `embed` has noted for this database file."""
    return [as_root(root) for root in _noted("roots", database)]


def note_store(database: str | Path, url: str) -> bool:
    """Vectors of this database may be kept in the store at this URL. False if that is not
    new. Raises NotNoted."""
    return _note("stores", database, url)


def trusted_stores(database: str | Path) -> list[str]:
    """URLs of stores that have been noted for this database file."""
    return _noted("stores", database)


def _note(kind: str, database: str | Path, what: str) -> bool:
    if what in _noted(kind, database):
        return False
    with _noting() as noted:
        noted[kind].setdefault(str(Path(database).resolve()), []).append(what)
    return True


def _noted(kind: str, database: str | Path) -> list[str]:
    known = _known(kind).get(str(Path(database).resolve()), [])
    return [one for one in known if isinstance(one, str)]


def note_weights(sha256: str, file: Path) -> None:
    """The weights with this SHA-256 lie in this file, or folder. Raises NotNoted."""
    if _known("weights").get(sha256) != str(file.resolve()):
        with _noting() as noted:
            noted["weights"][sha256] = str(file.resolve())


def weights_file(sha256: str | None) -> Path | None:
    """Where the weights with this SHA-256 were last seen, or None."""
    found = _known("weights").get(sha256) if sha256 else None
    return Path(found) if isinstance(found, str) else None


def note_published(name: str, sha256: str) -> None:
    """What was published under this name had this SHA-256 when it was first used.

    Where that cannot be noted, each collection still knows the hash of its own weights.
    """
    if name not in _known("published"):
        with suppress(NotNoted), _noting() as noted:
            noted["published"].setdefault(name, sha256)


def published_sha256(name: str) -> str | None:
    """The SHA-256 of what is published under a name, when it was first used, or None."""
    found = _known("published").get(name)
    return found if isinstance(found, str) else None


class Vouched:
    """What the user vouches for by naming it in one command, noted for later ones.

    Where it cannot be noted, `problem` says why, and `settings` is what the configuration
    of Datasette has to have in its place: roots, stores and weights, by name.
    """

    def __init__(self, database: Path) -> None:
        self.problem: str | None = None
        self.settings: dict[str, list[str] | str] = {}
        self._database = database
        self._stores: set[str] = set()

    def root(self, root: Root) -> bool:
        """Whether that is new, and noted."""
        with self._or_problem("roots", str(root)):
            return note_root(self._database, root)
        return False

    def store(self, url: str) -> None:
        self._stores.add(url)
        with self._or_problem("stores", url):
            note_store(self._database, url)

    def weights(self, sha256: str, file: Path) -> None:
        with self._or_problem("weights", str(file.resolve())):
            note_weights(sha256, file)

    def may_open(self, store: str) -> bool:
        """Whether a store was vouched for, now or before."""
        return store in self._stores or store in trusted_stores(self._database)

    @contextmanager
    def _or_problem(self, kind: str, what: str) -> Iterator[None]:
        try:
            yield
        except NotNoted as error:
            self.problem = str(error)
            if kind == "weights":
                self.settings[kind] = what
            elif what not in (named := self.settings.setdefault(kind, [])):
                named.append(what)
