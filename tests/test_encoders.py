"""What turns pixels into vectors: networks, their weights, and hog.

Published weights are never downloaded here: small stand-ins with random numbers come
from files, or from a server on this machine.
"""

import hashlib
import http.server
import json
import pickle
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import close_the_internet

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
try:
    import torch
    import torchvision
except ImportError:
    torch = None
needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
MOBILENET = SHARED / "weights" / "mobilenet_v2_imagenet.pth"
PHOTOS = SHARED / "photos" / "caltech101"

SMALL = "shufflenet_v2_x0_5"  # 5.5 MB
SPEC = EncoderSpec(
    model="resnet50",
    weights="IMAGENET1K_V1",
    weights_sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    pooling="avg",
    input=Input(224, 256, "squash", "bilinear"),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    version=1,
)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """A torch cache of the test's own; the way to the internet is closed."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    close_the_internet(monkeypatch)


def noise(n, size, seed=0):
    shape = (n, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def normalised(pixels):
    """As torchvision's own transforms would."""
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return (batch - mean) / std


def random_network(model, **options):
    """An untrained network whose batch norms do something."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(model, **options).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


def hollow_state(model):
    """A state_dict with all the right shapes that takes next to no space in a file."""
    with torch.device("meta"):
        shapes = torchvision.models.get_model(model).state_dict()
    return {
        key: torch.full((1,) * value.dim(), 1, dtype=value.dtype).expand(value.shape)
        for key, value in shapes.items()
    }


def save(content, path):
    torch.save(content, path)
    return str(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A weights file for SMALL."""
    folder = tmp_path_factory.mktemp("weights")
    return save(random_network(SMALL).state_dict(), folder / "small.pth")


@pytest.fixture
def bomb(tmp_path):
    """Bytes of a pickle that leaves a mark when it is executed, and the mark's path."""
    mark = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (mark,))

    return pickle.dumps(Bomb()), mark


class Server:
    """Answers every request with `body` and `status`, or not at all if body is None."""

    def __init__(self):
        self.body, self.status, self.requests = b"", 200, []
        self.cut_to = None  # bytes that are sent of the promised ones
        self.released = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                if outer.body is None:
                    outer.released.wait(20)
                    return
                self.send_response(outer.status)
                self.send_header("Content-Length", len(outer.body))
                self.end_headers()
                self.wfile.write(outer.body[: outer.cut_to])

            def log_message(self, *args):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()

    def close(self):
        self.released.set()
        self.httpd.shutdown()
        self.httpd.server_close()


@pytest.fixture
def published(small, monkeypatch):
    """SMALL's published weights, as if they lay on a server of ours."""
    body = Path(small).read_bytes()
    server = Server()
    server.body = body
    server.sha256 = hashlib.sha256(body).hexdigest()
    server.filename = f"small-{server.sha256[:8]}.pth"
    server.cached = Path(torch.hub.get_dir(), "checkpoints", server.filename)
    entry = torchvision.models.get_model_weights(SMALL).IMAGENET1K_V1.value
    monkeypatch.setattr(entry, "url", f"{server.url}/{server.filename}")
    yield server
    server.close()


def outside(program):
    """Run a program in a fresh Python."""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )


# Without torch


def test_importing_encoders_loads_neither_torch_nor_numpy():
    result = outside(
        "import sys, datasette_image_similarity.encoders\n"
        "print(sorted({'torch', 'torchvision', 'numpy'} & set(sys.modules)))"
    )
    assert result.stdout == "[]\n", result.stderr


def test_hog_works_where_torch_is_not_installed():
    result = outside(
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\n"
        "import numpy\n"
        "from datasette_image_similarity.encoders import load_encoder\n"
        "print(load_encoder('hog').encode(numpy.zeros((2, 96, 96, 3), 'uint8')).shape)"
    )
    assert result.stdout == "(2, 1308)\n", result.stderr


def test_a_network_without_torch_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EncoderError) as caught:
        load_encoder()
    assert str(caught.value) == (
        "resnet50 needs torch and torchvision: pip install torch torchvision, or use "
        "--model hog"
    )


