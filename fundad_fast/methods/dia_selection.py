# SPDX-License-Identifier: Apache-2.0
"""Which weights of DIA's contrast are kept: looks at images that are judged while it trains.

The public code keeps those of the best AUROC on the test set, so that its figures are of images
that its weights were chosen by. Here that needs labelled images to be handed in, and says so; the
leak-free way looks at healthy images and at the same with synthetic anomalies. Our design.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch
from ..nets import ContrastNet
from ..synthetic import Views, synthesize
from ..training import seed_of
from ._base import ConfigError
from .dia_config import DIAConfig
from .image_store import ImageStore
from .normalise import black_outside
from .shift_scores import Axes, scoring_views, view_features

TASKS = ("intra", "sink", "source", "intensity")
"""Of the synthetic anomalies, one image after the other."""

_SCALE = (0.54, 1.0)  # of crops when the public code evaluates in training (METHODS.md D.6)
_AXES = 256  # healthy images that a look compares with, at most
_AT_A_TIME = 32
_SOURCES = 16


@dataclass(frozen=True)
class Judged:
    """Images to choose weights by.

    Attributes:
        store: healthy and abnormal images.
        abnormal: ``[n]`` bool, of each.
    """

    store: ImageStore
    abnormal: Tensor


def split_off(images: int, config: DIAConfig) -> tuple[list[int], list[int]]:
    """Numbers of the images to train on, and of those to look at for ``select=synthetic``."""
    if config.select != "synthetic":
        return list(range(images)), []
    order = np.random.default_rng(seed_of(config.seed, 2)).permutation(images)
    n = max(1, round(config.select_share * images))
    if n >= images:
        raise ConfigError(f"{images} healthy images are too few to keep some of for select")
    return sorted(order[n:].tolist()), sorted(order[:n].tolist())


def some_of(store: ImageStore, numbers: Iterable[int]) -> ImageStore:
    """The images of these numbers as a store of their own."""
    found = ImageStore(store.limit)
    for number in numbers:
        found.add(store.get([number], torch.device("cpu")))
    return found


def with_anomalies(healthy: ImageStore, sources: ImageStore, seed: int) -> Judged:
    """Healthy images, and each of them with one to four synthetic anomalies."""
    cpu = torch.device("cpu")
    others = sources.get(range(min(_SOURCES, len(sources))), cpu)
    found = ImageStore(healthy.limit)
    for number in range(len(healthy)):
        found.add(healthy.get([number], cpu))
    for number in range(len(healthy)):
        one = healthy.get([number], cpu)
        made = synthesize(
            2 * one.image - 1,  # the range that the tasks' settings suit
            [TASKS[number % len(TASKS)]],
            seeds=[seed_of(seed, 3, number)],
            mask=one.mask,
            sources=2 * others.image - 1,
            source_masks=others.mask,
        )
        image = ((made.image + 1) / 2).clamp(0, 1)
        found.add(black_outside(Batch(image, (f"{one.id[0]} with anomalies",), one.mask)))
    return Judged(found, torch.arange(len(found)) >= len(healthy))


def handed_in(batches: Iterable[Batch], labels: Mapping[str, int], limit: int) -> Judged:
    """Labelled images: 1 is abnormal.

    Raises:
        ConfigError: none is healthy, or none abnormal.
    """
    found = ImageStore(limit)
    for batch in batches:
        found.add(black_outside(batch))
    abnormal = torch.tensor([labels[name] == 1 for name in found.ids], dtype=torch.bool)
    if not 0 < int(abnormal.sum()) < len(abnormal):
        raise ConfigError(
            f"of the labelled images that could be read {int(abnormal.sum())} are abnormal and "
            f"{int((~abnormal).sum())} healthy: to choose weights by them, give both"
        )
    return Judged(found, abnormal)


class Look:
    """The AUROC of images by the score of a network that is being trained.

    Args:
        config: of the method.
        train: the healthy images that it learns from; the nearest of (some of) them count.
        judged: the images.
        device: of the network.
    """

    def __init__(
        self, config: DIAConfig, train: ImageStore, judged: Judged, device: torch.device
    ) -> None:
        self.config, self.train, self.judged, self.device = config, train, judged, device
        self.views: Views = scoring_views(config.select_views, _SCALE)
        every = np.linspace(0, len(train) - 1, min(_AXES, len(train)))
        self.compared = every.round().astype(int).tolist()

    def __call__(self, net: ContrastNet) -> Tensor:
        """AUROC, a float64 scalar; the network is in evaluation mode."""
        axes = Axes.of(*self._features(net, self.train, self.compared), told=False)
        normal = axes.normality(
            *self._features(net, self.judged.store, range(len(self.judged.store)))
        ).cpu()
        return auroc(-normal, self.judged.abnormal)

    def _features(
        self, net: ContrastNet, store: ImageStore, numbers: Iterable[int]
    ) -> tuple[Tensor, Tensor]:
        every = list(numbers)
        parts = [
            view_features(
                net,
                store.get(every[i : i + _AT_A_TIME], self.device).image,
                self.views,
                self.config.shift,
            )
            for i in range(0, len(every), _AT_A_TIME)
        ]
        projections, logits = (torch.cat(values) for values in zip(*parts))
        return projections, logits


def auroc(score: Tensor, abnormal: Tensor) -> Tensor:
    """Share of the pairs (abnormal, healthy) in order, ties counting a half."""
    difference = score[abnormal][:, None] - score[~abnormal][None]
    return (difference > 0).double().mean() + (difference == 0).double().mean() / 2
