"""Paint the demo gallery: about 400 small pictures of 23 kinds, and a CSV of them.

    python demo/gallery.py OUT_DIR

Every picture is drawn from scratch with Pillow and numpy, each from its own seed, so
that two runs with the same Pillow give the same pixels. Some thirty of the pictures
are near-duplicates of others (cropped, mirrored, tinted, resized, re-encoded), as any
real collection has; the ``note`` column of ``gallery.csv`` says which.

The file reads from the general to the particular: colours, shapes, the canvas, one
painter per kind, then the catalogue (titles, years, artists) and the writing of files.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import math
import os
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

Colour = tuple[int, int, int]
Point = tuple[float, float]
Points = list[Point]

SCALE = 2  # pictures are drawn this many times larger, then reduced
PER_KIND = 18
COPY_COUNT = 35
COLUMNS = ("file", "title", "kind", "year", "colour", "artist", "note")

# ---------------------------------------------------------------- colours


def rgb(text: str) -> Colour:
    """A colour from six hexadecimal digits."""
    return int(text[:2], 16), int(text[2:4], 16), int(text[4:], 16)


def rgbs(text: str) -> list[Colour]:
    """Colours from a line of hexadecimal words."""
    return [rgb(word) for word in text.split()]


def lch(light: float, chroma: float, hue: float) -> Colour:
    """A colour by OKLCH lightness (0-1), chroma (0-0.3) and hue (degrees)."""
    a = chroma * math.cos(math.radians(hue))
    b = chroma * math.sin(math.radians(hue))
    x = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    y = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    z = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * x - 3.3077115913 * y + 0.2309699292 * z,
        -1.2684380046 * x + 2.6097574011 * y - 0.3413193965 * z,
        -0.0041960863 * x - 0.7034186147 * y + 1.7076147010 * z,
    )
    red, green, blue = (
        round(255 * min(1.0, 1.055 * max(v, 0.0031308) ** (1 / 2.4) - 0.055))
        for v in linear
    )
    return red, green, blue


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """The colour a share ``t`` of the way from ``a`` to ``b``."""
    red, green, blue = (round(p + (q - p) * t) for p, q in zip(a, b, strict=True))
    return red, green, blue


WHITE, BLACK, INK = rgb("ffffff"), rgb("000000"), rgb("23202b")
CREAM = rgb("f6efe0")


def lighter(colour: Colour, t: float = 0.25) -> Colour:
    return mix(colour, rgb("fff8ea"), t)


def darker(colour: Colour, t: float = 0.25) -> Colour:
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
        return small.resize((width, height), Image.Resampling.BICUBIC)


Fill = Colour | Grad


def down(*stops: Colour) -> Grad:
    return Grad(stops)


def across(*stops: Colour) -> Grad:
    return Grad(stops, b=(1.0, 0.0))


def slant(*stops: Colour) -> Grad:
    return Grad(stops, b=(1.0, 1.0))


def radial(*stops: Colour, at: Point = (0.35, 0.3), r: float = 0.85) -> Grad:
    return Grad(stops, a=at, radius=r)


def ball(colour: Colour) -> Grad:
    """Light from the upper left on something round."""
    return radial(lighter(colour, 0.5), colour, colour, darker(colour, 0.45))


# ---------------------------------------------------------------- shapes


def oval(x: float, y: float, rx: float, ry: float = 0.0, turn: float = 0.0) -> Points:
    ring = [math.tau * k / 72 for k in range(72)]
    return place([(rx * math.cos(a), (ry or rx) * math.sin(a)) for a in ring], x, y,
                 turn=turn)


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> Points:
    """Points along an ellipse, from one angle to another (degrees, clockwise)."""
    ring = [math.radians(start + (end - start) * k / 36) for k in range(37)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in ring]


def box(x0: float, y0: float, x1: float, y1: float, r: float = 0.0) -> Points:
    """A rectangle, with round corners where ``r`` is given."""
    if not r:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    r = min(r, abs(x1 - x0) / 2, abs(y1 - y0) / 2)
    return (
        arc(x0 + r, y0 + r, r, r, 180, 270) + arc(x1 - r, y0 + r, r, r, 270, 360)
        + arc(x1 - r, y1 - r, r, r, 0, 90) + arc(x0 + r, y1 - r, r, r, 90, 180)
    )


def star(x: float, y: float, r: float, n: int = 5, depth: float = 0.4) -> Points:
    return [
        (x + (r if k % 2 == 0 else r * depth) * math.sin(math.pi * k / n),
         y - (r if k % 2 == 0 else r * depth) * math.cos(math.pi * k / n))
        for k in range(2 * n)
    ]


def smooth(points: Sequence[Point], closed: bool = True, steps: int = 10) -> Points:
    """A Catmull-Rom curve through the points."""
    p = list(points)
    p = [p[-1], *p, p[0], p[1]] if closed else [p[0], *p, p[-1]]
    out: Points = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False):
        for k in range(steps):
            t = k / steps
            w = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3,
                 t + 4 * t**2 - 3 * t**3, t**3 - t**2)
            out.append((
                sum(q * s[0] for q, s in zip(w, (a, b, c, d), strict=True)) / 2,
                sum(q * s[1] for q, s in zip(w, (a, b, c, d), strict=True)) / 2,
            ))
    return out if closed else [*out, p[-2]]


def curve(text: str, steps: int = 10, closed: bool = True) -> Points:
    """A smooth curve through points given as hundredths: "x y x y ..."."""
    n = [int(word) / 100 for word in text.split()]
    return smooth(list(zip(n[::2], n[1::2], strict=True)), closed, steps)


def ribbon(points: Sequence[Point], *widths: float) -> Points:
    """A band along a path, its width passing evenly through the widths given."""
    n = len(points)
    share = np.linspace(0, 1, n)
    wide = np.interp(share, np.linspace(0, 1, len(widths)), widths) / 2
    left, right = [], []
    for k, (x, y) in enumerate(points):
        (x0, y0), (x1, y1) = points[max(k - 1, 0)], points[min(k + 1, n - 1)]
        size = math.hypot(x1 - x0, y1 - y0) or 1.0
        nx, ny = -(y1 - y0) / size * float(wide[k]), (x1 - x0) / size * float(wide[k])
        left.append((x + nx, y + ny))
        right.append((x - nx, y - ny))
    return left + right[::-1]


def blob(rng: random.Random, x: float, y: float, rx: float, ry: float,
         wobble: float = 0.12, n: int = 9) -> Points:
    """A pebble: an oval whose outline wanders."""
    knots = [
        (x + rx * math.cos(math.tau * k / n) * (1 + rng.uniform(-wobble, wobble)),
         y + ry * math.sin(math.tau * k / n) * (1 + rng.uniform(-wobble, wobble)))
        for k in range(n)
    ]
    return smooth(knots)


def place(points: Sequence[Point], x: float, y: float, size: float = 1.0,
          turn: float = 0.0, flip: bool = False) -> Points:
    """A shape about the origin, sized, turned (degrees) and put at a place."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    side = -size if flip else size
    return [
        (x + side * (px * cos - py * sin), y + size * (px * sin + py * cos))
        for px, py in points
    ]


def ridge(rng: random.Random, rough: float = 0.55, levels: int = 7) -> list[float]:
    """Heights of about -1 to 1 along a mountain ridge, by midpoint displacement."""
    heights, step = [rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)], 0.7
    for _ in range(levels):
        mids = [(a + b) / 2 + rng.uniform(-step, step)
                for a, b in zip(heights, heights[1:], strict=False)]
        heights = [h for pair in zip(heights, [*mids, 0.0], strict=True) for h in pair]
        heights.pop()
        step *= rough
    return heights


def noise(rng: random.Random, width: int, height: int, cell: float, octaves: int = 4,
          stretch: float = 1.0) -> np.ndarray:
    """Soft noise from 0 to 1, with features about ``cell`` pixels across."""
    source = np.random.default_rng(rng.getrandbits(32))
    total = np.zeros((height, width), np.float32)
    for k in range(octaves):
        size = max(cell / 2**k, 1.0)
        w, h = int(width / (size * stretch)) + 2, int(height / size) + 2
        small = Image.fromarray(source.random((h, w), dtype=np.float32))
        layer = small.resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer) / 2**k
    low, high = float(total.min()), float(total.max())
    return (total - low) / (high - low or 1.0)


# ---------------------------------------------------------------- the canvas


@dataclass
class Canvas:
    """A picture being painted; places and sizes are in pixels of the finished one."""

    w: int
    h: int
    rng: random.Random
    index: int = 0
    subject: str = ""
    img: Image.Image = field(init=False)
    draw: ImageDraw.ImageDraw = field(init=False)

    def __post_init__(self) -> None:
        self.img = Image.new("RGB", (self.w * SCALE, self.h * SCALE))
        self.draw = ImageDraw.Draw(self.img)

    @property
    def u(self) -> float:
        """The unit most painters size things by: the shorter side."""
        return float(min(self.w, self.h))

    @property
    def hue(self) -> float:
        """A hue of this picture's own, far from its predecessors'."""
        return (self.index * 137.508 + self.rng.uniform(-12, 12)) % 360

    def pick(self, options: Sequence[list[Colour]]) -> list[Colour]:
        """One palette of several, in turn, so that each is used about as often."""
        return options[self.index % len(options)]

    def r(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    def wash(self, fill: Fill) -> None:
        self.fill(box(0, 0, self.w, self.h), fill)

    def fill(self, points: Points, fill: Fill, alpha: float = 1.0, blur: float = 0.0
             ) -> None:
        self.union([points], fill, alpha, blur)

    def union(self, shapes: Sequence[Points], fill: Fill, alpha: float = 1.0,
              blur: float = 0.0) -> None:
        """Fill several shapes as one."""
        if isinstance(fill, tuple) and alpha >= 1 and not blur:
            for s in shapes:
                self.draw.polygon([(x * SCALE, y * SCALE) for x, y in s], fill=fill)
            return

        def stencil(draw: ImageDraw.ImageDraw, k: float, ox: float, oy: float) -> None:
            for s in shapes:
                draw.polygon([((x - ox) * k, (y - oy) * k) for x, y in s], fill=255)

        self._paint([p for s in shapes for p in s], stencil, fill, alpha, blur)

    def line(self, points: Sequence[Point], width: float, fill: Fill,
             alpha: float = 1.0, blur: float = 0.0) -> None:
        """A stroke of even width with round ends."""
        def stencil(draw: ImageDraw.ImageDraw, k: float, ox: float, oy: float,
                    ink: Colour | int = 255) -> None:
            path = [((x - ox) * k, (y - oy) * k) for x, y in points]
            r = width * k / 2
            draw.line(path, fill=ink, width=max(1, round(2 * r)), joint="curve")
            if r > 1:
                for x, y in (path[0], path[-1]):
                    draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)

        if isinstance(fill, tuple) and alpha >= 1 and not blur:
            stencil(self.draw, SCALE, 0, 0, fill)
            return
        half = width / 2
        edge = [(x + d, y + d) for x, y in points for d in (-half, half)]
        self._paint(edge, stencil, fill, alpha, blur)

    def text(self, text: str, x: float, y: float, size: float, fill: Fill,
             stroke: float = 0.0, alpha: float = 1.0, blur: float = 0.0) -> None:
        """Lettering centred on a place, in the typeface that comes with Pillow."""
        def stencil(draw: ImageDraw.ImageDraw, k: float, ox: float, oy: float) -> None:
            font = ImageFont.load_default(size=size * k)
            bold = round(stroke * k)
            x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font, stroke_width=bold)
            at = ((x - ox) * k - (x0 + x1) / 2, (y - oy) * k - (y0 + y1) / 2)
            draw.text(at, text, fill=255, font=font, stroke_width=bold)

        font = ImageFont.load_default(size=size)
        x0, y0, x1, y1 = font.getbbox(text)
        w, h = (x1 - x0) / 2 + stroke + 2, (y1 - y0) / 2 + stroke + 2
        self._paint([(x - w, y - h), (x + w, y + h)], stencil, fill, alpha, blur)

    def glow(self, x: float, y: float, r: float, colour: Colour, alpha: float = 0.6
             ) -> None:
        """Light falling off about a place."""
        self.fill(oval(x, y, r * 0.6), colour, alpha, r * 0.35)

    def shadow(self, points: Points, dx: float, dy: float, blur: float,
               alpha: float = 0.35, colour: Colour = INK) -> None:
        self.fill([(x + dx, y + dy) for x, y in points], colour, alpha, blur)

    def _paint(self, points: Sequence[Point], stencil: Callable[..., None], fill: Fill,
               alpha: float, blur: float) -> None:
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        tight = (min(xs), min(ys), max(xs), max(ys))
        pad = 1 + 3 * blur
        x0, y0 = max(int(tight[0] - pad), 0), max(int(tight[1] - pad), 0)
        x1, y1 = min(int(tight[2] + pad) + 1, self.w), min(int(tight[3] + pad) + 1,
                                                          self.h)
        if x1 <= x0 or y1 <= y0:
            return
        k = min(float(SCALE), 5 / blur) if blur else float(SCALE)
        # A blurred stencil needs its surroundings, which the canvas may not hold.
        mx, my = (int(3 * blur) + 1,) * 2 if blur else (0, 0)
        size = (math.ceil((x1 - x0 + 2 * mx) * k), math.ceil((y1 - y0 + 2 * my) * k))
        mask = Image.new("L", size)
        stencil(ImageDraw.Draw(mask), k, x0 - mx, y0 - my)
        full = ((x1 - x0) * SCALE, (y1 - y0) * SCALE)
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur * k))
            part = (mx * k, my * k, (mx + x1 - x0) * k, (my + y1 - y0) * k)
            mask = mask.resize(full, Image.Resampling.BICUBIC, box=part)
        if alpha < 1:
            mask = mask.point([round(v * alpha) for v in range(256)])
        where = (x0 * SCALE, y0 * SCALE)
        if isinstance(fill, tuple):
            self.img.paste(fill, (*where, where[0] + full[0], where[1] + full[1]), mask)
            return
        gw = max(1, round((tight[2] - tight[0]) * SCALE))
        gh = max(1, round((tight[3] - tight[1]) * SCALE))
        gx, gy = round(tight[0] * SCALE) - where[0], round(tight[1] * SCALE) - where[1]
        paint = Image.new("RGB", full, fill.stops[-1])
        paint.paste(fill.image(gw, gh), (gx, gy))
        self.img.paste(paint, where, mask)

    @contextmanager
    def clip(self, *shapes: Points, alpha: float = 1.0) -> Iterator[None]:
        """Keep what is painted meanwhile only inside the shapes."""
        before = self.img.copy()
        yield
        mask = Image.new("L", self.img.size, 255)
        pen = ImageDraw.Draw(mask)
        for s in shapes:
            pen.polygon([(x * SCALE, y * SCALE) for x, y in s],
                        fill=round(255 * (1 - alpha)))
        self.img.paste(before, (0, 0), mask)

    def pixels(self, array: np.ndarray, x: float = 0.0, y: float = 0.0,
               mask: Points | None = None) -> None:
        """Lay down an array of colours (0-255) of the drawing's resolution."""
        picture = Image.fromarray(array.clip(0, 255).astype(np.uint8))
        at = (round(x * SCALE), round(y * SCALE))
        stencil = None
        if mask:
            stencil = Image.new("L", picture.size)
            ImageDraw.Draw(stencil).polygon(
                [(px * SCALE - at[0], py * SCALE - at[1]) for px, py in mask], fill=255)
        self.img.paste(picture, at, stencil)

    def reflect(self, level: float, tint: Colour, amount: float = 0.45) -> None:
        """Water below a level: what is above it, upside down, tinted and rippled."""
        deep = self.h - level
        rows = np.asarray(self.img)
        top = round(level * SCALE)
        n = rows.shape[0] - top
        t = np.arange(n) / n
        sway = np.sin(t**0.6 * 70) * 5 * SCALE * t
        source = np.clip(top - 1 - np.arange(n) * 1.25 + sway, 0, top - 1)
        water = rows[source.astype(int)].astype(np.float32)
        shift = np.sin(t**0.55 * 110) * 2.0 * SCALE * (0.3 + t)
        for k in range(n):
            water[k] = np.roll(water[k], int(shift[k]), axis=0)
        tinted = water * (1 - amount) + np.array(tint, np.float32) * amount
        self.pixels(tinted, 0, level)
        for _ in range(26):
            y = level + deep * self.rng.uniform(0.04, 1) ** 1.4
            x, half = self.rng.uniform(0, self.w), self.rng.uniform(0.03, 0.12) * self.w
            thick = 0.8 + 2 * (y - level) / deep
            self.fill(oval(x, y, half, thick / 2), lighter(tint, 0.5), 0.22)

    def finish(self, grain: float = 3.0, vignette: float = 0.12) -> Image.Image:
        """The finished picture: reduced, a little darker at the corners, grained."""
        small = self.img.resize((self.w, self.h), Image.Resampling.LANCZOS)
        out = np.asarray(small).astype(np.float32)
        y = np.linspace(-1, 1, self.h, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, self.w, dtype=np.float32)[None, :]
        out *= (1 - vignette * ((x * x + y * y) / 2) ** 1.5)[..., None]
        source = np.random.default_rng(self.rng.getrandbits(32))
        fine = source.normal(0, grain, (self.h, self.w)).astype(np.float32)
        broad = noise(self.rng, self.w, self.h, 5, 2) - 0.5
        out += (fine + broad * grain * 2)[..., None]
        return Image.fromarray(out.clip(0, 255).round().astype(np.uint8))


