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
PART = 4  # rivals search for every fourth query of a large bank: each query costs the same
BARS = {  # of faiss's time: on ReSAD's rows, and on backbone features
    "rows_c": {14_406: 8, 57_624: 15},
    "rows_f": {14_406: 4, 57_624: 4},
}


@pytest.mark.parametrize("size", [1_440, 14_406, 57_624])
def test_nearest(rows: tuple[str, Tensor], size: int, results: Results) -> None:
    name, x = rows
    q, rest = x[-QUERIES:].contiguous(), x[:-QUERIES]
    bank = rest[ops.kcenter(rest, size)[0]].contiguous()
    prepared = ops.nearest_prepare(bank)
    plain = ops.nearest_prepare(bank, tiles=False)
    norm2 = bank.square().sum(1)
    part = PART if size > 20_000 else 1
    some = q[::part].contiguous()
    candidates: dict[str, tuple[Any, float]] = {
        "cpu": (lambda: ops.nearest(q, bank, prepared=prepared), 1),
        "addmm+min": (lambda: rivals.nearest_addmm(some, bank, norm2), 1 / part),
        "cdist": (lambda: rivals.nearest_cdist(some, bank), 1 / part),
        "anomalib": (lambda: rivals.nearest_anomalib(some, bank), 1 / part),
        "plain products": (lambda: ops.nearest(some, bank, prepared=plain), 1 / part),
    }
    title = f"nearest, {name}: {len(q)} queries, bank {list(bank.shape)}"
    if results.installed(title, "faiss"):
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatL2(bank.shape[1])
        index.add(bank.numpy())
        candidates["faiss"] = (lambda: index.search(some.numpy(), 1), 1 / part)
    work = Work(2.0 * len(q) * bank.numel(), 4.0 * (q.numel() + bank.numel()))
    race = results.race(
        title,
        candidates,
        work=work,
        tiles=0 if prepared.tiles is None else len(prepared.tiles.row),
        note=f"rivals: {len(some)} of the queries, times {part}",
    )
    for rival in list(candidates)[1:]:
        results.row(race, "cpu", rival, BARS.get(name, {}).get(size) if rival == "faiss" else None)


@pytest.mark.parametrize("k", [3, 9, 64])
def test_several_neighbours(rows: tuple[str, Tensor], k: int, results: Results) -> None:
    name, x = rows
    q, rest = x[-QUERIES:].contiguous(), x[:-QUERIES]
    bank = rest[ops.kcenter(rest, 14_406)[0]].contiguous()
    tiles, plain = (ops.nearest_prepare(bank, wanted) for wanted in (True, False))
    race = results.race(
        f"nearest, {name}: k={k}, bank {list(bank.shape)}",
        {
            "tiles": (lambda: ops.nearest(q, bank, k, tiles), 1),
            "plain products": (lambda: ops.nearest(q, bank, k, plain), 1),
        },
    )
    results.row(race, "tiles", "plain products")


def test_preparation(rows: tuple[str, Tensor], results: Results) -> None:
    """Once for a bank, in searches for the queries of one image."""
    name, x = rows
    bank = x[:57_624].contiguous()
    prepared = ops.nearest_prepare(bank, tiles=True)
    race = results.race(
        f"nearest, {name}: preparation of {list(bank.shape)}",
        {
            "prepare": (lambda: ops.nearest_prepare(bank, tiles=True), 1),
            "one search": (lambda: ops.nearest(x[-QUERIES:], bank, prepared=prepared), 1),
        },
    )
    results.row(race, "prepare", "one search")


def test_same_neighbours(rows: tuple[str, Tensor]) -> None:
    """Against float64, for some queries."""
    _, x = rows
    q, bank = x[-300:].contiguous(), x[: 40 * 384 : 1].contiguous()
    dist2, index = ops.nearest(q, bank, 3)
    every = torch.cdist(q.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    want = every.square().sort(dim=1, stable=True)
    assert torch.equal(index, want.indices[:, :3])
    torch.testing.assert_close(dist2, want.values[:, :3].float(), rtol=3e-7, atol=0)
