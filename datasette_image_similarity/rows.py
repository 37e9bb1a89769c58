"""Rows that a CSV or a program gives: which rows of the table they are.

Where they have no key of their own, rows are numbered, and recognised in later runs by all
they say, else by their picture. A line's place in the file says nothing: lines are removed
and put in between, and a row must not get the vector or the decisions of another.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from datasette.utils.sqlite import sqlite3

from . import database as db
from .csv_files import CsvTable, number_of
from .errors import CollectionError
from .written import written_rows

Rows = Sequence[Mapping[str, object]]
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", re.IGNORECASE)
CSV_ROWS, CSV_COLUMNS = "csv_rows", "csv_columns"  # run settings of a collection


class Given(NamedTuple):
    """What was put into the table, and what a user should know about it.

    Rows without a key of their own have the numbers `keys`; those in `gone` are rows that
    the CSV had when it was read before, and has no more.
    """

    is_csv: bool
    columns: list[str]
    keys: list[int]
    gone: list[int]
    notes: list[str]


def put_given(
    conn: sqlite3.Connection,
    table: str,
    given: CsvTable | Rows,
    pk: str | None,
    picture_column: str,
) -> Given:
    """Insert the given rows, or update those that the table has: one transaction.

    The key is the column `pk`; by default "id" if every row has one of its own, else a
    number, in a column "id" or "row_number". Raises CollectionError for a `pk` that is not
    unique, or is not the key of a table that exists.
    """
    is_csv = isinstance(given, CsvTable)
    rows = [dict(row) for row in (given.rows if is_csv else given)]
    numbers = given.numbers if is_csv else range(1, len(rows) + 1)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    notes: list[str] = []
    keys: list[int] = []
    gone: list[int] = []
    with db.transaction(conn):
        key = _key_column(rows, columns, pk, numbers, notes)
        if key is None:
            key = _number_column(columns)
            keys, gone = _recognised(conn, table, key, rows, picture_column, is_csv)
            rows = [{key: number, **row} for number, row in zip(keys, rows, strict=True)]
        notes += _respelled(conn, table, rows, key, numbers)
        db.put_rows(conn, table, rows, key)
    return Given(is_csv, columns, keys, gone, notes)


def finish_given(
    conn: sqlite3.Connection,
    collection: db.Collection,
    table: db.SourceTable,
    given: Given,
    prune: bool,
    written_too: bool = False,
) -> list[str]:
    """Note for later runs what was given; with `prune` delete rows that left the CSV.

    Rows in which people wrote something stay as they are, unless `written_too`. Returns
    what a user should know.
    """
    gone, notes = given.gone, []
    if gone and prune:
        kept = set() if written_too else written_rows(conn, table, gone, given.columns)
        name, key = db.quote(table.name), db.quote(table.key_columns[0])
        dropped = [(one,) for one in gone if one not in kept]
        conn.executemany(f"delete from {name} where {key} = ?", dropped)
        gone = [one for one in gone if one in kept]
        if gone:
            why = "but kept, because people wrote something there"
            notes = [f"{_some_rows(gone)} not in the CSV, {why}"]
    elif gone:
        notes = [f"{_some_rows(gone)} not in the CSV any more: --prune deletes such rows"]
    before = db.run_setting(conn, collection, CSV_COLUMNS)
    names = {str(name) for name in before} if isinstance(before, list) else set()
    db.note_run_setting(conn, collection, CSV_COLUMNS, sorted(names | {*given.columns}))
    if given.is_csv:
        db.note_run_setting(conn, collection, CSV_ROWS, _ranges({*given.keys, *gone}))
    return notes


# Keys


def _key_column(
    rows: Rows,
    columns: list[str],
    pk: str | None,
    numbers: Sequence[int],
    notes: list[str],
) -> str | None:
    """The column whose values tell the rows apart, None if they have to be numbered."""
    name = next((c for c in columns if c.lower() == (pk or "id").lower()), None)
    if name is None:
        if pk is not None:
            raise CollectionError(
                f"There is no column {pk!r} to be the key; there is {', '.join(columns)}"
            )
        return None
    problem = _key_problem([row.get(name) for row in rows], numbers)
    if problem is None:
        return name
    if pk is not None:
        raise CollectionError(f"Column {name!r} is not a key: {problem}")
    notes.append(f"Column {name!r} is not a key, so rows are numbered: {problem}")
    return None


def _key_problem(values: list[object], numbers: Sequence[int]) -> str | None:
    """Why values are no key, with the row."""
    seen: dict[object, int] = {}
    for value, number in zip(values, numbers, strict=True):
        if value is None or value == "":
            return f"it has no value in row {number:,}"
        if value in seen:
            return f"row {number:,} repeats {value!r} of row {seen[value]:,}"
        seen[value] = number
    return None


def _number_column(columns: list[str]) -> str:
    taken = {name.lower() for name in columns}
    return next(name for name in ("id", "row_number", "csv_row") if name not in taken)


def _recognised(
    conn: sqlite3.Connection,
    table: str,
    key: str,
    rows: Rows,
    picture_column: str,
    is_csv: bool,
) -> tuple[list[int], list[int]]:
    """The number of each row, and the numbers of rows that a CSV had before.

    A row is one of the table that says all the same; else the only one left with its
    picture. All others are new.
    """
    noted = _noted(conn, table)
    last = max((end for _, end in noted or ()), default=0)
    if not db.table_exists(conn, table):
        return [*range(last + 1, last + 1 + len(rows))], []
    source = db.source_table(conn, table)
    if [name.lower() for name in source.pks] != [key]:
        return [*range(1, 1 + len(rows))], []  # put_rows() says what is the matter
    there = {name.lower() for name in source.columns} - {key}
    said = [{n.lower(): _said(v) for n, v in row.items()} for row in rows]
    shared = sorted(there & {name for row in said for name in row})
    stored = _stored(conn, source, shared)

    alike: dict[tuple, deque[int]] = defaultdict(deque)
    for number, values in stored.items():
        alike[values].append(number)
    lines = [tuple(row.get(name, "") for name in shared) for row in said]
    found = [alike[line].popleft() if alike.get(line) else None for line in lines]
    place = (
        shared.index(picture_column.lower()) if picture_column.lower() in shared else None
    )
    if place is not None:
        known = set(found)
        left = {n: values[place] for n, values in stored.items() if n not in known}
        _by_picture(found, [line[place] for line in lines], left)
    unseen = max([last, *stored], default=0)
    for index, number in enumerate(found):
        if number is None:
            unseen += 1
            found[index] = unseen
    gone = stored.keys() - set(found)
    if noted is not None:
        gone = {n for n in gone if any(start <= n <= end for start, end in noted)}
    return found, sorted(gone) if is_csv else []


def _by_picture(
    found: list[int | None], pictures: list[object], left: dict[int, object]
) -> None:
    """Give rows without a number that of the row with their picture, where there is one
    of each."""
    waiting = Counter(p for p, n in zip(pictures, found, strict=True) if n is None)
    numbers: dict[object, list[int]] = defaultdict(list)
    for number, picture in left.items():
        numbers[picture].append(number)
    for index, picture in enumerate(pictures):
        one = found[index] is None and picture != "" and waiting[picture] == 1
        if one and len(numbers[picture]) == 1:
            found[index] = numbers[picture][0]


def _stored(
    conn: sqlite3.Connection, source: db.SourceTable, columns: list[str]
) -> dict[int, tuple]:
    """What the table's rows say in some columns, by their number."""
    wanted = ", ".join(map(db.quote, [*source.pks, *columns]))
    rows = conn.execute(f"select {wanted} from {db.quote(source.name)} order by 1")
    return {row[0]: tuple(map(_said, tuple(row)[1:])) for row in rows}


