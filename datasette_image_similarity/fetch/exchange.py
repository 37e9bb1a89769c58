"""One request and its answer, over a connection to an address that was checked.

`http.client` speaks HTTP; what is added is a limit of bytes and one of time. A timeout of
a socket begins anew with each byte, so a server that sends one byte a minute would be
waited for forever: a timer closes the connection when the time is up, whatever is being
waited for.
"""

from __future__ import annotations

import io
import selectors
import socket
import ssl
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager, suppress
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    IncompleteRead,
    RemoteDisconnected,
)
from typing import NamedTuple

from ..errors import ImageError
from .addresses import Address

CONNECT = 10.0  # seconds for one address to take a connection
ADDRESSES = 4  # of a host are tried
PIECE = 64 << 10
ASKING = 0.1  # seconds between two looks at whether to stop
GRACE = 1.0  # seconds that sockets have to say themselves that their time is up
STOPPED = "the download was stopped"
IDLE = 32  # connections that wait for the next request, at most


class Answer(NamedTuple):
    """What a server said. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TooSlow(Exception):
    """The time for a download is up."""


class TimeLeft:
    """Seconds for a download; only those spent in `running()` count."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """How many are left. Raises TooSlow for none."""
        spent = 0.0 if self._since is None else time.monotonic() - self._since
        if spent >= self._left:
            raise TooSlow
        return self._left - spent

    @property
    def over(self) -> bool:
        """Whether none are left."""
        return self._left <= 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """The clock runs in this block."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._left -= time.monotonic() - self._since
            self._since = None


def tls_context() -> ssl.SSLContext:
    """Whom to believe: the certificates that the system knows, a company's own among them,
    and Mozilla's, for a Python that knows none."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context


def connect(
    address: Address, ips: list[str], context: ssl.SSLContext | None, seconds: float
) -> HTTPConnection:
    """A connection to the first of these IP addresses that takes one. Raises OSError.

    With a context, it is encrypted, and with the host that the address names.
    """
    ips = ips[:ADDRESSES]
    if not ips:
        raise OSError("it has no address")
    for ip in ips:
        try:
            sock = socket.create_connection(
                (ip, address.port), min(CONNECT, seconds / len(ips))
            )
        except OSError:
            if ip is ips[-1]:
                raise
        else:
            break
    sock.settimeout(seconds)
    if context is not None:
        try:
            sock = context.wrap_socket(sock, server_hostname=address.host)
        except BaseException:
            sock.close()
            raise
    connection = HTTPConnection(address.host, address.port)
    connection.auto_open = 0  # never to an address that it looks up itself
    connection.sock = sock
    return connection


def opened(
    make: Callable[[], HTTPConnection], closed: threading.Event, seconds: float
) -> HTTPConnection:
    """What `make()` gives: the host looked up, connected to, its certificate checked.

    Nothing ends a name look-up, and not every system a connection that is being made. So a
    thread of its own does it, which is left to itself when `closed` is set or the time is
    up, and closes what it has made then. Raises TooSlow, ImageError, or what `make()` does.
    """
    made: Future[HTTPConnection] = Future()

    def work() -> None:
        try:
            connection = make()
        except BaseException as error:
            if made.set_running_or_notify_cancel():
                made.set_exception(error)
        else:
            if made.set_running_or_notify_cancel():
                made.set_result(connection)
            else:
                connection.close()

    threading.Thread(target=work, daemon=True).start()
    end = time.monotonic() + seconds + GRACE
    while not wait([made], ASKING).done:
        late = time.monotonic() > end
        if (closed.is_set() or late) and made.cancel():
            raise TooSlow if late else ImageError(STOPPED)
    return made.result()


def ask(
    connection: HTTPConnection,
    target: str,
    headers: Mapping[str, str],
    max_bytes: int,
    seconds: float,
) -> tuple[Answer, bool]:
    """The answer to a GET, and whether the connection can be used again.

    Raises ImageError when a picture is too large, TooSlow, OSError or HTTPException.
    """
    with _time_limit(connection.sock, seconds):
        connection.request("GET", target, headers=dict(headers))
        with closing(connection.getresponse()) as response:
            body = _body(response, max_bytes)
            # After 1xx another answer comes, which must not be the next one's.
            whole = response.isclosed() and response.status >= 200
    decoded = _decoded(body, response, max_bytes)
    again = whole and not response.will_close
    if not again:
        connection.close()
    return Answer(response.status, _headers(response), decoded), again


@contextmanager
def _time_limit(sock: socket.socket, seconds: float) -> Iterator[None]:
    """Raises TooSlow where the block takes longer, by ending the connection."""
    late = threading.Event()

    def end() -> None:
        late.set()
        _cut(sock)

    if seconds <= 0:
        raise TooSlow
    sock.settimeout(seconds)
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, HTTPException) as error:
        if late.is_set() or isinstance(error, TimeoutError):
            raise TooSlow from None
        raise
    finally:
        timer.cancel()
    if late.is_set():  # the end that was read was ours
        raise TooSlow


def _cut(sock: socket.socket) -> None:
    """End a connection that another thread reads from."""
    with suppress(OSError):
        # Not SSLSocket's own: it takes the encryption away under a reader's feet.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _body(response: HTTPResponse, max_bytes: int) -> bytes:
    """All of a picture; of other answers what is needed to use the connection again."""
    if response.status != 200:
        with suppress(OSError, HTTPException):  # the status says enough
            response.read(PIECE)
        return b""
    expected = response.length
    if expected is not None and expected > max_bytes:
        raise too_large(max_bytes)
    body = io.BytesIO()
    while piece := response.read(min(PIECE, max_bytes + 1 - body.tell())):
        body.write(piece)
        if body.tell() > max_bytes:
            raise too_large(max_bytes)
    if expected is not None and body.tell() < expected:
        raise IncompleteRead(b"", expected - body.tell())
    return body.getvalue()


def _decoded(body: bytes, response: HTTPResponse, max_bytes: int) -> bytes:
    """The bytes without the compression that we did not ask for but may get.

    A name that is no compression at all ("utf-8", "aws-chunked") is a server's mistake.
    """
    encoding = (response.getheader("content-encoding") or "identity").strip().lower()
    if response.status != 200 or encoding not in (
        "gzip",
        "x-gzip",
        "deflate",
        "br",
        "zstd",
    ):
        return body
    if encoding in ("br", "zstd"):
        raise ImageError(f"sent with {encoding}, a compression that was not asked for")
    unpack = zlib.decompressobj(wbits=47)  # the header says whether it is gzip or zlib
    try:
        unpacked = unpack.decompress(body, max_bytes + 1)
    except zlib.error:
        raise ImageError(f"sent with {encoding}, and damaged") from None
    if len(unpacked) > max_bytes:
        raise too_large(max_bytes)
    if not unpack.eof or unpack.unused_data:
        raise ImageError(f"sent with {encoding}, and not whole")
    return unpacked


def _headers(response: HTTPResponse) -> dict[str, str]:
    """The headers, folded lines unfolded; of one that comes twice the first, except for
    Cache-Control, which is a list."""
    headers: dict[str, str] = {}
    for name, value in response.getheaders():
        name, value = name.lower(), " ".join(value.split())
        if name == "cache-control" and name in headers:
            value = f"{headers[name]}, {value}"
        elif name in headers:
            continue
        headers[name] = value
    return headers


def too_large(max_bytes: int) -> ImageError:
    """The error for more bytes than a picture may have."""
    return ImageError(f"more than {max_bytes / 1e6:,.0f} MB")


def _is_silent(sock: socket.socket) -> bool:
    """True where nothing came that nobody asked for, the end of the connection included."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return not selector.select(0)


