"""The page of clusters, its JSON and CSV, the filter by cluster, and renaming."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from core import embed, make_older, sql, value
from datasette.utils import tilde_encode
from serving import ROOT, ask, ask_json, change, link_to, links, open_datasette

from datasette_image_similarity import ImageCollection

PAGE = "/gallery/images/-/clusters"
NOBODY_BUT_ROOT = {"allow": {"id": "root"}}
PRIVATE = {"databases": {"gallery": {"tables": {"images": NOBODY_BUT_ROOT}}}}
HOSTILE = "<script>alert(1)</script> \"'; drop table images; --"


def make(path: Path, table: str = "images", **options: Any) -> None:
    with ImageCollection(path, table) as collection:
        collection.clusters(**options)


@pytest.fixture(scope="module")
def clustered_once(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `clustered` copies."""
    path = tmp_path_factory.mktemp("clustered") / "gallery.db"
    path.write_bytes(made_once.read_bytes())
    make(path, k=3)
    sql(
        path,
        "update _image_similarity_members set cluster_id = null, album = null, "
        "distance = null where item_id <= 4",
    )
    return path


@pytest.fixture
def clustered(copied: Path, clustered_once: Path) -> Path:
    """The gallery in three clusters, with the first four pictures in none."""
    copied.write_bytes(clustered_once.read_bytes())
    return copied


async def post(site: Any, page: str = f"{PAGE}/rename.json", **options: Any) -> Any:
    actor = options.pop("actor", ROOT)
    return await ask(site, page, actor, "POST", **options)


async def test_json_says_what_is_stored(clustered: Path) -> None:
    found = await ask_json(open_datasette(clustered), f"{PAGE}.json")
    assert found["ok"]
    assert found["made"]["method"] == "kmeans"
    assert found["made"]["options"] == {"k": 3}
    assert found["total"] == 3
    assert (found["in_no_cluster"], found["new"], found["next"]) == (4, 0, None)
    sizes = [one["size"] for one in found["clusters"]]
    assert sum(sizes) == 20
    assert sizes == sorted(sizes, reverse=True)
    for one in found["clusters"]:
        distances = [picture["distance"] for picture in one["pictures"]]
        assert distances == sorted(distances)
        assert len(distances) == min(one["size"], 14)


async def test_a_strip_goes_from_the_medoid_to_the_farthest(copied: Path) -> None:
    make(copied, k=1)
    site = open_datasette(copied)
    (one,) = (await ask_json(site, f"{PAGE}.json"))["clusters"]
    distances = sql(copied, "select distance from _image_similarity_members order by 1")
    shown = [picture["distance"] for picture in one["pictures"]]
    assert len(shown) == 14
    assert (shown[0], shown[-1]) == (distances[0][0], distances[-1][0])
    assert one["spread"] == pytest.approx(sum(row[0] for row in distances) / 24)


async def test_the_page_shows_every_cluster(clustered: Path) -> None:
    site = open_datasette(clustered)
    page = (await ask(site, PAGE)).text
    for id, name in sql(clustered, "select id, name from _image_similarity_clusters"):
        assert f'id="cluster-{id}"' in page
        assert f">{name}</a></h2>" in page
        assert f"/gallery/images?_image_cluster={id}" in links(page)
    assert "/gallery/images?_image_cluster=none" in links(page)
    assert "In no cluster" in page
    assert (await ask(site, link_to(page, "/similar?_like="))).status_code == 200
    assert "<summary>" not in page.split("ims-cluster-bar")[1]  # nobody may rename here
    assert "curators" in page


async def test_links_lead_to_rows_and_to_sql(clustered: Path) -> None:
    site = open_datasette(clustered)
    page = (await ask(site, PAGE)).text
    rows = link_to(page, "/_image_similarity_members?").replace("?", ".json?")
    found = await ask_json(site, rows)
    facet = found["facet_results"]
    facet = facet.get("results", facet)["album"]["results"]
    assert sum(one["count"] for one in facet) == 20
    query = link_to(page, "sql=").replace("?", ".json?")
    joined = await ask_json(site, f"{query}&_shape=objects")
    assert len(joined["rows"]) == 24
    assert {"album", "distance", "label"} <= joined["rows"][0].keys()


