"""Which files of a folder or a bucket are embedded, and a count of those that are not.

`sources.py` asks `Choice` about each entry it lists; `embed.py` keeps the patterns with the
collection and reports the counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import translate
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from .errors import CollectionError
from .formats import formats_by_suffix, remedy

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# What cameras, NAS boxes, systems and photo programs put beside pictures: their own
# thumbnails, snapshots and deleted files. Names are compared without regard to case.
DEFAULT_EXCLUDES = (
    *("@eaDir", "@tmp", "@Recycle", "@Recently-Snapshot", "@sharebin", "@SynoResource"),
    *(".@__thumb", ".@__qini", "@__thumb", "#recycle", "#snapshot", "~snapshot"),
    *(".snapshot", ".snapshots", ".zfs", ".recycle", "$RECYCLE.BIN", "RECYCLER"),
    *("RECYCLED", "System Volume Information", ".Trash", ".Trash-*", ".Trashes"),
    *(".thumbnails", ".thumbs", ".picasaoriginals", ".AppleDouble", "__MACOSX", "._*"),
    *("Network Trash Folder", "Temporary Items", ".TemporaryItems", "lost+found"),
    *("FOUND.[0-9][0-9][0-9]", "*.lrdata", "*.lrcat-data", "*.cocatalogdb", ".dtrash"),
    "*.photoslibrary/resources",
)
_DEFAULT = re.compile(
    f"(?s:.*/)?(?:{'|'.join(map(translate, DEFAULT_EXCLUDES))})", re.IGNORECASE
)
# Pictures that nothing here reads; `formats.py` knows those that it or an extra does.
OTHER_PICTURES = frozenset(
    (
        *(".ai", ".ari", ".bay", ".bpg", ".cap", ".cdr", ".dcs", ".dds", ".djvu", ".drf"),
        *(".emf", ".eps", ".exr", ".flif", ".gpr", ".hdr", ".icns", ".ico", ".jxr", ".k25"),
        *(".kra", ".mdc", ".ora", ".pcx", ".psb", ".psd", ".ptx", ".qoi", ".r3d", ".raw"),
        *(".rwz", ".svg", ".svgz", ".tga", ".wdp", ".wmf", ".xbm", ".xcf", ".xpm"),
    )
)
LINKS, LINKED_FILES, HIDDEN = "links", "linked files", "hidden"  # links: to folders
EXCLUDED, NO_SUFFIX = "excluded", "no suffix"
KINDS_SHOWN = 8


class Skipped(Counter[str]):
    """How many entries were not embedded, by kind: a suffix, or one of the words above.

    `pictures` of them are pictures, of kinds that are not read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pictures = 0
        self._excluded: Counter[str] = Counter()  # by name

    def add(self, kind: str, name: str) -> None:
        """A link that is not followed, or something hidden or excluded."""
        self[kind] += 1
        if kind == EXCLUDED:
            self._excluded[name] += 1

    def add_file(self, name: str, is_picture: bool = False) -> None:
        """A file that does not end like a picture that can be read."""
        suffix = PurePosixPath(name).suffix.lower()
        self[suffix or NO_SUFFIX] += 1
        picture_kind = suffix in OTHER_PICTURES or suffix in formats_by_suffix()
        self.pictures += is_picture or picture_kind

    def remedies(self) -> list[str]:
        """What to install to read some of these kinds, as sentences."""
        return list(dict.fromkeys(filter(None, map(remedy, sorted(self)))))

    def __str__(self) -> str:
        """In words, such as "3 .cr2, 1 .psd, 1 linked folder"; empty for nothing."""
        suffixes = [one for one in self.most_common() if one[0].startswith(".")]
        parts = [f"{count:,} {suffix}" for suffix, count in suffixes[:KINDS_SHOWN]]
        if (more := len(suffixes) - KINDS_SHOWN) > 0:
            parts.append(f"… and {more} other kind{'s' * (more > 1)}")
        if count := self[NO_SUFFIX]:
            parts.append(f"{count:,} without a suffix")
        if count := self[LINKS]:
            parts.append(f"{count:,} linked folder{'s' * (count > 1)}")
        if count := self[LINKED_FILES]:
            parts.append(f"{count:,} linked file{'s' * (count > 1)}")
        if count := self[HIDDEN]:
            parts.append(f"{count:,} hidden")
        if count := self[EXCLUDED]:
            names = [name for name, _ in self._excluded.most_common(4)]
            dots = ", …" if len(self._excluded) > len(names) else ""
            parts.append(f"{count:,} excluded ({', '.join(names)}{dots})")
        return ", ".join(parts)


