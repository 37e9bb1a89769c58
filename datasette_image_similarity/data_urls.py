"""Pictures that stand in a cell: as a BLOB, or as text, `data:image/png;base64,…`.

Such a text is never stored or printed whole as a path: `short_path()` and its twin in SQL
say how it begins and how long it is.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes

from .errors import ImageError

SHOWN = 32  # characters of one that stand for it


def is_data_url(value: object) -> bool:
    """Whether a cell holds a `data:` URL, or how one is shown."""
    return isinstance(value, str) and value[:16].lstrip(" ")[:5].lower() == "data:"


def short_path(url: str) -> str:
    """What stands for a `data:` URL in messages and as an item's path."""
    return f"{url[:SHOWN]}…{len(url)}"


def suffix_of(path: str) -> str:
    """How the file of a path ends, ".png"; of a `data:` URL as its media type says."""
    kind = re.match(r" *data:image/([a-z0-9]+)", path, re.IGNORECASE)
    return f".{kind[1].lower()}" if kind else PurePosixPath(path).suffix.lower()


def is_data_url_sql(column: str) -> str:
    """SQL condition, the twin of `is_data_url()`; `column` is a quoted name."""
    return f"(typeof({column}) = 'text' and ltrim(substr({column}, 1, 16)) like 'data:%')"


def short_path_sql(column: str) -> str:
    """SQL, the twin of `short_path()`; NULL for what is no `data:` URL."""
    shown = f"substr({column}, 1, {SHOWN}) || '…' || length({column})"
    return f"case when {is_data_url_sql(column)} then {shown} end"


def picture_bytes(cell: object) -> bytes | None:
    """The picture that stands in a cell; None if none does.

    Raises ImageError for a `data:` URL that cannot be decoded (RFC 2397).
    """
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str) or not is_data_url(cell):
        return None
    head, comma, body = cell.strip().partition(",")
    if not comma:
        raise ImageError("a data: URL without data")
    data = unquote_to_bytes(body)
    if not head.rstrip().lower().endswith("base64"):
        return data
    data = data.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n=")
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error:
        raise ImageError("a data: URL that is not valid base64") from None
