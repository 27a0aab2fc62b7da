# SPDX-License-Identifier: Apache-2.0
"""Stages that work at the same time, what passes between them, and where their time goes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Another stage has failed; this one gives up. Never seen outside of this room."""


@dataclass
class Stage:
    """Where a stage's time went, in seconds.

    Attributes:
        workers: threads that do its work.
        busy: of all its workers together.
        starved: waiting for what comes before it.
        blocked: waiting for room in what comes after it.
    """

    workers: int = 1
    busy: float = 0.0
    starved: float = 0.0
    blocked: float = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the time inside as busy; for a stage of one worker."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.busy += time.perf_counter() - began


class Stages:
    """The stages of a run. When one fails, all stop, and the first failure is what is told.

    Attributes:
        times: of each stage, by name, from first to last.
    """

    def __init__(self, **workers: int) -> None:
        self.times = {name: Stage(count) for name, count in workers.items()}
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._began = time.perf_counter()

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run ``work`` in a thread of its own."""

        def guarded() -> None:
            try:
                work()
            except Stopped:
                pass
            except BaseException as error:
                self.stop(error)

        thread = threading.Thread(target=guarded, name=f"fundad-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self, failure: BaseException) -> None:
        """Make every stage give up; the first failure counts."""
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the calling thread is a stage too; afterwards all have ended.

        Raises:
            BaseException: the failure of the stage that failed first.
        """
        try:
            yield
        except Stopped:
            pass
        except BaseException as error:
            self.stop(error)
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def profile(self, images: int) -> dict[str, Any]:
        """What ``run.json`` says: seconds and rate, per stage its times, and which one limits."""
        wall = max(time.perf_counter() - self._began, 1e-9)
        return {
            "seconds": round(wall, 3),
            "images": images,
            "images_per_second": round(images / wall, 3),
            "limits": self.limiting(),
            "stages": {
                name: {
                    "workers": stage.workers,
                    "busy_share": round(stage.busy / stage.workers / wall, 4),
                    "busy": round(stage.busy, 3),
                    "starved": round(stage.starved, 3),
                    "blocked": round(stage.blocked, 3),
                }
                for name, stage in self.times.items()
            },
        }

    def limiting(self) -> str:
        """The stage whose workers are the busiest."""
        return max(self.times, key=lambda name: self.times[name].busy / self.times[name].workers)

    def channel(self, room: int, before: str, after: str) -> Channel[Any]:
        """A queue from one stage to the next that holds at most ``room``."""
        return Channel(self, room, self.times[before], self.times[after])


class Channel(Generic[T]):
    """A bounded queue between two stages; waiting at it is counted."""

    def __init__(self, stages: Stages, room: int, before: Stage, after: Stage) -> None:
        self._stages, self._changed = stages, stages._changed
        self._room, self._before, self._after = room, before, after
        self._held: deque[T] = deque()
        self._closed = False

    def put(self, thing: T) -> None:
        """Hand on, when there is room.

        Raises:
            Stopped: another stage has failed.
        """
        with self._changed:
            self._before.blocked += self._wait(lambda: len(self._held) < self._room)
            self._held.append(thing)
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """What comes, in order, until the end.

        Raises:
            Stopped: another stage has failed.
        """
        while True:
            with self._changed:
                self._after.starved += self._wait(lambda: bool(self._held) or self._closed)
                if not self._held:
                    return
                thing = self._held.popleft()
                self._changed.notify_all()
            yield thing
            del thing

    def _wait(self, ready: Callable[[], bool]) -> float:
        began = time.perf_counter()
        self._changed.wait_for(lambda: ready() or self._stages._failure is not None)
        if self._stages._failure is not None:
            raise Stopped
        return time.perf_counter() - began
