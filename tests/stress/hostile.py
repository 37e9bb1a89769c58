"""Requests as nobody in their right mind would send them, at every page of ours.

    tests/stress/run hostile --requests 20000

Addresses are made from the list of routes, parameters and fields from those that the code
reads, so that a new page is attacked without anybody adding it here. Most requests go
straight to the application, as bytes that no HTTP client would send; what only a real
server does is in `sockets.py`.

An answer is wrong if its status is 500 or above (503 apart: a store or an encoder may be
away), if it shows a traceback or where files lie on the server, or if it refuses without
words. What Datasette answers to the same request without our parameters is Datasette's.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import hypothesis
from conftest import make_photos, picture
from datasette import hookimpl
from datasette.plugins import pm
from hypothesis import strategies as st
from serving import IS_ONE, ROOT, close_all, cookies, open_datasette

import datasette_image_similarity
from datasette_image_similarity import plugin
from stress.report import Report, options

PACKAGE = Path(datasette_image_similarity.__file__).parent
DATABASE, TABLE = "gallery", "images"
SECONDS = 10  # no request takes longer, on however slow a machine
METHODS = ("GET", "GET", "GET", "POST", "POST", "HEAD", "PUT", "DELETE", "PATCH",
           "OPTIONS", "TRACE", "CONNECT", "get", "BREW", "Ä")  # fmt: skip
REFUSED = (400, 403, 404, 405, 409, 413, 415, 429)


# What there is to attack


@cache
def route_parts() -> list[Any]:
    """The patterns of our routes, parsed."""
    parser = re._parser if hasattr(re, "_parser") else __import__("sre_parse")
    return [parser.parse(pattern) for pattern, _ in plugin.register_routes()]


@cache
def names_read() -> tuple[list[str], list[str]]:
    """Parameters (they begin with "_") and fields of forms and JSON bodies, as the code of
    the pages has them between quotation marks."""
    parameters, fields = set(), set()
    for file in (PACKAGE / "web").glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                name = node.value
                if re.fullmatch("_[a-z][a-z_]*", name):
                    parameters.add(name)
            read = None
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr == "get" and node.args:
                    read = node.args[0]
            elif isinstance(node, ast.Subscript):
                read = node.slice
            if isinstance(read, ast.Constant) and isinstance(read.value, str):
                fields.add(read.value)
    return sorted(parameters), sorted(f for f in fields if f.isidentifier())


# Hostile values


TEXTS = [
    *("", "0", "1", "2", "3", "-1", "-0", "+1", " 1", "1.0", "1e308", "1e999", "NaN"),
    *("inf", "-inf", "0x10", "1_000", "٣", "１", "²", "10" * 15, "9" * 5000, "max", "on"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775809", "2147483648"),
    *("none", "null", "true", "[]", "{}", '["1"]', "[" * 100_000, '{"a":' * 5000),
    *("red", "name", "id", "rowid", "category", "cluster", "duplicates", "mark", "keep"),
    *("folder", "path", "sha256", "images", "default", "alike", "open", "all", "one"),
    *("1,2", "1,2,3", "0,0,1,1", ".1,.1,.9,.9", "0,0,0,0", "0,0,nan,1", "1:2", "1:-2"),
    *("1:1e9", ":", "1:", "-1,-1,1,-1,1,1", "grid:0,0,9,0,9,9", ",".join(["0"] * 5000)),
    *("'", '"', "''", "--", ";", "%", "%%", "_", "*", '"a" OR', "NEAR(", "a'b\"c`d"),
    *("\0", "1\0", "a\0b", "\r\nX-Evil: 1", "\n", "\x1b[31m", "\u202e", "\ufeff", "\ud800"),
    *("<script>alert(1)</script>", "{{7*7}}", "${7*7}", "../../etc/passwd", "/etc/passwd"),
    *("~2F", "~00", "~ZZ", "~", "~~", "~2", "a~2Fb", "%2e%2e%2f", "é", "💥" * 50),
    *("a" * 20_000, "nan"),
    'select 1', 'json(:x)', "id in (select id from images)", "1=1) or (1=1",
    '{"table":"images","column":"id","value":"1"}', '{"table":1}',
]  # fmt: skip

# How a value is written in an address: rightly, and in ways that are no encoding at all.
RAW = [b"%ff", b"%c0%af", b"%00", b"%", b"%zz", b"%ed%a0%80", b"%2f", b"%2F%2f", b"~2F",
       b"~ff", b"~C0~AF", b"\xff\xfe", b"\xc3", b"+", b"%25", b"%u0041", b";", b"&", b"=",
       b"#", b"?", b"//", b"..", b"%2e%2e", b" "]  # fmt: skip

HEADERS = {
    b"accept": [b"application/json", b"text/html", b"*/*;q=nan", b"\xff", b"," * 5000, b""],
    b"range": [b"bytes=0-0", b"bytes=-1", b"bytes=9-1", b"bytes=" + b"0-0," * 2000],
    b"if-none-match": [b'"', b"*", b'"x"' * 3000, b"\xff\xfe", b"W/"],
    b"if-modified-since": [b"never", b"Thu, 99 Foo 99999 99:99:99 GMT", b"\xff", b"0"],
    b"cookie": [b"ds_actor=x", b"ds_actor=" + b"a" * 9000, b"\xff", b"=;=;=", b"ds_actor"],
    b"authorization": [b"Bearer x", b"Bearer dstok_x", b"Basic \xff", b"Bearer"],
    b"host": [b"", b"evil.example", b"[::1", b"a" * 5000, b"\xff", b"a/b?c#d"],
    b"origin": [b"null", b"http://[", b"http://evil.example", b"\xff", b"://"],
    b"sec-fetch-site": [b"cross-site", b"none", b"same-origin", b"\xff"],
    b"content-type": [b"application/json", b"application/x-www-form-urlencoded",
                      b"application/x-www-form-urlencoded; charset=utf-16", b"text/plain",
                      b"multipart/form-data", b"multipart/form-data; boundary=",
                      b"multipart/form-data; boundary=" + b"b" * 5000, b"\xff", b";", b"",
                      b"multipart/form-data; boundary=\xff", b"application/json;charset=x",
                      b'multipart/form-data; boundary="a\\"b"'],
    b"content-length": [b"0", b"-1", b"99999999999999999999", b"x", b""],
    b"transfer-encoding": [b"chunked", b"gzip, chunked", b"x"],
    b"content-encoding": [b"gzip", b"br", b"x"],
    b"x-forwarded-for": [b"127.0.0.1", b"\xff"],
    b"x-csrftoken": [b"x", b"\xff"],
    b"x-http-method-override": [b"DELETE"],
}  # fmt: skip

values = st.one_of(st.sampled_from(TEXTS), st.text(max_size=30), st.integers().map(str))


def _quoted(text: str) -> bytes:
    """Percent-encoded, half a surrogate pair as the bytes that it never should be."""
    kept = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~,"
    data = text.encode("utf-8", "surrogatepass")
    return b"".join(bytes([c]) if c in kept else b"%%%02X" % c for c in data)


written = st.one_of(values.map(_quoted), values.map(_quoted), st.sampled_from(RAW))


# Requests


@dataclass(frozen=True)
class Request:
    """As the application gets it."""

    method: str
    path: bytes
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: tuple[bytes, ...] = ()
    ends: bool = True  # else the client goes away in the middle

    def __str__(self) -> str:
        def short(data: bytes) -> str:
            return repr(data if len(data) < 300 else data[:200] + b" ...")

        return (
            f"{self.method} {short(self.path)}?{short(self.query)} "
            f"{[(n, v[:80]) for n, v in self.headers]} {[short(b) for b in self.body[:3]]}"
        )


@st.composite
def paths(draw: Any) -> bytes:
    """An address of one of our routes, or hardly."""
    tree = draw(st.sampled_from(route_parts()))
    path = b"".join(_written_pattern(draw, tree, _group_names(tree)))
    mangled = draw(st.integers(0, 19))
    if mangled == 0:
        at = draw(st.integers(0, len(path)))
        path = path[:at] + draw(st.sampled_from(RAW)) + path[at:]
    elif mangled == 1:
        path = path.swapcase()
    elif mangled == 2:
        path += b"/"
    return path.split(b"?")[0]


def _group_names(tree: Any) -> dict[int, str]:
    return {number: name for name, number in tree.state.groupdict.items()}


def _written_pattern(draw: Any, parts: Iterable, names: dict[int, str]) -> Iterator[bytes]:
    """Bytes that a parsed pattern matches, more or less."""
    for kind, value in parts:
        name = str(kind)
        if name == "LITERAL":
            yield chr(value).encode()
        elif name == "SUBPATTERN":
            group = names.get(value[0] or 0)
            known = {
                "database": DATABASE,
                "table": TABLE,
                "pk": str(draw(st.integers(1, 24))),
            }
            if group in known:
                right = draw(st.integers(0, 9)) > 0
                yield known[group].encode() if right else draw(written)
            else:
                yield from _written_pattern(draw, value[3], names)
        elif name == "BRANCH":
            yield from _written_pattern(draw, draw(st.sampled_from(value[1])), names)
        elif name in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inner = value
            for _ in range(draw(st.integers(least, min(int(most), least + 2)))):
                yield from _written_pattern(draw, inner, names)
        elif name == "IN":
            yield draw(st.sampled_from([b"0", b"1", b"9", b"7"]))


@st.composite
def queries(draw: Any) -> bytes:
    """Parameters, most of them ours; some many times."""
    parameters, _ = names_read()
    columns = ["name__contains", "name__like", "id__gt", "folder", "id__in", "rowid", "x",
               "_search_name", "name__notblank", "id__nosuch", "name__", "__", "_extra",
               "_like[]", "_LIKE", "_size.x"]  # fmt: skip
    names = st.sampled_from([*parameters, *parameters, *columns])
    pairs = [(draw(names).encode(), draw(written)) for _ in range(draw(st.integers(0, 5)))]
    if draw(st.booleans()):
        pairs.insert(0, (b"_like", b"%d" % draw(st.integers(1, 24))))
    many = draw(st.integers(0, 99))
    if many == 0:
        pairs = [(draw(names).encode(), b"%d" % number) for number in range(10_000)]
    elif many == 1:
        pairs.append((b"x", b"a" * 1_000_000))
    elif many == 2:
        pairs = pairs * 200
    glue = draw(st.sampled_from([b"&"] * 9 + [b";"]))
    return glue.join(n + draw(st.sampled_from([b"="] * 9 + [b""])) + v for n, v in pairs)


# Bodies


BOUNDARY = b"frontier"


def part(headers: bytes, body: bytes, boundary: bytes = BOUNDARY) -> bytes:
    return b"--" + boundary + b"\r\n" + headers + b"\r\n\r\n" + body + b"\r\n"


def a_file(name: bytes, data: bytes, file: bytes = b"a.png") -> bytes:
    head = b'Content-Disposition: form-data; name="' + name + b'"; filename="' + file + b'"'
    return part(head + b"\r\nContent-Type: image/png", data)


def a_field(name: bytes, data: bytes) -> bytes:
    return part(b'Content-Disposition: form-data; name="' + name + b'"', data)


END = b"--" + BOUNDARY + b"--\r\n"


@cache
def broken_forms() -> list[bytes]:
    """Multipart bodies that are wrong, or too much."""
    png = picture()
    nested = part(b"Content-Type: multipart/mixed; boundary=in", b"--in\r\n\r\nx\r\n--in--")
    return [
        b"",
        END,
        png,
        a_file(b"image", png),  # without an end
        a_file(b"image", png) + END + b"more after the end",
        a_file(b"image", b"") + END,
        a_file(b"image", png[: len(png) // 2]) + END,
        a_file(b"image", b"not a picture") + END,
        a_file(b"image", png, b"x" * 1_000_000) + END,
        a_file(b"image", png, b"\xff\x00\r") + END,
        a_file(b"\xff", png) + END,
        a_file(b"image", png) * 100 + END,
        a_file(b"image", b"") * 10_000 + END,
        a_field(b"x", b"") * 10_000 + END,
        a_field(b"x" * 1_000_000, b"y") + END,
        a_field(b"embedding", b"AAAA" * 100) + END,
        a_field(b"embedding", b"A" * 2_000_000) + END,
        part(b"", png) + END,
        part(b"Content-Disposition: form-data", png) + END,
        part(b"Content-Disposition: attachment; name=image", png) + END,
        part(b"x" * 100_000, png) + END,
        part(b"X: y\r\n" * 5_000 + b"Content-Disposition: form-data; name=a", b"z") + END,
        nested + END,
        b"--" + BOUNDARY * 3 + b"\r\n\r\n",
        b"--" + BOUNDARY + b"\n\n" + png,
        b"\r\n" * 100_000,
        part(b'Content-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: '
             b"base64", b"!!!!") + END,
        part(b"Content-Disposition: form-data; name*=UTF-8''%ff; filename*=x", b"") + END,
    ]  # fmt: skip


JSONS = [b"", b"{", b"[]", b"null", b"1e999", b"[" * 200_000, b'{"a":' * 50_000,
         b"\xff\xfe",
         b'{"name": "\\ud800", "cluster": 1}', b'{"cluster": 1e400, "name": "x"}',
         b'{"cluster": ' + b"9" * 5000 + b"}", b'{"name": NaN}', b'{"a":1,"a":2}',
         b'{"group": true, "action": "keep"}', b'{"tier": ["alike"]}', b"\0" * 100,
         b'{"group": 1, "action": "split", "pk": {"$gt": 0}}', b'"' + b"a" * 999_000 + b'"',
         b'{"cluster": 1, "name": "' + b"a" * 900_000 + b'"}']  # fmt: skip


@st.composite
def bodies(draw: Any) -> tuple[bytes, tuple[bytes, ...]]:
    """The content type, and the chunks of a body."""
    _, fields = names_read()
    kind = draw(st.sampled_from(["form", "multipart", "json", "broken", "fields"]))
    named = st.sampled_from(fields)
    some = [(draw(named), draw(values)) for _ in range(draw(st.integers(0, 6)))]
    if kind == "form":
        body = b"&".join(_quoted(name) + b"=" + draw(written) for name, _ in some)
        kind = b"application/x-www-form-urlencoded"
    elif kind == "broken":
        body = draw(st.sampled_from(JSONS))
        kind = b"application/json"
    elif kind == "json":
        body = json.dumps(dict(some)).encode()
        kind = b"application/json"
    else:
        body = draw(st.sampled_from(broken_forms()))
        if kind == "fields":
            data = [(n.encode(), v.encode("utf-8", "surrogatepass")) for n, v in some]
            body = b"".join(a_field(n, v) for n, v in data) + END
        kind = b"multipart/form-data; boundary=" + BOUNDARY
    size = draw(st.sampled_from([len(body) or 1, 65_536, 1_000]))
    chunks = tuple(body[at : at + size] for at in range(0, len(body), size))
    return kind, chunks


@st.composite
def requests(draw: Any) -> Request:
    method = draw(st.sampled_from(METHODS))
    headers: dict[bytes, bytes] = {b"host": b"localhost"}
    body: tuple[bytes, ...] = ()
    if method not in ("GET", "HEAD") or draw(st.integers(0, 9)) == 0:
        headers[b"content-type"], body = draw(bodies())
        headers[b"content-length"] = b"%d" % sum(map(len, body))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        name = draw(st.sampled_from(sorted(HEADERS)))
        headers[name] = draw(st.sampled_from(HEADERS[name]))
    if draw(st.booleans()):
        headers.setdefault(b"accept", b"application/json")
    ends = draw(st.integers(0, 49)) > 0
    return Request(
        method, draw(paths()), draw(queries()), tuple(headers.items()), body, ends
    )


# Datasette's own pages with our filters, and our SQL functions


@st.composite
def filtered(draw: Any) -> Request:
    """A page of Datasette's with filters of ours."""
    ours = ("_image_region", "_image_group", "_image_decision", "_image_cluster",
            "_collection")  # fmt: skip
    pairs = [
        (draw(st.sampled_from(ours)).encode(), draw(written))
        for _ in range(draw(st.integers(1, 4)))
    ]
    if draw(st.integers(0, 49)) == 0:
        pairs = pairs[:1] * 500
    page = draw(st.sampled_from([b"", b".json", b".csv", b"/1", b"/%s" % draw(written)]))
    path = f"/{DATABASE}/{TABLE}".encode() + page.split(b"?")[0]
    query = b"&".join(name + b"=" + value for name, value in pairs)
    return Request("GET", path, query, ((b"host", b"localhost"),))


