# SPDX-License-Identifier: Apache-2.0
"""Which backends have run here, and with which instruction sets: all that need no GPU.

``test_ops.py`` skips what a machine cannot run. Here that is counted: where the native module is
required, as in CI, a backend that did not run is an error, and so is an instruction set that this
CPU has; those that it lacks are named in the skip.
"""

from __future__ import annotations

import os

import pytest
import torch

from fundad_fast.ops import OPS, _adapt

# No backend may go missing without a word: whoever adds one writes it down here.
PROMISED = {
    "change_labels": {"cpu", "torch"},
    "clean_labels": {"cpu", "torch"},
    "distance_filter": {"cpu", "torch", "triton"},
    "distance_transform": {"cpu", "torch"},
    "kcenter": {"cpu", "torch", "cuda"},
    "nearest": {"cpu", "torch", "faiss", "cuda", "triton"},
    "poisson_blend": {"cpu", "torch", "cuda", "triton"},
    "self_attention": {"cpu", "torch", "triton"},
    "self_attention_backward": {"torch"},
    "spline_sample": {"cpu", "torch"},
}
# Native code that is compiled once, for the narrowest vectors, and asks for no instruction set.
COMPILED_ONCE = {"change_labels", "clean_labels", "distance_transform", "spline_sample"}
WITHOUT_A_GPU = ("cpu", "torch", "triton")
Case = tuple[str, str, str]  # operator, backend, instruction set or ""


def wanted() -> set[Case]:
    return {
        (name, backend, isa)
        for name, op in OPS.items()
        for backend in op.backends
        if backend in WITHOUT_A_GPU
        for isa in (_adapt.native().Isa.__members__ if backend == "cpu" else [""])
    }


def ran(case: Case, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run an ordinary call and compare its result; false if this machine cannot."""
    name, backend, isa = case
    op, native = OPS[name], _adapt.native()
    args = next(iter(op.samples().values()))
    if isa and native.Isa[isa] > native.best_isa():
        return False
    if backend == "triton" and op.backends[backend].why_not(*args):
        return False
    calls: list[str] = []
    in_force = _adapt.isa
    with monkeypatch.context() as patch:
        if isa:
            patch.setenv("FUNDAD_ISA", isa)
            patch.setattr(_adapt, "isa", lambda: calls.append(in_force().name) or in_force())
        with op.using(backend):
            assert op.choose(*args).name == backend
            got = op.call(*args)
    asked = {isa} if isa and name not in COMPILED_ONCE else set()
    assert set(calls) == asked, f"{case} did not use its instruction set"
    op.check(args, got, op.reference(*args))
    return True


def test_every_backend_that_needs_no_gpu_runs_with_every_instruction_set(monkeypatch):
    native = _adapt.native()
    beyond = {case for case in wanted() if case[2] and native.Isa[case[2]] > native.best_isa()}
    missing = {case for case in wanted() - beyond if not ran(case, monkeypatch)}
    if os.environ.get("FUNDAD_REQUIRE_NATIVE") == "1":
        assert not missing
    if missing or beyond:
        pytest.skip(f"this machine cannot run {sorted(missing | beyond)}")


def test_every_promised_backend_is_there():
    for name, backends in PROMISED.items():
        assert backends <= set(OPS[name].backends), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_needs_a_gpu_says_why_it_does_not_run():
    """The list of them stands at the end of the tests' output."""
    for name, op in OPS.items():
        args = next(iter(op.samples().values()))
        if "cuda" in op.backends:
            assert op.backends["cuda"].why_not(*args), name
        assert op.choose(*args).name in WITHOUT_A_GPU
