"""SQL functions, and the queries that the README shows, in plain SQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_plus

import numpy as np
import pytest
from conftest import picture
from core import embed, opened, sql
from datasette.utils.sqlite import sqlite3

from datasette_image_similarity import ImageCollection
from datasette_image_similarity.functions import prepare_connection
from datasette_image_similarity.web.compat import is_one


@pytest.fixture
def conn(copied: Path) -> Iterator[sqlite3.Connection]:
    """A connection as Datasette has it, to the gallery."""
    with opened(copied) as conn:
        assert prepare_connection(conn)
        yield conn


def one(conn: sqlite3.Connection, statement: str, *parameters: object) -> object:
    return conn.execute(statement, parameters).fetchone()[0]


def test_image_embedding_is_the_stored_vector(
    conn: sqlite3.Connection, copied: Path
) -> None:
    data = one(conn, "select image_embedding('images', 3)")
    with ImageCollection(copied) as collection:
        np.testing.assert_array_equal(np.frombuffer(data, "<f4"), collection.vector(3))
    assert one(conn, "select vec_length(image_embedding('images', '3'))") == len(data) // 4
    assert one(conn, "select image_embedding('images', 3, 'default')") == data


def test_image_distance_is_that_of_the_search(
    conn: sqlite3.Connection, copied: Path
) -> None:
    with ImageCollection(copied) as collection:
        hit = collection.similar(1, 1)[0]
    distance = one(conn, "select image_distance('images', 1, ?)", hit.pk)
    assert distance == pytest.approx(hit.distance, abs=1e-6)
    assert one(conn, "select image_distance('images', 1, 1)") == pytest.approx(0, abs=1e-6)
    assert one(conn, "select image_distance('images', 1, 2, 'default')") > 0


def test_similar_images_is_json_with_keys_of_their_own_type(
    conn: sqlite3.Connection, copied: Path
) -> None:
    found = json.loads(one(conn, "select similar_images('images', 1, 5)"))
    with ImageCollection(copied) as collection:
        hits = collection.similar(1, 5)
    assert found == [
        {"pk": h.pk, "rank": h.rank, "score": h.score, "distance": h.distance} for h in hits
    ]
    assert isinstance(found[0]["pk"], int)
    assert len(json.loads(one(conn, "select similar_images('images', 1, 9999)"))) == 23


def test_compound_and_text_keys(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table pairs (a text, b integer, file text, primary key (a, b))")
    sql(path, "create table codes (code text primary key, file text)")
    for number in range(3):
        file = f"red/red-{number}.png"
        sql(path, "insert into pairs values ('x', ?, ?)", (number, file))
        sql(path, "insert into codes values (?, ?)", (f"00{number}", file))
    for table in ("pairs", "codes"):
        embed(path, table=table, path_column="file", root=photos)
    with opened(path) as conn:
        prepare_connection(conn)
        found = json.loads(one(conn, """select similar_images('pairs', '["x", 1]', 9)"""))
        assert sorted(row["pk"] for row in found) == [["x", 0], ["x", 2]]
        found = json.loads(one(conn, "select similar_images('codes', '001', 9)"))
        assert sorted(row["pk"] for row in found) == ["000", "002"]
        assert one(conn, "select image_embedding('codes', 1)") is None
        mean = """select mean_image_embedding('pairs', '[["x", 0], ["x", 1]]')"""
        assert len(one(conn, mean)) % 4 == 0
        joined = """
            select pairs.b from json_each(similar_images('pairs', '["x", 1]', 9)) s
            join pairs on pairs.a = s.value ->> '$.pk[0]'
              and pairs.b = s.value ->> '$.pk[1]'
        """
        assert sorted(row[0] for row in conn.execute(joined)) == [0, 2]


def test_nothing_in_gives_nothing_out(conn: sqlite3.Connection) -> None:
    for call in (
        "image_embedding('images', null)",
        "image_embedding(null, 1)",
        "image_embedding('images', 999)",
        "image_embedding('images', 'x')",
        "image_distance('images', 1, 999)",
        "similar_images('images', 999, 3)",
        "similar_images('images', 1, null)",
        "mean_image_embedding('images', '[1, 999]')",
        "mean_image_embedding('images', '{\"999\": 1}')",
    ):
        assert one(conn, f"select {call}") is None, call


def test_what_cannot_be_is_an_error(conn: sqlite3.Connection) -> None:
    for call in (
        "image_embedding('nope', 1)",
        "image_embedding('images', 1, 'nope')",
        "similar_images('images', 1, 0)",
        "similar_images('images', 1, -1)",
        "similar_images('images', 1, 'many')",
        "mean_image_embedding('images', 'no json')",
        "mean_image_embedding('images', '3')",
        "mean_image_embedding('images', '{}')",
        "mean_image_embedding('images', '{\"1\": 0}')",
        "mean_image_embedding('images', '{\"1\": \"2\"}')",
        "mean_image_embedding('images', '{\"1\": true}')",
        "mean_image_embedding('images', '{\"1\": -1}')",
        "mean_image_embedding('images', '[]')",
        "image_embedding('images')",
        "similar_images()",
    ):
        with pytest.raises(sqlite3.OperationalError):
            conn.execute(f"select {call}").fetchone()


def test_keys_of_odd_types_are_no_crash(conn: sqlite3.Connection) -> None:
    for key in ("x'00ff'", "1e300", "''", "9223372036854775807", "'[1]'", "'{}'"):
        assert one(conn, f"select image_embedding('images', {key})") is None


def test_no_function_opens_files(conn: sqlite3.Connection, photos: Path) -> None:
    ours = {
        row[0]
        for row in conn.execute("select distinct name from pragma_function_list")
        if "image" in row[0]
    }
    assert ours == {
        "image_embedding",
        "mean_image_embedding",
        "image_distance",
        "similar_images",
        "image_store_problem",
    }
    file = str(photos / "red" / "red-0.png")
    assert one(conn, "select image_embedding('images', ?)", file) is None
    with pytest.raises(sqlite3.OperationalError):
        conn.execute("select load_extension('x')").fetchone()


def test_neighbours_joined_and_filtered(conn: sqlite3.Connection) -> None:
    rows = conn.execute(
        """
        select images.id, images.label, s.value ->> 'score' as score
        from json_each(similar_images('images', 1, 99)) s
        join images on images.id = s.value ->> 'pk'
        where images.label = 'blue' order by score desc
        """
    ).fetchall()
    assert len(rows) == 7
    assert {row["label"] for row in rows} == {"blue"}


def test_nearest_neighbours_with_the_filter_inside(conn: sqlite3.Connection) -> None:
    rows = conn.execute(
        """
        select images.id, images.label, v.distance
        from _image_similarity_vectors_1 as v
        join _image_similarity_items as i on i.id = v.id
        join images on images.id = i.pk
        where v.embedding match image_embedding('images', 1) and k = 5 and v.id in (
          select i.id from _image_similarity_items as i join images on images.id = i.pk
          where i.collection_id = 1 and images.label = 'green'
        )
        order by v.distance
        """
    ).fetchall()
    assert len(rows) == 5
    assert {row["label"] for row in rows} == {"green"}


def test_nearest_pair_of_each_kind(conn: sqlite3.Connection) -> None:
    rows = conn.execute(
        """
        with pictures as materialized (
          select images.id, images.label, v.embedding from images
          join _image_similarity_items as i on i.collection_id = 1 and i.pk = images.id
          join _image_similarity_vectors_1 as v on v.id = i.id
        )
        select a.label, a.id as one, b.id as two,
          min(vec_distance_cosine(a.embedding, b.embedding)) as distance
        from pictures as a join pictures as b on b.label = a.label and b.id > a.id
        group by a.label order by a.label
        """
    ).fetchall()
    assert [row["label"] for row in rows] == ["blue", "green", "red"]
    for row in rows:
        ids = [r[0] for r in conn.execute("select id from images where label = ?", row[:1])]
        closest = min(
            one(conn, "select image_distance('images', ?, ?)", a, b)
            for a in ids
            for b in ids
            if a < b
        )
        assert row["distance"] == pytest.approx(closest, abs=1e-6)


def test_direct_knn(conn: sqlite3.Connection) -> None:
    rows = conn.execute(
        """
        select i.pk, v.distance from _image_similarity_vectors_1 v
        join _image_similarity_items i on i.id = v.id
        where v.embedding match (
          select embedding from _image_similarity_vectors_1 where id = 7
        ) and k = 4 order by v.distance
        """
    ).fetchall()
    assert len(rows) == 4
    assert rows[0]["pk"] == 7
    assert rows[0]["distance"] == pytest.approx(0, abs=1e-6)


def test_changed_rows_do_not_show_here_either(
    conn: sqlite3.Connection, copied: Path
) -> None:
    first = json.loads(one(conn, "select similar_images('images', 1, 1)"))[0]["pk"]
    sql(copied, "delete from images where id = ?", (first,))
    found = json.loads(one(conn, "select similar_images('images', 1, 99)"))
    assert first not in [row["pk"] for row in found]
    assert one(conn, "select image_embedding('images', ?)", first) is None


def test_in_datasettes_own_connections(copied: Path) -> None:
    import asyncio

    from datasette.app import Datasette

    async def ask() -> object:
        datasette = Datasette([str(copied)])
        await datasette.invoke_startup()
        question = "select image_distance('images', 1, 2) as d, 3 as three"
        asked = f"?sql={quote_plus(question)}&_shape=array"
        page = "gallery/-/query.json" if is_one(datasette) else "gallery.json"
        return (await datasette.client.get(f"/{page}{asked}")).json()

    rows = asyncio.run(ask())
    assert rows[0]["d"] > 0


def test_two_databases_may_have_the_same_table(tmp_path: Path, copied: Path) -> None:
    other = tmp_path / "other.db"
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "x.png").write_bytes(picture("blue"))
    embed(other, folder)
    with opened(other) as conn, opened(copied) as first:
        prepare_connection(conn)
        prepare_connection(first)
        assert one(conn, "select similar_images('images', 1, 9)") == "[]"
        assert len(json.loads(one(first, "select similar_images('images', 1, 9)"))) == 9
