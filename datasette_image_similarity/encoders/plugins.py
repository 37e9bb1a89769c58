"""Encoders that other packages bring, found by an entry point.

The entry point's name is what `--model` takes; its object is called without arguments and
returns a `PluginEncoder`. Nothing of a package is imported before its encoder is asked for.
What it returns is checked, and whatever goes wrong in it is told as an EncoderError.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import EncoderError
from ..images import Input
from . import ModelInfo
from .families import Choice
from .network import require_known, require_squares
from .spec import SIZES, EncoderSpec

if TYPE_CHECKING:
    import numpy as np

GROUP = "datasette_image_similarity.encoders"
VERSION = 1  # of this module: raise it when a change changes what comes out
NAME = r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.]{0,99}"
MOST_DIMENSIONS = 1 << 20


class PluginEncoder(Protocol):
    """What the callable behind an entry point returns.

    `size` may be left out, for 224. With a method `encode_text(texts: list[str])` that
    gives float32 (n, dimensions), collections can be searched by words.
    """

    name: str  # as people are shown it: "colours 1"
    dimensions: int
    fingerprint: str  # another one whenever other vectors come out
    size: int  # pixels a side of the squares that it sees

    def encode(self, batch: np.ndarray) -> np.ndarray:
        """uint8 (n, size, size, 3), RGB → float32 (n, dimensions)."""


class AdaptedEncoder:
    """A plugin's encoder as one of ours."""

    device = "cpu"
    precision = "float32"
    batch_size = 32
    sample = 0

    def __init__(self, model: str, plugin: PluginEncoder, fit: str) -> None:
        """Raises EncoderError when the plugin's encoder is not as it should be."""
        size = getattr(plugin, "size", 224)
        _require(model, "size", size, _is_whole(size) and size in SIZES)
        dimensions = getattr(plugin, "dimensions", None)
        right = _is_whole(dimensions) and 0 < dimensions <= MOST_DIMENSIONS
        _require(model, "dimensions", dimensions, right)
        name = getattr(plugin, "name", None)
        right = isinstance(name, str) and re.fullmatch(r"[^/\\\x00-\x1f]{1,255}", name)
        _require(model, "name", name, right)
        mark = getattr(plugin, "fingerprint", None)
        _require(model, "fingerprint", mark, isinstance(mark, str) and mark)
        _require(model, "encode", None, callable(getattr(plugin, "encode", None)))
        self.dimensions: int = dimensions
        # The same margin as torchvision's 256 around 224.
        resize = min(size * 8 // 7, SIZES[-1])
        self.input = Input(size=size, resize=resize, fit=fit)
        self.spec = EncoderSpec(
            model=model,
            weights=name,
            weights_sha256=hashlib.sha256(mark.encode()).hexdigest(),
            pooling=None,
            input=self.input,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            version=VERSION,
            text=callable(getattr(plugin, "encode_text", None)),
        )
        self._plugin = plugin
        self._lock = Lock()  # several threads of ours may have pictures at once

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (n, size, size, 3), n may be 0 → float32 (n, dimensions).

        Raises EncoderError when the plugin fails or gives something else.
        """
        require_squares(pixels, self.input.size)
        return self._checked(self._plugin.encode, pixels)

    def _checked(self, encode: Callable, batch: Any) -> np.ndarray:
        """float32 (n, dimensions) of a batch of n. Raises EncoderError."""
        import numpy as np

        wanted = (len(batch), self.dimensions)
        if not len(batch):
            return np.empty(wanted, np.float32)
        try:
            with self._lock:
                vectors = encode(batch)
        except Exception as error:  # anything, in somebody else's code
            raise _failed(self.spec.model, error) from error
        if not isinstance(vectors, np.ndarray):
            found = type(vectors).__name__
        elif vectors.dtype == np.float32 and vectors.shape == wanted:
            return vectors
        else:
            found = f"{vectors.dtype} {vectors.shape}"
        raise EncoderError(
            f"The encoder {self.spec.model} gave {found} where float32 {wanted} was "
            "expected: tell those who made it."
        )


class AdaptedTextEncoder(AdaptedEncoder):
    """A plugin's encoder that embeds words as well."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """n texts → float32 (n, dimensions). Raises EncoderError as `encode()` does."""
        return self._checked(self._plugin.encode_text, list(texts))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(model: str, what: str, value: object, right: object) -> None:
    if not right:
        raise EncoderError(
            f"The encoder {model} cannot be used: its {what} is missing or not valid "
            f"({value!r:.100}). Tell those who made it."
        )


def _failed(model: str, error: Exception) -> EncoderError:
    words = str(error).strip().partition("\n")[0][:300]
    what = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return EncoderError(f"The encoder {model} failed ({what}): tell those who made it.")


# The family: see families.py


def load(choice: Choice, *, device: str, precision: str) -> AdaptedEncoder:
    """Raises EncoderError for options that an encoder of another package has not."""
    require_known(choice.pooling, choice.fit, choice.size)
    encoder = _load(choice.model, choice.fit)
    for option, right in (
        ("--weights", choice.weights in (None, encoder.spec.weights)),
        ("--pooling", choice.pooling is None),
        ("--size", choice.size in (None, encoder.input.size)),
        ("--device", device == "auto"),
        ("--precision", precision == "auto"),
    ):
        if not right:
            raise EncoderError(
                f"{choice.model} is an encoder of another package, which sees to that "
                f"itself: leave out {option}"
            )
    return encoder


def spec(choice: Choice) -> EncoderSpec:
    return load(choice, device="auto", precision="auto").spec


def restore(
    spec: EncoderSpec,
    *,
    weights_file: Path | None,
    device: str,
    precision: str,
    download: bool,
) -> AdaptedEncoder:
    return _load(spec.model, spec.input.fit)


def models() -> list[ModelInfo]:
    """What installed packages bring. Nothing of them is imported."""
    return [
        ModelInfo(name, None, (), None, True, None, f"from {_package(entry)}")
        for name, entry in sorted(_found().items())
    ]


def names() -> set[str]:
    """What `--model` takes besides our own."""
    return set(_found())


def _found() -> dict[str, EntryPoint]:
    """Entry points by name; ours and torchvision's networks cannot be replaced."""
    from .torchvision import DIMENSIONS

    return {
        entry.name: entry
        for entry in entry_points(group=GROUP)
        if re.fullmatch(NAME, entry.name) and entry.name not in ("hog", *DIMENSIONS)
    }


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def _load(model: str, fit: str) -> AdaptedEncoder:
    """The encoder behind an entry point. Raises EncoderError for whatever goes wrong."""
    try:
        plugin = _found()[model].load()()
        words = callable(getattr(plugin, "encode_text", None))
        return (AdaptedTextEncoder if words else AdaptedEncoder)(model, plugin, fit)
    except EncoderError:
        raise
    except Exception as error:  # anything, in somebody else's code
        raise _failed(model, error) from error
