"""`move` brings vectors to another place, and loses none whatever happens meanwhile."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
from core import answer, command, embed, faults, opened, refused, sql, value
from stored import change, drop, in_store, release, shas, vectors

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import CollectionError, Stopped, StoreError
from datasette_image_similarity.stores import moving
from datasette_image_similarity.stores.milvus import Milvus
from datasette_image_similarity.stores.opening import space_of

pytest.importorskip("milvus_lite", reason="needs milvus-lite")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[str]:
    url = f"milvus-lite:{tmp_path}/vectors.db"
    yield url
    release(url)


@pytest.fixture(params=["milvus-lite", "milvus"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """As `lite`, and a real server."""
    if request.param == "milvus-lite":
        yield request.getfixturevalue("lite")
    else:
        yield request.getfixturevalue("milvus").url(f"moved_{secrets.token_hex(4)}")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five vectors a call."""
    monkeypatch.setattr(moving, "AT_ONCE", 5)
    monkeypatch.setattr(moving, "SENDERS", 1)


def move(path: Path, to: str, **options: Any) -> Any:
    with ImageCollection(path) as collection:
        return collection.move(to, **options)


def failed(*arguments: object) -> str:
    """What a command says that ends with an error, after it has begun."""
    done = command(*arguments)
    assert done.exit_code == 1, done.output
    return done.output


def store(path: Path) -> str:
    return value(path, "select store from _image_similarity_collections")


def test_there_and_back_nothing_has_changed(copied: Path, place: str) -> None:
    before, hits = vectors(copied), answer("similar", copied, "images", 12)
    moved = move(copied, place)
    assert (moved.origin, moved.to, moved.vectors, moved.sent) == ("", place, 24, 24)
    assert (moved.compared, moved.apart, moved.left) == (24, 0.0, None)
    assert store(copied) == place
    assert sql(copied, "select name from sqlite_master where name like '%vectors_1%'") == []
    assert vectors(copied) == before
    assert [h["pk"] for h in answer("similar", copied, "images", 12)] == [
        h["pk"] for h in hits
    ]
    assert faults(copied) == []

    assert "24 vectors are in" in command("move", copied, "--to", "sqlite").output
    assert store(copied) == ""
    assert vectors(copied) == before
    assert answer("similar", copied, "images", 12) == hits
    assert faults(copied) == []
    assert in_store(copied, place) == []
    assert value(copied, "select count(*) from _image_similarity_copies") == 0


def test_from_one_store_to_another(copied: Path, lite: str, tmp_path: Path) -> None:
    before = vectors(copied)
    move(copied, lite)
    other = f"milvus-lite:{tmp_path}/other.db"
    try:
        assert move(copied, other).sent == 24
        assert vectors(copied) == before
        assert in_store(copied, lite) == []
        assert len(in_store(copied, other)) == 24
    finally:
        release(other)


KILLED = """
import os, signal, sys
from pathlib import Path
import datasette_image_similarity.trust as trust
from datasette_image_similarity import ImageCollection
from datasette_image_similarity.stores import moving
from datasette_image_similarity.stores.milvus import Milvus
from datasette_image_similarity.stores.opening import space_of

path, to, owner, method, calls, folder = sys.argv[1:]
trust.click.get_app_dir = lambda *_: folder
moving.AT_ONCE, moving.SENDERS = 5, 1
owner = moving if owner == "moving" else getattr(moving, owner)
usual, left = getattr(owner, method), int(calls)

def killed(*arguments, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return usual(*arguments, **options)

setattr(owner, method, killed)
with ImageCollection(path) as collection:
    collection.move(to)
"""
MOMENTS = {
    "while copying": ("put", 2),
    "before it is switched": ("repoint", 0),
    "after it was switched": ("_left", 0),
}


CASES = [("milvus-lite", moment, back) for moment in MOMENTS for back in (False, True)]