ARGUMENTS = [
    *("NULL", "''", "'images'", "'nosuch'", "1", "0", "-1", "1.5", "1e308", "9e999"),
    *("-9e999", "9223372036854775807", "x'00'", "x'0000c07f'", "zeroblob(16)", "'1'"),
    *("'abc'", "'['", "'[1,2,3]'", "'[[1],[2]]'", "'[null]'", "'{}'", "'[]'", "char(0)"),
    *("randomblob(1000)", "hex(zeroblob(2000000))", "zeroblob(20000000)", "char(55296)"),
    *("'{\"1\": 1, \"2\": -1}'", "'{\"1\": 1e999}'", "'{\"1\": true}'", "'\"'", "1=1"),
    *("replace(hex(zeroblob(400000)), '0', '[')", "'default'", "'2'", "3"),
    *("(select json_group_array(id) from images)", "(select max(id) from images)"),
    "image_embedding('images', 1)",
]  # fmt: skip
FUNCTIONS = ("image_embedding", "mean_image_embedding", "image_distance", "similar_images",
             "image_store_problem", "image_embedding_text",
             "image_embedding_text_problem")  # fmt: skip


@st.composite
def questions_in_sql(draw: Any) -> Request:
    """Our SQL functions with arguments of all kinds."""
    some = st.lists(st.sampled_from(ARGUMENTS), min_size=0, max_size=5)
    table = draw(st.sampled_from(["'images'"] * 4 + ARGUMENTS))
    inner = f"{draw(st.sampled_from(FUNCTIONS))}({', '.join([table, *draw(some)])})"
    sql = draw(
        st.sampled_from(
            [
                f"select {inner}",
                f"select {inner} from images",
                f"select * from json_each({inner})",
                f"select count(*) from images where {inner}",
                f"select vec_distance_cosine({inner}, image_embedding('images', 1))",
                f"select id from _image_similarity_vectors_1 where embedding match {inner} "
                f"and k = {draw(st.sampled_from(ARGUMENTS))}",
            ]
        )
    )
    path = f"/{DATABASE}/-/query.json" if IS_ONE else f"/{DATABASE}.json"
    return Request("GET", path.encode(), b"sql=" + _quoted(sql), ((b"host", b"localhost"),))


