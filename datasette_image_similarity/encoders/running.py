"""How a network is run, on a CPU or a GPU: pixels in, vectors out.

Imported when a network is loaded, not before: it imports torch.
"""

from __future__ import annotations

import ctypes
import platform
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import Protocol

import numpy as np
import torch

from .spec import EncoderSpec

# Pictures of 224 × 224 that one thread takes at once. For ResNet50 in bfloat16: with 4 it
# needs 32 ms of a core for each, with 8 28 ms, with 16 27 ms and twice the memory.
CHUNK = 8
CHUNK_SIZE = 224
MAX_STREAMS = 8  # each has feature maps of its own: some 50 MB, in float32 100 MB
GPU_CHUNK = 128

GEM_POWER = 3
GEM_LEAST = 1e-6

# Of mallopt(3), in glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


class Runner(Protocol):
    """A network on a device."""

    batch_size: int  # pictures a call that keep the device busy
    precision: str  # "float32", "bfloat16", "float16", "int8"
    sample: int  # as an Encoder's

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (n, size, size, 3), n ≥ 1, C order → float32 (n, dimensions)."""


class Pixels2Vectors(torch.nn.Module):
    """A network between uint8 pixels and pooled float32 vectors."""

    def __init__(self, network: torch.nn.Module, spec: EncoderSpec, dtype: torch.dtype):
        super().__init__()
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)
        self.pooling = spec.pooling
        self.dtype = dtype
        self.network = network
        if dtype != torch.float32:
            _lower(network, dtype)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (n, size, size, 3) → float32 (n, dimensions)."""
        # Channels stay last in memory, where convolutions are fastest.
        batch = pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift
        output = self.network(batch.to(self.dtype)).float()
        return output if self.pooling is None else pooled(output, self.pooling)


class FeatureMaps(torch.nn.Module):
    """The last feature maps of a network of timm's: (n, channels, rows, columns)."""

    def __init__(self, network: torch.nn.Module, channels_last: bool) -> None:
        super().__init__()
        self.network = network
        self.channels_last = channels_last

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        maps = self.network.forward_features(batch)
        return maps.permute(0, 3, 1, 2) if self.channels_last else maps


def pooled(maps: torch.Tensor, pooling: str) -> torch.Tensor:
    """Feature maps (n, channels, rows, columns) as vectors, in the same dtype.

    avg, max: of each channel, (n, channels). gem: its generalized mean (F. Radenović,
    G. Tolias and O. Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation",
    TPAMI 2018) with p = 3, between the two; roots need positive numbers, so that what is
    below GEM_LEAST counts as that, as in the paper: all that is negative, where the
    network does not end in a ReLU. flatten: every number, channel by channel,
    (n, channels · rows · columns).
    """
    if pooling == "avg":
        return maps.mean((2, 3))
    if pooling == "max":
        return maps.amax((2, 3))
    if pooling == "gem":
        return maps.clamp(min=GEM_LEAST).pow(GEM_POWER).mean((2, 3)).pow(1 / GEM_POWER)
    return maps.flatten(1)


def _lower(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Put a network's numbers into a lower precision, but for its batch norms.

    They are few, cost nothing in float32, and rounding them moves every picture.
    """
    for module in network.modules():
        if not isinstance(module, torch.nn.BatchNorm2d):
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            for tensor in own:
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)


def chunk_of(size: int) -> int:
    """How many pictures of size × size pixels one thread takes at once."""
    return max(1, CHUNK * CHUNK_SIZE**2 // size**2)


def streams_and_threads() -> tuple[int, int]:
    """How many streams of pictures to compute side by side, by how many threads each."""
    cores = torch.get_num_threads()
    streams = min(cores, MAX_STREAMS)
    return streams, cores // streams


class CpuRunner:
    """Each core computes pictures of its own.

    All cores on one picture wait for each other after every layer, and burn time
    waiting: beside processes that decode pictures, half of it. Only a single picture is
    computed that way, to have it sooner. May be called from several threads.
    """

    sample = 0

    def __init__(self, module: Pixels2Vectors, *, size: int, precision: str) -> None:
        self.precision = precision
        self._module = module
        self._chunk = chunk_of(size)
        self._streams, self._threads = streams_and_threads()
        self.batch_size = self._chunk * self._streams
        self._pool: ThreadPoolExecutor | None = None
        self._lock = Lock()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if len(pixels) < self._streams or len(pixels) == 1:
            return self._forward(pixels)
        rounds = -(-len(pixels) // self.batch_size)
        chunks = np.array_split(pixels, min(len(pixels), rounds * self._streams))
        return np.concatenate(list(self._started().map(self._forward, chunks)))

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self._module(torch.from_numpy(pixels)).numpy()

    def _started(self) -> ThreadPoolExecutor:
        """The pool, with all its threads running."""
        with self._lock:
            if self._pool is None:
                keep_freed_memory()
                pool = ThreadPoolExecutor(
                    self._streams,
                    thread_name_prefix="image-similarity-encoder",
                    initializer=torch.set_num_threads,
                    initargs=(self._threads,),
                )
                mine = torch.get_num_threads()
                here = Barrier(self._streams)
                list(pool.map(lambda _: here.wait(), range(self._streams)))
                # A thread's own number stays, but new threads would inherit it.
                torch.set_num_threads(mine)
                self._pool = pool
            return self._pool


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next feature map.

    It would give large pieces back to the system, which clears them before they can be
    used again: up to half of the time. Other C libraries do not behave like that.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class MpsRunner:
    """An Apple GPU."""

    sample = 0

    def __init__(self, module: Pixels2Vectors, *, size: int, precision: str) -> None:
        self.precision = precision
        self.batch_size = 4 * chunk_of(size)
        self._module = module

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        chunks = torch.from_numpy(pixels).split(self.batch_size)
        with torch.inference_mode():
            parts = [self._module(chunk.to("mps")) for chunk in chunks]
            return torch.cat(parts).cpu().numpy()


class CudaRunner:
    """An NVIDIA GPU, which copies the next pictures while it computes.

    Written by the book; it was not run on a GPU yet.
    """

    sample = 0

    def __init__(self, module: Pixels2Vectors, *, size: int, precision: str) -> None:
        self.precision = precision
        self._module = module
        self._chunk = max(1, GPU_CHUNK * CHUNK_SIZE**2 // size**2)
        self.batch_size = 4 * self._chunk
        shape = (self._chunk, size, size, 3)
        # Pinned memory can be copied while Python goes on; two, to fill one meanwhile.
        self._pinned = [
            torch.empty(shape, dtype=torch.uint8, pin_memory=True) for _ in range(2)
        ]
        self._copying = torch.cuda.Stream()
        self._lock = Lock()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        chunks = torch.from_numpy(pixels).split(self._chunk)
        copied: list[torch.cuda.Event] = []
        with self._lock, torch.inference_mode():
            parts = []
            for number, chunk in enumerate(chunks):
                if number >= 2:
                    copied[number - 2].synchronize()
                pinned = self._pinned[number % 2][: len(chunk)]
                pinned.copy_(chunk)
                with torch.cuda.stream(self._copying):
                    batch = pinned.to("cuda", non_blocking=True)
                    copied.append(self._copying.record_event())
                computing = torch.cuda.current_stream()
                computing.wait_event(copied[-1])
                batch.record_stream(computing)  # or its memory might go too early
                parts.append(self._module(batch))
            return torch.cat(parts).cpu().numpy()
