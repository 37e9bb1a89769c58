"""Learning from labels: what a head finds, what is held out, and when it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from core import answer, command, embed, faults, opened, sql, value

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import CollectionError
from datasette_image_similarity.explore.vectors import Stopped
from datasette_image_similarity.learning import train as training
from datasette_image_similarity.learning.head import (
    LOSSES,
    Settings,
    identity_base,
    pca_base,
    train_head,
)
from datasette_image_similarity.learning.heldout import (
    HALVED,
    Judged,
    Split,
    choose,
    hold_out,
    judge_split,
    try_out,
)
from datasette_image_similarity.learning.labels import NO_PAIRS, Labels
from datasette_image_similarity.learning.stored import stored_transform

PULLS = (0.01, 1.0)
QUICK = ("--epochs", 1)


def labels_of(classes: np.ndarray, apart: np.ndarray = NO_PAIRS) -> Labels:
    return Labels(classes[None], apart, ("kind",))


def planted(
    classes: int = 12, each: int = 10, width: int = 16, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 (n, 2 · width), and classes: the first half tells classes apart, the
    second is louder and says nothing of them."""
    chance = np.random.default_rng(seed)
    of = np.repeat(np.arange(classes), each)
    told = chance.normal(size=(classes, width))[of] + chance.normal(size=(len(of), width))
    noise = 2 * chance.normal(size=(len(of), width))
    return np.hstack([told, noise]).astype(np.float32), of


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("unit", [True, False])
def test_a_head_finds_the_subspace_that_tells_classes_apart(loss: str, unit: bool) -> None:
    vectors, classes = planted()
    settings = Settings(loss=loss, pull=0.001)
    head = train_head(vectors, labels_of(classes), settings, unit=unit)
    told, noise = np.linalg.norm(head[:16], axis=1), np.linalg.norm(head[16:], axis=1)
    assert told.mean() > 1.15 * noise.mean()


def test_it_helps_classes_that_it_never_saw() -> None:
    vectors, classes = planted(classes=24)
    labels = labels_of(classes)
    split = hold_out(classes, 0)
    points = identity_base(32).points(vectors)
    trial = try_out(vectors, points, labels, split, Settings(), pulls=PULLS)
    found = trial.as_json()
    assert found["difference"]["seen"]["map"][0] > 0.05
    assert found["difference"]["unseen"]["map"][0] > 0.02
    assert [one["pull"] for one in found["curve"]] == list(PULLS)


def test_the_pull_holds_it_to_the_identity() -> None:
    vectors, classes = planted()
    far, near = (
        np.square(
            train_head(vectors, labels_of(classes), Settings(pull=pull)) - np.eye(32)
        ).sum()
        for pull in (0.0, 1.0)
    )
    assert near < far / 10


