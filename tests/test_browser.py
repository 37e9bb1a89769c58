"""The pages in a real browser: Chromium, with a mouse, a keyboard, and without scripts."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import pytest
from browsing import embedded, needs_chromium, serve, shown_from, sync_api, tab
from conftest import make_photos, picture

pytestmark = needs_chromium
TILES = ".ims-tile .ims-picture img"
RED = picture("red", 3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Datasette with the gallery, six pictures a page."""
    folder = tmp_path_factory.mktemp("browser")
    photos = make_photos(folder / "photos")
    path = embedded(photos)
    with serve(path, shown_from(photos)) as address:
        yield address


@pytest.fixture(params=[True, False], ids=["scripts", "no-scripts"])
def scripts(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    """A tab with scripts that fails the test for any complaint in its console."""
    yield from tab(browser, server, True)


@pytest.fixture
def either(browser: Any, server: str, scripts: bool) -> Iterator[Any]:
    """A tab with and one without scripts."""
    yield from tab(browser, server, scripts)


def captions(page: Any) -> list[str]:
    return page.locator(TILES).evaluate_all("all => all.map(img => img.alt)")


def colours(page: Any) -> list[str]:
    return [caption.partition("-")[0] for caption in captions(page)]


def shown(page: Any, selector: str = TILES) -> None:
    """Every picture has been loaded. Scripts of the page itself may be switched off."""
    page.locator(selector).first.wait_for()
    # As scrolling through them would, which takes long: some wait until they are seen.
    page.locator(selector).evaluate_all("all => all.map(img => { img.loading = 'eager' })")
    deadline = time.monotonic() + 20
    widths = "all => all.map(img => img.naturalWidth)"
    while not all(page.locator(selector).evaluate_all(widths)):
        assert time.monotonic() < deadline, "a picture does not appear"
        time.sleep(0.1)


def file(data: bytes = RED, name: str = "mine.png", kind: str = "image/png") -> dict:
    return {"name": name, "mimeType": kind, "buffer": data}


TRANSFER = """([data, name, kind]) => {
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: kind }));
  return transfer;
}"""


def transfer(page: Any, data: bytes, name: str, kind: str) -> Any:
    """What the clipboard or a drag holds: one file."""
    arguments = [base64.b64encode(data).decode(), name, kind]
    return page.evaluate_handle(TRANSFER, arguments)


def drop(page: Any, data: bytes, name: str = "mine.png", kind: str = "image/png") -> None:
    held = transfer(page, data, name, kind)
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("#ims-drop", event, {"dataTransfer": held})


def paste(page: Any, data: bytes) -> None:
    held = transfer(page, data, "pasted.png", "image/png")
    page.evaluate(
        "held => document.body.dispatchEvent("
        "new ClipboardEvent('paste', { clipboardData: held, bubbles: true }))",
        held,
    )


def test_find_similar_filter_and_page_on(either: Any) -> None:
    page = either
    page.goto("/gallery/images?_sort=id")
    shown(page, ".ims-cell-picture img")
    assert page.locator(".ims-cell-picture img").count() == 24
    page.locator("tr", has_text="red-3.png").locator("a.ims-cell-similar").click()
    shown(page)
    shown(page, ".ims-query img")
    assert colours(page) == ["red"] * 6
    assert "red-3.png" not in captions(page)
    first = captions(page)
    # On to the next page: other pictures, and none is missing in between.
    page.get_by_role("link", name="Next page").click()
    page.wait_for_url("**_next=6*")
    shown(page)
    assert not set(first) & set(captions(page))
    page.go_back()
    # A filter by the form, and off again by its chip.
    page.locator(".ims-add-filter summary").click()
    page.locator("select[name=_filter_column]").select_option("label")
    page.locator("select[name=_filter_op]").select_option("exact")
    page.locator("input[name=_filter_value]").fill("blue")
    page.get_by_role("button", name="Apply").click()
    page.wait_for_url("**label__exact=blue*")
    shown(page)
    assert colours(page) == ["blue"] * 6
    assert page.locator(".ims-chip").count() == 1
    page.locator(".ims-chip").click()
    page.wait_for_url(lambda url: "label__exact" not in url)
    assert captions(page) == first


def test_pictures_to_search_with_are_added_and_dropped(either: Any) -> None:
    page = either
    page.goto("/gallery/images/-/similar?_like=24")
    tile = page.locator(".ims-tile", has=page.locator("a[href='/gallery/images/20']"))
    tile.hover()
    tile.get_by_role("link", name="add").click()
    page.wait_for_url("**_like=20*")
    shown(page, ".ims-query img")
    assert page.locator(".ims-query img").count() == 2
    assert page.locator(".ims-tile a[href='/gallery/images/20']").count() == 0
    page.locator(".ims-drop-query").first.click()
    page.wait_for_url(lambda url: url.endswith("_like=20"))
    assert page.locator(".ims-query img").count() == 1


def test_row_page_and_home(either: Any) -> None:
    page = either
    page.goto("/gallery/images/20")
    shown(page, ".ims-row-picture img")
    shown(page, ".ims-strip img")
    page.locator(".ims-strip a").first.click()
    page.wait_for_url(lambda url: not url.endswith("/20"))
    shown(page, ".ims-row-picture img")
    page.goto("/-/image-similarity")
    shown(page, ".ims-mosaic img")
    page.locator(".ims-mosaic a").first.click()
    shown(page)


def test_view_as_sql(either: Any) -> None:
    page = either
    page.goto("/gallery/images/-/similar?_like=20&label=red")
    page.get_by_role("link", name="View as SQL").click()
    page.locator("table.rows-and-columns tbody tr").first.wait_for()
    assert page.locator("table.rows-and-columns tbody tr").count() >= 6


def test_cut_off(page: Any) -> None:
    page.goto("/gallery/images/-/similar?_like=24")
    before = page.locator(".ims-count").inner_text()
    slider = page.locator("#ims-max-distance")
    slider.focus()
    with page.expect_navigation():
        slider.evaluate(
            "one => { one.value = 0.05; one.dispatchEvent(new Event('input', "
            "{bubbles: true})); one.dispatchEvent(new Event('change', {bubbles: true})); }"
        )
    assert "_max_distance=0.05" in page.url
    assert page.locator(".ims-count").inner_text() != before
    with page.expect_navigation():  # all the way up: no cut-off any more
        slider = page.locator("#ims-max-distance")
        slider.focus()
        slider.press("End")
    assert "_max_distance" not in page.url


def test_a_picture_of_ones_own(either: Any, scripts: bool) -> None:
    page = either
    page.goto("/gallery/images")
    if scripts and page.locator("details.actions-menu-links summary").count():
        page.locator("details.actions-menu-links summary").click()
        page.locator("a[href$='/-/search-by-image']").first.click()
    else:
        page.goto("/gallery/images/-/search-by-image")
    page.locator("#ims-file").set_input_files(file())
    if not scripts:
        page.get_by_role("button", name="Search", exact=True).click()
    shown(page)
    shown(page, "#ims-preview")
    assert captions(page)[0] == "red-3.png"
    assert colours(page) == ["red"] * 6
    first = captions(page)
    page.get_by_role("button", name="Next page").click()
    page.wait_for_url("**_next=6*")
    shown(page)
    shown(page, "#ims-preview")
    assert not set(first) & set(captions(page))


def test_a_file_chosen_before_the_script_has_come(page: Any) -> None:
    held: list[Any] = []
    page.route("**/image_similarity.js*", lambda route: held.append(route))
    page.goto("/gallery/images/-/search-by-image", wait_until="commit")
    page.locator("#ims-file").set_input_files(file())
    assert page.locator(TILES).count() == 0
    held.pop().continue_()
    shown(page)
    assert captions(page)[0] == "red-3.png"


def test_a_wrong_file_is_told_and_shows_nothing(either: Any, scripts: bool) -> None:
    page = either
    page.goto("/gallery/images/-/search-by-image")
    page.locator("#ims-file").set_input_files(file(b"<svg/>", "drawing.svg", "image/svg"))
    if not scripts:
        page.get_by_role("button", name="Search", exact=True).click()
    message = page.locator("#ims-message")
    sync_api.expect(message).not_to_be_empty()
    assert not page.locator("#ims-preview").is_visible()
    assert page.locator(TILES).count() == 0
    # And then the right one.
    page.locator("#ims-file").set_input_files(file())
    if not scripts:
        page.get_by_role("button", name="Search", exact=True).click()
    shown(page)
    sync_api.expect(message).to_be_empty()


def test_drop_paste_filter_and_wrong_file(page: Any) -> None:
    page.goto("/gallery/images/-/search-by-image")
    drop(page, RED)
    shown(page)
    assert captions(page)[0] == "red-3.png"
    assert page.locator("#ims-preview").evaluate("one => one.naturalWidth") > 0
    paste(page, picture("blue", 5))
    page.locator(".ims-tile a[title='blue-5.png']").first.wait_for()
    sync_api.expect(page.locator(TILES).first).to_have_attribute("alt", "blue-5.png")
    # A filter keeps the picture.
    page.locator(".ims-add-filter summary").click()
    page.locator("select[name=_filter_column]").select_option("label")
    page.locator("input[name=_filter_value]").fill("green")
    page.get_by_role("button", name="Apply").click()
    page.locator(".ims-chip").wait_for()
    shown(page)
    assert colours(page) == ["green"] * 6
    page.locator(".ims-chip").click()
    page.locator(".ims-chip").wait_for(state="detached")
    assert captions(page)[0] == "blue-5.png"
    drop(page, b"no picture", "notes.txt", "text/plain")
    sync_api.expect(page.locator("#ims-message")).to_contain_text("notes.txt")
    assert not page.locator("#ims-preview").is_visible()
    assert page.locator(TILES).count() == 0


def test_keyboard_only(page: Any) -> None:
    page.goto("/gallery/images/-/similar?_like=24")

    def tab_to(selector: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("which => document.activeElement.matches(which)", selector):
                return
        raise AssertionError(f"the keyboard does not reach {selector}")

    tab_to(".ims-add-filter summary")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.keyboard.press("Enter")
    tab_to("select[name=_filter_column]")
    page.keyboard.type("label")
    tab_to("input[name=_filter_value]")
    page.keyboard.type("blue")
    page.keyboard.press("Enter")
    page.wait_for_url("**label__exact=blue*")
    tab_to(".ims-chip")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "label__exact" not in url)
    tab_to(".ims-tools a")
    visible = "getComputedStyle(document.activeElement.closest('.ims-tools')).opacity"
    page.wait_for_function(f"() => {visible} === '1'")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "_like=24" not in url)
    page.goto("/gallery/images/-/search-by-image")
    tab_to("#ims-file")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    for path in (
        "/-/image-similarity",
        "/gallery/images/-/similar?_like=24&_like=1&_like=9&label__in=red,blue&id__gt=1",
        "/gallery/images/-/similar?_like=24&name__contains=" + "x" * 120,
        "/gallery/images/-/search-by-image?label=red",
    ):
        page.goto(path)
        assert page.evaluate(overflow) <= 0, path
        if page.locator(".ims-add-filter summary").count():
            page.locator(".ims-add-filter summary").click()
            assert page.evaluate(overflow) <= 0, path
    page.goto("/gallery/images/-/search-by-image")
    page.locator("#ims-file").set_input_files(file())
    shown(page)
    assert page.evaluate(overflow) <= 0


def test_nothing_is_loaded_from_elsewhere(page: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for path in ("/gallery/images", "/gallery/images/-/similar?_like=1"):
        page.goto(path)
    hosts = {url.split("/")[2].partition(":")[0] for url in asked if "://" in url}
    assert hosts == {"127.0.0.1"}
