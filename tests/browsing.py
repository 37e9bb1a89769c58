"""A real browser and a real server: what the tests of pages share.

A test module of these begins with

    from browsing import needs_chromium, serve, tab

    pytestmark = needs_chromium

and uses the fixture `browser` of conftest.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from serving import PLUGIN
from stress.served import Served

from datasette_image_similarity.collection import EncoderOptions, ImageCollection

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
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
    """The address of a Datasette over a database, in a process of its own."""
    with Served(database, config, *options) as served:
        yield served.url


class Browser:
    """Chromium, with a window for each server, with and without scripts: what a window has
    once loaded it need not load for the next test. Our pages keep nothing in them."""

    def __init__(self, chromium: Any) -> None:
        self.chromium = chromium
        self._windows: dict[tuple[str, bool], Any] = {}

    def window(self, server: str, scripts: bool) -> Any:
        """Without cookies, and without tabs."""
        key = server, scripts
        if key not in self._windows:
            self._windows[key] = self.chromium.new_context(
                base_url=server,
                java_script_enabled=scripts,
                viewport={"width": 1280, "height": 900},
            )
            self._windows[key].set_default_timeout(60_000)  # for a busy machine
        window = self._windows[key]
        window.clear_cookies()
        for page in window.pages:
            page.close()
        return window


@contextmanager
def launched(flags: Sequence[str] = FLAGS) -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield Browser(chromium)
        chromium.close()


def tab(browser: Browser, server: str, scripts: bool) -> Iterator[Any]:
    """A tab that fails the test for any complaint in its console."""
    page = browser.window(server, scripts).new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if said.type == "error" else None,
    )
    yield page
    page.close()
    # A refused upload is an answer of 400, which the browser notes by itself.
    assert [text for text in complaints if "the server responded" not in text] == []
