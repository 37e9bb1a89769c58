"""How many different pictures are called the same, and how many copies are found.

    python benchmarks/duplicates.py --photos FOLDER [--seed 1 --seed 2] [--model hog]

Photos are taken from FOLDER and below; documents and logos are drawn here, from the seed:
letters, forms, tables, sheet music, maps and screenshots of which many share a layout, and
logos of which many share a shape. Of every tenth picture a few copies are planted:
re-encoded, resized, cropped, brightened or several of these at once.

False: pairs of different pictures that are in one group of "the same picture". Found:
copies that are in a group with their original, or with another copy of it.
"""

from __future__ import annotations

import argparse
import random
import string
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, cycle
from pathlib import Path

from common import machine, table
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.collection import EncoderOptions

SUFFIXES = {".jpg", ".jpeg", ".png"}
FONTS = "/usr/share/fonts", "/Library/Fonts", "C:/Windows/Fonts"
KINDS = ("photo", "document", "logo")
COPIED = 10  # one picture in so many gets copies


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--photo-count", type=int, default=300)
    parser.add_argument("--documents", type=int, default=50)
    parser.add_argument("--logos", type=int, default=50)
    parser.add_argument("--seed", type=int, action="append", help="several may be given")
    parser.add_argument("--model", default="hog")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--keep", type=Path, help="leave the pictures in this folder")
    args = parser.parse_args()
    rows = []
    for seed in args.seed or [1]:
        with tempfile.TemporaryDirectory() as made:
            folder = (args.keep or Path(made)) / f"seed{seed}"
            counts = (args.photo_count, args.documents, args.logos)
            put_pictures(folder, args.photos, counts, seed)
            measured = measure(folder, args.model, args.weights)
        rows.append([seed, *measured.cells()])
        print("\n".join(measured.notes), flush=True)
    print(machine("torch") + "\n")
    print(table(["Seed", "False", *(f"Found: {kind}s" for kind in KINDS)], rows))


# Pictures and copies


def put_pictures(
    folder: Path, photos: Path, counts: tuple[int, int, int], seed: int
) -> None:
    """Files `KIND-NUMBER.ext`, and copies of some as `KIND-NUMBER.COPY.ext`."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    found = sorted(one for one in photos.rglob("*") if one.suffix.lower() in SUFFIXES)
    chosen = rng.sample(found, min(counts[0], len(found)))
    pictures = {
        "photo": (Image.open(one).convert("RGB") for one in chosen),
        "document": documents(counts[1], rng),
        "logo": logos(counts[2], rng),
    }
    for kind, images in pictures.items():
        for number, image in enumerate(images):
            name = f"{kind}-{number:04}"
            form = {"quality": 90} if kind == "photo" else {}
            image.save(folder / f"{name}.{'jpg' if form else 'png'}", **form)
            if number % COPIED == 0:
                for what, copy, quality in copies(image, rng):
                    solid(copy).save(folder / f"{name}.{what}.jpg", quality=quality)


def copies(
    image: Image.Image, rng: random.Random
) -> Iterator[tuple[str, Image.Image, int]]:
    """Copies of a picture with their names and the quality to save them in."""
    quality = rng.randint(50, 90)
    scale = rng.uniform(0.25, 1)
    light = rng.uniform(0.9, 1.1)
    yield "encoded", image, 50
    yield "quarter", resized(image, 0.25), 85
    yield "resized", resized(image, scale), quality
    yield "cropped", cropped(image, rng), 90
    yield "lighter", ImageEnhance.Brightness(solid(image)).enhance(1.1), 90
    yield "darker", ImageEnhance.Brightness(solid(image)).enhance(0.9), 90
    several = resized(cropped(image, rng), max(0.5, scale))
    yield (
        "several",
        ImageEnhance.Brightness(solid(several)).enhance(light),
        max(70, quality),
    )


def solid(image: Image.Image) -> Image.Image:
    """In RGB, on white."""
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def resized(image: Image.Image, scale: float) -> Image.Image:
    size = [max(1, round(side * scale)) for side in image.size]
    return image.resize(size, Image.Resampling.LANCZOS)


def cropped(image: Image.Image, rng: random.Random) -> Image.Image:
    """Without up to 5 % of its width and of its height, wherever these are cut off."""
    (width, height), box = image.size, []
    for side in (width, height):
        gone = rng.uniform(0.01, 0.05) * side
        first = rng.uniform(0, gone)
        box += [round(first), round(first + side - gone)]
    left, right, upper, lower = box
    return image.crop((left, upper, right, lower))


# Drawn


def fonts() -> list[Path | None]:
    """Fonts of this machine; None is Pillow's own."""
    found = [one for folder in FONTS for one in sorted(Path(folder).rglob("*.ttf"))]
    return [None, *(one for one in found if "Math" not in one.name)]


