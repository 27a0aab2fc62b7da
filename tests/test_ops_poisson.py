# SPDX-License-Identifier: Apache-2.0
"""poisson_blend's native form: tables of sines, boxes shared by threads, refusals."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from fundad_fast.ops import OPS, _adapt, poisson_blend

poisson_file = importlib.import_module("fundad_fast.ops.poisson_blend")
op = OPS["poisson_blend"]


def box(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    target, source = (torch.randn(shape, generator=g) for _ in range(2))
    return target, source, torch.rand(shape[1:], generator=g) < 0.8


def halves(n: int) -> list[Tensor]:
    """Even and odd sines, as they stand in the table, transposed again, and the eigenvalues."""
    table = poisson_file._halves(n).clone()
    parts = []
    for half in ((n + 1) // 2, n // 2):
        row = -(-half // 16) * 16
        for transposed in (False, True):
            matrix, table = table[: half * row].view(half, row), table[half * row :]
            assert (matrix[:, half:] == 0).all()  # what fills the last vector
            parts.append(matrix[:, :half].T if transposed else matrix[:, :half])
    return [*parts, table]


@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 33, 128, 205])
def test_a_table_of_sines(n):
    even, even_again, odd, odd_again, eigenvalues = halves(n)
    i = torch.arange(1, n + 1).double()
    sines = torch.sin(math.pi * i[:, None] * i / (n + 1)) * math.sqrt(2 / (n + 1))
    torch.testing.assert_close(even.double(), sines[0::2, : len(even)], rtol=0, atol=6e-8)
    torch.testing.assert_close(odd.double(), sines[1::2, : len(odd)], rtol=0, atol=6e-8)
    assert torch.equal(even, even_again)
    assert torch.equal(odd, odd_again)
    along = 2 * torch.cos(math.pi * i / (n + 1)) - 2
    want = torch.cat([along[0::2], along[1::2]])
    torch.testing.assert_close(eigenvalues[:n].double(), want, rtol=2e-5 / n, atol=3e-7)
    assert len(eigenvalues) == -(-n // 16) * 16
    assert (eigenvalues[n:] != 0).all()  # they are divided by


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512"])
@pytest.mark.parametrize("shape", [(2, 33, 47, 38), (1, 130, 131), (3, 67, 90), (2, 40, 3, 65)])
def test_threads_share_a_large_box(shape, isa, monkeypatch):
    """Boxes that are shared, in turn with such as are not; each as if it were alone."""
    if _adapt.native().Isa[isa] > _adapt.native().best_isa():
        pytest.skip(f"this CPU has no {isa}")
    monkeypatch.setenv("FUNDAD_ISA", isa)
    boxes = [box(1, 9, 12), box(*shape), box(1, 30), box(*shape, seed=1), box(2, 20, 17, 9)]
    targets, sources, masks = (list(part) for part in zip(*boxes, strict=True))
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(_adapt, "threads", lambda work, n=threads: n)
        with op.using("cpu"):
            results.append(poisson_blend(targets, sources, masks))
            for one, alone in zip(results[-1], boxes, strict=True):
                assert torch.equal(one, poisson_blend(*alone))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    for got, (target, source, mask) in zip(results[0], boxes, strict=True):
        want = poisson_blend(target.double(), source.double(), mask)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)


def test_a_box_is_not_read_beyond_its_end():
    """Behind the last cell of each tensor lies a page that may not be touched."""
    code = """
import ctypes, mmap, os, torch
from fundad_fast.ops import OPS, _adapt, poisson_blend

page = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)

def at_the_end(tensor):
    size = tensor.numel() * tensor.element_size()
    whole = -(-size // page) * page
    memory = mmap.mmap(-1, whole + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(start + whole), page, 0) == 0
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=whole - size)
    return copy.copy_(tensor.flatten()).view(tensor.shape)

# One inner row, a little longer than whole vectors: what follows it is short.
for shape in [(1, 3, 7), (1, 3, 11), (2, 3, 19), (1, 3, 3, 35), (1, 3, 3), (2, 7, 7, 7)]:
    box = [torch.randn(shape), torch.randn(shape), torch.ones(shape[1:], dtype=torch.bool)]
    for isa in _adapt.native().Isa:
        if isa <= _adapt.native().best_isa():
            os.environ["FUNDAD_ISA"] = isa.name
            with OPS["poisson_blend"].using("cpu"):
                assert torch.equal(poisson_blend(*map(at_the_end, box)), poisson_blend(*box))
"""
    # -P: what is installed, not the folder that the tests are run from.
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)


def test_ties_are_decided_exactly():
    """Opposite steps of one level: in float32 they look equal, and the target would win."""
    levels = torch.tensor([[0.0, 1, 4], [9, 8, 5]]) / 255
    target, source = levels[:, None, :, None].expand(2, 1, 3, 24).contiguous()
    exact = source.double().diff(dim=1).abs() > target.double().diff(dim=1).abs()
    rounded = source.diff(dim=1).abs() > target.diff(dim=1).abs()
    assert exact[0, 1, 0] != rounded[0, 1, 0]
    mask = torch.ones(3, 24, dtype=torch.bool)
    want = poisson_blend(target.double(), source.double(), mask)
    for backend in ("cpu", "torch"):
        with op.using(backend):
            got = poisson_blend(target, source, mask)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(2, 200), (2, 27, 30), (1, 14, 17, 12)])
def test_double_precision_is_as_exact_as_the_reference(shape):
    """A sparse direct solve, in one, two and three dimensions."""
    parts = [part.double() if part.dtype != torch.bool else part for part in box(*shape)]
    want = op.reference(*([part] for part in parts))[0]
    torch.testing.assert_close(poisson_blend(*parts), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "target, words",
    [
        (torch.zeros(1, 5, 5, dtype=torch.float64), "box 0 is torch.float64, and the native code"),
        (torch.zeros(1, 5, 5, 5, 5), "box 0 has 4 axes, the native code takes up to 3"),
        (torch.zeros(1, 3, 1537), "box 0 has 1537 cells on an axis, the native code takes 1536"),
    ],
)
def test_what_is_refused_is_refused_in_words(target, words):
    mask = torch.ones(target.shape[1:], dtype=torch.bool)
    with op.using("cpu"), pytest.raises(NotImplementedError, match=words):
        poisson_blend(target, target, mask)
    assert torch.equal(poisson_blend(target, target, mask), target)


def test_long_lines_need_no_table():
    target, source, mask = box(1, 5000)
    with op.using("cpu"):
        got = poisson_blend(target, source, mask)
    want = op.reference([target], [source], [mask])[0]
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)


def test_the_native_form_is_the_first_choice():
    assert op.choose(*([part] for part in box(1, 9, 9))).name == "cpu"
