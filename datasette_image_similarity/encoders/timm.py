"""Networks of the library timm, more than a thousand: `timm:NAME`.

A network is built as timm builds it, without a classifier. First on torch's "meta" device,
where tensors have shapes but no numbers, to find out what it gives and whether a file of
weights fits: a database may name a network that would fill the memory. Weights are read by
`weights.py` and by nothing else: timm's own loaders would take what they find in a cache as
it is.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import trust
from ..errors import EncoderError
from ..images import INTERPOLATIONS, Input
from . import ModelInfo, hugging_face, require_same
from . import weights as weights_files
from .families import Choice
from .hugging_face import HubFile
from .network import (
    NetworkEncoder,
    at_size,
    cannot_see,
    device_named,
    nothing_to_pool,
    parameters_without_memory,
    require_known,
    runner_for,
)
from .precision import choose
from .spec import SIZES, EncoderSpec
from .weights import WeightsFile

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

PREFIX = "timm:"
VERSION = 1  # of this module: raise it when a change changes what comes out
INSTALL = "pip install 'datasette-image-similarity[timm]'"


@dataclass(frozen=True)
class Plan:
    """All that is decided about an encoder before its weights are touched."""

    model: str  # with the tag of its weights: "timm:resnet18.a1_in1k"
    config: Any  # timm's PretrainedCfg
    network: Module  # without numbers in it
    dimensions: int
    pooling: str | None
    input: Input

    @property
    def tag(self) -> str:
        """What the published weights are called."""
        return self.config.tag or "published"


# The family: see families.py


def load(choice: Choice, *, device: str, precision: str) -> NetworkEncoder:
    made = plan(choice)
    return _loaded(made, _file(made, choice.weights), device, precision)


def spec(choice: Choice) -> EncoderSpec:
    """Downloads and hashes the weights."""
    made = plan(choice)
    file = _file(made, choice.weights)
    weights_files.ensure(file)
    return _spec_with(made, file, weights_files.sha256(file))


def restore(
    spec: EncoderSpec,
    *,
    weights_file: Path | None,
    device: str,
    precision: str,
    download: bool,
) -> NetworkEncoder:
    shape, digest = spec.input, weights_files.hash_of(spec)
    choice = Choice(spec.model, spec.weights, spec.pooling, shape.fit, shape.size)
    made = plan(choice)
    if weights_file is not None:
        file = WeightsFile(Path(weights_file), str(spec.weights), digest)
    elif spec.weights == made.tag:
        file = weights_files.must_be(_published(made, download), digest, spec)
    else:
        raise weights_files.file_wanted(spec)
    require_same(_spec_with(made, file, digest), spec)
    return _loaded(made, file, device, precision, download=download)


def models() -> list[ModelInfo]:
    """Every network that timm has, by name. Raises EncoderError without timm."""
    timm = _timm("the list of models")
    names = timm.list_models(pretrained=True)
    bare = set(timm.list_models()) - {name.partition(".")[0] for name in names}
    return [_info(timm, name) for name in sorted([*names, *bare])]


def _info(timm: ModuleType, name: str) -> ModelInfo:
    config = timm.get_pretrained_cfg(name)
    place = _on_hub(config) if config else None
    there = bool(place or (config and config.url))
    return ModelInfo(
        name=PREFIX + name,
        dimensions=None,
        weights=(config.tag,) if there else (),
        default_weights=config.tag if there else None,
        downloaded=bool(place and hugging_face.on_disk(place)),
        download_bytes=None,
        note="" if there else "no published weights: needs --weights FILE",
    )


# What is decided before weights are touched


def plan(choice: Choice) -> Plan:
    """Raises EncoderError for what timm has not, or what the network cannot do."""
    require_known(choice.pooling, choice.fit, choice.size)
    timm = _timm(choice.model)
    config = _config(timm, choice.model)
    name = config.architecture + (f".{config.tag}" if config.tag else "")
    usual = _usual_input(timm, config, choice)
    shape = at_size(usual, choice.size)
    network = _outline(name)
    pooled = network if choice.pooling is None else _maps(network)
    given = _shape(pooled, choice.model, shape.size, usual.size)
    if choice.pooling is not None and len(given) != 4:
        raise EncoderError(
            f"{choice.model} has {nothing_to_pool(_dimensions(network))}: leave out "
            "--pooling"
        )
    if choice.pooling is None and len(given) != 2:
        raise EncoderError(f"{choice.model} does not give one vector for each picture")
    dimensions = given[1] * (math.prod(given[2:]) if choice.pooling == "flatten" else 1)
    return Plan(PREFIX + name, config, network, dimensions, choice.pooling, shape)


def _timm(wanted_for: str) -> ModuleType:
    """The library. Raises EncoderError where it is missing."""
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise EncoderError(f"{wanted_for} needs timm: {INSTALL}") from error
    except (OSError, RuntimeError) as error:
        raise EncoderError(
            f"{wanted_for} needs timm, and the one installed does not work ({error}): "
            f"{INSTALL}"
        ) from error
    return timm


def _config(timm: ModuleType, model: str) -> Any:
    """What timm knows of a network and its weights. Raises EncoderError."""
    name = model.removeprefix(PREFIX)
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        guess = " or ".join(PREFIX + one for one in close)
        raise EncoderError(
            f"timm has no model called {name!r}."
            + (f" Did you mean {guess}?" if guess else "")
            + " `datasette image-similarity models timm:` lists them all."
        )
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = timm.list_models(f"{architecture}.*", pretrained=True)
        raise EncoderError(
            f"timm has no {name!r}. It has {', '.join(tags) or architecture}."
        ) from error
    return config or timm.models.PretrainedCfg(architecture=architecture)


def _usual_input(timm: ModuleType, config: Any, choice: Choice) -> Input:
    """What the network's weights were made for. Raises EncoderError."""
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    channels, rows, columns = data["input_size"]
    if channels != 3 or rows != columns or rows not in SIZES:
        raise EncoderError(
            f"{choice.model} looks at pictures of {rows} × {columns} pixels and {channels} "
            "colours: only squares in three colours can be had here."
        )
    if data["interpolation"] not in INTERPOLATIONS:
        raise EncoderError(
            f"{choice.model} wants pictures scaled by {data['interpolation']!r}, which "
            "there is not here."
        )
    return Input(
        size=rows,
        # Rounded down, as timm's own transform does; it pads what would be smaller.
        resize=max(rows, math.floor(rows / data["crop_pct"])),
        fit=choice.fit,
        interpolation=data["interpolation"],
    )


