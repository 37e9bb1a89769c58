"""How `train` says what was found on pictures and classes that were held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PARTS = {"seen": "trained on", "unseen": "not trained on"}
SHOWN = ("map", "precision_at_5")

Figures = Mapping[str, "float | None"]  # by the names in SHOWN


def held_out_lines(
    held: Mapping[str, int],
    rows: Mapping[str, Mapping[str, Figures]],
    gains: Mapping[str, Sequence[float]],
) -> list[str]:
    """A table of what was before and after, and what was gained.

    `held`, `gains` and each of the `rows`, which go by what they are called, are by the
    names in PARTS. `held` counts pictures. `gains` are of mAP: the mean and its interval;
    none where nothing could be judged.
    """
    lines = [
        f"Held out: {held['unseen']:,} pictures of classes not trained on, "
        f"{held['seen']:,} others of classes that are. These are searched, and ask.",
        f"{'':20}{'classes trained on':^24}{'not trained on':^24}",
        f"{'':20}{'mAP':>9}{'P@5':>9}      {'mAP':>9}{'P@5':>9}",
    ]
    for name, row in rows.items():
        cells = ("".join(f"{number(row[part][one]):>9}" for one in SHOWN) for part in PARTS)
        lines.append(f"{name:20}{'      '.join(cells)}")
    for part, (mean, low, high) in gains.items():
        lines.append(
            f"Gain in mAP, classes {PARTS[part]}: {mean:+.3f} (95 % interval "
            f"{low:+.3f} … {high:+.3f})"
        )
    return lines


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
