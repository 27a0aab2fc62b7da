# SPDX-License-Identifier: Apache-2.0
"""What a fit of DIA would need, from a few steps of its networks on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..synthetic import SHIFTS
from ._base import Plan
from .timing import seconds_of

if TYPE_CHECKING:
    from .dia import DIA


def plan_fit(method: DIA, images: int, used: int, steps: int) -> Plan:
    """See ``Method.plan``; ``used`` images are learned from, in ``steps`` of the contrast."""
    c, device = method.config, method.device
    rows = SHIFTS * (2 if c.dissolve == "none" else 3) * c.train_batch
    net = method._new_net(3).to(device)
    few = min(rows, 24)
    x = torch.rand(few, 3, c.image_size, c.image_size, device=device)
    per_step = seconds_of(lambda: sum(v.mean() for v in net(x)).backward(), device) / few * rows
    per_view = seconds_of(lambda: net(x), device) / few
    size = sum(p.numel() for p in net.parameters())
    seconds = steps * per_step + used * SHIFTS * c.views * per_view
    lines = [
        f"a network of {size} parameters, {steps} steps of {c.train_batch} images "
        f"({rows} pictures) each",
    ]
    if c.dissolve == "diffusion" and method.weights is None:
        denoiser = method._new_denoiser(3).to(device)
        few = min(c.diffusion_batch, 16)
        small = torch.rand(few, 3, c.resolution, c.resolution, device=device)
        t = torch.zeros(few, dtype=torch.int64, device=device)
        each = seconds_of(lambda: denoiser(small, t).mean().backward(), device) / few
        batch = min(c.diffusion_batch, used)
        seconds += c.diffusion_steps * each * batch + steps * SHIFTS * c.train_batch * each / 3
        parameters = sum(p.numel() for p in denoiser.parameters())
        size += parameters
        lines.append(
            f"a diffusion model of {parameters} parameters, {c.diffusion_steps} steps of {batch} "
            "images each"
        )
    lines.append(f"{used} of {images} images to train on, the others for the thresholds")
    pixels = 4 * 3 * c.image_size**2
    # Of a view, ResNet-18 keeps about 20 maps of the first stage's size for the gradient.
    scale = 1 if c.stem == "cifar" else 16
    activations = 4 * rows * c.image_size**2 * c.width * 20 // scale
    return Plan(
        images=images,
        memory=min(used * pixels, c.memory_budget) + activations + 20 * size + 2**29,
        disk=20 * size + max(0, used * pixels - c.memory_budget),
        bundle=4 * size + 4 * SHIFTS * used * c.projection,
        seconds=seconds,
        lines=tuple(lines),
    )
