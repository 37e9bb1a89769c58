"""Tables with paths or BLOBs, whatever their key is like."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import picture
from core import counts, embed, failures, faults, opened, sql, value

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.errors import CollectionError, ImageSimilarityError
from datasette_image_similarity.plan import Stored

PLACES = ("red/red-0.png", "green/green-1.png", "blue/blue-2.png")

KEYS = {
    "integer": ("id integer primary key", "id", [(3,), (1,), (2,)]),
    "text": ("id text primary key", "id", [("007",), ("7",), ("a,b/é '\"",)]),
    "real": ("id real primary key", "id", [(0.5,), (1,), (1e20,)]),
    "no type": ("id primary key", "id", [(7,), ("7",), ("007",)]),
    "none": ("id text", "id", [("x",), ("x",), (None,)]),
    "compound": (
        "a text, b integer, primary key (a, b)",
        "a, b",
        [("x", 1), ("x", 2), ("007", 1)],
    ),
    "without rowid": (
        "a integer, b text, primary key (b, a)",
        "a, b",
        [(1, "7"), (2, "7"), (1, "é")],
    ),
}


def table(path: Path, kind: str, name: str = "works") -> None:
    """A table of three pictures with this kind of key."""
    columns, key, rows = KEYS[kind]
    tail = " without rowid" if kind == "without rowid" else ""
    sql(path, f'create table "{name}" (file text, {columns}){tail}')
    for row, place in zip(rows, PLACES, strict=True):
        marks = ", ".join("?" * (len(row) + 1))
        sql(path, f'insert into "{name}" ({key}, file) values ({marks})', (*row, place))


@pytest.mark.parametrize("kind", KEYS)
def test_any_kind_of_key(tmp_path: Path, photos: Path, kind: str) -> None:
    path = tmp_path / "x.db"
    table(path, kind)
    options = {"table": "works", "path_column": "file", "root": photos}
    assert counts(embed(path, **options)) == (3, 0, 0, 0, 0)
    assert counts(embed(path, **options)) == (0, 0, 3, 0, 0)
    assert faults(path) == []
    with ImageCollection(path, "works") as works, opened(path) as conn:
        stored = conn.execute("select pk from _image_similarity_items").fetchall()
        assert len({(type(row[0]), row[0]) for row in stored}) == 3
        everyone = works.search(photos / PLACES[0])
        assert len(everyone) == 3
        first = everyone[0].pk
        others = works.similar(first)
        assert {repr(hit.pk) for hit in others} == {
            repr(hit.pk) for hit in everyone if repr(hit.pk) != repr(first)
        }
        assert works.vector(first).shape == (works.status().dimensions,)


def test_keys_are_found_by_their_text_as_from_a_shell(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "x.db"
    table(path, "integer")
    table(path, "compound", "pairs")
    for name in ("works", "pairs"):
        embed(path, table=name, path_column="file", root=photos)
    with ImageCollection(path, "works") as works:
        assert len(works.similar("3")) == 2
        with pytest.raises(CollectionError, match="no row with the key"):
            works.similar(99)
        with pytest.raises(CollectionError, match="no row with the key"):
            works.similar((3, 4))
    with ImageCollection(path, "pairs") as pairs:
        assert [hit.pk for hit in pairs.similar(("x", "2"), where="b = 1 and a = 'x'")] == [
            ["x", 1]
        ]


def test_text_that_looks_like_a_number_stays_a_key_of_its_own(
    tmp_path: Path, photos: Path
) -> None:
    path = tmp_path / "x.db"
    table(path, "text")
    embed(path, table="works", path_column="file", root=photos)
    with ImageCollection(path, "works") as works:
        assert {hit.pk for hit in works.similar("007")} == {"7", "a,b/é '\""}
        assert works.similar("7")[0].row["file"] != works.similar("007")[0].row["file"]


def test_blobs(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table scans (code text primary key, content blob)")
    for number, code in enumerate("abc"):
        sql(path, "insert into scans values (?, ?)", (code, picture("red", number)))
    options = {"table": "scans", "blob_column": "content"}
    assert counts(embed(path, **options)) == (3, 0, 0, 0, 0)
    sql(path, "update scans set content = ? where code = 'b'", (picture("blue"),))
    assert counts(embed(path, **options)) == (1, 0, 2, 0, 0)
    with ImageCollection(path, "scans") as scans:
        hits = scans.similar("a")
        assert {hit.pk for hit in hits} == {"b", "c"}
        assert "content" not in hits[0].row
        assert scans.search(picture("blue"), k=1)[0].pk == "b"
    assert faults(path) == []


def test_a_blob_that_has_changed_does_not_show_before_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table scans (id integer primary key, content blob)")
    for number in range(6):
        sql(path, "insert into scans (content) values (?)", (picture("red", number),))
    embed(path, table="scans", blob_column="content")
    with ImageCollection(path, "scans") as scans:
        # of the same length, so that only its hash tells
        sql(
            path,
            "update scans set content = zeroblob(length(content)) where id in (2, 3, 5)",
        )
        assert {hit.pk for hit in scans.similar(1)} == {4, 6}
        assert len(scans.similar(1, k=1)) == 1


def test_cells_that_hold_no_picture_are_failures_by_row(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table scans (id integer primary key, content blob)")
    for cell in (picture("red"), None, b"", "text", 17, 1.5, b"not a picture"):
        sql(path, "insert into scans (content) values (?)", (cell,))
    summary = embed(path, table="scans", blob_column="content")
    assert counts(summary) == (1, 0, 0, 6, 0)
    assert [row[0] for row in failures(path)] == [2, 3, 4, 5, 6, 7]
    assert "cell is empty" in failures(path)[0][2]
    assert "holds text" in failures(path)[2][2]
    # A second run says the same, and notes it no second time.
    assert embed(path, table="scans", blob_column="content").failed == 6
    assert len(failures(path)) == 6


def test_failures_of_rows_with_the_same_path_are_all_kept(
    tmp_path: Path, photos: Path
) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table works (id integer primary key, file text)")
    for cell in ("", "", None, "gone.png", "gone.png", PLACES[0]):
        sql(path, "insert into works (file) values (?)", (cell,))
    options = {"table": "works", "path_column": "file", "root": photos}
    assert counts(embed(path, **options)) == (1, 0, 0, 5, 0)
    assert [row[0] for row in failures(path)] == [1, 2, 3, 4, 5]
    sql(path, "update works set file = ? where id in (2, 4)", (PLACES[1],))
    embed(path, **options)
    assert [row[0] for row in failures(path)] == [1, 3, 5]


def test_the_default_root_is_the_folder_of_the_database(photos: Path) -> None:
    path = photos / "x.db"
    table(path, "integer")
    assert embed(path, table="works", path_column="file").embedded == 3
    # … and afterwards the one used before
    assert counts(embed(path, table="works")) == (0, 0, 3, 0, 0)


@pytest.mark.parametrize("kind", KEYS)
def test_more_rows_than_are_read_together(
    tmp_path: Path, photos: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasette_image_similarity.sources.ROWS_AT_ONCE", 2)
    monkeypatch.setattr("datasette_image_similarity.plan.AT_ONCE", 2)
    path = tmp_path / "x.db"
    table(path, kind)
    options = {"path_column": "file", "root": photos}
    assert counts(embed(path, None, "works", **options)) == (3, 0, 0, 0, 0)
    assert counts(embed(path, None, "works", **options)) == (0, 0, 3, 0, 0)


def test_others_may_write_while_pictures_are_looked_up(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source of a million rows takes a while: longer than others wait for a lock."""
    monkeypatch.setattr("datasette_image_similarity.sources.ROWS_AT_ONCE", 2)
    monkeypatch.setattr("datasette_image_similarity.plan.AT_ONCE", 1)
    path = tmp_path / "x.db"
    table(path, "integer")
    options = {"path_column": "file", "root": photos}
    embed(path, None, "works", **options)
    look_up = Stored.items
    written: list[int] = []

    def items(self: Stored, pictures: list) -> list:
        found = look_up(self, pictures)
        with opened(path) as other:
            other.execute("pragma busy_timeout = 0")
            other.execute("create table if not exists others (number)")
            other.execute("insert into others values (1)")
        written.append(1)
        return found

    monkeypatch.setattr(Stored, "items", items)
    assert counts(embed(path, None, "works", **options)) == (0, 0, 3, 0, 0)
    assert len(written) == 3


