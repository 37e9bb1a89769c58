"""What is known of which pictures belong together: a label column, what people decided
about duplicates, and which pictures they asked with.

Each of these is a *source* that puts pictures into classes, and says nothing of others:

    column      pictures with the same value are alike, with another value are not
    decisions   of a group of duplicates of which some are marked to go, those that are
                marked or kept are alike. What is in no group is like nothing else. What
                was split off a group ("apart") is not like the others in it
    feedback    pictures that one saved or logged question asks for are alike, and not
                like those it asks less of. Questions with a picture in common are about
                the same; others are taken to be about something else
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import parse_qs

import numpy as np
from datasette.utils import urlsafe_components
from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError
from ..explore.decisions import read_groups, summaries
from ..explore.duplicates import keys_in
from ..explore.questions import saved_questions
from ..explore.vectors import Vectors
from ..query import split_weight

NO_PAIRS = np.zeros((0, 2), np.int64)
MOST_LOGGED = 10_000  # different questions of the log, the newest
LENGTH = 10_000  # characters of a query string


@dataclass(frozen=True)
class Labels:
    """Classes by source; places are rows of the matrix of vectors.

    `classes` int64 (sources, n), -1 where a source says nothing. Two pictures are alike if
    any source says so, and not if any knows both and none says so. `apart` int64 (a, 2) are
    pairs that are not alike whatever the classes say. `words` say what each source is.
    """

    classes: np.ndarray
    apart: np.ndarray
    words: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many pictures have others in their class."""
        together = [one for source in self.classes for one in members(source)]
        together = [one for one in together if len(one) > 1]
        return len(np.unique(np.concatenate(together))) if together else 0

    def __str__(self) -> str:
        return " and ".join(self.words)

    def only(self, places: np.ndarray) -> Labels:
        """What is known of these places; places stay what they were."""
        kept = np.zeros(self.classes.shape[1], bool)
        kept[places] = True
        return replace(
            self,
            classes=np.where(kept, self.classes, -1),
            apart=self.apart[kept[self.apart].all(axis=1)],
        )

    def pairs(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of places (b,): which are alike, and of which is known whether they are.

        Both bool (b, b); a picture is not compared with itself.
        """
        some = self.classes[:, places]
        known = some >= 0
        both = known[:, :, None] & known[:, None]
        alike = (both & (some[:, :, None] == some[:, None])).any(axis=0)
        comparable = both.any(axis=0)
        if len(self.apart):
            count = self.classes.shape[1]
            coded = np.concatenate([self.apart, self.apart[:, ::-1]]) @ [count, 1]
            apart = np.isin(places[:, None] * count + places, coded)
            alike &= ~apart
            comparable |= apart
        np.fill_diagonal(alike, False)
        np.fill_diagonal(comparable, False)
        return alike, comparable

    def check(self) -> None:
        """Raises CollectionError where there is nothing to learn from."""
        sizes = [np.bincount(one[one >= 0]) for one in self.classes]
        if not any((one > 1).any() for one in sizes):
            raise CollectionError(
                f"There is nothing to learn from: by {self}, no two pictures belong "
                "together"
            )
        if not len(self.apart) and not any((one > 0).sum() > 1 for one in sizes):
            raise CollectionError(
                f"There is nothing to learn from: by {self}, all pictures are alike. It "
                "takes two classes to learn what tells them apart"
            )


def members(classes: np.ndarray) -> list[np.ndarray]:
    """The places of every class, of classes int64 (n,), -1 for none."""
    order = classes.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1))
    return np.split(order, starts)[1:]


def read_labels(
    conn: sqlite3.Connection,
    collection: db.Collection,
    vectors: Vectors,
    *,
    column: str | None = None,
    decisions: bool = False,
    feedback: bool = False,
) -> Labels:
    """What these sources know of the pictures with these vectors.

    Raises CollectionError for a column that the table lacks, where none of the sources is
    asked for, and where one that is says nothing.
    """
    sources, apart, words = [], [NO_PAIRS], []
    if column is not None:
        sources.append(_column(conn, collection, vectors, column))
        words.append(column)
    for wanted, name, read in (
        (decisions, "decisions on duplicates", _decisions),
        (feedback, "feedback", _feedback),
    ):
        if wanted:
            classes, pairs = read(conn, collection, vectors)
            if not len(pairs) and not (np.bincount(classes[classes >= 0]) > 1).any():
                raise CollectionError(f"There is nothing to learn from: no {name}")
            sources.append(classes)
            apart.append(pairs)
            words.append(name)
    if not sources:
        raise CollectionError(
            "Say what is to be learned: a column of labels, decisions or feedback"
        )
    return Labels(np.stack(sources), np.concatenate(apart), tuple(words))


# A column


def _column(
    conn: sqlite3.Connection, collection: db.Collection, vectors: Vectors, column: str
) -> np.ndarray:
    """Classes by the values of a column; none where that is empty or no text."""
    source = db.source_of(conn, collection)
    label = source.label_sql(column, "t")
    rows = conn.execute(f"select i.id, {label} {db.live_sql(collection, source)}")
    found = {item: value for item, value in rows if value is not None}
    numbers = {value: number for number, value in enumerate(sorted(set(found.values())))}
    ids = vectors.ids.tolist()
    return np.array([numbers[found[i]] if i in found else -1 for i in ids], np.int64)


# Decisions about duplicates


def _decisions(
    conn: sqlite3.Connection, collection: db.Collection, vectors: Vectors
) -> tuple[np.ndarray, np.ndarray]:
    """Classes, and pairs set apart."""
    place_of = {pk: place for place, pk in enumerate(vectors.pks)}
    joined = _Joined(len(vectors.pks))
    unsure: set[int] = set()
    ids = [group.id for group in summaries(conn, collection)]
    for group in read_groups(conn, collection, ids):
        said = {place_of[m.pk]: m.decision for m in group.members if m.pk in place_of}
        same = [place for place, one in said.items() if one in ("keep", "mark")]
        if "mark" in said.values() and len(same) > 1:
            joined.join(same)
        unsure.update(said)
    classes = joined.classes()
    # What is in a group that nobody has decided may be a duplicate, or not.
    classes[[place for place in unsure if place not in joined.joined]] = -1
    return classes, _apart(conn, collection, place_of)


def _apart(
    conn: sqlite3.Connection, collection: db.Collection, place_of: dict[db.Key, int]
) -> np.ndarray:
    """Pairs of places; decisions about a file that has changed since are void."""
    if not db.is_current(conn, since=3):
        return NO_PAIRS
    rows = conn.execute(
        "select x.pk, x.other from _image_similarity_decisions x "
        "join _image_similarity_items i on i.collection_id = x.collection_id "
        "and i.pk = x.pk and i.sha256 = x.sha256 "
        "where x.collection_id = ? and x.decision = 'apart' order by x.id",
        (collection.id,),
    )
    pairs = {
        (place_of[pk], place_of[other])
        for pk, others in rows
        for other in keys_in(others)
        if pk in place_of and other in place_of and pk != other
    }
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


# Feedback


def _feedback(
    conn: sqlite3.Connection, collection: db.Collection, vectors: Vectors
) -> tuple[np.ndarray, np.ndarray]:
    """Classes, and pairs of a liked picture and one that was not."""
    place_of = {pk: place for place, pk in enumerate(vectors.pks)}
    source = db.source_of(conn, collection)
    joined = _Joined(len(vectors.pks))
    pairs: set[tuple[int, int]] = set()
    told: set[int] = set()
    for text in _questions(conn, collection):
        likes, unlikes = (
            _places(conn, source, place_of, text, name) for name in ("_like", "_unlike")
        )
        if likes and len(likes) + len(unlikes) > 1:
            joined.join(likes)
            told.update(likes, unlikes)
            pairs.update((a, b) for a in likes for b in unlikes if a != b)
    classes = np.full(len(vectors.pks), -1)
    places = sorted(told)
    classes[places] = joined.classes()[places]
    return classes, np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _questions(conn: sqlite3.Connection, collection: db.Collection) -> Iterable[str]:
    """Query strings, saved and logged, each once."""
    if not db.is_current(conn, since=3):
        return []
    rows = conn.execute(
        "select question from _image_similarity_searches where collection_id = ? "
        "and typeof(question) = 'text' group by question "
        "order by max(searched_at) desc limit ?",
        (collection.id, MOST_LOGGED),
    )
    logged = [row[0] for row in rows]
    saved = [one.question for one in saved_questions(conn, collection)]
    return [text for text in dict.fromkeys(saved + logged) if len(text) <= LENGTH]


def _places(
    conn: sqlite3.Connection,
    source: db.SourceTable,
    place_of: dict[db.Key, int],
    question: str,
    name: str,
) -> list[int]:
    """The pictures that a parameter of a question names and that are there still."""
    found = []
    try:
        named = parse_qs(question, max_num_fields=1000).get(name, [])
    except ValueError:
        named = []
    for text in named:
        try:
            row, _ = split_weight(text)
            key = source.find(conn, urlsafe_components(row))
        except (CollectionError, ValueError, sqlite3.Error):
            continue  # whoever made the database may have put anything there
        if key in place_of:
            found.append(place_of[key])
    return found


class _Joined:
    """Sets that grow together (union–find)."""

    def __init__(self, count: int) -> None:
        self.parents = list(range(count))
        self.joined: set[int] = set()

    def join(self, places: list[int]) -> None:
        self.joined.update(places)
        for place in places:
            self.parents[self.root(place)] = self.root(places[0])

    def root(self, place: int) -> int:
        while self.parents[place] != place:
            self.parents[place] = self.parents[self.parents[place]]
            place = self.parents[place]
        return place

    def classes(self) -> np.ndarray:
        """int64 (count,): equal for what was joined."""
        return np.array([self.root(place) for place in range(len(self.parents))], np.int64)
