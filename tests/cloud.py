"""A server that speaks S3 on 127.0.0.1, for tests; what it was asked is noted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import pytest

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": "/nowhere",
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    "AWS_EC2_METADATA_DISABLED": "true",
}
OTHERS = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE")


class Server:
    """The bucket "photos" of a server, and the server's log."""

    def __init__(self, client: Any, endpoint: str, log: _Log) -> None:
        self.client, self.endpoint, self._log = client, endpoint, log

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket="photos", Key=key, Body=data)

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

    @contextmanager
    def empty(self, patch: pytest.MonkeyPatch) -> Iterator[Server]:
        """It, with an empty bucket, as what the environment names."""
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": self.endpoint}).items():
            patch.setenv(name, value)
        for name in OTHERS:
            patch.delenv(name, raising=False)
        urlopen(Request(f"{self.endpoint}/moto-api/reset", method="POST")).close()
        self.client.create_bucket(Bucket="photos")
        self._log.lines.clear()
        yield self


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def serving() -> Iterator[Server]:
    """A running server; skips where there is none to run."""
    pytest.importorskip("s3fs", reason="needs s3fs")
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    boto3 = pytest.importorskip("boto3", reason="needs boto3")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=ENVIRONMENT["AWS_DEFAULT_REGION"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    log, werkzeug = _Log(), logging.getLogger("werkzeug")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(werkzeug, "propagate", False)
        patch.setattr(werkzeug, "level", logging.INFO)
        werkzeug.addHandler(log)
        try:
            yield Server(client, endpoint, log)
        finally:
            werkzeug.removeHandler(log)
            server.stop()


class FakeGcs:
    """Answers what the JSON API of Google Cloud Storage is asked here, from a dict."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.pages = 0

    def answer(self, target: str, range: str) -> tuple[int, bytes]:
        """Status and body for a path with its query."""
        import json
        from urllib.parse import parse_qs, unquote, urlsplit

        parts = urlsplit(target)
        query = {name: value[0] for name, value in parse_qs(parts.query).items()}
        bucket, _, key = parts.path.removeprefix("/storage/v1/b/").partition("/o")
        if bucket != "photos":
            return 404, b"{}"
        if not key:
            self.pages += 1
            names = sorted(n for n in self.objects if n.startswith(query.get("prefix", "")))
            start, count = int(query.get("pageToken", 0)), int(query["maxResults"])
            found = {"items": [self._facts(n) for n in names[start : start + count]]}
            if start + count < len(names):
                found["nextPageToken"] = str(start + count)
            return 200, json.dumps(found).encode()
        name = unquote(key[1:])
        if name not in self.objects:
            return 404, b"{}"
        if query.get("alt") != "media":
            return 200, json.dumps(self._facts(name)).encode()
        data = self.objects[name]
        if not data:
            return 416, b"{}"
        first, last = map(int, range.removeprefix("bytes=").split("-"))
        return 206, data[first : last + 1]

    def _facts(self, name: str) -> dict[str, str]:
        data = self.objects[name]
        generation = str(sum(data))
        when = "2026-01-02T03:04:05.678Z"
        size = str(len(data))
        return {"name": name, "size": size, "timeCreated": when, "generation": generation}
