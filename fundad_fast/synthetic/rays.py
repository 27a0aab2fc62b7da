# SPDX-License-Identifier: Apache-2.0
"""How far it is from a point within a shape to its surface."""

from __future__ import annotations

import torch
from torch import Tensor


def surface_distance(origin: Tensor, direction: Tensor, half: Tensor, ellipsoid: Tensor) -> Tensor:
    """Distance along rays to the surface of aligned boxes and ellipsoids around zero.

    Lines stay lines under a linear map, and so do shares of their length: for a sheared and turned
    shape, map ``origin`` and ``direction`` to its own axes by its inverse matrix, and take the
    result in units of the direction's length before.

    Args:
        origin: ``[d, ...]`` within or on the shape.
        direction: ``[d, ...]``, of any length but zero.
        half: ``[d, ...]`` half extents.
        ellipsoid: ``[...]`` bool: ellipsoid, or box.

        They are broadcast against each other.

    Returns:
        ``[...]`` >= 0, in lengths of ``direction``: where the ray leaves the shape.
    """
    o, v = origin / half, direction / half
    to_face = (torch.where(v < 0, -1.0, 1.0) - o) / torch.where(v == 0, torch.inf, v)
    # A component that is zero reaches no face: 1/inf is 0, which must not win.
    box = to_face.masked_fill(v == 0, torch.inf).amin(0)
    a, b, c = (v * v).sum(0), (o * v).sum(0), (o * o).sum(0) - 1
    # c <= 0 within, so that one root is not negative; rounding on the surface must not undo that.
    round_ = ((b * b - a * c).clamp(min=0).sqrt() - b) / a
    return torch.where(ellipsoid, round_, box).clamp(min=0)
