# SPDX-License-Identifier: Apache-2.0
"""The k-centre search on a CUDA device: one launch per pick, none of which the host waits for."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from .. import _adapt
from ..kcenter import _ENGINES, _run, op
from .picture import _ELEMENTS, frame_of

LEAF = 64  # rows of a leaf; fixed in csrc/include/fundad/kcenter_cuda.h
LEAVES_PER_BLOCK = 128
_AXES = 24  # leaves are cut along these many of the first axes
_NOWHERE = 1e15  # coordinate of what is no row: far from everything


class CudaEngine:
    """The search in CUDA C++; see csrc/include/fundad/kcenter_cuda.h."""

    lazy = True

    @staticmethod
    def memory(n: int, d: int) -> int:
        """Counted, not measured: three pictures of at most 129 float32, numbers of rows and slots,
        and steps in float64."""
        return n * (4 * d + 3 * 4 * 129 + 160) + 4 * 8 * _ELEMENTS

    def __init__(self, x: Tensor, picks: Tensor) -> None:
        self._x = x
        with torch.cuda.device_of(x):
            frame = frame_of(x, (32, 64, 96, 128))
            z = frame.take(x)
            n, width = z.shape
            self._row = leaves_of(z)
            leaves = len(self._row) // LEAF
            z = torch.cat([z, z.new_full((1, width), _NOWHERE)])
            self._z = z[self._row].view(leaves, LEAF, width).transpose(1, 2).contiguous()
            del z
            there = (self._row < n).view(leaves, LEAF)
            self._center, self._ball = _balls(self._z, there)
            slots = torch.arange(leaves * LEAF, device=x.device)
            # One place more, for all the slots that have no row.
            self._slot_of_row = slots.new_empty(n + 1).index_copy_(0, self._row, slots)
            free = there.flatten()
            self._reach2 = torch.where(free, math.inf, -1.0).double()
            self._limit2 = self._reach2.float()
            self._top2 = self._reach2.new_full((leaves,), math.inf)
            self._top_slot = slots[::LEAF].contiguous()
            blocks = -(-leaves // LEAVES_PER_BLOCK)
            self._tops = slots.new_empty(2, blocks, 3)
            self._picked = slots.new_empty(n)  # slots, in order
            self._picked[: len(picks)] = self._slot_of_row[picks.to(x.device)]
            tensors = [x, self._z, self._center, self._ball, self._row, self._reach2, self._limit2]
            tensors += [self._top2, self._top_slot, self._tops, self._picked]
            self._numbers = [t.data_ptr() for t in tensors]
            self._numbers += [x.shape[1], width - 1, leaves]
            self._scales = 1 / frame.scale, 2 * frame.slack()
            self._count = 0
            self._go(len(picks), given=True)

    def _go(self, count: int, *, given: bool) -> None:
        with torch.cuda.device_of(self._x):
            stream = _adapt.stream(self._x)
            _adapt.native().kcenter_cuda(
                *self._numbers, *self._scales, self._count, count, given, stream
            )
        self._count = count

    def advance(self, k: int) -> None:
        step = 4096  # so that Ctrl-C is heard
        for count in [*range(self._count + step, k, step), k]:
            self._go(count, given=False)

    def picks(self) -> Tensor:
        return self._row[self._picked[: self._count]]

    def radius2(self) -> Tensor:
        return self._reach2[self._slot_of_row[:-1]].clamp_min(0).float()


def leaves_of(z: Tensor) -> Tensor:
    """Sort rows into leaves of a kd-tree, each cut along the axis in which a part is widest.

    Args:
        z: ``[n, width]`` float32, ``n >= 1``.

    Returns:
        ``[leaves * LEAF]`` int64 row numbers, leaf by leaf; ``n`` stands for no row. Leaves that
        lie side by side are far apart in the result, so that no warp gets all those near a pick.
    """
    n, device = len(z), z.device
    order = torch.arange(n, device=device)
    ends = [0, n]  # of the parts; they depend on n alone
    while max(b - a for a, b in pairwise(ends)) > LEAF:
        begin = torch.tensor(ends[:-1], device=device)
        size = torch.tensor(ends, device=device).diff()
        parts = len(size)
        some = torch.arange(max(64, 2**15 // parts), device=device)
        sample = z[order[begin[:, None] + some * size[:, None] // len(some)], :_AXES]
        widest = sample.var(1, correction=0).argmax(1)
        owner = torch.arange(parts, device=device).repeat_interleave(size, output_size=n)
        by_value = z[order, widest[owner]].argsort()
        order = order[by_value[owner[by_value].argsort(stable=True)]]
        ends = _halved(ends)
    leaves = -(-n // LEAF)
    order = torch.cat([order, order.new_full((leaves * LEAF - n,), n)]).view(leaves, LEAF)
    scattered = torch.randperm(leaves, generator=torch.Generator().manual_seed(0))
    return order[scattered.to(device)].flatten()


def _halved(ends: list[int]) -> list[int]:
    """Cut every part of more than one leaf after a full number of leaves."""
    cut = [0]
    for a, b in pairwise(ends):
        leaves = -(-(b - a) // LEAF)
        cut += [a + leaves // 2 * LEAF, b] if leaves > 1 else [b]
    return cut


def _balls(z: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Centres ``[width, leaves]`` and radii ``[leaves]`` of leaves ``z [leaves, width, LEAF]``."""
    leaves, width, _ = z.shape
    center, ball = z.new_empty(width, leaves), z.new_empty(leaves)
    for first in range(0, leaves, 4096):
        part = slice(first, first + 4096)
        real = there[part, None]
        rows = z[part].double()
        mean = (rows * real).sum(2) / real.sum(2)
        center[:, part] = mean.T
        away2 = (rows - center[:, part].T[:, :, None]).square_().sum(1)
        ball[part] = torch.where(real[:, 0], away2, 0).amax(1).sqrt() * (1 + 1e-6)
    return center, ball


_ENGINES["cuda"] = CudaEngine


@op.backend("cuda", lambda x, k, start: _adapt.no_cuda(x))
def _cuda(x: Tensor, k: int, start: int) -> tuple[Tensor, Tensor]:
    return _run(CudaEngine, x, k, start)
