"""CSV files as people have them: what spreadsheets, databases and scripts write.

`read_csv()` turns one into rows, and says in its notes what it guessed and what it left
out. Nothing changes its spelling: a value becomes a number only if the number prints back
as the same text.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from .errors import CollectionError

BOMS = (  # UTF-32 before UTF-16, whose mark it begins with
    *((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le")),
    *((codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le")),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
BYTE_ENCODINGS = ("cp1252", "cp1251", "mac_roman")  # that are guessed, likeliest first
OTHER_FILES = {  # what files of other kinds begin with
    b"PK\3\4": "an Excel or other zipped file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"SQLite format 3": "a SQLite database",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "a compressed file",
    b"PAR1": "a Parquet file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
}
DELIMITERS = "\t;|,"  # where several fit equally well, the first one is meant
NO_DELIMITER = "\x1f"  # of a file with one column
JUDGED_LINES = 200  # that decide about the delimiter
TOLD_ROWS = 5  # numbers of rows that a note names
LONGEST_CELL = 2**31 - 1  # characters: as many as Python's csv module can be told
_limit_lock = threading.Lock()  # the csv module keeps its limit for the whole process


class CsvTable(NamedTuple):
    """The rows of a CSV file by column, their numbers in a spreadsheet, where the header
    is row 1, and what a user should know of how they were read."""

    rows: list[dict[str, object]]
    numbers: list[int]
    notes: list[str]


def read_csv(
    path: Path, encoding: str | None = None, as_text: Collection[str] = ()
) -> CsvTable:
    """The rows of a CSV or TSV file with a header. Columns in `as_text` stay text.

    Raises CollectionError for a missing or empty file, one of another kind, one without
    rows, and an `encoding` that is unknown or does not fit.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CollectionError(f"{path}: {error.strerror}") from None
    for start, kind in OTHER_FILES.items():
        if data.startswith(start):
            raise CollectionError(f"{path} is {kind}, not a CSV file: save it as CSV first")
    notes: list[str] = []
    text = _clean(_decoded(path, data, encoding, notes), notes)
    if not text.strip() or _looks_binary(text):
        raise CollectionError(f"{path} is empty, or not a CSV file")
    text, delimiter = _named_delimiter(text)
    if not text.strip():
        raise CollectionError(f"{path} has no header")
    lines = list(io.StringIO(text, newline=""))
    delimiter = delimiter or _delimiter(lines)
    rows = [
        (number, row)
        for number, row in enumerate(_records(lines, delimiter, notes), 1)
        if any(map(str.strip, row))
    ]
    if len(rows) < 2:
        raise CollectionError(f"{path} has a header and no rows")
    (_, header), *rows = rows
    names, rows = _fitted(header, rows, notes)
    columns = list(zip(*(row for _, row in rows), strict=True))
    named = _named(names, columns, notes)
    keep_text = {name.lower() for name in as_text}
    values = [
        list(column) if name.lower() in keep_text else _numbers(column)
        for name, column in named
    ]
    keys = [name for name, _ in named]
    dicts = [dict(zip(keys, row, strict=True)) for row in zip(*values, strict=True)]
    return CsvTable(dicts, [number for number, _ in rows], notes)


# Bytes to text


def _decoded(path: Path, data: bytes, encoding: str | None, notes: list[str]) -> str:
    if encoding is not None:
        return _as_named(path, data, encoding)
    for mark, marked in BOMS:
        if data.startswith(mark):
            return _mostly(data[len(mark) :], marked, notes)
    wide = _wide(data)
    if wide:
        return _mostly(data, wide, notes)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    if sum(not char.isascii() for char in text) > 3 * broken:
        return _mostly(data, "utf-8", notes)
    guess = _guessed(data)
    text = data.decode(guess, "replace")
    word = next(iter(_foreign_words(text)), "")
    notes.append(
        f"The file is not UTF-8. It was read as {guess}, which is a guess"
        f"{f': {word[:40]!r}' if word else ''}. If words look wrong, name its --encoding"
    )
    return text


