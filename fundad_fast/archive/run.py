# SPDX-License-Identifier: Apache-2.0
"""Scores items into a run folder: read, score, find regions, write; one row per item, always.

What goes on where: items without a row are scored; so are, anew, items whose file, masks or labels
are no longer what their row says. The old row goes first, so the parts never hold two of one id.

The four stages work at the same time. Rows are written in the order of the items' batches whatever
the threads do, and a row is written after its map. Another engine may run the same stages elsewhere
(:mod:`fundad_fast.archive.ray_engine`); what is to be scored is settled here, and rows are written
here.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from ..bundle import Bundle, environment
from ..data import Chunk, Dataset, FileStream, InputSpec, Inventory, Item, Loader, Prepared
from ..data.gpu_jpeg import JpegDecoder, gpu_jpeg
from ..data.loader import single_threaded_pool
from ..progress import Progress, Task
from ..run_folder import RunFolder
from .model import Scored, Scorer, describe_model
from .rows import Files, Naming, RowMaker
from .sharding import Shard
from .stages import Channel, Stages
from .standing import Standing

Check = Callable[[Item, Prepared], tuple[str, str] | None]
Rows = list[dict[str, Any]]
Keep = Callable[[Rows, str], None]
"""Takes rows to be written, and the name of the stage that limits."""

_REGION_THREADS = 2
_ROOM = 2
"""Batches between two stages; each may hold some tens of megabytes."""


@dataclass(frozen=True)
class ScoreOptions:
    """How a run is made; none of these changes a score, but for rounding where it is said.

    Attributes:
        batch_size: images per batch.
        threads: that read images; by default the processors of this process.
        max_megapixels: larger images are refused.
        save_maps: whether maps are written.
        retry_failed: score again what failed, even where its files have not changed.
        limit: only so many inputs, the first ones of the shard, are to have rows.
        shard: score only this part of the inputs.
        gpu_decode: decode JPEG files on the model's GPU where that proves to be right, see
            :mod:`fundad_fast.data.gpu_jpeg`; scores differ by rounding then, and a run keeps to it.
        naming: how rows name their inputs; see :mod:`fundad_fast.archive.deidentify`.
    """

    batch_size: int = 8
    threads: int | None = None
    max_megapixels: float = 200.0
    save_maps: bool = True
    retry_failed: bool = False
    limit: int | None = None
    shard: Shard | None = None
    gpu_decode: bool = False
    naming: Naming = field(default_factory=Naming)


class Engine(Protocol):
    """Where the stages run, when it is not in this process."""

    def __call__(
        self, maker: RowMaker, items: Iterator[Item], options: ScoreOptions, keep: Keep
    ) -> Stages:
        """Hand the row of every item to ``keep``, once, from this thread; returns the times."""
        ...


def score_run(
    bundle: Bundle,
    dataset: Dataset | Inventory,
    items: Iterable[Item],
    out: Path,
    *,
    kind: str = "score",
    overwrite: bool = False,
    folders: Sequence[str] = (),
    options: ScoreOptions | None = None,
    check: Check | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Score items into a run folder; an interrupted run of the same model and settings goes on.

    A run goes on with the same folder, which may have grown or shrunk. A list of files, a pattern
    or a manifest may only have grown: where it no longer names what has a row, it is another one.

    On going on, an item is scored anew when the size or time of its file or masks or its labels
    have changed since, so also a failed one that was repaired; a row whose file has gone stays.
    So is one that the system would not let be read (a mount that was gone, no permission).

    Memory does not grow with the number of items but for 17 bytes for each row that is there when
    the run goes on.

    Args:
        bundle: the model.
        dataset: where the items come from, for ``run.json``.
        items: what to score; walked up to three times, each time the same in the same order.
        out: the run folder.
        kind: ``score`` or ``eval``.
        overwrite: a run that is there gives way, once rows of this one are on disk.
        folders: that were named among several inputs, for ``run.json``.
        options: batch size, threads, limits.
        check: may turn a prepared image into a failed row, as ``(status, error)``; called from
            several threads. Not for another engine.
        engine: where the stages run; by default in threads of this process.
        progress: told about the images.

    Returns:
        number of rows by status, over the whole run.

    Raises:
        RunError: the folder holds something else, another run, or a run on other images; or not
            even one image fits into memory.
        OSError: the run folder cannot be written. The rows before are there, and the next call
            goes on.
    """
    options, progress = options or ScoreOptions(), progress or Progress()
    jpeg, decoder = _jpeg_decoder(bundle.method.device, options.gpu_decode)
    about = {
        "kind": kind,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "input": os.path.realpath(dataset.root),
        "layout": dataset.layout,
        "folders": [os.path.realpath(folder) for folder in folders],
        "notes": list(dataset.notes),
        "model": describe_model(bundle),
        # What must stay the same while a run goes on. The limit of megapixels is not of them: a
        # higher one is how inputs that were too large are tried again.
        "settings": {"save_maps": options.save_maps}
        | ({"shard": str(options.shard)} if options.shard else {})
        | ({"jpeg": decoder} if jpeg else {}),
        "max_megapixels": options.max_megapixels,
        "environment": environment(),
        "intended_use": "research; no clinical claim",
    }
    mine = _Part(items, options.shard)
    naming = options.naming
    began = time.monotonic()
    with RunFolder(out, naming.about(about), replace=overwrite) as run:
        standing = Standing(run, naming)
        standing.settle(
            mine, dataset.layout, limit=options.limit, retry_failed=options.retry_failed
        )
        maker = RowMaker(bundle, run, naming, options.save_maps)
        wanted = min(standing.inputs, options.limit or standing.inputs)
        with progress.task("score", wanted, "images") as task:
            task.advance(wanted - standing.todo)
            keeper = _Keeper(run, task, standing.todo, standing.counts)
            todo = standing.without_a_row(islice(iter(mine), options.limit))
            if engine is None:
                pipeline = Pipeline(maker, options, check, keeper, jpeg)
                pipeline.run(todo)
                stages, memory = pipeline.stages, pipeline.memory
            else:
                stages, memory = engine(maker, todo, options, keeper), "of each worker"
        run.flush()
        counts = dict(standing.counts)
        ends = {
            "inputs": standing.inputs,
            "left": standing.missing - standing.todo,
            "counts": counts,
            "profile": {**stages.profile(keeper.done), "memory": memory, "jpeg": decoder},
            "seconds": round(run.about.get("seconds", 0.0) + time.monotonic() - began, 3),
        }
        run.write_json("run.json", {**run.about, **ends})
        run.log("end", counts=counts)
    return counts


