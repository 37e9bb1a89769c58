"""What each precision gains, and what it costs in quality.

    python benchmarks/precision.py --photos FOLDER [--weights FILE] [--model mobilenet_v2]

FOLDER holds one folder of photos for each class, or several such sets. Speed is that of
ResNet50 with random weights, on random pixels, the precisions taking turns. Quality is
that of a trained network: of torchvision's own weights, unless FILE has others.

P@5: how many of the five nearest neighbours are of the picture's own class. mAP: mean
average precision of the ranking of all others. Copies: pictures shrunk to three quarters
and saved as JPEG of quality 60 whose nearest neighbour is the original. Mixed: every
second vector is in float32.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from datasette_image_similarity.encoders import Encoder, load_encoder
from datasette_image_similarity.encoders.precision import capabilities
from datasette_image_similarity.errors import EncoderError

PRECISIONS = ("float32", "bfloat16", "int8")
SUFFIXES = {".jpg", ".jpeg", ".png"}
SIZE = 224
BATCH = 64  # pictures a call
CALIBRATED_AFTER = 256  # pictures


@dataclass(frozen=True)
class Photos:
    """One set of photos: pixels are uint8 (n, SIZE, SIZE, 3)."""

    name: str
    pixels: np.ndarray
    copies: np.ndarray  # of every fifth picture
    labels: np.ndarray


@dataclass(frozen=True)
class Vectors:
    """Of one set, of length 1: float32 (n, d)."""

    originals: np.ndarray
    copies: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--rounds", type=int, default=7, help="of measuring speed")
    options = parser.parse_args()
    print_machine()
    print_speed(options.rounds)
    print_quality(options.model, options.weights, list(photo_sets(options.photos)))


def print_machine() -> None:
    import torch

    kind = ", ".join(sorted(capabilities() & {"avx512_bf16", "amx_bf16", "bf16"}))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, native bfloat16: {kind or 'no'}; "
        f"Python {platform.python_version()}, torch {torch.__version__}; "
        f"{time.strftime('%Y-%m-%d')}\n"
    )


def encoder(model: str, weights: str | None, precision: str) -> Encoder | None:
    """None where the precision cannot be had."""
    try:
        return load_encoder(model, weights=weights, device="cpu", precision=precision)
    except EncoderError as error:
        print(f"{precision} is left out: {error}\n")
        return None


# Speed


def print_speed(rounds: int) -> None:
    """Images per second of ResNet50; medians of turns."""
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        weights = random_resnet50(Path(folder))
        encoders = {p: encoder("resnet50", weights, p) for p in PRECISIONS}
    encoders = {name: one for name, one in encoders.items() if one}
    for one in encoders.values():
        for _ in range(CALIBRATED_AFTER // BATCH + 1):
            one.encode(pixels)
    seconds = {name: [] for name in encoders}
    cpu = {name: [] for name in encoders}
    for _ in range(rounds):
        for name, one in encoders.items():
            wall, used = time.perf_counter(), time.process_time()
            one.encode(pixels)
            seconds[name].append((time.perf_counter() - wall) / BATCH)
            cpu[name].append((time.process_time() - used) / BATCH)
    print("| ResNet50 | images/s | core time an image | to float32 |")
    print("|---|---|---|---|")
    slowest = np.median(seconds["float32"])
    for name, taken in seconds.items():
        median = np.median(taken)
        core = f"{np.median(cpu[name]) * 1e3:.1f} ms"
        print(f"| {name} | {1 / median:.0f} | {core} | {slowest / median:.1f} × |")
    print()


def random_resnet50(folder: Path) -> str:
    """The path of a file with random weights, always the same."""
    import torch
    import torchvision

    torch.manual_seed(0)
    path = folder / "resnet50.pth"
    torch.save(torchvision.models.resnet50().state_dict(), path)
    return str(path)


# Quality


def photo_sets(folder: Path) -> Iterator[Photos]:
    """The sets in a folder: itself, or its folders that hold folders."""
    sets = [
        one
        for one in sorted(folder.iterdir())
        if one.is_dir() and any(child.is_dir() for child in one.iterdir())
    ]
    for one in sets or [folder]:
        files = sorted(f for f in one.glob("*/*") if f.suffix.lower() in SUFFIXES)
        pixels, copies = [], []
        for number, file in enumerate(files):
            picture = Image.open(file).convert("RGB")
            pixels.append(square(picture))
            if number % 5 == 0:
                copies.append(square(saved_again(picture)))
        labels = np.array([file.parent.name for file in files])
        yield Photos(one.name, np.stack(pixels), np.stack(copies), labels)


def square(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def saved_again(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    size = (max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4))
    picture.resize(size).save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


def print_quality(model: str, weights: str | None, sets: list[Photos]) -> None:
    print(
        f"| {model} | photos | cosine to float32: mean, lowest | P@5 | mAP | copies "
        "| mixed: P@5 | mAP | copies |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    reference: dict[str, Vectors] = {}
    for precision in PRECISIONS:
        for photos in sets:
            one = encoder(model, weights, precision)
            if one is None:
                break
            vectors = Vectors(unit(one, photos.pixels), unit(one, photos.copies))
            exact = reference.setdefault(photos.name, vectors)
            cosines = (vectors.originals * exact.originals).sum(axis=1)
            mixed = vectors.originals.copy()
            mixed[1::2] = exact.originals[1::2]
            cells = [
                precision,
                f"{len(photos.pixels):,} of {photos.name}",
                f"{cosines.mean():.4f}, {cosines.min():.4f}",
                *quality(vectors.originals, vectors.copies, photos.labels),
                *quality(mixed, vectors.copies, photos.labels),
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


def unit(one: Encoder, pixels: np.ndarray) -> np.ndarray:
    """Vectors of length 1."""
    starts = range(0, len(pixels), BATCH)
    vectors = np.concatenate([one.encode(pixels[i : i + BATCH]) for i in starts])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def quality(
    vectors: np.ndarray, copies: np.ndarray, labels: np.ndarray
) -> tuple[str, str, str]:
    """P@5, mAP, and the share of copies that find their original."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1)[:, :-1]
    right = labels[order] == labels[:, None]
    precision = right.cumsum(axis=1) / np.arange(1, right.shape[1] + 1)
    average = (precision * right).sum(axis=1) / np.maximum(right.sum(axis=1), 1)
    found = (copies @ vectors.T).argmax(axis=1) == np.arange(len(copies)) * 5
    return (
        f"{right[:, :5].mean():.4f}",
        f"{average.mean():.4f}",
        f"{found.mean():.4f}",
    )


if __name__ == "__main__":
    main()
