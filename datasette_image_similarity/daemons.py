"""A pool of threads that does not keep Python from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any


class DaemonThreads(Executor):
    """Up to `most` threads, started when there is work for them.

    At its end Python waits for all threads of a `ThreadPoolExecutor`, and so for whatever
    these wait for: a network being loaded, a child process that does not answer. What is
    done here changes nothing on a disk, so nothing is lost where it is cut short.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._jobs: SimpleQueue[tuple[Future, Callable[[], Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._unfinished = 0  # waiting or under way
        self._closed = False

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"The threads {self._name} have ended")
            self._unfinished += 1
            self._jobs.put((future, lambda: fn(*args, **kwargs)))
            if self._threads < min(self._most, self._unfinished):
                self._threads += 1
                name = f"{self._name}-{self._threads}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """Cancel what has not begun, and let the threads end; nobody waits for them."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            while not self._jobs.empty():
                future, _ = self._jobs.get()
                future.cancel()
            for _ in range(self._threads):
                self._jobs.put(None)

    def _work(self) -> None:
        while (taken := self._jobs.get()) is not None:
            future, work = taken
            if future.set_running_or_notify_cancel():
                try:
                    found = work()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(found)
                    del found
            del taken, future, work  # nothing is kept while waiting for the next
            with self._lock:
                self._unfinished -= 1
