"""`embed --watch` outlives a store that goes away for a while."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datasette_image_similarity.cli import embed as command
from datasette_image_similarity.cli.base import Reporter
from datasette_image_similarity.collection import EncoderOptions
from datasette_image_similarity.embed import Summary
from datasette_image_similarity.errors import StoreError
from datasette_image_similarity.trust import Vouched


class Coming:
    """A collection whose store is there, away, and there again."""

    def __init__(self, *results: Summary | StoreError) -> None:
        self.results = list(results)
        self.vouched = Vouched(Path("x.db"))

    def embed(self, **_: Any) -> Summary:
        result = self.results.pop(0)
        if isinstance(result, StoreError):
            raise result
        return result


def watch(collection: Any, path: Path) -> Summary:
    return command._until_told(
        collection,
        EncoderOptions("hog"),
        False,
        True,
        Reporter(path, quiet=False),
        lambda: not collection.results,
    )


def test_it_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(command, "_sleep", lambda *_: None)
    away = StoreError("The store does not answer")
    last = Summary(embedded=2)
    assert watch(Coming(Summary(), away, away, last), tmp_path / "x.db") is last
    told = "".join(capsys.readouterr())
    assert told.count("does not answer: trying again in 10 seconds") == 2


def test_a_store_that_was_never_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        watch(Coming(StoreError("no"), Summary()), tmp_path / "x.db")
