"""The pictures themselves: headers, rotation, and which files may be shown."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from conftest import COLOURS, picture
from datasette.app import Datasette
from PIL import Image
from serving import PLUGIN, ask, change, open_datasette

from datasette_image_similarity.collection import EncoderOptions, ImageCollection

THUMBNAIL = "/gallery/images/-/thumbnail"
IMAGE = "/gallery/images/-/image"
HOG = EncoderOptions("hog")


@pytest.fixture
def site(gallery: Path) -> Datasette:
    return open_datasette(gallery)


@pytest.fixture
def no_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Datasette of another user: nothing has been noted for it."""
    monkeypatch.setattr("datasette_image_similarity.trust.trusted_roots", lambda _: [])


def opened(response: object) -> Image.Image:
    assert response.status_code == 200
    return Image.open(io.BytesIO(response.content))


def mean_colour(image: Image.Image) -> tuple[int, ...]:
    return image.convert("RGB").resize((1, 1)).getpixel((0, 0))


async def test_thumbnail_and_image(site: Datasette) -> None:
    small = await ask(site, f"{THUMBNAIL}/1")
    assert small.headers["content-type"] == "image/webp"
    assert opened(small).size == (80, 60)
    assert opened(small).format == "WEBP"
    large = await ask(site, f"{IMAGE}/1")
    assert large.headers["content-type"] == "image/jpeg"
    assert opened(large).size == (80, 60)
    assert opened(large).format == "JPEG"


async def test_headers(site: Datasette) -> None:
    tags = set()
    for url in (f"{THUMBNAIL}/1", f"{THUMBNAIL}/2", f"{IMAGE}/1"):
        response = await ask(site, url)
        tag = response.headers["etag"]
        tags.add(tag)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        # A shared cache must not hand a private picture to somebody else.
        assert "private" in response.headers["cache-control"]
        assert "max-age=" in response.headers["cache-control"]
        for sent in (tag, f'"other", {tag}', f"W/{tag}"):
            again = await ask(site, url, headers={"if-none-match": sent})
            assert again.status_code == 304, sent
            assert again.content == b""
            assert again.headers["etag"] == tag
        other = await ask(site, url, headers={"if-none-match": '"other"'})
        assert other.status_code == 200
    assert len(tags) == 3


async def test_what_a_denied_actor_knows_is_no_304(gallery: Path, site: Datasette) -> None:
    tag = (await ask(site, f"{THUMBNAIL}/1")).headers["etag"]
    private = {"databases": {"gallery": {"allow": False}}}
    closed = open_datasette(gallery, config=private)
    response = await ask(closed, f"{THUMBNAIL}/1", headers={"if-none-match": tag})
    assert response.status_code == 403


async def test_a_changed_picture_has_another_tag(gallery: Path, photos: Path) -> None:
    site = open_datasette(gallery)
    before = (await ask(site, f"{THUMBNAIL}/1")).headers["etag"]
    (photos / "blue" / "blue-0.png").write_bytes(picture("red", 77, (90, 90)))
    with ImageCollection(gallery) as collection:
        collection.embed()
    response = await ask(site, f"{THUMBNAIL}/1", headers={"if-none-match": before})
    assert opened(response).size == (90, 90)


async def test_the_thumbnail_in_its_place_is_not_taken_for_the_picture(
    site: Datasette, photos: Path
) -> None:
    url, file = f"{IMAGE}/1", photos / "blue" / "blue-0.png"
    whole = await ask(site, url)
    file.rename(file.with_suffix(".away"))
    substitute = await ask(site, url, headers={"if-none-match": '"other"'})
    assert opened(substitute).format == "WEBP"
    tags = [one.headers["etag"] for one in (whole, substitute)]
    assert len(set(tags)) == 2
    assert substitute.headers["cache-control"] == "private, no-cache"
    known = await ask(site, url, headers={"if-none-match": tags[1]})
    assert known.status_code == 304
    assert known.headers["cache-control"] == "private, no-cache"
    changed = await ask(site, url, headers={"if-none-match": tags[0]})
    assert opened(changed).format == "WEBP"

    file.with_suffix(".away").rename(file)
    for method in ("GET", "HEAD"):
        back = await ask(site, url, method=method, headers={"if-none-match": tags[1]})
        assert back.status_code == 200
        assert back.headers["content-type"] == "image/jpeg"
        assert back.headers["etag"] == tags[0]
        assert "max-age=" in back.headers["cache-control"]


