"""Which picture of a group to keep, and why, in words.

One question after the other, until one picture is left; what ruled the others out is the
reason. First what shows the original: what the camera wrote, no editing program, the
detail that is really there (an enlarged copy has pixels only), the format that cameras
write. Then what a copy lost: the one that others were saved from, more bytes in the same
format. Last, and never of look-alikes, the older file and the path that
does not look like a copy's. What is not known of a picture decides nothing. Where no
question tells, nothing is suggested; of identical files any one may stay.
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
EDITORS = re.compile(
    r"photoshop|lightroom|gimp|snapseed|picasa|paint|darktable|rawtherapee|capture one|"
    r"affinity|acdsee|irfanview|xnview|magick|pixelmator|photopea|canva|luminar|digikam|"
    r"photoscape|picsart|vsco|shotwell|gthumb|krita|photos \d",
    re.IGNORECASE,
)
CAMERA_FORMATS = {"HEIC": 2, "JPEG": 1, "TIFF": 1}
MINUTE = len("2024-05-01T12:30")  # copying a folder takes seconds: these tell nothing
NEARLY = 1.02  # within this factor two sizes in pixels are one
MORE_BYTES = 1.05  # the least factor that tells: a stamp or a comment is less
NOTHING_TELLS = "nothing tells which one is the original"


class _Question(NamedTuple):
    """`rank` is greatest for what to keep, None if it does not tell; it gets a picture and
    all that are left. `words` get the best and those it rules out."""

    rank: Callable[[Facts, list[Facts]], Any]
    words: Callable[[Facts, list[Facts]], str]


def suggest_keeper(facts: Sequence[Facts], tier: str = "same") -> tuple[Facts | None, str]:
    """The picture to keep of one or more in a tier, and the reason in words.

    None where nothing tells.
    """
    left, reasons = list(facts), []
    for question in QUESTIONS[tier]:
        if len(left) == 1:
            break
        ranks = [question.rank(one, left) for one in left]
        if None in ranks or min(ranks) == max(ranks):
            continue
        ranked = list(zip(left, ranks, strict=True))
        left = [one for one, rank in ranked if rank == max(ranks)]
        gone = [one for one, rank in ranked if rank != max(ranks)]
        reasons.append(question.words(left[0], gone))
    if len(left) > 1 and tier != "identical":
        return None, ", but then ".join([*reasons, NOTHING_TELLS])
    first = min(left, key=lambda one: _key_order(one.pk))
    if len(left) > 1:
        reasons.append(f"the first by its key ({_shown(first.pk)})")
    return first, ", then ".join(reasons)


# What shows the original


def _noted(one: Facts, left: list[Facts]) -> int:
    return len(_by_camera(one))


def _by_camera(one: Facts) -> list[str]:
    there = {"date": one.taken_at, "camera": one.camera, "place": one.placed}
    return [name for name, value in there.items() if value]


def _noted_words(best: Facts, gone: list[Facts]) -> str:
    most = max(map(_by_camera, gone), key=len)
    more = [name for name in _by_camera(best) if name not in most] or _by_camera(best)
    return f"still says what the camera noted ({', '.join(more)})"


def _unedited(one: Facts, left: list[Facts]) -> bool:
    return not EDITORS.search(one.software or "")


def _unedited_words(best: Facts, gone: list[Facts]) -> str:
    return f"not saved by {gone[0].software}"


def _detail(one: Facts, left: list[Facts]) -> int | None:
    """1 for the most pixels that show something, without those that only repeat others."""
    if _one_size(left):
        return 1
    shown = [facts.shows for facts in left]
    if None in shown:
        return None
    enough = one.shows * NEARLY >= max(shown)
    return int(enough and one.pixels <= one.shows * NEARLY)


def _detail_words(best: Facts, gone: list[Facts]) -> str:
    largest = max(gone, key=lambda one: one.pixels)
    if largest.pixels > best.pixels * NEARLY:
        return f"{_size(best)}, enlarged to {_size(largest)} without more detail"
    others = "the other" if len(gone) == 1 else "the others at most"
    return f"{_size(best)}, {others} {_size(largest)}"


def _camera_format(one: Facts, left: list[Facts]) -> int | None:
    if not all(map(_by_camera, left)):
        return None
    return CAMERA_FORMATS.get(one.format or "", 0)


def _camera_format_words(best: Facts, gone: list[Facts]) -> str:
    return f"{best.format} comes from the camera, {_formats(gone)} does not"


# What a copy has lost


def _source(one: Facts, left: list[Facts]) -> bool:
    return one.source not in {other.sha256 for other in left}


def _source_words(best: Facts, gone: list[Facts]) -> str:
    return f"{_formats(gone)} of {in_bytes(gone[0].bytes)} was saved from it"


def _bytes(one: Facts, left: list[Facts]) -> int | None:
    if not _one_size(left) or not _one_format(left):
        return None
    if all(facts.steps and facts.mates for facts in left):
        return None  # compared already: more bytes are no more picture
    return int(one.bytes * MORE_BYTES >= max(facts.bytes for facts in left))


def _bytes_words(best: Facts, gone: list[Facts]) -> str:
    others = "the other" if len(gone) == 1 else "the others at most"
    most = max(one.bytes for one in gone)
    return f"{in_bytes(best.bytes)}, {others} {in_bytes(most)}"


# Where it lies


def _age(one: Facts, left: list[Facts]) -> tuple[int, ...]:
    """Greater for older dates. Undated pictures come last."""
    date = (one.date or "9999-12-31T23:59")[:MINUTE]
    return tuple(-ord(letter) for letter in date)


def _age_words(best: Facts, gone: list[Facts]) -> str:
    what = "taken first" if best.taken_at else "the oldest file"
    dates = [one.date for one in gone if one.date]
    after = f", the next {_day(min(dates))}" if dates else ""
    return f"{what} ({_day(best.date)}{after})"


def _name(one: Facts, left: list[Facts]) -> int:
    return -len(COPIES.findall(one.path or ""))


def _name_words(best: Facts, gone: list[Facts]) -> str:
    return "its path does not look like a copy's"


ORIGINAL = (
    _Question(_noted, _noted_words),
    _Question(_unedited, _unedited_words),
    _Question(_detail, _detail_words),
    _Question(_camera_format, _camera_format_words),
)
LOST = (_Question(_source, _source_words), _Question(_bytes, _bytes_words))
PLACE = (_Question(_age, _age_words), _Question(_name, _name_words))
QUESTIONS = {
    "identical": PLACE,
    "same": (*ORIGINAL, *LOST, *PLACE),
    "alike": ORIGINAL[:3],
}


def _one_size(left: list[Facts]) -> bool:
    pixels = [one.pixels for one in left]
    return max(pixels) <= min(pixels) * NEARLY


def _one_format(left: list[Facts]) -> bool:
    return len({one.format for one in left}) == 1


def _formats(facts: list[Facts]) -> str:
    return " or ".join(sorted({one.format or "a file of unknown format" for one in facts}))


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
