"""`verify` finds what vec0 does not tell; `--repair` leaves a database to go on with."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from core import answer, command, counts, embed, faults, opened, refused, sql, value

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.errors import CollectionError

VECTORS = "_image_similarity_vectors_1"

DAMAGE = {
    "rows emptied": f"delete from {VECTORS}_rowids",
    "chunks emptied": f"delete from {VECTORS}_chunks",
    "vectors emptied": f"delete from {VECTORS}_vector_chunks00",
    "one chunk lost": f"delete from {VECTORS}_chunks where chunk_id = 2",
    "one vector chunk lost": f"delete from {VECTORS}_vector_chunks00 where rowid = 2",
    "vectors cut off": f"update {VECTORS}_vector_chunks00 "
    "set vectors = substr(vectors, 1, 100)",
    "vectors of zeros": f"update {VECTORS}_vector_chunks00 "
    "set vectors = zeroblob(length(vectors))",
    "vectors that are text": f"update {VECTORS}_vector_chunks00 set vectors = 'x'",
    "nothing valid": f"update {VECTORS}_chunks set validity = zeroblob(length(validity))",
    "all but one valid": f"update {VECTORS}_chunks set validity = x'fe' where chunk_id = 1",
    "validity cut off": f"update {VECTORS}_chunks set validity = x''",
    "numbers cut off": f"update {VECTORS}_chunks set rowids = substr(rowids, 1, 12)",
    "numbers of two chunks swapped": f"update {VECTORS}_chunks set rowids = (select rowids "
    f"from {VECTORS}_chunks o where o.chunk_id = 3 - {VECTORS}_chunks.chunk_id) "
    "where chunk_id < 3",
    "two vectors swapped": f"update {VECTORS}_rowids "
    "set chunk_offset = 1 - chunk_offset where rowid in (1, 2)",
    "one number that points nowhere": f"update {VECTORS}_rowids "
    "set chunk_id = 99 where rowid = 5",
    "a table dropped": f"drop table {VECTORS}_vector_chunks00",
    "another table dropped": f"drop table {VECTORS}_chunks",
    "a third table dropped": f"drop table {VECTORS}_rowids",
    "the vec0 table dropped": f"drop table {VECTORS}",
    "an item lost": "delete from _image_similarity_items where id = 3",
    "items lost": "delete from _image_similarity_items",
    "a vector lost": f"delete from {VECTORS} where id = 4",
    "a row deleted": "delete from images where id = 4",
    "a row that names another file": "update images set path = 'x.png' where id = 4",
    "all rows deleted": "delete from images",
    "pictures miscounted": "update _image_similarity_collections set pictures = 99",
}


def put_vector(path: Path, item: int, numbers: list[float]) -> None:
    with opened(path) as conn:
        conn.execute(f"delete from {VECTORS} where id = ?", (item,))
        conn.execute(
            f"insert into {VECTORS} (id, embedding) values (?, ?)",
            (item, struct.pack(f"<{len(numbers)}f", *numbers)),
        )


def is_whole(path: Path) -> bool:
    with ImageCollection(path) as collection:
        return collection.status().embedded == 24 == len(collection.similar(1, k=99)) + 1


def test_a_sound_database_is_said_to_be_well(copied: Path) -> None:
    assert command("verify", copied).output == "All is well.\n"
    assert answer("verify", copied) == []
    assert command("verify", copied, "--repair").output == "All is well.\n"


def test_a_database_without_embeddings_is_well(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table t (x)")
    assert command("verify", path).output == "All is well.\n"


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_repaired_and_filled_in(copied: Path, kind: str) -> None:
    sql(copied, DAMAGE[kind])
    found = faults(copied)
    assert found
    assert faults(copied, repair=True) == found
    assert faults(copied) == []
    assert embed(copied).failed == 0
    assert faults(copied) == []
    assert is_whole(copied)


@pytest.mark.parametrize(
    "column", ["rowids.id", "rowids.chunk_id", "chunks.validity", "info.value"]
)
def test_a_part_of_vec0_without_a_column(copied: Path, column: str) -> None:
    """sqlite-vec 0.1.9 would crash the process."""
    part, _, name = column.partition(".")
    with opened(copied) as conn, conn:
        if part == "chunks":  # SQLite has no word to drop what others depend on
            table = "_image_similarity_vectors_1_chunks"
            conn.execute(f"create table kept as select chunk_id, size, rowids from {table}")
            conn.execute(f"drop table {table}")
            conn.execute(f"alter table kept rename to {table}")
        else:
            table = f"_image_similarity_vectors_1_{part}"
            conn.execute(f"alter table {table} drop column {name}")
    assert "are damaged: run" in refused("similar", copied, "images", 1)
    assert "the vec0 table is damaged" in command("verify", copied).output
    assert command("verify", copied, "--repair").exit_code == 0
    assert embed(copied).failed == 0
    assert is_whole(copied)


def test_the_command_exits_with_1_until_it_is_mended(copied: Path) -> None:
    sql(copied, f"delete from {VECTORS} where id = 4")
    result = command("verify", copied)
    assert result.exit_code == 1
    assert "items without a usable vector (1)" in result.output
    assert command("verify", copied, "--json").exit_code == 1
    mended = command("verify", copied, "--repair")
    assert mended.exit_code == 0
    assert "Run embed again" in mended.output
    assert counts(embed(copied)) == (1, 0, 23, 0, 0)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.0, 7.0])
def test_vectors_that_are_no_directions(copied: Path, number: float) -> None:
    length = value(copied, "select dimensions from _image_similarity_collections")
    put_vector(copied, 2, [number] * length)
    assert faults(copied) == ["items without a usable vector"]
    with ImageCollection(copied) as collection:
        if number == 7:  # it has a distance, but not the picture's
            with pytest.raises(CollectionError, match="verify DATABASE --repair"):
                collection.similar(1, k=99)
        else:
            assert len(collection.similar(1, k=99)) == 22  # still answers
    faults(copied, repair=True)
    assert embed(copied).embedded == 1
    assert is_whole(copied)


def test_orphans_are_dropped(copied: Path) -> None:
    sql(
        copied,
        "insert into _image_similarity_thumbnails "
        "values (999, cast('RIFF....WEBP' as blob))",
    )
    sql(
        copied,
        "insert into _image_similarity_failures (collection_id, path, reason) "
        "values (99, 'x', 'y')",
    )
    sql(
        copied,
        "insert into _image_similarity_items (collection_id, pk, size, sha256, width, "
        "height) values (99, 1, 1, 'x', 1, 1)",
    )
    assert sorted(faults(copied, repair=True)) == [
        "failures of no collection",
        "items of no collection",
        "thumbnails without an item",
    ]
    assert faults(copied) == []
    assert is_whole(copied)


def test_a_repair_keeps_vectors_that_are_right(copied: Path) -> None:
    before = sql(copied, f"select id, embedding from {VECTORS} where id <> 4 order by id")
    sql(copied, f"update {VECTORS}_chunks set validity = x'fe' where chunk_id = 1")
    sql(copied, "delete from images where id = 4")
    faults(copied, repair=True)
    assert sql(copied, f"select id, embedding from {VECTORS} order by id") == before


def test_a_table_that_is_gone_is_told_and_nothing_of_ours_is_dropped(copied: Path) -> None:
    sql(copied, "alter table images rename to pictures")
    assert faults(copied, repair=True) == [
        "the table or its column is gone: remove, or restore it"
    ]
    assert value(copied, "select count(*) from _image_similarity_items") == 24
    sql(copied, "alter table pictures rename to images")
    assert faults(copied) == []
    assert is_whole(copied)


def test_a_database_that_is_damaged_all_through_is_one_line(copied: Path) -> None:
    data = bytearray(copied.read_bytes())
    data[4096 : len(data) // 2] = bytes(len(data) // 2 - 4096)
    copied.write_bytes(data)
    for name in ("verify", "status"):
        result = command(name, copied)
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert len(result.output.splitlines()) == 1


def test_a_fingerprint_that_is_none_is_made_again(copied: Path) -> None:
    made = value(copied, "select fingerprint from _image_similarity_collections")
    sql(copied, "update _image_similarity_collections set fingerprint = '0'")
    assert "the fingerprint of the encoder is damaged" in command("verify", copied).output
    assert command("verify", copied, "--repair").exit_code == 0
    assert value(copied, "select fingerprint from _image_similarity_collections") == made
    assert command("embed", copied).exit_code == 0


def test_an_encoder_that_became_another_is_told(copied: Path) -> None:
    """Which of the two is right, the encoder or its fingerprint, nobody can tell."""
    other = "replace(encoder, '\"version\":', '\"version\":1')"
    sql(copied, f"update _image_similarity_collections set encoder = {other}")
    for words in ((), ("--repair",)):
        result = command("verify", copied, *words)
        assert result.exit_code == 1
        assert "an encoder that is not the one it was made with" in result.output


def test_a_root_goes_back_to_its_collection(copied: Path) -> None:
    """With another's, `embed` would add the same files to the user's table once more."""
    folder = value(copied, "select path from _image_similarity_roots")
    assert (
        command("embed", copied, folder, "--model", "hog", "--name", "far").exit_code == 0
    )
    swapped = "update _image_similarity_roots set collection_id = {} where id = {}"
    for collection, root in ((9, 1), (1, 2), (2, 1)):
        sql(copied, swapped.format(collection, root))
    assert "roots that are another collection's (2)" in command("verify", copied).output
    assert command("verify", copied, "--repair").exit_code == 0
    assert command("embed", copied, "--all").exit_code == 0
    assert value(copied, "select count(*) from images") == 24
    assert faults(copied) == []


def test_an_evaluation_with_numbers_beyond_all_bounds_is_dropped(copied: Path) -> None:
    assert command("evaluate", copied, "images", "--label", "label").exit_code == 0
    sql(copied, "update _image_similarity_classes set gallery = 9e999")
    assert command("verify", copied).exit_code == 1
    command("verify", copied, "--repair")
    assert faults(copied) == []