async def test_facets_show_names_for_numbers(clustered: Path) -> None:
    path = "/gallery/_image_similarity_members.json?_facet=cluster_id"
    found = (await ask_json(open_datasette(clustered), path))["facet_results"]
    results = found.get("results", found)["cluster_id"]["results"]
    names = sql(clustered, "select name from _image_similarity_clusters")
    assert {one["label"] for one in results} == {row[0] for row in names}


async def test_pages_and_orders(copied: Path) -> None:
    make(copied, k=5)
    site = open_datasette(copied)
    first = await ask_json(site, f"{PAGE}.json?_size=2&_sort=name")
    assert first["next"] == "2"
    path, names = f"{PAGE}.json?_size=2&_sort=name", []
    while path:
        found = await ask_json(site, path)
        names += [one["name"] for one in found["clusters"]]
        path = found["next_url"] and found["next_url"].partition("localhost")[2]
    assert len(names) == 5
    assert names == sorted(names, key=str.casefold)
    assert (await ask(site, f"{PAGE}?_sort=luck")).status_code == 400
    assert 'rel="next"' in (await ask(site, f"{PAGE}?_size=2")).text
    beyond = await ask(site, f"{PAGE}?_next=50")
    assert "There are no clusters after 5" in beyond.text


async def test_csv_has_a_line_for_each_cluster(clustered: Path) -> None:
    response = await ask(open_datasette(clustered), f"{PAGE}.csv?_size=1")
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert len(rows) == 3
    for row in rows:
        distance = value(
            clustered,
            "select distance from _image_similarity_members where pk = ?",
            (int(row["medoid"]),),
        )
        nearest = value(
            clustered,
            "select min(distance) from _image_similarity_members where cluster_id = ?",
            (int(row["cluster"]),),
        )
        assert distance == nearest


async def test_filters_of_the_address_apply(clustered: Path) -> None:
    site = open_datasette(clustered)
    found = await ask_json(site, f"{PAGE}.json?label=red")
    counted = value(
        clustered,
        "select count(*) from images join _image_similarity_members m "
        "on m.pk = images.id where label = 'red' and cluster_id is not null",
    )
    assert sum(one["size"] for one in found["clusters"]) == counted
    assert counted + found["in_no_cluster"] == 8
    page = (await ask(site, f"{PAGE}?label=red")).text
    assert "label = &#34;red&#34;" in page
    assert [link for link in links(page) if "label=red&_image_cluster=" in link]
    assert (await ask(site, f"{PAGE}?nothing=1")).status_code == 400


# ?_image_cluster=


async def test_a_table_is_narrowed_by_cluster(clustered: Path) -> None:
    site = open_datasette(clustered)
    sizes = {}
    for id, name in sql(clustered, "select id, name from _image_similarity_clusters"):
        found = await ask_json(
            site, f"/gallery/images.json?_image_cluster={id}&_extra=count"
        )
        sizes[id] = len(found["rows"])
        page = (await ask(site, f"/gallery/images?_image_cluster={id}")).text
        assert f"in the cluster “{name}”" in page
    assert sum(sizes.values()) == 20
    found = await ask_json(site, "/gallery/images.json?_image_cluster=none")
    assert len(found["rows"]) == 4
    similar = f"/gallery/images/-/similar.json?_like=9&_image_cluster={next(iter(sizes))}"
    found = await ask_json(site, similar)
    mine = {row["row"]["id"] for row in found["rows"]} | {9}
    assert len(mine - {9}) in (sizes[next(iter(sizes))], sizes[next(iter(sizes))] - 1)


