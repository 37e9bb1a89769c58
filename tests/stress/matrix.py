"""Who is told what: actors × routes × formats × tables × methods, on one Datasette.

The routes are read from `plugin.register_routes()`, their formats and changes from the
regular expressions; each needs a rule in RULES, and one without is a failure. Statuses are
compared with what the rules and the site's permissions say, every answer is searched for
the secrets of tables that its reader may not view (see `site_of_secrets.py`), and no GET,
HEAD or OPTIONS may change a file.

    tests/stress/run matrix                  everything
    tests/stress/run matrix --part 8         every eighth request
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from datasette.plugins import pm
from serving import IS_ONE, cookies

from datasette_image_similarity import plugin

from . import report
from .site_of_secrets import (
    ANN,
    CAROL,
    CURATORS,
    IDA,
    INSERTERS,
    ROOT,
    SAL,
    TABLES,
    Signing,
    Table,
    World,
    build,
    picture,
)

try:
    from re import _parser as sre  # Python 3.11
except ImportError:  # pragma: no cover
    import sre_parse as sre

# Actors


@dataclass(frozen=True)
class Who:
    """Somebody who asks. `rights` is whose permissions they have; a token may be restricted
    to viewing, and to one table."""

    name: str
    rights: str | None
    headers: Callable[[Any], dict[str, str]]
    only: tuple[str, str] | None = None
    restricted: bool = False

    def may_view(self, table: Table) -> bool:
        here = (table.database, table.name)
        return self.rights in table.viewers and self.only in (None, here)

    def may_curate(self, table: Table) -> bool:
        return (
            self.may_view(table)
            and self.rights in CURATORS
            and (not self.restricted or self.may_insert(table))
        )

    def may_insert(self, table: Table) -> bool:
        here = self.rights == "root" or table.database == "open"
        inserts = self.rights in INSERTERS and here
        return self.may_view(table) and inserts and not self.restricted


def _cookie(actor: dict[str, str]) -> Callable[[Any], dict[str, str]]:
    return lambda site: {"cookie": f"ds_actor={cookies(site, actor)['ds_actor']}"}


def _token(name: str, **restrictions: Any) -> Callable[[Any], dict[str, str]]:
    """An API token: Datasette 1.0's own, on 0.65 one of `Signing`."""

    def headers(site: Any) -> dict[str, str]:
        if not IS_ONE:
            return {"authorization": f"Bearer test-{name}"}
        token = {"a": name, "t": 2**31, **({"_r": restrictions} if restrictions else {})}
        token["t"] = 1_700_000_000
        return {"authorization": f"Bearer dstok_{site.sign(token, namespace='token')}"}

    return headers


VIEWING = ["view-instance", "view-database", "view-table"]
ACTORS = [
    Who("nobody", None, lambda _: {}),
    *(Who(one["id"], one["id"], _cookie(one)) for one in (ANN, CAROL, IDA, SAL, ROOT)),
    Who("ann's token", "ann", _token("ann")),
]
if IS_ONE:
    one_table = {"r": {"open": {"private": ["view-table"]}}}
    ACTORS += [
        Who("carol's viewing token", "carol", _token("carol", a=VIEWING), restricted=True),
        Who("root's viewing token", "root", _token("root", a=VIEWING), restricted=True),
        Who(
            "ann's token for a table",
            "ann",
            _token("ann", **one_table),
            only=("open", "private"),
            restricted=True,
        ),
    ]

# Routes


def expand(pattern: str) -> list[tuple[str, str | None]]:
    """The addresses that a route's regular expression has, each with its format.

    Named groups that take anything stay as {name}; those of alternatives are written out.
    """
    parsed = sre.parse(pattern)
    names = {number: name for name, number in parsed.state.groupdict.items()}
    return _all(parsed, names)


