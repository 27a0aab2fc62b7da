# SPDX-License-Identifier: Apache-2.0
"""Sink and source: tissue drawn into a point, or pushed out of it, within a convex shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from .canvas import Canvas, Spot, upload
from .masks import Form, Mask
from .rays import surface_distance
from .settings import TaskSettings

Kind = Literal["sink", "source"]


@dataclass(frozen=True)
class Deformation:
    """What was drawn.

    Attributes:
        kind: sink or source.
        centre: a cell of the shape, in cells of the box.
        exponent: f of the paper's equations 1 and 2.
        cells: ``[n]`` int64, the cells of the box that move, counted through the box.
    """

    kind: Kind
    centre: tuple[int, ...]
    exponent: float
    cells: NDArray[np.int64]


def exponent(push: float) -> float:
    """The exponent of a curve that lies ``push`` away from the diagonal where they are farthest.

    Args:
        push: distance at right angles to the diagonal, as a share of its length, in (0, 0.5).
    """
    return math.log(0.5 - push) / math.log(0.5 + push)


def draw(
    rng: np.random.Generator, form: Form, kind: Kind, settings: TaskSettings
) -> Deformation | None:
    """A centre and a strength.

    Returns:
        ``None`` where a shape is a single cell, which cannot be deformed.

    The strength is drawn as a push in cells: large shapes could be pushed farther, but not beyond
    ``g_max``, and small ones are not pushed by less than ``g_min`` as far as they can be.
    """
    inside = form.inside
    cells = inside.ravel().nonzero()[0]
    place = _unravelled(int(cells[rng.integers(len(cells))]), inside.shape)
    radius = _rim_radius(inside, place)
    farthest = radius / math.sqrt(2)
    low, high = 0.1 * farthest, 0.9 * farthest
    if settings.g_min >= high:
        push = high
    elif settings.g_max <= low:
        push = low
    else:
        push = rng.uniform(max(low, settings.g_min), min(high, settings.g_max))
    if radius == 0:
        return None
    moving = np.zeros_like(inside)
    within = (slice(1, -1),) * inside.ndim
    moving[within] = inside[within]
    moving[place] = False
    f = exponent(push / (math.sqrt(2) * radius))
    return Deformation(kind, place, f, moving.ravel().nonzero()[0])


def _unravelled(cell: int, extent: Sequence[int]) -> tuple[int, ...]:
    place = []
    for n in reversed(extent):
        cell, at = divmod(cell, n)
        place.append(at)
    return tuple(reversed(place))


def _rim_radius(inside: Mask, centre: Sequence[int]) -> float:
    """The mean distance of the cells at the rim from one of the shape.

    Those at the rim have a neighbour across a face that is not in the shape; beyond the box is
    outside.
    """
    within = (slice(1, -1),) * inside.ndim
    rim = inside.copy()
    inner = inside[within].copy()
    for axis in range(inside.ndim):
        for side in (slice(None, -2), slice(2, None)):
            inner &= inside[(*within[:axis], side, *within[axis + 1 :])]
    rim[within] ^= inner
    cells: Any = rim.ravel().nonzero()[0]
    square: Any = 0
    for n, c in zip(reversed(inside.shape), reversed(centre), strict=True):
        cells, at = np.divmod(cells, n)
        at -= c
        square = square + at * at
    return float(np.add.reduce(np.sqrt(square))) / len(square)


def deform(canvas: Canvas, spots: Sequence[Spot]) -> None:
    """Deform boxes of a batch, in place; their outermost cells stay.

    Equation 1 (sink) ρ' = d (1 - (1 - ρ/d)^f), equation 2 (source) ρ' = d (ρ/d)^f: the value at
    distance ρ from the centre is read at ρ', d being the distance to the surface that way.

    Args:
        canvas: the batch.
        spots: at most one for each image, with a :class:`Deformation` each.
    """
    for spot in spots:
        canvas.crop_mask(spot).logical_or_(_on(spot.form.inside, canvas))
    moving = [s for s in spots if s.decision is not None and len(s.decision.cells)]
    if not moving:
        return
    device = canvas.image.device
    cells = upload([s.decision.cells for s in moving], device)
    boxes = [canvas.crop(spot).contiguous() for spot in moving]
    points = upload([positions(s.form, s.decision) for s in moving], device)
    values = ops.spline_sample(boxes, points, "edge")
    for spot, box, at, value in zip(moving, boxes, cells, values, strict=True):
        box.flatten(1).index_copy_(1, at, value)
        canvas.crop(spot).copy_(box)


def _on(inside: Mask, canvas: Canvas) -> Tensor:
    return torch.from_numpy(inside).to(canvas.mask.device)


def positions(form: Form, drawn: Deformation) -> NDArray[np.float32]:
    """Where the values of the moving cells are read: ``[d, n]``, in cells of the box.

    On the CPU: cells are few, and what is said of a shape once need not be said for each of them.
    """
    own = form.inverse / np.array(form.half)[:, None]  # to the unit cube or ball
    origin = own @ (np.array(drawn.centre) - form.centre)
    offset = np.empty((len(own), len(drawn.cells)), np.float32)
    at = np.unravel_index(drawn.cells, form.inside.shape)
    for axis, (cells, centre) in enumerate(zip(at, drawn.centre, strict=True)):
        np.subtract(cells, centre, out=offset[axis], casting="unsafe")
    # d/ρ, the distance to the surface in units of that to the cell: at least 1, but for rounding.
    reach = surface_distance(
        origin.astype(np.float32), own.astype(np.float32) @ offset, form.ellipsoid
    )
    np.maximum(reach, 1, out=reach)
    share, power = 1 / reach, np.float32(drawn.exponent)
    reach *= 1 - (1 - share) ** power if drawn.kind == "sink" else share**power
    offset *= reach
    offset += np.array(drawn.centre, np.float32)[:, None]
    return offset
