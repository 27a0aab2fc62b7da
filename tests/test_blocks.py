# SPDX-License-Identifier: Apache-2.0
"""Sharing blocks out among workers that die: every item once, whatever happens."""

import random
from dataclasses import dataclass, field

import pytest

from fundad_fast.archive.blocks import Block, ShareOut, in_blocks
from fundad_fast.data import Item


@dataclass(eq=False)
class Made:
    """A worker with its blocks."""

    blocks: list[Block] = field(default_factory=list)


class Dying:
    """Workers that die of some items, and by chance; another comes for each."""

    def __init__(self, rng, workers, poison=(), chance=0.0, room=4):
        self.rng, self.poison, self.chance, self.room = rng, set(poison), chance, room
        self.workers = [Made() for _ in range(workers)]
        self.deaths = 0

    def free(self):
        open_ = [w for w in self.workers if len(w.blocks) < self.room]
        return min(open_, key=lambda w: len(w.blocks), default=None)

    def idle(self):
        return next((w for w in self.workers if not w.blocks), None)

    def give(self, worker, block):
        assert len(worker.blocks) < self.room
        if block.deaths:
            assert not worker.blocks
        assert not any(b.deaths for b in worker.blocks)
        worker.blocks.append(block)

    def busy(self):
        return any(w.blocks for w in self.workers)

    def wait(self):
        at_work = [i for i, w in enumerate(self.workers) if w.blocks]
        if not at_work:
            return []
        i = self.rng.choice(at_work)
        worker = self.workers[i]
        names = {item.id for item in worker.blocks[0].items}
        if names & self.poison or self.rng.random() < self.chance:
            self.deaths += 1
            self.workers[i] = Made()
            return [(block, None) for block in worker.blocks]
        block = worker.blocks.pop(0)
        return [(block, [item.id for item in block.items])]


def share(crew, n, size):
    items = [Item(str(i), f"{i}.png") for i in range(n)]
    rows, hopeless = [], []
    ShareOut(crew, rows.extend, lambda item: hopeless.append(item.id)).run(
        in_blocks(iter(items), size)
    )
    return sorted(rows, key=int), sorted(hopeless, key=int)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 64])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_comes_once(n, workers):
    assert share(Dying(random.Random(0), workers), n, 8) == ([str(i) for i in range(n)], [])


@pytest.mark.parametrize("seed", range(20))
def test_of_random_deaths_nothing_is_lost_or_twice(seed):
    crew = Dying(random.Random(seed), 3, chance=0.2)
    rows, hopeless = share(crew, 200, 8)
    assert crew.deaths
    assert sorted(rows + hopeless, key=int) == [str(i) for i in range(200)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("poison", [("0",), ("13",), ("12", "13"), ("63",), ("3", "40")])
def test_an_item_that_kills_is_found_and_takes_nothing_with_it(workers, poison):
    crew = Dying(random.Random(1), workers, poison)
    rows, hopeless = share(crew, 64, 16)
    assert hopeless == list(poison)
    assert rows == [str(i) for i in range(64) if str(i) not in poison]
    assert crew.deaths <= 12 * len(poison)


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_death_or_two_give_nothing_up(deaths):
    class Sometimes(Dying):
        def wait(self):
            self.poison = set() if self.deaths == deaths else self.poison
            return super().wait()

    crew = Sometimes(random.Random(0), 1, ("5",))
    assert share(crew, 6, 1) == ([str(i) for i in range(6)], [])


def test_inputs_are_read_only_as_they_are_handed_out():
    taken = []

    def items():
        for i in range(1000):
            taken.append(i)
            yield Item(str(i), "x")

    class Looking(Dying):
        def wait(self):
            given = sum(len(b.items) for w in self.workers for b in w.blocks)
            assert len(taken) <= self.done + given + 8
            found = super().wait()
            self.done += sum(len(b.items) for b, _ in found)
            return found

        done = 0

    rows = []
    crew = Looking(random.Random(0), 2)
    ShareOut(crew, rows.extend, pytest.fail).run(in_blocks(items(), 8))
    assert len(rows) == 1000
