"""Provenance of an embedding: everything that makes two vectors comparable.

A collection keeps its `EncoderSpec` as JSON. The database may come from a stranger,
so what is read back is validated, and files are found by their hash, never by a path
that the database names.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import EncoderError
from ..images import FITS, INTERPOLATIONS, Input

POOLINGS = ("avg", "max", "gem", "flatten")
SIZES = range(16, 1025)  # pixels a side; a larger square is a mistake or an attack
# A name, or "family:name", or "family:name/weights": nothing that leads out of a folder.
MODEL = (
    r"(?!.*\.\.)[A-Za-z0-9_.]{1,100}"
    r"(:[A-Za-z0-9_.@+-]{1,100}(/[A-Za-z0-9_.@+-]{1,100})?)?"
)
FIELDS = {
    "model",
    "weights",
    "weights_sha256",
    "pooling",
    "input",
    "mean",
    "std",
    "version",
}
# Fields that came later: left out where they say nothing, so that the fingerprints of
# vectors made before them stay.
OPTIONAL = {"config_sha256": None, "text": False, "transform": None, "transformed": None}
# What says how something is called, and not what comes out.
NAMES = ("weights", "transformed")


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder made a vector. Equal fingerprints: vectors can be compared.

    `mean` and `std` are for RGB scaled to 0…1. `version` counts changes to our own
    code that change what comes out. `transform` is what was learned from a collection
    and is applied to what the network gives: see `transform.py`.
    """

    model: str  # "resnet50", "hog", "timm:resnet18.a1_in1k"
    weights: str | None  # "IMAGENET1K_V1", or the base name of a file
    weights_sha256: str | None
    pooling: str | None  # one of POOLINGS; None where there is no feature map
    input: Input
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    version: int
    config_sha256: str | None = None  # of a file that describes the network, if one does
    text: bool = False  # it embeds words as well
    transform: str | None = None  # SHA-256 of the Transform
    transformed: str | None = None  # the same in words: "PCA to 128"

    @property
    def backbone(self) -> EncoderSpec:
        """What gives vectors to the transform: this spec without one."""
        return replace(self, transform=None, transformed=None)

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that decides what comes out.

        The name of a weights file does not: its hash does. Nor does the size before
        cropping, where nothing is cropped.
        """
        fields = self._fields()
        for name in NAMES:
            fields.pop(name, None)
        if self.input.fit != "crop":
            del fields["input"]["resize"]
        return hashlib.sha256(_canonical(fields).encode()).hexdigest()

    def to_json(self) -> str:
        """The spec as JSON text, for `from_json`."""
        return _canonical(self._fields())

    def _fields(self) -> dict[str, Any]:
        fields = asdict(self)
        return {n: v for n, v in fields.items() if n not in OPTIONAL or v != OPTIONAL[n]}

    @classmethod
    def from_json(cls, text: str) -> EncoderSpec:
        """The spec in a text that `to_json` wrote, or anyone else.

        Raises EncoderError when the text is not a complete, sensible spec.
        """
        try:
            fields = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise _invalid("it is not JSON") from error
        _require(isinstance(fields, dict), "its fields")
        fields = {**OPTIONAL, **fields}
        _require(set(fields) == FIELDS | OPTIONAL.keys(), "its fields")
        shape = fields["input"]
        _require(isinstance(shape, dict), "input")
        _require(set(shape) == {"size", "resize", "fit", "interpolation"}, "input")
        for key in ("size", "resize"):
            _require(_is_int(shape[key]) and shape[key] in SIZES, f"input {key}")
        _require(_one_of(shape["fit"], FITS), "input fit")
        _require(_one_of(shape["interpolation"], INTERPOLATIONS), "interpolation")
        _require(shape["size"] <= shape["resize"] or shape["fit"] != "crop", "resize")
        _require(_matches(MODEL, fields["model"]), "model")
        # A base name only: nobody should be able to name a place on this machine.
        name, digest = fields["weights"], fields["weights_sha256"]
        _require(
            name is None or _matches(r"[^/\\\x00-\x1f\ud800-\udfff]{1,255}", name),
            "weights",
        )
        _require(digest is None or _matches("[0-9a-f]{64}", digest), "weights_sha256")
        _require((name is None) == (digest is None), "weights_sha256")
        _require(fields["pooling"] in (None, *POOLINGS), "pooling")
        _require(_is_int(fields["version"]) and fields["version"] > 0, "version")
        for key in ("config_sha256", "transform"):
            hashed = fields[key]
            _require(hashed is None or _matches("[0-9a-f]{64}", hashed), key)
        _require(isinstance(fields["text"], bool), "text")
        words = fields["transformed"]
        _require(
            words is None or _matches(r"[^\x00-\x1f\ud800-\udfff]{1,500}", words),
            "transformed",
        )
        _require((words is None) == (fields["transform"] is None), "transform")
        return cls(
            model=fields["model"],
            weights=name,
            weights_sha256=digest,
            pooling=fields["pooling"],
            input=Input(**shape),
            mean=_three_numbers(fields["mean"], "mean"),
            std=_three_numbers(fields["std"], "std", positive=True),
            version=fields["version"],
            **{name: fields[name] for name in OPTIONAL},
        )

    def __str__(self) -> str:
        """As people name it: `resnet50 (IMAGENET1K_V1, avg pooling), PCA to 128`."""
        pooling = f"{self.pooling} pooling" if self.pooling else None
        details = ", ".join(part for part in (self.weights, pooling) if part)
        name = f"{self.model} ({details})" if details else self.model
        return f"{name}, {self.transformed}" if self.transformed else name


def _canonical(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _invalid(what: str) -> EncoderError:
    return EncoderError(
        f"The encoder noted in the database cannot be understood ({what}). The "
        "database is damaged, or a newer version of this package wrote it: upgrade, "
        "or embed the pictures again."
    )


def _require(good: bool, what: str) -> None:
    if not good:
        raise _invalid(f"{what} is not valid")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(value: object, choices: tuple[str, ...]) -> bool:
    return isinstance(value, str) and value in choices


def _matches(pattern: str, value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _three_numbers(
    value: object, what: str, positive: bool = False
) -> tuple[float, float, float]:
    _require(isinstance(value, list) and len(value) == 3, what)
    for number in value:
        _require(_is_int(number) or isinstance(number, float), what)
        _require(abs(number) < 1e6 and math.isfinite(number), what)
        _require(number > 0 or not positive, what)
    return tuple(float(number) for number in value)