def _ways(node: Any, names: dict[int, str]) -> list[tuple[str, str | None]]:
    kind, value = str(node[0]), node[1]
    if kind == "LITERAL":
        return [(chr(value), None)]
    if kind == "AT":
        return [("", None)]
    if kind == "BRANCH":
        return [way for one in value[1] for way in _all(one, names)]
    if kind == "IN" and all(str(one[0]) == "LITERAL" for one in value):
        return [(chr(one[1]), None) for one in value]
    if kind == "SUBPATTERN":
        name = names.get(value[0])
        if name in ("format", "change"):
            ways = _all(value[3], names)
            return [(text, text if name == "format" else None) for text, _ in ways]
        return [(f"{{{name}}}", None)] if name else _all(value[3], names)
    if kind in ("MAX_REPEAT", "MIN_REPEAT") and (value[0], int(value[1])) == (0, 1):
        return [("", None), *_all(value[2], names)]
    raise ValueError(f"The program cannot read {kind} in a route: teach it")


def _all(parts: Any, names: dict[int, str]) -> list[tuple[str, str | None]]:
    ways = itertools.product(*(_ways(one, names) for one in parts))
    return [
        ("".join(text for text, _ in way), next((f for _, f in way if f), None))
        for way in ways
    ]


@dataclass(frozen=True)
class Rule:
    """What a route is for. `query` fills its address from the ids of the table; `reads` and
    `writes` say who gets an answer to GET and to POST: "view", "curate", "insert", or None
    where the method is refused. `fields` and `files` are what a POST sends."""

    query: str = ""
    reads: str | None = "view"
    writes: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
    picture: bool = False
    done: tuple[int, ...] = (200, 201, 202, 302)  # answers to a POST that may be sent


DECIDE = {"group": "{group}", "action": "skip", "tier": "same"}
RULES: dict[str, Rule] = {
    "/-/image-similarity": Rule(),
    "similar": Rule("_like={pk}"),
    "compare": Rule("_like={pk}"),
    "search-by-image": Rule(writes="view", picture=True),
    "thumbnail/{pk}": Rule(),
    "image/{pk}": Rule(),
    "map": Rule(),
    "map/points.bin": Rule(),
    "map/columns": Rule(),
    "map/column": Rule("_column=label"),
    "map/pictures": Rule("_item={item}"),
    "map/atlas/{number}": Rule(),
    "export": Rule(),
    "questions": Rule(
        writes="curate", fields={"name": "{count}", "question": "_like={pk}"}
    ),
    "questions/rename": Rule(
        reads=None, writes="curate", fields={"id": "{question}", "name": "{count}"}
    ),
    "questions/delete": Rule(
        reads=None, writes="curate", fields={"id": "99999"}, done=(404,)
    ),
    "searches": Rule(reads="curate"),
    "searches/click": Rule(
        reads=None, fields={"search": "{search}", "pk": "{pk}", "rank": "1"}
    ),
    "add-picture": Rule(reads="insert", writes="insert", picture=True),
    "duplicates": Rule(),
    "duplicates/decide": Rule(reads=None, writes="curate", fields=DECIDE),
    "duplicates/accept": Rule(reads=None, writes="curate", fields=DECIDE),
    "duplicates/undo": Rule(reads=None, writes="curate", fields=DECIDE),
    "clusters": Rule(),
    "clusters/rename": Rule(
        reads=None, writes="curate", fields={"cluster": "{cluster}", "name": "{count}"}
    ),
    "evaluations": Rule(),
    "evaluations/{run}": Rule(),
}


@dataclass(frozen=True)
class Route:
    """One address of ours; {database}, {table} and others are to be filled in."""

    address: str
    format: str | None
    rule: Rule

    @property
    def of_table(self) -> bool:
        return "{table}" in self.address


def routes() -> list[Route]:
    """All addresses of ours. Raises KeyError for one without a rule."""
    found = []
    for pattern, _ in plugin.register_routes():
        for address, format in expand(pattern):
            stem = address.removesuffix(f".{format}") if format else address
            name = stem.removeprefix("/{database}/{table}/-/")
            found.append(Route(address, format, RULES[name]))
    return found


# Asking


