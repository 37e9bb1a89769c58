"""What one Datasette instance keeps between requests: which tables have embeddings,
compressed indexes, child processes that decode, and the encoder.

Uploads wait in a bounded queue for one thread of our own, which loads the model once and
lazily. Nothing of that runs on Datasette's SQL threads.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasette.utils import StartupError
from datasette.utils.sqlite import sqlite3

from .. import sources, trust
from ..database import Collection, collections, item_count, load_vec
from ..distances import RandomPairs, random_pairs
from ..encoders import Encoder, EncoderSpec, restore_encoder
from ..errors import DatabaseError, ImageError, ImageSimilarityError
from ..images import LOCAL_FILES, Crop, Decoded, Decoder, DecoderPool, Limits, Request
from ..index import IndexCache
from ..pipeline import finished_vector
from .compat import configured_tables
from .config import Config, ConfigError, read_config
from .log import Log

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

    from ..encoders.transform import Transform

PICTURE = 1600  # longest side of the large picture, in pixels
THUMBNAIL = 320
ENCODERS_KEPT = 2


class QueueFull(ImageSimilarityError):
    """Too many uploads are waiting."""


class Service:
    """Lives as long as its Datasette; made by `service()`."""

    def __init__(self, datasette: Datasette) -> None:
        self.datasette = datasette
        self.indexes = IndexCache()
        self.log = Log()
        self.exporting = 0  # zip files and contact sheets being made
        self._inventory: dict[str, tuple[object, list[Collection]]] = {}
        self._configs: dict[tuple[str, str], Config] = {}
        self._pairs: dict[tuple[str, int, str, int], RandomPairs] = {}
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="image-similarity-upload")
        self._encoders: dict[str, Encoder] = {}
        self._upload_decoders: dict[Limits, Decoder] = {}
        self._pictures = DecoderPool(LOCAL_FILES, min(4, os.cpu_count() or 1))
        self._picture_threads = ThreadPoolExecutor(
            min(4, os.cpu_count() or 1), thread_name_prefix="image-similarity-picture"
        )

    def close(self) -> None:
        """End the threads and child processes."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._picture_threads.shutdown(wait=False, cancel_futures=True)
        for decoder in self._upload_decoders.values():
            decoder.close()
        self._pictures.close()

    # What is embedded

    async def collections(self, database: str) -> list[Collection]:
        """The collections of a database, read again when its file has changed."""
        db = self.datasette.databases.get(database)
        if db is None:
            return []
        state = _file_state(db)
        known = self._inventory.get(database)
        if known is None or state is None or known[0] != state:
            known = (state, await db.execute_fn(_readable_collections))
            self._inventory[database] = known
        return known[1]

    async def collection(
        self, database: str, table: str, name: str | None = None
    ) -> Collection | None:
        """The collection to use for a table: by name, as configured, or the default."""
        there = [c for c in await self.collections(database) if c.table == table]
        name = name or (self.config(database, table).collection if there else None)
        return next((c for c in there if name in (None, c.name)), None)

    def config(self, database: str, table: str) -> Config:
        """The settings for a table, read once: every cell of a table page asks."""
        key = (database, table)
        if key not in self._configs:
            self._configs[key] = read_config(self.datasette, database, table)
        return self._configs[key]

    def random_pairs(self, conn: Any, db: str, collection: Collection) -> RandomPairs:
        """What is known of a collection's random pairs: measured once, and again when it
        has doubled. `conn` is a connection to the database `db`."""
        size = item_count(conn, collection).bit_length()
        key = (db, collection.id, collection.fingerprint, size)
        if key not in self._pairs:
            self._pairs[key] = random_pairs(conn, collection)
        return self._pairs[key]

    # Uploads

    async def embed_upload(
        self, db: Database, data: bytes, collection: Collection, config: Config
    ) -> tuple[bytes, Decoded]:
        """The vector of an uploaded picture, and what was decoded of it.

        Raises QueueFull, ImageError, EncoderError.
        """
        with self._waits(config):
            transform = await self._transform(db, collection)
            return await self._in_turn(self._embed, data, collection, config, transform)

    async def embed_crop(
        self,
        read: Callable[[], bytes],
        crop: Crop,
        db: Database,
        collection: Collection,
        config: Config,
    ) -> bytes:
        """The vector of a part of a stored picture; `read` runs in a thread of ours.

        Raises QueueFull, ImageError, EncoderError.
        """
        spec = EncoderSpec.from_json(collection.encoder)
        thumbnail = THUMBNAIL if collection.thumbnails else None
        request = Request(input=spec.input, thumbnail=thumbnail, crop=crop)
        with self._waits(config):
            decoded = await self.decode_picture(read, request)
            transform = await self._transform(db, collection)
            return await self._in_turn(self._encode, decoded, collection, config, transform)

    async def _transform(self, db: Database, collection: Collection) -> Transform | None:
        """What the collection's vectors went through, read when the encoder is not there.

        Raises EncoderError.
        """
        if collection.fingerprint in self._encoders:
            return None
        from ..learning.stored import stored_transform

        return await db.execute_fn(lambda conn: stored_transform(conn, collection))

    @contextmanager
    def _waits(self, config: Config) -> Iterator[None]:
        """One more picture waits for the encoder. Raises QueueFull."""
        if self._waiting >= config.upload_queue:
            raise QueueFull(
                "Too many pictures are being looked at just now. Try again in a moment"
            )
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _in_turn(self, work: Callable, *arguments: Any) -> Any:
        """Run this in the thread that has the encoder."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, work, *arguments
        )

    def _embed(
        self,
        data: bytes,
        collection: Collection,
        config: Config,
        transform: Transform | None,
    ) -> tuple[bytes, Decoded]:
        limits = config.upload_limits
        if limits not in self._upload_decoders:
            self._upload_decoders[limits] = Decoder(limits)
        spec = EncoderSpec.from_json(collection.encoder)
        # The same request as when embedding: see ImageCollection.encode().
        thumbnail = THUMBNAIL if collection.thumbnails else None
        request = Request(input=spec.input, thumbnail=thumbnail)
        # Decode first: a file that is no picture need not wait for the model.
        decoded = self._upload_decoders[limits].decode(data, request)
        return self._encode(decoded, collection, config, transform), decoded

    def _encode(
        self,
        decoded: Decoded,
        collection: Collection,
        config: Config,
        transform: Transform | None,
    ) -> bytes:
        spec = EncoderSpec.from_json(collection.encoder)
        encoder = self._encoder(spec, config, transform)
        vector = finished_vector(encoder.encode(decoded.pixels[None])[0], collection.metric)
        if vector is None:
            raise ImageError("the encoder gave a vector of zeros, NaN or infinity for it")
        return vector

    def _encoder(
        self, spec: EncoderSpec, config: Config, transform: Transform | None
    ) -> Encoder:
        key = spec.fingerprint
        if key not in self._encoders:
            noted = trust.weights_file(spec.weights_sha256)
            file = Path(config.weights).expanduser() if config.weights else noted
            # Weights that are not here are not fetched on a visitor's behalf: a stranger's
            # database could name gigabytes.
            encoder = restore_encoder(
                spec, transform=transform, weights_file=file, download=False
            )
            while len(self._encoders) >= ENCODERS_KEPT:
                self._encoders.pop(next(iter(self._encoders)))
            self._encoders[key] = encoder
        return self._encoders[key]

    # Pictures

    async def decode_picture(self, read: Callable[[], bytes], request: Request) -> Decoded:
        """Decode a stored picture in a child process. `read` runs in a thread of ours."""

        def work() -> Decoded:
            return self._pictures.decode(read(), request)

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._picture_threads, work)

    def trusted_roots(
        self, db: Database, recorded: list[str], config: Config
    ) -> list[Path]:
        """Folders that pictures may be read from.

        Of those recorded in the database, the ones that `embed` has noted for it in the
        configuration folder of the user who runs Datasette; then those configured.
        """
        noted = trust.trusted_roots(db.path) if db.path is not None else []
        return [one for one in noted if str(one) in recorded] + config.root_paths

    def file_of(self, db: Database, root: str, path: str, config: Config) -> Path | None:
        """The file of a picture, when it lies in a folder that may be shown."""
        for folder in self.trusted_roots(db, [root], config):
            try:
                return sources.locate(folder, path)
            except ImageError:
                continue
        return None


def service(datasette: Datasette) -> Service:
    """The service of a Datasette instance."""
    if not hasattr(datasette, "_image_similarity"):
        datasette._image_similarity = Service(datasette)
    return datasette._image_similarity


def check_startup(datasette: Datasette) -> None:
    """Say at once, not on the first page, what will not work.

    A wrong setting stops Datasette; a SQLite that cannot load extensions is told on
    standard error, because databases without embeddings work all the same.
    """
    conn = sqlite3.connect(":memory:")
    try:
        load_vec(conn)
    except DatabaseError as error:
        print(f"datasette-image-similarity: {error}", file=sys.stderr)
    finally:
        conn.close()
    try:
        for database, table in configured_tables(datasette):
            read_config(datasette, database, table)
    except ConfigError as error:
        raise StartupError(str(error)) from None


def _file_state(db: Any) -> object:
    """Something that changes when a database file does; None where there is no telling."""
    if db.path is None:
        return None
    state = []
    for path in (db.path, f"{db.path}-wal"):
        try:
            found = os.stat(path)
            state.append((found.st_mtime_ns, found.st_size))
        except OSError:
            state.append(None)
    return tuple(state)


def _readable_collections(conn: Any) -> list[Collection]:
    try:
        return collections(conn)
    except (ImageSimilarityError, sqlite3.Error):  # damaged, or made by a newer version
        return []
