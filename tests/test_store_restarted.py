"""A Milvus that was started again says that it is ready before it has read its log: until
then it finds nothing, unless it is told to be consistent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datasette_image_similarity.stores import Found, Space
from datasette_image_similarity.stores.milvus import Milvus

VECTOR = np.array([0.6, 0.8], "<f4")
ROW = {"id": "photos/images/1", "sha256": "5", "embedding": VECTOR}


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Milvus:
    """A store whose server has one vector, and has not read its log yet."""

    def ask(method: str, *args: Any, **options: Any) -> Any:
        if method == "describe_index":
            return {"index_type": "FLAT"}
        there = [ROW] if options["consistency_level"] == "Strong" else []
        if method == "query":
            return there
        return [[{"id": row["id"], "distance": 1.0, "entity": row} for row in there]]

    index = Milvus("milvus://127.0.0.1:19530/photos", Space("encoder", 2, "cosine"))
    monkeypatch.setattr(index, "_ask", ask)
    return index


def test_a_vector_that_is_not_found_is_waited_for(index: Milvus) -> None:
    assert index.vectors([ROW["id"]]) == {ROW["id"]: VECTOR.tobytes()}


def test_a_search_that_finds_nothing_waits(index: Milvus) -> None:
    assert index.search(VECTOR.tobytes(), 1) == [Found(ROW["id"], 0.0, "5")]
