"""Ask a Datasette everything that it answers, and write the answers down.

    python host.py FOLDER

makes the same databases in FOLDER each time and prints JSON: what was asked → status,
headers and body. `test_host.py` runs it with the plugin, and without it or anything that it
brings. So only Datasette and the standard library are imported here.
"""

from __future__ import annotations

import asyncio
import html
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from datasette.app import Datasette

IS_ONE = hasattr(Datasette, "allowed")
PAGES = 300  # that are reached by links
ROOT = {"id": "root"}
OURS = "datasette-image-similarity"

SCHEMA = """
create table owners (id integer primary key, name text);
create table pets (
    id integer primary key autoincrement, owner integer references owners(id),
    name text not null, born text, weight real check (weight > 0), tags text, photo blob
);
create index pets_owner on pets(owner);
create table nokey (a, b integer, "c d" text);
create table pairs (a text, b integer, note text, primary key (a, b));
create table letters (letter text primary key, n integer) without rowid;
create table "a/b é.c" ("x/y" integer primary key, "é ""q"" x" text, [select] text);
create table links (
    pair_a text, pair_b integer, slash integer references "a/b é.c"("x/y"),
    pet integer references pets(id), foreign key (pair_a, pair_b) references pairs(a, b)
);
create table _hidden (id integer primary key, x text);
create table made (id integer primary key, price real, twice real as (price * 2) stored);
create table strict_one (id integer primary key, n integer) strict;
create view heavy as select id, name, weight from pets where weight > 5;
create view "a view/é" as select a, b from nokey;
create virtual table pets_fts using fts5(name, content='pets', content_rowid='id');
create trigger pets_ai after insert on pets begin
    insert into pets_fts(rowid, name) values (new.id, new.name);
end;
create virtual table notes using fts4(title, body);
create virtual table boxes using rtree(id, x1, x2);
insert into owners values (1, 'Ann'), (2, 'Élodie'), (3, null);
insert into nokey values (1, 2, 'x'), (null, 9223372036854775807, '<b>'), (x'00ff', -1, '');
insert into pairs values ('a/b', 1, 'one'), ('é', 2, '2'), ('a~b', 3, null), ('', 4, '.');
insert into letters values ('a', 1), ('b.json', 2), ('c/d', 3);
insert into "a/b é.c" values (1, 'one', 'two'), (2, null, 'http://example.com/x.png');
insert into links values ('a/b', 1, 1, 1), ('é', 2, 2, 2), (null, null, null, 99);
insert into _hidden values (1, 'x');
insert into made(price) values (1.5), (2);
insert into strict_one values (1, 1);
insert into notes values ('hello', 'world');
insert into boxes values (1, 0, 1);
"""
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c494441540"
    "8d763f8cfc000000301010018dd8db00000000049454e44ae426082"
)

ADDRESSES = """
/ /.json /-/versions.json /-/plugins.json /-/settings.json /-/config.json
/-/metadata.json /-/databases.json /-/actor.json /-/actions.json /-/jump.json?q=pets
/-/jump /-/schema.json /-/queries.json /-/allowed.json?action=view-table /-/permissions
/-/rules.json?action=view-table /-/patterns /-/messages /-/api /-/create-token /-/logout
/-/check.json?action=view-table&parent=host&child=pets /-/allow-debug /-/image-similar
/host /host.json /host.db /fixed /fixed.json /none /none.json /host/none /host/none.json
/host/pets.json?_shape=objects /host/pets.json?_shape=array&_nl=on
/host/pets.json?_extra=render_cell,columns,facet_results,count&_facet=owner
/host/pets.json?_labels=on&_col=owner&_size=2 /host/pets.json?_next=20&_sort=weight
/host/pets.json?_search=re* /host/pets?_search=rex&_where=weight>1 /host/pets?_search="
/host/pets.json?_image_cluster=1&_nocount=1 /host/pets.csv?_stream=on&_labels=on
/host/pets.csv?_dl=on /host/pets?_facet=tags&_facet_array=tags /host/pets/1
/host/pets/1.json /host/pets/1.json?_extras=foreign_key_tables /host/pets/999
/host/pets/1.blob?_blob_column=photo /host/pets.blob?_blob_column=photo /host/nokey/1
/host/nokey.json /host/nokey.csv
/host/pairs/a~2Fb,1 /host/pairs/~C3~A9,2.json /host/pairs/a~7Eb,3 /host/pairs/a,b,c
/host/letters/b~2Ejson /host/letters/c~2Fd.json /host/a~2Fb+~C3~A9~2Ec
/host/a~2Fb+~C3~A9~2Ec.json /host/a~2Fb+~C3~A9~2Ec/1 /host/a~2Fb+~C3~A9~2Ec/2.json
/host/a~2Fb+~C3~A9~2Ec.csv /host/a+view~2F~C3~A9 /host/a+view~2F~C3~A9.json /host/heavy.json
/host/pets_fts.json?_col=name /host/notes?_search=hello /host/boxes.json /host/_hidden.json
/host/sqlite_sequence.json /host/sqlite_sequence /host/made.json /host/strict_one.json
/host/links.json?_labels=on /host/links?_facet=pet /host/find?name=Rex
/host/find.json?name=R /host/find.csv?name=R /host/add
/host/-/queries.json /host/-/schema.json /host/-/create
/host/-/execute-write /host/-/query?sql=select+1 /host/pets/-/schema.json /host/pets/-/alter
/host/pets/-/count /host/pets/-/autocomplete.json?q=re /host/pets/-/foreign-key-suggestions
/host/pets/-/fragment?_row=1 /host/-/foreign-key-targets
/host/-/query/parameters?sql=select+:a /_memory /_memory.json?sql=select+1
/fixed/t.json /fixed/t/1 /-/static/app.css /favicon.ico
/host//pets /host/pets/ /host/pets/1/2/3
"""
PATHS = ADDRESSES.split()

