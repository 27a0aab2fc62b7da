# SPDX-License-Identifier: Apache-2.0
"""The integers of a bank: results as without them, whatever the rows; and how they are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from fundad_fast.ops import OPS, NearestPrepared, _adapt, nearest, nearest_prepare, nearest_tiles
from fundad_fast.ops.nearest_tiles import Tiles

few = settings(max_examples=40, deadline=None)


def features(n: int, d: int = 70, rank: int = 6, seed: int = 0, noise: float = 0.05) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, rank, generator=g) @ torch.randn(rank, d, generator=g)
    return mixed + noise * torch.randn(n, d, generator=g)


def searched(
    q: Tensor, bank: Tensor, prepared: NearestPrepared, k: int = 1
) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
    out = [torch.empty(len(q), k, dtype=t) for t in (torch.float64, torch.float32, torch.int64)]
    assert prepared.tiles is not None
    effort = nearest_tiles.search(q, bank, prepared.center, prepared.tiles.tensors(), out)
    return out[1], out[2], effort


def assert_same(q: Tensor, bank: Tensor, k: int) -> None:
    want = nearest(q, bank, k, nearest_prepare(bank, tiles=False))
    got = nearest(q, bank, k, nearest_prepare(bank, tiles=True))
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(got[1], want[1])


@given(
    st.integers(1, 300),
    st.integers(1, 160),
    st.integers(1, 40),
    st.sampled_from([0.0, 1e-6, 0.05, 1.0]),
    st.sampled_from([0.0, 1.0, 1e4]),
    st.sampled_from([1e-3, 1.0, 30.0, 1e6, 1e25]),
    st.integers(0, 2**16),
    st.data(),
)
@few
def test_tiles_change_no_bit(n, d, rank, noise, shift, stretch, seed, data):
    """Also for queries far outside of what the bank's integers can express."""
    g = torch.Generator().manual_seed(seed)
    bank = features(n, d, rank, seed, noise)
    queries = features(110, d, rank, seed, noise + 0.01) * stretch ** torch.rand(
        110, 1, generator=g
    )
    queries[::9] = bank[torch.arange(0, 110, 9) % n]
    assert_same(queries + shift, bank + shift, data.draw(st.integers(1, min(n, 64))))


@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 2**16), st.data())
@few
def test_ties_across_tiles(d, width, seed, data):
    """Every grid point twice, in any order: as many ties as there can be, most across tiles."""
    g = torch.Generator().manual_seed(seed)
    grid = torch.cartesian_prod(*[torch.arange(float(width))] * d).view(-1, d).repeat(2, 1)
    bank = grid[torch.randperm(len(grid), generator=g)]
    assert_same(grid[::3] + 0.5, bank, data.draw(st.integers(1, min(len(bank), 64))))


def test_a_grid_of_ties():
    grid = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    dist2, index = nearest(grid + 0.5, grid, 4, nearest_prepare(grid, tiles=True))
    assert (dist2[index[:, 0] < 89] >= 0.5).all()
    assert dist2[0].tolist() == [0.5] * 4
    assert index[0].tolist() == [0, 1, 10, 11]


@pytest.mark.parametrize("d", [40, 100, 300])
def test_near_rows_that_lie_in_other_tiles(d):
    """The same in all directions, so that what the first coordinates leave decides."""
    g = torch.Generator().manual_seed(0)
    q = torch.randn(300, d, generator=g)
    bank = q.repeat(8, 1) + 0.3 * torch.randn(2400, d, generator=g)
    prepared = nearest_prepare(bank, tiles=True)
    assert searched(q, bank, prepared)[2][2] > 1.1 * len(q)  # the first best are not the best
    for k in (1, 3):
        assert_same(q, bank, k)


def test_the_effort_is_what_tiles_are_for_and_does_not_depend_on_threads(monkeypatch):
    bank = features(4000, rank=5)
    q = bank[::8] + 0.02 * torch.randn(500, 70, generator=torch.Generator().manual_seed(2))
    prepared = nearest_prepare(bank, tiles=True)
    efforts = []
    for threads in (1, 3):
        monkeypatch.setattr(_adapt, "threads", lambda work, n=threads: n)
        efforts.append(searched(q, bank, prepared)[2])
    assert efforts[0] == efforts[1]
    left, fine, measured = efforts[0]
    assert left < 0.2 * len(q) * 63
    assert fine < 5 * len(q)
    assert measured < 1.2 * len(q)


def test_finer_integers_leave_less_to_measure():
    every = features(2200, d=200, rank=100, noise=0.0)
    bank, q = every[:2000], every[2000:]
    _, _, (_, fine, measured) = searched(q, bank, nearest_prepare(bank, tiles=True))
    assert measured < fine / 2


def test_every_row_has_one_slot_and_errors_cover_the_rounding():
    bank = features(1000, d=90, rank=30)
    tiles = nearest_prepare(bank, tiles=True).tiles
    assert tiles is not None
    rows = tiles.row.flatten()
    assert rows[:1000].sort().values.tolist() == list(range(1000))
    assert (rows[1000:] == 1000).all()
    scale, slack, coarse_step, coarse_error, step, fine_error, finer_error, radius = (
        tiles.lengths.tolist()
    )
    fine = tiles.fine.transpose(1, 2).reshape(-1, 64).double()[:1000] * step
    finer = tiles.finer.view(-1, 64).double()[:1000] * step
    assert fine.norm(dim=1).max() <= radius + fine_error
    true = torch.cdist(bank[rows[:1000]].double(), bank[rows[:1000]].double()) / scale
    both = torch.cat([fine[:, :-1], finer], 1)
    coarse = (tiles.coarse.view(-1, 16).double()[:1000] - 128) * coarse_step + tiles.middle
    for vectors, error in ((coarse, coarse_error), (fine, fine_error), (both, finer_error)):
        assert (torch.cdist(vectors, vectors) <= true + slack + 2 * error).all()
        assert 0 < error < 0.02
    assert (true <= torch.cdist(both, both) + 0.02).all()  # 30 directions: nothing is lost


