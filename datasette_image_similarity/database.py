"""What lies in the SQLite file: schema, keys and vec0 tables. All DDL lives here.

A *collection* is one table of pictures seen by one encoder. Each picture that has
been embedded is an *item*: it maps the primary key of the source row to an id of
our own, which is also the id of its vector and of its thumbnail.

    _image_similarity_collections   one row per collection
    _image_similarity_items         source row ↔ our id, and what its file was like
    _image_similarity_vectors_{id}  vec0: (id, embedding), one per collection
    _image_similarity_thumbnails    WebP, by item id
    _image_similarity_failures      pictures that could not be embedded, and why
    _image_similarity_missing       rows that `embed --prune` kept without a picture
    _image_similarity_roots         folders and buckets that paths are relative to
    _image_similarity_transforms    what was learned of a collection and is applied to the
                                    vectors of its network: PCA, learned heads
    _image_similarity_indexes       compressed indexes: what was learned and measured
    _image_similarity_lists         their inverted lists
    _image_similarity_unlisted      items that wait to be put into one
    _image_similarity_unsent        what has changed and waits to be sent to a store
    _image_similarity_copies        other places with a collection's vectors: `move` copies
                                    them there, or has not cleared them yet
    _image_similarity_maps          how a collection was laid out in two dimensions
    _image_similarity_points        its items' places
    _image_similarity_atlases       its pictures, small and many on a sheet
    _image_similarity_hashes        perceptual hashes, by item id
    _image_similarity_scans         when duplicates were looked for, with what thresholds
    _image_similarity_groups        groups of duplicates
    _image_similarity_grouped       the items in them
    _image_similarity_decisions     what people decided about duplicates
    _image_similarity_clusterings   how a collection was clustered
    _image_similarity_clusters      the clusters, with their names
    _image_similarity_members       which items are in them: rows to join, for everybody
    _image_similarity_evaluations   how good results were, by a label column
    _image_similarity_classes       the same by label
    _image_similarity_confusions    which labels' pictures find which others'
    _image_similarity_evaluated     the same by query picture; a row for each other
                                    picture that could be found
    _image_similarity_questions     questions saved under a name
    _image_similarity_searches      the log of searches, where it is switched on
    _image_similarity_clicks        which of their results were opened
    _image_similarity_schema        the version of all this

Functions take a connection that `connect()` made or Datasette prepared: sqlite-vec
is loaded and rows come back as `sqlite3.Row`.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from .data_urls import is_data_url_sql, short_path_sql
from .errors import CollectionError, DatabaseError, ExtensionError, shell_line
from .roots import Root

if TYPE_CHECKING:
    from .stores.opening import Stores

PREFIX = "_image_similarity_"
SCHEMA_VERSION = 7
CHUNK_SIZE = 8  # vectors a vec0 chunk: reading a few by id stays cheap, scans too
MOST_DIMENSIONS = 8192  # that vec0 takes
# Tables that refer to those behind them.
REFERRING = (
    *("clicks", "searches", "questions"),
    *("evaluated", "confusions", "classes", "evaluations"),
    *("members", "clusters", "clusterings"),
    *("decisions", "grouped", "groups", "scans", "hashes"),
    *("points", "atlases", "maps"),
    *("thumbnails", "failures", "lists", "unlisted", "indexes", "transforms"),
    *("unsent", "copies", "missing"),
    *("items", "roots", "collections"),
)
# Tables whose rows go with their item: SQLite gives the highest id out again.
BY_ITEM = ("points", "hashes", "grouped", "members", "evaluated")
# Those of them that would tell about another picture once the item's has changed. Members
# stay in their cluster, which says how many of its pictures have changed since.
OF_PICTURE = ("points", "hashes", "grouped", "evaluated")
# What people did: of rows and their pictures' bytes, whatever the encoder.
BY_PEOPLE = ("decisions", "questions", "searches", "clicks")
VEC0_PARTS = {  # its shadow tables, and their columns
    "_info": ("key", "value"),
    "_chunks": ("chunk_id", "size", "validity", "rowids"),
    "_rowids": ("rowid", "id", "chunk_id", "chunk_offset"),
    "_vector_chunks00": ("rowid", "vectors"),
}
# What vec0 says when it could not write these; the reason it keeps to itself.
VEC0_WRITES = ("vector blob", "validity", "rowids shadow table")
BUSY_SECONDS = 30
DAMAGED = (
    "The tables of datasette-image-similarity in this database are damaged. To begin anew: "
    "datasette image-similarity remove DATABASE, then embed"
)

DAMAGED_INDEX = (
    "The compressed index in this database is damaged: make it anew with datasette "
    "image-similarity index DATABASE --rebuild, or ask for exact search"
)

LOWEST_SQLITE = (3, 38)  # vec0's `id in (…)`, which filters are made of
_NEEDED = "which vectors need: type `datasette install pysqlite3`, then start again"
NO_EXTENSIONS = f"This Python's sqlite3 cannot load SQLite extensions, {_NEEDED}"
TOO_OLD = f"This Python's SQLite {sqlite3.sqlite_version} is not the 3.38 {_NEEDED}"

NO_ITEM = 0  # no item's id: in `groups.keeper_id`, that nothing tells which to keep

DISTANCES = {"cosine": "vec_distance_cosine", "l2": "vec_distance_l2"}  # SQL functions

Key = int | float | str  # a primary key as we store it; compound keys as JSON text

MIGRATIONS = (
    """
    create table _image_similarity_schema (version integer not null);
    insert into _image_similarity_schema values (0);
    create table _image_similarity_collections (
        id integer primary key,
        name text not null,
        table_name text not null,
        source text not null check (source in ('folder', 'path', 'blob')),
        column_name text not null,
        encoder text not null,
        fingerprint text not null,
        dimensions integer not null,
        metric text not null check (metric in ('cosine', 'l2')),
        thumbnails integer not null,
        created_at text not null default (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
        updated_at text,
        unique (table_name, name)
    );
    create table _image_similarity_roots (
        id integer primary key,
        collection_id integer not null references _image_similarity_collections(id),
        path text not null,
        unique (collection_id, path)
    );
    create table _image_similarity_items (
        id integer primary key,
        collection_id integer not null references _image_similarity_collections(id),
        pk not null,
        root_id integer references _image_similarity_roots(id),
        path text,
        size integer not null,
        mtime_ns integer,
        sha256 text not null,
        width integer not null,
        height integer not null,
        embedded_at text not null default (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
        unique (collection_id, pk)
    );
    create index _image_similarity_items_sha256
        on _image_similarity_items (collection_id, sha256);
    create table _image_similarity_thumbnails (
        id integer primary key references _image_similarity_items(id),
        webp blob not null
    );
    create table _image_similarity_failures (
        id integer primary key,
        collection_id integer not null references _image_similarity_collections(id),
        pk,
        root_id integer references _image_similarity_roots(id),
        path text,
        reason text not null,
        failed_at text not null default (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
    );
    """,
    """
    create index _image_similarity_items_path
        on _image_similarity_items (collection_id, root_id, path);
    create table _image_similarity_indexes (
        collection_id integer primary key references _image_similarity_collections(id),
        asked real not null,
        recall real,
        probes integer not null default 0,
        depth integer not null default 0,
        lists integer not null,
        axes integer not null,
        trained integer not null,
        spread real not null,
        listed integer not null default 0,
        since integer not null default 0,
        since_spread real not null default 0,
        built_at text,
        built integer not null default (random()),
        version integer not null default (random()),
        model blob not null
    );
    create table _image_similarity_lists (
        collection_id integer not null references _image_similarity_collections(id),
        list integer not null,
        ids blob not null,
        norms blob not null,
        codes blob not null,
        primary key (collection_id, list)
    );
    create table _image_similarity_unlisted (
        collection_id integer not null references _image_similarity_collections(id),
        id integer not null,
        mark integer not null default (random()),
        primary key (collection_id, id)
    ) without rowid;
    """,
    """
    -- The map
    create table _image_similarity_maps (
        collection_id integer primary key references _image_similarity_collections(id),
        method text not null,
        parameters text not null,
        columns integer,
        sheet integer not null,
        tile integer not null,
        version integer not null default (random()),
        made_at text not null default (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
    );
    create table _image_similarity_points (
        item_id integer primary key references _image_similarity_items(id),
        collection_id integer not null references _image_similarity_collections(id),
        x real not null,
        y real not null,
        cell integer,
        slot integer not null
    );
    create index _image_similarity_points_slot
        on _image_similarity_points (collection_id, slot);
    create table _image_similarity_atlases (
        collection_id integer not null references _image_similarity_collections(id),
        number integer not null,
        webp blob not null,
        primary key (collection_id, number)
    );

    -- Duplicates
    create table _image_similarity_hashes (
        item_id integer primary key references _image_similarity_items(id),
        collection_id integer not null references _image_similarity_collections(id),
        sha256 text not null,
        hash blob not null
    );
    create table _image_similarity_scans (
        collection_id integer primary key references _image_similarity_collections(id),
        thresholds text not null,
        scanned integer not null,
        made_at text not null default (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
    );
    create table _image_similarity_groups (
        id integer primary key,
        collection_id integer not null references _image_similarity_collections(id),
        tier text not null check (tier in ('identical', 'same', 'alike')),
        size integer not null,
        medoid_id integer not null,
        keeper_id integer not null,
        reason text not null
    );
    create index _image_similarity_groups_collection
        on _image_similarity_groups (collection_id, tier);
    create table _image_similarity_grouped (
        group_id integer not null references _image_similarity_groups(id),
        item_id integer not null references _image_similarity_items(id),
        collection_id integer not null references _image_similarity_collections(id),
        score real not null,
        primary key (group_id, item_id)
    ) without rowid;
    create index _image_similarity_grouped_item on _image_similarity_grouped (item_id);
    create table _image_similarity_decisions (
        id integer primary key,
        collection_id integer not null references _image_similarity_collections(id),
        step integer not null,
        pk not null,
        sha256 text not null,
        decision text not null check (decision in ('keep', 'mark', 'skip', 'apart')),
        tier text,
        other text,
        actor text,
        decided_at text not null default (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
    );
    create index _image_similarity_decisions_collection
        on _image_similarity_decisions (collection_id, pk);

    -- Clusters
    create table _image_similarity_clusterings (
        collection_id integer primary key references _image_similarity_collections(id),
        method text not null,
        parameters text not null,
        label text,
        made_at text not null default (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
    );
    create table _image_similarity_clusters (
        id integer primary key,
        collection_id integer not null references _image_similarity_collections(id),
        name text not null,
        suggested text not null,
        given integer not null default 0,
        size integer not null,
        medoid_id integer not null
    );
    create index _image_similarity_clusters_collection
        on _image_similarity_clusters (collection_id);
    create table _image_similarity_members (
        item_id integer primary key references _image_similarity_items(id),
        collection_id integer not null references _image_similarity_collections(id),
        cluster_id integer references _image_similarity_clusters(id),
        table_name text not null,
        pk not null,
        album text,
        distance real
    );
    create index _image_similarity_members_cluster
        on _image_similarity_members (collection_id, cluster_id);

    -- Evaluation
    create table _image_similarity_evaluations (
        id integer primary key,
        collection_id integer not null references _image_similarity_collections(id),
        label text not null,
        report text not null,
        made_at text not null default (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
    );
    create table _image_similarity_classes (
        evaluation_id integer not null references _image_similarity_evaluations(id),
        label text not null,
        collection_id integer not null references _image_similarity_collections(id),
        queries integer not null,
        gallery integer not null,
        precision_at_1 real not null,
        precision_at_5 real not null,
        precision_at_10 real not null,
        recall_at_10 real not null,
        map real not null,
        ndcg_at_10 real not null,
        primary key (evaluation_id, label)
    ) without rowid;
    create table _image_similarity_confusions (
        evaluation_id integer not null references _image_similarity_evaluations(id),
        label text not null,
        other text not null,
        collection_id integer not null references _image_similarity_collections(id),
        queries integer not null,
        share real not null,
        examples text not null,
        primary key (evaluation_id, label, other)
    ) without rowid;
    create table _image_similarity_evaluated (
        evaluation_id integer not null references _image_similarity_evaluations(id),
        item_id integer not null references _image_similarity_items(id),
        collection_id integer not null references _image_similarity_collections(id),
        label text not null,
        precision_at_1 real,
        precision_at_5 real,
        precision_at_10 real,
        recall_at_10 real,
        average_precision real,
        ndcg_at_10 real,
        nearest text,
        primary key (evaluation_id, item_id)
    ) without rowid;
    create index _image_similarity_evaluated_item
        on _image_similarity_evaluated (item_id);
    create index _image_similarity_evaluated_worst
        on _image_similarity_evaluated (evaluation_id, average_precision);

    -- Questions
    create table _image_similarity_questions (
        id integer primary key,
        collection_id integer not null references _image_similarity_collections(id),
        name text not null,
        question text not null,
        actor text,
        saved_at text not null default (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
        unique (collection_id, name)
    );
    create table _image_similarity_searches (
        id integer primary key,
        collection_id integer not null references _image_similarity_collections(id),
        searched_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
        actor text,
        page text not null,
        question text not null,
        filter text,
        offset integer not null,
        results integer not null,
        milliseconds real not null
    );
    create index _image_similarity_searches_time
        on _image_similarity_searches (collection_id, searched_at);
    create table _image_similarity_clicks (
        id integer primary key,
        collection_id integer not null references _image_similarity_collections(id),
        search_id integer not null references _image_similarity_searches(id),
        pk not null,
        rank integer not null,
        clicked_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    );
    create index _image_similarity_clicks_search on _image_similarity_clicks (search_id);
    create index _image_similarity_clicks_time
        on _image_similarity_clicks (collection_id, clicked_at);
    """,
    """
    -- The collection of a table that is used where none is named, if not the oldest
    alter table _image_similarity_collections
        add column preferred integer not null default 0;

    -- What is applied to the vectors of a network, in order of the steps
    create table _image_similarity_transforms (
        collection_id integer not null references _image_similarity_collections(id),
        step integer not null,
        kind text not null,
        unit integer not null,
        inputs integer not null,
        outputs integer not null,
        about text not null,
        mean blob not null,
        components blob not null,
        primary key (collection_id, step)
    );
    """,
    """
    -- Where the vectors are, if not in this file: a store's URL, what their ids begin with,
    -- and how the store finds what is near (JSON)
    alter table _image_similarity_collections add column store text not null default '';
    alter table _image_similarity_collections add column store_id text not null default '';
    alter table _image_similarity_collections add column store_index text;

    -- Vectors that the store does not have yet, NULL for one that it still has
    create table _image_similarity_unsent (
        id integer primary key autoincrement,
        collection_id integer not null references _image_similarity_collections(id),
        pk not null,
        sha256 text,
        vector blob,
        unique (collection_id, pk)
    );

    -- Where else the vectors are, as in a collection's store and store_id: copied there but
    -- not in use yet, or no more
    create table _image_similarity_copies (
        collection_id integer not null references _image_similarity_collections(id),
        store text not null,
        store_id text not null,
        primary key (collection_id, store)
    );

    -- How many items there are: counting tens of millions takes seconds
    alter table _image_similarity_collections
        add column pictures integer not null default 0;
    update _image_similarity_collections set pictures = (
        select count(*) from _image_similarity_items i
        where i.collection_id = _image_similarity_collections.id
    );
    create trigger _image_similarity_items_put after insert on _image_similarity_items
    begin
        update _image_similarity_collections set pictures = pictures + 1
        where id = new.collection_id;
    end;
    create trigger _image_similarity_items_dropped after delete on _image_similarity_items
    begin
        update _image_similarity_collections set pictures = pictures - 1
        where id = old.collection_id;
    end;
    """,
    """
    -- The CRC-32 of an item's vector as it lies in this file, where neither SQLite nor vec0
    -- would notice a flipped bit; NULL where it has not been noted yet
    alter table _image_similarity_items add column crc32 integer;
    """,
    """
    -- What `embed` keeps for its next run, as JSON: see RunSettings in choosing.py
    alter table _image_similarity_collections
        add column run_settings text not null default '{}';

    -- What a user should know about a picture that was embedded all the same, such as
    -- "the last 0.7 % of the file are missing"; NULL for most
    alter table _image_similarity_items add column note text;

    -- Rows whose file is missing, kept by `embed --prune` for what people wrote in them
    create table _image_similarity_missing (
        collection_id integer not null references _image_similarity_collections(id),
        pk not null,
        place text not null,
        sha256 text not null,
        primary key (collection_id, pk)
    );
    create index _image_similarity_missing_place
        on _image_similarity_missing (collection_id, place);
    create index _image_similarity_missing_sha256
        on _image_similarity_missing (collection_id, sha256);

    -- What a closer look at a picture's original told, as JSON: see explore/originals.py
    alter table _image_similarity_hashes add column seen text;

    -- Pictures that show nothing, which the last search for duplicates left out
    alter table _image_similarity_scans add column flat integer not null default 0;
    """,
)


@dataclass(frozen=True)
class Collection:
    """One row of `_image_similarity_collections`."""

    id: int
    name: str
    table: str
    source: str  # "folder" (a table we made of files), "path" or "blob" (a column)
    column: str  # the column that holds the path or the picture
    encoder: str  # EncoderSpec as JSON
    fingerprint: str
    dimensions: int
    metric: str  # "cosine" or "l2"
    thumbnails: bool
    store: str = ""  # URL of where the vectors are; empty for this file
    store_id: str = ""  # what their ids there begin with: see stores/ids.py

    @property
    def vectors(self) -> str:
        """Name of the vec0 table; there is none for vectors in a store."""
        return f"{PREFIX}vectors_{self.id}"


@dataclass(frozen=True)
class SourceTable:
    """A table of the user's and how its rows are told apart.

    `pks` is empty for a table without a primary key: rows go by their rowid. Where it
    `collates`, keys that differ may be equal to SQLite: "a" and "A".
    """

    name: str
    columns: tuple[str, ...]
    pks: tuple[str, ...]
    collates: bool = False

    @property
    def key_columns(self) -> tuple[str, ...]:
        return self.pks or ("rowid",)

    def key_sql(self, alias: str = "") -> str:
        """SQL for a row's `Key`: the key itself, or a JSON array for compound keys."""
        dot = f"{alias}." if alias else ""
        parts = [f"{dot}{quote(name)}" for name in self.key_columns]
        return parts[0] if len(parts) == 1 else f"json_array({', '.join(parts)})"

    def join_sql(self, alias: str, key: str) -> str:
        """SQL condition that finds the row of `alias` whose key is the SQL `key`.

        Each key column stands alone on the left, so that its index is used and its
        type rules apply. Keys are the same to the letter, whatever the column's collation.
        A key that is not of this table, whose primary key may have changed, finds nothing.
        """
        parts = [key]
        if len(self.key_columns) > 1:
            array = f"case when json_valid({key}) then {key} end"
            parts = [f"json_extract({array}, '$[{i}]')" for i in range(len(self.pks))]
        same = [
            f"{alias}.{quote(name)} = {part}"
            for name, part in zip(self.key_columns, parts, strict=True)
        ]
        if self.collates:
            same += [f"{condition} collate binary" for condition in same]
        return " and ".join(same)

    def parts(self, key: Key) -> list[Key]:
        """The values of the key columns, in order."""
        return json.loads(str(key)) if len(self.key_columns) > 1 else [key]

    def require_column(self, name: str) -> None:
        """Raise CollectionError for a column that there is not."""
        if name not in self.columns:
            raise CollectionError(
                f"Table {self.name!r} has no column {name!r}; it has "
                f"{', '.join(self.columns)}"
            )

    def label_sql(self, column: str, alias: str = "") -> str:
        """SQL for what a row says in a column, as text; NULL where it is empty or binary.

        Raises CollectionError for a column that there is not.
        """
        self.require_column(column)
        name = f"{alias}.{quote(column)}" if alias else quote(column)
        readable = f"typeof({name}) <> 'blob' and trim({name}) <> ''"
        return f"case when {readable} then cast({name} as text) end"

    def find(self, conn: sqlite3.Connection, parts: Iterable[Key]) -> Key | None:
        """The `Key` of the row with these key values, or None without such a row.

        Values may be text as they come from a URL or a shell: SQLite applies the
        column's own type, so "12" finds the integer 12.
        """
        parts = list(parts)
        if len(parts) != len(self.key_columns):
            return None
        where = " and ".join(f"{quote(name)} = ?" for name in self.key_columns)
        sql = f"select {self.key_sql()} from {quote(self.name)} where {where}"
        row = conn.execute(sql, parts).fetchone()
        return None if row is None else row[0]


def key_in_words(key: object) -> str:
    """A row's key, or its parts, as people write them: 12, or a,b."""
    return ",".join(map(str, key)) if isinstance(key, (tuple, list)) else str(key)


def literal(value: Key) -> str:
    """A key as a SQL literal."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def quote(identifier: str) -> str:
    """An identifier, safe inside SQL: double-quoted, quotes doubled."""
    if "\0" in identifier:
        raise DatabaseError(f"A name in SQL cannot hold a NUL: {identifier!r}")
    return '"' + identifier.replace('"', '""') + '"'


def is_ours(table: str) -> bool:
    """Whether a table's name is one of ours (or of a shadow table of ours)."""
    return table.lower().startswith(PREFIX)


# Connections


def load_vec(conn: sqlite3.Connection) -> None:
    """Load sqlite-vec into a connection, and shut the door behind it.

    Raises ExtensionError where this Python's SQLite cannot.
    """
    import sqlite_vec

    if sqlite3.sqlite_version_info < LOWEST_SQLITE:
        raise ExtensionError(TOO_OLD)
    try:
        conn.enable_load_extension(True)
    except (AttributeError, sqlite3.Error):
        raise ExtensionError(NO_EXTENSIONS) from None
    try:
        sqlite_vec.load(conn)
    except sqlite3.Error as error:  # another processor's, say
        raise ExtensionError(f"sqlite-vec cannot be loaded: {error}") from None
    finally:
        # Left on, anyone who may run SQL could call load_extension().
        conn.enable_load_extension(False)


def require_vec(conn: sqlite3.Connection) -> None:
    """Raise ExtensionError for a connection that could not load sqlite-vec."""
    sql = "select 1 from pragma_function_list where name = 'vec_version'"
    if conn.execute(sql).fetchone() is None:
        load_vec(conn)


def hide_broken_vec0(conn: sqlite3.Connection, loaded: bool) -> None:
    """Put an empty table before each vec0 table, anybody's, that cannot be asked.

    Without sqlite-vec (`loaded` is false) that is all of them: Datasette, which asks each
    table for its columns, would not start. With it, those that lack what they list their
    rows in: looking into one crashes the process (sqlite-vec 0.1.9). For connections that
    others ask through. They may name `main.` still.
    """
    sql = (
        "select name from sqlite_master v where type = 'table' "
        "and sql like 'create virtual table%using%vec0%'"
    )
    if loaded:
        listing = VEC0_PARTS["_rowids"]
        sql += (
            " and (select count(*) from pragma_table_info(v.name || '_rowids') "
            f"where name in ({', '.join(map(literal, listing))})) < {len(listing)}"
        )
    says = "damaged" if loaded else NO_EXTENSIONS
    with suppress(sqlite3.DatabaseError, DatabaseError):  # whoever asks something is told
        for row in conn.execute(sql).fetchall():
            conn.execute(f"create temp table {quote(row[0])} ({quote(says)})")


class Connection(sqlite3.Connection):
    """A connection of our own, which may have stores: see stores/opening.py."""

    stores: Stores | None = None

    def close(self) -> None:
        if self.stores is not None:
            self.stores.close()
        super().close()


def connect(path: str | Path, *, create: bool = False, check: bool = True) -> Connection:
    """Open a database file for reading and writing, in autocommit mode.

    Raises DatabaseError when the file is missing (unless `create`), is no SQLite
    database, or (unless `check` is false) needs a newer version of this package.
    """
    path = Path(path)
    if not create and not path.exists():
        raise DatabaseError(f"{path} does not exist")
    if path.is_dir():
        raise DatabaseError(f"{path} is a folder, not a SQLite database")
    with explained(path):
        conn = sqlite3.connect(
            str(path),
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=Connection,
        )
        try:
            conn.row_factory = sqlite3.Row
            conn.text_factory = lambda text: text.decode("utf-8", "replace")
            load_vec(conn)
            conn.execute("select 1 from sqlite_master limit 1")
            if check:
                check_version(conn)
        except BaseException:
            conn.close()
            raise
    return conn


def is_full(error: BaseException) -> bool:
    """Whether there is no room on the disk. vec0 has words of its own for that."""
    text = str(error)
    return isinstance(error, sqlite3.Error) and (
        "full" in text or "Could not insert a new vector chunk" in text
    )


def advice(error: sqlite3.Error) -> str | None:
    """What is the matter with a database, and what to do, to be said after its name.

    None where it has nothing to do with the file.
    """
    text = str(error)
    if "locked" in text or "busy" in text:
        return (
            f"is locked: another process has been writing to it for over "
            f"{BUSY_SECONDS} seconds. Wait for it to end, then run this again"
        )
    if is_full(error):
        return "cannot grow: the disk is full. Make space, then run this again"
    if "readonly" in text or "read-only" in text:
        return "cannot be written to: the file or its folder is read-only"
    if "not a database" in text:
        return "is not a SQLite database"
    if "malformed" in text:
        return (
            "is damaged, or its disk cannot be read: restore a copy, or try sqlite3's "
            ".recover command"
        )
    if "unable to open" in text:
        return "cannot be opened: check that its folder exists and is writable"
    if "fetch vector data" in text:
        return "cannot be read, or vectors in it are damaged: verify tells which"
    if text == "SQL logic error" or any(words in text for words in VEC0_WRITES):
        return (
            "cannot be written to: most likely the disk is full. Make space, then run "
            "this again; verify tells whether the vectors are damaged"
        )
    if "disk I/O" in text:
        return (
            "cannot be read or written: the disk reports an error, or a limit is "
            "reached (a quota, the largest size of a file)"
        )
    return None


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turn SQLite's errors about the file into a DatabaseError that says what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        what = advice(error)
        if what is None:
            raise
        raise DatabaseError(f"{path} {what}.") from error


@contextmanager
def transaction(conn: sqlite3.Connection) -> Iterator[None]:
    """All or nothing. Takes the write lock at the start: nobody slips in between.

    Inside a transaction that is already open (Datasette 1.0 opens one) it does nothing.
    """
    if conn.in_transaction:
        yield
        return
    conn.execute("begin immediate")
    try:
        yield
        conn.execute("commit")
    except BaseException:
        if conn.in_transaction:  # a full disk has already rolled back
            conn.execute("rollback")
        raise


@contextmanager
def snapshot(conn: sqlite3.Connection) -> Iterator[None]:
    """All that is read inside is of one moment, whatever others write meanwhile."""
    if conn.in_transaction:
        yield
        return
    conn.execute("begin")
    try:
        yield
    finally:
        if conn.in_transaction:
            conn.execute("commit")


# Schema


def table_exists(conn: sqlite3.Connection, name: str) -> bool:
    sql = "select 1 from sqlite_master where name = ? collate nocase and type = 'table'"
    return conn.execute(sql, (name,)).fetchone() is not None


def schema_version(conn: sqlite3.Connection) -> int:
    """The version of our tables in this database; 0 where there are none."""
    if not table_exists(conn, f"{PREFIX}schema"):
        if table_exists(conn, f"{PREFIX}collections"):
            raise DatabaseError(DAMAGED)
        return 0
    try:
        version = conn.execute("select version from _image_similarity_schema").fetchone()[0]
    except (sqlite3.OperationalError, TypeError):
        version = None
    if not isinstance(version, int) or version < 0:
        raise DatabaseError(DAMAGED)
    return version


def check_version(conn: sqlite3.Connection) -> None:
    """Raises DatabaseError when a newer version of the package made the tables."""
    version = schema_version(conn)
    if version > SCHEMA_VERSION:
        raise DatabaseError(
            f"The embeddings in this database have schema version {version}; this "
            f"datasette-image-similarity knows versions up to {SCHEMA_VERSION}. "
            "Upgrade it: pip install --upgrade datasette-image-similarity"
        )


def is_current(conn: sqlite3.Connection, since: int = 3) -> bool:
    """Whether the tables of a version are there: reading never migrates. Those after 3 add
    what has functions of its own here."""
    return since <= schema_version(conn) <= SCHEMA_VERSION


def migrate(conn: sqlite3.Connection) -> None:
    """Create our tables, or bring older ones up to date."""
    check_version(conn)
    if schema_version(conn) == SCHEMA_VERSION:
        return
    with transaction(conn):
        for version in range(schema_version(conn), SCHEMA_VERSION):
            for statement in statements(MIGRATIONS[version]):
                conn.execute(statement)
            conn.execute("update _image_similarity_schema set version = ?", (version + 1,))


def statements(script: str) -> Iterator[str]:
    """The statements of a script. (executescript() would end the transaction.)"""
    statement = ""
    for part in script.split(";"):
        statement += f"{part};"
        if sqlite3.complete_statement(statement):
            if part.strip():
                yield statement
            statement = ""


def plain_columns(collection: Collection, source: SourceTable) -> list[str]:
    """The source table's columns, but that of the pictures themselves."""
    blob = collection.column if collection.source == "blob" else None
    return [name for name in source.columns if name != blob]


def source_table(conn: sqlite3.Connection, name: str) -> SourceTable:
    """What there is to know of a user's table.

    Raises CollectionError for an unknown table, a view, or a virtual or hidden table.
    """
    row = conn.execute(
        "select name, type, sql from sqlite_master "
        "where name = ? collate nocase and type in ('table', 'view')",
        (name,),
    ).fetchone()
    if row is None:
        raise CollectionError(f"There is no table {name!r} in this database")
    if row["type"] == "view":
        raise CollectionError(
            f"{name!r} is a view: its rows have no key of their own to keep embeddings "
            "by. Name the table that it is made from"
        )
    if is_ours(name) or (row["sql"] or "").lower().startswith("create virtual"):
        raise CollectionError(f"{name!r} is not an ordinary table")
    info = conn.execute(f"pragma table_xinfo({quote(row['name'])})").fetchall()
    keyed = sorted((column for column in info if column["pk"]), key=lambda c: c["pk"])
    if not keyed and "rowid" in (column["name"].lower() for column in info):
        raise CollectionError(
            f"{name!r} has no primary key and a column named rowid, which hides the number "
            "that its rows would go by: give it a primary key, or rename the column"
        )
    return SourceTable(
        name=row["name"],
        columns=tuple(column["name"] for column in info if column["hidden"] != 1),
        pks=tuple(column["name"] for column in keyed),
        collates="collate" in (row["sql"] or "").lower(),
    )


def source_of(conn: sqlite3.Connection, collection: Collection) -> SourceTable:
    """The table of a collection. Raises CollectionError when it or its column is gone."""
    source = source_table(conn, collection.table)
    if collection.column not in source.columns:
        raise CollectionError(
            f"Table {collection.table!r} no longer has the column {collection.column!r}"
        )
    return source


def need_vectors(conn: sqlite3.Connection, collection: Collection) -> None:
    """Raises CollectionError when the vec0 table lacks a part, or is one of another length
    or metric, and ExtensionError where it cannot be asked."""
    if collection.store:
        return
    require_vec(conn)
    made = collection.dimensions, collection.metric
    if vec0_of(conn, collection) != made or not has_parts(conn, collection):
        raise damaged_vectors(collection)


def has_parts(conn: sqlite3.Connection, collection: Collection) -> bool:
    """Whether the vec0 table's shadow tables have their columns. Where one lacks,
    sqlite-vec 0.1.9 crashes the process, so this is asked before vec0 is."""
    parts = {collection.vectors + part: {*names} for part, names in VEC0_PARTS.items()}
    sql = (
        "select m.name, c.name from sqlite_master m join pragma_table_info(m.name) c "
        "where m.type = 'table' and m.name in (select value from json_each(?))"
    )
    there: dict[str, set[str]] = {name: set() for name in parts}
    for name, column in conn.execute(sql, (json.dumps([*parts]),)):
        there[name].add(column)
    return there == parts


def damaged_vectors(collection: Collection) -> CollectionError:
    return CollectionError(
        f"The vectors of {collection.table} are damaged: run datasette "
        "image-similarity verify DATABASE --repair, then embed"
    )


def vec0_of(conn: sqlite3.Connection, collection: Collection) -> tuple[int, str] | None:
    """Dimensions and metric that a collection's vec0 table was made with."""
    sql = "select sql from sqlite_master where name = ?"
    row = conn.execute(sql, (collection.vectors,)).fetchone()
    made = row and re.search(r"float\[(\d+)\] distance_metric=(\w+)", row[0] or "")
    return (int(made[1]), made[2]) if made else None


def create_folder_table(conn: sqlite3.Connection, name: str) -> None:
    """The table that a folder of pictures becomes: one row a file."""
    conn.execute(
        f"""
        create table {quote(name)} (
            id integer primary key,
            path text not null,
            folder text,
            name text,
            width integer,
            height integer,
            format text,
            bytes integer,
            sha256 text,
            taken_at text,
            camera text,
            latitude real,
            longitude real
        )
        """
    )
    index = f"{name}_path"
    taken = "select 1 from sqlite_master where name = ? collate nocase"
    if conn.execute(taken, (index,)).fetchone() is None:  # else go without: just slower
        conn.execute(f"create index {quote(index)} on {quote(name)} (path)")


def put_rows(
    conn: sqlite3.Connection, table: str, rows: list[dict[str, object]], pk: str
) -> None:
    """Insert rows, or update those whose key is there, making table and columns.

    A column is of the type of its values: "numeric" takes int and float as they are.
    Raises CollectionError where `pk` is not the key of a table that exists.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    kinds = {int: "integer", bool: "integer", float: "real", bytes: "blob"}

    def kind(name: str) -> str:
        types = {type(row[name]) for row in rows if row.get(name) is not None}
        found = {kinds.get(one, "text") for one in types}
        if found == {"integer", "real"}:
            return "numeric"
        return found.pop() if len(found) == 1 else "text"

    with transaction(conn):
        if not table_exists(conn, table):
            columns = ", ".join(
                f"{quote(name)} {kind(name)}{' primary key' if name == pk else ''}"
                for name in names
            )
            conn.execute(f"create table {quote(table)} ({columns})")
        source = source_table(conn, table)
        if [name.lower() for name in source.pks] != [pk.lower()]:
            raise CollectionError(
                f"Table {table!r} exists and its key is not {pk!r}: name the column "
                "that is its key, or another table"
            )
        for name in names:
            add_column(conn, table, name, kind(name))
        others = [name for name in names if name != pk]
        update = ", ".join(f"{quote(n)} = excluded.{quote(n)}" for n in others)
        conn.executemany(
            f"insert into {quote(table)} ({', '.join(map(quote, names))}) "
            f"values ({', '.join('?' * len(names))}) on conflict ({quote(pk)}) "
            f"do {f'update set {update}' if update else 'nothing'}",
            ([row.get(name) for name in names] for row in rows),
        )


def add_column(conn: sqlite3.Connection, table: str, column: str, kind: str) -> None:
    """Add a column to a user's table unless it has one of that name."""
    if column.lower() not in {c.lower() for c in source_table(conn, table).columns}:
        conn.execute(f"alter table {quote(table)} add column {quote(column)} {kind}")


@contextmanager
def _attached(conn: sqlite3.Connection, path: str | Path) -> Iterator[None]:
    """Meanwhile the database file `path` is there as `copied`."""
    if "://" in str(path):
        raise DatabaseError(f"{path} is not a file")
    conn.execute("attach ? as copied", (f"{path}",))
    try:
        yield
    finally:
        conn.execute("detach copied")


def copy_table(
    conn: sqlite3.Connection, path: str | Path, table: str, *, replace: bool
) -> None:
    """Make `table` here an exact copy of `table` in the database file `path`.

    Rows keep their keys and rowids; indexes and triggers stay behind. Unless `replace`,
    raises CollectionError where there is a table that is more than an earlier copy; with
    it, only where an earlier copy has columns of its own.
    """
    with _attached(conn, path):
        row = conn.execute(
            "select name, sql, type from copied.sqlite_master where name = ? "
            "collate nocase and type in ('table', 'view')",
            (table,),
        ).fetchone()
        if row is None:
            raise CollectionError(f"There is no table {table!r} in {path}")
        if row["type"] == "view":
            raise CollectionError(f"{table!r} is a view: name the table behind it")
        with transaction(conn):
            if not replace and table_exists(conn, table) and not _is_copy(conn, row):
                raise CollectionError(
                    f"{file_of(conn)} has a table {table!r} of its own, which would be "
                    "lost: name another output"
                )
            if replace:
                _need_no_others(conn, row["name"], path)
            conn.execute(f"drop table if exists main.{quote(row['name'])}")
            conn.execute(row["sql"])
            columns = ", ".join(map(quote, _columns_to_copy(conn, row["name"])))
            conn.execute(
                f"insert into main.{quote(row['name'])} ({columns}) "
                f"select {columns} from copied.{quote(row['name'])}"
            )


def _need_no_others(conn: sqlite3.Connection, table: str, path: str | Path) -> None:
    """Raise CollectionError where an earlier copy has got columns that the original in the
    file `path` has not: they would be lost."""
    info = "select name from pragma_table_info(:table, {})"
    others = conn.execute(
        f"{info.format(':copy')} where lower(name) not in "
        f"(select lower(name) from ({info.format(':original')}))",
        {"table": table, "copy": "main", "original": "copied"},
    ).fetchall()
    if others:
        names = ", ".join(row[0] for row in others)
        raise CollectionError(
            f"{table!r} in {file_of(conn)} has columns that {path} has not, and would lose "
            f"them by being copied again: {names}. Add them there, or drop them here"
        )


def _columns_to_copy(conn: sqlite3.Connection, table: str) -> list[str]:
    """The columns that say all about a table, with its rowid where that is its key."""
    info = conn.execute(f"pragma main.table_xinfo({quote(table)})")
    names = [column["name"] for column in info if not column["hidden"]]
    return names if source_table(conn, table).pks else ["rowid", *names]


def _is_copy(conn: sqlite3.Connection, original: sqlite3.Row) -> bool:
    """Whether nothing is lost with the table here that is called as one in `copied`: it
    was made by the same SQL, and each of its rows is there, too."""
    name = quote(original["name"])
    made = "select 1 from main.sqlite_master where name = ? and sql = ?"
    if conn.execute(made, (original["name"], original["sql"])).fetchone() is None:
        return False
    keys = source_table(conn, original["name"]).key_columns
    columns = map(quote, _columns_to_copy(conn, original["name"]))
    key = " and ".join(f"c.{quote(one)} is m.{quote(one)}" for one in keys)
    same = " and ".join(f"c.{one} is m.{one}" for one in columns)
    sql = (
        f"select 1 from main.{name} m where not exists "
        f"(select 1 from copied.{name} c where {key} and {same}) limit 1"
    )
    return conn.execute(sql).fetchone() is None


# Collections


def collections(conn: sqlite3.Connection, table: str | None = None) -> list[Collection]:
    """All collections of a database, or those over one table: the preferred one of a table
    before its others, and these oldest first."""
    if not table_exists(conn, f"{PREFIX}collections"):
        return []
    check_version(conn)
    version = schema_version(conn)
    preferred = "preferred" if version >= 4 else "0"
    store = "store, store_id" if version >= 5 else "'' as store, '' as store_id"
    sql = (
        "select id, name, table_name as 'table', source, column_name as 'column', "
        f"encoder, fingerprint, dimensions, metric, thumbnails, {store} "
        "from _image_similarity_collections "
        "where :table is null or table_name = :table collate nocase "
        f"order by {preferred} is 1 desc, id"
    )
    try:
        rows = conn.execute(sql, {"table": table}).fetchall()
    except sqlite3.OperationalError as error:
        if "no such column" not in str(error):
            raise
        raise DatabaseError(DAMAGED) from None
    return [_collection(row) for row in rows]


TEXTS = ("name", "table", "column", "encoder", "fingerprint", "store", "store_id")


def _collection(row: sqlite3.Row) -> Collection:
    """A row as a Collection. A database may come from a stranger: types are checked."""
    fields = dict(row)
    numbers = fields["id"], fields["dimensions"], fields["thumbnails"]
    texts = [fields[name] for name in TEXTS]
    if (
        not all(isinstance(number, int) for number in numbers)
        or not all(isinstance(text, str) for text in texts)
        or not 0 < fields["dimensions"] < 1_000_000
        or fields["source"] not in ("folder", "path", "blob")
        or fields["metric"] not in DISTANCES
    ):
        raise DatabaseError(DAMAGED)
    return Collection(**{**fields, "thumbnails": bool(fields["thumbnails"])})


def collection_or_none(
    conn: sqlite3.Connection, table: str, name: str | None = None
) -> Collection | None:
    """The collection of that name over a table, or None. Without a name the one that is
    preferred, else the oldest."""
    there = collections(conn, table)
    return next((c for c in there if name in (None, c.name)), None)


def find_collection(
    conn: sqlite3.Connection, table: str, name: str | None = None
) -> Collection:
    """The collection of that name over a table; without a name the one that is preferred,
    else the oldest.

    Raises CollectionError when there is none, naming those that there are.
    """
    found = collection_or_none(conn, table, name)
    if found is not None:
        return found
    there = collections(conn, table)
    if there:
        names = ", ".join(repr(c.name) for c in there)
        raise CollectionError(f"{table!r} has no collection {name!r}; it has {names}")
    with_pictures = sorted({c.table for c in collections(conn)})
    hint = (
        f"; tables that have: {', '.join(map(repr, with_pictures))}"
        if with_pictures
        else f" yet. {how_to_begin(table)}"
    )
    raise CollectionError(f"Table {table!r} has no embeddings{hint}")


def how_to_begin(table: str = "TABLE", database: str = "DATABASE") -> str:
    """What to type where nothing has been embedded, as sentences."""
    embed = ("datasette", "image-similarity", "embed", database)
    by_column = shell_line(*embed, "--table", table, "--path-column", "COLUMN")
    return (
        f"For a folder of pictures, run: {shell_line(*embed, 'FOLDER')}. For a table with "
        f"their paths, run: {by_column} (--url-column for addresses, --blob-column for the "
        "pictures themselves)"
    )


def create_collection(
    conn: sqlite3.Connection,
    *,
    name: str,
    table: str,
    source: str,
    column: str,
    encoder: str,
    fingerprint: str,
    dimensions: int,
    metric: str,
    thumbnails: bool,
    store: str = "",
    store_id: str = "",
) -> Collection:
    """Insert the collection and make its vec0 table, unless its vectors are in a store."""
    with transaction(conn):
        conn.execute(
            "insert into _image_similarity_collections (name, table_name, source, "
            "column_name, encoder, fingerprint, dimensions, metric, thumbnails, store, "
            "store_id) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                name,
                table,
                source,
                column,
                encoder,
                fingerprint,
                dimensions,
                metric,
                thumbnails,
                store,
                store_id,
            ),
        )
        collection = find_collection(conn, table, name)
        if not store:
            create_vectors(conn, collection)
    return collection


def create_vectors(conn: sqlite3.Connection, collection: Collection) -> None:
    conn.execute(
        f"create virtual table {quote(collection.vectors)} using vec0("
        f"id integer primary key, embedding float[{int(collection.dimensions)}] "
        f"distance_metric={collection.metric}, chunk_size={CHUNK_SIZE})"
    )


def drop_vectors(conn: sqlite3.Connection, vectors: str) -> None:
    """Drop a vec0 table, even one that is damaged or lacks some of its parts."""
    if table_exists(conn, vectors):
        for part in VEC0_PARTS:  # without any of them vec0 refuses
            conn.execute(f"create table if not exists {quote(vectors + part)} (x)")
        conn.execute(f"drop table {quote(vectors)}")
    for name in _tables_like(conn, f"{vectors}_"):
        conn.execute(f"drop table {quote(name)}")


def _tables_like(conn: sqlite3.Connection, beginning: str) -> list[str]:
    """Names of the tables that begin so."""
    sql = "select name from sqlite_master where type = 'table' and substr(name, 1, ?) = ?"
    return [row[0] for row in conn.execute(sql, (len(beginning), beginning)).fetchall()]


def clear(conn: sqlite3.Connection, collection: Collection, *tables: str) -> None:
    """Empty tables of ours (names without PREFIX) of what is about a collection."""
    for table in tables:
        conn.execute(
            f"delete from {PREFIX}{table} where collection_id = ?", (collection.id,)
        )


def drop_collection(conn: sqlite3.Connection, collection: Collection) -> None:
    """Take a collection out; with the last one, every table of ours goes."""
    with transaction(conn):
        migrate(conn)  # older ones lack tables that are cleared here
        drop_vectors(conn, collection.vectors)
        _leave_thumbnails(conn, collection)
        conn.execute(
            "delete from _image_similarity_thumbnails where id in "
            "(select id from _image_similarity_items where collection_id = ?)",
            (collection.id,),
        )
        rest = [name for name in REFERRING if name not in ("thumbnails", "collections")]
        clear(conn, collection, *rest)
        conn.execute(
            "delete from _image_similarity_collections where id = ?", (collection.id,)
        )
        if not collections(conn):
            drop_everything(conn)


def note_finished(
    conn: sqlite3.Connection, collection: Collection, changed: bool = True
) -> None:
    """The collection is all there now. Notes when, if it was not yet or has `changed`."""
    conn.execute(
        "update _image_similarity_collections "
        "set updated_at = strftime('%Y-%m-%dT%H:%M:%SZ', 'now') "
        "where id = ? and (? or updated_at is null)",
        (collection.id, changed),
    )


def prefer(conn: sqlite3.Connection, collection: Collection) -> None:
    """Make a collection the one of its table that is used where none is named."""
    with transaction(conn):
        migrate(conn)
        conn.execute(
            "update _image_similarity_collections set preferred = (id = ?) "
            "where table_name = ? collate nocase",
            (collection.id, collection.table),
        )


def run_setting(conn: sqlite3.Connection, collection: Collection, name: str) -> object:
    """What `embed` noted for its next run under a name; None if nothing, or nonsense."""
    if not is_current(conn, 7):
        return None
    sql = "select run_settings from _image_similarity_collections where id = ?"
    row = conn.execute(sql, (collection.id,)).fetchone()
    try:
        settings = json.loads(row[0])
    except (TypeError, ValueError, RecursionError):
        return None
    return settings.get(name) if isinstance(settings, dict) else None


def note_run_setting(
    conn: sqlite3.Connection, collection: Collection, name: str, value: object
) -> None:
    """Note something, as JSON holds it, for the next run of `embed`."""
    conn.execute(
        "update _image_similarity_collections set run_settings = json_patch("
        "iif(json_valid(run_settings), run_settings, '{}'), ?) where id = ?",
        (json.dumps({name: value}), collection.id),
    )


def set_aside(conn: sqlite3.Connection, collection: Collection) -> None:
    """Take the name off a collection, for the one that replaces it."""
    conn.execute(
        "update _image_similarity_collections set name = hex(randomblob(16)) where id = ?",
        (collection.id,),
    )


def hand_over(conn: sqlite3.Connection, old: Collection, new: Collection) -> None:
    """Give a new collection what people did in the one that it replaces, its settings, and
    its place as the preferred one."""
    conn.execute(
        "update _image_similarity_collections set (preferred, run_settings) = (select "
        "preferred, run_settings from _image_similarity_collections where id = ?) "
        "where id = ?",
        (old.id, new.id),
    )
    for table in (*BY_PEOPLE, "missing"):
        conn.execute(
            f"update {PREFIX}{table} set collection_id = ? where collection_id = ?",
            (new.id, old.id),
        )


def drop_everything(conn: sqlite3.Connection) -> None:
    """Drop every table of ours, even when they are damaged."""
    with transaction(conn):
        for name in _tables_like(conn, f"{PREFIX}vectors_"):
            if name.removeprefix(f"{PREFIX}vectors_").isdecimal():
                drop_vectors(conn, name)
        # Those that others refer to come last.
        for name in REFERRING:
            conn.execute(f"drop table if exists {PREFIX}{name}")
        for name in tables_of_ours(conn):
            conn.execute(f"drop table {quote(name)}")


def tables_of_ours(conn: sqlite3.Connection) -> list[str]:
    """Names of all tables that begin as ours do."""
    return _tables_like(conn, PREFIX)


def drop_sequence(conn: sqlite3.Connection) -> bool:
    """Drop `sqlite_sequence`, which vec0 brought, where nothing uses it any more.

    Only VACUUM does that. Where it would renumber rows, or fails, the table stays, and this
    is False.
    """
    if not table_exists(conn, "sqlite_sequence"):
        return True
    made = conn.execute("select sql from sqlite_master where sql like '%autoincrement%'")
    if any(re.search(r"\bautoincrement\b", sql, re.I) for (sql,) in made):
        return True
    if conn.execute("select 1 from sqlite_sequence").fetchone():
        return True
    if vacuum_renumbers(conn):
        return False
    try:
        conn.execute("vacuum")
    except sqlite3.OperationalError:  # no room for a copy, or somebody is reading
        return False
    return True


def vacuum_renumbers(conn: sqlite3.Connection) -> bool:
    """Whether VACUUM changes rowids: those of tables without an INTEGER PRIMARY KEY."""
    # A primary key that has no index of its own is the rowid.
    sql = (
        "select 1 from pragma_table_list l where schema = 'main' and type = 'table' "
        "and not wr and name not like 'sqlite~_%' escape '~' "
        "and (not exists (select 1 from pragma_table_info(l.name) where pk) "
        "or exists (select 1 from pragma_index_list(l.name) where origin = 'pk'))"
    )
    return conn.execute(sql).fetchone() is not None


# Thumbnails


def thumbnail_sql(item: str = "i") -> str:
    """SQL for the WebP of the item with this alias, or NULL.

    Collections over one table share thumbnails: it may be that of the same row and bytes
    in another one.
    """
    return (
        f"coalesce((select webp from _image_similarity_thumbnails where id = {item}.id), "
        f"({_siblings_sql(item, 'thumb.webp')} limit 1))"
    )


def _siblings_sql(item: str, columns: str) -> str:
    """A `select` of the thumbnails `thumb` that other collections have of the same row and
    bytes as the item with this alias."""
    return (
        f"select {columns} from _image_similarity_collections mine "
        "cross join _image_similarity_collections other "
        "on other.table_name = mine.table_name collate nocase and other.id <> mine.id "
        "cross join _image_similarity_items same on same.collection_id = other.id "
        f"and same.pk = {item}.pk and same.sha256 = {item}.sha256 "
        "cross join _image_similarity_thumbnails thumb on thumb.id = same.id "
        f"where mine.id = {item}.collection_id"
    )


def _leave_thumbnails(conn: sqlite3.Connection, collection: Collection) -> None:
    """Give the thumbnails of a collection that goes to one that showed them as well."""
    conn.execute(
        "insert or ignore into _image_similarity_thumbnails (id, webp) "
        "select min(same.id), thumb.webp from _image_similarity_collections other "
        "cross join _image_similarity_items same on same.collection_id = other.id "
        "cross join _image_similarity_items i on i.collection_id = :id "
        "and i.pk = same.pk and i.sha256 = same.sha256 "
        "cross join _image_similarity_thumbnails thumb on thumb.id = i.id "
        "where other.table_name = :table collate nocase and other.id <> :id "
        "group by i.id",
        {"id": collection.id, "table": collection.table},
    )


# What is applied to a network's vectors: see encoders/transform.py


def transform_rows(conn: sqlite3.Connection, collection: Collection) -> list[sqlite3.Row]:
    """The steps of a collection's transform, in order; none where there is none.

    Raises DatabaseError where the table is not ours, or gone.
    """
    if not is_current(conn, 4):
        return []
    sql = (
        "select kind, unit, inputs, outputs, about, mean, components "
        "from _image_similarity_transforms where collection_id = ? order by step"
    )
    try:
        return conn.execute(sql, (collection.id,)).fetchall()
    except sqlite3.OperationalError as error:
        if not str(error).startswith(("no such table", "no such column")):
            raise
        raise DatabaseError(DAMAGED) from None


def put_transform(
    conn: sqlite3.Connection, collection: Collection, rows: Iterable[Sequence[object]]
) -> None:
    """Store the steps of a transform: rows as `transform_rows()` gives them."""
    clear(conn, collection, "transforms")
    conn.executemany(
        "insert into _image_similarity_transforms (collection_id, step, kind, unit, "
        "inputs, outputs, about, mean, components) values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ((collection.id, step, *row) for step, row in enumerate(rows)),
    )


# Items


def root_id(conn: sqlite3.Connection, collection: Collection, path: Root) -> int:
    """The id of a root folder in this collection, made if it is new."""
    conn.execute(
        "insert or ignore into _image_similarity_roots (collection_id, path) values (?, ?)",
        (collection.id, str(path)),
    )
    return conn.execute(
        "select id from _image_similarity_roots where collection_id = ? and path = ?",
        (collection.id, str(path)),
    ).fetchone()[0]


def roots(conn: sqlite3.Connection, collection: Collection) -> dict[int, str]:
    """The root folders of a collection, by id, as they were called when it was made."""
    sql = "select id, path from _image_similarity_roots where collection_id = ?"
    return dict(conn.execute(sql, (collection.id,)).fetchall())


def put_item(
    conn: sqlite3.Connection,
    collection: Collection,
    *,
    pk: Key,
    root: int | None,
    path: str | None,
    size: int,
    mtime_ns: int | None,
    sha256: str,
    width: int,
    height: int,
    vector: bytes,
    thumbnail: bytes | None,
    note: str | None = None,
) -> int:
    """Insert or replace an item with its vector and thumbnail; returns its id.

    `vector` is float32, little-endian, `dimensions` numbers. `note` is what a user should
    know about the picture. Call inside a transaction.
    """
    _forget_old_picture(conn, collection, pk, sha256)
    item = conn.execute(
        "insert into _image_similarity_items (collection_id, pk, root_id, path, size, "
        "mtime_ns, sha256, width, height, crc32, note) "
        "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "on conflict (collection_id, pk) do update set root_id = excluded.root_id, "
        "path = excluded.path, size = excluded.size, mtime_ns = excluded.mtime_ns, "
        "sha256 = excluded.sha256, width = excluded.width, height = excluded.height, "
        "crc32 = excluded.crc32, note = excluded.note, "
        "embedded_at = excluded.embedded_at returning id",
        (
            collection.id,
            pk,
            root,
            path,
            size,
            mtime_ns,
            sha256,
            width,
            height,
            zlib.crc32(vector),
            note,
        ),
    ).fetchone()[0]
    conn.execute(
        "insert or replace into _image_similarity_unlisted (collection_id, id) "
        "select collection_id, ? from _image_similarity_indexes where collection_id = ?",
        (item, collection.id),
    )
    _put_vector(conn, collection, item, pk, sha256, vector)
    sql = "delete from _image_similarity_missing where collection_id = ? and pk = ?"
    conn.execute(sql, (collection.id, pk))
    conn.execute("delete from _image_similarity_thumbnails where id = ?", (item,))
    if thumbnail is not None:
        conn.execute(
            "insert into _image_similarity_thumbnails (id, webp) values (?, ?)",
            (item, thumbnail),
        )
    return item


def _put_vector(
    conn: sqlite3.Connection,
    collection: Collection,
    item: int,
    pk: Key,
    sha256: str,
    vector: bytes,
) -> None:
    if collection.store:
        conn.execute(
            "insert or replace into _image_similarity_unsent "
            "(collection_id, pk, sha256, vector) values (?, ?, ?, ?)",
            (collection.id, pk, sha256, vector),
        )
        _drop_copied_vector(conn, collection, item)
        return
    # vec0 has no REPLACE
    conn.execute(f"delete from {quote(collection.vectors)} where id = ?", (item,))
    conn.execute(
        f"insert into {quote(collection.vectors)} (id, embedding) values (?, ?)",
        (item, vector),
    )


def _drop_vector(conn: sqlite3.Connection, collection: Collection, item: int) -> None:
    if collection.store:
        conn.execute(
            "insert or replace into _image_similarity_unsent (collection_id, pk) "
            "select collection_id, pk from _image_similarity_items where id = ?",
            (item,),
        )
        _drop_copied_vector(conn, collection, item)
    else:
        conn.execute(f"delete from {quote(collection.vectors)} where id = ?", (item,))


def note_vectors(conn: sqlite3.Connection, vectors: Iterable[tuple[int, bytes]]) -> None:
    """These vectors of items lie in this file as they should. Call inside a transaction."""
    conn.executemany(
        "update _image_similarity_items set crc32 = ? where id = ?",
        ((zlib.crc32(vector), item) for item, vector in vectors),
    )


def _drop_copied_vector(
    conn: sqlite3.Connection, collection: Collection, item: int
) -> None:
    """A copy in this file of a vector that is in a store does not say of which bytes it is:
    it goes when these change."""
    if table_exists(conn, collection.vectors):
        conn.execute(f"delete from {quote(collection.vectors)} where id = ?", (item,))


def _forget_old_picture(
    conn: sqlite3.Connection, collection: Collection, pk: Key, sha256: str
) -> None:
    """Drop what was found of an item's picture, when that is now another one."""
    changed = conn.execute(
        "select id from _image_similarity_items "
        "where collection_id = ? and pk = ? and sha256 is not ?",
        (collection.id, pk, sha256),
    ).fetchone()
    if changed:
        for table in OF_PICTURE:
            conn.execute(f"delete from {PREFIX}{table} where item_id = ?", (changed[0],))


def drop_items(
    conn: sqlite3.Connection, collection: Collection, ids: Iterable[int]
) -> None:
    """Forget items with their vectors and thumbnails. Call inside a transaction."""
    for item in ids:
        _drop_vector(conn, collection, item)
        conn.execute("delete from _image_similarity_thumbnails where id = ?", (item,))
        conn.execute(
            "delete from _image_similarity_unlisted where collection_id = ? and id = ?",
            (collection.id, item),
        )
        for table in BY_ITEM:
            conn.execute(f"delete from {PREFIX}{table} where item_id = ?", (item,))
        conn.execute("delete from _image_similarity_items where id = ?", (item,))


def note_missing(
    conn: sqlite3.Connection, collection: Collection, rows: Iterable[tuple[Key, str, str]]
) -> None:
    """These rows are kept without a picture; each says where its file was (see
    `plan.place()`), and its SHA-256. Call inside a transaction."""
    conn.executemany(
        "insert or replace into _image_similarity_missing values (?, ?, ?, ?)",
        ((collection.id, *row) for row in rows),
    )


def missing_count(conn: sqlite3.Connection, collection: Collection) -> int:
    """How many rows `embed --prune` kept without a picture."""
    if not is_current(conn, since=7):
        return 0
    sql = "select count(*) from _image_similarity_missing where collection_id = ?"
    return conn.execute(sql, (collection.id,)).fetchone()[0]


def item_pages(
    conn: sqlite3.Connection,
    collection: Collection,
    columns: str,
    size: int,
    where: str = "1",
) -> Iterator[list[sqlite3.Row]]:
    """A collection's items in order of id, `size` at a time: however many there are, and
    whoever writes meanwhile.

    `columns` are SQL over the item `i`, the first of them its id; `where` is a condition.
    """
    sql = (
        f"select {columns} from _image_similarity_items i "
        f"where i.collection_id = ? and i.id > ? and {where} order by i.id limit ?"
    )
    last = -(2**63)
    while rows := conn.execute(sql, (collection.id, last, size)).fetchall():
        yield rows
        last = rows[-1][0]


def item_ids(conn: sqlite3.Connection, collection: Collection, most: int = -1) -> list[int]:
    """The ids of all items of a collection, or of the first `most`, in order."""
    sql = (
        "select id from _image_similarity_items where collection_id = ? order by id limit ?"
    )
    return [row[0] for row in conn.execute(sql, (collection.id, most))]


def item_key(conn: sqlite3.Connection, item: int) -> Key:
    """The key of an item's source row."""
    sql = "select pk from _image_similarity_items where id = ?"
    return conn.execute(sql, (item,)).fetchone()[0]


def item_count(conn: sqlite3.Connection, collection: Collection) -> int:
    """How many pictures of a collection have been embedded."""
    count = kept_count(conn, collection)
    if count is not None:
        return count
    sql = "select count(*) from _image_similarity_items where collection_id = ?"
    return conn.execute(sql, (collection.id,)).fetchone()[0]


def kept_count(conn: sqlite3.Connection, collection: Collection) -> int | None:
    """The number of items as triggers keep it; None in an older schema, or for nonsense."""
    if not is_current(conn, since=5):
        return None
    sql = "select pictures from _image_similarity_collections where id = ?"
    row = conn.execute(sql, (collection.id,)).fetchone()
    if row is None:  # removed meanwhile
        return 0
    return row[0] if isinstance(row[0], int) and 0 <= row[0] < 2**40 else None


def put_fingerprint(
    conn: sqlite3.Connection, collection: Collection, fingerprint: str
) -> None:
    conn.execute(
        "update _image_similarity_collections set fingerprint = ? where id = ?",
        (fingerprint, collection.id),
    )


def put_item_count(conn: sqlite3.Connection, collection: Collection, count: int) -> None:
    sql = "update _image_similarity_collections set pictures = ? where id = ?"
    conn.execute(sql, (count, collection.id))


def item_id(conn: sqlite3.Connection, collection: Collection, pk: Key) -> int | None:
    """The item of a source row, or None where it has not been embedded."""
    sql = "select id from _image_similarity_items where collection_id = ? and pk = ?"
    row = conn.execute(sql, (collection.id, pk)).fetchone()
    return None if row is None else row[0]


# The compressed index: see index.py


def put_index(
    conn: sqlite3.Connection,
    collection: Collection,
    *,
    asked: float,
    lists: int,
    axes: int,
    trained: int,
    spread: float,
    model: bytes,
) -> None:
    """An index without rows: all of them wait. Call inside a transaction."""
    drop_index(conn, collection)
    conn.execute(
        "insert into _image_similarity_indexes (collection_id, asked, lists, axes, "
        "trained, spread, model) values (?, ?, ?, ?, ?, ?, ?)",
        (collection.id, asked, lists, axes, trained, spread, model),
    )
    conn.execute(
        "insert into _image_similarity_unlisted (collection_id, id) "
        "select collection_id, id from _image_similarity_items where collection_id = ?",
        (collection.id,),
    )


def drop_index(conn: sqlite3.Connection, collection: Collection) -> None:
    """Drop the compressed index, if there is one. Call inside a transaction."""
    migrate(conn)
    clear(conn, collection, "lists", "unlisted", "indexes")


def index_row(conn: sqlite3.Connection, collection: Collection) -> sqlite3.Row | None:
    """What is noted of a collection's index, without the model; None without one.

    Raises DatabaseError for numbers that no index of ours has.
    """
    sql = (
        "select asked, recall, probes, depth, lists, axes, trained, spread, listed, "
        "since, since_spread, built_at, built, version "
        "from _image_similarity_indexes where collection_id = ?"
    )
    try:
        row = conn.execute(sql, (collection.id,)).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):  # embedded before there were indexes
            return None
        if "no such column" in str(error):
            raise DatabaseError(DAMAGED_INDEX) from None
        raise
    if row is not None:
        whole = ("probes", "depth", "lists", "axes", "trained", "listed", "since")
        real = ("asked", "recall", "spread", "since_spread")
        if not all(
            isinstance(row[name], int) and 0 <= row[name] < 2**40 for name in whole
        ) or not all(isinstance(row[name], (int, float, type(None))) for name in real):
            raise DatabaseError(DAMAGED_INDEX)
        if row["recall"] is not None and not (row["probes"] and row["depth"]):
            raise DatabaseError(DAMAGED_INDEX)
    return row


def index_model(conn: sqlite3.Connection, collection: Collection) -> bytes:
    sql = "select model from _image_similarity_indexes where collection_id = ?"
    row = conn.execute(sql, (collection.id,)).fetchone()
    return b"" if row is None or not isinstance(row[0], bytes) else row[0]


def index_list(
    conn: sqlite3.Connection, collection: Collection, number: int
) -> tuple[bytes, bytes, bytes]:
    """Ids, norms and codes of an inverted list; empty where there is none."""
    row = conn.execute(
        "select ids, norms, codes from _image_similarity_lists "
        "where collection_id = ? and list = ?",
        (collection.id, number),
    ).fetchone()
    return (b"", b"", b"") if row is None else tuple(row)


def index_lengths(conn: sqlite3.Connection, collection: Collection) -> dict[int, int]:
    """How many rows each inverted list holds, by number."""
    sql = (
        "select list, length(ids) / 8 from _image_similarity_lists where collection_id = ?"
    )
    return dict(conn.execute(sql, (collection.id,)).fetchall())


def index_lists(
    conn: sqlite3.Connection, collection: Collection
) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    """Number, ids, norms and codes of every inverted list that is there."""
    sql = (
        "select list, ids, norms, codes from _image_similarity_lists "
        "where collection_id = ?"
    )
    return map(tuple, conn.execute(sql, (collection.id,)))


def put_list(
    conn: sqlite3.Connection,
    collection: Collection,
    number: int,
    ids: bytes,
    norms: bytes,
    codes: bytes,
) -> None:
    conn.execute(
        "insert or replace into _image_similarity_lists values (?, ?, ?, ?, ?)",
        (collection.id, number, ids, norms, codes),
    )


def waiting(conn: sqlite3.Connection, collection: Collection, most: int = -1) -> int:
    """How many items wait to be listed; counted up to `most`."""
    sql = (
        "select count(*) from (select 1 from _image_similarity_unlisted "
        "where collection_id = ? limit ?)"
    )
    return conn.execute(sql, (collection.id, most)).fetchone()[0]


def waiting_items(
    conn: sqlite3.Connection, collection: Collection, most: int = -1
) -> dict[int, int]:
    """Items that wait to be listed; a mark by id, another one after each change."""
    sql = (
        "select id, mark from _image_similarity_unlisted "
        "where collection_id = ? order by id limit ?"
    )
    return dict(conn.execute(sql, (collection.id, most)).fetchall())


def put_waiting(
    conn: sqlite3.Connection, collection: Collection, ids: Iterable[int]
) -> None:
    """These items wait to be listed. Call inside a transaction."""
    conn.executemany(
        "insert or replace into _image_similarity_unlisted (collection_id, id) "
        "values (?, ?)",
        ((collection.id, id) for id in ids),
    )


def note_listed(
    conn: sqlite3.Connection,
    collection: Collection,
    marks: dict[int, int],
    listed: int,
    spread: float,
) -> None:
    """These items wait no more, unless they have changed. Call inside a transaction."""
    conn.executemany(
        "delete from _image_similarity_unlisted "
        "where collection_id = ? and id = ? and mark = ?",
        ((collection.id, id, mark) for id, mark in marks.items()),
    )
    conn.execute(
        "update _image_similarity_indexes set version = random(), listed = (select "
        "coalesce(sum(length(ids)), 0) / 8 from _image_similarity_lists l "
        "where l.collection_id = _image_similarity_indexes.collection_id) "
        "where collection_id = ?",
        (collection.id,),
    )
    conn.execute(
        "update _image_similarity_indexes set since = since + ?, "
        "since_spread = since_spread + ? where collection_id = ? and recall is not null",
        (listed, spread, collection.id),
    )


def finish_index(
    conn: sqlite3.Connection,
    collection: Collection,
    *,
    recall: float,
    probes: int,
    depth: int,
) -> None:
    """From now on the index is used."""
    conn.execute(
        "update _image_similarity_indexes set recall = ?, probes = ?, depth = ?, "
        "version = random(), built_at = strftime('%Y-%m-%dT%H:%M:%SZ', 'now') "
        "where collection_id = ?",
        (recall, probes, depth, collection.id),
    )


def store_index(conn: sqlite3.Connection, collection: Collection) -> dict[str, object]:
    """How the store finds what is near a vector, as `stores/indexing.py` has written it.

    `exact` is whether it compares with every vector, `recall` its measured recall@10.
    """
    sql = "select store_index from _image_similarity_collections where id = ?"
    text = conn.execute(sql, (collection.id,)).fetchone()[0]
    try:
        told = json.loads(text) if text else {}
    except (TypeError, ValueError, RecursionError):
        told = {}
    recall = told.get("recall") if isinstance(told, dict) else None
    if recall is not None and not (isinstance(recall, float) and 0 <= recall <= 1):
        raise DatabaseError(DAMAGED)
    return told if isinstance(told, dict) else {}


def put_store_index(
    conn: sqlite3.Connection, collection: Collection, told: dict[str, object]
) -> None:
    """Note how the store finds what is near. Call inside a transaction."""
    sql = "update _image_similarity_collections set store_index = ? where id = ?"
    conn.execute(sql, (json.dumps(told), collection.id))


def data_version(conn: sqlite3.Connection) -> int:
    """Another number after every change by another connection."""
    return conn.execute("pragma data_version").fetchone()[0]


def file_of(conn: sqlite3.Connection) -> str:
    """The main database's file; empty for one in memory."""
    return conn.execute("pragma database_list").fetchone()[2] or ""


def put_failure(
    conn: sqlite3.Connection,
    collection: Collection,
    *,
    pk: Key | None,
    root: int | None,
    path: str | None,
    reason: str,
) -> None:
    """Note why a picture could not be embedded, in place of an earlier note.

    Without a `pk` (a file that has no row, a row whose key is unusable) by its path.
    """
    clear_failure(conn, collection, pk=pk, root=root, path=path)
    conn.execute(
        "insert into _image_similarity_failures "
        "(collection_id, pk, root_id, path, reason) values (?, ?, ?, ?, ?)",
        (collection.id, pk, root, path, reason),
    )


def clear_failure(
    conn: sqlite3.Connection,
    collection: Collection,
    *,
    pk: Key | None,
    root: int | None,
    path: str | None,
) -> None:
    conn.execute(
        "delete from _image_similarity_failures where collection_id = ? and pk is ? "
        "and (pk is not null or (path is ? and root_id is ?))",
        (collection.id, pk, path, root),
    )


def live_sql(
    collection: Collection, source: SourceTable, items: str = "_image_similarity_items i"
) -> str:
    """SQL for items whose source row is still there and still names the same picture.

    A `from … where …` with the items as `i` and the source rows as `t`. `items` is what
    it begins from, if not from all items: joins are made in that order. For BLOB columns
    the length is compared here, the hash of what is shown by `query.py`.
    """
    same = same_picture_sql(collection, f"t.{quote(collection.column)}", "i.path", "i.size")
    return (
        f"from {items} cross join {quote(source.name)} t "
        f"on {source.join_sql('t', 'i.pk')} "
        f"where i.collection_id = {int(collection.id)} and {same}"
    )


def same_picture_sql(collection: Collection, column: str, path: str, size: str) -> str:
    """SQL condition: a cell names the picture whose path and size in bytes are these.

    A number is a path as text is. Of pictures in the cell itself the length says enough
    only for BLOBs: the hash decides.
    """
    if collection.source == "blob":
        same = f"(typeof({column}) = 'blob' and length({column}) = {size})"
        return f"({same} or {is_data_url_sql(column)})"
    number = f"typeof({column}) in ('integer', 'real') and cast({column} as text) = {path}"
    return (
        f"({column} = {path} collate binary or ({number}) "
        f"or {short_path_sql(column)} = {path} collate binary)"
    )


def cell_sql(collection: Collection) -> str:
    """SQL for the cell of the row `t` where the picture itself stands in it; NULL where it
    names a file."""
    column = f"t.{quote(collection.column)}"
    if collection.source == "blob":
        return column
    return f"case when {is_data_url_sql(column)} then {column} end"


def passing_sql(source: SourceTable, where: str, *, whole: bool = True) -> str:
    """The `with` clause for `_image_similarity_passing (pk)`: the keys of rows that pass a
    filter.

    In a query of its own a condition sees its table's columns and none of ours, and no
    table of a user's has that name. All of it is made at once, unless not `whole`.
    """
    kind = "materialized" if whole else "not materialized"
    return (
        f"with _image_similarity_passing(pk) as {kind} "
        f"(select {source.key_sql()} from {quote(source.name)} where {where})"
    )


# What `live_sql()` may begin from: the items whose row passes a filter. The plus keeps the
# types of the table's keys away from ours, so that ours are looked up in their index.
ITEMS_PASSING = (
    "_image_similarity_passing p cross join _image_similarity_items i on i.pk = +p.pk"
)
# Or the ids in the parameter :ids, a JSON array.
ITEMS_BY_ID = "json_each(:ids) j cross join _image_similarity_items i on i.id = j.value"
# Columns: a picture's width and height; 0 where what a stranger's file says is no number.
SIZE = ", ".join(
    f"iif(typeof(i.{side}) = 'integer', i.{side}, 0) as {side}"
    for side in ("width", "height")
)


def floats(data: bytes) -> tuple[float, ...]:
    """The numbers in a float32 blob. Raises CollectionError unless all are finite."""
    import struct

    numbers = struct.unpack(f"<{len(data) // 4}f", data)
    if not all(map(math.isfinite, numbers)):
        raise CollectionError("A vector holds NaN or infinity")
    return numbers
