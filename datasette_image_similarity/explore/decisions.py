"""What people decide about groups of duplicates.

A decision is a row by the picture's key and the hash of its bytes, not by group: it
outlives a group and every re-run of the finder, and is void once the picture has changed.
The newest row of a picture counts. Each thing a user does is one *step*, which `undo()`
takes back. Nothing here touches a picture or a row of the user's: what is marked is only
listed.

The keeper of a group goes on into the next tier, where it stands for all of its group. That
it was kept, or skipped, in a surer tier decides nothing there: each row notes its tier.

    keep    stays
    mark    is to go: exports and filters list it
    skip    seen, left as it is
    apart   is no duplicate of the pictures in `other`, a JSON array of keys
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError, DatabaseError
from .duplicates import DECISION_SQL, TIERS, keys_in
from .facts import Facts, facts_of
from .keeper import suggest_keeper

ACTIONS = ("accept", "keep", "mark", "unmark", "skip")
DAMAGED = (
    "The tables about duplicates in this database are damaged: take everything out with "
    "datasette image-similarity remove DATABASE, then embed again"
)

# The same in a group `g`, where what was kept or skipped in a surer tier is open again.
_RANK = "case {} when 'identical' then 0 when 'same' then 1 else 2 end"
_DECISION_HERE_SQL = DECISION_SQL.replace(
    "select x.decision",
    f"select iif(x.decision <> 'mark' and {_RANK.format('x.tier')} < "
    f"{_RANK.format('g.tier')}, null, x.decision)",
)
# Pictures in groups: what `database.live_sql()` begins from.
_GROUPED = (
    "_image_similarity_groups g "
    "cross join _image_similarity_grouped d on d.group_id = g.id "
    "cross join _image_similarity_items i on i.id = d.item_id"
)


class GroupChanged(CollectionError):
    """A group is gone, or no longer the one that was looked at."""


@dataclass(frozen=True)
class Scan:
    """When duplicates were last looked for."""

    made_at: str
    pictures: int
    flat: int  # pictures that show nothing: they are the same picture as none
    thresholds: dict[str, Any]

    @property
    def words(self) -> list[str]:
        """What counts as a duplicate and why, a sentence each."""
        found = self.thresholds.get("words")
        return (
            [one for one in found if isinstance(one, str)]
            if isinstance(found, list)
            else []
        )


@dataclass(frozen=True)
class Summary:
    """A group in numbers. Only pictures that are there count, and only groups of two
    and more are one. Sizes are bytes."""

    id: int
    tier: str
    pictures: int
    undecided: int
    marked: int
    marked_bytes: int
    extra_bytes: int  # of all but the suggested keeper, if there is one
    acceptable: bool  # a keeper is suggested and there, and no decision speaks against it

    @property
    def open(self) -> bool:
        """Whether some picture waits for a decision."""
        return self.undecided > 0


@dataclass(frozen=True)
class Tally:
    """A tier in numbers."""

    tier: str
    groups: int
    open: int
    marked: int  # pictures
    marked_bytes: int
    acceptable: int  # open groups that `accept_tier()` decides
    would_mark: int  # pictures that it marks besides those that are
    would_win: int  # bytes of these

    @property
    def decided(self) -> int:
        return self.groups - self.open


@dataclass(frozen=True)
class Member:
    """A picture in a group. `score` is the cosine similarity to the group's medoid,
    `decision` what was decided in this tier or a less sure one, or that it is to go."""

    item: int
    pk: db.Key
    sha256: str
    size: int
    score: float | None
    decision: str | None


@dataclass(frozen=True)
class Group:
    """A group as it is shown: the suggested keeper first, if any, then by falling score."""

    id: int
    tier: str
    members: tuple[Member, ...]
    keeper: Member | None  # the picture that is suggested to keep
    reason: str  # why to keep it, or why none is suggested, in words

    @property
    def open(self) -> bool:
        return any(one.decision is None for one in self.members)

    @property
    def version(self) -> str:
        """Another one as soon as other pictures are in it."""
        held = sorted(f"{one.item} {one.sha256}" for one in self.members)
        return sha256(" ".join(held).encode()).hexdigest()[:16]

    def member(self, pk: db.Key) -> Member:
        """Its picture with this key. Raises GroupChanged."""
        for one in self.members:
            if one.pk == pk:
                return one
        raise GroupChanged(f"The picture {pk} is not in this group")


# Reading


@contextmanager
def _explained() -> Iterator[None]:
    """A stranger's tables may have other columns, or none."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "no such column" in str(error) or "no such table" in str(error):
            raise DatabaseError(DAMAGED) from None
        raise


