# SPDX-License-Identifier: Apache-2.0
"""What the operators are measured against: the best simple form, and what a user would pick."""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from compiled import compiled
from torch import Tensor


def _unpruned(x: Tensor, k: int, start: int, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    n, d = x.shape
    reach2 = torch.empty(n, dtype=kind)
    picks = torch.empty(k, dtype=torch.int64)
    # A rival gets every advantage: its loop is compiled for this very machine.
    library = compiled("unpruned.cpp")
    run = library.kcenter_float32 if kind == torch.float32 else library.kcenter_float64
    sizes = [ctypes.c_int64(value) for value in (n, d, k, start)]
    run(
        ctypes.c_void_p(x.data_ptr()),
        *sizes,
        *(ctypes.c_void_p(t.data_ptr()) for t in (reach2, picks)),
        ctypes.c_int(torch.get_num_threads()),
    )
    return picks, reach2


def kcenter_unpruned(x: Tensor, k: int, start: int = 0) -> Tensor:
    """The fused loop in float32; the same work for every pick."""
    return _unpruned(x, k, start, torch.float32)[0]


def kcenter_reference(x: Tensor, k: int, start: int = 0) -> Tensor:
    """The fused loop in float64: decides which picks are right."""
    return _unpruned(x, k, start, torch.float64)[0]


def kcenter_anomalib(x: Tensor, k: int, start: int = 0) -> Tensor:
    """The loop of anomalib 2.7's ``KCenterGreedy``, on rows as they are, without its progress bar.

    Restated: the norm of all differences as a column, the minimum with the one before, the
    maximum, the chosen row set to zero.
    """
    nearest: Tensor | None = None
    pick = torch.tensor(start)
    picks = [pick]
    for _ in range(k - 1):
        gap = torch.linalg.norm(x - x[pick], ord=2, dim=1, keepdim=True)
        nearest = gap if nearest is None else torch.minimum(nearest, gap)
        pick = nearest.squeeze(1).max(dim=0).indices
        nearest.scatter_(0, pick.view(1, 1), 0.0)
        picks.append(pick)
    return torch.stack(picks)


def nearest_addmm(q: Tensor, bank: Tensor, norm2: Tensor) -> tuple[Tensor, Tensor]:
    """|b|^2 - 2 q.b in blocks of queries, minimum, + |q|^2: torch's best form, and its rounding."""
    found = [torch.addmm(norm2, part, bank.T, alpha=-2).min(1) for part in q.split(1024)]
    dist2 = torch.cat([one.values for one in found]) + q.square().sum(1)
    return dist2, torch.cat([one.indices for one in found])


def nearest_cdist(q: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """``cdist`` in blocks of queries, and the minimum."""
    found = [torch.cdist(part, bank).min(1) for part in q.split(1024)]
    dist2 = torch.cat([one.values for one in found]).square()
    return dist2, torch.cat([one.indices for one in found])


def nearest_anomalib(q: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """The search of anomalib 2.7's ``PatchcoreModel``, in blocks of queries.

    Restated: squared norms, product, root of what is not below zero, minimum.
    """
    found = []
    for part in q.split(1024):
        dist = torch.matmul(part, bank.T).mul_(-2)
        dist.add_(part.pow(2).sum(1, keepdim=True)).add_(bank.pow(2).sum(1))
        found.append(dist.clamp_min_(0).sqrt_().min(1))
    return torch.cat([one.values for one in found]).square(), torch.cat([o.indices for o in found])


def filter_conv2d(x: Tensor, weight: Tensor, share: Tensor) -> Tensor:
    """A depthwise convolution, ``weight [c, 1, k, k]`` in the layout of ``x``, renormalised."""
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1]).mul_(share)


def filter_conv2d_moved(x: Tensor, weight: Tensor, share: Tensor) -> Tensor:
    """The same by way of channels last, where torch's depthwise convolution is fast."""
    moved = x.contiguous(memory_format=torch.channels_last)
    return filter_conv2d(moved, weight, share).contiguous()


def filter_rfft(x: Tensor, kernel: Tensor, share: Tensor) -> Tensor:
    """All planes at once through a transform of the next fast length."""
    (h, w), reach = x.shape[-2:], kernel.shape[-1] // 2
    size = [next(m for m in range(n + reach, 2 * (n + reach) + 16) if m % 16 == 0) for n in (h, w)]
    wide = x.new_zeros(size)
    wide[: kernel.shape[0], : kernel.shape[1]] = kernel
    factor = torch.fft.rfft2(wide.roll((-reach, -reach), (0, 1)))
    product = torch.fft.rfft2(x, s=size).mul_(factor)
    return torch.fft.irfft2(product, s=size)[..., :h, :w] * share


def attention_sdpa(f: Tensor) -> Tensor:
    """torch's fused attention, one head."""
    head = f[None, None]
    return F.scaled_dot_product_attention(head, head, head, scale=1.0)[0, 0]


def attention_blocks(f: Tensor, rows: int = 1024) -> Tensor:
    """Blocks of rows, products by the BLAS that ``torch.mm`` calls."""
    return torch.cat([torch.softmax(part @ f.T, 1) @ f for part in f.split(rows)])


def attention_blocks_onednn(f: Tensor, rows: int = 512) -> Tensor:
    """The same with oneDNN's products and softmax, on its own tensors."""
    keys, values = f.to_mkldnn(), f.T.contiguous().to_mkldnn()
    found = []
    for part in f.split(rows):
        weights = torch.softmax(F.linear(part.to_mkldnn(), keys), 1)
        found.append(F.linear(weights, values).to_dense())
    return torch.cat(found)
