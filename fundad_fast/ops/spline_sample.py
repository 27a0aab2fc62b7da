# SPDX-License-Identifier: Apache-2.0
"""Cubic splines: the values of images between their cells."""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import _adapt
from ._registry import Op

_BEYOND = ("edge", "zero")

_POLE = math.sqrt(3) - 2
"""Of the filter that turns values into coefficients of cubic B-splines."""

_MARGIN = 3
"""Coefficients are kept for so many cells beyond an image, ..."""

_REACH = 2.0
"""... because points may lie so many cells beyond it, and a spline is four cells wide."""

_FAR = 40
"""The filter's answer after so many cells is 1e-23 of what it was."""


@overload
def spline_sample(
    image: Tensor, points: Tensor, beyond: Literal["edge", "zero"] = ...
) -> Tensor: ...


@overload
def spline_sample(
    image: Sequence[Tensor], points: Sequence[Tensor], beyond: Literal["edge", "zero"] = ...
) -> list[Tensor]: ...


def spline_sample(
    image: Tensor | Sequence[Tensor],
    points: Tensor | Sequence[Tensor],
    beyond: Literal["edge", "zero"] = "edge",
) -> Tensor | list[Tensor]:
    """Values of images at points between their cells, by interpolating cubic splines.

    What ``scipy.ndimage.map_coordinates`` with ``order=3`` computes in the modes ``nearest``
    (``edge``) and ``constant`` (``zero``).

    Args:
        image: ``[c, *s]`` float32 or float64, one or more spatial axes, none of them empty.
        points: ``[d, n]`` of the same type: where, in cells; whole numbers are centres of cells.

            Or sequences of both, of any shapes, of one device: a ragged batch.
        beyond: ``edge`` continues an image with its outermost values; points farther out than two
            cells are moved there. ``zero``: a point outside the outermost centres has the value
            0, and the spline itself continues as if the image were mirrored there.

    Returns:
        ``[c, n]``, or a list of them. At a point that is not a number, the value is none either.

    Raises:
        ValueError: a shape, a type or a device that does not fit.

    There is no gradient: the operator makes training images.
    """
    if isinstance(image, Tensor):
        return torch.ops.fundad.spline_sample([image], [points], beyond)[0]
    if not (image or points):  # torch cannot tell which device an empty list is on
        return []
    return torch.ops.fundad.spline_sample(list(image), list(points), beyond)


def reference(image: list[Tensor], points: list[Tensor], beyond: str) -> list[Tensor]:
    import numpy as np
    from scipy import ndimage

    mode = {"edge": "nearest", "zero": "constant"}[beyond]
    results = []
    for one, where in zip(image, points, strict=True):
        at = where.cpu().double().numpy()
        if beyond == "edge":
            size = np.array(one.shape[1:])[:, None]
            at = np.clip(at, -_REACH, size - 1 + _REACH)
        values = [
            ndimage.map_coordinates(channel, at, order=3, mode=mode)
            for channel in one.cpu().double().numpy()
        ]
        stacked = np.stack(values) if values else np.zeros((0, at.shape[1]))
        results.append(torch.from_numpy(stacked).to(one.device))
    return results


def fake(image: list[Tensor], points: list[Tensor], beyond: str) -> list[Tensor]:
    torch._check_value(
        len(image) == len(points),
        lambda: f"spline_sample: want as many images as points, got {len(image)} and {len(points)}",
    )
    torch._check_value(
        beyond in _BEYOND,
        lambda: f"spline_sample: want beyond edge or zero, got {beyond!r}",
    )
    for i, pair in enumerate(zip(image, points, strict=True)):
        misfit = _misfit(*pair, image[0].device)
        if misfit is not None:
            raise ValueError(f"spline_sample: {f'image {i}: ' if len(image) > 1 else ''}{misfit}")
    return [one.new_empty(one.shape[0], at.shape[1]) for one, at in zip(image, points, strict=True)]


def _misfit(image: Tensor, points: Tensor, device: torch.device) -> str | None:
    axes = image.dim() - 1
    if axes < 1 or 0 in image.shape[1:]:
        return f"want image [c, *s], none of its axes empty, got {list(image.shape)}"
    if image.dtype not in (torch.float32, torch.float64):
        return f"want float32 or float64, got {image.dtype}"
    if points.dim() != 2 or points.shape[0] != axes or points.dtype != image.dtype:
        return f"want points [{axes}, n] {image.dtype}, got {list(points.shape)} {points.dtype}"
    if image.device != device or points.device != device:
        return f"want all on {device}, got {image.device} and {points.device}"
    return None


