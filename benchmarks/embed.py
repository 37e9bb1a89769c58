"""What it costs to put pictures in.

    python benchmarks/embed.py [--photos DIR] [--model resnet50] [--weights FILE]

Measures each part of the work alone, and whole runs from JPEG files to a committed SQLite
file, for small photos and for 12-megapixel ones made of them (`--no-large` leaves those
out); the same files beside other programs, as far as they are installed (see
requirements.txt); runs with nothing new (`--rows`) and with ten new photos in 100,000
(`--stored`). Prints Markdown. Without `--weights` the network has random ones, which take
as long. Every run is a process of its own; runs that are compared take turns.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import common

from datasette_image_similarity import ImageCollection
from datasette_image_similarity import database as db
from datasette_image_similarity.collection import THUMBNAIL, EncoderOptions
from datasette_image_similarity.encoders import load_encoder
from datasette_image_similarity.images import LOCAL_FILES, Decoder, Request

PHOTOS = Path(__file__).parents[2] / "shared" / "photos"
MEGABYTE = 2**20


@dataclass(frozen=True)
class Network:
    """Which network, and the file with its weights."""

    model: str
    weights: str

    @property
    def options(self) -> EncoderOptions:
        return EncoderOptions(self.model, self.weights, device="cpu")


# Pictures


def small_photos(photos: Path, count: int, folder: Path) -> Path:
    """A folder with copies of some of the photos, always the same."""
    found = sorted(photos.rglob("*.jpg"))
    folder.mkdir()
    for number, file in enumerate(random.Random(0).sample(found, count)):
        shutil.copy(file, folder / f"{number:05}.jpg")
    return folder


def large_photos(photos: Path, count: int, folder: Path) -> Path:
    """Twelve photos each, enlarged and with the grain of a sensor: 4000 × 3000.

    32 different ones; further ones differ by a byte at their end, so all are embedded.
    """
    import numpy as np
    from PIL import Image

    found, chance = sorted(photos.rglob("*.jpg")), random.Random(0)
    folder.mkdir()
    for number in range(min(count, 32)):
        mosaic = Image.new("RGB", (4000, 3000))
        for corner in [(x, y) for x in range(0, 4000, 1000) for y in range(0, 3000, 1000)]:
            tile = Image.open(chance.choice(found)).convert("RGB")
            mosaic.paste(tile.resize((1000, 1000), Image.Resampling.BICUBIC), corner)
        grain = np.random.default_rng(number).normal(0, 5, (3000, 4000, 1))
        pixels = np.clip(np.asarray(mosaic) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=90)
    for number in range(32, count):
        data = (folder / f"{number % 32:05}.jpg").read_bytes()
        (folder / f"{number:05}.jpg").write_bytes(data + bytes([number // 32 % 256]))
    return folder


def random_weights(model: str, folder: Path) -> str:
    """The path of a file with weights as torchvision draws them, from a fixed seed."""
    import torch
    import torchvision

    torch.manual_seed(0)
    file = folder / f"{model}.pth"
    network = torchvision.models.get_model(model, weights=None)
    torch.save(network.state_dict(), file)
    return str(file)


# Measuring


def alone(function: Callable, *arguments: Any) -> Any:
    """What a function gives in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def core_time(function: Callable[[], object], pictures: int, rounds: int = 3) -> float:
    """Milliseconds of a core for each picture: the median of a few rounds."""
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        function()
        taken.append((time.process_time() - started) * 1000 / pictures)
    return median(taken)


def parts(folder: Path, network: Network) -> dict[str, float]:
    """Milliseconds of a core for each part of the work, by name, on one thread."""
    import hashlib

    import numpy as np
    import torch

    from datasette_image_similarity import image_worker

    torch.set_num_threads(1)
    encoder = load_encoder(network.model, weights=network.weights, device="cpu")
    files = sorted(folder.iterdir())[:64]
    contents = [file.read_bytes() for file in files]
    squares, whole = Request(encoder.input), Request(encoder.input, THUMBNAIL)
    with Decoder(LOCAL_FILES) as decoder:
        pixels = [decoder.decode(data, squares).pixels for data in contents]
    pixels = np.stack((pixels * 64)[:64])
    encoder.encode(pixels)

    def decode(request: Request) -> Callable[[], object]:
        return lambda: [image_worker.decode(data, request) for data in contents]

    count = len(files)
    decoding = core_time(decode(squares), count)
    return {
        "forward": core_time(lambda: encoder.encode(pixels), len(pixels)),
        "decode": decoding,
        "thumbnail": core_time(decode(whole), count) - decoding,
        "read, hash": core_time(
            lambda: [hashlib.sha256(f.read_bytes()).hexdigest() for f in files], count
        ),
    }


