# SPDX-License-Identifier: Apache-2.0
"""Networks that make an image again, as baselines: autoencoders, and U-Nets that may not copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..nets import Reconstructor, code_divergence
from ..nets.memory import Address, address_entropy
from ..progress import Progress
from ..synthetic.holes import HoleSettings, all_offsets, hole_sizes, holes
from ..synthetic.pseudo_anomalies import PasteSettings, paste_patches
from ..training import Turn
from ._base import touched
from .image_store import ImageStore
from .reconstruction import Reconstruction, ReconstructionRecipe, adam, mean_inside
from .reconstruction_config import ReconstructionConfig
from .residuals import to_contrast
from .trained import Networks

Kind = Literal["plain", "vae", "cevae", "aeu", "memae", "inpaint", "fading"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LIMIT = 10.0  # of the logarithm of a pixel's variance, so that no step can overflow


class AutoencoderConfig(ReconstructionConfig):
    """Which autoencoder, and its numbers. Networks and training are ProxyAno's, so that a
    comparison is of the ideas: a paper's own network is named nowhere here. "Ours" is our choice.
    """

    kind: Kind = Field(
        "plain",
        description="plain; vae: a drawn code (Kingma and Welling 2014); cevae: the same, which "
        "also fills patches of noise (Zimmerer et al. 2018); aeu: predicts each pixel's variance "
        "(Mao et al. 2020); memae: reads its features from a memory (Gong et al. 2019); inpaint: a "
        "U-Net guesses what is in holes (Lesion2Void: Huang et al. 2022, without its "
        "discriminator); fading: a U-Net whose skips are silenced while it trains (WDMT-Net: Zhang "
        "et al. 2022, without its second task, histograms of gradients).",
    )
    latent: int | None = Field(
        16,
        ge=1,
        description="Channels of the code's grid; none: the features as they are. Not for inpaint "
        "and fading. Ours.",
    )
    divergence_weight: float = Field(
        0.02,
        ge=0,
        description="vae and cevae: of the code's divergence, per value of the image, beside the "
        "squared error: 2σ² of pixels with noise σ = 0.1. Ours.",
    )
    slots: int = Field(2000, ge=2, description="memae: slots of the memory. Its paper: 2000.")
    shrink: float = Field(
        2.0, ge=0, description="memae: weights up to this over slots become 0. Its paper: 1 to 3."
    )
    address: Address = Field("dot", description="memae: dot, its code; cosine, its paper.")
    entropy_weight: float = Field(2e-4, ge=0, description="memae: of the entropy. Its paper: 2e-4.")
    noise: PasteSettings = Field(
        default_factory=lambda: PasteSettings.model_validate({"foreground": 0.0}),
        description="cevae: numbers of the patches of noise. Ours.",
    )
    holes: HoleSettings = Field(
        default_factory=lambda: HoleSettings.model_validate({}),
        description="inpaint: the grid of holes, as in holes={side: 0.05}. Lesion2Void's code.",
    )
    skip_decay: float = Field(
        0.5,
        gt=0,
        le=1,
        description="fading: the weight of the skips falls evenly to 0 within this share of the "
        "steps. WDMT-Net's paper has them decay; its code leaves the rate to the caller. Ours.",
    )
    residual: Literal["squared", "absolute"] = Field(
        "squared", description="The map, but for aeu, whose is squared, by variance. Ours."
    )

    @model_validator(mode="after")
    def _of_single_pixels(self) -> Self:
        if self.kind in ("aeu", "inpaint") and (self.compare != "pixels" or self.residual_blur):
            raise ValueError(
                f"kind={self.kind} compares single pixels; leave out compare and residual_blur"
            )
        return self


class AutoencoderRecipe(ReconstructionRecipe):
    """Mean squared error of the image made again, and what each kind adds.

    vae: β·KL of the code; cevae: the same, and the error of an image with a patch of noise, whose
    code is not drawn; aeu: (x-x̂)²/σ² + log σ² in place of the squared error; memae: λ_e·H(w);
    inpaint: the absolute error in holes that hold noise, in place of the squared error everywhere.

    Args:
        config: of the method.
        networks: ``net``.
        store: the images.
    """

    def __init__(self, config: AutoencoderConfig, networks: Networks, store: ImageStore) -> None:
        super().__init__(config, networks, store)
        self.config = config
        self.optimizers = {"net": adam(config, [networks["net"]])}

    def step(self, turn: Turn) -> Mapping[str, Tensor]:
        c = self.config
        batch = self.store.get(list(turn.index), turn.device)
        image, mask = batch.image, batch.mask
        if c.kind == "inpaint":
            return self._fill(turn, image, mask)
        if c.kind == "fading":
            share = max(0.0, 1 - turn.step / (c.skip_decay * self._steps))
            self.networks["net"].skip_share.fill_(share)  # type: ignore[operator]
        with turn.autocast():
            made = turn.networks["net"](image)
        again = made.image.float()
        said = {}
        if c.kind == "aeu":
            error, log_variance = _uncertain(again, image)
            loss = mean_inside(error + log_variance, mask)
        else:
            loss = mean_inside((again - image).square(), mask)
        if made.mean is not None and made.log_variance is not None:
            nats = code_divergence(made.mean, made.log_variance).flatten(1).sum(1).mean()
            said["divergence"] = nats / image[0].numel()
            loss = loss + c.divergence_weight * said["divergence"]
        if c.kind == "cevae":
            noise = torch.rand_like(image)
            hurt = paste_patches(
                image,
                noise,
                seeds=list(turn.seeds),
                mask=mask,
                source_mask=mask,
                settings=c.noise,
            ).image
            with turn.autocast():
                filled = turn.networks["net"](hurt, draw=False).image.float()
            said["context"] = mean_inside((filled - image).square(), mask)
            loss = loss + said["context"]
        if made.weights is not None:
            entropy = address_entropy(made.weights)
            said["entropy"] = entropy[touched(mask, entropy)].mean()
            loss = loss + c.entropy_weight * said["entropy"]
        turn.descend(loss, "net")
        return {"loss": loss, **said}

    def _fill(self, turn: Turn, image: Tensor, mask: Tensor | None) -> Mapping[str, Tensor]:
        """The step of ``inpaint``: a grid of holes, at another place for each image."""
        shape = (image.shape[2], image.shape[3])
        period = hole_sizes(shape, self.config.holes)[1]
        offsets = [np.random.default_rng(seed).integers(period, size=2) for seed in turn.seeds]
        open_ = torch.stack([holes(shape, (int(y), int(x)), self.config.holes) for y, x in offsets])
        open_ = open_.to(turn.device)
        hurt = torch.where(open_[:, None], torch.rand_like(image), image)
        with turn.autocast():
            filled = turn.networks["net"](hurt).image.float()
        judged = open_ if mask is None else open_ & mask
        loss = mean_inside((filled - image).abs(), judged)
        turn.descend(loss, "net")
        return {"loss": loss}


class Autoencoder(Reconstruction):
    """Reconstruction that may not copy: through a narrow code, or in one of the papers' forms.

    Baselines of ProxyAno and ReSynthDetect on the same encoder, decoder and training. None is a
    copy of its paper's network; cevae's score is the residual alone, without the gradient of the
    divergence that its paper multiplies by. Our design.

    Presets: ``default`` and ``paper`` (P-Net's size and training) are the plain one; ``vae``,
    ``cevae``, ``aeu``, ``memae``, ``lesion2void`` (inpaint) and ``wdmt`` (fading) are ``default``
    of that kind; ``kind`` may be set in any.
    """

    name: ClassVar[str] = "autoencoder"
    meaning: ClassVar[str] = (
        "Scores are mean differences between an image and what was made of it again, not clamped"
    )
    Config: ClassVar[type[AutoencoderConfig]] = AutoencoderConfig
    config: AutoencoderConfig
    scoring: ClassVar[tuple[str, ...]] = ("net",)
    of_scoring: ClassVar[frozenset[str]] = Reconstruction.of_scoring | {"residual"}
    _SMALL: ClassVar[Mapping[str, Any]] = {
        "width": 32,
        "slots": 500,
        "max_steps": 6000,
        "max_epochs": None,
        "rate_drops": (0.6, 0.85),
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "default": _SMALL,
        "quick": {
            **_SMALL,
            "image_size": 112,
            "width": 16,
            "depth": 4,
            "slots": 200,
            "max_steps": 1500,
        },
        "vae": {**_SMALL, "kind": "vae"},
        "cevae": {**_SMALL, "kind": "cevae"},
        "aeu": {**_SMALL, "kind": "aeu"},
        "memae": {**_SMALL, "kind": "memae", "latent": None},
        "lesion2void": {**_SMALL, "kind": "inpaint", "residual": "absolute"},
        "wdmt": {**_SMALL, "kind": "fading"},
    }

    def _networks(self, channels: int) -> Networks:
        c = self.config
        variational, skips = c.kind in ("vae", "cevae"), c.kind in ("inpaint", "fading")
        net = Reconstructor(
            channels,
            2 * channels if c.kind == "aeu" else channels,
            width=c.width,
            depth=c.depth,
            skips=skips,
            fading=c.kind == "fading",
            latent=None if skips else c.latent,
            variational=variational,
            memory=c.slots if c.kind == "memae" else 0,
            shrink=c.shrink,
            address=c.address,
        )
        return {"net": net}

    def _recipe(
        self, nets: Networks, store: ImageStore, folder: Path | None, progress: Progress
    ) -> AutoencoderRecipe:
        return AutoencoderRecipe(self.config, nets, store)

    def _residual(self, image: Tensor, mask: Tensor | None) -> Tensor:
        c, squared = self.config, self.config.residual == "squared"
        if c.kind == "aeu":
            full = _uncertain(self._nets["net"](image).image, image)[0].mean(1)
            return to_contrast(full, image, mask, c.residual_relative, squared=True)
        if c.kind == "inpaint":
            full = self._unguessed(image)
            return to_contrast(full, image, mask, c.residual_relative, squared)
        return self._apart(self._nets["net"](image).image, image, mask, squared)

    def _unguessed(self, image: Tensor) -> Tensor:
        """How far guesses are off in the holes that a pixel lies in, on average.

        The noise in the holes is the same for every image and call.
        """
        shape = (image.shape[2], image.shape[3])
        drawn = torch.Generator().manual_seed(0)
        noise = torch.rand((1, *image.shape[1:]), generator=drawn).to(image)
        total, count = torch.zeros_like(image[:, 0]), torch.zeros_like(image[:1, 0])
        for offset in all_offsets(shape, self.config.holes):
            open_ = holes(shape, offset, self.config.holes).to(image.device)
            away = self._nets["net"](torch.where(open_, noise, image)).image - image
            off = away.square() if self.config.residual == "squared" else away.abs()
            total += off.mean(1) * open_
            count += open_
        return total / count

    def _trial(self, nets: Networks, image: Tensor) -> Tensor:
        return nets["net"](image).image.mean()


def _uncertain(made: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error by the predicted variance, and that variance's logarithm. Source: AE-U."""
    again, log_variance = made.chunk(2, 1)
    log_variance = log_variance.clamp(-_LIMIT, _LIMIT)
    return (again - image).square() * (-log_variance).exp(), log_variance
