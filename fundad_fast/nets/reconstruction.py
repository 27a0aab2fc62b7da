# SPDX-License-Identifier: Apache-2.0
"""Networks from image to image: with a bottleneck between, or with skips past it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .autoencoder import Decoder, Encoder, level_widths
from .memory import Address, Memory


@dataclass(frozen=True)
class Made:
    """What a :class:`Reconstructor` made.

    Attributes:
        image: ``[b, outputs, h, w]``; nothing follows the last convolution.
        weights: of the memory's slots, ``[b, h', w', n]``, or ``None``.
        mean, log_variance: of the code, ``[b, latent, h', w']``, or ``None``.
    """

    image: Tensor
    weights: Tensor | None = None
    mean: Tensor | None = None
    log_variance: Tensor | None = None


class Reconstructor(nn.Module):
    """Encoder, something narrow, decoder; or a U-Net, where levels are handed past it.

    Source: the encoder and decoder of P-Net's public code (METHODS.md E.3), which are those of
    :class:`Encoder` and :class:`Decoder`. The codes are grids at the coarsest level, so that any
    size of image fits; our design.

    Args:
        channels: of the input.
        outputs: of the output.
        width, depth: see :func:`level_widths`.
        skips: hand the encoder's levels to the decoder, as a U-Net does.
        fading: these skips have a share of their own, ``skip_share``, from 1 down to 0, at which
            nothing goes past the coarsest level; see :class:`Decoder`. It is saved with the
            weights.
        latent: channels of the code at the coarsest level, by 1x1 convolutions there and back;
            ``None`` for the features as they are.
        variational: the code has a mean and a variance, and is drawn in training. Needs latent.
        memory: its slots, or 0 for none.
        shrink, address, key_value: of :class:`Memory`.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        width: int,
        depth: int,
        skips: bool = False,
        fading: bool = False,
        latent: int | None = None,
        variational: bool = False,
        memory: int = 0,
        shrink: float = 2.0,
        address: Address = "dot",
        key_value: bool = False,
    ) -> None:
        super().__init__()
        widths: Sequence[int] = level_widths(width, depth)
        coarsest = widths[-1]
        code = latent or coarsest
        self.variational = variational
        self.encoder = Encoder(channels, widths)
        self.decoder = Decoder(widths, outputs, widths[:-1] if skips else ())
        self.skips = skips
        self.skip_share: Tensor | None
        self.register_buffer("skip_share", torch.ones(()) if fading else None)
        self.narrow = self.widen = None
        if latent is not None:
            self.narrow = nn.Conv2d(coarsest, 2 * latent if variational else latent, 1)
            self.widen = nn.Conv2d(latent, coarsest, 1)
        self.memory = None
        if memory:
            self.memory = Memory(
                code, memory, shrink=shrink, address=address, values=code if key_value else None
            )

    def forward(self, x: Tensor, *, draw: bool = True) -> Made:
        """``[b, channels, h, w]`` to its image and what passed the narrow place.

        In training a variational code is drawn, unless ``draw`` is false; else its mean is taken.
        """
        down = self.encoder(x)
        z, weights, mean, log_variance = down[-1], None, None, None
        if self.narrow is not None:
            z = self.narrow(z)
        if self.variational:
            mean, log_variance = z.float().chunk(2, 1)
            log_variance = log_variance.clamp(-20, 20)
            z = mean
            if self.training and draw:
                z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        if self.memory is not None:
            z, weights = self.memory(z)
        if self.widen is not None:
            z = self.widen(z)
        sizes = [tuple(f.shape[2:]) for f in down]
        image, _ = self.decoder(z, sizes, down[:-1] if self.skips else (), self.skip_share)
        return Made(image, weights, mean, log_variance)


def code_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the code from N(0, 1), ``[b, c, h, w]``, element by element.

    Source: Kingma and Welling 2014, appendix B.
    """
    return (mean.square() + log_variance.exp() - 1 - log_variance) / 2
