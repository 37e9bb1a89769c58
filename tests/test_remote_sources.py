"""Pictures in buckets and at addresses: folders of objects, path columns, URL columns."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Event
from zipfile import ZipFile

import pytest
from cloud import ENVIRONMENT, FakeGcs, Server
from conftest import COLOURS, picture
from core import answer, command, counts, embed, failures, opened, refused, sql, value
from web_server import web

from datasette_image_similarity import buckets, trust
from datasette_image_similarity.errors import CollectionError, ImageError
from datasette_image_similarity.pipeline import Job
from datasette_image_similarity.roots import BucketRoot, WebRoot, as_root, named
from datasette_image_similarity.sources import Picture, Reader, bucket_pictures

pytest_plugins = ["cloud_fixtures"]

CLOUD = "s3://photos/summer"


@pytest.fixture
def summer(bucket: Server) -> Server:
    """Six pictures below summer/, and some things that are none of them."""
    for colour in COLOURS:
        for number in range(2):
            bucket.put(f"summer/{colour}/{number}.png", picture(colour, number))
    bucket.put("summer/notes.txt", b"not a picture")
    bucket.put("summer/.trash/old.png", picture("red", 9))
    bucket.put("summer/", b"")
    bucket.put("summer2/other.png", picture("red", 8))
    bucket.put("summer.png", picture("red", 7))
    return bucket


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cloud.db"


def paths(path: Path) -> list[str]:
    return [row[0] for row in sql(path, "select path from images order by path")]


# A folder in a bucket


def test_the_objects_below_a_prefix_become_rows(summer: Server, path: Path) -> None:
    assert counts(embed(path, CLOUD, label_from_folder=True)) == (6, 0, 0, 0, 0)
    assert paths(path) == [f"{one}/{n}.png" for one in sorted(COLOURS) for n in range(2)]
    assert value(path, "select path from _image_similarity_roots") == CLOUD
    row = sql(path, "select folder, name, label, format, bytes from images limit 1")
    assert row == [("blue", "0.png", "blue", "PNG", len(picture("blue", 0)))]


def test_a_prefix_with_a_slash_and_a_whole_bucket(summer: Server, path: Path) -> None:
    embed(path, f"{CLOUD}/")
    assert value(path, "select path from _image_similarity_roots") == CLOUD
    assert counts(embed(path, "s3://photos")) == (2, 0, 6, 0, 0)  # summer.png, summer2/
    assert value(path, "select count(*) from images") == 8


def test_run_again_without_a_path_reads_no_object(summer: Server, path: Path) -> None:
    embed(path, CLOUD)
    summer.asked("GET")
    assert counts(embed(path)) == (0, 0, 6, 0, 0)
    assert summer.asked("GET") == 0


def test_what_changed_is_embedded_again_though_size_and_second_are_equal(
    summer: Server, path: Path
) -> None:
    data = picture("red", 0)
    other = data[:-5] + bytes([data[-5] ^ 255]) + data[-4:]  # a byte of the check sum
    when = summer.client.head_object(Bucket="photos", Key="summer/red/0.png")
    embed(path, CLOUD)
    before = value(
        path, "select mtime_ns from _image_similarity_items where path like 'red/0%'"
    )
    assert before // 10**9 == int(when["LastModified"].timestamp())
    summer.put("summer/red/0.png", other)
    summary = embed(path)
    assert (summary.unchanged, summary.embedded + summary.failed) == (5, 1)


def test_a_renamed_object_keeps_its_row(summer: Server, path: Path) -> None:
    embed(path, CLOUD)
    id = value(path, "select id from images where path = 'red/0.png'")
    summer.delete("summer/red/0.png")
    summer.put("summer/red/renamed.png", picture("red", 0))
    assert counts(embed(path)) == (0, 1, 5, 0, 0)
    assert sql(path, "select id from images where path = 'red/renamed.png'") == [(id,)]


def test_what_was_deleted_stays_until_it_is_pruned(summer: Server, path: Path) -> None:
    embed(path, CLOUD)
    summer.delete("summer/red/0.png")
    assert embed(path).missing == 1
    assert counts(embed(path, prune=True)) == (0, 0, 5, 0, 1)
    assert "red/0.png" not in paths(path)


def test_a_listing_that_breaks_off_forgets_nothing(
    summer: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(path, CLOUD)
    whole = buckets._S3.page

    def broken(store: buckets._S3, *arguments: object) -> buckets.Page:
        bucket, prefix, count, after, seconds = arguments
        if after is not None:
            raise ConnectionResetError("gone")
        return whole(store, bucket, prefix, min(count, 3), after, seconds)

    monkeypatch.setattr(buckets._S3, "page", broken)
    summary = embed(path, prune=True)
    assert (summary.failed, summary.removed, summary.missing) == (1, 0, 0)
    assert "cannot be listed to its end" in failures(path)[0][2]
    monkeypatch.undo()


def test_one_object(summer: Server, path: Path) -> None:
    assert counts(embed(path, f"{CLOUD}/red/1.png")) == (1, 0, 0, 0, 0)
    assert value(path, "select path from _image_similarity_roots") == f"{CLOUD}/red"


def test_folders_here_and_there_nested_ones_once(
    summer: Server, path: Path, photos: Path
) -> None:
    summary = embed(path, [photos, f"{CLOUD}/red", CLOUD])
    assert (summary.failed, summary.embedded + summary.reused) == (0, 30)
    assert {row[0] for row in sql(path, "select path from _image_similarity_roots")} == {
        str(photos.parent),
        "s3://photos",
    }
    for source in (None, [CLOUD, photos]):
        assert counts(embed(path, source, prune=True)) == (0, 0, 30, 0, 0)
    assert "summer/red/0.png" in paths(path)


def test_what_nobody_wants_is_left_out_of_buckets_too(summer: Server, path: Path) -> None:
    data = picture("blue", 77)
    bad = (
        "@eaDir/1.png",
        "red/@eaDir/x/2.png",
        "red/@eaDir/3.png",
        "raw/4.png",
        ".h/5.png",
    )  # beside .trash/old.png
    summer.put_many({f"summer/{key}": data for key in (*bad, "6.psd", "red/7.tmp.png")})
    summary = embed(path, CLOUD, exclude=["raw/", "*.tmp.*"])
    assert summary.embedded + summary.reused == 6
    assert summary.skipped == {"excluded": 5, "hidden": 1, ".psd": 1, ".txt": 1}
    assert counts(embed(path, prune=True)) == (0, 0, 6, 0, 0)
    assert embed(path, exclude=["red"]).missing > 0


def test_more_than_a_page_of_objects(bucket: Server, path: Path) -> None:
    data = picture("green", 1, size=(24, 24))
    bucket.put_many({f"many/{number:04}.png": data for number in range(1510)})
    bucket.asked("GET")
    with Reader() as reader:
        listed = list(bucket_pictures([BucketRoot("s3", "photos", "many")], reader.buckets))
    assert [one.path for one in listed] == [f"{number:04}.png" for number in range(1510)]
    assert bucket.asked("GET", "list-type=2") == 2
    assert embed(path, "s3://photos/many", limit=20).reused == 19


ODD = (
    "a b.png",
    "ü+%20 percent.png",
    "hash#1?x=1&y.png",
    "x?versionId=1.png",
    "double//slash.png",
    "/slash first.png",
    "back\\slash.png",
    "a::b.png",
    "{}*[]'\".png",
    " space.png",
    "日本.PNG",
)
REFUSED = ("../up.png", "a/../b.png", "./dot.png", "s3://photos/summer/c.png")


def test_odd_keys_are_themselves_or_failures_in_words(bucket: Server, path: Path) -> None:
    for number, key in enumerate(ODD + REFUSED):
        bucket.put(f"odd/{key}", picture("red", number))
    bucket.put("odd/folder.png/", picture("red", 50))
    bucket.put("up.png", picture("blue", 1))
    summary = embed(path, "s3://photos/odd")
    assert paths(path) == sorted(ODD)
    assert {found for _, found, _ in failures(path)} == set(REFUSED)
    assert summary.failed == len(REFUSED)
    shas = dict(sql(path, "select path, sha256 from images"))
    for number, key in enumerate(ODD):
        assert shas[key] == sha256(picture("red", number)).hexdigest(), key
    assert counts(embed(path)) == (0, 0, len(ODD), len(REFUSED), 0)


# What is in the way


def test_what_is_in_the_way_is_said_before_anything_is_written(
    summer: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = partial(refused, "embed", path, "--model", "hog")
    assert "there is no such bucket" in said("s3://nothing/there")
    assert "No pictures in s3://photos/winter" in said("s3://photos/winter")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "cannot be reached" in said(CLOUD)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "nobody" in said(CLOUD)
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "AWS_PROFILE" in said(CLOUD)
    assert not path.exists()


@pytest.mark.parametrize(
    "place",
    [
        *("https://example.org/photos", "file:///etc", "zip://a.zip::s3://photos"),
        *("s3://", "s3:///summer", "s3://a:b@photos/", "s3://photos/../x"),
        "memory://photos",
    ],
)
def test_no_other_urls_are_folders(path: Path, place: str) -> None:
    result = command("embed", path, place, "--model", "hog")
    assert result.exit_code == 2
    with pytest.raises(CollectionError):
        embed(path, place)
    assert not path.exists()


def test_a_missing_library_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    assert "datasette-image-similarity[cloud]" in refused(
        "embed", path, CLOUD, "--model", "hog"
    )
    assert not path.exists()


def test_a_forbidden_bucket(
    summer: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(buckets._S3, "page", forbidden)
    with pytest.raises(CollectionError, match="may not read it"):
        embed(path, CLOUD)
    # Objects may still be read one by one, by who knows their keys.
    sql(path, "create table things (id integer primary key, file)")
    sql(path, "insert into things (file) values ('red/0.png')")
    options = {"path_column": "file", "root": CLOUD, "table": "things"}
    assert counts(embed(path, **options)) == (1, 0, 0, 0, 0)


def test_an_object_that_cannot_be_read_stops_nothing(
    summer: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from datasette_image_similarity import buckets
    from datasette_image_similarity.images import LOCAL_FILES

    read = buckets._S3.read

    def fails(store: buckets._S3, bucket: str, key: str, **rest: object) -> bytes:
        if key == "summer/red/0.png":
            raise PermissionError("Access Denied")
        if key == "summer/red/1.png":
            raise TimeoutError
        return read(store, bucket, key, **rest)

    monkeypatch.setattr(buckets._S3, "read", fails)
    summer.put("summer/empty.png", b"")
    summer.put("summer/huge.png", b"x" * 50_000)
    summer.asked("GET")
    limits = replace(LOCAL_FILES, max_bytes=40_000)
    assert counts(embed(path, CLOUD, limits=limits)) == (4, 0, 0, 4, 0)
    reasons = {found: reason for _, found, reason in failures(path)}
    assert "may not read it" in reasons["red/0.png"]
    assert "in time" in reasons["red/1.png"]
    assert reasons["empty.png"] == "the file is empty"
    assert "more than the limit" in reasons["huge.png"]
    assert summer.asked("GET", "huge") == 0  # its size was in the listing


def test_a_store_that_goes_away_ends_the_run_which_goes_on_later(
    summer: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = buckets._S3.read

    def away(store: buckets._S3, bucket: str, key: str, **rest: object) -> bytes:
        if "/red/" in key:
            raise ConnectionRefusedError("nobody there")
        return read(store, bucket, key, **rest)

    summer.put_many({f"summer/red/{n:02}.png": picture("red", 1) for n in range(10, 60)})
    monkeypatch.setattr(buckets._S3, "read", away)
    with pytest.raises(CollectionError, match="16 times in a row"):
        embed(path, CLOUD)
    monkeypatch.setattr(buckets._S3, "read", read)
    summary = embed(path, CLOUD)
    assert (summary.failed, value(path, "select count(*) from images")) == (0, 56)


def test_a_long_listing_says_how_far_it_is(
    summer: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasette_image_similarity.collection.LISTED", 2)
    told: list[str] = []
    embed(path, CLOUD, progress=lambda now: told.append(now.encoder))
    assert told[:3] == [f"Listed {count} pictures" for count in (2, 4, 6)]


def test_a_body_that_breaks_off_is_asked_for_again(
    summer: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reader() as reader:
        whole = reader.read(f"{CLOUD}/red/0.png", 100_000)
        store = reader.buckets._store("s3")
        call, cuts = store._call, [1, 0, 1, 1]

        def flaky(function: object, *arguments: object, **options: object) -> object:
            if function != store._fs._call_s3 and cuts.pop(0):  # it reads the body
                raise ConnectionResetError
            return call(function, *arguments, **options)

        monkeypatch.setattr(store, "_call", flaky)
        assert reader.read(f"{CLOUD}/red/0.png", 100_000) == whole
        with pytest.raises(ImageError, match="cannot be reached"):
            reader.read(f"{CLOUD}/red/0.png", 100_000)


def test_closing_ends_what_is_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="needs s3fs")
    asked, go_on = Event(), Event()

    def answer(target: str, range: str) -> tuple[int, bytes]:
        asked.set()
        go_on.wait(300)
        return 200, b"late"

    for name, setting in ENVIRONMENT.items():
        monkeypatch.setenv(name, setting)
    with web(answer) as endpoint, ThreadPoolExecutor(1) as threads, Reader() as reader:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        reading = threads.submit(reader.read, f"{CLOUD}/red/0.png", 1000)
        assert asked.wait(60)
        reader.close()
        with pytest.raises(ImageError, match="the reading was stopped"):
            reading.result()
        assert not go_on.is_set()
        go_on.set()


def test_no_more_than_the_limit_is_read(summer: Server) -> None:
    with Reader() as reader:
        with pytest.raises(ImageError, match="more than"):
            reader.read(f"{CLOUD}/red/0.png", 100)
        assert len(reader.read(f"{CLOUD}/red/0.png", 100_000)) > 100


def test_a_reader_works_in_other_processes(summer: Server) -> None:
    import multiprocessing
    import pickle

    with Reader() as reader:
        data = reader.read(f"{CLOUD}/red/0.png", 100_000)
        assert pickle.loads(pickle.dumps(reader)).read(f"{CLOUD}/red/0.png", 10**6) == data
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(reader.read, (f"{CLOUD}/red/0.png", 100_000)) == data


# A column of paths


@pytest.fixture
def things(path: Path) -> Path:
    cells = ("red/0.png", f"{CLOUD}/red/1.png", "red/none.png", "../summer2/other.png")
    cells += ("s3://photos/summer2/other.png", "red/", "", None, 7, "https://x.org/a.png")
    sql(path, "create table things (id integer primary key, file)")
    for cell in cells:
        sql(path, "insert into things (file) values (?)", (cell,))
    return path


def test_paths_below_a_root_in_a_bucket(summer: Server, things: Path) -> None:
    options = {"path_column": "file", "root": CLOUD, "table": "things"}
    summary = embed(things, **options)
    assert counts(summary) == (2, 0, 0, 8, 0)
    reasons = {pk: reason for pk, _, reason in failures(things)}
    assert reasons[3] == "no such object in the bucket"
    assert '".."' in reasons[4]
    assert reasons[5] == reasons[10] == f"outside the root {CLOUD}"
    assert "folder" in reasons[6]
    summer.asked("GET")
    assert counts(embed(things, table="things")) == (0, 0, 2, 8, 0)
    assert summer.asked("GET") == 0
    summer.delete("summer/red/0.png")
    assert embed(things, table="things").missing == 1


def test_from_the_command_line(summer: Server, path: Path, tmp_path: Path) -> None:
    (tmp_path / "things.csv").write_text("id,file\n1,red/0.png\n2,blue/1.png\n")
    csv = ("--csv", tmp_path / "things.csv", "--table", "things", "--path-column", "file")
    found = answer("embed", path, *csv, "--root", CLOUD, "--model", "hog")
    assert (found["embedded"], found["failed"]) == (2, 0)
    found = answer("embed", tmp_path / "folder.db", CLOUD, "--model", "hog")
    assert found["embedded"] == 6
    out = tmp_path / "out.zip"
    result = command("export", tmp_path / "folder.db", "--to", out)
    assert result.exit_code == 0, result.output
    with ZipFile(out) as exported:
        names = [name for name in exported.namelist() if name.endswith(".png")]
        held = {exported.read(name) for name in names}
    assert held == {picture(colour, n) for colour in COLOURS for n in range(2)}


# Google Cloud Storage, by another server's words


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGcs]:
    pytest.importorskip("gcsfs", reason="needs gcsfs")
    import fsspec

    fake = FakeGcs()
    with web(fake.answer) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        yield fake


def test_the_same_in_google_s_words(
    gcs: FakeGcs, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "PAGE", 5)
    for number, key in enumerate(ODD):
        gcs.objects[f"odd/{key}"] = picture("red", number)
    gcs.objects |= {"odd/empty.png": b"", "odd2/a.png": picture("red"), "odd/b.txt": b""}
    assert counts(embed(path, "gs://photos/odd")) == (len(ODD), 0, 0, 1, 0)
    assert gcs.pages == 4  # one to see whether it is there
    shas = dict(sql(path, "select path, sha256 from images"))
    for number, key in enumerate(ODD):
        assert shas[key] == sha256(picture("red", number)).hexdigest(), key
    gcs.objects["odd/a b.png"] = picture("blue", 5)
    summary = embed(path)
    assert (summary.embedded, summary.unchanged) == (1, len(ODD) - 1)
    with pytest.raises(CollectionError, match="no such bucket"):
        embed(path, "gs://nothing")
    sql(path, "create table things (id integer primary key, file)")
    sql(path, "insert into things (file) values ('a b.png'), ('none.png')")
    options = {"path_column": "file", "root": "gs://photos/odd", "table": "things"}
    assert counts(embed(path, **options)) == (1, 0, 0, 1, 0)


# Roots


def test_what_a_root_is() -> None:
    assert as_root("s3://a/b/") == BucketRoot("s3", "a", "b")
    assert str(as_root("gs://a")) == "gs://a"
    assert as_root("https:") == WebRoot()
    assert named("s3:/a") == Path("s3:/a")  # a folder that is called so
    assert named("C:\\photos") == Path("C:\\photos")
    assert named("C:/photos") == Path("C:/photos")
    assert as_root("/a/s3://b") == Path("/a/s3:/b")


def test_a_folder_called_like_a_bucket(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos.rename(tmp_path / "s3:")
    assert embed(tmp_path / "a.db", "s3:").embedded == 24
    assert counts(embed(tmp_path / "a.db")) == (0, 0, 24, 0, 0)


def test_a_stranger_s_bucket_is_not_read(
    summer: Server, path: Path, tmp_path: Path
) -> None:
    embed(path, CLOUD)
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    summer.asked("GET")
    assert CLOUD in refused("embed", copy)
    assert summer.asked("GET", "photos") == 0
    trust.note_root(copy, as_root(CLOUD))
    assert counts(embed(copy)) == (0, 0, 6, 0, 0)


def test_what_goes_to_other_machines_keeps_its_root() -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    from datasette_image_similarity.ray_engine import _job_table, _jobs

    for root in (as_root(CLOUD), WebRoot(), Path("/photos"), None):
        place = "https://x.org/ü.png" if root == WebRoot() else f"{CLOUD}/ü.png"
        job = Job(Picture(1, "ü.png", root, place, 3, 4), 5, "ab")
        assert _jobs(_job_table([job], lambda _: b""))[0] == [job]


def test_what_waits_keeps_its_root(path: Path) -> None:
    """The queue of jobs is a table of text."""
    from datasette_image_similarity.plan import Queue

    picture = Picture(None, "a b.png", as_root(CLOUD), f"{CLOUD}/a b.png", 3, 4)
    with opened(path) as conn:
        queue = Queue(conn)
        queue.add([(Job(picture), False)])
        assert [job.picture for job in queue] == [picture]
