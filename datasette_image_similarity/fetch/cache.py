"""What was downloaded, kept in a folder: HTTP's rules for caches of one user (RFC 9111).

An entry is one file, named by the SHA-256 of its key: the SHA-256 of all that follows, a
line of JSON, and the bytes. Files are written under another name and moved into place, so
that readers, and other processes with the same folder, find a whole entry or none. An
entry that does not match its checksum is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

NAME = "datasette-image-similarity"
HOUR, WEEK = 3600.0, 7 * 86400.0
UNFINISHED = "unfinished-"  # how names of files begin that are still being written
ENTRY = re.compile("[0-9a-f]{64}")
SHELVES = [f"{number:02x}" for number in range(256)]  # folders, by how names begin
PAUSE = 0.05  # of the limit may be written before the folder is measured again
KEPT = 0.9  # of the limit is left when the oldest entries have gone


def default_folder() -> Path | None:
    """Where this platform keeps what may be deleted at any time. None for a user without a
    home: a relative folder would be one below whatever folder a command runs in."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / NAME / "downloads" if base.is_absolute() else None


@dataclass(frozen=True)
class Facts:
    """What is known of bytes besides themselves.

    `source` is the URL that gave them, after redirects: only it knows the validators.
    `fresh_until` (seconds since 1970): no need to ask before.
    """

    source: str
    fresh_until: float
    etag: str | None
    last_modified: str | None

    def validators(self) -> dict[str, str]:
        """The headers of a request that is answered by 304 if nothing has changed."""
        headers = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in headers.items() if value}


class Kept(NamedTuple):
    """An entry of the cache."""

    facts: Facts
    body: bytes


def facts_of(
    headers: Mapping[str, str], source: str, now: float, *, moved: bool
) -> Facts | None:
    """What to note of an answer, or None where it must not be stored.

    `moved` says that a temporary redirect led to it: then the first address has to be
    asked each time.
    """
    control = _directives(headers.get("cache-control", ""))
    if "no-store" in control:
        return None
    unknown = moved or "no-cache" in control or headers.get("vary", "").strip() == "*"
    return Facts(
        source=source,
        fresh_until=now + (0 if unknown else _freshness(headers, control, now)),
        etag=headers.get("etag"),
        last_modified=headers.get("last-modified"),
    )


def _directives(header: str) -> dict[str, str]:
    """{"max-age": "60", "public": ""} for "max-age=60, public"."""
    pairs = (part.partition("=") for part in header.lower().split(","))
    return {name.strip(): value.strip(' "') for name, _, value in pairs}


def _freshness(headers: Mapping[str, str], control: Mapping[str, str], now: float) -> float:
    """For how many seconds an answer counts as fresh.

    Where the server says nothing, a tenth of the time since the last change, as RFC 9111
    (4.2.2) proposes; at least an hour, for a run that was cut off to go on, and a week at
    most.
    """
    date = _time(headers.get("date")) or now
    if "max-age" in control:
        return max(0.0, _seconds(control["max-age"]) - _seconds(headers.get("age")))
    if "expires" in headers:  # one that is no date is in the past
        return max(0.0, (_time(headers["expires"]) or 0.0) - date)
    changed = _time(headers.get("last-modified"))
    age = 0.0 if changed is None else date - changed
    return min(max(HOUR, 0.1 * age), WEEK)


def _seconds(text: str | None) -> float:
    return float(text[:12]) if text and text.isascii() and text.isdigit() else 0.0


def _time(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (TypeError, ValueError, OverflowError, OSError):
        return None


class Cache:
    """A folder of downloads. Safe in several threads and processes at once.

    A folder that cannot be written keeps nothing, and `problem` says why.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.problem: str | None = None
        self._limit = limit
        self._sweeping = threading.Lock()
        self._until_sweep = 0  # bytes; 0: it was not measured yet

    def get(self, key: str) -> Kept | None:
        """What is kept under a key, fresh or not."""
        try:
            checksum, _, rest = self._file(key).read_bytes().partition(b"\n")
        except OSError:
            return None
        if hashlib.sha256(rest).hexdigest().encode() != checksum:
            return None
        facts, _, body = rest.partition(b"\n")
        try:
            return Kept(Facts(**json.loads(facts)), body)
        except (TypeError, ValueError):  # of another version, with other facts
            return None

    def put(self, key: str, kept: Kept) -> None:
        """Keep this, in place of what was kept under the key."""
        rest = json.dumps(asdict(kept.facts)).encode() + b"\n" + kept.body
        data = hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest
        if len(data) > self._limit:
            return
        file = self._file(key)
        try:
            for folder in (self.folder, file.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The user's alone, like the folders.
            handle, unfinished = tempfile.mkstemp(prefix=UNFINISHED, dir=file.parent)
            try:
                with open(handle, "wb") as out:
                    out.write(data)
                os.replace(unfinished, file)
            except BaseException:
                with suppress(OSError):
                    os.unlink(unfinished)
                raise
        except OSError as error:
            self.problem = f"{self.folder}: {error.strerror or error}"
            return
        self._until_sweep -= len(data)
        if self._until_sweep < 0:
            self._sweep()

    def drop(self, key: str) -> None:
        """Keep nothing under this key."""
        with suppress(OSError):
            self._file(key).unlink()

    def _file(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name

    def _sweep(self) -> None:
        """Measure the folder, and delete the oldest entries if it is too large."""
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            entries = sorted(_entries(self.folder))
            total = sum(size for _, size, _ in entries)
            if total > self._limit:
                for _, size, path in entries:
                    if total <= KEPT * self._limit:
                        break
                    with suppress(OSError):  # another process was quicker
                        os.unlink(path)
                    total -= size
            self._until_sweep = int(PAUSE * self._limit)
        finally:
            self._sweeping.release()


def _entries(folder: Path) -> list[tuple[float, int, str]]:
    """When each file in the cache was written, its size, and its path.

    Nothing but the cache's own files: somebody may have named a folder with others in it.
    """
    found = []
    for shelf in SHELVES:
        with suppress(OSError), os.scandir(folder / shelf) as files:
            for file in files:
                entry = file.name.startswith(shelf) and ENTRY.fullmatch(file.name)
                if entry or file.name.startswith(UNFINISHED):
                    with suppress(OSError):  # another process has deleted it
                        state = file.stat(follow_symlinks=False)
                        found.append((state.st_mtime, state.st_size, file.path))
    return found
