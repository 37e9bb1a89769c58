"""The histogram behind the cut-off: a picture (SVG) of a query's distances."""

from __future__ import annotations

from ..distances import Histogram

WIDTH, HEIGHT, TEXT = 240, 50, 14  # units; the text stands above the bars
INK, QUIET, MARK = "#276890", "#b4bbc3", "#5a6069"


def as_svg(histogram: Histogram, max_distance: float | None) -> str:
    """Bars up to the cut-off are blue, those beyond it grey; random pairs are marked.

    It stands by itself, as pictures on a page must: styles of the page do not reach it.
    """
    tallest = max(histogram.counts, default=0) or 1
    step = WIDTH / len(histogram.counts)
    parts = []
    for number, count in enumerate(histogram.counts):
        if count:
            tall = max(1.0, (HEIGHT - TEXT) * count / tallest)
            middle = (number + 0.5) * histogram.top / len(histogram.counts)
            inside = max_distance is None or middle <= max_distance
            parts.append(
                f'<rect x="{number * step:.1f}" y="{HEIGHT - tall:.1f}" '
                f'width="{step - 1:.1f}" height="{tall:.1f}" '
                f'fill="{INK if inside else QUIET}"/>'
            )
    parts += _marks(histogram)
    if histogram.measured < histogram.total:
        parts.append(
            f'<text x="{WIDTH}" y="10" text-anchor="end">'
            f"sample of {histogram.measured:,}</text>"
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="{MARK}">'
        f"<title>{in_words(histogram)}</title>{''.join(parts)}</svg>"
    )


def _marks(histogram: Histogram) -> list[str]:
    """A line where so few random pairs are nearer, with the share above it."""
    parts = []
    edge = 1.0  # where the last label ends
    for share, distance in sorted(histogram.quantiles.items()):
        x = WIDTH * distance / histogram.top
        if not 0 <= x <= WIDTH:
            continue
        parts.append(
            f'<path d="M{x:.1f} {TEXT - 2}V{HEIGHT}" stroke="{MARK}" '
            'stroke-dasharray="2 2"/>'
        )
        label = f"{100 * share:g} %"
        wide = 6.5 * len(label)
        left = max(edge, min(x - wide / 2, WIDTH - wide))
        edge = left + wide + 4
        parts.append(f'<text x="{left:.1f}" y="10">{label}</text>')
    return parts


def in_words(histogram: Histogram) -> str:
    """What the picture shows."""
    nearer = [
        f"{100 * share:g} % of random pairs are nearer than {distance:.3g}"
        for share, distance in sorted(histogram.quantiles.items())
    ]
    compared = f"Distances of {histogram.measured:,} pictures"
    if histogram.measured < histogram.total:
        compared += f" of {histogram.total:,}"
    return "; ".join([compared, *nearer])
