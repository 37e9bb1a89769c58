"""What networks have in common, whichever library they come from: the device they run on,
the size of the squares they see, and the encoder that is made of them.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import EncoderError
from ..images import FITS, Input
from .precision import choose
from .spec import POOLINGS, SIZES, EncoderSpec

if TYPE_CHECKING:
    import numpy as np
    from torch.nn import Module
    from torch.overrides import TorchFunctionMode

    from .running import Runner


class NetworkEncoder:
    """A network that gives one vector for each picture."""

    def __init__(
        self, spec: EncoderSpec, dimensions: int, device: str, runner: Runner
    ) -> None:
        self.spec = spec
        self.dimensions = dimensions
        self.input = spec.input
        self.device = device
        self.batch_size = runner.batch_size
        self._runner = runner

    @property
    def precision(self) -> str:
        return self._runner.precision

    @property
    def sample(self) -> int:
        return self._runner.sample

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (n, size, size, 3), n may be 0 → float32 (n, dimensions).

        Vectors are as the network gives them: not normalised, and perhaps not finite
        if the weights are bad.
        """
        import numpy as np

        require_squares(pixels, self.input.size)
        if not len(pixels):
            return np.empty((0, self.dimensions), np.float32)
        # torch takes no other
        return self._runner(np.require(pixels, requirements=["C", "W"]))


def require_squares(pixels: np.ndarray, size: int) -> None:
    """Raise ValueError unless these are uint8 (n, size, size, 3): a caller's mistake."""
    if pixels.dtype != "uint8" or pixels.shape[1:] != (size, size, 3):
        raise ValueError(
            f"expected uint8 (n, {size}, {size}, 3), got {pixels.dtype} {pixels.shape}"
        )


# What is asked for


def require_known(pooling: str | None, fit: str, size: int | None) -> None:
    """Raise EncoderError for a pooling, fit or size that there is not."""
    _require_one_of("fit", fit, FITS)
    if pooling is not None:
        _require_one_of("pooling", pooling, POOLINGS)
    if size is not None and size not in SIZES:
        raise EncoderError(
            f"A square of {size} pixels a side is out of range: --size takes "
            f"{SIZES[0]} to {SIZES[-1]}."
        )


def _require_one_of(what: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise EncoderError(
            f"There is no {what} {value!r}: choose from {', '.join(choices)}."
        )


def at_size(shape: Input, size: int | None) -> Input:
    """The input for squares of `size` pixels: what is cropped stays in proportion.

    Raises EncoderError when the size before cropping would be too large.
    """
    if size in (None, shape.size):
        return shape
    resize = round(shape.resize * size / shape.size)
    if resize not in SIZES and shape.fit == "crop":
        raise EncoderError(
            f"To crop {size} pixels out of a picture it would be scaled to {resize}, and "
            f"{SIZES[-1]} is the most: choose a smaller --size, or another --fit."
        )
    return replace(shape, size=size, resize=min(resize, SIZES[-1]))


def cannot_see(model: str, size: int, usual: int) -> EncoderError:
    """What to say of a network that takes no squares of this size."""
    return EncoderError(
        f"{model} cannot look at squares of {size} pixels: leave out --size for {usual}. "
        "Networks with position embeddings, as vision transformers, see one size only; "
        "all others need some pixels to begin with."
    )


def nothing_to_pool(dimensions: int | None) -> str:
    """What is said of a network without a feature map."""
    return f"no feature map to pool; it gives one vector of {dimensions} numbers per image"


# How it is looked at before it has weights


def parameters_without_memory() -> TorchFunctionMode:
    """A context in which new layers get parameters that are shapes only.

    `torch.device("meta")` would do the same to the numbers that RegNet computes its
    widths with.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class EmptyOnMeta(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if func is torch.empty:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    return EmptyOnMeta()


# Where and how it runs


def device_named(name: str) -> str:
    """The device to run on. Raises EncoderError when it is not there."""
    import torch

    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, available in there.items() if available)
    if not there.get(name):
        usable = ", ".join(device for device, available in there.items() if available)
        raise EncoderError(
            f"The device {name!r} cannot be used with the torch installed here. It has "
            f"{usable}; leave out --device to take the best of them."
        )
    return name


def runner_for(network: Module, spec: EncoderSpec, device: str, precision: str) -> Runner:
    """The network with its weights, put where and how it will run.

    `precision` as `precision.choose()` gives it.
    """
    import torch

    from .running import CpuRunner, CudaRunner, MpsRunner, Pixels2Vectors

    size = spec.input.size
    if precision == "int8":
        from .int8 import Int8Runner

        first = runner_for(deepcopy(network), spec, device, choose("auto", device))
        whole = Pixels2Vectors(network, spec, torch.float32).eval()
        return Int8Runner(whole, first, model=spec.model, size=size)
    if device != "mps":  # there it is slower
        network.to(memory_format=torch.channels_last)
    module = Pixels2Vectors(network, spec, getattr(torch, precision)).to(device)
    runners = {"cpu": CpuRunner, "cuda": CudaRunner, "mps": MpsRunner}
    return runners[device](module.eval(), size=size, precision=precision)
