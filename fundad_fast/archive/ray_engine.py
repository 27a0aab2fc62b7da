# SPDX-License-Identifier: Apache-2.0
"""Runs the stages of a run on the nodes of a Ray cluster.

One worker for each GPU, or for each node where there are none, keeps the model and runs the local
engine's stages on blocks of items. The process that was started settles what is to be scored, hands
out blocks, and alone writes rows: so a row is there once, whatever dies, and the run goes on as a
local one does. Workers write maps, under names that follow from the ids.

These are Ray's actors and not Ray Data: its operators would cut the overlapping stages into calls
that run empty in between, or send prepared images (7 MB each at 784 pixels) between machines; its
sources hold all inputs, where an inventory is read as it goes; and its sinks do not know of resume.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from ..bundle import Bundle, environment
from ..data import Failure, Item
from ..run_folder import RunError, read_run
from .blocks import Block, ShareOut, in_blocks
from .ray_worker import Done, Job, Worker
from .rows import RowMaker
from .run import Keep, ScoreOptions
from .stages import Stages

BLOCK = 64
"""Images in a block, at least; of a worker that dies, the rows of its blocks are made again."""

_AT_A_WORKER = 4
"""Blocks; together more than its stages hold, so that they do not run empty."""
_BATCHES = 4
_LOOK_AROUND = 2.0  # seconds between looks for nodes
_PATIENCE = 300.0  # seconds without any worker: Ray may be starting nodes, torch be slow to load
_DEATHS = 5  # of workers at one place, one after the other with nothing done
_MOMENT = 0.5
_ANSWERS_IN = 5.0

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",  # no messages of the autoscaler on the terminal
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RayEngine:
    """An engine for :func:`fundad_fast.archive.run.score_run`.

    Uses the Ray that this process is connected to, else the cluster that ``RAY_ADDRESS`` names or
    that this machine belongs to, else starts one on this machine alone for the time of the run.

    Args:
        load: makes the model on a device (``cpu`` or ``cuda``); called on each worker's machine.
        device: ``cpu`` or ``cuda``; by default GPUs where the cluster has any.

    Raises:
        RunError: Ray is not installed.
    """

    def __init__(self, load: Callable[[str], Bundle], *, device: str | None = None) -> None:
        self.load, self.device = load, device
        try:
            self._ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError as error:
            raise RunError("Ray is not installed: pip install 'fundad-fast[ray]'") from error

    def __call__(
        self, maker: RowMaker, items: Iterator[Item], options: ScoreOptions, keep: Keep
    ) -> Stages:
        """See :class:`fundad_fast.archive.run.Engine`.

        Raises:
            RunError: no worker is left, or a node does not see what it has to.
            OSError: the run folder cannot be written.
        """
        stages = Stages(read=1, score=1, regions=2, write=1)
        first = next(items, None)
        if first is None:
            return stages
        items = map(_absolute, chain([first], items))
        sample = os.path.abspath(first.path)
        out = maker.run.path.absolute()
        job = Job(
            load=self.load,
            out=str(out),
            created=read_run(out)["created"],
            sample=sample if os.path.exists(sample) else None,
            model_id=maker.bundle.id,
            environment=environment(),
            options=options,
        )

        def done(result: Done) -> None:
            for name, (busy, starved, blocked) in result.spent.items():
                if name != "write":  # which is done here
                    times = stages.times[name]
                    times.busy, times.starved = times.busy + busy, times.starved + starved
                    times.blocked += blocked
            hired = max(crew.most, 1)
            for name, each in (("read", 1), ("score", 1), ("regions", 2)):
                stages.times[name].workers = each * hired
            with stages.times["write"].working():
                keep(result.rows, stages.limiting())

        def hopeless(item: Item) -> None:
            error = "every process that it was given to died; see its format and size, and memory"
            failure = Failure(item, "failed", error, passing=True)
            keep([maker.failed(failure, maker.naming.files(item))], stages.limiting())

        size = max(BLOCK, _BATCHES * options.batch_size)
        with _connected(self._ray), _Crew(self._ray, job, self.device, maker.run.log) as crew:
            ShareOut(crew, done, hopeless).run(in_blocks(items, size))
        if crew.lost:
            maker.run.sweep()
        return stages


def _absolute(item: Item) -> Item:
    """The item for a process that works in another folder."""
    return replace(
        item,
        path=os.path.abspath(item.path),
        mask_path=None if item.mask_path is None else os.path.abspath(item.mask_path),
        mask_paths_by_type=tuple((k, os.path.abspath(p)) for k, p in item.mask_paths_by_type),
    )


def check_address(address: str) -> None:
    """Ask whether anything answers at ``host:port``: Ray itself would try for minutes.

    Raises:
        RunError: nothing does.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdecimal():  # another form, such as auto, which Ray looks at
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_IN).close()
    except (OSError, OverflowError) as error:
        raise RunError(
            f"nothing answers at RAY_ADDRESS={address} ({error}); start Ray there, or unset it"
        ) from error


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    check_address(os.environ.get("RAY_ADDRESS", ""))
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        try:
            ray.init("auto", **quiet)
        except ConnectionError:
            if os.environ.get("RAY_ADDRESS"):
                raise
            ray.init("local", include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(f"Ray cannot be used: {_last_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class _Place:
    """Where one worker may run: a node, or one of its GPUs."""

    node: str
    number: int
    name: str
    cpus: int
    gpus: int


@dataclass(eq=False)
class _Hand:
    """A worker that has been asked for."""

    actor: Any
    place: _Place
    ready: bool = False
    blocks: int = 0


class _Crew:
    """Workers on all nodes, those that come later too; a :class:`fundad_fast.archive.blocks.Crew`.

    Attributes:
        most: workers at a time, so far.
        lost: workers that died.
    """

    def __init__(self, ray: Any, job: Job, device: str | None, log: Callable[..., None]) -> None:
        self._ray, self._job, self._device, self._log = ray, job, device, log
        self._hands: list[_Hand] = []
        self._asked: dict[Any, tuple[_Hand, Block | None]] = {}  # None: to begin
        self._deaths: dict[_Place, int] = {}
        self._useless: dict[_Place, str] = {}
        self._looked = -_LOOK_AROUND
        self._since = time.monotonic()
        self._begun = False
        self.most = self.lost = 0

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *error: object) -> None:
        for hand in self._hands:
            self._ray.kill(hand.actor)

    def free(self) -> _Hand | None:
        room = [h for h in self._hands if h.ready and h.blocks < _AT_A_WORKER]
        return min(room, key=lambda hand: hand.blocks, default=None)

    def idle(self) -> _Hand | None:
        hand = self.free()
        return hand if hand is not None and not hand.blocks else None

    def give(self, worker: _Hand, block: Block) -> None:
        worker.blocks += 1
        self._asked[worker.actor.score.remote(block.items)] = worker, block

    def busy(self) -> bool:
        return any(hand.blocks for hand in self._hands)

    def wait(self) -> list[tuple[Block, Done | None]]:
        """See :class:`fundad_fast.archive.blocks.Crew`; raises RunError and OSError."""
        self._hire()
        if not self._asked:
            time.sleep(_MOMENT)
            return []
        refs = list(self._asked)
        ready, rest = self._ray.wait(refs, num_returns=1, timeout=_MOMENT)
        if ready and rest:
            more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0)
            ready += more
        found: list[tuple[Block, Done | None]] = []
        for ref in ready:
            if ref in self._asked:  # else it was lost with another of its worker
                found += self._take(ref)
        return found

    def _take(self, ref: Any) -> list[tuple[Block, Done | None]]:
        errors = self._ray.exceptions
        hand, block = self._asked[ref]
        try:
            said = self._ray.get(ref)
        except errors.RayTaskError:  # the worker lives, its program is wrong
            raise
        except errors.RayError as error:
            return self._died(hand, error)
        del self._asked[ref]
        if block is None:
            self._began(hand, said)
            return []
        if isinstance(said, Exception):
            raise said
        hand.blocks -= 1
        self._deaths.pop(hand.place, None)
        return [(block, said)]

    def _began(self, hand: _Hand, refused: str | None) -> None:
        if refused is None:
            hand.ready = self._begun = True
            self._log("worker", node=hand.place.name, node_id=hand.place.node)
            self.most = max(self.most, sum(h.ready for h in self._hands))
            return
        reason = f"node {hand.place.name} {refused}"
        if not self._begun:
            raise RunError(reason)
        self._log(
            "node left out", node_id=hand.place.node, reason=reason
        )  # it came later, and stops no long run
        self._useless[hand.place] = reason
        self._hands.remove(hand)
        self._ray.kill(hand.actor)

    def _died(self, hand: _Hand, error: Exception) -> list[tuple[Block, Done | None]]:
        self._hands.remove(hand)
        self._ray.kill(hand.actor)  # where it is only out of reach
        gone = [(ref, block) for ref, (h, block) in self._asked.items() if h is hand]
        for ref, _ in gone:
            del self._asked[ref]
        self.lost += 1
        deaths = self._deaths[hand.place] = self._deaths.get(hand.place, 0) + 1
        reason = f"node {hand.place.name}: {_last_line(error)}"
        self._log("worker lost", node_id=hand.place.node, reason=reason)
        if deaths >= _DEATHS:
            self._useless[hand.place] = reason
        self._looked = -_LOOK_AROUND
        return [(block, None) for _, block in gone if block is not None]

    def _hire(self) -> None:
        """Ask for a worker at every place that has none."""
        now = time.monotonic()
        if any(hand.ready for hand in self._hands):
            self._since = now
        elif now - self._since > _PATIENCE:
            raise self._nobody()
        if now - self._looked < _LOOK_AROUND:
            return
        self._looked = now
        places = self._places()
        taken = {hand.place for hand in self._hands}
        for place in places:
            if place not in taken and place not in self._useless:
                self._start(place)
        if not self._hands and any(place in self._useless for place in places):
            raise self._nobody()

    def _nobody(self) -> RunError:
        reasons = "; ".join(dict.fromkeys(self._useless.values()))
        return RunError(
            f"no worker is left ({reasons or '`ray status` says what nodes there are'}); "
            "the same command goes on from here"
        )

    def _places(self) -> list[_Place]:
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        have = [(node, node["Resources"]) for node in nodes]
        if self._device is None:
            # Decided once: scores of both kinds in one run would differ by their rounding.
            self._device = "cuda" if any(r.get("GPU", 0) >= 1 for _, r in have) else "cpu"
        found = []
        for node, resources in have:
            cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
            name = node["NodeManagerHostname"]
            if self._device == "cpu":
                if cpus:
                    found.append(_Place(node["NodeID"], 0, name, cpus, 0))
            else:
                share = cpus // max(gpus, 1)
                found += [_Place(node["NodeID"], i, name, share, 1) for i in range(gpus)]
        return found

    def _start(self, place: _Place) -> None:
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        threads = self._job.options.threads or max(place.cpus, 1)
        job = replace(self._job, options=replace(self._job.options, threads=threads))
        actor = (
            self._ray.remote(Worker)
            .options(
                num_cpus=place.cpus,
                num_gpus=place.gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=_AT_A_WORKER + 1,
                scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(
                    place.node, soft=False
                ),
            )
            .remote(job, self._device, threads)
        )
        hand = _Hand(actor, place)
        self._hands.append(hand)
        self._asked[actor.begin.remote()] = hand, None


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
