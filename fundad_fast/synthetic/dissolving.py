# SPDX-License-Identifier: Apache-2.0
"""Dissolving: one reverse step of a diffusion model on an image that no noise was added to.

It stands beside the synthetic anomalies because it is one: an image is made from a real one, and
the network comes in as a function. Who trained that function is not this file's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

Noise = Callable[[Tensor, Tensor], Tensor]
"""ε_θ: images ``[b, c, r, r]`` in [-1, 1] and time steps ``[b]`` int64 to the noise in them."""

Sampler = Literal["uniform", "beta_low", "beta_high", "beta_moving"]

_SKEW = 1.7  # Beta(1, 1.7) and Beta(1.7, 1): the public code's alternatives


def cosine_kept(steps: int = 1000, s: float = 0.008, most: float = 0.999) -> Tensor:
    """ᾱ_t of the cosine schedule for t = 0 to ``steps`` - 1, ``[steps]`` float64.

    ᾱ_t = Π_{i ≤ t} (1 - β_i) with β_i = min(1 - f(i+1) / f(i), ``most``) and
    f(i) = cos²(π/2 · (i/steps + s) / (1 + s)). Source: Nichol and Dhariwal 2021, eq. 17;
    ᾱ_30 = 0.9965, ᾱ_50 = 0.9917, ᾱ_99 = 0.9721, ᾱ_200 = 0.898, ᾱ_400 = 0.646.
    """
    i = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = ((i + s) / (1 + s) * math.pi / 2).cos() ** 2
    return (1 - (1 - f[1:] / f[:-1]).clamp(max=most)).cumprod(0)


def one_step(x: Tensor, t: Tensor, noise: Noise, kept: Tensor) -> Tensor:
    """x̂ = √(1/ᾱ_t)·x - √(1/ᾱ_t - 1)·ε_θ(x, t), clamped to [-1, 1].

    Source: "Dissolving is amplifying" (the poster lost the radical and an index), its public code,
    METHODS.md D.2.

    Args:
        x: ``[b, c, r, r]`` float32.
        t: ``[b]`` int64 time steps, each image's own.
        noise: the diffusion model.
        kept: ᾱ ``[steps]``, as of :func:`cosine_kept`.

    Raises:
        ValueError: a time step that the schedule does not have.
    """
    if len(t) and not 0 <= int(t.min()) <= int(t.max()) < len(kept):
        raise ValueError(
            f"time steps from {int(t.min())} to {int(t.max())}: the schedule has 0 to "
            f"{len(kept) - 1}"
        )
    # In float64 until the end: 1/ᾱ - 1 at small t is a difference of nearly equal numbers.
    inverse = (1 / kept.double())[t.to(kept.device)]
    a, b = (
        v.to(x.device, x.dtype).view(-1, 1, 1, 1) for v in (inverse.sqrt(), inverse.sub(1).sqrt())
    )
    return (a * x - b * noise(x, t.to(x.device))).clamp(-1, 1)


@torch.no_grad()
def dissolve(
    image: Tensor,
    t: Tensor,
    noise: Noise,
    kept: Tensor,
    *,
    resolution: int = 32,
    compat_no_rescale: bool = False,
) -> Tensor:
    """Dissolved images, of the size of those given.

    Images smaller than the model are padded with black and cut again; larger ones are resized down
    and up, bilinearly and without antialiasing, as in the public code: there the transformation is
    mostly a low pass. The model sees [-1, 1], the range that it was trained on. The public code
    hands it [0, 1] and takes what comes back for [0, 1]; ``compat_no_rescale`` does the same.

    Args:
        image: ``[b, c, h, w]`` float32 in [0, 1].
        t: ``[b]`` int64 time steps.
        noise: the diffusion model, for images of ``resolution``.
        kept: ᾱ ``[steps]``.
        resolution: side of the images that the model takes, in pixels.
        compat_no_rescale: mimic the public code's range.

    Returns:
        ``[b, c, h, w]`` float32 in [0, 1]; with ``compat_no_rescale`` in [-1, 1].
    """
    return at_resolution(
        image,
        resolution,
        lambda x: (
            one_step(x, t, noise, kept)
            if compat_no_rescale
            else (one_step(2 * x - 1, t, noise, kept) + 1) / 2
        ),
    )


def at_resolution(image: Tensor, resolution: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``change`` makes of images ``[b, c, h, w]`` brought to a square, in their own size.

    See :func:`to_resolution`; what was padded is cut, what was resized is resized back, bilinearly.
    """
    h, w = image.shape[-2:]
    changed = change(to_resolution(image, resolution))
    if max(h, w) > resolution:
        return nnf.interpolate(changed, (h, w), mode="bilinear", align_corners=False)
    top, left = (resolution - h) // 2, (resolution - w) // 2
    return changed[..., top : top + h, left : left + w]