# ---------------------------------------------------------------- painters: outdoors


def cloud(c: Canvas, x: float, y: float, size: float, colour: Colour,
          alpha: float = 0.9) -> None:
    """A fair-weather cloud, flat beneath."""
    puffs = [oval(x, y, size, size * 0.16)]
    for k in range(5):
        px = x + size * (k - 2) * 0.34 + c.rng.uniform(-0.08, 0.08) * size
        r = size * (0.34 - 0.075 * abs(k - 2)) * c.rng.uniform(0.85, 1.15)
        puffs.append(oval(px, y - r * 0.55, r, r * 0.85))
    c.union(puffs, down(lighter(colour, 0.7), lighter(colour, 0.6), colour), alpha, 1.6)


# sky above, sky at the horizon, sun, nearest ridge
DAYS = [rgbs(line) for line in (
    "3d5a80 f4c9a0 fff1d6 1d2b45", "f2a65a f9dcb4 fffaf0 6b2d3e",
    "7cb7c9 eef3dc fffdf0 1f4d4a", "2b2150 e88a7d ffe2b8 1b1533",
    "9fc6e8 f7efe3 ffffff 2c4a7a", "d9776b f8d7b5 fff4dd 4a2545",
    "16324f 86b6b4 f5f3df 0d1f2d", "b9c98f f5f0d3 fffbe8 2f4a2c",
    "c08bb6 fbdcd6 fff5ef 4b2f63", "e0b34e fbeec8 fffdf2 5c4520",
    "6f7f8f dfe2e0 fbfbf7 2a3138",
)]


def landscapes(c: Canvas) -> None:
    """Layers of ridges going back into the light."""
    rng = c.rng
    top, low, sun, near = c.pick(DAYS)
    c.wash(down(top, mix(top, low, 0.55), low, low, low))
    level = c.h * rng.uniform(0.36, 0.46)
    x, r = c.w * rng.uniform(0.2, 0.8), c.u * rng.uniform(0.05, 0.1)
    y = level - c.h * rng.uniform(0.0, 0.16)
    c.glow(x, y, r * 5, sun, 0.55)
    c.fill(oval(x, y, r), sun, 0.95, 0.5)
    for _ in range(rng.randint(2, 5)):
        cy = c.h * rng.uniform(0.06, 0.34)
        c.fill(oval(c.w * rng.random(), cy, c.w * rng.uniform(0.1, 0.3), c.h * 0.008),
               lighter(low, 0.5), 0.5, 3)
    n = rng.randint(5, 7)
    for k in range(n):
        t = k / (n - 1)
        base = level + (c.h * 0.88 - level) * t**1.15
        high = c.h * (0.15 - 0.06 * t) * rng.uniform(0.8, 1.2)
        line = ridge(rng, 0.52 if k < n - 1 else 0.45)
        step = c.w / (len(line) - 1)
        crest = [(j * step, base - v * high) for j, v in enumerate(line)]
        tone = mix(low, near, 0.16 + 0.84 * t**1.1)
        if k == n - 1:
            for j in range(0, len(crest)):
                if rng.random() < 0.55:
                    px, py = crest[j][0] + rng.uniform(-3, 3), crest[j][1]
                    tall = c.u * rng.uniform(0.035, 0.1)
                    for s in range(4):
                        ty, half = py - tall * s / 4.5, tall * (0.2 - 0.04 * s)
                        c.fill([(px - half, ty), (px, ty - tall * 0.45),
                                (px + half, ty)], tone)
        mist = mix(tone, low, 0.55 - 0.3 * t)
        c.fill([(0, c.h), *crest, (c.w, c.h)], down(tone, mix(tone, mist, 0.7), mist))


# name: sky top, sky at the horizon, far towers, near towers, lit window
HOURS = {
    "Midnight": rgbs("0b1030 34406f 2b335f 12152e ffd98a"),
    "Morning": rgbs("8fc1e3 fbeedd b4c6d6 5c7d99 eaf6ff"),
    "Dusk": rgbs("3b2a63 f59e7a 8a5280 2b1d44 ffe0a0"),
    "Noon": rgbs("4fa3d1 dff1f5 a8c5cf 3d6478 f3fbff"),
    "Sunset": rgbs("c4475b fbc77f b55a66 45213f ffe9b0"),
    "Small Hours": rgbs("07231f 2f7f78 1f5650 08201f ffe7a3"),
    "First Light": rgbs("f0b7a4 fdf0dc d8b3b0 7d5a7a fff6dc"),
    "Drizzle": rgbs("8b96a3 d6d9d8 a9b2ba 4a545f ffe9b8"),
}


def skylines(c: Canvas) -> None:
    """Three rows of towers over water."""
    rng = c.rng
    top, low, far, near, lit = HOURS[c.subject]
    dark = sum(top) < 300
    c.wash(down(top, mix(top, low, 0.5), low, low))
    level = c.h * rng.uniform(0.72, 0.79)
    if dark:
        for _ in range(90):
            c.fill(oval(c.w * rng.random(), level * rng.random() * 0.7,
                        rng.uniform(0.4, 1.1)), WHITE, rng.uniform(0.2, 0.8))
    x, y = c.w * rng.uniform(0.15, 0.85), c.h * rng.uniform(0.14, 0.4)
    c.glow(x, y, c.u * 0.28, lighter(low, 0.5), 0.6)
    c.fill(oval(x, y, c.u * 0.055), lighter(lit, 0.55), 0.95, 0.5)
    for k in range(3):
        tone = mix(far, near, k / 2)
        x = -c.w * rng.uniform(0.0, 0.08)
        while x < c.w:
            wide = c.w * rng.uniform(0.045, 0.1)
            tall = c.h * (0.5 - 0.1 * k) * rng.uniform(0.45, 1.0) ** 1.3
            face = mix(tone, low, rng.uniform(0, 0.1))
            roof = level - tall
            style = rng.randrange(6)
            if style == 0:
                c.fill([(x + wide * 0.1, roof), (x + wide / 2, roof - wide * 0.8),
                        (x + wide * 0.9, roof)], face)
                c.line([(x + wide / 2, roof - wide * 1.5), (x + wide / 2, roof)], 1.2,
                       face)
            elif style == 1:
                for s in range(3):
                    c.fill(box(x + wide * 0.14 * s, roof - wide * 0.22 * s,
                               x + wide * (1 - 0.14 * s), roof + 1), face)
            elif style == 2:
                c.fill(arc(x + wide / 2, roof, wide / 2, wide * 0.5, 180, 360), face)
            elif style == 3:
                c.fill([(x, roof), (x + wide, roof - wide * 0.6), (x + wide, roof)],
                       face)
            shade = across(lighter(face, 0.1), face, darker(face, 0.15))
            c.fill(box(x, roof, x + wide, level + 1), shade)
            if k:
                gap = rng.uniform(4.6, 6.4)
                shown = rng.uniform(0.25, 0.6) if dark or low[2] < 150 else 0.9
                pane = lit if shown < 0.9 else mix(face, lit, 0.38)
                for row in range(int((tall - 6) / (gap * 1.35))):
                    for col in range(int((wide - 4) / gap)):
                        if rng.random() < shown:
                            px, py = x + 3.5 + col * gap, roof + 6 + row * gap * 1.35
                            c.fill(box(px, py, px + gap * 0.5, py + gap * 0.72),
                                   mix(face, pane, rng.uniform(0.55, 1)))
            x += wide * rng.uniform(0.85, 1.35)
        c.fill(box(0, level - c.h * 0.2, c.w, level), low, 0.16 - 0.05 * k, c.h * 0.05)
    c.reflect(level, mix(near, low, 0.25), 0.4)


SEAS = [rgbs(line) for line in (
    # sky top, horizon, sea far, sea near, sail
    "5aa9d6 e9f4f2 5fb3bf 12566f fffaf0", "f3a35c fde3b8 e39a72 3f4d72 fff3df",
    "2f3f73 f09a8e 9a6b8f 1c2450 ffe8d2", "8fcfc4 f6f5df 58b39f 0f5a5a ffffff",
    "a7b7c4 eceae3 8fa6b2 35505f f7f2e6", "e77f7b fbd9c0 c9808a 45315e fff1e4",
    "3c86c4 cfe8f3 2f7fb5 0b2f63 fffdf5", "d9c27c fbf4da 9db98c 2c5a4e fffbee",
)]
CLOTHS = rgbs("d8453a e9a23b 2f6f9f fffaf0 24324f 3f8f77 c95f86 f2d15c")


def boats(c: Canvas) -> None:
    """Sailing boats on a bright sea."""
    rng = c.rng
    top, low, far, near, sail = c.pick(SEAS)
    level = c.h * rng.uniform(0.5, 0.6)
    c.fill(box(0, 0, c.w, level + 1), down(top, mix(top, low, 0.6), low))
    sx, sy, r = c.w * rng.uniform(0.12, 0.88), level * rng.uniform(0.25, 0.8), c.u * 0.06
    c.glow(sx, sy, r * 5, WHITE, 0.5)
    c.fill(oval(sx, sy, r), lighter(low, 0.75))
    for _ in range(rng.randint(1, 3)):
        cloud(c, c.w * rng.random(), level * rng.uniform(0.15, 0.6),
              c.u * rng.uniform(0.12, 0.24), mix(low, top, 0.25), 0.75)
    line = ridge(rng, 0.5, 5)
    isle = [(c.w * j / (len(line) - 1), level - c.h * 0.025 * max(0, v + 0.2))
            for j, v in enumerate(line)]
    c.fill([(0, level), *isle, (c.w, level)], mix(low, near, 0.4))
    c.fill(box(0, level, c.w, c.h), down(far, mix(far, near, 0.6), near))
    c.fill(oval(sx, level, c.w * 0.05, (c.h - level) * 0.9), lighter(low, 0.6), 0.35, 14)

    def waves(start: float, end: float, n: int) -> None:
        for _ in range(n):
            t = start + (end - start) * rng.random()
            y = level + (c.h - level) * t
            half = c.w * rng.uniform(0.02, 0.06) * (0.4 + t)
            x = c.w * rng.random()
            tone = lighter(far, 0.55) if rng.random() < 0.6 else darker(near, 0.1)
            path = [(x + half * q / 6, y + math.sin(q * 1.1) * (0.4 + 1.6 * t))
                    for q in range(-6, 7)]
            c.fill(ribbon(path, 0, 0.8 + 2.2 * t, 0), tone, 0.5)

    waves(0, 1, 110)
    n = rng.choice((1, 1, 2, 3))
    for k in range(n):
        main = k == n - 1
        s = c.u * (rng.uniform(0.3, 0.38) if main else rng.uniform(0.1, 0.17))
        x = c.w * (rng.uniform(0.35, 0.65) if main else (0.16, 0.84)[k % 2])
        y = level + (c.h - level) * (0.42 if main else 0.1)
        flip, tilt = rng.random() < 0.5, rng.uniform(-7, 3)
        hull, jib = rng.sample(CLOTHS, 2)
        if main is False or rng.random() < 0.5:
            jib = sail

        def at(*p: Point, x: float = x, y: float = y, s: float = s,
               tilt: float = tilt, flip: bool = flip) -> Points:
            return place(p, x, y, s, tilt, flip)

        with c.clip(box(0, y, c.w, c.h), alpha=0.5):
            c.fill(at((-0.1, 0.1), (0.06, 1.3), (0.5, 0.9), (0.55, 0.1)),
                   down(lighter(sail, 0.1), far), 0.5, s * 0.035)
        c.fill(oval(x, y + s * 0.13, s * 0.75, s * 0.07), darker(near, 0.3), 0.5,
               s * 0.03)
        c.line(at((0, 0.05), (0, -1.45)), max(1.2, s * 0.02), rgb("6b4a2f"))
        c.fill(at(*smooth([(0.03, -1.4), (0.36, -0.7), (0.62, -0.12), (0.3, -0.09),
                           (0.03, -0.08)])), across(sail, darker(sail, 0.16)))
        c.fill(at(*smooth([(-0.04, -1.3), (-0.3, -0.65), (-0.6, -0.1), (-0.3, -0.13),
                           (-0.04, -0.1), (-0.1, -0.6)])),
               across(darker(jib, 0.22), jib))
        for q in (0.35, 0.6, 0.82):
            c.line(at((0.03, -1.35 + q * 1.25), (0.06 + q * 0.56, -1.34 + q * 1.22)),
                   0.8, darker(sail, 0.3), 0.5)
        body = at(*smooth([(-0.68, -0.02), (-0.45, 0.15), (0, 0.2), (0.46, 0.17),
                           (0.62, -0.02), (0.3, 0.01), (-0.3, 0.01)]))
        c.fill(body, down(lighter(hull, 0.2), hull, darker(hull, 0.35)))
        c.line(at((-0.62, 0.0), (0, 0.03), (0.58, 0.0)), max(0.8, s * 0.018),
               lighter(sail, 0.5))
        c.fill(at((0, -1.45), (0.16, -1.4), (0, -1.36)), rng.choice(CLOTHS))
    waves(0.55, 1, 60)
    for _ in range(rng.randint(2, 5)):
        x, y, s = c.w * rng.random(), level * rng.uniform(0.1, 0.7), rng.uniform(4, 9)
        c.fill(ribbon(smooth([(x - s, y - s * 0.3), (x - s * 0.4, y - s * 0.45), (x, y),
                              (x + s * 0.4, y - s * 0.45), (x + s, y - s * 0.3)],
                             False), 0.3, 1.6, 1.2, 1.6, 0.3), darker(near, 0.2), 0.8)


