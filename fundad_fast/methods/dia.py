# SPDX-License-Identifier: Apache-2.0
"""Dissolving is amplifying: fine-grained contrast between images and their dissolved selves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..batch import Batch, Scores
from ..diffusion import Denoiser, denoiser_of, load_denoiser, make_denoiser
from ..nets import ContrastNet
from ..synthetic import blurred, dissolve
from ..synthetic.dissolving import to_resolution
from ..training import LoopSettings, Outcome, seed_of
from ._base import ConfigError, Plan, State, spread
from .dia_config import DIAConfig
from .dia_presets import PRESETS
from .dia_selection import Judged, Look, handed_in, some_of, split_off, with_anomalies
from .dia_training import ContrastRecipe, DenoisingRecipe, Dissolve
from .image_store import ImageStore
from .normalise import black_outside
from .shift_scores import Axes, scoring_views, view_features
from .trained import Networks, TrainedMethod, Work, key_of, parameters_of, told, under

_DIFFUSION, _CONTRAST = "diffusion", "contrast"


class DIA(TrainedMethod):
    """Contrasts healthy images with versions that one step of a diffusion model has dissolved.

    Source: Shi et al.: "Dissolving is amplifying: towards fine-grained anomaly detection", with the
    details of its public code (METHODS.md D). Two trainings follow each other: a diffusion model of
    small healthy images, then a ResNet-18 that tells views of one image from everything else, and
    shifts from each other. The score is CSI's, negated: there, higher is more normal. It judges
    whole images; there is no map, unless ``map=dissolve`` asks for one that is not the paper's.

    Two things differ from the public code. The diffusion model sees images in the range it was
    trained on (``compat_no_rescale`` brings the code's range back). And the weights are those of
    the last epoch, or (``select=synthetic``) of the best AUROC on healthy images and the same with
    synthetic anomalies. The code keeps those of the best AUROC on the test set, which leaks;
    published figures were chosen so. ``select=labelled`` does the same with labelled images that
    are handed in, and everything that comes of the model says so.

    Presets: ``paper`` has the published settings, ``default`` and ``quick`` are smaller and ours.
    ``csi`` is ``default`` without dissolving, which is the method that DIA builds on, and ``blur``
    with a Gaussian blur in place of the diffusion model.

    Args:
        config: see :class:`DIAConfig`.
        weights: a folder with a DDPM of diffusers, in place of training one.
    """

    name: ClassVar[str] = "dia"
    takes_weights: ClassVar[bool] = True
    called: ClassVar[str | None] = "training"
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
        self._given: Denoiser | None = None
        self._axes: Axes | None = None
        self._denoiser: Denoiser | None = None
        self._kept_denoiser: dict[str, Tensor] = {}
        self._labelled: tuple[Iterable[Batch], Mapping[str, int]] | None = None

    # -- learning --------------------------------------------------------------------------------

    def _before(self) -> None:
        """Refuse a folder of weights that cannot be read, or a package that is missing.

        Raises:
            WeightsError: diffusers is not installed, or ``weights`` is no model of it.
        """
        if self.config.select == "labelled" and self._labelled is None:
            raise ConfigError(
                "select=labelled chooses weights by labelled images, which makes figures on them "
                "too high, so they have to be handed in: fit --select-on DATA (select_on=... in "
                "Python); or use select=last or select=synthetic"
            )
        self._given = None if self.weights is None else load_denoiser(self.weights)

    def _learn(self, work: Work) -> None:
        """Train the diffusion model, then the contrast; remember what healthy images look like."""
        given, kept = self._given, work.store
        if given is not None and given.channels not in (3, kept.shape[0]):
            raise ConfigError(
                f"{self.weights} takes images of {given.channels} channels, these have "
                f"{kept.shape[0]}"
            )
        if given is not None and len(given.kept) < (wanted := self._time_steps()):
            raise ConfigError(
                f"{self.weights} has {len(given.kept)} time steps, and {wanted} are wanted; lower "
                "t_scale (or map_t, with map=dissolve)"
            )
        if self.config.dissolve == "diffusion":
            self._denoiser = given or self._train_denoiser(work)
            self._denoiser.to(self.device).eval().requires_grad_(False)
            self.facts["denoiser"] = self._denoiser.config
        own, judged = self._chosen_by(kept)
        self._nets["net"] = self._train_contrast(work, own, judged)
        self._axes = Axes.of(*self._walked(own))
        self.facts |= {
            "dissolves": self._said_of_dissolving(given is not None),
            "selection": self._said_of_selection(judged),
        }

    def take_labelled(self, batches: Iterable[Batch], labels: Mapping[str, int]) -> None:
        """Images that ``select=labelled`` chooses weights by; see ``Method.take_labelled``."""
        if self.config.select != "labelled":
            raise ConfigError(
                f"labelled images to choose weights by need select=labelled; with "
                f"select={self.config.select} no label is looked at"
            )
        self._labelled = batches, labels

    def _chosen_by(self, store: ImageStore) -> tuple[ImageStore, Judged | None]:
        """The images to train the contrast on, and those that its weights are chosen by."""
        c = self.config
        if c.select == "labelled":
            assert self._labelled is not None
            judged = handed_in(*self._labelled, c.memory_budget)
            if judged.store.shape != store.shape:
                raise ConfigError(
                    f"the labelled images are of shape {list(judged.store.shape)}, those to learn "
                    f"from of {list(store.shape)}"
                )
            return store, judged
        if c.select == "last":
            return store, None
        train, looked_at = split_off(len(store), c)
        own = some_of(store, train)
        return own, with_anomalies(some_of(store, looked_at), own, c.seed)

    def _said_of_selection(self, judged: Judged | None) -> str:
        if judged is None:
            return "weights of the last step; no labelled image was looked at"
        best = self.facts[_CONTRAST]
        n, abnormal = len(judged.abnormal), int(judged.abnormal.sum())
        what = f"weights of step {best['best_step']}, AUROC {1 - best['best_val']:.3f} on"
        if self.config.select == "labelled":
            return f"{what} {n} labelled images ({abnormal} abnormal) that were handed in: a leak"
        return (
            f"{what} {n - abnormal} healthy images and the same with synthetic anomalies, which "
            "the contrast was not trained on; no labelled image was looked at"
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        """A leak, where weights were chosen by labelled images."""
        if self.config.select != "labelled":
            return ()
        return (
            "LEAK: of all weights in training those with the best AUROC on labelled images that "
            "were handed in were kept (select=labelled, as the public code does with the test "
            "set); figures on these images, and on others of their set, are too high",
        )

    def _prepared(self, batch: Batch) -> Batch:
        return black_outside(batch)

    def _said_of_dissolving(self, given: bool) -> str:
        c = self.config
        if c.dissolve == "none":
            return "nothing (CSI)"
        if c.dissolve == "blur":
            return f"Gaussian blur, sigma {c.blur_sigma} at {c.resolution} pixels"
        assert self._denoiser is not None
        whose = "given" if given else f"trained here ({c.diffusion_weights} weights)"
        return f"diffusion model of {self._denoiser.resolution} pixels, {whose}"

    def _train_denoiser(self, work: Work) -> Denoiser:
        c, store = self.config, work.store
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
        recipe = DenoisingRecipe(c, net.to(work.team.device), small)
        folder = self._folder(work, _DIFFUSION)
        outcome = self._train(work, _DIFFUSION, recipe, settings, folder)
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

    def _train_contrast(self, work: Work, store: ImageStore, judged: Judged | None) -> ContrastNet:
        c = self.config
        with torch.random.fork_rng([]):
            torch.manual_seed(seed_of(c.seed, 1))
            net = self._new_net(store.shape[0])
        steps = self._steps(len(store))
        device = work.team.device
        look = None if judged is None else Look(c, store, judged, device)
        recipe = ContrastRecipe(c, net.to(device), store, self._dissolver(), steps, look)
        settings = LoopSettings(
            batch_size=c.train_batch,
            max_steps=steps,
            validate_every=None if look is None else c.select_every or max(1, steps // 10),
            precision=c.precision,
            seed=seed_of(c.seed, 1, 1),
        )
        outcome = self._train(work, _CONTRAST, recipe, settings, self._folder(work, _CONTRAST))
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
        self.facts[name] = {"parameters": parameters_of({name: net}), **told(outcome)}

    def _folder(self, work: Work, training: str) -> Path | None:
        """Where a training is kept: work of other settings or images is not gone on with.

        The diffusion model does not depend on the settings of the contrast, so that a second fit
        with others of those finds it made.
        """
        c = self.config
        settings = c.of_diffusion() if training == _DIFFUSION else c.model_dump(mode="json")
        weights = None if self.weights is None else str(self.weights)
        judged = None
        if training == _CONTRAST and self._labelled is not None:
            judged = dict(self._labelled[1])
        key = key_of(settings, weights, work.store.ids, work.store.shape, judged)
        return work.folder(f"{training}-{key}")

    def _walked(self, store: ImageStore) -> tuple[Tensor, Tensor]:
        parts = [
            self._features(store.get(range(i, min(i + 32, len(store))), self.device).image)
            for i in range(0, len(store), 32)
        ]
        projections, logits = (torch.cat(values) for values in zip(*parts))
        return projections, logits

    # -- judging ---------------------------------------------------------------------------------

    def _features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        net = self._nets["net"]
        assert isinstance(net, ContrastNet)
        views = scoring_views(self.config.views, self.config.view_scale)
        return view_features(net, image, views, self.config.shift)

    def _judge(self, batch: Batch) -> Scores:
        """CSI's score, negated. Source: METHODS.md D.6."""
        assert self._axes is not None
        normal = self._axes.normality(*self._features(batch.image))
        map = self._map(batch.image, batch.mask) if self.config.map == "dissolve" else None
        return Scores(-normal.float(), map)

    def _map(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """|x - dissolve(x)|, the mean of the channels: not the paper's, and not in the score."""
        change = self._dissolver()
        assert change is not None
        t = torch.full((len(image),), self.config.map_t)
        found = (image - change(image, t)).abs().mean(1)
        return found if mask is None else spread(found, mask)

    def _time_steps(self) -> int:
        """How many a diffusion model must have, from 0."""
        c = self.config
        drawn = math.ceil(c.t_scale * c.t_upper)
        return max(drawn, c.map_t + 1) if c.map == "dissolve" else drawn

    # -- keeping ---------------------------------------------------------------------------------

    def state(self) -> State:
        state = super().state()
        tensors = self._kept_denoiser
        if self._denoiser is not None:
            tensors = self._denoiser.state_dict()
        state.weights |= {f"denoiser/{k}": v.cpu() for k, v in tensors.items()}
        assert self._axes is not None
        axes = self._axes
        state.bank = {"axes": axes.bank.cpu(), "w_sim": axes.sim.cpu(), "w_shi": axes.shi.cpu()}
        return state

    @classmethod
    def from_state(cls, config: Any, state: State) -> Self:
        self = super().from_state(config, state)
        self._axes = Axes(state.bank["axes"], state.bank["w_sim"], state.bank["w_shi"])
        self._kept_denoiser = under("denoiser/", state.weights)
        return self

    def _unfilled(self, facts: Mapping[str, Any]) -> Networks:
        return {"net": self._new_net(facts["shape"][0]).requires_grad_(False)}

    def summary(self) -> str:
        steps = self.facts[_CONTRAST]["steps"]
        return f"{steps} steps of contrast; dissolves by: {self.facts['dissolves']}"

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        if self._denoiser is not None:
            self._denoiser.to(self.device)
        if self._axes is not None:
            self._axes = self._axes.to(self.device)
        return self

    def plan(self, images: int, folds: int) -> Plan:
        from .dia_plan import plan_fit

        used = images - (images // folds if folds else 0)
        return plan_fit(self, images, used, self._steps(used))
