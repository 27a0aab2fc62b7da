# SPDX-License-Identifier: Apache-2.0
"""Percentile bootstrap over patients, or images where patients are unknown; never over pixels.

Pixels of one image are far from independent: resampling them would give intervals many times too
narrow. A resample is a weight per image (how often it was drawn), and every metric here accepts
weights, so no data are copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metric import Metric, finite

Floats = NDArray[np.float64]

LEVEL = 0.95
CHUNK_ELEMENTS = 1 << 18  # weights times tally width held at once; 2 MB per float64 temporary


@dataclass(frozen=True)
class Resamples:
    """How often every image is drawn in every resample.

    Attributes:
        strata: per stratum the unit of each of its images and the images' places.
        n: images.
        n_boot: resamples.
        seed: of the drawing.
        rows: resamples per chunk.
        healthy_units: patients (or images) with healthy images.
        no_interval: why there can be no interval, or ``None``.
    """

    strata: tuple[tuple[NDArray[np.intp], NDArray[np.intp]], ...]
    n: int
    n_boot: int
    seed: int
    rows: int
    healthy_units: int
    no_interval: str | None

    def chunks(self) -> Iterator[Floats]:
        """Weights ``[b, n]``, a few resamples at a time; the same at every call."""
        if self.no_interval is not None:
            return
        # One generator per stratum: the draws do not depend on the size of the chunks.
        seeds = np.random.SeedSequence(self.seed).spawn(len(self.strata))
        generators = [np.random.default_rng(s) for s in seeds]
        for start in range(0, self.n_boot, self.rows):
            b = min(self.rows, self.n_boot - start)
            weights = np.zeros((b, self.n))
            for generator, (unit, images) in zip(generators, self.strata):
                m = int(unit.max()) + 1
                counts = generator.multinomial(m, np.full(m, 1 / m), size=b)
                weights[:, images] = counts[:, unit]
            yield weights


def resample_weights(
    labels: ArrayLike,
    patients: Sequence[str | None] | None,
    n_boot: int,
    seed: int,
    *,
    width: int,
) -> Resamples:
    """Plan a stratified bootstrap.

    Units (patients; an image without one is its own) are drawn with replacement within three
    strata: those with healthy images only, with abnormal ones only, and with both. Every resample
    therefore has both kinds whenever the data have.

    Args:
        labels: ``[n]`` true = abnormal.
        patients: one name per image or ``None`` where unknown.
        n_boot: resamples, 0 for none.
        seed: of the drawing.
        width: length of the tallies that the weights will be multiplied with; sets the chunk size.
    """
    y = np.asarray(labels, bool)
    n = len(y)
    if patients is not None and len(patients) != n:
        raise ValueError(f"there are {len(patients)} patients for {n} images")
    names: list[tuple[int, str]] = [
        (1, str(i)) if patients is None or patients[i] is None else (0, str(patients[i]))
        for i in range(n)
    ]
    places = {name: k for k, name in enumerate(dict.fromkeys(names))}
    unit = np.array([places[name] for name in names], np.intp)
    abnormal = np.bincount(unit, weights=y, minlength=len(places))
    healthy = np.bincount(unit, weights=~y, minlength=len(places))
    kind = np.where(abnormal == 0, 0, np.where(healthy == 0, 1, 2))
    strata = []
    for k in range(3):
        images = np.flatnonzero(kind[unit] == k)
        if len(images):
            strata.append((np.unique(unit[images], return_inverse=True)[1], images))
    reason = None
    if n_boot == 0:
        reason = "no interval: no resamples were asked for"
    else:
        for word, present in (("healthy", healthy > 0), ("abnormal", abnormal > 0)):
            if np.count_nonzero(present) == 1:
                of = "image" if patients is None else "patient"
                reason = f"no interval: only one {word} {of} to resample"
    rows = max(1, CHUNK_ELEMENTS // max(width, 1))
    units = int(np.count_nonzero(healthy))
    return Resamples(tuple(strata), n, n_boot, seed, rows, units, reason)


def interval(drawn: Sequence[ArrayLike]) -> tuple[float | None, float | None]:
    """The 2.5 % and 97.5 % percentiles of resampled values, given in chunks; ``None`` if empty."""
    if not drawn:
        return None, None
    values = np.concatenate([np.atleast_1d(d) for d in drawn])
    lo, hi = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return finite(lo), finite(hi)


def estimate(
    value: float, n: int, definition: str, drawn: Sequence[ArrayLike], no_interval: str | None
) -> Metric:
    """A metric with its interval; where all resamples agree there is none, not one of width 0."""
    lo, hi = interval(drawn)
    if lo is not None and lo == hi:
        lo = hi = None
        no_interval = "no interval: every resample gives the same value"
    return Metric(finite(value), lo, hi, n, definition, no_interval)


def extreme_share_interval(none: bool, units: int) -> tuple[float, float]:
    """Exact binomial interval of a share of which none, or all, of the units were seen.

    The bootstrap has nothing to vary there. Source: Clopper and Pearson, Biometrika 1934.
    """
    edge = ((1 - LEVEL) / 2) ** (1 / units)
    return (0.0, 1 - edge) if none else (edge, 1.0)
