"""Files of weights: find or download them, verify them, read them.

A file is never trusted for where it lies: it is hashed in full each time, before
anything is unpickled, and then read by a loader that builds tensors and nothing else.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import socket
import sys
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..errors import EncoderError

if TYPE_CHECKING:
    from torch import Tensor

    from .spec import EncoderSpec

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
TIMEOUT_SECONDS = 30  # without a byte from the server
BLOCK = 1 << 20

# torchvision's file names carry the first digits of the hash only.
FULL_HASHES = {
    "resnet50-0676ba61.pth": (
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a"
    ),
}

# Where training scripts put the network's state_dict, most telling first.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "teacher", "student")

# Names of parameters that changed since torchvision's published files were written:
# DenseNet's "norm.1" (a name cannot hold a dot any more), ViT's "mlp.linear_1".
RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights and what is known about it.

    `sha256` is the hash it must have, or the first digits of it; "" accepts any.
    `url` is None for a file that the user named.
    """

    path: Path
    name: str  # as the spec calls it: "IMAGENET1K_V1", or the file's base name
    sha256: str = ""
    url: str | None = None


def is_file(weights: str | Path) -> bool:
    """Whether `--weights` names a file, and not published weights."""
    if isinstance(weights, Path):
        return True
    separators = [mark for mark in ("/", os.sep, os.altsep) if mark]
    return weights.lower().endswith(SUFFIXES) or any(s in weights for s in separators)


def published(url: str, name: str) -> WeightsFile:
    """Weights of torchvision's: where torch's cache keeps them, and their hash."""
    import torch

    filename = url.rsplit("/", 1)[-1]
    digits = re.search(r"-([0-9a-f]{8,})\.\w+$", filename)
    if digits is None:
        raise EncoderError(
            f"{name}: the hash is missing in the file name {filename}, so a download "
            "could not be checked. Download it yourself and pass it as --weights FILE."
        )
    return WeightsFile(
        path=Path(torch.hub.get_dir(), "checkpoints", filename),
        name=name,
        sha256=FULL_HASHES.get(filename, digits[1]),
        url=url,
    )


def hash_of(spec: EncoderSpec) -> str:
    """The hash that a spec's weights must have. Raises EncoderError where a database has
    left it out: any file would do then."""
    if not spec.weights_sha256:
        raise EncoderError(
            f"The hash of the weights of {spec.model} is missing in what the database "
            "says about its encoder: embed the pictures again."
        )
    return spec.weights_sha256


def file_wanted(spec: EncoderSpec) -> EncoderError:
    """What to say where nobody knows in which file a spec's weights lie."""
    return EncoderError(
        f"The vectors were made by {spec}. Its weights came from a file: say where "
        f"the file with the SHA-256 {spec.weights_sha256} lies."
    )


def must_be(file: WeightsFile, sha256: str, spec: EncoderSpec) -> WeightsFile:
    """Published weights, which must have the hash that vectors were made with.

    Raises EncoderError when it is known already that they have not.
    """
    if not sha256.startswith(file.sha256):
        raise EncoderError(
            f"The vectors were made by {spec}, but with other weights than those "
            "published by that name now: embed the pictures again."
        )
    return replace(file, sha256=sha256)


# Getting hold of a file


def ensure(file: WeightsFile, *, download: bool = True) -> None:
    """Make sure that the file is there, downloading it if it may be.

    Raises EncoderError when it is not there and cannot be fetched.
    """
    if file.path.is_file():
        return
    if file.url is None:
        what = "is a folder" if file.path.is_dir() else "does not exist"
        raise EncoderError(f"The weights file {file.path} {what}.")
    if not download:
        raise EncoderError(
            f"The weights {file.name} are not on this machine yet. Download {file.url} "
            f"and save it as {file.path}."
        )
    _download(file)


