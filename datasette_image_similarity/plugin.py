"""The Datasette hooks, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasette import hookimpl


@hookimpl
def register_commands(cli: Any) -> None:
    from .cli import image_similarity

    cli.add_command(image_similarity)


@hookimpl
def startup(datasette: Any) -> None:
    from .web.service import check_startup

    check_startup(datasette)


@hookimpl
def shutdown(datasette: Any) -> None:
    if hasattr(datasette, "_image_similarity"):
        datasette._image_similarity.close()


@hookimpl
def prepare_connection(conn: Any, database: str, datasette: Any) -> None:
    from .functions import add_text_functions, prepare_connection
    from .web.service import service
    from .web.sql_text import text_embedder
    from .web.stored import store_asker

    it = service(datasette)
    prepare_connection(conn, it.indexes, store_asker(datasette, database, it.stored))
    add_text_functions(conn, text_embedder(datasette, database))


@hookimpl
def asgi_wrapper(datasette: Any) -> Any:
    from .web.answering import note_requests
    from .web.compat import told_of_the_end

    return lambda app: note_requests(
        told_of_the_end(datasette, app, lambda: shutdown(datasette))
    )


@hookimpl
def skip_csrf(scope: dict) -> bool:
    from .web.compat import has_own_csrf_check

    return has_own_csrf_check(scope)


@hookimpl
def register_routes() -> list[tuple[str, Any]]:
    from .web import deciding, duplicates, evaluations, map_data, pictures, views
    from .web.add import add_picture
    from .web.clusters import clusters, rename_cluster
    from .web.compare import compare
    from .web.exports import export
    from .web.map import map_view
    from .web.questions import questions
    from .web.searches import click, searches

    table = r"/(?P<database>[^/]+)/(?P<table>[^/]+)/-"
    return [
        (r"/-/image-similarity(?:\.(?P<format>json))?$", views.home),
        (table + r"/similar(?:\.(?P<format>json|csv|svg|zip|html))?$", views.similar),
        (table + r"/compare(?:\.(?P<format>json))?$", compare),
        (table + r"/search-by-image(?:\.(?P<format>json))?$", views.search_by_image),
        (table + r"/thumbnail/(?P<pk>[^/]+)$", pictures.thumbnail),
        (table + r"/image/(?P<pk>[^/]+)$", pictures.image),
        (table + r"/map$", map_view),
        (table + r"/map\.(?P<format>json)$", map_data.rows),
        (table + r"/map/points\.bin$", map_data.points),
        (table + r"/map/columns\.(?P<format>json)$", map_data.columns),
        (table + r"/map/column\.(?P<format>json)$", map_data.column),
        (table + r"/map/pictures\.(?P<format>json)$", map_data.pictures),
        (table + r"/map/atlas/(?P<number>[0-9]{1,9})$", map_data.atlas),
        (table + r"/export\.(?P<format>zip|html)$", export),
        (
            table + r"/questions(?:/(?P<change>rename|delete))?(?:\.(?P<format>json))?$",
            questions,
        ),
        (table + r"/searches(?:\.(?P<format>json|csv))?$", searches),
        (table + r"/searches/click$", click),
        (table + r"/add-picture(?:\.(?P<format>json))?$", add_picture),
        (table + r"/duplicates(?:\.(?P<format>json|csv))?$", duplicates.review),
        (
            table + r"/duplicates/(?P<change>decide|accept|undo)(?:\.(?P<format>json))?$",
            deciding.decide,
        ),
        (table + r"/clusters(?:\.(?P<format>json|csv))?$", clusters),
        (table + r"/clusters/rename(?:\.(?P<format>json))?$", rename_cluster),
        (table + r"/evaluations(?:\.(?P<format>json))?$", evaluations.evaluations),
        (
            table + r"/evaluations/(?P<run>[0-9]+)(?:\.(?P<format>json|csv))?$",
            evaluations.evaluation,
        ),
    ]


@hookimpl
def filters_from_request(request: Any, database: str, table: str, datasette: Any) -> Any:
    from .web.beside import picture_column
    from .web.narrow import filters

    async def found() -> Any:
        await picture_column(datasette, database, table)  # before cells are asked for
        return await filters(datasette, request, database, table)

    return found


@hookimpl(tryfirst=True)  # other plugins show any picture in any cell
def render_cell(
    row: Any, value: object, column: str, table: str | None, database: str, datasette: Any
) -> Any:
    from .web.beside import cell

    return cell(datasette, row, value, column, table, database) if table else None


@hookimpl
def table_actions(datasette: Any, actor: Any, database: str, table: str) -> Any:
    from .web.beside import table_links

    return lambda: table_links(datasette, actor, database, table)


@hookimpl
def menu_links(datasette: Any) -> list[dict[str, str]]:
    url = datasette.urls.path("/-/image-similarity")
    return [{"href": url, "label": "Image similarity"}]


@hookimpl
def top_row(datasette: Any, request: Any, database: str, table: str) -> Any:
    """The panel of a row page on Datasette 1.0."""
    from .web.beside import row_panel

    return row_panel(datasette, request, database, table, request.url_vars["pks"])


@hookimpl
def extra_template_vars(datasette: Any, request: Any, view_name: str) -> Any:
    """The panel of a row page on Datasette 0.65, for our templates/row.html."""
    from .web.beside import row_panel
    from .web.compat import is_one, row_of

    if is_one(datasette) or view_name != "row" or request is None:
        return {}

    async def panel() -> dict[str, Any]:
        return {
            "image_similarity_panel": await row_panel(datasette, request, *row_of(request))
        }

    return panel


@hookimpl
def extra_css_urls(datasette: Any, database: str | None, table: str | None) -> Any:
    from .web.beside import css_urls

    return lambda: css_urls(datasette, database, table)


@hookimpl
def get_metadata(database: str | None) -> dict[str, Any]:
    """Datasette 0.65 hides what it is told to hide; 1.0 hides names that begin with _."""
    from .database import PREFIX

    if database is None:
        return {}  # of the whole instance, as it is shown to visitors
    # A dictionary each time: Datasette writes the user's own settings into it.
    return {"databases": {database: {"tables": {PREFIX: {"hidden": True}}}}}


@hookimpl
def permission_allowed(datasette: Any, actor: Any, action: str, resource: Any) -> Any:
    """Datasette 0.65."""
    if action != "view-table":
        return None
    from .web.permissions import may_view_ours

    return lambda: may_view_ours(datasette, actor, *resource)


@hookimpl(hookwrapper=True)
def permission_resources_sql(datasette: Any, actor: Any, action: str) -> Iterator[None]:
    """Datasette 1.0, which tells whose rule is whose by their order: ours is put behind all
    others, so that /-/rules goes on telling the truth about them."""
    from .web.permissions import denied_sql

    others = yield
    if action == "view-table":
        others.force_result([*others.get_result(), denied_sql(datasette, actor)])