NOT_COMPARED = ("/-/plugins", "/-/threads", "/-/tasks")  # what the process does at a time

QUERIES = (
    "select id, name from pets order by id limit 3",
    "select photo from pets where id = 1",
    "select :name as name, * from pets where name = :name",
    "select count(*) from pragma_function_list where name like 'json%'",
    "select * from sqlite_master order by name",
    "select similar_pictures(1)",
    "select load_extension('x')",
    "select",
    "update pets set name = 1",
    "with recursive t(n) as (select 1 union all select n + 1 from t) select n from t",
    "select * from nowhere",
    "explain select * from pets",
    "pragma table_info(pets)",
)

WRITES_OF_ONE = (  # path, JSON
    ("/host/pets/-/insert", {"row": {"name": "New", "weight": 1}, "return": True}),
    ("/host/pets/-/insert", {"rows": [{"name": "A"}, {"name": "B"}], "return": True}),
    ("/host/pets/-/insert", {"row": {"name": None}}),
    ("/host/pets/-/insert", {"row": {"id": 1, "name": "again"}, "ignore": True}),
    ("/host/pets/-/insert", {"row": {"name": "C", "colour": "red"}, "alter": True}),
    ("/host/pets/-/insert", {"row": {"nope": 1}}),
    ("/host/pets/-/insert", {"row": {"name": "D", "weight": -1}}),
    ("/host/pets/-/upsert", {"rows": [{"id": 1, "name": "Up"}], "return": True}),
    ("/host/pets/1/-/update", {"update": {"name": "Upd"}, "return": True}),
    ("/host/pets/2/-/delete", {}),
    ("/host/pets/999/-/delete", {}),
    ("/host/nokey/-/insert", {"row": {"a": 5}, "return": True}),
    ("/host/nokey/2/-/update", {"update": {"b": 7}}),
    ("/host/pairs/a~2Fb,1/-/update", {"update": {"note": "new"}, "return": True}),
    ("/host/pairs/~C3~A9,2/-/delete", {}),
    ("/host/a~2Fb+~C3~A9~2Ec/-/insert", {"row": {"select": "x"}, "return": True}),
    ("/host/a~2Fb+~C3~A9~2Ec/1/-/delete", {}),
    ("/host/letters/-/upsert", {"rows": [{"letter": "z", "n": 26}], "return": True}),
    ("/host/-/create", {"table": "made_now", "rows": [{"id": 1, "x": "é"}], "pk": "id"}),
    ("/host/made_now/-/alter", {"operations": [{"op": "drop_column", "name": "x"}]}),
    ("/host/made_now/-/drop", {}),
    ("/host/made_now/-/drop", {"confirm": True}),
    ("/fixed/t/-/insert", {"row": {"id": 5}}),
    ("/host/-/execute-write", {"sql": "insert into owners(name) values ('W')"}),
    ("/host/-/execute-write", {"sql": "update owners set name = :n", "params": {"n": "x"}}),
    ("/host/-/execute-write", {"sql": "delete from owners where id = 3 returning *"}),
    ("/host/-/execute-write", {"sql": "create table sql_made (id integer primary key)"}),
    ("/host/-/execute-write", {"sql": "alter table sql_made add column x text"}),
    ("/host/-/execute-write", {"sql": "drop table sql_made"}),
    ("/host/-/execute-write", {"sql": "select 1"}),
    ("/host/-/execute-write", {"sql": "insert into nowhere values (1)"}),
    ("/host/-/execute-write", {"sql": "vacuum"}),
    ("/host/-/execute-write/analyze", {"sql": "delete from owners"}),
    ("/host/-/queries/analyze", {"sql": "insert into owners(name) values (:name)"}),
    (
        "/host/-/queries/store",
        {
            "name": "kept",
            "sql": "insert into owners(name) values (:name)",
            "is_write": True,
            "query": {
                "name": "kept2",
                "sql": "insert into owners(name) values (:name)",
                "is_write": True,
            },
        },
    ),
    ("/host/kept2", {"name": "Kept"}),
    ("/host/kept2/-/delete", {}),
    ("/host/add", {"name": "by JSON"}),
    ("/-/create-token", {"type": "token"}),
)

