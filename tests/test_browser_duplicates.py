"""The review of duplicates in a real browser: keys, zoom, undo, and without scripts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import needs_chromium, serve, sync_api, tab
from core import sql
from dupes import put_groups

pytestmark = needs_chromium
PAGE = "/gallery/images/-/duplicates"
VIEWS = ".imd-view"


@pytest.fixture(scope="module")
def server(
    made_once: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The address of a Datasette where everybody may decide, and its database."""
    path = tmp_path_factory.mktemp("duplicates") / "gallery.db"
    shutil.copy(made_once, path)
    put_groups(path)
    plugin = {"curators": True, "roots": [str(made_once.parent / "photos")]}
    config = {"plugins": {"datasette-image-similarity": plugin}}
    with serve(path, config) as address:
        yield address, path


@pytest.fixture
def path(server: tuple[str, Path]) -> Path:
    """The database, without decisions."""
    put_groups(server[1])
    sql(server[1], "delete from _image_similarity_decisions")
    return server[1]


@pytest.fixture
def page(browser: Any, server: tuple[str, Path], path: Path) -> Iterator[Any]:
    yield from tab(browser, server[0], True)


@pytest.fixture(params=[True, False], ids=["scripts", "no-scripts"])
def either(
    request: pytest.FixtureRequest, browser: Any, server: tuple[str, Path], path: Path
) -> Iterator[Any]:
    yield from tab(browser, server[0], request.param)


def current(path: Path) -> dict[int, str]:
    """The newest decision by key."""
    rows = "select pk, decision from _image_similarity_decisions order by id"
    return dict(sql(path, rows))


def heading(page: Any, text: str) -> None:
    sync_api.expect(page.locator("#imd-group")).to_have_text(text)


def said(page: Any, text: str) -> None:
    sync_api.expect(page.locator("#imd-status")).to_contain_text(text)


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def test_deciding_by_key_goes_from_group_to_group(page: Any, path: Path) -> None:
    loads: list[str] = []
    page.on("load", lambda: loads.append(page.url))
    page.goto(f"{PAGE}?_tier=same")
    heading(page, "Group 1 of 3")
    press(page, "k")
    heading(page, "Group 2 of 3")
    said(page, "Kept picture 1, marked 2 others.")
    assert "_group=3" in page.url
    press(page, "2")
    heading(page, "Group 3 of 3")
    press(page, "s")
    heading(page, "All decided")
    assert current(path) == {
        3: "keep",
        4: "mark",
        5: "mark",
        6: "mark",
        7: "keep",
        **dict.fromkeys((9, 10, 11, 12, 13), "skip"),
    }
    assert len(loads) == 1
    page.go_back()
    heading(page, "Group 3 of 3")
    press(page, "p")
    heading(page, "Group 2 of 3")
    press(page, "j")
    heading(page, "Group 3 of 3")


def test_undo_returns_to_the_group(page: Any, path: Path) -> None:
    page.goto(f"{PAGE}?_tier=same")
    press(page, "Enter")
    heading(page, "Group 2 of 3")
    press(page, "u")
    heading(page, "Group 1 of 3")
    said(page, "Took back what was decided of 3 pictures.")
    assert current(path) == {}


def test_marking_and_splitting_is_for_the_chosen_picture(page: Any, path: Path) -> None:
    page.goto(f"{PAGE}?_tier=same")
    press(page, "m")
    said(page, "Choose a picture first")
    press(page, "ArrowRight", "ArrowRight", "m")
    said(page, "Marked picture 2.")
    assert current(path) == {3: "keep", 4: "mark", 5: "keep"}
    focused = page.locator(f"{VIEWS}:focus")
    sync_api.expect(focused).to_have_attribute("aria-label", "Picture 2")
    press(page, "m")
    said(page, "Kept picture 2.")
    assert current(path)[4] == "keep"
    press(page, "x")
    said(page, "Split picture 2 off")
    sync_api.expect(page.locator(VIEWS)).to_have_count(2)
    put_groups(path)  # the finder has run again
    page.reload()
    sync_api.expect(page.locator(VIEWS)).to_have_count(2)


def test_decisions_are_there_after_a_rerun(page: Any, path: Path) -> None:
    page.goto(f"{PAGE}?_tier=same")
    press(page, "k")
    heading(page, "Group 2 of 3")
    put_groups(path, [("same", (20, 21)), ("same", (3, 4, 5))], first=40)
    press(page, "k")  # at a group that is gone by now
    sync_api.expect(page.locator("#imd-alert")).to_contain_text("There is no group 3")
    heading(page, "Group 1 of 2")
    press(page, "n")
    heading(page, "Group 2 of 2")
    sync_api.expect(page.locator(".imd-state")).to_contain_text("1 kept, 2 marked")