HOSTILE = st.one_of(requests(), requests(), requests(), filtered(), questions_in_sql())


# Asking


@dataclass
class Answer:
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    seconds: float = 0.0


class Site:
    """A Datasette over a gallery of 24 pictures with everything that our commands make."""

    def __init__(self, database: Path) -> None:
        self.folder = database.parent
        config = {"history": True, "sql_text": True, "sql_store": True}
        self.datasette = open_datasette(
            database, plugin=config, settings={"sql_time_limit_ms": 1000}
        )
        self.errors = Errors()
        self.app: Any = None
        root = cookies(self.datasette, ROOT)["ds_actor"]
        self.root = f"ds_actor={root}".encode()

    def close(self) -> None:
        self.errors.close()
        close_all()

    async def start(self) -> None:
        await self.datasette.invoke_startup()
        self.app = self.datasette.app()

    async def ask(self, request: Request, root: bool = False) -> Answer:
        """What the application answers, as a server would call it."""
        chunks = iter(request.body)
        left = len(request.body)
        answer = Answer()

        async def receive() -> dict[str, Any]:
            nonlocal left
            left -= 1
            chunk = next(chunks, b"")
            if left < 0 and not request.ends:
                return {"type": "http.disconnect"}
            more = left > 0 or (left == 0 and not request.ends)
            return {"type": "http.request", "body": chunk, "more_body": more}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = [(bytes(n), bytes(v)) for n, v in message["headers"]]
            else:
                answer.body += message.get("body", b"")

        started = time.monotonic()
        await self.app(self._scope(request, root), receive, send)
        answer.seconds = time.monotonic() - started
        return answer

    def _scope(self, request: Request, root: bool) -> dict[str, Any]:
        """As uvicorn makes it."""
        headers = list(request.headers)
        if root and not any(name == b"cookie" for name, _ in headers):
            headers.append((b"cookie", self.root))
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": unquote(request.path.decode("ascii", "replace")),
            "raw_path": request.path,
            "query_string": request.query,
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }


