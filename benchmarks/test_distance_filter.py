# SPDX-License-Identifier: Apache-2.0
"""distance_filter against torch's forms, in both layouts; see conftest.py.

The bars are against the better of torch's plain forms. The operator's own torch form, a transform
that keeps its planes in the cache, runs beside them.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import rivals
import torch
from cases import MAPS
from conftest import Results
from torch import Tensor

from fundad_fast import ops

RADIUS = 12
PAPER = "WideResNet-50 at 784 px"
LAYOUTS = {
    "channels last": (torch.channels_last, 9),
    "channels first": (torch.contiguous_format, 8),
}


def cone() -> Tensor:
    """The paper's kernel as the field would write it."""
    step = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    distance = torch.hypot(step[:, None], step)
    weight = torch.where(distance <= RADIUS, 1 - distance / (RADIUS + 1), 0)
    return (weight / weight.sum()).float()


def with_torch(x: Tensor) -> Tensor:
    with ops.OPS["distance_filter"].using("torch"):
        return ops.distance_filter(x, RADIUS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", MAPS)
def test_distance_filter(shape: str, layout: str, results: Results) -> None:
    (channels, cells), (memory_format, bar) = MAPS[shape], LAYOUTS[layout]
    x = torch.randn(1, channels, cells, cells).contiguous(memory_format=memory_format)
    kernel = cone()
    weight = kernel.expand(channels, 1, -1, -1).contiguous(memory_format=torch.channels_last)
    ones = torch.ones(1, 1, cells, cells)
    share = 1 / torch.nn.functional.conv2d(ones, kernel[None, None], padding=RADIUS)
    convolve = rivals.filter_conv2d if layout == "channels last" else rivals.filter_conv2d_moved
    plain: dict[str, tuple[Any, float]] = {
        "conv2d": (lambda: convolve(x, weight, share), 1),
        "rfft2": (lambda: rivals.filter_rfft(x, kernel, share), 1),
    }
    for run, _ in plain.values():
        torch.testing.assert_close(run(), ops.distance_filter(x, RADIUS), rtol=1e-5, atol=2e-6)
    race = results.race(
        f"distance_filter, {shape}, {layout}",
        {
            "native": (lambda: ops.distance_filter(x, RADIUS), 1),
            **plain,
            "our torch form": (lambda: with_torch(x), 1),
            "copy": (lambda: x.clone(), 1),
        },
        floor="copy: the map read and written once, by torch",
    )
    better = min(plain, key=lambda name: statistics.median(race.seconds[name]))
    for rival in (*plain, "our torch form", "copy"):
        results.row(race, "native", rival, bar if rival == better and shape == PAPER else None)
