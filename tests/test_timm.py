"""Networks of timm: small untrained ones, whose weights are written to disk.

Nothing is downloaded: the Hugging Face Hub is a folder laid out as its cache is, or a
function of ours.
"""

import hashlib
import json
import logging
import pickle
import sys
from pathlib import Path

import pytest
from conftest import close_the_internet
from core import answer, command, refused

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.encoders import (
    EncoderSpec,
    available_models,
    encoder_spec,
    load_encoder,
    restore_encoder,
)
from datasette_image_similarity.encoders.families import Choice
from datasette_image_similarity.errors import EncoderError
from datasette_image_similarity.images import Input

np = pytest.importorskip("numpy", reason="numpy is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")
timm = pytest.importorskip("timm", reason="timm is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="no safetensors")

RESNET = "timm:test_resnet.r160_in1k"
CPU = {"device": "cpu", "precision": "float32"}


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and no way to the internet."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    close_the_internet(monkeypatch)
    return folder


def network(name):
    """An untrained network whose batch norms do something."""
    torch.manual_seed(0)
    made = timm.create_model(name, pretrained=False).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return made


def saved(name, folder, suffix=".safetensors", **changes):
    """A file of weights as timm's training script and the hub have it."""
    path = folder / f"{name}{suffix}"
    state = {k: v.contiguous() for k, v in network(name).state_dict().items()} | changes
    if suffix == ".safetensors":
        safetensors.save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3}, path)
    return path


def cached(hub, path, repository="timm/test_resnet.r160_in1k", sha256=None):
    """The file as huggingface_hub's cache has it after a download."""
    sha256 = sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
    folder = hub / f"models--{repository.replace('/', '--')}"
    for part in ("blobs", "refs", "snapshots/c0ffee"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    (folder / "blobs" / sha256).write_bytes(path.read_bytes())
    link = folder / "snapshots" / "c0ffee" / "model.safetensors"
    link.symlink_to(folder / "blobs" / sha256)
    return link


def noise(n, size):
    shape = (n, size, size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def normalised(pixels, spec):
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    return (batch - mean) / std


# Vectors


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet"]
)
def test_vectors_are_what_the_classifier_gets(name, tmp_path):
    encoder = load_encoder(f"timm:{name}", weights=saved(name, tmp_path), **CPU)
    pixels, whole = noise(3, encoder.input.size), network(name)
    with torch.inference_mode():
        maps = whole.forward_features(normalised(pixels, encoder.spec))
        wanted = whole.forward_head(maps, pre_logits=True).numpy()
    vectors = encoder.encode(pixels)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, encoder.dimensions)
    np.testing.assert_allclose(vectors, wanted, atol=1e-4 * abs(wanted).max())


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_mambaout"])
@pytest.mark.parametrize("pooling", ["avg", "max", "gem", "flatten"])
def test_feature_maps_are_pooled_whichever_way_they_lie(name, pooling, tmp_path):
    encoder = load_encoder(
        f"timm:{name}", weights=saved(name, tmp_path), pooling=pooling, **CPU
    )
    pixels, whole = noise(2, encoder.input.size), network(name)
    with torch.inference_mode():
        maps = whole.forward_features(normalised(pixels, encoder.spec)).numpy()
    if name == "test_mambaout":  # (n, rows, columns, channels)
        maps = maps.transpose(0, 3, 1, 2)
    wanted = {
        "avg": maps.mean((2, 3)),
        "max": maps.max((2, 3)),
        "gem": np.cbrt((np.maximum(maps, 1e-6) ** 3).mean((2, 3))),
        "flatten": maps.reshape(2, -1),
    }[pooling]
    assert encoder.dimensions == wanted.shape[1]
    vectors = encoder.encode(pixels)
    np.testing.assert_allclose(vectors, wanted, rtol=1e-3, atol=1e-4 * abs(wanted).max())


