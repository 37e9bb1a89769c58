"""Where encoders come from: for the name of a model, the module that has it.

A family is a module, or any object, with the four functions of `Family`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from . import Encoder, ModelInfo
    from .spec import EncoderSpec


@dataclass(frozen=True)
class Choice:
    """What is asked of an encoder; None means the family's default.

    See `load_encoder()` for what the fields take.
    """

    model: str
    weights: str | Path | None = None
    pooling: str | None = None
    fit: str = "squash"
    size: int | None = None


class Family(Protocol):
    """Encoders that are had in the same way. Each function raises EncoderError."""

    def load(self, choice: Choice, *, device: str, precision: str) -> Encoder:
        """The encoder, with its weights, which may be downloaded."""

    def spec(self, choice: Choice) -> EncoderSpec:
        """The spec of what `load()` would give, without reading a tensor."""

    def restore(
        self,
        spec: EncoderSpec,
        *,
        weights_file: Path | None,
        device: str,
        precision: str,
        download: bool,
    ) -> Encoder:
        """The encoder that a spec without a transform describes, out of a database that
        may come from anyone: see `restore_encoder()`."""

    def models(self) -> list[ModelInfo]:
        """What can be named here. Nothing is downloaded."""


def family_of(model: str) -> Family:
    """The family that has a model. A name that nobody knows is left to torchvision's, which
    says so."""
    if model == "hog":
        from . import hog

        return hog
    if model.startswith("timm:"):
        from . import timm

        return timm
    if model.partition(":")[0] == "open_clip":
        from . import open_clip

        return open_clip
    from . import plugins, torchvision

    if model in plugins.names():
        return plugins
    return torchvision


def families(search: str = "") -> list[Family]:
    """The families that list what they have; timm, which has more than a thousand
    networks, only where `search` begins with its prefix."""
    from . import hog, open_clip, plugins, timm, torchvision

    listed = [hog, torchvision, open_clip, plugins]
    return [timm] if search.startswith(timm.PREFIX) else listed