@dataclass
class Matrix:
    """One run over a site."""

    world: World
    site: Any
    failed: Callable[[str], None]
    part: int = 1
    seed: int = 0
    asked: Counter = field(default_factory=Counter)
    statuses: Counter = field(default_factory=Counter)
    number: int = 0

    def skipped(self) -> bool:
        """Whether this request is none of those that are asked; the same by seed."""
        self.number += 1
        return (
            self.part > 1
            and random.Random(self.number + self.seed).randrange(self.part) > 0
        )

    async def ask(self, who: Who, method: str, url: str, **options: Any) -> Any:
        """Ask, and look through the answer for what this reader may not be told."""
        headers = {**who.headers(self.site), **options.pop("headers", {})}
        before = None if method == "POST" else self.world.state()
        client = self.site.client
        response = await client.request(method, url, headers=headers, **options)
        what = f"{who.name}: {method} {url} -> {response.status_code}"
        self.asked[method] += 1
        self.statuses[response.status_code] += 1
        # Datasette 0.65 says so of a row of any table with a compound key.
        half_a_key = "supply a value for binding" in response.text[:200]
        if response.status_code >= 500 and not half_a_key:
            self.failed(f"{what}: {response.text[:300]}")
        if before is not None and self.world.state() != before:
            self.failed(f"{what} changed a file")
        secret = [one.word for one in TABLES if not who.may_view(one)]
        told = [word for word in self.world.told(response, secret) if word not in url]
        if told:
            self.failed(f"{what} tells of {', '.join(told)}")
        return response, what

    def fill(self, text: str, table: Table) -> str:
        self.number += 1
        values = {"pk": "1", "number": "0", "count": f"{table.word} {self.number}"}
        values |= {"database": table.database, "table": table.name}
        values |= {name: str(id) for name, id in self.world.ids[table.word].items()}
        return text.format(**values)

    def url(self, route: Route, table: Table) -> str:
        query = self.fill(route.rule.query, table)
        return self.fill(route.address, table) + (f"?{query}" if query else "")

    # What is expected

    def allowed(self, who: Who, table: Table, need: str | None) -> bool:
        may = {
            "view": who.may_view,
            "curate": who.may_curate,
            "insert": who.may_insert,
        }
        return need is not None and may[need](table)

    async def reads(self, who: Who, route: Route, table: Table) -> None:
        """GET, HEAD and OPTIONS of an address."""
        url = self.url(route, table)
        for method in ("GET", "HEAD", "OPTIONS"):
            if self.skipped():
                continue
            response, what = await self.ask(who, method, url)
            status = response.status_code
            if method == "OPTIONS":
                right = status == 405
            elif not who.may_view(table):
                right = status == 403
            elif route.rule.reads is None:
                right = status == 405
            elif self.allowed(who, table, route.rule.reads):
                right = status < 300 or "compare" in url
            else:
                right = status == 403
            if not right:
                self.failed(f"{what} is not what the rule says")
            self.check_headers(response, what)

    async def writes(self, who: Who, route: Route, table: Table) -> None:
        """POST to an address, as a form."""
        rule = route.rule
        url = self.url(route, table)
        fields = {name: self.fill(one, table) for name, one in rule.fields.items()}
        options: dict[str, Any] = {"data": fields}
        if rule.picture:
            data = picture(table.hue, random.Random(self.number).randrange(10**6))
            options = {"files": {"image": ("new.png", data, "image/png")}}
        before = self.world.state()
        response, what = await self.ask(who, "POST", url, **options)
        status = response.status_code
        if not self.allowed(who, table, rule.writes):
            # Pages that are only read take a POST for a GET.
            harmless = rule.writes is None and who.may_view(table)
            if status != 403 and not (harmless and status < 500):
                self.failed(f"{what} is not refused")
            if self.world.state() != before:
                self.failed(f"{what} changed a file")
        elif status not in rule.done and "compare" not in url:
            self.failed(f"{what} is refused: {response.text[:200]}")

    def check_headers(self, response: Any, what: str) -> None:
        """What every answer of ours says; a 403 page is Datasette's own."""
        html = "text/html" in response.headers.get("content-type", "")
        if response.status_code == 403 and html:
            return
        headers = response.headers
        policy = headers.get("content-security-policy", "")
        right = (
            headers.get("x-content-type-options") == "nosniff"
            and headers.get("referrer-policy") == "same-origin"
            and "private" in headers.get("cache-control", "")
            and "Cookie" in headers.get("vary", "")
            and "access-control-allow-origin" not in headers
            and "frame-ancestors 'self'" in policy
            and "unsafe-inline" not in policy.partition("style-src")[0]
        )
        if not right:
            self.failed(f"{what} lacks headers: {dict(headers)}")


