# SPDX-License-Identifier: Apache-2.0
"""Whole NIfTI volumes in RAS order, for methods that see three dimensions.

Axes are ``[z, y, x]``: axial slices from below, in them rows from the patient's back to the front
and columns from left to right. Axes are permuted and flipped to the nearest of these directions,
never interpolated; what a volume's voxels measure stands beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fundad_fast.data.headers import kind_of
from fundad_fast.data.items import Item, ReadError
from fundad_fast.data.nifti import open_nifti, stored_values
from fundad_fast.data.opening import Source, open_source

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Voxels:
    """A volume.

    Attributes:
        values: ``[z, y, x]`` uint8, uint16 or float32.
        spacing: millimetres between voxels along z, y, x.
        affine: ``[3, 4]`` float64 from voxel indices (x, y, z, 1) to millimetres (right, anterior,
            superior).
    """

    values: np.ndarray
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]


def read_volume(source: Source, *, max_megapixels: float = 200.0) -> Voxels:
    """Read a whole NIfTI volume.

    Args:
        source: the file, see :func:`fundad_fast.data.read_image`.
        max_megapixels: limit of its voxels, in millions.

    Raises:
        ReadError: ``unreadable`` (damaged, cut short), ``unsupported`` (another format, a pair of
            files, a series of volumes), ``too_large``, ``non_finite``.
    """
    if isinstance(source, Item) and source.frame is not None:
        raise ReadError("unsupported", "one slice of a volume, where the model takes whole ones")
    with open_source(source, max_bytes=max_megapixels * 32e6) as (file, _):
        if kind_of(file) != "nifti":
            raise ReadError("unsupported", "not a NIfTI file: the model takes volumes (.nii.gz)")
        volume = open_nifti(file)
        millions = float(np.prod(volume.shape)) / 1e6
        if millions > max_megapixels:
            raise ReadError(
                "too_large",
                f"a volume of {millions:.0f} million voxels; the limit is {max_megapixels:g} "
                "(--max-megapixels)",
            )
        try:
            stored = stored_values(volume, file)
        except MemoryError as error:
            raise ReadError("failed", "not enough memory to read this volume") from error
    order = [volume.axes[i][0] for i in (2, 1, 0)]  # z, y, x
    values = stored.transpose(order)
    values = values[tuple(slice(None, None, 1 if volume.axes[i][1] else -1) for i in (2, 1, 0))]
    if volume.scaled:
        with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
            values = (values * volume.slope + volume.inter).astype(np.float32)
        if not np.isfinite(values).all():
            bad = values.size - int(np.isfinite(values).sum())
            raise ReadError("non_finite", f"{bad} of {values.size} voxels are NaN or infinite")
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    affine = _ras_affine(volume.affine, volume.shape, volume.axes)
    return Voxels(values, spacing_of(affine), affine)


def _ras_affine(
    stored: NDArray[np.float64], shape: tuple[int, ...], axes: tuple[tuple[int, bool], ...]
) -> NDArray[np.float64]:
    """The affine of indices (x, y, z) in RAS order, of that of indices as they are stored."""
    columns, origin = [], stored[:3, 3].copy()
    for axis, along in axes:
        step = stored[:3, axis]
        columns.append(step if along else -step)
        if not along:
            origin += step * (shape[axis] - 1)
    return np.column_stack([*columns, origin])


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Millimetres between voxels along z, y, x, of an affine ``[3, 4]`` of (x, y, z)."""
    x, y, z = (float(np.linalg.norm(affine[:, i])) for i in range(3))
    return z, y, x


def as_nifti(values: np.ndarray, affine: NDArray[np.float64]) -> bytes:
    """A float32 ``.nii.gz`` of values ``[z, y, x]`` that viewers lay over the volume.

    Args:
        values: such as an anomaly map.
        affine: ``[3, 4]``, voxel indices (x, y, z, 1) to millimetres.
    """
    import gzip

    import nibabel

    whole = np.vstack([affine, [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(np.asarray(values, np.float32).transpose(2, 1, 0), whole)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 1, mtime=0)
