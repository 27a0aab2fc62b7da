# SPDX-License-Identifier: Apache-2.0
"""Smooth changes of intensity: lighter or darker, with a slope at the rim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .canvas import Canvas, Spot, upload
from .masks import Form, Mask
from .settings import TaskSettings


@dataclass(frozen=True)
class Change:
    """What was drawn.

    Attributes:
        amount: of each channel.
        slope: ``[*extent]`` float32 in [0, 1]: 0 outside the shape, rising with the depth.
    """

    amount: tuple[float, ...]
    slope: NDArray[np.float32]


def draw(
    rng: np.random.Generator,
    form: Form,
    size: Sequence[int],
    channels: int,
    settings: TaskSettings,
) -> Change:
    """An amount, its sign for each channel, and the width of the slope."""
    width = min(size) * (
        settings.smoothing_offset + rng.gamma(settings.smoothing_shape, settings.smoothing_scale)
    )
    amount = settings.kappa / 2 + rng.gamma(3.0, settings.kappa)
    signs = np.where(rng.random(channels) < 0.5, 1.0, -1.0)
    depths = depth(form.inside)
    slope = np.minimum(depths / np.float32(min(width, float(depths.max()))), np.float32(1))
    return Change(tuple((signs * amount).tolist()), slope)


def depth(inside: Mask) -> NDArray[np.float32]:
    """Distance of each cell of a shape to the nearest cell outside; beyond the box is outside.

    The public code takes the box's border for no border at all; there a shape that fills its box
    has no depth. This is our deviation from it.
    """
    padded = np.zeros([n + 2 for n in inside.shape], dtype=bool)
    within = tuple(slice(1, -1) for _ in inside.shape)
    padded[within] = inside
    if inside.ndim == 2:
        import cv2

        found = cv2.distanceTransform(padded.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return np.ascontiguousarray(found[within], np.float32)
    # Axis by axis, squares of distances to the lowest of parabolas (Felzenszwalb and Huttenlocher
    # 2012). Shapes are small: to look only as far as distances reach takes a third of the time of
    # SciPy's transform (30 x 31 x 31 cells: 1.3 ms against 3.4).
    squares = np.where(padded, np.float32(np.inf), np.float32(0))
    for axis in np.argsort(padded.shape):
        lowest = squares.copy()
        before, now = np.moveaxis(squares, axis, 0), np.moveaxis(lowest, axis, 0)
        for step in range(1, len(now)):
            if step * step >= lowest.max():
                break
            np.minimum(now[step:], before[:-step] + np.float32(step * step), out=now[step:])
            np.minimum(now[:-step], before[step:] + np.float32(step * step), out=now[:-step])
        squares = lowest
    return np.ascontiguousarray(np.sqrt(squares[within]))


def change(canvas: Canvas, spots: Sequence[Spot]) -> None:
    """Change the intensity of a batch, in place; values stay in their channel's range.

    Args:
        canvas: the batch.
        spots: at most one for each image, with a :class:`Change` each.
    """
    device = canvas.image.device
    slopes = upload([spot.decision.slope for spot in spots], device)
    masks = upload([spot.form.inside for spot in spots], device)
    for spot, slope, mask in zip(spots, slopes, masks, strict=True):
        low, high = canvas.range_of(spot.sample)
        amount = torch.tensor(spot.decision.amount, device=device).view_as(low)
        crop = canvas.crop(spot)
        crop.copy_(torch.minimum(torch.maximum(crop + amount * slope, low), high))
        canvas.crop_mask(spot).logical_or_(mask)
