"""Writes from other sites: what a browser sends on its own changes nothing."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import picture
from core import sql
from datasette.app import Datasette
from datasette.plugins import pm
from datasette.utils.asgi import Request
from dupes import put_groups
from serving import IS_ONE, ROOT, ask, cookies, open_datasette
from stress.matrix import Who, _token, routes
from stress.site_of_secrets import Signing

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.web.compat import has_own_csrf_check, same_origin

TABLE = "/gallery/images/-"
WRITES: dict[str, dict[str, str]] = {
    "questions": {"name": "one", "question": "_like=1"},
    "questions/rename": {"id": "1", "name": "two"},
    "questions/delete": {"id": "1"},
    "duplicates/decide": {"group": "2", "action": "accept"},
    "duplicates/accept": {"tier": "same"},
    "duplicates/undo": {"tier": "same"},
    "clusters/rename": {"cluster": "1", "name": "mine"},
    "add-picture": {},
}
# What browsers send along, and whether it may come in with a login's cookie.
SENT: tuple[tuple[dict[str, str], bool], ...] = (
    ({"sec-fetch-site": "same-origin", "origin": "http://localhost"}, True),
    ({"sec-fetch-site": "none"}, True),  # typed, or from a bookmark
    ({"sec-fetch-site": "same-site", "origin": "http://other.localhost"}, False),
    ({"sec-fetch-site": "cross-site", "origin": "http://evil.example"}, False),
    ({"sec-fetch-site": "cross-site", "origin": "null"}, False),
    # One that says so of itself in the header that pages can set beside it.
    ({"sec-fetch-site": "cross-site", "origin": "http://localhost"}, False),
    ({"sec-fetch-site": ""}, False),
    ({"origin": "http://localhost"}, True),  # browsers before 2023
    ({"origin": "http://LOCALHOST"}, True),
    ({"origin": "null"}, False),
    ({"origin": ""}, False),
    ({"origin": "http://evil.example"}, False),
    ({"origin": "http://localhost.evil.example"}, False),
    ({"origin": "http://localhost:8001"}, False),
    ({"origin": "http://user@localhost"}, False),
    ({"origin": "http://evil.example", "host": "evil.example"}, True),  # it is that site
    ({"referer": "http://evil.example/"}, True),  # no browser: these send one of the two
    ({}, True),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, made_once: Path) -> Path:
    path = tmp_path_factory.mktemp("cross") / "gallery.db"
    path.write_bytes(made_once.read_bytes())
    with ImageCollection(path) as collection:
        collection.clusters(k=2)
    put_groups(path)
    return path


@pytest.fixture
def site(made: Path, photos_once: Path, tmp_path: Path) -> Iterator[Datasette]:
    """Somebody may write here, so that nothing but where it comes from is in the way."""
    path = tmp_path / "gallery.db"
    path.write_bytes(made.read_bytes())
    folder = shutil.copytree(photos_once, tmp_path / "photos")  # pictures are added there
    sql(path, "update _image_similarity_roots set path = ?", (str(folder),))
    signing = Signing()
    pm.register(signing, name="signing")
    settings = {"curators": {"id": "root"}, "roots": [str(tmp_path)]}
    yield open_datasette(path, plugin=settings)
    pm.unregister(signing)


def state(site: Datasette) -> str:
    path = Path(site.databases["gallery"].path)
    wal = Path(f"{path}-wal")
    data = path.read_bytes() + (wal.read_bytes() if wal.exists() else b"")
    return hashlib.sha256(data).hexdigest()


async def post(site: Datasette, page: str, headers: dict[str, str], **more: Any) -> Any:
    body: dict[str, Any] = {"data": WRITES[page]}
    if page == "add-picture":
        body = {"files": {"image": ("new.png", picture(), "image/png")}}
    body.update(more)
    return await ask(site, f"{TABLE}/{page}", method="POST", headers=headers, **body)


def test_every_route_that_changes_something_is_asked_here() -> None:
    writing = {
        one.address.partition("/-/")[2]
        for one in routes()
        if one.rule.writes in ("curate", "insert") and one.format is None
    }
    assert writing == set(WRITES)


@pytest.mark.parametrize("page", WRITES)
async def test_what_other_sites_send_changes_nothing(site: Datasette, page: str) -> None:
    login = {"cookie": f"ds_actor={cookies(site, ROOT)['ds_actor']}"}
    for headers, _ in [one for one in SENT if not one[1]]:
        before = state(site)
        for more in (
            {},
            {"json": WRITES[page]},
            {"content": "name=x", "headers": {"content-type": "text/plain"}},
        ):
            extra = more.pop("headers", {})
            body = {"data": None, "files": None, **more} if more else {}
            response = await post(site, page, {**login, **headers, **extra}, **body)
            assert response.status_code == 403, (headers, more, response.text[:200])
            assert state(site) == before
            # Nor for visitors where a token lies beside a login: the login might be meant.
            beside = {**login, **headers, "authorization": "Bearer anything"}
            response = await post(site, page, beside)
            assert response.status_code == 403
            assert state(site) == before


@pytest.mark.parametrize("page", ["questions", "duplicates/undo"])
async def test_what_our_own_pages_send_is_taken(site: Datasette, page: str) -> None:
    login = {"cookie": f"ds_actor={cookies(site, ROOT)['ds_actor']}"}
    for number, (headers, _) in enumerate(one for one in SENT if one[1]):
        fields = {**WRITES[page], "name": f"one {number}"}
        response = await post(site, page, {**login, **headers}, data=fields)
        assert response.status_code == 302, (headers, response.text[:200])


async def test_a_token_without_a_login_is_no_browser_s(site: Datasette) -> None:
    token = Who("root's token", "root", _token("root")).headers(site)
    for number, (headers, _) in enumerate(SENT):
        fields = {"name": f"one {number}", "question": "_like=1"}
        response = await post(site, "questions", {**token, **headers}, data=fields)
        assert response.status_code == 302, headers


def test_plain_http_does_not_speak_for_https() -> None:
    def sent(scheme: str, origin: str) -> bool:
        headers = [(b"host", b"localhost"), (b"origin", origin.encode())]
        scope = {"type": "http", "scheme": scheme, "headers": headers}
        return same_origin(Request(scope, None))

    assert not sent("https", "http://localhost")
    assert sent("https", "https://localhost")
    assert sent("http", "https://localhost")  # HTTPS ends at a proxy


async def test_a_text_that_looks_like_json_is_not_read(site: Datasette) -> None:
    """A form of another site can send it without asking first."""
    login = {"cookie": f"ds_actor={cookies(site, ROOT)['ds_actor']}"}
    before = state(site)
    response = await post(
        site,
        "clusters/rename",
        {**login, "content-type": "text/plain"},
        data=None,
        content='{"cluster": 1, "name": "mine"}',
    )
    assert response.status_code == 400
    assert state(site) == before


@pytest.mark.skipif(IS_ONE, reason="Datasette 1.0 checks every POST itself")
def test_other_routes_keep_datasette_s_own_check() -> None:
    for path in (
        *("/-/logout", "/-/messages", "/gallery", "/gallery/images", "/gallery/query"),
        *("/gallery/images/1", "/gallery/images/-/insert", "/gallery/-/similar"),
        *("/-/similar", "/-/questions/delete", "/gallery/images/-/similar/a/b"),
    ):
        assert not has_own_csrf_check({"path": path}), path
