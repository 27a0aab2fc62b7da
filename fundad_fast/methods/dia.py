# SPDX-License-Identifier: Apache-2.0
"""Dissolving is amplifying: fine-grained contrast between images and their dissolved selves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..batch import Batch, Scores
from ..diffusion import Denoiser, denoiser_of, load_denoiser, make_denoiser
from ..nets import ContrastNet
from ..progress import Progress
from ..synthetic import blurred, dissolve
from ..synthetic.dissolving import to_resolution
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
from ._base import ConfigError, Method, Plan, State, spread
from .dia_config import DIAConfig
from .dia_presets import PRESETS
from .dia_training import ContrastRecipe, DenoisingRecipe, Dissolve
from .holding_out import held_out, kept_and_apart
from .image_store import ImageStore
from .normalise import black_outside
from .portions import Portion, in_portions
from .shift_scores import Axes, scoring_views, view_features

_DIFFUSION, _CONTRAST = "diffusion", "contrast"
# Starts of the settings that the diffusion model's training depends on.
_OF_DIFFUSION = ("diffusion_", "ema", "resolution", "seed", "image_size", "channels", "fov")


class DIA(Method):
    """Contrasts healthy images with versions that one step of a diffusion model has dissolved.

    Source: Shi et al.: "Dissolving is amplifying: towards fine-grained anomaly detection", with the
    details of its public code (METHODS.md D). Two trainings follow each other: a diffusion model of
    small healthy images, then a ResNet-18 that tells views of one image from everything else, and
    shifts from each other. The score is CSI's, negated: there, higher is more normal. It judges
    whole images; there is no map, unless ``map=dissolve`` asks for one that is not the paper's.

    Two things differ from the public code. The diffusion model sees images in the range it was
    trained on (``compat_no_rescale`` brings the code's range back). And the weights are those of
    the last epoch: the code keeps those of the best AUROC on the test set, which leaks; published
    figures were chosen so. For thresholds, where no split ``val`` is given, one fold of the healthy
    images is left out of everything. Our design.

    Presets: ``paper`` has the published settings, ``default`` and ``quick`` are smaller and ours.
    ``csi`` is ``default`` without dissolving, which is the method that DIA builds on, and ``blur``
    with a Gaussian blur in place of the diffusion model.

    Args:
        config: see :class:`DIAConfig`.
        weights: a folder with a DDPM of diffusers, in place of training one.
    """

    name: ClassVar[str] = "dia"
    trains: ClassVar[bool] = True
    reading: ClassVar[str] = "images"
    meaning: ClassVar[str] = (
        "Scores are CSI's, negated: minus the nearness to healthy images and minus the sureness of "
        "the shift, each about 1 for healthy ones before that; not clamped"
    )
    Config: ClassVar[type[DIAConfig]] = DIAConfig
    config: DIAConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    def __init__(self, config: DIAConfig, *, weights: str | Path | None = None) -> None:
        super().__init__(config, weights=weights)
        if weights is not None and config.dissolve != "diffusion":
            raise ConfigError(
                f"dissolve={config.dissolve} has no diffusion model; leave out weights"
            )
        self._net: ContrastNet | None = None
        self._axes: Axes | None = None
        self._denoiser: Denoiser | None = None
        self._kept_denoiser: dict[str, Tensor] = {}
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
        """Train the diffusion model, then the contrast; remember what healthy images look like.

        Of ``folds`` the lowest is held out; ``val`` and ``external`` are not used. See
        ``Method.fit``.

        Raises:
            ConfigError: too few images, or images that are all the same.
            WeightsError: diffusers is not installed, or ``weights`` is no model of it.
            TrainingError: training failed.
        """
        c = self.config
        # Before hours of work: a folder that cannot be read, a package that is missing.
        given = None if self.weights is None else load_denoiser(self.weights)
        team = Team(self.device)
        self.to(team.device)
        kept, apart = kept_and_apart(train, folds, c.memory_budget, black_outside)
        self._check(kept)
        if given is not None and given.channels not in (3, kept.shape[0]):
            raise ConfigError(
                f"{self.weights} takes images of {given.channels} channels, these have "
                f"{kept.shape[0]}"
            )
        self._histories, self.facts = {}, {}
        if c.dissolve == "diffusion":
            self._denoiser = given or self._train_denoiser(kept, team, scratch, progress)
            self._denoiser.to(self.device).eval().requires_grad_(False)
        self._net = self._train_contrast(kept, team, scratch, progress)
        self._axes = Axes.of(*self._walked(kept))
        self.facts |= {
            "images": len(kept),
            "held_out": len(apart),
            "shape": list(kept.shape),
            "dissolves": self._said_of_dissolving(given is not None),
            "selection": "weights of the last step; no labelled image was looked at",
        }
        if self._denoiser is not None:
            self.facts["denoiser"] = self._denoiser.config
        self.held_out_ = held_out(apart, self._score, self.device) if len(apart) else None
        return self

    def _check(self, store: ImageStore) -> None:
        if not len(store):
            raise ConfigError("no healthy image to learn from")
        if len(store.shape) != 3:
            raise ConfigError(f"images of shape {list(store.shape)}: want two axes, no volumes")
        if len(store) == 1:
            raise ConfigError("one healthy image to learn from; give at least a few dozen")
        if store.all_alike():
            raise ConfigError(
                f"the {len(store)} healthy images are all the same; give different ones"
            )

    def _said_of_dissolving(self, given: bool) -> str:
        c = self.config
        if c.dissolve == "none":
            return "nothing (CSI)"
        if c.dissolve == "blur":
            return f"Gaussian blur, sigma {c.blur_sigma} at {c.resolution} pixels"
        assert self._denoiser is not None
        whose = "given" if given else f"trained here ({c.diffusion_weights} weights)"
        return f"diffusion model of {self._denoiser.resolution} pixels, {whose}"

    def _train_denoiser(
        self, store: ImageStore, team: Team, scratch: Path | None, progress: Progress | None
    ) -> Denoiser:
        c = self.config
        small = ImageStore(c.memory_budget)
        for number in range(len(store)):
            one = store.get([number], torch.device("cpu"))
            small.add(Batch(to_resolution(one.image, c.resolution), one.id))
        net = self._new_denoiser(store.shape[0])
        settings = LoopSettings(
            batch_size=c.diffusion_batch,
            max_steps=c.diffusion_steps,
            seed=seed_of(c.seed, 0, 1),
        )
        recipe = DenoisingRecipe(c, net.to(team.device), small)
        outcome = train(
            recipe,
            settings,
            team,
            folder=self._folder(scratch, store, _DIFFUSION),
            progress=progress,
            name=_DIFFUSION,
        )
        self._note(_DIFFUSION, outcome, net)
        net.load_state_dict(outcome.weights["ema" if c.diffusion_weights == "ema" else "net"])
        return net

    def _new_denoiser(self, channels: int) -> Denoiser:
        c = self.config
        with torch.random.fork_rng([]):
            torch.manual_seed(seed_of(c.seed, 0))
            return make_denoiser(
                channels,
                resolution=c.resolution,
                width=c.diffusion_width,
                multipliers=c.diffusion_multipliers,
                blocks=c.diffusion_blocks,
                attention=c.diffusion_attention,
            )

    def _new_net(self, channels: int) -> ContrastNet:
        c = self.config
        return ContrastNet(channels, stem=c.stem, width=c.width, projection=c.projection)

    def _train_contrast(
        self, store: ImageStore, team: Team, scratch: Path | None, progress: Progress | None
    ) -> ContrastNet:
        c = self.config
        with torch.random.fork_rng([]):
            torch.manual_seed(seed_of(c.seed, 1))
            net = self._new_net(store.shape[0])
        steps = self._steps(len(store))
        recipe = ContrastRecipe(c, net.to(team.device), store, self._dissolver(), steps)
        settings = LoopSettings(
            batch_size=c.train_batch,
            max_steps=steps,
            precision=c.precision,
            seed=seed_of(c.seed, 1, 1),
        )
        outcome = train(
            recipe,
            settings,
            team,
            folder=self._folder(scratch, store, _CONTRAST),
            progress=progress,
            name=_CONTRAST,
        )
        self._note(_CONTRAST, outcome, net)
        net.load_state_dict(outcome.weights["net"])
        return net.eval().requires_grad_(False)

    def _steps(self, images: int) -> int:
        c = self.config
        per_epoch = min(max(1, images // c.train_batch), c.iterations)
        return c.max_steps or c.epochs * per_epoch

    def _dissolver(self) -> Dissolve | None:
        """What dissolves images at time steps; ``None`` where nothing does."""
        c = self.config
        if c.dissolve == "none":
            return None
        if c.dissolve == "blur":
            return lambda image, t: blurred(image, c.blur_sigma, resolution=c.resolution)
        net = self.denoiser
        return lambda image, t: dissolve(
            image,
            t,
            net,
            net.kept,
            resolution=net.resolution,
            compat_no_rescale=c.compat_no_rescale,
        )

    @property
    def denoiser(self) -> Denoiser:
        """The diffusion model; of a bundle it is built when it is first asked for."""
        if self._denoiser is None:
            self._denoiser = denoiser_of(self.facts["denoiser"], self._kept_denoiser)
            self._denoiser.to(self.device).eval().requires_grad_(False)
        return self._denoiser

    def _note(self, name: str, outcome: Outcome, net: torch.nn.Module) -> None:
        self._histories[name] = outcome.history
        self.facts[name] = {
            "parameters": sum(p.numel() for p in net.parameters()),
            "steps": outcome.steps,
            "seconds": round(outcome.seconds, 1),
        }

    def _folder(self, scratch: Path | None, store: ImageStore, training: str) -> Path | None:
        """Where a training is kept: work of other settings or images is not gone on with.

        The diffusion model does not depend on the settings of the contrast, so that a second fit
        with others of those finds it made.
        """
        if scratch is None:
            return None
        settings = self.config.model_dump(mode="json")
        if training == _DIFFUSION:
            settings = {k: v for k, v in settings.items() if k.startswith(_OF_DIFFUSION)}
        weights = None if self.weights is None else str(self.weights)
        what = [settings, weights, store.ids, store.shape]
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        return scratch / f"{training}-{key}"

    def _walked(self, store: ImageStore) -> tuple[Tensor, Tensor]:
        parts = [
            self._features(store.get(range(i, min(i + 32, len(store))), self.device).image)
            for i in range(0, len(store), 32)
        ]
        projections, logits = (torch.cat(values) for values in zip(*parts))
        return projections, logits

    # -- judging ---------------------------------------------------------------------------------

    def score(self, batch: Batch) -> Scores:
        """CSI's score, negated; see ``Method.score``. Source: METHODS.md D.6."""
        if self._net is None:
            raise RuntimeError(f"{self.name} is not fitted; call fit, or load a bundle")
        batch = black_outside(batch)
        parts = in_portions(lambda part: self._score(batch[part]), len(batch), self._images)
        maps = [part.map for part in parts if part.map is not None]
        return Scores(torch.cat([part.image for part in parts]), torch.cat(maps) if maps else None)

    def _features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        assert self._net is not None
        views = scoring_views(self.config.views, self.config.view_scale)
        return view_features(self._net, image, views, self.config.shift)

    @torch.no_grad()
    def _score(self, batch: Batch) -> Scores:
        assert self._axes is not None
        image = batch.image.to(self.device, non_blocking=True)
        normal = self._axes.normality(*self._features(image))
        map = self._map(image, batch.mask) if self.config.map == "dissolve" else None
        return Scores(-normal.float(), map)

    def _map(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """|x - dissolve(x)|, the mean of the channels: not the paper's, and not in the score."""
        change = self._dissolver()
        assert change is not None
        t = torch.full((len(image),), self.config.map_t)
        found = (image - change(image, t)).abs().mean(1)
        return found if mask is None else spread(found, mask.to(found.device))

    # -- keeping ---------------------------------------------------------------------------------

    def state(self) -> State:
        if self._net is None or self._axes is None:
            raise RuntimeError(f"{self.name} is not fitted; call fit, or load a bundle")
        weights = {f"net/{k}": v.cpu() for k, v in self._net.state_dict().items()}
        tensors = self._kept_denoiser
        if self._denoiser is not None:
            tensors = self._denoiser.state_dict()
        weights |= {f"denoiser/{k}": v.cpu() for k, v in tensors.items()}
        axes = self._axes
        bank = {"axes": axes.bank.cpu(), "w_sim": axes.sim.cpu(), "w_shi": axes.shi.cpu()}
        return State(weights, bank, self.facts)

    @classmethod
    def from_state(cls, config: Any, state: State) -> Self:
        self = cls(config)
        self.facts = state.facts
        self._net = self._new_net(state.facts["shape"][0])
        self._net.load_state_dict(_under("net/", state.weights))
        self._net.eval().requires_grad_(False)
        self._axes = Axes(state.bank["axes"], state.bank["w_sim"], state.bank["w_shi"])
        self._kept_denoiser = _under("denoiser/", state.weights)
        return self

    def files(self) -> dict[str, bytes]:
        rows = [{"training": name, **row} for name, rows in self._histories.items() for row in rows]
        if not rows:
            return {}
        return {
            "training.csv": as_csv(rows).encode(),
            "training.svg": draw_curves(self._histories).encode(),
        }

    def summary(self) -> str:
        steps = self.facts[_CONTRAST]["steps"]
        return f"{steps} steps of contrast; dissolves by: {self.facts['dissolves']}"

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        for net in (self._net, self._denoiser):
            if net is not None:
                net.to(self.device)
        if self._axes is not None:
            self._axes = self._axes.to(self.device)
        return self

    def plan(self, images: int, folds: int) -> Plan:
        from .dia_plan import plan_fit

        used = images - (images // folds if folds else 0)
        return plan_fit(self, images, used, self._steps(used))


def _under(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
