# SPDX-License-Identifier: Apache-2.0
"""How far an image and what was made of it again are apart, pixel by pixel."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .losses import dissimilarity

Compare = Literal["pixels", "structure"]
Relative = Literal["none", "image", "local"]

_FLOOR = 0.02
"""Added to a standard deviation, in shares of white, so that flat images have no infinite score."""

_LOCAL = 1 / 16
"""σ of the window for local standard deviations, as a share of the shorter side."""


def residual_map(
    made: Tensor,
    image: Tensor,
    mask: Tensor | None,
    *,
    squared: bool,
    compare: Compare = "pixels",
    blur: float = 0.0,
    relative: Relative = "none",
) -> Tensor:
    """Anomaly map ``[b, h, w]`` of images and what was made of them, the mean over the channels.

    Args:
        made, image: ``[b, c, h, w]``, the image 0 outside the mask.
        mask: ``[b, h, w]`` bool or ``None``; nothing outside it is looked at.
        squared: of differences of pixels, the square, else the absolute value.
        compare: ``pixels``, or ``structure``: 1 - SSIM around each pixel (Wang et al. 2004; for
            autoencoders Bergmann et al. 2018).
        blur: σ of a Gaussian that differences of pixels go through first, with their sign, as a
            share of the shorter side: what changes from pixel to pixel cancels.
        relative: to the standard deviation of the image inside the mask, or around each pixel
            (Gaussian window), each plus 0.02: images of little contrast have small differences.
    """
    inside = torch.ones_like(image[:, :1]) if mask is None else mask[:, None].to(image)
    if compare == "structure":
        apart = dissimilarity(made * inside, image * inside)
    else:
        apart = (made - image) * inside
        if blur > 0:
            apart = _smoothed(apart, inside, blur)
        apart = apart.square() if squared else apart.abs()
    return to_contrast(apart.mean(1), image, mask, relative, squared and compare == "pixels")


def to_contrast(
    full: Tensor, image: Tensor, mask: Tensor | None, relative: Relative, squared: bool
) -> Tensor:
    """A map ``[b, h, w]`` by its image's standard deviation, or that squared: the last step of
    :func:`residual_map`."""
    if relative == "none":
        return full
    inside = torch.ones_like(image[:, :1]) if mask is None else mask[:, None].to(image)
    scale = _deviation(image, inside, relative) + _FLOOR
    return full / (scale.square() if squared else scale)


def top_means(full: Tensor, mask: Tensor | None, share: float) -> Tensor:
    """Mean of the highest share of each map ``[b, h, w]`` inside its mask, ``[b]``.

    Args:
        share: of the cells inside, one at least; 0 where there are none.
    """
    scores = []
    for i, one in enumerate(full):
        values = one.flatten() if mask is None else one[mask[i]]
        count = max(1, round(share * len(values)))
        scores.append(values.topk(count).values.mean() if len(values) else one.new_zeros(()))
    return torch.stack(scores)


def _deviation(image: Tensor, inside: Tensor, relative: Relative) -> Tensor:
    """Standard deviation of the mean of the channels, ``[b, h, w]`` or ``[b, 1, 1]``."""
    grey = image.mean(1, keepdim=True)
    if relative == "local":
        mean = _smoothed(grey, inside, _LOCAL)
        square = _smoothed(grey.square(), inside, _LOCAL)
        return (square - mean.square()).clamp_min(0).sqrt()[:, 0]
    weight = inside.sum((1, 2, 3), keepdim=True).clamp_min(1)
    mean = (grey * inside).sum((1, 2, 3), keepdim=True) / weight
    square = ((grey - mean) * inside).square().sum((1, 2, 3), keepdim=True) / weight
    return square.sqrt()[:, 0]


def _smoothed(values: Tensor, inside: Tensor, share: float) -> Tensor:
    """Gaussian mean over what lies inside, ``[b, c, h, w]``."""
    sigma = share * min(values.shape[2:])
    reach = max(1, round(3 * sigma))
    at = torch.arange(-reach, reach + 1, device=values.device, dtype=values.dtype)
    taps = (-(at**2) / (2 * sigma**2)).exp()

    def blurred(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        flat = x.reshape(b * c, 1, h, w)
        flat = nnf.conv2d(flat, taps.view(1, 1, 1, -1), padding=(0, reach))
        return nnf.conv2d(flat, taps.view(1, 1, -1, 1), padding=(reach, 0)).view(b, c, h, w)

    return blurred(values * inside) / blurred(inside).clamp_min(1e-6)
