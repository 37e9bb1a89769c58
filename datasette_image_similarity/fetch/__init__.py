"""Downloads of pictures that a table names: guarded, polite, cached.

`Fetcher.read(url, max_bytes)` is what the pipeline calls in place of reading a file.
`addresses.py` says which addresses may be asked, `hosts.py` how often and when no longer,
`exchange.py` speaks HTTP, `cache.py` keeps what came.

HTTP is the standard library's: what matters here is which address a connection goes to and
when it ends, and `http.client` takes a socket that we have connected ourselves.
"""

from __future__ import annotations

import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import cached_property
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

from ..errors import ImageError, MissingFile
from .addresses import Address, Refused, Resolve, checked, look_up, parse, redirected
from .cache import Cache, Kept, default_folder, facts_of
from .exchange import (
    STOPPED,
    Answer,
    Connections,
    TimeLeft,
    TooSlow,
    ask,
    connect,
    in_words,
    opened,
    tls_context,
    too_large,
)
from .hosts import Hosts

__all__ = ["Fetcher", "Refused"]

BACK_OFF = (1.0, 4.0)  # seconds before the second and third try, give or take a half
PASSING = (429, 500, 502, 503, 504)  # statuses that may be others the next time
PERMANENT, TEMPORARY = (301, 308), (302, 303, 307)
# No format by name: servers that convert pictures would take it for a wish.
ACCEPT = "image/*,*/*;q=0.8"
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