def test_without_torch_hog_is_the_only_model(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [model.name for model in available_models()] == ["hog"]


# hog


def test_hog_gives_finite_vectors_of_the_promised_shape():
    vectors = load_encoder("hog").encode(noise(3, 96))
    assert vectors.shape == (3, 1308)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert load_encoder("hog").encode(noise(0, 96)).shape == (0, 1308)


def test_hog_does_not_depend_on_the_batch():
    encoder, pixels = load_encoder("hog"), noise(9, 96)
    together = encoder.encode(pixels)
    apart = np.concatenate([encoder.encode(pixels[i : i + 1]) for i in range(9)])
    strided = encoder.encode(np.asfortranarray(pixels[::-1]))[::-1]
    assert together.tobytes() == apart.tobytes() == strided.tobytes()


@pytest.mark.parametrize("value", [0, 128, 255])
def test_hog_of_a_plain_picture_can_be_normalised(value):
    vector = load_encoder("hog").encode(np.full((1, 96, 96, 3), value, np.uint8))[0]
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) > 0.5


def test_hog_tells_black_from_white_and_red_from_blue():
    plain = np.zeros((4, 96, 96, 3), np.uint8)
    plain[1] = 255
    plain[2, ..., 0] = plain[3, ..., 2] = 200
    vectors = load_encoder("hog").encode(plain)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] < 0.99
    assert cosines[2, 3] < 0.99


def test_hog_sees_direction_and_not_polarity():
    upright = np.zeros((96, 96, 3), np.uint8)
    upright[:, ::8] = upright[:, 1::8] = upright[:, 2::8] = upright[:, 3::8] = 255
    lying, inverted = upright.transpose(1, 0, 2), 255 - upright
    shape = load_encoder("hog").encode(np.stack([upright, lying, inverted]))[:, :900]
    assert shape[0] @ shape[2] > 0.9
    assert shape[0] @ shape[1] < 0.5


@pytest.mark.parametrize(
    "option", [{"weights": "X"}, {"pooling": "avg"}, {"device": "cuda"}, {"fit": "x"}]
)
def test_hog_refuses_what_only_networks_have(option):
    with pytest.raises(EncoderError):
        load_encoder("hog", **option)


def test_hog_is_restored_from_its_spec():
    encoder = load_encoder("hog", fit="pad")
    spec = EncoderSpec.from_json(encoder.spec.to_json())
    assert restore_encoder(spec).input == Input(96, 109, "pad", "bilinear")
    with pytest.raises(EncoderError, match="version"):
        restore_encoder(replace(spec, version=99))


# Specs


def test_a_spec_survives_json():
    assert EncoderSpec.from_json(SPEC.to_json()) == SPEC


def test_a_spec_names_the_encoder():
    assert str(SPEC) == "resnet50 (IMAGENET1K_V1, avg pooling)"
    assert str(load_encoder("hog").spec) == "hog"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "resnet101"},
        {"weights_sha256": "0" * 64},
        {"pooling": "max"},
        {"input": replace(SPEC.input, fit="pad")},
        {"input": replace(SPEC.input, size=232)},
        {"input": replace(SPEC.input, interpolation="bicubic")},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.5, 0.5, 0.5)},
        {"version": 2},
    ],
)
def test_the_fingerprint_changes_with_whatever_changes_vectors(change):
    assert replace(SPEC, **change).fingerprint != SPEC.fingerprint


def test_the_fingerprint_does_not_depend_on_the_name_of_the_weights():
    assert replace(SPEC, weights="copy.pth").fingerprint == SPEC.fingerprint


def test_the_size_before_cropping_counts_only_where_something_is_cropped():
    def prints(fit):
        inputs = (Input(224, resize, fit, "bilinear") for resize in (232, 256))
        return {replace(SPEC, input=shape).fingerprint for shape in inputs}

    assert len(prints("squash")) == 1
    assert len(prints("crop")) == 2