def last_scan(conn: sqlite3.Connection, collection: db.Collection) -> Scan | None:
    """The last run of the finder; None before the first, or in an older schema."""
    if not db.is_current(conn):
        return None
    flat = "flat" if db.is_current(conn, since=7) else "0 as flat"
    with _explained():
        row = conn.execute(
            f"select made_at, scanned, {flat}, thresholds from _image_similarity_scans "
            "where collection_id = ?",
            (collection.id,),
        ).fetchone()
    if row is None:
        return None
    thresholds = _json(row["thresholds"])
    return Scan(
        made_at=str(row["made_at"]),
        pictures=_whole(row["scanned"]),
        flat=_whole(row["flat"]),
        thresholds=thresholds if isinstance(thresholds, dict) else {},
    )


def summaries(conn: sqlite3.Connection, collection: db.Collection) -> list[Summary]:
    """All groups in numbers, in the order of their ids."""
    if not db.is_current(conn):
        return []
    with _explained():
        shown, params = _shown_sql(
            conn,
            collection,
            "g.id, g.tier, i.size, d.item_id = g.keeper_id as keeper, "
            f"{_DECISION_HERE_SQL} as decision",
        )
        rows = conn.execute(
            f"""
            with _image_similarity_shown as materialized ({shown})
            select id, tier, count(*) as pictures, sum(decision is null) as undecided,
                sum(decision is 'mark') as marked,
                total(iif(decision is 'mark', cast(size as integer), 0)) as marked_bytes,
                total(iif(keeper, 0, cast(size as integer))) as extra_bytes,
                sum(keeper) = 1 and not sum(
                    decision is not null and decision is not iif(keeper, 'keep', 'mark')
                ) as acceptable
            from _image_similarity_shown group by id having count(*) > 1 order by id
            """,
            params,
        ).fetchall()
    return [
        Summary(
            id=row["id"],
            tier=row["tier"],
            pictures=row["pictures"],
            undecided=row["undecided"],
            marked=row["marked"],
            marked_bytes=int(row["marked_bytes"]),
            extra_bytes=int(row["extra_bytes"]),
            acceptable=bool(row["acceptable"]),
        )
        for row in rows
    ]


def tallies(groups: Iterable[Summary]) -> dict[str, Tally]:
    """The tiers in numbers, the surest first."""
    by_tier: dict[str, list[Summary]] = {tier: [] for tier in TIERS}
    for group in groups:
        by_tier[group.tier].append(group)
    found = {}
    for tier, there in by_tier.items():
        accepted = [one for one in there if one.open and one.acceptable]
        found[tier] = Tally(
            tier=tier,
            groups=len(there),
            open=sum(one.open for one in there),
            marked=sum(one.marked for one in there),
            marked_bytes=sum(one.marked_bytes for one in there),
            acceptable=len(accepted),
            would_mark=sum(one.pictures - 1 - one.marked for one in accepted),
            would_win=sum(one.extra_bytes - one.marked_bytes for one in accepted),
        )
    return found


def read_groups(
    conn: sqlite3.Connection, collection: db.Collection, ids: Iterable[int]
) -> list[Group]:
    """Groups with their pictures, in the order of `ids`, without those that are gone."""
    ids = list(ids)
    if not db.is_current(conn):
        return []
    with _explained():
        shown, params = _shown_sql(
            conn,
            collection,
            "g.id as group_id, g.tier, g.keeper_id, g.reason, d.item_id, i.pk, i.sha256, "
            f"i.size, d.score, {_DECISION_HERE_SQL} as decision",
            ids,
        )
        rows = conn.execute(shown, params).fetchall()
    by_group = defaultdict(list)
    for row in rows:
        by_group[row["group_id"]].append(row)
    return [_group(conn, collection, by_group[id]) for id in ids if len(by_group[id]) > 1]


def read_group(conn: sqlite3.Connection, collection: db.Collection, id: int) -> Group:
    """One group with its pictures. Raises GroupChanged when it is gone."""
    found = read_groups(conn, collection, [id])
    if not found:
        raise GroupChanged(
            f"There is no group {id} any more: its pictures are gone or split off, or "
            "duplicates have been looked for again"
        )
    return found[0]


def current(conn: sqlite3.Connection, collection: db.Collection) -> dict[db.Key, str]:
    """What has been decided about the pictures that are there: "keep", "mark" or "skip"
    by key, in the order of the items."""
    if not db.is_current(conn):
        return {}
    live = db.live_sql(collection, db.source_of(conn, collection))
    with _explained():
        rows = conn.execute(
            f"select i.pk, {DECISION_SQL} as decision {live} and i.pk in "
            "(select +pk from _image_similarity_decisions where collection_id = :of) "
            "order by i.id",
            {"of": collection.id},
        ).fetchall()
    return {row["pk"]: row["decision"] for row in rows if row["decision"] is not None}


