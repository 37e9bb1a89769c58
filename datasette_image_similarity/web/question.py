"""What a request asks: which table, which pictures, Datasette's own filters, which page.

Our parameters begin with "_", as Datasette's do; everything else is a filter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.filters import Filters
from datasette.plugins import pm
from datasette.utils import (
    await_me_maybe,
    filters_should_redirect,
    tilde_decode,
    urlsafe_components,
)
from datasette.utils.sqlite import sqlite3

from ..database import (
    Collection,
    Key,
    SourceTable,
    collections,
    need_vectors,
    snapshot,
    source_of,
    table_exists,
)
from ..errors import CollectionError, ImageError, ImageSimilarityError, shell_line
from ..images import Crop
from ..query import HEAVIEST, Filter, pk_path, split_weight
from ..words import cleaned, reads_words
from .compat import may_view, table_tools_url
from .config import Config
from .narrow import IN_WORDS, narrows
from .service import Service, service

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

LIKES = 50  # so many query pictures at most
TEXTS = 10  # and so many texts
# Our own parameters that an address keeps, and the fields of the form for a crop.
ASKED = (
    *("_like", "_unlike", "_crop", "_distinct", "_one_per"),
    *("_text", "_unlike_text", "_text_weight"),
    *("_size", "_max_distance", "_collection", "_exact", "_histogram"),
    "_with",
)
CROP_FIELDS = ("_crop_left", "_crop_top", "_crop_width", "_crop_height")
KEPT = ("_where", "_through", "_searchmode")  # Datasette's parameters that filter


class PageError(ImageSimilarityError):
    """Something to tell whoever asked, with an HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Place:
    """A table with embeddings, which the actor may view."""

    datasette: Datasette
    service: Service
    request: Any
    db: Database
    table: str
    collection: Collection
    source: SourceTable
    config: Config

    @property
    def database(self) -> str:
        return self.db.name

    @property
    def table_url(self) -> str:
        """The address of the table; a row's is behind it, after a slash."""
        # A plain string: Jinja is much slower with Datasette's own kind.
        return str(self.datasette.urls.table(self.database, self.table))

    @property
    def reads_words(self) -> bool:
        """Whether the collection can be searched with words, and may be."""
        return self.config.search_by_text and reads_words(self.collection)

    @property
    def named(self) -> list[tuple[str, str]]:
        """The parameter of an address that stays in the collection that was named."""
        name = self.request.args.get("_collection")
        return [("_collection", name)] if name else []

    def path(self, page: str) -> str:
        """The address of a page of ours about the table, without parameters."""
        return table_tools_url(self.datasette, self.database, self.table, page)

    def url(self, page: str) -> str:
        """The address of a page or picture of ours, in the collection that was named."""
        path = self.path(page)
        return f"{path}?{urlencode(self.named)}" if self.named else path

    def similar_url(self, pks: Iterable[str]) -> str:
        """The address of what is similar to rows, whose keys are in row-path form."""
        pairs = [*(("_like", pk) for pk in pks), *self.named]
        return f"{self.path('similar')}?{urlencode(pairs)}"

    def row_path(self, key: Key) -> str:
        """A row's key as addresses have it."""
        return pk_path(self.source.parts(key))

    def command(self, name: str, *options: str) -> str:
        """A command of ours about this collection, as it is typed beside the database."""
        file = Path(self.db.path).name if self.db.path else f"{self.database}.db"
        words = ["datasette", "image-similarity", name, file, self.table, *options]
        named = bool(self.named or self.config.collection)  # commands know no settings
        return shell_line(*words, *(["--name", self.collection.name] * named))