CONFIG: dict[str, Any] = {
    "title": "A host",
    "databases": {
        "host": {
            "description": "Things",
            "queries": {
                "find": {"sql": "select * from pets where name = :name", "title": "Find"},
                "add": {
                    "sql": "insert into owners(name) values (:name)",
                    "write": True,
                    "allow": True,
                    "on_success_message": "Added",
                },
            },
            "tables": {
                "pets": {
                    "description": "Pets",
                    "sort_desc": "weight",
                    "facets": ["owner"],
                    "units": {"weight": "kg"},
                    "label_column": "name",
                },
                "letters": {"hidden": True},
                "made": {"allow": {"id": "root"}},
            },
        }
    },
}

COMMANDS = (
    ("--version",),
    ("inspect", "host.db", "fixed.db"),
    ("plugins",),
    ("serve", "host.db", "--get", "/host/pets.json?_size=2"),
    ("serve", "host.db", "--get", "/host/pets?_size=2"),
    ("serve", "host.db", "-i", "fixed.db", "--get", "/-/databases.json"),
    ("serve", "host.db", "fixed.db", "--crossdb", "--get", "/_memory.json?sql=select+1"),
    ("serve", "host.db", "--get", "/none"),
    ("serve", "none.db"),
    ("serve", "no.txt"),
    ("serve", "--help-settings"),
    ("serve", "host.db", "--setting", "nope", "1", "--get", "/"),
    ("create-token", "root", "--secret", "x", "--help"),
    *((name, "--help") for name in ("serve", "inspect", "package", "install", "publish")),
    ("nope",),
)


def make_databases(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "host.db")) as conn, conn:
        conn.executescript(SCHEMA)
        for n in range(1, 31):
            row = (n % 3 + 1, f"Rex {n}", f"20{n:02}-01-01", n / 2, '["a", "b"]', PNG)
            conn.execute(
                "insert into pets(owner, name, born, weight, tags, photo) "
                "values (?, ?, ?, ?, ?, ?)",
                row,
            )
    with closing(sqlite3.connect(folder / "fixed.db")) as conn, conn:
        conn.execute("create table t (id integer primary key, x text)")
        conn.execute("insert into t values (1, 'fixed')")
    (folder / "no.txt").write_text("no database")


