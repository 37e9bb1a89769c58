"""In what a network computes: chosen for the processor, harmless, and mixed at will."""

from __future__ import annotations

import io
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from conftest import PHOTOS, WEIGHTS, picture
from core import refused

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.collection import EncoderOptions
from datasette_image_similarity.database import connect
from datasette_image_similarity.encoders import load_encoder, precision, restore_encoder
from datasette_image_similarity.errors import EncoderError
from datasette_image_similarity.pipeline import Job
from datasette_image_similarity.plan import Queue
from datasette_image_similarity.sources import Picture

np = pytest.importorskip("numpy", reason="numpy is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")

NETWORK = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with random numbers for NETWORK; its batch norms do something."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.get_model(NETWORK)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(network.state_dict(), path)
    return str(path)


def encoder(weights: str, precision: str):
    return load_encoder(NETWORK, weights=weights, device="cpu", precision=precision)


def patches(n: int) -> np.ndarray:
    """Pictures of large coloured patches, more and more of them."""
    chance = np.random.default_rng(0)
    pixels = np.empty((n, 224, 224, 3), np.uint8)
    for number in range(n):
        rows = np.arange(224) * (number + 1) // 224
        colours = chance.integers(0, 256, (number + 1, number + 1, 3), dtype=np.uint8)
        pixels[number] = colours[rows][:, rows]
    return pixels


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# Chosen for the processor


