# SPDX-License-Identifier: Apache-2.0
"""Holds a finished run against labels and lesion masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data import (
    Fov,
    Item,
    Prepared,
    ReadError,
    find_fov,
    fov_mask,
    item_of_row,
    read_image,
    read_mask,
)
from ..evaluation import PixelEvaluator, resample_map, resize_affine
from ..evaluation.compare import Evaluated
from ..evaluation.evaluate import ImageRecord, evaluate
from ..evaluation.resample import resize_mask
from ..progress import Progress
from ..run_folder import RunError, read_map, read_rows, read_run, replacing
from .truth_volumes import add_voxels, check_labels


def check_mask(
    item: Item, prepared: Prepared, *, max_megapixels: float = 200.0
) -> tuple[str, str] | None:
    """Why an image's lesion masks cannot be used: it makes a failed row in an evaluation."""
    if item.mask_path is None:
        return None
    if prepared.image.dim() == 4:
        return check_labels(item, prepared, max_megapixels)
    try:
        limit, shape = max_megapixels, (prepared.height, prepared.width)
        union = read_mask(item.mask_path, shape=shape, frame=item.frame, max_megapixels=limit).shape
        for kind, path in item.mask_paths_by_type:
            h, w = read_mask(path, frame=item.frame, max_megapixels=limit).shape
            if (h, w) != union:
                return "unsupported", (
                    f"its {kind} mask has {w} x {h} pixels, the mask of all lesions "
                    f"{union[1]} x {union[0]}: make them of one size"
                )
    except ReadError as error:
        return error.status, f"its mask: {error.reason}"
    return None


def collect_run(
    run: Path,
    items: Sequence[Item],
    *,
    eval_size: int | None = None,
    max_megapixels: float = 200.0,
    progress: Progress | None = None,
) -> Evaluated:
    """What a run says and what is true, image by image and pixel by pixel.

    Maps are compared with masks at the masks' resolution, healthy images at their own. What the
    method leaves out of its field of view has the lowest score, 0.

    Args:
        run: a run folder with maps.
        items: the data set; their ids are those of the rows. Rows of other ids are left out.
        eval_size: compare on a square grid of this side instead (the papers' protocols).
        max_megapixels: larger images and masks are not decoded.
        progress: told about the images.
    """
    facts = read_run(run)["model"]
    known = {item.id: item for item in items}
    rows = [row for row in read_rows(run) if row["id"] in known]
    if not rows:
        raise RunError(f"{run} holds none of this data set's images; score them first")
    thresholds = facts["thresholds"]
    pixels = None
    if any(item.mask_path is not None for item in items) and any(r["map_path"] for r in rows):
        limit = (thresholds.get("pixel") or {}).get("value")
        pixels = PixelEvaluator(pixel_threshold=limit, eval_size=eval_size)
    records, slices = list[ImageRecord](), list[ImageRecord]()
    volumes = facts["input_spec"].get("volume") is not None
    if volumes and eval_size is not None:
        raise RunError("eval_size is for images; volumes are compared at their labels' resolution")
    with (progress or Progress()).task("evaluate", len(rows), "images") as task:
        for row in rows:
            item = known[row["id"]]
            records.append(
                ImageRecord(
                    id=item.id,
                    score=row["score"],
                    label=item.label,
                    class_name=item.class_name,
                    group=item.group,
                    patient_id=item.patient_id,
                )
            )
            if pixels is None or row["map_path"] is None:
                pass
            elif volumes:
                add_voxels(pixels, slices, run, row, item, max_megapixels)
            else:
                _add_pixels(pixels, run, row, item, facts["input_spec"], max_megapixels)
            task.advance()
    threshold = (thresholds.get("image") or {}).get("value")
    return Evaluated(records, pixels, threshold, slices)


def evaluate_run(
    run: Path,
    items: Sequence[Item],
    *,
    n_boot: int = 1000,
    seed: int = 0,
    eval_size: int | None = None,
    ap_chunk: bool = False,
    max_megapixels: float = 200.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of a run folder against the labels and masks of its items: ``metrics.json``.

    Args:
        run, items, eval_size, max_megapixels, progress: as for ``collect_run``.
        n_boot, seed: of the intervals.
        ap_chunk: add the chunked pixel AP.
    """
    facts = read_run(run)["model"]
    found = collect_run(
        run, items, eval_size=eval_size, max_megapixels=max_megapixels, progress=progress
    )
    return evaluate(
        found.records,
        found.pixels,
        slices=found.slices,
        image_threshold=found.image_threshold,
        n_boot=n_boot,
        seed=seed,
        ap_chunk=ap_chunk,
        settings={
            "model_id": facts["id"],
            "method": facts["method"],
            "preset": facts["preset"],
            "caveats": facts.get("caveats", []),
        },
    )


def save_metrics(run: Path, metrics: dict[str, Any]) -> Path:
    """Write ``metrics.json`` into a run folder."""
    import json

    with replacing(run / "metrics.json", "w") as file:
        json.dump(metrics, file, indent=1, allow_nan=False)
        file.write("\n")
    return run / "metrics.json"


def _add_pixels(
    pixels: PixelEvaluator,
    run: Path,
    row: dict[str, Any],
    item: Item,
    spec: dict[str, Any],
    max_megapixels: float,
) -> None:
    if item.label is None or (item.label == 1 and item.mask_path is None):
        return  # where its lesions are is not known
    height, width = row["height"], row["width"]
    values, affine = read_map(run, row["map_path"])
    mask, types, shape = None, {}, (height, width)
    if item.label == 1:
        mask = read_mask(str(item.mask_path), frame=item.frame, max_megapixels=max_megapixels)
        shape = mask.shape
        types = {
            kind: read_mask(path, frame=item.frame, max_megapixels=max_megapixels)
            for kind, path in item.mask_paths_by_type
        }
    inside = _field_of_view(row, shape, spec, max_megapixels)
    grid = shape if pixels.eval_size is None else (pixels.eval_size, pixels.eval_size)
    full = resample_map(values, _onto(affine, height, width, grid), *grid)
    if inside is not None and spec["fov"] == "auto":
        cut = inside if inside.shape == grid else resize_mask(inside, *grid)
        full = np.where(cut, full, np.float32(0))
    pixels.add(item.id, full, mask, fov=inside, types=types or None, patient=item.patient_id)


def _onto(affine: np.ndarray, height: int, width: int, grid: tuple[int, int]) -> np.ndarray:
    """The map's affine to a grid that covers the image, in place of the image's own pixels."""
    if grid == (height, width):
        return affine
    return resize_affine((height, width), *grid) @ np.vstack([affine, [0, 0, 1]])


def _field_of_view(
    row: dict[str, Any], shape: tuple[int, int], spec: dict[str, Any], max_megapixels: float
) -> np.ndarray | None:
    """Where scores count, at the mask's resolution; found here where the model did not look."""
    height, width = row["height"], row["width"]
    if spec["fov"] == "auto":
        circle = (row["fov_status"], row["fov_cx"], row["fov_cy"], row["fov_r"])
        fov = Fov(*circle, tuple(row["fov_box"]), height, width)
    else:
        try:
            pixels = read_image(item_of_row(row), max_megapixels=max_megapixels, first_page=True)
        except ReadError as error:
            raise RunError(
                f"{row['path']} was scored but cannot be read now ({error.reason}); its field of "
                "view is needed for the figures inside it"
            ) from error
        fov = find_fov(pixels)
    if fov.status == "none":
        return None
    inside = fov_mask(fov, height, width, spec["fov_erode"], padded=spec["fov_crop"])
    return inside if inside.shape == shape else resize_mask(inside, *shape)