def _network(name: str) -> Module:
    """A network without a classifier, as it is before it is trained."""
    import timm

    with _quiet():
        return timm.create_model(name, pretrained=False, num_classes=0).eval()


def _outline(name: str) -> Module:
    """The same on the device "meta": shapes without numbers, and without their memory."""
    try:
        with parameters_without_memory():
            return _network(name).to("meta")
    except RuntimeError:  # a few try out a part of themselves while they are built
        return _network(name).to("meta")


def _maps(network: Module) -> Module:
    """What gives the network's feature maps, as far as it has some."""
    from .running import FeatureMaps

    # NHWC as in Swin; most do not say, and put channels first.
    return FeatureMaps(network, getattr(network, "output_fmt", "NCHW") == "NHWC")


def _shape(network: Module, model: str, size: int, usual: int) -> tuple[int, ...]:
    """The shape of what a network gives for one picture of a size; () for no tensor.

    Raises EncoderError when it cannot look at it.
    """
    import torch

    try:
        with torch.inference_mode():
            given = network(torch.empty(1, 3, size, size, device="meta"))
    except Exception as error:  # assertions, shapes that do not fit, several tensors
        if size != usual:
            raise cannot_see(model, size, usual) from error
        return ()
    return tuple(getattr(given, "shape", ()))


def _dimensions(network: Module) -> int:
    """How many numbers a network gives that has no feature map."""
    return getattr(network, "head_hidden_size", None) or network.num_features