def test_the_fingerprint_is_what_it_was_when_collections_were_made():
    assert SPEC.fingerprint == (
        "d1077600f0a83b356e69497b654c30725112049c743432142c0d3f01e2c417b6"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "../../etc/passwd"),
        ("model", 5),
        ("weights", "/etc/passwd"),
        ("weights", None),
        ("weights_sha256", "abc"),
        ("weights_sha256", ["0" * 64]),
        ("pooling", "sum"),
        ("pooling", ["avg"]),
        ("input", None),
        ("input", {"size": 224}),
        ("input", {"size": 99999, "resize": 256, "fit": "squash", "interpolation": "box"}),
        ("input", {"size": 224, "resize": 100, "fit": "crop", "interpolation": "box"}),
        ("input", {"size": 224, "resize": 256, "fit": [], "interpolation": "box"}),
        ("input", {"size": 224, "resize": 256, "fit": "squash", "interpolation": "x"}),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, "0.5"]),
        ("mean", [0.5, 0.5, 10**400]),
        ("mean", [0.5, 0.5, float("nan")]),
        ("std", [0, 0.5, 0.5]),
        ("version", True),
        ("version", 0),
        ("weights", "\ud800"),
        ("surprise", 1),
    ],
)
def test_a_spec_from_a_stranger_is_validated(field, value):
    fields = json.loads(SPEC.to_json())
    fields[field] = value
    with pytest.raises(EncoderError, match="cannot be understood"):
        EncoderSpec.from_json(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "[" * 100_000, None])
def test_a_spec_that_is_no_spec_is_refused(text):
    with pytest.raises(EncoderError, match="cannot be understood"):
        EncoderSpec.from_json(text)


# Networks


@needs_torch
@pytest.mark.parametrize(
    ("model", "classifier", "options"),
    [
        ("resnet50", "fc", {}),
        ("mobilenet_v3_small", "classifier", {}),
        ("densenet121", "classifier", {}),
        ("googlenet", "fc", {"transform_input": True, "init_weights": True}),
        ("regnet_x_400mf", "fc", {}),
        ("swin_t", "head", {}),
        ("vit_b_32", "heads", {}),
    ],
)
def test_vectors_are_what_the_classifier_gets(model, classifier, options, tmp_path):
    network = random_network(model, **options)
    path = save(network.state_dict(), tmp_path / "w.pth")
    pixels, seen = noise(2, 224), []
    module = network.get_submodule(classifier)
    module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        network(normalised(pixels))
    expected = seen[0].flatten(1).numpy()

    encoder = load_encoder(model, weights=path, device="cpu", precision="float32")
    vectors = encoder.encode(pixels)
    assert vectors.dtype == np.float32
    assert vectors.shape == (2, encoder.dimensions)
    np.testing.assert_allclose(vectors, expected, atol=1e-4 * abs(expected).max())


@needs_torch
@pytest.mark.parametrize(
    ("model", "end", "size"),
    [
        ("resnet18", "layer4", 224),
        ("squeezenet1_1", "features", 224),
        ("convnext_tiny", "features", 224),
        ("alexnet", "features", 224),
        pytest.param("maxvit_t", "blocks.3", 224, marks=pytest.mark.slow),
        pytest.param("inception_v3", "Mixed_7c", 299, marks=pytest.mark.slow),
    ],
)
def test_both_poolings_work_on_the_last_feature_map(model, end, size, tmp_path):
    inception = {"transform_input": True, "init_weights": False}
    network = random_network(model, **(inception if model == "inception_v3" else {}))
    path = save(network.state_dict(), tmp_path / "w.pth")
    pixels, seen = noise(2, size), []
    module = network.get_submodule(end)
    module.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.inference_mode():
        network(normalised(pixels))
    expected = {"avg": seen[0].mean((2, 3)), "max": seen[0].amax((2, 3))}

    for pooling, wanted in expected.items():
        encoder = load_encoder(
            model, weights=path, pooling=pooling, device="cpu", precision="float32"
        )
        assert encoder.input.size == size
        vectors = torch.from_numpy(encoder.encode(pixels))
        torch.testing.assert_close(vectors, wanted, rtol=1e-3, atol=1e-4 * wanted.max())


@needs_torch
def test_a_vision_transformer_has_nothing_to_pool():
    with pytest.raises(EncoderError) as caught:
        load_encoder("vit_b_16", pooling="avg")
    assert str(caught.value) == (
        "vit_b_16 has no feature map to pool; it gives one vector of 768 numbers per "
        "image: leave out --pooling"
    )


@needs_torch
@pytest.mark.slow
def test_the_table_of_dimensions_names_every_network_and_is_true():
    """The first and the last network of each family are made: all take a minute."""
    from datasette_image_similarity.encoders import torchvision as ours

    models = torchvision.models.list_models(module=torchvision.models)
    assert {*models} == {*ours.DIMENSIONS} >= ours.WITHOUT_MAP
    families: dict[str, list[str]] = {}
    for model in models:
        families.setdefault(re.match("[a-z]+", model)[0], []).append(model)
    for model in {model for one in families.values() for model in (one[0], one[-1])}:
        plan = ours.plan(Choice(model)).features
        assert plan.dimensions == ours.DIMENSIONS[model]
        assert plan.has_map == (model not in ours.WITHOUT_MAP)


