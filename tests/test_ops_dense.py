# SPDX-License-Identifier: Apache-2.0
"""Laws of the filter, the attention and the Poisson blend that hold for every input.

That each backend agrees with its reference on the samples is tested with the registry.
"""

from __future__ import annotations

import importlib
import math
from typing import Any, get_args

import numpy as np
import pytest
import scipy.fft
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fundad_fast.ops import distance_filter, poisson_blend, self_attention

filter_file = importlib.import_module("fundad_fast.ops.distance_filter")
attention_file = importlib.import_module("fundad_fast.ops.self_attention")
poisson_file = importlib.import_module("fundad_fast.ops.poisson_blend")

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**16)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# ------------------------------------------------------------------------------- distance_filter

shapes = st.sampled_from(["euclidean", "chebyshev", "manhattan"])
profiles = st.sampled_from(["1-d/(r+1)", "1-d/r"])
borders = st.sampled_from(["renormalise", "zero", "reflect"])


def test_the_kernel_of_the_paper():
    def kernel(*options: Any) -> NDArray[np.float64]:
        return filter_file._kernel(*options)[0]

    adopted = kernel(12.0, "radius", "euclidean", "1-d/(r+1)", "raw")
    assert adopted.shape == (25, 25)
    assert (adopted > 0).sum() == 441
    assert adopted.sum() == pytest.approx(173.1, abs=0.05)
    assert adopted[12, 12] == 1
    assert adopted[12, 0] == pytest.approx(1 / 13)  # inside the radius no weight is zero
    assert (kernel(12.0, "radius", "euclidean", "1-d/r", "raw") > 0).sum() == 437
    assert kernel(12.0, "radius", "euclidean", "1-d/(r+1)", "sum1").sum() == pytest.approx(1)
    even = kernel(12.0, "size", "euclidean", "1-d/(r+1)", "raw")
    assert even.shape == (12, 12)
    assert (even.any(0) & even.any(1)).all()
    assert even[5, 5] == even[6, 6] == pytest.approx(1 - math.sqrt(0.5) / 7)
    assert (kernel(3.0, "radius", "chebyshev", "1-d/(r+1)", "raw") > 0).sum() == 49
    assert (kernel(3.0, "radius", "manhattan", "1-d/(r+1)", "raw") > 0).sum() == 25


@given(
    st.integers(1, 20), st.integers(1, 20), st.floats(0.5, 13), shapes, profiles,
    st.sampled_from(["renormalise", "reflect"]), st.booleans(), st.floats(-1e3, 1e3),
)  # fmt: skip
@few
def test_a_constant_map_survives(h, w, radius, distance, profile, border, even, value):
    x = torch.full((1, 2, h, w), value)
    size = {"radius": 2.0 * math.ceil(radius / 2) + 2, "support": "size"}
    options = size if even else {"radius": radius}
    got = distance_filter(x, **options, distance=distance, profile=profile, border=border)
    torch.testing.assert_close(got, x, rtol=2e-6, atol=1e-30)


@given(seeds, st.integers(1, 15), st.floats(0.5, 9), shapes, profiles, borders)
@few
def test_the_filter_does_not_know_up_from_left(seed, n, radius, distance, profile, border):
    x = normal(1, 2, n, n + 3, seed=seed)

    def apply(t: Tensor) -> Tensor:
        return distance_filter(t, radius, distance=distance, profile=profile, border=border)

    for turn in (lambda t: t.rot90(1, (2, 3)), lambda t: t.flip(3), lambda t: t.mT):
        torch.testing.assert_close(apply(turn(x)), turn(apply(x)), rtol=1e-5, atol=3e-6)


@given(seeds, st.integers(1, 16), st.integers(1, 16), st.integers(0, 8), borders, st.booleans())
@few
def test_the_filter_is_a_depthwise_convolution(seed, h, w, radius, border, even):
    x = normal(2, 3, h, w, seed=seed, dtype=torch.float64)
    width = 2 * radius + 2 if even else 2 * radius + 1
    options = {"radius": width, "support": "size"} if even else {"radius": radius}
    kernel = torch.from_numpy(
        filter_file._kernel(
            float(options["radius"]), "size" if even else "radius", "euclidean", "1-d/(r+1)", "sum1"
        )[0].copy()
    )
    before, after = width // 2, (width - 1) // 2

    def convolve(t: Tensor) -> Tensor:
        mode = "reflect" if border == "reflect" else "constant"
        wide = np.pad(t.numpy(), ((0, 0), (0, 0), (before, after), (before, after)), mode)
        c = t.shape[1]
        return F.conv2d(torch.from_numpy(wide), kernel.expand(c, 1, width, width), groups=c)

    want = convolve(x)
    if border == "renormalise":
        want = want / convolve(torch.ones_like(x))
    got = distance_filter(x, **options, border=border)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("border", get_args(filter_file.Border))
