"""Pictures in a bucket and at addresses, fetched by the actors of a Ray of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud import Server, serving
from conftest import picture
from core import contents, counts, embed, failures, sql
from web_server import web

from datasette_image_similarity.ray_engine import RayEngine

PICTURES = {f"/{number}.png": picture("red", number) for number in range(5)}


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving() as server, server.empty(monkeypatch) as emptied:
        for name, data in PICTURES.items():
            emptied.put(f"summer{name}", data)
        emptied.put("summer/bad.png", b"no picture")
        yield emptied


def news(path: Path, site: str) -> Path:
    sql(path, "create table news (id integer primary key, photo)")
    for name in (*PICTURES, "/none.png"):
        sql(path, "insert into news (photo) values (?)", (f"{site}{name}",))
    return path


def test_it_is_the_same_as_by_one_process(tmp_path: Path, bucket: Server) -> None:
    pytest.importorskip("ray.data", reason="Ray is not installed")
    addresses = {"url_column": "photo", "table": "news"}
    alone, many = tmp_path / "alone.db", tmp_path / "many.db"

    def answer(target: str, range: str) -> tuple[int, bytes]:
        return (200, PICTURES[target]) if target in PICTURES else (404, b"")

    with RayEngine(actors=1) as engine, web(answer) as site:
        embed(alone, "s3://photos/summer")
        two = embed(many, "s3://photos/summer", engine=engine, batch_size=2)
        assert contents(many) == contents(alone)
        assert counts(two) == (5, 0, 0, 1, 0)

        guarded = news(tmp_path / "guarded.db", site)
        assert counts(embed(guarded, engine=engine, **addresses)) == (0, 0, 0, 6, 0)
        assert all("--allow-private-addresses" in why for *_, why in failures(guarded))

        alone, many = (news(tmp_path / f"{n}-news.db", site) for n in ("alone", "many"))
        allowed = {**addresses, "allow_private_addresses": True}
        embed(alone, **allowed)
        assert counts(embed(many, engine=engine, **allowed)) == (5, 0, 0, 1, 0)
        assert contents(many, "news") == contents(alone, "news")