@pytest.mark.parametrize(
    ("place", "moment", "back"),
    [*CASES, ("milvus", "while copying", False)],
    indirect=["place"],
)
def test_killed_it_goes_on(copied: Path, place: str, moment: str, back: bool) -> None:
    before, hits = vectors(copied), answer("similar", copied, "images", 12)
    to = place
    if back:
        move(copied, place)
        release(place)
        to = "sqlite"
    method, calls = MOMENTS[moment]
    owner = {"put": "InFile" if back else "InStore"}
    folder = click.get_app_dir("")  # of this test
    arguments = [copied, to, owner.get(method, "moving"), method, calls, folder]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    switched = method == "_left"
    assert (store(copied) == place) == (back != switched)
    assert vectors(copied) == before
    assert [h["pk"] for h in answer("similar", copied, "images", 12)] == [
        h["pk"] for h in hits
    ]
    moved = move(copied, to)  # goes on
    assert moved.sent == {"put": 14, "repoint": 0, "_left": 0}[method]
    assert (store(copied) == place) == (not back)
    assert vectors(copied) == before
    assert value(copied, "select count(*) from _image_similarity_copies") == 0
    assert len(in_store(copied, place)) == (0 if back else 24)


def test_all_again_goes_into_another_store(copied: Path, lite: str, tmp_path: Path) -> None:
    move(copied, lite)
    other = f"milvus-lite:{tmp_path}/other.db"
    with pytest.raises(CollectionError, match="move"):
        embed(copied, store=other)
    with pytest.raises(StoreError, match="another name in the URL"):
        embed(copied, force=True, metric="l2")
    try:
        summary = embed(copied, force=True, metric="l2", store=other)
        assert (summary.embedded, summary.left, store(copied)) == (24, [], other)
        assert len(in_store(copied, other)) == 24
        assert in_store(copied, lite) == []
    finally:
        release(other)


