"""Pictures on a page: tiles of results, query pictures, captions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..database import ITEMS_BY_ID, live_sql, quote
from ..explore.exports import caption_text, usual_caption
from ..folding import OURS
from ..images import Crop
from ..query import Answer, Hit, pk_path

if TYPE_CHECKING:
    from .question import Place, Question


# What another query picture does not take over.
OF_ONE_QUERY = (
    *("_max_distance", "_unlike", "_crop"),
    *("_text", "_unlike_text", "_text_weight"),
)
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0)  # as the page offers them


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
    add_url: str  # the same question with this picture added
    unlike_url: str  # and with this one to be less like
    others: int | None  # so many were folded into it
    others_url: str | None  # where they are shown


@dataclass(frozen=True)
class QueryPicture:
    """A picture that was searched with.

    The addresses are of the same question without it, or with another weight for it;
    None where that would make no difference.
    """

    pk: str
    url: str
    thumbnail: str
    caption: str
    weight: float
    remove_url: str | None
    lighter_url: str | None
    heavier_url: str | None
    crop: Crop | None


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
    place: Place, question: Question, path: str, answer: Answer, caption: str | None
) -> list[Tile]:
    """The tiles of an answer, in its order; `path` is the page's own address."""
    base = place.table_url
    similar = place.path("similar")
    tiles = []
    for hit in answer.hits:
        pk = pk_path(hit.pk)
        tiles.append(
            Tile(
                pk=pk,
                url=f"{base}/{pk}",
                thumbnail=place.url(f"thumbnail/{pk}"),
                width=hit.width,
                height=hit.height,
                caption=caption_text(hit.row.get(caption) if caption else None, pk),
                score=hit.score,
                distance=hit.distance,
                similar_url=question.url(similar, drop=OF_ONE_QUERY, _like=pk),
                add_url=question.url(path, _like={**question.likes, pk: 1}),
                unlike_url=question.url(path, _unlike={**question.unlikes, pk: 1}),
                others=hit.others,
                others_url=_others_url(question, path, hit),
            )
        )
    return tiles


def _others_url(question: Question, path: str, hit: Hit) -> str | None:
    """The same question among the rows of a hit's group, where that is a column's."""
    column = question.one_per
    if (
        not (hit.others and (question.likes or question.texts))
        or column not in hit.row
        or column in OURS
        or question.distinct
    ):
        return None
    value = hit.row[column]
    if not isinstance(value, (int, str)):
        return None
    return question.url(path, drop=["_one_per"], **{f"{column}__exact": value})


async def query_pictures(
    place: Place, question: Question, path: str, items: list[int]
) -> tuple[list[QueryPicture], list[QueryPicture]]:
    """The pictures that results are like, and those that they are less like.

    `items` are theirs, in this order.
    """
    caption = await caption_column(place)
    wanted = f"t.{quote(caption)}" if caption else "null"
    live = live_sql(place.collection, place.source, ITEMS_BY_ID)
    sql = f"select i.id, {wanted} as caption {live}"
    found = await place.db.execute(sql, {"ids": json.dumps(items)})
    texts = {row["id"]: row["caption"] for row in found}
    captions = [texts.get(item) for item in items]
    first = next(iter(question.likes), None)
    likes, unlikes = (
        [
            _query_picture(
                place,
                question,
                path,
                name,
                pk,
                text,
                question.crop if pk == first else None,
            )
            for pk, text in zip(weights, some, strict=True)
        ]
        for name, weights, some in (
            ("_like", question.likes, captions[: len(question.likes)]),
            ("_unlike", question.unlikes, captions[len(question.likes) :]),
        )
    )
    return likes, unlikes


def weights_beside(weight: float) -> tuple[float | None, float | None]:
    """The next lighter and the next heavier weight that a page offers, if there is one."""
    lighter = next((one for one in reversed(WEIGHTS) if one < weight), None)
    heavier = next((one for one in WEIGHTS if one > weight), None)
    return lighter, heavier


def _query_picture(
    place: Place,
    question: Question,
    path: str,
    name: str,
    pk: str,
    caption: object,
    crop: Crop | None,
) -> QueryPicture:
    """One of the pictures in the parameter `name`."""
    weights = question.likes if name == "_like" else question.unlikes
    weight = weights[pk]
    others = {key: one for key, one in weights.items() if key != pk}
    # Else there is an uploaded picture as well, or words.
    needed = place.request.method != "POST" and not question.texts

    def weighing(changed: float | None) -> str | None:
        # One picture alone is the mean whatever it weighs.
        if changed is None or (not others and (needed or name == "_unlike")):
            return None
        return question.url(path, **{name: {**weights, pk: changed}})

    lighter, heavier = weights_beside(weight)
    last = needed and name == "_like" and not others
    base = place.table_url
    return QueryPicture(
        pk=pk,
        url=f"{base}/{pk}",
        thumbnail=place.url(f"thumbnail/{pk}"),
        caption=caption_text(caption, pk),
        weight=weight,
        remove_url=None
        if last
        else question.url(path, drop=["_crop"] if crop else [], **{name: others}),
        lighter_url=weighing(lighter),
        heavier_url=weighing(heavier),
        crop=crop,
    )