def to_resolution(image: Tensor, resolution: int) -> Tensor:
    """Images ``[b, c, h, w]`` as squares ``[b, c, r, r]``: padded with 0 around, or made smaller.

    Bilinearly and without antialiasing, where a side is longer than ``resolution``.
    Source: METHODS.md D.2.
    """
    h, w = image.shape[-2:]
    if max(h, w) > resolution:
        size = (resolution, resolution)
        return nnf.interpolate(image, size, mode="bilinear", align_corners=False)
    top, left = (resolution - h) // 2, (resolution - w) // 2
    return nnf.pad(image, (left, resolution - w - left, top, resolution - h - top))


def draw_t(
    n: int,
    rng: np.random.Generator,
    *,
    sampler: Sampler = "uniform",
    offset: float = 0.3,
    upper: float = 1.0,
    scale: int = 100,
    progress: float = 0.0,
) -> Tensor:
    """Time steps ⌊scale · (u · (upper - offset) + offset)⌋, ``[n]`` int64.

    With the defaults, the public code's, they are 30 to 99. ``uniform`` draws u ~ U(0, 1),
    ``beta_low`` Beta(1, 1.7), ``beta_high`` Beta(1.7, 1). ``beta_moving`` goes from the one to the
    other with the training's ``progress`` in [0, 1]: that the code's moves with the epoch is known,
    how is our reading. Source: METHODS.md D.2.
    """
    moved = (_SKEW - 1) * min(max(progress, 0.0), 1.0)
    shape = {
        "uniform": (1.0, 1.0),
        "beta_low": (1.0, _SKEW),
        "beta_high": (_SKEW, 1.0),
        "beta_moving": (1 + moved, _SKEW - moved),
    }[sampler]
    u = rng.beta(*shape, size=n)
    # u can round to 1, which no t may: the largest is the one below scale * upper.
    t = np.floor(scale * (u * (upper - offset) + offset)).clip(max=math.ceil(scale * upper) - 1)
    return torch.from_numpy(t.astype(np.int64))


def blurred(image: Tensor, sigma: float, *, resolution: int = 32) -> Tensor:
    """A Gaussian blur in place of the diffusion model, at its resolution and by its resize rules.

    The public README's ablation names a Gaussian blur but not its width: sigma is ours.

    Args:
        image: ``[b, c, h, w]`` float32.
        sigma: standard deviation in pixels of ``resolution``, above 0.
        resolution: as of :func:`dissolve`.
    """
    radius = max(1, math.ceil(3 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = (-(x**2) / (2 * sigma**2)).exp()
    taps = (taps / taps.sum()).to(image.device, image.dtype)
    c = image.shape[1]

    def change(small: Tensor) -> Tensor:
        edge = nnf.pad(small, (radius,) * 4, mode="replicate")
        across = nnf.conv2d(edge, taps.view(1, 1, 1, -1).expand(c, 1, 1, -1), groups=c)
        return nnf.conv2d(across, taps.view(1, 1, -1, 1).expand(c, 1, -1, 1), groups=c)

    return at_resolution(image, resolution, change)
