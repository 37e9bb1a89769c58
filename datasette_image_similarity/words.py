"""Words as a question: which there may be, and how they are mixed with pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from .database import Collection, collections
from .distances import sample_vectors
from .encoders.spec import EncoderSpec
from .errors import EncoderError, TextError
from .pipeline import finished_vector
from .query import HEAVIEST, rocchio

if TYPE_CHECKING:
    import numpy as np

    from .encoders import TextEncoder

LONGEST = 500  # characters of a text
MODEL = "open_clip:ViT-B-32/laion2b_s34b_b79k"  # as an example of one that reads words

Weighted = Sequence[tuple[bytes, float]]  # (float32 blob of shape (d,), weight)
Texts = str | Sequence[str] | Mapping[str, float]


def cleaned(text: str) -> str:
    """A text as it is searched with. Raises TextError for one that is empty or too long."""
    words = " ".join(text.split())
    if not words:
        raise TextError("There are no words to search with: the text is empty")
    if len(words) > LONGEST:
        raise TextError(
            f"A text has up to {LONGEST} characters, and this one has {len(words):,}"
        )
    return words


def weights_of(texts: Texts | None) -> dict[str, float]:
    """Weights by text: of one text, several, or a dictionary. Raises TextError."""
    if texts is None:
        return {}
    if isinstance(texts, str):
        texts = [texts]
    pairs: Iterable[tuple[str, float]] = (
        texts.items() if isinstance(texts, Mapping) else ((text, 1.0) for text in texts)
    )
    weights = {cleaned(text): weight for text, weight in pairs}
    for text, weight in weights.items():
        if not 0 < weight <= HEAVIEST:
            raise TextError(
                f"The weight of {text!r} must be above 0, up to {HEAVIEST}, not {weight}"
            )
    return weights


def reads_words(collection: Collection) -> bool:
    """Whether a collection can be searched with words.

    Its encoder must put them where it puts pictures, and did so by training cosines: with
    the metric "l2" lengths would count, which say nothing.
    """
    try:
        text = EncoderSpec.from_json(collection.encoder).text
    except EncoderError:  # damaged: what opens it says so
        return False
    return text and collection.metric == "cosine"


def require_words(conn: sqlite3.Connection, collection: Collection) -> None:
    """Raise TextError, with what to do, where a collection cannot be asked with words."""
    if reads_words(collection):
        return
    beside = [
        one.name
        for one in collections(conn)
        if one.table == collection.table and reads_words(one)
    ]
    if beside:
        named = f"collection {beside[0]} can: name that one"
        if len(beside) > 1:
            named = f"collections {' and '.join(beside)} can: name one of them"
        raise TextError(
            f"The collection {collection.name} of {collection.table} cannot be searched "
            f"with words, but its {named}"
        )
    spec = EncoderSpec.from_json(collection.encoder)
    reason = (
        "is for the metric l2, and words are compared by cosine"
        if spec.text
        else f"was made by {spec}, which reads no words; those of open_clip do"
    )
    raise TextError(
        f"The collection {collection.name} of {collection.table} {reason}. Embed the "
        f"pictures beside it: embed … --name words --model {MODEL}"
    )


def encoded(encoder: TextEncoder, texts: Sequence[str]) -> list[bytes]:
    """Texts as vectors of a collection, float32 blobs of length 1. Raises TextError."""
    vectors = []
    for text, vector in zip(texts, encoder.encode_text(texts), strict=True):
        finished = finished_vector(vector, "cosine")
        if finished is None:
            raise TextError(
                f"The encoder gave a vector of zeros, NaN or infinity for {text!r}"
            )
        vectors.append(finished)
    return vectors


def mixed(
    conn: sqlite3.Connection,
    collection: Collection,
    likes: Weighted,
    unlikes: Weighted,
    words: Weighted,
    unlike_words: Weighted,
) -> bytes:
    """The query for results like some pictures and words and less like others.

    `query.rocchio()` of all of them. Cosines of words with pictures lie close together,
    at .2 to .3 for CLIP, and those of two pictures far apart, so that the plain mean would
    order by the pictures and hardly by the words. Where there are both, a vector of words
    is therefore scaled so that its scores over a sample of the collection have the
    standard deviation that those of the pictures have on average: the order is that of
    the sum of z-scores. Raises CollectionError as `rocchio()`.
    """
    pictures = [vector for vector, _ in (*likes, *unlikes)]
    if pictures and (words or unlike_words):
        sample = sample_vectors(conn, collection)
        wanted = [_spread(sample, vector) for vector in pictures]
        spread = math.fsum(wanted) / len(wanted)
        words, unlike_words = (
            [(_scaled(sample, vector, spread), weight) for vector, weight in some]
            for some in (words, unlike_words)
        )
    return rocchio(collection, [*likes, *words], [*unlikes, *unlike_words])


def _spread(sample: np.ndarray, vector: bytes) -> float:
    """The standard deviation of a vector's scores over a sample, (n, d) of length 1."""
    if len(sample) < 3:
        return 0.0
    import numpy as np

    spread = float((sample @ np.frombuffer(vector, "<f4")).std())
    return spread if math.isfinite(spread) else 0.0  # whatever a damaged database holds


def _scaled(sample: np.ndarray, vector: bytes, spread: float) -> bytes:
    """The vector, made so long that its scores have this spread, where they have any."""
    import numpy as np

    own = _spread(sample, vector)
    if own * spread == 0:
        return vector
    return (np.frombuffer(vector, "<f4") * np.float32(spread / own)).tobytes()
