"""What is learned of a collection and applied to the vectors that a network gives: PCA,
learned heads, one after the other.

Every step is an affine map, so one form serves them all. It is stored with the
collection, and a picture or words that come later go through it as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EncoderError
from ..images import Input

if TYPE_CHECKING:
    from . import Encoder, EncoderSpec

KINDS = ("pca", "whitening", "head")
MOST_NUMBERS = 250_000_000  # in a step: ResNet50's flattened map to some 2,400
ABOUT_BYTES = 1_000_000

Row = tuple[str, int, int, int, str, bytes, bytes]


@dataclass(frozen=True)
class Step:
    """y = (x − mean) · components, for x as it is stored.

    `mean` float32 (inputs,), `components` float32 (inputs, outputs). With `unit`, x is
    L2-normalised first, as vectors for the metric "cosine" are stored. `about` tells where
    it comes from, in what JSON can hold; its "words" are what people are shown.
    """

    kind: str  # one of KINDS
    mean: np.ndarray
    components: np.ndarray
    unit: bool
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        return self.components.shape[0]

    @property
    def outputs(self) -> int:
        return self.components.shape[1]

    def __str__(self) -> str:
        return str(self.about.get("words") or f"{self.kind} to {self.outputs}")

    def apply(self, vectors: np.ndarray, centred: bool = True) -> np.ndarray:
        """float32 (n, inputs) → float32 (n, outputs)."""
        if self.unit:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.where(lengths > 0, lengths, 1)
        # (x − mean) · c, without a second copy of all x.
        moved = vectors @ self.components
        return moved - self.mean @ self.components if centred else moved


@dataclass(frozen=True)
class Transform:
    """Steps, one after the other: what comes out of one goes into the next."""

    steps: tuple[Step, ...]

    @property
    def dimensions(self) -> int:
        return self.steps[-1].outputs

    def __str__(self) -> str:
        return ", ".join(map(str, self.steps))

    def __call__(self, vectors: np.ndarray, *, centred: bool = True) -> np.ndarray:
        """float32 (n, inputs) → float32 (n, dimensions), not normalised.

        `centred` false leaves the means in: they are means of pictures, which embeddings
        of words are not near.
        """
        for step in self.steps:
            vectors = step.apply(vectors, centred)
        return vectors

    def then(self, step: Step) -> Transform:
        """This, and a step after it."""
        return Transform((*self.steps, step))

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hex, of all that decides what comes out."""
        digest = hashlib.sha256()
        for kind, unit, inputs, outputs, _, mean, components in self.rows():
            digest.update(json.dumps([kind, unit, inputs, outputs]).encode())
            digest.update(mean)
            digest.update(components)
        return digest.hexdigest()

    def rows(self) -> list[Row]:
        """As `database.put_transform()` takes them."""
        return [
            (
                step.kind,
                int(step.unit),
                step.inputs,
                step.outputs,
                json.dumps(dict(step.about), ensure_ascii=False),
                np.ascontiguousarray(step.mean, "<f4").tobytes(),
                np.ascontiguousarray(step.components, "<f4").tobytes(),
            )
            for step in self.steps
        ]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[Any]], spec: EncoderSpec) -> Transform:
        """The transform in rows of a database, which may come from anyone.

        Raises EncoderError unless they are what the spec says that its vectors went
        through.
        """
        steps = tuple(_step(row) for row in rows)
        fit = all(a.outputs == b.inputs for a, b in pairwise(steps))
        transform = cls(steps)
        if not steps or not fit or transform.sha256 != spec.transform:
            raise _damaged()
        return transform


def _step(row: Sequence[Any]) -> Step:
    """A row as a step. Raises EncoderError."""
    kind, unit, inputs, outputs, about, mean, components = row
    sizes = (inputs, outputs)
    if (
        kind not in KINDS
        or unit not in (0, 1)
        or not all(isinstance(size, int) and 0 < size < 2**20 for size in sizes)
        or inputs * outputs > MOST_NUMBERS
        or not (isinstance(mean, bytes) and len(mean) == 4 * inputs)
        or not (isinstance(components, bytes) and len(components) == 4 * inputs * outputs)
        or not (isinstance(about, str) and len(about) <= ABOUT_BYTES)
    ):
        raise _damaged()
    try:
        told = json.loads(about)
    except (ValueError, RecursionError):
        raise _damaged() from None
    arrays = np.frombuffer(mean, "<f4"), np.frombuffer(components, "<f4")
    if not isinstance(told, dict) or not all(np.isfinite(one).all() for one in arrays):
        raise _damaged()
    return Step(kind, arrays[0], arrays[1].reshape(inputs, outputs), bool(unit), told)


def _damaged() -> EncoderError:
    return EncoderError(
        "What was learned of this collection is missing in the database, or damaged: its "
        "vectors can be searched, but no new picture can be compared with them. Make the "
        "collection again"
    )


class TransformedEncoder:
    """An encoder whose vectors go through a transform."""

    def __init__(self, encoder: Encoder, transform: Transform) -> None:
        """Raises EncoderError when the transform takes vectors of another length."""
        if transform.steps[0].inputs != encoder.dimensions:
            raise _damaged()
        self.backbone = encoder
        self.transform = transform
        self.spec = transformed_spec(encoder.spec, transform)
        self.dimensions = transform.dimensions
        self.input: Input = encoder.input
        self.device = encoder.device

    @property
    def precision(self) -> str:
        return self.backbone.precision

    @property
    def batch_size(self) -> int:
        return self.backbone.batch_size

    @property
    def sample(self) -> int:
        return self.backbone.sample

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (n, size, size, 3) → float32 (n, dimensions), not normalised."""
        return self.transform(self.backbone.encode(pixels))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """n texts → float32 (n, dimensions), not normalised; for a spec with `text` only.

        Means stay in. They are means of pictures, and words lie apart from all pictures
        (W. Liang et al., "Mind the Gap", NeurIPS 2022): to take them off would add to
        every score how far that picture is from the usual one, which has nothing to do
        with the words. With the mean left in, (x − m)·C Cᵀ·w is x·C Cᵀ·w less a number
        that is the same for all pictures x: words w order pictures as before, but for
        what C leaves out and, with the metric "cosine", for the new lengths of x.
        """
        return self.transform(self.backbone.encode_text(texts), centred=False)


def transformed_spec(spec: EncoderSpec, transform: Transform) -> EncoderSpec:
    """The spec of an encoder whose vectors go through a transform."""
    return replace(spec, transform=transform.sha256, transformed=str(transform)[:500])
