# SPDX-License-Identifier: Apache-2.0
"""Where in the original image the map passes the pixel threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..run_folder import MOST_REGIONS


def map_affine(prepared: np.ndarray, image_size: int, grid: tuple[int, int]) -> np.ndarray:
    """Affine ``[2, 3]`` from a map's cells to original pixels.

    Args:
        prepared: affine from the prepared image's pixels to the original's; the centre of a pixel
            is an integer, here and everywhere.
        image_size: side of the prepared image.
        grid: the map's height and width.
    """
    ky, kx = image_size / grid[0], image_size / grid[1]
    cells = np.array([[kx, 0, kx / 2 - 0.5], [0, ky, ky / 2 - 0.5], [0, 0, 1]])
    return prepared @ cells


def volume_affine(prepared: np.ndarray, shape: Sequence[int], grid: Sequence[int]) -> np.ndarray:
    """Affine ``[3, 4]`` from a map's cells (x, y, z) to millimetres.

    Args:
        prepared: of the prepared volume.
        shape, grid: of the prepared volume and of the map, along z, y, x.
    """
    step = np.array([n / m for n, m in zip(shape, grid)])[::-1]
    return np.column_stack([prepared[:, :3] * step, prepared @ np.r_[step / 2 - 0.5, 1.0]])


def top_regions(
    full: np.ndarray, threshold: float, affine: np.ndarray, height: int, width: int
) -> list[dict[str, Any]]:
    """8-connected regions above the threshold, worst first, at most ``MOST_REGIONS``.

    Args:
        full: ``[s, s]`` map at the prepared resolution, zero outside the mask.
        threshold: pixel threshold; a pixel is abnormal when its score is above it.
        affine: from prepared pixels to original ones.
        height, width: of the original image.

    Returns:
        dicts of ``x, y, w, h`` (box in original pixels), ``area`` (original pixels) and ``score``
        (the region's maximum).
    """
    import cv2

    over = (full > threshold).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(over, connectivity=8)
    if count == 1:
        return []
    from scipy.ndimage import maximum

    worst = np.asarray(maximum(full, labels, np.arange(count)), np.float32)
    pixel = abs(float(np.linalg.det(affine[:, :2])))
    found = []
    for i in sorted(range(1, count), key=lambda i: (-worst[i], i))[:MOST_REGIONS]:
        left, top, w, h, area = (int(v) for v in stats[i])
        x0, y0 = affine @ np.array([left - 0.5, top - 0.5, 1]) + 0.5
        x1, y1 = affine @ np.array([left + w - 0.5, top + h - 0.5, 1]) + 0.5
        x0, x1 = np.clip([x0, x1], 0, width)
        y0, y1 = np.clip([y0, y1], 0, height)
        found.append(
            {
                "x": int(x0),
                "y": int(y0),
                "w": max(1, round(x1 - x0)),
                "h": max(1, round(y1 - y0)),
                "area": max(1, round(area * pixel)),
                "score": float(worst[i]),
            }
        )
    return found
