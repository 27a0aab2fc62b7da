# SPDX-License-Identifier: Apache-2.0
"""Labels of synthetic anomalies: how much images changed."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _adapt
from ._registry import Op
from .clean_labels import clean_labels
from .clean_labels import reference as cleaned_reference

_MOST_AXES = 3


def change_labels(
    after: Tensor,
    before: Tensor,
    mask: Tensor,
    boxes: Sequence[Sequence[int]],
    *,
    sigma: float,
    clean: bool = True,
) -> Tensor:
    """1 - exp(-Δ²/2σ²) in a mask, Δ being the mean absolute change of an image's channels.

    The label of "Many tasks make light work", section 3, a Gaussian turned over: 0 where nothing
    changed, towards 1 where much did. Relative to itself it is exact also where it is small.

    Args:
        after: ``[b, c, *s]`` float32, one or more spatial axes.
        before: of the same shape and type.
        mask: ``[b, *s]`` bool; a label is 0 outside it, before it is cleaned.
        boxes: ``(image, *first cell, *extent)`` each, which hold all of the mask. Those of an
            image have no cell in common.
        sigma: σ > 0, in the image's units.
        clean: close and fill the labels of each box, see :func:`clean_labels`.

    Returns:
        ``[b, *s]`` float32 in [0, 1], 0 outside the boxes.

    Raises:
        ValueError: a shape, a type, a device, a box or σ that does not fit.
    """
    numbers = [int(number) for box in boxes for number in box]
    return torch.ops.fundad.change_labels(after, before, mask, numbers, sigma, clean)


def reference(
    after: Tensor, before: Tensor, mask: Tensor, boxes: list[int], sigma: float, clean: bool
) -> Tensor:
    change = (after.double() - before.double()).abs().mean(1)
    plain = -torch.expm1(-change.square() / (2 * sigma**2)) * mask
    result = torch.zeros_like(plain)
    for at in _cells(boxes, mask.dim() - 1):
        result[at] = cleaned_reference([plain[at]], [mask[at]])[0] if clean else plain[at]
    return result


def _cells(boxes: list[int], axes: int) -> list[tuple[Any, ...]]:
    """Indices of images and slices, of each box."""
    step, found = 1 + 2 * axes, []
    for i in range(0, len(boxes), step):
        image, *numbers = boxes[i : i + step]
        pairs = zip(numbers[:axes], numbers[axes:], strict=True)
        found.append((image, *(slice(low, low + n) for low, n in pairs)))
    return found


def fake(
    after: Tensor, before: Tensor, mask: Tensor, boxes: list[int], sigma: float, clean: bool
) -> Tensor:
    if after.dim() < 3 or after.dtype != torch.float32 or 0 in after.shape[1:2]:
        raise ValueError(
            "change_labels: want images [b, c, *s] float32, one channel or more, got "
            f"{list(after.shape)} {after.dtype}"
        )
    if before.shape != after.shape or before.dtype != after.dtype:
        raise ValueError(
            f"change_labels: want before as after, {list(after.shape)} float32, got "
            f"{list(before.shape)} {before.dtype}"
        )
    want = [after.shape[0], *after.shape[2:]]
    if list(mask.shape) != want or mask.dtype != torch.bool:
        raise ValueError(
            f"change_labels: want mask {want} bool, got {list(mask.shape)} {mask.dtype}"
        )
    if not after.device == before.device == mask.device:
        raise ValueError(
            f"change_labels: want one device, got {after.device}, {before.device}, {mask.device}"
        )
    torch._check_value(sigma > 0, lambda: f"change_labels: want sigma > 0, got {sigma}")
    axes = after.dim() - 2
    if len(boxes) % (1 + 2 * axes):
        raise ValueError(
            f"change_labels: want boxes of {1 + 2 * axes} numbers each, got {len(boxes)} in all"
        )
    for i in range(0, len(boxes), 1 + 2 * axes):
        image, *numbers = boxes[i : i + 1 + 2 * axes]
        lanes = zip(numbers[:axes], numbers[axes:], after.shape[2:], strict=True)
        if not (
            0 <= image < after.shape[0]
            and all(low >= 0 and n > 0 and low + n <= size for low, n, size in lanes)
        ):
            raise ValueError(
                f"change_labels: the box {[image, *numbers]} is empty or not in {want}"
            )
    return torch.empty(want, dtype=torch.float32, device=after.device)


def samples() -> dict[str, tuple[Any, ...]]:
    g = torch.Generator().manual_seed(0)

    def case(
        b: int, c: int, *size: int, boxes: list[int], clean: bool = True, size_of: float = 0.3
    ) -> tuple[Any, ...]:
        before = torch.randn(b, c, *size, generator=g)
        change = size_of * torch.randn(b, c, *size, generator=g)
        axes, mask = len(size), torch.rand(b, *size, generator=g) < 0.8
        held = torch.zeros_like(mask)
        for at in _cells(boxes, axes):
            held[at] = True
        return before + change, before, mask & held, boxes, 0.2, clean

    two = [0, 2, 3, 20, 25, 2, 0, 0, 30, 9, 2, 1, 15, 7, 4]
    three = [1, 0, 2, 1, 9, 8, 10]
    strided = list(case(2, 2, 24, 30, boxes=[0, 1, 2, 20, 21]))
    strided[0], strided[1] = (x.mT.contiguous().mT for x in strided[:2])
    strided[2] = strided[2].mT.contiguous().mT
    one = torch.rand(1, 1, 9, 9, generator=g)
    everywhere = torch.ones(1, 9, 9, dtype=torch.bool)
    return {
        "two": case(3, 1, 30, 32, boxes=two),
        "colours": case(3, 3, 30, 32, boxes=two),
        "three": case(2, 2, 10, 11, 12, boxes=three),
        "one": case(2, 1, 40, boxes=[0, 3, 30, 1, 0, 40]),
        "four": case(1, 1, 5, 6, 4, 5, boxes=[0, 0, 1, 0, 0, 5, 5, 4, 4]),
        "raw": case(3, 2, 30, 32, boxes=two, clean=False),
        "small": case(3, 1, 30, 32, boxes=two, clean=False, size_of=1e-4),
        "large": case(3, 1, 30, 32, boxes=two, clean=False, size_of=40),
        "no_box": case(2, 1, 8, 8, boxes=[]),
        "same": (one, one, everywhere, [0, 0, 0, 9, 9], 0.2, True),
        "strided": tuple(strided),
        "many": case(4, 1, 90, 80, boxes=[x for i in range(4) for x in (i, 1, 2, 88, 77)]),
    }


def check(args: tuple[Any, ...], got: Tensor, want: Tensor) -> None:
    after, before, mask, _, sigma, clean = args
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert got.min() >= 0
    assert got.max() <= 1
    # A difference of float32 is off by half a unit of the images; the steepest slope is 0.61 / σ.
    unit = torch.finfo(torch.float32).eps
    change = (after.double() - before.double()).abs().mean(1)
    slope = (change / sigma**2 * torch.exp(-change.square() / (2 * sigma**2))).max()
    size = float(torch.maximum(after.abs(), before.abs()).max())
    bound = 4 * unit * want + unit * size * float(slope) + 1e-30
    assert ((got - want).abs() <= bound).all()
    if not clean:
        assert (got[~mask] == 0).all()


def bad() -> dict[str, tuple[tuple[Any, ...], str]]:
    x, m = torch.zeros(2, 1, 5, 6), torch.zeros(2, 5, 6, dtype=torch.bool)
    box = [0, 0, 0, 5, 6]
    return {
        "axes": ((x[0, 0], x[0, 0], m[0], box, 0.2, True), r"want images \[b, c, \*s\] float32"),
        "type": ((x.double(), x.double(), m, box, 0.2, True), "got .* torch.float64"),
        "channels": ((x[:, :0], x[:, :0], m, box, 0.2, True), "one channel or more"),
        "before": ((x, x[:1], m, box, 0.2, True), r"want before as after, .* got \[1, 1, 5, 6\]"),
        "mask": ((x, x, m[:1], box, 0.2, True), r"want mask \[2, 5, 6\] bool, got \[1, 5, 6\]"),
        "mask_type": ((x, x, m.float(), box, 0.2, True), "got .* torch.float32"),
        "sigma": ((x, x, m, box, 0.0, True), "want sigma > 0, got 0"),
        "numbers": ((x, x, m, box[:4], 0.2, True), "boxes of 5 numbers each, got 4 in all"),
        "image": ((x, x, m, [2, 0, 0, 5, 6], 0.2, True), r"\[2, 0, 0, 5, 6\] is empty or not in"),
        "before_it": ((x, x, m, [0, -1, 0, 5, 6], 0.2, True), "is empty or not in"),
        "beyond_it": ((x, x, m, [0, 1, 0, 5, 6], 0.2, True), "is empty or not in"),
        "empty": ((x, x, m, [0, 1, 0, 0, 6], 0.2, True), "is empty or not in"),
    }


op = Op(
    "change_labels",
    "(Tensor after, Tensor before, Tensor mask, int[] boxes, float sigma, bool clean) -> Tensor",
    reference,
    fake,
    samples,
    check,
    bad,
)


def _why_not_cpu(
    after: Tensor, before: Tensor, mask: Tensor, boxes: list[int], sigma: float, clean: bool
) -> str | None:
    axes = after.dim() - 2
    if axes > _MOST_AXES:
        return f"images have {axes} axes, the native code takes up to {_MOST_AXES}"
    return _adapt.no_cpu(after)  # all are on one device


@op.backend("cpu", _why_not_cpu)
def _cpu(
    after: Tensor, before: Tensor, mask: Tensor, boxes: list[int], sigma: float, clean: bool
) -> Tensor:
    after, before, mask = after.contiguous(), before.contiguous(), mask.contiguous()
    out = torch.zeros(mask.shape)
    axes = mask.dim() - 1
    size, numbers = array("q", mask.shape[1:]), array("q", boxes)
    step, work = 1 + 2 * axes, 0
    for i in range(1 + axes, len(boxes), step):
        cells = 1
        for n in boxes[i : i + axes]:
            cells *= n
        work += cells
    if work:
        addresses = [tensor.data_ptr() for tensor in (after, before, mask, out)]
        of_size, of_boxes = size.buffer_info()[0], numbers.buffer_info()[0]
        shape = (axes, after.shape[1], of_size, of_boxes, len(boxes) // step)
        threads = _adapt.threads(100.0 * work)
        _adapt.native().change_labels_cpu(*addresses, *shape, sigma, clean, threads)
    return out


@op.backend("torch")
def _torch(
    after: Tensor, before: Tensor, mask: Tensor, boxes: list[int], sigma: float, clean: bool
) -> Tensor:
    result = torch.zeros(mask.shape, device=mask.device)
    places = _cells(boxes, mask.dim() - 1)
    if not places:
        return result
    # All boxes in one row: there are many small ones, and a launch costs as much as one.
    changes, parts = [], []
    for image, *lanes in places:
        at = (image, slice(None), *lanes)
        changes.append((after[at] - before[at]).abs().mean(0).flatten())
        parts.append(mask[image][tuple(lanes)].flatten())
    inside = torch.cat(parts)
    raw = -torch.cat(changes).square().mul_(-0.5 / sigma**2).expm1_()
    raw.masked_fill_(~inside, 0)
    lengths = [len(part) for part in parts]
    extents = [result[at].shape for at in places]
    values = [one.view(n) for one, n in zip(raw.split(lengths), extents, strict=True)]
    if clean:
        masks = [one.view(n) for one, n in zip(inside.split(lengths), extents, strict=True)]
        values = clean_labels(values, masks)
    for at, one in zip(places, values, strict=True):
        result[at] = one
    return result


def _backward(ctx: Any, grad: Tensor) -> None:
    # Without this, torch would leave the gradient out and go on.
    raise NotImplementedError("change_labels has no gradient: detach its arguments")


op.autograd(_backward, lambda ctx, inputs, output: None)
