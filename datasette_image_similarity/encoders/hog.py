"""Vectors without a network: where edges point, and where colours lie.

Histograms of oriented gradients (N. Dalal and B. Triggs, "Histograms of Oriented
Gradients for Human Detection", CVPR 2005) describe shape; a small colour layout and
colour histograms are put beside them. It needs numpy and no download, and sees
outlines and hues, not things: expect far less than from a network.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EncoderError
from ..images import FITS, Input
from . import ModelInfo
from .families import Choice
from .spec import EncoderSpec

if TYPE_CHECKING:
    import numpy as np

VERSION = 1  # of this module: raise it when a change changes what comes out

SIZE = 96  # pixels a side
CELL = 16  # pixels a side of a cell
CELLS = SIZE // CELL  # 6 a side; 5 × 5 overlapping blocks of 2 × 2 cells
ORIENTATIONS = 9  # unsigned: 0…180°
CLIP = 0.3  # the paper has 0.2, for people standing upright
FLAT = 6.0  # block energy below which a block counts as plain: noise is not amplified
# What a block of no particular direction has in each place. Without it all vectors
# share one large direction, and cosines say less.
COMMON = 0.14

QUADRANTS = 2  # colour histograms a side
COLOUR_BINS = (3, 5, 5)  # luma, blue difference, red difference
CHROMA_GAIN = 1.6  # ordinary pictures use the middle of the chroma range

# Lengths of the three parts of a vector, chosen by P@5 on Caltech-101 and clothing.
SHAPE_WEIGHT, LAYOUT_WEIGHT, COLOUR_WEIGHT = 1.0, 0.25, 0.25

SHAPE_DIMENSIONS = (CELLS - 1) ** 2 * 4 * ORIENTATIONS
LAYOUT_DIMENSIONS = CELLS**2 * 3
COLOUR_DIMENSIONS = QUADRANTS**2 * COLOUR_BINS[0] * COLOUR_BINS[1] * COLOUR_BINS[2]
DIMENSIONS = SHAPE_DIMENSIONS + LAYOUT_DIMENSIONS + COLOUR_DIMENSIONS  # 1308


class HogEncoder:
    """The encoder called "hog"."""

    dimensions = DIMENSIONS
    device = "cpu"
    precision = "float32"
    batch_size = 32
    sample = 0

    def __init__(
        self,
        *,
        weights: object = None,
        pooling: str | None = None,
        fit: str = "squash",
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        """Raises EncoderError for options that only networks have."""
        if weights is not None:
            raise EncoderError("hog has no weights: leave out --weights")
        if pooling is not None:
            raise EncoderError("hog has no feature map to pool: leave out --pooling")
        if fit not in FITS:
            raise EncoderError(f"There is no fit {fit!r}: choose from {', '.join(FITS)}.")
        if device not in ("auto", "cpu"):
            raise EncoderError("hog runs on the CPU only: leave out --device")
        if precision not in ("auto", "float32"):
            raise EncoderError("hog computes in float32 only: leave out --precision")
        # The same margin as torchvision's 256 around 224.
        self.input = Input(size=SIZE, resize=SIZE * 8 // 7, fit=fit)
        self.spec = EncoderSpec(
            model="hog",
            weights=None,
            weights_sha256=None,
            pooling=None,
            input=self.input,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            version=VERSION,
        )

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (n, 96, 96, 3) → float32 (n, 1308), all of the same length.

        Picture by picture, so that a vector does not depend on the batch it is in.
        """
        import numpy as np

        if pixels.dtype != np.uint8 or pixels.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(
                f"expected uint8 (n, {SIZE}, {SIZE}, 3), got {pixels.dtype} {pixels.shape}"
            )
        vectors = np.empty((len(pixels), DIMENSIONS), np.float32)
        for vector, picture in zip(vectors, pixels, strict=True):
            vector[:] = _vector(np.ascontiguousarray(picture))
        return vectors


# The family: see families.py


def load(choice: Choice, *, device: str = "auto", precision: str = "auto") -> HogEncoder:
    """Raises EncoderError for options that only networks have."""
    if choice.size not in (None, SIZE):
        raise EncoderError("hog looks at squares of 96 pixels: leave out --size")
    return HogEncoder(
        weights=choice.weights,
        pooling=choice.pooling,
        fit=choice.fit,
        device=device,
        precision=precision,
    )


def spec(choice: Choice) -> EncoderSpec:
    return load(choice).spec


def restore(
    spec: EncoderSpec,
    *,
    weights_file: Path | None,
    device: str,
    precision: str,
    download: bool,
) -> HogEncoder:
    return HogEncoder(fit=spec.input.fit, device=device, precision=precision)


def models() -> list[ModelInfo]:
    note = "needs no torch and no download; much weaker than any network"
    return [ModelInfo("hog", DIMENSIONS, (), None, True, 0, note)]