def balloons(c: Canvas) -> None:
    """Hot-air balloons above low hills."""
    rng = c.rng
    top, low, sun, near = c.pick(DAYS[1:] + DAYS[:1])
    top, near = lighter(top, 0.12), lighter(near, 0.12)
    c.wash(down(top, mix(top, low, 0.6), low, low))
    c.glow(c.w * rng.random(), c.h * 0.75, c.u * 0.5, sun, 0.6)
    for _ in range(4):
        cloud(c, c.w * rng.random(), c.h * rng.uniform(0.08, 0.7),
              c.u * rng.uniform(0.1, 0.26), mix(low, top, 0.3), 0.6)
    for k in range(3):
        base = c.h * (0.84 + 0.06 * k)
        line = ridge(rng, 0.32, 6)
        crest = [(c.w * j / (len(line) - 1), base - v * c.h * 0.04)
                 for j, v in enumerate(line)]
        tone = mix(low, near, 0.3 + 0.3 * k)
        c.fill([(0, c.h), *crest, (c.w, c.h)], down(tone, mix(tone, low, 0.35)))
    small = rng.randint(1, 4)
    for k in range(small + 1):
        main = k == small
        r = c.u * (rng.uniform(0.24, 0.29) if main else rng.uniform(0.045, 0.11))
        x = c.w * (rng.uniform(0.36, 0.64) if main else
                   (0.13, 0.87, 0.24, 0.78)[k] + rng.uniform(-0.04, 0.04))
        y = c.h * (rng.uniform(0.36, 0.42) if main else rng.uniform(0.15, 0.68))
        hue = c.hue + (0 if main else rng.uniform(0, 360))
        fade = 0.0 if main else 0.3
        coat = [lch(0.62, 0.17, hue), lch(0.9, 0.06, hue + 40),
                lch(0.45, 0.13, hue + rng.choice((30, 180, 210))), lch(0.78, 0.14, 85)]
        coat = [mix(colour, low, fade) for colour in coat[:rng.choice((2, 3, 3, 4))]]
        rows = [q / 30 for q in range(31)]

        def half(q: float, r: float = r) -> float:
            """Half the width of the envelope at a share of its height."""
            if q < 0.55:
                return r * math.sin(math.acos(1 - q / 0.55))
            return r * (0.16 + 0.84 * (0.5 + 0.5 * math.cos((q - 0.55) / 0.45 * 2.75)))

        high, head = r * 2.35, y - r
        outline = [(x - half(q), head + q * high) for q in rows]
        outline += [(x + half(q), head + q * high) for q in reversed(rows)]
        foot = head + high
        b = r * 0.15
        for side in (-1, -0.35, 0.35, 1):
            c.line([(x + side * half(1.0), foot), (x + side * b * 0.9, foot + r * 0.42)],
                   max(0.7, r * 0.012), mix(rgb("4a3526"), low, fade), 0.9)
        basket = box(x - b, foot + r * 0.4, x + b, foot + r * 0.64, b * 0.3)
        wood = mix(rgb("9a6a3c"), low, fade)
        c.fill(basket, across(lighter(wood, 0.2), wood, darker(wood, 0.4)))
        c.line([(x - b, foot + r * 0.42), (x + b, foot + r * 0.42)], r * 0.04,
               darker(wood, 0.3))
        with c.clip(outline):
            n = rng.choice((10, 12, 14))
            style = rng.randrange(3)
            for g in range(n):
                a0, a1 = (math.sin(math.pi * (e / n - 0.5)) for e in (g, g + 1))
                for row in range(6):
                    which = {0: g, 1: g + row, 2: row + (g % 2 if row == 2 else 0)}
                    q0, q1 = row / 6, (row + 1) / 6 + 0.02
                    part = [q0 + (q1 - q0) * e / 6 for e in range(7)]
                    gore = [(x + a0 * half(q), head + q * high) for q in part]
                    gore += [(x + a1 * half(q), head + q * high)
                             for q in reversed(part)]
                    c.fill(gore, coat[which[style] % len(coat)])
                seam = [(x + a0 * half(q), head + q * high) for q in rows]
                c.line(seam, max(0.5, r * 0.008), darker(coat[0], 0.4), 0.35)
            c.fill(oval(x - r * 0.35, y - r * 0.35, r * 0.5, r * 0.6), WHITE, 0.3,
                   r * 0.25)
            c.fill(oval(x + r * 0.95, y + r * 0.4, r * 0.55, r * 1.5), INK, 0.45,
                   r * 0.25)
        c.fill(box(x - half(1), foot - 1, x + half(1), foot + r * 0.06), darker(coat[0]))


SEASONS = {
    # sky top, sky low, ground, trunk, foliage dark, middle, light
    "Spring": rgbs("a9d5e5 f7efe6 a8c979 5d4438 c76b8f eda3b8 fde3e4"),
    "Summer": rgbs("6fb7dd e9f3e3 86b04f 4f3b2a 2c6a3a 5a9c48 b3d072"),
    "Autumn": rgbs("d3b594 f8ebd2 b98d4b 45312a a53c22 de7a2c f6c157"),
    "Winter": rgbs("8fa6c4 eceef2 f4f6fa 473f47 c4d0e0 dfe6f0 ffffff"),
    "Late Spring": rgbs("8fcdd0 f2f6e4 93bd68 56412f 4f8a4a 8fbf5a d9e58f"),
    "Indian Summer": rgbs("6f9fc0 f7e7cf a8974c 4b3428 8f2f3f c85045 f2a65e"),
    "Harvest": rgbs("e6b765 fdf1cf c7a24a 51392a a87a1f dba935 f8e08a"),
    "Hoarfrost": rgbs("5a6c95 e9c9cc dfe3ee 3c3444 a7b2d0 cdd5e8 f6f0f6"),
}


def trees(c: Canvas) -> None:
    """One broad tree on a rise, in some season."""
    rng = c.rng
    top, low, ground, trunk, dark, mid, light = SEASONS[c.subject]
    cold = c.subject in ("Winter", "Hoarfrost")
    c.wash(down(top, mix(top, low, 0.7), low))
    c.glow(c.w * rng.uniform(0.1, 0.9), c.h * 0.35, c.u * 0.5, WHITE, 0.4)
    for k in range(2):
        line = ridge(rng, 0.4, 6)
        base = c.h * (0.74 + 0.05 * k)
        crest = [(c.w * j / (len(line) - 1), base - v * c.h * 0.04)
                 for j, v in enumerate(line)]
        c.fill([(0, c.h), *crest, (c.w, c.h)], mix(low, mix(ground, dark, 0.3),
                                                   0.3 + 0.25 * k))
    x, y = c.w * rng.uniform(0.42, 0.58), c.h * rng.uniform(0.83, 0.87)
    hill = smooth([(-9, c.h * 0.93), (c.w * 0.2, y + c.h * 0.03), (x, y - c.h * 0.005),
                   (c.w * 0.82, y + c.h * 0.03), (c.w + 9, c.h * 0.92)], False)
    c.fill([(0, c.h + 9), *hill, (c.w, c.h + 9)],
           down(lighter(ground, 0.15), ground, darker(ground, 0.3)))
    c.fill(oval(x + c.u * 0.1, y + c.u * 0.03, c.u * 0.34, c.u * 0.035), INK, 0.35,
           c.u * 0.02)
    tips: list[Point] = []

    def grow(px: float, py: float, angle: float, size: float, wide: float, left: int
             ) -> None:
        bend = angle + rng.uniform(-0.12, 0.12)
        mx, my = px + size / 2 * math.cos(angle), py + size / 2 * math.sin(angle)
        ex, ey = mx + size / 2 * math.cos(bend), my + size / 2 * math.sin(bend)
        path = smooth([(px, py), (mx, my), (ex, ey)], False, 5)
        if wide > 2.5:
            limb = ribbon(path, wide, wide * 0.68)
            c.fill(limb, across(lighter(trunk, 0.18), trunk, darker(trunk, 0.3)))
        else:
            c.line(path, wide * 0.8, trunk)
        if left <= 3:
            tips.append((ex, ey))
        if left:
            spread = rng.uniform(0.36, 0.52)
            ways = (-spread, spread) if rng.random() < 0.6 else (-spread, 0.05, spread)
            for way in ways:
                grow(ex, ey, bend + way + rng.uniform(-0.12, 0.12),
                     size * rng.uniform(0.7, 0.84), wide * 0.64, left - 1)

    size = min(c.h * 0.2, c.w * 0.24)
    grow(x, y + 4, -math.pi / 2 + rng.uniform(-0.08, 0.08), size, size * 0.26, 6)
    full = 0.3 if cold else 1.0
    cx = sum(p[0] for p in tips) / len(tips)
    cy = sum(p[1] for p in tips) / len(tips)
    puff = c.u * 0.045
    if not cold:
        c.union([oval(tx, ty, puff * 0.9) for tx, ty in tips[::2]], dark, 0.75, 2)
    for tone, share, lift, spots in ((dark, 1.0, 0.0, 4), (mid, 0.8, 0.35, 4),
                                     (light, 0.5, 0.8, 3)):
        marks: list[Points] = []
        for tx, ty in tips:
            lit = (cx - tx) / c.u * 0.8 + (cy - ty) / c.u * 1.2
            for _ in range(spots):
                if rng.random() < share * full * (0.75 + lit * lift * 1.4):
                    marks.append(oval(
                        tx + rng.gauss(0, puff * 0.62), ty + rng.gauss(0, puff * 0.55),
                        rng.uniform(1.4, 3.0) * c.u / 480,
                        rng.uniform(1.2, 2.2) * c.u / 480, rng.uniform(0, 90)))
        c.union(marks, tone)
    for _ in range(70 if not cold else 150):
        if cold:
            c.fill(oval(c.w * rng.random(), c.h * rng.random(), rng.uniform(0.7, 2.2)),
                   WHITE, rng.uniform(0.4, 0.9))
        else:
            c.fill(oval(x + rng.gauss(0, c.u * 0.22), y + rng.uniform(0.01, 0.11) * c.h,
                        rng.uniform(1, 2.4), rng.uniform(0.8, 1.4)),
                   rng.choice((mid, light)), 0.85)


FACADES = [rgbs(line) for line in (
    "d9745e e9b872 7fa99b f0dfc0 5b7c99 c98ba0", "b5504a dda15e 606c38 fefae0 bc6c25 "
    "7f5539", "a3c4bc e7d7c1 bf4342 8c7a6b e9c46a 457b9d", "8fa8c8 d7b9d5 f4cae0 6c5b7b "
    "c06c84 f8b195", "f1dca7 ffcb69 d08c60 997b66 e8ac65 b58463", "264653 2a9d8f e9c46a "
    "f4a261 e76f51 8ab17d",
)]


def houses(c: Canvas) -> None:
    """A terrace of tall houses on a street."""
    rng = c.rng
    paints = c.pick(FACADES)
    night = c.index % 5 == 3
    top, low = (rgb("18224a"), rgb("7a6a94")) if night else rng.choice(
        [(rgb("84bddc"), rgb("f3eee2")), (rgb("f2b999"), rgb("fdf0dc")),
         (rgb("a9c9c2"), rgb("f6f2e2")), (rgb("b6bfca"), rgb("eeeae4"))])
    c.wash(down(top, low))
    if night:
        for _ in range(60):
            c.fill(oval(c.w * rng.random(), c.h * 0.4 * rng.random(), 0.8), WHITE, 0.6)
        c.fill(oval(c.w * 0.8, c.h * 0.13, c.u * 0.04), rgb("fff3d0"))
    else:
        for _ in range(3):
            cloud(c, c.w * rng.random(), c.h * rng.uniform(0.06, 0.28), c.u * 0.15,
                  mix(low, top, 0.3), 0.8)
    street = c.h * 0.86
    x, last = -c.u * rng.uniform(0.02, 0.12), BLACK
    while x < c.w:
        wide = c.u * rng.uniform(0.2, 0.27)
        tall = c.h * rng.uniform(0.44, 0.58)
        wall = rng.choice([p for p in paints if p != last])
        last = wall
        if night:
            wall = mix(wall, rgb("1c2048"), 0.5)
        roof = darker(mix(wall, rgb("5a3a3a"), 0.5), 0.35)
        y, mid = street - tall, x + wide / 2
        trim = lighter(wall, 0.65) if not night else lighter(wall, 0.3)
        peak = y - wide * rng.uniform(0.4, 0.6)
        c.fill(box(x + wide * 0.72, peak - 2, x + wide * 0.86, y), darker(roof, 0.2))
        style = rng.randrange(4)
        if style == 0:
            gable = [(x, y), (mid, peak), (x + wide, y)]
        elif style == 1:
            gable = [(x, y)]
            for s in range(5):
                sx, sy = x + wide * s / 10, y + (peak - y) * s / 4
                gable += [(sx, sy), (sx + wide / 10, sy)]
            gable += [(2 * mid - gx, gy) for gx, gy in reversed(gable)]
        elif style == 2:
            gable = smooth([(x, y), (x + wide * 0.14, y - wide * 0.08),
                            (x + wide * 0.24, y - wide * 0.3), (mid - wide * 0.12, peak),
                            (mid + wide * 0.12, peak), (x + wide * 0.76, y - wide * 0.3),
                            (x + wide * 0.86, y - wide * 0.08), (x + wide, y)], False)
        else:
            gable = [(x, y), (x + wide * 0.16, peak), (x + wide * 0.84, peak),
                     (x + wide, y)]
        c.fill(gable, slant(lighter(wall, 0.12), wall) if style in (1, 2) else
               down(lighter(roof, 0.12), roof))
        if style in (1, 2):
            c.line(gable, 2, trim)
            c.fill(oval(mid, y - wide * 0.16, wide * 0.07), rgb("3a4558"))
        c.fill(box(x, y, x + wide, street),
               slant(lighter(wall, 0.15), wall, darker(wall, 0.2)))
        c.fill(box(x + wide - 2, y, x + wide, street), INK, 0.25)
        c.fill(box(x - 1, y - 2.5, x + wide + 1, y + 2.5), trim)
        cols, rows = rng.choice((2, 3)), 3
        pw, ph = wide / cols * 0.5, tall / rows * 0.5
        shutters = rng.random() < 0.45
        accent = darker(rng.choice(paints), 0.25)
        for row in range(rows):
            for col in range(cols):
                px = x + wide * (col + 0.5) / cols - pw / 2
                py = y + tall * (row + 0.22) / rows
                if row == rows - 1 and col == cols - 1:
                    c.fill(box(px - 3, py - 3, px + pw + 3, street), trim)
                    c.fill(box(px, py, px + pw, street), down(accent,
                                                              darker(accent, 0.3)))
                    c.fill(arc(px + pw / 2, py + pw * 0.55, pw * 0.36, pw * 0.4, 180,
                               360), rgb("ffe2a0") if night else rgb("c9dfe6"))
                    c.fill(oval(px + pw * 0.8, street - ph * 0.6, 1.5), rgb("f4d58d"))
                    continue
                lit = night and rng.random() < 0.6
                glass = rgb("ffd27a") if lit else rgb("3a4a66")
                if lit:
                    c.glow(px + pw / 2, py + ph / 2, pw * 1.1, glass, 0.35)
                c.fill(box(px - 2, py - 2, px + pw + 2, py + ph + 2), trim)
                c.fill(box(px, py, px + pw, py + ph),
                       slant(lighter(glass, 0.45), glass, glass))
                c.line([(px + pw / 2, py), (px + pw / 2, py + ph)], 1.3, trim)
                c.line([(px, py + ph * 0.4), (px + pw, py + ph * 0.4)], 1.3, trim)
                c.fill(box(px - 4, py + ph + 2, px + pw + 4, py + ph + 4.5),
                       darker(trim, 0.15))
                if shutters and cols == 2:
                    for sx in (px - pw * 0.42 - 3, px + pw + 3):
                        c.fill(box(sx, py, sx + pw * 0.42, py + ph), accent)
        x += wide
    stone = rgb("3b3a52") if night else rgb("b9b0a4")
    c.fill(box(0, street, c.w, c.h), down(lighter(stone, 0.2), darker(stone, 0.2)))
    c.fill(box(0, street - 1, c.w, street + c.h * 0.025), lighter(stone, 0.35))
    c.fill(box(0, street - 6, c.w, street + 5), INK, 0.25, 4)
    x = c.u * rng.uniform(0.1, 0.3)
    while x < c.w:
        base, r = street + c.h * 0.03, c.u * rng.uniform(0.06, 0.08)
        green = mix(lch(0.58, 0.11, rng.uniform(95, 145)), rgb("1c2048"), 0.5 * night)
        c.fill(oval(x + 4, base, r, r * 0.16), INK, 0.35, 3)
        c.line([(x, base), (x, base - r * 2)], 3, rgb("54402f"))
        c.fill(blob(rng, x, base - r * 2.4, r, r * 1.15), ball(green))
        x += c.u * rng.uniform(0.45, 0.8)


