"""Encoders of other packages, found by an entry point: the one in demo/encoder, and
broken ones."""

import re
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import picture
from core import answer, command, refused, value
from serving import open_datasette, post_picture

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.collection import EncoderOptions
from datasette_image_similarity.encoders import (
    EncoderSpec,
    available_models,
    load_encoder,
    restore_encoder,
)
from datasette_image_similarity.errors import EncoderError

np = pytest.importorskip("numpy", reason="numpy is not installed")

DEMO = Path(__file__).parent.parent / "demo" / "encoder"
GROUP = "datasette_image_similarity.encoders"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts packages where Python finds them, with an entry point for each encoder."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def install(name, code, entry_point):
        module, package = f"plugin_{name}", folder / f"datasette_{name}-1.0.dist-info"
        monkeypatch.delitem(sys.modules, module, raising=False)
        (folder / f"{module}.py").write_text(textwrap.dedent(code))
        package.mkdir()
        (package / "METADATA").write_text(f"Name: datasette-{name}\nVersion: 1.0\n")
        (package / "entry_points.txt").write_text(
            f"[{GROUP}]\n{name} = {module}:{entry_point}\n"
        )

    return install


@pytest.fixture
def colours(install):
    """The documented example, as its own pyproject.toml names it."""
    project = (DEMO / "pyproject.toml").read_text()
    section = project.partition(f'[project.entry-points."{GROUP}"]')[2]
    name, module, made_by = re.search(r'(\w+) = "(\w+):(\w+)"', section).groups()
    install(name, (DEMO / f"{module}.py").read_text(), made_by)
    return name


def noise(n, size):
    shape = (n, size, size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def plugin(**changes):
    """A module with an encoder of two numbers; `changes` are lines of its class."""
    lines = {
        "name": "'two numbers'",
        "fingerprint": "'1'",
        "dimensions": "2",
        "size": "32",
        "encode": "lambda self, batch: np.ones((len(batch), 2), 'float32')",
    }
    body = "".join(f"    {n} = {v}\n" for n, v in {**lines, **changes}.items() if v)
    return f"import numpy as np\nclass Encoder:\n{body}"


def test_the_example_embeds_a_folder(colours, photos, tmp_path):
    path = tmp_path / "p.db"
    assert command("embed", path, photos, "--model", colours).exit_code == 0
    status = answer("status", path)[0]
    assert status["encoder"] == "colours (mean colours of 16 fields)"
    assert (status["dimensions"], status["embedded"]) == (48, 24)
    red = value(path, "select id from images where path like '%red-0.png'")
    with ImageCollection(path) as collection:
        hits = collection.similar(red, k=7)
        assert all("red" in hit.row["path"] for hit in hits)
        asked = collection.search(photos / "red" / "red-0.png", k=1)
    assert asked[0].score == pytest.approx(1)


def test_running_again_goes_on_with_it(colours, photos, tmp_path):
    path = tmp_path / "p.db"
    command("embed", path, photos, "--model", colours)
    (photos / "red" / "red-0.png").write_bytes((photos / "red" / "red-1.png").read_bytes())
    assert answer("embed", path, photos)["reused"] == 1
    again = answer("embed", path, photos, "--model", colours, "--fit", "squash")
    assert again["unchanged"] == 24
    forced = answer("embed", path, photos, "--fit", "pad", "--force")
    assert forced["embedded"] == 23  # two are the same picture now


def test_its_fingerprint_is_part_of_ours(install):
    install("one", plugin(), "Encoder")
    install("two", plugin(fingerprint="'2'"), "Encoder")
    one, two = load_encoder("one").spec, load_encoder("two").spec
    assert one.weights_sha256 != two.weights_sha256
    assert EncoderSpec.from_json(one.to_json()) == one
    assert restore_encoder(one).spec == one
    changed = EncoderSpec.from_json(two.to_json().replace('"two"', '"one"'))
    with pytest.raises(EncoderError, match="weights_sha256"):
        restore_encoder(changed)


def test_without_a_size_it_sees_224_pixels(install):
    install("plain", plugin(size=None), "Encoder")
    encoder = load_encoder("plain")
    assert encoder.input.size == 224
    assert encoder.encode(noise(2, 224)).tolist() == [[1, 1], [1, 1]]
    assert encoder.encode(noise(0, 224)).shape == (0, 2)


def test_words_are_embedded_where_the_package_can(install):
    words = "lambda self, texts: np.array([[len(t), 1] for t in texts], 'float32')"
    install("plain", plugin(), "Encoder")
    install("words", plugin(encode_text=words), "Encoder")
    encoder = load_encoder("words")
    assert encoder.spec.text
    assert encoder.encode_text(["red", "shoes"]).tolist() == [[3, 1], [5, 1]]
    assert not load_encoder("plain").spec.text
    assert not hasattr(load_encoder("plain"), "encode_text")


def test_models_lists_it_without_importing_it(install):
    install("broken", "raise RuntimeError('no')", "Encoder")
    listed = {model.name: model for model in available_models()}
    assert listed["broken"].note == "from datasette-broken"
    output = command("models", "broken").output
    assert re.search(r"broken +\? +.*from datasette-broken", output)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('out of order')", "RuntimeError: out of order"),
        ("import surely_not_installed", "ModuleNotFoundError"),
        ("", "AttributeError"),
        ("Encoder = 5", "TypeError"),
        ("def Encoder(): 1 / 0", "ZeroDivisionError"),
        ("def Encoder(): return None", "dimensions is missing or not valid"),
        (plugin(dimensions="'2'"), "dimensions is missing or not valid"),
        (plugin(dimensions="0"), "dimensions is missing or not valid"),
        (plugin(size="7"), "size is missing or not valid"),
        (plugin(size="True"), "size is missing or not valid"),
        (plugin(name="'a/b'"), "name is missing or not valid"),
        (plugin(fingerprint=None), "fingerprint is missing or not valid"),
        (plugin(encode=None), "encode is missing or not valid"),
        (plugin(size="property(lambda self: 1 / 0)"), "ZeroDivisionError"),
    ],
)
def test_a_broken_package_is_named_and_breaks_nothing_else(
    code, reason, install, colours, photos, tmp_path
):
    install("broken", code, "Encoder")
    message = refused("embed", tmp_path / "p.db", photos, "--model", "broken")
    assert "The encoder broken" in message
    assert reason in message
    assert not (tmp_path / "p.db").exists()
    assert load_encoder(colours).dimensions == 48
    assert load_encoder("hog").dimensions == 1308


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        ("np.ones((len(batch), 3), 'float32')", "float32 (2, 3)"),
        ("np.ones((1, 2), 'float32')", "float32 (1, 2)"),
        ("np.ones((len(batch), 2))", "float64 (2, 2)"),
        ("[[1, 2]] * len(batch)", "list"),
        ("None", "NoneType"),
    ],
)
def test_what_it_returns_is_checked(returned, found, install):
    install("odd", plugin(encode=f"lambda self, batch: {returned}"), "Encoder")
    with pytest.raises(EncoderError, match=re.escape(f"gave {found} where float32")):
        load_encoder("odd").encode(noise(2, 32))


