"""What was decided about duplicates, as CSV, as JSON, or as a script that moves files.

The script is for a POSIX shell. It moves what is marked into a folder, nothing is deleted
and nothing overwritten, and a file that is not the one which was marked stays where it is.
It names files in folders only that this user has embedded pictures of this database from.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from io import TextIOWrapper
from pathlib import Path, PurePath
from typing import NamedTuple, TextIO

from datasette.utils.sqlite import sqlite3

from .. import database as db
from .. import sources, trust
from ..data_urls import is_data_url
from ..errors import CollectionError, ImageError, NotVouched
from ..roots import Root, as_root, contains
from ..whole_files import replacing
from .facts import Facts, facts_of

FORMATS = (".csv", ".json", ".sh")
# The newest decision about each picture as it is now. Joined to items `i`.
_NEWEST = (
    "d.decision != 'apart' and not exists (select 1 from _image_similarity_decisions x "
    "where x.collection_id = d.collection_id and x.pk = d.pk and x.sha256 = d.sha256 "
    "and x.decision != 'apart' and x.id > d.id)"
)


@dataclass(frozen=True)
class Decision:
    """A picture that somebody has decided about, and the group it was found in.

    `group` and what follows is None for a picture that is in no group any more.
    """

    pk: db.Key
    path: str | None
    decision: str  # keep, mark or skip
    tier: str | None
    group: int | None
    keeper: db.Key | None  # suggested, if any
    reason: str | None
    width: int
    height: int
    bytes: int
    format: str | None
    date: str | None
    sha256: str
    actor: str | None
    decided_at: str


@dataclass(frozen=True)
class Written:
    """What an export wrote, and for a script what it left out and why."""

    file: Path
    written: int
    left_out: dict[str, int]
    whole_groups: int  # of which every picture is marked


def export_decisions(
    conn: sqlite3.Connection,
    collection: db.Collection,
    file: Path,
    to: Path | None = None,
) -> Written:
    """Write decisions to a file: .csv, .json, or .sh, which moves what is marked to `to`.

    Raises CollectionError for another ending, a missing or unfit folder, or where nothing
    was decided.
    """
    form = file.suffix.lower()
    if form not in FORMATS:
        raise CollectionError(f"{file} must end in {', '.join(FORMATS[:-1])} or .sh")
    if (to is not None) != (form == ".sh"):
        raise CollectionError(
            "A script needs a folder to move files to: --to FOLDER"
            if to is None
            else "Only a script (.sh) moves files: leave --to out, or export to .sh"
        )
    decided = read_decisions(conn, collection)
    marked = [one for one in decided if one.decision == "mark"]
    if not (marked if to else decided):
        raise CollectionError(
            f"Nothing is {'marked' if to else 'decided'} yet: look through the groups on "
            f"the page /-/duplicates of the table {collection.table!r}"
        )
    whole = _whole_groups(conn, collection)
    if to is not None:
        movable, left_out = _movable(conn, collection, marked, to)
        if not movable:
            reasons = ", ".join(f"{count} {why}" for why, count in left_out.items())
            raise CollectionError(f"None of the marked pictures can be moved: {reasons}")
        text = script(movable, to, collection.table)
        _write(file, text)
        file.chmod(file.stat().st_mode | 0o100)
        return Written(file, len(movable), left_out, whole)
    if form == ".csv":
        with _opened(file) as out:
            writer = csv.writer(out)
            writer.writerow(field.name for field in fields(Decision))
            writer.writerows(asdict(one).values() for one in decided)
    else:
        _write(file, json.dumps([asdict(one) for one in decided], indent=2))
    return Written(file, len(decided), {}, whole)


def read_decisions(conn: sqlite3.Connection, collection: db.Collection) -> list[Decision]:
    """The newest decision about every picture that is as it was then, in order of items."""
    if not db.is_current(conn):
        return []
    source = db.source_of(conn, collection)
    begin = (
        "_image_similarity_decisions d cross join _image_similarity_items i on "
        "i.collection_id = d.collection_id and i.pk = d.pk and i.sha256 = d.sha256"
    )
    rows = conn.execute(
        "select i.id, d.decision, d.actor, d.decided_at "
        f"{db.live_sql(collection, source, begin)} and {_NEWEST} order by i.id"
    ).fetchall()
    ids = [row["id"] for row in rows]
    facts, groups = facts_of(conn, collection, ids), _groups(conn, ids)
    return [
        _decision(row, facts[row["id"]], groups.get(row["id"]))
        for row in rows
        if row["id"] in facts
    ]


class _Grouped(NamedTuple):
    tier: str
    group: int
    keeper: db.Key | None
    reason: str


def _groups(conn: sqlite3.Connection, ids: list[int]) -> dict[int, _Grouped]:
    """The group of each item: of several, the one in the surest tier."""
    rows = conn.execute(
        "select d.item_id, g.tier, g.id, k.pk, g.reason from json_each(?) j "
        "cross join _image_similarity_grouped d on d.item_id = j.value "
        "join _image_similarity_groups g on g.id = d.group_id "
        "left join _image_similarity_items k on k.id = g.keeper_id order by "
        "case g.tier when 'identical' then 2 when 'same' then 1 else 0 end",
        (json.dumps(ids),),
    )
    return {item: _Grouped(*group) for item, *group in rows}


def _decision(row: sqlite3.Row, facts: Facts, group: _Grouped | None) -> Decision:
    return Decision(
        pk=facts.pk,
        path=facts.path,
        decision=str(row["decision"]),
        tier=group and group.tier,
        group=group and group.group,
        keeper=group and group.keeper,
        reason=group and group.reason,
        width=facts.width,
        height=facts.height,
        bytes=facts.bytes,
        format=facts.format,
        date=facts.date,
        sha256=facts.sha256,
        actor=row["actor"],
        decided_at=row["decided_at"],
    )


def _whole_groups(conn: sqlite3.Connection, collection: db.Collection) -> int:
    """How many groups have all of their pictures marked."""
    sql = (
        "select count(*) from _image_similarity_groups g where g.collection_id = ? "
        "and not exists (select 1 from _image_similarity_grouped m "
        "join _image_similarity_items i on i.id = m.item_id where m.group_id = g.id "
        "and not exists (select 1 from _image_similarity_decisions d "
        "where d.collection_id = i.collection_id and d.pk = i.pk "
        f"and d.sha256 = i.sha256 and d.decision = 'mark' and {_NEWEST}))"
    )
    return conn.execute(sql, (collection.id,)).fetchone()[0]


# The script


class Movable(NamedTuple):
    """A file to move: where it is, what it must be like, and where it goes."""

    file: Path  # absolute
    bytes: int
    sha256: str
    place: PurePath  # relative to the folder


def _movable(
    conn: sqlite3.Connection,
    collection: db.Collection,
    marked: list[Decision],
    to: Path,
) -> tuple[list[Movable], dict[str, int]]:
    """What can be moved, and how many cannot, by reason."""
    if collection.source == "blob":
        raise CollectionError(
            f"The pictures of {collection.table!r} lie in a column of the table: there are "
            "no files to move. Export to .csv"
        )
    recorded = db.roots(conn, collection)
    vouched = [
        one
        for one in trust.trusted_roots(db.file_of(conn))
        if any(contains(str(root), one) for root in recorded.values())
    ]
    folder = Path(to).absolute()
    for root in vouched:
        if isinstance(root, Path) and folder.resolve().is_relative_to(root.resolve()):
            raise CollectionError(
                f"{to} lies inside {root}, where embed would find the pictures again: "
                "choose a folder outside"
            )
    root_of = dict(
        conn.execute(
            "select pk, root_id from _image_similarity_items where collection_id = ?",
            (collection.id,),
        ).fetchall()
    )
    found: list[Movable] = []
    left_out: Counter[str] = Counter()
    for one in marked:
        root = recorded.get(root_of.get(one.pk))
        try:
            found.append(_file_to_move(vouched, root, one))
        except ImageError as error:
            left_out[str(error)] += 1
    return found, dict(left_out)


def _file_to_move(vouched: list[Root], root: object, one: Decision) -> Movable:
    """Raises ImageError for what cannot or should not be moved."""
    if not isinstance(root, str) or one.path is None:
        raise ImageError("in folders that this user has not embedded from")
    if is_data_url(one.path):
        raise ImageError("in the table itself: there are no files to move")
    recorded = as_root(root)
    if not isinstance(recorded, Path):
        raise ImageError("in buckets or on the web: there are no files to move")
    try:
        file = Path(sources.find_vouched(vouched, root, one.path))
    except NotVouched:
        raise ImageError("in folders that this user has not embedded from") from None
    top = recorded.resolve()
    if (top / one.path).is_symlink():
        raise ImageError("links to other files")
    if not re.fullmatch("[0-9a-f]{64}", one.sha256):
        raise ImageError("without a usable SHA-256")
    below = file.relative_to(top) if file.is_relative_to(top) else PurePath(file.name)
    return Movable(file, one.bytes, one.sha256, below)


def script(files: list[Movable], to: Path, table: str) -> str:
    """A shell script that moves the files into the folder `to`."""
    lines = [
        SCRIPT.format(to=shlex.quote(str(Path(to).absolute())), count=len(files)),
        *_moves(files),
        END,
    ]
    return "\n".join(lines)


def _moves(files: list[Movable]) -> Iterator[str]:
    for file, size, sha256, place in files:
        words = [str(file), str(size), sha256, str(place.parent), place.name]
        yield f"move {' '.join(map(shlex.quote, words))}"


# Names come in as arguments, quoted: nothing in them is run. Files are read from standard
# input, because sha256sum escapes some names.
SCRIPT = """\
#!/bin/sh
# Moves {count} pictures that were marked as duplicates. Nothing is deleted and nothing is
# overwritten; a file that has changed since it was marked stays where it is.
set -eu