# ---------------------------------------------------------------- painters: nature


def fishes(c: Canvas) -> None:
    """A fish in lit water, with small ones behind."""
    r, u, hue = c.r, c.u, c.hue
    sea = c.pick((205.0, 190.0, 235.0, 172.0, 220.0, 255.0))
    c.wash(down(lch(0.85, 0.08, sea), lch(0.6, 0.11, sea), lch(0.3, 0.08, sea + 15)))
    for _ in range(6):
        x, lean = c.w * r(-0.2, 1), c.w * r(0.15, 0.3)
        beam = [(x, -9), (x + u * 0.1, -9), (x + u * 0.2 + lean, c.h), (x + lean, c.h)]
        c.fill(beam, WHITE, 0.09, 9)
    c.fill(blob(c.rng, c.w / 2, c.h * 1.05, c.w * 0.75, c.h * 0.16), lch(0.78, 0.05, 85))
    for _ in range(9):
        x, tall, tone = c.w * r(0, 1), c.h * r(0.12, 0.4), lch(r(0.4, 0.6), 0.1, r(130, 170))
        sway = [(x + math.sin(k * 0.8 + x) * u * 0.02, c.h - tall * k / 9) for k in range(10)]
        c.fill(ribbon(smooth(sway, False), u * 0.03, u * 0.02, 0), tone, 0.8)
    for k in reversed(range(c.rng.randint(1, 5))):
        s = u * r(0.05, 0.08) if k else min(c.w * 0.33, c.h * 0.42)
        x, y = (c.w * r(0.1, 0.9), c.h * r(0.1, 0.8)) if k else (c.w * 0.48, c.h * r(0.46, 0.52))
        turn, flip, t = r(-9, 9), k == 0 and c.index % 2 == 0, r(0.85, 1.25)
        skin, fin, band = (lch(v, 0.16, hue + d) for v, d in ((0.7, 0), (0.6, 45), (0.42, 25)))
        if c.index % 3 == 0:
            band = CREAM

        def at(shape: Points) -> Points:
            return place([(px, py * t) for px, py in shape], x, y, s, turn, flip)

        c.fill(at(curve("58 0 80 -20 120 -48 108 -4 122 44 80 18")), across(skin, fin))
        c.fill(at(curve("-40 -32 -10 -66 35 -58 55 -20 20 -20")), down(fin, skin))
        c.fill(at(curve("-20 30 5 62 35 52 40 20")), down(skin, fin))
        body = at(curve("-102 2 -80 -24 -30 -42 25 -36 72 -9 72 9 25 36 -30 42 -80 26"))
        c.fill(body, down(darker(skin, 0.15), skin, lighter(skin, 0.75)))
        with c.clip(body):
            for j in range(4 if not k else 0):
                px = -0.42 + 0.28 * j
                stripe = [(px + 0.07 * math.cos(q / 3), q / 10) for q in range(-5, 6)]
                if c.index % 4 < 2:
                    c.fill(at(ribbon(stripe, 0.06, 0.15, 0.06)), band, 0.9)
                else:
                    dots = [oval(px + q % 2 * 0.14, q * 0.13, 0.045) for q in range(-3, 4)]
                    c.union([at(d) for d in dots], band, 0.85)
            for row in range(-7, 8):
                for col in range(10 if not k else 0):
                    px = -0.4 + col * 0.11 + row % 2 * 0.055
                    c.line(at(arc(px, row * 0.06, 0.06, 0.05, -70, 70)), 0.8, INK, 0.13)
            c.fill(at(oval(-0.1, -0.3, 0.6, 0.07)), WHITE, 0.4, s * 0.04)
            c.fill(at(oval(-0.1, 0.5, 0.9, 0.14)), INK, 0.3, s * 0.08)
        c.line(at(arc(-0.62, 0, 0.15, 0.27, -75, 75)), s * 0.02, darker(skin, 0.5), 0.6)
        c.fill(at(curve("-35 8 -8 2 2 16 -10 28")), slant(lighter(fin, 0.3), fin), 0.95)
        c.fill(at(oval(-0.73, -0.09, 0.085, 0.085 / t)), CREAM)
        c.fill(at(oval(-0.74, -0.09, 0.055, 0.055 / t)), INK)
        c.fill(at(oval(-0.76, -0.12, 0.018, 0.018 / t)), WHITE)
        c.line(at([(-1.0, 0.06), (-0.93, 0.1), (-0.86, 0.1)]), s * 0.02, darker(skin, 0.5))
    for _ in range(14):
        x, y, size = c.w * r(0, 1), c.h * r(0, 0.9), u * r(0.005, 0.02)
        c.fill(oval(x, y, size), WHITE, 0.25)
        c.fill(oval(x - size * 0.3, y - size * 0.3, size * 0.4), WHITE, 0.7)


BLOOMS = {  # petals, rings, length against width, tip, chroma, heart, hue
    "Daisies": (17, 1, 0.17, 0.98, 0.02, "e9b02f", 90),
    "Poppies": (5, 2, 0.62, 0.63, 0.21, "2a2130", 28),
    "Dahlias": (13, 4, 0.25, 0.65, 0.17, "8a2f4a", 0),
    "Sunflowers": (19, 2, 0.16, 0.83, 0.16, "4a2d1c", 85),
    "Cornflowers": (11, 2, 0.26, 0.58, 0.18, "3a2a6b", 268),
    "Cosmos": (8, 1, 0.42, 0.77, 0.13, "e5b53a", 345),
    "Anemones": (9, 2, 0.42, 0.72, 0.13, "221c33", 305),
    "Marigolds": (14, 4, 0.27, 0.75, 0.17, "b5541c", 60),
}


def flowers(c: Canvas) -> None:
    """Three or so blooms on their stems, against an unfocused garden."""
    r, u, back = c.r, c.u, c.hue
    count, rings, wide, light, chroma, heart, hue = BLOOMS[c.subject]
    dark = c.index % 3 == 1
    c.wash(slant(lch(0.42 if dark else 0.93, 0.05, back), lch(0.24 if dark else 0.8, 0.06, 150)))
    for _ in range(16):
        tone = lch(r(0.35, 0.55) if dark else r(0.8, 0.97), 0.07, c.rng.choice((back, 130, 100)))
        c.fill(oval(c.w * r(0, 1), c.h * r(0, 1), u * r(0.03, 0.12)), tone, 0.4, u * 0.012)
    spots = c.rng.choice(([(0.5, 0.4)], [(0.3, 0.34), (0.7, 0.5)],
                          [(0.27, 0.5), (0.73, 0.56), (0.5, 0.27)]))
    for fx, fy in spots:
        x, y = c.w * (fx + r(-0.03, 0.03)), c.h * (fy + r(-0.03, 0.03))
        size, green = u * (0.33 - 0.045 * len(spots)), lch(r(0.45, 0.58), 0.1, r(125, 150))
        foot = c.w * (0.5 + (fx - 0.5) * 0.4)
        stem = smooth([(x, y), (x + u * 0.03, (y + c.h) / 2), (foot, c.h + 9)], False)
        c.fill(ribbon(stem, u * 0.014, u * 0.02), across(lighter(green), darker(green)))
        for side in (-1, 1):
            sx, sy = stem[r(0, 1) > 0.5 and 9 or 12]
            leaf = place(curve("0 0 30 -22 75 -18 110 -36 80 2 35 8"), sx, sy + u * 0.06 * side,
                         u * r(0.15, 0.24), r(-25, 5), side < 0)
            c.fill(leaf, slant(lighter(green, 0.2), green, darker(green, 0.3)))
        tint = lch(light, chroma, hue + r(-14, 14))
        for ring in range(rings):
            reach = size * (1 - 0.21 * ring)
            tone, phase = lighter(tint, 0.1 * ring), r(0, 360)
            for k in range(count):
                turn = phase + 360 * k / count + r(-3, 3)
                petal = place(smooth([(0.08, 0), (0.45, wide * 0.62), (0.82, wide * 0.9),
                                      (1.0, wide * 0.25), (1.0, -wide * 0.25),
                                      (0.82, -wide * 0.9), (0.45, -wide * 0.62)]),
                              x, y, reach * r(0.93, 1.05), turn)
                c.shadow(petal, 1.5, 2.5, size * 0.03, 0.22)
                cx, cy = math.cos(math.radians(turn)), math.sin(math.radians(turn))
                shade = Grad((darker(tone, 0.35), tone, lighter(tone, 0.3)),
                             (0.5 - cx / 2, 0.5 - cy / 2), (0.5 + cx / 2, 0.5 + cy / 2))
                c.fill(petal, shade)
        core = size * (0.36 if c.subject == "Sunflowers" else 0.21)
        c.shadow(oval(x, y, core), 1, 3, size * 0.04, 0.4)
        c.fill(oval(x, y, core), ball(rgb(heart)))
        for k in range(130):
            a, d = k * 2.39996, core * math.sqrt(k / 130)
            dot = oval(x + d * math.cos(a), y + d * math.sin(a), core * 0.055)
            c.fill(dot, lighter(rgb(heart), 0.35 + 0.3 * (k % 2)), 0.7)


def mushrooms(c: Canvas) -> None:
    """Mushrooms in the moss, the wood behind them out of focus."""
    r, u, hue = c.r, c.u, c.hue
    wood = c.pick((150.0, 120.0, 190.0, 90.0, 165.0, 230.0, 60.0))
    c.wash(down(lch(0.8, 0.07, wood - 20), lch(0.52, 0.07, wood), lch(0.3, 0.05, wood)))
    for _ in range(6):
        x, wide = c.w * r(0, 1), u * r(0.03, 0.12)
        c.fill(box(x, -9, x + wide, c.h), lch(r(0.3, 0.5), 0.04, wood), 0.5, u * 0.02)
    for _ in range(22):
        x, y, tone = c.w * r(0, 1), c.h * r(0, 0.7), lch(0.92, 0.09, wood - 30)
        c.fill(oval(x, y, u * r(0.01, 0.05)), tone, r(0.1, 0.4), u * 0.006)
    moss = lch(0.5, 0.11, r(110, 140))
    line = [(c.w * k / 6, c.h * r(0.77, 0.83)) for k in range(-1, 8)]
    c.fill([(0, c.h), *smooth(line, False), (c.w, c.h)], down(lighter(moss), darker(moss, 0.5)))
    cap_colour = lch(0.58, 0.17, hue) if c.index % 2 else lch(0.6, 0.14, r(20, 75))
    flat, spotted = r(0.5, 0.95), c.rng.random() < 0.65
    spots = [(0.2, 0.26), (0.8, 0.22), (0.68, 0.36), (0.45, 0.55)]
    for fx, size in spots[c.rng.randint(0, 2):]:
        x, s, foot = c.w * (fx + r(-0.05, 0.05)), u * size * r(0.46, 0.6), c.h * r(0.86, 0.93)
        tall, lean = s * r(1.7, 2.3), u * r(-0.04, 0.04)
        top = foot - tall
        c.fill(oval(x + s * 0.3, foot, s * 0.9, s * 0.13), INK, 0.45, s * 0.08)
        stem = smooth([(x, foot + s * 0.05), (x - lean, foot - tall * 0.5), (x, top)], False)
        c.fill(ribbon(stem, s * 0.62, s * 0.4, s * 0.3, s * 0.3),
               across(rgb("fff8e8"), rgb("efe0c4"), rgb("a88f78")))
        skirt = place(curve("-20 0 20 0 34 24 16 20 0 27 -16 20 -34 24"), x, top + s * 0.32, s)
        c.fill(skirt, down(rgb("c9b598"), rgb("fff6e2")))
        c.fill(oval(x, top, s * 0.97, s * 0.2), radial(rgb("7a5a48"), rgb("e8cfae"), at=(0.5, 0.4)))
        for k in range(-12, 13):
            a = k / 12.5
            c.line([(x + a * s * 0.17, top + s * 0.04),
                    (x + a * s * 0.93, top + s * 0.19 * math.sqrt(1 - a * a))], 0.8, INK, 0.2)
        dome = [(-1, 0.03), (-0.93, -0.3 * flat), (-0.55, -0.85 * flat), (0, -1.08 * flat),
                (0.55, -0.85 * flat), (0.93, -0.3 * flat), (1, 0.03), (0.5, -0.03), (-0.5, -0.03)]
        cap = place(smooth(dome), x, top, s, r(-5, 5))
        c.fill(cap, ball(cap_colour))
        with c.clip(cap):
            for _ in range(26 if spotted else 0):
                a, d = r(0, math.tau), math.sqrt(r(0, 1))
                px, py = x + s * d * math.cos(a), top - s * flat * (0.5 + d * math.sin(a) * 0.5)
                wart = blob(c.rng, px, py, s * r(0.04, 0.1) * (1.1 - d / 2), s * r(0.04, 0.07))
                c.shadow(wart, 1, 1.5, 1.5, 0.3)
                c.fill(wart, rgb("fff5e1"), 0.95)
            c.fill(oval(x - s * 0.35, top - s * 0.7 * flat, s * 0.3, s * 0.14), WHITE, 0.35, s * 0.06)
    for _ in range(170):
        x, y, tall = c.w * r(0, 1), c.h * r(0.86, 1.04), u * r(0.03, 0.11)
        blade = smooth([(x, y), (x + tall * r(-0.2, 0.2), y - tall * 0.6),
                        (x + tall * r(-0.6, 0.6), y - tall)], False, 4)
        c.fill(ribbon(blade, u * 0.008, u * 0.005, 0), lch(r(0.35, 0.68), 0.11, r(105, 145)))


