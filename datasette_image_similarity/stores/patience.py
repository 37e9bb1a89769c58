"""How long a thread waits for stores, all of its calls together.

A command gives each call its time; who answers a request has so much for all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import StoreError

_until: ContextVar[float] = ContextVar("image_similarity_until", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What this thread asks of stores in here takes so long at most, in all."""
    token = _until.set(min(_until.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _until.reset(token)


def left(most: float) -> float:
    """Seconds that the next call may take, `most` at most. Raises StoreError for none."""
    seconds = min(most, _until.get() - time.monotonic())
    if seconds <= 0:
        raise StoreError("The store with the vectors takes too long to answer")
    return seconds
