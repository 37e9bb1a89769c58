"""What everything else stands on: the plugin is there, and costs nothing until used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_datasette_knows_the_plugin() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "datasette", "plugins"],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = [p for p in json.loads(done.stdout) if p["name"] == "datasette-image-similarity"]
    assert ours
    assert ours[0]["static"]
    assert ours[0]["templates"]


def test_similar_answers_without_torch(gallery: Path) -> None:
    code = """
import sys
from datasette_image_similarity import ImageCollection
hits = ImageCollection(sys.argv[1]).similar(1, k=3)
print(len(hits), "torch" in sys.modules, "PIL" in sys.modules)
"""
    assert run_python(code, str(gallery)).split() == ["3", "False", "False"]


def test_datasette_serves_similar_without_torch(gallery: Path) -> None:
    code = """
import asyncio, sys
from datasette.app import Datasette
async def main():
    datasette = Datasette([sys.argv[1]])
    await datasette.invoke_startup()
    for path in ("/gallery/images", "/gallery/images/1", "/-/image-similarity",
                 "/gallery/images/-/similar?_like=1", "/gallery/images/-/thumbnail/1"):
        response = await datasette.client.get(path)
        assert response.status_code == 200, (path, response.status_code)
    print("torch" in sys.modules)
asyncio.run(main())
"""
    assert run_python(code, str(gallery)).split() == ["False"]
