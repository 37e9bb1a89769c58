"""Reading an uploaded form under a byte limit, the same way on both Datasettes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from ..errors import ImageSimilarityError
from .service import Held, QueueFull

FIELD_BYTES = 1_000_000  # all text fields together
PARTS = 200  # fields and files
DRAIN = 8  # so many times the limit is read and thrown away, to answer politely
RECEIVE_SECONDS = 120  # 20 MB in that time are 1.3 Mbit/s


class UploadTooBig(ImageSimilarityError):
    """The body is larger than allowed."""


class UploadTooSlow(ImageSimilarityError):
    """The body has not come in time."""


class BadForm(ImageSimilarityError):
    """The body is not a form that can be read."""


@dataclass
class Form:
    """Text fields (the last of a name wins) and files that are not empty, by name."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


async def read_form(request: Any, max_file_bytes: int, held: Held | None = None) -> Form:
    """The form of a POST request: multipart, or URL-encoded.

    What comes is counted by `held`, where the form may have files. Raises UploadTooBig,
    UploadTooSlow, QueueFull, or BadForm for anything else that is wrong with it.
    """
    from python_multipart import FormParser
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(request.headers.get("content-type", ""))
    kind = kind.decode("latin-1").lower()
    boundary = options.get(b"boundary")
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded") or (
        kind == "multipart/form-data" and not boundary
    ):
        raise BadForm("Send the picture as a form (multipart/form-data), field image")
    form = Form()
    parts = text_bytes = 0

    encoded = kind == "application/x-www-form-urlencoded"  # the parser leaves it so

    def text(data: bytes | None) -> str:
        found = (data or b"").decode("utf-8", "replace")
        return unquote_plus(found) if encoded else found

    def one_more() -> None:
        # The parser limits these for URL-encoded forms only.
        nonlocal parts
        parts += 1
        if parts > PARTS:
            raise BadForm(f"The form cannot be read: it has more than {PARTS} fields")

    def on_field(found: Any) -> None:
        nonlocal text_bytes
        one_more()
        text_bytes += len(found.value or b"")
        if text_bytes > FIELD_BYTES:
            raise BadForm("The form cannot be read: its fields are too long")
        form.fields[text(found.field_name)] = text(found.value)

    def close() -> None:
        if parser is not None:
            parser.close()
            # Or else it is a cycle of references, which keeps half a file for long.
            parser.parser.callbacks.clear()

    def on_file(found: Any) -> None:
        one_more()
        name = (found.field_name or b"").decode("utf-8", "replace")
        data = found.file_object.getvalue()  # always in memory; and not a copy
        found.close()
        if data:
            # A second, empty input of the same name (the camera's) changes nothing.
            form.files.setdefault(name, data)

    limit = max_file_bytes + FIELD_BYTES
    limits = {
        "MAX_MEMORY_FILE_SIZE": limit,
        "MAX_FIELD_SIZE": FIELD_BYTES,
        "MAX_FIELDS": PARTS,
    }
    parser = None
    body = _Body(request, limit)
    try:
        parser = FormParser(kind, on_field, on_file, boundary=boundary, config=limits)
        async for chunk in body.chunks():
            if held is not None:
                held.take(len(chunk))
            parser.write(chunk)
        parser.finalize()
        if any(len(data) > max_file_bytes for data in form.files.values()):
            raise UploadTooBig
    except UploadTooBig:
        megabytes = max_file_bytes / 1e6
        raise UploadTooBig(
            f"The file is too big: up to {megabytes:,.3g} MB are looked at"
        ) from None
    except QueueFull:
        close()
        form.files.clear()
        held.release()  # while the rest is thrown away, others may have the room
        await body.drain()
        raise
    except (FormParserError, ValueError) as error:
        raise BadForm(f"The form cannot be read: {error}") from None
    finally:
        close()
    return form


async def read_fields(request: Any) -> dict[str, Any]:
    """The fields of a POST request without files: a form's, or a JSON object's.

    Raises UploadTooBig, UploadTooSlow, BadForm.
    """
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return dict((await read_form(request, 0)).fields)
    body = b"".join([chunk async for chunk in _Body(request, FIELD_BYTES).chunks()])
    try:
        fields = json.loads(body)
        # Half a surrogate pair can be written in JSON, and nowhere be stored or sent.
        json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise BadForm("The body must be a JSON object")
    return fields


class _Body:
    """The body of a request, of `limit` bytes at most; it must be there in time."""

    def __init__(self, request: Any, limit: int) -> None:
        self._request = request
        self._limit = limit
        self._total = 0
        self._more = True
        self._deadline = asyncio.get_running_loop().time() + RECEIVE_SECONDS

    async def chunks(self) -> AsyncIterator[bytes]:
        """Raises UploadTooBig for a body over the limit, which is read on for a while:
        who is answered earlier may only see a connection that was cut."""
        while self._more:
            chunk = await self._next()
            if self._total > self._limit:
                await self.drain()
                raise UploadTooBig
            yield chunk

    async def drain(self) -> None:
        """Read what is left, and throw it away."""
        with suppress(BadForm, UploadTooSlow):  # there is an answer already
            while self._more and self._total <= self._limit * DRAIN:
                await self._next()

    async def _next(self) -> bytes:
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._request.receive(), left)
        except asyncio.TimeoutError:
            raise UploadTooSlow(
                f"The upload has taken longer than {RECEIVE_SECONDS} seconds"
            ) from None
        if message["type"] == "http.disconnect":
            raise BadForm("The upload was cut off")
        self._more = bool(message.get("more_body"))
        chunk = message.get("body", b"")
        self._total += len(chunk)
        return chunk
