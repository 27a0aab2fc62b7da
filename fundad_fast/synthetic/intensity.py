# SPDX-License-Identifier: Apache-2.0
"""Smooth changes of intensity: lighter or darker, with a slope at the rim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import ops
from .canvas import Canvas, Spot, upload
from .settings import TaskSettings


@dataclass(frozen=True)
class Change:
    """What was drawn.

    Attributes:
        amount: of each channel.
        width: of the slope at the rim, in cells; at most the shape's depth is used.
    """

    amount: tuple[float, ...]
    width: float


def draw(
    rng: np.random.Generator, size: Sequence[int], channels: int, settings: TaskSettings
) -> Change:
    """An amount, its sign for each channel, and the width of the slope."""
    width = min(size) * (
        settings.smoothing_offset + rng.gamma(settings.smoothing_shape, settings.smoothing_scale)
    )
    amount = settings.kappa / 2 + rng.gamma(3.0, settings.kappa)
    signs = [1.0 if chance < 0.5 else -1.0 for chance in rng.random(channels).tolist()]
    return Change(tuple(sign * amount for sign in signs), width)


def change(canvas: Canvas, spots: Sequence[Spot]) -> None:
    """Change the intensity of a batch, in place; values stay in their channel's range.

    The slope rises with the distance to what is outside the shape, and beyond its box is outside.
    The public code takes the box's border for no border at all; there a shape that fills its box
    has no depth. This is our deviation from it.

    Args:
        canvas: the batch.
        spots: at most one for each image, with a :class:`Change` each.
    """
    device = canvas.image.device
    masks = upload([spot.form.inside for spot in spots], device)
    for spot, mask, depth in zip(spots, masks, ops.distance_transform(masks), strict=True):
        drawn: Change = spot.decision
        amount: float | Tensor = drawn.amount[0]
        if len(drawn.amount) > 1:
            amount = torch.tensor(drawn.amount, device=device).view(-1, *[1] * depth.dim())
        slope = (depth / depth.max().clamp_(max=drawn.width)).clamp_(max=1)
        crop = canvas.crop(spot)
        canvas.keep_in_range(spot.sample, crop + amount * slope, out=crop)
        canvas.crop_mask(spot).logical_or_(mask)
