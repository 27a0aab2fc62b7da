# SPDX-License-Identifier: Apache-2.0
"""What the methods that score a reconstruction share: one training, one hold-out, one state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..batch import Batch, Scores
from ..progress import Progress
from ..training import LoopSettings, Recipe, seed_of
from ._base import ConfigError, Plan
from .image_store import ImageStore
from .normalise import black_outside
from .reconstruction_config import ReconstructionConfig
from .residuals import residual_map, top_means
from .timing import seconds_of
from .trained import Networks, TrainedMethod, Work, inside_means, key_of, parameters_of, told


class ReconstructionRecipe(Recipe):
    """A training whose learning rate falls to a tenth at shares of its steps; no validation.

    Args:
        config: of the method.
        networks: by name, on their device.
        store: the images.
    """

    def __init__(self, config: ReconstructionConfig, networks: Networks, store: ImageStore) -> None:
        self.networks, self.store = networks, store
        self.images = len(store)
        self._drops, self._steps = config.rate_drops, steps_of(config, self.images)

    def rate(self, step: int) -> float:
        return float(10.0 ** -sum(step >= share * self._steps for share in self._drops))


def steps_of(config: ReconstructionConfig, images: int) -> int:
    """How many steps a training on this many images has."""
    if config.max_epochs is None:
        return config.max_steps
    per_epoch = max(1, images // min(config.train_batch, max(1, images)))
    return min(config.max_steps, config.max_epochs * per_epoch)


def adam(config: ReconstructionConfig, nets: list[nn.Module], factor: float = 1.0) -> Any:
    """Adam with the config's numbers on all parameters of some networks."""
    return torch.optim.Adam(
        [p for net in nets for p in net.parameters()],
        config.learning_rate * factor,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )


def mean_inside(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``[b, c, h, w]`` over what a mask ``[b, h, w]`` contains of all images, a scalar."""
    if mask is None:
        return values.mean()
    weight = mask[:, None].to(values)
    return (values * weight).sum() / (weight.sum() * values.shape[1]).clamp_min(1)


def cut(image: Tensor, mask: Tensor | None) -> Tensor:
    """``[b, c, h, w]`` with 0 outside the mask ``[b, h, w]``."""
    return image if mask is None else image * mask[:, None].to(image)


class Reconstruction(TrainedMethod):
    """Learns to make healthy images again; scores what it makes differently.

    The weights kept are those of the last step: there is no validation. Batch normalisation has its
    running figures when images are scored, so that a score depends on its image alone.
    """

    Config: ClassVar[type[ReconstructionConfig]]
    config: ReconstructionConfig
    of_scoring: ClassVar[frozenset[str]] = frozenset(
        ("compare", "residual_blur", "residual_relative", "image_score", "top_fraction")
    )
    scoring: ClassVar[tuple[str, ...]]
    """Networks that scoring needs; the others are of the training alone."""

    # -- what each method says -------------------------------------------------------------------

    @abstractmethod
    def _networks(self, channels: int) -> Networks:
        """Fresh networks for images of so many channels, by name."""

    @abstractmethod
    def _recipe(
        self, nets: Networks, store: ImageStore, folder: Path | None, progress: Progress
    ) -> Recipe:
        """Its training; ``folder`` is this process's own, for work that should survive a kill."""

    @abstractmethod
    def _residual(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """Anomaly map ``[b, h, w]`` of images that are 0 outside the mask."""

    @abstractmethod
    def _trial(self, nets: Networks, image: Tensor) -> Tensor:
        """A scalar that costs about what a step on these images does, for the plan."""

    def _least_side(self) -> int:
        return int(2**self.config.depth)

    # -- learning --------------------------------------------------------------------------------

    def _learn(self, work: Work) -> None:
        c, kept = self.config, work.store
        with torch.random.fork_rng([]):
            torch.manual_seed(seed_of(c.seed, 0))
            nets = self._networks(kept.shape[0])
        key = key_of(self.name, c.model_dump(mode="json"), kept.ids)
        own = work.folder(key, f"process-{work.team.rank}")
        placed = {name: net.to(work.team.device) for name, net in nets.items()}
        shown = work.progress if work.team.leads else Progress()
        recipe = self._recipe(placed, kept, own, shown)
        settings = LoopSettings(
            batch_size=c.train_batch,
            max_steps=c.max_steps,
            max_epochs=c.max_epochs,
            clip=c.clip,
            precision=c.precision,
            seed=seed_of(c.seed, 1),
        )
        outcome = self._train(work, self.name, recipe, settings, work.folder(key, "training"))
        for name in self.scoring:
            nets[name].load_state_dict(outcome.weights[name])
            self._nets[name] = nets[name].to(self.device).eval()
        self.facts |= {
            "channels": kept.shape[0],
            "parameters": parameters_of(self._nets),
            **told(outcome),
        }

    def _prepared(self, batch: Batch) -> Batch:
        return black_outside(batch)

    def _check(self, store: ImageStore) -> None:
        super()._check(store)
        if min(store.shape[1:]) < self._least_side():
            raise ConfigError(
                f"images of {list(store.shape[1:])}: networks of depth={self.config.depth} need "
                f"sides of at least {self._least_side()}; lower depth or raise image_size"
            )

    # -- judging ---------------------------------------------------------------------------------

    def _judge(self, batch: Batch) -> Scores:
        c, mask = self.config, batch.mask
        scores = inside_means(self._residual(batch.image, mask), mask)
        if c.image_score == "mean" or scores.map is None:
            return scores
        return Scores(top_means(scores.map, mask, c.top_fraction), scores.map)

    def _apart(self, made: Tensor, image: Tensor, mask: Tensor | None, squared: bool) -> Tensor:
        """The map of what was made of an image, as the settings say."""
        c = self.config
        return residual_map(
            made,
            image,
            mask,
            squared=squared,
            compare=c.compare,
            blur=c.residual_blur,
            relative=c.residual_relative,
        )

    # -- keeping ---------------------------------------------------------------------------------

    def _unfilled(self, facts: Mapping[str, Any]) -> Networks:
        nets = self._networks(facts["channels"])
        return {name: nets[name] for name in self.scoring}

    def summary(self) -> str:
        return f"{self.facts['steps']} steps on {self.facts['images']} images"

    def plan(self, images: int, folds: int) -> Plan:
        c = self.config
        used = images - (images // folds if folds else 0)
        steps = steps_of(c, used)
        nets = {name: net.to(self.device) for name, net in self._networks(3).items()}
        few = min(c.train_batch, 2)
        x = torch.rand(few, 3, c.image_size, c.image_size, device=self.device)
        per_image = seconds_of(lambda: self._trial(nets, x).backward(), self.device) / few
        size, own = parameters_of(nets), {name: nets[name] for name in self.scoring}
        pixels = c.image_size**2
        # Convolutions and norms of each resolution on the way down and up are kept for the
        # gradient; resolutions below the first add as much again.
        activations = 4 * self.passes * c.train_batch * pixels * c.width * 24
        stored = 4 * used * 3 * pixels
        lines = (
            f"networks of {size} parameters in training, {parameters_of(own)} in the model",
            f"{steps} steps of {c.train_batch} images",
            f"{used} of {images} images to train on, the others for the thresholds",
        )
        return Plan(
            images=images,
            memory=min(stored, c.memory_budget) + activations + 20 * size + 2**29,
            disk=16 * size + max(0, stored - c.memory_budget),
            bundle=4 * parameters_of(own),
            seconds=steps * c.train_batch * per_image,
            lines=lines,
        )

    passes: ClassVar[int] = 1
    """Images that networks are given in a step, per image of the batch."""
