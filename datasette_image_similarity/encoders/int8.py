"""A network in 8-bit integers, by OpenVINO: twice the speed of bfloat16 on a CPU.

Numbers of 8 bits need to know which range they stand for. NNCF finds it by looking at
what the network makes of the first pictures of a run (post-training quantization, the
weights channel by channel), which should be typical. Until there are enough of them,
another runner computes.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import EncoderError
from .running import Pixels2Vectors, Runner, chunk_of, streams_and_threads

if TYPE_CHECKING:
    import openvino

SAMPLE = 256  # pictures to find the ranges with
CHUNK_SHARE = 2  # OpenVINO needs no more than half of torch's chunk to be fast
TELEMETRY = "openvino_telemetry"
INSTALL = "int8 needs OpenVINO and NNCF: pip install 'datasette-image-similarity[int8]'"


class Int8Runner:
    """`first` until SAMPLE pictures have come, then `module` in int8.

    `module` computes in float32. May be called from several threads, one by one.
    """

    def __init__(
        self, module: Pixels2Vectors, first: Runner, *, model: str, size: int
    ) -> None:
        """Raises EncoderError when OpenVINO or NNCF is not installed."""
        if not (find_spec("openvino") and find_spec("nncf")):
            raise EncoderError(INSTALL)
        self.batch_size = first.batch_size
        self._module = module
        self._first: Runner | None = first
        self._model = model
        self._size = size
        self._seen = np.empty((0, size, size, 3), np.uint8)
        self._chunk = max(1, chunk_of(size) // CHUNK_SHARE)
        self._compiled: openvino.CompiledModel | None = None
        self._lock = Lock()

    @property
    def precision(self) -> str:
        """What it computes in just now."""
        if self._first is None:
            return "int8"
        return f"int8 ({self._first.precision} until it has seen {SAMPLE} pictures)"

    @property
    def sample(self) -> int:
        return SAMPLE if self._first else 0

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        with self._lock:
            if self._first is None:
                return self._in_int8(pixels)
            self._seen = np.concatenate([self._seen, pixels])[:SAMPLE]
            vectors = self._first(pixels)
            if len(self._seen) == SAMPLE:
                self._calibrate()
            return vectors

    def _calibrate(self) -> None:
        """Have the network in int8 from here on. Raises EncoderError."""
        try:
            self._compiled = quantized(self._module, self._seen, self._chunk)
        except Exception as error:  # both libraries raise many kinds
            raise EncoderError(
                f"{self._model} cannot be had in int8: {_first_line(error)}. "
                "Leave out --precision."
            ) from error
        self._seen = self._seen[:0]
        self._first = None

    def _in_int8(self, pixels: np.ndarray) -> np.ndarray:
        import openvino

        chunk = self._chunk  # compiled for exactly so many: fill the last one up
        missing = -len(pixels) % chunk
        padded = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)])
        starts = range(0, len(padded), chunk)
        vectors: dict[int, np.ndarray] = {}
        queue = openvino.AsyncInferQueue(self._compiled)
        queue.set_callback(
            lambda done, start: vectors.update(
                {start: done.get_output_tensor(0).data.copy()}
            )
        )
        for start in starts:
            queue.start_async({0: padded[start : start + chunk]}, start)
        queue.wait_all()
        return np.concatenate([vectors[start] for start in starts])[: len(pixels)]


def quantized(
    module: Pixels2Vectors, sample: np.ndarray, chunk: int
) -> openvino.CompiledModel:
    """The network in int8, ready for batches of `chunk` pictures.

    `sample`: uint8 (n, size, size, 3), to find the ranges of numbers with.
    """
    # torch's own MultiheadAttention, and what timm calls alike.
    attends = any("Attention" in type(m).__name__ for m in module.modules())
    with _quiet():
        openvino, nncf = _libraries()
        example = torch.from_numpy(sample[:chunk])
        model = openvino.convert_model(torch.export.export(module, (example,)))
        batches = [sample[i : i + chunk] for i in range(0, len(sample), chunk)]
        model = nncf.quantize(
            model,
            nncf.Dataset([batch for batch in batches if len(batch) == chunk]),
            # Signed numbers where they can be negative, unsigned elsewhere.
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
        )
    streams, threads = streams_and_threads()
    return openvino.Core().compile_model(
        model,
        "CPU",
        {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams * threads},
    )


def _libraries() -> tuple[ModuleType, ModuleType]:
    """OpenVINO and NNCF, kept from reporting to their maker.

    Both send statistics through a third library unless it is missing.
    """
    before = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment] makes its import fail
    try:
        import nncf
        import openvino
    finally:
        del sys.modules[TELEMETRY]
        if before is not None:
            sys.modules[TELEMETRY] = before
    return openvino, nncf


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what both libraries print: progress, notes, warnings for developers."""
    logger = logging.getLogger("nncf")
    level = logger.level
    with (
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
