"""Which rows of a user's table hold something that people wrote: pruning keeps those.

Written is a value in a column that neither `embed` nor a CSV filled, other than the
column's default; a decision about duplicates; and a row of another table whose foreign
key names this one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from datasette.utils.sqlite import sqlite3

from . import database as db

# The columns in which `embed` writes what a file tells: see `create_folder_table()`. In
# `label` it writes the folder's name, and nobody else would write just that.
EMBEDDED = (
    *("path", "folder", "name", "width", "height", "format", "bytes", "sha256"),
    *("taken_at", "camera", "latitude", "longitude"),
)
# Where the file of the item `i` was, and its folder: rtrim() takes the file's name off.
_PLACE = "replace(r.path, '\\', '/') || '/' || i.path"
_FOLDER = f"rtrim({_PLACE}, replace({_PLACE}, '/', ''))"


def written_rows(
    conn: sqlite3.Connection,
    table: db.SourceTable,
    keys: Iterable[db.Key],
    filled: Iterable[str],
) -> set[db.Key]:
    """Those of the rows with these keys that hold something people wrote.

    `filled` are the columns that a command of ours fills, besides the key's: what is in
    these counts as ours.
    """
    ours = {name.lower() for name in (*filled, *table.key_columns)}
    conditions = [
        _column_sql(conn, table, column, ours)
        for column in conn.execute(f"pragma table_xinfo({db.quote(table.name)})").fetchall()
        if not column["hidden"] and column["name"].lower() not in ours  # none is generated
    ]
    conditions += [_decided_sql(table), *_referred_sql(conn, table)]
    sql = (
        "select k.value from json_each(:keys) k "
        f"cross join {db.quote(table.name)} t on {table.join_sql('t', 'k.value')} "
        f"where {' or '.join(conditions)}"
    )
    return {row[0] for row in conn.execute(sql, {"keys": json.dumps([*keys])})}


def _column_sql(
    conn: sqlite3.Connection, table: db.SourceTable, column: sqlite3.Row, ours: set[str]
) -> str:
    """SQL condition: the row `t` holds something else in a column than its default."""
    value = f"t.{db.quote(column['name'])}"
    default, computed = _default(conn, column)
    written = f"{value} is not {default} collate binary"
    if default in ("NULL", "''"):  # both say nothing
        written = f"({value} is not null and {value} is not '')"
    if computed:  # as current_timestamp is: a time within minutes of the embedding
        time = (
            f"abs(julianday({value}) - julianday(i.embedded_at)) < 0.01 "
            f"or {value} = date(i.embedded_at)"
        )
        written += f" and not {_item_sql(table, time)}"
    if column["name"].lower() == "label" and {*EMBEDDED} <= ours:
        is_folder = f"substr({_FOLDER}, -length({value}) - 2) = '/' || {value} || '/'"
        written += f" and not {_item_sql(table, is_folder)}"
    return f"({written})"


def _item_sql(table: db.SourceTable, condition: str) -> str:
    """SQL condition: an item `i` of the row whose key is `k.value` meets a condition."""
    return (
        "exists (select 1 from _image_similarity_collections c "
        "cross join _image_similarity_items i on i.collection_id = c.id and i.pk = k.value "
        "left join _image_similarity_roots r on r.id = i.root_id "
        f"where c.table_name = {db.literal(table.name)} collate nocase and ({condition}))"
    )


def _default(conn: sqlite3.Connection, column: sqlite3.Row) -> tuple[str, bool]:
    """A column's default as a SQL literal, and whether SQLite computes it for each row.

    SQLite evaluates it in a table of its own, since it reads defaults by rules of their
    own: `"new"` and `new` are texts there.
    """
    text = column["dflt_value"]
    if text is None:
        return "NULL", False
    computed = text.strip().lower().startswith("current_")
    kind = db.quote(column["type"]) if column["type"] else ""
    made = f"create temp table {db.PREFIX}default (x {kind} default"
    try:
        conn.execute(f"{made} {text})")
    except sqlite3.OperationalError:
        conn.execute(f"{made} ({text}))")
        computed = True
    try:
        conn.execute(f"insert into temp.{db.PREFIX}default default values")
        sql = f"select quote(x) from temp.{db.PREFIX}default"
        return conn.execute(sql).fetchone()[0], computed
    finally:
        conn.execute(f"drop table temp.{db.PREFIX}default")


def _decided_sql(table: db.SourceTable) -> str:
    """SQL condition: somebody has decided about the row `t` whose key is `k.value`."""
    return (
        "k.value in (select d.pk from _image_similarity_decisions d "
        "join _image_similarity_collections c on c.id = d.collection_id "
        f"where c.table_name = {db.literal(table.name)} collate nocase)"
    )


def _referred_sql(conn: sqlite3.Connection, table: db.SourceTable) -> list[str]:
    """SQL conditions: a row of another table refers to the row `t` by a foreign key."""
    keys = conn.execute(
        'select m.name, f.id, f.seq, f."from", f."to" from sqlite_master m '
        "join pragma_foreign_key_list(m.name) f where m.type = 'table' "
        "and m.sql not like 'create virtual%' and f.\"table\" = ? collate nocase "
        "order by m.name, f.id, f.seq",
        (table.name,),
    ).fetchall()
    columns: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for name, number, place, origin, target in keys:
        if target is None and place < len(table.pks):  # it refers to the primary key
            target = table.pks[place]
        columns.setdefault((name, number), []).append((origin, target))
    there = {name.lower() for name in table.columns}
    return [
        f"({', '.join(f't.{db.quote(target)}' for _, target in pairs)}) in (select "
        f"{', '.join(db.quote(origin) for origin, _ in pairs)} from {db.quote(name)})"
        for (name, _), pairs in columns.items()
        if not db.is_ours(name)
        and all(target is not None and target.lower() in there for _, target in pairs)
    ]
