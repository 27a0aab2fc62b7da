# SPDX-License-Identifier: Apache-2.0
"""A memory of healthy features between an encoder and a decoder."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

Address = Literal["dot", "cosine"]

_EPS = 1e-12  # as in MemAE's public code


def hard_shrink(weights: Tensor, threshold: float) -> Tensor:
    """Address weights without the small ones, summing to 1 again along the last axis.

    Weights at or below the threshold become 0: w ← max(w-λ, 0)·w / (|w-λ| + ε), then w ← w / Σw.
    Where that leaves none, the largest alone is kept (the first of equals), so that a position
    always reads something; our rule, MemAE's code would read zeros there.

    Args:
        weights: ``[..., slots]``, not negative, summing to 1.
        threshold: λ; 0 changes nothing.

    Source: Gong et al. 2019 (MemAE), eq. 6-7; METHODS.md E.3.
    """
    if threshold <= 0:
        return weights
    over = weights - threshold
    kept = over.clamp_min(0) * weights / (over.abs() + _EPS)
    largest = nnf.one_hot(weights.argmax(-1), weights.shape[-1]).to(weights)
    kept = torch.where((over > 0).any(-1, keepdim=True), kept, weights * largest)
    return kept / kept.sum(-1, keepdim=True).clamp_min(_EPS)


def address_entropy(weights: Tensor) -> Tensor:
    """-Σ w·log w along the last axis, ``[..., slots]`` to ``[...]``; 0 where one slot has it all.

    Source: MemAE eq. 9.
    """
    return -(weights * (weights + _EPS).log()).sum(-1)


class Memory(nn.Module):
    """Replaces each feature by a mixture of slots that were learned from healthy images.

    What is read is made of slots alone, so features unlike those of healthy images are lost.
    Source: MemAE (Gong et al. 2019); METHODS.md E.3. Slots start uniform in ±1/√channels.

    Args:
        channels: of the features that address it.
        slots: N.
        shrink: λ·N of :func:`hard_shrink`, that is in units of an even weight; 0 for none. MemAE
            recommends 1 to 3.
        address: ``dot``, MemAE's code, or ``cosine``, its paper; the softmax is over that.
        values: channels of a second vector per slot that is read in place of the first (keys and
            values), or ``None``; our option.
    """

    def __init__(
        self,
        channels: int,
        slots: int,
        *,
        shrink: float = 2.0,
        address: Address = "dot",
        values: int | None = None,
    ) -> None:
        super().__init__()
        self.threshold, self.address = shrink / slots, address
        bound = channels**-0.5
        self.keys = nn.Parameter(torch.empty(slots, channels).uniform_(-bound, bound))
        self.values: nn.Parameter | None = None
        if values is not None:
            bound = values**-0.5
            self.values = nn.Parameter(torch.empty(slots, values).uniform_(-bound, bound))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``[b, channels, h, w]`` to what is read, ``[b, c, h, w]``, and weights ``[b, h, w, n]``.

        Weights are those after shrinking; they sum to 1 over the n slots.
        """
        features: Tensor = z.movedim(1, -1)
        keys: Tensor = self.keys
        if self.address == "cosine":
            features, keys = nnf.normalize(features, dim=-1), nnf.normalize(keys, dim=-1)
        weights = hard_shrink((features @ keys.T).float().softmax(-1), self.threshold)
        read = weights @ (self.keys if self.values is None else self.values).float()
        return read.movedim(-1, 1).to(z.dtype), weights
