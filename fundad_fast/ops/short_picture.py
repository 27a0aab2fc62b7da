# SPDX-License-Identifier: Apache-2.0
"""Short pictures of rows: few coordinates that tell which rows are surely far from each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _adapt


def short_picture(x: Tensor) -> tuple[Tensor, float, float]:
    """Fewer coordinates that may shrink distances but not stretch them.

    The coordinates along the directions in which the rows vary most, and the norm of what is left:
    by the triangle inequality two such norms differ by no more than the rests are apart.

    Args:
        x: ``[n, d]`` contiguous finite float32.

    Returns:
        ``z [n, p + 1]`` float32 with ``p`` a multiple of 32, ``scale`` and ``slack`` such that
        ``|z_i - z_j| <= |x_i - x_j| / scale + slack`` for all rows, and norms of at most about 1.
    """
    n, d = x.shape
    sample = x[:: max(1, n // 2048)].double()
    # A float32 centre: where all rows agree, the difference is exactly zero.
    center = sample.mean(0).float().double()
    low, high = x.aminmax()
    size = max(float(high), -float(low)) * 2 * math.sqrt(d)  # no norm is larger
    scale = power_of_two(size)
    with _adapt.one_thread():
        found, left = principal_axes((sample - center) / scale, min(128, d))
    # Where 64 axes leave no more than 3 % of the variance, the others cost more than they save.
    # (ReSAD's P + R of ResNet-18 leaves 2.5 %; its F leaves 22 %, and picking takes twice as long
    # with 64.)
    found = found[:, :64] if left <= 0.03 else found
    p = -(-found.shape[1] // 32) * 32
    axes = torch.zeros(d, p, dtype=torch.float64)
    axes[:, : found.shape[1]] = found / scale
    z = torch.empty(n, p + 1)
    largest = _adapt.native().short_picture(
        *(x.data_ptr(), n, d, center.data_ptr(), axes.data_ptr(), p, scale, z.data_ptr()),
        *(_adapt.isa(), _adapt.threads(n * d * p)),
    )
    shrink = power_of_two(largest)
    z /= shrink
    scale *= shrink
    # Of each z: rounding to float32, and of the rest the root of what cancelled in float64.
    slack = 2 * (2.0**-24 + math.sqrt(16 * (d + 64) * 2.0**-53))
    return z, scale, slack


def power_of_two(size: float) -> float:
    """The next power of two, by which a division is exact; 1 for 0."""
    return 2.0 ** math.ceil(math.log2(size)) if size > 0 else 1.0


def principal_axes(sample: Tensor, count: int) -> tuple[Tensor, float]:
    """Roughly the directions in which a centred sample varies most, first first.

    Returns:
        ``[d, count]`` orthonormal float64, and what the first 64 of them leave of the variance.
    """
    d = sample.shape[1]
    g = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(d, count, dtype=torch.float64, generator=g)).Q
    for _ in range(2 if count < d else 0):  # subspace iteration: what is wanted is cheap, not exact
        image = sample.T @ (sample @ axes)
        size = image.abs().max()
        if size == 0:
            break
        axes = torch.linalg.qr(image / size).Q
    shadow = sample @ axes
    along, turn = torch.linalg.eigh(shadow.T @ shadow)
    total = float(sample.square().sum())
    left = 1 - float(along[-64:].sum()) / total if total > 0 else 0.0
    return axes @ turn.flip(1), left
