"""Pictures to be like and less like, folding, and how far apart pictures are."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from core import answer, command, make_older, opened, refused, sql
from test_query import made

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.distances import (
    Histogram,
    histogram,
    near_duplicates,
    random_pairs,
)
from datasette_image_similarity.errors import CollectionError
from datasette_image_similarity.functions import prepare_connection
from datasette_image_similarity.index import build_index
from datasette_image_similarity.query import (
    UNLIKE,
    Answer,
    Filter,
    Query,
    as_sql,
    rocchio,
    search,
    split_weight,
)

COUNT, FAMILIES = 600, 40


def families() -> np.ndarray:
    """Vectors float32 (600, 16) of length 1: row n is in family n % 40, whose members have
    cosines above .99 with each other; those of different families have less than .95."""
    chance = np.random.default_rng(3)
    centres = chance.normal(size=(FAMILIES, 16))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = centres[np.arange(COUNT) % FAMILIES]
    vectors = vectors + chance.normal(0, 0.008, vectors.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("f4")


@pytest.fixture(scope="module", params=["exact", "index"])
def many(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, db.Collection]:
    """Those vectors with a column `family` (none in family 7), also with an index."""
    path = tmp_path_factory.mktemp("families") / f"{request.param}.db"
    collection = made(path, families())
    sql(path, "alter table t add column family text")
    sql(
        path,
        "update t set family = 'f' || ((id - 1) % 40) where (id - 1) % 40 <> 7",
    )
    if request.param == "index":
        with opened(path) as conn:
            build_index(conn, collection)
    return path, collection


def asked(many: tuple[Path, db.Collection], **options: object) -> Answer:
    path, collection = many
    with opened(path) as conn:
        return search(conn, collection, Query(families()[0].tobytes(), **options))


def folded(keep: Callable[[int, Sequence[int]], bool], among: Sequence[int]) -> list[int]:
    """Keys in the order of their distance to the first row, the plain way."""
    vectors = families().astype("f8")
    order = np.argsort(1 - vectors @ vectors[0], kind="stable")
    kept: list[int] = []
    for row in order:
        if row + 1 in among and keep(row, kept):
            kept.append(row)
    return [row + 1 for row in kept]


def not_near(row: int, kept: Sequence[int]) -> bool:
    vectors = families()
    others = [0, *kept]  # the query as well
    return bool((vectors[others] @ vectors[row]).max() < 0.97)


ALL = range(1, COUNT + 1)
RULES = {
    "distinct": ({"distinct": 0.97}, not_near),
    "one per": (
        {"one_per": "family"},
        lambda row, kept: row % 40 == 7 or row % 40 not in [one % 40 for one in kept],
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("where", "among"), [(None, ALL), ("id % 2 = 0", ALL[1::2])])
def test_folding_gives_full_pages_without_gaps(
    many: tuple, rule: str, where: str | None, among: Sequence[int]
) -> None:
    options, keep = RULES[rule]
    options = {**options, "filter": Filter(where) if where else None}
    wanted = folded(keep, among)
    assert 15 < len(wanted) < 80
    found: list = []
    offset: int | None = 0
    while offset is not None:
        page = asked(many, k=7, offset=offset, **options)
        assert len(page.hits) == 7 or page.next is None
        assert page.total >= len(found) + len(page.hits)
        assert page.at_least or page.total == len(wanted)
        found += page.hits
        offset = page.next
    assert [hit.pk for hit in found] == wanted
    assert [hit.rank for hit in found] == [*range(1, len(wanted) + 1)]
    whole = asked(many, k=1000, **options)
    assert (whole.total, whole.at_least) == (len(wanted), False)
    assert [hit.pk for hit in whole.hits] == wanted
    # Nothing is lost: it is shown, or counted.
    others = sum(hit.others for hit in whole.hits) + whole.near_query
    assert len(wanted) + others == len(among)


def test_near_duplicates_of_the_query_are_left_out_and_counted(many: tuple) -> None:
    found = asked(many, k=5, distinct=0.97, without=frozenset({1}))
    assert found.near_query == COUNT // FAMILIES - 1
    assert all((hit.pk - 1) % 40 for hit in found.hits)
    assert asked(many, k=5).hits[0].others is None  # where nothing is folded


def test_folding_goes_with_a_cut_off(many: tuple) -> None:
    limit = asked(many, k=200).hits[-1].distance
    found = asked(many, k=1000, one_per="family", max_distance=limit)
    near = asked(many, k=1000, max_distance=limit)
    families_near = {(hit.pk - 1) % 40 for hit in near.hits}
    sevens = [hit for hit in near.hits if (hit.pk - 1) % 40 == 7]
    assert found.total == len(families_near - {7}) + len(sevens)
    assert not found.at_least


def test_both_ways_of_folding_at_once(many: tuple) -> None:
    found = asked(many, k=100, distinct=0.97, one_per="even")
    assert 1 <= len(found.hits) <= 2
    assert len({hit.row["even"] for hit in found.hits}) == len(found.hits)


def test_one_per_cluster_and_group_of_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    collection = made(path, families()[:80])
    first = {1, 41}
    with opened(path) as conn:
        for by, command_ in (("cluster", "clusters"), ("duplicates", "duplicates")):
            with pytest.raises(CollectionError, match=f"no {command_} yet: run"):
                search(conn, collection, Query(families()[0].tobytes(), one_per=by))
        conn.execute(
            "insert into _image_similarity_clusterings (collection_id, method, parameters) "
            "values (1, 'kmeans', '{}')"
        )
        conn.execute(
            "insert into _image_similarity_clusters (id, collection_id, name, suggested, "
            "size, medoid_id) select value, 1, 'c', 'c', 40, 1 from json_each('[1, 2]')"
        )
        conn.execute(
            "insert into _image_similarity_members (item_id, collection_id, table_name, "
            "pk, cluster_id, distance) select id, 1, 't', pk, "
            "case when id <= 40 then 1 when id <= 78 then 2 end, 0 "
            "from _image_similarity_items"
        )
        conn.execute(
            "insert into _image_similarity_scans (collection_id, thresholds, scanned) "
            "values (1, '{}', 80)"
        )
        conn.execute(
            "insert into _image_similarity_groups select value, 1, 'alike', 2, 1, 1, '' "
            "from json_each('[5, 6]')"
        )
        conn.execute(
            "insert into _image_similarity_grouped values (5, 1, 1, 1), (5, 41, 1, 1), "
            "(6, 2, 1, 1), (6, 42, 1, 1)"
        )
        query = Query(families()[0].tobytes(), 100, one_per="cluster")
        found = search(conn, collection, query)
        # Those in no cluster stand for themselves.
        assert len(found.hits) == found.total == 2 + 2
        assert {hit.pk for hit in found.hits} >= {79, 80}
        query = Query(families()[0].tobytes(), 100, one_per="duplicates")
        found = search(conn, collection, query)
        assert found.total == 78
        assert len(first & {hit.pk for hit in found.hits}) == 1


def test_groups_that_are_not_there_are_told(copied: Path) -> None:
    with ImageCollection(copied) as collection:
        with pytest.raises(CollectionError, match="no column 'nope'"):
            collection.similar(1, one_per="nope")
        make_older(copied)
        with pytest.raises(CollectionError, match="no clusters yet"):
            collection.similar(1, one_per="cluster")
        assert collection.similar(1, distinct=True)


def test_a_deleted_row_makes_room_for_the_next(copied: Path) -> None:
    with ImageCollection(copied) as collection:
        before = collection.similar(24, 3, one_per="label")
        assert before[0].row["label"] == "red"
        sql(copied, "delete from images where id = ?", (before[0].pk,))
        after = collection.similar(24, 3, one_per="label")
        assert len(after) == 3
        assert after[0].row["label"] == "red"
        assert after[0].others == before[0].others - 1


# Several pictures


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_rocchio_is_what_the_book_says(tmp_path: Path, metric: str) -> None:
    collection = made(tmp_path / "t.db", families()[:10], metric)
    vectors = families()[:10].astype("f8")
    likes = [(families()[n].tobytes(), weight) for n, weight in ((0, 1.0), (1, 3.0))]
    unlikes = [(families()[n].tobytes(), weight) for n, weight in ((2, 2.0), (3, 0.5))]
    found = np.frombuffer(rocchio(collection, likes, unlikes), "<f4")
    like = (vectors[0] + 3 * vectors[1]) / 4
    unlike = (2 * vectors[2] + vectors[3] / 2) / 2.5
    wanted = like - UNLIKE * unlike
    if metric == "l2":
        wanted /= 1 - UNLIKE
        same = rocchio(collection, likes[:1], likes[:1])
        np.testing.assert_allclose(np.frombuffer(same, "<f4"), vectors[0], atol=1e-6)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert rocchio(collection, likes[:1]) == likes[0][0]


def test_what_cannot_be_asked_is_told(tmp_path: Path) -> None:
    collection = made(tmp_path / "t.db", families()[:10])
    vector = families()[0]
    with pytest.raises(CollectionError, match="at least one"):
        rocchio(collection, [], [(vector.tobytes(), 1.0)])
    with pytest.raises(CollectionError, match="opposites"):
        rocchio(collection, [(vector.tobytes(), 1.0), ((-vector).tobytes(), 1.0)])
    nan = struct.pack("<16f", *[float("nan")] * 16)
    with pytest.raises(CollectionError, match="NaN"):
        rocchio(collection, [(vector.tobytes(), 1.0), (nan, 1.0)])


def test_less_like_pushes_away(copied: Path) -> None:
    with ImageCollection(copied) as collection:
        plain = [hit.row["label"] for hit in collection.similar([1, 9], 22)]
        away = collection.similar([1, 9], 21, unlike=2)
        pushed = [hit.row["label"] for hit in away]
        assert {1, 2, 9}.isdisjoint(hit.pk for hit in away)
        assert len(pushed) == 21
        place = lambda labels: np.mean([n for n, one in enumerate(labels) if one == "blue"])  # noqa: E731
        assert place(pushed) > place(plain)


def test_weights_say_how_much_each_counts(copied: Path) -> None:
    with ImageCollection(copied) as collection:
        for light, heavy in ((9, 1), (1, 9)):
            alone = [hit.pk for hit in collection.similar(heavy, 8) if hit.pk != light]
            found = collection.similar({heavy: 999, light: 1}, 7)
            assert [hit.pk for hit in found] == alone[:7]
        assert [h.pk for h in collection.similar({1: 2, 9: 2})] == [
            h.pk for h in collection.similar([1, 9])
        ]
        for wrong in ({1: 0}, {1: -1}, {1: float("inf")}, {1: float("nan")}):
            with pytest.raises(CollectionError, match="weight"):
                collection.similar(wrong)
        with pytest.raises(CollectionError, match="not both"):
            collection.similar([1, 2], unlike=[2])
        with pytest.raises(CollectionError, match="no row with the key 99"):
            collection.similar(1, unlike=99)
        with pytest.raises(CollectionError, match="at least one"):
            collection.similar([], unlike=1)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("7", ("7", 1.0)),
        ("7:2", ("7", 2.0)),
        ("7:.5", ("7", 0.5)),
        ("a,b:2.5", ("a,b", 2.5)),
        ("a~3A2", ("a~3A2", 1.0)),
        ("a~3A2:3", ("a~3A2", 3.0)),
        ("a:b", ("a:b", 1.0)),  # typed: no number, so part of the key
        ("a:b:2", ("a:b", 2.0)),
        ("7:1e3", ("7:1e3", 1.0)),
        ("7:nan", ("7:nan", 1.0)),
        ("7:", ("7:", 1.0)),
        (":2", ("", 2.0)),
    ],
)
def test_weights_in_addresses(text: str, wanted: tuple[str, float]) -> None:
    assert split_weight(text) == wanted


@pytest.mark.parametrize("text", ["7:0", "7:-1", "7:0.0", "7:1001", "7:99999999999999999"])
def test_weights_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(CollectionError, match="must be above 0"):
        split_weight(text)


def test_compound_and_odd_keys(tmp_path: Path, photos: Path) -> None:
    from core import HOG

    path = tmp_path / "odd.db"
    keys = ["a:2", "b,c", "é'\n", "4"]
    with opened(path) as conn:
        conn.execute("create table p (a text, b integer, file text, primary key (a, b))")
        for number, key in enumerate(keys):
            row = (key, number, f"red/red-{number}.png")
            conn.execute("insert into p values (?, ?, ?)", row)
    with ImageCollection(path, "p") as collection:
        collection.embed(path_column="file", root=photos, encoder=HOG)
        one = collection.similar(("a:2", 0))
        assert [hit.pk for hit in collection.similar(["a:2", 0])] == [h.pk for h in one]
        found = collection.similar([("a:2", 0), ("b,c", 1)], unlike=[("4", 3)])
        assert [hit.pk for hit in found] == [["é'\n", 2]]
    found = answer("similar", path, "p", "a~3A2,0:2", "b~2Cc,1", "--unlike", "4,3:2")
    assert [hit["pk"] for hit in found] == ["~C3~A9~27~0A,2"]


def test_a_question_with_weights_as_sql_gives_the_same_rows(copied: Path) -> None:
    with opened(copied) as conn:
        prepare_connection(conn)
        collection = db.find_collection(conn, "images")
        source = db.source_of(conn, collection)
        weights = {1: 2, 9: 1, 24: -3}
        text, params = as_sql(collection, source, weights, 5, None, None)
        rows = [row["id"] for row in conn.execute(text, params)]
    with ImageCollection(copied) as asked:
        hits = asked.similar({1: 2, 9: 1}, 5, unlike=24)
    assert rows[:5] == [hit.pk for hit in hits]


# How far apart


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_random_pairs_are_measured_in_the_metric(tmp_path: Path, metric: str) -> None:
    vectors = np.random.default_rng(1).normal(size=(300, 16)).astype("f4") * 3
    collection = made(tmp_path / "t.db", vectors, metric)
    with opened(tmp_path / "t.db") as conn:
        pairs = random_pairs(conn, collection)
        assert pairs == random_pairs(conn, collection)
    wide = vectors.astype("f8")
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    upper = np.triu_indices(300, 1)
    cosines = (unit @ unit.T)[upper]
    apart = 1 - cosines
    if metric == "l2":
        apart = np.linalg.norm(wide[:, None] - wide[None], axis=2)[upper]
    for share, distance in pairs.quantiles.items():
        assert distance == pytest.approx(np.quantile(apart, share), rel=1e-4)
    assert pairs.cosine == pytest.approx(np.quantile(cosines, 0.999), rel=1e-4)


def test_the_threshold_for_near_duplicates(copied: Path) -> None:
    with opened(copied) as conn:
        collection = db.find_collection(conn, "images")
        pairs = random_pairs(conn, collection)
        by_pairs = near_duplicates(conn, collection, pairs)
        assert 1 - by_pairs == pytest.approx((1 - pairs.cosine) / 4)
        for thresholds, wanted in (
            ('{"alike": 0.91, "same": 0.99}', 0.91),
            ('{"alike": "x"}', by_pairs),
            ('{"alike": 7.5}', by_pairs),
            ("[1]", by_pairs),
            ("[" * 100_000, by_pairs),
            ("no json", by_pairs),
            (b"\xff", by_pairs),
        ):
            conn.execute(
                "insert or replace into _image_similarity_scans "
                "(collection_id, thresholds, scanned) values (?, ?, 24)",
                (collection.id, thresholds),
            )
            assert near_duplicates(conn, collection, pairs) == wanted


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_histogram_counts_what_may_be_found(
    tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = np.abs(np.random.default_rng(1).normal(size=(500, 16))).astype("f4")
    collection = made(tmp_path / "t.db", vectors, metric)

    def measured(**options: object) -> Histogram:
        with opened(tmp_path / "t.db") as conn:
            query = Query(vectors[3].tobytes(), without=frozenset({4}), **options)
            pairs = random_pairs(conn, collection)
            return histogram(conn, collection, query, pairs)

    whole = measured()
    assert (whole.measured, whole.total, sum(whole.counts)) == (499, 499, 499)
    wide = vectors.astype("f8")
    apart = np.linalg.norm(wide - wide[3], axis=1)
    if metric == "cosine":
        unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
        apart = 1 - unit @ unit[3]
    counts, _ = np.histogram(np.delete(apart, 3), len(whole.counts), (0, whole.top))
    assert np.abs(counts - whole.counts).sum() <= 2  # rounding at the edges
    # A cut-off changes nothing: it is chosen by what lies beyond it.
    assert measured(max_distance=0.01).counts == whole.counts
    filtered = measured(filter=Filter("id <= 100"))
    assert (filtered.measured, filtered.total) == (99, 99)
    monkeypatch.setattr("datasette_image_similarity.distances.WHOLE", 300)
    monkeypatch.setattr("datasette_image_similarity.distances.SAMPLED", 120)
    sampled = measured()
    assert sampled.total == 499
    assert 100 <= sampled.measured <= 120
    filtered = measured(filter=Filter("id > 20"))
    assert (filtered.measured, filtered.total) == (120, 480)


def test_few_pictures_have_no_random_pairs(tmp_path: Path) -> None:
    collection = made(tmp_path / "t.db", families()[:2])
    with opened(tmp_path / "t.db") as conn:
        pairs = random_pairs(conn, collection)
        assert pairs.quantiles == {}
        shown = histogram(conn, collection, Query(families()[0].tobytes()), pairs)
        assert shown.measured == 2


# The command line


def test_the_commands_ask_the_same(copied: Path) -> None:
    with ImageCollection(copied) as collection:
        hits = collection.similar({1: 2, 9: 1}, 5, unlike=24, one_per="label")
    found = answer(
        *("similar", copied, "images", "1:2", "9", "--unlike", "24"),
        *("-k", 5, "--one-per", "label"),
    )
    assert found == json.loads(json.dumps([hit.as_json() for hit in hits]))
    assert len({hit["row"]["label"] for hit in found}) == len(found) == 3
    assert [hit["others"] for hit in found] == [hit.others for hit in hits]
    near = answer("similar", copied, "images", "1", "--max-distance", "0.2")
    assert all(hit["distance"] <= 0.2 for hit in near)
    assert "--unlike" in command("similar", "--help").output


def test_the_commands_say_what_is_wrong(copied: Path) -> None:
    assert "must be above 0" in refused("similar", copied, "images", "1:0")
    assert "no clusters yet" in refused(
        "similar", copied, "images", "1", "--one-per", "cluster"
    )
    for crop in ("0,0,2,1", "a,b,c,d", "0,0,1", "0,0,0,1", "-0.1,0,1,1", "nan,0,1,1"):
        result = command("similar", copied, "images", "1", f"--crop={crop}")
        assert result.exit_code == 2, crop
        assert "crop" in result.output