@pytest.mark.parametrize(
    ("capabilities", "platform", "chosen"),
    [
        ({"avx2": True, "avx512_bf16": True}, "linux", "bfloat16"),
        ({"amx_bf16": True}, "win32", "bfloat16"),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, "linux", "float32"),
        ({"neon": True, "bf16": True, "sve_max_length": 16}, "linux", "bfloat16"),
        ({"neon": True, "bf16": True}, "darwin", "float32"),
        ({}, "linux", "float32"),
    ],
)
def test_auto_is_bfloat16_where_the_processor_has_it(
    capabilities: dict, platform: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(precision.sys, "platform", platform)
    assert precision.choose("auto", "cpu") == chosen


@pytest.mark.parametrize(
    ("content", "chosen"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16 \n", "bfloat16"),
        ("processor : 0\nflags\t\t: fpu avx512f\n", "float32"),
        ("processor : 0\nFeatures\t: fp asimd bf16 i8mm\n", "bfloat16"),
        (None, "float32"),
    ],
)
def test_an_older_torch_leaves_it_to_the_system_to_say(
    content: str | None, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(precision, "CPU_INFO", file)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(precision.sys, "platform", "linux")
    assert precision.choose("auto", "cpu") == chosen


def test_other_devices_have_precisions_of_their_own() -> None:
    assert precision.choose("auto", "cuda") == "float16"
    assert precision.choose("auto", "mps") == "float32"
    assert precision.choose("bfloat16", "cuda") == "bfloat16"
    with pytest.raises(EncoderError, match="--device cpu"):
        precision.choose("int8", "cuda")
    with pytest.raises(EncoderError, match="choose from auto, float32, bfloat16, int8"):
        precision.choose("int4", "cpu")


def test_hog_has_one_precision(tmp_path: Path, photos: Path) -> None:
    options = ("--model", "hog", "--precision", "int8")
    assert "hog computes in float32 only" in refused(
        "embed", tmp_path / "new.db", photos, *options
    )
    assert not (tmp_path / "new.db").exists()


# The same vectors, nearly


def test_bfloat16_is_near_to_float32_and_of_the_same_kind(weights: str) -> None:
    exact, near = encoder(weights, "float32"), encoder(weights, "bfloat16")
    assert near.precision == "bfloat16"
    assert near.spec.fingerprint == exact.spec.fingerprint
    pixels = patches(6)
    vectors = near.encode(pixels)
    assert vectors.dtype == np.float32
    assert (vectors != exact.encode(pixels)).any()
    assert cosines(vectors, exact.encode(pixels)).min() > 0.995


def test_batch_norms_stay_in_float32(weights: str) -> None:
    network = encoder(weights, "bfloat16")._runner._module.network
    dtypes = {
        (isinstance(module, torch.nn.BatchNorm2d), tensor.dtype)
        for module in network.modules()
        for tensor in module.parameters(recurse=False)
    }
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_a_vector_does_not_depend_on_its_place_or_batch(weights: str, asked: str) -> None:
    one = encoder(weights, asked)
    pixels = patches(one.batch_size + 3)
    before = pixels.copy()
    together = one.encode(pixels)
    apart = np.concatenate([one.encode(pixels[i : i + 1]) for i in range(len(pixels))])
    assert cosines(together, apart).min() > 0.999
    away = np.linalg.norm(together[:, None] - apart, axis=2)
    assert away.argmin(axis=1).tolist() == list(range(len(pixels)))
    for n in (0, 2, 3, 5, one.batch_size + 1):
        assert one.encode(pixels[:n]).shape == (n, one.dimensions)
    assert (pixels == before).all()


def test_several_threads_may_encode_at_once(weights: str) -> None:
    one, pixels = encoder(weights, "float32"), patches(12)
    expected = one.encode(pixels)
    with ThreadPoolExecutor(3) as threads:
        for vectors in threads.map(one.encode, [pixels] * 6):
            np.testing.assert_allclose(vectors, expected, atol=1e-4 * expected.max())


def test_threads_of_the_program_stay_as_they_were(weights: str) -> None:
    before = torch.get_num_threads()
    encoder(weights, "float32").encode(patches(8))
    assert torch.get_num_threads() == before
    seen = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [before]


def test_a_large_network_input_makes_small_batches() -> None:
    from datasette_image_similarity.encoders.running import chunk_of

    assert chunk_of(224) == chunk_of(224) // 2 * 2 > chunk_of(384) > chunk_of(600) == 1


# Mixed in one collection


def test_a_collection_takes_vectors_of_every_precision(
    weights: str, tmp_path: Path, photos: Path
) -> None:
    said = []

    def options(precision: str) -> dict:
        return {
            "encoder": EncoderOptions(NETWORK, weights, device="cpu", precision=precision),
            "workers": 1,
            "progress": lambda now: said.append(now.encoder),
        }

    with ImageCollection(tmp_path / "mixed.db") as collection:
        collection.embed(photos / "red", **options("float32"))
        collection.embed(photos / "green", **options("bfloat16"))
        # The same picture in other bytes, embedded in the other precision.
        copy = photos / "copy"
        copy.mkdir()
        (copy / "red.png").write_bytes(picture("red", 3) + b"\0")
        summary = collection.embed(copy, **options("bfloat16"))
        assert summary.embedded == 1
        rows = collection.connect().execute("select id, path from images")
        ids = {Path(row["path"]).name: row["id"] for row in rows}
        exact, near = (collection.vector(ids[name]) for name in ("red-3.png", "red.png"))
        assert collection.status().embedded == 17
    assert (exact != near).any()
    assert exact @ near > 0.995
    assert {text.rsplit(", ", 1)[1] for text in said} == {"float32", "bfloat16"}


@pytest.mark.skipif(
    not (WEIGHTS.exists() and PHOTOS.exists()), reason="../shared is not there"
)
def test_copies_find_their_original_in_another_precision() -> None:
    from PIL import Image

    originals, copies = [], []
    for folder in sorted((PHOTOS / "clothing").iterdir())[:8]:
        if not folder.is_dir():
            continue
        for file in sorted(folder.iterdir())[:6]:
            shown = Image.open(file).convert("RGB")
            buffer = io.BytesIO()
            shown.resize((shown.width // 2, shown.height // 2)).save(buffer, "JPEG")
            for pixels, image in ((originals, shown), (copies, Image.open(buffer))):
                pixels.append(np.asarray(image.resize((224, 224))))
    exact, near = (
        load_encoder("mobilenet_v2", weights=WEIGHTS, device="cpu", precision=asked)
        for asked in ("float32", "bfloat16")
    )
    there, asked = exact.encode(np.stack(originals)), near.encode(np.stack(copies))
    there /= np.linalg.norm(there, axis=1, keepdims=True)
    assert (asked @ there.T).argmax(axis=1).tolist() == list(range(len(there)))
    assert cosines(near.encode(np.stack(originals)), there).min() > 0.95


def test_an_encoder_comes_back_in_any_precision(weights: str) -> None:
    spec = encoder(weights, "float32").spec
    for asked in ("float32", "bfloat16"):
        again = restore_encoder(
            spec, weights_file=Path(weights), device="cpu", precision=asked
        )
        assert (again.precision, again.spec) == (asked, spec)


def test_a_loaded_encoder_gives_way_to_another_precision(
    weights: str, tmp_path: Path, photos: Path
) -> None:
    def embed(collection: ImageCollection, precision: str) -> str:
        options = EncoderOptions(precision=precision)
        collection.embed(photos / "blue", encoder=options, force=True, workers=1)
        return collection.load_encoder().precision

    with ImageCollection(tmp_path / "new.db") as collection:
        first = EncoderOptions(NETWORK, weights, precision="float32")
        collection.embed(photos / "red", encoder=first, workers=1)
        assert embed(collection, "bfloat16") == "bfloat16"
        assert embed(collection, "auto") == "bfloat16"


# int8


def test_int8_says_what_to_install(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EncoderError) as caught:
        encoder(weights, "int8")
    assert str(caught.value) == (
        "int8 needs OpenVINO and NNCF: pip install 'datasette-image-similarity[int8]'"
    )


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> int:
    """int8 begins after so many pictures."""
    from datasette_image_similarity.encoders import int8

    monkeypatch.setattr(int8, "SAMPLE", 16)
    return 16


def test_a_network_that_cannot_be_quantised_is_said(
    weights: str, small_sample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasette_image_similarity.encoders import int8

    def fail(*_: object) -> None:
        raise RuntimeError("no such operation\nand a long story")

    monkeypatch.setattr(int8, "find_spec", lambda name: name)
    monkeypatch.setattr(int8, "quantized", fail)
    one = encoder(weights, "int8")
    one.encode(patches(small_sample - 1))
    with pytest.raises(EncoderError) as caught:
        one.encode(patches(1))
    assert str(caught.value) == (
        f"{NETWORK} cannot be had in int8: no such operation. Leave out --precision."
    )


def test_int8_begins_when_it_has_seen_enough(
    weights: str, small_sample: int, capfd: pytest.CaptureFixture
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    pytest.importorskip("nncf", reason="NNCF is not installed")
    one, exact = encoder(weights, "int8"), encoder(weights, "float32")
    assert one.spec.fingerprint == exact.spec.fingerprint
    assert one.precision.startswith("int8 (")
    assert one.precision.endswith(" until it has seen 16 pictures)")
    pixels = patches(small_sample + 11)
    assert one.sample == small_sample
    one.encode(pixels[:small_sample])
    assert (one.precision, one.sample) == ("int8", 0)
    for rest in (pixels[small_sample:], pixels[:1]):  # ragged
        vectors = one.encode(rest)
        assert vectors.shape == (len(rest), one.dimensions)
        assert vectors.dtype == np.float32
        assert cosines(vectors, exact.encode(rest)).min() > 0.95
    assert capfd.readouterr().out == ""


def test_the_first_pictures_for_int8_come_from_all_over(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "x.db", create=True)) as conn:

        def order(count: int) -> list[int]:
            jobs = Queue(conn)
            jobs.add((Job(Picture(pk=pk)), False) for pk in range(1000))
            jobs.put_first(count)
            return [job.picture.pk for job in jobs]

        ordered = order(4)
        assert ordered[:6] == [0, 250, 500, 750, 1, 2]
        assert sorted(ordered) == [*range(1000)]
        assert order(0) == order(1000) == [*range(1000)]


def test_openvino_does_not_report_to_its_maker() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    pytest.importorskip("nncf", reason="NNCF is not installed")
    import subprocess

    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from datasette_image_similarity.encoders.int8 import _libraries\n"
            "openvino, nncf = _libraries()\n"
            "import nncf.telemetry.wrapper as wrapper\n"
            "print(isinstance(wrapper.telemetry, wrapper.NNCFTelemetry))\n"
            "print('openvino_telemetry' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout == "False\nFalse\n", result.stderr
