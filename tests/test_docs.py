"""The documentation says what is so. `python tests/test_docs.py` writes commands.md."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from datasette_image_similarity.cli import image_similarity
from datasette_image_similarity.collection import EncoderOptions, ImageCollection
from datasette_image_similarity.functions import prepare_connection
from datasette_image_similarity.web.config import Config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = ROOT / "docs" / "commands.md"


def commands_markdown() -> str:
    """Every command's help."""
    parts = ["# Commands\n\nAs each command's `--help` says.\n"]
    for name, command in image_similarity.commands.items():
        path = f"datasette image-similarity {name}"
        context = click.Context(command, info_name=path, terminal_width=90)
        parts.append(f"## {name}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def test_every_command_is_documented_as_its_help_says() -> None:
    assert COMMANDS.read_text().split() == commands_markdown().split()


def test_every_help_shows_an_example() -> None:
    for command in image_similarity.commands.values():
        assert "datasette image-similarity" in (command.help or ""), command.name


def test_readme_lists_every_setting_with_its_default() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", README, re.M))
    for name, value in vars(Config()).items():
        assert name in table
        if isinstance(value, (bool, int)):
            assert table[name] == str(value).lower()


@pytest.mark.parametrize("sql", re.findall(r"```sql\n(.*?)```", README, re.S))
def test_readme_queries_run(sql: str, tmp_path: Path, photos: Path) -> None:
    rows = [
        {
            "file": f"{colour}/{colour}-{number}.png",
            "title": f"{colour} {number}",
            "kind": colour,
            "year": 1990 + 3 * number,
        }
        for colour in ("red", "green", "blue")
        for number in range(8)
    ]
    with ImageCollection(tmp_path / "gallery.db", "gallery") as gallery:
        gallery.embed(rows, path_column="file", root=photos, encoder=EncoderOptions("hog"))
        conn = gallery.connect()
        assert prepare_connection(conn)
        found = [dict(row) for row in conn.execute(sql)]
    if "similar_images" in sql:
        assert [row["kind"] for row in found] == ["green"] * 5
    elif "year >= 2000" in sql:
        assert len(found) == 5
        assert min(row["year"] for row in found) >= 2000
    else:
        assert sorted(row["kind"] for row in found) == ["blue", "green", "red"]


if __name__ == "__main__":
    COMMANDS.write_text(commands_markdown())
