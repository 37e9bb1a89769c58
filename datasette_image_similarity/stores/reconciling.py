"""What this file and a collection's store have, compared by id and SHA-256.

Both list their ids in the same order, so that two lists of any length are merged page by
page. A difference is looked at once more before it counts: meanwhile another run may have
written on both sides. Only vectors of the collection's own source are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError, Stopped
from ..progress import Say, silent
from . import Known
from .ids import find_key, key_of_id
from .listing import Listing, differences
from .remote import RemoteVectors
from .sending import send_waiting, waiting

AT_ONCE = 1000  # ids that are compared and mended at once


@dataclass(frozen=True)
class Reconciled:
    """What was compared, and found otherwise in the store, which had `stored` vectors.

    `lacking` pictures have no vector there, `other` ones that of other bytes; `surplus`
    vectors are no picture's here. `waiting` have not been sent yet, `sent` were sent now.
    `mended` says that lacking and other pictures were taken off, so that the next `embed`
    makes them again, and surplus vectors taken out.
    """

    table: str
    name: str
    store: str
    items: int
    stored: int
    lacking: int
    other: int
    surplus: int
    waiting: int
    sent: int
    mended: bool

    @property
    def differences(self) -> int:
        return self.lacking + self.other + self.surplus


def reconcile(
    conn: sqlite3.Connection,
    collection: db.Collection,
    *,
    mend: bool = False,
    say: Say = silent,
    stop: Callable[[], bool] = lambda: False,
) -> Reconciled:
    """Compare, and mend what is found if asked to.

    Raises CollectionError for vectors in this file, StoreError when the store cannot be
    used, Stopped when `stop()` turns true: what was mended until then is.
    """
    if not collection.store:
        raise CollectionError(
            f"The vectors of {collection.table!r} are in the database itself: datasette "
            "image-similarity verify checks them"
        )
    vectors = RemoteVectors(conn, collection)
    vectors.index.ensure()
    sent = send_waiting(conn, collection) if mend else 0
    total = db.item_count(conn, collection)
    listing = Listing(conn, collection, vectors.id_of)
    lacking = other = surplus = seen = stored = 0
    say("Comparing", 0, total)
    for found in differences(listing, vectors.index, vectors.where, AT_ONCE):
        if stop():
            raise Stopped
        seen += found.seen - len(found.surplus)
        stored += found.seen - len(found.lacking)
        suspects = [*found.lacking, *found.other, *found.surplus]
        if suspects:
            now = _Suspects(vectors, suspects)
            if mend:
                with db.transaction(conn):  # nobody puts there what is being taken out
                    now.look()
                    now.mend()
                send_waiting(conn, collection)
            else:
                now.look()
            lacking += len(now.lacking)
            other += len(now.other)
            surplus += len(now.surplus)
        say("Comparing", min(seen, total), total)
    return Reconciled(
        table=collection.table,
        name=collection.name,
        store=collection.store,
        items=db.item_count(conn, collection),
        stored=stored,
        lacking=lacking,
        other=other,
        surplus=surplus,
        waiting=waiting(conn, collection),
        sent=sent,
        mended=mend and lacking + other + surplus > 0,
    )


class _Suspects:
    """Ids that seem to differ, looked at once more: what waits to be sent does not."""

    def __init__(self, vectors: RemoteVectors, suspects: Sequence[Known]) -> None:
        self.vectors, self.ids = vectors, [known.id for known in suspects]
        self.lacking: list[int] = []  # items
        self.other: list[int] = []
        self.surplus: list[str] = []  # ids

    def look(self) -> None:
        items = self.vectors.items_of(self.ids)
        known = self.vectors.index.ids("", len(self.ids), {"id": self.ids})
        there = {one.id: one.sha256 for one in known}
        for id in self.ids:
            if self._waits(id):
                continue
            if id not in items:
                self.surplus += [id] if id in there else []
            elif id not in there:
                self.lacking.append(items[id][0])
            elif there[id] != items[id][1]:
                self.other.append(items[id][0])

    def _waits(self, id: str) -> bool:
        """Whether a change waits to be sent. Its row may be gone."""
        conn, collection = self.vectors.conn, self.vectors.collection
        key = find_key(conn, self.vectors.source, key_of_id(id))
        sql = (
            "select 1 from _image_similarity_unsent where collection_id = ? and pk = ? "
            "limit 1"
        )
        if key is None:
            return False
        return conn.execute(sql, (collection.id, key)).fetchone() is not None

    def mend(self) -> None:
        """Call inside a transaction."""
        vectors = self.vectors
        vectors.index.delete(self.surplus)
        db.drop_items(vectors.conn, vectors.collection, [*self.lacking, *self.other])