@pytest.mark.parametrize("size", [None, 7, 12])
def test_direct_sum_and_transform_are_one(monkeypatch, border, size):
    x = normal(2, 3, 13, 10, dtype=torch.float64)
    options = {"radius": 5, "border": border}
    if size:
        options |= {"radius": size, "support": "size"}
    results = []
    for width in (0, 99):
        monkeypatch.setitem(filter_file._DIRECT_WIDTH, torch.contiguous_format, width)
        results.append(distance_filter(x, **options))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_the_transform_takes_planes_in_steps_of_any_size(monkeypatch):
    for x in (normal(3, 7, 11, 12), normal(3, 7, 11, 12).to(memory_format=torch.channels_last)):
        whole = distance_filter(x, 6)
        with monkeypatch.context() as patch:
            patch.setitem(filter_file._WORKSPACE, "cpu", 4 * 18 * 18 * 4)  # four planes at a time
            torch.testing.assert_close(distance_filter(x, 6), whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("border", get_args(filter_file.Border))
@pytest.mark.parametrize(
    "options", [{"radius": 2}, {"radius": 6}, {"radius": 4, "support": "size"}], ids=str
)
def test_gradients_of_the_filter(options, border):
    x = normal(1, 2, 4, 5, dtype=torch.float64).requires_grad_()

    def apply(t: Tensor) -> Tensor:
        return distance_filter(t, **options, border=border, gain="raw")

    assert torch.autograd.gradcheck(apply, x)
    assert torch.autograd.gradgradcheck(apply, x)


# ------------------------------------------------------------------------------- self_attention

readings = st.sampled_from(get_args(attention_file.Reading))
norms = st.sampled_from(get_args(attention_file.Norm))


@given(seeds, st.integers(1, 60), st.integers(1, 9), st.floats(-3, 30), norms)
@few
def test_rows_of_weights_sum_to_one(seed, n, d, scale, norm):
    f = torch.cat([normal(1, n, d, seed=seed), torch.full((1, n, 1), 2.0)], 2)
    got = self_attention(f, scale, norm)
    torch.testing.assert_close(got[..., -1], f[..., -1], rtol=1e-5, atol=0)
    assert (got <= f.amax(1, keepdim=True) + 1e-4).all()  # a mean lies among what it is made of
    assert (got >= f.amin(1, keepdim=True) - 1e-4).all()


@given(seeds, st.integers(1, 60), st.floats(-3, 10), norms)
@few
def test_columns_give_every_row_away_once(seed, n, scale, norm):
    f = normal(1, n, 5, seed=seed, dtype=torch.float64)
    got = self_attention(f, scale, norm, "column")
    torch.testing.assert_close(got.sum(1), f.sum(1), rtol=1e-9, atol=1e-9)
    shares = self_attention(f, scale, norm, "hadamard_sum") / f
    torch.testing.assert_close(shares[..., 0].sum(1), f.new_full((1,), n), rtol=1e-9, atol=1e-9)


@given(seeds, st.integers(1, 40), norms, readings)
@few
def test_attention_does_not_know_the_order(seed, n, norm, reading):
    f = normal(2, n, 6, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    one = self_attention(f[:, order], 1.0, norm, reading)
    torch.testing.assert_close(
        one, self_attention(f, 1.0, norm, reading)[:, order], rtol=1e-4, atol=1e-4
    )


@given(seeds, st.floats(0.01, 100), readings)
@few
def test_normalised_logits_do_not_know_the_length(seed, factor, reading):
    f = normal(1, 30, 6, seed=seed, dtype=torch.float64)
    want = self_attention(f, 5.0, "l2", reading)
    torch.testing.assert_close(self_attention(f * factor, 5.0, "l2", reading), want * factor)
    if reading.startswith("hadamard"):  # each row by its own factor, too
        uneven = torch.linspace(1, factor, 30, dtype=torch.float64)[:, None]
        torch.testing.assert_close(self_attention(f * uneven, 5.0, "l2", reading), want * uneven)


def test_scale_zero_is_the_mean():
    f = normal(2, 33, 5)
    torch.testing.assert_close(self_attention(f, 0.0), f.mean(1, keepdim=True).expand_as(f))


def test_long_rows_attract_only_themselves():
    f = normal(1, 50, 16).abs()
    f = f / f.norm(dim=2, keepdim=True) * torch.linspace(80, 100, 50)[:, None]
    assert self_attention(f).isfinite().all()
    torch.testing.assert_close(self_attention(torch.eye(20)[None] * 100), torch.eye(20)[None] * 100)


@pytest.mark.parametrize("reading", get_args(attention_file.Reading))
@pytest.mark.parametrize("norm", get_args(attention_file.Norm))
def test_gradients_of_attention(monkeypatch, norm, reading):
    monkeypatch.setitem(attention_file._ROWS, "cpu", 3)  # blocks, and a part of one
    f = normal(2, 7, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: self_attention(t, 0.7, norm, reading), f)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation of torch made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("reading", get_args(attention_file.Reading))
def test_attention_never_holds_all_weights(reading):
    n, d = 1500, 8
    f = normal(n, d)
    with Largest() as mode:
        attention_file._mix(f, 1.0, "none", reading)
        attention_file._slopes(f, f, 1.0, "none", reading)
    assert mode.elements <= 512 * n


# -------------------------------------------------------------------------------- poisson_blend


def literally(target: NDArray, source: NDArray, mask: NDArray) -> NDArray:
    """The blend in its textbook form: divergence of the mixed gradient field, target on
    the faces moved to the right-hand side, DST-I of SciPy; one channel, float64."""
    axes = range(target.ndim)
    inner = tuple(slice(1, -1) for _ in axes)
    m = np.zeros_like(mask)
    m[inner] = mask[inner]
    right = np.zeros([n - 2 for n in target.shape])
    eigenvalues = np.zeros_like(right)
    for a in axes:
        of_target, of_source = np.diff(target, axis=a), np.diff(source, axis=a)
        mixed = np.where(abs(of_target) >= abs(of_source), of_target, of_source)
        low = m[tuple(slice(-1) if b == a else slice(None) for b in axes)]
        field = np.where(low, mixed, of_target)
        at = tuple(slice(1, None) if b == a else slice(1, -1) for b in axes)
        less = tuple(slice(-1) if b == a else slice(1, -1) for b in axes)
        right += field[at] - field[less]
        for side in (0, -1):
            face = tuple(side if b == a else slice(1, -1) for b in axes)
            right[tuple(side if b == a else slice(None) for b in axes)] -= target[face]
        n = right.shape[a]
        along = 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) - 2
        eigenvalues += along.reshape([-1 if b == a else 1 for b in axes])
    out = target.copy()
    out[inner] = scipy.fft.idstn(scipy.fft.dstn(right, type=1) / eigenvalues, type=1)
    return out


boxes = st.integers(1, 3).flatmap(lambda d: st.lists(st.integers(3, 12), min_size=d, max_size=d))


@given(seeds, boxes, st.integers(1, 2))
@few
def test_blend_solves_the_equation_as_it_is_written(seed, shape, channels):
    target, source = (normal(channels, *shape, seed=seed + i, dtype=torch.float64) for i in (0, 1))
    mask = normal(*shape, seed=seed + 2) > -0.5
    got = poisson_blend(target, source, mask)
    for one, t, s in zip(got, target, source, strict=True):
        want = literally(t.numpy(), s.numpy(), mask.numpy())
        torch.testing.assert_close(one, torch.from_numpy(want), rtol=0, atol=1e-10)


@given(seeds, boxes)
@few
def test_laws_of_the_blend(seed, shape):
    # Small whole numbers: sums are exact, ties are real, and equality is the right test.
    g = torch.Generator().manual_seed(seed)
    target, source = (torch.randint(-3, 4, (2, *shape), generator=g).float() for _ in range(2))
    mask = torch.rand(shape, generator=g) < 0.7
    kept = target.clone(), source.clone(), mask.clone()
    got = poisson_blend(target, source, mask)
    assert all(torch.equal(a, b) for a, b in zip((target, source, mask), kept, strict=True))
    assert torch.equal(poisson_blend(target, source, torch.zeros_like(mask)), target)
    assert torch.equal(poisson_blend(target, -target + 1, mask), target)  # ties go to the target
    assert torch.equal(poisson_blend(target, source + 7, mask), got)
    inside = tuple(slice(1, -1) for _ in shape)
    framed = torch.ones_like(mask)
    framed[inside] = mask[inside]
    assert torch.equal(poisson_blend(target, source, framed), got)  # faces count as false
    shifted = poisson_blend(target + 7, source, mask)
    torch.testing.assert_close(shifted, got + 7, rtol=0, atol=1e-5)
    if target.numel():
        assert torch.equal(poisson_blend([target, source], [source, target], [mask] * 2)[0], got)


def test_blend_by_hand():
    target, source = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 4.0]])
    mask = torch.ones(3, dtype=torch.bool)
    # Only the difference from the middle to the right is in the mask: e·(-2) = 4 - 0.
    assert poisson_blend(target, source, mask).tolist() == [[0, -2, 0]]
    assert poisson_blend(target, source.flip(1), mask).tolist() == [[0, 0, 0]]
    five = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]])
    ones = torch.ones(5, dtype=torch.bool)
    # The peak's two slopes are both in the mask, so all of it arrives.
    torch.testing.assert_close(poisson_blend(five * 0, five, ones), five)


