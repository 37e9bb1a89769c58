"""An encoder that does with the memory there is, and says in words why it cannot go on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ..errors import EncoderError, ImageSimilarityError
from .network import require_squares

if TYPE_CHECKING:
    import numpy as np

    from . import Encoder

# What libraries call it, in errors that are no MemoryError: CUDA, MPS, torch's allocator on
# CPUs, cuBLAS and cuDNN.
SAID = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")


class Sparing:
    """An encoder. Where memory runs out, it takes half as many pictures at once from then
    on; all else is the encoder's own."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._most: int | None = None  # pictures at once, once memory has run out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_encoder"], name)

    @property
    def precision(self) -> str:
        """The encoder's, and how many pictures it takes at once where these are fewer."""
        found = self._encoder.precision
        if self._most is None:
            return found
        return f"{found} ({self._most} at once: memory does not suffice for more)"

    @property
    def batch_size(self) -> int:
        return min(self._encoder.batch_size, self._most or self._encoder.batch_size)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """As the encoder does. Raises EncoderError for whatever goes wrong; ValueError for
        pixels of another kind, which is a caller's mistake."""
        import numpy as np

        require_squares(pixels, self.input.size)
        count = len(pixels)
        most = self._most or count
        if count > most:
            blocks = range(0, count, most)
            return np.concatenate([self.encode(pixels[i : i + most]) for i in blocks])
        try:
            return self._encoder.encode(pixels)
        except ImageSimilarityError as error:
            if not _is_memory(error.__cause__):
                raise
        except Exception as error:
            if not _is_memory(error):
                raise self._failed(error) from error
        # Out of the `except`: the traceback would keep what could not be used.
        if count == 1:
            raise EncoderError(
                f"The memory of {self.device} does not suffice for the encoder "
                f"{self.spec.model} and a single picture. End other programs that use it, "
                "or choose --device cpu, a smaller --size or another --model"
            )
        self._most = min(count // 2, self._most or count)
        _free()
        return self.encode(pixels)

    def _failed(self, error: Exception) -> EncoderError:
        words = str(error).strip().partition("\n")[0][:300] or "no reason given"
        return EncoderError(
            f"The encoder {self.spec.model} failed on {self.device} "
            f"({type(error).__name__}: {words}). What was stored before stays; the same "
            "command goes on"
        )


def _is_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory has run out."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(s in str(error).lower() for s in SAID))
    )


def _free() -> None:
    """Give back what torch keeps of a GPU's memory for later, in pieces too small."""
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()
