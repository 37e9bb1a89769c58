"""The commands of `datasette image-similarity`: parse, call the collection, print."""

from . import ask, clusters, duplicates, embed, evaluate, keep, map
from .base import image_similarity

__all__ = [
    "ask",
    "clusters",
    "duplicates",
    "embed",
    "evaluate",
    "image_similarity",
    "keep",
    "map",
]
