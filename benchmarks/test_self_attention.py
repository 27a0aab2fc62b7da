# SPDX-License-Identifier: Apache-2.0
"""self_attention against torch's forms, on the rows of real images; see conftest.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import rivals
import torch
from conftest import Results
from torch import Tensor

from fundad_fast import ops

SIZES = [(9604, 1536), (4096, 384)]  # positions and features; the first is the paper's
RIVALS: dict[str, Callable[[Tensor], Tensor]] = {
    "SDPA": rivals.attention_sdpa,
    "row blocks, BLAS": rivals.attention_blocks,
    "row blocks, oneDNN": rivals.attention_blocks_onednn,
}


def features(rows: Tensor, n: int, d: int) -> Tensor:
    """``[n, d]`` from rows of 384 features: turned copies beside each other, every other cut at
    zero as by a ReLU, and made as long as rows of that many features are."""
    some = rows[:n].contiguous()
    if d == some.shape[1]:
        return some
    turns = torch.linalg.qr(torch.randn(-(-d // some.shape[1]), some.shape[1], some.shape[1])).Q
    turned = [(some @ turn).relu() if i % 2 else some @ turn for i, turn in enumerate(turns)]
    return torch.cat(turned, 1)[:, :d].mul(0.6).contiguous()


@pytest.mark.parametrize("n, d", SIZES)
def test_self_attention(rows: tuple[str, Tensor], n: int, d: int, results: Results) -> None:
    name, x = rows
    f = features(x, n, d)
    some = torch.arange(0, n, 37)
    wide = f.double()
    want = torch.softmax(wide[some] @ wide.T, 1) @ wide
    forms = {"native": lambda f: ops.self_attention(f[None])[0], **RIVALS}
    errors = {
        key: float((form(f)[some].double() - want).norm() / want.norm())
        for key, form in forms.items()
    }
    assert errors["native"] <= 2 * min(errors.values())
    race = results.race(
        f"self_attention, {name} [{n}, {d}]",
        {key: (lambda form=form: form(f), 1) for key, form in forms.items()},
        errors=errors,
    )
    blocks = [key for key in RIVALS if key.startswith("row blocks")]
    best = min(blocks, key=lambda key: statistics.median(race.seconds[key]))
    for rival in RIVALS:
        results.row(race, "native", rival, {"SDPA": 1.7, best: 1.05}.get(rival))
