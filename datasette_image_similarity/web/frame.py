"""What answers tell browsers and caches: who may keep them, and what a page may run.

A page of ours has a frame around it, which is the site's own: Datasette's `base.html` or
the operator's, with the scripts and styles of other plugins. Whatever is in the frame may
run, and needs no setting; what is inside it is made of data, and may run nothing but the
scripts that our templates name. To tell the two apart, `image_similarity_base.html` puts
marks around what is ours, which nobody can guess; they are taken out again here.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Response

if TYPE_CHECKING:
    from datasette.app import Datasette

# Answers depend on who asks: no shared cache may hand them to others, nor a browser to
# whoever signs in next. Addresses tell what is looked at: other sites need not know. (Not
# "no-referrer": our own forms would be sent with "Origin: null".)
EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private",
    "Vary": "Cookie, Authorization",
}
# Pictures and data that are opened on their own.
NOTHING_RUNS = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; "
    "sandbox"
)

# Elements with text that is no markup, other tags, and comments.
TAG = r"[^>\"']*(?:(?:\"[^\"]*\"|'[^']*')[^>\"']*)*>"
MARKUP = re.compile(
    rf"<!--.*?-->|<(script|style)\b{TAG}.*?</\1\s*>|<[a-z]{TAG}",
    re.IGNORECASE | re.DOTALL,
)
NAME = re.compile(r"<[^\s/>]+")
# Attributes that load something, or run.
NAMING = re.compile(
    r"\s(src|href|action|style|on[a-z]+)\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s\"'>]+)",
    re.IGNORECASE,
)
ORIGIN = re.compile(r"((?:https?:)?//[a-z0-9.:-]+)", re.IGNORECASE)


@dataclass
class Frame:
    """What a page's frame names, as its policy has to allow it."""

    nonce: str
    origins: set[str] = field(default_factory=set)
    forms: set[str] = field(default_factory=set)
    handlers: set[str] = field(default_factory=set)
    styles: set[str] = field(default_factory=set)

    def allow(self, part: str) -> str:
        """A part of the frame with the nonce in its scripts and styles."""
        return MARKUP.sub(self._allow, part)

    def _allow(self, found: re.Match) -> str:
        markup = found[0]
        if markup.startswith("<!"):
            return markup
        name = NAME.match(markup)[0][1:].lower()
        tag = markup[: markup.index(">") + 1] if name in ("script", "style") else markup
        for attribute, quoted in NAMING.findall(tag):
            self._note(name, attribute.lower(), html.unescape(quoted.strip("\"'")))
        if name not in ("script", "style", "link"):
            return markup
        after = 1 + len(name)
        return f'{markup[:after]} nonce="{self.nonce}"{markup[after:]}'

    def _note(self, name: str, attribute: str, value: str) -> None:
        if attribute == "style":
            self.styles.add(_hash(value))
        elif attribute.startswith("on"):
            self.handlers.add(_hash(value))
        elif attribute == "src" or (attribute == "href" and name == "link"):
            self.origins |= _origin(value)
        elif attribute == "action":
            self.forms |= _origin(value)

    def policy(self) -> str:
        """The Content-Security-Policy of the page."""
        site = ["'self'", *sorted(self.origins)]
        nonce = f"'nonce-{self.nonce}'"
        directives = {
            "default-src": site,
            # Scripts may load others: those of other plugins do.
            "script-src": [nonce, "'strict-dynamic'", *_hashes(self.handlers)],
            "style-src": [*site, nonce, *_hashes(self.styles)],
            # A picture that was chosen is shown before it is sent, and with its results.
            "img-src": [*site, "blob:", "data:"],
            "font-src": [*site, "data:"],
            "object-src": ["'none'"],
            "base-uri": ["'self'"],
            "form-action": ["'self'", *sorted(self.forms)],
            "frame-ancestors": ["'self'"],
        }
        return "; ".join(f"{name} {' '.join(may)}" for name, may in directives.items())


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _hashes(hashes: set[str]) -> list[str]:
    return ["'unsafe-hashes'", *sorted(hashes)] if hashes else []


def _origin(url: str) -> set[str]:
    found = ORIGIN.match(url)
    return {found[1].removeprefix("//")} if found else set()


async def framed_page(
    datasette: Datasette,
    request: Any,
    template: str,
    context: Mapping[str, Any],
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A page of ours in the site's frame, with the policy that lets the frame work."""
    mark, frame = secrets.token_hex(16), Frame(secrets.token_urlsafe(16))
    text = await datasette.render_template(
        template,
        {**context, "ims_mark": mark, "ims_nonce": frame.nonce},
        request=request,
        view_name="image-similarity",
    )
    parts = text.split(mark)
    parts[::2] = map(frame.allow, parts[::2])
    headers = {"Content-Security-Policy": frame.policy(), **(headers or {})}
    return Response.html("".join(parts), status=status, headers=headers)


def guarded(response: Any) -> Any:
    """An answer of ours with what all of them say, where it does not say so itself."""
    said = {name.lower() for name in response.headers}
    defaults = {**EVERYWHERE, "Content-Security-Policy": NOTHING_RUNS}
    for name, value in defaults.items():
        if name.lower() not in said:
            response.headers[name] = value
    return response
