"""What one Datasette instance keeps between requests: which tables have embeddings,
compressed indexes, child processes that decode, and the encoder.

Uploads and words wait in a bounded queue for one thread of our own, which loads the model
once and lazily. Nothing of that runs on Datasette's SQL threads: what SQL asks with words
goes to a process of its own (`text_helper.py`).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasette.utils import StartupError
from datasette.utils.sqlite import sqlite3

from .. import sources, trust, words
from ..daemons import DaemonThreads
from ..database import Collection, collections, item_count, load_vec
from ..distances import RandomPairs, random_pairs
from ..encoders import Encoder, EncoderSpec, restore_encoder
from ..errors import (
    CollectionError,
    EncoderError,
    ExtensionError,
    ImageError,
    ImageSimilarityError,
)
from ..images import LOCAL_FILES, Crop, Decoded, DecoderPool, Limits, Request
from ..index import IndexCache
from ..pipeline import finished_vector
from ..roots import Root, WebRoot, contains, is_address, is_object
from ..text_helper import TextHelper
from .answering import answering
from .compat import configured_tables
from .config import Config, ConfigError, read_config
from .log import Log
from .stored import StoreThreads

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

    from ..encoders.transform import Transform

PICTURE = 1600  # longest side of the large picture, in pixels
THUMBNAIL = 320
ENCODERS_KEPT = 2
HELD_BYTES = 100_000_000  # of all uploads that come in or wait: 25 photos of a telephone
TEXTS_KEPT = 1000  # a page, its histogram and its next page ask with the same words
REMOTE_SECONDS = 10  # that an object of a bucket may take
REMOTE_BYTES = 100_000_000  # of a picture that is read from elsewhere, at most
TEXT_SECONDS = 30  # for words; the first time the model is loaded


BUSY = "Too many pictures and words are being looked at just now. Try again in a moment"


class QueueFull(ImageSimilarityError):
    """Too many uploads are waiting."""


class TooSlow(ImageSimilarityError):
    """The encoder has not answered in time."""


class Held:
    """The bytes of one upload that are in memory, counted with those of all others.

    Uploads come in at the same time, however many, and wait to be looked at one by one.
    """

    def __init__(self, service: Service, config: Config) -> None:
        self._service = service
        # One upload always has room; of a form that is its fields as well.
        self._most = max(HELD_BYTES, 2 * config.upload_max_bytes)
        self._size = 0

    def take(self, size: int) -> None:
        """So many more have come. Raises QueueFull where they are too many."""
        if self._service.held + size > self._most:
            raise QueueFull(BUSY)
        self._service.held += size
        self._size += size

    def release(self) -> None:
        self._service.held -= self._size
        self._size = 0


class Service:
    """Lives as long as its Datasette; made by `service()`."""

    def __init__(self, datasette: Datasette) -> None:
        self.datasette = datasette
        self.indexes = IndexCache()
        self.log = Log()
        self.stored = StoreThreads(datasette)
        self.words = TextHelper()  # for SQL; it starts when it is first asked
        self.exporting = 0  # zip files and contact sheets being made
        self.problem = vec_problem()
        self._inventory: dict[str, tuple[object, list[Collection]]] = {}
        self._configs: dict[tuple[str, str], Config] = {}
        self._pairs: dict[tuple[str, int, str, int], RandomPairs] = {}
        self.held = 0  # bytes of uploads: see `Held`
        self._waiting = 0
        self._thread = DaemonThreads(1, "image-similarity-upload")
        self._encoders: dict[str, Encoder] = {}
        self._texts: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._upload_decoders: dict[Limits, DecoderPool] = {}
        # Few threads show pictures: none waits because a host asks for a pause.
        self._reader = sources.Reader(seconds=REMOTE_SECONDS, patience=0)
        self._pictures = DecoderPool(LOCAL_FILES, min(4, os.cpu_count() or 1))
        self._picture_threads = DaemonThreads(
            min(4, os.cpu_count() or 1), "image-similarity-picture"
        )

    def close(self) -> None:
        """End the threads and child processes, also busy ones. May be called again."""
        self._thread.shutdown()
        self._picture_threads.shutdown()
        for decoders in self._upload_decoders.values():
            decoders.close()
        self._pictures.close()
        self._reader.close()
        self.stored.close()
        self.words.close()

    # What is embedded

    async def collections(self, database: str) -> list[Collection]:
        """The collections of a database, read again when its file has changed, but once
        for a request."""
        db = self.datasette.databases.get(database)
        if db is None:
            return []
        known = self._known_collections(db)
        return known if known is not None else await db.execute_fn(self.reading(db))

    def reading(self, db: Database) -> Callable[[Any], list[Collection]]:
        """As `collections()`, for a SQL thread that has a connection to the database."""
        known = self._known_collections(db)
        if known is not None:
            return lambda _: known
        now, state = answering(), _file_state(db)

        def read(conn: Any) -> list[Collection]:
            found = _readable_collections(conn)
            self._inventory[db.name] = state, found
            if now is not None:
                now.collections[db.name] = found
            if any(collection.store for collection in found):
                self.stored.get_ready()
            return found

        return read

    def _known_collections(self, db: Database) -> list[Collection] | None:
        now = answering()
        if now is not None and db.name in now.collections:
            return now.collections[db.name]
        state, found = self._inventory.get(db.name, (None, None))
        if state is None or state != _file_state(db):
            return None
        if now is not None:
            now.collections[db.name] = found
        return found

    async def collection(
        self, database: str, table: str, name: str | None = None
    ) -> Collection | None:
        """The collection to use for a table: by name, as configured, or the default."""
        return self.choose(await self.collections(database), database, table, name)

    def choose(
        self, there: list[Collection], database: str, table: str, name: str | None
    ) -> Collection | None:
        """As `collection()`, of all that there are in the database."""
        there = [one for one in there if one.table == table]
        name = name or (self.config(database, table).collection if there else None)
        return next((one for one in there if name in (None, one.name)), None)

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

    @contextmanager
    def holding(self, config: Config) -> Iterator[Held]:
        """What counts the bytes of an upload, from the first until it was looked at."""
        held = Held(self, config)
        try:
            yield held
        finally:
            held.release()

    async def embed_upload(
        self, db: Database, data: bytes, collection: Collection, config: Config
    ) -> tuple[bytes, Decoded]:
        """The vector of an uploaded picture, and what was decoded of it.

        Raises QueueFull, ImageError, EncoderError.
        """
        with self._waits(config):
            # Decode first: a file that is no picture need not wait for the model.
            decoded = await self._in_turn(self._decode_upload, data, collection, config)
            return await self._vector(decoded, db, collection, config), decoded

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
            return await self._vector(decoded, db, collection, config)

    async def embed_texts(
        self, texts: Sequence[str], db: Database, collection: Collection, config: Config
    ) -> list[bytes]:
        """The vectors of words, for a collection whose encoder reads them.

        Raises QueueFull, TooSlow, TextError, EncoderError.
        """
        known = self._known_texts(texts, collection)
        if known is not None:
            return known

        async def encode() -> list[bytes]:
            with self._waits(config):
                encoder = await self._encoder(db, collection, config)
                vectors = await self._in_turn(words.encoded, encoder, texts)
            for text, vector in zip(texts, vectors, strict=True):
                self._texts[collection.fingerprint, text] = vector
            while len(self._texts) > TEXTS_KEPT:
                self._texts.popitem(last=False)
            return vectors

        # Shielded: the thread goes on whoever waits, and what it does goes on waiting with
        # it in the queue.
        encoding = asyncio.create_task(encode())
        encoding.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(encoding), TEXT_SECONDS)
        except asyncio.TimeoutError:
            raise TooSlow(
                f"The encoder has not answered within {TEXT_SECONDS} seconds: it may still "
                "be loading. Try again in a moment"
            ) from None

    def _known_texts(
        self, texts: Sequence[str], collection: Collection
    ) -> list[bytes] | None:
        """Their vectors, if all of these were asked with lately."""
        keys = [(collection.fingerprint, text) for text in texts]
        if not all(key in self._texts for key in keys):
            return None
        for key in keys:
            self._texts.move_to_end(key)
        return [self._texts[key] for key in keys]

    @contextmanager
    def _waits(self, config: Config) -> Iterator[None]:
        """One more question waits for the encoder. Raises QueueFull."""
        if self._waiting >= config.upload_queue:
            raise QueueFull(BUSY)
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

    def _decode_upload(
        self, data: bytes, collection: Collection, config: Config
    ) -> Decoded:
        limits = config.upload_limits
        if limits not in self._upload_decoders:
            self._upload_decoders[limits] = DecoderPool(limits, 1)
        spec = EncoderSpec.from_json(collection.encoder)
        # The same request as when embedding: see ImageCollection.encode().
        thumbnail = THUMBNAIL if collection.thumbnails else None
        request = Request(input=spec.input, thumbnail=thumbnail)
        return self._upload_decoders[limits].decode(data, request)

    async def _vector(
        self, decoded: Decoded, db: Database, collection: Collection, config: Config
    ) -> bytes:
        """A picture's vector. Raises ImageError, EncoderError."""
        encoder = await self._encoder(db, collection, config)

        def encode() -> bytes | None:
            return finished_vector(
                encoder.encode(decoded.pixels[None])[0], collection.metric
            )

        vector = await self._in_turn(encode)
        if vector is None:
            raise ImageError("the encoder gave a vector of zeros, NaN or infinity for it")
        return vector

    async def _encoder(
        self, db: Database, collection: Collection, config: Config
    ) -> Encoder:
        """The collection's encoder, loaded where it is not there. Raises EncoderError.

        Who asks keeps hold of it: another collection's may take its place meanwhile.
        """
        encoder = self._encoders.get(collection.fingerprint)
        if encoder is not None:
            return encoder
        from ..learning.stored import stored_transform

        transform = await db.execute_fn(lambda conn: stored_transform(conn, collection))
        spec = EncoderSpec.from_json(collection.encoder)
        return await self._in_turn(self._load, spec, config, transform)

    def _load(
        self, spec: EncoderSpec, config: Config, transform: Transform | None
    ) -> Encoder:
        key = spec.fingerprint
        if key not in self._encoders:
            # Weights that are not here are not fetched on a visitor's behalf: a stranger's
            # database could name gigabytes.
            place = weights_place(spec, config)
            try:
                encoder = restore_encoder(
                    spec, transform=transform, weights_file=place, download=False
                )
            except EncoderError as error:
                raise without_folders(error, place) from error
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
    ) -> list[Root]:
        """Folders and buckets that pictures may be read from.

        Of those recorded in the database, or inside them, the ones that `embed` has noted
        for it in the configuration folder of the user who runs Datasette; then those
        configured. The web has to be configured: who looks at a page should have us fetch
        nothing.
        """
        return self._noted_roots(db, recorded) + config.root_paths

    def _noted_roots(self, db: Database, recorded: list[str]) -> list[Root]:
        noted = trust.trusted_roots(db.path) if db.path is not None else []
        return [
            one
            for one in noted
            if one != WebRoot() and any(contains(root, one) for root in recorded)
        ]

    def file_of(self, db: Database, root: str, path: str, config: Config) -> str | None:
        """Where a picture is, when it lies in a folder or bucket that may be shown."""
        vouched = self._noted_roots(db, [root])
        with suppress(ImageError):
            local = [one for one in config.root_paths if one != WebRoot()]
            return sources.find_vouched(vouched + local, root, path)
        for one in config.root_paths:
            if not isinstance(one, Path) and str(one) != root:
                continue  # a folder may have moved; what is elsewhere is what it is called
            try:
                return sources.find_place(one, path)
            except ImageError:
                continue
        return None

    def read_file(self, file: str) -> bytes:
        """The bytes of what `file_of()` found, for a thread of ours. Raises ImageError."""
        elsewhere = is_object(file) or is_address(file)
        limit = REMOTE_BYTES if elsewhere else LOCAL_FILES.max_bytes
        try:
            return self._reader.read(file, limit)
        except CollectionError as error:  # a bucket that has been away for a while
            raise ImageError(str(error)) from None


