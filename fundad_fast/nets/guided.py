# SPDX-License-Identifier: Apache-2.0
"""A U-Net that localises anomalies, guided by what a frozen reconstruction network makes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from .autoencoder import DEPTH, Autoencoder, Decoder, Encoder, level_widths

Guide = Literal["none", "image", "features", "difference"]

PRIOR = 0.01
"""Probability that an untrained network gives every pixel (Lin et al. 2017, section 4.1)."""


class GuidedUNet(nn.Module):
    """Logits of a pixel being abnormal, from an image and its reconstruction.

    The encoder sees the image (with ``guide="image"``, as in DRAEM, the reconstruction beside it).
    At each level the decoder gets the encoder's features and the guide's, which a 1x1 convolution
    brings to the level's width:

    * ``features``: the reconstruction network's decoder features of the image;
    * ``difference``: |E(I) - E(D(E(I)))|, how its encoder's features of image and reconstruction
      differ.

    Published is that reconstruction features guide the localisation network; how is our design
    (METHODS.md B.4). The last bias starts at the logit of 0.01, so that the many healthy pixels do
    not drown the first steps.

    Args:
        channels: of the image.
        guide: what guides it; ``none`` for nothing.
        width: channels at full resolution.
        guide_width: the same of the reconstruction network.
        depth: number of levels, of both networks.
    """

    def __init__(
        self,
        channels: int,
        guide: Guide = "features",
        *,
        width: int = 64,
        guide_width: int = 64,
        depth: int = DEPTH,
    ) -> None:
        super().__init__()
        self.guide = guide
        widths = level_widths(width, depth)
        by_level = guide in ("features", "difference")
        self.encoder = Encoder(channels * (2 if guide == "image" else 1), widths)
        self.projections = nn.ModuleList(
            nn.Conv2d(g, w, 1) for g, w in zip(level_widths(guide_width, depth)[:-1], widths)
        )
        if not by_level:
            self.projections = nn.ModuleList()
        self.decoder = Decoder(widths, 1, [w * (2 if by_level else 1) for w in widths[:-1]])
        nn.init.constant_(self.decoder.out.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def forward(self, image: Tensor, known: Tensor | list[Tensor] | None = None) -> Tensor:
        """``[b, channels, h, w]`` to logits ``[b, h, w]``.

        Args:
            image: the image.
            known: what :func:`guidance` gives for it.
        """
        x = torch.cat([image, known], 1) if isinstance(known, Tensor) else image
        *skips, bottom = self.encoder(x)
        extras = skips
        if isinstance(known, list):
            extras = [
                torch.cat([skip, project(given)], 1)
                for skip, project, given in zip(skips, self.projections, known, strict=True)
            ]
        logits: Tensor = self.decoder(bottom, [tuple(s.shape[2:]) for s in skips], extras)[0]
        return logits[:, 0]


class GuidedPair(nn.Module):
    """A reconstruction network and the U-Net that it guides, trained as one, as in DRAEM.

    Args:
        reconstruction, localisation: the two; ``guide`` is the latter's.
    """

    def __init__(self, reconstruction: Autoencoder, localisation: GuidedUNet) -> None:
        super().__init__()
        self.reconstruction, self.localisation = reconstruction, localisation

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """``[b, c, h, w]`` to logits ``[b, h, w]`` and the reconstruction."""
        again, known = guidance(self.reconstruction, image, self.localisation.guide)
        return self.localisation(image, known), again


def guidance(
    net: nn.Module, image: Tensor, guide: Guide
) -> tuple[Tensor | None, Tensor | list[Tensor] | None]:
    """A reconstruction network's image, and what guides a :class:`GuidedUNet` by it.

    Args:
        net: an :class:`Autoencoder`; not called with ``guide="none"``, which gives nothing.
        image: ``[b, c, h, w]``.
        guide: see :class:`GuidedUNet`.
    """
    if guide == "none":
        return None, None
    assert isinstance(net, Autoencoder)
    again, down, up = net.features(image)
    if guide == "image":
        return again, again
    if guide == "features":
        return again, up
    below = net.encoder(again)
    return again, [(a - b).abs() for a, b in zip(down[:-1], below[:-1], strict=True)]
