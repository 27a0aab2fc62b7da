# SPDX-License-Identifier: Apache-2.0
"""Which rows of a run stand, in 17 bytes for each, whatever its ids and paths look like.

A row is held as 64 bits of its id and 64 bits of what must not have changed since. Only inputs that
differ there are looked at in full, some thousands at a time, so that hashes save memory and decide
nothing alone: a row stands by them only where 96 bits agree.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np

from ..data import Item
from ..data.shards import ids_of_files
from ..run_folder import RunError, RunFolder, read_part, score_parts
from .rows import FILE_COLUMNS, LABEL_COLUMNS, MAY_COME_FROM_THE_FILE, Files, Naming
from .sharding import id_hash

_COLUMNS = ["id", "path", "status", *FILE_COLUMNS, *LABEL_COLUMNS]
_BASE_COLUMNS = tuple(name for name in LABEL_COLUMNS if name not in MAY_COME_FROM_THE_FILE)
_BASE, _PATIENT, _SIDE = 0xFFFFFFFF, 0xFFFFFF << 32, 0xFF << 56
_AT_A_TIME = 4096
_LOOKED_AT = 50_000
_STATUS, _SEEN, _ANEW, _IN_PARTS = 0x0F, 0x10, 0x20, 0x40
_STAT_THREADS = 8

_NAMED_ONE_BY_ONE = ("list", "file", "shard", "glob", "manifest")
"""Layouts whose folder does not say what belongs to them."""


class Standing:
    """The rows of a run, against what is to be scored.

    Args:
        run: the run folder, open.
        naming: how rows name items.

    Attributes:
        counts: number of rows by status, kept up to date by :meth:`settle` alone.
        inputs: after ``settle``, how many inputs there are.
        missing: and how many have no row.
        todo: and how many of those are wanted.
    """

    def __init__(self, run: RunFolder, naming: Naming) -> None:
        self.run, self.naming = run, naming
        self.counts: Counter[str] = Counter()
        self.inputs = self.missing = self.todo = 0
        self._statuses: list[str] = []
        self._strangers: set[str] = set()  # ids of no row whose hash is that of one
        ids, facts, states = array("Q"), array("Q"), array("B")
        for part in score_parts(run.path):
            for row in read_part(part, _COLUMNS).to_pylist():
                if row["status"] not in self._statuses:
                    self._statuses.append(row["status"])
                ids.append(id_hash(row["id"]))
                facts.append(_facts(row["id"], row["path"], _was(row), row))
                states.append(self._statuses.index(row["status"]))
        order = np.argsort(np.frombuffer(ids, np.uint64)) if ids else np.zeros(0, np.intp)
        self._ids = np.frombuffer(ids, np.uint64)[order] if ids else np.zeros(0, np.uint64)
        self._facts = np.frombuffer(facts, np.uint64)[order] if ids else np.zeros(0, np.uint64)
        self._states = np.frombuffer(states, np.uint8)[order] if ids else np.zeros(0, np.uint8)

    def settle(
        self, items: Iterable[Item], layout: str, *, limit: int | None, retry_failed: bool
    ) -> None:
        """Walk the items once, drop rows that no longer hold, and count.

        Args:
            items: all inputs.
            layout: of the data set: one that names its files one by one may not lose any.
            limit: only so many inputs, the first, are wanted.
            retry_failed: rows without a score do not hold.

        Raises:
            RunError: a row is of another file, or of none that a list names.
        """
        doubtful: dict[str, tuple[Item, Files]] = {}
        source = iter(items)
        with ThreadPoolExecutor(_STAT_THREADS) as pool:
            while block := list(islice(source, _AT_A_TIME)):
                names = [self.naming.id(item) for item in block]
                place, there = self._places(names)
                known = np.flatnonzero(there)
                self._states[place[known]] |= _SEEN
                self._mark(self._files_of(block), _IN_PARTS)
                self.missing += int(np.count_nonzero(~there))
                self.inputs += len(block)
                slices = np.array_split(known, _STAT_THREADS)
                found = pool.map(lambda part: [self.naming.files(block[i]) for i in part], slices)
                for i, files in zip(known, (one for part in found for one in part)):
                    if not self._holds(names[i], block[i], files, int(place[i])):
                        doubtful[names[i]] = block[i], files
                if len(doubtful) >= _LOOKED_AT:
                    self._look_at(doubtful)
        self._look_at(doubtful)
        self._drop_files_in_parts()
        if layout in _NAMED_ONE_BY_ONE and not self._named().all():
            raise RunError(
                f"{self.run.path} holds {self._unseen()}, which this {layout} does not name (it "
                "may grow, not change); give another -o, or --overwrite"
            )
        self._drop(retry_failed)
        self.missing += self._again()
        self.todo = self.missing
        if limit is not None:  # which of them are among the first is not held: walk again
            self.todo = sum(1 for _ in self.without_a_row(islice(iter(items), limit)))

    def without_a_row(self, items: Iterable[Item]) -> Iterator[Item]:
        """Those that have none, or whose row was dropped, in their order."""
        source = iter(items)
        while block := list(islice(source, _AT_A_TIME)):
            if not len(self._ids):
                yield from block
                continue
            names = [self.naming.id(item) for item in block]
            place, there = self._places(names)
            for item, name, at, known in zip(block, names, place, there):
                if not known or self._states[at] & _ANEW or name in self._strangers:
                    yield item

    def _places(self, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Where the rows of some ids are, and which there are."""
        if not len(self._ids):
            return np.zeros(len(names), np.intp), np.zeros(len(names), np.bool_)
        wanted = np.array([id_hash(name) for name in names], np.uint64)
        place = np.searchsorted(self._ids, wanted).clip(max=len(self._ids) - 1)
        return place, self._ids[place] == wanted

    def _holds(self, name: str, item: Item, files: Files, place: int) -> bool:
        labels = self.naming.labels(item)
        now = _facts(name, self.naming.path(item.path), files, labels)
        differs = now ^ int(self._facts[place])
        # What only the file says of the patient is in the row, and cannot be in the item yet.
        said = _BASE
        said |= _PATIENT if labels["patient_id"] is not None else 0
        said |= _SIDE if labels["laterality"] is not None else 0
        return differs & said == 0

    def _look_at(self, doubtful: dict[str, tuple[Item, Files]]) -> None:
        """Decide on inputs that seem to have changed, by their rows in full; empties the dict."""
        if not doubtful:
            return
        changed = set()
        for part in score_parts(self.run.path):
            table = read_part(part, _COLUMNS)
            names = table.column("id").to_pylist()
            at = np.array([i for i, name in enumerate(names) if name in doubtful], np.int64)
            for row in table.take(at).to_pylist():
                item, files = doubtful.pop(row["id"])
                if not self.naming.same_file(row["path"], item.path):
                    raise RunError(
                        f"{self.run.path} holds {row['id']} of {row['path']}, which is now "
                        f"{self.naming.path(item.path)}; give another -o, or --overwrite"
                    )
                labels = {
                    key: value
                    for key, value in self.naming.labels(item).items()
                    if value is not None or key not in MAY_COME_FROM_THE_FILE
                }
                there = files[0] is not None
                if there and (
                    _was(row) != files or any(row[key] != value for key, value in labels.items())
                ):
                    changed.add(row["id"])
        self._mark(changed)
        self._strangers.update(doubtful)
        doubtful.clear()

    def _mark(self, names: set[str], flag: int = _ANEW) -> None:
        place, there = self._places(list(names))
        self._states[place[there]] |= flag

    def _files_of(self, block: list[Item]) -> set[str]:
        """Names that rows of the files would have, of which frames or members are items."""
        found = {(name, item.path) for item in block for name in ids_of_files(item)}
        return {self.naming.id(Item(name, path)) for name, path in found}

    def _drop_files_in_parts(self) -> None:
        """A file that could not be listed when its row was made, and whose parts are named now.

        The system refused it then (an error of the disk, a mount that was gone); its parts have
        rows of their own, and its own says nothing any more.
        """
        bad = [_IN_PARTS | i for i, status in enumerate(self._statuses) if status != "ok"]
        self._states[np.isin(self._states & (_STATUS | _SEEN | _IN_PARTS), bad)] |= _ANEW

    def _named(self) -> np.ndarray:
        """Which rows are of an item, or go."""
        return (self._states & (_SEEN | _ANEW)) > 0

    def _drop(self, retry_failed: bool) -> None:
        changed = self._again()
        if retry_failed:
            bad = [i for i, status in enumerate(self._statuses) if status != "ok"]
            seen = (self._states & _SEEN) > 0
            self._states[seen & np.isin(self._states & _STATUS, bad)] |= _ANEW
        anew = (self._states & _ANEW) > 0
        if anew.any():
            self.run.log("anew", changed=changed, failed=self._again() - changed)
            self.run.drop(self)
        kept = np.bincount(self._states[~anew] & _STATUS, minlength=len(self._statuses))
        self.counts = Counter({s: int(n) for s, n in zip(self._statuses, kept) if n})

    def _again(self) -> int:
        anew = self._states & (_SEEN | _ANEW) == _SEEN | _ANEW
        return int(np.count_nonzero(anew)) + len(self._strangers)

    def __contains__(self, name: object) -> bool:
        """Whether the row of this id is to be made anew."""
        place, there = self._places([str(name)])
        return bool(there[0] and self._states[place[0]] & _ANEW)

    def _unseen(self) -> str:
        named = self._named()
        for part in score_parts(self.run.path):
            for name in read_part(part, ["id"]).column("id").to_pylist():
                place, _ = self._places([name])
                if not named[place[0]]:
                    return str(name)
        raise AssertionError("every row was seen")


def _was(row: dict[str, Any]) -> Files:
    return tuple(row[name] for name in FILE_COLUMNS)


def _facts(name: str, path: str, files: Files, labels: dict[str, Any]) -> int:
    """What must not have changed, in 64 bits: 32 of all but the patient, 24 and 8 of that."""
    base = (name, path, files, *(labels[key] for key in _BASE_COLUMNS))
    patient, side = labels["patient_id"], labels["laterality"]
    return _bits(base, 4) | _often(patient, 3) << 32 | _often(side, 1) << 56


@lru_cache(maxsize=4096)
def _often(thing: str | None, size: int) -> int:
    """Most archives know no patient, and images of one lie beside each other."""
    return _bits(thing, size)


def _bits(thing: object, size: int) -> int:
    data = repr(thing).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=size).digest(), "little")
