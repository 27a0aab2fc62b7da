# SPDX-License-Identifier: Apache-2.0
"""A bank as integers in tiles, so that few of its rows have to be measured.

See csrc/include/fundad/nearest.h for what the numbers mean. Nothing here decides a result: integers
with known rounding errors show which rows cannot be among the nearest, and the rest is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from . import _adapt
from .short_picture import power_of_two, principal_axes

ROWS, AXES, COARSE, FINE = 64, 128, 16, 64  # as in nearest.h
LONGEST = 32_700  # of a vector of fine integers: products of two fit 32 bits
MOST_NEAR = 64  # neighbours asked for; more of them are found by plain products
FEWEST_ROWS = 512  # of a bank: below, nothing is gained
SAMPLE = 256  # rows of a bank that are searched for to see what a search takes


@dataclass(frozen=True)
class Tiles:
    """The integers of a bank ``[n, d]`` in ``T = ceil(n / 64)`` tiles; no tiles if none pay.

    They take 288 bytes a row: beside the rows themselves 19 % more at 384 features, 5 % at 1536.

    Attributes:
        axes: ``[d, 128]`` float64, the directions in which the rows vary most, and ``1 / scale``
            long.
        middle: ``[16]`` float64, the middle of the coarse coordinates.
        row: ``[T, 64]`` int32, the row of each slot, ``n`` where there is none.
        coarse: ``[T, 64, 16]`` uint8.
        fine: ``[T, 32, 64, 2]`` int16.
        finer: ``[T, 64, 64]`` int16.
        minus_half: ``[3, T, 64]`` int32, minus half the squared norms of these three.
        lengths: ``[8]`` float64: scale, slack, and the steps, errors and radius.
    """

    axes: Tensor
    middle: Tensor
    row: Tensor
    coarse: Tensor
    fine: Tensor
    finer: Tensor
    minus_half: Tensor
    lengths: Tensor

    def tensors(self) -> list[Tensor]:
        """The tensors in order, as the operator takes them; none if there are no tiles."""
        return [getattr(self, f.name) for f in fields(self)] if len(self.row) else []


NAMES = tuple(f.name for f in fields(Tiles))


def shapes(n: int, d: int) -> list[list[int]]:
    """The shapes of :meth:`Tiles.tensors` for a bank ``[n, d]``."""
    count = -(-n // ROWS)
    return [
        [d, AXES],
        [COARSE],
        [count, ROWS],
        [count, ROWS, COARSE],
        [count, FINE // 2, ROWS, 2],
        [count, ROWS, FINE],
        [3, count, ROWS],
        [8],
    ]


def check(tiles: Tiles, n: int, d: int) -> None:
    """Raise ``ValueError`` unless these are tensors of the tiles of a bank ``[n, d]``."""
    got = [(list(t.shape), t.dtype) for t in (getattr(tiles, name) for name in NAMES)]
    for count in (n, 0):
        if got == list(zip(shapes(count, d), _kinds())):
            return
    raise ValueError(f"nearest: these are no tiles of a bank [{n},{d}]: {got}; prepare again")


def prepare(rows: Tensor, center: Tensor, wanted: bool | None = None) -> Tiles:
    """Make the tiles of a bank, or none where plain products are as fast.

    Args:
        rows: ``[n, d]`` contiguous finite float32 on the CPU.
        center: ``[d]`` float32 amid them.
        wanted: ``True`` for tiles in any case, ``False`` for none; otherwise they are tried out.
    """
    n, d = rows.shape
    if wanted is False or (wanted is None and n < FEWEST_ROWS):
        return _none(d)
    axes, z, scale, slack = _picture(rows, center)
    order = torch.empty(n, dtype=torch.int64)
    _adapt.native().tile_order(
        *(z.data_ptr(), n, AXES + 1, COARSE - 1, order.data_ptr(), _adapt.threads(64 * n))
    )
    tiles = _integers(z, order, axes, scale, slack)
    return tiles if wanted or _pays(rows, center, tiles) else _none(d)


def _none(d: int) -> Tiles:
    return Tiles(*(torch.zeros(size, dtype=kind) for size, kind in zip(shapes(0, d), _kinds())))


def _kinds() -> list[torch.dtype]:
    integers = [torch.int32, torch.uint8, torch.int16, torch.int16, torch.int32]
    return [torch.float64, torch.float64, *integers, torch.float64]


def _picture(rows: Tensor, center: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """Axes, the picture ``[n, 129]`` of the rows, its scale and its slack; norms up to 1."""
    n, d = rows.shape
    middle = center.double()
    low, high = rows.aminmax()
    size = 2 * math.sqrt(d) * max(float(high), -float(low))  # no norm is larger
    scale = power_of_two(size)
    sample = (rows[:: max(1, n // 4096)].double() - middle) / scale
    with _adapt.one_thread():
        found, _ = principal_axes(sample, min(AXES, d))
    axes = torch.zeros(d, AXES, dtype=torch.float64)
    axes[:, : found.shape[1]] = found / scale
    z = torch.empty(n, AXES + 1)
    largest = _adapt.native().short_picture(
        *(rows.data_ptr(), n, d, middle.data_ptr(), axes.data_ptr(), AXES, scale, z.data_ptr()),
        *(_adapt.isa(), _adapt.threads(n * d * AXES)),
    )
    shrink = power_of_two(largest)
    # Of each z: rounding to float32, and of the rest the root of what cancelled in float64.
    slack = 2 * (2.0**-24 + math.sqrt(16 * (d + 64) * 2.0**-53))
    return axes / shrink, z.div_(shrink), scale * shrink, slack


def _vectors(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coarse ``[n, 16]``, fine and finer ``[n, 64]`` float64 vectors of a picture."""
    z = z.double()
    finest = z[:, 2 * FINE - 2 :].square().sum(1, keepdim=True)
    rest = finest + z[:, FINE - 1 : 2 * FINE - 2].square().sum(1, keepdim=True)
    most = rest + z[:, COARSE - 1 : FINE - 1].square().sum(1, keepdim=True)
    return (
        torch.cat([z[:, : COARSE - 1], most.sqrt()], 1),
        torch.cat([z[:, : FINE - 1], rest.sqrt()], 1),
        torch.cat([z[:, FINE - 1 : 2 * FINE - 2], finest.sqrt()], 1),
    )


