# SPDX-License-Identifier: Apache-2.0
"""ReSynthDetect: localises synthetic anomalies, guided by features of a reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..batch import Batch, Scores
from ..nets import Autoencoder, GuidedUNet, guidance
from ..synthetic import embedded_external
from ..training import LoopSettings, Outcome, Recipe, seed_of
from ._base import ConfigError, Plan, spread
from .image_store import ImageStore
from .losses import focal_loss
from .residuals import top_means
from .resynth_config import PRESETS, ReSynthConfig
from .resynth_training import LocalisationStage, ReconstructionStage, steps_of
from .tiling import tiled
from .timing import seconds_of
from .trained import Networks, TrainedMethod, Work, key_of, parameters_of, told


class ReSynthDetect(TrainedMethod):
    """Finds synthetic anomalies, guided by how a network reconstructs healthy images.

    Published is a poster: an autoencoder trained on healthy images with ‖D(E(I)) - I‖², then a
    localisation network, guided by its features and trained with a focal loss on anomalies that a
    consistent generator makes of healthy images (BMVC 2023, arXiv 2312.16470). Everything else,
    with the networks, the sizes and colours of the anomalies, the training and the image score, is
    our design or DRAEM's code, as each setting says (METHODS.md B): numbers of it are no
    reproduction.

    The weights kept are those of the best validation, on synthetic anomalies in healthy images that
    are not trained on; images for thresholds are left out of validation too. Scores are
    probabilities of the proxy task, not of a disease.

    ``external`` are where patches come from with ``textures=external``; without them it is everyday
    pictures.

    Presets: ``paper`` is what is published with DRAEM's networks and schedule, for a GPU.
    ``default`` is narrow and short enough for about an hour on two cores, ``quick`` a first look in
    minutes; both are our choice, and neither was measured against others yet. ``draem`` is DRAEM
    (Zavrtanik et al., ICCV 2021) made of the same parts: joint training, the reconstruction beside
    the input, textures of other images; ``draem-default`` and ``draem-quick`` have the sizes of
    ``default`` and ``quick``.
    """

    name: ClassVar[str] = "resynth"
    takes_external: ClassVar[bool] = True
    unseen: ClassVar[str] = "nothing was trained or validated on"
    least: ClassVar[int] = 3
    why_more: ClassVar[str] = "anomalies are made of other images, and some are kept for validation"
    called: ClassVar[str | None] = "stage"
    of_scoring: ClassVar[frozenset[str]] = frozenset(
        ("image_score", "pool", "top_fraction", "overlap")
    )
    meaning: ClassVar[str] = (
        "Scores are the network's probabilities of a synthetic anomaly, from 0 to 1"
    )
    Config: ClassVar[type[ReSynthConfig]] = ReSynthConfig
    config: ReSynthConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    # -- learning --------------------------------------------------------------------------------

    def _learn(self, work: Work) -> None:
        """Train the reconstruction, then the localisation; or both at once (``stages=joint``)."""
        c, kept, device = self.config, work.store, work.team.device
        textures, said = self._textures(work.external, kept.shape)
        own, other = _split(len(kept), c)
        nets = self._fresh(kept.shape[0])
        stages = {}
        reconstruction = nets.get("reconstruction")
        if reconstruction is not None and c.stages == "two":
            first = ReconstructionStage(c, reconstruction.to(device), kept, own, other)
            outcome = self._train_stage("reconstruction", first, work)
            reconstruction.load_state_dict(outcome.weights["reconstruction"])
            stages["reconstruction"] = told(outcome)
        net = nets["localisation"].to(device)
        if reconstruction is not None:
            reconstruction.to(device)
        recipe = LocalisationStage(c, net, reconstruction, kept, own, other, textures)
        outcome = self._train_stage("localisation", recipe, work)
        for name, weights in outcome.weights.items():
            recipe.networks[name].load_state_dict(weights)
        stages["localisation"] = told(outcome)
        self._nets = {name: one.to(self.device).eval() for name, one in nets.items()}
        self.facts |= {
            "trained_on": len(own),
            "validated_on": len(other),
            "parameters": parameters_of(self._nets),
            "textures": said,
            "stages": stages,
        }

    def _check(self, store: ImageStore) -> None:
        super()._check(store)
        if store.shape[0] not in (1, 3):
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

    def _train_stage(self, stage: str, recipe: Recipe, work: Work) -> Outcome:
        c, first = self.config, stage == "reconstruction"
        settings = LoopSettings(
            batch_size=c.train_batch,
            max_steps=steps_of(c, recipe.images, first),
            patience=c.patience,
            validate_every=c.validate_every,
            clip=c.clip,
            precision=c.precision,
            seed=seed_of(c.seed, 1, int(first)),
        )
        key = key_of(c.model_dump(mode="json"), work.store.ids)
        return self._train(work, stage, recipe, settings, work.folder(key, stage))

    # -- judging ---------------------------------------------------------------------------------

    def _judge(self, batch: Batch) -> Scores:
        """Probabilities of the localisation network."""
        c, mask = self.config, batch.mask
        full = tiled(self._probabilities, batch.image, c.tile, c.overlap)
        inside = full if mask is None else full.masked_fill(~mask, 0)
        return Scores(image_score(inside, mask, c), full if mask is None else spread(full, mask))

    def _probabilities(self, image: Tensor) -> Tensor:
        known = None
        if "reconstruction" in self._nets:
            known = guidance(self._nets["reconstruction"], image, self.config.guide)[1]
        logits: Tensor = self._nets["localisation"](image, known)
        return logits.sigmoid()

    # -- keeping ---------------------------------------------------------------------------------

    def _unfilled(self, facts: Mapping[str, Any]) -> Networks:
        return self._fresh(facts["shape"][0])

    def summary(self) -> str:
        stages = self.facts["stages"].items()
        best = ", ".join(f"{name} best after {told['best_step']} steps" for name, told in stages)
        return f"{best}; guide {self.config.guide}"

    def plan(self, images: int, folds: int) -> Plan:
        c = self.config
        used = max(images - (images // folds if folds else 0), 1)
        trained = max(used - _val_count(used, c), 1)
        nets = {name: net.to(self.device) for name, net in self._fresh(3).items()}
        side, few = min(c.image_size, c.tile), min(c.train_batch, 2)
        x = torch.rand(few, 3, side, side, device=self.device)
        lines, seconds = [], 0.0
        if c.stages == "two" and "reconstruction" in nets:
            per_image = self._per_image(lambda: nets["reconstruction"](x).square().mean(), few)
            steps = steps_of(c, trained, True)
            lines.append(f"reconstruction: at most {steps} steps of {c.train_batch} images each")
            seconds += steps * c.train_batch * per_image
            nets["reconstruction"].eval().requires_grad_(False)

        def localise() -> Tensor:
            known = None
            if "reconstruction" in nets:
                known = guidance(nets["reconstruction"], x, c.guide)[1]
            return focal_loss(nets["localisation"](x, known), torch.zeros_like(x[:, 0]), c.tau)

        per_image = self._per_image(localise, few)
        steps = steps_of(c, trained, False)
        lines += [
            f"localisation: at most {steps} steps of {c.train_batch} images each",
            f"{trained} of {images} images to train on, the others for validation and thresholds",
            "the time is of all steps without the synthetic anomalies",
        ]
        seconds += steps * c.train_batch * per_image
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

    def _per_image(self, loss: Callable[[], Tensor], few: int) -> float:
        """Seconds of an image in a step, from one on few images."""
        return seconds_of(lambda: loss().backward(), self.device) / few


def image_score(inside: Tensor, mask: Tensor | None, config: ReSynthConfig) -> Tensor:
    """Image scores ``[b]`` of maps ``[b, h, w]`` that are 0 outside the mask; METHODS.md B.6."""
    if config.image_score == "max":
        return inside.flatten(1).amax(1)
    if config.image_score == "pooled":
        pooled = nnf.avg_pool2d(inside[:, None], config.pool, stride=1, padding=config.pool // 2)
        return pooled.flatten(1).amax(1)
    return top_means(inside, mask, config.top_fraction)


def _val_count(images: int, config: ReSynthConfig) -> int:
    return max(1, round(config.val_share * images))


def _split(images: int, config: ReSynthConfig) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images to train on and to validate on."""
    order = np.random.default_rng(seed_of(config.seed, 2)).permutation(images)
    val = _val_count(images, config)
    return np.sort(order[val:]), np.sort(order[:val])
