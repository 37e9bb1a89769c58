"""A collection whose vectors are in a store answers as one with its own does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from core import embed, opened, refused
from datasette.utils.sqlite import sqlite3
from elsewhere import copies, pair_of

from datasette_image_similarity import ImageCollection, ranking, trust
from datasette_image_similarity import database as db
from datasette_image_similarity.distances import histogram, random_pairs
from datasette_image_similarity.errors import StoreError
from datasette_image_similarity.explore.vectors import read_vectors
from datasette_image_similarity.query import Answer, Filter, Query, mean_vector, search
from datasette_image_similarity.stores.items import vectors_of
from datasette_image_similarity.stores.opening import Stores

NEAR = 1e-5  # milvus-lite's distances are single precision's


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return pair_of(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture
def pair(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    return copies(made, tmp_path)


@pytest.fixture(scope="module")
def asked_often(made: tuple[Path, Path]) -> Iterator[tuple[Asked, Asked]]:
    """Connections to both, for what changes nothing."""
    with closing(db.connect(made[0])) as here, closing(db.connect(made[1])) as there:
        there.stores = Stores(lambda _: True)
        yield here, there


@pytest.fixture(params=[2, 64], ids=["asked with ids", "one by one"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to find what passes a filter."""
    monkeypatch.setattr(ranking, "FEW", request.param)


Asked = Path | sqlite3.Connection


def ask(where: Asked, pk: db.Key = 3, **asked: object) -> Answer:
    if isinstance(where, Path):
        with closing(db.connect(where)) as conn:
            return ask(conn, pk, **asked)
    collection = db.find_collection(where, "images", None)
    item = db.item_id(where, collection, pk)
    vector = mean_vector(where, collection, [item])
    asked = {"without": frozenset({item}), **asked}
    return search(where, collection, Query(vector, **asked))


def assert_same(pair: tuple[Asked, Asked], pk: db.Key = 3, **asked: object) -> Answer:
    here, there = (ask(path, pk, **asked) for path in pair)
    assert [hit.pk for hit in there.hits] == [hit.pk for hit in here.hits]
    for mine, yours in zip(there.hits, here.hits, strict=True):
        assert mine.distance == pytest.approx(yours.distance, abs=NEAR)
        assert (mine.rank, mine.row, mine.others) == (yours.rank, yours.row, yours.others)
    told = ("total", "next", "exact", "recall", "at_least", "near_query")
    assert [getattr(there, name) for name in told] == [getattr(here, name) for name in told]
    return there


FILTERS = {
    "all": None,
    "many": Filter("folder <> :folder", {"folder": "red"}),
    "few": Filter("id in (3, 4, 20)"),
    "none": Filter("folder = 'purple'"),
}


@pytest.mark.parametrize("which", FILTERS)
@pytest.mark.parametrize(
    "asked",
    [
        {"k": 5},
        {"k": 5, "offset": 5},
        {"k": 5, "offset": 20},
        {"k": 5, "offset": 1000},
        {"k": 100},
        {"k": 4, "max_distance": 0.3},
        {"k": 4, "max_distance": 0.0},
        {"k": 5, "exact": True},
        {"k": 5, "without": frozenset()},
        {"k": 5, "distinct": 0.9},
        {"k": 2, "offset": 2, "distinct": 0.99},
        {"k": 5, "one_per": "folder"},
        {"k": 2, "one_per": "folder", "max_distance": 0.2},
    ],
    ids=str,
)
def test_the_same_answer(asked_often, few, which, asked):
    assert_same(asked_often, filter=FILTERS[which], **asked)


def test_pages_neither_overlap_nor_leave_gaps_among_equals(pair, tmp_path):
    photos = tmp_path / "more"
    photos.mkdir()
    same = next((made_photos(pair) / "red").glob("*.png")).read_bytes()
    for number in range(9):
        (photos / f"{number}.png").write_bytes(same)
    url = f"milvus-lite:{tmp_path / 'own.db'}"
    embed(tmp_path / "equal.db", photos, store=url)
    asked = [ask(tmp_path / "equal.db", 1, k=2, offset=offset) for offset in range(0, 8, 2)]
    assert [hit.pk for answer in asked for hit in answer.hits] == list(range(2, 10))


