# SPDX-License-Identifier: Apache-2.0
"""ReSynthDetect's stages as recipes of the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ..batch import Batch
from ..nets import Autoencoder, GuidedPair, GuidedUNet, guidance
from ..synthetic import Mixed, mix_in
from ..training import Recipe, Turn, multi_step, seed_of
from .image_store import ImageStore
from .losses import focal_loss, structural_loss
from .resynth_config import ReSynthConfig

_SOURCES_OF_VALIDATION = 8
_CPU = torch.device("cpu")


def steps_of(config: ReSynthConfig, images: int, first: bool) -> int:
    """How many steps a stage has on this many images, if nothing ends it before."""
    most = config.reconstruction_steps if first else config.max_steps
    epochs = config.reconstruction_epochs if first else config.epochs
    per_epoch = max(1, images // min(config.train_batch, images))
    return most if epochs is None else min(most, epochs * per_epoch)


class Stage(Recipe):
    """What the stages share: images, the split for validation, the learning rate.

    Args:
        config: of the method.
        store: the images.
        train: numbers of those to train on.
        val: numbers of those to validate on.
        first: whether it is the first of two stages.
    """

    def __init__(
        self,
        config: ReSynthConfig,
        store: ImageStore,
        train: np.ndarray,
        val: np.ndarray,
        first: bool,
    ) -> None:
        self.config, self.store, self.train, self.val = config, store, train, val
        self.images = len(train)
        self.val_images = len(val) * (1 if first else config.val_repeats)
        self._steps = steps_of(config, self.images, first)

    def rate(self, step: int) -> float:
        c = self.config
        return multi_step(step, self._steps, at=c.rate_drops, factor=c.rate_factor)

    def views(self, turn: Turn) -> Batch:
        """Training images of a turn, or tiles of them, mirrored and turned, on the CPU."""
        numbers = [int(self.train[i]) for i in turn.index]
        found = [
            view(self.store.get([n], _CPU), np.random.default_rng(seed), self.config)
            for n, seed in zip(numbers, turn.seeds, strict=True)
        ]
        return joined(found)

    def held(self, turn: Turn) -> tuple[Batch, list[int]]:
        """Images of a validation as they are, or always the same tiles of them; and their seeds."""
        seeds = [seed_of(self.config.seed, 5, i) for i in turn.index]
        found = [
            cut_tile(
                self.store.get([int(self.val[i % len(self.val)])], _CPU),
                np.random.default_rng(seed),
                self.config.tile,
            )
            for i, seed in zip(turn.index, seeds, strict=True)
        ]
        return joined(found), seeds


class ReconstructionStage(Stage):
    """Stage 1: ‖D(E(I)) - I‖² on healthy images, as published.

    Args:
        net: to train, on its device.
    """

    def __init__(
        self,
        config: ReSynthConfig,
        net: Autoencoder,
        store: ImageStore,
        train: np.ndarray,
        val: np.ndarray,
    ) -> None:
        super().__init__(config, store, train, val, first=True)
        self.networks = {"reconstruction": net}
        self.optimizers = {"adam": torch.optim.Adam(net.parameters(), config.learning_rate)}

    def step(self, turn: Turn) -> Mapping[str, Tensor]:
        loss = self._loss(turn, self.views(turn))
        turn.descend(loss, "adam")
        return {"loss": loss}

    def validate(self, turn: Turn) -> Mapping[str, Tensor]:
        return {"loss": self._loss(turn, self.held(turn)[0]) * len(turn.index)}

    def _loss(self, turn: Turn, batch: Batch) -> Tensor:
        image = batch.image.to(turn.device)
        with turn.autocast():
            again = turn.networks["reconstruction"](image)
        return reconstruction_loss(again, image, self.config)


class LocalisationStage(Stage):
    """Stage 2: a focal loss on the pixels of synthetic anomalies; or both stages in one.

    Args:
        net: the localisation network, on its device.
        reconstruction: guides it: frozen, or trained along with ``stages=joint``.
        textures: where patches come from; ``None`` for the images to train on.
    """

    def __init__(
        self,
        config: ReSynthConfig,
        net: GuidedUNet,
        reconstruction: Autoencoder | None,
        store: ImageStore,
        train: np.ndarray,
        val: np.ndarray,
        textures: ImageStore | None = None,
    ) -> None:
        super().__init__(config, store, train, val, first=False)
        self.textures, self.frozen = textures, None
        trained: nn.Module = net
        if reconstruction is not None and config.stages == "joint":
            trained = GuidedPair(reconstruction, net)
            self.networks = {"pair": trained}
        else:
            self.networks = {"localisation": net}
            self.frozen = reconstruction
        if self.frozen is not None:
            self.frozen.eval().requires_grad_(False)
        parameters = trained.parameters()
        self.optimizers = {"adam": torch.optim.Adam(parameters, config.learning_rate)}
        rng = np.random.default_rng(seed_of(config.seed, 6))
        self._of_val = self._some(rng, _SOURCES_OF_VALIDATION)

    def step(self, turn: Turn) -> Mapping[str, Tensor]:
        clean = self.views(turn)
        seeds = [seed_of(seed, 1) for seed in turn.seeds]
        rng = np.random.default_rng(seed_of(turn.seed, 2))
        made = self._made(clean, seeds, self._some(rng, turn.whole))
        logits, again = self._judged(turn, made)
        focal = focal_loss(logits.float(), made.label.to(turn.device), self.config.tau)
        losses = {"loss": focal}
        if again is not None:
            undone = reconstruction_loss(again, clean.image.to(turn.device), self.config)
            losses = {"loss": focal + undone, "focal": focal, "reconstruction": undone}
        turn.descend(losses["loss"], "adam")
        return losses

    def validate(self, turn: Turn) -> Mapping[str, Tensor]:
        clean, seeds = self.held(turn)
        made = self._made(clean, [seed_of(seed, 1) for seed in seeds], self._of_val)
        logits = self._judged(turn, made)[0].float()
        label = made.label.to(turn.device)
        found = (logits > 0).float()
        common = (found * label).flatten(1).sum(1)
        total = (found + label).flatten(1).sum(1)
        dice = torch.where(total > 0, 2 * common / total.clamp_min(1), 1.0)
        loss = focal_loss(logits, label, self.config.tau) * len(turn.index)
        return {"loss": loss, "dice": dice.sum()}

    def _made(self, clean: Batch, seeds: Sequence[int], sources: Batch) -> Mixed:
        return mix_in(
            clean.image,
            seeds=seeds,
            sources=sources.image,
            mask=clean.mask,
            source_masks=sources.mask,
            settings=self.config.generator,
            area=int(np.prod(self.store.shape[1:])),
        )

    def _judged(self, turn: Turn, made: Mixed) -> tuple[Tensor, Tensor | None]:
        """Logits, and the reconstruction where it is trained along."""
        image = made.image.to(turn.device)
        with turn.autocast():
            if "pair" in turn.networks:
                logits, again = turn.networks["pair"](image)
                return logits, again
            known = None
            if self.frozen is not None:
                known = guidance(self.frozen, image, self.config.guide)[1]
            return turn.networks["localisation"](image, known), None

    def _some(self, rng: np.random.Generator, count: int) -> Batch:
        """A few images to take patches from: for each batch others."""
        store = self.textures or self.store
        pool = np.arange(len(store)) if self.textures else self.train
        drawn = rng.choice(pool, min(len(pool), count), replace=False)
        return store.get([int(i) for i in drawn], _CPU)


def reconstruction_loss(again: Tensor, image: Tensor, config: ReSynthConfig) -> Tensor:
    """Mean squared error, and for DRAEM 1 - SSIM."""
    again = again.float()
    loss = nnf.mse_loss(again, image)
    if config.reconstruction_loss == "l2+ssim":
        loss = loss + structural_loss(again, image)
    return loss


def view(one: Batch, rng: np.random.Generator, config: ReSynthConfig) -> Batch:
    """One image or a tile of it, mirrored and turned at random, with its mask."""
    import cv2

    one = cut_tile(one, rng, config.tile)
    flips = {"none": (), "horizontal": (-1,), "both": (-1, -2)}[config.mirror]
    axes = [axis for axis in flips if rng.random() < 0.5]
    angle = rng.uniform(-config.rotation, config.rotation)
    image, mask = one.image, one.mask
    if axes:
        image, mask = image.flip(axes), None if mask is None else mask.flip(axes)
    if config.rotation:
        h, w = image.shape[2:]
        matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), angle, 1.0)
        # Around a field of view it is dark; a frame without one goes on as in a mirror.
        border = cv2.BORDER_REFLECT_101 if mask is None else cv2.BORDER_CONSTANT
        planes = np.ascontiguousarray(np.moveaxis(image[0].numpy(), 0, -1))
        turned = cv2.warpAffine(planes, matrix, (w, h), borderMode=border).reshape(planes.shape)
        image = torch.from_numpy(np.ascontiguousarray(np.moveaxis(turned, -1, 0)))[None]
        if mask is not None:
            flat = cv2.warpAffine(mask[0].numpy().astype(np.uint8), matrix, (w, h), flags=0)
            mask = torch.from_numpy(flat > 0)[None]
    return Batch(image, one.id, mask)


def cut_tile(one: Batch, rng: np.random.Generator, tile: int) -> Batch:
    """A random tile of one image, around a pixel of its mask; the image where it is no larger."""
    h, w = one.image.shape[2:]
    if h <= tile and w <= tile:
        return one
    if one.mask is not None and one.mask.any():
        inside = np.flatnonzero(one.mask[0].numpy())
        y, x = divmod(int(inside[rng.integers(len(inside))]), w)
    else:
        y, x = int(rng.integers(h)), int(rng.integers(w))
    top, left = (min(max(at - tile // 2, 0), max(n - tile, 0)) for at, n in ((y, h), (x, w)))
    box = (slice(top, top + tile), slice(left, left + tile))
    mask = None if one.mask is None else one.mask[:, box[0], box[1]]
    return Batch(one.image[:, :, box[0], box[1]].contiguous(), one.id, mask)


def joined(parts: Sequence[Batch]) -> Batch:
    """Batches as one."""
    masks = [part.mask for part in parts if part.mask is not None]
    return Batch(
        torch.cat([part.image for part in parts]),
        tuple(name for part in parts for name in part.id),
        torch.cat(masks) if masks else None,
    )