def _as_named(path: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise CollectionError(f"There is no text encoding called {encoding!r}") from None
    except UnicodeError as error:
        place = f", byte {error.start:,}" if isinstance(error, UnicodeDecodeError) else ""
        raise CollectionError(
            f"{path} is not {encoding}{place}: name another --encoding, or none"
        ) from None


def _mostly(data: bytes, encoding: str, notes: list[str]) -> str:
    """Text in an encoding that is certain, though some bytes may be damaged."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode(encoding, "replace")
    row = text[: text.index("\ufffd")].count("\n") + 1
    notes.append(
        f"Some bytes are not {encoding}, the first in line {row:,}: each became \ufffd"
    )
    return text


def _wide(data: bytes) -> str | None:
    """The encoding of text of two or four bytes a character without a mark, if it is."""
    start = data[: 8000 - len(data[:8000]) % 4] if len(data) > 3 else data
    if b"\0" not in start:
        return None
    shares = {}
    for encoding in WIDE:
        text = start.decode(encoding, "replace")
        # With its bytes the other way round, text of most alphabets seems to be Chinese.
        good = sum(
            char < "\u0800" and (char.isprintable() or char.isspace()) for char in text
        )
        shares[encoding] = 0 if "\0" in text else good / max(len(text), 1)
    best = max(WIDE, key=shares.__getitem__)
    return best if shares[best] > 0.3 else None


def _guessed(data: bytes) -> str:
    """The encoding of one byte a character in which most words look like words."""

    def looks(encoding: str) -> int:
        words = _foreign_words(data.decode(encoding, "replace"))
        return sum(1 if _is_plausible(word) else -1 for word in islice(words, 1000))

    return max(BYTE_ENCODINGS, key=looks)


def _foreign_words(text: str) -> Iterator[str]:
    return (word for word in re.findall(r"[^\W\d_]+", text) if not word.isascii())


def _is_plausible(word: str) -> bool:
    """Whether a word is of one script, not mostly of accents, with capitals in front."""
    russian = [unicodedata.name(char, "").startswith("CYRILLIC") for char in word]
    accents = sum(not char.isascii() for char in word)
    if any(russian):
        return all(russian) and (word.islower() or word.isupper() or word.istitle())
    cased = word.islower() or word.isupper() or word.istitle()
    return cased and (accents <= len(word) / 2 or len(word) < 3)


def _clean(text: str, notes: list[str]) -> str:
    """Text without NUL characters, and without the end mark of DOS."""
    text = text.rstrip("\x1a\0")
    count = text.count("\0")
    if count:
        notes.append(f"{_some(count, 'NUL character')} left out")
    return text.replace("\0", "")


def _looks_binary(text: str) -> bool:
    start = text[:10_000]
    odd = sum(char < " " and not char.isspace() for char in start)
    return odd > len(start) / 100


# Text to rows


def _named_delimiter(text: str) -> tuple[str, str | None]:
    """The text without Excel's line `sep=;`, and the delimiter that it names."""
    found = re.match(r'\s*"?sep=(\\t|[^\r\n])"?[\t;|, ]*(\r\n|\r|\n)', text, re.IGNORECASE)
    if not found:
        return text, None
    return text[found.end() :], found[1].replace("\\t", "\t")


def _delimiter(lines: list[str]) -> str:
    """The delimiter by which the header has several columns and most rows as many."""

    first = next(number for number, line in enumerate(lines) if line.strip())
    judged = lines[first : first + JUDGED_LINES]

    def fits(delimiter: str) -> tuple[bool, float, int]:
        rows = [row for row in _records(judged, delimiter, []) if any(map(str.strip, row))]
        width = len(rows[0])
        same = sum(len(row) == width for row in rows[1:])
        return width > 1, same / max(len(rows) - 1, 1), width

    best = max(DELIMITERS, key=fits)
    return best if fits(best)[0] else NO_DELIMITER


def _records(lines: list[str], delimiter: str, notes: list[str]) -> list[list[str]]:
    """The cells of each row, empty for a blank line.

    A line whose quotes do not match is read by itself, or it would take those after it
    along: a quote that is never closed would hide the rest of the file.
    """
    header = next(filter(str.strip, lines))
    spaced = re.findall(f"{re.escape(delimiter)}( ?)", header)
    form = {"delimiter": delimiter, "skipinitialspace": bool(spaced) and all(spaced)}
    rows: list[list[str]] = []
    unmatched = []
    at = 0  # the line that the next row begins with
    with _cells_of_any_length():
        while at < len(lines):
            begun = at
            reader = csv.reader(islice(lines, at, None), strict=True, **form)
            try:
                for row in reader:
                    at = begun + reader.line_num
                    rows.append(row)
            except csv.Error:
                width = next((len(row) for row in rows if row), None)
                rows.append(_alone(lines[at], width, form))
                unmatched.append(len(rows))
                at += 1
    if unmatched:
        notes.append(f"{_rows_told(unmatched)}: quotes that do not match")
    return rows


def _alone(line: str, width: int | None, form: dict) -> list[str]:
    """The cells of one line whose quotes do not match: they count as ordinary characters
    unless the row fits the header without them."""
    line = line.rstrip("\r\n")
    row = next(csv.reader([line], **form))
    plain = next(csv.reader([line], quoting=csv.QUOTE_NONE, **form))
    return row if len(row) == width or len(plain) != width else plain


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Meanwhile the csv module takes cells of more than 131,072 characters."""
    with _limit_lock:
        before = csv.field_size_limit(LONGEST_CELL)
        try:
            yield
        finally:
            csv.field_size_limit(before)


Row = tuple[int, list[str]]  # its number, its cells


def _fitted(
    header: list[str], rows: list[Row], notes: list[str]
) -> tuple[list[str], list[Row]]:
    """Names and rows of the same length: rows with too many values are left out."""
    names = [name.strip() for name in header]
    ends = {len(row) for _, row in rows}
    if (
        ends == {len(names) + 1}
        and len(rows) > 1
        and any(row[-1].strip() for _, row in rows)
    ):
        names.insert(0, "")  # R names no column for its row names
    width = len(names)
    fitting, long, short = [], [], []
    for number, row in rows:
        if any(map(str.strip, row[width:])):
            long.append(number)
            continue
        if len(row) < width:
            short.append(number)
        fitting.append((number, row[:width] + [""] * (width - len(row))))
    if long:
        first = next(len(row) for number, row in rows if number == long[0])
        notes.append(
            f"{_rows_told(long)} left out: row {long[0]:,} has {first} values for {width} "
            "columns. A value that holds the delimiter needs quotes around it"
        )
    if short:
        notes.append(
            f"{_rows_told(short)}: fewer values than the {width} columns; the missing ones "
            "are empty"
        )
    if not fitting:
        raise CollectionError(f"The CSV file has no usable row. {notes[-1]}")
    return names, fitting


def _named(
    names: list[str], columns: Sequence[tuple[str, ...]], notes: list[str]
) -> list[tuple[str, tuple[str, ...]]]:
    """Columns with a name each, none of them twice: SQLite takes "a" and "A" for one.
    Those without a name and a value are left out."""
    empty, taken = 0, Counter(name.lower() for name in names)
    used: set[str] = set()
    named = []
    for place, (name, column) in enumerate(zip(names, columns, strict=True), 1):
        if not name and not any(map(str.strip, column)):
            empty += 1
            continue
        free = name or f"column_{place}"
        number = 2
        while free.lower() in used or (free != name and free.lower() in taken):
            free = f"{name or f'column_{place}'}_{number}"
            number += 1
        if not name:
            notes.append(f"Column {place} has no name: it is called {free}")
        elif free != name:
            notes.append(f"Column {place}: the name {name} is taken, it is called {free}")
        used.add(free.lower())
        named.append((free, column))
    if empty:
        notes.append(f"{_some(empty, 'empty column')} without a name left out")
    return named


# Values


def _numbers(values: tuple[str, ...]) -> list[object]:
    """A column as int or float, None where it is empty, if all of its values print back
    as the same text; else as it is.

    Of a column of both kinds SQLite turns 2.0 into 2: it stays text if it has such values.
    """
    numbers = [number_of(value) if value else None for value in values]
    kinds = {type(number) for number in numbers if number is not None}
    whole = any(isinstance(one, float) and one.is_integer() for one in numbers)
    missed = any(v and number is None for v, number in zip(values, numbers, strict=True))
    if missed or not kinds or (len(kinds) > 1 and whole):
        return list(values)
    return numbers


def number_of(text: str) -> int | float | None:
    """The number that prints as this text, in Python as in SQLite, which prints 15 digits
    of a real; None if there is none."""
    if re.fullmatch(r"-?\d{1,19}", text):
        number = int(text)
        return number if str(number) == text and -(2**63) <= number < 2**63 else None
    if re.fullmatch(r"-?\d+\.\d+", text) and len(re.sub(r"^[-0.]+|\.", "", text)) <= 15:
        return float(text) if str(float(text)) == text and text != "-0.0" else None
    return None


# Words


def _rows_told(numbers: Sequence[int]) -> str:
    """Rows by their numbers, the first of many."""
    told = [f"{number:,}" for number in numbers[:TOLD_ROWS]]
    more = len(numbers) - len(told)
    if more:
        return f"Rows {', '.join(told)} and {more:,} more"
    *first, last = told
    return f"Rows {', '.join(first)} and {last}" if first else f"Row {last}"


def _some(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' if count > 1 else ''}"
