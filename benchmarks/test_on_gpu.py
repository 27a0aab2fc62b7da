# SPDX-License-Identifier: Apache-2.0
"""Operators on a GPU against what one would use there; the GPU bars of the operators.

pytest benchmarks/test_on_gpu.py --device cuda          # or --dry, on any machine
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest
import rivals
import torch
import torch.nn.functional as F
from cases import BOXES, box
from conftest import Results
from operators import correlated
from rivals_poisson import blend_scipy
from roofline import Work
from torch import Tensor

from fundad_fast import ops


@pytest.fixture
def setting(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """The device, and whether this is a rehearsal."""
    device, dry = request.config.getoption("--device"), request.config.getoption("--dry")
    if device == "cpu" and not dry:
        pytest.skip("these sizes are for a GPU: give --device cuda, or --dry")
    return device, dry


def turns(run: Callable[[Any], Any], inputs: list[Any]) -> tuple[Callable[[], Any], int]:
    """A candidate that takes another input each time."""
    turn = itertools.cycle(inputs)
    return (lambda: run(next(turn))), 1


def test_distance_filter(setting: tuple[str, bool], results: Results) -> None:
    device, dry = setting
    channels, cells, radius = (8, 20, 4) if dry else (1536, 98, 12)
    step = torch.arange(-radius, radius + 1, device=device)
    weights = (1 - torch.hypot(step[:, None].double(), step.double()) / (radius + 1)).clamp_min(0)
    weights = torch.where(step[:, None] ** 2 + step**2 <= radius**2, weights, 0)
    kernel = (weights / weights.sum()).float()
    ones = torch.ones(1, 1, cells, cells, device=device)
    share = 1 / F.conv2d(ones, kernel[None, None], padding=radius)
    weight = kernel.expand(channels, 1, -1, -1).contiguous(memory_format=torch.channels_last)
    maps = [torch.randn(1, channels, cells, cells, device=device) for _ in range(3)]
    maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    want = rivals.filter_conv2d(maps[0], weight, share)
    torch.testing.assert_close(ops.distance_filter(maps[0], radius), want, rtol=1e-3, atol=1e-3)
    candidates = {
        "ours": turns(lambda x: ops.distance_filter(x, radius), maps),
        "conv2d": turns(lambda x: rivals.filter_conv2d(x, weight, share), maps),
        "rfft2": turns(lambda x: rivals.filter_rfft(x, kernel, share), maps),
    }
    work = Work(2.0 * int((weights > 0).sum()) * maps[0].numel(), 8.0 * maps[0].numel())
    name = f"distance_filter [1, {channels}, {cells}, {cells}], {device}"
    race(name, candidates, device, results, work, 4)


def test_self_attention(setting: tuple[str, bool], results: Results) -> None:
    device, dry = setting
    n, d = (200, 32) if dry else (9604, 1536)
    rows = [F.normalize(correlated(n, d, device, seed), dim=1)[None] * 3 for seed in range(2)]

    def blocks(f: Tensor) -> Tensor:
        return torch.cat([torch.softmax(part @ f.mT, -1) @ f for part in f.split(2048, 1)], 1)

    candidates = {
        "ours": turns(lambda f: ops.self_attention(f, 1.0), rows),
        "SDPA": turns(lambda f: F.scaled_dot_product_attention(f, f, f, scale=1.0), rows),
        "row blocks": turns(blocks, rows),
    }
    race(
        f"self_attention [1, {n}, {d}], float32, {device}",
        candidates,
        device,
        results,
        Work(4.0 * n * n * d, 8.0 * n * d),
        1.2,
    )


def test_nearest(setting: tuple[str, bool], results: Results) -> None:
    device, dry = setting
    m, n, d = (90, 300, 16) if dry else (9604, 128_693, 1536)
    bank = correlated(n, d, device)
    prepared, norm2 = ops.nearest_prepare(bank), bank.square().sum(1)
    queries = [correlated(m, d, device, seed) for seed in (1, 2, 3)]
    candidates = {
        "ours": turns(lambda q: ops.nearest(q, bank, prepared=prepared), queries),
        "cuBLAS + min": turns(lambda q: rivals.nearest_addmm(q, bank, norm2), queries),
    }
    name = f"nearest, {m} queries, bank [{n}, {d}], {device}"
    if results.installed(name, "faiss"):
        import faiss

        flat = faiss.IndexFlatL2(d)
        if device == "cuda" and not hasattr(faiss, "StandardGpuResources"):
            results.skip(name, "faiss", "built without GPU")
        else:
            index = flat
            if device == "cuda":
                index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, flat)
            index.add(bank.cpu().numpy())
            inputs = [q.cpu().numpy() for q in queries]
            candidates["faiss"] = turns(lambda q: index.search(q, 1), inputs)
    work = Work(2.0 * m * n * d, 4.0 * (m + n) * d)
    race(name, candidates, device, results, work, 4)


def test_poisson_blend(setting: tuple[str, bool], results: Results) -> None:
    """A ragged batch on the device; SciPy takes the boxes one by one, with all cores."""
    device, dry = setting
    boxes = [box(shape, seed) for seed in range(1 if dry else 8) for shape in BOXES.values()]
    parts = [[part.to(device) for part in kind] for kind in zip(*boxes, strict=True)]
    arrays = [tuple(part.numpy() for part in one) for one in boxes]
    workers = os.cpu_count() or 1
    candidates: dict[str, tuple[Callable[[], Any], float]] = {
        "ours": (lambda: ops.poisson_blend(*parts), 1),
        "scipy": (lambda: [blend_scipy(*one, workers) for one in arrays], 1),
    }
    cells = [(float(mask.numel()), sum(mask.shape)) for _, _, mask in boxes]
    work = Work(sum(4 * n * side for n, side in cells), sum(13 * n for n, _ in cells))
    race(f"poisson_blend, {len(boxes)} boxes, {device}", candidates, device, results, work, 20)


def test_kcenter(setting: tuple[str, bool], results: Results) -> None:
    """All of IDRiD's picks; the rival runs its first ones, of which each costs the same."""
    device, dry = setting
    n, d, k, some = (900, 16, 90, 30) if dry else (1_286_936, 347, 128_693, 300)
    x = correlated(n, d, device)

    def unpruned() -> Tensor:
        picks = [torch.zeros((), dtype=torch.int64, device=device)]
        reach2 = torch.full((n,), float("inf"), device=device)
        norm2 = x.square().sum(1)
        for _ in range(some):
            pick = picks[-1]
            gap = torch.addmv(norm2, x, x[pick], alpha=-2) + norm2[pick]
            reach2 = torch.minimum(reach2, gap)
            picks.append(reach2.argmax())
        return torch.stack(picks)

    ops.kcenter(x[:10_000].contiguous(), 100)  # to warm up: all picks may take a minute
    unpruned()
    measured = results.race(
        f"kcenter [{n}, {d}], {k} picks, {device}",
        {"ours": (lambda: ops.kcenter(x, k), 1.0), "unpruned": (unpruned, some / k)},
        device=device,
        work=Work(2.0 * n * d * k, 4.0 * n * d * k),
        once=True,
        note=f"unpruned: {some} picks, times {k / some:.1f}",
    )
    results.row(measured, "ours", "unpruned")


def race(
    name: str,
    candidates: dict[str, tuple[Callable[[], Any], float]],
    device: str,
    results: Results,
    work: Work,
    bar: float | None,
) -> None:
    measured = results.race(name, candidates, device=device, work=work)
    for rival in list(candidates)[1:]:
        results.row(measured, "ours", rival, bar if device == "cuda" else None)
