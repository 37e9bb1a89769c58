"""A part of a stored picture as the question: found, cut out, embedded."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ImageError, MissingFile
from .pictures import find_kept, original
from .question import PageError, Place, Question


class Cropped(NamedTuple):
    """The vector of a part of a picture; `small` when only the thumbnail could be read."""

    vector: bytes
    small: bool


async def embed_crop(place: Place, question: Question) -> Cropped | None:
    """What the crop in a question looks like to the encoder; None without one.

    Raises PageError, QueueFull, ImageError, EncoderError.
    """
    if question.crop is None:
        return None
    if not place.config.search_by_image:
        raise PageError(403, "Search by image is switched off for this table, and so is "
                        "searching with a part of a picture")  # fmt: skip
    like = next(iter(question.likes))
    kept = await find_kept(place, like)
    arguments = question.crop, place.db, place.collection, place.config
    read = await original(place, kept)
    if read is not None:
        try:
            return Cropped(await place.service.embed_crop(read, *arguments), False)
        except MissingFile:
            pass  # gone since: the thumbnail is left
    if kept.thumbnail is None:
        raise ImageError(f"the picture of row {like} cannot be read here")
    thumbnail = kept.thumbnail
    return Cropped(await place.service.embed_crop(lambda: thumbnail, *arguments), True)
