"""Lines of a CSV without a key: no row gets the vector or the decisions of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from core import answer, command, embed, faults, make_older, refused, sql, value

COLUMNS = ("--table", "products", "--path-column", "file", "--model", "hog")
ONE, TWO, THREE = "red/red-0.png,one", "green/green-1.png,two", "blue/blue-2.png,three"


@pytest.fixture
def shop(tmp_path: Path, photos: Path) -> Any:
    """Embeds lines into the same table again and again; gives what the command says."""

    def run(*lines: str, header: str = "file,name", options: tuple = ()) -> dict:
        file = photos / "products.csv"
        file.write_text("\n".join([header, *lines, ""]))
        return answer("embed", tmp_path / "shop.db", "--csv", file, *COLUMNS, *options)

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


def names(path: Path) -> dict[int, str]:
    return dict(sql(path, "select id, name from products order by id"))


def pictures(path: Path) -> dict[int, str]:
    return dict(sql(path, "select pk, path from _image_similarity_items order by pk"))


@pytest.mark.parametrize(
    "lines", [(TWO, THREE), (THREE, TWO), (f"{TWO}!", THREE), (TWO, f"{THREE}!")]
)
def test_the_first_line_removed(shop: Any, path: Path, lines: tuple) -> None:
    shop(ONE, TWO, THREE)
    before = pictures(path)
    done = shop(*lines)
    found = names(path)
    assert found[1] == "one"
    assert (found[2].rstrip("!"), found[3].rstrip("!")) == ("two", "three")
    assert any(name.endswith("!") for name in found.values()) is ("!" in "".join(lines))
    assert (pictures(path), done["embedded"]) == (before, 0)
    assert any("(number 1) is not in the CSV any more" in note for note in done["notes"])


def test_lines_in_between_and_in_another_order(shop: Any, path: Path) -> None:
    shop(ONE, TWO, THREE)
    done = shop(THREE, "red/red-5.png,new", ONE, TWO)
    assert names(path) == {1: "one", 2: "two", 3: "three", 4: "new"}
    assert (done["embedded"], done["unchanged"], done["notes"]) == (1, 3, [])


def test_another_picture_in_place_is_another_row(shop: Any, path: Path) -> None:
    shop(ONE, TWO)
    done = shop(ONE, "green/green-7.png,two")
    assert sql(path, "select id, file from products") == [
        (1, "red/red-0.png"),
        (2, "green/green-1.png"),
        (3, "green/green-7.png"),
    ]
    assert done["embedded"] == 1
    assert "(number 2)" in done["notes"][0]


def test_pruned(shop: Any, path: Path) -> None:
    shop(ONE, TWO, THREE)
    done = shop(TWO, THREE, options=("--prune",))
    assert names(path) == {2: "two", 3: "three"}
    assert (done["removed"], done["notes"]) == (1, [])
    assert pictures(path).keys() == {2, 3}
    assert faults(path) == []
    assert shop(TWO, THREE, ONE)["notes"] == []
    assert names(path) == {2: "two", 3: "three", 4: "one"}


def test_rows_of_peoples_own_are_kept(shop: Any, path: Path) -> None:
    shop(ONE, TWO, THREE)
    sql(path, "alter table products add column remark text")
    sql(path, "update products set remark = 'mine' where id = 1")
    sql(path, "insert into products (file, name) values ('red/red-3.png', 'by hand')")
    done = shop(THREE, options=("--prune",))
    assert names(path) == {1: "one", 3: "three", 4: "by hand"}
    assert len(done["notes"]) == 1
    assert "(number 1) is not in the CSV, but" in done["notes"][0]
    assert pictures(path).keys() == {1, 3, 4}
    assert shop(THREE, options=("--prune-rows",))["notes"] == []
    assert names(path) == {3: "three", 4: "by hand"}


def test_lines_that_share_a_picture(shop: Any, path: Path) -> None:
    same = [f"red/red-0.png,{name}" for name in "abc"]
    shop(*same, TWO)
    assert shop(same[1], same[2], TWO)["notes"]
    assert names(path) == {1: "a", 2: "b", 3: "c", 4: "two"}
    # One changed among the three: it is the only one left with that picture.
    shop(same[0], "red/red-0.png,B", same[2], TWO)
    assert names(path) == {1: "a", 2: "B", 3: "c", 4: "two"}
    # Two changed: nobody knows which is which, so they are new.
    shop("red/red-0.png,x", "red/red-0.png,y", same[2], TWO)
    assert names(path) == {1: "a", 2: "B", 3: "c", 4: "two", 5: "x", 6: "y"}


def test_lines_without_a_picture_are_not_mixed_up(shop: Any, path: Path) -> None:
    shop(",one", ONE)
    shop(",other", ONE)
    assert names(path) == {1: "one", 2: "one", 3: "other"}


def test_a_csv_with_one_column_more(shop: Any, path: Path) -> None:
    shop(ONE, TWO)
    done = shop(f"9,{TWO}", f"8,{ONE}", header="price,file,name")
    assert sql(path, "select id, name, price from products") == [
        (1, "one", 8),
        (2, "two", 9),
    ]
    assert done["notes"] == []


def test_a_database_of_before(shop: Any, path: Path) -> None:
    shop(ONE, TWO, THREE)
    make_older(path, 6)
    assert "(number 1)" in shop(TWO, THREE)["notes"][0]
    assert names(path) == {1: "one", 2: "two", 3: "three"}


def test_a_strangers_settings_change_nothing(shop: Any, path: Path) -> None:
    shop(ONE, TWO)
    for nonsense in ("[", "[1]", '{"csv_rows": [["a", 2], 7, [1]], "csv_columns": 3}'):
        sql(path, "update _image_similarity_collections set run_settings = ?", (nonsense,))
        shop(ONE, TWO)
        assert names(path) == {1: "one", 2: "two"}


def test_another_encoder_keeps_what_was_noted(shop: Any, path: Path) -> None:
    shop(ONE, TWO)
    sql(path, "insert into products (file, name) values ('red/red-3.png', 'by hand')")
    command("embed", path, *COLUMNS, "--force", "--metric", "l2")
    shop(TWO, options=("--prune",))
    assert names(path) == {2: "two", 3: "by hand"}


def test_rows_of_a_program_are_recognised_and_never_pruned(
    path: Path, photos: Path
) -> None:
    options = {"table": "things", "path_column": "file", "root": photos, "prune": True}
    embed(path, [{"file": "red/red-0.png", "n": 1}], **options)
    embed(path, [{"file": "red/red-1.png", "n": 2}], **options)
    embed(path, [{"file": "red/red-0.png", "n": 3}], **options)
    assert sql(path, "select * from things") == [
        (1, "red/red-0.png", 3),
        (2, "red/red-1.png", 2),
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("7,red/red-0.png", ",red/red-1.png"), "it has no value in row 3"),
        (("7,red/red-0.png", "8,x", "7,red/red-1.png"), "row 4 repeats 7 of row 2"),
    ],
)
def test_what_is_wrong_with_a_key_is_told_with_the_row(
    shop: Any, path: Path, photos: Path, lines: tuple, said: str
) -> None:
    shop(*lines, header="sku,file")  # no key was asked for
    path.unlink()
    assert said in refused(
        *("embed", path, "--csv", photos / "products.csv", "--pk", "sku", *COLUMNS)
    )
    done = shop(*lines, header="id,file")
    assert any(f"so rows are numbered: {said}" in note for note in done["notes"])
    assert value(path, "select max(row_number) from products") == len(lines)


def test_an_id_in_capitals_is_the_key(shop: Any, path: Path) -> None:
    shop("7,red/red-0.png", "9,red/red-1.png", header="ID,file")
    shop("9,red/red-1.png", "7,red/red-2.png", header="ID,file")
    assert sql(path, "select * from products") == [
        (7, "red/red-2.png"),
        (9, "red/red-1.png"),
    ]


def test_a_key_that_is_no_column(shop: Any, path: Path, photos: Path) -> None:
    (photos / "products.csv").write_text(f"file,name\n{ONE}\n")
    csv = ("--csv", photos / "products.csv", "--pk", "sku")
    assert "no column 'sku'" in refused("embed", path, *csv, *COLUMNS)
    assert not path.exists()


def test_spellings_that_a_table_of_numbers_would_change(
    shop: Any, path: Path, photos: Path
) -> None:
    shop("1.1,1.5,red/red-0.png", header="sku,price,file", options=("--pk", "sku"))
    done = shop("1.1,1.50,red/red-0.png", header="sku,price,file", options=("--pk", "sku"))
    assert "'1.50' in row 2" in done["notes"][0]
    (photos / "products.csv").write_text(
        "sku,file\n1.1,red/red-0.png\n1.10,red/red-1.png\n"
    )
    csv = ("--csv", photos / "products.csv", "--pk", "sku")
    assert "'1.10' in row 3" in refused("embed", path, *csv, *COLUMNS)
    assert value(path, "select count(*) from products") == 1


def test_a_key_of_whole_numbers_takes_no_words(shop: Any, path: Path, photos: Path) -> None:
    shop("1,red/red-0.png", header="id,file")
    (photos / "products.csv").write_text("id,file\n1,red/red-0.png\n2b,red/red-1.png\n")
    error = refused("embed", path, "--csv", photos / "products.csv", *COLUMNS)
    assert "holds whole numbers, and '2b' in row 3 is none" in error
    assert value(path, "select count(*) from products") == 1


def test_without_a_path_the_tables_that_are_known_are_named(shop: Any, path: Path) -> None:
    shop(ONE)
    assert "or --table products" in refused("embed", path)


def test_versions_keep_their_spelling(shop: Any, path: Path) -> None:
    shop("1.1,red/red-0.png", "1.10,red/red-1.png", header="sku,file")
    shop("1.1,red/red-0.png", "2.0,red/red-2.png", header="sku,file")
    found = [row[0] for row in sql(path, "select sku from products")]
    assert found == ["1.1", "1.10", "2.0"]


def test_notes_are_printed(path: Path, photos: Path) -> None:
    (photos / "products.csv").write_text(f"file,name\n{ONE}\n{TWO},3\n")
    result = command("embed", path, "--csv", photos / "products.csv", *COLUMNS)
    assert "products.csv: Row 3 left out: row 3 has 3 values for 2 columns" in result.output
