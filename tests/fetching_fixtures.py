"""The fixtures that go with `fetching.py`: name it in `pytest_plugins`."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from fetching import Clock, Site

from datasette_image_similarity.fetch import Fetcher


@pytest.fixture
def site() -> Iterator[Site]:
    with closing(Site()) as site:
        yield site


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Fetcher]]:
    """Makes Fetchers that may ask this computer, with a cache of the test's."""
    made = []

    def make(**options: object) -> Fetcher:
        given = {"allow_private": True, "cache": tmp_path / "cache"}
        given |= {"clock": clock, "sleep": clock.sleep}
        made.append(Fetcher(**given | options))
        return made[-1]

    yield make
    for fetcher in made:
        fetcher.close()


@pytest.fixture
def dialled(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every IP address leads to the site; which ones were dialled is noted."""
    calls = []
    real = socket.create_connection

    def dial(place: tuple[str, int], *arguments: object) -> socket.socket:
        calls.append(place)
        return real(("127.0.0.1", site.port), *arguments)

    monkeypatch.setattr(
        "datasette_image_similarity.fetch.exchange.socket.create_connection", dial
    )
    return calls


@pytest.fixture
def secure(site: Site, tmp_path: Path) -> ssl.SSLContext:
    """Makes the site speak TLS as pictures.test, and gives what trusts it."""
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pictures.test")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("pictures.test")]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    file = tmp_path / "tls.pem"
    file.write_bytes(
        certificate.public_bytes(pem)
        + key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    site.speak_tls(server)
    return ssl.create_default_context(cadata=certificate.public_bytes(pem).decode())
