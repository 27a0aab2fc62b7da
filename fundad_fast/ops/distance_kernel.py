# SPDX-License-Identifier: Apache-2.0
"""The weights of the distance filter, and where its taps fall at the border of a map."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Support = Literal["radius", "size"]
Distance = Literal["euclidean", "chebyshev", "manhattan"]
Profile = Literal["1-d/(r+1)", "1-d/r"]
Gain = Literal["sum1", "raw"]
Border = Literal["renormalise", "zero", "reflect"]


@functools.lru_cache(maxsize=64)
def radial_kernel(
    radius: float, support: str, distance: str, profile: str, gain: str
) -> tuple[NDArray[np.float64], int]:
    """The weights ``[k, k]``, and how many of the taps of an axis come before the cell itself."""
    if support == "size":
        width, reach = int(radius), radius / 2
        before = width // 2
    else:
        width, reach = 2 * math.floor(radius) + 1, radius
        before = width // 2
    offset = np.abs(np.arange(width) - (width - 1) / 2)
    dy, dx = offset[:, None], offset[None, :]
    if distance == "euclidean":
        d = np.hypot(dy, dx)
    elif distance == "chebyshev":
        d = np.maximum(dy, dx)
    else:
        d = dy + dx
    fall = reach if profile == "1-d/r" else reach + 1
    weights = np.where(d <= reach, 1 - d / fall, 0.0)
    return (weights / weights.sum() if gain == "sum1" else weights), before


@functools.lru_cache(maxsize=64)
def weight_inside(options: tuple[Any, ...], height: int, width: int) -> NDArray[np.float64]:
    """For every cell the sum of the weights that lie inside the map, over the sum of all."""
    kernel, before = radial_kernel(*options)
    table = np.pad(kernel.cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def taps(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        cell = np.arange(n)
        first = np.clip(before - cell, 0, len(kernel))
        return first, np.clip(n + before - cell, 0, len(kernel))

    (top, bottom), (left, right) = taps(height), taps(width)
    rows = table[bottom] - table[top]
    return (rows[:, right] - rows[:, left]) / table[-1, -1]


def mirror(index: Tensor, n: int) -> Tensor:
    """Where a cell outside a map of ``n`` cells is read, if the map is mirrored at its edges."""
    period = max(2 * (n - 1), 1)
    index = index % period
    return torch.where(index < n, index, period - index)


def tap_reads(
    h: int, w: int, kernel: NDArray[np.float64], before: int, border: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """For every tap: which cell of a flat map each cell reads, and with what weight."""
    for i, row in enumerate(kernel):
        for j, weight in enumerate(row):
            y, x = torch.arange(h) + i - before, torch.arange(w) + j - before
            inside = ((y >= 0) & (y < h))[:, None] & ((x >= 0) & (x < w))
            if border == "reflect":
                y, x = mirror(y, h), mirror(x, w)
                inside = torch.ones_like(inside)
            read = y.clamp(0, h - 1)[:, None] * w + x.clamp(0, w - 1)
            yield read.flatten(), (weight * inside.double()).flatten()


@functools.lru_cache(maxsize=64)
def quarter_kernel(
    radius: float, support: str, distance: str, profile: str, gain: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The weights from the middle outwards, and how many of each line are used: see
    csrc/include/fundad/distance_filter.h."""
    kernel = radial_kernel(radius, support, distance, profile, gain)[0]
    middle = len(kernel) // 2
    half = kernel[middle:, middle:].copy()
    if len(kernel) % 2:
        half[0] /= 2
        half[:, 0] /= 2
    return np.ascontiguousarray(half, np.float32), (half != 0).sum(1, dtype=np.int64)


def wide_cells(n: int, taps: int, before: int, border: str) -> NDArray[np.int64]:
    """For every cell of an axis made longer for the taps: which cell it is, or -1 for a zero."""
    cell = torch.arange(n + taps - 1) - before
    if border == "reflect":
        return mirror(cell, n).numpy()
    return torch.where((cell >= 0) & (cell < n), cell, -1).numpy()
