# SPDX-License-Identifier: Apache-2.0
"""poisson_blend against SciPy's transforms, torch's products, OpenCV and PIE-torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases import BOXES, box
from conftest import Results
from rivals_poisson import blend_products, blend_scipy
from roofline import Work

from fundad_fast import ops

BARS = {"scipy": {1: 3, 2: 6}, "torch products": {1: 3, 2: 3}}


@pytest.fixture(params=[1, 2], ids=["one_thread", "two_threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    if request.param > 1 and before < request.param:
        pytest.skip(f"torch has {before} thread here")
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def many(run: Callable[[], Any]) -> tuple[Callable[[], Any], int]:
    """A candidate that takes about 4 ms: a clock that ticks once for 20 us of work says little."""
    run()
    began = time.perf_counter()
    run()
    times = max(1, round(4e-3 / (time.perf_counter() - began)))

    def repeated() -> None:
        for _ in range(times):
            run()

    return repeated, times


@pytest.mark.parametrize("name", BOXES)
def test_box(name: str, threads: int, results: Results) -> None:
    target, source, mask = box(BOXES[name])
    arrays = target.numpy(), source.numpy(), mask.numpy()
    candidates = {
        "cpu": many(lambda: ops.poisson_blend(target, source, mask)),
        "scipy": many(lambda: blend_scipy(*arrays, threads)),
        "torch products": many(lambda: blend_products(target, source, mask)),
    }
    label = f"poisson_blend, {name}, threads {threads}"
    if results.installed(label, "pietorch"):
        from pietorch import blend_dst_numpy

        corner = np.zeros(mask.dim(), dtype=int)
        candidates["PIE-torch"] = many(
            lambda: blend_dst_numpy(arrays[0], arrays[1], arrays[2].copy(), corner, True, 0)
        )
    race(label, candidates, results, work([mask]))


def test_ragged_batch(threads: int, results: Results) -> None:
    """What a batch of training samples asks for: all boxes in one call."""
    boxes = [box(shape, seed) for seed in range(4) for shape in BOXES.values()]
    targets, sources, masks = (list(part) for part in zip(*boxes, strict=True))
    arrays = [tuple(part.numpy() for part in one) for one in boxes]
    candidates = {
        "cpu": many(lambda: ops.poisson_blend(targets, sources, masks)),
        "scipy": many(lambda: [blend_scipy(*one, threads) for one in arrays]),
        "torch products": many(lambda: [blend_products(*one) for one in boxes]),
    }
    name = f"poisson_blend, {len(boxes)} boxes of the {len(BOXES)} shapes, threads {threads}"
    race(name, candidates, results, work(masks))


def work(masks: list[torch.Tensor]) -> Work:
    """Products with matrices of sines, there and back, of boxes of one channel."""
    operations = sum(4.0 * mask.numel() * sum(mask.shape) for mask in masks)
    return Work(operations, 13.0 * sum(mask.numel() for mask in masks))


def race(name: str, candidates: dict[str, Any], results: Results, work: Work | None) -> None:
    measured = results.race(name, candidates, work=work)
    for rival in list(candidates)[1:]:
        results.row(measured, "cpu", rival, BARS.get(rival, {}).get(torch.get_num_threads()))


@pytest.mark.parametrize("name", [name for name in BOXES if name.startswith("2-D")])
def test_opencv(name: str, threads: int, results: Results) -> None:
    """``seamlessClone`` takes three channels of 8 bits and solves in float32."""
    cv2 = pytest.importorskip("cv2")
    cv2.setNumThreads(threads)
    target, source, mask = box((3, *BOXES[name][1:]))
    pictures = [
        np.ascontiguousarray((part * 40 + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy())
        for part in (target, source)
    ]
    spot = mask.numpy().astype(np.uint8) * 255
    centre = (mask.shape[1] // 2, mask.shape[0] // 2)
    # The picture into which it is put needs a margin, because OpenCV grows the box by its border.
    wide = np.pad(pictures[0], ((8, 8), (8, 8), (0, 0)), mode="edge")
    middle = (centre[0] + 8, centre[1] + 8)
    candidates = {
        "cpu": many(lambda: ops.poisson_blend(target, source, mask)),
        "OpenCV": many(lambda: cv2.seamlessClone(pictures[1], wide, spot, middle, cv2.MIXED_CLONE)),
    }
    race(f"poisson_blend, {name}, 3 channels, threads {threads}", candidates, results, None)


@pytest.mark.parametrize("name", BOXES)
def test_rivals_solve_the_same_problem(name: str) -> None:
    target, source, mask = box(BOXES[name])
    want = ops.poisson_blend(target.double(), source.double(), mask)
    framed = torch.zeros_like(mask)
    inner = tuple(slice(1, -1) for _ in mask.shape)
    framed[inner] = mask[inner]
    got = {
        "cpu": ops.poisson_blend(target, source, mask),
        "scipy": torch.from_numpy(blend_scipy(target.numpy(), source.numpy(), framed.numpy(), 1)),
        "torch products": blend_products(target, source, framed),
    }
    for rival, one in got.items():
        off = float((one.double() - want).abs().max())
        print(f"{name}: {rival} is off by {off:.1e}")
        assert off < 2e-5
