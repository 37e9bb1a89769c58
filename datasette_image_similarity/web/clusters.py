"""The page of clusters: one strip of pictures each, and their names."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.utils.asgi import Response
from datasette.utils.sqlite import sqlite3

from ..database import plain_columns, quote
from ..errors import DatabaseError
from ..explore.albums import (
    DAMAGED,
    Album,
    Albums,
    Made,
    Member,
    albums,
    made,
    outside,
    rename,
    strips,
)
from ..explore.exports import caption_text
from .answers import (
    ask_database,
    controls,
    csv_answer,
    json_answer,
    page,
    sql_page,
    tells_errors,
    wants_json,
)
from .compat import may_view
from .curate import change, may_curate, require_curator
from .forms import BadForm, read_fields
from .map_data import cluster_column
from .question import (
    PageError,
    Place,
    Question,
    filter_redirect,
    find_place,
    read_question,
)
from .tiles import caption_column

if TYPE_CHECKING:
    from datasette.app import Datasette

STRIP = 14  # pictures of a cluster
SORTS = {"size": "Biggest first", "name": "By name"}
METHODS = {"kmeans": "k-means", "hdbscan": "HDBSCAN"}
ALBUMS = "_image_similarity_members"


@dataclass(frozen=True)
class Picture:
    """One in a strip; `similarity` is the cosine to the medoid."""

    pk: str
    url: str
    thumbnail: str
    width: int
    height: int
    caption: str
    distance: float | None

    @property
    def similarity(self) -> float | None:
        return None if self.distance is None else 1 - self.distance


@dataclass(frozen=True)
class Strip:
    """A cluster with some of its pictures, the medoid first; without `album`, the rest."""

    album: Album | None
    pictures: list[Picture]
    table_url: str
    similar_url: str | None


@dataclass(frozen=True)
class Shown:
    """What the database says for one page."""

    made: Made | None
    albums: Albums
    members: dict[int, list[Member]]
    outside: list[Member]
    sort: str
    next: int | None

    def albums_shown(self, question: Question) -> list[Album]:
        return _sorted(self.albums, self.sort)[question.offset :][: question.size]


@tells_errors
async def clusters(datasette: Datasette, request: Any) -> Response:
    """All clusters of a table, page by page; what is in none at the end."""
    place = await find_place(datasette, request)
    path = place.path("clusters")
    redirect = filter_redirect(request, path)
    if redirect:
        return Response.redirect(redirect)
    question = await read_question(place, path)
    sort = request.args.get("_sort") or "size"
    if sort not in SORTS:
        raise PageError(400, f"_sort must be {' or '.join(SORTS)}")
    format = request.url_vars.get("format")
    whole = format == "csv"
    caption = await caption_column(place)
    shown = await ask_database(
        place, lambda conn: _read(conn, place, question, sort, caption, whole)
    )
    if wants_json(request):
        return _json_answer(place, question, shown)
    if whole:
        return _csv_answer(place, shown)
    return await _page(place, question, path, shown)


def _read(
    conn: sqlite3.Connection,
    place: Place,
    question: Question,
    sort: str,
    caption: str | None,
    whole: bool,
) -> Shown:
    """What one page shows; with `whole`, all clusters with their medoids."""
    collection = place.collection
    how = made(conn, collection)
    if how is None:
        return Shown(None, Albums(), {}, [], sort, None)
    found = albums(conn, collection, how, question.filter)
    end = len(found.clusters) if whole else question.offset + question.size
    start = 0 if whole else question.offset
    on_page = [album.id for album in _sorted(found, sort)[start:end]]
    most = 2 if whole else STRIP
    members = strips(conn, collection, on_page, most, caption, question.filter)
    rest = []
    if found.outside and end >= len(found.clusters) and not whole:
        rest = outside(conn, collection, STRIP, caption, question.filter)
    next = end if end < len(found.clusters) else None
    for one in [member for strip in members.values() for member in strip] + rest:
        if not isinstance(one.distance, (float, int, type(None))):
            raise DatabaseError(DAMAGED)
    return Shown(how, found, members, rest, sort, next)


def _sorted(found: Albums, sort: str) -> list[Album]:
    if sort == "name":
        return sorted(found.clusters, key=lambda album: (album.name.casefold(), album.id))
    return found.clusters


async def _page(place: Place, question: Question, path: str, shown: Shown) -> Response:
    sorting = None if shown.sort == "size" else shown.sort
    offset = question.offset or None
    strips = await asyncio.to_thread(_strips, place, question, shown)
    rest = _strip(place, question, None, shown.outside) if shown.outside else None
    context = {
        "made": shown.made,
        "method": METHODS.get(shown.made.method, shown.made.method) if shown.made else "",
        "albums": shown.albums,
        "strips": strips,
        "rest": rest,
        "first": question.offset + 1,
        "command": _command(place, shown.made),
        **await controls(place, question, path),
        "sorts": [
            (
                title,
                question.url(path, _sort=None if key == "size" else key),
                key == shown.sort,
            )
            for key, title in SORTS.items()
        ],
        "next_url": shown.next and question.url(path, _sort=sorting, _next=shown.next),
        "json_url": question.url(f"{path}.json", _sort=sorting, _next=offset),
        "csv_url": question.url(f"{path}.csv", _sort=sorting),
        "map_url": f"{question.url(place.path('map'))}#color={cluster_column(place)}",
        "albums_url": await _albums_url(place),
        "sql_url": await _sql_url(place),
        "may_rename": await may_curate(place),
        "rename_url": f"{path}/rename?{place.request.query_string}",
    }
    return await page(place, "image_similarity_clusters.html", context)


def _strips(place: Place, question: Question, shown: Shown) -> list[Strip]:
    return [
        _strip(place, question, album, shown.members.get(album.id, []))
        for album in shown.albums_shown(question)
    ]


def _strip(
    place: Place, question: Question, album: Album | None, members: list[Member]
) -> Strip:
    base = place.table_url
    pictures = []
    for member in members:
        pk = place.row_path(member.pk)
        pictures.append(
            Picture(
                pk=pk,
                url=f"{base}/{pk}",
                thumbnail=place.url(f"thumbnail/{pk}"),
                width=member.width,
                height=member.height,
                caption=caption_text(member.caption, pk),
                distance=member.distance,
            )
        )
    of_cluster = [("_image_cluster", str(album.id) if album else "none"), *place.named]
    return Strip(
        album=album,
        pictures=pictures,
        table_url=f"{base}?{urlencode([*question.filters, *of_cluster])}",
        similar_url=question.url(place.path("similar"), _like=pictures[0].pk)
        if album and pictures
        else None,
    )


def _command(place: Place, how: Made | None) -> str:
    """The command that makes these clusters, or the first ones."""
    words = []
    if how is not None and how.method != "kmeans":
        words += ["--method", how.method]
    for name, value in (how.options if how else {}).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return place.command("clusters", *words)


async def _albums_url(place: Place) -> str | None:
    """Datasette's page of the rows that say which picture is in which cluster."""
    datasette, actor = place.datasette, place.request.actor
    if not await may_view(datasette, actor, place.database, ALBUMS):
        return None
    query = urlencode({"collection_id": place.collection.id, "_facet": "album"})
    return f"{datasette.urls.table(place.database, ALBUMS)}?{query}"


