"""The map in a real browser: drawn, moved, coloured, selected from, or none of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from browsing import (
    DRAWING,
    embedded,
    launched,
    needs_chromium,
    serve,
    shown_from,
    sync_api,
    tab,
)
from conftest import make_photos

pytestmark = needs_chromium
pytest.importorskip("scipy", reason="the grid needs scipy")
expect = sync_api.expect
MAP = "/gallery/images/-/map"
LISTED = "#ims-map-list .ims-picture img"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Datasette with the gallery, laid out; six pictures a page."""
    folder = tmp_path_factory.mktemp("browser")
    photos = make_photos(folder / "photos")
    path = embedded(photos, lambda collection: collection.map(method="pca"))
    with serve(path, shown_from(photos)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """As conftest's, with WebGL."""
    with launched(DRAWING) as chromium:
        yield chromium


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    yield from tab(browser, server, True)


@pytest.fixture
def still(browser: Any, server: str) -> Iterator[Any]:
    """A page for somebody who does not want motion: everything moves at once."""
    for page in tab(browser, server, True):
        page.emulate_media(reduced_motion="reduce")
        yield page


def opened(page: Any, address: str = MAP) -> Any:
    """The map, when it has been drawn."""
    page.goto(address)
    found = page.locator("#ims-map[data-state=ready][data-zoom][data-shown]")
    found.wait_for()
    return found


def view(page: Any) -> tuple[float, float, float]:
    """Where the window's middle is on the map, and pixels to one unit."""
    x, y, scale = page.locator("#ims-map").get_attribute("data-view").split()
    return float(x), float(y), float(scale)


def place(page: Any, x: float, y: float) -> tuple[float, float]:
    """Where a place of the map is in the browser's window."""
    box = page.locator("#ims-map canvas").bounding_box()
    middle_x, middle_y, scale = view(page)
    return (
        box["x"] + box["width"] / 2 + (x - middle_x) * scale,
        box["y"] + box["height"] / 2 - (y - middle_y) * scale,
    )


def points(page: Any) -> list[dict[str, Any]]:
    """What the server says of the pictures, with their places, read apart from the page."""
    return page.evaluate(
        """async (map) => {
          const data = await (await fetch(`${map}/points.bin`)).arrayBuffer();
          const n = new Uint32Array(data, 8, 1)[0];
          const x = new Float32Array(data, 32, n);
          const y = new Float32Array(data, 32 + 4 * n, n);
          const ids = new Uint32Array(data, 32 + 20 * n, n);
          const asked = await fetch(`${map}/pictures.json?_item=${[...ids].join()}`);
          const { pictures } = await asked.json();
          return pictures.map((one, i) => ({ ...one, x: x[i], y: y[i] }));
        }""",
        MAP,
    )


def drag(page: Any, corners: list[tuple[float, float]]) -> None:
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=6)
    page.mouse.up()


def selected(page: Any) -> int:
    """How many are selected, once the tray says the same as the map."""
    expect(page.locator("#ims-map-list.ims-tray:not([aria-busy])")).to_be_visible()
    found = page.locator('#ims-map[data-selected]:not([data-selected=""])')
    count = found.get_attribute("data-selected")
    expect(page.locator("#ims-map-list h2")).to_have_text(f"{count} selected")
    return int(count)


def test_zoom_and_move_change_what_is_seen(page: Any) -> None:
    found = opened(page)
    expect(found).to_have_attribute("data-zoom", "1.000")
    page.get_by_role("button", name="Zoom in").click()
    expect(found).to_have_attribute("data-zoom", "2.000")
    # The wheel keeps what is below the mouse where it is.
    x, y = place(page, 0.3, 0.1)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -240)
    expect(found).not_to_have_attribute("data-zoom", "2.000")
    assert place(page, 0.3, 0.1) == pytest.approx((x, y), abs=0.5)
    before = view(page)
    drag(page, [(600, 400), (560, 430)])
    page.wait_for_function(
        "was => document.getElementById('ims-map').dataset.view !== was",
        arg=" ".join(f"{one:.6f}" for one in before),
    )
    x, y, scale = view(page)
    assert (x, y) == pytest.approx(
        (before[0] + 40 / scale, before[1] + 30 / scale), abs=1e-3
    )
    # The address can be kept, and sent to somebody.
    page.wait_for_url(f"**#view={x:.5f}*")
    address = page.url
    page.goto("about:blank")
    opened(page, address)
    assert view(page)[:2] == pytest.approx((x, y), abs=1e-4)


def test_pictures_are_drawn(page: Any) -> None:
    found = opened(page)
    page.wait_for_function("() => document.getElementById('ims-map').dataset.drawn > 0")
    page.get_by_role("button", name="Grid", exact=True).click()
    expect(found).to_have_attribute("data-layout", "grid")
    page.wait_for_function("() => document.getElementById('ims-map').dataset.drawn == 24")


