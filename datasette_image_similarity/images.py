"""Untrusted bytes → upright RGB pixels, thumbnails and facts, under limits.

Pictures come from strangers and image libraries are written in C, so this process
never decodes one: `Decoder` hands the bytes to a child process (image_worker.py)
that has a memory limit, and kills it when the time is up. Whatever happens in
there, the caller gets a `Decoded` or an `ImageError`, and the next picture works.

Importing this module loads neither Pillow nor numpy.
"""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import LifoQueue
from typing import IO, TYPE_CHECKING, NamedTuple

from .errors import ImageError, ImageSimilarityError

if TYPE_CHECKING:
    import numpy as np

FITS = ("squash", "crop", "pad")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
THUMBNAIL_TYPE = "image/webp"
PICTURE_TYPE = "image/jpeg"
PIPE_BYTES = 256 << 10  # a square and its thumbnail
START_SECONDS = 60  # a cold disk may be slow; the picture's own clock starts later


@dataclass(frozen=True)
class Limits:
    """What one picture may cost."""

    max_bytes: int  # of the file
    max_pixels: int  # width times height, read from the header before decoding
    seconds: float  # wall clock, for one picture

    @property
    def max_memory(self) -> int:
        """Address space of the child process, in bytes."""
        return (512 << 20) + 8 * self.max_pixels


LOCAL_FILES = Limits(max_bytes=1 << 30, max_pixels=200_000_000, seconds=60)
UPLOADS = Limits(max_bytes=20_000_000, max_pixels=50_000_000, seconds=10)


@dataclass(frozen=True)
class Input:
    """What an encoder wants to see: a square of `size` pixels, filled by `fit`.

    squash: the whole picture, its sides scaled separately.
    crop: the shorter side scaled to `resize`, then the centre (as torchvision does).
    pad: the whole picture in its own proportions, on neutral grey.
    """

    size: int = 224
    resize: int = 256
    fit: str = "squash"
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"fit is {self.fit!r}, but must be one of {FITS}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation is {self.interpolation!r}, "
                f"but must be one of {INTERPOLATIONS}"
            )
        if not 0 < self.size <= self.resize and self.fit == "crop":
            raise ValueError(f"cannot crop {self.size} pixels out of {self.resize}")


class Crop(NamedTuple):
    """A part of a picture, in fractions of its width and height, from the upper left."""

    x: float
    y: float
    width: float
    height: float

    @classmethod
    def parse(cls, text: str) -> Crop:
        """From "x,y,width,height". Raises ImageError unless it lies in the picture."""
        try:
            x, y, width, height = (float(part) for part in text.split(","))
        except ValueError:
            raise ImageError(f"a crop is x,y,width,height, not {text!r}") from None
        inside = 0 <= x < 1 and 0 <= y < 1 and width > 0 and height > 0
        # A hair more than 1 is how fractions add up.
        if not (inside and x + width <= 1 + 1e-6 and y + height <= 1 + 1e-6):
            raise ImageError(
                f"the crop {text} does not lie in the picture: x, y, width and height are "
                "fractions of its sides, from 0 to 1"
            )
        return cls(x, y, min(width, 1 - x), min(height, 1 - y))

    def __str__(self) -> str:
        return ",".join(f"{part:.4g}" for part in self)


@dataclass(frozen=True)
class Request:
    """What to make of one picture; all of it comes from one decode.

    `thumbnail` and `picture` are the longest side, in pixels, of a small WebP and of
    a large JPEG. What is smaller already keeps its size. `crop` is the part to make them
    of, in fractions of the upright picture's width and height.
    """

    input: Input | None = None
    thumbnail: int | None = None
    picture: int | None = None
    crop: Crop | None = None


@dataclass(frozen=True)
class Decoded:
    """One picture: what it is, and what the request asked to make of it."""

    width: int  # upright, of the full picture or of the crop, in pixels
    height: int
    format: str  # "JPEG", "PNG", "GIF", "WEBP", "TIFF", "HEIC", ...
    facts: dict[str, str | float]  # taken_at, camera, software, latitude, longitude
    pixels: np.ndarray | None = None  # uint8, (size, size, 3)
    thumbnail: bytes | None = None  # WebP
    picture: bytes | None = None  # JPEG
    steps: list[int] | None = None  # of JPEG: see `image_worker.steps_of`
    note: str | None = None  # what a user should know, such as that the file is cut off


