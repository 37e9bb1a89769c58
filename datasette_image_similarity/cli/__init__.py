"""The commands of `datasette image-similarity`: parse, call the collection, print."""

from . import ask, embed, evaluate, keep
from .base import image_similarity

__all__ = ["ask", "embed", "evaluate", "image_similarity", "keep"]
