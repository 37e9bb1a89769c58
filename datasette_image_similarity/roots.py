"""Where paths begin: a folder, a bucket, the web.

A collection records its roots as text: `/home/me/photos`, `s3://bucket/photos`, or
`https:` for a column of addresses. `as_root()` tells them apart. Nothing here opens
anything: `sources.py` lists and reads.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from .errors import CollectionError, ImageError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # no drive of Windows: two letters at least
ADDRESS = re.compile(r"https?://", re.IGNORECASE)
SCHEMES = ("s3", "gs")  # stores of objects that `buckets.py` knows


@dataclass(frozen=True)
class BucketRoot:
    """A bucket, or what lies below a prefix in it.

    Keys are what they are, to the letter: no escapes, and no meaning in "//". A place
    below the root is written like its key, `s3://bucket/prefix/red apple#1.jpg`.
    """

    scheme: str
    bucket: str
    prefix: str = ""  # without the "/" at its end

    def __str__(self) -> str:
        below = f"/{self.prefix}" if self.prefix else ""
        return f"{self.scheme}://{self.bucket}{below}"

    @property
    def name(self) -> str:
        """The last part, as a folder's."""
        return self.prefix.rpartition("/")[2] or self.bucket

    @property
    def parent(self) -> BucketRoot:
        """The root around the last part."""
        return BucketRoot(self.scheme, self.bucket, self.prefix.rpartition("/")[0])

    @property
    def start(self) -> str:
        """What the keys of all objects below begin with."""
        return f"{self.prefix}/" if self.prefix else ""

    def locate(self, path: str) -> str:
        """Where the object is that `path` means: a path below the root, or a whole URL.

        Raises ImageError for what cannot be an object below the root. Whether there is
        one, only the bucket knows.
        """
        below = path
        if URL.match(path):
            if not path.startswith(f"{self}/"):
                raise ImageError(f"outside the root {self}")
            below = path.removeprefix(f"{self}/")
        if not below.strip():
            raise ImageError("the cell is empty")
        if "\0" in below:
            raise ImageError("the path holds a NUL character")
        if below.endswith("/"):
            raise ImageError("a folder, not a picture")
        if not {".", ".."}.isdisjoint(below.split("/")):
            # In a key these are names, in a path they lead elsewhere.
            raise ImageError('"." and ".." may not stand in a path inside a bucket')
        if URL.match(below):
            raise ImageError("a key that reads as a URL: rename the object")
        return f"{self}/{below}"


@dataclass(frozen=True)
class WebRoot:
    """The web: paths are whole addresses."""

    def __str__(self) -> str:
        return "https:"

    name = "https:"

    def locate(self, path: str) -> str:
        """The address without the spaces around it, `https:` before one that begins with
        "//". Raises ImageError for anything else."""
        address = path.strip()
        if not address:
            raise ImageError("the cell is empty")
        if address.startswith("//"):
            address = f"https:{address}"
        if not ADDRESS.match(address):
            raise ImageError("not an address: it should begin with https://")
        return address


RemoteRoot: TypeAlias = BucketRoot | WebRoot
Root: TypeAlias = Path | BucketRoot | WebRoot


def as_root(recorded: str) -> Root:
    """A root from its text. Recorded folders are absolute, so nothing can mean both."""
    if recorded == str(WebRoot()):
        return WebRoot()
    scheme, separator, rest = recorded.partition("://")
    if separator and scheme in SCHEMES:
        bucket, _, prefix = rest.partition("/")
        return BucketRoot(scheme, bucket, prefix.rstrip("/"))
    return Path(recorded)


def named(place: str | Path | BucketRoot) -> Path | BucketRoot:
    """What a user names: a folder or file of this computer, or a bucket.

    Raises CollectionError for any other URL.
    """
    text = str(place)
    if isinstance(place, Path) or not URL.match(text):
        return Path(os.path.expanduser(place))
    root = as_root(text)
    if not isinstance(root, BucketRoot):
        raise CollectionError(
            f"{text} is no folder: name one of this computer, s3://bucket/folder or "
            "gs://bucket/folder. For a column of https:// addresses there is --url-column"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", root.bucket):
        raise CollectionError(f"{text}: name a bucket, as in {root.scheme}://bucket/folder")
    if not {".", ".."}.isdisjoint(root.prefix.split("/")):
        raise CollectionError(f'{text}: "." and ".." lead nowhere in a bucket')
    return root


def is_object(file: str) -> bool:
    """Whether a place is in a bucket."""
    return file.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def is_address(file: str) -> bool:
    """Whether a place is on the web."""
    return ADDRESS.match(file) is not None


def place(root: str | Root, path: str) -> str:
    """Where a file is, whichever of the folders around it is its root."""
    root = str(root)
    if os.sep != "/":
        root = root.replace(os.sep, "/")
    return f"{root.rstrip('/')}/{path}"


def contains(root: str | Root, folder: str | Root) -> bool:
    """Whether a root is a folder, or around it."""
    return place(folder, "").startswith(place(root, ""))
