"""A collection whose vectors are in a store, beside the same one in its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_photos
from core import embed

from datasette_image_similarity import trust


def pair_of(folder: Path) -> tuple[Path, Path]:
    """Two databases of the same photos: vectors in the file, and in milvus-lite."""
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.get_app_dir", lambda *_, **__: str(folder))
        photos = make_photos(folder / "photos")
        here, there = folder / "here.db", folder / "there.db"
        embed(here, photos, label_from_folder=True)
        url = f"milvus-lite:{folder / 'vectors.db'}"
        embed(there, photos, label_from_folder=True, store=url)
    return here, there


def copies(pair: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    """Copies of both that may be changed; the store is shared, and vouched for."""
    copied = []
    for path in pair:
        copy = folder / path.name
        copy.write_bytes(path.read_bytes())
        trust.note_root(copy, path.parent / "photos")
        trust.note_store(copy, f"milvus-lite:{path.parent / 'vectors.db'}")
        copied.append(copy)
    return copied[0], copied[1]
