"""Pictures that show nothing are recognised, others never taken for them."""

import io

import numpy as np
import pytest
from conftest import PHOTOS
from PIL import Image, ImageDraw

from datasette_image_similarity.flat import is_flat

SIZE = (700, 900)


def paper(level=245):
    return np.full((*SIZE[::-1], 3), float(level))


def noise(level, amount):
    return paper(level) + np.random.default_rng(1).normal(0, amount, paper().shape)


def lit(level=245, falls_by=20):
    y, x = np.mgrid[0 : 1 : SIZE[1] * 1j, 0 : 1 : SIZE[0] * 1j]
    return paper(level) - falls_by * ((x - 0.4) ** 2 + (y - 0.5) ** 2)[..., None] * 1.5


def as_jpeg(values, quality):
    image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(out)


def squares(image):
    for side in (32, 224):
        small = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        yield np.asarray(small)


@pytest.mark.parametrize("quality", [95, 50, 20])
@pytest.mark.parametrize(
    "values",
    [
        *(paper(level) for level in (0, 17, 128, 255)),
        paper() * (0.2, 0.9, 0.1),
        noise(240, 10),
        noise(0, 25),
        lit(),
        lit(120, -20) + noise(0, 6),
    ],
)
def test_one_colour_noise_and_faint_light_are_flat(values, quality):
    assert all(map(is_flat, squares(as_jpeg(values, quality))))


def drawn(draw):
    image = Image.fromarray(paper().astype(np.uint8))
    draw(ImageDraw.Draw(image))
    return image


@pytest.mark.parametrize(
    "draw",
    [
        lambda on: on.text((300, 400), "Page 12", "black", font_size=14),
        lambda on: on.ellipse((300, 400, 340, 440), (200, 200, 255)),
        lambda on: on.rectangle((0, 0, 700, 450), (225, 225, 225)),
        lambda on: on.line((100, 100, 600, 800), "black", width=3),
    ],
)
def test_little_is_enough_not_to_be_flat(draw):
    assert not any(map(is_flat, squares(drawn(draw))))


def test_strong_gradients_are_not_flat():
    assert not any(map(is_flat, squares(as_jpeg(lit(falls_by=120), 90))))


def test_grey_pixels_of_an_odd_size():
    assert is_flat(np.full((17, 33), 90, np.uint8))
    assert not is_flat(np.tile(np.arange(33, dtype=np.uint8) * 7, (17, 1)))


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photos here")
def test_photos_are_not_flat():
    for path in sorted(PHOTOS.glob("*/*/*.jpg"))[::40]:
        assert not any(map(is_flat, squares(Image.open(path)))), path
