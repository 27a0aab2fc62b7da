# SPDX-License-Identifier: Apache-2.0
"""Operators of the synthetic tasks: laws, what is refused in words, and the ends of memory."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fundad_fast import ops
from fundad_fast.ops import OPS, clean_labels, spline_sample

BACKENDS = ["cpu", "torch"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beyond", ["edge", "zero"])
def test_a_spline_passes_through_its_cells_and_follows_lines(backend, beyond):
    g = torch.Generator().manual_seed(0)
    image = torch.randn(2, 9, 12, generator=g)
    grid = torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij")
    cells = torch.stack(grid).flatten(1)
    with OPS["spline_sample"].using(backend):
        got = spline_sample(image, cells, beyond)
        torch.testing.assert_close(got, image.flatten(1), rtol=0, atol=3e-6)
        wide = 0.5 * torch.arange(60.0)[:, None] - 0.25 * torch.arange(70.0)
        at = 25 + 10 * torch.rand(2, 50, generator=g)
        got = spline_sample(wide[None], at, beyond)
        torch.testing.assert_close(got[0], 0.5 * at[0] - 0.25 * at[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beyond", ["edge", "zero"])
def test_a_point_that_is_no_number_has_no_value(backend, beyond):
    image = torch.randn(1, 6, 7, 8, generator=torch.Generator().manual_seed(0))
    points = torch.full((3, 3), 2.5)
    points[1, 1] = math.nan
    with OPS["spline_sample"].using(backend):
        got = spline_sample(image, points, beyond)[0]
    assert got.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_beyond_the_edge(backend):
    image = torch.arange(1.0, 6.0)[None]
    points = torch.tensor([[-0.001, 0, 4, 4.001, -2, -99, 99, math.inf]])
    with OPS["spline_sample"].using(backend):
        zero = spline_sample(image, points, "zero")[0]
        edge = spline_sample(image, points, "edge")[0]
    want = torch.tensor([0, 1.0, 5, 0, 0, 0, 0, 0])
    torch.testing.assert_close(zero, want, rtol=0, atol=1e-6)
    assert (edge - torch.tensor([1, 1, 5, 5, 1, 1, 5, 5])).abs().max() < 0.03
    assert edge[4] == edge[5]  # moved to two cells outside
    assert edge[6] == edge[7]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(0, 2**31),
    st.floats(0.1, 1),
)
def test_cleaned_labels_have_no_basin_left(size, seed, share):
    g = torch.Generator().manual_seed(seed)
    values = (torch.rand(size, generator=g) * 5).floor() / 4
    mask = torch.rand(size, generator=g) < share
    got = [form_of(values, mask, backend) for backend in BACKENDS]
    assert torch.equal(*got)
    assert torch.equal(got[0].double(), OPS["clean_labels"].reference([values], [mask])[0])
    assert (got[0] >= values).all()
    whole = torch.ones_like(mask)
    once = form_of(values, whole, "cpu")
    assert torch.equal(form_of(once, whole, "cpu"), once)  # nothing is left to do
    assert float(once.max()) == float(values.max())


def form_of(values, mask, backend):
    with OPS["clean_labels"].using(backend):
        return clean_labels(values, mask)


def test_what_is_refused_is_refused_in_words():
    x = torch.zeros(1, 2, 3, 2, 3)
    for op, args, words in (
        ("spline_sample", (x[0], torch.zeros(3, 1), "edge"), None),
        ("spline_sample", (x, torch.zeros(4, 1), "edge"), "4 axes, the native code takes up to 3"),
        (
            "spline_sample",
            (x[0].double(), torch.zeros(3, 1).double(), "edge"),
            "float64, and the native code computes in float32",
        ),
        ("clean_labels", (x[0], x[0] == 0), "labels have 4 axes, the native code takes up to 3"),
        ("distance_transform", (x[0] == 0,), "a mask has 4 axes, the native code takes up to 3"),
    ):
        call = getattr(ops, op)
        with OPS[op].using("cpu"):
            if words is None:
                call(*args)
                continue
            with pytest.raises(NotImplementedError, match=words):
                call(*args)
        call(*args)


def test_memory_is_not_read_beyond_its_end():
    """Behind the last cell of each tensor lies a page that may not be touched."""
    code = """
import ctypes, mmap, torch
from fundad_fast.ops import OPS, change_labels, clean_labels, distance_transform, spline_sample
from fundad_fast.ops import _adapt

page, libc, kept = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True), []

def at_the_end(tensor):
    size = tensor.numel() * tensor.element_size()
    whole = -(-size // page) * page
    memory = mmap.mmap(-1, whole + page)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(start + whole), page, 0) == 0
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=whole - size)
    return copy.copy_(tensor.flatten()).view(tensor.shape)

import importlib
file = importlib.import_module("fundad_fast.ops.spline_sample")
file._scratch = lambda floats: at_the_end(torch.zeros(floats))
for shape in [(1, 5), (2, 6, 7), (1, 4, 5, 6), (1, 1, 1, 1)]:
    image = torch.randn(shape)
    top = torch.tensor(shape[1:])[:, None].float() - 1
    points = torch.cat([top + 9, top + 2, top, 0 * top - 9, 0 * top], 1)
    for beyond in ("edge", "zero"):
        with OPS["spline_sample"].using("cpu"):
            spline_sample(at_the_end(image), at_the_end(points), beyond)
    values = torch.rand(shape[1:])
    with OPS["clean_labels"].using("cpu"):
        clean_labels(at_the_end(values), at_the_end(values >= 0))
    with OPS["distance_transform"].using("cpu"):
        distance_transform(at_the_end(values >= 0))
    whole, mask = at_the_end(image[None]), at_the_end((values >= 0)[None])
    with OPS["change_labels"].using("cpu"):
        box = (0, *[0] * values.dim(), *values.shape)
        change_labels(whole, at_the_end(0 * image[None]), mask, [box], sigma=1)
"""
    # -P: what is installed, not the folder that the tests are run from.
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)