def test_columns_are_named_whatever_their_case(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "x.db"
    table(path, "integer")
    assert embed(path, table="WORKS", path_column="FILE", root=photos).embedded == 3
    assert counts(embed(path, table="works", path_column="file")) == (0, 0, 3, 0, 0)


def test_a_column_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, photos: Path
) -> None:
    path = tmp_path / "x.db"
    table(path, "integer")
    with pytest.raises(CollectionError, match=r"no column 'nope'; it has file, id"):
        embed(path, table="works", path_column="nope", root=photos)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ("create view v as select 1 as id, 'x' as file", "is a view"),
        ("create virtual table v using fts5(file)", "not an ordinary table"),
        ("create table other (x)", "no table 'v'"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, make: str, said: str) -> None:
    path = tmp_path / "x.db"
    sql(path, make)
    before = sql(path, "select name from sqlite_master")
    with pytest.raises(CollectionError, match=said):
        embed(path, table="v", path_column="file")
    assert sql(path, "select name from sqlite_master") == before


def test_a_table_of_ours_is_refused(gallery: Path) -> None:
    with pytest.raises(CollectionError, match="not an ordinary table"):
        embed(gallery, table="_image_similarity_items", path_column="path")


def test_a_shadow_table_of_a_virtual_table_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create virtual table f using fts5(body)")
    with pytest.raises(ImageSimilarityError):
        embed(path, table="f_data", path_column="nothing")


