# SPDX-License-Identifier: Apache-2.0
"""Every operator at its named real shapes, on made data of the right kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from cases import BOXES, box
from roofline import Work
from torch import Tensor

from fundad_fast import ops

Run = Callable[[int], object]


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes:
        op: the operator.
        name: of the shape.
        make: from a device and sizes to what is run; its argument numbers the call, so that inputs
            can be rotated.
        work: from the sizes to what the plain form needs.
        sizes: the real ones.
        small: sizes for a rehearsal in which times mean nothing.
        devices: where it is run.
    """

    op: str
    name: str
    make: Callable[[str, tuple[int, ...]], Run]
    work: Callable[[tuple[int, ...]], Work]
    sizes: tuple[int, ...]
    small: tuple[int, ...]
    devices: tuple[str, ...] = ("cpu", "cuda")


def correlated(n: int, d: int, device: str, seed: int = 0) -> Tensor:
    """``[n, d]`` rows whose spectrum falls as that of ReSAD's features does, roughly as 1 / i."""
    g = torch.Generator(device).manual_seed(seed)
    few = min(d, 128)
    scale = 1 / torch.arange(1, few + 1, device=device)
    axes = torch.randn(few, d, generator=torch.Generator(device).manual_seed(99), device=device)
    rows = (torch.randn(n, few, generator=g, device=device) * scale) @ axes
    return rows + 0.02 * torch.randn(n, d, generator=g, device=device)


def _filter(device: str, sizes: tuple[int, ...]) -> Run:
    channels, side, radius = sizes
    maps = [torch.randn(1, channels, side, side, device=device) for _ in range(3)]
    maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    return lambda i: ops.distance_filter(maps[i % 3], radius)


def _filter_work(sizes: tuple[int, ...]) -> Work:
    channels, side, radius = sizes
    reach = range(-radius, radius + 1)
    taps = sum(x * x + y * y <= radius * radius for x in reach for y in reach)
    cells = channels * side * side
    return Work(2.0 * taps * cells, 8.0 * cells)


def _attention(device: str, sizes: tuple[int, ...]) -> Run:
    n, d = sizes
    rows = [correlated(n, d, device, seed)[None] for seed in range(2)]
    return lambda i: ops.self_attention(rows[i % 2], 1.0, "l2")


def _attention_work(sizes: tuple[int, ...]) -> Work:
    n, d = sizes
    return Work(4.0 * n * n * d, 8.0 * n * d)


def _kcenter(device: str, sizes: tuple[int, ...]) -> Run:
    n, d, k = sizes
    rows = correlated(n, d, device)
    return lambda i: ops.kcenter(rows, k)


def _kcenter_work(sizes: tuple[int, ...]) -> Work:
    n, d, k = sizes
    return Work(3.0 * n * d * k, 4.0 * n * d * k)


def _nearest(device: str, sizes: tuple[int, ...]) -> Run:
    m, n, d = sizes
    bank = correlated(n, d, device)
    queries = [correlated(m, d, device, seed) for seed in (1, 2, 3)]
    prepared = ops.nearest_prepare(bank)
    return lambda i: ops.nearest(queries[i % 3], bank, prepared=prepared)


def _nearest_work(sizes: tuple[int, ...]) -> Work:
    m, n, d = sizes
    return Work(2.0 * m * n * d, 4.0 * (m + n) * d)


def _blend(device: str, sizes: tuple[int, ...]) -> Run:
    boxes = [box(shape, seed) for seed in range(sizes[0]) for shape in BOXES.values()]
    parts = [[part.to(device) for part in kind] for kind in zip(*boxes, strict=True)]
    return lambda i: ops.poisson_blend(*parts)


def _blend_work(sizes: tuple[int, ...]) -> Work:
    operations = traffic = 0.0
    for shape in BOXES.values():
        cells = float(torch.Size(shape).numel()) * sizes[0]
        operations += 4 * cells * sum(shape[1:])
        traffic += 13 * cells
    return Work(operations, traffic)


def _spline(device: str, sizes: tuple[int, ...]) -> Run:
    """As many points as cells, which is what a turned piece of a source asks for."""
    images, points = [], []
    for seed in range(sizes[0]):
        for shape in BOXES.values():
            images.append(box(shape, seed)[0].to(device))
            most = torch.tensor(shape[1:], device=device)[:, None] - 1
            n = images[-1][0].numel()
            points.append(torch.rand(len(most), n, device=device) * most)
    return lambda i: ops.spline_sample(images, points, "edge")