def weights_place(spec: EncoderSpec, config: Config) -> Path | None:
    """Where a spec's weights are believed to lie: as configured, or as `embed` has noted in
    the configuration folder of the user who runs Datasette."""
    noted = trust.weights_file(spec.weights_sha256)
    return Path(os.path.expanduser(config.weights)) if config.weights else noted


def without_folders(error: EncoderError, place: Path | None) -> EncoderError:
    """An error as visitors may read it: where the server's folders lie is not for them."""
    said = str(error)
    if place is not None:
        said = said.replace(f"{place.parent}{os.sep}", "…/")
    home = os.path.expanduser("~")  # itself, for a user without one
    return EncoderError(said.replace(home, "~") if len(home) > 1 else said)


def service(datasette: Datasette) -> Service:
    """The service of a Datasette instance."""
    if not hasattr(datasette, "_image_similarity"):
        datasette._image_similarity = Service(datasette)
    return datasette._image_similarity


def vec_problem() -> str:
    """Why SQLite cannot load sqlite-vec here, in a sentence; empty where it can."""
    with closing(sqlite3.connect(":memory:")) as conn:
        try:
            load_vec(conn)
        except ExtensionError as error:
            return str(error)
    return ""


def check_startup(datasette: Datasette) -> None:
    """Say at once, not on the first page, what will not work.

    A wrong setting stops Datasette; a SQLite that cannot load extensions is told on
    standard error, because databases without embeddings work all the same.
    """
    if problem := service(datasette).problem:
        print(f"datasette-image-similarity: {problem}", file=sys.stderr)
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
