"""What people change on our pages: who may, and how it is written.

Decisions about duplicates, names of clusters, saved questions: rows in tables of ours,
never in the user's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasette.utils import actor_matches_allow
from datasette.utils.sqlite import sqlite3

from .. import database as db
from .compat import may_insert, same_origin
from .question import PageError, Place


async def may_curate(place: Place) -> bool:
    """Whether the actor may decide, name and save: a curator, where it can be written."""
    return place.db.is_mutable and await is_curator(place)


async def is_curator(place: Place) -> bool:
    """Whoever the setting `curators` (an allow block of Datasette's, or true) names;
    without it, whoever may insert rows into the table.

    A token that is restricted to some actions ("_r") has no others: what the setting names
    is none of Datasette's, so that with such a token the right to insert is needed.
    """
    curators, actor = place.config.curators, place.request.actor
    if curators is not None and not (actor and "_r" in actor):
        return actor_matches_allow(actor, curators)
    return await may_insert(
        place.datasette, place.request.actor, place.database, place.table
    )


async def require_curator(place: Place) -> None:
    """Raises PageError 405 or 403 unless a curator POSTs, from a page of ours."""
    if place.request.method != "POST":
        raise PageError(405, "Changes are made by POST")
    if not same_origin(place.request):
        raise PageError(403, "This form was sent from another site")
    if not place.db.is_mutable:
        raise PageError(403, f"The database {place.database} is immutable")
    if not await may_curate(place):
        raise PageError(
            403,
            "You may not change anything here: start Datasette with --root and follow the "
            'link it prints, or name "curators" in the configuration of '
            "datasette-image-similarity",
        )


async def change(place: Place, write: Callable[[sqlite3.Connection], Any]) -> Any:
    """Run a change in one transaction, for a POST of somebody who may make it.

    Raises PageError 405, 403.
    """
    await require_curator(place)

    def changed(conn: sqlite3.Connection) -> Any:
        with db.transaction(conn):
            db.migrate(conn)
            return write(conn)

    return await place.db.execute_write_fn(changed)


def actor_id(place: Place) -> str | None:
    """Who is asking, as it is noted beside what they do."""
    actor = place.request.actor
    return str(actor["id"]) if actor and "id" in actor else None
