"""Groups of duplicates in three tiers, found, stored and read.

1. `identical`: files with the same SHA-256.
2. `same`: the same picture, scaled, recompressed or lightly edited: embedding, perceptual
   hash and colours agree.
3. `alike`: look-alikes by the embedding alone.

Each tier looks at what the one before leaves: of a group only its keeper goes on, so a
group never repeats another, and what is in one tier together is in no other together. What
has been set apart by hand (a decision `apart`) stays apart in every tier.

Reading and comparing take place before anything is replaced: a run that is stopped leaves
the last result as it was. Decisions are never touched.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..encoders import Encoder
from ..errors import CollectionError
from . import hashes, originals
from .calibrate import (
    BITS,
    COLOURS,
    Copies,
    Thresholds,
    choose_thresholds,
    copies_elsewhere,
    measure_copies,
    stored_copies,
)
from .facts import Facts, facts_of
from .groups import Apart, Group, Linked, groups_of
from .keeper import suggest_keeper
from .looking import Looker
from .pairs import Pairs, cosines, pairs_by_hash, similar_pairs
from .vectors import Say, Stopped, Vectors, read_vectors

if TYPE_CHECKING:
    import numpy as np

# A picture's newest decision that says what becomes of it, as SQL over items `i`.
DECISION_SQL = (
    "(select x.decision from _image_similarity_decisions x "
    "where x.collection_id = i.collection_id and x.pk = i.pk and x.sha256 = i.sha256 "
    "and x.decision in ('keep', 'mark', 'skip') order by x.id desc limit 1)"
)
TIERS = ("identical", "same", "alike")
KEEPER_GONE = "the picture that would be kept has gone meanwhile"
TIERS_IN_WORDS = {
    "identical": "identical files",
    "same": "the same picture",
    "alike": "look-alikes",
}


@dataclass(frozen=True)
class DuplicateGroup:
    """Duplicates of each other. `scores` are cosines to the medoid, by key.

    `keeper` is None if nothing tells which picture to keep.
    """

    tier: str
    keeper: db.Key | None
    reason: str
    medoid: db.Key
    scores: dict[db.Key, float]

    def as_json(self) -> dict[str, Any]:
        pictures = [{"pk": pk, "score": score} for pk, score in self.scores.items()]
        return {
            "tier": self.tier,
            "size": len(self.scores),
            "keeper": self.keeper,
            "reason": self.reason,
            "medoid": self.medoid,
            "pictures": pictures,
        }


@dataclass(frozen=True)
class Duplicates:
    """What one run found. Groups come by tier, the biggest first."""

    thresholds: Thresholds
    groups: list[DuplicateGroup]
    scanned: int
    flat: int  # pictures that show nothing: they are the same picture as none
    unhashed: int  # pictures that neither thumbnail nor file could be read of
    seconds: float

    def of_tier(self, tier: str) -> list[DuplicateGroup]:
        return [group for group in self.groups if group.tier == tier]

    def as_json(self) -> dict[str, Any]:
        return {
            "scanned": self.scanned,
            "flat": self.flat,
            "unhashed": self.unhashed,
            "seconds": round(self.seconds, 2),
            "thresholds": {**asdict(self.thresholds), "words": self.thresholds.words},
            "tiers": {
                tier: {
                    "groups": len(self.of_tier(tier)),
                    "pictures": sum(len(group.scores) for group in self.of_tier(tier)),
                }
                for tier in TIERS
            },
            "groups": [group.as_json() for group in self.groups],
        }


class _Found(NamedTuple):
    """A group and its keeper, if one is suggested, as places: rows of all vectors."""

    tier: str
    group: Group
    keeper: int | None
    reason: str


def find_duplicates(
    conn: sqlite3.Connection,
    collection: db.Collection,
    *,
    threshold: float | None = None,
    encoder: Callable[[], Encoder | None] = lambda: None,
    say: Say = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Duplicates:
    """Look for duplicates and store the groups in place of earlier ones.

    `threshold` is the least cosine of look-alikes; None: measured, see `calibrate.py`.
    `encoder` is asked for the collection's encoder when copies have to be embedded, and
    may give None. Raises CollectionError for a threshold that is no cosine or a collection
    without vectors, Stopped when `stop()` turns true.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise CollectionError(f"The threshold is a cosine between 0 and 1, not {threshold}")
    started = time.perf_counter()
    db.migrate(conn)
    with db.snapshot(conn):
        vectors = read_vectors(conn, collection, say=say, stop=stop)
        items = _with_sha256(conn, collection, vectors.ids)
    if not items:
        raise CollectionError(f"{collection.table!r} has no pictures with embeddings")
    prints = hashes.stored_prints(conn, collection, items, say=say, stop=stop)
    copies = _copies(conn, collection, items, encoder, say, stop)
    thresholds = choose_thresholds(vectors.vectors, prints, copies, threshold)
    with hashes.Decoders() as decoders:
        looker = Looker(conn, collection, items, decoders, say, stop)
        scan = _Scan(conn, collection, vectors, looker, prints, thresholds, say, stop)
        found = [*scan.identical(), *scan.same(), *scan.alike()]
    if stop():
        raise Stopped
    flat = int((prints.known & prints.flat).sum())
    found = _store(conn, collection, vectors, items, found, thresholds, flat)
    return Duplicates(
        thresholds=thresholds,
        groups=[_in_keys(one, vectors.pks) for one in found],
        scanned=len(items),
        flat=flat,
        unhashed=int((~prints.known).sum()),
        seconds=time.perf_counter() - started,
    )


