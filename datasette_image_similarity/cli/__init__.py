"""The commands of `datasette image-similarity`: parse, call the collection, print."""

from . import ask, embed, keep, map
from .base import image_similarity

__all__ = ["ask", "embed", "image_similarity", "keep", "map"]
