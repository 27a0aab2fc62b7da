# SPDX-License-Identifier: Apache-2.0
"""Losses over steps as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from .records import History

WIDTH, CHART = 640, 320
LEFT, RIGHT, BOTTOM = 64, 14, 40
COLUMNS, ROW = 3, 18  # of the legend
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
    top = 12 + ROW * -(-len(histories) // COLUMNS)
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
    for tick in range(5):
        at = lo + (hi - lo) * tick / 4
        value = 10**at if log else at
        parts.append(
            f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#ddd" fill="none"/>'
        )
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value:.3g}", "end"))
        parts.append(_text(x(last * tick / 4), bottom + 17, f"{last * tick / 4:.0f}"))
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
    for number, name in enumerate(histories):
        row, column = divmod(number, COLUMNS)
        place = LEFT + column * (WIDTH - LEFT - RIGHT) / COLUMNS
        colour = COLOURS[number % len(COLOURS)]
        parts.append(_text(place, 14 + ROW * row, name, "start", colour))
    said = f"thin: {columns[0]}; thick: {columns[1]}, a dot at the lowest"
    parts.append(_text(WIDTH - RIGHT, bottom + 34, said, "end"))
    return _svg(parts, top + CHART)


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#333") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"'
    return f"<text {where}>{escape(text)}</text>"


def _svg(parts: list[str], height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