def _download(file: WeightsFile) -> None:
    from torch.hub import download_url_to_file

    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(TIMEOUT_SECONDS):
            # Writes to a temporary file beside it, checks the hash, then renames.
            download_url_to_file(
                file.url,
                str(file.path),
                hash_prefix=file.sha256,
                progress=sys.stderr.isatty(),
            )
    except (OSError, http.client.HTTPException, RuntimeError, ValueError) as error:
        raise EncoderError(
            f"The weights {file.name} could not be downloaded from {file.url}: "
            f"{_reason(error)}. Where there is another way to get that file, save it "
            f"as {file.path} and run this again; or use --model hog, which needs no "
            "download."
        ) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch's download sets no time limit of its own: a silent server hangs it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: Exception) -> str:
    """Why a download failed, in words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}".rstrip()
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return "the server's name could not be looked up (is this machine online?)"
    if isinstance(cause, TimeoutError):
        return f"the server sent nothing for {TIMEOUT_SECONDS} seconds"
    if isinstance(cause, RuntimeError) and "hash" in str(cause):
        return f"what arrived is not that file, or only a part of it ({cause})"
    if isinstance(cause, OSError) and cause.strerror:
        place = f" ({cause.filename})" if cause.filename else ""
        return f"{cause.strerror}{place}"
    return str(cause) or type(cause).__name__


# Reading a file


@contextmanager
def verified(file: WeightsFile) -> Iterator[tuple[BinaryIO, str]]:
    """The open file, at its start, and its SHA-256 in hex.

    Hashed and read through one handle, so that what is read is what was hashed.
    Raises EncoderError when it cannot be read or is not the file it should be.
    """
    try:
        handle = open(file.path, "rb")  # noqa: SIM115 closed below
    except OSError as error:
        raise EncoderError(
            f"The weights file {file.path} cannot be read: {error.strerror}."
        ) from error
    with handle:
        digest = hashlib.sha256()
        while block := handle.read(BLOCK):
            digest.update(block)
        handle.seek(0)
        found = digest.hexdigest()
        if not found.startswith(file.sha256):
            raise _not_the_file(file, found)
        yield handle, found


def _not_the_file(file: WeightsFile, found: str) -> EncoderError:
    start = "" if len(file.sha256) == 64 else "start with "
    advice = (
        f"Delete {file.path.resolve()} and run this again to download it anew."
        if file.url
        else "Name the file that the pictures were embedded with, or embed them again."
    )
    return EncoderError(
        f"{file.path} is damaged or not the weights {file.name}: its SHA-256 should "
        f"{start or 'be '}{file.sha256} and is {found}. {advice}"
    )


def sha256(file: WeightsFile) -> str:
    """The file's SHA-256 in hex, checked against what it should be."""
    with verified(file) as (_, found):
        return found


def read(file: WeightsFile) -> tuple[dict[str, Tensor], str]:
    """The tensors in a file, by name, on the CPU; and the file's SHA-256 in hex.

    Raises EncoderError when the file is not a plain file of tensors. Nothing in it is
    executed.
    """
    with verified(file) as (handle, found):
        if file.path.suffix.lower() == ".safetensors":
            content = _read_safetensors(handle, file.path)
        else:
            content = _read_torch(handle, file.path)
    return _unwrap(content, file.path), found


