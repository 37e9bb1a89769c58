"""A Datasette over some files, asked without a network, the same way on both versions."""

from __future__ import annotations

import html
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from datasette.app import Datasette
from datasette.utils.sqlite import sqlite3

from datasette_image_similarity.plugin import shutdown

PLUGIN = "datasette-image-similarity"
IS_ONE = hasattr(Datasette, "allowed")
ROOT = {"id": "root"}

_opened: list[Datasette] = []


def open_datasette(
    *files: Path,
    plugin: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> Datasette:
    """A Datasette; `plugin` is our configuration for the whole instance, `config` is
    configuration (on 0.65: metadata), `options` go to Datasette itself."""
    config = dict(config or {})
    if plugin is not None:
        config["plugins"] = {PLUGIN: plugin}
    options["config" if IS_ONE else "metadata"] = config
    datasette = Datasette([str(file) for file in files], **options)
    if IS_ONE:
        datasette.root_enabled = True
    return _opened_once(datasette)


def open_folder(folder: Path) -> Datasette:
    """A Datasette configured by a folder, with the databases in it."""
    return _opened_once(Datasette([], config_dir=folder))


def _opened_once(datasette: Datasette) -> Datasette:
    """With its routes made once, as in a server: its client makes them for each request."""
    datasette.app = cache(datasette.app)
    _opened.append(datasette)
    return datasette


def close_all() -> None:
    """End what the plugin has started; 0.65 does not call its shutdown hook."""
    while _opened:
        shutdown(_opened.pop())


def cookies(datasette: Datasette, actor: dict[str, Any] | None) -> dict[str, str]:
    return {"ds_actor": datasette.sign({"a": actor}, "actor")} if actor else {}


async def ask(
    datasette: Datasette,
    path: str,
    actor: dict[str, Any] | None = None,
    method: str = "GET",
    **options: Any,
) -> Any:
    """The response to a request."""
    # Both clients warn about cookies of one request, so they go in as a header.
    headers = dict(options.pop("headers", None) or {})
    if actor:
        signed = cookies(datasette, actor)["ds_actor"]
        headers["cookie"] = f"ds_actor={signed}"
    await datasette.invoke_startup()
    return await datasette.client.request(method, path, headers=headers, **options)


async def ask_json(datasette: Datasette, path: str, **options: Any) -> Any:
    response = await ask(datasette, path, **options)
    assert response.status_code == 200, (path, response.status_code, response.text[:500])
    return response.json()


async def post_picture(
    datasette: Datasette,
    path: str,
    data: bytes | None,
    actor: dict[str, Any] | None = None,
    *,
    name: str = "picture.png",
    kind: str = "image/png",
    fields: dict[str, str] | None = None,
    json: bool = True,
    headers: dict[str, str] | None = None,
) -> Any:
    """The response to a form with a picture, as an API client or a browser sends it."""
    files = {} if data is None else {"image": (name, data, kind)}
    # An entry with a file name of None is a text field: multipart even without a file.
    files |= {key: (None, value.encode()) for key, value in (fields or {}).items()}
    accept = {"accept": "application/json" if json else "text/html"}
    headers = {**accept, **(headers or {})}
    return await ask(datasette, path, actor, "POST", files=files, headers=headers)


def links(page: str) -> list[str]:
    """The addresses that a page links to."""
    return [html.unescape(found) for found in re.findall(r'href="([^"]*)"', page)]


def link_to(page: str, part: str) -> str:
    """The first address on a page that contains something."""
    found = [link for link in links(page) if part in link]
    assert found, f"no link with {part!r} among {links(page)}"
    return found[0]


def parameters(url: str) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(url).query, keep_blank_values=True)


def pks(answer: dict[str, Any]) -> list[str]:
    return [row["pk"] for row in answer["rows"]]


def change(path: Path, *statements: str) -> None:
    """Run SQL on a file as any other program would: without sqlite-vec."""
    connection = sqlite3.connect(str(path))
    try:
        with connection:
            for statement in statements:
                connection.execute(statement)
    finally:
        connection.close()
