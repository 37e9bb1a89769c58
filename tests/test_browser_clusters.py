"""The page of clusters in a real browser: renaming in place, and without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browsing import embedded, needs_chromium, serve, sync_api, tab
from conftest import make_photos
from serving import PLUGIN

pytestmark = needs_chromium
PAGE = "/gallery/images/-/clusters?_sort=name"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Datasette with the gallery in four clusters, which anybody may rename."""
    folder = tmp_path_factory.mktemp("clusters")
    photos = make_photos(folder / "photos")
    path = embedded(photos, lambda collection: collection.clusters(k=4))
    with serve(path, {"plugins": {PLUGIN: {"curators": True}}}) as address:
        yield address


@pytest.fixture(params=[True, False], ids=["scripts", "no-scripts"])
def either(browser: Any, server: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    yield from tab(browser, server, request.param)


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    yield from tab(browser, server, True)


def test_a_cluster_is_renamed(either: Any) -> None:
    expect = sync_api.expect
    either.goto(PAGE)
    cluster = either.locator("#cluster-2")
    field = cluster.get_by_label("Name of this cluster")
    expect(field).to_be_hidden()
    cluster.locator("summary").click()
    field.fill("Ünder <b>the</b> sea & “more”")
    field.press("Enter")
    expect(cluster.locator("h2")).to_have_text("Ünder <b>the</b> sea & “more”")
    expect(field).to_be_hidden()
    assert "_sort=name" in either.url
    cluster.locator("h2 a").click()
    expect(either.get_by_text("in the cluster “Ünder <b>the</b> sea").first).to_be_visible()


def test_a_name_that_is_taken_is_refused_in_place(page: Any) -> None:
    expect = sync_api.expect
    page.goto(PAGE)
    taken = page.locator("#cluster-1 h2").inner_text()
    cluster = page.locator("#cluster-3")
    before = cluster.locator("h2").inner_text()
    cluster.locator("summary").press("Enter")
    field = cluster.get_by_label("Name of this cluster")
    expect(field).to_be_focused()
    field.fill(taken)
    cluster.get_by_role("button", name="Save").click()
    expect(cluster.get_by_role("alert")).to_contain_text("another cluster called")
    expect(field).to_have_value(taken)
    field.press("Escape")
    expect(field).to_be_hidden()
    expect(cluster.locator("summary")).to_be_focused()
    expect(cluster.locator("h2")).to_have_text(before)


def test_nothing_is_wider_than_a_telephone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(PAGE)
    page.locator(".ims-rename summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    small = "all => all.filter(e => e.getBoundingClientRect().height < 40).length"
    targets = page.locator(".ims-cluster-links a, .ims-rename summary, .ims-sorts a")
    assert targets.evaluate_all(small) == 0
