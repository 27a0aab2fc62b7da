# SPDX-License-Identifier: Apache-2.0
"""Many tasks make light work: networks cross-validated over synthetic tasks."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch, Scores
from ..nets import UNet
from ..progress import Progress
from ..synthetic import embedded_external
from ..training import (
    History,
    LoopSettings,
    Outcome,
    Team,
    as_csv,
    draw_curves,
    seed_of,
    train,
)
from ._base import ConfigError, HeldOut, Method, Plan, State, spread
from .holding_out import held_out, kept_and_apart
from .image_store import ImageStore
from .many_tasks_config import PRESETS, ManyTasksConfig
from .normalise import normalised
from .portions import Portion, in_portions
from .task_folds import TaskFold, task_folds
from .task_training import TaskRecipe

_LEAST_SIDE = 16  # of the tasks


class ManyTasks(Method):
    """Segments synthetic anomalies; each model validates on kinds of them that it never saw.

    Source: Baugh, Tan, Müller, Dombrowski, Batten, Kainz: "Many tasks make light work: learning to
    localise medical anomalies from multiple synthetic tasks", MICCAI 2023, with the details of
    its public code (METHODS.md C). Images have two or three axes.

    The weights kept are those of the best validation. Scores are raw outputs, averaged over the
    models: about 0 where nothing is abnormal, about 1 where much is, and not clipped. The image's
    is the mean over the pixels (inside the mask). For thresholds, where no split ``val`` is given,
    one fold of the healthy images is left out of training and validation altogether: refits of
    every fold, as the memory banks do, would take as many times as long. Our design.

    Presets: ``paper-cxr`` and ``paper-brain`` are the published settings; ``paper`` is the first of
    them. ``default`` is a smaller network for fewer steps, ``quick`` a first look in minutes on two
    cores, both our choice. ``fpi``, ``pii`` and ``nsa`` are ``default`` with one model that trains
    on that older method's task alone.
    """

    name: ClassVar[str] = "manytasks"
    trains: ClassVar[bool] = True
    takes_external: ClassVar[bool] = True
    reading: ClassVar[str] = "images"
    meaning: ClassVar[str] = (
        "Scores are the mean of the networks' raw outputs, about 0 for healthy and 1 for abnormal "
        "pixels, not clamped"
    )
    Config: ClassVar[type[ManyTasksConfig]] = ManyTasksConfig
    config: ManyTasksConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    def __init__(self, config: ManyTasksConfig, *, weights: str | Path | None = None) -> None:
        super().__init__(config, weights=weights)
        if weights is not None:
            raise ConfigError(f"{self.name} has no pretrained backbone; leave out weights")
        self._nets: dict[int, UNet] = {}
        self._images = Portion("images")
        self._histories: dict[str, History] = {}
        self.facts: dict[str, Any] = {}

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
        """Train the models one after the other.

        ``external`` are images of another kind for the task ``inter``; without them it takes
        everyday pictures in 2-D, and images of parts that the model does not train on in 3-D. Of
        ``folds`` the lowest is held out; ``val`` is not used. See ``Method.fit``.

        Raises:
            ConfigError: too few images, images that are all the same, or that are too small.
            TrainingError: training failed.
        """
        c = self.config
        team = Team(self.device)
        self.to(team.device)
        kept, apart = kept_and_apart(train, folds, c.memory_budget, self._prepared)
        self._check(kept)
        foreign = self._foreign(external, kept.shape)
        scheme = task_folds(c.tasks, c.train_tasks, len(kept))
        self._nets, self._histories, models = {}, {}, []
        for fold in scheme if c.models is None else [scheme[number] for number in c.models]:
            outcome = self._train(fold, kept, foreign, team, scratch, progress)
            net = self._net(kept.shape)
            net.load_state_dict(outcome.weights["net"])
            self._nets[fold.number] = net.to(self.device).eval()
            self._histories[_title(fold)] = outcome.history
            models.append(_told(fold, outcome))
        self.facts = {
            "images": len(kept),
            "held_out": len(apart),
            "shape": list(kept.shape),
            "parameters": sum(p.numel() for p in next(iter(self._nets.values())).parameters()),
            "external": self._said_of(external, kept.shape),
            "models": models,
        }
        self.held_out_ = self._hold_out(apart) if len(apart) else None
        return self

    def _prepared(self, batch: Batch) -> Batch:
        return Batch(self._normalised(batch.image, batch.mask), batch.id, batch.mask)

    def _normalised(self, image: Tensor, mask: Tensor | None) -> Tensor:
        return normalised(image, mask, self.config.normalise)

    def _check(self, store: ImageStore) -> None:
        if not len(store):
            raise ConfigError("no healthy image to learn from")
        if len(store) == 1:
            raise ConfigError(
                "one healthy image to learn from; the tasks take from one image to put into "
                "another: give at least a few dozen"
            )
        if store.all_alike():
            raise ConfigError(
                f"the {len(store)} healthy images are all the same; give different ones"
            )
        least = max(self._net(store.shape).least_side(), _LEAST_SIDE)
        if min(store.shape[1:]) < least:
            raise ConfigError(
                f"images of {list(store.shape[1:])}: the tasks and a network of "
                f"depth={self.config.depth} need sides of at least {least}; lower depth or raise "
                "image_size"
            )

    def _net(self, shape: tuple[int, ...]) -> UNet:
        c = self.config
        return UNet(
            shape[0],
            len(shape) - 1,
            width=c.width,
            depth=c.depth,
            cap=c.widest,
            positions=c.positions,
        )

    def _foreign(
        self, external: Iterable[Batch] | None, shape: tuple[int, ...]
    ) -> ImageStore | None:
        """Images of another kind, or ``None`` where they come from the other parts."""
        if "inter" not in self.config.tasks:
            return None
        store = ImageStore(self.config.memory_budget)
        if external is not None:
            for batch in external:
                store.add(self._prepared(batch))
            if len(store) and (len(store.shape), store.shape[0]) != (len(shape), shape[0]):
                raise ConfigError(
                    f"external images of shape {list(store.shape)}, healthy ones of {list(shape)}: "
                    "want as many channels and axes"
                )
        elif len(shape) == 3:
            equalise = self.config.intensity == "equalise"
            pictures = embedded_external(
                (shape[1], shape[2]), shape[0], value_range=(0, 1), equalise=equalise
            )
            ids = tuple(f"picture {i}" for i in range(len(pictures)))
            store.add(Batch(self._normalised(pictures, None), ids))
        else:
            warnings.warn(
                "no external volumes for the task inter: it takes from healthy volumes that the "
                "model does not train on; give external to take from another kind",
                RuntimeWarning,
                stacklevel=3,
            )
        return store if len(store) else None

    def _said_of(self, external: Iterable[Batch] | None, shape: tuple[int, ...]) -> str:
        if "inter" not in self.config.tasks:
            return "none needed"
        if external is not None:
            return "given"
        if len(shape) == 3:
            return "everyday pictures of scikit-image"
        return "healthy volumes that the model does not train on (none of another kind were given)"

    def _train(
        self,
        fold: TaskFold,
        store: ImageStore,
        foreign: ImageStore | None,
        team: Team,
        scratch: Path | None,
        progress: Progress | None,
    ) -> Outcome:
        c = self.config
        with torch.random.fork_rng([]):
            torch.manual_seed(seed_of(c.seed, fold.number))
            net = self._net(store.shape)
        return train(
            TaskRecipe(c, net.to(team.device), fold, store, foreign),
            LoopSettings(
                batch_size=c.train_batch,
                max_steps=c.max_steps,
                max_epochs=c.max_epochs,
                patience=c.patience,
                validate_every=c.validate_every,
                validate_alike=c.validate_alike,
                clip=c.clip,
                precision=c.precision,
                seed=seed_of(c.seed, fold.number, 1),
            ),
            team,
            folder=None if scratch is None else scratch / self._key(store) / f"model-{fold.number}",
            progress=progress,
            name=_title(fold),
        )

    def _key(self, store: ImageStore) -> str:
        """Names the scratch folder: work of other settings or images is not gone on with."""
        what = [self.config.model_dump(mode="json", exclude={"models"}), store.ids]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    def _hold_out(self, store: ImageStore) -> HeldOut:
        unseen = "no model was trained or validated on"
        return held_out(store, lambda one: self._judge(one.image, one.mask), self.device, unseen)

    # -- judging ---------------------------------------------------------------------------------

    def score(self, batch: Batch) -> Scores:
        """Mean of the models' raw outputs; see ``Method.score``. Source: METHODS.md C.6."""
        if not self._nets:
            raise RuntimeError(f"{self.name} is not fitted; call fit, or load a bundle")
        parts = in_portions(lambda part: self._score(batch[part]), len(batch), self._images)
        maps = [part.map for part in parts if part.map is not None]
        return Scores(torch.cat([part.image for part in parts]), torch.cat(maps))

    def _score(self, batch: Batch) -> Scores:
        image = batch.image.to(self.device, non_blocking=True)
        mask = None if batch.mask is None else batch.mask.to(self.device, non_blocking=True)
        return self._judge(self._normalised(image, mask), mask)

    @torch.no_grad()
    def _judge(self, image: Tensor, mask: Tensor | None) -> Scores:
        """Scores of normalised images."""
        total = torch.zeros_like(image[:, 0])
        for net in self._nets.values():
            total += net(image)[:, 0]
        full = total / len(self._nets)
        if mask is None:
            return Scores(full.flatten(1).mean(1), full)
        inside = full.masked_fill(~mask, 0).flatten(1).sum(1)
        return Scores(inside / mask.flatten(1).sum(1).clamp_min(1), spread(full, mask))

    def only(self, *numbers: int) -> Self:
        """The same method with some of its models alone, by their numbers.

        Raises:
            ConfigError: a model that is not there.
        """
        missing = [n for n in numbers if n not in self._nets]
        if missing or not numbers:
            raise ConfigError(f"no model {missing}; there are {', '.join(map(str, self._nets))}")
        settings = {**self.config.model_dump(), "models": numbers}
        some = type(self)(self.Config(**settings)).to(self.device)
        some._nets = {n: self._nets[n] for n in numbers}
        models = [m for m in self.facts["models"] if m["number"] in numbers]
        some.facts = {**self.facts, "models": models}
        return some

    # -- keeping ---------------------------------------------------------------------------------

    def state(self) -> State:
        weights = {
            f"{number}/{key}": value.cpu()
            for number, net in self._nets.items()
            for key, value in net.state_dict().items()
        }
        return State(weights, {}, self.facts)

    @classmethod
    def from_state(cls, config: Any, state: State) -> Self:
        self = cls(config)
        self.facts = state.facts
        for model in state.facts["models"]:
            start = f"{model['number']}/"
            net = self._net(tuple(state.facts["shape"]))
            net.load_state_dict(
                {k.removeprefix(start): v for k, v in state.weights.items() if k.startswith(start)}
            )
            self._nets[model["number"]] = net.eval()
        return self

    def files(self) -> dict[str, bytes]:
        rows = [
            {"model": name, **row} for name, history in self._histories.items() for row in history
        ]
        if not rows:
            return {}
        return {
            "training.csv": as_csv(rows).encode(),
            "training.svg": draw_curves(self._histories).encode(),
        }

    def summary(self) -> str:
        models = self.facts["models"]
        steps = ", ".join(str(m["best_step"]) for m in models)
        return f"{len(models)} models, best after {steps} steps"

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        for net in self._nets.values():
            net.to(self.device)
        return self

    def plan(self, images: int, folds: int) -> Plan:
        c = self.config
        used = images - (images // folds if folds else 0)
        scheme = task_folds(c.tasks, c.train_tasks, used)
        wanted = scheme if c.models is None else [scheme[i] for i in c.models]
        number, most = len(wanted), c.max_epochs or c.max_steps
        epochs = [max(1, len(fold.train) // c.train_batch) for fold in wanted]
        steps = [min(c.max_steps, most * epoch) for epoch in epochs]
        shape = (
            (1, *c.volume)
            if c.volume
            else (1 if c.channels == "grey" else 3, c.image_size, c.image_size)
        )
        net = self._net(shape).to(self.device)
        size = sum(p.numel() for p in net.parameters())
        few = min(c.train_batch, 2)
        x = torch.zeros(few, *shape, device=self.device)
        net(x).mean().backward()
        began = time.perf_counter()
        net(x).mean().backward()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        per_step = (time.perf_counter() - began) / few * c.train_batch
        pixels = int(np.prod(shape[1:]))
        # Two convolutions, norms and activations per resolution on the way down and up, each kept
        # for the gradient; resolutions below the first add a half.
        activations = 4 * c.train_batch * pixels * c.width * 24
        lines = (
            f"{number} models of {size} parameters, at most {max(steps)} steps of "
            f"{c.train_batch} images each",
            f"{used} of {images} images to train and validate on, the others for the thresholds",
            "the time is of all steps without the synthetic anomalies; a model that gets no better "
            "ends before",
        )
        in_memory = min(4 * used * shape[0] * pixels, c.memory_budget)
        return Plan(
            images=images,
            memory=in_memory + activations + 20 * size + 2**29,
            disk=4 * number * size * 4 + max(0, 4 * used * shape[0] * pixels - c.memory_budget),
            bundle=4 * number * size,
            seconds=sum(steps) * per_step,
            lines=lines,
        )


def _title(fold: TaskFold) -> str:
    return f"model {fold.number}: {'+'.join(fold.train_tasks)}"


def _told(fold: TaskFold, outcome: Outcome) -> dict[str, Any]:
    return {
        "number": fold.number,
        "train_tasks": list(fold.train_tasks),
        "val_tasks": list(fold.val_tasks),
        "train_images": len(fold.train),
        "val_images": len(fold.val),
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "best_val": outcome.best_loss,
        "ended": outcome.ended,
        "seconds": round(outcome.seconds, 1),
    }