class Errors:
    """What Datasette had to answer with a 500, where we can see it: a plugin."""

    __name__ = "hostile"  # plugins are modules, mostly

    def __init__(self) -> None:
        self.last: BaseException | None = None
        pm.register(self)

    @hookimpl(tryfirst=True)
    def handle_exception(self, exception: BaseException) -> None:
        self.last = exception

    def is_ours(self) -> bool:
        """Whether code of ours was running, and not only our wrapper around Datasette."""
        trace = self.last.__traceback__ if self.last else None
        while trace is not None:
            code = trace.tb_frame.f_code
            wrapper = code.co_name == "wrapped"  # ASGI middleware
            if code.co_filename.startswith(str(PACKAGE)) and not wrapper:
                return True
            trace = trace.tb_next
        return False

    def close(self) -> None:
        pm.unregister(self)


def make_gallery(folder: Path) -> Path:
    """A database of pictures with all that our commands make."""
    from datasette_image_similarity import ImageCollection
    from datasette_image_similarity.collection import EncoderOptions

    path = folder / f"{DATABASE}.db"
    photos = make_photos(folder / "photos")
    for name in ("red-0", "blue-3"):  # something to find
        colour = name.partition("-")[0]
        data = (photos / colour / f"{name}.png").read_bytes()
        (photos / colour / f"{name}-copy.png").write_bytes(data)
    with ImageCollection(path) as collection:
        collection.embed(photos, encoder=EncoderOptions("hog"), label_from_folder=True)
        collection.map(method="pca")
        collection.duplicates()
        collection.clusters(k=3)
        collection.evaluate("folder")
    return path


