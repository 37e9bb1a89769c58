"""Paint the demo gallery: about 400 small pictures of 20 kinds, and a CSV of them.

    python demo/gallery.py OUT_DIR

Every picture is drawn from scratch with Pillow and numpy, each from its own seed, so
that two runs with the same Pillow give the same pixels. Some of the pictures are
near-duplicates of others (cropped, mirrored, tinted, resized, re-encoded), as in any
real collection; the ``note`` column of ``gallery.csv`` says which.

The file goes from the general to the particular: colours, shapes, the canvas, a painter
for each kind, then the catalogue (titles, years, artists) and the writing of files.
Shapes are lists of points, or texts such as "0 -50 50 50 -50 50": the corners, in
hundredths, that a smooth curve passes through.
"""

from __future__ import annotations

import argparse
import copy
import csv
import functools
import hashlib
import itertools
import math
import os
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

Colour = tuple[int, int, int]
Point = tuple[float, float]
Points = list[Point]

SCALE = 3  # pictures are drawn this many times larger, then reduced
PER_KIND = 18
COPY_COUNT = 35
COLUMNS = ("file", "title", "kind", "year", "colour", "artist", "note")

# ---------------------------------------------------------------- colours


def rgb(text: str) -> Colour:
    """A colour from six hexadecimal digits."""
    return int(text[:2], 16), int(text[2:4], 16), int(text[4:], 16)


def rgbs(text: str) -> list[Colour]:
    """Colours from hexadecimal words."""
    return [rgb(word) for word in text.split()]


def palettes(text: str) -> list[list[Colour]]:
    """Colours from hexadecimal words, a palette to a line."""
    return [rgbs(line) for line in text.strip().splitlines()]


def lch(light: float, chroma: float, hue: float) -> Colour:
    """A colour by OKLCH lightness (0-1), chroma (0-0.3) and hue (degrees)."""
    a = chroma * math.cos(math.radians(hue))
    b = chroma * math.sin(math.radians(hue))
    x = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    y = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    z = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * x - 3.3077115913 * y + 0.2309699292 * z
    green = -1.2684380046 * x + 2.6097574011 * y - 0.3413193965 * z
    blue = -0.0041960863 * x - 0.7034186147 * y + 1.7076147010 * z

    def coded(v: float) -> int:
        return round(255 * min(1, 1.055 * max(v, 0.0031308) ** (1 / 2.4) - 0.055))

    return coded(red), coded(green), coded(blue)


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """The colour a share ``t`` of the way from ``a`` to ``b``."""
    red, green, blue = (round(p + (q - p) * t) for p, q in zip(a, b, strict=True))
    return red, green, blue


WHITE, INK, CREAM = rgbs("ffffff 23202b f6efe0")


def lit(colour: Colour, t: float = 0.25) -> Colour:
    return mix(colour, rgb("fff8ea"), t)


def dim(colour: Colour, t: float = 0.25) -> Colour:
    return mix(colour, rgb("140c20"), t)


@dataclass(frozen=True)
class Grad:
    """A gradient over a shape's bounding box, in shares of its width and height.

    Linear from ``a`` to ``b``; or, where ``radius`` is set, round about ``a``.
    """

    stops: tuple[Colour, ...]
    a: Point = (0.0, 0.0)
    b: Point = (0.0, 1.0)
    radius: float = 0.0

    def image(self, width: int, height: int) -> Image.Image:
        w, h = min(width, 240), min(height, 240)
        x = ((np.arange(w) + 0.5) / w - self.a[0])[None, :]
        y = ((np.arange(h) + 0.5) / h - self.a[1])[:, None]
        if self.radius:
            t = np.hypot(x, y) / self.radius
        else:
            dx, dy = self.b[0] - self.a[0], self.b[1] - self.a[1]
            t = (x * dx + y * dy) / (dx * dx + dy * dy)
        at = np.linspace(0, 1, len(self.stops))
        bands = [np.interp(t, at, [s[k] for s in self.stops]) for k in range(3)]
        small = Image.fromarray(np.stack(bands, -1).round().astype(np.uint8))
        return small.resize((width, height), Image.Resampling.BILINEAR)


Fill = Colour | Grad


def down(*stops: Colour) -> Grad:
    return Grad(stops)


def across(*stops: Colour) -> Grad:
    return Grad(stops, b=(1.0, 0.0))


def slant(*stops: Colour) -> Grad:
    return Grad(stops, b=(1.0, 1.0))


def radial(*stops: Colour, at: Point = (0.35, 0.3), r: float = 0.85) -> Grad:
    return Grad(stops, at, radius=r)


def ball(colour: Colour) -> Grad:
    """Light from the upper left on something round."""
    return radial(lit(colour, 0.5), colour, colour, dim(colour, 0.45))


def sheen(colour: Colour, t: float = 0.25) -> Grad:
    """Light from the upper left on something flat."""
    return slant(lit(colour, t), colour, dim(colour, t))


def fade(colour: Colour, t: float = 0.2) -> Grad:
    """Light from above."""
    return down(lit(colour, t), colour, dim(colour, t))


def tube(colour: Colour, t: float = 0.3) -> Grad:
    """Light from the left on something upright."""
    return across(lit(colour, t), colour, dim(colour, t))


# ---------------------------------------------------------------- shapes


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> Points:
    """Points along an ellipse, from one angle to another (degrees, clockwise)."""
    ring = [math.radians(start + (end - start) * k / 36) for k in range(37)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in ring]


def oval(x: float, y: float, rx: float, ry: float = 0.0, turn: float = 0.0) -> Points:
    return place(arc(0, 0, rx, ry or rx, 0, 360), x, y, turn=turn)


def box(x0: float, y0: float, x1: float, y1: float, r: float = 0.0) -> Points:
    """A rectangle, with round corners where ``r`` is given."""
    if not r:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    left, right, top, foot = x0 + r, x1 - r, y0 + r, y1 - r
    upper = arc(left, top, r, r, 180, 270) + arc(right, top, r, r, 270, 360)
    return upper + arc(right, foot, r, r, 0, 90) + arc(left, foot, r, r, 90, 180)


def smooth(points: Sequence[Point], closed: bool = True, steps: int = 10) -> Points:
    """A Catmull-Rom curve through the points."""
    p = list(points)
    p = [p[-1], *p, p[0], p[1]] if closed else [p[0], *p, p[-1]]
    knots = np.array(p, float)
    a, b, c, d = (knots[k : len(p) - 3 + k, None] for k in range(4))
    t = (np.arange(steps) / steps)[None, :, None]
    bend = (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    path = (b + ((c - a) * t + bend) / 2).reshape(-1, 2)
    out = [(float(x), float(y)) for x, y in path]
    return out if closed else [*out, p[-2]]


@functools.cache
def curve(text: str, closed: bool = True, steps: int = 10) -> Points:
    """A smooth curve through points given as hundredths: "x y x y ..."."""
    n = [int(word) / 100 for word in text.split()]
    return smooth(list(zip(n[::2], n[1::2], strict=True)), closed, steps)


def ribbon(points: Sequence[Point], *widths: float) -> Points:
    """A band along a path, its width passing evenly through the widths given."""
    path = np.array(points, float)
    along = np.gradient(path, axis=0)
    along /= np.maximum(np.hypot(*along.T), 1e-9)[:, None]
    at = np.linspace(0, 1, len(path))
    half = np.interp(at, np.linspace(0, 1, len(widths)), widths)[:, None] / 2
    side = np.stack((-along[:, 1], along[:, 0]), 1) * half
    edge = np.concatenate((path + side, (path - side)[::-1]))
    return [(float(x), float(y)) for x, y in edge]


def place(
    shape: Sequence[Point], x: float, y: float, s: float = 1.0, turn: float = 0.0
) -> Points:
    """A shape about the origin, sized, turned (degrees) and put at a place."""
    cos, sin = s * math.cos(math.radians(turn)), s * math.sin(math.radians(turn))
    return [(x + px * cos - py * sin, y + px * sin + py * cos) for px, py in shape]


def ridge(rng: random.Random, rough: float = 0.5, levels: int = 7) -> list[float]:
    """Heights of about -1 to 1 along a mountain ridge, by midpoint displacement."""
    heights, step = [rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)], 0.7
    for _ in range(levels):
        out = heights[:1]
        for a, b in itertools.pairwise(heights):
            out += [(a + b) / 2 + rng.uniform(-step, step), b]
        heights, step = out, step * rough
    return heights


def noise(
    rng: random.Random, w: int, h: int, cell: float, octaves: int = 4, long: float = 1.0
) -> np.ndarray:
    """Soft noise from 0 to 1, with features about ``cell`` pixels across."""
    source, total = np.random.default_rng(rng.getrandbits(32)), np.float32(0)
    for k in range(octaves):
        size = max(cell / 2**k, 1.0)
        grid = source.random((int(h / size) + 2, int(w / size / long) + 2), np.float32)
        layer = Image.fromarray(grid).resize((w, h), Image.Resampling.BICUBIC)
        total = total + np.asarray(layer) / 2**k
    return (total - total.min()) / (total.max() - total.min())


# ---------------------------------------------------------------- the canvas


