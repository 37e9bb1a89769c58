"""Pictures on a page: tiles of results, query pictures, captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..explore.exports import usual_caption
from ..query import Answer, pk_path
from .compat import table_tools_url

if TYPE_CHECKING:
    from .question import Place, Question


@dataclass(frozen=True)
class Tile:
    """One result. The picture links to its row; `width` and `height` in pixels."""

    pk: str
    url: str
    thumbnail: str
    width: int
    height: int
    caption: str
    score: float
    distance: float
    similar_url: str
    add_url: str | None  # the same question with this picture added


@dataclass(frozen=True)
class QueryPicture:
    """A picture that was searched with."""

    url: str
    thumbnail: str
    caption: str
    remove_url: str | None


async def caption_column(place: Place) -> str | None:
    """The column for captions: as configured, the label column, or the file's name."""
    columns = place.source.columns
    if place.config.caption in columns:
        return place.config.caption
    label = await place.db.label_column_for_table(place.table)
    if label in columns and label not in place.source.pks:  # 1.0 takes unique text keys
        return label
    return usual_caption(place.collection, place.source)


def tiles_of(
    place: Place, question: Question, answer: Answer, caption: str | None
) -> list[Tile]:
    """The tiles of an answer, in its order."""
    base = str(place.datasette.urls.table(place.database, place.table))
    similar = table_tools_url(place.datasette, place.database, place.table, "similar")
    tiles = []
    for hit in answer.hits:
        pk = pk_path(hit.pk)
        text = hit.row.get(caption) if caption else None
        added = [*question.likes, pk]
        tiles.append(
            Tile(
                pk=pk,
                url=f"{base}/{pk}",
                thumbnail=place.url(f"thumbnail/{pk}"),
                width=hit.width,
                height=hit.height,
                caption=str(text) if text not in (None, "") else pk.replace(",", ", "),
                score=hit.score,
                distance=hit.distance,
                similar_url=question.url(similar, drop=["_max_distance"], _like=pk),
                add_url=question.url(similar, _like=added) if question.likes else None,
            )
        )
    return tiles
