# SPDX-License-Identifier: Apache-2.0
"""Losses over steps as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from .records import History

WIDTH, CHART = 640, 320
LEFT, RIGHT, BOTTOM = 64, 14, 40
ROW, LETTER = 18, 7  # of the legend: height of a row, most width of a letter
COLOURS = ("#2563a8", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490", "#be123c", "#4b5563")


def draw_curves(
    histories: Mapping[str, History], columns: tuple[str, str] = ("loss", "val")
) -> str:
    """One SVG with the training loss (thin) and the validation (thick) of each training.

    The loss axis is logarithmic where all values are above zero. A colour is a training; a dot is
    its lowest validation.

    Args:
        histories: rows by the name of the training.
        columns: names of the two figures.
    """
    lines = [
        (number, kind, points)
        for number, rows in enumerate(histories.values())
        for kind, column in enumerate(columns)
        if (points := [(row["step"], row[column]) for row in rows if column in row])
    ]
    values = [value for *_, points in lines for _, value in points]
    places = _places(list(histories))
    top = 12 + ROW * (1 + max(row for _, row in places)) if places else 12
    bottom = top + CHART - BOTTOM
    if not values:
        return _svg([_text(WIDTH / 2, 100, "no step was recorded")], top + CHART)
    log = min(values) > 0
    scale = math.log10 if log else float
    lo, hi = scale(min(values)), scale(max(values))
    if hi - lo < 1e-9:
        lo, hi = lo - 0.5, hi + 0.5
    last = max(step for *_, points in lines for step, _ in points)

    def x(step: float) -> float:
        return LEFT + step / last * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return bottom - (scale(value) - lo) / (hi - lo) * (bottom - top)

    parts = []
    for value in _decades(lo, hi) if log else _round_steps(lo, hi):
        parts.append(
            f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#ddd" fill="none"/>'
        )
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value:.4g}", "end"))
    for step in (at for at in _round_steps(0, last) if at == int(at)):
        parts.append(_text(x(step), bottom + 17, f"{step:.0f}"))
    parts.append(_text(LEFT, bottom + 34, "steps", "start"))
    for number, kind, points in lines:
        colour = COLOURS[number % len(COLOURS)]
        width, opacity = ((1, 0.55), (2, 1))[kind]
        path = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
        parts.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width}" '
            f'stroke-opacity="{opacity}"/>'
        )
        if kind == 1:
            step, value = min(points, key=lambda point: point[1])
            parts.append(
                f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="3.5" fill="{colour}"/>'
            )
    for number, (name, (place, row)) in enumerate(zip(histories, places)):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(_text(place, 14 + ROW * row, name, "start", colour))
    said = f"thin: {columns[0]}; thick: {columns[1]}, a dot at the lowest"
    parts.append(_text(WIDTH - RIGHT, bottom + 34, said, "end"))
    return _svg(parts, top + CHART)


def _places(names: list[str]) -> list[tuple[float, int]]:
    """Where each name of the legend begins, and its row: side by side while there is room."""
    places: list[tuple[float, int]] = []
    x, row = float(LEFT), 0
    for name in names:
        wide = LETTER * (len(name) + 2)
        if x > LEFT and x + wide > WIDTH - RIGHT:
            x, row = float(LEFT), row + 1
        places.append((x, row))
        x += wide
    return places


def _round_steps(lo: float, hi: float) -> list[float]:
    """Four to nine multiples of 1, 2 or 5 times a power of ten from ``lo`` to ``hi``."""
    power = 10 ** math.floor(math.log10((hi - lo) / 4))
    step = next(n * power for n in (5, 2, 1) if n * power <= (hi - lo) / 4)
    return [n * step for n in range(math.ceil(lo / step), math.floor(hi / step + 1e-9) + 1)]


def _decades(lo: float, hi: float) -> list[float]:
    """Round values between two logarithms: 1, 2 and 5 of each power of ten, or fewer, or more."""
    for leads in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        powers = range(math.floor(lo), math.ceil(hi) + 1)
        values = [n * 10.0**power for power in powers for n in leads]
        inside = [v for v in values if lo - 1e-9 <= math.log10(v) <= hi + 1e-9]
        if len(inside) >= 4:
            return inside
    return _round_steps(10**lo, 10**hi)


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#333") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"'
    return f"<text {where}>{escape(text)}</text>"


def _svg(parts: list[str], height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
