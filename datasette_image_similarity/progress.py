"""How a long step says how far it is: to a person, by whoever calls it."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str, int, int], None]  # what is being done, so many of so many


def silent(what: str, done: int, total: int) -> None:
    """For nobody who listens."""
