"""Whether two pictures that look the same from afar are the same in detail.

A perceptual hash sees 8 × 8 frequencies and an encoder the gist: pages of one layout, forms
filled in differently and logos with other letters are equal to both. So each pair that they
take for the same picture is looked at again, larger. One picture is laid over the other
(B. Lucas, T. Kanade, "An iterative image registration technique with an application to
stereo vision", 1981): stretched and shifted as cropping does, lightened, and strengthened
in contrast. Fine detail or colour that then differs anywhere makes them two pictures.

In the functions below, `a` and `b` are m squares of s × s grey pixels: float32 (m, s, s).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

SIDE = 256  # pixels a side of the squares that are compared
STEPS = {32: 10, 64: 5, 128: 4, 256: 2}  # by side, coarse to fine
EARLY = 128  # pixels a side; what surely differs there is not compared at more
SMALLEST = 32  # pixels a side
AT_ONCE = 16  # pairs
STRETCH = (0.88, 1.14)  # factors: cropping takes up to 5 % of a side
SHIFT = 0.07  # of a side
CONTRAST = (0.5, 2.0)  # factors
STARTS = (41, 13)  # stretches and shifts that profiles are compared at
FIELDS = 16  # a side, each of which must agree
COLOUR_FIELDS = 8  # a side
NOISE = 6.0  # levels of 255 that compression and resizing may leave
SHOWN = 0.4  # the least part of a field that both pictures must show
# The most that detail may differ: 0 is equal, and unrelated detail about 2. Where all of
# it is a little different, as of a copy of low quality, a single field may be more so.
OVERALL = 0.3
WORST, FOLLOWS, MOST = 0.42, 3, 0.8
PAGE_WORST, PAGE_FOLLOWS = 0.3, 2  # of pages, where a changed line is as little as this
PAGE = 0.5  # the least share of pixels that are the ground of a page
SURELY = (2.0, 0.9)  # at EARLY, in the worst field and overall
COLOURS = 24.0  # levels of 255
LUMA = (0.299, 0.587, 0.114)  # Rec. 601


class Squares(NamedTuple):
    """n pictures, squeezed into squares.

    `grey` uint8 (n, SIDE, SIDE). `colours` uint8 (n, SMALLEST, SMALLEST, 3), RGB.
    """

    grey: np.ndarray
    colours: np.ndarray

    def of(self, places: np.ndarray) -> Squares:
        """Those at int64 (m,)."""
        return Squares(self.grey[places], self.colours[places])


class Laid(NamedTuple):
    """How n pictures are laid over others.

    `place` float32 (n, 4): stretch and shift across, then down, in parts of a side from
    the middle. `light` float32 (n, 2): factor and constant.
    """

    place: np.ndarray
    light: np.ndarray


def squares_of(pixels: np.ndarray) -> Squares:
    """RGB pictures uint8 (n, SIDE, SIDE, 3) as they are compared."""
    import numpy as np

    grey = np.round(pixels @ np.array(LUMA, np.float32)).astype(np.uint8)
    part = SIDE // SMALLEST
    shape = (len(pixels), SMALLEST, part, SMALLEST, part, 3)
    return Squares(grey, pixels.reshape(shape).mean(axis=(2, 4)).astype(np.uint8))


def are_same(a: Squares, b: Squares, sides: np.ndarray) -> np.ndarray:
    """Whether n pairs of pictures agree in every detail and colour: bool (n,).

    `sides` float (n,): how many pixels a side the smaller picture of each pair has.
    """
    found = differences(a, b, sides)
    return _agree(found, _are_pages(a.grey)) & (found[:, 2] <= COLOURS)


def differences(a: Squares, b: Squares, sides: np.ndarray) -> np.ndarray:
    """By how much n pairs differ: float (n, 3).

    In the field where detail differs most, in all detail, and in colour.
    """
    import numpy as np

    found = np.empty((len(sides), 3), np.float32)
    levels = np.searchsorted(list(STEPS), np.maximum(sides, SMALLEST), "right")
    for level in np.unique(levels):
        there = np.flatnonzero(levels == level)
        for first in range(0, len(there), AT_ONCE):
            some = there[first : first + AT_ONCE]
            found[some] = _differences(a.of(some), b.of(some), list(STEPS)[:level])
    return found


def laid_over(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, Laid]:
    """Grey squares b as they are laid over those of a: float32 (m, s, s) and how.

    Of pictures known to be the same: uint8 or float32 (m, s, s), s one of STEPS.
    """
    laid = _nearest(a, b, _as_they_are(len(a)), [one for one in STEPS if one <= a.shape[1]])
    over, _ = _over(_reduced(b, a.shape[1]), laid.place)
    return laid.light[:, 0, None, None] * over + laid.light[:, 1, None, None], laid


def _agree(detail: np.ndarray, pages: np.ndarray) -> np.ndarray:
    """Whether it does: in the worst field and overall, float (n, 2 or more).

    `pages` bool (n,): most of the picture is empty, as of text or a drawing.
    """
    import numpy as np

    worst, overall = detail[:, 0], detail[:, 1]
    most = np.where(pages, PAGE_WORST + PAGE_FOLLOWS * overall, WORST + FOLLOWS * overall)
    return (worst <= np.minimum(MOST, most)) & (overall <= OVERALL)


def _are_pages(grey: np.ndarray) -> np.ndarray:
    """Whether half of a picture or more is of one brightness: bool (n,)."""
    import numpy as np

    found = np.empty(len(grey), bool)
    for place, levels in enumerate(grey >> 3):
        counts = np.bincount(levels.ravel(), minlength=33)
        found[place] = (counts[:-1] + counts[1:]).max() >= PAGE * levels.size
    return found


def _differences(a: Squares, b: Squares, sides: list[int]) -> np.ndarray:
    """The same of pairs that are all compared at these sides."""
    import numpy as np

    early = [one for one in sides if one <= EARLY]
    laid = _nearest(a.grey, b.grey, _as_they_are(len(a.grey)), early)
    detail = _in_detail(a.grey, b.grey, laid, early[-1])
    # Stripes, as of text, are easily laid a line too low: begin elsewhere as well.
    again = np.flatnonzero(~_agree(detail, _are_pages(a.grey)))
    if len(again):
        one, two = a.grey[again], b.grey[again]
        other = _nearest(one, two, _by_profiles(one, two, sides[-1]), early[-1:])
        found = _in_detail(one, two, other, early[-1])
        better = found[:, 1] < detail[again, 1]
        for mine, theirs in zip((*laid, detail), (*other, found), strict=True):
            mine[again[better]] = theirs[better]
    left = np.flatnonzero((detail <= SURELY).all(axis=1))
    if len(left) and sides != early:
        one, two = a.grey[left], b.grey[left]
        nearer = Laid(*(column[left] for column in laid))
        nearer = _nearest(one, two, nearer, sides[len(early) :])
        detail[left] = _in_detail(one, two, nearer, sides[-1])
    return np.column_stack([detail, _in_colour(a.colours, b.colours, laid)])


# Laying pictures over others


def _as_they_are(count: int) -> Laid:
    import numpy as np

    place = np.tile(np.array([1, 0, 1, 0], np.float32), (count, 1))
    return Laid(place, np.tile(np.array([1, 0], np.float32), (count, 1)))


def _nearest(a: np.ndarray, b: np.ndarray, laid: Laid, sides: list[int]) -> Laid:
    for side in sides:
        x, y = _reduced(a, side), _reduced(b, side)
        for _ in range(STEPS[side]):
            laid = _nearer(x, y, laid)
    return laid


def _nearer(a: np.ndarray, b: np.ndarray, laid: Laid) -> Laid:
    """One step of Gauss and Newton."""
    import numpy as np

    count, side, _ = a.shape
    over, inside = _over(b, laid.place)
    x, y = _lit(a, over, laid.light)
    slope = side * laid.light[:, 0, None, None]
    down, across = (slope * one for one in np.gradient(over, axis=(1, 2)))
    u = _middles(side)
    slopes = np.stack(
        [across * u, across, down * u[:, None], down, over, np.ones_like(over)], axis=1
    )
    slopes = (slopes * inside[:, None]).reshape(count, 6, -1)
    error = ((x - y) * inside).reshape(count, -1, 1)
    squares = slopes @ slopes.transpose(0, 2, 1)
    damped = squares + 1e-3 * (squares + 1) * np.eye(6)  # a striped side has no slope
    change = np.linalg.solve(damped, slopes @ error)[..., 0].astype(np.float32)
    place, light = laid.place + change[:, :4], laid.light + change[:, 4:]
    place[:, 0::2] = place[:, 0::2].clip(*STRETCH)
    place[:, 1::2] = place[:, 1::2].clip(-SHIFT, SHIFT)
    light[:, 0] = light[:, 0].clip(*CONTRAST)
    return Laid(place, light)


def _by_profiles(a: np.ndarray, b: np.ndarray, side: int) -> Laid:
    """The stretch and shift at which the means of rows, and of columns, agree best."""
    import numpy as np

    choices = [
        (stretch, shift * max(abs(1 - stretch) / 2, 0.004))
        for stretch in np.linspace(0.9, 1.1, STARTS[0])
        for shift in np.linspace(-1, 1, STARTS[1])
    ]
    stretch, shift = np.array(choices, np.float32).T
    low, part, inside = _along(side, stretch, shift)
    laid = _as_they_are(len(a))
    for first, axis in ((0, 1), (2, 2)):
        p, q = (_fine_profile(_reduced(one, side).mean(axis=axis)) for one in (a, b))
        moved = (q[:, low] * (1 - part) + q[:, low + 1] * part) * inside
        strength = ((p * p) @ inside.T) * (moved**2).sum(axis=2)
        alike = np.einsum("mcs,ms->mc", moved, p) / np.sqrt(strength + 1e-6)
        best = alike.argmax(axis=1)
        laid.place[:, first], laid.place[:, first + 1] = stretch[best], shift[best]
    return laid


def _fine_profile(means: np.ndarray, reach: int = 8) -> np.ndarray:
    """Less the mean of the nearest: float32 (m, s)."""
    import numpy as np

    padded = np.pad(means, ((0, 0), (reach, reach)), "edge")
    near = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=1)
    return means - near.mean(axis=2)


def _reduced(squares: np.ndarray, side: int) -> np.ndarray:
    import numpy as np

    part = squares.shape[1] // side
    shape = (len(squares), side, part, side, part)
    return squares.reshape(shape).mean(axis=(2, 4), dtype=np.float32)


def _middles(side: int) -> np.ndarray:
    import numpy as np

    return (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5


def _along(
    side: int, stretch: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Between which pixels the others come to lie, how far along, and if inside: (m, s)."""
    import numpy as np

    at = (stretch[:, None] * _middles(side) + shift[:, None] + 0.5) * side - 0.5
    inside = (at > -0.01) & (at < side - 0.99)
    at = at.clip(0, side - 1.001)
    low = at.astype(np.int64)
    return low, (at - low).astype(np.float32), inside


