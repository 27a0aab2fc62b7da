# SPDX-License-Identifier: Apache-2.0
"""The Markdown table of what was measured, made of its JSON.

python benchmarks/table.py races-....json [more.json ...]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAD = (
    "| race | ours | time | share of roofline | rival | its time | ratio, median (range) | bar |\n"
    "|---|---|---|---|---|---|---|---|"
)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """One table per run, of races or of single figures, with what it depends on below.

    The share is of the roofline measured in the same run: the least time that the plain form of
    the work could take there, over the median time.
    """
    return "\n".join(_of_figures(run) if "figures" in run else _of_run(run) for run in runs)


def _of_figures(run: dict[str, Any]) -> str:
    lines = [f"| {run['title']} | | bar | |\n|---|---|---|---|"]
    for figure in run["figures"]:
        value = f"{figure['value']:.4g} {figure['unit']}".strip()
        lines.append(f"| {figure['name']} | {value} | {figure['bar']} | {figure['note']} |")
    facts = {**run["settings"], **run["environment"]}
    lines += ["", f"* {', '.join(f'{key} {value}' for key, value in facts.items())}", ""]
    return "\n".join(lines)


def _of_run(run: dict[str, Any]) -> str:
    lines = [HEAD]
    for race in run["races"]:
        lines += [_line(race, *row) for row in race["rows"]]
    lines.append("")
    for skip in run["skipped"]:
        lines.append(f"* {skip['race']}: {skip['candidate']} skipped, {skip['reason']}")
    for name, roof in run["roofline"].items():
        peaks = [f"{kind} {rate / 1e9:.0f} GFLOP/s" for kind, rate in roof["operations"].items()]
        lines.append(
            f"* roofline, {name}: {', '.join(peaks)}, memory {roof['traffic'] / 1e9:.0f} GB/s"
        )
    facts = ", ".join(f"{key} {value}" for key, value in run["environment"].items())
    lines += [f"* at most {run['rounds']} rounds; {facts}", ""]
    return "\n".join(lines)


def _line(race: dict[str, Any], ours: str, rival: str | None, bar: float | None) -> str:
    mine = race["seconds"][ours]
    share = f"{race['shares'][ours]:.0%}" if ours in race["shares"] else ""
    cells = [race["name"], ours, _time(mine), share]
    if rival is None:
        cells += ["", "", ""]
    else:
        theirs = race["seconds"][rival]
        ratios = [a / b for a, b in zip(theirs, mine, strict=True)]
        middle = statistics.median(ratios)
        cells += [rival, _time(theirs), f"{middle:.3g} ({min(ratios):.3g} to {max(ratios):.3g})"]
    cells.append("" if bar is None else f"≥ {bar:g}")
    return f"| {' | '.join(cells)} |"


def _time(seconds: list[float]) -> str:
    middle = statistics.median(seconds)
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if middle >= size:
            return f"{middle / size:.3g} {unit}"
    return f"{middle * 1e6:.3g} us"


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("give the JSON files of runs: python benchmarks/table.py races-....json")
    print(table([json.loads(Path(name).read_text()) for name in sys.argv[1:]]))


if __name__ == "__main__":
    main()