def samples() -> dict[str, tuple[list[Tensor], list[Tensor], str]]:
    g = torch.Generator().manual_seed(0)

    def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    def points(like: Tensor, n: int, over: float) -> Tensor:
        size = torch.tensor(like.shape[1:])[:, None]
        where = torch.rand(len(size), n, generator=g) * (size - 1 + 2 * over) - over
        return where.to(like.dtype)

    def cells(like: Tensor) -> Tensor:
        grids = torch.meshgrid(*(torch.arange(n) for n in like.shape[1:]), indexing="ij")
        return torch.stack(grids).flatten(1).to(like.dtype)

    two, three, one = image(2, 17, 22), image(1, 9, 8, 11), image(1, 30)
    tiny = [image(1, 1, 1), image(2, 2, 1), image(1, 2, 3, 1), image(1, 1)]
    wide = image(2, 12, 13, dtype=torch.float64)
    strided = image(3, 24, 30).mT[:, ::2, ::3]
    far = image(1, 10, 12) + 1000
    edges = torch.tensor([[0.0, 16, 16, 0, 8, 16.5, -0.5], [0, 21, 0, 21, 21, 21.5, 3]])
    everything: dict[str, tuple[list[Tensor], list[Tensor], str]] = {}
    for beyond in _BEYOND:
        ragged = [two, three, one]
        everything |= {
            f"{beyond}_two": ([two], [points(two, 301, 0)], beyond),
            f"{beyond}_ragged": (ragged, [points(x, 77 + x.dim(), 1.3) for x in ragged], beyond),
            f"{beyond}_cells": ([two, three], [cells(two), cells(three)], beyond),
            f"{beyond}_tiny": (tiny, [points(x, 19, 1.5) for x in tiny], beyond),
            f"{beyond}_at_edges": ([two], [edges], beyond),
            f"{beyond}_far_out": ([two], [points(two, 50, 60)], beyond),
            f"{beyond}_double": ([wide], [points(wide, 40, 1)], beyond),
            f"{beyond}_strided": ([strided], [points(strided, 40, 1).mT.contiguous().mT], beyond),
            f"{beyond}_offset": ([far], [points(far, 40, 1)], beyond),
        }
    four = image(1, 5, 6, 4, 5)
    everything["four"] = ([four], [points(four, 30, 1)], "edge")
    everything["no_points"] = ([two, three], [points(two, 0, 0), points(three, 5, 0)], "edge")
    everything["no_channel"] = ([two[:0]], [points(two, 5, 0)], "edge")
    everything["large"] = ([big := image(1, 60, 71, 50)], [points(big, 20000, 0.9)], "edge")
    return everything


def check(args: tuple[Any, ...], got: list[Tensor], want: list[Tensor]) -> None:
    images = args[0]
    assert len(got) == len(want)
    for image, one, true in zip(images, got, want, strict=True):
        assert one.dtype == image.dtype
        assert one.shape == true.shape
        if one.numel() == 0:
            continue
        size = float(image.double().abs().max())
        # Weights are exact to the rounding of a coordinate; scipy stops its filter at 1e-15.
        longest = max(image.shape[1:])
        unit = torch.finfo(one.dtype).eps
        bound = size * (20 + 4 * longest) * unit if one.dtype == torch.float32 else size * 1e-11
        off = float((one.double() - true).abs().max())
        assert off <= bound, f"off by {off / bound}x"


def bad() -> dict[str, tuple[tuple[Any, ...], str]]:
    x, p = torch.zeros(2, 5, 6), torch.zeros(2, 4)
    return {
        "counts": (([x, x], [p], "edge"), "as many images as points, got 2 and 1"),
        "beyond": (([x], [p], "mirror"), "want beyond edge or zero, got 'mirror'"),
        "axes": (([x[0, 0]], [p], "edge"), r"want image \[c, \*s\], .* got \[6\]"),
        "empty": (([x[:, :0]], [p], "edge"), r"none of its axes empty, got \[2, 0, 6\]"),
        "type": (([x.half()], [p.half()], "edge"), "want float32 or float64, got torch.float16"),
        "points": (([x], [p[:1]], "edge"), r"want points \[2, n\] .* got \[1, 4\]"),
        "points_type": (([x, x], [p, p.double()], "zero"), "image 1: want points .*float64"),
    }


op = Op(
    "spline_sample",
    "(Tensor[] image, Tensor[] points, str beyond) -> Tensor[]",
    reference,
    fake,
    samples,
    check,
    bad,
)


_MOST_AXES = 3


def _why_not_cpu(image: list[Tensor], points: list[Tensor], beyond: str) -> str | None:
    for i, one in enumerate(image):
        if one.dtype != torch.float32:
            return f"image {i} is {one.dtype}, and the native code computes in float32"
        if one.dim() - 1 > _MOST_AXES:
            return f"image {i} has {one.dim() - 1} axes, the native code takes up to {_MOST_AXES}"
    return _adapt.no_cpu(*image[:1])  # all are on one device


