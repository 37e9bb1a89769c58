"""A site with tables for various people, each full of secrets that can be told apart.

Every table with pictures has a word of its own in whatever it holds (captions, file names,
labels, names of clusters and questions, the log, decisions, failures) and a colour of its
own in its pictures, so that whatever an answer holds of a table gives it away.
"""

from __future__ import annotations

import base64
import colorsys
import io
import random
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from datasette import hookimpl
from datasette.app import Datasette
from PIL import Image, ImageDraw
from serving import IS_ONE, PLUGIN, open_datasette

from datasette_image_similarity import database as db
from datasette_image_similarity import trust
from datasette_image_similarity.collection import EncoderOptions, ImageCollection
from datasette_image_similarity.explore import decisions, history, questions

PICTURES = 6
ANN, CAROL, IDA, SAL, ROOT = (
    {"id": name} for name in ("ann", "carol", "ida", "sal", "root")
)


@dataclass(frozen=True)
class Table:
    """A table with pictures. `viewers` may view it; None is whoever has not signed in."""

    database: str
    name: str
    word: str
    hue: float
    viewers: frozenset[str | None]


EVERYBODY = frozenset({None, "ann", "carol", "ida", "sal", "root"})
TABLES = (
    Table("open", "public", "qzpublic", 0.0, EVERYBODY),
    Table("open", "private", "qzprivate", 0.33, frozenset({"ann", "root"})),
    Table("open", "denied", "qzdenied", 0.66, frozenset()),
    Table("open", "hidden", "qzhidden", 0.16, EVERYBODY),
    Table("closed", "images", "qzclosed", 0.83, frozenset({"ann", "root"})),
    Table("closed", "opened", "qzopened", 0.5, EVERYBODY),
)
CURATORS = ("carol", "root")  # may decide about tables that they may view
INSERTERS = ("ida", "root")  # may insert rows into tables of the database open

CONFIG: dict[str, Any] = {
    "databases": {
        "open": {
            "allow_sql": {"id": "sal"},
            "tables": {
                "private": {"allow": {"id": ["ann", "root"]}},
                "denied": {"allow": False},
                "hidden": {"hidden": True},
            },
        },
        "closed": {
            "allow": {"id": ["ann", "root"]},
            "allow_sql": False,
            "tables": {"opened": {"allow": True}},
        },
    },
}


class Signing:
    """What Datasette 0.65 has not: inserting by permission, and API tokens."""

    __name__ = "signing"

    @hookimpl
    def permission_allowed(self, actor: Any, action: str, resource: Any) -> bool | None:
        if action == "insert-row" and resource and resource[0] == "open":
            return (actor or {}).get("id") in INSERTERS or None
        return None

    @hookimpl
    def permission_resources_sql(self, actor: Any, action: str) -> Any:
        if action != "insert-row" or (actor or {}).get("id") not in INSERTERS:
            return None
        from datasette.permissions import PermissionSQL

        return PermissionSQL(
            sql="select 'open' as parent, null as child, 1 as allow, 'may' as reason"
        )

    @hookimpl
    def actor_from_request(self, request: Any) -> dict[str, str] | None:
        token = request.headers.get("authorization", "")
        name = token.removeprefix("Bearer test-")
        return {"id": name, "token": "test"} if name != token else None


def picture(hue: float, seed: int) -> bytes:
    """A PNG of one hue, with lines that make it unlike the others."""
    chance = random.Random(f"{hue} {seed}")

    def colour(value: float) -> tuple[int, ...]:
        return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, value))

    image = Image.new("RGB", (96, 64), colour(0.75))
    draw = ImageDraw.Draw(image)
    for _ in range(4 + seed % 5):
        ends = [(chance.randrange(96), chance.randrange(64)) for _ in range(2)]
        draw.line(ends, fill=colour(chance.choice((0.45, 1.0))), width=4)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Secrets:
    """What gives a table away."""

    hue: float
    parts: list[bytes] = field(default_factory=list)


@dataclass
class World:
    """The files of the site, and what must not be told."""

    folder: Path
    secrets: dict[str, Secrets]  # by the table's word
    ids: dict[str, dict[str, int]]  # by the table's word: of an item, a group, …

    @property
    def files(self) -> list[Path]:
        return [self.folder / "open.db", self.folder / "closed.db"]

    def site(self, **plugin: Any) -> Datasette:
        """A Datasette over the files."""
        settings = {"curators": {"id": list(CURATORS)}, **plugin}
        config = {**CONFIG, "plugins": {PLUGIN: settings}}
        options = {} if IS_ONE else {"settings": {"default_cache_ttl": 0}}
        return open_datasette(*self.files, config=config, **options)

    def state(self) -> list[tuple]:
        """Something that changes whenever a file of the site does."""
        return [
            (file.name, found.st_size, found.st_mtime_ns)
            for file in sorted(self.folder.iterdir())
            if file.is_file() and not file.name.endswith("-shm")
            for found in [file.stat()]
        ]

    def told(self, response: Any, words: Iterable[str]) -> list[str]:
        """Of these tables the words of those that an answer tells something of."""
        words = set(words)
        found = set()
        for part in _unpacked(response):
            plain = unquote(part.decode("latin-1")).encode("latin-1", "replace")
            for word in words - found:
                secret = self.secrets[word]
                if any(piece in part or piece in plain for piece in secret.parts):
                    found.add(word)
            hue = _hue(part)
            if hue is not None:
                found |= {w for w in words if abs(self.secrets[w].hue - hue) < 0.05}
        return sorted(found)


