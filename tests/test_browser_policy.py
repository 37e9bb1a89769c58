"""What pages may run, in a real browser: the site's own scripts, and nothing from data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import embedded, needs_chromium, serve, shown_from
from conftest import make_photos
from datasette.app import Datasette
from serving import ROOT, change, cookies

pytestmark = needs_chromium
SECRET = "of this test"
HOSTILE = (
    "<script>window.planted = 1</script>"
    "<img src=x onerror='window.planted = 2'>"
    "<a href='javascript:window.planted = 3' id=ims-link>x</a>"
    "<style>#ims-planted { color: red }</style>"
    "<p id=ims-planted style='position: fixed'>here it is</p>"
)
PAGES = (
    "/-/image-similarity",
    "/gallery/images/-/similar?_like=1",
    "/gallery/images/-/search-by-image",
    "/gallery/images/-/map",
    "/gallery/images/-/duplicates",
    "/gallery/images/-/duplicates?_view=all",
    "/gallery/images/-/clusters",
    "/gallery/images/-/questions",
    "/gallery/images/-/searches",
    "/gallery/images/-/evaluations",
    "/gallery/images/-/evaluations/1",
    "/gallery/images/-/evaluations/99",
    "/gallery/images/-/compare",
    "/gallery/images/-/add-picture",
)
# Another plugin, as they are: scripts and styles in the page and beside it, and one that
# loads another.
PLUGIN = """
from datasette import hookimpl
from datasette.utils.asgi import Response

@hookimpl
def extra_body_script(table):
    load = "const s = document.createElement('script'); s.src = '/-/late.js';"
    return f"window.site = ['inline']; {load} document.body.append(s);"

@hookimpl
def extra_js_urls():
    return ["/-/early.js"]

@hookimpl
def register_routes():
    async def script(request):
        name = request.path.partition("/-/")[2]
        text = f"(window.loaded ||= []).push('{name}')"
        return Response(text, content_type="text/javascript")
    return [("^/-/(early|late).js$", script)]
"""
BASE = """{% extends "default:base.html" %}
{% block footer %}<style>.of-the-site { outline: 3px solid green }</style>
<p class="of-the-site" style="letter-spacing: 3px" onclick="window.clicked = 1">Ours</p>
{{ super() }}{% endblock %}"""
# As if somebody forgot to escape what a row says.
TILES = """<section>{% for tile in tiles %}{{ tile.caption|safe }}{% endfor %}</section>"""
LISTEN = """window.violations = [];
document.addEventListener("securitypolicyviolation",
  (event) => window.violations.push(`${event.violatedDirective} ${event.sourceFile}`));"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("policy")
    photos = make_photos(folder / "photos")
    path = embedded(
        photos,
        lambda one: one.map(method="pca"),
        lambda one: one.clusters(k=3),
        lambda one: one.duplicates(),
        lambda one: one.evaluate("label"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.get_app_dir", lambda *_, **__: str(folder))
        change(path, f'update images set name = "{HOSTILE}" where id in (2, 3)')
    for name, text in (("base.html", BASE), ("_image_similarity_tiles.html", TILES)):
        (folder / "templates").mkdir(exist_ok=True)
        (folder / "templates" / name).write_text(text)
    (folder / "plugins").mkdir()
    (folder / "plugins" / "another.py").write_text(PLUGIN)
    options = ("--plugins-dir", str(folder / "plugins"), "--secret", SECRET)
    options += ("--template-dir", str(folder / "templates"))
    config = shown_from(photos)
    config["plugins"]["datasette-image-similarity"]["history"] = True
    with serve(path, config, *options) as address:
        yield address


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    """A tab of root's that notes what the policy has refused."""
    context = browser.chromium.new_context(base_url=server)
    context.set_default_timeout(60_000)
    signed = cookies(Datasette(secret=SECRET), ROOT)["ds_actor"]
    context.add_cookies([{"name": "ds_actor", "value": signed, "url": server}])
    context.add_init_script(LISTEN)
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_site_s_own_scripts_run_on_all_pages(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    complaints: list[str] = []
    page.on(
        "console", lambda said: complaints.append(said.text) if said.type == "error" else 0
    )
    for path in PAGES:
        if "similar?" in path:
            continue  # its template is the one that does not escape
        page.goto(path, wait_until="load")
        page.wait_for_function("() => window.loaded?.length === 2")
        assert page.evaluate("window.site") == ["inline"], path
        assert page.evaluate("window.violations") == [], path
        ours = page.locator(".of-the-site")
        ours.click()
        assert page.evaluate("window.clicked") == 1
        for style, value in (("letterSpacing", "3px"), ("outlineStyle", "solid")):
            assert ours.evaluate(f"one => getComputedStyle(one).{style}") == value
    assert [one for one in complaints if "the server responded" not in one] == []


def test_what_is_not_escaped_does_not_run(page: Any) -> None:
    page.goto("/gallery/images/-/similar?_like=1", wait_until="load")
    page.locator("#ims-link").first.dispatch_event("click")
    page.wait_for_function("() => window.loaded?.length === 2")
    planted = page.locator("#ims-planted").first
    assert planted.inner_text() == "here it is"  # the page is really unsafe
    assert page.evaluate("window.planted") is None
    for style, value in (("position", "static"), ("color", "rgb(255, 0, 0)")):
        same = planted.evaluate(f"one => getComputedStyle(one).{style}") == value
        assert same == (style == "position")
    refused = {one.split()[0] for one in page.evaluate("window.violations")}
    assert {"script-src-elem", "script-src-attr", "style-src-elem"} <= refused


def test_pictures_and_data_run_nothing(page: Any, server: str, tmp_path: Path) -> None:
    for path in ("similar.svg?_like=1", "thumbnail/1", "image/1", "similar.json?_like=1"):
        response = page.request.get(f"/gallery/images/-/{path}")
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "sandbox" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
