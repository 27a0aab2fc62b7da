# SPDX-License-Identifier: Apache-2.0
"""Memory-bank scoring: healthy patch features are remembered, far ones are abnormal."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from .. import ops
from ..backbones import Backbone, WeightsInfo, load_backbone
from ..batch import Batch, Scores
from ..progress import Progress
from ..spill import RowStore
from ._base import ConfigError, HeldOut, Method, Plan, State, spread, thinned, touched
from .cells import Cells, image_score
from .config import MemoryBankConfig
from .coreset import bank_size, choose, projection_dim, selection_bytes, shard_rows
from .features import CombinedFeatures
from .portions import Portion, in_portions


class MemoryBank(Method):
    """ReSAD and PatchCore: combined features, a greedy coreset, nearest-neighbour distances.

    Source: ReSAD, eq. 1 to 7; PatchCore (Roth et al. 2022).
    """

    Config: ClassVar[type[MemoryBankConfig]] = MemoryBankConfig
    config: MemoryBankConfig

    def __init__(self, config: MemoryBankConfig, *, weights: str | Path | None = None) -> None:
        super().__init__(config, weights=weights)
        self._features: CombinedFeatures | None = None
        self._bank: Any = None
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._compiled_size: int | None = None
        self._images, self._queries = Portion("images"), Portion("patches", least=1024)
        self.facts: dict[str, Any] = {}

    @property
    def features(self) -> CombinedFeatures:
        """The feature extractor; built, with its weights, at first use."""
        if self._features is None:
            c = self.config
            net = load_backbone(c.backbone, c.layers, self.weights, seed=c.seed)
            self._features = self._place(CombinedFeatures(net, c))
        return self._features

    def _place(self, features: CombinedFeatures) -> CombinedFeatures:
        """Move to the device; there the weights lie as the images do, so that none is turned."""
        last = self.device.type == "cuda"
        kind = torch.channels_last if last else torch.contiguous_format
        return features.to(self.device).to(memory_format=kind)

    @property
    def _in_fov(self) -> bool:
        c = self.config
        return c.bank_rows == "fov" or (c.bank_rows == "auto" and c.fov == "auto")

    def fit(
        self,
        train: Iterable[Batch],
        *,
        val: Iterable[Batch] | None = None,
        external: Iterable[Batch] | None = None,
        folds: Mapping[str, int] | None = None,
        scratch: Path | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Fill the memory bank; ``val`` and ``external`` are not used. See ``Method.fit``."""
        progress = progress or Progress()
        store = self._store(scratch)
        for batch in train:
            self._remember(batch, store)
        if not store.ids:
            raise ConfigError("no healthy image to learn from")
        everything = range(len(store.ids))
        self.held_out_ = None
        if folds is not None:
            self.held_out_ = self._hold_out(store, folds, progress)
        chosen = choose(
            store, everything, self.config, name="all", progress=progress, device=self.device
        )
        self._set_bank(store.rows(chosen.index))
        self.facts = {
            "images": len(store.ids),
            "rows": len(store),
            "bank_rows": len(chosen.index),
            "features": self.features.dim,
            "selection": {
                "dimension": chosen.projected,
                "covering_radius": chosen.radius,
                "shards": chosen.shards,
                "ran_on": list(chosen.ran),
            },
            "backbone": vars(self.features.backbone.info),
        }
        return self

    def score(self, batch: Batch) -> Scores:
        """Distances to the bank; see ``Method.score``. Source: ReSAD eq. 7, PatchCore eq. 6-7."""
        if self._bank is None:
            raise RuntimeError(f"{self.name} is not fitted; call fit, or load a bundle")
        parts = in_portions(lambda part: self._score(batch[part]), len(batch), self._images)
        if len(parts) == 1:
            return parts[0]
        maps = [part.map for part in parts if part.map is not None]
        return Scores(torch.cat([part.image for part in parts]), torch.cat(maps) if maps else None)

    def _score(self, batch: Batch) -> Scores:
        """From the images to their scores with no stop on the way: the device is never asked."""
        run: Callable[[Tensor], Tensor] = self.features
        if self._compiled is not None:
            self._compiled_size = self._compiled_size or len(batch)
            if len(batch) == self._compiled_size:
                run = self._compiled
        c = run(batch.image.to(self.device, non_blocking=True))
        b, h, w, _ = c.shape
        cells = Cells.under(batch.mask, (b, h, w), self.device)
        return self._judge(cells.rows(c), cells, batch.mask, self._bank)

    def state(self) -> State:
        weights = {k: v.cpu() for k, v in self.features.backbone.net.state_dict().items()}
        bank = {k: v.cpu() for k, v in self._bank.tensors().items()}
        return State(weights, bank, self.facts)

    @classmethod
    def from_state(cls, config: Any, state: State) -> Self:
        self = cls(config)
        net = Backbone(config.backbone, config.layers)
        net.net.load_state_dict(state.weights)
        net.info = WeightsInfo(**state.facts["backbone"])
        self._features = CombinedFeatures(net, config)
        self._bank = ops.NearestPrepared.from_tensors(state.bank)
        self.facts = state.facts
        return self

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        if self._features is not None:
            self._place(self._features)
        if self._bank is not None:
            self._bank = self._bank.to(self.device)
        return self

    def compile(self, **options: Any) -> Self:
        """Compile what makes features of images, for scoring; returns self.

        That is done at the first batch and takes a minute or so; batches of another size, such as
        the last one, run as they are. Scores change by rounding.

        Args:
            options: of ``torch.compile``; ``mode="reduce-overhead"`` replays the features of a
                batch as one CUDA graph.
        """
        self._compiled = torch.compile(self.features, fullgraph=True, dynamic=False, **options)
        self._compiled_size = None
        return self

    def summary(self) -> str:
        return f"{self.facts['bank_rows']} of {self.facts['rows']} rows kept"

    def done(self, scratch: Path) -> set[str]:
        return set(self._store(scratch).ids)

    def plan(self, images: int, folds: int) -> Plan:
        c, extractor = self.config, self.features
        d, cells = extractor.dim, extractor.grid(c.image_size) ** 2
        rows = images * cells
        kept = bank_size(rows, d, c)
        low = projection_dim(rows, d, c.projection_eps)
        one = torch.rand(1, 3, c.image_size, c.image_size)
        extractor(one.to(self.device))
        began = time.perf_counter()
        sample = extractor(one.to(self.device)).reshape(-1, d).cpu()
        per_image = time.perf_counter() - began
        per_pair = _seconds_per_pair(sample)
        selections = 1 + folds * (folds - 1) / max(folds, 1)
        # Lazy greedy took between a sixth (raw features, 1 % picked) and a 75th (ReSAD's, 10 %) of
        # the unpruned loop's time on real rows; a fifth is on the safe side of that, and no more
        # than a guess for other data. Held-out rows are searched once each.
        seconds = images * per_image + per_pair * kept * rows * (
            0.2 * selections * low / d + (1 if folds else 0)
        )
        width = 4 if c.store_dtype == "float32" else 2
        in_memory = selection_bytes(min(rows, shard_rows(low, c.memory_budget)), low)
        lines = (
            f"{images} images x {cells} patches x {d} features = {rows} rows",
            f"bank: {kept} rows, chosen in {low} dimensions",
        )
        return Plan(
            images=images,
            memory=in_memory + 8 * rows + 2 * 4 * kept * d + 2**30,
            disk=rows * d * width,
            bundle=kept * (d * 4 + 292) + 4 * sum(p.numel() for p in extractor.parameters()),
            seconds=seconds,
            lines=lines,
        )

    # -- learning --------------------------------------------------------------------------------

    def _store(self, scratch: Path | None) -> RowStore:
        """The rows so far; a scratch folder of other settings or weights is started afresh."""
        folder = None
        if scratch is not None:
            what = json.dumps(
                [self.config.model_dump(mode="json"), vars(self.features.backbone.info)],
                sort_keys=True,
            )
            key = hashlib.sha256(what.encode()).hexdigest()[:16]
            folder = scratch / key
        return RowStore(
            self.features.dim,
            dtype=self.config.store_dtype,
            folder=folder,
            limit=self.config.memory_budget // 2,
        )

    def _remember(self, batch: Batch, store: RowStore) -> None:
        in_portions(lambda part: self._keep(batch[part], store), len(batch), self._images)

    def _keep(self, batch: Batch, store: RowStore) -> None:
        c = self.features(batch.image.to(self.device, non_blocking=True))
        _, h, w, d = c.shape
        c = c.cpu()  # one transfer, of which the store keeps what it wants
        inside = None if batch.mask is None else touched(batch.mask.cpu(), c[..., 0])
        for i, name in enumerate(batch.id):
            rows = c[i] if inside is None or not self._in_fov else c[i][inside[i]]
            mask = None if batch.mask is None else batch.mask[i]
            store.append(name, rows.reshape(-1, d), _pack(mask, h, w))

    def _hold_out(self, store: RowStore, folds: Mapping[str, int], progress: Progress) -> HeldOut:
        number = np.array([folds[name] for name in store.ids], dtype=np.int32)
        score = np.zeros(len(number), dtype=np.float32)
        cells: list[np.ndarray] = []
        for fold in sorted(set(number.tolist())):
            outside = np.flatnonzero(number != fold).tolist()
            if not outside:
                raise ConfigError("thresholds from folds need images in at least two folds")
            inside = np.flatnonzero(number == fold).tolist()
            name = f"fold{fold}"
            chosen = choose(
                store, outside, self.config, name=name, progress=progress, device=self.device
            )
            bank = ops.nearest_prepare(store.rows(chosen.index).to(self.device))
            with progress.task(f"held out {name}", len(inside), "images") as task:
                for i in inside:
                    got, values = self._judge_stored(store, i, bank)
                    score[i] = got
                    cells.append(thinned(values, len(number)))
                    task.advance()
        return HeldOut(tuple(store.ids), number, score, np.concatenate(cells))

    def _judge_stored(self, store: RowStore, i: int, bank: Any) -> tuple[float, np.ndarray]:
        """Image score and in-mask map cells of an image whose rows are in the store."""
        mask, h, w = _unpack(store.notes[i])
        mask = None if mask is None else mask[None]
        cells = Cells.under(mask, (1, h, w), self.device)
        rows = store.image(i).to(self.device)
        if not self._in_fov:
            rows = cells.rows(rows.view(1, h, w, -1))
        scores = self._judge(rows, cells, mask, bank)
        assert scores.map is not None
        shown = scores.map.cpu()
        return float(scores.image[0]), shown[touched(mask, shown)].numpy()

    def _set_bank(self, rows: Tensor) -> None:
        self._bank = ops.nearest_prepare(rows.to(self.device))

    # -- judging ---------------------------------------------------------------------------------

    def _judge(self, rows: Tensor, cells: Cells, mask: Tensor | None, bank: Any) -> Scores:
        """Scores of ``rows [m, d]``, the features of the cells, in order."""
        c = self.config
        k = min(c.num_neighbors if c.reweight == "none" else 1, len(bank.rows))
        d2, index = self._nearest(rows, bank, k)
        near = d2.sqrt().mean(1)
        grid = spread(cells.grid(near), cells.inside(near.device))
        seen = None if mask is None else mask.to(near.device, non_blocking=True)
        full = self._pixels(grid, seen)
        if c.reweight == "paper":
            image = self._reweighted(rows, near, index[:, 0], cells, bank)
        else:
            image = image_score(full, mask, c.image_score, c.top_fraction)
        return Scores(image.float(), grid if c.smoothing == 0 else full)

    def _nearest(self, rows: Tensor, bank: Any, k: int) -> tuple[Tensor, Tensor]:
        """``ops.nearest``, of fewer queries at a time where memory runs out."""
        parts = in_portions(
            lambda part: ops.nearest(rows[part], bank.rows, k, prepared=bank),
            len(rows),
            self._queries,
        )
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return ops.nearest(rows, bank.rows, k, prepared=bank)
        dist2, index = zip(*parts)
        return torch.cat(dist2), torch.cat(index)

    def _pixels(self, grid: Tensor, mask: Tensor | None) -> Tensor:
        """The map at the input's resolution, smoothed when that is wanted: ``[b, s, s]``."""
        c = self.config
        size = (c.image_size, c.image_size)
        full = nnf.interpolate(grid[:, None], size, mode="bilinear", align_corners=False)
        if c.smoothing > 0:
            if mask is None:
                full = self._blur(full)
            else:  # over the mask alone: what lies outside has no weight
                weight = mask[:, None].to(full.dtype)
                full = self._blur(full * weight) / self._blur(weight).clamp_min(1e-6)
                full = spread(full[:, 0], mask)[:, None]
        return full[:, 0]

    def _blur(self, full: Tensor) -> Tensor:
        """Gaussian blur, cut at 4σ, of ``[b, 1, s, s]``; the frame is mirrored at its border."""
        sigma = self.config.smoothing
        reach = min(round(4 * sigma), self.config.image_size - 1)
        x = torch.arange(-reach, reach + 1, dtype=full.dtype, device=full.device)
        taps = torch.exp(-(x**2) / (2 * sigma**2))
        taps = taps / taps.sum()
        full = nnf.pad(full, (reach, reach, reach, reach), mode="reflect")
        return nnf.conv2d(nnf.conv2d(full, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))

    def _reweighted(
        self, rows: Tensor, near: Tensor, index: Tensor, cells: Cells, bank: Any
    ) -> Tensor:
        """PatchCore eq. 7: the largest patch distance times 1 - softmax over the neighbourhood."""
        k = min(self.config.num_neighbors, len(bank.rows))
        first = accumulate(cells.count[:-1], initial=0)
        top = torch.stack([part.argmax() + at for at, part in zip(first, near.split(cells.count))])
        _, neighbours = self._nearest(bank.rows[index[top]], bank, k)
        to = (bank.rows[neighbours] - rows[top][:, None]).double().square().sum(2).sqrt()
        weight = 1 - torch.softmax(to, 1)[:, 0] if k > 1 else to.new_ones(len(top))
        return near[top] * weight.float()


def _pack(mask: Tensor | None, h: int, w: int) -> str:
    """A map's size and an image's mask as a short text; a disc takes about a kilobyte."""
    note: dict[str, Any] = {"grid": [h, w]}
    if mask is not None:
        bits = np.packbits(mask.cpu().numpy())
        note["shape"] = list(mask.shape)
        note["mask"] = base64.b85encode(zlib.compress(bits.tobytes(), 1)).decode()
    return json.dumps(note)


def _unpack(text: str) -> tuple[Tensor | None, int, int]:
    note = json.loads(text)
    h, w = note["grid"]
    if "mask" not in note:
        return None, h, w
    bits = np.frombuffer(zlib.decompress(base64.b85decode(note["mask"])), np.uint8)
    mask = np.unpackbits(bits, count=int(np.prod(note["shape"]))).reshape(note["shape"])
    return torch.from_numpy(mask.astype(bool)), h, w


def _seconds_per_pair(rows: Tensor) -> float:
    """Time to compare one row with one bank row, from a small search here and now."""
    some = rows[:512]
    ops.nearest(some, some)
    began = time.perf_counter()
    ops.nearest(rows[:2048], some)
    return (time.perf_counter() - began) / (min(len(rows), 2048) * len(some))
