"""The state of a training run in one file, from which the next run goes on.

One safetensors file holds the tensors and, as JSON in its metadata, all else. It is
written beside its place and then renamed: a run that is killed leaves the one before.
Nothing in it is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CollectionError, EncoderError

if TYPE_CHECKING:
    from torch import Tensor


def require_safetensors() -> None:
    """Raises EncoderError without the library."""
    try:
        import safetensors.torch  # noqa: F401
    except ImportError:
        raise EncoderError(
            "Fine-tuning writes safetensors: pip install "
            "'datasette-image-similarity[safetensors]'"
        ) from None


def save(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Replace the file, whole or not at all. Raises CollectionError."""
    # The library's own save_file() would let nobody else read the file.
    from safetensors.torch import save as serialized

    copies = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
    data = serialized(copies, {"format": "pt", "about": json.dumps(about)})
    part = file.with_name(f"{file.name}.part")
    try:
        with open(part, "wb") as writing:
            writing.write(data)
            writing.flush()
            os.fsync(writing.fileno())
        os.replace(part, file)
    except OSError as error:
        raise CollectionError(f"{file} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def load(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save()` wrote; None where there is no such file. Raises CollectionError."""
    from safetensors import safe_open

    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["about"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # the library, JSON and None each raise their own
        raise damaged(file) from error
    if not isinstance(about, dict):
        raise damaged(file)
    return tensors, about


def damaged(file: Path) -> CollectionError:
    return CollectionError(
        f"The checkpoint {file} is damaged: --restart trains from the beginning"
    )
