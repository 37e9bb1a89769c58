"""Fine-tuning the network itself: a small one, of random numbers, learns colours."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from core import opened, sql

from datasette_image_similarity import ImageCollection, trust
from datasette_image_similarity import database as db
from datasette_image_similarity.cli.base import image_similarity
from datasette_image_similarity.cli.finetune import (
    NAMES,
    backbone_options,
    refuse_given,
    run_backbone,
)
from datasette_image_similarity.collection import EncoderOptions
from datasette_image_similarity.errors import CollectionError, EncoderError
from datasette_image_similarity.explore.vectors import Stopped
from datasette_image_similarity.learning import checkpoint
from datasette_image_similarity.learning.finetune import Finetuned, Settings
from datasette_image_similarity.learning.parts import balanced, divided

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("safetensors")

MODEL = "squeezenet1_1"
COLOURS = ("maroon", "olive", "teal", "navy")
QUICK = Settings(epochs=2, lr=1e-3, batch_size=4, freeze=0.6, hold_out=0.5)


@pytest.fixture(scope="module")
def tuned_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 pictures of four classes, random weights and a database."""
    from PIL import Image
    from torchvision.models import get_model

    folder = tmp_path_factory.mktemp("finetune")
    chance = random.Random(0)
    for colour in COLOURS:
        (folder / "photos" / colour).mkdir(parents=True)
        for number in range(6):
            image = Image.new("RGB", (40, 40), colour)
            for _ in range(12):
                shade = tuple(chance.randint(0, 255) for _ in range(3))
                x, y = chance.randint(0, 36), chance.randint(0, 36)
                image.paste(shade, (x, y, x + 5, y + 5))
            image.save(folder / "photos" / colour / f"{number}.png")
    torch.manual_seed(0)
    torch.save(get_model(MODEL).state_dict(), folder / "random.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.get_app_dir", lambda *_, **__: str(folder))
        encoder = EncoderOptions(MODEL, str(folder / "random.pth"), size=64, device="cpu")
        with ImageCollection(folder / "gallery.db") as collection:
            collection.embed(
                folder / "photos", encoder=encoder, label_from_folder=True, workers=1
            )
    return folder


@pytest.fixture
def database(tmp_path: Path, tuned_once: Path) -> Path:
    """A copy of the database; its pictures and weights are shared, and vouched for."""
    path = tmp_path / "gallery.db"
    shutil.copy(tuned_once / "gallery.db", path)
    vouch(path, tuned_once)
    return path


