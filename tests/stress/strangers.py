"""Somebody else's database, opened by Datasette and by every command: all in it is data.

A database with everything that we make in one is changed in one place at a time, for each
column of each table of ours, of vec0's and of the pictures' own tables: paths out of the
root, to devices and named pipes, addresses, HTML, escape sequences, formulas, pickles,
endless JSON, numbers that no program has room for. Then all pages are asked and all
run. An audit hook, which Python does not let anybody take off again, notes what is opened,
asked and started meanwhile: this program is for a process of its own.

The long form: tests/stress/run strangers, 400 changes drawn by chance, and for each some
of the pages and commands; with --every all that there are, which takes a day.
"""

from __future__ import annotations

import asyncio
import html
import json
import os
import pickle
import random
import re
import sys
import sysconfig
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from conftest import make_photos, picture
from core import HOG, command
from datasette.utils.sqlite import sqlite3
from serving import ROOT, ask, close_all, open_datasette

import datasette_image_similarity
from datasette_image_similarity import ImageCollection, trust
from stress.report import Report, options

SECONDS = 20  # that a page or a command may take, on a busy machine
MARK = "plantedmarkup"  # an element of this name is never part of a page
HTML = f"\"'><{MARK} onx=1></{MARK}><script>{MARK}()</script>{{{{7*7}}}}${{7*7}}"
ESCAPES = "\x1b]0;planted\x07\x1b[2Jplanted\r\nSet-Cookie: planted=1\u2028\u202e\x00x"
FORMULA = "=cmd|' /C calc'!A0"


class Pickled:
    """What unpickling would run."""

    def __reduce__(self) -> tuple:
        return os.system, ("echo planted",)


def payloads(folder: Path, port: int) -> dict[str, Any]:
    """What is planted, by name. `folder` holds what must not be read."""
    return {
        "html": HTML,
        "javascript": "javascript:alert(1)//.jpg",
        "escapes": ESCAPES,
        "formula": FORMULA,
        "outside": str(folder / "outside" / "secret.png"),
        "traversal": "../outside/secret.png",
        "link": "link.png",
        "link to a folder": "linked/secret.png",
        "pipe": "pipe.png",
        "device": "/dev/zero",
        "process": "/proc/self/environ",
        "root": "/",
        "home": "~/.ssh/id_rsa",
        "address": f"http://127.0.0.1:{port}/planted.png",
        "metadata": "https://169.254.169.254/latest/meta-data/x.png",
        "bucket": "s3://planted/planted.png",
        "store": f"milvus://127.0.0.1:{port}/planted",
        "store's file": f"milvus-lite:{folder}/outside/planted.db",
        "file address": f"file://{folder}/outside/secret.png",
        "share": "\\\\127.0.0.1\\share\\planted.png",
        "pickle": pickle.dumps(Pickled()),
        "deep JSON": "[" * 100_000,
        "deep object": '{"a":' * 50_000 + "1" + "}" * 50_000,
        "wide JSON": json.dumps([0] * 300_000),
        "JSON null": "null",
        "JSON object": "{}",
        "JSON numbers": '{"a": 1e999, "b": NaN, "c": -1, "d": [[]], "steps": [null]}',
        "huge": 2**62,
        "negative": -(2**62),
        "infinite": 9e999,
        "zero": 0,
        "empty": "",
        "empty bytes": b"",
        "not UTF-8": b"\xff\xfe\x00planted",
        "long": "x" * 300_000,
        "long bytes": bytes(300_000),
        "picture": picture("red", 99),
        "page as a picture": f"<html><{MARK}>".encode(),
        "drawing": f"<svg xmlns='http://www.w3.org/2000/svg'><{MARK}/></svg>".encode(),
        "null": None,
    }


# What must not happen


