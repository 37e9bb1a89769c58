"""A real browser and a real server: what the tests of pages share.

A test module of these begins with

    from browsing import needs_chromium, serve, tab

    pytestmark = needs_chromium

and uses the fixture `browser` of conftest.py.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from serving import IS_ONE, PLUGIN

from datasette_image_similarity.collection import EncoderOptions, ImageCollection

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
# WebGL by SwiftShader, on a machine without a graphics card.
DRAWING = [
    *(flag for flag in FLAGS if flag != "--disable-gpu"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
]


def embedded(photos: Path, *then: Callable[[ImageCollection], object]) -> Path:
    """A database beside a folder of pictures, with these embedded by hog, and whatever
    else is to be done with the collection."""
    path = photos.parent / "gallery.db"
    with pytest.MonkeyPatch.context() as patch, ImageCollection(path) as collection:
        patch.setattr("datasette_image_similarity.trust._write", lambda _: None)
        collection.embed(photos, encoder=EncoderOptions("hog"), label_from_folder=True)
        for step in then:
            step(collection)
    return path


def shown_from(photos: Path) -> dict[str, Any]:
    """A configuration: these files may be shown, six pictures a page."""
    return {"plugins": {PLUGIN: {"page_size": 6, "roots": [str(photos)]}}}


@contextmanager
def serve(database: Path, config: dict[str, Any], *options: str) -> Iterator[str]:
    """The address of a Datasette over a database, in a process of its own.

    `config` is configuration (on 0.65: metadata).
    """
    file = database.parent / "config.json"
    file.write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ("--port", port, "--host", "127.0.0.1", *options)
    options += ("-c" if IS_ONE else "-m", str(file))
    process = subprocess.Popen(
        [sys.executable, "-m", "datasette", str(database), *options],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/-/versions.json", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None, "Datasette has ended"
            assert time.monotonic() < deadline, "Datasette does not answer"
            time.sleep(0.2)


@contextmanager
def launched(flags: Sequence[str] = FLAGS) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


def tab(browser: Any, server: str, scripts: bool) -> Iterator[Any]:
    context = browser.new_context(
        base_url=server,
        java_script_enabled=scripts,
        viewport={"width": 1280, "height": 900},
    )
    context.set_default_timeout(60_000)  # for a busy machine
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if said.type == "error" else None,
    )
    yield page
    context.close()
    # A refused upload is an answer of 400, which the browser notes by itself.
    assert [text for text in complaints if "the server responded" not in text] == []
