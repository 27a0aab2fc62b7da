# SPDX-License-Identifier: Apache-2.0
"""The Triton forms, by the interpreter: blocks, bounds, memory, the table, refusals.

That each agrees with its reference on the samples is tested with the registry.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fundad_fast.ops import OPS
from fundad_fast.ops.triton import tuned
from fundad_fast.ops.triton.availability import interpreted, no_triton

pytest.importorskip("triton", reason="triton is not installed")
here = pytest.mark.skipif(not interpreted(), reason="there is a GPU")

filter_file = importlib.import_module("fundad_fast.ops.distance_filter")
attention_file = importlib.import_module("fundad_fast.ops.self_attention")

FORMS = [name for name, op in OPS.items() if "triton" in op.backends]


def ordinary(name: str) -> tuple[Any, ...]:
    return next(iter(OPS[name].samples().values()))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def agree(name: str, *args: Any) -> None:
    op = OPS[name]
    with op.using("triton"):
        op.check(args, op.call(*args), op.reference(*args))


# -------------------------------------------------------------------------------------- refusals


def test_no_form_is_chosen_unasked():
    """Until one has been measured on a GPU; and the interpreter is never worth it."""
    for name in FORMS:
        order = list(OPS[name].backends)
        assert order.index("torch") < order.index("triton")


@pytest.mark.parametrize("name", FORMS)
def test_without_triton_the_refusal_says_so(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    op = OPS[name]
    with op.using("triton"), pytest.raises(NotImplementedError, match="triton: triton is not inst"):
        op.call(*ordinary(name))


def test_other_refusals(monkeypatch):
    x = torch.ones(1)
    assert no_triton(torch.ones(1, device="meta")) is not None
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "a tensor is on cpu, where only Triton's interpreter runs" in no_triton(x)
    assert "a tensor is on meta" in no_triton(x.to("meta"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    late = types.SimpleNamespace(sum=type("JITFunction", (), {})())
    monkeypatch.setitem(sys.modules, "triton.language", late)
    assert "set after triton was imported" in no_triton(x)


def test_a_gpu_that_is_too_old_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert no_triton() == "the GPU is older than compute capability 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert no_triton() is None


ADOPTED = ("euclidean", "1-d/(r+1)", "sum1", "renormalise", False)


@pytest.mark.parametrize(
    "name, args, pattern",
    [
        ("distance_filter", (torch.ones(1, 1, 3, 3).double(), 2.0, "radius", *ADOPTED), "float64"),
        ("distance_filter", (torch.ones(1, 1, 3, 3), 17.0, "radius", *ADOPTED), "35 taps wide"),
        ("distance_filter", (torch.ones(1, 1, 3, 3), 34.0, "size", *ADOPTED), "34 taps wide"),
        ("self_attention", (torch.ones(1, 3, 3).double(), 1.0, "none", "row"), "float64"),
        ("nearest", (torch.ones(1, 1), torch.ones(1100, 1), 1025, []), "k = 1025"),
        ("poisson_blend", ([torch.ones(1, 4).double()],) * 2 + ([torch.ones(4) > 0],), "float64"),
        (
            "poisson_blend",
            ([torch.ones(1, 3, 3, 3, 3)],) * 2 + ([torch.ones(3, 3, 3, 3) > 0],),
            "4 axes",
        ),
    ],
)
def test_what_a_form_cannot_take(name, args, pattern):
    with OPS[name].using("triton"), pytest.raises(NotImplementedError, match=pattern):
        OPS[name].call(*args)


# ----------------------------------------------------------------------------------------- blocks


@here
@pytest.mark.parametrize("border", get_args(filter_file.Border))
@pytest.mark.parametrize("adjoint", [False, True])
def test_the_filter_in_many_blocks(border, adjoint):
    x = normal(1, 3, 5, 6)
    small = {"columns": 4, "channels": 2, "rows": 3, "warps": 4}
    with tuned.trying("distance_filter", tuned.INTERPRETER, small):
        options = ("euclidean", "1-d/(r+1)", "sum1", border, adjoint)
        agree("distance_filter", x, 1.5, "radius", *options)
        last = x.to(memory_format=torch.channels_last)
        agree("distance_filter", last, 2.0, "size", *options)


@here
def test_the_widest_kernel():
    agree("distance_filter", normal(1, 1, 3, 20), 33.0, "size", *ADOPTED)


@here
@pytest.mark.parametrize("reading", get_args(attention_file.Reading))
def test_attention_in_many_panels_and_groups_of_maps(reading):
    config = tuned.config("self_attention", tuned.INTERPRETER)
    small = {"queries": 16, "keys": 32, "features": 16, "mix_queries": 16, "mix_keys": 16}
    some = config | small | {"mix_features": 16, "panel_rows": 40, "panel": 40 * 70 * 2}
    with tuned.trying("self_attention", tuned.INTERPRETER, some):
        agree("self_attention", normal(3, 70, 20), 0.3, "none", reading)
        agree("self_attention", normal(3, 70, 20).half(), 3.0, "l2", reading)


@here
def test_weights_of_16_bits_are_worse_but_not_worse_than_torch():
    f = (0.3 * normal(1, 80, 32)).half()
    want = attention_file.reference(f, 1.0, "none", "row")
    theirs = torch.softmax(f @ f.mT, 2) @ f
    config = tuned.config("self_attention", tuned.INTERPRETER) | {"split_weights": False}
    with OPS["self_attention"].using("triton"):
        both = OPS["self_attention"].call(f, 1.0, "none", "row")
        with tuned.trying("self_attention", tuned.INTERPRETER, config):
            one = OPS["self_attention"].call(f, 1.0, "none", "row")
    errors = [float((t.double() - want).norm()) for t in (both, one, theirs)]
    assert errors[0] < errors[1] < errors[2]


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that an operation of torch made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.bytes = max(self.bytes, out.numel() * out.element_size())
        return out


@here
@pytest.mark.parametrize("reading", get_args(attention_file.Reading))
def test_attention_never_holds_all_weights(reading):
    n, f = 500, normal(1, 500, 8)
    config = tuned.config("self_attention", tuned.INTERPRETER) | {"panel_rows": 64}
    with tuned.trying("self_attention", tuned.INTERPRETER, config), Largest() as mode:
        attention_file.op.backends["triton"].run(f, 1.0, "none", reading)
    assert mode.bytes <= 64 * n * 4


# ----------------------------------------------------------------------------------------- bounds


@here
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 3e4, 1e18])
def test_what_rounding_to_16_bits_moves_is_known(scale):
    from fundad_fast.ops.triton import nearest as kernels

    x = normal(70, 45) * scale
    x[1:, 7] *= torch.logspace(0, 8, 69)  # one long coordinate leaves the others few bits
    x[5] = 0
    center = x[:3].mean(0)
    rounded, unscale, norm, moved = kernels._rounded(x, center, 16, 32)
    taken = rounded.double() * unscale.double()[:, None]
    off = (x.double() - center.double() - taken).norm(dim=1)
    assert (moved >= off).all()
    if scale <= 1e5:  # beyond, squares overflow, and nothing is ruled out
        assert (moved <= 1.001 * off + 1e-7 * (x.double() - center).norm(dim=1) + 1e-18).all()
    if 1e-12 <= scale <= 1e5:
        assert (norm >= taken.norm(dim=1) * (1 - 1e-7)).all()
        assert (norm <= taken.norm(dim=1) * (1 + 1e-5)).all()


@here
def test_a_query_measures_few_tiles():
    """Else the bounds are of no use: results would be right, and slow."""
    from fundad_fast.ops.triton import nearest as kernels

    bank = normal(640, 24)
    q = bank[:20] + 0.01 * normal(20, 24, seed=1)
    bank[64:] += 50  # all but the first tile are far away
    made = kernels.prepare(bank)
    found = kernels.search(q, bank, made, 1)
    wrong = bank.clone()
    wrong[64:] = q[0]  # would be nearest, if any of these tiles were measured
    again = kernels.search(q, wrong, made, 1)
    assert torch.equal(found[1], again[1])
    assert torch.equal(found[0], again[0])


@here
def test_rows_that_differ_by_less_than_16_bits_can_tell():
    """One row of each tile is near, all nearly equally: rounding puts them in another order."""
    for seed in range(6):
        away = normal(640, 3, seed=seed).double()
        away /= away.norm(dim=1, keepdim=True)
        far = torch.full((640, 1), 3.0, dtype=torch.float64)
        far[::64] = 1 + 1e-5 * normal(10, 1, seed=seed + 50).double()
        q = normal(1, 3, seed=seed + 90)
        agree("nearest", q, (q + far * away).float(), 1, [])


@here
def test_a_bank_that_changes_in_place_is_rounded_anew():
    op, q, bank = OPS["nearest"], normal(3, 5), normal(70, 5, seed=1)
    with op.using("triton"):
        op.call(q, bank, 1, [])
        bank[69] = q[0]
        assert op.call(q, bank, 1, [])[1][0] == 69
        with torch.inference_mode():
            bank = bank.clone()
            assert op.call(q, bank, 1, [])[1][0] == 69
            bank[3] = q[0]
            assert op.call(q, bank, 1, [])[1][0] == 3


@here
def test_queries_in_parts_are_the_same(monkeypatch):
    from fundad_fast.ops.triton import nearest as kernels

    q, bank = normal(23, 10), normal(200, 10, seed=1)
    made = kernels.prepare(bank)
    whole = kernels.search(q, bank, made, 3)
    monkeypatch.setattr(kernels, "_BOUNDS", 4 * 5)  # five queries at a time
    parts = kernels.search(q, bank, made, 3)
    assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))


# -------------------------------------------------------------------------------------- the table


def test_the_table_says_what_was_measured():
    assert set(tuned.table()) == set(FORMS)
    for classes in tuned.table().values():
        assert tuned.INTERPRETER in classes
        for name, entry in classes.items():
            assert set(entry) == {"config", "measured"}
            if entry["measured"] is not None:
                assert name != tuned.INTERPRETER
                assert {"gpu", "ms", "date", "triton"} <= set(entry["measured"])


def test_a_winner_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "FILE", tmp_path / "tuned.json")
    before = dict(tuned.table()["distance_filter"])
    config = {"columns": 8, "channels": 8, "rows": 0, "warps": 2}
    try:
        tuned.keep("distance_filter", "planes", config, {"gpu": "none", "ms": 1.0})
    finally:
        tuned.table()["distance_filter"] = before
    written = json.loads(tuned.FILE.read_text())
    assert written["distance_filter"]["planes"]["config"] == config
    assert written["distance_filter"]["planes"]["measured"] == {"gpu": "none", "ms": 1.0}
    assert written["nearest"] == tuned.table()["nearest"]
    assert Path(tuned.__file__).with_name("tuned.json").read_text() == tuned._text(tuned.table())


# ---------------------------------------------------------------------------- compilation for GPUs

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a program may have there


def compile_ahead(capability: int, extent: str, cache: Path) -> Iterator[dict[str, Any]]:
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    program = Path(__file__).with_name("triton_ahead.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), str(capability), extent],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    yield from json.loads(done.stdout)


@pytest.mark.parametrize(
    "capability, extent",
    [
        (90, "some"),
        pytest.param(90, "all", marks=pytest.mark.slow),
        pytest.param(80, "all", marks=pytest.mark.slow),
    ],
)
def test_kernels_compile_for_gpus_that_are_not_here(capability, extent, tmp_path):
    found = list(compile_ahead(capability, extent, tmp_path))
    assert {one["kernel"] for one in found} == {
        "_correlate", "_weights", "_mix", "_round_rows", "_products", "_decide", "_begin",
        "_product",
    }  # fmt: skip
    for one in found:
        assert one["shared"] <= SHARED[capability], one
        assert one["stack"] <= (256 if capability == 90 else 1024), one
