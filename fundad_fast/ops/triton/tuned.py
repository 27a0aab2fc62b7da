# SPDX-License-Identifier: Apache-2.0
"""Block sizes of the Triton kernels: a table, so that no call ever searches for them.

``tuned.json`` is ``{operator: {shape class: {"config": {...}, "measured": ...}}}``. ``measured``
is ``null`` for values that were reasoned and not yet tried on a GPU;
``pytest benchmarks/test_triton_tuning.py --tune`` tries others on this machine's GPU and writes
down what won, with its time and the GPU's name.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .availability import interpreted

FILE = Path(__file__).with_name("tuned.json")
INTERPRETER = "interpreter"  # the shape class of small blocks, so that small tests meet many


@functools.cache
def table() -> dict[str, dict[str, dict[str, Any]]]:
    """The whole table."""
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def config(op: str, shape_class: str) -> dict[str, Any]:
    """The configuration of an operator's kernels for a class of shapes."""
    chosen: dict[str, Any] = table()[op][INTERPRETER if interpreted() else shape_class]["config"]
    return chosen


@contextlib.contextmanager
def trying(op: str, shape_class: str, config: dict[str, Any]) -> Iterator[None]:
    """Put other values in the table for a while; for tests and the tuning benchmark."""
    before = table()[op][shape_class]
    table()[op][shape_class] = {"config": config, "measured": None}
    try:
        yield
    finally:
        table()[op][shape_class] = before


def keep(op: str, shape_class: str, config: dict[str, Any], measured: dict[str, Any]) -> None:
    """Write a measured winner into the table's file."""
    table()[op][shape_class] = {"config": config, "measured": measured}
    FILE.write_text(_text(table()), encoding="utf-8")


def _text(table: dict[str, dict[str, dict[str, Any]]]) -> str:
    """JSON with a line for a configuration."""
    ops = []
    for op, classes in table.items():
        entries = []
        for name, entry in classes.items():
            lines = [f"      {json.dumps(key)}: {json.dumps(entry[key])}" for key in entry]
            entries.append(f"    {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n    }")
        ops.append(f"  {json.dumps(op)}: {{\n" + ",\n".join(entries) + "\n  }")
    return "{\n" + ",\n".join(ops) + "\n}\n"
