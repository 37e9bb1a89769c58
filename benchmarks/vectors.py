"""Vectors to search in: real embeddings of photos, and any number of others like them.

White noise is no test for a nearest-neighbour index, and nobody has a million photos at
hand. So a model is fitted to the embeddings of some thousand real ones, and vectors are
drawn from it. `--report` shows that those are no easier to search than the real ones.

    python benchmarks/vectors.py --report --size 10000 --size 100000
    python benchmarks/vectors.py --size 1000000 --work DIR     # DIR/vectors-1000000.npy

The model is a random tree. An embedding is the mean of the real ones plus a sum of
deviations, one for each node on a path from the root to a leaf, and the deviations are
those of real photos, so that covariance and sparsity are theirs. They shrink by `SHRINK`
a level while the tree branches `BRANCHES`-fold: neighbourhoods look alike at every scale,
with an intrinsic dimension of about log(branches) / -log(shrink). A larger draw reaches
more nodes: it has more clusters, and clusters in them, as a larger collection has. A
second, weaker tree (photos are alike in more ways than one) keeps clusters from being
islands, and spreads that vary by node make some of them dense and some loose. All of this
happens on square roots of features; what falls below a feature's threshold is cut to an
exact zero, as often as it is zero in the real ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SHARED = HERE.parent.parent / "shared"  # photos and weights, where they are at hand
PHOTOS = SHARED / "photos"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_imagenet.pth"
CACHE = HERE / ".cache"

DIMENSIONS = 2048
CENTRE_CHANNELS = 768  # of the middle of the picture; 1280 of the whole

# Chosen so that a draw is no easier than the real photos by any column of the report.
BRANCHES = 8
SHRINK = 0.86  # of distances, a level
LEVELS = 8  # 8 ** 8: 17 million leaves
SHARES = (0.75, 0.25)  # of the variance, a tree
SPREAD = 0.17  # standard deviation of the logarithm of a node's spread, a level

Blocks = Iterator[np.ndarray]


@dataclass(frozen=True)
class Model:
    """What vectors are drawn from; `fit()` makes one.

    `centre` (d,) and `deviations` (n, d) are of the square roots of real features, and
    `threshold` (d,) is what is zero, all float32.
    """

    centre: np.ndarray
    deviations: np.ndarray
    threshold: np.ndarray

    def draw(self, n: int, seed: int, block: int = 10_000) -> Blocks:
        """Yield n L2-normalised vectors in blocks: float32 arrays of shape (≤ block, d).

        Draws of other seeds are other vectors of the same collection: other leaves of
        the same tree. The same n, seed and block give the same vectors.
        """
        rng = np.random.default_rng(seed)
        for start in range(0, n, block):
            yield self._finish(self._latent(min(block, n - start), rng))

    def _latent(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Square roots of n vectors, before anything is cut: float32 (n, d)."""
        from torch import from_numpy
        from torch.nn.functional import embedding_bag

        paths = [self._path(tree, n, rng) for tree in range(len(SHARES))]
        nodes = np.concatenate([nodes for nodes, _ in paths], axis=1)
        weights = np.concatenate([weights for _, weights in paths], axis=1)
        sums = embedding_bag(
            from_numpy(nodes),
            from_numpy(self.deviations),
            per_sample_weights=from_numpy(weights),
            mode="sum",
        )
        return sums.numpy() + self.centre

    def _path(
        self, tree: int, n: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """A way from the root to a leaf for n vectors: whose deviations, with what weight.

        Both of shape (n, LEVELS + 2). Two deviations of its own set a vector apart from
        others of its leaf.
        """
        node = np.full(n, tree + 1, np.uint64)
        spread = np.full(n, SHARES[tree] ** 0.5, np.float32)
        chosen, weights = [], []
        for level in range(LEVELS):
            node = _mixed(
                node * np.uint64(BRANCHES) + rng.integers(BRANCHES, size=n, dtype="u8")
            )
            chosen.append(node % np.uint64(len(self.deviations)))
            weights.append(spread * SHRINK**level * (1 - SHRINK**2) ** 0.5)
            spread = spread * np.exp(SPREAD * _gaussian(node) - SPREAD**2)
        for _ in range(2):
            chosen.append(rng.integers(len(self.deviations), size=n, dtype="u8"))
            weights.append(spread * SHRINK**LEVELS * 0.5**0.5)
        return (
            np.stack(chosen, axis=1).astype(np.int64),
            np.stack(weights, axis=1).astype(np.float32),
        )

    def _finish(self, latent: np.ndarray) -> np.ndarray:
        """Cut at zero, undo the square root, normalise; changes its argument."""
        latent -= self.threshold
        np.maximum(latent, 0, out=latent)
        return normalised(np.square(latent, out=latent))

    def save(self, file: Path) -> None:
        """Half precision is plenty: some 20 MB."""
        half = self.deviations.astype(np.float16)
        np.savez(file, centre=self.centre, deviations=half, threshold=self.threshold)

    @classmethod
    def load(cls, file: Path) -> Model:
        with np.load(file) as data:
            return cls(**{name: data[name].astype(np.float32) for name in data.files})


def fit(features: np.ndarray) -> Model:
    """The model of these features: float32 of shape (n, d), none negative."""
    roots = np.sqrt(normalised(features))
    centre = roots.mean(axis=0)
    uncut = Model(centre, roots - centre, np.zeros_like(centre))
    latent = uncut._latent(5_000, np.random.default_rng(0))
    zeros = (features == 0).mean(axis=0)
    threshold = [
        np.quantile(column, share) for column, share in zip(latent.T, zeros, strict=True)
    ]
    return Model(centre, uncut.deviations, np.float32(threshold))


def normalised(features: np.ndarray) -> np.ndarray:
    """As a collection stores them: rows of length 1, float32."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.divide(features, lengths, dtype=np.float32)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """uint64 to uint64 that looks random: the finaliser of SplitMix64 (Steele, 2014)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _gaussian(nodes: np.ndarray) -> np.ndarray:
    """A standard normal number that belongs to a node, by Box and Muller: float64 (n,)."""
    bits = _mixed(nodes)
    one = ((bits >> np.uint64(32)) + np.uint64(1)) / 2.0**32
    two = (bits & np.uint64(0xFFFFFFFF)) / 2.0**32
    return np.sqrt(-2 * np.log(one)) * np.cos(2 * np.pi * two)


# Real features


def real_features(
    photos: Path = PHOTOS, weights: Path = WEIGHTS, cache: Path = CACHE
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of photos, L2-normalised, and their labels: float32 (n, 2048), str (n,).

    The network is torchvision's MobileNetV2, whose last map has 1,280 channels. Their
    averages over the picture are followed by those of the first 768 over the middle
    3 × 3 of its 7 × 7 places, to have as many as ResNet50: averages again, as sparse and
    of the same size. (Maxima are several times larger than averages and would drown them.)
    A label is a photo's folder, as in "caltech101/airplanes". Computed once, then cached.
    """
    file = cache / "features.npz"
    if file.exists():
        with np.load(file) as data:
            return data["features"], data["labels"]
    files = sorted(p for p in photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise SystemExit(f"No photos in {photos}: name a folder of JPEGs with --photos")
    print(f"Embedding {len(files):,} photos, once …", flush=True)
    features = normalised(_embed(files, weights))
    labels = np.array([file.parent.relative_to(photos).as_posix() for file in files])
    _make_cache(cache)
    np.savez(file, features=features, labels=labels)
    return features, labels


def _embed(files: list[Path], weights: Path, batch: int = 64) -> np.ndarray:
    """Features of pictures, not normalised: float32 of shape (n, 2048)."""
    import torch
    from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

    if weights.exists():
        network = mobilenet_v2()
        network.load_state_dict(torch.load(weights, weights_only=True))
    else:
        network = mobilenet_v2(weights=MobileNet_V2_Weights.IMAGENET1K_V1)
    layers = network.eval().features.to(memory_format=torch.channels_last)
    mean = torch.tensor([0.485, 0.456, 0.406]) * 255
    deviation = torch.tensor([0.229, 0.224, 0.225]) * 255
    features = []
    with torch.inference_mode():
        for start in range(0, len(files), batch):
            pixels = np.stack([_pixels(file) for file in files[start : start + batch]])
            pictures = (torch.from_numpy(pixels) - mean) / deviation
            maps = layers(pictures.permute(0, 3, 1, 2))
            middle = maps[:, :CENTRE_CHANNELS, 2:5, 2:5]
            features.append(torch.hstack([maps.mean((2, 3)), middle.mean((2, 3))]))
    return torch.cat(features).numpy()


def _pixels(file: Path) -> np.ndarray:
    """The whole picture, squashed: uint8 of shape (224, 224, 3)."""
    from PIL import Image

    with Image.open(file) as image:
        image.draft("RGB", (224, 224))
        picture = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _make_cache(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")


def real_model(
    photos: Path = PHOTOS, weights: Path = WEIGHTS, cache: Path = CACHE
) -> Model:
    """The model fitted to real photos, from the cache where it is there."""
    file = cache / "model.npz"
    if not file.exists():
        model = fit(real_features(photos, weights, cache)[0])
        model.save(file)
    return Model.load(file)


def write(model: Model, file: Path, n: int, seed: int) -> None:
    """Draw n vectors into a .npy file, a block at a time."""
    partial = file.with_suffix(".partial")
    shape = (n, len(model.centre))
    out = np.lib.format.open_memmap(partial, "w+", dtype=np.float32, shape=shape)
    start = 0
    for block in model.draw(n, seed):
        out[start : start + len(block)] = block
        start += len(block)
    out.flush()
    partial.rename(file)


# The report

QUERIES = 300
CELLS = 64


@dataclass(frozen=True)
class Hardness:
    """How hard vectors are to search in. Medians over queries that are not among them."""

    n: int
    contrast: float  # mean distance / distance of the nearest
    lid20: float  # local intrinsic dimension, from the 20 nearest
    lid100: float
    zeros: float  # share of numbers that are 0


def hardness(queries: np.ndarray, blocks: Blocks) -> Hardness:
    """Measure how hard it is to find the nearest of queries: float32 of shape (q, d).

    The intrinsic dimension is the maximum-likelihood estimate of Levina and Bickel (2004).
    """
    n = zeros = 0
    total = np.zeros(len(queries))
    nearest = np.empty((len(queries), 0), np.float32)
    for block in blocks:
        distances = np.sqrt(np.maximum(2 - 2 * queries @ block.T, 1e-9))
        total += distances.sum(axis=1)
        zeros += int((block == 0).sum())
        n += len(block)
        nearest = np.sort(np.hstack([nearest, distances]))[:, :100]

    def dimension(k: int) -> float:
        ratios = np.log(nearest[:, : k - 1] / nearest[:, k - 1 : k])
        return float(np.median(-1 / ratios.mean(axis=1)))

    return Hardness(
        n=n,
        contrast=float(np.median(total / n / nearest[:, 0])),
        lid20=dimension(20),
        lid100=dimension(100),
        zeros=zeros / n / queries.shape[1],
    )


@dataclass(frozen=True)
class Yield:
    """What the usual short cuts find of the 10 nearest: mean shares over queries."""

    variance: float  # share of the variance in the first 256 principal components
    cells: float  # the 4 of 64 k-means cells whose centres are nearest hold so many
    signs: float  # the best 80 by 512 sign bits (centred, rotated) hold so many


def shortcuts(queries: np.ndarray, vectors: np.ndarray) -> Yield:
    """Try an inverted list and a binary code: float32 arrays of shape (q, d) and (n, d)."""
    rng = np.random.default_rng(0)
    mean = vectors.mean(axis=0)
    nearest = _best(queries @ vectors.T, 10)
    centres = _k_means(vectors, CELLS, rng)
    cell = (vectors @ centres.T).argmax(axis=1)
    probed = _best(queries @ centres.T, 4)
    rotation = np.linalg.qr(rng.standard_normal((len(mean), 512)))[0].astype(np.float32)
    codes, asked = (np.sign((x - mean) @ rotation) for x in (vectors, queries))
    found = _best(asked @ codes.T, 80)
    variances = np.linalg.svd(vectors - mean, compute_uv=False) ** 2
    return Yield(
        variance=float(variances[:256].sum() / variances.sum()),
        cells=float((cell[nearest][:, :, None] == probed[:, None]).any(axis=2).mean()),
        signs=float((nearest[:, :, None] == found[:, None]).any(axis=2).mean()),
    )


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k highest scores of each row, in no order: int of shape (q, k)."""
    return np.argpartition(-scores, k, axis=1)[:, :k]


def _k_means(vectors: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Centres by spherical k-means, 15 rounds: float32 of shape (k, d)."""
    centres = vectors[rng.choice(len(vectors), k, replace=False)]
    for _ in range(15):
        cell = (vectors @ centres.T).argmax(axis=1)
        members = np.eye(k, dtype=np.float32)[cell]
        centres = normalised(members.T @ vectors + 1e-6 * centres)  # one may be empty
    return centres


def report(features: np.ndarray, labels: np.ndarray, model: Model, sizes: list[int]) -> str:
    """Real and drawn vectors side by side, as a Markdown table."""
    sets = np.array([label.split("/")[0] for label in labels])
    lines = [
        "| vectors | n | contrast | LID, k=20 | LID, k=100 | zeros | variance in 256 PCs "
        "| 10 nearest in 4 of 64 cells | in the best 80 by 512 signs |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]

    def add(name: str, queries: np.ndarray, blocks: Blocks, first: np.ndarray) -> None:
        measured = hardness(queries, blocks)
        found = shortcuts(queries, first)
        lines.append(
            f"| {name} | {measured.n:,} | {measured.contrast:.2f} | {measured.lid20:.1f} | "
            f"{measured.lid100:.1f} | {measured.zeros:.3f} | {found.variance:.2f} | "
            f"{found.cells:.3f} | {found.signs:.3f} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)

    rng = np.random.default_rng(0)
    groups = {f"real, {name}": features[sets == name] for name in np.unique(sets)}
    for name, group in {**groups, "real, all": features}.items():
        shuffled = rng.permutation(group)
        base = shuffled[QUERIES:]
        add(name, shuffled[:QUERIES], iter([base]), base)
    same = len(features) - QUERIES
    queries = next(model.draw(QUERIES, seed=1))
    first = next(model.draw(same, seed=2))  # short cuts are compared at one size
    add("drawn", queries, iter([first]), first)
    for n in sizes:
        add("drawn", queries, model.draw(n, seed=2), first)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of JPEGs")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="MobileNetV2 to use")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument(
        "--size", type=int, action="append", default=[], help="draw so many"
    )
    parser.add_argument("--report", action="store_true", help="compare with the real ones")
    parser.add_argument("--work", type=Path, help="write DIR/vectors-SIZE.npy")
    given = parser.parse_args()
    model = real_model(given.photos, given.weights, given.cache)
    if given.report:
        features, labels = real_features(given.photos, given.weights, given.cache)
        print(report(features, labels, model, given.size))
    if given.work:
        given.work.mkdir(parents=True, exist_ok=True)
        for n in given.size:
            write(model, given.work / f"vectors-{n}.npy", n, seed=2)


if __name__ == "__main__":
    main()