# Judging


def fault(site: Site, request: Request, answer: Answer) -> str | None:
    """What is wrong with an answer, in words."""
    text = answer.body.decode("utf-8", "replace")
    shown = [str(site.folder), str(PACKAGE), "site-packages", str(Path.home() / "")]
    if "Traceback (most recent call last)" in text:
        return "shows a traceback"
    for place in shown:
        if place != "/" and place in text and place.encode() not in request.query:
            return f"shows the path {place}"
    if answer.status == 0:
        return "no answer"
    if answer.status >= 500 and answer.status != 503:
        return f"status {answer.status}: {site.errors.last!r}"
    if any(b"\r" in v or b"\n" in v for _, v in answer.headers):
        return "a line break in a header"
    if answer.status >= 400 and request.method != "HEAD" and not _words(answer, text):
        return f"status {answer.status} without words"
    if answer.seconds > SECONDS:
        return f"took {answer.seconds:.1f} s"
    return None


def _words(answer: Answer, text: str) -> bool:
    kind = dict(answer.headers).get(b"content-type", b"")
    if b"json" in kind:
        body = json.loads(text)
        return bool(body.get("error") or body.get("errors") or body.get("message"))
    return bool(re.sub("<[^>]*>", "", text).strip())


async def attack(site: Site, request: Request, root: bool) -> tuple[Answer, str | None]:
    """The answer, and what is wrong with it."""
    site.errors.last = None
    try:
        answer = await asyncio.wait_for(site.ask(request, root), 10 * SECONDS)
    except asyncio.TimeoutError:
        return Answer(), f"no answer in {10 * SECONDS} s"
    except Exception as error:
        answer = Answer()
        site.errors.last = error
        # Else Datasette itself cannot take the request: asgi-csrf, most of the time.
        return answer, f"raises {error!r}" if site.errors.is_ours() else None
    wrong = fault(site, request, answer)
    if wrong and answer.status >= 500 and not site.errors.is_ours():
        wrong = None
    return answer, wrong


