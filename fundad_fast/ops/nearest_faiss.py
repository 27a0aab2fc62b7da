# SPDX-License-Identifier: Apache-2.0
"""faiss, where it is installed: an exact form of nearest, and approximate search for vast banks.

faiss adds up in float32, so its order is not taken for granted: what it finds is measured again.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from . import _adapt
from .nearest_bank import check_bank

MORE = 16  # rows asked for beyond the k nearest, so that rounding does not leave one out
UNIT = 2.0**-24


def why_not(*args: Any) -> str | None:
    """Why faiss cannot take these arguments, or ``None``."""
    if importlib.util.find_spec("faiss") is None:
        return "faiss is not installed: pip install 'fundad-fast[faiss]'"
    devices = {t.device for t in args if isinstance(t, Tensor)} - {torch.device("cpu")}
    return next((f"a tensor is on {device}" for device in devices), None)


def _faiss() -> Any:
    if reason := why_not():
        raise NotImplementedError(f"nearest: {reason}")
    import faiss

    faiss.omp_set_num_threads(_adapt.threads(math.inf))
    return faiss


def search(q: Tensor, bank: Tensor, center: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k nearest rows by ``IndexFlatL2``, and which queries float32 could not decide.

    Args:
        q, bank: contiguous float32 rows on the CPU; queries must be finite.
        center: ``[d]`` float32, taken from both, because squared norms around it are smaller.

    Returns:
        ``[m, k]`` float64 squared distances, ``[m, k]`` indices, ``[m]`` bool: rows that faiss
        left out may be nearer than these.
    """
    n, d = bank.shape
    count = min(n, k + MORE)
    index = _faiss().IndexFlatL2(d)
    rows = bank - center
    index.add(rows.numpy())
    away = q - center
    found = [torch.from_numpy(t) for t in index.search(away.numpy(), count)]
    largest = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).max()
    size = torch.linalg.vector_norm(away, dim=1, dtype=torch.float64) + largest
    # |q|^2 + |b|^2 - 2 q.b in float32, in any order of summation; then what centring moved.
    loss = 2.02 * (d + 8) * (UNIT * size.square() + 1.2e-38)
    beyond = (found[0][:, -1].double() - loss).clamp_min(0).sqrt() - 2 * UNIT * size
    dist2, rows_found = measured(q, bank, found[1].clamp_min(0))
    unsure = (found[1] < 0).any(1)
    if count < n:
        unsure |= (dist2[:, k - 1].sqrt() < beyond).logical_not()  # also where it is NaN
    return dist2[:, :k], rows_found[:, :k], unsure


