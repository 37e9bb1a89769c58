"""Every classification network of torchvision, with its classifier cut off.

A network is traced on torch's "meta" device, where tensors have shapes but no
numbers, to find its last feature map; what comes after is left away. Only then are
weights read, straight into the part that is kept. No architecture is treated
specially, but for what its constructor needs.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EncoderError
from ..images import Input
from . import ModelInfo, require_same
from . import weights as weights_files
from .families import Choice
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
from .spec import EncoderSpec
from .weights import WeightsFile

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

VERSION = 1  # of this module: raise it when a change changes what comes out
PREFERRED_WEIGHTS = "IMAGENET1K_V1"  # V2's recipe lowers cosines of near-identical pairs
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Numbers in a vector, so that listing the models need not build each of them.
DIMENSIONS = {
    model: dimensions
    for dimensions, models in {
        256: "alexnet",
        400: "regnet_x_400mf",
        440: "regnet_y_400mf",
        512: "maxvit_t resnet18 resnet34 squeezenet1_0 squeezenet1_1 vgg11 "
        "vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
        576: "mobilenet_v3_small",
        672: "regnet_x_800mf",
        768: "convnext_small convnext_tiny swin_s swin_t swin_v2_s swin_v2_t "
        "vit_b_16 vit_b_32",
        784: "regnet_y_800mf",
        888: "regnet_y_1_6gf",
        912: "regnet_x_1_6gf",
        960: "mobilenet_v3_large",
        1008: "regnet_x_3_2gf",
        1024: "convnext_base densenet121 googlenet shufflenet_v2_x0_5 "
        "shufflenet_v2_x1_0 shufflenet_v2_x1_5 swin_b swin_v2_b vit_l_16 "
        "vit_l_32",
        1280: "efficientnet_b0 efficientnet_b1 efficientnet_v2_l "
        "efficientnet_v2_m efficientnet_v2_s mnasnet0_5 mnasnet0_75 "
        "mnasnet1_0 mnasnet1_3 mobilenet_v2 vit_h_14",
        1408: "efficientnet_b2",
        1512: "regnet_y_3_2gf",
        1536: "convnext_large efficientnet_b3",
        1664: "densenet169",
        1792: "efficientnet_b4",
        1920: "densenet201 regnet_x_8gf",
        2016: "regnet_y_8gf",
        2048: "efficientnet_b5 inception_v3 regnet_x_16gf resnet101 resnet152 "
        "resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d "
        "shufflenet_v2_x2_0 wide_resnet101_2 wide_resnet50_2",
        2208: "densenet161",
        2304: "efficientnet_b6",
        2520: "regnet_x_32gf",
        2560: "efficientnet_b7",
        3024: "regnet_y_16gf",
        3712: "regnet_y_32gf",
        7392: "regnet_y_128gf",
    }.items()
    for model in models.split()
}
WITHOUT_MAP = {"vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"}


class MissingTorch(EncoderError):
    """torch and torchvision are not installed, or do not work."""


@dataclass(frozen=True)
class Features:
    """The part of a network that is used, without numbers in it yet."""

    network: GraphModule
    dimensions: int
    has_map: bool  # it gives (n, dimensions, rows, columns), not (n, dimensions)
    positions: int  # rows × columns of the map; 1 without one

    def pooled(self, pooling: str | None) -> int:
        """How many numbers a vector has."""
        return self.dimensions * (self.positions if pooling == "flatten" else 1)


@dataclass(frozen=True)
class Plan:
    """All that is decided about an encoder before its weights are touched."""

    model: str
    file: WeightsFile
    features: Features
    pooling: str | None
    input: Input
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# The family: see families.py


def load(
    choice: Choice, *, device: str = "auto", precision: str = "auto"
) -> NetworkEncoder:
    return load_plan(plan(choice), device=device, precision=precision)


def spec(choice: Choice) -> EncoderSpec:
    """Downloads and hashes the weights."""
    made = plan(choice)
    weights_files.ensure(made.file)
    return spec_with(made, weights_files.sha256(made.file))


def restore(
    spec: EncoderSpec,
    *,
    weights_file: Path | None,
    device: str,
    precision: str,
    download: bool,
) -> NetworkEncoder:
    made = plan_again(spec, weights_file=weights_file)
    require_same(spec_with(made, spec.weights_sha256), spec)
    return load_plan(made, device=device, precision=precision, download=download)


# What is decided before weights are touched


def plan(choice: Choice) -> Plan:
    """What `load_encoder` will load, with nothing read from disk.

    Raises EncoderError for an unknown model, name of weights, pooling, fit or size.
    """
    entries = _entries(choice.model)
    default = _default(entries)
    weights = default if choice.weights is None else choice.weights
    if weights_files.is_file(weights):
        path = Path(os.path.expanduser(weights))
        return _plan(choice, entries[default], WeightsFile(path, path.name))
    entry = entries.get(weights)
    if entry is None:
        raise EncoderError(
            f"{choice.model} has no weights called {weights!r}. It has "
            f"{', '.join(entries)}; a file is named with its ending: .pth, .pt, .bin or "
            ".safetensors."
        )
    return _plan(choice, entry, None)


def plan_again(spec: EncoderSpec, *, weights_file: Path | None) -> Plan:
    """The plan for the encoder of a spec, as far as it can be had here.

    Raises EncoderError when this torchvision has no such model or weights, and when
    the weights came from a file and `weights_file` does not say where it lies.
    """
    entries = _entries(spec.model)
    digest = weights_files.hash_of(spec)
    choice = Choice(spec.model, spec.weights, spec.pooling, spec.input.fit, spec.input.size)
    if spec.weights in entries:
        made = _plan(choice, entries[spec.weights], None)
        file = weights_files.must_be(made.file, digest, spec)
        if weights_file is not None:
            file = replace(file, path=Path(weights_file), url=None)
        return replace(made, file=file)
    if weights_file is None:
        raise weights_files.file_wanted(spec)
    file = WeightsFile(Path(weights_file), str(spec.weights), digest)
    return _plan(choice, entries[_default(entries)], file)


def spec_with(plan: Plan, sha256: str | None) -> EncoderSpec:
    """The spec of a plan whose weights have this hash."""
    return EncoderSpec(
        model=plan.model,
        weights=plan.file.name,
        weights_sha256=sha256,
        pooling=plan.pooling,
        input=plan.input,
        mean=plan.mean,
        std=plan.std,
        version=VERSION,
    )


def load_plan(
    plan: Plan, *, device: str = "auto", precision: str = "auto", download: bool = True
) -> NetworkEncoder:
    """The encoder of a plan, with its weights, on its device.

    Raises EncoderError when the device or the precision is not there, or the weights
    are not, are not what they should be or do not fit.
    """
    target = device_named(device)
    precision = choose(precision, target)
    network, sha256 = trained_network(plan, download=download)
    network.requires_grad_(False).eval()
    spec = spec_with(plan, sha256)
    runner = runner_for(network, spec, target, precision)
    return NetworkEncoder(spec, plan.features.pooled(plan.pooling), target, runner)


def trained_network(plan: Plan, *, download: bool = True) -> tuple[GraphModule, str]:
    """The part of the network that is used, with its weights; and their SHA-256.

    Raises EncoderError when they are not there, not what they should be or do not fit.
    """
    weights_files.ensure(plan.file, download=download)
    state, sha256 = weights_files.read(plan.file)
    network = plan.features.network
    state = weights_files.fit_to(
        state, network.state_dict(), path=plan.file.path, model=plan.model
    )
    network.load_state_dict(state, assign=True)
    return network, sha256


def models() -> list[ModelInfo]:
    """Every classification network of the installed torchvision, by name; none where
    there is no torch."""
    found = []
    try:
        names = _names("the list of models")
    except MissingTorch:
        return []
    for model in names:
        entries = _entries(model)
        default = entries[_default(entries)]
        file = weights_files.published(default.url, default.name)
        dimensions = DIMENSIONS.get(model)
        found.append(
            ModelInfo(
                name=model,
                dimensions=dimensions,
                weights=tuple(entries),
                default_weights=default.name,
                downloaded=file.path.is_file(),
                # torchvision notes it in MiB, to three places.
                download_bytes=round(default.meta["_file_size"] * 2**20),
                note=nothing_to_pool(dimensions) if model in WITHOUT_MAP else "",
            )
        )
    return found


# What torchvision has


def _names(wanted_for: str) -> list[str]:
    """Names of the classification networks. Raises MissingTorch."""
    try:
        import torch  # noqa: F401
        import torchvision.models
    except ImportError as error:
        raise MissingTorch(
            f"{wanted_for} needs torch and torchvision: pip install torch torchvision, "
            "or use --model hog"
        ) from error
    except (OSError, RuntimeError) as error:
        raise MissingTorch(
            f"{wanted_for} needs torch and torchvision, and those installed do not work "
            f"({error}). Install a pair that belongs together: pip install --upgrade "
            "torch torchvision, or use --model hog"
        ) from error
    return torchvision.models.list_models(module=torchvision.models)


def _entries(model: str) -> dict[str, Any]:
    """The model's published weights, by name. Raises EncoderError."""
    names = _names(model)
    if model not in names:
        close = difflib.get_close_matches(model.lower(), [*names, "hog"], n=3)
        guess = f" Did you mean {' or '.join(close)}?" if close else ""
        raise EncoderError(
            f"There is no model called {model!r}.{guess} "
            "`datasette image-similarity models` lists them all."
        )
    import torchvision.models

    return {entry.name: entry for entry in torchvision.models.get_model_weights(model)}