def test_an_encoder_that_fails_ends_the_run_in_words(install, photos, tmp_path):
    fails = "lambda self, batch: batch['no']"
    install("fails", plugin(encode=fails), "Encoder")
    result = command("embed", tmp_path / "p.db", photos, "--model", "fails")
    assert result.exit_code == 1
    assert "Error: The encoder fails failed (IndexError" in result.output


@pytest.mark.parametrize("name", ["hog", "resnet50"])
def test_our_own_names_cannot_be_taken(name, install):
    install(name, "raise SystemExit(5)", "Encoder")
    assert [m.note for m in available_models(name) if "datasette-" in m.note] == []
    if name == "hog":
        assert load_encoder("hog").dimensions == 1308


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"weights": "x.pth"}, "--weights"),
        ({"pooling": "avg"}, "--pooling"),
        ({"size": 160}, "--size"),
        ({"device": "cuda"}, "--device"),
        ({"precision": "int8"}, "--precision"),
    ],
)
def test_options_that_it_has_not_are_refused(option, named, colours):
    with pytest.raises(EncoderError, match=f"leave out {named}"):
        load_encoder(colours, **option)
    assert load_encoder(colours, size=64, fit="pad").input.fit == "pad"


def test_where_the_package_is_missing_the_vectors_can_still_be_searched(
    colours, photos, tmp_path, monkeypatch
):
    path = tmp_path / "p.db"
    with ImageCollection(path) as collection:
        collection.embed(photos, encoder=EncoderOptions(colours))
    kept = [place for place in sys.path if not place.startswith(str(tmp_path))]
    monkeypatch.setattr(sys, "path", kept)
    with ImageCollection(path) as collection:
        assert len(collection.similar(1, k=3)) == 3
        with pytest.raises(EncoderError):
            collection.search(photos / "red" / "red-0.png")