def butterflies(c: Canvas) -> None:
    """A butterfly on paper, as in a cabinet drawer."""
    r, u, hue = c.r, c.u, c.hue
    paper = mix(CREAM, lch(0.9, 0.04, hue + 180), 0.5)
    c.wash(radial(lighter(paper, 0.5), paper, darker(paper, 0.12), at=(0.45, 0.4)))
    c.line(box(u * 0.04, u * 0.04, c.w - u * 0.04, c.h - u * 0.04), 1.2, darker(paper, 0.4), 0.6)
    main, edge = lch(r(0.6, 0.75), 0.16, hue), lch(0.27, 0.05, hue + r(-40, 40))
    second = lch(0.72, 0.14, hue + c.rng.choice((40, -50, 150, 0)))
    s, x, y = min(c.w * 0.37, c.h * 0.4), c.w / 2, c.h * 0.5

    def wander(text: str) -> Points:
        knots = curve(text, 1)
        return smooth([(a * r(0.94, 1.06), b * r(0.94, 1.06)) for a, b in knots])

    fore = wander("4 -10 30 -62 80 -100 112 -92 108 -55 92 -18 50 4 8 4")
    tail = r(0.0, 0.45)
    hind = wander("6 2 50 6 88 16 94 48 78 76 60 90 38 76 14 34")
    hind = [(a, b + tail * max(0, b - 0.72) * 3 * (0.5 < a < 0.75)) for a, b in hind]
    eyes, bars, n = c.rng.random() < 0.6, c.rng.random() < 0.5, c.rng.randint(6, 9)
    wings = [(w, f) for w in (hind, fore) for f in (False, True)]
    c.union([place(w, x + u * 0.015, y + u * 0.03, s, 0, f) for w, f in wings], INK, 0.4, u * 0.02)
    for wing, flip in wings:
        def at(shape: Points, flip: bool = flip) -> Points:
            return place(shape, x, y, s, 0, flip)

        is_fore = wing is fore
        mx = sum(p[0] for p in wing) / len(wing)
        my = sum(p[1] for p in wing) / len(wing)
        inner = [(mx + (a - mx) * 0.84 - 0.03, my + (b - my) * 0.84) for a, b in wing]
        tone = main if is_fore else second
        centre = (1.0 if flip else 0.0, 0.9 if is_fore else 0.1)
        c.fill(at(wing), radial(lighter(edge, 0.15), edge, at=centre, r=1.2))
        c.fill(at(inner), radial(lighter(tone, 0.55), tone, tone, darker(tone, 0.4), at=centre, r=1.3))
        with c.clip(at(inner)):
            if bars:
                for d in (0.52, 0.72):
                    c.line(at(arc(0, 0, d, d, -85, 85)), s * 0.05, darker(tone, 0.3), 0.45, 1)
            for k in range(n):
                a = math.radians((-75 if is_fore else 5) + 75 * k / (n - 1))
                end = (1.4 * math.cos(a), 1.4 * math.sin(a))
                c.line(at([(0.03, 0), end]), max(0.8, s * 0.008), edge, 0.8)
        for k in range(0, len(wing), 4):
            px, py = wing[k]
            if px > 0.5:
                dot = (mx + (px - mx) * 0.91 - 0.015, my + (py - my) * 0.91)
                c.fill(at(oval(*dot, 0.022)), lighter(second, 0.75))
        if eyes:
            ex, ey = (mx + 0.16, my - 0.12) if is_fore else (mx + 0.08, my + 0.08)
            for size, ring in ((0.13, edge), (0.1, lch(0.82, 0.13, 85)), (0.065, INK)):
                c.fill(at(oval(ex, ey, size)), ring)
            c.fill(at(oval(ex - 0.02, ey - 0.03, 0.022)), WHITE)
    torso = [(x, y - s * 0.28), (x, y - s * 0.1), (x, y + s * 0.1), (x, y + s * 0.55)]
    c.fill(ribbon(smooth(torso, False), s * 0.06, s * 0.12, s * 0.1, s * 0.02),
           across(lighter(edge, 0.4), edge, BLACK))
    c.fill(oval(x, y - s * 0.29, s * 0.05), ball(edge))
    for side in (-1, 1):
        feeler = [(x, y - s * 0.3), (x + side * s * 0.12, y - s * 0.6), (x + side * s * 0.3, y - s * 0.8)]
        c.line(smooth(feeler, False), max(1, s * 0.012), edge)
        c.fill(oval(*feeler[-1], s * 0.022), edge)


def planets(c: Canvas) -> None:
    """A planet among stars, lit from one side."""
    r, u, hue = c.r, c.u, c.hue
    mist = noise(c.rng, c.w, c.h, u * 0.5, 5)[..., None] ** 2.2
    space = np.array(lch(0.16, 0.05, hue + 150)) * (1 - mist)
    space = space + np.array(lch(0.5, 0.13, hue + 200)) * mist
    c.pixels(space.repeat(SCALE, 0).repeat(SCALE, 1))
    for _ in range(260):
        size, tone = 0.35 + c.rng.random() ** 6 * 1.5, lch(0.95, 0.04, r(0, 360))
        c.fill(oval(c.w * r(0, 1), c.h * r(0, 1), size), tone, r(0.3, 1))
    x, y, rad = c.w * r(0.4, 0.6), c.h * r(0.45, 0.55), u * r(0.24, 0.33)
    ringed, tilt, light = c.index % 3 == 0, r(-28, 28), r(-0.9, 0.9)
    air = lch(0.8, 0.1, hue + 20)
    c.fill(oval(x, y, rad * 1.05), air, 0.45, rad * 0.07)
    bands = [(d, lch(r(0.6, 0.9), r(0.03, 0.1), hue + r(-20, 40)), r(0.25, 0.8))
             for d in np.arange(1.4, r(1.9, 2.2), 0.035)]

    def ring(start: float, end: float) -> None:
        for d, tone, alpha in bands if ringed else ():
            half = [(px - x, py - y) for px, py in arc(x, y, rad * d, rad * d * 0.24, start, end)]
            c.line(place(half, x, y, 1, tilt), rad * 0.028, tone, alpha)

    ring(180, 360)
    n = round(rad * SCALE) * 2
    gy, gx = np.mgrid[-1:1:n * 1j, -1:1:n * 1j]
    gz = np.sqrt(np.clip(1 - gx**2 - gy**2, 0, 1))
    turn = math.radians(tilt)
    lat = np.arcsin(np.clip(gy * math.cos(turn) - gx * math.sin(turn), -1, 1)) / math.pi + 0.5
    lon = np.arctan2(gx * math.cos(turn) + gy * math.sin(turn), gz + 1e-6) / math.pi + 0.5
    stretch = c.pick((9.0, 1.0, 4.0, 1.6))
    sheet = noise(c.rng, 700, 500, 90 if stretch < 2 else 60, 6, stretch)
    level = sheet[(lat * 499).astype(int), (lon * 699).astype(int)]
    ramp = [lch(v, k, hue + d) for v, k, d in (
        (0.3, 0.1, 25), (0.48, 0.14, 10), (0.64, 0.13, 0), (0.8, 0.09, 35), (0.95, 0.03, 60))]
    level = np.interp(level, np.quantile(level, (0, 0.25, 0.5, 0.75, 1)), np.linspace(0, 1, 5))
    skin = np.stack([np.interp(level, np.linspace(0, 1, 5), [t[k] for t in ramp])
                     for k in range(3)], -1)
    day = gx * math.cos(light + math.pi) + gy * -0.45 + gz * 0.42
    skin *= (0.06 + 1.05 * np.clip(day * 1.5 + 0.12, 0, 1))[..., None]
    rim = np.clip(1 - gz, 0, 1)[..., None] ** 3 * np.clip(day + 0.35, 0, 1)[..., None]
    skin = skin * (1 - rim * 0.8) + np.array(air) * rim * 0.9
    c.pixels(skin, x - rad, y - rad, oval(x, y, rad - 0.4))
    ring(0, 180)
    for _ in range(c.rng.randint(0, 3)):
        a, d, size = r(0, math.tau), rad * r(1.35, 1.8), rad * r(0.05, 0.13)
        moon = ball(lch(0.75, 0.04, hue + r(-60, 60)))
        c.fill(oval(x + d * math.cos(a), y + d * math.sin(a) * 0.8, size), moon)


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
    r, u = c.r, c.u
    coat, mark, belly, iris = COATS[c.subject]
    wall = lch(r(0.6, 0.85), 0.09, c.hue)
    c.wash(down(lighter(wall, 0.15), wall))
    tint, step = lighter(wall, 0.16), u * r(0.08, 0.13)
    for k in range(int(c.w / step) + 2):
        if c.index % 3 == 0:
            c.fill(box(k * step, 0, k * step + step / 2, c.h), tint, 0.5)
        for q in range(int(c.h / step) + 1 if c.index % 3 == 1 else 0):
            c.fill(star((k + q % 2 / 2) * step, q * step, step * 0.16, 4), tint, 0.8)
    floor = darker(lch(0.6, 0.08, c.hue + 150), 0.1)
    c.fill(box(0, c.h * 0.8, c.w, c.h), down(floor, darker(floor, 0.3)))
    x, s, y = c.w * r(0.46, 0.54), u * 0.46, c.h * 0.93
    rug = lch(0.62, 0.14, c.hue + 180)
    for k in range(4):
        c.fill(oval(x, y, s * (1.25 - 0.17 * k), s * (0.2 - 0.03 * k)), (rug, CREAM)[k % 2])
    c.fill(oval(x, y + s * 0.03, s * 0.72, s * 0.09), INK, 0.45, s * 0.05)
    flip, tilt = c.rng.random() < 0.5, r(-5, 5)

    def at(shape: Points) -> Points:
        return place(shape, x, y, s, 0, flip)

    def head(shape: Points) -> Points:
        return place(shape, x, y - s * 1.2, s, tilt, flip)

    fur = slant(lighter(coat, 0.3), coat, darker(coat, 0.3))
    tail = curve("35 -12 72 -6 92 -30 84 -62 98 -84", closed=False)
    c.fill(at(ribbon(tail, 0.2, 0.19, 0.16, 0.1)), down(mark, coat))
    body = at(curve("-42 0 -54 -30 -40 -72 -24 -104 24 -104 40 -72 54 -30 42 0 0 4"))
    c.fill(body, fur)
    striped = c.subject in ("Ginger", "Tabby")
    with c.clip(body):
        c.fill(at(oval(0, -0.55, 0.22, 0.42)), belly, 0.9, s * 0.025)
        for k in range(6 if striped else 0):
            for side in (-1, 1):
                bar = [(side * 0.56, -0.86 + k * 0.13), (side * 0.36, -0.8 + k * 0.13),
                       (side * 0.25, -0.8 + k * 0.13)]
                c.fill(at(ribbon(smooth(bar, False), 0.07, 0.04, 0)), mark, 0.75)
        if c.subject == "Calico":
            c.fill(at(blob(c.rng, -0.4, -0.5, 0.22, 0.26)), mark, 1, 1)
            c.fill(at(blob(c.rng, 0.4, -0.8, 0.2, 0.2)), rgb("3a2f33"), 1, 1)
        c.fill(at(oval(0, -1.05, 0.4, 0.12)), INK, 0.25, s * 0.04)
    paw = mark if c.subject == "Siamese" else belly
    for side in (-1, 1):
        leg = at(box(side * 0.17 - 0.11, -0.5, side * 0.17 + 0.11, 0.02, 0.1))
        c.fill(leg, down(coat, coat, paw))
        c.fill(at(oval(side * 0.18, 0.0, 0.145, 0.08)), down(lighter(paw, 0.2), darker(paw, 0.1)))
        for toe in (-0.045, 0.045):
            c.line(at([(side * 0.18 + toe, 0.0), (side * 0.18 + toe, 0.06)]), 1.2, mark, 0.6)
    ear_tone = mark if c.subject == "Siamese" else coat
    for side in (-1, 1):
        ear = [(side * a, b) for a, b in curve("46 -16 50 -62 40 -62 10 -38 20 -16", 4)]
        c.fill(head(ear), down(ear_tone, coat))
        ear = [(side * a, b) for a, b in curve("41 -26 44 -52 38 -52 20 -36", 4)]
        c.fill(head(ear), down(rgb("d98f8a"), rgb("f3bdb0")))
    face = head(curve("-56 8 -50 -22 -26 -42 0 -45 26 -42 50 -22 56 8 30 32 0 38 -30 32"))
    c.shadow(face, 0, s * 0.05, s * 0.05, 0.3)
    c.fill(face, radial(lighter(coat, 0.35), coat, darker(coat, 0.22), at=(0.35, 0.25)))
    with c.clip(face):
        if striped:
            for k in (-1, 0, 1):
                c.fill(head(ribbon([(k * 0.13, -0.5), (k * 0.1, -0.2)], 0.08, 0.01)), mark, 0.8)
            for side in (-1, 1):
                for k in range(2):
                    bar = [(side * 0.6, -0.02 + k * 0.14), (side * 0.36, 0.02 + k * 0.1)]
                    c.fill(head(ribbon(bar, 0.07, 0)), mark, 0.75)
        if c.subject == "Siamese":
            c.fill(head(oval(0, 0.1, 0.3, 0.28)), mark, 0.8, s * 0.06)
        if c.subject == "Calico":
            c.fill(head(blob(c.rng, -0.32, -0.28, 0.26, 0.22)), mark, 1, 1)
            c.fill(head(blob(c.rng, 0.4, -0.25, 0.2, 0.2)), rgb("3a2f33"), 1, 1)
        if c.subject in ("Tuxedo", "Ginger", "Tabby", "Calico"):
            c.fill(head([(-0.06, -0.2), (0.06, -0.2), (0.26, 0.3), (-0.26, 0.3)]), belly, 0.9, 4)
    sleepy = c.index >= 8 and c.index % 3 == 2
    for side in (-1, 1):
        ex = side * 0.235
        if sleepy:
            c.line(head(arc(ex, -0.06, 0.11, 0.07, 10, 170)), s * 0.03, INK)
        else:
            c.fill(head(oval(ex, -0.06, 0.125, 0.12)), INK)
            c.fill(head(oval(ex, -0.06, 0.11, 0.105)), ball(iris))
            c.fill(head(oval(ex, -0.06, r(0.03, 0.06), 0.095)), INK)
            c.fill(head(oval(ex - 0.035, -0.1, 0.028)), WHITE)
        c.fill(head(oval(side * 0.085, 0.17, 0.11, 0.085)), lighter(belly, 0.3), 0.85, 1)
        for k in range(3):
            hair = [(side * 0.16, 0.16 + k * 0.025), (side * 0.62, 0.08 + k * 0.09)]
            c.line(head(hair), 0.9, WHITE if sum(coat) < 600 else INK, 0.7)
        c.line(head(arc(side * 0.06, 0.15, 0.06, 0.06, 20, 160)), s * 0.016, INK, 0.8)
    c.fill(head(curve("-6 7 6 7 0 14", 6)), rgb("d77f86"))


