"""Vectors written to a Parquet file, and taken in again: bit for bit, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import picture
from core import answer, command, embed, failures, faults, opened, refused, sql, value
from stored import in_store, release, vectors

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import CollectionError, Stopped
from datasette_image_similarity.vector_files import KEY, VectorFile

pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")

ITEMS = (
    "select pk, r.path, i.path, size, mtime_ns, sha256, width, height "
    "from _image_similarity_items i left join _image_similarity_roots r on r.id = root_id "
    "order by pk"
)


@pytest.fixture
def file(copied: Path, tmp_path: Path) -> Path:
    """The vectors of `copied`, which has none any more."""
    file = tmp_path / "vectors.parquet"
    done = command("export", copied, "--vectors", file)
    assert "24 vectors" in done.output
    return file


def removed(path: Path) -> Path:
    command("remove", "--yes", path)
    return path


def rewritten(
    file: Path,
    change: Callable[[pa.Table], pa.Table] = lambda table: table,
    **fields: Any,
) -> Path:
    """The file with other rows, or another record."""
    table = pq.read_table(file)
    record = json.loads(pq.ParquetFile(file).metadata.metadata[KEY])
    table = change(table)
    told = {**record, "count": table.num_rows, **fields}
    pq.write_table(table.replace_schema_metadata({KEY: json.dumps(told)}), file)
    return file


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        old = table.schema.field(name)
        column = values(table.column(name).to_pylist())
        if not isinstance(column, pa.Array):
            column = pa.array(column, type=old.type)
        return table.set_column(place, pa.field(name, column.type), column)

    return change


def with_first_vector(change: Callable[[list[float]], list[float]]) -> Any:
    return with_column("vector", lambda all: [change(list(all[0])), *all[1:]])


def test_what_is_in_the_file(copied: Path, file: Path) -> None:
    table = pq.read_table(file)
    dimensions = value(copied, "select dimensions from _image_similarity_collections")
    assert table.schema.field("vector").type == pa.list_(pa.float32(), dimensions)
    row = table.slice(11, 1).to_pylist()[0]
    assert row["id"] == "gallery/images/12"
    assert row["key"] == 12
    stored = vectors(copied)[12]
    assert pa.array(row["vector"], pa.float32()).to_numpy().tobytes() == stored
    assert row["path"] == value(copied, "select path from images where id = 12")
    with VectorFile(file) as opened_file:
        record = opened_file.record
    assert (record.count, record.dimensions, record.metric) == (24, dimensions, "cosine")
    assert json.loads(record.encoder)["model"] == "hog"
    assert list(file.parent.glob(".vectors*")) == []


def test_other_programs_read_it(file: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="needs duckdb")
    dimensions = pq.read_schema(file).field("vector").type.list_size
    found = duckdb.sql(
        f"with one as (select vector::float[{dimensions}] v from '{file}' where key = 12) "
        f"select key from '{file}', one "
        f"order by array_cosine_distance(vector::float[{dimensions}], v) limit 1"
    ).fetchall()
    assert found == [(12,)]


def test_taken_in_it_answers_the_same(copied: Path, file: Path) -> None:
    before, items = vectors(copied), sql(copied, ITEMS)
    hits = answer("similar", copied, "images", 12)
    removed(copied)
    done = command("import", copied, file)
    assert "24 vectors are the collection 'default'." in done.output
    assert vectors(copied) == before
    assert sql(copied, ITEMS) == items
    assert answer("similar", copied, "images", 12) == hits
    assert faults(copied) == []
    summary = embed(copied)  # nothing has to be embedded again
    assert (summary.embedded, summary.unchanged) == (0, 24)


def test_a_fresh_database_gets_the_rows_of_a_folder(
    copied: Path, file: Path, tmp_path: Path, made_once: Path
) -> None:
    fresh = tmp_path / "fresh.db"
    assert "the table 'images' was made" in command("import", fresh, file).output
    assert vectors(fresh) == vectors(copied)
    columns = "id, path, folder, name, width, height, bytes, sha256"
    assert sql(fresh, f"select {columns} from images") == sql(
        copied, f"select {columns} from images"
    )
    summary = embed(fresh, made_once.parent / "photos")
    assert (summary.embedded, summary.unchanged) == (0, 24)


def test_into_a_store_and_out_of_it(copied: Path, file: Path, tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    url = f"milvus-lite:{tmp_path}/store.db"
    before = vectors(copied)
    removed(copied)
    try:
        command("import", copied, file, "--store", url)
        assert len(in_store(copied, url)) == 24
        assert vectors(copied) == before
        other = tmp_path / "other.parquet"
        command("export", copied, "--vectors", other)
        one, two = (pq.read_table(name) for name in (file, other))
        assert one.drop_columns("id").equals(two.drop_columns("id"))
    finally:
        release(url)


def test_a_projection_comes_along(copied: Path, tmp_path: Path, photos: Path) -> None:
    with ImageCollection(copied) as collection:
        collection.reduce(8)
    file = tmp_path / "small.parquet"
    command("export", copied, "--vectors", file, "--name", "pca-8")
    upload = next((photos / "red").iterdir())
    before = answer("search", copied, upload, "--name", "pca-8")
    command("import", removed(copied), file)
    assert answer("search", copied, upload, "--name", "pca-8") == before


def test_compound_and_odd_keys(tmp_path: Path) -> None:
    path, file = tmp_path / "odd.db", tmp_path / "odd.parquet"
    keys = [("a,b", 1), ("/", 2), ("~", 3), ("ü\n", 4), ("5", 5)]
    with opened(path) as conn:
        conn.execute("create table t (a text, b, image blob, primary key (a, b))")
        conn.executemany(
            "insert into t values (?, ?, ?)",
            [(*key, picture("red", key[1])) for key in keys],
        )
    embed(path, table="t", blob_column="image")
    command("export", path, "--vectors", file)
    items = sql(path, ITEMS)
    command("import", removed(path), file)
    assert sql(path, ITEMS) == items
    assert embed(path, table="t", blob_column="image").unchanged == 5


def test_rows_that_are_missing_or_another_picture_are_left_out(
    copied: Path, file: Path
) -> None:
    removed(copied)
    sql(copied, "delete from images where id = 3")
    sql(copied, "update images set path = 'other.png' where id = 4")
    told = answer("import", copied, file)
    assert (told["vectors"], told["missing"], told["different"]) == (22, 1, 1)
    assert faults(copied) == []


def test_another_table_takes_nothing(copied: Path, file: Path) -> None:
    removed(copied)
    sql(copied, "update images set path = id || '.png'")
    assert "None of the 24 pictures" in failed("import", copied, file)
    sql(copied, "create table other (id integer primary key, title text)")
    assert "no column 'path'" in refused("import", copied, file, "--table", "other")
    assert sql(copied, "select name from sqlite_master where name like '_image%'") == []


def test_a_name_that_is_taken(copied: Path, file: Path) -> None:
    assert "--replace" in refused("import", copied, file)
    command("import", copied, file, "--name", "again")
    command("default", copied, "images", "again")
    before = vectors(copied, "again")
    command("import", copied, file, "--name", "again", "--replace")
    with opened(copied) as conn:
        assert [one.name for one in db.collections(conn)] == ["again", "default"]
    assert vectors(copied, "again") == before
    assert faults(copied) == []


def failed(*arguments: object) -> str:
    done = command(*arguments)
    assert done.exit_code == 1, done.output
    return done.output


def nan(vector: list[float]) -> list[float]:
    return [float("nan"), *vector[1:]]


def longer(vector: list[float]) -> list[float]:
    return [2 * number for number in vector]


def twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(0, 1)])


def as_numbers(values: list[str]) -> pa.Array:
    return pa.array(range(len(values)))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (lambda f: rewritten(f, with_first_vector(nan)), "not finite"),
    "too long": (lambda f: rewritten(f, with_first_vector(longer)), "length is not 1"),
    "an id twice": (lambda f: rewritten(f, twice), "twice"),
    "an id of others": (
        lambda f: rewritten(f, with_column("id", lambda all: ["x/y/1", *all[1:]])),
        "no picture's",
    ),
    "an id that is none": (
        lambda f: rewritten(f, with_column("id", lambda all: ["1", *all[1:]])),
        "no picture's",
    ),
    "a key that is none": (
        lambda f: rewritten(
            f, with_column("id", lambda all: ["gallery/images/x", *all[1:]])
        ),
        "no file's",
    ),
    "a key of 5,000 digits": (
        lambda f: rewritten(
            f,
            with_column("id", lambda all: ["gallery/images/" + "9" * 5000, *all[1:]]),
        ),
        "no file's",
    ),
    "a path of a million characters": (
        lambda f: rewritten(f, with_column("path", lambda all: ["x" * 10**6, *all[1:]])),
        "no picture's",
    ),
    "half a character": (lambda f: rewritten(f, collection="\ud800"), "not JSON"),
    "no name": (lambda f: rewritten(f, table=""), "metadata"),
    "paths in another column": (lambda f: rewritten(f, column="id"), "not a table of"),
    "no SHA-256": (
        lambda f: rewritten(f, with_column("sha256", lambda all: ["A" * 64, *all[1:]])),
        "no picture's",
    ),
    "negative sizes": (
        lambda f: rewritten(f, with_column("size", lambda all: [-1, *all[1:]])),
        "no picture's",
    ),
    "gaps": (
        lambda f: rewritten(f, with_column("sha256", lambda all: [None, *all[1:]])),
        "has gaps",
    ),
    "ids that are numbers": (
        lambda f: rewritten(f, with_column("id", as_numbers)),
        "int64",
    ),
    "a column lost": (
        lambda f: rewritten(f, lambda t: t.drop_columns("size")),
        "no column 'size'",
    ),
    "fewer dimensions": (lambda f: rewritten(f, dimensions=7), "column 'vector' is"),
    "endless dimensions": (lambda f: rewritten(f, dimensions=10**9), "metadata"),
    "another count": (lambda f: rewritten(f, count=99), "rows, not"),
    "another fingerprint": (lambda f: rewritten(f, fingerprint="0" * 64), "fingerprint"),
    "another format": (lambda f: rewritten(f, format=2), "format 2"),
    "another source": (lambda f: rewritten(f, source="web"), "metadata"),
    "a transform of none": (lambda f: rewritten(f, transform=[[1] * 7]), "projection"),
    "a field more": (lambda f: rewritten(f, more=1), "other fields"),
    "an encoder of lists": (lambda f: rewritten(f, encoder="[]"), "encoder"),
    "cut off": (lambda f: f.write_bytes(f.read_bytes()[:-100]), "damaged"),
    "no Parquet": (lambda f: f.write_bytes(b"PAR1" * 10), "damaged"),
    "empty": (lambda f: f.write_bytes(b""), "damaged"),
    "of something else": (lambda f: pq.write_table(pa.table({"a": [1]}), f), "encoder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_changes_nothing(file: Path, tmp_path: Path, damage: str) -> None:
    change, words = DAMAGE[damage]
    change(file)
    fresh = tmp_path / "fresh.db"
    assert words in failed("import", fresh, file)
    assert not fresh.exists()


def test_bytes_that_were_changed(file: Path, tmp_path: Path) -> None:
    """Whatever they were: an error in words, or what the file now says."""
    whole = file.read_bytes()
    for place in range(4, len(whole), len(whole) // 40):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        fresh = tmp_path / f"{place}.db"
        done = command("import", fresh, file)
        assert done.exit_code in (0, 1), place
        assert fresh.exists() == (done.exit_code == 0)


def test_stopped_nothing_was_taken_in(copied: Path, file: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.db"
    with ImageCollection(fresh) as collection, pytest.raises(Stopped):
        collection.import_vectors(file, stop=lambda: True)
    assert not fresh.exists()
    with ImageCollection(copied) as collection, pytest.raises(Stopped):
        collection.export_vectors(file, stop=lambda: True)
    assert list(file.parent.glob(".vectors*")) == []
    with VectorFile(file):  # the one before is still there
        pass


def test_a_row_without_a_vector_is_left_out(copied: Path, tmp_path: Path) -> None:
    sql(copied, "delete from _image_similarity_vectors_1 where id = 5")
    told = answer("export", copied, "--vectors", tmp_path / "a.parquet")
    assert (told["vectors"], told["without"]) == (23, 1)


def test_a_folder_that_is_missing(copied: Path, tmp_path: Path) -> None:
    with ImageCollection(copied) as collection, pytest.raises(CollectionError):
        collection.export_vectors(tmp_path / "none" / "a.parquet")
    assert failures(copied) == []
