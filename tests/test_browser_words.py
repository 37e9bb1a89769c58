"""Words typed into the box, in a real browser: from embedded pictures to the results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from browsing import needs_chromium, serve, tab
from serving import PLUGIN
from wording import TEXT, ranked

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def server(
    worded_once: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A Datasette that may read the model because its configuration names it."""
    path = tmp_path_factory.mktemp("site") / "worded.db"
    path.write_bytes(worded_once.read_bytes())
    photos = worded_once.parent / "photos"
    plugin = {"weights": str(tiny_model), "roots": [str(photos)], "page_size": 6}
    with serve(path, {"plugins": {PLUGIN: plugin}}) as url:
        # The first one loads torch and the model, which may take longer than a page waits.
        for _ in range(3):
            with suppress(HTTPError):
                urlopen(f"{url}/worded/images/-/similar.json?_text=x", timeout=60).close()
        yield url


@pytest.fixture(params=[True, False], ids=["scripts", "no-scripts"])
def page(request: pytest.FixtureRequest, browser: Any, server: str) -> Iterator[Any]:
    yield from tab(browser, server, request.param)


@pytest.fixture
def scripted(browser: Any, server: str) -> Iterator[Any]:
    yield from tab(browser, server, True)


def shown(page: Any) -> list[str]:
    return [text.strip() for text in page.locator(".ims-caption a").all_inner_texts()]


def test_words_are_typed_and_answered_as_open_clip_would(
    page: Any, worded_once: Path, tiny_model: Path
) -> None:
    page.goto("/-/image-similarity")
    page.click("text=Search >> nth=0")
    page.wait_for_url("**/search-by-image")
    page.get_by_role("searchbox", name="In words").fill(TEXT)
    page.keyboard.press("Enter")
    page.wait_for_url("**/similar?_text=red+shoes+on+grass")
    wanted = ranked(tiny_model, worded_once.parent / "photos", TEXT)
    cosines = dict(wanted)

    def expect(first: int) -> None:
        """Nearly equal ones may have changed places: pictures are resized differently."""
        found = [cosines[name] for name in shown(page)]
        there = [cosine for _, cosine in wanted[first : first + 6]]
        assert found == pytest.approx(there, abs=6e-4)

    expect(0)
    score = page.locator(".ims-score").first.inner_text()
    assert float(score) == pytest.approx(wanted[0][1], abs=0.006)
    page.click("text=Next page")
    expect(6)
    assert page.get_by_role("searchbox").input_value() == TEXT


def test_pictures_are_added_weighed_and_dropped(page: Any) -> None:
    page.goto(f"/worded/images/-/similar?_text={TEXT}&_collection=default")
    words = shown(page)
    page.locator(".ims-tile").nth(5).hover()
    page.get_by_role("link", name="More like").nth(5).click()
    page.wait_for_url("**&_like=*")
    assert page.locator(".ims-query img").count() == 1
    assert page.inner_text(".ims-worded p") == f"“{TEXT}”"
    page.get_by_role("link", name="Let words count more").click()
    page.wait_for_url("**_text_weight=2*")
    assert "×2" in page.inner_text(".ims-worded .ims-weight")
    page.get_by_role("link", name=f"Search without the words {TEXT}").click()
    page.wait_for_function("() => !location.search.includes('_text=')")
    assert page.locator(".ims-worded").count() == 0
    assert "_collection=default" in page.url
    page.get_by_role("searchbox", name="And like the words").fill(TEXT)
    page.keyboard.press("Enter")
    page.wait_for_url("**_text=*")
    page.locator(".ims-query .ims-drop-query").last.click()
    page.wait_for_function("() => !location.search.includes('_like')")
    assert shown(page) == words


def test_the_card_at_home_takes_words(page: Any) -> None:
    page.goto("/-/image-similarity")
    page.get_by_role("searchbox", name="Search images with words").fill("a <b>cat</b>")
    page.keyboard.press("Enter")
    page.wait_for_url("**/similar?_text=*")
    assert page.inner_text(".ims-worded p") == "“a <b>cat</b>”"
    assert len(shown(page)) == 6


def test_words_and_a_picture_of_ones_own(scripted: Any, worded_once: Path) -> None:
    scripted.goto(f"/worded/images/-/similar?_text={TEXT}")
    scripted.click("text=search with a picture of your own as well")
    scripted.wait_for_url("**/search-by-image?_text=*")
    assert scripted.inner_text(".ims-worded p") == f"“{TEXT}”"
    file = worded_once.parent / "photos" / "red" / "red-3.png"
    scripted.set_input_files("#ims-file", str(file))
    scripted.wait_for_selector(".ims-tile")
    both = shown(scripted)
    box = scripted.get_by_role("searchbox", name="And like the words")
    box.fill("something else")
    box.press("Enter")
    scripted.wait_for_function(
        "() => document.querySelector('#image-similarity-results .ims-worded p')"
        "?.textContent == '“something else”'"
    )
    assert shown(scripted) != both
    assert scripted.locator(".ims-preview").is_visible()


def test_what_is_wrong_with_words_is_said(page: Any) -> None:
    page.goto(f"/worded/images/-/similar?_text={'a+cat+' * 12}")
    assert "reads 14 tokens" in page.inner_text("body")


@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_and_targets_are_large_enough(width: int, scripted: Any) -> None:
    scripted.set_viewport_size({"width": width, "height": 800})
    for path in (
        "/-/image-similarity",
        "/worded/images/-/search-by-image",
        f"/worded/images/-/similar?_text={TEXT}&_like=3&_unlike_text={'rain ' * 9}",
    ):
        scripted.goto(path)
        wide = scripted.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, path
        for box in scripted.locator(".ims-words-form input, .ims-words-form button").all():
            assert not box.is_visible() or box.bounding_box()["height"] >= 40, path
