# SPDX-License-Identifier: Apache-2.0
"""The cells of feature maps that a mask lets in, without asking the device how many there are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._base import touched


@dataclass(frozen=True)
class Cells:
    """Which cells of maps ``[b, h, w]`` are scored.

    Attributes:
        shape: ``(b, h, w)``.
        index: ``[m]`` int64 numbers of the cells, ascending; ``None`` for all of them.
        count: how many there are in each image.
    """

    shape: tuple[int, int, int]
    index: Tensor | None
    count: tuple[int, ...]

    @classmethod
    def under(cls, mask: Tensor | None, shape: tuple[int, int, int], device: torch.device) -> Cells:
        """The cells that an image mask ``[b, *s]`` touches.

        They are counted where the mask is. A mask that is still in the host's memory costs the
        device no pause.
        """
        b, h, w = shape
        if mask is None:
            return cls(shape, None, (h * w,) * b)
        inside = touched(mask, torch.empty(shape, device=mask.device)).flatten(1)
        index = inside.flatten().nonzero()[:, 0]
        return cls(shape, index.to(device, non_blocking=True), tuple(inside.sum(1).tolist()))

    def rows(self, c: Tensor) -> Tensor:
        """``c [b, h, w, d]`` to ``[m, d]``, the features of these cells."""
        flat = c.reshape(-1, c.shape[-1])
        return flat if self.index is None else flat.index_select(0, self.index)

    def grid(self, values: Tensor) -> Tensor:
        """``values [m]`` to maps ``[b, h, w]``, 0 elsewhere."""
        if self.index is None:
            return values.view(self.shape)
        b, h, w = self.shape
        return values.new_zeros(b * h * w).index_copy_(0, self.index, values).view(self.shape)

    def inside(self, device: torch.device) -> Tensor:
        """Bool ``[b, h, w]``: where these cells are."""
        if self.index is None:
            return torch.ones(self.shape, dtype=torch.bool, device=device)
        b, h, w = self.shape
        flat = torch.zeros(b * h * w, dtype=torch.bool, device=device)
        return flat.index_fill_(0, self.index, True).view(self.shape)


def image_score(full: Tensor, mask: Tensor | None, how: str, share: float) -> Tensor:
    """One score per image from maps ``[b, s, s]``, over the pixels of ``mask [b, s, s]``.

    Args:
        full: the maps.
        mask: bool, or ``None`` for all pixels; where it is still in the host's memory, the device
            is not asked how many pixels it has.
        how: ``max``, ``mean``, or ``top`` for the mean of the highest ``share`` of the pixels.

    Returns:
        ``[b]``, of the maps' type and device.
    """
    flat = full.flatten(1)
    if mask is not None:
        outside = ~mask.to(full.device, non_blocking=True).flatten(1)
        flat = flat.masked_fill(outside, 0 if how == "mean" else -torch.inf)
    if how == "max":
        return flat.amax(1)
    pixels = [flat.shape[1]] * len(flat) if mask is None else mask.flatten(1).sum(1).tolist()
    if how == "top":
        pixels = [max(1, round(n * share)) for n in pixels]
        flat = flat.topk(max(pixels), dim=1).values
    count = torch.tensor(pixels, dtype=flat.dtype).to(flat.device, non_blocking=True)
    if how == "top":
        rank = torch.arange(flat.shape[1], device=flat.device)
        flat = flat.masked_fill(rank >= count[:, None], 0)
    return flat.sum(1) / count