def test_no_box_is_no_work():
    assert poisson_blend([], [], []) == []
    with pytest.raises(ValueError, match="as many targets as sources and masks, got 0, 1 and 1"):
        poisson_blend([], [torch.zeros(1, 3)], [torch.zeros(3, dtype=torch.bool)])


def test_products_and_transform_of_sines_are_one(monkeypatch):
    target, source = normal(2, 9, 17, 8, dtype=torch.float64), normal(2, 9, 17, 8, seed=1).double()
    mask = torch.ones(9, 17, 8, dtype=torch.bool)
    want = poisson_blend(target, source, mask)
    monkeypatch.setattr(poisson_file, "_LONGEST_PRODUCT", 6)
    torch.testing.assert_close(poisson_blend(target, source, mask), want, rtol=0, atol=1e-12)


def test_the_matrix_of_sines_is_its_own_inverse():
    for n in (1, 2, 77, 512):
        sines = poisson_file._sines(n, torch.float64, torch.device("cpu"))
        eye = torch.eye(n, dtype=torch.float64)
        torch.testing.assert_close(sines @ sines, eye, rtol=0, atol=2e-14)


def test_what_has_no_gradient_says_so():
    target = normal(1, 5, 5).requires_grad_()
    out = poisson_blend(target, normal(1, 5, 5), torch.ones(5, 5, dtype=torch.bool))
    with pytest.raises(NotImplementedError, match="poisson_blend has no gradient"):
        out.sum().backward()
    f = normal(1, 5, 3).requires_grad_()
    (slope,) = torch.autograd.grad(self_attention(f).square().sum(), f, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second gradient"):
        slope.sum().backward()


# ------------------------------------------------------------------------------------ all three


def blend_half(t: Tensor) -> Tensor:
    return poisson_blend(t, t.flip(2), torch.ones(t.shape[1:], dtype=torch.bool))


CALLS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "distance_filter": (lambda t: distance_filter(t, 4), (2, 3, 9, 8)),
    "self_attention": (lambda t: self_attention(t, 0.5), (2, 9, 4)),
    "poisson_blend": (blend_half, (2, 9, 8)),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_graph_break(name):
    call, shape = CALLS[name]
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: call(t * 2).amax(0), fullgraph=True, backend="aot_eager")
    x = normal(*shape)
    torch.testing.assert_close(compiled(x), call(x * 2).amax(0))
    if name == "poisson_blend":
        return
    x.requires_grad_()
    (ours,) = torch.autograd.grad(compiled(x).sum(), x)
    (want,) = torch.autograd.grad(call(x * 2).amax(0).sum(), x)
    torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["distance_filter", "self_attention"])