def test_names_that_need_quoting(tmp_path: Path, photos: Path) -> None:
    name = "my photos/é \"x\" [y] 'z'"
    path = tmp_path / "x.db"
    quoted = '"' + name.replace('"', '""') + '"'
    sql(path, f'create table {quoted} ({quoted} text, "order" text primary key)')
    for number, place in enumerate(PLACES):
        sql(path, f"insert into {quoted} values (?, ?)", (place, f"k'{number}\""))
    options = {"table": name, "path_column": name, "root": photos}
    assert counts(embed(path, **options)) == (3, 0, 0, 0, 0)
    assert counts(embed(path, **options)) == (0, 0, 3, 0, 0)
    with ImageCollection(path, name) as collection:
        assert collection.similar("k'0\"", where="\"order\" <> 'x'")[0].row[name] in PLACES
        collection.remove()
    ours = "select count(*) from sqlite_master where name like '\\_image%' escape '\\'"
    assert value(path, ours) == 0


def test_a_generated_column_may_hold_the_path(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "x.db"
    sql(
        path,
        "create table works (id integer primary key, n text, "
        "file text generated always as ('red/' || n || '.png') virtual)",
    )
    sql(path, "insert into works (n) values ('red-1'), ('red-2')")
    assert embed(path, table="works", path_column="file", root=photos).embedded == 2
    with ImageCollection(path, "works") as works:
        assert works.similar(1)[0].row["file"] == "red/red-2.png"


def test_a_table_without_a_key_whose_column_is_called_rowid_is_refused(
    tmp_path: Path, photos: Path
) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table works (rowid text, file text)")
    with pytest.raises(CollectionError, match="rowid"):
        embed(path, table="works", path_column="file", root=photos)


def test_keys_that_are_empty_or_blobs_are_failures(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table works (id text primary key, file text)")
    sql(path, "create table pairs (a text, b, file text, primary key (a, b))")
    for key in (None, b"\x01", "fine", ""):
        sql(path, "insert into works values (?, ?)", (key, PLACES[0]))
        sql(path, "insert into pairs values ('x', ?, ?)", (key, PLACES[1]))
    for name in ("works", "pairs"):
        for _ in range(2):
            summary = embed(path, table=name, path_column="file", root=photos)
            assert summary.failed == 2
            assert "primary key" in summary.failures[0][1]
        with ImageCollection(path, name) as collection:
            assert collection.status().embedded == 2
            assert len(collection.search(photos / PLACES[0])) == 2


def test_null_keys_of_blobs_are_not_noted_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table scans (id text primary key, content blob)")
    sql(path, "insert into scans values (null, ?), ('a', ?)", (picture(), picture()))
    for _ in range(3):
        assert embed(path, table="scans", blob_column="content").failed == 1
    assert len(failures(path)) == 1


def test_text_that_is_not_utf8_fails_alone(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table works (id text primary key, file text, note text)")
    bad = "cast(x'66ff67' as text)"
    sql(path, f"insert into works values ('a', '{PLACES[0]}', {bad})")
    sql(path, f"insert into works values ('b', {bad}, 'x')")
    sql(path, f"insert into works values ({bad}, '{PLACES[1]}', 'x')")
    sql(path, f"insert into works values ('d', '{PLACES[2]}', 'x')")
    for done in (2, 0):
        summary = embed(path, table="works", path_column="file", root=photos)
        assert (summary.embedded, summary.failed) == (done, 2)
    assert {reason for *_, reason in failures(path)} == {
        "the name is not valid UTF-8: rename the file",
        "the row's primary key is not valid UTF-8",
    }
    with ImageCollection(path, "works") as works:
        assert [hit.row["note"] for hit in works.similar("d")] == ["f\ufffdg"]


def test_where_chooses_rows_and_says_when_it_is_wrong(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "x.db"
    table(path, "integer")
    options = {"table": "works", "path_column": "file", "root": photos}
    assert embed(path, **options, where="id = 2").embedded == 1
    assert counts(embed(path, **options, where="id <> 1")) == (1, 0, 1, 0, 0)
    for wrong in ("nope = 1", "id = 1) or (", "id = ?", "1; drop table works", "'"):
        with pytest.raises(ImageSimilarityError, match="--where"):
            embed(path, **options, where=wrong)
    assert value(path, "select count(*) from works") == 3


def test_a_trigger_or_a_foreign_key_of_the_user_is_left_alone(
    tmp_path: Path, photos: Path
) -> None:
    path = tmp_path / "x.db"
    table(path, "integer")
    sql(path, "create table log (what text)")
    sql(
        path, "create trigger t after update on works begin insert into log values (1); end"
    )
    embed(path, table="works", path_column="file", root=photos)
    assert value(path, "select count(*) from log") == 0
    with ImageCollection(path, "works") as works:
        works.remove()
    assert value(path, "select count(*) from sqlite_master where type = 'trigger'") == 1
