"""Which picture of a group to keep, and why, in words.

One question after the other, until one picture is left: the most pixels; a lossless file,
else the most bytes; a date on which it was taken; the oldest date; a path that does not
look like a copy's; the lowest key. What ruled others out is the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import database as db
from .facts import Facts

COPIES = re.compile(
    r"\(\d+\)|\b(copy|copies|duplicate|kopie|copie|copia|edited|thumb(nail)?|small|resized)\b"
    r"|[-_ ](copy|edit|\d+x\d+)(?=\.|$)",
    re.IGNORECASE,
)
MINUTE = len("2024-05-01T12:30")  # copying a folder takes seconds: these tell nothing


class _Question(NamedTuple):
    """`rank` is greatest for what to keep; `words` get the best and those it rules out."""

    rank: Callable[[Facts], Any]
    words: Callable[[Facts, list[Facts]], str]


def suggest_keeper(facts: Sequence[Facts]) -> tuple[Facts, str]:
    """The picture to keep of one or more, and the reason in words."""
    left, reasons = list(facts), []
    for question in QUESTIONS:
        if len(left) == 1:
            break
        best = max(map(question.rank, left))
        stay = [one for one in left if question.rank(one) == best]
        if len(stay) < len(left):
            gone = [one for one in left if question.rank(one) != best]
            reasons.append(question.words(stay[0], gone))
            left = stay
    first = min(left, key=lambda one: _key_order(one.pk))
    if len(left) > 1:
        reasons.append(f"the first by its key ({_shown(first.pk)})")
    return first, ", then ".join(reasons)


def _pixels(best: Facts, gone: list[Facts]) -> str:
    most = max(gone, key=lambda one: one.width * one.height)
    others = "the other" if len(gone) == 1 else "the others at most"
    return f"{_size(best)}, {others} {_size(most)}"


def _lossless(best: Facts, gone: list[Facts]) -> str:
    formats = sorted({one.format or "of unknown format" for one in gone})
    return f"{best.format} is lossless, not {' or '.join(formats)}"


def _bytes(best: Facts, gone: list[Facts]) -> str:
    most = max(one.bytes for one in gone)
    close = in_bytes(best.bytes) == in_bytes(most)
    text = (lambda number: f"{number:,} bytes") if close else in_bytes
    others = "the other" if len(gone) == 1 else "the others at most"
    return f"{text(best.bytes)}, {others} {text(most)}"


def _has_date(best: Facts, gone: list[Facts]) -> str:
    return f"still says when it was taken ({_day(best.taken_at)})"


def _oldest(best: Facts, gone: list[Facts]) -> str:
    what = "taken first" if best.taken_at else "the oldest file"
    dates = [one.date for one in gone if one.date]
    after = f", the next {_day(min(dates))}" if dates else ""
    return f"{what} ({_day(best.date)}{after})"


def _name(best: Facts, gone: list[Facts]) -> str:
    return "its path does not look like a copy's"


def _age(facts: Facts) -> tuple[int, ...]:
    """Greater for older dates. Undated pictures come last."""
    date = (facts.date or "9999-12-31T23:59")[:MINUTE]
    return tuple(-ord(letter) for letter in date)


QUESTIONS = (
    _Question(lambda one: one.width * one.height, _pixels),
    _Question(lambda one: one.lossless, _lossless),
    _Question(lambda one: one.bytes, _bytes),
    _Question(lambda one: one.taken_at is not None, _has_date),
    _Question(_age, _oldest),
    _Question(lambda one: -len(COPIES.findall(one.path or "")), _name),
)


def _size(facts: Facts) -> str:
    return f"{facts.width:,} × {facts.height:,}"


def in_bytes(number: int) -> str:
    """ "3.2 MB" or "812 KB"."""
    return f"{number / 1e6:,.1f} MB" if number >= 1e6 else f"{number / 1e3:,.1f} KB"


def _day(date: str | None) -> str:
    return (date or "unknown")[:MINUTE].replace("T", " ")


def _shown(pk: db.Key) -> str:
    text = str(pk)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _key_order(pk: db.Key) -> tuple:
    """Numbers before text, as SQLite orders them."""
    return (1, str(pk)) if isinstance(pk, str) else (0, pk)
