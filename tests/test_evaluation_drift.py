# SPDX-License-Identifier: Apache-2.0
"""Drift and likeness: what is called unlike, and, more important, what is not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from fundad_fast.evaluation.drift import QUANTILES, drift
from fundad_fast.evaluation.likeness import (
    chance_outside,
    compare_looks,
    design_effect,
    like_healthy,
)


def healthy(n, seed=0):
    return np.random.default_rng(seed).gamma(20, 1, n)


def against(scores, known=None, **options):
    known = healthy(300) if known is None else known
    threshold = float(np.quantile(known, 0.95))
    return like_healthy(scores, known, threshold=threshold, target_fpr=0.05, **options)


def archive(n, prevalence, seed=1):
    """Scores of which a share is abnormal, and those lie anywhere above."""
    rng = np.random.default_rng(seed)
    abnormal = rng.random(n) < prevalence
    return rng.gamma(20, 1, n) + abnormal * rng.gamma(6, 6, n)


def test_the_chance_to_score_higher_is_mann_and_whitneys():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=300).round(1)  # ties
    code = rng.integers(0, 3, 300)
    for g, period in enumerate(drift(scores, code, "abc")):
        mine, rest = scores[code == g], scores[code != g]
        u = mannwhitneyu(mine, rest).statistic
        assert period.above_others == pytest.approx(u / len(mine) / len(rest))
        np.testing.assert_allclose(period.quantiles, np.quantile(mine, QUANTILES))
        assert period.n == len(mine)


def test_the_evidence_is_that_of_the_rank_test(monkeypatch):
    """With no effect asked for, a period is unlike exactly when the test with ties says so."""
    monkeypatch.setattr("fundad_fast.evaluation.drift.EFFECT", 0.5)
    said = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scores = np.r_[rng.normal(0.6, 1, 40), rng.normal(0, 1, 60)].round()
        p = mannwhitneyu(scores[:40], scores[40:], use_continuity=False, method="asymptotic").pvalue
        first, _ = drift(scores, np.r_[np.zeros(40, int), np.ones(60, int)], "ab")
        assert (first.unlike == "higher") == (p < 0.01 / 2)  # two periods
        said.add(first.unlike)
    assert said == {None, "higher"}


def test_a_small_effect_is_none_however_clear_and_a_small_period_says_nothing():
    rng = np.random.default_rng(0)
    code = np.repeat([0, 1], 20_000)
    scores = rng.normal(size=40_000) + 0.4 * (code == 0)  # 61 % of the pairs: p < 1e-100
    first, second = drift(scores, code, "ab")
    assert 0.6 < first.above_others < 0.64
    assert (first.unlike, second.unlike) == (None, None)
    first, second = drift(scores + (code == 0), code, "ab")
    assert (first.unlike, second.unlike) == ("higher", None)  # of two, one is set apart
    scores, code = np.r_[np.full(19, 9.0), rng.normal(size=100)], np.repeat([0, 1], [19, 100])
    assert drift(scores, code, "ab")[0].unlike is None
    scores, code = np.r_[9.0, scores], np.r_[0, code]
    assert drift(scores, code, "ab")[0].unlike == "higher"


def test_high_periods_do_not_make_the_others_low():
    rng = np.random.default_rng(0)
    code = np.repeat(np.arange(10), 200)
    scores = rng.normal(size=2000) + 3.0 * (code < 4)
    found = drift(scores, code, [str(g) for g in range(10)])
    assert [period.unlike for period in found] == ["higher"] * 4 + [None] * 6
    for g, period in enumerate(found):
        rest = scores[(code >= 4) & (code != g)]
        u = mannwhitneyu(scores[code == g], rest).statistic
        assert period.above_others == pytest.approx(u / 200 / len(rest))


def test_many_distinct_scores_share_bins(monkeypatch):
    rng = np.random.default_rng(0)
    scores, code = rng.normal(size=3000), np.arange(3000) % 2
    exact = drift(scores, code, "ab")[0].above_others
    monkeypatch.setattr("fundad_fast.evaluation.drift.BINS", 256)
    assert drift(scores, code, "ab")[0].above_others == pytest.approx(exact, abs=2e-3)
    assert drift(scores, code, "ab")[0].above_others != exact


def test_many_like_periods_are_not_called_unlike():
    rng = np.random.default_rng(4)
    found = [
        period.unlike
        for seed in range(20)
        for period in drift(rng.normal(size=36 * 25), np.arange(36 * 25) % 36, list(range(36)))
    ]
    assert sum(unlike is not None for unlike in found) <= 2  # 20 archives at 1 %


def test_images_of_one_patient_are_one_piece_of_evidence():
    rng = np.random.default_rng(0)
    scores = np.r_[rng.normal(1.2, 1, 40), rng.normal(0, 1, 2000)]
    code = np.repeat([0, 1], [40, 2000])
    assert drift(scores, code, "ab")[0].unlike == "higher"
    one = np.r_[np.full(40, 7), np.zeros(2000, int)]
    assert drift(scores, code, "ab", patients=one)[0].unlike is None


def test_periods_without_images_and_wrong_input():
    first, second, third = drift([1.0, 2.0], [0, 2], "abc", threshold=1.5)
    assert (second.n, second.quantiles, second.flagged, second.above_others) == (0, (), None, None)
    assert (first.flagged, third.flagged, third.above_others) == (0.0, 1.0, 1.0)
    (alone,) = drift([1.0], [0], "a")
    assert alone.above_others is None
    with pytest.raises(ValueError, match="2 scores, 1 periods"):
        drift([1.0, 2.0], [0], "a")
    with pytest.raises(ValueError, match="not finite"):
        drift([1.0, np.nan], [0, 0], "a")


@pytest.mark.parametrize("prevalence", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("n", [20, 400, 50_000])
@pytest.mark.parametrize("known", [20, 60, 1000])
def test_no_prevalence_up_to_a_half_raises_an_alarm(prevalence, n, known):
    for seed in range(12):
        found = against(archive(n, prevalence, seed), healthy(known, 100 + seed))
        assert found.signs == ()


def test_scores_that_no_prevalence_explains_do():
    shifted = archive(1000, 0.1) * 1.3
    found = against(shifted)
    assert found.signs == ("too_few_low",)
    assert found.least_below == 0.25
    assert found.below_median == pytest.approx(np.mean(shifted < np.median(healthy(300))))
    far = against(archive(1000, 0.1) * 2)
    assert far.signs == ("too_many_above", "too_few_low")
    assert far.most_above == pytest.approx(0.525)
    assert far.above_threshold > 0.9
    low = against(archive(1000, 0.0) * 0.6)  # as of images that the model was fitted on
    assert low.signs == ("too_low",)


def test_where_all_are_known_to_be_healthy_less_is_needed():
    shifted = archive(1000, 0.0) * 1.12
    assert against(shifted).signs == ()
    found = against(shifted, prevalence=0.0)
    assert found.signs == ("too_many_above", "too_few_low")
    assert (found.least_below, found.most_above) == (0.5, pytest.approx(0.05))


def test_too_few_images_or_unknown_healthy_ones_say_nothing():
    far = archive(100, 0.0) * 3
    assert against(far[:19]).signs == ()
    assert against(far[:20]).signs != ()
    assert against(far, healthy(19)).signs == ()
    found = like_healthy(far, (), threshold=None, target_fpr=None)
    assert (found.signs, found.below_median, found.above_threshold) == ((), None, None)
    assert like_healthy((), healthy(50), threshold=1.0, target_fpr=0.05).n == 0


def test_one_patient_photographed_often_is_no_archive():
    far = archive(200, 0.0) * 1.35
    assert against(far).signs == ("too_few_low",)
    assert against(far, patients=np.full(200, 3)).signs == ()


def test_the_design_effect_is_kishs():
    assert design_effect([1, 1, 2, 2]) == 2
    assert design_effect([0, 0, 0]) == 1
    assert design_effect([0, 5, 5, 5]) == (9 + 1) / 4
    assert design_effect([]) == 1


def census(**more):
    one = {"n": 100, "min": 0.3, "q05": 0.31, "median": 0.35, "q95": 0.39, "max": 0.4}
    return {"brightness": one, "short_side": {**one, "min": 1000, "max": 1000}, **more}


def test_looks_beyond_the_range_of_the_training_images():
    inside = np.linspace(0.3, 0.4, 100)
    (size, bright) = compare_looks(
        census(), {"brightness": inside, "short_side": np.r_[np.full(50, 1099), np.full(50, 500)]}
    )
    assert (size.name, bright.name) == ("short_side", "brightness")
    assert (bright.outside, bright.unlike) == (0.0, False)
    assert (size.outside, size.unlike) == (0.5, True)  # 10 % more is alike
    nothing = compare_looks(census(), {"brightness": np.full(9, np.nan)})
    assert [(look.n, look.outside, look.unlike) for look in nothing] == [(0, None, False)]
    dark = compare_looks(census(), {"brightness": np.full(19, 0.1)})[0]
    assert (dark.outside, dark.unlike) == (1.0, False)  # too few
    assert compare_looks(census(), {"brightness": np.full(20, 0.1)})[0].unlike
    quarter = np.r_[np.full(250, 0.1), np.full(750, 0.35)]
    assert not compare_looks(census(), {"brightness": quarter})[0].unlike
    assert compare_looks({}, {"brightness": inside}) == []


def test_few_training_images_leave_room_for_chance():
    assert chance_outside(1) == 1.0
    for n in (5, 20, 60):
        share, inside = chance_outside(n), 1 - chance_outside(n)
        assert n * inside ** (n - 1) - (n - 1) * inside**n == pytest.approx(1e-3)
        rng = np.random.default_rng(n)
        train = rng.random((4000, n))
        beyond = 1 - (train.max(1) - train.min(1))
        assert np.mean(beyond > share) < 4e-3
    few = census(brightness={**census()["brightness"], "n": 5})
    assert not compare_looks(few, {"brightness": np.r_[np.full(60, 0.1), np.full(40, 0.35)]})[
        0
    ].unlike


def test_a_score_at_the_healthy_median_is_half_below_it():
    found = like_healthy([1.0, 2.0, 2.0, 9.0], [1.0, 2.0, 3.0], threshold=None, target_fpr=None)
    assert found.below_median == 0.5
