# SPDX-License-Identifier: Apache-2.0
"""How the scores of an archive change from one period (a month, a folder) to another.

What counts as a clear difference is our design. It takes both an effect and evidence: of a random
pair, the image of the period has the higher score in more than 64 % of the cases, or in less than
36 % (a medium effect; Vargha and Delaney, J. Educ. Behav. Stat. 2000), and the rank test of Mann
and Whitney, with ties, rejects at 1 % divided by the number of periods. Large archives make the
test reject anything, and small periods show any effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .likeness import MIN_IMAGES, PREVALENCE, Likeness, design_effect, like_healthy

Floats = NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
EFFECT = 0.64
LEVEL = 0.01


@dataclass(frozen=True)
class Period:
    """The scores of one period.

    Attributes:
        name: of the period.
        n: images with a score.
        quantiles: of their scores, at `QUANTILES`; empty without images.
        flagged: share above the threshold; ``None`` without images or threshold.
        above_others: chance that a random image of it scores higher than a random one of the other
            periods, ties counting half; ``None`` where either has no images.
        unlike: ``higher`` or ``lower`` where that clearly differs from 1/2, else ``None``.
        healthy: its scores against those of held-out healthy images.
    """

    name: str
    n: int
    quantiles: tuple[float, ...]
    flagged: float | None
    above_others: float | None
    unlike: str | None
    healthy: Likeness


def drift(
    scores: ArrayLike,
    period: ArrayLike,
    names: Sequence[str],
    *,
    healthy: ArrayLike = (),
    threshold: float | None = None,
    target_fpr: float | None = None,
    patients: ArrayLike | None = None,
    prevalence: float = PREVALENCE,
) -> list[Period]:
    """Compare the scores of periods with each other and with held-out healthy images.

    Args:
        scores: ``[n]``, finite.
        period: ``[n]`` ints in [0, k): places in ``names``.
        names: of the k periods.
        healthy: ``[h]`` scores of held-out healthy images; may be empty.
        threshold, target_fpr: the image threshold and the share of healthy images it aims at.
        patients: ``[n]`` ints, equal for images of one patient and 0 where it is not known. Images
            of a patient count as that much less evidence as if they were all alike.
        prevalence: the largest plausible share of abnormal images.

    Returns:
        one entry per name, in their order.

    Raises:
        ValueError: lengths differ, or a score is not finite.
    """
    s, code = np.asarray(scores, np.float64), np.asarray(period, np.intp)
    who = np.zeros(len(s), np.uint64) if patients is None else np.asarray(patients, np.uint64)
    if not len(s) == len(code) == len(who):
        raise ValueError(f"{len(s)} scores, {len(code)} periods and {len(who)} patients")
    if not np.isfinite(s).all():
        raise ValueError("some scores are not finite")
    k, total = len(names), len(s)
    counts = np.bincount(code, minlength=k)
    ranks, ties = _mid_ranks(s)
    sums = np.bincount(code, ranks, minlength=k)
    order = np.argsort(code, kind="stable")
    ends = np.cumsum(counts)
    tested = int(np.count_nonzero((counts >= MIN_IMAGES) & (total - counts >= MIN_IMAGES)))
    limit = NormalDist().inv_cdf(1 - LEVEL / 2 / max(tested, 1))
    known = np.sort(np.asarray(healthy, np.float64))
    found = []
    for g, name in enumerate(names):
        n, rest = int(counts[g]), total - int(counts[g])
        mine = order[ends[g] - n : ends[g]]
        above, unlike = None, None
        if n and rest:
            above = float((sums[g] - n * (n + 1) / 2) / (n * rest))
            if min(n, rest) >= MIN_IMAGES:
                variance = (total + 1 - ties / (total * (total - 1))) / (12 * n * rest)
                deviation = np.sqrt(variance * design_effect(who[mine]))
                if abs(above - 0.5) > max(EFFECT - 0.5, limit * deviation):
                    unlike = "higher" if above > 0.5 else "lower"
        values = s[mine]
        found.append(
            Period(
                name=name,
                n=n,
                quantiles=tuple(float(q) for q in np.quantile(values, QUANTILES)) if n else (),
                flagged=float(np.mean(values > threshold)) if n and threshold is not None else None,
                above_others=above,
                unlike=unlike,
                healthy=like_healthy(
                    values,
                    known,
                    threshold=threshold,
                    target_fpr=target_fpr,
                    patients=who[mine],
                    prevalence=prevalence,
                ),
            )
        )
    return found


def _mid_ranks(s: Floats) -> tuple[Floats, float]:
    """Ranks from 1 with the mean for ties, and the sum of t³ − t over groups of t ties."""
    _, place, sizes = np.unique(s, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    t = sizes.astype(np.float64)
    return np.asarray((last - (t - 1) / 2)[place]), float(np.sum(t**3 - t))
