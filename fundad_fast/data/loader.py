# SPDX-License-Identifier: Apache-2.0
"""Reads and prepares images ahead of the model, in order, with every failure on record."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from fundad_fast.batch import Batch
from fundad_fast.data.gpu_jpeg import JpegDecoder
from fundad_fast.data.items import Item, ReadError, Status, identified
from fundad_fast.data.preparation import Prepared, prepare
from fundad_fast.data.readers import Picture, PixelBuffer, read_picture
from fundad_fast.data.volume_preparation import prepare_volume
from fundad_fast.data.volumes import Voxels, read_volume

if TYPE_CHECKING:
    from fundad_fast.data.spec import InputSpec


class Source(Protocol):
    """Where a loader's pixels come from: files, or arrays in memory."""

    items: tuple[Item, ...]
    any_depth: bool

    def read(
        self, index: int, spec: InputSpec, max_megapixels: float
    ) -> np.ndarray | Picture | Voxels:
        """The pixels ``[h, w, c]`` of item ``index``, valid until this thread's next call; with
        what its file says of itself, where it does. Voxels where the specification has a grid."""
        ...


class FileSource:
    """Items whose pixels lie in files; ``jpeg`` decodes those that are JPEG, where it can."""

    any_depth = False

    def __init__(self, items: Sequence[Item], jpeg: JpegDecoder | None = None) -> None:
        self.items, self.jpeg = tuple(items), jpeg
        self._local = threading.local()

    def read(self, index: int, spec: InputSpec, max_megapixels: float) -> Picture | Voxels:
        """See :class:`Source`; raises ReadError."""
        if spec.volume is not None:
            return read_volume(self.items[index], max_megapixels=max_megapixels)
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = PixelBuffer()
        return read_picture(
            self.items[index],
            max_megapixels=max_megapixels,
            first_page=spec.pages == "first",
            buffer=buffer,
            window=spec.window,
            jpeg=self.jpeg,
        )


class FileStream(FileSource):
    """Items that come one after another, each held from when it is asked for until it is read.

    A loader can walk it once; its length is not known.
    """

    def __init__(self, items: Iterable[Item], jpeg: JpegDecoder | None = None) -> None:
        super().__init__((), jpeg)
        self.items = _Passing(items)  # type: ignore[assignment]


class _Passing:
    """Numbered things of which each is taken out once."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._source = items
        self._held: dict[int, Item] = {}

    def __iter__(self) -> Iterator[Item]:
        for index, item in enumerate(self._source):
            self._held[index] = item
            yield item

    def __getitem__(self, index: int) -> Item:
        return self._held.pop(index)


@dataclass(frozen=True)
class Failure:
    """An item that could not be used.

    Attributes:
        item: which.
        status: one of ``STATUSES``.
        error: the reason, one line.
        passing: the system refused (a mount that is gone, permissions, memory), not the content,
            or that changed meanwhile: it may be readable another time.
    """

    item: Item
    status: Status
    error: str
    passing: bool = False


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
        pinned: batches lie in page-locked memory, from which a GPU copies while the host works on;
            needs a CUDA device.
    """

    def __init__(
        self,
        source: Sequence[Item] | Source,
        spec: InputSpec,
        *,
        batch_size: int = 8,
        threads: int | None = None,
        max_megapixels: float = 200.0,
        pinned: bool = False,
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
        self.pinned = pinned

    @property
    def items(self) -> tuple[Item, ...]:
        """All items, in order."""
        return self.source.items

    def __len__(self) -> int:
        """How many chunks there will be."""
        return -(-len(self.items) // self.batch_size)

    def __iter__(self) -> Iterator[Chunk]:
        items = self.source.items
        total = len(items) if isinstance(items, Sequence) else None
        size = self.batch_size if total is None else min(self.batch_size, max(total, 1))
        ahead = self.batch_size + max(self.batch_size, 2 * self.threads)
        threads = self.threads if total is None else min(self.threads, max(total, 1))
        with single_threaded_pool(threads, "fundad-read") as pool:
            pending: deque[Future[_Result]] = deque()
            blocks: deque[_Block] = deque()
            results: list[_Result] = []
            source = enumerate(items)
            while True:
                while len(pending) < ahead - len(results) and (entry := next(source, None)):
                    index, item = entry
                    place = index % self.batch_size
                    if place == 0:
                        blocks.append(_Block(size, self.spec, self.pinned))
                    pending.append(pool.submit(self._load, index, item, blocks[-1], place))
                if not pending:
                    break
                results.append(pending.popleft().result())
                if len(results) == self.batch_size:
                    yield _chunk(results, blocks.popleft())
                    results = []
            if results:
                yield _chunk(results, blocks.popleft())

    def _load(self, index: int, item: Item, block: _Block, place: int) -> _Result:
        started = time.perf_counter()
        result = _Result(item)
        try:
            pixels = self.source.read(index, self.spec, self.max_megapixels)
            if isinstance(pixels, Picture):
                pixels, identifiers = pixels
                result.item = identified(result.item, identifiers)
            any_depth, out = self.source.any_depth, block.image[place]
            if isinstance(pixels, Voxels):
                prepared = prepare_volume(pixels, self.spec, any_depth=any_depth, out=out)
            else:
                prepared = prepare(pixels, self.spec, any_depth=any_depth, out=out)
            if block.mask is not None and prepared.mask is not None:
                block.mask[place] = prepared.mask
            result.prepared = prepared
        except ReadError as error:
            result.item = identified(result.item, error.identifiers)
            passing = error.status == "changed" or _of_the_system(error.__cause__)
            result.failure = Failure(result.item, error.status, error.reason, passing)
        except Exception as error:  # the border of one image: none may end the run of the others
            result.failure = Failure(result.item, "failed", _said(error), _of_the_system(error))
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


def _of_the_system(error: BaseException | None) -> bool:
    # Decoders raise bare OSErrors for damaged content; the system's own have a number.
    while error is not None:
        if isinstance(error, MemoryError) or (
            isinstance(error, OSError) and error.errno is not None
        ):
            return True
        error = error.__cause__
    return False


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
    faults for an image of 784 x 784 pixels, more than decoding it. Page-locked memory is torch's,
    which keeps what was used before, and waits for copies out of it before it is used again.
    """

    def __init__(self, n: int, spec: InputSpec, pinned: bool) -> None:
        self.image = _memory((n, *spec.shape), torch.float32, pinned)
        self.mask = _memory((n, *spec.shape[1:]), torch.bool, pinned) if spec.masked else None


def _memory(shape: tuple[int, ...], dtype: torch.dtype, pinned: bool) -> torch.Tensor:
    if pinned:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return torch.from_numpy(np.empty(shape, np.float32 if dtype == torch.float32 else np.bool_))


def _chunk(results: list[_Result], block: _Block) -> Chunk:
    places = [i for i, result in enumerate(results) if result.prepared is not None]
    image, mask = block.image, block.mask
    if len(places) < len(image):  # close the gaps of those that failed; the last may be short
        whole = places == list(range(len(places)))  # then without a copy, which is not page-locked
        kept = slice(len(places)) if whole else places
        image, mask = image[kept], None if mask is None else mask[kept]
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
def single_threaded_pool(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads run torch operators on themselves alone."""
    pool = ThreadPoolExecutor(threads, name, initializer=_use_one_torch_thread)
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
