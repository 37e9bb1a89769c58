"""Running `embed` again: only what is new or changed, and nothing is ever doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import picture
from core import HOG, command, counts, embed, failures, faults, refused, sql, value

from datasette_image_similarity import ImageCollection, trust
from datasette_image_similarity.collection import EncoderOptions
from datasette_image_similarity.embed import Run
from datasette_image_similarity.encoders import hog
from datasette_image_similarity.errors import CollectionError
from datasette_image_similarity.pipeline import Picture

SLOW_RUN = """
import sys, time
from datasette_image_similarity import ImageCollection
from datasette_image_similarity.collection import EncoderOptions
def progress(now):
    print(now.done, flush=True)
    time.sleep(0.03)
with ImageCollection(sys.argv[1]) as collection:
    summary = collection.embed(
        sys.argv[2],
        encoder=EncoderOptions("hog"),
        batch_size=2,
        workers=1,
        progress=progress,
    )
    print("failed", summary.failed)
"""


@pytest.fixture
def few(tmp_path: Path) -> Path:
    folder = tmp_path / "few"
    folder.mkdir()
    for number, name in enumerate("abcd"):
        (folder / f"{name}.png").write_bytes(picture("red", number))
    return folder


@pytest.fixture
def path(tmp_path: Path, few: Path) -> Path:
    """The four pictures of `few`, embedded."""
    path = tmp_path / "x.db"
    embed(path, few)
    return path


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each batch that is encoded from now on holds."""
    sizes: list[int] = []
    encode = hog.HogEncoder.encode

    def counting(self: hog.HogEncoder, pixels: Any) -> Any:
        sizes.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(hog.HogEncoder, "encode", counting)
    return sizes


def vectors(path: Path) -> dict[str, tuple]:
    """Row id, item id and vector by path."""
    return {
        row[0]: row[1:]
        for row in sql(
            path,
            "select i.path, i.pk, i.id, v.embedding from _image_similarity_items i "
            "join _image_similarity_vectors_1 v on v.id = i.id",
        )
    }


def test_nothing_is_done_twice(path: Path, few: Path, encoded: list[int]) -> None:
    before = vectors(path)
    assert counts(embed(path, few)) == (0, 0, 4, 0, 0)
    assert encoded == []
    assert vectors(path) == before


def test_a_new_file_is_embedded_alone(path: Path, few: Path, encoded: list[int]) -> None:
    (few / "e.png").write_bytes(picture("green"))
    assert counts(embed(path, few)) == (1, 0, 4, 0, 0)
    assert encoded == [1]


def test_a_changed_file_keeps_its_row(path: Path, few: Path) -> None:
    before = vectors(path)
    (few / "b.png").write_bytes(picture("green", 3))
    assert counts(embed(path, few)) == (1, 0, 3, 0, 0)
    after = vectors(path)
    assert after["b.png"][:2] == before["b.png"][:2]
    assert after["b.png"][2] != before["b.png"][2]
    assert value(path, "select bytes from images where path = 'b.png'") == len(
        picture("green", 3)
    )


def test_a_touched_file_is_hashed_and_not_encoded(
    path: Path, few: Path, encoded: list[int]
) -> None:
    os.utime(few / "a.png", (1, 1))
    assert counts(embed(path, few)) == (0, 0, 4, 0, 0)
    assert encoded == []
    noted = "select mtime_ns from _image_similarity_items where path = 'a.png'"
    assert value(path, noted) == 1_000_000_000


def test_a_change_that_keeps_size_but_not_time_is_seen(path: Path, few: Path) -> None:
    data = bytearray((few / "a.png").read_bytes())
    data[-1] ^= 1
    (few / "a.png").write_bytes(data)
    os.utime(few / "a.png", (1, 1))
    assert embed(path, few).unchanged == 3


