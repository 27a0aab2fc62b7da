# SPDX-License-Identifier: Apache-2.0
"""Laws of kcenter and nearest that hold for every input, tried on inputs that nobody chose.

Rows of small integers: sums are exact, so ties are real and equality is the right test.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fundad_fast import ops
from fundad_fast.ops import (
    OPS,
    NearestPrepared,
    _adapt,
    kcenter,
    kcenter_state,
    nearest,
    nearest_prepare,
)

kcenter_file = importlib.import_module("fundad_fast.ops.kcenter")

few = settings(max_examples=25, deadline=None)


@st.composite
def rows(draw: st.DrawFn, least: int = 1, most: int = 90) -> Tensor:
    n, d = draw(st.integers(least, most)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**16))
    return torch.randint(-3, 4, (n, d), generator=torch.Generator().manual_seed(seed)).float()


def backends(name: str) -> Iterator[str]:
    """Forces each backend that can run here, one after the other.

    Not Triton's interpreter: it takes minutes for what hypothesis draws, and test_ops.py gives it
    every sample.
    """
    first = next(iter(OPS[name].samples().values()))
    for backend, form in OPS[name].backends.items():
        if backend == "triton" and not torch.cuda.is_available():
            continue
        if form.why_not(*first) is None:
            with OPS[name].using(backend):
                yield backend


@pytest.mark.parametrize("name", ["kcenter", "nearest"])
def test_every_instruction_set_gives_the_same_bits(name, monkeypatch):
    native = _adapt.native()
    isas = [isa for isa in native.Isa if isa <= native.best_isa()]
    for args in OPS[name].samples().values():
        results = []
        for isa in isas:
            monkeypatch.setenv("FUNDAD_ISA", isa.name)
            with OPS[name].using("cpu"):
                results.append(OPS[name].call(*args))
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


# ---------------------------------------------------------------------------------------- kcenter


@given(rows(least=2), st.data())
@few
def test_fewer_picks_are_a_prefix_and_the_radius_never_grows(x, data):
    k = data.draw(st.integers(2, len(x)))
    start = data.draw(st.integers(0, len(x) - 1))
    for _ in backends("kcenter"):
        picks, radius2 = kcenter(x, k, start)
        fewer, wider2 = kcenter(x, k - 1, start)
        assert torch.equal(picks[:-1], fewer)
        assert (radius2 <= wider2).all()
        assert wider2[picks[-1]] == wider2.max()  # the last pick was the farthest row


@given(rows(least=2), st.data())
@few
def test_picks_lie_as_far_apart_as_the_radius(x, data):
    """What makes the greedy choice at most twice as wide as the best one (Gonzalez 1985)."""
    k = data.draw(st.integers(2, len(x)))
    for _ in backends("kcenter"):
        picks, radius2 = kcenter(x, k)
        chosen = x[picks]
        spacing2 = (chosen[:, None] - chosen).square().sum(-1)
        assert spacing2.fill_diagonal_(float("inf")).min() >= radius2.max()


@given(rows(), st.data())
@few
def test_every_row_is_picked_once_in_the_end(x, data):
    for _ in backends("kcenter"):
        picks, radius2 = kcenter(x, len(x), data.draw(st.integers(0, len(x) - 1)))
        assert picks.sort().values.tolist() == list(range(len(x)))
        assert (radius2 == 0).all()


@given(rows(most=20), st.integers(2, 9), st.data())
@few
def test_copies_behind_the_rows_change_nothing(x, times, data):
    distinct = len(x.unique(dim=0))
    k = data.draw(st.integers(1, distinct))
    for _ in backends("kcenter"):
        assert torch.equal(kcenter(x.repeat(times, 1), k)[0], kcenter(x, k)[0])


@given(rows(), st.integers(-1000, 1000), st.sampled_from([0.25, 2.0, 1024.0]), st.data())
@few
def test_moving_or_scaling_all_rows_changes_no_pick(x, shift, factor, data):
    k = data.draw(st.integers(1, len(x)))
    for _ in backends("kcenter"):
        picks, radius2 = kcenter(x, k)
        moved, moved2 = kcenter(x + shift, k)
        scaled, scaled2 = kcenter(x * factor, k)
        assert torch.equal(picks, moved)
        assert torch.equal(picks, scaled)
        assert torch.equal(radius2, moved2)
        assert torch.equal(radius2 * factor**2, scaled2)


@given(rows(least=3), st.data())
@few
def test_a_state_goes_on_in_steps_and_after_a_kill(x, data):
    k = data.draw(st.integers(3, len(x)))
    first, second = sorted(data.draw(st.tuples(st.integers(1, k), st.integers(1, k))))
    for _ in backends("kcenter"):
        picks, radius2 = kcenter(x, k, start=1)
        state = kcenter_state(x, start=1)
        assert torch.equal(state.advance(first), picks[:first])
        again, again2 = kcenter(x, second, state=state)
        assert torch.equal(again, picks[:second])
        assert torch.equal(again2, kcenter(x, second, start=1)[1])
        taken_up = kcenter_state(x, picks=picks[:first].tolist())  # all that a kill leaves
        for one in (state, taken_up):
            last, last2 = kcenter(x, k, state=one)
            assert torch.equal(last, picks)
            assert torch.equal(last2, radius2)


@given(rows(least=3), st.data())
@few
def test_a_state_goes_on_from_any_picks(x, data):
    given = data.draw(st.permutations(range(len(x))))[: data.draw(st.integers(1, len(x)))]
    reach2 = (x[:, None] - x[given]).square().sum(-1).amin(1)
    reach2[given] = -1
    want = list(given)
    while len(want) < len(x):
        want.append(int(reach2.argmax()))
        reach2 = torch.minimum(reach2, (x - x[want[-1]]).square().sum(1))
        reach2[want[-1]] = -1
    for _ in backends("kcenter"):
        state = kcenter_state(x, picks=given)
        assert state.picks.tolist() == list(given)
        assert state.advance(len(x)).tolist() == want


def test_a_state_knows_its_rows():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    for _ in backends("kcenter"):
        state = kcenter_state(x)
        state.advance(5)
        with pytest.raises(ValueError, match="k=4, want 5 .made already. to 20 .rows."):
            state.advance(4)
        with pytest.raises(ValueError, match="k=21, want 5"):
            state.advance(21)
        with pytest.raises(ValueError, match="another x"):
            kcenter(x.clone(), 6, state=state)
        x.add_(0)
        with pytest.raises(ValueError, match="x was modified"):
            state.advance(6)


@pytest.mark.parametrize(
    "picks, pattern",
    [
        ([], "one or more picks"),
        ([1, 2, 1], "all different"),
        ([1, 20], "got 20 of 20"),
        ([-1], "got -1"),
        (list(range(21)), "k=21 of 20 rows"),
    ],
)
def test_picks_to_go_on_from_are_judged(picks, pattern):
    with pytest.raises(ValueError, match=pattern):
        kcenter_state(torch.ones(20, 3), picks=picks)


def test_a_state_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        kcenter_state(torch.full((4, 2), torch.nan))


def test_a_state_takes_rows_of_inference_mode():
    """They have no version, so that a change of them goes unseen, as the docstring forbids it."""
    with torch.inference_mode():
        x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    for _ in backends("kcenter"):
        assert torch.equal(kcenter(x, 9, state=kcenter_state(x))[0], kcenter(x.clone(), 9)[0])


@pytest.mark.parametrize("nearer", [2.5e-6, 0])
def test_float32_does_not_decide_between_nearly_equal_distances(nearer):
    """A row half-way between the picks is nearer to the second by less than float32 can tell."""
    g = torch.Generator().manual_seed(4)
    for _ in backends("kcenter"):
        for d in [1, 20, 300] * 40:
            middle = torch.randn(d, generator=g).abs() + 0.1
            far = 2 * middle.double() * (1 - nearer + 6e-8 * torch.randn(d, generator=g))
            x = torch.stack([torch.zeros(d), middle, far.float()])
            dist2 = (x.double() - x[1].double()).square().sum(1)
            assert kcenter(x, 2)[1][1] == min(dist2[0], dist2[2]).float()


def test_kcenter_ignores_gradients():
    x = torch.randn(9, 3, requires_grad=True)
    assert not kcenter(x, 3)[1].requires_grad
    assert not kcenter(x, 3, state=kcenter_state(x))[1].requires_grad


@given(
    st.integers(1, 60),
    st.integers(1, 200),
    st.integers(1, 100),
    st.sampled_from([0.0, 1.0, 1e4, 1e-20, 1e17]),
    st.integers(0, 2**16),
)
@few
def test_the_short_picture_never_stretches_a_distance(n, d, rank, shift, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, rank, generator=g) @ torch.randn(rank, d, generator=g)
    x = x + shift * torch.randn(d, generator=g)
    z, scale, slack = kcenter_file.short_picture(x)
    short = (z.double()[:, None] - z.double()).norm(dim=-1)
    true = (x.double()[:, None] - x.double()).norm(dim=-1) / scale
    assert (short <= true + slack).all()
    assert z.double().norm(dim=1).max() <= 1 + slack
    if rank <= 40:  # all that varies is in the picture: nothing of a distance is lost
        assert (short >= true - 1e-5 - 1e-6 * shift).all()


# ---------------------------------------------------------------------------------------- nearest


@given(rows(), rows(), st.data())
@few
def test_the_lowest_row_wins_among_copies(q, bank, data):
    d = min(q.shape[1], bank.shape[1])
    q, bank = q[:, :d], bank[:, :d]
    k = data.draw(st.integers(1, 2 * len(bank)))
    for _ in backends("nearest"):
        dist2, index = nearest(q, torch.cat([bank, bank]), k)
        every = (q[:, None] - torch.cat([bank, bank])).square().sum(-1)
        want = every.sort(dim=1, stable=True)
        assert torch.equal(dist2, want.values[:, :k])
        assert torch.equal(index, want.indices[:, :k])


@given(rows(), st.integers(-1000, 1000))
@few
def test_moving_everything_changes_nothing(x, shift):
    for _ in backends("nearest"):
        here, there = nearest(x[::2], x, len(x)), nearest(x[::2] + shift, x + shift, len(x))
        assert torch.equal(here[0], there[0])
        assert torch.equal(here[1], there[1])


@given(rows(least=2), st.integers(0, 2**16), st.data())
@few
def test_results_do_not_depend_on_the_other_queries_or_on_preparation(bank, seed, data):
    k = data.draw(st.integers(1, len(bank)))
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(130, bank.shape[1], generator=g)
    bank = bank + 0.1 * torch.randn(bank.shape, generator=g)
    cut = data.draw(st.integers(0, len(q)))
    prepared = NearestPrepared.from_tensors(nearest_prepare(bank).tensors())
    for _ in backends("nearest"):
        whole = nearest(q, bank, k)
        parts = [nearest(part, bank, k, prepared) for part in (q[:cut], q[cut:])]
        for at in (0, 1):
            assert torch.equal(whole[at], torch.cat([part[at] for part in parts]))


@given(rows(least=2), st.integers(0, 2**16))
@few
def test_the_order_of_the_bank_does_not_matter(bank, seed):
    g = torch.Generator().manual_seed(seed)
    bank = bank + torch.randn(bank.shape, generator=g)
    order = torch.randperm(len(bank), generator=g)
    q = torch.randn(11, bank.shape[1], generator=g)
    for _ in backends("nearest"):
        straight, shuffled = nearest(q, bank, 2), nearest(q, bank[order], 2)
        assert torch.equal(straight[0], shuffled[0])
        assert torch.equal(straight[1], order[shuffled[1]])


@given(rows())
@few
def test_a_row_is_its_own_nearest(x):
    for _ in backends("nearest"):
        dist2, index = nearest(x, x)
        assert (dist2 == 0).all()
        assert torch.equal(x[index[:, 0]], x)


@given(rows(least=4), st.integers(1, 4), st.integers(0, 2**16))
@few
def test_gradients_are_those_of_the_distances(bank, k, seed):
    g = torch.Generator().manual_seed(seed)
    bank = bank + 0.1 * torch.randn(bank.shape, generator=g)
    q = torch.randn(7, bank.shape[1], generator=g)
    weight = torch.randn(7, k, generator=g)
    for _ in backends("nearest"):
        mine = [q.clone().requires_grad_(), bank.clone().requires_grad_()]
        prepared = nearest_prepare(bank) if seed % 2 else None
        dist2, index = nearest(mine[0], mine[1], k, prepared)
        assert not index.requires_grad
        got = torch.autograd.grad((weight * dist2).sum(), mine)
        true = [q.double().requires_grad_(), bank.double().requires_grad_()]
        every = (true[0][:, None] - true[1]).square().sum(-1)
        want = torch.autograd.grad((weight * every.gather(1, index)).sum(), true)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sample", ["odd", "prepared"])
def test_nearest_is_a_differentiable_operator_to_torch(sample):
    q, bank, k, prepared = OPS["nearest"].samples()[sample]
    args = (q.detach().requires_grad_(), bank.detach().requires_grad_(), k, prepared)
    torch.library.opcheck(OPS["nearest"].call, args)


def test_a_gradient_for_one_side_only():
    q, bank = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True)
    nearest(q, bank)[0].sum().backward()
    assert q.grad is None
    assert bank.grad is not None
    half = torch.randn(3, 4, dtype=torch.float16, requires_grad=True)
    nearest(half, bank.detach())[0].sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.float16


def test_products_of_lower_precision_change_nothing(monkeypatch):
    """As torch may round factors (TF32, bfloat16) where it is told that it may."""
    exact = torch.addmm

    def rounded(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return exact(bias, a.bfloat16().float(), b.bfloat16().float())

    g = torch.Generator().manual_seed(0)
    q = torch.randn(60, 64, generator=g)
    bank = q.repeat(5, 1) + 0.01 * torch.randn(300, 64, generator=g)
    with OPS["nearest"].using("torch"):
        want = nearest(q, bank)
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
        monkeypatch.setattr(torch, "addmm", rounded)
        got = nearest(q, bank)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("file, block", [("kcenter", 100), ("nearest", (7, 5))])
def test_the_torch_forms_in_small_blocks(file, block, monkeypatch):
    op = OPS[file]
    module = importlib.import_module(f"fundad_fast.ops.{file}")
    monkeypatch.setattr(module, "BLOCK", {"cpu": block})
    for sample in ("all_equal", "grid", "far_from_origin", "wide_tie", "every_other"):
        args = op.samples()[sample]
        with op.using("torch"):
            op.check(args, op.call(*args), op.reference(*args))


def test_a_prepared_bank_is_plain_tensors():
    bank = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    prepared = nearest_prepare(bank)
    saved = prepared.tensors()
    assert all(isinstance(t, torch.Tensor) and t.is_contiguous() for t in saved.values())
    again = NearestPrepared.from_tensors({**saved, "something_else": bank})
    for name, tensor in again.tensors().items():
        assert torch.equal(tensor, saved[name])
    assert prepared.to("cpu").rows.device.type == "cpu"
    assert ops.nearest(bank, again.rows, prepared=again)[1][:, 0].tolist() == list(range(30))
    with pytest.raises(ValueError, match="lacks center; prepare again"):
        NearestPrepared.from_tensors({n: t for n, t in saved.items() if n != "center"})
