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
from . import hashes
from .calibrate import (
    TWIN_BITS,
    TWIN_COLOURS,
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
TIERS_IN_WORDS = {
    "identical": "identical files",
    "same": "the same picture",
    "alike": "look-alikes",
}


@dataclass(frozen=True)
class DuplicateGroup:
    """Duplicates of each other. `scores` are cosines to the medoid, by key."""

    tier: str
    keeper: db.Key
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
    unhashed: int  # pictures that neither thumbnail nor file could be read of
    seconds: float

    def of_tier(self, tier: str) -> list[DuplicateGroup]:
        return [group for group in self.groups if group.tier == tier]

    def as_json(self) -> dict[str, Any]:
        return {
            "scanned": self.scanned,
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
    """A group and its keeper, as places: rows of all vectors."""

    tier: str
    group: Group
    keeper: int
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
    vectors = read_vectors(conn, collection, say=say, stop=stop)
    if not len(vectors.ids):
        raise CollectionError(f"{collection.table!r} has no pictures with embeddings")
    prints = hashes.stored_prints(conn, collection, vectors.ids, say=say, stop=stop)
    copies = _copies(conn, collection, vectors, encoder, say, stop)
    thresholds = choose_thresholds(vectors.vectors, prints, copies, threshold)
    scan = _Scan(conn, collection, vectors, prints, thresholds, say, stop)
    found = [*scan.identical(), *scan.same(), *scan.alike()]
    if stop():
        raise Stopped
    _store(conn, collection, vectors, found, thresholds)
    return Duplicates(
        thresholds=thresholds,
        groups=[_in_keys(one, vectors.pks) for one in found],
        scanned=len(vectors.ids),
        unhashed=int((~prints.known).sum()),
        seconds=time.perf_counter() - started,
    )


def _copies(
    conn: sqlite3.Connection,
    collection: db.Collection,
    vectors: Vectors,
    encoder: Callable[[], Encoder | None],
    say: Say,
    stop: Callable[[], bool],
) -> Copies:
    """How alike copies are: as measured before, now, or elsewhere."""
    count = len(vectors.ids)
    row = conn.execute(
        "select thresholds from _image_similarity_scans where collection_id = ?",
        (collection.id,),
    ).fetchone()
    before = row and stored_copies(row[0], collection.fingerprint, count)
    if before:
        return before
    loaded = encoder()
    measured = loaded and measure_copies(
        conn, collection, vectors.ids, loaded, say=say, stop=stop
    )
    return measured or copies_elsewhere(collection, count)


class _Scan:
    """One run: the tiers one after the other, each over what the last one leaves."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        collection: db.Collection,
        vectors: Vectors,
        prints: hashes.Prints,
        thresholds: Thresholds,
        say: Say,
        stop: Callable[[], bool],
    ) -> None:
        import numpy as np

        self.conn, self.collection = conn, collection
        self.ids, self.vectors = vectors.ids, vectors.vectors
        self.prints, self.thresholds = prints, thresholds
        self.say, self.stop = say, stop
        self.sha256 = _hashes_by_id(conn, collection)
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

        places = self.left[self.prints.known[self.left]]
        prints = hashes.Prints(*(column[places] for column in self.prints))
        vectors, limits = self._vectors(places), self.thresholds
        flat = hashes.are_flat(prints.colours)

        def are_same(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            bits = hashes.bits_apart(prints.hashes[a], prints.hashes[b])
            colours = hashes.colours_apart(prints.colours[a], prints.colours[b])
            near = (bits <= limits.bits) & (colours <= limits.colours)
            twins = (bits <= TWIN_BITS) & (colours <= TWIN_COLOURS) & ~flat[a] & ~flat[b]
            score = np.zeros(len(a), np.float32)
            score[near] = np.minimum(1, cosines(vectors, a[near], b[near]))
            least = np.where(twins, min(limits.related, limits.same), limits.same)
            return near & (score >= least), score

        def linked(place: int, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return are_same(np.full(len(others), place), others)

        pairs = pairs_by_hash(
            prints.hashes, limits.bits, are_same, say=self.say, stop=self.stop
        )
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
        facts = facts_of(self.conn, self.collection, members)
        found, gone = [], []
        for group in groups:
            by_item = {int(self.ids[place]): int(place) for place in group.members}
            known = [facts[item] for item in by_item if item in facts]
            if len(known) < 2:  # rows were deleted meanwhile
                continue
            keeper, reason = self._keeper(known)
            place = by_item[keeper.item_id]
            found.append(_Found(tier, group, place, reason))
            others = [other for other in by_item.values() if other != place]
            gone += others
            self.stands_for[place] = [
                one for other in [place, *others] for one in self._stood_for(other)
            ]
        self.left = self.left[~np.isin(self.left, np.array(gone, np.int64))]
        return found

    def _keeper(self, known: list[Facts]) -> tuple[Facts, str]:
        """The picture to keep and why: nothing is suggested against what was decided."""
        kept = [one for one in known if self.decided.get(one.item_id) == "keep"]
        if kept:
            return suggest_keeper(kept)[0], "somebody has decided to keep it"
        unmarked = [one for one in known if self.decided.get(one.item_id) != "mark"]
        keeper, reason = suggest_keeper(unmarked or known)
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


def _hashes_by_id(conn: sqlite3.Connection, collection: db.Collection) -> dict[int, str]:
    rows = conn.execute(
        "select id, cast(sha256 as text) from _image_similarity_items "
        "where collection_id = ?",
        (collection.id,),
    )
    return dict(rows.fetchall())


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
    found: list[_Found],
    thresholds: Thresholds,
) -> None:
    """Replace the groups of the last run."""
    ids = vectors.ids.tolist()
    with db.transaction(conn):
        db.clear(conn, collection, "grouped", "groups", "scans")
        conn.execute(
            "insert into _image_similarity_scans (collection_id, thresholds, scanned) "
            "values (?, ?, ?)",
            (collection.id, thresholds.to_json(), len(ids)),
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
                    ids[keeper],
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


def _in_keys(found: _Found, pks: list[db.Key]) -> DuplicateGroup:
    scores = zip(found.group.members.tolist(), found.group.scores.tolist(), strict=True)
    return DuplicateGroup(
        tier=found.tier,
        keeper=pks[found.keeper],
        reason=found.reason,
        medoid=pks[found.group.medoid],
        scores={pks[place]: round(score, 4) for place, score in scores},
    )
