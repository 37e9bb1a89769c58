"""What can go wrong because of the world and not because of us.

Every message names the file, row or setting, the cause, and what to do next.
The command line prints it after "Error:" and exits with 1; pages show it.
"""

import os
import shlex
import subprocess


def shell_line(*words: object) -> str:
    """Words as a command to copy into a shell: that of Windows, or any other."""
    texts = list(map(str, words))
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


class ImageSimilarityError(Exception):
    """Base class of everything this package raises on purpose."""


class ImageError(ImageSimilarityError):
    """One picture cannot be used: not an image, damaged, too big, too slow."""


class MissingFile(ImageError):
    """There is no picture at a path, a key or an address."""


class NotVouched(ImageError):
    """A picture is in no folder that the user has embedded on this computer."""


class EncoderError(ImageSimilarityError):
    """An encoder cannot be made: unknown model, missing or wrong weights."""


class TextError(ImageSimilarityError):
    """Words cannot be searched with: empty, too long, or not with this encoder."""


class DatabaseError(ImageSimilarityError):
    """The database cannot be used: locked, full, read-only, newer schema."""


class ExtensionError(DatabaseError):
    """Python's SQLite cannot load sqlite-vec: one sentence says what to type."""


class CollectionError(ImageSimilarityError):
    """A collection cannot do this: unknown table or key, another encoder."""


class StoreError(ImageSimilarityError):
    """Where vectors are kept cannot be used: away, too slow, or not what it should be.

    `details` are an engine's own words, for whoever runs it: pages do not show them.
    """

    def __init__(self, said: str, details: object = "") -> None:
        super().__init__(f"{said}: {details}" if details else said)
        self.said = said


class NotNoted(ImageSimilarityError):
    """What the user vouched for cannot be kept in the user's configuration folder."""


class EngineError(ImageSimilarityError):
    """The machines that were to embed cannot: none there, too few, not set up for it."""


class Stopped(Exception):
    """The user asked to stop: there is no result, and what was stored is as it was."""
