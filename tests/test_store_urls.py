"""How stores are named, and how filters are written for Milvus. Nothing is connected to."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasette_image_similarity.errors import StoreError
from datasette_image_similarity.stores.milvus import expressions, parse


@pytest.mark.parametrize(
    ("url", "full"),
    [
        ("milvus://localhost/photos", "milvus://localhost:19530/photos"),
        ("milvus://10.0.0.1:5/Photos_2", "milvus://10.0.0.1:5/Photos_2"),
        ("milvuss://db.example.org/photos", "milvuss://db.example.org:19530/photos"),
        ("milvus://[::1]:5/photos", "milvus://[::1]:5/photos"),
        ("milvus-lite:/data/v.db", "milvus-lite:/data/v.db"),
        ("milvus-lite:../v.db", "milvus-lite:/some/v.db"),
    ],
)
def test_a_store_has_one_name(url: str, full: str) -> None:
    assert parse(url, Path("/some/folder")) == full
    assert parse(full) == full


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/photos",
        "photos.db",
        "milvus://localhost",
        "milvus:///photos",
        "milvus://localhost:99999/photos",
        "milvus://localhost/two words",
        "milvus://localhost/2photos",
        "milvus://localhost/a/b",
        "milvus://lo cal/photos",
        "milvus-lite:",
        "milvus-lite:/data/v.txt",
    ],
)
def test_what_is_no_store_is_told_in_words(url: str) -> None:
    with pytest.raises(StoreError):
        parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "milvus://root:hunter2@localhost/photos",
        "milvus://hunter2@localhost/photos",
        "milvus://localhost/photos?token=hunter2",
        "milvus://localhost/photos#hunter2",
        "https://root:hunter2@localhost/photos",
    ],
)
def test_secrets_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StoreError) as refused:
        parse(url)
    assert "hunter2" not in str(refused.value)
    if url.startswith("milvus"):
        assert "MILVUS_TOKEN" in str(refused.value)


def test_filters_are_quoted() -> None:
    hostile = 'x" or id != "\\\n'
    assert list(expressions({"id": hostile})) == [r'id in ["x\" or id != \"\\\n"]']
    assert list(expressions({"source": ["a", "b", "a"], "sha256": "c"})) == [
        'sha256 == "c" and source in ["a","b"]'
    ]
    assert list(expressions(None)) == [""]
    assert list(expressions({"id": [], "source": "a"})) == []
    with pytest.raises(StoreError, match="no field"):
        list(expressions({"id is not null or id": "x"}))


def test_a_long_list_is_asked_for_in_parts() -> None:
    parts = list(expressions({"id": [str(n) for n in range(25)], "source": "s"}, 10))
    assert [part.count(",") + 1 for part in parts] == [10, 10, 5]
    assert all(part.startswith('source == "s" and id in [') for part in parts)
