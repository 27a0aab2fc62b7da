# SPDX-License-Identifier: Apache-2.0
"""Ranking metrics as functions of a tally: how many of each kind share each score.

A tally is a pair of arrays ``[..., k]``: positives and negatives per distinct score, **in order of
falling score**. Tied scores share one entry, which is the whole treatment of ties; entries may be
weighted or empty. Leading axes are independent problems (bootstrap resamples), so one call serves a
point value and its interval alike. Images, all pixels, and binned pixels differ only in how the
tally is made. What is undefined (one class absent) is NaN here and becomes ``None`` with a reason
where results are written.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Tally(NamedTuple):
    """Positives and negatives ``[k]`` per distinct score, in order of falling score."""

    pos: Floats
    neg: Floats


def ratio(a: ArrayLike, b: ArrayLike) -> Floats:
    """``a / b``, NaN where ``b`` is zero."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)


def _cumulate(counts: ArrayLike) -> Floats:
    return np.cumsum(counts, axis=-1, dtype=np.float64)


def _rates(pos: ArrayLike, neg: ArrayLike) -> tuple[Floats, Floats]:
    """True and false positive rate ``[..., k]`` when the first entries are called positive."""
    tp, fp = _cumulate(pos), _cumulate(neg)
    return ratio(tp, tp[..., -1:]), ratio(fp, fp[..., -1:])


def tie_groups(scores: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Order of falling score, and where in that order each distinct score begins."""
    scores = np.asarray(scores)
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]])
    return order, starts


def tally(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Tally:
    """Tally ``scores [n]`` with ``labels [n]`` (true = abnormal), under ``weights [..., n]``."""
    labels = np.asarray(labels, bool)
    order, starts = tie_groups(scores)
    w = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    w = w[..., order]
    y = labels[order]
    return Tally(np.add.reduceat(w * y, starts, axis=-1), np.add.reduceat(w * ~y, starts, axis=-1))


def auroc(pos: ArrayLike, neg: ArrayLike) -> Floats:
    """Area under the ROC curve: P(abnormal > healthy) + ½ P(equal)."""
    pos, neg = np.asarray(pos, np.float64), np.asarray(neg, np.float64)
    tp = _cumulate(pos)
    pairs = np.sum(neg * (tp - 0.5 * pos), axis=-1)
    return ratio(pairs, tp[..., -1] * np.sum(neg, axis=-1))


def average_precision(pos: ArrayLike, neg: ArrayLike) -> Floats:
    """Average precision Σ (Rₙ − Rₙ₋₁) Pₙ over distinct scores, without interpolation."""
    pos = np.asarray(pos, np.float64)
    tp, fp = _cumulate(pos), _cumulate(neg)
    called = tp + fp
    precision = np.divide(tp, called, out=np.zeros_like(tp), where=called > 0)
    undefined = np.sum(np.asarray(neg), axis=-1) == 0  # without negatives every ranking gets 1
    return np.where(undefined, np.nan, ratio(np.sum(pos * precision, axis=-1), tp[..., -1]))


def f1_max(pos: ArrayLike, neg: ArrayLike) -> Floats:
    """Largest F1 = 2TP / (2TP + FP + FN) over all thresholds."""
    tp, fp = _cumulate(pos), _cumulate(neg)
    f1 = ratio(2 * tp, tp + fp + tp[..., -1:])
    undefined = (tp[..., -1] == 0) | (fp[..., -1] == 0)
    return np.where(undefined, np.nan, np.max(f1, axis=-1))


def balanced_accuracy_youden(pos: ArrayLike, neg: ArrayLike) -> Floats:
    """Balanced accuracy (1 + J) / 2 where J = TPR − FPR is largest (METHODS A.5: the papers' ACC).

    The threshold is chosen on the very images it is judged on, so this flatters every method.
    """
    tpr, fpr = _rates(pos, neg)
    return (1 + np.max(tpr - fpr, axis=-1)) / 2  # J is 0 where all are called, so never negative


def sensitivity_at_specificity(pos: ArrayLike, neg: ArrayLike, specificity: float) -> Floats:
    """Largest TPR over the thresholds whose specificity is at least the wanted one.

    Tied scores change sides together and nothing is interpolated; calling nobody abnormal (TPR 0,
    specificity 1) is always allowed.
    """
    tpr, fpr = _rates(pos, neg)
    slack = 1e-12  # 1 - 0.95 is not 0.05 in binary
    reached = np.max(np.where(fpr <= 1 - specificity + slack, tpr, 0.0), axis=-1)
    undefined = np.isnan(tpr[..., -1]) | np.isnan(fpr[..., -1])
    return np.where(undefined, np.nan, reached)


def aupro(overlap: ArrayLike, neg: ArrayLike, fpr_limit: float = 0.3) -> Floats:
    """Area under the per-region-overlap curve up to a false positive rate, over that limit.

    ``overlap [..., k]`` is the part of its region that every entry's pixels add, summed over the
    regions (it sums to their number). Between thresholds the curve is straight, from (0, 0) on, and
    so also where it is cut at the limit. 1 is perfect; a random map gets half the limit.

    Source: Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, section 5.
    """
    pro, fpr = _rates(overlap, neg)
    zero = np.zeros((*pro.shape[:-1], 1))
    x, y = np.concatenate([zero, fpr], -1), np.concatenate([zero, pro], -1)
    x0, x1, y0, y1 = x[..., :-1], x[..., 1:], y[..., :-1], y[..., 1:]
    cut = np.minimum(x1, fpr_limit)
    width = cut - x0
    step = x1 - x0
    slope = np.divide(y1 - y0, step, out=np.zeros_like(step), where=step > 0)
    # An entry beyond the limit has a negative width: it adds nothing.
    area = np.sum(np.where(width > 0, width * (y0 + 0.5 * slope * width), 0.0), axis=-1)
    undefined = np.isnan(pro[..., -1]) | np.isnan(fpr[..., -1])
    return np.where(undefined, np.nan, area / fpr_limit)
