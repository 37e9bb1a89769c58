"""A richer question in a real browser: +, −, ×, weights, a crop by mouse, the histogram."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from browsing import embedded, needs_chromium, serve, shown_from, tab
from conftest import make_photos, picture
from PIL import Image

pytestmark = needs_chromium
SIMILAR = "/gallery/images/-/similar"
BOTH = 25  # half red, half blue


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Datasette with the gallery and one picture more, six a page."""
    folder = tmp_path_factory.mktemp("browser")
    photos = make_photos(folder / "photos")
    (photos / "zzz").mkdir()
    both = Image.new("RGB", (160, 60))
    for left, colour in ((0, "red"), (80, "blue")):
        both.paste(Image.open(io.BytesIO(picture(colour, 3))), (left, 0))
    both.save(photos / "zzz" / "zzz.png")
    path = embedded(photos)
    with serve(path, shown_from(photos)) as address:
        yield address


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    yield from tab(browser, server, True)


@pytest.fixture(params=[True, False], ids=["scripts", "no-scripts"])
def either(browser: Any, server: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    yield from tab(browser, server, request.param)


def tile(page: Any, number: int) -> Any:
    found = page.locator(".ims-tile").nth(number)
    found.hover()
    return found


def caption(tile: Any) -> str:
    return tile.locator(".ims-picture img").get_attribute("alt")


def group(page: Any, name: str) -> list[str]:
    images = page.get_by_role("group", name=name, exact=True).locator("img")
    return images.evaluate_all("all => all.map(img => img.alt)")


def likes(page: Any) -> list[str]:
    return group(page, "Like these pictures")


def unlikes(page: Any) -> list[str]:
    return group(page, "Less like these pictures")


def test_more_less_weights_and_away_again(either: Any) -> None:
    page = either
    page.goto(f"{SIMILAR}?_like=1")
    first = tile(page, 0)
    liked = caption(first)
    first.get_by_role("link", name=f"More like {liked}").click()
    page.wait_for_url("**_like=1&_like=*")
    assert likes(page) == ["blue-0.png", liked]
    assert unlikes(page) == []
    second = tile(page, 1)
    unliked = caption(second)
    second.get_by_role("link", name=f"Less like {unliked}").click()
    page.wait_for_url("**_unlike=*")
    assert likes(page) == ["blue-0.png", liked]
    assert unlikes(page) == [unliked]
    tiles = page.locator(".ims-tile .ims-picture img")
    shown = tiles.evaluate_all("all => all.map(img => img.alt)")
    assert not {"blue-0.png", liked, unliked} & set(shown)
    # A weight up, and down again.
    page.get_by_role("link", name=f"Let {liked} count more").click()
    page.wait_for_url("**%3A2*")
    assert page.locator(".ims-weight > span").all_inner_texts() == ["×1", "×2"]
    page.get_by_role("link", name=f"Let {liked} count less").click()
    page.wait_for_url(lambda url: "%3A2" not in url)
    # By keyboard, too.
    page.get_by_role("link", name=f"Search without {unliked}").focus()
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "_unlike" not in url)
    page.get_by_role("link", name="Search without blue-0.png").click()
    page.wait_for_url(lambda url: url.count("_like") == 1)
    assert likes(page) == [liked]
    assert page.locator(".ims-drop-query").count() == 0


def open_crop(page: Any) -> Any:
    """The picture to draw on, at reading size."""
    page.get_by_text("part of the picture").click()
    picture = page.locator(".ims-crop-picture img[src*='/image/']")
    picture.wait_for()
    picture.evaluate("img => img.decode()")
    return picture


def best(page: Any) -> str:
    return caption(page.locator(".ims-tile").first)


