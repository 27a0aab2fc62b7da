# SPDX-License-Identifier: Apache-2.0
"""How the scores of an archive change from one period (a month, a folder) to another.

What counts as a clear difference is our design. It takes both an effect and evidence: of a random
pair, the image of the period has the higher score in more than 64 % of the cases, or in less than
36 % (a medium effect; Vargha and Delaney, J. Educ. Behav. Stat. 2000), and the rank test of Mann
and Whitney, with ties, rejects at 1 % divided by the number of periods. Large archives make the
test reject anything, and small periods show any effect.

A period is held against the others that are not unlike themselves: the one that differs most is
set apart, then the next, until none does. Otherwise a few high months would make all others low.
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
BINS = 1 << 15
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
            periods that are not unlike, ties counting half; ``None`` where either has no images.
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
    k = len(names)
    counts = np.bincount(code, minlength=k)
    order = np.argsort(code, kind="stable")
    starts = np.cumsum(counts) - counts
    members = [order[start : start + n] for start, n in zip(starts, counts)]
    effects = np.array([design_effect(who[mine]) for mine in members])
    above_others, unlike = _set_apart(_Pairs(s, code, k), effects)
    known = np.sort(np.asarray(healthy, np.float64))
    found = []
    for g, name in enumerate(names):
        n, mine = int(counts[g]), members[g]
        values = s[mine]
        found.append(
            Period(
                name=name,
                n=n,
                quantiles=tuple(float(q) for q in np.quantile(values, QUANTILES)) if n else (),
                flagged=float(np.mean(values > threshold)) if n and threshold is not None else None,
                above_others=above_others[g],
                unlike=unlike[g],
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


class _Pairs:
    """How often images of one period score higher than those of another.

    Beyond `BINS` distinct scores, neighbours share a bin and count as ties there.
    """

    def __init__(self, s: Floats, code: NDArray[np.intp], k: int) -> None:
        values, place = np.unique(s, return_inverse=True)
        bins = min(len(values), BINS)
        place = place * bins // max(len(values), 1)
        self.counts = np.bincount(code * bins + place, minlength=k * bins).reshape(k, bins)
        self.n = self.counts.sum(1)
        held = self.counts.astype(np.float64)
        # [g, h]: pairs of an image of g and a lower one of h, ties as halves.
        self.wins = held @ (np.cumsum(held, 1) - held / 2).T

    def above(self, g: int, others: list[int]) -> float | None:
        """Chance that an image of ``g`` scores higher than one of the others."""
        pairs = float(self.n[g]) * float(self.n[others].sum())
        return float(self.wins[g, others].sum()) / pairs if pairs else None

    def variance(self, g: int, others: list[int]) -> float:
        """Of that chance, where there is no difference (Mann and Whitney 1947, with ties)."""
        n, rest = float(self.n[g]), float(self.n[others].sum())
        total = n + rest
        t = self.counts[[g, *others]].sum(0).astype(np.float64)
        ties = float(np.sum(t**3 - t))
        return (total + 1 - ties / (total * (total - 1))) / (12 * n * rest)


def _set_apart(pairs: _Pairs, effects: Floats) -> tuple[list[float | None], list[str | None]]:
    """For each period its chance to score higher than the others, and how it is unlike them."""
    periods = range(len(pairs.n))
    alike = list(periods)
    enough = [g for g in periods if pairs.n[g] >= MIN_IMAGES]
    limit = NormalDist().inv_cdf(1 - LEVEL / 2 / max(len(enough), 1))

    def others(g: int) -> list[int]:
        left = [h for h in alike if h != g]
        return left if pairs.n[left].sum() else [h for h in periods if h != g]

    def clear(g: int) -> float:
        """By how much the chance differs from 1/2, 0 where that is not clear."""
        rest = [h for h in alike if h != g]
        if pairs.n[rest].sum() < MIN_IMAGES:
            return 0.0
        difference = abs((pairs.above(g, rest) or 0.0) - 0.5)
        if difference <= EFFECT - 0.5:
            return 0.0
        deviation = float(np.sqrt(pairs.variance(g, rest) * effects[g]))
        return difference if difference > limit * deviation else 0.0

    while left := [g for g in enough if g in alike]:
        # Of two periods the differences are equal but for rounding: the smaller one goes.
        differs = {g: round(clear(g), 9) for g in left}
        most = max(left, key=lambda g: (differs[g], -pairs.n[g], -g))
        if not differs[most]:
            break
        alike.remove(most)
    above = [pairs.above(g, others(g)) for g in periods]
    unlike: list[str | None] = [None] * len(above)
    for g in enough:
        chance = above[g]
        if g not in alike and chance is not None and clear(g):
            unlike[g] = "higher" if chance > 0.5 else "lower"
    return above, unlike
