"""Others at the database: whatever they do, no question is answered with a wrong row.

A hypothesis state machine over one database file with a table of each kind: of a folder's
files, of paths by integer and by text keys that fold case, of BLOBs by compound keys, of
paths without a key. Between our own commands, and between two batches of one of them,
others write to it: plain sqlite3, sqlite-utils, Datasette, a second `embed`. They delete
and give keys out again, replace, vacuum, rename, drop and add columns, restore an older
copy, swap files under their paths. After every step all ways to ask are asked.

What is true is known apart from the package: which bytes were embedded for which row, from
what the files and cells held when `embed` ran, and the vectors of these bytes.

The long form: tests/stress/run others, 10,000 steps and more.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import math
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import sqlite_utils
from datasette.utils import tilde_encode
from datasette.utils.sqlite import sqlite3
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from PIL import Image
from serving import IS_ONE, ROOT, ask, close_all, open_datasette

from datasette_image_similarity import ImageCollection, query
from datasette_image_similarity import collection as collection_module
from datasette_image_similarity import database as db
from datasette_image_similarity.collection import THUMBNAIL, EncoderOptions
from datasette_image_similarity.encoders import load_encoder
from datasette_image_similarity.errors import ImageSimilarityError
from datasette_image_similarity.functions import prepare_connection
from datasette_image_similarity.images import LOCAL_FILES, DecoderPool, Request
from datasette_image_similarity.index import IndexCache
from datasette_image_similarity.learning.stored import stored_transform
from datasette_image_similarity.pipeline import embed_pictures, finished_vector
from datasette_image_similarity.verify import NO_TABLE, NOT_LIVE, verify_database
from stress.report import Report, options

PICTURES = 10  # different ones
BROKEN = b"BM" + bytes(820)  # as long as they are, but no picture
NEAR = 2e-5  # what rounding to float32, and to six digits, may change a distance by
EVERYTHING = 1000  # hits: there are never so many rows
AT_ONCE = 4  # collections that are asked after a step
METRICS = {"default": "cosine", "second": "l2"}


def bitmap(number: int) -> bytes:
    """A picture of its own for each number; the files of all of them are equally long."""
    chance = np.random.default_rng(number)
    coarse = chance.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((16, 16), Image.Resampling.BICUBIC).save(buffer, "BMP")
    return buffer.getvalue()


@dataclass(frozen=True)
class Known:
    """The pictures, their vectors by metric, and a folder for the database."""

    bytes: tuple[bytes, ...]
    vectors: dict[str, dict[str, np.ndarray]]  # metric → SHA-256 → float32 (d,)
    folder: Path
    cache: IndexCache  # of compressed indexes: kept as a server does


@contextmanager
def pictures_known() -> Iterator[Known]:
    """What `hog` makes of them; meanwhile one pool of decoders serves all runs."""
    data = tuple(map(bitmap, range(PICTURES)))
    encoder = load_encoder("hog")
    asked = Request(input=encoder.input, thumbnail=THUMBNAIL)
    with (
        DecoderPool(LOCAL_FILES, 1) as decoders,
        tempfile.TemporaryDirectory(prefix="others-") as folder,
    ):
        pixels = np.stack([decoders.decode(one, asked).pixels for one in data])
        rows = encoder.encode(pixels)
        vectors = {
            metric: {
                _sha256(one): np.frombuffer(finished_vector(row, metric), "<f4")
                for one, row in zip(data, rows, strict=True)
            }
            for metric in ("cosine", "l2")
        }
        pooled = partial(embed_pictures, decoders=decoders)
        with mock.patch.object(collection_module, "embed_pictures", pooled):
            yield Known(data, vectors, Path(folder), IndexCache())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Table:
    """A user's table, and how rows of it are written."""

    name: str
    ddl: str
    column: str
    keys: tuple[Any, ...]  # as SQL has them; a tuple for compound keys
    key_columns: tuple[str, ...]
    source: str = "path"

    @property
    def where(self) -> str:
        return " and ".join(f"{column} = ?" for column in self.key_columns)

    def parts(self, key: Any) -> tuple:
        return key if isinstance(key, tuple) else (key,)


TABLES = {
    table.name: table
    for table in (
        Table("images", "", "path", tuple(range(1, 15)), ("id",), "folder"),
        Table(
            "paths",
            "create table paths (id integer primary key, path text, note text)",
            "path",
            tuple(range(1, 9)),
            ("id",),
        ),
        Table(
            "names",
            "create table names (name text primary key collate nocase, path text collate "
            "nocase, note text)",
            "path",
            ("a", "A", "b", "B/c", "d,e", "é", "7", "07"),
            ("name",),
        ),
        Table(
            "pairs",
            "create table pairs (a text, b integer, data blob, note text, "
            "primary key (a, b)) without rowid",
            "data",
            tuple((a, b) for a in ("x", "X", 'q"') for b in (1, 2, 3)),
            ("a", "b"),
            "blob",
        ),
        Table(
            "loose",
            "create table loose (path text, note text)",
            "path",
            tuple(range(1, 9)),
            ("rowid",),
        ),
        Table(
            "blobs",
            "create table blobs (id integer primary key, data blob, note text)",
            "data",
            tuple(range(1, 9)),
            ("id",),
            "blob",
        ),
    )
}
FILES = ("a.bmp", "b.bmp", "B.bmp", "deep/a.bmp", "deep/c.bmp", "é 1.bmp", "z.bmp")


