# SPDX-License-Identifier: Apache-2.0
"""Small pictures and settings that several tests share."""

from __future__ import annotations

import numpy as np

SMALL = {
    "backbone": "resnet18",
    "layers": ("layer1", "layer2"),
    "image_size": 64,
    "coreset_sampling_ratio": 0.1,
}


def photograph(seed: int, size: int = 96, lesion: bool = False) -> np.ndarray:
    """A disc on black with a smooth texture, like a fundus photograph; uint8 ``[s, s, 3]``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    waves = sum(
        np.cos(2 * np.pi * (a * x + b * y) + p)
        for a, b, p in zip(*rng.uniform(1, 4, (2, 3)), rng.uniform(0, 6, 3))
    )
    image = np.stack([0.62 + 0.04 * waves, 0.36 + 0.03 * waves, 0.2 + 0.02 * waves], -1)
    if lesion:
        cx, cy = rng.uniform(-0.2, 0.2, 2)
        image[np.hypot(x - cx, y - cy) < 0.06] = (0.95, 0.9, 0.5)
    image[np.hypot(x, y) > 0.46] = 0.01
    return (image.clip(0, 1) * 255).astype(np.uint8)
