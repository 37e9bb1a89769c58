"""The one place that knows two Datasettes: stable 0.65 and the 1.0 alphas."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.utils import tilde_decode, tilde_encode
from datasette.utils.asgi import Forbidden

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

    from .question import Place

Actor = Mapping[str, Any] | None

# Pages of ours that take a POST, below a table's address. Each asks `same_origin()`.
OWN_CSRF_CHECK = (
    r"^.*/[^/]+/[^/]+/-/(search-by-image|add-picture|similar|map|duplicates|clusters"
    r"|evaluations|questions|searches)(/[^/]+)?(\.json)?$"
)


def is_one(datasette: Datasette) -> bool:
    """Whether this is Datasette 1.0 (or an alpha of it)."""
    return hasattr(datasette, "allowed")


async def may_view(datasette: Datasette, actor: Actor, database: str, table: str) -> bool:
    """Whether an actor may see a table, as Datasette's own table page decides it."""
    if is_one(datasette):
        return await _allowed(datasette, "view-table", actor, database, table)
    try:
        await datasette.ensure_permissions(
            actor,
            [
                ("view-table", (database, table)),
                ("view-database", database),
                "view-instance",
            ],
        )
    except Forbidden:
        return False
    return True


async def may_insert(datasette: Datasette, actor: Actor, database: str, table: str) -> bool:
    """Whether an actor may insert rows. 0.65 has no such action: there it is root, or
    whoever a plugin or configuration allows "insert-row"."""
    if is_one(datasette):
        return await _allowed(datasette, "insert-row", actor, database, table)
    root = bool(actor) and actor.get("id") == "root"
    return await datasette.permission_allowed(
        actor, "insert-row", resource=(database, table), default=root
    )


async def may_execute_sql(datasette: Datasette, actor: Actor, database: str) -> bool:
    """Whether an actor may run SQL of their own against a database."""
    if is_one(datasette):
        return await _allowed(datasette, "execute-sql", actor, database)
    return await datasette.permission_allowed(
        actor, "execute-sql", resource=database, default=True
    )


async def _allowed(
    datasette: Datasette,
    action: str,
    actor: Actor,
    database: str,
    table: str | None = None,
) -> bool:
    from datasette.resources import DatabaseResource, TableResource

    resource = TableResource(database, table) if table else DatabaseResource(database)
    return await datasette.allowed(action=action, resource=resource, actor=actor)


async def labels_of(
    place: Place, column: str, values: list[object]
) -> dict[tuple[str, object], object]:
    """Labels by column and value, where a column refers to a table that may be viewed."""
    datasette, actor = place.datasette, place.request.actor
    keys = await place.db.foreign_keys_for_table(place.table)
    others = [key["other_table"] for key in keys if key["column"] == column]
    if not others or not values:
        return {}
    if not await may_view(datasette, actor, place.database, others[0]):
        return {}
    about = place.database, place.table, column, values
    if is_one(datasette):
        return await datasette.expand_foreign_keys(actor, *about)
    return await datasette.expand_foreign_keys(*about)


def sql_url(datasette: Datasette, database: str, sql: str, params: Mapping) -> str:
    """The address of Datasette's page for a query."""
    path = datasette.urls.database(database)
    if is_one(datasette):
        path += "/-/query"
    return f"{path}?{urlencode({'sql': sql, **params})}"


def table_tools_url(
    datasette: Datasette,
    database: str,
    table: str,
    page: str,
    collection: str | None = None,
) -> str:
    """The address of a page or picture of ours beside a table: "similar", "image/12" …

    `collection` names one that is not the table's usual one.
    """
    path = f"/{tilde_encode(database)}/{tilde_encode(table)}/-/{page}"
    query = f"?{urlencode({'_collection': collection})}" if collection else ""
    # A plain string: Jinja is much slower with Datasette's own kind.
    return str(datasette.urls.path(path)) + query


def similar_url(
    datasette: Datasette,
    database: str,
    table: str,
    pk: str,
    more: Iterable[tuple[str, str]] = (),
) -> str:
    """The address of what is similar to a row; `pk` is in row-path form."""
    path = table_tools_url(datasette, database, table, "similar")
    return f"{path}?{urlencode([('_like', pk), *more])}"


def same_origin(request: Any) -> bool:
    """Whether a POST comes from a page of ours, or from no browser at all.

    The check that Datasette 1.0 makes of every POST. 0.65 wants a token instead, which
    breaks multipart forms without JavaScript (simonw/asgi-csrf#38): our two routes skip
    that and ask here. A Bearer token without cookies is no browser's ambient login.
    """
    from urllib.parse import urlsplit

    headers = request.headers
    bearer = headers.get("authorization", "").lower().startswith("bearer ")
    if bearer and not headers.get("cookie"):
        return True
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return True
    sent_by = urlsplit(origin)
    # Whoever can write into what goes over plain HTTP speaks for no HTTPS site. Not the
    # other way round: behind a proxy, HTTPS may end before it comes to us.
    weaker = request.scope.get("scheme") == "https" and sent_by.scheme != "https"
    return sent_by.netloc.lower() == headers.get("host", "").lower() and not weaker


def has_own_csrf_check(scope: Mapping[str, Any]) -> bool:
    """Whether an address is one of ours that checks `same_origin()` itself."""
    return re.search(OWN_CSRF_CHECK, scope["path"]) is not None


def told_of_the_end(datasette: Datasette, app: Any, close: Callable[[], None]) -> Any:
    """ASGI middleware that closes what we have started when the server ends.

    1.0 has a hook for that. 0.65 calls none, but the server tells it.
    """
    if is_one(datasette):
        return app

    async def wrapped(scope: dict, receive: Any, send: Any) -> None:
        async def heard() -> dict:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                close()
            return message

        await app(scope, heard if scope["type"] == "lifespan" else receive, send)

    return wrapped


async def write_later(
    datasette: Datasette, database: Database, write: Callable[[Any], None]
) -> None:
    """Queue a write that nobody waits for. It opens its own transaction: 1.0 would open
    one first, and fail where nobody hears of it."""
    options = {"transaction": False} if is_one(datasette) else {}
    await database.execute_write_fn(write, block=False, **options)


def row_of(request: Any) -> tuple[str, str, str]:
    """Database, table and key (in row-path form) of a row page's address."""
    found = request.url_vars
    return tilde_decode(found["database"]), tilde_decode(found["table"]), found["pks"]


def configured_tables(datasette: Datasette) -> list[tuple[str, str | None]]:
    """Every database, and every table that the configuration names."""
    config = datasette.config if is_one(datasette) else datasette.metadata()
    databases = (config or {}).get("databases") or {}
    found: list[tuple[str, str | None]] = [(name, None) for name in datasette.databases]
    for database, settings in databases.items():
        if isinstance(settings, dict):
            found += [(database, table) for table in settings.get("tables") or {}]
    return found
