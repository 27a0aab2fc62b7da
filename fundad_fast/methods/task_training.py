# SPDX-License-Identifier: Apache-2.0
"""One model of "Many tasks make light work" as a recipe of the training loop."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch
from ..nets import UNet
from ..synthetic import Synthetic, synthesize
from ..training import Recipe, Turn, seed_of, warm_up_and_decay
from .image_store import ImageStore
from .many_tasks_config import ManyTasksConfig
from .task_folds import TaskFold


class TaskRecipe(Recipe):
    """Mean squared error between the raw output and the label of synthetic anomalies.

    Source: METHODS.md C.5, after the public code. An image's task is a uniform draw of the model's.

    Args:
        config: of the method.
        net: to train, on its device.
        fold: the model's tasks and images.
        store: the images.
        foreign: images of another kind; ``None`` for those of the other pool of the fold.
    """

    def __init__(
        self,
        config: ManyTasksConfig,
        net: UNet,
        fold: TaskFold,
        store: ImageStore,
        foreign: ImageStore | None,
    ) -> None:
        self.config, self.fold, self.store, self.foreign = config, fold, store, foreign
        self.networks = {"net": net}
        self.optimizers = {
            "net": torch.optim.AdamW(net.parameters(), config.learning_rate, weight_decay=0)
        }
        self.images, self.val_images = len(fold.train), len(fold.val)

    def rate(self, step: int) -> float:
        c = self.config
        return warm_up_and_decay(
            step, warmup=c.warmup_steps, tenfold=c.tenfold_steps, floor=c.rate_floor
        )

    def step(self, turn: Turn) -> Mapping[str, Tensor]:
        _, made = self._made(turn, self.fold.train, self.fold.val, self.fold.train_tasks)
        with turn.autocast():
            out = turn.networks["net"](made.image)
        loss = (out[:, 0].float() - made.label).square().mean()
        turn.descend(loss, "net")
        return {"loss": loss}

    def validate(self, turn: Turn) -> Mapping[str, Tensor]:
        """Errors on clean images, whose label is 0, and on images with anomalies, added up.

        ``silent`` is the latter of a network that says 0 everywhere, to compare with.
        """
        clean, made = self._made(turn, self.fold.val, self.fold.train, self.fold.val_tasks)
        b = len(turn.index)
        with turn.autocast():
            out = turn.networks["net"](torch.cat([clean.image, made.image]))[:, 0].float()
        quiet = out[:b].square().flatten(1).mean(1).sum()
        found = (out[b:] - made.label).square().flatten(1).mean(1).sum()
        silent = made.label.square().flatten(1).mean(1).sum()  # what an output of 0 would have
        return {"loss": quiet + found, "clean": quiet, "anomalies": found, "silent": silent}

    def _made(
        self, turn: Turn, own: np.ndarray, others: np.ndarray, tasks: tuple[str, ...]
    ) -> tuple[Batch, Synthetic]:
        """The images of a turn, and the same with anomalies."""
        clean = self.store.get([int(own[i]) for i in turn.index], turn.device)
        chosen, seeds, reversed_ = [], [], []
        for seed in turn.seeds:
            rng = np.random.default_rng(seed)
            chosen.append(tasks[int(rng.integers(len(tasks)))])
            reversed_.append(self.config.flip and rng.random() < 0.5)
            seeds.append(int(rng.integers(2**62)))
        clean = _flipped(clean, reversed_)
        # A few images of the pool, drawn anew for each batch: every image is as likely for every
        # anomaly as with all of them at hand. Every process draws the same.
        sources = self._some(self.store, own, turn, 2)
        external = None
        if "inter" in tasks:
            store = self.foreign or self.store
            pool = np.arange(len(store)) if self.foreign else others
            external = self._some(store, pool, turn, 3)
        made = synthesize(
            clean.image,
            chosen,
            seeds=seeds,
            mask=clean.mask,
            sources=sources.image,
            source_masks=sources.mask,
            external=None if external is None else external.image,
            external_masks=None if external is None else external.mask,
            settings=self.config.synthesis,
        )
        return clean, made

    def _some(self, store: ImageStore, pool: np.ndarray, turn: Turn, purpose: int) -> Batch:
        rng = np.random.default_rng(seed_of(turn.seed, purpose))
        drawn = rng.choice(pool, min(len(pool), turn.whole), replace=False)
        return store.get([int(i) for i in drawn], turn.device)


def _flipped(batch: Batch, chosen: list[bool]) -> Batch:
    """The chosen images with their last axis reversed."""
    if not any(chosen):
        return batch
    image, mask = batch.image.clone(), None if batch.mask is None else batch.mask.clone()
    at = [i for i, yes in enumerate(chosen) if yes]
    image[at] = image[at].flip(-1)
    if mask is not None:
        mask[at] = mask[at].flip(-1)
    return Batch(image, batch.id, mask)
