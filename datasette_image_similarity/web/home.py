"""The home page's cards: what is embedded where."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.utils import tilde_encode
from datasette.utils.sqlite import sqlite3

from ..collection import Status, collection_status
from ..database import Collection, Key, item_count, live_sql, source_of
from ..errors import CollectionError, ImageSimilarityError
from ..query import SearchTimeout, pk_path
from ..words import reads_words
from .answers import PAGES
from .clock import limited
from .compat import may_view, similar_url, table_tools_url
from .config import Config
from .service import service
from .stored import shown_url, sql_seconds, store_problem

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

FEW = 300_000  # items that are read by their index in 25 ms
MOSAIC = 9


@dataclass(frozen=True)
class Card:
    """One collection. `usual`: pages use it where none is named; `others` are those over
    the same table, which have their place on its card."""

    anchor: str
    database: str
    table: str
    status: Status
    table_url: str
    search_url: str | None
    words_url: str | None  # of the form that asks with words, with `named` as well
    named: list[tuple[str, str]]
    pages: list[tuple[str, str]]  # (title, address) of the pages about the table
    failures_url: str
    mosaic: list[tuple[str, str]]  # (thumbnail, row's similar page)
    compare_url: str
    usual: bool
    others: list[Card] = field(default_factory=list)
    away: str = ""  # why the store with the vectors cannot be asked, in words

    @property
    def store(self) -> str:
        """Where the vectors are, if not in the database's file."""
        return shown_url(self.status.store)

    def as_json(self) -> dict[str, Any]:
        return {
            "database": self.database,
            "table_url": self.table_url,
            **asdict(self.status),
            "store": self.store,
            "away": self.away,
            "default": self.usual,
        }


def by_table(cards: list[Card]) -> list[Card]:
    """The cards of the usual collections, each with those of its table's others.

    Where that one is damaged, the first of the others takes its place; where none of its
    rows is left, pictures of theirs are shown.
    """
    tables: dict[tuple[str, str], list[Card]] = {}
    for card in cards:
        tables.setdefault((card.database, card.table), []).append(card)
    ordered = [sorted(some, key=lambda card: not card.usual) for some in tables.values()]
    return [
        replace(
            first,
            others=others,
            mosaic=next((card.mosaic for card in (first, *others) if card.mosaic), []),
        )
        for first, *others in ordered
    ]


async def cards(datasette: Datasette, request: Any) -> list[Card]:
    """The cards of all collections whose table the actor may view."""
    it = service(datasette)
    found: list[Card] = []
    asked: dict[int, Coroutine[Any, Any, str]] = {}  # by the place of the card
    for database, db in datasette.databases.items():
        tables = await db.table_names()
        for collection in sorted(await it.collections(database), key=lambda c: c.table):
            if collection.table not in tables:
                continue  # dropped or renamed: there is no telling who may know of it
            if await may_view(datasette, request.actor, database, collection.table):
                config = it.config(database, collection.table)
                try:
                    status, pks = await _looked_at(datasette, request, db, collection)
                except (ImageSimilarityError, sqlite3.Error):
                    continue  # one that is damaged does not hide the others
                usual = await it.collection(database, collection.table)
                named = None if usual == collection else collection.name
                about = (status, pks, config, collection, named, usual)
                found.append(_card(datasette, database, *about))
                if collection.store:
                    asked[len(found) - 1] = store_problem(
                        it.stored, db, collection, sql_seconds(datasette)
                    )
    problems = await asyncio.gather(*asked.values())
    for place, problem in zip(asked, problems, strict=True):
        found[place] = replace(found[place], away=problem)
    return found


async def _looked_at(
    datasette: Datasette, request: Any, db: Database, collection: Collection
) -> tuple[Status, list[str]]:
    """What a collection holds, as far as there is time to count it; keys of pictures."""

    def look(conn: sqlite3.Connection, counted: bool = True) -> tuple[Status, list[str]]:
        status = collection_status(conn, collection, counted=counted, folders=False)
        return status, spread(conn, collection)

    try:
        return await db.execute_fn(limited(datasette, request, look))
    except SearchTimeout:
        return await db.execute_fn(lambda conn: look(conn, counted=False))


def _card(
    datasette: Datasette,
    database: str,
    status: Status,
    pks: list[str],
    config: Config,
    collection: Collection,
    named: str | None,
    usual: Collection | None,
) -> Card:
    """The card; `named` is the collection's name where links must give it, `usual` the one
    that pages use without a name."""
    table_url = datasette.urls.table(database, status.table)
    more = [("_collection", named)] if named else []

    def url(page: str) -> str:
        return table_tools_url(datasette, database, status.table, page, named)

    # A collection that is used where none is named may not be there.
    compare = [("_with" if usual else "_collection", named)] if named else []
    compare_page = table_tools_url(datasette, database, status.table, "compare")
    return Card(
        anchor=f"{tilde_encode(database)}/{tilde_encode(status.table)}",
        database=database,
        table=status.table,
        status=status,
        table_url=table_url,
        search_url=url("search-by-image") if config.search_by_image else None,
        words_url=table_tools_url(datasette, database, status.table, "similar")
        if config.search_by_text and reads_words(collection)
        else None,
        named=more,
        pages=[(title, url(name)) for name, title in PAGES.items()],
        failures_url=datasette.urls.table(database, "_image_similarity_failures"),
        mosaic=[
            (
                url(f"thumbnail/{pk}"),
                similar_url(datasette, database, status.table, pk, more),
            )
            for pk in pks
        ],
        compare_url=f"{compare_page}?{urlencode(compare)}" if compare else compare_page,
        usual=named is None,
    )


def spread(conn: sqlite3.Connection, collection: Collection) -> list[str]:
    """Keys of pictures spread evenly over the collection, in row-path form.

    Those whose ids follow evenly spaced numbers: counting would take seconds where there
    are a million.
    """
    try:
        source = source_of(conn, collection)
    except CollectionError:
        return []
    first, last = _ends(conn, collection)
    if first is None or last is None:
        return []
    live = live_sql(collection, source, "_image_similarity_items i not indexed")
    sql = f"select i.id, i.pk {live} and i.id >= ? order by i.id limit 1"
    keys: dict[int, Key] = {}
    for part in range(MOSAIC):
        next_id = max(keys, default=first - 1) + 1
        start = max(first + (last + 1 - first) * part // MOSAIC, next_id)
        if start > last:
            break
        row = conn.execute(sql, (start,)).fetchone()
        if row is not None:
            keys[row["id"]] = row["pk"]
    return [pk_path(source.parts(pk)) for pk in keys.values()]


def _ends(
    conn: sqlite3.Connection, collection: Collection
) -> tuple[int | None, int | None]:
    """The lowest and the highest id of a collection's items.

    Of few, by their index; of many, from both ends of all: the others are fewer.
    """
    of = "from _image_similarity_items where {}collection_id = :id"
    sql = f"select min(id), max(id) {of.format('')}"
    if item_count(conn, collection) > FEW:
        end = f"select id {of.format('+')} order by id"
        sql = f"select ({end} limit 1), ({end} desc limit 1)"
    return tuple(conn.execute(sql, {"id": collection.id}).fetchone())
