# SPDX-License-Identifier: Apache-2.0
"""CSI's score: how near views are to those of healthy images, and how sure of their shift."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..nets import ContrastNet
from ..ops import NearestPrepared, nearest, nearest_prepare
from ..synthetic import SHIFTS, Views, augmented, draw_views, mirrored, shifted
from ..synthetic.views import Shift
from ..training import seed_of

PIXELS_AT_ONCE = {"cpu": 2**18, "cuda": 2**23}
"""Of views that go through the network together, which bounds memory whatever the batch. On a CPU
more of them leave its caches."""


def scoring_views(number: int, scale: tuple[float, float]) -> Views:
    """The ``number`` x K views of every image, view by view, seeded 0, 1, ... as in the code.

    There the draws differ between the images of a batch; here they are the same for every image,
    so that scores do not depend on the batch. Our design.
    """
    parts = [
        draw_views(SHIFTS, np.random.default_rng(seed_of(seed)), scale=scale)
        for seed in range(number)
    ]
    return Views(*(torch.cat([getattr(p, f) for p in parts]) for f in Views.__dataclass_fields__))


@torch.no_grad()
def view_features(
    net: ContrastNet, image: Tensor, views: Views, how: Shift
) -> tuple[Tensor, Tensor]:
    """Mean projections and shift logits of images over their views.

    Args:
        net: in evaluation mode, on the images' device.
        image: ``[n, c, h, w]`` in [0, 1].
        views: as of :func:`scoring_views`.
        how: the shifting transformations.

    Returns:
        ``[n, K, p]`` projections, not normalised, and ``[n, K, K]`` logits.
    """
    n, per = len(image), len(views)
    views = views.to(image.device)
    at_once = max(
        1, PIXELS_AT_ONCE.get(image.device.type, PIXELS_AT_ONCE["cpu"]) // image[0, 0].numel()
    )
    kind = torch.arange(per, device=image.device) % SHIFTS
    # Each shift of each image and of its mirror image is made once; views pick among these.
    form = kind + SHIFTS * views.flip
    found: list[tuple[Tensor, Tensor]] = []
    few = max(1, at_once // per)
    for first in range(0, n, few):
        some = image[first : first + few]
        both = (some, mirrored(some, torch.ones(len(some), dtype=torch.bool)))
        forms = torch.stack([shifted(one, k, how) for one in both for k in range(SHIFTS)], 1)
        which = torch.cartesian_prod(
            torch.arange(len(some), device=image.device), torch.arange(per, device=image.device)
        )
        found += [
            net(augmented(forms[part[:, 0], form[part[:, 1]]], views[part[:, 1]]))
            for part in which.split(at_once)
        ]
    means = [torch.cat(values).view(n, per // SHIFTS, SHIFTS, -1).mean(1) for values in zip(*found)]
    return means[0], means[1]


@dataclass
class Axes:
    """What healthy images look like to the network, shift by shift.

    Attributes:
        bank: ``[K, m, p]`` float32, normalised mean projections of the m training images.
        sim: ``[K]`` float64, 1 / their mean length.
        shi: ``[K]`` float64, 1 / their mean logit of the true shift; 0 where that is not above 0.
    """

    bank: Tensor
    sim: Tensor
    shi: Tensor
    _prepared: list[NearestPrepared] | None = None

    @classmethod
    def of(cls, projections: Tensor, logits: Tensor, *, told: bool = True) -> Self:
        """From :func:`view_features` of the training images; ``told``: warn of shifts not known."""
        length = projections.norm(dim=2)
        bank = (projections / length.clamp_min(1e-12)[..., None]).transpose(0, 1).contiguous()
        sure = logits.diagonal(dim1=1, dim2=2).double().mean(0)
        if told and not bool((sure > 0).all()):
            warnings.warn(
                "the network does not know shifts apart (mean logit of the true one: "
                f"{', '.join(f'{v:.2g}' for v in sure.tolist())}); where that is not above 0 the "
                "shift is left out of the score; train longer",
                RuntimeWarning,
                stacklevel=2,
            )
        shi = torch.where(sure > 0, 1 / sure, 0.0)
        return cls(bank, 1 / length.double().mean(0).clamp_min(1e-12), shi)

    def to(self, device: torch.device) -> Self:
        return type(self)(self.bank.to(device), self.sim.to(device), self.shi.to(device))

    def normality(self, projections: Tensor, logits: Tensor) -> Tensor:
        """Mean over the shifts of w_sim · max_m <f, A_m> + w_shi · g[k], ``[n]`` float64.

        Higher is more normal. The largest product is found as the nearest of the axes: of rows of
        length 1 it is 1 - d²/2. Source: METHODS.md D.6.
        """
        if self._prepared is None:
            self._prepared = [nearest_prepare(bank) for bank in self.bank]
        total = torch.zeros(len(projections), dtype=torch.float64, device=projections.device)
        for k in range(len(self.bank)):
            f = projections[:, k]
            length = f.norm(dim=1)
            unit = f / length.clamp_min(1e-12)[:, None]
            dist2, _ = nearest(unit, self.bank[k], 1, self._prepared[k])
            total += self.sim[k] * length.double() * (1 - dist2[:, 0].double() / 2)
            total += self.shi[k] * logits[:, k, k].double()
        return total / len(self.bank)
