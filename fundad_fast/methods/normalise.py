# SPDX-License-Identifier: Apache-2.0
"""From images in [0, 1] to the scale on which a method's networks and synthetic anomalies work."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..batch import Batch

Normalisation = Literal["range", "zscore"]

_EPS = 1e-8  # as in the public code of "Many tasks make light work"


def normalised(image: Tensor, mask: Tensor | None, how: Normalisation) -> Tensor:
    """Images on the method's scale.

    ``range`` takes [0, 1] to [-1, 1]; ``zscore`` makes the mean 0 and the standard deviation 1
    inside the mask, and 0 outside. Source: METHODS.md C.1.

    Args:
        image: ``[b, c, *s]`` float32 in [0, 1].
        mask: ``[b, *s]`` bool or ``None`` for everywhere.
        how: ``range`` or ``zscore``.
    """
    if how == "range":
        return image * 2 - 1
    axes = tuple(range(2, image.dim()))
    weight = torch.ones_like(image[:, :1]) if mask is None else mask[:, None].to(image)
    count = weight.sum(axes, keepdim=True).clamp_min(1)
    mean = (image * weight).sum(axes, keepdim=True) / count
    centred = (image - mean) * weight
    deviation = ((centred**2).sum(axes, keepdim=True) / count).sqrt()
    return centred / (deviation + _EPS)


def black_outside(batch: Batch) -> Batch:
    """The images of a batch, 0 outside their masks."""
    if batch.mask is None:
        return batch
    return Batch(batch.image.masked_fill(~batch.mask[:, None], 0), batch.id, batch.mask)