def in_words(error: Exception) -> tuple[str, bool]:
    """Why there was no answer, and whether there may be one the next time."""
    if isinstance(error, TooSlow):
        return "takes too long to download", False
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_NONAME:
            return "its host is not known", False
        return "its host's name cannot be looked up", True
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}", False
    if isinstance(error, (IncompleteRead, RemoteDisconnected)):
        return "the connection broke off", True
    if isinstance(error, HTTPException):
        return "the answer is not HTTP", False
    if isinstance(error, TimeoutError):
        return "its host does not answer", True
    if isinstance(error, ssl.SSLError):
        return "no secure connection can be made", True
    return f"its host cannot be reached: {getattr(error, 'strerror', None) or error}", True


class Connections:
    """Those that wait for the next request to the same place, and those in use."""

    def __init__(self) -> None:
        self._used: set[socket.socket] = set()
        self._waiting: deque[tuple[tuple[str, str, int], HTTPConnection]] = deque()
        self._lock = threading.Lock()

    def take(self, address: Address) -> HTTPConnection | None:
        """A connection to this place that was put here, the latest first."""
        with self._lock:
            for entry in reversed(self._waiting):
                if entry[0] == address[:3]:
                    self._waiting.remove(entry)
                    break
            else:
                return None
        connection = entry[1]
        if _is_silent(connection.sock):
            return connection
        connection.close()
        return None

    def put(self, address: Address, connection: HTTPConnection) -> None:
        """Keep a connection; the one that has waited longest is closed for it."""
        with self._lock:
            self._waiting.append((address[:3], connection))
            oldest = self._waiting.popleft()[1] if len(self._waiting) > IDLE else None
        if oldest is not None:
            oldest.close()

    @contextmanager
    def using(self, connection: HTTPConnection) -> Iterator[None]:
        """While a connection is in use, `end()` ends it; an error closes it."""
        sock = connection.sock  # which the connection forgets before the last byte
        with self._lock:
            self._used.add(sock)
        try:
            yield
        except BaseException:
            connection.close()
            raise
        finally:
            with self._lock:
                self._used.discard(sock)

    def end(self) -> None:
        """Close all that wait, and cut off what is being downloaded."""
        with self._lock:
            for sock in self._used:
                _cut(sock)
        self.drop()

    def drop(self) -> None:
        """Close all that wait. Without the lock: a child process may have inherited it
        taken."""
        while self._waiting:
            self._waiting.pop()[1].close()