# The parts of a run


async def ask_all_routes(matrix: Matrix) -> None:
    """Every address × table × actor, by GET, HEAD and OPTIONS."""
    for route, who in itertools.product(routes(), ACTORS):
        for table in TABLES if route.of_table else TABLES[:1]:
            if route.of_table:
                await matrix.reads(who, route, table)


async def ask_home(matrix: Matrix) -> None:
    """The list of what is embedded names the tables that its reader may view."""
    for who in ACTORS:
        response, what = await matrix.ask(who, "GET", "/-/image-similarity.json")
        shown = {(one["database"], one["table"]) for one in response.json()["collections"]}
        right = {(one.database, one.name) for one in TABLES if who.may_view(one)}
        if shown != right:
            matrix.failed(f"{what} lists {sorted(shown ^ right)} wrongly")
        page, what = await matrix.ask(who, "GET", "/-/image-similarity")
        for table in TABLES:
            if (f"/{table.database}/{table.name}/-/" in page.text) != who.may_view(table):
                matrix.failed(f"{what} is wrong about {table.database}/{table.name}")


async def compare_with_datasette(matrix: Matrix) -> None:
    """Who may view a table by the program's list may do so on Datasette's own page."""
    for who, table in itertools.product(ACTORS, TABLES):
        url = f"/{table.database}/{table.name}.json?_size=0"
        response, what = await matrix.ask(who, "GET", url)
        if (response.status_code == 200) != who.may_view(table):
            matrix.failed(f"{what}: the program is wrong about this permission")


OTHER_TABLES = ("plain", "seen", "nowhere", "_image_similarity_items")


async def ask_without_pictures(matrix: Matrix) -> None:
    """Tables without a collection, a view, one of ours, a table that is not there."""
    for route, who in itertools.product(routes(), ACTORS):
        if not route.of_table:
            continue
        for name in OTHER_TABLES:
            for database, method in itertools.product(("open", "closed"), ("GET", "POST")):
                if matrix.skipped():
                    continue
                table = Table(database, name, TABLES[0].word, 0.0, frozenset())
                response, what = await matrix.ask(who, method, matrix.url(route, table))
                if response.status_code not in (400, 403, 404, 405):
                    matrix.failed(f"{what}: there are no pictures")
                may_not = database == "closed" and who.rights not in ("ann", "root")
                if may_not and response.status_code not in (400, 403):
                    matrix.failed(f"{what}: whether it is there is not for them to know")


def our_tables(world: World) -> list[tuple[str, str]]:
    """(database, table) of every table of ours, shadow tables included."""
    from contextlib import closing

    from datasette.utils.sqlite import sqlite3

    found = []
    for file in world.files:
        with closing(sqlite3.connect(str(file))) as conn:
            names = conn.execute("select name from sqlite_master where type = 'table'")
            found += [(file.stem, name) for (name,) in names]
    return [
        (database, name)
        for database, name in found
        if name.startswith(("_image_similarity", "sqlite_"))
    ]