def made_photos(pair: tuple[Path, Path]) -> Path:
    return Path(trust.trusted_roots(pair[0])[0])


def change_both(pair: tuple[Path, Path], statement: str) -> None:
    for path in pair:
        with opened(path) as conn:
            conn.execute(statement)


def test_rows_that_have_gone_or_changed_do_not_show(pair, few):
    nearest = [hit.pk for hit in ask(pair[0], k=6).hits]
    change_both(pair, f"delete from images where id = {nearest[0]}")
    change_both(pair, f"update images set path = 'other' where id = {nearest[1]}")
    answer = assert_same(pair, k=4)
    assert [hit.pk for hit in answer.hits] == nearest[2:]
    assert_same(pair, k=4, filter=FILTERS["many"])
    assert_same(pair, k=30)


def test_a_hit_of_another_picture_is_stale(pair):
    nearest = [hit.pk for hit in ask(pair[1], k=3).hits]
    with opened(pair[1]) as conn:
        conn.execute(
            "update _image_similarity_items set sha256 = 'other' where pk = ?",
            (nearest[0],),
        )
    assert [hit.pk for hit in ask(pair[1], k=2).hits] == nearest[1:]


def test_a_hit_without_an_item_does_not_show(pair, few):
    nearest = [hit.pk for hit in ask(pair[1], k=3).hits]
    with opened(pair[1]) as conn:
        conn.execute("delete from _image_similarity_items where pk = ?", (nearest[0],))
    answer = ask(pair[1], k=2)
    assert [hit.pk for hit in answer.hits] == nearest[1:]
    assert answer.total == 22


def test_what_waits_to_be_sent_is_found(pair, few):
    """The picture of row 5 becomes that of row 3, and the store does not know it."""
    with opened(pair[1]) as conn:
        collection = db.find_collection(conn, "images", None)
        like = dict(vectors_of(conn, collection).get([3]))[3]
        conn.execute(
            "insert into _image_similarity_unsent (collection_id, pk, sha256, vector) "
            "values (?, 5, 'new', ?)",
            (collection.id, like),
        )
        conn.execute("update _image_similarity_items set sha256 = 'new' where pk = 5")
    for asked in ({}, {"filter": FILTERS["few"]}, {"filter": Filter("id <> 1")}):
        first = ask(pair[1], k=1, **asked).hits[:1]
        if asked.get("filter") is not FILTERS["few"]:
            assert (first[0].pk, first[0].distance) == (5, pytest.approx(0, abs=NEAR))
    pks = [hit.pk for hit in ask(pair[1], k=30).hits]
    assert sorted(pks) == [pk for pk in range(1, 25) if pk != 3]
    # Another one that asks is compared with the new vector as well.
    assert ask(pair[1], pk=5, k=1).hits[0].pk == 3


def test_more_than_a_store_gives_at_once_is_compared_one_by_one(pair, monkeypatch):
    from datasette_image_similarity.stores import remote

    monkeypatch.setattr(remote, "MOST", 6)
    monkeypatch.setattr(remote.RemoteVectors, "most", 6)
    monkeypatch.setattr(ranking, "FEW", 0)
    for which in FILTERS.values():
        assert_same(pair, k=5, offset=10, filter=which)
        assert_same(pair, k=5, max_distance=0.6, filter=which)
        assert_same(pair, k=3, distinct=0.9, filter=which)


def test_a_store_with_an_index_says_what_was_measured(pair):
    with opened(pair[1]) as conn:
        collection = db.find_collection(conn, "images", None)
        db.put_store_index(conn, collection, {"exact": False, "recall": 0.97})
    answer = ask(pair[1], k=3)
    assert (answer.exact, answer.recall) == (False, 0.97)
    exact = ask(pair[1], k=3, exact=True)
    assert (exact.exact, exact.recall) == (True, None)
    assert [hit.pk for hit in exact.hits] == [hit.pk for hit in ask(pair[0], k=3).hits]


