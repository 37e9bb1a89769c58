"""The commands of `datasette image-similarity`: parse, call the collection, print."""

from . import ask, embed, export, keep
from .base import image_similarity

__all__ = ["ask", "embed", "export", "image_similarity", "keep"]
