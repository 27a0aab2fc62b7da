# SPDX-License-Identifier: Apache-2.0
"""Brings anomaly maps and masks onto the grid where they are compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def resize_affine(shape: tuple[int, int], height: int, width: int) -> NDArray[np.float64]:
    """Affine ``[2, 3]`` from a grid of ``shape`` (h, w) that covers a whole image to its pixels.

    Pixel centres are whole numbers: ``X = (x + 0.5) * width / w - 0.5``, likewise for Y.
    """
    h, w = shape
    sx, sy = width / w, height / h
    return np.array([[sx, 0.0, 0.5 * sx - 0.5], [0.0, sy, 0.5 * sy - 0.5]])


def resample_map(
    map: ArrayLike,
    affine: ArrayLike,
    height: int,
    width: int,
) -> NDArray[np.float32]:
    """Bilinear values of an anomaly map at every pixel of the original image.

    Args:
        map: ``[h', w']``, finite.
        affine: ``[2, 3]`` float64, from map cells (x, y) to original pixels; centres are whole
            numbers.
        height, width: of the original image, in pixels.

    Returns:
        ``[height, width]`` float32. Pixels outside the outermost cell centres take the value of
        the nearest point of the map's border.

    Raises:
        ValueError: a map that is not 2-D, an affine that cannot be inverted.
    """
    from scipy.ndimage import affine_transform

    values = np.asarray(map, np.float32)
    a = np.asarray(affine, np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"the map must be [h, w] and not empty, got {values.shape}")
    if a.shape != (2, 3):
        raise ValueError(f"the affine must be [2, 3], got {a.shape}")
    forward = a[:, :2]
    if not np.isfinite(a).all() or abs(np.linalg.det(forward)) < 1e-12:
        raise ValueError(f"the affine {a.tolist()} cannot be inverted")
    inverse = np.linalg.inv(forward)
    offset = -inverse @ a[:, 2]
    # scipy counts (row, column); ours is (x, y) = (column, row).
    result: NDArray[np.float32] = affine_transform(
        values,
        inverse[::-1, ::-1],
        offset[::-1],
        output_shape=(height, width),
        output=np.float32,
        order=1,
        mode="nearest",
        prefilter=False,
    )
    return result


def resize_map(map: ArrayLike, height: int, width: int) -> NDArray[np.float32]:
    """Bilinear resize ``[h, w]`` -> ``[height, width]`` of a map that covers the whole image."""
    values = np.asarray(map, np.float32)
    if values.ndim != 2:
        raise ValueError(f"the map must be [h, w], got {values.shape}")
    shape = (values.shape[0], values.shape[1])
    return resample_map(values, resize_affine(shape, height, width), height, width)


def resize_mask(mask: ArrayLike, height: int, width: int) -> NDArray[np.bool_]:
    """Nearest-neighbour resize of a bool mask ``[h, w]``, by pixel centres.

    Lesions of a few pixels can vanish: only for protocols that ask for it.
    """
    values = np.asarray(mask, bool)
    if values.ndim != 2:
        raise ValueError(f"the mask must be [h, w], got {values.shape}")
    h, w = values.shape
    rows = ((np.arange(height) + 0.5) * h / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * w / width).astype(np.intp)
    return values[rows[:, None], columns[None, :]]


def resample_volume(
    map: ArrayLike, affine: ArrayLike, shape: Sequence[int], onto: ArrayLike
) -> NDArray[np.float32]:
    """Trilinear values of a volume's map at the voxels of another grid; 0 outside of the map.

    Args:
        map: ``[d', h', w']``, finite.
        affine: ``[3, 4]``, cells of the map (x, y, z, 1) to millimetres.
        shape: ``(d, h, w)`` of the other grid.
        onto: its affine ``[3, 4]``.

    Returns:
        ``[d, h, w]`` float32. The border's values hold up to half a cell beyond the outermost
        centres.
    """
    from scipy.ndimage import affine_transform

    values = np.asarray(map, np.float32)
    last = [0.0, 0.0, 0.0, 1.0]
    to_mm, from_mm = np.vstack([onto, last]), np.linalg.inv(np.vstack([affine, last]))
    step = (from_mm @ to_mm)[:3]
    if values.shape == tuple(shape) and np.allclose(step, np.eye(3, 4), atol=1e-4):
        return values
    # scipy counts (slice, row, column); ours is (x, y, z) = (column, row, slice).
    inverse, offset = step[::-1, 2::-1], step[::-1, 3]
    result: NDArray[np.float32] = affine_transform(
        values, inverse, offset, output_shape=tuple(shape), output=np.float32, order=1,
        mode="nearest", prefilter=False,
    )  # fmt: skip
    at = np.indices(tuple(shape), np.float32).reshape(3, -1)
    cell = (inverse @ at + offset[:, None]).reshape(3, *shape)
    beyond = np.zeros(tuple(shape), bool)
    for axis, size in enumerate(values.shape):
        beyond |= (cell[axis] < -0.5) | (cell[axis] > size - 0.5)
    result[beyond] = 0
    return result
