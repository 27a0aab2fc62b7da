# SPDX-License-Identifier: Apache-2.0
"""Races of operators against rivals, round by round in one process.

    pytest benchmarks/test_kcenter.py --rows rows_c.npy      # or FUNDAD_DATA=DIR to make the rows

Each race runs its candidates in turn, several rounds; what counts is the ratio within a round,
because whole minutes of a machine may run slower than others. The results are printed and written
to ``--results`` (default ``.benchmarks``) as JSON and Markdown.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from cases import KINDS, real_rows

from fundad_fast import __version__, ops


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("races")
    group.addoption("--rows", action="append", help=".npy file of rows [n, d]; may be repeated")
    group.addoption("--rounds", type=int, default=5)
    group.addoption("--results", default=".benchmarks", help="folder for JSON and Markdown")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rows" in metafunc.fixturenames:
        files = metafunc.config.getoption("--rows")
        metafunc.parametrize("rows", files or list(KINDS), indirect=True)


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> tuple[str, Tensor]:
    """A name and ``[n, d]`` float32 rows."""
    if request.param not in KINDS:
        array = np.ascontiguousarray(np.load(request.param), dtype=np.float32)
        return Path(request.param).stem, torch.from_numpy(array)
    packs = os.environ.get("FUNDAD_DATA")
    if not packs:
        pytest.skip("give --rows FILE, or FUNDAD_DATA=DIR to make the rows")
    kept = Path(request.config.cache.mkdir("fundad-rows"))
    return f"rows_{request.param}", real_rows(request.param, Path(packs), kept)


@dataclass
class Race:
    """Seconds of each candidate, one entry per round."""

    name: str
    seconds: dict[str, list[float]]
    notes: dict[str, Any] = field(default_factory=dict)

    def ratios(self, rival: str, ours: str) -> list[float]:
        return [a / b for a, b in zip(self.seconds[rival], self.seconds[ours], strict=True)]


class Results:
    """Everything that was measured in this run."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.races: list[Race] = []
        self.lines: list[str] = []

    def race(
        self, name: str, candidates: Mapping[str, tuple[Callable[[], Any], float]], **notes: Any
    ) -> Race:
        """Run candidates in turn.

        Args:
            name: of the race.
            candidates: by name, what to run, and what part of the whole work that is: the time is
                divided by it. A rival whose every step costs the same need not finish.
            notes: kept in the JSON.
        """
        race = Race(name, {key: [] for key in candidates}, notes)
        for run, _ in candidates.values():
            run()  # warm
        for _ in range(self.rounds):
            for key, (run, part) in candidates.items():
                began = time.perf_counter()
                run()
                race.seconds[key].append((time.perf_counter() - began) / part)
        self.races.append(race)
        return race

    def row(self, race: Race, ours: str, rival: str, bar: float | None = None) -> None:
        """A line of the table: median seconds, and the ratio with its range."""
        ratio = race.ratios(rival, ours)
        self.lines.append(
            f"| {race.name} | {ours} {statistics.median(race.seconds[ours]):.3g} s "
            f"| {rival} {statistics.median(race.seconds[rival]):.3g} s "
            f"| {statistics.median(ratio):.1f} ({min(ratio):.1f} to {max(ratio):.1f}) "
            f"| {'' if bar is None else f'≥ {bar:g}'} |"
        )


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Results:
    results = Results(request.config.getoption("--rounds"))
    request.config.stash[RESULTS] = results
    return results


RESULTS = pytest.StashKey[Results]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash.get(RESULTS, None)
    if results is None or not results.lines:
        return
    head = "| race | ours | rival | ratio, median (range) | bar |\n|---|---|---|---|---|"
    machine = environment()
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    text = "\n".join([head, *results.lines, "", f"{results.rounds} rounds; {facts}", ""])
    folder = Path(config.getoption("--results"))
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    (folder / f"races-{stamp}.md").write_text(text)
    content = {"environment": machine, "races": [asdict(race) for race in results.races]}
    (folder / f"races-{stamp}.json").write_text(json.dumps(content, indent=1))
    terminalreporter.write_line(f"\n{text}\nwritten to {folder}/races-{stamp}.md and .json")


def environment() -> dict[str, str]:
    """What the numbers depend on."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return {
        "fundad_fast": f"{__version__} ({commit})",
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "CPU": cpu,
        "instruction set": ops.build().get("instruction set in force", "torch only"),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
