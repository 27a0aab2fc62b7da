# SPDX-License-Identifier: Apache-2.0
"""Resampling of pixel metrics: a histogram per image, so that a resample is a weighted sum.

The bins' edges are quantiles of the positive pixels, of the lesions' parts, and of the lesion-free
pixels, so every step of recall, overlap and false positive rate is small; binned values lie within
1e-3 of the exact ones (tested). Only intervals are computed this way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import curves
from .pixel_store import (
    COLUMNS,
    INSIDE,
    OUTSIDE,
    PART,
    PART_FOV,
    UNION,
    ImagePixels,
    PixelTotals,
    Region,
)
from .score_counts import Counts, Rank, Scores32

Floats = NDArray[np.float64]

UNION_EDGES = 2048  # quantiles of all positive pixels; half as many of the lesions' parts
TYPE_EDGES = 512  # the same for each lesion type
NEGATIVE_EDGES = 256  # quantiles of each of the four kinds of lesion-free pixels


def choose_edges(totals: PixelTotals) -> Scores32:
    """Lower ends of the bins, rising; the first is −inf."""
    edges = [np.array([-np.inf], np.float32)]
    edges += [rank.quantiles(NEGATIVE_EDGES) for rank in totals.negative.values()]
    for name, (scores, columns) in totals.positive.items():
        n = UNION_EDGES if name == UNION else TYPE_EDGES
        edges.append(Rank(Counts(scores, columns[:, INSIDE] + columns[:, OUTSIDE])).quantiles(n))
        edges.append(Rank(Counts(scores, columns[:, PART])).quantiles(n // 2))
    return np.unique(np.concatenate(edges))


@dataclass(frozen=True)
class TargetHistograms:
    """Histograms of the images that have a target: their places ``[r]`` among all images,
    ``columns [4, r, bins]``, and pixels that are no negatives ``[2, r, bins]`` (inside, outside),
    ``None`` where there are none.
    """

    places: NDArray[np.intp]
    columns: NDArray[np.float32]
    not_negative: NDArray[np.float32] | None


@dataclass(frozen=True)
class PixelHistograms:
    """Binned pixels of every image.

    Attributes:
        ids: one per image.
        abnormal: ``[n]`` bool, an abnormal image.
        negative: ``[2, n, bins]`` lesion-free pixels (inside, outside the field of view).
        targets: per lesion type, and the union.
        confusion: ``[n, 2, 3]`` TP, FP, FN at the pixel threshold (all pixels, fov).
    """

    ids: tuple[str, ...]
    abnormal: NDArray[np.bool_]
    negative: NDArray[np.float32]
    targets: Mapping[str, TargetHistograms]
    confusion: Floats

    @property
    def bins(self) -> int:
        return self.negative.shape[2]

    def curves(
        self, cells: Sequence[tuple[str, Region]], weights: Floats
    ) -> dict[tuple[str, Region], tuple[curves.Curve, Floats]]:
        """Curve and lesions' overlap ``[b, bins]`` of targets in regions.

        Args:
            cells: targets and regions.
            weights: ``[b, n]`` how often each image counts.
        """
        images = weights.astype(np.float32)
        inside, outside = (images @ part for part in self.negative)
        healthy = ~self.abnormal
        of_healthy = images[:, healthy] @ (self.negative[0] + self.negative[1])[healthy]
        negative: dict[Region, NDArray[np.float32]] = {
            "all": inside + outside,
            "fov": inside,
            "abnormal": inside + outside - of_healthy,
        }
        result = {}
        for target in dict.fromkeys(target for target, _ in cells):
            have = self.targets[target]
            w = images[:, have.places]
            columns = [w @ column for column in have.columns]
            for region in (r for t, r in cells if t == target):
                fov = region == "fov"
                pos = columns[INSIDE] if fov else columns[INSIDE] + columns[OUTSIDE]
                neg = negative[region]
                if have.not_negative is not None:
                    within, without = have.not_negative
                    neg = neg - w @ (within if fov else within + without)
                # Differences of float32 sums may leave a trace below zero.
                curve = curves.Curve(pos[:, ::-1], np.maximum(neg, 0)[:, ::-1])
                result[target, region] = curve, columns[PART_FOV if fov else PART][:, ::-1]
        return result

    def dice(self, region: Region, weights: Floats) -> Floats:
        """Dice ``[b]`` of all pixels together at the stored threshold."""
        counts = self.confusion[:, 1 if region == "fov" else 0]
        if region == "abnormal":
            counts = counts * self.abnormal[:, None]
        tp, fp, fn = (weights @ counts).T
        return curves.ratio(2 * tp, 2 * tp + fp + fn)


def _histogram(edges: Scores32, counts: Counts) -> NDArray[np.float32]:
    place = np.searchsorted(edges, counts.scores, side="right") - 1
    return np.bincount(place, weights=counts.counts, minlength=len(edges)).astype(np.float32)


def make_histograms(images: Sequence[ImagePixels], totals: PixelTotals) -> PixelHistograms:
    """Bin every image's pixels on edges that suit them all."""
    edges = choose_edges(totals)
    negative = np.empty((2, len(images), len(edges)), np.float32)
    for i, image in enumerate(images):
        for k, counts in enumerate(image.negative):
            negative[k, i] = _histogram(edges, counts)
    targets = {}
    for name in totals.positive:
        places = [i for i, image in enumerate(images) if name in image.targets]
        columns = np.empty((COLUMNS, len(places), len(edges)), np.float32)
        not_negative = np.empty((2, len(places), len(edges)), np.float32)
        for r, i in enumerate(places):
            target = images[i].targets[name]
            scores, values = target.rows
            for c in range(COLUMNS):
                columns[c, r] = _histogram(edges, Counts(scores, values[:, c]))
            for k, counts in enumerate(target.not_negative):
                not_negative[k, r] = _histogram(edges, counts)
        targets[name] = TargetHistograms(
            np.array(places, np.intp), columns, not_negative if not_negative.any() else None
        )
    return PixelHistograms(
        ids=tuple(image.id for image in images),
        abnormal=np.array([image.abnormal for image in images]),
        negative=negative,
        targets=targets,
        confusion=np.array([image.confusion for image in images], np.float64),
    )
