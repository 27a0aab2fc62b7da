# SPDX-License-Identifier: Apache-2.0
"""How long work tells where it stands: a bar, lines of JSON, or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO


class Task(Protocol):
    """One stage of the work, in the unit that the stage was opened with."""

    def advance(self, n: int = 1, **info: Any) -> None: ...


class Progress:
    """Shows nothing; the base of the others."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "it") -> Iterator[Task]:
        """Open a stage of ``total`` units; ``info`` given to ``advance`` is shown beside it."""
        yield _Silent()


class _Silent:
    def advance(self, n: int = 1, **info: Any) -> None:
        pass


class Bars(Progress):
    """tqdm bars on standard error; for notebooks and scripts."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "it") -> Iterator[Task]:
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=name, unit=unit, leave=False) as bar:
            yield _Bar(bar)


class _Bar:
    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def advance(self, n: int = 1, **info: Any) -> None:
        if info:
            self.bar.set_postfix(info, refresh=False)
        self.bar.update(n)


class RichBars(Progress):
    """rich bars on standard error; for the command line."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "it") -> Iterator[Task]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Rich

        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[info]}"),
        )
        with Rich(*columns, console=Console(stderr=True), transient=False) as bars:
            number = bars.add_task(name, total=total, info="")
            yield _RichBar(bars, number)


class _RichBar:
    def __init__(self, bars: Any, number: Any) -> None:
        self.bars, self.number = bars, number

    def advance(self, n: int = 1, **info: Any) -> None:
        text = " ".join(f"{key} {value}" for key, value in info.items())
        self.bars.update(self.number, advance=n, info=text)


class JsonLines(Progress):
    """One line of JSON per step on standard error, at most ten a second; for other programs."""

    def __init__(self, out: TextIO | None = None, interval: float = 0.1) -> None:
        self.out, self.interval = out, interval

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "it") -> Iterator[Task]:
        step = _JsonTask(self.out or sys.stderr, name, total, unit, self.interval)
        step.write()
        yield step
        step.write()


class _JsonTask:
    def __init__(
        self, out: TextIO, name: str, total: int | None, unit: str, interval: float
    ) -> None:
        self.out, self.interval = out, interval
        self.line: dict[str, Any] = {"stage": name, "done": 0, "total": total, "unit": unit}
        self.began = self.last = time.monotonic()

    def advance(self, n: int = 1, **info: Any) -> None:
        self.line["done"] += n
        self.line.update(info)
        if time.monotonic() - self.last >= self.interval:
            self.write()

    def write(self) -> None:
        self.last = time.monotonic()
        self.line["seconds"] = round(self.last - self.began, 3)
        print(json.dumps(self.line), file=self.out, flush=True)


def progress(kind: str = "auto") -> Progress:
    """Make the display that the command line's ``--progress`` names.

    Args:
        kind: ``auto`` (bars when standard error is a terminal, else nothing), ``json`` or ``none``.

    Raises:
        ValueError: for any other name.
    """
    if kind == "none" or (kind == "auto" and not sys.stderr.isatty()):
        return Progress()
    if kind == "auto":
        return RichBars()
    if kind == "json":
        return JsonLines()
    raise ValueError(f"progress is {kind!r}; use auto, json or none")
