# SPDX-License-Identifier: Apache-2.0
"""Shares blocks of items out among workers that may die: each item's row comes once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeVar

from ..data import Item

W = TypeVar("W")
R = TypeVar("R")

_DEATHS = 2
"""A block that was lost so often is halved; a single item is given up after one more."""


@dataclass
class Block:
    """Some items, and how many workers were lost with them."""

    items: list[Item]
    deaths: int = 0


class Crew(Protocol[W, R]):
    """The workers, wherever they are."""

    def free(self) -> W | None:
        """A worker with room for a block, the one with the fewest."""
        ...

    def idle(self) -> W | None:
        """A worker without any."""
        ...

    def give(self, worker: W, block: Block) -> None:
        """Have a block scored."""
        ...

    def busy(self) -> bool:
        """Whether any block is with a worker."""
        ...

    def wait(self) -> list[tuple[Block, R | None]]:
        """Blocks that are done, and with ``None`` those whose worker died; each given block once.

        Waits a moment for some, and may return none.
        """
        ...


class ShareOut(Generic[W, R]):
    """Has all blocks scored.

    What is lost with a worker is done again last, each block alone on its worker, so that a file
    that kills whoever reads it is found by halving, and takes nothing else with it.

    Args:
        crew: the workers.
        done: takes each result, once.
        hopeless: takes items that killed every worker they were given to, one at a time.
    """

    def __init__(
        self, crew: Crew[W, R], done: Callable[[R], None], hopeless: Callable[[Item], None]
    ) -> None:
        self.crew, self.done, self.hopeless = crew, done, hopeless
        self._again: deque[Block] = deque()

    def run(self, blocks: Iterator[Block]) -> None:
        """See the class."""
        more = True
        while True:
            while more and (worker := self.crew.free()) is not None:
                block = next(blocks, None)
                if block is None:
                    more = False
                else:
                    self.crew.give(worker, block)
            while self._again and (worker := self.crew.idle()) is not None:
                self.crew.give(worker, self._again.popleft())
            if not (more or self._again or self.crew.busy()):
                return
            for block, result in self.crew.wait():
                if result is not None:
                    self.done(result)
                else:
                    self._lost(block)

    def _lost(self, block: Block) -> None:
        deaths, n = block.deaths + 1, len(block.items)
        if n == 1 and deaths > _DEATHS:
            self.hopeless(block.items[0])
        elif n > 1 and deaths >= _DEATHS:
            halves = block.items[: n // 2], block.items[n // 2 :]
            self._again.extend(Block(half, _DEATHS - 1) for half in halves)
        else:
            self._again.append(Block(block.items, deaths))


def in_blocks(items: Iterator[Item], size: int) -> Iterator[Block]:
    """Consecutive items, ``size`` in each block."""
    while taken := list(islice(items, size)):
        yield Block(taken)
