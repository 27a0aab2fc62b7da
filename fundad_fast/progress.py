# SPDX-License-Identifier: Apache-2.0
"""How long work tells where it stands: a bar, a line now and then, lines of JSON, or nothing."""

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
        shown = {"info": _in_words(info, " ")} if info else {}  # else what was last told stays
        self.bars.update(self.number, advance=n, **shown)


class Lines(Progress):
    """A line of text now and then on standard error; for log files.

    Args:
        out: in place of standard error.
        interval: seconds between lines; a stage that is over before says nothing.
    """

    def __init__(self, out: TextIO | None = None, interval: float = 30.0) -> None:
        self.out, self.interval = out, interval

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "it") -> Iterator[Task]:
        step = _LineTask(self.out or sys.stderr, name, total, unit, self.interval)
        yield step
        if step.told:
            step.write()


class _LineTask:
    def __init__(
        self, out: TextIO, name: str, total: int | None, unit: str, interval: float
    ) -> None:
        self.out, self.name, self.total = out, name, total
        self.unit, self.interval = unit, interval
        self.info: dict[str, Any] = {}
        self.told, self.done = False, 0
        self.began = self.last = time.monotonic()
        self.before: int | None = None  # how much was done at the last line

    def advance(self, n: int = 1, **info: Any) -> None:
        self.done += n
        self.info.update(info)
        if self.before is None:  # what a call before this one has done says nothing of the pace
            self.before = self.done
        if time.monotonic() - self.last >= self.interval:
            self.write()

    def write(self) -> None:
        now = time.monotonic()
        count = f"{self.done}" if self.total is None else f"{self.done} of {self.total}"
        said = [f"{self.name}: {count} {self.unit} in {_duration(now - self.began)}"]
        pace = (self.done - (self.before or 0)) / max(now - self.last, 1e-9)
        if self.total is not None and pace > 0 and self.done < self.total:
            said.append(f"about {_duration((self.total - self.done) / pace)} left")
        if self.info:
            said.append(_in_words(self.info, ", "))
        print(", ".join(said), file=self.out, flush=True)
        self.told, self.last, self.before = True, now, self.done


def _in_words(info: dict[str, Any], between: str) -> str:
    return between.join(f"{key} {value}" for key, value in info.items())


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
        kind: ``auto`` (bars when standard error is a terminal, else a line every half minute),
            ``json`` or ``none``.

    Raises:
        ValueError: for any other name.
    """
    if kind == "none":
        return Progress()
    if kind == "auto":
        return RichBars() if sys.stderr.isatty() else Lines()
    if kind == "json":
        return JsonLines()
    raise ValueError(f"progress is {kind!r}; use auto, json or none")