@pytest.fixture(scope="module")
def trained(tuned_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Finetuned:
    """A run from beginning to end."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "gallery.db"
    shutil.copy(tuned_once / "gallery.db", path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.get_app_dir", lambda *_, **__: str(folder))
        vouch(path, tuned_once)
        return train(path)


def vouch(path: Path, folder: Path) -> None:
    import hashlib

    weights = folder / "random.pth"
    trust.note_root(path, folder / "photos")
    trust.note_weights(hashlib.sha256(weights.read_bytes()).hexdigest(), weights)


def train(path: Path, settings: Settings = QUICK, **options: Any) -> Finetuned:
    options = {"workers": 1, "device": "cpu", "anyway": True, **options}
    file = options.pop("file", path.with_name("tuned.safetensors"))
    with ImageCollection(path) as collection:
        return collection.finetune("label", file, settings=settings, **options)


def tensors(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(file)


def stop_after(batches: int) -> dict[str, Any]:
    """Options that stop a run after so many batches."""
    done = 0

    def progress(what: str, *_: int) -> None:
        nonlocal done
        done += what.startswith("Epoch")

    return {"progress": progress, "stop": lambda: done >= batches}


def test_the_loss_falls_and_the_file_is_one_that_embed_takes(database: Path) -> None:
    epochs = []
    made = train(database, replace(QUICK, epochs=4), epoch=epochs.append)
    assert [epoch.number for epoch in epochs] == [0, 1, 2, 3, 4]
    assert epochs[-1].loss < epochs[1].loss
    assert made.epochs == epochs
    assert (made.trained, made.classes) == (6, 2)
    assert made.seen.queries + made.unseen.queries == 4 + 12
    # The command it names is all it takes; what is frozen did not move, the rest did.
    arguments = [str(database), *made.embed]
    result = CliRunner().invoke(image_similarity, ["embed", *arguments])
    assert result.exit_code == 0, result.output
    assert "24 embedded" in result.output
    known = dict(sql(database, "select name, encoder from _image_similarity_collections"))
    encoder = json.loads(known["tuned"])
    assert encoder["weights_sha256"] == made.sha256
    assert encoder["input"]["size"] == 64


def test_the_size_is_named_also_where_it_is_that_of_most_networks(database: Path) -> None:
    from datasette_image_similarity.encoders import EncoderSpec
    from datasette_image_similarity.learning.finetune import _embed_arguments

    with opened(database) as conn:
        collection = db.find_collection(conn, "images")
        spec = EncoderSpec.from_json(collection.encoder)
        spec = replace(spec, model="efficientnet_b3", input=replace(spec.input, size=224))
        words = _embed_arguments(conn, collection, spec, Path("tuned.safetensors"))
    assert words[words.index("--size") + 1] == "224"  # by itself it would take 300


def test_only_the_last_layers_move(trained: Finetuned, tuned_once: Path) -> None:
    before = torch.load(tuned_once / "random.pth", weights_only=True)
    after = tensors(trained.file)
    assert set(after) == {name for name in before if not name.startswith("classifier.")}
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert "features.12.expand3x3.weight" in moved
    assert "features.0.weight" not in moved
    assert all(one.dtype == before[name].dtype for name, one in after.items())


def test_the_file_says_where_it_comes_from(trained: Finetuned) -> None:
    _, about = checkpoint.load(trained.file)
    assert about["label"] == "label"
    assert about["settings"]["epochs"] == 2
    assert json.loads(about["base"])["model"] == MODEL
    assert about["unseen"]["after"] == trained.unseen.after
    assert str(trained.file.parent) not in json.dumps(about)


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_a_run_that_was_stopped_comes_to_the_same(
    database: Path, trained: Finetuned, batches: int
) -> None:
    part = database.with_name("part.safetensors")
    with pytest.raises(Stopped):
        train(database, file=part, **stop_after(batches))
    assert not part.exists()
    resumed: list[str] = []
    made = train(database, file=part, progress=lambda what, *_: resumed.append(what))
    assert "Embedding what is trained on" not in resumed
    assert sum(what.startswith("Epoch") for what in resumed) == 4 - batches
    assert [e.loss for e in made.epochs] == [e.loss for e in trained.epochs]
    ours, theirs = tensors(part), tensors(trained.file)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert list(database.parent.glob("*.checkpoint")) == []


def test_a_run_that_was_killed_goes_on_from_its_last_epoch(
    database: Path, trained: Finetuned
) -> None:
    done: list[str] = []

    def killed(what: str, *_: int) -> None:
        done.append(what)
        if what == "Epoch 2 of 2":
            raise SystemExit

    with pytest.raises(SystemExit):
        train(database, progress=killed)
    resumed: list[str] = []
    made = train(database, progress=lambda what, *_: resumed.append(what))
    assert "Epoch 1 of 2" in done
    assert "Epoch 1 of 2" not in resumed
    ours, theirs = tensors(made.file), tensors(trained.file)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.checkpoint"
    checkpoint.save(file, {"a": torch.ones(2)}, {"steps": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(file, {"a": torch.zeros(2)}, {"steps": 2})
    found, about = checkpoint.load(file)
    assert about == {"steps": 1}
    assert found["a"].tolist() == [1, 1]


def test_a_damaged_checkpoint_is_refused_in_words(database: Path) -> None:
    with pytest.raises(Stopped):
        train(database, **stop_after(1))
    saved = database.with_name("tuned.safetensors.checkpoint")
    whole = saved.read_bytes()
    saved.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CollectionError, match="damaged: --restart"):
        train(database)
    content, about = {"a": torch.ones(1)}, {}
    checkpoint.save(saved, content, about)
    with pytest.raises(CollectionError, match="damaged: --restart"):
        train(database)
    assert train(database, restart=True).file is not None


@pytest.mark.parametrize("change", ["labels", "settings"])
def test_another_run_does_not_go_on_from_a_checkpoint(database: Path, change: str) -> None:
    with pytest.raises(Stopped):
        train(database, **stop_after(1))
    settings = QUICK
    if change == "labels":
        sql(database, "update images set label = 'teal' where label = 'navy' and id % 2")
    else:
        settings = replace(QUICK, epochs=3)
    word = {"labels": "pictures", "settings": "epochs"}[change]
    with pytest.raises(CollectionError, match=f"a run with other {word}: .*--restart"):
        train(database, settings)


def test_what_makes_unseen_classes_worse_is_not_written(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasette_image_similarity.learning.finetune_run import Training

    changes = Training.changes

    def worse(self: Training, state: dict) -> list:
        seen, unseen = changes(self, state)
        return [seen, replace(unseen, before={**unseen.before, "map": 1.1})]

    monkeypatch.setattr(Training, "changes", worse)
    made = train(database, anyway=False)
    assert made.file is None
    assert made.unseen.difference < 0
    assert not database.with_name("tuned.safetensors").exists()
    # Nothing is trained again to write it all the same.
    trained: list[str] = []
    made = train(database, progress=lambda what, *_: trained.append(what))
    assert made.file.exists()
    assert not any(what.startswith("Epoch") for what in trained)


def test_what_cannot_be_read_is_left_out(database: Path, tuned_once: Path) -> None:
    one = sql(database, "select path from images order by id limit 1")[0][0]
    other = database.parent / "photos"
    shutil.copytree(tuned_once / "photos", other)
    (other / one).write_bytes(b"no picture")
    sql(database, "update _image_similarity_roots set path = ?", (str(other),))
    with pytest.raises(CollectionError, match="noted for no embed of this user"):
        train(database)  # a folder that only the database names
    trust.note_root(database, other)
    made = train(database)
    assert made.unreadable == {one: "changed since it was embedded"}


def test_pictures_in_rows_are_read_from_there(tmp_path: Path, tuned_once: Path) -> None:
    path = tmp_path / "rows.db"
    vouch(path, tuned_once)
    files = sorted((tuned_once / "photos").rglob("*.png"))
    rows = [
        {"id": number, "scan": file.read_bytes(), "label": file.parent.name}
        for number, file in enumerate(files)
    ]
    weights = str(tuned_once / "random.pth")
    encoder = EncoderOptions(MODEL, weights, size=64, device="cpu")
    with ImageCollection(path) as collection:
        collection.embed(rows, blob_column="scan", encoder=encoder, workers=1)
    made = train(path)
    assert made.trained == 6
    assert made.embed[-2:] == ("--blob-column", "scan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("update images set label = null", "There are 0 classes"),
        ("update images set label = 'x' where label <> 'navy'", "There are 2 classes"),
        ("update images set label = 'l' || (id / 3)", "too few pictures of each class"),
        ("alter table images rename column label to kind", "no column 'label'"),
    ],
)
def test_labels_that_do_not_do_are_refused_before_a_picture_is_read(
    database: Path, change: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql(database, change)
    monkeypatch.delattr("datasette_image_similarity.learning.squares.SquareReader.read")
    with pytest.raises(CollectionError, match=words):
        train(database)


def test_files_that_cannot_be_are_refused_before_anything_is_read(database: Path) -> None:
    for name in ("tuned.pth", "missing/tuned.safetensors"):
        with pytest.raises(CollectionError):
            train(database, file=database.parent / name)
    there = database.with_name("there.safetensors")
    there.write_bytes(b"mine")
    with pytest.raises(CollectionError, match="there already"):
        train(database, file=there)
    assert there.read_bytes() == b"mine"


def test_only_networks_can_be_tuned(gallery: Path) -> None:
    with pytest.raises(EncoderError, match="encoder is hog"):
        train(gallery)


@click.command()
@click.argument("database", type=Path)
@click.option("--backbone", is_flag=True)
@click.option("--anyway", is_flag=True)
@backbone_options
@click.pass_context
def command(context: click.Context, database: Path, backbone: bool, **options: Any) -> None:
    """As `train` takes and does it."""
    if not backbone:
        refuse_given(context, NAMES, "only with --backbone")
    about = (database, "images", None, "label")
    run_backbone(*about, epochs=1, seed=0, as_json=False, **options)


def test_the_command_prints_figures_and_what_comes_next(database: Path) -> None:
    file = database.with_name("tuned.safetensors")
    options = ["--backbone", "--weights-to", str(file), "--hold-out", ".5", "--anyway"]
    result = CliRunner().invoke(command, [str(database), *options])
    assert result.exit_code == 0, result.output
    assert "Epoch 1 of 1: loss" in result.output
    assert "12 pictures of classes not trained on, 4 others" in result.output
    assert f"--weights {file}" in result.output


def test_the_command_ends_with_1_where_nothing_was_written(
    database: Path, monkeypatch: pytest.MonkeyPatch, trained: Finetuned
) -> None:
    worse = {**trained.unseen.before, "map": 0.0}
    made = replace(trained, file=None, unseen=replace(trained.unseen, after=worse))
    monkeypatch.setattr(ImageCollection, "finetune", lambda *_, **__: made)
    result = CliRunner().invoke(command, [str(database), "--backbone", "--weights-to", "x"])
    assert result.exit_code == 1
    assert "got worse. Nothing was written" in result.output


def test_options_of_the_network_are_for_the_network(database: Path) -> None:
    result = CliRunner().invoke(command, [str(database), "--lr", ".1"])
    assert result.exit_code == 2
    assert "--lr does something only with --backbone" in result.output
    result = CliRunner().invoke(command, [str(database), "--backbone"])
    assert result.exit_code == 2
    assert "--backbone needs --weights-to" in result.output


# Parts and batches


def test_no_picture_trains_and_judges() -> None:
    classes = np.repeat(np.arange(12), 9)
    classes[:3] = -1
    parts = divided(classes, 0.5, seed=1)
    every = np.concatenate(list(vars(parts).values()))
    assert sorted(every.tolist()) == list(range(3, len(classes)))
    trained = set(classes[parts.train].tolist())
    held = set(classes[np.concatenate([parts.unseen, parts.watched_unseen])].tolist())
    assert len(trained) == 6
    assert not trained & held
    assert not set(classes[parts.unseen]) & set(classes[parts.watched_unseen])
    assert set(classes[parts.seen]) == trained
    again, other = divided(classes, 0.5, seed=1), divided(classes, 0.5, seed=2)
    assert again.train.tolist() == parts.train.tolist() != other.train.tolist()


@pytest.mark.parametrize("size", [4, 5, 7, 8])
def test_small_classes_have_two_pictures_to_judge_by(size: int) -> None:
    classes = np.repeat(np.arange(8), size)
    parts = divided(classes, 0.25, seed=0)
    for judged in (parts.seen, parts.unseen):
        assert np.bincount(classes[judged])[classes[judged]].min() >= 2
    assert np.bincount(classes[parts.train]).max() >= 2


def test_too_few_pictures_are_told_before_anything_is_read() -> None:
    for size in (2, 3):
        with pytest.raises(CollectionError, match="too few pictures of each class"):
            divided(np.repeat(np.arange(8), size), 0.25, seed=0)


def test_classes_come_equally_often_and_pictures_in_turn() -> None:
    classes = np.array([0] * 90 + [1] * 9 + [2])
    order = balanced(classes, seed=0, epoch=1)
    assert np.bincount(classes[order]).tolist() in (
        [34, 33, 33],
        [33, 34, 33],
        [33, 33, 34],
    )
    rare = np.bincount(order, minlength=100)[90:99]
    assert rare.min() >= 3
    assert rare.max() <= 4
    assert order.tolist() != balanced(classes, seed=0, epoch=2).tolist()


def test_augmentation_keeps_colours_in_range_and_repeats_with_its_seed() -> None:
    from datasette_image_similarity.learning.augment import augmented, plain

    chance = np.random.default_rng(0)
    pixels = torch.from_numpy(chance.integers(0, 256, (5, 36, 36, 3), np.uint8))
    first = augmented(pixels, 32, torch.Generator().manual_seed(1))
    again = augmented(pixels, 32, torch.Generator().manual_seed(1))
    other = augmented(pixels, 32, torch.Generator().manual_seed(2))
    assert first.shape == (5, 32, 32, 3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.min()) >= 0
    assert float(first.max()) <= 255
    assert torch.allclose(plain(pixels, 36), pixels.float())


def test_mirror_images_are_left_out_where_sides_matter() -> None:
    from datasette_image_similarity.learning.augment import augmented

    pixels = torch.zeros(64, 36, 36, 3, dtype=torch.uint8)
    pixels[:, :, 18:] = 200  # the right half is bright

    def mirrored(flip: bool) -> int:
        seen = augmented(pixels, 32, torch.Generator().manual_seed(0), flip=flip)
        left, right = seen[:, :, :4].mean((1, 2, 3)), seen[:, :, -4:].mean((1, 2, 3))
        return int((left > right + 20).sum())

    assert mirrored(flip=True) > 10
    assert mirrored(flip=False) == 0