class Decoder:
    """One child process that decodes one picture after the other.

    The child starts with the first picture and again after it died. Not for use by
    several threads at once: that is what `DecoderPool` is for.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._closed = False

    def decode(self, data: bytes, request: Request) -> Decoded:
        """Decode the bytes of one image file; raises ImageError if that cannot be."""
        refuse_size(len(data), self.limits)
        if self._closed:
            raise ImageSimilarityError("the image decoder is closed")
        if self._process is None:
            self._start()
        header, blobs = self._answer(self._process, data, request)
        if "refused" in header:
            raise ImageError(header["refused"])
        return decoded(header, blobs, request)

    def close(self) -> None:
        """Stop the child process and wait for its end."""
        self._closed = True
        self._stop()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, again: int = 2) -> None:
        """Start the child; so many times again where something kills it meanwhile."""
        command = worker_command("image_worker", asdict(self.limits))
        self._guard = Guard(command, OPENBLAS_NUM_THREADS="1")
        self._process = process = self._guard.process
        for pipe in (process.stdin, process.stdout):
            widen(pipe)
        if self._closed:  # meanwhile
            process.kill()
        try:
            with self._guard.limit(START_SECONDS):
                receive(process.stdout)  # its greeting
        except (OSError, EOFError) as error:
            expired = self._guard.expired
            code = self._stop()
            if code < 0 and again and not expired and not self._closed:
                return self._start(again - 1)
            raise ImageSimilarityError(
                f"the process that decodes images does not start (exit code {code}): "
                "the reason was printed on standard error"
            ) from error
        except BaseException:
            self._stop()
            raise

    def _answer(
        self, process: subprocess.Popen[bytes], data: bytes, request: Request
    ) -> tuple[dict, list[bytes]]:
        """The child's answer; a child that did not give a whole one is gone after."""
        answer, guard = None, self._guard
        with guard.limit(self.limits.seconds):
            try:
                send(process.stdin, asdict(request), [data])
                answer = receive(process.stdout)
            except (OSError, EOFError):
                pass
            except BaseException:  # as Ctrl-C: half an answer may be in the pipe
                self._stop()
                raise
        if guard.expired or answer is None:
            self._stop()
        if answer is not None:
            return answer
        if self._closed:
            raise ImageSimilarityError("the image decoder was closed")
        if guard.expired:
            raise ImageError(
                f"decoding the picture took longer than {self.limits.seconds:g} s"
            )
        raise ImageError(
            "decoding the picture ended in a crash: the file is damaged, or needs "
            f"more than {in_millions(self.limits.max_memory)} MB of memory"
        )

    def _stop(self) -> int | None:
        """End the child; its exit code, or None if there was none."""
        process, self._process = self._process, None
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.end()
        return None if process is None else stop(process)


class DecoderPool:
    """Several decoders that any number of threads share."""

    def __init__(self, limits: Limits, workers: int) -> None:
        self._decoders = [Decoder(limits) for _ in range(workers)]
        # Last in, first out: while one child is enough, the others never start.
        self._idle: LifoQueue[Decoder] = LifoQueue()
        for decoder in self._decoders:
            self._idle.put(decoder)

    def decode(self, data: bytes, request: Request) -> Decoded:
        """As `Decoder.decode`, by the first decoder that is free."""
        decoder = self._idle.get()
        try:
            return decoder.decode(data, request)
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """Stop all child processes, also busy ones, and wait for their end."""
        for decoder in self._decoders:
            decoder._closed = True
            if process := decoder._process:
                process.kill()  # wakes the thread that waits for its answer
        taken = [self._idle.get() for _ in self._decoders]
        for decoder in taken:
            decoder.close()
            self._idle.put(decoder)  # closed, so it refuses whoever comes later

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def decoded(header: dict, blobs: list[bytes], request: Request) -> Decoded:
    """The child's answer as the caller wants it."""
    parts = dict(zip(header["parts"], blobs, strict=True))
    pixels = None
    if request.input:
        import numpy as np

        side = request.input.size
        # A copy, because torch warns about arrays that cannot be written to.
        pixels = np.frombuffer(bytearray(parts["pixels"]), dtype=np.uint8)
        pixels = pixels.reshape(side, side, 3)
    return Decoded(
        width=header["width"],
        height=header["height"],
        format=header["format"],
        facts=header["facts"],
        pixels=pixels,
        thumbnail=parts.get("thumbnail"),
        picture=parts.get("picture"),
        steps=header["steps"],
        note=header["note"],
    )


