# SPDX-License-Identifier: Apache-2.0
"""Pieces of other images, turned, scaled and blended in by their gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from .canvas import Canvas, Spot, cells, channel_range, mean_change, upload
from .masks import Form, Mask, Matrix, draw_rotation
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
    axes = len(pool.size)
    corners = np.array(list(itertools.product(*[(0, n) for n in form.inside.shape]))).T
    matrix = draw_rotation(rng, axes, settings.source_rotation)
    low, high = _bounds(matrix, corners)
    most = float(np.min(settings.source_share * np.array(pool.size) / (high - low)))
    scale = 1 + rng.exponential(settings.source_scale)
    if rng.random() < 0.5:
        scale = 1 / scale
    matrix = matrix * min(scale, most)
    low, high = _bounds(matrix, corners)
    extent = (high - low).astype(int)
    return Piece(
        source,
        _window(rng, extent, pool, source, settings),
        tuple(extent.tolist()),
        matrix,
        -low,
    )


def _bounds(
    matrix: Matrix, corners: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    turned = matrix @ corners
    return np.floor(turned.min(1)), np.ceil(turned.max(1))


def _window(
    rng: np.random.Generator,
    extent: NDArray[np.int64],
    pool: Pool,
    source: int,
    settings: TaskSettings,
) -> tuple[int, ...]:
    """A window whose middle cell is on the source's object."""
    room = np.array(pool.size) - extent + 1
    corner = rng.integers(0, room)
    if pool.mask is not None:
        on = pool.mask[source]
        for _ in range(settings.placement_tries - 1):
            if on[tuple(corner + extent // 2)]:
                break
            corner = rng.integers(0, room)
    return tuple(corner.tolist())


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
    windows, points = [], []
    for piece, extent in zip(pieces, extents, strict=True):
        box = tuple(slice(c, c + n) for c, n in zip(piece.corner, piece.extent, strict=True))
        windows.append(pool.image[cells(piece.source, slice(None), *box)].contiguous())
        points.append(_affine_points(piece, extent, pool.image.device))
    values = ops.spline_sample(windows, points, beyond)
    return [
        value.clamp_(*pool.range_of(piece.source)).view(-1, *extent)
        for value, piece, extent in zip(values, pieces, extents, strict=True)
    ]


def _affine_points(piece: Piece, extent: Sequence[int], device: torch.device) -> Tensor:
    axes = len(extent)
    total = torch.from_numpy(piece.offset).float().to(device).view(axes, *[1] * axes)
    matrix = torch.from_numpy(piece.matrix).float().to(device)
    for axis, n in enumerate(extent):
        line = matrix[:, axis, None] * torch.arange(n, dtype=torch.float32, device=device)
        shape = [axes, *[1] * axes]
        shape[axis + 1] = n
        total = total + line.view(shape)
    return total.view(axes, math.prod(extent))


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
        low, high = canvas.range_of(spot.sample)
        torch.minimum(torch.maximum(new, low, out=new), high, out=new)
        # Blending also alters cells around the shape.
        changed = mean_change(new, target) > settings.changed
        canvas.crop_mask(spot).logical_or_(changed | mask)
        canvas.crop(spot).copy_(new)


def _framed(inside: Mask) -> Mask:
    """Without the faces of the box, which blending leaves alone."""
    rest = np.zeros_like(inside)
    within = tuple(slice(1, -1) for _ in inside.shape)
    rest[within] = inside[within]
    return rest