@dataclass(frozen=True)
class RunSettings:
    """What `embed` keeps with a collection for its next run; see `Choice`.

    `folders` are the folders and buckets that it was told of. They stand in a database
    that may come from a stranger: what is not as it should be is left out.
    """

    exclude: tuple[str, ...] = ()
    default_excludes: bool = True
    follow_links: bool = False
    folders: tuple[str, ...] = ()

    @classmethod
    def of(cls, stored: Callable[[str], object]) -> RunSettings:
        """The settings as they are stored under their names."""
        usual = cls()

        def texts(name: str) -> tuple[str, ...]:
            found = stored(name)
            is_list = isinstance(found, list) and all(isinstance(one, str) for one in found)
            return tuple(found) if is_list else ()

        def flag(name: str) -> bool:
            found = stored(name)
            return found if isinstance(found, bool) else getattr(usual, name)

        return cls(
            exclude=texts("exclude"),
            default_excludes=flag("default_excludes"),
            follow_links=flag("follow_links"),
            folders=texts("folders"),
        )

    def told(self, **changes: object) -> RunSettings:
        """With what was said this time; None is for what was not."""
        return replace(self, **{n: v for n, v in changes.items() if v is not None})

    def choice(self) -> Choice:
        """Raises CollectionError for a pattern that is none."""
        return Choice(
            self.exclude, defaults=self.default_excludes, follow_links=self.follow_links
        )


class Choice:
    """What of a folder or bucket is embedded.

    `exclude` are patterns by gitignore's rules, relative to the folder that is listed: the
    last one that fits decides, and "!" takes in what `defaults`, the names of
    DEFAULT_EXCLUDES, leave out. Raises CollectionError for a pattern that is none.
    """

    def __init__(
        self,
        exclude: Iterable[str] = (),
        *,
        defaults: bool = True,
        follow_links: bool = False,
    ) -> None:
        self.follow_links = follow_links
        self.skipped = Skipped()
        self._defaults = defaults
        exclude = list(exclude)
        self._patterns = _patterns(exclude)
        self.notes = [
            f"--exclude '{one}' leaves nothing out: to gitignore's rules it is a comment. "
            f"Write '\\{one}' for names that begin with #"
            for one in exclude
            if one.startswith("#")
        ]
        self._inside = lru_cache(maxsize=10_000)(self._outermost)
        self._counted: set[str] = set()  # folders of a bucket

    def excludes(self, path: str, *, folder: bool = False) -> bool:
        """Whether an entry is left out, wherever the folders around it are. `path` is
        relative to the folder that is listed, with "/"."""
        if self._patterns is not None:
            verdict = self._patterns.check_file(f"{path}/" if folder else path).include
            if verdict is not None:
                return verdict
        return self._defaults and _DEFAULT.match(path) is not None

    def excludes_inside(self, path: str) -> bool:
        """Whether a file or a folder around it is left out or hidden."""
        folder, _, name = path.rpartition("/")
        return self._inside(folder) is not None or self.why(name, path) is not None

    def why(self, name: str, path: str, *, folder: bool = False) -> str | None:
        """EXCLUDED or HIDDEN for an entry that is left out."""
        if self.excludes(path, folder=folder):
            return EXCLUDED
        return HIDDEN if name.startswith(".") and name not in (".", "..") else None

    def takes_key(self, path: str) -> bool:
        """Whether the object at a path is embedded; if not, it or its folder is counted."""
        folder, _, name = path.rpartition("/")
        left_out = self._inside(folder)
        if left_out is not None:
            if left_out not in self._counted:
                self._counted.add(left_out)
                name = left_out.rpartition("/")[2]
                why = self.why(name, left_out, folder=True)
                self.skipped.add(why or EXCLUDED, name)
            return False
        why = self.why(name, path)
        if why is not None:
            self.skipped.add(why, name)
        return why is None

    def _outermost(self, folder: str) -> str | None:
        """The outermost folder around a place, or itself, that is left out or hidden."""
        if not folder:
            return None
        outer, _, name = folder.rpartition("/")
        found = self._inside(outer)
        if found is None and self.why(name, folder, folder=True):
            return folder
        return found


def _patterns(exclude: list[str]) -> GitIgnoreSpec | None:
    """A `pathspec.GitIgnoreSpec`; None without patterns."""
    if not any(exclude):
        return None
    from pathspec import GitIgnoreSpec

    for one in exclude:
        try:
            GitIgnoreSpec.from_lines([one])
        except ValueError as error:
            raise CollectionError(f"--exclude {one!r} is no pattern: {error}") from None
    return GitIgnoreSpec.from_lines(exclude)
