"""A tiny text–image model, made by open_clip itself and written as open_clip writes them.

Its numbers are random, so that it understands nothing: what is tested is that we compute
what open_clip computes from the same files.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from datasette_image_similarity.collection import EncoderOptions, ImageCollection

# Looked for, and loaded where it is used: each process that runs tests reads all of them.
if find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed", allow_module_level=True)

# Most of it are the tokenizer's 49,408 pieces of words: 8 numbers of 2 bytes for each.
NETWORK: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 8,
        "heads": 2,
        "layers": 2,
    },
}
TEXT = "red shoes on grass"
PREPROCESS = {
    "mean": [0.4, 0.45, 0.5],
    "std": [0.2, 0.25, 0.3],
    "interpolation": "bilinear",
    "resize_mode": "shortest",
}


def make_model(folder: Path, seed: int = 0, network: dict[str, Any] | None = None) -> Path:
    """The folder with a model in it: a configuration, and weights in half precision."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    network = network or NETWORK
    folder.mkdir(parents=True)
    config = {"model_cfg": network, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = dict(network)
        kind = (
            open_clip.CustomTextCLIP if made.pop("custom_text", False) else open_clip.CLIP
        )
        model = kind(**made)
        # As they begin, networks give nearly the same vector for every picture.
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def options(model: Path, fit: str = "crop") -> EncoderOptions:
    """What `embed` is asked for: the model, as it looks at pictures itself."""
    return EncoderOptions("open_clip", str(model), fit=fit, precision="float32")


def embed_worded(path: Path, photos: Path, model: Path, **more: Any) -> Path:
    """A database with the pictures embedded by the model."""
    with ImageCollection(path, name=more.pop("name", None)) as collection:
        collection.embed(
            photos, encoder=options(model), label_from_folder=True, workers=1, **more
        )
    return path


def by_open_clip(folder: Path) -> tuple[Any, Any, Any]:
    """The model, its preprocessing and its tokenizer, as open_clip itself reads them."""
    name = f"local-dir:{folder}"
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


def ranked(folder: Path, photos: Path, text: str) -> list[tuple[str, float]]:
    """(name, cosine) of pictures as open_clip itself ranks them for a text, best first."""
    import torch
    from PIL import Image

    model, preprocess, tokenizer = by_open_clip(folder)
    files = sorted(photos.rglob("*.png"))
    pictures = torch.stack([preprocess(Image.open(file).convert("RGB")) for file in files])
    with torch.inference_mode():
        seen = model.encode_image(pictures, normalize=True)
        said = model.encode_text(tokenizer([text]), normalize=True)[0]
    cosines = [
        (file.name, float(one @ said)) for file, one in zip(files, seen, strict=True)
    ]
    return sorted(cosines, key=lambda pair: -pair[1])
