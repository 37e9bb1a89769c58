"""Words in SQL: on and off, by a child process that may be slow, crash or be killed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import IS_ONE, PLUGIN, ask, ask_json, link_to, open_datasette, parameters
from wording import TEXT

from datasette_image_similarity import ImageCollection, trust
from datasette_image_similarity.encoders import EncoderSpec
from datasette_image_similarity.errors import EncoderError, TextError
from datasette_image_similarity.text_helper import Job, NotYet, TextHelper
from datasette_image_similarity.web.service import service

EMBEDDING = "select hex(image_embedding_text('images', :text)) as vector"
PROBLEM = "select image_embedding_text_problem('images', :text) as problem"
PATIENT = {"settings": {"sql_time_limit_ms": 60_000}}


async def run(site: Any, sql: str, text: str = TEXT, database: str = "worded") -> Any:
    """The response to a query."""
    path = f"/{database}/-/query.json" if IS_ONE else f"/{database}.json"
    asked = {"sql": sql, "text": text, "_shape": "array"}
    return await site.client.get(path, params=asked)


@pytest.fixture(scope="module")
def helper() -> Iterator[TextHelper]:
    """One process for all: it takes seconds to import torch and open_clip."""
    made = TextHelper()
    yield made
    made.close()


@pytest.fixture
def site(worded: Path, helper: TextHelper) -> Iterator[Any]:
    config = {"databases": {"worded": {"plugins": {PLUGIN: {"sql_text": True}}}}}
    made = open_datasette(worded, config=config, **PATIENT)
    service(made).words, own = helper, service(made).words
    yield made
    service(made).words = own  # which is closed with the site


async def test_sql_finds_what_python_finds(site: Any, worded: Path) -> None:
    await site.invoke_startup()
    (row,) = (await run(site, EMBEDDING)).json()
    with ImageCollection(worded) as photos:
        wanted = np.frombuffer(photos.encode_text(TEXT), "<f4")
        hits = [hit.pk for hit in photos.search(text=TEXT, k=24)]
        vectors = photos._open()[0].vectors
    found = np.frombuffer(bytes.fromhex(row["vector"]), "<f4")
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    nearest = (
        f"select i.pk from {vectors} v join _image_similarity_items i on i.id = v.id "
        "where v.embedding match image_embedding_text('images', :text) and k = 24 "
        "order by v.distance"
    )
    rows = (await run(site, nearest)).json()
    assert [row["pk"] for row in rows] == hits
    assert (await run(site, PROBLEM)).json() == [{"problem": None}]


async def test_a_page_of_words_is_shown_as_sql(site: Any, worded: Path) -> None:
    page = await ask(site, "/worded/images/-/similar?_text=it's+red&folder=blue")
    url = link_to(page.text, "sql=")
    page = await ask(site, url)
    assert page.status_code == 200, page.text
    with ImageCollection(worded) as photos:
        hits = photos.search(text="it's red", k=24, where="folder = 'blue'")
    path = "/worded/-/query.json" if IS_ONE else "/worded.json"
    asked = {**dict(parameters(url)), "_shape": "array"}
    rows = (await site.client.get(path, params=asked)).json()
    assert [row["id"] for row in rows] == [hit.pk for hit in hits]
    mixed = await ask(site, "/worded/images/-/similar?_text=red&_like=1")
    assert "View as SQL" not in mixed.text


async def test_it_is_off_unless_the_configuration_says_so(
    worded: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.db"
    other.write_bytes(worded.read_bytes())
    config = {"databases": {"worded": {"plugins": {PLUGIN: {"sql_text": True}}}}}
    site = open_datasette(worded, other, config=config, **PATIENT)
    await site.invoke_startup()
    answer = await run(site, EMBEDDING, database="other")
    assert answer.status_code == 400
    assert "no such function: image_embedding_text" in answer.text
    (row,) = (await run(site, PROBLEM, database="other")).json()
    assert '"sql_text": true' in row["problem"]
    assert service(site).words._process is None  # nothing was started for it


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" ", "empty"),
        ("x" * 501, "up to 500"),
        ("a cat " * 10, "reads 14 tokens"),
    ],
)
async def test_why_not_is_told(text: str, said: str, site: Any) -> None:
    await site.invoke_startup()
    assert (await run(site, EMBEDDING, text)).status_code == 400
    (row,) = (await run(site, PROBLEM, text)).json()
    assert said in row["problem"]


async def test_nulls_stay_null_and_unknown_tables_are_told(site: Any) -> None:
    await site.invoke_startup()
    null = "select image_embedding_text('images', null) is null as yes"
    assert (await run(site, null)).json() == [{"yes": 1}]
    for null in ("null, 'x'", "'images', null", "'images', 'x', null"):
        sql = f"select image_embedding_text_problem({null}) is null as yes"
        assert (await run(site, sql)).json() == [{"yes": 1}]
    sql = "select image_embedding_text_problem('images', x'ff') as problem"
    assert "must be text" in (await run(site, sql)).json()[0]["problem"]
    sql = "select image_embedding_text_problem('none', 'x') as problem"
    assert "none" in (await run(site, sql)).json()[0]["problem"]


async def test_missing_weights_are_told(site: Any, helper: TextHelper) -> None:
    trust._write({"roots": {}, "weights": {}, "published": {}})
    helper._waiting.known.clear()
    helper._loaded = None
    await site.invoke_startup()
    (row,) = (await run(site, PROBLEM)).json()
    assert "say where that lies" in row["problem"]


async def test_sql_does_not_wait_for_the_model_to_load(worded: Path) -> None:
    """Within Datasette's usual limit the first answer is that it is loading."""
    settings = {"settings": {"sql_time_limit_ms": 300}}
    site = open_datasette(worded, plugin={"sql_text": True}, **settings)
    await site.invoke_startup()
    (row,) = (await run(site, PROBLEM)).json()
    assert "ask again in a few seconds" in row["problem"]
    for _ in range(600):
        answer = await run(site, EMBEDDING)
        if answer.status_code == 200:
            break
        time.sleep(0.1)
    assert answer.status_code == 200


