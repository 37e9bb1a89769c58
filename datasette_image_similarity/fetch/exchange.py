"""One request and its answer, over a connection to an address that was checked.

`http.client` speaks HTTP; what is added is a limit of bytes and one of time. A timeout of
a socket begins anew with each byte, so a server that sends one byte a minute would be
waited for forever: a timer closes the connection when the time is up, whatever is being
waited for.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from typing import NamedTuple

from ..errors import ImageError
from .addresses import Address

CONNECT = 10.0  # seconds for one address to take a connection
ADDRESSES = 4  # of a host are tried
PIECE = 64 << 10
IDLE = 32  # connections that wait for the next request, at most


class Answer(NamedTuple):
    """What a server said. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TooSlow(Exception):
    """The time for a download is up."""


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


def ask(
    connection: HTTPConnection,
    address: Address,
    headers: Mapping[str, str],
    max_bytes: int,
    seconds: float,
) -> tuple[Answer, bool]:
    """The answer to a GET, and whether the connection can be used again.

    Raises ImageError when a picture is too large, TooSlow, OSError or HTTPException.
    The connection is closed then.
    """
    try:
        with _time_limit(connection.sock, seconds):
            connection.request("GET", address.target, headers=dict(headers))
            with closing(connection.getresponse()) as response:
                body = _body(response, max_bytes)
                # After 1xx another answer comes, which must not be the next one's.
                whole = response.isclosed() and response.status >= 200
        decoded = _decoded(body, response, max_bytes)
    except BaseException:
        connection.close()
        raise
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
        with suppress(OSError):
            # Not SSLSocket's own: it takes the encryption away under a reader's feet.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

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


def _body(response: HTTPResponse, max_bytes: int) -> bytes:
    """All of a picture; of other answers what is needed to use the connection again."""
    if response.status != 200:
        with suppress(OSError, HTTPException):  # the status says enough
            response.read(PIECE)
        return b""
    expected = response.length
    if expected is not None and expected > max_bytes:
        raise too_large(max_bytes)
    body = bytearray()
    while piece := response.read(min(PIECE, max_bytes + 1 - len(body))):
        body += piece
        if len(body) > max_bytes:
            raise too_large(max_bytes)
    if expected is not None and len(body) < expected:
        raise IncompleteRead(b"", expected - len(body))
    return bytes(body)


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


class Idle:
    """Connections that wait for the next request to the same place."""

    def __init__(self) -> None:
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

    def clear(self) -> None:
        """Close all. Without the lock: a child process may have inherited it taken."""
        while self._waiting:
            self._waiting.pop()[1].close()
