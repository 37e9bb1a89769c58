"""What is read from stores beside the databases: in threads of our own, with connections of
our own. Datasette's SQL threads wait for no store, so that an engine that is slow or away
takes nothing else with it.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from datasette.utils.sqlite import sqlite3

from .. import trust
from ..database import Collection, Connection
from ..errors import ImageSimilarityError, StoreError
from ..functions import AskStore
from ..query import SearchTimeout, deadline
from ..stores.opening import Stores
from ..stores.patience import within
from ..stores.remote import RemoteVectors
from .config import ConfigError, read_config

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

THREADS = 4
QUEUE = 16  # questions that wait for a thread; more are refused at once
IMPORTING = 20.0  # seconds that a question waits for Python's part of a store, at most
GRACE = 0.5  # seconds after its deadline in which a thread should have given up itself
SHARE = 0.8  # of Datasette's time limit for SQL: how long a SQL function waits for a store
LONGEST = 200  # characters of a URL that are shown: it may come from anybody
WAITED = "The store with the vectors has not answered within {:g} seconds"

Work = Callable[[sqlite3.Connection], Any]


class QueueFull(ImageSimilarityError):
    """Too many questions are waiting."""


class StoreThreads:
    """Threads that may wait for a store, each with a connection to each database.

    Connections are opened as Datasette opens its own, read-only and with the SQL functions
    of all plugins; in addition they have stores, of which those may be opened that
    somebody has vouched for: the user by a command, or the configuration.
    """

    def __init__(self, datasette: Datasette) -> None:
        self._datasette = datasette
        self._pool = ThreadPoolExecutor(THREADS, "image-similarity-store")
        self._own = threading.local()
        self._lock = threading.Lock()
        self._ready: Future | None = None
        self._asked = 0  # waiting or being answered
        self._stores: dict[str, tuple[Database, Stores]] = {}
        self._connections: list[Connection] = []

    def get_ready(self) -> Future:
        """Have what asking takes imported: seconds, which are no engine's fault."""
        with self._lock:
            if self._ready is None:
                self._ready = self._pool.submit(_import_client)
            return self._ready

    async def ask(self, db: Database, work: Work, seconds: float) -> Any:
        """What `work` returns of a connection, within so many seconds for everything.

        Raises StoreError, SearchTimeout, and QueueFull where too many wait.
        """
        await asyncio.wait([asyncio.wrap_future(self.get_ready())], timeout=IMPORTING)
        future = asyncio.wrap_future(self._submit(db, work, seconds))
        try:
            return await asyncio.wait_for(future, seconds + GRACE)
        except asyncio.TimeoutError:
            raise StoreError(WAITED.format(seconds)) from None

    def ask_now(self, db: Database, work: Work, seconds: float) -> Any:
        """As `ask()`, for a thread that waits."""
        future = self._submit(db, work, seconds)
        try:
            return future.result(seconds)
        except FutureTimeout:
            future.cancel()
            raise StoreError(WAITED.format(seconds)) from None

    def close(self) -> None:
        """End the threads; what still waits for a store is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for _, stores in self._stores.values():
                stores.close()
            while self._asked == 0 and self._connections:
                self._close(self._connections.pop())

    def _submit(self, db: Database, work: Work, seconds: float) -> Future:
        with self._lock:
            if self._asked >= THREADS + QUEUE:
                raise QueueFull(
                    "Too many questions wait for the store with the vectors just now. Try "
                    "again in a moment"
                )
            self._asked += 1
        until = time.monotonic() + seconds
        future = self._pool.submit(self._answer, db, work, until, seconds)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: Future) -> None:
        with self._lock:
            self._asked -= 1

    def _answer(self, db: Database, work: Work, until: float, seconds: float) -> Any:
        left = until - time.monotonic()
        if left <= 0:
            raise StoreError(WAITED.format(seconds))
        conn = self._connection(db)
        try:
            with within(left), deadline(conn, left):
                return work(conn)
        except SearchTimeout:
            if left > seconds / 2:
                raise  # its own time, not that of those before it
            raise StoreError(WAITED.format(seconds)) from None

    # Connections

    def _connection(self, db: Database) -> Connection:
        """This thread's connection to a database, for as long as that is the same one."""
        known = vars(self._own).setdefault("connections", {})
        of, conn = known.get(db.name, (None, None))
        if of is not db:
            if conn is not None:
                self._connections.remove(conn)
                self._close(conn)
            conn = self._open(db)
            known[db.name] = db, conn
        return conn

    def _open(self, db: Database) -> Connection:
        conn = sqlite3.connect(
            _address(db, self._datasette),
            uri=True,
            check_same_thread=False,
            factory=Connection,
        )
        conn.stores = self._stores_of(db)
        if db.memory_name:
            conn.execute("pragma query_only = 1")
        self._datasette._prepare_connection(conn, db.name)
        self._connections.append(conn)
        return conn

    def _stores_of(self, db: Database) -> Stores:
        with self._lock:
            of, stores = self._stores.get(db.name, (None, None))
            if of is not db:
                config = read_config(self._datasette, db.name)

                def vouched(url: str) -> bool:
                    noted = trust.trusted_stores(db.path) if db.path else []
                    return url in noted or url in config.store_urls

                stores = Stores(vouched, deadline=config.store_seconds)
                self._stores[db.name] = db, stores
            return stores

    def _close(self, conn: Connection) -> None:
        conn.stores = None  # others use them as well
        conn.close()


