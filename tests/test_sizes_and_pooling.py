"""Networks of torchvision at other sizes, and how their feature maps become vectors."""

from pathlib import Path

import pytest
from core import answer, command, refused, value

from datasette_image_similarity.encoders import EncoderSpec, load_encoder, restore_encoder
from datasette_image_similarity.encoders.families import Choice
from datasette_image_similarity.errors import EncoderError
from datasette_image_similarity.images import Input

np = pytest.importorskip("numpy", reason="numpy is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

SMALL, END, CHANNELS = "shufflenet_v2_x0_5", "conv5", 1024


def noise(n, size):
    shape = (n, size, size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def network(model):
    """An untrained network whose batch norms do something."""
    torch.manual_seed(0)
    made = torchvision.models.get_model(model).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(network(SMALL).state_dict(), path)
    return str(path)


def maps(model, end, pixels):
    """The feature maps of the whole network: float32 (n, channels, rows, columns)."""
    seen, made = [], network(model)
    made.get_submodule(end).register_forward_hook(lambda m, a, out: seen.append(out))
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.inference_mode():
        made((batch - mean) / std)
    return seen[0]


def encoder(weights, **options):
    given = {"device": "cpu", "precision": "float32", **options}
    return load_encoder(SMALL, weights=weights, **given)


def planned(model, **choice):
    from datasette_image_similarity.encoders import torchvision as ours

    return ours.plan(Choice(model, "w.pth", **choice))


# Pooling


def test_gem_is_the_generalized_mean_of_what_is_positive():
    from datasette_image_similarity.encoders.running import pooled

    values = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[-5.0, 0.0], [0.0, 2.0]]]])
    first, second = pooled(values, "gem")[0].tolist()
    assert first == pytest.approx(((1 + 8 + 27 + 64) / 4) ** (1 / 3))
    assert second == pytest.approx((8 / 4) ** (1 / 3))  # what is negative counts as zero
    assert pooled(values, "avg")[0, 0] < first < pooled(values, "max")[0, 0]


def test_gem_of_what_is_never_positive_is_nearly_zero_and_finite():
    from datasette_image_similarity.encoders.running import pooled

    assert pooled(-torch.ones(1, 2, 3, 3), "gem")[0].tolist() == pytest.approx([1e-6] * 2)


@pytest.mark.parametrize("size", [224, 160, 32])
@pytest.mark.parametrize("pooling", ["avg", "max", "gem", "flatten"])
def test_vectors_are_the_pooled_maps_of_the_whole_network(pooling, size, small):
    pixels = noise(3, size)
    wanted = maps(SMALL, END, pixels).numpy()
    if pooling == "flatten":
        wanted = wanted.reshape(3, -1)
    elif pooling == "gem":
        wanted = np.cbrt((np.maximum(wanted, 1e-6) ** 3).mean((2, 3)))
    else:
        wanted = wanted.mean((2, 3)) if pooling == "avg" else wanted.max((2, 3))
    made = encoder(small, pooling=pooling, size=size)
    assert made.dimensions == wanted.shape[1]  # known before a picture is seen
    assert made.encode(noise(0, size)).shape == (0, made.dimensions)
    vectors = made.encode(pixels)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, wanted, rtol=1e-3, atol=1e-4 * wanted.max())


@pytest.mark.parametrize("pooling", ["gem", "flatten"])
def test_lower_precision_gives_nearly_the_same(pooling, small):
    pixels = noise(2, 96)
    exact = encoder(small, pooling=pooling, size=96).encode(pixels)
    low = encoder(small, pooling=pooling, size=96, precision="bfloat16").encode(pixels)
    cosines = (exact * low).sum(1) / np.linalg.norm(exact, axis=1)
    assert (cosines / np.linalg.norm(low, axis=1) > 0.999).all()


@pytest.mark.parametrize("pooling", ["gem", "flatten"])
def test_what_int8_is_made_from_gives_the_same(pooling, small):
    pixels = torch.from_numpy(noise(2, 96))
    module = encoder(small, pooling=pooling, size=96)._runner._module
    exported = torch.export.export(module, (pixels,)).module()
    with torch.inference_mode():
        torch.testing.assert_close(exported(pixels), module(pixels))


def test_resnet50_flattened_is_as_long_as_its_map():
    features = planned("resnet50").features
    assert features.pooled("avg") == 2048
    assert features.pooled("flatten") == 7 * 7 * 2048 == 100_352


# Sizes