class Watch:
    """Notes what this process opens, asks for and starts, while it is `on`."""

    def __init__(self, allowed: list[Path]) -> None:
        self.on = False
        self.seen: list[str] = []
        self.unnamed = os.path.realpath(tempfile.gettempdir())  # files without a name
        self.allowed = tuple(f"{os.path.realpath(path)}{os.sep}" for path in allowed)
        self.counted: Counter[str] = Counter()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event in ("open", "os.listdir", "os.scandir", "os.chmod", "os.remove"):
            self._opened(event, arguments[0])
        elif event == "socket.bind" and arguments[1] == ("::1", 0):
            pass  # so urllib3 asks, when it is imported, whether there is IPv6
        elif event in ("socket.connect", "socket.bind", "socket.sendto"):
            self.seen.append(f"{event} {arguments[1]!r}")
        elif event == "socket.getaddrinfo" or event.startswith("urllib"):
            self.seen.append(f"{event} {arguments[:2]!r}")
        elif event == "pickle.find_class" and not str(arguments[0]).startswith("numpy"):
            self.seen.append(f"{event} {arguments!r}")
        elif event == "subprocess.Popen":
            ours = "image_worker" in str(arguments[1]) and arguments[0] == sys.executable
            if not ours:
                self.seen.append(f"{event} {arguments[:2]!r}")
            self.counted["decoders started"] += 1
        elif event in (
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "os.fork",
            "ctypes.dlopen",
        ):
            if event == "ctypes.dlopen" and arguments[0] is None:
                return
            self.seen.append(f"{event} {arguments!r}")

    def _opened(self, event: str, path: Any) -> None:
        self.counted["files opened"] += 1
        if isinstance(path, int) or path is None:  # a pipe of a child's
            return
        real = os.path.realpath(os.fsdecode(path))
        if real in (os.devnull, self.unnamed) or f"{real}{os.sep}".startswith(self.allowed):
            return
        self.seen.append(f"{event} {real}")

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        self.seen = []
        self.on = True
        try:
            yield self.seen
        finally:
            self.on = False


# The database


class Stranger:
    """A database with everything in it, the photos it is of, and traps beside these."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = make_photos(folder / "photos")
        outside = folder / "outside"
        outside.mkdir()
        (outside / "secret.png").write_bytes(picture("blue", 77))
        (self.photos / "link.png").symlink_to(outside / "secret.png")
        (self.photos / "linked").symlink_to(outside)
        os.mkfifo(self.photos / "pipe.png")
        self.whole = folder / "whole.db"
        self.make()

    def make(self) -> None:
        with ImageCollection(self.whole) as images:
            sources = [self.photos / colour for colour in ("red", "green", "blue")]
            images.embed(sources, encoder=HOG, label_from_folder=True)
            images.build_index()
            images.map(method="pca")
            images.duplicates(0.5)
            images.clusters(k=3)
            images.evaluate("label")
            images.reduce(4, to="small")
        with ImageCollection(self.whole, "paths") as paths:
            rows = [
                {"id": n, "path": f"red/red-{n}.png", "name": f"n{n}"} for n in range(8)
            ]
            paths.embed(rows, path_column="path", root=self.photos, encoder=HOG)
        with closing(sqlite3.connect(self.whole)) as conn, conn:
            conn.execute("create table blobs (id text primary key, data blob, name text)")
            for n in range(4):
                values = (f"k{n}", picture("green", n), f"n{n}")
                conn.execute("insert into blobs values (?, ?, ?)", values)
        with ImageCollection(self.whole, "blobs") as blobs:
            blobs.embed(blob_column="data", encoder=HOG)
        with closing(sqlite3.connect(self.whole)) as conn, conn:
            conn.executescript(MADE_BY_PEOPLE)

    def columns(self) -> list[tuple[str, str]]:
        """Every column of every table, but for what SQLite itself would not open."""
        with closing(sqlite3.connect(self.whole)) as conn:
            return conn.execute(
                "select m.name, c.name from sqlite_master m, pragma_table_info(m.name) c "
                "where m.type = 'table' and m.name not like 'sqlite_%' "
                "and m.sql not like 'create virtual%' order by 1, c.cid"
            ).fetchall()

    def planted(self, table: str, column: str, value: Any) -> Path | None:
        """A copy with this value in a column; None where SQLite refuses that."""
        path = self.folder / "theirs.db"
        for file in self.folder.glob("theirs.db*"):
            file.unlink()
        path.write_bytes(self.whole.read_bytes())
        for root in (self.photos, *(self.photos / c for c in ("red", "green", "blue"))):
            trust.note_root(path, root)
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            conn.execute("pragma ignore_check_constraints = on")
            update = f'update "{table}" set "{column}" = ?'
            for statement in (
                update,
                f'{update} where rowid = (select min(rowid) from "{table}")',
            ):
                with suppress(sqlite3.Error):
                    conn.execute(statement, (value,))
                    return path
        return None


MADE_BY_PEOPLE = """
insert into _image_similarity_decisions
    (collection_id, step, pk, sha256, decision, tier, other, actor)
    select collection_id, 1, pk, sha256, 'mark', 'same', '[1, 2]', 'somebody'
    from _image_similarity_items where id in (2, 3);
