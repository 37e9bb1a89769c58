"""The time that one request may keep databases busy: Datasette's own limit, for everything
that is asked in answering it together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from datasette.utils.sqlite import sqlite3

from ..query import SearchTimeout, deadline

if TYPE_CHECKING:
    from datasette.app import Datasette

SPENT = "image_similarity_spent"  # in a request's scope, which goes wherever it goes
NO_TIME = "There was no time left for it: what else was asked took it all"

Found = TypeVar("Found")


def limited(
    datasette: Datasette,
    request: Any,
    ask: Callable[[sqlite3.Connection], Found],
    patience: float = 1,
) -> Callable[[sqlite3.Connection], Found]:
    """The same, under what is left of the request's time. It raises SearchTimeout.

    `patience` is so many times Datasette's limit: for what is read whole, whoever asks.
    Waiting for a thread, or for an encoder, does not count.
    """
    spent: list[float] = request.scope.setdefault(SPENT, [])
    whole = patience * datasette.setting("sql_time_limit_ms") / 1000

    def run(conn: sqlite3.Connection) -> Found:
        left = whole - sum(spent)
        if left <= 0:
            raise SearchTimeout(NO_TIME)
        started = time.monotonic()
        try:
            with deadline(conn, left, whole):
                return ask(conn)
        finally:
            spent.append(time.monotonic() - started)

    return run
