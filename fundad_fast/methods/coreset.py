# SPDX-License-Identifier: Apache-2.0
"""Which rows of many images become the memory bank: projection, greedy k-centre, memory budget."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..progress import Progress
from ..spill import RowStore
from ._base import ConfigError
from .config import MemoryBankConfig

# Bytes that the selection holds per row beside the row itself: its short picture and bounds
# (measured peaks: 553 at 64 features, 1,090 at 128, 1,097 at 306, 1,170 at 384).
SELECTION_EXTRA = 1200
# Sharded selection takes this many times its share from every shard before the last choice.
OVERSAMPLING = 2


@dataclass(frozen=True)
class Chosen:
    """The rows of a bank.

    Attributes:
        index: ``[k]`` int64 row numbers of the store, in the order of choice.
        radius: covering radius: the largest distance of any row to its nearest chosen one, in the
            space in which they were chosen.
        shards: 1 when the greedy choice ran over all rows at once.
        projected: dimension of that space.
        ran: on which devices the greedy choices ran; in words why not on the model's, where that
            is another.
    """

    index: Tensor
    radius: float
    shards: int
    projected: int
    ran: tuple[str, ...] = ()


def projection_dim(rows: int, d: int, eps: float | None) -> int:
    """Johnson-Lindenstrauss dimension for ``rows`` rows, or ``d`` where it would not be lower.

    4 ln n / (ε²/2 - ε³/3), rounded down: 347 for IDRiD's 1,286,936 rows and 365 for ADAM's
    2,708,328 at ε = 0.9 (ReSAD, implementation details).
    """
    if eps is None or rows < 2:
        return d
    from sklearn.random_projection import johnson_lindenstrauss_min_dim

    return max(1, min(d, int(johnson_lindenstrauss_min_dim(rows, eps=eps))))


def projection_matrix(rows: int, d: int, eps: float | None, seed: int) -> Tensor | None:
    """A sparse random projection ``[d, k]`` for ``rows`` rows, or ``None`` for none.

    Entries are ±√(√d/k) with density 1/√d (Li et al. 2006), as scikit-learn makes them.
    """
    k = projection_dim(rows, d, eps)
    if k >= d:
        return None
    from sklearn.random_projection import SparseRandomProjection

    maker = SparseRandomProjection(n_components=k, random_state=seed).fit(np.zeros((1, d)))
    return torch.from_numpy(maker.components_.toarray().T.astype(np.float32)).contiguous()


def bank_size(rows: int, d: int, config: MemoryBankConfig) -> int:
    """How many of ``rows`` rows the bank keeps.

    Raises:
        ConfigError: when more rows are asked for than there are.
    """
    k = config.coreset_size
    if k is None:
        k = max(1, int(rows * config.coreset_sampling_ratio))
    elif k > rows:
        raise ConfigError(
            f"coreset_size={k}, but the healthy images give only {rows} rows; lower it, or give "
            "more or larger images"
        )
    if config.coreset_bytes is not None:
        k = min(k, config.coreset_bytes // (4 * d))
        if k < 1:
            raise ConfigError(
                f"coreset_bytes={config.coreset_bytes} is less than one row of {4 * d} bytes"
            )
    return k


def shard_rows(projected: int, budget: int) -> int:
    """Rows that one greedy choice may run over within a memory budget in bytes."""
    return max(1, budget // selection_bytes(1, projected))


def selection_bytes(rows: int, projected: int) -> int:
    """Memory that a greedy choice over ``rows`` rows takes, the rows included."""
    return rows * (4 * projected + SELECTION_EXTRA)


def choose(
    store: RowStore,
    images: Sequence[int],
    config: MemoryBankConfig,
    *,
    name: str,
    progress: Progress,
    device: torch.device | None = None,
) -> Chosen:
    """Choose the bank among the rows of some of a store's images.

    One greedy k-centre over all rows while they fit into ``memory_budget``. Beyond that the images
    are cut into shards, each gives twice its share, and the bank is chosen among those (k-centre of
    k-centres: our design; the covering radius tells what it costs). A bank of which not even that
    fits is made of the shards' own shares.

    Args:
        store: all rows.
        images: image numbers that may be used, ascending.
        config: size of the bank, projection, budget, seed.
        name: of this choice, for the progress display.
        progress: told about the picks. Where the store has a folder, picks are kept there too and
            an interrupted choice goes on.
        device: of the model. The greedy choices run there where ``ops.kcenter_place`` says that it
            pays and that there is room, otherwise, and where its memory runs out all the same, on
            the CPU. The picks are the same.
    """
    ran: dict[str, None] = {}  # a set in order
    device = device or torch.device("cpu")
    offsets = store.offsets()
    ids = "\n".join(store.ids[i] for i in images)
    keep = None
    if store.folder is not None:
        keep = store.folder / f"picks-{hashlib.sha256(ids.encode()).hexdigest()[:16]}"
    numbers = torch.cat([torch.arange(offsets[i], offsets[i + 1]) for i in images])
    n, d = len(numbers), store.d
    k = bank_size(n, d, config)
    matrix = projection_matrix(n, d, config.projection_eps, config.seed)
    projected = d if matrix is None else matrix.shape[1]
    # The rows themselves take up to half of the budget while they are in memory.
    budget = config.memory_budget if store.folder is not None else config.memory_budget // 2
    limit = shard_rows(projected, budget)
    if n <= limit:
        x = _projected(store, numbers, matrix)
        picks, worst2 = _greedy(x, k, name, keep, "", progress, device, ran)
        return Chosen(numbers[picks], math.sqrt(worst2), 1, projected, tuple(ran))

    wanted = min(n, OVERSAMPLING * k)
    merges = wanted <= limit
    shards = numbers.split(limit)
    candidates = []
    ends = [round((wanted if merges else k) * end / n) for end in _ends(shards)]
    for number, part in enumerate(shards):
        share = ends[number] - (ends[number - 1] if number else 0)
        if share == 0:
            continue
        x = _projected(store, part, matrix)
        part_name = f"{name} {number + 1}/{len(shards)}"
        wanted_here = min(len(part), share)
        picks, _ = _greedy(x, wanted_here, part_name, keep, f"-{number}", progress, device, ran)
        candidates.append(part[picks])
    pool = torch.cat(candidates)
    x = _projected(store, pool, matrix)
    if merges:
        picks, _ = _greedy(x, k, f"{name} merged", keep, "-merged", progress, device, ran)
        x, pool = x[picks], pool[picks]
    bank = ops.nearest_prepare(x)
    worst = 0.0
    with progress.task(f"radius {name}", len(shards), "shards") as task:
        for part in shards:
            d2, _ = ops.nearest(_projected(store, part, matrix), bank.rows, prepared=bank)
            worst = max(worst, float(d2.max()))
            task.advance()
    return Chosen(pool, math.sqrt(worst), len(shards), projected, tuple(ran))


def _ends(shards: Sequence[Tensor]) -> list[int]:
    return np.cumsum([len(part) for part in shards]).tolist()


def _projected(store: RowStore, numbers: Tensor, matrix: Tensor | None) -> Tensor:
    width = store.d if matrix is None else matrix.shape[1]
    x = torch.empty(len(numbers), width)
    step = max(1024, 2**23 // store.d)  # 32 MiB at a time
    for lo in range(0, len(numbers), step):
        rows = store.rows(numbers[lo : lo + step])
        x[lo : lo + len(rows)] = rows if matrix is None else rows @ matrix
    return x


def _greedy(
    x: Tensor,
    k: int,
    name: str,
    keep: Path | None,
    suffix: str,
    progress: Progress,
    device: torch.device,
    ran: dict[str, None],
) -> tuple[Tensor, float]:
    """Greedy k-centre in chunks, so that progress is seen and a kill loses at most one chunk.

    Returns the picks and the largest squared distance to them; ``ran`` is told where it ran.
    """
    file = None if keep is None else keep.with_name(f"{keep.name}{suffix}.npy")
    before = None
    if file is not None and file.exists():
        before = torch.from_numpy(np.load(file))[:k]
    rows, state = _begin(x, before, device, ran)
    done, chunk = (0 if before is None else len(before)), max(1, min(256, k))
    with progress.task(f"coreset {name}", k, "rows") as task:
        task.advance(done)
        while done < k:
            began = time.monotonic()
            step = min(chunk, k - done)
            state.advance(done + step)
            done += step
            task.advance(step)
            if file is not None and done < k:
                _save(file, state.picks)
            if time.monotonic() - began < 2:  # long enough that saving costs nothing beside it
                chunk *= 2
    picks, radius2 = ops.kcenter(rows, k, state=state)
    if file is not None:
        _save(file, picks)
    return picks.cpu(), float(radius2.max())


def _begin(
    x: Tensor, picks: Tensor | None, device: torch.device, ran: dict[str, None]
) -> tuple[Tensor, ops.KCenterState]:
    """The rows where they are to be searched, and the search, after the picks made earlier."""
    n, d = x.shape
    place = ops.kcenter_place(n, d, device)
    if place.device.type != "cpu":
        try:
            rows = x.to(place.device)
            state = ops.kcenter_state(rows, start=0, picks=picks)
        except torch.OutOfMemoryError:
            place = ops.KCenterPlace(torch.device("cpu"), f"the memory of {place.device} ran out")
        else:
            ran[str(place.device)] = None
            return rows, state
    ran["cpu" if place.reason is None else f"cpu: {place.reason}"] = None
    return x, ops.kcenter_state(x, start=0, picks=picks)


def _save(file: Path, picks: Tensor) -> None:
    part = file.with_suffix(".part")
    with open(part, "wb") as out:
        np.save(out, picks.cpu().numpy())
    part.replace(file)
