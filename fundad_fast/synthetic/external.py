# SPDX-License-Identifier: Apache-2.0
"""Pictures that are no medical images, for the inter-dataset task, where nobody gave any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PICTURES = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "rocket.jpg",
    "text.png",
)
"""Files that scikit-image's wheel has always brought along; its medical ones are left out."""


def embedded_external(
    size: int | tuple[int, int],
    channels: int,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    equalise: bool = True,
) -> Tensor:
    """Everyday pictures for the task ``inter`` of :func:`fundad_fast.synthetic.synthesize`, 2-D.

    "Many tasks make light work" takes 10,000 pictures of ImageNet for chest X-rays. These are few,
    but nothing needs to be fetched.

    Args:
        size: height and width in pixels; pictures are cut to that aspect, in their middle.
        channels: 1 (grey) or 3 (RGB).
        value_range: of the values that come back.
        equalise: equalise the histogram of each picture (256 levels, each channel), as the paper's
            code does.

    Returns:
        ``[15, channels, height, width]`` float32.

    Raises:
        ValueError: other numbers of channels, an empty size.
        FileNotFoundError: this scikit-image came without its pictures.
    """
    if channels not in (1, 3):
        raise ValueError(f"embedded_external: want 1 or 3 channels, got {channels}")
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"embedded_external: want a size of at least 1, got {size}")
    import cv2
    from skimage import data
    from skimage.io import imread

    folder = Path(data.__file__).parent
    pictures = []
    for name in PICTURES:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: this scikit-image came without its pictures; install it from "
                "the package index, or give external images of your own"
            )
        pixels = imread(path)
        if channels == 1:
            pixels = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        elif pixels.ndim == 2:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
        pixels = pixels.reshape(*pixels.shape[:2], channels)
        h, w = pixels.shape[:2]
        scale = min(h / height, w / width)
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (h - tall) // 2, (w - wide) // 2
        cut = np.ascontiguousarray(pixels[top : top + tall, left : left + wide])
        shrinks = scale > 1
        fitted = cv2.resize(
            cut, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        ).reshape(height, width, channels)
        planes = [np.ascontiguousarray(plane) for plane in np.moveaxis(fitted, -1, 0)]
        pictures.append(np.stack([cv2.equalizeHist(p) if equalise else p for p in planes]))
    low, high = value_range
    return torch.from_numpy(np.stack(pictures)).float() * ((high - low) / 255) + low
