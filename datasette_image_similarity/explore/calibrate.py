"""How alike is alike? Thresholds for duplicates, measured on the collection itself.

Cosines mean another thing with each encoder and each collection. Two kinds of pairs tell
where the limits are: random ones, and pictures of the collection beside copies of
themselves that are made here: recompressed, of half the size, cropped a little, brightened.
Copies need the encoder, which is never downloaded for this; without it, what was measured
with encoders of its kind stands in for it, and the result says so.

- *Look-alikes*: as alike to the encoder as nearly all of these copies are to their
  originals, and more than all but one in 10,000 random pairs.
- *The same picture*: as alike as these, or as 1 % of random pairs, if that is less; near in
  perceptual hash and colours (see `hashes.py`); and the same in detail (see `closer.py`).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..encoders import Encoder, EncoderSpec
from ..images import DecoderPool, Input, Limits, Request
from . import hashes
from .vectors import Say, Stopped

if TYPE_CHECKING:
    import numpy as np

RANDOM = 2000  # pictures whose pairs are the random ones
COPIED = 100  # pictures that are copied
COPIES = 4  # of each
LARGEST = 1024  # pixels a side of a picture to be copied: its own number, as a square
SMALL = 277  # the same of a thumbnail of 320 × 240
MEASURABLE = 20  # pairs of copies; fewer say nothing
UNRELATED = 0.99
RARE = 0.9999  # of random pairs are below
NEARLY_ALL = 0.98  # of copies are at least as alike
BITS = 14  # of 64 that hashes of the same picture may differ by: cropping takes 5 % off
COLOURS = 32  # levels of 255, for the same reason
COPIES_LIMITS = Limits(max_bytes=20_000_000, max_pixels=LARGEST**2, seconds=30)


@dataclass(frozen=True)
class Copies:
    """How alike pictures and their copies are.

    `low` and `half` are cosines that 98 % and half of the pairs reach. `pairs` is 0 for
    values that were measured elsewhere.
    """

    fingerprint: str  # of the encoder
    collected: int  # pictures in the collection then
    pairs: int
    low: float
    half: float


@dataclass(frozen=True)
class Thresholds:
    """What counts as a duplicate, and why."""

    same: float  # least cosine of the same picture
    alike: float  # least cosine of look-alikes
    chosen: bool  # `alike` was asked for
    typical: float  # median cosine of random pairs
    related: float  # 99 % of random pairs are below
    rare: float  # 99.99 % of random pairs are below
    copies: Copies

    @property
    def words(self) -> list[str]:
        """Thresholds and reasons, a sentence each."""
        copies = self.copies
        made = "recompressed, scaled, cropped and brightened copies"
        measured = (
            f"of {copies.pairs:,} {made} of its pictures"
            if copies.pairs
            else f"of {made} of other photos (its encoder or its pictures cannot be had "
            "here, so this was measured elsewhere)"
        )
        why = (
            "as asked for"
            if self.chosen
            else f"because 98 % {measured} are above {copies.low:.3f}, and 99.99 % of its "
            f"random pairs below {self.rare:.3f}"
        )
        return [
            f"Look-alikes: cosine ≥ {self.alike:.3f}, {why}.",
            f"The same picture: cosine ≥ {self.same:.3f}, hash within {BITS} of 64 bits, "
            f"colours within {COLOURS} of 255 levels; and laid over each other, no part "
            "differs in detail or colour.",
        ]

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "words": self.words})


# Measured with hog and MobileNetV2 on photos of 300 pixels, with 400 pairs of copies.
ELSEWHERE = {"hog": (0.97, 0.993), "network": (0.9, 0.976)}


def choose_thresholds(
    vectors: np.ndarray,
    prints: hashes.Prints,
    copies: Copies,
    alike: float | None = None,
) -> Thresholds:
    """Thresholds for vectors float32 (n, d), L2-normalised; `alike` is taken as given."""
    typical, related, rare = _random_pairs(vectors, prints)
    limit = _down(max(copies.low, min(rare, copies.half)))
    return Thresholds(
        same=min(limit, _down(related)),
        alike=limit if alike is None else alike,
        chosen=alike is not None,
        typical=typical,
        related=related,
        rare=rare,
        copies=copies,
    )


def _random_pairs(vectors: np.ndarray, prints: hashes.Prints) -> tuple[float, float, float]:
    """What half, 99 % and 99.99 % of the cosines of random pairs are below.

    Pairs of near hashes are left out: in a collection of which every second picture is a
    copy, they would be what is measured.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    some = rng.choice(len(vectors), min(RANDOM, len(vectors)), replace=False)
    product = vectors[some] @ vectors[some].T
    bits = hashes.bits_apart(prints.hashes[some, None], prints.hashes[None, some])
    known = prints.known[some]
    unlike = np.triu((bits > BITS) | ~(known[:, None] & known[None]), 1)
    pairs = product[unlike]
    if not len(pairs):
        return 0.0, 0.0, 0.0
    typical, related, rare = np.quantile(pairs, [0.5, UNRELATED, RARE]).tolist()
    return typical, related, rare


