# SPDX-License-Identifier: Apache-2.0
"""How well image scores tell abnormal from healthy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import curves
from .bootstrap import estimate, extreme_share_interval, resample_weights
from .metric import Metric

Floats = NDArray[np.float64]

SPECIFICITY = 0.95

DEFINITIONS: dict[str, str] = {
    "image_AUROC": "Area under the ROC curve over images: the probability that an abnormal image "
    "scores above a healthy one, ties counting one half.",
    "image_AP": "Average precision over images: sum of (R_n - R_n-1) * P_n over the distinct "
    "scores, not interpolated.",
    "image_F1Max": "Largest F1 over all thresholds on the image score (chosen on these images).",
    "image_balanced_accuracy_youden": "(TPR + TNR) / 2 at the threshold where TPR - FPR is largest "
    "on these images (the papers' ACC; it flatters every method).",
    "image_balanced_accuracy_threshold": "(TPR + TNR) / 2 at the model's stored threshold, which "
    "comes from held-out healthy images; abnormal means score > threshold.",
    "image_sensitivity_at_specificity_95": "Largest TPR over the thresholds that call at least "
    "95 % of the healthy images healthy; tied scores change sides together, not interpolated.",
    "image_FPR_threshold": "Share of the healthy images here whose score is above the model's "
    "stored threshold; where that is none or all of them, the interval is the exact binomial one.",
}

NEEDS_THRESHOLD = ("image_balanced_accuracy_threshold", "image_FPR_threshold")


def image_values(
    scores: ArrayLike,
    labels: ArrayLike,
    threshold: float | None = None,
    weights: ArrayLike | None = None,
) -> dict[str, Floats]:
    """All image metrics at once, NaN where undefined.

    Args:
        scores: ``[n]`` finite, higher = more abnormal.
        labels: ``[n]`` true = abnormal.
        threshold: abnormal means ``score > threshold``; ``None`` leaves its metrics NaN.
        weights: ``[..., n]`` how often each image counts; ``None`` = once.

    Returns:
        One array ``[...]`` per name of ``DEFINITIONS``.
    """
    scores, labels = np.asarray(scores), np.asarray(labels, bool)
    w = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    curve = curves.make_curve(scores, labels, w)
    values = {
        "image_AUROC": curves.auroc(curve),
        "image_AP": curves.average_precision(curve),
        "image_F1Max": curves.f1_max(curve),
        "image_balanced_accuracy_youden": curves.balanced_accuracy_youden(curve),
        "image_sensitivity_at_specificity_95": curves.sensitivity_at_specificity(
            curve, SPECIFICITY
        ),
    }
    if threshold is None:
        undefined = np.full(w.shape[:-1], np.nan)
        values["image_balanced_accuracy_threshold"] = undefined
        values["image_FPR_threshold"] = undefined
    else:
        called = np.asarray(scores > threshold, np.float64)
        tpr = curves.ratio(w @ (called * labels), w @ np.asarray(labels, np.float64))
        fpr = curves.ratio(w @ (called * ~labels), w @ np.asarray(~labels, np.float64))
        values["image_balanced_accuracy_threshold"] = (tpr + 1 - fpr) / 2
        values["image_FPR_threshold"] = fpr
    return {name: values[name] for name in DEFINITIONS}


def undefined_reason(name: str, labels: NDArray[np.bool_], threshold: float | None) -> str | None:
    """Why this metric has no value on these images, in words, or ``None`` when it has one."""
    if len(labels) == 0:
        return "there are no scored images with a label"
    if name in NEEDS_THRESHOLD and threshold is None:
        return "no threshold was given"
    if labels.all():
        return "there are no healthy images"
    if name != "image_FPR_threshold" and not labels.any():
        return "there are no abnormal images"
    return None


def check_scores(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores and labels as arrays, or a ``ValueError`` that says what is wrong with them."""
    s = np.asarray(scores, np.float64)  # a float32 score must meet its threshold unrounded
    y = np.asarray(labels)
    if s.ndim != 1 or s.shape != y.shape:
        raise ValueError(
            f"scores and labels must be two lists of the same length, got {s.shape} and {y.shape}"
        )
    if not np.isfinite(s).all():
        raise ValueError("a score is not finite: leave images that failed out of the evaluation")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 (healthy) or 1 (abnormal)")
    return s, y.astype(bool)


def image_metrics(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    threshold: float | None = None,
    patients: Sequence[str | None] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, Metric]:
    """Image metrics with 95 % bootstrap intervals.

    Args:
        scores: ``[n]`` finite, higher = more abnormal.
        labels: ``[n]`` 0 healthy, 1 abnormal.
        threshold: the model's image threshold; abnormal means ``score > threshold``.
        patients: one name per image, ``None`` where unknown; whole patients are resampled.
        n_boot: resamples; 0 for no intervals.
        seed: of the resampling.

    Raises:
        ValueError: lengths that differ, scores that are not finite, labels other than 0 and 1.
    """
    s, y = check_scores(scores, labels)
    reasons = {name: undefined_reason(name, y, threshold) for name in DEFINITIONS}
    if len(y) == 0:
        return {k: Metric(None, None, None, 0, DEFINITIONS[k], r) for k, r in reasons.items()}
    point = image_values(s, y, threshold)
    resamples = resample_weights(y, patients, n_boot, seed, width=len(y))
    drawn = [image_values(s, y, threshold, w) for w in resamples.chunks()]
    result = {}
    for name, definition in DEFINITIONS.items():
        if reasons[name] is not None:
            result[name] = Metric(None, None, None, len(y), definition, reasons[name])
            continue
        value = float(point[name])
        result[name] = estimate(
            value, len(y), definition, [d[name] for d in drawn], resamples.no_interval
        )
        if name == "image_FPR_threshold" and drawn and value in (0, 1):
            lo, hi = extreme_share_interval(value == 0, resamples.healthy_units)
            result[name] = Metric(value, lo, hi, len(y), definition)
    return result