def _spline_work(sizes: tuple[int, ...]) -> Work:
    operations = traffic = 0.0
    for shape in BOXES.values():
        cells = float(torch.Size(shape).numel()) * sizes[0]
        operations += cells * 2 * (4.0 ** (len(shape) - 1) + sum(shape[1:]))
        traffic += 4 * cells * (len(shape) + 1)
    return Work(operations, traffic)


def _labels(device: str, sizes: tuple[int, ...]) -> Run:
    boxes = [box(shape, seed) for seed in range(sizes[0]) for shape in BOXES.values()]
    masks = [mask.to(device) for _, _, mask in boxes]
    values = [(b[0][0].abs().clamp(max=1) * b[2]).to(device) for b in boxes]
    return lambda i: ops.clean_labels(values, masks)


def _labels_work(sizes: tuple[int, ...]) -> Work:
    operations = traffic = 0.0
    for shape in BOXES.values():
        cells = float(torch.Size(shape).numel()) * sizes[0]
        operations += cells * (8 if len(shape) == 3 else 24)  # of the closing alone
        traffic += 9 * cells
    return Work(operations, traffic)


def _depths(device: str, sizes: tuple[int, ...]) -> Run:
    boxes = [box(shape, seed) for seed in range(sizes[0]) for shape in BOXES.values()]
    masks = [mask.to(device) for _, _, mask in boxes]
    return lambda i: ops.distance_transform(masks)


def _depths_work(sizes: tuple[int, ...]) -> Work:
    cells = sum(float(torch.Size(shape[1:]).numel()) for shape in BOXES.values()) * sizes[0]
    return Work(10 * cells, 5 * cells)


def _changes(device: str, sizes: tuple[int, ...]) -> Run:
    """A batch of images of 256 pixels, most of each of them changed."""
    before = torch.rand(sizes[0], 1, 256, 256, device=device)
    after = before + 0.3 * torch.randn_like(before)
    mask = torch.zeros(sizes[0], 256, 256, dtype=torch.bool, device=device)
    mask[:, 9:240, 5:250] = True
    boxes = [(i, 9, 5, 231, 245) for i in range(sizes[0])]
    return lambda i: ops.change_labels(after, before, mask, boxes, sigma=0.2)


def _changes_work(sizes: tuple[int, ...]) -> Work:
    cells = 231.0 * 245 * sizes[0]
    return Work(40 * cells, 13 * cells)


RESNET18, WIDE = "ResNet-18 at 784 px", "WideResNet-50 at 784 px"
GPU = ("cuda",)

CASES = [
    Case("distance_filter", RESNET18, _filter, _filter_work, (384, 98, 12), (8, 20, 4)),
    Case("distance_filter", WIDE, _filter, _filter_work, (1536, 98, 12), (8, 20, 4)),
    Case("self_attention", RESNET18, _attention, _attention_work, (9604, 384), (200, 32)),
    Case("self_attention", WIDE, _attention, _attention_work, (9604, 1536), (200, 32)),
    Case("kcenter", "57,624 rows, 1 %", _kcenter, _kcenter_work, (57_624, 384, 576), (900, 16, 9)),
    Case(
        "kcenter",
        "1,286,936 rows, first 2,000 picks",
        _kcenter,
        _kcenter_work,
        (1_286_936, 347, 2_000),
        (900, 16, 9),
        GPU,
    ),
    Case("nearest", "bank of 15,000", _nearest, _nearest_work, (9604, 15_000, 384), (90, 300, 16)),
    Case(
        "nearest",
        "bank of 128,693, d = 1536",
        _nearest,
        _nearest_work,
        (9604, 128_693, 1536),
        (90, 300, 16),
        GPU,
    ),
    Case("poisson_blend", "20 boxes, 2-D and 3-D", _blend, _blend_work, (4,), (1,)),
    Case("spline_sample", "20 boxes, 2-D and 3-D", _spline, _spline_work, (4,), (1,)),
    Case("clean_labels", "20 boxes, 2-D and 3-D", _labels, _labels_work, (4,), (1,)),
    Case("distance_transform", "20 boxes, 2-D and 3-D", _depths, _depths_work, (4,), (1,)),
    Case("change_labels", "16 images of 256 px", _changes, _changes_work, (16,), (1,)),
]