def font(path: Path | None, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


def documents(count: int, rng: random.Random) -> Iterator[Image.Image]:
    """Pages of six kinds. Those of one kind share its layout, mostly its font too."""
    layouts = cycle([letter, form, price_list, sheet_music, street_map, screenshot])
    styles: dict[object, Path | None] = {}
    for layout, _ in zip(layouts, range(count), strict=False):
        style = styles.setdefault(layout, rng.choice(fonts()))
        if rng.random() < 0.3:
            style = rng.choice(fonts())
        yield layout(style, rng)


def words(rng: random.Random, count: int) -> str:
    letters = "etaoinshrdlu" * 3 + string.ascii_lowercase
    return " ".join(
        "".join(rng.choices(letters, k=rng.choice((2, 3, 4, 5, 6, 7, 9))))
        for _ in range(count)
    )


def page(size: tuple[int, int] = (827, 1169)) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", size, "white")
    return image, ImageDraw.Draw(image)


def lines(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    type_: object,
    rng: random.Random,
) -> None:
    """Fill a box with lines of words, the last one of each paragraph shorter."""
    left, top, right, bottom = box
    height = round(type_.size * 1.35)
    while top + height < bottom:
        line = words(rng, 1)
        while draw.textlength(f"{line} {(more := words(rng, 1))}", type_) < right - left:
            line = f"{line} {more}"
        if rng.random() < 0.15:
            line, top = line[: len(line) // 2], top + height // 2
        draw.text((left, top), line, "black", type_)
        top += height


def letter(style: Path | None, rng: random.Random) -> Image.Image:
    image, draw = page()
    draw.text((90, 60), "Municipal Archive", "black", font(style, 34))
    draw.line((90, 110, 737, 110), "black", 2)
    draw.text((90, 150), words(rng, 3).title(), "black", font(style, 18))
    draw.text(
        (560, 150),
        f"{rng.randint(1, 28)} May {rng.randint(1980, 2024)}",
        "black",
        font(style, 18),
    )
    lines(draw, (90, 250, 737, rng.choice((950, 1000, 1050))), font(style, 18), rng)
    return image


def form(style: Path | None, rng: random.Random) -> Image.Image:
    image, draw = page()
    draw.text((60, 50), "Application for a permit", "black", font(style, 30))
    for row, label in enumerate(
        ("Name", "Street", "Town", "Born", "Reason", "Number", "Date") * 2
    ):
        top = 130 + 70 * row
        draw.text((60, top), label, "black", font(style, 16))
        draw.rectangle((200, top - 8, 767, top + 34), outline="black", width=2)
        draw.text(
            (212, top), words(rng, rng.randint(1, 4)).title(), "navy", font(style, 20)
        )
    return image


def price_list(style: Path | None, rng: random.Random) -> Image.Image:
    image, draw = page()
    draw.text((60, 50), f"Invoice {rng.randint(1000, 9999)}", "black", font(style, 30))
    for row in range(24):
        top = 130 + 40 * row
        draw.line((60, top - 8, 767, top - 8), "grey", 1)
        draw.text((70, top), words(rng, rng.randint(1, 4)), "black", font(style, 18))
        draw.text((560, top), f"{rng.randint(1, 99)}", "black", font(style, 18))
        draw.text((660, top), f"{rng.uniform(1, 999):.2f}", "black", font(style, 18))
    return image


def sheet_music(style: Path | None, rng: random.Random) -> Image.Image:
    image, draw = page()
    draw.text((300, 40), words(rng, 2).title(), "black", font(style, 30))
    for staff in range(9):
        top = 130 + 112 * staff
        for line in range(5):
            draw.line((70, top + 10 * line, 757, top + 10 * line), "black", 1)
        across = 110
        while across < 740:
            at = top + 5 * rng.randint(-1, 9)
            draw.ellipse((across, at - 5, across + 13, at + 5), "black")
            draw.line((across + 12, at, across + 12, at - 35), "black", 2)
            across += rng.choice((26, 40, 60))
    return image


def street_map(style: Path | None, rng: random.Random) -> Image.Image:
    image, draw = page((900, 700))
    draw.rectangle((0, 0, 900, 700), "#f3efe6")
    for _ in range(rng.randint(12, 18)):
        a, b = rng.randint(0, 900), rng.randint(0, 900)
        draw.line((a, 0, b, 700), rng.choice(("white", "#ffd98a")), rng.choice((6, 10, 16)))
        a, b = rng.randint(0, 700), rng.randint(0, 700)
        draw.line((0, a, 900, b), rng.choice(("white", "#ffd98a")), rng.choice((6, 10, 16)))
    for _ in range(25):
        at = (rng.randint(0, 800), rng.randint(0, 680))
        draw.text(at, words(rng, 1).title(), "#444", font(style, 15))
    return image


def screenshot(style: Path | None, rng: random.Random) -> Image.Image:
    image, draw = page((1280, 800))
    draw.rectangle((0, 0, 1280, 44), "#2b3a55")
    draw.text((20, 8), "Mail   Calendar   Files   Settings", "white", font(style, 22))
    draw.rectangle((0, 44, 240, 800), "#eef1f6")
    for row in range(12):
        draw.text((20, 70 + 40 * row), words(rng, 2).title(), "#223", font(style, 18))
    lines(draw, (270, 70, 1240, 780), font(style, 17), rng)
    return image


def logos(count: int, rng: random.Random) -> Iterator[Image.Image]:
    """Marks of a shape, two colours and one to three letters; no two are alike.

    Many differ in their letters alone. Every second one is transparent around the shape,
    every sixth white on transparency.
    """
    shapes = ("disc", "square", "ring", "shield", "bars")
    colours = ("#c0392b", "#1f618d", "#1e8449", "#222222", "#7d3c98")
    seen: set[object] = set()
    while len(seen) < count:
        number = len(seen)
        white = number % 6 == 1
        shape, style = rng.choice(shapes), rng.choice(fonts())
        text = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, 3)))
        colour = "white" if white else rng.choice(colours)
        if (shape, text, colour) in seen:
            continue
        seen.add((shape, text, colour))
        ground = (0, 0, 0, 0) if white or number % 2 else "white"
        yield logo(shape, text, colour, ground, style, rng.choice((160, 256, 400)))