class Wrong(AssertionError):
    """An answer that is not true."""


@dataclass(frozen=True)
class Truth:
    """A row, as an embedded one should be found: its key, its cell, its picture's hash."""

    key: Any
    cell: str | bytes
    sha256: str


# What was embedded: (table, collection) → key → (cell, SHA-256).
Embedded = dict[tuple[str, str], dict[Any, tuple[Any, str]]]


@dataclass(frozen=True)
class Copy:
    """A copy of the database, and what is true of it."""

    file: Path
    embedded: Embedded
    metrics: dict[tuple[str, str], str]
    transforms: dict[tuple[str, str], Any]


class World:
    """One database file, the pictures beside it, and what is true of them."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.folder = known.folder
        self.path = self.folder / "others.db"
        self.files = self.folder / "files"
        self.embedded: Embedded = {}
        self.transforms: dict[tuple[str, str], Any] = {}
        self.metrics: dict[tuple[str, str], str] = {}
        self.copies: dict[str, Copy] = {}
        self.done: Counter[str] = Counter()
        self.unsure: dict[str, set[str]] | None = None  # by file: what it held meanwhile
        self.turn = 0
        self.history: list[str] = []  # since the world began anew

    def begin(self) -> None:
        """Tables of every kind, filled, and each embedded in two collections."""
        (self.files / "deep").mkdir(parents=True)
        with self.plain() as conn:
            for table in TABLES.values():
                if table.ddl:
                    conn.execute(table.ddl)
                    self.fill(conn, table)
        self.put_files()
        for table in TABLES:
            for name in METRICS:
                self.embed(table, name)
        self.copy("beginning")

    def put_files(self) -> None:
        for number, name in enumerate(FILES):
            self.put_file(name, self.known.bytes[number] if number < 5 else None)

    def copy(self, name: str) -> None:
        """Keep the database as it is, and what is true of it."""
        file = self.folder / f"{name}.copy"
        file.unlink(missing_ok=True)
        with self.plain() as conn:
            conn.execute("vacuum into ?", (str(file),))
        embedded = {which: dict(rows) for which, rows in self.embedded.items()}
        self.copies[name] = Copy(file, embedded, {**self.metrics}, {**self.transforms})

    def restore(self, name: str) -> None:
        """In place, as sqlite3's .restore does: whoever has the file open goes on."""
        copy = self.copies[name]
        with self.plain() as conn, closing(sqlite3.connect(copy.file)) as old:
            old.backup(conn)
        self.embedded = {which: dict(rows) for which, rows in copy.embedded.items()}
        self.metrics, self.transforms = {**copy.metrics}, {**copy.transforms}

    def fill(self, conn: sqlite3.Connection, table: Table) -> None:
        """Rows to begin with."""
        columns = (*table.key_columns, table.column)
        marks = ", ".join("?" * len(columns))
        for number, key in enumerate(table.keys[:-1]):
            blob = table.source == "blob"
            cell = self.known.bytes[number] if blob else FILES[number % 5]
            conn.execute(
                f"insert or ignore into {table.name} ({', '.join(columns)}) "
                f"values ({marks})",
                (*table.parts(key), cell),
            )

    # What others have

    @contextmanager
    def plain(self) -> Iterator[sqlite3.Connection]:
        """A connection as any program has it: without sqlite-vec."""
        with closing(sqlite3.connect(self.path, isolation_level=None, timeout=20)) as conn:
            yield conn

    def rows(self, table: Table) -> list[tuple[Any, Any]]:
        """(key, cell) of the rows that are there; none where the table is not."""
        keys = ", ".join(f'"{name}"' for name in table.key_columns)
        with self.plain() as conn:
            try:
                found = conn.execute(f"select {keys}, {table.column} from {table.name}")
                return [(row[0] if len(row) == 2 else row[:-1], row[-1]) for row in found]
            except sqlite3.OperationalError:  # renamed, or without its column
                return []

    def there(self, table: str) -> bool:
        with self.plain() as conn:
            return bool(
                conn.execute(
                    "select 1 from pragma_table_info(?) where name = ?",
                    (table, TABLES[table].column),
                ).fetchone()
            )

    def sha256_of(self, table: Table, cell: Any) -> str | None:
        """The hash of what a cell means now, where that is one of the pictures."""
        data: bytes | None = None
        if table.source == "blob":
            data = cell if isinstance(cell, bytes) else None
        elif isinstance(cell, str) and cell:
            with suppress(OSError):
                data = (self.files / cell).read_bytes()
        return _sha256(data) if data in self.known.bytes else None

    def put_file(self, name: str, data: bytes | None) -> None:
        file = self.files / name
        if data is None:
            file.unlink(missing_ok=True)
        else:
            # A new file in place of the old, as editors do: its time is another one.
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as made:
                made.write(data)
            shutil.move(made.name, file)
        self.note_files()

    def note_files(self) -> None:
        if self.unsure is not None:
            for file in self.files.rglob("*.bmp"):
                name = file.relative_to(self.files).as_posix()
                self.unsure.setdefault(name, set()).add(_sha256(file.read_bytes()))

    # What we do

    def collection(self, table: str, name: str) -> ImageCollection:
        return ImageCollection(self.path, table, name=name)

    def embed(
        self,
        table: str,
        name: str,
        between: Callable[[], None] | None = None,
        **more: Any,
    ) -> None:
        """Embed, `between` two batches something else; what is true then is noted."""
        it = TABLES[table]
        source = {
            "folder": {"source": self.files},
            "path": {"path_column": "path", "root": self.files},
            "blob": {"blob_column": "data"},
        }[it.source]
        calls = iter([between])

        def progress(now: Any) -> None:
            act = next(calls, None) if now.done else None
            if act is not None:
                act()

        encoder = EncoderOptions("hog")
        if (table, name) in self.transforms:
            encoder = None
        options = {"encoder": encoder, "workers": 1, "batch_size": 3, **source, **more}
        outer = self.unsure is not None
        if between is not None and not outer:
            self.unsure = {}
            self.note_files()
        try:
            with self.collection(table, name) as collection:
                if (table, name) not in self.embedded:
                    options["metric"] = METRICS.get(name, "cosine")
                try:
                    collection.embed(progress=progress, **options)
                except ImageSimilarityError as error:
                    self.refused(error)
                    if not outer:
                        self.learn_all()
                    return
            self.metrics.setdefault((table, name), METRICS.get(name, "cosine"))
            if self.unsure is not None:
                self.learn_all()
            else:
                self.note_embedded(it, name, prune=bool(more.get("prune")))
        finally:
            if not outer:
                self.unsure = None

    def refused(self, error: ImageSimilarityError) -> None:
        self.done[f"refused: {type(error).__name__}"] += 1

    def note_embedded(self, table: Table, name: str, prune: bool) -> None:
        """After a run in which nobody else did anything: what must be embedded now."""
        before = self.embedded.get((table.name, name), {})
        now: dict[Any, tuple[Any, str]] = {}
        rows = self.rows(table)
        if table.source == "folder":
            self.note_folder(table, name, before, prune)
            return
        for key, cell in rows:
            sha256 = self.sha256_of(table, cell)
            if sha256 is not None:
                now[key] = (cell, sha256)
            elif key in before and before[key][0] == cell and table.source == "path":
                now[key] = before[key]  # missing, or broken: as it was last
                if prune and not (self.files / cell).exists():
                    del now[key]
        self.embedded[table.name, name] = now

    def note_folder(self, table: Table, name: str, before: dict, prune: bool) -> None:
        """Which row stands for a file is ours to say; that each has one is not."""
        now = self.items(table.name, name)
        rows = dict(self.rows(table))
        whose = {cell: key for key, (cell, _) in now.items()}
        if len(whose) < len(now):
            raise Wrong(f"{table.name}/{name}: two items for one file: {now}")
        on_disk = {
            file.relative_to(self.files).as_posix(): _sha256(file.read_bytes())
            for file in self.files.rglob("*.bmp")
        }
        for path, sha256 in on_disk.items():
            if sha256 == _sha256(BROKEN):
                continue
            key = whose.get(path)
            if key is None or now[key] != (path, sha256) or rows.get(key) != path:
                raise Wrong(f"{table.name}/{name}: {path} is not embedded: {now}, {rows}")
        for key, kept in now.items():
            if kept[0] not in on_disk and (prune or before.get(key) != kept):
                raise Wrong(f"{table.name}/{name}: {kept} is gone, but kept for {key}")
        self.embedded[table.name, name] = now

    def items(self, table: str, name: str) -> dict[Any, tuple[Any, str]]:
        """What our own tables say of each row: (path, SHA-256); for BLOBs the BLOB."""
        it = TABLES[table]
        with closing(db.connect(self.path)) as conn:
            collection = db.collection_or_none(conn, table, name)
            if collection is None:
                return {}
            found = conn.execute(
                "select pk, path, sha256 from _image_similarity_items "
                "where collection_id = ?",
                (collection.id,),
            ).fetchall()
        by_hash = {_sha256(data): data for data in self.known.bytes}
        blob = it.source == "blob"
        compound = len(it.key_columns) > 1
        items = {}
        for pk, path, sha256 in found:
            with suppress(ValueError):  # a key of another table of that name
                key = tuple(json.loads(pk)) if compound else pk
                items[key] = (by_hash.get(sha256) if blob else path, sha256)
        return items

    def learn_all(self) -> None:
        """After a run with others in between: what was embedded is read from our tables,
        and must be something that was there meanwhile."""
        with closing(db.connect(self.path)) as conn:
            there = [(c.table, c.name) for c in db.collections(conn)]
        known = {_sha256(data) for data in self.known.bytes}
        for which in {*self.embedded, *there}:
            if which not in there:
                self.forget(*which)
                continue
            self.metrics.setdefault(which, METRICS.get(which[1], "cosine"))
            before = self.embedded.get(which, {})
            now = self.items(*which)
            for key, (cell, sha256) in now.items():
                if sha256 not in known:
                    raise Wrong(f"{which}: {key} has a hash of no picture")
                meanwhile = (self.unsure or {}).get(cell, ()) if cell != b"" else ()
                blob = TABLES[which[0]].source == "blob"
                was = [old for old in before.values() if old == (cell, sha256)]
                if blob or was or self.unsure is None:
                    continue
                if sha256 not in meanwhile:
                    raise Wrong(f"{which}: {cell} never was {sha256[:8]}: {meanwhile}")
            self.embedded[which] = now

    def forget(self, table: str, name: str) -> None:
        self.embedded.pop((table, name), None)
        self.transforms.pop((table, name), None)
        self.metrics.pop((table, name), None)

    # What is true

    def truth(self, table: Table, name: str) -> list[Truth]:
        """The rows that a question to a collection may find, and has to."""
        embedded = self.embedded.get((table.name, name), {})
        return [
            Truth(key, cell, embedded[key][1])
            for key, cell in self.rows(table)
            if key in embedded and embedded[key][0] == cell
        ]

    def vector(self, table: Table, name: str, sha256: str) -> np.ndarray:
        """The vector as a collection should have it: float32, of shape (d,)."""
        which = (table.name, name)
        metric = self.metrics[which]
        vector = self.known.vectors[metric][sha256]
        if which in self.transforms:
            moved = self.transforms[which](vector[None])[0]
            vector = np.frombuffer(finished_vector(moved, metric), "<f4")
        return vector

    def distance(self, metric: str, a: np.ndarray, b: np.ndarray) -> float:
        a, b = a.astype(np.float64), b.astype(np.float64)
        if metric == "l2":
            return float(np.linalg.norm(a - b))
        return max(0.0, 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)))

    # Asking

    def check(self) -> None:
        """Ask some of the collections, each in one way: all have their turn."""
        known = sorted(which for which in self.embedded if self.there(which[0]))
        for _ in known[:AT_ONCE]:
            self.turn += 1
            table, name = known[self.turn % len(known)]
            self.check_collection(TABLES[table], name)

    def check_collection(self, table: Table, name: str) -> None:
        truth = self.truth(table, name)
        with self.collection(table.name, name) as collection:
            found, conn = collection._open()
            prepare_connection(conn)
            way = self.turn // len(self.embedded) % 3
            if way == 0:
                self.check_search(found, conn, table, name, truth)
            elif way == 1 and truth:
                like = truth[self.turn % len(truth)]
                self.check_like(collection, conn, table, name, like, truth)
            else:
                self.check_stale(collection, conn, table, name, truth)

    def check_search(
        self,
        collection: db.Collection,
        conn: sqlite3.Connection,
        table: Table,
        name: str,
        truth: list[Truth],
    ) -> None:
        """What is like a picture, by whatever index there is."""
        picture = self.known.bytes[self.turn % PICTURES]
        vector = self.vector(table, name, _sha256(picture))
        asked = query.Query(vector.tobytes(), EVERYTHING)
        hits = query.search(conn, collection, asked, self.known.cache).hits
        told = [(_key(hit.pk), hit.distance) for hit in hits]
        self.compare(table, name, vector, told, truth, "search")

    def check_like(
        self,
        collection: ImageCollection,
        conn: sqlite3.Connection,
        table: Table,
        name: str,
        like: Truth,
        truth: list[Truth],
    ) -> None:
        """What is like a row, as the API and as SQL tell it."""
        others = [one for one in truth if one.key != like.key]
        vector = self.vector(table, name, like.sha256)
        hits = collection.similar(like.key, k=EVERYTHING)
        told = [(_key(hit.pk), hit.distance) for hit in hits]
        self.compare(table, name, vector, told, others, "similar")
        pk = json.dumps(like.key) if isinstance(like.key, tuple) else like.key
        sql = "select similar_images(?, ?, ?, ?)"
        asked = (table.name, pk, EVERYTHING, name)
        answer = json.loads(conn.execute(sql, asked).fetchone()[0])
        told = [(_key(hit["pk"]), hit["distance"]) for hit in answer]
        self.compare(table, name, vector, told, others, "similar_images()")

    def check_stale(
        self,
        collection: ImageCollection,
        conn: sqlite3.Connection,
        table: Table,
        name: str,
        truth: list[Truth],
    ) -> None:
        """A row whose picture is not embedded is nothing to ask with."""
        fresh = {one.key for one in truth}
        for key, _ in self.rows(table):
            if key in fresh:
                continue
            try:
                collection.similar(key, k=3)
            except ImageSimilarityError:
                pass
            else:
                raise Wrong(f"{table.name}/{name}: similar({key!r}) asks with another one")
            pk = json.dumps(key) if isinstance(key, tuple) else key
            sql = "select image_embedding(?, ?, ?)"
            if conn.execute(sql, (table.name, pk, name)).fetchone()[0] is not None:
                raise Wrong(f"{table.name}/{name}: image_embedding({key!r}) is another's")
            return

    def compare(
        self,
        table: Table,
        name: str,
        vector: np.ndarray,
        told: list[tuple[Any, float]],
        truth: list[Truth],
        how: str,
    ) -> None:
        """Raises Wrong unless these are the true rows, in order of their true distances."""
        metric = self.metrics[table.name, name]
        right = {
            one.key: self.distance(metric, vector, self.vector(table, name, one.sha256))
            for one in truth
        }
        where = f"{table.name}/{name}, {how}"
        keys = [key for key, _ in told]
        if len(set(keys)) < len(keys):
            raise Wrong(f"{where}: a row twice: {keys}")
        if set(keys) != right.keys():
            wrong, missing = set(keys) - right.keys(), right.keys() - set(keys)
            raise Wrong(f"{where}: wrong rows {wrong}, missing rows {missing}")
        distances = [distance for _, distance in told]
        if distances != sorted(distances):
            raise Wrong(f"{where}: not in order")
        near = NEAR * (max(1.0, float(np.linalg.norm(vector))) if metric == "l2" else 1.0)
        for key, distance in told:
            if abs(distance - right[key]) > near:
                raise Wrong(f"{where}: {key!r} is {right[key]} away, told {distance}")


