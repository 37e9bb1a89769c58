"""Who may see what: pages, pictures and our own tables follow the source table."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import picture
from datasette.utils.sqlite import sqlite3
from serving import IS_ONE, ROOT, ask, ask_json, change, open_datasette, post_picture

from datasette_image_similarity.collection import EncoderOptions, ImageCollection

NOBODY_BUT_ROOT = {"allow": {"id": "root"}}
PRIVATE_TABLE = {"databases": {"gallery": {"tables": {"images": NOBODY_BUT_ROOT}}}}
PRIVATE_DATABASE = {"databases": {"gallery": NOBODY_BUT_ROOT}}

PAGES = [
    "images/-/similar?_like=1",
    "images/-/similar.json?_like=1",
    "images/-/similar.csv?_like=1",
    "images/-/similar.svg?_like=1",
    "images/-/similar.json?_like=1&_crop=0,0,1,1",
    "images/-/similar.json?_like=999",
    "images/-/search-by-image",
    "images/-/thumbnail/1",
    "images/-/thumbnail/999",
    "images/-/image/1",
    "images/-/add-picture",
]


def our_tables(path: Path) -> list[str]:
    """Every table of ours in a file, shadow tables of vec0 included."""
    connection = sqlite3.connect(str(path))
    rows = connection.execute("select name from sqlite_master where type = 'table'")
    names = [row[0] for row in rows if row[0].startswith("_image_similarity_")]
    connection.close()
    return names


def ways_to_read(table: str) -> list[str]:
    return [
        f"/gallery/{table}",
        f"/gallery/{table}.json",
        f"/gallery/{table}.json?_shape=array",
        f"/gallery/{table}.json?_shape=objects&_size=1",
        f"/gallery/{table}.csv",
        f"/gallery/{table}.csv?_stream=1",
        f"/gallery/{table}/1",
        f"/gallery/{table}/1.json",
    ]


@pytest.mark.parametrize("config", [PRIVATE_TABLE, PRIVATE_DATABASE])
async def test_a_private_table_is_private_everywhere(gallery: Path, config: dict) -> None:
    site = open_datasette(gallery, config=config)
    for page in PAGES:
        response = await ask(site, f"/gallery/{page}")
        assert response.status_code == 403, page
    response = await post_picture(site, "/gallery/images/-/search-by-image", picture())
    assert response.status_code == 403
    assert "rows" not in response.json()
    home = await ask_json(site, "/-/image-similarity.json")
    assert home["collections"] == []
    assert "/-/thumbnail/" not in (await ask(site, "/-/image-similarity")).text
    for page in PAGES:
        if "999" not in page:
            response = await ask(site, f"/gallery/{page}", ROOT)
            assert response.status_code == 200, page
    assert (await ask_json(site, "/-/image-similarity.json", actor=ROOT))["collections"]


@pytest.mark.parametrize("config", [PRIVATE_TABLE, PRIVATE_DATABASE])
async def test_our_tables_are_denied_along_with_it(gallery: Path, config: dict) -> None:
    site = open_datasette(gallery, config=config)
    tables = our_tables(gallery)
    assert "_image_similarity_items" in tables
    assert "_image_similarity_vectors_1_vector_chunks00" in tables
    for table in tables:
        for name in (table, table.upper(), table.title()):
            for path in ways_to_read(name):
                response = await ask(site, path)
                assert response.status_code in (403, 404), path
                if name == table and "/1" not in path:
                    assert response.status_code == 403, path


async def test_who_may_view_the_table_may_view_ours(gallery: Path) -> None:
    site = open_datasette(gallery, config=PRIVATE_TABLE)
    items = await ask_json(site, "/gallery/_image_similarity_items.json", actor=ROOT)
    assert len(items["rows"]) == 24
    site = open_datasette(gallery)
    items = await ask_json(site, "/gallery/_image_similarity_items.json")
    assert len(items["rows"]) == 24


async def test_nobody_browses_the_shadow_tables(gallery: Path) -> None:
    site = open_datasette(gallery)
    for table in our_tables(gallery):
        if table.startswith("_image_similarity_vectors_1_"):
            for path in ways_to_read(table):
                assert (await ask(site, path, ROOT)).status_code == 403, path


async def test_one_denied_table_hides_what_tells_of_all(
    gallery: Path, photos: Path
) -> None:
    with ImageCollection(gallery, "secrets") as collection:
        collection.embed(photos / "red", encoder=EncoderOptions("hog"))
    tables = {"secrets": NOBODY_BUT_ROOT}
    site = open_datasette(gallery, config={"databases": {"gallery": {"tables": tables}}})
    for table in ("items", "thumbnails", "failures", "roots", "collections", "vectors_2"):
        for path in ways_to_read(f"_image_similarity_{table}"):
            assert (await ask(site, path)).status_code == 403, path
    # The vectors of the other table are nobody's secret.
    path = "/gallery/_image_similarity_vectors_1.json?_size=1&_col=id"
    assert (await ask(site, path)).status_code == 200
    answer = await ask_json(site, "/gallery/images/-/similar.json?_like=1")
    assert answer["total"] == 23
    home = await ask_json(site, "/-/image-similarity.json")
    assert [card["table"] for card in home["collections"]] == ["images"]


async def test_another_database_decides_for_itself(gallery: Path, tmp_path: Path) -> None:
    public = tmp_path / "public.db"
    public.write_bytes(gallery.read_bytes())
    site = open_datasette(gallery, public, config=PRIVATE_DATABASE)
    assert (await ask(site, "/gallery/_image_similarity_items.json")).status_code == 403
    assert (await ask(site, "/public/_image_similarity_items.json")).status_code == 200
    assert (await ask(site, "/public/images/-/thumbnail/1")).status_code == 200
    assert (await ask(site, "/gallery/images/-/thumbnail/1")).status_code == 403


async def test_a_private_instance(gallery: Path) -> None:
    site = open_datasette(gallery, config={"allow": {"id": "root"}})
    for page in PAGES:
        assert (await ask(site, f"/gallery/{page}")).status_code == 403, page
    home = await ask(site, "/-/image-similarity.json")
    assert home.status_code == 403 or home.json()["collections"] == []
    assert (await ask(site, "/-/image-similarity", ROOT)).status_code == 200


async def test_a_public_table_in_a_private_database(gallery: Path) -> None:
    config = {"databases": {"gallery": {**NOBODY_BUT_ROOT, "tables": {"images": {}}}}}
    config["databases"]["gallery"]["tables"]["images"]["allow"] = True
    site = open_datasette(gallery, config=config)
    assert (await ask(site, "/gallery/images")).status_code == 200
    for page in PAGES[:3]:
        assert (await ask(site, f"/gallery/{page}")).status_code == 200, page


async def test_hidden_tables_are_marked_hidden(gallery: Path) -> None:
    # Configuration of the user's own must survive beside ours.
    config = {"databases": {"gallery": {"tables": {"images": {"title": "Mine"}}}}}
    site = open_datasette(gallery, config=config)
    found = (await ask_json(site, "/gallery.json"))["tables"]
    hidden = {table["name"] for table in found if table["hidden"]}
    shown = {table["name"] for table in found if not table["hidden"]}
    assert shown == {"images"}
    assert "_image_similarity_items" in hidden
    # The home page does not offer them either.
    assert "_image_similarity" not in (await ask(site, "/")).text


async def test_hidden_tables_of_a_denied_table_are_not_listed(gallery: Path) -> None:
    site = open_datasette(gallery, config=PRIVATE_TABLE)
    found = (await ask_json(site, "/gallery.json"))["tables"]
    assert "images" not in {table["name"] for table in found}
    assert not [t["name"] for t in found if t["name"].startswith("_image_similarity")]


async def test_other_tables_keep_their_permissions(gallery: Path) -> None:
    change(gallery, "create table plain (id integer primary key)")
    config = {"databases": {"gallery": {"tables": {"plain": NOBODY_BUT_ROOT}}}}
    site = open_datasette(gallery, config=config)
    assert (await ask(site, "/gallery/plain.json")).status_code == 403
    assert (await ask(site, "/gallery/plain.json", ROOT)).status_code == 200
    assert (await ask(site, "/gallery/images.json")).status_code == 200


@pytest.mark.skipif(not IS_ONE, reason="Datasette 0.65 has no allowed_resources()")
async def test_lists_of_resources_are_right(gallery: Path) -> None:
    site = open_datasette(gallery, config=PRIVATE_TABLE)
    await site.invoke_startup()
    for actor, expected in ((None, set()), (ROOT, {"images", "_image_similarity_items"})):
        found = await site.allowed_resources("view-table", actor, parent="gallery")
        names = {resource.child for resource in found.resources}
        assert expected <= names
        assert expected or not names & {"images", "_image_similarity_items"}


async def test_who_may_not_run_sql_may_search(gallery: Path) -> None:
    site = open_datasette(gallery, config={"allow_sql": False})
    answer = await ask_json(site, "/gallery/images/-/similar.json?_like=1&label=red")
    assert answer["total"] == 8
    response = await post_picture(site, "/gallery/images/-/search-by-image", picture())
    assert response.status_code == 200


async def test_a_table_renamed_after_embedding_stays_private(gallery: Path) -> None:
    """Our tables tell about a table that is no more: whoever may not view it, may not."""
    change(gallery, "alter table images rename to pictures")
    site = open_datasette(gallery, config=PRIVATE_TABLE)
    response = await ask(site, "/gallery/_image_similarity_items.json")
    assert response.status_code == 403
    assert (await ask(site, "/gallery/pictures")).status_code == 200
    assert (await ask(site, "/-/image-similarity", ROOT)).status_code == 200


async def test_a_broken_schema_opens_nothing(gallery: Path) -> None:
    """A stranger's database may lie about which tables its embeddings belong to."""
    change(gallery, "update _image_similarity_schema set version = 99")
    site = open_datasette(gallery, config=PRIVATE_TABLE)
    response = await ask(site, "/gallery/_image_similarity_items.json")
    assert response.status_code == 403
    assert (await ask(site, "/gallery/images", ROOT)).status_code == 200