@needs_torch
def test_any_number_of_pictures_is_a_batch(small):
    encoder = load_encoder(SMALL, weights=small, device="cpu")
    pixels = noise(5, 224)
    pixels.flags.writeable = False  # as shared memory may be
    vectors = encoder.encode(pixels)
    assert encoder.encode(pixels[:0]).shape == (0, 1024)
    np.testing.assert_allclose(encoder.encode(pixels[3:4])[0], vectors[3], atol=1e-5)


@needs_torch
@pytest.mark.parametrize(
    "pixels",
    [np.zeros((1, 224, 224, 3), np.float32), np.zeros((1, 3, 224, 224), np.uint8)],
)
def test_pixels_of_another_kind_are_a_mistake_of_the_caller(small, pixels):
    with pytest.raises(ValueError, match="expected uint8"):
        load_encoder(SMALL, weights=small, device="cpu").encode(pixels)


@needs_torch
def test_the_input_follows_the_weights():
    from datasette_image_similarity.encoders import torchvision as ours

    def planned(model, weights=None):
        return ours.plan(Choice(model, weights, fit="crop"))

    assert planned("resnet50").file.name == "IMAGENET1K_V1"
    assert planned("resnet50").input == Input(224, 256, "crop", "bilinear")
    assert planned("resnet50", "IMAGENET1K_V2").input.resize == 232
    assert planned("efficientnet_b1").input == Input(240, 256, "crop", "bicubic")
    assert planned("vgg16", "IMAGENET1K_FEATURES").std == (1 / 255, 1 / 255, 1 / 255)
    assert planned("vit_b_16", "IMAGENET1K_SWAG_E2E_V1").input.size == 384
    # What is not known about a file is taken to be as ImageNet training does it.
    assert planned("vgg16", "my.pth").std == (0.229, 0.224, 0.225)
    assert planned("vgg16", "my.pth").input == planned("vgg16").input


@needs_torch
def test_unknown_models_weights_poolings_fits_and_devices_are_named(small):
    with pytest.raises(EncoderError, match="Did you mean resnet50 or"):
        load_encoder("ResNet50")
    with pytest.raises(EncoderError, match="datasette image-similarity models"):
        load_encoder("fasterrcnn_resnet50_fpn")
    with pytest.raises(EncoderError, match="IMAGENET1K_V1, IMAGENET1K_V2"):
        load_encoder("resnet50", weights="IMAGENET")
    with pytest.raises(EncoderError, match="avg, max"):
        load_encoder(SMALL, weights=small, pooling="min")
    with pytest.raises(EncoderError, match="squash, crop, pad"):
        load_encoder(SMALL, weights=small, fit="stretch")
    with pytest.raises(EncoderError, match="abacus"):
        load_encoder(SMALL, weights=small, device="abacus")


@needs_torch
def test_a_device_that_is_not_there_is_an_error_and_auto_takes_the_cpu(small, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(EncoderError, match="'cuda' cannot be used"):
        load_encoder(SMALL, weights=small, device="cuda")
    assert load_encoder(SMALL, weights=small).device == "cpu"


@needs_torch
def test_models_are_listed_with_hog_first():
    models = {model.name: model for model in available_models()}
    assert next(iter(models)) == "hog"
    assert len(models) >= 81
    resnet = models["resnet50"]
    assert resnet.dimensions == 2048
    assert resnet.weights == ("IMAGENET1K_V1", "IMAGENET1K_V2")
    assert resnet.default_weights == "IMAGENET1K_V1"
    assert not resnet.downloaded
    # Where there is no IMAGENET1K_V1, what torchvision takes itself.
    assert models["regnet_y_128gf"].default_weights == "IMAGENET1K_SWAG_E2E_V1"
    assert abs(resnet.download_bytes - 102_530_333) < 1024
    assert "no feature map to pool" in models["vit_b_16"].note
    assert "768 numbers" in models["vit_b_16"].note


@needs_torch
def test_the_list_knows_what_is_downloaded():
    cached = Path(torch.hub.get_dir(), "checkpoints", "resnet50-0676ba61.pth")
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert {m.name for m in available_models() if m.downloaded} == {"hog", "resnet50"}


# Files of weights


@needs_torch
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {
            **{f"module.encoder_q.{key}": value for key, value in state.items()},
            **{f"module.encoder_k.{key}": value * 0 for key, value in state.items()},
            "module.queue": torch.zeros(8),
        },
        lambda state: {
            **{f"backbone.{key}": value for key, value in state.items()},
            "projector.0.weight": torch.zeros(8, 8),
        },
        lambda state: {
            key: value for key, value in state.items() if "num_batches" not in key
        },
        lambda state: {
            key: value for key, value in state.items() if not key.startswith("fc.")
        },
        lambda state: {
            key: value.double() if value.is_floating_point() else value
            for key, value in state.items()
        },
    ],
)
def test_what_training_scripts_wrap_around_weights_is_taken_off(wrap, small, tmp_path):
    state = torch.load(small, weights_only=True)
    path = save(wrap(state), tmp_path / "wrapped.pth")
    pixels = noise(1, 224)
    plain = load_encoder(SMALL, weights=small, device="cpu").encode(pixels)
    wrapped = load_encoder(SMALL, weights=path, device="cpu").encode(pixels)
    np.testing.assert_array_equal(plain, wrapped)