def _down(cosine: float) -> float:
    """Rounded down to three digits: what is said is what is used."""
    return math.floor(cosine * 1000) / 1000


def stored_copies(stored: object, fingerprint: str, collected: int) -> Copies | None:
    """What an earlier run measured, if the encoder and about the size are as they were.

    `stored` is the JSON of thresholds; from a stranger's database it may be anything.
    """
    try:
        found = json.loads(stored)["copies"]
        copies = Copies(**{field.name: found[field.name] for field in fields(Copies)})
        right = math.isfinite(copies.low) and math.isfinite(copies.half)
        right = right and -1 <= copies.low <= copies.half <= 1 and copies.pairs > 0
        near = copies.collected / 2 <= collected <= copies.collected * 2
    except (TypeError, ValueError, KeyError, RecursionError):
        return None
    return copies if right and near and copies.fingerprint == fingerprint else None


def copies_elsewhere(collection: db.Collection, collected: int) -> Copies:
    """What to assume where nothing can be measured."""
    model = EncoderSpec.from_json(collection.encoder).model
    low, half = ELSEWHERE["hog" if model == "hog" else "network"]
    return Copies(collection.fingerprint, collected, 0, low, half)


def measure_copies(
    conn: sqlite3.Connection,
    collection: db.Collection,
    items: dict[int, str],
    encoder: Encoder,
    *,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Copies | None:
    """Copy some of the items and compare; None where too few can be read.

    `items` come with the SHA-256 of their pictures. From the originals where these may be
    read, else from thumbnails. Raises Stopped.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    chosen = rng.choice(list(items), min(COPIED, len(items)), replace=False)
    sides = _sides(conn, np.sort(chosen).tolist())
    some = {item: items[item] for item in sides}

    def whole(item: int, original: bool) -> Request:
        side = min(sides[item][0], LARGEST if original else SMALL)
        return Request(input=Input(side, LARGEST, "squash", "bicubic"))

    pictures = hashes.decoded(conn, collection, some, request=whole, originals=True)
    request = Request(input=encoder.input)
    cosines = []
    with DecoderPool(COPIES_LIMITS, 2) as pool, ThreadPoolExecutor(2) as threads:
        for done, (item, _, picture) in enumerate(pictures, 1):
            if stop():
                pictures.close()
                raise Stopped
            say("Calibrating on copies", done, len(some))
            if picture is None:
                continue
            files = list(_copies(picture.pixels, sides[item][1]))
            seen = threads.map(lambda data: pool.decode(data, request).pixels, files)
            vectors = encoder.encode(np.stack(list(seen)))
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            cosines.append(vectors[1:] @ vectors[0])
    if len(cosines) * COPIES < MEASURABLE:
        return None
    low, half = np.quantile(np.concatenate(cosines), [1 - NEARLY_ALL, 0.5])
    return Copies(
        fingerprint=collection.fingerprint,
        collected=len(items),
        pairs=len(cosines) * COPIES,
        low=_down(float(low)),
        half=_down(float(half)),
    )


def _sides(conn: sqlite3.Connection, items: list[int]) -> dict[int, tuple[int, int]]:
    """By item: the side of a square of as many pixels, and half of what that really is."""
    sql = (
        "select i.id, i.width, i.height from json_each(?) j "
        "cross join _image_similarity_items i on i.id = j.value"
    )
    sides = {}
    for item, width, height in conn.execute(sql, (json.dumps(items),)):
        numbers = isinstance(width, int) and isinstance(height, int)
        side = math.isqrt(width * height) if numbers and width * height > 0 else 256
        sides[item] = (max(32, side), max(16, side // 2))
    return sides


def _copies(pixels: np.ndarray, half: int) -> Iterator[bytes]:
    """A picture uint8 (s, s, 3) as PNG, then its copies as JPEG."""
    from PIL import Image, ImageEnhance

    image = Image.fromarray(pixels)
    side = image.width
    smaller = min(side, half)
    edge = round(side * 0.02)
    inner = (edge, edge, side - edge, side - edge)
    yield _saved(image, "PNG", compress_level=1)
    yield _saved(image, "JPEG", quality=50)
    yield _saved(image.resize((smaller, smaller), Image.Resampling.LANCZOS))
    yield _saved(image.crop(inner))
    yield _saved(ImageEnhance.Brightness(image).enhance(1.15))


def _saved(image: Any, form: str = "JPEG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **(options or {"quality": 85}))
    return buffer.getvalue()