# ---------------------------------------------------------------- painters: things


def fruit(c: Canvas) -> None:
    """A few fruits of one sort on a table."""
    r, u = c.r, c.u
    light, chroma, hue, tall = FRUITS[c.subject]
    wall, cloth = lch(r(0.45, 0.88), 0.07, c.hue), lch(r(0.6, 0.9), 0.05, c.hue + 130)
    c.wash(radial(lighter(wall, 0.4), wall, darker(wall, 0.35), at=(0.25, 0.3), r=1.1))
    edge = c.h * r(0.58, 0.64)
    c.fill(box(0, edge, c.w, c.h), down(lighter(cloth, 0.2), cloth, darker(cloth, 0.25)))
    c.fill(box(0, edge, c.w, edge + 9), INK, 0.2, 4)
    n = c.rng.randint(2, 5)
    if c.subject in ("Grapes", "Bananas"):
        n = 1
    dish = c.rng.random() < 0.6
    size = u * (0.2 - 0.014 * n)
    floor = c.h * 0.79
    if dish:
        half, glaze = u * 0.44, lch(0.9, 0.04, c.hue + 60)
        c.fill(oval(c.w / 2 + 9, floor + u * 0.085, half, u * 0.1), INK, 0.45, u * 0.03)
        c.fill(oval(c.w / 2, floor + u * 0.05, half, u * 0.105), down(glaze, darker(glaze, 0.4)))
        c.fill(oval(c.w / 2, floor + u * 0.035, half, u * 0.1), lighter(glaze, 0.4))
        c.fill(oval(c.w / 2, floor + u * 0.04, half * 0.8, u * 0.07),
               across(darker(glaze, 0.25), glaze))
    order = sorted(((k - (n - 1) / 2) * size * 1.75 / (1 + 0.05 * n), k % 2) for k in range(n))
    for dx, row in sorted(order, key=lambda p: -p[1]):
        s = size * r(0.92, 1.08)
        x, y = c.w / 2 + dx, floor - s * 0.75 * tall - row * u * 0.06 + u * 0.04
        skin = lch(light, chroma, hue + r(-9, 9))
        c.fill(oval(x + s * 0.35, y + s * 0.9 * tall, s * 1.0, s * 0.2), INK, 0.5, s * 0.12)

        def at(text: str, turn: float = 0.0) -> Points:
            return place(curve(text), x, y, s, turn)

        lean, green = r(-12, 12), lch(0.5, 0.12, r(120, 145))
        match c.subject:
            case "Grapes":
                for k in range(30):
                    row_k, s = int((math.sqrt(8 * k + 1) - 1) / 2), size * 0.32
                    col = k - row_k * (row_k + 1) / 2 - row_k / 2
                    gx, gy = x + col * s * 1.75 + r(-3, 3), y + size * 1.1 - row_k * s * 1.25
                    c.shadow(oval(gx, gy, s), 2, 3, 4, 0.35)
                    c.fill(oval(gx, gy, s), ball(mix(skin, lch(0.5, 0.1, hue + 40), r(0, 0.5))))
                    c.fill(oval(gx - s * 0.35, gy - s * 0.4, s * 0.2), WHITE, 0.6, 1)
                s, y = size, y - size * 1.4
            case "Bananas":
                for k in range(4):
                    path = curve("-120 -70 -85 10 -10 52 70 40 125 -10", closed=False)
                    path = place(path, x, y - k * s * 0.16, s * 1.25, k * 7 - 12)
                    body = ribbon(path, s * 0.06, s * 0.5, s * 0.56, s * 0.5, s * 0.09)
                    c.shadow(body, 0, 6, 6, 0.3)
                    c.fill(body, down(lighter(skin, 0.35), skin, darker(skin, 0.35)))
                    c.line(path[3:-3], s * 0.025, darker(skin, 0.25), 0.5)
                    for tip in (path[0], path[-1]):
                        c.fill(oval(*tip, s * 0.06), rgb("5a4426"))
                continue
            case "Pears":
                c.fill(at("0 -135 22 -120 34 -80 58 -30 88 20 80 80 30 102 -30 102 -80 80 "
                          "-88 20 -58 -30 -34 -80 -22 -120", lean), ball(skin))
            case "Lemons":
                c.fill(at("-128 2 -108 -18 -60 -68 10 -80 72 -60 108 -14 126 0 108 16 "
                          "70 62 0 78 -66 64 -108 20", lean * 2), ball(skin))
            case "Cherries":
                c.fill(oval(x, y, s * 0.85), ball(skin))
            case _:
                c.fill(at("0 -84 40 -96 84 -66 98 -4 80 64 36 96 0 90 -36 96 -80 64 -98 -4 "
                          "-84 -66 -40 -96", lean), ball(skin))
        blush = lch(light - 0.05, chroma, hue - 32)
        if c.subject in ("Pears", "Apples", "Peaches"):
            c.fill(oval(x + s * 0.3, y + s * 0.2, s * 0.4, s * 0.45), blush, 0.45, s * 0.14)
        if c.subject in ("Oranges", "Lemons", "Pears"):
            for _ in range(90):
                a, d = r(0, math.tau), s * 0.8 * math.sqrt(r(0, 1))
                c.fill(oval(x + d * math.cos(a), y + d * math.sin(a) * 0.8, s * 0.012), INK, 0.2)
        if c.subject in ("Plums", "Peaches"):
            c.line(place(arc(-0.5, 0, 0.55, 0.95, -75, 60), x, y, s, lean), s * 0.03, INK, 0.25, 1)
        if c.subject != "Grapes":
            c.fill(oval(x - s * 0.36, y - s * 0.42, s * 0.2, s * 0.13, -35), WHITE, 0.6, s * 0.05)
        c.fill(oval(x + s * 0.4, y + s * 0.78, s * 0.35, s * 0.08), lighter(cloth), 0.25, s * 0.08)
        if c.subject not in ("Lemons", "Oranges"):
            top = y - s * (1.3 if c.subject == "Pears" else 0.82)
            rise = 1.6 if c.subject == "Cherries" else 0.42
            stalk = [(x, top + s * 0.05), (x + s * 0.08, top - s * rise / 2),
                     (x + s * 0.24, top - s * rise)]
            c.fill(ribbon(smooth(stalk, False), s * 0.06, s * 0.08), rgb("5c4327"))
            if c.rng.random() < 0.6 or c.subject == "Grapes":
                leaf = place(curve("0 0 30 -24 75 -22 108 0 70 16 28 14"), x + s * 0.08,
                             top - s * 0.15, s * 0.75, r(-30, 10), c.rng.random() < 0.3)
                c.fill(leaf, slant(lighter(green, 0.35), green, darker(green, 0.3)))


FRUITS = {  # lightness, chroma, hue, height
    "Apples": (0.57, 0.2, 27, 1.0),
    "Pears": (0.78, 0.15, 112, 1.15),
    "Oranges": (0.74, 0.18, 60, 1.0),
    "Lemons": (0.88, 0.17, 98, 0.8),
    "Cherries": (0.45, 0.18, 20, 0.85),
    "Plums": (0.42, 0.12, 310, 1.0),
    "Peaches": (0.8, 0.12, 52, 1.0),
    "Grapes": (0.45, 0.13, 325, 1.0),
    "Bananas": (0.87, 0.16, 92, 0.75),
}


def cups(c: Canvas) -> None:
    """A cup of coffee on its saucer."""
    r, u, hue = c.r, c.u, c.hue
    wall, table = lch(r(0.72, 0.9), 0.06, hue + 170), lch(r(0.45, 0.7), 0.07, r(40, 80))
    c.wash(radial(lighter(wall, 0.5), wall, darker(wall, 0.22), at=(0.3, 0.2), r=1.1))
    edge = c.h * r(0.6, 0.66)
    c.fill(box(0, edge, c.w, c.h), down(lighter(table, 0.2), darker(table, 0.15)))
    for _ in range(26):
        y, x = c.rng.uniform(edge, c.h), c.w * r(-0.1, 0.9)
        c.fill(oval(x, y, c.w * r(0.1, 0.3), r(0.4, 1)), darker(table, 0.4), 0.25)
    x, y, s = c.w * r(0.44, 0.54), c.h * r(0.4, 0.44), u * r(0.25, 0.29)
    tall, side = r(1.05, 1.35), c.rng.choice((-1, 1))
    glaze, accent = lch(r(0.62, 0.92), r(0.03, 0.15), hue), lch(0.5, 0.13, hue + r(90, 200))
    foot = y + s * tall

    def ring(half: float, level: float, tall: float, fill: Fill, **more: float) -> None:
        c.fill(oval(x, level, s * half, s * tall), fill, **more)

    ring(1.75, foot + s * 0.16, 0.34, INK, alpha=0.45, blur=s * 0.08)
    ring(1.65, foot + s * 0.06, 0.38, down(glaze, darker(glaze, 0.4)))
    ring(1.65, foot + s * 0.02, 0.37, slant(lighter(glaze, 0.6), glaze, darker(glaze, 0.12)))
    ring(1.52, foot + s * 0.02, 0.33, accent)
    ring(1.47, foot + s * 0.02, 0.318, slant(lighter(glaze, 0.5), glaze))
    ring(0.85, foot + s * 0.02, 0.2, INK, alpha=0.4, blur=s * 0.06)
    loop = smooth([(x + side * s * a, y + s * b * tall) for a, b in
                   ((0.85, 0.22), (1.3, 0.12), (1.5, 0.36), (1.22, 0.66), (0.72, 0.74))], False)
    c.fill(ribbon(loop, s * 0.2, s * 0.15, s * 0.17, s * 0.15),
           slant(lighter(glaze, 0.4), glaze, darker(glaze, 0.35)))
    right = curve("100 0 98 30 88 66 70 92 55 100", closed=False)
    half = [(a, b * tall) for a, b in right] + arc(0, tall, 0.55, 0.1, 0, 90)
    body = place(half + [(-a, b) for a, b in half[::-1]], x, y, s)
    c.fill(body, glaze)
    with c.clip(body):
        style = c.index % 5
        for k in range(3 if style == 0 else 0):
            c.line(arc(x, y + s * (0.3 + 0.2 * k) * tall, s, s * 0.2, 0, 180), s * 0.09, accent)
        for k in range(-6, 7 if style in (1, 2) else -6):
            a = math.sin(k * 0.25)
            if style == 1:
                c.line([(x + a * s, y), (x + a * s * 0.6, foot + 9)], s * 0.055 * (1.2 - abs(a)),
                       accent)
            for row in range(4 if style == 2 else 0):
                px, py = x + math.sin((k + row % 2 / 2) * 0.3) * s, y + s * (0.35 + 0.24 * row)
                c.fill(oval(px, py, s * 0.06 * (1.1 - abs(a)), s * 0.06), accent)
        if style == 3:
            c.fill(box(x - s, y + s * 0.55 * tall, x + s, foot + 20), accent)
            c.line(arc(x, y + s * 0.5 * tall, s, s * 0.2, 0, 180), s * 0.05, lighter(glaze, 0.6))
        c.fill(box(x + s * 0.5, y, x + s * 1.3, foot + 20), INK, 0.4, s * 0.2)
        c.fill(box(x - s * 0.7, y + s * 0.2, x - s * 0.5, foot - s * 0.2), WHITE, 0.5, s * 0.08)
        c.fill(box(x - s * 1.2, y, x - s * 0.92, foot), INK, 0.2, s * 0.08)
    ring(1.0, y, 0.25, lighter(glaze, 0.6))
    ring(0.94, y + s * 0.01, 0.22, across(darker(glaze, 0.5), darker(glaze, 0.15)))
    brew = oval(x, y + s * 0.04, s * 0.88, s * 0.185)
    c.fill(brew, radial(rgb("a5713f"), rgb("6f4322"), rgb("3f2413"), at=(0.5, 0.45), r=0.6))
    with c.clip(brew):
        milk, art = rgb("f6e3c2"), c.rng.randrange(3)
        for k in range(4 if art else 0):
            if art == 1:
                ring(0.62 - 0.17 * k, y + s * 0.05, 0.13 - 0.035 * k, (milk, rgb("8a5a30"))[k % 2])
            else:
                c.line(arc(x, y + s * (0.16 - 0.07 * k), s * (0.2 + 0.1 * k), s * 0.06, 180, 360),
                       s * 0.05, milk, 0.9)
    for k in range(3):
        px, sway = x + (k - 1) * s * 0.38, r(0, 6)
        path = [(px + math.sin(q * 0.7 + sway) * s * (0.05 + 0.012 * q), y - q * s * 0.13)
                for q in range(r(0, 1) > 0.5 and 9 or 11)]
        c.fill(ribbon(smooth(path, False), s * 0.05, s * 0.17, s * 0.02), WHITE, 0.5, s * 0.045)


def letters(c: Canvas) -> None:
    """One great letter on a poster."""
    r, u, hue = c.r, c.u, c.hue
    ground, tone = lch(r(0.6, 0.9), r(0.08, 0.14), hue), lch(0.96, 0.03, hue + 60)
    deep, pop = lch(0.3, 0.09, hue + 20), lch(0.68, 0.18, hue + c.rng.choice((150, 180, 210)))
    c.wash(ground)
    x, y, style = c.w / 2, c.h * 0.47, c.index % 4
    if style == 0:
        for k in range(24):
            a0, a1 = (math.tau * q / 48 for q in (2 * k, 2 * k + 1))
            far = c.w + c.h
            c.fill([(x, y), (x + far * math.cos(a0), y + far * math.sin(a0)),
                    (x + far * math.cos(a1), y + far * math.sin(a1))], lighter(ground, 0.22))
    elif style == 1:
        c.fill(oval(x, y, u * 0.4), pop)
        c.fill(box(0, y + u * 0.1, c.w, c.h), darker(ground, 0.22))
    elif style == 2:
        for k in range(6):
            c.fill(oval(0, c.h, u * (1.25 - 0.2 * k)), (lighter(ground, 0.25), ground)[k % 2])
    else:
        for q in range(40):
            for p in range(40):
                px, py = p * u * 0.05, q * u * 0.05
                c.fill(oval(px, py, u * 0.019 * (py / c.h)), pop, 0.75)
    size, bold = u * 0.86, u * 0.014
    for k in range(14, 0, -1):
        d = k * u * 0.0062
        c.text(c.subject, x + d, y + d, size, mix(deep, pop, 0.25 * (k == 14)), bold)
    c.text(c.subject, x, y, size, tone, bold)
    c.text(c.subject, x, y, size, down(lighter(pop, 0.15), pop) if style != 1 else tone, 0)
    band = c.h * 0.925
    c.fill(box(u * 0.05, band - u * 0.034, c.w - u * 0.05, band + u * 0.034, u * 0.034), deep)
    words = c.rng.choice(("TYPE & FORM", "ALPHABET SERIES", "PRINTED MATTER", "SPECIMEN SHEET",
                          "LETTERS ON PAPER"))
    c.text("  ".join(words), x, band, u * 0.032, tone)