to={to}
moved=0
left=0

if command -v sha256sum >/dev/null; then sha256() {{ sha256sum; }}
elif command -v shasum >/dev/null; then sha256() {{ shasum -a 256; }}
elif command -v openssl >/dev/null; then sha256() {{ openssl dgst -sha256 -r; }}
else echo 'This needs sha256sum, shasum or openssl' >&2; exit 1
fi

leave() {{ # file, reason
    left=$((left + 1))
    printf '%s: %s\\n' "$2" "$1" >&2
}}

move() {{ # file, bytes, SHA-256, folder and name in the folder
    if [ -L "$1" ] || [ ! -f "$1" ]; then leave "$1" 'not there any more'; return; fi
    if [ ! -r "$1" ]; then leave "$1" 'cannot be read'; return; fi
    size=$(wc -c < "$1")
    if [ "$size" -ne "$2" ]; then leave "$1" 'has changed'; return; fi
    hash=$(sha256 < "$1" | cut -c 1-64)
    if [ "$hash" != "$3" ]; then leave "$1" 'has changed'; return; fi
    mkdir -p -- "$to/$4"
    target=$to/$4/$5
    number=1
    while [ -e "$target" ] || [ -L "$target" ]; do
        number=$((number + 1))
        target=$to/$4/$number-$5
    done
    mv -n -- "$1" "$target" || true
    if [ -e "$1" ]; then leave "$1" 'could not be moved'; return; fi
    moved=$((moved + 1))
}}
"""
END = """
printf '%s moved to %s, %s left where they are\\n' "$moved" "$to" "$left"
"""


def _write(file: Path, text: str) -> None:
    with _opened(file) as out:
        out.write(text)


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    """A text file that is there once it is written whole."""
    try:
        with replacing(file) as raw:
            out = TextIOWrapper(raw, encoding="utf-8", newline="", write_through=True)
            yield out
            out.detach()
    except OSError as error:
        raise CollectionError(f"{file} cannot be written: {error.strerror}") from None
