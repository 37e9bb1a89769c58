"""Pictures that mean no good are decoded or refused in words, whichever way they come in.

The short form of tests/stress/pictures.py, and what it has found.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import picture
from PIL import Image
from serving import ask, open_datasette, post_picture
from stress import picture_bombs, picture_seeds
from stress.picture_server import ADD, SEARCH
from stress.pictures import (
    Attack,
    embedded,
    mutated,
    throw_bombs,
    throw_mutations,
    throw_polyglots,
    what_came_along,
)

from datasette_image_similarity.errors import ImageError
from datasette_image_similarity.images import UPLOADS, Decoder, Limits, Request
from datasette_image_similarity.web import forms
from datasette_image_similarity.web import service as services
from datasette_image_similarity.web.service import service

# One of each way to cost much; the long form throws all of them, and larger ones.
FEW = [
    "PNG header only",
    "PNG eXIf of itself",
    "PNG XMP entities",
    "JPEG dimensions lie",
    "JPEG frames",
    "GIF wide screen",
    "TIFF a tile of 4 GB",
    "TIFF fax 4",
    "TIFF a short loop",
    "TIFF EXIF of itself",
    "WEBP canvas lies",
    "BMP far over",
    "DDS",
    "PPM far over",
]


@pytest.fixture
def said() -> Any:
    """Where failures are told; there must be none."""
    failures: list[str] = []
    yield failures.append
    assert failures == []


@pytest.fixture
def attack(said: Any) -> Any:
    with Attack(UPLOADS, said) as attack:
        yield attack


def test_damaged_files_of_every_format(attack: Attack) -> None:
    figures = throw_mutations(attack, 300, seed=0)
    assert figures["files"] == 300
    assert figures["formats"] >= 44  # of 43 that Pillow reads, and some that look alike
    assert attack.found.decoded.total() > 20  # damage that nothing survives proves nothing


def test_every_format_that_pillow_reads_has_a_seed() -> None:
    Image.init()
    seeds = picture_seeds.seeds()
    recognised = {picture_seeds.recognised(data) for data in seeds.values()}
    assert set(Image.OPEN) <= recognised | {"HEIF", "AVIF"}
    assert all(mutated(data, random.Random(1), [data]) for data in seeds.values())


def test_files_that_are_two_things(attack: Attack) -> None:
    throw_polyglots(attack)
    assert attack.found.decoded.total() > 50


def test_bombs(attack: Attack) -> None:
    throw_bombs(attack, FEW)


def test_bombs_in_runs_of_embed(
    said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    makers = picture_bombs.bombs()
    embedded(tmp_path, {name: makers[name]() for name in FEW[:5]}, UPLOADS, said)


def test_a_check_that_finds_nothing_would_be_none() -> None:
    """What makes a failure of these programs, does."""
    original = picture_seeds.file_of(
        picture_seeds.photo(), "WEBP", exif=picture_seeds.exif()
    )
    assert "metadata" in str(what_came_along(original))
    jpeg = picture_seeds.file_of(picture_seeds.photo(), "JPEG")
    assert what_came_along(jpeg) is None
    assert "more than pixels" in str(what_came_along(jpeg + b"<html>"))


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in")
def test_postscript_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    for name in ("gs", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {started}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    files = picture_bombs.polyglots()
    with Decoder(UPLOADS) as decoder:
        for name in ("EPS", "EPS, DOS", "PostScript behind a line", "EPS then JPEG"):
            with pytest.raises(ImageError):
                decoder.decode(files[name][0], Request(thumbnail=100))
    assert not started.exists()


def test_an_endless_exif_block_is_passed_over() -> None:
    """16 MB of it, in which each of 60,000 entries claims to be all of the block, would
    take minutes."""
    block = picture_bombs.exif_of_entries(20_000, 4_000_000)
    data = picture_bombs.png((64, 48), before=picture_bombs.chunk(b"eXIf", block))
    with Decoder(Limits(max_bytes=10**8, max_pixels=10**6, seconds=60)) as decoder:
        decoded = decoder.decode(data, Request(thumbnail=100))
    assert (decoded.width, decoded.height, decoded.facts) == (64, 48, {})


# Uploads


def request_of(body: bytes, piece: int = 65_536) -> SimpleNamespace:
    """A POST of a form, as Datasette hands it over."""
    pieces = [body[at : at + piece] for at in range(0, len(body), piece)]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    kind = "multipart/form-data; boundary=x"
    return SimpleNamespace(headers={"content-type": kind}, receive=receive, left=pieces)


def form_of(data: bytes) -> bytes:
    head = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return head + data + b"\r\n--x--\r\n"


async def test_uploads_together_hold_so_much_at_most(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty of 20 MB at once took 1.3 GB: the queue counted what had come in whole."""
    monkeypatch.setattr(services, "HELD_BYTES", 1_000_000)
    site = open_datasette(copied, plugin={"upload_max_bytes": 500_000})
    it = service(site)
    assert (await post_picture(site, SEARCH, picture())).status_code == 200
    it.held = 900_000  # of others
    for path in (SEARCH, ADD):
        refused = await post_picture(site, path, picture() + bytes(200_000), {"id": "root"})
        assert refused.status_code == 429, refused.text
        assert "Try again" in refused.json()["error"]
        assert int(refused.headers["retry-after"]) > 0
        assert it.held == 900_000
    it.held = 0
    assert (await post_picture(site, SEARCH, picture())).status_code == 200
    assert (await post_picture(site, SEARCH, b"no picture")).status_code == 400
    assert it.held == 0