@needs_torch
def test_half_precision_weights_become_float32(small, tmp_path):
    state = torch.load(small, weights_only=True)
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    path = save(half, tmp_path / "half.pth")
    pixels = noise(1, 224)
    full = load_encoder(SMALL, weights=small, device="cpu").encode(pixels)
    vectors = load_encoder(SMALL, weights=path, device="cpu").encode(pixels)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, full, atol=0.02 * abs(full).max())


@needs_torch
def test_safetensors_give_the_same_vectors(small, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="no safetensors")
    path = tmp_path / "small.safetensors"
    safetensors.save_file(torch.load(small, weights_only=True), path)
    pixels = noise(1, 224)
    np.testing.assert_array_equal(
        load_encoder(SMALL, weights=path, device="cpu").encode(pixels),
        load_encoder(SMALL, weights=small, device="cpu").encode(pixels),
    )


@needs_torch
def test_a_missing_safetensors_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"{}")
    with pytest.raises(EncoderError, match="pip install safetensors"):
        load_encoder(SMALL, weights=str(path))


@needs_torch
@pytest.mark.parametrize(
    ("given", "asked", "key"),
    [
        ("resnet101", "resnet50", "layer3.6.conv1.weight"),
        ("resnet50", "resnet101", "layer3.6.conv1.weight"),
        ("resnet18", "resnet50", "layer1.0.conv1.weight"),
        ("resnet34", "resnet18", "layer1.2.conv1.weight"),
        ("wide_resnet50_2", "resnet50", "layer1.0.conv1.weight"),
        ("mobilenet_v2", "resnet50", "conv1.weight"),
        ("vgg16", "vgg11", "features.3.weight"),
    ],
)
def test_another_architecture_is_refused(given, asked, key, tmp_path):
    path = save(hollow_state(given), tmp_path / f"{given}.pth")
    with pytest.raises(EncoderError) as caught:
        load_encoder(asked, weights=path)
    for part in (path, asked, f"{key} is", "check --model"):
        assert part in str(caught.value)


@needs_torch
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad, small, tmp_path):
    state = torch.load(small, weights_only=True)
    state["conv5.0.weight"][0, 0] = bad
    with pytest.raises(EncoderError, match=r"conv5\.0\.weight holds numbers that are not"):
        load_encoder(SMALL, weights=save(state, tmp_path / "bad.pth"))


@needs_torch
def test_quantised_weights_are_refused(small, tmp_path):
    state = torch.load(small, weights_only=True)
    state["conv5.0.weight"] = state["conv5.0.weight"].to(torch.int8)
    with pytest.raises(EncoderError, match="quantised"):
        load_encoder(SMALL, weights=save(state, tmp_path / "int8.pth"))


