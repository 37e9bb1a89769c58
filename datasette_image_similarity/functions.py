"""SQL functions over the embeddings, for every connection.

    image_embedding(table, pk [, collection])           float32 blob
    mean_image_embedding(table, pks [, collection])     float32 blob; pks as a JSON array,
                                                        or an object of weights by key
    image_distance(table, pk, pk [, collection])        in the collection's metric
    similar_images(table, pk, k [, collection])         JSON array for json_each()

and where a database's configuration has `sql_text` (see `add_text_functions()`)

    image_embedding_text(table, text [, collection])    float32 blob

which everywhere has beside it, because SQLite does not tell why a function has failed,

    image_embedding_text_problem(table, text [, collection])    words; NULL if there is none

and, for vectors that are in a store beside the database,

    image_store_problem(table [, collection])           words; NULL if there is none

A compound key is a JSON array of its parts. Weights below 0 are of pictures to be less
like: see `query.rocchio()`. A row whose picture is not embedded gives NULL; an
unknown table or collection is an error. None of them takes the path of a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from . import database as db
from .errors import (
    CollectionError,
    ExtensionError,
    ImageSimilarityError,
    StoreError,
    TextError,
)
from .query import HEAVIEST, Query, mean_vector, rocchio, search, stored_vectors
from .sources import live_item
from .stores.remote import RemoteVectors
from .words import cleaned, require_words

if TYPE_CHECKING:
    from .index import IndexCache


LONGEST = (
    1_000_000  # characters or bytes of an argument: what is done with it takes no time
)

# Runs something with a connection that may ask stores, and waits for what it gives.
AskStore = Callable[[Callable[[sqlite3.Connection], Any]], Any]

# From a connection, a collection and a text, its vector as a query: float32 blob (d,).
EmbedText = Callable[[sqlite3.Connection, db.Collection, str], bytes]


class _NoEmbedding(Exception):
    """A row has no embedding, or is not there."""


def prepare_connection(
    conn: sqlite3.Connection,
    cache: IndexCache | None = None,
    ask_store: AskStore | None = None,
) -> bool:
    """Load sqlite-vec and add the functions. False where extensions cannot be loaded: there
    the functions give a sentence in place of results, for an error would not be shown.

    The connection's row factory must be `sqlite3.Row`, as Datasette's is. `cache` keeps
    compressed indexes between calls; connections may share it. `ask_store` is how to ask a
    store for vectors that are in one, for connections that may not do so themselves.
    """
    problem = ""
    try:
        db.load_vec(conn)
    except ExtensionError as error:
        problem = str(error)
    db.hide_broken_vec0(conn, not problem)  # in a stranger's file there may be one
    for name, function, arguments in (
        ("image_embedding", _image_embedding, 2),
        ("mean_image_embedding", _mean_image_embedding, 2),
        ("image_distance", _image_distance, 3),
        ("similar_images", partial(_similar_images, cache), 3),
        ("image_store_problem", _image_store_problem, 1),
    ):
        call = _sql_function(function, conn, ask_store)
        if problem:
            call = _saying(problem)
        elif function is _image_store_problem:
            call = _told(call)
        for count in (arguments, arguments + 1):
            conn.create_function(name, count, call)
    return not problem


def add_text_functions(conn: sqlite3.Connection, embed: EmbedText | None) -> None:
    """Add the functions that embed words; only the one that tells why not without `embed`.

    Without it SQLite itself says that there is no such function, which is clearer than
    what it says of one that fails.
    """

    def problem(table: str | None, text: str | None, *name: str | None) -> str | None:
        if embed is not None and (table is None or text is None or None in name):
            return None
        try:
            _text_embedding(conn, embed, table, text, *name)
        except ImageSimilarityError as error:
            return str(error)
        return None

    def embedding(
        table: str | None, text: str | None, *name: str | None
    ) -> bytes | str | None:
        if table is None or text is None or None in name:
            return None
        try:
            return _text_embedding(conn, embed, table, text, *name)
        except ExtensionError as error:  # as the other functions do
            return str(error)

    for count in (2, 3):
        conn.create_function("image_embedding_text_problem", count, problem)
        if embed is not None:
            conn.create_function("image_embedding_text", count, embedding)


def _text_embedding(
    conn: sqlite3.Connection,
    embed: EmbedText | None,
    table: str,
    text: str,
    name: str | None = None,
) -> bytes:
    """Raises CollectionError, TextError, EncoderError, ExtensionError, NotYet."""
    db.require_vec(conn)
    if embed is None:
        raise TextError(
            'image_embedding_text() is switched off: set "sql_text": true for this '
            "database in the configuration of datasette-image-similarity"
        )
    _require_short(table, text, name)
    if isinstance(text, bytes):
        raise TextError("The words to search with must be text, not a BLOB")
    collection = db.find_collection(conn, table, name)
    require_words(conn, collection)
    return embed(conn, collection, cleaned(str(text)))


def _sql_function(
    function: Callable, conn: sqlite3.Connection, ask_store: AskStore | None
) -> Callable:
    """NULL in, NULL out; NULL for a row without an embedding.

    Where the vectors are in a store that this connection may not ask, by `ask_store`.
    """

    def call(table: str | None, *arguments: object) -> object:
        if table is None or None in arguments:
            return None
        if any(
            isinstance(one, (str, bytes)) and len(one) > LONGEST
            for one in (table, *arguments)
        ):
            raise CollectionError(f"An argument has up to {LONGEST:,} characters")
        try:
            return function(conn, table, *arguments)
        except _NoEmbedding:
            return None
        except StoreError:
            if isinstance(conn, db.Connection):
                raise
        if ask_store is None:
            raise StoreError(
                f"The vectors of {table} are in a store beside the database: set "
                '"sql_store": true for this database in the configuration of '
                "datasette-image-similarity, to have SQL wait for it"
            )
        try:
            return ask_store(lambda other: function(other, table, *arguments))
        except _NoEmbedding:
            return None

    return call


def _require_short(*arguments: object) -> None:
    """Raises CollectionError."""
    if any(isinstance(one, (str, bytes)) and len(one) > LONGEST for one in arguments):
        raise CollectionError(f"An argument has up to {LONGEST:,} characters")


def _saying(problem: str) -> Callable:
    return lambda *_: problem


def _told(call: Callable) -> Callable:
    """A function that gives what goes wrong in words, in place of failing."""

    def told(*arguments: str | None) -> str | None:
        try:
            return call(*arguments)
        except ImageSimilarityError as error:
            return str(error)

    return told


def _image_store_problem(
    conn: sqlite3.Connection, table: str, name: str | None = None
) -> None:
    """Raises StoreError where a collection's vectors cannot be asked for now."""
    collection = db.find_collection(conn, table, name)
    if collection.store:
        RemoteVectors(conn, collection).try_out()


