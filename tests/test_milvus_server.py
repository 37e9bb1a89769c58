"""What only a real Milvus server can show: being killed, being away, its indexes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engines import STARTER, MilvusServer

from datasette_image_similarity.errors import Stopped, StoreError
from datasette_image_similarity.stores import Entry, Space, pages
from datasette_image_similarity.stores.milvus import Milvus
from datasette_image_similarity.stores.tuning import tune

pytest.importorskip("pymilvus", reason="needs pymilvus")

SPACE = Space("an encoder", 16, "cosine")


def entries(count: int) -> list[Entry]:
    vectors = np.random.default_rng(0).normal(size=(count, SPACE.dimensions))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        Entry(f"db/t/{number}", vector.astype("<f4").tobytes(), f"{number:064d}")
        for number, vector in enumerate(vectors)
    ]


@pytest.fixture
def index(milvus: MilvusServer) -> Iterator[Milvus]:
    """Empty, with no index: the same collection for every test."""
    index = Milvus(milvus.url("shared"), SPACE)
    index.ensure()
    yield index
    for page in pages(index, None, 10_000):
        index.delete(known.id for known in page)
    index.close()


@pytest.fixture
def indexed(milvus: MilvusServer) -> Iterator[Milvus]:
    """For a test that makes indexes, with 1,500 vectors."""
    index = Milvus(milvus.url("indexed"), SPACE)
    index.ensure()
    if not index.stats().count:
        index.upsert(entries(1500))
    yield index
    index.close()


def caught_up(index: Milvus) -> None:
    """Wait until a server that was started again has read its log."""
    end = time.monotonic() + 120
    while True:
        try:
            index.ensure()
            index.ids(limit=1)
            return
        except StoreError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def test_killed_while_it_is_written_to(milvus: MilvusServer, index: Milvus) -> None:
    everything = entries(20_000)
    acknowledged: list[Entry] = []
    problems: list[Exception] = []

    def write() -> None:
        try:
            for start in range(0, len(everything), 100):
                index.upsert(everything[start : start + 100])
                acknowledged.extend(everything[start : start + 100])
        except Exception as error:
            problems.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    while len(acknowledged) < 1000 and writer.is_alive():
        time.sleep(0.001)
    milvus.kill()
    writer.join()
    assert [type(problem) for problem in problems] == [StoreError]
    assert "does not answer" in str(problems[0])
    with pytest.raises(StoreError, match="does not answer"):  # in little time: see below
        index.search(everything[0].vector, 1)

    milvus.start()
    caught_up(index)  # the same object
    there = {known.id for page in pages(index, None, 10_000) for known in page}
    assert {entry.id for entry in acknowledged} <= there
    index.upsert(everything[:3000])
    index.upsert(everything[2000:4000])
    assert index.stats({"id": [entry.id for entry in everything[:4000]]}).count == 4000
    found = index.vectors([entry.id for entry in everything[:4000]])
    assert found == {entry.id: entry.vector for entry in everything[:4000]}


def test_one_that_accepts_and_says_nothing_is_given_up(milvus: MilvusServer) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"milvus://127.0.0.1:{silent.getsockname()[1]}/name"
        started = time.monotonic()
        with pytest.raises(StoreError, match=f"127.0.0.1:{silent.getsockname()[1]}"):
            Milvus(url, SPACE, deadline=0.5).search(entries(1)[0].vector, 1)
        assert time.monotonic() - started < 10  # pymilvus by itself tries much longer


def test_one_that_is_not_there_is_told_in_words() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"milvus://127.0.0.1:{closed.getsockname()[1]}/name"
        with pytest.raises(StoreError, match=r"does not answer: .*refused"):
            Milvus(url, SPACE).ensure()


def test_a_collection_that_vanishes_is_told_in_words(index: Milvus) -> None:
    vector = entries(1)[0].vector
    index.upsert(entries(5))
    index._ask("drop_collection")
    for call in (
        lambda: index.search(vector, 1),
        lambda: index.upsert(entries(1)),
        lambda: index.delete(["db/t/1"]),
        lambda: index.ids(),
        lambda: index.vectors(["db/t/1"]),
        lambda: index.stats(),
    ):
        with pytest.raises(StoreError, match=r"'shared' .* is not there"):
            call()
    index.ensure()
    assert index.stats().count == 0


def test_one_of_another_space_is_not_searched(index: Milvus) -> None:
    index.upsert(entries(5))
    for other in (replace(SPACE, dimensions=8), replace(SPACE, fingerprint="other")):
        reader = Milvus(index.url, other)
        with pytest.raises(StoreError, match="another space"):
            reader.search(bytes(4 * other.dimensions), 1)
        with pytest.raises(StoreError, match="another space"):
            reader.upsert([Entry("db/t/1", bytes(4 * other.dimensions), "")])


def test_a_collection_that_somebody_else_made_is_left_alone(milvus: MilvusServer) -> None:
    from pymilvus import MilvusClient

    client = MilvusClient(f"http://127.0.0.1:{milvus.port}")
    client.create_collection("theirs", 16)
    try:
        with pytest.raises(StoreError, match="something else"):
            Milvus(milvus.url("theirs"), SPACE).ensure()
        assert client.has_collection("theirs")
    finally:
        client.drop_collection("theirs")
        client.close()


def test_what_is_too_long_is_refused_before_anything_is_written(index: Milvus) -> None:
    good, bad = entries(2)
    for broken in (
        bad._replace(id=f"db/t/{'x' * 70_000}"),
        bad._replace(id=f"{'x' * 2000}/t/1"),
        bad._replace(sha256="0" * 65),
        bad._replace(id="no id"),
        bad._replace(id="db/t/\ud800"),
    ):
        with pytest.raises(StoreError):
            index.upsert([good, broken])
    assert index.stats().count == 0
    with pytest.raises(StoreError, match="16,384"):
        index.search(good.vector, 20_000)


def test_ids_are_in_order_over_several_segments(index: Milvus) -> None:
    everything = entries(6000)
    drawn = np.random.default_rng(0).permutation(6000)
    for part in np.array_split(drawn, 3):
        index.upsert([everything[number] for number in part])
        index._ask("flush")  # closes a segment
    listed = [known.id for page in pages(index, None, 999) for known in page]
    assert listed == sorted(entry.id for entry in everything)


def test_threads_share_one(index: Milvus) -> None:
    everything = entries(200)
    index.upsert(everything)
    found: dict[str, str] = {}

    def look_up(part: list[Entry]) -> None:
        for entry in part:
            found[entry.id] = index.search(entry.vector, 1)[0].id

    threads = [threading.Thread(target=look_up, args=(everything[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {entry.id: entry.id for entry in everything}


INDEXES: dict[str, dict[str, Any]] = {
    # HNSW and IVF_FLAT have tests of their own below.
    "IVF_SQ8": {"nlist": 16},
    "IVF_PQ": {"nlist": 16, "m": 8, "nbits": 4},
    "SCANN": {"nlist": 16},
    "FLAT": {},
}


def test_every_type_of_index_is_built_and_finds(indexed: Milvus) -> None:
    everything = entries(1500)
    query = np.frombuffer(everything[0].vector, "<f4")
    vectors = np.frombuffer(b"".join(entry.vector for entry in everything), "<f4")
    wanted = 1 - vectors.reshape(-1, 16) @ query
    for type, params in INDEXES.items():
        indexed.index_with(type, params)
        stats = indexed.stats()
        assert (stats.index["type"], stats.exact) == (type, type == "FLAT")
        assert {name: int(stats.index[name]) for name in params} == params
        hits = indexed.search(everything[0].vector, 10)
        assert hits[0].id == everything[0].id
        # Those shown are true, whatever was compared with.
        for hit in hits:
            true = wanted[int(hit.id.rpartition("/")[2])]
            assert hit.distance == pytest.approx(true, abs=1e-5)


def test_an_index_that_is_refused_leaves_the_one_there_was(indexed: Milvus) -> None:
    indexed.index_with("HNSW", {"M": 8, "efConstruction": 32})
    with pytest.raises(StoreError, match="refuses"):
        indexed.index_with("NONE_SUCH")
    assert indexed.stats().index["M"] == "8"
    # The server of the wheel takes this one, and then fails at it for ever.
    with pytest.raises(StoreError, match="does not build"):
        indexed.index_with("DISKANN", patience=1)
    assert indexed.stats().index["M"] == "8"
    assert len(indexed.search(entries(1)[0].vector, 5)) == 5


def test_the_search_is_as_thorough_as_the_recall_takes(indexed: Milvus) -> None:
    indexed.index_with("IVF_FLAT", {"nlist": 32})
    told: list[str] = []
    low = tune(indexed, 0.3, say=lambda what, done, total: told.append(what))
    high = tune(indexed, 0.95)
    assert "comparing with every vector" in told
    assert (
        low.search_params["nprobe"]
        < high.search_params["nprobe"]
        == indexed.search_params["nprobe"]
    )
    assert low.recall < high.recall
    assert low.recall >= 0.25
    assert high.recall >= 0.93
    assert (high.queries, high.type, high.params) == (200, "IVF_FLAT", {"nlist": "32"})
    with pytest.raises(Stopped):
        tune(indexed, 0.95, stop=lambda: True)


def test_a_port_that_is_taken_is_told(milvus: MilvusServer) -> None:
    import subprocess
    import sys

    command = [sys.executable, STARTER, f"--port={milvus.port}", f"--data={milvus.folder}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f"127.0.0.1:{milvus.port}" in ended.stderr
