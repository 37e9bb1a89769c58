"""A CSV becomes a table with all its columns, and its pictures are embedded."""

from __future__ import annotations

from pathlib import Path

import pytest
from core import answer, command, counts, embed, opened, refused, sql, value

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import CollectionError

PRODUCTS = '''\
sku,file,price,stock,name
007,red/red-0.png,9.5,3,Shoe
008,green/green-1.png,12,,"Hat, ""large"""
009,blue/blue-2.png,,0,Käse
'''
OPTIONS = ("--table", "products", "--path-column", "file", "--model", "hog")


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    file = folder / "products.csv"
    file.write_bytes(text.encode(encoding))
    return file


def test_all_columns_with_their_types(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "shop.db"
    file = written(photos, PRODUCTS)
    done = answer("embed", path, "--csv", file, "--pk", "sku", *OPTIONS)
    assert done["embedded"] == 3
    assert sql(path, "select * from products") == [
        ("007", "red/red-0.png", 9.5, 3, "Shoe"),
        ("008", "green/green-1.png", 12, None, 'Hat, "large"'),
        ("009", "blue/blue-2.png", None, 0, "Käse"),
    ]
    with opened(path) as conn:
        assert db.source_table(conn, "products").pks == ("sku",)
    similar = answer("similar", path, "products", "007")
    assert [hit["pk"] for hit in similar] in (["008", "009"], ["009", "008"])


def test_without_a_key_rows_are_numbered(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "shop.db"
    file = written(photos, PRODUCTS)
    answer("embed", path, "--csv", file, *OPTIONS)
    assert sql(path, "select id, sku from products") == [(1, "007"), (2, "008"), (3, "009")]


def test_an_id_of_its_own_is_the_key(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "shop.db"
    file = written(photos, PRODUCTS.replace("sku", "id", 1))
    answer("embed", path, "--csv", file, *OPTIONS)
    assert sql(path, "select id from products") == [("007",), ("008",), ("009",)]


def test_an_id_that_repeats_is_not_the_key(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "shop.db"
    file = written(photos, PRODUCTS.replace("sku", "id", 1).replace("008", "007"))
    answer("embed", path, "--csv", file, *OPTIONS)
    rows = sql(path, "select row_number, id from products")
    assert rows == [(1, "007"), (2, "007"), (3, "009")]


def test_a_key_that_repeats_is_refused(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "shop.db"
    file = written(photos, PRODUCTS.replace("008", "007"))
    error = refused("embed", path, "--csv", file, "--pk", "sku", *OPTIONS)
    assert "'sku' is not a key" in error
    assert not path.exists()


def test_again_with_a_changed_csv(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "shop.db"
    file = written(photos, PRODUCTS)
    command("embed", path, "--csv", file, "--pk", "sku", *OPTIONS)
    sql(path, "update products set stock = 99 where sku = '009'")
    changed = PRODUCTS.replace("Shoe", "Boot").replace("green-1", "green-7")
    written(photos, f"{changed}010,red/red-5.png,1,1,New\n")
    done = answer("embed", path, "--csv", file, "--pk", "sku", *OPTIONS)
    assert (done["embedded"], done["unchanged"]) == (2, 2)
    rows = sql(path, "select name, stock from products order by sku")
    assert [row[0] for row in rows] == ["Boot", 'Hat, "large"', "Käse", "New"]
    assert rows[2][1] == 0


def test_the_root_is_the_folder_of_the_csv_or_the_one_given(
    tmp_path: Path, photos: Path
) -> None:
    file = written(tmp_path, PRODUCTS)
    path = tmp_path / "shop.db"
    result = command("embed", path, "--csv", file, *OPTIONS)
    assert result.exit_code == 1
    assert "3 failed" in result.output
    done = answer("embed", path, "--csv", file, "--root", photos, *OPTIONS)
    assert (done["embedded"], done["failed"]) == (3, 0)
    assert value(path, "select count(*) from _image_similarity_failures") == 0


def test_a_wrong_column_is_told_before_anything_is_made(
    tmp_path: Path, photos: Path
) -> None:
    path = tmp_path / "shop.db"
    sql(path, "create table other (x)")
    file = written(photos, PRODUCTS)
    options = ("--table", "products", "--path-column", "image", "--model", "hog")
    assert "no column 'image'" in refused("embed", path, "--csv", file, *options)
    assert sql(path, "select name from sqlite_master") == [("other",)]


def test_a_table_with_another_key_is_refused(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "shop.db"
    sql(path, "create table products (code text primary key, file text)")
    file = written(photos, PRODUCTS)
    error = refused("embed", path, "--csv", file, "--pk", "sku", *OPTIONS)
    assert "key is not 'sku'" in error
    assert value(path, "select count(*) from products") == 0


def test_rows_from_python_do_the_same(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "shop.db"
    rows = [
        {"file": "red/red-0.png", "price": 1.5},
        {"file": "red/red-1.png", "price": None, "new": True},
    ]
    options = {"table": "things", "path_column": "file", "root": photos}
    assert counts(embed(path, rows, **options)) == (2, 0, 0, 0, 0)
    assert sql(path, "select * from things") == [
        (1, "red/red-0.png", 1.5, None),
        (2, "red/red-1.png", None, 1),
    ]
    with pytest.raises(CollectionError, match="column of paths"):
        embed(path, rows, table="things")
    with pytest.raises(CollectionError, match="nothing to embed"):
        embed(path, [], table="things")


def test_pictures_themselves_from_python(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "shop.db"
    rows = [{"id": f.stem, "scan": f.read_bytes()} for f in sorted(photos.glob("red/*"))]
    assert embed(path, rows, "scans", blob_column="scan").embedded == 8
    with ImageCollection(path, "scans") as scans:
        assert len(scans.similar("red-0", k=99)) == 7
