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
    cells = np.flatnonzero(inside)
    centre = np.unravel_index(cells[rng.integers(len(cells))], inside.shape)
    rim = np.nonzero(inside & ~_eroded(inside))
    square: Any = 0
    for at, c in zip(rim, centre, strict=True):
        at -= c
        square = square + at * at
    radius = float(np.sqrt(square).mean())
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
    within = tuple(slice(1, -1) for _ in inside.shape)
    moving[within] = inside[within]
    moving[centre] = False
    place = tuple(int(c) for c in centre)
    return Deformation(
        kind, place, exponent(push / (math.sqrt(2) * radius)), np.flatnonzero(moving)
    )


def _eroded(inside: Mask) -> Mask:
    """Cells whose neighbours across every face are in the shape, too; beyond the box is outside."""
    rest = np.zeros_like(inside)
    within = tuple(slice(1, -1) for _ in inside.shape)
    kept = rest[within]
    kept[...] = inside[within]
    for axis in range(inside.ndim):
        for side in (slice(None, -2), slice(2, None)):
            kept &= inside[(*within[:axis], side, *within[axis + 1 :])]
    return rest


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
    points = positions([s.form for s in moving], [s.decision for s in moving], cells)
    values = ops.spline_sample(boxes, points, "edge")
    for spot, box, at, value in zip(moving, boxes, cells, values, strict=True):
        box.flatten(1).index_copy_(1, at, value)
        canvas.crop(spot).copy_(box)


def _on(inside: Mask, canvas: Canvas) -> Tensor:
    return torch.from_numpy(inside).to(canvas.mask.device)


def positions(
    forms: Sequence[Form], decisions: Sequence[Deformation], cells: Sequence[Tensor]
) -> list[Tensor]:
    """Where the values of cells are read: ``[d, n]`` float32 each, in cells of the box.

    Args:
        forms: the shapes.
        decisions: what was drawn.
        cells: ``[n]`` int64 of each, counted through its box.
    """
    device = cells[0].device
    counts = [len(c) for c in cells]
    axes = len(forms[0].half)
    # One row for each shape, one column for each of its numbers; then one column for each cell.
    rows = []
    for form, drawn in zip(forms, decisions, strict=True):
        own = form.inverse / np.array(form.half)[:, None]  # to the unit cube or ball
        origin = own @ (np.array(drawn.centre) - form.centre)
        rows.append([*own.ravel().tolist(), *origin.tolist(), *drawn.centre])
        rows[-1] += [*form.inside.shape[1:], drawn.exponent, drawn.kind == "sink", form.ellipsoid]
    table = torch.tensor(rows, dtype=torch.float32).T.to(device)
    table = table.repeat_interleave(torch.tensor(counts, device=device), 1, output_size=sum(counts))
    inverse = table[: axes * axes].view(axes, axes, -1)
    origin, centre = table[axes * axes :][: 2 * axes].view(2, axes, -1)
    extent = table[(axes + 2) * axes : -3].int()
    power, sink, ellipsoid = table[-3], table[-2].bool(), table[-1].bool()

    left, at = torch.cat(list(cells)).int(), []
    for size in reversed(extent):
        rest = left // size
        at.append(left - rest * size)
        left = rest
    offset = torch.stack([left, *reversed(at)]).sub(centre)
    rho = offset.square().sum(0).sqrt_()
    direction = offset.div_(rho)
    d = surface_distance(origin, (inverse * direction).sum(1), ellipsoid)
    # The rim may lie beyond the surface by rounding, and a negative base has no power.
    share = rho.div_(d).clamp_(max=1)
    pulled = torch.where(sink, 1 - share, share).pow_(power)
    read = torch.where(sink, 1 - pulled, pulled).mul_(d)
    return list(direction.mul_(read).add_(centre).split(counts, 1))
