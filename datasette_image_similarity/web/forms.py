"""Reading an uploaded form under a byte limit, the same way on both Datasettes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from ..errors import ImageSimilarityError

FIELD_BYTES = 1_000_000  # all text fields together
DRAIN = 8  # so many times the limit is read and thrown away, to answer politely


class UploadTooBig(ImageSimilarityError):
    """The body is larger than allowed."""


class BadForm(ImageSimilarityError):
    """The body is not a form that can be read."""


@dataclass
class Form:
    """Text fields (the last of a name wins) and files that are not empty, by name."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


async def read_form(request: Any, max_file_bytes: int) -> Form:
    """The form of a POST request: multipart, or URL-encoded.

    Raises UploadTooBig, or BadForm for anything else that is wrong with it.
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

    encoded = kind == "application/x-www-form-urlencoded"  # the parser leaves it so

    def text(data: bytes | None) -> str:
        found = (data or b"").decode("utf-8", "replace")
        return unquote_plus(found) if encoded else found

    def on_field(found: Any) -> None:
        form.fields[text(found.field_name)] = text(found.value)

    def on_file(found: Any) -> None:
        name = (found.field_name or b"").decode("utf-8", "replace")
        found.file_object.seek(0)
        data = found.file_object.read()
        found.close()
        if data:
            # A second, empty input of the same name (the camera's) changes nothing.
            form.files.setdefault(name, data)

    limit = max_file_bytes + FIELD_BYTES
    limits = {
        "MAX_MEMORY_FILE_SIZE": limit,
        "MAX_FIELD_SIZE": FIELD_BYTES,
        "MAX_FIELDS": 200,
    }
    parser = None
    try:
        parser = FormParser(kind, on_field, on_file, boundary=boundary, config=limits)
        async for chunk in _body(request, limit):
            parser.write(chunk)
        parser.finalize()
        if any(len(data) > max_file_bytes for data in form.files.values()):
            raise UploadTooBig
    except UploadTooBig:
        megabytes = max_file_bytes / 1e6
        raise UploadTooBig(
            f"The file is too big: up to {megabytes:,.3g} MB are looked at"
        ) from None
    except (FormParserError, ValueError) as error:
        raise BadForm(f"The form cannot be read: {error}") from None
    finally:
        if parser is not None:
            parser.close()
    return form


async def read_fields(request: Any) -> dict[str, Any]:
    """The fields of a POST request without files: a form's, or a JSON object's.

    Raises UploadTooBig, BadForm.
    """
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return dict((await read_form(request, 0)).fields)
    body = b"".join([chunk async for chunk in _body(request, FIELD_BYTES)])
    try:
        fields = json.loads(body)
        # Half a surrogate pair can be written in JSON, and nowhere be stored or sent.
        json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise BadForm("The body must be a JSON object")
    return fields


async def _body(request: Any, limit: int) -> Any:
    """Chunks of the body. A body over the limit is read on for a while, then refused."""
    total = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise BadForm("The upload was cut off")
        chunk = message.get("body", b"")
        total += len(chunk)
        if total <= limit:
            yield chunk
        if not message.get("more_body"):
            break
        if total > limit * DRAIN:
            break
    if total > limit:
        raise UploadTooBig
