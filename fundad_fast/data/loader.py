# SPDX-License-Identifier: Apache-2.0
"""Reads and prepares images ahead of the model, in order, with every failure on record."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from fundad_fast.batch import Batch
from fundad_fast.data.items import Item, ReadError, Status, identified
from fundad_fast.data.preparation import Prepared, prepare
from fundad_fast.data.readers import Picture, PixelBuffer, read_picture

if TYPE_CHECKING:
    from fundad_fast.data.spec import InputSpec


class Source(Protocol):
    """Where a loader's pixels come from: files, or arrays in memory."""

    items: tuple[Item, ...]
    any_depth: bool

    def read(self, index: int, spec: InputSpec, max_megapixels: float) -> np.ndarray | Picture:
        """The pixels ``[h, w, c]`` of item ``index``, valid until this thread's next call; with
        what its file says of itself, where it does."""
        ...


class FileSource:
    """Items whose pixels lie in files."""

    any_depth = False

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = tuple(items)
        self._local = threading.local()

    def read(self, index: int, spec: InputSpec, max_megapixels: float) -> Picture:
        """See :class:`Source`; raises ReadError."""
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = PixelBuffer()
        return read_picture(
            self.items[index],
            max_megapixels=max_megapixels,
            first_page=spec.pages == "first",
            buffer=buffer,
        )


@dataclass(frozen=True)
class Failure:
    """An item that could not be used.

    Attributes:
        item: which.
        status: one of ``STATUSES``.
        error: the reason, one line.
    """

    item: Item
    status: Status
    error: str


@dataclass(frozen=True)
class Chunk:
    """A run of consecutive items, prepared.

    Attributes:
        items: those that could be used, in order; as many as ``batch`` has images.
        prepared: their images, masks and geometry. ``image`` and ``mask`` are views of the batch.
        batch: the same stacked; of length 0 when every item failed.
        failures: the others, in order.
        ms_read: per item of ``items``, milliseconds of reading and preparing.
    """

    items: tuple[Item, ...]
    prepared: tuple[Prepared, ...]
    batch: Batch
    failures: tuple[Failure, ...]
    ms_read: tuple[float, ...]

    def __len__(self) -> int:
        """How many items went in, failures included."""
        return len(self.items) + len(self.failures)


