# SPDX-License-Identifier: Apache-2.0
"""ProxyAno as a recipe of the training loop, and the proxies of its images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..nets import fooling_loss, telling_loss
from ..nets.memory import address_entropy
from ..progress import Progress
from ..spill import RowStore
from ..synthetic.proxies import make_proxy
from ..synthetic.pseudo_anomalies import paste_patches
from ..training import Turn
from ._base import touched
from .image_store import ImageStore
from .proxyano_config import ProxyAnoConfig
from .reconstruction import ReconstructionRecipe, adam, cut, mean_inside
from .trained import Networks


class ProxyStore:
    """The proxies of a training's images, each made once.

    Args:
        config: of the method.
        images: whose proxies.
        folder: where they are kept, so that after a kill those there are not made again; ``None``
            for memory, and a temporary folder beyond its budget.
        progress: shows how many are made.
    """

    def __init__(
        self,
        config: ProxyAnoConfig,
        images: ImageStore,
        folder: Path | None,
        progress: Progress,
    ) -> None:
        self.shape = images.shape
        d = images.shape[0] * images.shape[1] * images.shape[2]
        self._rows = RowStore(d, folder=folder, limit=config.memory_budget)
        cpu = torch.device("cpu")
        with progress.task("proxies", len(images), "images") as task:
            task.advance(len(self._rows.ids))
            for number in range(len(self._rows.ids), len(images)):
                one = images.get([number], cpu)
                mask = None if one.mask is None else one.mask[0]
                made = make_proxy(one.image[0], mask, config.proxy, config.proxy_settings)
                self._rows.append(one.id[0], made.reshape(1, -1))
                task.advance(1)

    def get(self, numbers: tuple[int, ...], device: torch.device) -> Tensor:
        """Proxies ``[b, c, h, w]`` of these numbers, on a device."""
        rows = self._rows.rows(torch.tensor(numbers))
        return rows.view(len(numbers), *self.shape).to(device)


class ProxyRecipe(ReconstructionRecipe):
    """Proxy from image and image from proxy, learned together against two discriminators.

    With S the proxy of the image I, Ŝ the one that the extraction module (with its memory) makes,
    S̃ the proxy with a pasted patch and R the reconstruction module, the loss is
    ‖Ŝ-S‖₁ + λ_e·H(w) + ‖R(Ŝ)-I‖₁ + ‖R(S)-I‖₁ + ‖R(S̃)-I‖₁ + λ_a·(adv(Ŝ) + adv(R(Ŝ))), each a mean
    over what lies inside the mask. Published are the two modules, the memory and that I stays the
    target of S̃; the sum is our design, after P-Net and MemAE (METHODS.md E.5). R is given its
    three kinds of input as one batch, so that its normalisation is of them all.

    Args:
        config: of the method.
        networks: ``proxy`` and ``image``, and ``judge_proxy`` and ``judge_image`` where the config
            has discriminators.
        store: the images.
        proxies: theirs.
    """

    def __init__(
        self,
        config: ProxyAnoConfig,
        networks: Networks,
        store: ImageStore,
        proxies: ProxyStore,
    ) -> None:
        super().__init__(config, networks, store)
        self.config, self.proxies = config, proxies
        self.optimizers = {"networks": adam(config, [networks["proxy"], networks["image"]])}
        if config.discriminators:
            judges = [networks["judge_proxy"], networks["judge_image"]]
            self.optimizers["judges"] = adam(config, judges, config.discriminator_rate)

    def step(self, turn: Turn) -> Mapping[str, Tensor]:
        c = self.config
        batch = self.store.get(list(turn.index), turn.device)
        image, mask = batch.image, batch.mask
        proxy = self.proxies.get(turn.index, turn.device)
        inputs = [proxy]
        if c.pseudo_anomalies:
            shift = 0 if c.patch_from == "same" else 1
            pasted = paste_patches(
                proxy,
                image.roll(shift, 0),
                seeds=list(turn.seeds),
                mask=mask,
                source_mask=None if mask is None else mask.roll(shift, 0),
                settings=c.paste,
            )
            inputs.append(pasted.image)
        with turn.autocast():
            first = turn.networks["proxy"](image)
            guess = cut(first.image.float(), mask)
            given = guess.detach() if c.detached else guess
            made = turn.networks["image"](torch.cat([given, *inputs])).image
        parts = cut(made.float(), None if mask is None else mask.repeat(1 + len(inputs), 1, 1))
        again = parts.split(len(image))
        proxy_loss = mean_inside((guess - proxy).abs(), mask)
        image_losses = [mean_inside((part - image).abs(), mask) for part in again]
        said = {"proxy": proxy_loss, "image": image_losses[0]}
        loss = proxy_loss + torch.stack(image_losses).sum()
        if first.weights is not None:
            entropy = address_entropy(first.weights)
            said["entropy"] = entropy[touched(mask, entropy)].mean()
            loss = loss + c.entropy_weight * said["entropy"]
        if c.discriminators:
            with turn.autocast():
                fooled = fooling_loss(turn.networks["judge_proxy"](guess).float())
                fooled = fooled + fooling_loss(turn.networks["judge_image"](again[0]).float())
            loss = loss + c.adversarial_weight * fooled
        turn.descend(loss, "networks")
        if c.discriminators:
            said["judges"] = self._teach(turn, (proxy, guess), (image, again[0]))
        return {"loss": loss, **said}

    def _teach(
        self, turn: Turn, proxies: tuple[Tensor, Tensor], images: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The discriminators' step: real and made, proxies and images."""
        loss = torch.zeros((), device=turn.device)
        with turn.autocast():
            for name, pair in (("judge_proxy", proxies), ("judge_image", images)):
                logits = turn.networks[name](torch.cat([one.detach() for one in pair])).float()
                real, fake = logits.chunk(2)
                loss = loss + telling_loss(real, fake)
        turn.descend(loss, "judges")
        return loss