@dataclass
class Found:
    """What a run found: requests by status, and failures by what is wrong."""

    statuses: Counter = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    slowest: float = 0.0
    datasettes_own: int = 0  # errors in code of its own alone


def run(site: Site, count: int, seed: int, report: Any = None) -> Found:
    """So many hostile requests."""
    found = Found()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(site.start())
    chance = random.Random(seed)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(
        st.one_of(requests(), requests(), requests(), filtered(), questions_in_sql())
    )
    def one(request: Request) -> None:
        root = chance.random() < 0.5
        answer, wrong = loop.run_until_complete(attack(site, request, root))
        found.statuses[answer.status] += 1
        found.slowest = max(found.slowest, answer.seconds)
        if wrong is None and answer.status in (0, 500):
            found.datasettes_own += 1
        if wrong and wrong not in found.failures:
            found.failures[wrong] = str(request)
            if report is not None:
                report.failed(f"{wrong}: {request} (root: {root})")

    one()
    plain = Request("GET", f"/{DATABASE}/{TABLE}/-/similar.json".encode(), b"_like=1")
    answer = loop.run_until_complete(site.ask(plain))
    if answer.status != 200:
        found.failures["afterwards the site is out of order"] = str(plain)
    loop.close()
    return found


def resident() -> int:
    """The most memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> int:
    parser = options("hostile", (__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000)
    given: argparse.Namespace = parser.parse_args()
    report = Report("hostile", given)
    before = resident()
    with tempfile.TemporaryDirectory() as folder:
        site = Site(make_gallery(Path(folder)))
        found = run(site, given.requests, given.seed, report)
        site.close()
    return report.end(
        requests=sum(found.statuses.values()),
        statuses={str(k): n for k, n in sorted(found.statuses.items())},
        errors_of_datasettes_own=found.datasettes_own,
        slowest_seconds=round(found.slowest, 2),
        memory_peak_mb=round(resident() / 1e6),
        memory_before_mb=round(before / 1e6),
    )


if __name__ == "__main__":
    sys.exit(main())