SKINS = rgbs("f6d3b8 e8b48f c98d63 9a6241 6f4530 f1c4a2")
HAIRS = rgbs("2b2028 5a3825 a8622d d9a441 8a8a94 b5432e e8e2da 3a2b4f")


def faces(c: Canvas) -> None:
    """Head and shoulders, simply drawn."""
    r, u, rng = c.r, c.u, c.rng
    back, skin, hair = lch(r(0.65, 0.88), 0.11, c.hue), rng.choice(SKINS), rng.choice(HAIRS)
    cloth, trim = lch(r(0.4, 0.7), 0.13, c.hue + r(120, 240)), lch(0.9, 0.06, c.hue + 40)
    c.wash(down(lighter(back, 0.15), back))
    x, y, s = c.w / 2, c.h * 0.46, u * 0.25
    c.fill(oval(x, y + s * 0.2, s * 1.75), lighter(back, 0.35))

    def at(text: str | Points) -> Points:
        return place(curve(text) if isinstance(text, str) else text, x, y, s)

    long, bald, hat, beard = (rng.random() < p for p in (0.45, 0.12, 0.25, 0.3))
    beard = beard and not long
    if long:
        c.fill(at("0 -128 70 -108 104 -40 104 50 118 130 60 150 -60 150 -118 130 -104 50 "
                  "-104 -40 -70 -108"), down(hair, darker(hair, 0.3)))
    chest = at("-175 260 -160 175 -110 140 -40 120 40 120 110 140 160 175 175 260")
    c.fill(chest, slant(lighter(cloth, 0.2), cloth, darker(cloth, 0.3)))
    with c.clip(chest):
        style = rng.randrange(4)
        for k in range(8):
            if style == 0:
                c.line(at([(-2, 1.3 + k * 0.24), (2, 1.3 + k * 0.24)]), s * 0.09, trim)
            elif style == 1:
                for q in range(-6, 7):
                    c.fill(at(oval(q * 0.3 + k % 2 * 0.15, 1.3 + k * 0.2, 0.05)), trim)
    c.fill(at([(-0.3, 0.7), (0.3, 0.7), (0.36, 1.3), (0, 1.5), (-0.36, 1.3)]),
           down(darker(skin, 0.25), darker(skin, 0.05)))
    if style == 2:
        c.fill(at([(-0.4, 1.15), (0, 1.55), (-0.45, 1.75), (-0.7, 1.3)]), trim)
        c.fill(at([(0.4, 1.15), (0, 1.55), (0.45, 1.75), (0.7, 1.3)]), trim)
    for side in (-1, 1):
        c.fill(at(oval(side * 0.86, 0.08, 0.16, 0.22)), ball(skin))
        if long and style != 3:
            c.fill(at(oval(side * 0.9, 0.38, 0.08)), lch(0.82, 0.13, 85))
    wide = r(0.92, 1.06)
    head = at([(a * wide, b) for a, b in curve("0 -104 56 -94 86 -48 86 10 74 62 38 100 0 110 "
                                               "-38 100 -74 62 -86 10 -86 -48 -56 -94")])
    c.shadow(head, 0, s * 0.1, s * 0.08, 0.25)
    c.fill(head, radial(lighter(skin, 0.3), skin, skin, darker(skin, 0.25), at=(0.35, 0.3)))
    with c.clip(head):
        for side in (-1, 1):
            c.fill(at(oval(side * 0.5, 0.36, 0.22, 0.16)), rgb("e0645c"), 0.35, s * 0.07)
        if beard:
            c.fill(at("-100 10 -66 20 -40 50 0 44 40 50 66 20 100 10 90 130 -90 130"), hair)
        if not bald:
            part = rng.choice(("-100 10 -84 -40 -30 -62 40 -70 82 -30 100 10 110 -130 -110 -130",
                               "-100 10 -78 -44 -40 -40 0 -54 40 -40 78 -44 100 10 110 -130 "
                               "-110 -130", "-100 0 -80 -30 10 -48 60 -76 84 -20 100 0 100 -130 "
                               "-110 -130"))
            c.fill(at(part), down(lighter(hair, 0.15), hair))
    if not bald and not hat:
        crown = rng.randrange(3)
        if crown == 0:
            for k in range(11):
                a = math.pi * (1 + k / 10)
                c.fill(at(oval(0.82 * math.cos(a), -0.45 + 0.62 * math.sin(a), 0.24)), hair)
        elif crown == 1:
            c.fill(at("-92 -20 -92 -80 -50 -122 20 -132 74 -110 94 -60 90 -20 70 -70 -60 -74"),
                   down(lighter(hair, 0.25), hair))
        else:
            c.fill(at(oval(0, -1.24, 0.34, 0.3)), ball(hair))
            c.fill(at("-90 -20 -80 -80 0 -116 80 -80 90 -20 60 -70 0 -84 -60 -70"), hair)
    if hat:
        c.fill(at("-96 -44 -90 -110 -40 -152 40 -152 90 -110 96 -44 0 -62"),
               down(lighter(cloth, 0.25), cloth, darker(cloth, 0.2)))
        c.fill(at("-102 -40 -100 -66 0 -84 100 -66 102 -40 0 -58"), trim)
        c.fill(at(oval(0, -1.56, 0.17)), ball(trim))
    iris = rng.choice(rgbs("4a3526 3f6b8a 5a7a45 6b5a3a"))
    for side in (-1, 1):
        ex = side * 0.34
        c.fill(at(oval(ex, 0.0, 0.15, 0.115)), rgb("fffaf2"))
        c.fill(at(oval(ex + 0.02, 0.01, 0.085)), iris)
        c.fill(at(oval(ex + 0.02, 0.01, 0.045)), INK)
        c.fill(at(oval(ex - 0.01, -0.03, 0.022)), WHITE)
        c.line(at(arc(ex, 0.02, 0.16, 0.14, 195, 345)), s * 0.04, INK, 0.85)
        c.line(at(arc(ex, -0.12, 0.21, 0.14, 215, 325)), s * 0.07, darker(hair, 0.2))
    c.line(at(smooth([(0.02, 0.02), (0.1, 0.3), (-0.04, 0.34)], False)), s * 0.045,
           darker(skin, 0.35))
    smile = r(0.08, 0.2)
    mouth = arc(0, 0.58, 0.26, smile, 5, 175)
    if rng.random() < 0.4:
        c.fill(at(mouth), rgb("8a2f3a"))
        c.line(at([(-0.2, 0.61), (0.2, 0.61)]), s * 0.05, WHITE)
    else:
        c.line(at(mouth), s * 0.05, rgb("a8434a"))
    if rng.random() < 0.4:
        rim = rng.choice((INK, rgb("b5432e"), rgb("2f6f6a")))
        for side in (-1, 1):
            c.fill(at(oval(side * 0.34, 0.02, 0.27)), WHITE, 0.18)
            c.line(at(oval(side * 0.34, 0.02, 0.27, 0.25)), s * 0.045, rim)
        c.line(at([(-0.08, 0), (0.08, 0)]), s * 0.045, rim)


# ---------------------------------------------------------------- painters: patterns


def tartans(c: Canvas) -> None:
    """Woven cloth: one sett of threads both ways, in a twill."""
    r, rng, hue = c.r, c.rng, c.hue
    base, other = lch(r(0.36, 0.5), 0.11, hue), lch(0.28, 0.06, hue + c.rng.choice((0, 120, 200)))
    light, pop = lch(0.9, 0.04, 90), lch(0.7, 0.16, hue + rng.choice((60, 150, 180)))
    sett = [(base, rng.randint(9, 16)), (other, rng.randint(4, 8)), (base, rng.randint(2, 4)),
            (other, rng.randint(4, 8)), (light, rng.choice((1, 2))), (other, rng.randint(2, 5)),
            (pop, rng.choice((2, 3))), (base, rng.randint(5, 9))]
    threads = [colour for colour, n in sett + sett[-2::-1] for _ in range(n)]
    yarn = np.array(threads, np.float32)
    gy, gx = np.mgrid[0 : c.h * SCALE, 0 : c.w * SCALE].astype(np.float32)
    turn, pitch = math.radians(c.pick((0, 0, 45, 0, -18, 0, 12))), SCALE * r(2.6, 3.8)
    sag = noise(rng, c.w * SCALE, c.h * SCALE, c.u * 1.6, 2) * pitch * 6
    along = (gx * math.cos(turn) + gy * math.sin(turn) + sag) / pitch + 999
    over = (gy * math.cos(turn) - gx * math.sin(turn) + sag) / pitch + 999
    i, j = along.astype(np.int32), over.astype(np.int32)
    up = (i + j) % 4 < 2
    cloth = yarn[np.where(up, i, j) % len(threads)]
    round_ = np.where(up, along - i, over - j)
    cloth *= (0.8 + 0.36 * np.sin(round_ * math.pi))[..., None]
    folds = noise(rng, c.w * SCALE, c.h * SCALE, c.u * 0.9, 3, 0.6)
    c.pixels(cloth * (0.72 + 0.5 * folds)[..., None])