def _copies(
    conn: sqlite3.Connection,
    collection: db.Collection,
    items: dict[int, str],
    encoder: Callable[[], Encoder | None],
    say: Say,
    stop: Callable[[], bool],
) -> Copies:
    """How alike copies are: as measured before, now, or elsewhere."""
    count = len(items)
    row = conn.execute(
        "select thresholds from _image_similarity_scans where collection_id = ?",
        (collection.id,),
    ).fetchone()
    before = row and stored_copies(row[0], collection.fingerprint, count)
    if before:
        return before
    loaded = encoder()
    measured = loaded and measure_copies(
        conn, collection, items, loaded, say=say, stop=stop
    )
    return measured or copies_elsewhere(collection, count)


class _Scan:
    """One run: the tiers one after the other, each over what the last one leaves."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        collection: db.Collection,
        vectors: Vectors,
        looker: Looker,
        prints: hashes.Prints,
        thresholds: Thresholds,
        say: Say,
        stop: Callable[[], bool],
    ) -> None:
        import numpy as np

        self.conn, self.collection = conn, collection
        self.ids, self.pks, self.vectors = vectors
        self.looker, self.sha256 = looker, looker.items
        self.prints, self.thresholds = prints, thresholds
        self.say, self.stop = say, stop
        self.apart = _set_apart(conn, collection, vectors, self.sha256)
        self.decided = _decided(conn, collection)
        self.left = np.arange(len(self.ids))  # places that the next tier looks at
        self.stands_for: dict[int, list[int]] = {}  # of keepers: all that they stand for

    def identical(self) -> list[_Found]:
        import numpy as np

        places = self.left
        numbers: dict[str, int] = {}  # of hashes, which may be text of any length
        digests = np.array(
            [
                numbers.setdefault(self.sha256[item], len(numbers))
                for item in self.ids.tolist()
            ]
        )
        order = np.argsort(digests, kind="stable")
        _, starts = np.unique(digests[order], return_index=True)
        ends = order[np.repeat(starts, np.diff(np.r_[starts, len(order)]))]
        others = ends != order
        pairs = Pairs(ends[others], order[others], np.ones(others.sum(), np.float32))

        def linked(place: int, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return digests[others] == digests[place], np.ones(len(others), np.float32)

        return self._tier("identical", places, self._vectors(places), pairs, linked)

    def same(self) -> list[_Found]:
        import numpy as np

        usable = self.prints.known & ~self.prints.flat
        places = self.left[usable[self.left]]
        prints = hashes.Prints(*(column[places] for column in self.prints))
        vectors, least = self._vectors(places), self.thresholds.same

        def are_same(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            bits = hashes.bits_apart(prints.hashes[a], prints.hashes[b])
            colours = hashes.colours_apart(prints.colours[a], prints.colours[b])
            same = (bits <= BITS) & (colours <= COLOURS)
            score = np.zeros(len(a), np.float32)
            score[same] = np.minimum(1, cosines(vectors, a[same], b[same]))
            same &= score >= least
            same[same] = self.looker.same(places[a[same]], places[b[same]])
            return same | (a == b), score

        def linked(place: int, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return are_same(np.full(len(others), place), others)

        pairs = pairs_by_hash(prints.hashes, BITS, are_same, say=self.say, stop=self.stop)
        found = self._tier("same", places, vectors, pairs, linked)
        self._keep_out(places[pairs.a], places[pairs.b])
        return found

    def alike(self) -> list[_Found]:
        import numpy as np

        places, least = self.left, self.thresholds.alike
        vectors = self._vectors(places)
        pairs = similar_pairs(vectors, least, say=self.say, stop=self.stop)

        def linked(place: int, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            score = vectors[others] @ vectors[place]
            score[others == place] = 1  # whatever the rounding
            return score >= least, np.minimum(score, 1)

        return self._tier("alike", places, vectors, pairs, linked)

    def _vectors(self, places: np.ndarray) -> np.ndarray:
        """The vectors of some places; of all, without a copy."""
        return self.vectors if len(places) == len(self.vectors) else self.vectors[places]

    def _tier(
        self,
        tier: str,
        places: np.ndarray,
        vectors: np.ndarray,
        pairs: Pairs,
        linked: Linked,
    ) -> list[_Found]:
        """Groups of these pairs, rows of `places`. Their keepers go on to the next tier."""
        import numpy as np

        groups = [
            Group(places[group.members], int(places[group.medoid]), group.scores)
            for group in groups_of(pairs, vectors, linked, self._apart_here(places))
        ]
        members = [int(self.ids[place]) for group in groups for place in group.members]
        facts = self._facts(tier, members, groups)
        found, gone = [], []
        for group in groups:
            by_item = {int(self.ids[place]): int(place) for place in group.members}
            known = [
                facts[item]
                for item, place in by_item.items()
                if item in facts and self._is_still(facts[item], place)
            ]
            if len(known) < 2:  # rows were deleted meanwhile
                continue
            keeper, reason = self._keeper(known, tier)
            found.append(_Found(tier, group, keeper and by_item[keeper.item_id], reason))
            place = group.medoid if keeper is None else by_item[keeper.item_id]
            others = [other for other in by_item.values() if other != place]
            gone += others
            self.stands_for[place] = [
                one for other in [place, *others] for one in self._stood_for(other)
            ]
        self.left = self.left[~np.isin(self.left, np.array(gone, np.int64))]
        return found

    def _facts(
        self, tier: str, members: list[int], groups: list[Group]
    ) -> dict[int, Facts]:
        """What is known of the members of these groups, once their originals were read."""
        if tier == "identical":
            return facts_of(self.conn, self.collection, members)
        originals.look(self.looker, members)
        facts = facts_of(self.conn, self.collection, members)
        if tier == "alike":
            return facts
        for group in groups:
            there = [int(self.ids[place]) for place in group.members]
            known = [facts[item] for item in there if item in facts]
            originals.compare(self.looker, known)
            if self.stop():
                raise Stopped
        return facts_of(self.conn, self.collection, members)

    def _is_still(self, facts: Facts, place: int) -> bool:
        """Whether facts, read later, are of the picture that was there at the start."""
        there = (self.pks[place], self.sha256[int(self.ids[place])])
        return (facts.pk, facts.sha256) == there

    def _keeper(self, known: list[Facts], tier: str) -> tuple[Facts | None, str]:
        """The picture to keep and why: nothing is suggested against what was decided."""
        kept = [one for one in known if self.decided.get(one.item_id) == "keep"]
        if kept:
            return suggest_keeper(kept, tier)[0] or kept[
                0
            ], "somebody has decided to keep it"
        unmarked = [one for one in known if self.decided.get(one.item_id) != "mark"]
        keeper, reason = suggest_keeper(unmarked or known, tier)
        return keeper, reason or "the others are marked already"

    def _stood_for(self, place: int) -> list[int]:
        return self.stands_for.get(place, [place])

    def _apart_here(self, places: np.ndarray) -> Apart:
        """Which rows of `places` were set apart, themselves or in what they stand for."""
        if not self.apart:
            return {}
        row_of = {
            one: row
            for row, place in enumerate(places.tolist())
            for one in self._stood_for(place)
        }
        apart = defaultdict(set)
        for a, others in self.apart.items():
            for b in others:
                if a in row_of and b in row_of and row_of[a] != row_of[b]:
                    apart[row_of[a]].add(row_of[b])
        return {row: frozenset(others) for row, others in apart.items()}

    def _keep_out(self, a: np.ndarray, b: np.ndarray) -> None:
        """Pairs that no group took and that are left: no later tier has them either."""
        import numpy as np

        left = np.isin(a, self.left) & np.isin(b, self.left)
        for one, other in zip(a[left].tolist(), b[left].tolist(), strict=True):
            self.apart[one].add(other)
            self.apart[other].add(one)


def _with_sha256(
    conn: sqlite3.Connection, collection: db.Collection, ids: np.ndarray
) -> dict[int, str]:
    """These items, int64 (n,), in their order, with the SHA-256 of their pictures."""
    rows = conn.execute(
        "select id, cast(sha256 as text) from _image_similarity_items "
        "where collection_id = ?",
        (collection.id,),
    )
    found = dict(rows.fetchall())
    return {item: found[item] for item in ids.tolist()}


def _decided(conn: sqlite3.Connection, collection: db.Collection) -> dict[int, str]:
    """The newest decision about each picture that has one: "keep", "mark" or "skip"."""
    sql = (
        f"select i.id, {DECISION_SQL} from _image_similarity_items i "
        "where i.collection_id = :of and i.pk in "
        "(select +pk from _image_similarity_decisions where collection_id = :of)"
    )
    return dict(conn.execute(sql, {"of": collection.id}).fetchall())


def _set_apart(
    conn: sqlite3.Connection,
    collection: db.Collection,
    vectors: Vectors,
    sha256: dict[int, str],
) -> defaultdict[int, set[int]]:
    """Places that somebody has set apart, both ways.

    Void are decisions about a file that has changed since, and what is no decision of ours.
    """
    place_of = {pk: place for place, pk in enumerate(vectors.pks)}
    ids = vectors.ids.tolist()
    apart: defaultdict[int, set[int]] = defaultdict(set)
    rows = conn.execute(
        "select pk, sha256, other from _image_similarity_decisions "
        "where collection_id = ? and decision = 'apart'",
        (collection.id,),
    )
    for pk, digest, other in rows:
        place = place_of.get(pk)
        if place is None or sha256[ids[place]] != digest:
            continue
        for key in keys_in(other):
            there = place_of.get(key)
            if there not in (None, place):
                apart[place].add(there)
                apart[there].add(place)
    return apart


def keys_in(text: object) -> list[db.Key]:
    """The keys in a decision's column `other`; none in what is not a JSON array."""
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return []
    keys = found if isinstance(found, list) else []
    return [key for key in keys if isinstance(key, (int, float, str))]


