"""Search is exact, complete under filters, and pages without gaps."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core import embed, opened, sql
from datasette.utils.sqlite import sqlite3

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity import query as asking
from datasette_image_similarity.collection import EncoderOptions
from datasette_image_similarity.encoders import encoder_spec
from datasette_image_similarity.errors import CollectionError
from datasette_image_similarity.query import Filter, Query, SearchTimeout, search
from datasette_image_similarity.stores.items import vector_of_item
from datasette_image_similarity.stores.vec0 import Vec0

DIMENSIONS = 16


def made(path: Path, vectors: np.ndarray, metric: str = "cosine") -> db.Collection:
    """A collection of these vectors; row and item n+1 is vector n, `even` says n % 2."""
    if metric == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    with opened(path) as conn, db.transaction(conn):
        conn.execute("create table t (id integer primary key, path text, even integer)")
        db.migrate(conn)
        spec = encoder_spec("hog")
        collection = db.create_collection(
            conn,
            name="default",
            table="t",
            source="path",
            column="path",
            encoder=spec.to_json(),
            fingerprint=spec.fingerprint,
            dimensions=vectors.shape[1],
            metric=metric,
            thumbnails=False,
        )
        for number, vector in enumerate(vectors):
            conn.execute(
                "insert into t values (?, ?, ?)",
                (number + 1, str(number), 1 - number % 2),
            )
            db.put_item(
                conn,
                collection,
                pk=number + 1,
                root=None,
                path=str(number),
                size=1,
                mtime_ns=1,
                sha256=hashlib.sha256(vector.tobytes()).hexdigest(),
                width=1,
                height=1,
                vector=vector.astype("<f4").tobytes(),
                thumbnail=None,
            )
    return collection


def random_vectors(count: int, seed: int = 1) -> np.ndarray:
    """float32 (count, 16), with one vector in ten an exact copy of another."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(count, DIMENSIONS)).astype("f4")
    vectors[::10] = vectors[5]
    return vectors


def true_distances(vectors: np.ndarray, asked: np.ndarray, metric: str) -> np.ndarray:
    vectors, asked = vectors.astype("f8"), asked.astype("f8")
    if metric == "l2":
        return np.linalg.norm(vectors - asked, axis=1)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked)
    return 1 - vectors @ asked / lengths


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """5,000 vectors for each metric: database, collection, vectors."""
    folder = tmp_path_factory.mktemp("many")
    vectors = random_vectors(5000)
    return {
        metric: (
            folder / f"{metric}.db",
            made(folder / f"{metric}.db", vectors, metric),
            vectors,
        )
        for metric in ("cosine", "l2")
    }


