# SPDX-License-Identifier: Apache-2.0
"""nearest against torch's forms and faiss, one image's queries against real banks."""

from __future__ import annotations

from typing import Any

import pytest
import rivals
import torch
from conftest import Results
from roofline import Work
from torch import Tensor

from fundad_fast import ops

QUERIES = 9604  # the last image's rows; the bank comes from the others


@pytest.mark.parametrize("size", [1_440, 14_406])
def test_nearest(rows: tuple[str, Tensor], size: int, results: Results) -> None:
    name, x = rows
    q, rest = x[-QUERIES:].contiguous(), x[:-QUERIES]
    bank = rest[ops.kcenter(rest, size)[0]].contiguous()
    prepared = ops.nearest_prepare(bank)
    norm2 = bank.square().sum(1)
    candidates: dict[str, tuple[Any, float]] = {
        "cpu": (lambda: ops.nearest(q, bank, prepared=prepared), 1),
        "addmm+min": (lambda: rivals.nearest_addmm(q, bank, norm2), 1),
        "cdist": (lambda: rivals.nearest_cdist(q, bank), 1),
        "torch form": (lambda: with_backend("torch", q, bank, prepared), 1),
    }
    name = f"nearest, {name}: {len(q)} queries, bank {list(bank.shape)}"
    if results.installed(name, "faiss"):
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatL2(bank.shape[1])
        index.add(bank.numpy())
        candidates["faiss"] = (lambda: index.search(q.numpy(), 1), 1)
    work = Work(2.0 * len(q) * bank.numel(), 4.0 * (q.numel() + bank.numel()))
    race = results.race(name, candidates, work=work)
    for rival in list(candidates)[1:]:
        results.row(race, "cpu", rival)


def with_backend(
    backend: str, q: Tensor, bank: Tensor, prepared: ops.NearestPrepared
) -> tuple[Tensor, Tensor]:
    with ops.OPS["nearest"].using(backend):
        return ops.nearest(q, bank, prepared=prepared)


def test_same_neighbours(rows: tuple[str, Tensor]) -> None:
    """Against float64, for some queries."""
    _, x = rows
    q, bank = x[-300:].contiguous(), x[: 40 * 384 : 1].contiguous()
    dist2, index = ops.nearest(q, bank, 3)
    every = torch.cdist(q.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    want = every.square().sort(dim=1, stable=True)
    assert torch.equal(index, want.indices[:, :3])
    torch.testing.assert_close(dist2, want.values[:, :3].float(), rtol=3e-7, atol=0)
