# SPDX-License-Identifier: Apache-2.0
"""Attention whose head is too wide for a program to hold a row of the result.

FlashAttention keeps the sums of its rows in registers, and stops at 256 features; here there are
1536. So the weights of some rows, a panel, are written down between the two products:

1. ``_weights``: a tile of logits, summed over blocks of features, becomes exponentials below the
   largest of each of its rows; the tile's largest logits and sums are kept.
2. ``_mix``: the panel times the values; each tile is put right by a factor per row, as in online
   softmax, so that no logit is computed twice and nothing but the panel grows with n.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import availability, tuned
from .availability import interpreted


@triton.jit
def _weights(
    keys, panel, tile_max, tile_sum, diagonal, row_max, row_share, n, d, lo, rows, tiles, scale,
    KIND: tl.constexpr, WIDEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of logits of the rows ``lo ... lo + rows`` and what its ``KIND`` makes of it.

    ``row``: exponentials below the tile's own maximum, their sums, and the maximum. ``statistics``:
    the last two and the diagonal. ``column`` and ``sum``: Aᵀ, or its sums, from what is known of
    the rows of A; G is symmetric, so that its columns are its rows.
    """
    image = tl.program_id(2).to(tl.int64)
    mine = tl.program_id(0) * BM + tl.arange(0, BM)  # in the panel
    query, key = lo + mine, tl.program_id(1) * BN + tl.arange(0, BN)
    is_query, is_key = mine < rows, key < n
    lane = tl.arange(0, BD)
    base = keys + image * n * d
    q_at = base + query.to(tl.int64)[:, None] * d + lane[None, :]
    k_at = base + key.to(tl.int64)[None, :] * d + lane[:, None]
    logit = tl.full([BM, BN], 0, tl.float32)
    for first in range(0, d, BD):
        is_lane = first + lane < d
        some = tl.load(q_at + first, is_query[:, None] & is_lane[None, :], 0.0)
        others = tl.load(k_at + first, is_key[None, :] & is_lane[:, None], 0.0)
        if WIDEN:
            some, others = some.to(tl.float32), others.to(tl.float32)
        logit = tl.dot(some, others, logit, input_precision=PRECISION)
    logit *= scale
    both = is_query[:, None] & is_key[None, :]
    at_panel = panel + (image * rows + mine)[:, None] * n + key[None, :]
    at_tile = (image * rows + mine) * tiles + tl.program_id(1)
    if KIND == "row" or KIND == "statistics":
        if KIND == "statistics":
            on_it = both & (query[:, None] == key[None, :])
            tl.store(diagonal + image * n + query[:, None] + 0 * key[None, :], logit, on_it)
        logit = tl.where(is_key[None, :], logit, -float("inf"))
        largest = tl.max(logit, 1)
        weight = tl.exp(logit - largest[:, None])
        tl.store(tile_max + at_tile, largest, is_query)
        tl.store(tile_sum + at_tile, tl.sum(weight, 1), is_query)
    else:
        largest = tl.load(row_max + image * n + key, is_key, 0.0)
        share = tl.load(row_share + image * n + key, is_key, 0.0)
        weight = tl.exp(logit - largest[None, :]) * share[None, :]
        if KIND == "sum":
            tl.store(tile_sum + at_tile, tl.sum(tl.where(both, weight, 0.0), 1), is_query)
    if KIND == "row" or KIND == "column":
        tl.store(at_panel, weight.to(panel.dtype.element_ty), both)


