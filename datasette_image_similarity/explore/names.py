"""Names for clusters: by what the table itself says of the pictures in them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from datasette.utils.sqlite import sqlite3

from .. import database as db
from ..errors import CollectionError

# Columns that names come from by convention: of classes, then of text.
CLASSES = ("label", "category", "class", "kind", "type", "folder")
TEXTS = ("caption", "title", "description", "keywords", "tags", "name")

LONGEST = 80  # characters of a name
TEXT = 500  # characters of a text that are looked at
VALUES = 3  # of a class, at most, in one name
WORDS = 3
# What files and captions of pictures are called anyway.
USUAL = {"dsc", "image", "images", "img", "jpeg", "jpg", "photo", "photos", "picture"}
USUAL |= {"pictures", "png"}


def read_texts(
    conn: sqlite3.Connection, collection: db.Collection, asked: str | None
) -> tuple[str | None, dict[int, str]]:
    """The column that names come from, and its text by item.

    `asked` is a column of the table; without one the first of `CLASSES` and `TEXTS` that
    says more than one thing. None where there is no such column. Raises CollectionError
    for a column that the table does not have.
    """
    source = db.source_of(conn, collection)
    known = {column.lower(): column for column in source.columns}
    if asked is not None:
        if asked.lower() not in known:
            raise CollectionError(
                f"There is no column {asked!r}; there are {', '.join(source.columns)}"
            )
        column = known[asked.lower()]
        return column, _texts(conn, collection, source, column)
    keys = {*source.pks, collection.column}
    for name in CLASSES + TEXTS:
        column = known.get(name)
        if column is not None and column not in keys:
            texts = _texts(conn, collection, source, column)
            if len(set(texts.values())) > 1:
                return column, texts
    return None, {}


def _texts(
    conn: sqlite3.Connection,
    collection: db.Collection,
    source: db.SourceTable,
    column: str,
) -> dict[int, str]:
    sql = (
        f"select i.id, substr(t.{db.quote(column)}, 1, {TEXT}) "
        f"{db.live_sql(collection, source)} "
        f"and typeof(t.{db.quote(column)}) in ('text', 'integer', 'real')"
    )
    # A folder's name is the last part of its path.
    folder = collection.source == "folder" and column == "folder"
    found = (
        (item, text.rpartition("/")[2] if folder else text)
        for item, text in conn.execute(sql)
    )
    return {item: tidy(text) for item, text in found if tidy(text)}


def tidy(text: str) -> str:
    """On one line, without what cannot be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def suggest(clusters: Sequence[Sequence[int]], texts: dict[int, str]) -> list[str]:
    """A name for each cluster (a list of items each), all different.

    Where the texts are classes (they repeat), the most frequent ones of a cluster, as many
    as make up more than half of it, up to three. Else the words that mark it out.
    """
    inside = [texts[item] for items in clusters for item in items if item in texts]
    if not inside:
        names = [""] * len(clusters)
    elif len(set(inside)) * 3 <= len(inside):
        names = [_frequent([texts.get(item) for item in items]) for items in clusters]
    else:
        names = _marking_words([[texts.get(item, "") for item in c] for c in clusters])
    return unique(name[:LONGEST].strip() or "Cluster" for name in names)


def _frequent(values: list[str | None]) -> str:
    """The values that together make up more than half of a cluster."""
    named, chosen = 0, []
    for value, count in Counter(values).most_common(VALUES):
        if value is not None:
            chosen.append(value)
        named += count
        if named * 2 > len(values):
            break
    return ", ".join(chosen)


def _marking_words(clusters: list[list[str]]) -> list[str]:
    """Words that are frequent in one cluster and rare in others.

    Class-based TF-IDF (Grootendorst, "BERTopic: Neural topic modeling with a class-based
    TF-IDF procedure", 2022), where a text counts a word once: a word's share of the
    cluster's texts times log(1 + A / f), f its number of texts in all clusters, A the mean
    number of words of a cluster. A word must be in two texts and in a tenth of them.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    skipped = USUAL | ENGLISH_STOP_WORDS
    counts = [
        Counter(
            word
            for text in texts
            for word in set(re.findall(r"[^\W\d_]{3,}", text.lower()))
            if word not in skipped
        )
        for texts in clusters
    ]
    everywhere = sum(counts, Counter())
    mean = everywhere.total() / max(1, len(clusters))
    names = []
    for found, texts in zip(counts, clusters, strict=True):
        weights = {
            word: count / len(texts) * math.log(1 + mean / everywhere[word])
            for word, count in found.items()
            if count >= max(2, len(texts) / 10)
        }
        best = sorted(weights, key=lambda word: (-weights[word], word))[:WORDS]
        names.append(", ".join(best))
    return names


def unique(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The names, numbered from the second one that is the same: "shoe", "shoe 2".

    None is one of `taken`, whatever its case.
    """
    used = {name.casefold() for name in taken}
    found = []
    for name in names:
        number, one = 1, name
        while one.casefold() in used:
            number += 1
            one = f"{name} {number}"
        used.add(one.casefold())
        found.append(one)
    return found
