# SPDX-License-Identifier: Apache-2.0
"""self_attention in C++, where a map is more than one tile: maxima that grow from tile to tile."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from fundad_fast.ops import OPS, _adapt, self_attention

attention_file = importlib.import_module("fundad_fast.ops.self_attention")
TILE = 768  # rows: kAttentionBlock in csrc/cpu/kernels.h
ISAS = ["base", "avx2", "avx512"]


def rows(n: int, d: int, order: str) -> Tensor:
    """Two maps whose rows grow longer, or shorter, from tile to tile; logits of up to 36."""
    f = torch.randn(2, n, d, generator=torch.Generator().manual_seed(n + d))
    length = torch.linspace(2, 6, n)
    length = {"rising": length, "falling": length.flip(0)}[order]
    return f / f.norm(dim=2, keepdim=True) * length[:, None]


def native(f: Tensor, isa: str, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    module = _adapt.native()
    if module.Isa[isa] > module.best_isa():
        pytest.skip(f"this CPU has no {isa}")
    monkeypatch.setenv("FUNDAD_ISA", isa)
    with OPS["self_attention"].using("cpu"):
        return self_attention(f)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("order", ["rising", "falling"])
@pytest.mark.parametrize("n, d", [(TILE, 7), (TILE + 1, 50), (2 * TILE + 55, 131)])
def test_tiles_agree_with_the_reference(n, d, order, isa, monkeypatch):
    f = rows(n, d, order)
    args = (f, 1.0, "none", "row")
    want = attention_file.reference(*args)
    OPS["self_attention"].check(args, native(f, isa, monkeypatch), want)


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_of_several_tiles_for_any_number_of_threads(isa, monkeypatch):
    f = rows(2 * TILE + 55, 100, "rising")
    found = []
    for threads in (1, 3, 24):  # so many that panels are shared out too
        monkeypatch.setattr(_adapt, "threads", lambda work, n=threads: n)
        found.append(native(f, isa, monkeypatch))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("row", [0, TILE, 2 * TILE])
def test_nan_in_any_tile_reaches_all_of_its_map_and_no_other(row, monkeypatch):
    f = rows(2 * TILE + 5, 9, "rising")
    f[0, row, 4] = torch.nan
    got = native(f, "base", monkeypatch)
    assert got[0].isnan().all()
    assert got[1].isfinite().all()
