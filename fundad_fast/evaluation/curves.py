# SPDX-License-Identifier: Apache-2.0
"""Ranking metrics as functions of a curve: how many of each kind lie at or above each score.

A curve is made of positives and negatives ``[..., k]`` per distinct score, **in order of falling
score**. Tied scores share one entry, which is the whole treatment of ties; entries may be weighted
or empty. Leading axes are independent problems (bootstrap resamples), so one call serves a point
value and its interval alike. Images, all pixels, and binned pixels differ only in how the curve is
made. What is undefined (one class absent) is NaN here and becomes ``None`` with a reason where
results are written.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def ratio(a: ArrayLike, b: ArrayLike) -> Floats:
    """``a / b``, NaN where ``b`` is zero."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)


def cumulate(counts: ArrayLike) -> Floats:
    return np.cumsum(counts, axis=-1, dtype=np.float64)


class Curve:
    """Counts per distinct score in order of falling score, and summed from the top.

    Attributes:
        pos, neg: positives and negatives ``[..., k]`` with each score.
        tp, fp: the same at or above it; ``p``, ``n`` ``[...]``: all of them.
        defined: ``[...]`` there are both positives and negatives.
    """

    def __init__(self, pos: ArrayLike, neg: ArrayLike) -> None:
        self.pos, self.neg = np.asarray(pos), np.asarray(neg)
        self.tp, self.fp = cumulate(pos), cumulate(neg)
        self.p, self.n = self.tp[..., -1], self.fp[..., -1]
        self.defined = (self.p > 0) & (self.n > 0)

    def where_defined(self, values: ArrayLike) -> Floats:
        return np.where(self.defined, values, np.nan)

    @property
    def tpr(self) -> Floats:
        return ratio(self.tp, self.p[..., None])

    @property
    def fpr(self) -> Floats:
        return ratio(self.fp, self.n[..., None])


def tie_groups(scores: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Order of falling score, and where in that order each distinct score begins."""
    scores = np.asarray(scores)
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]])
    return order, starts


def make_curve(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Curve:
    """Curve of ``scores [n]`` with ``labels [n]`` (true = abnormal) and ``weights [..., n]``."""
    labels = np.asarray(labels, bool)
    order, starts = tie_groups(scores)
    w = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    w = w[..., order]
    y = labels[order]
    return Curve(np.add.reduceat(w * y, starts, axis=-1), np.add.reduceat(w * ~y, starts, axis=-1))


def auroc(curve: Curve) -> Floats:
    """Area under the ROC curve: P(abnormal > healthy) + ½ P(equal)."""
    pairs = np.sum(curve.neg * (curve.tp - 0.5 * curve.pos), axis=-1)
    return ratio(pairs, curve.p * curve.n)


def average_precision(curve: Curve) -> Floats:
    """Average precision Σ (Rₙ − Rₙ₋₁) Pₙ over distinct scores, without interpolation."""
    called = curve.tp + curve.fp
    precision = np.divide(curve.tp, called, out=np.zeros_like(called), where=called > 0)
    return curve.where_defined(ratio(np.sum(curve.pos * precision, axis=-1), curve.p))


def f1_max(curve: Curve) -> Floats:
    """Largest F1 = 2TP / (2TP + FP + FN) over all thresholds."""
    f1 = ratio(2 * curve.tp, curve.tp + curve.fp + curve.p[..., None])
    return curve.where_defined(np.max(f1, axis=-1))


def balanced_accuracy_youden(curve: Curve) -> Floats:
    """Balanced accuracy (1 + J) / 2 where J = TPR − FPR is largest (METHODS A.5: the papers' ACC).

    The threshold is chosen on the very images it is judged on, so this flatters every method.
    """
    # J is 0 where all are called, so the largest is never negative.
    return (1 + np.max(curve.tpr - curve.fpr, axis=-1)) / 2


def sensitivity_at_specificity(curve: Curve, specificity: float) -> Floats:
    """Largest TPR over the thresholds whose specificity is at least the wanted one.

    Tied scores change sides together and nothing is interpolated; calling nobody abnormal (TPR 0,
    specificity 1) is always allowed.
    """
    slack = 1e-12  # 1 - 0.9 is less than 0.1 in binary
    allowed = curve.fpr <= 1 - specificity + slack
    return curve.where_defined(np.max(np.where(allowed, curve.tpr, 0.0), axis=-1))


def aupro(curve: Curve, overlap: ArrayLike, fpr_limit: float = 0.3) -> Floats:
    """Area under the per-region-overlap curve up to a false positive rate, over that limit.

    ``overlap [..., k]`` is the part of its region that every entry's pixels add, summed over the
    regions (it sums to their number). Between thresholds the curve is straight, from (0, 0) on, and
    so also where it is cut at the limit. 1 is perfect; a random map gets half the limit.

    Source: Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, section 5.
    """
    covered, fpr = cumulate(overlap), curve.fpr
    pro = ratio(covered, covered[..., -1:])
    zero = np.zeros((*pro.shape[:-1], 1))
    x, y = np.concatenate([zero, fpr], -1), np.concatenate([zero, pro], -1)
    x0, x1, y0, y1 = x[..., :-1], x[..., 1:], y[..., :-1], y[..., 1:]
    width = np.minimum(x1, fpr_limit) - x0
    step = x1 - x0
    slope = np.divide(y1 - y0, step, out=np.zeros_like(step), where=step > 0)
    # An entry beyond the limit has a negative width: it adds nothing.
    area = np.sum(np.where(width > 0, width * (y0 + 0.5 * slope * width), 0.0), axis=-1)
    return curve.where_defined(area / fpr_limit)
