"""Ids that say where a vector belongs: database, table and key, as in Datasette's paths.

    photos/images/17          the row with the key 17
    photos/events/2026,~2F    a compound key: 2026 and "/"

Each part is tilde-encoded, so that "/" and "," separate and nothing else does.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from datasette.utils import tilde_decode, tilde_encode

from ..errors import StoreError

if TYPE_CHECKING:
    from datasette.utils.sqlite import sqlite3

    from ..database import Key, SourceTable


def source_id(database: str, table: str) -> str:
    """What the ids of a table's vectors begin with: the field `source` of a store."""
    return f"{tilde_encode(database)}/{tilde_encode(table)}"


def new_source(database: str | Path, table: str) -> str:
    """The source of a new collection: the file's name tells people which it is, a random
    end keeps it apart from another file of that name, and from other collections."""
    return source_id(f"{Path(database).stem}-{secrets.token_hex(4)}", table)


def entry_id(source: str, parts: Sequence[Key]) -> str:
    """The id of a row's vector; `parts` are the values of its key columns."""
    return f"{source}/{','.join(tilde_encode(str(part)) for part in parts)}"


def source_of_id(id: str) -> str:
    """The source that an id belongs to. Raises StoreError for what is no id."""
    if id.count("/") != 2:
        raise StoreError(f"{id!r} is no id of a vector: DATABASE/TABLE/KEY")
    return id.rpartition("/")[0]


def key_of_id(id: str) -> list[str]:
    """The parts of an id's key, as text. Raises StoreError for what is no id."""
    source_of_id(id)
    return [tilde_decode(part) for part in id.rpartition("/")[2].split(",")]


def find_key(
    conn: sqlite3.Connection, table: SourceTable, parts: Sequence[str]
) -> Key | None:
    """The key of the row that the parts of an id's key are of; None where it is gone.

    A column of no type keeps 1 and "1" apart, which ids do not: text comes first.
    """
    found = (table.find(conn, some) for some in product(*map(readings, parts)))
    return next((key for key in found if key is not None), None)


def readings(text: str) -> list[Key]:
    """A part of a key as text, and as the numbers that it may have been written of."""
    keys: list[Key] = [text]
    for kind in (int, float):
        with suppress(ValueError):
            keys.append(kind(text))
    return [key for key in keys if not (isinstance(key, int) and abs(key) >= 2**63)]
