# SPDX-License-Identifier: Apache-2.0
"""Short pictures of rows, made by torch on the rows' own device; see ``ops/short_picture.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _adapt
from ..short_picture import power_of_two, principal_axes

_ELEMENTS = 2**24  # float64 numbers that a step may hold


@dataclass(frozen=True)
class Frame:
    """Where pictures are taken from.

    Attributes:
        center: ``[d]`` float64, exact float32 values.
        axes: ``[d, p]`` float64: orthonormal columns, or zero ones, divided by ``scale``.
        scale: a power of two; the unit of pictures.
    """

    center: Tensor
    axes: Tensor
    scale: float

    def slack(self) -> float:
        """How far a picture of a row may be off, in units of its own norm.

        Rounding to float32, and of the rest the root of what cancelled in float64.
        """
        return 2.0**-24 + math.sqrt(16 * (len(self.center) + 64) * 2.0**-53)

    def take(self, x: Tensor) -> Tensor:
        """``x [n, d]`` to ``z [n, p + 1]`` float32: coordinates, and the norm of the rest.

        ``|z_i - z_j| <= |x_i - x_j| / scale`` plus the slack of both, for all rows.
        """
        d, p = self.axes.shape
        z = x.new_empty(len(x), p + 1, dtype=torch.float32)
        step = max(1, _ELEMENTS // d)
        for part, out in zip(x.split(step), z.split(step), strict=True):
            away = part.double() - self.center
            inside = away @ self.axes
            whole2 = (away / self.scale).square_().sum(1)
            out[:, :p] = inside
            out[:, p] = (whole2 - inside.square().sum(1)).clamp_min_(0).sqrt_()
        return z


def frame_of(x: Tensor, sizes: Sequence[int]) -> Frame:
    """A frame whose first axes are those along which the rows vary most.

    Pictures of the rows themselves have norms of at most 1 (but for rounding), and one is above
    1/2 where not all rows are equal.

    Args:
        x: ``[n, d]`` finite contiguous float32, ``n, d >= 1``.
        sizes: how many axes there may be, ascending; what is not needed is filled with zeros.
    """
    n, d = x.shape
    sample = x[:: max(1, n // 2048)].double().cpu()
    center = sample.mean(0).float().double()  # where all rows agree, the difference is exactly zero
    low, high = x.aminmax()
    size = max(float(high), -float(low)) * 2 * math.sqrt(d)  # no norm is larger
    scale = power_of_two(size)
    with _adapt.one_thread():
        found, left = principal_axes((sample - center) / scale, min(128, d))
    if left <= 0.03:  # then the others cost more than they save, on the CPU
        found = found[:, :64]
    # One axis less than were found is near enough: there are as many as a power of two.
    p = next((size for size in sizes if size >= found.shape[1] - 1), sizes[-1])
    axes = torch.zeros(d, p, dtype=torch.float64)
    kept = min(p, found.shape[1])
    axes[:, :kept] = found[:, :kept]
    center = center.to(x.device)
    largest2 = x.new_zeros((), dtype=torch.float64)
    for part in x.split(max(1, _ELEMENTS // d)):
        largest2 = torch.maximum(
            largest2, ((part.double() - center) / scale).square_().sum(1).max()
        )
    shrink = power_of_two(math.sqrt(float(largest2)) * (1 + 1e-6))
    axes = (axes / (scale * shrink)).to(x.device)
    return Frame(center, axes, scale * shrink)
