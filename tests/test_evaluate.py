"""How good results are: the metrics, against others' implementations, and stored runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from core import answer, command, embed, make_older, opened, refused, sql, value
from test_index import MANY, make

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import CollectionError, DatabaseError
from datasette_image_similarity.explore import evaluate
from datasette_image_similarity.explore import evaluations as stored
from datasette_image_similarity.explore.judging import (
    METRICS,
    Task,
    confusions,
    intervals,
    judge,
    means,
    metrics_of,
)
from datasette_image_similarity.explore.vectors import Stopped


def random_task(
    seed: int, *, euclidean: bool = False, split: bool = False, classes: int = 7
) -> Task:
    """Vectors of small whole numbers: products are exact, and many are equal."""
    chance = np.random.default_rng(seed)
    vectors = chance.integers(-1, 2, (90, 5)).astype(np.float32)
    vectors[10:20] = vectors[:10]  # the same pictures once more
    places = np.arange(len(vectors))
    labels = chance.integers(0, classes, len(vectors))
    asks = chance.random(len(vectors)) < 0.3 if split else np.ones(len(vectors), bool)
    task = Task(
        vectors, labels, places[asks], places[~asks] if split else places, euclidean
    )
    return task._replace(queries=task.queries[task.relevant() > 0])


def ranking_of(task: Task, query: int) -> np.ndarray:
    """The gallery in the order of another implementation: float64, sorted by two keys."""
    others = task.gallery[task.gallery != query]
    vectors = task.vectors.astype(np.float64)
    if task.euclidean:
        scores = -np.linalg.norm(vectors[others] - vectors[query], axis=1)
    else:
        scores = vectors[others] @ vectors[query]
    return others[np.lexsort((others, -scores))]


@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_metrics_agree_with_scikit_learn(seed: int, split: bool, euclidean: bool) -> None:
    from sklearn.metrics import average_precision_score, ndcg_score

    task = random_task(seed, euclidean=euclidean, split=split)
    judged = judge(task)
    assert len(judged.values) == len(task.queries) > 20
    for query, values, nearest in zip(task.queries, *judged, strict=True):
        ranked = ranking_of(task, query)
        assert nearest.tolist() == ranked[:10].tolist()
        right = task.classes[ranked] == task.classes[query]
        scores = -np.arange(len(ranked), dtype=float)  # no ties left: ours go by place
        assert dict(zip(METRICS, values, strict=True)) == pytest.approx(
            {
                "precision_at_1": float(right[0]),
                "precision_at_5": right[:5].mean(),
                "precision_at_10": right[:10].mean(),
                "recall_at_10": right[:10].sum() / right.sum(),
                "map": average_precision_score(right, scores),
                "ndcg_at_10": ndcg_score([right.astype(float)], [scores], k=10),
            }
        )


def test_products_that_round_differently_still_tie() -> None:
    chance = np.random.default_rng(0)
    vectors = chance.standard_normal((60, 333), dtype=np.float32)
    vectors[40:] = vectors[7]  # twenty-one of the same picture
    places = np.arange(60)
    judged = judge(Task(vectors, places % 2, places, places))
    assert judged.nearest[7].tolist() == list(range(40, 50))
    assert judged.nearest[50].tolist() == [7, *range(40, 49)]


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    task = random_task(5)
    whole = judge(task)
    monkeypatch.setattr("datasette_image_similarity.explore.judging.AT_ONCE", 200)
    steps = []
    parts = judge(task, say=lambda *step: steps.append(step))
    assert np.array_equal(whole.values, parts.values)
    assert np.array_equal(whole.nearest, parts.nearest)
    assert len(steps) > 10
    assert steps[-1][1:] == (len(task.queries), len(task.queries))
    with pytest.raises(Stopped):
        judge(task, stop=lambda: True)


def test_fewer_results_than_k() -> None:
    # Three others, of which two are right, at ranks 1 and 3.
    one, five, ten, recall, ap, ndcg = metrics_of(np.array([0, 2]), 2)
    assert (one, five, ten, recall) == (1, 2 / 5, 2 / 10, 1)
    assert ap == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert ndcg == pytest.approx((1 + 1 / 2) / (1 + 1 / np.log2(3)))
    vectors = np.eye(4, dtype=np.float32)
    places = np.arange(4)
    judged = judge(Task(vectors, np.array([0, 1, 0, 0]), places[[0, 2, 3]], places))
    assert judged.nearest[0].tolist() == [1, 2, 3] + [-1] * 7
    assert judged.values[0].tolist()[:4] == [0, 2 / 5, 2 / 10, 1]


def test_recall_is_bounded_by_how_many_there_are() -> None:
    assert metrics_of(np.arange(40), 40)[3] == 10 / 40


def test_means_over_queries_and_over_classes() -> None:
    values = np.array([[1.0], [0.0], [0.0], [0.5]])
    micro, macro = means(values, np.array([3, 3, 3, 1]))
    assert micro.tolist() == [0.375]
    assert macro.tolist() == pytest.approx([(1 / 3 + 0.5) / 2])


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    chance = np.random.default_rng(0)
    covered = []
    for seed in range(100):
        values = chance.random((80, 1)) ** 2  # mean 1/3
        (low, high), *_ = intervals(values, np.zeros(80, int), 200, seed)[0]
        covered.append(low <= 1 / 3 <= high)
    assert 0.89 <= np.mean(covered) <= 0.99
    again = [intervals(values, np.zeros(80, int), 300)[0].tolist() for _ in range(2)]
    assert again[0] == again[1]  # seeded


def test_confusions_count_queries_not_pictures() -> None:
    vectors = np.zeros((4, 2), np.float32)
    places = np.arange(4)
    task = Task(vectors, np.array([0, 0, 1, 1]), places, places)
    nearest = np.full((4, 10), -1)
    nearest[0, :3] = [2, 3, 1]  # two of the other class: one query
    nearest[1, :2] = [0, 3]
    nearest[2, :6] = [3, 3, 3, 3, 3, 0]  # beyond the nearest five
    found = confusions(task, nearest)
    assert found == [(0, 1, 2, [(0, 2), (1, 3)])]


# Of a collection


def test_command_prints_and_stores(copied: Path) -> None:
    found = answer("evaluate", copied, "--label", "folder")
    assert set(stored.BOTH) < set(found)
    assert set(found["intervals"]) == set(stored.BOTH)
    for name in stored.BOTH:
        low, high = found["intervals"][name]
        assert 0 <= low <= found[name] <= high <= 1
    assert (found["queries"], found["gallery"], found["classes"]) == (24, 24, 3)
    assert found["chance"] == pytest.approx(7 / 23)
    assert [one["label"] for one in found["per_class"]] == ["blue", "green", "red"]
    assert found["map"] == pytest.approx(np.mean([c["map"] for c in found["per_class"]]))
    assert found["precision_at_5"] > 0.9  # colours are what hog sees
    assert value(copied, "select count(*) from _image_similarity_evaluations") == 1
    assert value(copied, "select count(*) from _image_similarity_evaluated") == 24
    average = "select avg(average_precision) from _image_similarity_evaluated"
    assert value(copied, average) == pytest.approx(found["map"])
    said = command("evaluate", copied, "images", "--label", "folder").stdout
    assert f"{found['map']:.3f}" in said
    assert "Evaluation 2" in said


def test_python(copied: Path) -> None:
    with ImageCollection(copied) as photos:
        steps = []
        run = photos.evaluate("folder", progress=lambda *step: steps.append(step))
        assert run.report.metrics["map"] > 0.5
        assert ("Ranking", 24, 24) in steps
        with pytest.raises(Stopped):
            photos.evaluate("folder", stop=lambda: True)
    assert value(copied, "select count(*) from _image_similarity_evaluations") == 1


def test_nearest_are_what_search_finds(copied: Path) -> None:
    with ImageCollection(copied) as photos:
        photos.evaluate("folder")
        rows = sql(copied, "select item_id, nearest from _image_similarity_evaluated")
        pks = dict(sql(copied, "select id, pk from _image_similarity_items"))
        for item, nearest in rows:
            hits = photos.similar(pks[item], k=10)
            assert [pks[one] for one in json.loads(nearest)] == [hit.pk for hit in hits]


def test_of_unnormalised_vectors_by_their_distance(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "l2.db"
    embed(path, photos, metric="l2", label_from_folder=True)
    with ImageCollection(path) as found:
        found.evaluate("folder")
        nearest = dict(
            sql(path, "select item_id, nearest from _image_similarity_evaluated")
        )
        pks = dict(sql(path, "select id, pk from _image_similarity_items"))
        hits = found.similar(pks[5], k=10)
    assert [pks[one] for one in json.loads(nearest[5])] == [hit.pk for hit in hits]


def test_without_a_label_or_alone_with_it(copied: Path) -> None:
    sql(copied, "update images set folder = null where id = 1")
    sql(copied, "update images set folder = '  ' where id = 2")
    sql(copied, "update images set folder = x'00ff' where id = 3")
    sql(copied, "update images set folder = 'odd one' where id = 4")
    sql(copied, "update images set folder = 7 where id in (5, 6)")
    found = answer("evaluate", copied, "--label", "folder")
    assert (found["unlabelled"], found["alone"]) == (3, 1)
    assert (found["queries"], found["gallery"], found["classes"]) == (20, 21, 4)
    assert "7" in [one["label"] for one in found["per_class"]]
    said = command("evaluate", copied, "--label", "folder").stdout
    assert "1 with a label of their own and 3 without a label" in said
    sql(copied, "update images set folder = id")
    nothing = command("evaluate", copied, "--label", "folder")
    assert nothing.exit_code == 1
    assert "Nothing to find" in nothing.output
    assert "no column 'sort'" in refused("evaluate", copied, "--label", "sort")


def test_split(copied: Path) -> None:
    sql(copied, "alter table images add column part text")
    sql(copied, "update images set part = case when id % 4 then 'train' else 'Test' end")
    found = answer("evaluate", copied, "--label", "folder", "--split", "part")
    assert (found["queries"], found["gallery"]) == (6, 18)
    rows = sql(copied, "select item_id, nearest from _image_similarity_evaluated")
    asked = {item for item, nearest in rows if nearest}
    assert len(rows) == 24
    for _, nearest in rows:
        assert asked.isdisjoint(json.loads(nearest or "[]"))
    other = ("--split", "part", "--queries", "train")
    assert answer("evaluate", copied, "--label", "folder", *other)["queries"] == 18
    none = ("--split", "part", "--queries", "nowhere")
    assert "'Test', 'train'" in refused("evaluate", copied, "--label", "folder", *none)
    lone = refused("evaluate", copied, "--label", "folder", "--queries", "x")
    assert "split column" in lone


def test_two_collections_compared(copied: Path, made_once: Path) -> None:
    embed(copied, made_once.parent / "photos", name="l2", metric="l2")
    both = ("--collections", "default, l2")
    found = answer("evaluate", copied, "--label", "folder", *both)
    first, second = found["runs"]
    (one,) = found["comparison"]
    assert (one["run"], one["queries"]) == (second["id"], 24)
    for name in stored.BOTH:
        difference = second[name] - first[name]
        assert one["differences"][name] == pytest.approx(difference)
        low, high = one["intervals"][name]
        assert low <= difference <= high
    assert (
        "24 queries in common"
        in command("evaluate", copied, "--label", "folder", *both).stdout
    )
    unknown = refused("evaluate", copied, "--label", "folder", "--collections", "x,y")
    assert "no collection 'x'" in unknown


def test_a_paired_difference_is_surer_than_its_sides(copied: Path) -> None:
    with ImageCollection(copied) as photos, opened(copied) as conn:
        runs = [photos.evaluate("folder") for _ in range(2)]
        one = stored.compare(conn, *runs)
    assert one.queries == 24
    assert set(one.differences.values()) == {0}
    assert all(ends == [0, 0] for ends in one.intervals.values())
    assert one.changes == []


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_through_the_compressed_index(
    tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "THROUGH_INDEX", 200)
    path = make(tmp_path / "indexed.db", metric)
    found = answer("evaluate", path, "--label", "folder")
    index = found["through_index"]
    assert (found["queries"], index["queries"]) == (MANY, 200)
    assert 0.97 <= index["found"] <= 1
    assert set(index["exact"]) == set(index["index"]) == set(METRICS) - {"map"}
    for name, exact in index["exact"].items():
        assert exact == pytest.approx(found[name], abs=0.05)
        assert index["index"][name] == pytest.approx(exact, abs=0.005)
    # With a gallery that is not everything, the index is asked among that.
    sql(path, "update images set folder = null where id % 3 = 0")
    some = answer("evaluate", path, "--label", "folder")
    assert 0.97 <= some["through_index"]["found"] <= 1
    exact = answer("evaluate", path, "--label", "folder", "--exact")
    assert exact["through_index"] is None


def test_without_an_index_there_is_nothing_to_compare(copied: Path) -> None:
    assert answer("evaluate", copied, "--label", "folder")["through_index"] is None


def test_a_run_says_when_the_collection_has_changed(copied: Path, photos: Path) -> None:
    answer("evaluate", copied, "--label", "folder")
    with opened(copied) as conn:
        assert not stored.find_run(conn, "images", 1).changed
    sql(copied, "delete from images where id = 1")
    with opened(copied) as conn:
        (collection,) = db.collections(conn)
        with db.transaction(conn):
            db.drop_items(conn, collection, [1])
        assert stored.find_run(conn, "images", 1).changed
    assert value(copied, "select count(*) from _image_similarity_evaluated") == 23


def test_forget(copied: Path) -> None:
    for _ in range(2):
        answer("evaluate", copied, "--label", "folder")
    sql(copied, "update _image_similarity_evaluations set report = '{' where id = 1")
    assert command("evaluate", copied, "--forget", 1).exit_code == 0
    for table in ("evaluations", "classes", "confusions", "evaluated"):
        column = "id" if table == "evaluations" else "evaluation_id"
        rows = sql(copied, f"select distinct {column} from _image_similarity_{table}")
        assert {row[0] for row in rows} <= {2}, table
    assert "no evaluation 1" in refused("evaluate", copied, "--forget", 1)


def test_what_is_asked_wrongly(copied: Path) -> None:
    assert "--label" in command("evaluate", copied).output
    both = ("--name", "default", "--collections", "default")
    assert command("evaluate", copied, "--label", "folder", *both).exit_code == 2


@pytest.mark.parametrize(
    "damage",
    [
        "update _image_similarity_evaluations set report = x'00'",
        "update _image_similarity_evaluations set report = '[1]'",
        "update _image_similarity_evaluations set report = replace(report, '\"map\"', '1')",
        "update _image_similarity_evaluations set report = "
        "json_set(report, '$.metrics.map', 1e999)",
        "update _image_similarity_evaluations set label = x'00'",
    ],
)
def test_a_damaged_report_is_told_in_words(copied: Path, damage: str) -> None:
    answer("evaluate", copied, "--label", "folder")
    sql(copied, damage)
    with opened(copied) as conn:
        with pytest.raises(DatabaseError, match="--forget 1"):
            stored.find_run(conn, "images", 1)
        runs, faults = stored.runs(conn, "images")
        assert runs == []
        assert "--forget 1" in faults[0]
        with pytest.raises(CollectionError):
            stored.find_run(conn, "images", 2)


def test_an_older_database_has_no_runs(copied: Path) -> None:
    make_older(copied)
    with opened(copied) as conn:
        assert stored.runs(conn, "images") == ([], [])