def marked_rows(
    conn: sqlite3.Connection, collection: db.Collection, columns: Iterable[str]
) -> Iterator[sqlite3.Row]:
    """These columns of the source rows of all marked pictures, after the key as `pk`."""
    if not db.is_current(conn):
        return iter(())
    live = db.live_sql(collection, db.source_of(conn, collection))
    wanted = "".join(f", t.{db.quote(name)}" for name in columns)
    with _explained():
        return conn.execute(
            f"select i.pk{wanted} {live} and {DECISION_SQL} = 'mark' order by i.id"
        )


@_explained()
def group_with(
    conn: sqlite3.Connection, collection: db.Collection, pks: Iterable[db.Key]
) -> int | None:
    """The group that holds most of these pictures."""
    if not db.is_current(conn):
        return None
    row = conn.execute(
        "select d.group_id from json_each(?) j "
        "cross join _image_similarity_items i "
        "on i.collection_id = ? and i.pk = j.value "
        "cross join _image_similarity_grouped d on d.item_id = i.id "
        "group by d.group_id order by count(*) desc, d.group_id limit 1",
        (json.dumps(list(pks)), collection.id),
    ).fetchone()
    return None if row is None else row[0]


def _shown_sql(
    conn: sqlite3.Connection,
    collection: db.Collection,
    columns: str,
    ids: list[int] | None = None,
) -> tuple[str, dict[str, object]]:
    """SQL for the pictures in groups: those that are there and not split off.

    A select over groups `g`, what is grouped `d`, items `i` and source rows `t`; of all
    groups, or those with these ids.
    """
    live = db.live_sql(collection, db.source_of(conn, collection), _GROUPED)
    apart = (
        "select json_extract(value, '$[0]'), json_extract(value, '$[1]') "
        "from json_each(:apart)"
    )
    sql = (
        f"select {columns} {live} and g.collection_id = :of and g.tier in {TIERS} "
        f"and (d.group_id, d.item_id) not in ({apart})"
    )
    params: dict[str, object] = {
        "of": collection.id,
        "apart": json.dumps(_split_off(conn, collection)),
    }
    if ids is not None:
        sql += " and g.id in (select value from json_each(:ids))"
        params["ids"] = json.dumps(ids)
    return sql, params


def _split_off(
    conn: sqlite3.Connection, collection: db.Collection
) -> list[tuple[int, int]]:
    """(group, item) of pictures that were split off others that are in the group still."""
    splits = conn.execute(
        "select d.group_id, d.item_id, x.other from _image_similarity_decisions x "
        "cross join _image_similarity_items i on i.collection_id = x.collection_id "
        "and i.pk = x.pk and i.sha256 = x.sha256 "
        "cross join _image_similarity_grouped d on d.item_id = i.id "
        "where x.collection_id = ? and x.decision = 'apart' order by x.id",
        (collection.id,),
    ).fetchall()
    if not splits:
        return []
    live = db.live_sql(collection, db.source_of(conn, collection), _GROUPED)
    members: dict[int, dict[int, db.Key]] = defaultdict(dict)
    for row in conn.execute(
        f"select g.id, i.id as item, i.pk {live} "
        "and g.id in (select value from json_each(:ids))",
        {"ids": json.dumps(sorted({row["group_id"] for row in splits}))},
    ):
        members[row["id"]][row["item"]] = row["pk"]
    gone = []
    for row in splits:
        group, item = members[row["group_id"]], row["item_id"]
        others = {pk for other, pk in group.items() if other != item}
        if item in group and others.intersection(keys_in(row["other"])):
            del group[item]
            gone.append((row["group_id"], item))
    return gone


def _group(
    conn: sqlite3.Connection, collection: db.Collection, rows: list[sqlite3.Row]
) -> Group:
    first = rows[0]
    members = [
        Member(
            item=row["item_id"],
            pk=row["pk"],
            sha256=str(row["sha256"]),
            size=_whole(row["size"]),
            score=_score(row["score"]),
            decision=row["decision"],
        )
        for row in rows
    ]
    keeper, reason = first["keeper_id"], first["reason"]
    facts: dict[int, Facts] = {}
    if keeper not in (db.NO_ITEM, *(one.item for one in members)):  # gone: suggest anew
        facts = facts_of(conn, collection, [one.item for one in members])
    if facts:
        suggested, reason = suggest_keeper(list(facts.values()), first["tier"])
        keeper = suggested and suggested.item_id
    members.sort(key=lambda one: (one.item != keeper, -(one.score or 0), one.item))
    return Group(
        id=first["group_id"],
        tier=first["tier"],
        members=tuple(members),
        keeper=members[0] if members[0].item == keeper else None,
        reason=reason if isinstance(reason, str) else "",
    )


