# SPDX-License-Identifier: Apache-2.0
"""Many tasks make light work: networks cross-validated over synthetic tasks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch

from ..batch import Batch, Scores
from ..nets import UNet
from ..synthetic import embedded_external
from ..training import LoopSettings, Outcome, seed_of
from ._base import ConfigError, Plan
from .image_store import ImageStore
from .many_tasks_config import PRESETS, ManyTasksConfig
from .normalise import normalised
from .task_folds import TaskFold, task_folds
from .task_training import TaskRecipe
from .timing import seconds_of
from .trained import Networks, TrainedMethod, Work, inside_means, key_of, parameters_of, told

_LEAST_SIDE = 16  # of the tasks


class ManyTasks(TrainedMethod):
    """Segments synthetic anomalies; each model validates on kinds of them that it never saw.

    Source: Baugh, Tan, Müller, Dombrowski, Batten, Kainz: "Many tasks make light work: learning to
    localise medical anomalies from multiple synthetic tasks", MICCAI 2023, with the details of
    its public code (METHODS.md C). Images have two or three axes.

    The weights kept are those of the best validation. Scores are raw outputs, averaged over the
    models: about 0 where nothing is abnormal, about 1 where much is, and not clipped. The image's
    is the mean over the pixels (inside the mask). Images for thresholds are left out of validation
    too.

    ``external`` are images of another kind for the task ``inter``; without them it takes everyday
    pictures in 2-D, and images of parts that the model does not train on in 3-D.

    Presets: ``paper-cxr`` and ``paper-brain`` are the published settings; ``paper`` is the first of
    them. ``default`` is a smaller network for fewer steps, ``quick`` a first look in minutes on two
    cores, ``small-cxr`` and ``small-brain`` what the tables of docs/training.md are of: our choice.
    ``fpi``, ``pii`` and ``nsa`` are ``default`` with one model that trains on that older method's
    task alone.
    """

    name: ClassVar[str] = "manytasks"
    takes_external: ClassVar[bool] = True
    unseen: ClassVar[str] = "no model was trained or validated on"
    axes: ClassVar[tuple[int, ...]] = (2, 3)
    why_more: ClassVar[str] = "the tasks take from one image to put into another"
    called: ClassVar[str | None] = "model"
    meaning: ClassVar[str] = (
        "Scores are the mean of the networks' raw outputs, about 0 for healthy and 1 for abnormal "
        "pixels, not clamped"
    )
    Config: ClassVar[type[ManyTasksConfig]] = ManyTasksConfig
    config: ManyTasksConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    # -- learning --------------------------------------------------------------------------------

    def _learn(self, work: Work) -> None:
        """Train the models one after the other."""
        kept = work.store
        foreign = self._foreign(work.external, kept.shape)
        models = []
        for fold in self._wanted(len(kept)):
            outcome = self._train_model(fold, foreign, work)
            net = self._net(kept.shape)
            net.load_state_dict(outcome.weights["net"])
            self._nets[str(fold.number)] = net.to(self.device).eval()
            models.append(_told(fold, outcome))
        self.facts |= {
            "parameters": parameters_of(self._nets) // len(models),
            "external": self._said_of(work.external, kept.shape),
            "models": models,
        }

    def _wanted(self, images: int) -> Sequence[TaskFold]:
        """The models to train."""
        scheme = task_folds(self.config.tasks, self.config.train_tasks, images)
        numbers = self.config.models
        return scheme if numbers is None else [scheme[number] for number in numbers]

    def _prepared(self, batch: Batch) -> Batch:
        image = normalised(batch.image, batch.mask, self.config.normalise)
        return Batch(image, batch.id, batch.mask)

    def _check(self, store: ImageStore) -> None:
        super()._check(store)
        self._check_sides(store.shape)

    def _check_sides(self, shape: tuple[int, ...]) -> None:
        least = max(self._net(shape).least_side(), _LEAST_SIDE)
        if min(shape[1:]) < least:
            what, setting = ("images", "image_size") if len(shape) == 3 else ("volumes", "volume")
            raise ConfigError(
                f"{what} of {list(shape[1:])}: the tasks and a network of "
                f"depth={self.config.depth} need sides of at least {least}; lower depth or raise "
                f"{setting}"
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
            quiet=c.start == "zero",
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
            store.add(self._prepared(Batch(pictures, ids)))
        else:
            warnings.warn(
                "no external volumes for the task inter: it takes from healthy volumes that the "
                "model does not train on; give external to take from another kind",
                RuntimeWarning,
                stacklevel=4,
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

    def _train_model(self, fold: TaskFold, foreign: ImageStore | None, work: Work) -> Outcome:
        c, store = self.config, work.store
        with torch.random.fork_rng([]):
            torch.manual_seed(seed_of(c.seed, fold.number))
            net = self._net(store.shape)
        settings = LoopSettings(
            batch_size=c.train_batch,
            max_steps=c.max_steps,
            max_epochs=c.max_epochs,
            patience=c.patience,
            validate_every=c.validate_every,
            validate_alike=c.validate_alike,
            clip=c.clip,
            precision=c.precision,
            seed=seed_of(c.seed, fold.number, 1),
        )
        recipe = TaskRecipe(c, net.to(work.team.device), fold, store, foreign)
        key = key_of(c.model_dump(mode="json", exclude={"models"}), store.ids)
        folder = work.folder(key, f"model-{fold.number}")
        return self._train(work, _title(fold), recipe, settings, folder)

    # -- judging ---------------------------------------------------------------------------------

    def _judge(self, batch: Batch) -> Scores:
        """Mean of the models' raw outputs. Source: METHODS.md C.6."""
        total = torch.zeros_like(batch.image[:, 0])
        for net in self._nets.values():
            total += net(batch.image)[:, 0]
        return inside_means(total / len(self._nets), batch.mask)

    def only(self, *numbers: int) -> Self:
        """The same method with some of its models alone, by their numbers.

        Raises:
            ConfigError: a model that is not there.
        """
        missing = [n for n in numbers if str(n) not in self._nets]
        if missing or not numbers:
            raise ConfigError(f"no model {missing}; there are {', '.join(self._nets)}")
        settings = {**self.config.model_dump(), "models": numbers}
        some = type(self)(self.Config(**settings)).to(self.device)
        some._nets = {str(n): self._nets[str(n)] for n in numbers}
        models = [m for m in self.facts["models"] if m["number"] in numbers]
        some.facts = {**self.facts, "models": models}
        return some

    # -- keeping ---------------------------------------------------------------------------------

    def _unfilled(self, facts: Mapping[str, Any]) -> Networks:
        return {str(model["number"]): self._net(tuple(facts["shape"])) for model in facts["models"]}

    def summary(self) -> str:
        models = self.facts["models"]
        steps = ", ".join(str(m["best_step"]) for m in models)
        return f"{len(models)} models, best after {steps} steps"

    def plan(self, images: int, folds: int) -> Plan:
        c = self.config
        used = images - (images // folds if folds else 0)
        wanted = self._wanted(used)
        number, most = len(wanted), c.max_epochs or c.max_steps
        epochs = [max(1, len(fold.train) // c.train_batch) for fold in wanted]
        steps = [min(c.max_steps, most * epoch) for epoch in epochs]
        shape = (
            (1, *c.volume)
            if c.volume
            else (1 if c.channels == "grey" else 3, c.image_size, c.image_size)
        )
        self._check_sides(shape)
        net = self._net(shape).to(self.device)
        size = parameters_of({"net": net})
        few = min(c.train_batch, 2)
        x = torch.zeros(few, *shape, device=self.device)
        per_image = seconds_of(lambda: net(x).mean().backward(), self.device) / few
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
            seconds=sum(steps) * c.train_batch * per_image,
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
        **told(outcome),
    }