def test_rectangle_selects_and_the_table_shows_the_same(still: Any) -> None:
    page = still
    opened(page)
    everything = points(page)
    left = sorted(everything, key=lambda one: one["x"])[:9]
    edge = (left[-1]["x"] + sorted(one["x"] for one in everything)[9]) / 2
    page.get_by_role("button", name="Select by rectangle").click()
    box = page.locator("#ims-map canvas").bounding_box()
    bottom = (box["x"] + 3, box["y"] + box["height"] - 3)
    drag(page, [bottom, (place(page, edge, 0)[0], box["y"] + 3)])
    assert selected(page) == 9
    assert "_image_region=" in page.url
    # The tray is the server's list, page by page.
    shown = page.locator(LISTED).evaluate_all("all => all.map(one => one.alt)")
    page.get_by_role("link", name="Next page").click()
    page.wait_for_url("**_next=6*")
    expect(page.locator(LISTED)).to_have_count(3)
    shown += page.locator(LISTED).evaluate_all("all => all.map(one => one.alt)")
    assert sorted(shown) == sorted(one["caption"] for one in left)
    # Reloaded, or sent to somebody, it is the same.
    page.reload()
    assert selected(page) == 9
    likes = page.get_by_role("link", name="Find similar to these").get_attribute("href")
    wanted = sorted(one["pk"] for one in left)
    assert sorted(parse_qs(urlsplit(likes).query)["_like"]) == wanted
    page.get_by_role("link", name="Open as table").click()
    page.locator("table.rows-and-columns").wait_for()
    rows = page.locator("td.type-pk, td.col-id").all_inner_texts()
    assert sorted({row.strip() for row in rows}) == wanted


def test_lasso_and_clear(still: Any) -> None:
    page = still
    opened(page)
    everything = points(page)
    one = everything[5]
    near = min(
        abs(one["x"] - other["x"]) + abs(one["y"] - other["y"])
        for other in everything
        if other is not one
    )
    # Close enough to draw around one.
    page.mouse.move(*place(page, one["x"], one["y"]))
    while view(page)[2] * near < 60:
        was = page.locator("#ims-map").get_attribute("data-zoom")
        page.mouse.wheel(0, -300)
        expect(page.locator("#ims-map")).not_to_have_attribute("data-zoom", was)
    around = [
        place(page, one["x"] + dx * near / 3, one["y"] + dy * near / 3)
        for dx, dy in ((-1, -1), (1, -1), (1.3, 0), (1, 1), (-1, 1), (-1.3, 0))
    ]
    page.get_by_role("button", name="Select by lasso").click()
    drag(page, around)
    assert selected(page) == 1
    expect(page.locator("#ims-map-status")).to_have_text("1 selected")
    assert page.locator(LISTED).get_attribute("alt") == one["caption"]
    region = parse_qs(urlsplit(page.url).query)["_image_region"][0]
    assert 3 <= len(region.split(",")) / 2 <= 60
    page.locator("#ims-map-list").get_by_role("link", name="Clear").click()
    expect(page.locator("#ims-map-list h2")).to_have_text("All 24 pictures")
    assert "_image_region" not in page.url
    page.go_back()
    assert selected(page) == 1


def test_the_grid_and_a_region_of_it(page: Any) -> None:
    found = opened(page)
    page.get_by_role("button", name="Grid", exact=True).click()
    expect(found).to_have_attribute("data-layout", "grid")
    page.wait_for_function("() => document.getElementById('ims-map').dataset.drawn == 24")
    page.wait_for_timeout(1000)  # until it rests
    # 24 pictures in 5 columns and rows: the first row of the grid.
    drag_with_shift(page, [place(page, -1.02, 1.02), place(page, 1.02, 0.61)])
    assert selected(page) == 5
    assert parse_qs(urlsplit(page.url).query)["_image_region"][0].startswith("grid:")
    assert "layout=grid" in page.url
    page.keyboard.press("g")
    page.reload()
    assert selected(page) == 5


def drag_with_shift(page: Any, corners: list[tuple[float, float]]) -> None:
    page.keyboard.down("Shift")
    drag(page, corners)
    page.keyboard.up("Shift")


def test_the_legend_isolates_and_hides(page: Any) -> None:
    found = opened(page)
    page.locator("[data-part=color]").select_option("label")
    red = page.get_by_role("button", name="Only red, 8 pictures")
    red.click()
    expect(found).to_have_attribute("data-shown", "8")
    expect(red).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Only blue, 8 pictures").click()
    expect(found).to_have_attribute("data-shown", "16")
    page.wait_for_url("**#color=label&only=red&only=blue*")
    page.reload()
    expect(page.locator("#ims-map")).to_have_attribute("data-shown", "16")
    page.get_by_role("button", name="Show everything").click()
    expect(page.locator("#ims-map")).to_have_attribute("data-shown", "24")
    page.get_by_role("button", name="Hide green").click()
    expect(page.locator("#ims-map")).to_have_attribute("data-shown", "16")


def test_hover_shows_and_click_opens_the_row(page: Any) -> None:
    opened(page)
    one = min(points(page), key=lambda one: one["x"])
    page.mouse.move(*place(page, one["x"], one["y"]))
    card = page.locator("[data-part=card]")
    expect(card).to_contain_text(one["caption"])
    expect(card.locator("img")).to_have_js_property("complete", True)
    page.mouse.click(*place(page, one["x"], one["y"]))
    page.wait_for_url(f"**{one['url']}")


