# SPDX-License-Identifier: Apache-2.0
"""Where a pixel or voxel lies, as channels for a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

FREQUENCIES = 32
SPREAD = 12.0  # standard deviation of the frequencies, in periods per axis
SEED = 42


def position_channels(shape: Sequence[int]) -> Tensor:
    """CoordConv and random Fourier channels of a grid, float32 ``[D + 64, *shape]``.

    The first D channels are the coordinates from -1 to 1, both ends included. Then come the sines
    and then the cosines of 2πB·x, with x in [0, 1), the end left out, and B ``[32, D]`` from
    12·N(0, 1), the same in every network. Source: the public code of "Many tasks make light work"
    (the paper does not mention them); Liu et al. 2018; Tancik et al. 2020.

    Args:
        shape: pixels or voxels per axis.
    """
    ends = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape]
    coordinates = torch.stack(torch.meshgrid(*ends, indexing="ij"))
    open_ends = [torch.arange(n, dtype=torch.float64) / n for n in shape]
    x = torch.stack(torch.meshgrid(*open_ends, indexing="ij"))
    frequencies = torch.from_numpy(
        SPREAD * np.random.default_rng(SEED).standard_normal((FREQUENCIES, len(shape)))
    )
    phase = 2 * torch.pi * torch.tensordot(frequencies, x, dims=1)
    return torch.cat([coordinates, phase.sin(), phase.cos()]).float()


def count(dims: int) -> int:
    """How many channels :func:`position_channels` has for this many axes."""
    return dims + 2 * FREQUENCIES