def test_a_renamed_file_keeps_row_and_vector(
    path: Path, few: Path, encoded: list[int]
) -> None:
    before = vectors(path)
    (few / "sub").mkdir()
    (few / "b.png").rename(few / "sub" / "z.png")
    assert counts(embed(path, few)) == (0, 1, 3, 0, 0)
    after = vectors(path)
    assert after.pop("sub/z.png") == before.pop("b.png")
    assert after == before
    assert encoded == []
    moved = sql(path, "select folder, name from images where path = 'sub/z.png'")
    assert moved == [("sub", "z.png")]
    assert faults(path) == []


def test_a_renamed_folder_of_identical_files_keeps_every_row(tmp_path: Path) -> None:
    folder = tmp_path / "twins"
    (folder / "old").mkdir(parents=True)
    for name in "abc":
        (folder / "old" / f"{name}.png").write_bytes(picture())
    path = tmp_path / "x.db"
    embed(path, folder)
    (folder / "old").rename(folder / "new")
    assert counts(embed(path, folder, prune=True)) == (0, 3, 0, 0, 0)
    rows = sql(path, "select id, path from images order by path")
    assert sorted(rows) == [(1, "new/a.png"), (2, "new/b.png"), (3, "new/c.png")]


def test_two_files_that_swap_names_swap_vectors(path: Path, few: Path) -> None:
    before = vectors(path)
    (few / "a.png").rename(few / "t")
    (few / "b.png").rename(few / "a.png")
    (few / "t").rename(few / "b.png")
    for name in "ab":
        os.utime(few / f"{name}.png", (1, 1))
    assert embed(path, few).failed == 0
    after = vectors(path)
    assert after["a.png"][2] == before["b.png"][2]
    assert after["b.png"][2] == before["a.png"][2]


def test_identical_bytes_are_encoded_once_and_keep_their_rows(
    tmp_path: Path, encoded: list[int]
) -> None:
    folder = tmp_path / "same"
    folder.mkdir()
    for name in "abcdef":
        (folder / f"{name}.png").write_bytes(picture())
    path = tmp_path / "x.db"
    assert counts(embed(path, folder, batch_size=2)) == (1, 5, 0, 0, 0)
    assert sum(encoded) == 1
    assert value(path, "select count(*) from images") == 6
    with ImageCollection(path) as collection:
        hits = collection.similar(1)
        assert [hit.pk for hit in hits] == [2, 3, 4, 5, 6]
        assert {hit.distance for hit in hits} == {0.0}


def test_a_copy_made_later_is_reused(path: Path, few: Path, encoded: list[int]) -> None:
    (few / "copy.png").write_bytes((few / "a.png").read_bytes())
    assert counts(embed(path, few)) == (0, 1, 4, 0, 0)
    assert encoded == []
    assert value(path, "select count(*) from images") == 5


def test_a_file_that_is_gone_stays_until_prune(path: Path, few: Path) -> None:
    (few / "a.png").unlink()
    summary = embed(path, few)
    assert (summary.missing, summary.removed) == (1, 0)
    assert value(path, "select count(*) from images") == 4
    assert counts(embed(path, few, prune=True)) == (0, 0, 3, 0, 1)
    assert value(path, "select count(*) from images") == 3
    assert faults(path) == []


def test_prune_spares_other_folders_and_rows_of_the_users_own(
    tmp_path: Path, path: Path, few: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "o.png").write_bytes(picture("blue"))
    embed(path, other)
    (other / "o.png").unlink()
    (few / "a.png").unlink()
    sql(path, "insert into images (path) values ('by hand')")
    assert embed(path, few, prune=True).removed == 1
    kept = [row[0] for row in sql(path, "select path from images order by id")]
    assert kept == ["b.png", "c.png", "d.png", "other/o.png", "by hand"]
    assert embed(path, few / "b.png", prune=True).removed == 0


