# SPDX-License-Identifier: Apache-2.0
"""The nearest rows of a bank: float16 products on tensor cores rule out, float64 decides.

1. ``_round_rows``: every vector, less the bank's middle, times a power of two of its own, becomes
   float16. What rounding moved it by is measured, so that the triangle inequality bounds how far a
   distance between rounded vectors may be from the true one.
2. ``_products``: all pairs, of which only the smallest distance of each query to each tile of rows
   is kept: m·n/TILE numbers.
3. ``_decide``: a query visits tiles in the order of what they may hold, measures all rows of a tile
   by sums of squared float64 differences, and stops when no tile can hold a row that is as near as
   its k-th. Nothing is returned to the host, and no list can overflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuned

TILE = 64  # rows that stand or fall together
_BOUNDS = 2**27  # numbers that _products may keep at a time, 512 MB: fewer queries at once if more


@triton.jit
def _round_rows(
    x, center, rounded, unscale, norm, moved, n, d, BR: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """The float16 form of every vector, 1/scale, and upper bounds of two lengths."""
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    lane = tl.arange(0, BD)
    is_row = row < n
    start = row.to(tl.int64)[:, None] * d
    largest = tl.full([BR, BD], 0, tl.float32)
    for first in range(0, d, BD):
        at = first + lane[None, :]
        inside = is_row[:, None] & (at < d)
        z = tl.load(x + start + at, inside, 0.0) - tl.load(center + at, at < d, 0.0)
        largest = tl.maximum(largest, tl.where(inside, tl.abs(z), 0.0))
    # The largest coordinate comes to lie in [2^13, 2^14), which leaves the small ones their bits.
    exponent = tl.max(largest, 1).to(tl.int32, bitcast=True) >> 23
    exponent = tl.maximum(exponent, 27)
    scale = ((267 - exponent) << 23).to(tl.float32, bitcast=True)
    back = ((exponent - 13) << 23).to(tl.float32, bitcast=True)
    kept = tl.full([BR, BD], 0, tl.float32)
    lost = tl.full([BR, BD], 0, tl.float32)
    whole = tl.full([BR, BD], 0, tl.float32)
    for first in range(0, d, BD):
        at = first + lane[None, :]
        inside = is_row[:, None] & (at < d)
        z = tl.load(x + start + at, inside, 0.0) - tl.load(center + at, at < d, 0.0)
        z = tl.where(inside, z, 0.0)
        # Tensor cores may take a denormal number for zero.
        large = z * scale[:, None]
        short = tl.where(tl.abs(large) < 6.2e-5, 0.0, large).to(tl.float16)
        tl.store(rounded + start + at, short, inside)
        value = short.to(tl.float32) * back[:, None]
        kept += value * value
        lost += (z - value) * (z - value)  # the difference itself is exact
        whole += z * z
    # A sum of squares is off by fewer than d/BD + 32 roundings, and by d squares that underflowed.
    # The subtraction of the center has moved every coordinate by half a unit in its last place.
    over, none = 1 + (d / BD + 32) * 1.2e-7, d * 1.2e-38
    tl.store(unscale + row, back, is_row)
    tl.store(norm + row, tl.sqrt(tl.sum(kept, 1)) * over, is_row)
    shift = tl.sqrt(tl.sum(lost, 1) + none) + 6.0e-8 * tl.sqrt(tl.sum(whole, 1) + none)
    tl.store(moved + row, shift * over, is_row)


@triton.jit
def _products(
    q, bank, q_unscale, q_norm, b_unscale, b_norm, least, m, n, d, tiles,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The smallest squared distance between rounded vectors, for every query and tile."""
    # Neighbouring programs share rows of the bank or queries, which then come from the L2 cache.
    across, down = tl.cdiv(n, BN), tl.cdiv(m, BM)
    program = tl.program_id(0)
    band = program // (GROUP * across)
    height = tl.minimum(down - band * GROUP, GROUP)
    inside = program % (GROUP * across)
    column = inside // height
    query = (band * GROUP + inside % height) * BM + tl.arange(0, BM)
    row = column * BN + tl.arange(0, BN)
    is_query, is_row = query < m, row < n
    lane = tl.arange(0, BD)
    q_at = q + query.to(tl.int64)[:, None] * d + lane[None, :]
    b_at = bank + row.to(tl.int64)[None, :] * d + lane[:, None]
    total = tl.full([BM, BN], 0, tl.float32)
    for first in range(0, d, BD):
        is_lane = first + lane < d
        some = tl.load(q_at + first, is_query[:, None] & is_lane[None, :], 0.0)
        others = tl.load(b_at + first, is_row[None, :] & is_lane[:, None], 0.0)
        total = tl.dot(some, others, total)
    from_q = tl.load(q_unscale + query, is_query, 0.0)
    from_b = tl.load(b_unscale + row, is_row, 0.0)
    length, size = tl.load(q_norm + query, is_query, 0.0), tl.load(b_norm + row, is_row, 0.0)
    product = total * from_q[:, None] * from_b[None, :]
    dist2 = (length * length)[:, None] + (size * size)[None, :] - 2 * product
    dist2 = tl.where(dist2 < 1e36, dist2, -float("inf"))  # also NaN: nothing can be said
    dist2 = tl.where(is_row[None, :], dist2, float("inf"))
    smallest = tl.min(tl.reshape(dist2, [BM, BN // TILE, TILE]), 2)
    tile = column * (BN // TILE) + tl.arange(0, BN // TILE)
    tl.store(
        least + query.to(tl.int64)[:, None] * tiles + tile[None, :],
        smallest,
        is_query[:, None] & (tile < tiles)[None, :],
    )


@triton.jit
def _decide(
    q, bank, least, q_norm, q_moved, tile_norm, tile_moved, best_out, index_out, n, d, tiles, k,
    LOSS, KEEP: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program per query: its k nearest rows in no order."""
    query = tl.program_id(0).to(tl.int64)
    length, shift = tl.load(q_norm + query), tl.load(q_moved + query)
    place = tl.arange(0, KEEP)
    # Places beyond k are never the worst; the others start as worse than any row, and all differ.
    best = tl.where(place < k, float("inf"), -float("inf")).to(tl.float64)
    index = n + place.to(tl.int64)
    worst = tl.max(best, 0)
    worst_index = tl.max(tl.where(best == worst, index, -1), 0)
    lane, member = tl.arange(0, BD), tl.arange(0, TILE)
    for chunk in range(0, tiles, CHUNK):
        tile = chunk + tl.arange(0, CHUNK)
        is_tile = tile < tiles
        about = tl.load(least + query * tiles + tile, is_tile, float("inf"))
        size = tl.load(tile_norm + tile, is_tile, 0.0)
        loss = LOSS * (length + size) * (length + size) + d * 1e-37
        low = tl.sqrt(tl.maximum(about - loss, 0.0)) * 0.999999
        low -= (shift + tl.load(tile_moved + tile, is_tile, 0.0)) * 1.000001
        low = tl.maximum(low, 0.0)
        low = tl.where(about > -float("inf"), low * low * 0.999999, 0.0)
        low = tl.where(is_tile, low, float("inf"))
        lowest, where = tl.min(low, 0, return_indices=True)
        # Not <: a row as far as the k-th may have the lower index.
        while (lowest < float("inf")) & (lowest.to(tl.float64) <= worst):
            first_row = (chunk + where).to(tl.int64) * TILE
            row = first_row + member
            low = tl.where(tile == chunk + where, float("inf"), low)
            lowest, where = tl.min(low, 0, return_indices=True)
            is_row = row < n
            dist2 = tl.full([TILE], 0, tl.float64)
            for first in range(0, d, BD):
                at = first + lane
                inside = at < d
                a = tl.load(q + query * d + at, inside, 0.0).to(tl.float64)
                b = tl.load(
                    bank + row[:, None] * d + at[None, :], is_row[:, None] & inside[None, :], 0.0
                ).to(tl.float64)
                gap = a[None, :] - b
                dist2 += tl.sum(gap * gap, 1)
            dist2 = tl.where(is_row, dist2, float("inf"))
            near, nth = tl.min(dist2, 0, return_indices=True)
            while (near < float("inf")) & (
                (near < worst) | ((near == worst) & (first_row + nth < worst_index))
            ):
                gone = (best == worst) & (index == worst_index)
                best = tl.where(gone, near, best)
                index = tl.where(gone, first_row + nth, index)
                worst = tl.max(best, 0)
                worst_index = tl.max(tl.where(best == worst, index, -1), 0)
                dist2 = tl.where(member == nth, float("inf"), dist2)
                near, nth = tl.min(dist2, 0, return_indices=True)
    tl.store(best_out + query * k + place, best, place < k)
    tl.store(index_out + query * k + place, index, place < k)


def _rounded(
    x: Tensor, center: Tensor, rows: int, lanes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, d = x.shape
    rounded = torch.empty_like(x, dtype=torch.float16)
    unscale, norm, moved = (x.new_empty(n) for _ in range(3))
    _round_rows[(triton.cdiv(n, rows),)](
        x, center, rounded, unscale, norm, moved, n, d, BR=rows, BD=lanes
    )
    return rounded, unscale, norm, moved


def _largest_of_tiles(values: Tensor, tiles: int) -> Tensor:
    padded = values.new_zeros(tiles * TILE)
    padded[: len(values)] = values
    return padded.view(tiles, TILE).amax(1)


def _center(bank: Tensor) -> Tensor:
    """Any point does; near the middle of the bank, norms and with them the bounds are small."""
    center = bank[:: max(1, len(bank) // 4096)].mean(0)
    return torch.where(center.isfinite(), center, 0)


@dataclass(frozen=True)
class Rounded:
    """What is made of a bank once, for all searches."""

    center: Tensor  # [d]
    half: Tensor  # [n, d] float16
    unscale: Tensor  # [n]
    norm: Tensor  # [n]
    tile_norm: Tensor  # [tiles], the largest of each
    tile_moved: Tensor


def prepare(bank: Tensor) -> Rounded:
    """``bank`` is contiguous float32 and finite."""
    settings = _settings(bank)
    tiles, center = triton.cdiv(len(bank), TILE), _center(bank)
    half, unscale, norm, moved = _rounded(bank, center, *_round_shape(settings))
    largest = (_largest_of_tiles(t, tiles) for t in (norm, moved))
    return Rounded(center, half, unscale, norm, *largest)


def _settings(bank: Tensor) -> dict[str, Any]:
    return tuned.config("nearest", "d<=512" if bank.shape[1] <= 512 else "d>512")


def _round_shape(settings: dict[str, Any]) -> tuple[int, int]:
    return settings["round_rows"], settings["round_lanes"]


def search(q: Tensor, rows: Tensor, bank: Rounded, k: int) -> tuple[Tensor, Tensor]:
    """See :func:`fundad_fast.ops.nearest`; ``q`` and ``rows`` are contiguous float32."""
    (m, d), n = q.shape, len(rows)
    if m == 0:
        return q.new_empty(0, k), q.new_empty((0, k), dtype=torch.int64)
    settings, tiles = _settings(rows), len(bank.tile_norm)
    shape = _round_shape(settings)
    usable = q.isfinite().all(1)
    q = torch.where(usable[:, None], q, bank.center)
    # Tensor cores may cut off where float32 would round: a unit in the last place for each of d
    # products and sums, then the error of the norms.
    loss = (d + 32) * 2.0**-23 + 2 * (d / shape[1] + 32) * 1.2e-7 + 1e-6
    best = q.new_empty((m, k), dtype=torch.float64)
    index = q.new_empty((m, k), dtype=torch.int64)
    for part in torch.arange(m).split(max(1, _BOUNDS // tiles)):
        lo, count = int(part[0]), len(part)
        some = q[lo : lo + count]
        half, unscale, norm, moved = _rounded(some, bank.center, *shape)
        least = q.new_empty(count, tiles)
        bm, bn = settings["queries"], settings["rows"]
        _products[(triton.cdiv(count, bm) * triton.cdiv(n, bn),)](
            half, bank.half, unscale, norm, bank.unscale, bank.norm, least, count, n, d, tiles,
            BM=bm, BN=bn, BD=settings["features"], GROUP=settings["group"], TILE=TILE,
            num_warps=settings["warps"], num_stages=settings["stages"],
        )  # fmt: skip
        _decide[(count,)](
            some, rows, least, norm, moved, bank.tile_norm, bank.tile_moved,
            best[lo : lo + count], index[lo : lo + count], n, d, tiles, k, loss,
            KEEP=triton.next_power_of_2(k), CHUNK=settings["tiles"], TILE=TILE,
            BD=settings["decide_lanes"],
        )  # fmt: skip
    index, order = index.sort(1)  # then by distance: a stable sort leaves ties to the lowest index
    best, order = best.gather(1, order).sort(dim=1, stable=True)
    best[~usable] = math.nan
    index = torch.where(usable[:, None], index.gather(1, order), torch.arange(k, device=q.device))
    return best.float(), index