insert into _image_similarity_questions (collection_id, name, question, actor)
    values (1, 'mine', '_like=1', 'somebody');
insert into _image_similarity_searches
    (collection_id, actor, page, question, filter, offset, results, milliseconds)
    values (1, 'somebody', 'similar', '_like=1', null, 0, 10, 1.5);
insert into _image_similarity_clicks (collection_id, search_id, pk, rank)
    values (1, 1, 2, 1);
"""

PAGES = (
    *("/", "/theirs", "/-/image-similarity", "/-/image-similarity.json"),
    *("/theirs/{table}", "/theirs/{table}/{pk}", "/theirs/{table}.json"),
    *("{at}/similar?_like={pk}", "{at}/similar.json?_like={pk}&_histogram=1"),
    *("{at}/similar.csv?_like={pk}", "{at}/similar.svg?_like={pk}"),
    *("{at}/similar.html?_like={pk}", "{at}/similar.zip?_like={pk}"),
    "{at}/similar?_like={pk}&_distinct=1&_one_per=cluster&_histogram=1",
    *("{at}/thumbnail/{pk}", "{at}/image/{pk}"),
)
PAGES_OF_ALL = (
    *("{at}/map", "{at}/map.json", "{at}/map/points.bin", "{at}/map/columns.json"),
    *("{at}/map/column.json?column=label", "{at}/map/pictures.json?ids=1"),
    *("{at}/map/atlas/0", "{at}/export.html", "{at}/export.zip", "{at}/questions"),
    *("{at}/searches", "{at}/searches.csv", "{at}/duplicates", "{at}/duplicates.json"),
    *("{at}/duplicates.csv", "{at}/clusters", "{at}/clusters.json", "{at}/clusters.csv"),
    *("{at}/evaluations", "{at}/evaluations/1", "{at}/evaluations/1.csv"),
    *("{at}/compare?_like={pk}&_with=small", "{at}/similar?_like=1&_collection=small"),
    "/theirs/images?_image_cluster=1",
)


def pages() -> list[str]:
    """Every address that is asked."""
    found = []
    for table, pk in (("images", "1"), ("paths", "1"), ("blobs", "k1")):
        shown = PAGES + (PAGES_OF_ALL if table == "images" else ())
        at = f"/theirs/{table}/-"
        found += [page.format(at=at, table=table, pk=pk) for page in shown]
    return list(dict.fromkeys(found))


def commands(path: Path, out: Path) -> list[tuple[object, ...]]:
    """Every command that is run."""
    images = (path, "images")
    return [
        *(("status", path), ("verify", path), ("similar", *images, "1")),
        *(("similar", path, "paths", "1", "--json"), ("similar", path, "blobs", "k1")),
        ("search", *images, path.parent / "photos" / "red" / "red-1.png"),
        *(("evaluate", *images, "--label", "label"), ("clusters", *images, "--k", "2")),
        *(("duplicates", *images), ("map", *images, "--method", "pca")),
        ("export", *images, "--to", out / "sheet.html"),
        ("export", *images, "--to", out / "pictures.zip"),
        ("duplicates", *images, "--export", out / "marked.csv"),
        ("duplicates", *images, "--export", out / "marked.sh", "--to", out / "moved"),
        ("similar", path, "images", "1", "--name", "small"),
        *(("index", *images), ("reduce", *images, "--dims", "3", "--to", "less")),
        *(("embed", path), ("embed", path, "--table", "paths")),
        *(("embed", path, "--table", "blobs"), ("embed", path, "--all")),
        *(("verify", path, "--repair"), ("remove", "--yes", path)),
    ]


# Judging what comes out


LIVE_HTML = re.compile(rf"<{MARK}|<script>{MARK}|(href|src|action)=.?javascript:", re.I)


def judge_response(path: str, response: Any) -> list[str]:
    """What is wrong with an answer."""
    wrong = []
    kind = response.headers.get("content-type", "")
    text = html.unescape(response.text)
    said = response.status_code == 503 or "The database cannot be used: " in text
    if response.status_code >= 500 and not said:
        wrong.append(f"{response.status_code}: {text.split('</section>')[0][-300:]}")
    if "planted" in str({**response.headers}.keys()).lower():
        wrong.append("a header of theirs")
    if "set-cookie" in response.headers and "planted" in response.headers["set-cookie"]:
        wrong.append("a cookie of theirs")
    is_picture = "/thumbnail/" in path or "/image/" in path or "/atlas/" in path
    if is_picture and response.status_code == 200:
        if kind not in ("image/webp", "image/jpeg"):
            wrong.append(f"a picture as {kind}")
        if response.headers.get("x-content-type-options") != "nosniff":
            wrong.append("a picture without nosniff")
    if ("html" in kind or "svg" in kind) and LIVE_HTML.search(response.text):
        found = LIVE_HTML.search(response.text)
        wrong.append(
            f"live HTML: {response.text[found.start() - 100 : found.end() + 50]!r}"
        )
    return wrong


def judge_output(result: Any) -> list[str]:
    """What is wrong with what a command printed."""
    wrong = []
    if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", result.output):
        wrong.append(f"control characters: {result.output[:200]!r}")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        wrong.append(repr(result.exception))
    return wrong


# One change


class Attack:
    """Plants something, asks and runs everything, and says what went wrong."""

    def __init__(self, folder: Path, port: int, few: int | None = None) -> None:
        # Commands for a change, and four times as many pages, drawn by chance; else all.
        self.few = few
        self.stranger = Stranger(folder)
        self.values = payloads(folder, port)
        self.loop = asyncio.new_event_loop()
        self.counted: Counter[str] = Counter()
        self.slowest = (0.0, "")
        out = folder / "out"
        out.mkdir()
        self.out = out
        package = Path(datasette_image_similarity.__file__).parents[1]
        self.watch = Watch(
            [
                *(self.stranger.photos, out, folder / "theirs.db", package),
                *(folder / f"theirs.db{end}" for end in ("-wal", "-shm", "-journal")),
                *(Path(path) for path in set(sysconfig.get_paths().values())),
                *(Path(sys.prefix), Path(sys.base_prefix), folder / "configuration"),
                *(Path(path) for path in sys.path if path.endswith("site-packages")),
                *(
                    Path("/usr/share/zoneinfo"),
                    Path("/etc/mime.types"),
                    Path("/dev/urandom"),
                ),
                *(Path(path) for path in ("/sys/devices/system/cpu", "/proc/cpuinfo")),
            ]
        )

    def watch_sees(self) -> bool:
        """Whether a file outside that is opened would be noted."""
        with self.watch.watching() as seen:
            (self.stranger.folder / "outside" / "secret.png").read_bytes()
        return len(seen) == 1

    def run(self, table: str, column: str, name: str, chance: random.Random) -> list[str]:
        """One payload in one column."""
        path = self.stranger.planted(table, column, self.values[name])
        if path is None:
            self.counted["refused by SQLite"] += 1
            return []
        self.counted["planted"] += 1
        return self.ask_all(path, chance) + self.run_all(path, chance)

    def ask_all(self, path: Path, chance: random.Random) -> list[str]:
        wrong = []
        site = open_datasette(path)
        asked = pages()
        if self.few:
            asked = chance.sample(asked, 4 * self.few)
        for page in asked:
            wrong += self._timed(page, lambda page=page: self._ask(site, page))
        self._timed("close", lambda: close_all() or [])
        return wrong

    def _ask(self, site: Any, page: str) -> list[str]:
        response = self.loop.run_until_complete(ask(site, page, ROOT))
        self.counted[f"pages {response.status_code}"] += 1
        return judge_response(page, response)

    def run_all(self, path: Path, chance: random.Random) -> list[str]:
        wrong = []
        words_of = commands(path, self.out)
        if self.few:
            words_of = [*chance.sample(words_of[:-1], self.few), words_of[-1]]
        for words in words_of:
            wrong += self._timed(
                " ".join(map(str, words)).replace(str(path.parent), ""),
                lambda words=words: self._command(words),
            )
        return wrong

    def _command(self, words: tuple[object, ...]) -> list[str]:
        result = command(*words)
        self.counted[f"commands {result.exit_code}"] += 1
        return judge_output(result)

    def _timed(self, what: str, act: Callable[[], list[str]]) -> list[str]:
        """What is wrong with what comes out, with what was done for it, and how long it
        took."""
        began = time.monotonic()
        with self.watch.watching() as seen:
            try:
                wrong = act()
            except Exception:
                wrong = [traceback.format_exc(limit=-3)]
        took = time.monotonic() - began
        self.slowest = max(self.slowest, (round(took, 1), what))
        if took > SECONDS:
            wrong.append(f"{took:.0f} seconds")
        return [f"{what}: {one}" for one in [*wrong, *sorted(set(seen))]]


def main() -> int:
    parser = options("strangers", __doc__.splitlines()[0])
    parser.add_argument("--some", type=int, default=400, help="changes drawn by chance")
    parser.add_argument("--every", action="store_true", help="every change there is")
    parser.add_argument("--few", type=int, default=6, help="commands a change; pages: 4 ×")
    parser.add_argument("--only", help="TABLE.COLUMN/PAYLOAD, or the beginning of it")
    asked = parser.parse_args()
    report = Report("strangers", asked)
    with tempfile.TemporaryDirectory(prefix="strangers-") as folder:
        configuration = Path(folder).resolve() / "configuration"
        with mock.patch("click.get_app_dir", return_value=str(configuration)):
            attack = Attack(
                Path(folder).resolve(), port=9, few=None if asked.every else asked.few
            )
            figures = attack_all(attack, asked, report)
    return report.end(**figures)


def attack_all(attack: Attack, asked: Any, report: Report) -> dict[str, Any]:
    chance = random.Random(asked.seed)
    changes = [
        (table, column, name)
        for table, column in attack.stranger.columns()
        for name in attack.values
        if not asked.only or f"{table}.{column}/{name}".startswith(asked.only)
    ]
    count = len(changes)
    if not attack.watch_sees():
        report.failed("the audit hook does not see what is opened")
    if not (asked.every or asked.only):
        changes = chance.sample(changes, min(asked.some, count))
    for table, column, name in changes:
        print(f"{table}.{column}/{name}", file=sys.stderr, flush=True)
        for wrong in attack.run(table, column, name, chance):
            report.failed(f"{table}.{column}/{name}: {wrong}")
    counted = dict(sorted((attack.counted + attack.watch.counted).items()))
    return {**counted, "possible": count, "slowest": attack.slowest}


if __name__ == "__main__":
    sys.exit(main())