# The process


@pytest.fixture
def job(worded: Path, tiny_model: Path) -> Job:
    with ImageCollection(worded) as photos:
        return Job(EncoderSpec.from_json(photos._open()[0].encoder), tiny_model, TEXT)


def other(job: Job, text: str) -> Job:
    return Job(job.spec, job.weights, text)


def test_a_killed_process_starts_anew(helper: TextHelper, job: Job) -> None:
    first = helper.encode(job, 60)
    old = helper._process
    assert helper.encode(other(job, "rain"), 60) != first
    assert helper._process is old  # it is kept, and so is the encoder
    old.kill()
    old.wait()
    with pytest.raises(NotYet, match="crashed"):
        helper.encode(other(job, "snow"), 60)
    assert helper.encode(job, 60) == first  # remembered
    assert len(helper.encode(other(job, "snow"), 60)) == len(first)
    assert helper._process is not old


def test_errors_keep_their_kind_and_the_process(helper: TextHelper, job: Job) -> None:
    with pytest.raises(TextError, match="reads 14 tokens"):
        helper.encode(other(job, "a cat " * 10), 60)
    process = helper._process
    elsewhere = Job(replace(job.spec, weights_sha256="0" * 64), None, TEXT)
    with pytest.raises(EncoderError, match="say where that lies"):
        helper.encode(elsewhere, 60)
    assert helper._process is process
    assert len(helper.encode(job, 60)) == 4 * 24


def fake(tmp_path: Path, body: str) -> list[str]:
    """A child that greets, then does this with each message."""
    package = Path(sys.modules["datasette_image_similarity"].__file__).parents[1]
    script = tmp_path / "child.py"
    script.write_text(
        f"import sys, time; sys.path.insert(0, {str(package)!r})\n"
        "from datasette_image_similarity.images import receive, send\n"
        "send(sys.stdout.buffer, {'ready': True}, [])\n"
        "while True:\n"
        "    message, _ = receive(sys.stdin.buffer)\n"
        f"    {body}\n"
        "    send(sys.stdout.buffer, {}, [message.get('text', '').encode()])\n"
    )
    return [sys.executable, str(script)]


def test_a_slow_process_is_killed_at_its_deadline(tmp_path: Path, job: Job) -> None:
    slow = "message.get('text') == 'slow' and time.sleep(600)"
    helper = TextHelper(fake(tmp_path, slow), encode_seconds=0.5)
    assert helper.encode(other(job, "quick"), 60) == b"quick"
    child = helper._process.pid
    with pytest.raises(NotYet, match=r"took longer than .* to embed a text"):
        helper.encode(other(job, "slow"), 60)
    assert not alive(child)
    assert helper.encode(other(job, "again"), 60) == b"again"
    helper.close()


def test_loading_has_a_deadline_too(tmp_path: Path, job: Job) -> None:
    slow = "'load' in message and time.sleep(600)"
    helper = TextHelper(fake(tmp_path, slow), load_seconds=0.5)
    with pytest.raises(NotYet, match="to load the encoder"):
        helper.encode(job, 60)
    helper.close()


def test_only_so_many_wait_and_closing_ends_the_wait(tmp_path: Path, job: Job) -> None:
    helper = TextHelper(fake(tmp_path, "time.sleep(600)"))
    for number in range(8):
        with pytest.raises(NotYet, match="loading, or busy"):
            helper.encode(other(job, f"text {number}"), 0.01)
    with pytest.raises(NotYet, match="Too many"):
        helper.encode(other(job, "one more"), 0.01)
    while helper._process is None:
        time.sleep(0.01)
    child = helper._process.pid
    helper.close()
    assert not alive(child)
    with pytest.raises(NotYet, match="ending"):
        helper.encode(other(job, "late"), 60)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_python_and_commands_have_no_such_function(worded: Path) -> None:
    """They ask the collection itself: see ImageCollection.encode_text()."""
    with ImageCollection(worded) as photos:
        functions = photos.connect().execute("select name from pragma_function_list")
        assert "image_embedding_text" not in {row[0] for row in functions}


async def test_settings_of_one_database_alone(worded: Path) -> None:
    site = open_datasette(worded, plugin={"sql_text": "yes"})
    with pytest.raises(Exception, match="sql_text"):
        await ask(site, "/")
    assert await ask_json(open_datasette(worded), "/-/versions.json")
