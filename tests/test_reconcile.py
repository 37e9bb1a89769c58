"""`reconcile` finds what the database and a store have otherwise, and makes them agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from core import answer, command, embed, opened, refused, sql, value
from stored import change, drop, in_store, shas, vectors

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import StoreError
from datasette_image_similarity.stores import Entry, reconciling
from datasette_image_similarity.stores.remote import RemoteVectors
from datasette_image_similarity.stores.sending import send_waiting

pytest.importorskip("milvus_lite", reason="needs milvus-lite")


def store(path: Path) -> str:
    return value(path, "select store from _image_similarity_collections")


def send(path: Path) -> None:
    with opened(path) as conn:
        send_waiting(conn, db.find_collection(conn, "images"))


def spoil(path: Path, source: str | None = None) -> None:
    """One vector lost, one that is no picture's, one of other bytes."""
    with opened(path) as conn:
        remote = RemoteVectors(conn, db.find_collection(conn, "images"))
        lost, other = remote.id_of(3), remote.id_of(7)
        vector = remote.index.vectors([other])[other]
        remote.index.delete([lost])
        surplus = f"{source or remote.collection.store_id}/999"
        remote.index.upsert([Entry(surplus, vector, "c" * 64)])
        remote.index.upsert([Entry(other, vector, "d" * 64)])


def found(*arguments: object) -> tuple[int, int, int, int]:
    told = answer("reconcile", *arguments)
    return told["lacking"], told["other"], told["surplus"], told["waiting"]


def test_all_is_well(moved: Path) -> None:
    done = command("reconcile", moved)
    assert done.exit_code == 0
    assert "24 pictures here, 24 vectors in" in done.output
    assert "All is well." in done.output


def test_differences_are_found_and_mended(moved: Path, made_once: Path) -> None:
    before = vectors(moved)
    spoil(moved)
    done = command("reconcile", moved)
    assert done.exit_code == 1
    for line in (
        "pictures without a vector there (1)",
        "vectors there of other bytes than the picture's (1)",
        "vectors there that are no picture's here (1)",
    ):
        assert line in done.output
    assert len(in_store(moved, store(moved))) == 24  # nothing was changed

    done = command("reconcile", moved, "--mend")
    assert done.exit_code == 0
    assert "embed" in done.output
    assert found(moved) == (0, 0, 0, 0)
    assert len(in_store(moved, store(moved))) == 22
    summary = embed(moved, made_once.parent / "photos", label_from_folder=True)
    assert (summary.embedded, summary.unchanged) == (2, 22)
    assert vectors(moved) == before


def test_vectors_of_others_are_left_alone(moved: Path) -> None:
    spoil(moved, "another/table")
    command("reconcile", moved, "--mend")
    there = in_store(moved, store(moved))
    assert [known.id for known in there if known.sha256 == "c" * 64] == [
        "another/table/999"
    ]
    with ImageCollection(moved) as collection:
        collection.remove()


def test_what_waits_to_be_sent_is_no_difference(moved: Path) -> None:
    change(moved, 2, "a" * 64)
    drop(moved, 3)
    done = command("reconcile", moved)
    assert done.exit_code == 1
    assert "changes that wait to be sent (2)" in done.output
    assert "without a vector" not in done.output
    done = command("reconcile", moved, "--mend")
    assert done.exit_code == 0
    assert "2 waiting changes were sent" in done.output
    assert sorted(known.sha256 for known in in_store(moved, store(moved))) == shas(moved)


def test_what_another_run_writes_meanwhile_is_not_mended_away(
    moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(moved)
    usual, written = reconciling.differences, []

    def written_after_they_were_listed(*arguments: Any) -> Any:
        for one in usual(*arguments):
            if not written:
                written.append(change(moved, 3, "a" * 64))  # which was lacking
                written.append(change(moved, 999, "c" * 64))  # which was surplus
                send(moved)
            yield one

    monkeypatch.setattr(reconciling, "differences", written_after_they_were_listed)
    assert found(moved, "--mend") == (0, 1, 0, 0)
    now = vectors(moved)
    assert (now[3], now[999]) == tuple(written)


def test_many_pages(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(moved)
    monkeypatch.setattr(reconciling, "AT_ONCE", 2)
    with ImageCollection(moved) as collection:
        done = collection.reconcile(mend=True)
        assert (done.lacking, done.other, done.surplus) == (1, 1, 1)
        assert collection.reconcile().differences == 0


def test_rows_that_are_gone(moved: Path) -> None:
    """Their items go with the next embed; until then both sides have them."""
    sql(moved, "delete from images where id = 4")
    assert found(moved) == (0, 0, 0, 0)


def test_vectors_in_the_file_are_for_verify(copied: Path) -> None:
    assert "verify" in refused("reconcile", copied)


def test_the_engine_away(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasette_image_similarity.stores.milvus import Milvus

    def away(*_: Any, **__: Any) -> None:
        raise StoreError("Milvus does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(Milvus, "ensure", away)
        assert "does not answer" in refused("reconcile", moved, "--mend")
    assert found(moved) == (0, 0, 0, 0)