@pytest.mark.parametrize("limit", [10, 20_000])
def test_big_collections_filter_what_is_found(pair, monkeypatch, limit):
    monkeypatch.setattr(ranking, "LOOSE", limit)
    monkeypatch.setattr(ranking, "FEW", 2)
    for which in FILTERS.values():
        assert_same(pair, k=4, filter=which)


def test_whole_collections_are_read_the_same(pair):
    read = []
    for path in pair:
        with opened(path) as conn:
            collection = db.find_collection(conn, "images", None)
            vectors = read_vectors(conn, collection)
            pairs = random_pairs(conn, collection)
            asked = Query(mean_vector(conn, collection, [3]), without=frozenset({3}))
            found = histogram(conn, collection, asked, pairs)
            read.append((list(vectors.ids), vectors.vectors.tobytes(), pairs, found))
    assert read[0] == read[1]


KEYS = {
    "text": ("k text primary key", [("a/b,c",), ("1",), ("é~",), ("1.0",)]),
    "float": ("k real primary key", [(0.1,), (1.0,), (1e-9,), (12345678.25,)]),
    "untyped": ("k primary key", [(1,), ("one",), (2.5,), ("007",)]),
    "big": ("k integer primary key", [(2**62,), (-5,), (0,), (7,)]),
    "compound": (
        "k text, n integer, primary key (k, n)",
        [("a", 1), ("a", 2), ("b,/", 1), ("", -1)],
    ),
    "compound, untyped": (
        "k, n, primary key (k, n)",
        [("a", 1), ("a", "b"), (1.5, -2), ("", "x")],
    ),
    "long": ("k text primary key", [("/" * 1000,), ("ü" * 1000,), ("z" * 9000,), ("",)]),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_kind(tmp_path, photos, kind):
    pytest.importorskip("milvus_lite")
    columns, keys = KEYS[kind]
    pictures = sorted(photos.rglob("*.png"))
    answers = []
    for name, store in (("here", None), ("there", f"milvus-lite:{tmp_path / 'v.db'}")):
        path = tmp_path / f"{name}.db"
        with opened(path) as conn:
            marks = ", ".join("?" * (len(keys[0]) + 1))
            head, _, tail = columns.partition(", primary")
            key = f", primary{tail}" if tail else ""
            conn.execute(f"create table images ({head}, picture blob{key})")
            rows = [
                (*key, picture.read_bytes())
                for key, picture in zip(keys, pictures, strict=False)
            ]
            conn.executemany(f"insert into images values ({marks})", rows)
        embed(path, blob_column="picture", store=store)
        with ImageCollection(path) as collection:
            answers.append(
                [
                    [(hit.pk, round(hit.distance, 4)) for hit in collection.similar(key)]
                    for key in (keys if len(keys[0]) > 1 else [one for (one,) in keys])
                ]
            )
    assert answers[0] == answers[1]
    assert all(len(hits) == len(keys) - 1 for hits in answers[1])


@pytest.fixture
def strangers(pair, tmp_path) -> Iterator[Path]:
    """A copy that nobody has vouched for."""
    path = tmp_path / "strangers.db"
    path.write_bytes(pair[1].read_bytes())
    with opened(path) as conn:
        url = f"milvus-lite:{tmp_path / 'etc.db'}"
        conn.execute("update _image_similarity_collections set store = ?", (url,))
    yield path
    assert not (tmp_path / "etc.db").exists()


def test_a_stranger_s_store_is_not_opened(strangers):
    with pytest.raises(StoreError, match="vouched"):
        ask(strangers)
    assert "--store milvus-lite:" in refused("similar", strangers, "images", "3")


def test_who_names_a_store_vouches_for_it(made, tmp_path):
    path = tmp_path / "moved.db"
    path.write_bytes(made[1].read_bytes())
    url = f"milvus-lite:{made[1].parent / 'vectors.db'}"
    with pytest.raises(StoreError):
        ask(path)
    embed(path, made[1].parent / "photos", store=url)
    assert len(ask(path, k=5).hits) == 5
