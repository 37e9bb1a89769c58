"""Places on a plane → cells of a grid, neighbours kept; and an order in which places that
follow each other lie close together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def grid_columns(count: int) -> int:
    """How many columns a grid of so many cells has: as square as it can be."""
    return math.isqrt(count - 1) + 1 if count else 0


def grid_cells(places: np.ndarray) -> np.ndarray:
    """A cell for each place: int64 (n,), row × columns + column, each one at most once.

    `places` is (n, 2), y growing upwards; row 0 is at the top, and there are
    `grid_columns(n)` columns. Places are split into halves again and again, along the
    longer side of the cells they get, down to single cells: Hilasaca, Marcílio-Jr, Eler,
    Martins and Paulovich, "A Grid-based Method for Removing Overlaps of Dimensionality
    Reduction Scatterplot Layouts" (2023). Of the 8 nearest neighbours of 2,000 places in
    clusters, 53 % stay so. The exact assignment by least squared distances keeps 56 % and
    takes 7 seconds instead of .01; assigning small squares of cells again, 54 % at best.
    """
    import numpy as np

    columns = grid_columns(len(places))
    if not columns:
        return np.zeros(0, np.int64)
    return _split(places * (1, -1), columns, -(-len(places) // columns))


def _split(places: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """Halves of the places for halves of the cells, down to single ones."""
    import numpy as np

    cells = np.empty(len(places), np.int64)
    todo = [(np.arange(len(places)), 0, 0, columns, rows)]
    while todo:
        points, left, top, width, height = todo.pop()
        if len(points) == 0:
            continue
        if width * height == 1:
            cells[points] = top * columns + left
            continue
        axis = 0 if width >= height else 1
        here = (width if axis == 0 else height) // 2
        first = here * (height if axis == 0 else width)
        second = width * height - first
        # Empty cells are shared out between both halves.
        share = round(len(points) * first / (first + second))
        share = min(max(share, len(points) - second), first)
        points = points[np.argsort(places[points, axis], kind="stable")]
        if axis == 0:
            todo.append((points[:share], left, top, here, height))
            todo.append((points[share:], left + here, top, width - here, height))
        else:
            todo.append((points[:share], left, top, width, here))
            todo.append((points[share:], left, top + here, width, height - here))
    return cells


def hilbert_order(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Where each place comes along a Hilbert curve: int64 (n,), 0 to n − 1.

    `across` and `down` are whole numbers from 0 to 32,767. Places with the same numbers
    keep their order. Hilbert, "Über die stetige Abbildung einer Linie auf ein
    Flächenstück" (1891).
    """
    import numpy as np

    x, y = (np.array(side, np.int64) for side in (across, down))
    along = np.zeros(len(x), np.int64)
    bit = 1 << 14
    while bit:
        right, lower = (x & bit) > 0, (y & bit) > 0
        along += bit * bit * ((3 * right) ^ lower)
        # Each quadrant holds the curve of the next size, turned or turned over.
        turned = ~lower & right
        x[turned], y[turned] = (1 << 15) - 1 - x[turned], (1 << 15) - 1 - y[turned]
        swapped = ~lower
        x[swapped], y[swapped] = y[swapped], x[swapped]
        bit >>= 1
    ranks = np.empty(len(along), np.int64)
    ranks[np.argsort(along, kind="stable")] = np.arange(len(along))
    return ranks
