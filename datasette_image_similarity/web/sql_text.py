"""Words in SQL: for databases whose configuration turns it on, by a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from ..database import Collection
from ..encoders.spec import EncoderSpec
from ..errors import EncoderError, TextError
from ..functions import EmbedText
from ..pipeline import finished_vector
from ..text_helper import Job
from .config import ConfigError, read_config
from .question import Place, Question
from .service import service, weights_place, without_folders

if TYPE_CHECKING:
    from datasette.app import Datasette

SHARE = 0.8  # of Datasette's time limit for SQL: the rest is for the search itself


def text_embedder(datasette: Datasette, database: str) -> EmbedText | None:
    """What embeds words for connections to a database; None where that is off."""
    try:
        if not read_config(datasette, database).sql_text:
            return None
    except ConfigError:  # Datasette says so when it starts
        return None
    patience = SHARE * datasette.setting("sql_time_limit_ms") / 1000

    def embed(conn: sqlite3.Connection, collection: Collection, text: str) -> bytes:
        import numpy as np

        from ..learning.stored import stored_transform

        spec = EncoderSpec.from_json(collection.encoder)
        config = service(datasette).config(database, collection.table)
        job = Job(spec.backbone, weights_place(spec, config), text)
        try:
            encoded = service(datasette).words.encode(job, patience)
        except EncoderError as error:
            raise without_folders(error, job.weights) from error
        vector = np.frombuffer(encoded, "<f4")
        transform = stored_transform(conn, collection)
        if transform is not None:
            if transform.steps[0].inputs != len(vector):
                raise EncoderError("What was learned of this collection does not fit it")
            # See TransformedEncoder.encode_text().
            vector = transform(vector[None], centred=False)[0]
        finished = finished_vector(vector, collection.metric)
        if finished is None or len(finished) != 4 * collection.dimensions:
            raise TextError("The encoder gave no usable vector for this text")
        return finished

    return embed


def sql_text_of(place: Place, question: Question) -> str | None:
    """The text of a question that SQL can ask: one alone, where `sql_text` is on."""
    pictures = question.likes or question.unlikes
    if pictures or question.unlike_texts or len(question.texts) != 1:
        return None
    on = read_config(place.datasette, place.database).sql_text
    return question.texts[0] if on else None
