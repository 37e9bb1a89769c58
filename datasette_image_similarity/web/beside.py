"""What appears on Datasette's own pages: thumbnails in tables, row panels, links."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from datasette.utils import path_from_row_pks
from datasette.utils.sqlite import sqlite3
from markupsafe import Markup

from ..data_urls import is_data_url
from ..database import SIZE, Collection, SourceTable, live_sql, quote, source_of
from ..errors import ImageSimilarityError, StoreError
from ..query import Hit, Query, deadline, mean_vector, pk_path, search
from ..sources import live_item
from .answering import PictureColumn, answering
from .answers import PAGES, about_url, static_url
from .compat import may_insert, similar_url, table_tools_url
from .question import Place, is_filter
from .service import service
from .stored import shown_error, sql_seconds
from .switch import collections_of
from .tiles import caption_column

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

STRIP = 12  # nearest neighbours on a row page
FACTS = 16  # of a row, beside its picture; Datasette's own table below has them all
FACT = 300  # characters of one


def _scope() -> dict[str, Any]:
    """The ASGI scope of the page being shown: `render_cell` on 0.65 is not told it."""
    now = answering()
    return {} if now is None else now.scope


def _filters_of_page() -> list[tuple[str, str]]:
    """The filters of the table page being shown."""
    query = _scope().get("query_string", b"").decode("latin-1")
    return [
        (name, value)
        for name, value in parse_qsl(query, keep_blank_values=True)
        if is_filter(name)
    ]


def cell(
    datasette: Datasette, row: Any, value: object, column: str, table: str, database: str
) -> Callable[[], Awaitable[Markup | None]] | None:
    """The cell of the picture's column: thumbnail, its value, and "Find similar".

    For all other cells None at once, as far as is known: `picture_column()` was asked
    before. A function, for a coroutine would be dropped where another plugin answers first.
    """
    if _is_row_page(datasette, database, table):
        return None  # it has the picture already, and larger
    now = answering()
    if now is not None and (database, table) in now.cells:
        shown = now.cells[database, table]
        if shown is None or shown.name != column:
            return None
    return partial(_cell, datasette, row, value, column, table, database)


async def picture_column(
    datasette: Datasette, database: str, table: str
) -> PictureColumn | None:
    """Where a table page shows pictures; looked up once for a page."""
    now = answering()
    if now is not None and (database, table) in now.cells:
        return now.cells[database, table]
    it = service(datasette)
    collection = await it.collection(database, table)
    shown = None
    if collection is not None:
        name = it.config(database, table).image_column or collection.column
        pks = await datasette.get_database(database).primary_keys(table)
        shown = PictureColumn(name, collection, pks)
    if now is not None:
        now.cells[database, table] = shown
    return shown


async def _cell(
    datasette: Datasette, row: Any, value: object, column: str, table: str, database: str
) -> Markup | None:
    shown = await picture_column(datasette, database, table)
    if shown is None or shown.name != column:
        return None
    source, pks = shown.collection.column, shown.pks
    if source in row.keys() and row[source] in (None, ""):  # noqa: SIM118
        return None
    try:
        pk = path_from_row_pks(row, pks, not pks)
    except (IndexError, KeyError):  # a query that does not select the key
        return None
    base = datasette.urls.table(database, table)
    text = _words(value)
    return Markup(
        '<div class="ims-cell"><a class="ims-cell-picture" href="{row}">'
        '<img src="{base}/-/thumbnail/{pk}" alt="{alt}" loading="lazy"></a>'
        '<div><span class="ims-cell-text">{text}</span>'
        '<a class="ims-cell-similar" href="{similar}">Find similar</a>'
        "</div></div>"
    ).format(
        row=f"{base}/{pk}",
        base=base,
        pk=pk,
        alt=f"Picture of {text or pk}",
        text=text,
        similar=similar_url(datasette, database, table, pk, _filters_of_page()),
    )


def _words(value: object) -> str:
    """What a cell says: of a picture that stands in it, nothing."""
    if isinstance(value, bytes) or (isinstance(value, str) and is_data_url(value)):
        return ""
    return str(value)


def _is_row_page(datasette: Datasette, database: str, table: str) -> bool:
    """Whether the page of one of this table's rows is being answered.

    A server behind a proxy may have been asked without the `base_url`.
    """
    base = datasette.setting("base_url")
    scope = _scope()
    raw = scope.get("raw_path") or scope.get("path", "").encode()
    path = raw.split(b"?")[0].decode("latin-1").rstrip("/")
    inside = path.removeprefix(base).removeprefix("/")
    return inside.rpartition("/")[0] == datasette.urls.table(database, table)[len(base) :]


async def row_panel(
    datasette: Datasette, request: Any, database: str, table: str, pk: str
) -> Markup | None:
    """The picture of a row at reading size, and a strip of its nearest neighbours."""
    it = service(datasette)
    collection = await it.collection(database, table)
    if collection is None:
        return None
    db = datasette.get_database(database)
    found = await db.execute_fn(lambda conn: _shown(conn, datasette, collection, pk))
    if found is None:
        return None
    source, number, item, row, hits = found
    problem = ""
    if collection.store:
        hits, problem = await _from_store(datasette, db, collection, number)
    config = it.config(database, table)
    place = Place(datasette, it, request, db, table, collection, source, config)
    caption = await caption_column(place)
    base = datasette.urls.table(database, table)
    html = await datasette.render_template(
        "image_similarity_row.html",
        {
            "image_url": f"{base}/-/image/{pk}",
            "width": item["width"],
            "height": item["height"],
            "caption": row.get(caption) or pk,
            "facts": _facts(row, source.pks),
            "similar_url": similar_url(datasette, database, table, pk),
            "compare_url": await _compare_url(datasette, database, table, pk),
            "neighbours": [
                {
                    "url": f"{base}/{pk_path(hit.pk)}",
                    "thumbnail": f"{base}/-/thumbnail/{pk_path(hit.pk)}",
                    "caption": hit.row.get(caption) or pk_path(hit.pk),
                    "width": hit.width,
                    "height": hit.height,
                    "score": hit.score,
                }
                for hit in hits
            ],
            "problem": problem,
        },
        request=request,
    )
    return Markup(html)


async def _compare_url(
    datasette: Datasette, database: str, table: str, pk: str
) -> str | None:
    """Where two collections answer with what is like a row; None where there is one."""
    if len(await collections_of(service(datasette), database, table)) < 2:
        return None
    url = table_tools_url(datasette, database, table, "compare")
    return f"{url}?{urlencode([('_like', pk)])}"


def _facts(row: dict[str, Any], pks: tuple[str, ...]) -> list[tuple[str, str]]:
    """What a row says, in words: neither its key nor what is empty or binary."""
    said = [
        (name, _words(value))
        for name, value in row.items()
        if name not in pks and value not in (None, "") and not isinstance(value, bytes)
    ]
    return [
        (name, text if len(text) <= FACT else text[:FACT].rstrip() + "…")
        for name, text in said[:FACTS]
    ]


def _shown(
    conn: sqlite3.Connection, datasette: Datasette, collection: Collection, pk: str
) -> tuple[SourceTable, int, dict, dict, list[Hit]] | None:
    """The table of a row, its item's number and size, the row, its nearest neighbours but
    for those that a store has to be asked for; None without an embedding."""
    from datasette.utils import urlsafe_components

    try:
        source = source_of(conn, collection)
        key = source.find(conn, urlsafe_components(pk))
        item = None if key is None else live_item(conn, collection, source, key)
        if item is None:
            return None
        live = f"{live_sql(collection, source)} and i.id = ?"
        size = conn.execute(f"select {SIZE} {live}", (item,)).fetchone()
        if size is None:
            return None
        blob = collection.column if collection.source == "blob" else None
        columns = ", ".join(f"t.{quote(name)}" for name in source.columns if name != blob)
        row = conn.execute(f"select {columns or 'null'} {live}", (item,)).fetchone()
        if collection.store:
            return source, item, dict(size), dict(row), []
        with deadline(conn, datasette.setting("sql_time_limit_ms") / 1000):
            vector = mean_vector(conn, collection, [item])
            query = Query(vector, STRIP, without=frozenset({item}))
            indexes = service(datasette).indexes
            hits = search(conn, collection, query, indexes).hits
            return source, item, dict(size), dict(row), hits
    except (ImageSimilarityError, sqlite3.DatabaseError):
        return None  # the row page itself must go on working


async def _from_store(
    datasette: Datasette, db: Database, collection: Collection, item: int
) -> tuple[list[Hit], str]:
    """The nearest neighbours of an item, or why they are not there, in words."""

    def ask(conn: sqlite3.Connection) -> list[Hit]:
        vector = mean_vector(conn, collection, [item])
        query = Query(vector, STRIP, without=frozenset({item}))
        return search(conn, collection, query).hits

    try:
        return await service(datasette).stored.ask(db, ask, sql_seconds(datasette)), ""
    except StoreError as error:
        return [], str(shown_error(error, collection))
    except (ImageSimilarityError, sqlite3.DatabaseError) as error:
        return [], str(error)


async def table_links(
    datasette: Datasette, actor: Any, database: str, table: str
) -> list[dict[str, str]]:
    """Links for the table's actions; none for a table without embeddings."""
    it = service(datasette)
    collection = await it.collection(database, table)
    if collection is None:
        return []
    pages = dict(PAGES)
    if it.config(database, table).search_by_image:
        pages = {"search-by-image": "Search by image", **pages}
    filters = _filters_of_page()
    more = "?" + urlencode(filters) if filters else ""
    links = [
        {"href": table_tools_url(datasette, database, table, name) + more, "label": title}
        for name, title in pages.items()
    ]
    for name, label in (
        ("export.html", "Contact sheet"),
        ("export.zip", "Pictures as ZIP"),
    ):
        url = table_tools_url(datasette, database, table, name)
        links.append({"href": url + more, "label": label})
    db = datasette.get_database(database)
    if db.is_mutable and await may_insert(datasette, actor, database, table):
        url = table_tools_url(datasette, database, table, "add-picture")
        links.append({"href": url, "label": "Add a picture"})
    about = about_url(datasette, database, table)
    links.append({"href": about, "label": "About these embeddings"})
    return links


async def css_urls(
    datasette: Datasette, database: str | None, table: str | None
) -> list[str]:
    """Our stylesheet, on the pages of tables with embeddings."""
    if database is None or table is None:
        return []
    if await service(datasette).collection(database, table) is None:
        return []
    return [static_url(datasette)("image_similarity.css")]
