# SPDX-License-Identifier: Apache-2.0
"""The one reference resize, and its quick form for 8-bit pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def resize(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize by bilinear interpolation with antialiasing: the reference for every other path.

    The same as Pillow's and torchvision's antialiased bilinear up to rounding; OpenCV's and torch's
    plain bilinear differ from it when shrinking.

    Args:
        image: ``[c, h, w]`` float32.
        size: side of the square, or (height, width), in pixels.

    Returns:
        ``[c, height, width]`` float32, contiguous, never the same storage as ``image``. Pixel
        (i, j) lies at ((i + 0.5) h / height - 0.5, (j + 0.5) w / width - 0.5) of ``image``.
    """
    if image.ndim != 3 or image.dtype != torch.float32:
        raise ValueError(
            f"resize wants a float32 image [c, h, w]; got {image.dtype} {list(image.shape)}"
        )
    height, width = (size, size) if isinstance(size, int) else size
    if (height, width) == tuple(image.shape[1:]):
        return image.clone(memory_format=torch.contiguous_format)
    resized = functional.interpolate(
        image[None], size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0].contiguous()


def resize_uint8(pixels: np.ndarray, size: int) -> Tensor:
    """Resize 8-bit pixels without leaving 8 bits: within one grey level of :func:`resize` rounded.

    It rounds twice, once per axis, so that the unrounded difference reaches 1.005 grey levels.

    Args:
        pixels: ``[h, w, c]`` uint8, contiguous.
        size: side of the square in pixels.

    Returns:
        ``[c, size, size]`` uint8; may share storage with ``pixels`` when the size is the same.
    """
    # A view of [h, w, c] as [1, c, h, w] is channels_last, which torch's 8-bit kernels want.
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    if tuple(image.shape[2:]) != (size, size):
        image = functional.interpolate(
            image, size=(size, size), mode="bilinear", antialias=True, align_corners=False
        )
    return image[0]