# What was found


def _store(
    conn: sqlite3.Connection,
    collection: db.Collection,
    vectors: Vectors,
    items: dict[int, str],
    found: list[_Found],
    thresholds: Thresholds,
    flat: int,
) -> list[_Found]:
    """Replace the groups of the last run; what was stored, without what has gone since."""
    ids = vectors.ids.tolist()
    with db.transaction(conn):
        there = _still_there(conn, collection, vectors, items)
        found = [left for one in found if (left := _without_gone(one, there)) is not None]
        db.clear(conn, collection, "grouped", "groups", "scans")
        conn.execute(
            "insert into _image_similarity_scans "
            "(collection_id, thresholds, scanned, flat) values (?, ?, ?, ?)",
            (collection.id, thresholds.to_json(), len(ids), flat),
        )
        for tier, group, keeper, reason in found:
            members = group.members.tolist()
            number = conn.execute(
                "insert into _image_similarity_groups (collection_id, tier, size, "
                "medoid_id, keeper_id, reason) values (?, ?, ?, ?, ?, ?) returning id",
                (
                    collection.id,
                    tier,
                    len(members),
                    ids[group.medoid],
                    db.NO_ITEM if keeper is None else ids[keeper],
                    reason,
                ),
            ).fetchone()[0]
            conn.executemany(
                "insert into _image_similarity_grouped values (?, ?, ?, ?)",
                (
                    (number, ids[place], collection.id, float(score))
                    for place, score in zip(members, group.scores, strict=True)
                ),
            )
    return found