def windows(c: Canvas) -> None:
    """Stained glass: a rose of leaded panes, lit from behind."""
    r, rng, hue = c.r, c.rng, c.hue
    k = 2
    gy, gx = np.mgrid[0 : c.h * k, 0 : c.w * k].astype(np.float32) / (c.u * k)
    gx, gy = gx - c.w / c.u / 2, gy - c.h / c.u / 2
    fold = math.pi / c.pick((6, 8, 5, 10, 7, 12))
    far, angle = np.hypot(gx, gy), np.arctan2(gy, gx) + math.tau
    sector = (angle / fold).astype(np.int32)
    angle = np.abs((angle % (2 * fold)) - fold)
    px, py = far * np.cos(angle), far * np.sin(angle)
    seeds = [(0.0, 0.0)]
    rows = rng.randint(5, 7)
    for row in range(1, rows + 2):
        d = 0.62 * row / rows * r(0.94, 1.06)
        for q in range(1 + row // 3):
            a = fold * ((q + 0.5 * (row % 2)) / max(1, row // 3) if row // 3 else row % 2)
            seeds.append((d * math.cos(min(a, fold)), d * math.sin(min(a, fold))))
    near, second = np.full(far.shape, 9.0, np.float32), np.full(far.shape, 9.0, np.float32)
    which = np.zeros(far.shape, np.int32)
    for n, (sx, sy) in enumerate(seeds):
        dist = np.hypot(px - sx, py - sy)
        closer = dist < near
        second = np.where(closer, near, np.minimum(second, dist))
        near, which = np.where(closer, dist, near), np.where(closer, n, which)
    hues = [hue, hue + r(25, 45), hue + r(150, 200), hue + r(-70, -40), 85.0]
    panes = np.array([lch(r(0.5, 0.82), r(0.12, 0.19), rng.choice(hues)) for _ in seeds])
    glass = panes[which].astype(np.float32)
    glass *= (0.9 + 0.2 * ((which * 7 + sector * 5) % 11) / 11)[..., None]
    grain = noise(rng, c.w * k, c.h * k, 40 * k, 5, 0.4)
    glow = 1.25 - 0.75 * far + 0.35 * (grain - 0.5) - 1.1 * near
    glass = glass * glow[..., None] + 26 * np.clip(0.6 - far, 0, 1)[..., None]
    lead = np.clip(((second - near) - 0.011) * c.u * k * 0.45, 0, 1)
    for d in (0.47, 0.485):
        lead *= np.clip((np.abs(far - d) - 0.004) * c.u * k * 0.6, 0, 1)
    shine = np.clip(1 - np.abs((second - near) - 0.006) * c.u * 0.5, 0, 1) * 20
    out = glass * lead[..., None] + (np.array((24, 22, 30)) + shine[..., None]) * (1 - lead[..., None])
    picture = Image.fromarray(out.clip(0, 255).astype(np.uint8))
    c.img.paste(picture.resize(c.img.size, Image.Resampling.BICUBIC))


def mazes(c: Canvas) -> None:
    """A labyrinth, coloured by the distance from its start."""
    r, rng, hue = c.r, c.rng, c.hue
    dark = c.index % 2 == 0
    paper = lch(0.24, 0.05, hue + 180) if dark else lch(0.94, 0.025, hue + 60)
    c.wash(slant(lighter(paper, 0.06), darker(paper, 0.08)))
    n = rng.choice((13, 16, 19, 23))
    cell = c.u * 0.88 / n
    cols, rows = int(c.w * 0.92 / cell), int(c.h * 0.92 / cell)
    x0, y0 = (c.w - (cols - 1) * cell) / 2, (c.h - (rows - 1) * cell) / 2
    disc = c.index % 4 == 1
    free = {(i, j) for i in range(cols) for j in range(rows)
            if not disc or math.hypot(i - (cols - 1) / 2, j - (rows - 1) / 2) < n / 2 + 0.3}
    start = min(free, key=lambda p: math.hypot(p[0] - cols * r(0.2, 0.8), p[1] - rows * r(0.2, 0.8)))
    depth, stack, edges = {start: 0}, [start], []
    free.remove(start)
    while stack:
        i, j = stack[-1 if rng.random() < 0.93 else rng.randrange(len(stack))]
        ways = [p for p in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)) if p in free]
        if not ways:
            stack.remove((i, j))
            continue
        to = rng.choice(ways)
        free.remove(to)
        depth[to] = depth[i, j] + 1
        edges.append(((i, j), to))
        stack.append(to)
    far, span = max(depth.values()), rng.choice((90, -110, 150, -60))
    wide = cell * r(0.56, 0.68)

    def at(p: tuple[int, int]) -> Point:
        return x0 + p[0] * cell, y0 + p[1] * cell

    bars = [ribbon([at(a), at(b)], wide) for a, b in edges]
    c.union([[(x + 2, y + 3.5) for x, y in b] for b in bars], INK, 0.4, 2.5)
    for a, b in sorted(edges, key=lambda e: depth[e[1]]):
        t = depth[b] / far
        light = 0.9 - 0.42 * t if dark else 0.78 - 0.4 * t
        tone = lch(light, 0.14, hue + span * t)
        c.line([at(a), at(b)], wide, tone)
    end = max(depth, key=depth.__getitem__)
    for p, tone in ((start, INK if dark else CREAM), (end, CREAM)):
        c.fill(oval(*at(p), wide * 0.27), tone)


INKS = [rgbs(line) for line in (
    # ground, then inks
    "f3e9d2 d1495b edae49 00798c 2e4057 8fb8a8", "efe4d0 2a6f77 e07a3f f2c14e 3b3a4a a9c5a0",
    "e8d9c5 7d5ba6 f28f79 f3c969 55828b 3a3042", "dfe7e0 1b4965 e4572e f3a712 62b6cb 5f7470",
    "f0dcca 9a031e fb8b24 5f0f40 0f4c5c e9b872", "2e3a46 f2b134 ed553b 4fb99f f4ead5 6a8caf",
    "f5ead6 4a7c59 c8d5b9 e76f51 264653 f2cc8f", "f6dfd6 c9577b f2a65a 5b8e9f 40304d f7c6c0",
)]


def abstracts(c: Canvas) -> None:
    """A mid-century composition of pebbles, discs and rods."""
    r, rng, u = c.r, c.rng, c.u
    ground, *inks = c.pick(INKS)
    c.wash(slant(lighter(ground, 0.2), ground))
    for _ in range(rng.randint(3, 4)):
        x, y = c.w * r(0.2, 0.8), c.h * r(0.2, 0.8)
        c.fill(blob(rng, x, y, u * r(0.16, 0.36), u * r(0.14, 0.3), 0.24, 6), rng.choice(inks), 0.86)
    for _ in range(rng.randint(2, 3)):
        x, y, s, tone = c.w * r(0.15, 0.85), c.h * r(0.15, 0.85), u * r(0.12, 0.2), rng.choice(inks)
        wing = curve("-100 40 -60 -30 0 -62 60 -30 100 40 60 16 0 -8 -60 16")
        c.fill(place(wing, x, y, s, r(0, 360)), tone, 0.92)
    for _ in range(rng.randint(2, 4)):
        x, y, size, tone = c.w * r(0.1, 0.9), c.h * r(0.1, 0.9), u * r(0.04, 0.13), rng.choice(inks)
        c.fill(oval(x, y, size), tone, 0.9)
        if rng.random() < 0.6:
            c.fill(oval(x, y, size * 0.62), ground)
            c.fill(oval(x, y, size * 0.34), rng.choice(inks))
    x, y = c.w * r(0.1, 0.5), c.h * r(0.1, 0.3)
    for k in range(rng.randint(7, 13)):
        px = x + k * u * 0.035
        c.line([(px, y), (px, y + u * (0.3 + 0.1 * math.sin(k * 0.8)))], u * 0.005, INK, 0.85)
    for _ in range(rng.randint(2, 4)):
        x, y, n, size = c.w * r(0.1, 0.9), c.h * r(0.1, 0.9), rng.choice((6, 8, 10)), u * r(0.05, 0.09)
        for k in range(n):
            a = math.tau * k / n
            ex, ey = x + size * math.cos(a), y + size * math.sin(a)
            c.line([(x, y), (ex, ey)], u * 0.004, INK)
            c.fill(oval(ex, ey, u * 0.011), rng.choice((INK, *inks)))
    path = [(c.w * (k / 5 - 0.1), c.h * r(0.25, 0.75)) for k in range(8)]
    c.line(smooth(path, False), u * 0.006, INK, 0.9)
    x, y = c.w * r(0.4, 0.75), c.h * r(0.6, 0.8)
    for k in range(24):
        c.fill(oval(x + k % 6 * u * 0.036, y + k // 6 * u * 0.036, u * 0.007), INK, 0.9)


# ---------------------------------------------------------------- the catalogue


@dataclass(frozen=True)
class Kind:
    """A kind of picture: its painter, its shapes of sheet and its words."""

    painter: Callable[[Canvas], None]
    sizes: str
    title: str  # of {s}, the subject, and {a} and {b}, drawn from the word lists
    a: str
    b: str = ""
    subjects: tuple[str, ...] = ("",)
    grain: float = 2.2

    @property
    def name(self) -> str:
        return self.painter.__name__


WIDE, TALL, EVEN = "640x480 720x480 800x500", "480x640 500x700 450x600", "600x600 540x540"
KINDS = (
    Kind(landscapes, WIDE, "{a} {b}", "Quiet Ridge/Far Hills/The Long Pass/Seven Summits/"
         "Cold Shoulder Peak/Pine Valley/Eagle Saddle/The High Moor",
         "at Dawn/before Rain/in October/from the Hut/after the Thaw/towards Evening"),
    Kind(skylines, WIDE, "{s}, {a}", "Harbour District/Port Amsel/The East Bank/New Carrow/"
         "Lanternside/City of Bridges/Ferry Landing/Old Exchange", subjects=tuple(HOURS)),
    Kind(boats, WIDE + " " + EVEN, "{a} {b}", "Red Kite/Little Heron/The Marguerite/Two Sisters/"
         "Saltwind/Petrel/The Good Intent/Morning Star",
         "over the Bay/off the Point/Homeward/in Light Airs/rounding the Isle/at Slack Water"),
    Kind(balloons, TALL + " " + EVEN, "{a} {b}", "Silent Ascent/The Great Float/Drifting/"
         "Burner and Breeze/Up before Breakfast/Lighter than Air/The Regatta/Windfall",
         "over Hay Country/at Seven O'Clock/above Lindenau/in Still Air/with Company"),
    Kind(trees, TALL + " " + EVEN, "{b}, {s}", "", "The Boundary Oak/Grandmother's Lime/Old Elm/"
         "The Meeting Tree/Lone Maple/Orchard's End/The Shepherd's Beech", tuple(SEASONS), 2.0),
    Kind(houses, WIDE, "{a} {b}", "Chandler/Weaver/Mercer/Rope/Almond/Lower Mill/Saint Bride/"
         "Copper/Old Fish", "Street/Row/Quay/Terrace/Lane", grain=1.8),
    Kind(fishes, WIDE, "{a} {b}", "Gilded/Idle/Reef/Solemn/Striding/Lagoon/Velvet/Wandering/"
         "Harlequin", "Wrasse/Damsel/Snapper/Parrotfish/Bream/Angelfish"),
    Kind(flowers, TALL + " 600x600", "{s} {a}", "for Clara/by the Gate/in June Light/after a Shower/"
         "from the Allotment/on the Sill/at Midsummer/Gathered Early/in the Walled Garden",
         subjects=tuple(BLOOMS)),
    Kind(mushrooms, TALL + " 640x480", "{a} {b}", "Damp/Hushed/Wayside/Fairy/Late/Birchwood/Hollow/"
         "Rainy-Day", "Parasols/Bonnets/Caps/Company/Bells/Ring"),
    Kind(butterflies, WIDE + " 600x600", "{a} {b}", "Lesser/Painted/Alpine/Dusk/Royal/Marsh/"
         "Veiled/Southern/Mourning", "Emperor/Fritillary/Swallowtail/Argus/Duchess/Apollo"),
    Kind(planets, WIDE + " " + EVEN, "{a} {b}", "Ostara/Kepheon/Thule/Mirabel/Vanth/Ilmatar/"
         "Sorrel/Halcyon/Tamsin", "Rising/in Half-Light/and Moons/Seen from Afar/VII/at Perihelion"),
    Kind(cats, TALL + " 600x600", "{b}, {s}", "", "Miss Pepper/The Landlord/Olive/Professor Tibbs/"
         "Dumpling/Admiral/Juniper/Mister Sock/Figaro", tuple(COATS)),
    Kind(fruit, WIDE + " 600x600", "{s} {a}", "on a Table/in North Light/for Breakfast/from Market/"
         "before Supper/on Linen/and a Pale Wall/Left Over", subjects=tuple(FRUITS)),
    Kind(cups, WIDE + " 600x600", "{a} {b}", "First/Second/Corner-Table/Sunday/Unhurried/Rainy/"
         "Station/Borrowed", "Coffee/Cortado/Cup/Espresso/Flat White"),
    Kind(letters, TALL, "The Letter {s}{a}", "", subjects=tuple("RAGEBKSQMWNHXDZFPJ"), grain=1.8),
    Kind(faces, TALL + " 540x540", "{a} {b}", "Portrait of/Sitting with/Sketch of/Waiting for/"
         "Remembering", "Agnes/Tobias/Lucía/Mr. Okafor/Henrike/Young Anton/Salma/Aunt Vera/Bo"),
    Kind(tartans, EVEN + " 640x480", "{a} {b}", "Glen Farrow/Kildarroch/Strathmore Bay/Ballinluig/"
         "Inverbrae/Loch Ossian/Ardnish/Carrick Moor", "Dress Tartan/Hunting Tartan/Blanket/Shawl"),
    Kind(windows, EVEN + " 480x640", "{a} {b}", "North/Lady Chapel/Pilgrims'/Harvest/Vesper/"
         "Glaziers'/Evensong", "Rose/Window/Lights/Wheel"),
    Kind(mazes, EVEN + " 640x480", "{a} {b}", "Patient/Gentle/Minotaur's/Blind/Clockmaker's/"
         "Wandering/Sleepless/Paper", "Labyrinth/Maze/Garden/Thread/Errand", grain=1.8),
    Kind(abstracts, WIDE + " 500x700", "{a} {b}", "Composition with/Study for/Nocturne for/"
         "Conversation of/Suite for", "Pebbles/a Mobile/Three Moons/Jazz Quartet/Kites/Tide Tables"),
)
ARTISTS = ("Ines Calloway", "Bram Oosterveld", "Yuki Tanemura", "Odile Farrant", "Anselm Quill",
           "Rosa Bellwether", "Teodor Halasz", "Nkechi Obara", "Priya Sundaresh", "Mattias Lindqvar")
COPIES = ("cropped", "mirrored", "tinted", "resized", "re-encoded")


@dataclass(frozen=True)
class Plan:
    """One picture to make: which, what it is called, and the copy to make of it."""

    kind: Kind
    index: int
    title: str
    file: str
    year: int
    artist: str
    copy: str = ""


def plan() -> list[Plan]:
    """The whole gallery, before a stroke of it is painted."""
    plans: list[Plan] = []
    for order, kind in enumerate(KINDS):
        rng = random.Random(f"titles of {kind.name}")
        words = [(a, b) for a in kind.a.split("/") for b in kind.b.split("/")]
        rng.shuffle(words)
        hands = rng.sample(ARTISTS, 4)
        for index in range(PER_KIND):
            a, b = words[index % len(words)]
            title = kind.title.format(s=kind.subjects[index % len(kind.subjects)], a=a, b=b)
            slug = "".join(x if x.isalnum() else "-" for x in title.lower().replace("í", "i"))
            slug = "-".join(part for part in slug.replace("'", "").split("-") if part)
            ending = ("jpg", "jpg", "webp", "jpg", "jpg", "jpg", "png", "jpg", "jpg")[
                (index + order) % 9]
            step = order * 2 + (index > 8)
            copied = index in (5, 14) and step < COPY_COUNT
            plans.append(Plan(kind, index, title, f"{kind.name}/{slug}.{ending}",
                              rng.randint(1950, 2025), rng.choice(hands),
                              COPIES[step % len(COPIES)] if copied else ""))
    return plans


def paint(kind: Kind, index: int) -> Image.Image:
    """One picture, the same each time."""
    rng = random.Random(f"{kind.name} {index}")
    sizes = kind.sizes.split()
    w, h = map(int, sizes[(index + index // len(sizes)) % len(sizes)].split("x"))
    canvas = Canvas(w, h, rng, index, kind.subjects[index % len(kind.subjects)])
    kind.painter(canvas)
    return canvas.finish(kind.grain)


def altered(picture: Image.Image, how: str) -> Image.Image:
    """A near-duplicate of a picture."""
    w, h = picture.size
    if how == "cropped":
        return picture.crop((round(w * 0.05), round(h * 0.06), round(w * 0.97), round(h * 0.98)))
    if how == "mirrored":
        return ImageOps.mirror(picture)
    if how == "resized":
        return picture.resize((round(w * 0.55), round(h * 0.55)), Image.Resampling.LANCZOS)
    if how == "tinted":
        return Image.blend(picture, ImageChops.multiply(
            picture, Image.new("RGB", picture.size, rgb("ffcf8f"))), 0.75)
    return picture


NAMED = {  # hue in degrees where each colour begins
    0: "red", 16: "orange", 42: "yellow", 68: "green", 158: "teal", 192: "blue",
    250: "purple", 300: "pink", 345: "red",
}


def named_colour(picture: Image.Image) -> str:
    """The colour that most of a picture is, vivid pixels counting for more."""
    small = picture.convert("RGB").resize((48, 48), Image.Resampling.BOX)
    hsv = np.asarray(small.convert("HSV")).reshape(-1, 3).astype(float)
    hue, strong, bright = hsv[:, 0] * 360 / 256, hsv[:, 1] / 255, hsv[:, 2] / 255
    names = np.array(list(NAMED.values()))[np.searchsorted(list(NAMED), hue, "right") - 1]
    warm = (hue < 46) | (hue > 345)
    names = np.where(warm & (bright < 0.62) & (strong > 0.2), "brown", names)
    names = np.where((names == "red") & (strong < 0.5) & (bright > 0.7), "pink", names)
    names = np.where((strong < 0.14) | (bright < 0.16), "grey", names)
    weight = np.where(names == "grey", 0.16, strong * bright)
    totals = {str(n): float(weight[names == n].sum()) for n in np.unique(names)}
    return max(totals, key=totals.__getitem__)


def save(picture: Image.Image, path: Path, quality: int = 86) -> None:
    if path.suffix == ".png":
        picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    else:
        picture.save(path, quality=quality)


def make(job: tuple[Plan, str]) -> list[list[str | int]]:
    """Paint one picture and its copy, if it has one; their rows of the CSV."""
    item, folder = job
    picture, path = paint(item.kind, item.index), Path(folder, item.file)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(picture, path)
    name, year, artist = item.kind.name, item.year, item.artist
    rows: list[list[str | int]] = [
        [item.file, item.title, name, year, named_colour(picture), artist, ""]]
    if item.copy:
        with Image.open(path) as saved:
            other = altered(saved.convert("RGB"), item.copy)
        file = f"{name}/{path.stem}-{item.copy}.jpg"
        save(other, Path(folder, file), 22 if item.copy == "re-encoded" else 84)
        rows.append([file, f"{item.title} ({item.copy})", name, year, named_colour(other), artist,
                     f"{item.copy} copy of {path.name}"])
    return rows


def make_gallery(out_dir: Path) -> int:
    """Make the gallery, unless it is there already; the number of its pictures."""
    stamp, table = out_dir / ".complete", out_dir / "gallery.csv"
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    mark = f"{source} Pillow {PIL.__version__}\n"
    if stamp.exists() and stamp.read_text() == mark:
        with table.open(newline="", encoding="utf-8") as file:
            files = [row["file"] for row in csv.DictReader(file)]
        if all((out_dir / name).exists() for name in files):
            return len(files)
    stamp.unlink(missing_ok=True)
    jobs = [(item, str(out_dir)) for item in plan()]
    try:
        with ProcessPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            made = list(pool.map(make, jobs, chunksize=6))
    except (pickle.PicklingError, ImportError, BrokenProcessPool):
        made = list(map(make, jobs))  # imported in some way that helpers cannot follow
    rows = [row for part in made for row in part]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    table.write_text(text.getvalue(), encoding="utf-8")
    stamp.write_text(mark)
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Paint the demo gallery.")
    parser.add_argument("out_dir", type=Path, help="folder to put the pictures in")
    out_dir = parser.parse_args().out_dir
    print(f"{make_gallery(out_dir)} pictures in {out_dir}")


if __name__ == "__main__":
    main()
