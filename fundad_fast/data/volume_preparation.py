# SPDX-License-Identifier: Apache-2.0
"""From a volume of any size to the grid, mask and affine of a method.

Order of work as in "Many tasks make light work" (C.1.1 of its public code): resample with the
object's edge kept sharp, crop to the object, pad with zeros symmetrically.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fundad_fast.data.fundus import Fov
from fundad_fast.data.items import ReadError
from fundad_fast.data.preparation import Prepared, check_depth, white_of
from fundad_fast.data.volumes import Voxels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fundad_fast.data.spec import InputSpec

SAME = 0.02
"""Spacings that differ by less, relatively, are the same."""


def prepare_volume(
    volume: Voxels, spec: InputSpec, *, any_depth: bool = False, out: Tensor | None = None
) -> Prepared:
    """Check a volume against the specification, and lay it on its grid.

    The object (a skull-stripped brain, say) is where values are not 0, its holes filled. Values
    are divided by white; float volumes, whose units are free, by their largest value unless the
    specification has a ``white_level``.

    Args:
        volume: as ``read_volume`` returns it.
        spec: with a grid.
        any_depth: accept any bit depth, whatever ``spec.mixed_inputs`` says.
        out: ``[1, d, h, w]`` float32 to write into.

    Returns:
        ``image [1, d, h, w]`` in [0, 1], ``mask [d, h, w]`` of the object, and ``affine [3, 4]``
        from grid indices (x, y, z, 1) to millimetres.

    Raises:
        ReadError: ``unsupported`` (bit depth, negative values, another spacing), ``non_finite``,
            ``too_small`` (no object), ``too_large`` (the object is larger than the grid).
    """
    from scipy.ndimage import binary_fill_holes

    assert spec.volume is not None
    depth = check_depth(volume.values, spec, any_depth)
    low, high = float(volume.values.min()), float(volume.values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ReadError("non_finite", "some voxels are NaN or infinite")
    if low < 0:
        raise ReadError(
            "unsupported",
            f"values from {low:g}: 0 must be the background around the object; strip the skull, "
            "or add a constant inside it",
        )
    free = depth == 32 and spec.white_level is None and not any_depth
    white = high if free else white_of(depth, spec)
    if high > white:
        raise ReadError("unsupported", f"values up to {high:g}, but {white:g} is white")
    values = volume.values.astype(np.float32) / np.float32(white or 1)
    mask = np.asarray(binary_fill_holes(values > 0))
    affine = volume.affine
    if spec.spacing is not None and _differ(volume.spacing, spec.spacing):
        if not (spec.resample or spec.mixed_inputs == "convert"):
            raise ReadError(
                "unsupported",
                f"voxels of {_mm(volume.spacing)}, but the model learned from "
                f"{_mm(spec.spacing)}: resample the volume, or fit with resample=true",
            )
        values, mask, affine = resampled(values, mask, affine, volume.spacing, spec.spacing)
    if not mask.any():
        raise ReadError("too_small", "no object: every voxel is 0")
    values, mask, start = onto_grid(values, mask, spec.volume)
    affine = np.column_stack([affine[:, :3], affine @ np.r_[start[::-1], 1.0]])
    image = torch.empty(spec.shape) if out is None else out
    image.copy_(torch.from_numpy(values)[None]).clamp_(0, 1)
    _, height, width = volume.values.shape
    return Prepared(
        image, torch.from_numpy(mask), affine, height, width, Fov.missing(height, width)
    )


def _differ(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return any(abs(one / other - 1) > SAME for one, other in zip(a, b))


def _mm(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{one:.3g}" for one in reversed(spacing)) + " mm"


def resampled(
    values: NDArray[np.float32],
    mask: NDArray[np.bool_],
    affine: NDArray[np.float64],
    spacing: tuple[float, float, float],
    wanted: tuple[float, float, float],
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
    """Another spacing, with the object's edge kept sharp.

    Values and mask are resampled alike (linear, anti-aliased); where less than half of a voxel is
    object it is background, elsewhere values are divided by that share, so that the background
    does not darken the rim.

    Returns:
        values, mask and affine of the new grid, which covers the same space.
    """
    from skimage.transform import resize

    factor = np.array(spacing) / np.array(wanted)
    shape = np.maximum(1, np.round(np.array(values.shape) * factor)).astype(int)
    options = {"order": 1, "mode": "edge", "anti_aliasing": bool((factor < 1).any())}
    share = resize(mask.astype(np.float32), shape, **options)
    small = resize(values, shape, **options)
    inside = share >= 0.5
    small = np.where(inside, small / np.maximum(share, 0.5), 0).astype(np.float32)
    step = np.array(values.shape) / shape  # of the old grid, z y x
    columns = affine[:, :3] * step[::-1]
    origin = affine @ np.r_[(step[::-1] - 1) / 2, 1.0]
    return small, inside, np.column_stack([columns, origin])


def onto_grid(
    values: NDArray[np.float32], mask: NDArray[np.bool_], grid: tuple[int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
    """Crop around the object where an axis is too long, pad symmetrically where it is too short.

    Returns:
        values and mask ``[d, h, w]`` on the grid, and where its first voxel lies among the old
        ones (z, y, x).

    Raises:
        ReadError: ``too_large`` when the object does not fit.
    """
    start = np.zeros(3, int)
    for axis, size in enumerate(grid):
        length = values.shape[axis]
        if length <= size:
            start[axis] = -((size - length) // 2)
            continue
        places = np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != axis)))
        low, high = int(places[0]), int(places[-1]) + 1
        if high - low > size:
            names = ("slices", "rows", "columns")
            raise ReadError(
                "too_large",
                f"the object takes {high - low} {names[axis]}, the model's grid has {size}: "
                "resample the volume, or fit with a larger volume",
            )
        start[axis] = min(max(0, (low + high - size) // 2), length - size)
    return _window(values, start, grid), _window(mask, start, grid), start.astype(np.float64)


def _window(array: np.ndarray, start: NDArray[np.int_], grid: tuple[int, int, int]) -> np.ndarray:
    out = np.zeros(grid, array.dtype)
    source, target = [], []
    for axis, size in enumerate(grid):
        low, high = max(0, start[axis]), min(array.shape[axis], start[axis] + size)
        source.append(slice(low, high))
        target.append(slice(low - start[axis], high - start[axis]))
    out[tuple(target)] = array[tuple(source)]
    return out