class Canvas:
    """A picture being painted, seen in some frame.

    In the first frame, lengths are pixels of the finished picture; ``at`` gives the
    same canvas in a frame of its own, for drawing a thing about its origin.
    """

    def __init__(
        self, w: int, h: int, rng: random.Random, index: int = 0, subject: str = ""
    ) -> None:
        self.w, self.h, self.rng, self.index, self.subject = w, h, rng, index, subject
        self.u = float(min(w, h))  # what most painters size things by
        self.hue = (index * 137.508 + rng.uniform(-12, 12)) % 360
        self.img = Image.new("RGB", (w * SCALE, h * SCALE))
        self.draw = ImageDraw.Draw(self.img)
        self.x, self.y, self.s, self.turn, self.flip = 0.0, 0.0, 1.0, 0.0, False

    def at(
        self, x: float, y: float, s: float, turn: float = 0.0, flip: bool = False
    ) -> Canvas:
        frame = copy.copy(self)
        frame.x, frame.y = self.seen([(x, y)])[0]
        frame.s, frame.flip = self.s * s, self.flip != flip
        frame.turn = turn + (-self.turn if flip else self.turn)
        return frame

    def seen(self, shape: str | Sequence[Point]) -> Points:
        """A shape of this frame, in pixels."""
        points = curve(shape) if isinstance(shape, str) else shape
        points = place(points, 0, 0, self.s, self.turn)
        side = -1 if self.flip else 1
        return [(self.x + side * px, self.y + py) for px, py in points]

    # Chance

    def r(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    def odds(self, p: float) -> bool:
        return self.rng.random() < p

    def spot(self, top: float = 0.0, foot: float = 1.0) -> Point:
        """Some place on the picture, between two shares of its height."""
        return self.w * self.r(0, 1), self.h * self.r(top, foot)

    def turns(self, options: Sequence[list[Colour]]) -> list[Colour]:
        """One palette of several, so that each is used about as often."""
        return options[self.index % len(options)]

    def blob(self, x: float, y: float, rx: float, ry: float, wild: float = 0.12) -> Points:
        """A pebble: an oval whose outline wanders."""
        ring = [math.tau * k / 8 for k in range(8)]
        near = [1 + self.r(-wild, wild) for _ in ring]
        return smooth(
            [
                (x + rx * d * math.cos(a), y + ry * d * math.sin(a))
                for a, d in zip(ring, near, strict=True)
            ]
        )

    # Paint

    def wash(self, fill: Fill) -> None:
        self.fill(box(0, 0, self.w, self.h), fill)

    def fill(
        self,
        shape: str | Sequence[Point] | Sequence[Points],
        fill: Fill,
        alpha: float = 1.0,
        blur: float = 0.0,
    ) -> None:
        """Fill a shape, or several as one."""
        several = not isinstance(shape, str) and len(shape) and len(shape[0]) != 2
        shapes = [self.seen(s) for s in (shape if several else [shape])]  # type: ignore
        self._paint([p for s in shapes for p in s], shapes, 0, fill, alpha, blur)

    def line(
        self,
        path: str | Sequence[Point],
        width: float,
        fill: Fill,
        alpha: float = 1.0,
        blur: float = 0.0,
    ) -> None:
        """A stroke of even width with round ends."""
        points = self.seen(curve(path, False) if isinstance(path, str) else path)
        width = max(width * self.s, 0.8)
        edge = [(x + d, y + d) for x, y in points for d in (-width / 2, width / 2)]
        self._paint(edge, [points], width, fill, alpha, blur)

    def dot(
        self, x: float, y: float, r: float, fill: Fill, *how: float, **more: float
    ) -> None:
        """Fill an oval: ``how`` is alpha and blur, ``more`` is ``ry`` and ``turn``."""
        self.fill(oval(x, y, r, **more), fill, *how)

    def rect(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        fill: Fill,
        *how: float,
        r: float = 0.0,
    ) -> None:
        self.fill(box(x0, y0, x1, y1, r), fill, *how)

    def text(
        self, text: str, x: float, y: float, size: float, fill: Fill, bold: float
    ) -> None:
        """Lettering centred on a place, in the typeface that comes with Pillow."""
        font = ImageFont.load_default(size=size * SCALE)
        stroke = round(bold * SCALE)
        x0, y0, x1, y1 = self.draw.textbbox((0, 0), text, font=font, stroke_width=stroke)
        mask = Image.new("L", self.img.size)
        start = (x * SCALE - (x0 + x1) / 2, y * SCALE - (y0 + y1) / 2)
        pen = ImageDraw.Draw(mask)
        pen.text(start, text, fill=255, font=font, stroke_width=stroke)
        self._lay(mask.crop(area := mask.getbbox() or (0, 0, 1, 1)), area, area, fill)

    def _paint(
        self,
        edge: Points,
        shapes: list[Points],
        width: float,
        fill: Fill,
        alpha: float,
        blur: float,
    ) -> None:
        """Fill outlines (or, with a width, stroke paths) given in pixels."""
        blur *= self.s
        quick = isinstance(fill, tuple) and alpha >= 1 and not blur
        k = min(float(SCALE), 5 / blur) if blur else float(SCALE)
        xs, ys = zip(*edge, strict=True)
        tight = tuple(v * SCALE for v in (min(xs), min(ys), max(xs), max(ys)))
        pad = math.ceil(3 * blur) + 1
        x0, y0 = max(int(min(xs)) - pad, 0), max(int(min(ys)) - pad, 0)
        x1, y1 = min(int(max(xs)) + pad, self.w), min(int(max(ys)) + pad, self.h)
        if x1 <= x0 or y1 <= y0:
            return
        # A blur needs some of what lies beyond the edges of the canvas too.
        more = pad if blur else 0
        ox, oy = (0, 0) if quick else (x0 - more, y0 - more)
        size = math.ceil((x1 - x0 + 2 * more) * k), math.ceil((y1 - y0 + 2 * more) * k)
        mask = Image.new("L", (1, 1) if quick else size)
        pen, ink = (self.draw, fill) if quick else (ImageDraw.Draw(mask), 255)
        for shape in shapes:
            path = [((x - ox) * k, (y - oy) * k) for x, y in shape]
            if not width:
                pen.polygon(path, fill=ink)
                continue
            pen.line(path, fill=ink, width=max(1, round(width * k)), joint="curve")
            for x, y in (path[0], path[-1]):
                d = width * k / 2 - 0.5
                pen.ellipse((x - d, y - d, x + d, y + d), fill=ink)
        if quick:
            return
        area = (x0 * SCALE, y0 * SCALE, x1 * SCALE, y1 * SCALE)
        if blur:
            part = (more * k, more * k, (more + x1 - x0) * k, (more + y1 - y0) * k)
            whole = (area[2] - area[0], area[3] - area[1])
            mask = mask.filter(ImageFilter.GaussianBlur(blur * k))
            mask = mask.resize(whole, Image.Resampling.BILINEAR, part)
        if alpha < 1:
            mask = mask.point([round(v * alpha) for v in range(256)])
        self._lay(mask, area, tight, fill)

    def _lay(
        self, mask: Image.Image, area: Sequence[int], tight: Sequence[float], fill: Fill
    ) -> None:
        """Paint through a mask; a gradient spans the ``tight`` bounds."""
        if isinstance(fill, Grad):
            x0, y0, x1, y1 = tight
            paint = Image.new("RGB", mask.size, fill.stops[-1])
            spread = fill.image(max(1, round(x1 - x0)), max(1, round(y1 - y0)))
            paint.paste(spread, (round(x0) - area[0], round(y0) - area[1]))
            self.img.paste(paint, (area[0], area[1]), mask)
        else:
            whole = (area[0], area[1], area[0] + mask.width, area[1] + mask.height)
            self.img.paste(fill, whole, mask)

    @contextmanager
    def clip(self, shape: str | Sequence[Point], alpha: float = 1.0) -> Iterator[None]:
        """Keep what is painted meanwhile only inside a shape."""
        before = self.img.copy()
        yield
        mask = Image.new("L", self.img.size, 255)
        path = [(x * SCALE, y * SCALE) for x, y in self.seen(shape)]
        ImageDraw.Draw(mask).polygon(path, fill=round(255 * (1 - alpha)))
        self.img.paste(before, (0, 0), mask)

    def pixels(self, array: np.ndarray, x: float = 0.0, y: float = 0.0) -> None:
        """Lay down an array of colours (0-255) of the drawing's resolution."""
        picture = Image.fromarray(array.clip(0, 255).astype(np.uint8))
        self.img.paste(picture, (round(x * SCALE), round(y * SCALE)))

    def cover(self, array: np.ndarray) -> None:
        """Lay an array of colours, of whatever resolution, over the whole."""
        picture = Image.fromarray(array.clip(0, 255).astype(np.uint8))
        self.img.paste(picture.resize(self.img.size, Image.Resampling.BICUBIC))

    def finish(self, grain: float = 2.2) -> Image.Image:
        """The finished picture: reduced, a little darker at the corners, grained."""
        lanczos, size = Image.Resampling.LANCZOS, (self.w, self.h)
        small = self.img.resize(size, lanczos, reducing_gap=1.5)
        out = np.asarray(small).astype(np.float32)
        y = np.linspace(-1, 1, self.h, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, self.w, dtype=np.float32)[None, :]
        out *= (1 - 0.12 * ((x * x + y * y) / 2) ** 1.5)[..., None]
        source = np.random.default_rng(self.rng.getrandbits(32))
        fine = source.normal(0, grain, (self.h, self.w)).astype(np.float32)
        broad = noise(self.rng, self.w, self.h, 5, 2) - 0.5
        out += (fine + broad * grain * 2)[..., None]
        return Image.fromarray(out.clip(0, 255).round().astype(np.uint8))


# ---------------------------------------------------------------- outdoors


def cloud(c: Canvas, x: float, y: float, s: float, colour: Colour) -> None:
    """A fair-weather cloud, flat beneath."""
    puffs = [oval(x, y, s, s * 0.16)]
    for k in range(5):
        r = s * (0.34 - 0.075 * abs(k - 2)) * c.r(0.85, 1.15)
        puffs.append(oval(x + s * (k - 2) * c.r(0.3, 0.38), y - r * 0.55, r, r * 0.85))
    c.fill(puffs, down(lit(colour, 0.7), lit(colour, 0.6), colour), 0.75, 1.6)


def hills(c: Canvas, base: float, high: float, fill: Fill, rough: float = 0.4) -> Points:
    """A crest across the picture, filled to its foot."""
    line = ridge(c.rng, rough)
    step = c.w / (len(line) - 1)
    crest = [(k * step, base - v * high) for k, v in enumerate(line)]
    c.fill([(0, c.h), *crest, (c.w, c.h)], fill)
    return crest


# sky above, sky at the horizon, sun, nearest ridge
DAYS = palettes("""
3d5a80 f4c9a0 fff1d6 1d2b45
f2a65a f9dcb4 fffaf0 6b2d3e
7cb7c9 eef3dc fffdf0 1f4d4a
2b2150 e88a7d ffe2b8 1b1533
9fc6e8 f7efe3 ffffff 2c4a7a
d9776b f8d7b5 fff4dd 4a2545
16324f 86b6b4 f5f3df 0d1f2d
b9c98f f5f0d3 fffbe8 2f4a2c
c08bb6 fbdcd6 fff5ef 4b2f63
e0b34e fbeec8 fffdf2 5c4520
6f7f8f dfe2e0 fbfbf7 2a3138
""")


def landscapes(c: Canvas) -> None:
    """Layers of ridges going back into the light."""
    r, (top, low, sun, near) = c.r, c.turns(DAYS)
    c.wash(down(top, mix(top, low, 0.55), low, low, low))
    level = c.h * r(0.36, 0.46)
    x, y, size = c.w * r(0.2, 0.8), level - c.h * r(0, 0.16), c.u * r(0.05, 0.1)
    c.dot(x, y, size * 3, sun, 0.55, size * 1.7)
    c.dot(x, y, size, sun, 0.95, 0.5)
    for _ in range(c.rng.randint(2, 5)):
        x, y = c.spot(0.06, 0.34)
        c.dot(x, y, c.w * r(0.1, 0.3), lit(low, 0.5), 0.5, 3, ry=c.h * 0.008)
    n = c.rng.randint(5, 7)
    for k in range(n):
        t = k / (n - 1)
        base = level + (c.h * 0.88 - level) * t**1.15
        tone = mix(low, near, 0.16 + 0.84 * t**1.1)
        mist = mix(tone, low, 0.55 - 0.3 * t)
        high = c.h * (0.15 - 0.06 * t) * r(0.8, 1.2)
        crest = hills(c, base, high, down(tone, mix(tone, mist, 0.7), mist), 0.52)
    for x, y in crest:
        fir = c.at(x + r(-3, 3), y + 2, c.u * r(0.035, 0.1))
        for k in range(4 if c.odds(0.6) else 0):
            half, foot = 0.2 - 0.04 * k, -k / 4.5
            fir.fill([(-half, foot), (0, foot - 0.45), (half, foot)], tone)


# sky above, sky at the horizon, far towers, near towers, lit window
HOURS = {
    "Midnight": rgbs("0b1030 34406f 2b335f 12152e ffd98a"),
    "Morning": rgbs("8fc1e3 fbeedd b4c6d6 5c7d99 eaf6ff"),
    "Dusk": rgbs("3b2a63 f59e7a 8a5280 2b1d44 ffe0a0"),
    "Noon": rgbs("4fa3d1 dff1f5 a8c5cf 3d6478 f3fbff"),
    "Sunset": rgbs("c4475b fbc77f b55a66 45213f ffe9b0"),
    "the Small Hours": rgbs("07231f 2f7f78 1f5650 08201f ffe7a3"),
    "First Light": rgbs("f0b7a4 fdf0dc d8b3b0 7d5a7a fff6dc"),
    "Drizzle": rgbs("8b96a3 d6d9d8 a9b2ba 4a545f ffe9b8"),
}


def skylines(c: Canvas) -> None:
    """Three rows of towers over water."""
    r, (top, low, far, near, pane) = c.r, HOURS[c.subject]
    c.wash(down(top, mix(top, low, 0.5), low, low))
    level, dark = c.h * r(0.72, 0.79), sum(top) < 300
    for _ in range(90 * dark):
        c.dot(*c.spot(0, 0.5), r(0.4, 1.1), WHITE, r(0.2, 0.8))
    x, y = c.w * r(0.15, 0.85), c.h * r(0.14, 0.4)
    c.dot(x, y, c.u * 0.17, lit(low, 0.5), 0.6, c.u * 0.1)
    c.dot(x, y, c.u * 0.055, lit(pane, 0.55), 0.95, 0.5)
    shown = r(0.25, 0.6) if dark or c.subject == "Sunset" else 0.9
    roofs = (
        [(0.1, 0), (0.47, -0.8), (0.5, -1.6), (0.53, -0.8), (0.9, 0)],
        [(0.1, 0), (0.1, -0.2), (0.3, -0.2), (0.3, -0.4), (0.7, -0.4), (0.7, 0)],
        arc(0.5, 0, 0.5, 0.5, 180, 360),
        [(0, 0), (1, -0.6), (1, 0)],
        [],
    )
    for k in range(3):
        x = -c.w * r(0.0, 0.08)
        while x < c.w:
            wide, tall = c.w * r(0.045, 0.1), c.h * (0.5 - 0.1 * k) * r(0.3, 1)
            face, roof = mix(mix(far, near, k / 2), low, r(0, 0.1)), level - tall
            if cap := c.rng.choice(roofs):
                c.at(x, roof + 1, wide, flip=False).fill(cap, face)
            c.rect(x, roof, x + wide, level + 1, tube(face, 0.12))
            gap = r(4.6, 6.4)
            for row in range(int((tall - 6) / gap / 1.35) if k else 0):
                for col in range(int((wide - 4) / gap)):
                    if c.odds(shown):
                        px, py = x + 3.5 + col * gap, roof + 6 + row * gap * 1.35
                        glass = mix(face, pane, r(0.5, 1) * (1 if shown < 0.9 else 0.4))
                        c.rect(px, py, px + gap * 0.5, py + gap * 0.72, glass)
            x += wide * r(0.85, 1.35)
        c.rect(0, level - c.h * 0.2, c.w, level, low, 0.16 - 0.05 * k, c.h * 0.05)
    # The water: what is above it upside down, tinted and rippled.
    rows, start, tint = np.asarray(c.img), round(level * SCALE), mix(near, low, 0.25)
    t = np.arange(rows.shape[0] - start) / (rows.shape[0] - start)
    source = start - 1 - np.arange(len(t)) * 1.25 + np.sin(t**0.6 * 70) * 10 * t
    water = rows[np.clip(source, 0, start - 1).astype(int)] * 0.6
    for k, shift in enumerate(np.sin(t**0.55 * 110) * 2 * SCALE * (0.3 + t)):
        water[k] = np.roll(water[k], int(shift), axis=0)
    c.pixels(water + 0.4 * np.array(tint), 0, level)
    for _ in range(26):
        x, y = c.w * r(0, 1), level + (c.h - level) * r(0.1, 1)
        c.dot(x, y, c.w * r(0.03, 0.12), lit(tint, 0.5), 0.22, ry=r(0.4, 1.2))


# sky above, sky at the horizon, far sea, near sea, sail
SEAS = palettes("""
5aa9d6 e9f4f2 5fb3bf 12566f fffaf0
f3a35c fde3b8 e39a72 3f4d72 fff3df
2f3f73 f09a8e 9a6b8f 1c2450 ffe8d2
8fcfc4 f6f5df 58b39f 0f5a5a ffffff
a7b7c4 eceae3 8fa6b2 35505f f7f2e6
e77f7b fbd9c0 c9808a 45315e fff1e4
3c86c4 cfe8f3 2f7fb5 0b2f63 fffdf5
d9c27c fbf4da 9db98c 2c5a4e fffbee
""")
CLOTHS = rgbs("d8453a e9a23b 2f6f9f fffaf0 24324f 3f8f77 c95f86 f2d15c")


def waves(c: Canvas, level: float, start: float, n: int, tones: Sequence[Colour]) -> None:
    for _ in range(n):
        t = c.r(start, 1)
        wave = c.at(c.w * c.r(0, 1), level + (c.h - level) * t, 0.4 + t)
        half, wide = c.w * c.r(0.02, 0.06), c.r(0.8, 2)
        path = [(half * k / 6, math.sin(k * 1.1) * 1.3) for k in range(-6, 7)]
        wave.fill(ribbon(path, 0, wide, 0), c.rng.choice(tones), 0.5)


def boats(c: Canvas) -> None:
    """Sailing boats on a bright sea."""
    r, (top, low, far, near, sail) = c.r, c.turns(SEAS)
    level, tones = c.h * r(0.5, 0.6), (lit(far, 0.55), dim(near, 0.1))
    c.rect(0, 0, c.w, level + 1, down(top, mix(top, low, 0.6), low))
    x, y, size = c.w * r(0.12, 0.88), level * r(0.25, 0.8), c.u * 0.06
    c.dot(x, y, size * 3, WHITE, 0.5, size * 1.7)
    c.dot(x, y, size, lit(low, 0.75))
    for _ in range(c.rng.randint(1, 3)):
        cloud(c, *c.spot(0.08, 0.33), c.u * r(0.12, 0.24), mix(low, top, 0.25))
    hills(c, level + c.h * 0.006, c.h * 0.022, mix(low, near, 0.4))
    c.rect(0, level, c.w, c.h, down(far, mix(far, near, 0.6), near))
    c.dot(x, level, c.w * 0.05, lit(low, 0.6), 0.35, 14, ry=(c.h - level) * 0.9)
    waves(c, level, 0, 110, tones)
    n = c.rng.choice((1, 1, 2, 3))
    for k in range(n):
        main = k == n - 1
        s = c.u * (r(0.3, 0.38) if main else r(0.1, 0.17))
        x = c.w * (r(0.38, 0.62) if main else (0.15, 0.85)[k])
        y = level + (c.h - level) * (0.42 if main else 0.1)
        boat = c.at(x, y, s, r(-7, 3), c.odds(0.5))
        hull, jib = c.rng.sample(CLOTHS, 2)
        jib = jib if main and c.odds(0.6) else sail
        boat.fill("-40 12 0 60 20 120 50 70 55 12", down(sail, far), 0.45, 0.035)
        boat.dot(0, 0.13, 0.75, dim(near, 0.3), 0.5, 0.03, ry=0.07)
        boat.line([(0, 0.05), (0, -1.45)], 0.02, rgb("6b4a2f"))
        boat.fill("3 -140 36 -70 62 -12 30 -9 3 -8", across(sail, dim(sail, 0.16)))
        boat.fill(
            "-4 -130 -30 -65 -60 -10 -30 -13 -4 -10 -10 -60", across(dim(jib, 0.22), jib)
        )
        for q in (0.35, 0.6, 0.82):
            seam = [(0.03, -1.35 + q * 1.25), (0.06 + q * 0.56, -1.34 + q * 1.22)]
            boat.line(seam, 0.006, dim(sail, 0.3), 0.5)
        boat.fill("-68 -2 -45 15 0 20 46 17 62 -2 30 1 -30 1", fade(hull))
        boat.line("-62 0 0 3 58 0", 0.018, lit(sail, 0.5))
        boat.fill([(0, -1.45), (0.16, -1.4), (0, -1.36)], c.rng.choice(CLOTHS))
    waves(c, level, 0.55, 60, tones)
    for _ in range(c.rng.randint(2, 5)):
        gull = c.at(*c.spot(0.05, 0.35), r(4, 9))
        wings = curve("-100 -30 -40 -45 0 0 40 -45 100 -30", False)
        gull.fill(ribbon(wings, 0.05, 0.25, 0.2, 0.25, 0.05), dim(near), 0.8)


def meridian(a: float, start: int = 0, end: int = 37) -> Points:
    """A seam down an envelope, the share ``a`` of its half width off its axis."""
    points = []
    for t in (k / 36 for k in range(start, min(end, 37))):
        dome = math.sqrt(max(0, 1 - (1 - t / 0.55) ** 2))
        neck = 0.16 + 0.42 * (1 + math.cos((t - 0.55) / 0.45 * 2.75))
        points.append((a * (dome if t < 0.55 else neck), t * 2.35 - 1))
    return points


def balloons(c: Canvas) -> None:
    """Hot-air balloons above low hills."""
    r, (top, low, sun, near) = c.r, c.turns(DAYS[1:] + DAYS[:1])
    c.wash(down(lit(top, 0.12), mix(top, low, 0.6), low, low))
    c.dot(c.w * r(0, 1), c.h * 0.75, c.u * 0.3, sun, 0.6, c.u * 0.17)
    for _ in range(4):
        cloud(c, *c.spot(0.08, 0.7), c.u * r(0.1, 0.26), mix(low, top, 0.3))
    for k in range(3):
        tone = mix(low, near, 0.25 + 0.28 * k)
        hills(c, c.h * (0.84 + 0.06 * k), c.h * 0.04, down(tone, mix(tone, low, 0.4)))
    small = c.rng.randint(1, 4)
    for k in range(small + 1):
        place_x = (0.13, 0.87, 0.24, 0.78)[k % 4] + r(-0.04, 0.04)
        b, hue, pale = c.at(place_x * c.w, c.h * r(0.15, 0.68), c.u * r(0.045, 0.1)), 0, 0.3
        if k == small:
            b = c.at(c.w * r(0.38, 0.62), c.h * r(0.36, 0.42), c.u * r(0.24, 0.29))
            pale = 0.0
        hue = c.hue + (r(0, 360) if pale else 0)
        coat = [
            lch(0.62, 0.17, hue),
            lch(0.9, 0.06, hue + 40),
            lch(0.45, 0.13, hue + c.rng.choice((30, 180, 210))),
            lch(0.8, 0.14, 85),
        ]
        coat = [mix(colour, low, pale) for colour in coat[: c.rng.choice((2, 3, 3, 4))]]
        wood = mix(rgb("9a6a3c"), low, pale)
        for side in (-1, -0.35, 0.35, 1):
            b.line([(side * 0.16, 1.35), (side * 0.13, 1.78)], 0.012, dim(wood, 0.5))
        b.rect(-0.15, 1.75, 0.15, 2.0, tube(wood), r=0.05)
        b.line([(-0.15, 1.77), (0.15, 1.77)], 0.04, dim(wood, 0.3))
        with b.clip(meridian(-1) + meridian(1)[::-1]):
            n, style = c.rng.choice((10, 12, 14)), c.rng.randrange(3)
            edges = [math.sin(math.pi * (g / n - 0.5)) for g in range(n + 1)]
            for g, (a0, a1) in enumerate(itertools.pairwise(edges)):
                for row in range(6):
                    which = (g, g + row, row + g % 2 * (row == 2))[style]
                    first, last = row * 6, row * 6 + 8
                    gore = meridian(a0, first, last) + meridian(a1, first, last)[::-1]
                    b.fill(gore, coat[which % len(coat)])
                b.line(meridian(a0), 0.008, dim(coat[0], 0.4), 0.35)
            b.dot(-0.35, -0.35, 0.5, WHITE, 0.3, 0.25)
            b.dot(0.95, 0.4, 0.55, INK, 0.45, 0.25, ry=1.5)
        b.rect(-0.16, 1.34, 0.16, 1.41, dim(coat[0]))


# sky above, sky at the horizon, ground, trunk, foliage in shade, middle, in light
SEASONS = {
    "in Spring": rgbs("a9d5e5 f7efe6 a8c979 5d4438 c76b8f eda3b8 fde3e4"),
    "in Summer": rgbs("6fb7dd e9f3e3 86b04f 4f3b2a 2c6a3a 5a9c48 b3d072"),
    "in Autumn": rgbs("d3b594 f8ebd2 b98d4b 45312a a53c22 de7a2c f6c157"),
    "in Winter": rgbs("8fa6c4 eceef2 f4f6fa 473f47 c4d0e0 dfe6f0 ffffff"),
    "in May": rgbs("8fcdd0 f2f6e4 93bd68 56412f 4f8a4a 8fbf5a d9e58f"),
    "in November": rgbs("6f9fc0 f7e7cf a8974c 4b3428 8f2f3f c85045 f2a65e"),
    "at Harvest": rgbs("e6b765 fdf1cf c7a24a 51392a a87a1f dba935 f8e08a"),
    "under Hoarfrost": rgbs("5a6c95 e9c9cc dfe3ee 3c3444 a7b2d0 cdd5e8 f6f0f6"),
}


FLECK = curve("100 0 0 70 -100 0 0 -70", steps=3)


def trees(c: Canvas) -> None:
    """One broad tree on a rise, in some season."""
    r, (top, low, ground, trunk, *leaves) = c.r, SEASONS[c.subject]
    cold = c.subject in ("in Winter", "under Hoarfrost")
    c.wash(down(top, mix(top, low, 0.7), low))
    c.dot(c.w * r(0.1, 0.9), c.h * 0.35, c.u * 0.3, WHITE, 0.4, c.u * 0.17)
    for k in range(2):
        tone = mix(low, mix(ground, leaves[0], 0.3), 0.3 + 0.25 * k)
        hills(c, c.h * (0.74 + 0.05 * k), c.h * 0.04, tone)
    x, y, u = c.w * r(0.45, 0.55), c.h * r(0.84, 0.87), c.u
    c.dot(c.w / 2, c.h * 1.33, c.w * 0.95, fade(ground), ry=c.h * 0.48)
    c.dot(x + u * 0.1, y + u * 0.03, u * 0.34, INK, 0.35, u * 0.02, ry=u * 0.035)
    tips: list[Point] = []

    def grow(
        px: float, py: float, angle: float, size: float, wide: float, left: int
    ) -> None:
        bend = angle + r(-0.12, 0.12)
        mx, my = px + size / 2 * math.cos(angle), py + size / 2 * math.sin(angle)
        ex, ey = mx + size / 2 * math.cos(bend), my + size / 2 * math.sin(bend)
        limb = smooth([(px, py), (mx, my), (ex, ey)], False, 5)
        c.fill(ribbon(limb, wide, wide * 0.68), tube(trunk) if wide > 3 else trunk)
        if left <= 3:
            tips.append((ex, ey))
        for way in c.rng.choice(((-0.44, 0.44), (-0.5, 0.05, 0.5))) if left else ():
            turn = way * r(0.85, 1.15) + r(-0.12, 0.12)
            grow(ex, ey, bend + turn, size * r(0.7, 0.82), wide * 0.64, left - 1)

    size = min(c.h * 0.185, c.w * 0.2)
    grow(x, y + 4, -math.pi / 2 + r(-0.08, 0.08), size, size * 0.28, 6)
    cx, cy = np.mean(tips, axis=0)
    if not cold:
        c.fill([oval(tx, ty, u * 0.042) for tx, ty in tips], leaves[0], 0.8, 2)
    for tone, share, lift in zip(leaves, (1.0, 0.8, 0.5), (0.0, 0.5, 1.1), strict=True):
        marks: list[Points] = []
        for tx, ty in tips * 4:
            bright = (cx - tx) / u * 0.8 + (cy - ty) / u * 1.2
            if c.odds(share * (0.3 if cold else 1) * (0.8 + bright * lift)):
                mx, my = tx + c.rng.gauss(0, u * 0.028), ty + c.rng.gauss(0, u * 0.025)
                marks.append(place(FLECK, mx, my, u * r(3, 6) / 1000, r(0, 180)))
        c.fill(marks, tone)
    for _ in range(140):
        if cold:
            c.dot(*c.spot(), r(0.7, 2.2), WHITE, r(0.4, 0.9))
        else:
            mx, my = x + c.rng.gauss(0, u * 0.22), y + r(0.02, 0.12) * c.h
            c.dot(mx, my, r(1, 2.4), c.rng.choice(leaves[1:]), 0.85, ry=1.1)


FACADES = palettes("""
d9745e e9b872 7fa99b f0dfc0 5b7c99 c98ba0
b5504a dda15e 7d8a55 fefae0 bc6c25 8f6a51
a3c4bc e7d7c1 bf4342 8c7a6b e9c46a 457b9d
8fa8c8 d7b9d5 f4cae0 6c5b7b c06c84 f8b195
f1dca7 ffcb69 d08c60 997b66 e8ac65 b58463
2f5d6b 2a9d8f e9c46a f4a261 e76f51 8ab17d
""")
SKIES = palettes("84bddc f3eee2\nf2b999 fdf0dc\na9c9c2 f6f2e2\nb6bfca eeeae4")
NIGHT = rgb("1c2048")


def houses(c: Canvas) -> None:
    """A terrace of tall houses on a street."""
    r, paints, night = c.r, c.turns(FACADES), c.index % 5 == 3
    top, low = rgbs("18224a 7a6a94") if night else c.rng.choice(SKIES)
    c.wash(down(top, low))
    for _ in range(60 * night):
        c.dot(*c.spot(0, 0.4), 0.8, WHITE, 0.6)
    for _ in range(0 if night else 3):
        cloud(c, *c.spot(0.06, 0.28), c.u * 0.15, mix(low, top, 0.3))
    street, x, wall = c.h * 0.86, -c.u * r(0.02, 0.12), INK
    while x < c.w:
        wide, tall = c.u * r(0.2, 0.27), r(1.9, 2.5)
        paint = wall = c.rng.choice([p for p in paints if p != wall])
        if night:
            paint = mix(paint, NIGHT, 0.5)
        trim, roof = lit(paint, 0.3 if night else 0.65), dim(mix(paint, CLOTHS[4], 0.4))
        # Each house is one unit wide, and stands on the origin.
        house, style, peak = c.at(x, street, wide), c.rng.randrange(4), -tall - r(0.4, 0.6)
        house.rect(0.72, peak - 0.03, 0.86, -tall, dim(roof))
        stair = [
            (k // 2 / 10 + 0.001 * k, -tall + (peak + tall) * ((k + 1) // 2) / 4)
            for k in range(8)
        ]
        bell = [(0, 0), (0.14, 0.15), (0.24, 0.6), (0.38, 1.0)]
        bell = [(px, -tall + (peak + tall) * py) for px, py in bell]
        slope = [(0.0, -tall), (0.5 if style == 2 else 0.16, peak)]
        side = (stair, bell, slope, slope)[style]
        gable = side + [(1 - px, py) for px, py in reversed(side)]
        gable = smooth(gable, False) if style == 1 else gable
        house.fill(gable, fade(roof) if style > 1 else slant(lit(paint, 0.15), paint))
        if style < 2:
            house.line(gable, 0.02, trim)
            house.dot(0.5, -tall - 0.18, 0.07, CLOTHS[4])
        house.rect(0, -tall, 1, 0, sheen(paint, 0.18))
        house.rect(0.98, -tall, 1, 0, INK, 0.25)
        house.rect(-0.01, -tall - 0.03, 1.01, -tall + 0.03, trim)
        cols, shutters = c.rng.choice((2, 3)), c.odds(0.45)
        pw, ph, accent = 0.5 / cols, tall / 6, dim(c.rng.choice(paints), 0.25)
        for row, col in ((i, j) for i in range(3) for j in range(cols)):
            pane = house.at((col + 0.5) / cols, tall * ((row + 0.22) / 3 - 1), 1)
            a = pw / 2
            if row == 2 and col == cols - 1:
                pane.rect(-a - 0.03, -0.03, a + 0.03, tall * 0.26, trim)
                pane.rect(-a, 0, a, tall * 0.26, fade(accent))
                light = CLOTHS[7] if night else rgb("c9dfe6")
                pane.fill(arc(0, 0.13, a * 0.75, 0.1, 180, 360), light)
                continue
            bright = night and c.odds(0.6)
            glass = rgb("ffd27a") if bright else rgb("3a4a66")
            if bright:
                pane.dot(0, ph / 2, pw * 0.7, glass, 0.35, pw * 0.4)
            if shutters and cols == 2:
                for px in (-a - 0.13, a + 0.03):
                    pane.rect(px, 0, px + 0.1, ph, accent)
            pane.rect(-a - 0.02, -0.02, a + 0.02, ph + 0.02, trim)
            pane.rect(-a, 0, a, ph, slant(lit(glass, 0.45), glass, glass))
            pane.line([(0, 0), (0, ph)], 0.014, trim)
            pane.line([(-a, ph * 0.4), (a, ph * 0.4)], 0.014, trim)
            pane.rect(-a - 0.04, ph + 0.02, a + 0.04, ph + 0.045, dim(trim, 0.15))
        x += wide
    stone = rgb("3b3a52") if night else rgb("b9b0a4")
    c.rect(0, street, c.w, c.h, fade(stone))
    c.rect(0, street - 1, c.w, street + c.h * 0.025, lit(stone, 0.35))
    c.rect(0, street - 6, c.w, street + 5, INK, 0.25, 4)
    x = c.u * r(0.1, 0.3)
    while x < c.w:
        tree = c.at(x, street + c.h * 0.03, c.u * r(0.06, 0.08))
        green = mix(lch(0.58, 0.11, r(95, 145)), NIGHT, 0.5 * night)
        tree.dot(0.1, 0, 1, INK, 0.35, 0.08, ry=0.16)
        tree.line([(0, 0), (0, -2)], 0.08, rgb("54402f"))
        tree.fill(c.blob(0, -2.4, 1, 1.15), ball(green))
        x += c.u * r(0.45, 0.8)


# ---------------------------------------------------------------- creatures, growth


def fishes(c: Canvas) -> None:
    """A fish in lit water, with small ones behind."""
    r, u, sea = c.r, c.u, (205.0, 190.0, 235.0, 172.0, 220.0, 255.0)[c.index % 6]
    c.wash(down(lch(0.85, 0.08, sea), lch(0.6, 0.11, sea), lch(0.3, 0.08, sea + 15)))
    for _ in range(6):
        x, lean = c.w * r(-0.2, 1), c.w * r(0.15, 0.3)
        foot = [(x + u * 0.2 + lean, c.h), (x + lean, c.h)]
        c.fill([(x, -9), (x + u * 0.1, -9), *foot], WHITE, 0.09, 9)
    sand = c.blob(c.w / 2, c.h * 1.05, c.w * 0.75, c.h * 0.16)
    c.fill(sand, fade(lch(0.78, 0.05, 85)))
    for _ in range(9):
        weed, lean = c.at(c.w * r(0, 1), c.h, c.h * r(0.12, 0.4)), r(0, 6)
        sway = [(math.sin(k * 0.8 + lean) * 0.07, 0.1 - k / 9) for k in range(10)]
        tone = lch(r(0.4, 0.6), 0.1, r(130, 170))
        weed.fill(ribbon(smooth(sway, False), 0.12, 0.09, 0), tone, 0.8)
    skin, fin = lch(0.7, 0.16, c.hue), lch(0.6, 0.16, c.hue + 45)
    band = CREAM if c.index % 3 == 0 else lch(0.42, 0.16, c.hue + 25)
    tall = r(0.8, 1.25)
    for k in reversed(range(c.rng.randint(1, 5))):
        s = u * r(0.05, 0.08) if k else min(c.w * 0.33, c.h * 0.42)
        place = c.spot(0.1, 0.8) if k else (c.w * 0.48, c.h * r(0.46, 0.52))
        f = c.at(*place, s, r(-9, 9), k == 0 and c.index % 2 == 0)

        def high(text: str) -> Points:
            return [(px, py * tall) for px, py in curve(text)]

        f.fill(high("58 0 80 -20 120 -48 108 -4 122 44 80 18"), across(skin, fin))
        f.fill(high("-40 -32 -10 -66 35 -58 55 -20 20 -20"), down(fin, skin))
        f.fill(high("-20 30 5 62 35 52 40 20"), down(skin, fin))
        body = high("-102 2 -80 -24 -30 -42 25 -36 72 -9 72 9 25 36 -30 42 -80 26")
        f.fill(body, down(dim(skin, 0.15), skin, lit(skin, 0.75)))
        with f.clip(body):
            for px in (-0.42, -0.14, 0.14, 0.42):
                stripe = [(px + 0.07 * math.cos(q / 3), q / 10) for q in range(-6, 7)]
                if c.index % 4 < 2:
                    f.fill(ribbon(stripe, 0.06, 0.15, 0.06), band, 0.9)
                else:
                    rows = range(-4, 5)
                    dots = [oval(px + q % 2 * 0.14, q * 0.13, 0.045) for q in rows]
                    f.fill(dots, band, 0.85)
            for row in range(-7, 8 if k == 0 else -7):
                for col in range(10):
                    px = -0.4 + col * 0.11 + row % 2 * 0.055
                    f.line(arc(px, row * 0.065, 0.06, 0.05, -70, 70), 0.005, INK, 0.13)
            f.dot(-0.1, -0.3 * tall, 0.6, WHITE, 0.4, 0.04, ry=0.07)
            f.dot(-0.1, 0.5 * tall, 0.9, INK, 0.3, 0.08, ry=0.14)
        gill = arc(-0.62, 0, 0.15, 0.27 * tall, -75, 75)
        f.line(gill, 0.02, dim(skin, 0.5), 0.6)
        f.fill("-35 8 -8 2 2 16 -10 28", slant(lit(fin, 0.3), fin), 0.95)
        for px, py, size, tone in (
            (-0.73, -0.09, 0.085, CREAM),
            (-0.74, -0.09, 0.055, INK),
            (-0.76, -0.12, 0.018, WHITE),
        ):
            f.dot(px, py, size, tone)
        f.line([(-1.0, 0.06), (-0.93, 0.1), (-0.86, 0.1)], 0.02, dim(skin, 0.5))
    for _ in range(14):
        bubble = c.at(*c.spot(0, 0.9), u * r(0.005, 0.02))
        bubble.dot(0, 0, 1, WHITE, 0.25)
        bubble.dot(-0.3, -0.3, 0.4, WHITE, 0.7)


BLOOMS = {  # petals, rings, width, lightness, chroma, hue, heart
    "Daisies": (17, 1, 0.17, 0.98, 0.02, 90, "e9b02f"),
    "Poppies": (5, 2, 0.62, 0.63, 0.21, 28, "2a2130"),
    "Dahlias": (13, 4, 0.25, 0.65, 0.17, 0, "8a2f4a"),
    "Sunflowers": (19, 2, 0.16, 0.83, 0.16, 85, "4a2d1c"),
    "Cornflowers": (11, 2, 0.26, 0.58, 0.18, 268, "3a2a6b"),
    "Cosmos": (8, 1, 0.42, 0.77, 0.13, 345, "e5b53a"),
    "Anemones": (9, 2, 0.42, 0.72, 0.13, 305, "221c33"),
    "Marigolds": (14, 4, 0.27, 0.75, 0.17, 60, "b5541c"),
}
LEAF = "0 0 30 -24 75 -22 110 -6 72 14 28 14"
BEDS = (
    ((0.5, 0.4),),
    ((0.3, 0.34), (0.7, 0.5)),
    ((0.27, 0.5), (0.73, 0.56), (0.5, 0.27)),
)


def flowers(c: Canvas) -> None:
    """A few blooms on their stems, against an unfocused garden."""
    r, u, dark = c.r, c.u, c.index % 3 == 1
    count, rings, wide, light, chroma, hue, heart = BLOOMS[c.subject]
    back = lch(0.42 if dark else 0.93, 0.05, c.hue)
    c.wash(slant(back, lch(0.24 if dark else 0.8, 0.06, 150)))
    for _ in range(16):
        glow = lch(r(0.35, 0.55) if dark else r(0.8, 0.97), 0.07, r(100, 150))
        c.dot(*c.spot(), u * r(0.03, 0.12), mix(glow, back, r(0, 1)), 0.4, u * 0.012)
    bed = c.rng.choice(BEDS)
    for fx, fy in bed:
        x, y = c.w * (fx + r(-0.03, 0.03)), c.h * (fy + r(-0.03, 0.03))
        green, foot = lch(r(0.45, 0.58), 0.1, r(125, 150)), c.w * (0.3 + fx * 0.4)
        stem = [(x, y), (x + u * 0.03, (y + c.h) / 2), (foot, c.h + 9)]
        stem = smooth(stem, False)
        c.fill(ribbon(stem, u * 0.014, u * 0.02), tube(green))
        for side in (-1, 1):
            sx, sy = stem[c.rng.choice((9, 12))]
            leaf = c.at(sx, sy + u * 0.06 * side, u * r(0.15, 0.24), r(-25, 5), side < 0)
            leaf.fill(LEAF, sheen(green))
        tint = lch(light, chroma, hue + r(-14, 14))
        right = ((0.08, 0), (0.45, wide * 0.62), (0.82, wide * 0.9), (1, wide * 0.25))
        petal = smooth([*right, *((px, -py) for px, py in right[:0:-1])])
        bloom = c.at(x, y, u * (0.33 - 0.045 * len(bed)))
        for ring in range(rings):
            tone, phase = lit(tint, 0.1 * ring), r(0, 360)
            for k in range(count):
                turn = phase + 360 * k / count + r(-3, 3)
                p = bloom.at(0, 0, (1 - 0.21 * ring) * r(0.93, 1.05), turn)
                bloom.at(0.012, 0.02, p.s / bloom.s, turn).fill(petal, INK, 0.22, 0.03)
                ex, ey = math.cos(math.radians(turn)) / 2, math.sin(math.radians(turn)) / 2
                ends = ((0.5 - ex, 0.5 - ey), (0.5 + ex, 0.5 + ey))
                p.fill(petal, Grad((dim(tone, 0.35), tone, lit(tone, 0.3)), *ends))
        core = 0.36 if c.subject == "Sunflowers" else 0.21
        bloom.dot(0.01, 0.03, core, INK, 0.4, 0.04)
        bloom.dot(0, 0, core, ball(rgb(heart)))
        for k in range(130):
            a, d = k * 2.39996, core * math.sqrt(k / 130)
            seed = lit(rgb(heart), 0.35 + 0.3 * (k % 2))
            bloom.dot(d * math.cos(a), d * math.sin(a), core * 0.055, seed, 0.7)


def mushrooms(c: Canvas) -> None:
    """Mushrooms in the moss, the wood behind them out of focus."""
    r, u, wood = c.r, c.u, (150.0, 120.0, 190.0, 90.0, 165.0, 230.0, 60.0)[c.index % 7]
    c.wash(down(lch(0.8, 0.07, wood - 20), lch(0.52, 0.07, wood), lch(0.3, 0.05, wood)))
    for _ in range(6):
        x, wide = c.w * r(0, 1), u * r(0.03, 0.12)
        c.rect(x, -9, x + wide, c.h, lch(r(0.3, 0.5), 0.04, wood), 0.5, u * 0.02)
    for _ in range(22):
        glow = lch(0.92, 0.09, wood - 30)
        c.dot(*c.spot(0, 0.7), u * r(0.01, 0.05), glow, r(0.1, 0.4), u * 0.006)
    hills(c, c.h * 0.8, c.h * 0.03, fade(lch(0.45, 0.1, r(110, 140)), 0.4), 0.3)
    skin = lch(0.58, 0.17, c.hue) if c.index % 2 else lch(0.6, 0.15, r(20, 75))
    flat, spotted, spots = r(0.5, 0.95), c.odds(0.65), [(0.2, 0.26), (0.8, 0.22)]
    spots += [(0.68, 0.36), (0.45, 0.55)]
    for fx, size in spots[c.rng.randint(0, 2) :]:
        tall, foot = r(1.7, 2.3), c.h * r(0.86, 0.93)
        # The origin is under the cap, whose half width is the unit.
        m = c.at(
            c.w * (fx + r(-0.05, 0.05)), foot, size * min(u * r(0.46, 0.6), c.h * 0.43)
        )
        m = m.at(0, -tall, 1)
        m.dot(0.3, tall, 0.9, INK, 0.45, 0.08, ry=0.13)
        stem = smooth([(r(-0.1, 0.1), tall), (r(-0.1, 0.1), tall / 2), (0, 0)], False)
        pale = across(*rgbs("fff8e8 efe0c4 a88f78"))
        m.fill(ribbon(stem, 0.62, 0.4, 0.3, 0.3), pale)
        skirt = "-20 32 20 32 34 56 16 52 0 59 -16 52 -34 56"
        m.fill(skirt, down(*rgbs("c9b598 fff6e2")))
        m.dot(0, 0, 0.97, radial(*rgbs("7a5a48 e8cfae"), at=(0.5, 0.4)), ry=0.2)
        for k in range(-12, 13):
            a = k / 12.5
            rib = [(a * 0.17, 0.04), (a * 0.93, 0.19 * math.sqrt(1 - a * a))]
            m.line(rib, 0.006, INK, 0.2)
        cap = m.at(0, 0, 1, r(-5, 5))
        side = [(1, 0.03), (0.93, -0.3 * flat), (0.55, -0.85 * flat), (0, -1.08 * flat)]
        dome = [(0, -0.03), *side, *((-px, py) for px, py in side[2::-1])]
        cap.fill(smooth(dome), ball(skin))
        with cap.clip(smooth(dome)):
            for _ in range(26 * spotted):
                a, d = r(0, math.tau), math.sqrt(r(0, 1))
                px, py = d * math.cos(a), -flat * (0.5 + d * math.sin(a) * 0.5)
                wart = c.blob(px, py, r(0.04, 0.1) * (1.1 - d / 2), r(0.04, 0.07))
                cap.fill(wart, dim(skin, 0.4), 0.5, 0.025)
                cap.fill(wart, rgb("fff5e1"), 0.95)
            cap.dot(-0.35, -0.7 * flat, 0.3, WHITE, 0.35, 0.06, ry=0.14)
    for _ in range(170):
        blade = c.at(*c.spot(0.86, 1.04), u * r(0.03, 0.11))
        path = smooth([(0, 0), (r(-0.2, 0.2), -0.6), (r(-0.6, 0.6), -1)], False, 4)
        blade.fill(ribbon(path, 0.1, 0.07, 0), lch(r(0.35, 0.68), 0.11, r(105, 145)))


def inset(shape: Points, t: float) -> Points:
    """A wing shrunk towards its middle."""
    mx, my = (float(v) for v in np.mean(shape, axis=0))
    return [(mx + (px - mx) * t - 0.02, my + (py - my) * t) for px, py in shape]


def butterflies(c: Canvas) -> None:
    """A butterfly on paper, as in a cabinet drawer."""
    r, u, paper = c.r, c.u, mix(CREAM, lch(0.9, 0.04, c.hue + 180), 0.5)
    c.wash(radial(lit(paper, 0.5), paper, dim(paper, 0.12), at=(0.45, 0.4)))
    frame = box(u * 0.04, u * 0.04, c.w - u * 0.04, c.h - u * 0.04)
    c.line([*frame, frame[0]], 1.2, dim(paper, 0.4), 0.6)
    main, edge = lch(r(0.6, 0.75), 0.16, c.hue), lch(0.27, 0.05, c.hue + r(-40, 40))
    second = lch(0.72, 0.14, c.hue + c.rng.choice((40, -50, 150, 0)))
    b = c.at(c.w / 2, c.h / 2, min(c.w * 0.37, c.h * 0.4))
    low, tail = 0.04 * r(0, 10), r(0.0, 0.45)

    def wander(text: str) -> Points:
        knots = curve(text, steps=1)
        return smooth([(px * r(0.92, 1.08), py * r(0.92, 1.08)) for px, py in knots])

    fore = wander("4 -10 30 -62 80 -100 112 -92 108 -55 92 -18 50 4 8 4")
    hind = wander("6 2 50 6 88 16 94 48 78 76 60 90 38 76 14 34")
    hind = [(px, py + tail * max(0, py - 0.72) * 3 * (px > 0.5)) for px, py in hind]
    eyes, bars, n = c.odds(0.6), c.odds(0.5), c.rng.randint(6, 9)
    sides = [(wing, b.at(0, 0, 1, 0, flip)) for wing in (hind, fore) for flip in (0, 1)]
    for wing, f in sides:
        f.at(-0.04 if f.flip else 0.04, 0.07, 1).fill(wing, INK, 0.33, 0.05)
    for wing, f in sides:
        upper, (mx, my) = wing is fore, (float(v) for v in np.mean(wing, axis=0))
        tone, start = (main, -75) if upper else (second, 5)
        where = (float(f.flip), 0.9 if upper else 0.1)
        f.fill(wing, radial(lit(edge, 0.15), edge, at=where, r=1.2))
        shades = (lit(tone, 0.55), tone, tone, dim(tone, 0.4))
        f.fill(inset(wing, 0.84), radial(*shades, at=where, r=1.3))
        with f.clip(inset(wing, 0.84)):
            for d in (0.52, 0.72) if bars else ():
                f.line(arc(0, low, d, d, -85, 85), 0.05, dim(tone, 0.3), 0.45, 0.006)
            for k in range(n):
                a = math.radians(start + 75 * k / (n - 1))
                vein = [(0.03, 0.0), (1.4 * math.cos(a), 1.4 * math.sin(a))]
                f.line(vein, 0.008, edge, 0.8)
        for px, py in inset(wing, 0.91)[::4]:
            if px > 0.45:
                f.dot(px, py, 0.022, lit(second, 0.75))
        if eyes:
            eye = f.at(mx + (0.16 if upper else 0.08), my + (-0.12 if upper else 0.08), 1)
            rings = (edge, lch(0.82, 0.13, 85), INK)
            for size, ring in zip((0.13, 0.1, 0.065), rings, strict=True):
                eye.dot(0, 0, size, ring)
            eye.dot(-0.02, -0.03, 0.022, WHITE)
    torso = smooth([(0, -0.28), (0, -0.1), (0, 0.1), (0, 0.55)], False)
    b.fill(ribbon(torso, 0.06, 0.12, 0.1, 0.02), across(lit(edge, 0.4), edge, INK))
    b.dot(0, -0.29, 0.05, ball(edge))
    for _, f in sides[:2]:
        f.line("0 -30 12 -60 30 -80", 0.012, edge)
        f.dot(0.3, -0.8, 0.022, edge)


def planets(c: Canvas) -> None:
    """A planet among stars, lit from one side."""
    r, u, hue = c.r, c.u, c.hue
    mist = noise(c.rng, c.w, c.h, u * 0.5, 5)[..., None] ** 2.2
    deep, cloudy = np.array(lch(0.16, 0.05, hue + 150)), np.array(lch(0.5, 0.13, hue + 200))
    space = deep * (1 - mist) + cloudy * mist
    c.cover(space)
    for _ in range(260):
        size = 0.35 + c.rng.random() ** 6 * 1.5
        c.dot(*c.spot(), size, lch(0.95, 0.04, r(0, 360)), r(0.3, 1))
    rad = u * r(0.24, 0.33) if c.index % 3 else min(c.w * 0.23, u * r(0.22, 0.3))
    x, y = c.w * r(0.45, 0.55), c.h * r(0.46, 0.54)
    tilt, light, air = r(-28, 28), r(-0.9, 0.9), lch(0.8, 0.1, hue + 20)
    p = c.at(x, y, rad)
    p.dot(0, 0, 1.05, air, 0.45, 0.07)
    tones = [(0.3, 0.1, 25), (0.48, 0.14, 10), (0.64, 0.13, 0), (0.8, 0.09, 35)]
    ramp = np.array([lch(v, k, hue + d) for v, k, d in [*tones, (0.95, 0.03, 60)]])
    bands = [(d, lch(r(0.6, 0.9), r(0.03, 0.1), hue + r(-20, 40)), r(0.25, 0.8))
             for d in np.arange(1.4, r(1.9, 2.2), 0.035)]  # fmt: skip

    def rings(start: float) -> None:
        for d, tone, alpha in bands if c.index % 3 == 0 else ():
            half = arc(0, 0, d, d * 0.24, start, start + 180)
            p.at(0, 0, 1, tilt).line(half, 0.03, tone, alpha)

    rings(180)
    n = round(rad * SCALE) * 2
    gy, gx = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j].astype(np.float32)
    far, turn = gx**2 + gy**2, math.radians(tilt)
    gz = np.sqrt(np.clip(1 - far, 0, 1))
    up = np.clip(gy * math.cos(turn) - gx * math.sin(turn), -1, 1)
    round_ = np.arctan2(gx * math.cos(turn) + gy * math.sin(turn), gz + 1e-6)
    long = (9.0, 1.0, 4.0, 1.6)[c.index % 4]
    sheet = noise(c.rng, 700, 500, 90 if long < 2 else 60, 6, long)
    row = (np.arcsin(up) / math.pi + 0.5) * 499
    level = sheet[row.astype(int), ((round_ / math.pi + 0.5) * 699).astype(int)]
    steps = np.quantile(level, (0, 0.25, 0.5, 0.75, 1))
    skin = np.stack([np.interp(level, steps, ramp[:, k]) for k in range(3)], -1)
    day = gx * math.cos(light + math.pi) + gy * -0.45 + gz * 0.42
    skin *= (0.06 + 1.05 * np.clip(day * 1.5 + 0.12, 0, 1))[..., None]
    rim = np.clip(1 - gz, 0, 1)[..., None] ** 3 * np.clip(day + 0.35, 0, 1)[..., None]
    skin = skin * (1 - rim * 0.8) + np.array(air) * rim * 0.9
    with p.clip(oval(0, 0, 0.995)):
        c.pixels(skin, x - rad, y - rad)
    rings(0)
    for k in range(c.rng.randint(0, 3)):
        a, size = r(0.3, 0.8) + k * 2.1, r(0.05, 0.13)
        moon = ball(lch(0.75, 0.04, hue + r(-60, 60)))
        p.dot(1.42 * math.cos(a), 1.3 * math.sin(a), size, moon)


COATS = {  # coat, marks, belly, eyes
    "Ginger": rgbs("e08a3c b85c1e f9dfba 5f9a4a"),
    "Tabby": rgbs("9a8468 54453a e8dac2 c9a227"),
    "Midnight": rgbs("35323f 23202b 4b4757 e0c23a"),
    "Smoky": rgbs("8d98a8 6b7686 c6cdd6 d98f2b"),
    "Snowy": rgbs("f3eee6 ddd2c4 ffffff 4a90c2"),
    "Siamese": rgbs("e6d3b8 5a4036 f2e6d2 3f87c9"),
    "Tuxedo": rgbs("2c2b35 1f1d26 f7f3ea 6fae5c"),
    "Calico": rgbs("f2e7d5 d47a34 fffaf0 7f9e3f"),
}


def cats(c: Canvas) -> None:
    """A cat sitting for its portrait."""
    r, (coat, mark, belly, iris) = c.r, COATS[c.subject]
    wall, step = lch(r(0.6, 0.85), 0.09, c.hue), c.u * r(0.08, 0.13)
    c.wash(down(lit(wall, 0.15), wall))
    for k in range(int(c.w / step) + 1):
        if c.index % 3 == 0:
            c.rect(k * step, 0, (k + 0.5) * step, c.h, lit(wall, 0.16), 0.5)
        for q in range(int(c.h / step) + 1 if c.index % 3 == 1 else 0):
            c.dot((k + q % 2 / 2) * step, q * step, step * 0.12, lit(wall, 0.2), 0.8)
    floor, rug = lch(0.55, 0.08, c.hue + 150), lch(0.62, 0.14, c.hue + 180)
    c.rect(0, c.h * 0.8, c.w, c.h, fade(floor))
    cat = c.at(c.w * r(0.46, 0.54), c.h * 0.93, c.u * 0.46, 0, c.odds(0.5))
    for k in range(4):
        ring = (rug, CREAM)[k % 2]
        cat.dot(0, 0, 1.25 - 0.17 * k, ring, ry=0.2 - 0.03 * k)
    cat.dot(0, 0.03, 0.72, INK, 0.45, 0.05, ry=0.09)
    striped, points = c.subject in ("Ginger", "Tabby"), c.subject == "Siamese"
    patches = c.subject == "Calico"
    tail = curve("35 -12 72 -6 92 -30 84 -62 98 -84", False)
    cat.fill(ribbon(tail, 0.2, 0.19, 0.16, 0.1), down(mark, coat))
    cat.dot(*tail[-1], 0.05, mark)
    body = "-42 0 -54 -30 -40 -72 -24 -104 24 -104 40 -72 54 -30 42 0 0 4"
    cat.fill(body, sheen(coat, 0.3))
    with cat.clip(body):
        cat.dot(0, -0.55, 0.22, belly, 0.9, 0.025, ry=0.42)
        for k in range(12 * striped):
            bar = cat.at(0, k // 2 * 0.13, 1, 0, k % 2 == 1)
            shape = ribbon(curve("56 -86 36 -80 25 -80", False), 0.07, 0.04, 0)
            bar.fill(shape, mark, 0.75)
        if patches:
            cat.fill(c.blob(-0.4, -0.5, 0.22, 0.26), mark)
            cat.fill(c.blob(0.4, -0.8, 0.2, 0.2), INK)
        cat.dot(0, -1.05, 0.4, INK, 0.25, 0.04, ry=0.12)
    paw = mark if points else belly
    head = cat.at(0, -1.2, 1, r(-5, 5))
    for k in (0, 1):
        side = cat.at(0, 0, 1, 0, k == 1)
        side.rect(0.06, -0.5, 0.28, 0.02, down(coat, coat, paw), r=0.1)
        side.dot(0.18, 0, 0.145, fade(paw), ry=0.08)
        for toe in (0.135, 0.225):
            side.line([(toe, 0.0), (toe, 0.06)], 0.008, mark, 0.6)
        ear = head.at(0, 0, 1, 0, k == 1)
        ear.fill("48 -12 52 -60 40 -64 10 -38 20 -16", down(mark if points else coat, coat))
        ear.fill("41 -26 45 -50 39 -53 20 -36", down(*rgbs("d98f8a f3bdb0")))
    face = "-56 8 -50 -22 -26 -42 0 -45 26 -42 50 -22 56 8 30 32 0 38 -30 32"
    head.at(0, 0.05, 1).fill(face, INK, 0.3, 0.05)
    head.fill(face, radial(lit(coat, 0.35), coat, dim(coat, 0.22), at=(0.35, 0.25)))
    with head.clip(face):
        for px in (-0.13, 0.0, 0.13) if striped else ():
            head.fill(ribbon([(px, -0.5), (px * 0.8, -0.2)], 0.08, 0.01), mark, 0.8)
        if points:
            head.dot(0, 0.1, 0.3, mark, 0.8, 0.06)
        if patches:
            head.fill(c.blob(-0.32, -0.28, 0.26, 0.22), mark)
            head.fill(c.blob(0.4, -0.25, 0.2, 0.2), INK)
        if striped or patches or c.subject == "Tuxedo":
            head.fill("-5 -20 5 -20 26 30 -26 30", belly, 0.9, 0.02)
    sleepy, slit = c.index >= 8 and c.index % 3 == 2, r(0.03, 0.06)
    for k in (0, 1):
        side = head.at(0, 0, 1, 0, k == 1)
        if sleepy:
            side.line(arc(0.235, -0.06, 0.11, 0.07, 10, 170), 0.03, INK)
        else:
            side.dot(0.235, -0.06, 0.125, INK)
            side.dot(0.235, -0.06, 0.11, ball(iris))
            side.dot(0.235, -0.06, slit, INK, ry=0.095)
            head.dot(0.2 - 0.47 * k, -0.1, 0.028, WHITE)
        side.dot(0.085, 0.17, 0.11, lit(belly, 0.3), 0.85, 0.005, ry=0.085)
        for q in range(3):
            hair = [(0.16, 0.16 + q * 0.025), (0.62, 0.08 + q * 0.09)]
            side.line(hair, 0.005, WHITE if sum(coat) < 600 else INK, 0.7)
        side.line(arc(0.06, 0.15, 0.06, 0.06, 20, 160), 0.016, INK, 0.8)
    head.fill("-6 7 6 7 0 14", rgb("d77f86"))


SKINS = rgbs("f6d3b8 e8b48f c98d63 9a6241 6f4530 f1c4a2")
HAIRS = rgbs("2b2028 5a3825 a8622d d9a441 8a8a94 b5432e e8e2da 3a2b4f")
FRINGES = (
    "-100 10 -84 -40 -30 -62 40 -70 82 -30 100 10 110 -130 -110 -130",
    "-100 10 -78 -44 -40 -40 0 -54 40 -40 78 -44 100 10 110 -130 -110 -130",
    "-100 0 -80 -30 10 -48 60 -76 84 -20 100 0 100 -130 -110 -130",
)
CROWNS = (
    "-92 -20 -92 -80 -50 -122 20 -132 74 -110 94 -60 90 -20 70 -70 -60 -74",
    "-90 -20 -80 -80 0 -116 80 -80 90 -20 60 -70 0 -84 -60 -70",
)


def faces(c: Canvas) -> None:
    """Head and shoulders, simply drawn."""
    r, rng, odds = c.r, c.rng, c.odds
    back, skin, hair = lch(r(0.65, 0.88), 0.11, c.hue), rng.choice(SKINS), rng.choice(HAIRS)
    cloth, trim = lch(r(0.4, 0.7), 0.13, c.hue + r(120, 240)), lch(0.9, 0.06, c.hue + 40)
    c.wash(down(lit(back, 0.15), back))
    f = c.at(c.w / 2, c.h * 0.46, c.u * 0.26)
    f.dot(0, 0.2, 1.72, lit(back, 0.35))
    long, hat = odds(0.45), odds(0.22)
    bald = not long and odds(0.25)
    beard, style = not long and odds(0.45), rng.randrange(4)
    if long:
        locks = "0 -128 70 -108 104 -40 104 50 118 130 60 150 -60 150 -118 130 -104 50 "
        f.fill(locks + "-104 -40 -70 -108", down(hair, dim(hair, 0.3)))
    chest = "-175 300 -160 175 -110 140 -40 120 40 120 110 140 160 175 175 300"
    f.fill(chest, sheen(cloth))
    with f.clip(chest):
        for k in range(8):
            if style == 0:
                f.line([(-2, 1.3 + k * 0.24), (2, 1.3 + k * 0.24)], 0.09, trim)
            for q in range(-6, 7 if style == 1 else -6):
                f.dot(q * 0.3 + k % 2 * 0.15, 1.3 + k * 0.2, 0.05, trim)
    f.fill("-30 70 30 70 36 128 0 148 -36 128", down(dim(skin), dim(skin, 0.05)))
    wide = r(0.92, 1.06)
    for k in (0, 1):
        side = f.at(0, 0, 1, 0, k == 1)
        if style == 2:
            side.fill([(0.4, 1.15), (0, 1.55), (0.45, 1.75), (0.7, 1.3)], trim)
        side.dot(0.86 * wide, 0.08, 0.16, ball(skin), ry=0.22)
        if long and style != 3:
            side.dot(0.9, 0.38, 0.08, lch(0.82, 0.13, 85))
    right = curve("0 -104 56 -94 86 -48 86 10 74 62 38 100 0 110", False)
    head = [(px * wide, py) for px, py in right]
    head += [(-px, py) for px, py in head[::-1]]
    f.at(0, 0.1, 1).fill(head, INK, 0.25, 0.08)
    f.fill(head, radial(lit(skin, 0.3), skin, skin, dim(skin)))
    with f.clip(head):
        for px in (-0.5, 0.5):
            f.dot(px, 0.36, 0.22, rgb("e0645c"), 0.35, 0.07)
        if beard:
            f.fill("-100 10 -66 20 -40 50 0 44 40 50 66 20 100 10 90 130 -90 130", hair)
        if not bald:
            f.fill(rng.choice(FRINGES), down(lit(hair, 0.15), hair))
    crown = 3 if bald or hat else rng.randrange(3)
    for k in range(11 if crown == 0 else 0):
        a = math.pi * (1 + k / 10)
        f.dot(0.82 * math.cos(a), -0.45 + 0.62 * math.sin(a), 0.24, ball(hair))
    if crown in (1, 2):
        if crown == 2:
            f.dot(0, -1.24, 0.34, ball(hair))
        f.fill(CROWNS[crown - 1], down(lit(hair, 0.25), hair))
    if hat:
        f.fill("-96 -44 -90 -110 -40 -152 40 -152 90 -110 96 -44 0 -62", fade(cloth))
        f.fill("-102 -40 -100 -66 0 -84 100 -66 102 -40 0 -58", trim)
        f.dot(0, -1.56, 0.17, ball(trim))
    iris, rim = rng.choice(rgbs("4a3526 3f6b8a 5a7a45 6b5a3a")), rng.choice(CLOTHS[:5])
    glasses = odds(0.35)
    for px in (-0.34, 0.34):
        eye = f.at(px, 0, 1)
        eye.dot(0, 0, 0.15, rgb("fffaf2"), ry=0.115)
        eye.dot(0.02, 0.01, 0.085, iris)
        eye.dot(0.02, 0.01, 0.045, INK)
        eye.dot(-0.01, -0.03, 0.022, WHITE)
        eye.line(arc(0, 0.02, 0.16, 0.14, 195, 345), 0.04, INK, 0.85)
        eye.line(arc(0, -0.12, 0.21, 0.14, 215, 325), 0.07, dim(hair, 0.2))
        if glasses:
            eye.dot(0, 0.02, 0.27, WHITE, 0.18)
            eye.line(arc(0, 0.02, 0.27, 0.25, 0, 360), 0.045, rim)
    if glasses:
        f.line([(-0.08, 0), (0.08, 0)], 0.045, rim)
    f.line("2 2 10 30 -4 34", 0.045, dim(skin, 0.35))
    if odds(0.45):
        mouth = arc(0, 0.56, 0.26, r(0.18, 0.26), 0, 180)
        f.fill(mouth, rgb("8a2f3a"))
        with f.clip(mouth):
            f.rect(-0.3, 0.5, 0.3, 0.63, WHITE)
    else:
        f.line(arc(0, 0.56, 0.26, r(0.1, 0.18), 8, 172), 0.05, rgb("a8434a"))


# ---------------------------------------------------------------- things, patterns

ROUND = "0 -84 40 -96 84 -66 98 -4 80 64 36 96 0 90 -36 96 -80 64 -98 -4 -84 -66 -40 -96"
FRUITS = {  # lightness, chroma, hue, height, outline
    "Apples": (0.57, 0.2, 27, 1.0, ROUND),
    "Pears": (0.78, 0.15, 112, 1.15, "0 -135 22 -120 34 -80 58 -30 88 20 80 80 30 102 "
              "-30 102 -80 80 -88 20 -58 -30 -34 -80 -22 -120"),
    "Oranges": (0.74, 0.18, 60, 0.95, ""),
    "Lemons": (0.88, 0.17, 98, 0.8, "-128 2 -108 -18 -60 -68 10 -80 72 -60 108 -14 126 0 "
               "108 16 70 62 0 78 -66 64 -108 20"),
    "Cherries": (0.45, 0.18, 20, 0.9, ""),
    "Plums": (0.42, 0.12, 310, 1.0, ROUND),
    "Peaches": (0.8, 0.12, 52, 1.0, ROUND),
    "Bananas": (0.87, 0.16, 92, 0.75, ""),
    "Limes": (0.68, 0.18, 130, 0.85, ""),
}  # fmt: skip


def fruit(c: Canvas) -> None:
    """A few fruits of one sort on a table."""
    r, u, (light, chroma, hue, tall, outline) = c.r, c.u, FRUITS[c.subject]
    wall, cloth = lch(r(0.45, 0.88), 0.07, c.hue), lch(r(0.6, 0.9), 0.05, c.hue + 130)
    c.wash(radial(lit(wall, 0.4), wall, dim(wall, 0.35), at=(0.25, 0.3), r=1.1))
    edge, floor = c.h * r(0.56, 0.62), c.h * 0.8
    c.rect(0, edge, c.w, c.h, fade(cloth, 0.25))
    c.rect(0, edge, c.w, edge + 9, INK, 0.2, 4)
    n = 1 if c.subject == "Bananas" else c.rng.randint(2, 5)
    size = u * (0.24 - 0.016 * n)
    if c.odds(0.6):
        dish, glaze = c.at(c.w / 2, floor, u * 0.48), lch(0.9, 0.04, c.hue + 60)
        dish.dot(0.02, 0.17, 1, INK, 0.45, 0.06, ry=0.22)
        dish.dot(0, 0.11, 1, down(glaze, dim(glaze, 0.4)), ry=0.23)
        dish.dot(0, 0.08, 1, lit(glaze, 0.4), ry=0.22)
        dish.dot(0, 0.09, 0.8, across(dim(glaze), glaze), ry=0.155)
    for k in sorted(range(n), key=lambda k: k % 2 == 0):
        # One fruit, its half width the unit, about the origin.
        gap = 1.75 / (1 + 0.05 * n) * size
        f = c.at(c.w / 2 + (k - (n - 1) / 2) * gap, floor, size * r(0.92, 1.08))
        f = f.at(0, 0.18 - 0.75 * tall - k % 2 * 0.35, 1)
        skin, blush = lch(light, chroma, hue + r(-9, 9)), lch(light, chroma, hue - 32)
        f.dot(0.35, 0.9 * tall, 1.05, INK, 0.5, 0.12, ry=0.2)
        if c.subject == "Bananas":
            for q in range(4):
                hand = f.at(0, 0.2 - q * 0.16, 1.15, q * 7 - 12)
                path = curve("-120 -70 -85 10 -10 52 70 40 125 -10", False)
                body = ribbon(path, 0.06, 0.5, 0.56, 0.5, 0.09)
                hand.at(0, 0.05, 1).fill(body, INK, 0.3, 0.04)
                hand.fill(body, fade(skin, 0.35))
                hand.line(path[3:-3], 0.025, dim(skin), 0.5)
                for tip in (path[0], path[-1]):
                    hand.dot(*tip, 0.06, rgb("5a4426"))
            continue
        lean = f.at(0, 0, 1, r(-14, 14))
        lean.fill(outline or oval(0, 0, 0.95, 0.93), ball(skin))
        if c.subject in ("Pears", "Apples", "Peaches"):
            f.dot(0.3, 0.2, 0.42, blush, 0.45, 0.14)
        for _ in range(90 if c.subject in ("Oranges", "Lemons", "Pears", "Limes") else 0):
            a, d = r(0, math.tau), 0.78 * math.sqrt(r(0, 1))
            f.dot(d * math.cos(a), d * math.sin(a) * 0.8, 0.013, INK, 0.2)
        if c.subject in ("Plums", "Peaches"):
            lean.line(arc(-0.5, 0, 0.55, 0.95, -75, 60), 0.03, INK, 0.25, 0.01)
        f.dot(-0.36, -0.42, 0.2, WHITE, 0.6, 0.05, ry=0.13, turn=-35)
        f.dot(0.4, 0.78, 0.35, lit(cloth), 0.25, 0.08, ry=0.08)
        if c.subject not in ("Lemons", "Oranges", "Limes"):
            top = lean.at(0, -1.3 if c.subject == "Pears" else -0.84, 1)
            rise = 1.5 if c.subject == "Cherries" else 0.42
            stalk = smooth([(0, 0.05), (0.08, -rise / 2), (0.24, -rise)], False)
            top.fill(ribbon(stalk, 0.06, 0.08), rgb("5c4327"))
            if c.odds(0.6):
                leaf = top.at(0.08, -0.15, 0.75, r(-30, 10), c.odds(0.3))
                leaf.fill(LEAF, sheen(lch(0.5, 0.12, r(120, 145)), 0.35))


def cups(c: Canvas) -> None:
    """A cup of coffee on its saucer."""
    r, hue, style = c.r, c.hue, c.index % 5
    wall, table = lch(r(0.72, 0.9), 0.06, hue + 170), lch(r(0.45, 0.7), 0.07, r(40, 80))
    c.wash(radial(lit(wall, 0.5), wall, dim(wall, 0.22), at=(0.3, 0.2), r=1.1))
    edge = c.h * r(0.6, 0.66)
    c.rect(0, edge, c.w, c.h, fade(table))
    for _ in range(26):
        y = c.rng.uniform(edge, c.h)
        c.dot(c.w * r(0, 1), y, c.w * r(0.1, 0.3), dim(table, 0.4), 0.25, ry=r(0.4, 1))
    tall, flip = r(1.05, 1.35), c.odds(0.5)
    glaze = lch(r(0.62, 0.92), r(0.03, 0.15), hue)
    accent, pale = lch(0.5, 0.13, hue + r(90, 200)), lit(glaze, 0.6)
    # The rim of the cup is about the origin, its half width the unit.
    cup = c.at(c.w * r(0.46, 0.54), c.h * r(0.4, 0.44), c.u * r(0.26, 0.29))
    dish = cup.at(0, tall, 1)
    dish.dot(0, 0.16, 1.75, INK, 0.45, 0.08, ry=0.34)
    dish.dot(0, 0.06, 1.65, down(glaze, dim(glaze, 0.4)), ry=0.38)
    dish.dot(0, 0.02, 1.65, slant(pale, glaze, dim(glaze, 0.12)), ry=0.37)
    dish.dot(0, 0.02, 1.52, accent, ry=0.33)
    dish.dot(0, 0.02, 1.47, slant(pale, glaze), ry=0.318)
    dish.dot(0, 0.02, 0.85, INK, 0.4, 0.06, ry=0.2)
    loop = [(0.85, 0.22), (1.3, 0.12), (1.5, 0.36), (1.22, 0.66), (0.72, 0.74)]
    loop = smooth([(px, py * tall) for px, py in loop], False)
    cup.at(0, 0, 1, 0, flip).fill(ribbon(loop, 0.2, 0.15, 0.17, 0.15), sheen(glaze, 0.35))
    right = curve("100 0 98 30 88 66 70 92 55 100", False)
    half = [(px, py * tall) for px, py in right] + arc(0, tall, 0.55, 0.1, 0, 90)
    body = half + [(-px, py) for px, py in half[::-1]]
    cup.fill(body, glaze)
    with cup.clip(body):
        for k in range(3 if style == 0 else 0):
            cup.line(arc(0, (0.3 + 0.2 * k) * tall, 1, 0.2, 0, 180), 0.09, accent)
        for k in range(-6, 7 if style in (1, 2) else -6):
            a = math.sin(k * 0.25)
            if style == 1:
                flute = [(a, 0), (a * 0.6, tall + 0.2)]
                cup.line(flute, 0.055 * (1.2 - abs(a)), accent)
            for row in range(4 if style == 2 else 0):
                px = math.sin((k + row % 2 / 2) * 0.3)
                cup.dot(px, 0.35 + 0.24 * row, 0.06 * (1.1 - abs(a)), accent, ry=0.06)
        if style == 3:
            cup.rect(-1, 0.55 * tall, 1, tall + 0.2, accent)
            cup.line(arc(0, 0.5 * tall, 1, 0.2, 0, 180), 0.05, pale)
        cup.rect(0.5, 0, 1.3, tall + 0.2, INK, 0.4, 0.2)
        cup.rect(-0.7, 0.2, -0.5, tall - 0.2, WHITE, 0.5, 0.08)
        cup.rect(-1.2, 0, -0.92, tall, INK, 0.2, 0.08)
    cup.dot(0, 0, 1, pale, ry=0.25)
    cup.dot(0, 0.01, 0.94, across(dim(glaze, 0.5), dim(glaze, 0.15)), ry=0.22)
    coffee, milk = rgbs("a5713f 6f4322 3f2413"), rgb("f6e3c2")
    cup.dot(0, 0.04, 0.88, radial(*coffee, at=(0.5, 0.45), r=0.6), ry=0.185)
    art = c.rng.randrange(3)
    for k in range(4 if art else 0):
        if art == 1:
            foam = (milk, rgb("8a5a30"))[k % 2]
            cup.dot(0, 0.05, 0.62 - 0.17 * k, foam, ry=0.13 - 0.035 * k)
        else:
            leaf = arc(0, 0.16 - 0.07 * k, 0.2 + 0.1 * k, 0.06, 180, 360)
            cup.line(leaf, 0.05, milk, 0.9)
    for k in (-1, 0, 1):
        sway, n = r(0, 6), c.rng.randint(9, 11)
        path = [(k * 0.38 + math.sin(q * 0.7 + sway) * (0.05 + 0.012 * q), -q * 0.13)
                for q in range(n)]  # fmt: skip
        cup.fill(ribbon(smooth(path, False), 0.05, 0.17, 0.02), WHITE, 0.5, 0.045)


IMPRINTS = ("TYPE & FORM", "ALPHABET SERIES", "PRINTED MATTER", "SPECIMEN SHEET")


def letters(c: Canvas) -> None:
    """One great letter on a poster."""
    r, u, hue, style = c.r, c.u, c.hue, c.index % 4
    ground, tone = lch(r(0.6, 0.9), r(0.08, 0.14), hue), lch(0.96, 0.03, hue + 60)
    deep, pop = lch(0.3, 0.09, hue + 20), lch(0.68, 0.18, hue + r(150, 210))
    c.wash(ground)
    p = c.at(c.w / 2, c.h * 0.47, u)
    for k in range(24 if style == 0 else 0):
        p.fill([(0, 0), *arc(0, 0, 2, 2, 15 * k, 15 * k + 7.5)], lit(ground, 0.22))
    if style == 1:
        p.dot(0, 0, 0.4, pop)
        p.rect(-1, 0.1, 1, 2, dim(ground, 0.22))
    for k in range(6 if style == 2 else 0):
        c.dot(0, c.h, u * (1.25 - 0.2 * k), (lit(ground), ground)[k % 2])
    for k in range(1600 if style == 3 else 0):
        x, y = k % 40 * u * 0.05, k // 40 * u * 0.05
        c.dot(x, y, u * 0.019 * (0.1 + y / c.h), pop, 0.75)
    for k in range(14, -1, -1):
        x, y = c.w / 2 + k * u * 0.0062, c.h * 0.47 + k * u * 0.0062
        c.text(c.subject, x, y, u * 0.86, deep if k else tone, u * 0.014)
    c.text(c.subject, x, y, u * 0.86, tone if style == 1 else fade(pop, 0.1), 0)
    band = c.h * 0.925
    c.rect(u * 0.05, band - u * 0.034, c.w - u * 0.05, band + u * 0.034, deep, r=u * 0.034)
    c.text("  ".join(c.rng.choice(IMPRINTS)), c.w / 2, band, u * 0.032, tone, 0)


def tartans(c: Canvas) -> None:
    """Woven cloth: one sett of threads both ways, in a twill."""
    r, rng, hue = c.r, c.rng, c.hue
    base, other = lch(r(0.36, 0.5), 0.11, hue), lch(0.28, 0.06, hue + r(0, 200))
    light, pop = lch(0.9, 0.04, 90), lch(0.7, 0.16, hue + rng.choice((60, 150, 180)))
    wide = rng.randint(4, 8)
    sett = [(base, rng.randint(9, 16)), (other, wide), (base, 3), (other, wide)]
    sett += [(light, rng.choice((1, 2))), (other, wide // 2), (pop, 2), (base, wide)]
    tones = [tone for tone, n in sett + sett[-2::-1] for _ in range(n)]
    yarn = np.array(tones, np.float32)
    w, h = c.w * 2, c.h * 2
    gy, gx = np.mgrid[0:h, 0:w].astype(np.float32)
    turn = math.radians((0, 0, 45, 0, -18, 0, 12)[c.index % 7])
    pitch = 2 * r(2.6, 3.8)
    sag = noise(rng, w, h, c.u * 1.6, 2) * pitch * 6
    along = (gx * math.cos(turn) + gy * math.sin(turn) + sag) / pitch + 999
    over = (gy * math.cos(turn) - gx * math.sin(turn) + sag) / pitch + 999
    i, j = along.astype(np.int32), over.astype(np.int32)
    up = (i + j) % 4 < 2
    cloth = yarn[np.where(up, i, j) % len(yarn)]
    relief = 0.8 + 0.36 * np.sin(np.where(up, along - i, over - j) * math.pi)
    folds = noise(rng, w, h, c.u * 0.9, 3, 0.6)
    c.cover(cloth * (relief * (0.72 + 0.5 * folds))[..., None])


def windows(c: Canvas) -> None:
    """Stained glass: a rose of leaded panes, lit from behind."""
    r, rng, hue, w, h = c.r, c.rng, c.hue, c.w * 2, c.h * 2
    unit = c.u * 2
    gy, gx = np.mgrid[0:h, 0:w].astype(np.float32) / unit
    gx, gy = gx - w / unit / 2, gy - h / unit / 2
    # Fold the plane into one sector; the panes there are repeated all round.
    fold = math.pi / (6, 8, 5, 10, 7, 12)[c.index % 6]
    far, angle = np.hypot(gx, gy), np.arctan2(gy, gx) + math.tau
    sector = (angle / fold).astype(np.int32)
    angle = np.abs(angle % (2 * fold) - fold)
    px, py = far * np.cos(angle), far * np.sin(angle)
    seeds, rows = [(0.0, 0.0)], rng.randint(5, 7)
    for row in range(1, rows + 2):
        d, n = 0.62 * row / rows * r(0.94, 1.06), max(1, row // 3)
        for k in range(1 + row // 3):
            a = min(fold, fold * (k + 0.5 * (row % 2)) / n) if row > 2 else fold * (row % 2)
            seeds.append((d * math.cos(a), d * math.sin(a)))
    near = second = np.full(far.shape, 9, np.float32)
    which = np.zeros(far.shape, np.int32)
    for k, (sx, sy) in enumerate(seeds):
        reach = np.hypot(px - np.float32(sx), py - np.float32(sy))
        second = np.minimum(second, np.maximum(near, reach))
        which[reach < near] = k
        near = np.minimum(near, reach)
    hues = [v % 360 for v in (hue, hue + r(25, 45), hue + r(150, 200), hue - r(40, 70), 85)]
    tints = [(hue, r(0.55, 0.82)) for hue in rng.choices(hues, k=len(seeds))]
    panes = [lch(v + 0.1 * (40 < hue < 110), r(0.12, 0.19), hue) for hue, v in tints]
    grain = noise(rng, w, h, unit / 15, 5, 0.4)
    glow = 1.1 - 0.62 * far + 0.35 * grain - 1.1 * near
    glow *= 0.9 + 0.2 * ((which * 7 + sector * 5) % 11) / 11
    glass = np.array(panes, np.float32)[which] * glow[..., None]
    glass += 26 * np.clip(0.6 - far, 0, 1)[..., None]
    gap = second - near
    pane = np.clip((gap - 0.011) * unit * 0.45, 0, 1)
    for d in (0.47, 0.485):
        pane *= np.clip((np.abs(far - d) - 0.004) * unit * 0.6, 0, 1)
    shine = 25 + np.clip(1 - np.abs(gap - 0.006) * c.u * 0.5, 0, 1) * 20
    c.cover(glass * pane[..., None] + (shine * (1 - pane))[..., None])


def mazes(c: Canvas) -> None:
    """A labyrinth, coloured by the distance from its start."""
    r, rng, hue, dark = c.r, c.rng, c.hue, c.index % 2 == 0
    c.wash(sheen(lch(0.24, 0.05, hue + 180) if dark else lch(0.94, 0.025, hue + 60), 0.06))
    n = rng.choice((13, 16, 19, 23))
    cell = c.u * 0.88 / n
    cols, rows = int(c.w * 0.92 / cell), int(c.h * 0.92 / cell)
    m = c.at((c.w - (cols - 1) * cell) / 2, (c.h - (rows - 1) * cell) / 2, cell)
    free = {(i, j) for i in range(cols) for j in range(rows)}
    if c.index % 4 == 1:
        mx, my = (cols - 1) / 2, (rows - 1) / 2
        free = {p for p in free if math.hypot(p[0] - mx, p[1] - my) < n / 2 + 0.3}
    start = rng.choice(sorted(free))
    depth, trail, edges = {start: 0}, [start], []
    free.remove(start)
    while trail:
        i, j = trail[-1 if c.odds(0.93) else rng.randrange(len(trail))]
        ways = {(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)} & free
        if not ways:
            trail.remove((i, j))
            continue
        to = rng.choice(sorted(ways))
        free.remove(to)
        depth[to] = depth[i, j] + 1
        edges.append(((i, j), to))
        trail.append(to)
    end, span = max(depth, key=depth.__getitem__), rng.choice((90, -110, 150, -60))
    wide = r(0.56, 0.68)
    m.at(0.08, 0.14, 1).fill([ribbon(e, wide) for e in edges], INK, 0.4, 0.1)
    for a, b in sorted(edges, key=lambda e: depth[e[1]]):
        t = depth[b] / depth[end]
        light = 0.9 - 0.42 * t if dark else 0.78 - 0.4 * t
        m.line([a, b], wide, lch(light, 0.14, hue + span * t))
    m.dot(*start, wide * 0.27, INK if dark else CREAM)
    m.dot(*end, wide * 0.27, CREAM)


# ground, then inks
INKS = palettes("""
f3e9d2 d1495b edae49 00798c 2e4057 8fb8a8
efe4d0 2a6f77 e07a3f f2c14e 3b3a4a a9c5a0
e8d9c5 7d5ba6 f28f79 f3c969 55828b 3a3042
dfe7e0 1b4965 e4572e f3a712 62b6cb 5f7470
f0dcca 9a031e fb8b24 5f0f40 0f4c5c e9b872
2e3a46 f2b134 ed553b 4fb99f f4ead5 6a8caf
f5ead6 4a7c59 c8d5b9 e76f51 264653 f2cc8f
f6dfd6 c9577b f2a65a 5b8e9f 40304d f7c6c0
""")


def abstracts(c: Canvas) -> None:
    """A mid-century composition of pebbles, discs and rods."""
    r, rng, u, (ground, *inks) = c.r, c.rng, c.u, c.turns(INKS)
    pen = CREAM if sum(ground) < 300 else INK
    c.wash(slant(lit(ground, 0.2), ground))
    for _ in range(rng.randint(3, 4)):
        x, y = c.w * r(0.2, 0.8), c.h * r(0.2, 0.8)
        pebble = c.blob(x, y, u * r(0.16, 0.36), u * r(0.14, 0.3), 0.22)
        c.fill(pebble, rng.choice(inks), 0.86)
    for _ in range(rng.randint(2, 3)):
        wing = c.at(c.w * r(0.15, 0.85), c.h * r(0.15, 0.85), u * r(0.12, 0.2), r(0, 360))
        shape = "-100 40 -60 -30 0 -62 60 -30 100 40 60 16 0 -8 -60 16"
        wing.fill(shape, rng.choice(inks), 0.92)
    for _ in range(rng.randint(2, 4)):
        disc = c.at(c.w * r(0.1, 0.9), c.h * r(0.1, 0.9), u * r(0.04, 0.13))
        disc.dot(0, 0, 1, rng.choice(inks), 0.9)
        if c.odds(0.6):
            disc.dot(0, 0, 0.62, ground)
            disc.dot(0, 0, 0.34, rng.choice(inks))
    rods = c.at(c.w * r(0.1, 0.5), c.h * r(0.1, 0.3), u)
    for k in range(rng.randint(7, 13)):
        rods.line([(k * 0.035, 0), (k * 0.035, 0.3 + 0.1 * math.sin(k * 0.8))], 0.005, pen)
    for _ in range(rng.randint(2, 4)):
        spark = c.at(c.w * r(0.1, 0.9), c.h * r(0.1, 0.9), u * r(0.05, 0.09))
        n = rng.choice((6, 8, 10))
        for x, y in arc(0, 0, 1, 1, 0, 360)[: 36 : 36 // n]:
            spark.line([(0, 0), (x, y)], 0.06, pen)
            spark.dot(x, y, 0.16, rng.choice((pen, *inks)))
    path = [(c.w * (k / 5 - 0.1), c.h * r(0.25, 0.75)) for k in range(8)]
    c.line(smooth(path, False), u * 0.006, pen)
    grid = c.at(c.w * r(0.4, 0.75), c.h * r(0.6, 0.8), u * 0.036)
    for k in range(24):
        grid.dot(k % 6, k // 6, 0.2, pen)


# ---------------------------------------------------------------- the catalogue

SIZES = {
    "wide": ((640, 480), (720, 480), (800, 500)),
    "tall": ((480, 640), (500, 700), (450, 600)),
    "even": ((600, 600), (540, 540), (640, 480), (480, 640)),
    "mixed": ((600, 600), (480, 640), (500, 700), (540, 540), (450, 600)),
}
SUBJECTS = {
    skylines: tuple(HOURS),
    trees: tuple(SEASONS),
    flowers: tuple(BLOOMS),
    cats: tuple(COATS),
    fruit: tuple(FRUITS),
    letters: tuple("RAGEBKSQMWNHXDZFPJ"),
}
# Three lines for each kind: its painter, shapes of sheet and pattern of title, where
# {s} is the subject; then the words that {a} and {b} of the title are drawn from.
WORDS = """
landscapes wide {a} {b}
Quiet Ridge/Far Hills/The Long Pass/Seven Summits/Cold Peak/Pine Valley/Eagle Saddle
at Dawn/before Rain/in October/from the Hut/after the Thaw/towards Evening
skylines wide {a} at {s}
Harbour District/Port Amsel/The East Bank/New Carrow/Lanternside/Ferry Landing/Old Exchange

boats wide {a} {b}
Red Kite/Little Heron/The Marguerite/Two Sisters/Saltwind/Petrel/Morning Star
over the Bay/off the Point/Homeward/in Light Airs/rounding the Isle/at Slack Water
balloons mixed {a} {b}
Silent Ascent/The Great Float/Drifting/Burner and Breeze/Lighter than Air/The Regatta
over Hay Country/at Seven O'Clock/above Lindenau/in Still Air/with Company
trees mixed {a} {s}
The Boundary Oak/Grandmother's Lime/Old Elm/The Meeting Tree/Lone Maple/Orchard's End

houses wide {a} {b}
Chandler/Weaver/Mercer/Rope/Almond/Lower Mill/Saint Bride/Copper/Old Fish
Street/Row/Quay/Terrace/Lane
fishes wide {a} {b}
Gilded/Idle/Reef/Solemn/Striding/Lagoon/Velvet/Wandering/Harlequin
Wrasse/Damsel/Snapper/Parrotfish/Bream/Angelfish
flowers mixed {s} {a}
for Clara/by the Gate/in June Light/after a Shower/on the Sill/at Midsummer/in the Garden

mushrooms mixed {a} {b}
Damp/Hushed/Wayside/Fairy/Late/Birchwood/Hollow/Rainy-Day
Parasols/Bonnets/Caps/Company/Bells/Ring
butterflies wide {a} {b}
Lesser/Painted/Alpine/Dusk/Royal/Marsh/Veiled/Southern/Mourning
Emperor/Fritillary/Swallowtail/Argus/Duchess/Apollo
planets even {a} {b}
Ostara/Kepheon/Thule/Mirabel/Vanth/Ilmatar/Sorrel/Halcyon/Tamsin
Rising/in Half-Light/Approached/Seen from Afar/at Perihelion
cats mixed {a}, {s}
Miss Pepper/The Landlord/Olive/Professor Tibbs/Dumpling/Admiral/Juniper/Mister Sock/Figaro

faces mixed {a} {b}
Portrait of/Sitting with/Sketch of/Waiting for/Remembering
Robin/Sasha/Noor/a Neighbour/the Cellist/Kim/the Lighthouse Keeper/Bo/a Stranger
fruit wide {s} {a}
on a Table/in North Light/for Breakfast/from Market/before Supper/against a Wall/Left Over

cups wide {a} {b}
First/Second/Corner-Table/Sunday/Unhurried/Rainy/Station/Borrowed
Coffee/Cortado/Cup/Espresso/Flat White
letters tall The Letter {s}


tartans even {a} {b}
Glen Farrow/Kildarroch/Strathmore Bay/Ballinluig/Inverbrae/Loch Ossian/Ardnish
Dress Tartan/Hunting Tartan/Blanket/Shawl
windows even {a} {b}
North/Lady Chapel/Pilgrims'/Harvest/Vesper/Glaziers'/Evensong
Rose/Window/Lights/Wheel
mazes even {a} {b}
Patient/Gentle/Minotaur's/Blind/Clockmaker's/Wandering/Sleepless/Paper
Labyrinth/Maze/Garden/Thread/Errand
abstracts wide {a} {b}
Composition with/Study for/Nocturne for/Conversation of/Suite for
Pebbles/a Mobile/Three Moons/Jazz Quartet/Kites/Tide Tables
"""
ARTISTS = """Ines Calloway/Bram Oosterveld/Yuki Tanemura/Odile Farrant/Anselm Quill
Rosa Bellwether/Teodor Halasz/Nkechi Obara/Priya Sundaresh/Mattias Lindqvar"""
COPIES = ("cropped", "mirrored", "tinted", "resized", "re-encoded")
GRAIN = {houses: 1.8, letters: 1.8, mazes: 1.8}


@dataclass(frozen=True)
class Plan:
    """One picture to make: which, what it is called, and the copy to make of it."""

    painter: Callable[[Canvas], None]
    index: int
    size: tuple[int, int]
    subject: str
    title: str
    file: str
    year: int
    artist: str
    copy: str = ""

    @property
    def kind(self) -> str:
        return self.painter.__name__


def plan() -> list[Plan]:
    """The whole gallery, before a stroke of it is painted."""
    plans: list[Plan] = []
    lines = WORDS.strip("\n").split("\n")
    for order, head in enumerate(lines[::3]):
        name, shape, pattern = head.split(" ", 2)
        painter, rng = globals()[name], random.Random(f"titles of {name}")
        first, last = (lines[order * 3 + k].split("/") for k in (1, 2))
        words = [(a, b) for a in first for b in last]
        rng.shuffle(words)
        hands = rng.sample(ARTISTS.replace("\n", "/").split("/"), 4)
        subjects = SUBJECTS.get(painter, ("",))
        for k in range(PER_KIND):
            subject, (a, b) = subjects[k % len(subjects)], words[k % len(words)]
            title = pattern.format(s=subject, a=a, b=b)
            plain = "".join(x if x.isalnum() else " " for x in title.replace("'", ""))
            ending = {2: "webp", 6: "png", 11: "webp"}.get((k + order) % 18, "jpg")
            file = f"{name}/{'-'.join(plain.lower().split())}.{ending}"
            size = SIZES[shape][(k + k // 5) % len(SIZES[shape])]
            step = order * 2 + (k > 8)
            copied = COPIES[step % 5] if k in (5, 14) and step < COPY_COUNT else ""
            year, artist = rng.randint(1950, 2025), rng.choice(hands)
            item = (painter, k, size, subject, title, file, year, artist, copied)
            plans.append(Plan(*item))
    return plans


def paint(item: Plan) -> Image.Image:
    """One picture, the same each time."""
    rng = random.Random(f"{item.kind} {item.index}")
    canvas = Canvas(*item.size, rng, item.index, item.subject)
    item.painter(canvas)
    return canvas.finish(GRAIN.get(item.painter, 2.2))


def altered(picture: Image.Image, how: str) -> Image.Image:
    """A near-duplicate of a picture."""
    w, h = picture.size
    if how == "cropped":
        return picture.crop((int(w * 0.05), int(h * 0.06), int(w * 0.97), int(h * 0.98)))
    if how == "mirrored":
        return ImageOps.mirror(picture)
    if how == "resized":
        return picture.resize((int(w * 0.55), int(h * 0.55)), Image.Resampling.LANCZOS)
    if how == "tinted":
        warm = Image.new("RGB", picture.size, rgb("ffcf8f"))
        return Image.blend(picture, ImageChops.multiply(picture, warm), 0.75)
    return picture


# Hue in degrees where each colour begins.
STARTS = (0, 16, 42, 68, 158, 192, 250, 300, 340)
NAMES = ["red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "red"]


def named_colour(picture: Image.Image) -> str:
    """The colour that most of a picture is, vivid pixels counting for more."""
    small = picture.convert("RGB").resize((48, 48), Image.Resampling.BOX)
    hsv = np.asarray(small.convert("HSV")).reshape(-1, 3) / 255
    hue, strong, bright = hsv[:, 0] * 255 / 256 * 360, hsv[:, 1], hsv[:, 2]
    names = np.array(NAMES)[np.searchsorted(STARTS, hue, "right") - 1]
    warm = (hue < 46) | (hue > 345)
    names[warm & (bright < 0.62) & (strong > 0.2)] = "brown"
    names[(names == "red") & (strong < 0.5) & (bright > 0.7)] = "pink"
    names[(strong < 0.14) | (bright < 0.16)] = "grey"
    weight = np.where(names == "grey", 0.04, strong**1.5 * bright)
    return max(np.unique(names), key=lambda name: weight[names == name].sum())


def save(picture: Image.Image, path: Path, quality: int = 83) -> None:
    if path.suffix == ".png":
        picture.quantize(256).save(path, optimize=True)
    else:
        picture.save(path, quality=quality)


def make(job: tuple[Plan, str]) -> list[list[str | int]]:
    """Paint one picture and its copy, if it has one; their rows of the CSV."""
    item, folder = job
    picture, path = paint(item), Path(folder, item.file)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(picture, path)
    facts = [item.kind, item.year]
    colour = named_colour(picture)
    rows = [[item.file, item.title, *facts, colour, item.artist, ""]]
    if item.copy:
        with Image.open(path) as saved:
            other = altered(saved.convert("RGB"), item.copy)
        file = f"{item.kind}/{path.stem}-{item.copy}.jpg"
        save(other, Path(folder, file), 22 if item.copy == "re-encoded" else 84)
        title, note = f"{item.title} ({item.copy})", f"{item.copy} copy of {path.name}"
        rows.append([file, title, *facts, named_colour(other), item.artist, note])
    return rows


def make_gallery(out_dir: Path) -> int:
    """Make the gallery, unless it is there already; the number of its pictures."""
    stamp, table = out_dir / ".complete", out_dir / "gallery.csv"
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    mark = f"{source} Pillow {PIL.__version__}\n"
    before: list[str] = []
    if table.exists():
        with table.open(newline="", encoding="utf-8") as file:
            before = [row["file"] for row in csv.DictReader(file)]
    ready = stamp.exists() and stamp.read_text() == mark and len(before) > 0
    if ready and all((out_dir / name).exists() for name in before):
        return len(before)
    stamp.unlink(missing_ok=True)
    jobs = [(item, str(out_dir)) for item in plan()]
    try:
        with ProcessPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            made = list(pool.map(make, jobs, chunksize=6))
    except (pickle.PicklingError, ImportError, BrokenProcessPool):
        made = list(map(make, jobs))  # imported in a way other processes cannot follow
    rows = [row for part in made for row in part]
    for name in set(before) - {str(row[0]) for row in rows}:
        (out_dir / name).unlink(missing_ok=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    stamp.write_text(mark)
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Paint the demo gallery.")
    parser.add_argument("out_dir", type=Path, help="folder to put the pictures in")
    out_dir = parser.parse_args().out_dir
    print(f"{make_gallery(out_dir)} pictures in {out_dir}")


if __name__ == "__main__":
    main()