def test_prune_of_a_table_of_paths_leaves_its_rows(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table works (id integer primary key, file text)")
    sql(path, "insert into works (file) values ('a.png'), ('b.png')")
    options = {"table": "works", "path_column": "file", "root": few}
    embed(path, **options)
    (few / "a.png").unlink()
    summary = embed(path, **options)
    assert (summary.failed, summary.missing, summary.removed) == (1, 1, 0)
    assert embed(path, **options, prune=True).removed == 1
    assert value(path, "select count(*) from works") == 2
    assert value(path, "select count(*) from _image_similarity_items") == 1
    assert [row[0] for row in failures(path)] == [1]


def test_a_deleted_row_is_forgotten(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table works (id integer primary key, file text)")
    sql(path, "insert into works (file) values ('a.png'), ('b.png'), ('c.png')")
    options = {"table": "works", "path_column": "file", "root": few}
    embed(path, **options)
    sql(path, "delete from works where id = 3")
    with ImageCollection(path, "works") as works:
        assert [hit.pk for hit in works.similar(1)] == [2]
        assert works.status().stale == 1
    # The highest id is given again, to another picture.
    sql(path, "insert into works (file) values ('d.png')")
    with ImageCollection(path, "works") as works:
        assert [hit.pk for hit in works.similar(1)] == [2]
    assert counts(embed(path, **options)) == (1, 0, 2, 0, 0)
    assert faults(path) == []
    sql(path, "delete from works where id = 3")
    assert counts(embed(path, **options)) == (0, 0, 2, 0, 1)


@pytest.mark.parametrize("kind", ["path", "blob"])
def test_rowids_that_a_vacuum_renumbers(tmp_path: Path, few: Path, kind: str) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table works (name text, cell)")
    for name in "abcd":
        file = few / f"{name}.png"
        cell = file.name if kind == "path" else file.read_bytes()
        sql(path, "insert into works values (?, ?)", (name, cell))
    options = {"table": "works", f"{kind}_column": "cell"}
    if kind == "path":
        options["root"] = few
    embed(path, **options)
    sql(path, "delete from works where name = 'a'")
    sql(path, "vacuum")
    assert value(path, "select rowid from works where name = 'b'") == 1
    with ImageCollection(path, "works") as works:
        # Nothing is shown under a number that now means another picture.
        for hit in works.search(few / "b.png"):
            assert hit.score < 0.999 or hit.row["name"] == "b"
    assert embed(path, **options).failed == 0
    with ImageCollection(path, "works") as works:
        for name in "bcd":
            best = works.search(few / f"{name}.png", k=1)[0]
            assert (best.row["name"], round(best.score, 4)) == (name, 1)
    assert faults(path) == []


def test_replace_with_another_picture(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table works (code text primary key, file text)")
    sql(path, "insert into works values ('x', 'a.png'), ('y', 'b.png'), ('z', 'c.png')")
    options = {"table": "works", "path_column": "file", "root": few}
    embed(path, **options)
    sql(path, "replace into works values ('x', 'd.png')")
    with ImageCollection(path, "works") as works:
        assert {hit.pk for hit in works.similar("y")} == {"z"}
    assert counts(embed(path, **options)) == (1, 0, 2, 0, 0)
    sql(path, "replace into works values ('x', 'd.png')")
    assert counts(embed(path, **options)) == (0, 0, 3, 0, 0)


def test_a_limit_goes_on_where_it_ended_and_past_what_fails(path: Path, few: Path) -> None:
    (few / "0-bad.png").write_bytes(b"no picture")
    for number in range(4):
        (few / f"new-{number}.png").write_bytes(picture("blue", number))
    assert counts(embed(path, few, limit=2)) == (1, 0, 4, 1, 0)
    assert counts(embed(path, few, limit=2)) == (2, 0, 5, 0, 0)
    assert counts(embed(path, few, limit=2)) == (1, 0, 7, 1, 0)


def test_where_and_limit_forget_nothing_that_they_did_not_look_at(
    tmp_path: Path, few: Path
) -> None:
    path = tmp_path / "x.db"
    sql(path, "create table works (id integer primary key, file text)")
    for name in ("a.png", "b.png", "gone.png", "c.png"):
        sql(path, "insert into works (file) values (?)", (name,))
    options = {"table": "works", "path_column": "file", "root": few}
    embed(path, **options)
    embed(path, **options, where="id = 1", prune=True)
    embed(path, **options, limit=1, prune=True)
    assert value(path, "select count(*) from _image_similarity_items") == 3
    assert [row[0] for row in failures(path)] == [3]


def test_a_picture_that_gets_well_is_no_failure_any_more(path: Path, few: Path) -> None:
    (few / "e.png").write_bytes(b"half a picture")
    assert embed(path, few).failed == 1
    assert [row[1] for row in failures(path)] == ["e.png"]
    (few / "e.png").write_bytes(picture("green"))
    embed(path, few)
    assert failures(path) == []
    (few / "e.png").write_bytes(b"half a picture again")
    embed(path, few)
    (few / "e.png").unlink()
    embed(path, few, prune=True)
    assert failures(path) == []


def test_the_encoder_stays_unless_forced(path: Path, few: Path) -> None:
    (few / "e.png").write_bytes(picture("green"))
    assert embed(path, few, encoder=None).embedded == 1  # as before, not ResNet50
    other = EncoderOptions("hog", fit="pad")
    with pytest.raises(CollectionError, match="--force"):
        embed(path, few, encoder=other)
    with pytest.raises(CollectionError, match="--force"):
        embed(path, few, metric="l2")
    rows = sql(path, "select * from images")
    assert counts(embed(path, few, encoder=other, force=True)) == (5, 0, 0, 0, 0)
    assert sql(path, "select * from images") == rows
    assert faults(path) == []
    assert counts(embed(path, few, encoder=other)) == (0, 0, 5, 0, 0)
    assert embed(path, few, metric="l2", force=True).embedded == 5
    assert value(path, "select metric from _image_similarity_collections") == "l2"
    # Options left out are as before.
    assert '"pad"' in value(path, "select encoder from _image_similarity_collections")


def test_force_with_the_same_encoder_keeps_rows_and_items(path: Path, few: Path) -> None:
    before = vectors(path)
    assert embed(path, few, force=True).embedded == 4
    assert vectors(path) == before


def test_stop_ends_after_a_batch_and_the_next_run_goes_on(
    tmp_path: Path, photos: Path
) -> None:
    path = tmp_path / "x.db"
    done: list[int] = []
    summary = embed(
        path,
        photos,
        batch_size=4,
        progress=lambda now: done.append(now.done),
        stop=lambda: bool(done) and done[-1] >= 8,
    )
    assert summary.stopped
    assert 8 <= summary.embedded < 24
    assert faults(path) == []
    rest = embed(path, photos)
    assert not rest.stopped
    assert rest.embedded + summary.embedded == 24
    assert rest.unchanged == summary.embedded


def test_an_error_in_the_midst_of_a_batch_leaves_whole_batches(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.db"
    write = Run._write_new
    seen: list[Picture] = []

    def failing(self: Run, outcome: Any) -> None:
        write(self, outcome)
        seen.append(outcome.picture)
        if len(seen) == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_write_new", failing)
    with pytest.raises(KeyboardInterrupt):
        embed(path, photos, batch_size=4)
    monkeypatch.undo()
    for table in ("images", "_image_similarity_items", "_image_similarity_vectors_1"):
        assert value(path, f"select count(*) from {table}") == 8
    assert faults(path) == []
    assert embed(path, photos).embedded == 16


def started(path: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(path), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_run_that_is_killed_loses_one_batch_at_most(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "x.db"
    with started(path, photos) as run:
        try:
            done = next(int(line) for line in run.stdout if int(line) >= 8)
        finally:
            run.kill()
    stored = value(path, "select count(*) from images")
    assert done <= stored < 24
    assert value(path, "pragma integrity_check") == "ok"
    assert faults(path) == []
    assert counts(embed(path, photos)) == (24 - stored, 0, stored, 0, 0)
    assert value(path, "select count(*) from images") == 24


def test_two_runs_at_once_make_every_row_once(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "x.db"
    with started(path, photos) as one, started(path, photos) as two:
        try:
            ends = [run.communicate(timeout=60)[0].splitlines()[-1] for run in (one, two)]
        finally:
            one.kill()
            two.kill()
    assert ends == ["failed 0", "failed 0"]
    assert value(path, "select count(*) from images") == 24
    assert value(path, "select count(distinct path) from images") == 24
    assert value(path, "select count(*) from _image_similarity_items") == 24
    assert value(path, "select count(*) from _image_similarity_collections") == 1
    assert faults(path) == []


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, method: str, act: Callable[[], object]
) -> None:
    """Do something after a run's next step of this name."""
    step = getattr(Run, method)

    def acting(self: Run, *arguments: Any, **options: Any) -> Any:
        given = step(self, *arguments, **options)
        monkeypatch.setattr(Run, method, step)
        act()
        return given

    monkeypatch.setattr(Run, method, acting)


def test_a_collection_that_another_run_has_just_made_is_used(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.db"
    meanwhile(monkeypatch, "list", lambda: embed(path, few))
    assert counts(embed(path, few)) == (0, 0, 4, 0, 0)
    assert value(path, "select count(*) from images") == 4


def test_a_collection_of_another_encoder_made_meanwhile_is_not_replaced(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.db"
    meanwhile(monkeypatch, "list", lambda: embed(path, few, metric="l2"))
    with pytest.raises(CollectionError, match="Another run"):
        embed(path, few, metric="cosine")
    assert value(path, "select metric from _image_similarity_collections") == "l2"
    assert value(path, "select count(*) from images") == 4


def test_a_rename_that_another_run_has_seen_too(
    path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (few / "a.png").rename(few / "z.png")
    meanwhile(monkeypatch, "plan", lambda: embed(path, few))
    assert embed(path, few).failed == 0
    assert value(path, "select count(*) from images") == 4
    assert faults(path) == []


def test_new_files_that_another_run_has_embedded_meanwhile(
    path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (few / "z.png").write_bytes(picture("green"))
    meanwhile(monkeypatch, "plan", lambda: embed(path, few))
    assert embed(path, few).failed == 0
    assert value(path, "select count(*) from images") == 5
    assert faults(path) == []


def test_a_file_that_changes_while_it_is_read_is_seen_by_the_next_run(
    path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (few / "e.png").write_bytes(picture("green", 1))
    changed = picture("green", 2)
    meanwhile(monkeypatch, "plan", lambda: (few / "e.png").write_bytes(changed))
    assert embed(path, few).embedded == 1
    embed(path, few)
    stored = value(path, "select bytes from images where path = 'e.png'")
    assert stored == len(changed)
    with ImageCollection(path) as collection:
        best = collection.search(changed, k=1)[0]
        assert (best.row["path"], round(best.score, 4)) == ("e.png", 1)


def test_a_run_vouches_for_its_folders_also_when_there_is_nothing_to_do(
    path: Path, few: Path, tmp_path: Path
) -> None:
    assert trust.trusted_roots(path) == [few]
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    assert trust.trusted_roots(copy) == []
    embed(copy, few)
    assert trust.trusted_roots(copy) == [few]


def until(found: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def test_watch_sees_what_comes_changes_and_goes(tmp_path: Path, few: Path) -> None:
    path = tmp_path / "x.db"
    arguments = ["image-similarity", "embed", str(path), str(few), "--model", "hog"]
    watching = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "datasette",
            *arguments,
            "--watch",
            "--prune",
            "--workers",
            "1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
    )

    def paths() -> list[str]:
        if not path.exists() or not value(
            path, "select count(*) from sqlite_master where name = 'images'"
        ):
            return []
        return [row[0] for row in sql(path, "select path from images order by path")]

    try:
        until(lambda: paths() == ["a.png", "b.png", "c.png", "d.png"])
        (few / "bad.png").write_bytes(b"no picture")
        (few / "e.png").write_bytes(picture("green"))
        (few / "a.png").unlink()
        (few / "b.png").rename(few / "z.png")
        until(lambda: paths() == ["c.png", "d.png", "e.png", "z.png"])
        watching.send_signal(signal.SIGINT)
        output, _ = watching.communicate(timeout=30)
    finally:
        watching.kill()
        watching.wait()
    assert watching.returncode == 0
    assert output.count("bad.png") == 1
    assert "Watching for changes" in output
    assert "Traceback" not in output


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "x.db"
    arguments = ["image-similarity", "embed", str(path), str(photos), "--model", "hog"]
    slow = (
        "import time; from datasette_image_similarity.embed import Run; w = Run.write\n"
        "Run.write = lambda self, batch: (w(self, batch), time.sleep(0.3))\n"
        "from datasette.cli import cli; cli()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", slow, *arguments, "--batch-size", "2", "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
    )
    try:
        until(
            lambda: (
                path.exists()
                and value(path, "select count(*) from sqlite_master where name = 'images'")
                and value(path, "select count(*) from images") > 0
            )
        )
        run.send_signal(signal.SIGINT)
        output, _ = run.communicate(timeout=30)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 130
    assert "Run the same command again to go on" in output
    assert "Traceback" not in output
    stored = value(path, "select count(*) from images")
    assert 0 < stored < 24
    assert faults(path) == []


def test_the_rest_of_the_command_is_as_before_on_a_second_run(path: Path) -> None:
    assert command("embed", path).exit_code == 0
    assert "--force" in refused("embed", path, "--model", "hog", "--fit", "crop")
    assert EncoderOptions("hog") == HOG


def test_a_folder_that_is_only_recorded_in_a_database_is_not_read(
    gallery: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "another-users-configuration"
    monkeypatch.setattr("click.get_app_dir", lambda *_, **__: str(elsewhere))
    monkeypatch.setattr(
        "datasette_image_similarity.trust.click.get_app_dir", lambda *_: str(elsewhere)
    )
    with (
        ImageCollection(gallery) as collection,
        pytest.raises(CollectionError, match="name the folder"),
    ):
        collection.embed()


def test_what_was_found_of_a_picture_goes_when_its_file_changes(
    path: Path, few: Path
) -> None:
    """Else another picture stands in a group of identical ones, and is marked with them."""
    tables = ("points", "hashes", "grouped", "evaluated")

    def there() -> dict[str, list[int]]:
        found = "select item_id from _image_similarity_{} order by 1"
        return {one: [row[0] for row in sql(path, found.format(one))] for one in tables}

    (few / "b.png").write_bytes((few / "a.png").read_bytes())
    embed(path, few)
    sql(path, "alter table images add column label text default 'red'")
    sql(path, "update images set label = 'blue' where id > 2")
    for words in ("map --method pca", "duplicates", "evaluate --label label"):
        name, *options = words.split()
        assert command(name, path, *options).exit_code == 0
    before = there()
    assert all(2 in items for items in before.values()), before
    os.utime(few / "a.png", ns=(1, 1))  # touched, and the same
    (few / "b.png").write_bytes(picture("blue", 9))
    assert counts(embed(path, few))[0] == 1
    after = {one: [item for item in items if item != 2] for one, items in before.items()}
    assert there() == after


def test_what_people_did_survives_another_encoder(path: Path, few: Path) -> None:
    """Decisions are about bytes, and questions about rows."""
    sql(
        path,
        "insert into _image_similarity_decisions (collection_id, step, pk, sha256, "
        "decision) select collection_id, 1, pk, sha256, 'mark' "
        "from _image_similarity_items where pk = 1",
    )
    sql(
        path,
        "insert into _image_similarity_questions (collection_id, name, question) "
        "values (1, 'like a', '_like=1')",
    )
    embed(path, few, metric="l2", force=True)
    collection = value(path, "select id from _image_similarity_collections")
    for table in ("decisions", "questions"):
        found = sql(path, f"select collection_id from _image_similarity_{table}")
        assert found == [(collection,)]
    assert faults(path) == []
