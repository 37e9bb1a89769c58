"""Look through a collection of pictures with SQL: a Datasette plugin.

Importing this package costs nothing; `ImageCollection` (see `collection.py`) is
loaded when it is first asked for.
"""

__version__ = "0.1.0"
__all__ = ["ImageCollection", "__version__"]


def __getattr__(name: str) -> object:
    if name == "ImageCollection":
        from .collection import ImageCollection

        return ImageCollection
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
