"""Which addresses may be asked for a picture: URLs read strictly, hosts looked up by us.

A table from a stranger may name `http://192.168.0.1/reboot` or a host whose name leads
there. A URL is read once, here; its host is looked up once, here; and the connection goes
to the very address that was checked, so that a name which answers differently the next
time gains nothing.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ..errors import ImageError

LONGEST = 8000  # characters of a URL; servers take about as many
PORTS = {"http": 80, "https": 443}
OTHER_PORTS = range(1024, 65536)  # below are mail, remote shells and the like
Resolve = Callable[[str, int], list[str]]

_UNUSABLE = re.compile("[\x00-\x1f\x7f\\\\\ud800-\udfff]")
_LABEL = "[a-z0-9_][a-z0-9_-]{0,62}"  # what is between the dots of a name
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address in its last 32 bits


class Refused(ImageError):
    """An address that is not asked, whatever would answer there."""


class Address(NamedTuple):
    """A URL, taken apart. `host` is ASCII, without brackets; `target` is what a request
    asks for: path and query, percent-encoded."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def netloc(self) -> str:
        """Host and port as a Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL in the one form that all its spellings share."""
        return f"{self.scheme}://{self.netloc}{self.target}"


def parse(url: str) -> Address:
    """A URL, as strangers write them: blanks and other alphabets are encoded.

    Raises Refused for what is no http(s) URL, names a user, or a port that is neither the
    scheme's own nor above 1023.
    """
    url = url.strip(" \t\r\n")
    if not url:
        raise Refused("the cell is empty")
    if len(url) > LONGEST:
        raise Refused(f"a URL of more than {LONGEST:,} characters")
    if _UNUSABLE.search(url):
        raise Refused("not a URL: it holds a backslash or a character that is no text")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # brackets that do not match, or a port that is no number
        raise Refused("not a URL: its host or port makes no sense") from None
    if parts.scheme not in PORTS:
        raise Refused("not an http:// or https:// URL")
    if "@" in parts.netloc:
        raise Refused("a URL with a user name in it")
    if port is None:
        port = PORTS[parts.scheme]
    elif port not in PORTS.values() and port not in OTHER_PORTS:
        raise Refused(f"a URL with the port {port}: only 80, 443 and above 1023 are asked")
    return Address(parts.scheme, _host(parts), port, _target(parts))


def _host(parts: SplitResult) -> str:
    """The host in ASCII: a name in lower case, or an IP address in its short form."""
    host = (parts.hostname or "").removesuffix(".")
    if "[" in parts.netloc:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            address = None
        if address is None or address.scope_id:  # "%eth0"
            raise Refused("not a URL: its host makes no sense")
        return address.compressed
    if not host.isascii():
        host = _ascii(host)
    if not _NAME.fullmatch(host) or len(host) > 253:
        raise Refused("not a URL: its host makes no sense")
    return host


def _ascii(host: str) -> str:
    """A name in any alphabet as the name system knows it (UTS 46, as browsers do)."""
    import idna

    try:
        return idna.encode(host, uts46=True).decode("ascii").removesuffix(".")
    except idna.IDNAError:
        raise Refused("not a URL: its host makes no sense") from None


def _target(parts: SplitResult) -> str:
    # "%" stays: what is encoded already must not be encoded again.
    path = quote(parts.path or "/", safe="/%:;=@!$&'()*+,~")
    return f"{path}?{quote(parts.query, safe='/%:;=@!$&()*+,~?')}" if parts.query else path


def redirected(address: Address, location: str) -> Address:
    """Where a redirect leads. Raises Refused for all that `parse()` refuses, and for
    leaving https: what was asked for safely must not arrive by a way open to all."""
    with suppress(UnicodeError):
        # Headers arrive as Latin-1; what servers write there is UTF-8.
        location = location.encode("latin-1").decode()
    try:
        url = urljoin(address.url, location.strip())
    except ValueError:
        raise Refused("redirects to what is no URL") from None
    try:
        there = parse(url)
    except Refused as error:
        raise Refused(f"redirects to another place, which is {error}") from None
    if (address.scheme, there.scheme) == ("https", "http"):
        raise Refused("redirects from https to http, which is not followed")
    return there


def look_up(host: str, port: int) -> list[str]:
    """The IP addresses of a host, in the order in which to try them. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


def checked(address: Address, resolve: Resolve) -> list[str]:
    """The IP addresses of a URL's host, all of them public.

    One that is not is enough to refuse: no public picture lies at a name that leads into
    somebody's own network as well. Raises Refused, or OSError from `resolve`.
    """
    found = resolve(address.host, address.port)
    if not all(is_public(ip) for ip in found):
        raise Refused(
            "at an address that is not public: this computer, or its own network (see "
            "--allow-private-addresses)"
        )
    return found


def is_public(ip: str) -> bool:
    """True for addresses of the public internet: global unicast by IANA's registries.

    Not for private, loopback, link-local, shared (100.64.0.0/10), multicast, reserved or
    unspecified ones and for Teredo, nor for IPv6 addresses that carry one of these inside
    (IPv4-mapped, NAT64, 6to4).
    """
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    if address.version == 4:
        return address.is_global and not (address.is_multicast or address.is_reserved)
    inner = address.ipv4_mapped or address.sixtofour
    if address in _NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if inner is not None:
        return is_public(str(inner))
    return address in _GLOBAL_UNICAST and address.is_global
