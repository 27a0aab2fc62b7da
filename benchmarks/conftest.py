# SPDX-License-Identifier: Apache-2.0
"""Races of operators against rivals, round by round in one process.

    pytest benchmarks --benchmark-only                       # every operator, backend and shape
    pytest benchmarks/test_kcenter.py --rows rows_c.npy      # or FUNDAD_DATA=DIR to make the rows

Each race runs its candidates in turn, several rounds; what counts is the ratio within a round,
because whole minutes of a machine may run slower than others. The results are written to
``--results`` (default ``.benchmarks``) as JSON, with the Markdown table that ``table.py`` makes of
it, which is printed last.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import roofline
from cases import KINDS, real_rows
from environment import environment
from table import table


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("races")
    group.addoption("--rows", action="append", help=".npy file of rows [n, d]; may be repeated")
    group.addoption("--rounds", type=int, default=5)
    group.addoption("--seconds", type=float, default=30, help="of a race, if two rounds take less")
    group.addoption("--dry", action="store_true", help="small sizes: a rehearsal, no measurement")
    group.addoption("--tune", action="store_true", help="fill the table of Triton's block sizes")
    group.addoption("--device", default="cpu", choices=["cpu", "cuda"], help="of test_operators.py")
    group.addoption("--results", default=".benchmarks", help="folder for JSON and Markdown")


def pytest_configure() -> None:
    environment()  # before a race changes the number of threads


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
    """Seconds of each candidate, one entry per round.

    Attributes:
        shares: of the roofline, at the median time; only where the work is known.
        rows: of the table: ours, the rival, and the bar for their ratio.
    """

    name: str
    seconds: dict[str, list[float]]
    notes: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    rows: list[tuple[str, str | None, float | None]] = field(default_factory=list)


class Results:
    """Everything that was measured in this run.

    Attributes:
        benchmark: pytest-benchmark's fixture, of the test that runs now.
    """

    def __init__(self, rounds: int, seconds: float) -> None:
        self.rounds = rounds
        self.seconds = seconds
        self.races: list[Race] = []
        self.roofs: dict[str, roofline.Roof] = {}
        self.skipped: list[dict[str, str]] = []
        self.benchmark: Any = None

    def race(
        self,
        name: str,
        candidates: Mapping[str, tuple[Callable[[], Any], float]],
        *,
        device: str = "cpu",
        work: roofline.Work | None = None,
        once: bool = False,
        **notes: Any,
    ) -> Race:
        """Run candidates in turn.

        Args:
            name: of the race.
            candidates: by name, what to run, and what part of the whole work that is: the time is
                divided by it. A rival whose every step costs the same need not finish.
            device: whose clock counts.
            work: what the plain form of the whole work needs, for the share of the roofline.
            once: a single round without one to warm up, for work of minutes.
            notes: kept in the JSON.
        """
        race = Race(name, {key: [] for key in candidates}, notes)

        def one_round() -> float:
            began = time.perf_counter()
            for key, (run, part) in candidates.items():
                race.seconds[key].append(_seconds(run, device) / part)
            return time.perf_counter() - began

        def all_rounds() -> None:
            if once:
                one_round()
                return
            one_round()  # to warm up: forgotten
            for seconds in race.seconds.values():
                seconds.clear()
            took = one_round()
            for _ in range(max(1, min(self.rounds - 1, int(self.seconds / took)))):
                one_round()

        self.benchmark.extra_info["race"] = name
        self.benchmark.pedantic(all_rounds, rounds=1, iterations=1)
        if work is not None:
            roof = roofline.of(device)
            self.roofs[f"{roof.device}, {roof.threads} threads"] = roof
            for key, seconds in race.seconds.items():
                race.shares[key] = roof.share(work, float(np.median(seconds)))
        self.races.append(race)
        return race

    def row(self, race: Race, ours: str, rival: str | None, bar: float | None = None) -> None:
        """A line of the table; without a rival it has no ratio."""
        race.rows.append((ours, rival, bar))

    def skip(self, race: str, candidate: str, reason: str) -> None:
        """A candidate that cannot take part is named in the table."""
        self.skipped.append({"race": race, "candidate": candidate, "reason": reason})

    def installed(self, race: str, module: str) -> bool:
        """Whether a rival can be imported; if not, it is named as skipped."""
        if importlib.util.find_spec(module):
            return True
        self.skip(race, module, "not installed")
        return False


def _seconds(run: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    run()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1e3


@pytest.fixture
def results(request: pytest.FixtureRequest, benchmark: Any) -> Iterator[Results]:
    config = request.config
    results = config.stash.setdefault(
        RESULTS, Results(config.getoption("--rounds"), config.getoption("--seconds"))
    )
    results.benchmark = benchmark
    yield results
    results.benchmark = None
    _write(results, config)  # now: a run that is stopped keeps what it has


RESULTS = pytest.StashKey[Results]()
STAMP = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def _write(results: Results, config: pytest.Config) -> tuple[str, Path]:
    """The table, and the file it stands in; the JSON lies beside it."""
    content = {
        "environment": environment(),
        "rounds": results.rounds,
        "roofline": {name: asdict(roof) for name, roof in results.roofs.items()},
        "races": [asdict(race) for race in results.races],
        "skipped": results.skipped,
    }
    file = Path(config.getoption("--results")) / f"races-{STAMP}.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = table([content])
    file.write_text(text)
    file.with_suffix(".json").write_text(json.dumps(content, indent=1))
    return text, file


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash.get(RESULTS, None)
    if results is None or not results.races:
        return
    text, file = _write(results, config)
    terminalreporter.write_line(f"\n{text}\nwritten to {file} and .json")
