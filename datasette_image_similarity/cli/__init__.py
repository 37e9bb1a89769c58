"""The commands of `datasette image-similarity`: parse, call the collection, print."""

from . import ask, clusters, duplicates, embed, keep, map
from .base import image_similarity

__all__ = ["ask", "clusters", "duplicates", "embed", "image_similarity", "keep", "map"]
