# SPDX-License-Identifier: Apache-2.0
"""The U-Net of "Many tasks make light work", in two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from .doubling import doubled
from .positions import count, position_channels

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_APPLY = {2: nnf.conv2d, 3: nnf.conv3d}


class UNet(nn.Module):
    """nnU-Net's plain U-Net with GELU, non-learned up-sampling and an identity output.

    Two 3^D convolutions with bias per resolution, each followed by instance normalisation with
    learned gains and GELU; the first of a resolution has stride 2. Widths double from ``width`` up
    to ``cap``. Up-sampling is linear, so the second convolution below a skip already comes down to
    the skip's width. The last 1x1 convolution has no bias, and nothing follows it. Convolutions
    start from He's normal initialisation (a = 0.01), biases from 0.

    Position channels are appended to the input. They are the same for every image, so what the
    first convolution makes of them is computed once per batch and added: the same sum, at a third
    of the cost of that layer.

    Source: the public code of "Many tasks make light work" (Baugh et al. 2023), METHODS.md C.4;
    Isensee et al. 2021.

    Args:
        channels: of the input.
        dims: 2 or 3.
        width: channels at full resolution.
        depth: number of resolutions; the paper has 5 for brains and 7 for chest X-rays.
        cap: most channels; the paper has 320 in 3-D and 512 in 2-D.
        outputs: channels of the output.
        positions: whether position channels are appended.
        quiet: start the last convolution from 0, and so with an output of 0. Ours, for labels that
            are 0 nearly everywhere: no steps go by until a random output has come down.
    """

    def __init__(
        self,
        channels: int,
        dims: int = 2,
        *,
        width: int = 32,
        depth: int = 5,
        cap: int | None = None,
        outputs: int = 1,
        positions: bool = True,
        quiet: bool = False,
    ) -> None:
        super().__init__()
        if dims not in _CONV:
            raise ValueError(f"UNet: want 2 or 3 dims, got {dims}")
        if depth < 2:
            raise ValueError(f"UNet: want a depth of at least 2, got {depth}")
        self.channels, self.dims, self.positions = channels, dims, positions
        self.reduction = 2 ** (depth - 1)
        cap = cap or (512 if dims == 2 else 320)
        widths = [min(width * 2**i, cap) for i in range(depth)]
        first = channels + (count(dims) if positions else 0)
        self.down = nn.ModuleList()
        for i, w in enumerate(widths):
            last = i == depth - 1
            before = first if i == 0 else widths[i - 1]
            after = widths[i - 1] if last else w
            self.down.append(_Stage(dims, before, w, after, stride=1 if i == 0 else 2))
        self.up = nn.ModuleList()
        for i in reversed(range(depth - 1)):
            w, after = widths[i], widths[max(i - 1, 0)]
            self.up.append(_Stage(dims, 2 * w, w, after))
        self.out = _CONV[dims](widths[0], outputs, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if quiet:
            nn.init.zeros_(self.out.weight)
        self._positions: dict[tuple[int, ...], Tensor] = {}

    def least_side(self) -> int:
        """The shortest side that an input may have: two cells are left at the bottom."""
        return self.reduction + 1

    def forward(self, x: Tensor) -> Tensor:
        """``[b, channels, *s]`` to ``[b, outputs, *s]``; sides need not divide by two evenly."""
        skips = []
        for i, stage in enumerate(self.down):
            constant = self._position(x.shape[2:], x.device) if i == 0 and self.positions else None
            x = stage(x, constant)
            skips.append(x)
        x = skips.pop()
        for stage in self.up:
            skip = skips.pop()
            x = doubled(x)
            for axis, n in enumerate(skip.shape[2:], start=2):
                x = x.narrow(axis, 0, n)  # one too many where the side was odd
            x = stage(torch.cat([x, skip], 1))
        return self.out(x)

    def _position(self, shape: Sequence[int], device: torch.device) -> Tensor:
        key = tuple(shape)
        known = self._positions.get(key)
        if known is None or known.device != device:
            known = self._positions[key] = position_channels(shape)[None].to(device)
        return known


class _Stage(nn.Module):
    def __init__(self, dims: int, before: int, middle: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.dims, self.stride = dims, stride
        self.conv1 = _CONV[dims](before, middle, 3, stride=stride, padding=1)
        self.norm1 = _NORM[dims](middle, affine=True)
        self.conv2 = _CONV[dims](middle, after, 3, padding=1)
        self.norm2 = _NORM[dims](after, affine=True)

    def forward(self, x: Tensor, constant: Tensor | None = None) -> Tensor:
        if constant is None:
            x = self.conv1(x)
        else:
            weight, bias = self.conv1.weight, self.conv1.bias
            apply, n = _APPLY[self.dims], x.shape[1]
            x = apply(x, weight[:, :n], stride=self.stride, padding=1) + apply(
                constant, weight[:, n:], bias, stride=self.stride, padding=1
            )
        x = nnf.gelu(self.norm1(x))
        return nnf.gelu(self.norm2(self.conv2(x)))
