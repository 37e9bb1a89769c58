"""Published weights on huggingface.co: the copy that is here, or a download.

Only .safetensors files. The hub does not say what a file's SHA-256 is, so the one of the
first copy is noted (`trust.py`), and all others must have the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import trust
from ..errors import EncoderError
from .weights import WeightsFile


@dataclass(frozen=True)
class HubFile:
    """A file of weights in a repository of the hub, and what the weights are called."""

    repository: str  # "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    filename: str
    name: str

    def __str__(self) -> str:
        return f"{self.repository}/{self.filename}"

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repository}/resolve/main/{self.filename}"


def on_disk(hub: HubFile) -> Path | None:
    """Where the hub's own cache keeps the file, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub.repository, hub.filename)
    return Path(found) if isinstance(found, str) else None


def fetched(hub: HubFile, *, sha256: str = "", download: bool = True) -> WeightsFile:
    """The file on this machine, and the hash it must have: `sha256`, else the one noted.

    Raises EncoderError where it is not here and cannot be fetched, or must not be.
    """
    path = on_disk(hub)
    if path is None and not download:
        raise EncoderError(
            f"The weights {hub.name} are not on this machine yet. Download them as the "
            f"user who runs this: hf download {hub.repository} {hub.filename}"
        )
    expected = sha256 or trust.published_sha256(str(hub)) or ""
    return WeightsFile(path or _download(hub), hub.name, expected, hub.url)


def _download(hub: HubFile) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub.repository, hub.filename))
    except Exception as error:  # the library raises many kinds, of three other libraries
        raise EncoderError(
            f"The weights {hub.name} could not be downloaded from {hub.url}: "
            f"{_reason(error)}. Where there is another way to get that file, name it with "
            "--weights FILE."
        ) from error


def _reason(error: Exception) -> str:
    """Why a download failed, in words."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return "one must log in there and accept its terms"
    if "RemoteEntryNotFoundError" in kinds or "RepositoryNotFoundError" in kinds:
        return "there is no such file (weights are read as .safetensors only)"
    if "LocalEntryNotFoundError" in kinds:
        return "the server cannot be reached (is this machine online?)"
    return str(error).strip().partition("\n")[0] or type(error).__name__