class Loader:
    """Reads and prepares items with a pool of threads; iterating it again starts again.

    Any error of reading or preparing one image is that image's failure; interrupts and exits pass.
    The order is that of the items for any number of threads. At most two batches (or a batch and
    two images per thread) are held in memory. Leaving a loop early, or an interrupt, ends the
    threads after the image each is at.

    Args:
        source: items whose files are read, or an :class:`ArraySource`.
        spec: the model's input specification.
        batch_size: items per chunk, failures included.
        threads: how many images are read at a time; by default the processors of this process.
        max_megapixels: images with more are refused as ``too_large`` before they are decoded.
    """

    def __init__(
        self,
        source: Sequence[Item] | Source,
        spec: InputSpec,
        *,
        batch_size: int = 8,
        threads: int | None = None,
        max_megapixels: float = 200.0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1; got {threads}")
        if not max_megapixels > 0:
            raise ValueError(f"max_megapixels must be above 0; got {max_megapixels}")
        self.source: Source = FileSource(source) if isinstance(source, Sequence) else source
        self.spec = spec
        self.batch_size = batch_size
        self.threads = threads or _processors()
        self.max_megapixels = max_megapixels

    @property
    def items(self) -> tuple[Item, ...]:
        """All items, in order."""
        return self.source.items

    def __len__(self) -> int:
        """How many chunks there will be."""
        return -(-len(self.items) // self.batch_size)

    def __iter__(self) -> Iterator[Chunk]:
        total = len(self.items)
        ahead = self.batch_size + max(self.batch_size, 2 * self.threads)
        with _pool(min(self.threads, max(total, 1))) as pool:
            pending: deque[Future[_Result]] = deque()
            blocks: deque[_Block] = deque()
            submitted = 0
            for start in range(0, total, self.batch_size):
                results: list[_Result] = []
                for _ in range(start, min(start + self.batch_size, total)):
                    while submitted < total and len(pending) < ahead - len(results):
                        place = submitted % self.batch_size
                        if place == 0:
                            blocks.append(
                                _Block(min(self.batch_size, total - submitted), self.spec)
                            )
                        pending.append(pool.submit(self._load, submitted, blocks[-1], place))
                        submitted += 1
                    results.append(pending.popleft().result())
                yield _chunk(results, blocks.popleft())

    def _load(self, index: int, block: _Block, place: int) -> _Result:
        started = time.perf_counter()
        result = _Result(self.items[index])
        try:
            pixels = self.source.read(index, self.spec, self.max_megapixels)
            if isinstance(pixels, Picture):
                pixels, identifiers = pixels
                result.item = identified(result.item, identifiers)
            prepared = prepare(
                pixels, self.spec, any_depth=self.source.any_depth, out=block.image[place]
            )
            if block.mask is not None and prepared.mask is not None:
                block.mask[place] = prepared.mask
            result.prepared = prepared
        except ReadError as error:
            result.item = identified(result.item, error.identifiers)
            result.failure = Failure(result.item, error.status, error.reason)
        except Exception as error:  # the border of one image: none may end the run of the others
            result.failure = Failure(result.item, "failed", _said(error))
        result.ms = (time.perf_counter() - started) * 1000
        return result


class BatchStream:
    """The batches of a loader for ``fit``: walkable again, without empty ones.

    Attributes:
        failures: by item id, those of all walks so far.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.failures: dict[str, Failure] = {}

    def __iter__(self) -> Iterator[Batch]:
        for chunk in self.loader:
            self.failures.update({failure.item.id: failure for failure in chunk.failures})
            if chunk.items:
                yield chunk.batch


def _said(error: Exception) -> str:
    message = " ".join(str(error).split())
    if not message and isinstance(error, MemoryError):
        message = "not enough memory for this image"
    return f"{type(error).__name__}: {message}".removesuffix(": ")


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class _Result:
    item: Item
    prepared: Prepared | None = None
    failure: Failure | None = None
    ms: float = field(default=0.0)


class _Block:
    """The memory of one batch, which the workers write their images into.

    It comes from numpy, which asks for huge pages: fresh memory of torch's own costs 3 ms of page
    faults for an image of 784 x 784 pixels, more than decoding it.
    """

    def __init__(self, n: int, spec: InputSpec) -> None:
        size, channels = spec.image_size, 3 if spec.channels == "rgb" else 1
        self.image = torch.from_numpy(np.empty((n, channels, size, size), np.float32))
        self.mask = None
        if spec.fov == "auto":
            self.mask = torch.from_numpy(np.empty((n, size, size), np.bool_))


def _chunk(results: list[_Result], block: _Block) -> Chunk:
    places = [i for i, result in enumerate(results) if result.prepared is not None]
    image, mask = block.image, block.mask
    if len(places) < len(results):  # close the gaps of those that failed
        image, mask = image[places], None if mask is None else mask[places]
    items = tuple(results[i].item for i in places)
    prepared = tuple(
        replace(p, image=image[i], mask=None if mask is None else mask[i])
        for i, p in enumerate(r.prepared for r in results if r.prepared is not None)
    )
    return Chunk(
        items=items,
        prepared=prepared,
        batch=Batch(image, tuple(item.id for item in items), mask),
        failures=tuple(r.failure for r in results if r.failure is not None),
        ms_read=tuple(results[i].ms for i in places),
    )


def _use_one_torch_thread() -> None:
    torch.get_num_threads()  # makes the thread take the common setting now and not later
    torch.set_num_threads(1)


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads run torch operators on themselves alone."""
    pool = ThreadPoolExecutor(threads, "fundad-read", initializer=_use_one_torch_thread)
    barrier = threading.Barrier(threads + 1)
    try:
        # The setting is per thread, but it is also what later threads start from: once every
        # worker has made its own, the caller's is put back.
        callers = torch.get_num_threads()
        for _ in range(threads):
            pool.submit(barrier.wait)
        barrier.wait()
        torch.set_num_threads(callers)
        yield pool
    finally:
        barrier.abort()  # an interrupt may have come while the workers wait at it
        pool.shutdown(wait=True, cancel_futures=True)