def _import_client() -> None:
    with suppress(ImportError):  # said in words when it is needed
        importlib.import_module("pymilvus")


def _address(db: Database, datasette: Datasette) -> str:
    """The address of a database for SQLite, as Datasette itself opens it to read."""
    if db.memory_name:
        return f"file:{db.memory_name}?mode=memory&cache=shared"
    if db.path is None:
        raise StoreError(f"The database {db.name} is in memory, each thread's its own")
    if not db.is_mutable:
        return f"file:{quote(str(db.path))}?immutable=1"
    nolock = "&nolock=1" if datasette.nolock else ""
    return f"file:{quote(str(db.path))}?mode=ro{nolock}"


def shown_url(url: str) -> str:
    """A store's URL as visitors may read it: where files lie on the server, and what
    computers there are beside it, is not for them."""
    scheme, _, rest = url.partition(":")
    shown = f"{scheme}:{PurePath(rest).name}" if rest else url
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"


def shown_error(error: StoreError, collection: Collection) -> StoreError:
    """An error of a collection's store as visitors may read it."""
    said, url = error.said, collection.store
    address = url.partition(":")[2]
    host = address.removeprefix("//").rpartition("/")[0]
    said = said.replace(url, shown_url(url))
    if address.startswith("//") and host:
        return StoreError(said.replace(f" at {host}", ""))
    return StoreError(said.replace(address, PurePath(address).name))


async def store_problem(
    threads: StoreThreads, db: Database, collection: Collection, seconds: float
) -> str:
    """Why a collection's store cannot be asked now, in words; "" where it can be."""

    def look(conn: sqlite3.Connection) -> None:
        RemoteVectors(conn, collection).try_out()

    try:
        await threads.ask(db, look, seconds)
    except StoreError as error:
        return str(shown_error(error, collection))
    except (ImageSimilarityError, sqlite3.Error) as error:
        return str(error)
    return ""


def store_asker(
    datasette: Datasette, database: str, threads: StoreThreads
) -> AskStore | None:
    """How SQL functions ask stores, for connections to a database; None where that is off.

    They wait for SHARE of Datasette's own time limit at most.
    """
    try:
        if not read_config(datasette, database).sql_store:
            return None
    except ConfigError:  # Datasette says so when it starts
        return None
    seconds = sql_seconds(datasette)

    def ask(work: Work) -> Any:
        return threads.ask_now(datasette.databases[database], work, seconds)

    return ask


def sql_seconds(datasette: Datasette) -> float:
    """How long SQL, and what is shown beside other things, waits for a store."""
    return SHARE * datasette.setting("sql_time_limit_ms") / 1000
