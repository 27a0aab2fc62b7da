# SPDX-License-Identifier: Apache-2.0
"""How deep the cells of shapes lie."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import _adapt
from ._registry import Op

_MOST_AXES = 3


@overload
def distance_transform(mask: Tensor) -> Tensor: ...


@overload
def distance_transform(mask: Sequence[Tensor]) -> list[Tensor]: ...


def distance_transform(mask: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Euclidean distance of each cell of a mask to the nearest cell outside it.

    What ``scipy.ndimage.distance_transform_edt`` computes of a mask with a layer of false around
    it: beyond the box is outside. (SciPy takes the border for none; a mask that fills its box
    then has no depth.)

    Args:
        mask: ``[*s]`` bool, one or more axes. Or a sequence of them, of any shapes, of one device:
            a ragged batch.

    Returns:
        ``[*s]`` float32 in cells, 0 outside the mask, or a list of them.

    Raises:
        ValueError: a shape, a type or a device that does not fit.
    """
    if isinstance(mask, Tensor):
        return torch.ops.fundad.distance_transform([mask])[0]
    if not mask:  # torch cannot tell which device an empty list is on
        return []
    return torch.ops.fundad.distance_transform(list(mask))


def reference(mask: list[Tensor]) -> list[Tensor]:
    from scipy.ndimage import distance_transform_edt

    results = []
    for one in mask:
        padded = np.pad(one.cpu().numpy(), 1)
        within = (slice(1, -1),) * one.dim()
        depth = distance_transform_edt(padded)[within] if one.numel() else np.zeros(one.shape)
        results.append(torch.from_numpy(np.ascontiguousarray(depth)).to(one.device))
    return results


def fake(mask: list[Tensor]) -> list[Tensor]:
    for one in mask:
        if one.dim() < 1 or one.dtype != torch.bool:
            raise ValueError(
                f"distance_transform: want mask [*s] bool, got {list(one.shape)} {one.dtype}"
            )
        if one.device != mask[0].device:
            raise ValueError(f"distance_transform: want all on {mask[0].device}, got {one.device}")
    return [torch.empty(one.shape, dtype=torch.float32, device=one.device) for one in mask]


def samples() -> dict[str, tuple[list[Tensor]]]:
    g = torch.Generator().manual_seed(0)

    def holes(*shape: int, share: float = 0.02) -> Tensor:
        return torch.rand(shape, generator=g) >= share

    def ball(*shape: int) -> Tensor:
        grids = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
        return torch.stack(grids).square().sum(0) <= 1

    return {
        "two": ([holes(40, 37)],),
        "three": ([holes(13, 15, 14)],),
        "one": ([holes(61, share=0.1)],),
        "four": ([holes(6, 5, 7, 6)],),
        "ragged": ([holes(9, 30), ball(7, 12, 9), holes(20), ball(5, 5)],),
        "balls": ([ball(76, 81), ball(31, 30, 33), ball(3, 90), ball(90, 3)],),
        "whole": ([holes(31, 17, share=0), holes(9, 11, 10, share=0), holes(8, share=0)],),
        "nothing": ([holes(7, 6, share=2)],),
        "thin": ([holes(1, 9), holes(9, 1), holes(2, 1, 7), holes(1, 1, 1, share=0)],),
        "empty": ([holes(4, 0), holes(3, 3)],),
        "strided": ([holes(30, 44).mT[::2, ::3]],),
        "grains": ([holes(25, 26, share=0.5), holes(9, 9, 9, share=0.4)],),
    }


def check(args: tuple[Any, ...], got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want)
    for mask, one, true in zip(args[0], got, want, strict=True):
        assert one.dtype == torch.float32
        assert one.is_contiguous()
        assert one.shape == mask.shape
        assert torch.equal(one, true.float())  # roots of whole numbers


def bad() -> dict[str, tuple[tuple[Any, ...], str]]:
    m = torch.zeros(5, 6, dtype=torch.bool)
    return {
        "axes": (([m[0, 0]],), r"want mask \[\*s\] bool, got \[\]"),
        "type": (([m, m.float()],), "got .* torch.float32"),
    }


op = Op(
    "distance_transform",
    "(Tensor[] mask) -> Tensor[]",
    reference,
    fake,
    samples,
    check,
    bad,
)


def _why_not_cpu(mask: list[Tensor]) -> str | None:
    most = max((one.dim() for one in mask), default=0)
    if most > _MOST_AXES:
        return f"a mask has {most} axes, the native code takes up to {_MOST_AXES}"
    return _adapt.no_cpu(*mask[:1])  # all are on one device


@op.backend("cpu", _why_not_cpu)
def _cpu(mask: list[Tensor]) -> list[Tensor]:
    kept: list[Any] = []  # whatever has an address must live until the call is over
    boxes, work, results = array("q"), 0.0, []
    for one in mask:
        one = one.contiguous()
        results.append(torch.empty(one.shape))
        if one.numel() == 0:
            continue
        kept.append(one)
        boxes.extend([one.data_ptr(), results[-1].data_ptr(), one.dim(), *one.shape])
        boxes.extend([0] * (_MOST_AXES - one.dim()))
        work += one.numel()
    if kept:
        threads = _adapt.threads(40 * work)
        _adapt.native().distance_transform_cpu(boxes.buffer_info()[0], len(kept), threads)
    return results


@op.backend("torch")
def _torch(mask: list[Tensor]) -> list[Tensor]:
    """A walk that a GPU has no use for: by numpy, whose loops are few where shapes are small."""
    return [torch.from_numpy(_depth(one.cpu().numpy())).to(one.device) for one in mask]


def _depth(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    padded = np.pad(inside, 1)
    squares = np.where(padded, np.float32(np.inf), np.float32(0))
    for axis in range(padded.ndim):
        lowest = squares.copy()
        before, now = np.moveaxis(squares, axis, 0), np.moveaxis(lowest, axis, 0)
        for step in range(1, len(now)):
            if step * step >= lowest.max(initial=0):
                break
            np.minimum(now[step:], before[:-step] + np.float32(step * step), out=now[step:])
            np.minimum(now[:-step], before[step:] + np.float32(step * step), out=now[:-step])
        squares = lowest
    return np.ascontiguousarray(np.sqrt(squares[(slice(1, -1),) * inside.ndim]))