def _default(entries: dict[str, Any]) -> str:
    if PREFERRED_WEIGHTS in entries:
        return PREFERRED_WEIGHTS
    return type(next(iter(entries.values()))).DEFAULT.name


def _plan(choice: Choice, entry: Any, file: WeightsFile | None) -> Plan:
    """A plan with the published weights `entry`, or with a file for the same input."""
    model, pooling = choice.model, choice.pooling
    require_known(pooling, choice.fit, choice.size)
    preset = entry.transforms()
    usual = Input(
        size=preset.crop_size[0],
        resize=preset.resize_size[0],
        fit=choice.fit,
        interpolation=preset.interpolation.value,
    )
    shape = at_size(usual, choice.size)
    features = _features(model, usual.size, shape.size)
    if features.has_map:
        pooling = pooling or "avg"
    elif pooling is not None:
        raise EncoderError(
            f"{model} has {nothing_to_pool(features.dimensions)}: leave out --pooling"
        )
    mean, std = (
        (tuple(preset.mean), tuple(preset.std))
        if file is None
        else (IMAGENET_MEAN, IMAGENET_STD)
    )
    file = file or weights_files.published(entry.url, entry.name)
    return Plan(model, file, features, pooling, shape, mean, std)


# Taking a network apart


def _features(model: str, usual: int, size: int) -> Features:
    """The network up to its last feature map, or else up to its classifier.

    It is built and taken apart for pictures of the `usual` size, and then shown one of
    `size`. Raises EncoderError when it cannot look at that.

    "Feature map": a tensor (n, channels, rows, columns) that is the last one, before
    the classifier, in which a picture has more than one position. Vision transformers
    end in (n, tokens, channels) instead and have none.
    """
    import torch
    import torch.fx
    import torchvision.models
    from torch.fx.passes.shape_prop import ShapeProp

    with parameters_without_memory():
        network = torchvision.models.get_model(model, **_options(model, usual))
    network = network.to("meta").eval()
    tracer = torch.fx.Tracer()
    tracer.proxy_buffer_attributes = True  # or buffers would be copied as constants
    traced = torch.fx.GraphModule(network, tracer.trace(network))
    ShapeProp(traced).propagate(torch.empty(2, 3, usual, usual, device="meta"))
    nodes = list(traced.graph.nodes)
    classifier = max(i for i, node in enumerate(nodes) if _has_weights(traced, node))
    last = [node for node in nodes[:classifier] if _positions(node) > 1][-1]
    has_map = len(_shape(last)) == 4
    end = last if has_map else nodes[classifier].args[0]
    nodes[-1].args = (end,)
    traced.graph.eliminate_dead_code()
    kept = torch.fx.GraphModule(traced, traced.graph)
    shape = _shape(end) if size == usual else _shape_at(kept, model, size, usual)
    return Features(kept, shape[1], has_map, prod(shape[2:]))


