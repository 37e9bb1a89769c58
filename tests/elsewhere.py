"""A collection whose vectors are in a store, beside the same one in its file."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import make_photos
from core import embed, opened

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


@contextmanager
def engine(says: bytes | None, reached: list | None = None) -> Iterator[str]:
    """The URL of something that is no engine: it accepts, and says this; with None it
    never answers. Who connects is put into `reached`."""
    server = socket.create_server(("127.0.0.1", 0))
    accepted = [] if reached is None else reached

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            accepted.append(connection)
            if says is not None:
                connection.sendall(says)
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"milvus://127.0.0.1:{server.getsockname()[1]}/photos"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for connection in accepted:
            connection.close()
        thread.join()


def free_url() -> str:
    """A URL at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"milvus://127.0.0.1:{port}/photos"


def put_in(path: Path, url: str, *, vouched: bool = True) -> None:
    """Have a database say that its vectors are there."""
    with opened(path) as conn:
        conn.execute("update _image_similarity_collections set store = ?", (url,))
    if vouched:
        trust.note_store(path, url)
