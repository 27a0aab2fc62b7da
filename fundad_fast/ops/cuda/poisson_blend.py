# SPDX-License-Identifier: Apache-2.0
"""Poisson editing of a ragged batch on a CUDA device: nine launches, however many boxes."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from .. import _adapt
from ..poisson_blend import op

THREADS, ROWS, COLUMNS = 128, 32, 64  # fixed in csrc/include/fundad/poisson_blend_cuda.h
_AXES = 3

Box = tuple[Tensor, Tensor, Tensor]


def _why_not(target: list[Tensor], source: list[Tensor], mask: list[Tensor]) -> str | None:
    most = max((m.dim() for m in mask), default=0)
    if most > _AXES:
        return f"a box has {most} spatial axes, the kernels know up to {_AXES}"
    return _adapt.no_cuda(target, source, mask)


@op.backend("cuda", _why_not)
def _cuda(target: list[Tensor], source: list[Tensor], mask: list[Tensor]) -> list[Tensor]:
    out: list[Tensor | None] = [None] * len(target)
    groups: dict[torch.dtype, list[int]] = {}
    for i, (t, m) in enumerate(zip(target, mask, strict=True)):
        if t.numel() == 0 or min(m.shape) < 3:
            out[i] = t.clone(memory_format=torch.contiguous_format)
        else:
            groups.setdefault(torch.promote_types(t.dtype, torch.float32), []).append(i)
    for wide, members in groups.items():
        boxes = [
            (
                target[i].to(wide).contiguous(),
                source[i].to(wide).contiguous(),
                mask[i].contiguous(),
            )
            for i in members
        ]
        with torch.cuda.device_of(boxes[0][0]):
            for i, blended in zip(members, _blend(boxes), strict=True):
                out[i] = blended.to(target[i].dtype)
    return [t for t in out if t is not None]


def _blend(boxes: list[Box]) -> list[Tensor]:
    """Boxes of one type, each with an inside; half of them at a time where memory runs out."""
    try:
        return _solve(boxes)
    except torch.cuda.OutOfMemoryError:
        if len(boxes) == 1:
            raise
    half = len(boxes) // 2
    return _blend(boxes[:half]) + _blend(boxes[half:])


def _solve(boxes: list[Box]) -> list[Tensor]:
    like = boxes[0][0]
    out = [torch.empty_like(target) for target, _, _ in boxes]
    tables = _Offsets()
    work = 0
    rows: list[int] = []
    blocks: list[list[int]] = [[] for _ in range(2 + _AXES)]
    for (target, source, mask), to in zip(boxes, out, strict=True):
        c, axes = len(target), mask.dim()
        first = _AXES - axes
        size = [1] * first + list(mask.shape)
        inside = [1] * first + [n - 2 for n in mask.shape]
        cells = c * math.prod(inside)
        rows += [target.data_ptr(), source.data_ptr(), mask.data_ptr(), to.data_ptr(), c, *size]
        rows += [first, work, *(tables.of(n) if a >= first else 0 for a, n in enumerate(inside))]
        rows += [0] * 3
        work += cells
        blocks[0].append(-(-cells // THREADS))
        blocks[1].append(-(-target.numel() // THREADS))
        for axis, n in enumerate(inside):
            tiles = -(-n // ROWS) * -(-(cells // n) // COLUMNS)
            blocks[2 + axis].append(tiles if axis >= first else 0)
    starts = [[0, *itertools.accumulate(some)] for some in blocks]
    parts = [rows, *starts, list(tables.at), list(tables.at.values())]
    facts = torch.tensor(list(itertools.chain(*parts))).to(like.device, non_blocking=True)
    places = [facts.data_ptr() + 8 * at for at in itertools.accumulate(map(len, parts), initial=0)]
    table, areas = like.new_empty(tables.end), like.new_empty(2, work)
    _adapt.native().poisson_blend_cuda(
        *(places[0], len(boxes), *places[1:6], *(some[-1] for some in starts)),
        *(places[6], places[7], len(tables.at), table.data_ptr()),
        *(areas[0].data_ptr(), areas[1].data_ptr(), like.dtype == torch.float64),
        _adapt.stream(like),
    )
    return out


class _Offsets:
    """Where the table of each length begins; one for all axes of the same length."""

    def __init__(self) -> None:
        self.at: dict[int, int] = {}
        self.end = 0

    def of(self, n: int) -> int:
        if n not in self.at:
            self.at[n] = self.end
            self.end += 3 * n + 2  # 2 (n + 1) sines and n eigenvalues
        return self.at[n]
