"""Published weights on huggingface.co: the copy that is here, or a download.

Only .safetensors files. The hub's own cache calls a large file by its SHA-256, which is
what the file then must have; the one of the first copy that was used is noted as well
(`trust.py`), and all others must have the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .. import trust
from ..errors import EncoderError
from .weights import SUFFIXES, WeightsFile

INSTALL = "huggingface_hub is missing: pip install huggingface_hub"


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


def safe_name(filename: str | None) -> str:
    """The file to ask for where a repository is said to have weights in this one: never
    a pickle."""
    if filename is None or filename == "pytorch_model.bin":
        return "model.safetensors"
    stem = filename.removesuffix(".safetensors")
    for pickled in SUFFIXES:
        stem = stem.removesuffix(pickled)
    return stem.replace("open_clip_pytorch_model", "open_clip_model") + ".safetensors"


def on_disk(hub: HubFile) -> Path | None:
    """Where the hub's own cache keeps the file, or None."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
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
    path = path or _download(hub)
    blob = path.resolve().name
    called = blob if re.fullmatch("[0-9a-f]{64}", blob) else ""
    wanted = sha256 or trust.published_sha256(hub.url) or called
    if called not in ("", wanted):
        raise EncoderError(
            f"What is published as {hub.name} now is another file than before: its SHA-256 "
            f"was {wanted} and is {called}. Name the file that the pictures were embedded "
            "with, or embed them again with --weights FILE."
        )
    return WeightsFile(path, hub.name, wanted, hub.url)


def _download(hub: HubFile) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise EncoderError(f"The weights {hub.name} need a library: {INSTALL}") from error
    try:
        return Path(hf_hub_download(hub.repository, hub.filename))
    except Exception as error:  # the library raises many kinds, of three other libraries
        raise EncoderError(
            f"The weights {hub.name} could not be downloaded from {hub.url}: "
            f"{_reason(error)}. Where there is another way to get that file, name it with "
            "--weights FILE; or use --model hog, which needs no download."
        ) from error


def _reason(error: Exception) -> str:
    """Why a download failed, in words."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "it may be fetched only by those who agreed to its terms and are logged in"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "the server could not be reached (is this machine online?)"
    if isinstance(error, errors.EntryNotFoundError):
        return "the repository has no such file, and no other kind is read"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository"
    return str(error).strip().partition("\n")[0] or type(error).__name__
