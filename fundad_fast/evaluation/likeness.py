# SPDX-License-Identifier: Apache-2.0
"""Whether images look unlike those that a model was fitted on: by their scores, by their looks.

All limits here are our design. An archive holds ill patients too, at a share that nobody knows, so
that high scores alone say nothing. But if at most a share π of the images is abnormal, then at
every score the others alone put (1 − π) × the share of healthy images below it. Where clearly fewer
lie there, no plausible π explains the scores: the camera, the image quality or the preparation is
another, or the model does not fit. We take π = 1/2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

PREVALENCE = 0.5
"""The largest share of abnormal images that counts as plausible."""

TOO_LOW = 0.75
"""More than this share below the median of held-out healthy images is lower than healthy."""

MIN_IMAGES = 20
"""Fewer images, or fewer held-out healthy ones, say too little."""

SIGMAS = 3.0
"""Standard errors that a difference must exceed."""

FEATURES: Mapping[str, float] = {
    "short_side": 0.10, "aspect": 0.02, "fov_radius": 0.03, "brightness": 0.0,
}  # fmt: skip
"""What is compared of an image's looks, and by what share the training range is widened."""

OUTSIDE = 0.25
"""Share of images beyond the range of the training images that is remarkable, at least."""


@dataclass(frozen=True)
class Likeness:
    """Scores against those of held-out healthy images.

    Attributes:
        n: scores.
        prevalence: the largest share of abnormal images that was held possible.
        below_median: share below the median of held-out healthy images (ties half); ``None`` where
            either has no images.
        above_threshold: share above the image threshold; ``None`` without one.
        most_above: the share that can be above it then.
        least_below: the share that must be below the median then.
        signs: ``too_many_above``, ``too_few_low``, ``too_low``; empty where nothing is clear.
    """

    n: int
    prevalence: float
    below_median: float | None
    above_threshold: float | None
    most_above: float
    least_below: float
    signs: tuple[str, ...]


def like_healthy(
    scores: ArrayLike,
    healthy: ArrayLike,
    *,
    threshold: float | None,
    target_fpr: float | None,
    patients: ArrayLike | None = None,
    prevalence: float = PREVALENCE,
) -> Likeness:
    """Hold scores against those of held-out healthy images.

    A sign needs `MIN_IMAGES` on both sides and a difference of `SIGMAS` standard errors, which
    count both samples, and images of one patient as if they were all alike.

    Args:
        scores: ``[n]``, finite, of images of which an unknown share is abnormal.
        healthy: ``[h]`` scores of held-out healthy images.
        threshold, target_fpr: the image threshold and the share of healthy images it aims at.
        patients: ``[n]`` ints, equal for images of one patient, 0 where it is not known.
        prevalence: the largest plausible share of abnormal images.
    """
    s, known = np.asarray(scores, np.float64), np.asarray(healthy, np.float64)
    n, h = len(s), len(known)
    effect = 1.0 if patients is None else design_effect(np.asarray(patients))
    normal = 1 - prevalence
    least = normal / 2
    signs: list[str] = []
    below = above = None
    if n and h:
        middle = float(np.median(known))
        below = float(np.mean(s < middle) + np.mean(s == middle) / 2)
    # The threshold is an order statistic: of h images at most about 1 in h + 1 lies beyond.
    false = max(target_fpr or 0.0, 1 / (h + 1))
    most = 1 - normal * (1 - false)
    if n and threshold is not None:
        above = float(np.mean(s > threshold))
    if min(n, h) >= MIN_IMAGES:
        if above is not None:
            error = normal**2 * false * (1 - false) / h + _variance(above, n, effect)
            if above - most > SIGMAS * error**0.5:
                signs.append("too_many_above")
        assert below is not None
        if least - below > SIGMAS * (normal**2 / 4 / h + _variance(below, n, effect)) ** 0.5:
            signs.append("too_few_low")
        elif below > TOO_LOW and below - 0.5 > SIGMAS * (1 / 4 / h + effect / 4 / n) ** 0.5:
            signs.append("too_low")
    return Likeness(n, prevalence, below, above, most, least, tuple(signs))


def design_effect(patients: ArrayLike) -> float:
    """By how much images of the same patients lessen the evidence, at most.

    Σm² / Σm for patients with m images each, which is exact where images of a patient are all
    alike (Kish, Survey Sampling, 1965); 1 for images of which none is known (0).
    """
    who = np.asarray(patients)
    if not len(who):
        return 1.0
    m = np.unique(who[who != 0], return_counts=True)[1].astype(np.float64)
    unknown = len(who) - float(m.sum())
    return float((np.sum(m**2) + unknown) / len(who))


@dataclass(frozen=True)
class Looks:
    """One feature of the images against the training images.

    Attributes:
        name: of `FEATURES`.
        n: images of which it is known.
        quantiles: of theirs at 5 %, 50 % and 95 %; empty where ``n`` is 0.
        outside: share beyond the widened range of the training images; ``None`` where ``n`` is 0.
        limit: the share beyond which that is remarkable.
        unlike: whether it clearly is.
    """

    name: str
    n: int
    quantiles: tuple[float, ...]
    outside: float | None
    limit: float
    unlike: bool


def compare_looks(census: Mapping[str, Any], features: Mapping[str, ArrayLike]) -> list[Looks]:
    """Hold the looks of images against a census of training images.

    Args:
        census: for each feature ``n, min, q05, median, q95, max`` of training images.
        features: ``[n]`` each, NaN where unknown; names of `FEATURES`.

    Returns:
        one entry for each feature that the census knows, in the order of `FEATURES`.
    """
    found = []
    for name, wider in FEATURES.items():
        known = census.get(name)
        if not known or name not in features:
            continue
        values = np.asarray(features[name], np.float64)
        values = values[np.isfinite(values)]
        n, limit = len(values), max(OUTSIDE, chance_outside(known["n"]))
        outside, unlike = None, False
        if n:
            low, high = known["min"] * (1 - wider), known["max"] * (1 + wider)
            # Figures are stored to six digits.
            slack = 1e-5 * max(abs(low), abs(high))
            outside = float(np.mean((values < low - slack) | (values > high + slack)))
            unlike = n >= MIN_IMAGES and outside - limit > SIGMAS * _variance(outside, n, 1) ** 0.5
        quantiles = tuple(float(q) for q in np.quantile(values, (0.05, 0.5, 0.95))) if n else ()
        found.append(Looks(name, n, quantiles, outside, limit, unlike))
    return found


def chance_outside(n: int, risk: float = 1e-3) -> float:
    """Share of like images that may lie beyond the extremes of ``n`` by chance alone.

    The share s that is exceeded with probability ``risk``: n (1 − s)^(n − 1) − (n − 1) (1 − s)^n =
    ``risk`` (Wilks, Ann. Math. Stat. 1941); 1 for fewer than two.
    """
    if n < 2:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        inside = 1 - middle
        if n * inside ** (n - 1) - (n - 1) * inside**n > risk:
            low = middle
        else:
            high = middle
    return high


def _variance(share: float, n: int, effect: float) -> float:
    """Of a share of ``n``; one of 0 or 1 is not certain either."""
    held = min(max(share, 1 / (n + 2)), 1 - 1 / (n + 2))
    return effect * held * (1 - held) / n
