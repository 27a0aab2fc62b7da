# SPDX-License-Identifier: Apache-2.0
"""What runs on a machine of a cluster: the stages of a run, fed with blocks of items.

Nothing here names Ray. A worker writes maps into the run folder, which all machines share, and
hands back rows; it writes no other file of it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..bundle import Bundle, BundleError, environment, load_bundle
from ..data import Item
from ..methods import ConfigError
from ..run_folder import RunError, RunFolder, read_run
from .rows import RowMaker
from .run import Pipeline, Rows, ScoreOptions

Spent = dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told.

    Attributes:
        load: makes the model on a device; called on the worker's machine.
        out: the run folder, absolute.
        created: what its ``run.json`` says, so that another folder of that name is noticed.
        sample: a file that the worker has to see, if the driver sees one.
        model_id: of the bundle.
        environment: versions, which have to be the same everywhere.
        options: of the run.
    """

    load: Callable[[str], Bundle]
    out: str
    created: str
    sample: str | None
    model_id: str
    environment: dict[str, str]
    options: ScoreOptions


@dataclass(frozen=True)
class Done:
    """The rows of a block, and by stage the seconds busy, starved and blocked since the last."""

    rows: Rows
    spent: Spent


@dataclass
class _Block:
    items: list[Item]
    rows: Rows = field(default_factory=list)
    done: Future[Done] = field(default_factory=Future)


def load_model(path: str, device: str, compile: str | None = None) -> Bundle:
    """Read a model folder onto a device; ``compile`` names a mode of ``torch.compile``.

    Raises:
        BundleError: as :func:`fundad_fast.bundle.load_bundle`.
        ConfigError: the method has no compiled form.
    """
    bundle = load_bundle(Path(path))
    bundle.method.to(device)
    if compile is not None:
        bundle.method.compile(mode=compile)
    return bundle


class Worker:
    """Scores blocks of items by the stages of a local run.

    Blocks that wait are one stream to the stages, which do not run empty between them.

    Args:
        job: what to do.
        device: as torch names it.
        threads: that read images, and that torch uses on the processor.
    """

    def __init__(self, job: Job, device: str, threads: int) -> None:
        self._job, self._device, self._threads = job, device, threads
        self._changed = threading.Lock()
        self._waiting: deque[_Block] = deque()
        self._block_of: dict[str, _Block] = {}
        self._running = False
        self._told: Spent = {}

    def begin(self) -> str | None:
        """Load the model; returns why this machine is of no use, if so."""
        job = self._job
        torch.set_num_threads(self._threads)
        everywhere = "it has to lie on a file system that all nodes share, under the same path"
        try:
            about = read_run(Path(job.out))
        except RunError:
            return f"does not see the run folder {job.out}; {everywhere}"
        if about.get("created") != job.created:
            return f"has another run at {job.out}; {everywhere}"
        if job.sample is not None and not os.path.exists(job.sample):
            return f"does not see the input {job.sample}; {everywhere}"
        here = environment()
        for name in sorted({*here, *job.environment}):
            if here.get(name) != job.environment.get(name):
                return (
                    f"has {name} {here.get(name)}, but {job.environment.get(name)} is where the "
                    "run was started; install the same on all nodes"
                )
        try:
            bundle = job.load(self._device)
        except (BundleError, ConfigError, OSError) as error:
            return f"cannot load the model: {error}"
        if bundle.id != job.model_id:
            return f"finds the model {bundle.id}, not {job.model_id}; copy the model again"
        folder = RunFolder(Path(job.out), {})  # not opened: the lock and the rows are the driver's
        options = job.options
        self._maker = RowMaker(bundle, folder, options.naming, options.save_maps)
        return None

    def score(self, items: list[Item]) -> Done | OSError | RunError:
        """Score a block; several may be asked for at a time, from several threads.

        Returns:
            its rows, or the error by which the run has to stop, as a local one would.
        """
        block = _Block(items)
        with self._changed:
            self._waiting.append(block)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="fundad-blocks", daemon=True).start()
        try:
            return block.done.result()
        except (OSError, RunError) as error:
            return error

    def _run(self) -> None:
        """Runs stages for as long as blocks wait."""
        while True:
            self._told = {}
            self._pipeline = Pipeline(self._maker, self._job.options, None, self._sort_out)
            failure: BaseException | None = None
            try:
                self._pipeline.run(self._items())
            except BaseException as error:
                failure = error
            with self._changed:
                if failure is not None:
                    for block in {id(b): b for b in self._block_of.values()}.values():
                        block.done.set_exception(failure)
                    self._block_of.clear()
                if not self._waiting:
                    self._running = False
                    return

    def _items(self) -> Iterator[Item]:
        """The items of all blocks that come while there are some; called in the stage ``read``."""
        while True:
            with self._changed:
                if not self._waiting:
                    return
                block = self._waiting.popleft()
                for item in block.items:
                    self._block_of[self._maker.naming.id(item)] = block
            yield from block.items

    def _sort_out(self, rows: Rows, limits: str) -> None:
        """Give each row to its block; a batch may hold some of two."""
        for row in rows:
            with self._changed:
                block = self._block_of.pop(row["id"])
            block.rows.append(row)
            if len(block.rows) == len(block.items):
                block.done.set_result(Done(block.rows, self._spent()))

    def _spent(self) -> Spent:
        times = self._pipeline.stages.times.items()
        now = {name: (stage.busy, stage.starved, stage.blocked) for name, stage in times}
        none = (0.0, 0.0, 0.0)
        before, self._told = self._told, now
        return {name: _minus(values, before.get(name, none)) for name, values in now.items()}


def _minus(a: tuple[float, float, float], b: tuple[float, float, float]) -> Any:
    return tuple(x - y for x, y in zip(a, b))
