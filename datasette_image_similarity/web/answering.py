"""The request being answered, and what was looked up for it.

Datasette asks its hooks for every cell of a table page, and 0.65 does not tell them the
request. So an ASGI wrapper notes it in a context variable, together with what need not be
looked up again before the answer is complete: while `embed` writes, a database file
changes all the time, and a page of a thousand cells would read it a thousand times.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..database import Collection


@dataclass
class Answering:
    """One request, by its ASGI scope."""

    scope: dict[str, Any]
    # By database, and by database and table: the collection whose pictures a table page
    # shows, their column, and the table's primary keys; None where it shows none.
    collections: dict[str, list[Collection]] = field(default_factory=dict)
    cells: dict[tuple[str, str], PictureColumn | None] = field(default_factory=dict)
    ended: bool = False


@dataclass(frozen=True)
class PictureColumn:
    """What a table page needs to know to show pictures in their column."""

    name: str
    collection: Collection
    pks: list[str]


_answering: ContextVar[Answering | None] = ContextVar(
    "image_similarity_answering", default=None
)


def answering() -> Answering | None:
    """What is being answered; None outside of requests, as in a task that outlives one."""
    found = _answering.get()
    return None if found is None or found.ended else found


def note_requests(app: Any) -> Any:
    """ASGI middleware that notes what is being answered."""

    async def wrapped(scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":  # Datasette's whole life, say
            await app(scope, receive, send)
            return
        noted = Answering(scope)
        token = _answering.set(noted)
        try:
            await app(scope, receive, send)
        finally:
            noted.ended = True
            _answering.reset(token)

    return wrapped
