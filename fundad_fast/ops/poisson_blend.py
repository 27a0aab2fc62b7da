# SPDX-License-Identifier: Apache-2.0
"""Poisson editing: put the gradients of one image into another without a seam."""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from . import _adapt
from ._registry import Op


@overload
def poisson_blend(target: Tensor, source: Tensor, mask: Tensor) -> Tensor: ...


@overload
def poisson_blend(
    target: Sequence[Tensor], source: Sequence[Tensor], mask: Sequence[Tensor]
) -> list[Tensor]: ...


def poisson_blend(
    target: Tensor | Sequence[Tensor],
    source: Tensor | Sequence[Tensor],
    mask: Tensor | Sequence[Tensor],
) -> Tensor | list[Tensor]:
    """Blend ``source`` into ``target`` where ``mask`` is true, with mixed gradients.

    In the mask, of the two forward differences of each axis and channel the one that is larger in
    magnitude is wanted; a tie, or one that is not a number, goes to the target. The result is the
    image with these differences (in the least squares' sense) and with the target's values on the
    faces of the box. Perez et al. 2003 in the form of "Many tasks make light work", solved
    exactly by a discrete sine transform with the eigenvalues of the discrete Laplacian.

    Args:
        target: ``[c, *s]`` float16, bfloat16, float32 or float64, one or more spatial axes: the box
            to be solved. Crop the image to the bounding box of the mask first: all of its inside
            may change, its faces do not.
        source: of the same shape and type.
        mask: ``[*s]`` bool, true where the source's gradients compete. Faces count as false.

        Or sequences of them, of any shapes, of one device: a ragged batch.

    Returns:
        The blended box ``[c, *s]``, or a list of them. Values may leave the range of the inputs. A
        box with fewer than three cells on an axis has no inside and comes back unchanged.
        Arguments are never modified. A value of the target that is not a number stays where it is.

    Raises:
        ValueError: a shape, a type or a device that does not fit.

    There is no gradient: the operator makes training images, and the choice between two
    differences is not smooth.
    """
    if isinstance(target, Tensor):
        return torch.ops.fundad.poisson_blend([target], [source], [mask])[0]
    if not (target or source or mask):  # torch cannot tell which device an empty list is on
        return []
    return torch.ops.fundad.poisson_blend(list(target), list(source), list(mask))