@pytest.mark.parametrize("name", ["levit_128s", "test_vit"])
def test_nothing_is_kept_of_the_random_numbers_that_a_network_begins_with(name, tmp_path):
    # levit keeps the biases of its attention when it has seen a picture.
    path = saved(name, tmp_path)
    exact = load_encoder(f"timm:{name}", weights=path, **CPU)
    pixels = noise(2, exact.input.size)
    low = load_encoder(f"timm:{name}", weights=path, device="cpu", precision="bfloat16")
    a, b = exact.encode(pixels), low.encode(pixels)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    assert ((a * b).sum(1) / lengths > 0.999).all()


@pytest.mark.parametrize(
    ("name", "pooling"), [("test_vit", None), ("test_mambaout", "gem")]
)
def test_what_int8_is_made_from_gives_the_same(name, pooling, tmp_path):
    encoder = load_encoder(
        f"timm:{name}", weights=saved(name, tmp_path), pooling=pooling, **CPU
    )
    module, pixels = encoder._runner._module, torch.from_numpy(noise(2, encoder.input.size))
    exported = torch.export.export(module, (pixels,)).module()
    with torch.inference_mode():
        torch.testing.assert_close(exported(pixels), module(pixels))


def test_a_network_without_a_map_has_nothing_to_pool():
    with pytest.raises(EncoderError) as caught:
        load_encoder("timm:test_vit", pooling="gem")
    assert str(caught.value) == (
        "timm:test_vit has no feature map to pool; it gives one vector of 64 numbers per "
        "image: leave out --pooling"
    )
    with pytest.raises(EncoderError, match="no feature map to pool"):
        load_encoder("timm:coat_tiny", pooling="avg")  # it has several


# Input


def test_the_input_is_what_timm_says_of_the_weights():
    from datasette_image_similarity.encoders import timm as ours

    made = ours.plan(Choice("timm:test_resnet", fit="crop"))
    assert made.model == RESNET  # with the tag of the weights that are meant
    assert made.input == Input(160, 168, "crop", "bilinear")
    assert made.config.mean == (0.5, 0.5, 0.5)
    assert ours.plan(Choice("timm:test_vit")).input.interpolation == "bicubic"


def test_sizes_can_be_chosen_but_for_networks_with_positions(tmp_path):
    path = saved("test_resnet", tmp_path)
    encoder = load_encoder(RESNET, weights=path, size=96, pooling="flatten", **CPU)
    assert encoder.dimensions == 3 * 3 * 96
    assert encoder.encode(noise(2, 96)).shape == (2, encoder.dimensions)
    with pytest.raises(
        EncoderError, match="squares of 96 pixels: leave out --size for 224"
    ):
        load_encoder("timm:vit_tiny_patch16_224", size=96)
    with pytest.raises(EncoderError, match="only squares in three colours"):
        load_encoder("timm:vit_base_patch16_sapiens2")


# Files of weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_is_read_whatever_classes_it_was_trained_for(suffix, tmp_path):
    usual = load_encoder(RESNET, weights=saved("test_resnet", tmp_path), **CPU)
    classifier = {"fc.weight": torch.zeros(7, 96), "fc.bias": torch.zeros(7)}
    path = saved("test_resnet", tmp_path, suffix, **classifier)
    encoder = load_encoder("timm:test_resnet", weights=path, **CPU)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert encoder.spec.weights == f"test_resnet{suffix}"
    assert encoder.spec.weights_sha256 == sha256
    assert str(encoder.spec) == f"{RESNET} (test_resnet{suffix})"
    pixels = noise(1, 160)
    np.testing.assert_array_equal(encoder.encode(pixels), usual.encode(pixels))


def test_a_classifier_of_several_layers_goes_as_a_whole(tmp_path):
    path = saved("convformer_s18", tmp_path)
    assert load_encoder("timm:convformer_s18", weights=path, **CPU).dimensions == 512


@pytest.mark.parametrize("given", ["test_convnext", "test_vit", "test_byobnet"])
def test_another_networks_file_is_refused(given, tmp_path):
    with pytest.raises(EncoderError, match="check --model"):
        load_encoder(RESNET, weights=saved(given, tmp_path))
    with pytest.raises(EncoderError, match="check --model"):
        load_encoder("timm:test_convnext2", weights=saved(given, tmp_path))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_code_in_a_file_is_not_executed(suffix, tmp_path):
    mark = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (mark,))

    path = tmp_path / f"w{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(EncoderError):
        load_encoder(RESNET, weights=path)
    assert not mark.exists()