def test_the_same_seed_gives_the_same_head() -> None:
    vectors, classes = planted(classes=70, each=4)  # more than a batch
    one, again, other = (
        train_head(vectors, labels_of(classes), Settings(epochs=2, seed=seed))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_what_is_held_out_is_trained_on_by_nobody() -> None:
    """Not by the head, and not by the choice of the pull."""
    vectors, classes = planted()
    labels = labels_of(classes)
    split = hold_out(classes, 0)
    points = identity_base(32).points(vectors)
    first = try_out(vectors, points, labels, split, Settings(), pulls=PULLS)
    scrambled, moved = classes.copy(), points.copy()
    held = split.gallery
    scrambled[held] = np.random.default_rng(0).permutation(scrambled[held])
    moved[held] = 7
    again = try_out(vectors, moved, labels_of(scrambled), split, Settings(), pulls=PULLS)
    assert again.chosen == first.chosen


def test_singletons_unlabelled_and_large_classes() -> None:
    vectors, classes = planted(classes=6, each=12)
    classes[0:11] = np.arange(100, 111)  # alone
    classes[11] = classes[12:16] = -1
    head = train_head(vectors, labels_of(classes), Settings(epochs=2))
    assert np.isfinite(head).all()


def test_unlabelled_pictures_change_nothing() -> None:
    vectors, classes = planted()
    classes[60:] = -1
    other = vectors.copy()
    other[60:] = 5
    heads = [
        train_head(some, labels_of(classes), Settings(epochs=2))
        for some in (vectors, other)
    ]
    assert np.array_equal(*heads)


def test_batches_are_balanced() -> None:
    from datasette_image_similarity.learning.head import _Sampler

    classes = np.repeat([0, 1, 2], [900, 30, 30])
    sampler = _Sampler(labels_of(classes), np.random.default_rng(0))
    drawn = np.bincount(np.concatenate([classes[sampler.draw()] for _ in range(5)]))
    assert drawn[0] < 4 * drawn[1]


def test_pairs_that_were_set_apart_are_never_alike() -> None:
    classes = np.array([0, 0, 0, 1])
    labels = labels_of(classes, np.array([[0, 1], [2, 3]]))
    alike, comparable = labels.pairs(np.array([0, 1, 2, 3]))
    assert alike.tolist() == [
        [False, False, True, False],
        [False, False, True, False],
        [True, True, False, False],
        [False, False, False, False],
    ]
    assert comparable.sum() == 12


def test_sources_say_nothing_of_what_they_do_not_know() -> None:
    classes = np.array([[0, 0, 1, -1, -1], [-1, -1, -1, 0, 0]])
    alike, comparable = Labels(classes, NO_PAIRS, ("a", "b")).pairs(np.arange(5))
    assert alike[0, 1]
    assert alike[3, 4]
    assert comparable[0, 2]
    assert not comparable[:3, 3:].any()


def test_splits() -> None:
    classes = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    split = hold_out(classes, 0)
    parts = [set(classes[one].tolist()) for one in split]
    assert not parts[0] & parts[2]
    assert len(parts[2]) == 2
    assert parts[1] <= parts[0]
    assert all((classes[split.seen] == one).sum() * 2 >= HALVED - 1 for one in parts[1])
    both = np.concatenate(split)
    assert sorted(both.tolist()) == list(range(len(classes)))
    assert 0 not in parts[2]  # alone: nothing to find


@pytest.mark.parametrize("sizes", [[10], [10, 10], [10, 10, 10], [1, 1, 2]])
def test_few_classes_are_not_held_out(sizes: list[int]) -> None:
    split = hold_out(np.repeat(np.arange(len(sizes)), sizes), 0)
    assert not len(split.unseen)
    assert len(split.train)


def test_the_pull_is_chosen_where_unseen_classes_are_no_worse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from datasette_image_similarity.learning import heldout

    def judged(moved: np.ndarray, *_: object, **__: object) -> Judged:
        """The more it changes, the better for seen classes and the worse for others."""
        change = float(np.abs(moved - points[gallery]).mean())
        unseen = 0.6 - 0.1 * (change > 0.5)
        return Judged(np.full((1, 6), 0.5 + change), np.full((1, 6), unseen))

    vectors, classes = planted()
    points = identity_base(32).points(vectors)
    gallery = hold_out(classes, 1).gallery
    monkeypatch.setattr(heldout, "judge_split", judged)
    pulls = (0.0, 1.0)
    chosen = choose(vectors, points, labels_of(classes), Settings(), pulls)
    assert chosen.inside[0].unseen < chosen.before.unseen
    assert chosen.settings.pull == 1.0


def test_pca_gives_the_axes_of_most_variance() -> None:
    chance = np.random.default_rng(0)
    spread = np.array([5.0, 1, 3, 0.1, 0.1, 0.1])
    for count in (4, 400):  # fewer pictures than dimensions, and more
        vectors = (7 + chance.normal(size=(count, 6)) * spread).astype(np.float32)
        base = pca_base(vectors, 2)
        points = base.points(vectors)
        assert base.words == "PCA to 2"
        assert np.allclose(base.axes.T @ base.axes, np.eye(2), atol=1e-4)
        assert np.abs(points.mean(axis=0)).max() < 1e-3
        _, _, right = np.linalg.svd(vectors - vectors.mean(axis=0))
        assert np.allclose(np.abs(right[:2] @ base.axes), np.eye(2), atol=1e-3)
    with pytest.raises(CollectionError, match="the same"):
        pca_base(np.ones((5, 3), np.float32))


def test_pca_of_long_vectors_is_fitted_on_few(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasette_image_similarity.learning import pca

    vectors = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    monkeypatch.setattr(pca, "sample_size", lambda inputs: 4)
    assert pca_base(vectors).axes.shape == (6, 3)


def test_the_pull_is_not_chosen_by_one_picture_without_another_of_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from datasette_image_similarity.learning import heldout

    def one_is_left(classes: np.ndarray, *_: object, **__: object) -> Split:
        return Split(np.arange(40), np.arange(50, 60), np.array([40]))

    vectors, classes = planted()
    classes[40] = classes.max() + 1
    monkeypatch.setattr(heldout, "hold_out", one_is_left)
    chosen = choose(vectors, vectors, labels_of(classes), Settings())
    assert not chosen.inside
    assert chosen.settings == Settings()


def test_judging_is_that_of_evaluate() -> None:
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    classes = np.array([0, 0, 1, 1])
    split = hold_out(classes, 0)._replace(seen=np.array([0, 1]), unseen=np.array([2, 3]))
    figures = judge_split(vectors, classes, split).figures()
    assert figures["seen"].map == figures["unseen"].map == 1.0
    assert figures["seen"].precision_at_5 == pytest.approx(0.2)


# The command


@pytest.fixture
def table(copied: Path) -> Path:
    """24 pictures, and a label that divides each colour: six classes of four."""
    sql(copied, "alter table images add column kind text")
    sql(copied, "update images set kind = label || (id % 2)")
    return copied


def test_a_head_is_a_collection_of_its_own(table: Path) -> None:
    found = answer("train", table, "--label", "kind", "--anyway", "--dims", 8, *QUICK)
    assert found["name"] == "trained"
    assert (found["labelled"], found["classes"], found["dimensions"]) == (24, 6, 8)
    assert found["held_out"]["unseen"] == 8
    assert {"before", "base", "after", "curve", "chosen"} <= found["held_out"].keys()
    with opened(table) as conn:
        made = db.find_collection(conn, "images", "trained")
        (step,) = stored_transform(conn, made).steps
        assert step.kind == "head"
        assert str(step) == "PCA to 8 and head for kind"
        assert step.about["learned_from"] == "kind"
        assert step.about["held_out"] == found["held_out"]
        assert made.dimensions == 8
    assert faults(table) == []
    with ImageCollection(table, name="trained") as trained:
        path = value(table, "select path from images where id = 1")
        root = value(table, "select path from _image_similarity_roots")
        assert trained.search(Path(root) / path, k=1)[0].pk == 1


def test_an_evaluation_of_a_head_says_that_it_flatters(table: Path) -> None:
    command("train", table, "--label", "kind", "--anyway", *QUICK)
    for name, says in (("trained", True), ("default", False)):
        with ImageCollection(table, name=name) as collection:
            report = collection.evaluate("kind").report
        assert report.learned == (["kind"] if says else [])
        assert ("trained on such pictures, by kind" in report.in_words("kind")) == says
    said = command("evaluate", table, "--label", "kind", "--name", "trained").output
    assert "of new ones expect less" in said


def test_the_same_command_gives_the_same_vectors(table: Path) -> None:
    hashes = set()
    for name in ("one", "two"):
        command("train", table, "--label", "kind", "--to", name, "--anyway", *QUICK)
        with opened(table) as conn:
            made = db.find_collection(conn, "images", name)
            hashes.add(stored_transform(conn, made).sha256)
    assert len(hashes) == 1


def test_a_head_that_makes_unseen_classes_worse_is_refused(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.try_out

    def worse(*arguments: object, **options: object) -> training.Trial:
        trial = real(*arguments, **options)
        before = trial.rows["before"]
        after = replace(before, unseen=before.unseen - 0.05)
        return replace(trial, rows={**trial.rows, "after": after})

    monkeypatch.setattr(training, "try_out", worse)
    result = command("train", table, "--label", "kind", *QUICK)
    assert result.exit_code == 1
    assert "not trained on get worse: mAP -0.050" in result.output
    assert "--anyway" in result.output
    assert len(names(table)) == 1
    found = command("train", table, "--label", "kind", "--json", *QUICK)
    assert found.exit_code == 1
    assert json.loads(found.stdout)["name"] is None
    result = command("train", table, "--label", "kind", "--anyway", *QUICK)
    assert result.exit_code == 0
    assert "get worse" in result.output
    assert names(table) == ["default", "trained"]


def refusal(*arguments: object) -> str:
    """What a command ends with that cannot be done."""
    result = command(*arguments)
    assert result.exit_code == 1, result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    return last


def names(path: Path) -> list[str]:
    return [
        row[0]
        for row in sql(path, "select name from _image_similarity_collections order by 1")
    ]


def test_few_labels_are_said_to_be_few(copied: Path) -> None:
    """Three classes: enough to learn, too few to hold any out."""
    result = command("train", copied, "--label", "label", "--dims", 4, *QUICK)
    assert "not trained on cannot be judged: that takes 4 classes" in " ".join(
        result.output.replace("that it was ", "").split()
    )
    assert "too few classes to choose the pull" in result.output


def test_two_classes_of_two(copied: Path) -> None:
    sql(copied, "alter table images add column kind text")
    sql(copied, "update images set kind = id / 2 where id < 6 and id > 1")
    result = command("train", copied, "--label", "kind", *QUICK)
    assert result.exit_code == 0, result.output
    assert "4 of 24 pictures in 2 classes" in result.output
    assert "cannot be judged" in result.output


@pytest.mark.parametrize(
    ("labelled", "words"),
    [
        ("'all'", "all pictures are alike"),
        ("id", "no two pictures belong together"),
        ("null", "no two pictures belong together"),
        ("iif(id < 3, 'x', null)", "all pictures are alike"),
    ],
)
def test_labels_that_teach_nothing(copied: Path, labelled: str, words: str) -> None:
    sql(copied, "alter table images add column kind text")
    sql(copied, f"update images set kind = {labelled}")
    assert words in refusal("train", copied, "--label", "kind")
    assert names(copied) == ["default"]


def test_what_does_not_fit(copied: Path) -> None:
    assert "no column 'nothing'" in refusal("train", copied, "--label", "nothing")
    assert "already" in refusal("train", copied, "--label", "label", "--to", "default")
    assert "no decisions" in refusal("train", copied, "--decisions")
    assert "no feedback" in refusal("train", copied, "--feedback")
    assert command("train", copied).exit_code == 2
    hot = ("--label", "label", "--temperature", "1e-300", "--anyway", *QUICK)
    assert "not finite" in refusal("train", copied, *hot)
    assert "above 0" in refusal("train", copied, "--label", "label", "--pull", "inf")


def test_a_reduced_collection_is_where_it_starts(table: Path) -> None:
    command(
        "train", table, "--label", "kind", "--to", "once", "--dims", 6, "--anyway", *QUICK
    )
    found = answer(
        *(
            "train",
            table,
            "--label",
            "kind",
            "--name",
            "once",
            "--to",
            "twice",
            "--anyway",
            *QUICK,
        )
    )
    assert (found["base"], found["dimensions"]) == ("", 6)
    assert found["words"] == "head for kind"
    with opened(table) as conn:
        twice = stored_transform(conn, db.find_collection(conn, "images", "twice"))
        assert len(twice.steps) == 2
        assert not twice.steps[1].mean.any()


def test_euclidean_collections(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "l2.db"
    embed(path, photos, label_from_folder=True, metric="l2")
    sql(path, "alter table images add column kind text")
    sql(path, "update images set kind = label || (id % 2)")
    found = answer("train", path, "--label", "kind", "--anyway", *QUICK)
    with opened(path) as conn:
        made = db.find_collection(conn, "images", found["name"])
        (step,) = stored_transform(conn, made).steps
        assert (made.metric, step.unit) == ("l2", False)
    assert faults(path) == []


def test_stopped_stores_nothing(table: Path) -> None:
    asked = iter(range(1000))
    with ImageCollection(table) as collection, pytest.raises(Stopped):
        collection.train("kind", stop=lambda: next(asked) > 20)
    assert names(table) == ["default"]


def test_hostile_column_names(table: Path) -> None:
    column = 'a"\n\x1b[31m'
    quoted = db.quote(column)
    sql(table, f"alter table images add column {quoted} text")
    sql(table, f"update images set {quoted} = kind")
    result = command("train", table, "--label", column, "--anyway", *QUICK)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert command("status", table).exit_code == 0