async def find_place(datasette: Datasette, request: Any, vectors: bool = True) -> Place:
    """The table that an address names. Raises PageError 404 or 403; ExtensionError where a
    page is made of `vectors` and SQLite cannot read them."""
    database = tilde_decode(request.url_vars["database"])
    table = tilde_decode(request.url_vars["table"])
    if database not in datasette.databases:
        raise PageError(404, f"There is no database {database}")
    db = datasette.databases[database]
    if not await may_view(datasette, request.actor, database, table):
        raise PageError(403, f"You may not view {database}/{table}")
    it = service(datasette)
    name = request.args.get("_collection")
    read = it.reading(db)

    def look(conn: sqlite3.Connection) -> tuple[Collection, SourceTable] | None:
        with snapshot(conn):
            if not table_exists(conn, table):
                raise PageError(404, f"There is no table {table} in {database}")
            collection = it.choose(read(conn), database, table, name)
            if collection is None:
                collections(conn)  # says so where a newer version made the tables
                return None
            if vectors:
                need_vectors(conn, collection)
            return collection, source_of(conn, collection)

    try:
        found = await db.execute_fn(look)
    except CollectionError as error:
        raise PageError(404, str(error)) from None
    if found is None:
        raise PageError(404, await _no_collection(it, database, table, name))
    collection, source = found
    config = it.config(database, table)
    return Place(datasette, it, request, db, table, collection, source, config)


async def _no_collection(it: Service, database: str, table: str, name: str | None) -> str:
    """Why a table cannot be searched: as it was named, as it is configured, or at all."""
    there = [one.name for one in await it.collections(database) if one.table == table]
    if there and not name:
        configured = it.config(database, table).collection
        return (
            f"The configuration says to use the collection {configured} of {table}, which "
            f"is not there; there is {', '.join(there)}"
        )
    called = f" called {name}" if name else ""
    return f"The table {table} has no embeddings{called}"


# Weights of pictures by key, in Datasette's row-path form.
Weights = Mapping[str, float]


@dataclass(frozen=True)
class Chip:
    """A filter that is on: in words, the address without it, and what that does."""

    text: str
    remove_url: str
    remove: str = "Remove this filter"


@dataclass(frozen=True)
class Question:
    """The parameters of a results page."""

    likes: Weights
    unlikes: Weights
    crop: Crop | None  # of the first like
    distinct: bool  # near-duplicates are folded
    one_per: str | None
    histogram: bool
    size: int
    offset: int
    max_distance: float | None
    exact: bool  # whatever index there is
    filter: Filter | None
    pairs: tuple[tuple[str, str], ...]  # every parameter as it was, but the offset
    texts: tuple[str, ...] = ()
    unlike_texts: tuple[str, ...] = ()
    text_weight: float = 1.0  # of each text, where a picture's is 1
    chips: list[Chip] = field(default_factory=list)

    def url(self, path: str, drop: Iterable[str] = (), **changes: object) -> str:
        """An address with the same question, some parameters dropped or set."""
        gone = {*drop, *changes}
        pairs = [pair for pair in self.pairs if pair[0] not in gone]
        for name, value in changes.items():
            if isinstance(value, Mapping):
                value = written(value)
            values = value if isinstance(value, (list, tuple)) else [value]
            pairs += [(name, str(one)) for one in values if one is not None]
        return path + ("?" + urlencode(pairs) if pairs else "")

    @property
    def filters(self) -> list[tuple[str, str]]:
        """The parameters that filter."""
        return [pair for pair in self.pairs if is_filter(pair[0])]


def is_filter(name: str) -> bool:
    """Whether a parameter narrows the rows: a column's, a search, or another of
    Datasette's that do."""
    if not name.startswith("_"):
        return True
    return name in KEPT or is_search(name) or narrows(name) or "__" in name


def is_search(name: str) -> bool:
    """Whether a parameter is a full-text search: `_search` or `_search_column`."""
    return name == "_search" or name.startswith("_search_")


