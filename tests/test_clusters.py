"""Clusters: made, named, stored as rows, and made again."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from core import answer, command, embed, make_older, opened, sql, value
from datasette.utils.sqlite import sqlite3

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import CollectionError
from datasette_image_similarity.explore import clusters as module
from datasette_image_similarity.explore.albums import rename
from datasette_image_similarity.explore.clusters import Clustering
from datasette_image_similarity.explore.names import suggest, tidy, unique
from datasette_image_similarity.explore.vectors import Stopped, read_vectors

JOINED = (
    "select images.label, m.album from images "
    "join _image_similarity_members m on m.pk = images.id order by images.id"
)


def make(path: Path, table: str = "images", **options) -> Clustering:
    with ImageCollection(path, table) as collection:
        return collection.clusters(**options)


def call(path: Path, cluster: int, name: str) -> None:
    with opened(path) as conn, db.transaction(conn):
        rename(conn, db.find_collection(conn, "images"), cluster, name)


def put_vectors(path: Path, vectors: np.ndarray) -> None:
    """Other vectors for the items, in the order of their ids."""
    with opened(path) as conn, db.transaction(conn):
        collection = db.find_collection(conn, "images")
        blobs = [vector.astype("<f4").tobytes() for vector in vectors]
        put = list(zip(db.item_ids(conn, collection), blobs, strict=True))
        name = collection.vectors
        conn.executemany(f"delete from {name} where id = ?", [(item,) for item, _ in put])
        conn.executemany(f"insert into {name} (id, embedding) values (?, ?)", put)
        db.note_vectors(conn, put)


def dimensions(path: Path) -> int:
    return value(path, "select dimensions from _image_similarity_collections")


@pytest.fixture
def grouped(copied: Path) -> Path:
    """The gallery with three plain groups, as the colours are, and nothing between."""
    chance = np.random.default_rng(5)
    centres = chance.standard_normal((3, dimensions(copied)))
    colours = [row[0] for row in sql(copied, "select label from images order by id")]
    order = {colour: number for number, colour in enumerate(dict.fromkeys(colours))}
    spread = 0.1 * chance.standard_normal((24, centres.shape[1]))
    put_vectors(copied, centres[[order[colour] for colour in colours]] + spread)
    return copied


def test_kmeans_finds_the_groups_and_names_them(grouped: Path) -> None:
    made = make(grouped, k=3)
    assert sorted((c.name, c.size) for c in made.clusters) == [
        ("blue", 8),
        ("green", 8),
        ("red", 8),
    ]
    assert (made.label, made.total, made.clustered) == ("label", 24, 24)
    assert all(label == album for label, album in sql(grouped, JOINED))


def test_hdbscan_leaves_out_what_lies_between(grouped: Path) -> None:
    with opened(grouped) as conn:
        there = read_vectors(conn, db.find_collection(conn, "images"))
    odd = [0, 1, 9, 17]
    vectors = there.vectors.copy()
    vectors[odd] = np.random.default_rng(1).standard_normal((4, vectors.shape[1]))
    put_vectors(grouped, vectors)
    made = make(grouped, method="hdbscan", min_size=4)
    assert len(made.clusters) == 3
    outside = "select item_id, album, distance from _image_similarity_members"
    alone = sql(grouped, f"{outside} where cluster_id is null")
    assert len(alone) == made.total - made.clustered > 0
    assert set(alone) <= {(item, None, None) for item in there.ids[odd].tolist()}


def test_hdbscan_of_many_looks_at_a_sample(
    grouped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY", 20)
    made = make(grouped, method="hdbscan", min_size=3)
    assert made.sampled == 20
    assert made.clustered == 24
    assert {label for label, album in sql(grouped, JOINED) if label == album} == {
        "red",
        "green",
        "blue",
    }


def test_distances_are_those_to_the_medoid(grouped: Path) -> None:
    made = make(grouped, k=3)
    with ImageCollection(grouped) as images:
        for cluster in made.clusters:
            members = dict(
                sql(
                    grouped,
                    "select pk, distance from _image_similarity_members "
                    "where cluster_id = ?",
                    (cluster.id,),
                )
            )
            pk = value(
                grouped,
                "select pk from _image_similarity_items where id = ?",
                (cluster.medoid,),
            )
            assert members[pk] == 0
            for hit in images.similar(pk, 24):
                if hit.pk in members:
                    assert members[hit.pk] == pytest.approx(1 - hit.score, abs=1e-5)
            # No other member is nearer to all of them.
            sums = {
                one: sum(1 - h.score for h in images.similar(one, 24) if h.pk in members)
                for one in members
            }
            assert sums[pk] == pytest.approx(min(sums.values()), abs=1e-5)


def test_the_same_seed_gives_the_same_clusters(copied: Path) -> None:
    everything = "select item_id, album, distance from _image_similarity_members"
    make(copied, k=5, seed=3)
    first = sql(copied, everything)
    make(copied, k=5, seed=3)
    assert sql(copied, everything) == first


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 25}, "25 clusters cannot be made of 24 pictures"),
        ({"k": 0}, "k must be at least 1"),
        ({"k": 3, "method": "hdbscan"}, "finds the number of clusters itself"),
        ({"min_size": 3}, "for the method hdbscan"),
        ({"min_size": 1, "method": "hdbscan"}, "at least 2"),
        ({"method": "magic"}, "There is no method 'magic'"),
        ({"seed": -1}, "The seed must be"),
        ({"label": "nothing"}, "There is no column 'nothing'; there are id, path"),
    ],
)
def test_options_that_do_not_fit(copied: Path, options: dict, said: str) -> None:
    with pytest.raises(CollectionError, match=said):
        make(copied, **options)


@pytest.mark.parametrize("method", module.METHODS)
def test_pictures_that_are_all_the_same(copied: Path, method: str) -> None:
    put_vectors(copied, np.ones((24, dimensions(copied))))
    made = make(copied, method=method)
    assert [cluster.size for cluster in made.clusters] == [24]
    assert value(copied, "select max(distance) from _image_similarity_members") < 1e-6


def test_fewer_different_pictures_than_clusters(copied: Path) -> None:
    vectors = np.ones((24, dimensions(copied)))
    vectors[:10, 0] = -5
    put_vectors(copied, vectors)
    assert sorted(cluster.size for cluster in make(copied, k=6).clusters) == [10, 14]


@pytest.mark.parametrize("method", module.METHODS)
def test_a_single_picture(tmp_path: Path, photos: Path, method: str) -> None:
    path = tmp_path / "one.db"
    embed(path, photos / "red" / "red-0.png")
    made = make(path, method=method)
    assert len(made.clusters) == (1 if method == "kmeans" else 0)
    assert value(path, "select count(*) from _image_similarity_members") == 1


def test_stopped_it_leaves_everything_as_it_was(grouped: Path) -> None:
    make(grouped, k=3)
    before = sql(grouped, "select * from _image_similarity_members")
    asked = []
    with pytest.raises(Stopped):
        make(grouped, k=5, stop=lambda: asked.append(1) or len(asked) > 3)
    assert sql(grouped, "select * from _image_similarity_members") == before


# Names


def test_given_names_and_numbers_stay_with_what_they_named(grouped: Path) -> None:
    old = {c.suggested: c.id for c in make(grouped, k=3).clusters}
    call(grouped, old["red"], "Sunsets")
    sql(grouped, "delete from images where id in (select id from images limit 2)")
    made = make(grouped, k=3, seed=9)
    new = {c.suggested: c for c in made.clusters}
    assert {name: cluster.id for name, cluster in new.items()} == old
    assert (new["red"].name, new["red"].given) == ("Sunsets", True)
    assert made.lost == []
    albums = sql(grouped, "select distinct album from _image_similarity_members")
    assert sorted(albums) == [("Sunsets",), ("blue",), ("green",)]


def test_a_name_goes_to_the_cluster_that_overlaps_most(grouped: Path) -> None:
    made = make(grouped, k=1)
    call(grouped, made.clusters[0].id, "Everything")
    made = make(grouped, k=3)  # a third of it each
    named = [cluster for cluster in made.clusters if cluster.given]
    assert [(cluster.name, cluster.size) for cluster in named] == [("Everything", 8)]
    assert len({cluster.id for cluster in made.clusters}) == 3


def test_a_name_that_fits_nothing_any_more_is_told(grouped: Path) -> None:
    call(grouped, make(grouped, k=3).clusters[0].id, "Mine")
    made = make(grouped, method="hdbscan", min_size=20)
    assert made.lost == ["Mine"]
    assert value(grouped, "select count(*) from _image_similarity_members") == 24


def test_a_suggestion_that_somebody_took_gets_a_number(grouped: Path) -> None:
    old = {c.suggested: c.id for c in make(grouped, k=3).clusters}
    call(grouped, old["green"], "tmp")
    call(grouped, old["red"], "GREEN")
    call(grouped, old["green"], "")
    names = sql(grouped, "select name, given from _image_similarity_clusters order by id")
    assert sorted(names) == [("GREEN", 1), ("blue", 0), ("green 2", 0)]
    again = {c.suggested: c.name for c in make(grouped, k=3).clusters}
    assert again == {"red": "GREEN", "green": "green 2", "blue": "blue"}


def test_names_from_classes() -> None:
    texts = dict(enumerate(["cat"] * 6 + ["dog"] * 4 + ["fox"] * 4 + ["owl"] * 4))
    clusters = [[0, 1, 2, 6], [3, 4, 5], [7, 8, 10, 11, 14], [9, 12, 13]]
    assert suggest(clusters, texts) == ["cat", "cat 2", "dog, fox", "fox"]


def test_names_from_the_words_that_mark_a_cluster_out() -> None:
    beach = [f"A photo of the beach at sunset, number {n}" for n in "abcdef"]
    snow = [f"A photo of snow on a mountain, number {n}" for n in "ghijkl"]
    texts = dict(enumerate(beach + snow))
    names = suggest([list(range(6)), list(range(6, 12))], texts)
    assert names == ["beach, sunset, number", "mountain, snow, number"]


def test_names_without_any_text() -> None:
    assert suggest([[1, 2], [3]], {}) == ["Cluster", "Cluster 2"]


def test_names_are_tidy_and_unique() -> None:
    assert tidy(" a\n\tb\0\u202ec ") == "a b c"
    assert unique(["x", "X", "x 2", "x"], ["y"]) == ["x", "X 2", "x 2 2", "x 3"]
    assert len(suggest([[1, 2, 3]], dict.fromkeys((1, 2, 3), "n" * 300))[0]) == 80


def test_the_column_of_names_can_be_chosen(grouped: Path) -> None:
    sql(grouped, "alter table images add column kind_of text")
    sql(grouped, "update images set kind_of = iif(label = 'blue', 'cold', 'warm' || x'0a')")
    made = make(grouped, k=3, label="KIND_OF")
    assert made.label == "kind_of"
    assert {cluster.name for cluster in made.clusters} == {"cold", "warm", "warm 2"}


# As rows


def test_anyone_can_join_them_without_sqlite_vec(grouped: Path) -> None:
    make(grouped, k=3)
    plain = sqlite3.connect(str(grouped))
    found = plain.execute(JOINED).fetchall()
    plain.close()
    assert len(found) == 24
    assert all(label == album for label, album in found)


def test_compound_keys_are_joined_as_json(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table works (file text, a text, b integer, primary key (a, b))")
    for number in range(8):
        sql(
            path,
            "insert into works values (?, ?, ?)",
            (f"red/red-{number}.png", f"é'{number % 2}", number),
        )
    embed(path, table="works", path_column="file", root=photos)
    make(path, "works", k=2)
    joined = (
        "select count(*) from works join _image_similarity_members m "
        "on m.pk = json_array(works.a, works.b)"
    )
    assert value(path, joined) == 8


def test_new_and_deleted_pictures(grouped: Path, photos: Path) -> None:
    make(grouped, k=3)
    gone = value(grouped, "select max(id) from images")
    sql(grouped, "delete from images where id = ?", (gone,))
    embed(grouped)
    assert value(grouped, "select count(*) from _image_similarity_members") == 23
    embed(grouped, photos)  # SQLite gives the same numbers again
    assert value(grouped, "select count(*) from images") > 23
    assert value(grouped, "select count(*) from _image_similarity_members") == 23


def test_they_go_with_the_collection(grouped: Path) -> None:
    make(grouped, k=3)
    assert command("remove", "--yes", grouped).exit_code == 0
    left = sql(grouped, "select name from sqlite_master where name like '_image_sim%'")
    assert left == []


def test_an_older_database_gets_its_tables(grouped: Path) -> None:
    make_older(grouped, 2)
    assert len(make(grouped, k=3).clusters) == 3


# The command


def test_the_command_says_what_it_made(grouped: Path) -> None:
    result = command("clusters", grouped, "--k", 3)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert sorted(line.split() for line in lines if line.startswith("   ")) == [
        ["8", "blue"],
        ["8", "green"],
        ["8", "red"],
    ]
    assert lines[-1].startswith("3 clusters of 24 pictures by k-means, named by the column")


def test_the_command_prints_json(grouped: Path) -> None:
    made = answer("clusters", grouped, "images", "--method", "hdbscan", "--min-size", 4)
    assert made["method"] == "hdbscan"
    assert made["options"] == {"min_size": 4}
    assert sorted(cluster["name"] for cluster in made["clusters"]) == [
        "blue",
        "green",
        "red",
    ]


def test_the_command_refuses_in_words(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = command("clusters", copied, "--k", 25)
    assert result.exit_code == 1
    said = result.output.splitlines()[-1]
    assert said == "Error: 25 clusters cannot be made of 24 pictures"
    monkeypatch.setitem(sys.modules, "sklearn", None)
    said = command("clusters", copied).output
    assert "pip install 'datasette-image-similarity[explore]'" in said
