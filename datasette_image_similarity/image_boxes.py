"""What the boxes of an AVIF file say about its main picture (ISO/IEC 14496-12, 23008-12).

Only what Pillow does not tell: the part to be shown (`clap`) and its colours (`colr`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction

MAX_BOXES = 10_000


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple]:
    """Type, first byte behind the header, and declared end of each box, in order."""
    end = len(data) if end is None else end
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        inside = start + 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, inside)
            inside += 8
        stop = start + size if size else end
        if stop < inside:
            return
        yield kind, inside, stop
        start = stop


def child(data: bytes, kind: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the first box of a kind begins and ends. Raises KeyError without one."""
    for found, inside, stop in boxes(data, start, end):
        if found == kind:
            return inside, min(stop, end)
    raise KeyError(kind)


def properties(data: bytes) -> dict[bytes, list[bytes]]:
    """The properties of the main picture, by type; empty where they cannot be read."""
    found: dict[bytes, list[bytes]] = {}
    with suppress(KeyError, IndexError, struct.error):
        start, end = child(data, b"meta", 0, len(data))
        start += 4
        at, _ = child(data, b"pitm", start, end)
        main = number(data, at + 4, 4 if data[at] else 2)
        iprp = child(data, b"iprp", start, end)
        there = [
            (kind, data[inside:stop])
            for kind, inside, stop in boxes(data, *child(data, b"ipco", *iprp))
        ]
        for index in associations(data, *child(data, b"ipma", *iprp)).get(main, []):
            if 0 < index <= len(there):
                kind, body = there[index - 1]
                found.setdefault(kind, []).append(body)
    return found


def associations(data: bytes, at: int, end: int) -> dict[int, list[int]]:
    """Which properties each item has, by their place in `ipco`, counted from 1."""
    version, wide = data[at], data[at + 3] & 1
    count, at = number(data, at + 4, 4), at + 8
    found: dict[int, list[int]] = {}
    for _ in range(min(count, MAX_BOXES)):
        if at >= end:
            break
        size = 4 if version else 2
        item, many, at = number(data, at, size), data[at + size], at + size + 1
        step = 2 if wide else 1
        places = range(at, at + many * step, step)
        # The highest bit says whether a reader must know the property.
        found[item] = [number(data, p, step) & (0x7FFF if wide else 0x7F) for p in places]
        at += many * step
    return found


def number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def clean_aperture(
    found: dict[bytes, list[bytes]], size: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """The part that is to be shown: left, upper, right, lower in pixels."""
    for body in found.get(b"clap", [])[:1]:
        with suppress(struct.error, ZeroDivisionError):
            parts = struct.unpack_from(">IIIIiIiI", body)
            wide, high, right, down = map(Fraction, parts[::2], parts[1::2])
            left, upper = (size[0] - wide) / 2 + right, (size[1] - high) / 2 + down
            box = tuple(round(edge) for edge in (left, upper, left + wide, upper + high))
            inside = 0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]
            return box if inside else None
    return None


def coding(found: dict[bytes, list[bytes]]) -> tuple[int, int] | None:
    """Primaries and transfer function as numbers of ITU-T H.273."""
    for body in found.get(b"colr", []):
        if body[:4] == b"nclx" and len(body) >= 8:
            return number(body, 4, 2), number(body, 6, 2)
    return None
