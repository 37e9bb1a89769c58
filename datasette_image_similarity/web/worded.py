"""The words in a question: embedded, and as a page shows them."""

from __future__ import annotations

from typing import NamedTuple

from ..words import Weighted, require_words
from .question import PageError, Place, Question
from .tiles import weights_beside


class Words(NamedTuple):
    """Vectors of what results should be like and less like, with their weights."""

    likes: Weighted = ()
    unlikes: Weighted = ()


class QueryText(NamedTuple):
    """A text that was searched with, and the address of the question without it; None
    where nothing would be left to ask with."""

    text: str
    unlike: bool
    remove_url: str | None


class QueryWords(NamedTuple):
    """All texts in a question. The addresses ask with another weight for them; None where
    there is no picture that they could outweigh, or no such weight.

    The form that asks with words changes the first text and keeps the parameters `kept`.
    """

    texts: list[QueryText]
    weight: float
    lighter_url: str | None
    heavier_url: str | None
    first: str
    kept: list[tuple[str, str]]


async def embed_words(place: Place, question: Question) -> Words:
    """The vectors of the texts in a question.

    Raises PageError, TextError, QueueFull, TooSlow, EncoderError.
    """
    texts = [*question.texts, *question.unlike_texts]
    if not texts:
        return Words()
    if not place.config.search_by_text:
        raise PageError(403, "Search by words is switched off for this table")
    await place.db.execute_fn(lambda conn: require_words(conn, place.collection))
    vectors = await place.service.embed_texts(
        texts, place.db, place.collection, place.config
    )
    weighted = [(vector, question.text_weight) for vector in vectors]
    liked = len(question.texts)
    return Words(weighted[:liked], weighted[liked:])


def query_words(
    place: Place, question: Question, path: str, *, own_picture: bool = False
) -> QueryWords:
    """The texts in a question as a page shows them; `path` is the page's own address.

    With `own_picture` the page asks with an uploaded picture, too.
    """
    uploaded = own_picture and place.request.method == "POST"
    pictures = bool(question.likes or question.unlikes or uploaded)
    texts = []
    for name, some in (("_text", question.texts), ("_unlike_text", question.unlike_texts)):
        for text in some:
            others = [one for one in some if one != text]
            last = name == "_text" and not (others or question.likes or own_picture)
            url = None if last else question.url(path, **{name: others})
            texts.append(QueryText(text, name == "_unlike_text", url))
    weight = question.text_weight

    def weighing(changed: float | None) -> str | None:
        if changed is None or not (texts and pictures):
            return None
        return question.url(path, _text_weight=None if changed == 1 else f"{changed:g}")

    lighter, heavier = weights_beside(weight)
    return QueryWords(
        texts,
        weight,
        weighing(lighter),
        weighing(heavier),
        question.texts[0] if question.texts else "",
        [*_kept(question), *(("_text", text) for text in question.texts[1:])],
    )


def _kept(question: Question) -> list[tuple[str, str]]:
    """What goes on when the words change: not the cut-off, which was for the old ones."""
    return [pair for pair in question.pairs if pair[0] not in ("_text", "_max_distance")]
