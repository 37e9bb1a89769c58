"""Which collection a page is about, and the others over its table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from ..database import Collection
from ..encoders import EncoderSpec
from ..errors import EncoderError
from ..folding import OURS
from .question import ASKED, Place, is_filter

if TYPE_CHECKING:
    from .service import Service

# Parameters that mean something in one collection alone: its pages, its distances, what
# was numbered there.
OF_ONE_COLLECTION = (
    *("_collection", "_with", "_next", "_max_distance", "_group"),
    *("_image_region", "_image_group", "_image_cluster"),
)

NOT_COMPARED = ("_max_distance", "_histogram")


@dataclass(frozen=True)
class Choice:
    """A collection, and the address of the same page in it."""

    name: str
    encoder: str  # in words
    dimensions: int
    url: str
    here: bool  # the page is about it
    usual: bool  # pages use it where none is named

    @property
    def words(self) -> str:
        return f"{self.encoder}, {self.dimensions:,} numbers a picture"


def encoder_in_words(collection: Collection) -> str:
    """What made its vectors. A database may come from a stranger, or from the future."""
    try:
        return str(EncoderSpec.from_json(collection.encoder))
    except EncoderError:
        return "an unknown encoder"


async def collections_of(service: Service, database: str, table: str) -> list[Collection]:
    """The collections over a table, the one that pages use first."""
    usual = await service.collection(database, table)
    there = [one for one in await service.collections(database) if one.table == table]
    return sorted(there, key=lambda one: one != usual)


async def choices(place: Place) -> list[Choice]:
    """The collections over a page's table, or none where there is no choice."""
    there = await collections_of(place.service, place.database, place.table)
    if len(there) < 2:
        return []
    usual = await place.service.collection(place.database, place.table)
    page = place.request.path.rpartition("/-/")[2].partition("/")[0]
    kept = [
        (name, value)
        for name in place.request.args
        for value in place.request.args.getlist(name)
        if not (name in OF_ONE_COLLECTION or (name == "_one_per" and value in OURS))
    ]

    def url(collection: Collection) -> str:
        named = [] if collection == usual else [("_collection", collection.name)]
        return _address(place.path(page), [*kept, *named])

    return [
        Choice(
            name=one.name,
            encoder=encoder_in_words(one),
            dimensions=one.dimensions,
            url=url(one),
            here=one.id == place.collection.id,
            usual=one == usual,
        )
        for one in there
    ]


def compare_url(place: Place) -> str:
    """The page that asks what a page asks of two collections, this one and another."""
    args = place.request.args
    kept = [
        (name, value)
        for name in args
        for value in args.getlist(name)
        if is_filter(name) or (name in ASKED and name not in NOT_COMPARED)
    ]
    return _address(place.path("compare"), kept)


def _address(path: str, pairs: list[tuple[str, str]]) -> str:
    return f"{path}?{urlencode(pairs)}" if pairs else path
