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
RESAD = "rows_c"  # the rows that the bars are for


@pytest.mark.parametrize("share, bar", [(0.01, 10), (0.1, 20)], ids=["one_percent", "ten_percent"])
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
    results.row(race, "lazy", "unpruned", bar if name == RESAD else None)


def test_anomalib(rows: tuple[str, Tensor], results: Results) -> None:
    """Seconds per pick, ours with preparation and the final radius, anomalib's over its first."""
    name, x = rows
    counts = [ANOMALIB_PICKS, len(x) // 100, len(x) // 10]
    race = results.race(
        f"kcenter, {name} {list(x.shape)}, per pick",
        {
            "anomalib": (lambda: rivals.kcenter_anomalib(x, ANOMALIB_PICKS), ANOMALIB_PICKS),
            **{f"lazy, {k} picks": (lambda k=k: ops.kcenter(x, k), k) for k in counts},
        },
        note=f"anomalib: its first {ANOMALIB_PICKS} picks; each costs the same",
    )
    for k, bar in zip(counts, (None, 100, 100), strict=True):
        results.row(race, f"lazy, {k} picks", "anomalib", bar if name == RESAD else None)


@pytest.mark.parametrize("share", [0.01, 0.1], ids=["one_percent", "ten_percent"])
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
