# SPDX-License-Identifier: Apache-2.0
"""Labels of synthetic anomalies: how much an image changed, from 0 to 1, without holes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .canvas import Canvas, cells, upload
from .masks import Mask

F32 = NDArray[np.float32]
Box = tuple[slice, ...]


def flipped_gaussian(difference: Tensor, sigma: float) -> Tensor:
    """1 - exp(-Δ²/2σ²), as a share of what a Gaussian loses: "Many tasks make light work".

    Args:
        difference: of any shape.
        sigma: in the image's units.
    """
    return -torch.expm1(difference.square() * (-0.5 / sigma**2))


def label(canvas: Canvas, sigma: float, clean: bool) -> Tensor:
    """Labels of a batch, ``[b, *s]`` float32 in [0, 1].

    Args:
        canvas: the batch, with its anomalies made.
        sigma: of :func:`flipped_gaussian` of the mean absolute difference over the channels.
        clean: close and fill them, see :func:`close_and_fill`; before that, labels are 0 outside
            the mask, and closing may fill gaps between its parts.
    """
    result = torch.zeros_like(canvas.mask, dtype=torch.float32)
    places = regions(canvas)
    for sample, box in places:
        at = cells(sample, slice(None), *box)
        difference = (canvas.image[at] - canvas.original[at]).abs_().mean(0)
        raw = flipped_gaussian(difference, sigma)
        at = cells(sample, *box)
        result[at] = raw.masked_fill_(~canvas.mask[at], 0)
    if clean and places:
        _clean(result, canvas.mask, places)
    return result


def _clean(result: Tensor, mask: Tensor, places: Sequence[tuple[int, Box]]) -> None:
    if result.device.type == "cpu":
        labels, masks = result.numpy(), mask.numpy()
        for sample, box in places:
            close_and_fill(labels[sample][box], masks[sample][box])
        return
    # There and back in one copy each; the fill is a walk that a GPU has no use for.
    crops = [(result[sample][box], mask[sample][box]) for sample, box in places]
    values = torch.cat([one.flatten() for one, _ in crops]).cpu().numpy()
    inside = torch.cat([one.flatten() for _, one in crops]).cpu().numpy()
    parts, start = [], 0
    for one, _ in crops:
        end = start + one.numel()
        parts.append(values[start:end].reshape(one.shape))
        close_and_fill(parts[-1], inside[start:end].reshape(one.shape))
        start = end
    for (one, _), part in zip(crops, upload(parts, result.device), strict=True):
        one.copy_(part)


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


def close_and_fill(values: F32, mask: Mask) -> None:
    """Clean labels, in place, in the bounding box of each face-connected part of a mask.

    A grey closing, then what lies lower than every way to the border of the box is raised to the
    lowest of them (reconstruction by erosion), both among neighbours that differ in at most two
    axes. This keeps labels smooth where the difference of two images crosses zero. The authors'
    code does it; the paper does not say.

    Args:
        values: ``[*s]`` labels; boxes that overlap are cleaned one after the other.
        mask: ``[*s]``.
    """
    from scipy.ndimage import find_objects
    from scipy.ndimage import label as components

    for box in find_objects(components(mask)[0]):
        closed = _eroded(_dilated(values[box]))
        values[box] = _filled(closed)


def _filled(values: F32) -> F32:
    # Along straight lines first: from there on it takes as many steps as ways have bends.
    level = None
    for axis in range(values.ndim):
        for lane in (values, np.flip(values, axis)):
            line = np.maximum.accumulate(lane, axis)
            line = line if lane is values else np.flip(line, axis)
            level = line if level is None else np.minimum(level, line)
    assert level is not None
    while True:
        lower = np.maximum(_eroded(level), values)
        if np.array_equal(lower, level):
            return lower
        level = lower


def _dilated(values: F32) -> F32:
    if values.ndim == 2:
        import cv2

        return np.asarray(cv2.dilate(np.ascontiguousarray(values), np.ones((3, 3), np.uint8)))
    return _over_squares(values, np.maximum)


def _eroded(values: F32) -> F32:
    if values.ndim == 2:
        import cv2

        return np.asarray(cv2.erode(np.ascontiguousarray(values), np.ones((3, 3), np.uint8)))
    return _over_squares(values, np.minimum)


def _over_squares(values: F32, extreme: Callable[..., Any]) -> F32:
    """The extreme of 3 x 3 cells of every plane through a cell; what lies beyond does not count."""
    result = None
    lines = [_over_line(values, axis, extreme) for axis in range(values.ndim - 1)]
    for a, b in itertools.combinations(range(values.ndim), 2):
        square = _over_line(lines[a], b, extreme)
        result = square if result is None else extreme(result, square, out=result)
    assert result is not None
    return result


def _over_line(values: F32, axis: int, extreme: Callable[..., Any]) -> F32:
    result = values.copy()
    head = tuple(slice(None) for _ in range(axis))
    up, down = (*head, slice(1, None)), (*head, slice(None, -1))
    extreme(result[up], values[down], out=result[up])
    extreme(result[down], values[up], out=result[down])
    return result


def logistic(values: F32, steepness: float, middle: float) -> F32:
    """NSA's label, 1 / (1 + exp(-k (Δ - Δ₀)))."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-steepness * (values - middle))), np.float32)
