# SPDX-License-Identifier: Apache-2.0
"""From images to ReSAD's combined features: F, its region part R and its spatial part P."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from .. import ops
from ..backbones import Backbone
from .config import MemoryBankConfig


class CombinedFeatures(nn.Module):
    """C = the sum of the wanted terms among F, R = ψ_r(F) and P = attention(F), per map cell.

    Source: ReSAD, eq. 2 to 5. With the term F alone and 3×3 pooling these
    are PatchCore's locally aware patch features.
    """

    def __init__(self, backbone: Backbone, config: MemoryBankConfig) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config

    @property
    def dim(self) -> int:
        return sum(self.backbone.channels)

    def grid(self, image_size: int) -> int:
        """Cells per side of the map: the grid of the shallowest layer."""
        return -(-image_size // self.backbone.reduction[0])

    def radius(self, cells: int) -> int:
        """Radius of ψ_r in cells, for a map that is ``cells`` wide."""
        fraction = self.config.radius_fraction
        return self.config.radius if fraction is None else max(1, round(fraction * cells))

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """``image [b, 1 or 3, s, s]`` in [0, 1] to ``C [b, g, g, d]`` float32."""
        if image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        c = self.config
        if c.backbone_dtype == "float32":
            levels = self.backbone(image)
        else:
            with torch.autocast(image.device.type, getattr(torch, c.backbone_dtype)):
                levels = [level.float() for level in self.backbone(image)]
        f = self.multilevel(levels)
        b, d, h, w = f.shape
        rows = f.permute(0, 2, 3, 1).reshape(b, h * w, d)
        total: Tensor | None = None
        for term in c.combination:
            if term == "F":
                part = rows
            elif term == "R":
                region = ops.distance_filter(
                    f,
                    self.radius(w),
                    support=c.filter_support,
                    distance=c.filter_distance,
                    profile=c.filter_profile,
                    gain=c.filter_gain,
                    border=c.filter_border,
                )
                part = region.permute(0, 2, 3, 1).reshape(b, h * w, d)
            else:
                scale = d**-0.5 if c.attn_scale == "rsqrt_c" else float(c.attn_scale)
                part = ops.self_attention(rows, scale, c.attn_norm, c.attn_reading)
            if total is None:
                total = part
            elif total is rows:  # F itself, which later terms are made of
                total = total + part
            else:
                total.add_(part)  # one pass over C, and no second one in memory
        assert total is not None
        return total.view(b, h, w, d)

    def multilevel(self, levels: list[Tensor]) -> Tensor:
        """F = concat of the layers, the deeper ones scaled up to the first's grid (eq. 2)."""
        if self.config.patch_pooling > 1:
            k = self.config.patch_pooling
            levels = [nnf.avg_pool2d(x, k, stride=1, padding=k // 2) for x in levels]
        size = levels[0].shape[-2:]
        if self.config.upscale == "nearest":
            rest = [nnf.interpolate(x, size, mode="nearest") for x in levels[1:]]
        else:
            rest = [
                nnf.interpolate(x, size, mode="bilinear", align_corners=False) for x in levels[1:]
            ]
        return torch.cat([levels[0], *rest], 1).contiguous(memory_format=torch.channels_last)
