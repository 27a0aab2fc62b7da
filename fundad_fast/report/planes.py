# SPDX-License-Identifier: Apache-2.0
"""Pictures of a volume: three orthogonal planes through its worst voxel, side by side.

Axial (front up), coronal (head up, seen from the front's axis) and sagittal (head up, front to the
right) planes; the patient's left is on the picture's left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fundad_fast.data import (
    InputSpec,
    ReadError,
    item_of_row,
    path_of_row,
    prepare_volume,
    read_volume,
)
from fundad_fast.evaluation.resample import resample_volume
from fundad_fast.report.overlay import F32, U8, Bool
from fundad_fast.run_folder import read_volume_map

LEAST_SIDE = 384
"""Pictures are enlarged by a whole factor to about this height."""


@dataclass(frozen=True)
class Planes:
    """Three planes as one picture.

    Attributes:
        pixels: ``[h, w, 3]`` uint8.
        scores: ``[h, w]`` float32, the map there.
        inside: ``[h, w]`` bool, the object.
        lesions: ``[h, w]`` bool, or ``None`` where none are known.
        place: of the planes in words.
    """

    pixels: U8
    scores: F32
    inside: Bool
    lesions: Bool | None
    place: str


def draw_planes(run: Path, row: dict[str, Any], spec: InputSpec, max_megapixels: float) -> Planes:
    """The planes of a row, on the grid that the model saw.

    Raises:
        ReadError: the volume or its labels are gone or cannot be read.
        RunError: the map is.
    """
    if not row.get("path") or not Path(path_of_row(row["path"])).is_file():
        raise ReadError("unreadable", "the file is not there any more")
    prepared = prepare_volume(
        read_volume(item_of_row(row), max_megapixels=max_megapixels), spec, any_depth=True
    )
    values = prepared.image[0].numpy()
    assert prepared.mask is not None
    mask = prepared.mask.numpy()
    map, affine = read_volume_map(run, row["map_path"])
    scores = resample_volume(map, affine, values.shape, prepared.affine)
    lesions = None
    if row.get("mask_path"):
        labels = read_volume(path_of_row(row["mask_path"]), max_megapixels=max_megapixels)
        share = resample_volume(
            (labels.values > 0).astype(np.float32), labels.affine, values.shape, prepared.affine
        )
        lesions = share >= 0.5
    worst = np.unravel_index(int(np.where(mask, scores, -np.inf).argmax()), scores.shape)
    z, y, x = (int(one) for one in worst)
    white = float(np.percentile(values[mask], 99.5)) or 1.0
    grey = (np.clip(values / white, 0, 1) * 255).round().astype(np.uint8)
    factor = max(1, round(LEAST_SIDE / max(values.shape)))

    def sheet(volume: NDArray[Any]) -> NDArray[Any]:
        joined = side_by_side(volume, (z, y, x))
        return joined.repeat(factor, axis=0).repeat(factor, axis=1)

    return Planes(
        np.repeat(sheet(grey)[:, :, None], 3, axis=2),
        sheet(scores),
        sheet(mask),
        None if lesions is None else sheet(lesions),
        f"planes through slice {z}, row {y}, column {x} of the model's grid, its worst voxel",
    )


def side_by_side(volume: NDArray[Any], at: tuple[int, int, int]) -> NDArray[Any]:
    """Axial, coronal and sagittal planes of ``[z, y, x]`` through a voxel, with zeros between."""
    z, y, x = at
    planes = [volume[z, ::-1], volume[::-1, y], volume[::-1, :, x]]
    height = max(len(plane) for plane in planes)
    gap = np.zeros((height, 4), volume.dtype)
    parts: list[NDArray[Any]] = []
    for plane in planes:
        top = (height - len(plane)) // 2
        padded = np.pad(plane, ((top, height - len(plane) - top), (0, 0)))
        parts += [gap, padded] if parts else [padded]
    return np.concatenate(parts, axis=1)