async def read_question(place: Place, path: str) -> Question:
    """Parse and check the parameters. Raises PageError 400.

    `path` is the page's own address, for the chips.
    """
    args = place.request.args
    page_size = place.config.page_size
    most = place.datasette.setting("max_returned_rows")
    wanted = args.get("_size") or page_size
    size = most if wanted == "max" else _whole(wanted, "_size", 1)
    likes, unlikes = _weights(args, "_like"), _weights(args, "_unlike")
    texts, unlike_texts = _texts(args, "_text"), _texts(args, "_unlike_text")
    if len(likes) + len(unlikes) > LIKES:
        raise PageError(400, f"Up to {LIKES} pictures can be searched with at once")
    if len(texts) + len(unlike_texts) > TEXTS:
        raise PageError(400, f"Up to {TEXTS} texts can be searched with at once")
    for both in likes.keys() & unlikes.keys():
        raise PageError(400, f"Results cannot be both like and less like {both}")
    pairs = tuple(
        (key, value)
        for key in args
        for value in args.getlist(key)
        if is_filter(key) or (key in ASKED and value)
    )
    filter, words = await _read_filter(place)
    question = Question(
        likes=likes,
        unlikes=unlikes,
        crop=_crop(args.get("_crop"), likes),
        distinct=_whole(args.get("_distinct") or 0, "_distinct", 0) > 0,
        one_per=args.get("_one_per") or None,
        histogram=_whole(args.get("_histogram") or 0, "_histogram", 0) > 0,
        size=min(size, most),
        offset=_whole(args.get("_next") or 0, "_next", 0),
        max_distance=_distance(args.get("_max_distance")),
        exact=_whole(args.get("_exact") or 0, "_exact", 0) > 0,
        filter=filter,
        pairs=pairs,
        texts=texts,
        unlike_texts=unlike_texts,
        text_weight=_text_weight(args.get("_text_weight")),
    )
    chips = [
        Chip(text, _url_without(question, path, pair))
        for pair in question.filters
        for text in words.get(pair) or _in_words(pair)
    ]
    if question.distinct:
        url = question.url(path, drop=["_distinct"])
        chips.append(Chip("no near-duplicates", url, "Show near-duplicates again"))
    if question.one_per:
        url = question.url(path, drop=["_one_per"])
        chips.append(Chip(f"one per {question.one_per}", url, "Show all of them again"))
    return Question(**{**vars(question), "chips": chips})


def filter_redirect(request: Any, path: str) -> str | None:
    """Where the forms that add a filter or a crop lead: to the same page with it on."""
    changes = filters_should_redirect(request.args) + _crop_of_form(request.args)
    if not changes:
        return None
    dropped = {name for name, value in changes if value is None or name == "_crop"}
    pairs = [
        (key, value)
        for key in request.args
        for value in request.args.getlist(key)
        if key not in dropped and not (key == "_max_distance" and value == "")
    ]
    pairs += [(name, value) for name, value in changes if value is not None]
    return f"{path}?{urlencode(pairs)}"


def _crop_of_form(args: Any) -> list[tuple[str, str | None]]:
    """The changes for a form's four fields, in percent: they become one parameter."""
    percents = [args.get(name) for name in CROP_FIELDS]
    if None in percents:
        return []
    numbers = [_number(text, "Each side of the part") / 100 for text in percents]
    gone = [(name, None) for name in CROP_FIELDS]
    return [("_crop", ",".join(f"{number:.4g}" for number in numbers)), *gone]


def lookups() -> list[tuple[str, str, bool]]:
    """(key, what to call it, needs no value) of Datasette's filters."""
    return list(Filters(()).lookups())


async def _read_filter(
    place: Place,
) -> tuple[Filter | None, dict[tuple[str, str], list[str]]]:
    """Datasette's filters and ours as one SQL condition, and ours in words, by parameter.

    Raises PageError.
    """
    from datasette.utils.asgi import BadRequest, Forbidden
    from datasette.views.base import DatasetteError

    args = place.request.args
    pairs = sorted(
        (key, value)
        for key in args
        if not (key.startswith("_") and "__" not in key)
        for value in args.getlist(key)
    )
    filters = Filters(pairs)
    known = {lookup[0] for lookup in filters.lookups()}
    for column, lookup, _ in filters.selections():
        if column not in (*place.source.columns, "rowid"):
            raise PageError(400, f"The table {place.table} has no column {column}")
        if lookup not in known:
            raise PageError(400, f"There is no filter {lookup}")
    try:
        clauses, params = filters.build_where_clauses(place.table)
    except (TypeError, ValueError) as error:
        raise PageError(400, f"A filter's value cannot be read: {error}") from None
    words: dict[tuple[str, str], list[str]] = {}
    try:
        for found in pm.hook.filters_from_request(
            request=place.request,
            database=place.database,
            table=place.table,
            datasette=place.datasette,
        ):
            more = await await_me_maybe(found)
            if more is not None:
                if more.extra_context.get("supports_search") is False and any(
                    is_search(name) for name in args
                ):
                    raise PageError(400, f"The table {place.table} has no full-text search")
                clauses.extend(more.where_clauses)
                params.update(more.params)
                said = more.extra_context.get(IN_WORDS, {})
                words |= {pair: [text] for pair, text in said.items()}
    except Forbidden as error:
        raise PageError(403, str(error)) from None
    except (BadRequest, DatasetteError) as error:
        status = getattr(error, "status", 400)
        known = 400 <= status < 500 or status == 503
        raise PageError(status if known else 400, str(error)) from None
    except (KeyError, TypeError, ValueError):
        raise PageError(400, "_through must be JSON: table, column and value") from None
    if not clauses:
        return None, words
    return Filter(" and ".join(f"({clause})" for clause in clauses), params), words