SEARCH = "/p/images/-/search-by-image"


async def test_visitors_search_by_a_picture_of_their_own(colours, photos, tmp_path):
    path = tmp_path / "p.db"
    with ImageCollection(path) as collection:
        collection.embed(photos, encoder=EncoderOptions(colours))
    response = await post_picture(open_datasette(path), SEARCH, picture("red", 3))
    assert response.status_code == 200
    assert response.json()["rows"][0]["row"]["name"] == "red-3.png"


async def test_visitors_are_told_in_words_that_it_is_broken(install, photos, tmp_path):
    path = tmp_path / "p.db"
    rows = "np.asarray(batch[:, :2, 0, 0], 'float32') + 1"
    install("later", plugin(encode=f"lambda self, batch: {rows}"), "Encoder")
    with ImageCollection(path) as collection:
        collection.embed(photos, encoder=EncoderOptions("later"))
    code = plugin(encode="lambda self, batch: 1 / 0")
    exec(code, vars(sys.modules["plugin_later"]))  # a new version, in the same place
    response = await post_picture(open_datasette(path), SEARCH, picture("red", 3))
    assert response.status_code in (500, 503)
    assert "The encoder later failed (ZeroDivisionError" in response.text
    assert "Traceback" not in response.text


TIGHT = """
    import numpy as np

    class Grey:
        size, dimensions, name, fingerprint, batch_size = 32, 3, "grey", "1", 16
        calls = []

        def encode(self, pixels):
            self.calls.append(len(pixels))
            if len(pixels) > {most}:
                raise {error}
            return 1 + pixels.mean((1, 2), dtype=np.float32)
"""
OUT = (
    'MemoryError("no room")',
    'RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")',
    'RuntimeError("[enforce fail] DefaultCPUAllocator: can\'t allocate memory")',
    'type("OutOfMemoryError", (RuntimeError,), {})("HIP")',
)


@pytest.mark.parametrize("error", OUT)
def test_fewer_pictures_at_once_where_memory_runs_out(install, photos, tmp_path, error):
    install("tight", TIGHT.replace("{most}", "3").replace("{error}", error), "Grey")
    path = tmp_path / "photos.db"
    result = command("embed", path, photos, "--model", "tight", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "24 embedded" in result.output
    assert len([one for one in result.output.splitlines() if "at once: memory" in one]) == 1
    calls = sys.modules["plugin_tight"].Grey.calls
    small = calls.index(max(one for one in calls if one <= 3))
    assert max(calls[small:]) <= 3  # it was learned once


@pytest.mark.parametrize("error", [*OUT, 'ValueError("not today")', "AssertionError"])
async def test_an_encoder_that_gives_up_is_named(install, photos, tmp_path, error):
    install("tight", TIGHT.replace("{most}", "99").replace("{error}", error), "Grey")
    path = tmp_path / "photos.db"
    assert command("embed", path, photos / "red", "--model", "tight").exit_code == 0
    code = TIGHT.replace("{most}", "0").replace("{error}", error)
    (tmp_path / "site-packages" / "plugin_tight.py").write_text(textwrap.dedent(code))
    sys.modules.pop("plugin_tight")
    said = command("embed", path, photos)
    assert said.exit_code == 1
    last = said.output.splitlines()[-1]
    assert last.startswith("Error: ")
    assert "tight" in last
    assert ("a single picture" in last) is (error in OUT)
    assert value(path, "select count(*) from _image_similarity_items") == 8
    site = open_datasette(path)
    page = "/photos/images/-/search-by-image"
    answered = await post_picture(site, page, picture("red", 3))
    assert answered.status_code == 503
    assert "tight" in answered.json()["error"]


@pytest.mark.parametrize("error", OUT)
def test_our_own_encoders_take_fewer_as_well(photos, tmp_path, monkeypatch, error):
    from datasette_image_similarity.encoders.hog import HogEncoder

    whole, sizes = HogEncoder.encode, []

    def encode(self, pixels):
        sizes.append(len(pixels))
        if len(pixels) > 5:
            raise eval(error)
        return whole(self, pixels)

    monkeypatch.setattr(HogEncoder, "encode", encode)
    said = command("embed", tmp_path / "a.db", photos, "--model", "hog").output
    assert "24 embedded" in said
    monkeypatch.setattr(HogEncoder, "encode", lambda *_: 1 / 0)
    said = command("embed", tmp_path / "b.db", photos, "--model", "hog").output
    assert "The encoder hog failed on cpu (ZeroDivisionError: division by zero)" in said
