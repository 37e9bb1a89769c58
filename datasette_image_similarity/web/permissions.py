"""Who may look at our own tables: whoever may view every table they tell about.

The shadow tables of vec0 hold raw chunks, megabytes a page: nobody browses these. All of
this is about table pages and their JSON; `execute-sql` covers a whole database.
"""

from __future__ import annotations

import json
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ..database import PREFIX, Collection, is_ours
from .compat import may_view
from .service import service

if TYPE_CHECKING:
    from datasette.app import Datasette

# Set while the tables that ours tell about are being asked for, which asks us again.
_asking: ContextVar[bool] = ContextVar("image_similarity_asking", default=False)


async def may_view_ours(
    datasette: Datasette, actor: Any, database: str, table: str
) -> bool | None:
    """False for a table of ours that the actor may not look at; else None, no opinion."""
    if not (is_ours(table) or _counts(table)):
        return None
    there = await datasette.databases[database].table_names()
    told = await service(datasette).collections(database)
    if _counts(table) and await _counts_ours_alone(datasette, database, there):
        return False
    may = await _may_view(datasette, actor, database, table, there, told)
    return None if may else False


async def denied_tables(datasette: Datasette, actor: Any) -> list[tuple[str, str]]:
    """(database, table) of every table of ours that the actor may not look at.

    1.0 has no hook that hides a table: what is denied to everybody is not listed either.
    """
    if _asking.get():
        return []
    token = _asking.set(True)
    try:
        denied = []
        for database, db in list(datasette.databases.items()):
            there = await db.table_names()
            ours = any(is_ours(table) for table in there)
            told = await service(datasette).collections(database) if ours else []
            for table in there if ours else ():
                if not (is_ours(table) or _counts(table)):
                    continue
                alone = _counts(table) and await _counts_ours_alone(
                    datasette, database, there
                )
                if alone or not await _may_view(
                    datasette, actor, database, table, there, told
                ):
                    denied.append((database, table))
        return denied
    finally:
        _asking.reset(token)


async def denied_sql(datasette: Datasette, actor: Any) -> Any:
    """Rules that deny tables of ours, as Datasette 1.0 takes them; None without any."""
    from datasette.permissions import PermissionSQL

    denied = await denied_tables(datasette, actor)
    sql = (
        "select json_extract(value, '$[0]') as parent, "
        "json_extract(value, '$[1]') as child, 0 as allow, "
        "'tells about a table that may not be viewed' as reason "
        "from json_each(:image_similarity_denied)"
    )
    params = {"image_similarity_denied": json.dumps(denied)}
    return PermissionSQL(sql=sql, params=params) if denied else None


def _counts(table: str) -> bool:
    """Whether this is where SQLite keeps how many rows tables have had: vec0's, too."""
    return table.lower() == "sqlite_sequence"


async def _counts_ours_alone(datasette: Datasette, database: str, there: list[str]) -> bool:
    """Whether SQLite counts rows of our tables alone: then nobody sees where."""
    sql = "select 1 from sqlite_sequence where lower(substr(name, 1, ?)) <> ? limit 1"
    if not any(map(is_ours, there)):
        return False
    theirs = await datasette.databases[database].execute(sql, (len(PREFIX), PREFIX))
    return not theirs.rows


async def _may_view(
    datasette: Datasette,
    actor: Any,
    database: str,
    table: str,
    there: list[str],
    told: list[Collection],
) -> bool:
    """`there` are the database's tables, `told` its collections."""
    name = table.lower()
    if _counts(table) and not told:
        return True  # it tells of other tables alone
    if name in (f"{PREFIX}roots", f"{PREFIX}missing"):
        return False  # where folders lie on the server is no visitor's business
    if name == f"{PREFIX}copies":
        return False  # nor is where engines are
    if name in (f"{PREFIX}searches", f"{PREFIX}clicks"):
        return False  # what others searched for: web/searches.py shows it to curators
    if name in (
        f"{PREFIX}{raw}" for raw in ("indexes", "lists", "hashes", "atlases", "unsent")
    ):
        return False  # raw numbers or pixels, megabytes a page
    if name == f"{PREFIX}collections" and any(collection.store for collection in told):
        return False  # as little is where an engine is, or the file of one
    if name.startswith(f"{PREFIX}vectors_"):
        # One collection's; whatever is longer than the table's own name is a shadow of it.
        told = [collection for collection in told if collection.vectors == name]
    if not told:  # made by a newer version, or left over: there is no telling
        return False
    # Of a table that was renamed there is no telling who may view it.
    for source in {collection.table for collection in told}:
        if source not in there or not await may_view(datasette, actor, database, source):
            return False
    return True