def measured(q: Tensor, bank: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances in float64 to rows ``[m, c]`` of the bank, sorted by them and by row.

    They are infinite to a row ``n``, which stands for none.
    """
    index = index.sort(dim=1).values
    last = len(bank) - 1
    dist2 = torch.empty(index.shape, dtype=torch.float64)
    step = max(1, 2**22 // (index.shape[1] * q.shape[1]))
    for lo in range(0, len(q), step):
        part = slice(lo, lo + step)
        gap = bank[index[part].clamp_max(last)].float().double() - q[part, None]
        dist2[part] = gap.square_().sum(2)
    dist2, order = dist2.masked_fill_(index > last, math.inf).sort(dim=1, stable=True)
    return dist2, index.gather(1, order)


@dataclass(frozen=True)
class Quality:
    """What an approximate search was off by, on queries that were also searched exactly.

    Attributes:
        queries: how many.
        recall: the share of the exact k nearest rows that were found; a row at the same distance
            as the exact one counts as found.
        score_error_mean, score_error_max: by how much the distances (not squared) to the nearest
            row are too large, relative to the mean of the exact ones; infinite where no row was
            found.
        missed: the share of queries that found fewer than k rows.
    """

    queries: int
    recall: float
    score_error_mean: float
    score_error_max: float
    missed: float


class ApproximateBank:
    """A bank of many millions of rows, searched approximately; see :func:`nearest_approximate`.

    Attributes:
        quality: measured when it was made.
        settings: with which it was made.
    """

    def __init__(self, bank: Tensor, index: Any, rerank: int, settings: dict[str, Any]) -> None:
        self._bank, self._index, self._rerank = bank, index, rerank
        self.settings = settings
        self.quality: Quality | None = None

    def search(self, q: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """Find rows that are among the nearest, or not much farther.

        Args:
            q: ``[m, d]`` finite queries of a floating type, on the CPU.
            k: how many, ``1 <= k <= n``.

        Returns:
            ``[m, k]`` float32 squared distances to the rows found, measured in float64, and
            ``[m, k]`` int64 row numbers; infinity and -1 where fewer rows were found.

        Raises:
            ValueError: the arguments do not fit, or a query is not finite.
        """
        n, d = self._bank.shape
        if q.dim() != 2 or q.shape[1] != d or not q.is_floating_point():
            raise ValueError(f"nearest: want q [m,{d}] of a floating type, got {list(q.shape)}")
        if not 1 <= k <= n:
            raise ValueError(f"nearest: want 1 <= k <= n, got k={k} of {n} rows")
        q = _adapt.dense(q)
        if not q.isfinite().all():
            raise ValueError("nearest: a query is not finite")
        if len(q) == 0:
            return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
        found = torch.from_numpy(self._index.search(q.numpy(), min(n, max(k, self._rerank)))[1])
        dist2, rows = measured(q, self._bank, torch.where(found < 0, n, found))
        rows[rows == n] = -1
        return dist2[:, :k].float(), rows[:, :k]


def nearest_approximate(
    bank: Tensor,
    queries: Tensor,
    k: int = 1,
    *,
    kind: Literal["ivf", "ivfpq"] = "ivfpq",
    cells: int | None = None,
    probes: int = 32,
    code_bytes: int = 48,
    rerank: int = 64,
    seed: int = 0,
) -> ApproximateBank:
    """Prepare a bank that is too large for exact search, and measure what that costs.

    The rows are sorted into cells around k-means centres, and only the cells nearest to a query are
    looked through; with ``ivfpq`` as short codes (product quantisation). What looks best is
    measured on the rows themselves, so every distance returned is true, but a nearer row may be
    missed: scores can only be too large. Use :func:`nearest` where it is fast enough; it is exact.

    Args:
        bank: ``[n, d]`` finite rows of a floating type on the CPU; kept, not copied, so a
            memory-mapped tensor stays on disk.
        queries: ``[m, d]`` rows such as will be asked for; they are searched exactly too, and the
            result's ``quality`` says what the approximation was off by.
        k: the number of neighbours that the recall is about.
        kind: ``ivf`` keeps the rows as they are in the cells, ``ivfpq`` codes of them.
        cells: number of cells; about ``4 sqrt(n)`` if not given.
        probes: cells that are looked through for a query; more is slower and misses less.
        code_bytes: of a row, with ``ivfpq``; must divide ``d``.
        rerank: rows that are measured for a query.
        seed: of the k-means.

    Raises:
        ValueError: the arguments do not fit.
        NotImplementedError: faiss is not installed.

    Inverted files and product quantisation: Jégou, Douze, Schmid 2011.
    """
    faiss = _faiss()
    check_bank(bank)
    (n, d), m = bank.shape, len(queries)
    if bank.device.type != "cpu" or queries.device.type != "cpu":
        raise ValueError("nearest: an approximate bank and its queries must be on the CPU")
    if m == 0:
        raise ValueError("nearest: want queries to measure the quality on, got none")
    cells = max(1, min(n, round(4 * math.sqrt(n)))) if cells is None else cells
    if not 1 <= cells <= n or probes < 1 or rerank < 1:
        raise ValueError(
            f"nearest: want 1 <= cells <= {n}, probes >= 1 and rerank >= 1, "
            f"got {cells}, {probes} and {rerank}"
        )
    if kind == "ivfpq" and (code_bytes < 1 or d % code_bytes or n < 256):
        raise ValueError(
            f"nearest: ivfpq wants code_bytes that divide d={d} and at least 256 rows, "
            f"got {code_bytes} and {n}"
        )
    flat = faiss.IndexFlatL2(d)
    if kind == "ivfpq":
        index = faiss.IndexIVFPQ(flat, d, cells, code_bytes, 8)
        index.pq.cp.seed = seed
    elif kind == "ivf":
        index = faiss.IndexIVFFlat(flat, d, cells)
    else:
        raise ValueError(f"nearest: kind={kind!r}: use ivf or ivfpq")
    index.cp.seed = seed
    sample = torch.arange(0, n, max(1, n // (64 * max(cells, 256))))
    index.train(_finite(bank[sample]).numpy())
    for lo in range(0, n, 2**18):
        index.add(_finite(bank[lo : lo + 2**18]).numpy())
    index.nprobe = min(probes, cells)
    settings = {"kind": kind, "cells": cells, "probes": probes, "rerank": rerank, "seed": seed}
    settings |= {"code_bytes": code_bytes} if kind == "ivfpq" else {}
    made = ApproximateBank(bank, index, rerank, settings)
    made.quality = _quality(made, bank, queries, k)
    return made


def _finite(rows: Tensor) -> Tensor:
    rows = _adapt.dense(rows)
    if not rows.isfinite().all():
        raise ValueError("nearest: the bank has values that are not finite as float32")
    return rows


def _quality(made: ApproximateBank, bank: Tensor, queries: Tensor, k: int) -> Quality:
    dist2, index = made.search(queries, k)
    want = torch.ops.fundad.nearest(queries, bank, k, [])[0].sqrt()
    got = dist2.sqrt()
    error = (got[:, 0] - want[:, 0]).clamp_min(0)
    error /= want[:, 0].mean().clamp_min(torch.finfo(torch.float32).tiny)
    return Quality(
        queries=len(queries),
        recall=float((got <= want[:, -1:] * (1 + 1e-6)).float().mean()),
        score_error_mean=float(error.mean()),
        score_error_max=float(error.max()),
        missed=float((index < 0).any(1).float().mean()),
    )
