"""Two runs at once: the second one to write finds another collection than it began with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from core import embed, faults, value

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.errors import CollectionError

MEANWHILE = "Another run has changed the embeddings of 'images' meanwhile"


def replaced(path: Path) -> None:
    with ImageCollection(path) as collection:
        collection.reduce(3, replace=True)


def removed(path: Path) -> None:
    with ImageCollection(path) as collection:
        collection.remove()


def once(act: Callable[[], None]) -> Callable[..., None]:
    """Does it when it is called first, and nothing after that."""
    left = [act]
    return lambda *_: left.pop()() if left else None


@pytest.mark.parametrize("other", [replaced, removed])
@pytest.mark.parametrize("replace", [True, False])
def test_reduce(copied: Path, other: Callable[[Path], None], replace: bool) -> None:
    with ImageCollection(copied) as collection, pytest.raises(CollectionError) as refusal:
        collection.reduce(4, replace=replace, progress=once(lambda: other(copied)))
    assert MEANWHILE in str(refusal.value)
    assert faults(copied) == []


@pytest.mark.parametrize("other", [replaced, removed])
def test_embed(tmp_path: Path, photos: Path, other: Callable[[Path], None]) -> None:
    path = tmp_path / "gallery.db"
    embed(path, photos, limit=8)
    overtake = once(lambda: other(path))
    with pytest.raises(CollectionError, match=MEANWHILE):
        embed(path, batch_size=4, progress=lambda now: now.done and overtake())
    assert faults(path) == []
    if other is replaced:
        assert embed(path).embedded + value(path, "select count(*) from images") >= 24
        assert faults(path) == []
