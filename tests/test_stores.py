"""What every place that keeps vectors has to do, whichever it is."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasette_image_similarity import database as db
from datasette_image_similarity.errors import StoreError
from datasette_image_similarity.stores import Entry, Space, VectorIndex, pages
from datasette_image_similarity.stores.ids import entry_id

DIMENSIONS = 8
SPACE = Space("an encoder", DIMENSIONS, "cosine")
# Compound keys, some of them hostile: what quotes, escapes and separates somewhere.
ODD = [
    '"',
    "'",
    "\\",
    "\n",
    "\t",
    "a b",
    "ü☃😀",
    "%",
    "{x}",
    "[",
    "a,b",
    "a/b",
    "null",
    "-",
]
KEYS = [("p", part) for part in ODD] + [("q", f"{n:x}{'é' * (n % 3)}") for n in range(2500)]
SHA = [f"{n % 100:064d}" for n in range(len(KEYS))]


@dataclass
class Shelf:
    """A store of one kind: `open()` makes objects for the same vectors.

    `ids` are those it takes, of one source; it has none of them yet.
    """

    open: Callable[..., VectorIndex]
    ids: list[str]
    sources: int = 1  # how many it can hold

    def entries(self, count: int, space: Space = SPACE, seed: int = 0) -> list[Entry]:
        vectors = random_vectors(count, space, seed)
        return [
            Entry(id, vector.tobytes(), sha)
            for id, vector, sha in zip(self.ids, vectors, SHA, strict=False)
        ]


def random_vectors(count: int, space: Space = SPACE, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, space.dimensions))
    if space.metric == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype("<f4")


def ids_of(source: str) -> list[str]:
    return [entry_id(source, key) for key in KEYS]


@pytest.fixture(params=["sqlite", "milvus-lite", "milvus"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    made: list[VectorIndex] = []
    make = {"sqlite": sqlite, "milvus-lite": milvus_lite, "milvus": milvus_server}
    opened, source, sources = make[request.param](request, tmp_path)

    def remembered(space: Space = SPACE) -> VectorIndex:
        made.append(opened(space))
        return made[-1]

    yield Shelf(remembered, ids_of(source), sources)
    for index in made:
        index.close()


def sqlite(request: pytest.FixtureRequest, folder: Path) -> tuple:
    from datasette_image_similarity.stores.sqlite import SqliteVec

    path = folder / "file.db"
    connections: list[Any] = []

    def opened(space: Space) -> VectorIndex:
        conn = db.connect(path, create=True)
        connections.append(conn)
        db.migrate(conn)
        if not db.table_exists(conn, "pictures"):
            with db.transaction(conn):
                conn.execute("create table pictures (a, b, path, primary key (a, b))")
                conn.executemany("insert into pictures values (?, ?, null)", KEYS)
            make_collection(conn, space)
        collection = db.find_collection(conn, "pictures")
        wanted = {"dimensions": space.dimensions, "metric": space.metric}
        return SqliteVec(conn, replace(collection, fingerprint=space.fingerprint, **wanted))

    request.addfinalizer(lambda: [conn.close() for conn in connections])
    return opened, "file/pictures", 1


def make_collection(conn: Any, space: Space) -> None:
    db.create_collection(
        conn,
        name="default",
        table="pictures",
        source="path",
        column="path",
        encoder="{}",
        fingerprint=space.fingerprint,
        dimensions=space.dimensions,
        metric=space.metric,
        thumbnails=False,
    )


def milvus_lite(request: pytest.FixtureRequest, folder: Path) -> tuple:
    pytest.importorskip("pymilvus", reason="needs pymilvus")
    manager = pytest.importorskip("milvus_lite.server_manager", reason="needs milvus-lite")
    from datasette_image_similarity.stores.milvus import Milvus

    file = folder / "file.db"
    request.addfinalizer(lambda: manager.server_manager_instance.release_server(str(file)))
    return (lambda space: Milvus(f"milvus-lite:{file}", space)), "file/pictures", 2


def milvus_server(request: pytest.FixtureRequest, folder: Path) -> tuple:
    server = request.getfixturevalue("milvus")
    from datasette_image_similarity.stores.milvus import Milvus

    spaces: list[Space] = []

    def opened(space: Space) -> VectorIndex:
        spaces.append(space)
        return Milvus(server.url(f"contract_{spaces[0].metric}"), space)

    def empty() -> None:
        # A collection takes seconds to make, and to load: it stays for the next test.
        index = opened(spaces[0])
        for page in pages(index):
            index.delete(known.id for known in page)
        index.close()

    request.addfinalizer(empty)
    return opened, "file/pictures", 2


def distances(query: np.ndarray, vectors: np.ndarray, metric: str) -> np.ndarray:
    query, vectors = query.astype(float), vectors.astype(float)
    if metric == "cosine":
        return 1 - vectors @ query
    return np.linalg.norm(vectors - query, axis=1)


def test_what_is_written_is_found_replaced_and_taken_out(shelf: Shelf) -> None:
    index = shelf.open()
    index.ensure()
    index.ensure()
    entries = shelf.entries(50)
    index.upsert(entries)
    index.upsert(entries[:20])  # once more: nothing changes
    assert index.stats().count == 50
    assert index.vectors([*shelf.ids[:3], shelf.ids[60]]) == {
        entry.id: entry.vector for entry in entries[:3]
    }
    new = entries[0]._replace(vector=entries[1].vector, sha256="f" * 64)
    index.upsert([new])
    assert index.vectors([new.id]) == {new.id: new.vector}
    hits = {hit.id: hit for hit in index.search(new.vector, 2)}
    assert set(hits) == {entries[0].id, entries[1].id}
    assert hits[new.id].sha256 == "f" * 64
    index.delete([new.id, shelf.ids[60]])
    index.delete([new.id])
    index.delete([])
    assert index.stats().count == 49
    assert index.vectors([new.id]) == {}
    assert new.id not in {hit.id for hit in index.search(new.vector, 50)}


def test_an_id_twice_in_one_batch_is_one_vector(shelf: Shelf) -> None:
    index = shelf.open()
    index.ensure()
    first, second = shelf.entries(2)
    index.upsert([first, first._replace(vector=second.vector)])
    assert index.stats().count == 1
    assert index.vectors([first.id]) == {first.id: second.vector}


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_nearest_are_those_of_numpy(shelf: Shelf, metric: str) -> None:
    space = replace(SPACE, metric=metric)
    index = shelf.open(space)
    index.ensure()
    entries = shelf.entries(300, space)
    index.upsert(entries)
    vectors = random_vectors(300, space)
    for query in (vectors[7], random_vectors(1, space, 5)[0]):
        wanted = distances(query, vectors, metric)
        hits = index.search(query.tobytes(), 12)
        assert [hit.id for hit in hits] == [shelf.ids[n] for n in wanted.argsort()[:12]]
        assert [hit.distance for hit in hits] == pytest.approx(
            np.sort(wanted)[:12], abs=1e-5 if metric == "cosine" else 1e-3
        )
        assert [hit.sha256 for hit in hits] == [SHA[n] for n in wanted.argsort()[:12]]
    assert len(index.search(query.tobytes(), 1000)) == 300
    assert index.search(query.tobytes(), 0) == []


def test_ties_are_told_apart_by_id(shelf: Shelf) -> None:
    index = shelf.open()
    index.ensure()
    entries = shelf.entries(40)
    same = [entry._replace(vector=entries[0].vector) for entry in entries[:30]]
    index.upsert([*same[::-1], *entries[30:]])
    wanted = sorted(entry.id for entry in same)
    for k in (5, 30):
        hits = index.search(entries[0].vector, k)
        assert [hit.id for hit in hits] == wanted[:k]


def test_searches_and_lists_are_narrowed(shelf: Shelf) -> None:
    index = shelf.open()
    index.ensure()
    entries = shelf.entries(300)
    index.upsert(entries)
    query, ids = entries[0].vector, shelf.ids
    source = ids[0].rpartition("/")[0]

    def found(where: dict[str, Any]) -> set[str]:
        hits = {hit.id for hit in index.search(query, 1000, where)}
        assert hits == {known.id for known in index.ids("", 1000, where)}
        assert index.stats(where).count == len(hits)
        return hits

    for id in ids[: len(ODD)]:
        assert [hit.id for hit in index.search(query, 5, {"id": id})] == [id]
    assert found({"id": ids[3]}) == {ids[3]}
    assert found({"id": [*ids[:40], *ids[:40], ids[500]]}) == set(ids[:40])
    assert found({"sha256": SHA[3]}) == {ids[3], ids[103], ids[203]}
    both = {ids[n] for n in (3, 4, 103, 104, 203, 204)}
    assert found({"sha256": [SHA[3], SHA[4]]}) == both
    assert found({"source": source}) == set(ids[:300])
    assert found({"source": [source, "no/such"], "sha256": SHA[3], "id": ids[:99]}) == {
        ids[3]
    }
    for none in ({"id": []}, {"source": "no/such"}, {"id": ids[0], "sha256": []}):
        assert found(none) == set()


def test_ids_are_listed_in_order_of_their_code_points(shelf: Shelf) -> None:
    index = shelf.open()
    index.ensure()
    entries = shelf.entries(len(KEYS))
    for start in range(0, len(entries), 900):
        index.upsert(entries[start : start + 900])
    index.delete(shelf.ids[100:200])
    wanted = sorted(entry[::2] for entry in [*entries[:100], *entries[200:]])
    listed = list(pages(index, None, 700))
    assert [len(page) for page in listed] == [700, 700, 700, 314]
    assert [tuple(known) for page in listed for known in page] == wanted
    assert index.ids(wanted[41][0], 2) == wanted[42:44]
    assert index.ids(wanted[-1][0]) == []


def test_a_vector_that_is_none_is_refused_with_all_the_others(shelf: Shelf) -> None:
    index = shelf.open()
    index.ensure()
    good, bad = shelf.entries(2)
    short, endless = bad.vector[:-4], bad.vector[:-4] + np.float32(math.inf).tobytes()
    for vector in (short, endless, b""):
        with pytest.raises(StoreError):
            index.upsert([good, bad._replace(vector=vector)])
        assert index.stats().count == 0


@pytest.mark.parametrize(
    "other",
    [
        replace(SPACE, fingerprint="another encoder"),
        replace(SPACE, dimensions=4),
        replace(SPACE, metric="l2"),
    ],
    ids=["encoder", "dimensions", "metric"],
)
def test_vectors_of_another_space_are_refused(shelf: Shelf, other: Space) -> None:
    index = shelf.open()
    index.ensure()
    index.upsert(shelf.entries(3))
    with pytest.raises(StoreError):
        shelf.open(other).ensure()
    assert index.stats().count == 3


def test_two_that_write_at_once_lose_nothing(shelf: Shelf) -> None:
    shelf.open().ensure()
    entries = shelf.entries(600)
    problems: list[Exception] = []

    def write(part: list[Entry]) -> None:
        try:
            index = shelf.open()
            for start in range(0, len(part), 50):
                index.upsert(part[start : start + 50])
        except Exception as error:
            problems.append(error)

    halves = [entries[:400], entries[200:]]  # some are written by both
    threads = [threading.Thread(target=write, args=(half,)) for half in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    index = shelf.open()
    assert index.stats().count == 600
    assert index.vectors(shelf.ids[:600]) == {entry.id: entry.vector for entry in entries}


def test_after_closing_it_opens_again_by_itself(shelf: Shelf) -> None:
    index = shelf.open()
    index.ensure()
    index.upsert(shelf.entries(3))
    index.close()
    index.close()
    assert index.stats().count == 3


def test_what_one_source_has_is_cleared(shelf: Shelf) -> None:
    index = shelf.open()
    index.ensure()
    index.upsert(shelf.entries(30))
    source = shelf.ids[0].rpartition("/")[0]
    others = ["file2/pictures/1", "file2/pictures/2"] if shelf.sources > 1 else []
    index.upsert(Entry(id, random_vectors(1)[0].tobytes(), SHA[0]) for id in others)
    index.clear({"source": source})
    if others:
        assert [known.id for known in index.ids()] == others
        index.clear({"source": "file2/pictures"})
    if not index.url.startswith("milvus://"):
        with pytest.raises(StoreError):  # nothing was left, so it is gone as a whole
            index.upsert(shelf.entries(1))
        index.ensure()
    index.upsert(shelf.entries(1))
    assert index.stats().count == 1


def test_what_another_writes_while_all_is_cleared_stays(shelf: Shelf) -> None:
    index, other = shelf.open(), shelf.open()
    if not index.url.startswith("milvus://"):
        pytest.skip("only a server takes several writers at once")
    index.ensure()
    index.upsert(shelf.entries(30))
    late = Entry("file2/pictures/1", random_vectors(1)[0].tobytes(), SHA[0])

    class Counting:
        """Somebody writes right after it was counted."""

        def __getattr__(self, name: str) -> object:
            return getattr(client, name)

        def drop_collection(self, *args: object, **options: object) -> None:
            other.upsert([late])
            client.drop_collection(*args, **options)

    client, index._client = index._client, Counting()
    index.clear({"source": shelf.ids[0].rpartition("/")[0]})
    other.upsert([late])
    assert [known.id for known in other.ids()] == [late.id]