async def test_a_tag_is_of_the_bytes_that_were_sent(tmp_path: Path, photos: Path) -> None:
    """A file may change before the next embed notes its hash."""
    path = tmp_path / "gallery.db"
    with ImageCollection(path) as collection:
        collection.embed(photos, encoder=HOG, thumbnails=False)
    site = open_datasette(path)
    urls = (f"{IMAGE}/1", f"{THUMBNAIL}/1")
    tags = [(await ask(site, url)).headers["etag"] for url in urls]
    (photos / "blue" / "blue-0.png").write_bytes(picture("red", 77, (50, 40)))
    for url, tag in zip(urls, tags, strict=True):
        response = await ask(site, url, headers={"if-none-match": tag})
        assert opened(response).size == (50, 40)


async def test_exif_rotation_is_applied_once(tmp_path: Path) -> None:
    folder = tmp_path / "turned"
    folder.mkdir()
    image = Image.new("RGB", (200, 100), COLOURS["red"])
    image.paste(COLOURS["blue"], (100, 0, 200, 100))  # red | blue
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: red on top
    image.save(folder / "a.jpg", exif=exif)
    path = tmp_path / "gallery.db"
    with ImageCollection(path) as collection:
        collection.embed(folder, encoder=HOG)
    site = open_datasette(path)
    for url in (f"{THUMBNAIL}/1", f"{IMAGE}/1"):
        shown = opened(await ask(site, url))
        assert shown.size == (100, 200)
        assert not shown.getexif().get(0x0112)
        top, bottom = shown.crop((0, 0, 100, 90)), shown.crop((0, 110, 100, 200))
        assert mean_colour(top)[0] > 150 > mean_colour(bottom)[0]


async def test_big_pictures_are_shown_smaller(tmp_path: Path) -> None:
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(size=(4000, 1000)))
    path = tmp_path / "gallery.db"
    with ImageCollection(path) as collection:
        collection.embed(folder, encoder=HOG)
    site = open_datasette(path)
    assert opened(await ask(site, f"{THUMBNAIL}/1")).size == (320, 80)
    assert opened(await ask(site, f"{IMAGE}/1")).size == (1600, 400)


async def test_without_trust_the_stored_thumbnail_is_shown(
    site: Datasette, no_trust: None
) -> None:
    response = await ask(site, f"{IMAGE}/1")
    assert opened(response).format == "WEBP"
    assert response.headers["content-type"] == "image/webp"


async def test_a_configured_root_is_trusted(
    gallery: Path, photos: Path, no_trust: None
) -> None:
    for config in (
        {"plugins": {PLUGIN: {"roots": [str(photos)]}}},
        {"databases": {"gallery": {"plugins": {PLUGIN: {"roots": [str(photos)]}}}}},
    ):
        site = open_datasette(gallery, config=config)
        assert opened(await ask(site, f"{IMAGE}/1")).format == "JPEG"


async def test_a_file_that_is_gone_leaves_the_thumbnail(
    site: Datasette, photos: Path
) -> None:
    (photos / "blue" / "blue-0.png").unlink()
    assert opened(await ask(site, f"{IMAGE}/1")).format == "WEBP"
    (photos / "blue" / "blue-1.png").write_bytes(b"no picture any more")
    assert opened(await ask(site, f"{IMAGE}/2")).format == "WEBP"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir()
    file = folder / "secret.png"
    file.write_bytes(picture("green", 1, (33, 44)))
    return file


