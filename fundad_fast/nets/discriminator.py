# SPDX-License-Identifier: Apache-2.0
"""A discriminator of patches, and the losses of both sides."""

from __future__ import annotations

import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

_STRIDES = (2, 2, 2, 1)


class PatchDiscriminator(nn.Module):
    """Says of each patch of an image whether it is real: logits, one for each patch.

    4x4 convolutions of w, 2w, 4w (stride 2) and 8w (stride 1) channels with LeakyReLU 0.2, then one
    to a single channel; every one with spectral normalisation, whose vectors are part of the
    state. Source: P-Net's public code, w = 64 (METHODS.md E.5).

    Args:
        channels: of the images.
        width: w.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for i, stride in enumerate(_STRIDES):
            conv = nn.Conv2d(before, width * 2**i, 4, stride, padding=1)
            layers += [spectral_norm(conv), nn.LeakyReLU(0.2)]
            before = width * 2**i
        layers.append(spectral_norm(nn.Conv2d(before, 1, 4, 1, padding=1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """``[b, channels, h, w]`` to logits ``[b, 1, h', w']``, about 1/8 of the sides."""
        out: Tensor = self.layers(image)
        return out


LEAST_SIDE = 24
"""The shortest side of an image that leaves a patch to judge."""


def fooling_loss(fake: Tensor) -> Tensor:
    """The generator's: binary cross-entropy of its images' logits with "real"."""
    return nnf.softplus(-fake).mean()


def telling_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's: mean binary cross-entropy of logits for real and made images."""
    return (nnf.softplus(-real).mean() + nnf.softplus(fake).mean()) / 2