def logo(
    shape: str, text: str, colour: str, ground: object, style: Path | None, side: int
) -> Image.Image:
    image = Image.new("RGBA", (side, side), ground)
    draw = ImageDraw.Draw(image)
    edge, far, middle = side // 10, side - side // 10, side // 2
    inner = "#00000000" if colour == "white" else "white"
    if shape == "disc":
        draw.ellipse((edge, edge, far, far), colour)
    elif shape == "square":
        draw.rounded_rectangle((edge, edge, far, far), side // 8, colour)
    elif shape == "ring":
        draw.ellipse((edge, edge, far, far), outline=colour, width=side // 14)
        inner = colour
    elif shape == "shield":
        draw.polygon(
            [(edge, edge), (far, edge), (far, middle), (middle, far), (edge, middle)],
            colour,
        )
    else:
        draw.rectangle((edge, edge, far, edge + side // 12), colour)
        draw.rectangle((edge, far - side // 12, far, far), colour)
        inner = colour
    size = round(side * (0.55, 0.42, 0.3)[len(text) - 1])
    draw.text((middle, middle), text, inner, font(style, size), anchor="mm")
    return image


# Measuring


class Measured:
    """What was found in one folder."""

    def __init__(self, groups: list[set[str]], names: list[str]) -> None:
        self.planted: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.notes: list[str] = []
        self.false = 0
        for group in groups:
            for a, b in combinations(sorted(group), 2):
                if original(a) != original(b):
                    self.false += 1
                    self.notes.append(f"false: {a} and {b}")
        for name in names:
            if name.count(".") < 2:
                continue
            kind = name.split("-")[0]
            self.planted[kind] += 1
            mates = next((group for group in groups if name in group), {name})
            if any(original(one) == original(name) for one in mates - {name}):
                self.found[kind] += 1
            else:
                self.notes.append(f"missed: {name}")

    def cells(self) -> list[object]:
        return [self.false, *(f"{self.found[k]} of {self.planted[k]}" for k in KINDS)]


def original(name: str) -> str:
    return name.split(".")[0]


def measure(folder: Path, model: str, weights: Path | None) -> Measured:
    """Embed a folder and look for duplicates in it."""
    encoder = EncoderOptions(model, weights=str(weights) if weights else None)
    with ImageCollection(folder.with_suffix(".db")) as collection:
        collection.embed(folder, encoder=encoder)
        found = collection.duplicates()
        paths = dict(collection.connect().execute("select id, path from images").fetchall())
    groups = [{paths[pk] for pk in group.scores} for group in found.of_tier("same")]
    return Measured(groups, sorted(paths.values()))


if __name__ == "__main__":
    main()