@pytest.fixture(params=["cosine", "l2"])
def conn(many: dict, request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    path, *_ = many[request.param]
    with opened(path) as conn:
        yield conn


@pytest.fixture
def place(conn: sqlite3.Connection, many: dict, request: pytest.FixtureRequest) -> tuple:
    """Collection, vectors and metric of the connection."""
    metric = request.node.callspec.params["conn"]
    return many[metric][1], many[metric][2], metric


# Few and many candidates take other ways (FEW), as do small and large k (KNN_LIMIT).
@pytest.mark.parametrize("where", [None, "even = 1", "id <= 4950", "id % 3 = 0", "id < 40"])
@pytest.mark.parametrize("k", [1, 300, 4096, 99999])
def test_exact_and_complete(
    conn: sqlite3.Connection, place: tuple, where: str | None, k: int
) -> None:
    collection, vectors, metric = place
    asked = np.random.default_rng(9).normal(size=DIMENSIONS).astype("f4")
    answer = search(
        conn,
        collection,
        Query(asked.tobytes(), k, filter=Filter(where) if where else None),
    )
    distances = true_distances(vectors, asked, metric)
    ids = [row[0] for row in conn.execute(f"select id from t where {where or 1}")]
    assert answer.total == len(ids)
    assert len(answer.hits) == min(k, len(ids))
    best = np.sort(distances[np.array(ids) - 1])[: len(answer.hits)]
    found = np.array([hit.distance for hit in answer.hits])
    np.testing.assert_allclose(found, best, atol=2e-6)
    for hit in answer.hits[:50]:
        assert hit.distance == pytest.approx(distances[hit.pk - 1], abs=2e-6)
        cosine = 1 - true_distances(vectors[hit.pk - 1 : hit.pk], asked, "cosine")[0]
        assert hit.score == pytest.approx(cosine, abs=2e-6)
    assert len({hit.pk for hit in answer.hits}) == len(answer.hits)
    assert {hit.pk for hit in answer.hits} <= set(ids)
    assert [hit.rank for hit in answer.hits] == [*range(1, len(answer.hits) + 1)]


@pytest.mark.parametrize("where", [None, "even = 1", "id < 500"])
def test_ties_come_by_item(
    conn: sqlite3.Connection, place: tuple, where: str | None
) -> None:
    collection, vectors, _ = place
    asked = vectors[5].tobytes()  # has 500 copies
    hits = search(
        conn, collection, Query(asked, 30, filter=Filter(where) if where else None)
    ).hits
    first = [hit.pk for hit in hits if hit.distance == 0]
    assert len(first) == 30
    assert first == sorted(first)
    assert first[0] == 1


@pytest.mark.parametrize("where", [None, "even = 1", "id < 900"])
@pytest.mark.parametrize("size", [7, 1300])
def test_pages_have_no_gaps_and_no_doubles(
    conn: sqlite3.Connection, place: tuple, where: str | None, size: int
) -> None:
    collection, vectors, _ = place
    filter = Filter(where) if where else None
    vector = vectors[5].tobytes()  # 500 copies: ties over many pages
    whole = search(conn, collection, Query(vector, 99999, filter=filter))
    pages: list = []
    offset: int | None = 0
    while offset is not None and len(pages) < 140:
        page = search(conn, collection, Query(vector, size, offset, filter=filter))
        assert page.total == whole.total
        pages += page.hits
        offset = page.next
    assert [(h.rank, h.pk) for h in pages] == [
        (h.rank, h.pk) for h in whole.hits[: len(pages)]
    ]
    assert len(pages) == whole.total or len(pages) >= 140


def test_a_cut_off_gives_all_that_are_near_enough(
    conn: sqlite3.Connection, place: tuple
) -> None:
    collection, vectors, metric = place
    asked = vectors[7]
    distances = true_distances(vectors, asked, metric)
    for share in (0.001, 0.1, 0.95):
        limit = float(np.quantile(distances, share)) + 1e-4
        answer = search(conn, collection, Query(asked.tobytes(), 20, max_distance=limit))
        assert abs(answer.total - (distances <= limit).sum()) <= 1  # rounding
        assert all(hit.distance <= limit + 1e-6 for hit in answer.hits)
    nothing = search(conn, collection, Query(asked.tobytes(), 20, max_distance=-1))
    assert (nothing.total, nothing.hits, nothing.next) == (0, [], None)


def test_the_query_itself_is_left_out_wherever_it_stands(
    conn: sqlite3.Connection, place: tuple
) -> None:
    collection, vectors, _ = place
    query = Query(vectors[5].tobytes(), 10, without=frozenset({1, 6}))
    answer = search(conn, collection, query)
    assert answer.total == 4998
    assert [hit.pk for hit in answer.hits] == [11, 21, 31, 41, 51, 61, 71, 81, 91, 101]


@pytest.mark.parametrize("k", [0, -1])
def test_a_k_below_one_is_refused(copied: Path, k: int) -> None:
    refusal = pytest.raises(CollectionError, match="k must be at least 1")
    with ImageCollection(copied) as collection, refusal:
        collection.similar(1, k)


def test_a_query_of_another_length_is_refused(copied: Path) -> None:
    with opened(copied) as conn:
        collection = db.find_collection(conn, "images")
        with pytest.raises(CollectionError, match="different encoders"):
            search(conn, collection, Query(b"\0" * 8))
        with pytest.raises(CollectionError, match="offset"):
            search(conn, collection, Query(b"\0" * 8, offset=-1))


def test_more_than_there_are_gives_all_there_are(copied: Path) -> None:
    with ImageCollection(copied) as collection:
        for k in (23, 24, 4096, 4097, 10**6):
            assert len(collection.similar(1, k)) == 23


def test_filters_may_name_any_column_and_never_meet_ours(copied: Path) -> None:
    with ImageCollection(copied) as collection:
        hits = collection.similar(1, 99, "label = 'red' and id > 2 and path like '%.png'")
        assert len(hits) == len([h for h in hits if h.row["label"] == "red"])
        assert {hit.pk for hit in hits} == {
            row[0] for row in sql(copied, "select id from images where label = 'red'")
        } - {1, 2}
        assert len(collection.similar(1, 99, "id in (select 5 union select 6)")) == 2
        assert collection.similar(1, 99, "0") == []
        for wrong in ("collection_id = 1", "i.id = 1", "nope", "1) or (1", "1; select 2"):
            with pytest.raises(CollectionError, match="condition"):
                collection.similar(1, 99, wrong)


def test_deleted_and_changed_rows_never_show(copied: Path) -> None:
    with ImageCollection(copied) as collection:
        three = [hit.pk for hit in collection.similar(1, 3)]
        sql(copied, "delete from images where id = ?", (three[0],))
        sql(copied, "update images set path = 'other.png' where id = ?", (three[1],))
        hits = collection.similar(1, 99)
        assert len(hits) == 21
        assert hits[0].pk == three[2]
        assert collection.status().stale == 2
        with pytest.raises(CollectionError, match="no row with the key"):
            collection.similar(three[0])


def test_a_search_is_of_one_moment(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is deleted meanwhile is still there, and gone for the next."""
    sql(copied, "pragma journal_mode = wal")
    distances = Vec0.distances

    def and_then(*arguments: object) -> list:
        found = distances(*arguments)
        sql(copied, "delete from images where id in (5, 6)")
        return found

    monkeypatch.setattr(Vec0, "distances", and_then)
    with ImageCollection(copied) as collection:
        assert {hit.pk for hit in collection.similar(1, 99)} == {*range(2, 25)}
        assert {hit.pk for hit in collection.similar(1, 99)} == {*range(2, 25)} - {5, 6}


def test_a_missing_vector_is_told_with_its_remedy(copied: Path) -> None:
    sql(copied, "delete from _image_similarity_vectors_1 where id = 1")
    with ImageCollection(copied) as collection:
        with pytest.raises(CollectionError, match="verify DATABASE --repair"):
            collection.similar(1)
        assert len(collection.similar(2, 99)) == 22


def test_a_deadline_ends_a_search_that_runs_on(many: dict) -> None:
    path, collection, vectors = many["l2"]
    slow = Filter("id in (with recursive n(x) as (select 1 union all select x + 1 from n "
                  "limit 1000000000) select x from n)")  # fmt: skip
    with opened(path) as conn:
        started = time.perf_counter()
        late = pytest.raises(SearchTimeout, match=r"longer than 0\.2 seconds")
        with late, asking.deadline(conn, 0.2):
            search(conn, collection, Query(vectors[0].tobytes(), filter=slow))
        assert time.perf_counter() - started < 5
        # The connection is as good as before, and nothing interrupts what comes next.
        with asking.deadline(conn, 30):
            assert search(conn, collection, Query(vectors[0].tobytes())).hits
        with asking.deadline(conn, None):
            pass
    assert not [t for t in threading.enumerate() if t.name == asking.DEADLINE]


def test_the_mean_of_several_is_between_them(copied: Path) -> None:
    with opened(copied) as conn:
        collection = db.find_collection(conn, "images")
        vector = asking.mean_vector(conn, collection, [1, 2])
        both = [struct.unpack(f"<{len(vector) // 4}f", vector_of_item(conn, collection, i))
                for i in (1, 2)]  # fmt: skip
        mean = np.array(both).mean(axis=0)
        np.testing.assert_allclose(np.frombuffer(vector, "<f4"), mean, atol=1e-6)
        with pytest.raises(CollectionError, match="at least one"):
            asking.mean_vector(conn, collection, [])


def test_view_as_sql_gives_the_same_rows(copied: Path) -> None:
    from datasette_image_similarity.functions import prepare_connection

    with opened(copied) as conn:
        prepare_connection(conn)
        collection = db.find_collection(conn, "images")
        source = db.source_of(conn, collection)
        filter = Filter("label = :p0", {"p0": "red"})
        for likes in ([1], [1, 2]):
            weights = dict.fromkeys(likes, 1)
            text, params = asking.as_sql(collection, source, weights, 5, filter, 0.9)
            rows = [tuple(row) for row in conn.execute(text, params)]
            vector = asking.mean_vector(conn, collection, likes)
            hits = search(
                conn,
                collection,
                Query(vector, 5, 0, frozenset(likes), filter, 0.9),
            ).hits
            assert [row[2] for row in rows][:5] == [hit.pk for hit in hits]
            assert [row[1] for row in rows][:5] == [round(hit.distance, 4) for hit in hits]


def test_hits_in_json_are_as_promised(copied: Path) -> None:
    sql(copied, "alter table images add column raw blob")
    sql(copied, "update images set raw = x'ff00'")
    with ImageCollection(copied) as collection:
        hit = collection.similar(1, 1)[0].as_json()
    assert list(hit) == ["rank", "pk", "score", "distance", "row"]
    assert hit["rank"] == 1
    assert isinstance(hit["pk"], str)
    assert hit["score"] == pytest.approx(1 - hit["distance"], abs=1e-5)
    assert hit["row"]["raw"] == {"$base64": True, "encoded": "/wA="}
    json.dumps(hit)


@pytest.mark.parametrize(
    ("pk", "path"),
    [(12, "12"), ("a,b/é", "a~2Cb~2F~C3~A9"), (["x y", 1], "x+y,1"), (0.5, "0~2E5")],
)
def test_keys_in_the_form_of_a_rows_address(pk: object, path: str) -> None:
    assert asking.pk_path(pk) == path


def test_what_is_embedded_meanwhile_is_no_damage(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run gives all pictures other vectors while a search compares its hits."""
    sql(copied, "pragma journal_mode = wal")
    checked = asking._check_distances
    others = [lambda: embed(copied, encoder=EncoderOptions("hog", fit="crop"), force=True)]

    def meanwhile(*arguments: Any) -> None:
        if others:
            others.pop()()
        checked(*arguments)

    monkeypatch.setattr(asking, "_check_distances", meanwhile)
    with ImageCollection(copied) as collection:
        before = [hit.pk for hit in collection.similar(1, k=5)]
        assert not others
        after = [hit.pk for hit in collection.similar(1, k=5)]
    assert len(before) == len(after) == 5