def test_halves_are_no_worse_than_torch(name, dtype):
    """DESIGN.md 2.7: at most twice the error of torch's own form in the same type."""
    if name == "distance_filter":
        x = normal(1, 4, 24, 24, dtype=dtype) + 1
        kernel = torch.from_numpy(
            filter_file._kernel(4.0, "radius", "euclidean", "1-d/(r+1)", "sum1")[0].copy()
        )
        theirs = F.conv2d(x, kernel.to(dtype).expand(4, 1, 9, 9), groups=4, padding=4)
        ours = distance_filter(x, 4, border="zero")
        options = (4.0, "radius", "euclidean", "1-d/(r+1)", "sum1", "zero", False)
        true = filter_file.reference(x, *options)
    else:
        x = normal(1, 80, 32, dtype=dtype)
        theirs = torch.softmax(x @ x.mT, 2) @ x
        ours = self_attention(x)
        true = attention_file.reference(x, 1.0, "none", "row")
    assert (ours - true).norm() <= 2 * (theirs - true).norm()
    assert (ours - true).abs().max() <= 2 * (theirs - true).abs().max()


@pytest.mark.parametrize("name", ["distance_filter", "self_attention"])
def test_one_image_does_not_see_another(name):
    call, shape = CALLS[name]
    x = normal(*shape)
    torch.testing.assert_close(call(x)[:1], call(x[:1]), rtol=0, atol=0)