@pytest.mark.parametrize("name", ["there", "ranked", "passing", 'm "1"'])
async def test_any_name_of_a_table(tmp_path: Path, photos: Path, name: str) -> None:
    path = tmp_path / "x.db"
    embed(path, photos / "red", table=name)
    make(path, name, k=2)
    page = "/x/" + tilde_encode(name) + "/-/clusters.json"
    found = await ask_json(open_datasette(path), f"{page}?name__contains=red")
    assert sum(one["size"] for one in found["clusters"]) == 8


@pytest.mark.parametrize("value", ["999", "x", "", "1 or 1=1", "9" * 30, "9" * 5000])
async def test_a_cluster_that_is_not_there(clustered: Path, value: str) -> None:
    site = open_datasette(clustered)
    response = await ask(site, f"/gallery/images.json?_image_cluster={value}")
    assert response.status_code == 400
    assert (await ask(site, f"{PAGE}?_image_cluster={value}")).status_code == 400


async def test_narrowing_without_any_clusters(copied: Path) -> None:
    site = open_datasette(copied)
    for which in ("1", "none"):
        response = await ask(site, f"/gallery/images?_image_cluster={which}")
        assert response.status_code == 400
        assert "run datasette image-similarity clusters" in response.text


# Empty, older, new, damaged


@pytest.mark.parametrize("version", [3, 2, 1])
async def test_without_clusters_the_page_says_how_to_make_them(
    copied: Path, version: int
) -> None:
    make_older(copied, version)
    site = open_datasette(copied)
    page = (await ask(site, PAGE)).text
    assert "datasette image-similarity clusters gallery.db images</pre>" in page
    found = await ask_json(site, f"{PAGE}.json")
    assert (found["made"], found["clusters"]) == (None, [])
    assert (await ask(site, f"{PAGE}.csv")).status_code == 200


async def test_new_pictures_are_counted(clustered: Path, photos: Path) -> None:
    embed(clustered, photos / "red" / "red-0.png", label_from_folder=True)
    site = open_datasette(clustered)
    found = await ask_json(site, f"{PAGE}.json")
    assert (found["in_no_cluster"], found["new"]) == (5, 1)
    page = (await ask(site, PAGE)).text
    assert "1 picture is new since" in page
    assert "clusters gallery.db images --k 3</pre>" in page
    sql(clustered, "update _image_similarity_items set embedded_at = '9' where id = 9")
    assert (await ask_json(site, f"{PAGE}.json"))["changed"] == 1
    page = (await ask(site, PAGE)).text
    assert "in no cluster, 1 has been embedded again since" in page


async def test_deleted_rows_are_not_shown(clustered: Path) -> None:
    medoid = value(
        clustered,
        "select pk from _image_similarity_members where cluster_id is not null "
        "order by distance limit 1",
    )
    change(clustered, f"delete from images where id in ({medoid}, 1)")
    found = await ask_json(open_datasette(clustered), f"{PAGE}.json")
    assert sum(one["size"] for one in found["clusters"]) == 19
    assert found["in_no_cluster"] == 3
    shown = [p["pk"] for one in found["clusters"] for p in one["pictures"]]
    assert str(medoid) not in shown


@pytest.mark.parametrize(
    "damage",
    [
        "update _image_similarity_clusterings set parameters = 'x'",
        "update _image_similarity_clusterings set parameters = '[1]'",
        "update _image_similarity_clusterings set method = x'00'",
        "update _image_similarity_clusters set name = x'00ff'",
        "update _image_similarity_members set distance = 'near' where distance = 0",
        "update _image_similarity_members set distance = x'00'",
    ],
)
async def test_nonsense_is_told_in_words(clustered: Path, damage: str) -> None:
    change(clustered, damage)
    site = open_datasette(clustered)
    for path in (PAGE, f"{PAGE}.json", f"{PAGE}.csv"):
        response = await ask(site, path)
        assert response.status_code in (200, 400, 500)
        if response.status_code != 200:
            assert "clusters in this database are damaged" in response.text


