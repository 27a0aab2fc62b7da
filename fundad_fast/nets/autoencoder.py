# SPDX-License-Identifier: Apache-2.0
"""Plain convolutional encoder and decoder: autoencoders, and U-Nets where levels are handed on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from .doubling import doubled

DEPTH = 5


def level_widths(width: int, depth: int = DEPTH) -> tuple[int, ...]:
    """Channels of each level, finest first: w, 2w, 4w, 8w, and 8w from there on.

    Source: the networks of DRAEM's public code, which has w = 128 (METHODS.md B.3).
    """
    return tuple(width * min(2**i, 8) for i in range(depth))


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each followed by batch normalisation and ReLU.

    Convolutions have no bias, as the normalisation takes it away, and start from He's normal
    initialisation (our choice; the papers name none).

    Args:
        before: channels of the input.
        after: channels of the output.
        repeats: convolutions; 2.
    """

    def __init__(self, before: int, after: int, repeats: int = 2) -> None:
        layers: list[nn.Module] = []
        for i in range(repeats):
            conv = nn.Conv2d(after if i else before, after, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class Encoder(nn.Module):
    """A double convolution per level, with 2x2 max-pooling between levels.

    Source: the encoder of DRAEM's public code (METHODS.md B.3), and but for the width of P-Net's
    (E.3).

    Args:
        channels: of the input.
        widths: channels of each level, finest first; see :func:`level_widths`.
    """

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"Encoder: want at least two levels, got widths {list(widths)}")
        self.channels, self.widths = channels, tuple(widths)
        before = (channels, *self.widths[:-1])
        self.levels = nn.ModuleList(
            DoubleConv(b, a) for b, a in zip(before, self.widths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[b, channels, h, w]`` to the features of each level, finest first.

        Level i is ``[b, widths[i], h / 2**i, w / 2**i]``, sides rounded up.
        """
        found = []
        for i, level in enumerate(self.levels):
            x = level(nnf.max_pool2d(x, 2, ceil_mode=True) if i else x)
            found.append(x)
        return found


class Decoder(nn.Module):
    """Up again: each level is doubled, brought to the next width, and convolved twice.

    Doubling is bilinear, then come a convolution, what is handed on to the level, and a double
    convolution. Without anything handed on it is an autoencoder's decoder; with an encoder's
    features, a U-Net's. The last 3x3 convolution has a bias, and nothing follows it.

    Source: the decoder of DRAEM's public code (METHODS.md B.3).

    Args:
        widths: channels of each level, finest first; the last is the input's.
        outputs: channels of the output.
        extras: channels handed on to each level but the last, finest first; ``()`` for none.
    """

    def __init__(self, widths: Sequence[int], outputs: int, extras: Sequence[int] = ()) -> None:
        super().__init__()
        self.widths, self.extras = tuple(widths), tuple(extras) or (0,) * (len(widths) - 1)
        if len(self.extras) != len(self.widths) - 1:
            raise ValueError(
                f"Decoder: want extras for {len(self.widths) - 1} levels, got {list(extras)}"
            )
        below = self.widths[1:]
        self.up = nn.ModuleList(
            DoubleConv(b, a, repeats=1) for b, a in zip(below, self.widths, strict=False)
        )
        self.levels = nn.ModuleList(
            DoubleConv(w + e, w) for w, e in zip(self.widths, self.extras, strict=False)
        )
        self.out = nn.Conv2d(self.widths[0], outputs, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        sizes: Sequence[Sequence[int]],
        extras: Sequence[Tensor] = (),
        share: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The output and the features of each level but the last, finest first.

        Args:
            x: ``[b, widths[-1], h', w']``, the coarsest level.
            sizes: height and width of each level but the last, finest first, as the encoder had
                them: an odd side comes back as it was.
            extras: what is concatenated at each of these levels, finest first.
            share: α, a scalar: what is concatenated is α of the extra and 1 - α of the level's own
                features, which then learn by that way alone. Source: WDMT-Net's public code.
        """
        found = []
        for i in reversed(range(len(self.levels))):
            h, w = sizes[i]
            x = self.up[i](doubled(x)[..., :h, :w])
            if self.extras[i]:
                extra = extras[i]
                if share is not None:
                    extra, x = share * extra + (1 - share) * x, x.detach()
                x = torch.cat([x, extra], 1)
            x = self.levels[i](x)
            found.append(x)
        return self.out(x), found[::-1]


class Autoencoder(nn.Module):
    """An encoder and a decoder with nothing between them but the coarsest level.

    Source: DRAEM's reconstructive network (METHODS.md B.3).

    Args:
        channels: of the images.
        width: channels at full resolution.
        depth: number of levels.
    """

    def __init__(self, channels: int, width: int = 64, depth: int = DEPTH) -> None:
        super().__init__()
        self.channels, self.widths = channels, level_widths(width, depth)
        self.encoder = Encoder(channels, self.widths)
        self.decoder = Decoder(self.widths, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, channels, h, w]`` to its reconstruction; no clamp."""
        return self.features(x)[0]

    def features(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The reconstruction, the encoder's features of all levels, the decoder's of all but one.

        Both lists are finest first; the decoder's level i has the shape of the encoder's.
        """
        down = self.encoder(x)
        image, up = self.decoder(down[-1], [tuple(f.shape[2:]) for f in down])
        return image, down, up