def _in_words(pair: tuple[str, str]) -> list[str]:
    name, value = pair
    if name.startswith("_") and "__" not in name:
        return [
            {"_search": f"search “{value}”", "_where": value}.get(name, f"{name} {value}")
        ]
    words = Filters([pair]).human_description_en()
    return [words.removeprefix("where ")] if words else [f"{name} {value}"]


def _url_without(question: Question, path: str, gone: tuple[str, str]) -> str:
    pairs = list(question.pairs)
    pairs.remove(gone)
    return path + ("?" + urlencode(pairs) if pairs else "")


def _row_path(key: str) -> str:
    """A key in row-path form as we write it: "a b" or "a%20b" may have been typed."""
    return pk_path(list(urlsafe_components(key)))


def _whole(text: object, name: str, least: int) -> int:
    try:
        number = int(str(text))
    except ValueError:
        raise PageError(400, f"{name} must be a whole number") from None
    if not least <= number <= 2**53:
        raise PageError(400, f"{name} must be at least {least}")
    return number


def _distance(text: str | None) -> float | None:
    return None if text in (None, "") else _number(text, "_max_distance")


def _number(text: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise PageError(400, f"{name} must be a number of at least 0")
    return number


def _weights(args: Any, name: str) -> dict[str, float]:
    """Pictures and their weights: "7" or "7:2". The last of several weights counts."""
    try:
        given = [split_weight(text) for text in args.getlist(name)]
    except CollectionError as error:
        raise PageError(400, str(error)) from None
    return {_row_path(key): weight for key, weight in given}


def written(weights: Weights) -> list[str]:
    """Pictures with their weights as parameters have them."""
    return [pk if weight == 1 else f"{pk}:{weight:g}" for pk, weight in weights.items()]


def _texts(args: Any, name: str) -> tuple[str, ...]:
    """The texts in a parameter, each once; empty ones are as good as none."""
    given = (text for text in args.getlist(name) if text.strip())
    return tuple(dict.fromkeys(map(cleaned, given)))


def _text_weight(text: str | None) -> float:
    weight = 1.0 if text in (None, "") else _number(text, "_text_weight")
    if not 0 < weight <= HEAVIEST:
        raise PageError(400, f"_text_weight must be above 0, up to {HEAVIEST}")
    return weight


def _crop(text: str | None, likes: Weights) -> Crop | None:
    if not text:
        return None
    if not likes:
        raise PageError(400, "A crop is one of the first picture in _like: name one")
    try:
        return Crop.parse(text)
    except ImageError as error:
        raise PageError(400, str(error)) from None


def as_mapping(question: Question, place: Place) -> Mapping[str, object]:
    """The question as JSON shows it."""
    return {
        "database": place.database,
        "table": place.table,
        "collection": place.collection.name,
        "metric": place.collection.metric,
        "like": written(question.likes),
        "unlike": written(question.unlikes),
        "text": list(question.texts),
        "unlike_text": list(question.unlike_texts),
        "text_weight": question.text_weight,
        "crop": str(question.crop) if question.crop else None,
        "distinct": question.distinct,
        "one_per": question.one_per,
        "filters": [list(pair) for pair in question.filters],
        "max_distance": question.max_distance,
        "exact": question.exact,
        "size": question.size,
        "offset": question.offset,
    }
