# SPDX-License-Identifier: Apache-2.0
"""The loop: steps, validation, early stopping, and checkpoints that resume exactly."""

from __future__ import annotations

import hashlib
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..progress import Progress, Task
from .checkpoint import (
    CheckpointError,
    load_checkpoint,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
)
from .records import History, Records
from .seeds import own_generators, seed_of
from .team import Team

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_ORDER, _STEP, _IMAGE, _VALIDATION = range(4)  # what a seed is for


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says what to change."""


@dataclass(frozen=True)
class LoopSettings:
    """How long, how much at a time, and what is kept.

    Attributes:
        batch_size: images per step, of all processes together.
        max_steps: the training ends there at the latest.
        max_epochs: likewise; ``None`` for no such end.
        patience: steps without a better validation after which it ends; ``None`` for never.
        validate_every: steps between validations; ``None`` for every epoch.
        validate_alike: every validation draws the same; else each draws anew.
        clip: largest norm of an optimiser's gradients, or ``None``.
        precision: of products, by autocast: ``float32``, ``bfloat16`` or ``float16`` (a GPU's).
        seed: of the order of the images and of everything random in a step.
        log_every: steps between rows of the record.
        save_every: seconds between checkpoints.
    """

    batch_size: int
    max_steps: int
    max_epochs: int | None = None
    patience: int | None = None
    validate_every: int | None = None
    validate_alike: bool = False
    clip: float | None = None
    precision: str = "float32"
    seed: int = 0
    log_every: int = 20
    save_every: float = 60.0


@dataclass
class Turn:
    """What a recipe is given for one step, or for one batch of a validation.

    Attributes:
        step: from 0; of a validation, the steps made so far.
        index: numbers of this process's images.
        seeds: one per image, for its augmentation: a function of the training's seed, the epoch
            (or validation) and the image alone.
        seed: what is drawn once for a batch: the same in every process.
        whole: how many images the batch has in all processes together.
        networks: ready to be called: on the device, and averaging gradients over processes.
        device: where the images have to be.
    """

    step: int
    index: tuple[int, ...]
    seeds: tuple[int, ...]
    seed: int
    whole: int
    networks: Mapping[str, nn.Module]
    device: torch.device
    _loop: _Loop = field(repr=False)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which networks are to be called."""
        return self._loop.autocast()

    def descend(self, loss: Tensor, optimizer: str) -> None:
        """One step of an optimiser down the gradient of a loss.

        What other losses have left in the gradients of its parameters is dropped first, so a
        recipe with several optimisers, such as a GAN's, calls this once for each.
        """
        self._loop.descend(loss, optimizer)


class Recipe(ABC):
    """What a method says of its training; :func:`train` does the rest.

    A step may not keep anything that is in no network and no optimiser: after a kill, those are
    what comes back. torch's generators are seeded before every step, in each process otherwise. For
    weights that do not depend on the number of processes a loss is a mean over images, each
    normalised by itself, and what is drawn is drawn from ``seeds`` and ``seed``.

    Attributes:
        networks: everything whose tensors make up the state, by name: trained, frozen, or a moving
            average that ``step`` updates.
        optimizers: by name; their learning rates are those at factor 1.
        images: how many there are to train on.
        val_images: how many to validate on; 0 for no validation.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    images: int
    val_images: int = 0

    @abstractmethod
    def step(self, turn: Turn) -> Mapping[str, Tensor]:
        """Learn from one batch; returns losses, scalars by name, for the record."""

    def rate(self, step: int) -> float:
        """Factor of all learning rates at a step."""
        return 1.0

    def validate(self, turn: Turn) -> Mapping[str, Tensor]:
        """Sums over the images of ``turn``, by name; the lowest mean ``loss`` is the best.

        Called under ``no_grad`` with the networks in evaluation mode.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Outcome:
    """A finished training.

    Attributes:
        weights: tensors of each network by name, on the CPU: of the best validation, or of the
            last step where there was none.
        history: see :data:`History`.
        steps: how many were made.
        best_step: the steps made when the kept weights were; ``best_loss`` is their validation's,
            NaN without one.
        ended: why: ``max_steps``, ``max_epochs`` or ``patience``.
        seconds: of training, all calls together.
    """

    weights: dict[str, dict[str, Tensor]]
    history: History
    steps: int
    best_step: int
    best_loss: float
    ended: str
    seconds: float


def train(
    recipe: Recipe,
    settings: LoopSettings,
    team: Team,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
    name: str = "train",
) -> Outcome:
    """Train until the steps are made or validation has stopped getting better.

    With a folder, the state is written there every so often and after validations, and a call with
    the same folder goes on from it: on the same machine and with as many threads, the weights end
    bit for bit as those of a training that nothing interrupted. Nothing random outlives a step:
    order, augmentation and torch's generators are seeded by the number of the step or image.

    Args:
        recipe: what is trained, and how.
        settings: of the loop.
        team: the processes that train together.
        folder: for checkpoints, ``log.csv`` and TensorBoard's events.
        progress: shows steps, losses and the time left.
        name: of the stage that is shown.

    Raises:
        TrainingError: a loss that is not finite; a batch that the processes cannot share evenly.
        CheckpointError: the folder holds something else.
    """
    with own_generators(team.device):
        return _Loop(recipe, settings, team, folder).run(progress or Progress(), name)


class _Loop:
    def __init__(
        self, recipe: Recipe, settings: LoopSettings, team: Team, folder: Path | None
    ) -> None:
        if settings.batch_size % team.size:
            raise TrainingError(
                f"batch_size={settings.batch_size} cannot be shared by {team.size} processes; "
                "use a multiple"
            )
        self.recipe, self.settings, self.team, self.folder = recipe, settings, team, folder
        self.batch = min(settings.batch_size, recipe.images // team.size * team.size)
        if not self.batch:
            raise TrainingError(f"{recipe.images} images are too few for {team.size} processes")
        self.steps_per_epoch = recipe.images // self.batch
        self.networks = team.share(recipe.networks)
        for optimizer in recipe.optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        self.scaler = torch.amp.GradScaler(
            team.device.type, enabled=settings.precision == "float16"
        )
        self.step = self.best_step = 0
        self.best_loss, self.seconds = math.inf, 0.0
        self.best: dict[str, Tensor] = {}
        self.rows: History = []
        self.means: dict[str, list[Tensor]] = {}
        self.order: tuple[int, np.ndarray] | None = None

    # -- what recipes call -----------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = _DTYPES.get(self.settings.precision)
        return torch.autocast(self.team.device.type, dtype, enabled=dtype is not None)

    def descend(self, loss: Tensor, name: str) -> None:
        optimizer = self.recipe.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        self.team.backward(self.scaler.scale(loss))
        if self.settings.clip is not None:
            self.scaler.unscale_(optimizer)
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], self.settings.clip)
        self.scaler.step(optimizer)
        self.scaler.update()

    # -- the run ---------------------------------------------------------------------------------

    def run(self, progress: Progress, name: str) -> Outcome:
        s = self.settings
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._file.exists():
                self._load()
            self.team.wait()  # nobody writes before all have read
        records = Records(self.folder if self.team.leads else None, self.rows)
        began = saved = time.monotonic()
        before = self.seconds
        shown = progress if self.team.leads else Progress()
        try:
            with shown.task(name, self._most(), "steps") as task:
                task.advance(self.step, **self._said())
                while not (ended := self._ended()):
                    self._train_one(records, task)
                    validated = self._due() and self._validate(records)
                    self.seconds = before + time.monotonic() - began
                    if validated or time.monotonic() - saved >= s.save_every:
                        self._save()
                        saved = time.monotonic()
                if self.means:
                    self._record(records)
                    task.advance(0, **self._said())
                self.team.agree(self.recipe.networks)
                self._save()
        finally:
            records.close()
        weights = self.best or self._weights()
        return Outcome(
            weights={
                name: {
                    key: weights[f"{name}/{key}"].detach().cpu().clone() for key in net.state_dict()
                }
                for name, net in self.recipe.networks.items()
            },
            history=self.rows,
            steps=self.step,
            best_step=self.best_step if self.best else self.step,
            best_loss=self.best_loss if self.best else math.nan,
            ended=ended,
            seconds=self.seconds,
        )

    def _most(self) -> int:
        """Steps after which it is over, if not before."""
        s = self.settings
        epochs = math.inf if s.max_epochs is None else s.max_epochs * self.steps_per_epoch
        return int(min(s.max_steps, epochs))

    def _ended(self) -> str:
        """Why it is over, or nothing."""
        s = self.settings
        if self.step >= self._most():
            return "max_steps" if self.step >= s.max_steps else "max_epochs"
        stale = s.patience is not None and self.step > self.best_step + s.patience
        if stale and self.recipe.val_images:
            return "patience"
        return ""

    def _train_one(self, records: Records, task: Task) -> None:
        factor = self.recipe.rate(self.step)
        for optimizer in self.recipe.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        torch.manual_seed(seed_of(self.settings.seed, _STEP, self.step, self.team.rank))
        losses = self.recipe.step(self._turn())
        for name, loss in losses.items():
            self.means.setdefault(name, []).append(loss.detach())
        self.step += 1
        if self.step % self.settings.log_every == 0:
            self._record(records)
            task.advance(1, **self._said())
        else:
            task.advance(1)

    def _turn(self) -> Turn:
        """This process's share of the next batch: in a random order, new in every epoch."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if self.order is None or self.order[0] != epoch:
            rng = np.random.default_rng(seed_of(self.settings.seed, _ORDER, epoch))
            self.order = epoch, rng.permutation(self.recipe.images)
        whole = self.order[1][place * self.batch : (place + 1) * self.batch]
        return self._given(_IMAGE, epoch, whole, self.networks)

    def _given(
        self, purpose: int, number: int, whole: np.ndarray, networks: Mapping[str, nn.Module]
    ) -> Turn:
        """This process's share of a batch; of one that does not divide evenly, maybe nothing."""
        seeds = [seed_of(self.settings.seed, purpose, number, int(i)) for i in whole]
        mine = range(self.team.rank, len(whole), self.team.size)
        return Turn(
            step=self.step,
            index=tuple(int(whole[i]) for i in mine),
            seeds=tuple(seeds[i] for i in mine),
            seed=seeds[0],
            whole=len(whole),
            networks=networks,
            device=self.team.device,
            _loop=self,
        )

    def _record(self, records: Records) -> None:
        """A row of mean losses since the last one; here the device is waited for."""
        mine = {
            name: float(torch.stack(values).float().mean()) for name, values in self.means.items()
        }
        self.means = {}
        everyones = self.team.gather(mine)
        means = {name: sum(one[name] for one in everyones) / len(everyones) for name in mine}
        self._add(records, {"lr": self._lr(), **means})

    def _add(self, records: Records, figures: dict[str, float]) -> None:
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"{', '.join(bad)} is not finite at step {self.step}: lower the learning rate, "
                "clip gradients, or train in float32"
            )
        where = {"step": self.step, "epoch": self.step / self.steps_per_epoch}
        records.add({**where, **figures})

    def _lr(self) -> float:
        """The learning rate of the first optimiser."""
        return float(next(iter(self.recipe.optimizers.values())).param_groups[0]["lr"])

    def _said(self) -> dict[str, str]:
        """The newest of every figure, for the display."""
        newest: dict[str, float] = {}
        for row in self.rows[-50:]:
            newest.update(row)
        return {k: f"{v:.4g}" for k, v in newest.items() if k not in ("step", "epoch", "lr")}

    # -- validation ------------------------------------------------------------------------------

    def _due(self) -> bool:
        if not self.recipe.val_images:
            return False
        every = self.settings.validate_every or self.steps_per_epoch
        return self.step % every == 0 or bool(self._ended())

    @torch.no_grad()
    def _validate(self, records: Records) -> bool:
        """Validate on the networks themselves: the wrapped ones wait for each other in every call,
        and one process may have a batch less than another.
        """
        team, networks, total = self.team, self.recipe.networks, self.recipe.val_images
        team.agree(networks)
        sums: dict[str, float] = {}
        training = {name: net.training for name, net in self.networks.items()}
        for net in self.networks.values():
            net.eval()
        number = 0 if self.settings.validate_alike else self.step
        torch.manual_seed(seed_of(self.settings.seed, _VALIDATION, number, team.rank))
        for first in range(0, total, self.settings.batch_size):
            whole = np.arange(first, min(first + self.settings.batch_size, total))
            turn = self._given(_VALIDATION, number, whole, networks)
            if turn.index:
                for name, value in self.recipe.validate(turn).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        for name, net in self.networks.items():
            net.train(training[name])
        everyones = team.gather(sums)
        row = {}
        for name in everyones[0]:
            mean = sum(one.get(name, 0.0) for one in everyones) / total
            row["val" if name == "loss" else f"val_{name}"] = mean
        self._add(records, row)
        if row["val"] < self.best_loss:
            self.best_loss, self.best_step = row["val"], self.step
            self.best = {k: v.detach().cpu().clone() for k, v in self._weights().items()}
        return True

    # -- checkpoints -----------------------------------------------------------------------------

    @property
    def _file(self) -> Path:
        assert self.folder is not None
        return self.folder / "checkpoint.safetensors"

    def _weights(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value
            for name, net in self.recipe.networks.items()
            for key, value in net.state_dict().items()
        }

    def _key(self) -> str:
        """What a checkpoint has to have been made with."""
        s = asdict(self.settings)
        of_no_weight = ("max_steps", "max_epochs", "patience", "log_every", "save_every")
        made = {k: v for k, v in s.items() if k not in of_no_weight}
        made |= {"images": self.recipe.images, "val_images": self.recipe.val_images}
        made |= {"processes": self.team.size}
        made |= {"shapes": {k: list(v.shape) for k, v in self._weights().items()}}
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]

    def _save(self) -> None:
        if self.folder is None or not self.team.leads:
            return
        tensors = {f"net/{k}": v for k, v in self._weights().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        tensors |= {
            f"mean/{name}/{i}": value
            for name, values in self.means.items()
            for i, value in enumerate(values)
        }
        optimizers = {}
        for name, optimizer in self.recipe.optimizers.items():
            found, optimizers[name] = optimizer_state(f"optimizer/{name}", optimizer)
            tensors |= found
        facts = {
            "key": self._key(),
            "step": self.step,
            "best_step": self.best_step,
            "best_loss": self.best_loss if self.best else None,
            "seconds": self.seconds,
            "history": self.rows,
            "means": {name: len(values) for name, values in self.means.items()},
            "optimizers": optimizers,
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(self._file, tensors, facts)

    def _load(self) -> None:
        tensors, facts = load_checkpoint(self._file)
        if facts["key"] != self._key():
            raise CheckpointError(
                f"{self._file} is of a training with other settings, images or number of "
                "processes; remove it, and training starts again"
            )
        for name, net in self.recipe.networks.items():
            start = f"net/{name}/"
            net.load_state_dict(
                {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            )
        for name, optimizer in self.recipe.optimizers.items():
            restore_optimizer(f"optimizer/{name}", optimizer, tensors, facts["optimizers"][name])
        if facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        self.best = {k.removeprefix("best/"): v for k, v in tensors.items() if k[:5] == "best/"}
        self.step, self.best_step = facts["step"], facts["best_step"]
        self.best_loss = math.inf if facts["best_loss"] is None else facts["best_loss"]
        self.seconds, self.rows = facts["seconds"], facts["history"]
        self.means = {
            name: [tensors[f"mean/{name}/{i}"].to(self.team.device) for i in range(n)]
            for name, n in facts["means"].items()
        }
