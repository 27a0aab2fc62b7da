# SPDX-License-Identifier: Apache-2.0
"""The report's charts hold the numbers that they should, whatever the scores look like."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score

from fundad_fast.report import charts

INNER = charts.SQUARE - charts.LEFT - charts.RIGHT


def unit(svg: str, pattern: str) -> np.ndarray:
    """Points of a polyline or circle of a unit-square chart, back in its own coordinates."""
    numbers = re.search(pattern, svg)
    assert numbers, svg
    points = np.array([p.split(",") for p in " ".join(numbers.groups()).split()], float)
    return np.stack(
        [(points[:, 0] - charts.LEFT) / INNER, (charts.TOP + INNER - points[:, 1]) / INNER], 1
    )


def curve(svg: str) -> np.ndarray:
    return unit(svg, r'class="curve" points="([^"]+)"')


def dot(svg: str) -> np.ndarray:
    return unit(re.sub(r'cx="([\d.]+)" cy="([\d.]+)"', r'at="\1,\2"', svg), r'at="([^"]+)"')[0]


def area(points: np.ndarray) -> float:
    x, y = points.T
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


@pytest.fixture(params=["distinct", "ties", "one value", "many"])
def judged(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    n = 20_000 if request.param == "many" else 60
    labels = rng.random(n) < 0.4
    scores = rng.normal(size=n) + labels
    if request.param == "ties":
        scores = np.round(scores)
    return (np.zeros(n) if request.param == "one value" else scores), labels


def test_the_curves_have_scikit_learns_areas(judged: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = judged
    roc = curve(charts.roc(scores, labels, None))
    assert area(roc) == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)
    np.testing.assert_allclose(roc[[0, -1]], [[0, 0], [1, 1]], atol=1e-3)
    steps = curve(charts.precision_recall(scores, labels, None))
    assert area(steps) == pytest.approx(average_precision_score(labels, scores), abs=5e-3)
    assert len(roc) <= charts.MAX_VERTICES
    assert len(steps) <= charts.MAX_VERTICES


def test_the_dot_is_the_threshold_and_abnormal_is_above_it() -> None:
    scores, labels = np.array([1.0, 2, 2, 3, 3, 4]), np.array([0, 0, 1, 0, 1, 1], bool)
    called = scores > 2
    at = dot(charts.roc(scores, labels, 2.0))
    np.testing.assert_allclose(at, [1 / 3, recall_score(labels, called)], atol=1e-3)
    at = dot(charts.precision_recall(scores, labels, 2.0))
    expected = [recall_score(labels, called), precision_score(labels, called)]
    np.testing.assert_allclose(at, expected, atol=1e-3)
    assert "circle" not in charts.precision_recall(scores, labels, 9.0)  # nothing is called


@pytest.mark.parametrize("labels", [[False, False], [True, True]])
def test_no_curve_without_both_kinds(labels: list[bool]) -> None:
    scores = np.array([1.0, 2.0])
    assert charts.roc(scores, np.array(labels), 1.0) == ""
    assert charts.precision_recall(scores, np.array(labels), 1.0) == ""


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [
        ([1.0], None),
        ([0.0, 0.0], 0.0),
        ([-3.0, 2.0, 2.0, 7.5], 100.0),
        (np.geomspace(0.01, 5e4, 500), 3.0),
        (np.r_[np.random.default_rng(0).normal(20, 2, 5000), 1e6], 25.0),
        ([1e-12, 2e-12], 1e-12),
        ([16777217.0, 16777216.0], None),
    ],
)
def test_every_score_lies_in_a_bin(scores: list[float], threshold: float | None) -> None:
    series = [
        charts.Series("a <b>", "s-run", np.asarray(scores, float)),
        charts.Series("none", "s-normal", np.array([])),
    ]
    svg = charts.histogram(series, threshold)
    root = ET.fromstring(svg)
    titles = [e.text or "" for e in root.iter("title")]
    counts = [int(found[1]) for t in titles if (found := re.search(r"a <b>: (\d+) of", t))]
    assert sum(counts) == len(scores)
    assert "none" not in svg
    numbers = [float(v) for v in re.findall(r'\bx="(-?[\d.]+)"', svg)]
    assert min(numbers) >= -1
    assert max(numbers) <= charts.WIDTH
    assert "nan" not in svg
    ticks = [e.text or "" for e in root.iter("text")]
    assert len(ticks) == len(set(ticks))
    assert any(t.startswith("threshold") for t in ticks) == (threshold is not None)


def test_shares_are_of_each_series_by_itself() -> None:
    few = charts.Series("few", "s-normal", np.array([0.0, 10.0]))
    many = charts.Series("many", "s-run", np.tile([0.0, 10.0], 5000))
    svg = charts.histogram([few, many], None)
    shapes = re.findall(r'class="steps [\w-]+" d="([^"]+)"', svg)
    assert shapes[0] == shapes[1]


def test_scores_over_many_magnitudes_get_a_logarithmic_axis() -> None:
    wide = charts.Series("run", "s-run", np.array([0.1, 1.0, 100.0]))
    assert "logarithmic" in charts.histogram([wide], None)
    assert "logarithmic" not in charts.histogram([wide], -1.0)


def test_no_scores_no_chart() -> None:
    assert charts.histogram([charts.Series("a", "s-run", np.array([]))], 1.0) == ""