def _integers(z: Tensor, order: Tensor, axes: Tensor, scale: float, slack: float) -> Tiles:
    n = len(z)
    count = -(-n // ROWS)
    size = shapes(n, len(axes))
    coarse = torch.full(size[3], 128, dtype=torch.uint8).view(-1, COARSE)
    fine, finer = (torch.zeros(count * ROWS, FINE, dtype=torch.int16) for _ in range(2))
    minus_half = torch.full((3, count * ROWS), -(2**30), dtype=torch.int32)
    low, high, radius = torch.full((COARSE,), math.inf).double(), torch.tensor(-math.inf), 0.0
    parts = [slice(at, min(n, at + 2**14)) for at in range(0, n, 2**14)]
    for part in parts:
        vectors = _vectors(z[part])
        low = torch.minimum(low, vectors[0].amin(0))
        high = torch.maximum(high, vectors[0].amax(0))
        radius = max(radius, float(vectors[1].norm(dim=1).max()))
    middle = (low + high) / 2
    # A bank of equal rows has no extent: any step does.
    coarse_step = float((high - low).max()) / 2 / 127 * (1 + 1e-9) or 1.0
    radius *= 1 + 1e-9
    fine_step = radius / LONGEST or 1.0
    error = [0.0, 0.0, 0.0]
    for part in parts:
        exact = list(_vectors(z[order[part]]))
        exact[0] -= middle
        whole = [v.div(s).round_() for v, s in zip(exact, (coarse_step, fine_step, fine_step))]
        off2 = [
            (v - w * s).square() for v, w, s in zip(exact, whole, (coarse_step, *[fine_step] * 2))
        ]
        norm2 = [w.square() for w in whole]
        # With finer numbers at hand, the norm that stood for them is no longer looked at.
        sums = [off2[0].sum(1), off2[1].sum(1), off2[1][:, :-1].sum(1) + off2[2].sum(1)]
        error = [max(a, float(b.max().sqrt())) for a, b in zip(error, sums)]
        half = [norm2[0].sum(1), norm2[1].sum(1), norm2[2].sum(1) - norm2[1][:, -1]]
        minus_half[:, part] = -torch.stack(half).div(2).floor().int()
        coarse[part] = (whole[0] + 128).to(torch.uint8)
        fine[part], finer[part] = whole[1].short(), whole[2].short()
    row = torch.full((count * ROWS,), n, dtype=torch.int32)
    row[:n] = order.int()
    error = [one * (1 + 1e-9) for one in error]
    lengths = [scale, slack, coarse_step, error[0], fine_step, *error[1:], radius]
    paired = fine.view(count, ROWS, FINE // 2, 2).transpose(1, 2).contiguous()
    return Tiles(
        axes,
        middle,
        row.view(size[2]),
        coarse.view(size[3]),
        paired,
        finer.view(size[5]),
        minus_half.view(size[6]),
        torch.tensor(lengths, dtype=torch.float64),
    )


def search(
    q: Tensor, bank: Tensor, center: Tensor, tiles: Sequence[Tensor], out: Sequence[Tensor]
) -> tuple[int, int, int]:
    """Fill ``out``, scratch, distances and indices ``[m, k]``; see fundad/nearest.h.

    Returns:
        What was left of all pairs: tiles, rows by fine integers, rows that were measured.
    """
    (m, d), n, k = q.shape, len(bank), out[0].shape[1]
    middle = center.double()
    order = [middle, *tiles[:-1]]
    lengths = tiles[-1].tolist()
    return _adapt.native().nearest_tiles_cpu(
        *(q.data_ptr(), bank.data_ptr(), m, n, d, k, *(t.data_ptr() for t in out)),
        *(tiles[2].shape[0], [t.data_ptr() for t in order], lengths),
        *(_adapt.isa(), _adapt.threads(m * n * COARSE)),
    )


def search_while_cheap(
    q: Tensor, bank: Tensor, center: Tensor, tiles: Sequence[Tensor], out: Sequence[Tensor]
) -> int:
    """As :func:`search`, for as many queries as it is cheaper for than products: their number.

    For one neighbour this was tried when the tiles were made. The more neighbours are wanted, the
    less can be ruled out, so for several the first queries show what it takes.
    """
    m, k = out[0].shape
    first = m if k == 1 else min(m, SAMPLE)
    counts = search(q[:first], bank, center, tiles, [t[:first] for t in out])
    if first == m or not _cheaper(counts, first, *bank.shape):
        return first
    search(q[first:], bank, center, tiles, [t[first:] for t in out])
    return m


def _pays(rows: Tensor, center: Tensor, tiles: Tiles) -> bool:
    """Whether a search is cheaper than products, judged by rows of the bank and the next to them.

    Rows of a coreset lie farther apart than its queries lie from it, so this errs on the side of
    products. It counts and does not time, so the answer does not depend on the machine's load.
    """
    n, d = rows.shape
    q = rows[:: max(1, n // SAMPLE)][:SAMPLE].contiguous()
    out = [torch.empty(len(q), 2, dtype=kind) for kind in (torch.float64, torch.float32)]
    out.append(torch.empty(len(q), 2, dtype=torch.int64))
    return _cheaper(search(q, rows, center, tiles.tensors(), out), len(q), n, d)


def _cheaper(counts: tuple[int, int, int], m: int, n: int, d: int) -> bool:
    """Whether a search of ``m`` queries that left so much took less than products would have."""
    left, fine, measured = counts
    # In multiplications of plain products; the weights are rounded up from times with AVX-512.
    effort = m * (n * COARSE // 2 + 4 * d * AXES) + left * ROWS * FINE
    effort += fine * 1000 + measured * 15 * d
    return effort < m * n * d
