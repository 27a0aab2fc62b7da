# SPDX-License-Identifier: Apache-2.0
"""Image metrics against scikit-learn, ties included, and where they are undefined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from fundad_fast.evaluation.curves import Curve, sensitivity_at_specificity
from fundad_fast.evaluation.image_metrics import DEFINITIONS, image_metrics, image_values


@st.composite
def labelled_scores(draw):
    """Few distinct scores, so most are tied, and both classes."""
    n = draw(st.integers(2, 40))
    scores = draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    labels[0], labels[1] = 0, 1
    return np.array(scores, float) / 4, np.array(labels)


@settings(max_examples=150, deadline=None)
@given(labelled_scores(), st.integers(-4, 4))
def test_equals_scikit_learn_with_ties(data, level):
    scores, labels = data
    threshold = level / 4
    got = {k: float(v) for k, v in image_values(scores, labels, threshold).items()}
    assert got["image_AUROC"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert got["image_AP"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    precision, recall, _ = precision_recall_curve(labels, scores)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    assert got["image_F1Max"] == pytest.approx(f1.max(), abs=1e-12)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert got["image_balanced_accuracy_youden"] == pytest.approx(
        (1 + (tpr - fpr).max()) / 2, abs=1e-12
    )
    assert got["image_sensitivity_at_specificity_95"] == pytest.approx(
        tpr[fpr <= 0.05 + 1e-9].max(), abs=1e-12
    )
    called = scores > threshold
    assert got["image_balanced_accuracy_threshold"] == pytest.approx(
        balanced_accuracy_score(labels, called), abs=1e-12
    )
    assert got["image_FPR_threshold"] == pytest.approx(called[labels == 0].mean(), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(labelled_scores(), st.data())
def test_weights_are_repetitions(data, choose):
    scores, labels = data
    times = np.array(
        choose.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels)))
    )
    times[:2] = np.maximum(times[:2], 1)
    weighted = image_values(scores, labels, 0.0, times[None])
    repeated = image_values(np.repeat(scores, times), np.repeat(labels, times), 0.0)
    for name in DEFINITIONS:
        assert weighted[name].shape == (1,)
        assert weighted[name][0] == pytest.approx(float(repeated[name]), abs=1e-12), name


def test_sensitivity_at_95_percent_specificity_by_hand():
    # 20 healthy: exactly one may lie above. The second highest healthy score is 18, tied with an
    # abnormal one, and ties change sides together: that abnormal image is out of reach.
    healthy = list(range(20))
    labels = [0] * 20 + [1] * 4
    value = image_metrics(healthy + [30, 18.5, 18, 3], labels, n_boot=0)
    assert value["image_sensitivity_at_specificity_95"].value == pytest.approx(2 / 4)
    # With 19 healthy none may lie above.
    value = image_metrics(healthy[1:] + [30, 18.5, 18, 3], labels[1:], n_boot=0)
    assert value["image_sensitivity_at_specificity_95"].value == pytest.approx(1 / 4)


@pytest.mark.parametrize("specificity", [0.9, 0.8, 0.7, 0.6])
def test_wanted_specificity_may_be_met_exactly(specificity):
    # 1 - 0.9 is less than 0.1 in binary: one healthy of ten above must still be allowed.
    healthy = round(10 * (1 - specificity))
    pos = np.array([0.0] * healthy + [1, 0])
    neg = np.array([1.0] * healthy + [0, 10 - healthy])
    assert sensitivity_at_specificity(Curve(pos, neg), specificity) == 1
    assert sensitivity_at_specificity(Curve(pos, neg), specificity + 0.01) == 0


def test_threshold_is_strict_and_float32_scores_are_not_rounded():
    scores = np.array([0.1, 0.2, 0.2, 0.3], np.float32)
    labels = [0, 0, 1, 1]
    at = float(np.float32(0.2))
    got = image_metrics(scores, labels, threshold=at, n_boot=0)
    assert got["image_FPR_threshold"].value == 0
    assert got["image_balanced_accuracy_threshold"].value == 0.75
    got = image_metrics(scores, labels, threshold=0.2, n_boot=0)  # float32(0.2) > 0.2
    assert got["image_FPR_threshold"].value == 0.5


@pytest.mark.parametrize(
    "scores, labels, words",
    [
        ([1.0, 2.0], [1, 1], "no healthy images"),
        ([1.0, 2.0], [0, 0], "no abnormal images"),
        ([], [], "no scored images"),
    ],
)
def test_undefined_says_why(scores, labels, words):
    got = image_metrics(scores, labels, threshold=1.5)
    metric = got["image_AUROC"]
    assert (metric.value, metric.lo, metric.hi) == (None, None, None)
    assert words in metric.reason
    assert set(got) == set(DEFINITIONS)


def test_healthy_only_still_gives_the_false_positive_rate():
    got = image_metrics([1.0, 2.0, 3.0, 4.0], [0] * 4, threshold=3.5, n_boot=200)
    metric = got["image_FPR_threshold"]
    assert metric.value == 0.25
    assert metric.lo == 0
    assert 0.25 < metric.hi <= 1
    assert metric.reason is None
    assert got["image_balanced_accuracy_threshold"].value is None
    assert "no threshold" in image_metrics([1.0], [0])["image_FPR_threshold"].reason


@pytest.mark.parametrize(
    "scores, labels, words",
    [
        ([1.0], [0, 1], "same length"),
        ([np.nan, 1.0], [0, 1], "not finite"),
        ([1.0, 2.0], [0, 2], "0 (healthy) or 1"),
    ],
)
def test_unusable_input_is_refused(scores, labels, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        image_metrics(scores, labels)
