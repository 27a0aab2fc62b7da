# SPDX-License-Identifier: Apache-2.0
"""Pieces of other images, turned, scaled and blended in by their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from .canvas import Canvas, Spot, box_of, channel_range, mean_change, upload
from .masks import Form, Mask, Matrix, Rows, draw_rotation
from .settings import TaskSettings


@dataclass(frozen=True)
class Piece:
    """What was drawn.

    Attributes:
        source: which image of the pool.
        corner: the lowest cell of its window.
        extent: of the window, in cells.
        matrix: ``[d, d]``, from cells of the anomaly's box to cells of the window, ...
        offset: ``[d]``, ... with this added.
    """

    source: int
    corner: tuple[int, ...]
    extent: tuple[int, ...]
    matrix: Matrix
    offset: NDArray[np.float64]


class Pool:
    """Images that pieces are taken from.

    Attributes:
        image: ``[n, c, *s]``.
        mask: ``[n, *s]`` bool on the CPU, the objects; ``None``: everywhere.
    """

    def __init__(self, image: Tensor, mask: Tensor | None) -> None:
        self.image = image
        self.mask: Mask | None = None if mask is None else mask.cpu().numpy()
        self._ranges: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def size(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return tuple(self.image.shape[2:])

    def range_of(self, source: int) -> tuple[Tensor, Tensor]:
        """The least and the largest value of each channel of an image, ``[c, 1]``."""
        if source not in self._ranges:
            low, high = channel_range(self.image[source : source + 1])
            self._ranges[source] = low.T, high.T
        return self._ranges[source]


def draw(rng: np.random.Generator, form: Form, pool: Pool, settings: TaskSettings) -> Piece:
    """Which piece of which image, and how it is turned and scaled."""
    source = int(rng.integers(len(pool.image)))
    axes, extent = len(pool.size), form.inside.shape
    matrix = draw_rotation(rng, axes, settings.source_rotation)
    bounds = _bounds(matrix, extent)
    most = min(
        settings.source_share * n / (high - low)
        for n, (low, high) in zip(pool.size, bounds, strict=True)
    )
    scale = 1 + rng.exponential(settings.source_scale)
    if rng.random() < 0.5:
        scale = 1 / scale
    scale = min(scale, most)
    matrix = [[value * scale for value in row] for row in matrix]
    bounds = _bounds(matrix, extent)
    window = [high - low for low, high in bounds]
    return Piece(
        source,
        _window(rng, window, pool, source, settings),
        tuple(window),
        np.array(matrix),
        np.array([-low for low, _ in bounds], float),
    )


def _bounds(matrix: Rows, extent: Sequence[int]) -> list[tuple[int, int]]:
    """The whole numbers around what the box from 0 to ``extent`` becomes, along each axis."""
    found = []
    for row in matrix:
        ends = [m * n for m, n in zip(row, extent, strict=True)]
        low, high = sum(e for e in ends if e < 0), sum(e for e in ends if e > 0)
        found.append((math.floor(low), math.ceil(high)))
    return found


def _window(
    rng: np.random.Generator,
    extent: Sequence[int],
    pool: Pool,
    source: int,
    settings: TaskSettings,
) -> tuple[int, ...]:
    """A window whose middle cell is on the source's object."""
    room = [n - e + 1 for n, e in zip(pool.size, extent, strict=True)]
    corner = tuple(int(rng.integers(0, n)) for n in room)
    if pool.mask is not None:
        on = pool.mask[source]
        for _ in range(settings.placement_tries - 1):
            if on[tuple(c + e // 2 for c, e in zip(corner, extent, strict=True))]:
                break
            corner = tuple(int(rng.integers(0, n)) for n in room)
    return corner


def resample(
    pieces: Sequence[Piece],
    extents: Sequence[Sequence[int]],
    pool: Pool,
    beyond: Literal["edge", "zero"] = "zero",
) -> list[Tensor]:
    """The pieces on the cells of anomalies' boxes, ``[c, *extent]`` each, within their range.

    Args:
        pieces: what was drawn.
        extents: of the boxes.
        pool: where they come from.
        beyond: what surrounds the windows, see :func:`fundad_fast.ops.spline_sample`.
    """
    windows = [box_of(pool.image, p.source, p.corner, p.extent).contiguous() for p in pieces]
    where = [_affine_points(piece, extent) for piece, extent in zip(pieces, extents, strict=True)]
    values = ops.spline_sample(windows, upload(where, pool.image.device), beyond)
    return [
        value.clamp_(*pool.range_of(piece.source)).view(-1, *extent)
        for value, piece, extent in zip(values, pieces, extents, strict=True)
    ]


def _affine_points(piece: Piece, extent: Sequence[int]) -> NDArray[np.float32]:
    axes = len(extent)
    total: Any = piece.offset.astype(np.float32).reshape(axes, *[1] * axes)
    matrix = piece.matrix.astype(np.float32)
    for axis, n in enumerate(extent):
        line = matrix[:, axis, None] * np.arange(n, dtype=np.float32)
        shape = [axes, *[1] * axes]
        shape[axis + 1] = n
        total = total + line.reshape(shape)
    return np.asarray(total.reshape(axes, math.prod(extent)))


def blend(canvas: Canvas, spots: Sequence[Spot], pool: Pool, settings: TaskSettings) -> None:
    """Blend pieces into a batch, in place, by mixed gradients (Poisson editing).

    Args:
        canvas: the batch.
        spots: at most one for each image, with a :class:`Piece` each.
        pool: where the pieces come from.
        settings: from which change on a cell belongs to the mask.
    """
    device = canvas.image.device
    sources = resample([s.decision for s in spots], [s.form.inside.shape for s in spots], pool)
    paste(canvas, spots, [source.to(device) for source in sources], settings)


def paste(
    canvas: Canvas, spots: Sequence[Spot], sources: Sequence[Tensor], settings: TaskSettings
) -> None:
    """Blend boxes of values ``[c, *extent]`` into a batch, in place, by mixed gradients."""
    targets = [canvas.crop(spot).contiguous() for spot in spots]
    masks = upload([_framed(spot.form.inside) for spot in spots], canvas.image.device)
    blended = ops.poisson_blend(targets, sources, masks)
    for spot, target, mask, new in zip(spots, targets, masks, blended, strict=True):
        canvas.keep_in_range(spot.sample, new, out=new)
        # Blending also alters cells around the shape.
        changed = mean_change(new, target) > settings.changed
        canvas.crop_mask(spot).logical_or_(changed.logical_or_(mask))
        canvas.crop(spot).copy_(new)


def _framed(inside: Mask) -> Mask:
    """Without the faces of the box, which blending leaves alone."""
    rest = np.zeros_like(inside)
    within = (slice(1, -1),) * inside.ndim
    rest[within] = inside[within]
    return rest