def our_run(folder: Path, network: Network, options: dict[str, Any]) -> dict[str, float]:
    """One run of `embed` into a new database: images/s from the first to the last."""
    with tempfile.TemporaryDirectory() as temporary:
        return timed_embed(Path(temporary) / "x.db", folder, network.options, **options)


def timed_embed(
    database: Path, source: Any, encoder: EncoderOptions | None, **options: Any
) -> dict[str, float]:
    """Seconds, core seconds and memory of one `embed`, without those of its imports."""
    marks: list[tuple[float, float, int]] = []

    def progress(now: Any) -> None:
        marks.append((time.perf_counter(), sum(os.times()[:4]), resident()))

    started = time.perf_counter()
    with ImageCollection(database) as collection:
        summary = collection.embed(source, encoder=encoder, progress=progress, **options)
    finished = time.perf_counter(), sum(os.times()[:4])  # decoders have ended: they count
    return {
        "pictures": summary.embedded,
        "unchanged": summary.unchanged,
        "seconds": finished[0] - marks[0][0],
        "all seconds": finished[0] - started,
        "core seconds": finished[1] - marks[0][1],
        "memory": max(mark[2] for mark in marks),  # in kB
    }


def resident() -> int:
    """The most that this process and its children have had in memory each, in kB.

    Not what `getrusage` says of children: before they start another program they count
    as being as large as their parent.
    """
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = ""
    for thread in Path("/proc/self/task").glob("*/children"):
        children += thread.read_text()
    for child in children.split():
        status = Path(f"/proc/{child}/status").read_text()
        own += int(re.search(r"VmHWM:\s*(\d+)", status)[1])
    return own


# Beside others


def naive_run(folder: Path, network: Network) -> float:
    """One picture after the other, as notebooks do: images/s."""
    import torch
    from PIL import Image

    module, transform = whole_network(network), usual_transform()
    started = time.perf_counter()
    files = sorted(folder.iterdir())
    with torch.no_grad():
        for file in files:
            module(transform(Image.open(file).convert("RGB"))[None]).numpy()
    return len(files) / (time.perf_counter() - started)


def imagededup_run(folder: Path, network: Network) -> float:
    from imagededup.methods import CNN
    from imagededup.utils.models import CustomModel

    model = CustomModel("same", whole_network(network), usual_transform())
    encoder = CNN(verbose=False, model_config=model)
    started = time.perf_counter()
    count = len(encoder.encode_images(image_dir=folder))
    return count / (time.perf_counter() - started)


def img2vec_run(folder: Path, network: Network) -> float:
    import img2vec_pytorch.img_to_vec as img2vec
    from PIL import Image

    def make(weights: object) -> Any:  # in place of torchvision's, which would download
        return whole_network(network, classifier=True)

    if not hasattr(img2vec, network.model):
        raise ImportError(f"it has no {network.model}")
    setattr(img2vec, network.model, make)
    encoder = img2vec.Img2Vec(model=network.model, layer_output_size=2048)
    files = sorted(folder.iterdir())
    started = time.perf_counter()
    for first in range(0, len(files), 32):
        batch = [Image.open(file).convert("RGB") for file in files[first : first + 32]]
        encoder.get_vec(batch)
    return len(files) / (time.perf_counter() - started)


def whole_network(network: Network, classifier: bool = False) -> Any:
    """torchvision's own module with the same weights, in eval mode, float32."""
    import torch
    import torchvision

    module = torchvision.models.get_model(network.model, weights=None)
    module.load_state_dict(torch.load(network.weights, weights_only=True))
    if not classifier:
        setattr(
            module, "fc" if hasattr(module, "fc") else "classifier", torch.nn.Identity()
        )
    return module.eval()


def usual_transform() -> Any:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def our_rate(folder: Path, network: Network) -> float:
    run = our_run(folder, network, {})
    return run["pictures"] / run["seconds"]


PEERS: dict[str, Callable[[Path, Network], float]] = {
    "datasette-image-similarity": our_rate,
    "naive loop": naive_run,
    "imagededup, CNN": imagededup_run,
    "img2vec_pytorch, batches of 32": img2vec_run,
}


