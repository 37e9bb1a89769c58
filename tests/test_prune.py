"""`--prune` deletes no row in which people have written something."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from conftest import picture
from core import command, counts, embed, faults, sql

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.embed import Summary
from datasette_image_similarity.written import EMBEDDED, written_rows


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """The folders cat and dog, with two pictures each."""
    for number, name in enumerate(("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png")):
        file = tmp_path / "few" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture("red", number))
    return tmp_path / "few"


@pytest.fixture
def path(tmp_path: Path, few: Path) -> Path:
    """The four pictures of `few`, embedded: rows 1 to 4."""
    path = tmp_path / "x.db"
    embed(path, few)
    return path


def written(path: Path, *statements: str, filled: tuple[str, ...] = EMBEDDED) -> set:
    """The rows of the table that hold something people wrote, after these statements."""
    for statement in statements:
        sql(path, statement)
    with closing(db.connect(path)) as conn:
        table = db.source_table(conn, "images")
        return written_rows(conn, table, [1, 2, 3, 4], filled)


def test_nothing_is_written_in_rows_as_embed_made_them(path: Path) -> None:
    assert written(path) == set()


@pytest.mark.parametrize(
    "column",
    [
        "note",
        "note text default 'x'",
        "note text default ''",
        "note integer not null default 5",
        "note integer default '5'",
        'note text default "x"',
        "note text default x",
        "note boolean default false",
        "note real default -1.5",
        "note text default null",
        "note text default (lower('NEW'))",
        "note text as (path || name)",
        "note text as ('x') stored",
        '"it\'s "" a note" text',
    ],
)
def test_a_column_of_the_users_is_written_in_where_it_is_not_its_default(
    path: Path, tmp_path: Path, column: str
) -> None:
    if "stored" in column or "lower(" in column:  # what `alter table` refuses
        rebuilt(path, column)
    else:
        sql(path, f"alter table images add column {column}")
    assert written(path) == set()
    if " as (" not in column:
        name = column.split(" ")[0] if column[0] != '"' else '"it\'s "" a note"'
        assert written(path, f"update images set {name} = 7 where id = 2") == {2}


def rebuilt(path: Path, column: str) -> None:
    """Make the table anew with one more column, as other tools do."""
    names = ", ".join(("id", *EMBEDDED))
    sql(path, "alter table images rename to old")
    sql(path, f"create table images (id integer primary key, {names[4:]}, {column})")
    sql(path, f"insert into images ({names}) select {names} from old")
    sql(path, "drop table old")


def test_an_empty_text_says_as_little_as_null(path: Path) -> None:
    sql(path, "alter table images add column note text")
    sql(path, "alter table images add column checked text default ''")
    sql(path, "alter table images add column stars integer default 3")
    assert written(path, "update images set note = '', checked = null") == set()
    emptied = written(path, "update images set stars = null where id = 4")
    assert emptied == {4}, "this value was there, and somebody took it out"


@pytest.mark.parametrize("collation", ["nocase", "rtrim"])
def test_a_value_that_a_collation_takes_for_the_default_is_written(
    path: Path, collation: str
) -> None:
    sql(path, f"alter table images add column note text collate {collation} default 'new'")
    assert written(path) == set()
    typed = "NEW" if collation == "nocase" else "new "
    assert written(path, f"update images set note = '{typed}' where id = 2") == {2}


@pytest.mark.parametrize(
    "default", ["current_timestamp", "(datetime('now'))", "(date())", "CURRENT_DATE"]
)
def test_a_time_that_a_default_gave_is_nobodys_writing(
    tmp_path: Path, few: Path, default: str
) -> None:
    path = tmp_path / "timed.db"
    columns = ", ".join(EMBEDDED)
    sql(
        path,
        f"create table images (id integer primary key, {columns}, seen default {default})",
    )
    embed(path, few)
    assert written(path) == set()
    assert written(path, "update images set seen = '1999-12-31' where id = 3") == {3}


def test_a_random_default_is_kept(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "random.db"
    made = f"create table images (id integer primary key, {', '.join(EMBEDDED)}, x default"
    sql(path, f"{made} (random()))")
    embed(path, few)
    assert written(path) == {1, 2, 3, 4}, "nobody can tell whether a person wrote it"


def test_a_label_is_written_unless_it_is_the_folders_name(path: Path, few: Path) -> None:
    embed(path, few, label_from_folder=True, force=True)
    assert written(path) == set()
    assert written(path, "update images set label = 'Cat' where id = 1") == {1}
    assert written(path, "update images set label = 'kitten' where id = 2") == {1, 2}


def test_a_row_that_others_refer_to_is_kept(path: Path) -> None:
    sql(path, "create table tags (image integer references images(id), tag)")
    sql(path, "create table notes (x references Images)")
    sql(path, "create table pairs (a, b, foreign key (a, b) references images(id, path))")
    sql(path, "create table lost (x references images(nope))")
    assert written(path) == set()
    assert written(path, "insert into tags values (1, 'good'), (null, 'bad')") == {1}
    assert written(path, "insert into notes values (4)") == {1, 4}
    assert written(path, "insert into pairs values (2, 'x'), (3, 'dog/c.png')") == {1, 3, 4}


def test_a_decision_keeps_a_row(path: Path) -> None:
    decided = (
        "insert into _image_similarity_decisions (collection_id, step, pk, sha256, "
        "decision) values (1, 1, 3, 'abc', 'keep')"
    )
    assert written(path, decided) == {3}


def test_columns_of_a_csv_are_no_writing(path: Path) -> None:
    sql(path, "alter table images add column price")
    assert (
        written(path, "update images set price = 4", filled=(*EMBEDDED, "PRICE")) == set()
    )


@pytest.fixture
def noted(path: Path, few: Path) -> Path:
    """As `path`, with a note in rows 1 and 3; the files of rows 1 and 2 are missing."""
    sql(path, "alter table images add column note text")
    sql(path, "update images set note = 'mine' where id in (1, 3)")
    for name in ("a.png", "b.png"):
        (few / "cat" / name).unlink()
    return path


def rows(path: Path) -> list[tuple]:
    return [
        tuple(row) for row in sql(path, "select id, path, note from images order by id")
    ]


def state(path: Path) -> tuple[int, int]:
    """Vectors and missing rows, as `status` says."""
    one = json.loads(command("status", path, "--json").output)[0]
    return one["embedded"], one["missing"]


def test_prune_keeps_rows_that_people_wrote_in(noted: Path, few: Path) -> None:
    printed = command("embed", noted, few, "--prune").output
    assert "2 removed" in printed
    assert "1 row of missing files was kept" in printed
    assert "--prune-rows" in printed
    assert rows(noted) == [
        (1, "cat/a.png", "mine"),
        (3, "dog/c.png", "mine"),
        (4, "dog/d.png", None),
    ]
    assert state(noted) == (2, 1)
    assert "missing      1" in command("status", noted).output
    again = embed(noted, few, prune=True)
    assert (counts(again), again.missing, again.kept_rows) == ((0, 0, 2, 0, 0), 0, 0)
    assert state(noted) == (2, 1)
    assert faults(noted) == []


@pytest.mark.parametrize("name", ["cat/a.png", "dog/elsewhere.png"])
def test_a_kept_row_gets_its_vector_back(noted: Path, few: Path, name: str) -> None:
    embed(noted, few, prune=True)
    (few / name).parent.mkdir(exist_ok=True)
    (few / name).write_bytes(picture("red", 0))
    assert counts(embed(noted, few)) == (1, 0, 2, 0, 0)
    assert rows(noted)[0] == (1, name, "mine")
    assert state(noted) == (3, 0)


def test_a_kept_row_gets_another_picture_of_its_place(noted: Path, few: Path) -> None:
    embed(noted, few, prune=True)
    (few / "cat/a.png").write_bytes(picture("blue"))
    embed(noted, few)
    assert rows(noted)[0] == (1, "cat/a.png", "mine")
    assert state(noted) == (3, 0)


def test_a_kept_row_comes_back_in_a_folder_that_moved(
    noted: Path, few: Path, tmp_path: Path
) -> None:
    embed(noted, few, prune=True)
    new = tmp_path / "new" / "cat"
    new.mkdir(parents=True)
    (new / "a.png").write_bytes(picture("red", 0))
    embed(noted, new.parent)
    assert rows(noted)[0] == (1, "new/cat/a.png", "mine")
    assert state(noted) == (3, 0)


def test_a_kept_row_takes_no_other_picture_of_another_folder(
    noted: Path, few: Path, tmp_path: Path
) -> None:
    embed(noted, few, prune=True)
    new = tmp_path / "new" / "cat"
    new.mkdir(parents=True)
    (new / "a.png").write_bytes(picture("blue"))
    embed(noted, new.parent)
    assert (1, "cat/a.png", "mine") in rows(noted)
    assert (5, "new/cat/a.png", None) in rows(noted)
    assert state(noted) == (3, 1)


def test_prune_rows_deletes_all_rows_of_missing_files(noted: Path, few: Path) -> None:
    embed(noted, few, prune=True)
    (few / "dog/c.png").unlink()
    said = command("embed", noted, few, "--prune-rows").output
    assert "0 failed, 2 removed in" in said  # one was kept by the run before
    assert rows(noted) == [(4, "dog/d.png", None)]
    assert state(noted) == (1, 0)
    assert faults(noted) == []


def test_prune_rows_spares_what_could_not_be_listed(
    noted: Path, few: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.png").write_bytes(picture("green"))
    embed(noted, few, prune=True)
    embed(noted, other, prune_rows=True)
    assert rows(noted)[0] == (1, "cat/a.png", "mine")


def test_a_kept_row_that_its_owner_deletes_is_missing_no_more(
    noted: Path, few: Path
) -> None:
    embed(noted, few, prune=True)
    sql(noted, "delete from images where id = 1")
    embed(noted, few)
    assert state(noted) == (2, 0)


def test_missing_rows_outlive_another_model(noted: Path, few: Path) -> None:
    embed(noted, few, prune=True)
    embed(noted, few, force=True, metric="l2")
    assert state(noted) == (2, 1)


def test_each_collection_prunes_its_own(noted: Path, few: Path) -> None:
    for number, name in enumerate(("a.png", "b.png")):
        (few / "cat" / name).write_bytes(picture("red", number))
    embed(noted, few, name="other")
    for name in ("a.png", "b.png"):
        (few / "cat" / name).unlink()
    command("embed", noted, "--all", "--prune")
    found = json.loads(command("status", noted, "--json").output)
    assert [(one["embedded"], one["missing"]) for one in found] == [(2, 1), (2, 1)]
    assert [row[0] for row in rows(noted)] == [1, 3, 4]


def test_watch_prunes_only_where_it_is_told_to(
    noted: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def embed_once(self: ImageCollection, **options: object) -> Summary:
        told.append((options["prune"], options["prune_rows"]))
        return Summary(stopped=True)

    monkeypatch.setattr(ImageCollection, "embed", embed_once)
    for more in ((), ("--prune",), ("--prune-rows",)):
        command("embed", noted, few, "--watch", *more)
    assert told == [(False, False), (True, False), (False, True)]


def test_every_column_of_a_new_table_is_one_that_embed_fills(path: Path) -> None:
    with closing(db.connect(path)) as conn:
        assert db.source_table(conn, "images").columns == ("id", *EMBEDDED)
