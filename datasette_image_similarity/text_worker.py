"""The child process behind `text_helper.TextHelper`: embeds words until stdin closes.

Reads messages from stdin and answers each on stdout. {"load": spec, "weights": place}
loads an encoder in place of the one before; {"text": words} is answered with the vector,
float32 bytes. What cannot be done is answered with {"refused": why, "kind": class}. It
opens no database and downloads nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .encoders import EncoderSpec, restore_encoder
from .errors import ImageSimilarityError, TextError
from .image_worker import private_pipes
from .images import receive, send

if TYPE_CHECKING:
    from .encoders import TextEncoder

# Of data, as the system counts it: what torch itself takes, and a file of weights as it is
# read, as tensors and in float32.
LEAST_MEMORY = 3 << 30
TIMES_WEIGHTS = 8


def serve() -> None:
    requests, answers = private_pipes()
    send(answers, {"ready": True}, [])
    encoder: TextEncoder | None = None
    while True:
        try:
            request, _ = receive(requests)
        except EOFError:
            return
        blobs: list[bytes] = []
        header: dict[str, str] = {}
        try:
            if "load" in request:
                encoder = None  # two would need twice the memory
                encoder = load(request["load"], request["weights"])
            elif encoder is not None:
                blobs = [encoder.encode_text([request["text"]])[0].tobytes()]
        except ImageSimilarityError as error:
            header = {"refused": str(error), "kind": type(error).__name__}
        except Exception as error:  # whatever a library stumbles over; others may ask on
            why = f"{type(error).__name__}: {error}"
            header = {"refused": f"The encoder failed ({why})", "kind": "EncoderError"}
        send(answers, header, blobs)


def load(spec: str, weights: str | None) -> TextEncoder:
    """The encoder of a spec, on the CPU. Raises EncoderError, TextError."""
    place = Path(weights) if weights else None
    limit_memory(place)
    wanted = EncoderSpec.from_json(spec)
    if not wanted.text:
        raise TextError(f"{wanted} reads no words")
    return restore_encoder(wanted, weights_file=place, device="cpu", download=False)


def limit_memory(weights: Path | None) -> None:
    """Bound the memory of this process where the system can."""
    if sys.platform != "linux":
        return
    import resource

    files = [weights] if weights is not None and weights.is_file() else []
    if weights is not None and weights.is_dir():
        files = [file for file in weights.iterdir() if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    _, allowed = resource.getrlimit(resource.RLIMIT_DATA)
    # Published weights lie where only the encoder knows: for these the least is not enough.
    wanted = LEAST_MEMORY + TIMES_WEIGHTS * size if files else 4 * LEAST_MEMORY
    if allowed != resource.RLIM_INFINITY:
        wanted = min(wanted, allowed)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, allowed))
