# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' own text, compiled for the CPU and run on every sample of their operators.

It shows that indices, bounds and barriers are right. It does not show that the device agrees: tests
of that are those of ``test_ops.py``, which run where there is one.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from fundad_fast import ops
from fundad_fast.ops import OPS, _adapt
from fundad_fast.ops.cuda import nearest, poisson_blend
from fundad_fast.ops.cuda.picture import frame_of

HERE = Path(__file__).parent / "cuda_on_cpu"
CSRC = Path(__file__).parent.parent / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
WITH_CUDA = [name for name, op in OPS.items() if "cuda" in op.backends]
CASES = [(name, sample) for name in WITH_CUDA for sample in OPS[name].samples()]

pytestmark = [
    pytest.mark.skipif(not CSRC.is_dir(), reason="no sources beside the tests"),
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="fibres are made with ucontext"),
]


def build() -> ctypes.CDLL:
    kernels = sorted(p for p in (CSRC / "cuda").glob("*.cu") if p.name != "probe.cu")
    read = sorted([*HERE.iterdir(), *CSRC.rglob("*.h"), *CSRC.rglob("*.cuh"), *kernels])
    key = hashlib.sha256(b"".join(path.read_bytes() for path in read if path.is_file()))
    folder = Path(tempfile.gettempdir()) / f"fundad-cuda-on-cpu-{key.hexdigest()[:16]}"
    if not folder.exists():
        part = Path(tempfile.mkdtemp(dir=folder.parent))
        flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
        folders = [f"-I{path}" for path in (HERE, CSRC / "include", CSRC / "cuda")]
        sources = [HERE / "harness.cpp", "-x", "c++", *kernels]
        command = [COMPILER, *flags, *folders, *sources, "-o", part / "kernels.so"]
        subprocess.run([str(word) for word in command], check=True)
        try:
            part.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return ctypes.CDLL(str(folder / "kernels.so"))


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A native module whose CUDA functions are the kernels compiled for the CPU."""
    library = build()

    def function(name: str) -> Any:
        def call(*args: Any) -> int:
            kinds = {float: ctypes.c_double, int: ctypes.c_int64, bool: ctypes.c_bool}
            library.exchanges.restype = ctypes.c_int64
            return getattr(library, name)(*(kinds[type(arg)](arg) for arg in args))

        return call

    real = _adapt.native()  # samples may need what it has for the CPU
    module = types.SimpleNamespace(**{name: getattr(real, name) for name in dir(real)})
    for name in WITH_CUDA:
        setattr(module, f"{name}_cuda", function(f"{name}_cuda"))
    module.exchanges = function("exchanges")
    module.cuda_architectures = lambda: "none: fibres"
    monkeypatch.setattr(_adapt, "_native", module)
    monkeypatch.setattr(_adapt, "no_cuda", lambda *args: None)
    monkeypatch.setattr(_adapt, "stream", lambda tensor: 0)
    monkeypatch.setattr(_adapt, "multiprocessors", lambda tensor: 2)
    return module


def run(name: str, args: tuple[Any, ...]) -> Any:
    backend = OPS[name].backends["cuda"]
    if reason := backend.why_not(*args):
        pytest.skip(reason)
    return backend.run(*args)


@pytest.mark.parametrize("name, sample", CASES, ids=["-".join(case) for case in CASES])
def test_agrees_with_the_reference(name, sample):
    args = OPS[name].samples()[sample]
    OPS[name].check(args, run(name, args), OPS[name].reference(*args))


def test_kcenter_goes_on_from_its_picks(monkeypatch):
    monkeypatch.setattr(OPS["kcenter"], "_forced", "cuda")
    monkeypatch.setitem(
        OPS["kcenter"].backends,
        "cuda",
        types.SimpleNamespace(name="cuda", why_not=lambda *args: None),
    )
    x = torch.randn(900, 20, generator=torch.Generator().manual_seed(3))
    whole, radius2 = OPS["kcenter"].reference(x, 40, 5)
    state = ops.kcenter_state(x, 5)
    assert state.picks.tolist() == [5]
    assert torch.equal(state.advance(1), whole[:1])
    assert torch.equal(state.advance(13), whole[:13])
    again = ops.kcenter_state(x, picks=state.picks)
    picks, got = ops.kcenter(x, 40, state=again)
    assert torch.equal(picks, whole)
    torch.testing.assert_close(got, radius2.float())


def curved(n: int, seed: int) -> torch.Tensor:
    """Rows that vary most along a few directions, as features do."""
    g = torch.Generator().manual_seed(seed)
    low = torch.randn(n, 6, generator=g)
    return low @ torch.randn(6, 90, generator=torch.Generator().manual_seed(0)) + 0.05 * (
        torch.randn(n, 90, generator=g)
    )


def test_kcenter_in_several_blocks():
    args = (curved(20000, 8), 25, 19999)
    OPS["kcenter"].check(args, run("kcenter", args), OPS["kcenter"].reference(*args))


def test_kcenter_measures_few_rows(on_the_cpu):
    x = curved(32, 1).repeat_interleave(64, 0) * 20 + curved(2048, 9)
    before = on_the_cpu.exchanges()
    run("kcenter", (x, 200, 0))
    assert on_the_cpu.exchanges() - before < 0.075 * 5 * 200 * len(x)  # 5 exchanges make a sum


def test_nearest_measures_few_rows(on_the_cpu):
    bank, q = curved(2000, 2), curved(50, 3)
    before = on_the_cpu.exchanges()
    run("nearest", (q, bank, 2, []))
    assert on_the_cpu.exchanges() - before < 0.05 * 5 * len(q) * len(bank)


def test_nearest_where_a_picture_looks_nearer_than_its_row():
    bank = torch.zeros(600, 200)
    bank[5:, :150] = 10 * torch.randn(595, 150, generator=torch.Generator().manual_seed(10))
    bank[5:, 0] *= 9
    q = torch.zeros(1, 200)
    q[0, 180] = bank[0, 181] = bank[2, 180] = bank[4, 180] = 20
    bank[2, 0], bank[4, 0] = 10, 20  # row 0 looks as if it were the query, and is farther than 4
    bank[[1, 3], 1] = 90
    dist2, index = run("nearest", (q, bank, 2, []))
    assert index.tolist() == [[2, 4]]
    assert dist2.tolist() == [[100, 400]]


def test_nearest_makes_what_it_needs_of_a_bank_once(monkeypatch):

    bank, q = curved(300, 4), curved(10, 5)
    made = []
    monkeypatch.setattr(nearest, "frame_of", lambda *args: made.append(1) or frame_of(*args))

    for _ in range(3):
        run("nearest", (q, bank, 1, []))
    assert len(made) == 1
    bank[7] = q[3]
    assert run("nearest", (q, bank, 1, []))[1][3] == 7
    assert len(made) == 2


def test_nearest_takes_a_bank_of_inference_mode():
    """Which does not tell whether it was modified, so that nothing may be kept of it."""
    with torch.inference_mode():
        bank, q = curved(300, 4), curved(10, 5)
        run("nearest", (q, bank, 1, []))
        bank[7] = q[3]
        assert run("nearest", (q, bank, 1, []))[1][3] == 7


def test_nearest_halves_its_queries_where_memory_runs_out(monkeypatch):

    bank, q = curved(200, 6), curved(700, 7)
    sizes = []
    whole = nearest._search

    def narrow(part: torch.Tensor, *args: Any) -> None:
        sizes.append(len(part))
        if len(part) > limit:
            raise torch.cuda.OutOfMemoryError("injected")
        whole(part, *args)

    monkeypatch.setattr(nearest, "_search", narrow)
    limit = 200
    args = (q, bank, 2, [])
    OPS["nearest"].check(args, run("nearest", args), OPS["nearest"].reference(*args))
    assert sizes == [700, 350, 175, 175, 175, 175]
    limit = 100
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run("nearest", args)


def test_poisson_halves_its_batch_where_memory_runs_out(monkeypatch):
    sizes = []
    whole = poisson_blend._solve

    def narrow(boxes: list[Any]) -> Any:
        sizes.append(len(boxes))
        if len(boxes) > limit:
            raise torch.cuda.OutOfMemoryError("injected")
        return whole(boxes)

    monkeypatch.setattr(poisson_blend, "_solve", narrow)
    args = OPS["poisson_blend"].samples()["two"]
    args = tuple(part * 5 for part in args)
    limit = 2
    want = OPS["poisson_blend"].reference(*args)
    OPS["poisson_blend"].check(args, run("poisson_blend", args), want)
    assert sizes == [5, 2, 3, 1, 2]
    limit = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run("poisson_blend", args)
