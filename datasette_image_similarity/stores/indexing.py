"""How a store finds what is near: its engine's own index, made and measured.

What was measured is kept with the collection and used whenever its store is opened: see
`opening.store_of()`. The index is that of everything in the store, also of other tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError
from .opening import store_of

if TYPE_CHECKING:
    from . import VectorIndex

    Say = Callable[[str, int, int], None]

FLAT = "FLAT"  # compares with every vector
USUAL = "HNSW"  # where none was asked for
RECALL = 0.99


@dataclass(frozen=True)
class StoreIndex:
    """A store's index. `recall` is recall@10, measured; None where nothing was.

    `params` are what it was made with, `search` what it is searched with, both as the
    engine names them. `asked` is the recall wanted; `ms` the median of a search.
    """

    exact: bool
    type: str
    params: dict[str, Any]
    search: dict[str, int]
    recall: float | None
    asked: float | None
    ms: float | None
    measured_at: str | None


def make_store_index(
    conn: sqlite3.Connection,
    collection: db.Collection,
    *,
    type: str | None = None,
    params: Mapping[str, Any] | None = None,
    search: Mapping[str, int] | None = None,
    recall: float | None = None,
    rebuild: bool = False,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> StoreIndex:
    """Have the store make an index of a type, choose how it is searched, and measure that.

    Without a `type` the index that there is stays, unless it is to be rebuilt; in place of
    none, HNSW. `search` are search parameters to use, else the cheapest are chosen that
    reach `recall`. Raises CollectionError for a collection in the database itself,
    StoreError for what the store refuses, Stopped.
    """
    if not collection.store:
        raise CollectionError(
            f"The vectors of {collection.table!r} are in the database itself, which has an "
            "index of one type: leave out --type, --param and --search"
        )
    index = store_of(conn, collection)
    index.ensure()
    stats = index.stats()
    there, before = str(stats.index["type"]), store_index(conn, collection)
    params = dict(params or {})
    if type is None and (rebuild or params or there == FLAT):
        type = USUAL if there == FLAT else there
    if type is not None:
        type = type.upper()
        if type == there:
            params = _without_type(stats.index) | params
        params = _usual(type, stats.count) | params
        index.index_with(type, params, say=say, stop=stop)
    elif before is not None and before.type == there:
        params = before.params
    index.search_params = {}
    made = _measured(index, params, search, recall or RECALL, say, stop)
    put_store_index(conn, collection, made)
    return made


def _usual(type: str, count: int) -> dict[str, int]:
    """What to make an index with where nothing is said; engines want to be told."""
    if type == USUAL:
        return {"M": 16, "efConstruction": 200}
    if type.startswith("IVF_") or type == "SCANN":
        return {"nlist": max(1, min(65_536, 4 * math.isqrt(count)))}
    return {}


def _without_type(index: Mapping[str, object]) -> dict[str, Any]:
    return {name: index[name] for name in index if name != "type"}


def drop_store_index(conn: sqlite3.Connection, collection: db.Collection) -> None:
    """Have the store compare with every vector again."""
    index = store_of(conn, collection)
    index.ensure()
    if not index.stats().exact:
        index.index_with(FLAT)
    index.search_params = {}
    note_store_index(conn, collection, index)


def note_store_index(
    conn: sqlite3.Connection, collection: db.Collection, index: VectorIndex
) -> None:
    """Note how a store finds things that a collection is new in."""
    put_store_index(conn, collection, noted_index(index))


def noted_index(index: VectorIndex) -> StoreIndex:
    """How a store finds things, as far as it tells by itself."""
    stats = index.stats()
    params, kind = _without_type(stats.index), str(stats.index["type"])
    return StoreIndex(stats.exact, kind, params, {}, None, None, None, None)


def put_store_index(
    conn: sqlite3.Connection, collection: db.Collection, made: StoreIndex
) -> None:
    with db.transaction(conn):
        db.put_store_index(conn, collection, asdict(made))


def store_index(conn: sqlite3.Connection, collection: db.Collection) -> StoreIndex | None:
    """What is noted of the index of a collection's store, if anything.

    A database may come from anyone: what is no such note is none.
    """
    told = db.store_index(conn, collection) if collection.store else {}
    if told.keys() != StoreIndex.__annotations__.keys():
        return None
    return StoreIndex(**told)


def _measured(
    index: Any,
    params: Mapping[str, Any],
    search: Mapping[str, int] | None,
    recall: float,
    say: Say,
    stop: Callable[[], bool],
) -> StoreIndex:
    from .tuning import tune

    stats = index.stats()
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    tuned = tune(index, recall, search_params=search, say=say, stop=stop)
    return StoreIndex(
        exact=stats.exact,
        type=tuned.type,
        params=dict(tuned.params or params),  # milvus-lite does not tell them
        search=dict(tuned.search_params),
        recall=tuned.recall,
        asked=recall if search is None else None,
        ms=tuned.ms,
        measured_at=now,
    )
