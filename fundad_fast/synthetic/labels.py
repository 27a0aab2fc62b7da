# SPDX-License-Identifier: Apache-2.0
"""Labels of synthetic anomalies: how much an image changed, from 0 to 1, without holes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from .canvas import Canvas

F32 = NDArray[np.float32]
Box = tuple[slice, ...]


def label(canvas: Canvas, sigma: float, clean: bool) -> Tensor:
    """Labels of a batch, ``[b, *s]`` float32 in [0, 1].

    Args:
        canvas: the batch, with its anomalies made.
        sigma: see :func:`fundad_fast.ops.change_labels`.
        clean: close and fill them, see :func:`fundad_fast.ops.clean_labels`; before that, labels
            are 0 outside the mask, and closing may fill gaps between its parts.
    """
    boxes = [
        (sample, *(lane.start for lane in box), *(lane.stop - lane.start for lane in box))
        for sample, box in regions(canvas)
    ]
    return ops.change_labels(
        canvas.image, canvas.original, canvas.mask, boxes, sigma=sigma, clean=clean
    )


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
