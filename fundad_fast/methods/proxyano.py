# SPDX-License-Identifier: Apache-2.0
"""ProxyAno: image to superpixels through a memory of healthy ones, and back to the image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..nets import PatchDiscriminator, Reconstructor, fooling_loss
from ..progress import Progress
from ..synthetic.proxies import make_proxy
from .image_store import ImageStore
from .proxy_training import ProxyRecipe, ProxyStore
from .proxyano_config import ProxyAnoConfig
from .reconstruction import Reconstruction, cut
from .trained import Networks

_SMALL = {
    "width": 32,
    "slots": 500,
    "discriminator_width": 32,
    "max_steps": 6000,
    "max_epochs": None,
    "rate_drops": (0.6, 0.85),
}


class ProxyAno(Reconstruction):
    """Makes the image again from a proxy that lost what is not healthy.

    A first network makes the image's superpixel picture through a memory of healthy features, a
    second, a U-Net, the image from that picture; the second also learns to take pasted patches away
    again. The map is how far the two images are apart, and the image's score its mean.

    Source: Zhou et al., "Proxy-bridged image reconstruction network for anomaly detection in
    medical images", IEEE TMI 41(3), 2022, of which only the abstract was at hand: what it does not
    say is our design, anchored on the same first author's P-Net code and on MemAE (METHODS.md E).
    P-Net's batch normalisation in training mode at evaluation is not followed.

    Presets: ``paper`` is that design at P-Net's size; ``paper-fundus`` the same inside the field of
    view. ``default`` is a smaller network for fewer steps, ``fundus`` the same inside the field of
    view, ``quick`` a first look in minutes on two cores; these are our choice.
    """

    name: ClassVar[str] = "proxyano"
    meaning: ClassVar[str] = (
        "Scores are mean absolute differences between an image and what was made of it again, "
        "in shares of white, not clamped"
    )
    Config: ClassVar[type[ProxyAnoConfig]] = ProxyAnoConfig
    config: ProxyAnoConfig
    scoring: ClassVar[tuple[str, ...]] = ("proxy", "image")
    of_scoring: ClassVar[frozenset[str]] = Reconstruction.of_scoring | {"proxy_residual"}
    passes: ClassVar[int] = 4
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "paper-fundus": {"fov": "auto"},
        "default": _SMALL,
        "fundus": {**_SMALL, "fov": "auto"},
        "quick": {
            **_SMALL,
            "image_size": 112,
            "width": 8,
            "depth": 4,
            "slots": 200,
            "discriminator_width": 8,
            "max_steps": 800,
            "proxy_settings": {"segments": 200},
        },
    }

    def _networks(self, channels: int) -> Networks:
        c = self.config
        nets: Networks = {
            "proxy": Reconstructor(
                channels,
                channels,
                width=c.width,
                depth=c.depth,
                memory=0 if c.memory == "none" else c.slots,
                shrink=c.shrink,
                address=c.address,
                key_value=c.memory == "kv",
            ),
            "image": Reconstructor(channels, channels, width=c.width, depth=c.depth, skips=True),
        }
        if c.discriminators:
            nets["judge_proxy"] = PatchDiscriminator(channels, c.discriminator_width)
            nets["judge_image"] = PatchDiscriminator(channels, c.discriminator_width)
        return nets

    def _recipe(
        self, nets: Networks, store: ImageStore, folder: Path | None, progress: Progress
    ) -> ProxyRecipe:
        where = None if folder is None else folder / "proxies"
        return ProxyRecipe(
            self.config, nets, store, ProxyStore(self.config, store, where, progress)
        )

    def _residual(self, image: Tensor, mask: Tensor | None) -> Tensor:
        guess, again = self._made(image, mask)
        full = self._apart(again, image, mask, squared=False)
        if self.config.proxy_residual > 0:
            own = self._proxies(image, mask)
            full = full + self.config.proxy_residual * (guess - own).abs().mean(1)
        return full

    def _made(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        guess = cut(self._nets["proxy"](image).image, mask)
        return guess, self._nets["image"](guess).image

    def _proxies(self, image: Tensor, mask: Tensor | None) -> Tensor:
        c = self.config
        return torch.stack(
            [
                make_proxy(one, None if mask is None else mask[i], c.proxy, c.proxy_settings)
                for i, one in enumerate(image)
            ]
        )

    def _trial(self, nets: Networks, image: Tensor) -> Tensor:
        guess = nets["proxy"](image).image
        again = nets["image"](torch.cat([guess, image, image])).image
        loss = guess.mean() + again.mean()
        if self.config.discriminators:
            for name in ("judge_proxy", "judge_image"):
                loss = loss + fooling_loss(nets[name](torch.cat([guess, image, image])))
        return loss
