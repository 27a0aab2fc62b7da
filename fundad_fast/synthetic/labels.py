# SPDX-License-Identifier: Apache-2.0
"""Labels of synthetic anomalies: how much an image changed, from 0 to 1, without holes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from .canvas import Canvas, box_of, mean_change

F32 = NDArray[np.float32]
Box = tuple[slice, ...]


def flipped_gaussian(difference: Tensor, sigma: float) -> Tensor:
    """1 - exp(-Δ²/2σ²), as a share of what a Gaussian loses: "Many tasks make light work".

    Args:
        difference: of any shape.
        sigma: in the image's units.
    """
    return difference.square().mul_(-0.5 / sigma**2).expm1_().neg_()


def label(canvas: Canvas, sigma: float, clean: bool) -> Tensor:
    """Labels of a batch, ``[b, *s]`` float32 in [0, 1].

    Args:
        canvas: the batch, with its anomalies made.
        sigma: of :func:`flipped_gaussian` of the mean absolute difference over the channels.
        clean: close and fill them, see :func:`fundad_fast.ops.clean_labels`; before that, labels
            are 0 outside the mask, and closing may fill gaps between its parts.
    """
    result = torch.zeros_like(canvas.mask, dtype=torch.float32)
    places = regions(canvas)
    corners = [(sample, [s.start for s in box]) for sample, box in places]
    extents = [tuple(s.stop - s.start for s in box) for _, box in places]
    differences, parts = [], []
    for (sample, corner), extent in zip(corners, extents, strict=True):
        after = box_of(canvas.image, sample, corner, extent)
        before = box_of(canvas.original, sample, corner, extent)
        differences.append(mean_change(after, before).view(-1))
        parts.append(box_of(canvas.mask, sample, corner, extent).reshape(-1))
    # All of them in one row: boxes are many and small, and each call of torch costs as much as one.
    inside = torch.cat(parts)
    raw = flipped_gaussian(torch.cat(differences), sigma).masked_fill_(~inside, 0)
    lengths = [len(part) for part in parts]
    values = [one.view(extent) for one, extent in zip(raw.split(lengths), extents, strict=True)]
    if clean:
        masks = [one.view(n) for one, n in zip(inside.split(lengths), extents, strict=True)]
        values = ops.clean_labels(values, masks)
    for (sample, corner), extent, one in zip(corners, extents, values, strict=True):
        box_of(result, sample, corner, extent).copy_(one)
    return result


def regions(canvas: Canvas) -> list[tuple[int, Box]]:
    """Boxes that hold all anomalies of a batch and do not touch each other, by sample."""
    by_sample: dict[int, list[Box]] = {}
    for spot in canvas.spots:
        by_sample.setdefault(spot.sample, []).append(spot.box)
    return [(sample, box) for sample, all_ in by_sample.items() for box in _apart(all_)]


def _apart(boxes: Sequence[Box]) -> list[Box]:
    found: list[Box] = []
    for box in boxes:
        while near := [other for other in found if _touch(box, other)]:
            found = [other for other in found if other not in near]
            box = tuple(
                slice(min(s.start for s in lane), max(s.stop for s in lane))
                for lane in zip(box, *near, strict=True)
            )
        found.append(box)
    return found


def _touch(a: Box, b: Box) -> bool:
    return all(x.start <= y.stop and y.start <= x.stop for x, y in zip(a, b, strict=True))


def logistic(values: F32, steepness: float, middle: float) -> F32:
    """NSA's label, 1 / (1 + exp(-k (Δ - Δ₀)))."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-steepness * (values - middle))), np.float32)