def test_another_move_is_quicker(
    copied: Path, lite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, put = f"milvus-lite:{tmp_path}/other.db", moving.InStore.put

    def slow(self: moving.InStore, *arguments: Any) -> None:
        monkeypatch.setattr(moving.InStore, "put", put)
        move(copied, other)
        put(self, *arguments)

    monkeypatch.setattr(moving.InStore, "put", slow)
    try:
        with pytest.raises(CollectionError, match="Another run"):
            move(copied, lite)
        assert store(copied) == other
        assert len(vectors(copied)) == 24
    finally:
        release(other)


def test_what_others_write_meanwhile_arrives(
    copied: Path, lite: str, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[int, bytes] = {}

    def write() -> None:
        number = len(written)
        if number == 0:
            drop(copied, 20)
            written[2] = change(copied, 2, "a" * 64)  # which was copied
        if number < 5:
            written[100 + number] = change(copied, 100 + number, f"{number}" * 64, 0.5)

    _then(monkeypatch, moving.InStore, "put", write)
    moved = move(copied, lite)
    assert moved.vectors == 24 - 1 + 4
    assert sorted(known.sha256 for known in in_store(copied, lite)) == shas(copied)
    now = vectors(copied)
    assert {key: now[key] for key in written} == written
    assert 20 not in now


def test_what_is_written_at_the_last_moment_arrives(
    copied: Path, lite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[int, bytes] = {}

    def write() -> None:
        if len(written) < moving.PATIENCE:  # then it would have to wait
            number = 100 + len(written)
            written[number] = change(copied, number, f"{number:064d}")

    _then(monkeypatch, moving._Copying, "until_equal", write)
    assert move(copied, lite).vectors == 24 + moving.PATIENCE
    now = vectors(copied)
    assert {key: now[key] for key in written} == written


def test_back_to_the_file_what_changed_meanwhile_arrives(
    copied: Path, lite: str, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    move(copied, lite)
    written: dict[int, bytes] = {}

    def write() -> None:
        if not written:
            written[2] = change(copied, 2, "a" * 64)  # which was copied, and is not sent
            drop(copied, 3)

    _then(monkeypatch, moving.InFile, "put", write)
    assert move(copied, "sqlite").vectors == 23
    now = vectors(copied)
    assert now[2] == written[2]
    assert len(now) == 23
    assert value(copied, "select count(*) from _image_similarity_unsent") == 0


def _then(
    monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, also: Callable[[], None]
) -> None:
    """After each call of a method something else happens."""
    usual = getattr(owner, method)

    def both(*arguments: Any) -> Any:
        done = usual(*arguments)
        also()
        return done

    monkeypatch.setattr(owner, method, both)


def test_the_engine_away_in_the_middle(
    copied: Path, lite: str, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls, usual = vectors(copied), [], Milvus.upsert

    def away(index: Milvus, entries: Any) -> None:
        calls.append(len(entries))
        if len(calls) > 2:
            raise StoreError("Milvus does not answer")
        usual(index, entries)

    with monkeypatch.context() as patch:
        patch.setattr(Milvus, "upsert", away)
        assert "does not answer" in failed("move", copied, "--to", lite)
    assert store(copied) == ""
    assert vectors(copied) == before
    assert move(copied, lite).sent == 14


def test_stopped_it_is_where_it_was(copied: Path, lite: str, small_steps: None) -> None:
    calls: list[int] = []
    with pytest.raises(Stopped):
        move(copied, lite, stop=lambda: calls.append(1) or len(calls) > 2)
    assert store(copied) == ""
    assert move(copied, lite).sent == 14


def test_a_copy_that_is_kept_is_no_older(copied: Path, lite: str) -> None:
    moved = move(copied, lite, keep=True)
    assert "still has them" in moved.left
    changed = change(copied, 2, "a" * 64)
    drop(copied, 3)
    assert move(copied, "sqlite", keep=True).sent == 1
    assert vectors(copied)[2] == changed
    assert move(copied, lite).sent == 1  # the store has the others still
    assert vectors(copied)[2] == changed


def test_kept_copies_go_when_they_are_not_wanted_any_more(copied: Path, lite: str) -> None:
    move(copied, lite, keep=True)
    assert "were dropped" in command("move", copied, "--to", lite).output
    assert sql(copied, "select name from sqlite_master where name like '%vectors_1%'") == []
    assert "already" in refused("move", copied, "--to", lite)


def test_vectors_that_are_missing_are_not_moved(copied: Path, lite: str) -> None:
    sql(copied, "delete from _image_similarity_vectors_1 where id = 5")
    assert "verify --repair" in refused("move", copied, "--to", lite)
    move_back = ImageCollection(copied)
    with move_back, pytest.raises(CollectionError, match="1 pictures"):
        move_back.move(lite)
    assert store(copied) == ""


def test_numbers_that_a_store_changes_are_seen(
    copied: Path, lite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = moving.InStore.put

    def wrong(place: Any, rows: Any, vectors: dict[int, bytes]) -> None:
        mixed = dict(zip(vectors, [*list(vectors.values())[1:], b""], strict=True))
        mixed[list(mixed)[-1]] = next(iter(vectors.values()))
        usual(place, rows, mixed)

    monkeypatch.setattr(moving.InStore, "put", wrong)
    assert "keeps other numbers" in failed("move", copied, "--to", lite)
    assert store(copied) == ""


def test_the_compressed_index_goes_and_that_is_said(copied: Path, lite: str) -> None:
    sql(
        copied,
        "insert into _image_similarity_indexes (collection_id, asked, lists, axes, "
        "trained, spread, model) values (1, .99, 1, 1, 1, 1, x'00')",
    )
    assert "compressed index went" in command("move", copied, "--to", lite).output
    assert value(copied, "select count(*) from _image_similarity_indexes") == 0


def test_removed_with_the_engine_away(
    copied: Path, lite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    move(copied, lite)

    def away(*_: Any) -> None:
        raise StoreError("Milvus does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(Milvus, "clear", away)
        done = command("remove", "--yes", copied, "images")
    assert done.exit_code == 0
    assert "still holds the vectors" in done.output
    assert sql(copied, "select name from sqlite_master where name like '_image_sim%'") == []


def test_what_is_made_of_vectors_in_a_store_is_in_the_file(copied: Path, lite: str) -> None:
    move(copied, lite)
    with opened(copied) as conn:
        space = space_of(db.find_collection(conn, "images"))
    with ImageCollection(copied) as collection:
        collection.reduce(8)
        assert collection.move("sqlite").sent == 24
        collection.move(lite)
        assert len(in_store(copied, lite)) == 24
        assert collection.reduce(8, replace=True).replaced
    stores = sql(copied, "select name, store from _image_similarity_collections")
    assert sorted(map(tuple, stores)) == [("default", ""), ("pca-8", "")]
    assert vectors(copied, "default") == vectors(copied, "pca-8")
    assert faults(copied) == []
    with closing(Milvus(lite, space)) as index:
        index.ensure()
        assert index.stats().count == 0


def test_where_a_smaller_collection_is_is_said(copied: Path, lite: str) -> None:
    move(copied, lite)
    done = command("reduce", copied, "--dims", 8)
    assert "in the database itself" in done.output
    assert "--name pca-8 --to milvus-lite:OTHER.db" in done.output