def _change_of_divergence(target: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """The divergence that blending adds, at the cells inside the box.

    With e = result - target, which is zero on the faces, there are no boundary terms: Δe = div a,
    where a is the source's difference less the target's wherever the former is wanted.
    """
    axes = range(1, target.dim())
    inside = torch.zeros_like(mask)
    inside[tuple(slice(1, -1) for _ in axes)] = mask[tuple(slice(1, -1) for _ in axes)]
    total = target.new_zeros(target.shape[0], *(n - 2 for n in mask.shape))
    for axis in axes:
        # Along its own axis a difference needs both ends, along the others only inner cells.
        lane = tuple(slice(None) if a in (0, axis) else slice(1, -1) for a in range(target.dim()))
        of_target, of_source = target[lane].diff(dim=axis), source[lane].diff(dim=axis)
        lower = inside[lane[1:]].narrow(axis - 1, 0, of_target.shape[axis])
        wanted = lower & (of_source.abs() > of_target.abs())
        total += torch.where(wanted, of_source - of_target, 0).diff(dim=axis)
    return total


def reference(target: list[Tensor], source: list[Tensor], mask: list[Tensor]) -> list[Tensor]:
    return [_reference(*box) for box in zip(target, source, mask, strict=True)]


def _reference(target: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    from scipy import sparse
    from scipy.sparse.linalg import splu

    out = target.double().clone()
    inside = [n - 2 for n in mask.shape]
    if target.shape[0] == 0 or min(inside) < 1:
        return out
    laplacian = sparse.csc_array((math.prod(inside),) * 2)
    for axis, n in enumerate(inside):
        second = sparse.diags_array(
            [[1.0] * (n - 1), [-2.0] * n, [1.0] * (n - 1)], offsets=[-1, 0, 1]
        )
        before, after = math.prod(inside[:axis]), math.prod(inside[axis + 1 :])
        along = sparse.kron(sparse.eye_array(before), sparse.kron(second, sparse.eye_array(after)))
        laplacian = laplacian + along
    right = _change_of_divergence(out, source.double(), mask).flatten(1)
    change = splu(laplacian.tocsc()).solve(right.cpu().numpy().T).T
    cells = (slice(None), *(slice(1, -1) for _ in inside))
    out[cells] += torch.from_numpy(change).to(out).view(-1, *inside)
    return out


def fake(target: list[Tensor], source: list[Tensor], mask: list[Tensor]) -> list[Tensor]:
    torch._check_value(
        len(target) == len(source) == len(mask),
        lambda: (
            "poisson_blend: want as many targets as sources and masks, "
            f"got {len(target)}, {len(source)} and {len(mask)}"
        ),
    )
    for i, box in enumerate(zip(target, source, mask, strict=True)):
        # One call may take hundreds of small boxes: words are made only where they are needed.
        misfit = _misfit(*box, target[0].device)
        if misfit is not None:
            raise ValueError(f"poisson_blend: {f'box {i}: ' if len(target) > 1 else ''}{misfit}")
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in target]


def _misfit(t: Tensor, s: Tensor, m: Tensor, device: torch.device) -> str | None:
    if t.dim() < 2:
        return f"want target [c, *s], got {list(t.shape)}"
    if t.dtype not in _TYPES:
        return f"want floating point, got {t.dtype}"
    if s.shape != t.shape or s.dtype != t.dtype:
        return f"want source as target, {list(t.shape)} {t.dtype}, got {list(s.shape)} {s.dtype}"
    if m.shape != t.shape[1:] or m.dtype != torch.bool:
        return f"want mask {list(t.shape[1:])} torch.bool, got {list(m.shape)} {m.dtype}"
    if not t.device == s.device == m.device == device:
        return f"want one device, got {t.device}, {s.device}, {m.device}"
    return None


_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def samples() -> dict[str, tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    g = torch.Generator().manual_seed(0)

    def box(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        target, source = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
        return target, source, torch.rand(shape[1:], generator=g) < 0.7

    def lists(*boxes: tuple[Tensor, Tensor, Tensor]) -> Any:
        return tuple(list(part) for part in zip(*boxes, strict=True))

    two, three = box(3, 17, 22), box(1, 9, 8, 11)
    full = (*box(2, 12, 9)[:2], torch.ones(12, 9, dtype=torch.bool))
    none = (*box(2, 12, 9)[:2], torch.zeros(12, 9, dtype=torch.bool))
    ties = torch.randint(-2, 3, (2, 14, 13), generator=g).float()
    levels = [torch.randint(0, 12, (2, 31, 41), generator=g) / 255 for _ in range(2)]
    nan_outside, nan_inside, nan_target = (box(2, 11, 12) for _ in range(3))
    for _, source, mask in (nan_outside, nan_inside):
        mask[2:8, 2:8] = mask is nan_inside[2]
        source[:, 4:6, 4:6] = math.nan
    nan_outside[2][3:8, 3:8] = False
    nan_target[0][1, 5, 6] = math.nan
    a, b, c = box(3, 40, 22)
    apart = a.mT[..., ::2, ::3], b.mT[..., ::2, ::3], c.mT[::2, ::3]
    return {
        "two": lists(two),
        "three": lists(three),
        "one": lists(box(2, 57)),
        "four": lists(box(2, 5, 6, 4, 5)),
        "ragged": lists(two, three, box(1, 3), full, box(4, 3, 8)),
        "smallest": lists(box(2, 3), box(2, 3, 3), box(2, 3, 3, 3)),
        "no_inside": lists(box(1, 2, 9), box(1, 1), box(2, 5, 0, 4)),
        "no_channel": lists(box(0, 6, 6)),
        "thin": lists(box(1, 3, 90), box(1, 90, 3)),
        "full_mask": lists(full),
        "no_mask": lists(none),
        "ties": lists((ties, -ties, torch.ones(14, 13, dtype=torch.bool))),
        "same": lists((ties, ties + 5, torch.ones(14, 13, dtype=torch.bool))),
        "levels": lists((levels[0], levels[1], torch.ones(31, 41, dtype=torch.bool))),
        "large": lists(box(1, 70, 9), box(2, 90, 103), box(1, 12, 40), box(1, 700)),
        "far": lists((two[0] + 1000, two[1] - 1000, two[2])),
        "nan_source_outside": lists(nan_outside),
        "nan_source_inside": lists(nan_inside),
        "nan_target": lists(nan_target),
        "strided": lists(apart),
        "expanded": lists((two[0][:1].expand(3, 17, 22), two[1], two[2])),
        "long_axis": lists(box(1, 700), box(2, 4, 531)),
        "double": lists(box(2, 16, 15, dtype=torch.float64)),
        "half": lists(box(2, 16, 15, dtype=torch.float16)),
        "bfloat16": lists(box(2, 6, 7, 8, dtype=torch.bfloat16)),
    }


def check(args: tuple[Any, ...], got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want)
    for target, source, mask, one, true in zip(*args, got, want, strict=True):
        assert one.dtype == target.dtype
        assert one.is_contiguous()
        assert torch.equal(one.isnan(), true.isnan())
        if one.numel() == 0 or min(mask.shape) < 3:
            assert torch.equal(one, target)
            continue
        faces = torch.ones_like(mask)
        faces[tuple(slice(1, -1) for _ in mask.shape)] = False
        assert torch.equal(one[:, faces].nan_to_num(), target[:, faces].nan_to_num())
        unit = torch.finfo(torch.float64 if one.dtype == torch.float64 else torch.float32).eps
        size = max(float(t.double().abs().nan_to_num().max()) for t in (target, source))
        off = (one.double() - true).abs().nan_to_num()
        # Rounding in the right-hand side is white noise, which the solution amplifies: most in 1-D.
        eigenvalues = _all_eigenvalues([n - 2 for n in mask.shape], true.double())
        spread = float(eigenvalues.square().reciprocal().mean().sqrt())
        last = torch.finfo(one.dtype).eps * true.abs().nan_to_num()
        bound = 4 * unit * size * (1 + spread) + last
        assert (off <= bound).all(), f"off by {(off / bound).max()}x"


def bad() -> dict[str, tuple[tuple[Any, ...], str]]:
    t, m = torch.zeros(2, 5, 6), torch.zeros(5, 6, dtype=torch.bool)
    return {
        "counts": (([t, t], [t], [m]), "as many targets as sources and masks, got 2, 1 and 1"),
        "no_channel_axis": (([t[0, 0]], [t[0, 0]], [m[0]]), r"want target \[c, \*s\], got \[6\]"),
        "integers": (([t.int()], [t.int()], [m]), "want floating point, got torch.int32"),
        "source": (([t], [t[:, 1:]], [m]), r"want source as target, \[2, 5, 6\] .* \[2, 4, 6\]"),
        "types": (([t], [t.double()], [m]), "got .* torch.float64"),
        "mask": (([t], [t], [m[1:]]), r"want mask \[5, 6\] torch.bool, got \[4, 6\]"),
        "mask_type": (([t, t], [t, t], [m, m.float()]), "box 1: want mask .* got .* torch.float32"),
    }


op = Op(
    "poisson_blend",
    "(Tensor[] target, Tensor[] source, Tensor[] mask) -> Tensor[]",
    reference,
    fake,
    samples,
    check,
    bad,
)


# What the native code takes; a list with another box in it is torch's. Products of half the size
# beat SciPy's transforms at every size up to 640 cells an axis, and beyond wherever n + 1 has a
# large prime factor (1 core, whole blend: 384² 1.5 ms against 6.5, 626 x 598 9.4 against 31, 1498²
# 73 against 245; where n + 1 is smooth transforms win in the end: 767² 15 against 17, 1023² 34
# against 43). Torch's own transform wins nowhere here. Tables of sines grow with n².
_MOST_AXES = 3
_LONGEST_AXIS = 1536
_NO_AXES = [0] * _MOST_AXES
_NARROW = (torch.float32, torch.float16, torch.bfloat16)


def _why_not_cpu(target: list[Tensor], source: list[Tensor], mask: list[Tensor]) -> str | None:
    for i, box in enumerate(target):
        if box.dtype not in _NARROW:
            return f"box {i} is {box.dtype}, and the native code computes products in float32"
        if box.dim() - 1 > _MOST_AXES:
            return f"box {i} has {box.dim() - 1} axes, the native code takes up to {_MOST_AXES}"
        if box.dim() > 2 and max(box.shape[1:]) > _LONGEST_AXIS:
            longest = max(box.shape[1:])
            return f"box {i} has {longest} cells on an axis, the native code takes {_LONGEST_AXIS}"
    return _adapt.no_cpu(*target[:1])  # all are on one device


@op.backend("cpu", _why_not_cpu)
def _cpu(target: list[Tensor], source: list[Tensor], mask: list[Tensor]) -> list[Tensor]:
    out: list[Tensor] = []
    kept: list[Any] = []  # whatever has an address must live until the call is over
    boxes, work = array("q"), 0
    for t, s, m in zip(target, source, mask, strict=True):
        size = m.shape
        axes = len(size)
        if min(t.shape) == 0 or min(size) < 3:
            out.append(t.clone(memory_format=torch.contiguous_format))
            continue
        dense = [t, s, m]
        if t.dtype != torch.float32 or not (t.is_contiguous() and s.is_contiguous()):
            dense[:2] = _adapt.dense(t), _adapt.dense(s)
        if not m.is_contiguous():
            dense[2] = m.contiguous()
        result = torch.empty_like(dense[0])
        sines = [_halves(n - 2) for n in size] if axes > 1 else []
        boxes.extend([part.data_ptr() for part in dense])
        boxes.extend([result.data_ptr(), axes, len(t), *size, *_NO_AXES[axes:]])
        boxes.extend([table.data_ptr() for table in sines])
        boxes.extend(_NO_AXES[len(sines) :])
        kept.append((dense, sines))
        work += t.numel() * sum(size)
        out.append(result)
    if kept:
        native, threads, address = _adapt.native(), _adapt.threads(work / 4), boxes.buffer_info()[0]
        scratch = torch.empty(native.poisson_scratch(address, len(kept), threads) + 16)
        line = scratch.data_ptr() + -scratch.data_ptr() % 64
        native.poisson_blend_cpu(address, len(kept), line, _adapt.isa(), threads)
    return [
        one if one.dtype == t.dtype else one.to(t.dtype) for one, t in zip(out, target, strict=True)
    ]


def _make_halves(n: int) -> Tensor:
    native = _adapt.native()
    table = torch.empty(native.sines_floats(n))
    native.fill_sines(n, table.data_ptr())
    return table


# Boxes of volumes and of small images come in every size, and all tables up to 256 take 12 MB.
_small_halves = functools.lru_cache(maxsize=256)(_make_halves)
_large_halves = functools.lru_cache(maxsize=8)(_make_halves)


def _halves(n: int) -> Tensor:
    return _small_halves(n) if n <= 256 else _large_halves(n)


@op.backend("torch")
def _torch(target: list[Tensor], source: list[Tensor], mask: list[Tensor]) -> list[Tensor]:
    return [_solve(*box) for box in zip(target, source, mask, strict=True)]


def _solve(target: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    out = target.clone(memory_format=torch.contiguous_format)
    inside = [n - 2 for n in mask.shape]
    if target.shape[0] == 0 or min(inside) < 1:
        return out
    wide = torch.promote_types(target.dtype, torch.float32)
    # Which difference is larger is decided in float64: levels of an 8-bit image are full of ties
    # that rounding would break.
    change = _change_of_divergence(target.double(), source.double(), mask).to(wide)
    axes = range(1, target.dim())
    for axis in axes:
        change = _sine(change, axis)
    change /= _all_eigenvalues(inside, change)
    for axis in reversed(axes):
        change = _sine(change, axis)
    cells = (slice(None), *(slice(1, -1) for _ in inside))
    out[cells] = (target.to(wide)[cells] + change).to(target.dtype)
    return out


def _backward(ctx: Any, grad: list[Tensor]) -> None:
    # Without this, torch would leave the gradient out and go on.
    raise NotImplementedError(
        "poisson_blend has no gradient: it makes training images; detach its arguments"
    )


op.autograd(_backward, lambda ctx, inputs, output: None)

# Up to this many cells a product with the matrix of sines beats the transform of the odd extension
# (2 cores, 3 channels: 200² 1.5 ms against 3.0, 400² 10 against 17, 600² 31 against 37, 1000² 142
# against 73), and it needs no length to be smooth.
_LONGEST_PRODUCT = 512


def _sine(x: Tensor, axis: int) -> Tensor:
    """The orthonormal sine transform (DST-I) of one axis; its own inverse."""
    n = x.shape[axis]
    if n > _LONGEST_PRODUCT:
        gap = torch.zeros_like(x.narrow(axis, 0, 1))
        odd = torch.fft.rfft(torch.cat([gap, x, gap, -x.flip(axis)], axis), dim=axis)
        return odd.imag.narrow(axis, 1, n) * -((2 * (n + 1)) ** -0.5)
    sines = _sines(n, x.dtype, x.device)
    if axis == x.dim() - 1:
        return x @ sines
    return (sines @ x.flatten(axis + 1).flatten(0, axis - 1)).view(x.shape)


@functools.lru_cache(maxsize=256)
def _sines(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    i = torch.arange(1, n + 1)
    angle = (i[:, None] * i) % (2 * (n + 1))  # exact, while sin of a large number is not
    matrix = torch.sin(angle.double() * (math.pi / (n + 1))) * (2 / (n + 1)) ** 0.5
    return matrix.to(device, dtype)


def _all_eigenvalues(inside: list[int], like: Tensor) -> Tensor:
    total = like.new_zeros(())
    for n in inside:
        total = total[..., None] + _eigenvalues(n, like.dtype, like.device)
    return total


@functools.lru_cache(maxsize=256)
def _eigenvalues(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    angle = torch.arange(1, n + 1).double() * (math.pi / (2 * (n + 1)))
    # 2 cos(2a) - 2, written so that no digits are lost where a is small.
    return (-4 * angle.sin().square()).to(device, dtype)