# Published weights


def test_published_weights_come_from_the_hubs_cache(hub, tmp_path):
    path = saved("test_resnet", tmp_path)
    link = cached(hub, path)
    encoder = load_encoder("timm:test_resnet", **CPU)
    spec = EncoderSpec.from_json(encoder.spec.to_json())
    assert (spec.model, spec.weights) == (RESNET, "r160_in1k")
    assert spec.weights_sha256 == link.resolve().name
    assert encoder_spec("timm:test_resnet", weights="r160_in1k") == spec
    again = restore_encoder(spec, download=False, **CPU)
    pixels = noise(2, 160)
    np.testing.assert_array_equal(again.encode(pixels), encoder.encode(pixels))
    moved = restore_encoder(spec, weights_file=path, download=False, **CPU)
    assert moved.spec == spec


def test_weights_that_are_not_here_are_downloaded_as_safetensors(
    hub, tmp_path, monkeypatch
):
    asked = []

    def download(repository, filename):
        asked.append((repository, filename))
        return str(cached(hub, saved("test_resnet", tmp_path)))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_encoder(RESNET, **CPU).dimensions == 96
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    assert load_encoder(RESNET, **CPU).dimensions == 96


def test_without_a_download_a_missing_file_is_named(tmp_path):
    spec = load_encoder(RESNET, weights=saved("test_resnet", tmp_path)).spec
    spec = EncoderSpec.from_json(spec.to_json().replace("test_resnet.safe", "r160_in1k"))
    fields = json.loads(spec.to_json()) | {"weights": "r160_in1k"}
    spec = EncoderSpec.from_json(json.dumps(fields))
    with pytest.raises(EncoderError, match="not on this machine yet") as caught:
        restore_encoder(spec, download=False)
    assert "hf download timm/test_resnet.r160_in1k model.safe" in str(caught.value)


def test_a_file_in_the_cache_with_another_hash_is_refused(hub, tmp_path):
    path = saved("test_resnet", tmp_path)
    link = cached(hub, path)
    spec = load_encoder(RESNET, **CPU).spec
    link.resolve().write_bytes(b"planted")
    with pytest.raises(EncoderError, match="SHA-256 should be") as caught:
        load_encoder(RESNET)
    assert f"Delete {link.resolve()} and" in str(caught.value)
    with pytest.raises(EncoderError, match="SHA-256 should be"):
        restore_encoder(spec, download=False)


def test_weights_that_were_published_anew_are_not_taken_for_the_old_ones(hub, tmp_path):
    path = saved("test_resnet", tmp_path)
    link = cached(hub, path)
    spec = load_encoder(RESNET, **CPU).spec
    newer = link.resolve().with_name("0" * 64)
    newer.write_bytes(path.read_bytes())
    link.unlink()
    link.symlink_to(newer)
    with pytest.raises(EncoderError, match="another file than before"):
        restore_encoder(spec, download=False)


