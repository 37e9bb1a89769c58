"""The fixtures that go with `cloud.py`: name it in `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cloud import Server, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server with an empty bucket."""
    with server.empty(monkeypatch) as emptied:
        yield emptied