# Many rows


def many_files(files: list[Path], count: int, folder: Path) -> Path:
    """A folder of `count` hard links to a few files, a thousand in each subfolder."""
    for first in range(0, count, 1000):
        inside = folder / f"{first // 50_000:03}" / f"{first // 1000:05}"
        inside.mkdir(parents=True)
        for number in range(first, min(first + 1000, count)):
            os.link(files[first // 1000 % len(files)], inside / f"{number:07}.jpg")
    return folder


def pretend_embedded(
    database: Path, folder: Path, column: bool, vectors: tuple[int, EncoderOptions] | None
) -> None:
    """Rows and items for all files of a folder, as if they had been embedded.

    With `vectors`, their number of dimensions and the encoder, there are random vectors
    as well. With `column`, it is a table of paths, not one of files.
    """
    import numpy as np

    from datasette_image_similarity.sources import folder_pictures

    encoder = vectors[1] if vectors else EncoderOptions("hog")
    with ImageCollection(database) as collection:
        conn = collection.connect(create=True)
        conn.execute("pragma synchronous = off")
        if column:
            conn.execute("create table images (id integer primary key, path text)")
            first = next(folder_pictures([folder]))
            conn.execute("insert into images (path) values (?)", (first.path,))
            collection.embed(path_column="path", root=folder, encoder=encoder)
        else:
            collection.embed(folder, encoder=encoder, limit=1)
        made = db.find_collection(conn, "images")
        root = next(iter(db.roots(conn, made)))
        draw = np.random.default_rng(0)
        with db.transaction(conn):
            for id, picture in enumerate(folder_pictures([folder]), 1):
                if id == 1:
                    continue
                conn.execute(
                    "insert into images (id, path) values (?, ?)", (id, picture.path)
                )
                conn.execute(
                    "insert into _image_similarity_items (id, collection_id, pk, root_id, "
                    "path, size, mtime_ns, sha256, width, height) "
                    "values (?, ?, ?, ?, ?, ?, ?, ?, 1, 1)",
                    (
                        *(id, made.id, id, root, picture.path),
                        *(picture.size, picture.mtime_ns, f"{id:064}"),
                    ),
                )
                if vectors:
                    vector = draw.normal(size=vectors[0]).astype("<f4")
                    vector /= np.linalg.norm(vector)
                    conn.execute(
                        f"insert into {made.vectors} values (?, ?)", (id, vector.tobytes())
                    )


def again(database: Path, folder: Path, column: bool) -> dict[str, float]:
    source: dict[str, Any] = {"path_column": "path", "root": folder} if column else {}
    return timed_embed(database, None if column else folder, None, **source)


# Reports


def report_parts(name: str, folder: Path, network: Network, rounds: int) -> None:
    cores = os.cpu_count() or 1
    taken = alone(parts, folder, network)
    needed = sum(taken[part] for part in ("forward", "decode", "thumbnail"))
    bound = cores * 1000 / needed
    runs = [alone(our_run, folder, network, {}) for _ in range(rounds)]
    rate = median(run["pictures"] / run["seconds"] for run in runs)
    spent = median(run["core seconds"] * 1000 / run["pictures"] for run in runs)
    memory = max(run["memory"] for run in runs)
    rows = [[f"{part}, ms of a core", f"{ms:.2f}"] for part, ms in taken.items()]
    rows += [
        ["a whole run, ms of a core", f"{spent:.2f}"],
        [
            f"bound, images/s: {cores} cores ÷ (forward + decode + thumbnail)",
            f"{bound:.1f}",
        ],
        ["**a whole run, images/s**", f"**{rate:.1f}**"],
        ["of the bound", f"{rate / bound:.0%}"],
        ["memory at most, MB, decoders included", f"{memory / 1024:.0f}"],
    ]
    print(f"\n### {name}\n\n{common.table(['a picture', ''], rows)}", flush=True)


def report_peers(name: str, folder: Path, network: Network, rounds: int) -> None:
    rates: dict[str, list[float]] = {}
    missing = {}
    for _ in range(rounds):
        for peer, run in PEERS.items():
            if peer in missing:
                continue
            try:
                rates.setdefault(peer, []).append(alone(run, folder, network))
            except ImportError as error:
                missing[peer] = str(error)
    ours = median(rates["datasette-image-similarity"])
    rows = [
        [peer, f"{median(found):.1f}", f"{ours / median(found):.2f}"]
        for peer, found in rates.items()
        if found
    ]
    header = ["", "images/s", "ours ÷ it"]
    print(f"\n### Beside others: {name}\n\n{common.table(header, rows)}")
    for peer, why in missing.items():
        print(f"\nLeft out: {peer} ({why}).")
    sys.stdout.flush()


def report_again(rows: int, photos: list[Path], folder: Path) -> None:
    tree = many_files(photos, rows, folder / "many")
    lines = []
    for column in (False, True):
        database = folder / f"again-{column}.db"
        alone(pretend_embedded, database, tree, column, None)
        runs = [alone(again, database, tree, column) for _ in range(3)]
        assert all(run["unchanged"] == rows for run in runs), "something was new"
        lines.append(
            [
                "a table of paths" if column else "a folder",
                f"{median(run['all seconds'] for run in runs):.1f}",
                f"{max(run['memory'] for run in runs) / 1024:.0f}",
            ]
        )
        database.unlink()
    shutil.rmtree(tree)
    header = ["from", "seconds", "memory, MB"]
    print(f"\n### {rows:,} pictures, nothing new\n\n{common.table(header, lines)}")


def report_ten_new(
    stored: int, photos: list[Path], network: Network, dimensions: int, folder: Path
) -> None:
    tree = many_files(photos[10:], stored, folder / "stored")
    database = folder / "ten.db"
    vectors = (dimensions, network.options)
    alone(pretend_embedded, database, tree, False, vectors)
    lines = []
    for number in range(3):
        inside = tree / f"new-{number}"
        inside.mkdir()
        for i, photo in enumerate(photos[:10]):
            data = photo.read_bytes() + bytes([number])  # other bytes, the same picture
            (inside / f"{i}.jpg").write_bytes(data)
        started = time.perf_counter()
        run = alone(timed_embed, database, tree, None)
        lines.append((time.perf_counter() - started, run))
        assert run["pictures"] == 10
    rows = [
        [
            "process, imports of this program",
            median(t - r["all seconds"] for t, r in lines),
        ],
        [
            "torch, the network, listing",
            median(r["all seconds"] - r["seconds"] for _, r in lines),
        ],
        ["embedding and storing ten", median(r["seconds"] for _, r in lines)],
        ["**all**", median(t for t, _ in lines)],
    ]
    rows = [[name, f"{seconds:.2f}"] for name, seconds in rows]
    table = common.table(["", "seconds"], rows)
    print(f"\n### Ten new photos among {stored:,}\n\n{table}", flush=True)


def photo_sets(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    yield (
        "Photos of 0.1 megapixels",
        small_photos(options.photos, options.count, folder / "s"),
    )
    if options.large:
        count = max(16, options.count // 8)
        yield (
            "Photos of 12 megapixels",
            large_photos(options.photos, count, folder / "l"),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", help="default: random ones")
    parser.add_argument("--count", type=int, default=2048, help="small photos")
    parser.add_argument("--rounds", type=int, default=3)
    yes_or_no = argparse.BooleanOptionalAction
    parser.add_argument("--large", action=yes_or_no, default=True)
    parser.add_argument("--peers", action=yes_or_no, default=True)
    parser.add_argument("--rows", type=int, default=1_000_000, help="0: leave it out")
    parser.add_argument("--stored", type=int, default=100_000, help="0: leave it out")
    options = parser.parse_args()
    packages = ("torch", "torchvision", "pillow", "imagededup", "img2vec_pytorch")
    print(f"## Putting pictures in: {options.model}\n\n{common.machine(*packages)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["XDG_CONFIG_HOME"] = temporary  # what runs vouch for is not the user's
        weights = options.weights or alone(random_weights, options.model, folder)
        network = Network(options.model, str(Path(weights).absolute()))
        for name, pictures in photo_sets(options, folder):
            report_parts(name, pictures, network, options.rounds)
            if options.peers:
                report_peers(name, pictures, network, options.rounds)
        photos = sorted((folder / "s").iterdir())[:30]
        if options.rows:
            report_again(options.rows, photos, folder)
        if options.stored:
            from datasette_image_similarity.encoders.torchvision import DIMENSIONS

            dimensions = DIMENSIONS[options.model]
            report_ten_new(options.stored, photos, network, dimensions, folder)


if __name__ == "__main__":
    main()
