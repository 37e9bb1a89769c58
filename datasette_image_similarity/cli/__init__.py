"""The commands of `datasette image-similarity`: parse, call the collection, print."""

from . import ask, clusters, embed, keep
from .base import image_similarity

__all__ = ["ask", "clusters", "embed", "image_similarity", "keep"]
