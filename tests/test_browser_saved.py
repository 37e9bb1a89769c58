"""Saving a question, and telling which result was opened, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import needs_chromium, serve, tab
from core import sql

pytestmark = needs_chromium

SIMILAR = "/gallery/images/-/similar?_like=1"


@pytest.fixture
def server(copied: Path) -> Iterator[str]:
    settings = {"history": True, "curators": True}
    with serve(copied, {"plugins": {"datasette-image-similarity": settings}}) as url:
        yield url


@pytest.fixture(params=[True, False], ids=["scripts", "no-scripts"])
def page(request: pytest.FixtureRequest, browser: Any, server: str) -> Iterator[Any]:
    yield from tab(browser, server, request.param)


@pytest.fixture
def scripted(browser: Any, server: str) -> Iterator[Any]:
    yield from tab(browser, server, True)


def test_a_question_is_saved_renamed_and_deleted(page: Any) -> None:
    page.goto(f"{SIMILAR}&label=red")
    page.click("text=Save this question")
    page.fill(".ims-save input[name=name]", "Reds & <more>")
    page.click(".ims-save button")
    page.wait_for_url("**/questions")
    assert page.inner_text(".ims-saved h2") == "Reds & <more>"
    page.click(".ims-saved h2 a")
    page.wait_for_url("**/similar?*")
    assert page.inner_text(".ims-chip-text") == 'label = "red"'
    page.go_back()
    page.click(".ims-saved-tools summary:has-text('Rename')")
    page.fill(".ims-saved-tools input[name=name]", "Other")
    page.click(".ims-saved-tools button:has-text('Rename')")
    page.wait_for_selector("h2:has-text('Other')")
    page.click(".ims-saved-tools summary:has-text('Delete')")
    page.click("text=Delete it for good")
    page.wait_for_selector("text=None yet")


def test_what_is_opened_is_told(scripted: Any, copied: Path) -> None:
    scripted.goto(f"{SIMILAR}&_next=3")
    link = scripted.locator(".ims-grid li:nth-child(2) .ims-picture")
    pk = link.get_attribute("href").rpartition("/")[2]
    with scripted.expect_request("**/searches/click"):
        link.click()
    for _ in range(20):  # written once a second
        scripted.goto("/gallery/images/-/searches")
        if scripted.locator(".ims-clicked img").count():
            break
        scripted.wait_for_timeout(250)
    clicks = sql(copied, "select pk, rank from _image_similarity_clicks")
    assert clicks == [(int(pk), 5)]


@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit(width: int, scripted: Any) -> None:
    scripted.set_viewport_size({"width": width, "height": 800})
    for path in (f"{SIMILAR}&_size=9", "/gallery/images/-/searches"):
        scripted.goto(path)
        wide = scripted.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, path