@needs_torch
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\0" * 1000,
        b"PK\x03\x04" + b"\0" * 100,
        b"\xff" * 9,
        b"<!DOCTYPE html><title>Sign in</title>",
        pickle.dumps({"weight": [1, 2]}),
        pickle.dumps([1, 2, 3]),
    ],
)
def test_files_that_are_not_weights_are_refused(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(EncoderError, match=name):
        load_encoder(SMALL, weights=str(path))


@needs_torch
def test_half_a_file_is_refused(small, tmp_path):
    content = Path(small).read_bytes()
    path = tmp_path / "half.pth"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(EncoderError, match=r"half\.pth"):
        load_encoder(SMALL, weights=str(path))


@needs_torch
def test_a_web_page_is_recognised(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(b"\n<html><body>404</body></html>")
    with pytest.raises(EncoderError, match="web page"):
        load_encoder(SMALL, weights=str(path))


@needs_torch
def test_code_in_a_weights_file_is_not_executed(bomb, tmp_path):
    content, mark = bomb
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(EncoderError, match="more than tensors"):
        load_encoder(SMALL, weights=str(path))
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists()  # so it would have been


@needs_torch
@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors", "./missing"])
def test_a_missing_file_is_said_to_be_missing(name):
    with pytest.raises(EncoderError, match="does not exist"):
        load_encoder(SMALL, weights=name)


@needs_torch
def test_weights_under_the_names_of_older_files_are_understood(tmp_path):
    def old(key):
        for n in "12":
            key = key.replace(f"norm{n}.", f"norm.{n}.").replace(f"conv{n}.", f"conv.{n}.")
        return key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")

    for model in ("densenet121", "vit_b_32"):
        state = hollow_state(model)
        renamed = {
            old(key) if "denselayer" in key or "mlp" in key else key: value
            for key, value in state.items()
        }
        assert set(renamed) != set(state)
        path = save(renamed, tmp_path / f"{model}.pth")
        assert load_encoder(model, weights=path, device="cpu").dimensions


# Published weights


@needs_torch
def test_published_weights_are_downloaded_once(published, capsys):
    first = load_encoder(SMALL, device="cpu")
    assert published.cached.read_bytes() == published.body
    second = load_encoder(SMALL, device="cpu")
    assert published.requests == [f"/{published.filename}"]
    assert first.spec == second.spec
    assert first.spec.weights == "IMAGENET1K_V1"
    assert first.spec.weights_sha256 == published.sha256
    assert capsys.readouterr() == ("", "")


@needs_torch
def test_a_planted_file_in_the_cache_is_refused_unopened(published, bomb):
    content, mark = bomb
    published.cached.parent.mkdir(parents=True)
    published.cached.write_bytes(content)
    with pytest.raises(EncoderError) as caught:
        load_encoder(SMALL)
    for part in (f"Delete {published.cached}", f"start with {published.sha256[:8]}"):
        assert part in str(caught.value)
    assert not mark.exists()
    assert not published.requests


@needs_torch
def test_resnet50_is_checked_against_its_full_hash():
    from datasette_image_similarity.encoders import torchvision as ours

    plan = ours.plan(Choice("resnet50"))
    assert plan.file.sha256 == SPEC.weights_sha256
    plan.file.path.parent.mkdir(parents=True)
    plan.file.path.write_bytes(b"not it")
    with pytest.raises(EncoderError, match=f"should be {SPEC.weights_sha256}"):
        load_encoder()


@needs_torch
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": 404}, "answered 404"),
        ({"body": b"<html>Sign in</html>"}, "not that file"),
        ({"cut_to": 1_000_000}, "only a part of it"),
        ({"body": None}, "sent nothing for 0.3 seconds"),
    ],
)
def test_a_failed_download_says_why_and_leaves_nothing(
    published, change, reason, monkeypatch
):
    from datasette_image_similarity.encoders import weights

    monkeypatch.setattr(weights, "TIMEOUT_SECONDS", 0.3)
    for name, value in change.items():
        setattr(published, name, value)
    with pytest.raises(EncoderError, match=reason) as caught:
        load_encoder(SMALL)
    entry = torchvision.models.get_model_weights(SMALL).IMAGENET1K_V1
    for part in (entry.url, str(published.cached), "--model hog"):
        assert part in str(caught.value)
    assert list(published.cached.parent.iterdir()) == []


@needs_torch
def test_without_internet_the_error_names_the_file_and_the_place():
    with pytest.raises(EncoderError) as caught:
        load_encoder()
    cached = Path(torch.hub.get_dir(), "checkpoints", "resnet50-0676ba61.pth")
    for part in (
        "https://download.pytorch.org/models/resnet50-0676ba61.pth: ",
        f"save it as {cached}",
        "--model hog",
    ):
        assert part in str(caught.value)