async def ask_datasette(matrix: Matrix) -> None:
    """Datasette's own pages, where hooks of ours add something or our tables are."""
    pages = ["/", "/.json", "/-/tables.json", "/-/jump.json?q=qz", "/-/schema.json"]
    pages += ["/-/databases.json", "/-/search?q=qz", "/-/plugins.json"]
    for database in ("open", "closed"):
        pages += [f"/{database}", f"/{database}.json", f"/{database}/-/schema.json"]
    for database, name in our_tables(matrix.world):
        path = f"/{database}/{name}"
        pages += [path, f"{path}.json?_shape=array", f"{path}.csv", f"{path}/1.json"]
        pages += [f"{path}/-/schema.json", f"{path}.json?_size=max"]
    for table in TABLES:
        path = f"/{table.database}/{table.name}"
        pages += [path, f"{path}/1", f"{path}/1.json", f"{path}.csv?_stream=1"]
        pages += [f"{path}.json?_shape=array", f"{path}?_facet=label&_col=id"]
        for other in TABLES:
            ids = matrix.world.ids[other.word]
            narrowed = urlencode({"_image_group": ids["group"]})
            clustered = urlencode({"_image_cluster": ids["cluster"], "_facet": "label"})
            pages += [f"{path}.json?{narrowed}", f"{path}.json?{clustered}"]
        region = "_image_region=-9,-9,9,-9,9,9,-9,9"
        pages += [f"{path}.json?_image_decision=mark", f"{path}.json?{region}"]
    for who, page in itertools.product(ACTORS, pages):
        if not matrix.skipped():
            await matrix.ask(who, "GET", page)


async def name_what_is_elsewhere(matrix: Matrix) -> None:
    """Ids of one table's things asked of another: never an answer about the first."""
    ways = [
        "duplicates?_group={group}",
        "duplicates.json?_group={group}",
        "evaluations/{run}",
        "evaluations/{run}.json",
        "evaluations/{run}.csv",
        "evaluations.json?_run={run}&_run=1",
        "map/pictures.json?_item={item}",
        "similar.json?_like={item}",
        "similar.json?_like=1&_image_group={group}",
        "similar.json?_like=1&_image_cluster={cluster}",
        "clusters.json?_image_cluster={cluster}",
        "export.zip?_image_cluster={cluster}",
        'similar.json?_like=1&_through={{"table":"{name}","column":"label","value":"x"}}',
        "similar.json?_like=1&_where=id in (select id from {name})",
        "similar.json?_like=1&_where=label='x' union select label from {name}",
    ]
    for who, one, other in itertools.product(ACTORS, TABLES, TABLES):
        if one is other or who.may_view(other) or not who.may_view(one):
            continue
        ids = {**matrix.world.ids[other.word], "name": other.name}
        for way in ways:
            if not matrix.skipped():
                url = f"/{one.database}/{one.name}/-/{way.format(**ids)}"
                await matrix.ask(who, "GET", url)


SQL = (
    "select image_embedding('{table}', 1)",
    "select image_embedding('{database}.{table}', 1)",
    "select similar_images('{table}', 1, 5)",
    "select image_distance('{table}', 1, 2)",
    "select mean_image_embedding('{table}', '[1, 2]')",
    "select image_store_problem('{table}')",
    "select * from [{database}].[_image_similarity_items]",
    "attach 'file:{file}' as other",
    "select load_extension('{file}')",
)


async def run_sql(matrix: Matrix) -> None:
    """Who may run SQL in one database reaches no other by our functions."""
    sal = next(who for who in ACTORS if who.name == "sal")
    able = Who("sal", "sal", sal.headers)
    for table, sql in itertools.product(TABLES, SQL):
        if table.database == "open":  # whoever runs SQL here may read all of it
            continue
        file = matrix.world.folder / "closed.db"
        text = sql.format(table=table.name, database=table.database, file=file)
        query = urlencode({"sql": text, "_shape": "array"})
        for page in ("/open/-/query.json", "/open.json", "/closed/-/query.json"):
            response, what = await matrix.ask(able, "GET", f"{page}?{query}")
            if response.status_code == 200 and page.startswith("/open"):
                rows = response.json()
                rows = rows.get("rows", []) if isinstance(rows, dict) else rows
                if rows and "problem" not in text and "sql" not in rows[0]:
                    matrix.failed(f"{what}: {rows[:1]}")


