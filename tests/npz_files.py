# SPDX-License-Identifier: Apache-2.0
"""Small files in the form of MedMNIST's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cohorts import photograph


def medmnist(
    path: Path,
    *,
    counts: tuple[int, int, int] = (6, 2, 4),
    side: int = 28,
    channels: int = 1,
    healthy: int = 0,
    packed: bool = True,
    **more: np.ndarray,
) -> dict[str, np.ndarray]:
    """Write a file of which every second image is of the class ``healthy``; returns its arrays."""
    arrays: dict[str, np.ndarray] = {}
    seed = 0
    for split, n in zip(("train", "val", "test"), counts):
        images, labels = [], []
        for i in range(n):
            sick = i % 2 == 1
            picture = photograph(seed, side, lesion=sick)
            images.append(picture if channels == 3 else picture[..., 0])
            labels.append([1 - healthy if sick else healthy])
            seed += 1
        shape = (n, side, side, 3) if channels == 3 else (n, side, side)
        arrays[f"{split}_images"] = np.array(images, np.uint8).reshape(shape)
        arrays[f"{split}_labels"] = np.array(labels, np.uint8).reshape(n, 1)
    arrays |= more
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return arrays