@pytest.mark.slow
@pytest.mark.parametrize(("model", "end"), [("swin_t", "permute"), ("resnet18", "layer4")])
def test_a_network_sees_at_another_size_what_the_whole_one_sees(model, end, tmp_path):
    torch.save(network(model).state_dict(), tmp_path / "w.pth")
    pixels = noise(2, 160)
    wanted = maps(model, end, pixels).mean((2, 3))
    made = load_encoder(
        model, weights=tmp_path / "w.pth", size=160, device="cpu", precision="float32"
    )
    vectors = torch.from_numpy(made.encode(pixels))
    torch.testing.assert_close(vectors, wanted, rtol=1e-3, atol=1e-4 * wanted.max())


def test_a_small_picture_has_the_same_last_map():
    # Of one position: what is in front of it has more, but is not what is meant.
    features = planned("resnet50", size=32).features
    assert (features.dimensions, features.positions) == (2048, 1)


def test_what_is_cropped_stays_in_proportion():
    assert planned("resnet50", size=448, fit="crop").input == Input(448, 512, "crop")
    assert planned("resnet50", size=224, fit="crop").input == Input(224, 256, "crop")
    assert planned("resnet50", size=112, fit="pad").input.size == 112
    assert planned("resnet50", size=1024).input == Input(1024, 1024)  # nothing is cropped
    with pytest.raises(EncoderError, match="scaled to 1143"):
        planned("resnet50", size=1000, fit="crop")


@pytest.mark.parametrize("model", ["vit_b_16", "maxvit_t"])
def test_networks_made_for_one_size_say_so(model, capfd):
    with pytest.raises(EncoderError) as caught:
        planned(model, size=160)
    assert str(caught.value) == (
        f"{model} cannot look at squares of 160 pixels: leave out --size for 224. Networks "
        "with position embeddings, as vision transformers, see one size only; all others "
        "need some pixels to begin with."
    )
    assert capfd.readouterr().err == ""
    assert planned(model, size=224).input.size == 224


def test_too_few_pixels_are_refused():
    with pytest.raises(EncoderError, match="squares of 16 pixels"):
        planned("convnext_tiny", size=16)


@pytest.mark.parametrize("size", [15, 0, -1, 1025])
@pytest.mark.parametrize("model", [SMALL, "hog"])
def test_sizes_out_of_range_are_refused(size, model):
    with pytest.raises(EncoderError):
        load_encoder(model, size=size)


def test_hog_has_one_size():
    assert load_encoder("hog", size=96).input.size == 96
    with pytest.raises(EncoderError, match="leave out --size"):
        load_encoder("hog", size=97)


def test_an_encoder_of_another_size_is_restored(small):
    made = encoder(small, pooling="gem", size=160, fit="crop")
    spec = EncoderSpec.from_json(made.spec.to_json())
    assert spec.input == Input(160, 183, "crop")
    assert spec.fingerprint != encoder(small, pooling="gem", fit="crop").spec.fingerprint
    again = restore_encoder(
        spec, weights_file=Path(small), device="cpu", precision="float32"
    )
    pixels = noise(2, 160)
    np.testing.assert_array_equal(again.encode(pixels), made.encode(pixels))


# The command


def size_and_pooling(path):
    spec = value(path, "select encoder from _image_similarity_collections")
    spec = EncoderSpec.from_json(spec)
    return spec.input.size, spec.pooling


def test_embed_goes_on_with_size_and_pooling(small, photos, tmp_path):
    path = tmp_path / "p.db"
    chosen = ["--model", SMALL, "--weights", small, "--size", "64", "--pooling", "gem"]
    assert command("embed", path, photos / "red", *chosen).exit_code == 0
    assert size_and_pooling(path) == (64, "gem")
    assert answer("embed", path, photos)["embedded"] == 16
    assert answer("embed", path, photos, "--pooling", "gem")["unchanged"] == 24
    assert "cannot be compared" in refused("embed", path, photos, "--size", "96")
    assert answer("embed", path, photos, "--fit", "pad", "--force")["embedded"] == 24
    assert size_and_pooling(path) == (64, "gem")
    assert answer("embed", path, photos, "--size", "96", "--force")["embedded"] == 24
    assert size_and_pooling(path) == (96, "gem")


def test_a_flattened_map_is_stored_whole(small, photos, tmp_path):
    path = tmp_path / "p.db"
    chosen = ["--model", SMALL, "--weights", small, "--size", "64", "--pooling", "flatten"]
    assert command("embed", path, photos, *chosen).exit_code == 0
    assert answer("status", path)[0]["dimensions"] == 2 * 2 * CHANNELS


def test_a_network_newer_than_our_table_is_listed(monkeypatch):
    from datasette_image_similarity.encoders import torchvision as ours

    without = {k: v for k, v in ours.DIMENSIONS.items() if k != "resnet18"}
    monkeypatch.setattr(ours, "DIMENSIONS", without)
    line = command("models", "resnet18").output.splitlines()[1]
    assert line.split()[:3] == ["resnet18", "?", "IMAGENET1K_V1,"]
    assert planned("resnet18").features.dimensions == 512
