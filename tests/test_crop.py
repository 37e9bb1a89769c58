"""Searching with a part of a picture: cut out of the original, upright, and embedded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from core import HOG, answer, command, sql
from PIL import ExifTags, Image
from serving import ask, ask_json, change, open_datasette, parameters, pks

from datasette_image_similarity import ImageCollection, trust
from datasette_image_similarity.errors import ImageError
from datasette_image_similarity.images import UPLOADS, Crop, Decoder, Input, Request

SIMILAR = "/gallery/images/-/similar"
RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 160, 60), (40, 60, 200), (230, 210, 40)
TURNED_BACK = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(UPLOADS) as decoder:
        yield decoder


def quarters(size: tuple[int, int]) -> Image.Image:
    """Red, green; blue, yellow."""
    image = Image.new("RGB", (2, 2))
    image.putdata([RED, GREEN, BLUE, YELLOW])
    return image.resize(size, Image.Resampling.NEAREST)


def stored(image: Image.Image, format: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turn = TURNED_BACK[orientation]
    out = io.BytesIO()
    turned = image if turn is None else image.transpose(turn)
    turned.save(out, format, exif=exif, quality=95)
    return out.getvalue()


@pytest.mark.parametrize("orientation", TURNED_BACK)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_a_crop_is_of_the_upright_picture(
    decoder: Decoder, format: str, orientation: int, fit: str
) -> None:
    data = stored(quarters((600, 400)), format, orientation)
    places = {RED: (0, 0), GREEN: (0.5, 0), BLUE: (0, 0.5), YELLOW: (0.5, 0.5)}
    for colour, (x, y) in places.items():
        request = Request(
            input=Input(size=32, resize=36, fit=fit),
            thumbnail=100,
            crop=Crop(x + 0.05, y + 0.05, 0.4, 0.3),
        )
        found = decoder.decode(data, request)
        assert (found.width, found.height) == (240, 120)
        middle = found.pixels[12:20, 4:28]
        assert np.abs(middle.astype(int) - colour).max() < 25
        assert Image.open(io.BytesIO(found.thumbnail)).size == (100, 50)


def test_a_crop_of_a_big_jpeg_is_as_sharp_as_one_cut_out_before(decoder: Decoder) -> None:
    chance = np.random.default_rng(1)
    small = chance.integers(0, 255, (60, 80, 3)).astype("u1")
    big = Image.fromarray(small).resize((3200, 2400), Image.Resampling.BICUBIC)
    request = Request(input=Input(size=224))
    out = io.BytesIO()
    big.crop((800, 600, 1120, 840)).save(out, "PNG")
    cut_before = decoder.decode(out.getvalue(), request).pixels.astype(int)
    cropped = Request(input=Input(size=224), crop=Crop(0.25, 0.25, 0.1, 0.1))
    for orientation in (1, 6):
        data = stored(big, "JPEG", orientation)
        found = decoder.decode(data, cropped).pixels.astype(int)
        assert np.abs(found - cut_before).mean() < 3


def test_the_whole_picture_as_a_crop_changes_nothing(decoder: Decoder) -> None:
    data = stored(Image.open(io.BytesIO(picture())), "JPEG", 6)
    for request in (Request(input=Input(size=64)), Request(thumbnail=40)):
        whole = Request(request.input, request.thumbnail, crop=Crop(0, 0, 1, 1))
        one, other = decoder.decode(data, request), decoder.decode(data, whole)
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one.thumbnail == other.thumbnail


def test_a_crop_has_a_pixel_at_least(decoder: Decoder) -> None:
    for crop in (Crop(0, 0, 1e-9, 1e-9), Crop(0.9999999, 0.9999999, 1e-7, 1e-7)):
        for size in ((600, 400), (1, 1)):
            data = stored(quarters(size), "PNG")
            found = decoder.decode(data, Request(input=Input(size=8), crop=crop))
            assert (found.width, found.height) == (1, 1)


@pytest.mark.parametrize(
    "text", ["", "1", "0,0,1", "a,0,1,1", "0,0,0,1", "0,0,1.1,1", "1,0,.1,1", "0,inf,1,1"]
)
def test_what_is_no_crop(text: str) -> None:
    with pytest.raises(ImageError, match="crop"):
        Crop.parse(text)


def test_fractions_that_do_not_quite_add_up() -> None:
    crop = Crop.parse("0.3,0.7,0.7000001,0.3")
    assert crop.x + crop.width <= 1
    assert str(crop) == "0.3,0.7,0.7,0.3"


# In a collection


@pytest.fixture
def collage(tmp_path: Path) -> Path:
    """The gallery of red, green and blue, and a picture half red, half blue (row 25)."""
    from conftest import make_photos

    photos = make_photos(tmp_path / "photos")
    both = Image.new("RGB", (160, 60))
    for left, colour in ((0, "red"), (80, "blue")):
        both.paste(Image.open(io.BytesIO(picture(colour, 3))), (left, 0))
    (photos / "zzz").mkdir()
    both.save(photos / "zzz" / "zzz.png")
    path = tmp_path / "gallery.db"
    with ImageCollection(path) as collection:
        collection.embed(photos, encoder=HOG, label_from_folder=True)
    return path


LEFT, RIGHT = Crop(0, 0, 0.5, 1), Crop(0.5, 0, 0.5, 1)


def test_python_and_the_command_line(collage: Path, tmp_path: Path) -> None:
    with ImageCollection(collage) as collection, warnings.catch_warnings():
        warnings.simplefilter("error")
        for crop, name in ((LEFT, "red-3.png"), (RIGHT, "blue-3.png")):
            hits = collection.similar(25, 3, crop=crop)
            assert hits[0].row["name"] == name
            assert hits[0].score > 0.999
            assert 25 not in [hit.pk for hit in hits]
            found = answer("similar", collage, "images", "25", f"--crop={crop}", "-k", 3)
            assert [hit["pk"] for hit in found] == [str(hit.pk) for hit in hits]
            file = tmp_path / "photos" / "zzz" / "zzz.png"
            found = answer("search", collage, file, f"--crop={crop}", "-k", 1)
            assert found[0]["row"]["name"] == name


def test_without_the_file_it_is_of_the_thumbnail_and_that_is_said(collage: Path) -> None:
    (collage.parent / "photos" / "zzz" / "zzz.png").unlink()
    with ImageCollection(collage) as collection:
        with pytest.warns(UserWarning, match="of the stored thumbnail"):
            hits = collection.similar(25, 1, crop=LEFT)
        assert hits[0].row["label"] == "red"
    result = command("similar", collage, "images", "25", "--crop", "0,0,.5,1", "-k", 1)
    assert result.exit_code == 0
    assert "The crop is of the stored thumbnail" in result.stderr
    sql(collage, "delete from _image_similarity_thumbnails")
    with ImageCollection(collage) as collection, pytest.raises(ImageError, match="file"):
        collection.similar(25, crop=LEFT)


async def test_on_the_page(collage: Path) -> None:
    site = open_datasette(collage)
    for crop, name in ((LEFT, "red-3.png"), (RIGHT, "blue-3.png")):
        found = await ask_json(site, f"{SIMILAR}.json?_like=25&_crop={crop}")
        assert found["query"]["crop"] == str(crop)
        assert found["rows"][0]["row"]["name"] == name
        assert found["rows"][0]["score"] > 0.999
        assert "25" not in pks(found)
    page = await ask(site, f"{SIMILAR}?_like=25&_crop={LEFT}&_size=5")
    assert "a part of this picture" in page.text
    assert "small copy" not in page.text
    assert "View as SQL" not in page.text
    # It goes on with the next page, and goes with the picture.
    assert "_crop=0%2C0%2C0.5%2C1&amp;_next=5" in page.text.replace("&amp;_size=5", "")
    page = await ask(site, f"{SIMILAR}?_like=25&_like=1&_crop={LEFT}")
    dropped = [link for link in page.text.split('"') if link.endswith("similar?_like=1")]
    assert dropped
    svg = await ask(site, f"{SIMILAR}.svg?_like=25&_crop={LEFT}")
    assert svg.status_code == 200


async def test_the_form_without_scripts(collage: Path) -> None:
    site = open_datasette(collage)
    page = await ask(site, f"{SIMILAR}?_like=25&_crop={LEFT}")
    assert 'name="_crop_width"' in page.text
    fields = "_crop_left=50&_crop_top=0&_crop_width=50&_crop_height=100"
    sent = await ask(site, f"{SIMILAR}?_like=25&label__not=x&{fields}")
    assert sent.status_code == 302
    found = parameters(sent.headers["location"])
    assert sorted(found) == [
        ("_crop", "0.5,0,0.5,1"),
        ("_like", "25"),
        ("label__not", "x"),
    ]


async def test_where_the_original_may_not_be_read(
    collage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "trusted_roots", lambda _: [])
    site = open_datasette(collage)
    page = await ask(site, f"{SIMILAR}?_like=25&_crop={LEFT}")
    assert page.status_code == 200
    assert "small copy" in page.text
    found = await ask_json(site, f"{SIMILAR}.json?_like=25&_crop={LEFT}")
    assert found["rows"][0]["row"]["label"] == "red"
    change(collage, "delete from _image_similarity_thumbnails")
    found = await ask(site, f"{SIMILAR}.json?_like=25&_crop={LEFT}")
    assert found.status_code == 400
    assert "cannot be read here" in found.json()["error"]


async def test_thumbnails_that_are_no_pictures(
    collage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "trusted_roots", lambda _: [])
    change(collage, "update _image_similarity_thumbnails set webp = x'00ff00'")
    found = await ask(open_datasette(collage), f"{SIMILAR}.json?_like=25&_crop={LEFT}")
    assert found.status_code == 400
    assert found.json()["ok"] is False


async def test_pictures_in_a_blob_column(tmp_path: Path) -> None:
    path = tmp_path / "gallery.db"
    rows = [{"id": n, "raw": picture(c, n)} for n, c in enumerate(("red", "blue", "green"))]
    with ImageCollection(path) as collection:
        collection.embed(rows, blob_column="raw", encoder=HOG)
        assert len(collection.similar(0, crop=LEFT)) == 2
        assert [h.pk for h in collection.similar(0, one_per="id")] == [
            h.pk for h in collection.similar(0)
        ]
    site = open_datasette(path)
    found = await ask_json(site, f"{SIMILAR}.json?_like=0&_crop={LEFT}")
    assert len(found["rows"]) == 2
    refused = await ask(site, f"{SIMILAR}.json?_like=0&_one_per=raw")
    assert refused.status_code == 400


async def test_where_uploads_are_switched_off_so_are_crops(collage: Path) -> None:
    site = open_datasette(collage, plugin={"search_by_image": False})
    found = await ask(site, f"{SIMILAR}.json?_like=25&_crop={LEFT}")
    assert found.status_code == 403
    page = await ask(site, f"{SIMILAR}?_like=25")
    assert "_crop_left" not in page.text


async def test_an_encoder_that_is_not_here_is_told(collage: Path) -> None:
    change(
        collage,
        "update _image_similarity_collections set encoder = "
        "replace(encoder, '\"hog\"', '\"resnet50\"')",
    )
    found = await ask(open_datasette(collage), f"{SIMILAR}.json?_like=25&_crop={LEFT}")
    assert found.status_code in (400, 503)
    assert found.json()["error"]
