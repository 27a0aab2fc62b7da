# SPDX-License-Identifier: Apache-2.0
"""ReSynthDetect: localises synthetic anomalies, guided by features of a reconstruction."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ..batch import Batch, Scores
from ..nets import Autoencoder, GuidedUNet, guidance
from ..progress import Progress
from ..synthetic import embedded_external
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
from .losses import focal_loss
from .portions import Portion, in_portions
from .resynth_config import PRESETS, ReSynthConfig
from .resynth_training import LocalisationStage, ReconstructionStage, steps_of
from .tiling import tiled


class ReSynthDetect(Method):
    """Finds synthetic anomalies, guided by how a network reconstructs healthy images.

    Published is a poster: an autoencoder trained on healthy images with ‖D(E(I)) - I‖², then a
    localisation network, guided by its features and trained with a focal loss on anomalies that a
    consistent generator makes of healthy images (BMVC 2023, arXiv 2312.16470). Everything else,
    with the networks, the sizes and colours of the anomalies, the training and the image score, is
    our design or DRAEM's code, as each setting says (METHODS.md B): numbers of it are no
    reproduction.

    The weights kept are those of the best validation, on synthetic anomalies in healthy images that
    are not trained on. For thresholds, where no split ``val`` is given, one fold of the healthy
    images is left out of training and validation altogether. Scores are probabilities of the
    proxy task, not of a disease.

    Presets: ``paper`` is what is published with DRAEM's networks and schedule, for a GPU.
    ``default`` is narrow and short enough for about an hour on two cores, ``quick`` a first look in
    minutes; both are our choice, and neither was measured against others yet. ``draem`` is DRAEM
    (Zavrtanik et al., ICCV 2021) made of the same parts: joint training, the reconstruction beside
    the input, textures of other images; ``draem-default`` and ``draem-quick`` have the sizes of
    ``default`` and ``quick``.
    """

    name: ClassVar[str] = "resynth"
    trains: ClassVar[bool] = True
    takes_external: ClassVar[bool] = True
    reading: ClassVar[str] = "images"
    meaning: ClassVar[str] = (
        "Scores are the network's probabilities of a synthetic anomaly, from 0 to 1"
    )
    Config: ClassVar[type[ReSynthConfig]] = ReSynthConfig
    config: ReSynthConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    def __init__(self, config: ReSynthConfig, *, weights: str | Path | None = None) -> None:
        super().__init__(config, weights=weights)
        if weights is not None:
            raise ConfigError(f"{self.name} has no pretrained backbone; leave out weights")
        self._nets: dict[str, nn.Module] = {}
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
        """Train the reconstruction, then the localisation; or both at once (``stages=joint``).

        ``external`` are where patches come from with ``textures=external``; without them it is
        everyday pictures. Of ``folds`` the lowest is held out; ``val`` is not used.
        See ``Method.fit``.

        Raises:
            ConfigError: too few images, images that are all the same, or that are too small.
            TrainingError: training failed.
        """
        c = self.config
        team = Team(self.device)
        self.to(team.device)
        kept, apart = kept_and_apart(train, folds, c.memory_budget)
        self._check(kept)
        textures, said = self._textures(external, kept.shape)
        own, other = _split(len(kept), c)
        nets = self._fresh(kept.shape[0])
        work = None if scratch is None else scratch / self._key(kept)
        self._histories, stages = {}, {}
        reconstruction = nets.get("reconstruction")
        if reconstruction is not None and c.stages == "two":
            first = ReconstructionStage(c, reconstruction.to(team.device), kept, own, other)
            outcome = self._train("reconstruction", first, team, work, progress)
            reconstruction.load_state_dict(outcome.weights["reconstruction"])
            stages["reconstruction"] = _told(outcome)
        net = nets["localisation"].to(team.device)
        if reconstruction is not None:
            reconstruction.to(team.device)
        recipe = LocalisationStage(c, net, reconstruction, kept, own, other, textures)
        outcome = self._train("localisation", recipe, team, work, progress)
        for name, weights in outcome.weights.items():
            recipe.networks[name].load_state_dict(weights)
        stages["localisation"] = _told(outcome)
        self._nets = {name: one.to(self.device).eval() for name, one in nets.items()}
        self.facts = {
            "images": len(kept),
            "trained_on": len(own),
            "validated_on": len(other),
            "held_out": len(apart),
            "shape": list(kept.shape),
            "parameters": sum(p.numel() for one in nets.values() for p in one.parameters()),
            "textures": said,
            "stages": stages,
        }
        self.held_out_ = None
        if len(apart):
            unseen = "nothing was trained or validated on"
            self.held_out_ = held_out(apart, self._judge, self.device, unseen)
        return self

    def _check(self, store: ImageStore) -> None:
        if not len(store):
            raise ConfigError("no healthy image to learn from")
        if len(store) < 3:
            raise ConfigError(
                f"{len(store)} healthy image{'s' * (len(store) > 1)} to learn from; anomalies are "
                "made of other images, and some are kept for validation: give at least a few "
                "dozen, or use folds=0 where so few are left because one fold is held out"
            )
        if store.all_alike():
            raise ConfigError(
                f"the {len(store)} healthy images are all the same; give different ones"
            )
        if len(store.shape) != 3 or store.shape[0] not in (1, 3):
            raise ConfigError(
                f"{self.name} takes images of one or three channels, not {list(store.shape)}"
            )

    def _textures(
        self, external: Iterable[Batch] | None, shape: tuple[int, ...]
    ) -> tuple[ImageStore | None, str]:
        """Images that patches come from, or ``None`` for the healthy ones; and what they are."""
        if self.config.textures == "healthy":
            return None, "healthy images"
        store = ImageStore(self.config.memory_budget)
        if external is None:
            pictures = embedded_external((shape[1], shape[2]), shape[0], value_range=(0, 1))
            store.add(Batch(pictures, tuple(f"picture {i}" for i in range(len(pictures)))))
            return store, "everyday pictures of scikit-image"
        for batch in external:
            store.add(Batch(batch.image, batch.id))
        if len(store) and (len(store.shape), store.shape[0]) != (len(shape), shape[0]):
            raise ConfigError(
                f"external images of shape {list(store.shape)}, healthy ones of {list(shape)}: "
                "want as many channels"
            )
        if not len(store):
            raise ConfigError("no external image could be read; leave them out, or give others")
        return store, "given"

    def _fresh(self, channels: int) -> dict[str, Any]:
        """The networks, untrained: the same for the same seed."""
        c = self.config
        nets: dict[str, Any] = {}
        with torch.random.fork_rng([]):
            torch.manual_seed(seed_of(c.seed, 0))
            if c.guide != "none":
                nets["reconstruction"] = Autoencoder(channels, c.reconstruction_width, c.depth)
            nets["localisation"] = GuidedUNet(
                channels,
                c.guide,
                width=c.width,
                guide_width=c.reconstruction_width,
                depth=c.depth,
            )
        return nets

    def _train(
        self, stage: str, recipe: Recipe, team: Team, work: Path | None, progress: Progress | None
    ) -> Outcome:
        c, first = self.config, stage == "reconstruction"
        outcome = train(
            recipe,
            LoopSettings(
                batch_size=c.train_batch,
                max_steps=steps_of(c, recipe.images, first),
                patience=c.patience,
                validate_every=c.validate_every,
                clip=c.clip,
                precision=c.precision,
                seed=seed_of(c.seed, 1, int(first)),
            ),
            team,
            folder=None if work is None else work / stage,
            progress=progress,
            name=stage,
        )
        self._histories[stage] = outcome.history
        return outcome

    def _key(self, store: ImageStore) -> str:
        """Names the scratch folder: work of other settings or images is not gone on with."""
        what = [self.config.model_dump(mode="json"), store.ids]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    # -- judging ---------------------------------------------------------------------------------

    def score(self, batch: Batch) -> Scores:
        """Probabilities of the localisation network; see ``Method.score``."""
        if not self._nets:
            raise RuntimeError(f"{self.name} is not fitted; call fit, or load a bundle")
        parts = in_portions(lambda part: self._judge(batch[part]), len(batch), self._images)
        maps = [part.map for part in parts if part.map is not None]
        return Scores(torch.cat([part.image for part in parts]), torch.cat(maps))

    @torch.no_grad()
    def _judge(self, batch: Batch) -> Scores:
        c = self.config
        image = batch.image.to(self.device, non_blocking=True)
        mask = None if batch.mask is None else batch.mask.to(self.device, non_blocking=True)
        full = tiled(self._probabilities, image, c.tile, c.overlap)
        inside = full if mask is None else full.masked_fill(~mask, 0)
        return Scores(image_score(inside, mask, c), full if mask is None else spread(full, mask))

    def _probabilities(self, image: Tensor) -> Tensor:
        known = None
        if "reconstruction" in self._nets:
            known = guidance(self._nets["reconstruction"], image, self.config.guide)[1]
        logits: Tensor = self._nets["localisation"](image, known)
        return logits.sigmoid()

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
        for name, net in self._fresh(state.facts["shape"][0]).items():
            start = f"{name}/"
            net.load_state_dict(
                {k.removeprefix(start): v for k, v in state.weights.items() if k.startswith(start)}
            )
            self._nets[name] = net.eval()
        return self

    def files(self) -> dict[str, bytes]:
        rows = [
            {"stage": name, **row} for name, history in self._histories.items() for row in history
        ]
        if not rows:
            return {}
        return {
            "training.csv": as_csv(rows).encode(),
            "training.svg": draw_curves(self._histories).encode(),
        }

    def summary(self) -> str:
        stages = self.facts["stages"].items()
        best = ", ".join(f"{name} best after {told['best_step']} steps" for name, told in stages)
        return f"{best}; guide {self.config.guide}"

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        for net in self._nets.values():
            net.to(self.device)
        return self

    def plan(self, images: int, folds: int) -> Plan:
        c = self.config
        used = max(images - (images // folds if folds else 0), 1)
        trained = max(used - _val_count(used, c), 1)
        nets = {name: net.to(self.device) for name, net in self._fresh(3).items()}
        side, few = min(c.image_size, c.tile), min(c.train_batch, 2)
        x = torch.rand(few, 3, side, side, device=self.device)
        lines, seconds = [], 0.0
        if c.stages == "two" and "reconstruction" in nets:
            per_step = self._timed(lambda: nets["reconstruction"](x).square().mean(), few)
            steps = steps_of(c, trained, True)
            lines.append(f"reconstruction: at most {steps} steps of {c.train_batch} images each")
            seconds += steps * per_step
            nets["reconstruction"].eval().requires_grad_(False)

        def localise() -> Tensor:
            known = None
            if "reconstruction" in nets:
                known = guidance(nets["reconstruction"], x, c.guide)[1]
            return focal_loss(nets["localisation"](x, known), torch.zeros_like(x[:, 0]), c.tau)

        per_step = self._timed(localise, few)
        steps = steps_of(c, trained, False)
        lines += [
            f"localisation: at most {steps} steps of {c.train_batch} images each",
            f"{trained} of {images} images to train on, the others for validation and thresholds",
            "the time is of all steps without the synthetic anomalies",
        ]
        seconds += steps * per_step
        size = sum(p.numel() for net in nets.values() for p in net.parameters())
        pixels = 4 * used * 3 * c.image_size**2
        # About 24 maps of the first level's size and width are kept for the gradient, per network.
        activations = 4 * c.train_batch * side**2 * (c.width + c.reconstruction_width) * 24
        return Plan(
            images=images,
            memory=min(pixels, c.memory_budget) + activations + 20 * size + 2**29,
            disk=4 * size * 4 + max(0, pixels - c.memory_budget),
            bundle=4 * size,
            seconds=seconds,
            lines=tuple(lines),
        )

    def _timed(self, loss: Any, few: int) -> float:
        """Seconds of a step, from one on few images."""
        loss().backward()
        began = time.perf_counter()
        loss().backward()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return (time.perf_counter() - began) / few * self.config.train_batch


def image_score(inside: Tensor, mask: Tensor | None, config: ReSynthConfig) -> Tensor:
    """Image scores ``[b]`` of maps ``[b, h, w]`` that are 0 outside the mask; METHODS.md B.6."""
    if config.image_score == "max":
        return inside.flatten(1).amax(1)
    if config.image_score == "pooled":
        pooled = nnf.avg_pool2d(inside[:, None], config.pool, stride=1, padding=config.pool // 2)
        return pooled.flatten(1).amax(1)
    scores = []
    for i in range(len(inside)):
        values = inside[i].flatten() if mask is None else inside[i][mask[i]]
        count = max(1, round(config.top_fraction * len(values)))
        scores.append(values.topk(count).values.mean() if len(values) else inside.new_zeros(()))
    return torch.stack(scores)


def _val_count(images: int, config: ReSynthConfig) -> int:
    return max(1, round(config.val_share * images))


def _split(images: int, config: ReSynthConfig) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images to train on and to validate on."""
    order = np.random.default_rng(seed_of(config.seed, 2)).permutation(images)
    val = _val_count(images, config)
    return np.sort(order[val:]), np.sort(order[:val])


def _told(outcome: Outcome) -> dict[str, Any]:
    return {
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "best_val": outcome.best_loss,
        "ended": outcome.ended,
        "seconds": round(outcome.seconds, 1),
    }
