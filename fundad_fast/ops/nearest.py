# SPDX-License-Identifier: Apache-2.0
"""The nearest rows of a memory bank, exactly.

Products of queries and rows find the rows that may be nearest; |q|^2 + |b|^2 - 2 q.b has lost too
many digits to decide between them, or to be returned. What decides, and what is returned, is the
sum of squared differences in float64, of every row that rounding may have put in the wrong place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _adapt, nearest_faiss, nearest_tiles
from ._registry import Op
from .nearest_bank import NearestPrepared, check_bank, nearest_prepare

BLOCK = {"cpu": (8192, 1024), "cuda": (8192, 8192)}  # rows and queries of torch's products


def nearest(
    q: Tensor, bank: Tensor, k: int = 1, prepared: NearestPrepared | None = None
) -> tuple[Tensor, Tensor]:
    """Find the ``k`` nearest rows of a bank for each query.

    Distances are differentiable with respect to queries and bank. The results for a query do not
    depend on the other queries.

    Args:
        q: ``[m, d]`` queries of a floating type, compared as float32 values. A query that is not
            finite gets NaN distances, and the rows 0 to k-1.
        bank: ``[n, d]`` rows of a floating type, ``n, d >= 1``, finite as float32.
        k: how many, ``1 <= k <= n``.
        prepared: from :func:`nearest_prepare` of the same bank; made anew if not given.

    Returns:
        ``[m, k]`` float32 squared L2 distances in ascending order, and ``[m, k]`` int64 row
        numbers; the lowest index wins ties.

    Raises:
        ValueError: the arguments do not fit, or the bank is not finite.
    """
    ready = [] if prepared is None else prepared.arguments()
    return torch.ops.fundad.nearest(q, bank, k, ready)


def reference(q: Tensor, bank: Tensor, k: int, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    dist2 = (q.float().double()[:, None] - bank.float().double()[None]).square().sum(-1)
    usable = q.float().isfinite().all(1)
    dist2[~usable] = 0  # makes the order that of the indices
    dist2, index = (t[:, :k] for t in dist2.sort(dim=1, stable=True))
    return torch.where(usable[:, None], dist2, math.nan), index


def fake(q: Tensor, bank: Tensor, k: int, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    check_bank(bank)
    n, d = bank.shape
    torch._check_value(
        q.dim() == 2 and q.is_floating_point(),
        lambda: f"nearest: want q [m,d] of a floating type, got {list(q.shape)} {q.dtype}",
    )
    torch._check_value(
        q.shape[1] == d, lambda: f"nearest: want q [m,{d}] for this bank, got {list(q.shape)}"
    )
    for name, tensor in [("bank", bank), *(("prepared", t) for t in prepared)]:
        torch._check_value(
            tensor.device == q.device,
            lambda: f"nearest: q is on {q.device}, {name} on {tensor.device}",  # noqa: B023
        )
    torch._check_value(k >= 1, lambda: f"nearest: want k >= 1, got k={k}")
    torch._check_value(k <= n, lambda: f"nearest: want k <= n, got k={k} of {n} rows")
    shapes = [list(t.shape) for t in prepared]
    torch._check_value(
        shapes in ([], [[d], [n]], [[d], [n], *nearest_tiles.shapes(n, d)]),
        lambda: f"nearest: the bank is [{n},{d}], prepared was another: {shapes}",
    )
    m = q.shape[0]
    return q.new_empty((m, k), dtype=torch.float32), q.new_empty((m, k), dtype=torch.int64)


def samples() -> dict[str, tuple[Any, ...]]:
    g = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def ready(bank: Tensor, tiles: bool = False) -> list[Tensor]:
        return nearest_prepare(bank, tiles and _adapt.no_cpu(bank) is None).arguments()

    def tiled(q: Tensor, bank: Tensor, k: int) -> tuple[Any, ...]:
        return q, bank, k, ready(bank, tiles=True)

    odd, far, bank = rows(53, 70), rows(40, 16) + 1000, rows(300, 33)
    holes = rows(9, 12)
    holes[2, 3], holes[8, 0] = math.nan, math.inf
    tie = torch.ones(300, 5)
    tie[7], tie[250:] = 3, 2
    middle, sphere = rows(1, 37), rows(200, 37)
    sphere = middle + sphere / sphere.norm(dim=1, keepdim=True)  # equally far but for rounding
    specks = torch.full((256, 900), 1e4) + rows(256, 900) / 256
    specks[::2] -= 2e4
    specks[63::64] = 0  # the last row of a tile lies in the middle
    # Equally far but for the order of summation: every instruction set must round alike.
    turns = torch.stack([sphere[0, torch.randperm(37, generator=g)] for _ in range(100)])
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 4)
    flat = rows(900, 12) @ rows(12, 150) + 0.05 * rows(900, 150)  # near a plane, as features are
    outlier = torch.cat([rows(200, 40) * 1e-3, torch.full((1, 40), 1e4)])
    axis = torch.zeros(90, 70)  # what is longest lies along one axis: integers come near their ends
    axis[:, 0] = torch.linspace(-7, 7, 90)
    axis[:, 1:] = rows(90, 69) / 1024
    away = flat[::9] * torch.logspace(-3, 30, 100)[:, None]
    return {
        "odd": (rows(37, 70), odd, 1, []),
        "prepared": (rows(101, 33), bank, 3, ready(bank)),
        "all_rows": (rows(7, 33), bank, 300, []),
        "tiles": tiled(flat[::7] + 0.01 * rows(129, 150), flat, 1),
        "tiles_several": tiled(rows(130, 12) @ rows(12, 150), flat, 9),
        "tiles_most": tiled(flat[:20] + rows(20, 150), flat, 64),
        "tiles_too_many": tiled(flat[:3], flat, 65),
        "tiles_away": tiled(away, flat, 3),
        "tiles_own_rows": tiled(flat, flat.repeat(2, 1), 3),
        "tiles_duplicates": tiled(flat[::5], flat + 1e-6 * rows(900, 150), 2),
        "tiles_far_from_origin": tiled(far, torch.cat([far, far + 0.01]), 2),
        "tiles_grid": tiled(grid[::7] + 0.5, grid, 20),
        "tiles_all_equal": tiled(torch.zeros(50, 8), torch.zeros(200, 8), 5),
        "tiles_sphere": tiled(middle, sphere, 60),
        "tiles_permuted": tiled(torch.full((1, 37), 0.1), turns, 60),
        "tiles_specks": tiled(specks[::9], specks, 20),
        "tiles_outlier": tiled(torch.cat([rows(30, 40) * 1e-3, outlier[-1:]]), outlier, 2),
        "tiles_axis": tiled(torch.cat([axis * 1.5, axis + 1e-3]), axis, 2),
        "tiles_huge": tiled(rows(20, 40) * 3e19, rows(90, 40) * 3e19, 4),
        "tiles_largest": tiled(rows(20, 40).sign() * 3e38, rows(90, 40).sign() * 3e38, 4),
        "tiles_tiny": tiled(rows(20, 40) * 1e-22, rows(90, 40) * 1e-22, 4),
        "tiles_tiniest": tiled(rows(20, 40) * 1e-43, rows(90, 40) * 1e-43, 4),
        "tiles_not_finite": tiled(holes, rows(30, 12), 3),
        "tiles_one_row": tiled(rows(60, 9), rows(1, 9), 1),
        "tiles_one_column": tiled(rows(20, 1), rows(130, 1), 4),
        "tiles_just_full": tiled(rows(49, 20), rows(128, 20), 1),
        "tiles_one_over": tiled(rows(97, 20), rows(129, 20), 7),
        "tiles_no_query": tiled(rows(0, 4), rows(5, 4), 2),
        "tiles_float16": tiled(rows(20, 12).half(), rows(70, 12).half(), 2),
        "many_rows": (rows(100, 8), rows(8300, 8), 2, []),
        "many_features": (rows(3, 1000), rows(2200, 1000), 2, []),
        "one": (rows(1, 9), rows(1, 9), 1, []),
        "one_column": (rows(20, 1), rows(50, 1), 4, []),
        "no_query": (rows(0, 4), rows(5, 4), 2, []),
        "all_equal": (torch.zeros(8, 8), torch.zeros(200, 8), 5, []),
        "wide_tie": (torch.ones(3, 5), tie, 260, []),
        "grid": (grid[::7] + 0.5, grid, 20, []),
        "far_from_origin": (far, torch.cat([far, far + 0.01]), 2, []),
        "own_rows": (odd, odd.repeat(3, 1), 3, []),
        "two_clouds": (rows(50, 20), torch.cat([rows(80, 20), rows(80, 20) + 1e4]), 100, []),
        "sphere": (middle, sphere, 60, []),
        "permuted": (torch.full((1, 37), 0.1), turns, 60, []),
        "two_specks": (specks[::9], specks, 20, []),  # narrower than what a product rounds off
        "huge": (rows(20, 40) * 3e19, rows(90, 40) * 3e19, 4, []),
        "tiny": (rows(20, 40) * 1e-22, rows(90, 40) * 1e-22, 4, []),
        "not_finite": (holes, rows(30, 12), 3, []),
        "transposed": (rows(12, 30).T, rows(12, 80).T, 2, []),
        "every_other": (rows(60, 24)[::2, ::2], rows(90, 24)[1::3, ::2], 2, []),
        "float16": (rows(20, 12).half(), rows(70, 12), 2, []),
        "bfloat16": (rows(20, 12), rows(70, 12).bfloat16(), 2, []),
        "float64": (rows(20, 12).double(), rows(70, 12).double(), 2, []),
    }


def bad() -> dict[str, tuple[tuple[Any, ...], str]]:
    q, bank = torch.ones(2, 3), torch.ones(4, 3)
    hole = bank.clone()
    hole[1, 2] = math.nan
    return {
        "nan_in_bank": ((q, hole, 1, []), "bank has values that are not finite"),
        "inf_in_bank": ((q, hole.nan_to_num(math.inf), 1, []), "not finite"),
        "no_rows": ((q, bank[:0], 1, []), "the bank is empty"),
        "no_columns": ((q[:, :0], bank[:, :0], 1, []), "without features"),
        "no_neighbours": ((q, bank, 0, []), "want k >= 1"),
        "more_than_rows": ((q, bank, 5, []), "k=5 of 4 rows"),
        "other_features": ((q[:, :2], bank, 1, []), r"want q \[m,3\]"),
        "vector": ((q[0], bank, 1, []), r"got \[3\]"),
        "bank_vector": ((q, bank[0], 1, []), r"want bank \[n,d\]"),
        "integers": ((q.int(), bank, 1, []), "int32"),
        "other_prepared": ((q, bank, 1, [bank[0], bank[:3, 0]]), "prepared was another"),
    }


def check(args: tuple[Any, ...], got: Any, want: Any) -> None:
    """Rounding to float32 is all that may differ; rows at equal distance come lowest first."""
    q, bank = (t.float().double() for t in args[:2])
    dist2, index = got
    assert dist2.dtype == torch.float32
    assert index.dtype == torch.int64
    torch.testing.assert_close(
        dist2, want[0].float(), rtol=3e-7, atol=1e-44, equal_nan=True, check_device=False
    )
    for i, j in torch.nonzero(index != want[1]).tolist():  # a tie that float64 sums may turn round
        mine, other = (bank[rows[i, j]] for rows in (index, want[1]))
        assert not torch.equal(mine, other), "the lowest index wins ties"
        apart = [float((q[i] - row).square().sum()) for row in (mine, other)]
        assert math.isclose(*apart, rel_tol=1e-13), "another row is nearer"
        exact = bool((bank == bank.round()).all() and (2 * q[i] == (2 * q[i]).round()).all())
        assert not exact, "the lowest index wins ties"


op = Op(
    "nearest",
    "(Tensor q, Tensor bank, int k, Tensor[] prepared) -> (Tensor, Tensor)",
    reference=reference,
    fake=fake,
    samples=samples,
    check=check,
    bad=bad,
)


def _native_arguments(
    q: Tensor, bank: Tensor, k: int, prepared: Sequence[Tensor]
) -> tuple[list[Tensor], list[int]]:
    """The tensors, which must outlive the call, and the numbers that the native code takes."""
    center = prepared[0] if prepared else nearest_prepare(bank, tiles=False).center
    q, bank, center = (_adapt.dense(t) for t in (q, bank, center))
    dist2, index = fake(q, bank, k, [])
    scratch = torch.empty_like(dist2, dtype=torch.float64)
    (m, d), n = q.shape, len(bank)
    numbers = [t.data_ptr() for t in (q, bank, center)] + [m, n, d, k]
    numbers += [t.data_ptr() for t in (scratch, dist2, index)]
    return [dist2, index, q, bank, center, scratch], numbers


@op.backend("cpu", _adapt.no_cpu)
def _cpu(q: Tensor, bank: Tensor, k: int, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    q, bank = _adapt.dense(q), _adapt.dense(bank)
    dist2, index = fake(q, bank, k, [])
    done = 0
    if len(prepared) > 2 and k <= nearest_tiles.MOST_NEAR:
        out = [torch.empty_like(dist2, dtype=torch.float64), dist2, index]
        done = nearest_tiles.search_while_cheap(q, bank, prepared[0], prepared[2:], out)
    if done < len(q):
        tensors, numbers = _native_arguments(q[done:], bank, k, prepared)
        work = (len(q) - done) * len(bank) * q.shape[1]
        _adapt.native().nearest_cpu(*numbers, _adapt.isa(), _adapt.threads(work))
        if not done:
            return tensors[0], tensors[1]
        dist2[done:], index[done:] = tensors[0], tensors[1]
    return dist2, index


@op.backend("torch")
def _torch(q: Tensor, bank: Tensor, k: int, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Blocks of products, then a closer look; memory stays within a few hundred megabytes."""
    if not prepared:
        prepared = nearest_prepare(bank, tiles=False).arguments()
    q, bank, center, norm2 = (_adapt.dense(t) for t in (q, bank, *prepared[:2]))
    rows_at_once, queries_at_once = BLOCK["cpu" if q.device.type == "cpu" else "cuda"]
    usable = q.isfinite().all(1)
    q = torch.where(usable[:, None], q, center)
    away = center - q
    size2 = torch.linalg.vector_norm(away, dim=1, dtype=torch.float64).square()
    best = torch.full((len(q), k), math.inf, dtype=torch.float64, device=q.device)
    index = torch.full((len(q), k), len(bank), device=q.device)
    for first in range(0, len(bank), rows_at_once):
        rows = bank[first : first + rows_at_once]
        half = norm2[first : first + rows_at_once] / 2
        centred = (rows - center).T
        for lo in range(0, len(q), queries_at_once):
            part = slice(lo, lo + queries_at_once)
            product = torch.addmm(half, away[part], centred)  # half |row|^2 - <query, row>
            limit = _limit(product, size2[part], half, best[part, -1], k, q.shape[1])
            query, near = torch.nonzero((product >= limit[:, None]).logical_not_(), as_tuple=True)
            found = best.new_empty(len(query))
            for some in torch.arange(len(query), device=q.device).split(2**22 // q.shape[1] + 1):
                gap = q[part][query[some]].double() - rows[near[some]]
                found[some] = gap.square_().sum(1)
            best[part], index[part] = _merge(best[part], index[part], query, found, near + first)
    best[~usable] = math.nan
    index[~usable] = torch.arange(k, device=q.device)
    return best.float(), index


def _limit(product: Tensor, size2: Tensor, half: Tensor, worst: Tensor, k: int, d: int) -> Tensor:
    """``[m]`` float32: rows with such a product or a larger one are not among the k nearest.

    NaN if nothing can be said. A product is off by no more than ``loss``, and centring moves a
    distance by no more than ``slack``; see csrc/cpu/nearest-inl.h for the same bounds.
    """
    unit = 2.0**-24
    size = size2.sqrt()
    largest = half.max().double().mul(2).sqrt() * (1 + unit)
    slack = 2 * unit * (size + largest)
    loss = 1.01 * (d + 8) * (unit * (size + largest) * largest + 1.2e-38)
    loss += _product_loss() * size * largest
    if product.shape[1] >= k:  # the k rows with the smallest products are nearer than this
        smallest = product.amin(1) if k == 1 else product.topk(k, largest=False).values[:, -1]
        reach2 = (size2 + 2 * (smallest + loss)).clamp_min(0)
        worst = torch.minimum(worst, (reach2.sqrt() + slack).square())
    limit = ((worst.sqrt() + slack).square() - size2) / 2 + loss
    sure = limit.isfinite() & (size + largest < 1e18)
    return torch.where(sure, limit + limit.abs() * 2 * unit, math.nan).float()


def _product_loss() -> float:
    """The relative error of a product's factors where torch may round them (TF32, bfloat16)."""
    return 0.0 if torch.get_float32_matmul_precision() == "highest" else 2.0**-7


def _merge(
    best: Tensor, index: Tensor, query: Tensor, found: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """The k best of those so far and those found, by distance and then by index."""
    m, k = best.shape
    owner = torch.arange(m, device=best.device).repeat_interleave(k)
    owner, dist2 = torch.cat([owner, query]), torch.cat([best.flatten(), found])
    rows = torch.cat([index.flatten(), rows])
    # Earlier rows stand first, and stable sorts keep it so among equals.
    order = dist2.argsort(stable=True)
    order = order[owner[order].argsort(stable=True)]
    counts = torch.bincount(query, minlength=m) + k
    start = counts.cumsum(0) - counts
    take = order[start[:, None] + torch.arange(k, device=best.device)]
    return dist2[take], rows[take]


# Last: products that faiss rounds have to be looked at again, so it is here for who asks for it.
@op.backend("faiss", nearest_faiss.why_not)
def _with_faiss(
    q: Tensor, bank: Tensor, k: int, prepared: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """``IndexFlatL2``; queries that its rounding leaves undecided are asked again of torch."""
    q, bank = _adapt.dense(q), _adapt.dense(bank)
    center = prepared[0] if prepared else nearest_prepare(bank, tiles=False).center
    usable = q.isfinite().all(1)
    asked = torch.where(usable[:, None], q, center)
    found, index, unsure = nearest_faiss.search(asked, bank, center, k)
    dist2 = torch.where(usable[:, None], found.float(), math.nan)
    index = torch.where(usable[:, None], index, torch.arange(k))
    again = torch.nonzero(unsure & usable)[:, 0]
    if len(again):
        dist2[again], index[again] = _torch(q[again], bank, k, prepared)
    return dist2, index


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.prepared = len(inputs[3])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    q, bank, index = ctx.saved_tensors
    step = 2 * grad[:, :, None] * (q[:, None].float() - bank[index].float())  # [m,k,d]
    to_q = step.sum(1).to(q.dtype) if ctx.needs_input_grad[0] else None
    to_bank = None
    if ctx.needs_input_grad[1]:
        total = torch.zeros_like(bank, dtype=torch.float32)
        total.index_add_(0, index.flatten(), -step.flatten(0, 1))
        to_bank = total.to(bank.dtype)
    return to_q, to_bank, None, [None] * ctx.prepared


op.autograd(_backward, _save)
