"""Look through a collection of pictures with SQL: a Datasette plugin.

The hooks are imported here because Datasette finds a plugin's templates and static files
beside the module that is its entry point. `ImageCollection` (`collection.py`) is loaded
when it is first asked for.
"""

from .plugin import *  # noqa: F403

__version__ = "0.1.0"
__all__ = ["ImageCollection", "__version__"]  # noqa: F405


def __getattr__(name: str) -> object:
    if name == "ImageCollection":
        from .collection import ImageCollection

        return ImageCollection
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