def test_all_pictures_zoom_together(page: Any) -> None:
    page.goto(f"{PAGE}?_tier=same")
    widths = "all => all.map(img => Math.round(img.getBoundingClientRect().width))"
    images = page.locator(f"{VIEWS} img")
    fitted = images.evaluate_all(widths)
    page.locator(VIEWS).nth(1).hover()
    page.mouse.wheel(0, -400)
    zoomed = images.evaluate_all(widths)
    assert len(set(zoomed)) == 1
    assert zoomed[0] > fitted[0] * 2
    lefts = "all => all.map(img => img.getBoundingClientRect().left)"
    before = images.evaluate_all(lefts)
    page.mouse.down()
    page.mouse.move(
        *(lambda box: (box["x"] + 40, box["y"] + 40))(
            page.locator(VIEWS).nth(1).bounding_box()
        )
    )
    page.mouse.up()
    moved = [b - a for a, b in zip(before, images.evaluate_all(lefts), strict=True)]
    assert moved[0] < -20
    assert max(moved) - min(moved) < 1
    press(page, "0")
    assert images.evaluate_all(widths) == fitted
    page.get_by_role("button", name="Zoom in").click()
    assert images.evaluate_all(widths)[0] > fitted[0]


def test_review_by_mouse_with_and_without_scripts(either: Any, path: Path) -> None:
    page = either
    page.goto(PAGE)
    heading(page, "Group 1 of 1")
    page.get_by_role("link", name="Same picture").click()
    heading(page, "Group 1 of 3")
    page.get_by_role("button", name="Keep only picture 3").click()
    heading(page, "Group 2 of 3")
    said(page, "Kept picture 3, marked 2 others.")
    page.get_by_role("button", name="Split picture 2").click()
    heading(page, "Group 2 of 2")
    page.get_by_role("button", name="Undo").click()
    heading(page, "Group 2 of 3")
    page.get_by_role("button", name="Undo").click()
    heading(page, "Group 1 of 3")
    assert current(path) == {}


def test_a_tier_is_accepted_after_a_confirmation(either: Any, path: Path) -> None:
    page = either
    page.goto(f"{PAGE}?_tier=same&_view=all")
    page.locator("#group-3").get_by_role("button", name="Skip").click()
    sync_api.expect(page.locator("#group-3")).to_contain_text("nothing marked")
    page.get_by_text("Accept all").click()
    panel = page.locator(".imd-panel")
    sync_api.expect(panel).to_contain_text("2 open groups and marks the others: 6 pictures")
    panel.get_by_role("button").click()
    said(page, "Accepted 2 suggestions: 6 pictures marked.")
    assert list(current(path).values()).count("mark") == 6
    sync_api.expect(page.locator(".imd-after")).to_contain_text("Nothing has been deleted")
    page.get_by_role("button", name="Undo").click()
    said(page, "Took back")
    assert current(path) == {6: "skip", 7: "skip"}


def test_the_keyboard_stays_where_it_was_in_the_list(page: Any, path: Path) -> None:
    page.goto(f"{PAGE}?_tier=same&_view=all")
    page.locator("#group-3").get_by_role("button", name="Keep 1").focus()
    press(page, "Enter")
    said(page, "Kept picture 1")
    sync_api.expect(page.locator("#group-3 h2 a")).to_be_focused()
    assert current(path) == {6: "keep", 7: "mark"}


def test_keys_are_shown_and_typing_elsewhere_decides_nothing(page: Any, path: Path) -> None:
    page.goto(f"{PAGE}?_tier=same")
    press(page, "?")
    sync_api.expect(page.locator(".imd-keys dl")).to_be_visible()
    press(page, "Control+k")
    page.get_by_text("Accept all").focus()
    press(page, "Enter")
    sync_api.expect(page.locator(".imd-panel")).to_be_visible()
    press(page, "Escape")
    press(page, "Escape")
    sync_api.expect(page.locator("details[open]")).to_have_count(0)
    assert current(path) == {}


def test_it_fits_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for query in ("?_group=2", "?_group=4", "?_tier=same&_view=all"):
        page.goto(PAGE + query)
        page.locator("img").first.wait_for()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, query
    page.goto(f"{PAGE}?_group=3")
    tops = page.locator(VIEWS).evaluate_all(
        "all => all.map(one => one.getBoundingClientRect())"
    )
    assert tops[0]["top"] == tops[1]["top"]
    assert tops[1]["right"] <= 390
    buttons = "[...document.querySelectorAll('#imd-review button')]"
    heights = page.evaluate(f"{buttons}.map(one => one.offsetHeight).filter(Boolean)")
    assert heights
    assert min(heights) >= 40


@pytest.mark.parametrize("width", [390, 1280])
def test_without_a_suggestion_there_is_nothing_to_accept(
    page: Any, path: Path, width: int
) -> None:
    sql(
        path,
        "update _image_similarity_groups set keeper_id = 0, "
        "reason = 'nothing tells which one is the original' where id = 2",
    )
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{PAGE}?_group=2")
    assert "No suggestion: nothing tells" in page.inner_text(".imd-reason")
    assert page.query_selector("button[value=accept]") is None
    assert "suggested" not in page.inner_text(".imd-table")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.goto(f"{PAGE}?_tier=same&_view=all")
    assert "No suggestion: nothing tells" in page.inner_text("#group-2")
    assert page.query_selector("#group-2 button[value=accept]") is None