def _vector(picture: np.ndarray) -> np.ndarray:
    """uint8 (96, 96, 3) → float32 (1308,)."""
    import numpy as np

    luma_chroma = _luma_chroma(picture)
    return np.concatenate(
        [
            SHAPE_WEIGHT * _unit(_shape(picture)),
            LAYOUT_WEIGHT * _unit(_layout(luma_chroma)),
            COLOUR_WEIGHT * _unit(_colours(luma_chroma)),
        ]
    )


def _unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1; zeros stay zeros."""
    import numpy as np

    return vector / max(float(np.sqrt(np.square(vector).sum())), 1e-6)


def _shape(picture: np.ndarray) -> np.ndarray:
    """uint8 (96, 96, 3) → float32 (900,): normalised blocks of cells, side by side."""
    import numpy as np

    cells = _cells(*_gradients(picture))
    blocks = np.concatenate(
        [cells[:-1, :-1], cells[:-1, 1:], cells[1:, :-1], cells[1:, 1:]], axis=-1
    )
    # L2-Hys of the paper: normalise, clip, normalise again.
    energy = np.square(blocks).sum(-1, keepdims=True)
    blocks = np.minimum(blocks / np.sqrt(energy + FLAT**2), CLIP)
    energy = np.square(blocks).sum(-1, keepdims=True)
    return (blocks / np.sqrt(energy + 1e-4) - np.float32(COMMON)).ravel()


def _gradients(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strength and direction (0…ORIENTATIONS, unsigned) of each pixel's gradient.

    uint8 (96, 96, 3) → two of float32 (96, 96). As in the paper: square root of the
    values, simple differences, and of the three colours the one that changes most.
    """
    import numpy as np

    values = np.sqrt(picture.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)
    across, down = np.zeros_like(values), np.zeros_like(values)
    across[:, :, 1:-1] = values[:, :, 2:] - values[:, :, :-2]
    down[:, 1:-1] = values[:, 2:] - values[:, :-2]
    energy = across * across + down * down
    strongest = energy.argmax(axis=0)[None]
    across, down, energy = (
        np.take_along_axis(part, strongest, axis=0)[0] for part in (across, down, energy)
    )
    turns = np.arctan2(down, across) / np.float32(np.pi)  # -1…1
    return np.sqrt(energy), turns % 1 * np.float32(ORIENTATIONS)


def _cells(strength: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Histograms of direction: two of float32 (96, 96) → float32 (6, 6, 9).

    Each pixel is shared out between the two nearest directions and the four nearest
    cells.
    """
    import numpy as np

    centres = np.arange(ORIENTATIONS, dtype=np.float32)[:, None, None] + 0.5
    away = np.abs(direction - centres)
    share = np.maximum(1 - np.minimum(away, ORIENTATIONS - away), 0)
    to_cells = _cell_weights()
    return (to_cells @ (share * strength) @ to_cells.T).transpose(1, 2, 0)


@cache
def _cell_weights() -> np.ndarray:
    """How much of each pixel in a row each cell gets: float32 (6, 96)."""
    import numpy as np

    position = (np.arange(SIZE) + 0.5) / CELL - 0.5
    away = np.abs(position - np.arange(CELLS)[:, None])
    return np.maximum(1 - away, 0).astype(np.float32)


def _luma_chroma(picture: np.ndarray) -> np.ndarray:
    """uint8 RGB → float32 luma (0…1), blue and red difference (-0.5…0.5), as in JPEG."""
    import numpy as np

    matrix = np.array(
        [[0.299, -0.169, 0.5], [0.587, -0.331, -0.419], [0.114, 0.5, -0.081]],
        np.float32,
    )
    return picture.astype(np.float32) / np.float32(255) @ matrix


def _layout(luma_chroma: np.ndarray) -> np.ndarray:
    """The mean colour of each cell: float32 (96, 96, 3) → (108,)."""
    import numpy as np

    means = luma_chroma.reshape(CELLS, CELL, CELLS, CELL, 3).mean(axis=(1, 3))
    means = (means - np.array([0.5, 0, 0])) * np.array([1, 2, 2])  # about zero
    return means.astype(np.float32).ravel()


def _colours(luma_chroma: np.ndarray) -> np.ndarray:
    """Square roots of a colour histogram for each quadrant: (96, 96, 3) → (300,).

    Square roots, so that the dot product is the Bhattacharyya coefficient.
    """
    import numpy as np

    bins = np.array(COLOUR_BINS)
    scaled = luma_chroma * np.array([1, CHROMA_GAIN, CHROMA_GAIN], np.float32)
    scaled += np.array([0, 0.5, 0.5], np.float32)
    place = np.clip((scaled * bins).astype(np.int64), 0, bins - 1)
    colour = np.ravel_multi_index(tuple(place.transpose(2, 0, 1)), COLOUR_BINS)
    half = np.arange(SIZE) * QUADRANTS // SIZE
    quadrant = half[:, None] * QUADRANTS + half
    counts = np.bincount(
        (quadrant * bins.prod() + colour).ravel(), minlength=COLOUR_DIMENSIONS
    )
    return np.sqrt(counts.astype(np.float32))
