"""Writing the log of searches: after the answer, in the background, or not at all.

A search never waits for it and never fails because of it. Entries are gathered and
written once a second: after each write SQLite reads anew what it had in memory, and the
next search waits for that.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import ImageSimilarityError
from .compat import write_later

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

WAITING = 1000  # entries a database
SECONDS = 1.0  # between writes

Write = Callable[[sqlite3.Connection], None]


class Log:
    """What waits to be written, by database: all of it in one transaction."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Write]] = {}
        self._told: set[str] = set()
        self._tasks: set[asyncio.Task] = set()

    def put(self, datasette: Datasette, database: Database, write: Write) -> None:
        """Have `write` called with a connection, soon; dropped where that cannot be."""
        if not database.is_mutable:
            return self._tell(database, "it is immutable")
        waiting = self._waiting.setdefault(database.name, deque())
        if len(waiting) >= WAITING:
            return self._tell(database, "it cannot be written to as fast as is searched")
        waiting.append(write)
        if len(waiting) == 1:  # else what writes the first takes this as well
            task = asyncio.create_task(self._write(datasette, database, waiting))
            self._tasks.add(task)  # asyncio itself would forget it
            task.add_done_callback(self._tasks.discard)

    async def _write(
        self, datasette: Datasette, database: Database, waiting: deque[Write]
    ) -> None:
        await asyncio.sleep(SECONDS)

        def flush(conn: sqlite3.Connection) -> None:
            self._flush(conn, database, waiting)

        await write_later(datasette, database, flush)

    def _flush(
        self, conn: sqlite3.Connection, database: Database, waiting: deque[Write]
    ) -> None:
        writes = []
        while waiting:
            writes.append(waiting.popleft())
        try:
            with db.transaction(conn):
                db.migrate(conn)
                for write in writes:
                    write(conn)
        except (sqlite3.Error, ImageSimilarityError) as error:
            self._tell(database, str(error))

    def _tell(self, database: Database, reason: str) -> None:
        """Say once that something was not logged."""
        if database.name not in self._told:
            self._told.add(database.name)
            print(
                f"datasette-image-similarity: searches in {database.name} are not all "
                f"logged: {reason}",
                file=sys.stderr,
            )