class _Trouble(ImageError):
    """A try that failed; `again` says whether another one may help."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class _Request(NamedTuple):
    """What is asked of a host."""

    address: Address
    headers: Mapping[str, str]
    max_bytes: int
    time_left: TimeLeft


class Fetcher:
    """Downloads pictures. One object may be used by several threads at once.

    `allow_private` lets hosts in the user's own network, and this computer, be asked.
    `cache` is a folder (by default one of the platform's, shared by all of the user's
    runs) of `cache_bytes` at most; 0 keeps nothing. `per_host` is how many connections a
    host gets at once from this object. `seconds` are those of a whole download, waiting
    for a turn and between tries not counted; `redirects` how many are followed.
    `patience` is the longest pause, in seconds, that a host may ask for to be asked again;
    with 0 there is one try and no waiting.
    `resolve`, `clock` (seconds since 1970) and `sleep` are there for tests.

    What threads share is behind locks, a connection belongs to one of them at a time. In a
    child process that was forked off it begins anew, with connections of its own. It
    cannot be pickled: make one in each process.

    Proxies named by the environment are not used: they look names up themselves, so that
    nobody could say which address is asked. No cookies, no passwords, no .netrc.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        cache: Path | None = None,
        cache_bytes: int = 10 << 30,
        per_host: int = 4,
        seconds: float = 30.0,
        redirects: int = 5,
        patience: float = 60.0,
        resolve: Resolve = look_up,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        from .. import __version__

        self._allow_private = allow_private
        self._folder = cache or default_folder()
        self._cache_bytes = cache_bytes
        self._per_host = per_host
        self._seconds = seconds
        self._redirects = redirects
        self._patience = patience
        self._resolve = resolve
        self._clock = clock
        self._given_sleep = sleep
        self._headers = {
            "User-Agent": f"datasette-image-similarity/{__version__}",
            "Accept": ACCEPT,
            "Accept-Encoding": "identity",
        }
        self._begin()

    def _begin(self) -> None:
        """Make all that must not be shared with another process."""
        self._process = os.getpid()
        self._closed = threading.Event()
        self._sleep = self._given_sleep or self._closed.wait
        self._hosts = Hosts(self._per_host, self._patience, self._clock, self._sleep)
        self._connections = Connections()
        keeps = self._folder and self._cache_bytes
        self._cache = Cache(self._folder, self._cache_bytes) if keeps else None

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return tls_context()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections, and end what other threads are reading or waiting for: their
        `read()`s raise ImageError."""
        self._closed.set()
        self._connections.end()

    @property
    def cache_problem(self) -> str | None:
        """Why downloads could not be kept, or None."""
        if self._folder is None:
            return "this user has no home folder: set HOME or XDG_CACHE_HOME"
        return self._cache and self._cache.problem

    def read(self, url: str, max_bytes: int) -> bytes:
        """The bytes at a URL, at most `max_bytes` of them.

        From the cache as long as they are fresh. Raises ImageError, which says why:
        MissingFile for 404 and 410, Refused for an address that may not be asked.
        """
        if self._process != os.getpid():
            self._connections.drop()  # shared with the parent: not to be used by both
            self._begin()
        address = parse(url)
        kept = self._cache.get(self._key(address)) if self._cache else None
        if kept is None or self._clock() >= kept.facts.fresh_until:
            return self._download(address, kept, max_bytes)
        if len(kept.body) > max_bytes:
            raise too_large(max_bytes)
        return kept.body

    def _key(self, address: Address) -> str:
        """What the cache knows an address by. What came while private hosts were allowed
        is not given to those who do not allow them."""
        return f"private {address.url}" if self._allow_private else address.url

    def _download(self, address: Address, kept: Kept | None, max_bytes: int) -> bytes:
        """The bytes, asked for as often as it makes sense."""
        time_left = TimeLeft(self._seconds)
        for pause in (*BACK_OFF, None):
            try:
                answer, source, moved = self._follow(address, kept, max_bytes, time_left)
                break
            except _Trouble as trouble:
                last = pause is None or pause > self._patience or time_left.over
                if last or not trouble.again:
                    raise
            self._sleep(pause * random.uniform(0.5, 1.5))
        body = kept.body if kept and answer.status == 304 else answer.body
        if len(body) > max_bytes:
            raise too_large(max_bytes)
        if _is_page(answer):
            raise ImageError("an HTML page, not a picture")
        if self._cache:
            self._keep(address, answer, source, body, kept, moved)
        return body

    def _keep(
        self,
        address: Address,
        answer: Answer,
        source: Address,
        body: bytes,
        kept: Kept | None,
        moved: bool,
    ) -> None:
        """Store what came, or that it has not changed."""
        headers = dict(answer.headers)
        if kept and answer.status == 304:
            headers.setdefault("etag", kept.facts.etag)
            headers.setdefault("last-modified", kept.facts.last_modified)
        facts = facts_of(headers, source.url, self._clock(), moved=moved)
        if facts is None:
            self._cache.drop(self._key(address))
        else:
            self._cache.put(self._key(address), Kept(facts, body))

    def _follow(
        self, address: Address, kept: Kept | None, max_bytes: int, time_left: TimeLeft
    ) -> tuple[Answer, Address, bool]:
        """A picture or "not modified", where it was, and whether it may be elsewhere the
        next time (`moved`)."""
        here, moved = address, False
        for _ in range(self._redirects + 1):
            known = kept is not None and kept.facts.source == here.url
            headers = {"Host": here.netloc} | self._headers
            if known:
                headers |= kept.facts.validators()
            answer = self._ask(_Request(here, headers, max_bytes, time_left))
            if answer.status not in (*PERMANENT, *TEMPORARY):
                if answer.status == 200 or (answer.status == 304 and known):
                    return answer, here, moved
                raise _failure(answer)
            moved = moved or answer.status in TEMPORARY
            here = redirected(here, answer.headers.get("location", ""))
        raise ImageError(f"redirects more than {self._redirects} times")

    def _ask(self, request: _Request) -> Answer:
        """One answer of one host, asked politely. Raises ImageError."""
        with self._hosts.turn(request.address.host) as host:
            self._check_open()
            try:
                with request.time_left.running():
                    answer = self._exchange(request)
            except Refused:
                raise
            except ImageError:  # an answer, though not one that we can take
                host.answered()
                raise
            except (OSError, HTTPException, TooSlow) as error:
                self._check_open()
                trouble = self._trouble(error)
                host.failed(str(trouble), self._clock())
                raise trouble from None
            if answer.status not in PASSING:
                host.answered()
                return answer
            host.failed(str(_failure(answer)), self._clock())
            if pause := self._asked_pause(answer):
                host.pause(pause, self._patience, self._clock())
            return answer

    def _exchange(self, request: _Request) -> Answer:
        """One answer, by a connection that is there or a new one."""
        address = request.address
        connection = self._connections.take(address)
        if connection is not None:
            # The server may have done with it.
            with suppress(ConnectionError, ssl.SSLError, HTTPException):
                return self._answer(connection, request)
        self._check_open()
        seconds = request.time_left.seconds

        def make() -> HTTPConnection:
            context = self._tls if address.scheme == "https" else None
            return connect(address, self._addresses(address), context, seconds)

        return self._answer(opened(make, self._closed, seconds), request)

    def _answer(self, connection: HTTPConnection, request: _Request) -> Answer:
        """One answer, by this connection."""
        with self._connections.using(connection):
            self._check_open()  # before it was in use, nobody could end it
            answer, again = ask(
                connection,
                request.address.target,
                request.headers,
                request.max_bytes,
                request.time_left.seconds,
            )
        self._check_open()  # else it may have been cut off
        if again:
            self._connections.put(request.address, connection)
        return answer

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ImageError(STOPPED)

    def _addresses(self, address: Address) -> list[str]:
        """The IP addresses that a connection may go to. Raises Refused or OSError."""
        if self._allow_private:
            return self._resolve(address.host, address.port)
        return checked(address, self._resolve)

    def _trouble(self, error: Exception) -> _Trouble:
        """What went wrong with a connection, in words."""
        reason, again = in_words(error)
        if isinstance(error, OSError) and _has_proxies():
            reason += " (proxies that the environment names are not used)"
        return _Trouble(reason, again=again)

    def _asked_pause(self, answer: Answer) -> float:
        """How many seconds the server wants to be left alone, 0 where it does not say."""
        text = answer.headers.get("retry-after", "")
        if text.isascii() and text.isdigit():
            return float(text[:12])
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - self._clock())
        except (TypeError, ValueError, OverflowError, OSError):
            return 0.0


def _failure(answer: Answer) -> ImageError:
    """The error for an answer without a picture."""
    status = answer.status
    if status in (404, 410):
        return MissingFile(f"no such picture at that address ({status})")
    try:
        phrase = f" ({HTTPStatus(status).phrase})"
    except ValueError:
        phrase = ""
    return _Trouble(f"the server answered {status}{phrase}", again=status in PASSING)


def _has_proxies() -> bool:
    return any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES)


def _is_page(answer: Answer) -> bool:
    """True for HTML that says so and looks like it; all else is for the decoder."""
    kind = answer.headers.get("content-type", "").lower()
    if not kind.startswith(("text/html", "application/xhtml")):
        return False
    start = answer.body[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<!--", b"<?xml"))
