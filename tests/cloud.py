"""A server that speaks S3 on 127.0.0.1, for tests; what it was asked is noted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
OTHERS = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE")
FILES = {"AWS_CONFIG_FILE": "/nowhere", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}


class Bucket:
    """The bucket "photos" of a server, and the server's log."""

    def __init__(self, client: Any, endpoint: str, log: _Log) -> None:
        self.client, self.endpoint, self._log = client, endpoint, log

    def put(self, key: str, data: bytes, bucket: str = "photos") -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def put_many(self, objects: dict[str, bytes]) -> None:
        """As `put`, without asking the server, which is a thread of this process."""
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        for key, data in objects.items():
            s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object("photos", key, data)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket="photos", Key=key)

    def asked(self, method: str, part: str = "/photos/") -> int:
        """How many requests there were since this was asked last."""
        found = [line for line in self._log.lines if f"{method} " in line and part in line]
        self._log.lines.clear()
        return len(found)


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def serving(patch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A server with an empty bucket, which the environment names; skips without moto."""
    pytest.importorskip("s3fs", reason="needs s3fs")
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    boto3 = pytest.importorskip("boto3", reason="needs boto3")
    for name, value in (KEYS | FILES | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
        patch.setenv(name, value)
    for name in OTHERS:
        patch.delenv(name, raising=False)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    log, werkzeug = _Log(), logging.getLogger("werkzeug")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setattr(werkzeug, "propagate", False)
    werkzeug.addHandler(log)
    werkzeug.setLevel(logging.INFO)
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="photos")
    try:
        yield Bucket(client, endpoint, log)
    finally:
        moto_reset(endpoint)
        werkzeug.removeHandler(log)
        server.stop()


def moto_reset(endpoint: str) -> None:
    """Forget all buckets: moto keeps them for the whole process."""
    from urllib.request import Request, urlopen

    urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")).close()
