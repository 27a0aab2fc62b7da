# SPDX-License-Identifier: Apache-2.0
"""The Triton forms as backends of their operators.

They come last in the order of preference: none has been measured on a GPU yet, and the interpreter
is for tests. Ask for them with ``FUNDAD_BACKEND=triton``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .. import _adapt, distance_kernel
from ..distance_filter import _layout
from ..distance_filter import op as filter_op
from ..nearest import op as nearest_op
from ..nearest_bank import check_finite
from ..poisson_blend import _eigenvalues, _sines
from ..poisson_blend import op as poisson_op
from ..self_attention import _unit_rows
from ..self_attention import op as attention_op
from .availability import no_triton

WIDEST = 33  # taps a side of a filter; a thread keeps as many sums in its registers
MOST_NEAR = 1024  # neighbours of a query; a program keeps them in its registers
MOST_AXES = 3


def no_filter(x: Tensor, radius: float, support: str, *options: Any) -> str | None:
    if x.dtype == torch.float64:
        return "x is float64, and the Triton form sums in float32"
    width = radius if support == "size" else 2 * math.floor(radius) + 1
    if width > WIDEST:
        return f"the kernel is {width:.0f} taps wide, and the Triton form takes up to {WIDEST}"
    return no_triton(x)


@filter_op.backend("triton", no_filter)
def filter_planes(
    x: Tensor,
    radius: float,
    support: str,
    distance: str,
    profile: str,
    gain: str,
    border: str,
    adjoint: bool,
) -> Tensor:
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=_layout(x))
    from .distance_filter import correlate

    options = (radius, support, distance, profile, gain)
    kernel, before = distance_kernel.radial_kernel(*options)
    around = len(kernel) - 1
    after, (h, w) = around - before, x.shape[-2:]
    with torch.cuda.device_of(x):
        if border == "reflect" and adjoint:
            # What a cell outside read has to be given back to the cell that it mirrors.
            rows, columns = (
                distance_kernel.mirror(torch.arange(-before, n + after, device=x.device), n)
                for n in (h, w)
            )
            wide = correlate(x, kernel, around, grow=around)
            folded = wide.new_zeros(*wide.shape[:2], h, wide.shape[3]).index_add_(2, rows, wide)
            out = wide.new_zeros(x.shape).index_add_(3, columns, folded)
            return out.to(x.dtype).contiguous(memory_format=_layout(x))
        share = None
        if border == "renormalise":
            inside = torch.from_numpy(1 / distance_kernel.weight_inside(options, h, w))
            share = inside.to(x.device, torch.float32).contiguous()
        if adjoint:
            return correlate(x, kernel, after, share_in=share)
        return correlate(x, kernel, before, mirror=border == "reflect", share_out=share)


def no_attention(f: Tensor, *options: Any) -> str | None:
    if f.dtype == torch.float64:
        return "f is float64, and the Triton form computes in float32"
    return no_triton(f)


@attention_op.backend("triton", no_attention)
def attend(f: Tensor, scale: float, norm: str, reading: str) -> Tensor:
    from .self_attention import self_attention

    f = f.contiguous()
    if f.numel() == 0:
        return torch.empty_like(f)
    keys = _unit_rows(f.float())[0] if norm == "l2" else f
    with torch.cuda.device_of(f):
        return self_attention(f, keys, scale, reading)


# The bank that the caller keeps alive is the key, so that this goes when it goes.
_banks = WeakIdKeyDictionary()


def no_search(q: Tensor, bank: Tensor, k: int, prepared: Sequence[Tensor]) -> str | None:
    if k > MOST_NEAR:
        return f"k = {k}, and the Triton form keeps up to {MOST_NEAR} neighbours"
    return no_triton(q, bank)


@nearest_op.backend("triton", no_search)
def search(q: Tensor, bank: Tensor, k: int, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    from . import nearest as kernels

    rows = _adapt.dense(bank)
    with torch.cuda.device_of(q):
        version = _adapt.version(bank)
        before, made = _banks.get(bank, (None, None))
        if made is None or version is None or version != before:
            if not prepared:
                check_finite(rows)
            made = kernels.prepare(rows)
            _banks[bank] = version, made
        return kernels.search(_adapt.dense(q), rows, made, k)


def no_blend(target: list[Tensor], source: list[Tensor], mask: list[Tensor]) -> str | None:
    for box in target:
        if box.dtype == torch.float64:
            return "a box is float64, and the Triton form computes in float32"
        if box.dim() - 1 > MOST_AXES:
            return f"a box has {box.dim() - 1} axes, and the Triton form takes up to {MOST_AXES}"
    return no_triton(target, source, mask)


@poisson_op.backend("triton", no_blend)
def blend(target: list[Tensor], source: list[Tensor], mask: list[Tensor]) -> list[Tensor]:
    from .poisson_blend import blend as run

    done: dict[int, Tensor] = {}
    types: dict[torch.dtype, list[int]] = {}
    for i, box in enumerate(target):
        if box.shape[0] == 0 or min(box.shape[1:]) < 3:
            done[i] = box.clone(memory_format=torch.contiguous_format)
        else:
            types.setdefault(box.dtype, []).append(i)
    for some in types.values():
        device = target[some[0]].device
        t, s, m = ([boxes[i] for i in some] for boxes in (target, source, mask))
        with torch.cuda.device_of(t[0]):
            blended = run(
                t,
                s,
                m,
                sines=functools.partial(_sines, dtype=torch.float32, device=device),
                eigenvalues=functools.partial(_eigenvalues, dtype=torch.float32, device=device),
            )
        done.update(zip(some, blended, strict=True))
    return [done[i] for i in range(len(target))]
