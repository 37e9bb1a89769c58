"""The commands of `datasette image-similarity`: parse, call the collection, print."""

from . import (
    ask,
    clusters,
    duplicates,
    embed,
    evaluate,
    export,
    keep,
    map,
    move,
    reduce,
    train,
    vectors,
)
from .base import image_similarity

__all__ = [
    "ask",
    "clusters",
    "duplicates",
    "embed",
    "evaluate",
    "export",
    "image_similarity",
    "keep",
    "map",
    "move",
    "reduce",
    "train",
    "vectors",
]
