# SPDX-License-Identifier: Apache-2.0
"""The images that anomalies are put into, and the boxes of them that an anomaly changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .masks import Form


@dataclass(frozen=True)
class Spot:
    """An anomaly to be made.

    Attributes:
        sample: which image of the batch.
        corner: the lowest cell of its box.
        form: its shape; the box has its extents.
        decision: what the task has drawn for it.
    """

    sample: int
    corner: tuple[int, ...]
    form: Form
    decision: Any

    @cached_property
    def box(self) -> tuple[slice, ...]:
        """The cells of its box, of an image."""
        return tuple(
            slice(c, c + n) for c, n in zip(self.corner, self.form.inside.shape, strict=True)
        )


def cells(*index: Any) -> tuple[Any, ...]:
    """An index made of parts: ``cells(sample, slice(None), *box)``."""
    return index


def mean_change(after: Tensor, before: Tensor) -> Tensor:
    """``[c, *s]``, twice: the mean absolute difference of the channels, ``[*s]``."""
    change = (after - before).abs_()
    return change[0] if len(change) == 1 else change.mean(0)


class Canvas:
    """A batch at work.

    Attributes:
        original: ``[b, c, *s]`` before anything was done.
        image: the same, with what has been done so far.
        mask: ``[b, *s]`` bool, where anomalies are.
        spots: what has been done so far.
    """

    def __init__(self, image: Tensor) -> None:
        self.original = image
        self.image = image.clone(memory_format=torch.contiguous_format)
        self.mask = torch.zeros(
            image.shape[0], *image.shape[2:], dtype=torch.bool, device=image.device
        )
        self.spots: list[Spot] = []

    def crop(self, spot: Spot) -> Tensor:
        """``[c, *extent]`` of an anomaly's box, a view."""
        return box_of(self.image, spot.sample, spot.corner, spot.form.inside.shape)

    def crop_mask(self, spot: Spot) -> Tensor:
        """``[*extent]`` of the mask, a view."""
        return box_of(self.mask, spot.sample, spot.corner, spot.form.inside.shape)

    @cached_property
    def _ranges(self) -> list[tuple[Tensor, Tensor]]:
        lanes = [
            one.view(*one.shape, *[1] * (self.image.dim() - 2)).unbind()
            for one in channel_range(self.original)
        ]
        return list(zip(*lanes, strict=True))

    def keep_in_range(self, sample: int, values: Tensor, out: Tensor) -> Tensor:
        """Values ``[c, *extent]`` limited to the range of each channel of an image's original."""
        low, high = self._ranges[sample]
        return torch.clamp(values, low, high, out=out)


def box_of(batch: Tensor, sample: int, corner: Sequence[int], extent: Sequence[int]) -> Tensor:
    """The box of one image of a contiguous batch ``[b, ..., *s]``, a view ``[..., *extent]``.

    One call of torch, where an index makes a view for each axis: with boxes of small images these
    take longer than the work on them.
    """
    strides = batch.stride()
    first = len(strides) - len(corner)
    start = batch.storage_offset() + sample * strides[0]
    for at, stride in zip(corner, strides[first:], strict=True):
        start += at * stride
    return batch.as_strided((*batch.shape[1:first], *extent), strides[1:], start)


def channel_range(image: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value of ``[..., c, *s]``, two leading axes: ``[b, c]`` each."""
    lanes = image.flatten(2)  # aminmax along an axis takes five times as long on a CPU
    return lanes.amin(2), lanes.amax(2)


def upload(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Arrays of one type as tensors on a device, in a single copy."""
    if device.type == "cpu" or not arrays:
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays])).to(device)
    parts = flat.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
