# SPDX-License-Identifier: Apache-2.0
"""Overlays of a finished run, worst first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..data import ReadError, read_image, read_mask
from ..evaluation import resample_map
from ..evaluation.resample import resize_mask
from ..progress import Progress
from ..report.overlay import save_overlay
from .folder import overlay_path, read_map, read_rows, read_run


def make_overlays(run: Path, top: int | None, *, progress: Progress | None = None) -> int:
    """Draw the overlays of a run that are not there yet.

    Args:
        run: a run folder with maps.
        top: how many, from the highest score down; ``None`` for all.
        progress: told about the pictures.

    Returns:
        how many overlays of the wanted ones exist now. Images whose file has gone since they were
        scored have none; a model without a colour scale (fitted without held-out images) has none
        at all, since a scale per image would mislead.
    """
    facts = read_run(run)["model"]
    scale, pixel = facts["colour_scale"], facts["thresholds"].get("pixel")
    if not scale:
        return 0
    rows = [r for r in read_rows(run) if r["status"] == "ok" and r["map_path"] is not None]
    rows.sort(key=lambda r: (-r["score"], r["id"]))
    rows = rows[:top]
    made = 0
    with (progress or Progress()).task("overlays", len(rows), "images") as task:
        for row in rows:
            made += _draw(run, row, scale, None if pixel is None else pixel["value"])
            task.advance()
    return made


def _draw(run: Path, row: dict[str, Any], scale: dict[str, Any], threshold: float | None) -> bool:
    file = overlay_path(run, row["id"])
    if file.exists():
        return True
    try:
        image = eight_bit(read_image(row["path"], first_page=True))
        height, width = image.shape[:2]
        mask = None
        if row["mask_path"] is not None:
            mask = resize_mask(read_mask(row["mask_path"]), height, width)
    except ReadError:
        return False
    values, affine = read_map(run, row["map_path"])
    fov = None if row["fov_r"] is None else (row["fov_cx"], row["fov_cy"], row["fov_r"])
    file.parent.mkdir(parents=True, exist_ok=True)
    title = f"{row['id']}   score {row['score']:.4g}"
    if row["score_pct"] is not None:
        title += f"   percentile {row['score_pct']:.0f} of healthy"
    save_overlay(
        file,
        image,
        resample_map(values, affine, height, width),
        scale=(scale["lo"], scale["hi"]),
        threshold=threshold,
        mask=mask,
        fov=fov,
        title=title,
    )
    return True


def eight_bit(pixels: np.ndarray) -> np.ndarray:
    """Pixels for looking at: ``[h, w, 3]`` uint8 from any depth and number of channels."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        top = float(np.nanmax(pixels, initial=0.0)) or 1.0
        pixels = (np.clip(pixels / top, 0, 1) * 255).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