def _spec_with(plan: Plan, file: WeightsFile, sha256: str) -> EncoderSpec:
    return EncoderSpec(
        model=plan.model,
        weights=file.name,
        weights_sha256=sha256,
        pooling=plan.pooling,
        input=plan.input,
        mean=tuple(plan.config.mean),
        std=tuple(plan.config.std),
        version=VERSION,
    )


# Weights


def _file(plan: Plan, weights: str | Path | None) -> WeightsFile:
    """The file that is asked for; a published one is downloaded. Raises EncoderError."""
    if weights is None or weights == plan.tag:
        return _published(plan, download=True)
    if weights_files.is_file(weights):
        path = Path(os.path.expanduser(weights))
        return WeightsFile(path, path.name)
    raise EncoderError(
        f"{plan.model} has no weights called {weights!r}. Other weights of timm's are part "
        "of the model's name, as in timm:resnet18.a1_in1k; a file is named with its "
        "ending: .pth, .pt, .bin or .safetensors."
    )


def _published(plan: Plan, download: bool) -> WeightsFile:
    """The file that timm names. Raises EncoderError when there is none that is safe."""
    place = _on_hub(plan.config)
    if place:
        return hugging_face.fetched(place, download=download)
    if not plan.config.url:
        raise EncoderError(
            f"timm knows of no published weights for {plan.model}: name a file with "
            "--weights."
        )
    if plan.config.custom_load:
        raise EncoderError(
            f"The weights of {plan.model} are published in a form of their own "
            f"({plan.config.url}), which is not read here: name another file with "
            "--weights."
        )
    return weights_files.published(plan.config.url, plan.tag)


def _on_hub(config: Any) -> HubFile | None:
    """The file of published weights on the hub, where timm names one."""
    if not config.hf_hub_id:
        return None
    filename = hugging_face.safe_name(config.hf_hub_filename)
    return HubFile(config.hf_hub_id, filename, config.tag or "published")


def _loaded(
    plan: Plan, file: WeightsFile, device: str, precision: str, *, download: bool = True
) -> NetworkEncoder:
    """The encoder of a plan, with its weights, on its device. Raises EncoderError."""
    target = device_named(device)
    precision = choose(precision, target)
    weights_files.ensure(file, download=download)
    state, sha256 = weights_files.read(file)
    if file.url is not None:
        trust.note_published(file.url, sha256)
    state = _as_timm_has_it(state, plan, file)
    state = weights_files.fit_to(
        state, plan.network.state_dict(), path=file.path, model=plan.model
    )
    network = _network(plan.model.removeprefix(PREFIX))
    network.load_state_dict(state, assign=True)
    network.requires_grad_(False)
    spec = _spec_with(plan, file, sha256)
    used = network if plan.pooling is None else _maps(network)
    runner = runner_for(used, spec, target, precision)
    return NetworkEncoder(spec, plan.dimensions, target, runner)


def _as_timm_has_it(
    state: Mapping[str, Tensor], plan: Plan, file: WeightsFile
) -> dict[str, Tensor]:
    """Parameters by the names that they have in timm, without the classifier's.

    Files from where a network was first published have other names; timm's module for it
    knows them. Raises EncoderError when that cannot make sense of the file.
    """
    module = sys.modules[type(plan.network).__module__]
    rename = getattr(module, "checkpoint_filter_fn", None)
    if rename is not None:
        try:
            state = rename(dict(state), plan.network)
        except Exception as error:  # made for files of the right network only
            raise weights_files.misfit(
                file.path, plan.model, "its parameters have other names and shapes"
            ) from error
    heads = plan.config.classifier or ()
    heads = (heads,) if isinstance(heads, str) else heads
    gone = tuple(_gone_with(head, plan.network) for head in heads)
    return {key: value for key, value in state.items() if not key.startswith(gone)}


def _gone_with(head: str, network: Module) -> str:
    """How names begin that went when the classifier was left away: "head.fc.", or "head."
    where nothing of that is left."""
    kept, start = network.state_dict().keys(), ""
    for part in head.split("."):
        start += f"{part}."
        if not any(key.startswith(start) for key in kept):
            break
    return start


@contextmanager
def _quiet() -> Iterator[None]:
    """timm logs what is of no use to who only wants vectors."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