def _key(pk: Any) -> Any:
    return tuple(pk) if isinstance(pk, list) else pk


# On the web

LOOP = asyncio.new_event_loop()


class Site:
    """A Datasette over the file, asked in this process."""

    def __init__(self, world: World) -> None:
        self.world = world
        # Deadlines are another matter: this machine may be busy.
        self.datasette = open_datasette(world.path, settings={"sql_time_limit_ms": 60_000})
        self.get("/others")

    def get(self, path: str, **options: Any) -> Any:
        response = LOOP.run_until_complete(ask(self.datasette, path, ROOT, **options))
        if response.status_code >= 500:
            raise Wrong(f"{path}: {response.status_code} {response.text[:300]}")
        return response

    def check(self, table: Table, name: str) -> None:
        """The JSON page and the thumbnails of a collection's rows."""
        world = self.world
        truth = world.truth(table, name)
        fresh = {one.key: one for one in truth}
        rows = world.rows(table)
        for key, _ in rows[:3]:
            path = ",".join(tilde_encode(str(part)) for part in table.parts(key))
            base = f"/others/{table.name}/-"
            page = f"{base}/similar.json?_like={path}&_size=1000&_collection={name}"
            response = self.get(page)
            picture = self.get(f"{base}/thumbnail/{path}?_collection={name}")
            if key not in fresh:
                if (response.status_code, picture.status_code) != (404, 404):
                    raise Wrong(f"{page}: {response.status_code}, {picture.status_code}")
                continue
            if (response.status_code, picture.status_code) != (200, 200):
                raise Wrong(f"{page}: {response.text[:200]}, {picture.text[:200]}")
            keys = {self.path_of(table, one): one.key for one in truth}
            found = response.json()["rows"]
            told = [(keys.get(hit["pk"], hit["pk"]), hit["distance"]) for hit in found]
            vector = world.vector(table, name, fresh[key].sha256)
            others = [one for one in truth if one.key != key]
            world.compare(table, name, vector, told, others, page)
            digest = fresh[key].sha256[:32]
            if not picture.headers["etag"].startswith(f'"{digest}'):
                raise Wrong(f"{base}/thumbnail/{path}: another picture's")

    def path_of(self, table: Table, one: Truth) -> str:
        return ",".join(tilde_encode(str(part)) for part in table.parts(one.key))

    def write(self, statement: str, parameters: tuple) -> None:
        """As another plugin of this Datasette would."""
        base = self.datasette.get_database("others")
        LOOP.run_until_complete(base.execute_write(statement, parameters))

    def post(self, path: str, body: dict) -> int:
        """Datasette's own API for writing, on 1.0."""
        headers = {"content-type": "application/json"}
        options = {"method": "POST", "content": json.dumps(body), "headers": headers}
        return self.get(path, **options).status_code


