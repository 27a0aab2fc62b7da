# SPDX-License-Identifier: Apache-2.0
"""Fill the table of the Triton kernels' configurations from what this machine's GPU does.

    pytest benchmarks/test_triton_tuning.py --tune           # writes ops/triton/tuned.json
    pytest benchmarks/test_triton_tuning.py --tune --dry     # a rehearsal, writes nothing

Each shape class is run at a real shape, with one value after another changed; what has the smallest
median is kept, with its time. No call of an operator ever does this by itself.
"""

from __future__ import annotations

import importlib.metadata
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import torch
from conftest import _seconds
from operators import CASES, WIDE, Run, correlated

from fundad_fast import ops
from fundad_fast.ops.triton import tuned
from fundad_fast.ops.triton.availability import no_triton


@dataclass(frozen=True)
class Trial:
    """One row of the table, the run that uses it, and the values to be tried."""

    op: str
    shape_class: str
    make: Callable[[str, bool], Run]
    values: dict[str, tuple[Any, ...]]


def case(op: str, name: str) -> Callable[[str, bool], Run]:
    (found,) = (case for case in CASES if (case.op, case.name) == (op, name))
    return lambda device, dry: found.make(device, found.small if dry else found.sizes)


def planes(device: str, dry: bool) -> Run:
    channels, side = (8, 20) if dry else (1536, 98)
    x = torch.randn(1, channels, side, side, device=device)
    return lambda i: ops.distance_filter(x, 12)


def boxes(device: str, dry: bool) -> Run:
    if not dry:
        return case("poisson_blend", "20 boxes, 2-D and 3-D")(device, dry)
    x, mask = torch.randn(2, 1, 9, 8, device=device), torch.ones(9, 8, device=device) > 0
    return lambda i: ops.poisson_blend(x[0], x[1], mask)


def halves(device: str, dry: bool) -> Run:
    f = correlated(*((200, 32) if dry else (9604, 1536)), device)[None].half()
    return lambda i: ops.self_attention(f)


WEIGHTS = {
    "queries": (64, 128),
    "keys": (64, 128, 256),
    "features": (32, 64),
    "warps": (4, 8),
    "stages": (2, 3, 4),
}
MIX = {
    "mix_queries": (64, 128),
    "mix_keys": (32, 64),
    "mix_features": (128, 256),
    "mix_warps": (4, 8),
    "mix_stages": (2, 3, 4),
}
SEARCH = {
    "queries": (64, 128),
    "rows": (128, 256),
    "features": (32, 64, 128),
    "warps": (4, 8),
    "stages": (3, 4),
}
TRIALS = [
    Trial(
        "distance_filter",
        "planes",
        planes,
        {"columns": (16, 32, 64), "channels": (1, 2, 4, 8), "rows": (0, 49), "warps": (2, 4, 8)},
    ),
    Trial(
        "distance_filter",
        "channels last",
        case("distance_filter", WIDE),
        {"columns": (1, 2), "channels": (32, 64, 128), "rows": (0, 49), "warps": (1, 2, 4)},
    ),
    Trial("self_attention", "weights float32", case("self_attention", WIDE), WEIGHTS),
    Trial("self_attention", "mix float32", case("self_attention", WIDE), MIX),
    Trial("self_attention", "weights 16 bit", halves, WEIGHTS),
    Trial("self_attention", "mix 16 bit", halves, MIX),
    Trial("self_attention", "mix 16 bit before 9.0", halves, MIX),
    Trial("nearest", "d<=512", case("nearest", "bank of 15,000"), SEARCH),
    Trial("nearest", "d>512", case("nearest", "bank of 128,693, d = 1536"), SEARCH),
    Trial(
        "poisson_blend",
        "any",
        boxes,
        {"rows": (16, 32, 64), "columns": (32, 64, 128), "summed": (16, 32), "warps": (2, 4)},
    ),
]


@pytest.mark.parametrize("trial", TRIALS, ids=[f"{t.op}, {t.shape_class}" for t in TRIALS])
def test_tuning(trial: Trial, request: pytest.FixtureRequest, benchmark: Any) -> None:
    if not request.config.getoption("--tune"):
        pytest.skip("only with --tune: it rewrites the table")
    dry = request.config.getoption("--dry")
    device = "cpu" if dry and not torch.cuda.is_available() else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU to tune for")
    if reason := no_triton(torch.ones(1, device=device)):
        pytest.skip(reason)
    if trial.shape_class.startswith("mix 16 bit") and device == "cuda":
        from fundad_fast.ops.triton.self_attention import mix_class

        if trial.shape_class != mix_class(torch.ones(1, device=device).half()):
            pytest.skip("not for a GPU of this capability")
    rounds = 2 if dry else request.config.getoption("--rounds")
    with ops.OPS[trial.op].using("triton"):
        run = trial.make(device, dry)
        keys = list(trial.values)[: 1 if dry else None]
        config, ms = descend(trial, keys, run, device, rounds)
    benchmark.extra_info["config"] = config
    if not dry:
        measured = {
            "gpu": torch.cuda.get_device_name(),
            "ms": round(ms, 4),
            "date": datetime.now(UTC).date().isoformat(),
            "triton": importlib.metadata.version("triton"),
        }
        tuned.keep(trial.op, trial.shape_class, config, measured)
    benchmark.pedantic(lambda: run(0), rounds=1)


def descend(
    trial: Trial, keys: list[str], run: Run, device: str, rounds: int
) -> tuple[dict[str, Any], float]:
    """Change one value at a time and keep what is faster: a dozen compilations, not hundreds."""
    best = dict(tuned.table()[trial.op][trial.shape_class]["config"])
    ms = milliseconds(trial, best, run, device, rounds)
    for key in keys:
        for value in trial.values[key]:
            other = best | {key: value}
            if other == best:
                continue
            took = milliseconds(trial, other, run, device, rounds)
            if took < ms:
                best, ms = other, took
    return best, ms


def milliseconds(trial: Trial, config: dict[str, Any], run: Run, device: str, rounds: int) -> float:
    """The median, or infinity for blocks that do not fit in the shared memory."""
    from triton.runtime.errors import OutOfResources

    with tuned.trying(trial.op, trial.shape_class, config):
        try:
            run(0)
        except OutOfResources:
            return math.inf
        return 1e3 * statistics.median(_seconds(lambda: run(1), device) for _ in range(rounds))