def _jpeg_decoder(device: torch.device, on_gpu: bool) -> tuple[JpegDecoder | None, str]:
    """What decodes JPEG files, where it is not libjpeg-turbo; and a line that says which it is."""
    if not on_gpu:
        return None, "libjpeg-turbo"
    if device.type != "cuda":
        return None, f"libjpeg-turbo, not the GPU (the model scores on the device {device.type})"
    return gpu_jpeg(device.index or 0)


class _Part:
    """The items of one shard, or all; walkable again."""

    def __init__(self, items: Iterable[Item], shard: Shard | None) -> None:
        self.items, self.shard = items, shard

    def __iter__(self) -> Iterator[Item]:
        if self.shard is None:
            return iter(self.items)
        holds = self.shard.holds
        return (item for item in self.items if holds(item.id))


class _Keeper:
    """Adds rows to the run, and tells how far it is."""

    def __init__(self, run: RunFolder, task: Task, total: int, counts: Counter[str]) -> None:
        self.run, self.task, self.total, self.counts, self.done = run, task, total, counts, 0
        self._began = time.perf_counter()

    def __call__(self, rows: Rows, limits: str) -> None:
        for row in rows:
            self.run.add(row)
            self.counts[row["status"]] += 1
        self.done += len(rows)
        rate = self.done / (time.perf_counter() - self._began)
        self.task.advance(
            len(rows),
            failed=sum(row["status"] != "ok" for row in rows),
            images_per_second=round(rate, 2),
            eta_seconds=round((self.total - self.done) / rate),
            limits=limits,
        )


