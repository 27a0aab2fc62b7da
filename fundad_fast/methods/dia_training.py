# SPDX-License-Identifier: Apache-2.0
"""The two trainings of DIA as recipes of the loop: the diffusion model, then the contrast."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..diffusion import Denoiser
from ..nets import ContrastNet
from ..synthetic import SHIFTS, augmented, draw_t, draw_views, mirrored, shifted
from ..training import LARS, Recipe, Turn, seed_of, warm_up_and_cosine
from .contrast import nt_xent
from .dia_config import DIAConfig
from .dia_selection import Look
from .image_store import ImageStore

_COPIED = 100  # steps of which the moving average is a copy, as in the library of the public code

Dissolve = Callable[[Tensor, Tensor], Tensor]
"""Images ``[b, c, h, w]`` in [0, 1] and time steps ``[b]`` to dissolved images."""


class DenoisingRecipe(Recipe):
    """Mean absolute error of the noise that was added to healthy images, mirrored or not.

    ``ema`` is the moving average, kept beside the raw weights. Source: METHODS.md D.2.

    Args:
        config: of the method.
        net: to train, on its device.
        store: images ``[c, r, r]`` in [0, 1] at the model's resolution.
    """

    def __init__(self, config: DIAConfig, net: Denoiser, store: ImageStore) -> None:
        self.config, self.store = config, store
        self.networks = {"net": net, "ema": copy.deepcopy(net).requires_grad_(False)}
        self.optimizers = {
            "net": torch.optim.Adam(net.parameters(), config.diffusion_rate, betas=(0.9, 0.99))
        }
        self.images = len(store)

    def step(self, turn: Turn) -> Mapping[str, Tensor]:
        net = self.networks["net"]
        assert isinstance(net, Denoiser)
        x = self.store.get(turn.index, turn.device).image
        # Drawn on the CPU, so that a GPU trains on the same noise.
        x = 2 * mirrored(x, torch.rand(len(x)) < 0.5) - 1
        t = torch.randint(len(net.kept), (len(x),))
        noise = torch.randn(x.shape).to(x)
        kept = net.kept[t.to(net.kept.device)].view(-1, 1, 1, 1)
        noisy = kept.sqrt().to(x) * x + (1 - kept).sqrt().to(x) * noise
        loss = nnf.l1_loss(turn.networks["net"](noisy, t.to(x.device)), noise)
        turn.descend(loss, "net")
        if (turn.step + 1) % self.config.ema_every == 0:
            self._average(turn.step + 1)
        return {"loss": loss}

    @torch.no_grad()
    def _average(self, made: int) -> None:
        """Its decay rises from 0 with the steps after the first hundred, up to ``ema``."""
        after = max(made - _COPIED - 1, 0)
        decay = min(self.config.ema, 1 - (1 + after) ** (-2 / 3))
        now: list[Tensor] = list(self.networks["net"].parameters())
        ema: list[Tensor] = list(self.networks["ema"].parameters())
        torch._foreach_lerp_(ema, now, 1 - decay)


class ContrastRecipe(Recipe):
    """NT-Xent over views and dissolved images, and which shift an image went through.

    Source: METHODS.md D.3 to D.5.

    Args:
        config: of the method.
        net: to train, on its device.
        store: images in [0, 1].
        dissolve: ``None`` for CSI.
        steps: of the whole training.
        look: the AUROC that weights are chosen by; ``None``: those of the last step are kept.
    """

    def __init__(
        self,
        config: DIAConfig,
        net: ContrastNet,
        store: ImageStore,
        dissolve: Dissolve | None,
        steps: int,
        look: Look | None = None,
    ) -> None:
        self.config, self.store, self.dissolve, self.steps = config, store, dissolve, steps
        self.look = look
        self.val_images = 0 if look is None else 1  # one figure for all of them together
        self.networks = {"net": net}
        self.optimizers = {
            "net": LARS(
                net.parameters(),
                config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                trust=config.trust,
            )
        }
        self.images = len(store)

    def rate(self, step: int) -> float:
        c = self.config
        warmup = round(c.warmup_share * self.steps)
        return warm_up_and_cosine(step, warmup=warmup, total=self.steps, multiplier=c.warmup_factor)

    def step(self, turn: Turn) -> Mapping[str, Tensor]:
        c = self.config
        stack = self.stacked(turn)
        pairs = SHIFTS * len(turn.index)
        with turn.autocast():
            z, logits = turn.networks["net"](stack)
        label = torch.arange(SHIFTS, device=z.device).repeat_interleave(len(turn.index))
        contrast = nt_xent(z, pairs, temperature=c.temperature, mode=c.exclusion, divisor=c.divisor)
        kind = nnf.cross_entropy(logits.float(), label.repeat(len(z) // pairs))
        loss = contrast + kind
        turn.descend(loss, "net")
        right = (logits.view(-1, pairs, SHIFTS)[0].argmax(1) == label).float().mean()
        return {"loss": loss, "contrast": contrast, "shift": kind, "shift_right": right}

    def validate(self, turn: Turn) -> Mapping[str, Tensor]:
        """What is missing to an AUROC of 1 on the images that weights are chosen by."""
        assert self.look is not None
        net = self.networks["net"]
        assert isinstance(net, ContrastNet)
        found = self.look(net)
        return {"loss": 1 - found, "AUROC": found}

    @torch.no_grad()
    def stacked(self, turn: Turn) -> Tensor:
        """What the network sees: [O1; O2; D], each all images of shift 0, then of 1, and so on."""
        c = self.config
        x = self.store.get(turn.index, turn.device).image
        n = len(x)
        rng = np.random.default_rng(seed_of(turn.seeds[0], n))
        parts = []
        for _ in range(2):
            view = mirrored(x, torch.from_numpy(rng.random(n) < 0.5))
            parts += [shifted(view, k, c.shift) for k in range(SHIFTS)]
        if self.dissolve is not None:
            flips = torch.from_numpy(rng.random(SHIFTS * n) < 0.5)
            t = draw_t(
                SHIFTS if c.t_per == "shift" else SHIFTS * n,
                rng,
                sampler=c.t_sampler,
                offset=c.t_offset,
                upper=c.t_upper,
                scale=c.t_scale,
                progress=turn.step / self.steps,
            )
            if c.t_per == "shift":
                t = t.repeat_interleave(n)
            dissolved = self.dissolve(mirrored(x.repeat(SHIFTS, 1, 1, 1), flips), t)
            parts += [shifted(one, k, c.shift) for k, one in enumerate(dissolved.split(n))]
        stack = torch.cat(parts)
        return augmented(stack, draw_views(len(stack), rng, scale=c.crop))