def _read_safetensors(handle: BinaryIO, path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise EncoderError(
            f"{path} needs the safetensors library: pip install safetensors"
        ) from error
    try:
        return load(handle.read())
    except Exception as error:  # the library raises many kinds
        raise EncoderError(
            f"{path} is not a safetensors file, or a damaged one: {error}"
        ) from error


def _read_torch(handle: BinaryIO, path: Path) -> object:
    import torch

    start = handle.read(64).lstrip().lower()
    handle.seek(0)
    if start.startswith((b"<!", b"<html", b"<?xml")):
        raise EncoderError(
            f"{path} is a web page and not weights: download the file itself."
        )
    try:
        return torch.load(handle, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes make the unpickler stumble over
        raise EncoderError(
            f"{path} is not a file of weights that can be read safely: it is damaged, "
            "or it holds more than tensors. Save the network's state_dict() alone, "
            "with torch.save or as .safetensors."
        ) from error


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """The state_dict in what a training script saved."""
    import torch

    for _ in range(3):  # {"model": {"state_dict": …}} happens
        if not isinstance(content, Mapping):
            break
        tensors = {
            key: value
            for key, value in content.items()
            if isinstance(key, str) and isinstance(value, torch.Tensor)
        }
        inner = [content[name] for name in WRAPPERS if name in content]
        inner = [value for value in inner if isinstance(value, Mapping)]
        if inner:
            content = inner[0]
        elif tensors:
            return tensors
        else:
            break
    raise EncoderError(
        f"{path} holds no network's parameters: expected the state_dict() of a network."
    )


# Fitting what was read to a network


def fit_to(
    state: Mapping[str, Tensor], network: Mapping[str, Tensor], *, path: Path, model: str
) -> dict[str, Tensor]:
    """The parameters and buffers of `network`, taken from `state`.

    `network` is the state_dict of the part of the network that is used, and gives
    names, shapes and dtypes. Prefixes that training wrappers add ("module.",
    "backbone.") are taken off, half-precision numbers become float32.

    Raises EncoderError when one is missing, has another shape or is not finite, or
    when the file has parameters inside these modules that the network has not:
    it belongs to another architecture.
    """
    import torch

    state = {_modern(key): value for key, value in state.items()}
    prefix = _prefix(state, network)
    state = {
        key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)
    }
    fitted = {}
    for key, wanted in network.items():
        if key not in state:
            if key.endswith("num_batches_tracked"):
                fitted[key] = torch.zeros(wanted.shape, dtype=wanted.dtype)
                continue
            raise misfit(path, model, f"{key} is missing in the file")
        if state[key].shape != wanted.shape:
            shapes = f"{tuple(state[key].shape)} in the file and {tuple(wanted.shape)}"
            raise misfit(path, model, f"{key} is {shapes} in {model}")
        fitted[key] = _converted(state[key], wanted, f"{path}: {key}")
    used = {key.split(".")[0] for key in network}
    for key in state:
        if key not in network and key.split(".")[0] in used:
            raise misfit(path, model, f"{key} is in the file but not in {model}")
    return fitted


def misfit(path: Path, model: str, what: str) -> EncoderError:
    """What to say of a file that does not belong to a network."""
    return EncoderError(
        f"{path} does not fit {model}: {what}. It may hold another network's weights: "
        "check --model."
    )


def _modern(key: str) -> str:
    for pattern, replacement in RENAMED:
        key = pattern.sub(replacement, key)
    return key


def _prefix(state: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> str:
    """What stands before the network's own names in `state`, often nothing.

    Where several fit equally (MoCo's encoder_q and encoder_k) the first one counts,
    which is the network that was trained and not its moving average.
    """
    first = next(iter(network))
    candidates = [
        key[: -len(first)] for key in state if key == first or key.endswith(f".{first}")
    ]
    return max(
        candidates,
        key=lambda prefix: sum(prefix + key in state for key in network),
        default="",
    )


def _converted(tensor: Tensor, wanted: Tensor, what: str) -> Tensor:
    """The tensor in the dtype that is wanted. Raises EncoderError if that loses sense."""
    import torch

    plain = tensor.layout == torch.strided and not tensor.is_quantized
    if not plain or tensor.is_floating_point() != wanted.is_floating_point():
        raise EncoderError(
            f"{what} holds {tensor.dtype} numbers where {wanted.dtype} is needed: "
            "quantised weights cannot be used."
        )
    tensor = tensor.detach().to(wanted.dtype)
    if not torch.isfinite(tensor).all():
        raise EncoderError(
            f"{what} holds numbers that are not finite: the file is damaged, or its "
            "training failed."
        )
    return tensor