def test_a_part_drawn_with_the_mouse(page: Any) -> None:
    page.goto(f"{SIMILAR}?_like={BOTH}")
    box = open_crop(page).bounding_box()
    right, bottom = box["x"] + box["width"], box["y"] + box["height"]
    for start, end, wanted in (
        # From the lower right up to the middle; and beyond the edge on the left.
        ((right - 1, bottom - 1), (box["x"] + box["width"] / 2, box["y"] - 40), "blue"),
        ((box["x"] + box["width"] / 2, bottom - 1), (box["x"] - 30, box["y"]), "red"),
    ):
        page.mouse.move(*start)
        page.mouse.down()
        page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        page.mouse.move(*end)
        page.mouse.up()
        width = float(page.get_by_label("Width %").input_value())
        assert width == pytest.approx(50, abs=2)
        mark = page.locator(".ims-crop-picture rect")
        assert float(mark.get_attribute("width")) == width
        page.get_by_role("button", name="Search with this part").click()
        page.wait_for_url("**_crop=*")
        assert best(page).startswith(f"{wanted}-3")
        assert page.locator(".ims-cropped .ims-part").count() == 1
        page.go_back()
        open_crop(page)


def test_a_part_by_its_numbers(either: Any) -> None:
    page = either
    page.goto(f"{SIMILAR}?_like={BOTH}&label__not=green")
    page.get_by_text("part of the picture").click()
    page.get_by_label("Left %").fill("50")
    page.get_by_label("Width %").fill("50")
    page.get_by_role("button", name="Search with this part").click()
    page.wait_for_url("**_crop=0.5%2C0%2C0.5%2C1*")
    assert best(page).startswith("blue-3")
    page.get_by_text("part of the picture").click()
    page.get_by_role("link", name="The whole picture").click()
    page.wait_for_url(lambda url: "_crop" not in url)
    assert page.locator(".ims-part path").count() == 0


def test_folding_by_the_form(either: Any) -> None:
    page = either
    page.goto(f"{SIMILAR}?_like=1&label__not=zzz")
    page.get_by_text("no repeats").click()
    page.get_by_label("One per").select_option("label")
    page.get_by_role("button", name="Apply").last.click()
    page.wait_for_url("**_one_per=label*")
    assert page.locator(".ims-tile").count() == 3
    page.locator(".ims-others a").first.click()
    page.wait_for_url("**label__exact=*")
    page.go_back()
    page.get_by_role("link", name="one per label").click()
    page.wait_for_url(lambda url: "_one_per" not in url)
    assert page.locator(".ims-tile").count() == 6


def test_the_histogram_stands_behind_the_slider(either: Any) -> None:
    page = either
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        page.goto(f"{SIMILAR}?_like=1&_like=9:2&_unlike=24")
        picture = page.locator(".ims-histogram")
        picture.evaluate("img => img.decode()")
        above, below = (
            picture.bounding_box(),
            page.locator(".ims-range input").bounding_box(),
        )
        assert above["y"] + above["height"] <= below["y"] + 1
        assert above["width"] == pytest.approx(below["width"] - 16, abs=1)
        # Nothing makes the page wider than the screen.
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_cut_off_without_scripts(browser: Any, server: str) -> None:
    for page in tab(browser, server, False):
        page.goto(f"{SIMILAR}?_like=1")
        page.locator("#ims-max-distance").focus()
        for _ in range(80):
            page.keyboard.press("ArrowLeft")
        page.get_by_role("button", name="Set", exact=True).click()
        page.wait_for_url("**_max_distance=0.2*")
        assert page.locator(".ims-tile").count() < 24


def test_a_picture_of_ones_own_and_stored_ones(either: Any) -> None:
    page = either
    page.goto("/gallery/images/-/search-by-image")
    file = {"name": "mine.png", "mimeType": "image/png", "buffer": picture("red", 99)}
    page.locator("#ims-file").set_input_files(file)
    go = page.locator(".ims-go")
    if go.is_visible():
        go.click()
    page.locator(".ims-tile").first.wait_for()
    first = tile(page, 0)
    liked = caption(first)
    first.get_by_role("button", name=f"More like {liked}").click()
    page.wait_for_url("**_like=*")
    assert likes(page) == [liked]
    assert page.locator("#ims-preview").get_attribute("src").startswith("data:image/webp")
    second = tile(page, 1)
    unliked = caption(second)
    second.get_by_role("button", name=f"Less like {unliked}").click()
    page.wait_for_url("**_unlike=*")
    assert unlikes(page) == [unliked]
    page.get_by_role("button", name=f"Search without {liked}").click()
    page.wait_for_url(lambda url: "_like=" not in url)
    assert likes(page) == []
    assert unlikes(page) == [unliked]