def _unpacked(response: Any) -> Iterator[bytes]:
    """Headers, body, and what lies in it."""
    yield "\n".join(f"{name}: {value}" for name, value in response.headers.items()).encode()
    body = response.content
    yield body
    if body[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield archive.read(name)
    for part in body.split(b"base64,")[1:]:  # pictures inside a page
        yield base64.b64decode(part.split(b'"')[0])


def _hue(data: bytes) -> float | None:
    """The hue of a picture; None for anything else, or where it has none."""
    if not data.startswith((b"\xff\xd8", b"RIFF", b"\x89PNG")):
        return None
    with Image.open(io.BytesIO(data)) as image:
        pixels = image.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    hue, saturation, _ = colorsys.rgb_to_hsv(*(part / 255 for part in pixels))
    return hue if saturation > 0.2 else None


def build(folder: Path) -> World:
    """Make the site below `folder`, which must be there."""
    world = World(folder, {}, {})
    for table in TABLES:
        world.secrets[table.word] = Secrets(table.hue, [table.word.encode()])
        world.ids[table.word] = _fill(folder, table, world.secrets[table.word])
    with closing(db.connect(folder / "open.db")) as conn, db.transaction(conn):
        conn.execute("create table plain (id integer primary key, title text)")
        conn.execute("insert into plain (title) values ('nothing')")
        conn.execute("create view seen as select * from public")
    return world


def _fill(folder: Path, table: Table, secrets: Secrets) -> dict[str, int]:
    """Make a table and all that can be made of it; the ids of some of that."""
    word, file = table.word, folder / f"{table.database}.db"
    photos = folder / "photos" / table.word
    for number in range(PICTURES):
        place = photos / f"{word}-{'ab'[number % 2]}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{word}-{number}.png").write_bytes(picture(table.hue, number))
    (photos / f"{word}-broken.png").write_bytes(b"no picture at all")
    with ImageCollection(file, table.name) as collection:
        collection.embed(
            photos, encoder=EncoderOptions("hog"), label_from_folder=True, workers=1
        )
        collection.map(method="pca")
        collection.clusters(k=2)
        collection.evaluate("label")
    trust.note_root(file, photos)
    with closing(db.connect(file)) as conn, db.transaction(conn):
        found = db.find_collection(conn, table.name)
        ids = _decorate(conn, found, word)
        _collect(conn, found, secrets)
    return ids


def _decorate(conn: Any, collection: db.Collection, word: str) -> dict[str, int]:
    """Names, questions, decisions and a log with the table's word."""
    of = (collection.id,)
    conn.execute(
        "update _image_similarity_clusters set given = 1, name = ? || '-cluster-' || id "
        "where collection_id = ?",
        (word, *of),
    )
    conn.execute(
        "update _image_similarity_members set album = ? where collection_id = ?",
        (f"{word}-cluster", *of),
    )
    items = [
        row[0]
        for row in conn.execute(
            "select id from _image_similarity_items where collection_id = ? order by id", of
        )
    ]
    conn.execute(
        "insert into _image_similarity_scans (collection_id, thresholds, scanned) "
        "values (?, '{\"alike\": 0.97}', ?)",
        (*of, len(items)),
    )
    groups = []
    for pair in (items[:2], items[2:4]):
        group = conn.execute(
            "insert into _image_similarity_groups (collection_id, tier, size, medoid_id, "
            "keeper_id, reason) values (?, 'same', 2, ?, ?, ?) returning id",
            (*of, pair[0], pair[0], f"{word} is larger"),
        ).fetchone()[0]
        conn.executemany(
            "insert into _image_similarity_grouped values (?, ?, ?, 0.99)",
            [(group, item, *of) for item in pair],
        )
        groups.append(group)
    first = decisions.read_group(conn, collection, groups[0])
    decisions.decide(conn, collection, first, "accept", actor=f"{word}-decider")
    asked = f"_like=1&label={word}-a"
    question = questions.save_question(
        conn, collection, f"{word}-question", asked, f"{word}-asker"
    )
    search = history.Search(
        id=history.new_id(),
        searched_at=history.now(),
        actor=f"{word}-searcher",
        page="similar",
        question="_like=1",
        filter=f"label={word}-a",
        offset=0,
        results=1,
        milliseconds=1.0,
    )
    history.put_search(conn, collection, search)
    history.put_click(conn, collection, search.id, 2, 1)

    def one(sql: str) -> int:
        return conn.execute(sql, of).fetchone()[0]

    return {
        "item": items[0],
        "group": groups[1],
        "question": question,
        "search": search.id,
        "cluster": one(
            "select min(id) from _image_similarity_clusters where collection_id = ?"
        ),
        "run": one(
            "select min(id) from _image_similarity_evaluations where collection_id = ?"
        ),
    }


def _collect(conn: Any, collection: db.Collection, secrets: Secrets) -> None:
    """Hashes, thumbnails and vectors: in full, and as JSON would have their beginning."""
    rows = conn.execute(
        "select i.sha256, t.webp, v.embedding from _image_similarity_items i "
        "join _image_similarity_thumbnails t on t.id = i.id "
        f"join {collection.vectors} v on v.id = i.id where i.collection_id = ?",
        (collection.id,),
    )
    for sha256, webp, vector in rows:
        secrets.parts.append(sha256.encode())
        for data in (webp, vector):
            # The first bytes of all WebP files are alike.
            secrets.parts += [data[40:100], base64.b64encode(data[:120])[60:150]]
