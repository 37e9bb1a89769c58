"""Pictures and databases to test with. Everything here is made by `hog`: no torch."""

from __future__ import annotations

import io
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasette.utils.sqlite import sqlite3

SHARED = Path(__file__).parents[2] / "shared"
PHOTOS = SHARED / "photos"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_imagenet.pth"

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}


# Files of tests that take longest. They begin first: where several processes take a file
# each, the last one would else be alone with them.
LONG = (
    *("ray", "milvus_server", "encoders", "scale", "browser_map", "kill", "index"),
    *("browser", "finetune", "matrix", "hostile_requests", "map", "ray_elsewhere", "move"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def templates_compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each Datasette compiles its templates anew: half the time of tests that ask pages."""
    from datasette import app
    from jinja2 import FileSystemBytecodeCache

    cache = FileSystemBytecodeCache(str(tmp_path_factory.mktemp("templates")))
    environment = partial(app.Environment, bytecode_cache=cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "Environment", environment)
        yield


@pytest.fixture(autouse=True)
def own_configuration_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that a test notes as trusted reaches the user's own folder."""
    folder = tmp_path_factory.mktemp("configuration")
    monkeypatch.setattr("click.get_app_dir", lambda *_, **__: str(folder))
    monkeypatch.setattr(
        "datasette_image_similarity.trust.click.get_app_dir", lambda *_: str(folder)
    )


@pytest.fixture(autouse=True)
def no_children_left() -> Iterator[None]:
    """The processes that decode for a test's Datasettes end with the test."""
    yield
    if "serving" in sys.modules:
        sys.modules["serving"].close_all()


def close_the_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, whatever is fetched goes to a proxy that is not there."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # urllib keeps what it made of these for all that is fetched later.
    monkeypatch.setattr("urllib.request._opener", None)


def picture(colour: str = "red", seed: int = 0, size: tuple[int, int] = (80, 60)) -> bytes:
    """A PNG: stripes of one colour, their direction and width drawn from the seed."""
    from PIL import Image, ImageDraw

    chance = random.Random(f"{colour} {seed}")
    image = Image.new("RGB", size, COLOURS[colour])
    draw = ImageDraw.Draw(image)
    step = chance.randint(6, 16)
    tilt = chance.randint(-20, 20)
    for x in range(-40, size[0] + 40, step):
        shade = tuple(min(255, part + chance.randint(10, 50)) for part in COLOURS[colour])
        draw.line([(x, 0), (x + tilt, size[1])], fill=shade, width=step // 2)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make_photos(folder: Path) -> Path:
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True)
        for number in range(8):
            (folder / colour / f"{colour}-{number}.png").write_bytes(
                picture(colour, number)
            )
    return folder


@pytest.fixture(scope="session")
def photos_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `photos` copies, and nothing else uses."""
    return make_photos(tmp_path_factory.mktemp("drawn") / "photos")


@pytest.fixture
def photos(tmp_path: Path, photos_once: Path) -> Path:
    """A folder of 24 pictures: eight each in red/, green/ and blue/."""
    return shutil.copytree(photos_once, tmp_path / "photos")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, photos_once: Path) -> Path:
    """What `gallery` and `copied` copy."""
    from datasette_image_similarity.collection import EncoderOptions, ImageCollection

    folder = tmp_path_factory.mktemp("made")
    path = folder / "gallery.db"
    with pytest.MonkeyPatch.context() as patch, ImageCollection(path) as collection:
        patch.setattr("click.get_app_dir", lambda *_, **__: str(folder))
        photos = shutil.copytree(photos_once, folder / "photos")
        collection.embed(photos, encoder=EncoderOptions("hog"), label_from_folder=True)
    return path


@pytest.fixture
def gallery(tmp_path: Path, photos: Path, made_once: Path) -> Path:
    """A database with the pictures of `photos` embedded, and a label column.

    It is as if it had been made here: copies keep the time of each file.
    """
    from datasette_image_similarity import trust

    path = tmp_path / "gallery.db"
    path.write_bytes(made_once.read_bytes())
    with closing(sqlite3.connect(str(path))) as conn, conn:
        conn.execute("update _image_similarity_roots set path = ?", (str(photos),))
    trust.note_root(path, photos)
    return path


@pytest.fixture
def copied(tmp_path: Path, made_once: Path) -> Iterator[Path]:
    """As `gallery`, but quicker: its folder is shared, so change the database only."""
    from datasette_image_similarity import trust

    path = tmp_path / "gallery.db"
    path.write_bytes(made_once.read_bytes())
    photos = made_once.parent / "photos"
    trust.note_root(path, photos)
    yield path
    assert len([*photos.rglob("*.*")]) == 24, "this test needs a folder of its own: gallery"


@pytest.fixture
def moved(copied: Path, tmp_path: Path) -> Iterator[Path]:
    """As `copied`, with the vectors in a file of milvus-lite."""
    from stored import release

    from datasette_image_similarity import ImageCollection

    url = f"milvus-lite:{tmp_path}/vectors.db"
    with ImageCollection(copied) as collection:
        collection.move(url)
    yield copied
    release(url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for a module at a time: its loop would be in the way of asyncio tests."""
    from browsing import launched

    with launched() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny text–image model; skips where open_clip is not installed."""
    from wording import make_model

    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def worded_once(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """What `worded` copies."""
    from wording import embed_worded

    folder = tmp_path_factory.mktemp("worded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.get_app_dir", lambda *_, **__: str(folder))
        photos = make_photos(folder / "photos")
        return embed_worded(folder / "gallery.db", photos, tiny_model)


@pytest.fixture
def worded(tmp_path: Path, worded_once: Path, tiny_model: Path) -> Path:
    """A database that can be asked with words; its folder is shared."""
    from hashlib import sha256

    from datasette_image_similarity import trust

    path = tmp_path / "worded.db"
    path.write_bytes(worded_once.read_bytes())
    trust.note_root(path, worded_once.parent / "photos")
    weights = (tiny_model / "open_clip_model.safetensors").read_bytes()
    trust.note_weights(sha256(weights).hexdigest(), tiny_model)
    return path


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real Milvus server: an `engines.MilvusServer`."""
    from engines import milvus_server

    with milvus_server(tmp_path_factory.mktemp("milvus")) as server:
        yield server
