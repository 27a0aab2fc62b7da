# SPDX-License-Identifier: Apache-2.0
"""Another look at the same healthy eye: geometric and photometric variation of a photograph."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .outlines import smooth_noise


class Photograph(NamedTuple):
    """A fundus photograph and the circle of its field of view.

    Attributes:
        pixels: ``[h, w, 3]`` uint8 RGB.
        cx, cy, radius: the circle in pixels (indices of pixel centres).
    """

    pixels: NDArray[np.uint8]
    cx: float
    cy: float
    radius: float


def vary_geometry(
    photograph: Photograph, size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Point the camera anew: mirror, turn, scale, shift and a smooth elastic warp.

    The new field of view shows a part of the old one, so nothing beyond its rim is made up.

    Args:
        photograph: the original, preferably larger than ``size``.
        size: side of the result in pixels.
        rng: drawn from; the same state gives the same look.

    Returns:
        ``[3, size, size]`` float32 in [0, 1], black around the new field of view, and that field,
        ``[size, size]`` bool.
    """
    import cv2

    radius = size * rng.uniform(0.455, 0.485)
    cx, cy = size / 2 - 0.5 + size * rng.uniform(-0.012, 0.012, 2)
    zoom = rng.uniform(1.04, 1.25)
    slack = 0.98 - 1 / zoom
    warp = min(0.012, 0.4 * slack)  # in radii, as all lengths from here on
    away, where = (slack - warp) * math.sqrt(rng.uniform()), rng.uniform(0, 2 * math.pi)
    turn = math.radians(rng.uniform(-14, 14))
    mirrored = rng.choice([-1.0, 1.0], 2)

    y, x = np.mgrid[:size, :size].astype(np.float32)
    x, y = (x - cx) / radius, (y - cy) / radius
    bend = [np.clip(smooth_noise(rng, (size, size), 0.35 * radius), -2, 2) for _ in range(2)]
    u = (x * math.cos(turn) - y * math.sin(turn)) * mirrored[0] / zoom + warp / 3 * bend[0]
    v = (x * math.sin(turn) + y * math.cos(turn)) * mirrored[1] / zoom + warp / 3 * bend[1]
    u, v = u + away * math.cos(where), v + away * math.sin(where)

    # Averaged down to about the new resolution first: interpolation alone would alias.
    step = min(1.0, 1.1 * radius * zoom / photograph.radius)
    source = cv2.resize(photograph.pixels, None, fx=step, fy=step, interpolation=cv2.INTER_AREA)
    sx, sy = (n / o for n, o in zip(source.shape[1::-1], photograph.pixels.shape[1::-1]))
    at_x = (photograph.cx + 0.5 + u * photograph.radius) * sx - 0.5
    at_y = (photograph.cy + 0.5 + v * photograph.radius) * sy - 0.5
    seen = cv2.remap(
        source.astype(np.float32) / 255,
        at_x.astype(np.float32),
        at_y.astype(np.float32),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    depth = radius * (1 - np.hypot(x, y))
    open_ = np.clip(depth / 1.5 + 0.5, 0, 1)[..., None]
    image = np.clip(seen, 0, 1) * open_
    return _tensor(image), torch.from_numpy(depth > 0)


def vary_photometry(image: Tensor, fov: Tensor, rng: np.random.Generator) -> Tensor:
    """Develop the photograph anew: light, colour, contrast, sharpness, noise and compression.

    To be applied after lesions were painted in, so that they share all of it.

    Args:
        image: ``[3, h, w]`` float32 in [0, 1].
        fov: ``[h, w]`` bool; outside, only compression leaves traces.
        rng: drawn from; the same state gives the same result.

    Returns:
        ``[3, h, w]`` float32 in [0, 1].
    """
    import cv2

    pixels = image.permute(1, 2, 0).contiguous().numpy()
    height, width = fov.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = 2 * x / width - 1, 2 * y / height - 1
    ox, oy, tx, ty = rng.normal(0, [0.15, 0.15, 0.05, 0.05])
    vignette = 1 - rng.uniform(0, 0.25) * ((x - ox) ** 2 + (y - oy) ** 2)
    light = (vignette + tx * x + ty * y)[..., None] * math.exp(rng.normal(-0.01, 0.05))
    balance = np.exp(rng.normal(0, [0.02, 0.035, 0.05])).astype(np.float32)
    gamma = math.exp(rng.normal(0, 0.07))
    pixels = np.clip(pixels * light * balance, 0, 1) ** gamma
    blur = rng.uniform(0, 0.9) * height / 512
    if blur > 0.3:
        pixels = cv2.GaussianBlur(pixels, (0, 0), blur)
    white = rng.standard_normal(pixels.shape, dtype=np.float32)
    coarse = cv2.GaussianBlur(rng.standard_normal(pixels.shape, dtype=np.float32), (0, 0), 0.8)
    noise = rng.uniform(0.001, 0.006) * (white + 2 * coarse)
    pixels = np.clip(pixels + noise * fov.numpy()[..., None], 0, 1)
    quality = int(rng.integers(75, 96))
    _, stored = cv2.imencode(
        ".jpg",
        np.rint(pixels[..., ::-1] * 255).astype(np.uint8),
        [cv2.IMWRITE_JPEG_QUALITY, quality],
    )
    again = np.asarray(cv2.imdecode(stored, cv2.IMREAD_COLOR))
    return _tensor(again[..., ::-1] / np.float32(255))


def _tensor(pixels: NDArray) -> Tensor:
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 0), dtype=np.float32)
    return torch.from_numpy(planes)
