# SPDX-License-Identifier: Apache-2.0
"""Batches for ``fit`` with their progress shown."""

from __future__ import annotations

from collections.abc import Iterator

from fundad_fast.batch import Batch
from fundad_fast.data.items import DataError
from fundad_fast.data.loader import BatchStream, Failure
from fundad_fast.progress import Progress


class ShownStream:
    """Batches with their progress shown and their failures kept; walkable again."""

    def __init__(
        self, shows: Progress, stream: BatchStream, name: str, total: int, done: int
    ) -> None:
        self.shows, self.stream, self.name, self.total, self.done = shows, stream, name, total, done
        self.failures: dict[str, Failure] = {}

    def __iter__(self) -> Iterator[Batch]:
        with self.shows.task(self.name, self.total, "images") as task:
            task.advance(self.done)
            for batch in self.stream:
                yield batch
                task.advance(len(batch))
        self.failures.update(self.stream.failures)
        if len(self.failures) == self.total:
            first = next(iter(self.failures.values()))
            raise DataError(
                f"none of the {self.total} healthy images can be used; the first, "
                f"{first.item.id}, is {first.status}: {first.error}"
            )
