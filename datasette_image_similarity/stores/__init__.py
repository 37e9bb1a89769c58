"""Where vectors are kept: in the SQLite file itself, or in an engine beside it.

`VectorIndex` is all that a store has to offer. `sqlite.py` is the first one (vec0 tables),
`milvus.py` the other. Ids are strings that any program can read (`ids.py`); what a picture
is besides its vector stays in SQLite, and every hit is read again from its source row.
`items.py` is what the rest of the package uses: a collection's vectors by item, wherever
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from ..progress import Say, silent

T = TypeVar("T")

# What a search or a listing may be narrowed by: an exact value, or a sequence of which one
# must match. Anything richer is resolved to ids in SQLite first.
FIELDS = ("id", "source", "sha256")
Where = Mapping[str, "str | Sequence[str]"]


@dataclass(frozen=True)
class Space:
    """What makes vectors comparable. A store refuses vectors of another space."""

    fingerprint: str  # of the encoder: EncoderSpec.fingerprint
    dimensions: int
    metric: str  # "cosine" or "l2"


class Entry(NamedTuple):
    """A vector on its way into a store.

    `id` as `ids.entry_id()` writes it. `vector` is float32, little-endian, `dimensions`
    numbers, of length 1 for the metric cosine. `sha256` is that of the picture: what
    is read back without the one that SQLite knows is stale.
    """

    id: str
    vector: bytes
    sha256: str


class Known(NamedTuple):
    """What a store says it has, without the vector."""

    id: str
    sha256: str


class Found(NamedTuple):
    """A hit. `distance` is in the space's metric: 1 - cosine similarity, or Euclidean."""

    id: str
    distance: float
    sha256: str


@dataclass(frozen=True)
class Stats:
    """What a store is like. `bytes` are those on disk, None where that is not known.

    `exact` says that a search compares with every vector. `index` is what the engine has
    in place of that: its type and parameters, as the engine names them.
    """

    count: int
    bytes: int | None = None
    exact: bool = True
    index: Mapping[str, object] = field(default_factory=dict)


class VectorIndex(Protocol):
    """Vectors of one space by id, kept somewhere.

    Writing is idempotent: what was cut off is done again from the start. What was written
    is seen by the same object's next call. All methods raise StoreError when the store is
    away, does not answer within its deadline, or refuses.
    """

    url: str  # as a collection remembers it, without secrets
    space: Space

    def ensure(self) -> None:
        """Make it where it is missing. Raises StoreError where it is of another space."""

    def upsert(self, entries: Iterable[Entry]) -> None:
        """Put vectors in, in place of those with the same ids.

        Raises StoreError for a vector of another length or one that is not finite: then
        none of the entries was written.
        """

    def delete(self, ids: Iterable[str]) -> None:
        """Take vectors out. Ids that are not there are passed over."""

    def search(self, vector: bytes, k: int, where: Where | None = None) -> list[Found]:
        """The `k` nearest to a vector (float32 bytes), best first, ties by id.

        Fewer only where there are fewer.
        """

    def ids(
        self, after: str = "", limit: int = 1000, where: Where | None = None
    ) -> list[Known]:
        """The next ids after a given one, in order of their code points (UTF-8 bytes)."""

    def vectors(self, ids: Sequence[str]) -> dict[str, bytes]:
        """The vectors of ids, float32 bytes. Ids that are not there are left out."""

    def stats(self, where: Where | None = None) -> Stats:
        """How many there are, and how they are searched."""

    def clear(self, where: Where) -> None:
        """Take out everything that fulfils this; with nothing left, the whole store,
        unless others may be writing into it."""

    def close(self) -> None:
        """Let go of connections. The store stays."""


class TunableIndex(VectorIndex, Protocol):
    """A store whose engine has indexes of its own, of several types."""

    search_params: dict[str, Any]  # that go with each search, as the engine names them

    def index_with(
        self,
        type: str,
        params: Mapping[str, Any] | None = None,
        *,
        say: Say = silent,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Have the engine make its index anew, of a type and with parameters as it names
        them; `search_params` of another type are forgotten.

        Raises StoreError for what it refuses: then the index is as it was. Stopped when
        `stop()` turns true, which leaves the engine building.
        """


def blocks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """A sequence in parts of so many, the last one shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def pages(
    index: VectorIndex, where: Where | None = None, limit: int = 1000
) -> Iterator[list[Known]]:
    """Everything in a store, page by page, in order of the ids."""
    after = ""
    while page := index.ids(after, limit, where):
        yield page
        after = page[-1].id
