"""Searching with a picture of one's own: over the API, as a form, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import struct
import threading
import zlib
from pathlib import Path

import pytest
from conftest import picture
from datasette.app import Datasette
from serving import (
    IS_ONE,
    ROOT,
    ask,
    ask_json,
    change,
    open_datasette,
    pks,
    post_picture,
)
from stress.picture_seeds import dng

from datasette_image_similarity.formats import picture_suffixes
from datasette_image_similarity.web.service import service

SEARCH = "/gallery/images/-/search-by-image"


@pytest.fixture
def site(gallery: Path) -> Datasette:
    return open_datasette(gallery)


def hidden_fields(page: str) -> dict[str, str]:
    return dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page))


def encoded(format: str, **options: object) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(picture("red", 3))).convert("RGB").save(out, format, **options)
    return out.getvalue()


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A small PNG that says it is enormous."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1_000_000))
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


async def test_json_is_as_from_similar(site: Datasette) -> None:
    response = await post_picture(site, SEARCH, picture("red", 3))
    assert response.status_code == 200
    answer = response.json()
    similar = await ask_json(site, "/gallery/images/-/similar.json?_like=1")
    assert set(similar) == set(answer)
    assert answer["ok"] is True
    assert answer["total"] == 24
    first = answer["rows"][0]
    assert first["row"]["name"] == "red-3.png"
    assert first["score"] == pytest.approx(1, abs=1e-4)
    assert answer["query"]["image"]["format"] == "PNG"


async def test_the_address_may_ask_for_json(site: Datasette) -> None:
    response = await post_picture(site, f"{SEARCH}.json", picture(), json=False)
    assert response.json()["ok"] is True


async def test_filters_size_and_cut_off_hold_here_too(site: Datasette) -> None:
    url = f"{SEARCH}?label=blue&_size=3&_max_distance=1.9"
    answer = (await post_picture(site, url, picture("red", 3))).json()
    assert len(answer["rows"]) == 3
    assert {row["row"]["label"] for row in answer["rows"]} == {"blue"}
    assert answer["total"] == 8
    bad = await post_picture(site, f"{SEARCH}?_size=0", picture())
    assert bad.status_code == 400


async def test_json_can_be_paged(site: Datasette) -> None:
    seen: list[str] = []
    following = 0
    while following is not None:
        url = f"{SEARCH}?_size=10&_next={following}"
        answer = (await post_picture(site, url, picture("red", 3))).json()
        seen += pks(answer)
        following = answer["next"]
    assert len(seen) == len(set(seen)) == 24


async def test_a_bearer_token_comes_from_no_other_site(site: Datasette) -> None:
    headers = {"authorization": "Bearer of-some-plugin", "origin": "https://example.com"}
    response = await post_picture(site, SEARCH, picture(), headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.skipif(not IS_ONE, reason="Datasette 0.65 has no API tokens of its own")
async def test_an_api_token_works(gallery: Path) -> None:
    private = {"databases": {"gallery": {"allow": {"id": "root"}}}}
    site = open_datasette(gallery, config=private)
    await site.invoke_startup()
    headers = {"authorization": f"Bearer {await site.create_token('root')}"}
    response = await post_picture(site, SEARCH, picture(), headers=headers)
    assert response.status_code == 200, response.text
    refused = await post_picture(site, SEARCH, picture())
    assert refused.status_code == 403


async def test_a_form_without_javascript(site: Datasette) -> None:
    page = await ask(site, SEARCH)
    assert page.status_code == 200
    assert 'enctype="multipart/form-data"' in page.text
    assert 'name="image"' in page.text
    # A browser sends whatever cookies it has, and on 0.65 that used to need a token.
    headers = {"cookie": "ds_csrftoken=old; other=1", "sec-fetch-site": "same-origin"}
    response = await post_picture(
        site, SEARCH, picture("red", 3), json=False, headers=headers
    )
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert response.text.index("red-3.png") < response.text.index("blue-")
    assert "data:image/webp;base64," in response.text


async def test_the_next_button_goes_on_from_the_embedding(site: Datasette) -> None:
    url = f"{SEARCH}?_size=9&id__gt=1"
    answer = (await post_picture(site, f"{SEARCH}?id__gt=1", picture("red", 3))).json()
    page = await post_picture(site, url, picture("red", 3), json=False)
    seen: list[str] = []
    for _ in range(5):
        seen += re.findall(r'class="ims-picture" href="/gallery/images/(\d+)"', page.text)
        form = re.search(
            r'<form class="ims-next" action="([^"]+)".*?</form>', page.text, re.S
        )
        if form is None or "<button" not in form[0]:
            break
        fields = hidden_fields(form[0])
        assert base64.b64decode(fields["embedding"])
        following = form[1].replace("&amp;", "&")
        page = await post_picture(site, following, None, fields=fields, json=False)
        assert page.status_code == 200
        assert "data:image/webp;base64," in page.text
    assert seen == pks(answer)
    assert len(seen) == 23


@pytest.mark.parametrize(
    "embedding",
    [
        "AAAA",
        "not base64!",
        base64.b64encode(bytes(4)).decode(),
        base64.b64encode(struct.pack("<f", float("nan")) * 4).decode(),
        "nan",
        "zeros",
        "huge",
        "é",
    ],
)
async def test_a_tampered_embedding_is_refused(site: Datasette, embedding: str) -> None:
    dimensions = (await ask_json(site, "/-/image-similarity.json"))["collections"][0][
        "dimensions"
    ]
    numbers = {"nan": float("nan"), "zeros": 0.0, "huge": 3e38}
    if embedding in numbers:
        packed = struct.pack("<f", numbers[embedding]) * dimensions
        embedding = base64.b64encode(packed).decode()
    for as_json in (True, False):
        response = await post_picture(
            site, SEARCH, None, fields={"embedding": embedding}, json=as_json
        )
        assert response.status_code == 400, response.text
        assert "Traceback" not in response.text
    preview = {"preview": '"><script>', "embedding": embedding}
    response = await post_picture(site, SEARCH, None, fields=preview, json=False)
    assert '"><script>' not in response.text


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("x.svg", SVG, "image/svg+xml"),
        ("x.html", b"<html><script>alert(1)</script></html>", "text/html"),
        ("x.png", b"GIF89a but not really", "image/png"),
        ("x.png", b"\x89PNG\r\n\x1a\n", "image/png"),
        ("x.jpg", encoded("JPEG")[:300], "image/jpeg"),
        ("x.png", bomb(), "image/png"),
        ("x.txt", b"hello", "text/plain"),
        ("x.pdf", b"%PDF-1.4\n", "application/pdf"),
        ("x.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/eps"),
        ("../../../etc/passwd", b"root:x:0:0", "image/png"),
    ],
)
async def test_what_is_no_picture_is_refused(
    site: Datasette, name: str, data: bytes, kind: str
) -> None:
    for as_json in (True, False):
        response = await post_picture(
            site, SEARCH, data, name=name, kind=kind, json=as_json
        )
        assert response.status_code == 400, response.text
        assert "<script>alert" not in response.text
        if as_json:
            body = response.json()
            assert body["ok"] is False
            assert len(body["error"]) > 10
        else:
            assert 'role="alert">' in response.text
            assert 'role="alert"></p>' not in response.text
            assert "ims-picture" not in response.text
    good = await post_picture(site, SEARCH, picture())
    assert good.status_code == 200  # and the next one works


async def test_the_form_offers_every_suffix_that_is_read(site: Datasette) -> None:
    page = await ask(site, SEARCH)
    offered = re.search(r'id="ims-file"[^>]* accept="([^"]+)"', page.text)[1]
    assert offered.split(",") == ["image/*", *picture_suffixes()]


@pytest.mark.parametrize("format", ["HEIF", "JXL", "RAW"])
async def test_formats_of_extras_can_be_uploaded(site: Datasette, format: str) -> None:
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if format == "JXL":
        pytest.importorskip("pillow_jxl")
    if format == "RAW":
        pytest.importorskip("rawpy")
    data = encoded("JPEG" if format == "RAW" else format, quality=95)
    data = dng(data, (80, 60)) if format == "RAW" else data
    response = await post_picture(site, SEARCH, data, name="x.jpg", kind="image/jpeg")
    assert response.status_code == 200, response.text
    assert response.json()["rows"][0]["row"]["name"] == "red-3.png"


@pytest.mark.parametrize(
    "format", ["JPEG", "GIF", "WEBP", "BMP", "TIFF", "DIB", "PPM", "JPEG2000", "AVIF"]
)
async def test_the_content_type_may_lie_about_a_picture(
    site: Datasette, format: str
) -> None:
    response = await post_picture(
        site, SEARCH, encoded(format), name="x.html", kind="text/html"
    )
    assert response.status_code == 200
    assert response.json()["query"]["image"]["format"] == format


async def test_empty_missing_and_misnamed(site: Datasette) -> None:
    for data, fields in ((b"", {}), (None, {"other": "1"}), (None, {"image": "text"})):
        response = await post_picture(site, SEARCH, data, fields=fields)
        assert response.status_code == 400
        assert "image" in response.json()["error"]
    headers = {"accept": "application/json"}
    for content, kind in (
        (b"", ""),
        (picture(), "image/png"),
        (b"{}", "application/json"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"nothing of the kind", "multipart/form-data; boundary=x"),
        (b"--x", "multipart/form-data"),
        (b"image=1", "application/x-www-form-urlencoded"),
    ):
        response = await ask(
            site,
            SEARCH,
            method="POST",
            content=content,
            headers={**headers, "content-type": kind},
        )
        assert response.status_code == 400, (kind, response.text)
        assert response.json()["ok"] is False


async def test_an_upload_that_is_cut_off(site: Datasette) -> None:
    body = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    response = await ask(
        site,
        SEARCH,
        method="POST",
        content=body + picture()[:50],
        headers={
            "accept": "application/json",
            "content-type": "multipart/form-data; boundary=x",
        },
    )
    assert response.status_code == 400


@pytest.mark.parametrize("size", [20_001, 600_000, 2_000_000])
async def test_too_big_is_413(gallery: Path, size: int) -> None:
    site = open_datasette(gallery, plugin={"upload_max_bytes": 20_000})
    data = picture() + bytes(size - len(picture()))
    for as_json in (True, False):
        response = await post_picture(site, SEARCH, data, json=as_json)
        assert response.status_code == 413, response.text
        assert "0.02 MB" in response.text
    assert (await post_picture(site, SEARCH, picture())).status_code == 200


async def test_too_many_pixels(gallery: Path) -> None:
    site = open_datasette(gallery, plugin={"upload_max_pixels": 1000})
    response = await post_picture(site, SEARCH, picture())
    assert response.status_code == 400
    assert "pixel" in response.json()["error"]


async def test_cross_site_posts_are_refused(site: Datasette) -> None:
    for headers in (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://example.com"},
        {"origin": "null"},
        {"origin": "https://example.com", "cookie": "a=1", "authorization": "Bearer x"},
    ):
        response = await post_picture(site, SEARCH, picture(), headers=headers)
        assert response.status_code == 403, headers
    for headers in (
        {"sec-fetch-site": "same-origin", "origin": "http://localhost"},
        {"origin": "http://localhost"},
        {},
    ):
        response = await post_picture(site, SEARCH, picture(), headers=headers)
        assert response.status_code == 200, headers


async def test_switched_off(gallery: Path) -> None:
    plugin = {"search_by_image": False}
    site = open_datasette(gallery, plugin=plugin)
    assert (await ask(site, SEARCH)).status_code == 403
    response = await post_picture(site, SEARCH, picture())
    assert response.status_code == 403
    assert "switched off" in response.json()["error"]
    for page in ("/gallery/images", "/gallery/images/-/similar?_like=1"):
        assert "search-by-image" not in (await ask(site, page)).text
    assert "search-by-image" not in (await ask(site, "/-/image-similarity")).text


async def test_other_methods(site: Datasette) -> None:
    for method in ("PUT", "DELETE", "PATCH"):
        response = await ask(site, SEARCH, method=method)
        assert response.status_code == 405
    assert (await ask(site, SEARCH, method="HEAD")).status_code == 200


async def test_a_full_queue_is_told_politely(gallery: Path) -> None:
    """Uploads are bounded: one at a time is looked at, a few wait, others come again."""
    site = open_datasette(gallery, plugin={"upload_queue": 2})
    await post_picture(site, SEARCH, picture())  # children and encoder are there
    it = service(site)
    blocked, at_once, most = threading.Event(), 0, 0
    real = it._decode_upload

    def slow(*arguments: object) -> object:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        blocked.wait(10)
        try:
            return real(*arguments)
        finally:
            at_once -= 1

    it._decode_upload = slow
    waiting = [
        asyncio.create_task(post_picture(site, SEARCH, picture("red", n))) for n in range(2)
    ]
    while it._waiting < 2:
        await asyncio.sleep(0.01)
    for as_json in (True, False):
        response = await post_picture(site, SEARCH, picture(), json=as_json)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0
        assert "Try again" in response.text
    # What needs no new picture answers meanwhile.
    await ask_json(site, "/gallery/images/-/similar.json?_like=1")
    assert (await ask(site, "/gallery/images/-/thumbnail/1")).status_code == 200
    blocked.set()
    assert [r.status_code for r in await asyncio.gather(*waiting)] == [200, 200]
    assert most == 1
    assert it._waiting == 0
    assert (await post_picture(site, SEARCH, picture())).status_code == 200


async def test_many_at_once_all_get_an_answer(site: Datasette) -> None:
    tasks = [post_picture(site, SEARCH, picture("red", n)) for n in range(20)]
    codes = [response.status_code for response in await asyncio.gather(*tasks)]
    assert set(codes) <= {200, 429}
    assert codes.count(200) >= 8


async def test_weights_that_are_not_here(gallery: Path) -> None:
    change(
        gallery,
        "update _image_similarity_collections set "
        "encoder = json_set(encoder, '$.model', 'no_such_network')",
    )
    site = open_datasette(gallery)
    response = await post_picture(site, SEARCH, picture())
    assert response.status_code == 503
    assert "no_such_network" in response.json()["error"]
    await ask_json(site, "/gallery/images/-/similar.json?_like=1")


async def test_nothing_is_stored(site: Datasette, gallery: Path) -> None:
    before = gallery.read_bytes()
    await post_picture(site, SEARCH, picture("red", 99))
    assert gallery.read_bytes() == before
    assert (await ask(site, SEARCH, ROOT)).status_code == 200


@pytest.mark.skipif(IS_ONE, reason="Datasette 1.0 has no tokens for forms")
async def test_other_posts_keep_datasettes_own_check(site: Datasette) -> None:
    response = await ask(
        site, "/-/messages", method="POST", data={"message": "x"}, headers={"cookie": "a=1"}
    )
    assert response.status_code == 403


async def test_stored_pictures_can_be_added_to_ones_own(site: Datasette) -> None:
    plain = await post_picture(site, SEARCH, picture("red", 99), json=False)
    fields = hidden_fields(plain.text)
    assert "More like" in plain.text
    assert 'formaction="/gallery/images/-/search-by-image?_like=' in plain.text
    url = f"{SEARCH}?_like=1&_like=9&_unlike=24"
    page = await post_picture(site, url, None, fields=fields, json=False)
    assert page.status_code == 200
    assert len(re.findall(r"<figure", page.text)) == 3
    assert hidden_fields(page.text)["embedding"] == fields["embedding"]
    # Every picture may go: one's own is left.
    assert page.text.count("Search without this picture") == 3
    answer = await post_picture(site, url, None, fields=fields)
    assert answer.json()["query"]["like"] == ["1", "9"]
    assert answer.json()["query"]["unlike"] == ["24"]
    assert {"1", "9", "24"}.isdisjoint(pks(answer.json()))
    assert answer.json()["total"] == 21
    assert pks(answer.json()) != pks(
        (await post_picture(site, SEARCH, picture("red", 99))).json()
    )
    gone = await post_picture(site, f"{SEARCH}?_like=999", None, fields=fields)
    assert gone.status_code == 404
    crop = await post_picture(site, f"{SEARCH}?_like=1&_crop=0,0,.5,.5", picture())
    assert crop.status_code == 400