def plant(gallery: Path, root: str, path: str) -> None:
    """What a stranger could write into a database before giving it away."""
    change(
        gallery,
        f"update _image_similarity_roots set path = '{root}'",
        f"update _image_similarity_items set path = '{path}' where id = 1",
        f"update images set path = '{path}' where id = 1",
    )


async def never_shows(gallery: Path, **options: object) -> None:
    site = open_datasette(gallery, **options)
    for url in (f"{IMAGE}/1", f"{THUMBNAIL}/1"):
        response = await ask(site, url)
        if response.status_code == 200:
            assert opened(response).size != (33, 44), url
        else:
            assert response.status_code == 404


@pytest.mark.parametrize("root", ["/", "..", "", "{folder}"])
async def test_a_planted_root_opens_nothing(gallery: Path, secret: Path, root: str) -> None:
    plant(gallery, root.format(folder=secret.parent), str(secret))
    await never_shows(gallery)
    plant(gallery, root.format(folder=secret.parent), secret.name)
    await never_shows(gallery)
    # Nor where there is no thumbnail to fall back to.
    change(gallery, "delete from _image_similarity_thumbnails")
    await never_shows(gallery)


async def test_a_planted_path_does_not_leave_the_root(
    gallery: Path, photos: Path, secret: Path
) -> None:
    plugin = {"roots": [str(photos)]}
    change(gallery, "delete from _image_similarity_thumbnails")
    (photos / "link.png").symlink_to(secret)
    (photos / "linked").symlink_to(secret.parent)
    for path in (
        str(secret),
        "../private/secret.png",
        "red/../../private/secret.png",
        "link.png",
        "linked/secret.png",
        "..\\private\\secret.png",
        f"file://{secret}",
        "/dev/zero",
        "/proc/self/environ",
        ".",
        "",
    ):
        plant(gallery, str(photos), path)
        await never_shows(gallery, plugin=plugin)


async def test_a_pipe_does_not_hang_the_server(gallery: Path, photos: Path) -> None:
    os.mkfifo(photos / "pipe.png")
    plant(gallery, str(photos), "pipe.png")
    await never_shows(gallery, plugin={"roots": [str(photos)]})


async def test_thumbnails_are_made_on_demand(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gallery.db"
    with ImageCollection(path) as collection:
        collection.embed(photos, encoder=HOG, thumbnails=False)
    site = open_datasette(path)
    response = await ask(site, f"{THUMBNAIL}/1")
    assert opened(response).format == "WEBP"
    assert response.headers["content-type"] == "image/webp"
    large = await ask(site, f"{IMAGE}/1")
    assert large.headers["content-type"] == "image/jpeg"
    monkeypatch.setattr("datasette_image_similarity.trust.trusted_roots", lambda _: [])
    for url in (f"{THUMBNAIL}/1", f"{IMAGE}/1"):
        response = await ask(site, url)
        assert response.status_code == 404
        assert "cannot be read here" in response.text


async def test_a_picture_in_a_blob_needs_no_root(tmp_path: Path, no_trust: None) -> None:
    rows = [{"id": n, "content": picture("red", n)} for n in (1, 2)]
    path = tmp_path / "gallery.db"
    with ImageCollection(path) as collection:
        collection.embed(rows, blob_column="content", encoder=HOG, thumbnails=False)
    site = open_datasette(path)
    assert opened(await ask(site, f"{THUMBNAIL}/1")).size == (80, 60)
    assert opened(await ask(site, f"{IMAGE}/2")).format == "JPEG"
    change(path, "update images set content = x'00' where id = 1")
    assert (await ask(site, f"{IMAGE}/1")).status_code == 404


async def test_many_pictures_at_once(tmp_path: Path, photos: Path) -> None:
    """More requests than children: everybody waits their turn and is answered."""
    import asyncio

    path = tmp_path / "gallery.db"
    with ImageCollection(path) as collection:
        collection.embed(photos, encoder=HOG, thumbnails=False)
    site = open_datasette(path)
    pages = [ask(site, f"{THUMBNAIL}/{n % 24 + 1}") for n in range(60)]
    assert {r.status_code for r in await asyncio.gather(*pages)} == {200}
