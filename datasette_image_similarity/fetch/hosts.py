"""Manners: how often a host is asked, and when it is left alone.

A `Host` is what is known of one host while it is in use or in trouble. A host that goes on
failing is given up for some minutes, so that ten thousand links to a server that is gone
do not take ten thousand times as long as one (a circuit breaker).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..errors import ImageError

FAILURES = 5  # in a row ...
LASTING = 30.0  # ... and for so many seconds: then a host is given up
GIVEN_UP = 300.0  # seconds until it is tried again
LONGEST_ABSENCE = 3600.0  # seconds for which a host is left alone that asks for it


@dataclass
class Host:
    """One host. `not_before` and `away_until` are seconds since 1970."""

    name: str
    slots: threading.Semaphore
    users: int = 0
    failures: int = 0  # in a row
    failing_since: float = 0.0
    not_before: float = 0.0  # it asked for a pause
    away_until: float = 0.0  # it was given up
    why: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self) -> None:
        """It works, whatever it said."""
        with self.lock:
            self.failures = 0

    def failed(self, reason: str, now: float) -> None:
        """It gave no answer, or none that helps."""
        with self.lock:
            if not self.failures:
                self.failing_since = now
            self.failures += 1
            if self.failures >= FAILURES and now - self.failing_since >= LASTING:
                self.away_until = now + GIVEN_UP
                self.why = f"{self.name} was given up for some minutes: {reason}"

    def pause(self, seconds: float, patience: float, now: float) -> None:
        """It asks to be left alone for a while, which is waited for if that is not more
        than `patience`."""
        with self.lock:
            if seconds <= patience:
                self.not_before = max(self.not_before, now + seconds)
            else:
                self.away_until = now + min(seconds, LONGEST_ABSENCE)
                self.why = f"{self.name} asks to be left alone for a while"


class Hosts:
    """All hosts that are in use or in trouble."""

    def __init__(
        self,
        per_host: int,
        patience: float,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.patience = patience
        self._per_host = per_host
        self._clock = clock
        self._sleep = sleep
        self._known: dict[str, Host] = {}
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, name: str) -> Iterator[Host]:
        """The right to ask a host, waited for. Raises ImageError for one given up."""
        host = self._enter(name)
        try:
            with host.slots:
                self._wait(host)
                yield host
        finally:
            self._leave(host)

    def _enter(self, name: str) -> Host:
        with self._lock:
            host = self._known.get(name)
            if host is None:
                host = self._known[name] = Host(name, threading.Semaphore(self._per_host))
            host.users += 1
            return host

    def _leave(self, host: Host) -> None:
        with self._lock:
            host.users -= 1
            troubled = host.failures or self._clock() < max(
                host.not_before, host.away_until
            )
            if not host.users and not troubled:
                del self._known[host.name]

    def _wait(self, host: Host) -> None:
        now = self._clock()
        if now < host.away_until:
            raise ImageError(host.why)
        if now < host.not_before:
            self._sleep(min(host.not_before - now, self.patience))