async def test_an_immutable_database_is_shown_but_not_changed(clustered: Path) -> None:
    site = open_datasette()
    from datasette.database import Database

    site.add_database(Database(site, path=str(clustered), is_mutable=False), name="gallery")
    assert (await ask(site, PAGE, ROOT)).status_code == 200
    response = await post(site, data={"cluster": "1", "name": "x"})
    assert response.status_code == 403


# Names


async def test_a_cluster_is_renamed_everywhere(clustered: Path) -> None:
    site = open_datasette(clustered)
    response = await post(site, data={"cluster": "2", "name": "  My   name "})
    assert response.json() == {"ok": True, "cluster": 2, "name": "My name"}
    found = await ask_json(site, f"{PAGE}.json")
    assert [c["name"] for c in found["clusters"] if c["id"] == 2] == ["My name"]
    assert [c["given"] for c in found["clusters"] if c["id"] == 2] == [True]
    sizes = sql(
        clustered,
        "select count(*) from _image_similarity_members where album = 'My name'",
    )
    assert sizes[0][0] > 0
    response = await post(site, json={"cluster": 2, "name": ""})
    suggested = "select suggested from _image_similarity_clusters where id = 2"
    assert response.json()["name"] == value(clustered, suggested)


async def test_a_form_leads_back_to_the_cluster(clustered: Path) -> None:
    site = open_datasette(clustered)
    page = await ask(site, f"{PAGE}?_sort=name&label=red", ROOT)
    assert f'action="{PAGE}/rename?_sort=name&amp;label=red"' in page.text
    response = await post(
        site, f"{PAGE}/rename?_sort=name", data={"cluster": "1", "name": "x"}
    )
    assert response.status_code == 302
    assert response.headers["location"] == f"{PAGE}?_sort=name#cluster-1"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"cluster": "1", "name": "x" * 81}, "up to 80 characters"),
        ({"cluster": "99", "name": "x"}, "There is no cluster 99"),
        ({"cluster": "one", "name": "x"}, "Send the number of a cluster"),
        ({"name": "x"}, "Send the number of a cluster"),
        ({"cluster": "1"}, "Send the number of a cluster"),
        ({"cluster": "9" * 30, "name": "x"}, "Send the number of a cluster"),
        ({"cluster": "1", "name": "TAKEN"}, "another cluster called 'TAKEN'"),
    ],
)
async def test_names_that_cannot_be(clustered: Path, body: dict, said: str) -> None:
    site = open_datasette(clustered)
    assert (await post(site, data={"cluster": "3", "name": "taken"})).status_code == 200
    response = await post(site, data=body)
    assert response.status_code == 400
    assert said in response.json()["error"]


async def test_hostile_names_are_only_text(clustered: Path) -> None:
    site = open_datasette(clustered)
    assert (await post(site, data={"cluster": "1", "name": HOSTILE})).status_code == 200
    change(clustered, "update images set name = '<b onclick=x>' || char(10) || '\"'")
    for path in (PAGE, "/gallery/images?_image_cluster=1", f"{PAGE}?_image_cluster=1"):
        page = (await ask(site, path, ROOT)).text
        assert "<script>alert" not in page
        assert "<b onclick" not in page
        assert "&lt;script&gt;alert(1)" in page
    make(clustered, k=3)
    assert value(clustered, "select count(*) from images") == 24
    given = "select count(*) from _image_similarity_clusters where name = ?"
    assert value(clustered, given, (HOSTILE,)) == 1


async def test_only_curators_rename(clustered: Path) -> None:
    site = open_datasette(clustered)
    body = {"cluster": "1", "name": "x"}
    assert (await post(site, data=body, actor=None)).status_code == 403
    elsewhere = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    assert (await post(site, data=body, headers=elsewhere)).status_code == 403
    assert (await ask(site, f"{PAGE}/rename.json", ROOT)).status_code == 405
    site = open_datasette(clustered, plugin={"curators": {"id": "ann"}})
    assert (await post(site, data=body)).status_code == 403
    assert (await post(site, data=body, actor={"id": "ann"})).status_code == 200
    page = (await ask(site, PAGE, {"id": "ann"})).text
    assert f'action="{PAGE}/rename?"' in page


