# SPDX-License-Identifier: Apache-2.0
"""Poisson editing of a ragged batch: boxes of any shapes in a fixed number of launches.

A table on the device has one row of numbers and addresses per box, so that no box is copied or
padded. ``_begin`` makes the result a copy of the target and writes down the right-hand side;
``_product`` multiplies one axis of all boxes with their matrices of sines. Transforms of different
axes commute, so that the first axis, the only one that every box has, is the last one there and the
last one back: its products also divide by the eigenvalues, and add the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuned

_AXES = 3
# A box's row in the table: addresses of target, source, mask and result; channels and cells of the
# axes (1 where there is none); steps of target, source and mask; its place in the scratch memory;
# addresses of the sines and the eigenvalues of the axes.
FIELDS = 26
_ELEMENT = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit
def _begin(
    table, units, scratch, ELEMENT: tl.constexpr, BLOCK: tl.constexpr, FIELDS: tl.constexpr
):  # fmt: skip
    """Copy the target; the change of the divergence at the cells inside, as the operator's file
    defines it."""
    unit = tl.load(units + tl.program_id(0))
    box = table + (unit >> 32) * FIELDS
    target = tl.load(box).to(tl.pointer_type(ELEMENT))
    source = tl.load(box + 1).to(tl.pointer_type(ELEMENT))
    mask = tl.load(box + 2).to(tl.pointer_type(tl.int8))
    out = tl.load(box + 3).to(tl.pointer_type(ELEMENT))
    c, n0, n1, n2 = tl.load(box + 4), tl.load(box + 5), tl.load(box + 6), tl.load(box + 7)
    at = (unit & 0xFFFFFFFF) * BLOCK + tl.arange(0, BLOCK)
    exists = at < c * n0 * n1 * n2
    z, rest = at % n2, at // n2
    y, rest = rest % n1, rest // n1
    x, channel = rest % n0, rest // n0
    t_at = target + channel * tl.load(box + 8)
    t_at += x * tl.load(box + 9) + y * tl.load(box + 10) + z * tl.load(box + 11)
    s_at = source + channel * tl.load(box + 12)
    s_at += x * tl.load(box + 13) + y * tl.load(box + 14) + z * tl.load(box + 15)
    m_at = mask + x * tl.load(box + 16) + y * tl.load(box + 17) + z * tl.load(box + 18)
    t_here = tl.load(t_at, exists, 0.0)
    tl.store(out + at, t_here, exists)
    # In float64, as the reference: which difference is larger must not hang on rounding.
    t_here = t_here.to(tl.float64)
    first_1, first_2 = tl.minimum(n1 - 1, 1), tl.minimum(n2 - 1, 1)  # 0 where there is no axis
    inner = exists & (x > 0) & (x < n0 - 1) & (y >= first_1) & (y < n1 - first_1)
    inner = inner & (z >= first_2) & (z < n2 - first_2)
    s_here = tl.load(s_at, inner, 0.0).to(tl.float64)
    m_here = inner & (tl.load(m_at, inner, 0) != 0)
    total = tl.full([BLOCK], 0, tl.float64)
    for axis in tl.static_range(3):
        i = x if axis == 0 else (y if axis == 1 else z)
        for side in tl.static_range(2):
            # The difference to the next cell counts if this cell is in the mask, the one to the
            # cell before if that is; no face is. An axis that is not there has steps of 0.
            competes = m_here
            step = 1
            if side == 1:
                competes = inner & (i > 1)
                competes = competes & (tl.load(m_at - tl.load(box + 16 + axis), competes, 0) != 0)
                step = -1
            t_next = tl.load(t_at + step * tl.load(box + 9 + axis), competes, 0.0)
            s_next = tl.load(s_at + step * tl.load(box + 13 + axis), competes, 0.0)
            of_target = t_next.to(tl.float64) - t_here
            of_source = s_next.to(tl.float64) - s_here
            wanted = competes & (tl.abs(of_source) > tl.abs(of_target))
            total += tl.where(wanted, of_source - of_target, 0.0)
    m0, m1, m2 = n0 - 2, tl.maximum(n1 - 2, 1), tl.maximum(n2 - 2, 1)
    to = ((channel * m0 + x - 1) * m1 + y - first_1) * m2 + z - first_2
    tl.store(scratch + tl.load(box + 19) + to, total.to(tl.float32), inner)


@triton.jit(do_not_specialize=["half"])
def _product(
    table, units, scratch, half, AXIS: tl.constexpr, BACK: tl.constexpr, ELEMENT: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
    FIELDS: tl.constexpr,
):  # fmt: skip
    """The sine transform of one axis, from one half of the scratch memory to the other."""
    unit = tl.load(units + tl.program_id(0))
    box = table + (unit >> 32) * FIELDS
    c, n0, n1, n2 = tl.load(box + 4), tl.load(box + 5), tl.load(box + 6), tl.load(box + 7)
    m0, m1, m2 = n0 - 2, tl.maximum(n1 - 2, 1), tl.maximum(n2 - 2, 1)
    if AXIS == 0:
        outer, m, inner = c, m0, m1 * m2
    elif AXIS == 1:
        outer, m, inner = c * m0, m1, m2
    else:
        outer, m, inner = c * m0 * m1, m2, m2 * 0 + 1
    axes = 1 + tl.minimum(n1 - 1, 1) + tl.minimum(n2 - 1, 1)
    # How many products this box has behind it tells which half it is in.
    behind = axes - 1 - AXIS
    if BACK:
        behind = 2 * axes - 1 if AXIS == 0 else (axes if AXIS == 2 else 2 * axes - 2)
    start = scratch + tl.load(box + 19)
    read, write = start + (behind & 1) * half, start + (1 - (behind & 1)) * half
    columns = outer * inner
    across = (columns + BK - 1) // BK
    tile = unit & 0xFFFFFFFF
    i, column = (tile // across) * BI + tl.arange(0, BI), (tile % across) * BK + tl.arange(0, BK)
    is_i, is_column = i < m, column < columns
    lane = (column // inner) * (m * inner) + column % inner
    sines = tl.load(box + 20 + AXIS).to(tl.pointer_type(tl.float32))
    total = tl.full([BI, BK], 0, tl.float32)
    for first in range(0, m.to(tl.int32), BJ):
        j = first + tl.arange(0, BJ)
        sine = tl.load(sines + i[:, None] * m + j[None, :], is_i[:, None] & (j < m)[None, :], 0.0)
        value = tl.load(
            read + lane[None, :] + j[:, None] * inner, (j < m)[:, None] & is_column[None, :], 0.0
        )
        total = tl.dot(sine, value, total, input_precision=PRECISION)
    mask = is_i[:, None] & is_column[None, :]
    k = column % inner
    if AXIS == 0 and not BACK:
        along = tl.load(tl.load(box + 23).to(tl.pointer_type(tl.float32)) + i, is_i, 1.0)
        of_1 = tl.load(box + 24).to(tl.pointer_type(tl.float32)) + k // m2
        of_2 = tl.load(box + 25).to(tl.pointer_type(tl.float32)) + k % m2
        across_it = tl.load(of_1, is_column, 0.0) + tl.load(of_2, is_column, 0.0)
        total = total / (along[:, None] + across_it[None, :])
    if AXIS == 0 and BACK:
        x, channel = (i + 1)[:, None], (column // inner)[None, :]
        y = (k // m2 + tl.minimum(n1 - 1, 1))[None, :]
        z = (k % m2 + tl.minimum(n2 - 1, 1))[None, :]
        target = tl.load(box).to(tl.pointer_type(ELEMENT)) + channel * tl.load(box + 8)
        target += x * tl.load(box + 9) + y * tl.load(box + 10) + z * tl.load(box + 11)
        out = tl.load(box + 3).to(tl.pointer_type(ELEMENT))
        out += ((channel * n0 + x) * n1 + y) * n2 + z
        total += tl.load(target, mask, 0.0).to(tl.float32)
        tl.store(out, total.to(ELEMENT), mask)
    else:
        tl.store(write + lane[None, :] + i[:, None] * inner, total, mask)


def blend(
    target: Sequence[Tensor],
    source: Sequence[Tensor],
    mask: Sequence[Tensor],
    sines: Callable[[int], Tensor],
    eigenvalues: Callable[[int], Tensor],
) -> list[Tensor]:
    """See :func:`fundad_fast.ops.poisson_blend`.

    Args:
        target, source, mask: boxes of one type and device with an inside and up to three axes.
        sines: for n cells the orthonormal matrix of sines ``[n, n]``, float32.
        eigenvalues: for n cells the ``[n]`` eigenvalues of the second difference, float32.
    """
    out = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in target]
    device, element = target[0].device, _ELEMENT[target[0].dtype]
    config = tuned.config("poisson_blend", "any")
    block, bi, bk = config["cells"], config["rows"], config["columns"]
    nothing = torch.zeros(1, device=device)  # the eigenvalues of an axis that is not there
    kept: list[Tensor] = [nothing]  # what the addresses in the table belong to
    table: list[int] = []
    begin: list[int] = []
    tiles: list[list[int]] = [[], [], []]
    half = 0
    for number, (t, s, m, o) in enumerate(zip(target, source, mask, out, strict=True)):
        c, *n = t.shape
        more = [0] * (_AXES - len(n))
        inside = [length - 2 for length in n]
        tables = [[make(length) for length in inside] for make in (sines, eigenvalues)]
        kept += tables[0] + tables[1]
        cells = c * m.numel()
        table += [t.data_ptr(), s.data_ptr(), m.data_ptr(), o.data_ptr(), c, *n, *(1 for _ in more)]
        table += [*t.stride(), *more, *s.stride(), *more, *m.stride(), *more, half]
        table += [*(own.data_ptr() for own in tables[0]), *more]
        table += [*(own.data_ptr() for own in tables[1]), *(nothing.data_ptr() for _ in more)]
        begin += [(number << 32) + unit for unit in range(triton.cdiv(cells, block))]
        all_inside = c
        for length in inside:
            all_inside *= length
        for axis, length in enumerate(inside):
            count = triton.cdiv(length, bi) * triton.cdiv(all_inside // length, bk)
            tiles[axis] += [(number << 32) + unit for unit in range(count)]
        half += all_inside
    numbers = torch.tensor([*table, *begin, *tiles[0], *tiles[1], *tiles[2]], dtype=torch.int64)
    if device.type == "cuda":  # from pinned memory, the copy does not wait for the device
        numbers = numbers.pin_memory().to(device, non_blocking=True)
    counts = [len(table), len(begin), *map(len, tiles)]
    rows, starts, *units = numbers.split(counts)
    scratch = torch.empty(2 * half, device=device)
    _begin[(len(begin),)](rows, starts, scratch, ELEMENT=element, BLOCK=block, FIELDS=FIELDS)
    for axis, back in ((2, False), (1, False), (0, False), (2, True), (1, True), (0, True)):
        if tiles[axis]:
            _product[(len(tiles[axis]),)](
                rows, units[axis], scratch, half, AXIS=axis, BACK=back, ELEMENT=element, BI=bi,
                BJ=config["summed"], BK=bk, PRECISION=config["precision"], FIELDS=FIELDS,
                num_warps=config["warps"], num_stages=config["stages"],
            )  # fmt: skip
    return out
