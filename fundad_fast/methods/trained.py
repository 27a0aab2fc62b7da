# SPDX-License-Identifier: Apache-2.0
"""What the methods that train networks share: the frame of a fit, scores, and what is kept."""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    train,
)
from ._base import ConfigError, Method, State, spread
from .holding_out import held_out, kept_and_apart
from .image_store import ImageStore
from .portions import Portion, in_portions

Networks = dict[str, nn.Module]


@dataclass(frozen=True)
class Work:
    """What a method is given to learn.

    Attributes:
        store: the images to train on, prepared.
        external: images of another kind, or ``None``.
        team: the processes that train together.
        scratch: a folder for what should survive a kill, or ``None``.
        progress: shows what is done; the same in every process.
    """

    store: ImageStore
    external: Iterable[Batch] | None
    team: Team
    scratch: Path | None
    progress: Progress

    def folder(self, *parts: str) -> Path | None:
        """A folder in the scratch folder, or ``None`` where nothing is kept."""
        return None if self.scratch is None else self.scratch.joinpath(*parts)


class TrainedMethod(Method):
    """A method that trains networks on healthy images and scores with them.

    For thresholds, where no split ``val`` is given, one fold of the healthy images is left out of
    everything: refits of every fold, as the memory banks do, would take as many times as long. Our
    design.

    Attributes:
        takes_weights: whether ``weights`` has a meaning.
        unseen: goes on after "images that", of those that were held out.
        axes: how many axes the images may have.
        least: fewer images are not learned from; ``why_more`` says why.
        called: the column of ``training.csv`` that names a training; ``None`` for a method with
            one alone.
        of_scoring: settings that change scores and no weights.
    """

    trains: ClassVar[bool] = True
    takes_weights: ClassVar[bool] = False
    reading: ClassVar[str] = "images"
    unseen: ClassVar[str] = "nothing was trained on"
    axes: ClassVar[tuple[int, ...]] = (2,)
    least: ClassVar[int] = 2
    why_more: ClassVar[str] = "a network would learn it by heart"
    called: ClassVar[str | None] = None
    of_scoring: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: Any, *, weights: str | Path | None = None) -> None:
        super().__init__(config, weights=weights)
        if weights is not None and not self.takes_weights:
            raise ConfigError(f"{self.name} has no pretrained backbone; leave out weights")
        self._nets: Networks = {}
        self._images = Portion("images")
        self._histories: dict[str, History] = {}
        self.facts: dict[str, Any] = {}

    # -- what each method says -------------------------------------------------------------------

    @abstractmethod
    def _learn(self, work: Work) -> None:
        """Train, and fill ``_nets`` with what scores (on the device), and ``facts``."""

    @abstractmethod
    def _judge(self, batch: Batch) -> Scores:
        """Scores of prepared images on the device; each of its image alone."""

    @abstractmethod
    def _unfilled(self, facts: Mapping[str, Any]) -> Networks:
        """Networks for the weights of a state with these facts, by the names in ``_nets``."""

    def _prepared(self, batch: Batch) -> Batch:
        """The images as they are kept for training, and scored."""
        return batch

    def _before(self) -> None:
        """What should fail before images are read, not hours later."""
        return

    def _check(self, store: ImageStore) -> None:
        """Refuse what cannot be learned from.

        Raises:
            ConfigError: too few images, all the same, or with a wrong number of axes.
        """
        n = len(store)
        if not n:
            raise ConfigError("no healthy image to learn from")
        if n < self.least:
            raise ConfigError(
                f"{'one healthy image' if n == 1 else f'{n} healthy images'} to learn from; "
                f"{self.why_more}: give at least a few dozen, or use folds=0 where so few are left "
                "because one fold is held out"
            )
        if store.all_alike():
            raise ConfigError(f"the {n} healthy images are all the same; give different ones")
        if len(store.shape) - 1 not in self.axes:
            raise ConfigError(f"{self.name} takes images, no volumes of {list(store.shape[1:])}")

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
        """Train; of ``folds`` the lowest is held out, and ``val`` is not used.

        ``external`` is for methods that ``takes_external``. See ``Method.fit``.

        Raises:
            ConfigError: images that cannot be learned from, or do not fit the settings.
            TrainingError: training failed.
        """
        self._before()
        team = Team(self.device)
        self.to(team.device)
        limit = self.config.memory_budget  # type: ignore[attr-defined]  # of every config here
        kept, apart = kept_and_apart(train, folds, limit, self._prepared)
        self._check(kept)
        self._nets, self._histories = {}, {}
        self.facts = {"images": len(kept), "held_out": len(apart), "shape": list(kept.shape)}
        self._learn(Work(kept, external, team, scratch, progress or Progress()))
        self.held_out_ = None
        if len(apart):
            self.held_out_ = held_out(apart, self._judge, self.device, self.unseen)
        return self

    def _train(
        self, work: Work, name: str, recipe: Recipe, settings: LoopSettings, folder: Path | None
    ) -> Outcome:
        """One training of the fit; its curves are kept under its name."""
        outcome = train(
            recipe, settings, work.team, folder=folder, progress=work.progress, name=name
        )
        self._histories[name] = outcome.history
        return outcome

    # -- judging ---------------------------------------------------------------------------------

    def score(self, batch: Batch) -> Scores:
        """Scores by the trained networks; see the class and ``Method.score``."""
        self._fitted()
        parts = in_portions(lambda part: self._scored(batch[part]), len(batch), self._images)
        maps = [part.map for part in parts if part.map is not None]
        return Scores(torch.cat([part.image for part in parts]), torch.cat(maps) if maps else None)

    @torch.no_grad()
    def _scored(self, batch: Batch) -> Scores:
        image = batch.image.to(self.device, non_blocking=True)
        mask = None if batch.mask is None else batch.mask.to(self.device, non_blocking=True)
        return self._judge(self._prepared(Batch(image, batch.id, mask)))

    def _fitted(self) -> None:
        if not self._nets:
            raise RuntimeError(f"{self.name} is not fitted; call fit, or load a bundle")

    # -- keeping ---------------------------------------------------------------------------------

    def state(self) -> State:
        self._fitted()
        weights = {
            f"{name}/{key}": value.cpu().contiguous()
            for name, net in self._nets.items()
            for key, value in net.state_dict().items()
        }
        return State(weights, {}, self.facts)

    @classmethod
    def from_state(cls, config: Any, state: State) -> Self:
        self = cls(config)
        self.facts = state.facts
        for name, net in self._unfilled(state.facts).items():
            net.load_state_dict(under(f"{name}/", state.weights))
            self._nets[name] = net.eval()
        return self

    def files(self) -> dict[str, bytes]:
        """The losses of every training as ``training.csv`` and ``training.svg``."""
        rows: list[dict[str, Any]] = [
            row if self.called is None else {self.called: name, **row}
            for name, history in self._histories.items()
            for row in history
        ]
        if not rows:
            return {}
        return {
            "training.csv": as_csv(rows).encode(),
            "training.svg": draw_curves(self._histories).encode(),
        }

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        for net in self._nets.values():
            net.to(self.device)
        return self


def key_of(*what: Any) -> str:
    """Names a scratch folder: work of other settings or images is not gone on with."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def told(outcome: Outcome) -> dict[str, Any]:
    """What is kept of a training, for people to read."""
    best = {"best_step": outcome.best_step, "best_val": outcome.best_loss}
    return {
        "steps": outcome.steps,
        **({} if math.isnan(outcome.best_loss) else best),
        "ended": outcome.ended,
        "seconds": round(outcome.seconds, 1),
    }


def under(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def parameters_of(networks: Networks) -> int:
    """How many parameters networks have."""
    return sum(p.numel() for net in networks.values() for p in net.parameters())


def inside_means(full: Tensor, mask: Tensor | None) -> Scores:
    """Scores of maps ``[b, *s]``: the image's is the mean, inside a mask ``[b, *s]`` alone.

    Outside, the map goes on for two cells, see :func:`spread`; beyond them it is 0.
    """
    if mask is None:
        return Scores(full.flatten(1).mean(1), full)
    inside = full.masked_fill(~mask, 0).flatten(1).sum(1)
    return Scores(inside / mask.flatten(1).sum(1).clamp_min(1), spread(full, mask))
