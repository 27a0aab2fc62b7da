# SPDX-License-Identifier: Apache-2.0
"""The radial filter in one pass: every value is read once per column of the kernel, all sums of a
column of the map stay in registers.

A thread goes down one column of one channel. At each row of the map it folds the values left and
right of it, which share their weights, and so has what this row adds to the rows above and below;
rows at equal distance share that too. The sums of the rows in reach form a ring in registers; the
one whose last row has been met is written. That is a quarter of the multiplications, and no
tensor core could do the rest in float32.
"""

# Tuples that grow are Triton's, not Python's.
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from . import tuned


@triton.jit
def _correlate(
    x, out, share_in, share_out, channels, h, w, out_h, out_w, before,
    x_b, x_c, x_y, x_x, o_b, o_c, o_y, o_x,
    WEIGHTS: tl.constexpr, WIDTH: tl.constexpr, MIRROR: tl.constexpr, ROWS: tl.constexpr,
    BX: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``out[y, x] = Σ WEIGHTS[i, j] x[y + i - before, x + j - before]`` for a block of columns.

    ``WEIGHTS`` has the upper left quarter of a kernel that is symmetric in both axes.
    """
    HALF: tl.constexpr = (WIDTH + 1) // 2
    blocks = (out_w + BX - 1) // BX
    column = ((tl.program_id(0) % blocks) * BX + tl.arange(0, BX))[:, None]
    top = (tl.program_id(0) // blocks) * ROWS
    bottom = tl.minimum(top + ROWS, out_h)
    channel = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    is_channel = channel < channels
    is_out = (column < out_w) & is_channel
    image = tl.program_id(2).to(tl.int64)
    x_at = x + image * x_b + channel.to(tl.int64) * x_c
    o_at = out + image * o_b + channel.to(tl.int64) * o_c + column.to(tl.int64) * o_x
    after = WIDTH - 1 - before
    # A row of the map adds to the rows from `after` before it to `before` after it.
    first, last = top - before, bottom + after
    high, wide = tl.maximum(2 * h - 2, 1), tl.maximum(2 * w - 2, 1)  # periods of the mirrored map
    if not MIRROR:
        first, last = tl.maximum(first, 0), tl.minimum(last, h)
    ring = ()
    for _ in tl.static_range(WIDTH - 1):
        ring = ring + (tl.full([BX, BC], 0, tl.float32),)
    for y in range(first, last):
        row = tl.to_tensor(y)
        if MIRROR:
            row = (row % high + high) % high
            row = tl.where(row < h, row, high - row)
        row_at = x_at + row.to(tl.int64) * x_y
        folded = ()
        for j in tl.static_range(HALF):
            value = tl.full([BX, BC], 0, tl.float32)
            for side in tl.static_range(2 if 2 * j + 1 < WIDTH else 1):
                at = column + ((WIDTH - 1 - j if side else j) - before)
                if MIRROR:
                    at = (at % wide + wide) % wide
                    at = tl.where(at < w, at, wide - at)
                inside = is_channel & (at >= 0) & (at < w)
                tap = tl.load(row_at + at * x_x, inside, 0.0).to(tl.float32)
                if share_in is not None:
                    tap *= tl.load(share_in + row * w + at, (at >= 0) & (at < w), 0.0)
                value += tap
            folded = folded + (value,)
        parts = ()
        for i in tl.static_range(HALF):
            part = tl.full([BX, BC], 0, tl.float32)
            for j in tl.static_range(HALF):
                if WEIGHTS[i * HALF + j] != 0:  # a tap without weight spreads no NaN
                    part = tl.fma(folded[j], WEIGHTS[i * HALF + j], part)
            parts = parts + (part,)
        done = ring[0] + parts[0]
        turned = ()
        for i in tl.static_range(1, WIDTH - 1):
            turned = turned + (ring[i] + parts[i if i < HALF else WIDTH - 1 - i],)
        ring = turned + (parts[0],)
        _write(o_at, share_out, done, y - after, column, is_out, top, bottom, out_w, o_y)
    for i in tl.static_range(WIDTH - 1):
        _write(o_at, share_out, ring[i], last - after + i, column, is_out, top, bottom, out_w, o_y)


@triton.jit
def _write(o_at, share_out, value, row, column, is_out, top, bottom, out_w, o_y):
    """One finished row, if it is this program's."""
    row = tl.to_tensor(row).to(tl.int64)
    if (row >= top) & (row < bottom):
        if share_out is not None:
            value *= tl.load(share_out + row * out_w + column, column < out_w, 0.0)
        tl.store(o_at + row * o_y, value.to(o_at.dtype.element_ty), is_out)


def correlate(
    x: Tensor,
    kernel: NDArray[np.float64],
    before: int,
    *,
    mirror: bool = False,
    grow: int = 0,
    share_in: Tensor | None = None,
    share_out: Tensor | None = None,
) -> Tensor:
    """Correlate every plane with a kernel that is symmetric in both axes.

    Args:
        x: ``[b, c, h, w]``, not empty, float16, bfloat16 or float32, with any strides.
        kernel: ``[k, k]``, not too wide for its ring to fit in the registers of a thread.
        before: how many of its taps come before the cell itself; more if ``grow`` asks for cells
            before the first.
        mirror: whether cells outside mirror the map; else they are zero.
        grow: by how many cells the result is larger than ``x`` in both axes.
        share_in, share_out: ``[h, w]`` float32 factors of the cells that are read, or written.

    Returns:
        ``[b, c, h + grow, w + grow]``: of the type and layout of ``x``, or contiguous float32 if it
        grows.
    """
    b, c, h, w = x.shape
    if len(kernel) == 1:  # the ring has no place for it
        kernel, before = np.pad(kernel, 1), before + 1
    half = (len(kernel) + 1) // 2
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    if grow:
        out = x.new_empty(b, c, h + grow, w + grow, dtype=torch.float32)
    else:
        form = torch.channels_last if last else torch.contiguous_format
        out = torch.empty_like(x, memory_format=form)
    table = tuned.config("distance_filter", "channels last" if last else "planes")
    rows = table["rows"] or out.shape[2]
    blocks = triton.cdiv(out.shape[3], table["columns"]) * triton.cdiv(out.shape[2], rows)
    _correlate[(blocks, triton.cdiv(c, table["channels"]), b)](
        x, out, share_in, share_out, c, h, w, *out.shape[2:], before, *x.stride(), *out.stride(),
        WEIGHTS=tuple(kernel[:half, :half].flatten().tolist()), WIDTH=len(kernel), MIRROR=mirror,
        ROWS=rows, BX=table["columns"], BC=table["channels"], num_warps=table["warps"],
    )  # fmt: skip
    return out
