# SPDX-License-Identifier: Apache-2.0
"""Thresholds, percentiles and the colour scale, all from held-out healthy images alone.

Held out means: scored by a model that has not seen them. Training images score far lower than new
healthy ones, and a threshold set on them would call nearly every new image abnormal.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

TARGET_FPR = 0.05
# One pixel in 200 of a healthy image, on average. Our design; no paper states one. A plain patch
# memory of ResNet-18 on 512-pixel fundus photographs (IDRiD) then marked 0.4 % of the pixels of new
# healthy images, about 4 specks each (10 at 2 %, 1 at 0.1 %), and its Dice was 0.08 (0.13, 0.04;
# 0.15 at 5 %, which marks 24 specks): calm pictures are bought with small lesions missed.
PIXEL_TARGET_FPR = 0.005


def _finite(values: ArrayLike, what: str) -> Floats:
    v = np.asarray(values, np.float64).ravel()
    if v.size == 0:
        raise ValueError(f"there are no {what} to set a threshold from")
    if not np.isfinite(v).all():
        raise ValueError(f"some {what} are not finite")
    return v


def _conformal(values: Floats, target_fpr: float, what: str) -> tuple[float, str]:
    if not 0 < target_fpr < 1:
        raise ValueError(f"target_fpr must lie between 0 and 1, got {target_fpr}")
    n = len(values)
    # The slack keeps (19 + 1) * 0.95 at 19 whatever its last binary digit.
    rank = math.ceil((n + 1) * (1 - target_fpr) - 1e-9)
    if rank > n:
        return float(values.max()), (
            f"the largest of {n} {what}: too few for a false positive rate of {target_fpr:g}, "
            f"which needs at least {math.ceil(1 / target_fpr - 1e-9) - 1}; "
            f"expect about {1 / (n + 1):.2g}"
        )
    value = float(np.partition(values, rank - 1)[rank - 1])
    return value, (
        f"number {rank} of {n} {what} in rising order (ceil((n + 1) * (1 - {target_fpr:g}))); "
        "abnormal means score > value"
    )


def image_threshold(
    scores: ArrayLike, *, target_fpr: float = TARGET_FPR, folds: int | None = None
) -> dict[str, Any]:
    """Image threshold that at most a share of new healthy images exceeds.

    The ceil((n + 1)(1 − α))-th smallest of n held-out healthy scores: a new healthy image from the
    same source lies above it with probability at most α, whatever the scores' distribution and
    with ties (split conformal prediction; Vovk et al. 2005). With folds the held-out scores come
    from models of slightly fewer images, so the promise is approximate.

    Args:
        scores: ``[n]`` of held-out healthy images.
        target_fpr: α.
        folds: how many folds they come from, recorded only; ``None`` = a separate split.

    Returns:
        ``value, rule, target_fpr, n, folds``. With fewer than 1/α − 1 scores the value is the
        largest one and the rule says so.

    Raises:
        ValueError: no scores, or some that are not finite.
    """
    values = _finite(scores, "held-out healthy image scores")
    value, rule = _conformal(values, target_fpr, "held-out healthy image scores")
    return {
        "value": value,
        "rule": rule,
        "target_fpr": target_fpr,
        "n": len(values),
        "folds": folds,
    }


def pixel_threshold(
    pixels: ArrayLike, *, target_fpr: float = PIXEL_TARGET_FPR, folds: int | None = None
) -> dict[str, Any]:
    """Pixel threshold that at most a share of healthy pixels exceeds, on average over images.

    The same rule as for images, on the pooled map cells inside the field of view of held-out
    healthy images. It draws the contour and cuts out the regions; pixels of one image depend on
    each other, so single images may well have more or fewer above it.

    Args:
        pixels: any shape, scores of healthy cells.
        target_fpr: share of healthy cells above the threshold; 0.5 % by default.
        folds: as in ``image_threshold``.
    """
    values = _finite(pixels, "held-out healthy pixel scores")
    value, rule = _conformal(values, target_fpr, "held-out healthy pixel scores")
    return {
        "value": value,
        "rule": rule,
        "target_fpr": target_fpr,
        "n": len(values),
        "folds": folds,
    }


def colour_scale(pixels: ArrayLike, threshold: float) -> dict[str, Any]:
    """One fixed colour scale per model, on which healthy images look calm.

    It begins at the median healthy pixel, so half of every healthy image has the lowest colour,
    and has the pixel threshold at its middle: all but a few healthy pixels stay in the lower half,
    and the contour lies at the middle of the colour bar. It reaches further up where one healthy
    pixel in a thousand would otherwise be off the scale.

    Args:
        pixels: any shape, scores of held-out healthy cells inside the field of view.
        threshold: the stored pixel threshold.

    Returns:
        ``lo, hi, rule`` with ``lo < hi``.
    """
    values = _finite(pixels, "held-out healthy pixel scores")
    lo, rare = (float(q) for q in np.quantile(values, [0.5, 0.999]))
    hi = max(lo + 2 * (threshold - lo), rare)
    rule = (
        "from the median held-out healthy pixel to twice as far as the pixel threshold, "
        "or to their 99.9 % quantile where that is higher"
    )
    if not hi > lo:
        hi = lo + max(abs(lo), 1.0) * 1e-3
        rule = "the held-out healthy pixels are all alike: an arbitrary narrow scale"
    return {"lo": lo, "hi": hi, "rule": rule}


def score_percentile(scores: ArrayLike, held_out: ArrayLike) -> NDArray[np.float32]:
    """Percentile ``[n]`` in [0, 100] of scores among held-out healthy ones, the mid-rank for ties.

    100 × (number below + half the number equal) / number of held-out scores.
    """
    known = np.sort(_finite(held_out, "held-out healthy image scores"))
    s = np.asarray(scores, np.float64)
    if not np.isfinite(s).all():
        raise ValueError("some scores are not finite")
    below = np.searchsorted(known, s, side="left")
    up_to = np.searchsorted(known, s, side="right")
    return np.asarray(100 * 0.5 * (below + up_to) / len(known), np.float32)
