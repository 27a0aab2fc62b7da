# SPDX-License-Identifier: Apache-2.0
"""faiss as a backend of nearest, and approximate search. (test_ops.py runs it on every sample.)"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from fundad_fast.ops import OPS, _adapt, nearest, nearest_approximate, nearest_faiss

faiss = pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason="faiss is not installed"
)


def clustered(n: int, d: int = 32, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    centers = 4 * torch.randn(40, d, generator=torch.Generator().manual_seed(99))
    return centers[torch.randint(40, (n,), generator=g)] + torch.randn(n, d, generator=g)


def test_without_faiss_it_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    bank = clustered(50)
    with OPS["nearest"].using("faiss"), pytest.raises(NotImplementedError) as refusal:
        nearest(bank, bank)
    assert "faiss: faiss is not installed: pip install 'fundad-fast[faiss]'" in str(refusal.value)
    with pytest.raises(NotImplementedError, match="nearest: faiss is not installed: pip install"):
        nearest_approximate(bank, bank)


def test_it_is_not_imported_unless_asked_for():
    code = "import sys, torch; from fundad_fast import ops; x = torch.ones(3, 2); "
    code += "ops.nearest(x, x); assert 'faiss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@faiss
def test_it_is_chosen_only_when_asked_for(monkeypatch):
    args = next(iter(OPS["nearest"].samples().values()))
    assert OPS["nearest"].choose(*args).name == "cpu"
    monkeypatch.setattr(_adapt, "_native", None)
    assert OPS["nearest"].choose(*args).name == "torch"
    monkeypatch.setenv("FUNDAD_BACKEND", "faiss")
    assert OPS["nearest"].choose(*args).name == "faiss"


@faiss
def test_it_decides_most_queries_itself_and_says_which_not():
    g = torch.Generator().manual_seed(0)
    bank = clustered(2000)
    q = clustered(200, seed=1)
    dist2, index, unsure = nearest_faiss.search(q, bank, bank.mean(0), 2)
    assert not unsure.any()
    every = torch.cdist(q.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    want = every.sort(dim=1, stable=True)
    assert torch.equal(index, want.indices[:, :2])
    torch.testing.assert_close(dist2, want.values[:, :2].square(), rtol=1e-12, atol=0)
    close = bank[:1] + 1e-6 * torch.randn(2000, 32, generator=g)
    assert nearest_faiss.search(close[:50], close, bank.mean(0), 2)[2].all()


@faiss
def test_undecided_queries_are_asked_again():
    g = torch.Generator().manual_seed(0)
    bank = clustered(1, d=16) + 1e-6 * torch.randn(900, 16, generator=g) + 5
    with OPS["nearest"].using("torch"):
        want = nearest(bank[::3], bank, 3)
    with OPS["nearest"].using("faiss"):
        got = nearest(bank[::3], bank, 3)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@faiss
@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_approximate_search_says_what_it_is_off_by(kind):
    bank, q = clustered(3000), clustered(300, seed=1)
    options = {"kind": kind, "cells": 64, "code_bytes": 16}
    wide = nearest_approximate(bank, q, 3, probes=64, rerank=3000, **options)
    narrow = nearest_approximate(bank, q, 3, probes=1, rerank=3, **options)
    assert wide.quality is not None
    assert narrow.quality is not None
    assert wide.quality.queries == 300
    assert wide.quality.recall == 1  # every row was measured
    assert wide.quality.score_error_max == 0
    assert wide.quality.missed == 0
    exact = nearest(q, bank, 3)
    got = wide.search(q, 3)
    assert torch.equal(got[1], exact[1])
    torch.testing.assert_close(got[0], exact[0])
    dist2, index = narrow.search(q, 3)
    assert (dist2 >= exact[0] * (1 - 1e-6)).all()  # never nearer than the nearest
    true = (q[:, None].double() - bank[index].double()).square().sum(2)
    torch.testing.assert_close(dist2, true.float())  # and true for the row that was found
    found = (index[:, :, None] == exact[1][:, None]).any(1).float().mean()
    assert narrow.quality.recall == pytest.approx(float(found), abs=0.01)
    assert narrow.quality.recall < 1
    off = (dist2[:, 0].sqrt() - exact[0][:, 0].sqrt()) / exact[0][:, 0].sqrt().mean()
    assert narrow.quality.score_error_mean == pytest.approx(float(off.mean()), rel=1e-4)
    assert narrow.quality.score_error_max == pytest.approx(float(off.max()), rel=1e-4)


@faiss
def test_approximate_search_twice_is_the_same():
    bank, q = clustered(3000), clustered(100, seed=1)
    both = [nearest_approximate(bank, q, cells=40, probes=2, code_bytes=8) for _ in range(2)]
    assert both[0].quality == both[1].quality
    assert torch.equal(both[0].search(q, 5)[1], both[1].search(q, 5)[1])
    assert both[0].settings["cells"] == 40


@faiss
def test_rows_that_were_not_found_are_said_so():
    """Two far clusters in two cells, one of them looked through: it has only three rows."""
    bank = torch.cat([clustered(300), torch.full((3, 32), 1e3)])
    made = nearest_approximate(bank, bank[:2], kind="ivf", cells=2, probes=1)
    dist2, index = made.search(torch.full((1, 32), 999.0), 5)
    assert index.tolist() == [[300, 301, 302, -1, -1]]
    assert dist2[0].tolist() == [32, 32, 32, float("inf"), float("inf")]
    near_zero = made.search(bank[:1], 2)
    assert near_zero[1][0, 0] == 0
    assert near_zero[0][0, 0] == 0


@faiss
@pytest.mark.parametrize(
    "change, pattern",
    [
        ({"queries": torch.ones(0, 32)}, "want queries to measure"),
        ({"bank": torch.ones(4)}, "want bank"),
        ({"bank": torch.full((300, 32), torch.nan)}, "not finite"),
        ({"kind": "hnsw"}, "kind='hnsw': use ivf or ivfpq"),
        ({"cells": 301}, "want 1 <= cells <= 300"),
        ({"probes": 0}, "probes >= 1"),
        ({"rerank": 0}, "rerank >= 1"),
        ({"kind": "ivfpq", "code_bytes": 7}, "divide d=32"),
        ({"kind": "ivfpq", "bank": clustered(200)}, "at least 256 rows"),
    ],
)
def test_bad_settings_are_refused_in_words(change, pattern):
    wanted = {"bank": clustered(300), "queries": clustered(5), "kind": "ivf", "cells": 4}
    with pytest.raises(ValueError, match=f"nearest: .*{pattern}"):
        nearest_approximate(**{**wanted, **change})


@faiss
@pytest.mark.parametrize(
    "q, k, pattern",
    [
        (torch.ones(2, 31), 1, r"want q \[m,32\]"),
        (torch.ones(2, 32), 0, "1 <= k <= n"),
        (torch.ones(2, 32), 301, "k=301 of 300"),
        (torch.full((2, 32), torch.inf), 1, "a query is not finite"),
    ],
)
def test_bad_queries_are_refused_in_words(q, k, pattern):
    made = nearest_approximate(clustered(300), clustered(5), kind="ivf", cells=4)
    with pytest.raises(ValueError, match=pattern):
        made.search(q, k)
    assert made.search(torch.ones(0, 32))[0].shape == (0, 1)
