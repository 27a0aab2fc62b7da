# SPDX-License-Identifier: Apache-2.0
"""Perlin's gradient noise, turned by any angle."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def perlin_noise(
    rng: np.random.Generator, shape: tuple[int, int], periods: tuple[int, int], turn: float = 0.0
) -> NDArray[np.float32]:
    """Gradient noise ``[h, w]`` float32 in [-1, 1], 0 at every node of its lattice.

    Gradients are unit vectors; between nodes the quintic fade 6t⁵ - 15t⁴ + 10t³ interpolates; the
    result is scaled by √2. Source: Perlin 1985 and 2002, with the scale of DRAEM's public code,
    which turns the finished picture; here the lattice is turned, so that nothing is interpolated.

    Args:
        rng: drawn from.
        shape: height and width in pixels.
        periods: cells of the lattice along each axis of the image.
        turn: of the lattice around the middle of the image, in radians.
    """
    size = [math.ceil(1.5 * n) + 4 for n in periods]  # turned by 45°, √2 of it shows
    angle = rng.uniform(0, 2 * math.pi, size).astype(np.float32)
    gradient_y, gradient_x = np.sin(angle), np.cos(angle)
    y = ((np.arange(shape[0]) / shape[0] - 0.5).astype(np.float32))[:, None]
    x = ((np.arange(shape[1]) / shape[1] - 0.5).astype(np.float32))[None, :]
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    v = (y * cos + x * sin + np.float32(0.75)) * periods[0] + 1
    u = (x * cos - y * sin + np.float32(0.75)) * periods[1] + 1
    row, column = v.astype(np.int32), u.astype(np.int32)
    v, u = v - row, u - column

    def corner(down: int, across: int) -> NDArray[np.float32]:
        at = (row + down) * size[1] + (column + across)
        near = gradient_y.ravel()[at] * (v - down) + gradient_x.ravel()[at] * (u - across)
        return np.asarray(near, np.float32)

    fade_v, fade_u = (t * t * t * (t * (t * 6 - 15) + 10) for t in (v, u))
    above, below = corner(0, 0), corner(1, 0)
    above += fade_u * (corner(0, 1) - above)
    below += fade_u * (corner(1, 1) - below)
    return np.asarray((above + fade_v * (below - above)) * np.float32(math.sqrt(2)), np.float32)