def test_products_where_rows_vary_in_all_directions_alike():
    g = torch.Generator().manual_seed(0)
    flat = torch.randn(3000, 256, generator=g)
    assert made(nearest_prepare(flat)) == 0
    assert made(nearest_prepare(flat, tiles=True)) == 47
    assert made(nearest_prepare(features(3000, 256))) == 47
    assert made(nearest_prepare(features(3000, 256), tiles=False)) == 0
    assert made(nearest_prepare(features(100, 256))) == 0  # few rows


@pytest.mark.parametrize(("noise", "k", "answered"), [(0.05, 9, 700), (1.0, 9, 256), (1.0, 1, 700)])
def test_several_neighbours_come_from_tiles_for_as_long_as_that_is_cheaper(noise, k, answered):
    bank, q = features(3000, 256, noise=noise), features(700, 256, noise=noise, seed=1)
    ready = nearest_prepare(bank, tiles=True)
    assert ready.tiles is not None
    out = [torch.full((700, k), -1, dtype=t) for t in (torch.float64, torch.float32, torch.int64)]
    tiles = ready.tiles.tensors()
    assert nearest_tiles.search_while_cheap(q, bank, ready.center, tiles, out) == answered
    want = nearest(q, bank, k, nearest_prepare(bank, tiles=False))
    assert torch.equal(out[2][:answered], want[1][:answered])
    assert (out[2][answered:] == -1).all()
    got = nearest(q, bank, k, ready)  # the rest from products
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=0)


def made(prepared: NearestPrepared) -> int:
    assert prepared.tiles is not None
    return len(prepared.tiles.row)


def test_preparation_does_not_depend_on_threads(monkeypatch):
    bank = features(3000, 100)
    both = []
    for threads in (1, 3):
        monkeypatch.setattr(_adapt, "threads", lambda work, n=threads: n)
        both.append(nearest_prepare(bank).tensors())
    assert set(both[0]) == set(both[1])
    for name in both[0]:
        assert torch.equal(both[0][name], both[1][name]), name


@pytest.mark.parametrize("tiles", [True, False])
def test_kept_in_a_file_and_read_again(tiles, tmp_path):
    bank = features(200)
    before = nearest_prepare(bank, tiles)
    save_file(before.tensors(), tmp_path / "bank.safetensors")
    after = NearestPrepared.from_tensors(load_file(tmp_path / "bank.safetensors"))
    assert made(after) == (4 if tiles else 0)  # as it was decided: not tried again
    for name, tensor in before.tensors().items():
        assert torch.equal(tensor, after.tensors()[name]), name
    assert torch.equal(nearest(bank, bank, 5, after)[0], nearest(bank, bank, 5)[0])


def test_a_bank_kept_without_tiles_gets_them():
    bank = features(2000)
    new = nearest_prepare(bank).tensors()
    old = {name: new[name] for name in ("rows", "center", "norm2")}
    again = NearestPrepared.from_tensors(old).tensors()
    assert set(again) == set(new)
    for name, tensor in new.items():
        assert torch.equal(tensor, again[name]), name


def spoil(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    kept = nearest_prepare(features(200), tiles=True).tensors()
    change(kept)
    return kept


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update({"tiles.coarse": t["tiles.coarse"][:-1]}),
        lambda t: t.update({"tiles.fine": t["tiles.fine"].int()}),
        lambda t: t.update({"rows": t["rows"][:100]}),
        lambda t: t.update({"tiles.row": t["tiles.row"][:0]}),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match="no tiles of a bank .*prepare again"):
        NearestPrepared.from_tensors(spoil(change))


def test_tiles_of_another_bank_are_refused():
    bank = features(200)
    other = nearest_prepare(features(100), tiles=True)
    with pytest.raises(ValueError, match="prepared was another"):
        nearest(bank, bank, 1, other)


def test_without_the_native_module_there_are_none(monkeypatch):
    bank = features(600)
    monkeypatch.setattr(_adapt, "_native", None)
    prepared = nearest_prepare(bank)
    assert prepared.tiles is None
    with pytest.raises(NotImplementedError, match="no tiles for this bank: .* not built"):
        nearest_prepare(bank, tiles=True)
    assert torch.equal(nearest(bank, bank, 1, prepared)[1][:, 0], torch.arange(600))


def test_other_backends_take_a_bank_with_tiles():
    bank = features(300)
    prepared = nearest_prepare(bank, tiles=True)
    with OPS["nearest"].using("torch"):
        assert torch.equal(nearest(bank, bank, 2, prepared)[1], nearest(bank, bank, 2)[1])


def test_bytes_per_row_are_as_stated():
    tiles = nearest_prepare(features(6400), tiles=True).tiles
    assert tiles is not None
    per_row = [getattr(tiles, name) for name in nearest_tiles.NAMES if name in per_row_names()]
    assert sum(t.numel() * t.element_size() for t in per_row) == 288 * 6400
    assert "288 bytes a row" in (Tiles.__doc__ or "")


def per_row_names() -> set[str]:
    return set(nearest_tiles.NAMES) - {"axes", "middle", "lengths"}