class Pipeline:
    """Four stages: read (a loader's threads), score (the caller's), regions and maps, write.

    Args:
        maker: makes the rows, and writes the maps.
        options: of the run.
        check: see :func:`score_run`.
        keep: takes the rows, from a thread of its own.
        jpeg: decodes JPEG files, where it is not libjpeg-turbo.

    Attributes:
        stages: where the time goes.
        memory: of the batches: page-locked or pageable.
    """

    def __init__(
        self,
        maker: RowMaker,
        options: ScoreOptions,
        check: Check | None,
        keep: Keep,
        jpeg: JpegDecoder | None = None,
    ) -> None:
        self.maker, self.options, self.check, self.keep = maker, options, check, keep
        self.jpeg = jpeg
        self.score = Scorer(maker.bundle)
        self._pinned = maker.bundle.method.device.type == "cuda"
        self.memory = "page-locked" if self._pinned else "pageable"
        self._files: dict[str, Files] = {}
        self.stages = Stages(read=1, score=1, regions=_REGION_THREADS, write=1)

    def run(self, items: Iterator[Item]) -> None:
        """Score the items and hand on their rows."""
        torch.get_num_threads()  # this thread keeps its own setting, whatever pools do meanwhile
        loader = Loader(
            FileStream(self._noting_files(items), self.jpeg),
            InputSpec(**self.maker.bundle.input_spec),
            batch_size=self.options.batch_size,
            threads=self.options.threads,
            max_megapixels=self.options.max_megapixels,
            pinned=self._pinned,
        )
        chunks = self.stages.channel(_ROOM, "read", "score")
        made = self.stages.channel(_ROOM + _REGION_THREADS, "score", "write")
        with (
            single_threaded_pool(_REGION_THREADS, "fundad-regions") as pool,
            self.stages.running(),
        ):
            self.stages.start("read", lambda: self._read(loader, chunks))
            self.stages.start("write", lambda: self._write(made))
            for chunk in chunks:
                with self.stages.times["score"].working():
                    scored = self.score(chunk.batch) if chunk.items else None
                made.put((chunk, pool.submit(self._rows, chunk, scored)))
                del chunk, scored
            made.close()

    def _noting_files(self, items: Iterator[Item]) -> Iterator[Item]:
        """Just before they are read: what changes from then on is noticed by the next run."""
        for item in items:
            self._files[item.id] = self.maker.naming.files(item)
            yield item

    def _read(self, loader: Loader, chunks: Channel[Chunk]) -> None:
        began, times = time.perf_counter(), self.stages.times["read"]
        for chunk in loader:
            times.busy = time.perf_counter() - began - times.blocked
            chunks.put(chunk)
        chunks.close()

    def _rows(self, chunk: Chunk, scored: Scored | None) -> tuple[Rows, float]:
        """Runs in the pool; the rows, and for how long."""
        began = time.perf_counter()
        rows = [self.maker.failed(f, self._files.pop(f.item.id)) for f in chunk.failures]
        for i, (item, prepared) in enumerate(zip(chunk.items, chunk.prepared)):
            assert scored is not None
            wrong = self.check(item, prepared) if self.check else None
            values = None if scored.map is None else scored.map[i]
            files = self._files.pop(item.id)
            row = self.maker.scored(item, prepared, files, scored.image[i], values, wrong)
            if row["status"] == "ok":
                row["ms_read"], row["ms_model"] = chunk.ms_read[i], scored.ms
            rows.append(row)
        return rows, time.perf_counter() - began

    def _write(self, made: Channel[tuple[Chunk, Future[tuple[Rows, float]]]]) -> None:
        times = self.stages.times
        for chunk, future in made:
            waited = time.perf_counter()
            rows, busy = future.result()
            times["write"].starved += time.perf_counter() - waited
            times["regions"].busy += busy
            with times["write"].working():
                self.keep(rows, self.stages.limiting())
            del chunk, future, rows
