"""Of results that belong together only the best is shown; the others are folded into it.

The stage between a ranking and a page of hits. It walks down the ranking, keeps what
opens something new, and stops when the page is full. What came before decides about what
comes after, never the other way round, so that pages neither overlap nor leave gaps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from datasette.utils.sqlite import sqlite3

from .database import (
    ITEMS_BY_ID,
    Collection,
    SourceTable,
    is_current,
    live_sql,
    quote,
)
from .errors import CollectionError
from .stores.items import vectors_of

if TYPE_CHECKING:
    import numpy as np

    from .query import Query

BLOCK = 200  # results looked at together
QUERY = 0  # no item's id: what the query pictures' own near-duplicates are folded into
CLUSTER, DUPLICATES = "cluster", "duplicates"
# Groups of ours, with the table that says they were made, and the command that makes them.
# All others are columns.
OURS = {CLUSTER: ("clusterings", "clusters"), DUPLICATES: ("scans", "duplicates")}


@dataclass
class Folded:
    """What is left of a ranking.

    `best` are (distance, id), nearest first; `others` says how many were folded into
    each of these that were, and into QUERY. `walked` results were looked at.
    """

    best: Sequence[tuple[float, int]] = field(default_factory=list)
    others: dict[int, int] = field(default_factory=dict)
    walked: int = 0


class Rule(Protocol):
    """Why two results may belong together."""

    def look_at(self, items: Sequence[int]) -> None:
        """Read what is needed to judge these."""

    def owner(self, item: int) -> int | None:
        """The item kept before that this one is folded into, or QUERY; None keeps it."""

    def keep(self, item: int) -> None:
        """It opens something new."""


def fold(ranked: Sequence[tuple[float, int]], rules: Sequence[Rule], enough: int) -> Folded:
    """Walk down a ranking until more than `enough` are kept, or to its end."""
    if not rules:
        return Folded(ranked, walked=len(ranked))
    best: list[tuple[float, int]] = []
    folded = Folded(best)
    for start in range(0, len(ranked), BLOCK):
        block = ranked[start : start + BLOCK]
        for rule in rules:
            rule.look_at([item for _, item in block])
        for pair in block:
            folded.walked += 1
            owners = (rule.owner(pair[1]) for rule in rules)
            owner = next((one for one in owners if one is not None), None)
            if owner is not None:
                folded.others[owner] = folded.others.get(owner, 0) + 1
                continue
            for rule in rules:
                rule.keep(pair[1])
            best.append(pair)
            if len(best) > enough:
                return folded
    return folded


def rules_of(
    conn: sqlite3.Connection, collection: Collection, source: SourceTable, query: Query
) -> list[Rule]:
    """What a query folds by. Raises CollectionError for groups that are not there."""
    rules: list[Rule] = []
    if query.distinct is not None:
        asked = vectors_of(conn, collection).get(query.without)
        asked = asked or [(QUERY, query.vector)]
        rules.append(NearDuplicates(conn, collection, query.distinct, asked))
    if query.one_per is not None:
        rules.append(OnePer(groups_of(conn, collection, source, query.one_per)))
    return rules


class NearDuplicates:
    """Pictures whose cosine similarity is at least `least`."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        collection: Collection,
        least: float,
        asked: Iterable[tuple[int, bytes]],
    ) -> None:
        import numpy as np

        self.conn, self.collection, self.least = conn, collection, least
        self.owners: list[int] = []
        self.kept = np.empty((64, collection.dimensions), np.float32)
        for _, vector in asked:
            self._put(QUERY, _direction(vector))
        self.block: dict[int, np.ndarray] = {}

    def look_at(self, items: Sequence[int]) -> None:
        found = vectors_of(self.conn, self.collection).get(items)
        self.block = {item: _direction(vector) for item, vector in found}

    def owner(self, item: int) -> int | None:
        if not self.owners or item not in self.block:
            return None
        cosines = self.kept[: len(self.owners)] @ self.block[item]
        best = int(cosines.argmax())
        return self.owners[best] if cosines[best] >= self.least else None

    def keep(self, item: int) -> None:
        if item in self.block:
            self._put(item, self.block[item])

    def _put(self, owner: int, direction: np.ndarray) -> None:
        import numpy as np

        if len(self.owners) == len(self.kept):
            self.kept = np.concatenate([self.kept, np.empty_like(self.kept)])
        self.kept[len(self.owners)] = direction
        self.owners.append(owner)


def _direction(vector: bytes) -> np.ndarray:
    import numpy as np

    numbers = np.frombuffer(vector, "<f4")
    return numbers / (np.linalg.norm(numbers) or 1)


Groups = Callable[[Sequence[int]], Iterable[tuple[int, object]]]  # (item, group), by item


class OnePer:
    """Rows of one group. What is in no group stands for itself."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.block: dict[int, list[object]] = {}
        self.best: dict[object, int] = {}

    def look_at(self, items: Sequence[int]) -> None:
        self.block = {}
        for item, group in self.groups(items):
            self.block.setdefault(item, []).append(group)

    def owner(self, item: int) -> int | None:
        found = (self.best.get(group) for group in self.block.get(item, ()))
        return next((one for one in found if one is not None), None)

    def keep(self, item: int) -> None:
        for group in self.block.get(item, ()):
            self.best.setdefault(group, item)


def groups_of(
    conn: sqlite3.Connection, collection: Collection, source: SourceTable, by: str
) -> Groups:
    """How to read the groups of items: a column's values, clusters, or duplicates.

    Raises CollectionError for a column that is not there, or before there are any.
    """
    if by in OURS and by not in groups_there(conn, collection):
        command = OURS[by][1]
        raise CollectionError(
            f"{collection.table!r} has no {command} yet: run "
            f"datasette image-similarity {command}"
        )
    if by == CLUSTER:
        sql = (
            "select m.item_id, m.cluster_id from json_each(:ids) j "
            "cross join _image_similarity_members m on m.item_id = j.value "
            "where m.collection_id = :collection and m.cluster_id is not null"
        )
    elif by == DUPLICATES:
        sql = (
            "select g.item_id, g.group_id from json_each(:ids) j "
            "cross join _image_similarity_grouped g on g.item_id = j.value "
            "where g.collection_id = :collection"
        )
    elif by in source.columns and not (
        collection.source == "blob" and by == collection.column
    ):
        live = live_sql(collection, source, ITEMS_BY_ID)
        sql = f"select i.id, t.{quote(by)} {live} and t.{quote(by)} is not null"
    else:
        raise CollectionError(
            f"One per what? {collection.table!r} has no column {by!r}; besides its columns "
            f"there are {CLUSTER} and {DUPLICATES}"
        )

    def read(items: Sequence[int]) -> Iterable[tuple[int, object]]:
        params = {"ids": json.dumps(items), "collection": collection.id}
        return map(tuple, conn.execute(sql, params))

    return read


def groups_there(conn: sqlite3.Connection, collection: Collection) -> list[str]:
    """The groups of ours that have been made for a collection."""
    if not is_current(conn):
        return []
    exists = "select 1 from _image_similarity_{} where collection_id = ?"
    return [
        by
        for by, (table, _) in OURS.items()
        if conn.execute(exists.format(table), (collection.id,)).fetchone()
    ]