def _collection(conn: sqlite3.Connection, table: str, name: str | None) -> db.Collection:
    """A collection whose vectors can be asked. Raises CollectionError."""
    collection = db.find_collection(conn, table, name)
    db.need_vectors(conn, collection)
    return collection


def _item(conn: sqlite3.Connection, collection: db.Collection, pk: db.Key) -> int:
    source = db.source_of(conn, collection)
    parts = json.loads(str(pk)) if len(source.key_columns) > 1 else [pk]
    # Through the table: a parameter from an address is text, its column a number.
    key = source.find(conn, parts) if isinstance(parts, list) else None
    item = None if key is None else live_item(conn, collection, source, key)
    if item is None:
        raise _NoEmbedding
    return item


def _image_embedding(
    conn: sqlite3.Connection, table: str, pk: db.Key, name: str | None = None
) -> bytes:
    collection = _collection(conn, table, name)
    return mean_vector(conn, collection, [_item(conn, collection, pk)])


def _mean_image_embedding(
    conn: sqlite3.Connection, table: str, pks: str, name: str | None = None
) -> bytes:
    collection = _collection(conn, table, name)
    keys = json.loads(pks)
    if isinstance(keys, list):
        weights = [(json.dumps(k) if isinstance(k, list) else k, 1.0) for k in keys]
    elif isinstance(keys, dict) and all(map(_is_weight, keys.values())):
        weights = list(keys.items())
    else:
        raise CollectionError(
            "The keys must be a JSON array, or an object of weights (not 0) by key"
        )
    items = [_item(conn, collection, key) for key, _ in weights]
    examples = [
        (vector, weight)
        for vector, (_, weight) in zip(
            stored_vectors(conn, collection, items), weights, strict=True
        )
    ]
    likes = [(vector, weight) for vector, weight in examples if weight > 0]
    unlikes = [(vector, -weight) for vector, weight in examples if weight < 0]
    return rocchio(collection, likes, unlikes)


def _is_weight(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < abs(value) <= HEAVIEST


def _image_distance(
    conn: sqlite3.Connection, table: str, a: db.Key, b: db.Key, name: str | None = None
) -> float:
    collection = _collection(conn, table, name)
    items = _item(conn, collection, a), _item(conn, collection, b)
    vectors = stored_vectors(conn, collection, items)
    sql = f"select {db.DISTANCES[collection.metric]}(?, ?)"
    return max(0.0, conn.execute(sql, vectors).fetchone()[0])


def _similar_images(
    cache: IndexCache | None,
    conn: sqlite3.Connection,
    table: str,
    pk: db.Key,
    k: int,
    name: str | None = None,
) -> str:
    collection = _collection(conn, table, name)
    item = _item(conn, collection, pk)
    vector = mean_vector(conn, collection, [item])
    query = Query(vector, int(k), without=frozenset({item}))
    answer = search(conn, collection, query, cache)
    fields = ("pk", "rank", "score", "distance")
    return json.dumps(
        [{name: getattr(hit, name) for name in fields} for hit in answer.hits]
    )
