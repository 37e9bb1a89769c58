"""Text–image networks of open_clip: they put words where they put pictures of what these
say (A. Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", ICML 2021).

    open_clip:NAME/TAG            an architecture of open_clip with weights it publishes
    open_clip:NAME  + a file      the same with weights in a file
    open_clip       + a folder    as open_clip saves models: a configuration and weights

The library builds networks and reads words. Weights are read by `weights.py` alone, and
nothing is fetched but published weights. A folder is never named in a database: its
network is known by the SHA-256 of both files.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import trust
from ..errors import EncoderError, TextError
from ..images import INTERPOLATIONS, Input
from . import ModelInfo, require_same
from . import weights as weights_files
from .families import Choice
from .hugging_face import HubFile, fetched, safe_name
from .network import NetworkEncoder, device_named, require_known, runner_for
from .precision import choose
from .spec import SIZES, EncoderSpec
from .weights import WeightsFile

if TYPE_CHECKING:
    import numpy as np
    from open_clip.tokenizer import SimpleTokenizer
    from torch.nn import Module

    from .running import Runner

VERSION = 1  # of this module: raise it when a change changes what comes out
FOLDER = "open_clip"  # the model whose network is described in a folder
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
CONFIG_BYTES = 1_000_000
TEXTS = 256  # so many go through the network at once
REMEMBERED = 50_000  # words that the tokenizer keeps in pieces
TOKENIZER_OPTIONS = {"clean"}  # others name files, or draw words at random


@dataclass(frozen=True)
class Design:
    """A network and what it is to be shown, as open_clip describes them.

    `preprocess` has what differs from CLIP's own mean, std and interpolation.
    """

    network: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    sha256: str | None = None  # of the file it was read from


@dataclass(frozen=True)
class Plan:
    """All that is decided about an encoder before its weights are touched."""

    model: str
    weights: WeightsFile | HubFile
    design: Design
    input: Input
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def dimensions(self) -> int:
        return self.design.network["embed_dim"]


class OpenClipEncoder(NetworkEncoder):
    """A network of open_clip: one tower for pictures and one for words."""

    def __init__(
        self,
        spec: EncoderSpec,
        dimensions: int,
        device: str,
        runner: Runner,
        words: Module,
        tokenizer: SimpleTokenizer,
    ) -> None:
        super().__init__(spec, dimensions, device, runner)
        self._words = words
        self._tokenizer = tokenizer

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """n texts, n may be 0 → float32 (n, dimensions), not normalised.

        On the CPU, in float32: a text costs a fraction of a picture. Raises TextError for
        one that has more tokens than the network reads.
        """
        import numpy as np
        import torch

        parts = [np.empty((0, self.dimensions), np.float32)]
        for start in range(0, len(texts), TEXTS):
            tokens = self._tokens(texts[start : start + TEXTS])
            with torch.inference_mode():
                parts.append(self._words.encode_text(tokens).float().numpy())
        return np.concatenate(parts)

    def _tokens(self, texts: Sequence[str]) -> Any:
        tokenizer = self._tokenizer
        if len(tokenizer.cache) > REMEMBERED:  # it never forgets by itself
            tokenizer.cache = {word: word for word in ("<start_of_text>", "<end_of_text>")}
        most = tokenizer.context_length - 2  # a start and an end go around them
        for text in texts:
            length = len(tokenizer.encode(text))
            if length > most:
                raise TextError(
                    f"The text is too long: {self.spec.model} reads {most} tokens, parts "
                    f"of words, and it has {length}"
                )
        return tokenizer(list(texts))


# The family: see families.py


def load(
    choice: Choice, *, device: str = "auto", precision: str = "auto"
) -> OpenClipEncoder:
    return load_plan(plan(choice), device=device, precision=precision)


def spec(choice: Choice) -> EncoderSpec:
    """Downloads and hashes the weights."""
    made = plan(choice)
    return spec_with(made, weights_files.sha256(_file(made, download=True)))


def restore(
    spec: EncoderSpec,
    *,
    weights_file: Path | None,
    device: str,
    precision: str,
    download: bool,
) -> OpenClipEncoder:
    made = plan_again(spec, weights_file=weights_file)
    require_same(spec_with(made, spec.weights_sha256), spec)
    return load_plan(
        made,
        sha256=str(spec.weights_sha256),
        device=device,
        precision=precision,
        download=download,
    )


def models() -> list[ModelInfo]:
    """Every architecture with published weights that can be used; none without the
    library."""
    try:
        library = _library()
    except EncoderError:
        return []
    found = []
    for name in library.list_models():
        network = library.get_model_config(name)
        tags = library.list_pretrained_tags_by_model(name)
        if tags and _refusal(network, name) is None:
            found.append(
                ModelInfo(
                    name=f"{FOLDER}:{name}",
                    dimensions=network["embed_dim"],
                    weights=tuple(tags),
                    default_weights=None,
                    downloaded=False,
                    download_bytes=None,
                    note="finds by words as well",
                )
            )
    return found


# What is decided before weights are touched


def plan(choice: Choice) -> Plan:
    """What `load_encoder` will load. Raises EncoderError for what cannot be had."""
    if choice.pooling is not None:
        raise EncoderError(
            f"{choice.model} has no feature map to pool: leave out --pooling"
        )
    require_known(choice.pooling, choice.fit, choice.size)
    if choice.model == FOLDER:
        if choice.weights is None:
            raise EncoderError(
                f"{FOLDER} needs --weights FOLDER, with {CONFIG_NAME} and {WEIGHTS_NAME}; "
                f"or name a network and its weights: --model {FOLDER}:ViT-B-32/openai"
            )
        made = _plan_of_folder(Path(os.path.expanduser(choice.weights)), choice.fit)
    else:
        made = _plan_of_name(choice.model, choice.weights, choice.fit)
    if choice.size not in (None, made.input.size):
        raise EncoderError(
            f"{choice.model} looks at squares of {made.input.size} pixels, and its "
            "position embeddings are made for these: leave out --size"
        )
    return made


def plan_again(spec: EncoderSpec, *, weights_file: Path | None) -> Plan:
    """The plan for the encoder of a spec, as far as it can be had here.

    `weights_file` is a file or a folder that the user vouches for. Raises EncoderError
    where it is needed and not given, or does not hold the network of the spec.
    """
    weights_files.hash_of(spec)
    if spec.model == FOLDER:
        if weights_file is None or spec.config_sha256 is None:
            raise EncoderError(
                f"The vectors were made by {spec}, out of a folder: say where that lies "
                f"whose {WEIGHTS_NAME} has the SHA-256 {spec.weights_sha256}."
            )
        return _plan_of_folder(weights_file, spec.input.fit, spec)
    if weights_file is None and spec.weights not in _tags(_name_of(spec.model)[0]):
        raise weights_files.file_wanted(spec)
    return _plan_of_name(spec.model, spec.weights, spec.input.fit, weights_file)


def _plan_of_folder(place: Path, fit: str, spec: EncoderSpec | None = None) -> Plan:
    """A plan out of a folder, or of the weights in it; with `spec` the files must have its
    hashes."""
    folder = place if place.is_dir() else place.parent
    file = folder / WEIGHTS_NAME if place.is_dir() else place
    design = _read_design(folder / CONFIG_NAME, spec.config_sha256 if spec else None)
    name = folder.absolute().name or FOLDER
    weights = WeightsFile(file, str(spec.weights) if spec else name)
    return _plan(FOLDER, design, weights, fit)


def _plan_of_name(
    model: str, weights: str | Path | None, fit: str, file: Path | None = None
) -> Plan:
    """A plan with an architecture of open_clip's; `file` holds published weights, or
    `weights` names a file."""
    name, tag = _name_of(model)
    network = _library().get_model_config(name)
    tags = _tags(name)
    wanted = str(weights) if weights is not None else tag
    if tag is not None and weights is not None and str(weights) != tag:
        raise EncoderError(
            f"{model} names the weights {tag}, and --weights others: leave one out"
        )
    if wanted is None:
        raise EncoderError(
            f"Say which weights {model} shall have: {model}/TAG, or --weights FILE. "
            f"Published are {_some(tags)}."
        )
    source: WeightsFile | HubFile
    preprocess: Mapping[str, Any] = {}
    if wanted in tags:
        published = _library().get_pretrained_cfg(name, wanted)
        preprocess = published
        # The activation that they were trained with, which open_clip only warns about.
        network["quick_gelu"] = bool(published.get("quick_gelu", False))
        source = _hub_file(f"{FOLDER}:{name}/{wanted}", wanted, published)
        if file is not None:
            source = WeightsFile(file, wanted)
    elif file is not None or weights_files.is_file(wanted):
        path = file or Path(os.path.expanduser(wanted))
        source = WeightsFile(path, path.name if file is None else wanted)
    else:
        raise EncoderError(
            f"{FOLDER}:{name} has no weights called {wanted!r}. It has "
            f"{_some(tags)}; a file is named with its ending: .safetensors, "
            ".pt, .pth or .bin."
        )
    return _plan(f"{FOLDER}:{name}", Design(network, preprocess), source, fit)


def _plan(model: str, design: Design, weights: WeightsFile | HubFile, fit: str) -> Plan:
    reason = _refusal(design.network, model)
    if reason is not None:
        raise EncoderError(f"{model} cannot be used: {reason}.")
    size = _side(design.network["vision_cfg"].get("image_size", 224))
    interpolation = design.preprocess.get("interpolation") or "bicubic"
    if interpolation not in INTERPOLATIONS:  # "random", which open_clip uses in training
        interpolation = "bicubic"
    constants = _library().constants
    mean = design.preprocess.get("mean") or constants.OPENAI_DATASET_MEAN
    std = design.preprocess.get("std") or constants.OPENAI_DATASET_STD
    return Plan(
        model,
        weights,
        design,
        Input(size=size, resize=size, fit=fit, interpolation=interpolation),
        _three(mean, model),
        _three(std, model),
    )


def spec_with(plan: Plan, sha256: str | None) -> EncoderSpec:
    """The spec of a plan whose weights have this hash."""
    return EncoderSpec(
        model=plan.model,
        weights=plan.weights.name,
        weights_sha256=sha256,
        pooling=None,
        input=plan.input,
        mean=plan.mean,
        std=plan.std,
        version=VERSION,
        config_sha256=plan.design.sha256,
        text=True,
    )


# What open_clip has, and what its descriptions say


def _library() -> Any:
    """The package open_clip. Raises EncoderError."""
    try:
        import open_clip
        import torch  # noqa: F401
    except ImportError as error:
        raise EncoderError(
            "Models of open_clip need its library: "
            "pip install 'datasette-image-similarity[open_clip]'"
        ) from error
    return open_clip


def _name_of(model: str) -> tuple[str, str | None]:
    """ "open_clip:NAME/TAG" as a name that open_clip knows, and a tag or None."""
    name, _, tag = model.partition(":")[2].partition("/")
    names = _library().list_models()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        guess = f" Did you mean {' or '.join(close)}?" if close else ""
        raise EncoderError(
            f"open_clip has no network called {name!r}.{guess} "
            "`datasette image-similarity models` lists them all."
        )
    return name, tag or None


def _tags(name: str) -> list[str]:
    return _library().list_pretrained_tags_by_model(name)


def _some(tags: Sequence[str]) -> str:
    """Names of weights, as many as can be read."""
    more = f" and {len(tags) - 6} more (see the command models)" if len(tags) > 6 else ""
    return (", ".join(tags[:6]) or "none") + more


def _hub_file(model: str, tag: str, published: Mapping[str, Any]) -> HubFile:
    """Where published weights lie as .safetensors. Raises EncoderError."""
    repository, _, filename = str(published.get("hf_hub") or "").rpartition("/")
    if not repository:
        raise EncoderError(
            f"{model} is published as a pickle only, which could run code: convert it to "
            ".safetensors where that does no harm, and pass it as --weights FILE."
        )
    return HubFile(repository, safe_name(filename) if filename else WEIGHTS_NAME, tag)


def _read_design(file: Path, sha256: str | None) -> Design:
    """A configuration in a folder. Raises EncoderError unless it has this SHA-256."""
    try:
        with open(file, "rb") as handle:
            data = handle.read(CONFIG_BYTES + 1)
    except OSError as error:
        raise EncoderError(
            f"{file} cannot be read ({error.strerror}): a folder of open_clip has it "
            f"beside {WEIGHTS_NAME}."
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, found):
        raise EncoderError(
            f"{file} is not the configuration that the pictures were embedded with: its "
            f"SHA-256 should be {sha256} and is {found}."
        )
    try:
        told = json.loads(data) if len(data) <= CONFIG_BYTES else None
        network, preprocess = told["model_cfg"], told.get("preprocess_cfg") or {}
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        raise EncoderError(f"{file} is no configuration of open_clip.") from None
    if not isinstance(preprocess, dict):
        raise EncoderError(f"{file} is no configuration of open_clip.")
    return Design(network, preprocess, found)


def _refusal(network: Any, name: str) -> str | None:
    """Why a network cannot be used, in words; None where it can."""
    sections = ("vision_cfg", "text_cfg")
    if not isinstance(network, dict) or not all(
        isinstance(network.get(section), dict) for section in sections
    ):
        return "its configuration is not complete"
    vision, text = network["vision_cfg"], network["text_cfg"]
    if not isinstance(network.get("embed_dim"), int):
        return "its configuration has no embed_dim"
    if "multimodal_cfg" in network:
        return "networks that write captions (CoCa) are not supported"
    if text.get("hf_model_name"):
        return (
            f"its words are read by {text['hf_model_name']} of Hugging Face's "
            "transformers, which this package does not load"
        )
    if text.get("hf_tokenizer_name") or "siglip" in name.lower():
        named = text.get("hf_tokenizer_name") or "SigLIP's"
        return (
            f"its tokenizer, {named}, has to be fetched from Hugging Face and could bring "
            "code along: only networks with open_clip's own tokenizer are supported"
        )
    if set(text.get("tokenizer_kwargs") or ()) - TOKENIZER_OPTIONS:
        return "its tokenizer has options that are not supported"
    if vision.get("output_tokens") or text.get("output_tokens"):
        return "it gives tokens besides vectors (output_tokens)"
    trunk = vision.get("timm_model_name")
    if trunk is not None and not re.fullmatch(r"[A-Za-z0-9_.]{1,100}", str(trunk)):
        return f"timm_model_name {trunk!r} is not a name of timm's own"
    if _side(vision.get("image_size", 224)) not in SIZES:
        return "it does not look at squares of a usable size"
    return None


def _side(size: object) -> int:
    """The side of the square that a network sees; 0 where it sees something else."""
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return size if isinstance(size, int) and not isinstance(size, bool) else 0


def _three(value: object, model: str) -> tuple[float, float, float]:
    values = value if isinstance(value, (list, tuple)) else [value] * 3
    if len(values) != 3 or not all(isinstance(one, (int, float)) for one in values):
        raise EncoderError(f"{model} cannot be used: its mean or std is not three numbers.")
    return tuple(float(one) for one in values)


# Loading


def load_plan(
    plan: Plan,
    *,
    sha256: str = "",
    device: str = "auto",
    precision: str = "auto",
    download: bool = True,
) -> OpenClipEncoder:
    """The encoder of a plan, with its weights, on its device.

    `sha256` is what the weights must have. Raises EncoderError when the device or the
    precision is not there, or the weights are not, are not what they should be or do
    not fit.
    """
    target = device_named(device)
    precision = choose(precision, target)
    file = _file(plan, sha256=sha256, download=download)
    state, found = weights_files.read(file)
    if isinstance(plan.weights, HubFile):
        trust.note_published(plan.weights.url, found)
    network, tokenizer = _built(plan)
    # The logits' scale is for training.
    wanted = {k: v for k, v in network.state_dict().items() if not k.startswith("logit_")}
    state = weights_files.fit_to(state, wanted, path=file.path, model=plan.model)
    network.load_state_dict(state, assign=True, strict=False)
    network.requires_grad_(False).eval()
    pictures, words = network.visual, network
    del words.visual
    spec = spec_with(plan, found)
    runner = runner_for(pictures, spec, target, precision)
    return OpenClipEncoder(spec, plan.dimensions, target, runner, words, tokenizer)


def _file(plan: Plan, *, sha256: str = "", download: bool) -> WeightsFile:
    """The weights on this machine. Raises EncoderError."""
    if isinstance(plan.weights, HubFile):
        return fetched(plan.weights, sha256=sha256, download=download)
    weights_files.ensure(plan.weights)
    return WeightsFile(plan.weights.path, plan.weights.name, sha256)


def _built(plan: Plan) -> tuple[Module, SimpleTokenizer]:
    """The network, with random numbers in it, and its tokenizer. Raises EncoderError."""
    library = _library()
    config = json.loads(json.dumps(plan.design.network))
    custom = config.pop("custom_text", False)
    config["vision_cfg"]["timm_model_pretrained"] = False  # or weights would be fetched
    text = config["text_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    try:
        context = text.get("context_length", 77)
        tokenizer = library.SimpleTokenizer(context_length=context, **options)
        network = (library.CustomTextCLIP if custom else library.CLIP)(**config)
    except Exception as error:  # whatever a configuration makes the library stumble over
        reason = str(error).strip().partition("\n")[0]
        raise EncoderError(
            f"open_clip cannot build {plan.model} as its configuration says: {reason}"
        ) from error
    if network.vocab_size < tokenizer.vocab_size or context < 3:
        raise EncoderError(
            f"{plan.model} cannot be used: it was made for another tokenizer than "
            "open_clip's own."
        )
    return network, tokenizer
