# SPDX-License-Identifier: Apache-2.0
"""Holds the map of a volume against its labels, voxel by voxel and slice by slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import Item, Prepared, ReadError, Voxels, item_of_row, read_volume
from ..evaluation import PixelEvaluator
from ..evaluation.evaluate import SLICE_LESION_SHARE, ImageRecord
from ..evaluation.resample import resample_volume
from ..run_folder import RunError, read_volume_map


def check_labels(item: Item, prepared: Prepared, max_megapixels: float) -> tuple[str, str] | None:
    """Why a volume's lesion labels cannot be used: it makes a failed row in an evaluation."""
    paths = [("", item.mask_path)] if item.mask_path is not None else []
    for kind, path in [*paths, *item.mask_paths_by_type]:
        name = f"its {kind} labels" if kind else "its labels"
        try:
            labels = read_volume(str(path), max_megapixels=max_megapixels)
        except ReadError as error:
            return error.status, f"{name}: {error.reason}"
        if labels.values.shape[1:] != (prepared.height, prepared.width):
            height, width = labels.values.shape[1:]
            return "unsupported", (
                f"{name} have slices of {width} x {height} voxels, the volume of {prepared.width} "
                f"x {prepared.height}: resample them onto it"
            )
    return None


def add_voxels(
    pixels: PixelEvaluator,
    slices: list[ImageRecord],
    run: Path,
    row: dict[str, Any],
    item: Item,
    max_megapixels: float,
) -> None:
    """Take one volume, at the resolution of its labels; a healthy one at its own.

    Args:
        pixels: takes the voxels; what is inside the object counts as its field of view.
        slices: takes a record for each axial slice, whose score is the mean of the map over the
            whole slice and whose label is 1 where more than ``SLICE_LESION_SHARE`` of it is lesion.
        run, row, item: the volume; one that is abnormal without labels is left out.
        max_megapixels: limit of its voxels, in millions.

    Raises:
        RunError: map or volume cannot be read any more.
    """
    if item.label is None or (item.label == 1 and item.mask_path is None):
        return
    values, affine = read_volume_map(run, row["map_path"])
    try:
        volume = read_volume(item_of_row(row), max_megapixels=max_megapixels)
        labels, types = None, {}
        if item.label == 1:
            labels = read_volume(str(item.mask_path), max_megapixels=max_megapixels)
            for kind, path in item.mask_paths_by_type:
                found = read_volume(path, max_megapixels=max_megapixels)
                types[kind] = _onto(found, labels)
    except ReadError as error:
        raise RunError(
            f"{row['path']} was scored, but it or its labels cannot be read now ({error.reason})"
        ) from error
    grid = volume if labels is None else labels
    scores = resample_volume(values, affine, grid.values.shape, grid.affine)
    lesion = None if labels is None else labels.values > 0
    inside = _object(volume, grid)
    pixels.add(item.id, scores, lesion, fov=inside, types=types or None, patient=item.patient_id)
    for z, score in enumerate(scores.mean(axis=(1, 2), dtype=np.float64)):
        abnormal = lesion is not None and float(lesion[z].mean()) > SLICE_LESION_SHARE
        slices.append(
            ImageRecord(
                id=f"{item.id}#{z}",
                score=float(score),
                label=int(abnormal),
                patient_id=item.patient_id or item.id,
            )
        )


def _object(volume: Voxels, grid: Voxels) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_fill_holes

    inside = np.asarray(binary_fill_holes(volume.values > 0))
    if inside.shape == grid.values.shape:
        return inside
    share = resample_volume(
        inside.astype(np.float32), volume.affine, grid.values.shape, grid.affine
    )
    return share >= 0.5


def _onto(labels: Voxels, grid: Voxels) -> NDArray[np.bool_]:
    if labels.values.shape == grid.values.shape:
        return labels.values > 0
    share = resample_volume(
        (labels.values > 0).astype(np.float32), labels.affine, grid.values.shape, grid.affine
    )
    return share >= 0.5
