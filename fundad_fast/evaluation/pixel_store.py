# SPDX-License-Identifier: Apache-2.0
"""What is kept of the pixels: per image while they are few, merged on bins once they are many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .curves import Curve
from .score_counts import BITS, Counts, Rank, Rows, Scores32

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Region = Literal["all", "fov", "abnormal"]

UNION = ""  # the target that is every lesion; the others are lesion types
# Columns of a target's positive pixels: counted inside and outside the field of view; each pixel's
# part of its lesion, of the whole lesion or of the lesion's part inside the field of view.
INSIDE, OUTSIDE, PART, PART_FOV = range(4)
COLUMNS = 4


@dataclass(frozen=True)
class Target:
    """One image's pixels of one lesion type, or of the union of all.

    Attributes:
        rows: its positive pixels, with the four columns above.
        regions, regions_fov: number of 8-connected (in a volume 26-connected) lesions, and of those
            that reach into the fov.
        not_negative: (inside, outside) pixels of a type that lie outside the union mask. They are
            counted among the lesion-free pixels but must not be for this type.
    """

    rows: Rows
    regions: int
    regions_fov: int
    not_negative: tuple[Counts, Counts]

    def binned(self, bits: int) -> Target:
        inside, outside = self.not_negative
        return replace(
            self,
            rows=self.rows.binned(bits),
            not_negative=(inside.binned(bits), outside.binned(bits)),
        )


@dataclass(frozen=True)
class ImagePixels:
    """One image's pixels, sorted into kinds.

    Attributes:
        negative: lesion-free pixels (inside, outside) the field of view.
        targets: the union under ``UNION``, and every lesion type that is present.
        confusion: ``[2, 3]`` TP, FP, FN at the pixel threshold; in all pixels, and in the fov.
    """

    id: str
    patient: str | None
    abnormal: bool
    n_pixels: int
    n_inside: int
    negative: tuple[Counts, Counts]
    targets: Mapping[str, Target]
    confusion: NDArray[np.int64]

    def binned(self, bits: int) -> ImagePixels:
        inside, outside = self.negative
        return replace(
            self,
            negative=(inside.binned(bits), outside.binned(bits)),
            targets={name: target.binned(bits) for name, target in self.targets.items()},
        )

    def without_pixels(self) -> ImagePixels:
        return replace(self, negative=(Counts.join([]), Counts.join([])), targets={})


def _split(score: Scores32, where: Mask, inside: Mask) -> tuple[Counts, Counts]:
    return Counts(score[where & inside]), Counts(score[where & ~inside])


def _target(score: Scores32, mask: Mask, inside: Mask, union: Mask) -> Target:
    from scipy.ndimage import label

    regions, n = label(mask, structure=np.ones((3,) * mask.ndim))
    place = regions[mask]
    within = inside[mask]
    size = np.bincount(place, minlength=n + 1)
    size_fov = np.bincount(place[within], minlength=n + 1)
    columns = np.empty((len(place), COLUMNS), np.float32)
    columns[:, INSIDE] = within
    columns[:, OUTSIDE] = ~within
    columns[:, PART] = 1 / size[place]
    columns[:, PART_FOV] = within / np.maximum(size_fov[place], 1)
    return Target(
        rows=Rows(score[mask], columns),
        regions=int(n),
        regions_fov=int(np.count_nonzero(size_fov)),
        not_negative=_split(score, mask & ~union, inside),
    )


def sort_pixels(
    id: str,
    patient: str | None,
    score: Scores32,
    mask: Mask | None,
    fov: Mask | None,
    types: Mapping[str, Mask],
    threshold: np.float32 | None,
) -> ImagePixels:
    """Sort one image's pixels into kinds; every array is ``[h, w]``, of a volume ``[d, h, w]``."""
    inside = np.ones(score.shape, bool) if fov is None else fov
    union = np.zeros(score.shape, bool) if mask is None else mask
    targets = {} if mask is None else {UNION: _target(score, mask, inside, union)}
    for name, type_mask in types.items():
        targets[name] = _target(score, type_mask, inside, union)
    confusion = np.zeros((2, 3), np.int64)
    if threshold is not None:
        called = score > threshold
        for row, where in enumerate((np.ones_like(inside), inside)):
            tp = np.count_nonzero(called & union & where)
            fp = np.count_nonzero(called & where) - tp
            confusion[row] = tp, fp, np.count_nonzero(union & where) - tp
    return ImagePixels(
        id=id,
        patient=patient,
        abnormal=mask is not None,
        n_pixels=score.size,
        n_inside=int(np.count_nonzero(inside)),
        negative=_split(score, ~union, inside),
        targets=targets,
        confusion=confusion,
    )


