"""What turns pixels into vectors.

An encoder takes a batch of RGB squares, decoded and fitted by `images.py`, and gives
one vector for each. `hog` needs numpy only; every classification network of
torchvision needs torch. Neither is imported before an encoder is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import EncoderError
from ..images import Input
from .spec import EncoderSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "DEFAULT_MODEL",
    "Encoder",
    "EncoderSpec",
    "ModelInfo",
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

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (n, size, size, 3) → float32 (n, dimensions), not normalised."""


@dataclass(frozen=True)
class ModelInfo:
    """One line of `datasette image-similarity models`."""

    name: str
    dimensions: int | None  # None for a network newer than this package
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
    device: str = "auto",
    precision: str = "auto",
) -> Encoder:
    """An encoder, ready to use; its weights are downloaded on first use.

    `model`: "hog" or the name of a classification network of torchvision.
    `weights`: a name that torchvision knows, or the path of a .pth, .pt, .bin or
    .safetensors file (one with another ending is recognised by the folder in front of
    it). None: IMAGENET1K_V1 where the model has it, else its default.
    `pooling`: "avg" or "max" over the last feature map; None is "avg", or the vector
    in front of the classifier for networks without a feature map.
    `fit`: how pictures become squares: "squash", "crop" or "pad".
    `device`: "auto", "cpu", "cuda" or "mps".
    `precision`: what it computes in: "float32", "bfloat16", "int8" (which begins after
    some pictures), or "auto" for what is fast and harmless on the device.

    Raises EncoderError for anything that cannot be had.
    """
    if model == "hog":
        from .hog import HogEncoder

        return HogEncoder(
            weights=weights, pooling=pooling, fit=fit, device=device, precision=precision
        )
    from . import torchvision

    plan = torchvision.plan(model, weights=weights, pooling=pooling, fit=fit)
    return torchvision.load(plan, device=device, precision=precision)


def encoder_spec(
    model: str = DEFAULT_MODEL,
    *,
    weights: str | Path | None = None,
    pooling: str | None = None,
    fit: str = "squash",
) -> EncoderSpec:
    """The spec of what `load_encoder` would give for the same arguments.

    Cheaper than loading: no tensor is read. The weights are still hashed in full, and
    downloaded where they are missing, because their hash is part of the spec.
    Raises EncoderError as `load_encoder` does.
    """
    if model == "hog":
        return load_encoder(model, weights=weights, pooling=pooling, fit=fit).spec
    from . import torchvision

    return torchvision.spec(
        torchvision.plan(model, weights=weights, pooling=pooling, fit=fit)
    )


def restore_encoder(
    spec: EncoderSpec,
    *,
    weights_file: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    download: bool = True,
) -> Encoder:
    """The encoder that a spec describes, to embed one more picture with it.

    `weights_file`: where a file with the spec's SHA-256 is believed to lie. It must
    come from the user or their configuration, never from a database; its hash is
    checked before anything in it is read. Without it, weights that torchvision knows
    by name are taken from torch's own cache, or fetched if `download`. The precision
    need not be the one that the spec's vectors were made in.

    Raises EncoderError when the very same encoder cannot be had here.
    """
    if spec.model == "hog":
        encoder = load_encoder(
            "hog", fit=spec.input.fit, device=device, precision=precision
        )
        require_same(encoder.spec, spec)
        return encoder
    from . import torchvision

    plan = torchvision.plan_again(spec, weights_file=weights_file)
    require_same(torchvision.spec_with(plan, spec.weights_sha256), spec)
    return torchvision.load(plan, device=device, precision=precision, download=download)


def require_same(ours: EncoderSpec, wanted: EncoderSpec) -> None:
    """Raise EncoderError unless both specs have the same fingerprint."""
    if ours.fingerprint == wanted.fingerprint:
        return
    names = ("model", "weights_sha256", "pooling", "input", "mean", "std", "version")
    name = next(n for n in names if getattr(ours, n) != getattr(wanted, n))
    raise EncoderError(
        f"The vectors were made by another {wanted.model} than the one installed here: "
        f"its {name} was {getattr(wanted, name)}, ours is {getattr(ours, name)}. Use "
        "the version of this package that made them, or embed the pictures again."
    )


def available_models() -> list[ModelInfo]:
    """Every model that can be named here: hog, then torchvision's, by name.

    Only hog where torch or torchvision is not installed. Nothing is downloaded.
    """
    from . import hog

    models = [
        ModelInfo(
            name="hog",
            dimensions=hog.DIMENSIONS,
            weights=(),
            default_weights=None,
            downloaded=True,
            download_bytes=0,
            note="needs no torch and no download; much weaker than any network",
        )
    ]
    from . import torchvision

    try:
        return models + torchvision.models()
    except torchvision.MissingTorch:
        return models
