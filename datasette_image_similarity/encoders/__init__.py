"""What turns pixels into vectors.

An encoder takes a batch of RGB squares, decoded and fitted by `images.py`, and gives
one vector for each. `hog` needs numpy only; every classification network of
torchvision needs torch, `timm:NAME` timm, `open_clip:NAME/WEIGHTS`, which reads words as
well, open_clip, and other packages can bring encoders of their own: see `plugins.py`.
None is imported before an encoder is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import EncoderError
from ..images import Input
from .families import Choice, families, family_of
from .sparing import Sparing
from .spec import EncoderSpec

if TYPE_CHECKING:
    import numpy as np

    from .transform import Transform

__all__ = [
    "DEFAULT_MODEL",
    "Encoder",
    "EncoderSpec",
    "ModelInfo",
    "TextEncoder",
    "available_models",
    "encoder_spec",
    "load_encoder",
    "restore_encoder",
]

DEFAULT_MODEL = "resnet50"


class Encoder(Protocol):
    """Something that turns pixels into vectors."""

    spec: EncoderSpec
    dimensions: int
    input: Input  # what the squares must look like
    device: str  # "cpu", "cuda", "mps"
    precision: str  # "float32", "bfloat16" …: what it computes in just now
    batch_size: int  # pictures a call that keep the device busy
    sample: int  # its first pictures, so many, should be typical ones; mostly 0

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (n, size, size, 3) → float32 (n, dimensions), not normalised."""


class TextEncoder(Encoder, Protocol):
    """An encoder that puts words where it puts pictures of what they say."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """n texts → float32 (n, dimensions), not normalised."""


@dataclass(frozen=True)
class ModelInfo:
    """One line of `datasette image-similarity models`."""

    name: str
    dimensions: int | None  # None where that is known only once it is loaded
    weights: tuple[str, ...]  # names that `weights=` takes
    default_weights: str | None
    downloaded: bool  # the default weights are already on this machine
    download_bytes: int | None  # size of the default weights, to about 1 kB
    note: str


def load_encoder(
    model: str = DEFAULT_MODEL,
    *,
    weights: str | Path | None = None,
    pooling: str | None = None,
    fit: str = "squash",
    size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Encoder:
    """An encoder, ready to use; its weights are downloaded on first use.

    `model`: "hog", the name of a classification network of torchvision, "timm:NAME",
    "open_clip:NAME/WEIGHTS", "open_clip", or the name of an encoder of another package.
    `weights`: a name that torchvision knows, or the path of a .pth, .pt, .bin or
    .safetensors file (one with another ending is recognised by the folder in front of
    it); for "open_clip" the folder that it saved. None: IMAGENET1K_V1 where the model
    has it, else its default.
    `pooling`: "avg", "max", "gem" or "flatten" over the last feature map: see
    `running.pooled()`. None is "avg" for torchvision's networks, and the vector that the
    network itself gives for those without a feature map, and for all of timm's.
    `fit`: how pictures become squares: "squash", "crop" or "pad".
    `size`: the side of the square, in pixels; None: what the weights were trained with.
    `device`: "auto", "cpu", "cuda" or "mps".
    `precision`: what it computes in: "float32", "bfloat16", "int8" (which begins after
    some pictures), or "auto" for what is fast and harmless on the device.

    Raises EncoderError for anything that cannot be had.
    """
    choice = Choice(model, weights, pooling, fit, size)
    return Sparing(family_of(model).load(choice, device=device, precision=precision))


def encoder_spec(
    model: str = DEFAULT_MODEL,
    *,
    weights: str | Path | None = None,
    pooling: str | None = None,
    fit: str = "squash",
    size: int | None = None,
) -> EncoderSpec:
    """The spec of what `load_encoder` would give for the same arguments.

    Cheaper than loading: no tensor is read. The weights are still hashed in full, and
    downloaded where they are missing, because their hash is part of the spec.
    Raises EncoderError as `load_encoder` does.
    """
    return family_of(model).spec(Choice(model, weights, pooling, fit, size))


def restore_encoder(
    spec: EncoderSpec,
    *,
    transform: Transform | None = None,
    weights_file: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    download: bool = True,
) -> Encoder:
    """The encoder that a spec describes, to embed one more picture with it.

    `transform` is what the spec says that vectors went through: see
    `learning.stored.stored_transform()`.

    `weights_file`: where a file with the spec's SHA-256 is believed to lie. It must
    come from the user or their configuration, never from a database; its hash is
    checked before anything in it is read. Without it, weights that are published under
    their name are taken from the library's own cache, or fetched if `download`. The
    precision need not be the one that the spec's vectors were made in.

    Raises EncoderError when the very same encoder cannot be had here.
    """
    restored = family_of(spec.model).restore(
        spec.backbone,
        weights_file=weights_file,
        device=device,
        precision=precision,
        download=download,
    )
    backbone = Sparing(restored)
    if transform is None:
        require_same(backbone.spec, spec)
        return backbone
    from .transform import TransformedEncoder

    encoder = TransformedEncoder(backbone, transform)
    require_same(encoder.spec, spec)
    return encoder


def require_same(ours: EncoderSpec, wanted: EncoderSpec) -> None:
    """Raise EncoderError unless both specs have the same fingerprint."""
    if ours.fingerprint == wanted.fingerprint:
        return
    names = ("model", "weights_sha256", "config_sha256", "pooling", "input", "mean", "std")
    names = (*names, "version", "text", "transform")
    name = next(n for n in names if getattr(ours, n) != getattr(wanted, n))
    raise EncoderError(
        f"The vectors were made by another {wanted.model} than the one installed here: "
        f"its {name} was {getattr(wanted, name)}, ours is {getattr(ours, name)}. Use "
        "the version of this package that made them, or embed the pictures again."
    )


def available_models(search: str = "") -> list[ModelInfo]:
    """Every model that can be named here and has `search` in its name.

    hog, torchvision's and open_clip's, as far as these are installed, and other
    packages'. timm's, which are many, where `search` begins with "timm:", and
    EncoderError is raised where timm is not installed. Nothing is downloaded.
    """
    listed = (model for family in families(search) for model in family.models())
    return [model for model in listed if search in model.name]
