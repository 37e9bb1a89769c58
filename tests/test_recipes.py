"""Every command of docs/recipes.md runs: in order, with a tiny network of random numbers.

What a recipe gains is measured on photographs, and stands in the document. Here its
commands are taken from it as a reader would copy them, so they cannot fall behind the
program. Folder, CSV and weights have the names that the document gives them.
"""

from __future__ import annotations

import csv
import re
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from core import command, faults, sql

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("safetensors")
pytest.importorskip("openTSNE")

RECIPES = Path(__file__).parents[1] / "docs" / "recipes.md"
OURS = "datasette image-similarity "
NETWORK = "--model squeezenet1_1 --weights tiny.pth --size 64"
# Lines that are not run here: what installs, chooses the network, serves and asks.
OTHERS = ("pip install ", "NETWORK=", "datasette photos.db", "datasette shop.db", "curl ")
KINDS = {
    "dress": "maroon",
    "hat": "olive",
    "pants": "teal",
    "shirt": "navy",
    "shoes": "orange",
    "skirt": "purple",
}
EACH = 24


def lines(markdown: str) -> Iterator[str]:
    """The lines of its bash blocks, continued ones joined."""
    for block in re.findall(r"^```bash\n(.*?)^```", markdown, re.M | re.S):
        yield from block.replace("\\\n", " ").splitlines()


def recipes() -> list[tuple[str, list[str]]]:
    """The title and the lines of each part of the document, in order."""
    parts = re.split(r"^## (.+)\n", RECIPES.read_text(), flags=re.M)[1:]
    return [
        (title, list(lines(text)))
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def commands() -> list[list[str]]:
    """What stands behind `datasette image-similarity`, as arguments."""
    return [
        shlex.split(line.replace("$NETWORK", NETWORK), comments=True)[2:]
        for _, some in recipes()
        for line in some
        if line.startswith(OURS)
    ]


def draw(file: Path, colour: str, seed: int) -> None:
    """A picture of which any network sees the kind. No two are the same."""
    from PIL import Image, ImageColor

    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (64, 64), colour)
    lighter = tuple(min(255, part + 8) for part in ImageColor.getrgb(colour))
    for place in range(12):
        if seed >> place & 1:
            x, y = 16 * (place % 4), 16 * (place // 4)
            image.paste(lighter, (x + 2, y + 2, x + 14, y + 14))
    image.save(file)


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the commands run in, with what the document says is there."""
    from torchvision.models import get_model

    rows = []
    for number, (kind, colour) in enumerate(KINDS.items()):
        for each in range(EACH):
            file = f"{kind}/{kind}-{each}.png"
            draw(tmp_path / "photos" / file, colour, 1 + number * EACH + each)
            rows.append({"file": file, "product_name": f"{kind} {each}", "category": kind})
    with (tmp_path / "products.csv").open("w", newline="") as output:
        writer = csv.DictWriter(output, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(tmp_path / "query.jpg", KINDS["shoes"], 4095)
    torch.manual_seed(0)
    torch.save(get_model("squeezenet1_1").state_dict(), tmp_path / "tiny.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_line_is_run_here_or_of_a_kind_that_is_known_not_to_be() -> None:
    found = recipes()
    assert len(found) >= 6
    for title, some in found:
        assert any(line.startswith(OURS) for line in some), title
        for line in some:
            assert line.startswith((OURS, *OTHERS)) or not line, line


def test_an_unknown_kind_of_line_would_be_seen() -> None:
    assert list(lines("```bash\nrm a \\\n  b\n```\n")) == ["rm a    b"]


def test_every_command_runs(kitchen: Path) -> None:
    printed = {}
    for arguments in commands():
        result = command(*arguments)
        said = shlex.join(arguments)
        assert result.exit_code == 0, f"{said}\n{result.output}"
        assert result.stdout.strip(), said
        printed[said] = result.stdout

    for path in (kitchen / "photos.db", kitchen / "shop.db"):
        assert faults(path) == []
    assert len(shown(printed, "similar photos.db images 12 -k 5 --name max")) == 5
    assert len(shown(printed, "search shop.db query.jpg")) == 5
    with zipfile.ZipFile(kitchen / "shoes.zip") as file:
        pictures = [name for name in file.namelist() if name.endswith(".png")]
    assert len(pictures) == EACH
    assert (kitchen / "sheet.html").read_text().count("<figure") == 24
    assert dimensions(kitchen / "photos.db")["flatten"] == 100


def shown(printed: dict[str, str], begins: str) -> list[str]:
    """The results that a command printed, without their heading."""
    (found,) = (text for said, text in printed.items() if said.startswith(begins))
    return found.splitlines()[1:]


def dimensions(path: Path) -> dict[str, int]:
    return dict(sql(path, "select name, dimensions from _image_similarity_collections"))