@dataclass
class PixelTotals:
    """All images' pixels merged: what the point values are computed from.

    Attributes:
        negative: rank of the lesion-free pixels, by (abnormal image, inside the field of view).
        positive: per target its distinct scores with summed columns.
        not_negative: per target, rank of its pixels that are no negatives (inside, outside).
    """

    negative: Mapping[tuple[bool, bool], Rank]
    positive: Mapping[str, Rows]
    not_negative: Mapping[str, tuple[Rank, Rank]]

    def curve(self, target: str, region: Region) -> tuple[Curve, Floats]:
        """Curve of a target against lesion-free pixels, and its regions' overlap per entry.

        Entries are the distinct scores of positive pixels, with all negatives between two of them
        collected into one entry: no metric here depends on how those are ordered, and the curve is
        as short as the lesions are small.
        """
        scores, columns = self.positive[target]
        fov = region == "fov"
        count = columns[:, INSIDE] if fov else columns[:, INSIDE] + columns[:, OUTSIDE]
        part = columns[:, PART_FOV] if fov else columns[:, PART]
        falling = scores[::-1]
        at_or_above, above, total = np.zeros(len(scores)), np.zeros(len(scores)), 0.0
        ranks = [
            (rank, 1.0)
            for (abnormal, inside), rank in self.negative.items()
            if (inside or not fov) and (abnormal or region != "abnormal")
        ]
        within, without = self.not_negative[target]
        ranks += [(within, -1.0)] + ([] if fov else [(without, -1.0)])
        for rank, sign in ranks:
            at_or_above += sign * rank.at_or_above(falling)
            above += sign * rank.above(falling)
            total += sign * rank.total
        pos = np.zeros(2 * len(scores) + 1)
        neg, overlap = np.zeros_like(pos), np.zeros_like(pos)
        pos[1::2], overlap[1::2] = count[::-1], part[::-1]
        neg[0:-1:2] = above - np.r_[0.0, at_or_above[:-1]]
        neg[1::2] = at_or_above - above
        neg[-1] = total - (at_or_above[-1] if len(scores) else 0.0)
        return Curve(pos, neg), overlap


@dataclass
class PixelStore:
    """Takes images' pixels; exact up to a limit, then on bins.

    Attributes:
        limit: pixels up to which all scores are kept.
        bits: of the bins beyond.
        per_image: keep a binned histogram per image beyond the limit, for intervals.
    """

    limit: int
    bits: int = BITS
    per_image: bool = True
    images: list[ImagePixels] = field(default_factory=list)
    n_pixels: int = 0
    exact: bool = True
    _negative: dict[tuple[bool, bool], Counts] = field(default_factory=dict)
    _positive: dict[str, Rows] = field(default_factory=dict)
    _not_negative: dict[tuple[str, bool], Counts] = field(default_factory=dict)

    def add(self, image: ImagePixels) -> None:
        self.n_pixels += image.n_pixels
        if self.exact and self.n_pixels > self.limit:
            self.exact = False
            self.images = [self._absorb(kept) for kept in self.images]
        self.images.append(image if self.exact else self._absorb(image))

    def _absorb(self, image: ImagePixels) -> ImagePixels:
        """Bin an image, add it to the merged counts, and return what is kept of it."""
        image = image.binned(self.bits)
        for inside, counts in zip((True, False), image.negative):
            key = (image.abnormal, inside)
            self._negative[key] = self._join(self._negative.get(key), counts)
        for name, target in image.targets.items():
            known = self._positive.get(name)
            parts = [target.rows] if known is None else [known, target.rows]
            self._positive[name] = Rows.join(parts, COLUMNS).by_score()
            for inside, counts in zip((True, False), target.not_negative):
                place = (name, inside)
                self._not_negative[place] = self._join(self._not_negative.get(place), counts)
        return image if self.per_image else image.without_pixels()

    def _join(self, known: Counts | None, counts: Counts) -> Counts:
        return counts if known is None else Counts.join([known, counts]).binned(self.bits)

    def totals(self) -> PixelTotals:
        """Merge everything added so far."""
        kinds = [(a, i) for a in (False, True) for i in (True, False)]
        nothing = Counts.join([])
        if not self.exact:
            names = list(self._positive)
            return PixelTotals(
                negative={k: Rank(self._negative.get(k, nothing)) for k in kinds},
                positive=dict(self._positive),
                not_negative={
                    n: (Rank(self._not_negative[n, True]), Rank(self._not_negative[n, False]))
                    for n in names
                },
            )
        names = list(dict.fromkeys(name for image in self.images for name in image.targets))
        present = {n: [i.targets[n] for i in self.images if n in i.targets] for n in names}
        return PixelTotals(
            negative={
                (a, i): Rank(
                    Counts.join([m.negative[not i] for m in self.images if m.abnormal == a])
                )
                for a, i in kinds
            },
            positive={
                n: Rows.join([t.rows for t in present[n]], COLUMNS).by_score() for n in names
            },
            not_negative={
                n: (
                    Rank(Counts.join([t.not_negative[0] for t in present[n]])),
                    Rank(Counts.join([t.not_negative[1] for t in present[n]])),
                )
                for n in names
            },
        )
