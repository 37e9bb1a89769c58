"""What a head learned from labels gains, on classes that it saw and on others.

    python benchmarks/head.py DATABASE LABEL [--table TABLE] [--seeds 3] [--share 0.5]

DATABASE has embeddings of a table whose column LABEL says what is alike. For each seed, a
share of the classes is held out whole, and half of the pictures of the others; the head is
trained on the rest, its pull chosen inside of that. All that is held out is the gallery and
asks. The baseline is what is stored.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import table

from datasette_image_similarity import database as db
from datasette_image_similarity.explore.vectors import read_vectors
from datasette_image_similarity.learning.head import DIMS, LOSSES, Settings, pca_base
from datasette_image_similarity.learning.heldout import Trial, hold_out, try_out
from datasette_image_similarity.learning.labels import Labels, read_labels

ROWS = {"before": "as stored", "base": "PCA alone", "after": "PCA and head"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("database", type=Path)
    parser.add_argument("label")
    parser.add_argument("--table", default="images")
    parser.add_argument("--name", help="collection; the table's own default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.5, help="of classes, held out")
    parser.add_argument("--classes", type=int, help="so many, others for every seed")
    parser.add_argument("--dims", type=int, default=DIMS)
    parser.add_argument("--loss", choices=LOSSES, default="supcon")
    parser.add_argument("--temperature", type=float, default=Settings.temperature)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with closing(db.connect(options.database)) as conn:
        collection = db.find_collection(conn, options.table, options.name)
        unit = collection.metric == "cosine"
        stored = read_vectors(conn, collection, unit=unit)
        labels = read_labels(conn, collection, stored, column=options.label)
    trials, seconds = [], []
    for seed in range(options.seeds):
        started = time.perf_counter()
        some = subset(labels, options.classes, seed)
        points = pca_base(stored.vectors, options.dims).points(stored.vectors)
        settings = Settings(options.loss, options.temperature, seed=seed)
        split = hold_out(some.classes[0], seed, options.share)
        trials.append(try_out(stored.vectors, points, some, split, settings, unit=unit))
        seconds.append(time.perf_counter() - started)
    if options.json:
        print(json.dumps([one.as_json() for one in trials], indent=2))
    else:
        report(trials, seconds)


def subset(labels: Labels, count: int | None, seed: int) -> Labels:
    """Only some of the classes, drawn by chance."""
    classes = labels.classes[0]
    if count is None:
        return labels
    every = np.unique(classes[classes >= 0])
    kept = np.random.default_rng(1000 + seed).choice(every, count, replace=False)
    return replace(labels, classes=np.where(np.isin(classes, kept), classes, -1)[None])


def report(trials: list[Trial], seconds: list[float]) -> None:
    found = [one.as_json() for one in trials]
    lines = []
    for row, words in ROWS.items():
        cells = []
        for part in ("seen", "unseen"):
            for metric in ("map", "precision_at_5"):
                cells.append(spread([one[row][part][metric] for one in found]))
        lines.append([words, *cells])
    print(table(["", "seen: mAP", "P@5", "held out: mAP", "P@5"], lines))
    gains = [
        ", ".join(f"{one['difference'][part]['map'][0]:+.3f}" for one in found)
        for part in ("seen", "unseen")
    ]
    print(f"\nGain in mAP by seed: seen {gains[0]}; held out {gains[1]}")
    chosen = [one.chosen.settings for one in trials]
    print(f"Chosen: {', '.join(f'pull {c.pull:g}, {c.epochs} epochs' for c in chosen)}")
    print(f"Seconds: {', '.join(f'{one:.1f}' for one in seconds)}\n")
    curve = [
        [
            f"{points[0].pull:g}",
            spread([one.seen for one in points]),
            spread([one.unseen for one in points]),
            spread([float(one.epochs) for one in points], ".0f"),
        ]
        for points in zip(*(one.curve for one in trials), strict=True)
    ]
    print(table(["pull", "seen: mAP", "held out: mAP", "epochs"], curve))


def spread(values: list[float | None], form: str = ".3f") -> str:
    """Their mean, and how far they go."""
    if None in values:
        return "–"
    mean = sum(values) / len(values)
    return f"{mean:{form}} ({min(values):{form}}–{max(values):{form}})"


if __name__ == "__main__":
    main()