def _over(squares: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squares as they are laid over others, and which pixels they have: bool (m, s, s)."""
    import numpy as np

    low, part, here = _along(squares.shape[1], place[:, 2], place[:, 3])
    low, part = low[:, :, None], part[:, :, None]
    rows = np.take_along_axis(squares, low, 1)
    rows = rows + part * (np.take_along_axis(squares, low + 1, 1) - rows)
    low, part, there = _along(squares.shape[1], place[:, 0], place[:, 1])
    low, part = low[:, None], part[:, None]
    laid = np.take_along_axis(rows, low, 2)
    laid += part * (np.take_along_axis(rows, low + 1, 2) - laid)
    return laid, here[:, :, None] & there[:, None]


def _lit(
    a: np.ndarray, over: np.ndarray, light: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both in the same light and range: the white of one may be light grey in the other."""
    import numpy as np

    factor, constant = light[:, 0, None, None], light[:, 1, None, None]
    low, high = np.maximum(0, constant), np.minimum(255, 255 * factor + constant)
    return a.clip(low, high), (factor * over + constant).clip(low, high)


# What differs


def _in_detail(a: np.ndarray, b: np.ndarray, laid: Laid, side: int) -> np.ndarray:
    """How much fine detail differs in the worst field, and overall: float32 (m, 2)."""
    import numpy as np

    x = _reduced(a, side)
    over, inside = _over(_reduced(b, side), laid.place)
    x, y = (_fine(one, inside) for one in _lit(x, over, laid.light))
    fields = min(FIELDS, side // 8)
    share = _fields(inside, fields)
    shown = share > SHOWN
    share = np.where(shown, share, 1)
    apart = shown * _fields((x - y) ** 2, fields) / share
    strength = shown * _fields(x * x + y * y, fields) / share / 2
    worst = (apart / (strength + NOISE**2)).max(axis=1)
    least = (NOISE / 2) ** 2 * fields**2
    return np.column_stack([worst, apart.sum(axis=1) / (strength.sum(axis=1) + least)])


def _in_colour(a: np.ndarray, b: np.ndarray, laid: Laid) -> np.ndarray:
    """The greatest difference of the mean colour of fields, in levels: float32 (m,).

    Of RGB uint8 (m, SMALLEST, SMALLEST, 3), in the same light.
    """
    import numpy as np

    worst = np.zeros(len(a), np.float32)
    for channel in range(3):
        over, inside = _over(b[..., channel].astype(np.float32), laid.place)
        x, y = _lit(a[..., channel].astype(np.float32), over, laid.light)
        share = _fields(inside, COLOUR_FIELDS)
        apart = np.abs(_fields((x - y) * inside, COLOUR_FIELDS)) * (share > SHOWN)
        worst = np.maximum(worst, (apart / np.maximum(share, SHOWN)).max(axis=1))
    return worst


def _fields(pixels: np.ndarray, fields: int) -> np.ndarray:
    """The means of fields: float32 (m, fields²)."""
    import numpy as np

    count, side, _ = pixels.shape
    shape = (count, fields, side // fields, fields, side // fields)
    means = pixels.reshape(shape).mean(axis=(2, 4), dtype=np.float32)
    return means.reshape(count, -1)


def _fine(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pixels less the mean around each, of those inside."""
    import numpy as np

    reach = max(2, pixels.shape[1] // 16)
    means = _sums(pixels * inside, reach) / np.maximum(_sums(inside, reach), 1)
    return (pixels - means) * inside


def _sums(pixels: np.ndarray, reach: int) -> np.ndarray:
    """The sum of the pixels around each, up to `reach` away."""
    import numpy as np

    side = pixels.shape[1]
    for axis in (1, 2):
        edges = [(0, 0)] * 3
        edges[axis] = (reach + 1, reach)
        sums = np.pad(pixels, edges).cumsum(axis=axis, dtype=np.float32)
        ends = sums.take(range(2 * reach + 1, 2 * reach + 1 + side), axis)
        pixels = ends - sums.take(range(side), axis)
    return pixels
