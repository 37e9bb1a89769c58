"""A child process that embeds words for SQL.

SQL functions run in Datasette's own threads, which must not load networks of hundreds of
megabytes nor wait for them. `TextHelper` hands words to a child process (text_worker.py),
which keeps one encoder; whoever asks waits for a moment at most, while loading goes on.
What the child has answered is remembered, so that the next to ask has it at once.
"""

from __future__ import annotations

import subprocess
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from .encoders.spec import EncoderSpec
from .errors import EncoderError, ImageSimilarityError, TextError
from .images import START_SECONDS, Guard, receive, send, stop, worker_command

LOAD_SECONDS = 120.0  # for an encoder
ENCODE_SECONDS = 20.0  # for a text
WAITING = 8  # texts at once: more are refused
REMEMBERED = 1000  # texts


class NotYet(ImageSimilarityError):
    """The vector is not there yet, or cannot be now: ask again."""


@dataclass(frozen=True)
class Job:
    """A text for an encoder: its spec without a transform, and where its weights lie."""

    spec: EncoderSpec
    weights: Path | None
    text: str

    @property
    def key(self) -> tuple[str, str]:
        return self.spec.fingerprint, self.text


@dataclass
class _Waiting:
    """Answers that are on their way, and those of lately."""

    under_way: dict[tuple[str, str], Future[bytes]] = field(default_factory=dict)
    known: OrderedDict[tuple[str, str], bytes] = field(default_factory=OrderedDict)


class TextHelper:
    """The child process and who waits for it. May be asked from any thread.

    It starts with the first text, and again after it has crashed or was killed for taking
    too long. `command` starts another child than ours.
    """

    def __init__(
        self,
        command: Sequence[str] | None = None,
        *,
        load_seconds: float = LOAD_SECONDS,
        encode_seconds: float = ENCODE_SECONDS,
    ) -> None:
        self._command = list(command) if command else None
        self._load_seconds = load_seconds
        self._encode_seconds = encode_seconds
        self._lock = threading.Lock()
        self._waiting = _Waiting()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._loaded: str | None = None  # fingerprint of the encoder that the child has
        self._jobs: SimpleQueue[tuple[Job, Future[bytes]] | None] = SimpleQueue()
        # It talks to the child. A daemon: at its end Python would wait for any other.
        self._thread: threading.Thread | None = None

    def encode(self, job: Job, patience: float) -> bytes:
        """The text's vector as the encoder gives it: float32 bytes of shape (d,).

        Waits up to `patience` seconds. Raises NotYet when it takes longer, too many wait
        or the child has ended; TextError and EncoderError as the encoder does.
        """
        with self._lock:
            known = self._waiting.known.get(job.key)
            if known is not None:
                self._waiting.known.move_to_end(job.key)
                return known
            future = self._waiting.under_way.get(job.key)
            if future is None:
                if self._closed:
                    raise NotYet("The server is ending")
                if len(self._waiting.under_way) >= WAITING:
                    raise NotYet("Too many texts are waiting: ask again in a moment")
                future = self._waiting.under_way[job.key] = Future()
                self._jobs.put((job, future))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, daemon=True)
                    self._thread.start()
        try:
            return future.result(patience)
        except NotDone:
            raise NotYet(
                "The encoder is loading, or busy: ask again in a few seconds"
            ) from None

    def close(self) -> None:
        """End the child, also a busy one, and wait for it."""
        with self._lock:
            self._closed = True
            process, thread = self._process, self._thread
            self._jobs.put(None)
        if process is not None:
            process.kill()  # wakes the thread that waits for its answer
        if thread is not None:
            thread.join()
        self._stop()

    # In the thread that talks to the child

    def _work(self) -> None:
        while (taken := self._jobs.get()) is not None:
            job, future = taken
            try:
                if self._closed:
                    raise NotYet("The server is ending")
                vector = self._ask(job)
            except Exception as error:
                with self._lock:
                    del self._waiting.under_way[job.key]
                future.set_exception(error)
                continue
            with self._lock:  # in one step, or somebody would ask again in between
                del self._waiting.under_way[job.key]
                self._waiting.known[job.key] = vector
                while len(self._waiting.known) > REMEMBERED:
                    self._waiting.known.popitem(last=False)
            future.set_result(vector)

    def _ask(self, job: Job) -> bytes:
        process = self._process or self._started()
        if self._loaded != job.spec.fingerprint:
            self._loaded = None
            request = {
                "load": job.spec.to_json(),
                "weights": str(job.weights) if job.weights else None,
            }
            self._exchange(process, request, self._load_seconds, "load the encoder")
            self._loaded = job.spec.fingerprint
        request = {"text": job.text}
        return self._exchange(process, request, self._encode_seconds, "embed a text")[0]

    def _exchange(
        self, process: subprocess.Popen[bytes], request: dict, seconds: float, what: str
    ) -> list[bytes]:
        """The child's answer; a child that gives none is gone after."""
        answer = None
        with self._guard.limit(seconds), suppress(OSError, EOFError):
            send(process.stdin, request, [])
            answer = receive(process.stdout)
        if answer is None:
            expired = self._guard.expired
            self._stop()
            reason = f"took longer than {seconds:g} s to" if expired else "crashed when to"
            raise NotYet(f"The process that embeds words {reason} {what}: it starts anew")
        header, blobs = answer
        if "refused" in header:
            kinds: dict[str, Callable[[str], ImageSimilarityError]] = {
                "TextError": TextError,
                "EncoderError": EncoderError,
            }
            raise kinds.get(header["kind"], EncoderError)(header["refused"])
        return blobs

    def _started(self) -> subprocess.Popen[bytes]:
        command = self._command or worker_command("text_worker")
        guard = Guard(command, TOKENIZERS_PARALLELISM="false")
        process = guard.process
        with self._lock:
            self._process, self._guard, self._loaded = process, guard, None
            if self._closed:
                process.kill()
        try:
            with guard.limit(START_SECONDS):
                receive(process.stdout)  # its greeting
        except (OSError, EOFError):
            self._stop()
            raise NotYet("The process that embeds words does not start") from None
        return process

    def _stop(self) -> None:
        with self._lock:
            process, self._process = self._process, None
            guard, self._guard = self._guard, None
        if guard is not None:
            guard.end()
        if process is not None:
            stop(process)
