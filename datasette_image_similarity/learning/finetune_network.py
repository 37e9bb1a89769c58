"""A network that is being fine-tuned: its layers, its optimiser, one step.

Imported when training begins, not before: it imports torch.

The loss is the normalised softmax: cross-entropy, with label smoothing, over the cosines of
a picture's embedding and a learned vector for each class, divided by a temperature. What
is trained is then what search compares by. (Wang et al., "NormFace", 2017; Zhai and Wu,
"Classification is a strong baseline for deep metric learning", 2019.) Class vectors begin
as the means of their classes, so the first steps do not undo what the network knows (Kumar
et al., "Fine-tuning can distort pretrained features", 2022).

The network stays in evaluation mode: batch norms keep their statistics, which a few
pictures of a few classes would only spoil, and nothing is dropped at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn.functional import cross_entropy, normalize

from ..encoders.precision import choose
from ..encoders.running import Pixels2Vectors
from ..encoders.spec import EncoderSpec
from ..errors import CollectionError
from .augment import augmented, plain
from .finetune import Settings

TEMPERATURE = 0.1
SMOOTHING = 0.1
WEIGHT_DECAY = 0.01
DEEPER = 10  # times the first layer's learning rate is the last one's
CLASSIFIER = 10  # times the last layer's learning rate is the class vectors'
WARMUP = 20  # of all steps, one so many-th
EMBEDDED = 64  # pictures that are embedded at once


class Tuning:
    """A network and its class vectors, and the state of their optimiser."""

    def __init__(
        self, network: GraphModule, spec: EncoderSpec, device: str, settings: Settings
    ) -> None:
        self.spec, self.device, self.settings = spec, device, settings
        if device != "mps":
            network.to(memory_format=torch.channels_last)
        self.model = Pixels2Vectors(network, spec, torch.float32).to(device).eval()
        # float16 would need its losses scaled, and what scales them checkpointed.
        self.mixed = device == "cuda" and torch.cuda.is_bf16_supported(False)
        self.layers = _layers(self.model.network)
        first = round(settings.freeze * (len(self.layers) - 1))
        self.model.requires_grad_(False)
        for layer in self.layers[first:]:
            for parameter in layer:
                parameter.requires_grad_(True)
        self.trained = {
            name: parameter
            for name, parameter in self.model.network.named_parameters()
            if parameter.requires_grad
        }
        self.base = {name: one.detach().clone() for name, one in self.trained.items()}
        self.steps = 0  # taken

    def begin(self, pixels: np.ndarray, rows: np.ndarray, classes: np.ndarray) -> None:
        """Begin with the means of the classes' embeddings.

        `pixels` and `rows` as of `embedded()`; `classes` int64 (r,), from 0 on.
        """
        count = int(classes.max()) + 1
        vectors = torch.from_numpy(self.embedded(pixels, rows))
        vectors = normalize(vectors).to(self.device)
        means = torch.zeros(count, vectors.shape[1], device=self.device)
        means.index_add_(0, torch.from_numpy(classes).to(self.device), vectors)
        self.classes = normalize(means).requires_grad_(True)
        self.optimizer = self._optimizer()

    def step(self, pixels: np.ndarray, classes: np.ndarray, total: int) -> float:
        """One step of `total` by a batch, uint8 (n, side, side, 3); its loss."""
        seed = np.random.SeedSequence([self.settings.seed, self.steps])
        chance = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
        batch = torch.from_numpy(pixels).to(self.device)
        batch = augmented(batch, self.spec.input.size, chance, flip=self.settings.flip)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
            vectors = self.model(batch)
        cosines = normalize(vectors) @ normalize(self.classes).T
        wanted = torch.from_numpy(classes).to(self.device)
        loss = cross_entropy(cosines / TEMPERATURE, wanted, label_smoothing=SMOOTHING)
        rate = self.settings.lr * _schedule(self.steps, total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.zero_grad()
        if not torch.isfinite(loss):
            raise CollectionError(
                "Training failed, its loss is not finite: choose a smaller --lr"
            )
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return float(loss.detach())

    def embedded(
        self,
        pixels: np.ndarray,
        rows: np.ndarray,
        state: Mapping[str, Tensor] | None = None,
    ) -> np.ndarray:
        """Embeddings of some pictures: float32 (r, d), as precise as those of `embed`.

        `pixels` uint8 (n, side, side, 3), `rows` int64 (r,); `state` is of the trained
        layers, if not as now.
        """
        network = deepcopy(self.model.network).requires_grad_(False)
        if state is not None:
            network.load_state_dict(state, strict=False)
        dtype = getattr(torch, choose("auto", self.device))
        model = Pixels2Vectors(network, self.spec, dtype).to(self.device).eval()
        size = self.spec.input.size
        parts = []
        with torch.inference_mode():
            for start in range(0, len(rows), EMBEDDED):
                batch = torch.from_numpy(pixels[rows[start : start + EMBEDDED]])
                batch = batch.to(self.device)
                if batch.shape[1] != size:
                    batch = plain(batch, size)
                parts.append(model(batch).cpu())
        return torch.cat(parts).numpy()

    def mixture(self, state: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """The trained layers, so far on the way from how they were to a state of them.

        Wortsman et al., "Robust fine-tuning of zero-shot models" (2022).
        """
        return {name: old.lerp(state[name], share) for name, old in self.base.items()}

    def now(self) -> dict[str, Tensor]:
        """A copy of the trained layers."""
        return {name: one.detach().clone() for name, one in self.trained.items()}

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole network's state_dict, with the trained layers in this state."""
        return {**self.model.network.state_dict(), **state}

    # Checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """All that changes from step to step, by name."""
        found = {f"network/{name}": one for name, one in self.trained.items()}
        found["classes"] = self.classes
        for number, state in self.optimizer.state_dict()["state"].items():
            found |= {f"adam/{number}/{key}": value for key, value in state.items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Go on from what `tensors()` gave. Raises KeyError, RuntimeError for another's."""
        self.classes = tensors["classes"].to(self.device).requires_grad_(True)
        self.optimizer = self._optimizer()
        with torch.no_grad():
            for name, one in self.trained.items():
                one.copy_(tensors[f"network/{name}"])
        self.steps = steps
        if not steps:
            return
        groups = self.optimizer.state_dict()["param_groups"]
        state = {
            number: {
                key: tensors[f"adam/{number}/{key}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
            for group in groups
            for number in group["params"]
        }
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW, with a learning rate for each layer: the deeper, the higher."""
        last = max(1, len(self.layers) - 1)
        groups = []
        for depth, layer in enumerate(self.layers):
            factor = DEEPER ** (depth / last - 1)
            for decay in (WEIGHT_DECAY, 0.0):  # weights, and what scales or shifts
                some = [
                    one
                    for one in layer
                    if one.requires_grad and (one.ndim > 1) == (decay > 0)
                ]
                if some:
                    groups.append({"params": some, "factor": factor, "weight_decay": decay})
        groups.append({"params": [self.classes], "factor": CLASSIFIER, "weight_decay": 0.0})
        return torch.optim.AdamW(groups, lr=self.settings.lr)


def _layers(network: GraphModule) -> list[list[torch.nn.Parameter]]:
    """The parameters, layer by layer, in the order in which a picture meets them."""
    met: set[torch.nn.Parameter] = set()
    layers = []
    for node in network.graph.nodes:
        if node.op == "call_module":
            found = list(network.get_submodule(node.target).parameters())
        elif node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            found = [getattr(network.get_submodule(owner), name)]
        else:
            continue
        new = [
            one for one in found if isinstance(one, torch.nn.Parameter) and one not in met
        ]
        met.update(new)
        if new:
            layers.append(new)
    return layers


def _schedule(step: int, total: int) -> float:
    """Of the learning rate: a linear warm-up, then half a cosine down to nothing."""
    warm = max(1, total // WARMUP)
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, total - warm))) / 2
