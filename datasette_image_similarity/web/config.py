"""The plugin's configuration: per instance, database and table, the nearest level wins."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ..errors import CollectionError, ImageSimilarityError, StoreError
from ..images import UPLOADS, Limits
from ..roots import Root, WebRoot, named
from ..stores.opening import store_url

if TYPE_CHECKING:
    from datasette.app import Datasette

PLUGIN = "datasette-image-similarity"


class ConfigError(ImageSimilarityError):
    """A setting is unknown or of the wrong kind."""


@dataclass(frozen=True)
class Config:
    """Settings, with their defaults. Documented in the README's table."""

    caption: str | None = None
    image_column: str | None = None
    collection: str | None = None
    page_size: int = 24
    roots: list[str] = field(default_factory=list)
    weights: str | None = None
    search_by_image: bool = True
    search_by_text: bool = True
    sql_text: bool = False
    stores: list[str] = field(default_factory=list)
    store_seconds: int = 5
    sql_store: bool = False
    upload_max_bytes: int = UPLOADS.max_bytes
    upload_max_pixels: int = UPLOADS.max_pixels
    upload_seconds: int = int(UPLOADS.seconds)
    upload_queue: int = 8
    curators: dict[str, Any] | bool | None = None
    history: bool = False
    originals: bool = False

    @property
    def upload_limits(self) -> Limits:
        return Limits(
            max_bytes=self.upload_max_bytes,
            max_pixels=self.upload_max_pixels,
            seconds=self.upload_seconds,
        )

    @property
    def root_paths(self) -> list[Root]:
        """Folders, buckets, and the web where "https:" is among them."""
        return [_root(one) for one in self.roots]

    @property
    def store_urls(self) -> list[str]:
        """The stores that may be used, as collections remember their URLs."""
        return [store_url(url) for url in self.stores]


def _root(text: str) -> Root:
    """Raises ConfigError for a URL that is no bucket."""
    if text == str(WebRoot()):
        return WebRoot()
    try:
        return named(text)
    except CollectionError as error:
        raise ConfigError(f"The setting 'roots' of {PLUGIN}: {error}") from None


KINDS: dict[str, Any] = {
    "caption": str,
    "image_column": str,
    "collection": str,
    "page_size": int,
    "roots": list,
    "weights": str,
    "search_by_image": bool,
    "search_by_text": bool,
    "sql_text": bool,
    "stores": list,
    "store_seconds": int,
    "sql_store": bool,
    "upload_max_bytes": int,
    "upload_max_pixels": int,
    "upload_seconds": int,
    "upload_queue": int,
    "curators": (dict, bool),
    "history": bool,
    "originals": bool,
}


def read_config(datasette: Datasette, database: str, table: str | None = None) -> Config:
    """The settings for a table. Raises ConfigError.

    Each level is read on its own: the two Datasettes fall back differently.
    """
    levels = [{}, {"database": database}]
    if table is not None:
        levels.append({"database": database, "table": table})
    config = Config()
    for level in levels:
        found = datasette.plugin_config(PLUGIN, fallback=False, **level)
        config = replace(config, **_checked({} if found is None else found))
    return config


def _checked(settings: Any) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise ConfigError(f"The configuration of {PLUGIN} must be an object")
    known = {one.name for one in fields(Config)}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(
                f"{PLUGIN} has no setting {name!r}; it has {', '.join(sorted(known))}"
            )
        kind = KINDS[name]
        flag = kind in (bool, KINDS["curators"])
        right = isinstance(value, kind) and (flag or not isinstance(value, bool))
        if kind is int:
            right = right and value > 0
        if kind is list:
            right = right and all(isinstance(one, str) for one in value)
        if not right:
            wanted = {
                str: "text",
                int: "a number above 0",
                list: "a list of URLs" if name == "stores" else "a list of folders",
                KINDS["curators"]: "an allow block as Datasette's, or true or false",
            }
            raise ConfigError(
                f"The setting {name!r} of {PLUGIN} must be "
                f"{wanted.get(kind, 'true or false')}, not {value!r}"
            )
    for one in settings.get("roots", []):
        _root(one)
        if name == "stores":
            _check_urls(value)
    return settings


def _check_urls(urls: list[str]) -> None:
    try:
        for url in urls:
            store_url(url)
    except StoreError as error:
        raise ConfigError(f"The setting 'stores' of {PLUGIN}: {error}") from None