def _shape_at(network: GraphModule, model: str, size: int, usual: int) -> tuple[int, ...]:
    """The shape of what a network gives for pictures of a size. Raises EncoderError."""
    import torch
    import torch.fx

    pictures = torch.empty(2, 3, size, size, device="meta")
    try:
        # Run as it is, it would print where it failed.
        shape = torch.fx.Interpreter(network).run(pictures).shape
    except Exception as error:  # assertions, shapes that do not fit, maps of no size
        raise cannot_see(model, size, usual) from error
    return tuple(shape)


def _options(model: str, size: int) -> dict[str, Any]:
    """What a constructor must be told to build the network of the published weights."""
    if model.startswith("vit_"):
        return {"image_size": size}  # position embeddings are made for one size
    if model in ("googlenet", "inception_v3"):
        # Their published weights expect -1…1; random numbers would be thrown away.
        return {"transform_input": True, "init_weights": False}
    return {}


def _has_weights(network: GraphModule, node: Node) -> bool:
    if node.op != "call_module":
        return False
    return any(True for _ in network.get_submodule(node.target).parameters())


def _shape(node: Node) -> tuple[int, ...]:
    """The shape of what a node gives; () where that is not one tensor."""
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))


def _positions(node: Node) -> int:
    """In how many places of a picture a node's tensor has numbers: 1 for a vector."""
    shape = [length for length in _shape(node)[1:] if length > 1]
    return 1 if len(shape) < 2 else 2
