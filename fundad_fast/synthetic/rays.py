# SPDX-License-Identifier: Apache-2.0
"""How far it is from a point within a shape to its surface."""

from __future__ import annotations

import torch
from torch import Tensor


def surface_distance(origin: Tensor, direction: Tensor, ellipsoid: Tensor) -> Tensor:
    """Distance along rays to the surface of the cube [-1, 1] or of the ball of radius 1.

    Lines stay lines under a linear map, and so do shares of their length: for another box or
    ellipsoid, map ``origin`` and ``direction`` to its own axes and to units of its half extents,
    and take the result in units of the direction's length before.

    Args:
        origin: ``[d, ...]`` within or on the shape.
        direction: ``[d, ...]``, of any length but zero.
        ellipsoid: ``[...]`` bool: ball, or cube.

        They are broadcast against each other.

    Returns:
        ``[...]`` >= 0, in lengths of ``direction``: where the ray leaves the shape.
    """
    v, one = direction, torch.ones((), dtype=direction.dtype, device=direction.device)
    to_face = (torch.copysign(one, v) - origin) / v
    # Along a face, a component of zero reaches none: 0/0 must not win.
    cube = to_face.nan_to_num_(nan=torch.inf, posinf=torch.inf).amin(0)
    a, b, c = (v * v).sum(0), (origin * v).sum(0), (origin * origin).sum(0) - 1
    # c <= 0 within, so that one root is not negative; rounding on the surface must not undo that.
    ball = ((b * b - a * c).clamp_(min=0).sqrt_() - b) / a
    return torch.where(ellipsoid, ball, cube).clamp_(min=0)
