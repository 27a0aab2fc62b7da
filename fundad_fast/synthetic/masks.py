# SPDX-License-Identifier: Apache-2.0
"""Where anomalies are: boxes and ellipsoids of random size, sheared, turned, and put on the object.

"Many tasks make light work", section 3, with the numbers of its public code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .settings import TaskSettings

Mask = NDArray[np.bool_]
Matrix = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Form:
    """A convex shape in the middle of a box of cells.

    Attributes:
        ellipsoid: ellipsoid, or box.
        half: half extents along the shape's own axes, in cells.
        matrix: ``[d, d]``, from the shape's axes to the grid's, around the box's centre.
        inverse: of ``matrix``.
        inside: ``[*extent]`` which cells of the box are in the shape; every extent is odd.
    """

    ellipsoid: bool
    half: tuple[float, ...]
    matrix: Matrix
    inverse: Matrix
    inside: Mask

    @property
    def centre(self) -> tuple[int, ...]:
        """The cell in the middle."""
        return tuple(n // 2 for n in self.inside.shape)


def draw_extent(rng: np.random.Generator, size: Sequence[int], settings: TaskSettings) -> list[int]:
    """Extents of a shape along its own axes, in cells, for an image of ``size``."""
    low, high = limits(size, settings)
    gammas = rng.gamma(settings.size_shape, settings.size_scale, len(size)).tolist()
    return [
        int(min(max((settings.size_offset + g) * n, least), most))
        for g, n, least, most in zip(gammas, size, low, high, strict=True)
    ]


def limits(size: Sequence[int], settings: TaskSettings) -> tuple[list[int], list[int]]:
    """The least and the largest extent along each axis, in cells."""
    return [max(1, round(settings.min_size * n)) for n in size], [
        max(1, round(settings.max_size * n)) for n in size
    ]


def draw_form(rng: np.random.Generator, size: Sequence[int], settings: TaskSettings) -> Form:
    """A random box or ellipsoid for an image of ``size``, sheared and turned.

    Args:
        rng: drawn from.
        size: of the image, in cells.
        settings: sizes, shear and rotation.
    """
    extent = draw_extent(rng, size, settings)
    ellipsoid = bool(rng.random() < 0.5)
    matrix = _turned(rng, _sheared(rng, len(size), settings.shear), settings.rotation)
    reach = _reach(matrix, extent)
    most = limits(size, settings)[1]
    over = max((2 * r + 1) / m for r, m in zip(reach, most, strict=True))
    if over > 1:  # once, as the code does it: the result may still be too large by a cell
        matrix = [[value / over for value in row] for row in matrix]
        reach = _reach(matrix, extent)
    half = tuple(n / 2 for n in extent)
    inverse = _inverse(matrix)
    inside = _inside(ellipsoid, half, inverse, reach)
    return Form(ellipsoid, half, np.array(matrix), np.array(inverse), inside)


# Matrices are lists of rows: of two or three axes a call of numpy takes longer than the arithmetic.
Rows = list[list[float]]


def unit(axes: int) -> Rows:
    """The matrix that changes nothing."""
    return [[float(row == column) for column in range(axes)] for row in range(axes)]


def _sheared(rng: np.random.Generator, axes: int, sigma: float) -> Rows:
    matrix = unit(axes)
    for row in range(axes):
        # Of one other axis nothing is drawn, by numpy neither.
        other = int(rng.integers(axes - 1)) if axes > 2 else 0
        matrix[row][other + (other >= row)] = rng.normal(0, sigma)
    return matrix


def draw_rotation(rng: np.random.Generator, axes: int, most: float) -> Rows:
    """A product of rotations by ± ``most`` radians, one for each pair of axes: its rows."""
    return _turned(rng, unit(axes), most)


def _turned(rng: np.random.Generator, matrix: Rows, most: float) -> Rows:
    pairs = list(itertools.combinations(range(len(matrix)), 2))
    for (a, b), angle in zip(pairs, rng.uniform(-most, most, len(pairs)).tolist(), strict=True):
        cosine, sine = math.cos(angle), math.sin(angle)
        one, other = matrix[a], matrix[b]
        matrix[a] = [cosine * x - sine * y for x, y in zip(one, other, strict=True)]
        matrix[b] = [sine * x + cosine * y for x, y in zip(one, other, strict=True)]
    return matrix


def _inverse(matrix: Rows) -> Rows:
    if len(matrix) != 2:
        rows: Rows = np.linalg.inv(np.array(matrix)).tolist()
        return rows
    (a, b), (c, d) = matrix
    determinant = a * d - b * c
    return [[d / determinant, -b / determinant], [-c / determinant, a / determinant]]


def _reach(matrix: Rows, extent: Sequence[int]) -> list[int]:
    """How far the centres of the corner cells lie from the middle, in whole cells, outwards."""
    return [
        math.ceil(sum(abs(m) * ((n - 1) / 2) for m, n in zip(row, extent, strict=True)))
        for row in matrix
    ]


def _inside(ellipsoid: bool, half: Sequence[float], inverse: Rows, reach: Sequence[int]) -> Mask:
    lines = [np.arange(-r, r + 1.0) for r in reach]
    total: Any = None
    for row, extent in zip(inverse, half, strict=True):
        along: Any = (row[0] / extent) * lines[0]
        for factor, line in zip(row[1:], lines[1:], strict=True):
            along = along[..., None] + (factor / extent) * line
        if ellipsoid:
            along = np.square(along, out=along)
            total = along if total is None else np.add(total, along, out=total)
        else:
            along = np.abs(along, out=along)
            total = along if total is None else np.maximum(total, along, out=total)
    return np.asarray(total <= 1)


def place(
    rng: np.random.Generator,
    inside: Mask,
    size: Sequence[int],
    on: Mask | None,
    settings: TaskSettings,
) -> tuple[int, ...]:
    """The lowest corner of a random place of a shape's box, mostly on the object.

    Args:
        rng: drawn from.
        inside: ``[*extent]`` the shape.
        size: of the image.
        on: ``[*size]`` the object; ``None``: anywhere.
        settings: the least share on the object, and how many places are tried. When none of them
            will do, the one with the largest share is taken.
    """
    room = [n - e + 1 for n, e in zip(size, inside.shape, strict=True)]
    if on is None:
        return tuple(int(rng.integers(0, n)) for n in room)
    cells = np.count_nonzero(inside)
    best, most = (0,) * len(room), -1
    for _ in range(settings.placement_tries):
        corner = tuple(int(rng.integers(0, n)) for n in room)
        window = on[tuple(slice(c, c + e) for c, e in zip(corner, inside.shape, strict=True))]
        shared = int(np.count_nonzero(window & inside))
        if shared > most:
            best, most = corner, shared
        if shared >= settings.min_object_fraction * cells:
            break
    return best