@triton.jit
def _mix(
    panel, factor, values, out, n, d, lo, rows, tiles, step_n, step_d,
    TILE: tl.constexpr, FACTOR: tl.constexpr, SPLIT: tl.constexpr, WIDEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``out = (factor · panel) values`` for the rows ``lo ... lo + rows``.

    ``SPLIT``: float32 weights meet 16-bit values as the sum of two 16-bit numbers. ``WIDEN``: 16
    bits become float32 before a product; the interpreter cannot multiply bfloat16.
    """
    image = tl.program_id(2).to(tl.int64)
    mine, lane = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BD + tl.arange(0, BD)
    is_query, is_lane = mine < rows, lane < d
    place = tl.arange(0, BN)
    p_at = panel + (image * rows + mine)[:, None] * n + place[None, :]
    v_at = (
        values + image * n * d + place.to(tl.int64)[:, None] * step_n
        + lane.to(tl.int64)[None, :] * step_d
    )  # fmt: skip
    total = tl.full([BM, BD], 0, tl.float32)
    for first in range(0, n, BN):
        is_key = first + place < n
        weight = tl.load(p_at + first, is_query[:, None] & is_key[None, :], 0.0)
        value = tl.load(v_at, is_key[:, None] & is_lane[None, :], 0.0)
        v_at += BN * step_n
        if FACTOR:
            at = (image * rows + mine) * tiles + first // TILE
            weight = weight.to(tl.float32) * tl.load(factor + at, is_query, 0.0)[:, None]
        high = weight.to(value.dtype)
        low = (weight.to(tl.float32) - high.to(tl.float32)).to(value.dtype)
        if WIDEN:
            high, low, value = high.to(tl.float32), low.to(tl.float32), value.to(tl.float32)
        if SPLIT:
            total = tl.dot(low, value, total, input_precision=PRECISION)
        total = tl.dot(high, value, total, input_precision=PRECISION)
    at = out + (image * n + lo + mine)[:, None] * d + lane[None, :]
    tl.store(at, total.to(out.dtype.element_ty), is_query[:, None] & is_lane[None, :])


def self_attention(f: Tensor, keys: Tensor, scale: float, reading: str) -> Tensor:
    """See :func:`fundad_fast.ops.self_attention`.

    Args:
        f: ``[b, n, d]`` contiguous float16, bfloat16 or float32, not empty: the values.
        keys: the same, or rows of length 1 in float32.
    """
    out = torch.empty_like(f)
    n = f.shape[1]
    settings = {
        "weights": tuned.config("self_attention", f"weights {_width(keys.dtype)}"),
        "mix": tuned.config("self_attention", mix_class(f)),
    }
    rows = min(n, settings["mix"]["panel_rows"])
    images = max(1, settings["mix"]["panel"] // (rows * n))
    for first in range(0, len(f), images):
        part = slice(first, first + images)
        _some(f[part], keys[part], scale, reading, rows, settings, out[part])
    return out


def _width(dtype: torch.dtype) -> str:
    return "float32" if dtype == torch.float32 else "16 bit"


def mix_class(f: Tensor) -> str:
    """The shape class of the second product of a map."""
    # 128 sums a thread leave too few of the registers of 8.0, whose products take both factors from
    # there: 1,048 bytes lay in memory (triton 3.9).
    older = f.dtype != torch.float32 and availability.before_hopper(f.device)
    return f"mix {_width(f.dtype)}{' before 9.0' if older else ''}"


def _some(
    f: Tensor,
    keys: Tensor,
    scale: float,
    reading: str,
    rows: int,
    settings: dict[str, dict[str, Any]],
    out: Tensor,
) -> None:
    """A few maps, all of whose panels exist at once."""
    b, n, d = f.shape
    first, then = settings["weights"], settings["mix"]
    short = f.dtype != torch.float32
    split = short and then["split_weights"]
    tile = first["keys"]
    tiles = triton.cdiv(n, tile)
    statistics = [f.new_empty(b, rows, tiles, dtype=torch.float32) for _ in range(2)]
    of_rows = [f.new_empty(b, n, dtype=torch.float32) for _ in range(3)]
    row_max, row_share, diagonal = of_rows
    panel = f.new_empty(
        (b, rows, n) if reading in ("row", "column") else (1,),
        dtype=f.dtype if short and not split else torch.float32,
    )
    # TF32 products want both factors with the summed index innermost.
    values = f if short else f.mT.contiguous()
    steps = (d, 1) if short else (1, n)

    def weights(kind: str, lo: int, count: int) -> tuple[Tensor, Tensor]:
        largest, total = (
            t.flatten()[: b * count * tiles].view(b, count, tiles) for t in statistics
        )
        _weights[(triton.cdiv(count, first["queries"]), tiles, b)](
            keys, panel, largest, total, diagonal, row_max, row_share, n, d, lo, count, tiles,
            scale, KIND=kind, WIDEN=interpreted(), BM=first["queries"], BN=tile,
            BD=first["features"], PRECISION=first["precision"],
            num_warps=first["warps"], num_stages=first["stages"],
        )  # fmt: skip
        return largest, total

    def mix(factor: Tensor | None, lo: int, count: int) -> None:
        block = then["mix_features"]
        _mix[(triton.cdiv(count, then["mix_queries"]), triton.cdiv(d, block), b)](
            panel, factor, values, out, n, d, lo, count, tiles, *steps, TILE=tile,
            FACTOR=factor is not None, SPLIT=split, WIDEN=interpreted(), BM=then["mix_queries"],
            BN=then["mix_keys"], BD=block, PRECISION=then["precision"],
            num_warps=then["mix_warps"], num_stages=then["mix_stages"],
        )  # fmt: skip

    panels = [(lo, min(rows, n - lo)) for lo in range(0, n, rows)]
    if reading == "row":
        for lo, count in panels:
            largest, total = weights("row", lo, count)
            factor = (largest - largest.amax(2, keepdim=True)).exp_()
            mix(factor / (factor * total).sum(2, keepdim=True), lo, count)
        return
    for lo, count in panels:
        largest, total = weights("statistics", lo, count)
        top = largest.amax(2)
        row_max[:, lo : lo + count] = top
        row_share[:, lo : lo + count] = ((largest - top[..., None]).exp() * total).sum(2)
    row_share.reciprocal_()
    if reading == "hadamard_diag":
        out.copy_(((diagonal - row_max).exp() * row_share)[..., None] * f)
        return
    for lo, count in panels:
        if reading == "column":
            weights("column", lo, count)
            mix(None, lo, count)
        else:
            share = weights("sum", lo, count)[1].sum(2, keepdim=True)
            out[:, lo : lo + count] = share * f[:, lo : lo + count]