async def test_an_upload_without_room_is_read_to_its_end(copied: Path) -> None:
    site = open_datasette(copied)
    it = service(site)
    config = it.config("gallery", "images")
    request = request_of(form_of(bytes(3_000_000)))
    it.held = 99_000_000
    with it.holding(config) as held, pytest.raises(services.QueueFull):
        await forms.read_form(request, config.upload_max_bytes, held)
    assert request.left == []
    assert it.held == 99_000_000


async def test_an_upload_that_goes_away_gives_back_what_it_held(copied: Path) -> None:
    site = open_datasette(copied)
    it = service(site)
    config = it.config("gallery", "images")
    request = request_of(form_of(bytes(500_000))[:-100_000])
    receive = request.receive

    async def broken() -> dict[str, Any]:
        gone = {"type": "http.disconnect"}
        return await receive() | {"more_body": True} if request.left else gone

    request.receive = broken
    with pytest.raises(forms.BadForm, match="cut off"), it.holding(config) as held:
        await forms.read_form(request, config.upload_max_bytes, held)
    assert it.held == 0


async def test_an_upload_that_never_ends(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(forms, "RECEIVE_SECONDS", 0.2)
    request = request_of(form_of(bytes(1000))[:-20], piece=1)
    receive = request.receive

    async def slow() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return await receive()

    request.receive = slow
    with pytest.raises(forms.UploadTooSlow, match="longer than"):
        await asyncio.wait_for(forms.read_form(request, 10_000), 5)


async def test_a_form_has_so_many_fields_at_most() -> None:
    """The parser of multipart forms limits neither their number nor their length."""
    one = b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n%s\r\n'
    for body, said in (
        (one % b"1" * 201, "more than 200 fields"),
        (one % bytes(400_000) * 3, "too long"),
    ):
        with pytest.raises(forms.BadForm, match=said):
            await forms.read_form(request_of(body + b"--x--\r\n"), 10_000_000)
    form = await forms.read_form(request_of(one % b"1" * 200 + b"--x--\r\n"), 10_000)
    assert form.fields == {"a": "1"}


async def test_a_file_that_is_two_things_is_served_as_pixels_only(gallery: Path) -> None:
    """A picture with a page behind it: what is served is made anew, and no page."""
    site = open_datasette(gallery)
    polyglots = picture_bombs.polyglots()
    for name in ("JPEG then HTML", "GIF then ZIP", "PNG then PHP"):
        added = await post_picture(site, ADD, polyglots[name][0], {"id": "root"})
        assert added.status_code == 201, added.text
        pk = added.json()["pk"]
        for page, kind in (("thumbnail", "image/webp"), ("image", "image/jpeg")):
            shown = await ask(site, f"/gallery/images/-/{page}/{pk}")
            assert shown.headers["content-type"] == kind
            assert shown.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in shown.headers["content-security-policy"]
            assert what_came_along(shown.content) is None
            assert b"<script" not in shown.content
