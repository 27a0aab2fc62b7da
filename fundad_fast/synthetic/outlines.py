# SPDX-License-Identifier: Apache-2.0
"""Organic outlines: opacities of small soft-edged forms, no two alike."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Opacity = NDArray[np.float32]
"""``[h, w]`` in [0, 1], the form's centre in the middle."""


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], scale: float | tuple[float, float]
) -> NDArray[np.float32]:
    """Noise of mean 0 and standard deviation near 1 that varies over ``scale`` pixels."""
    import cv2

    down, across = (scale, scale) if isinstance(scale, (int, float)) else scale
    # A grid with some to spare, cut at a random place: its nodes must not be seen.
    grid = rng.standard_normal(
        (math.ceil(shape[0] / down) + 4, math.ceil(shape[1] / across) + 4), dtype=np.float32
    )
    size = max(1, round(grid.shape[1] * across)), max(1, round(grid.shape[0] * down))
    wide = cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)
    top, left = (int(rng.integers(0, w - s + 1)) for w, s in zip(wide.shape, shape, strict=True))
    return np.asarray(wide[top : top + shape[0], left : left + shape[1]], np.float32) * 1.4


def _axes(reach: float, angle: float, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Coordinates along and across a direction, their zero anywhere within the middle pixel."""
    half = math.ceil(reach) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    y, x = y - rng.uniform(-0.5, 0.5), x - rng.uniform(-0.5, 0.5)
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def blob(
    rng: np.random.Generator,
    radius: float,
    edge: float,
    *,
    roughness: float = 0.2,
    elongation: float = 1.0,
    angle: float = 0.0,
) -> Opacity:
    """A closed form whose radius wanders with the direction.

    Args:
        radius: mean radius in pixels.
        edge: width of the edge in pixels, half of it outside the form.
        roughness: how far the radius wanders, relative to it.
        elongation: length over width, the area kept.
        angle: direction of the length in radians, from the x axis towards y.
    """
    stretch = math.sqrt(elongation)
    along, across = _axes(radius * stretch * (1 + 2.5 * roughness) + edge, angle, rng)
    along, across = along / stretch, across * stretch
    direction, outline = np.arctan2(across, along), np.ones_like(along)
    for wave in range(2, 8):
        height = rng.normal(0, roughness / wave)
        outline += height * np.cos(wave * direction + rng.uniform(0, 2 * math.pi))
    depth = radius * np.clip(outline, 0.4, 1 + 2.5 * roughness) - np.hypot(along, across)
    return _edge(depth, edge)


def streaks(
    rng: np.random.Generator, length: float, width: float, edge: float, angle: float
) -> Opacity:
    """A bundle of fine strokes with ragged ends, as blood between nerve fibres takes.

    Args:
        length, width: extent in pixels along and across ``angle``.
        edge: width of the edge at the sides, in pixels.
        angle: direction of the strokes in radians, from the x axis towards y.
    """
    along, across = _axes(0.75 * length + width + edge, angle, rng)
    n = along.shape[0]
    place = np.clip(np.rint(along + n // 2), 0, n - 1).astype(int)
    across = across + smooth_noise(rng, (1, n), length / 2)[0][place] * 0.08 * width
    lane = np.clip(np.rint(2 * across + n), 0, 2 * n).astype(int)
    fibre = 2 * max(2.0, 0.22 * width)  # in lanes, which are half a pixel wide
    ragged = np.clip(1 + 0.3 * smooth_noise(rng, (1, 2 * n + 1), fibre)[0], 0.4, 1.4)
    ends = _edge(0.5 * length * ragged[lane] - np.abs(along), 0.3 * length + edge)
    side = 0.5 * width * np.sqrt(np.clip(1 - (along / (0.75 * length)) ** 2, 0, 1))
    sides = _edge(side - np.abs(across), 0.2 * width + edge)
    density = 0.8 + 0.25 * smooth_noise(rng, (2 * n + 1, n), (fibre, 4 * fibre))[lane, place]
    return np.asarray(ends * sides * np.clip(density, 0.3, 1), np.float32)


def cluster(
    rng: np.random.Generator,
    count: int,
    spread: float,
    radius: float,
    edge: float,
    *,
    ring: float = 0.0,
) -> Opacity:
    """Many small blobs, most of them tiny, some of them run together.

    Args:
        count: how many.
        spread: their usual distance from the middle, in pixels.
        radius: the median radius of one.
        edge: width of an edge in pixels.
        ring: 0 heaps them in the middle, 1 sets them on a part of a circle.
    """
    heading, arc = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 2) * math.pi
    half = math.ceil(spread * 2 + radius * 10 + edge) + 4
    clear = np.ones((2 * half + 1,) * 2, np.float32)
    for _ in range(count):
        turn = heading + arc * rng.uniform(-0.5, 0.5) if ring else rng.uniform(0, 2 * math.pi)
        inner = abs(rng.normal(0, 0.7))
        distance = spread * min(2.0, ring * rng.normal(1, 0.12) + (1 - ring) * inner)
        spot = blob(
            rng,
            radius * float(np.clip(rng.lognormal(0, 0.55), 0.5, 4)),
            edge,
            roughness=0.3,
            elongation=rng.uniform(1, 1.8),
            angle=rng.uniform(0, math.pi),
        )
        row = round(half + distance * math.sin(turn)) - spot.shape[0] // 2
        column = round(half + distance * math.cos(turn)) - spot.shape[1] // 2
        window = clear[row : row + spot.shape[0], column : column + spot.shape[1]]
        window *= 1 - spot * rng.uniform(0.6, 1)
    return 1 - clear


def _edge(depth: NDArray, width: float) -> Opacity:
    """From a depth in pixels inside an outline to an opacity that falls over ``width``."""
    t = np.clip(0.5 + depth / width, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)
