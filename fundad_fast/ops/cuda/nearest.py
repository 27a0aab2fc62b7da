# SPDX-License-Identifier: Apache-2.0
"""Exact search on a CUDA device: products of short float16 pictures, then a closer look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .. import _adapt
from ..nearest import op
from .picture import Frame, frame_of

QUERIES, ROWS, GROUPS = 128, 128, 8  # fixed in csrc/include/fundad/nearest_cuda.h
BLOCKS_PER_MULTIPROCESSOR = 4
MOST_QUERIES = 2**17  # searched at a time; half of it, and so on, where memory does not suffice
_FARTHEST = 4096.0  # norm of a picture beyond which float16 would tell little and then overflow
_SMALLEST = 2.0**-14  # of normal float16 numbers; what tensor cores do with others is not specified


@dataclass(frozen=True)
class _Short:
    """Pictures in float16, with what that cost: ``lost[i] = |z[i] - half[i]|``."""

    half: Tensor  # [n, p] float16
    norm2: Tensor  # [n] float64, |half|^2
    size: Tensor  # [n] float64, |z|
    lost: Tensor  # [n] float64


@dataclass(frozen=True)
class _Bank:
    """What searches in a bank need, made at the first one."""

    version: int | None
    frame: Frame
    half: Tensor
    half2: Tensor
    size: Tensor  # float64 scalars, the largest of all rows
    lost: Tensor


# The bank that the caller keeps alive is the key, so that this goes when it goes.
_banks = WeakIdKeyDictionary()


def _short(frame: Frame, x: Tensor) -> _Short:
    z = frame.take(x)
    size = torch.linalg.vector_norm(z, dim=1, dtype=torch.float64)
    z = torch.where((size <= _FARTHEST)[:, None], z, 0)
    half = torch.where(z.abs() >= _SMALLEST, z, 0).half()
    exact = half.double()
    lost = (z.double() - exact).square_().sum(1).sqrt_()
    return _Short(half, exact.square_().sum(1), size, lost)


def _bank_of(bank: Tensor) -> _Bank:
    made, version = _banks.get(bank), _adapt.version(bank)
    if made is None or version is None or made.version != version:
        rows = _adapt.dense(bank)
        frame = frame_of(rows, (31, 63, 127))
        short = _short(frame, rows)
        half2 = (short.norm2 / 2).float()
        size, lost = short.size.max(), short.lost.max() * 1.0001
        made = _Bank(version, frame, short.half, half2, size, lost)
        _banks[bank] = made
    return made


def search(q: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest rows of ``bank`` for ``q``, both contiguous float32; see ``ops.nearest``."""
    m = len(q)
    dist2 = q.new_empty(m, k)
    index = q.new_empty((m, k), dtype=torch.int64)
    known, rows = _bank_of(bank), _adapt.dense(bank)
    step, first = MOST_QUERIES, 0
    while first < m:
        part = slice(first, first + step)
        try:
            _search(q[part], rows, k, known, dist2[part], index[part])
        except torch.cuda.OutOfMemoryError:
            if min(step, m) <= QUERIES:
                raise
            step = max(QUERIES, min(step, m) // 2)
        else:
            first += step
    return dist2, index


def _search(q: Tensor, bank: Tensor, k: int, known: _Bank, dist2: Tensor, index: Tensor) -> None:
    (m, d), n = q.shape, len(bank)
    usable = q.isfinite().all(1)
    short = _short(known.frame, torch.where(usable[:, None], q, 0))
    p = short.half.shape[1]
    # How much nearer a picture may seem than its row: rounding to float16, and of the picture.
    reach = short.lost * 1.0001 + known.lost + known.frame.slack() * (short.size + known.size)
    reach = torch.where(short.size <= _FARTHEST, reach, torch.inf)  # whose picture is not used
    reach = torch.where(usable, reach, torch.nan)
    # p products and sums, a subtraction, the rounding of half2: 2^-22 a step, where single
    # precision would be 2^-24, since tensor cores may cut off instead of rounding.
    largest = known.size * 1.001
    loss = (p + 16) * 2.0**-22 * (short.norm2.sqrt() + largest) * largest + 1e-35
    wanted = BLOCKS_PER_MULTIPROCESSOR * _adapt.multiprocessors(q) // -(-m // QUERIES)
    splits = max(1, min(wanted, -(-n // ROWS), 65535))
    seeds = splits * GROUPS
    doubles = q.new_empty(m + splits * m * k, dtype=torch.float64)
    longs = index.new_empty(m * seeds + splits * m * k)
    worst, found_dist2 = doubles.split([m, splits * m * k])
    seed_row, found_row = longs.split([m * seeds, splits * m * k])
    seed_value = q.new_empty(m * seeds)
    head = index.new_empty(splits * m, dtype=torch.int32)
    inputs = [q, bank, short.half, known.half, known.half2, short.norm2, reach, loss]
    scratch = [seed_value, seed_row, worst, found_dist2, found_row, head, dist2, index]
    _adapt.native().nearest_cuda(
        *(t.data_ptr() for t in inputs),
        *(1 / known.frame.scale, m, n, d, k, p, splits),
        *(t.data_ptr() for t in scratch),
        _adapt.stream(q),
    )


@op.backend("cuda", lambda q, bank, k, prepared: _adapt.no_cuda(q, bank, prepared))
def _cuda(q: Tensor, bank: Tensor, k: int, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(q):
        return search(_adapt.dense(q), bank, k)