async def write_everywhere(matrix: Matrix) -> None:
    """POST to every address by everybody; of two tables, what somebody else's ids do."""
    for route, who in itertools.product(routes(), ACTORS):
        for table in TABLES if route.of_table else ():
            if not matrix.skipped():
                await matrix.writes(who, route, table)


def rows_about(world: World, table: Table) -> list[list[tuple]]:
    """Everything that our tables hold of a table, but for the log of searches."""
    from contextlib import closing

    from datasette_image_similarity import database as db

    with closing(db.connect(world.folder / f"{table.database}.db")) as conn:
        of = db.find_collection(conn, table.name).id
        found = []
        for kind in ("questions", "decisions", "clusters", "members", "groups"):
            sql = f"select * from _image_similarity_{kind} where collection_id = ?"
            found.append([tuple(row) for row in conn.execute(sql, (of,))])
        return found


async def change_what_is_elsewhere(matrix: Matrix) -> None:
    """A curator of one table names the groups, questions and clusters of another."""
    carol = next(who for who in ACTORS if who.name == "carol")
    private, public = TABLES[1], TABLES[0]
    ids = matrix.world.ids[private.word]
    before = rows_about(matrix.world, private)
    for page, fields in (
        ("questions/rename", {"id": ids["question"], "name": "mine"}),
        ("questions/delete", {"id": ids["question"]}),
        ("clusters/rename", {"cluster": ids["cluster"], "name": "mine"}),
        ("duplicates/decide", {"group": ids["group"], "action": "accept"}),
        ("duplicates/decide", {"group": ids["group"], "action": "split", "pk": "1"}),
        ("duplicates/accept", {"tier": "same"}),
        ("duplicates/undo", {"tier": "same"}),
        ("duplicates/undo", {"tier": "same"}),
        ("duplicates/undo", {"tier": "same"}),
        ("searches/click", {"search": ids["search"], "pk": "1", "rank": "1"}),
    ):
        url = f"/{public.database}/{public.name}/-/{page}"
        await matrix.ask(carol, "POST", url, data=fields)
    if rows_about(matrix.world, private) != before:
        matrix.failed("carol, who curates one table, has changed what is of another")


READING = (
    compare_with_datasette,
    ask_home,
    ask_all_routes,
    ask_without_pictures,
    ask_datasette,
    name_what_is_elsewhere,
    run_sql,
)


async def run(
    world: World, failed: Callable[[str], None], part: int = 1, seed: int = 0
) -> dict[str, Any]:
    """All of it, or one request in so many. Returns the figures."""
    signing = Signing()
    pm.register(signing, name="signing")
    try:
        figures: Counter = Counter()
        statuses: Counter = Counter()
        # The log is written behind an answer: it would be taken for what a GET has changed.
        for settings, parts in (
            ({}, (*READING, write_everywhere)),
            ({"history": True}, (change_what_is_elsewhere,)),
        ):
            site = world.site(**settings)
            await site.invoke_startup()
            matrix = Matrix(world, site, failed, part, seed)
            for one in parts:
                await one(matrix)
            figures += matrix.asked
            statuses += matrix.statuses
    finally:
        pm.unregister(signing)
    return {
        "routes": len(routes()),
        "actors": len(ACTORS),
        "tables": len(TABLES) + len(OTHER_TABLES),
        "requests": sum(figures.values()),
        "by_method": dict(figures),
        "by_status": {str(code): n for code, n in sorted(statuses.items())},
    }


def main() -> int:
    parser = report.options("matrix", __doc__.splitlines()[0])
    parser.add_argument("--part", type=int, default=1, help="one request in so many")
    options = parser.parse_args()
    found = report.Report("matrix", options)
    with tempfile.TemporaryDirectory() as folder:
        import click

        click.get_app_dir = lambda *_, **__: f"{folder}/configuration"
        place = Path(folder) / "site"
        place.mkdir()
        world = build(place)
        figures = asyncio.run(run(world, found.failed, options.part, options.seed))
    return found.end(**figures)


if __name__ == "__main__":
    sys.exit(main())
