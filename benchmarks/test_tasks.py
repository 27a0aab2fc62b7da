# SPDX-License-Identifier: Apache-2.0
"""Synthetic anomalies per sample, against numpy, SciPy, scikit-image and PIE-torch."""

from __future__ import annotations

import numpy as np
import pytest
import rivals_tasks
import torch
import torch.nn.functional as F
from conftest import Results

from fundad_fast.synthetic import TASKS, TaskSettings, synthesize

SIZES = {"2-D 256x256": ((256, 256), 16), "3-D 80x112x80": ((80, 112, 80), 4)}  # cells, batch
BAR = 4
RIVAL = "SciPy and PIE-torch"


def images(size: tuple[int, ...], n: int, seed: int) -> torch.Tensor:
    """Smooth noise, as resampled images are."""
    g = torch.Generator().manual_seed(seed)
    coarse = [k // 4 for k in size]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(torch.randn(n, 1, *coarse, generator=g), size, mode=mode).contiguous()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", SIZES)
def test_task(name: str, task: str, threads: int, results: Results) -> None:
    """The rival runs on one thread, as its libraries do."""
    label = f"{task}, {name}, threads {threads}"
    blends = task in ("intra", "inter")
    if blends and not results.installed(label, "pietorch"):
        pytest.skip("pietorch is not installed")
    size, n = SIZES[name]
    batch, pool, settings = images(size, n, 0), images(size, 4, 1), TaskSettings()
    arrays, seeds = batch.numpy(), range(n)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        race = results.race(
            label,
            {
                "fundad_fast": (
                    lambda: synthesize(batch, [task] * n, seeds=seeds, sources=pool, external=pool),
                    n,
                ),
                RIVAL: (
                    lambda: rivals_tasks.synthesize(arrays, task, seeds, pool, settings),
                    n,
                ),
            },
        )
    finally:
        torch.set_num_threads(before)
    results.row(race, "fundad_fast", RIVAL, BAR if threads == 2 else None)


@pytest.mark.parametrize("task", TASKS)
def test_both_do_the_same(task: str) -> None:
    if task in ("intra", "inter"):
        pytest.importorskip("pietorch")
    batch, pool = images((64, 72), 4, 0), images((64, 72), 3, 1)
    ours = synthesize(batch, [task] * 4, seeds=range(4), sources=pool, external=pool)
    theirs, labels = rivals_tasks.synthesize(batch.numpy(), task, range(4), pool, TaskSettings())
    np.testing.assert_allclose(ours.image, theirs, rtol=0, atol=2e-4)
    np.testing.assert_allclose(ours.label, labels, rtol=0, atol=2e-3)