def test_offline_the_error_says_so_in_words(caplog):
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(EncoderError, match="is this machine online") as caught:
        load_encoder(RESNET)
    assert "model.safetensors" in str(caught.value)
    with pytest.raises(EncoderError, match="could not be downloaded from https://github"):
        load_encoder("timm:legacy_seresnet18")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("RemoteEntryNotFoundError", "no such file, and no other kind is read"),
        ("RepositoryNotFoundError", "no such repository"),
        ("GatedRepoError", "agreed to its terms"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(error, words, monkeypatch):
    httpx = pytest.importorskip("httpx")
    from huggingface_hub import errors

    def download(*_, **__):
        request = httpx.Request("GET", "https://huggingface.co")
        raise getattr(errors, error)("no", response=httpx.Response(404, request=request))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(EncoderError, match=words):
        load_encoder(RESNET)


@pytest.mark.parametrize(
    ("filename", "safe"),
    [
        (None, "model.safetensors"),
        ("pytorch_model.bin", "model.safetensors"),
        ("open_clip_pytorch_model.bin", "open_clip_model.safetensors"),
        ("other.pth", "other.safetensors"),
        ("model.safetensors", "model.safetensors"),
    ],
)
def test_a_pickle_is_never_asked_for(filename, safe):
    from datasette_image_similarity.encoders.hugging_face import safe_name

    assert safe_name(filename) == safe


def test_weights_that_nobody_published_or_in_a_form_of_their_own_are_refused():
    with pytest.raises(EncoderError, match="no published weights"):
        load_encoder("timm:test_mambaout")
    with pytest.raises(EncoderError, match="no weights called 'a2'"):
        load_encoder(RESNET, weights="a2")


# Names


def test_names_that_timm_has_not_are_answered_with_those_it_has():
    with pytest.raises(EncoderError, match="Did you mean timm:test_resnet"):
        load_encoder("timm:test_resnett")
    with pytest.raises(EncoderError, match=r"It has test_resnet\.r160_in1k"):
        load_encoder("timm:test_resnet.other")
    for name in ("timm:", "timm:hf-hub:some/model", "timm:../x"):
        with pytest.raises(EncoderError, match="timm has no model called"):
            load_encoder(name)


def test_models_lists_timms_only_when_asked(hub, tmp_path):
    assert not [m for m in available_models() if m.name.startswith("timm:")]
    cached(hub, saved("test_resnet", tmp_path))
    listed = {model.name: model for model in available_models("timm:")}
    assert len(listed) > 1000
    assert listed[RESNET].default_weights == "r160_in1k"
    assert [name for name, model in listed.items() if model.downloaded] == [RESNET]
    assert "--weights FILE" in listed["timm:test_mambaout"].note
    output = command("models", "timm:test_resnet").output
    assert RESNET in output
    assert "test_vit" not in output
    assert "To list them: datasette image-sim" in command("models", "hog").output
    assert "No model has 'timm:no' in its name" in command("models", "timm:no").output


def test_a_network_too_large_for_a_file_is_never_built(tmp_path, monkeypatch):
    """A stranger's database may name one that would fill the memory."""
    from datasette_image_similarity.encoders import timm as ours

    path, built = saved("test_resnet", tmp_path), []
    network = ours._network

    def counted(name):
        made = network(name)
        built.append(all(tensor.is_meta for tensor in made.parameters()))
        return made

    monkeypatch.setattr(ours, "_network", counted)
    with pytest.raises(EncoderError, match="check --model"):
        load_encoder("timm:resnet152", weights=path)
    assert built == [True]
    load_encoder(RESNET, weights=path, **CPU)
    assert built == [True, True, False]


def test_a_network_that_tries_itself_out_while_it_is_built_is_no_exception():
    from datasette_image_similarity.encoders import timm as ours

    assert ours.plan(Choice("timm:vitamin_small_224")).dimensions == 384


def test_without_timm_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for asked in (lambda: load_encoder(RESNET), lambda: available_models("timm:")):
        with pytest.raises(EncoderError, match=r"datasette-image-similarity\[timm\]"):
            asked()
    assert available_models("hog")


# From end to end


def test_a_folder_is_embedded_and_searched(photos, tmp_path):
    path, weights = tmp_path / "p.db", saved("test_resnet", tmp_path)
    result = command("embed", path, photos, "--model", RESNET, "--weights", weights)
    assert result.exit_code == 0, result.output
    status = answer("status", path)[0]
    assert (status["dimensions"], status["embedded"]) == (96, 24)
    assert status["encoder"] == f"{RESNET} (test_resnet.safetensors)"
    assert answer("embed", path, photos, "--fit", "squash")["unchanged"] == 24
    with ImageCollection(path) as collection:
        hit = collection.search(photos / "red" / "red-0.png", k=1)[0]
    assert hit.score == pytest.approx(1)
    message = refused("embed", path, photos, "--pooling", "gem")
    assert "cannot be compared" in message
