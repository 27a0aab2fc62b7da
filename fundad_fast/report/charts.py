# SPDX-License-Identifier: Apache-2.0
"""The report's charts as inline SVG: score histogram, ROC and precision-recall curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from fundad_fast.report.overlay import distinct_numbers
from fundad_fast.words import count

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 520, 306
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 22, 40
SQUARE = 300  # side of the ROC and precision-recall charts
MAX_VERTICES = 400
LOG_RATIO = 40.0  # scores that span more than this, all above zero, get a logarithmic axis


@dataclass(frozen=True)
class Series:
    """Scores that are drawn together: a name, a style of page.css (s-name), and the scores."""

    name: str
    style: str
    scores: Floats


def histogram(series: Sequence[Series], threshold: float | None) -> str:
    """Share of images per bin of score, one step curve per series, with the threshold.

    Shares are of each series by itself, so that a run of thousands can be compared with a few dozen
    held-out images. Every score lies in a bin; none is cut off.
    """
    series = [s for s in series if len(s.scores)]
    if not series:
        return ""
    joined = np.concatenate([s.scores for s in series])
    shown = joined if threshold is None else np.append(joined, threshold)
    lo, hi = float(shown.min()), float(shown.max())
    if hi <= lo:
        lo, hi = lo - 0.5, hi + 0.5
    log = lo > 0 and hi / lo > LOG_RATIO
    bins = int(min(48, max(12, 2 * math.sqrt(len(joined)))))
    edges = np.geomspace(lo, hi, bins + 1) if log else np.linspace(lo, hi, bins + 1)
    counts = [np.histogram(s.scores, edges)[0] for s in series]
    shares = [count / len(s.scores) for count, s in zip(counts, series)]
    top = max(float(share.max()) for share in shares)

    def x(value: float) -> float:
        part = math.log(value / lo) / math.log(hi / lo) if log else (value - lo) / (hi - lo)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - share / top * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in round_ticks(0, top, 4):
        parts.append(grid_line(LEFT, y(tick), WIDTH - RIGHT, y(tick)))
        parts.append(text_at(LEFT - 6, y(tick) + 4, f"{100 * tick:.3g}%", "end"))
    ticks = log_ticks(lo, hi) if log else round_ticks(lo, hi, 6)
    for tick, text in zip(ticks, distinct_numbers(ticks)):
        parts.append(text_at(x(tick), HEIGHT - BOTTOM + 17, text, "middle"))
    for s, share in zip(series, shares):
        steps = [f"M{x(edges[0]):.1f} {y(0):.1f}"]
        for i, value in enumerate(share):
            steps.append(f"V{y(value):.1f}H{x(edges[i + 1]):.1f}")
        steps.append(f"V{y(0):.1f}Z")
        parts.append(f'<path class="steps {s.style}" d="{"".join(steps)}"/>')
    for i in range(bins):
        lines = [f"score {edges[i]:.4g} to {edges[i + 1]:.4g}"]
        lines += [f"{s.name}: {count[i]} of {len(s.scores)}" for s, count in zip(series, counts)]
        width = x(edges[i + 1]) - x(edges[i])
        parts.append(
            f'<rect class="hover" x="{x(edges[i]):.1f}" y="{TOP}" width="{width:.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{escape("; ".join(lines))}</title></rect>'
        )
    if threshold is not None:
        at = x(threshold)
        anchor = "end" if at > WIDTH * 0.6 else "start"
        shift = -6 if anchor == "end" else 6
        parts.append(
            f'<path class="mark" d="M{at:.1f} {TOP - 12}V{HEIGHT - BOTTOM}"/>'
            + text_at(at + shift, TOP - 4, f"threshold {threshold:.4g}", anchor, "mark-text")
        )
    axis = "image score (logarithmic)" if log else "image score"
    parts.append(text_at((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, axis, "middle"))
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    names = ", ".join(f"{s.name} ({count(len(s.scores), 'image')})" for s in series)
    label = f"Histogram of image scores: {names}."
    return svg(WIDTH, HEIGHT, label, parts)


def roc(scores: Floats, labels: NDArray[np.bool_], threshold: float | None) -> str:
    """ROC curve of image scores; the dot is the model's threshold (abnormal: score above it).

    Empty without both healthy and abnormal images.
    """
    if labels.all() or not labels.any():
        return ""
    tp, fp = _cumulative(scores, labels)
    points = np.stack([np.r_[0, fp] / fp[-1], np.r_[0, tp] / tp[-1]], 1)
    dot = None
    if threshold is not None:
        called = scores > threshold
        dot = (float(called[~labels].mean()), float(called[labels].mean()))
    chance = np.array([[0.0, 0.0], [1.0, 1.0]])
    return _unit_square(
        points, dot, chance, "1 − specificity (false positive rate)", "sensitivity", "ROC curve"
    )


def precision_recall(scores: Floats, labels: NDArray[np.bool_], threshold: float | None) -> str:
    """Precision-recall curve of image scores, in steps; the dot is the model's threshold.

    Empty without both healthy and abnormal images.
    """
    if labels.all() or not labels.any():
        return ""
    tp, fp = _cumulative(scores, labels)
    recall, precision = tp / tp[-1], tp / (tp + fp)
    # Average precision is the area under these steps: no slope between two thresholds.
    points = np.stack([np.r_[0, np.repeat(recall, 2)[:-1]], np.repeat(precision, 2)], 1)
    dot = None
    if threshold is not None and (scores > threshold).any():
        called = scores > threshold
        dot = (float(called[labels].mean()), float(labels[called].mean()))
    share = float(labels.mean())
    chance = np.array([[0.0, share], [1.0, share]])
    return _unit_square(
        points, dot, chance, "recall (sensitivity)", "precision", "Precision-recall curve"
    )


def _cumulative(scores: Floats, labels: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """True and false positives when the scores down to each distinct one are called abnormal."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[scores[order][1:] != scores[order][:-1], True])
    tp = np.cumsum(labels[order], dtype=np.float64)[ends]
    return tp, ends + 1 - tp