def _said(value: object) -> object:
    """A value as it compares with one that SQLite may have stored in another type."""
    if value is None or isinstance(value, bytes):
        return value or ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _noted(conn: sqlite3.Connection, table: str) -> list[list[int]] | None:
    """Ranges of the numbers that CSVs brought into a table; None if nothing was noted."""
    found = [
        db.run_setting(conn, collection, CSV_ROWS)
        for collection in db.collections(conn, table)
    ]
    noted = [ranges for ranges in found if isinstance(ranges, list)]
    pairs = [pair for ranges in noted for pair in ranges if _is_range(pair)]
    return pairs if noted else None


def _is_range(pair: object) -> bool:
    """Whether it is what `_ranges()` wrote: the database may come from a stranger."""
    return isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers as [first, last] of each run of them."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


# Values


def _respelled(
    conn: sqlite3.Connection,
    table: str,
    rows: Rows,
    key: str,
    numbers: Sequence[int],
) -> list[str]:
    """Notes on values that a column of the table would spell in another way.

    Raises CollectionError for a key: two of them might become one.
    """
    if not db.table_exists(conn, table):
        return []
    notes = []
    info = conn.execute(f"pragma table_xinfo({db.quote(table)})").fetchall()
    types = {one["name"].lower(): one["type"].upper() for one in info}
    for name in dict.fromkeys(name for row in rows for name in row):
        declared = types.get(name.lower(), "")
        changed = (
            f"Column {name!r} of the table {table!r} holds numbers, which changes how "
            f"{str(row[name])!r} in row {number:,} is spelled"
            for row, number in zip(rows, numbers, strict=True)
            if _changes(row.get(name), declared)
        )
        said = next(changed, None)
        if name == key and declared == "INTEGER" and not said:
            words = (
                f"Column {name!r} of the table {table!r} holds whole numbers, and "
                f"{str(row.get(name))!r} in row {number:,} is none"
                for row, number in zip(rows, numbers, strict=True)
                if type(number_of(str(row.get(name)))) is not int
            )
            said = next(words, None)
        if said and name == key:
            raise CollectionError(f"{said}. Make the column text, or use a new table")
        notes += [said] if said else []
    return notes


def _changes(value: object, declared: str) -> bool:
    """Whether a column of this type would make something else of a value, as printed.

    https://sqlite.org/datatype3.html#determination_of_column_affinity
    """
    texts = ("CHAR", "CLOB", "TEXT", "BLOB")
    if "INT" not in declared and (not declared or any(t in declared for t in texts)):
        return False
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = number_of(value)
        if value is None:
            return True
    real = any(part in declared for part in ("REAL", "FLOA", "DOUB"))
    if isinstance(value, float):
        return value.is_integer() and not real
    return type(value) is int and real


def _some_rows(numbers: list[int]) -> str:
    more = ", …" if len(numbers) > 5 else ""
    named = f"(number {', '.join(map(str, numbers[:5]))}{more})"
    if len(numbers) == 1:
        return f"1 row of the table {named} is"
    return f"{len(numbers):,} rows of the table {named} are"
