"""What a path in a table means below a root folder, if it names no file as it stands.

Tables come from other computers and other programs: with other capitals, other Unicode, a
drive in front, escapes of the web. A path means a file if exactly one below the root fits.
Nothing is guessed, and what is found may be a link: who opens it has to follow that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import lru_cache
from heapq import nsmallest
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

FILE_URL = re.compile(r"file:(//[^/]*)?(?=/)", re.IGNORECASE)
DRIVE = re.compile(r"/?[A-Za-z]:[\\/]|\\\\")  # of Windows, or a computer on its network
FOLDERS_LISTED = 32  # whose names are kept
PARTS = 64  # of a path: more are somebody's idea of keeping the server busy
BRANCHES = 16  # folders that look alike and are looked into
COMPARED_NAMES = 500  # to find the one nearest to a name


def files_meant(root: str, path: str, suffixes: tuple[str, ...]) -> set[str]:
    """The files and folders, relative to the real place `root`, that a path may mean.

    Each part of it may differ in capitals, Unicode normalisation and spaces around it, and
    the last may lack one of `suffixes`; the first may be the name of `root`. A path of
    Windows is tried without what it begins with: part by part, for nobody knows where its
    folder was.
    """
    found: set[str] = set()
    for parts, has_drive in _readings(root, path):
        for first in range(len(parts) if has_drive else 1):
            found.update(_below(root, parts[first:], suffixes))
        if not found and parts[1:] and _look(parts[0]) == _look(os.path.basename(root)):
            found.update(_below(root, parts[1:], suffixes))
    return found


def nearest_name(root: str, path: str) -> str | None:
    """The path below `root` whose parts are most like those of a path, if any is."""
    parts, _ = next(_readings(root, path), ([], False))
    place = ""
    for part in parts:
        names = _names(root, place).by_look
        look = _look(part)
        if look not in names:
            stems = {_stem(name): name for name in _likeliest(names, look)}
            close = [stems[one] for one in get_close_matches(_stem(look), stems, 1)]
            if not close:
                return None
            look = close[0]
        place = os.path.join(place, names[look][0])
    return place or None


def _likeliest(names: Iterable[str], look: str) -> list[str]:
    """The names worth comparing with one, which takes long: those that begin like it and
    are as long come first."""

    def unlike(name: str) -> tuple[bool, int]:
        return name[:2] != look[:2], abs(len(name) - len(look))

    return nsmallest(COMPARED_NAMES, names, key=unlike)


def _readings(root: str, path: str) -> Iterator[tuple[list[str], bool]]:
    """The parts of what a path may say, and whether it begins with a drive."""
    text = FILE_URL.sub("", path)
    texts = [] if text != path else [path]
    if "%" in path:
        texts.append(unquote(text))
    if re.fullmatch(r"-?\d+\.0", path):  # a number that a column of numbers made of 1234
        texts.append(path[:-2])
    for one in texts or [text]:
        below = one.removeprefix(f"{root}/").strip()
        parts = [
            part for part in re.split(r"[\\/]", below) if part.strip() not in ("", ".")
        ]
        drive = DRIVE.match(below) is not None
        if 0 < len(parts) <= PARTS and ".." not in parts:
            yield parts[1:] if drive and ":" in parts[0] else parts, drive


def _below(root: str, parts: list[str], suffixes: tuple[str, ...]) -> Iterable[str]:
    """Places below a root whose parts look like these."""
    places = [""]
    *folders, last = map(_look, parts)
    for folder in folders:
        places = [
            os.path.join(place, name)
            for place in places
            for name in _names(root, place).by_look.get(folder, ())
        ][:BRANCHES]
    for place in places:
        names = _names(root, place)
        found = list(names.by_look.get(last, ()))
        if not last.endswith(suffixes):
            found += [
                name
                for name in names.by_stem.get(last, ())
                if name.lower().endswith(suffixes)
            ]
        yield from (os.path.join(place, name) for name in found)


def _look(name: str) -> str:
    """What names have in common that a person would take for the same."""
    return normalize("NFC", normalize("NFC", name).casefold()).strip()


def _stem(name: str) -> str:
    """What of a name tells it from others that end in the same way."""
    return name.rpartition(".")[0] or name


class _Names(NamedTuple):
    """The names in a folder by their look, and by that without a suffix."""

    by_look: dict[str, list[str]]
    by_stem: dict[str, list[str]]


def _names(root: str, place: str) -> _Names:
    """The names in a folder below the root, none if it is outside or no folder."""
    try:
        found = os.stat(os.path.join(root, place))
        return _listed(root, place, found.st_ino, found.st_mtime_ns)
    except (OSError, ValueError):
        return _Names({}, {})


@lru_cache(FOLDERS_LISTED)
def _listed(root: str, place: str, number: int, changed_ns: int) -> _Names:
    """The names in a folder as it was at that time, which is part of what is remembered."""
    names = _Names({}, {})
    real = os.path.realpath(os.path.join(root, place))
    if real != root and not real.startswith(os.path.join(root, "")):
        return names
    for name in sorted(os.listdir(real)):
        look = _look(name)
        names.by_look.setdefault(look, []).append(name)
        stem, dot, _ = look.rpartition(".")
        if dot:
            names.by_stem.setdefault(stem.strip(), []).append(name)
    return names
