# SPDX-License-Identifier: Apache-2.0
"""What the methods that score a reconstruction share: one training, one hold-out, one state."""

from __future__ import annotations

import hashlib
import json
import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..batch import Batch, Scores
from ..progress import Progress
from ..training import (
    History,
    LoopSettings,
    Outcome,
    Recipe,
    Team,
    as_csv,
    draw_curves,
    seed_of,
    train,
)
from ._base import ConfigError, Method, Plan, State, spread
from .holding_out import held_out, kept_and_apart
from .image_store import ImageStore
from .normalise import black_outside
from .portions import Portion, in_portions
from .reconstruction_config import ReconstructionConfig

Networks = dict[str, nn.Module]


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


class Reconstruction(Method):
    """Learns to make healthy images again; scores what it makes differently.

    The weights kept are those of the last step: there is no validation. For thresholds, where no
    split ``val`` is given, one fold of the healthy images is left out of training: refits of every
    fold would take as many times as long. Our design. Batch normalisation has its running figures
    when images are scored, so that a score depends on its image alone.
    """

    trains: ClassVar[bool] = True
    reading: ClassVar[str] = "images"
    Config: ClassVar[type[ReconstructionConfig]]
    config: ReconstructionConfig
    scoring: ClassVar[tuple[str, ...]]
    """Networks that scoring needs; the others are of the training alone."""

    def __init__(self, config: Any, *, weights: str | Path | None = None) -> None:
        super().__init__(config, weights=weights)
        if weights is not None:
            raise ConfigError(f"{self.name} has no pretrained backbone; leave out weights")
        self._nets: Networks = {}
        self._images = Portion("images")
        self._history: History = []
        self.facts: dict[str, Any] = {}

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
        """Train; of ``folds`` the lowest is held out. See ``Method.fit``.

        Raises:
            ConfigError: too few images, images that are all the same, or that are too small.
            TrainingError: training failed.
        """
        c, shown = self.config, progress or Progress()
        team = Team(self.device)
        self.to(team.device)
        kept, apart = kept_and_apart(train, folds, c.memory_budget, black_outside)
        self._check(kept)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed_of(c.seed, 0))
            nets = self._networks(kept.shape[0])
        work = None if scratch is None else scratch / self._key(kept)
        own = None if work is None else work / f"process-{team.rank}"
        placed = {name: net.to(team.device) for name, net in nets.items()}
        recipe = self._recipe(placed, kept, own, shown if team.leads else Progress())
        outcome = self._train(recipe, team, work, shown)
        for name, net in nets.items():
            net.load_state_dict(outcome.weights[name])
        self._take(nets, outcome, kept, len(apart))
        self.held_out_ = held_out(apart, self._judge, self.device) if len(apart) else None
        return self

    def _check(self, store: ImageStore) -> None:
        if not len(store):
            raise ConfigError("no healthy image to learn from")
        if len(store) == 1:
            raise ConfigError(
                "one healthy image to learn from; a network would learn it by heart: give at least "
                "a few dozen, or use folds=0 where so few are left because one is held out"
            )
        if store.all_alike():
            raise ConfigError(
                f"the {len(store)} healthy images are all the same; give different ones"
            )
        if len(store.shape) != 3:
            raise ConfigError(f"{self.name} takes images, not volumes of {list(store.shape[1:])}")
        if min(store.shape[1:]) < self._least_side():
            raise ConfigError(
                f"images of {list(store.shape[1:])}: networks of depth={self.config.depth} need "
                f"sides of at least {self._least_side()}; lower depth or raise image_size"
            )

    def _train(self, recipe: Recipe, team: Team, work: Path | None, shown: Progress) -> Outcome:
        c = self.config
        return train(
            recipe,
            LoopSettings(
                batch_size=c.train_batch,
                max_steps=c.max_steps,
                max_epochs=c.max_epochs,
                clip=c.clip,
                precision=c.precision,
                seed=seed_of(c.seed, 1),
            ),
            team,
            folder=None if work is None else work / "training",
            progress=shown,
            name=self.name,
        )

    def _take(self, nets: Networks, outcome: Outcome, kept: ImageStore, apart: int) -> None:
        self._nets = {name: nets[name].to(self.device).eval() for name in self.scoring}
        self._history = outcome.history
        self.facts = {
            "images": len(kept),
            "held_out": apart,
            "channels": kept.shape[0],
            "parameters": _parameters(self._nets),
            "steps": outcome.steps,
            "ended": outcome.ended,
            "seconds": round(outcome.seconds, 1),
        }

    def _key(self, store: ImageStore) -> str:
        """Names the scratch folder: work of other settings or images is not gone on with."""
        what = [self.name, self.config.model_dump(mode="json"), store.ids]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    # -- judging ---------------------------------------------------------------------------------

    def score(self, batch: Batch) -> Scores:
        """Residuals of the reconstruction, and their mean inside the mask; see ``Method.score``."""
        if not self._nets:
            raise RuntimeError(f"{self.name} is not fitted; call fit, or load a bundle")
        parts = in_portions(lambda part: self._judge(batch[part]), len(batch), self._images)
        maps = [part.map for part in parts if part.map is not None]
        return Scores(torch.cat([part.image for part in parts]), torch.cat(maps))

    @torch.no_grad()
    def _judge(self, batch: Batch) -> Scores:
        image = batch.image.to(self.device, non_blocking=True)
        mask = None if batch.mask is None else batch.mask.to(self.device, non_blocking=True)
        full = self._residual(cut(image, mask), mask)
        if mask is None:
            return Scores(full.flatten(1).mean(1), full)
        inside = full.masked_fill(~mask, 0).flatten(1).sum(1)
        return Scores(inside / mask.flatten(1).sum(1).clamp_min(1), spread(full, mask))

    # -- keeping ---------------------------------------------------------------------------------

    def state(self) -> State:
        weights = {
            f"{name}/{key}": value.cpu()
            for name, net in self._nets.items()
            for key, value in net.state_dict().items()
        }
        return State(weights, {}, self.facts)

    @classmethod
    def from_state(cls, config: Any, state: State) -> Self:
        self = cls(config)
        self.facts = state.facts
        nets = self._networks(state.facts["channels"])
        for name in self.scoring:
            start = f"{name}/"
            nets[name].load_state_dict(
                {k.removeprefix(start): v for k, v in state.weights.items() if k.startswith(start)}
            )
            self._nets[name] = nets[name].eval()
        return self

    def files(self) -> dict[str, bytes]:
        if not self._history:
            return {}
        return {
            "training.csv": as_csv(self._history).encode(),
            "training.svg": draw_curves({self.name: self._history}).encode(),
        }

    def summary(self) -> str:
        return f"{self.facts['steps']} steps on {self.facts['images']} images"

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        for net in self._nets.values():
            net.to(self.device)
        return self

    def plan(self, images: int, folds: int) -> Plan:
        c = self.config
        used = images - (images // folds if folds else 0)
        steps = steps_of(c, used)
        nets = {name: net.to(self.device) for name, net in self._networks(3).items()}
        few = min(c.train_batch, 2)
        x = torch.rand(few, 3, c.image_size, c.image_size, device=self.device)
        best = math.inf
        for _ in range(2):
            began = time.perf_counter()
            self._trial(nets, x).backward()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            best = min(best, time.perf_counter() - began)
        size, own = _parameters(nets), {name: nets[name] for name in self.scoring}
        pixels = c.image_size**2
        # Convolutions and norms of each resolution on the way down and up are kept for the
        # gradient; resolutions below the first add as much again.
        activations = 4 * self.passes * c.train_batch * pixels * c.width * 24
        stored = 4 * used * 3 * pixels
        lines = (
            f"networks of {size} parameters in training, {_parameters(own)} in the model",
            f"{steps} steps of {c.train_batch} images",
            f"{used} of {images} images to train on, the others for the thresholds",
        )
        return Plan(
            images=images,
            memory=min(stored, c.memory_budget) + activations + 20 * size + 2**29,
            disk=16 * size + max(0, stored - c.memory_budget),
            bundle=4 * _parameters(own),
            seconds=steps * best / few * c.train_batch,
            lines=lines,
        )

    passes: ClassVar[int] = 1
    """Images that networks are given in a step, per image of the batch."""


def _parameters(nets: Networks) -> int:
    return sum(p.numel() for net in nets.values() for p in net.parameters())
