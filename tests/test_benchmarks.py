# SPDX-License-Identifier: Apache-2.0
"""The table that benchmarks make of their JSON, and the roofline that times are compared with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

RUN: dict[str, Any] = {
    "environment": {"torch": "9.9", "CPU": "a processor"},
    "rounds": 3,
    "roofline": {
        "cpu, 2 threads": {
            "device": "cpu",
            "threads": 2,
            "operations": {"float32": 6e11},
            "traffic": 4.5e10,
        }
    },
    "races": [
        {
            "name": "nearest, some rows",
            # The middle of the ratios is not the ratio of the middles.
            "seconds": {"cpu": [1e-3, 2e-3, 4e-3], "faiss": [4e-3, 20e-3, 16e-3]},
            "notes": {},
            "shares": {"cpu": 0.25},
            "rows": [["cpu", "faiss", 3.0], ["faiss", None, None]],
        }
    ],
    "skipped": [{"race": "nearest, some rows", "candidate": "cuml", "reason": "not installed"}],
}


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_the_table_says_what_was_measured(tmp_path):
    file = tmp_path / "races.json"
    file.write_text(json.dumps(RUN))
    command = [sys.executable, str(BENCHMARKS / "table.py"), str(file)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    assert lines[2:4] == [
        "| nearest, some rows | cpu | 2 ms | 25% | faiss | 16 ms | 4 (4 to 10) | ≥ 3 |",
        "| nearest, some rows | faiss | 16 ms |  |  |  |  |  |",
    ]
    assert all(line.count("|") == 9 for line in lines[:4])
    assert "* nearest, some rows: cuml skipped, not installed" in lines
    assert "* roofline, cpu, 2 threads: float32 600 GFLOP/s, memory 45 GB/s" in lines
    assert "* at most 3 rounds; torch 9.9, CPU a processor" in lines
    empty = subprocess.run(command[:2], capture_output=True, text=True)
    assert empty.returncode != 0
    assert "give the JSON files" in empty.stderr


def test_single_figures_have_a_table(path):
    from table import table

    figure = {"name": "best", "value": 151.23456, "unit": "1/s", "bar": "≥ 150", "note": "of 8"}
    run = {"title": "ReSAD", "settings": {"size": 784}, "environment": {}, "figures": [figure]}
    lines = table([RUN, run]).split("\n")
    assert lines[lines.index("| ReSAD | | bar | |") + 2] == "| best | 151.2 1/s | ≥ 150 | of 8 |"
    assert "* size 784" in lines


def test_the_share_is_of_the_nearer_roof(path):
    from roofline import Roof, Work

    roof = Roof("cpu", 1, {"float32": 1e9, "bfloat16": 4e9}, 1e8)
    assert roof.share(Work(2e9, 1e6), 4.0) == pytest.approx(0.5)  # bound by arithmetic
    assert roof.share(Work(2e6, 1e8), 4.0) == pytest.approx(0.25)  # bound by memory
    assert roof.share(Work(2e9, 1e6, "bfloat16"), 1.0) == pytest.approx(0.5)


def test_every_operator_has_named_shapes(path):
    from operators import CASES

    from fundad_fast import ops

    assert {case.op for case in CASES} == {name for name in ops.OPS if name in ops.__all__}
    for case in CASES:
        assert len(case.sizes) == len(case.small)
        assert case.work(case.sizes).operations > case.work(case.small).operations