async def _sql_url(place: Place) -> str | None:
    """The table joined with its clusters, for those who may run SQL."""
    source = place.source
    columns = [f"t.{quote(name)}" for name in plain_columns(place.collection, source)]
    sql = "\n".join(
        [
            f"select m.album, m.distance, {', '.join(columns)}",
            f"from {quote(source.name)} t",
            f"join {ALBUMS} m on m.pk = {source.key_sql('t')}",
            f"where m.collection_id = {place.collection.id}",
            "order by m.album, m.distance",
        ]
    )
    return await sql_page(place, sql, {})


# JSON and CSV


def _json_answer(place: Place, question: Question, shown: Shown) -> Response:
    path = place.path("clusters.json")
    sorting = None if shown.sort == "size" else shown.sort
    following = None
    if shown.next is not None:
        following = place.datasette.absolute_url(
            place.request, question.url(path, _sort=sorting, _next=shown.next)
        )
    body = {
        "table": place.table,
        "collection": place.collection.name,
        "made": asdict(shown.made) if shown.made else None,
        "filters": [list(pair) for pair in question.filters],
        "total": len(shown.albums.clusters),
        "clusters": [
            {
                **asdict(album),
                "pictures": [
                    {"pk": place.row_path(one.pk), "distance": one.distance}
                    for one in shown.members.get(album.id, [])
                ],
            }
            for album in shown.albums_shown(question)
        ],
        "in_no_cluster": shown.albums.outside,
        "new": shown.albums.new,
        "changed": shown.albums.changed,
        "next": None if shown.next is None else str(shown.next),
        "next_url": following,
    }
    return json_answer(place, body)


def _csv_answer(place: Place, shown: Shown) -> Response:
    rows = []
    for album in _sorted(shown.albums, shown.sort):
        strip = shown.members.get(album.id, [])
        medoid = place.row_path(strip[0].pk) if strip else ""
        figures = [album.id, album.name, album.suggested, album.size, album.spread]
        rows.append([*figures, medoid])
    columns = ["cluster", "name", "suggested", "size", "spread", "medoid"]
    return csv_answer(place, "clusters", columns, rows)


# Names


@tells_errors
async def rename_cluster(datasette: Datasette, request: Any) -> Response:
    """Give a cluster a name: a form, or JSON, with `cluster` and `name`."""
    place = await find_place(datasette, request)
    await require_curator(place)
    cluster, name = await _asked(request)
    final = await change(place, lambda conn: rename(conn, place.collection, cluster, name))
    if wants_json(request):
        return Response.json({"ok": True, "cluster": cluster, "name": final})
    path = place.path("clusters")
    return Response.redirect(f"{path}?{request.query_string}#cluster-{cluster}")


async def _asked(request: Any) -> tuple[int, str]:
    """Number and name in the body of a request. Raises PageError 400."""
    try:
        fields = await read_fields(request)
        cluster, name = int(fields["cluster"]), fields["name"]
        if not isinstance(name, str) or not 0 < cluster < 2**63:
            raise ValueError
    except (BadForm, KeyError, OverflowError, TypeError, ValueError):
        raise PageError(400, "Send the number of a cluster and its name") from None
    return cluster, name
