# SPDX-License-Identifier: Apache-2.0
"""kcenter against the unpruned loop and anomalib's, on real rows; see conftest.py."""

from __future__ import annotations

import pytest
import rivals
import torch
from conftest import Results
from torch import Tensor

from fundad_fast import ops

UNPRUNED_PICKS = 60  # of the unpruned loop, whose every pick costs the same
ANOMALIB_PICKS = 100


@pytest.mark.parametrize("share, bar", [(0.01, 10), (0.1, 20)], ids=["1%", "10%"])
def test_unpruned(rows: tuple[str, Tensor], share: float, bar: float, results: Results) -> None:
    name, x = rows
    k = int(len(x) * share)
    race = results.race(
        f"kcenter, {name} {list(x.shape)}, {share:.0%} = {k} picks",
        {
            "lazy": (lambda: ops.kcenter(x, k), 1),
            "unpruned": (lambda: rivals.kcenter_unpruned(x, UNPRUNED_PICKS), UNPRUNED_PICKS / k),
        },
        note=f"unpruned: {UNPRUNED_PICKS} picks, times {k / UNPRUNED_PICKS:.1f}",
    )
    results.row(race, "lazy", "unpruned", bar)


def test_anomalib(rows: tuple[str, Tensor], results: Results) -> None:
    name, x = rows
    k = len(x) // 100
    few = results.race(
        f"kcenter, {name} {list(x.shape)}, the first {ANOMALIB_PICKS} picks and preparation",
        {
            "lazy": (lambda: ops.kcenter(x, ANOMALIB_PICKS), 1),
            "anomalib": (lambda: rivals.kcenter_anomalib(x, ANOMALIB_PICKS), 1),
        },
    )
    results.row(few, "lazy", "anomalib")
    for share in (0.01, 0.1):
        k = int(len(x) * share)
        many = results.race(
            f"kcenter, {name} {list(x.shape)}, {share:.0%} = {k} picks",
            {
                "lazy": (lambda k=k: ops.kcenter(x, k), 1),
                "anomalib": (lambda: rivals.kcenter_anomalib(x, 20), 20 / k),
            },
            note=f"anomalib: 20 picks, times {k / 20:.1f}",
        )
        results.row(many, "lazy", "anomalib", 100)


@pytest.mark.parametrize("share", [0.01, 0.1], ids=["1%", "10%"])
def test_same_picks(rows: tuple[str, Tensor], share: float) -> None:
    """Against the float64 loop: at the first difference there must be a tie within rounding."""
    _, x = rows
    k = int(len(x) * share)
    mine, want = ops.kcenter(x, k)[0], rivals.kcenter_reference(x, k)
    different = torch.nonzero(mine != want)
    if len(different) == 0:
        return
    step = int(different[0])
    before = x[want[:step]].double()
    reach2 = [
        float((before - x[row].double()).square().sum(1).min()) for row in (mine[step], want[step])
    ]
    assert reach2[0] == pytest.approx(reach2[1], rel=1e-13), f"pick {step} is not the farthest"
