# SPDX-License-Identifier: Apache-2.0
"""Counting very many float32 scores: exactly, or in bounded memory on order-preserving bins.

A float32 read as an integer, with the sign folded in, sorts as the number does. Its highest bits
are therefore a bin that needs no knowledge of the range: with 22 bits every octave has 8,192 bins,
so scores that differ by more than 0.013 % never share one. Binning a score means replacing it with
its bin's lower end; scores of one bin are then tied. Against exact counting, metrics of noisy maps
around 20 ± 1 (one octave, the hard case) moved by less than 3e-4 with 22 bits and 5e-3 with 16
(tested); on 22 million pixels by 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores32 = NDArray[np.float32]
Floats = NDArray[np.float64]

BITS = 22
_SIGN = np.uint32(0x80000000)


def to_bins(scores: Scores32, bits: int = BITS) -> NDArray[np.uint32]:
    """Order-preserving bin of every score, in ``[0, 2**bits)``; −0 and 0 share one."""
    # Adding zero turns −0 into 0, whose bit patterns lie far apart.
    u = (scores + np.float32(0)).view(np.uint32)
    keys = np.where(u & _SIGN, ~u, u | _SIGN)
    return keys >> np.uint32(32 - bits)


def from_bins(bins: NDArray[np.uint32], bits: int = BITS) -> Scores32:
    """The smallest score of every bin."""
    keys = bins.astype(np.uint32) << np.uint32(32 - bits)
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).astype(np.uint32).view(np.float32)


class Rows(NamedTuple):
    """Scores ``[k]`` with columns ``[k, c]`` of whatever is summed over them, in any order."""

    scores: Scores32
    columns: NDArray[np.floating]

    def by_score(self) -> Rows:
        """Distinct scores, rising, with the columns' sums in float64."""
        if len(self.scores) == 0:
            return Rows(self.scores, self.columns.astype(np.float64))
        order = np.argsort(self.scores)
        rising = self.scores[order]
        starts = np.flatnonzero(np.r_[True, rising[1:] != rising[:-1]])
        sums = np.add.reduceat(self.columns[order], starts, axis=0, dtype=np.float64)
        return Rows(rising[starts], sums)

    def binned(self, bits: int) -> Rows:
        """The same with every score replaced by its bin's lower end."""
        return Rows(from_bins(to_bins(self.scores, bits), bits), self.columns).by_score()

    @staticmethod
    def join(parts: Sequence[Rows], columns: int) -> Rows:
        if not parts:
            return Rows(np.zeros(0, np.float32), np.zeros((0, columns), np.float32))
        return Rows(
            np.concatenate([p.scores for p in parts]), np.concatenate([p.columns for p in parts])
        )


class Counts(NamedTuple):
    """Scores ``[k]`` in any order and how often each occurs; ``counts`` None = once each."""

    scores: Scores32
    counts: NDArray[np.floating] | None = None

    @property
    def total(self) -> float:
        return float(len(self.scores) if self.counts is None else self.counts.sum())

    def rising(self) -> Counts:
        """The same in order of rising score."""
        if self.counts is None:
            return Counts(np.sort(self.scores))
        order = np.argsort(self.scores)
        return Counts(self.scores[order], self.counts[order])

    def binned(self, bits: int) -> Counts:
        """Distinct bins' lower ends, rising, with their counts."""
        bins = to_bins(self.scores, bits)
        if self.counts is None:
            found, counts = np.unique(bins, return_counts=True)
            return Counts(from_bins(found, bits), counts.astype(np.float64))
        found, place = np.unique(bins, return_inverse=True)
        return Counts(from_bins(found, bits), np.bincount(place, weights=self.counts).astype(float))

    @staticmethod
    def join(parts: Sequence[Counts]) -> Counts:
        """All of them; either every part has counts or none has."""
        if not parts:
            return Counts(np.zeros(0, np.float32))
        scores = np.concatenate([p.scores for p in parts])
        counts = [p.counts for p in parts if p.counts is not None]
        return Counts(scores, np.concatenate(counts) if counts else None)


class Rank:
    """Answers how many of some scores lie at or above, or strictly above, given values."""

    def __init__(self, counted: Counts) -> None:
        counted = counted.rising()
        self.scores = counted.scores
        self.total = counted.total
        self._below = (
            None if counted.counts is None else np.r_[0.0, np.cumsum(counted.counts, dtype=float)]
        )

    def at_or_above(self, values: Scores32) -> Floats:
        return self._from(np.searchsorted(self.scores, values, side="left"))

    def above(self, values: Scores32) -> Floats:
        return self._from(np.searchsorted(self.scores, values, side="right"))

    def quantiles(self, n: int) -> Scores32:
        """``n`` scores that divide the counted ones about evenly."""
        if len(self.scores) == 0:
            return self.scores
        wanted = (np.arange(n) / n) * self.total
        if self._below is None:
            return self.scores[wanted.astype(np.intp)]
        return self.scores[np.searchsorted(self._below, wanted, side="right") - 1]

    def _from(self, place: NDArray[np.intp]) -> Floats:
        below = place if self._below is None else self._below[place]
        return np.asarray(self.total - below, np.float64)
