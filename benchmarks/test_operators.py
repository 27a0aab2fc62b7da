# SPDX-License-Identifier: Apache-2.0
"""Every operator, each of its backends, at every named shape; the rival is torch's form."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Results
from operators import CASES, Case, Run

from fundad_fast.ops import OPS


@pytest.mark.parametrize("case", CASES, ids=[f"{case.op}, {case.name}" for case in CASES])
def test_backends(case: Case, request: pytest.FixtureRequest, results: Results) -> None:
    device, dry = request.config.getoption("--device"), request.config.getoption("--dry")
    if device not in case.devices:
        pytest.skip(f"this size is not for {device}")
    sizes = case.small if dry else case.sizes
    name = f"{case.op}, {case.name}, {device}{', rehearsal' if dry else ''}"
    run = case.make(device, sizes)
    candidates: dict[str, tuple[Callable[[], Any], float]] = {}
    for backend in OPS[case.op].backends:
        once = with_backend(case.op, backend, run)
        try:
            once()
        except NotImplementedError as refusal:  # says why, as the last line of its message
            reason = [line for line in str(refusal).split("\n") if f"  {backend}: " in line]
            results.skip(name, backend, reason[0].split(": ", 1)[1])
            continue
        candidates[backend] = once, 1
    measured = results.race(name, candidates, device=device, work=case.work(sizes), sizes=sizes)
    for backend in candidates:
        results.row(measured, backend, None if backend == "torch" else "torch")


def with_backend(op: str, backend: str, run: Run) -> Callable[[], Any]:
    numbers = itertools.count()

    def once() -> Any:
        with OPS[op].using(backend):
            return run(next(numbers))

    return once
