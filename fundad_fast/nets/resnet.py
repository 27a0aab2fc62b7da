# SPDX-License-Identifier: Apache-2.0
"""ResNet-18 with a projection and a shift head, as contrastive learning of shifts has it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

Stem = Literal["cifar", "imagenet"]


class ContrastNet(nn.Module):
    """Random-initialised ResNet-18, a two-layer projection, and a linear head over the shifts.

    ``cifar``: a 3x3 convolution at full resolution; ``imagenet``: a 7x7 convolution and a maximum
    pooling that leave a quarter of it. The input is brought to (x - 0.5) / 0.5 inside. Source: He
    et al. 2016; CSI and the public code of "Dissolving is amplifying", METHODS.md D.5.

    Args:
        channels: of the input.
        stem: see above.
        width: channels of the first stage; the paper has 64, and so 512 features at the end.
        projection: numbers that the projection leaves.
        shifts: classes of the shift head.
    """

    def __init__(
        self,
        channels: int,
        *,
        stem: Stem = "imagenet",
        width: int = 64,
        projection: int = 128,
        shifts: int = 4,
    ) -> None:
        super().__init__()
        first: list[nn.Module]
        if stem == "cifar":
            first = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
        else:
            first = [nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)]
        first += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        if stem == "imagenet":
            first.append(nn.MaxPool2d(3, stride=2, padding=1))
        self.stem = nn.Sequential(*first)
        blocks, before = [], width
        for stage in range(4):
            after = width * 2**stage
            blocks += [_Block(before, after, 1 if stage == 0 else 2), _Block(after, after, 1)]
            before = after
        self.blocks = nn.Sequential(*blocks)
        self.projection = nn.Sequential(
            nn.Linear(before, before), nn.ReLU(inplace=True), nn.Linear(before, projection)
        )
        self.shift = nn.Linear(before, shifts)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # With channels last a CPU trains in 0.7 to 0.9 and scores in 0.6 to 0.9 of the time.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[n, c, h, w]`` in [0, 1] to projections ``[n, p]`` and shift logits ``[n, k]``.

        Projections are not normalised.
        """
        x = ((x - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
        features = self.blocks(self.stem(x)).mean((-2, -1))
        return self.projection(features), self.shift(features)


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.short: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.short = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = nnf.relu(self.norm1(self.conv1(x)))
        return nnf.relu(self.norm2(self.conv2(y)) + self.short(x))