@needs_torch
def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch, published):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(EncoderError, match="could not be downloaded"):
        load_encoder(SMALL)


# The same encoder again


@needs_torch
def test_the_spec_is_known_without_loading(small, published):
    assert encoder_spec(SMALL, weights=small, pooling="max") == (
        load_encoder(SMALL, weights=small, pooling="max", device="cpu").spec
    )
    assert encoder_spec(SMALL) == load_encoder(SMALL, device="cpu").spec
    assert encoder_spec("hog", fit="crop") == load_encoder("hog", fit="crop").spec


@needs_torch
def test_an_encoder_from_a_file_is_restored_from_a_copy_of_it(small, tmp_path):
    encoder = load_encoder(SMALL, weights=small, pooling="max", fit="pad", device="cpu")
    spec = EncoderSpec.from_json(encoder.spec.to_json())
    moved = tmp_path / "moved.pth"
    moved.write_bytes(Path(small).read_bytes())
    again = restore_encoder(spec, weights_file=moved, device="cpu")
    assert again.spec.fingerprint == spec.fingerprint
    pixels = noise(1, 224)
    np.testing.assert_array_equal(again.encode(pixels), encoder.encode(pixels))


@needs_torch
def test_an_encoder_from_a_file_asks_for_that_file(small):
    spec = encoder_spec(SMALL, weights=small)
    with pytest.raises(EncoderError, match=spec.weights_sha256):
        restore_encoder(spec)


@needs_torch
def test_another_file_is_refused_unopened(small, bomb, tmp_path):
    content, mark = bomb
    other = tmp_path / "small.pth"
    other.write_bytes(content)
    with pytest.raises(EncoderError, match="SHA-256 should be"):
        restore_encoder(encoder_spec(SMALL, weights=small), weights_file=other)
    assert not mark.exists()


@needs_torch
def test_a_spec_without_a_hash_is_no_leave_to_take_any_file(small):
    spec = replace(encoder_spec(SMALL, weights=small), weights=None, weights_sha256=None)
    with pytest.raises(EncoderError, match="hash of the weights"):
        restore_encoder(spec, weights_file=Path(small))


@needs_torch
def test_named_weights_are_restored_from_the_cache_or_a_file(published, tmp_path):
    spec = encoder_spec(SMALL)
    assert restore_encoder(spec, device="cpu").spec == spec
    kept = published.cached.rename(tmp_path / "kept.pth")
    with pytest.raises(EncoderError, match=r"not on this machine yet\. Download http"):
        restore_encoder(spec, download=False)
    assert restore_encoder(spec, weights_file=kept, device="cpu").spec == spec
    assert len(published.requests) == 1


@needs_torch
@pytest.mark.parametrize(
    "change",
    [
        {"model": "resnet1"},
        {"weights_sha256": "0" * 64},
        {"pooling": None},
        {"input": Input(224, 256, "squash", "lanczos")},
        {"input": Input(112, 256, "crop")},
        {"mean": (0.5, 0.5, 0.5)},
        {"version": 99},
    ],
)
def test_what_cannot_be_made_again_is_refused_before_a_download(published, change):
    spec = replace(encoder_spec(SMALL), **change)
    published.cached.unlink()
    with pytest.raises(EncoderError):
        restore_encoder(spec)
    assert len(published.requests) == 1


# A trained network


@needs_torch
@pytest.mark.skipif(
    not (MOBILENET.exists() and PHOTOS.exists()), reason="../shared is not there"
)
@pytest.mark.parametrize(("model", "least"), [("mobilenet_v2", 0.9), ("hog", 0.6)])
def test_neighbours_are_mostly_of_the_same_kind(model, least):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    weights = str(MOBILENET) if model == "mobilenet_v2" else None
    encoder = load_encoder(model, weights=weights)
    size = (encoder.input.size, encoder.input.size)
    pixels, labels = [], []
    for name in ("accordion", "dollar_bill", "grand_piano", "soccer_ball", "starfish"):
        for path in sorted((PHOTOS / name).iterdir())[:12]:
            picture = image.open(path).convert("RGB")
            pixels.append(np.asarray(picture.resize(size, image.Resampling.BILINEAR)))
            labels.append(name)
    vectors = encoder.encode(np.stack(pixels))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -1)
    nearest = np.argsort(-scores, axis=1)[:, :5]
    labels = np.array(labels)
    assert (labels[nearest] == labels[:, None]).mean() > least