# What others do


class Others(RuleBasedStateMachine):
    """The rules. The class has the database and the site: each run begins anew in them."""

    world: World
    site: Site

    def __init__(self) -> None:
        super().__init__()
        self.world.turn = 0
        self.world.history.clear()
        self.world.restore("beginning")
        self.world.put_files()
        self.world.copies.pop("backup", None)

    def teardown(self) -> None:
        """Tell at once what went wrong: where it does not come again, nobody else does."""
        error = sys.exc_info()[1]
        if isinstance(error, Exception):
            did = ", ".join(self.world.history[-20:])
            print(f"{error!r} after {did}", file=sys.stderr, flush=True)

    def did(self, what: str) -> None:
        self.world.done[what] += 1
        self.world.history.append(what)

    # Embedding

    tables = st.sampled_from(sorted(TABLES))
    names = st.sampled_from(["default", "default", "second"])
    numbers = st.integers(0, PICTURES - 1)
    files = st.sampled_from(FILES)

    @rule(table=tables, name=names, prune=st.booleans(), force=st.booleans())
    def embed(self, table: str, name: str, prune: bool, force: bool) -> None:
        self.did("embed")
        self.world.embed(table, name, prune=prune, force=force and prune)

    @rule(table=tables, name=names)
    def embed_again(self, table: str, name: str) -> None:
        self.did("embed")
        self.world.embed(table, name)

    @rule(table=tables, name=names, other=names, number=st.integers(0, 2**32))
    def embed_while_others_write(
        self, table: str, name: str, other: str, number: int
    ) -> None:
        self.did("embed, others between two batches")
        chance = random.Random(number)

        def between() -> None:
            for _ in range(chance.randint(1, 3)):
                self.do_something(chance, table)
            if chance.random() < 0.5:
                self.world.embed(table, other)

        self.world.embed(table, name, between)
        self.world.embed(table, name)

    def do_something(self, chance: Any, table: str) -> None:
        key = chance.choice(TABLES[table].keys)
        number = chance.randrange(PICTURES)
        file = chance.choice(FILES)
        act = chance.choice(
            [
                lambda: self.put(table, key, number, file, "insert or replace"),
                lambda: self.put(table, key, number, file, "insert or replace"),
                lambda: self.drop(table, key),
                lambda: self.world.put_file(file, self.world.known.bytes[number]),
                lambda: self.world.put_file(file, None),
                lambda: self.sql("vacuum"),
                lambda: self.add_column(table),
                lambda: self.drop_note(table),
                lambda: self.renumber(table),
                lambda: self.make_key(table),
                lambda: self.remove(table, "default"),
                lambda: self.rename_away(table),
            ]
        )
        act()

    # Others write

    def sql(self, statement: str, parameters: tuple = ()) -> bool:
        with self.world.plain() as conn:
            try:
                conn.execute(statement, parameters)
            except sqlite3.Error as error:
                self.did(f"sql refused: {str(error)[:20]}")
                return False
        return True

    def cell(self, table: Table, number: int, file: str) -> Any:
        if table.source == "blob":
            return BROKEN if number == 3 else self.world.known.bytes[number]
        return {0: None, 1: "no such.bmp"}.get(number, file)

    def put(self, table: str, key: Any, number: int, file: str, how: str) -> None:
        self.did(how)
        it = TABLES[table]
        columns = [*it.key_columns, it.column]
        values = (*it.parts(key), self.cell(it, number, file))
        if table == "images" and values[-1] is None:
            return
        marks = ", ".join("?" * len(values))
        self.sql(f"{how} into {table} ({', '.join(columns)}) values ({marks})", values)

    def drop(self, table: str, key: Any) -> None:
        self.did("delete")
        it = TABLES[table]
        self.sql(f"delete from {table} where {it.where}", it.parts(key))

    def renumber(self, table: str) -> None:
        """Keys swapped, or moved on, as a script that sorts a table would."""
        self.did("renumber")
        it = TABLES[table]
        last = it.key_columns[-1]
        if isinstance(it.parts(it.keys[0])[-1], int):
            self.sql(f"update {table} set {last} = -{last}")
            self.sql(f"update {table} set {last} = 9 + {last} where {last} >= -8")
            self.sql(f"delete from {table} where {last} <= 0")

    def make_key(self, table: str) -> None:
        """The table made anew with another primary key, its rows in another order."""
        self.did("another key")
        it = TABLES[table]
        if table not in ("paths", "loose") or not self.world.there(table):
            return
        with self.world.plain() as conn:
            conn.execute("begin immediate")
            conn.execute(f"create table made as select * from {table} order by path desc")
            conn.execute(f"drop table {table}")
            conn.execute(it.ddl)
            kept = "path, note" if self.has_note(conn, "made") else "path"
            conn.execute(f"insert into {table} ({kept}) select {kept} from made")
            conn.execute("drop table made")
            conn.execute("commit")

    def has_note(self, conn: sqlite3.Connection, table: str) -> bool:
        found = conn.execute("select name from pragma_table_info(?)", (table,)).fetchall()
        return ("note",) in found

    def add_column(self, table: str) -> None:
        self.did("add column")
        count = self.world.done["add column"]
        self.sql(f"alter table {table} add column added{count} text default 'x'")

    def drop_note(self, table: str) -> None:
        self.did("drop column")
        self.sql(f"alter table {table} drop column note")

    def rename_away(self, table: str) -> None:
        """It is called otherwise for a while, or its column is."""
        self.did("rename")
        it = TABLES[table]
        if not self.sql(f"alter table {table} rename to renamed"):
            return
        self.ask_quietly(table)
        self.sql(f"alter table renamed rename to {table}")
        if self.sql(f"alter table {table} rename column {it.column} to renamed"):
            self.ask_quietly(table)
            self.sql(f"alter table {table} rename column renamed to {it.column}")

    def ask_quietly(self, table: str) -> None:
        """Questions to what is not there are refused in words, or nothing is found."""
        for name in ("default", "second"):
            with (
                self.world.collection(table, name) as collection,
                suppress(ImageSimilarityError),
            ):
                if collection.similar(TABLES[table].keys[0], k=3):
                    raise Wrong(f"{table} is called otherwise, and is answered")
        self.site.get(f"/others/{table}/-/similar.json?_like=1")

    def remove(self, table: str, name: str) -> None:
        self.did("remove")
        with self.world.collection(table, name) as collection:
            try:
                collection.remove()
            except ImageSimilarityError as error:
                self.world.refused(error)
        self.world.forget(table, name)

    @rule(table=tables, key=st.data(), number=numbers, file=files)
    def others_put(self, table: str, key: Any, number: int, file: str) -> None:
        one = key.draw(st.sampled_from(TABLES[table].keys))
        how = key.draw(st.sampled_from(["insert or replace", "insert or ignore"]))
        self.put(table, one, number, file, how)

    @rule(table=tables, key=st.data(), number=numbers, file=files)
    def others_update(self, table: str, key: Any, number: int, file: str) -> None:
        self.did("update")
        it = TABLES[table]
        one = key.draw(st.sampled_from(it.keys))
        cell = self.cell(it, number, file)
        if table != "images" or cell is not None:
            statement = f"update {table} set {it.column} = ? where {it.where}"
            self.sql(statement, (cell, *it.parts(one)))

    @rule(table=tables, key=st.data())
    def others_delete(self, table: str, key: Any) -> None:
        self.drop(table, key.draw(st.sampled_from(TABLES[table].keys)))

    @rule(table=tables, key=st.data())
    def others_change_a_key(self, table: str, key: Any) -> None:
        self.did("update key")
        it = TABLES[table]
        old, new = (it.parts(key.draw(st.sampled_from(it.keys))) for _ in "ab")
        sets = ", ".join(f"{column} = ?" for column in it.key_columns)
        self.sql(f"update {table} set {sets} where {it.where}", (*new, *old))

    @rule(table=tables)
    def others_renumber(self, table: str) -> None:
        self.renumber(table)

    @rule(table=tables, number=numbers, file=files)
    def sqlite_utils_upserts(self, table: str, number: int, file: str) -> None:
        self.did("sqlite-utils")
        it = TABLES[table]
        if it.key_columns == ("rowid",) or not self.world.there(table):
            return
        key = it.keys[number % len(it.keys)]
        row = dict(zip(it.key_columns, it.parts(key), strict=True))
        row[it.column] = self.cell(it, number, file)
        if table == "images" and row[it.column] is None:
            return
        with closing(sqlite_utils.Database(self.world.path)) as base:
            base[table].upsert(row, pk=it.key_columns)

    @rule(table=st.sampled_from(["loose", "paths"]))
    def others_make_another_key(self, table: str) -> None:
        self.make_key(table)

    @rule(table=tables)
    def others_change_the_schema(self, table: str) -> None:
        self.add_column(table)
        self.drop_note(table)

    @rule(table=tables)
    def others_rename(self, table: str) -> None:
        self.rename_away(table)

    @rule(how=st.sampled_from(["vacuum", "reindex", "analyze", "pragma optimize"]))
    def others_tidy_up(self, how: str) -> None:
        self.did(how)
        self.sql(how)

    @rule(mode=st.sampled_from(["wal", "delete", "truncate"]))
    def others_change_the_journal(self, mode: str) -> None:
        self.did("journal mode")
        self.sql(f"pragma journal_mode = {mode}")

    @rule(table=tables)
    def others_attach(self, table: str) -> None:
        """A table copied out of the file and back, as `attach` allows."""
        self.did("attach")
        if not self.world.there(table):
            return
        with self.world.plain() as conn:
            conn.execute("attach ? as other", (str(self.world.folder / "other.db"),))
            conn.execute("drop table if exists other.copied")
            conn.execute(f"create table other.copied as select * from main.{table}")
            conn.execute(f"delete from main.{table}")
            conn.execute(f"insert into main.{table} select * from other.copied")

    # Files

    @rule(file=files, number=numbers)
    def a_file_is_put(self, file: str, number: int) -> None:
        self.did("file")
        self.world.put_file(file, BROKEN if number == 4 else self.world.known.bytes[number])

    @rule(file=files)
    def a_file_goes(self, file: str) -> None:
        self.did("file gone")
        self.world.put_file(file, None)

    @rule(one=files, other=files)
    def files_are_swapped(self, one: str, other: str) -> None:
        self.did("files swapped")
        held = []
        for name in (one, other):
            file = self.world.files / name
            held.append(file.read_bytes() if file.exists() else None)
        self.world.put_file(one, held[1])
        self.world.put_file(other, held[0])

    # What we offer besides

    @rule(table=tables, name=names)
    def we_remove(self, table: str, name: str) -> None:
        self.remove(table, name)

    @rule(table=tables, name=names, act=st.sampled_from(["index", "default", "scan"]))
    def we_do(self, table: str, name: str, act: str) -> None:
        self.did(act)
        calls: dict[str, Callable[[ImageCollection], Any]] = {
            "index": lambda collection: collection.build_index(rebuild=True),
            "default": lambda collection: collection.make_default(),
            "scan": lambda collection: collection.duplicates(0.9),
        }
        with self.world.collection(table, name) as collection:
            try:
                calls[act](collection)
            except ImageSimilarityError as error:
                self.world.refused(error)

    @rule(table=tables, dims=st.integers(1, 3), again=st.booleans())
    def we_reduce(self, table: str, dims: int, again: bool) -> None:
        self.did("reduce")
        world, to = self.world, "small"
        source = "default"
        if (table, to) in world.embedded:
            if not again:
                return
            self.remove(table, to)
        if not world.there(table):
            return
        with world.collection(table, source) as collection:
            try:
                collection.reduce(dims, to=to)
            except ImageSimilarityError as error:
                world.refused(error)
                return
            conn = collection.connect()
            made = db.find_collection(conn, table, to)
            world.transforms[table, to] = stored_transform(conn, made)
        world.metrics[table, to] = world.metrics[table, source]
        world.embedded[table, to] = dict(world.embedded[table, source])
        world.embedded[table, to] = world.items(table, to)

    @rule(table=tables)
    def we_embed_what_is_reduced(self, table: str) -> None:
        if (table, "small") in self.world.embedded:
            self.did("embed reduced")
            self.world.embed(table, "small")

    @precondition(lambda self: "backup" not in self.world.copies)
    @rule()
    def a_copy_is_made(self) -> None:
        self.did("backup")
        self.world.copy("backup")

    @precondition(lambda self: "backup" in self.world.copies)
    @rule(keep=st.booleans())
    def the_copy_is_restored(self, keep: bool) -> None:
        self.did("restore")
        self.world.restore("backup")
        if not keep:
            del self.world.copies["backup"]

    # On the web

    @rule(table=tables, name=names)
    def pages_are_asked(self, table: str, name: str) -> None:
        self.did("pages")
        for which in (name, "small"):
            if (table, which) in self.world.embedded and self.world.there(table):
                self.site.check(TABLES[table], which)

    @rule(table=tables, page=st.sampled_from(["map.json", "duplicates.json", "similar"]))
    def other_pages_are_asked(self, table: str, page: str) -> None:
        self.did("other pages")
        self.site.get(f"/others/{table}/-/{page}")
        self.site.get(f"/others/{table}")

    @rule(table=tables, key=st.data(), number=numbers, file=files)
    def datasette_writes(self, table: str, key: Any, number: int, file: str) -> None:
        self.did("Datasette writes")
        it = TABLES[table]
        one = key.draw(st.sampled_from(it.keys))
        cell = self.cell(it, number, file)
        if not self.world.there(table) or (table == "images" and cell is None):
            return
        if IS_ONE and it.source != "blob" and table != "loose":
            row = dict(zip(it.key_columns, it.parts(one), strict=True))
            body = {"row": {**row, it.column: cell}, "replace": True}
            self.site.post(f"/others/{table}/-/insert", body)
            return
        with suppress(sqlite3.Error):
            self.site.write(
                f"update {table} set {it.column} = ? where {it.where}",
                (cell, *it.parts(one)),
            )

    # What must hold

    @invariant()
    def every_answer_is_true(self) -> None:
        self.world.check()
        if self.world.turn % 5 == 0:
            self.all_fits_together()

    def all_fits_together(self) -> None:
        with closing(db.connect(self.world.path)) as conn:
            for fault in verify_database(conn):
                if fault.what not in (NOT_LIVE, NO_TABLE):
                    raise Wrong(f"verify: {fault.table}: {fault}")


