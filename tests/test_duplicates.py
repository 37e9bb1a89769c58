"""Duplicates: what is found, in which tier, what stays when it is run again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from core import answer, command, embed, make_older, opened, refused, sql, value
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from serving import ask, ask_json, open_datasette

from datasette_image_similarity import ImageCollection, trust
from datasette_image_similarity import database as db
from datasette_image_similarity.errors import CollectionError
from datasette_image_similarity.explore import calibrate, duplicates, hashes, pairs
from datasette_image_similarity.explore.duplicates import Duplicates
from datasette_image_similarity.explore.facts import Facts, facts_of
from datasette_image_similarity.explore.groups import groups_of
from datasette_image_similarity.explore.keeper import suggest_keeper
from datasette_image_similarity.explore.vectors import Stopped


def drawn(seed: int, size: tuple[int, int] = (240, 180)) -> Image.Image:
    """A picture of soft patches, another one for each seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (7, 8, 3), np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def shelf(folder: Path) -> Path:
    """Twelve pictures, of the first three also copies."""
    first, second, third = drawn(0), drawn(1), drawn(2)
    inner = third.crop((2, 2, 238, 178))
    return put(
        folder,
        {
            **{f"{number:02}.png": saved(drawn(number)) for number in range(12)},
            "again/00 copy.png": saved(first),
            "small.jpg": saved(first.resize((120, 90)), "JPEG", quality=85),
            "worse.jpg": saved(second, "JPEG", quality=40),
            "bright.jpg": saved(ImageEnhance.Brightness(second).enhance(1.1), "JPEG"),
            "cut.jpg": saved(inner, "JPEG", quality=90),
            "mirrored.png": saved(drawn(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        },
    )


@pytest.fixture(scope="module")
def shelved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.get_app_dir", lambda *_, **__: str(folder))
        embed(folder / "x.db", [shelf(folder / "photos")])
        with ImageCollection(folder / "x.db") as collection:
            collection.duplicates()
    return folder / "x.db"


@pytest.fixture
def own(tmp_path: Path, shelved: Path) -> Path:
    """A copy of it, with the groups found, to change."""
    path = tmp_path / "own.db"
    path.write_bytes(shelved.read_bytes())
    trust.note_root(path, shelved.parent / "photos")
    return path


def find(path: Path, threshold: float | None = None, **options: object) -> Duplicates:
    with ImageCollection(path) as collection:
        return collection.duplicates(threshold, **options)


def named(path: Path, found: Duplicates) -> dict[str, list[set[str]]]:
    """Groups by tier, as the paths of their pictures."""
    paths = dict(sql(path, "select id, path from images"))
    return {
        tier: [{paths[pk] for pk in group.scores} for group in found.of_tier(tier)]
        for tier in ("identical", "same", "alike")
    }


def decide(path: Path, name: str, decision: str, other: list[int] | None = None) -> None:
    with opened(path) as conn, db.transaction(conn):
        conn.execute(
            "insert into _image_similarity_decisions "
            "(collection_id, step, pk, sha256, decision, other) select collection_id, "
            "(select coalesce(max(step), 0) + 1 from _image_similarity_decisions), "
            "pk, sha256, ?, ? from _image_similarity_items where path = ?",
            (decision, other and json.dumps(other), name),
        )


def key(path: Path, name: str) -> int:
    return value(path, "select id from images where path = ?", (name,))


# Tiers


def test_identical_files_and_the_same_picture_are_found(own: Path) -> None:
    found = named(own, find(own))
    assert found["identical"] == [{"00.png", "again/00 copy.png"}]
    assert {"01.png", "worse.jpg", "bright.jpg"} in found["same"]
    assert {"02.png", "cut.jpg"} in found["same"]


def test_of_identical_files_the_keeper_alone_goes_on(own: Path) -> None:
    assert {"00.png", "small.jpg"} in named(own, find(own))["same"]


def test_no_two_pictures_share_groups_of_two_tiers(own: Path) -> None:
    for threshold in (0.3, 0.6, 0.9):
        found = find(own, threshold)
        pairs_of = [
            frozenset((a, b))
            for group in found.groups
            for a in group.scores
            for b in group.scores
            if a < b
        ]
        assert len(pairs_of) == len(set(pairs_of))


def test_the_threshold_decides_about_look_alikes_only(own: Path) -> None:
    loose, strict = find(own, 0.05), find(own, 0.99)
    assert loose.of_tier("alike")
    assert not strict.of_tier("alike")
    assert loose.of_tier("same") == strict.of_tier("same")
    assert "as asked for" in " ".join(loose.thresholds.words)


def test_a_recoloured_picture_is_not_the_same(tmp_path: Path) -> None:
    red, green, blue = drawn(0).split()
    other = Image.merge("RGB", (blue, green, red))
    folder = put(tmp_path / "p", {"a.png": saved(drawn(0)), "b.png": saved(other)})
    put(folder, {f"{n}.png": saved(drawn(n)) for n in range(2, 9)})
    embed(tmp_path / "x.db", [folder])
    assert not find(tmp_path / "x.db", 0.1).of_tier("same")


def test_scores_are_cosines_to_the_medoid(own: Path) -> None:
    for group in find(own).groups:
        assert group.scores[group.medoid] == 1
        assert min(group.scores.values()) > 0.5
        with ImageCollection(own) as collection:
            medoid = collection.vector(group.medoid)
            for pk, score in group.scores.items():
                assert score == pytest.approx(medoid @ collection.vector(pk), abs=1e-3)


# Groups


def turned(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def grouped(vectors: np.ndarray, least: float, apart: dict | None = None) -> list[set[int]]:
    def linked(place: int, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        score = vectors[others] @ vectors[place]
        return score >= least - 1e-6, score

    found = pairs.similar_pairs(vectors, least)
    groups = groups_of(found, vectors, linked, apart)
    for group in groups:
        assert linked(group.medoid, group.members)[0].all()
    return [set(group.members.tolist()) for group in groups]


def test_a_group_is_a_component_of_pairs() -> None:
    assert grouped(turned(0, 4, 8, 50, 53, 120), np.cos(np.radians(5))) == [
        {0, 1, 2},
        {3, 4},
    ]


def test_a_chain_is_cut_where_its_ends_are_not_alike() -> None:
    least = np.cos(np.radians(5))
    groups = grouped(turned(*range(0, 60, 4)), least)
    assert all(len(group) <= 3 for group in groups)
    assert sum(map(len, groups)) >= 10


def test_what_is_apart_shares_no_group() -> None:
    vectors = turned(0, 1, 2, 3)
    apart = {0: frozenset({3}), 3: frozenset({0})}
    groups = grouped(vectors, 0.9, apart)
    assert groups
    assert not any({0, 3} <= group for group in groups)


def test_pairs_are_those_of_all_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "FEW", 10)
    monkeypatch.setattr(pairs, "BLOCK", 64)
    rng = np.random.default_rng(1)
    vectors = rng.normal(0, 1, (300, 8)) @ rng.normal(0, 1, (8, 400))
    vectors = (vectors + rng.normal(0, 0.3, vectors.shape)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = pairs.similar_pairs(vectors, 0.8)
    product = vectors @ vectors.T
    a, b = np.nonzero(np.triu(product >= 0.8, 1))
    assert len(a) > 50
    assert set(zip(found.a.tolist(), found.b.tolist(), strict=True)) == set(
        zip(a.tolist(), b.tolist(), strict=True)
    )
    assert np.allclose(found.score, product[found.a, found.b], atol=1e-5)


def test_thousands_of_equal_pictures_make_few_pairs_and_one_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pairs, "BLOCK", 256)
    vectors = np.ones((1500, 4), np.float32) / 2
    assert len(pairs.similar_pairs(vectors, 0.9).a) < 1500 * 1500 / 2 / 3
    assert grouped(vectors, 0.9) == [set(range(1500))]


# The hash


def test_hash_survives_scaling_and_light_but_not_another_picture() -> None:
    def stored(image: Image.Image) -> bytes:
        square = np.asarray(image.resize((hashes.SIZE, hashes.SIZE), 1))[None]
        return hashes.fingerprints(square)[0].tobytes()

    image = drawn(5)
    darker = ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(0.8)).enhance(0.8)
    found = hashes.unpacked(
        map(stored, (image, image.resize((70, 50)), darker, drawn(6), image))
    )
    bits = hashes.bits_apart(found.hashes[[0] * 5], found.hashes)
    colours = hashes.colours_apart(found.colours[[0] * 5], found.colours)
    assert bits[4] == 0
    assert bits[:3].max() <= 6
    assert colours[:3].max() <= 12
    assert bits[3] > 16
    assert colours[3] > 40
    assert found.known.all()


def test_hashes_are_made_once(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    decoded = hashes.decoded

    def counted(conn: object, collection: object, items: list[int], **options: object):
        if "request" not in options:  # for a fingerprint
            asked.extend(items)
        return decoded(conn, collection, items, **options)

    monkeypatch.setattr(hashes, "decoded", counted)
    find(own)
    assert asked == []
    stale = "update _image_similarity_hashes set sha256 = 'x' where item_id = 1"
    garbage = "update _image_similarity_hashes set hash = 'garbage' where item_id = 2"
    sql(own, stale)
    sql(own, garbage)
    assert find(own).of_tier("same")
    assert asked == [1, 2]


def test_without_thumbnails_the_originals_are_hashed_where_trusted(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    embed(path, [shelf(tmp_path / "photos")], thumbnails=False)
    assert len(find(path).of_tier("same")) == 3
    elsewhere = tmp_path / "elsewhere.db"  # nobody has vouched for this one's folders
    elsewhere.write_bytes(path.read_bytes())
    sql(elsewhere, "delete from _image_similarity_hashes")
    found = find(elsewhere)
    assert found.unhashed == found.scanned == 18
    assert not found.of_tier("same")
    assert found.of_tier("identical")
    assert found.thresholds.copies.pairs  # measured before, with the same encoder


# Thresholds


def test_thresholds_are_measured_and_said(own: Path) -> None:
    found = find(own)
    thresholds = found.thresholds
    assert thresholds.copies.pairs == 4 * 18
    assert 0.3 < thresholds.same <= thresholds.alike < 1
    said = command("duplicates", own).output
    assert f"cosine ≥ {thresholds.alike:.3f}" in said
    assert f"hash within {calibrate.BITS} of 64 bits" in said
    stored = json.loads(value(own, "select thresholds from _image_similarity_scans"))
    assert stored["words"] == thresholds.words


def test_without_the_encoder_values_measured_elsewhere_stand_in(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql(own, "delete from _image_similarity_scans")
    monkeypatch.setattr(ImageCollection, "_encoder_if_here", lambda self: None)
    found = find(own)
    assert found.thresholds.copies.pairs == 0
    assert "measured elsewhere" in " ".join(found.thresholds.words)
    assert found.of_tier("same")


@pytest.mark.parametrize("stored", ["[", "[]", "{}", '{"copies": {"low": 7}}', "x'00'"])
def test_thresholds_of_a_stranger_are_measured_anew(own: Path, stored: str) -> None:
    before = find(own).thresholds
    literal = stored if stored.startswith("x'") else f"'{stored}'"
    sql(own, f"update _image_similarity_scans set thresholds = {literal}")
    assert find(own).thresholds == before


def test_thresholds_measured_before_are_used_again(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    before = find(own).thresholds
    monkeypatch.setattr(
        "datasette_image_similarity.explore.duplicates.measure_copies", never
    )
    assert find(own).thresholds == before
    assert calibrate.stored_copies(before.to_json(), "another encoder", 18) is None
    assert calibrate.stored_copies(before.to_json(), before.copies.fingerprint, 99) is None


# Keepers


def fact(pk: int, width: int = 100, height: int = 100, **facts: object) -> Facts:
    given = {
        "bytes": 50_000,
        "format": "JPEG",
        "taken_at": None,
        "changed_at": "2020-01-01T00:00:00Z",
        "path": f"{pk}.jpg",
        "shows": width * height,
        **facts,
    }
    return Facts(item_id=pk, pk=pk, sha256=str(pk), width=width, height=height, **given)


TAKEN = "2019-05-01T10:00:00"
CAMERA = {"taken_at": TAKEN, "camera": "Canon EOS 5D", "placed": True}
LARGE = (4000, 3000)


@pytest.mark.parametrize(
    ("facts", "keeper", "reason"),
    [
        (
            [fact(1, 1200, 900), fact(2, *LARGE), fact(3, 640, 480)],
            2,
            "4,000 × 3,000, the others at most 1,200 × 900",
        ),
        # The camera's own file, whatever copies have more of.
        (
            [fact(1, *LARGE), fact(2, 1200, 900, taken_at=TAKEN)],
            2,
            "still says what the camera noted (date)",
        ),
        (
            [fact(1, taken_at=TAKEN), fact(2, **CAMERA)],
            2,
            "still says what the camera noted (camera, place)",
        ),
        (
            [fact(1, **CAMERA, bytes=3_000_000), fact(2, **CAMERA, format="HEIC")],
            2,
            "HEIC comes from the camera, JPEG does not",
        ),
        (
            [fact(1, **CAMERA, format="PNG"), fact(2, **CAMERA)],
            2,
            "JPEG comes from the camera, PNG does not",
        ),
        (
            [
                fact(1, **CAMERA, software="Adobe Photoshop 24.0", bytes=90_000),
                fact(2, **CAMERA, software="iOS 17.1"),
            ],
            2,
            "not saved by Adobe Photoshop 24.0",
        ),
        # An enlarged copy shows no more than what it was made from.
        (
            [fact(1, 200, 200, shows=10_000), fact(2)],
            2,
            "100 × 100, enlarged to 200 × 200 without more detail",
        ),
        ([fact(1, shows=None), fact(2, *LARGE, shows=None)], None, "nothing tells"),
        # What others were saved from, with fewer bytes and more.
        (
            [fact(1, format="PNG"), fact(2, source="1", bytes=90_000)],
            1,
            "JPEG of 90.0 KB was saved from it",
        ),
        (
            [fact(1, format="PNG", source="2"), fact(2, bytes=20_000)],
            2,
            "PNG of 50.0 KB was saved from it",
        ),
        ([fact(1, source="gone"), fact(2)], None, "nothing tells"),
        ([fact(1, format="PNG"), fact(2)], None, "nothing tells"),
        # The same format: bytes, unless the pixels could tell; a stamp is no reason.
        (
            [fact(n, bytes=n * 90_000, steps=(1,) * 64, mates="x") for n in (1, 2)],
            None,
            "nothing tells",
        ),
        ([fact(1, bytes=81_200), fact(2, bytes=3_210_000)], 2, "3.2 MB, the other 81.2 KB"),
        ([fact(1, bytes=81_201), fact(2, bytes=81_220)], None, "nothing tells"),
        ([fact(1, format="WEBP", bytes=99_000), fact(2)], None, "nothing tells"),
        (
            [fact(1), fact(2, changed_at="2018-03-01T00:00:00Z")],
            2,
            "the oldest file (2018-03-01 00:00, the next 2020-01-01 00:00)",
        ),
        (
            [fact(1, path="a (1).jpg"), fact(2, path="b.jpg")],
            2,
            "its path does not look like a copy's",
        ),
        (
            [fact(1, bytes=9_000), fact(2), fact(3, 10, 10)],
            2,
            "100 × 100, the other 10 × 10, then 50.0 KB, the other 9.0 KB",
        ),
    ],
)
def test_the_keeper_and_why(facts: list[Facts], keeper: int | None, reason: str) -> None:
    for some in (facts, facts[::-1]):
        chosen, why = suggest_keeper(some)
        assert (chosen and chosen.pk) == keeper, why
        assert why.startswith(reason)


def test_any_of_identical_files_may_stay_but_look_alikes_are_not_judged_by_place() -> None:
    files = [fact(2), fact(1, path="x.jpg")]
    chosen, why = suggest_keeper(files, "identical")
    assert (chosen.pk, why) == (1, "the first by its key (1)")
    older = [fact(1), fact(2, changed_at="2018-03-01T00:00:00Z")]
    assert suggest_keeper(older, "alike")[0] is None


def test_facts_of_a_folder_and_of_blobs(own: Path, tmp_path: Path) -> None:
    with opened(own) as conn:
        collection = db.collections(conn)[0]
        item = value(own, "select id from _image_similarity_items where path = 'small.jpg'")
        facts = facts_of(conn, collection, [item, 999])
    assert list(facts) == [item]
    assert (facts[item].width, facts[item].height, facts[item].format) == (120, 90, "JPEG")
    assert facts[item].bytes > 100
    assert facts[item].changed_at
    blobs = [
        {"name": n, "data": saved(drawn(n % 3), "WEBP" if n else "PNG")} for n in (0, 1)
    ]
    embed(tmp_path / "b.db", blobs, "things", blob_column="data", pk="name")
    with opened(tmp_path / "b.db") as conn:
        facts = facts_of(conn, db.collections(conn)[0], [1, 2])
    assert [one.format for one in facts.values()] == ["PNG", "WEBP"]
    assert facts[1].path is None


# Running again


def test_a_new_picture_joins_and_decisions_stay(own: Path, shelved: Path) -> None:
    decide(own, "worse.jpg", "mark")
    before = sql(own, "select * from _image_similarity_decisions")
    new = put(own.parent / "more", {"new.jpg": saved(drawn(1), "JPEG", quality=70)})
    embed(own, [new])
    assert {"01.png", "worse.jpg", "bright.jpg", "more/new.jpg"} in named(own, find(own))[
        "same"
    ]
    assert sql(own, "select * from _image_similarity_decisions") == before
    scans = "select count(*) from _image_similarity_scans"
    assert value(own, scans) == 1


def test_groups_split_by_hand_stay_split(own: Path) -> None:
    others = [key(own, "01.png"), key(own, "worse.jpg")]
    decide(own, "bright.jpg", "apart", others)
    groups = named(own, find(own, 0.2))
    for together in (group for tier in groups.values() for group in tier):
        assert "bright.jpg" not in together or not together & {"01.png", "worse.jpg"}
    assert {"01.png", "worse.jpg"} in groups["same"]


def test_a_new_picture_does_not_join_what_is_apart(own: Path) -> None:
    decide(own, "cut.jpg", "apart", [key(own, "02.png")])
    new = put(own.parent / "more", {"between.jpg": saved(drawn(2), "JPEG", quality=80)})
    embed(own, [new])
    for tier in named(own, find(own)).values():
        assert not any({"cut.jpg", "02.png"} <= group for group in tier)


def test_nothing_is_suggested_against_what_was_decided(own: Path) -> None:
    """What somebody keeps goes on to the next tier, not what would have been suggested."""

    def keepers() -> dict[str, str]:
        paths = dict(sql(own, "select id, path from images"))
        groups = find(own).of_tier("identical")
        return {paths[group.keeper]: group.reason for group in groups}

    assert list(keepers()) == ["00.png"]
    decide(own, "00.png", "mark")
    assert list(keepers()) == ["again/00 copy.png"]
    decide(own, "00.png", "keep")
    assert keepers() == {"00.png": "somebody has decided to keep it"}
    decide(own, "again/00 copy.png", "keep")
    decide(own, "00.png", "mark")
    assert list(keepers()) == ["again/00 copy.png"]


def test_identical_files_can_be_set_apart(own: Path) -> None:
    decide(own, "again/00 copy.png", "apart", [key(own, "00.png")])
    groups = named(own, find(own))
    assert groups["identical"] == []
    for tier in groups.values():
        assert not any({"00.png", "again/00 copy.png"} <= group for group in tier)


@pytest.mark.parametrize("other", ["[", "3", '{"a": 1}', '[[1], null, {"x": 2}]', None])
def test_garbage_in_decisions_is_ignored(own: Path, other: str | None) -> None:
    before = named(own, find(own))
    decide(own, "02.png", "apart")
    sql(own, "update _image_similarity_decisions set other = ?", (other,))
    assert named(own, find(own)) == before


def test_decisions_about_a_changed_file_are_void(own: Path) -> None:
    before = named(own, find(own))
    decide(own, "02.png", "apart", [key(own, "cut.jpg")])
    sql(own, "update _image_similarity_decisions set sha256 = 'of another file'")
    assert named(own, find(own)) == before


def test_stopped_the_last_result_stays(own: Path) -> None:
    before = sql(own, "select * from _image_similarity_grouped")
    assert before
    calls = iter(range(100))
    with pytest.raises(Stopped):
        find(own, 0.1, stop=lambda: next(calls) > 1)
    assert sql(own, "select * from _image_similarity_grouped") == before


def test_deleted_rows_are_in_no_group(own: Path) -> None:
    sql(own, "delete from images where path = 'again/00 copy.png'")
    assert find(own).of_tier("identical") == []


@pytest.mark.parametrize("keys", [("text",), ("a", "b"), ()])
def test_odd_keys(tmp_path: Path, keys: tuple[str, ...]) -> None:
    path = tmp_path / "x.db"
    columns = ", ".join([*(f"{name} text" for name in keys), "data blob"])
    primary = f", primary key ({', '.join(keys)})" if keys else ""
    pictures = [saved(drawn(n)) for n in (0, 1, 2, 3, 4, 0)]
    with opened(path) as conn:
        conn.execute(f"create table things ({columns}{primary})")
        for number, data in enumerate(pictures):
            row = [f"it's\n{name} {number}" for name in keys]
            marks = ", ".join("?" * (len(row) + 1))
            conn.execute(f"insert into things values ({marks})", [*row, data])
    embed(path, None, "things", blob_column="data")
    found = answer("duplicates", path)
    assert [group["size"] for group in found["groups"]] == [2]
    stored = [row[0] for row in sql(path, "select pk from _image_similarity_items")]
    pks = [one["pk"] for one in found["groups"][0]["pictures"]]
    assert pks == [stored[0], stored[5]]


# The command


def test_the_command_tells_what_it_found(own: Path) -> None:
    found = answer("duplicates", own, "images")
    assert found["scanned"] == 18
    assert found["tiers"]["identical"] == {"groups": 1, "pictures": 2}
    assert found["tiers"]["same"]["groups"] == 3
    (identical,) = [group for group in found["groups"] if group["tier"] == "identical"]
    assert identical["reason"]
    assert "identical files  1 group, 2 pictures" in command("duplicates", own).output


def test_refusals(own: Path, tmp_path: Path) -> None:
    assert command("duplicates", own, "--threshold", "2").exit_code == 2
    assert command("duplicates", own, "--to", "x").exit_code == 2
    assert "Nothing is decided" in refused(
        "duplicates", own, "--export", tmp_path / "x.csv"
    )
    with ImageCollection(own) as collection, pytest.raises(CollectionError):
        collection.duplicates(1.5)


def test_an_older_database_is_brought_up_to_date(own: Path) -> None:
    make_older(own)
    assert find(own).of_tier("same")


# Filters


async def test_filters_by_group_and_by_decision(own: Path) -> None:
    decide(own, "worse.jpg", "mark")
    decide(own, "small.jpg", "mark")
    decide(own, "small.jpg", "keep")
    group = value(own, "select id from _image_similarity_groups where tier = 'identical'")
    datasette = open_datasette(own)
    base = "/own/images.json?_shape=array"
    rows = await ask_json(datasette, f"{base}&_image_group={group}")
    assert {row["path"] for row in rows} == {"00.png", "again/00 copy.png"}
    rows = await ask_json(datasette, f"{base}&_image_decision=mark")
    assert [row["path"] for row in rows] == ["worse.jpg"]
    rows = await ask_json(datasette, f"{base}&_image_decision=keep&_image_group=99999")
    assert rows == []
    page = await ask(datasette, "/own/images?_image_decision=mark")
    assert "marked as duplicates" in page.text


@pytest.mark.parametrize(
    "query",
    ["_image_group=x", "_image_group=0", f"_image_group={2**70}", "_image_decision=apart"],
)
async def test_filters_that_mean_nothing_are_refused(own: Path, query: str) -> None:
    response = await ask(open_datasette(own), f"/own/images?{query}")
    assert response.status_code == 400


async def test_filters_on_an_older_database_say_so(own: Path) -> None:
    make_older(own)
    response = await ask(open_datasette(own), "/own/images?_image_group=1")
    assert response.status_code == 400
    assert "Nobody has looked for duplicates" in response.text


# What may go wrong on the way


def test_flat_pictures_are_the_same_as_none(tmp_path: Path) -> None:
    blank = {f"{n}.png": saved(Image.new("RGB", (90 + n, 90), "white")) for n in range(3)}
    blank["again.png"] = blank["0.png"]
    path = tmp_path / "x.db"
    embed(path, [put(tmp_path / "photos", blank)])
    found = find(path)
    assert named(path, found)["identical"] == [{"0.png", "again.png"}]
    assert not found.of_tier("same")
    assert found.flat == found.as_json()["flat"] == 4
    assert "4 pictures of one colour or blank" in command("duplicates", path).output


def letters(seed: int, amount: str = "") -> Image.Image:
    """A page of drawn words of one layout, with an amount below."""
    rng = np.random.default_rng(seed)
    page = Image.new("RGB", (420, 594), "white")
    draw, text = ImageDraw.Draw(page), ImageFont.load_default(13)
    draw.text((40, 30), "Municipal Archive", "black", ImageFont.load_default(24))
    for row in range(22):
        line = "".join(rng.choice(list("abcdefghij  "), 46))
        draw.text((40, 90 + 20 * row), line, "black", text)
    draw.text((280, 545), amount, "black", text)
    return page


def test_pages_of_one_layout_are_not_the_same_and_their_copies_are(tmp_path: Path) -> None:
    pages = {f"{n}.png": saved(letters(n)) for n in range(8)}
    pages["copy.jpg"] = saved(letters(0), "JPEG", quality=50)
    pages["small.jpg"] = saved(letters(1).resize((210, 297)), "JPEG")
    pages["cut.jpg"] = saved(letters(2).crop((8, 10, 410, 580)), "JPEG")
    path = tmp_path / "x.db"
    embed(path, [put(tmp_path / "photos", {**pages, **photos_of(9)})])
    same = named(path, find(path))["same"]
    wanted = [{"0.png", "copy.jpg"}, {"1.png", "small.jpg"}, {"2.png", "cut.jpg"}]
    assert sorted(same, key=sorted) == wanted


def test_pages_that_differ_in_an_amount_are_not_the_same(tmp_path: Path) -> None:
    amounts = ("12,40 EUR", "8093,55 EUR", "771,06 EUR")
    pages = {f"{one}.png": saved(letters(0, one)) for one in amounts}
    pages["copy.jpg"] = saved(letters(0, amounts[0]), "JPEG", quality=60)
    path = tmp_path / "x.db"
    embed(path, [put(tmp_path / "photos", {**pages, **photos_of(9)})])
    assert named(path, find(path))["same"] == [{f"{amounts[0]}.png", "copy.jpg"}]


def photos_of(count: int) -> dict[str, bytes]:
    return {f"photo{n}.png": saved(drawn(50 + n)) for n in range(count)}


def test_an_enlarged_copy_and_a_png_made_from_a_jpeg_do_not_win(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 12, (300, 400, 3))
    scene = np.asarray(drawn(0, (400, 300))).astype(float) + noise
    photo = Image.fromarray(scene.clip(0, 255).astype(np.uint8))
    camera = saved(photo, "JPEG", quality=85)
    decoded = Image.open(io.BytesIO(camera))
    files = {
        "camera.jpg": camera,
        "made.png": saved(decoded),
        "large.jpg": saved(decoded.resize((800, 600)), "JPEG", quality=95),
        "again.jpg": saved(decoded, "JPEG", quality=100),
        **photos_of(9),
    }
    path = tmp_path / "x.db"
    embed(path, [put(tmp_path / "photos", files)])
    [group] = find(path).of_tier("same")
    paths = dict(sql(path, "select id, path from images"))
    assert {paths[pk] for pk in group.scores} == {*list(files)[:4]}
    assert paths[group.keeper] == "camera.jpg", group.reason


@pytest.mark.parametrize("before", ["stored_prints", "_store"])
def test_what_is_pruned_or_replaced_meanwhile_is_in_no_group(
    own: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Before hashing or storing, one picture goes; another row gets its id."""
    module = hashes if before == "stored_prints" else duplicates
    function = getattr(module, before)
    gone, other = key(own, "small.jpg"), key(own, "05.png")
    id_of = "(select id from _image_similarity_items where pk = ?)"
    [(freed,)] = sql(own, f"select {id_of}", (gone,))

    def late(*arguments: object, **options: object) -> object:
        with opened(own) as conn, db.transaction(conn):
            for pk in (gone, other):
                for table in ("grouped", "hashes"):
                    conn.execute(
                        f"delete from _image_similarity_{table} where item_id = {id_of}",
                        (pk,),
                    )
                conn.execute(
                    f"delete from _image_similarity_thumbnails where id = {id_of}", (pk,)
                )
            conn.execute("delete from _image_similarity_items where pk = ?", (gone,))
            conn.execute("delete from images where id = ?", (gone,))
            conn.execute(
                "update _image_similarity_items set id = ? where pk = ?", (freed, other)
            )
            conn.execute(
                "update _image_similarity_items set sha256 = ? where path = ?",
                ("0" * 64, "worse.jpg"),
            )
        return function(*arguments, **options)

    monkeypatch.setattr(module, before, late)
    groups = find(own).groups
    assert groups
    assert not any(
        {gone, other, key(own, "worse.jpg")} & set(group.scores) for group in groups
    )
    stored = sql(own, "select item_id from _image_similarity_grouped")
    assert (freed,) not in stored
    assert sum(len(group.scores) for group in groups) == len(stored)


def photo(seed: int = 1) -> Image.Image:
    """Soft patches under the grain of a film."""
    grain = np.random.default_rng(seed).normal(0, 12, (300, 400, 3))
    scene = np.asarray(drawn(seed, (400, 300))).astype(float) + grain
    return Image.fromarray(scene.clip(0, 255).astype(np.uint8))


def shot(quality: int) -> Image.Image:
    return Image.open(io.BytesIO(saved(photo(), "JPEG", quality=quality)))


@pytest.mark.parametrize(
    ("first", "second", "keeper"),
    [
        (saved(shot(92)), shot(92), 1),  # PNG made from a JPEG in fine steps
        (saved(photo()), photo(), 0),
        (saved(shot(92), "JPEG", quality=60), shot(92), 1),
        # Saved again in finer steps or packed otherwise: more bytes, no more picture.
        (saved(shot(60), "JPEG", quality=68), shot(60), None),
        (saved(shot(75), "JPEG", quality=100), shot(75), 1),
        (saved(photo(), "JPEG", quality=92, optimize=True), shot(92), None),
        *(
            (saved(shot(92).resize(size, 0), "JPEG", quality=92), shot(92), 1)
            for size in ((500, 375), (600, 450), (1200, 900))
        ),
    ],
)
def test_what_was_saved_from_what(
    tmp_path: Path, first: bytes, second: Image.Image, keeper: int | None
) -> None:
    """The second is a JPEG, in the quality that it was opened from."""
    tables = getattr(second, "quantization", None)
    other = saved(second, "JPEG", **({"qtables": tables} if tables else {"quality": 90}))
    files = {"0": first, "1": other, **photos_of(9)}
    names = {"0": "0.png" if first[1:4] == b"PNG" else "0.jpg", "1": "1.jpg"}
    files = {names.get(name, name): data for name, data in files.items()}
    path = tmp_path / "x.db"
    embed(path, [put(tmp_path / "photos", files)])
    [group] = find(path).of_tier("same")
    paths = dict(sql(path, "select id, path from images"))
    kept = group.keeper and int(paths[group.keeper][0])
    assert kept == keeper, group.reason


def test_the_cameras_file_is_kept_also_of_blobs(tmp_path: Path) -> None:
    """A table with pictures in it has no columns that tell what the camera wrote."""
    exif = Image.Exif()
    exif[271], exif[272], exif[305] = "Canon", "EOS 5D", "Firmware 1.1"
    photo = drawn(0)
    edited = Image.Exif()
    edited[271], edited[272], edited[305] = "Canon", "EOS 5D", "GIMP 2.10"
    files = [
        saved(photo.resize((480, 360)), "JPEG", quality=95),
        saved(photo, "JPEG", quality=95, exif=edited),
        saved(photo, "JPEG", quality=80, exif=exif),
        *photos_of(9).values(),
    ]
    path = tmp_path / "x.db"
    sql(path, "create table t (id integer primary key, picture blob)")
    for data in files:
        sql(path, "insert into t (picture) values (?)", (data,))
    embed(path, table="t", blob_column="picture")
    with ImageCollection(path, "t") as collection:
        [group] = collection.duplicates().of_tier("same")
    assert (set(group.scores), group.keeper) == ({1, 2, 3}, 3), group.reason
    assert "camera" in group.reason
    assert "GIMP" in group.reason