def test_a_tap_shows_the_card_with_links(browser: Any, server: str) -> None:
    context = browser.chromium.new_context(
        base_url=server, has_touch=True, viewport={"width": 390, "height": 800}
    )
    page = context.new_page()
    opened(page)
    one = max(points(page), key=lambda one: one["x"])
    page.touchscreen.tap(*place(page, one["x"], one["y"]))
    card = page.locator("[data-part=card]")
    expect(card).to_contain_text(one["caption"])
    expect(card.get_by_role("link", name="Find similar")).to_be_visible()
    card.get_by_role("link", name="Open").click()
    page.wait_for_url(f"**{one['url']}")
    context.close()


def test_keyboard_only(still: Any) -> None:
    page = still
    found = opened(page)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#ims-map canvas')"):
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.keyboard.press("+")
    expect(found).to_have_attribute("data-zoom", "2.000")
    before = view(page)[0]
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "x => document.getElementById('ims-map').dataset.view.split(' ')[0] > x", arg=before
    )
    page.keyboard.press("0")
    expect(found).to_have_attribute("data-zoom", "1.000")
    page.keyboard.press("s")
    assert selected(page) == 24
    page.keyboard.press("Escape")
    expect(page.locator("#ims-map-list h2")).to_have_text("All 24 pictures")
    page.keyboard.press("g")
    expect(found).to_have_attribute("data-layout", "grid")
    # The picture in the middle is told, and opened.
    page.keyboard.press("+")
    expect(page.locator("#ims-map-status")).to_contain_text("Enter opens it")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "/-/map" not in url)


def test_filters_of_the_table_page_apply(page: Any) -> None:
    found = opened(page, f"{MAP}?label=red")
    expect(found).to_have_attribute("data-shown", "8")
    expect(page.locator("#ims-map-list h2")).to_have_text("8 of 24 pictures")
    page.keyboard.press("Tab")
    page.locator("#ims-map canvas").focus()
    page.keyboard.press("s")
    assert selected(page) == 8
    page.locator(".ims-chip").click()
    page.wait_for_url(lambda url: "label=" not in url)
    assert selected(page) == 24


def test_list_without_scripts(browser: Any, server: str) -> None:
    for page in tab(browser, server, False):
        page.goto(MAP)
        assert not page.locator("#ims-map").is_visible()
        assert page.locator(LISTED).count() == 6
        page.get_by_role("link", name="Next page").click()
        page.wait_for_url("**_next=6*")
        assert page.locator(LISTED).count() == 6
        page.goto(f"{MAP}?_image_region=-2,-2,0,-2,0,2,-2,2")
        assert 0 < int(page.locator("#ims-map-list").get_attribute("data-total")) < 24
        page.get_by_role("link", name="Clear").click()
        page.wait_for_url(lambda url: "_image_region" not in url)


def test_without_webgl_the_list_is_shown(page: Any) -> None:
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto(MAP)
    expect(page.locator("#ims-map-message")).to_contain_text("no WebGL 2")
    assert not page.locator("#ims-map").is_visible()
    assert page.locator(LISTED).count() == 6


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    opened(page, f"{MAP}?label__in=red,blue#color=label")
    assert page.evaluate(overflow) <= 0
    page.locator(".ims-add-filter summary").click()
    assert page.evaluate(overflow) <= 0
    page.locator(".ims-add-filter summary").click()
    page.locator("[data-part=view]").click()
    selected(page)
    assert page.evaluate(overflow) <= 0


def test_nothing_is_loaded_from_elsewhere(page: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    opened(page, f"{MAP}#color=label&layout=grid")
    page.wait_for_function("() => document.getElementById('ims-map').dataset.drawn == 24")
    hosts = {url.split("/")[2].partition(":")[0] for url in asked if "://" in url}
    assert hosts == {"127.0.0.1"}


@pytest.mark.parametrize("failure", [500, 503, "abort", "no picture"])
def test_a_sheet_that_could_not_be_fetched_is_tried_again(
    browser: Any, server: str, failure: Any
) -> None:
    asked = []
    page = browser.window(server, True).new_page()  # whose console may complain

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) > 2:
            route.continue_()
        elif failure == "abort":
            route.abort()
        elif failure == "no picture":
            route.fulfill(status=200, body="no picture")
        else:
            route.fulfill(status=failure)

    page.route("**/map/atlas/**", answer)
    found = opened(page)
    expect(found).not_to_have_attribute("data-drawn", "0", timeout=20_000)
    assert len(asked) == 3
    page.close()


def test_a_sheet_that_is_not_there_is_asked_for_once(page: Any) -> None:
    asked = []
    page.route(
        "**/map/atlas/**",
        lambda route: (asked.append(route.request.url), route.fulfill(status=404)),
    )
    opened(page)
    page.wait_for_timeout(3000)
    assert len(asked) == 1
