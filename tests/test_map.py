"""The map: how pictures are laid out, stored, drawn small, and found again by region."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, picture
from core import answer, command, embed, make_older, opened, refused, sql, value

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import CollectionError, DatabaseError
from datasette_image_similarity.explore import atlas, grid, layout
from datasette_image_similarity.explore.map import inside, read_region, region_slots
from datasette_image_similarity.explore.vectors import Stopped

UMAP = pytest.param("umap", marks=pytest.mark.slow)  # has to be compiled
POINTS = "select item_id, x, y, cell, slot from _image_similarity_points order by slot"
WHOLE = "-2,-2,2,-2,2,2,-2,2"  # a region around everything


def few_photos(folder: Path, count: int, same: bool = False) -> Path:
    folder.mkdir()
    for number in range(count):
        data = picture("red", 0 if same else number)
        (folder / f"{number}.png").write_bytes(data)
    return folder


# Layout


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_colours_lie_apart(copied: Path, method: str) -> None:
    assert answer("map", copied, "--method", method)["method"] == method
    found = sql(
        copied,
        "select t.label, p.x, p.y from images t join _image_similarity_items i "
        "on i.pk = t.id join _image_similarity_points p on p.item_id = i.id",
    )
    labels = np.array([row[0] for row in found])
    places = np.array([row[1:] for row in found])
    centres = {colour: places[labels == colour].mean(axis=0) for colour in COLOURS}
    nearest = [
        min(centres, key=lambda colour: ((centres[colour] - place) ** 2).sum())
        for place in places
    ]
    assert (np.array(nearest) == labels).mean() > 0.8  # by chance a third


@pytest.mark.parametrize("method", ["tsne", "pca", UMAP])
def test_the_same_seed_gives_the_same_map(copied: Path, method: str) -> None:
    if method == "umap":
        pytest.importorskip("umap")
    with ImageCollection(copied) as collection:
        maps = []
        for seed in (1, 1, 2):
            assert collection.map(method=method, seed=seed).method == method
            maps.append(sql(copied, POINTS))
    assert maps[0] == maps[1]
    assert (maps[1] == maps[2]) == (method == "pca")


def test_places_are_centred_and_the_larger_extent_is_one(copied: Path) -> None:
    command("map", copied, "--method", "pca")
    places = np.array(sql(copied, "select x, y from _image_similarity_points"))
    assert np.abs(places).max() == pytest.approx(1)
    assert places.min(axis=0) == pytest.approx(-places.max(axis=0), abs=1e-6)


@pytest.mark.parametrize("method", ["tsne", "pca", UMAP])
@pytest.mark.parametrize(
    ("count", "same"), [(1, False), (2, False), (5, False), (12, True)]
)
def test_tiny_collections(tmp_path: Path, method: str, count: int, same: bool) -> None:
    if method == "umap":
        pytest.importorskip("umap")
    count, same = abs(count), count < 0  # less than none: all the same picture
    path = tmp_path / "tiny.db"
    embed(path, few_photos(tmp_path / "few", count, same))
    with ImageCollection(path) as collection:
        assert collection.map(method=method).count == count
    found = np.array(sql(path, POINTS), float)
    assert len(found) == count
    assert np.isfinite(found).all()
    assert np.abs(found[:, 1:3]).max() <= 1
    assert len(set(found[:, 3])) == len(set(found[:, 4])) == count


def test_a_collection_without_pictures_has_no_map(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    embed(path, few_photos(tmp_path / "few", 1))
    sql(path, "delete from images")
    assert "no pictures" in refused("map", path)
    assert value(path, "select count(*) from _image_similarity_maps") == 0


def test_rows_that_are_gone_are_left_out(copied: Path) -> None:
    sql(copied, "delete from images where id = 3")
    sql(copied, "update images set path = 'elsewhere.png' where id = 4")
    assert answer("map", copied, "--method", "pca")["count"] == 22


def test_a_missing_library_is_named(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install 'datasette-image-similarity[explore]'" in refused("map", copied)
    message = refused("map", copied, "--method", "umap")
    assert "pip install 'datasette-image-similarity[umap]'" in message
    assert command("map", copied, "--method", "pca").exit_code == 0


def test_an_unknown_method_is_refused(copied: Path) -> None:
    with ImageCollection(copied) as collection, pytest.raises(CollectionError):
        collection.map(method="som")


def test_more_dimensions_than_vectors_give_the_same_axes() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 30)).astype(np.float32) * np.linspace(3, 1, 30)
    vectors = vectors.astype(np.float32)
    padded = np.hstack([vectors, np.zeros((40, 20), np.float32)])
    _, axes = layout.principal_axes(vectors)
    _, wide = layout.principal_axes(padded)
    assert wide[:, :30] == pytest.approx(axes, abs=1e-3)


def test_neighbours_are_never_the_point_itself() -> None:
    points = np.repeat(np.random.default_rng(0).normal(size=(3, 4)), 20, axis=0)
    numbers, distances = layout.nearest(points.astype(np.float32), 5)
    assert numbers.shape == distances.shape == (60, 5)
    assert not (numbers == np.arange(60)[:, None]).any()
    assert (numbers // 20 == np.arange(60)[:, None] // 20).all()
    assert distances == pytest.approx(np.zeros((60, 5)), abs=1e-3)


# Grid and slots


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 24, 1000])
def test_every_picture_has_a_cell_of_its_own(count: int) -> None:
    places = np.random.default_rng(count).normal(size=(count, 2))
    cells = grid.grid_cells(places)
    columns = grid.grid_columns(count)
    rows = -(-count // columns) if count else 0
    assert len(set(cells)) == count
    assert ((cells >= 0) & (cells < columns * rows)).all()
    assert 0 <= columns - rows <= 1


def test_what_lies_on_a_grid_keeps_its_cells() -> None:
    x, y = (side.ravel() for side in np.meshgrid(np.arange(6), np.arange(6)))
    order = np.random.default_rng(0).permutation(36)
    cells = grid.grid_cells(np.stack([x, -y], axis=1)[order])  # y grows upwards
    assert (cells == (6 * y + x)[order]).all()


def test_neighbours_stay_neighbours() -> None:
    places = np.random.default_rng(0).normal(size=(900, 2))
    cells = grid.grid_cells(places)
    arranged = np.stack([cells % 30, cells // 30], axis=1)

    def nearest(points: np.ndarray) -> np.ndarray:
        far = ((points[:, None] - points[None]) ** 2.0).sum(axis=2)
        np.fill_diagonal(far, np.inf)
        return far.argsort(axis=1)[:, :8]

    both = zip(nearest(places), nearest(arranged), strict=True)
    assert np.mean([len(set(a) & set(b)) / 8 for a, b in both]) > 0.4  # by chance .009


def test_slots_follow_a_curve_without_jumps() -> None:
    x, y = (side.ravel() for side in np.meshgrid(np.arange(16), np.arange(16)))
    order = np.argsort(grid.hilbert_order(x, y))
    steps = np.abs(np.diff(x[order])) + np.abs(np.diff(y[order]))
    assert (steps == 1).all()


def test_without_a_grid_there_are_slots_all_the_same(copied: Path) -> None:
    made = answer("map", copied, "--method", "pca", "--no-grid")
    assert made["columns"] is None
    found = sql(copied, POINTS)
    assert [row[4] for row in found] == list(range(24))
    assert {row[3] for row in found} == {None}


# Atlases


def sheet_of(path: Path, number: int = 0) -> np.ndarray:
    from PIL import Image

    webp = value(
        path, "select webp from _image_similarity_atlases where number = ?", [number]
    )
    return np.asarray(Image.open(io.BytesIO(webp)).convert("RGB")).astype(int)


def tile_of(path: Path, item: int) -> np.ndarray:
    """The pixels of an item's tile."""
    sheet, tile = sql(path, "select sheet, tile from _image_similarity_maps")[0]
    slots = dict(sql(path, "select item_id, slot from _image_similarity_points"))
    number, place = divmod(slots[item], (sheet // tile) ** 2)
    top, left = (tile * part for part in divmod(place, sheet // tile))
    return sheet_of(path, number)[top : top + tile, left : left + tile]


def test_tiles_show_whole_pictures_in_their_slots(copied: Path) -> None:
    command("map", copied, "--method", "pca")
    labels = sql(
        copied,
        "select i.id, t.label from images t join _image_similarity_items i on i.pk = t.id",
    )
    strongest = {"red": 0, "green": 1, "blue": 2}
    for item, label in labels:
        tile = tile_of(copied, item)
        assert tile.shape == (64, 64, 3)
        picture = tile[10:54]  # 80 × 60 pixels become 64 × 48
        assert picture.mean(axis=(0, 1)).argmax() == strongest[label]
        assert np.ptp(tile[:5].mean(axis=(0, 1))) < 40  # the ground above it


def test_pictures_fill_several_sheets(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atlas, "SHEETS", (128,))
    made = answer("map", copied, "--method", "pca")
    assert (made["sheets"], made["sheet"], made["tile"]) == (6, 128, 64)
    item = value(copied, "select item_id from _image_similarity_points where slot = 22")
    assert np.ptp(tile_of(copied, item)[20:40].mean(axis=(0, 1))) > 40


def test_what_cannot_be_decoded_leaves_its_tile_empty(copied: Path) -> None:
    from PIL import Image

    huge = io.BytesIO()
    Image.new("1", (5000, 5000)).save(huge, "PNG")
    for item, planted in enumerate([b"no picture", huge.getvalue(), 12345], 1):
        sql(
            copied,
            "update _image_similarity_thumbnails set webp = ? where id = ?",
            [planted, item],
        )
    sql(copied, "delete from _image_similarity_thumbnails where id = 4")
    assert command("map", copied, "--method", "pca").exit_code == 0
    for item in range(1, 5):
        assert np.ptp(tile_of(copied, item)[20:40, 20:40]) < 30, item
    assert np.ptp(tile_of(copied, 5)[20:40, 20:40]) > 30


@pytest.mark.parametrize(
    ("pictures", "sides"),
    [(1, (256, 64)), (24, (512, 64)), (5000, (2048, 64)), (100_000, (2048, 32))],
)
def test_sheets_fit_the_collection(pictures: int, sides: tuple[int, int]) -> None:
    assert atlas.sheet_and_tile(pictures) == sides


# Running again


def test_stopping_leaves_the_old_map(copied: Path) -> None:
    version = "select version from _image_similarity_maps"
    told: list[tuple] = []
    with ImageCollection(copied) as collection:
        collection.map(method="pca")
        before = sql(copied, POINTS), value(copied, version)
        with pytest.raises(Stopped):
            collection.map(
                method="pca",
                grid=False,
                progress=lambda *step: told.append(step),
                stop=lambda: any(what == "Drawing small pictures" for what, _, _ in told),
            )
    assert told
    assert before == (sql(copied, POINTS), value(copied, version))


def test_t_sne_stops_between_rounds(copied: Path) -> None:
    rounds: list[int] = []

    def say(what: str, done: int, total: int) -> None:
        if what == "Laying out":
            assert total == 750
            rounds.append(done)

    with ImageCollection(copied) as collection, pytest.raises(Stopped):
        collection.map(progress=say, stop=lambda: len(rounds) >= 3)
    assert len(rounds) == 3


def test_the_command_stopped_exits_with_130(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise Stopped

    monkeypatch.setattr(ImageCollection, "map", stopped)
    result = command("map", copied)
    assert result.exit_code == 130
    assert "as it was" in result.output


def test_progress_never_goes_back(copied: Path) -> None:
    told: list[tuple[str, int, int]] = []
    with ImageCollection(copied) as collection:
        collection.map(progress=lambda *step: told.append(step))
    assert {what for what, _, _ in told} >= {"Laying out", "Drawing small pictures"}
    for what in {what for what, _, _ in told}:
        done = [done for one, done, _ in told if one == what]
        assert done == sorted(done)
    assert all(0 <= done <= total for _, done, total in told)


def test_a_new_map_replaces_the_old_one(copied: Path) -> None:
    first = answer("map", copied, "--method", "pca")
    second = answer("map", copied, "--method", "pca")
    assert first["version"] != second["version"]
    assert second["count"] == len(sql(copied, POINTS)) == 24
    assert value(copied, "select count(*) from _image_similarity_atlases") == 1


def test_new_pictures_are_told_and_change_nothing(
    gallery: Path, photos: Path, tmp_path: Path
) -> None:
    command("map", gallery, "--method", "pca")
    before = sql(gallery, POINTS)
    (photos / "red" / "new.png").write_bytes(picture("red", 99))
    embed(gallery, photos)
    assert sql(gallery, POINTS) == before
    assert answer("status", gallery)[0]["map"]["newer"] == 1
    assert "1 are newer (run map again)" in command("status", gallery).output
    assert answer("map", gallery, "--method", "pca")["newer"] == 0


def test_dropped_items_leave_the_map(gallery: Path, photos: Path) -> None:
    command("map", gallery, "--method", "pca")
    (photos / "red" / "red-0.png").unlink()
    command("embed", gallery, "--prune")
    assert len(sql(gallery, POINTS)) == 23
    with ImageCollection(gallery) as collection:
        collection.remove()
    left = sql(
        gallery, "select name from sqlite_master where name like '\\_image%' escape '\\'"
    )
    assert left == []


def test_each_collection_has_a_map_of_its_own(gallery: Path, photos: Path) -> None:
    embed(gallery, photos, name="second")
    command("map", gallery, "--method", "pca")
    command("map", gallery, "--name", "second", "--method", "pca", "--no-grid")
    columns = sql(gallery, "select columns from _image_similarity_maps order by 1")
    assert columns == [(None,), (5,)]
    with ImageCollection(gallery, name="second") as collection:
        collection.remove()
    assert len(sql(gallery, POINTS)) == 24


def test_an_older_database_is_migrated_by_the_command(copied: Path) -> None:
    make_older(copied)
    assert answer("status", copied)[0]["map"] is None
    assert answer("map", copied, "--method", "pca")["count"] == 24


# Regions


def slots_in(path: Path, region: str) -> list[int]:
    with opened(path) as conn:
        runs, count = region_slots(conn, db.find_collection(conn, "images"), region)
    slots = [slot for first, last in runs for slot in range(first, last + 1)]
    assert len(slots) == count
    return slots


def test_inside_a_polygon_by_the_even_odd_rule() -> None:
    star = np.array([(0, 3), (2, -3), (-3, 1), (3, 1), (-2, -3)], float)
    places = np.array([(0, 2), (0, 0), (2, 2), (-1.5, 0.5), (9, 9)], float)
    assert inside(places, star).tolist() == [True, False, False, True, False]


def test_a_region_finds_what_lies_in_it(copied: Path) -> None:
    command("map", copied, "--method", "pca")
    assert slots_in(copied, WHOLE) == list(range(24))
    points = sql(copied, POINTS)
    right = [slot for _, x, _, _, slot in points if x > 0.1]
    assert 0 < len(right) < 24
    assert slots_in(copied, "0.1,-2,2,-2,2,2,0.1,2") == right
    assert slots_in(copied, "5,5,6,5,6,6") == []


def test_a_region_of_the_grid_is_in_columns_and_rows(copied: Path) -> None:
    command("map", copied, "--method", "pca")
    found = slots_in(copied, "grid:1,0,3,0,3,2,1,2")
    cells = {cell for _, _, _, cell, slot in sql(copied, POINTS) if slot in found}
    assert cells == {1, 2, 6, 7}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,2,3,4",
        "1,2,3,4,5",
        "1,2,3,4,5,x",
        "nan,0,1,0,1,1",
        "inf,0,1,0,1,1",
        "1e9,0,1,0,1,1",
        "map:0,0,1,0,1,1",
        ",".join(["0,0"] * 101),
        "," * 100_000,
    ],
)
def test_regions_that_mean_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=r"corner|could not convert"):
        read_region(text)


def test_a_region_needs_a_map_and_a_grid(copied: Path) -> None:
    with pytest.raises(CollectionError, match="no map yet"):
        slots_in(copied, WHOLE)
    command("map", copied, "--method", "pca", "--no-grid")
    with pytest.raises(CollectionError, match="no grid"):
        slots_in(copied, "grid:0,0,1,0,1,1")


def test_a_damaged_map_is_told(copied: Path) -> None:
    command("map", copied, "--method", "pca")
    sql(copied, "update _image_similarity_maps set tile = -1")
    with pytest.raises(DatabaseError, match="make it anew"):
        slots_in(copied, WHOLE)


def test_the_map_needs_neither_torch_nor_sklearn_to_be_read(copied: Path) -> None:
    import subprocess

    command("map", copied, "--method", "pca")
    code = """
import asyncio, sys
from datasette.app import Datasette
async def main():
    site = Datasette([sys.argv[1]])
    await site.invoke_startup()
    for path in ("map.json", "map/points.bin", "map/columns.json", "map/atlas/0"):
        response = await site.client.get(f"/gallery/images/-/{path}")
        assert response.status_code == 200, (path, response.status_code)
    print([name for name in ("torch", "sklearn", "scipy", "PIL") if name in sys.modules])
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(copied)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
