# SPDX-License-Identifier: Apache-2.0
"""Shifts and views of contrastive learning: rotations, permuted halves, jitter, grey, crops."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

SHIFTS = 4
Shift = Literal["rotation", "cutperm"]

JITTER_P, GREY_P = 0.8, 0.2
STRENGTH, HUE = 0.4, 0.1  # of brightness, contrast and saturation; of the hue, in turns
RATIO = (3 / 4, 4 / 3)


def shifted(image: Tensor, k: int, how: Shift = "rotation") -> Tensor:
    """The k-th distribution-shifting transformation of images ``[b, c, h, w]``, k in 0 to 3.

    ``rotation`` turns by k · 90 degrees against the clock. ``cutperm`` swaps halves: the left and
    right ones for k & 1, the upper and lower ones for k & 2; of an odd side the larger half comes
    first. Rotations want squares. Source: METHODS.md D.3, after CSI.
    """
    if how == "rotation":
        return image.rot90(k, (-2, -1))
    if k & 1:
        image = torch.cat(image.tensor_split(2, -1)[::-1], -1)
    if k & 2:
        image = torch.cat(image.tensor_split(2, -2)[::-1], -2)
    return image


@dataclass(frozen=True)
class Views:
    """What is done to each of n images, each ``[n]``: SimCLR's augmentation, drawn.

    Attributes:
        flip: whether it is mirrored left to right, before everything else.
        jitter: whether colours change; ``contrast_first`` tells in which order.
        brightness, contrast, saturation: factors; ``hue`` in turns is added.
        grey: whether it loses its colours.
        width, height: of the crop, as shares of the image's.
        x, y: of the crop's centre, where -1 and 1 are the image's borders.
    """

    flip: Tensor
    jitter: Tensor
    contrast_first: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    grey: Tensor
    width: Tensor
    height: Tensor
    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, which: Tensor | slice) -> Views:
        return Views(*(getattr(self, f.name)[which] for f in fields(self)))

    def to(self, device: torch.device) -> Views:
        return Views(*(getattr(self, f.name).to(device) for f in fields(self)))


def draw_views(n: int, rng: np.random.Generator, *, scale: tuple[float, float]) -> Views:
    """SimCLR views as CSI draws them, on the CPU.

    Colour jitter with probability 0.8: brightness, contrast and saturation times 0.6 to 1.4, hue
    plus -0.1 to 0.1 turns; contrast before or after the others. Grey with probability 0.2. A crop
    of ``scale`` of the area and a side ratio in [3/4, 4/3], evenly in its logarithm; the first of
    ten draws that fits, else the whole image. Mirrored with probability 0.5.
    Source: METHODS.md D.3, D.6.

    Args:
        n: how many.
        rng: they are a function of its state alone.
        scale: smallest and largest share of the area that is kept.
    """
    low, high = 1 - STRENGTH, 1 + STRENGTH
    flip, jitter = rng.random(n) < 0.5, rng.random(n) < JITTER_P
    first, grey = rng.random(n) < 0.5, rng.random(n) < GREY_P
    brightness, contrast, saturation = rng.uniform(low, high, (3, n))
    hue = rng.uniform(-HUE, HUE, n)
    area = rng.uniform(*scale, (10, n))
    ratio = np.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1]), (10, n)))
    widths, heights = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (widths <= 1) & (heights <= 1)
    best = fits.argmax(0)  # the first that fits
    width, height = (np.where(fits.any(0), v[best, np.arange(n)], 1.0) for v in (widths, heights))
    x, y = rng.uniform(-1, 1, (2, n)) * (1 - np.stack([width, height]))
    values = (brightness, contrast, saturation, hue, grey, width, height, x, y)
    floats = [torch.from_numpy(np.asarray(v, np.float32)) for v in values]
    floats[4] = floats[4] > 0
    return Views(*(torch.from_numpy(v) for v in (flip, jitter, first)), *floats)


def mirrored(image: Tensor, chosen: Tensor) -> Tensor:
    """Images ``[n, c, h, w]`` of which the chosen ones (``[n]`` bool) are mirrored."""
    return torch.where(chosen.to(image.device).view(-1, 1, 1, 1), image.flip(-1), image)


def augmented(image: Tensor, views: Views) -> Tensor:
    """Images ``[n, c, h, w]`` in [0, 1] with jitter, grey and crops of ``views``; not mirrored.

    Where c is not 3, only brightness and contrast change. Crops are resized to the images' size
    bilinearly, with reflection at the borders.
    """
    v = views.to(image.device)
    changed = torch.where(
        _each(v.contrast_first), _colours(_contrast(image, v), v), _contrast(_colours(image, v), v)
    )
    image = torch.where(_each(v.jitter), changed, image)
    if image.shape[1] == 3:
        luma = image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        image = torch.where(_each(v.grey), (image * luma).sum(1, keepdim=True), image)
    zero = torch.zeros_like(v.width)
    rows = (torch.stack([v.width, zero, v.x], 1), torch.stack([zero, v.height, v.y], 1))
    grid = nnf.affine_grid(torch.stack(rows, 1), list(image.shape), align_corners=False)
    return nnf.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


def _each(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


def _contrast(image: Tensor, v: Views) -> Tensor:
    """Further from, or nearer to, each channel's mean."""
    mean = image.mean((-2, -1), keepdim=True)
    return ((image - mean) * _each(v.contrast) + mean).clamp(0, 1)


def _colours(image: Tensor, v: Views) -> Tensor:
    """Brightness, and of colours saturation and hue, as HSV has them."""
    if image.shape[1] != 3:
        return (image * _each(v.brightness)).clamp(0, 1)
    value, least = image.amax(1), image.amin(1)
    spread = (value - least).clamp_min(1e-8)
    r, g, b = image.unbind(1)
    sector = torch.where(
        value == r,
        (g - b) / spread,
        torch.where(value == g, 2 + (b - r) / spread, 4 + (r - g) / spread),
    )
    hue = sector / 6 + v.hue.view(-1, 1, 1)
    saturation = ((value - least) / value.clamp_min(1e-8) * v.saturation.view(-1, 1, 1)).clamp(0, 1)
    value = (value * v.brightness.view(-1, 1, 1)).clamp(0, 1)
    # Channel n of HSV: value - value * saturation * max(0, min(k, 4 - k, 1)), k = n + 6 hue mod 6.
    channels = []
    for n in (5, 3, 1):
        k = (n + hue * 6).remainder(6)
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)