def run(
    steps: int, number: int, known: Known, length: int = 50, shrink: bool = True
) -> Counter[str]:
    """So many steps at least, `length` to a database. Raises what goes wrong, in as few
    steps as it takes if that is to be found out."""
    world = World(known)
    world.begin()
    machine = type("Others", (Others,), {"world": world, "site": Site(world)})
    asked = settings(
        max_examples=math.ceil(steps / length),
        stateful_step_count=length,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, *([Phase.shrink] if shrink else [])),
    )
    try:
        run_state_machine_as_test(seed(number)(machine), settings=asked)
    finally:
        close_all()
    return world.done


def main() -> int:
    parser = options("others", __doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--shrink", action="store_true", help="look for fewer steps")
    asked = parser.parse_args()
    report = Report("others", asked)
    counted: Counter[str] = Counter()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(mock.patch("click.get_app_dir", return_value=folder))
        known = stack.enter_context(pictures_known())
        try:
            counted = run(asked.steps, asked.seed, known, shrink=asked.shrink)
        except Exception as error:  # with what makes it again in its notes
            notes = "\n".join(getattr(error, "__notes__", ())).splitlines()
            told = [line for line in notes if "every_answer_is_true" not in line]
            report.failed("\n".join([traceback.format_exc(), *told]))
    return report.end(**dict(sorted(counted.items())))


if __name__ == "__main__":
    sys.exit(main())