def _json(text: object) -> object:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _score(value: object) -> float | None:
    right = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if right else None


# Deciding. Call these inside a transaction.


def decide(
    conn: sqlite3.Connection,
    collection: db.Collection,
    group: Group,
    action: str,
    pk: db.Key | None = None,
    actor: str | None = None,
) -> dict[db.Key, str]:
    """Do one of ACTIONS; returns what it changed: the new decisions by key.

    "accept" keeps the suggested picture and "keep" the one with the key `pk`; both mark
    all others. "mark" and "unmark" change `pk` alone, and keep what was undecided. "skip"
    leaves everything as it is. Raises GroupChanged for a picture that is not in the group,
    CollectionError for an "accept" where nothing is suggested.
    """
    wanted: dict[Member, str] = {}
    if action == "accept" and group.keeper is None:
        raise CollectionError("Nothing is suggested for this group. Choose what to keep")
    if action in ("accept", "keep"):
        chosen = group.keeper if action == "accept" else group.member(_given(pk))
        wanted = {one: "keep" if one is chosen else "mark" for one in group.members}
    elif action in ("mark", "unmark"):
        chosen = group.member(_given(pk))
        wanted = {one: "keep" for one in group.members if one.decision is None}
        wanted[chosen] = "mark" if action == "mark" else "keep"
    elif action == "skip":
        wanted = {one: "skip" for one in group.members if one.decision is None}
    else:
        raise CollectionError(f"There is no action {action!r}")
    changed = {one: new for one, new in wanted.items() if new != one.decision}
    _put(conn, collection, group.tier, changed, actor)
    return {one.pk: new for one, new in changed.items()}


def split(
    conn: sqlite3.Connection,
    collection: db.Collection,
    group: Group,
    pk: db.Key,
    actor: str | None = None,
) -> None:
    """Take a picture out of its group: it is no duplicate of the others.

    Raises GroupChanged for a picture that is not in the group.
    """
    chosen = group.member(pk)
    others = [one.pk for one in group.members if one is not chosen]
    _put(conn, collection, group.tier, {chosen: "apart"}, actor, json.dumps(others))


def accept_tier(
    conn: sqlite3.Connection,
    collection: db.Collection,
    tier: str,
    actor: str | None = None,
) -> dict[db.Key, str]:
    """Accept what is suggested for every open group of a tier, as one step.

    A group stays open if nothing is suggested, an earlier decision speaks against it, or
    the picture that was suggested is gone. Returns the new decisions by key.
    """
    ids = [
        one.id
        for one in summaries(conn, collection)
        if one.tier == tier and one.open and one.acceptable
    ]
    changed = {
        one: "keep" if one is group.keeper else "mark"
        for group in read_groups(conn, collection, ids)
        for one in group.members
        if group.keeper is not None and one.decision is None
    }
    _put(conn, collection, tier, changed, actor)
    return {one.pk: new for one, new in changed.items()}


@_explained()
def undo(conn: sqlite3.Connection, collection: db.Collection) -> list[db.Key]:
    """Take the newest step back, whoever made it; the keys of its pictures."""
    rows = conn.execute(
        "delete from _image_similarity_decisions where collection_id = :of and step = "
        "(select max(step) from _image_similarity_decisions where collection_id = :of) "
        "returning pk",
        {"of": collection.id},
    ).fetchall()
    return [row[0] for row in rows]


def steps(conn: sqlite3.Connection, collection: db.Collection) -> int:
    """How many steps can be taken back."""
    if not db.is_current(conn):
        return 0
    sql = (
        "select count(distinct step) from _image_similarity_decisions "
        "where collection_id = ?"
    )
    with _explained():
        return conn.execute(sql, (collection.id,)).fetchone()[0]


def _given(pk: db.Key | None) -> db.Key:
    if pk is None:
        raise CollectionError("Say which picture: pk is missing")
    return pk


@_explained()
def _put(
    conn: sqlite3.Connection,
    collection: db.Collection,
    tier: str,
    decisions: dict[Member, str],
    actor: str | None,
    other: str | None = None,
) -> None:
    step = conn.execute(
        "select coalesce(max(cast(step as integer)), 0) + 1 "
        "from _image_similarity_decisions where collection_id = ?",
        (collection.id,),
    ).fetchone()[0]
    conn.executemany(
        "insert into _image_similarity_decisions "
        "(collection_id, step, pk, sha256, decision, tier, other, actor) "
        "values (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (collection.id, step, one.pk, one.sha256, decision, tier, other, actor)
            for one, decision in decisions.items()
        ],
    )