class Asker:
    """Asks one Datasette, and keeps what it answers."""

    def __init__(self) -> None:
        options: dict[str, Any] = {"config" if IS_ONE else "metadata": CONFIG}
        self.datasette = Datasette(
            ["host.db"],
            immutables=["fixed.db"],
            secret="fixed",
            memory=True,
            settings={"num_sql_threads": 1},
            **options,
        )
        if IS_ONE:
            self.datasette.root_enabled = True
        self.answers: dict[str, Any] = {}
        signed = self.datasette.sign({"a": ROOT}, "actor")
        self.cookies = {"visitor": "", "root": f"ds_actor={signed}"}

    async def ask(self, method: str, path: str, who: str, **options: Any) -> str:
        """The body of an answer, which is noted as well."""
        headers = dict(options.pop("headers", {}))
        if self.cookies[who]:
            cookies = (self.cookies[who], headers.pop("cookie", ""))
            headers["cookie"] = "; ".join(filter(None, cookies))
        if method == "POST":
            headers.setdefault("origin", "http://localhost")
        answer = await self.datasette.client.request(
            method, path, headers=headers, **options
        )
        said = {k: tidy(v) for k, v in answer.headers.items() if k != "content-length"}
        body = tidy(answer.content.decode("utf-8", "backslashreplace"))
        self.answers[tidy(f"{who} {method} {path} {options or ''}")] = [
            answer.status_code,
            said,
            body,
        ]
        return answer.text

    async def everything(self) -> None:
        await self.datasette.invoke_startup()
        base = "/host/-/query" if IS_ONE else "/host"
        for who in self.cookies:
            for path in PATHS:
                await self.ask("GET", path, who)
                await self.ask("HEAD", path, who)
            for sql in QUERIES:
                for kind in ("", ".json", ".csv"):
                    params = {"sql": sql, "name": "Rex 2"}
                    await self.ask("GET", base + kind, who, params=params)
            await self.follow_links(who)
            await self.writes(who)
            await self.ask("GET", "/host.json", who)
            for table in ("owners", "pets", "nokey", "pairs"):
                await self.ask("GET", f"/host/{table}.json?_size=max", who)

    async def follow_links(self, who: str) -> None:
        waiting, seen = ["/"], {*PATHS, *NOT_COMPARED}
        most = len(seen) + PAGES
        while waiting and len(seen) < most:
            path = waiting.pop(0)
            body = await self.ask("GET", path, who)
            for link in links(body):
                to = urlsplit(urljoin(f"http://localhost{path}", link))
                there = f"{to.path}?{to.query}" if to.query else to.path
                if (
                    to.netloc == "localhost"
                    and there not in seen
                    and "/logout" not in there
                ):
                    seen.add(there)
                    waiting.append(there)

    async def writes(self, who: str) -> None:
        form = await self.ask("GET", "/host/add", who)
        found = re.search('name="csrftoken" value="(.+?)"', form)
        token = {"csrftoken": found[1]} if found else {}
        headers = {"cookie": f"ds_csrftoken={found[1]}"} if found else {}
        for fields in ({"name": "by form"} | token, {"name": "no token"}):
            for more in ({}, {"accept": "application/json"}):
                sent = {"data": fields, "headers": headers | more}
                await self.ask("POST", "/host/add", who, **sent)
        evil = headers | {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
        await self.ask("POST", "/host/add", who, data={"name": "evil"}, headers=evil)
        await self.ask(
            "POST", "/host/find", who, data={"name": "x"} | token, headers=headers
        )
        for path, body in WRITES_OF_ONE if IS_ONE else ():
            await self.ask("POST", path, who, json=body)
            await self.datasette.refresh_schemas(force=True)  # else once a second
            if isinstance(body.get("sql"), str):
                await self.ask("POST", path, who, data=flat(body))
                await self.datasette.refresh_schemas(force=True)


def flat(body: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in body.items() if not isinstance(value, dict)}


def links(page: str) -> Iterator[str]:
    for link in re.findall(r'(?:href|action|data-[a-z-]*url)="([^"#]+)"', page):
        if "image-similarity" not in link:
            yield html.unescape(link)


# What differs from run to run, our menu entry, and the menu if nothing else is in it.
VARIES = (
    (r'\s*<li[^>]*><a href="[^"]*/-/image-similarity"[^>]*>Image similarity</a></li>', ""),
    (r'\s*<details class="nav-menu">(?:(?!</details>|<li|<form).)*</details>', ""),
    (r'("(?:query_ms|duration_ms|ms)": ?)[0-9.e-]+', r"\1"),
    (r"(Quer(?:y|ies) took )[0-9.]+", r"\1"),
    (r"(csrftoken\W+(?:value=\W)?)[\w.-]+", r"\1"),
    (r"\n\s+", "\n"),
    (r"expires=[^;]+", ""),  # of cookies
    # When a permission was asked for.
    (r"<span [^>]*>[0-9-]{10}</span><br>[0-9:.]+", ""),
    (r'<span class="check-when">[^<]*', ""),
    (r"dstok_[\w.-]+", ""),
    ("|".join(map(re.escape, sorted(filter(None, sys.path), key=len, reverse=True))), ""),
)


def tidy(text: str) -> str:
    """Without what may differ."""
    for pattern, instead in VARIES:
        text = re.sub(pattern, instead, text, flags=re.DOTALL)
    try:
        listed = json.loads(text)
    except ValueError:
        return text
    if isinstance(listed, list):  # of plugins, perhaps
        listed = [one for one in listed if not (OURS in str(one) and "hooks" in one)]
    return json.dumps(listed, sort_keys=True)  # Datasette computes parts side by side


def run_commands() -> dict[str, Any]:
    found = {}
    for words in COMMANDS:
        command = [
            sys.executable,
            *(["-S"] if sys.flags.no_site else []),
            "-m",
            "datasette",
        ]
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, timeout=60
        )
        said = [tidy(done.stdout), tidy(done.stderr)]
        found[f"datasette {' '.join(words)}"] = [done.returncode, *said]
    return found


def main(folder: str) -> None:
    os.chdir(folder)
    make_databases(Path("."))
    commands = run_commands()
    asker = Asker()
    asyncio.run(asker.everything())
    print(json.dumps(commands | asker.answers))
    sys.stdout.flush()
    os._exit(0)  # threads of Datasette's may wait


if __name__ == "__main__":
    main(sys.argv[1])
