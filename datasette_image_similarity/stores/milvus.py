"""Vectors in Milvus: a server, or the file of milvus-lite for one computer.

One Milvus collection holds one space; the tables whose vectors are in it are told apart
by the field `source`. The space is written down in the collection itself, so that nobody
mixes what cannot be compared. pymilvus is imported when something is asked for first.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import Stopped, StoreError
from ..progress import Say, silent
from . import FIELDS, Entry, Found, Known, Space, Stats, Where, blocks, pages
from .ids import source_of_id
from .patience import left

if TYPE_CHECKING:
    import numpy as np
    from pymilvus import MilvusClient

TOKEN = "MILVUS_TOKEN"  # the environment variable
LITE_COLLECTION = "image_similarity"  # a file of milvus-lite holds this one

# Milvus hands over no more hits, nor rows, at once than this.
MOST = 16_384
# A server takes messages up to 64 MB, and answers less gladly the longer they are.
BLOCK_BYTES = 8_000_000
IDS_AT_ONCE = 10_000
# Bytes of UTF-8.
LENGTHS = {"id": 65_535, "source": 1024, "sha256": 64}

METRICS = {"cosine": "COSINE", "l2": "L2"}
# What answers with distances to the vectors themselves. All others (IVF_SQ8, IVF_PQ, …)
# answer with those to what is left of them: some more are fetched and ordered anew.
TRUE_DISTANCES = ("FLAT", "HNSW", "IVF_FLAT", "DISKANN", "BRUTE_FORCE")
OVERSAMPLED = 4
# How far back an answer may lie: to what this client has written, which costs nothing, or
# not at all, which a server takes 0.3 s for.
USUAL, STRONG = "Session", "Strong"

CONNECTING = 3.0  # seconds: a server that is there answers in some milliseconds
LOADING = 120.0  # seconds, for a big collection
PATIENCE = 1800.0  # seconds, with an index of which no more rows get done
INDEX_KNOWN_FOR = 10.0  # seconds, until it is asked again what index there is
RECORD = "image_similarity"  # where a collection says what its space is
# What the description of an index tells besides its parameters.
NOT_PARAMETERS = ("index_type", "metric_type", "index_name", "field_name", "state")
NOT_PARAMETERS += ("total_rows", "indexed_rows", "pending_index_rows")
NOT_PARAMETERS += ("index_state_fail_reason",)


class Address(NamedTuple):
    """Where a store is: `uri` for pymilvus, and the collection there."""

    url: str  # in its one full form, without secrets
    uri: str
    collection: str

    @property
    def lite(self) -> bool:
        return self.url.startswith("milvus-lite:")


def parse(url: str) -> Address:
    """Where a URL leads to. Raises StoreError for what is none.

        milvus://HOST[:19530]/NAME    a server; milvuss:// with TLS
        milvus-lite:FILE.db           relative to the working directory

    Secrets have no place in it: the token is that of the environment.
    """
    scheme, colon, rest = url.partition(":")
    if not colon or scheme not in ("milvus", "milvuss", "milvus-lite"):
        raise StoreError(
            f"{_shown(url)!r} is no store: milvus://HOST:19530/NAME or milvus-lite:FILE.db"
        )
    if scheme == "milvus-lite":
        if not rest.endswith(".db") or "\0" in rest:
            raise StoreError(f"{url!r}: the file of milvus-lite has to end in .db")
        path = os.path.abspath(os.path.expanduser(rest))
        return Address(f"milvus-lite:{path}", path, LITE_COLLECTION)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 19530
    except ValueError as error:
        raise StoreError(f"{_shown(url)!r}: {error}") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise StoreError(
            f"{_shown(url)!r} must hold no password or token: put it into the environment "
            f"variable {TOKEN}"
        )
    name = parts.path.removeprefix("/")
    if not host or not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
        raise StoreError(
            f"{url!r}: there is no host in it, as in {scheme}://HOST:19530/NAME"
        )
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name):
        raise StoreError(
            f"{url!r}: Milvus names its collections with letters, digits and _ only, and "
            f"no digit first: not {name!r}"
        )
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    protocol = "https" if scheme == "milvuss" else "http"
    return Address(f"{scheme}://{where}/{name}", f"{protocol}://{where}", name)


def _shown(url: str) -> str:
    """A URL as it may be shown to anybody: without what may be a secret in it."""
    return re.sub(r"//[^/]*@", "//…@", url.partition("?")[0].partition("#")[0])


class Milvus:
    """A `VectorIndex` in a collection of Milvus.

    `deadline`: seconds that a request may take; a write or a long list takes several.
    `search_params` go with every search, as the index has them: ef, nprobe, search_list.
    May be used by several threads at once. Closed, or after the server was away, it
    connects again when it is asked the next time.
    """

    def __init__(
        self,
        url: str,
        space: Space,
        *,
        deadline: float = 10.0,
    ) -> None:
        self.address = parse(url)
        self.url = self.address.url
        self.space = space
        self.deadline = deadline
        self.search_params: dict[str, Any] = {}
        self._client: MilvusClient | None = None
        self._connecting = threading.RLock()
        self._checked = False
        self._settled = not self.address.lite
        self._index: dict[str, Any] = {}
        self._index_read = -INDEX_KNOWN_FOR

    # The protocol

    def ensure(self) -> None:
        """Make the collection where it is missing, and have it loaded for searches."""
        client = self._connected()
        if not self._ask("has_collection", client=client):
            self._create(client)
        self._check(client)
        if not self._ask("describe_index", "embedding", client=client):
            self._put_index("FLAT", {}, client)
        self._ask("load_collection", client=client, timeout=max(self.deadline, LOADING))

    def upsert(self, entries: Iterable[Entry]) -> None:
        # With an id twice in a request, Milvus would keep both.
        rows = list({entry.id: self._row(entry) for entry in entries}.values())
        self._check_finite(rows)
        for block in blocks(rows, self._rows_at_once()):
            self._ask("upsert", list(block))
        self._settled = not self.address.lite

    def delete(self, ids: Iterable[str]) -> None:
        for expression in expressions({"id": list(ids)}):
            self._ask("delete", filter=expression)
        self._settled = not self.address.lite

    def search(self, vector: bytes, k: int, where: Where | None = None) -> list[Found]:
        if k > MOST:
            raise StoreError(f"Milvus finds at most {MOST:,} at once, not {k:,}")
        if k < 1:
            return []
        query = self._floats([vector])[0]
        self._settle()

        def ask(consistency: str) -> list[Found]:
            return [
                hit
                for only in expressions(where)
                for hit in self._nearest(query, k, only, consistency)
            ]

        hits = ask(USUAL) or (ask(STRONG) if self._may_lag else [])
        return sorted(hits, key=_by_distance)[:k]

    def ids(
        self, after: str = "", limit: int = 1000, where: Where | None = None
    ) -> list[Known]:
        self._settle()
        found = [
            known for only in expressions(where) for known in self._ids(after, limit, only)
        ]
        return sorted(found)[:limit]

    def vectors(self, ids: Sequence[str]) -> dict[str, bytes]:
        found = self._vectors(ids, USUAL)
        if self._may_lag and (missed := [id for id in ids if id not in found]):
            found |= self._vectors(missed, STRONG)
        return found

    def _vectors(self, ids: Sequence[str], consistency: str) -> dict[str, bytes]:
        import numpy as np

        found = {}
        for only in expressions({"id": ids}, min(IDS_AT_ONCE, self._rows_at_once())):
            for row in self._query(only, ["embedding"], consistency_level=consistency):
                found[row["id"]] = np.array(row["embedding"], dtype="<f4").tobytes()
        return found

    def stats(self, where: Where | None = None) -> Stats:
        self._settle()
        count = 0
        for only in expressions(where):
            rows = self._query(only, ["count(*)"], consistency_level=STRONG)
            count += rows[0]["count(*)"]
        told = self._described_index()
        index = {"type": told["index_type"]} | _parameters(told)
        size = _size_of(Path(self.address.uri)) if self.address.lite else None
        return Stats(count, size, index["type"] == "FLAT", index)

    def clear(self, where: Where) -> None:
        for page in pages(self, where, IDS_AT_ONCE):
            self.delete(known.id for known in page)
        # A file is this process's alone. On a server somebody may write between a count
        # and a drop, and nothing there drops a collection only where it is empty.
        if self.address.lite and self.stats().count == 0:
            self._ask("drop_collection")

    def close(self) -> None:
        with self._connecting:
            client, self._client, self._checked = self._client, None, False
        if client is not None:
            client.close()

    # The index

    def index_with(
        self,
        type: str,
        params: Mapping[str, Any] | None = None,
        *,
        say: Say = silent,
        stop: Callable[[], bool] = lambda: False,
        patience: float = PATIENCE,
    ) -> None:
        """Make the engine's index anew, of any type it has: FLAT, HNSW, IVF_FLAT, DISKANN …

        `params` as the engine names them: M, efConstruction, nlist …; `search_params` of
        another type are forgotten. Until it is built nothing can be searched for.
        Milvus 2.3 on local storage under an absolute path loses vectors that are read from
        under IVF_SQ8 or IVF_PQ: `demo/milvus_server.py` gives it a relative one.
        `stop()` turning true leaves the engine building, and raises Stopped.
        Raises StoreError for what the engine refuses, or has not got on with for
        `patience` seconds (it tries in vain for ever): then the index is as it was.
        """
        before = dict(self._described_index())
        self._ask("flush", timeout=max(self.deadline, LOADING))
        self._ask("release_collection")
        self._ask("drop_index", "embedding")
        if before["index_type"] != type:
            self.search_params = {}
        try:
            self._put_index(type, params or {})
            self._wait_until_built(say, stop, patience)
        except StoreError:
            for undo in (
                lambda: self._ask("drop_index", "embedding"),
                lambda: self._put_index(before["index_type"], _parameters(before)),
            ):
                with suppress(StoreError):
                    undo()
            raise
        finally:
            self._ask("load_collection", timeout=max(self.deadline, LOADING))

    def _wait_until_built(
        self, say: Say, stop: Callable[[], bool], patience: float
    ) -> None:
        built, since = -1, time.monotonic()
        while True:
            told = self._ask("describe_index", "embedding")
            say("building the index", told["indexed_rows"], told["total_rows"])
            if told["state"] == "Finished" and not told["pending_index_rows"]:
                return
            if told["indexed_rows"] != built:
                built, since = told["indexed_rows"], time.monotonic()
            if told["state"] == "Failed" or time.monotonic() - since > patience:
                reason = told.get("index_state_fail_reason") or "see what its log says"
                raise StoreError(f"{self._server()} does not build the index: {reason}")
            if stop():
                raise Stopped
            time.sleep(0.2)

    # Rows

    def _row(self, entry: Entry) -> dict[str, Any]:
        """An entry as Milvus takes it. Raises StoreError for what does not fit."""
        source = source_of_id(entry.id)
        row = {"id": entry.id, "source": source, "sha256": entry.sha256}
        for name, value in row.items():
            try:
                length = len(value.encode("utf-8"))
            except UnicodeEncodeError:
                raise StoreError(f"{entry.id!r}: its {name} is not Unicode") from None
            if length > LENGTHS[name]:
                raise StoreError(
                    f"{entry.id[:60]}…: its {name} has {length:,} bytes, and Milvus keeps "
                    f"{LENGTHS[name]:,}"
                )
        return row | {"embedding": self._floats([entry.vector], entry.id)[0]}

    def _floats(self, vectors: Sequence[bytes], whose: str = "The vector") -> np.ndarray:
        """Vectors as float32 (n, dimensions). Raises StoreError for another length."""
        import numpy as np

        for vector in vectors:
            if len(vector) != 4 * self.space.dimensions:
                raise StoreError(
                    f"{whose}: {len(vector):,} bytes are no vector of "
                    f"{self.space.dimensions:,} float32 numbers"
                )
        return np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), -1)

    def _check_finite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        import numpy as np

        for row in rows:
            if not np.isfinite(row["embedding"]).all():
                raise StoreError(f"{row['id']}: its vector has numbers that are not finite")

    def _rows_at_once(self) -> int:
        return min(MOST, max(1, BLOCK_BYTES // (4 * self.space.dimensions)))

    # Questions

    def _settle(self) -> None:
        """Have milvus-lite write out what it was sent: it reads its log 20 times slower."""
        if not self._settled:
            self._ask("flush", timeout=max(self.deadline, LOADING))
            self._settled = True

    @property
    def _may_lag(self) -> bool:
        """Whether what is not found may be there: a server that was started again answers
        before it has read its log, some seconds to a minute long, unless it is told to
        be consistent."""
        return not self.address.lite

    def _nearest(
        self, query: np.ndarray, k: int, only: str, consistency: str
    ) -> list[Found]:
        """The `k` nearest, and all that tie with the last: which are told apart by id."""
        wanted = min(k + 1, MOST)
        while True:
            hits = sorted(self._hits(query, wanted, only, consistency), key=_by_distance)
            ends = len(hits) < wanted or wanted == MOST
            if ends or hits[-1].distance > hits[k - 1].distance:
                return hits
            wanted = min(4 * wanted, MOST)

    def _hits(
        self, query: np.ndarray, k: int, only: str, consistency: str
    ) -> Iterator[Found]:
        """The nearest of those that fulfil an expression."""
        exact = self._described_index()["index_type"] in TRUE_DISTANCES
        wanted = k if exact else min(OVERSAMPLED * k, MOST)
        [hits] = self._ask(
            "search",
            data=[query],
            filter=only,
            limit=wanted,
            anns_field="embedding",
            output_fields=["sha256"] if exact else ["sha256", "embedding"],
            search_params={"params": self._params_for(wanted)},
            consistency_level=consistency,
        )
        for hit in hits:
            entity = hit["entity"]
            if exact:
                distance = self._distance(hit["distance"])
            else:
                distance = self._true_distance(query, entity["embedding"])
            yield Found(hit["id"], distance, entity["sha256"])

    def _params_for(self, wanted: int) -> dict[str, Any]:
        """The search parameters; those that may not be below the hits wanted are not."""
        params = dict(self.search_params)
        for name in ("ef", "search_list"):
            if name in params:
                params[name] = max(params[name], wanted)
        return params

    def _distance(self, told: float) -> float:
        """A distance in the space's metric: Milvus tells similarity, or the square."""
        if self.space.metric == "cosine":
            return max(1.0 - told, 0.0)
        return max(told, 0.0) ** 0.5

    def _true_distance(self, query: np.ndarray, numbers: Sequence[float]) -> float:
        import numpy as np

        vector = np.array(numbers, dtype=np.float32)
        if self.space.metric == "l2":
            return float(np.linalg.norm(query - vector))
        norms = np.linalg.norm(query) * np.linalg.norm(vector)
        return max(1.0 - float(query @ vector / norms), 0.0)

    def _ids(self, after: str, limit: int, only: str) -> list[Known]:
        """The next ids of those that fulfil an expression.

        Asked for as pymilvus's iterator does: a plain query with a limit promises no
        order. An answer may be shorter than the limit before the end. The collection's
        own consistency is valid for it, which is Strong.
        """
        found: list[Known] = []
        while len(found) < limit:
            beyond = f"id > {_quoted(after)}"
            rows = self._query(
                f"({only}) and {beyond}" if only else beyond,
                ["sha256"],
                limit=min(limit - len(found), MOST),
                iterator="True",
                reduce_stop_for_best="True",
            )
            if not rows:
                break
            found += [Known(row["id"], row["sha256"]) for row in rows]
            after = found[-1].id
        return found

    def _query(self, only: str, fields: list[str], **options: Any) -> list[dict[str, Any]]:
        options = {"consistency_level": USUAL} | options
        return list(self._ask("query", filter=only, output_fields=fields, **options))

    # The collection

    def _create(self, client: MilvusClient) -> None:
        from pymilvus import DataType

        record = json.dumps({RECORD: self.space.__dict__})
        # A server keeps the description, milvus-lite the properties.
        schema = client.create_schema(
            auto_id=False, enable_dynamic_field=False, description=record
        )
        for name in FIELDS:
            schema.add_field(
                name,
                DataType.VARCHAR,
                max_length=LENGTHS[name],
                is_primary=name == "id",
            )
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=self.space.dimensions)
        try:
            self._ask(
                "create_collection",
                client=client,
                schema=schema,
                properties={RECORD: record},
                consistency_level=STRONG,
            )
        except StoreError:
            # Somebody else was quicker: whether it is ours is seen next.
            if not self._ask("has_collection", client=client):
                raise

    def _check(self, client: MilvusClient) -> None:
        """Raise StoreError where the collection is of another space, or not ours."""
        told = self._ask("describe_collection", client=client)
        record = told["description"] or told["properties"].get(RECORD, "")
        try:
            space = Space(**json.loads(record)[RECORD])
        except (ValueError, TypeError, KeyError):
            raise StoreError(
                f"{self._called()} was made by something else: take another name"
            ) from None
        for what, there, here in (
            ("dimensions", space.dimensions, self.space.dimensions),
            ("the metric", space.metric, self.space.metric),
            ("the encoder", space.fingerprint, self.space.fingerprint),
        ):
            if there != here:
                raise StoreError(
                    f"{self._called()} holds vectors of another space, {what}: {there}, "
                    f"not {here}. Take another name in the URL (--store, --to)"
                )

    def _put_index(
        self, type: str, params: Mapping[str, Any], client: MilvusClient | None = None
    ) -> None:
        client = client or self._ready()
        wanted = client.prepare_index_params()
        wanted.add_index(
            "embedding",
            index_type=type,
            metric_type=METRICS[self.space.metric],
            params=dict(params),
        )
        self._ask("create_index", wanted, client=client, sync=False)
        self._index_read = -INDEX_KNOWN_FOR

    def _described_index(self) -> dict[str, Any]:
        """What the engine says of its index. Not asked every time."""
        if time.monotonic() - self._index_read > INDEX_KNOWN_FOR:
            index = self._ask("describe_index", "embedding")
            if not index:
                raise StoreError(f"{self._called()} has no index: it is being made anew?")
            self._index, self._index_read = index, time.monotonic()
        return self._index

    # The connection

    def _called(self) -> str:
        name, address = self.address.collection, self._server()
        return f"The collection {name!r} in {address}"

    def _server(self) -> str:
        if self.address.lite:
            return f"milvus-lite's {self.address.uri}"
        return f"Milvus at {self.address.uri.partition('//')[2]}"

    def _connected(self) -> MilvusClient:
        with self._connecting:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _ready(self) -> MilvusClient:
        """The client, for a collection that is there, loaded, and of our space."""
        client = self._connected()
        if not self._checked:
            self._check(client)
            self._ask("load_collection", client=client)
            self._index_read = -INDEX_KNOWN_FOR
            if self._may_lag:
                count = {"output_fields": ["count(*)"], "consistency_level": STRONG}
                self._ask("query", client=client, filter="", **count)
            self._checked = True
        return client

    def _connect(self) -> MilvusClient:
        try:
            from pymilvus import MilvusClient
        except ImportError as error:
            raise StoreError(
                f"{self._server()} needs pymilvus: "
                "pip install 'datasette-image-similarity[milvus]'"
            ) from error
        # They print every error, with a traceback, besides raising it.
        for name in ("pymilvus", "milvus_lite"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._knock()
        return self._told(
            lambda: MilvusClient(
                self.address.uri,
                token="" if self.address.lite else os.environ.get(TOKEN, ""),
                timeout=left(min(self.deadline, CONNECTING)),
                dedicated=True,
            )
        )

    def _knock(self) -> None:
        """See whether somebody listens at all: pymilvus would try for a long time."""
        if self.address.lite:
            return
        parts = urlsplit(self.address.uri)
        try:
            address = (parts.hostname, parts.port)
            seconds = left(min(self.deadline, CONNECTING))
            socket.create_connection(address, seconds).close()
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"{self._server()} does not answer", reason) from None

    def _ask(
        self, method: str, *args: Any, client: MilvusClient | None = None, **options: Any
    ) -> Any:
        """Call a method of the client for our collection. Raises StoreError."""
        client = client or self._ready()
        options = {"timeout": left(self.deadline)} | options
        return self._told(
            lambda: getattr(client, method)(self.address.collection, *args, **options)
        )

    def _told(self, call: Callable[[], Any]) -> Any:
        """What a call returns, or a StoreError in words."""
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            return call()
        except MilvusException as error:
            problem = self._problem(error.code, error.message)
        except grpc.RpcError as error:
            problem = self._problem(error.code(), error.details())
        raise problem

    def _problem(self, code: object, message: str) -> StoreError:
        """An error of Milvus's in words. A connection that is lost is let go of."""
        import grpc
        from pymilvus.client.types import Status
        from pymilvus.exceptions import ErrorCode

        if code == ErrorCode.COLLECTION_NOT_FOUND:
            self._checked = False
            return StoreError(f"{self._called()} is not there (any more)")
        if code == grpc.StatusCode.UNAUTHENTICATED or "auth check failure" in message:
            return StoreError(f"{self._server()} wants a token, or another one: {TOKEN}")
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return StoreError(
                f"{self._server()} did not answer within {self.deadline:g} seconds"
            )
        if self.address.lite and "Open local milvus failed" in message:
            return StoreError(
                f"{self._server()} cannot be opened: one process at a time can use it "
                "(is Datasette running?), and its folder must be there and writable"
            )
        if isinstance(code, grpc.StatusCode) or code == Status.CONNECT_FAILED:
            self.close()
            return StoreError(f"{self._server()} does not answer", message)
        return StoreError(f"{self._server()} refuses", message)


