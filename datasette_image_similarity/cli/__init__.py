"""The commands of `datasette image-similarity`: parse, call the collection, print."""

from . import ask, duplicates, embed, keep
from .base import image_similarity

__all__ = ["ask", "duplicates", "embed", "image_similarity", "keep"]
