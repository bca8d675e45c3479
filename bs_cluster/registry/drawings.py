"""Small pictures for MLflow's pages, as SVG: a learning curve that fits into a line, and what a bundle is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from bs_cluster.records import BundleManifest

INK, PALE, LINE = "#1f2a3a", "#e8eef5", "#1f5f99"
FONT = 'font-family="system-ui, sans-serif" font-size="13"'

# Of a lineage, in pixels: a box, the base's, the room between two, where rows begin.
BOX_W, BASE_W, BOX_H, GAP, TOP = 104, 180, 30, 34, 34
GATES_W = 120  # between the last round and the meta-router, for the gate's weight


def sparkline(values: Sequence[float], width: int = 120, height: int = 24) -> str:
    """A curve of at least one value, lowest at the bottom, its last one marked."""
    low, high = min(values), max(values)
    span, last = (high - low) or 1.0, max(len(values) - 1, 1)
    points = [
        (3 + (width - 6) * place / last, 3 + (height - 6) * (1 - (value - low) / span))
        for place, value in enumerate(values)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    return _svg(
        width,
        height,
        [
            f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="1.5"/>',
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{LINE}"/>',
        ],
    )


def lineage(bundle: BundleManifest, gates: Mapping[str, float]) -> str:
    """Base, each domain's rounds, the meta-router and the bundle, from left to right. ``gates`` are mean weights: of
    each domain on its own prompts; a line is as strong as its gate."""
    rounds = {domain: [ref.stack for ref in bundle.stacks if ref.stack.domain == domain] for domain in bundle.domains}
    most = max(map(len, rounds.values()), default=0)
    first = 20 + BASE_W + GAP
    router = first + most * (BOX_W + GAP) - GAP + GATES_W
    end = router + BOX_W + GAP
    middle = TOP + (len(rounds) * (BOX_H + 14) - 14) / 2
    # Lines first: a box hides the end of what leads to it.
    lines, boxes = (
        [],
        [
            _text(20, 20, "frozen base"),
            _text(first, 20, "stacks, a domain a row"),
            _text(router - GATES_W + 8, 20, "mean gate of its own prompts"),
            _box(20, middle - BOX_H / 2, BASE_W, bundle.base.model.rpartition("/")[2], PALE),
            _box(router, middle - BOX_H / 2, BOX_W, "meta-router", PALE),
            _box(end, middle - BOX_H / 2, BOX_W, f"bundle {bundle.number}", PALE),
        ],
    )
    lines.append(_line(router + BOX_W, middle, end, middle))
    for row, (domain, stacks) in enumerate(rounds.items()):
        y = TOP + row * (BOX_H + 14) + BOX_H / 2
        x_from, y_from = 20.0 + BASE_W, middle
        for place, stack in enumerate(stacks):
            x = first + place * (BOX_W + GAP)
            lines.append(_line(x_from, y_from, x, y))
            boxes.append(_box(x, y - BOX_H / 2, BOX_W, stack.name, "white"))
            x_from, y_from = x + BOX_W, y
        weight = gates.get(domain)
        lines.append(_line(x_from, y_from, router, middle, 1.0 if weight is None else 0.5 + 5 * weight))
        if weight is not None:
            boxes.append(_text(x_from + 8, y - 6, f"{weight:.2f}"))
    height = TOP + max(len(rounds), 2) * (BOX_H + 14) + 20
    return _svg(int(end + BOX_W + 20), int(height), [*lines, *boxes])


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>\n'


def _line(x1: float, y1: float, x2: float, y2: float, width: float = 1.0) -> str:
    bend = (x1 + x2) / 2
    path = f"M{x1:.0f},{y1:.0f} C{bend:.0f},{y1:.0f} {bend:.0f},{y2:.0f} {x2:.0f},{y2:.0f}"
    return f'<path d="{path}" fill="none" stroke="{LINE}" stroke-opacity="0.55" stroke-width="{width:.1f}"/>'


def _box(x: float, y: float, width: float, text: str, fill: str) -> str:
    fits = int(width / 8)
    shown = text if len(text) <= fits else text[: fits - 1] + "…"
    place = f'x="{x + width / 2:.0f}" y="{y + BOX_H / 2 + 4.5:.1f}"'
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX_H}" rx="6" fill="{fill}" stroke="{LINE}"/>'
        f'<text {place} text-anchor="middle" fill="{INK}" {FONT}>{escape(shown)}</text>'
    )


def _text(x: float, y: float, text: str) -> str:
    halo = 'stroke="white" stroke-width="3" paint-order="stroke"'  # over lines
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{INK}" {halo} {FONT}>{escape(text)}</text>'