def _still_there(
    conn: sqlite3.Connection,
    collection: db.Collection,
    vectors: Vectors,
    items: dict[int, str],
) -> np.ndarray:
    """At which places the same picture of the same row is still: bool (n,).

    The ids of those deleted meanwhile may have been given out again, and so may the
    collection's: raises CollectionError.
    """
    import numpy as np

    if collection not in db.collections(conn, collection.table):
        raise CollectionError(
            f"Another run has changed the embeddings of {collection.table!r} meanwhile: "
            "run this again"
        )
    rows = conn.execute(
        "select id, pk, cast(sha256 as text) from _image_similarity_items "
        "where collection_id = ?",
        (collection.id,),
    )
    now = {item: (pk, sha256) for item, pk, sha256 in rows}
    before = zip(items.items(), vectors.pks, strict=True)
    return np.array([now.get(item) == (pk, sha) for (item, sha), pk in before], bool)


def _without_gone(found: _Found, there: np.ndarray) -> _Found | None:
    """A group without the pictures that have gone; None if fewer than two are left."""
    group, keeper = found.group, found.keeper
    left = there[group.members]
    if left.all():
        return found
    if left.sum() < 2:
        return None
    members = group.members[left]
    medoid = group.medoid if there[group.medoid] else int(members[0])
    rest = Group(members, medoid, group.scores[left])
    if keeper is None or there[keeper]:
        return found._replace(group=rest)
    return found._replace(group=rest, keeper=None, reason=KEEPER_GONE)


def _in_keys(found: _Found, pks: list[db.Key]) -> DuplicateGroup:
    scores = zip(found.group.members.tolist(), found.group.scores.tolist(), strict=True)
    return DuplicateGroup(
        tier=found.tier,
        keeper=None if found.keeper is None else pks[found.keeper],
        reason=found.reason,
        medoid=pks[found.group.medoid],
        scores={pks[place]: round(score, 4) for place, score in scores},
    )