@op.backend("cpu", _why_not_cpu)
def _cpu(image: list[Tensor], points: list[Tensor], beyond: str) -> list[Tensor]:
    kept: list[Any] = []  # whatever has an address must live until the call is over
    wanted, work, floats, results = [], 0.0, 0, []
    for one, at in zip(image, points, strict=True):
        size, (channels, n) = one.shape[1:], (one.shape[0], at.shape[1])
        results.append(one.new_empty(channels, n))
        if results[-1].numel() == 0:
            continue
        one, at = one.contiguous(), at.contiguous()
        kept.append((one, at))
        where = (one.data_ptr(), at.data_ptr(), results[-1].data_ptr())
        wanted.append((floats, where, channels, n, size))
        table = channels * math.prod(k + 2 * _MARGIN for k in size)
        floats += table
        work += n * (64 + channels * 2 * 4.0 ** len(size)) + 8 * len(size) * table
    if not wanted:
        return results
    scratch, numbers = _scratch(floats), array("q")
    start = scratch.data_ptr()
    for before, (pixels, at_, out), channels, n, size in wanted:
        numbers.extend([pixels, start + 4 * before, at_, out, len(size), channels, n])
        numbers.extend([*size, *[0] * (_MOST_AXES - len(size))])
    address, threads = numbers.buffer_info()[0], _adapt.threads(work)
    _adapt.native().spline_sample_cpu(address, len(wanted), beyond == "zero", threads)
    return results


def _scratch(floats: int) -> Tensor:
    return torch.empty(floats)


@op.backend("torch")
def _torch(image: list[Tensor], points: list[Tensor], beyond: str) -> list[Tensor]:
    return [_sample(*pair, beyond) for pair in zip(image, points, strict=True)]


# Values that are gathered at a time: more leave the caches of a CPU.
_GATHERED = 1 << 17


def _sample(image: Tensor, points: Tensor, beyond: str) -> Tensor:
    table = coefficients(image, beyond)
    if points.device.type == "cpu":
        step = max(1, _GATHERED >> (2 * len(points)))
        parts = [_evaluate(table, part, image.shape[1:], beyond) for part in points.split(step, 1)]
        return torch.cat(parts, 1)
    return _evaluate(table, points, image.shape[1:], beyond)


def coefficients(image: Tensor, beyond: str) -> Tensor:
    """``[c, *s]`` to the coefficients of its spline ``[c, *(s + 2 * _MARGIN)]``."""
    for axis in range(1, image.dim()):
        matrix = _filter(image.shape[axis], beyond, image.dtype, image.device)
        if axis == image.dim() - 1:
            image = image @ matrix.T
        else:
            lanes = image.flatten(axis + 1).flatten(0, axis - 1)
            shape = (*image.shape[:axis], len(matrix), *image.shape[axis + 1 :])
            image = (matrix @ lanes).view(shape)
    return image


@functools.lru_cache(maxsize=512)
def _filter(n: int, beyond: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[n + 2 * _MARGIN, n]``: values to coefficients along an axis."""
    values = torch.arange(-_FAR - _MARGIN, n + _FAR + _MARGIN)
    if beyond == "edge":
        source = values.clamp(0, n - 1)
    else:  # mirrored at the centres of the outermost cells
        period = max(1, 2 * n - 2)
        source = (values % period).minimum(-values % period)
    here = torch.arange(-_MARGIN, n + _MARGIN)
    answer = math.sqrt(3) * _POLE ** (here[:, None] - values).abs().double()
    matrix = torch.zeros(len(here), n, dtype=torch.float64)
    return matrix.index_add_(1, source, answer).to(device, dtype)


def _evaluate(table: Tensor, points: Tensor, size: torch.Size, beyond: str) -> Tensor:
    axes, n = points.shape
    corner = points.new_tensor([s - 1 for s in size])[:, None]
    if beyond == "zero":
        outside = ((points < 0) | (points > corner)).any(0)
        points = points.clamp(min=0).minimum(corner)
    else:
        points = points.clamp(min=-_REACH).minimum(corner + _REACH)
    whole = points.floor().minimum(corner + _REACH - 1)
    t = points - whole
    u = 1 - t
    # The four splines that reach a point, from the lowest cell on: [4, axes, n].
    near = [u * u * u, 4 - 3 * t * t * (1 + u), 4 - 3 * u * u * (1 + t), t * t * t]
    weights = torch.stack(near) * (1 / 6)
    first = whole.nan_to_num(0).long() + (_MARGIN - 1)
    taps = torch.arange(4, device=points.device)[:, None]
    index = torch.zeros(1, n, dtype=torch.long, device=points.device)
    weight = points.new_ones(1, n)
    for axis in range(axes):
        stride = table.stride(axis + 1)
        index = (index[:, None] + (first[axis] + taps) * stride).flatten(0, 1)
        weight = (weight[:, None] * weights[:, axis]).flatten(0, 1)
    values = [(plane.flatten().take(index) * weight).sum(0) for plane in table]
    result = torch.stack(values) if values else points.new_empty(0, n)
    return result.masked_fill_(outside, 0) if beyond == "zero" else result


def _backward(ctx: Any, grad: list[Tensor]) -> None:
    # Without this, torch would leave the gradient out and go on.
    raise NotImplementedError(
        "spline_sample has no gradient: it makes training images; detach its arguments"
    )


op.autograd(_backward, lambda ctx, inputs, output: None)