def _unit_square(
    points: Floats,
    dot: tuple[float, float] | None,
    chance: Floats,
    x_name: str,
    y_name: str,
    title: str,
) -> str:
    inner = SQUARE - LEFT - RIGHT
    bottom = TOP + inner

    def place(points: Floats) -> str:
        return " ".join(f"{LEFT + px * inner:.1f},{bottom - py * inner:.1f}" for px, py in points)

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(grid_line(LEFT, bottom - tick * inner, LEFT + inner, bottom - tick * inner))
        parts.append(text_at(LEFT - 6, bottom - tick * inner + 4, f"{tick:g}", "end"))
        parts.append(text_at(LEFT + tick * inner, bottom + 17, f"{tick:g}", "middle"))
    parts.append(f'<polyline class="chance" points="{place(chance)}"/>')
    parts.append(f'<polyline class="curve" points="{place(_thinned(points))}"/>')
    if dot is not None:
        cx, cy = LEFT + dot[0] * inner, bottom - dot[1] * inner
        told = f"at the threshold: {x_name} {dot[0]:.3f}, {y_name} {dot[1]:.3f}"
        parts.append(
            f'<circle class="dot" cx="{cx:.1f}" cy="{cy:.1f}" r="5">'
            f"<title>{escape(told)}</title></circle>"
        )
    parts.append(text_at(LEFT + inner / 2, bottom + 36, x_name, "middle"))
    turned = 'transform="rotate(-90)" class="tick" text-anchor="middle"'
    parts.append(f'<text x="{-(TOP + inner / 2):.0f}" y="11" {turned}>{escape(y_name)}</text>')
    label = title if dot is None else f"{title}; {told}."
    return svg(SQUARE, SQUARE + 22, label, parts)


def _thinned(points: Floats) -> Floats:
    """At most `MAX_VERTICES` of a curve's points, evenly along it, with both ends."""
    if len(points) <= MAX_VERTICES:
        return points
    keep = np.unique(np.linspace(0, len(points) - 1, MAX_VERTICES).round().astype(np.intp))
    return points[keep]


def round_ticks(lo: float, hi: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [lo, hi]."""
    raw = (hi - lo) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def log_ticks(lo: float, hi: float) -> list[float]:
    """1, 2 and 5 times powers of ten within [lo, hi]; over many powers, these alone."""
    powers = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
    marks = (1, 2, 5) if hi / lo < 1e4 else (1,)
    return [m * 10.0**p for p in powers for m in marks if lo <= m * 10.0**p <= hi]


def grid_line(x0: float, y0: float, x1: float, y1: float) -> str:
    """A line of the grid, as SVG."""
    return f'<path class="grid" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>'


def text_at(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    """Text, escaped, as SVG."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def svg(width: int, height: int, label: str, parts: list[str]) -> str:
    """The whole chart; ``label`` says it in words."""
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
