# SPDX-License-Identifier: Apache-2.0
"""Scores period by period as inline SVG: quantiles beside those of held-out healthy images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from fundad_fast.evaluation.drift import QUANTILES, Period
from fundad_fast.evaluation.likeness import MIN_IMAGES
from fundad_fast.report.charts import LOG_RATIO, grid_line, log_ticks, round_ticks, svg, text_at
from fundad_fast.report.overlay import distinct_numbers
from fundad_fast.words import count

Height = Callable[[float], float]

WIDTH = 960
TOP, BOTTOM, LEFT, RIGHT = 22, 250, 56, 130
COUNTS = 30  # height of the bars that show how many images there are
LONGEST = 18  # letters of a name on the axis


def chart(
    periods: Sequence[Period],
    healthy: NDArray[np.float64],
    threshold: float | None,
    *,
    ordered: bool,
) -> str:
    """Per period a box from the 25 % to the 75 % quantile, lines to 5 % and 95 %, the median.

    Args:
        periods: in the order of the chart; those without images leave a gap.
        healthy: scores of held-out healthy images: the bands across the chart.
        threshold: of images.
        ordered: the names are a sequence, of which some may be left out at the axis.

    Returns:
        SVG, or "" where no period has images.
    """
    filled = [p for p in periods if p.n]
    if not filled:
        return ""
    bands = np.quantile(healthy, QUANTILES).tolist() if len(healthy) else []
    shown = [q for p in filled for q in p.quantiles] + bands
    shown += [] if threshold is None else [threshold]
    lo, hi = min(shown), max(shown)
    if hi <= lo:
        lo, hi = lo - 0.5, hi + 0.5
    log = lo > 0 and hi / lo > LOG_RATIO
    right = WIDTH - RIGHT
    slot = (right - LEFT) / len(periods)

    def y(value: float) -> float:
        part = math.log(value / lo) / math.log(hi / lo) if log else (value - lo) / (hi - lo)
        return BOTTOM - 4 - part * (BOTTOM - TOP - 8)

    parts = []
    for low, high in ((0, 4), (1, 3)) if bands else ():
        top, bottom = y(bands[high]), y(bands[low])
        parts.append(
            f'<rect class="band" x="{LEFT}" y="{top:.1f}" width="{right - LEFT}" '
            f'height="{max(bottom - top, 1):.1f}"/>'
        )
    marks = log_ticks(lo, hi) if log else round_ticks(lo, hi, 5)
    for mark, words in zip(marks, distinct_numbers(marks)):
        parts.append(grid_line(LEFT, y(mark), right, y(mark)))
        parts.append(text_at(LEFT - 8, y(mark) + 4, words, "end"))
    if bands:
        parts.append(f'<path class="healthy-median" d="M{LEFT} {y(bands[2]):.1f}H{right}"/>')
    most = max(p.n for p in filled)
    everywhere = all_unlike(periods)  # then it tells none from the others
    for i, period in enumerate(periods):
        if period.n:
            unlike = bool(period.unlike or (period.healthy.signs and not everywhere))
            parts.append(_period(period, LEFT + (i + 0.5) * slot, slot, most, unlike, y))
    parts += _side_labels(bands, threshold, y, right)
    base = BOTTOM + COUNTS
    parts.append(f'<path class="axis" d="M{LEFT} {BOTTOM}H{right}"/>')
    parts.append(f'<path class="axis" d="M{LEFT} {base}H{right}"/>')
    parts.append(text_at(LEFT - 8, base - 8, "images", "end"))
    names, height = _names(periods, slot, base, ordered)
    axis = "logarithmic " if log else ""
    label = (
        f"Image scores ({axis}axis) of {len(filled)} periods, from {filled[0].name} to "
        f"{filled[-1].name}; the table has the figures."
    )
    return svg(WIDTH, height, label, parts + names)


def all_unlike(periods: Sequence[Period], sign: str | None = None) -> bool:
    """Whether all periods of enough images are unlike healthy ones, by a sign or by any."""
    judged = [p.healthy.signs for p in periods if p.n >= MIN_IMAGES]
    return len(judged) > 1 and all(signs if sign is None else sign in signs for signs in judged)


def _period(period: Period, x: float, slot: float, most: int, unlike: bool, y: Height) -> str:
    q = [y(value) for value in period.quantiles]
    wide = min(26.0, max(3.0, 0.6 * slot))
    style = "period unlike" if unlike else "period"
    bar = (COUNTS - 6) * period.n / most
    told = f"{period.name}: {count(period.n, 'image')}; " + ", ".join(
        f"{100 * share:g} % at {value:.4g}" for share, value in zip(QUANTILES, period.quantiles)
    )
    return (
        f'<g class="{style}"><path d="M{x:.1f} {q[4]:.1f}V{q[0]:.1f}"/>'
        f'<rect class="box" x="{x - wide / 2:.1f}" y="{q[3]:.1f}" width="{wide:.1f}" '
        f'height="{max(q[1] - q[3], 1):.1f}" rx="2"/>'
        f'<path class="median" d="M{x - wide / 2:.1f} {q[2]:.1f}h{wide:.1f}"/>'
        f'<rect class="count" x="{x - wide / 2:.1f}" y="{BOTTOM + COUNTS - bar:.1f}" '
        f'width="{wide:.1f}" height="{bar:.1f}"/></g>'
        f'<rect class="hover" x="{x - slot / 2:.1f}" y="{TOP}" width="{slot:.1f}" '
        f'height="{BOTTOM + COUNTS - TOP}"><title>{escape(told)}</title></rect>'
    )


def _side_labels(bands: list[float], threshold: float | None, y: Height, right: int) -> list[str]:
    """Names of the bands and of the threshold, at the right, one above the other."""
    wanted, parts = [], []
    if bands:
        wanted.append((y(bands[2]), "healthy median", "tick"))
    if threshold is not None:
        wanted.append((y(threshold), f"threshold {threshold:.4g}", "mark-text"))
        parts.append(f'<path class="mark" d="M{LEFT} {y(threshold):.1f}H{right}"/>')
    last = -math.inf
    for at, words, style in sorted(wanted):
        last = max(at + 4, last + 16)
        parts.append(text_at(right + 6, last, words, "start", style))
    return parts


def _names(
    periods: Sequence[Period], slot: float, base: float, ordered: bool
) -> tuple[list[str], int]:
    """The names below the axis, and how high the chart is with them."""
    short = [p.name if len(p.name) <= LONGEST else p.name[: LONGEST - 1] + "…" for p in periods]
    longest = max(len(name) for name in short)
    room = 7.5 * longest + 10
    every = math.ceil(room / slot) if ordered else 1
    if every == 1 and room > slot:
        step = math.ceil(14 / slot)
        parts = [
            f'<text class="tick" text-anchor="end" transform="translate('
            f'{LEFT + (i + 0.5) * slot + 4:.1f} {base + 14}) rotate(-40)">{escape(name)}</text>'
            for i, name in enumerate(short)
            if i % step == 0
        ]
        return parts, round(base + 26 + 5 * longest)
    parts = [
        text_at(LEFT + (i + 0.5) * slot, base + 18, name, "middle")
        for i, name in enumerate(short)
        if i % every == 0
    ]
    return parts, round(base + 26)
