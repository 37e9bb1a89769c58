"""Searching with words from the command line and Python, beside open_clip's own ranking."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from core import answer, command, refused, sql
from wording import TEXT, embed_worded, ranked

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.encoders import (
    EncoderSpec,
)

ROUNDING = 3e-4  # of a cosine, where pictures are resized by two libraries


def names(hits: list[dict]) -> list[str]:
    return [Path(hit["row"]["path"]).name for hit in hits]


def test_words_rank_pictures_as_open_clip_does(
    worded: Path, worded_once: Path, tiny_model: Path
) -> None:
    hits = answer("search", worded, "--text", TEXT, "-k", 24)
    wanted = ranked(tiny_model, worded_once.parent / "photos", TEXT)
    found = dict(zip(names(hits), (hit["score"] for hit in hits), strict=True))
    assert found == pytest.approx(dict(wanted), abs=ROUNDING)
    scores = [cosine for _, cosine in wanted]
    assert max(scores) - min(scores) > 100 * ROUNDING  # else the order would mean nothing
    for place, (name, score) in enumerate(wanted):
        assert abs(scores[names(hits).index(name)] - score) < 2 * ROUNDING, place
    others = answer("search", worded, "--text", "a blue car", "-k", 24)
    assert names(others) != names(hits)


def test_a_picture_and_words_are_mixed(worded: Path, worded_once: Path) -> None:
    picture = worded_once.parent / "photos" / "red" / "red-3.png"
    with ImageCollection(worded) as photos:
        alone = photos.search(picture, k=24)
        words = photos.search(text=TEXT, k=24)
        both = photos.search(picture, k=24, text=TEXT)
        mostly_words = photos.search(picture, k=24, text={TEXT: 1000})
        mostly_picture = photos.search(picture, k=24, text={TEXT: 0.001})
        # Each score counts in its own standard deviation: the sum of z-scores.
        vectors = {hit.pk: photos.vector(hit.pk) for hit in alone}
        x, t = photos.encode(picture), photos.encode_text(TEXT)
    matrix = np.stack(list(vectors.values()))
    scores = [matrix @ np.frombuffer(one, "<f4") for one in (x, t)]
    order = np.argsort(-sum(one / one.std() for one in scores), kind="stable")
    assert [hit.pk for hit in both] == [list(vectors)[place] for place in order]
    assert [hit.pk for hit in mostly_words] == [hit.pk for hit in words]
    assert [hit.pk for hit in mostly_picture] == [hit.pk for hit in alone]
    assert [hit.pk for hit in both] not in (
        [hit.pk for hit in alone],
        [hit.pk for hit in words],
    )


def test_commands_mix_words_with_rows_and_push_away(worded: Path) -> None:
    alone = answer("similar", worded, "images", "1", "-k", 23)
    both = answer("similar", worded, "images", "1", "--text", TEXT, "-k", 23)
    away = answer("similar", worded, "images", "1", "--unlike-text", TEXT, "-k", 23)
    assert len({tuple(names(hits)) for hits in (alone, both, away)}) == 3
    with ImageCollection(worded) as photos:
        t = np.frombuffer(photos.encode_text(TEXT), "<f4")
        cosine = {n: float(photos.vector(n) @ t) for n in range(1, 25)}

    def agreement(hits: list[dict]) -> float:
        """How much higher pictures stand that the words are near."""
        ranks = [-hit["rank"] for hit in hits]
        return float(np.corrcoef(ranks, [cosine[hit["row"]["id"]] for hit in hits])[0, 1])

    assert agreement(both) > agreement(alone) > agreement(away)


def test_what_words_there_may_be(worded: Path, gallery: Path) -> None:
    assert "empty" in refused("search", worded, "--text", "  ")
    assert "up to 500" in refused("search", worded, "--text", "x" * 501)
    assert "reads 14 tokens" in refused("search", worded, "--text", "a cat " * 10)
    said = refused("search", worded, "--text", TEXT, "--crop", "0,0,.5,.5")
    assert "A crop needs a picture" in said
    result = command("search", worded)
    assert result.exit_code == 2
    assert "--text" in result.output
    said = refused("search", gallery, "--text", TEXT)
    assert "hog" in said
    assert "--name words --model open_clip:" in said


def test_the_collection_that_reads_words_is_named(worded: Path, worded_once: Path) -> None:
    photos = worded_once.parent / "photos"
    done = command("embed", worded, photos, "--name", "shapes", "--model", "hog")
    assert done.exit_code == 0, done.output
    said = refused("search", worded, "--name", "shapes", "--text", TEXT)
    assert "its collection default can" in said


def test_words_are_for_cosines(tmp_path: Path, photos: Path, tiny_model: Path) -> None:
    path = embed_worded(tmp_path / "l2.db", photos, tiny_model, metric="l2")
    assert "compared by cosine" in refused("search", path, "--text", TEXT)


def test_embed_goes_on_with_the_folder_it_was_told(
    tmp_path: Path, photos: Path, tiny_model: Path
) -> None:
    path = tmp_path / "photos.db"
    first = ["embed", path, photos, "--model", "open_clip", "--weights", tiny_model]
    assert "24 embedded" in command(*first, "--precision", "float32").output
    stored = sql(path, "select encoder from _image_similarity_collections")[0][0]
    assert str(tiny_model.parent) not in stored
    spec = EncoderSpec.from_json(stored)
    assert (spec.model, spec.weights, spec.text) == ("open_clip", "tiny", True)
    shutil.copy(photos / "red" / "red-1.png", photos / "another.png")
    (photos / "another.png").write_bytes((photos / "red" / "red-2.png").read_bytes())
    again = command("embed", path, photos)
    assert again.exit_code == 0
    assert "24 unchanged" in again.output
    again = command("embed", path, photos, "--model", "open_clip", "--force")
    assert again.exit_code == 0, again.output


def test_words_go_through_what_was_learned_uncentred(worded: Path) -> None:
    from datasette_image_similarity.encoders.transform import Step
    from datasette_image_similarity.explore.vectors import read_vectors
    from datasette_image_similarity.learning.stored import derive

    with ImageCollection(worded) as photos:
        collection, conn = photos._open()
        matrix = read_vectors(conn, collection).vectors
        mean = matrix.mean(0)
        axes = np.linalg.svd(matrix - mean, full_matrices=False)[2][:6].T
        step = Step("pca", mean, axes, unit=True, about={"words": "PCA to 6"})
        derive(conn, collection, step, name="small")
        t = np.frombuffer(photos.encode_text(TEXT), "<f4")
        wanted = (matrix - mean) @ axes
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        wanted = wanted @ (t @ axes) / np.linalg.norm(t @ axes)
    hits = answer("search", worded, "--name", "small", "--text", TEXT, "-k", 24)
    found = {hit["row"]["id"]: hit["score"] for hit in hits}
    assert [found[n] for n in range(1, 25)] == pytest.approx(wanted.tolist(), abs=2e-5)