def expressions(where: Where | None, at_once: int = IDS_AT_ONCE) -> Iterator[str]:
    """A filter as Milvus writes it; a long list of values in several parts.

    Together they fulfil what was asked for, each row one of them at most. An empty list
    has no expression: nothing matches. No filter at all is "".
    """
    values = {name: _values(name, wanted) for name, wanted in (where or {}).items()}
    if not all(values.values()):
        return
    if not values:
        yield ""
        return
    longest = max(values, key=lambda name: len(values[name]))
    rest = [_one_of(name, some) for name, some in values.items() if name != longest]
    for block in blocks(values[longest], at_once):
        yield " and ".join([*rest, _one_of(longest, block)])


def _values(name: str, wanted: str | Sequence[str]) -> list[str]:
    if name not in FIELDS:
        raise StoreError(f"There is no field {name!r} to filter by: {', '.join(FIELDS)}")
    return [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))


def _one_of(name: str, values: Sequence[str]) -> str:
    # milvus-lite looks ids up where they are listed, and compares with all otherwise.
    if len(values) == 1 and name != "id":
        return f"{name} == {_quoted(values[0])}"
    return f"{name} in [{','.join(map(_quoted, values))}]"


def _parameters(index: Mapping[str, Any]) -> dict[str, Any]:
    """What an index was made with, of its description."""
    return {name: index[name] for name in index if name not in NOT_PARAMETERS}


def _by_distance(hit: Found) -> tuple[float, str]:
    return hit.distance, hit.id


_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def _quoted(text: str) -> str:
    """A string as a server and milvus-lite both read it."""
    return f'"{text.translate(_ESCAPES)}"'


def _size_of(folder: Path) -> int:
    """Bytes of all files below a folder. What vanishes meanwhile does not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
