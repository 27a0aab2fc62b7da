# SPDX-License-Identifier: Apache-2.0
"""How far it is from a point within a shape to its surface."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def surface_distance(origin: Floats, direction: Floats, ellipsoid: bool) -> Floats:
    """Distance along rays to the surface of the cube [-1, 1] or of the ball of radius 1.

    Lines stay lines under a linear map, and so do shares of their length: for another box or
    ellipsoid, map ``origin`` and ``direction`` to its own axes and to units of its half extents,
    and take the result in units of the direction's length before.

    Args:
        origin: ``[d]`` within or on the shape.
        direction: ``[d, n]``, of any length but zero, of the same type.
        ellipsoid: ball, or cube.

    Returns:
        ``[n]`` >= 0, in lengths of ``direction``: where each ray leaves the shape.
    """
    if ellipsoid:
        a = np.einsum("ij,ij->j", direction, direction)
        b = origin @ direction
        # Within, this is not positive, and so one root is not negative.
        c = min(origin @ origin - 1, origin.dtype.type(0))
        return np.maximum((np.sqrt(b * b - a * c) - b) / a, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        to_face = (np.copysign(origin.dtype.type(1), direction) - origin[:, None]) / direction
    # Along a face, a component of zero reaches none: fmin takes numbers before 0/0.
    return np.maximum(np.fmin.reduce(to_face, axis=0), 0)