def refuse_size(size: int, limits: Limits) -> None:
    """Raises ImageError for files that need not be looked into."""
    if size == 0:
        raise ImageError("the file is empty")
    if size > limits.max_bytes:
        raise ImageError(
            f"the file has {in_millions(size)} MB, "
            f"more than the limit of {in_millions(limits.max_bytes)} MB"
        )


def in_millions(number: float) -> str:
    """ "2,500" or "30.1": rounded up, so that what exceeds a limit also reads so."""
    tenths = math.ceil(number / 100_000)
    return f"{tenths / 10:,.1f}".removesuffix(".0")


# The child process


def worker_command(module: str, *arguments: object) -> list[str]:
    """The command line of a child that calls `serve(*arguments)` of a module of ours, and
    finds modules where this process does.

    `-I -S` leaves out the current folder, PYTHONPATH and site-packages; instead the
    child gets the paths in use here, which also covers editable installs (whose
    import hooks do not run without site) by naming this package's folder.
    """
    start = {
        "path": [entry for entry in sys.path if entry]
        + [str(Path(__file__).resolve().parent.parent)],
        "module": f"{__package__}.{module}",
        "arguments": arguments,
    }
    return [sys.executable, "-I", "-S", "-c", WORKER, json.dumps(start)]


# Ctrl-C in a terminal reaches the whole process group; it is this process that
# decides what to do about it.
WORKER = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import importlib, json, sys
start = json.loads(sys.argv[1])
sys.path[:] = start["path"]
from datasette_image_similarity.orphans import end_with_parent
end_with_parent()
importlib.import_module(start["module"]).serve(*start["arguments"])
"""


class Guard:
    """Starts a child process, and kills it when it takes too long for one thing.

    One thread serves it all its life: to start a timer for each picture would cost as
    much as to decode a small one. It wakes when the earliest time limit may have
    passed, and mostly finds that another is running by then. It also is the thread that
    starts the child, which may die with the one that did (`orphans.py`).
    """

    def __init__(self, command: Sequence[str], **environment: str) -> None:
        self.expired = False  # it was killed
        self._deadline = math.inf  # of what is under way
        self._wakes = math.inf  # when the thread looks again
        self._ended = False
        self._changed = threading.Condition()
        started: Future[subprocess.Popen[bytes]] = Future()
        self._thread = threading.Thread(
            target=self._serve, args=(command, environment, started), daemon=True
        )
        self._thread.start()
        self.process = started.result()

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """The process is killed if the block takes longer."""
        with self._changed:
            self._deadline = time.monotonic() + seconds
            if self._deadline < self._wakes:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:  # from here on `expired` does not change any more
                self._deadline = math.inf

    def end(self) -> None:
        """End the thread, and wait for it."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def _serve(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        started: Future[subprocess.Popen[bytes]],
    ) -> None:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **environment},
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(process)
        with self._changed:
            while not self._ended:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    self.expired = True
                    process.kill()
                    self._deadline = left = math.inf
                self._wakes = self._deadline
                self._changed.wait(None if left == math.inf else left)


def stop(process: subprocess.Popen[bytes]) -> int:
    """End the process, wait for it and return its exit code."""
    process.kill()  # it holds nothing that could be lost
    code = process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # unwritten bytes cannot be flushed any more
            pipe.close()
    return code


# Messages: the length of a JSON header, the header, then the blobs it lists.


def send(stream: IO[bytes], header: dict, blobs: list[bytes]) -> None:
    text = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}).encode()
    stream.write(struct.pack(">I", len(text)) + text)
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict, list[bytes]]:
    """The next message; raises EOFError when the other side has gone."""
    (length,) = struct.unpack(">I", read_exactly(stream, 4))
    header = json.loads(read_exactly(stream, length))
    return header, [read_exactly(stream, size) for size in header.pop("sizes")]


def widen(pipe: IO[bytes]) -> None:
    """Have a pipe take a square at once, where the system can: else it is read in
    pieces, and both sides woken for each.
    """
    try:
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (ImportError, AttributeError, OSError):  # not Linux, or too many pipes
        pass


def read_exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
