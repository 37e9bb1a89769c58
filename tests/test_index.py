"""The compressed index: what it finds, and that it stays right whatever is done."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from core import command, make_older, opened, sql, value
from serving import ask, ask_json, open_datasette

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity import index as indexes
from datasette_image_similarity.encoders import load_encoder
from datasette_image_similarity.errors import CollectionError, DatabaseError
from datasette_image_similarity.index import (
    IndexCache,
    ResidentLists,
    StoredLists,
    build_index,
    index_status,
)
from datasette_image_similarity.query import Filter, Query, search
from datasette_image_similarity.verify import verify_database

DIMENSIONS = 131  # more than COARSE, by an odd number
MANY = 3000


def clustered(count: int, seed: int) -> np.ndarray:
    """Vectors float32 (count, 131) in thirty clusters, none below zero, of length 0.9–1.1.

    They are made to length 1 for the metric that wants it: see `put()`.
    """
    centres = np.random.default_rng(0).random((30, DIMENSIONS))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 30, count)]
    vectors = np.maximum(0, vectors + rng.normal(0, 0.15, vectors.shape))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors * rng.uniform(0.9, 1.1, (count, 1))).astype("<f4")


def put(conn: object, collection: db.Collection, vectors: np.ndarray, first: int) -> None:
    if collection.metric == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    with db.transaction(conn):
        for pk, vector in enumerate(vectors, first):
            conn.execute(
                "insert or ignore into images (id, path, folder) values (?, ?, ?)",
                (pk, f"{pk}.jpg", f"f{pk % 100}"),
            )
            db.put_item(
                conn,
                collection,
                pk=pk,
                root=None,
                path=f"{pk}.jpg",
                size=1,
                mtime_ns=pk,
                sha256=str(pk),
                width=1,
                height=1,
                vector=vector.tobytes(),
                thumbnail=None,
            )


def make(path: Path, metric: str = "cosine") -> Path:
    spec = load_encoder("hog").spec
    conn = db.connect(path, create=True)
    with db.transaction(conn):
        db.create_folder_table(conn, "images")
        db.migrate(conn)
        collection = db.create_collection(
            conn,
            name="default",
            table="images",
            source="folder",
            column="path",
            encoder=spec.to_json(),
            fingerprint=spec.fingerprint,
            dimensions=DIMENSIONS,
            metric=metric,
            thumbnails=False,
        )
    put(conn, collection, clustered(MANY, 1), 1)
    build_index(conn, collection)
    conn.close()
    return path


@pytest.fixture(scope="module", params=["cosine", "l2"])
def indexed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """3,000 vectors with an index; `folder` is f0 to f99. For reading only."""
    return make(tmp_path_factory.mktemp("indexed") / "x.db", request.param)


@pytest.fixture
def own(tmp_path: Path, indexed: Path) -> Path:
    """A copy of it to change."""
    path = tmp_path / "own.db"
    path.write_bytes(indexed.read_bytes())
    return path


def both(
    path: Path, query: Query, cache: IndexCache | None = None
) -> tuple[list[int], list[int]]:
    """Keys by the index and exactly, best first; distances are the same where keys are."""
    with opened(path) as conn:
        collection = db.collections(conn)[0]
        found = search(conn, collection, query, cache)
        exact = search(conn, collection, Query(**{**vars(query), "exact": True}))
        assert not found.exact
        assert found.recall > 0
        assert exact.exact
        assert exact.recall is None
        distances = {hit.pk: (hit.distance, hit.score) for hit in exact.hits}
        for hit in found.hits:
            if hit.pk in distances:
                assert (hit.distance, hit.score) == distances[hit.pk]
        return [hit.pk for hit in found.hits], [hit.pk for hit in exact.hits]


def recall(
    path: Path, k: int = 10, cache: IndexCache | None = None, **more: object
) -> float:
    shares = []
    for vector in clustered(40, 2):
        found, exact = both(path, Query(vector.tobytes(), k, **more), cache)
        assert len(found) == len(exact)
        shares.append(len({*found} & {*exact}) / len(exact))
    return float(np.mean(shares))


@pytest.mark.parametrize("k", [1, 10, 100])
def test_it_finds_the_nearest(indexed: Path, k: int) -> None:
    assert recall(indexed, k) >= 0.97


def test_from_memory_it_finds_the_same(indexed: Path) -> None:
    cache = IndexCache()
    for vector in clustered(10, 3):
        query = Query(vector.tobytes(), 10)
        assert both(indexed, query, cache)[0] == both(indexed, query)[0]


def test_what_a_cache_keeps_is_bounded(indexed: Path) -> None:
    assert recall(indexed, cache=IndexCache(limit=1000)) >= 0.97


@pytest.mark.parametrize(
    "where", ["folder = 'f7'", "folder < 'f2'", "id % 3 = 1", "id in (5, 17, 2000)"]
)
@pytest.mark.parametrize("loose", [False, True])
def test_a_filter_loses_no_result(
    indexed: Path, where: str, loose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loose:
        monkeypatch.setattr("datasette_image_similarity.ranking.LOOSE", 2)
    assert recall(indexed, filter=Filter(where)) >= 0.99


def test_a_filter_at_odds_with_the_picture_loses_no_result(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasette_image_similarity.ranking.LOOSE", 2)
    monkeypatch.setattr("datasette_image_similarity.ranking.DEEP", 40)
    vector = clustered(1, 5)[0]
    with opened(indexed) as conn:
        collection = db.collections(conn)[0]
        far = [h.pk for h in search(conn, collection, Query(vector.tobytes(), MANY)).hits]
    where = f"id in ({', '.join(map(str, far[-30:]))})"
    query = Query(vector.tobytes(), 10, filter=Filter(where))
    found, exact = both(indexed, query)
    assert found == exact == far[-30:-20]


def test_pages_follow_each_other(indexed: Path) -> None:
    vector = clustered(1, 6)[0].tobytes()
    with opened(indexed) as conn:
        collection = db.collections(conn)[0]
        whole = [h.pk for h in search(conn, collection, Query(vector, 60)).hits]
        pages: list[int] = []
        for offset in range(0, 60, 20):
            answer = search(conn, collection, Query(vector, 20, offset))
            assert answer.total == MANY
            assert answer.next == offset + 20
            assert [hit.rank for hit in answer.hits] == [*range(offset + 1, offset + 21)]
            pages += [hit.pk for hit in answer.hits]
    assert len({*pages}) >= 58
    assert len({*pages} & {*whole}) >= 57


def test_a_cut_off_counts_what_lies_within(indexed: Path) -> None:
    vector = clustered(1, 7)[0].tobytes()
    with opened(indexed) as conn:
        collection = db.collections(conn)[0]
        exact = search(conn, collection, Query(vector, 40, exact=True))
        query = Query(vector, 20, max_distance=exact.hits[29].distance + 1e-6)
        answer = search(conn, collection, query)
    assert answer.total == 30
    assert answer.next == 20


def test_far_down_the_list_it_is_exact(indexed: Path) -> None:
    with opened(indexed) as conn:
        collection = db.collections(conn)[0]
        query = Query(clustered(1, 8)[0].tobytes(), 10, offset=2000)
        answer = search(conn, collection, query)
        assert answer.exact
        assert len(answer.hits) == 10


# What changes after it was built


def test_new_rows_are_found_at_once_and_then_listed(own: Path) -> None:
    new = clustered(5, 9)
    with opened(own) as conn:
        collection = db.collections(conn)[0]
        cache = IndexCache()
        for _ in range(3):  # the lists are in memory by now
            search(conn, collection, Query(new[0].tobytes()), cache)
        put(conn, collection, new, MANY + 1)
        for pk, vector in enumerate(new, MANY + 1):
            [hit] = search(conn, collection, Query(vector.tobytes(), 1), cache).hits
            assert hit.pk == pk
        assert index_status(conn, collection).waiting == 5
        assert indexes.list_waiting(conn, collection)
        status = index_status(conn, collection)
        assert (status.waiting, status.listed) == (0, MANY + 5)
        for pk, vector in enumerate(new, MANY + 1):
            [hit] = search(conn, collection, Query(vector.tobytes(), 1), cache).hits
            assert hit.pk == pk


def test_rows_that_were_embedded_again_are_found_where_they_are_now(own: Path) -> None:
    new = clustered(20, 10)
    with opened(own) as conn:
        collection = db.collections(conn)[0]
        cache = IndexCache()
        put(conn, collection, new, 1)
        for listed in (False, True):
            for pk, vector in enumerate(new, 1):
                hits = search(conn, collection, Query(vector.tobytes(), 2), cache).hits
                assert hits[0].pk == pk
                assert hits[1].pk != pk
            assert listed or indexes.list_waiting(conn, collection)
        assert verify_database(conn) == []


def test_rows_that_change_while_others_are_listed_go_on_waiting(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = clustered(2, 11)
    with opened(own) as conn, opened(own) as other:
        collection = db.collections(conn)[0]
        put(conn, collection, new[:1], 1)
        coded = indexes._coded

        def then_changed(*arguments: object) -> tuple:
            found = coded(*arguments)
            monkeypatch.setattr(indexes, "_coded", coded)
            put(other, collection, new[1:], 1)
            return found

        monkeypatch.setattr(indexes, "_coded", then_changed)
        indexes.list_waiting(conn, collection)
        [hit] = search(conn, collection, Query(new[1].tobytes(), 1)).hits
        assert hit.pk == 1
        assert hit.score > 0.9999


def test_deleted_rows_do_not_show_and_none_is_missing(own: Path) -> None:
    vector = clustered(1, 12)[0].tobytes()
    gone = both(own, Query(vector, 30))[1][:25]
    sql(own, f"delete from images where id in ({', '.join(map(str, gone[:12]))})")
    with opened(own) as conn:
        collection = db.collections(conn)[0]
        items = [db.item_id(conn, collection, pk) for pk in gone[12:]]
        with db.transaction(conn):
            db.drop_items(conn, collection, items)
    found, exact = both(own, Query(vector, 10))
    assert found == exact
    assert not {*found} & {*gone}


def test_the_same_picture_many_times_over(own: Path) -> None:
    vector = clustered(1, 13)
    with opened(own) as conn:
        collection = db.collections(conn)[0]
        put(conn, collection, np.repeat(vector, 200, axis=0), MANY + 1)
        indexes.list_waiting(conn, collection)
    found, _exact = both(own, Query(vector[0].tobytes(), 50))
    assert len(found) == 50
    assert {*found} <= {*range(MANY + 1, MANY + 201)}


def test_drift_is_noticed(own: Path) -> None:
    rng = np.random.default_rng(0)
    strange = np.maximum(0, rng.normal(0, 1, (400, DIMENSIONS))).astype("<f4")
    strange /= np.linalg.norm(strange, axis=1, keepdims=True)
    with opened(own) as conn:
        collection = db.collections(conn)[0]
        assert index_status(conn, collection).advice is None
        put(conn, collection, clustered(400, 14), MANY + 1)
        indexes.list_waiting(conn, collection)
        assert index_status(conn, collection).advice is None
        put(conn, collection, strange, MANY + 401)
        indexes.list_waiting(conn, collection)
        assert "changed much" in index_status(conn, collection).advice
        assert build_index(conn, collection, rebuild=True).advice is None


def test_while_very_many_rows_wait_search_is_exact(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "WAITING", 10)
    with opened(own) as conn:
        collection = db.collections(conn)[0]
        put(conn, collection, clustered(40, 15), MANY + 1)
        query = Query(clustered(1, 16)[0].tobytes())
        assert search(conn, collection, query).exact
        indexes.keep_up(conn, collection)
        assert not search(conn, collection, query).exact


# Building


def test_one_that_was_cut_off_goes_on(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "LISTED_AT_ONCE", 1000)
    with opened(own) as conn:
        collection = db.collections(conn)[0]
        before = conn.execute("select ids from _image_similarity_lists order by list")
        before = [sorted(np.frombuffer(row[0], "<i8")) for row in before]
        steps = []

        def after_two() -> bool:
            steps.append(1)
            return len(steps) > 2

        status = build_index(conn, collection, rebuild=True, stop=after_two)
        assert status.recall is None
        assert status.listed == 2000
        assert status.waiting == 1000
        query = Query(clustered(1, 16)[0].tobytes())
        assert search(conn, collection, query).exact
        status = build_index(conn, collection)
        assert status.recall >= 0.99
        assert status.waiting == 0
        after = conn.execute("select ids from _image_similarity_lists order by list")
        assert before == [sorted(np.frombuffer(row[0], "<i8")) for row in after]


def test_another_recall_makes_it_anew(own: Path) -> None:
    with ImageCollection(own) as collection:
        cheap = collection.build_index(recall=0.5)
        dear = collection.build_index(recall=1.0)
        assert (cheap.asked, dear.asked) == (0.5, 1.0)
        assert cheap.probes < dear.probes
        assert collection.build_index().asked == 1.0
        for wrong in (0, -1, 1.1, float("nan")):
            with pytest.raises(CollectionError, match="recall must be"):
                collection.build_index(recall=wrong)


def test_it_can_be_dropped(own: Path) -> None:
    with ImageCollection(own) as collection:
        collection.drop_index()
        assert collection.status().index is None
        assert value(own, "select count(*) from _image_similarity_lists") == 0
        collection.remove()
    assert not [
        name for (name,) in sql(own, "select name from sqlite_master") if "_image_s" in name
    ]


def test_an_older_database_gets_its_tables(own: Path) -> None:
    make_older(own, 1)
    with ImageCollection(own) as collection:
        assert collection.status().index is None
        assert len(collection.similar(1, 5)) == 5
        assert collection.build_index().recall >= 0.99
    assert value(own, "select version from _image_similarity_schema") == db.SCHEMA_VERSION


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        "update _image_similarity_lists set codes = substr(codes, 2)",
        "update _image_similarity_lists set ids = 'x'",
        "update _image_similarity_lists set norms = null",
        "update _image_similarity_indexes set model = substr(model, 5)",
        "update _image_similarity_indexes "
        "set model = zeroblob(length(model) - 4) || x'0000c07f'",
        "update _image_similarity_indexes set axes = 1000000000000",
        "update _image_similarity_indexes set probes = 'many'",
        "update _image_similarity_indexes set axes = 0",
    ],
)
def test_damage_is_told_and_mended(own: Path, damage: str) -> None:
    try:
        sql(own, damage)
    except Exception as error:  # a column says what it must hold
        pytest.skip(str(error))
    query = Query(clustered(1, 17)[0].tobytes())
    with opened(own) as conn:
        collection = db.collections(conn)[0]
        with pytest.raises(DatabaseError, match="damaged"):
            search(conn, collection, query)
        assert search(conn, collection, Query(query.vector, exact=True)).hits
        assert verify_database(conn)
        verify_database(conn, repair=True)
        assert verify_database(conn) == []
        assert search(conn, collection, query).hits


def test_a_damaged_index_can_be_made_anew(own: Path) -> None:
    sql(own, "update _image_similarity_indexes set axes = -1")
    assert "damaged" in command("index", own).output
    assert "recall@10" in command("index", own, "--rebuild").output


def test_rows_that_are_in_no_list_are_found_out(own: Path) -> None:
    sql(own, "delete from _image_similarity_lists where list = 3")
    with opened(own) as conn:
        [fault] = verify_database(conn)
        assert "index" in fault.what
        assert fault.count > 0
        verify_database(conn, repair=True)
        assert verify_database(conn) == []
    assert recall(own) >= 0.97


# Where people meet it


def test_the_command(own: Path) -> None:
    sql(own, "delete from _image_similarity_indexes")
    assert "index        none needed" in command("status", own).output
    printed = command("index", own, "--recall", "0.9").output
    assert "3,000 vectors, recall@10" in printed
    made = json.loads(command("index", own, "--json").stdout)
    assert made["asked"] == 0.9
    assert made["recall"] >= 0.9
    assert "recall@10" in command("status", own).output
    hits = json.loads(command("similar", own, "images", "5", "--json").stdout)
    exact = json.loads(command("similar", own, "images", "5", "--json", "--exact").stdout)
    assert hits[0] == exact[0]
    assert "exact again" in command("index", own, "--drop").output
    assert "none needed" in command("status", own).output


def test_big_collections_are_offered_one(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasette_image_similarity.collection.WORTHWHILE", MANY)
    sql(own, "delete from _image_similarity_indexes")
    assert "datasette image-similarity index" in command("status", own).output


async def test_pages_say_how_they_answer(own: Path) -> None:
    site = open_datasette(own)
    address = "/own/images/-/similar"
    page = (await ask(site, f"{address}?_like=5&_size=12")).text
    assert "approximate" in page
    assert f"{address}?_like=5&amp;_size=12&amp;_exact=1" in page
    answer = await ask_json(site, f"{address}.json?_like=5")
    assert answer["exact"] is False
    assert answer["recall"] >= 0.99
    answer = await ask_json(site, f"{address}.json?_like=5&_exact=1")
    assert answer["exact"] is True
    assert answer["recall"] is None
    for table in ("indexes", "lists"):
        path = f"/own/_image_similarity_{table}.json"
        assert (await ask(site, path)).status_code == 403


def test_while_lists_are_read_into_memory_others_ask(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, reading, go_on = IndexCache(), Event(), Event()

    def slowly(*arguments: object) -> ResidentLists:
        reading.set()
        assert go_on.wait(30)
        return ResidentLists(*arguments)

    def get() -> object:
        with opened(indexed) as conn:
            return cache.get(conn, db.collections(conn)[0]).lists

    get()
    monkeypatch.setattr("datasette_image_similarity.index.ResidentLists", slowly)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(get)
        assert reading.wait(30)
        assert isinstance(get(), StoredLists)
        go_on.set()
        assert isinstance(first.result(30), ResidentLists)
    assert isinstance(get(), ResidentLists)
