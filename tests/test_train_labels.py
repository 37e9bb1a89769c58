"""What people decided, saved and asked, read as labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from core import answer, make_older, opened, sql, value
from test_train import refusal

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import CollectionError
from datasette_image_similarity.explore.decisions import (
    decide,
    read_groups,
    split,
    summaries,
)
from datasette_image_similarity.explore.questions import save_question
from datasette_image_similarity.explore.vectors import read_vectors
from datasette_image_similarity.learning.labels import Labels, read_labels


def read(path: Path, **sources: object) -> Labels:
    """Places are those of the rows: their ids less 1."""
    with opened(path) as conn:
        collection = db.find_collection(conn, "images")
        vectors = read_vectors(conn, collection)
        assert vectors.pks == list(range(1, 25))
        return read_labels(conn, collection, vectors, **sources)


def together(classes: np.ndarray) -> list[list[int]]:
    """Keys that are in one class, of classes with two and more."""
    found: dict[int, list[int]] = {}
    for place, one in enumerate(classes.tolist()):
        if one >= 0:
            found.setdefault(one, []).append(place + 1)
    return sorted(one for one in found.values() if len(one) > 1)


def save(path: Path, *questions: str) -> None:
    with opened(path) as conn, db.transaction(conn):
        collection = db.find_collection(conn, "images")
        for number, question in enumerate(questions):
            save_question(conn, collection, f"question {number}", question, None)


def test_a_column(copied: Path) -> None:
    sql(copied, "alter table images add column kind")
    sql(copied, "update images set kind = case when id < 4 then 7 when id < 6 then 'x' end")
    sql(copied, "update images set kind = '  ' where id = 20")
    sql(copied, "update images set kind = x'00' where id in (21, 22)")
    labels = read(copied, column="kind")
    assert together(labels.classes[0]) == [[1, 2, 3], [4, 5]]
    assert (labels.classes[0] >= 0).sum() == 5
    assert labels.count == 5
    with pytest.raises(CollectionError, match="no column"):
        read(copied, column="nothing")


def test_feedback(copied: Path) -> None:
    save(copied, "_like=1&_like=2:3&_unlike=9", "_like=2&_like=5", "_like=10&_like=11")
    save_alone = "_like=20"
    with opened(copied) as conn, db.transaction(conn):
        collection = db.find_collection(conn, "images")
        save_question(conn, collection, "alone", save_alone, None)
    labels = read(copied, feedback=True)
    assert together(labels.classes[0]) == [[1, 2, 5], [10, 11]]
    assert (labels.apart + 1).tolist() == [[1, 9], [2, 9]]
    assert labels.classes[0][19] == -1
    alike, comparable = labels.pairs(np.array([0, 1, 8, 9]))
    assert alike[0, 1]
    assert comparable[0, 2]
    assert not alike[0, 2]


def test_the_log_of_searches_is_feedback(copied: Path) -> None:
    sql(
        copied,
        "insert into _image_similarity_searches (collection_id, page, question, offset, "
        "results, milliseconds) select id, 'similar', '_like=3&_like=4', 0, 1, 1.0 "
        "from _image_similarity_collections",
    )
    assert together(read(copied, feedback=True).classes[0]) == [[3, 4]]


def test_damaged_questions_say_nothing(copied: Path) -> None:
    save(copied, "_like=1&_like=2", "_like=x%00&_like=1:-3", "&".join(["_like=1"] * 1100))
    sql(copied, "update _image_similarity_questions set question = x'ff' where id = 2")
    assert together(read(copied, feedback=True).classes[0]) == [[1, 2]]


@pytest.fixture
def grouped(copied: Path) -> Path:
    """Two groups of look-alikes: rows 1, 2 and 3; rows 9 and 10. None is decided."""
    with ImageCollection(copied) as collection:
        collection.duplicates()
    of = value(copied, "select id from _image_similarity_collections")
    sql(copied, "delete from _image_similarity_grouped")
    sql(copied, "delete from _image_similarity_groups")
    for group, rows in ((1, (1, 2, 3)), (2, (9, 10))):
        items = [
            value(copied, "select id from _image_similarity_items where pk = ?", (row,))
            for row in rows
        ]
        sql(
            copied,
            "insert into _image_similarity_groups (id, collection_id, tier, size, "
            "medoid_id, keeper_id, reason) values (?, ?, 'alike', ?, ?, ?, '')",
            (group, of, len(items), items[0], items[0]),
        )
        for item in items:
            sql(
                copied,
                "insert into _image_similarity_grouped values (?, ?, ?, 0.9)",
                (group, item, of),
            )
    return copied


def groups(path: Path, act: object) -> None:
    """Do something with the groups."""
    with opened(path) as conn, db.transaction(conn):
        collection = db.find_collection(conn, "images")
        ids = [one.id for one in summaries(conn, collection)]
        act(conn, collection, read_groups(conn, collection, ids))


def test_decisions_on_duplicates(grouped: Path) -> None:
    groups(grouped, lambda conn, of, all: decide(conn, of, all[0], "accept"))
    labels = read(grouped, decisions=True)
    assert together(labels.classes[0]) == [[1, 2, 3]]
    assert labels.count == 3
    # Nobody has said whether these are duplicates; the others are of nothing.
    assert labels.classes[0][[8, 9]].tolist() == [-1, -1]
    assert (labels.classes[0] >= 0).sum() == 22


def test_pictures_split_off_are_apart(grouped: Path) -> None:
    def act(conn, of, all) -> None:
        split(conn, of, all[0], 3)
        decide(conn, of, all[1], "accept")

    groups(grouped, act)
    labels = read(grouped, decisions=True)
    assert together(labels.classes[0]) == [[9, 10]]
    assert (labels.apart + 1).tolist() == [[3, 1], [3, 2]]


def test_what_is_kept_together_is_no_label(grouped: Path) -> None:
    def act(conn, of, all) -> None:
        decide(conn, of, all[0], "unmark", 1)
        decide(conn, of, all[1], "skip")

    groups(grouped, act)
    assert "no decisions" in refusal("train", grouped, "--decisions")


def test_decisions_about_files_that_changed_are_void(grouped: Path) -> None:
    groups(grouped, lambda conn, of, all: split(conn, of, all[0], 3))
    groups(grouped, lambda conn, of, all: decide(conn, of, all[1], "accept"))
    sql(grouped, "update _image_similarity_items set sha256 = 'other' where pk = 3")
    assert not len(read(grouped, decisions=True).apart)
    sql(grouped, "update _image_similarity_decisions set other = '{'")
    read(grouped, decisions=True)


def test_an_older_schema_knows_no_feedback(copied: Path) -> None:
    make_older(copied)
    assert "no feedback" in refusal("train", copied, "--feedback")
    assert "no decisions" in refusal("train", copied, "--decisions")


def test_training_on_what_people_did(grouped: Path) -> None:
    groups(grouped, lambda conn, of, all: [decide(conn, of, g, "accept") for g in all])
    save(grouped, "_like=4&_like=5&_unlike=12", "_like=13&_like=14")
    found = answer("train", grouped, "--decisions", "--feedback", "--epochs", 1)
    assert found["learned_from"] == "decisions on duplicates and feedback"
    assert (found["classes"], found["labelled"]) == (4, 9)
    assert found["held_out"] is None or found["held_out"]["seen"] == 0
    assert json.dumps(found["notes"]).count("cannot be judged") == 2
