"""Hidden tables that were harmed: found, mended, and never a wrong answer."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from conftest import make_photos
from core import command, embed, faults, make_older, opened, refused, sql, value
from serving import ROOT, ask, open_datasette
from stress import damage
from stress.everything import make_everything

from datasette_image_similarity import ImageCollection, trust
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import DatabaseError

CASES = 12
VECTORS = "_image_similarity_vectors_1"


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> damage.Truth:
    folder = tmp_path_factory.mktemp("everything")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.get_app_dir", lambda *_, **__: str(folder))
        return damage.truth_of(make_everything(folder))


def test_harm_of_all_kinds(truth: damage.Truth, tmp_path: Path) -> None:
    """As many tables as there are cases, each harmed in a way of its own."""
    path = tmp_path / "gallery.db"
    trust.note_root(path, truth.file.parent / "photos")
    with opened(truth.file) as conn:
        tables = damage.tables_of(conn)
    ends = set()
    for number in range(CASES):
        table = tables[number * 7 % len(tables)]
        ends.add(damage.run_case(truth, path, number, table=table, looks=2).end)
    assert "mended" in ends


def vectors(path: Path) -> dict[int, bytes]:
    return dict(sql(path, f"select id, embedding from {VECTORS}"))


def put(path: Path, item: int, vector: bytes) -> None:
    with opened(path) as conn:
        conn.execute(f"delete from {VECTORS} where id = ?", (item,))
        conn.execute(f"insert into {VECTORS} values (?, ?)", (item, vector))


def test_a_flipped_sign_is_found_and_mended(copied: Path) -> None:
    """Its length is as before: only the sum tells."""
    true = vectors(copied)
    numbers = list(struct.unpack(f"<{len(true[2]) // 4}f", true[2]))
    place = max(range(len(numbers)), key=lambda one: abs(numbers[one]))
    numbers[place] *= -1
    put(copied, 2, struct.pack(f"<{len(numbers)}f", *numbers))
    for key in ("1", "2"):  # as a result, and as what is asked with
        assert "verify" in refused("similar", copied, "images", key, "-k", "30")
    assert faults(copied, repair=True) == ["items without a usable vector"]
    assert embed(copied).embedded == 1
    assert set(vectors(copied).values()) == set(true.values())
    assert faults(copied) == []


def test_swapped_vectors_are_found(copied: Path) -> None:
    true = vectors(copied)
    put(copied, 1, true[9])
    put(copied, 9, true[1])
    assert "verify" in refused("similar", copied, "images", "3", "-k", "30")
    assert faults(copied) == ["items without a usable vector"]


def test_damaged_vectors_are_not_reused(copied: Path, tmp_path: Path) -> None:
    """A picture that is there twice is embedded again, not given the damaged vector."""
    photos = make_photos(tmp_path / "photos")
    path = tmp_path / "x.db"
    embed(path, photos)
    put(path, 1, vectors(path)[9])
    name = value(path, "select path from images where id = 1")
    (photos / "again.png").write_bytes((photos / name).read_bytes())
    assert embed(path, photos).embedded == 1


def test_sums_are_noted_of_older_vectors(copied: Path) -> None:
    make_older(copied, 5)
    assert faults(copied) == []
    assert faults(copied, repair=True) == []
    noted = "select count(crc32) from _image_similarity_items"
    assert value(copied, noted) == 24


@pytest.mark.parametrize("version", range(1, db.SCHEMA_VERSION))
def test_older_versions_answer_and_migrate(copied: Path, version: int) -> None:
    with ImageCollection(copied) as collection:
        true = [hit.pk for hit in collection.similar(1, k=30)]
    make_older(copied, version)
    assert faults(copied) == []
    with ImageCollection(copied) as collection:
        assert [hit.pk for hit in collection.similar(1, k=30)] == true
        assert collection.embed(workers=1).unchanged == 24
        collection.map(method="pca")
        assert [hit.pk for hit in collection.similar(1, k=30)] == true
    assert (
        value(copied, "select version from _image_similarity_schema") == db.SCHEMA_VERSION
    )
    assert faults(copied) == []


NEWER = (
    *(("status",), ("verify",), ("remove",), ("default", "images"), ("index", "images")),
    *(("embed",), ("similar", "images", "1"), ("map", "images"), ("clusters", "images")),
    *(("duplicates", "images"), ("evaluate", "images", "--label", "label")),
    *(("reduce", "images", "--dims", "4"), ("train", "images", "--label", "label")),
    *(("export", "images", "--vectors", "x.parquet"), ("reconcile", "images")),
    *(("move", "images", "--to", "milvus-lite:x.db"), ("verify", "--repair")),
)


def test_newer_versions_are_refused_by_commands(copied: Path) -> None:
    sql(copied, "update _image_similarity_schema set version = 99")
    for name, *arguments in NEWER:
        assert "schema version 99" in refused(name, copied, *arguments), name


async def test_newer_versions_are_refused_by_pages(copied: Path) -> None:
    sql(copied, "update _image_similarity_schema set version = 99")
    site = open_datasette(copied)
    for page in damage.PAGES:
        response = await ask(site, page.replace("/works/", "/images/"), ROOT)
        assert response.status_code < 500, (page, response.text)
        if "/-/" in page and not page.startswith("/-/"):
            assert response.status_code >= 400, page
            assert "version" in response.text, page


def test_what_cannot_be_mended_is_not_said_to_be(copied: Path) -> None:
    sql(copied, "alter table images rename to pictures")
    assert "That only you can mend" in command("verify", copied).output
    done = command("verify", copied, "--repair")
    assert done.exit_code == 1
    assert "Nothing was mended: what only you can mend" in done.output


def test_tables_without_their_version_are_damaged(copied: Path) -> None:
    sql(copied, "drop table _image_similarity_schema")
    assert "remove DATABASE" in refused("status", copied)
    with pytest.raises(DatabaseError), opened(copied):
        pass
    assert command("remove", copied).exit_code == 0


def test_people_s_rows_outlive_a_table_that_is_made_anew(
    truth: damage.Truth, tmp_path: Path
) -> None:
    path = tmp_path / "gallery.db"
    path.write_bytes(truth.file.read_bytes())
    sql(path, "alter table _image_similarity_questions rename column actor to who")
    assert faults(path) == ["the table _image_similarity_questions is not as it was made"]
    faults(path, repair=True)
    assert faults(path) == []
    assert value(path, "select name from _image_similarity_questions") == "Stripes"


async def test_a_column_of_ours_that_is_gone_is_told(copied: Path) -> None:
    sql(copied, "alter table _image_similarity_thumbnails rename column id to other")
    answer = await ask(open_datasette(copied), "/gallery/images/-/export.html?_like=1")
    assert answer.status_code == 400
    assert "are damaged" in answer.text


@pytest.mark.parametrize("column", ["probes", "depth"])
def test_an_index_that_looks_nowhere_is_damaged(copied: Path, column: str) -> None:
    assert command("index", copied, "images").exit_code == 0
    sql(copied, f"update _image_similarity_indexes set {column} = 0")
    assert "index in this database is damaged" in refused("similar", copied, "images", 1)
    assert "index is damaged" in command("verify", copied).output
    assert command("verify", copied, "--repair").exit_code == 0
    assert command("similar", copied, "images", 1).exit_code == 0


def test_a_column_of_an_index_that_is_gone(copied: Path) -> None:
    assert command("index", copied, "images").exit_code == 0
    sql(copied, "alter table _image_similarity_indexes drop column spread")
    assert "index in this database is damaged" in refused("similar", copied, "images", 1)