# Permissions and keys


async def test_a_private_table_keeps_its_clusters_private(clustered: Path) -> None:
    site = open_datasette(clustered, config=PRIVATE)
    for path in (PAGE, f"{PAGE}.json", f"{PAGE}.csv", f"{PAGE}/rename"):
        assert (await ask(site, path)).status_code == 403, path
        body = {"cluster": "1", "name": "x"}
        assert (await post(site, path, data=body, actor=None)).status_code == 403, path
    for name in ("clusterings", "clusters", "members"):
        for suffix in ("", ".json", ".csv", ".json?_facet=album", "/1.json"):
            path = f"/gallery/_image_similarity_{name}{suffix}"
            assert (await ask(site, path)).status_code == 403, path
    assert (await ask(site, "/gallery/_image_similarity_members.json", ROOT)).is_success
    assert (await ask(site, PAGE, ROOT)).status_code == 200


async def test_the_rows_are_not_offered_where_they_may_not_be_seen(
    clustered: Path, photos: Path
) -> None:
    embed(clustered, photos / "red", table="secrets")
    tables = {"secrets": NOBODY_BUT_ROOT}
    config = {"databases": {"gallery": {"tables": tables, "allow_sql": False}}}
    site = open_datasette(clustered, config=config)
    page = (await ask(site, PAGE)).text
    assert "_image_similarity_members" not in page


@pytest.mark.parametrize(
    ("key", "values", "first"),
    [
        ("id text primary key", ["a/b", "é,\"'<i>", "7", "007"], "a~2Fb"),
        ("a text, id integer, primary key (a, id)", [1, 2, 3, 4], "x~2F,1"),
    ],
)
async def test_odd_keys(
    tmp_path: Path, photos: Path, key: str, values: list, first: str
) -> None:
    path = tmp_path / "odd.db"
    sql(path, f"create table works (file text, {key})")
    for number, one in enumerate(values):
        sql(
            path,
            "insert into works (file, id) values (?, ?)",
            (f"red/red-{number}.png", one),
        )
    if "a text" in key:
        sql(path, "update works set a = 'x/'")
    embed(path, table="works", path_column="file", root=photos)
    make(path, "works", k=1)
    site = open_datasette(path)
    (one,) = (await ask_json(site, "/odd/works/-/clusters.json"))["clusters"]
    assert first in {picture["pk"] for picture in one["pictures"]}
    for picture in one["pictures"]:
        assert (await ask(site, f"/odd/works/{picture['pk']}")).status_code == 200
    assert (await ask(site, "/odd/works/-/clusters")).status_code == 200
    found = await ask_json(site, f"/odd/works.json?_image_cluster={one['id']}")
    assert len(found["rows"]) == 4
    page = (await ask(site, "/odd/works/-/clusters")).text
    query = link_to(page, "sql=").replace("?", ".json?")
    assert len((await ask_json(site, f"{query}&_shape=objects"))["rows"]) == 4


async def test_a_named_collection_has_its_own_clusters(copied: Path, photos: Path) -> None:
    embed(copied, photos, name="other", label_from_folder=True)
    make(copied, k=2)
    with ImageCollection(copied, name="other") as other:
        other.clusters(k=4)
    site = open_datasette(copied)
    assert (await ask_json(site, f"{PAGE}.json"))["total"] == 2
    found = await ask_json(site, f"{PAGE}.json?_collection=other")
    assert found["total"] == 4
    id = found["clusters"][0]["id"]
    page = (await ask(site, f"{PAGE}?_collection=other")).text
    table = link_to(page, f"_image_cluster={id}")
    rows = (await ask_json(site, table.replace("?", ".json?")))["rows"]
    assert len(rows) == found["clusters"][0]["size"]
