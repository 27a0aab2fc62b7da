# SPDX-License-Identifier: Apache-2.0
"""Labels of synthetic anomalies, without gaps and holes."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import _adapt
from ._registry import Op

_MOST_AXES = 3


@overload
def clean_labels(values: Tensor, mask: Tensor) -> Tensor: ...


@overload
def clean_labels(values: Sequence[Tensor], mask: Sequence[Tensor]) -> list[Tensor]: ...


def clean_labels(
    values: Tensor | Sequence[Tensor], mask: Tensor | Sequence[Tensor]
) -> Tensor | list[Tensor]:
    """Close and fill labels in the bounding box of each face-connected part of a mask.

    A grey closing, then what lies lower than every way to the border of the box is raised to the
    lowest of these ways (reconstruction by erosion), both among neighbours that differ in one or
    two axes. Labels that follow a difference of two images stay smooth where it crosses zero. The
    public code of "Many tasks make light work" does this to its labels.

    Args:
        values: ``[*s]`` float32, one or more axes, no NaN.
        mask: ``[*s]`` bool. Boxes of its parts may overlap: they are cleaned one after the other,
            in the order of their first cells.

            Or sequences of both, of any shapes, of one device: a ragged batch.

    Returns:
        ``[*s]``, or a list of them; nowhere lower than ``values``.

    Raises:
        ValueError: a shape, a type or a device that does not fit.

    There is no gradient: labels are made, not learned.
    """
    if isinstance(values, Tensor):
        assert isinstance(mask, Tensor)
        return torch.ops.fundad.clean_labels([values], [mask])[0]
    if not (values or mask):  # torch cannot tell which device an empty list is on
        return []
    return torch.ops.fundad.clean_labels(list(values), list(mask))


def reference(values: list[Tensor], mask: list[Tensor]) -> list[Tensor]:
    return [_reference(*pair) for pair in zip(values, mask, strict=True)]


def _reference(values: Tensor, mask: Tensor) -> Tensor:
    from scipy import ndimage
    from skimage.morphology import reconstruction

    result = values.cpu().double().numpy().copy()
    if result.size == 0:
        return torch.from_numpy(result).to(values.device)
    footprint = ndimage.generate_binary_structure(result.ndim, 2)
    for box in ndimage.find_objects(ndimage.label(mask.cpu().numpy())[0]):
        closed = ndimage.grey_closing(result[box], footprint=footprint)
        seed = closed.copy()
        seed[(slice(1, -1),) * result.ndim] = closed.max()
        result[box] = reconstruction(seed, closed, method="erosion", footprint=footprint)
    return torch.from_numpy(result).to(values.device)


def fake(values: list[Tensor], mask: list[Tensor]) -> list[Tensor]:
    torch._check_value(
        len(values) == len(mask),
        lambda: f"clean_labels: want as many labels as masks, got {len(values)} and {len(mask)}",
    )
    for one, inside in zip(values, mask, strict=True):
        if one.dim() < 1 or one.dtype != torch.float32:
            raise ValueError(
                f"clean_labels: want labels [*s] float32, got {list(one.shape)} {one.dtype}"
            )
        if inside.shape != one.shape or inside.dtype != torch.bool:
            raise ValueError(
                f"clean_labels: want mask {list(one.shape)} torch.bool, "
                f"got {list(inside.shape)} {inside.dtype}"
            )
        if one.device != values[0].device or inside.device != values[0].device:
            raise ValueError(
                f"clean_labels: want all on {values[0].device}, got {one.device} and "
                f"{inside.device}"
            )
    return [torch.empty_like(one, memory_format=torch.contiguous_format) for one in values]


def samples() -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    g = torch.Generator().manual_seed(0)

    def labels(*shape: int, share: float = 0.6, blobs: bool = True) -> tuple[Tensor, Tensor]:
        """Noise on parts of a mask that are a few cells wide."""
        at = torch.rand(shape, generator=g)
        if blobs:
            coarse = torch.rand([max(1, n // 4) for n in shape], generator=g)
            for axis, n in enumerate(shape):
                coarse = coarse.repeat_interleave(4, axis)
                short = n - coarse.shape[axis]
                coarse = coarse.narrow(axis, 0, min(n, coarse.shape[axis]))
                if short > 0:
                    coarse = torch.cat([coarse, coarse.narrow(axis, 0, short)], axis)
            mask = coarse < share
        else:
            mask = torch.rand(shape, generator=g) < share
        return at * mask, mask

    def lists(*pairs: tuple[Tensor, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    spiral = torch.ones(17, 17)  # a long way out, level by level
    spiral[8, 8:] = torch.linspace(0, 0.5, 9)
    spiral[1:9, 15], spiral[1, 1:16] = 0.3, 0.2
    spiral[1:16, 1], spiral[15, 1:15] = 0.4, 0.1
    full = torch.ones(17, 17, dtype=torch.bool)
    levels = (torch.rand(30, 33, generator=g) * 4).floor() / 4
    turned = labels(14, 22)
    return {
        "two": lists(labels(40, 37)),
        "three": lists(labels(13, 15, 14)),
        "one": lists(labels(61)),
        "four": lists(labels(6, 5, 5, 6)),
        "ragged": lists(labels(9, 30), labels(7, 12, 9), labels(20), labels(5, 5)),
        "grains": lists(labels(25, 25, blobs=False), labels(9, 9, 9, blobs=False, share=0.3)),
        "whole": lists(labels(30, 31, share=2), labels(9, 11, 10, share=2)),
        "nothing": lists(labels(12, 9, share=-1)),
        "thin": lists(labels(1, 9, share=2), labels(2, 2, 7, share=2), labels(1, 1, 1, share=2)),
        "spiral": lists((spiral, full)),
        "levels": lists((levels, torch.ones(30, 33, dtype=torch.bool))),
        "empty": lists((torch.zeros(4, 0), torch.zeros(4, 0) > 0)),
        "strided": lists((turned[0].mT, turned[1].mT)),
        "large": lists(labels(190, 170), labels(50, 60, 40)),
    }


def check(args: tuple[Any, ...], got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want)
    for values, one, true in zip(args[0], got, want, strict=True):
        assert one.dtype == torch.float32
        assert one.is_contiguous()
        assert torch.equal(one.double(), true)  # the least and the largest of values: no rounding
        assert (one >= values).all()


def bad() -> dict[str, tuple[tuple[Any, ...], str]]:
    y, m = torch.zeros(5, 6), torch.zeros(5, 6, dtype=torch.bool)
    return {
        "counts": (([y, y], [m]), "as many labels as masks, got 2 and 1"),
        "axes": (([y[0, 0]], [m[0, 0]]), r"want labels \[\*s\] float32, got \[\]"),
        "type": (([y.double()], [m]), "got .* torch.float64"),
        "mask": (([y], [m[1:]]), r"want mask \[5, 6\] torch.bool, got \[4, 6\]"),
        "mask_type": (([y], [y]), "got .* torch.float32"),
    }


op = Op(
    "clean_labels",
    "(Tensor[] values, Tensor[] mask) -> Tensor[]",
    reference,
    fake,
    samples,
    check,
    bad,
)


def _why_not_cpu(values: list[Tensor], mask: list[Tensor]) -> str | None:
    most = max((one.dim() for one in values), default=0)
    if most > _MOST_AXES:
        return f"labels have {most} axes, the native code takes up to {_MOST_AXES}"
    return _adapt.no_cpu(*values[:1])  # all are on one device


@op.backend("cpu", _why_not_cpu)
def _cpu(values: list[Tensor], mask: list[Tensor]) -> list[Tensor]:
    kept: list[Any] = []  # whatever has an address must live until the call is over
    boxes, work, results = array("q"), 0, []
    for one, inside in zip(values, mask, strict=True):
        one, inside = one.contiguous(), inside.contiguous()
        results.append(torch.empty_like(one))
        if one.numel() == 0:
            continue
        kept.append((one, inside))
        boxes.extend([one.data_ptr(), inside.data_ptr(), results[-1].data_ptr(), one.dim()])
        boxes.extend([*one.shape, *[0] * (_MOST_AXES - one.dim())])
        work += one.numel()
    if kept:
        threads = _adapt.threads(100.0 * work)
        _adapt.native().clean_labels_cpu(boxes.buffer_info()[0], len(kept), threads)
    return results


@op.backend("torch")
def _torch(values: list[Tensor], mask: list[Tensor]) -> list[Tensor]:
    """A walk that a GPU has no use for: there and back in one copy each, by SciPy and numpy."""
    flat = torch.cat([one.reshape(-1) for one in values]).cpu().numpy().copy()
    inside = torch.cat([one.reshape(-1) for one in mask]).cpu().numpy()
    start = 0
    for one in values:
        end = start + one.numel()
        if end > start:
            _clean(flat[start:end].reshape(one.shape), inside[start:end].reshape(one.shape))
        start = end
    parts = torch.from_numpy(flat).to(values[0].device).split([one.numel() for one in values])
    return [part.view(one.shape).clone() for part, one in zip(parts, values, strict=True)]


def _clean(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
    from scipy.ndimage import find_objects, label

    for box in find_objects(label(mask)[0]):
        closed = _over_squares(_over_squares(values[box], np.maximum), np.minimum)
        values[box] = _filled(closed)


def _filled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    # Along straight lines first: from there on it takes as many steps as ways have bends.
    level = None
    for axis in range(values.ndim):
        for way in (1, -1):
            lane = np.moveaxis(values, axis, 0)[::way]
            line = np.moveaxis(np.maximum.accumulate(lane, 0)[::way], 0, axis)
            level = line if level is None else np.minimum(level, line)
    assert level is not None
    while True:
        lower = np.maximum(_over_squares(level, np.minimum), values)
        if np.array_equal(lower, level):
            return lower
        level = lower


def _over_squares(values: NDArray[Any], extreme: Callable[..., Any]) -> NDArray[Any]:
    """The extreme of 3 x 3 cells of every plane through a cell; what lies beyond does not count."""
    if values.ndim == 1:
        return _over_line(values, 0, extreme)
    result = None
    lines = [_over_line(values, axis, extreme) for axis in range(values.ndim - 1)]
    for a, b in itertools.combinations(range(values.ndim), 2):
        square = _over_line(lines[a], b, extreme)
        result = square if result is None else extreme(result, square, out=result)
    assert result is not None
    return result


def _over_line(values: NDArray[Any], axis: int, extreme: Callable[..., Any]) -> NDArray[Any]:
    result = values.copy()
    now, before = np.moveaxis(result, axis, 0), np.moveaxis(values, axis, 0)
    extreme(now[1:], before[:-1], out=now[1:])
    extreme(now[:-1], before[1:], out=now[:-1])
    return result


def _backward(ctx: Any, grad: list[Tensor]) -> None:
    # Without this, torch would leave the gradient out and go on.
    raise NotImplementedError("clean_labels has no gradient: detach its arguments")


op.autograd(_backward, lambda ctx, inputs, output: None)
